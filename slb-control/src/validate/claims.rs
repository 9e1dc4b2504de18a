//! Addresses that frontends, backends, vms and gateways claim, and that only others can have.

use std::collections::HashMap;
use std::net::IpAddr;

use slb_core::spec::Prefix;
use slb_core::wire::vxlan::Vni;

use crate::config::addresses::{is_for_no_vm, range};
use crate::config::{
    Backend, Config, Frontend, Network, NetworkVm, PROBE_SOURCE_IPV4, PROBE_SOURCE_IPV6, Pool,
    PublicAddress, Role,
};
use crate::document::{Faults, Span};

/// The item that claims an address.
#[derive(Clone, Copy)]
enum Owner<'c> {
    Frontend(&'c Frontend),
    Backend(&'c Pool, &'c Backend),
    Vm(&'c NetworkVm),
    Gateway(&'c Network),
    Public(&'c PublicAddress),
}

impl Owner<'_> {
    fn span(&self) -> &Span {
        match self {
            Self::Frontend(frontend) => &frontend.span,
            Self::Backend(_, backend) => &backend.span,
            Self::Vm(vm) => &vm.span,
            Self::Gateway(network) => &network.span,
            Self::Public(public) => &public.span,
        }
    }

    /// The item and the field, for messages.
    fn place(&self) -> String {
        match self {
            Self::Frontend(frontend) => format!("frontend {:?}: address", frontend.name),
            Self::Backend(pool, backend) => {
                format!("pool {:?}: backend {:?}: address", pool.name, backend.name)
            }
            Self::Vm(vm) => format!("vm {:?}: address", vm.name),
            Self::Gateway(network) => format!("network {:?}: gateways", network.name),
            Self::Public(public) => format!("{}: address", super::public::place(public)),
        }
    }

    /// The kind of machine, for messages.
    const fn machine(&self) -> &'static str {
        match self {
            Self::Gateway(_) => "router",
            Self::Frontend(_) | Self::Backend(..) | Self::Vm(_) | Self::Public(_) => "host",
        }
    }
}

/// Adds a fault for each address that is the prober's, or the first or the last one of its network's address space.
///
/// # Cost
/// In proportion to the number of addresses and address spaces.
pub(super) fn check(config: &Config, faults: &Faults<'_>) {
    let of_none = of_none(config);
    for (address, vni, owner) in claims(config) {
        let space = vni.and_then(|vni| of_none.get(&(vni, address)));
        // The first address of an IPv6 prefix is its routers'.
        let is_routers = matches!(owner, Owner::Gateway(_)) && address.is_ipv6();
        if let Some(space) = space.filter(|_| !is_routers) {
            let why = match address {
                IpAddr::V4(_) => "the first or the last of",
                IpAddr::V6(_) => "the first of",
            };
            let whose = match address {
                IpAddr::V4(_) => "the network's own, or for all in it",
                IpAddr::V6(_) => "all of its routers have it (RFC 4291 §2.6.1)",
            };
            let message = format!(
                "expected an address that a {} can have, but {address} is {why} {space}: {whose}",
                owner.machine()
            );
            faults.add(owner.span(), owner.place(), message);
        }
        if is_probes(config, address, owner) {
            let message = format!(
                "expected an address of its own, but {address} is where probes come from (probe_sources of [node])"
            );
            faults.add(owner.span(), owner.place(), message);
        }
    }
}

/// Returns true for an address that probes come from: packets for it are the prober's.
fn is_probes(config: &Config, address: IpAddr, owner: Owner<'_>) -> bool {
    let node = &config.node;
    // The host agents probe from it, unless their own [node] says otherwise.
    let is_hosts =
        [IpAddr::V4(PROBE_SOURCE_IPV4), IpAddr::V6(PROBE_SOURCE_IPV6)].contains(&address);
    let is_own = node.probe_source().is(address) || node.probe_sources.contains(&address);
    match node.role {
        Role::Mux => is_hosts || (node.probing && is_own),
        Role::Host => node.probing && is_own,
        // A proxy may be on the machine of its backends.
        Role::Proxy => node.probing && is_own && !matches!(owner, Owner::Backend(..)),
    }
}

/// The first and the last address of each address space.
fn of_none(config: &Config) -> HashMap<(Vni, IpAddr), Prefix> {
    let mut all = HashMap::new();
    for network in &config.networks {
        for &space in &network.address_spaces {
            let ends = range(space).into_iter();
            for address in ends.filter(|&address| is_for_no_vm(space, address)) {
                all.insert((network.vni, address), space);
            }
        }
    }
    all
}

/// All addresses that items of the configuration claim, each with the VNI of its network; `None` for those of the
/// fabric.
fn claims(config: &Config) -> impl Iterator<Item = (IpAddr, Option<Vni>, Owner<'_>)> {
    let frontends = config.frontends.iter().map(|frontend| {
        let network = config.network_of_frontend(frontend);
        let vni = network.map(|network| network.vni);
        (frontend.address, vni, Owner::Frontend(frontend))
    });
    let backends = config.pools.iter().flat_map(|pool| {
        let backends = pool.backends.iter();
        backends.map(move |one| (one.address, Some(pool.vni), Owner::Backend(pool, one)))
    });
    let vms = config.network_vms.iter().flat_map(|vm| {
        let vni = config.networks.get(vm.network).map(|network| network.vni);
        let addresses = vm.addresses.iter();
        addresses.map(move |&address| (address, vni, Owner::Vm(vm)))
    });
    let gateways = config.networks.iter().flat_map(|network| {
        let gateways = network.gateways.iter();
        gateways.map(move |&address| (address, Some(network.vni), Owner::Gateway(network)))
    });
    let publics = config.public_addresses.iter();
    let publics = publics.map(|public| (public.address, None, Owner::Public(public)));
    let own = frontends.chain(backends).chain(vms);
    own.chain(gateways).chain(publics)
}
