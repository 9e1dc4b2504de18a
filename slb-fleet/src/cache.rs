//! A file with a node's last release, for a start while the store is unreachable.
//!
//! The first line is the SHA-256 of the rest, in hexadecimal; the rest is JSON.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::{error, fmt};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use slb_control::open_file;

use crate::document::Spec;
use crate::object::{Agents, Digest, SCHEMA, Table};

/// The maximum size of the file in bytes.
const LARGEST: u64 = 256 << 20;
/// Length of the first line.
const HEAD: usize = 65;

/// The last release of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    schema: u32,
    /// The name of the fleet.
    pub cluster: String,
    /// The generation.
    pub generation: u64,
    /// The index of the generation.
    pub index: Digest,
    spec: String,
    /// Backends that are leaving, each as `POOL/NAME`.
    pub leaving: Vec<String>,
    /// Health and weights, by pool.
    pub tables: BTreeMap<String, Table>,
    /// The hosts that have an agent.
    pub agents: Agents,
}

impl Held {
    /// Makes a release with its spec, without health and agents.
    pub fn new(
        cluster: &str,
        generation: u64,
        index: Digest,
        spec: &Spec,
        leaving: Vec<String>,
    ) -> Self {
        Self {
            schema: SCHEMA,
            cluster: cluster.to_owned(),
            generation,
            index,
            spec: spec.text(),
            leaving,
            tables: BTreeMap::new(),
            agents: Agents::default(),
        }
    }

    /// The spec.
    ///
    /// # Errors
    /// The text is not a valid configuration.
    pub fn spec(&self) -> Result<Spec, CacheError> {
        let spec = Spec::parse("the cached spec", &self.spec);
        spec.map_err(|error| CacheError::Damaged(error.to_string()))
    }
}

/// The reason why a cache cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum CacheError {
    /// The file cannot be read or written.
    Io(io::Error),
    /// The content does not match its checksum.
    Damaged(String),
    /// The file belongs to another fleet, with this name.
    Foreign(String),
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Damaged(why) => write!(f, "damaged: {why}"),
            Self::Foreign(cluster) => write!(f, "of the fleet {cluster:?}"),
        }
    }
}

impl error::Error for CacheError {}

impl From<io::Error> for CacheError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A directory with the file.
#[derive(Clone, Debug)]
pub struct Cache {
    path: PathBuf,
}

impl Cache {
    /// Opens the cache in a directory, which is created if necessary.
    ///
    /// # Errors
    /// The directory or the file cannot be created.
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let path = directory.join("fleet.cache");
        Ok(Self { path })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a node's release. The old file stays until the new one is on disk.
    ///
    /// # Errors
    /// The cache cannot be written, for example on a full disk. The old content is unchanged then.
    pub fn write(&self, held: &Held) -> Result<(), CacheError> {
        let body = serde_json::to_vec(held);
        let body = body.map_err(|error| CacheError::Damaged(error.to_string()))?;
        let new = self.path.with_extension("new");
        let write = || {
            // A leftover of an interrupted write, or a link that someone else made.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // The file may contain the fleet's hash key.
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(format!("{}\n", sum(&body)).as_bytes())?;
            file.write_all(&body)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&new);
            CacheError::Io(error)
        })
    }

    /// Reads the release of a node of a fleet; returns `None` if nothing was written.
    ///
    /// # Errors
    /// The file is damaged, or belongs to another fleet.
    pub fn read(&self, cluster: &str) -> Result<Option<Held>, CacheError> {
        let file = match open_file(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let damaged = |why: &str| CacheError::Damaged(why.to_owned());
        let mut bytes = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LARGEST {
            return Err(damaged("too long"));
        }
        let (head, body) = bytes
            .split_at_checked(HEAD)
            .ok_or_else(|| damaged("too short"))?;
        if head != format!("{}\n", sum(body)).as_bytes() {
            return Err(damaged("the checksum is another"));
        }
        let held: Held =
            serde_json::from_slice(body).map_err(|error| damaged(&error.to_string()))?;
        if held.schema > SCHEMA {
            return Err(damaged("of a later version"));
        }
        match held.cluster == cluster {
            true => Ok(Some(held)),
            false => Err(CacheError::Foreign(held.cluster)),
        }
    }
}

fn sum(bytes: &[u8]) -> String {
    let sum = digest(&SHA256, bytes);
    sum.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Held {
        let text = "[[frontend]]\nname = \"web\"\naddress = \"203.0.113.80\"\n";
        let spec = Spec::parse("test", text).unwrap();
        Held::new(
            "c",
            7,
            Digest::of(b"index"),
            &spec,
            vec!["p/vm1".to_owned()],
        )
    }

    #[test]
    fn what_was_held_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("new")).unwrap();
        assert!(cache.read("c").unwrap().is_none());
        cache.write(&held()).unwrap();
        assert_eq!(cache.read("c").unwrap(), Some(held()));
        assert!(matches!(cache.read("d"), Err(CacheError::Foreign(of)) if of == "c"));
        assert_eq!(held().spec().unwrap().sections("frontend").count(), 1);
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        cache.write(&held()).unwrap();
        let whole = fs::read(cache.path()).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(cache.path(), &bytes).unwrap();
            assert!(
                matches!(cache.read("c"), Err(CacheError::Damaged(_))),
                "{at}"
            );
            fs::write(cache.path(), &whole[..at]).unwrap();
            assert!(
                matches!(cache.read("c"), Err(CacheError::Damaged(_))),
                "{at}"
            );
        }
    }

    #[test]
    fn a_disk_that_is_full_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        cache.write(&held()).unwrap();
        // A directory stands where the new file would be.
        fs::create_dir(directory.path().join("fleet.new")).unwrap();
        let mut other = held();
        other.generation = 8;
        assert!(matches!(cache.write(&other), Err(CacheError::Io(_))));
        assert_eq!(cache.read("c").unwrap(), Some(held()));
    }
}
