//! Requests to a running balancer at its socket: a line of JSON, answered line by line.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::Failure;

/// The maximum time without a line: a balancer without news sends an empty line twice a second.
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
    /// A heartbeat: there is no news yet.
    Beat,
}

impl Answer {
    /// Sends a request to a socket.
    pub(crate) fn to(path: &Path, question: &Value) -> Result<Self, Failure> {
        let place = path.display().to_string();
        let mut stream = connect(path)?;
        let mut asked = || {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(format!("{question}\n").as_bytes())
        };
        asked().map_err(|error: io::Error| failed(&place, &error))?;
        Ok(Self {
            reader: BufReader::with_capacity(1 << 16, stream),
            place,
        })
    }

    /// The next line.
    ///
    /// # Errors
    /// The balancer refuses the request, or is gone before the end.
    pub(crate) fn next(&mut self) -> Result<Line, Failure> {
        loop {
            match self.next_or_beat()? {
                Line::Beat => {}
                line => return Ok(line),
            }
        }
    }

    /// Asks for the end of the answer, which goes on until its last line.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        let asked = self.reader.get_mut().write_all(b"{\"ask\":\"end\"}\n");
        asked.map_err(|error| failed(&self.place, &error))
    }

    /// Returns a reader of the next `len` bytes.
    pub(crate) fn bytes(&mut self, len: u64) -> impl io::Read + '_ {
        (&mut self.reader).take(len)
    }

    /// Returns the next line, including heartbeats.
    ///
    /// # Errors
    /// The same errors as of [`next`](Self::next).
    pub(crate) fn next_or_beat(&mut self) -> Result<Line, Failure> {
        let mut line = String::new();
        let len = self.reader.read_line(&mut line);
        match len.map_err(|error| failed(&self.place, &error))? {
            0 => Err(failed(
                &self.place,
                &"the balancer closed the connection before the end",
            )),
            1 => Ok(Line::Beat),
            _ if line.starts_with("{\"end\"") => {
                let value: Value =
                    serde_json::from_str(&line).map_err(|error| failed(&self.place, &error))?;
                Ok(Line::End(value["end"].clone()))
            }
            _ if line.starts_with("{\"error\"") => {
                let value: Value =
                    serde_json::from_str(&line).map_err(|error| failed(&self.place, &error))?;
                let why = value["error"].as_str().unwrap_or("an error");
                Err(Failure::usage(why))
            }
            _ => Ok(Line::Item(line)),
        }
    }
}

/// Connects to the socket of a balancer.
///
/// # Errors
/// No balancer answers there; the message says what the path is instead.
pub(crate) fn connect(path: &Path) -> Result<UnixStream, Failure> {
    let error = match UnixStream::connect(path) {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let expected = "expected the socket of a running balancer (its --socket)";
    let is_socket = fs::metadata(path).map(|there| there.file_type().is_socket());
    let why = match (error.kind(), is_socket) {
        (io::ErrorKind::NotFound, _) => format!("there is no such file: {expected}"),
        (_, Ok(false)) => format!("is no socket: {expected}"),
        (io::ErrorKind::ConnectionRefused, _) => {
            format!("the process that made this socket has ended: {expected}")
        }
        (io::ErrorKind::PermissionDenied, _) => {
            format!("{error}: the socket is for the user that the balancer runs as")
        }
        _ => error.to_string(),
    };
    Err(failed(&path.display().to_string(), &why))
}

fn failed(place: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("{place}: {error}"))
}
