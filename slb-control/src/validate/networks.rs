//! Networks and their vms.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use slb_core::spec::SpecError;
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;

use super::faults::no_underlay;
use crate::config::addresses::range;
use crate::config::{Config, MOST_BACKENDS, MOST_RULES, Network, Role};
use crate::document::{Faults, Span};

/// Reports more networks or vms than can be compiled in a few seconds; returns true if there are.
pub(super) fn are_too_many(config: &Config, faults: &Faults<'_>) -> bool {
    if let Some(network) = config.networks.get(MOST_RULES) {
        let count = config.networks.len();
        let message = format!("expected at most {MOST_RULES} networks, got {count}");
        faults.add(&network.span, "network", message);
        return true;
    }
    let mut addresses = 0;
    for vm in &config.network_vms {
        addresses += vm.addresses.len();
        if addresses > MOST_BACKENDS {
            let all: usize = config.network_vms.iter().map(|vm| vm.addresses.len()).sum();
            let message = format!(
                "expected at most {MOST_BACKENDS} addresses of vms that are no backends, got {all}"
            );
            faults.add(&vm.span, format!("vm {:?}", vm.name), message);
            return true;
        }
    }
    false
}

pub(super) fn check(config: &Config, faults: &Faults<'_>) {
    let networks = config.networks.iter();
    super::unique(
        faults,
        "network",
        networks.map(|network| (network.name.clone(), &network.span)),
    );
    check_names(config, faults);
    if config.node.role == Role::Proxy {
        let message =
            "is for role \"host\": a proxy's backends reach each other over their own network";
        if let Some(network) = config.networks.first() {
            let place = format!("network {:?}", network.name);
            faults.add(&network.span, place, message);
        }
    }
    for network in &config.networks {
        check_spaces(network, faults);
    }
    check_gateways(config, faults);
    check_macs(config, faults);
}

/// Checks that no vm and no VIP that leads into the network has a gateway's address.
fn check_gateways(config: &Config, faults: &Faults<'_>) {
    let seats: HashSet<(Vni, IpAddr)> = seats(config)
        .map(|(vni, seat)| (vni, seat.address))
        .collect();
    let led = led(config);
    for network in &config.networks {
        let place = format!("network {:?}: gateways", network.name);
        for &gateway in &network.gateways {
            if seats.contains(&(network.vni, gateway)) {
                let message = format!("expected an address that no vm has, got {gateway}");
                faults.add(&network.span, place.clone(), message);
            }
            if let Some(frontend) = led.get(&(network.vni, gateway)) {
                let message = format!(
                    "expected an address of its own, but {gateway} is the address of frontend {frontend:?}, which \
                     leads into the network"
                );
                faults.add(&network.span, place.clone(), message);
            }
        }
    }
}

/// A vm's address in a VNI, and its position in the file.
struct Seat<'c> {
    address: IpAddr,
    host: IpAddr,
    mac: MacAddress,
    span: &'c Span,
    /// The pool of a backend.
    pool: Option<&'c str>,
    name: &'c str,
}

impl Seat<'_> {
    /// Returns the name of the vm, for messages.
    fn named(&self) -> String {
        match self.pool {
            Some(pool) => format!("pool {pool:?}: backend {:?}", self.name),
            None => format!("vm {:?}", self.name),
        }
    }
}

/// Yields all addresses of backends, then those of vms that are no backends, each with its VNI.
fn seats(config: &Config) -> impl Iterator<Item = (Vni, Seat<'_>)> {
    let backends = config.pools.iter().flat_map(|pool| {
        let backends = pool.backends.iter();
        backends.map(|backend| {
            let seat = Seat {
                address: backend.address,
                host: backend.host,
                mac: backend.mac(),
                span: &backend.span,
                pool: Some(&pool.name),
                name: &backend.name,
            };
            (pool.vni, seat)
        })
    });
    let vms = config.network_vms.iter().flat_map(|vm| {
        let network = config.networks.get(vm.network);
        let addresses = network.map_or(&[][..], |_| &vm.addresses);
        addresses.iter().filter_map(move |&address| {
            let seat = Seat {
                address,
                host: vm.host,
                mac: vm.mac(),
                span: &vm.span,
                pool: None,
                name: &vm.name,
            };
            Some((network?.vni, seat))
        })
    });
    backends.chain(vms)
}

/// Returns the frontend of each address that leads into a VNI by a rule, inbound NAT or an outbound
/// rule, or is private to its network.
pub(super) fn led(config: &Config) -> HashMap<(Vni, IpAddr), &str> {
    let rules = config.rules.iter().map(|rule| (rule.frontend, rule.pool));
    let nat = config
        .inbound_nat
        .iter()
        .map(|nat| (nat.frontend, nat.pool));
    let outbound = config.outbound.iter().flat_map(|rule| {
        let frontends = rule.frontends.iter();
        frontends.map(move |&frontend| (frontend, rule.pool))
    });
    let all = rules.chain(nat).chain(outbound);
    let named = all.filter_map(|(frontend, pool)| {
        let (frontend, pool) = (config.frontends.get(frontend)?, config.pools.get(pool)?);
        Some(((pool.vni, frontend.address), &*frontend.name))
    });
    let private = config.frontends.iter().filter_map(|frontend| {
        let network = config.network_of_frontend(frontend)?;
        Some(((network.vni, frontend.address), &*frontend.name))
    });
    named.chain(private).collect()
}

/// Checks that a network is one link: each MAC address belongs to one vm, and each vm is on one
/// host.
fn check_macs(config: &Config, faults: &Faults<'_>) {
    if config.node.role == Role::Proxy {
        return;
    }
    let networks: HashMap<Vni, &str> = config
        .networks
        .iter()
        .map(|network| (network.vni, &*network.name))
        .collect();
    let mut known: HashMap<(Vni, MacAddress), Seat<'_>> = HashMap::new();
    let mut told = HashSet::new();
    for (vni, seat) in seats(config) {
        let Some(network) = networks.get(&vni) else {
            continue;
        };
        let first = match known.entry((vni, seat.mac)) {
            Entry::Occupied(first) => first.into_mut(),
            Entry::Vacant(place) => {
                place.insert(seat);
                continue;
            }
        };
        // Two vms with one address are reported elsewhere.
        let is_apart = first.host != seat.host && first.address != seat.address;
        if is_apart && told.insert((seat.span.start, seat.mac)) {
            let message = format!(
                "{} in network {network:?} is the MAC address of {} at host {} already (line {}): expected one of \
                 its own, or one host",
                seat.mac,
                first.named(),
                first.host,
                faults.line(first.span),
            );
            faults.add(seat.span, format!("{}: mac", seat.named()), message);
        }
    }
}

/// Checks that vms of one network have different names.
fn check_names(config: &Config, faults: &Faults<'_>) {
    let mut seen = HashMap::new();
    for vm in &config.network_vms {
        if seen.insert((vm.network, &vm.name), ()).is_some() {
            faults.add(&vm.span, format!("vm {:?}", vm.name), "duplicate name");
        }
    }
}

/// Checks that the address spaces of a network do not overlap.
fn check_spaces(network: &Network, faults: &Faults<'_>) {
    let spaces = network.address_spaces.iter();
    let ranges: Vec<[IpAddr; 2]> = spaces.map(|&space| range(space)).collect();
    let place = format!("network {:?}: address_spaces", network.name);
    for (first, second) in overlaps(&ranges) {
        let (one, other) = (first.max(second), first.min(second));
        let (one, other) = (network.address_spaces[one], network.address_spaces[other]);
        let message = format!("{one} and {other} overlap: expected spaces that do not");
        faults.add(&network.span, place.clone(), message);
    }
}

/// Returns the indexes of overlapping ranges: each range with the earlier one that reaches
/// furthest.
///
/// # Cost
/// Like sorting.
fn overlaps<T: Ord + Copy>(ranges: &[[T; 2]]) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|&place| ranges[place]);
    let mut furthest: Option<usize> = None;
    let mut found = Vec::new();
    for place in order {
        let [first, last] = ranges[place];
        let before = furthest.map(|before| (before, ranges[before][1]));
        if let Some((before, end)) = before
            && end >= first
        {
            found.push((before, place));
        }
        if before.is_none_or(|(_, end)| last > end) {
            furthest = Some(place);
        }
    }
    found
}

/// Returns the line, the item and the message of a fault of networks; `None` for any other fault.
pub(super) fn told(config: &Config, error: &SpecError) -> Option<(Span, String, String)> {
    let network = |index: usize| config.networks.get(index);
    let vm = |index: usize| config.network_vms.get(index);
    let place_of = |name: &str, field: &str| format!("vm {name:?}: {field}");
    Some(match *error {
        SpecError::DuplicateNetwork { first, second } => {
            let (first, second) = (network(first)?, network(second)?);
            let place = format!("network {:?}: vni", second.name);
            let message = format!(
                "{} is the vni of network {:?} already",
                second.vni, first.name
            );
            (second.span.clone(), place, message)
        }
        SpecError::OutsideNetwork {
            network: index,
            address,
        } => {
            let network = network(index)?;
            let message = format!(
                "expected an address in an address space of network {:?}, got {address}",
                network.name
            );
            if network.gateways.contains(&address) {
                let place = format!("network {:?}: gateways", network.name);
                return Some((network.span.clone(), place, message));
            }
            let mut frontends = config.private_frontends(network);
            if let Some(frontend) = frontends.find(|frontend| frontend.address == address) {
                let place = format!("frontend {:?}: address", frontend.name);
                return Some((frontend.span.clone(), place, message));
            }
            let (span, place) = owners(config, index, address).next()?;
            (span.clone(), format!("{place}: address"), message)
        }
        // The check of gateways reports it.
        SpecError::PrivateFrontendTaken { .. } => return None,
        SpecError::AddressTaken {
            network: index,
            address,
        } => {
            let name = &network(index)?.name;
            let (_, first) = owners(config, index, address).next()?;
            let (span, place) = owners(config, index, address).last()?;
            let message = format!(
                "{address} is the address of {first} in network {name:?} already: expected one MAC address and \
                 host, as one vm has, or another address"
            );
            (span.clone(), format!("{place}: address"), message)
        }
        SpecError::FrontendVm {
            frontend,
            vm: index,
        } => {
            let (frontend, vm) = (config.frontends.get(frontend)?, vm(index)?);
            let message = format!(
                "{} is the address of frontend {:?}, which leads into the vm's network",
                frontend.address, frontend.name
            );
            (vm.span.clone(), place_of(&vm.name, "address"), message)
        }
        SpecError::NoUnderlayAddressForVm { vm: index } => {
            let vm = vm(index)?;
            (
                vm.span.clone(),
                place_of(&vm.name, "host"),
                no_underlay(vm.host),
            )
        }
        SpecError::VmPortConflict { vm: index, port } => {
            let vm = vm(index)?;
            let message = format!("port {} has another vm already", port.0);
            (vm.span.clone(), place_of(&vm.name, "port"), message)
        }
        _ => return None,
    })
}

/// Returns the backends, then the vms, with an address in a network: the position and the name of
/// each.
fn owners(
    config: &Config,
    network: usize,
    address: IpAddr,
) -> impl Iterator<Item = (&Span, String)> {
    let vni = config.networks.get(network).map(|network| network.vni);
    let pools = config.pools.iter();
    let pools = pools.filter(move |pool| Some(pool.vni) == vni);
    let backends = pools.flat_map(move |pool| {
        let backends = pool.backends.iter();
        let backends = backends.filter(move |backend| backend.address == address);
        backends.map(move |backend| {
            let place = format!("pool {:?}: backend {:?}", pool.name, backend.name);
            (&backend.span, place)
        })
    });
    let vms = config.network_vms.iter();
    let vms = vms.filter(move |vm| vm.network == network && vm.addresses.contains(&address));
    backends.chain(vms.map(|vm| (&vm.span, format!("vm {:?}", vm.name))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::cmp::Ordering;

    thread_local! {
        static COMPARED: Cell<u64> = const { Cell::new(0) };
    }

    /// A number whose comparisons are counted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Counted(u32);

    impl Ord for Counted {
        fn cmp(&self, other: &Self) -> Ordering {
            COMPARED.set(COMPARED.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counted {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    #[test]
    fn twenty_thousand_ranges_are_compared_a_few_times_each() {
        const COUNT: u32 = 20_000;
        let spread = |n: u32| n * 7919 % COUNT * 10;
        let mut ranges: Vec<_> = (0..COUNT)
            .map(|n| [Counted(spread(n)), Counted(spread(n) + 9)])
            .collect();
        assert!(overlaps(&ranges).is_empty());
        assert!(COMPARED.get() < u64::from(COUNT) * 64, "{}", COMPARED.get());
        // One that holds all others.
        ranges.push([Counted(0), Counted(COUNT * 10)]);
        COMPARED.set(0);
        assert_eq!(overlaps(&ranges).len(), COUNT as usize);
        assert!(COMPARED.get() < u64::from(COUNT) * 64, "{}", COMPARED.get());
    }

    #[test]
    fn ranges_that_overlap_are_found() {
        let found = |ranges: &[[u8; 2]]| overlaps(ranges);
        assert_eq!(found(&[[1, 3], [4, 6], [7, 7]]), []);
        assert_eq!(found(&[[1, 3], [3, 6]]), [(0, 1)]);
        assert_eq!(
            found(&[[2, 2], [1, 9], [5, 6], [8, 8]]),
            [(1, 0), (1, 2), (1, 3)]
        );
        assert_eq!(found(&[[1, 1], [1, 1]]), [(0, 1)]);
    }
}
