//! Health of backends by the results of their probes: a state machine without I/O.
//!
//! ```text
//!   due ──► the caller asks the backend ──► succeeded / failed ──► a new condition
//! ```
//!
//! `threshold` failures in a row make a healthy backend unhealthy, and `threshold` successes in a
//! row make an unhealthy backend healthy; a result of the other kind resets the count. A probe
//! fails if it is still outstanding when the next one is due, or when its timeout has passed.

mod passive;
mod ramp;

pub use self::passive::{Passive, PassivePolicy};
pub use self::ramp::{RAMP_STEPS, Ramp};

use core::time::Duration;

use crate::time::Instant;

/// The timing of a backend's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbePolicy {
    /// Time from one probe to the next.
    pub interval: Duration,
    /// The time that an answer may take, at most the interval.
    pub timeout: Duration,
    /// Results of the other kind in a row that change the condition; at least one.
    pub threshold: u32,
}

impl Default for ProbePolicy {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(15),
            threshold: 2,
        }
    }
}

/// The health of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// The backend gets new flows.
    #[default]
    Healthy,
    /// The backend fails and gets no new flows.
    Unhealthy,
}

impl Condition {
    /// Name of the condition in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One backend's health.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    policy: ProbePolicy,
    condition: Condition,
    /// Results of the other kind in a row so far.
    against: u32,
    /// The time of the next probe.
    next: Instant,
    /// The deadline of the outstanding probe.
    out: Option<Instant>,
}

impl Health {
    /// Starts with `condition`, and with the first probe at `first`. Spread `first` over an
    /// interval, so that not all backends are probed at once; see [`jitter`].
    pub fn new(policy: ProbePolicy, condition: Condition, first: Instant) -> Self {
        let threshold = policy.threshold.max(1);
        let timeout = policy.timeout.min(policy.interval);
        Self {
            policy: ProbePolicy {
                threshold,
                timeout,
                ..policy
            },
            condition,
            against: 0,
            next: first,
            out: None,
        }
    }

    /// Returns the health by the results so far.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Returns the time of the next event: a probe to send, or the timeout of the outstanding one.
    pub fn due(&self) -> Instant {
        self.out.unwrap_or(self.next)
    }

    /// Returns true if a probe is due. From then on a probe is outstanding, until
    /// [`succeeded`](Self::succeeded) or [`failed`](Self::failed) reports its result, or
    /// [`expire`](Self::expire) its timeout.
    pub fn begin(&mut self, now: Instant) -> bool {
        if self.out.is_some() || now < self.next {
            return false;
        }
        // A probe that is less than an interval late does not delay the following ones.
        let next = self.next + self.policy.interval;
        self.next = if next > now {
            next
        } else {
            now + self.policy.interval
        };
        self.out = Some(now + self.policy.timeout);
        true
    }

    /// Records a successful answer of the backend. Returns the condition if it changed.
    pub fn succeeded(&mut self) -> Option<Condition> {
        self.out.take()?;
        self.note(Condition::Healthy)
    }

    /// Records a refusal or a wrong answer of the backend. Returns the condition if it changed.
    pub fn failed(&mut self) -> Option<Condition> {
        self.out.take()?;
        self.note(Condition::Unhealthy)
    }

    /// Discards the outstanding probe, which could not be sent for a reason on the prober's side,
    /// and proves nothing.
    pub fn cancel(&mut self) {
        self.out = None;
    }

    /// Fails an outstanding probe whose timeout has passed. Returns the condition if it changed.
    pub fn expire(&mut self, now: Instant) -> Option<Condition> {
        self.out.filter(|out| now >= *out)?;
        self.failed()
    }

    fn note(&mut self, answer: Condition) -> Option<Condition> {
        if answer == self.condition {
            self.against = 0;
            return None;
        }
        self.against += 1;
        if self.against < self.policy.threshold {
            return None;
        }
        self.against = 0;
        self.condition = answer;
        Some(answer)
    }
}

/// Returns the time of the first probe of backend `number` after `now`. The times are spread evenly
/// over the interval, for any count of backends (multiples of the golden ratio).
pub fn jitter(now: Instant, interval: Duration, number: u32) -> Instant {
    const GOLDEN: u32 = 0x9e37_79b9;
    let share = u128::from(number.wrapping_mul(GOLDEN));
    let nanos = (interval.as_nanos() * share) >> 32;
    now + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_secs(1000 + seconds)
    }

    /// The timeline of Azure's documentation: 15 s, two failures, two successes.
    #[test]
    fn t0_to_t60() {
        let mut health = Health::new(ProbePolicy::default(), Condition::Healthy, at(0));
        let mut conditions = [None; 5];
        for (condition, (second, is_well)) in
            conditions
                .iter_mut()
                .zip([(0, true), (15, false), (30, false), (45, true), (60, true)])
        {
            assert_eq!(health.due(), at(second));
            assert!(health.begin(at(second)));
            *condition = if is_well {
                health.succeeded()
            } else {
                health.failed()
            };
        }
        let expected = [
            None,
            None,
            Some(Condition::Unhealthy), // T+30s: out of rotation
            None,
            Some(Condition::Healthy), // T+60s: back
        ];
        assert_eq!(conditions, expected);
    }

    #[test]
    fn a_probe_that_was_never_asked_says_nothing() {
        let mut health = Health::new(ProbePolicy::default(), Condition::Healthy, at(0));
        assert!(health.begin(at(0)));
        assert_eq!(health.failed(), None);
        assert!(health.begin(at(15)));
        health.cancel();
        assert_eq!(health.expire(at(30)), None);
        // One failure was before it, and this is the second.
        assert!(health.begin(at(30)));
        assert_eq!(health.failed(), Some(Condition::Unhealthy));
    }

    #[test]
    fn an_answer_of_the_other_kind_begins_the_count_anew() {
        let policy = ProbePolicy {
            threshold: 3,
            ..ProbePolicy::default()
        };
        let mut health = Health::new(policy, Condition::Healthy, at(0));
        let mut second = 0;
        let mut answer = |health: &mut Health, is_well| {
            assert!(health.begin(at(second)));
            second += 15;
            if is_well {
                health.succeeded()
            } else {
                health.failed()
            }
        };
        for is_well in [false, false, true, false, false] {
            assert_eq!(answer(&mut health, is_well), None);
        }
        assert_eq!(answer(&mut health, false), Some(Condition::Unhealthy));
        for is_well in [true, true, false, true, true] {
            assert_eq!(answer(&mut health, is_well), None);
        }
        assert_eq!(answer(&mut health, true), Some(Condition::Healthy));
    }

    #[test]
    fn silence_is_failure_when_the_timeout_has_passed() {
        let policy = ProbePolicy {
            timeout: Duration::from_secs(5),
            threshold: 1,
            ..ProbePolicy::default()
        };
        let mut health = Health::new(policy, Condition::Healthy, at(0));
        assert!(health.begin(at(0)));
        assert_eq!(health.due(), at(5));
        assert!(!health.begin(at(4)));
        assert_eq!(health.expire(at(4)), None);
        assert_eq!(health.expire(at(5)), Some(Condition::Unhealthy));
        // An answer that comes now is to no probe.
        assert_eq!(health.succeeded(), None);
        assert_eq!(health.due(), at(15));
    }

    #[test]
    fn a_late_probe_does_not_delay_the_others() {
        let mut health = Health::new(ProbePolicy::default(), Condition::Healthy, at(0));
        assert!(health.begin(at(3)));
        health.succeeded();
        assert_eq!(health.due(), at(15));
        assert!(health.begin(at(100)));
        health.succeeded();
        assert_eq!(health.due(), at(115));
    }

    #[test]
    fn a_thousand_backends_are_not_asked_at_once() {
        let interval = Duration::from_secs(5);
        let mut tenths = [0u32; 50];
        for number in 0..1000 {
            let first = jitter(at(0), interval, number).since(at(0));
            assert!(first < interval);
            tenths[first.as_millis() as usize / 100] += 1;
        }
        assert!(
            tenths.iter().all(|&count| (17..=23).contains(&count)),
            "{tenths:?}"
        );
    }
}
