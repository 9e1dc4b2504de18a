//! Packet headers and five-tuples: the first stage of every role.
//!
//! The common shapes (Ethernet, IPv4 without options or IPv6 without extension headers, TCP or UDP)
//! are read in one straight run; everything else goes through the views of [`wire`](crate::wire). Both give the same answers
//! (test `the_short_way_and_the_long_way_agree`).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::flow::FlowKey;
use crate::hash::{Distribution, TupleHasher, ports_and_protocol};
use crate::verdict::DropReason;
use crate::wire::ethernet::{self, EtherType, Ethernet};
use crate::wire::icmp::{self, Icmp};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::{self, Flags};
use crate::wire::{WireError, icmpv6, protocol, udp};

/// IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Part of a datagram that a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// The whole datagram.
    Whole,
    /// The first fragment: it has the ports.
    First,
    /// A later fragment: it has none.
    Later,
}

/// An IP packet in an Ethernet frame, as far as a balancer reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source and destination as little-endian words of the header's bytes; IPv4 has both in the
    /// first.
    pub(crate) addresses: [u64; 4],
    /// The four bytes of ports, read little-endian; zero where there are none.
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
    /// A fault behind the IP header, if there is one.
    pub(crate) fault: Option<DropReason>,
    /// True if it is a whole TCP or UDP packet without faults.
    pub(crate) plain: bool,
    /// The kind of ICMP echo message, if the packet is one.
    pub(crate) echo: EchoMessage,
}

/// ICMP echo message that a packet is. Identifiers do not tell: zero is one.
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

/// A whole TCP or UDP packet in IPv4 without options or IPv6 without extension headers, with nothing
/// wrong: what is read of the common shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plain<A> {
    /// Source and destination, as [`Addresses`](crate::flow::Addresses) are.
    pub(crate) addresses: A,
    /// The four bytes of ports, read little-endian.
    pub(crate) ports: u32,
    /// Bytes of the IP packet, headers included; the frame has at least as many.
    pub(crate) ip_len: u32,
    /// [`TCP`](protocol::TCP) or [`UDP`](protocol::UDP).
    pub(crate) protocol: u8,
    /// TCP's control bits.
    pub(crate) flags: Flags,
    /// DSCP and ECN.
    pub(crate) traffic_class: u8,
    /// TTL or hop limit.
    pub(crate) hop_limit: u8,
}

/// Length of the EtherType field in front of the IP header, in bytes.
const ETHER_TYPE: usize = 2;

impl Plain<u64> {
    /// Reads a packet whose IPv4 header begins at `IP`. The tags before it are the caller's to check.
    #[inline(always)] // its result stays in registers
    pub(crate) fn read<const IP: usize>(frame: &[u8]) -> Option<Self> {
        const HEADER: usize = ETHER_TYPE;
        const TRANSPORT: usize = HEADER + ipv4::HEADER_LEN;
        const LEN: usize = TRANSPORT + PLAIN_TRANSPORT;
        /// EtherType IPv4, version 4, five words of header.
        const PLAIN: u64 = u64::from_le_bytes([0x08, 0x00, 0x45, 0, 0, 0, 0, 0]);
        const PLAIN_BITS: u64 = 0x00ff_ffff;
        /// More fragments, fragment offset.
        const FRAGMENT: u64 = u64::from_le_bytes([0x3f, 0xff, 0, 0, 0, 0, 0, 0]);
        let head = frame.get(IP - ETHER_TYPE..IP - ETHER_TYPE + LEN)?;
        // Words as they lie in the frame: EtherType to identification, fragment to source.
        let first = u64::from_le_bytes(*array(head, 0)?);
        let second = u64::from_le_bytes(*array(head, HEADER + 6)?);
        if first & PLAIN_BITS != PLAIN || second & FRAGMENT != 0 {
            return None;
        }
        let ip_len = u32::from(((first >> 32) as u16).swap_bytes());
        let protocol = (second >> 24) as u8;
        let transport = array(head, TRANSPORT)?;
        let flags = flags_if_whole(transport, protocol, (ipv4::HEADER_LEN, ip_len))?;
        let is_whole = ip_len as usize + IP <= frame.len();
        let addresses = u64::from_le_bytes(*array(head, HEADER + 12)?);
        let to_fragment = u64::from_le_bytes(*array(head, HEADER)?);
        if !is_whole
            || !ipv4::checksum_of_whole_is_right(to_fragment, (second >> 16) as u32, addresses)
        {
            return None;
        }
        Some(Self {
            addresses,
            ports: u32::from_le_bytes(*array(head, TRANSPORT)?),
            ip_len,
            protocol,
            flags: Flags(flags),
            traffic_class: (first >> 24) as u8,
            hop_limit: (second >> 16) as u8,
        })
    }
}

impl Plain<[u64; 4]> {
    /// Reads a packet whose IPv6 header begins at `IP`. The tags before it are the caller's to check.
    #[inline(always)] // its result stays in registers
    pub(crate) fn read<const IP: usize>(frame: &[u8]) -> Option<Self> {
        const HEADER: usize = ETHER_TYPE;
        const TRANSPORT: usize = HEADER + ipv6::HEADER_LEN;
        const LEN: usize = TRANSPORT + PLAIN_TRANSPORT;
        /// EtherType IPv6, version 6.
        const PLAIN: u64 = u64::from_le_bytes([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0]);
        const PLAIN_BITS: u64 = 0x00f0_ffff;
        let head = frame.get(IP - ETHER_TYPE..IP - ETHER_TYPE + LEN)?;
        // EtherType to payload length, as it lies in the frame.
        let first = u64::from_le_bytes(*array(head, 0)?);
        if first & PLAIN_BITS != PLAIN {
            return None;
        }
        let payload_len = u32::from(((first >> 48) as u16).swap_bytes());
        let [protocol, hop_limit] = *array(head, HEADER + 6)?;
        let flags = flags_if_whole(array(head, TRANSPORT)?, protocol, (0, payload_len))?;
        if payload_len as usize + IP + ipv6::HEADER_LEN > frame.len() {
            return None;
        }
        let word = |at| Some(u64::from_le_bytes(*array(head, HEADER + at)?));
        Some(Self {
            addresses: [word(8)?, word(16)?, word(24)?, word(32)?],
            ports: u32::from_le_bytes(*array(head, TRANSPORT)?),
            ip_len: payload_len + ipv6::HEADER_LEN as u32,
            protocol,
            flags: Flags(flags),
            // Eight bits behind the version's four.
            traffic_class: ((first >> 16) as u16).swap_bytes().wrapping_shr(4) as u8,
            hop_limit,
        })
    }
}

/// The fewest bytes of transport header and data of a plain packet. UDP with less data takes the slow path,
/// so that one comparison bounds all that is read.
const PLAIN_TRANSPORT: usize = 14;

/// Returns TCP's control bits, or zero for UDP, of a transport header whose own length is possible; `None`
/// for other headers. The packet has `len` bytes, of which `before` precede the header.
///
/// TCP's reserved bits may count as up to three bytes: such a packet takes the slow path if it has no data.
#[inline(always)] // as `Plain::read`
fn flags_if_whole(
    header: &[u8; PLAIN_TRANSPORT],
    protocol: u8,
    (before, len): (usize, u32),
) -> Option<u8> {
    const DATA_OFFSET: u32 = (tcp::HEADER_LEN as u32 / 4) << 4;
    // Not a `match`, which compares with the larger number first: two instructions more for TCP.
    if protocol == protocol::TCP {
        // Below five words it wraps, and is more than any packet has.
        let options = u32::from(header[12]).wrapping_sub(DATA_OFFSET) >> 2;
        let least = (before + tcp::HEADER_LEN) as u32 + options;
        (least <= len).then_some(header[13])
    } else if protocol == protocol::UDP {
        let of_datagram = u16::from_be_bytes([header[4], header[5]]);
        let is_whole = usize::from(of_datagram) >= udp::HEADER_LEN
            && before as u32 + u32::from(of_datagram) <= len;
        is_whole.then_some(0)
    } else {
        None
    }
}

/// The contents of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// An IP packet.
    Ip(Packet),
    /// Something else: ARP, LLDP, and whatever else Ethernet carries.
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

    /// Reads a frame into `self`, which holds nothing of use unless that gives [`Read::Ip`].
    // In place: built on the stack and moved, it would be stored by fields and loaded by vectors,
    // which stalls (benches `parse`: 9 ns against 3).
    // Always inline: a call in the innermost loop of a mux costs every packet registers.
    #[inline(always)]
    pub(crate) fn read(&mut self, frame: &[u8]) -> Read {
        if self.read_common(frame).is_some() || self.read_common_ipv6(frame).is_some() {
            Read::Ip
        } else {
            self.read_any(frame)
        }
    }

    /// Reads a whole TCP or UDP packet in IPv4 without options, not tagged.
    #[inline(always)] // as `read`
    pub(crate) fn read_common(&mut self, frame: &[u8]) -> Option<()> {
        let plain = Plain::<u64>::read::<{ ethernet::HEADER_LEN }>(frame)?;
        self.addresses[0] = plain.addresses;
        self.shape = Shape::PLAIN_IPV4;
        self.set_common(&plain);
        Some(())
    }

    /// Reads a whole TCP or UDP packet in IPv6 without extension headers, not tagged.
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
    fn read_any(&mut self, frame: &[u8]) -> Read {
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
        // RFC 1812 §5.2.2. Nothing else in a header can be trusted where it is wrong.
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

    /// Reads ports and flags, where there are any.
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
            // A first fragment has the whole header over IPv6 (RFC 7112 §5), and over IPv4 all of it
            // that no option is (RFC 1858 §3.1).
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

    /// The identifier of an ICMP echo message, in the place of the asking side's port; `None` where
    /// it is none.
    pub(crate) fn echo_ports(&self, frame: &[u8]) -> Option<u32> {
        let end = usize::from(self.shape.ip_offset) + self.ip_len as usize;
        let message = frame.get(usize::from(self.shape.transport_offset)..end)?;
        echo_ports(self.shape.family, self.protocol, message)
    }

    /// Returns the packet by which muxes choose a slot: without the identifier of an echo message, which
    /// is no port.
    pub(crate) fn as_balanced(&self) -> Self {
        Self {
            ports: if self.has_ports() { self.ports } else { 0 },
            ..*self
        }
    }

    /// The flow that an ICMP error for it is about, as its sender's packets name it: the error
    /// quotes what the VIP sent, so source and destination change places. `None` where it is no
    /// error, or does not quote a packet from this packet's destination.
    ///
    /// All but the tuple, and which echo message the flow's packets are, stays that of the error.
    pub(crate) fn quoted_flow(&self, frame: &[u8]) -> Option<Self> {
        let ip_end = usize::from(self.shape.ip_offset) + self.ip_len as usize;
        let transport = frame.get(usize::from(self.shape.transport_offset)..ip_end)?;
        let icmp = Icmp::parse(transport).ok()?;
        let is_error = match self.shape.family {
            Family::Ipv4 => icmp.is_error(),
            Family::Ipv6 => icmpv6::is_error(icmp.kind()),
        };
        let flow = self.flow_of(icmp.payload()).filter(|_| is_error)?;
        let same_vip = match self.shape.family {
            Family::Ipv4 => flow.addresses[0] >> 32 == self.addresses[0] >> 32,
            Family::Ipv6 => flow.addresses[2..] == self.addresses[2..],
        };
        same_vip.then_some(flow)
    }

    /// The flow of a packet that this one quotes, as [`quoted_flow`](Self::quoted_flow) names it, whoever
    /// sent it. `None` where the quote is of no first fragment, or shows too little.
    pub(crate) fn flow_of(&self, quote: &[u8]) -> Option<Self> {
        let (addresses, number, quoted) = match self.shape.family {
            Family::Ipv4 => {
                let ip = Ipv4::parse_quoted(quote)
                    .ok()
                    .filter(Ipv4::is_first_fragment)?;
                (ipv4_addresses(&ip), ip.protocol(), ip.payload())
            }
            Family::Ipv6 => {
                let ip = Ipv6::parse_quoted(quote).ok()?;
                if ip.fragment().is_some_and(|fragment| fragment.offset != 0) {
                    return None;
                }
                (ipv6_addresses(&ip), ip.protocol(), ip.payload())
            }
        };
        let addresses = self.swapped(addresses);
        let mut flow = Self {
            addresses,
            protocol: number,
            ports: 0,
            ..*self
        };
        if flow.has_ports() {
            // RFC 792 quotes 8 bytes at least: the ports are among them.
            flow.ports = u32::from_le_bytes(*quoted.first_chunk()?).rotate_left(16);
        } else if let Some(ports) = echo_ports(self.shape.family, number, quoted) {
            flow.ports = ports.rotate_left(16);
            let kind = quoted.first().copied().unwrap_or_default();
            flow.shape.echo = EchoMessage::of(self.shape.family, kind).other();
        }
        Some(flow)
    }

    /// The same flow as its other side's packets name it.
    pub(crate) fn reversed(&self) -> Self {
        Self {
            addresses: self.swapped(self.addresses),
            ports: self.ports.rotate_left(16),
            shape: Shape {
                echo: self.shape.echo.other(),
                ..self.shape
            },
            ..*self
        }
    }

    fn swapped(&self, [a, b, c, d]: [u64; 4]) -> [u64; 4] {
        match self.shape.family {
            Family::Ipv4 => [a.rotate_left(32), 0, 0, 0],
            Family::Ipv6 => [c, d, a, b],
        }
    }

    /// Returns true if the packet's protocol has ports (which a later fragment does not show).
    #[inline]
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP)
    }

    /// Returns true if the packet needs no second look.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.shape.plain
    }

    /// True if no host sends to a VIP from the packet's source: "this network", multicast, reserved
    /// (240.0.0.0/4) and broadcast addresses (RFC 6890 §2.2.2), IPv4-mapped ones (RFC 6890 §2.2.3),
    /// link-local ones (RFC 3927 §2.7, RFC 4291 §2.5.6), loopback unless the destination is loopback, too
    /// (RFC 1812 §5.3.7, RFC 4291 §2), or the destination's own address and port.
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

    /// Returns true if the packet asks for a new connection.
    #[inline]
    pub(crate) fn opens(&self) -> bool {
        self.flags.opens() // other protocols have none
    }

    /// The last word of its message, see [`hash`](crate::hash).
    #[inline]
    pub(crate) fn ports_and_protocol(&self) -> u64 {
        ports_and_protocol(self.ports, self.protocol)
    }

    /// The rule key of an IPv4 packet: destination address, protocol and port in one word. `None`
    /// for IPv6, which does not fit.
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

    /// Tuple of the packet.
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

    /// Part of a datagram that the packet is.
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

/// The packet in a line: `tcp 1.2.3.4:50000 > 20.20.20.100:80, SYN, 40 bytes of IP, TTL 64, DSCP 0, ECN 0`.
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

/// The five-tuple of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The sender's port; zero where the protocol has none.
    pub source_port: u16,
    /// The receiver's port; zero where the protocol has none.
    pub destination_port: u16,
    /// The IP protocol's number.
    pub protocol: u8,
}

impl Tuple {
    /// Hash of the tuple, of the parts that the distribution mode counts: the one by which muxes choose
    /// a slot. Ports of a protocol that has none are zero. `None` where the two addresses are of different
    /// families.
    ///
    /// [`maglev::Table`](crate::maglev::Table) has an example.
    pub fn hash(&self, hasher: &impl TupleHasher, distribution: Distribution) -> Option<u64> {
        let ports = u32::from(self.source_port.swap_bytes())
            | u32::from(self.destination_port.swap_bytes()) << 16;
        let last = ports_and_protocol(ports, self.protocol) & distribution.mask();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let word = |address: Ipv4Addr| u64::from(u32::from_le_bytes(address.octets()));
                Some(hasher.ipv4(&[word(source) | word(destination) << 32, last]))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let [a, b] = words(source);
                let [c, d] = words(destination);
                Some(hasher.ipv6(&[a, b, c, d, last]))
            }
            _ => None,
        }
    }
}

fn words(address: Ipv6Addr) -> [u64; 2] {
    let bits = u128::from_le_bytes(address.octets());
    [bits as u64, (bits >> 64) as u64]
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.protocol {
            protocol::TCP => "tcp",
            protocol::UDP => "udp",
            protocol::ICMP => "icmp",
            protocol::ICMPV6 => "icmpv6",
            other => {
                return write!(f, "protocol {other} {} > {}", self.source, self.destination);
            }
        };
        if matches!(self.protocol, protocol::TCP | protocol::UDP) {
            let source = SocketAddr::new(self.source, self.source_port);
            let destination = SocketAddr::new(self.destination, self.destination_port);
            write!(f, "{name} {source} > {destination}")
        } else {
            write!(f, "{name} {} > {}", self.source, self.destination)
        }
    }
}

fn reason(error: WireError) -> DropReason {
    match error {
        WireError::Truncated { .. } => DropReason::Truncated,
        WireError::Malformed { .. } => DropReason::Malformed,
    }
}

/// Source and destination of an IP packet whose headers cannot be read, as far as they are there.
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

/// Returns true if an IPv4 packet is a martian: see [`Packet::is_martian`].
#[inline]
pub(crate) fn is_martian_ipv4(addresses: u64, ports: u32) -> bool {
    let (source, destination) = (addresses as u32, (addresses >> 32) as u32);
    // One load in the place of six comparisons.
    let is_special = IS_SPECIAL_FIRST_BYTE[usize::from(source as u8)] || source == destination;
    is_special && is_nobody_ipv4(source, destination, ports)
}

/// Returns true if an IPv6 packet is a martian: see [`Packet::is_martian`].
#[inline]
pub(crate) fn is_martian_ipv6([a, b, c, d]: [u64; 4], ports: u32) -> bool {
    // Every address that no host sends from begins with 0xfe, 0xff or 0.
    let is_special = (a as u8).wrapping_add(2) <= 2;
    is_special && is_nobody_ipv6([a, b], [c, d]) || [a, b] == [c, d] && is_one_port(ports)
}

/// True for each first byte of an IPv4 address of which [`is_nobody_ipv4`] has to see more.
static IS_SPECIAL_FIRST_BYTE: [bool; 256] = {
    let mut is_special = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        is_special[byte] = matches!(byte, 0 | 127 | 169 | 224..);
        byte += 1;
    }
    is_special
};

#[cold]
fn is_nobody_ipv4(source: u32, destination: u32, ports: u32) -> bool {
    let is_nobody = match source as u8 {
        0 | 224.. => true,
        127 => destination as u8 != 127,
        169 => source as u16 == u16::from_le_bytes([169, 254]),
        _ => false,
    };
    is_nobody || source == destination && is_one_port(ports)
}

/// Returns true if source and destination port are the same.
fn is_one_port(ports: u32) -> bool {
    ports & 0xffff == ports >> 16
}

/// Returns true if no host uses this IPv6 source towards a VIP: see [`Packet::is_martian`].
#[cold]
fn is_nobody_ipv6(source: [u64; 2], destination: [u64; 2]) -> bool {
    const LOOPBACK: [u64; 2] = [0, 1 << 56];
    /// fe80::/10.
    const LINK_LOCAL: u16 = u16::from_le_bytes([0xfe, 0x80]);
    const LINK_LOCAL_BITS: u16 = u16::from_le_bytes([0xff, 0xc0]);
    /// The third word of ::ffff:0:0/96.
    const MAPPED: u32 = u32::from_le_bytes([0, 0, 0xff, 0xff]);
    let is_loopback = source == LOOPBACK && destination != LOOPBACK;
    let is_of_link = source[0] as u16 & LINK_LOCAL_BITS == LINK_LOCAL;
    let is_mapped = source[0] == 0 && source[1] as u32 == MAPPED;
    is_loopback || is_of_link || is_mapped || source == [0, 0] || source[0] as u8 == 0xff
}

/// `N` bytes of a header, from a constant offset on.
#[inline(always)] // one load; `array::from_fn` is not always inlined
fn array<const N: usize>(header: &[u8], at: usize) -> Option<&[u8; N]> {
    header.get(at..)?.first_chunk()
}

fn echo_ports(family: Family, number: u8, message: &[u8]) -> Option<u32> {
    let icmp = match family {
        Family::Ipv4 => protocol::ICMP,
        Family::Ipv6 => protocol::ICMPV6,
    };
    let [kind, _, _, _, a, b, ..] = *message else {
        return None;
    };
    let identifier = u32::from(u16::from_le_bytes([a, b]));
    match EchoMessage::of(family, kind) {
        _ if number != icmp => None,
        EchoMessage::Request => Some(identifier),
        EchoMessage::Reply => Some(identifier << 16),
        EchoMessage::None => None,
    }
}

fn ipv4_addresses(ip: &Ipv4<'_>) -> [u64; 4] {
    let word = |address: Ipv4Addr| u64::from(u32::from_le_bytes(address.octets()));
    [word(ip.source()) | word(ip.destination()) << 32, 0, 0, 0]
}

fn ipv6_addresses(ip: &Ipv6<'_>) -> [u64; 4] {
    let ([a, b], [c, d]) = (words(ip.source()), words(ip.destination()));
    [a, b, c, d]
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
