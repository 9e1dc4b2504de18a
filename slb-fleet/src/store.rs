//! A store of keys and values, as etcd is one: read, watched from a revision, changed by transactions, with leases.

#[cfg(feature = "etcd")]
pub mod etcd;
mod memory;

use std::fmt;
use std::time::Duration;

pub use self::memory::MemoryStore;

/// A version of the whole store: each transaction that changes something makes the next one.
pub type Revision = i64;

/// The longest value that is written or taken, in bytes.
pub const LONGEST_VALUE: usize = 1 << 20;

/// The most operations of one transaction: etcd's default limit.
pub const MOST_OPERATIONS: usize = 128;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that the key was created in.
    pub created: Revision,
    /// The revision that it was last changed in.
    pub modified: Revision,
}

/// All entries under a prefix, as of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The entries, by key.
    pub entries: Vec<Entry>,
    /// The revision.
    pub revision: Revision,
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key has another value.
    Put(Entry),
    /// The key is gone: it was deleted, or its lease ended.
    Deleted(String),
}

impl Event {
    /// The key.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted(key) => key,
        }
    }
}

/// A lease: the keys that are put with it go when nothing has kept it alive for its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease(pub i64);

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key is not there.
    Absent(String),
    /// The key was created in this revision, and is still there.
    CreatedIn(String, Revision),
    /// The key was last changed in this revision, and is still there.
    ModifiedIn(String, Revision),
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Gives a key a value, under a lease or for good.
    Put(String, Vec<u8>, Option<Lease>),
    /// Deletes a key, if it is there.
    Delete(String),
}

impl Operation {
    /// A value that stays until it is changed.
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put(key.into(), value.into(), None)
    }
}

/// Why a store did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// No member of the store answers, or the one that does has no leader. Whether a change was made is unknown.
    Away(String),
    /// The store does not know this client, or the client may not do that.
    Denied(String),
    /// The revision to watch from has been compacted.
    Compacted,
    /// The lease has ended.
    LeaseEnded,
    /// A value is longer than [`LONGEST_VALUE`].
    TooLong {
        /// The key.
        key: String,
        /// Length of the value, in bytes.
        len: usize,
    },
    /// A transaction has more than [`MOST_OPERATIONS`] operations.
    TooMany(usize),
    /// The answer cannot be read.
    Malformed(&'static str),
    /// The store refused the request.
    Refused(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) => write!(f, "the store does not answer: {why}"),
            Self::Denied(why) => write!(f, "the store denies access: {why}"),
            Self::Compacted => f.write_str("the revision to watch from has been compacted"),
            Self::LeaseEnded => f.write_str("the lease has ended"),
            Self::TooLong { key, len } => write!(
                f,
                "{key}: expected a value of at most {LONGEST_VALUE} bytes, got {len}"
            ),
            Self::TooMany(count) => write!(
                f,
                "expected at most {MOST_OPERATIONS} operations in a transaction, got {count}"
            ),
            Self::Malformed(what) => write!(f, "the store's answer cannot be read: {what}"),
            Self::Refused(why) => write!(f, "the store refuses: {why}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// A store. All calls wait for the answer, for a bounded time.
pub trait Store: Send + Sync + 'static {
    /// The present entry of a key.
    ///
    /// # Errors
    /// The store is away, or denies it.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All keys that begin with `prefix`.
    ///
    /// # Errors
    /// The store is away, or denies it.
    fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Watches the keys that begin with `prefix`, from the first change after `revision` on.
    ///
    /// # Errors
    /// The store is away, or denies it.
    fn watch(&self, prefix: &str, revision: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Makes all changes, if all conditions hold. Returns the revision of the changes; `None` if a condition
    /// does not hold, and nothing was changed.
    ///
    /// # Errors
    /// The store is away, denies it, or refuses a change.
    fn commit(
        &self,
        conditions: &[Condition],
        operations: &[Operation],
    ) -> Result<Option<Revision>, StoreError>;

    /// Grants a lease that lasts for so long, in whole seconds.
    ///
    /// # Errors
    /// The store is away, or denies it.
    fn grant(&self, length: Duration) -> Result<Lease, StoreError>;

    /// Lets a lease begin anew.
    ///
    /// # Errors
    /// The store is away, or the lease has ended.
    fn keep(&self, lease: Lease) -> Result<(), StoreError>;

    /// Ends a lease now: its keys go.
    ///
    /// # Errors
    /// The store is away.
    fn revoke(&self, lease: Lease) -> Result<(), StoreError>;
}

/// The changes under a prefix. A watch that gave an error is over.
pub trait Watch: Send {
    /// The next changes, in their order; none where there were none for `patience`.
    ///
    /// # Errors
    /// The store is away, or has compacted what was to be watched: list again.
    fn next(&mut self, patience: Duration) -> Result<Vec<Event>, StoreError>;
}

/// Refuses what no store takes.
fn check(operations: &[Operation]) -> Result<(), StoreError> {
    if operations.len() > MOST_OPERATIONS {
        return Err(StoreError::TooMany(operations.len()));
    }
    for operation in operations {
        if let Operation::Put(key, value, _) = operation
            && value.len() > LONGEST_VALUE
        {
            let (key, len) = (key.clone(), value.len());
            return Err(StoreError::TooLong { key, len });
        }
    }
    Ok(())
}
