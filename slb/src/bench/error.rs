//! The errors that end a run.

use std::fmt;

/// The reason why something could not be measured.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// Makes a failure with a message.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self(message.to_string())
    }

    /// Makes the failure of tables that do not fit this machine's memory.
    pub fn memory() -> Self {
        Self::failed("there is not enough memory for the tables")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}
