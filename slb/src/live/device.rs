//! Devices: which there are, which ports they are, and whose packets are taken from them.

mod given;
mod programs;
mod queues;
mod turns;
mod warnings;

use std::net::IpAddr;
use std::ops::RangeInclusive;

use slb_control::{Config, Role};
use slb_core::PortId;
use slb_io_afxdp::{Interface, Link};
use slb_io_tun::Layer;

use super::next_hops::{self, Found};

pub(super) use self::programs::own_addresses;
pub(super) use self::queues::{Queues, Slot, TunKey, TunQueue};
pub(super) use self::turns::Turn;

/// All devices: of one kind, since frames are in the memory of one.
pub(super) enum Plan {
    Tun(Vec<TunName>),
    AfXdp(Vec<Card>),
}

/// `tun:NAME[:QUEUES]` or `tap:NAME[:QUEUES]`.
pub(super) struct TunName {
    port: PortId,
    name: String,
    layer: Layer,
    queues: u32,
    /// As it was when it was last looked at.
    link: Option<Link>,
    is_there: bool,
}

/// `afxdp:NAME[:QUEUES]`.
pub(super) struct Card {
    port: PortId,
    /// True if packets to backends leave by it: a mux's or host's interface to the fabric, or that
    /// of a proxy's backend port.
    leads_to_backends: bool,
    /// As it was when it was last there.
    pub(super) interface: Interface,
    queues: RangeInclusive<u32>,
    is_there: bool,
    /// True if it was gone, or its queues changed: it may have fewer queues than before.
    may_lack_queues: bool,
    /// Bytes of a chunk, as its packets needed when the device was last opened.
    chunk: usize,
}

impl Plan {
    /// The interface's name of a device, by its place.
    pub(super) fn name(&self, place: usize) -> &str {
        match self {
            Self::Tun(names) => &names[place].name,
            Self::AfXdp(cards) => &cards[place].interface.name,
        }
    }

    /// An interface that is there, by its place.
    pub(super) fn card(&self, place: usize) -> Option<&Card> {
        match self {
            Self::Tun(_) => None,
            Self::AfXdp(cards) => cards.get(place).filter(|card| card.is_there),
        }
    }

    /// Returns true if all devices are TAP devices, whose frames the kernel bridges.
    pub(super) fn is_bridged(&self) -> bool {
        let Self::Tun(names) = self else {
            return false;
        };
        names.iter().all(|name| name.layer == Layer::Ethernet)
    }

    /// The TUN devices that are there: the kernel routes to and from them.
    pub(super) fn routed_devices(&self) -> Vec<&str> {
        let Self::Tun(names) = self else {
            return Vec::new();
        };
        let routed = names
            .iter()
            .filter(|name| name.layer == Layer::Ip && name.is_there);
        routed.map(|name| name.name.as_str()).collect()
    }

    /// The TUN devices to the fabric that are there: the kernel routes what comes from hosts and muxes into them.
    pub(super) fn routed_fabric(&self) -> Vec<&str> {
        let Self::Tun(names) = self else {
            return Vec::new();
        };
        let fabric = names
            .iter()
            .filter(|name| name.port == PortId(0) && name.layer == Layer::Ip && name.is_there);
        fabric.map(|name| name.name.as_str()).collect()
    }

    /// The addresses that VIPs are called from, where the kernel is not to choose them. The prober of a host agent has
    /// sources of its own, which the kernel does not have; the agent calls VIPs from its underlay address, if that is
    /// the kernel's, since it takes vms' answers for that.
    pub(super) fn callers(&self, config: &Config) -> Vec<IpAddr> {
        let node = &config.node;
        if node.role != Role::Host {
            return node.probe_sources.clone();
        }
        let own = [node.ipv4.map(IpAddr::from), node.ipv6.map(IpAddr::from)];
        let kernels = own_addresses().unwrap_or_default();
        let own = own.into_iter().flatten();
        own.filter(|address| kernels.contains(address)).collect()
    }

    /// A configuration with what it does not say and the interface to the fabric and the kernel's
    /// tables know.
    pub(super) fn complete(&self, given: &Config, found: Option<&Found>) -> Config {
        let mut config = given.clone();
        if let (Some(interface), Self::AfXdp(cards)) = (self.fabric(), self) {
            config.node.mac.get_or_insert(interface.mac);
            // What is longer than an interface carries would be lost in its driver.
            let is_proxy = config.node.role == Role::Proxy;
            let left_by = cards
                .iter()
                .filter(|card| is_proxy || card.leads_to_backends);
            let mtu = left_by.map(|card| card.interface.mtu).min();
            let most = mtu.unwrap_or(LONGEST_PACKET).min(LONGEST_PACKET) as u16;
            let mtu = config.node.mtu.get_or_insert(most);
            *mtu = most.min(*mtu);
        }
        if let Some(found) = found {
            next_hops::complete(&mut config, found);
        }
        config
    }

    /// The interface to the fabric, or to a proxy's backends, where packets leave by an interface.
    pub(super) fn fabric(&self) -> Option<&Interface> {
        match self {
            Self::Tun(_) => None,
            Self::AfXdp(cards) => {
                let fabric = cards.iter().find(|card| card.leads_to_backends);
                fabric.map(|card| &card.interface)
            }
        }
    }
}

/// The longest IP packet that has room in the largest chunk of AF_XDP's memory, in bytes.
pub(super) const LONGEST_PACKET: u32 = 3818;

#[cfg(test)]
mod tests {
    use slb_io_afxdp::{LARGE_CHUNK, Umem};

    use super::*;

    #[test]
    fn the_longest_packet_fits_the_largest_chunk() {
        let longest = LONGEST_PACKET as usize;
        assert_eq!(Umem::chunk_for(longest), Some(LARGE_CHUNK));
        assert_eq!(Umem::chunk_for(longest + 1), None);
    }
}
