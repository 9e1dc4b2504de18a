//! Counts of probes, and the durations of their answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Clock};

use slb_core::Instant;

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
    /// The time since which the next probe waits to be sent, in nanoseconds since the prober's start; 0 if none waits.
    waits_since: AtomicU64,
    /// The time that the last probe waited to be sent, in nanoseconds.
    waited: AtomicU64,
}

impl Tally {
    /// Records that a probe is due, and waits to be sent.
    pub(super) fn wait(&self, now: Instant) {
        let nanos = now.as_nanos().max(1);
        self.waits_since.store(nanos, Ordering::Relaxed);
    }

    /// Records that the waiting probe is sent.
    pub(super) fn sent(&self, now: Instant) {
        let waited = self.waits(now);
        self.waited.store(waited, Ordering::Relaxed);
        self.waits_since.store(0, Ordering::Relaxed);
    }

    /// Returns for how many nanoseconds the next probe has waited; 0 if none waits.
    fn waits(&self, now: Instant) -> u64 {
        match self.waits_since.load(Ordering::Relaxed) {
            0 => 0,
            since => now.as_nanos().saturating_sub(since),
        }
    }

    /// Returns the delay of the last probe, or of the waiting one if that is longer.
    pub(super) fn delay(&self, now: Instant) -> Duration {
        let last = self.waited.load(Ordering::Relaxed);
        Duration::from_nanos(last.max(self.waits(now)))
    }

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

/// Probes that are sent late, since too many others are out: the health of their backends is old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LateProbes {
    /// The number of targets whose last or waiting probe is late by more than half of its interval.
    pub late: usize,
    /// The number of all targets.
    pub targets: usize,
    /// The longest delay.
    pub longest: Duration,
}

/// A target's names, its probe, and its counts.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) probe: String,
    pub(super) interval: Duration,
    pub(super) names: Vec<BackendName>,
    pub(super) tally: Arc<Tally>,
}

/// The counts of a [`Prober`](super::Prober)'s targets, which another thread can read while it probes. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct ProbeTallies {
    all: Arc<Mutex<BTreeMap<u64, Counted>>>,
    /// The prober's start.
    begin: Clock,
}

impl ProbeTallies {
    pub(super) fn new(begin: Clock) -> Self {
        Self {
            all: Arc::default(),
            begin,
        }
    }

    /// Returns how many probes are late, and by how much.
    pub fn late(&self) -> LateProbes {
        let nanos = u64::try_from(self.begin.elapsed().as_nanos());
        self.late_at(Instant::from_nanos(nanos.unwrap_or(u64::MAX)))
    }

    fn late_at(&self, now: Instant) -> LateProbes {
        let all = self.all();
        let delays = all.values().map(|own| (own.tally.delay(now), own.interval));
        let late = delays.filter(|(delay, interval)| *delay > *interval / 2);
        let none = LateProbes {
            targets: all.len(),
            ..LateProbes::default()
        };
        late.fold(none, |sum, (delay, _)| LateProbes {
            late: sum.late + 1,
            longest: sum.longest.max(delay),
            ..sum
        })
    }

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
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn a_probe_is_late_that_waits_for_half_of_its_interval() {
        let seconds = Duration::from_secs;
        let at = |time: u64| Instant::from_nanos(seconds(time).as_nanos() as u64);
        let tallies = ProbeTallies::new(Clock::now());
        let [slow, quick] = [(); 2].map(|()| Arc::new(Tally::default()));
        let counted = |tally: &Arc<Tally>| Counted {
            probe: "tcp".to_owned(),
            interval: seconds(10),
            names: Vec::new(),
            tally: Arc::clone(tally),
        };
        tallies.set([(1, counted(&slow)), (2, counted(&quick))].into());
        let late = |now: u64| {
            let late = tallies.late_at(at(now));
            assert_eq!(late.targets, 2);
            (late.late, late.longest.as_secs())
        };
        slow.wait(at(1));
        quick.wait(at(1));
        quick.sent(at(2));
        assert_eq!(late(5), (0, 0));
        assert_eq!(late(8), (1, 7));
        slow.sent(at(9));
        // Its verdict is old until another probe is sent in time.
        assert_eq!(late(15), (1, 8));
        slow.wait(at(18));
        slow.sent(at(18));
        assert_eq!(late(19), (0, 0));
    }
}
