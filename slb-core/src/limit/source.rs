//! A limit on the new flows of each source: a token bucket for each, in bounded memory.
//!
//! ```text
//!  source ─► hash ─┬─► bucket of one half    one of the two has a token: the flow may begin,
//!                  └─► bucket of the other   and each that has one gives it
//! ```
//! Sources share buckets by their hash, and have two each: a source that begins too many flows
//! empties its two buckets, and another source is refused only if both of its buckets are empty.
//! Nothing is ever evicted, so a flood of sources cannot push out others. Buckets are refilled when
//! they are next used.

use core::fmt;

use crate::hash::fold_multiply;
use crate::key::{Key, Purpose};
use crate::mem::{Mem, Memory};
use crate::packet::{Family, Packet};
use crate::time::Instant;

/// A bucket: thousandths of tokens, and the time at which they were counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceBucket {
    credit: u32,
    /// Milliseconds of the limiter's clock, which wraps after 49 days; zero for never.
    counted: u32,
}

/// A limit on the new flows of each source: an IPv4 address, or a /64 of IPv6.
pub struct SourceLimiter<'m> {
    buckets: Mem<'m, SourceBucket>,
    /// Thousandths of a token per millisecond, that is, tokens per second.
    rate: u32,
    most: u32,
    key: [u64; 2],
    now: u32,
}

/// Digits of pi: odd, with half of the bits set. The constant need not be secret, since the key is.
const MIX: [u64; 2] = [0x4528_21e6_38d0_1377, 0xbe54_66cf_34e9_0c6d];

/// One flow, in thousandths.
const TOKEN: u32 = 1000;

impl<'m> SourceLimiter<'m> {
    /// A number of buckets that suffices for most uses: 512 KiB.
    pub const BUCKETS: usize = 1 << 16;

    /// Makes a limiter that lets each source begin `rate` flows a second on average, with bursts of
    /// `at_once`, at least one and at most four million. Each bucket takes eight bytes; without
    /// buckets, nothing is limited.
    pub fn new(mut buckets: Mem<'m, SourceBucket>, rate: u32, at_once: u32, key: Key) -> Self {
        let most = at_once.clamp(1, u32::MAX / TOKEN) * TOKEN;
        let full = SourceBucket {
            credit: most,
            counted: 0,
        };
        buckets.fill(full);
        Self {
            buckets,
            rate,
            most,
            key: key.derive(Purpose::Sources),
            now: 0,
        }
    }

    /// Makes a limiter without a limit.
    pub(crate) fn none() -> Self {
        Self {
            buckets: Mem::empty(),
            rate: 0,
            most: 0,
            key: [0; 2],
            now: 0,
        }
    }

    /// Makes a limiter of `rate` new flows a second and bursts of `at_once` for each source, with
    /// `buckets` buckets from `memory`; returns `None` if the memory is used up.
    pub fn build(
        buckets: usize,
        rate: u32,
        at_once: u32,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Option<Self> {
        let buckets = memory.take(buckets, SourceBucket::default())?;
        Some(Self::new(buckets, rate, at_once, key))
    }

    /// Advances the clock.
    #[inline]
    pub(crate) fn advance(&mut self, now: Instant) {
        self.now = (now.as_nanos() / 1_000_000) as u32;
    }

    /// Returns true if the sender of a packet may begin another flow, and counts that flow.
    pub(crate) fn allow(&mut self, packet: &Packet) -> bool {
        if self.buckets.is_empty() {
            return true;
        }
        let source = match packet.shape.family {
            Family::Ipv4 => u64::from(packet.addresses[0] as u32),
            Family::Ipv6 => packet.addresses[0],
        };
        let hash = fold_multiply(source ^ self.key[0], MIX[0]);
        let hash = fold_multiply(hash ^ self.key[1], MIX[1]);
        let count = self.buckets.len() as u64;
        let halves = [hash as u32, (hash >> 32) as u32];
        let places = halves.map(|half| ((u64::from(half) * count) >> 32) as usize);
        let mut may = false;
        let two = if places[0] == places[1] { 1 } else { 2 };
        for &place in places.iter().take(two) {
            if let Some(bucket) = self.buckets.get_mut(place) {
                may |= bucket.take(self.now, self.rate, self.most);
            }
        }
        may
    }
}

#[cfg(feature = "alloc")]
impl SourceLimiter<'static> {
    /// Makes a limiter like [`build`](Self::build), in boxes.
    pub fn with_capacity(buckets: usize, rate: u32, at_once: u32, key: Key) -> Self {
        let none = SourceBucket::default();
        let buckets = Mem::from(alloc::vec![none; buckets]);
        Self::new(buckets, rate, at_once, key)
    }
}

impl SourceBucket {
    /// Takes a token, if there is one.
    fn take(&mut self, now: u32, rate: u32, most: u32) -> bool {
        let elapsed = u64::from(now.wrapping_sub(self.counted));
        let credit = u64::from(self.credit) + elapsed * u64::from(rate);
        let credit = credit.min(most.into()) as u32;
        self.counted = now;
        let left = credit.checked_sub(TOKEN);
        self.credit = left.unwrap_or(credit);
        left.is_some()
    }
}

impl fmt::Debug for SourceLimiter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceLimiter")
            .field("buckets", &self.buckets.len())
            .field("rate", &self.rate)
            .field("at_once", &(self.most / TOKEN))
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use alloc::vec;

    use super::*;

    fn from(address: u32) -> Packet {
        Packet {
            addresses: [address.into(), 0, 0, 0],
            ..Packet::EMPTY
        }
    }

    fn limiter(buckets: usize) -> SourceLimiter<'static> {
        let buckets = Mem::from(vec![SourceBucket::default(); buckets]);
        let mut limiter = SourceLimiter::new(buckets, 10, 50, Key::new([1, 2]));
        limiter.advance(Instant::from_secs(1000));
        limiter
    }

    #[test]
    fn a_source_gets_its_rate_and_no_more() {
        let mut limiter = limiter(1 << 12);
        let one = from(7);
        let burst = (0..1000).filter(|_| limiter.allow(&one)).count();
        assert_eq!(burst, 50);
        let mut later = 0;
        for millisecond in 0..10_000 {
            limiter.advance(Instant::from_nanos(1_000_000 * (1_000_000 + millisecond)));
            later += u32::from(limiter.allow(&one));
        }
        assert!((99..=101).contains(&later), "{later} in ten seconds");
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of sources")]
    fn greedy_sources_keep_hardly_anybody_else_out() {
        let mut limiter = limiter(1 << 12);
        // Forty that take all they can, of four thousand buckets.
        for greedy in 0..40 {
            while limiter.allow(&from(greedy)) {}
        }
        let refused = (1000..11_000).filter(|&other| !limiter.allow(&from(other)));
        assert!(refused.count() < 30, "of ten thousand");
    }

    #[test]
    fn without_buckets_nothing_is_limited() {
        let mut none = SourceLimiter::new(Mem::empty(), 10, 50, Key::new([1, 2]));
        assert!(none.allow(&from(1)));
    }

    #[test]
    fn the_clock_may_wrap() {
        let mut limiter = limiter(64);
        let milliseconds = u64::from(u32::MAX) * 1_000_000;
        limiter.advance(Instant::from_nanos(milliseconds));
        while limiter.allow(&from(1)) {}
        limiter.advance(Instant::from_nanos(milliseconds + 1_000_000_000));
        assert_eq!((0..100).filter(|_| limiter.allow(&from(1))).count(), 10);
    }
}
