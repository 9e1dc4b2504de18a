//! Parsing of any IP packet through the views of [`wire`](crate::wire).

use core::net::{IpAddr, Ipv4Addr};

use super::tuple::words;
use super::{EchoMessage, Family, Packet, Parsed, Part, Plain, Read, Shape};
use crate::verdict::DropReason;
use crate::wire::ethernet::{self, EtherType, Ethernet};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::{self, Flags};
use crate::wire::{WireError, icmp, protocol, udp};

impl Packet {
    /// Reads a frame.
    #[inline]
    pub fn parse(frame: &[u8]) -> Parsed {
        let mut packet = Self::EMPTY;
        match packet.read(frame) {
            Read::Ip => Parsed::Ip(packet),
            Read::Other => Parsed::Other,
            Read::Bad(reason) => Parsed::Bad(reason),
        }
    }

    /// Reads a frame into `self`, which is valid only if the result is [`Read::Ip`].
    // In place: a packet built on the stack and moved would be stored by fields and loaded by
    // vectors, which stalls (benches `parse`: 9 ns instead of 3). Always inline: a call in the
    // innermost loop of a mux costs every packet registers.
    #[inline(always)]
    pub(crate) fn read(&mut self, frame: &[u8]) -> Read {
        if self.read_common(frame).is_some() || self.read_common_ipv6(frame).is_some() {
            Read::Ip
        } else {
            self.read_any(frame)
        }
    }

    /// Reads an untagged, unfragmented TCP or UDP packet in IPv4 without options.
    #[inline(always)] // as `read`
    pub(crate) fn read_common(&mut self, frame: &[u8]) -> Option<()> {
        let plain = Plain::<u64>::read::<{ ethernet::HEADER_LEN }>(frame)?;
        self.addresses[0] = plain.addresses;
        self.shape = Shape::PLAIN_IPV4;
        self.set_common(&plain);
        Some(())
    }

    /// Reads an untagged, unfragmented TCP or UDP packet in IPv6 without extension headers.
    #[inline(always)] // as `read`
    pub(crate) fn read_common_ipv6(&mut self, frame: &[u8]) -> Option<()> {
        let plain = Plain::<[u64; 4]>::read::<{ ethernet::HEADER_LEN }>(frame)?;
        self.addresses = plain.addresses;
        self.shape = Shape::PLAIN_IPV6;
        self.set_common(&plain);
        Some(())
    }

    #[inline(always)] // as `read`
    fn set_common<A>(&mut self, plain: &Plain<A>) {
        self.ports = plain.ports;
        self.ip_len = plain.ip_len;
        self.protocol = plain.protocol;
        self.flags = plain.flags;
        self.traffic_class = plain.traffic_class;
        self.hop_limit = plain.hop_limit;
    }

    /// Reads any frame.
    #[inline(never)]
    pub(super) fn read_any(&mut self, frame: &[u8]) -> Read {
        let ethernet = match Ethernet::parse(frame) {
            Ok(ethernet) => ethernet,
            Err(error) => return Read::Bad(reason(error)),
        };
        let read = match ethernet.ether_type() {
            EtherType::IPV4 => self.read_ipv4(&ethernet),
            EtherType::IPV6 => self.read_ipv6(&ethernet),
            _ => return Read::Other,
        };
        match read {
            Ok(()) => Read::Ip,
            Err(error) => Read::Bad(reason(error)),
        }
    }

    fn read_ipv4(&mut self, ethernet: &Ethernet<'_>) -> Result<(), WireError> {
        let ip = Ipv4::parse(ethernet.payload())?;
        self.addresses = ipv4_addresses(&ip);
        self.identification = ip.identification().into();
        self.ip_len = ip.total_len() as u32;
        self.shape.transport_offset = (ethernet.header_len() + ip.header_len()) as u16;
        self.shape.ip_offset = ethernet.header_len() as u8;
        self.protocol = ip.protocol();
        self.traffic_class = ip.traffic_class();
        self.hop_limit = ip.ttl();
        self.shape.family = Family::Ipv4;
        self.shape.part = match (ip.is_fragment(), ip.is_first_fragment()) {
            (false, _) => Part::Whole,
            (true, true) => Part::First,
            (true, false) => Part::Later,
        };
        self.read_transport(ip.payload());
        if self.overlaps_tcp(ip.fragment_offset()) {
            self.refuse(DropReason::TinyFragment);
        }
        if ip.is_on_source_route() {
            self.refuse(DropReason::SourceRoute);
        }
        // RFC 1812 §5.2.2. If the checksum is wrong, no other field of the header can be trusted.
        if !ip.checksum_is_right() {
            self.refuse(DropReason::BadChecksum);
        }
        Ok(())
    }

    fn read_ipv6(&mut self, ethernet: &Ethernet<'_>) -> Result<(), WireError> {
        let ip = Ipv6::parse(ethernet.payload())?;
        let fragment = ip.fragment().filter(ipv6::Fragment::is_part);
        self.addresses = ipv6_addresses(&ip);
        self.identification = fragment.map_or(0, |fragment| fragment.identification);
        self.ip_len = ip.total_len() as u32;
        self.shape.transport_offset = (ethernet.header_len() + ip.transport_offset()) as u16;
        self.shape.ip_offset = ethernet.header_len() as u8;
        self.protocol = ip.protocol();
        self.traffic_class = ip.traffic_class();
        self.hop_limit = ip.hop_limit();
        self.shape.family = Family::Ipv6;
        self.shape.part = match fragment {
            None => Part::Whole,
            Some(fragment) if fragment.offset == 0 => Part::First,
            Some(_) => Part::Later,
        };
        self.read_transport(ip.payload());
        let offset = fragment.map_or(0, |fragment| fragment.offset);
        if ip.chain_is_cut() || self.overlaps_tcp(offset.into()) {
            self.refuse(DropReason::TinyFragment);
        }
        if ip.is_on_source_route() {
            self.refuse(DropReason::SourceRoute);
        }
        Ok(())
    }

    /// Returns true if the packet is a later fragment, at this offset in bytes, that would
    /// overwrite a TCP header (RFC 1858 §3, RFC 3128 §3): the first fragment has all of it.
    fn overlaps_tcp(&self, offset: usize) -> bool {
        let is_later = self.shape.part == Part::Later;
        is_later && self.protocol == protocol::TCP && offset < tcp::HEADER_LEN
    }

    /// Marks the packet to be dropped if it is for a VIP or a vm.
    fn refuse(&mut self, reason: DropReason) {
        self.shape.fault = Some(reason);
        self.shape.plain = false;
    }

    /// Reads ports and flags, if the protocol has any.
    fn read_transport(&mut self, transport: &[u8]) {
        self.ports = 0;
        self.flags = Flags(0);
        self.shape.fault = None;
        self.shape.plain = false;
        self.shape.echo = EchoMessage::None;
        let needed = match self.protocol {
            _ if self.shape.part == Part::Later => 0,
            protocol::TCP => tcp::HEADER_LEN,
            protocol::UDP => udp::HEADER_LEN,
            protocol::ICMP | protocol::ICMPV6 => icmp::HEADER_LEN,
            _ => 0,
        };
        let is_first = self.shape.part == Part::First;
        // In words of four bytes, in the upper half of a byte.
        let is_chain = is_first && self.shape.family == Family::Ipv6;
        let tcp_len = match (self.protocol, transport.get(12)) {
            (protocol::TCP, Some(byte)) if is_chain => usize::from(byte >> 4) * 4,
            _ => 0,
        };
        if transport.len() < needed.max(tcp_len) {
            // A first fragment has the whole header over IPv6 (RFC 7112 §5), and over IPv4 all of
            // it except options (RFC 1858 §3.1).
            self.shape.fault = Some(if is_first {
                DropReason::TinyFragment
            } else {
                DropReason::Truncated
            });
        } else if self.shape.part != Part::Later && self.has_ports() {
            if !self.has_right_len(transport) {
                self.shape.fault = Some(DropReason::Malformed);
                return;
            }
            if let Some(ports) = transport.first_chunk() {
                self.ports = u32::from_le_bytes(*ports);
            }
            if self.protocol == protocol::TCP {
                self.flags = Flags(transport.get(13).copied().unwrap_or(0));
            }
            self.shape.plain = self.shape.part == Part::Whole;
        } else if self.shape.part != Part::Later && self.is_icmp() {
            let kind = transport.first().copied();
            self.shape.echo = kind.map_or(EchoMessage::None, |kind| {
                EchoMessage::of(self.shape.family, kind)
            });
        }
    }

    /// Returns true if the length in a TCP or UDP header is possible. The rest of a first fragment's may be
    /// in the next fragment.
    fn has_right_len(&self, transport: &[u8]) -> bool {
        let (least, len) = match (self.protocol, transport) {
            (protocol::TCP, [_, _, _, _, _, _, _, _, _, _, _, _, offset, ..]) => {
                (tcp::HEADER_LEN, usize::from(offset >> 4) * 4)
            }
            (_, [_, _, _, _, high, low, ..]) => {
                (udp::HEADER_LEN, u16::from_be_bytes([*high, *low]).into())
            }
            _ => return false,
        };
        len >= least && (len <= transport.len() || self.shape.part == Part::First)
    }
}

fn reason(error: WireError) -> DropReason {
    match error {
        WireError::Truncated { .. } => DropReason::Truncated,
        WireError::Malformed { .. } => DropReason::Malformed,
    }
}

/// Returns source and destination of an IP packet with unreadable headers, if they are present.
#[cold]
pub(crate) fn ends_of_bad(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let link = Ethernet::parse(frame).ok()?;
    match link.ether_type() {
        EtherType::IPV4 => {
            let header: &[u8; ipv4::HEADER_LEN] = link.payload().first_chunk()?;
            let (_, addresses) = header.split_last_chunk::<8>()?;
            let (source, destination): (&[u8; 4], _) = addresses.split_first_chunk()?;
            let destination: [u8; 4] = *destination.first_chunk()?;
            Some((IpAddr::from(*source), IpAddr::from(destination)))
        }
        EtherType::IPV6 => {
            let header: &[u8; ipv6::HEADER_LEN] = link.payload().first_chunk()?;
            let (_, addresses) = header.split_last_chunk::<32>()?;
            let (source, destination): (&[u8; 16], _) = addresses.split_first_chunk()?;
            let destination: [u8; 16] = *destination.first_chunk()?;
            Some((IpAddr::from(*source), IpAddr::from(destination)))
        }
        _ => None,
    }
}

pub(super) fn ipv4_addresses(ip: &Ipv4<'_>) -> [u64; 4] {
    let word = |address: Ipv4Addr| u64::from(u32::from_le_bytes(address.octets()));
    [word(ip.source()) | word(ip.destination()) << 32, 0, 0, 0]
}

pub(super) fn ipv6_addresses(ip: &Ipv6<'_>) -> [u64; 4] {
    let ([a, b], [c, d]) = (words(ip.source()), words(ip.destination()));
    [a, b, c, d]
}
