//! `slb state`: the connections of a vm that moves to another host.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use slb_control::open_file;

use super::handover::{self, STATE_MOST};
use super::state::{HEADER, length_after};
use crate::Failure;
use crate::cli::StateCommand;
use crate::output::{is_standard, unwritten};

pub(crate) fn move_state(command: &StateCommand) -> Result<(), Failure> {
    match command {
        StateCommand::Export(options) if is_standard(&options.out) => {
            if io::stdout().is_terminal() {
                return Err(Failure::usage(
                    "--out -: standard output is a terminal: expected a pipe or a file",
                ));
            }
            let state = handover::export_vm(&options.state, &options.vm);
            let state = state.map_err(|error| of_host(&options.state, &error))?;
            let mut out = io::stdout().lock();
            let written = out.write_all(&state).and_then(|()| out.flush());
            written.map_err(unwritten)
        }
        StateCommand::Export(options) => {
            // A name that cannot be written to shows before anything is asked.
            let mut new = OpenOptions::new();
            new.write(true).create_new(true).mode(0o600);
            let of_file = |error| about(&options.out, &error);
            let mut file = new.open(&options.out).map_err(of_file)?;
            let given = handover::export_vm(&options.state, &options.vm);
            let written = given
                .map_err(|error| of_host(&options.state, &error))
                .and_then(|state| {
                    let written = file.write_all(&state).and_then(|()| file.sync_all());
                    written.map_err(of_file)
                });
            if written.is_err() {
                let _ = std::fs::remove_file(&options.out);
            }
            written
        }
        StateCommand::Import(options) => {
            let path = &options.file;
            let state = match is_standard(path) {
                true => read_state(io::stdin().lock()),
                false => open_file(path).and_then(read_state),
            };
            let state = state.map_err(|error| about(path, &error))?;
            let answer = handover::import_vm(&options.state, &state);
            let answer = answer.map_err(|error| of_host(&options.state, &error))?;
            let answer = String::from_utf8_lossy(&answer);
            say_line!("{answer}")?;
            match answer.contains("refused") {
                true => Err(Failure::failed("some connections were refused")),
                false => Ok(()),
            }
        }
    }
}

/// Reads a state, and no more than it says that it has.
fn read_state(mut file: impl io::Read) -> io::Result<Vec<u8>> {
    let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut state = Vec::new();
    file.by_ref().take(HEADER as u64).read_to_end(&mut state)?;
    let rest = length_after(&state).map_err(damaged)?;
    if rest > STATE_MOST {
        return Err(damaged(format!(
            "expected at most {STATE_MOST} bytes behind its header, got {rest}"
        )));
    }
    // One more shows that there is more.
    let read = file.take(rest + 1).read_to_end(&mut state)?;
    match read as u64 == rest {
        true => Ok(state),
        false => Err(damaged(format!(
            "its header announces {rest} bytes, got {}",
            if read as u64 > rest {
                "more".to_owned()
            } else {
                read.to_string()
            }
        ))),
    }
}

fn about(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", path.display()))
}

fn of_host(directory: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::failed(format!(
            "no host agent runs with --state {}: {error}",
            directory.display()
        )),
        _ => about(directory, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_state_is_refused_without_reading_on() {
        let why = |file: &mut dyn io::Read| read_state(file).expect_err("no state").to_string();
        assert_eq!(why(&mut io::repeat(0)), "it is not a state file of slb");
        assert_eq!(
            why(&mut io::empty()),
            format!("expected {HEADER} bytes or more, got 0")
        );
        let header = |len: u64| {
            let mut header = [0; HEADER];
            header[..8].copy_from_slice(b"slbstate");
            header[8..10].copy_from_slice(&1u16.to_be_bytes());
            header[56..64].copy_from_slice(&len.to_be_bytes());
            header
        };
        let endless = header(u64::MAX);
        let most = why(&mut endless.chain(io::repeat(1)));
        assert!(
            most.starts_with("expected at most 1073741824 bytes"),
            "{most}"
        );
        assert_eq!(
            why(&mut header(5).chain(&[1; 4][..])),
            "its header announces 5 bytes, got 4"
        );
        assert_eq!(
            why(&mut header(5).chain(io::repeat(1))),
            "its header announces 5 bytes, got more"
        );
        let whole = read_state(header(5).chain(&[1; 5][..])).expect("a state");
        assert_eq!(whole.len(), HEADER + 5);
    }
}
