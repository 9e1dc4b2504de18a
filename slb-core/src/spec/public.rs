//! Public addresses of single vms: 1:1 NAT.

use core::net::IpAddr;

use super::network::spaces;
use super::{Spec, SpecError};
use crate::snapshot::faults::{duplicates, finder, private_networks};
use crate::wire::vxlan::Vni;

/// A public address of one vm.
///
/// All packets for the address go to the vm, under the vm's own address. Packets of the vm that
/// belong to no connection under a rule leave with the public address, unless their destination is
/// [inside](Spec::inside) or in the vm's network. The address takes precedence over outbound
/// rules. Translation needs no state, so it applies to all protocols, to fragments and to ICMP
/// errors.
///
/// The default has unspecified addresses, which a snapshot refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicAddress {
    /// The public address, unique, and no frontend's.
    pub address: IpAddr,
    /// VXLAN network identifier of the vm's network, or of its pool.
    pub vni: Vni,
    /// The vm's own address: that of a [backend](super::Backend::address) or of a
    /// [vm](super::NetworkVm::addresses) in that network. One own address has at most one public
    /// one.
    pub vm: IpAddr,
}

impl Default for PublicAddress {
    fn default() -> Self {
        const NONE: IpAddr = IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED);
        Self {
            address: NONE,
            vni: Vni::default(),
            vm: NONE,
        }
    }
}

/// The fault of a [`PublicAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublicAddressFault {
    /// A proxy has no public addresses: its backends are behind one port, without VXLAN.
    AtProxy,
    /// No host can have the address: an unspecified, loopback, link-local, multicast, reserved or
    /// IPv4-mapped one.
    Unusable,
    /// The public address and the vm's own one are of different families.
    Families,
    /// No backend and no vm has the own address in the network.
    NoVm,
    /// An earlier entry has the public address.
    Taken {
        /// The earlier entry, by its index in [`Spec::public_addresses`].
        first: usize,
    },
    /// An earlier entry gives the vm's own address another public one.
    VmTaken {
        /// The earlier entry, by its index in [`Spec::public_addresses`].
        first: usize,
    },
    /// A public frontend has the address.
    Frontend {
        /// The index in [`Spec::frontends`].
        frontend: usize,
    },
    /// The address lies in the vm's own network, where its vms would not find it outside.
    InNetwork,
}

impl PublicAddressFault {
    /// Returns the error of the entry with this index.
    pub(crate) const fn of(self, index: usize) -> SpecError {
        SpecError::PublicAddress { index, fault: self }
    }
}

impl<'a> Spec<'a> {
    /// Yields the faults of single public addresses.
    pub(crate) fn public_address_faults(&self) -> impl Iterator<Item = SpecError> + use<'a> {
        let is_proxy = self.proxy.is_some();
        let all = (0..).zip(self.public_addresses);
        all.filter_map(move |(index, public)| {
            let fault = if is_proxy {
                PublicAddressFault::AtProxy
            } else if !is_usable(public.address) {
                PublicAddressFault::Unusable
            } else if public.address.is_ipv4() != public.vm.is_ipv4() {
                PublicAddressFault::Families
            } else {
                return None;
            };
            Some(fault.of(index))
        })
    }

    /// Yields the faults of public addresses beside vms, frontends and each other.
    ///
    /// # Cost
    /// As of [`Spec::faults`].
    pub(crate) fn public_address_clashes<'s>(&'s self) -> impl Iterator<Item = SpecError> + 's {
        let all = match self.proxy {
            Some(_) => &[][..],
            None => self.public_addresses,
        };
        let seats = self
            .backend_seats()
            .chain(self.vm_seats().map(|(_, seat)| seat));
        let seated = finder(seats.map(|seat| ((seat.vni.get(), seat.address), ())));
        let network_of = private_networks(self);
        let frontends = (0..).zip(self.frontends);
        let public = frontends.filter(move |(index, _)| network_of(*index).is_none());
        let frontend_at = finder(public.map(|(index, frontend)| (frontend.address, index)));
        let vnis = (0..).zip(self.networks);
        let network_at = finder(vnis.map(|(index, network)| (network.vni.get(), index)));
        let has = spaces(self.networks);
        let single = (0..).zip(all).flat_map(move |(index, public)| {
            let vni = public.vni.get();
            let no_vm = seated((vni, public.vm)).is_none();
            let no_vm = no_vm.then_some(PublicAddressFault::NoVm);
            let frontend = frontend_at(public.address);
            let frontend = frontend.map(|frontend| PublicAddressFault::Frontend { frontend });
            let network = network_at(vni);
            let is_inside = network.is_some_and(|network| has(network, public.address))
                || seated((vni, public.address)).is_some();
            let is_inside = is_inside.then_some(PublicAddressFault::InNetwork);
            let faults = no_vm.into_iter().chain(frontend).chain(is_inside);
            faults.map(move |fault| fault.of(index))
        });
        let taken = duplicates(all.iter().map(|public| public.address));
        let taken = taken.map(|(first, index)| PublicAddressFault::Taken { first }.of(index));
        let vms = duplicates(all.iter().map(|public| (public.vni.get(), public.vm)));
        let vms = vms.map(|(first, index)| PublicAddressFault::VmTaken { first }.of(index));
        single.chain(taken).chain(vms)
    }
}

/// Returns true if a host can have an address that others reach.
fn is_usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(matches!(address.octets()[0], 0 | 127 | 224..) || address.is_link_local())
        }
        IpAddr::V6(address) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_unicast_link_local()
                || address.to_ipv4_mapped().is_some())
        }
    }
}
