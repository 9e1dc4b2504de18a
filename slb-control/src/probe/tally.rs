//! Counts of probes, and the durations of their answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{BackendName, ProbeFailure};

/// Upper bounds of the classes that [`ProbeCounts::within`] counts.
pub const PROBE_CLASSES: [Duration; 8] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
];

/// Probes of one backend so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCounts {
    /// Number of successful probes.
    pub succeeded: u64,
    /// Number of failed probes, including timeouts.
    pub failed: u64,
    /// Number of probes that this node could not send.
    pub not_sent: u64,
    /// Number of probes that ended within each of [`PROBE_CLASSES`], cumulative. Probes that were
    /// not sent are left out.
    pub within: [u64; PROBE_CLASSES.len()],
    /// Total duration of the probes.
    pub took: Duration,
}

/// Counters of probes that one thread adds to and others read.
#[derive(Debug, Default)]
pub(super) struct Tally {
    succeeded: AtomicU64,
    failed: AtomicU64,
    not_sent: AtomicU64,
    within: [AtomicU64; PROBE_CLASSES.len()],
    took_nanos: AtomicU64,
}

impl Tally {
    pub(super) fn note(&self, answer: &Result<(), ProbeFailure>, took: Duration) {
        let count = match answer {
            Ok(()) => &self.succeeded,
            Err(failure) if failure.is_own() => {
                self.not_sent.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(_) => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        for (class, count) in PROBE_CLASSES.iter().zip(&self.within) {
            if took <= *class {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.took_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> ProbeCounts {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ProbeCounts {
            succeeded: of(&self.succeeded),
            failed: of(&self.failed),
            not_sent: of(&self.not_sent),
            within: std::array::from_fn(|place| of(&self.within[place])),
            took: Duration::from_nanos(of(&self.took_nanos)),
        }
    }
}

/// A target's names, its probe, and its counts.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) probe: String,
    pub(super) names: Vec<BackendName>,
    pub(super) tally: Arc<Tally>,
}

/// The counts of a [`Prober`](super::Prober)'s targets, which another thread can read while it probes. Cheap to
/// clone.
#[derive(Clone, Debug, Default)]
pub struct ProbeTallies(Arc<Mutex<BTreeMap<u64, Counted>>>);

impl ProbeTallies {
    /// Replaces the targets that are counted.
    pub(super) fn set(&self, all: BTreeMap<u64, Counted>) {
        *self.all() = all;
    }

    /// Returns the counts by pool, backend and probe. A target that is several backends occurs once
    /// for each.
    pub fn read(&self) -> BTreeMap<(String, String, String), ProbeCounts> {
        let mut found = BTreeMap::new();
        for counted in self.all().values() {
            let counts = counted.tally.read();
            for (pool, backend) in &counted.names {
                let name = (pool.clone(), backend.clone(), counted.probe.clone());
                found.insert(name, counts);
            }
        }
        found
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Counted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_result_and_by_time() {
        let tally = Tally::default();
        let milliseconds = Duration::from_millis;
        tally.note(&Ok(()), milliseconds(3));
        tally.note(&Ok(()), milliseconds(400));
        let silent = Err(ProbeFailure::Timeout(milliseconds(60_000)));
        tally.note(&silent, milliseconds(60_000));
        let own = Err(ProbeFailure::Own(std::io::Error::other("no files")));
        tally.note(&own, milliseconds(1));
        let counts = tally.read();
        assert_eq!(
            (counts.succeeded, counts.failed, counts.not_sent),
            (2, 1, 1)
        );
        assert_eq!(counts.within, [0, 1, 1, 1, 2, 2, 2, 2]);
        assert_eq!(counts.took, milliseconds(60_403));
    }
}
