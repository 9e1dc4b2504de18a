//! A snapshot out of a [`Spec`]: sizes first, then pools, backends, frontends, rules.

use core::net::IpAddr;
use core::ops::Range;

use super::addresses::{address_bytes, raw_port};
use super::faults::{backend_identity, instances, of_items, rule_item};
use super::locals::{Nat, NatSize};
use super::locals::{has_ages, has_past};
use super::names::backend_name;
use super::owners::{OLD, Past, Step, aged};
use super::probe_map::{NONE, ProbeMap, RuleBucket, VipBucket};
use super::proxy::CompiledProxy;
use super::registry::{AlreadyRegistered, MAX_SLOTS, Registry, RegistryEntry, identity};
use super::terms::{CompiledTerms, RuleKind};
use super::{
    CompiledBackend, CompiledPool, CompiledRule, ECHO, HA_PORTS, NO_RULE, Share, Snapshot, VIP,
    icmp_of, ipv6_words, rule_key,
};
use crate::flow::Ticks;
use crate::hash::siphash13;
use crate::health::Condition;
use crate::list::RuleName;
use crate::maglev::{self, MaglevError, Member, Turn};
use crate::mem::{Counter, Memory};
use crate::nat::rule_id;
use crate::spec::snat::{GRANULES, MAX_OWNERS, deal, instance, outbound_frontends};
use crate::spec::{
    BackendHealth, Echo, InboundNat, NatTarget, Pool, Protocol, Rule, Spec, SpecError, Terms,
    derived_mac,
};
use crate::tunnel::encapsulation::Template;
use crate::wire::protocol;

/// Slots of rules that connections remember without an incarnation.
const SPARED_RULE_SLOTS: Range<usize> = rule_id::FIRST_LONG_SLOT..rule_id::CODED_SLOTS;

/// The number of elements of each part of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    rule_buckets: usize,
    vip_buckets: usize,
    frontends: usize,
    rules: usize,
    pools: usize,
    probed: usize,
    shares: usize,
    backends: usize,
    table: usize,
    past: usize,
    ages: usize,
    turns: usize,
    backend_slots: usize,
    rule_slots: usize,
    nat: NatSize,
}

impl Size {
    pub(super) fn of(spec: &Spec<'_>, previous: Option<&Snapshot<'_>>) -> Self {
        let ipv6 = spec
            .frontends
            .iter()
            .filter(|frontend| frontend.address.is_ipv6())
            .count();
        let backends = spec.pools.iter().map(|pool| pool.backends.len()).sum();
        let slots = |count, registry| Registry::slots_for(count, registry);
        let (nat_rules, outbound) = (
            spec.inbound_nat
                .iter()
                .map(|nat| nat_rules(spec, nat).count())
                .sum::<usize>(),
            outbound_frontends(spec).count(),
        );
        let rules = spec.rules.len() + nat_rules + outbound;
        // A table for each probe, whether it fails anywhere or not: what is known of backends
        // changes nothing about the memory that a snapshot takes.
        let probed = probed_pools(spec).map(|pool| pool.backends.len());
        let shares = backends + probed.sum::<usize>();
        Self {
            rule_buckets: ProbeMap::<u64, 5>::buckets_for(
                spec.rules.len() + nat_rules + (2 + OUTBOUND_KEYS) * spec.frontends.len(),
            ),
            vip_buckets: ProbeMap::<[u64; 2], 3>::buckets_for(ipv6),
            frontends: spec.frontends.len(),
            rules,
            pools: spec.pools.len(),
            probed: spec.health.len(),
            shares,
            backends,
            table: tables_len(spec) + nat_rules + outbound * GRANULES,
            past: pasts_len(spec),
            ages: match has_ages(spec) {
                true => tables_len(spec),
                false => 0,
            },
            turns: spec
                .pools
                .iter()
                .map(|pool| pool.backends.len())
                .max()
                .unwrap_or(0),
            backend_slots: slots(backends, previous.map(|p| &p.backend_ids)),
            rule_slots: Registry::slots_sparing(
                rules,
                previous.map(|p| &p.rule_ids),
                SPARED_RULE_SLOTS,
            ),
            nat: NatSize::of(spec, previous.map(|p| &p.nat)),
        }
    }

    /// Kinds of items of which there are more than can be numbered.
    pub(super) fn too_many(&self, spec: &Spec<'_>) -> impl Iterator<Item = SpecError> + use<> {
        let owners = match spec.outbound {
            [] => 0,
            _ => self.backends,
        };
        let kinds = [
            ("backends", self.backend_slots, MAX_SLOTS),
            ("rules", self.rule_slots, MAX_SLOTS),
            ("table slots", self.table, NONE as usize - 1),
            (
                "backends where there are outbound rules",
                owners,
                MAX_OWNERS,
            ),
        ];
        let all = kinds.into_iter().chain(self.nat.limits());
        let above = all.filter(|(_, count, most)| count > most);
        above.map(|(what, count, most)| SpecError::TooMany { what, count, most })
    }

    fn lines(&self, spec: &Spec<'_>) -> Option<usize> {
        let mut counter = Counter::default();
        counter.add::<RuleBucket>(self.rule_buckets)?;
        counter.add::<VipBucket>(self.vip_buckets)?;
        counter.add::<Echo>(self.frontends)?;
        counter.add::<CompiledRule>(self.rules)?;
        counter.add::<CompiledTerms>(self.rules)?;
        counter.add::<CompiledPool>(self.pools)?;
        counter.add::<CompiledPool>(self.probed)?;
        counter.add::<Share>(self.shares)?;
        counter.add::<CompiledBackend>(self.backends)?;
        counter.add::<u64>(self.backends)?;
        counter.add::<u16>(self.table)?;
        counter.add::<Past>(self.past)?;
        counter.add::<u8>(self.ages)?;
        counter.add::<Turn>(self.turns)?;
        for (slots, owners) in [
            (self.backend_slots, self.backends),
            (self.rule_slots, self.rules),
        ] {
            counter.add::<RegistryEntry>(slots)?;
            counter.add::<u64>(slots)?;
            counter.add::<RuleBucket>(ProbeMap::<u64, 5>::buckets_for(owners))?;
        }
        self.nat.count(&mut counter)?;
        CompiledProxy::count(spec, &mut counter)?;
        Some(counter.lines())
    }
}

impl<'m> Snapshot<'m> {
    /// Returns the number of [`Line`](crate::mem::Line)s that [`build`](Self::build) takes from an
    /// arena; `usize::MAX` if it is out of range.
    pub fn lines_for(spec: &Spec<'_>, previous: Option<&Snapshot<'_>>) -> usize {
        Size::of(spec, previous).lines(spec).unwrap_or(usize::MAX)
    }

    /// Compiles `spec`. Give the snapshot that this one is to follow as `previous`: backends and
    /// rules keep their ids, and tables of pools that did not change are copied.
    ///
    /// # Errors
    /// The spec contradicts itself, or the memory is used up.
    pub fn build(
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
        memory: &mut impl Memory<'m>,
    ) -> Result<Self, SpecError> {
        let size = Size::of(spec, previous);
        let mut faults = size.too_many(spec).chain(of_items(spec));
        if let Some(fault) = faults.next() {
            return Err(fault);
        }
        let needed = size.lines(spec).unwrap_or(usize::MAX);
        let none = SpecError::Memory { lines: needed };
        let generation = previous.map_or(1, |previous| previous.generation + 1);
        let mut registry = |slots, owners, previous| {
            let entries = memory.take(slots, RegistryEntry::EMPTY)?;
            let buckets = ProbeMap::<u64, 5>::buckets_for(owners);
            let map = memory.take(buckets, RuleBucket::EMPTY)?;
            let identities = memory.take(slots, 0)?;
            Some(Registry::continue_from(
                previous, generation, entries, map, identities,
            ))
        };
        let backend_ids = registry(
            size.backend_slots,
            size.backends,
            previous.map(|p| &p.backend_ids),
        );
        let rule_ids = registry(size.rule_slots, size.rules, previous.map(|p| &p.rule_ids));
        let previous_nat = previous.map(|p| &p.nat);
        let mut snapshot = Self {
            generation,
            now: spec.now,
            hasher: spec.hasher.clone(),
            underlay: spec.underlay,
            probe_source: spec.probe_source,
            backend_ids: backend_ids.ok_or(none)?,
            rule_ids: rule_ids.ok_or(none)?.sparing(SPARED_RULE_SLOTS),
            rule_keys: ProbeMap::new(
                memory
                    .take(size.rule_buckets, RuleBucket::EMPTY)
                    .ok_or(none)?,
            ),
            ipv6_vips: ProbeMap::new(
                memory
                    .take(size.vip_buckets, VipBucket::EMPTY)
                    .ok_or(none)?,
            ),
            echo: memory.take(size.frontends, Echo::default()).ok_or(none)?,
            rules: memory.take(size.rules, CompiledRule::EMPTY).ok_or(none)?,
            terms: memory.take(size.rules, CompiledTerms::EMPTY).ok_or(none)?,
            pools: memory.take(size.pools, CompiledPool::EMPTY).ok_or(none)?,
            probed: memory.take(size.probed, CompiledPool::EMPTY).ok_or(none)?,
            shares: memory.take(size.shares, Share::EMPTY).ok_or(none)?,
            backends: memory
                .take(size.backends, CompiledBackend::EMPTY)
                .ok_or(none)?,
            names: memory.take(size.backends, 0).ok_or(none)?,
            table: memory.take(size.table, maglev::EMPTY).ok_or(none)?,
            past: memory.take(size.past, Past::NONE).ok_or(none)?,
            ages: memory.take(size.ages, OLD).ok_or(none)?,
            nat: Nat::new(&size.nat, spec, generation, previous_nat, memory).ok_or(none)?,
        };
        let mut turns = memory.take(size.turns, Turn::default()).ok_or(none)?;
        snapshot.compile_pools(spec, previous, &mut turns)?;
        snapshot.compile_backends(spec, previous)?;
        snapshot.compile_pasts(spec, previous, &mut turns)?;
        let Self { nat, backends, .. } = &mut snapshot;
        let facts = |backend: u32| {
            let found = backends.get(backend as usize);
            found.map_or((0, false), |found| (found.counters, found.suspect))
        };
        nat.compile(spec, previous_nat, facts)?;
        if let Some(previous) = previous {
            snapshot.compile_former_hosts(previous);
        }
        snapshot.compile_frontends(spec)?;
        snapshot.note_vips(spec);
        if let Some(fault) = snapshot.conflict(spec) {
            return Err(fault);
        }
        snapshot.compile_rules(spec, previous)?;
        Ok(snapshot)
    }

    /// Notes which hosts the vms of this node have moved here from.
    fn compile_former_hosts(&mut self, previous: &Snapshot<'_>) {
        let Self { nat, backends, .. } = self;
        let former = |backend: u32, backends: &[CompiledBackend]| {
            let now = backends.get(backend as usize)?;
            let before = previous.backend(previous.backend_index(now.id())?)?;
            let host = before.template.host();
            (host != now.template.host()).then_some(host)
        };
        for place in 0..nat.locals().len() {
            let backend = nat.locals().get(place).map(|local| local.backend);
            if let Some(host) = backend.and_then(|backend| former(backend, backends)) {
                nat.add_former_host(host);
            }
        }
        for host in previous.nat.former_hosts() {
            nat.add_former_host(host);
        }
    }

    fn compile_pools(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
        turns: &mut [Turn],
    ) -> Result<(), SpecError> {
        let mut next = CompiledPool::EMPTY;
        let mut past = 0;
        let mut place_of_past = |pool: usize| {
            if !has_past(spec, pool) {
                return NONE;
            }
            let place = past;
            past += spec.pools[pool].table_size;
            place
        };
        for (index, pool) in spec.pools.iter().enumerate() {
            next.past = place_of_past(index);
            next.identity = identity([pool.name.as_bytes(), &[], &[]]);
            next.table_size = pool.table_size;
            next.backends = pool.backends.len() as u32;
            self.compile_pool(spec, index, None, &mut next, previous, turns)?;
            self.pools[index] = next;
            next.table_start += next.table_size;
            next.first_backend += next.backends;
            next.shares += next.backends;
        }
        let (mut table_start, mut shares) = (next.table_start, next.shares);
        for (index, health) in spec.health.iter().enumerate() {
            let mut probed = CompiledPool {
                table_start,
                shares,
                past: place_of_past(health.pool),
                ..self.pools[health.pool]
            };
            let found = Some((index, health.backends));
            self.compile_pool(spec, health.pool, found, &mut probed, previous, turns)?;
            self.probed[index] = probed;
            table_start += probed.table_size;
            shares += probed.backends;
        }
        Ok(())
    }

    /// Compiles the shares and the table of a pool's backends, by what a probe found of them where
    /// that is given, with its place in the spec.
    fn compile_pool(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        probed: Option<(usize, &[BackendHealth])>,
        compiled: &mut CompiledPool,
        previous: Option<&Snapshot<'_>>,
        turns: &mut [Turn],
    ) -> Result<(), SpecError> {
        let pool = &spec.pools[index];
        let start = compiled.shares as usize;
        let mut digest = siphash13([spec.hash_seed, pool.table_size.into()], &[]);
        for (place, backend) in pool.backends.iter().enumerate() {
            let found = probed.map_or(BackendHealth::default(), |(_, all)| all[place]);
            let is_unhealthy = backend.is_unhealthy() || found.condition == Condition::Unhealthy;
            let weight = if is_unhealthy || !backend.is_seated() {
                0
            } else {
                found.weight.unwrap_or(backend.weight)
            };
            self.shares[start + place] = Share {
                weight,
                is_unhealthy,
            };
            digest = siphash13([digest, weight.into()], backend.seat().as_bytes());
        }
        compiled.digest = digest;
        if probed.is_none() {
            let count = pool.backends.len();
            let name = |place: usize| Some(pool.backends[place].name);
            if let Some((_, member)) = maglev::duplicate_name(count, name, turns) {
                let error = MaglevError::DuplicateName { member };
                return Err(SpecError::Table { pool: index, error });
            }
            let seat = |place: usize| {
                let backend = &pool.backends[place];
                backend.is_seated().then(|| backend.seat())
            };
            if let Some((first, second)) = maglev::duplicate_name(count, seat, turns) {
                return Err(SpecError::SeatTaken {
                    pool: index,
                    first,
                    second,
                });
            }
        }
        let Self {
            pools,
            probed: others,
            shares,
            table,
            ..
        } = self;
        if let Some((number, _)) = probed {
            // Where nobody fails, all rules of a pool share one table, and the cache lines of it.
            let same = |other: &&CompiledPool| other.digest == digest;
            let of_pool = |other: &&CompiledPool| other.first_backend == compiled.first_backend;
            let before = others.iter().take(number).filter(of_pool);
            if let Some(same) = pools.get(index).into_iter().chain(before).find(same) {
                compiled.table_start = same.table_start;
                return Ok(());
            }
        }
        let table = &mut table[compiled.table()];
        if let Some(same) = previous.and_then(|previous| previous.table_of(compiled, index)) {
            table.copy_from_slice(same);
            return Ok(());
        }
        let member = |place: usize| Member {
            name: pool.backends[place].seat(),
            weight: shares[start + place].weight,
        };
        maglev::build_with(pool.backends.len(), member, spec.hash_seed, table, turns)
            .map_err(|error| SpecError::Table { pool: index, error })
    }

    /// The table that was built from the same input as `pool`'s would be.
    fn table_of(&self, pool: &CompiledPool, index: usize) -> Option<&[u16]> {
        let same = |candidate: &&CompiledPool| {
            candidate.identity == pool.identity
                && candidate.digest == pool.digest
                && candidate.table_size == pool.table_size
        };
        let here = self.pools.get(index).filter(same);
        let found = here.or_else(|| self.pools.iter().chain(&*self.probed).find(same))?;
        self.table.get(found.table())
    }

    fn compile_backends(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
    ) -> Result<(), SpecError> {
        let previous = previous.map(|previous| &previous.backend_ids);
        let all = || {
            let members = spec.pools.iter().enumerate().flat_map(|(pool, of)| {
                of.backends
                    .iter()
                    .enumerate()
                    .map(move |(member, backend)| {
                        (pool, member, backend, backend_identity(of, backend))
                    })
            });
            members.enumerate()
        };
        let duplicate = |AlreadyRegistered(first), second: usize| SpecError::DuplicateBackend {
            first: first as usize,
            second,
        };
        for (index, (pool, member, backend, identity)) in all() {
            let next_hop = backend.next_hop.unwrap_or(spec.underlay.next_hop);
            let mac = backend.mac.unwrap_or(derived_mac(backend.address));
            let vni = spec.pools[pool].vni;
            let template = if spec.proxy.is_some() {
                Template::EMPTY // nothing is encapsulated
            } else {
                let template = Template::new(&spec.underlay, backend.host, next_hop, mac, vni);
                template.ok_or(SpecError::NoUnderlayAddress {
                    pool,
                    backend: member,
                })?
            };
            self.names[index] = backend_name(spec.pools[pool].name, backend.name);
            let slot = self
                .backend_ids
                .keep(previous, identity, index as u32)
                .map_err(|already| duplicate(already, index))?;
            let inner_mtu = template.inner_mtu(spec.underlay.mtu);
            self.backends[index] = CompiledBackend {
                template,
                inner_mtu,
                common_mtu: if template.is_common() { inner_mtu } else { 0 },
                id: slot.map_or(NONE, |slot| self.backend_ids.id(slot).get()),
                counters: slot.unwrap_or_default() as u32,
                pool: pool as u32,
                member: member as u32,
                eligible: backend.is_eligible(),
                unhealthy: backend.is_unhealthy(),
                suspect: backend.is_unhealthy(),
            };
        }
        for pool in self.probed.iter() {
            let (first, start) = (pool.first_backend as usize, pool.shares as usize);
            for place in 0..pool.backends as usize {
                self.backends[first + place].suspect |= self.shares[start + place].is_unhealthy;
            }
        }
        for (index, (.., identity)) in all() {
            if self.backends[index].id == NONE {
                let slot = self
                    .backend_ids
                    .add(identity, index as u32)
                    .map_err(|already| duplicate(already, index))?;
                self.backends[index].id = self.backend_ids.id(slot).get();
                self.backends[index].counters = slot as u32;
            }
        }
        Ok(())
    }

    /// Notes who had the slots of each table before: what the previous snapshot remembers, and its own
    /// owners; without one, what the spec says. Of a mux it notes only how long ago slots changed.
    fn compile_pasts(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
        turns: &mut [Turn],
    ) -> Result<(), SpecError> {
        for index in 0..spec.pools.len() {
            let compiled = self.pools[index];
            let same = |other: &&CompiledPool| other.is_continued_by(&compiled);
            let before = previous.and_then(|previous| {
                let here = previous.pools.get(index).filter(same);
                let before = here.or_else(|| previous.pools.iter().find(same))?;
                Some((previous, before))
            });
            self.compile_past(spec, index, &compiled, before, turns)?;
            self.compile_ages(&compiled, before);
        }
        for (index, health) in spec.health.iter().enumerate() {
            let compiled = self.probed[index];
            // Probes have no names: the first one of a pool was the first before, and so on.
            let earlier = spec.health.iter().take(index);
            let number = earlier.filter(|other| other.pool == health.pool).count();
            let before = previous.and_then(|previous| {
                let same = |other: &&CompiledPool| other.is_continued_by(&compiled);
                let mut probed = previous.probed.iter().filter(same);
                let before = probed.nth(number);
                let before = before.or_else(|| previous.pools.iter().find(same))?;
                Some((previous, before))
            });
            self.compile_past(spec, health.pool, &compiled, before, turns)?;
            self.compile_ages(&compiled, before);
        }
        Ok(())
    }

    /// Notes how many generations ago the slots of a table went from one backend to another. Rules by
    /// different probes may share a table: of each slot the latest change counts.
    fn compile_ages(
        &mut self,
        compiled: &CompiledPool,
        before: Option<(&Snapshot<'_>, &CompiledPool)>,
    ) {
        let (Some((previous, before)), Some(ages)) = (before, self.ages.get_mut(compiled.table()))
        else {
            return;
        };
        let (Some(owners), Some(old_ages), Some(old_owners)) = (
            self.table.get(compiled.table()),
            previous.ages.get(before.table()),
            previous.table.get(before.table()),
        ) else {
            return;
        };
        for (age, &old) in ages.iter_mut().zip(old_ages) {
            *age = (*age).min(aged(old));
        }
        let backend_ids = &self.backend_ids;
        let renumbered = |member: u16| renumbered(previous, before, backend_ids, compiled, member);
        let is_same = before.digest == compiled.digest
            && (0..before.backends as u16).all(|member| renumbered(member) == Some(member));
        if is_same {
            return;
        }
        for ((age, &owner), &old) in ages.iter_mut().zip(owners).zip(old_owners) {
            if old != maglev::EMPTY && renumbered(old) != Some(owner) {
                *age = 0;
            }
        }
    }

    fn compile_past(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        compiled: &CompiledPool,
        before: Option<(&Snapshot<'_>, &CompiledPool)>,
        turns: &mut [Turn],
    ) -> Result<(), SpecError> {
        if compiled.past == NONE {
            return Ok(());
        }
        if before.is_none_or(|(_, before)| before.past == NONE) {
            self.compile_given_past(spec, index, compiled, turns)?;
        }
        let Self {
            table,
            past,
            backend_ids,
            ..
        } = self;
        let Some((previous, before)) = before else {
            return Ok(());
        };
        let (Some(old_owners), Some(owners), Some(past)) = (
            previous.table.get(before.table()),
            table.get(compiled.table()),
            past.get_mut(compiled.past()),
        ) else {
            return Ok(());
        };
        let renumbered = |member: u16| renumbered(previous, before, backend_ids, compiled, member);
        let step = Step::new(previous.now, spec.now);
        let remembered = previous
            .past
            .get(before.past())
            .filter(|_| before.past != NONE);
        for (slot, (past, &owner)) in past.iter_mut().zip(owners).enumerate() {
            let old_owner = old_owners.get(slot).copied().and_then(renumbered);
            let old = match remembered.and_then(|all| all.get(slot)) {
                Some(old) => old.next(renumbered, (old_owner, owner), step),
                None => past.next(Some, (old_owner, owner), step),
            };
            *past = old;
        }
        Ok(())
    }

    /// Notes who had the slots of a pool's table by the weights of the past that the spec gives. The table
    /// itself is the room that it takes, and is as before in the end.
    fn compile_given_past(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        compiled: &CompiledPool,
        turns: &mut [Turn],
    ) -> Result<(), SpecError> {
        let pool = &spec.pools[index];
        if pool.past.is_empty() {
            return Ok(());
        }
        let Self {
            table,
            past,
            shares,
            ..
        } = self;
        let (Some(table), Some(past)) = (
            table.get_mut(compiled.table()),
            past.get_mut(compiled.past()),
        ) else {
            return Ok(());
        };
        let failed = |error| SpecError::Table { pool: index, error };
        let mut build = |weight: &dyn Fn(usize) -> u32, table: &mut [u16]| {
            let member = |place: usize| Member {
                name: pool.backends[place].seat(),
                weight: weight(place),
            };
            maglev::build_with(pool.backends.len(), member, spec.hash_seed, table, turns)
                .map_err(failed)
        };
        for weights in pool.past {
            build(&|place| weights[place], table)?;
            for (past, &owner) in past.iter_mut().zip(&*table) {
                past.note(owner);
            }
        }
        let start = compiled.shares as usize;
        build(&|place| shares[start + place].weight, table)?;
        for (past, &owner) in past.iter_mut().zip(&*table) {
            past.settle(owner);
            if !past.is_empty() {
                past.make_young();
            }
        }
        Ok(())
    }

    fn compile_frontends(&mut self, spec: &Spec<'_>) -> Result<(), SpecError> {
        // An IPv6 VIP is looked up once for its number, which stands for it in rule keys.
        for (index, frontend) in spec.frontends.iter().enumerate() {
            let duplicate = |first: u32| SpecError::DuplicateFrontend {
                first: first as usize,
                second: index,
            };
            if let IpAddr::V6(address) = frontend.address {
                let words = ipv6_words(address.octets());
                self.ipv6_vips
                    .insert(words, index as u32)
                    .map_err(duplicate)?;
            }
            self.echo[index] = frontend.icmp_echo;
            let vip = self.vip_of(frontend.address).unwrap_or_default();
            self.rule_keys
                .insert(rule_key(vip, VIP, 0), index as u32)
                .map_err(duplicate)?;
        }
        Ok(())
    }

    fn compile_rules(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
    ) -> Result<(), SpecError> {
        let mut free = tables_len(spec);
        for (index, rule) in spec.rules.iter().enumerate() {
            self.compile_rule(spec, index, rule)?;
        }
        let mut index = spec.rules.len();
        for nat in spec.inbound_nat {
            for (member, port) in nat_rules(spec, nat) {
                self.compile_nat_rule(spec, index, nat, (member, port), free)?;
                index += 1;
                free += 1;
            }
        }
        for (pool, of) in spec.pools.iter().enumerate() {
            if let Some(fault) = instances(spec, pool, of).next() {
                return Err(fault);
            }
        }
        let first_outbound = index;
        for frontend in outbound_frontends(spec) {
            self.compile_outbound(spec, index, frontend, free)?;
            index += 1;
            free += GRANULES;
        }
        self.number_rules(spec, previous)?;
        // A VIP without an HA-ports rule is still a VIP.
        for frontend in spec.frontends {
            let vip = self.vip_of(frontend.address).unwrap_or_default();
            let _ = self.rule_keys.insert(rule_key(vip, HA_PORTS, 0), NO_RULE);
        }
        let Self {
            nat, rules, table, ..
        } = self;
        let owners =
            outbound_frontends(spec)
                .zip(first_outbound..)
                .filter_map(|(frontend, rule)| {
                    let start = rules.get(rule)?.table_start as usize;
                    Some((frontend, rule as u32, table.get(start..start + GRANULES)?))
                });
        nat.compile_blocks(spec, owners);
        Ok(())
    }

    fn compile_rule(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        rule: &Rule<'_>,
    ) -> Result<(), SpecError> {
        let frontend = &spec.frontends[rule.frontend];
        let compiled = match rule.health {
            Some(health) => &self.probed[health],
            None => &self.pools[rule.pool],
        };
        let (shares, past) = (compiled.shares, compiled.past);
        self.rules[index] = CompiledRule {
            mask: rule.distribution.mask(),
            table_start: compiled.table_start,
            table_size: compiled.table_size,
            first_backend: compiled.first_backend,
            idle_timeout: Ticks::from_duration(rule.idle_timeout),
            slot: NONE,
            ha_ports: rule.protocol == Protocol::All,
            by_port: false,
        };
        let port = match rule.backend_port {
            0 => rule.frontend_port,
            port => port,
        };
        let port = rule.protocol.has_port().then_some(raw_port(port));
        self.terms[index] = CompiledTerms::new(
            RuleKind::Balance,
            rule.idle_timeout,
            rule.pool,
            port,
            &rule.terms,
        );
        self.terms[index].scheduler = rule.scheduler;
        self.terms[index].shares = shares;
        self.terms[index].past = past;
        self.add_key(
            spec,
            frontend.address,
            rule.protocol,
            rule.frontend_port,
            index,
        )
    }

    /// Adds a key that leads packets for a protocol and port of a frontend to a rule.
    fn add_key(
        &mut self,
        spec: &Spec<'_>,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
        index: usize,
    ) -> Result<(), SpecError> {
        let vip = self.vip_of(address).unwrap_or_default();
        let key = match protocol {
            Protocol::Tcp => rule_key(vip, protocol::TCP, raw_port(port)),
            Protocol::Udp => rule_key(vip, protocol::UDP, raw_port(port)),
            Protocol::Icmp => rule_key(vip, icmp_of(address), ECHO),
            Protocol::All => rule_key(vip, HA_PORTS, 0),
        };
        self.rule_keys
            .insert(key, index as u32)
            .map_err(|first| SpecError::ConflictingRules {
                first: rule_item(spec, first as usize),
                second: rule_item(spec, index),
            })
    }

    /// A rule whose table is one slot long.
    fn compile_nat_rule(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        nat: &InboundNat<'_>,
        (member, port): (usize, u16),
        slot: usize,
    ) -> Result<(), SpecError> {
        self.table[slot] = member as u16;
        self.rules[index] = CompiledRule {
            mask: u64::MAX,
            table_start: slot as u32,
            table_size: 1,
            first_backend: self.pools[nat.pool].first_backend,
            idle_timeout: Ticks::from_duration(nat.idle_timeout),
            slot: NONE,
            ha_ports: false,
            by_port: false,
        };
        let backend_port = Some(raw_port(nat.backend_port));
        self.terms[index] = CompiledTerms::new(
            RuleKind::Nat,
            nat.idle_timeout,
            nat.pool,
            backend_port,
            &nat.terms,
        );
        let address = spec.frontends[nat.frontend].address;
        self.add_key(spec, address, nat.protocol, port, index)
    }

    /// The rule that answers to a frontend's SNAT ports match: its table says whose each port is.
    fn compile_outbound(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        frontend: usize,
        start: usize,
    ) -> Result<(), SpecError> {
        deal(spec, frontend, &mut self.table[start..start + GRANULES])?;
        let rules = spec
            .outbound
            .iter()
            .filter(|rule| rule.frontends.contains(&frontend));
        let idle = rules
            .clone()
            .map(|rule| rule.idle_timeout)
            .max()
            .unwrap_or_default();
        self.rules[index] = CompiledRule {
            mask: u64::MAX,
            table_start: start as u32,
            table_size: GRANULES as u32,
            first_backend: 0,
            idle_timeout: Ticks::from_duration(idle),
            slot: NONE,
            ha_ports: false,
            by_port: true,
        };
        self.terms[index] =
            CompiledTerms::new(RuleKind::Outbound, idle, 0, None, &Terms::default());
        let address = spec.frontends[frontend].address;
        let vip = self.vip_of(address).unwrap_or_default();
        let icmp = icmp_of(address);
        for rule in rules {
            let protocols: &[u8] = match rule.protocol {
                Protocol::Tcp => &[protocol::TCP],
                Protocol::Udp => &[protocol::UDP],
                Protocol::Icmp => &[icmp],
                Protocol::All => &[protocol::TCP, protocol::UDP, icmp],
            };
            for &number in protocols {
                let _ = self
                    .rule_keys
                    .insert(rule_key(vip, number, 0), index as u32);
            }
        }
        Ok(())
    }

    /// Assigns each rule its counter slot: the one that it had before, or a free one.
    fn number_rules(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
    ) -> Result<(), SpecError> {
        let previous = previous.map(|previous| &previous.rule_ids);
        let duplicate = |AlreadyRegistered(first), second: usize| SpecError::DuplicateRule {
            first: rule_item(spec, first as usize),
            second: rule_item(spec, second),
        };
        for (index, name) in rule_identities(spec).enumerate() {
            let slot = self
                .rule_ids
                .keep(previous, name, index as u32)
                .map_err(|already| duplicate(already, index))?;
            if let Some(slot) = slot {
                self.rules[index].slot = slot as u32;
            }
        }
        for (index, name) in rule_identities(spec).enumerate() {
            if self.rules[index].slot == NONE {
                let slot = self
                    .rule_ids
                    .add(name, index as u32)
                    .map_err(|already| duplicate(already, index))?;
                self.rules[index].slot = slot as u32;
            }
        }
        Ok(())
    }
}

/// The place in its pool of a backend that had another place in the previous snapshot; `None` where it is
/// not of the pool any more.
fn renumbered(
    previous: &Snapshot<'_>,
    before: &CompiledPool,
    backend_ids: &Registry<'_>,
    compiled: &CompiledPool,
    member: u16,
) -> Option<u16> {
    let old = previous.backend(before.first_backend + u32::from(member))?;
    let place = backend_ids.index(old.id())?;
    let member = place.checked_sub(compiled.first_backend)?;
    (member < compiled.backends).then_some(member as u16)
}

/// The pool of each set of probe results.
fn probed_pools<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = &'s Pool<'s>> {
    let all = spec.health.iter();
    all.filter_map(|health| spec.pools.get(health.pool))
}

/// Slots of all pools' tables, and of those by probe results.
fn tables_len(spec: &Spec<'_>) -> usize {
    let all = spec.pools.iter().chain(probed_pools(spec));
    all.map(|pool| pool.table_size as usize).sum()
}

/// Slots of the tables that have a past.
fn pasts_len(spec: &Spec<'_>) -> usize {
    let probed = spec.health.iter().map(|health| health.pool);
    let all = (0..spec.pools.len()).chain(probed);
    let of_pool = |pool: usize| {
        spec.pools
            .get(pool)
            .map_or(0, |pool| pool.table_size as usize)
    };
    all.filter(|&pool| has_past(spec, pool)).map(of_pool).sum()
}

/// Keys of a frontend for its SNAT ports: TCP's, UDP's and ICMP's.
const OUTBOUND_KEYS: usize = 3;

/// The place in its pool and the port of each backend that an inbound NAT rule or pool leads to.
pub(super) fn nat_rules<'s>(
    spec: &'s Spec<'_>,
    nat: &'s InboundNat<'_>,
) -> impl Iterator<Item = (usize, u16)> + Clone + 's {
    let all = match nat.target {
        NatTarget::Backend { backend, .. } => backend..backend + 1,
        NatTarget::Pool { .. } => {
            0..spec
                .pools
                .get(nat.pool)
                .map_or(0, |pool| pool.backends.len())
        }
    };
    all.map(|backend| match nat.target {
        NatTarget::Backend { port, .. } => (backend, port),
        NatTarget::Pool { first, .. } => {
            let instance = instance(spec, nat.pool, backend);
            (backend, u32::from(first).saturating_add(instance) as u16)
        }
    })
}

/// The names of all rules, in the order of their places.
pub(super) fn rule_identities<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = u64> + Clone + 's {
    let rules = spec
        .rules
        .iter()
        .map(|rule| identity([rule.name.as_bytes(), &[], &[]]));
    let nat = spec.inbound_nat.iter().flat_map(|nat| {
        nat_rules(spec, nat).map(|(_, port)| {
            let [high, low] = port.to_be_bytes();
            let taken = [high, low, nat.protocol as u8];
            identity([nat.name.as_bytes(), b"inbound nat", &taken])
        })
    });
    let outbound = outbound_frontends(spec).filter_map(|index| spec.frontends.get(index));
    let outbound = outbound.map(|f| identity([&address_bytes(f.address), b"outbound", &[]]));
    rules.chain(nat).chain(outbound)
}

/// The same identities with what their rules are called.
pub(crate) fn rule_names<'s>(
    spec: &'s Spec<'_>,
) -> impl Iterator<Item = (u64, RuleName<'s>)> + Clone + 's {
    let rules = spec.rules.iter().map(|rule| RuleName::Rule(rule.name));
    let nat = spec
        .inbound_nat
        .iter()
        .flat_map(|nat| nat_rules(spec, nat).map(|_| RuleName::InboundNat(nat.name)));
    let outbound = outbound_frontends(spec).filter_map(|index| spec.frontends.get(index));
    let outbound = outbound.map(|frontend| RuleName::Outbound(frontend.name));
    rule_identities(spec).zip(rules.chain(nat).chain(outbound))
}

#[cfg(feature = "alloc")]
impl Snapshot<'static> {
    /// Compiles `spec` into boxes. Give the snapshot that this one is to follow as `previous`, as to
    /// [`build`](Self::build).
    ///
    /// # Errors
    /// The spec contradicts itself.
    ///
    /// # Examples
    /// A reload with one backend drained, which moves no established flow:
    /// ```
    /// # use slb_core::snapshot::Snapshot;
    /// # use slb_core::spec::{Backend, Pool, Spec, Underlay};
    /// # let ipv4 = Some([172, 16, 0, 11].into());
    /// # let underlay = Underlay { ipv4, ..Underlay::default() };
    /// let mut backends = [
    ///     Backend { name: "vm1", address: [10, 0, 0, 1].into(), ..Backend::default() },
    ///     Backend { name: "vm2", address: [10, 0, 0, 2].into(), ..Backend::default() },
    /// ];
    /// let pools = [Pool { name: "web", backends: &backends, ..Pool::default() }];
    /// let first = Snapshot::new(&Spec { underlay, pools: &pools, ..Spec::default() }, None)?;
    ///
    /// backends[1].weight = 0;
    /// let pools = [Pool { name: "web", backends: &backends, ..Pool::default() }];
    /// let next = Snapshot::new(&Spec { underlay, pools: &pools, ..Spec::default() }, Some(&first))?;
    /// assert!(next.follows(&first));
    /// assert_eq!(next.backend_named("web", "vm2"), first.backend_named("web", "vm2"));
    /// # Ok::<(), slb_core::spec::SpecError>(())
    /// ```
    pub fn new(spec: &Spec<'_>, previous: Option<&Snapshot<'_>>) -> Result<Self, SpecError> {
        Snapshot::build(spec, previous, &mut crate::mem::Boxes)
    }
}
