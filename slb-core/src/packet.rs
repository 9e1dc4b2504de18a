//! Packet headers and five-tuples: the first stage of every role.
//!
//! Packets of the common shapes (Ethernet, IPv4 without options or IPv6 without extension headers,
//! TCP or UDP) are parsed by straight-line code; all others through the views of
//! [`wire`](crate::wire). Both give the same results (test `the_short_way_and_the_long_way_agree`).

mod martian;
mod plain;
mod quote;
mod read;
mod tuple;

use core::fmt;

pub(crate) use self::martian::{is_martian_ipv4, is_martian_ipv6};
pub(crate) use self::plain::Plain;
pub(crate) use self::read::ends_of_bad;
pub use self::tuple::Tuple;
use crate::flow::FlowKey;
use crate::hash::ports_and_protocol;
use crate::verdict::DropReason;
use crate::wire::ipv4;
use crate::wire::ipv6;
use crate::wire::tcp::Flags;
use crate::wire::{ethernet, icmp, icmpv6, protocol};

/// The IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// The part of a datagram in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// The whole datagram.
    Whole,
    /// The first fragment, which has the ports.
    First,
    /// A later fragment, which has no ports.
    Later,
}

/// An IP packet in an Ethernet frame, as far as a balancer parses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source and destination as little-endian words of the header's bytes; IPv4 has both in the
    /// first.
    pub(crate) addresses: [u64; 4],
    /// The four bytes of ports, read little-endian; zero without ports.
    pub(crate) ports: u32,
    /// Identification of the datagram that a fragment belongs to.
    pub(crate) identification: u32,
    /// Bytes of the IP packet, headers included; the frame has at least as many.
    pub(crate) ip_len: u32,
    /// Offsets of the headers, and unusual properties of the packet.
    pub(crate) shape: Shape,
    /// The transport protocol.
    pub(crate) protocol: u8,
    /// TCP's control bits.
    pub(crate) flags: Flags,
    /// DSCP and ECN.
    pub(crate) traffic_class: u8,
    /// TTL or hop limit.
    pub(crate) hop_limit: u8,
}

/// Offsets of the headers and unusual properties of a packet: one word, written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub(crate) struct Shape {
    /// Offset of the transport header in the frame.
    pub(crate) transport_offset: u16,
    /// Offset of the IP header in the frame.
    pub(crate) ip_offset: u8,
    pub(crate) family: Family,
    pub(crate) part: Part,
    /// A fault after the IP header, if there is one.
    pub(crate) fault: Option<DropReason>,
    /// True for an unfragmented TCP or UDP packet without faults.
    pub(crate) plain: bool,
    /// The kind of ICMP echo message, if the packet is one.
    pub(crate) echo: EchoMessage,
}

/// The kind of ICMP echo message in a packet. The identifier does not show it, since zero is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EchoMessage {
    None,
    Request,
    Reply,
}

impl EchoMessage {
    /// Returns the kind of echo message that an ICMP type stands for.
    fn of(family: Family, kind: u8) -> Self {
        let (request, reply) = match family {
            Family::Ipv4 => (icmp::ECHO_REQUEST, icmp::ECHO_REPLY),
            Family::Ipv6 => (icmpv6::ECHO_REQUEST, icmpv6::ECHO_REPLY),
        };
        match kind {
            _ if kind == request => Self::Request,
            _ if kind == reply => Self::Reply,
            _ => Self::None,
        }
    }

    /// Returns the kind of message that goes the other way.
    fn other(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Request => Self::Reply,
            Self::Reply => Self::Request,
        }
    }
}

impl Shape {
    const PLAIN_IPV4: Self = Self {
        transport_offset: (ethernet::HEADER_LEN + ipv4::HEADER_LEN) as u16,
        ip_offset: ethernet::HEADER_LEN as u8,
        family: Family::Ipv4,
        part: Part::Whole,
        fault: None,
        plain: true,
        echo: EchoMessage::None,
    };

    const PLAIN_IPV6: Self = Self {
        transport_offset: (ethernet::HEADER_LEN + ipv6::HEADER_LEN) as u16,
        family: Family::Ipv6,
        ..Self::PLAIN_IPV4
    };

    /// Returns the shape of a plain packet with its IPv4 header at `ip_offset`.
    pub(crate) fn plain_ipv4(ip_offset: u8) -> Self {
        Self {
            transport_offset: u16::from(ip_offset) + ipv4::HEADER_LEN as u16,
            ip_offset,
            ..Self::PLAIN_IPV4
        }
    }

    /// Returns the shape of a plain packet with its IPv6 header at `ip_offset`.
    pub(crate) fn plain_ipv6(ip_offset: u8) -> Self {
        Self {
            transport_offset: u16::from(ip_offset) + ipv6::HEADER_LEN as u16,
            ip_offset,
            ..Self::PLAIN_IPV6
        }
    }
}

/// The contents of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IP packet.
    Ip(Packet),
    /// Any other frame, such as ARP or LLDP.
    Other,
    /// An IP packet whose headers cannot be read.
    Bad(DropReason),
}

/// The result of parsing a frame in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Ip,
    Other,
    Bad(DropReason),
}

impl Packet {
    pub(crate) const EMPTY: Self = Self {
        addresses: [0; 4],
        ports: 0,
        identification: 0,
        ip_len: 0,
        shape: Shape::PLAIN_IPV4,
        protocol: 0,
        flags: Flags(0),
        traffic_class: 0,
        hop_limit: 0,
    };

    /// Returns the packet as muxes hash it: without the identifier of an echo message, which is no
    /// port.
    pub(crate) fn as_balanced(&self) -> Self {
        Self {
            ports: if self.has_ports() { self.ports } else { 0 },
            ..*self
        }
    }

    /// Returns true if the packet's protocol has ports, even if the packet is a later fragment.
    #[inline]
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP)
    }

    /// Returns true if the packet needs no special treatment.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.shape.plain
    }

    /// Returns true if no host sends to a VIP from the packet's source: "this network", multicast,
    /// reserved (240.0.0.0/4) and broadcast addresses (RFC 6890 §2.2.2), IPv4-mapped addresses (RFC
    /// 6890 §2.2.3), link-local addresses (RFC 3927 §2.7, RFC 4291 §2.5.6), loopback addresses
    /// unless the destination is also loopback (RFC 1812 §5.3.7, RFC 4291 §2), or the destination's
    /// own address and port.
    #[inline]
    pub(crate) fn is_martian(&self) -> bool {
        let [a, b, c, d] = self.addresses;
        match self.shape.family {
            Family::Ipv4 => is_martian_ipv4(a, self.ports),
            Family::Ipv6 => is_martian_ipv6([a, b, c, d], self.ports),
        }
    }

    /// Returns true if the packet is ICMP of its own family.
    pub(crate) fn is_icmp(&self) -> bool {
        match self.shape.family {
            Family::Ipv4 => self.protocol == protocol::ICMP,
            Family::Ipv6 => self.protocol == protocol::ICMPV6,
        }
    }

    /// Returns true if the packet requests a new connection.
    #[inline]
    pub(crate) fn opens(&self) -> bool {
        self.flags.opens() // other protocols have none
    }

    /// Returns the last word of the packet's message; see [`hash`](crate::hash).
    #[inline]
    pub(crate) fn ports_and_protocol(&self) -> u64 {
        ports_and_protocol(self.ports, self.protocol)
    }

    /// Returns the rule key of an IPv4 packet: destination address, protocol and port in one word.
    /// `None` for IPv6, whose addresses do not fit.
    #[inline]
    pub(crate) fn service(&self) -> Option<u64> {
        let port = u64::from(self.raw_destination_port()) << 32;
        let service = self.addresses[0] >> 32 | port | u64::from(self.protocol) << 48;
        (self.shape.family == Family::Ipv4).then_some(service)
    }

    #[inline]
    pub(crate) fn raw_destination_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }

    #[inline]
    pub(crate) fn ipv4_key(&self) -> FlowKey<u64> {
        FlowKey::new(self.addresses[0], self.ports, self.protocol)
    }

    #[inline]
    pub(crate) fn ipv6_key(&self) -> FlowKey<[u64; 4]> {
        FlowKey::new(self.addresses, self.ports, self.protocol)
    }

    /// Returns the tuple of the packet.
    pub fn tuple(&self) -> Tuple {
        use crate::flow::Addresses;
        let (source, destination) = match self.shape.family {
            Family::Ipv4 => self.addresses[0].unpack(),
            Family::Ipv6 => self.addresses.unpack(),
        };
        let [a, b, c, d] = self.ports.to_le_bytes();
        Tuple {
            source,
            destination,
            source_port: u16::from_be_bytes([a, b]),
            destination_port: u16::from_be_bytes([c, d]),
            protocol: self.protocol,
        }
    }

    /// Bytes of the IP packet.
    pub fn ip_len(&self) -> usize {
        self.ip_len as usize
    }

    /// Returns the part of a datagram in the packet.
    pub fn part(&self) -> Part {
        self.shape.part
    }

    /// TCP's control bits; none for other protocols.
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// DSCP and ECN.
    pub fn traffic_class(&self) -> u8 {
        self.traffic_class
    }

    /// TTL or hop limit.
    pub fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    /// VLAN tags before the IP header.
    pub fn vlan_tags(&self) -> usize {
        (usize::from(self.shape.ip_offset) - ethernet::HEADER_LEN) / ethernet::TAG_LEN
    }
}

/// The packet in one line: `tcp 1.2.3.4:50000 > 20.20.20.100:80, SYN, 40 bytes of IP, TTL 64, DSCP
/// 0, ECN 0`.
impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tuple().fmt(f)?;
        if self.flags != Flags(0) {
            write!(f, ", {}", self.flags)?;
        }
        f.write_str(match self.part() {
            Part::Whole => "",
            Part::First => ", first fragment",
            Part::Later => ", later fragment",
        })?;
        match self.vlan_tags() {
            0 => {}
            1 => f.write_str(", 1 VLAN tag")?,
            tags => write!(f, ", {tags} VLAN tags")?,
        }
        let (dscp, ecn) = (self.traffic_class >> 2, self.traffic_class & 3);
        let (len, hops) = (self.ip_len, self.hop_limit);
        write!(f, ", {len} bytes of IP, TTL {hops}, DSCP {dscp}, ECN {ecn}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum::checksum;
    use alloc::vec::Vec;

    /// One answer from two readers, whatever the bytes behind the header that both begin with.
    #[test]
    fn the_short_way_and_the_long_way_agree() {
        let plain = [
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, // Ethernet
            0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, // IPv4
            0, 9, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0, // TCP
        ];
        let mut plain_ipv6 = Vec::from(&plain[..12]);
        plain_ipv6.extend([0x86, 0xdd, 0x61, 0x23, 0, 0, 0, 40, 6, 64]);
        plain_ipv6.extend(1..=32);
        plain_ipv6.extend(&plain[34..]);
        bolero::check!()
            .with_type::<(bool, Vec<(u8, u8)>, u8, bool)>()
            .for_each(|(is_ipv6, changes, len, is_right)| {
                let plain = if *is_ipv6 {
                    &plain_ipv6[..]
                } else {
                    &plain[..]
                };
                let mut frame = Vec::from(plain);
                frame.resize(usize::from(*len), 7);
                for &(at, value) in changes {
                    if let Some(byte) = frame.get_mut(usize::from(at)) {
                        *byte = value;
                    }
                }
                if *is_right && !is_ipv6 && frame.len() >= 34 {
                    frame[24..26].fill(0);
                    let sum = checksum(&frame[14..34]).to_be_bytes();
                    frame[24..26].copy_from_slice(&sum);
                }
                let (mut short, mut long) = (Packet::EMPTY, Packet::EMPTY);
                if short.read_common(&frame).is_some() || short.read_common_ipv6(&frame).is_some() {
                    assert_eq!(long.read_any(&frame), Read::Ip);
                    long.identification = short.identification; // of no meaning where it is whole
                    assert_eq!(short, long);
                }
            });
    }
}
