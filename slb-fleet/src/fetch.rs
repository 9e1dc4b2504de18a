//! Reading specs from the store, and writing them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::document::{Part, Spec};
use crate::object::{Digest, Index, Keys, Object as _, ObjectError, Wanted};
use crate::store::{Condition, Entry, MOST_OPERATIONS, Operation, Revision, Store, StoreError};

/// With at least this many missing objects, all are listed: single requests would take longer.
const MANY: usize = 32;
/// The maximum size of one transaction in bytes: etcd accepts 1.5 MiB.
const MOST_BYTES: usize = 1 << 20;
/// The number of attempts of a change that conflicts with others.
const TRIES: usize = 5;

/// The reason why a spec could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchError {
    /// A request to the store failed.
    Store(StoreError),
    /// An object in the store cannot be used.
    Object(ObjectError),
    /// Every attempt conflicted with a change by others.
    Busy,
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Object(error) => error.fmt(f),
            Self::Busy => f.write_str("others change the wanted state all the time: try again"),
        }
    }
}

impl std::error::Error for FetchError {}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<ObjectError> for FetchError {
    fn from(error: ObjectError) -> Self {
        Self::Object(error)
    }
}

/// Objects that were read, by their keys. Objects never change, so they need not be read again.
#[derive(Debug, Default)]
pub struct Known {
    indexes: BTreeMap<String, Index>,
    parts: BTreeMap<String, Part>,
}

impl Known {
    /// Removes all objects that are not in `keeps`.
    pub fn retain(&mut self, keeps: &BTreeSet<String>) {
        self.indexes.retain(|key, _| keeps.contains(key));
        self.parts.retain(|key, _| keeps.contains(key));
    }

    /// Reads an index and its spec.
    ///
    /// # Errors
    /// The store is away; or an object is missing, or damaged.
    pub fn fetch(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        digest: &Digest,
    ) -> Result<(Index, Spec), FetchError> {
        let index = self.index(store, keys, digest)?;
        let wanted = objects_of(keys, &index);
        let missing = |known: &Self| {
            let missing = wanted
                .iter()
                .filter(|(key, _)| !known.parts.contains_key(*key));
            missing
                .map(|(key, digest)| (key.clone(), *digest))
                .collect::<Vec<_>>()
        };
        if missing(self).len() > MANY {
            for entry in store.list(&keys.key("spec/"))?.entries {
                let is_own = wanted.get(&entry.key);
                if is_own.is_some_and(|own| Digest::of(&entry.value) == **own)
                    && !self.parts.contains_key(&entry.key)
                {
                    let part = Part::read(keys, &entry.key, &entry.value)?;
                    self.parts.insert(entry.key, part);
                }
            }
        }
        for (key, digest) in missing(self) {
            let part = Part::read(keys, &key, &object(store, &key, digest)?)?;
            self.parts.insert(key, part);
        }
        let spec = Spec::join(keys, &index, |key| self.parts.get(key))?;
        Ok((index, spec))
    }

    fn index(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        digest: &Digest,
    ) -> Result<Index, FetchError> {
        let key = keys.index(digest);
        if let Some(index) = self.indexes.get(&key) {
            return Ok(index.clone());
        }
        let index = Index::read(&key, &object(store, &key, digest)?)?;
        self.indexes.insert(key, index.clone());
        Ok(index)
    }
}

/// Reads an object whose digest is known.
fn object(store: &dyn Store, key: &str, digest: &Digest) -> Result<Vec<u8>, FetchError> {
    let entry = store.get(key)?;
    let entry = entry.ok_or_else(|| ObjectError::Missing(key.to_owned()))?;
    if Digest::of(&entry.value) != *digest {
        return Err(FetchError::Object(ObjectError::Unreadable {
            key: key.to_owned(),
            why: "its content has another digest".to_owned(),
        }));
    }
    Ok(entry.value)
}

/// Returns the objects that an index refers to, by their keys.
pub fn objects_of<'i>(keys: &Keys, index: &'i Index) -> BTreeMap<String, &'i Digest> {
    let items = index.sections.iter();
    items
        .flat_map(|item| {
            let own = (
                keys.section(&item.kind, &item.name, &item.digest),
                &item.digest,
            );
            let backends = item
                .backends
                .iter()
                .map(|digest| (keys.section("backends", &item.name, digest), digest));
            std::iter::once(own).chain(backends)
        })
        .collect()
}

/// Writes values under conditions, in as many transactions as necessary. Returns the revision of
/// each written key; `None` if a condition did not hold.
///
/// # Errors
/// A request to the store failed.
pub fn put_all<'o>(
    store: &dyn Store,
    conditions: &[Condition],
    objects: impl Iterator<Item = (&'o String, &'o Vec<u8>)>,
) -> Result<Option<BTreeMap<String, Revision>>, StoreError> {
    let mut written = BTreeMap::new();
    let mut write = |batch: &mut Vec<Operation>| {
        let revision = match batch.is_empty() {
            true => Some(0),
            false => store.commit(conditions, batch)?,
        };
        let Some(revision) = revision else {
            return Ok(false);
        };
        for operation in batch.drain(..) {
            if let Operation::Put(key, ..) = operation {
                written.insert(key, revision);
            }
        }
        Ok(true)
    };
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for (key, value) in objects {
        let len = key.len() + value.len();
        if batch.len() == MOST_OPERATIONS || bytes + len > MOST_BYTES {
            bytes = 0;
            if !write(&mut batch)? {
                return Ok(None);
            }
        }
        bytes += len;
        batch.push(Operation::put(key.clone(), value.clone()));
    }
    Ok(write(&mut batch)?.then_some(written))
}

/// Returns the wanted spec, and the revision of its last change; `None` if no configuration was
/// ever applied.
///
/// # Errors
/// The store is unreachable, or its contents cannot be used.
pub fn wanted(
    store: &dyn Store,
    keys: &Keys,
    known: &mut Known,
) -> Result<Option<(Index, Spec, Revision)>, FetchError> {
    let Some(entry) = store.get(&keys.wanted())? else {
        return Ok(None);
    };
    let (index, spec) = spec_of(store, keys, known, &entry)?;
    Ok(Some((index, spec, entry.modified)))
}

/// Returns the spec that the entry of the wanted state names.
fn spec_of(
    store: &dyn Store,
    keys: &Keys,
    known: &mut Known,
    entry: &Entry,
) -> Result<(Index, Spec), FetchError> {
    let Wanted { index } = Wanted::read(&entry.key, &entry.value)?;
    known.fetch(store, keys, &index)
}

/// Changes the wanted spec: `change` gets the present one, or the reason why it cannot be read.
/// Returns the digest of the new index.
///
/// # Errors
/// The store is unreachable or refuses the change, `change` fails, or the new spec is invalid.
pub fn change(
    store: &dyn Store,
    keys: &Keys,
    mut change: impl FnMut(Result<Option<Spec>, ObjectError>) -> Result<Spec, ObjectError>,
) -> Result<Digest, FetchError> {
    let mut known = Known::default();
    for _ in 0..TRIES {
        let entry = store.get(&keys.wanted())?;
        let condition = match &entry {
            None => Condition::Absent(keys.wanted()),
            Some(entry) => Condition::ModifiedIn(keys.wanted(), entry.modified),
        };
        let present = entry.map(|entry| spec_of(store, keys, &mut known, &entry));
        let (there, present) = match present.transpose() {
            Ok(None) => (BTreeSet::new(), Ok(None)),
            Ok(Some((index, spec))) => {
                let there = objects_of(keys, &index).into_keys().collect();
                (there, Ok(Some(spec)))
            }
            Err(FetchError::Object(error)) => (BTreeSet::new(), Err(error)),
            Err(error) => return Err(error),
        };
        let spec = change(present)?;
        spec.check("the new spec")?;
        let made = spec.objects(keys, Vec::new())?;
        // Objects of the present spec stay as long as it is wanted. All others are written again,
        // so that a leader that deletes unreferenced objects meanwhile sees that they are new.
        let new = made.objects.iter().filter(|(key, _)| !there.contains(*key));
        put_all(store, &[], new)?;
        let index = made.index();
        let wanted = Wanted {
            index: index.clone(),
        };
        let put = Operation::put(keys.wanted(), wanted.write());
        if store.commit(&[condition], &[put])?.is_some() {
            return Ok(index);
        }
    }
    Err(FetchError::Busy)
}
