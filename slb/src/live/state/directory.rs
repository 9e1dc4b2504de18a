//! The directory of a balancer's state.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use slb_control::{Config, Role, open_file};
use slb_core::hash::siphash13;
use tracing::{error, info};

use super::file::{Contents, MAGIC, Owner};
use super::saved::Saved;
use crate::Failure;

/// The state's directory.
#[derive(Clone, Debug)]
pub(in crate::live) struct Directory {
    pub(super) path: PathBuf,
    pub(super) owner: Owner,
}

impl Directory {
    /// Opens the directory, and makes it where it is not there.
    ///
    /// # Errors
    /// The directory cannot be written to, or another user's file has the name of the state file.
    pub(in crate::live) fn open(path: &Path, config: &Config) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("--state {}: {error}", path.display()))
        };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path).map_err(|error| failed(&error))?;
        let names = config.ports.all.iter().map(|port| port.name.as_bytes());
        let role = config.node.role;
        let ports = match role {
            Role::Proxy => names.fold(0, |so_far, name| siphash13([so_far, 1], name)),
            Role::Mux | Role::Host => 0,
        };
        let own = Self {
            path: path.to_owned(),
            owner: Owner { role, ports },
        };
        for name in [own.file(), own.taken(), own.unfinished()] {
            own.expect_own(&name).map_err(|error| failed(&error))?;
        }
        // Whether it may be written to shows now, not at the end.
        let unfinished = own.unfinished();
        let _ = fs::remove_file(&unfinished);
        own.create(&unfinished).map_err(|error| failed(&error))?;
        fs::remove_file(&unfinished).map_err(|error| failed(&error))?;
        Ok(own)
    }

    pub(super) fn file(&self) -> PathBuf {
        self.path.join(format!("{}.state", self.owner.role.name()))
    }

    pub(super) fn taken(&self) -> PathBuf {
        self.path.join(format!("{}.taken", self.owner.role.name()))
    }

    /// The socket by which a process takes over from the one that runs.
    pub(in crate::live) fn handover(&self) -> PathBuf {
        self.path
            .join(format!("{}.handover", self.owner.role.name()))
    }

    pub(super) fn unfinished(&self) -> PathBuf {
        self.path
            .join(format!("{}.unfinished", self.owner.role.name()))
    }

    /// Fails where a file is there that no process like this one has made.
    fn expect_own(&self, path: &Path) -> io::Result<()> {
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata?,
        };
        let mut begin = [0; 8];
        let is_own = metadata.is_file()
            // A process may have been killed before it wrote anything.
            && (metadata.len() == 0
                || open_file(path)?.read_exact(&mut begin).is_ok() && begin == *MAGIC);
        match is_own {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "{} is not a state file of slb, and stays: expected another directory",
                    path.display()
                ),
            )),
        }
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(path)
    }

    /// Reads what an earlier process left, and marks it as taken. What is damaged, or of another
    /// version, role or configuration, is said in the log.
    pub(in crate::live) fn take(&self) -> Option<Saved> {
        let (path, is_first) = match self.file() {
            path if path.exists() => (path, true),
            _ => (self.taken(), false),
        };
        let mut bytes = Vec::new();
        let read = open_file(&path).and_then(|mut file| file.read_to_end(&mut bytes));
        let bytes = match read.map(|_| bytes) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                info!(directory = %self.path.display(), "no state of an earlier process");
                return None;
            }
            Err(error) => {
                error!(file = %path.display(), "the state cannot be read: {error}");
                return None;
            }
        };
        if is_first && let Err(error) = fs::rename(&path, self.taken()) {
            // It would be taken again by the next one, and be wrong by then.
            error!(file = %path.display(), "the state cannot be marked as taken, and is refused: {error}");
            return None;
        }
        match self.read(&bytes) {
            Ok(mut saved) => {
                saved.contents.is_exact &= is_first;
                Some(saved)
            }
            Err(why) => {
                error!(file = %path.display(), "the whole state is refused: {why}");
                None
            }
        }
    }

    /// Reads a file's bytes.
    pub(in crate::live) fn read(&self, bytes: &[u8]) -> Result<Saved, String> {
        Ok(Saved {
            contents: Contents::read(bytes, self.owner)?,
            imported: Mutex::default(),
        })
    }

    /// Writes a whole file in the place of the one that is there. The file outlives the process. The disk has it
    /// when the kernel writes it there, for which no one waits: the next process starts only when this one has ended,
    /// and packets would wait for the disk as well.
    pub(super) fn write(&self, state: &Contents) -> io::Result<u64> {
        let (file, unfinished) = (self.file(), self.unfinished());
        self.expect_own(&file)?;
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let bytes = state.bytes(self.owner);
        let mut new = self.create(&unfinished)?;
        new.write_all(&bytes)?;
        fs::rename(&unfinished, &file)?;
        Ok(bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::file::{Moment, Piece};
    use super::*;

    fn config(role: &str) -> Config {
        let text = match role {
            "mux" => include_str!("../../../../examples/web.toml"),
            "host" => include_str!("../../../../examples/host.toml"),
            _ => include_str!("../../../../examples/proxy.toml"),
        };
        Config::parse("test.toml", text).expect("a good configuration")
    }

    fn written(is_exact: bool) -> Contents {
        Contents {
            pieces: vec![
                Piece {
                    worker: 0,
                    records: vec![1; 300],
                },
                Piece {
                    worker: 1,
                    records: vec![2; 20],
                },
            ],
            workers: 2,
            moment: Moment::now(),
            is_exact,
        }
    }

    #[test]
    fn what_was_written_is_read_once_as_it_was() {
        let place = tempfile::tempdir().expect("a directory");
        for is_exact in [true, false] {
            let directory = Directory::open(place.path(), &config("host")).expect("it is writable");
            directory.write(&written(is_exact)).expect("it is writable");
            let saved = directory.take().expect("a state");
            assert_eq!(
                (saved.contents.workers, saved.contents.is_exact),
                (2, is_exact)
            );
            assert!(saved.contents.moment.elapsed() < Duration::from_secs(60));
            let pieces = saved.contents.pieces.iter();
            let pieces = pieces.map(|piece| (piece.worker, piece.records.len()));
            assert_eq!(pieces.collect::<Vec<_>>(), [(0, 300), (1, 20)]);
            // Who died before its first checkpoint leaves it to the next one, and it is old by then.
            let again = directory.take().expect("what was taken is there");
            assert!(!again.contents.is_exact);
        }
    }

    #[test]
    fn what_is_damaged_or_of_others_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let of = |role| Directory::open(place.path(), &config(role)).expect("it is writable");
        let host = of("host");
        let bytes = written(true).bytes(host.owner);
        assert!(host.read(&bytes).is_ok());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(host.read(&damaged).is_err(), "byte {at}");
            assert!(host.read(&bytes[..at]).is_err(), "{at} bytes");
        }
        let why = |directory: Directory| directory.read(&bytes).err().unwrap_or_default();
        assert!(why(of("mux")).contains("another role"));
        assert!(why(of("proxy")).contains("another role"));
        let proxy = written(true).bytes(of("proxy").owner);
        let mut other = config("proxy");
        other.ports.all.reverse();
        let other = Directory::open(place.path(), &other).expect("it is writable");
        assert!(
            other
                .read(&proxy)
                .err()
                .unwrap_or_default()
                .contains("other ports")
        );
    }

    #[test]
    fn a_file_of_somebody_elses_stays() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("host.state");
        fs::write(&path, "notes of mine").expect("it is writable");
        let refused = Directory::open(place.path(), &config("host"));
        assert!(refused.is_err());
        fs::remove_file(&path).expect("it is there");
        let directory = Directory::open(place.path(), &config("host")).expect("it is writable");
        fs::write(&path, "notes of mine").expect("it is writable");
        assert!(directory.write(&written(true)).is_err());
        assert_eq!(fs::read(&path).expect("it is there"), b"notes of mine");
    }
}
