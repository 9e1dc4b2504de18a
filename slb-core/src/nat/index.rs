//! An index of connections by either of their tuples: ten places in a cache line, each a tag of 15
//! bits and the connection's number.
//!
//! ```text
//!  0            20   24              64
//!  | tag × 10   | over | number × 10 |
//! ```
//!
//! The tag rules out all but one of 32 768 other tuples, so a lookup reads one line here and one
//! line of the connection, which has both full tuples. If a tuple's *primary* bucket is full, the
//! tuple is in its *secondary* bucket, and counted in the primary bucket's `over`; a lookup reads
//! the secondary bucket only if `over` is not zero.

use crate::mem::Mem;
use crate::prefetch::prefetch;

/// Places in a bucket.
const SLOTS: usize = 10;

/// Marks a free slot.
const NONE: u32 = u32::MAX;

/// A bucket of ten slots, all free in [`EMPTY`](Self::EMPTY).
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct IndexBucket {
    tags: [u16; SLOTS],
    /// The number of tuples with this primary bucket that are in their secondary bucket.
    over: u32,
    numbers: [u32; SLOTS],
}

const _: () = assert!(size_of::<IndexBucket>() == 64);

impl IndexBucket {
    /// A free slot.
    pub const EMPTY: Self = Self {
        tags: [0; SLOTS],
        over: 0,
        numbers: [NONE; SLOTS],
    };

    /// Returns the slots with the tag `tag`, as bits.
    #[inline]
    fn matches(&self, tag: u16) -> u32 {
        let mut places = 0;
        for (place, &other) in self.tags.iter().enumerate() {
            places |= u32::from(other == tag) << place;
        }
        places
    }

    /// Yields the numbers under a tag; a free slot has no tag.
    #[inline]
    fn numbers(&self, tag: u16) -> impl Iterator<Item = u32> + '_ {
        let mut places = self.matches(tag);
        core::iter::from_fn(move || {
            let place = places.trailing_zeros() as usize;
            places &= places.wrapping_sub(1);
            self.numbers.get(place).copied()
        })
    }

    fn put(&mut self, tag: u16, number: u32) -> bool {
        match self.tags.iter().position(|&tag| tag == 0) {
            Some(place) => {
                self.tags[place] = tag;
                self.numbers[place] = number;
                true
            }
            None => false,
        }
    }

    fn take(&mut self, tag: u16, number: u32) -> bool {
        let place = (0..SLOTS).find(|&i| self.tags[i] == tag && self.numbers[i] == number);
        if let Some(place) = place {
            self.tags[place] = 0;
            self.numbers[place] = NONE;
        }
        place.is_some()
    }
}

/// The index.
#[derive(Debug)]
pub(crate) struct Index<'m> {
    buckets: Mem<'m, IndexBucket>,
}

impl<'m> Index<'m> {
    /// Returns the number of buckets for `tuples` tuples, at 70 % of the slots, where one tuple in
    /// twelve is in its secondary bucket.
    pub(crate) const fn buckets_for(tuples: usize) -> usize {
        tuples.div_ceil(7)
    }

    pub(crate) fn new(mut buckets: Mem<'m, IndexBucket>) -> Self {
        buckets.fill(IndexBucket::EMPTY);
        Self { buckets }
    }

    #[inline]
    fn primary(&self, hash: u64) -> usize {
        (((hash >> 32) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    fn secondary(&self, hash: u64) -> usize {
        let other = (((hash & 0xffff_ffff) * self.buckets.len() as u64) >> 32) as usize;
        // Never the primary bucket itself, if there are others.
        match other {
            _ if other != self.primary(hash) => other,
            0 => self.buckets.len().saturating_sub(1),
            _ => other - 1,
        }
    }

    /// Starts loading the bucket that a lookup reads.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        if let Some(bucket) = self.buckets.get(self.primary(hash)) {
            prefetch(bucket);
        }
    }

    /// Returns the first number under a hash, which is nearly always the right one.
    #[inline]
    pub(crate) fn first(&self, hash: u64) -> Option<u32> {
        let bucket = self.buckets.get(self.primary(hash))?;
        let places = bucket.matches(tag(hash));
        match bucket.numbers.get(places.trailing_zeros() as usize) {
            Some(&number) => Some(number),
            None if bucket.over == 0 => None,
            None => self.first_secondary(hash),
        }
    }

    #[cold]
    fn first_secondary(&self, hash: u64) -> Option<u32> {
        let bucket = self.buckets.get(self.secondary(hash))?;
        bucket.numbers(tag(hash)).next()
    }

    /// Tries every number under a hash until `is_it` accepts one.
    #[inline]
    pub(crate) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let bucket = self.buckets.get(self.primary(hash))?;
        if let Some(number) = bucket.numbers(tag(hash)).find(|&number| is_it(number)) {
            return Some(number);
        }
        if bucket.over == 0 {
            return None;
        }
        let bucket = self.buckets.get(self.secondary(hash))?;
        bucket.numbers(tag(hash)).find(|&number| is_it(number))
    }

    /// Adds a number. If both its buckets are full, moves another number to its other bucket;
    /// `hashes_of` returns the two hashes of a number. Returns false if no number can move.
    pub(crate) fn insert(
        &mut self,
        hash: u64,
        number: u32,
        hashes_of: impl Fn(u32) -> [u64; 2],
    ) -> bool {
        let (primary, secondary) = (self.primary(hash), self.secondary(hash));
        if self.buckets.is_empty() {
            return false;
        }
        for _ in 0..2 {
            if self.buckets[primary].put(tag(hash), number) {
                return true;
            }
            if primary != secondary && self.buckets[secondary].put(tag(hash), number) {
                self.buckets[primary].over += 1;
                return true;
            }
            if !self.make_room(primary, &hashes_of) && !self.make_room(secondary, &hashes_of) {
                return false;
            }
        }
        false
    }

    /// Moves one number of a full bucket to its other one.
    fn make_room(&mut self, full: usize, hashes_of: &impl Fn(u32) -> [u64; 2]) -> bool {
        for place in 0..SLOTS {
            let (mark, number) = (
                self.buckets[full].tags[place],
                self.buckets[full].numbers[place],
            );
            for hash in hashes_of(number) {
                let (primary, secondary) = (self.primary(hash), self.secondary(hash));
                let is_here = tag(hash) == mark && (primary == full || secondary == full);
                let other = if primary == full { secondary } else { primary };
                if !is_here || primary == secondary || !self.buckets[other].put(mark, number) {
                    continue;
                }
                self.buckets[full].tags[place] = 0;
                self.buckets[full].numbers[place] = NONE;
                if other == secondary {
                    self.buckets[primary].over += 1;
                } else {
                    self.buckets[primary].over -= 1;
                }
                return true;
            }
        }
        false
    }

    /// Removes a number.
    pub(crate) fn remove(&mut self, hash: u64, number: u32) {
        let (primary, secondary) = (self.primary(hash), self.secondary(hash));
        let Some(bucket) = self.buckets.get_mut(primary) else {
            return;
        };
        if !bucket.take(tag(hash), number) && self.buckets[secondary].take(tag(hash), number) {
            self.buckets[primary].over -= 1;
        }
    }
}

/// Returns the tag of a hash: never zero, which marks a free slot.
#[inline]
const fn tag(hash: u64) -> u16 {
    hash as u16 | 1 << 15
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use crate::hash::siphash13;
    use alloc::collections::BTreeMap;
    use alloc::vec;
    use alloc::vec::Vec;

    fn index(tuples: usize) -> Index<'static> {
        Index::new(Mem::from(vec![
            IndexBucket::EMPTY;
            Index::buckets_for(tuples)
        ]))
    }

    #[test]
    fn it_takes_what_it_was_made_for() {
        let count = if cfg!(miri) { 1000 } else { 500_000 };
        let mut index = index(count as usize);
        let hash = |i: u32| siphash13([1, 2], &i.to_le_bytes());
        for i in 0..count {
            assert!(index.insert(hash(i), i, |i| [hash(i); 2]));
        }
        for i in 0..count {
            assert_eq!(index.find(hash(i), |number| number == i), Some(i));
        }
        for i in 0..count {
            index.remove(hash(i), i);
        }
        assert!(
            index
                .buckets
                .iter()
                .all(|b| b.over == 0 && b.tags == [0; SLOTS])
        );
    }

    #[test]
    fn it_is_a_map() {
        bolero::check!()
            .with_type::<Vec<(bool, u8)>>()
            .for_each(|operations| {
                // Hashes that collide in bucket and tag.
                let hash = |i: u8| u64::from(i % 3) << 62 | u64::from(i % 5);
                let mut index = index(20);
                let mut model = BTreeMap::new();
                // Miri takes a thousand times as long.
                let most = if cfg!(miri) { 8 } else { usize::MAX };
                for &(insert, i) in operations.iter().take(most) {
                    if insert && !model.contains_key(&i) {
                        if index.insert(hash(i), i.into(), |i| [hash(i as u8); 2]) {
                            model.insert(i, ());
                        }
                    } else if !insert && model.remove(&i).is_some() {
                        index.remove(hash(i), i.into());
                    }
                    for i in 0..=255u8 {
                        let found = index.find(hash(i), |number| number == u32::from(i));
                        assert_eq!(found.is_some(), model.contains_key(&i));
                    }
                }
            });
    }
}
