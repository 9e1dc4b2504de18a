//! The interface of a key-value store such as etcd, with watches from a revision, transactions and
//! leases.

#[cfg(feature = "etcd")]
pub mod etcd;
mod memory;

use std::fmt;
use std::time::Duration;

pub use self::memory::MemoryStore;

/// A version of the whole store, which each changing transaction increments.
pub type Revision = i64;

/// The maximum length of a value in bytes.
pub const LONGEST_VALUE: usize = 1 << 20;

/// The maximum number of operations in one transaction: etcd's default limit.
pub const MOST_OPERATIONS: usize = 128;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision in which the key was created.
    pub created: Revision,
    /// The revision of the key's last change.
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
    /// The key has a new value.
    Put(Entry),
    /// The key was deleted, or its lease ended.
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

/// A lease: keys that are put under it are deleted if it is not renewed in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease(pub i64);

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent(String),
    /// The key exists, and was created in this revision.
    CreatedIn(String, Revision),
    /// The key exists, and was last changed in this revision.
    ModifiedIn(String, Revision),
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sets the value of a key, under a lease or permanently.
    Put(String, Vec<u8>, Option<Lease>),
    /// Deletes a key, if it exists.
    Delete(String),
}

impl Operation {
    /// Sets a permanent value.
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put(key.into(), value.into(), None)
    }
}

/// The reason why a request to a store failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// No member of the store answers, or the answering member has no leader. It is unknown if a
    /// change was made.
    Away(String),
    /// The store does not know this client, or the client lacks the permission.
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
    /// The answer is malformed.
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

/// A store. All calls block until the answer, for a bounded time.
pub trait Store: Send + Sync + 'static {
    /// The present entry of a key.
    ///
    /// # Errors
    /// The store is unreachable, or denies the request.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All keys that begin with `prefix`.
    ///
    /// # Errors
    /// The store is unreachable, or denies the request.
    fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Watches the keys that begin with `prefix`, from the first change after `revision` on.
    ///
    /// # Errors
    /// The store is unreachable, or denies the request.
    fn watch(&self, prefix: &str, revision: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Makes all changes, if all conditions hold. Returns the revision of the changes; `None` if a condition
    /// does not hold, and nothing was changed.
    ///
    /// # Errors
    /// The store is unreachable, denies the request, or refuses a change.
    fn commit(
        &self,
        conditions: &[Condition],
        operations: &[Operation],
    ) -> Result<Option<Revision>, StoreError>;

    /// Grants a lease of this length, in whole seconds.
    ///
    /// # Errors
    /// The store is unreachable, or denies the request.
    fn grant(&self, length: Duration) -> Result<Lease, StoreError>;

    /// Renews a lease.
    ///
    /// # Errors
    /// The store is unreachable, or the lease has ended.
    fn keep(&self, lease: Lease) -> Result<(), StoreError>;

    /// Ends a lease now, which deletes its keys.
    ///
    /// # Errors
    /// The store is unreachable.
    fn revoke(&self, lease: Lease) -> Result<(), StoreError>;
}

/// The changes under a prefix. A watch ends with its first error.
pub trait Watch: Send {
    /// Returns the next changes in order; an empty list if there are none within `patience`.
    ///
    /// # Errors
    /// The store is unreachable, or has compacted the revision: list again.
    fn next(&mut self, patience: Duration) -> Result<Vec<Event>, StoreError>;
}

/// Refuses operations that no store accepts.
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
