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
    /// The link's state when the device was last looked at.
    link: Option<Link>,
    is_there: bool,
}

/// `afxdp:NAME[:QUEUES]`.
pub(super) struct Card {
    port: PortId,
    /// True if packets to backends leave by this interface: that of a mux or host to the fabric, or
    /// that of a proxy's backend port.
    leads_to_backends: bool,
    /// The interface's state when it was last present.
    pub(super) interface: Interface,
    queues: RangeInclusive<u32>,
    is_there: bool,
    /// True if the interface was gone or its queues changed: it may have fewer queues than before.
    may_lack_queues: bool,
    /// The chunk size in bytes that packets needed when the device was last opened.
    chunk: usize,
}

impl Plan {
    /// Returns the interface name of a device, by its index.
    pub(super) fn name(&self, place: usize) -> &str {
        match self {
            Self::Tun(names) => &names[place].name,
            Self::AfXdp(cards) => &cards[place].interface.name,
        }
    }

    /// Returns an interface by its index, if it is present.
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

    /// Returns the present TUN devices, to and from which the kernel routes.
    pub(super) fn routed_devices(&self) -> Vec<&str> {
        let Self::Tun(names) = self else {
            return Vec::new();
        };
        let routed = names
            .iter()
            .filter(|name| name.layer == Layer::Ip && name.is_there);
        routed.map(|name| name.name.as_str()).collect()
    }

    /// Returns the present TUN devices to the fabric, into which the kernel routes packets from
    /// hosts and muxes.
    pub(super) fn routed_fabric(&self) -> Vec<&str> {
        let Self::Tun(names) = self else {
            return Vec::new();
        };
        let fabric = names
            .iter()
            .filter(|name| name.port == PortId(0) && name.layer == Layer::Ip && name.is_there);
        fabric.map(|name| name.name.as_str()).collect()
    }

    /// Returns the source addresses for calls of VIPs, where the kernel should not choose them. The
    /// prober of a host agent has sources of its own, which the kernel does not have; the agent
    /// calls VIPs from its underlay address, if the kernel has it, since it takes vms' answers to
    /// that address.
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

    /// Completes a configuration with data of the interface to the fabric and of the kernel's
    /// tables.
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

    /// Returns the interface to the fabric, or to a proxy's backends; `None` if it is a TUN device.
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
