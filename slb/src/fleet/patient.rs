//! A store that retries while it is unreachable, as for a moment after its leader was lost.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use slb_fleet::store::{
    Condition, Entry, Lease, Listing, Operation, Revision, Store, StoreError, Watch,
};

/// The pause before a retry.
const PAUSE: Duration = Duration::from_millis(200);

/// A store that repeats requests until a deadline while they are not answered.
///
/// A change whose answer was lost is repeated, so its condition may no longer hold; slb-fleet then
/// reads the store again.
pub(super) struct Patient {
    store: Arc<dyn Store>,
    until: Instant,
}

impl Patient {
    /// Repeats requests for this many seconds from now on; `None` for no retries.
    pub(super) fn new(store: Arc<dyn Store>, seconds: Option<u64>) -> Self {
        let now = Instant::now();
        let until = now.checked_add(Duration::from_secs(seconds.unwrap_or(0)));
        Self {
            store,
            until: until.unwrap_or(now),
        }
    }

    fn ask<T>(&self, ask: impl Fn(&dyn Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        loop {
            match ask(&*self.store) {
                Err(StoreError::Away(_)) if Instant::now() < self.until => sleep(PAUSE),
                result => return result,
            }
        }
    }
}

impl Store for Patient {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.ask(|store| store.get(key))
    }

    fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.ask(|store| store.list(prefix))
    }

    fn watch(&self, prefix: &str, revision: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.ask(|store| store.watch(prefix, revision))
    }

    fn commit(
        &self,
        conditions: &[Condition],
        operations: &[Operation],
    ) -> Result<Option<Revision>, StoreError> {
        self.ask(|store| store.commit(conditions, operations))
    }

    fn grant(&self, length: Duration) -> Result<Lease, StoreError> {
        self.ask(|store| store.grant(length))
    }

    fn keep(&self, lease: Lease) -> Result<(), StoreError> {
        self.ask(|store| store.keep(lease))
    }

    fn revoke(&self, lease: Lease) -> Result<(), StoreError> {
        self.ask(|store| store.revoke(lease))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use slb_fleet::store::MemoryStore;

    use super::*;

    #[test]
    fn a_store_that_is_away_for_a_moment_is_asked_again() {
        for (seconds, is_answered) in [(Some(60), true), (None, false)] {
            let store = Patient::new(Arc::new(MemoryStore::default()), seconds);
            let asked = AtomicU32::new(0);
            let answer = store.ask(|store| match asked.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => Err(StoreError::Away("it has no leader".to_owned())),
                _ => store.get("key"),
            });
            assert_eq!(answer.is_ok(), is_answered, "{answer:?}");
        }
    }

    #[test]
    fn other_errors_are_told_at_once() {
        let store = Patient::new(Arc::new(MemoryStore::default()), Some(60));
        let denied = || StoreError::Denied("no".to_owned());
        assert_eq!(store.ask(|_| Err::<(), _>(denied())), Err(denied()));
    }
}
