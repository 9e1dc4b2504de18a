//! Networks of vms, and the vms of networks that are no backends.

use std::net::IpAddr;

use slb_core::PortId;
use slb_core::spec::{self, Prefix};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;

use super::addresses::{self, Kind};
use super::{Config, Frontend, security};
use crate::document::{Section, Span};
use crate::validate::Names;

/// `[[network]]`: vms that host agents connect.
#[derive(Clone, Debug)]
pub struct Network {
    /// Name of the network.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// Address spaces of the network.
    pub address_spaces: Vec<Prefix>,
    /// Addresses of the network's routers, which host agents answer for.
    pub gateways: Vec<IpAddr>,
    /// Places of the access lists of all its vms.
    pub security_lists: Vec<usize>,
    pub(crate) span: Span,
}

/// `[[vm]]`: a vm of a network that is no backend, or further addresses of one that is.
#[derive(Clone, Debug)]
pub struct NetworkVm {
    /// Name of the vm.
    pub name: String,
    /// Index of the vm's network.
    pub network: usize,
    /// Addresses of the vm.
    pub addresses: Vec<IpAddr>,
    /// Address of the vm's host on the fabric.
    pub host: IpAddr,
    /// MAC address of the vm, unless it is derived.
    pub mac: Option<MacAddress>,
    /// MAC address of the next hop to the host, unless it follows from the route.
    pub next_hop: Option<MacAddress>,
    /// The host's port for the vm, unless it is counted.
    pub port: Option<u16>,
    /// Places of the access lists of the vm.
    pub security_lists: Vec<usize>,
    pub(crate) span: Span,
}

impl NetworkVm {
    /// MAC address of the vm, given or derived from its first address.
    pub fn mac(&self) -> MacAddress {
        let first = self.addresses.first().copied();
        let derived = || first.map_or(MacAddress([0; 6]), spec::derived_mac);
        self.mac.unwrap_or_else(derived)
    }

    /// Returns the vm as part of a `Spec`, at this port of the node.
    pub(super) fn spec(&self, port: Option<PortId>) -> spec::NetworkVm<'_> {
        spec::NetworkVm {
            name: &self.name,
            network: self.network,
            addresses: &self.addresses,
            host: self.host,
            mac: self.mac,
            next_hop: self.next_hop,
            port,
            security_lists: &self.security_lists,
        }
    }
}

impl Network {
    /// Returns the network as part of a `Spec`, with the indexes of its private frontends.
    pub(super) fn spec<'a>(&'a self, frontends: &'a [usize]) -> spec::Network<'a> {
        spec::Network {
            name: &self.name,
            vni: self.vni,
            prefixes: &self.address_spaces,
            gateways: &self.gateways,
            frontends,
            security_lists: &self.security_lists,
        }
    }
}

impl Config {
    /// Returns the network with a VNI; `None` if there is none.
    pub fn network_of(&self, vni: Vni) -> Option<&Network> {
        self.networks.iter().find(|network| network.vni == vni)
    }

    /// Returns the network that a frontend belongs to; `None` if it is public.
    pub fn network_of_frontend(&self, frontend: &Frontend) -> Option<&Network> {
        self.networks.get(frontend.network?)
    }

    /// The private frontends of a network.
    pub fn private_frontends(&self, network: &Network) -> impl Iterator<Item = &Frontend> {
        let vni = network.vni;
        let place = self.networks.iter().position(|of| of.vni == vni);
        let frontends = self.frontends.iter();
        frontends.filter(move |frontend| frontend.network.is_some() && frontend.network == place)
    }

    /// Yields the addresses that host agents answer for in a network: those of its vms, its private
    /// frontends and its gateways.
    pub fn addresses_of(&self, network: &Network) -> impl Iterator<Item = IpAddr> + '_ {
        let vni = network.vni;
        let place = self.networks.iter().position(|of| of.vni == vni);
        let pools = self.pools.iter().filter(move |pool| pool.vni == vni);
        let backends = pools.flat_map(|pool| &pool.backends);
        let backends = backends.map(|backend| backend.address);
        let vms = self.network_vms.iter();
        let vms = vms.filter(move |vm| Some(vm.network) == place);
        let vms = vms.flat_map(|vm| vm.addresses.iter().copied());
        let gateways = self.networks.get(place.unwrap_or(usize::MAX));
        let gateways = gateways.into_iter().flat_map(|of| &of.gateways).copied();
        let vips = self.frontends.iter();
        let vips = vips.filter(move |of| of.network.is_some() && of.network == place);
        let vips = vips.map(|frontend| frontend.address);
        backends.chain(vms).chain(vips).chain(gateways)
    }
}

pub(super) fn read_network(section: Section<'_>, lists: &Names) -> Option<Network> {
    let name = section.name("name");
    let vni = section.required_integer("vni", 0..=Vni::MAX.get().into());
    if !section.has("address_spaces") {
        section.fault(section.span(), "address_spaces", "is missing");
    }
    let spaces = addresses::prefixes(&section, "address_spaces", Kind::Host);
    let gateways = addresses::any(&section, "gateways", Kind::Host);
    let security_lists = security::read_lists(&section, lists);
    let span = section.span().clone();
    section.finish();
    let vni = vni.and_then(|(vni, _)| Vni::new(vni as u32));
    Some(Network {
        name: name?.0,
        vni: vni?,
        address_spaces: values(spaces),
        gateways: values(gateways),
        security_lists: security_lists?,
        span,
    })
}

pub(super) fn read_vm(section: Section<'_>, networks: &Names, lists: &Names) -> Option<NetworkVm> {
    let name = section.name("name");
    let network = super::read::refer(&section, "network", networks);
    let all = addresses::one_or_more(&section, "address", Kind::Host);
    let host = addresses::required(&section, "host", Kind::Host);
    let mac = addresses::mac(&section, "mac");
    let next_hop = addresses::mac(&section, "next_hop");
    let port = section
        .has("port")
        .then(|| section.number("port", 1..=65_534, 1));
    let security_lists = security::read_lists(&section, lists);
    let span = section.span().clone();
    section.finish();
    Some(NetworkVm {
        name: name?.0,
        network: network?,
        addresses: values(all),
        host: host?.0,
        mac,
        next_hop,
        port: port.map(|port| port as u16),
        security_lists: security_lists?,
        span,
    })
}

/// Returns the VNI of a pool: its own, or the VNI of the network that it names. `networks` has the
/// VNIs of all networks, in the order of `names`.
pub(super) fn vni_of_pool(
    section: &Section<'_>,
    names: &Names,
    networks: &[Option<u32>],
) -> Option<Vni> {
    if !section.has("network") {
        let (vni, _) = section.required_integer("vni", 0..=Vni::MAX.get().into())?;
        return Vni::new(vni as u32);
    }
    if section.has("vni") {
        let message = "expected either a vni or a network, whose vni it then has";
        section.fault(section.span(), "vni", message);
    }
    let network = super::read::refer(section, "network", names)?;
    networks.get(network).copied().flatten().and_then(Vni::new)
}

fn values<T>(all: Vec<(T, Span)>) -> Vec<T> {
    all.into_iter().map(|(value, _)| value).collect()
}

/// Reports `network` in a section of a proxy's configuration, which has no networks.
pub(super) fn refuse_in_proxy(section: &Section<'_>) {
    if !section.contains("network") {
        return;
    }
    if let Some((_, span)) = section.name("network") {
        let message = "networks are the hosts': expected no field \"network\" for role \"proxy\", which serves \
                       public addresses only";
        section.fault(&span, "network", message);
    }
}
