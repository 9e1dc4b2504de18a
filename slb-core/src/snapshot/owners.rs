//! Former owners of the slots of Maglev tables, and when a slot had its last change.
//!
//! ```text
//!  slot of a table:   owner now  <-  owner before  <-  ...  the newest first, nobody twice
//! ```
//!
//! A host agent keeps these for each pool of which it has a vm, from snapshot to snapshot: a connection
//! lives where its first packet went, and what comes later may be sent to who has the slot now. Only
//! backends that are configured are owners. A slot forgets the owner that lost it longest ago where more
//! than [`DEPTH`] had it.

use crate::maglev;
use crate::time::Instant;

/// Former owners of a slot. With the present one these are as many hosts as a packet is passed on to at
/// most.
pub(crate) const DEPTH: usize = 7;

/// The age of a slot that did not change while anything was remembered, or so long ago.
const OLD: u8 = u8::MAX;

/// What is remembered of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    /// Places in the pool's backends, the newest first; [`maglev::EMPTY`] behind the last.
    former: [u16; DEPTH],
    /// Generations since the slot went from one owner to another.
    age: u8,
}

const _: () = assert!(size_of::<Past>() == 16);

impl Past {
    /// The slot of a new table.
    pub(crate) const NONE: Self = Self {
        former: [maglev::EMPTY; DEPTH],
        age: OLD,
    };

    /// Former owners, the newest first.
    #[inline]
    pub(crate) fn former(&self) -> impl Iterator<Item = u16> + Clone + '_ {
        let all = self.former.iter().copied();
        all.take_while(|&member| member != maglev::EMPTY)
    }

    /// Whether nobody else ever had the slot.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.former[0] == maglev::EMPTY
    }

    /// Generations since its last change; `None`: too many to count, or it never changed.
    pub(crate) fn age(&self) -> Option<u8> {
        Some(self.age).filter(|&age| age != OLD)
    }

    /// Notes that a backend has, or had, the slot after all that were noted before.
    pub(crate) fn note(&mut self, member: u16) {
        if member == maglev::EMPTY {
            return;
        }
        let known = self.former.iter().position(|&other| other == member);
        let end = known.unwrap_or(DEPTH - 1);
        self.former.copy_within(..end, 1);
        self.former[0] = member;
    }

    /// Takes the present owner out of the former ones.
    pub(crate) fn settle(&mut self, owner: u16) {
        if owner == maglev::EMPTY {
            return;
        }
        if let Some(place) = self.former.iter().position(|&other| other == owner) {
            self.former.copy_within(place + 1.., place);
            self.former[DEPTH - 1] = maglev::EMPTY;
        }
    }

    /// The slot one generation later. `renumbered` says which place a backend has now; `owners` are the
    /// places of the old and of the present owner, both by the present numbers.
    pub(crate) fn next(
        &self,
        renumbered: impl Fn(u16) -> Option<u16>,
        (old, owner): (Option<u16>, u16),
    ) -> Self {
        let has_changed = old != Some(owner);
        let mut next = Self {
            age: match has_changed {
                true => 0,
                false => self.age.saturating_add(1),
            },
            ..Self::NONE
        };
        if !self.is_empty() {
            let kept = self.former().filter_map(renumbered);
            for (place, member) in next.former.iter_mut().zip(kept) {
                *place = member;
            }
        }
        if has_changed && let Some(old) = old {
            next.note(old);
        }
        if !next.is_empty() {
            next.settle(owner);
        }
        next
    }

    /// Notes that the slot has changed at a time that is not known.
    pub(crate) fn make_young(&mut self) {
        self.age = 0;
    }
}

/// When the last generations came into place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generations {
    /// The newest first, each with the time that had passed.
    installed: [(u64, Instant); Self::KEPT],
    count: usize,
}

impl Generations {
    const KEPT: usize = 16;

    /// A first one.
    pub(crate) fn new(generation: u64, now: Instant) -> Self {
        Self {
            installed: [(generation, now); Self::KEPT],
            count: 1,
        }
    }

    /// The next one.
    pub(crate) fn install(&mut self, generation: u64, now: Instant) {
        self.installed.copy_within(..Self::KEPT - 1, 1);
        self.installed[0] = (generation, now);
        self.count = (self.count + 1).min(Self::KEPT);
    }

    /// When a change of so many generations before the present one took effect. Of one before all that are
    /// kept: when the oldest of these came, which is later.
    pub(crate) fn time_of(&self, age: u8) -> Instant {
        let (present, newest) = self.installed[0];
        let changed = present.saturating_sub(age.into());
        let all = self.installed.iter().take(self.count);
        let since = all.take_while(|(generation, _)| *generation >= changed);
        since.last().map_or(newest, |&(_, time)| time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// A slot that these had, one after the other, the last one now.
    fn had_by(owners: &[u16]) -> Past {
        let mut past = Past::NONE;
        for pair in owners.windows(2) {
            past = past.next(Some, (Some(pair[0]), pair[1]));
        }
        past
    }

    fn former(past: &Past) -> Vec<u16> {
        past.former().collect()
    }

    #[test]
    fn former_owners_are_the_newest_first_and_nobody_twice() {
        for (owners, expected) in [
            (&[1][..], &[][..]),
            (&[1, 1, 1], &[]),
            (&[1, 2], &[1]),
            (&[1, 2, 3], &[2, 1]),
            (&[1, 2, 1], &[2]),
            (&[1, 2, 1, 2, 1, 2], &[1]),
            (&[1, 2, 3, 1, 4], &[1, 3, 2]),
            (&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[8, 7, 6, 5, 4, 3, 2]),
            (&[1, 2, 3, 4, 5, 6, 7, 8, 1], &[8, 7, 6, 5, 4, 3, 2]),
        ] {
            assert_eq!(former(&had_by(owners)), expected, "{owners:?}");
        }
    }

    #[test]
    fn only_configured_backends_are_candidates() {
        let past = had_by(&[1, 2, 3, 4]);
        // Backend 2 is gone, and those behind it move up; the one that had the slot is 2 now.
        let renumbered = |member: u16| (member != 2).then(|| member - u16::from(member > 2));
        let next = past.next(renumbered, (Some(3), 0));
        assert_eq!(former(&next), [3, 2, 1]);
        // The last owner itself is gone.
        let next = past.next(|m| (m != 4).then_some(m), (None, 1));
        assert_eq!(former(&next), [3, 2]);
    }

    #[test]
    fn ages_count_generations_since_the_owner_changed() {
        assert_eq!(Past::NONE.age(), None);
        assert_eq!(had_by(&[1, 1]).age(), None);
        assert_eq!(had_by(&[1, 2]).age(), Some(0));
        assert_eq!(had_by(&[1, 2, 2, 2]).age(), Some(2));
        let mut long_ago = had_by(&[1, 2]);
        for _ in 0..300 {
            long_ago = long_ago.next(Some, (Some(2), 2));
        }
        assert_eq!((long_ago.age(), former(&long_ago)), (None, [1].into()));
    }

    #[test]
    fn a_change_took_effect_when_its_generation_came_into_place() {
        let mut generations = Generations::new(5, Instant::from_secs(50));
        generations.install(6, Instant::from_secs(60));
        generations.install(9, Instant::from_secs(90)); // 7 and 8 were never in place
        for (age, time) in [(0, 90), (1, 90), (2, 90), (3, 60), (4, 50), (7, 50)] {
            assert_eq!(generations.time_of(age), Instant::from_secs(time), "{age}");
        }
        for generation in 10..40 {
            generations.install(generation, Instant::from_secs(generation * 10));
        }
        assert_eq!(generations.time_of(0), Instant::from_secs(390));
        assert_eq!(generations.time_of(15), Instant::from_secs(240));
        assert_eq!(generations.time_of(39), Instant::from_secs(240));
    }
}
