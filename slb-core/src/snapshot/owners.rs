//! Former owners of the slots of Maglev tables.
//!
//! ```text
//!  slot of a table:   owner now  <-  owner before  <-  ...  the newest first, none twice
//! ```
//!
//! A host agent keeps them for each pool that has a vm on this node, from snapshot to snapshot: a
//! connection lives at the backend that got its first packet, but muxes may send later packets to
//! the present owner of the slot. Only configured backends are owners.
//!
//! A slot has at most [`DEPTH`] former owners. If there were more, it forgets the one that probably
//! has the fewest connections left: the one that had the slot for the shortest time, where earlier
//! time counts half as much every hour.

use core::time::Duration;

use crate::maglev;
use crate::time::Instant;

/// The maximum number of former owners of a slot. With the present owner, this is the maximum
/// number of hosts that a packet is passed on to.
pub(crate) const DEPTH: usize = 7;

/// The age of a slot without any remembered change.
const OLD: u8 = u8::MAX;
/// The age of a slot that changed at least this many generations ago.
const OLDEST: u8 = OLD - 1;

/// The time after which an owner's earlier time counts half as much, in seconds.
const HALF_LIFE: u64 = 3600;

/// The changes of ownership between one snapshot and the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Seconds that the earlier snapshot was installed; at least one, to distinguish its owners
    /// from no owners.
    seconds: u16,
    /// The number of times by which earlier time is halved.
    halvings: u32,
}

impl Step {
    /// Returns the step from one time to another, of unknown length if the clock goes back.
    pub(crate) fn new(from: Instant, to: Instant) -> Self {
        let passed = to.since(from).as_secs();
        let half_lives = |time: Instant| time.since(Instant::ZERO).as_secs() / HALF_LIFE;
        let halvings = half_lives(to).saturating_sub(half_lives(from));
        Self {
            seconds: passed.clamp(1, u16::MAX.into()) as u16,
            halvings: halvings.min(u64::from(u16::BITS)) as u32,
        }
    }

    fn halved(self, held: u16) -> u16 {
        held.checked_shr(self.halvings).unwrap_or(0)
    }
}

/// The former owners of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    /// Indexes in the pool's backends, the newest first; [`maglev::EMPTY`] after the last.
    former: [u16; DEPTH],
    /// The time that each former owner had the slot, in seconds.
    held: [u16; DEPTH],
    /// The time that the present owner had the slot before the present snapshot, in seconds.
    present: u16,
    /// Generations since the slot last changed its owner.
    age: u8,
}

const _: () = assert!(size_of::<Past>() == 32);

impl Past {
    /// The slot of a new table.
    pub(crate) const NONE: Self = Self {
        former: [maglev::EMPTY; DEPTH],
        held: [0; DEPTH],
        present: 0,
        age: OLD,
    };

    /// Yields the former owners, the newest first.
    #[inline]
    pub(crate) fn former(&self) -> impl Iterator<Item = u16> + Clone + '_ {
        let all = self.former.iter().copied();
        all.take_while(|&member| member != maglev::EMPTY)
    }

    /// Returns true if the slot never had another owner.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.former[0] == maglev::EMPTY
    }

    /// Returns the generations since the slot's last change, at most 254; `None` if it never
    /// changed.
    pub(crate) fn age(&self) -> Option<u8> {
        Some(self.age).filter(|&age| age != OLD)
    }

    /// Records that a backend has or had the slot after all recorded owners, for an unknown time.
    pub(crate) fn note(&mut self, member: u16) {
        if member != maglev::EMPTY {
            let before = self.take(member);
            self.put(member, before.saturating_add(1));
        }
    }

    /// Removes the present owner from the former ones.
    pub(crate) fn settle(&mut self, owner: u16) {
        self.present = self.present.max(self.take(owner));
    }

    /// Removes a former owner, and returns the time that it had the slot.
    fn take(&mut self, member: u16) -> u16 {
        let known = self.former().position(|other| other == member);
        let Some(place) = known else {
            return 0;
        };
        let held = self.held[place];
        self.former.copy_within(place + 1.., place);
        self.held.copy_within(place + 1.., place);
        (self.former[DEPTH - 1], self.held[DEPTH - 1]) = (maglev::EMPTY, 0);
        held
    }

    /// Inserts an owner before the former ones. If there are too many, drops the one that had the
    /// slot for the shortest time; of several, the one that lost it longest ago.
    fn put(&mut self, member: u16, held: u16) {
        let count = self.former().count();
        let shortest = (0..DEPTH).rev().min_by_key(|&place| self.held[place]);
        let end = match count {
            DEPTH => shortest.unwrap_or(DEPTH - 1),
            count => count,
        };
        self.former.copy_within(..end, 1);
        self.held.copy_within(..end, 1);
        (self.former[0], self.held[0]) = (member, held);
    }

    /// Returns the slot one generation later. `renumbered` maps a backend's old index to its
    /// present one; `owners` are the old and the present owner, both by their present indexes.
    pub(crate) fn next(
        &self,
        renumbered: impl Fn(u16) -> Option<u16>,
        (old, owner): (Option<u16>, u16),
        step: Step,
    ) -> Self {
        let has_changed = old != Some(owner);
        let held = step.halved(self.present).saturating_add(step.seconds);
        let mut next = Self {
            age: match has_changed {
                true => 0,
                false => aged(self.age),
            },
            present: if has_changed { 0 } else { held },
            ..Self::NONE
        };
        if !self.is_empty() {
            let kept = self.former().zip(self.held);
            let kept = kept.filter_map(|(member, held)| Some((renumbered(member)?, held)));
            for (place, (member, held)) in kept.enumerate() {
                (next.former[place], next.held[place]) = (member, step.halved(held));
            }
        }
        if has_changed && let Some(old) = old.filter(|&old| old != maglev::EMPTY) {
            next.settle(owner);
            next.put(old, held);
        } else if !next.is_empty() {
            next.settle(owner);
        }
        next
    }

    /// Records that the slot has changed at an unknown time.
    pub(crate) fn make_young(&mut self) {
        self.age = 0;
    }
}

/// Returns the age of a slot one generation later, if the slot does not change.
#[inline]
const fn aged(age: u8) -> u8 {
    age + (age < OLDEST) as u8
}

/// The times at which the last generations were installed.
///
/// If there are too many, those close to each other are dropped first, so that the rest reaches
/// back as far as a flow may be idle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generations {
    /// The generations, the newest first, each with its time.
    installed: [(u64, Instant); Self::KEPT],
    count: usize,
}

impl Generations {
    const KEPT: usize = 32;
    /// A time longer than any flow may be idle.
    const LONGEST: Duration = Duration::from_secs(2048);

    /// Starts with the first generation.
    pub(crate) fn new(generation: u64, now: Instant) -> Self {
        Self {
            installed: [(generation, now); Self::KEPT],
            count: 1,
        }
    }

    /// Records the next generation.
    pub(crate) fn install(&mut self, generation: u64, now: Instant) {
        let end = match self.count {
            Self::KEPT => self.superfluous(now),
            count => count,
        };
        self.installed.copy_within(..end, 1);
        self.installed[0] = (generation, now);
        self.count = (self.count + 1).min(Self::KEPT);
    }

    /// Returns the index of the least useful generation: the oldest if the next one is old enough,
    /// else the one closest to its neighbours.
    fn superfluous(&self, now: Instant) -> usize {
        let time = |place: usize| self.installed[place].1;
        let last = Self::KEPT - 1;
        if now.since(time(last - 1)) > Self::LONGEST {
            return last;
        }
        let gap = |&place: &usize| time(place - 1).since(time(place + 1));
        (1..last).min_by_key(gap).unwrap_or(last)
    }

    /// Returns the time at which the change of `age` generations ago took effect. If that
    /// generation is not kept, returns the time of the next later one that is.
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

    const SECOND: Step = Step {
        seconds: 1,
        halvings: 0,
    };

    /// A slot that these had, one after the other, the last one now.
    fn had_by(owners: &[u16]) -> Past {
        let mut past = Past::NONE;
        for pair in owners.windows(2) {
            past = past.next(Some, (Some(pair[0]), pair[1]), SECOND);
        }
        past
    }

    fn former(past: &Past) -> Vec<u16> {
        past.former().collect()
    }

    #[test]
    fn former_owners_are_the_newest_first_and_none_twice() {
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
        let next = past.next(renumbered, (Some(3), 0), SECOND);
        assert_eq!(former(&next), [3, 2, 1]);
        // The last owner itself is gone.
        let next = past.next(|m| (m != 4).then_some(m), (None, 1), SECOND);
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
            long_ago = long_ago.next(Some, (Some(2), 2), SECOND);
        }
        assert_eq!(long_ago.age(), Some(OLDEST), "and no change is forgotten");
        assert_eq!(former(&long_ago), [1]);
    }

    #[test]
    fn a_slot_forgets_who_had_it_for_the_shortest_time() {
        let seconds = |seconds| Step { seconds, ..SECOND };
        let after = |held: &[(u16, Step)]| {
            let mut past = Past::NONE;
            let owners = held.iter().map(|(owner, _)| *owner).chain([99]);
            for ((owner, step), next) in held.iter().zip(owners.skip(1)) {
                past = past.next(Some, (Some(*owner), next), *step);
            }
            former(&past)
        };
        let mut held: Vec<_> = (1..=9).map(|owner| (owner, seconds(10))).collect();
        assert_eq!(after(&held), [9, 8, 7, 6, 5, 4, 3]);
        held[0].1 = seconds(600);
        held[4].1 = seconds(9);
        held[7].1 = seconds(2);
        assert_eq!(after(&held), [9, 7, 6, 4, 3, 2, 1]);
        // Whoever comes back still has the time from before.
        held[7].0 = 3;
        assert_eq!(after(&held), [9, 3, 7, 6, 4, 2, 1]);
        // An hour later the ten minutes count as five.
        let hours = |halvings| Step {
            seconds: 310,
            halvings,
        };
        held[8].1 = hours(0);
        assert!(after(&held).contains(&1));
        let (mut past, owners) = (Past::NONE, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        for pair in owners.windows(2) {
            let step = if pair[0] == 1 {
                seconds(600)
            } else {
                hours(u32::from(pair[0] == 2))
            };
            past = past.next(Some, (Some(pair[0]), pair[1]), step);
        }
        assert_eq!(former(&past), [9, 8, 7, 6, 5, 4, 3]);
    }

    #[test]
    fn time_is_halved_every_hour_of_the_callers_clock() {
        let at = Instant::from_secs;
        for (from, to, seconds, halvings) in [
            (0, 0, 1, 0),
            (10, 20, 10, 0),
            (20, 10, 1, 0),
            (3599, 3601, 2, 1),
            (0, 7200, 7200, 2),
            (0, 1 << 40, u16::MAX, 16),
        ] {
            let step = Step::new(at(from), at(to));
            assert_eq!(
                (step.seconds, step.halvings),
                (seconds, halvings),
                "{from} {to}"
            );
        }
        assert_eq!(Step::new(at(0), at(1 << 40)).halved(u16::MAX), 0);
    }

    #[test]
    fn a_change_took_effect_when_its_generation_came_into_place() {
        let mut generations = Generations::new(5, Instant::from_secs(50));
        generations.install(6, Instant::from_secs(60));
        generations.install(9, Instant::from_secs(90)); // 7 and 8 were never in place
        for (age, time) in [(0, 90), (1, 90), (2, 90), (3, 60), (4, 50), (7, 50)] {
            assert_eq!(generations.time_of(age), Instant::from_secs(time), "{age}");
        }
    }

    #[test]
    fn many_generations_are_known_nearly_as_they_were() {
        for pause in [1, 10, 60, 600] {
            let mut generations = Generations::new(0, Instant::ZERO);
            let last = if cfg!(miri) { 300 } else { 5000 };
            for generation in 1..=last {
                generations.install(generation, Instant::from_secs(generation * pause));
            }
            for age in 0..=254 {
                let changed = Instant::from_secs((last - u64::from(age)) * pause);
                let known = generations.time_of(age);
                let now = Instant::from_secs(last * pause);
                assert!(known >= changed, "never earlier");
                let error = known.since(changed);
                let is_near = error <= Duration::from_secs(300);
                let is_old = now.since(known) > Duration::from_secs(1830);
                assert!(
                    is_near || is_old,
                    "every {pause} s, {age} ago: {error:?} later"
                );
            }
        }
    }
}
