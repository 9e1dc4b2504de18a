//! Compilation of a [`Spec`] into a snapshot: sizes first, then pools, backends, frontends, rules.

mod pasts;
mod pools;
mod rules;
mod size;

use core::net::IpAddr;

pub(crate) use self::rules::rule_names;
pub(super) use self::rules::{nat_rules, rule_identities};
use self::size::SPARED_RULE_SLOTS;
pub(super) use self::size::Size;
use super::ages;
use super::faults::of_items;
use super::locals::Nat;
use super::owners::Past;
use super::private::Private;
use super::probe_map::{ProbeMap, RuleBucket, VipBucket};
use super::registry::{Registry, RegistryEntry};
use super::terms::CompiledTerms;
use super::{
    CompiledBackend, CompiledPool, CompiledRule, Share, Snapshot, VIP, ipv6_words, private_vip,
    rule_key,
};
use crate::maglev::Turn;
use crate::mem::Memory;
use crate::spec::{Echo, Spec, SpecError};

impl<'m> Snapshot<'m> {
    /// Returns the number of [`Line`](crate::mem::Line)s that [`build`](Self::build) takes from an
    /// arena; `usize::MAX` if it is out of range.
    pub fn lines_for(spec: &Spec<'_>, previous: Option<&Snapshot<'_>>) -> usize {
        Size::of(spec, previous).lines(spec).unwrap_or(usize::MAX)
    }

    /// Compiles `spec`. Pass the snapshot that this one will replace as `previous`: backends and
    /// rules keep their ids, and tables of unchanged pools are copied.
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
            // Slots of tables that probes share with their pools stay zero: as boxes, memory of
            // zeros costs nothing until it is written.
            table: memory.take(size.table, 0).ok_or(none)?,
            past: memory.take(size.past, Past::NONE).ok_or(none)?,
            ages: memory.take(size.ages, ages::NEVER).ok_or(none)?,
            private: Private::new(&size.private, memory).ok_or(none)?,
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

    /// Records the hosts from which vms have moved to this node.
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

    fn compile_frontends(&mut self, spec: &Spec<'_>) -> Result<(), SpecError> {
        for (index, frontend, network) in spec.private_frontends() {
            let (address, vni) = (frontend.address, spec.networks[network].vni);
            let known = self.private.insert(index, address, vni);
            known.map_err(|first| match first == index {
                true => SpecError::SharedFrontend { frontend: index },
                false => SpecError::duplicate_frontend(first, index),
            })?;
            let networks = &self.nat.networks;
            // The check for conflicts of all frontends finds a vm with the address.
            let network = networks.of(vni);
            if network.is_some_and(|of| networks.is_gateway(of, address)) {
                return Err(SpecError::PrivateFrontendTaken { frontend: index });
            }
        }
        // An IPv6 VIP is looked up once for its number, which represents it in rule keys.
        for (index, frontend) in spec.frontends.iter().enumerate() {
            let duplicate = |first: u32| SpecError::duplicate_frontend(first as usize, index);
            if let IpAddr::V6(address) = frontend.address
                && self.private.of(index).is_none()
            {
                let words = ipv6_words(address.octets());
                self.ipv6_vips
                    .insert(words, index as u32)
                    .map_err(duplicate)?;
            }
            self.echo[index] = frontend.icmp_echo;
            let vip = self.vip_of_frontend(spec, index);
            self.rule_keys
                .insert(rule_key(vip, VIP, 0), index as u32)
                .map_err(duplicate)?;
        }
        let mut private = spec.private_frontends();
        let mixed = private.find_map(|(index, frontend, _)| {
            let public = self.frontend_at(frontend.address)?;
            Some(SpecError::duplicate_frontend(public, index))
        });
        mixed.map_or(Ok(()), Err)
    }

    /// Returns the id of a frontend's address in rule keys.
    fn vip_of_frontend(&self, spec: &Spec<'_>, frontend: usize) -> u64 {
        match self.private.of(frontend) {
            Some(_) => private_vip(frontend as u32),
            None => {
                let address = spec.frontends.get(frontend).map(|of| of.address);
                let vip = address.and_then(|address| self.vip_of(address));
                vip.unwrap_or_default()
            }
        }
    }
}

#[cfg(feature = "alloc")]
impl Snapshot<'static> {
    /// Compiles `spec` into boxes. Pass the snapshot that this one will replace as `previous`, as
    /// for [`build`](Self::build).
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
