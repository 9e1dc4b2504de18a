//! Access lists in the form that first packets are looked up in.
//!
//! ```text
//!  protocol ─────────► set of rules ─┐
//!  source address ───► set of rules ─┤
//!  destination ──────► set of rules ─┼─ and ─► the first rule of all sets
//!  source port ──────► set of rules ─┤
//!  destination port ─► set of rules ─┘
//! ```
//! Each list has a table for each direction, with its rules in the order of their priorities. For each field
//! the table divides all values into intervals within which the same rules match, and has a set of rules, a bit
//! for each, for every interval. A packet takes a binary search for each address and port, and one pass
//! over the words of the sets: sixteen for a thousand rules. Tags such as `network` depend on the vm, and are
//! sets of their own beside the intervals.

mod compile;
#[cfg(all(test, feature = "alloc"))]
mod tests;

use core::net::IpAddr;

pub(crate) use self::compile::SecuritySize;
use super::probe_map::NONE;
use super::registry::Registry;
use crate::mem::Mem;
use crate::nat::Direction;
use crate::spec::{Access, SecurityProtocol};
use crate::wire::protocol;

/// The first packet of a connection, as access lists see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Places of the source and the destination.
    pub(crate) places: [Place; 2],
    pub(crate) protocol: u8,
    /// The sender's and the receiver's port; `None` of a protocol without ports.
    pub(crate) ports: Option<[u16; 2]>,
}

/// The place of an address, seen from a vm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The vm's network.
    Network,
    /// The source of the node's probes.
    LoadBalancer,
    /// The Internet.
    Internet,
    /// Another private network.
    Other,
}

impl Place {
    /// The number of places that rules can name.
    const COUNT: usize = 3;

    /// The index of the place's set; `None` of a place that no rule can name.
    fn index(self) -> Option<usize> {
        match self {
            Self::Network => Some(0),
            Self::LoadBalancer => Some(1),
            Self::Internet => Some(2),
            Self::Other => None,
        }
    }
}

/// A rule's decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompiledSecurityRule {
    pub(crate) access: Access,
    /// The index of the rule among [`SecurityList::all_rules`](crate::spec::SecurityList::all_rules).
    pub(crate) item: u16,
    /// The place of its counters.
    pub(crate) counters: u32,
}

/// The intervals of one field: the first value of each, ascending from zero.
#[derive(Clone, Copy, Debug)]
struct Column {
    /// The index of the first interval among those of all tables.
    first: u32,
    intervals: u32,
    /// The index of the first interval's set. The others follow.
    sets: u32,
}

impl Column {
    const EMPTY: Self = Self {
        first: 0,
        intervals: 0,
        sets: 0,
    };
}

/// The rules of a list for one direction.
#[derive(Clone, Copy, Debug)]
struct CompiledTable {
    /// The index of the first rule among those of all tables.
    rules: u32,
    /// Words of a set.
    words: u32,
    /// The index of the first protocol's set.
    protocols: u32,
    /// The indexes of the first place's set, for sources and for destinations.
    places: [u32; 2],
    /// For sources and for destinations.
    ipv4: [Column; 2],
    ipv6: [Column; 2],
    ports: [Column; 2],
    /// The indexes of the sets of rules that name no ports of sources, and none of destinations.
    any_ports: [u32; 2],
}

impl CompiledTable {
    const EMPTY: Self = Self {
        rules: 0,
        words: 0,
        protocols: 0,
        places: [0; 2],
        ipv4: [Column::EMPTY; 2],
        ipv6: [Column::EMPTY; 2],
        ports: [Column::EMPTY; 2],
        any_ports: [0; 2],
    };
}

/// A list that a vm has, and the next one.
#[derive(Clone, Copy, Debug)]
struct VmList {
    list: u32,
    next: u32,
}

/// All access lists.
#[derive(Debug)]
pub(crate) struct Security<'m> {
    /// Two for each list: [`Direction::Inward`], then [`Direction::Outward`].
    tables: Mem<'m, CompiledTable>,
    rules: Mem<'m, CompiledSecurityRule>,
    /// First values of intervals.
    ipv4: Mem<'m, u32>,
    ipv6: Mem<'m, u128>,
    ports: Mem<'m, u16>,
    sets: Mem<'m, u64>,
    /// Places of counters, list by list, for each in the order of
    /// [`SecurityList::all_rules`](crate::spec::SecurityList::all_rules).
    counters: Mem<'m, u32>,
    /// The index in `counters` of each list's first rule, and the end of the last one.
    first_counters: Mem<'m, u32>,
    ids: Registry<'m>,
    vm_lists: Mem<'m, VmList>,
    vm_list_count: usize,
}

/// The first list of a vm; [`VmLists::NONE`] where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmLists(u32);

impl VmLists {
    pub(crate) const NONE: Self = Self(NONE);

    /// Returns true if the vm has no list.
    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self.0 == NONE
    }
}

impl Security<'_> {
    /// Returns true if no vm of this node has a list.
    #[inline]
    pub(crate) fn is_unused(&self) -> bool {
        self.vm_list_count == 0
    }

    /// The lists of a vm, the network's first.
    pub(crate) fn lists_of(&self, vm: VmLists) -> impl Iterator<Item = u32> + '_ {
        let mut next = vm.0;
        core::iter::from_fn(move || {
            let place = self.vm_lists.get(next as usize)?;
            next = place.next;
            Some(place.list)
        })
    }

    /// The rule of a list that decides about a packet; `None` where there is no such list.
    ///
    /// # Cost
    /// A binary search for each address and port, and a word operation for each 64 rules and field.
    pub(crate) fn judge(
        &self,
        list: u32,
        direction: Direction,
        asked: &Asked,
    ) -> Option<&CompiledSecurityRule> {
        let table = self.tables.get(list as usize * 2 + direction as usize)?;
        let words = table.words as usize;
        let set = |first: usize| self.sets.get(first..first + words).unwrap_or_default();
        let protocols = set(table.protocols as usize + class(asked.protocol) * words);
        let addresses = [
            set(self.address_set(table, 0, asked.source)?),
            set(self.address_set(table, 1, asked.destination)?),
        ];
        let places = [0, 1].map(|side| match asked.places[side].index() {
            Some(place) => set(table.places[side] as usize + place * words),
            None => &[],
        });
        let ports = [0, 1].map(|side| match asked.ports {
            Some(ports) => set(find(&self.ports, &table.ports[side], words, &ports[side])),
            None => set(table.any_ports[side] as usize),
        });
        let word = |set: &[u64], at: usize| set.get(at).copied().unwrap_or(0);
        for at in 0..words {
            let of_side = |side: usize| word(addresses[side], at) | word(places[side], at);
            let all = word(protocols, at) & word(ports[0], at) & word(ports[1], at);
            let all = all & of_side(0) & of_side(1);
            if all != 0 {
                let rule = at * 64 + all.trailing_zeros() as usize;
                return self.rules.get(table.rules as usize + rule);
            }
        }
        None
    }

    /// The index of the set of an address on one side.
    fn address_set(&self, table: &CompiledTable, side: usize, address: IpAddr) -> Option<usize> {
        let words = table.words as usize;
        Some(match address {
            IpAddr::V4(address) => {
                let column = table.ipv4.get(side)?;
                find(&self.ipv4, column, words, &address.to_bits())
            }
            IpAddr::V6(address) => {
                let column = table.ipv6.get(side)?;
                find(&self.ipv6, column, words, &address.to_bits())
            }
        })
    }

    /// The place of the counters of a list's rule.
    pub(crate) fn counters_of(&self, list: usize, item: usize) -> Option<usize> {
        let first = *self.first_counters.get(list)? as usize;
        let end = *self.first_counters.get(list + 1)? as usize;
        let place = first.checked_add(item).filter(|place| *place < end)?;
        self.counters.get(place).map(|place| *place as usize)
    }

    /// The number of rules of a list.
    pub(crate) fn rules_of(&self, list: usize) -> Option<usize> {
        let ends = self.first_counters.get(list..)?.first_chunk::<2>()?;
        let [first, end] = ends.map(|end| end as usize);
        Some(end - first)
    }

    /// Places that counters of rules need.
    pub(crate) fn counter_slots(&self) -> usize {
        self.ids.used()
    }

    /// All places of counters, each with the id of its rule.
    pub(crate) fn counter_ids(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let places = self.counters.iter().map(|place| *place as usize);
        places.map(|place| (place, self.ids.id(place).get()))
    }
}

/// The index of the set of a value.
fn find<T: Ord>(values: &[T], column: &Column, words: usize, value: &T) -> usize {
    let first = column.first as usize;
    let intervals = values.get(first..first + column.intervals as usize);
    let after = intervals.unwrap_or_default();
    let after = after.partition_point(|first| first <= value);
    column.sets as usize + after.saturating_sub(1) * words
}

/// Protocols that rules tell apart, and one for all others.
const CLASSES: usize = 6;

/// The class of a protocol number.
fn class(number: u8) -> usize {
    match number {
        protocol::TCP => 0,
        protocol::UDP => 1,
        protocol::ICMP | protocol::ICMPV6 => 2,
        protocol::ESP => 3,
        protocol::AUTHENTICATION => 4,
        _ => 5,
    }
}

/// Returns true if a rule for a protocol matches the packets of a class.
fn has_class(protocol: SecurityProtocol, class: usize) -> bool {
    match protocol {
        SecurityProtocol::Any => true,
        SecurityProtocol::Tcp => class == 0,
        SecurityProtocol::Udp => class == 1,
        SecurityProtocol::Icmp => class == 2,
        SecurityProtocol::Esp => class == 3,
        SecurityProtocol::Ah => class == 4,
    }
}
