//! Validation of a [`Spec`]: [`Snapshot::build`](super::Snapshot::build) first checks single items,
//! and finds faults between items as it fills its maps.

use super::addresses::address_bytes;
use super::compile::{Size, nat_rules, rule_identities};
use super::conflicts;
use super::registry::identity;
use crate::maglev::{MAX_BACKENDS, MaglevError, is_valid_size};
use crate::nat::connection::ALL_PORTS;
use crate::spec::network::Seat;
use crate::spec::snat::{GRANULE, instance, outbound_frontends};
use crate::spec::{
    Answers, Backend, InboundNat, NatTarget, Outbound, Pool, Protocol, ProxyPorts, Rule, RuleItem,
    Spec, SpecError, Underlay, derived_mac,
};
use crate::wire::ethernet::MacAddress;

impl Spec<'_> {
    /// Yields every fault of the spec, with the index of its item; a spec that can be compiled has
    /// none.
    ///
    /// An item that contradicts several others is reported once for each kind of fault.
    ///
    /// # Cost
    /// Proportional to the number of items and its logarithm with the feature `alloc`, to the
    /// square of the number without.
    pub fn faults(&self) -> impl Iterator<Item = SpecError> + '_ {
        let sizes = Size::of(self, None);
        let items = sizes.too_many(self).chain(of_items(self));
        items
            .chain(between_items(self))
            .chain(conflicts::all(self))
            .chain(self.frontends_out_of_ports())
    }
}

/// Yields faults of single items, at a cost proportional to their number.
pub(super) fn of_items<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    let ports = spec.proxy.iter().flat_map(ProxyPorts::faults);
    let pools = (0..).zip(spec.pools);
    let pools = pools.flat_map(|(index, pool)| of_pool(spec, index, pool));
    let muxes = (0..).zip(spec.muxes);
    let muxes = muxes.filter(|(_, mux)| !spec.underlay.reaches(**mux));
    let muxes = muxes.map(|(mux, _)| SpecError::NoUnderlayAddressForMux { mux });
    let Underlay { mac, next_hop, .. } = spec.underlay;
    let is_own = spec.proxy.is_none() && mac == next_hop && mac != MacAddress::UNKNOWN;
    let underlay = is_own.then_some(SpecError::OwnUnderlayNextHop);
    let inside = (0..).zip(spec.inside);
    let inside = inside.filter(|(_, prefix)| prefix.range().is_none());
    let inside = inside.map(|(index, _)| SpecError::InsidePrefix { index });
    let frontends = (0..).zip(spec.frontends);
    let probed = frontends.filter(|(_, frontend)| spec.probe_source.is(frontend.address));
    let probed = probed.map(|(frontend, _)| SpecError::ProbeSourceFrontend { frontend });
    let health = (0..).zip(spec.health).filter_map(|(health, results)| {
        let pool = spec.pools.get(results.pool);
        let (expected, given) = (pool.map(|pool| pool.backends.len()), results.backends.len());
        (expected != Some(given)).then_some(SpecError::PoolHealth {
            health,
            expected: expected.unwrap_or_default(),
            given,
        })
    });
    let rules = (0..).zip(spec.rules);
    let rules = rules.flat_map(|(index, rule)| of_rule(spec, index, rule));
    let nat = (0..).zip(spec.inbound_nat);
    let nat = nat.flat_map(|(index, nat)| of_inbound_nat(spec, index, nat));
    let outbound = (0..).zip(spec.outbound);
    let outbound = outbound.flat_map(|(index, rule)| of_outbound(spec, index, rule));
    ports
        .chain(pools)
        .chain(health)
        .chain(muxes)
        .chain(underlay)
        .chain(inside)
        .chain(probed)
        .chain(spec.network_faults())
        .chain(spec.public_address_faults())
        .chain(rules)
        .chain(nat)
        .chain(outbound)
        .chain(of_private(spec))
        .chain(spec.security_faults())
}

fn of_pool<'s>(
    spec: &'s Spec<'_>,
    index: usize,
    pool: &'s Pool<'_>,
) -> impl Iterator<Item = SpecError> + 's {
    let size = pool.table_size as usize;
    let (members, most) = (pool.backends.len(), MAX_BACKENDS.min(size));
    let table = if !is_valid_size(pool.table_size) {
        Some(MaglevError::SizeNotPrime { size })
    } else if members > most {
        Some(MaglevError::TooManyMembers { members, most })
    } else {
        None
    };
    let is_far = |(_, backend): &(usize, &Backend<'_>)| {
        spec.proxy.is_none() && !spec.underlay.reaches(backend.host)
    };
    let far = (0..).zip(pool.backends).filter(is_far);
    let far = far.map(move |(backend, _)| SpecError::NoUnderlayAddress {
        pool: index,
        backend,
    });
    let is_probes = |(_, backend): &(usize, &Backend<'_>)| spec.probe_source.is(backend.address);
    let probes = (0..).zip(pool.backends).filter(is_probes);
    let probes = probes.map(move |(backend, _)| SpecError::ProbeSourceBackend {
        pool: index,
        backend,
    });
    let usable = |backend: &Backend<'_>| backend.port.filter(|port| *port == ALL_PORTS);
    let ports = pool.backends.iter().filter_map(usable);
    let ports = ports.filter(|_| spec.proxy.is_none());
    let ports = ports.map(|port| SpecError::UnusablePort { port });
    let own = move |own: MacAddress| own == spec.underlay.mac && own != MacAddress::UNKNOWN;
    // A proxy encapsulates nothing, and uses no backend's own MAC address.
    let is_own = move |(_, backend): &(usize, &Backend<'_>)| {
        spec.proxy.is_none() && own(backend.mac.unwrap_or(derived_mac(backend.address)))
    };
    let own_macs = (0..).zip(pool.backends).filter(is_own);
    let own_macs = own_macs.map(move |(backend, _)| SpecError::OwnMac {
        pool: index,
        backend,
    });
    let hops = (0..).zip(pool.backends);
    let hops = hops.filter(move |(_, backend)| backend.next_hop.is_some_and(own));
    let hops = hops.map(move |(backend, _)| SpecError::OwnNextHop {
        pool: index,
        backend,
    });
    let table = table.map(|error| SpecError::Table { pool: index, error });
    let odd = move |(_, weights): &(usize, &&[u32])| weights.len() != members;
    let past = (0..).zip(pool.past).filter(odd);
    let past = past.map(move |(past, weights)| SpecError::PoolPast {
        pool: index,
        past,
        expected: members,
        given: weights.len(),
    });
    table
        .into_iter()
        .chain(far)
        .chain(probes)
        .chain(ports)
        .chain(own_macs)
        .chain(hops)
        .chain(past)
}

/// Returns the frontend of a rule, if it exists, and the first backend of another address family.
fn reference(
    spec: &Spec<'_>,
    item: RuleItem,
    frontend: usize,
    pool: usize,
) -> impl Iterator<Item = SpecError> + use<> {
    let dangling = |field, index, count| SpecError::Dangling {
        item,
        field,
        index,
        count,
    };
    let (found, backends) = (spec.frontends.get(frontend), spec.pools.get(pool));
    let mixed = found.zip(backends).and_then(|(found, pool)| {
        let is_ipv6 = found.address.is_ipv6();
        let mut members = pool.backends.iter();
        members.position(|backend| backend.address.is_ipv6() != is_ipv6)
    });
    let no_frontend = found
        .is_none()
        .then(|| dangling("frontend", frontend, spec.frontends.len()));
    let no_pool = backends
        .is_none()
        .then(|| dangling("pool", pool, spec.pools.len()));
    let mixed = mixed.map(|backend| SpecError::MixedFamilies {
        item,
        frontend,
        pool,
        backend,
    });
    no_frontend.into_iter().chain(no_pool).chain(mixed)
}

/// Yields faults of private frontends, and of rules that must not use them.
fn of_private<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    let network_of = private_networks(spec);
    let rules = (0..).zip(spec.rules);
    let rules = rules.map(|(index, rule)| {
        let (item, terms) = (RuleItem::Rule(index), &rule.terms);
        (item, rule.frontend, rule.pool, terms.answers)
    });
    let nat = (0..).zip(spec.inbound_nat);
    let nat = nat.map(|(index, nat)| {
        let (item, terms) = (RuleItem::InboundNat(index), &nat.terms);
        (item, nat.frontend, nat.pool, terms.answers)
    });
    let known = network_of.clone();
    let rules = rules.chain(nat).flat_map(move |rule| {
        let (item, frontend, pool, answers) = rule;
        let network = known(frontend).and_then(|network| spec.networks.get(network));
        let strange = network
            .zip(spec.pools.get(pool))
            .filter(|(network, pool)| network.vni != pool.vni);
        let strange = strange.map(|_| SpecError::PoolOutsideNetwork {
            item,
            frontend,
            pool,
        });
        let is_through_mux = network.is_some() && answers == Answers::ThroughMux;
        let answers = is_through_mux.then_some(SpecError::PrivateThroughMux { item });
        strange.into_iter().chain(answers)
    });
    let outbound = (0..).zip(spec.outbound).flat_map(move |(index, rule)| {
        let known = network_of.clone();
        let frontends = rule.frontends.iter();
        let private = frontends.filter(move |frontend| known(**frontend).is_some());
        private.map(move |&frontend| SpecError::PrivateOutbound {
            rule: index,
            frontend,
        })
    });
    let networks = spec.networks.iter().filter(|_| spec.proxy.is_some());
    let at_proxy = networks.flat_map(|network| {
        let frontends = network.frontends.iter();
        frontends.map(|&frontend| SpecError::PrivateAtProxy { frontend })
    });
    rules.chain(outbound).chain(at_proxy)
}

/// Finds the index of the network that a private frontend belongs to. A proxy has no networks.
pub(crate) fn private_networks<'s>(
    spec: &'s Spec<'_>,
) -> impl Fn(usize) -> Option<usize> + Clone + 's {
    let private = spec.private_frontends();
    finder(private.map(|(frontend, _, network)| (frontend, network)))
}

/// Returns the fault of a source NAT address whose family differs from the frontend's.
fn of_source_nat(
    spec: &Spec<'_>,
    item: RuleItem,
    frontend: usize,
    terms: &crate::spec::Terms,
) -> Option<SpecError> {
    let (frontend, address) = spec.frontends.get(frontend).zip(terms.source_nat)?;
    let is_other = frontend.address.is_ipv6() != address.is_ipv6();
    is_other.then_some(SpecError::SourceNatFamily { item })
}

fn of_rule(
    spec: &Spec<'_>,
    index: usize,
    rule: &Rule<'_>,
) -> impl Iterator<Item = SpecError> + use<> {
    let item = RuleItem::Rule(index);
    let health = rule.health.filter(|&health| {
        let own = spec.health.get(health);
        own.is_none_or(|own| own.pool != rule.pool)
    });
    let health = health.map(|_| SpecError::DanglingHealth { rule: index });
    let has_wrong_port = rule.protocol.has_port() != (rule.frontend_port != 0);
    let port = has_wrong_port.then_some(SpecError::RulePort { rule: index });
    let source_nat = of_source_nat(spec, item, rule.frontend, &rule.terms);
    let references = reference(spec, item, rule.frontend, rule.pool);
    references.chain(health).chain(port).chain(source_nat)
}

fn of_inbound_nat(
    spec: &Spec<'_>,
    index: usize,
    nat: &InboundNat<'_>,
) -> impl Iterator<Item = SpecError> + use<> {
    let item = RuleItem::InboundNat(index);
    let pool = spec.pools.get(nat.pool);
    let count = pool.map_or(0, |pool| pool.backends.len());
    let (first, target) = match nat.target {
        NatTarget::Backend { port, backend } => {
            let is_missing = pool.is_some() && backend >= count;
            let dangling = SpecError::Dangling {
                item,
                field: "backend",
                index: backend,
                count,
            };
            (port, is_missing.then_some(dangling))
        }
        NatTarget::Pool { first, last } => {
            let instances = (0..count).map(|backend| instance(spec, nat.pool, backend));
            let room = u32::from(last).checked_sub(first.into());
            let beyond = |instance: &u32| room.is_none_or(|room| *instance > room);
            let full = instances.filter(beyond).min();
            let full = full.map(|instance| SpecError::NatPoolFull {
                rule: index,
                instance,
            });
            (first, full)
        }
    };
    let is_bad = !nat.protocol.has_port() || first == 0 || nat.backend_port == 0;
    let port = is_bad.then_some(SpecError::NatPort { rule: index });
    let source_nat = of_source_nat(spec, item, nat.frontend, &nat.terms);
    reference(spec, item, nat.frontend, nat.pool)
        .chain(target)
        .chain(port)
        .chain(source_nat)
}

fn of_outbound<'s>(
    spec: &'s Spec<'_>,
    index: usize,
    rule: &'s Outbound<'_>,
) -> impl Iterator<Item = SpecError> + 's {
    let item = RuleItem::Outbound(index);
    let none = rule.frontends.is_empty();
    let none = none.then_some(SpecError::NoFrontend { rule: index });
    let frontends = rule.frontends.iter();
    let references =
        frontends.flat_map(move |&frontend| reference(spec, item, frontend, rule.pool));
    let repeated = (0..).zip(rule.frontends).filter(|&(place, frontend)| {
        let before: &[usize] = rule.frontends.get(..place).unwrap_or_default();
        before.contains(frontend)
    });
    let repeated = repeated.map(move |(_, &frontend)| SpecError::RepeatedFrontend {
        rule: index,
        frontend,
    });
    let ports = rule.allocated_outbound_ports;
    let ports = ports.filter(|&ports| ports == 0 || !ports.is_multiple_of(GRANULE));
    let ports = ports.map(|_| SpecError::PortsPerBackend { rule: index });
    none.into_iter()
        .chain(references)
        .chain(repeated)
        .chain(ports)
}

/// Yields faults of items that contradict each other.
fn between_items<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    let addresses = duplicate_frontends(spec);
    let pools = (0..).zip(spec.pools);
    let names = pools.flat_map(|(index, pool)| {
        let all = duplicates(pool.backends.iter().map(|backend| backend.name));
        all.map(move |(_, member)| SpecError::Table {
            pool: index,
            error: MaglevError::DuplicateName { member },
        })
    });
    let pools = (0..).zip(spec.pools);
    let seats = pools.flat_map(|(index, pool)| {
        let members = (0..).zip(pool.backends);
        let seated = members.filter(|(_, backend)| backend.is_seated());
        let all = duplicates_of(seated.map(|(member, backend)| (backend.seat(), member)));
        // Duplicate names are reported above.
        let others = all.filter(|&(first, second): &(usize, usize)| {
            pool.backends[first].name != pool.backends[second].name
        });
        others.map(move |(first, second)| SpecError::SeatTaken {
            pool: index,
            first,
            second,
        })
    });
    // Duplicate names in a pool are reported above.
    let identities = (0..)
        .zip(backends(spec))
        .map(|(index, (of, pool, backend))| {
            let key = backend_identity(pool, backend);
            (key, (index, of))
        });
    let backends = duplicates_of(identities).filter(|(first, second)| first.1 != second.1);
    let backends = backends.map(|(first, second)| SpecError::DuplicateBackend {
        first: first.0,
        second: second.0,
    });
    let rules = duplicates(rule_identities(spec));
    let rules = rules.map(|(first, second)| SpecError::DuplicateRule {
        first: rule_item(spec, first),
        second: rule_item(spec, second),
    });
    let conflicts = duplicates(rule_keys(spec));
    let conflicts = conflicts.map(|(first, second)| SpecError::ConflictingRules {
        first: rule_item(spec, first),
        second: rule_item(spec, second),
    });
    let numbered = (0..).zip(spec.pools);
    let numbers = numbered.flat_map(|(pool, of)| instances(spec, pool, of));
    addresses
        .chain(names)
        .chain(seats)
        .chain(backends)
        .chain(rules)
        .chain(conflicts)
        .chain(numbers)
        .chain(vms(spec))
        .chain(networks(spec))
        .chain(spec.public_address_clashes())
}

/// Yields frontends with the same address: two in one network, two public ones, or a private and a
/// public one that present one address to one vm.
fn duplicate_frontends<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    let network_of = private_networks(spec);
    let public = (0..).zip(spec.frontends);
    let public = public.filter(move |(index, _)| network_of(*index).is_none());
    let public = public.map(|(index, frontend)| (frontend.address, (index, false)));
    let private = spec.private_frontends();
    let private = private.map(|(index, frontend, _)| (frontend.address, (index, true)));
    let all = public.clone().chain(private);
    let with_public = duplicates_of(all).filter(|(one, _)| !one.1);
    let with_public = with_public.map(|(one, other)| (one.0, other.0));
    let in_networks = spec.private_frontends().map(|(index, frontend, network)| {
        let vni = spec.networks.get(network).map(|network| network.vni.get());
        ((frontend.address, vni), index)
    });
    // Two frontends with one address in a network are another kind of fault.
    let in_networks = duplicates_of(in_networks).filter(|(one, other)| one != other);
    let all = with_public.chain(in_networks);
    all.map(|(one, other)| SpecError::duplicate_frontend(one, other))
}

/// Yields all backends, pool by pool, with their pool and its index.
pub(super) fn backends<'s>(
    spec: &'s Spec<'_>,
) -> impl Iterator<Item = (usize, &'s Pool<'s>, &'s Backend<'s>)> + Clone + 's {
    let pools = (0..).zip(spec.pools);
    pools.flat_map(|(index, pool)| {
        let all = pool.backends.iter();
        all.map(move |backend| (index, pool, backend))
    })
}

/// Returns the identity of a backend, which determines its id.
pub(crate) fn backend_identity(pool: &Pool<'_>, backend: &Backend<'_>) -> u64 {
    let address = address_bytes(backend.address);
    identity([pool.name.as_bytes(), backend.name.as_bytes(), &address])
}

/// Returns the rule with an index among all compiled rules.
pub(super) fn rule_item(spec: &Spec<'_>, index: usize) -> RuleItem {
    let Some(mut rest) = index.checked_sub(spec.rules.len()) else {
        return RuleItem::Rule(index);
    };
    for (number, nat) in spec.inbound_nat.iter().enumerate() {
        let count = nat_rules(spec, nat).count();
        match rest.checked_sub(count) {
            None => return RuleItem::InboundNat(number),
            Some(left) => rest = left,
        }
    }
    let mut outbound = outbound_frontends(spec);
    RuleItem::SnatPorts(outbound.nth(rest).unwrap_or(rest))
}

/// Yields the frontend, protocol and port of each rule.
fn rule_keys<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = (usize, u8, u16)> + Clone + 's {
    let key = |frontend, protocol: Protocol, port| {
        let port = if protocol.has_port() { port } else { 0 };
        (frontend, protocol as u8, port)
    };
    let rules = spec.rules.iter();
    let rules = rules.map(move |rule| key(rule.frontend, rule.protocol, rule.frontend_port));
    let nat = spec.inbound_nat.iter();
    let nat = nat.flat_map(move |nat| {
        nat_rules(spec, nat).map(move |(_, port)| key(nat.frontend, nat.protocol, port))
    });
    rules.chain(nat)
}

/// Yields instance numbers, which determine backends' ports, that two backends of a pool share.
pub(super) fn instances<'s>(
    spec: &'s Spec<'_>,
    pool: usize,
    of: &'s Pool<'_>,
) -> impl Iterator<Item = SpecError> + 's {
    let mut nat = spec.inbound_nat.iter();
    let is_nat_pool =
        nat.any(|nat| nat.pool == pool && matches!(nat.target, NatTarget::Pool { .. }));
    let counts = is_nat_pool || spec.outbound.iter().any(|rule| rule.pool == pool);
    let members = if counts { 0..of.backends.len() } else { 0..0 };
    let numbers = members.map(move |backend| instance(spec, pool, backend));
    duplicates(numbers).map(move |(first, second)| SpecError::DuplicateInstance {
        pool,
        first,
        second,
        instance: instance(spec, pool, second),
    })
}

/// Yields backends of this node that share a port, or a network and MAC address, but are not one
/// vm.
fn vms<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    let all = (0..).zip(backends(spec)).filter(|_| spec.proxy.is_none());
    let local = all.filter_map(|(index, (_, pool, backend))| {
        let mac = backend.mac.unwrap_or(derived_mac(backend.address));
        Some((index, backend.port?, (mac.0, pool.vni.get())))
    });
    let by_port = duplicates_of(local.clone().map(|vm| (vm.1.0, vm)));
    let by_port = by_port.filter(|(first, second)| first.2 != second.2);
    let by_nic = duplicates_of(local.map(|vm| (vm.2, vm)));
    let by_nic = by_nic.filter(|(first, second)| first.1 != second.1);
    by_port
        .chain(by_nic)
        .map(|(first, second)| SpecError::PortConflict {
            first: first.0,
            second: second.0,
            port: second.1,
        })
}

/// Yields networks with the same VNI, vms of a network with the same address, addresses outside of
/// their network, and vms other than backends that share a port or a MAC address.
fn networks<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    let vnis = duplicates(spec.networks.iter().map(|network| network.vni.get()));
    let vnis = vnis.map(|(first, second)| SpecError::DuplicateNetwork { first, second });
    let seats = spec.backend_seats();
    let seats = seats.chain(spec.vm_seats().map(|(_, seat)| seat));
    let seats = seats.filter(|_| !spec.networks.is_empty() && spec.proxy.is_none());
    let taken = duplicates_of(seats.map(|seat| ((seat.vni.get(), seat.address), seat)));
    let taken = taken.filter(|(first, second)| {
        let vm = |seat: &Seat| (seat.mac, seat.port, seat.host);
        vm(first) != vm(second)
    });
    let indexes = (0..).zip(spec.networks);
    let find = finder(indexes.map(|(index, network)| (network.vni.get(), index)));
    let taken = taken.filter_map(move |(_, second)| {
        let network = find(second.vni.get())?;
        let address = second.address;
        Some(SpecError::AddressTaken { network, address })
    });
    // Conflicts between backends are reported elsewhere.
    let backends = spec.backend_seats().map(|seat| (None, seat));
    let vms = spec.vm_seats().map(|(vm, seat)| (Some(vm), seat));
    let local = backends.chain(vms).filter(|_| spec.proxy.is_none());
    let local = local.filter_map(|(vm, seat)| Some((vm, seat.port?, (seat.mac.0, seat.vni.get()))));
    let by_port = duplicates_of(local.clone().map(|vm| (vm.1, vm)));
    let by_port = by_port.filter(|(first, second)| first.2 != second.2);
    let by_nic = duplicates_of(local.map(|vm| (vm.2, vm)));
    let by_nic = by_nic.filter(|(first, second)| first.1 != second.1);
    let ports = by_port.chain(by_nic).filter_map(|(_, (vm, port, _))| {
        let vm = vm?;
        Some(SpecError::VmPortConflict { vm, port })
    });
    let shared = duplicates(spec.private_frontends().map(|(frontend, ..)| frontend));
    let shared = shared.filter_map(|(_, second)| {
        let (frontend, ..) = spec.private_frontends().nth(second)?;
        Some(SpecError::SharedFrontend { frontend })
    });
    // Vms with a frontend's address are reported elsewhere.
    let private = spec.private_frontends();
    let private = private.map(|(index, frontend, network)| {
        let vni = spec.networks.get(network).map(|of| of.vni.get());
        ((vni, frontend.address), Some(index))
    });
    let gateways = spec.networks.iter().flat_map(|of| {
        let gateways = of.gateways.iter();
        gateways.map(|gateway| ((Some(of.vni.get()), *gateway), None))
    });
    let met = duplicates_of(private.chain(gateways));
    let met = met.filter_map(|(first, second): (Option<usize>, Option<usize>)| {
        let frontend = first.filter(|_| second.is_none())?;
        Some(SpecError::PrivateFrontendTaken { frontend })
    });
    vnis.chain(spec.seat_faults())
        .chain(taken)
        .chain(ports)
        .chain(shared)
        .chain(met)
}

/// Yields the values of each entry whose key an earlier entry has: the earlier entry's value, then
/// its own.
#[cfg(feature = "alloc")]
pub(super) fn duplicates_of<K: Ord, V: Copy>(
    entries: impl Iterator<Item = (K, V)>,
) -> impl Iterator<Item = (V, V)> {
    use alloc::collections::btree_map::{BTreeMap, Entry};
    let mut seen = BTreeMap::new();
    entries.filter_map(move |(key, value)| match seen.entry(key) {
        Entry::Occupied(first) => Some((*first.get(), value)),
        Entry::Vacant(place) => {
            place.insert(value);
            None
        }
    })
}

/// Yields the values of each entry whose key an earlier entry has: the earlier entry's value, then
/// its own.
#[cfg(not(feature = "alloc"))]
pub(super) fn duplicates_of<K: Ord, V: Copy>(
    entries: impl Iterator<Item = (K, V)> + Clone,
) -> impl Iterator<Item = (V, V)> {
    let all = entries.clone();
    entries
        .enumerate()
        .filter_map(move |(index, (key, value))| {
            let mut before = all.clone().take(index);
            let (_, first) = before.find(|(other, _)| *other == key)?;
            Some((first, value))
        })
}

/// Finds the first value of a key.
#[cfg(feature = "alloc")]
pub(crate) fn finder<K: Ord + Clone, V: Copy>(
    entries: impl Iterator<Item = (K, V)>,
) -> impl Fn(K) -> Option<V> + Clone {
    let mut found = alloc::collections::btree_map::BTreeMap::new();
    for (key, value) in entries {
        found.entry(key).or_insert(value);
    }
    move |key| found.get(&key).copied()
}

/// Finds the first value of a key.
#[cfg(not(feature = "alloc"))]
pub(crate) fn finder<K: Ord + Clone, V: Copy>(
    entries: impl Iterator<Item = (K, V)> + Clone,
) -> impl Fn(K) -> Option<V> + Clone {
    move |key| {
        let mut entries = entries.clone();
        entries.find_map(|(other, value)| (other == key).then_some(value))
    }
}

/// Yields the indexes of equal keys: the earlier key's, then the later one's.
pub(crate) fn duplicates<K: Ord>(
    keys: impl Iterator<Item = K> + Clone,
) -> impl Iterator<Item = (usize, usize)> {
    duplicates_of(keys.zip(0..))
}
