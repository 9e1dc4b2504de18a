//! The flow table: buckets of three places, two buckets for each flow.
//!
//! ```text
//!  IPv4 bucket, one cache line                     IPv6 bucket, two cache lines
//!  0        24       36       48     54  55        0        96      108      120    126 127
//!  | addr×3 | port×3 | value×3 | meta×3 | displaced | ...
//!
//!  meta:  15 14  13 12  11 ............ 0
//!         state  proto  deadline (ticks, modulo 4096)
//! ```
//!
//! A flow is in its *primary* bucket, or if that is full in its *secondary* bucket, and then
//! counted in the primary bucket's `displaced`. A lookup reads the primary bucket, and the
//! secondary one only if `displaced` is not zero: usually one line, at most two. `displaced`
//! decreases as flows leave, so there are no tombstones, and lookups do not slow down over time.
//!
//! If both buckets are full, an insert moves another flow to its other bucket, or else evicts a
//! transitory flow: a half-open one, or else a closing one. For an established flow, up to three
//! other flows move, each making room for the next, before it is refused. Inserting a half-open
//! flow touches at most 8 buckets, an established flow at most 80. Established flows are never
//! evicted, and half-open flows get at most half of the places.
//!
//! Expiry: lookups no longer find a flow past its deadline, and inserts may use its place; a sweep
//! of a few buckets per call collects the other expired flows. Deadlines are 12-bit ticks, so a
//! bucket has to be swept before 2048 ticks have passed; a round takes 16 s.

mod bucket;
mod report;
mod room;
mod sweep;

use core::fmt;

use self::bucket::{DEADLINE_BITS, PROTOCOL_BITS, STATE_SHIFT, is_half_open, pack, state_of};
use self::sweep::{SWEEP_ROUND_NANOS, SWEEP_STEP, Sweep};
use super::Ticks;
use super::key::{Addresses, FlowKey};
use crate::key::{Key, Purpose};
use crate::mem::Mem;
use crate::prefetch::prefetch;
use crate::time::Clock;

pub use self::bucket::{Bucket, FlowState, SLOTS};
pub use self::report::{Flow, FlowStats};

/// The number of flows that may move to make room for an established one: enough for a table at 85
/// %.
const MOVES: usize = 3;

/// The number of flows that may move to make room for a half-open flow: fewer, since a flood may
/// consist of half-open flows.
const MOVES_HALF_OPEN: usize = 1;

/// The position of a flow in the table; valid until the table changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    bucket: u32,
    place: u8,
}

impl Found {
    /// The flow at a place of a bucket.
    #[inline]
    pub(crate) const fn at(bucket: u32, place: u8) -> Self {
        Self { bucket, place }
    }

    /// The number of the bucket, and the place in it.
    #[inline]
    pub(crate) const fn parts(self) -> (u32, u8) {
        (self.bucket, self.place)
    }
}

#[inline]
const fn found(bucket: usize, place: usize) -> Found {
    Found {
        bucket: bucket as u32,
        place: place as u8,
    }
}

/// The result of looking a flow up in one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The flow is here.
    Found(Found),
    /// The flow is not in the table, and its primary bucket has room.
    Absent,
    /// The flow is not in the table, and its primary bucket is full: an insert will read the secondary.
    AbsentFull,
    /// The flow may be in the secondary bucket.
    Displaced,
}

/// The outcome of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The flow has a place.
    Pinned,
    /// The flow has the place of a half-open or closing flow, which was evicted.
    Evicted,
    /// There is no place for the flow.
    Refused,
}

/// A table of flows with addresses of one family.
pub struct Table<'m, A> {
    buckets: Mem<'m, Bucket<A>>,
    key: [u64; 2],
    clock: Clock,
    now: u32,
    half_open_limit: u64,
    stats: FlowStats,
    sweep: Sweep,
}

impl<'m, A: Addresses> Table<'m, A> {
    /// Makes a table in `buckets`, and clears them.
    pub fn new(mut buckets: Mem<'m, Bucket<A>>, key: Key) -> Self {
        // A bucket's index is the product of a hash and the count, in 32 bits.
        let most = buckets.len().min(u32::MAX as usize);
        for bucket in buckets.iter_mut() {
            *bucket = Bucket::EMPTY;
        }
        let places = (most * SLOTS) as u64;
        let step = most.clamp(1, SWEEP_STEP) as u64;
        let interval = SWEEP_ROUND_NANOS * step / (most.max(1) as u64);
        Self {
            buckets,
            key: key.derive(Purpose::Flows),
            clock: Clock::default(),
            now: 0,
            half_open_limit: places.div_ceil(2),
            stats: FlowStats {
                places,
                ..FlowStats::default()
            },
            sweep: Sweep {
                interval,
                ..Sweep::default()
            },
        }
    }

    /// Returns the number of buckets that indexes reach.
    #[inline]
    fn len(&self) -> u64 {
        self.buckets.len() as u64
    }

    /// Returns the hash of a key, which other methods take.
    #[inline]
    pub fn hash(&self, key: &FlowKey<A>) -> u64 {
        let rest = u64::from(key.ports) | (key.protocol as u64) << 32;
        key.addresses.hash(rest, self.key)
    }

    #[inline]
    fn primary(&self, hash: u64) -> usize {
        (((hash >> 32) * self.len()) >> 32) as usize
    }

    #[inline]
    fn secondary(&self, hash: u64) -> usize {
        (((hash & 0xffff_ffff) * self.len()) >> 32) as usize
    }

    /// Starts loading the flow's primary bucket.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.prefetch_primary(hash);
    }

    /// Starts loading the flow's primary bucket, and returns its number.
    #[inline]
    pub(crate) fn prefetch_primary(&self, hash: u64) -> u32 {
        let index = self.primary(hash);
        if let Some(bucket) = self.buckets.get(index) {
            prefetch(bucket);
        }
        index as u32
    }

    /// Extends an established flow to `timeout` from now, if `take` accepts the value stored with
    /// it. Returns `None`, without a change, if it does not, or if there is no established flow.
    /// Writes nothing if nothing changes, as within one tick.
    #[inline]
    pub(crate) fn refresh<R>(
        &mut self,
        bucket: u32,
        place: u8,
        timeout: Ticks,
        take: impl FnOnce(u32) -> Option<R>,
    ) -> Option<R> {
        let bucket = self.buckets.get_mut(bucket as usize)?;
        let value = *bucket.values.get(usize::from(place))?;
        let meta = bucket.meta.get_mut(usize::from(place))?;
        if *meta >> STATE_SHIFT != FlowState::Established as u16 {
            return None;
        }
        let taken = take(value)?;
        let deadline = self.now.wrapping_add(u32::from(timeout.0));
        let new = *meta & !DEADLINE_BITS | deadline as u16 & DEADLINE_BITS;
        if new != *meta {
            *meta = new;
        }
        Some(taken)
    }

    /// Starts loading the flow's secondary bucket.
    #[inline]
    pub fn prefetch_secondary(&self, hash: u64) {
        if let Some(bucket) = self.buckets.get(self.secondary(hash)) {
            prefetch(bucket);
        }
    }

    /// Looks the flow up in its primary bucket.
    #[inline]
    pub fn probe(&self, hash: u64, key: &FlowKey<A>) -> Probe {
        self.probe_bucket(self.primary(hash) as u32, key)
    }

    /// Looks the flow up in its primary bucket, by the bucket's number.
    #[inline]
    pub(crate) fn probe_bucket(&self, index: u32, key: &FlowKey<A>) -> Probe {
        let Some(bucket) = self.buckets.get(index as usize) else {
            return Probe::AbsentFull; // the table has no memory
        };
        match bucket.find(key, self.now) {
            Some(place) => Probe::Found(found(index as usize, place)),
            None if bucket.displaced != 0 => Probe::Displaced,
            None if bucket.vacant(self.now).is_some() => Probe::Absent,
            None => Probe::AbsentFull,
        }
    }

    /// Returns the place of an established flow in a bucket; `None` if the flow is not there, or if
    /// only [`probe_bucket`](Self::probe_bucket) can decide.
    #[inline(always)] // as `Bucket::established`
    pub(crate) fn established(&self, index: u32, key: &FlowKey<A>) -> Option<u8> {
        let bucket = self.buckets.get(index as usize)?;
        bucket.established(key, self.now).map(|place| place as u8)
    }

    /// Looks the flow up in its secondary bucket, after [`probe`](Self::probe) returned
    /// [`Probe::Displaced`].
    #[inline]
    pub fn probe_secondary(&self, hash: u64, key: &FlowKey<A>) -> Option<Found> {
        let index = self.secondary(hash);
        let bucket = self.buckets.get(index)?;
        bucket.find(key, self.now).map(|place| found(index, place))
    }

    /// Looks a flow up in both of its buckets.
    pub fn find(&self, key: &FlowKey<A>) -> Option<Found> {
        let hash = self.hash(key);
        match self.probe(hash, key) {
            Probe::Found(found) => Some(found),
            Probe::Displaced => self.probe_secondary(hash, key),
            Probe::Absent | Probe::AbsentFull => None,
        }
    }

    /// Sets a flow's state to the result of `next`, and its timeout to `timeout` from now. Writes
    /// nothing if nothing changes, as within one tick.
    #[inline]
    pub fn update(
        &mut self,
        found: Found,
        timeout: Ticks,
        next: impl FnOnce(FlowState) -> FlowState,
    ) {
        self.update_with(found, |state| (next(state), timeout));
    }

    /// Updates a flow whose timeout depends on its state.
    #[inline]
    pub(crate) fn update_with(
        &mut self,
        found: Found,
        next: impl FnOnce(FlowState) -> (FlowState, Ticks),
    ) {
        let Some(bucket) = self.buckets.get_mut(found.bucket as usize) else {
            return;
        };
        let Some(meta) = bucket.meta.get_mut(usize::from(found.place)) else {
            return;
        };
        let (state, timeout) = next(state_of(*meta));
        let deadline = self.now.wrapping_add(u32::from(timeout.0));
        let new =
            (state as u16) << STATE_SHIFT | *meta & PROTOCOL_BITS | deadline as u16 & DEADLINE_BITS;
        if new != *meta {
            self.stats.half_open -= u64::from(is_half_open(*meta));
            self.stats.half_open += u64::from(is_half_open(new));
            *meta = new;
        }
    }

    /// Returns the value stored with a flow.
    #[inline]
    pub fn value(&self, found: Found) -> u32 {
        let bucket = self.buckets.get(found.bucket as usize);
        bucket
            .and_then(|bucket| bucket.values.get(usize::from(found.place)))
            .copied()
            .unwrap_or(0)
    }

    /// Returns the state of a flow.
    pub fn state(&self, found: Found) -> FlowState {
        let bucket = self.buckets.get(found.bucket as usize);
        let meta = bucket.and_then(|bucket| bucket.meta.get(usize::from(found.place)));
        state_of(meta.copied().unwrap_or(0))
    }

    /// Returns the remaining ticks of a flow.
    pub(crate) fn left(&self, found: Found) -> Ticks {
        let bucket = self.buckets.get(found.bucket as usize);
        let meta = bucket.and_then(|bucket| bucket.meta.get(usize::from(found.place)));
        let left = meta.copied().unwrap_or(0).wrapping_sub(self.now as u16);
        Ticks(left & DEADLINE_BITS)
    }

    /// Sets the value stored with a flow.
    pub fn set_value(&mut self, found: Found, value: u32) {
        let bucket = self.buckets.get_mut(found.bucket as usize);
        let place = bucket.and_then(|bucket| bucket.values.get_mut(usize::from(found.place)));
        if let Some(place) = place {
            *place = value;
        }
    }

    /// Pins a flow that is not in the table.
    ///
    /// # Cost
    /// The primary bucket; if it is full, the secondary bucket; if both are full, see
    /// [`table`](self).
    pub fn insert(
        &mut self,
        hash: u64,
        key: &FlowKey<A>,
        value: u32,
        state: FlowState,
        timeout: Ticks,
    ) -> Inserted {
        if self.buckets.is_empty() {
            self.stats.refused += 1;
            return Inserted::Refused;
        }
        let deadline = self.now.wrapping_add(u32::from(timeout.0));
        let meta = pack(state, key.protocol, deadline);
        let (primary, secondary) = (self.primary(hash), self.secondary(hash));
        let over_quota =
            state == FlowState::HalfOpen && self.stats.half_open >= self.half_open_limit;
        let evicted = self.stats.evicted;
        let place = if over_quota {
            self.replace_half_open(primary, secondary)
        } else {
            let moves = if state == FlowState::HalfOpen {
                0
            } else {
                MOVES
            };
            match self.make_room(primary, secondary, 0..=MOVES_HALF_OPEN, false) {
                Some(place) => Some(place),
                None => self.make_room(primary, secondary, 0..=moves, true),
            }
        };
        let Some((index, place)) = place else {
            self.stats.refused += 1;
            return Inserted::Refused;
        };
        if index != primary {
            self.buckets[primary].displaced += 1; // make_room keeps it below its limit
        }
        self.buckets[index].put(place, key, value, meta);
        self.stats.made += 1;
        self.stats.live += 1;
        self.stats.half_open += u64::from(state == FlowState::HalfOpen);
        if self.stats.evicted == evicted {
            Inserted::Pinned
        } else {
            Inserted::Evicted
        }
    }

    /// Imports a flow that was pinned in another table.
    #[cold]
    pub(crate) fn restore(
        &mut self,
        key: &FlowKey<A>,
        value: u32,
        state: FlowState,
        timeout: Ticks,
    ) -> Inserted {
        let hash = self.hash(key);
        let made = self.stats.made;
        let inserted = self.insert(hash, key, value, state, timeout);
        self.stats.imported += self.stats.made - made;
        self.stats.made = made;
        inserted
    }

    /// Returns a number that changes whenever flows move: look a flow up again after the number has
    /// changed, since its [`Found`] is no longer valid.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.stats.made + self.stats.removed // an insert that moves or evicts also counts as made
    }

    /// Removes a flow.
    pub fn remove(&mut self, found: Found) {
        self.vacate(found.bucket as usize, usize::from(found.place));
        self.stats.removed += 1;
    }
}

impl<A> fmt::Debug for Table<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
