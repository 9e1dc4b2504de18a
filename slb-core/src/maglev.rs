//! Maglev's consistent hashing (Eisenbud et al., NSDI 2016, §3.4), with weights.
//!
//! Each backend has a permutation of the table's slots, derived from its name. Backends take turns,
//! and each takes the first free slot of its permutation. A table is a function of the *set* of
//! names and weights, the seed and the size: turns follow the order of names, not the given order.
//!
//! Weights: a backend gets its exact share of the slots, rounded down or up (largest remainder
//! first). There are `R` rounds, where `R` is the largest share. By the end of round `r`, a backend
//! with the share `q` has had `ceil(r*q/R)` turns: all backends take part in the first round, and
//! light ones skip rounds evenly. With equal weights, this is the paper's listing 1.
//!
//! With the listing, building takes about `size * ln(size)` steps, half of them for the last few
//! hundred slots, since a turn tries slots until it finds a free one. Here, the last turns search
//! in reverse: among the few free slots, they find the one that comes first in the permutation.
//!
//! Disturbance: when one of 100 backends is removed from a table of 65 537 slots, 0.53 to 0.60 % of
//! the other backends' slots change (test `a_removed_backend_disturbs_few_others`). If two backends
//! happen to have nearly the same skip, they follow each other through the table, and up to 1.3 %
//! change; another seed helps. This is inherent in the paper's permutations.
//!
//! Specification of a permutation, where `h(constant)` is the SipHash-1-3 of the name's bytes with
//! the key (seed, constant): `offset = h(OFFSET) mod size`, `skip = h(SKIP) mod (size - 1) + 1`.

use core::fmt;

use crate::hash::siphash13;

/// A slot without a backend, since no backend has any weight.
pub const EMPTY: u16 = u16::MAX;
/// The default table size: the paper's small one, sufficient for some 600 backends.
pub const DEFAULT_SIZE: u32 = 65_537;
/// The largest table size: 32 MiB for one pool.
pub const MAX_SIZE: u32 = 1 << 24;
/// The maximum number of backends in one table.
pub const MAX_BACKENDS: usize = EMPTY as usize;

const OFFSET: u64 = 0x6d61_676c_6576_0001; // "maglev", 1
const SKIP: u64 = 0x6d61_676c_6576_0002;

/// When this many free slots are left, turns compare all of them instead of trying one by one. The
/// two methods cost about the same at `free = size / free`, except for the inverse that the second
/// needs (`slb bench maglev`: 128 and 256 perform alike for 65 537 slots).
const TAIL: usize = 256;

/// A backend of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Name of the member, unique among members with a weight.
    pub name: &'a str,
    /// Share relative to the other members; none when zero.
    pub weight: u32,
}

/// Working memory of a build; one element for each member.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// The position of the next slot to try; if `is_late`, the slot that the member got last.
    next: u64,
    /// The position of the slot `skip`; if `is_late`, that of the skip's inverse.
    skip: u64,
    /// The number of slots that the member gets.
    quota: u32,
    /// The number of turns that the member has had, or the rest of a round's credit.
    credit: u32,
    /// Index of the member.
    member: u16,
    /// Rank of the member in the order of names.
    order: u16,
    /// True if the member has compared the last free slots.
    is_late: bool,
}

/// The reason why a table cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MaglevError {
    /// The table's size is not a prime from 3 to [`MAX_SIZE`].
    SizeNotPrime {
        /// The size given.
        size: usize,
    },
    /// There are more members than slots, or than [`MAX_BACKENDS`].
    TooManyMembers {
        /// The number of members given.
        members: usize,
        /// The maximum number.
        most: usize,
    },
    /// The working memory is too small.
    TooFewTurns {
        /// The number of turns given.
        turns: usize,
        /// The number of turns needed.
        needed: usize,
    },
    /// Two members with a weight have the same name.
    DuplicateName {
        /// The index of one of the members.
        member: usize,
    },
}

impl fmt::Display for MaglevError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SizeNotPrime { size } => {
                write!(
                    f,
                    "the table's size must be a prime from 3 to {MAX_SIZE}, not {size}"
                )
            }
            Self::TooManyMembers { members, most } => {
                write!(f, "{members} backends, but the table takes at most {most}")
            }
            Self::TooFewTurns { turns, needed } => {
                write!(
                    f,
                    "working memory for {turns} backends, but there are {needed}"
                )
            }
            Self::DuplicateName { member } => {
                write!(f, "backend {member}: duplicate name")
            }
        }
    }
}

impl core::error::Error for MaglevError {}

/// Builds the table of `members` into `table`, whose length is the size. Each slot gets the index
/// of its backend in `members`, or [`EMPTY`] if no member has any weight.
///
/// # Errors
/// See [`MaglevError`]; the table is then unchanged.
///
/// # Cost
/// For 65 537 slots and 1000 members about 0.85 ms (`slb bench`, lines `maglev`).
pub fn build(
    members: &[Member<'_>],
    seed: u64,
    table: &mut [u16],
    turns: &mut [Turn],
) -> Result<(), MaglevError> {
    build_with(members.len(), |place| members[place], seed, table, turns)
}

/// Builds a table like [`build`], for `count` members that the caller stores in another form.
pub(crate) fn build_with<'a>(
    count: usize,
    member: impl Fn(usize) -> Member<'a>,
    seed: u64,
    table: &mut [u16],
    turns: &mut [Turn],
) -> Result<(), MaglevError> {
    let size = match u32::try_from(table.len()) {
        Ok(size) if is_valid_size(size) => size,
        _ => return Err(MaglevError::SizeNotPrime { size: table.len() }),
    };
    let most = MAX_BACKENDS.min(table.len());
    if count > most {
        return Err(MaglevError::TooManyMembers {
            members: count,
            most,
        });
    }
    let available = turns.len();
    let Some(turns) = turns.get_mut(..count) else {
        return Err(MaglevError::TooFewTurns {
            turns: available,
            needed: count,
        });
    };

    for (place, turn) in turns.iter_mut().enumerate() {
        *turn = Turn {
            member: place as u16,
            ..Turn::default()
        };
    }
    let name = |turn: &Turn| member(usize::from(turn.member)).name;
    let weighs = |turn: &Turn| member(usize::from(turn.member)).weight != 0;
    // Of several members with one name, the one with a weight comes first.
    turns.sort_unstable_by(|a, b| name(a).cmp(name(b)).then(weighs(b).cmp(&weighs(a))));
    for pair in turns.windows(2) {
        if name(&pair[0]) == name(&pair[1]) && weighs(&pair[1]) {
            return Err(MaglevError::DuplicateName {
                member: pair[1].member.into(),
            });
        }
    }

    table.fill(EMPTY);
    let turns = share_out(|turn| member(usize::from(turn.member)).weight, size, turns);
    let circle = Circle::new(size);
    for (order, turn) in turns.iter_mut().enumerate() {
        let name = name(turn).as_bytes();
        let offset = siphash13([seed, OFFSET], name) % u64::from(size);
        let skip = siphash13([seed, SKIP], name) % u64::from(size - 1) + 1;
        turn.order = order as u16;
        turn.next = circle.position(offset);
        turn.skip = circle.position(skip);
    }
    populate(turns, table);
    Ok(())
}

/// Returns two members with the same name, regardless of their weights; `None` if there are none.
/// Ignores members without a name.
pub(crate) fn duplicate_name<'a>(
    count: usize,
    name: impl Fn(usize) -> Option<&'a str>,
    turns: &mut [Turn],
) -> Option<(usize, usize)> {
    let turns = turns.get_mut(..count)?;
    for (place, turn) in turns.iter_mut().enumerate() {
        turn.member = place as u16;
    }
    let name = |turn: &Turn| name(usize::from(turn.member));
    turns.sort_unstable_by(|a, b| name(a).cmp(&name(b)).then(a.member.cmp(&b.member)));
    let mut pairs = turns.windows(2);
    let same = pairs.find(|pair| name(&pair[0]).is_some() && name(&pair[0]) == name(&pair[1]))?;
    Some((same[0].member.into(), same[1].member.into()))
}

/// Returns true if a table may have this size: it has to be a prime, so that every skip visits
/// every slot.
pub const fn is_valid_size(size: u32) -> bool {
    if size < 3 || size > MAX_SIZE || size.is_multiple_of(2) {
        return false;
    }
    let mut divisor = 3;
    while divisor * divisor <= size {
        if size.is_multiple_of(divisor) {
            return false;
        }
        divisor += 2;
    }
    true
}

/// Returns the slot of a hash in a table of `size` slots: the hash's high half, scaled without a
/// division.
#[inline]
pub const fn slot(hash: u64, size: u32) -> usize {
    (((hash >> 32) * size as u64) >> 32) as usize
}

/// A table that owns its memory, for client-side balancers that agree with the muxes.
///
/// Any hash can be the key, for sharding of any kind. With the tuple's hash, the choice agrees with
/// a mux that has the same hasher, seed, names and weights, and no flow of the tuple:
/// ```
/// use slb_core::hash::{Distribution, Hasher};
/// use slb_core::maglev::Table;
/// use slb_core::packet::Tuple;
///
/// let names = ["vm1", "vm2", "vm3"];
/// let table = Table::new(names, 0)?; // `hash_seed` of the muxes
/// let tuple = Tuple {
///     source: "198.51.100.7".parse()?,
///     destination: "203.0.113.80".parse()?, // the VIP
///     source_port: 50_000,
///     destination_port: 80,
///     protocol: 6,
/// };
/// let hash = tuple.hash(&Hasher::default(), Distribution::FiveTuple).expect("one family");
/// let backend = names[table.choose(hash).expect("there are backends")];
/// # let _ = backend;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    slots: alloc::boxed::Box<[u16]>,
}

#[cfg(feature = "alloc")]
impl Table {
    /// Makes a table of [`DEFAULT_SIZE`] slots for members of equal weight.
    ///
    /// # Errors
    /// Two members have the same name, or there are too many members.
    pub fn new<'a>(
        names: impl IntoIterator<Item = &'a str>,
        seed: u64,
    ) -> Result<Self, MaglevError> {
        let members = names.into_iter().map(|name| Member { name, weight: 1 });
        let members: alloc::vec::Vec<Member<'a>> = members.collect();
        Self::with_members(&members, DEFAULT_SIZE, seed)
    }

    /// Makes a table of `size` slots. It equals the table of a mux's pool with the same names,
    /// weights and size, and the same [`hash_seed`](crate::spec::Spec::hash_seed).
    ///
    /// # Errors
    /// See [`MaglevError`].
    pub fn with_members(members: &[Member<'_>], size: u32, seed: u64) -> Result<Self, MaglevError> {
        if !is_valid_size(size) {
            let size = size as usize;
            return Err(MaglevError::SizeNotPrime { size });
        }
        let mut slots = alloc::vec![EMPTY; size as usize];
        let mut turns = alloc::vec![Turn::default(); members.len()];
        build(members, seed, &mut slots, &mut turns)?;
        Ok(Self {
            slots: slots.into_boxed_slice(),
        })
    }

    /// Returns the index of the member for a key; `None` if no member has any weight. The key is a
    /// hash of 64 bits, for example of a packet's tuple.
    pub fn choose(&self, key: u64) -> Option<usize> {
        let slot = self.slots.get(slot(key, self.slots.len() as u32));
        slot.filter(|member| **member != EMPTY)
            .map(|member| usize::from(*member))
    }
}

/// Sets the quota of each turn by the largest remainder; returns the turns with a quota, by name.
fn share_out(weight: impl Fn(&Turn) -> u32, size: u32, turns: &mut [Turn]) -> &mut [Turn] {
    let weight = |turn: &Turn| u64::from(weight(turn));
    let total: u64 = turns.iter().map(weight).sum();
    if total == 0 {
        return &mut [];
    }
    // share = size * weight / total = quota + remainder / total
    let remainder = |turn: &Turn| u64::from(size) * weight(turn) % total;
    let mut left = size;
    for (order, turn) in turns.iter_mut().enumerate() {
        turn.quota = (u64::from(size) * weight(turn) / total) as u32;
        turn.order = order as u16;
        left -= turn.quota;
    }
    let alike = turns
        .windows(2)
        .all(|pair| remainder(&pair[0]) == remainder(&pair[1]));
    if !alike {
        turns.sort_unstable_by_key(|turn| (core::cmp::Reverse(remainder(turn)), turn.order));
    }
    for turn in turns.iter_mut().take(left as usize) {
        turn.quota += 1;
    }
    // Sort by name again; members without a slot come last.
    turns.sort_unstable_by_key(|turn| (turn.quota == 0, turn.order));
    let with_slots = turns.iter().take_while(|turn| turn.quota != 0).count();
    &mut turns[..with_slots]
}

/// Lets the turns take all slots of the empty `table`. Their quotas add up to its length.
fn populate(turns: &mut [Turn], table: &mut [u16]) {
    let rounds = turns.iter().map(|turn| turn.quota).max().unwrap_or(0);
    let visits = rounds as usize * turns.len();
    let mut filling = Filling::new(table);
    // Iterating over all turns is fast unless most of them skip most rounds.
    if visits <= 8 * filling.free {
        populate_by_rounds(turns, rounds, &mut filling);
    } else {
        populate_by_heap(turns, rounds, &mut filling);
    }
}

fn populate_by_rounds(turns: &mut [Turn], rounds: u32, filling: &mut Filling<'_>) {
    for turn in turns.iter_mut() {
        turn.credit = rounds - 1; // so that all members take part in the first round
    }
    for _ in 0..rounds {
        for turn in turns.iter_mut() {
            turn.credit += turn.quota;
            if turn.credit >= rounds {
                turn.credit -= rounds;
                filling.take(turn);
            }
        }
    }
}

/// Fills the table like [`populate_by_rounds`], for widely differing weights: the next turn is the
/// smallest in a binary heap over (round, order).
fn populate_by_heap(turns: &mut [Turn], rounds: u32, filling: &mut Filling<'_>) {
    // After `credit` turns, the next turn is in the first round r with r*quota > credit*rounds.
    let key = |turn: &Turn| {
        let round = u64::from(turn.credit) * u64::from(rounds) / u64::from(turn.quota);
        (round, turn.order)
    };
    let sift_down = |heap: &mut [Turn], mut parent: usize| {
        loop {
            let mut child = 2 * parent + 1;
            if child + 1 < heap.len() && key(&heap[child + 1]) < key(&heap[child]) {
                child += 1;
            }
            if child >= heap.len() || key(&heap[parent]) <= key(&heap[child]) {
                return;
            }
            heap.swap(parent, child);
            parent = child;
        }
    };
    for turn in turns.iter_mut() {
        turn.credit = 0;
    }
    let mut live = turns.len();
    for parent in (0..live / 2).rev() {
        sift_down(turns, parent);
    }
    while live > 0 {
        filling.take(&mut turns[0]);
        turns[0].credit += 1;
        if turns[0].credit == turns[0].quota {
            live -= 1;
            turns.swap(0, live);
        }
        sift_down(&mut turns[..live], 0);
    }
}

/// The slots on a circle whose circumference is 2^64, so that a step around it is an addition
/// without a comparison.
///
/// Positions of slots are rounded up. The sum of `n` positions is above the exact sum by at most
/// `n`, which is less than a slot as long as `n * size` is less than 2^64. Sizes are at most 2^24,
/// and so are the steps of a permutation.
#[derive(Clone, Copy, Debug)]
struct Circle {
    size: u64,
    /// The length of a slot, rounded down.
    slot: u64,
    /// 2^64 modulo the size, which is an odd number and so does not divide 2^64.
    rest: u64,
}

impl Circle {
    const fn new(size: u32) -> Self {
        let size = size as u64;
        Self {
            size,
            slot: u64::MAX / size,
            rest: u64::MAX % size + 1,
        }
    }

    /// Returns the first position of a slot.
    #[inline]
    const fn position(self, slot: u64) -> u64 {
        slot * self.slot + slot * self.rest / self.size + 1
    }

    /// Returns the slot of a position.
    #[inline(always)] // the innermost loop
    const fn slot(self, position: u64) -> usize {
        ((position as u128 * self.size as u128) >> 64) as usize
    }
}

/// A table being filled.
struct Filling<'a> {
    table: &'a mut [u16],
    circle: Circle,
    free: usize,
    tail: Tail,
}

/// The last free slots.
struct Tail {
    slots: [u32; TAIL],
    gathered: bool,
}

impl<'a> Filling<'a> {
    fn new(table: &'a mut [u16]) -> Self {
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
    fn take(&mut self, turn: &mut Turn) {
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
    use alloc::vec;
    use alloc::vec::Vec;
    use serde_json::Value;

    fn number(value: &Value) -> u32 {
        u32::try_from(value.as_u64().unwrap()).unwrap()
    }

    fn populated(permutations: &[(u16, u32, u32)], size: u32) -> Vec<u16> {
        let circle = Circle::new(size);
        let mut turns: Vec<Turn> = permutations
            .iter()
            .map(|&(member, next, skip)| Turn {
                next: circle.position(next.into()),
                skip: circle.position(skip.into()),
                member,
                ..Turn::default()
            })
            .collect();
        let mut table = vec![EMPTY; size as usize];
        let turns = share_out(|_| 1, size, &mut turns);
        populate(turns, &mut table);
        table
    }

    /// NSDI'16 table 1, and every other subset of its three backends.
    #[test]
    fn the_published_population() {
        let vectors = include_str!("../tests/vectors/maglev-population.json");
        let vectors: Value = serde_json::from_str(vectors).unwrap();
        let size = number(&vectors["table_size"]);
        let tables = vectors["tables"].as_array().unwrap();
        for case in tables {
            let alive: Vec<_> = case["alive"]
                .as_array()
                .unwrap()
                .iter()
                .map(number)
                .collect();
            let permutations: Vec<_> = alive
                .iter()
                .map(|&i| {
                    let backend = &vectors["backends"][i as usize];
                    (
                        i as u16,
                        number(&backend["offset"]),
                        number(&backend["skip"]),
                    )
                })
                .collect();
            let expected: Vec<_> = case["lookup"]
                .as_array()
                .unwrap()
                .iter()
                .map(number)
                .collect();
            let table: Vec<_> = populated(&permutations, size)
                .into_iter()
                .map(u32::from)
                .collect();
            assert_eq!(table, expected, "alive: {alive:?}");
        }
        assert_eq!(tables.len(), 7);
    }

    /// The listing, step by step, without quotas or shortcuts.
    fn by_the_listing(permutations: &[(u16, u32, u32)], size: u32) -> Vec<u16> {
        let mut next: Vec<u32> = vec![0; permutations.len()];
        let mut table = vec![EMPTY; size as usize];
        let mut filled = 0;
        loop {
            for (i, &(member, offset, skip)) in permutations.iter().enumerate() {
                let slot = |j: u32| {
                    ((u64::from(offset) + u64::from(j) * u64::from(skip)) % u64::from(size))
                        as usize
                };
                while table[slot(next[i])] != EMPTY {
                    next[i] += 1;
                }
                table[slot(next[i])] = member;
                next[i] += 1;
                filled += 1;
                if filled == size {
                    return table;
                }
            }
        }
    }

    #[test]
    fn equal_weights_are_the_listing() {
        bolero::check!()
            .with_type::<(Vec<(u32, u32)>, u8)>()
            .for_each(|(seeds, choice)| {
                let sizes = [3, 7, 131, 251, 1009];
                let size = sizes[usize::from(*choice) % sizes.len()];
                let permutations: Vec<_> = seeds
                    .iter()
                    .take(size as usize)
                    .enumerate()
                    .map(|(i, &(a, b))| (i as u16, a % size, b % (size - 1) + 1))
                    .collect();
                if !permutations.is_empty() {
                    let expected = by_the_listing(&permutations, size);
                    assert_eq!(populated(&permutations, size), expected);
                }
            });
    }

    #[test]
    fn both_ways_of_taking_turns_agree() {
        bolero::check!()
            .with_type::<Vec<(u32, u32, u8)>>()
            .for_each(|seeds| {
                let size = 251;
                let circle = Circle::new(size);
                let members: Vec<_> = seeds.iter().take(60).enumerate().collect();
                let turns = || {
                    members.iter().map(|&(i, &(a, b, _))| Turn {
                        next: circle.position((a % size).into()),
                        skip: circle.position((b % (size - 1) + 1).into()),
                        member: i as u16,
                        ..Turn::default()
                    })
                };
                let weight = |turn: &Turn| u32::from(seeds[usize::from(turn.member)].2);
                let mut tables = [vec![EMPTY; size as usize], vec![EMPTY; size as usize]];
                let [a, b] = &mut tables;
                for (way, table) in [
                    (populate_by_rounds as fn(&mut [_], _, &mut Filling<'_>), a),
                    (populate_by_heap, b),
                ] {
                    let mut turns: Vec<_> = turns().collect();
                    let turns = share_out(weight, size, &mut turns);
                    for (order, turn) in turns.iter_mut().enumerate() {
                        turn.order = order as u16;
                    }
                    let rounds = turns.iter().map(|turn| turn.quota).max().unwrap_or(0);
                    way(turns, rounds, &mut Filling::new(table));
                }
                assert_eq!(tables[0], tables[1]);
            });
    }

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

    /// Tables that are large enough for every way of finding a free slot.
    #[test]
    fn large_tables_are_the_listing() {
        let mut random = 1u64;
        let mut random = |below: u32| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (random >> 33) as u32 % below
        };
        for (size, count) in [(65_537, 1000), (65_537, 3), (4093, 700), (4093, 4093)] {
            let size = if cfg!(miri) { 1009 } else { size };
            let count = count.min(size) as u16;
            let permutations: Vec<_> = (0..count)
                .map(|i| (i, random(size), random(size - 1) + 1))
                .collect();
            let expected = by_the_listing(&permutations, size);
            assert_eq!(
                populated(&permutations, size),
                expected,
                "{count} in {size}"
            );
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
