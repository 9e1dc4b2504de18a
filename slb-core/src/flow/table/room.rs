//! Room for new flows: places of expired flows, moves to other buckets, and evictions.

use core::ops::RangeInclusive;

use super::Table;
use super::bucket::{DEADLINE_BITS, OCCUPIED, SLOTS, is_half_open, is_transitory};
use crate::flow::key::Addresses;

impl<A: Addresses> Table<'_, A> {
    /// Frees a place in either bucket by up to `moves` moves of other flows, or by evicting a
    /// transitory flow if that is allowed.
    pub(super) fn make_room(
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
    pub(super) fn replace_half_open(
        &mut self,
        primary: usize,
        secondary: usize,
    ) -> Option<(usize, usize)> {
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
    pub(super) fn vacate(&mut self, index: usize, place: usize) {
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
}
