//! Networks and their vms.

use std::collections::HashMap;
use std::net::IpAddr;

use slb_core::spec::SpecError;
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;

use super::faults::no_underlay;
use crate::config::{Config, MOST_BACKENDS, MOST_RULES, Network, Role};
use crate::document::{Faults, Span};

/// Adds a fault where there are more networks or vms than are compiled in a few seconds, and says so.
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
            "is for role \"host\": a proxy's backends reach each other by the networks they have";
        if let Some(network) = config.networks.first() {
            let place = format!("network {:?}", network.name);
            faults.add(&network.span, place, message);
        }
    }
    for network in &config.networks {
        check_spaces(network, faults);
        let place = format!("network {:?}: gateways", network.name);
        for &gateway in &network.gateways {
            let others = config.addresses_of(network).filter(|&a| a == gateway);
            if others.count() > 1 {
                let message = format!("expected an address that no vm has, got {gateway}");
                faults.add(&network.span, place.clone(), message);
            }
        }
    }
    check_vms(config, faults);
}

/// Vms of one network have names of their own.
fn check_names(config: &Config, faults: &Faults<'_>) {
    let mut seen = HashMap::new();
    for vm in &config.network_vms {
        if seen.insert((vm.network, &vm.name), ()).is_some() {
            faults.add(&vm.span, format!("vm {:?}", vm.name), "duplicate name");
        }
    }
}

/// Address spaces of a network do not overlap.
fn check_spaces(network: &Network, faults: &Faults<'_>) {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    for (index, one) in network.address_spaces.iter().enumerate() {
        for other in network.address_spaces.iter().take(index) {
            let len = one.len.min(other.len);
            let differ = bits(one.address) ^ bits(other.address);
            let is_alike = len == 0 || differ >> (128 - u32::from(len)) == 0;
            if is_alike && one.address.is_ipv4() == other.address.is_ipv4() {
                let message = format!("{one} and {other} overlap: expected spaces that do not");
                let place = format!("network {:?}: address_spaces", network.name);
                faults.add(&network.span, place, message);
            }
        }
    }
}

/// A vm that is a backend too has one port, and no vm has the address of a VIP or of the prober.
fn check_vms(config: &Config, faults: &Faults<'_>) {
    let mut ports: HashMap<(IpAddr, Vni, MacAddress), (u16, &str)> = HashMap::new();
    for pool in &config.pools {
        for backend in &pool.backends {
            if let Some(port) = backend.port {
                let nic = (backend.host, pool.vni, backend.mac());
                ports.insert(nic, (port, &backend.name));
            }
        }
    }
    let source = config.node.probe_source();
    for vm in &config.network_vms {
        let place = format!("vm {:?}", vm.name);
        let vni = config.networks.get(vm.network).map(|network| network.vni);
        let nic = (vm.host, vni.unwrap_or_default(), vm.mac());
        match (ports.get(&nic), vm.port) {
            (Some((port, other)), Some(own)) if *port != own => {
                let message = format!(
                    "is one vm with backend {other:?} (one MAC address, {}, in one network), which is at port \
                     {port}, but says port {own}",
                    vm.mac()
                );
                faults.add(&vm.span, format!("{place}: port"), message);
            }
            (None, Some(own)) => {
                ports.insert(nic, (own, &vm.name));
            }
            _ => {}
        }
        let place = format!("{place}: address");
        for &address in &vm.addresses {
            let mut frontends = config.frontends.iter();
            let frontend = frontends.find(|frontend| frontend.address == address);
            if let Some(frontend) = frontend {
                let message = format!("{address} is the address of frontend {:?}", frontend.name);
                faults.add(&vm.span, place.clone(), message);
            }
            let is_probes = source.is(address) || config.node.probe_sources.contains(&address);
            if config.node.probing && is_probes {
                let message = format!(
                    "expected an address of its own, but {address} is where probes come from (probe_sources of \
                     [node])"
                );
                faults.add(&vm.span, place.clone(), message);
            }
        }
    }
}

/// The line, the item and the message of a fault of networks; `None` of another.
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
            let (span, place) = owners(config, index, address).next()?;
            (span.clone(), format!("{place}: address"), message)
        }
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

/// Backends, then vms that have an address in a network: where each is, and its name.
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
