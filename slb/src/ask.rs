//! Questions to a running balancer, at its socket: a line of JSON, answered line by line.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::Failure;

/// How long a balancer may say nothing: it sends an empty line twice a second where it has nothing to say.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer that is being read.
pub(crate) struct Answer {
    reader: BufReader<UnixStream>,
    place: String,
}

/// A line of an answer.
pub(crate) enum Line {
    /// An item, as JSON.
    Item(String),
    /// The last line of the answer.
    End(Value),
}

impl Answer {
    /// Asks at a socket.
    pub(crate) fn to(path: &Path, question: &Value) -> Result<Self, Failure> {
        let place = path.display().to_string();
        let connect = || {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(format!("{question}\n").as_bytes())?;
            Ok(stream)
        };
        let stream = connect().map_err(|error: io::Error| failed(&place, &error))?;
        Ok(Self {
            reader: BufReader::with_capacity(1 << 16, stream),
            place,
        })
    }

    /// The next line.
    ///
    /// # Errors
    /// The balancer refuses the question, or is gone before the end.
    pub(crate) fn next(&mut self) -> Result<Line, Failure> {
        loop {
            let mut line = String::new();
            let len = self.reader.read_line(&mut line);
            match len.map_err(|error| failed(&self.place, &error))? {
                0 => return Err(failed(&self.place, &"the balancer is gone before the end")),
                1 => continue,
                _ if line.starts_with("{\"end\"") => {
                    let value: Value =
                        serde_json::from_str(&line).map_err(|error| failed(&self.place, &error))?;
                    return Ok(Line::End(value["end"].clone()));
                }
                _ if line.starts_with("{\"error\"") => {
                    let value: Value =
                        serde_json::from_str(&line).map_err(|error| failed(&self.place, &error))?;
                    let why = value["error"].as_str().unwrap_or("an error");
                    return Err(Failure::usage(why));
                }
                _ => return Ok(Line::Item(line)),
            }
        }
    }
}

fn failed(place: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("{place}: {error}"))
}
