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

mod filling;
mod turns;

use core::fmt;

use crate::hash::siphash13;
use filling::Circle;
pub use turns::Turn;
use turns::{populate, share_out};

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

/// A backend of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Name of the member, unique among members with a weight.
    pub name: &'a str,
    /// Share relative to the other members; none when zero.
    pub weight: u32,
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
