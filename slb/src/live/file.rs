//! The configuration's file, watched: a change counts once the file has stopped changing.
//!
//! An editor or a copy writes a file in pieces, and a piece can be a valid configuration: one whose
//! rules are still to come drops every packet of its VIPs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// A file that has not changed for so long has been written to its end.
const SETTLED: Duration = Duration::from_secs(1);

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    modified: SystemTime,
    len: u64,
    inode: u64,
}

impl Version {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            modified: metadata.modified().ok()?,
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
    /// Watches a file whose present version is loaded.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn version(len: u64) -> Option<Version> {
        Some(Version {
            modified: SystemTime::UNIX_EPOCH,
            len,
            inode: 1,
        })
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
