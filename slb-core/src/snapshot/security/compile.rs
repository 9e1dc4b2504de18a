//! Access lists compiled into intervals and sets.

use core::net::IpAddr;

use super::{
    CLASSES, Column, CompiledSecurityRule, CompiledTable, Place, Security, VmList, VmLists,
    has_class,
};
use crate::mem::{Counter, Memory};
use crate::nat::Direction;
use crate::snapshot::probe_map::{NONE, ProbeMap, RuleBucket};
use crate::snapshot::registry::{AlreadyRegistered, Registry, RegistryEntry, identity};
use crate::spec::{
    Access, DefaultRule, Peers, Prefix, SecurityList, SecurityRule, Spec, SpecError,
};

const DIRECTIONS: [Direction; 2] = [Direction::Inward, Direction::Outward];

/// Sets of a table that do not depend on intervals: protocols, places, and rules without ports.
const FIXED_SETS: usize = CLASSES + 2 * Place::COUNT + 2;

/// The number of items of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SecuritySize {
    lists: usize,
    rules: usize,
    ipv4: usize,
    ipv6: usize,
    ports: usize,
    words: usize,
    slots: usize,
    vm_lists: usize,
}

impl SecuritySize {
    /// The size of the lists, where so many are on vms of this node: nothing where none is.
    pub(crate) fn of(spec: &Spec<'_>, vm_lists: usize, previous: Option<&Security<'_>>) -> Self {
        let slots = |rules| Registry::slots_for(rules, previous.map(|previous| &previous.ids));
        if vm_lists == 0 {
            return Self {
                slots: slots(0),
                ..Self::default()
            };
        }
        let mut size = Self {
            lists: spec.security_lists.len(),
            vm_lists,
            ..Self::default()
        };
        for list in spec.security_lists {
            for direction in DIRECTIONS {
                let [ipv4, ipv6, ports] = intervals(list, direction);
                let (ipv4, ipv6, ports) = (sum(ipv4), sum(ipv6), sum(ports));
                let rules = of(list, direction).count();
                let sets = FIXED_SETS + ipv4 + ipv6 + ports;
                size.rules += rules;
                size.ipv4 += ipv4;
                size.ipv6 += ipv6;
                size.ports += ports;
                size.words = size.words.saturating_add(sets * rules.div_ceil(64));
            }
        }
        size.slots = slots(size.rules);
        size
    }

    pub(crate) fn count(&self, counter: &mut Counter) -> Option<()> {
        counter.add::<CompiledTable>(2 * self.lists)?;
        counter.add::<CompiledSecurityRule>(self.rules)?;
        counter.add::<u32>(self.ipv4)?;
        counter.add::<u128>(self.ipv6)?;
        counter.add::<u16>(self.ports)?;
        counter.add::<u64>(self.words)?;
        counter.add::<u32>(self.rules)?;
        counter.add::<u32>(self.lists + 1)?;
        counter.add::<RegistryEntry>(self.slots)?;
        counter.add::<RuleBucket>(ProbeMap::<u64, 5>::buckets_for(self.rules))?;
        counter.add::<u64>(self.slots)?;
        counter.add::<VmList>(self.vm_lists)
    }

    /// The words of all sets, and their maximum.
    pub(crate) fn limit(&self) -> (&'static str, usize, usize) {
        ("words of security rules", self.words, NONE as usize - 1)
    }
}

/// The rules of a list for one direction, in no order, each with its index among all.
fn of<'a>(
    list: &SecurityList<'a>,
    direction: Direction,
) -> impl Iterator<Item = (u16, SecurityRule<'a>)> + Clone + use<'a> {
    let rules = (0..).zip(list.all_rules());
    rules.filter(move |(_, rule)| rule.direction == direction)
}

/// The most intervals of IPv4, of IPv6 and of ports, each for sources and for destinations.
fn intervals(list: &SecurityList<'_>, direction: Direction) -> [[usize; 2]; 3] {
    let mut counts = [[1; 2]; 3];
    for (_, rule) in of(list, direction) {
        for (side, peers) in [rule.sources, rule.destinations].into_iter().enumerate() {
            for peers in peers {
                if let Peers::Prefix(prefix) = peers {
                    counts[usize::from(prefix.address.is_ipv6())][side] += 2;
                }
            }
        }
        for (side, ports) in [rule.source_ports, rule.destination_ports]
            .into_iter()
            .enumerate()
        {
            counts[2][side] += 2 * ports.len();
        }
    }
    counts
}

fn sum([a, b]: [usize; 2]) -> usize {
    a + b
}

/// Parts that were filled so far.
#[derive(Clone, Copy, Default)]
struct Filled {
    rules: usize,
    ipv4: usize,
    ipv6: usize,
    ports: usize,
    words: usize,
}

impl<'m> Security<'m> {
    /// Takes the memory. `None` where it is used up.
    pub(crate) fn new(
        size: &SecuritySize,
        generation: u64,
        previous: Option<&Security<'_>>,
        memory: &mut impl Memory<'m>,
    ) -> Option<Self> {
        let rule = CompiledSecurityRule {
            access: Access::Deny,
            item: 0,
            counters: 0,
        };
        let place = VmList {
            list: 0,
            next: NONE,
        };
        let tables = memory.take(2 * size.lists, CompiledTable::EMPTY)?;
        let rules = memory.take(size.rules, rule)?;
        let ipv4 = memory.take(size.ipv4, 0)?;
        let ipv6 = memory.take(size.ipv6, 0)?;
        let ports = memory.take(size.ports, 0)?;
        let sets = memory.take(size.words, 0)?;
        let counters = memory.take(size.rules, 0)?;
        let first_counters = memory.take(size.lists + 1, 0)?;
        let entries = memory.take(size.slots, RegistryEntry::EMPTY)?;
        let buckets = ProbeMap::<u64, 5>::buckets_for(size.rules);
        let map = memory.take(buckets, RuleBucket::EMPTY)?;
        let identities = memory.take(size.slots, 0)?;
        let previous = previous.map(|previous| &previous.ids);
        Some(Self {
            tables,
            rules,
            ipv4,
            ipv6,
            ports,
            sets,
            counters,
            first_counters,
            ids: Registry::continue_from(previous, generation, entries, map, identities),
            vm_lists: memory.take(size.vm_lists, place)?,
            vm_list_count: 0,
        })
    }

    /// Returns true if the ids of rules in `old` still mean the same here.
    pub(crate) fn follows(&self, old: &Security<'_>) -> bool {
        self.ids.follows(&old.ids)
    }

    /// Adds a list to those of a vm, unless the vm has it.
    pub(crate) fn add_to(&mut self, vm: &mut VmLists, list: usize) {
        let list = list as u32;
        let mut last = NONE;
        let mut next = vm.0;
        while let Some(place) = self.vm_lists.get(next as usize) {
            if place.list == list {
                return;
            }
            (last, next) = (next, place.next);
        }
        let new = self.vm_list_count as u32;
        let Some(place) = self.vm_lists.get_mut(self.vm_list_count) else {
            return;
        };
        *place = VmList { list, next: NONE };
        self.vm_list_count += 1;
        match self.vm_lists.get_mut(last as usize) {
            Some(last) => last.next = new,
            None => vm.0 = new,
        }
    }

    /// Compiles all lists, if a vm of this node has one.
    pub(crate) fn compile(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Security<'_>>,
    ) -> Result<(), SpecError> {
        let lists = self.tables.len() / 2;
        let lists = spec.security_lists.get(..lists).unwrap_or_default();
        self.register(lists, previous)?;
        let mut filled = Filled::default();
        for (place, list) in lists.iter().enumerate() {
            let first = self.first_counters[place] as usize;
            for direction in DIRECTIONS {
                let table = self.compile_table(list, direction, first, &mut filled);
                self.tables[2 * place + direction as usize] = table;
            }
        }
        Ok(())
    }

    /// Gives each rule the place of its counters: the one that it had, or a new one.
    fn register(
        &mut self,
        lists: &[SecurityList<'_>],
        previous: Option<&Security<'_>>,
    ) -> Result<(), SpecError> {
        let previous = previous.map(|previous| &previous.ids);
        let mut count = 0;
        for (place, list) in lists.iter().enumerate() {
            self.first_counters[place] = count as u32;
            count += list.rules.len() + DefaultRule::ALL.len();
        }
        self.first_counters[lists.len()] = count as u32;
        let all = || {
            let lists = lists.iter().enumerate();
            lists.flat_map(|(index, list)| {
                let rules = list.all_rules().enumerate();
                rules.map(move |(item, rule)| (index, item, name(list, item, &rule)))
            })
        };
        let places = || (0..).zip(all());
        let duplicate = |AlreadyRegistered(owner): AlreadyRegistered, list, second| {
            let owner = owner as usize;
            let of = lists.iter().take(list);
            let first: usize = of.map(|of| of.rules.len() + DefaultRule::ALL.len()).sum();
            match owner.checked_sub(first) {
                Some(first) => SpecError::DuplicateSecurityRule {
                    list,
                    first,
                    second,
                },
                None => {
                    let mut before = 0;
                    let found = lists.iter().position(|of| {
                        before += of.rules.len() + DefaultRule::ALL.len();
                        before > owner
                    });
                    SpecError::DuplicateSecurityList {
                        first: found.unwrap_or_default(),
                        second: list,
                    }
                }
            }
        };
        for (index, (list, item, name)) in places() {
            self.counters[index] = NONE;
            let kept = self.ids.keep(previous, name, index as u32);
            if let Some(slot) = kept.map_err(|already| duplicate(already, list, item))? {
                self.counters[index] = slot as u32;
            }
        }
        for (index, (list, item, name)) in places() {
            if self.counters[index] == NONE {
                let added = self.ids.add(name, index as u32);
                let slot = added.map_err(|already| duplicate(already, list, item))?;
                self.counters[index] = slot as u32;
            }
        }
        Ok(())
    }

    fn compile_table(
        &mut self,
        list: &SecurityList<'_>,
        direction: Direction,
        first_counters: usize,
        filled: &mut Filled,
    ) -> CompiledTable {
        let first = filled.rules;
        for (item, rule) in of(list, direction) {
            self.rules[filled.rules] = CompiledSecurityRule {
                access: rule.access,
                item,
                counters: self.counters[first_counters + usize::from(item)],
            };
            filled.rules += 1;
        }
        let rule_at = |item: u16| list_rule(list, item);
        let rank = |rule: &CompiledSecurityRule| (rule_at(rule.item).priority, rule.item);
        self.rules[first..filled.rules].sort_unstable_by_key(rank);
        let words = (filled.rules - first).div_ceil(64);
        let mut sets = |count: usize| {
            let first = filled.words;
            filled.words += count * words;
            first as u32
        };
        let protocols = sets(CLASSES);
        let places = [sets(Place::COUNT), sets(Place::COUNT)];
        let any_ports = [sets(1), sets(1)];
        let mut table = CompiledTable {
            rules: first as u32,
            words: words as u32,
            protocols,
            places,
            any_ports,
            ..CompiledTable::EMPTY
        };
        for side in 0..2 {
            let ranges = of(list, direction);
            let ranges = ranges.flat_map(|(_, rule)| peers(&rule, side).iter().filter_map(range));
            let start = filled.ipv4;
            self.ipv4[start] = 0;
            filled.ipv4 += 1;
            let start6 = filled.ipv6;
            self.ipv6[start6] = 0;
            filled.ipv6 += 1;
            for [low, high] in ranges {
                match (low, high) {
                    (IpAddr::V4(low), IpAddr::V4(high)) => {
                        let ends = [Some(low.to_bits()), high.to_bits().checked_add(1)];
                        for value in ends.into_iter().flatten() {
                            self.ipv4[filled.ipv4] = value;
                            filled.ipv4 += 1;
                        }
                    }
                    (IpAddr::V6(low), IpAddr::V6(high)) => {
                        let ends = [Some(low.to_bits()), high.to_bits().checked_add(1)];
                        for value in ends.into_iter().flatten() {
                            self.ipv6[filled.ipv6] = value;
                            filled.ipv6 += 1;
                        }
                    }
                    _ => {}
                }
            }
            let start_ports = filled.ports;
            self.ports[start_ports] = 0;
            filled.ports += 1;
            for (_, rule) in of(list, direction) {
                for &[low, high] in ports(&rule, side) {
                    for value in [Some(low), high.checked_add(1)].into_iter().flatten() {
                        self.ports[filled.ports] = value;
                        filled.ports += 1;
                    }
                }
            }
            table.ipv4[side] = column(&mut self.ipv4, start, &mut filled.ipv4);
            table.ipv6[side] = column(&mut self.ipv6, start6, &mut filled.ipv6);
            table.ports[side] = column(&mut self.ports, start_ports, &mut filled.ports);
            for column in [
                &mut table.ipv4[side],
                &mut table.ipv6[side],
                &mut table.ports[side],
            ] {
                column.sets = filled.words as u32;
                filled.words += column.intervals as usize * words;
            }
        }
        for bit in 0..filled.rules - first {
            let rule = rule_at(self.rules[first + bit].item);
            self.note(&table, bit, &rule);
        }
        table
    }

    /// Puts a rule into the sets of all values that it matches.
    fn note(&mut self, table: &CompiledTable, bit: usize, rule: &SecurityRule<'_>) {
        let Self {
            ipv4,
            ipv6,
            ports,
            sets,
            ..
        } = self;
        let words = table.words as usize;
        let mut set = |first: u32, place: usize| {
            sets[first as usize + place * words + bit / 64] |= 1 << (bit % 64);
        };
        for class in (0..CLASSES).filter(|class| has_class(rule.protocol, *class)) {
            set(table.protocols, class);
        }
        for (side, peers) in [rule.sources, rule.destinations].into_iter().enumerate() {
            let (v4, v6) = (&table.ipv4[side], &table.ipv6[side]);
            if peers.is_empty() {
                (0..v4.intervals).for_each(|place| set(v4.sets, place as usize));
                (0..v6.intervals).for_each(|place| set(v6.sets, place as usize));
            }
            for peers in peers {
                let place = match peers {
                    Peers::Prefix(_) => None,
                    Peers::Network => Place::Network.index(),
                    Peers::LoadBalancer => Place::LoadBalancer.index(),
                    Peers::Internet => Place::Internet.index(),
                };
                if let Some(place) = place {
                    set(table.places[side], place);
                }
                match range(peers) {
                    Some([IpAddr::V4(low), IpAddr::V4(high)]) => {
                        let ends = [low.to_bits(), high.to_bits()];
                        places(ipv4, v4, ends).for_each(|place| set(v4.sets, place));
                    }
                    Some([IpAddr::V6(low), IpAddr::V6(high)]) => {
                        let ends = [low.to_bits(), high.to_bits()];
                        places(ipv6, v6, ends).for_each(|place| set(v6.sets, place));
                    }
                    _ => {}
                }
            }
        }
        let of_sides = [rule.source_ports, rule.destination_ports];
        for (side, ranges) in of_sides.into_iter().enumerate() {
            let column = &table.ports[side];
            if ranges.is_empty() {
                set(table.any_ports[side], 0);
                (0..column.intervals).for_each(|place| set(column.sets, place as usize));
            }
            for &ends in ranges {
                places(ports, column, ends).for_each(|place| set(column.sets, place));
            }
        }
    }
}

/// The peers of a rule on one side.
fn peers<'a>(rule: &SecurityRule<'a>, side: usize) -> &'a [Peers] {
    match side {
        0 => rule.sources,
        _ => rule.destinations,
    }
}

/// The ports of a rule on one side.
fn ports<'a>(rule: &SecurityRule<'a>, side: usize) -> &'a [[u16; 2]] {
    match side {
        0 => rule.source_ports,
        _ => rule.destination_ports,
    }
}

/// Sorts the first values of a column's intervals, from `start` to `end`, and leaves each once.
fn column<T: Ord + Copy>(values: &mut [T], start: usize, end: &mut usize) -> Column {
    let own = &mut values[start..*end];
    own.sort_unstable();
    let mut count = 0;
    for index in 0..own.len() {
        if count == 0 || own[count - 1] != own[index] {
            own[count] = own[index];
            count += 1;
        }
    }
    *end = start + count;
    Column {
        first: start as u32,
        intervals: count as u32,
        sets: 0,
    }
}

/// The intervals of a column that a range consists of.
fn places<T: Ord>(values: &[T], column: &Column, [low, high]: [T; 2]) -> core::ops::Range<usize> {
    let first = column.first as usize;
    let own = &values[first..first + column.intervals as usize];
    let start = own.partition_point(|value| *value < low);
    start..own.partition_point(|value| *value <= high)
}

/// The range of a prefix.
fn range(peers: &Peers) -> Option<[IpAddr; 2]> {
    match peers {
        Peers::Prefix(prefix) => Prefix::range(prefix),
        _ => None,
    }
}

/// A rule of a list by its index among all.
fn list_rule<'a>(list: &SecurityList<'a>, item: u16) -> SecurityRule<'a> {
    let item = usize::from(item);
    let default = || {
        let default = item.saturating_sub(list.rules.len());
        let default = DefaultRule::ALL.get(default).copied();
        default.unwrap_or(DefaultRule::DenyAllInbound).rule()
    };
    list.rules.get(item).copied().unwrap_or_else(default)
}

/// The identity of a rule: the names of list and rule, and the direction, as a default rule may have the
/// name of another one.
fn name(list: &SecurityList<'_>, item: usize, rule: &SecurityRule<'_>) -> u64 {
    let is_default = item >= list.rules.len();
    identity([
        list.name.as_bytes(),
        rule.name.as_bytes(),
        &[u8::from(is_default)],
    ])
}
