//! Bitmaps of the ports of an address that are taken for a destination, to find a free port without
//! trying one after the other.
//!
//! A *pool* consists of the ports of one user of an address for one destination (remote address,
//! remote port, protocol): a backend's block of SNAT ports, or all ports of a `source_nat` address.
//! A port can be free in one pool and taken in others, so N ports carry N connections to each
//! destination.
//!
//! ```text
//!  place   0 2 4 6 … N-2 | 1 3 5 … N-1      even ports first, then odd ones: a parity is a range
//!  page    64 places, a bit for each that is taken
//!  summary 64 pages,  a bit for each that is full
//! ```
//!
//! Only nonzero words are stored, in a hash table with entries of 16 bytes, whose key is the keyed
//! hash of pool and page. A connection adds at most one page, and a summary needs 64 connections,
//! so a table for C connections never runs out. A search reads a page; if it is full, the search
//! reads summaries (16 cover 65 536 ports) and the page that they point to.
//!
//! The table need not be complete, since the connection table decides whether a tuple is free. If
//! an entry finds no room, its ports count as free, and the search tries a bounded number of them.

use super::connection::Side;
use crate::flow::Addresses;
use crate::hash::fold_multiply;
use crate::key::{Key, Purpose};
use crate::mem::{Mem, Memory};

/// Entries in a bucket.
const SLOTS: usize = 4;

/// A word of a bitmap and its key; the word of a free entry is zero.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key: u64,
    bits: u64,
}

/// Four words of bitmaps, in a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct PortBucket {
    entries: [Entry; SLOTS],
}

const _: () = assert!(size_of::<PortBucket>() == 64);

impl PortBucket {
    /// A bucket without entries.
    pub const EMPTY: Self = Self {
        entries: [Entry { key: 0, bits: 0 }; SLOTS],
    };
}

/// The ports of translated connections: the number of connections that use each SNAT port, and
/// bitmaps by destination.
#[derive(Debug)]
pub struct PortTable<'m> {
    users: Mem<'m, u32>,
    buckets: Mem<'m, PortBucket>,
    key: [u64; 2],
}

/// The ports of one user of an address for one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    hash: u64,
    /// The number of places: even, and at most 65 536.
    count: u32,
}

/// The owner of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A backend's block of SNAT ports, by the index of its first granule.
    Block(usize),
    /// The balancer's own address, as seen by the vm at a port, or by all vms.
    Peer(u16),
}

impl Pool {
    /// Returns the number of places.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Returns the index of a place in the pool's bitmap: even places come first.
    pub(crate) fn index_of(&self, place: u32) -> u32 {
        (place & 1) * (self.count / 2) + place / 2
    }

    /// Returns the place at an index of the bitmap.
    pub(crate) fn place_of(&self, index: u32) -> u32 {
        let half = self.count / 2;
        if index < half {
            2 * index
        } else {
            2 * (index - half) + 1
        }
    }

    /// Returns the bits of a page without a place.
    fn beyond(&self, page: u32) -> u64 {
        beyond(self.count, page)
    }

    /// Returns the bits of a summary without a page.
    fn pages_beyond(&self, summary: u32) -> u64 {
        beyond(self.count.div_ceil(64), summary)
    }

    fn page_key(&self, page: u32) -> u64 {
        word_key(self.hash, page)
    }

    fn summary_key(&self, summary: u32) -> u64 {
        word_key(self.hash, 1 << 16 | summary)
    }
}

/// Returns the bits of a bitmap's `word`-th word beyond its `count` bits.
fn beyond(count: u32, word: u32) -> u64 {
    match count.saturating_sub(64 * word) {
        0 => u64::MAX,
        left @ 1..64 => u64::MAX << left,
        _ => 0,
    }
}

/// Returns the key of a pool's word.
fn word_key(pool: u64, word: u32) -> u64 {
    // Digits of pi: odd, with half of the bits set. The constant need not be secret, since the
    // pool's hash is.
    const SPREAD: u64 = 0xc0ac_29b7_c97c_50dd;
    fold_multiply(pool ^ u64::from(word), SPREAD)
}

impl<'m> PortTable<'m> {
    /// Returns the number of [`PortBucket`]s for `connections` connections: 24.4 bytes for each,
    /// enough if all have different destinations.
    pub const fn buckets_for(connections: usize) -> usize {
        // Two of three slots are used, and one entry in 64 is a summary.
        let entries = connections.saturating_add(connections / 63);
        entries.saturating_mul(3).div_ceil(2 * SLOTS)
    }

    /// Makes a table in the given memory. `users` should have
    /// [`Snapshot::snat_port_places`](crate::snapshot::Snapshot::snat_port_places) elements; users
    /// of ports beyond its end are not counted. Without `buckets`, ports are tried one by one.
    pub fn new(mut users: Mem<'m, u32>, mut buckets: Mem<'m, PortBucket>, key: Key) -> Self {
        users.fill(0);
        buckets.fill(PortBucket::EMPTY);
        Self {
            users,
            buckets,
            key: key.derive(Purpose::PortTable),
        }
    }

    /// Makes a table for `ports` SNAT ports and `connections` connections; returns `None` if the
    /// memory is used up.
    pub fn build(
        ports: usize,
        connections: usize,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Option<Self> {
        let users = memory.take(ports, 0)?;
        let buckets = memory.take(Self::buckets_for(connections), PortBucket::EMPTY)?;
        Some(Self::new(users, buckets, key))
    }

    /// Clears the table.
    pub(crate) fn clear(&mut self) {
        self.users.fill(0);
        self.buckets.fill(PortBucket::EMPTY);
    }

    /// Counts a connection of a SNAT port. Returns true if it is the only one.
    pub(crate) fn add_user(&mut self, place: usize) -> bool {
        let Some(users) = self.users.get_mut(place) else {
            return false;
        };
        *users = users.saturating_add(1);
        *users == 1
    }

    /// Removes a connection of a SNAT port. Returns true if it was the only one.
    pub(crate) fn remove_user(&mut self, place: usize) -> bool {
        let Some(users) = self.users.get_mut(place).filter(|users| **users != 0) else {
            return false;
        };
        *users -= 1;
        *users == 0
    }

    /// Returns the pool of an owner with `count` ports for one destination: the sender of packets
    /// with the tuple `side`.
    pub(crate) fn pool<A: Addresses>(
        &self,
        owner: Owner,
        side: &Side<A>,
        protocol: u8,
        count: usize,
    ) -> Pool {
        let owner = match owner {
            Owner::Block(first) => (first as u64) << 24 & !(1 << 63),
            Owner::Peer(zone) => 1 << 63 | u64::from(zone) << 24,
        };
        let rest = owner | u64::from(protocol) << 16 | u64::from(side.ports & 0xffff);
        Pool {
            hash: side.addresses.hash(rest, self.key),
            count: count.min(1 << 16) as u32 & !1,
        }
    }

    /// Marks a place as taken.
    pub(crate) fn take(&mut self, pool: &Pool, place: u32) {
        let index = pool.index_of(place);
        let page = index / 64;
        if place >= pool.count || !self.set(pool.page_key(page), index % 64) {
            return;
        }
        if self.word(pool.page_key(page)) | pool.beyond(page) == u64::MAX {
            self.set(pool.summary_key(page / 64), page % 64);
        }
    }

    /// Marks a place as free.
    pub(crate) fn release(&mut self, pool: &Pool, place: u32) {
        let index = pool.index_of(place);
        let page = index / 64;
        if place >= pool.count {
            return;
        }
        let was_full = self.word(pool.page_key(page)) | pool.beyond(page) == u64::MAX;
        self.unset(pool.page_key(page), index % 64);
        if was_full {
            self.unset(pool.summary_key(page / 64), page % 64);
        }
    }

    /// Returns the first free index from `from` on, and before `end`.
    ///
    /// # Cost
    /// One page, and a summary for each 4096 taken places.
    pub(crate) fn free_from(&self, pool: &Pool, from: u32, end: u32) -> Option<u32> {
        let end = end.min(pool.count);
        let first = from / 64;
        let free = !self.word(pool.page_key(first)) & u64::MAX << (from % 64);
        if free != 0 {
            return before(end, 64 * first + free.trailing_zeros());
        }
        let mut page = first + 1;
        while 64 * page < end {
            let summary = page / 64;
            let full = self.word(pool.summary_key(summary)) | pool.pages_beyond(summary);
            let with_room = !full & u64::MAX << (page % 64);
            if with_room == 0 {
                page = 64 * (summary + 1);
                continue;
            }
            page = 64 * summary + with_room.trailing_zeros();
            let free = !self.word(pool.page_key(page));
            if free != 0 {
                return before(end, 64 * page + free.trailing_zeros());
            }
            // The summary found no free slot in the table.
            page += 1;
        }
        None
    }

    /// Returns the two buckets that may hold an entry.
    fn homes(&self, key: u64) -> [usize; 2] {
        let count = self.buckets.len() as u64;
        let first = (((key >> 32) * count) >> 32) as usize;
        let second = (((key & 0xffff_ffff) * count) >> 32) as usize;
        // Never the same bucket, if there are others.
        match second {
            _ if second != first => [first, second],
            0 => [first, self.buckets.len().saturating_sub(1)],
            _ => [first, second - 1],
        }
    }

    /// Returns a word; zero if there is no entry.
    fn word(&self, key: u64) -> u64 {
        for home in self.homes(key) {
            let Some(bucket) = self.buckets.get(home) else {
                continue;
            };
            let mut entries = bucket.entries.iter();
            if let Some(entry) = entries.find(|entry| entry.key == key && entry.bits != 0) {
                return entry.bits;
            }
        }
        0
    }

    /// Sets a bit of a word; returns false if there is no room for the word.
    fn set(&mut self, key: u64, bit: u32) -> bool {
        let homes = self.homes(key);
        for home in homes {
            if let Some(entry) = self.entry(home, |entry| entry.key == key && entry.bits != 0) {
                entry.bits |= 1 << bit;
                return true;
            }
        }
        let new = Entry {
            key,
            bits: 1 << bit,
        };
        // The emptier bucket: few buckets fill up, so an entry nearly always finds a free slot.
        let [first, second] = homes.map(|home| self.room(home));
        let order = match first >= second {
            true => homes,
            false => [homes[1], homes[0]],
        };
        self.put(order[0], new)
            || homes
                .iter()
                .any(|&home| self.make_room(home) && self.put(home, new))
    }

    fn unset(&mut self, key: u64, bit: u32) {
        for home in self.homes(key) {
            if let Some(entry) = self.entry(home, |entry| entry.key == key && entry.bits != 0) {
                entry.bits &= !(1 << bit);
                return;
            }
        }
    }

    fn entry(&mut self, home: usize, is_it: impl Fn(&Entry) -> bool) -> Option<&mut Entry> {
        let bucket = self.buckets.get_mut(home)?;
        bucket.entries.iter_mut().find(|entry| is_it(entry))
    }

    /// Returns the number of free entries of a bucket.
    fn room(&self, home: usize) -> usize {
        let bucket = self.buckets.get(home);
        bucket.map_or(0, |bucket| {
            bucket
                .entries
                .iter()
                .filter(|entry| entry.bits == 0)
                .count()
        })
    }

    fn put(&mut self, home: usize, new: Entry) -> bool {
        let place = self.entry(home, |entry| entry.bits == 0);
        place.map(|place| *place = new).is_some()
    }

    /// Moves an entry of a full bucket to its other one.
    fn make_room(&mut self, home: usize) -> bool {
        for place in 0..SLOTS {
            let Some(bucket) = self.buckets.get(home) else {
                return false;
            };
            let moved = bucket.entries[place];
            let other = self.homes(moved.key).into_iter().find(|&at| at != home);
            if other.is_some_and(|other| self.put(other, moved)) {
                self.buckets[home].entries[place].bits = 0;
                return true;
            }
        }
        false
    }
}

/// Returns the index if it is before `end`.
fn before(end: u32, index: u32) -> Option<u32> {
    (index < end).then_some(index)
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

    use super::*;
    use crate::mem::Boxes;

    fn table(connections: usize) -> PortTable<'static> {
        match PortTable::build(8, connections, Key::new([1, 2]), &mut Boxes) {
            Some(table) => table,
            None => unreachable!("boxes do not run out"),
        }
    }

    fn pool(table: &PortTable<'_>, remote: u32, count: usize) -> Pool {
        let side = Side {
            addresses: u64::join(remote, 7),
            ports: 443,
        };
        table.pool(Owner::Block(0), &side, 6, count)
    }

    /// The first free index from one on, going round.
    fn search(table: &PortTable<'_>, pool: &Pool, from: u32) -> Option<u32> {
        let found = table.free_from(pool, from, pool.count);
        found.or_else(|| table.free_from(pool, 0, from))
    }

    #[test]
    fn each_place_is_found_once_and_again_when_it_is_free() {
        // With pages and summaries that are not full, and that are.
        for count in [8, 64, 72, 1024, 4096, 4104, 64_512, 65_536] {
            if cfg!(miri) && count > 100 {
                continue;
            }
            let mut table = table(count);
            let pool = pool(&table, 1, count);
            let mut seen = BTreeSet::new();
            for turn in 0..count as u32 {
                let start = turn.wrapping_mul(40_503) % count as u32;
                let index = search(&table, &pool, start).unwrap_or(u32::MAX);
                assert!(index < count as u32 && seen.insert(index), "{count} {turn}");
                assert_eq!(pool.index_of(pool.place_of(index)), index);
                table.take(&pool, pool.place_of(index));
            }
            assert_eq!(search(&table, &pool, 5), None);
            for hole in [0, count as u32 / 2, count as u32 - 1] {
                table.release(&pool, pool.place_of(hole));
                assert_eq!(search(&table, &pool, 5), Some(hole));
                table.take(&pool, pool.place_of(hole));
                assert_eq!(search(&table, &pool, 5), None);
            }
            for place in 0..count as u32 {
                table.release(&pool, place);
            }
            let all = table.buckets.iter().flat_map(|bucket| bucket.entries);
            assert!(all.into_iter().all(|entry| entry.bits == 0), "{count}");
        }
    }

    #[test]
    fn it_has_room_for_as_many_destinations_as_connections() {
        let count = if cfg!(miri) { 200 } else { 300_000 };
        let mut table = table(count as usize);
        for remote in 0..count {
            let pool = pool(&table, remote, 1024);
            table.take(&pool, remote % 1024);
        }
        for remote in 0..count {
            let pool = pool(&table, remote, 1024);
            let index = pool.index_of(remote % 1024);
            assert_eq!(table.free_from(&pool, index, index + 1), None, "{remote}");
        }
    }

    #[test]
    fn it_is_a_set_for_each_destination_and_forgets_when_it_is_too_small() {
        bolero::check!()
            .with_type::<(u8, Vec<(bool, bool, u8)>)>()
            .for_each(|(connections, operations)| {
                let mut small = table(usize::from(*connections) % 4);
                let mut large = table(256);
                let mut model = [BTreeSet::new(), BTreeSet::new()];
                let most = if cfg!(miri) { 8 } else { usize::MAX };
                for &(take, which, place) in operations.iter().take(most) {
                    let place = u32::from(place) % 136;
                    for table in [&mut small, &mut large] {
                        let pool = pool(table, which.into(), 136);
                        if take {
                            table.take(&pool, place);
                        } else {
                            table.release(&pool, place);
                        }
                    }
                    let model = &mut model[usize::from(which)];
                    if take {
                        model.insert(place);
                    } else {
                        model.remove(&place);
                    }
                    let pool = pool(&large, which.into(), 136);
                    let free = (0..136).find(|&index| !model.contains(&pool.place_of(index)));
                    assert_eq!(large.free_from(&pool, 0, 136), free);
                    // What was forgotten counts as free, and nothing counts as taken that is not.
                    assert!(small.free_from(&pool, 0, 136) <= free || free.is_none());
                }
            });
    }
}
