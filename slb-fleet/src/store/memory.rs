//! A store in memory, for tests: its clock is the caller's, it can be away, and it can forget its past.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{
    Condition, Entry, Event, Lease, Listing, Operation, Revision, Store, StoreError, Watch, check,
};

/// A store in the memory of this process. Clones are the same store.
///
/// # Examples
/// ```
/// use slb_fleet::store::{MemoryStore, Operation, Store};
///
/// let store = MemoryStore::default();
/// let first = store.commit(&[], &[Operation::put("a", "1")])?;
/// assert_eq!(store.get("a")?.unwrap().modified, first.unwrap());
/// # Ok::<(), slb_fleet::store::StoreError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    entries: BTreeMap<String, (Entry, Option<Lease>)>,
    /// All changes since the last compaction.
    past: Vec<(Revision, Event)>,
    /// The revision of the last compaction.
    compacted: Revision,
    leases: BTreeMap<i64, Granted>,
    /// Leases that were ever granted: no two have one number.
    granted: i64,
    /// The time since the store began.
    now: Duration,
    is_away: bool,
    /// Counts the times that the store went away: watches of before are over.
    outages: u64,
}

#[derive(Debug)]
struct Granted {
    length: Duration,
    end: Duration,
}

impl MemoryStore {
    /// Has time pass: leases that end meanwhile take their keys with them.
    pub fn pass(&self, time: Duration) {
        let mut state = self.state();
        state.now += time;
        let now = state.now;
        let ended: Vec<i64> = state
            .leases
            .iter()
            .filter(|(_, lease)| lease.end <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in ended {
            state.end(Lease(id));
        }
        drop(state);
        self.0.1.notify_all();
    }

    /// Has the store be away, or back.
    pub fn set_away(&self, is_away: bool) {
        let mut state = self.state();
        if is_away && !state.is_away {
            state.outages += 1;
        }
        state.is_away = is_away;
        drop(state);
        self.0.1.notify_all();
    }

    /// Forgets all changes up to the present revision.
    pub fn compact(&self) {
        let mut state = self.state();
        state.compacted = state.revision;
        state.past.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answering(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.state();
        match state.is_away {
            true => Err(StoreError::Away("it is said to be away".to_owned())),
            false => Ok(state),
        }
    }
}

impl State {
    fn holds(&self, condition: &Condition) -> bool {
        let entry = |key| self.entries.get(key).map(|(entry, _)| entry);
        match condition {
            Condition::Absent(key) => entry(key).is_none(),
            Condition::CreatedIn(key, revision) => {
                entry(key).is_some_and(|entry| entry.created == *revision)
            }
            Condition::ModifiedIn(key, revision) => {
                entry(key).is_some_and(|entry| entry.modified == *revision)
            }
        }
    }

    fn delete(&mut self, key: &str, revision: Revision) {
        if self.entries.remove(key).is_some() {
            self.revision = revision;
            self.past.push((revision, Event::Deleted(key.to_owned())));
        }
    }

    fn end(&mut self, lease: Lease) {
        self.leases.remove(&lease.0);
        let under = |(_, own): &(Entry, Option<Lease>)| *own == Some(lease);
        let keys: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| under(entry))
            .map(|(key, _)| key.clone())
            .collect();
        let revision = self.revision + 1;
        for key in keys {
            self.delete(&key, revision);
        }
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let state = self.answering()?;
        Ok(state.entries.get(key).map(|(entry, _)| entry.clone()))
    }

    fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let state = self.answering()?;
        let from = state.entries.range(prefix.to_owned()..);
        let under = from.take_while(|(key, _)| key.starts_with(prefix));
        Ok(Listing {
            entries: under.map(|(_, (entry, _))| entry.clone()).collect(),
            revision: state.revision,
        })
    }

    fn watch(&self, prefix: &str, revision: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let state = self.answering()?;
        Ok(Box::new(MemoryWatch {
            store: self.clone(),
            prefix: prefix.to_owned(),
            revision,
            outages: state.outages,
        }))
    }

    fn commit(
        &self,
        conditions: &[Condition],
        operations: &[Operation],
    ) -> Result<Option<Revision>, StoreError> {
        check(operations)?;
        let mut state = self.answering()?;
        if !conditions.iter().all(|condition| state.holds(condition)) {
            return Ok(None);
        }
        for operation in operations {
            if let Operation::Put(_, _, Some(lease)) = operation
                && !state.leases.contains_key(&lease.0)
            {
                return Err(StoreError::LeaseEnded);
            }
        }
        let revision = state.revision + 1;
        for operation in operations {
            match operation {
                Operation::Put(key, value, lease) => {
                    let before = state.entries.get(key);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        created: before.map_or(revision, |(entry, _)| entry.created),
                        modified: revision,
                    };
                    state.entries.insert(key.clone(), (entry.clone(), *lease));
                    state.revision = revision;
                    state.past.push((revision, Event::Put(entry)));
                }
                Operation::Delete(key) => state.delete(key, revision),
            }
        }
        let revision = state.revision;
        drop(state);
        self.0.1.notify_all();
        Ok(Some(revision))
    }

    fn grant(&self, length: Duration) -> Result<Lease, StoreError> {
        let mut state = self.answering()?;
        state.granted += 1;
        let id = state.granted;
        let end = state.now + length;
        state.leases.insert(id, Granted { length, end });
        Ok(Lease(id))
    }

    fn keep(&self, lease: Lease) -> Result<(), StoreError> {
        let mut state = self.answering()?;
        let now = state.now;
        let granted = state.leases.get_mut(&lease.0);
        let granted = granted.ok_or(StoreError::LeaseEnded)?;
        granted.end = now + granted.length;
        Ok(())
    }

    fn revoke(&self, lease: Lease) -> Result<(), StoreError> {
        self.answering()?.end(lease);
        self.0.1.notify_all();
        Ok(())
    }
}

struct MemoryWatch {
    store: MemoryStore,
    prefix: String,
    /// The last revision that was given.
    revision: Revision,
    /// Outages of the store when the watch began.
    outages: u64,
}

impl Watch for MemoryWatch {
    fn next(&mut self, patience: Duration) -> Result<Vec<Event>, StoreError> {
        let end = Instant::now() + patience;
        let mut state = self.store.state();
        loop {
            if state.outages != self.outages {
                return Err(StoreError::Away("it was away".to_owned()));
            }
            if self.revision < state.compacted {
                return Err(StoreError::Compacted);
            }
            let new = state.past.iter().filter(|(at, _)| *at > self.revision);
            let own = new.filter(|(_, event)| event.key().starts_with(&self.prefix));
            let events: Vec<Event> = own.map(|(_, event)| event.clone()).collect();
            self.revision = self.revision.max(state.revision);
            let left = end.saturating_duration_since(Instant::now());
            if !events.is_empty() || left.is_zero() {
                return Ok(events);
            }
            let waited = self.store.0.1.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
