//! The connections of one address family, found by either of their tuples.
//!
//! Connections are stored in a slab and never move; an [`Index`] finds them by both tuples. An
//! established connection is never forgotten before it expires, unless it is over and the table is
//! full. A connection that was not answered, or not continued by its opener, makes room for new
//! ones. Unanswered connections get at most half of the places, and at least an eighth if others
//! can be evicted. Flows of protocols without a handshake count as established up to three quarters
//! of the places (see [`Ages`]).
//!
//! A sweep visits each connection about once a second, a few at a time, and ends those that have
//! expired.

use core::fmt;

use super::ages::{AgeLink, Ages, Kind};
use super::connection::{Connection, Key, tick_of};
use super::index::{Index, IndexBucket};
use super::tcp::{ConnectionState, Direction};
use crate::flow::Addresses;
use crate::mem::Mem;
use crate::prefetch::prefetch;
use crate::time::Instant;

/// The duration of one round of the sweep.
const ROUND_NANOS: u64 = 1 << 30;
/// The maximum number of connections that one call visits: some 20 µs.
const SWEEP_STEP: usize = 2048;

const WAYS: [Direction; 2] = [Direction::Inward, Direction::Outward];

/// Marks a free slot.
pub(crate) const NONE: u32 = u32::MAX;

/// Counters of the connection table, and its occupancy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatStats {
    /// Number of places for connections.
    pub places: u64,
    /// Number of present connections.
    pub live: u64,
    /// Maximum number of simultaneous connections so far.
    pub most: u64,
    /// Number of connections made.
    pub made: u64,
    /// Number of connections that expired.
    pub expired: u64,
    /// Number of connections removed for other reasons.
    pub removed: u64,
    /// Number of new connections refused because the table was full.
    pub refused: u64,
    /// Number of removed connections that made room for new ones: unanswered, answered but not
    /// continued, or over.
    pub evicted: u64,
    /// Number of present connections that are unanswered.
    pub unanswered: u64,
    /// Number of connections imported from another table, which `made` does not include.
    pub imported: u64,
}

impl core::ops::Add for NatStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            places: self.places + other.places,
            live: self.live + other.live,
            most: self.most + other.most,
            made: self.made + other.made,
            expired: self.expired + other.expired,
            removed: self.removed + other.removed,
            refused: self.refused + other.refused,
            evicted: self.evicted + other.evicted,
            unanswered: self.unanswered + other.unanswered,
            imported: self.imported + other.imported,
        }
    }
}

/// The reason why a connection was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The table has no free place.
    Full,
    /// Another connection has one of the tuples.
    Taken,
}

/// The decision of the sweep about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Stays,
    Ends,
    /// The decision is postponed: the sweep continues with this connection next time.
    Waits,
}

/// The memory of a connection table.
#[derive(Debug)]
pub struct ConnectionMemory<'m, A> {
    /// A place for each connection.
    pub connections: Mem<'m, Connection<A>>,
    /// Index buckets, as many as
    /// [`NatTable::index_buckets_for`](super::NatTable::index_buckets_for) returns.
    pub index: Mem<'m, IndexBucket>,
    /// Links, as many as connections, that order unestablished connections by age. Connections
    /// without one are never evicted.
    pub ages: Mem<'m, AgeLink>,
}

/// Connections of one family.
pub(crate) struct Connections<'m, A> {
    slab: Mem<'m, Connection<A>>,
    index: Index<'m>,
    ages: Ages<'m>,
    key: [u64; 2],
    /// The first free place that was used before.
    free: u32,
    /// The number of places that were ever used.
    used: u32,
    /// The present tick.
    now: u32,
    /// The position of the sweep, and its time.
    swept: u32,
    swept_at: u64,
    /// The number of places that a purge still has to visit.
    to_purge: u32,
    stats: NatStats,
}

impl<'m, A: Addresses> Connections<'m, A> {
    pub(crate) fn new(memory: ConnectionMemory<'m, A>, key: [u64; 2]) -> Self {
        let ConnectionMemory {
            connections,
            index,
            ages,
        } = memory;
        let places = connections.len().min(NONE as usize) as u64;
        Self {
            slab: connections,
            index: Index::new(index),
            ages: Ages::new(ages, places),
            key,
            free: NONE,
            used: 0,
            now: 0,
            swept: 0,
            swept_at: 0,
            to_purge: 0,
            stats: NatStats {
                places,
                ..NatStats::default()
            },
        }
    }

    #[inline]
    pub(crate) fn hash(&self, key: &Key<A>) -> u64 {
        key.hash(self.key)
    }

    /// Starts loading the index's line.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Returns the most likely connection of a hash, after prefetching its line; or [`NONE`].
    #[inline]
    pub(crate) fn candidate(&self, hash: u64) -> u32 {
        let number = self.index.first(hash).unwrap_or(NONE);
        if let Some(connection) = self.slab.get(number as usize) {
            prefetch(connection);
        }
        number
    }

    /// Returns the connection of a key, even if it has expired; checks `candidate` first.
    ///
    /// A candidate that was found before another packet of the burst was processed may have lost
    /// its outside tuple since.
    #[inline]
    pub(crate) fn find_from(&self, candidate: u32, hash: u64, key: &Key<A>) -> Option<u32> {
        let candidate_is_it = self
            .slab
            .get(candidate as usize)
            .is_some_and(|connection| connection.is(key) && !connection.is_superseded());
        if candidate_is_it {
            return Some(candidate);
        }
        self.find(hash, key)
    }

    /// Returns the connection of a key, even if it has expired.
    pub(crate) fn find(&self, hash: u64, key: &Key<A>) -> Option<u32> {
        let is_it = |number: u32| {
            self.slab
                .get(number as usize)
                .is_some_and(|connection| connection.is(key))
        };
        self.index.find(hash, is_it)
    }

    /// Returns true if a tuple is free for a new connection.
    pub(crate) fn is_free(&self, key: &Key<A>) -> bool {
        self.find(self.hash(key), key).is_none()
    }

    /// Returns true if a tuple belongs to a connection that has not expired, even if it is over.
    pub(crate) fn is_in_use(&self, key: &Key<A>) -> bool {
        let connection = self
            .find(self.hash(key), key)
            .and_then(|number| self.get(number));
        connection
            .is_some_and(|connection| !self.is_past(connection) && !connection.is_superseded())
    }

    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&Connection<A>> {
        self.slab.get(number as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut Connection<A>> {
        self.slab.get_mut(number as usize)
    }

    /// Returns a connection, and the lists that may contain it.
    #[inline]
    pub(crate) fn get_mut_and_ages(
        &mut self,
        number: u32,
    ) -> Option<(&mut Connection<A>, &mut Ages<'m>)> {
        let connection = self.slab.get_mut(number as usize)?;
        Some((connection, &mut self.ages))
    }

    /// The present tick.
    #[inline]
    pub(crate) fn now(&self) -> u32 {
        self.now
    }

    /// Returns true if a connection has expired.
    #[inline]
    pub(crate) fn is_past(&self, connection: &Connection<A>) -> bool {
        // Ticks wrap: a deadline up to half of their range before now is in the past.
        (self.now.wrapping_sub(connection.deadline) as i32) >= 0
    }

    /// Returns the connection of a key that a new one may replace: it is over, or has expired.
    pub(crate) fn leftover(&self, key: &Key<A>) -> Option<u32> {
        let number = self.find(self.hash(key), key)?;
        let old = self.get(number)?;
        (old.state().is_over() || self.is_past(old)).then_some(number)
    }

    /// Adds a connection with both its tuples.
    pub(crate) fn insert(&mut self, connection: Connection<A>) -> Result<u32, Refused> {
        let number = self.put(connection, &WAYS)?;
        self.ages.push(number, Kind::Unanswered);
        self.stats.made += 1;
        Ok(number)
    }

    /// Stores a connection in a free place, with one of its tuples or both.
    fn put(&mut self, connection: Connection<A>, ways: &[Direction]) -> Result<u32, Refused> {
        let names = WAYS.map(|way| {
            let key = connection.key(way);
            (key, self.hash(&key), ways.contains(&way))
        });
        let is_taken =
            |(key, hash, counts): &(Key<A>, u64, bool)| *counts && self.find(*hash, key).is_some();
        if names.iter().any(is_taken) {
            return Err(Refused::Taken);
        }
        let Some(number) = self.take_place() else {
            self.stats.refused += 1;
            return Err(Refused::Full);
        };
        let Self {
            slab, index, key, ..
        } = self;
        let hashes_of = |number: u32| match slab.get(number as usize) {
            Some(other) => WAYS.map(|way| other.key(way).hash(*key)),
            None => [0; 2],
        };
        let [(_, inward, has_inward), (_, outward, has_outward)] = names;
        let is_in = !has_inward || index.insert(inward, number, hashes_of);
        let inserted = is_in && {
            let both = !has_outward || index.insert(outward, number, hashes_of);
            if !both && has_inward {
                index.remove(inward, number);
            }
            both
        };
        if !inserted {
            self.give_back(number);
            self.stats.refused += 1;
            return Err(Refused::Full);
        }
        if let Some(place) = self.slab.get_mut(number as usize) {
            *place = connection;
        }
        self.stats.live += 1;
        self.stats.most = self.stats.most.max(self.stats.live);
        Ok(number)
    }

    /// Adds an imported connection, which was in the given list. A superseded connection gets only its
    /// inside tuple.
    ///
    /// # Errors
    /// One of the tuples is taken, or there is no free place. No connection is evicted.
    #[cold]
    pub(crate) fn restore(
        &mut self,
        connection: Connection<A>,
        list: Option<Kind>,
        is_superseded: bool,
    ) -> Result<u32, Refused> {
        let unanswered = self.ages.count(Kind::Unanswered);
        if list == Some(Kind::Unanswered) && unanswered >= self.stats.places.div_ceil(2) {
            self.stats.refused += 1;
            return Err(Refused::Full);
        }
        let names = if is_superseded { &WAYS[1..] } else { &WAYS[..] };
        let (mut connection, mut list) = (connection, list);
        let is_flow = connection.is_established_flow();
        if is_flow && !self.ages.keep_flow() {
            connection.hold_back();
            list = Some(Kind::Answered);
        }
        let number = self.put(connection, names).inspect_err(|_| {
            if connection.is_established_flow() {
                self.ages.release_flow();
            }
        })?;
        if let Some(kind) = list {
            self.ages.push(number, kind);
        }
        self.stats.imported += 1;
        Ok(number)
    }

    /// Returns the list that contains a connection.
    pub(crate) fn list_of(&self, number: u32) -> Option<Kind> {
        self.ages.kind(number)
    }

    /// Returns the connection to evict before a new one is made.
    pub(crate) fn to_evict(&self) -> Option<u32> {
        let unanswered = self.ages.count(Kind::Unanswered);
        let oldest = self.ages.oldest(Kind::Unanswered);
        if unanswered >= self.stats.places.div_ceil(2) {
            return oldest;
        }
        if self.stats.live < self.stats.places {
            return None;
        }
        // An eighth of the slots stays for unanswered connections, which need time to be answered.
        if unanswered > self.stats.places / 8 {
            return oldest;
        }
        self.ages.oldest(Kind::Answered).or(oldest)
    }

    /// Counts the connection removed last as evicted.
    pub(crate) fn note_evicted(&mut self) {
        self.stats.evicted += 1;
    }

    fn take_place(&mut self) -> Option<u32> {
        if self.free != NONE {
            let number = self.free;
            self.free = self.slab.get(number as usize)?.deadline;
            return Some(number);
        }
        let number = self.used;
        if u64::from(number) >= self.stats.places {
            return None;
        }
        self.used += 1;
        Some(number)
    }

    fn give_back(&mut self, number: u32) {
        let next = self.free;
        if let Some(place) = self.slab.get_mut(number as usize) {
            place.free(next);
            self.free = number;
        }
    }

    /// Removes a connection.
    pub(crate) fn remove(&mut self, number: u32) {
        let Some(connection) = self.slab.get(number as usize).filter(|c| !c.is_free()) else {
            return;
        };
        for key in WAYS.map(|way| connection.key(way)) {
            self.index.remove(self.hash(&key), number);
        }
        if connection.is_established_flow() {
            self.ages.release_flow();
        }
        self.ages.remove(number);
        self.give_back(number);
        self.stats.live -= 1;
        self.stats.removed += 1;
    }

    /// Removes a connection's outside tuple, which another connection takes. The inside tuple
    /// stays, so that late answers of the server do not expose the server's address. Returns false
    /// if the whole connection has to be removed.
    pub(crate) fn supersede(&mut self, number: u32) -> bool {
        let Some(connection) = self.slab.get_mut(number as usize).filter(|c| !c.is_free()) else {
            return false;
        };
        if connection.is_established_flow() {
            self.ages.release_flow();
        }
        connection.supersede();
        let (key, protocol) = (connection.key(Direction::Inward), connection.protocol());
        let hash = self.hash(&key);
        self.index.remove(hash, number);
        self.ages.note(number, protocol, ConnectionState::Closed);
        // Both keys may share a slot of the index after a collision.
        self.find(hash, &key) != Some(number)
    }

    /// Returns true if a connection no longer has an outside tuple.
    pub(crate) fn is_superseded(&self, number: u32) -> bool {
        self.get(number).is_some_and(|connection| {
            let key = connection.key(Direction::Inward);
            connection.is_superseded() && self.find(self.hash(&key), &key) != Some(number)
        })
    }

    /// Moves the clock to a moment of a [`Clock`](crate::time::Clock).
    #[inline]
    pub(crate) fn advance(&mut self, now: Instant) {
        self.now = tick_of(now);
    }

    /// Schedules an early visit of every connection, expired or not.
    pub(crate) fn purge(&mut self) {
        self.to_purge = self.used;
    }

    /// Returns true if [`sweep`](Self::sweep) has work to do.
    #[inline]
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.used != 0
            && (self.to_purge != 0 || now.as_nanos().saturating_sub(self.swept_at) > 1 << 20)
    }

    /// Visits a bounded share of the connections: calls `visit` for each expired connection, and
    /// during a purge for every connection, and applies its decision.
    pub(crate) fn sweep(
        &mut self,
        now: Instant,
        mut visit: impl FnMut(u32, &mut Connection<A>, bool) -> Fate,
    ) {
        let nanos = now.as_nanos();
        let passed = nanos.saturating_sub(self.swept_at).min(ROUND_NANOS);
        let due = (u64::from(self.used) * passed).div_ceil(ROUND_NANOS) as usize;
        let purging = (self.to_purge as usize).min(SWEEP_STEP);
        let steps = due.max(purging).min(SWEEP_STEP).min(self.used as usize);
        self.swept_at = nanos;
        for _ in 0..steps {
            let number = self.swept;
            let Some(connection) = self.slab.get(number as usize) else {
                return;
            };
            if !connection.is_free() {
                let is_past = self.is_past(connection);
                if (is_past || self.to_purge != 0)
                    && let Some(connection) = self.slab.get_mut(number as usize)
                {
                    match visit(number, connection, is_past) {
                        Fate::Stays => {}
                        Fate::Waits => return,
                        Fate::Ends => {
                            self.remove(number);
                            self.stats.removed -= u64::from(is_past);
                            self.stats.expired += u64::from(is_past);
                        }
                    }
                }
            }
            self.to_purge = self.to_purge.saturating_sub(1);
            self.swept = number + 1;
            if self.swept >= self.used {
                self.swept = 0;
            }
        }
    }

    pub(crate) fn stats(&self) -> NatStats {
        NatStats {
            unanswered: self.ages.count(Kind::Unanswered),
            ..self.stats
        }
    }

    /// Yields the connections from a place on, with their places.
    pub(crate) fn iter_from(
        &self,
        first: usize,
    ) -> impl Iterator<Item = (usize, &Connection<A>)> + '_ {
        let used = self.slab.get(..self.used as usize).unwrap_or_default();
        let places = used.iter().enumerate().skip(first);
        places.filter(|(_, c)| !c.is_free() && !self.is_past(c))
    }

    /// Returns the connection at a place, unless it has expired.
    pub(crate) fn at(&self, place: u32) -> Option<&Connection<A>> {
        let connection = self.slab.get(place as usize)?;
        (!connection.is_free() && !self.is_past(connection)).then_some(connection)
    }

    /// Returns the number of places that were ever used.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// Yields every connection, including expired ones.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Connection<A>> + '_ {
        let used = self.slab.get(..self.used as usize).unwrap_or_default();
        used.iter().filter(|connection| !connection.is_free())
    }

    /// Yields every connection that has not expired.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection<A>> + '_ {
        self.iter_from(0).map(|(_, connection)| connection)
    }

    /// Counts the connections in each state.
    pub(crate) fn count_states(&self, counts: &mut [u64; ConnectionState::ALL.len()]) {
        for connection in self.iter() {
            counts[connection.shown_state() as usize - 1] += 1;
        }
    }
}

impl<A> fmt::Debug for Connections<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
