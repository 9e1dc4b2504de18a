//! A table of flows that may forget: the backend of each pinned flow.
//!
//! The table need not keep every flow: if a bucket is full it refuses, and the mux falls back to
//! Maglev, which makes the same choice as long as the backends do not change.
//!
//! An IPv4 flow takes 64/3 bytes, an IPv6 flow 128/3. [`table`] describes the layout of a bucket
//! and the bounds of each operation.

pub(crate) mod key;
pub mod table;

pub(crate) use key::Addresses;
pub use key::{FlowKey, FlowProtocol};
pub use table::{Bucket, Flow, FlowState, FlowStats, Table};

use core::time::Duration;

use crate::key::Key;
use crate::mem::{Mem, Memory};
use crate::time::Instant;

/// A bucket of IPv4 flows.
pub type Ipv4Bucket = Bucket<u64>;
/// A bucket of IPv6 flows.
pub type Ipv6Bucket = Bucket<[u64; 4]>;

const _: () = assert!(size_of::<Ipv4Bucket>() == 64);
const _: () = assert!(size_of::<Ipv6Bucket>() == 128);

/// A duration in the table's unit, 2^30 ns (1.07 s), so that a shift converts nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticks(pub(crate) u16);

impl Ticks {
    /// The longest duration, some 30 minutes: deadlines have 12 bits; see [`table`].
    pub const MAX: Self = Self(1700);

    /// `duration`, rounded up, and at most [`MAX`](Self::MAX).
    pub const fn from_duration(duration: Duration) -> Self {
        let ticks = duration.as_nanos().div_ceil(1 << TICK_SHIFT);
        if ticks > Self::MAX.0 as u128 {
            Self::MAX
        } else {
            Self(ticks as u16)
        }
    }
}

pub(crate) const TICK_SHIFT: u32 = 30;

/// Returns the tick of a time, modulo 2^32.
pub(crate) const fn tick_of(passed: Instant) -> u32 {
    (passed.as_nanos() >> TICK_SHIFT) as u32
}

/// The tables of IPv4 and of IPv6 flows, with one key and one clock.
#[derive(Debug)]
pub struct FlowTable<'m> {
    pub(crate) ipv4: Table<'m, u64>,
    pub(crate) ipv6: Table<'m, [u64; 4]>,
}

impl<'m> FlowTable<'m> {
    /// Returns the number of buckets for `flows` flows at a load of 68 %: 31.4 bytes for an IPv4
    /// flow, 62.7 for an IPv6 flow. The table accepts more flows, up to a load of 85 % with hardly
    /// any refusals, but at that load a new flow costs more than twice as much (`slb-benches
    /// flows`).
    pub const fn buckets_for(flows: usize) -> usize {
        flows.saturating_mul(25).div_ceil(17 * table::SLOTS)
    }

    /// Makes a table in the given memory. Flows of a family without memory are never pinned. An
    /// attacker who knows the key can aim flows at one bucket, which makes the table forget flows,
    /// but has no other effect.
    pub fn new(
        ipv4: impl Into<Mem<'m, Ipv4Bucket>>,
        ipv6: impl Into<Mem<'m, Ipv6Bucket>>,
        key: Key,
    ) -> Self {
        Self {
            ipv4: Table::new(ipv4.into(), key),
            ipv6: Table::new(ipv6.into(), key),
        }
    }

    /// Makes a table for `ipv4` and `ipv6` flows; returns `None` if the memory is used up.
    pub fn build(ipv4: usize, ipv6: usize, key: Key, memory: &mut impl Memory<'m>) -> Option<Self> {
        Some(Self::new(
            memory.take(Self::buckets_for(ipv4), Bucket::EMPTY)?,
            memory.take(Self::buckets_for(ipv6), Bucket::EMPTY)?,
            key,
        ))
    }

    /// Does a bounded share of the due expiry: at most 2048 buckets of each family, some 20 µs. A
    /// round over the table takes 16 s, or longer if calls are too rare for that; a round that has
    /// taken 6 minutes is finished at once by a scan of the whole table. Twenty calls a second
    /// avoid that for a table of 40 million flows, and any polling loop makes more.
    #[inline]
    pub fn advance(&mut self, now: Instant) {
        self.ipv4.advance(now);
        self.ipv6.advance(now);
    }

    /// Returns the sum of the counters of both tables.
    pub fn stats(&self) -> FlowStats {
        self.ipv4.stats() + self.ipv6.stats()
    }

    /// Returns the table of IPv4 flows.
    pub fn ipv4(&self) -> &Table<'m, u64> {
        &self.ipv4
    }

    /// Returns the table of IPv6 flows.
    pub fn ipv6(&self) -> &Table<'m, [u64; 4]> {
        &self.ipv6
    }

    /// Yields every pinned flow, in unspecified order.
    pub fn iter(&self) -> impl Iterator<Item = Flow> + '_ {
        self.ipv4.iter().chain(self.ipv6.iter())
    }
}

#[cfg(feature = "alloc")]
impl FlowTable<'static> {
    /// Makes a table for `ipv4` and `ipv6` flows, and allocates its memory.
    pub fn with_capacity(ipv4: usize, ipv6: usize, key: Key) -> Self {
        Self::new(
            alloc::vec![Bucket::EMPTY; Self::buckets_for(ipv4)],
            alloc::vec![Bucket::EMPTY; Self::buckets_for(ipv6)],
            key,
        )
    }
}
