//! The configuration's file, watched: a change counts once the file has stopped changing.
//!
//! An editor or a copy writes a file in pieces, and a piece can be a valid configuration: one whose
//! rules are still to come drops every packet of its VIPs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use slb_control::Config;

use crate::Failure;
use crate::check::load;

/// A file that has not changed for so long has been written to its end.
const SETTLED: Duration = Duration::from_secs(1);

/// The identity of a version of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    /// Time of the last change of contents or attributes, in seconds and nanoseconds: tools that copy may set the time of
    /// the contents.
    changed: (i64, i64),
    len: u64,
    inode: u64,
}

impl Version {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            len: metadata.len(),
            inode: metadata.ino(),
        })
    }
}

/// A file whose changes are followed.
#[derive(Debug)]
pub(super) struct WatchedFile {
    path: PathBuf,
    /// The version that was loaded.
    loaded: Option<Version>,
    /// A later one, and since when the file has been so.
    later: Option<(Version, Instant)>,
}

impl WatchedFile {
    /// Watches a file whose present version is loaded next.
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            loaded: Version::of(path),
            later: None,
        }
    }

    /// Returns true once for each change, when the file has been the same for [`SETTLED`].
    ///
    /// A file that is gone changes nothing until it is back.
    pub(super) fn has_changed(&mut self, now: Instant) -> bool {
        let version = Version::of(&self.path);
        self.note(version, now)
    }

    /// Takes the present version as loaded.
    pub(super) fn set_loaded(&mut self) {
        self.loaded = Version::of(&self.path);
        self.later = None;
    }

    fn note(&mut self, version: Option<Version>, now: Instant) -> bool {
        let Some(version) = version.filter(|_| version != self.loaded) else {
            self.later = None;
            return false;
        };
        match self.later {
            Some((later, since)) if later == version => {
                let is_settled = now.duration_since(since) >= SETTLED;
                if is_settled {
                    self.loaded = Some(version);
                    self.later = None;
                }
                is_settled
            }
            _ => {
                self.later = Some((version, now));
                false
            }
        }
    }
}

/// A configuration that is read and checked in a thread of its own, which for a large file takes seconds:
/// signals, probes and next hops go on meanwhile.
#[derive(Default)]
pub(super) struct Loading {
    told: Option<Receiver<Result<Config, Failure>>>,
    /// The file to read once more: it was asked for while it was being read.
    again: Option<PathBuf>,
}

impl Loading {
    /// Begins to read a file; once more after that, where one is being read.
    pub(super) fn begin(&mut self, path: &Path) {
        if self.told.is_some() {
            self.again = Some(path.to_owned());
            return;
        }
        let (tell, told) = channel();
        self.told = Some(told);
        let (own, failed) = (path.to_owned(), tell.clone());
        let thread = thread::Builder::new().name("slb load".to_owned());
        let started = thread.spawn(move || {
            // Whoever wants it no longer has ended.
            let _ = tell.send(load(&own));
        });
        if let Err(error) = started {
            let _ = failed.send(Err(Failure::failed(error)));
        }
    }

    /// Returns the result of a reading once, without blocking. Of a file that is to be read once
    /// more, the last reading alone counts.
    pub(super) fn take(&mut self) -> Option<Result<Config, Failure>> {
        let loaded = match self.told.as_ref()?.try_recv() {
            Ok(loaded) => loaded,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => {
                Err(Failure::failed("reading the configuration ended by itself"))
            }
        };
        self.told = None;
        match self.again.take() {
            Some(path) => {
                self.begin(&path);
                None
            }
            None => Some(loaded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_beside_and_the_last_reading_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.toml");
        let web = include_str!("../../../examples/web.toml");
        fs::write(&path, web).unwrap();
        let mut loading = Loading::default();
        assert!(loading.take().is_none());
        loading.begin(&path);
        // Whether the first reading saw it or not, another one is due.
        fs::write(&path, web.replace("name = \"game\"", "name = \"play\"")).unwrap();
        loading.begin(&path);
        loading.begin(&path);
        let end = Instant::now() + Duration::from_secs(20);
        let loaded = loop {
            assert!(Instant::now() < end);
            match loading.take() {
                Some(loaded) => break loaded.unwrap(),
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        assert!(loaded.rules.iter().any(|rule| rule.name == "play"));
        assert!(loading.take().is_none(), "it is given once");
        fs::remove_file(&path).unwrap();
        loading.begin(&path);
        let failure = loop {
            match loading.take() {
                Some(loaded) => break loaded.unwrap_err(),
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        assert!(failure.to_string().contains("cannot be read"), "{failure}");
    }

    fn version(len: u64) -> Option<Version> {
        Some(Version {
            changed: (0, 0),
            len,
            inode: 1,
        })
    }

    #[test]
    fn other_contents_of_the_same_length_and_time_are_another_version() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.toml");
        fs::write(&path, "a = 1").unwrap();
        let (version, modified) = (Version::of(&path), path.metadata().unwrap().modified());
        // Longer than a tick of the file system's clock.
        thread::sleep(Duration::from_millis(50));
        fs::write(&path, "a = 2").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(modified.unwrap()).unwrap();
        assert_ne!(Version::of(&path), version);
        assert!(version.is_some());
    }

    #[test]
    fn a_change_counts_once_the_file_has_stopped_changing() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut file = WatchedFile {
            path: PathBuf::new(),
            loaded: version(100),
            later: None,
        };
        assert!(!file.note(version(100), at(0)));
        // It grows for two seconds.
        for step in 1..8 {
            assert!(!file.note(version(step), at(250 * step)));
        }
        assert!(!file.note(version(7), at(2500)));
        assert!(file.note(version(7), at(2750)));
        assert!(!file.note(version(7), at(9000)));
    }

    #[test]
    fn a_file_that_is_gone_or_as_before_changes_nothing() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut file = WatchedFile {
            path: PathBuf::new(),
            loaded: version(100),
            later: None,
        };
        assert!(!file.note(None, at(0)));
        assert!(!file.note(None, at(10)));
        assert!(!file.note(version(50), at(11)));
        assert!(!file.note(version(100), at(12)));
        assert!(!file.note(version(50), at(13)));
        assert!(file.note(version(50), at(14)));
    }
}
