//! Spans of time in ticks, and the ones that protocols set.

use crate::time::Instant;

/// Deadlines are in units of 2^26 ns (67 ms), so a shift converts nanoseconds.
pub(crate) const TICK_SHIFT: u32 = 26;

/// Returns the tick of a time, modulo 2^32: ticks wrap after nine years.
#[inline]
pub(crate) const fn tick_of(passed: Instant) -> u32 {
    (passed.as_nanos() >> TICK_SHIFT) as u32
}

/// A duration in ticks, up to 73 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub(crate) u16);

impl Span {
    /// `duration`, rounded up, and at most the longest.
    pub const fn from_duration(duration: core::time::Duration) -> Self {
        let ticks = duration.as_nanos().div_ceil(1 << TICK_SHIFT);
        if ticks > u16::MAX as u128 {
            Self(u16::MAX)
        } else {
            Self(ticks as u16)
        }
    }

    /// Returns the span as a duration.
    pub(crate) const fn duration(self) -> core::time::Duration {
        core::time::Duration::from_nanos((self.0 as u64) << TICK_SHIFT)
    }

    const fn from_secs(seconds: u64) -> Self {
        Self::from_duration(core::time::Duration::from_secs(seconds))
    }
}

/// The lifetime of a TCP connection before or after the established state. A RST may be lost on the
/// way to its receiver, so a reset connection lasts as long (RFC 7857 §2.2).
pub(super) const TRANSITORY: Span = Span::from_secs(240); // RFC 5382 §5 REQ-5: no less
/// ICMP echo.
pub(super) const ECHO: Span = Span::from_secs(60); // RFC 5508 §3.2 REQ-1: no less
