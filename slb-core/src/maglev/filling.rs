//! A table that is being filled: the permutations' steps, and the free slots.

use super::EMPTY;
use super::turns::Turn;

/// When this many free slots are left, turns compare all of them instead of trying one by one. The
/// two methods cost about the same at `free = size / free`, except for the inverse that the second
/// needs (`slb bench maglev`: 128 and 256 perform alike for 65 537 slots).
const TAIL: usize = 256;

/// The slots on a circle whose circumference is 2^64, so that a step around it is an addition
/// without a comparison.
///
/// Positions of slots are rounded up. The sum of `n` positions is above the exact sum by at most
/// `n`, which is less than a slot as long as `n * size` is less than 2^64. Sizes are at most 2^24,
/// and so are the steps of a permutation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circle {
    size: u64,
    /// The length of a slot, rounded down.
    slot: u64,
    /// 2^64 modulo the size, which is an odd number and so does not divide 2^64.
    rest: u64,
}

impl Circle {
    pub(super) const fn new(size: u32) -> Self {
        let size = size as u64;
        Self {
            size,
            slot: u64::MAX / size,
            rest: u64::MAX % size + 1,
        }
    }

    /// Returns the first position of a slot.
    #[inline]
    pub(super) const fn position(self, slot: u64) -> u64 {
        slot * self.slot + slot * self.rest / self.size + 1
    }

    /// Returns the slot of a position.
    #[inline(always)] // the innermost loop
    pub(super) const fn slot(self, position: u64) -> usize {
        ((position as u128 * self.size as u128) >> 64) as usize
    }
}

/// A table being filled.
pub(super) struct Filling<'a> {
    table: &'a mut [u16],
    circle: Circle,
    pub(super) free: usize,
    tail: Tail,
}

/// The last free slots.
struct Tail {
    slots: [u32; TAIL],
    gathered: bool,
}

impl<'a> Filling<'a> {
    pub(super) fn new(table: &'a mut [u16]) -> Self {
        Self {
            circle: Circle::new(table.len() as u32),
            free: table.len(),
            table,
            tail: Tail {
                slots: [0; TAIL],
                gathered: false,
            },
        }
    }

    /// Assigns the first free slot of its permutation to `turn`.
    #[inline]
    pub(super) fn take(&mut self, turn: &mut Turn) {
        if self.free <= TAIL {
            return self.take_of_few(turn);
        }
        let (at, next) = match self.free > self.table.len() / 4 {
            true => self.first_free_by_fours(turn.next, turn.skip),
            false => self.first_free(turn.next, turn.skip),
        };
        turn.next = next;
        self.give(turn.member, at);
    }

    /// Returns the first free slot from a position on, and the position after it.
    #[inline(always)] // the innermost loop
    fn first_free(&self, mut position: u64, skip: u64) -> (usize, u64) {
        loop {
            let at = self.circle.slot(position);
            position = position.wrapping_add(skip);
            if self.table[at] == EMPTY {
                return (at, position);
            }
        }
    }

    /// Returns the first free slot like [`first_free`](Self::first_free), for a table in which it
    /// is probably one of the next four: which of them is free is not predictable, so no branch
    /// depends on it.
    #[inline(always)] // the innermost loop
    fn first_free_by_fours(&self, mut position: u64, skip: u64) -> (usize, u64) {
        loop {
            let second = position.wrapping_add(skip);
            let third = second.wrapping_add(skip);
            let fourth = third.wrapping_add(skip);
            let slots = [position, second, third, fourth].map(|at| self.circle.slot(at));
            let free = |place: usize| u32::from(self.table[slots[place]] == EMPTY) << place;
            let free = free(0) | free(1) | free(2) | free(3);
            if free != 0 {
                let place = free.trailing_zeros() & 3;
                let steps = u64::from(place) + 1;
                let next = position.wrapping_add(skip.wrapping_mul(steps));
                return (slots[place as usize], next);
            }
            position = fourth.wrapping_add(skip);
        }
    }

    /// Assigns one of the last free slots: the one with the least distance in the permutation.
    #[cold]
    fn take_of_few(&mut self, turn: &mut Turn) {
        if !self.tail.gathered {
            let free = self
                .table
                .iter()
                .enumerate()
                .filter(|(_, owner)| **owner == EMPTY);
            for (place, (slot, _)) in self.tail.slots.iter_mut().zip(free) {
                *place = slot as u32;
            }
            self.tail.gathered = true;
        }
        if !turn.is_late {
            turn.is_late = true;
            turn.next = self.circle.slot(turn.next) as u64;
            let skip = self.circle.slot(turn.skip) as u32;
            turn.skip = self.circle.position(inverse(skip, self.table.len() as u32));
        }
        // The number of steps from slot to slot, as a position. It deviates by less than the
        // number of slots, which is less than half a slot's length; from a slot to itself, it is 0.
        let from = turn.next.wrapping_mul(turn.skip);
        let distance = |slot: u32| u64::from(slot).wrapping_mul(turn.skip).wrapping_sub(from);
        let free = &mut self.tail.slots[..self.free];
        let nearest = free
            .iter()
            .enumerate()
            .min_by_key(|(_, slot)| distance(**slot));
        let Some((place, &at)) = nearest else { return };
        free[place] = free[free.len() - 1];
        turn.next = at.into();
        self.give(turn.member, at as usize);
    }

    #[inline(always)] // as `first_free`
    fn give(&mut self, member: u16, at: usize) {
        self.table[at] = member;
        self.free -= 1;
    }
}

/// The inverse of `value` modulo the prime `modulus`, by Euclid's extended algorithm.
fn inverse(value: u32, modulus: u32) -> u64 {
    let (mut a, mut b) = (modulus, value);
    let (mut x, mut y) = (0i32, 1i32); // never beyond the modulus, which is below 2^25
    while b != 0 {
        (a, b, x, y) = (b, a % b, y, x - (a / b) as i32 * y);
    }
    x.rem_euclid(modulus as i32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_has_the_slots_of_a_permutation() {
        for size in [3u32, 7, 251, 65_537, 16_777_213] {
            let circle = Circle::new(size);
            let size = u64::from(size);
            for (offset, skip) in [(0, 1), (1, 1), (size / 2, size / 2), (size - 1, size - 1)] {
                let (mut at, mut position) = (offset, circle.position(offset));
                let skipped = circle.position(skip);
                let steps = if cfg!(miri) { size.min(1000) } else { size };
                for step in 0..=steps {
                    assert_eq!(
                        circle.slot(position),
                        at as usize,
                        "{size}: {skip} * {step}"
                    );
                    at = (at + skip) % size;
                    position = position.wrapping_add(skipped);
                }
            }
        }
    }

    #[test]
    fn an_inverse_is_one() {
        for modulus in [3u32, 7, 65_537, 16_777_213] {
            for value in [1, 2, modulus / 2, modulus - 1] {
                let product = inverse(value, modulus) * u64::from(value);
                assert_eq!(product % u64::from(modulus), 1, "{value} mod {modulus}");
            }
        }
    }
}
