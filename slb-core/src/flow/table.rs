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

use core::fmt;
use core::net::IpAddr;
use core::ops::{Add, RangeInclusive};

use super::key::{Addresses, FlowKey, FlowProtocol};
use super::{Ticks, tick_of};
use crate::key::{Key, Purpose};
use crate::list::Like;
use crate::mem::Mem;
use crate::prefetch::prefetch;
use crate::time::{Clock, Instant};

/// Places in a bucket.
pub const SLOTS: usize = 3;

const DEADLINE_BITS: u16 = 0x0fff;
/// Deadlines further ahead than this count as past.
const AHEAD: u16 = 0x0800;
const PROTOCOL_SHIFT: u16 = 12;
const PROTOCOL_BITS: u16 = 0x3000;
const STATE_SHIFT: u16 = 14;
/// Every `meta` below has the state "empty".
const OCCUPIED: u16 = 0x4000;

/// The number of flows that may move to make room for an established one: enough for a table at 85
/// %.
const MOVES: usize = 3;
/// The number of flows that may move to make room for a half-open flow: fewer, since a flood may
/// consist of half-open flows.
const MOVES_HALF_OPEN: usize = 1;

/// Buckets swept in one go.
const SWEEP_STEP: usize = 256;
/// The maximum number of sweep steps in one call.
const SWEEP_STEPS: usize = 8;
/// The duration of a round over the table.
const SWEEP_ROUND_NANOS: u64 = 16_000_000_000;
/// A round that has taken longer than this many ticks (6 minutes) is finished at once.
const SWEEP_OVERDUE: u32 = 340;

// A deadline has to be recognized as past as long as it may be unswept.
const _: () = assert!(SWEEP_OVERDUE + Ticks::MAX.0 as u32 <= AHEAD as u32);

/// The progress of a flow's handshake, as seen from its client's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowState {
    /// Only SYNs were seen so far. Such flows are evicted first.
    HalfOpen = 1,
    /// A packet other than a SYN was seen, or the flow is UDP. Such flows are never evicted.
    Established = 2,
    /// The last packet was a FIN or RST. Such flows are evicted if no half-open flow can be.
    Closing = 3,
}

/// A bucket of three places for flows. An all-zero bucket is empty.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Bucket<A> {
    addresses: [A; SLOTS],
    ports: [u32; SLOTS],
    values: [u32; SLOTS],
    meta: [u16; SLOTS],
    /// The number of flows with this primary bucket that are in their secondary bucket.
    displaced: u8,
}

impl<A: Addresses> Bucket<A> {
    /// No flows.
    pub const EMPTY: Self = Self {
        addresses: [A::ZERO; SLOTS],
        ports: [0; SLOTS],
        values: [0; SLOTS],
        meta: [0; SLOTS],
        displaced: 0,
    };

    #[inline]
    fn find(&self, key: &FlowKey<A>, now: u32) -> Option<usize> {
        // Check all three places without branches, since the matching place cannot be predicted.
        let may_be = |i: usize| {
            u32::from((self.addresses[i] == key.addresses) & (self.ports[i] == key.ports))
        };
        let places = may_be(0) | may_be(1) << 1 | may_be(2) << 2;
        let first = (places.trailing_zeros() as usize).min(SLOTS - 1);
        if places != 0 && self.is(first, key, now) {
            return Some(first);
        }
        // The match has another protocol, or has expired: check the other places.
        (first + 1..SLOTS).find(|&i| places >> i & 1 != 0 && self.is(i, key, now))
    }

    /// Returns the place of an established flow; `None` if the flow is not here, or if this quick
    /// check cannot decide.
    #[inline(always)] // the mux's loop over a burst
    fn established(&self, key: &FlowKey<A>, now: u32) -> Option<usize> {
        // The matching place cannot be predicted, so it is computed from parts of the keys without
        // branches, and only that place is compared.
        let may_be = |i: usize| {
            let is_like = self.addresses[i].part() == key.addresses.part();
            usize::from(is_like & (self.ports[i] == key.ports))
        };
        let place = may_be(1) | may_be(2) << 1;
        let meta = *self.meta.get(place)?;
        let (addresses, ports) = (self.addresses.get(place)?, self.ports.get(place)?);
        let is_it = *addresses == key.addresses
            && *ports == key.ports
            && meta & !DEADLINE_BITS == pack(FlowState::Established, key.protocol, 0)
            && is_before_deadline(meta, now);
        is_it.then_some(place)
    }

    /// Returns true if slot `i`, which has the addresses and ports of the flow, holds the flow.
    #[inline]
    fn is(&self, i: usize, key: &FlowKey<A>, now: u32) -> bool {
        let protocol = (key.protocol as u16) << PROTOCOL_SHIFT;
        self.meta[i] & PROTOCOL_BITS == protocol && is_alive(self.meta[i], now)
    }

    /// Returns a place that is empty, or whose flow is past its deadline.
    #[inline]
    fn vacant(&self, now: u32) -> Option<usize> {
        (0..SLOTS).find(|&i| !is_alive(self.meta[i], now))
    }

    fn key(&self, i: usize) -> FlowKey<A> {
        let protocol = match (self.meta[i] & PROTOCOL_BITS) >> PROTOCOL_SHIFT {
            0 => FlowProtocol::Tcp,
            1 => FlowProtocol::Udp,
            _ => FlowProtocol::Other,
        };
        FlowKey {
            addresses: self.addresses[i],
            ports: self.ports[i],
            protocol,
        }
    }

    fn flow(&self, i: usize) -> Flow {
        let (source, destination) = self.addresses[i].unpack();
        let [a, b, c, d] = self.ports[i].to_le_bytes();
        Flow {
            source,
            destination,
            protocol: self.key(i).protocol,
            ports: (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
            value: self.values[i],
            state: state_of(self.meta[i]),
        }
    }

    fn holds(&self, i: usize, key: &FlowKey<A>) -> bool {
        self.meta[i] >= OCCUPIED && self.key(i) == *key
    }

    fn put(&mut self, i: usize, key: &FlowKey<A>, value: u32, meta: u16) {
        self.addresses[i] = key.addresses;
        self.ports[i] = key.ports;
        self.values[i] = value;
        self.meta[i] = meta;
    }
}

/// Returns true if there is a flow before its deadline.
#[inline]
const fn is_alive(meta: u16, now: u32) -> bool {
    (meta >= OCCUPIED) & is_before_deadline(meta, now)
}

#[inline]
const fn is_before_deadline(meta: u16, now: u32) -> bool {
    meta.wrapping_sub(now as u16) & DEADLINE_BITS < AHEAD
}

#[inline]
const fn is_half_open(meta: u16) -> bool {
    meta >> STATE_SHIFT == FlowState::HalfOpen as u16
}

/// Returns true if there is a flow that may be evicted.
#[inline]
const fn is_transitory(meta: u16) -> bool {
    is_half_open(meta) || meta >> STATE_SHIFT == FlowState::Closing as u16
}

#[inline]
const fn pack(state: FlowState, protocol: FlowProtocol, deadline: u32) -> u16 {
    (state as u16) << STATE_SHIFT
        | (protocol as u16) << PROTOCOL_SHIFT
        | deadline as u16 & DEADLINE_BITS
}

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

#[inline]
const fn state_of(meta: u16) -> FlowState {
    match meta >> STATE_SHIFT {
        1 => FlowState::HalfOpen,
        2 => FlowState::Established,
        _ => FlowState::Closing,
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

/// Counters of a table since its creation, and its occupancy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Number of flows pinned.
    pub made: u64,
    /// Number of flows that expired.
    pub expired: u64,
    /// Number of half-open and closing flows that were evicted.
    pub evicted: u64,
    /// Number of flows that found no place.
    pub refused: u64,
    /// Number of flows that the caller removed.
    pub removed: u64,
    /// Number of present flows; expired flows count until they are collected.
    pub live: u64,
    /// Number of half-open flows among the present flows.
    pub half_open: u64,
    /// Number of places in the table.
    pub places: u64,
    /// Number of flows imported from another table, which `made` does not include.
    pub imported: u64,
}

impl Add for FlowStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            made: self.made + other.made,
            expired: self.expired + other.expired,
            evicted: self.evicted + other.evicted,
            refused: self.refused + other.refused,
            removed: self.removed + other.removed,
            live: self.live + other.live,
            half_open: self.half_open + other.half_open,
            places: self.places + other.places,
            imported: self.imported + other.imported,
        }
    }
}

/// A flow of the table, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client.
    pub source: IpAddr,
    /// The VIP.
    pub destination: IpAddr,
    /// The protocol, which gives `ports` its meaning.
    pub protocol: FlowProtocol,
    /// Source and destination port; for other protocols, the first has the value that
    /// [`FlowProtocol`] describes.
    pub ports: (u16, u16),
    /// The value stored with the flow.
    pub value: u32,
    /// The state of the flow.
    pub state: FlowState,
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

#[derive(Clone, Copy, Debug, Default)]
struct Sweep {
    /// The next bucket to sweep.
    at: usize,
    /// Nanoseconds between two steps.
    interval: u64,
    /// The time of the next step.
    due: u64,
    /// The tick in which this round began.
    round: u32,
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

    /// Returns the flow at a place of the table, if it has not expired, and its remaining ticks.
    pub(crate) fn at(&self, place: usize) -> Option<(FlowKey<A>, u32, FlowState, Ticks)> {
        let (bucket, place) = (self.buckets.get(place / SLOTS)?, place % SLOTS);
        let meta = bucket.meta[place];
        let left = meta.wrapping_sub(self.now as u16) & DEADLINE_BITS;
        is_alive(meta, self.now).then(|| {
            let (key, value) = (bucket.key(place), bucket.values[place]);
            (key, value, state_of(meta), Ticks(left))
        })
    }

    /// Returns the next place from `first` on and before `end` with a live flow that matches
    /// `like`.
    pub(crate) fn next_like(&self, first: usize, end: usize, like: &Like<A>) -> Option<usize> {
        let buckets = self.buckets.get(first / SLOTS..end.div_ceil(SLOTS))?;
        let first_bucket = first / SLOTS;
        for (number, bucket) in (first_bucket..).zip(buckets) {
            for i in 0..SLOTS {
                let is_it = like.is_like(bucket.addresses[i], bucket.ports[i]);
                if is_it & is_alive(bucket.meta[i], self.now) {
                    let place = number * SLOTS + i;
                    if (first..end).contains(&place) {
                        return Some(place);
                    }
                }
            }
        }
        None
    }

    /// Returns the number of places in the table.
    pub(crate) fn places(&self) -> usize {
        self.buckets.len() * SLOTS
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

    /// Frees a place in either bucket by up to `moves` moves of other flows, or by evicting a
    /// transitory flow if that is allowed.
    fn make_room(
        &mut self,
        primary: usize,
        secondary: usize,
        moves: RangeInclusive<usize>,
        evict: bool,
    ) -> Option<(usize, usize)> {
        for moves in moves {
            if let Some(place) = self.clear_place(primary, moves, evict) {
                return Some((primary, place));
            }
            if self.may_displace(primary, secondary)
                && let Some(place) = self.clear_place(secondary, moves, evict)
            {
                return Some((secondary, place));
            }
        }
        None
    }

    /// Frees a place in a bucket by up to `moves` moves, each making room for the next.
    fn clear_place(&mut self, index: usize, moves: usize, evict: bool) -> Option<usize> {
        if let Some(place) = self.reclaim(index) {
            return Some(place);
        }
        if evict && let Some(place) = self.evict(index, is_transitory) {
            return Some(place);
        }
        let moves = moves.checked_sub(1)?;
        (0..SLOTS).find(|&place| self.move_away(index, place, moves, evict))
    }

    /// Returns true if a flow with the primary bucket `primary` may be in `secondary`.
    fn may_displace(&self, primary: usize, secondary: usize) -> bool {
        primary != secondary
            && self
                .buckets
                .get(primary)
                .is_some_and(|b| b.displaced < u8::MAX)
    }

    /// Returns an empty place of a bucket, after clearing the place of an expired flow if
    /// necessary.
    fn reclaim(&mut self, index: usize) -> Option<usize> {
        let bucket = self.buckets.get(index)?;
        let place = bucket.vacant(self.now)?;
        if bucket.meta[place] >= OCCUPIED {
            self.vacate(index, place);
            self.stats.expired += 1;
        }
        Some(place)
    }

    /// Moves a flow of a full bucket to its other one, if `moves` more make room there.
    fn move_away(&mut self, from: usize, place: usize, moves: usize, evict: bool) -> bool {
        let bucket = self.buckets[from];
        let key = bucket.key(place);
        let hash = self.hash(&key);
        let (primary, secondary) = (self.primary(hash), self.secondary(hash));
        let to = if from == primary { secondary } else { primary };
        if to == from || to == secondary && !self.may_displace(primary, secondary) {
            return false;
        }
        let Some(vacant) = self.clear_place(to, moves, evict) else {
            return false;
        };
        if !self.buckets[from].holds(place, &key) {
            return false; // making room there was circular, and has moved the flow already
        }
        self.buckets[to].put(vacant, &key, bucket.values[place], bucket.meta[place]);
        self.buckets[from].meta[place] = 0;
        if to == secondary {
            self.buckets[primary].displaced += 1;
        } else {
            self.buckets[primary].displaced -= 1;
        }
        true
    }

    /// Evicts a half-open flow of either bucket, and returns its place.
    fn replace_half_open(&mut self, primary: usize, secondary: usize) -> Option<(usize, usize)> {
        if let Some(place) = self.evict(primary, is_half_open) {
            return Some((primary, place));
        }
        let secondary = self.may_displace(primary, secondary).then_some(secondary)?;
        Some((secondary, self.evict(secondary, is_half_open)?))
    }

    /// Evicts one of the flows of a bucket that `may_go`: half-open flows before others, so that a
    /// flood of SYNs evicts its own first, and among them the one that would expire first.
    fn evict(&mut self, index: usize, may_go: fn(u16) -> bool) -> Option<usize> {
        let bucket = self.buckets.get(index)?;
        let order = |place: &usize| {
            let meta = bucket.meta[*place];
            let left = meta.wrapping_sub(self.now as u16) & DEADLINE_BITS;
            (!is_half_open(meta), left)
        };
        let place = (0..SLOTS)
            .filter(|&place| may_go(bucket.meta[place]))
            .min_by_key(order)?;
        self.vacate(index, place);
        self.stats.evicted += 1;
        Some(place)
    }

    /// Empties a place.
    fn vacate(&mut self, index: usize, place: usize) {
        let bucket = self.buckets[index];
        if bucket.meta[place] < OCCUPIED {
            return;
        }
        let primary = self.primary(self.hash(&bucket.key(place)));
        if primary != index {
            self.buckets[primary].displaced -= 1;
        }
        self.buckets[index].meta[place] = 0;
        self.stats.live -= 1;
        self.stats.half_open -= u64::from(is_half_open(bucket.meta[place]));
    }

    /// Advances the clock, and sweeps the buckets that are due.
    #[inline]
    pub fn advance(&mut self, now: Instant) {
        let before = self.now;
        let now = self.clock.advance(now);
        self.now = tick_of(now);
        if now.as_nanos() >= self.sweep.due {
            self.sweep(now, before);
        }
    }

    #[cold]
    fn sweep(&mut self, now: Instant, before: u32) {
        let nanos = now.as_nanos();
        let count = self.buckets.len();
        if count == 0 {
            self.sweep.due = u64::MAX;
            return;
        }
        if self.now.wrapping_sub(self.sweep.round) > SWEEP_OVERDUE {
            // The last call was minutes ago: catch up before deadlines wrap.
            let all = self.now.wrapping_sub(before) > u32::from(Ticks::MAX.0);
            for index in 0..count {
                self.sweep_bucket(index, all);
            }
            self.sweep.at = 0;
            self.sweep.round = self.now;
            self.sweep.due = nanos.saturating_add(self.sweep.interval);
            return;
        }
        for _ in 0..SWEEP_STEPS {
            for _ in 0..SWEEP_STEP.min(count) {
                self.sweep_bucket(self.sweep.at, false);
                self.sweep.at += 1;
                if self.sweep.at == count {
                    self.sweep.at = 0;
                    self.sweep.round = self.now;
                }
            }
            self.sweep.due = self.sweep.due.saturating_add(self.sweep.interval);
            if self.sweep.due > nanos {
                return;
            }
        }
    }

    /// Removes expired flows, or all flows, from a bucket.
    #[inline]
    fn sweep_bucket(&mut self, index: usize, all: bool) {
        for place in 0..SLOTS {
            let meta = self.buckets[index].meta[place];
            if meta >= OCCUPIED && (all || !is_alive(meta, self.now)) {
                self.vacate(index, place);
                self.stats.expired += 1;
            }
        }
    }

    /// Returns the table's counters.
    pub fn stats(&self) -> FlowStats {
        self.stats
    }

    /// Yields every live flow.
    pub fn iter(&self) -> impl Iterator<Item = Flow> + '_ {
        self.iter_from(0).map(|(_, flow)| flow)
    }

    /// Yields every live flow in the buckets from `first` on, with the number of its bucket, so
    /// that a caller can list flows in parts.
    pub fn iter_from(&self, first: usize) -> impl Iterator<Item = (usize, Flow)> + '_ {
        let buckets = self.buckets.iter().enumerate().skip(first);
        buckets.flat_map(move |(number, bucket)| {
            (0..SLOTS)
                .filter(|&i| is_alive(bucket.meta[i], self.now))
                .map(move |i| (number, bucket.flow(i)))
        })
    }
}

impl<A> fmt::Debug for Table<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
