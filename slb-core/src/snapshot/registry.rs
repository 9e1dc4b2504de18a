//! Ids that stay the same from one snapshot to the next.
//!
//! A name gets a slot and keeps it as long as it is configured. Freed slots are reused, the one
//! free for longest first, with another incarnation, so that an old id in a flow matches no
//! backend. If ids are stored without their incarnation, slots can be [spared](Registry::sparing).

use core::ops::Range;

use super::probe_map::{NONE, ProbeMap, RuleBucket};
use crate::hash::siphash13;
use crate::mem::Mem;

/// Bits of an id for the slot; the other bits count its incarnations.
pub(crate) const SLOT_BITS: u32 = 20;
const INCARNATIONS: u32 = 1 << (32 - SLOT_BITS);

/// The maximum number of slots.
pub(crate) const MAX_SLOTS: usize = 1 << SLOT_BITS;

/// A backend's id: the same in every generation as long as the backend is configured, and not
/// reused while a flow may still hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendId(u32);

impl BackendId {
    /// Returns the id as a number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the id in a value of the flow table: [`Flow::value`](crate::flow::Flow::value).
    #[inline]
    pub const fn from_value(value: u32) -> Self {
        Self(value)
    }

    /// Returns the index of the backend's counters.
    #[inline]
    pub const fn slot(self) -> usize {
        (self.0 & (MAX_SLOTS as u32 - 1)) as usize
    }
}

/// The owner of a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegistryEntry {
    /// The slot's id now.
    id: u32,
    /// Index of the slot's compiled owner, or [`NONE`].
    index: u32,
    /// The generation in which the slot became free.
    freed: u64,
    /// The identity of the slot's owner, or of its last one.
    identity: u64,
}

impl RegistryEntry {
    /// A slot that was never used.
    pub(crate) const EMPTY: Self = Self {
        id: 0,
        index: NONE,
        freed: 0,
        identity: 0,
    };
}

/// All slots and their owners.
#[derive(Debug)]
pub(crate) struct Registry<'m> {
    entries: Mem<'m, RegistryEntry>,
    /// The number of slots that were ever used.
    used: usize,
    /// The number of free slots among the used ones.
    free: usize,
    spared: Range<usize>,
    by_identity: ProbeMap<'m, u64, 5>,
    /// Identity of each slot's owner, apart from the entries, which packets read.
    identities: Mem<'m, u64>,
}

/// An identity that is registered already, for the owner compiled at this index.
#[derive(Debug)]
pub(crate) struct AlreadyRegistered(pub(crate) u32);

impl<'m> Registry<'m> {
    /// Returns the number of slots that a registry of `count` owners needs, after `previous`.
    pub(crate) fn slots_for(count: usize, previous: Option<&Registry<'_>>) -> usize {
        count.max(previous.map_or(0, |previous| previous.used))
    }

    /// Returns the number of slots that a registry of `count` owners needs, after `previous`, if it
    /// [spares](Self::sparing) some.
    pub(crate) fn slots_sparing(
        count: usize,
        previous: Option<&Registry<'_>>,
        spared: Range<usize>,
    ) -> usize {
        let least = Self::slots_for(count, previous);
        let used = previous.map_or(0, |previous| previous.used);
        match least > spared.start {
            // All owners may be new.
            true => (used + count).min(spared.end).max(least),
            false => least,
        }
    }

    /// Starts the next generation with all slots of the previous one, without owners.
    pub(crate) fn continue_from(
        previous: Option<&Registry<'_>>,
        generation: u64,
        mut entries: Mem<'m, RegistryEntry>,
        map: Mem<'m, RuleBucket>,
        identities: Mem<'m, u64>,
    ) -> Self {
        let mut used = 0;
        if let Some(previous) = previous {
            used = previous.used;
            for (entry, old) in entries.iter_mut().zip(previous.entries.iter().take(used)) {
                *entry = *old;
                if old.index != NONE {
                    entry.freed = generation; // unless it is kept
                }
                entry.index = NONE;
            }
        }
        Self {
            entries,
            used,
            free: used,
            spared: usize::MAX..usize::MAX,
            by_identity: ProbeMap::new(map),
            identities,
        }
    }

    /// Makes the registry spare a range: it reuses slots of the range only after each of them has
    /// had an owner.
    pub(crate) fn sparing(self, spared: Range<usize>) -> Self {
        Self { spared, ..self }
    }

    /// Registers the owner at `index` if `previous` knows its identity, and returns its slot. Call
    /// this for all owners before adding the first.
    pub(crate) fn keep(
        &mut self,
        previous: Option<&Registry<'_>>,
        identity: u64,
        index: u32,
    ) -> Result<Option<usize>, AlreadyRegistered> {
        let known = previous.and_then(|previous| {
            let slot = previous.by_identity.get(identity)?;
            (previous.entries.get(slot as usize)?.index != NONE).then_some(slot)
        });
        let Some(slot) = known else { return Ok(None) };
        self.register(identity, slot)?;
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            entry.index = index;
        }
        self.free -= 1;
        Ok(Some(slot as usize))
    }

    /// Registers a new owner in the slot that was free for longest, or else in a slot that was
    /// never used; in the spared range, prefers slots that were never used.
    ///
    /// # Cost
    /// Proportional to all slots, if one is free.
    pub(crate) fn add(&mut self, identity: u64, index: u32) -> Result<usize, AlreadyRegistered> {
        let has_new = self.used < self.entries.len().min(self.spared.end);
        let given_again = match self.free {
            0 => 0,
            _ if has_new => self.used.min(self.spared.start),
            _ => self.used,
        };
        let unowned = self.entries.iter().take(given_again).enumerate();
        let oldest = unowned
            .filter(|(_, e)| e.index == NONE)
            .min_by_key(|(_, e)| e.freed);
        let (slot, incarnation) = match oldest {
            Some((slot, entry)) => (slot, ((entry.id >> SLOT_BITS) + 1) % INCARNATIONS),
            None => (self.used, 0),
        };
        self.register(identity, slot as u32)?;
        if slot == self.used {
            self.used += 1;
        } else {
            self.free -= 1;
        }
        if let Some(entry) = self.entries.get_mut(slot) {
            let id = incarnation << SLOT_BITS | slot as u32;
            *entry = RegistryEntry {
                id,
                index,
                freed: 0,
                identity,
            };
        }
        Ok(slot)
    }

    /// Returns true if each id of `old` keeps its meaning here: a stored id finds its owner, or
    /// nothing.
    ///
    /// # Cost
    /// Proportional to the slots of `old`.
    pub(crate) fn follows(&self, old: &Registry<'_>) -> bool {
        let slots = old.entries.iter().take(old.used);
        let follows = |(now, before): (&RegistryEntry, &RegistryEntry)| {
            let (incarnation, former) = (now.id >> SLOT_BITS, before.id >> SLOT_BITS);
            match incarnation.wrapping_sub(former) % INCARNATIONS {
                // The slot was not reassigned: its owner still has it, or left it.
                0 => now.identity == before.identity && (now.index == NONE || before.index != NONE),
                later => later < INCARNATIONS / 2,
            }
        };
        old.used <= self.used && self.entries.iter().zip(slots).all(follows)
    }

    fn register(&mut self, identity: u64, slot: u32) -> Result<(), AlreadyRegistered> {
        self.by_identity.insert(identity, slot).map_err(|owner| {
            AlreadyRegistered(
                self.entries
                    .get(owner as usize)
                    .map_or(0, |entry| entry.index),
            )
        })?;
        if let Some(place) = self.identities.get_mut(slot as usize) {
            *place = identity;
        }
        Ok(())
    }

    /// Returns the id of a slot.
    pub(crate) fn id(&self, slot: usize) -> BackendId {
        BackendId(self.entries.get(slot).map_or(0, |entry| entry.id))
    }

    /// Returns the index of the compiled owner of an id; `None` if it is gone.
    #[inline]
    pub(crate) fn index(&self, id: BackendId) -> Option<u32> {
        let entry = self.entries.get(id.slot())?;
        (entry.id == id.0 && entry.index != NONE).then_some(entry.index)
    }

    /// Returns the index of an id's compiled owner, or [`NONE`] if the owner is gone; `None` if the slot has
    /// another owner.
    #[inline]
    pub(crate) fn last_index(&self, id: BackendId) -> Option<u32> {
        let entry = self.entries.get(id.slot())?;
        (entry.id == id.0).then_some(entry.index)
    }

    /// Returns the index of the compiled owner of a slot; `None` if it has none.
    #[inline]
    pub(crate) fn owner(&self, slot: usize) -> Option<u32> {
        let entry = self.entries.get(slot)?;
        (entry.index != NONE).then_some(entry.index)
    }

    /// Returns the identity of a slot's owner; `None` if the slot has none.
    pub(crate) fn identity_of(&self, slot: usize) -> Option<u64> {
        self.owner(slot)?;
        self.identities.get(slot).copied()
    }

    /// Returns the identity of a slot's owner, or of its last owner if it has none.
    pub(crate) fn last_identity_of(&self, slot: usize) -> Option<u64> {
        self.entries.get(slot).map(|entry| entry.identity)
    }

    /// Returns the slot of the owner with an identity; `None` if there is none.
    pub(crate) fn slot_of(&self, identity: u64) -> Option<usize> {
        self.by_identity.get(identity).map(|slot| slot as usize)
    }

    /// Returns the number of slots that were ever used.
    pub(crate) fn used(&self) -> usize {
        self.used
    }
}

/// Returns the hash of a name made of parts. The key is fixed, so that identities can be compared
/// between snapshots.
pub(crate) fn identity(parts: [&[u8]; 3]) -> u64 {
    parts.iter().fold(0, |so_far, part| {
        siphash13([so_far, part.len() as u64], part)
    })
}
