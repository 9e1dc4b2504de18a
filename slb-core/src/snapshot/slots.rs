//! Slots of Maglev tables: the slot of a packet, and the owners of a slot.

use super::ages;
use super::owners::Past;
use super::probe_map::NONE;
use super::terms::RuleKind;
use super::{BackendId, CompiledBackend, CompiledRule, Slot, Snapshot};
use crate::hash::TupleHasher;
use crate::maglev;
use crate::packet::{Family, Packet};
use crate::prefetch::prefetch_address;
use crate::spec::snat::GRANULE;

impl Snapshot<'_> {
    /// Yields the owner of each slot of a rule's Maglev table; `None` for an empty slot. Yields
    /// nothing if there is no such rule.
    pub fn slots(&self, rule: u32) -> impl Iterator<Item = Option<BackendId>> + '_ {
        let rule = self.rule(rule);
        let slots = rule.map(|rule| {
            let first = rule.first_slot();
            (first..first + rule.table_size as usize).map(|slot| (rule.first_backend, slot))
        });
        let whose = |(first, slot)| {
            let backend = self.backend(self.backend_at(first, slot)?);
            backend.map(CompiledBackend::id)
        };
        slots.into_iter().flatten().map(whose)
    }

    /// Returns the slot of a packet with this hash in the rule's table.
    #[inline]
    pub(crate) fn table_index(&self, rule: &CompiledRule, packet: &Packet, hash: u64) -> usize {
        self.table_index_of(rule, packet.raw_destination_port(), hash)
    }

    /// Returns the slot in the rule's table of a packet for a port in packets' byte order, read
    /// little-endian.
    #[inline]
    pub(crate) fn table_index_of(&self, rule: &CompiledRule, raw_port: u16, hash: u64) -> usize {
        let slot = if rule.by_port {
            usize::from(raw_port.swap_bytes()) / GRANULE as usize
        } else {
            maglev::slot(hash, rule.table_size)
        };
        rule.table_start as usize + slot
    }

    /// Returns the index of the backend in a slot of the rule's table; `None` if no backend may take
    /// the flow.
    #[inline]
    pub(crate) fn backend_at(&self, first_backend: u32, table_index: usize) -> Option<u32> {
        let member = *self.table.get(table_index)?;
        (member != maglev::EMPTY).then(|| first_backend + u32::from(member))
    }

    /// Returns the backend in a slot of the rule's table, and its index among all backends.
    #[inline]
    pub(crate) fn backend_in(
        &self,
        first_backend: u32,
        table_index: usize,
    ) -> Option<(u32, &CompiledBackend)> {
        let index = self.backend_at(first_backend, table_index)?;
        Some((index, self.backend(index)?))
    }

    /// Returns the slot of a packet in the table of a balancing rule, with its owners.
    pub(crate) fn slot_of(&self, rule: u32, packet: &Packet) -> Option<Slot> {
        let (compiled, terms) = (self.rule(rule)?, self.terms(rule)?);
        let packet = &packet.as_balanced();
        let hash = self.hash(packet, compiled.mask);
        let place = self.table_index(compiled, packet, hash);
        let slot = place - compiled.first_slot();
        let past = match terms.past {
            NONE => None,
            start => self.past.get(start as usize + slot),
        };
        Some(Slot {
            owner: self.backend_at(compiled.first_backend, place),
            first_backend: compiled.first_backend,
            past: past.copied().unwrap_or(Past::NONE),
        })
    }

    /// Returns the generations since a slot last changed its backend; `None` if no change is known.
    /// The index counts the slots of all tables.
    pub(crate) fn age_of(&self, table_index: usize) -> Option<u8> {
        ages::generations(*self.ages.get(table_index)?)
    }

    /// Yields the present owner of a slot of a balancing rule's table, then the former owners, the
    /// newest first, each once. Only host agents remember former owners, and only for pools with a
    /// backend on this node. Yields nothing if there is no such rule or slot.
    pub fn owners(&self, rule: u32, slot: usize) -> impl Iterator<Item = BackendId> + '_ {
        let terms = self.terms(rule).filter(|t| t.kind == RuleKind::Balance);
        let rule = terms.and_then(|_| self.rule(rule));
        let rule = rule.filter(|rule| slot < rule.table_size as usize);
        let all = rule.zip(terms).into_iter().flat_map(move |(rule, terms)| {
            let owner = self.backend_at(rule.first_backend, rule.first_slot() + slot);
            let past = match terms.past {
                NONE => None,
                start => self.past.get(start as usize + slot),
            };
            let former = past.into_iter().flat_map(Past::former);
            let former = former.map(|member| rule.first_backend + u32::from(member));
            owner.into_iter().chain(former)
        });
        all.filter_map(|index| Some(self.backend(index)?.id()))
    }

    /// Returns true if the rule is that of a VIP's SNAT ports, and the packet is for a port in a
    /// backend's block.
    pub(crate) fn is_port_of_block(&self, rule: u32, packet: &Packet) -> bool {
        let owner = self.rule(rule).and_then(|rule| {
            let place = self.table_index(rule, packet, 0);
            self.backend_at(rule.first_backend, place)
        });
        owner.is_some()
    }

    /// Returns the Maglev tables of all pools, concatenated.
    #[inline]
    pub(crate) fn all_slots(&self) -> &[u16] {
        &self.table
    }

    /// Returns the backends from a pool's first one on, as many as slots can refer to;
    /// [`maglev::EMPTY`] refers to none.
    #[inline]
    pub(crate) fn backends_from(&self, first: u32) -> &[CompiledBackend] {
        let backends = self.backends.get(first as usize..).unwrap_or_default();
        let count = backends.len().min(maglev::EMPTY.into());
        backends.get(..count).unwrap_or_default()
    }

    /// Starts loading a Maglev slot.
    #[inline]
    pub(crate) fn prefetch_slot(&self, table_index: usize) {
        let slot = self.table.as_ptr().wrapping_add(table_index);
        prefetch_address(slot.cast());
    }

    /// Returns the hash of the parts of a packet's tuple that `mask` selects.
    #[inline]
    pub(crate) fn hash(&self, packet: &Packet, mask: u64) -> u64 {
        let rest = packet.ports_and_protocol() & mask;
        match packet.shape.family {
            Family::Ipv4 => self.hasher.ipv4(&[packet.addresses[0], rest]),
            Family::Ipv6 => {
                let [a, b, c, d] = packet.addresses;
                self.hasher.ipv6(&[a, b, c, d, rest])
            }
        }
    }

    /// Returns the Maglev table of a pool for rules without a probe: indexes in the pool's
    /// backends, or [`maglev::EMPTY`]. `pool` is an index in
    /// [`Spec::pools`](crate::spec::Spec::pools).
    pub fn pool_table(&self, pool: usize) -> Option<&[u16]> {
        self.table.get(self.pools.get(pool)?.table())
    }
}
