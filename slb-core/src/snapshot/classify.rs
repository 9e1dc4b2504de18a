//! Lookup of a packet's rule by its destination address, protocol and port.

use core::net::IpAddr;

use super::Snapshot;
use super::networks::{Neighbour, Reached};
use super::probe_map::NONE;
use crate::packet::{EchoMessage, Family, Packet};
use crate::spec::Echo;
use crate::tunnel::encapsulation::Template;
use crate::verdict::PortId;
use crate::wire::protocol;
use crate::wire::vxlan::Vni;

/// A VIP that has no HA-ports rule.
pub(super) const NO_RULE: u32 = NONE - 1;

/// Values for the protocol byte of a key: reserved (255) and experimental (254) protocol numbers,
/// which no rule can name.
pub(super) const HA_PORTS: u8 = 255;
pub(super) const VIP: u8 = 254;

/// The match of a packet's destination with the rules of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleMatch {
    /// The packet matches this rule: an index in [`Spec::rules`](crate::spec::Spec::rules).
    Rule(u32),
    /// The packet is for a VIP, but matches no rule.
    NoRule,
    /// The packet is not for a VIP.
    NotVip,
}

impl Snapshot<'_> {
    /// Returns the id of an address in rule keys; `None` unless it is an IPv6 VIP.
    pub(super) fn vip_of(&self, address: IpAddr) -> Option<u64> {
        match address {
            IpAddr::V4(address) => Some(ipv4_vip(u32::from_le_bytes(address.octets()))),
            IpAddr::V6(address) => self
                .ipv6_vips
                .get(ipv6_words(address.octets()))
                .map(ipv6_vip),
        }
    }

    #[inline]
    pub(super) fn vip(&self, packet: &Packet) -> Option<u64> {
        match packet.shape.family {
            Family::Ipv4 => Some(ipv4_vip((packet.addresses[0] >> 32) as u32)),
            Family::Ipv6 => {
                let [_, _, low, high] = packet.addresses;
                self.ipv6_vip([low, high])
            }
        }
    }

    /// Matches a packet's destination address, protocol and port with the rules of this node.
    pub(crate) fn classify(&self, packet: &Packet) -> RuleMatch {
        self.classify_for(packet, self.vip(packet))
    }

    /// Classifies a packet to or from the vm at a port of this node, in whose network the destination may be
    /// a private VIP.
    pub(crate) fn classify_at(&self, packet: &Packet, zone: PortId) -> RuleMatch {
        self.classify_for(packet, self.vip_at(packet, zone))
    }

    /// Classifies a packet like [`classify`](Self::classify), by the id of its destination.
    pub(crate) fn classify_for(&self, packet: &Packet, vip: Option<u64>) -> RuleMatch {
        let Some(vip) = vip else {
            return RuleMatch::NotVip;
        };
        if packet.has_ports() {
            return self.classify_ports(vip, packet.protocol, packet.raw_destination_port());
        }
        // An answer to a vm's request matches a SNAT port.
        if packet.is_icmp()
            && packet.shape.echo != EchoMessage::Reply
            && let Some(rule) = self.echo_rule_for(packet, vip)
        {
            return RuleMatch::Rule(rule);
        }
        self.classify_protocol(vip, packet.protocol)
    }

    /// Returns the id in rule keys of a packet's destination, as seen by the vm at a port of this
    /// node.
    #[inline]
    pub(crate) fn vip_at(&self, packet: &Packet, zone: PortId) -> Option<u64> {
        if !self.private.is_empty()
            && let Some(vip) = self.private_vip_at(packet.tuple().destination, zone)
        {
            return Some(vip);
        }
        self.vip(packet)
    }

    #[cold]
    pub(super) fn private_vip_at(&self, address: IpAddr, zone: PortId) -> Option<u64> {
        let vm = self.nat.vm_by_port(zone)?;
        self.private_vip(address, vm.vni)
    }

    /// Returns the id in rule keys of a private VIP of a network; `None` if the network has no such
    /// VIP.
    pub(crate) fn private_vip(&self, address: IpAddr, vni: Vni) -> Option<u64> {
        self.private.find(address, vni).map(private_vip)
    }

    /// Returns true if any frontend belongs to a network.
    #[inline]
    pub(crate) fn has_private_vips(&self) -> bool {
        !self.private.is_empty()
    }

    /// Returns true if an address is a private VIP of the network of the vm at a port of this node.
    pub(crate) fn is_private_at(&self, address: IpAddr, zone: PortId) -> bool {
        !self.private.is_empty() && self.private_vip_at(address, zone).is_some()
    }

    /// Returns true if a vm has the address in the network of the vm at a port of this node.
    pub(crate) fn is_in_network(&self, address: IpAddr, zone: PortId) -> bool {
        let vm = self.nat.vm_by_port(zone);
        vm.is_some_and(|vm| self.nat.networks.neighbour(address, vm.vni).is_some())
    }

    /// Returns the outer header for the vm of a neighbour, wherever it runs.
    pub(crate) fn way_to_neighbour(&self, neighbour: &Neighbour) -> Option<&Template> {
        Some(match self.nat.networks.way_to(neighbour)? {
            Reached::Backend(index) => &self.backend(index)?.template,
            Reached::Template(template) => template,
        })
    }

    /// Returns the outer header for another vm in the network of the vm at a port; `None` if no vm
    /// has the address, or if the vm is on this node.
    pub(crate) fn way_in_network(&self, zone: PortId, address: IpAddr) -> Option<&Template> {
        let vm = self.nat.vm_by_port(zone)?;
        let neighbour = self.nat.networks.neighbour(address, vm.vni)?;
        if neighbour.port.is_some() {
            return None;
        }
        match self.nat.networks.way_to(neighbour)? {
            Reached::Template(template) => Some(template),
            Reached::Backend(index) => Some(&self.backend(index)?.template),
        }
    }

    /// Matches a destination with the rules of this node: the id of its address, its protocol and
    /// port.
    #[inline]
    pub(crate) fn classify_ports(&self, vip: u64, protocol: u8, raw_port: u16) -> RuleMatch {
        match self.rule_keys.get(rule_key(vip, protocol, raw_port)) {
            Some(rule) => RuleMatch::Rule(rule),
            None => self.classify_protocol(vip, protocol),
        }
    }

    /// Classifies a packet to a VIP by its protocol alone, if no rule has the port.
    #[inline(never)]
    pub(super) fn classify_protocol(&self, vip: u64, protocol: u8) -> RuleMatch {
        match self.ha_ports(vip) {
            RuleMatch::NoRule => self.outbound(vip, protocol),
            found => found,
        }
    }

    /// Returns the id of an IPv4 address in rule keys.
    #[inline]
    pub(crate) fn ipv4_vip(&self, raw_address: u32) -> u64 {
        ipv4_vip(raw_address)
    }

    /// Returns the id of an IPv6 address in rule keys; `None` if it is no VIP.
    #[inline]
    pub(crate) fn ipv6_vip(&self, address: [u64; 2]) -> Option<u64> {
        self.ipv6_vips.get(address).map(ipv6_vip)
    }

    /// Yields each TCP frontend port: its rule, its address and its port in packets' byte order;
    /// `None` for all ports. The order is unspecified.
    ///
    /// # Cost
    /// Proportional to the frontends' ports.
    pub(crate) fn tcp_frontends(&self) -> impl Iterator<Item = (u32, IpAddr, Option<u16>)> + '_ {
        self.rule_keys.iter().filter_map(|(key, rule)| {
            let [a, b, c, d, port_low, port_high, protocol, family] = key.to_le_bytes();
            let port = u16::from_le_bytes([port_low, port_high]);
            let port = match (protocol, port) {
                (protocol::TCP, 1..) => Some(port),
                (HA_PORTS, _) if rule != NO_RULE => None,
                _ => return None,
            };
            let number = u32::from_le_bytes([a, b, c, d]);
            let vip = match family {
                0 => IpAddr::from([a, b, c, d]),
                PRIVATE => self.private.of(number as usize)?.0,
                _ => self.ipv6_vips.iter().find_map(|([low, high], vip)| {
                    let bits = u128::from(high) << 64 | u128::from(low);
                    (vip == number).then(|| IpAddr::from(bits.to_le_bytes()))
                })?,
            };
            Some((rule, vip, port))
        })
    }

    /// Returns the rule of a VIP's SNAT ports.
    pub(super) fn outbound(&self, vip: u64, protocol: u8) -> RuleMatch {
        let rule = self.rule_keys.get(rule_key(vip, protocol, 0));
        rule.map_or(RuleMatch::NoRule, RuleMatch::Rule)
    }

    /// Matches an ICMP echo reply, with an identifier that may be a SNAT port.
    pub(crate) fn classify_echo_reply(&self, packet: &Packet) -> RuleMatch {
        self.classify_echo_reply_for(packet, self.vip(packet))
    }

    /// Matches an ICMP echo reply by the id of its destination.
    pub(crate) fn classify_echo_reply_for(&self, packet: &Packet, vip: Option<u64>) -> RuleMatch {
        let Some(vip) = vip else {
            return RuleMatch::NotVip;
        };
        match self.ha_ports(vip) {
            RuleMatch::NoRule => self.outbound(vip, packet.protocol),
            found => found,
        }
    }

    /// Classifies a packet whose ports are unknown or irrelevant.
    pub(crate) fn classify_without_ports(&self, packet: &Packet) -> RuleMatch {
        self.vip(packet)
            .map_or(RuleMatch::NotVip, |vip| self.ha_ports(vip))
    }

    /// Returns the HA-ports rule of a VIP, by the VIP's id.
    pub(crate) fn ha_ports(&self, vip: u64) -> RuleMatch {
        match self.rule_keys.get(rule_key(vip, HA_PORTS, 0)) {
            None => RuleMatch::NotVip,
            Some(NO_RULE) => RuleMatch::NoRule,
            Some(rule) => RuleMatch::Rule(rule),
        }
    }

    /// Returns true if a rule of the VIP takes every protocol, as the vm at a port of this node sees the
    /// VIP.
    #[cold]
    pub(crate) fn takes_all_at(&self, vip: IpAddr, zone: PortId) -> bool {
        let private = match self.private.is_empty() {
            true => None,
            false => self.private_vip_at(vip, zone),
        };
        let vip = private.or_else(|| self.vip_of(vip));
        vip.is_some_and(|vip| matches!(self.ha_ports(vip), RuleMatch::Rule(_)))
    }

    /// Returns the rule for echo requests to the packet's VIP.
    pub(crate) fn echo_rule(&self, packet: &Packet) -> Option<u32> {
        self.echo_rule_for(packet, self.vip(packet)?)
    }

    /// Returns the rule for echo requests to a VIP, by the VIP's id.
    pub(crate) fn echo_rule_for(&self, packet: &Packet, vip: u64) -> Option<u32> {
        self.rule_keys.get(rule_key(vip, packet.protocol, ECHO))
    }

    /// Returns the treatment of echo requests for the VIP that the packet is for.
    pub(crate) fn echo(&self, packet: &Packet) -> Option<Echo> {
        self.echo_for(self.vip(packet)?)
    }

    /// Returns the treatment of echo requests for a VIP, by the VIP's id.
    pub(crate) fn echo_for(&self, vip: u64) -> Option<Echo> {
        let frontend = self.rule_keys.get(rule_key(vip, VIP, 0))?;
        self.echo.get(frontend as usize).copied()
    }

    /// Returns true if an address is a public VIP.
    pub(crate) fn is_vip(&self, address: IpAddr) -> bool {
        self.frontend_at(address).is_some()
    }

    /// Returns true if an address is a VIP for the vm at a port. A private VIP serves only its own
    /// network. A public VIP does not serve a network in which a vm or gateway has its address.
    pub(crate) fn is_vip_at(&self, zone: PortId, address: IpAddr) -> bool {
        self.is_vip(address) && !self.nat.is_taken_at(zone, address)
            || self.is_private_at(address, zone)
    }

    /// Returns the index of the public frontend with an address.
    #[inline]
    pub(super) fn frontend_at(&self, address: IpAddr) -> Option<usize> {
        let found = self
            .rule_keys
            .get(rule_key(self.vip_of(address)?, VIP, 0))?;
        Some(found as usize)
    }
}

/// The port in the key of an ICMP rule: a value that does not occur in SNAT's keys.
pub(super) const ECHO: u16 = 1;

/// Returns the protocol number of ICMP for an address's family.
pub(super) const fn icmp_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => protocol::ICMP,
        IpAddr::V6(_) => protocol::ICMPV6,
    }
}

#[inline]
pub(super) const fn rule_key(vip: u64, protocol: u8, raw_port: u16) -> u64 {
    vip | (raw_port as u64) << 32 | (protocol as u64) << 48
}

#[inline]
pub(super) const fn ipv4_vip(raw_address: u32) -> u64 {
    raw_address as u64
}

#[inline]
pub(super) const fn ipv6_vip(number: u32) -> u64 {
    number as u64 | 1 << 56
}

/// The value of the family byte in rule keys of private VIPs.
pub(super) const PRIVATE: u8 = 2;

/// Returns the id of a private frontend in rule keys.
pub(super) const fn private_vip(frontend: u32) -> u64 {
    frontend as u64 | (PRIVATE as u64) << 56
}

pub(super) fn ipv6_words(octets: [u8; 16]) -> [u64; 2] {
    let bits = u128::from_le_bytes(octets);
    [bits as u64, (bits >> 64) as u64]
}
