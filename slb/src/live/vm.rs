//! `slb state`: the connections of a vm that moves to another host.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::handover;
use crate::Failure;
use crate::cli::StateCommand;

pub(crate) fn move_state(command: &StateCommand) -> Result<(), Failure> {
    match command {
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
            let mut state = Vec::new();
            let read = File::open(&options.file).and_then(|mut file| file.read_to_end(&mut state));
            read.map_err(|error| about(&options.file, &error))?;
            let answer = handover::import_vm(&options.state, &state);
            let answer = answer.map_err(|error| of_host(&options.state, &error))?;
            let answer = String::from_utf8_lossy(&answer);
            println!("{answer}");
            match answer.contains("refused") {
                true => Err(Failure::failed("some connections were refused")),
                false => Ok(()),
            }
        }
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
