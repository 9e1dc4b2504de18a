//! A process that says how it is: at its status socket, and over HTTP.

use std::io;

use serde_json::{Value, json};

use super::request::Answer;
use super::status::Shared;
use super::{answers, capture, request};
use crate::report::metrics::Family;

/// The fault of a node whose workers do not answer.
const STUCK: &str = "a worker does not answer";

/// A process that answers at its status socket and over HTTP.
pub(crate) trait Tell: Send + Sync + 'static {
    /// The status, as one JSON document.
    ///
    /// # Errors
    /// Says what does not answer.
    fn status(&self) -> Result<Value, String>;

    /// The metrics.
    ///
    /// # Errors
    /// Says what does not answer.
    fn metrics(&self) -> Result<Vec<Family>, String>;

    /// The health of the process, which is started anew where it has none.
    ///
    /// # Errors
    /// Says what does not answer.
    fn health(&self) -> Result<(), String>;

    /// The readiness of the process to do its work.
    ///
    /// # Errors
    /// Says why it does not.
    fn readiness(&self) -> Result<(), String>;

    /// Answers another question than that for the status.
    ///
    /// # Errors
    /// The client is gone.
    fn answer(&self, asked: &Value, out: &mut Answer<'_>) -> io::Result<()>;
}

impl Tell for Shared {
    fn status(&self) -> Result<Value, String> {
        self.document().ok_or_else(|| STUCK.to_owned())
    }

    fn metrics(&self) -> Result<Vec<Family>, String> {
        self.families().ok_or_else(|| STUCK.to_owned())
    }

    fn health(&self) -> Result<(), String> {
        match self.is_answered() {
            true => Ok(()),
            false => Err(STUCK.to_owned()),
        }
    }

    fn readiness(&self) -> Result<(), String> {
        let trouble = self.trouble();
        if !trouble.is_empty() {
            return Err(format!("not ready: {}", trouble.join(", ")));
        }
        self.health()?;
        match self.unavailable() {
            down if down.is_empty() => Ok(()),
            down => Err(format!(
                "no backend takes new flows of: {}",
                down.join(", ")
            )),
        }
    }

    fn answer(&self, asked: &Value, out: &mut Answer<'_>) -> io::Result<()> {
        match asked["ask"].as_str() {
            Some("list") => request::list(asked, self, out),
            Some("config") => answers::config(self, out),
            Some("explain") => answers::explain_live(asked, self, out),
            Some("drops") => answers::drops(self, out),
            Some("capture") => capture::capture(asked, self, &self.is_captured, out),
            _ => out.line(&json!({
                "error": "expected a line of JSON with \"ask\": \"status\", \"list\", \"config\", \"explain\", \
                          \"drops\" or \"capture\""
            })),
        }
    }
}
