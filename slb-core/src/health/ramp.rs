//! Slow start: a recovered backend, whose caches are cold, gets its share of new flows gradually.

use core::time::Duration;

use crate::time::Instant;

/// The number of steps to the full weight: each moves a tenth of the backend's share, and costs a
/// new table.
pub const RAMP_STEPS: u32 = 10;

/// The ramp of a backend to its full weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    begin: Instant,
    length: Duration,
}

impl Ramp {
    /// Starts a ramp at `begin`, which ends after `length`.
    pub fn new(begin: Instant, length: Duration) -> Self {
        Self { begin, length }
    }

    /// Returns the weight of the backend in [steps](RAMP_STEPS): at least one, and all of them
    /// after the ramp.
    pub fn step(&self, now: Instant) -> u32 {
        let (age, length) = (now.since(self.begin).as_nanos(), self.length.as_nanos());
        let done = (age * u128::from(RAMP_STEPS)).checked_div(length);
        let done = done.map_or(RAMP_STEPS, |done| u32::try_from(done).unwrap_or(RAMP_STEPS));
        done.saturating_add(1).min(RAMP_STEPS)
    }

    /// Returns true if the backend has its full weight.
    pub fn is_over(&self, now: Instant) -> bool {
        self.step(now) == RAMP_STEPS
    }

    /// Returns the time of the next step.
    pub fn next(&self, now: Instant) -> Instant {
        self.begin + self.length * self.step(now) / RAMP_STEPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_a_step_each_tenth() {
        let at = |milliseconds: u64| Instant::from_nanos(1_000_000 * milliseconds);
        let ramp = Ramp::new(at(1000), Duration::from_secs(10));
        for (now, step, next) in [
            (1000, 1, 2000),
            (1999, 1, 2000),
            (2000, 2, 3000),
            (9999, 9, 10_000),
            (10_000, 10, 11_000),
            (1_000_000, 10, 11_000),
        ] {
            assert_eq!((ramp.step(at(now)), ramp.next(at(now))), (step, at(next)));
        }
        assert!(!ramp.is_over(at(9999)) && ramp.is_over(at(10_000)));
        let none = Ramp::new(at(1000), Duration::ZERO);
        assert!(none.is_over(at(1000)));
    }
}
