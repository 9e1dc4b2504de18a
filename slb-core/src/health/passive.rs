//! Health of backends by the fate of their clients' connections. It complements probes, whose
//! requests may differ from clients' requests.

use core::time::Duration;

use super::Condition;
use crate::stats::BackendCounters;
use crate::time::Instant;

/// The conditions under which a backend's own traffic makes it unhealthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassivePolicy {
    /// The number of [failures](BackendCounters::failures) in a window without accepted connections
    /// that makes a backend unhealthy.
    pub threshold: u32,
    /// Length of a window.
    pub window: Duration,
    /// Time without new flows for an unhealthy backend, before it is tried again.
    pub retry: Duration,
}

impl Default for PassivePolicy {
    fn default() -> Self {
        Self {
            threshold: 5,
            window: Duration::from_secs(10),
            retry: Duration::from_secs(30),
        }
    }
}

/// One backend's health, by its traffic.
///
/// A sender of unanswered SYNs causes failures. Therefore one accepted connection clears a backend:
/// an attacker cannot take out a backend that serves others.
#[derive(Clone, Copy, Debug)]
pub struct Passive {
    policy: PassivePolicy,
    condition: Condition,
    /// The beginning of the window, or the time when the backend became unhealthy.
    since: Instant,
    /// The number of accepted connections at that time.
    accepted: u64,
    failures: u64,
}

impl Passive {
    /// Starts with a healthy backend and its present counters.
    pub fn new(policy: PassivePolicy, now: Instant, counters: &BackendCounters) -> Self {
        let mut passive = Self {
            policy: PassivePolicy {
                threshold: policy.threshold.max(1),
                ..policy
            },
            condition: Condition::Healthy,
            since: now,
            accepted: 0,
            failures: 0,
        };
        passive.begin(now, counters);
        passive
    }

    /// Returns the health by the traffic so far.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Returns the time since which the backend is unhealthy, if it is.
    pub fn unhealthy_since(&self) -> Option<Instant> {
        (self.condition == Condition::Unhealthy).then_some(self.since)
    }

    /// Updates the health by the present counters; call it several times in a window. Returns the
    /// condition if it changed.
    pub fn note(&mut self, now: Instant, counters: &BackendCounters) -> Option<Condition> {
        let age = now.since(self.since);
        if self.condition == Condition::Unhealthy {
            if age < self.policy.retry {
                return None;
            }
            self.condition = Condition::Healthy;
            self.begin(now, counters);
            return Some(Condition::Healthy);
        }
        // Counters that decreased belong to another backend.
        let failed = counters.failures.saturating_sub(self.failures);
        if counters.accepted != self.accepted || counters.failures < self.failures {
            self.begin(now, counters);
        } else if failed >= self.policy.threshold.into() {
            self.condition = Condition::Unhealthy;
            self.since = now;
            return Some(Condition::Unhealthy);
        } else if age >= self.policy.window {
            self.begin(now, counters);
        }
        None
    }

    fn begin(&mut self, now: Instant, counters: &BackendCounters) {
        self.since = now;
        self.accepted = counters.accepted;
        self.failures = counters.failures;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_secs(1000 + seconds)
    }

    fn counted(accepted: u64, failures: u64) -> BackendCounters {
        BackendCounters {
            accepted,
            failures,
            ..BackendCounters::default()
        }
    }

    fn passive() -> Passive {
        Passive::new(PassivePolicy::default(), at(0), &counted(100, 7))
    }

    #[test]
    fn failures_alone_take_it_out_and_time_brings_it_back() {
        let mut passive = passive();
        assert_eq!(passive.note(at(1), &counted(100, 11)), None);
        let out = passive.note(at(2), &counted(100, 12));
        assert_eq!(out, Some(Condition::Unhealthy));
        assert_eq!(passive.unhealthy_since(), Some(at(2)));
        assert_eq!(passive.note(at(31), &counted(100, 30)), None);
        let back = passive.note(at(32), &counted(100, 30));
        assert_eq!(back, Some(Condition::Healthy));
        // What failed meanwhile does not count again.
        assert_eq!(passive.note(at(33), &counted(100, 34)), None);
        let out = passive.note(at(34), &counted(100, 35));
        assert_eq!(out, Some(Condition::Unhealthy));
    }

    #[test]
    fn whoever_accepts_is_well_whatever_fails() {
        let mut passive = passive();
        let mut failures = 7;
        for second in 1..100 {
            failures += 1_000_000;
            let counters = counted(100 + second, failures);
            assert_eq!(passive.note(at(second), &counters), None);
        }
    }

    #[test]
    fn failures_of_another_window_do_not_count() {
        let mut passive = passive();
        for turn in 1..20 {
            assert_eq!(
                passive.note(at(10 * turn), &counted(100, 7 + 4 * turn)),
                None
            );
        }
    }

    #[test]
    fn counters_that_begin_anew_are_another_backends() {
        let mut passive = passive();
        assert_eq!(passive.note(at(1), &counted(100, 3)), None);
        assert_eq!(passive.note(at(2), &counted(100, 7)), None);
        let out = passive.note(at(3), &counted(100, 8));
        assert_eq!(out, Some(Condition::Unhealthy));
    }
}
