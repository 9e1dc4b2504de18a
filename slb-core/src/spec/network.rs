//! Networks of vms, and the vms of networks that are no backends.

use core::net::IpAddr;

#[cfg(feature = "alloc")]
use super::ranges;
use super::{Backend, Frontend, Pool, Prefix, Spec, SpecError, derived_mac};
use crate::snapshot::faults::finder;
use crate::verdict::PortId;
use crate::wire::ethernet::MacAddress;
use crate::wire::vxlan::Vni;

/// A network of vms. Host agents carry packets between vms in VXLAN, and answer ARP and neighbour
/// discovery.
///
/// Backends belong to the network with the [`vni`](Pool::vni) of their pool; other vms are in
/// [`Spec::vms`]. Networks are isolated from each other, and may use the same addresses. Packets
/// between vms of a pool without a network are left to the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network<'a> {
    /// Name of the network.
    pub name: &'a str,
    /// VXLAN network identifier, unique among networks.
    pub vni: Vni,
    /// Address spaces of the network. Packets for an address in one of them that no vm has are dropped.
    pub prefixes: &'a [Prefix],
    /// Addresses of the network's routers. Host agents answer ARP, neighbour discovery and echo
    /// requests for them.
    pub gateways: &'a [IpAddr],
    /// Private frontends, by their indexes in [`Spec::frontends`]: only vms of the network reach them, and
    /// the host agent of the calling vm chooses the backend. Their addresses lie in the network's address
    /// spaces, and their rules lead to pools of the network. All other frontends are public.
    pub frontends: &'a [usize],
    /// Access lists of all vms of the network, by their indexes in [`Spec::security_lists`], at most
    /// [`MOST_LISTS`](super::MOST_LISTS). They apply in addition to a vm's own lists and those of its pools.
    pub security_lists: &'a [usize],
}

/// A vm of a network that is no backend, or further addresses of one that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkVm<'a> {
    /// Name of the vm.
    pub name: &'a str,
    /// Index of the network in [`Spec::networks`].
    pub network: usize,
    /// Addresses of the vm, at least one.
    pub addresses: &'a [IpAddr],
    /// The underlay address of the host that the vm runs on.
    pub host: IpAddr,
    /// MAC address of the vm. If `None`, it is derived from the first address; see [`derived_mac`].
    pub mac: Option<MacAddress>,
    /// MAC address of the next hop to the host; `None` for the underlay's.
    pub next_hop: Option<MacAddress>,
    /// The port of this node for the vm; `None` if the vm runs on another host.
    pub port: Option<PortId>,
    /// Access lists of the vm, by their indexes in [`Spec::security_lists`], at most
    /// [`MOST_LISTS`](super::MOST_LISTS).
    pub security_lists: &'a [usize],
}

impl Default for NetworkVm<'_> {
    fn default() -> Self {
        const NONE: IpAddr = IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED);
        Self {
            name: "",
            network: 0,
            addresses: &[],
            host: NONE,
            mac: None,
            next_hop: None,
            port: None,
            security_lists: &[],
        }
    }
}

impl NetworkVm<'_> {
    /// MAC address of the vm, given or derived.
    pub(crate) fn mac(&self) -> MacAddress {
        let first = self.addresses.first().copied();
        self.mac
            .unwrap_or_else(|| derived_mac(first.unwrap_or(NetworkVm::default().host)))
    }
}

/// An address of a backend or vm of the spec, in its network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub(crate) address: IpAddr,
    pub(crate) vni: Vni,
    pub(crate) host: IpAddr,
    pub(crate) mac: MacAddress,
    pub(crate) port: Option<PortId>,
}

impl Seat {
    fn of_backend(pool: &Pool<'_>, backend: &Backend<'_>) -> Self {
        Self {
            address: backend.address,
            vni: pool.vni,
            host: backend.host,
            mac: backend.mac.unwrap_or(derived_mac(backend.address)),
            port: backend.port,
        }
    }
}

impl<'a> Spec<'a> {
    /// Yields the seats of the backends, pool by pool.
    pub(crate) fn backend_seats(&self) -> impl Iterator<Item = Seat> + Clone + use<'a> {
        let pools = self.pools.iter();
        pools.flat_map(|pool| {
            let backends = pool.backends.iter();
            backends.map(move |backend| Seat::of_backend(pool, backend))
        })
    }

    /// Yields the seats of the vms that are no backends, each with the index of its vm. Vms of a
    /// network that does not exist are left out.
    pub(crate) fn vm_seats(&self) -> impl Iterator<Item = (usize, Seat)> + Clone + use<'a> {
        let (networks, vms) = (self.networks, self.vms);
        let vms = vms.iter().enumerate();
        vms.flat_map(move |(index, vm)| {
            let network = networks.get(vm.network);
            let addresses = network.map_or(&[][..], |_| vm.addresses);
            addresses.iter().filter_map(move |&address| {
                let seat = Seat {
                    address,
                    vni: network?.vni,
                    host: vm.host,
                    mac: vm.mac(),
                    port: vm.port,
                };
                Some((index, seat))
            })
        })
    }

    /// Yields the private frontends, each with its index and the index of its network. Indexes
    /// without a frontend are left out. A proxy has none.
    pub(crate) fn private_frontends(
        &self,
    ) -> impl Iterator<Item = (usize, &'a Frontend<'a>, usize)> + Clone + use<'a> {
        let (frontends, is_proxy) = (self.frontends, self.proxy.is_some());
        let networks = self.networks.iter().enumerate();
        networks
            .filter(move |_| !is_proxy)
            .flat_map(move |(network, of)| {
                let own = of.frontends.iter();
                own.filter_map(move |&index| Some((index, frontends.get(index)?, network)))
            })
    }

    /// Yields the faults of networks and of their vms, item by item.
    pub(crate) fn network_faults(&self) -> impl Iterator<Item = SpecError> + use<'a> {
        let (networks, vms, underlay) = (self.networks, self.vms, self.underlay);
        let count = self.frontends.len();
        let missing = (0..).zip(networks).flat_map(move |(network, of)| {
            let missing = of.frontends.iter().filter(move |index| **index >= count);
            missing.map(move |&frontend| SpecError::DanglingFrontend {
                network,
                frontend,
                count,
            })
        });
        let private = self.private_frontends();
        let strange = private.filter(move |(_, frontend, network)| {
            let prefixes = networks.get(*network).map(|of| of.prefixes);
            let mut ranges = prefixes.into_iter().flatten().filter_map(Prefix::range);
            !ranges.any(|[first, last]| first <= frontend.address && frontend.address <= last)
        });
        let strange = strange.map(|(_, frontend, network)| SpecError::OutsideNetwork {
            network,
            address: frontend.address,
        });
        let prefixes = (0..).zip(networks).flat_map(|(network, of)| {
            let prefixes = (0..).zip(of.prefixes);
            let odd = prefixes.filter(|(_, prefix)| prefix.range().is_none());
            odd.map(move |(index, _)| SpecError::NetworkPrefix { network, index })
        });
        let dangling = (0..).zip(vms).filter_map(move |(vm, of)| {
            let count = networks.len();
            (of.network >= count).then_some(SpecError::DanglingNetwork { vm, count })
        });
        let bare = (0..).zip(vms).filter(|(_, of)| of.addresses.is_empty());
        let bare = bare.map(|(vm, _)| SpecError::VmWithoutAddress { vm });
        let far = (0..).zip(vms);
        let far = far.filter(move |(_, of)| !underlay.reaches(of.host));
        let far = far.map(|(vm, _)| SpecError::NoUnderlayAddressForVm { vm });
        prefixes
            .chain(missing)
            .chain(strange)
            .chain(dangling)
            .chain(bare)
            .chain(far)
    }

    /// Yields the faults of gateways' and vms' addresses that are in none of their network's
    /// address spaces.
    ///
    /// # Cost
    /// A search in the address spaces for each address. Without the feature `alloc`, a walk through all
    /// networks and their address spaces.
    pub(crate) fn seat_faults(&self) -> impl Iterator<Item = SpecError> + use<'a> {
        let vnis = (0..).zip(self.networks);
        let find = finder(vnis.map(|(index, network)| (network.vni.get(), index)));
        let has = spaces(self.networks);
        let gateways = (0..).zip(self.networks);
        let gateways = gateways.flat_map(|(index, network)| {
            let gateways = network.gateways.iter();
            gateways.map(move |&gateway| (index, gateway))
        });
        let seats = self.vm_seats().map(|(_, seat)| seat);
        let seats = self.backend_seats().chain(seats);
        let seats = seats.filter_map(move |seat| Some((find(seat.vni.get())?, seat.address)));
        let outside = gateways.chain(seats);
        let outside = outside.filter(move |&(network, address)| !has(network, address));
        outside.map(|(network, address)| SpecError::OutsideNetwork { network, address })
    }
}

/// Returns a function that is true for an address in an address space of the network with an index.
#[cfg(feature = "alloc")]
pub(super) fn spaces(networks: &[Network<'_>]) -> impl Fn(usize, IpAddr) -> bool + use<> {
    let all = networks.iter().map(|network| {
        let ranges = network.prefixes.iter().filter_map(Prefix::range);
        let mut ranges: alloc::vec::Vec<_> = ranges.collect();
        let count = ranges::join(&mut ranges);
        ranges.truncate(count);
        ranges
    });
    let all: alloc::vec::Vec<_> = all.collect();
    move |network, address| {
        let spaces = all.get(network);
        spaces.is_some_and(|spaces| ranges::have(spaces, &address))
    }
}

/// Returns a function that is true for an address in an address space of the network with an index.
#[cfg(not(feature = "alloc"))]
pub(super) fn spaces<'a>(networks: &'a [Network<'a>]) -> impl Fn(usize, IpAddr) -> bool + use<'a> {
    move |network, address| {
        let prefixes = networks.get(network).map_or(&[][..], |of| of.prefixes);
        let mut ranges = prefixes.iter().filter_map(Prefix::range);
        ranges.any(|[first, last]| first <= address && address <= last)
    }
}
