//! The caller's clock.
//!
//! The dataplane never reads a clock: a live loop passes the time of a monotonic clock, a replay
//! the capture's timestamps, a test any time.

use core::fmt;
use core::ops::{Add, Sub};
use core::time::Duration;

/// A time in nanoseconds since an origin of the caller's choice.
///
/// A monotonic clock is best. A clock that is set while packets flow is harmless: between two calls,
///
/// | the clock moves | the dataplane counts |
/// |---|---|
/// | forward, up to two hours | that time |
/// | forward, up to 2^55 ns (417 days) | two hours: every idle timeout, which is 73 minutes at most, is over |
/// | forward, further than that | no time: the clock was set, and no connection ends by it |
/// | backward | no time, and goes on from there; a second or less is waited for instead, as packets are not always in order |
///
/// A gap of hours or days in a capture therefore ends idle connections, and a clock that starts in
/// 1970 and is set to the present ends none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The origin.
    pub const ZERO: Self = Self(0);

    /// Returns the time `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the time `seconds` seconds after the origin, at most the last one that fits (in the
    /// year 2554 if the origin is 1970).
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// Returns the nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time from `earlier` to `self`; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        let nanos = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, rhs: Self) -> Duration {
        self.since(rhs)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:09}",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000
        )
    }
}

/// The maximum time that passes between two calls: longer than any timeout.
const LONGEST: u64 = 2 * 60 * 60 * 1_000_000_000;
/// A gap of at least this length means that the clock was set, not that time has passed.
const SET_FORWARD: u64 = 1 << 55;
/// The time in nanoseconds by which the clock may run backward without counting as set.
const OUT_OF_ORDER: u64 = 1_000_000_000;

/// The passed time by the caller's clock, even if that clock is set meanwhile.
///
/// The clock starts at zero with the first call, never runs backward, and advances by at most
/// [`LONGEST`] per call.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// The last time that the caller passed; `None` before the first.
    last: Option<u64>,
    passed: u64,
}

impl Clock {
    /// Advances to `now` by the caller's clock, and returns the time since the first call.
    #[inline]
    pub(crate) fn advance(&mut self, now: Instant) -> Instant {
        let gap = now.0.wrapping_sub(self.last.unwrap_or(now.0));
        if gap > LONGEST {
            return self.leap(now.0);
        }
        self.last = Some(now.0);
        self.passed = self.passed.wrapping_add(gap);
        Instant(self.passed)
    }

    /// Returns the time that has passed so far.
    pub(crate) fn passed(&self) -> Instant {
        Instant(self.passed)
    }

    #[cold]
    fn leap(&mut self, now: u64) -> Instant {
        let last = self.last.unwrap_or(now);
        if last > now && last - now <= OUT_OF_ORDER {
            return Instant(self.passed);
        }
        if (LONGEST..SET_FORWARD).contains(&now.saturating_sub(last)) {
            self.passed = self.passed.wrapping_add(LONGEST);
        }
        self.last = Some(now);
        Instant(self.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let late = Instant::from_nanos(u64::MAX - 1);
        assert_eq!((late + Duration::from_secs(9)).as_nanos(), u64::MAX);
        assert_eq!(Instant::ZERO - late, Duration::ZERO);
        assert_eq!(
            Instant::from_secs(3) - Instant::from_secs(1),
            Duration::from_secs(2)
        );
    }

    #[test]
    fn a_clock_that_is_set_counts_no_time() {
        const HOUR: u64 = 3_600_000_000_000;
        const START: u64 = 1 << 50;
        for (after, passed) in [
            (START, 0),
            (START + 1, 1),
            (START + 2 * HOUR, 2 * HOUR),
            (START + 2 * HOUR + 1, 2 * HOUR),
            (START + 24 * HOUR, 2 * HOUR),
            (START + (1 << 55) - 1, 2 * HOUR),
            (START + (1 << 55), 0),
            (START + (1 << 58), 0),
            (START + (1 << 63), 0),
            (u64::MAX, 0),
            (START - 1, 0),
            (START - HOUR, 0),
            (0, 0),
        ] {
            let mut clock = Clock::default();
            assert_eq!(clock.advance(Instant(START)), Instant::ZERO);
            assert_eq!(clock.advance(Instant(after)), Instant(passed), "{after}");
            // The clock goes on from there.
            let next = after.saturating_add(2_000_000_000);
            let on = next - after;
            let waits = START - after.min(START);
            let waits = if waits <= OUT_OF_ORDER { waits } else { 0 };
            assert_eq!(clock.advance(Instant(next)), Instant(passed + on - waits));
        }
    }

    #[test]
    fn time_counts_from_the_first_moment_on() {
        for first in [0, 1, 1 << 60, u64::MAX] {
            let mut clock = Clock::default();
            assert_eq!(clock.advance(Instant(first)), Instant::ZERO, "{first}");
            assert_eq!(clock.advance(Instant(first)), Instant::ZERO, "{first}");
        }
    }

    #[test]
    fn packets_out_of_order_do_not_make_time_run_faster() {
        let mut clock = Clock::default();
        for millisecond in 1..=1000u64 {
            let late = u64::from(millisecond % 3 == 0) * 900_000;
            clock.advance(Instant(1_000_000 * (5_000 + millisecond) - late));
            clock.advance(Instant(1_000_000 * (5_000 + millisecond - 1)));
        }
        assert_eq!(clock.passed, 999_000_000);
    }
}
