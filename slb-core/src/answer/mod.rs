//! Answers that replace the frame that caused them: echo replies and ICMP errors.

pub(crate) mod reset;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::Frame;
use crate::limit::{Limits, Own};
use crate::packet::{Family, Packet, Part};
use crate::verdict::{DropReason, Verdict};
use crate::wire::checksum::{self, Sum};
use crate::wire::icmp::{self, Icmp};
use crate::wire::{ethernet, icmpv6, ipv4, ipv6, protocol};

/// TTL and hop limit of generated packets.
const HOP_LIMIT: u8 = 64;
/// An ICMP error for IPv4 has at most this many bytes (RFC 1812 §4.3.2.3).
const MAX_ERROR_IPV4: usize = 576;

/// An error to report to the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IcmpError {
    /// The packet has more bytes than this.
    TooBig(u32),
    /// The hop limit of the packet ran out.
    HopLimit,
    /// All SNAT ports of its sender are in use towards its destination, or all ports of a rule's
    /// `source_nat` address.
    NoPort,
    /// Another connection has the tuple that the packet's connection would get.
    TupleTaken,
}

impl IcmpError {
    /// The limit that the error counts against.
    pub(crate) fn kind(self) -> Own {
        match self {
            Self::TooBig(_) => Own::TooBig,
            Self::HopLimit | Self::NoPort | Self::TupleTaken => Own::Error,
        }
    }

    /// Returns the reason for dropping the frame if it cannot be answered.
    pub(crate) fn reason(self) -> DropReason {
        match self {
            Self::TooBig(_) => DropReason::PacketTooBig,
            Self::HopLimit => DropReason::HopLimit,
            Self::NoPort => DropReason::SnatExhausted,
            Self::TupleTaken => DropReason::TupleTaken,
        }
    }
}

/// Answers an echo request, if its sender may be answered.
pub(crate) fn answer_echo(frame: &mut Frame<'_>, packet: &Packet, limits: &mut Limits) -> Verdict {
    if packet.is_martian() {
        return Verdict::Drop(DropReason::Martian);
    }
    let may_be_told = packet.shape.part == Part::Whole && may_be_told(frame.bytes(), packet);
    if may_be_told && limits.allow(Own::Echo) && echo_reply(frame, packet).is_some() {
        Verdict::Reply
    } else {
        Verdict::Drop(DropReason::EchoIgnored)
    }
}

/// Turns the echo request in `frame` into its reply.
fn echo_reply(frame: &mut Frame<'_>, packet: &Packet) -> Option<()> {
    let (reply, request) = match packet.shape.family {
        Family::Ipv4 => (icmp::ECHO_REPLY, icmp::ECHO_REQUEST),
        Family::Ipv6 => (icmpv6::ECHO_REPLY, icmpv6::ECHO_REQUEST),
    };
    let icmp = usize::from(packet.shape.transport_offset);
    let bytes = frame.bytes_mut();
    swap_macs(bytes)?;
    let ip = bytes.get_mut(usize::from(packet.shape.ip_offset)..)?;
    match packet.shape.family {
        Family::Ipv4 => {
            let header: &mut [u8; ipv4::HEADER_LEN] = ip.first_chunk_mut()?;
            let (source, destination) = header[12..].split_at_mut(4);
            source.swap_with_slice(destination);
            let old = u16::from_be_bytes([header[8], header[9]]);
            header[8] = HOP_LIMIT;
            let new = u16::from_be_bytes([header[8], header[9]]);
            update(&mut header[10..12], old, new);
        }
        Family::Ipv6 => {
            let header: &mut [u8; ipv6::HEADER_LEN] = ip.first_chunk_mut()?;
            let (source, destination) = header[8..].split_at_mut(16);
            source.swap_with_slice(destination);
            header[7] = HOP_LIMIT;
        }
    }
    let end = usize::from(packet.shape.ip_offset) + packet.ip_len();
    let message = bytes.get_mut(icmp..end)?;
    let header: &mut [u8; icmp::HEADER_LEN] = message.first_chunk_mut()?;
    let code = header[1];
    header[0] = reply;
    let (old, new) = (
        u16::from_be_bytes([request, code]),
        u16::from_be_bytes([reply, code]),
    );
    update(&mut header[2..4], old, new);
    if header[2..4] == [0, 0] {
        let checksum = checksum::never_zero_of_zeros(message);
        message
            .get_mut(2..4)?
            .copy_from_slice(&checksum.to_be_bytes());
    }
    Some(())
}

fn update(field: &mut [u8], old: u16, new: u16) {
    if let [high, low] = field {
        [*high, *low] = checksum::update(u16::from_be_bytes([*high, *low]), old, new).to_be_bytes();
    }
}

/// Returns true if the sender of a packet may be told of an error (RFC 1122 §3.2.2, RFC 4443 §2.4
/// e): not if the packet is an error or a later fragment, has a group as its destination, or has no
/// single sender.
pub(crate) fn may_be_told(frame: &[u8], packet: &Packet) -> bool {
    // By the MAC addresses.
    let has_group = [0, 6].map(|at| frame.get(at).is_none_or(|first| first & 1 != 0)) != [false; 2];
    let is_error = packet.is_icmp() && {
        let icmp = frame
            .get(usize::from(packet.shape.transport_offset)..)
            .map(Icmp::parse);
        match (packet.shape.family, icmp) {
            (Family::Ipv4, Some(Ok(icmp))) => icmp.is_error(),
            (Family::Ipv6, Some(Ok(icmp))) => icmpv6::is_error(icmp.kind()),
            _ => true,
        }
    };
    let one_sender = match packet.tuple().source {
        IpAddr::V4(source) => {
            !(source.is_unspecified()
                || source.is_loopback()
                || source.is_multicast()
                || source.octets()[0] >= 240)
        }
        IpAddr::V6(source) => {
            !(source.is_unspecified()
                || source.is_loopback()
                || source.is_multicast()
                || source.to_ipv4_mapped().is_some())
        }
    };
    !has_group && !is_error && one_sender && packet.shape.part != Part::Later
}

/// Turns the packet in `frame` into an ICMP error about itself, from `source` to its sender.
/// Returns `None`, without a change, if the headroom is too small or `source` is of the other
/// family.
pub(crate) fn icmp_error(
    frame: &mut Frame<'_>,
    packet: &Packet,
    error: IcmpError,
    source: IpAddr,
) -> Option<()> {
    const IPV4: usize = ipv4::HEADER_LEN + icmp::HEADER_LEN;
    const IPV6: usize = ipv6::HEADER_LEN + icmp::HEADER_LEN;
    let ip_offset = usize::from(packet.shape.ip_offset);
    // The link-layer header is kept, tags and all.
    let mut link = [0; ethernet::HEADER_LEN + ethernet::MAX_TAGS * ethernet::TAG_LEN];
    let link = link.get_mut(..ip_offset)?;
    link.copy_from_slice(frame.bytes().get(..ip_offset)?);
    swap_macs(link)?;
    let (header_len, most) = match packet.shape.family {
        Family::Ipv4 => (IPV4, MAX_ERROR_IPV4),
        Family::Ipv6 => (IPV6, ipv6::MIN_MTU),
    };
    let client = packet.tuple().source;
    if frame.headroom() < header_len || client.is_ipv4() != source.is_ipv4() {
        return None;
    }
    let quoted = packet.ip_len().min(most - header_len);
    frame.truncate(ip_offset + quoted);
    frame.trim_front(ip_offset);
    match (client, source) {
        (IpAddr::V4(client), IpAddr::V4(source)) => {
            let sum = Sum::ZERO.add_bytes(frame.bytes());
            error_ipv4(frame.push_front()?, client, source, error, quoted, sum);
        }
        (IpAddr::V6(client), IpAddr::V6(source)) => {
            let sum = Sum::ZERO.add_bytes(frame.bytes());
            error_ipv6(frame.push_front()?, client, source, error, quoted, sum);
        }
        _ => return None,
    }
    match link.len() {
        14 => frame.push_front::<14>()?.copy_from_slice(link),
        18 => frame.push_front::<18>()?.copy_from_slice(link),
        _ => frame.push_front::<22>()?.copy_from_slice(link),
    }
    Some(())
}

fn error_ipv4(
    header: &mut [u8; 28],
    client: Ipv4Addr,
    source: Ipv4Addr,
    error: IcmpError,
    quoted: usize,
    quoted_sum: Sum,
) {
    let (kind, code, rest) = match error {
        // RFC 1191 §4: the MTU is in the low 16 bits.
        IcmpError::TooBig(mtu) => (icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, mtu & 0xffff),
        IcmpError::HopLimit => (icmp::TIME_EXCEEDED, 0, 0),
        // RFC 5508 §8, REQ-8.
        IcmpError::NoPort | IcmpError::TupleTaken => (icmp::UNREACHABLE, icmp::PROHIBITED, 0),
    };
    let (ip, icmp) = header.split_at_mut(ipv4::HEADER_LEN);
    if let (Some(ip), Some(icmp)) = (ip.first_chunk_mut(), icmp.first_chunk_mut()) {
        let header = ipv4::Header {
            traffic_class: 0xc0, // CS6, as routers do (RFC 1812 §4.3.2.5)
            total_len: (28 + quoted) as u16,
            identification: 0,
            flags_fragment: ipv4::DONT_FRAGMENT,
            ttl: HOP_LIMIT,
            protocol: protocol::ICMP,
            source,
            destination: client,
        };
        header.emit(ip);
        emit_icmp(icmp, kind, code, rest, quoted_sum);
    }
}

fn error_ipv6(
    header: &mut [u8; 48],
    client: Ipv6Addr,
    source: Ipv6Addr,
    error: IcmpError,
    quoted: usize,
    quoted_sum: Sum,
) {
    let (kind, code, rest) = match error {
        // No link has a smaller MTU (RFC 8200 §5), so no smaller one is reported.
        IcmpError::TooBig(mtu) => (icmpv6::PACKET_TOO_BIG, 0, mtu.max(ipv6::MIN_MTU as u32)),
        IcmpError::HopLimit => (icmpv6::TIME_EXCEEDED, 0, 0),
        IcmpError::NoPort | IcmpError::TupleTaken => (icmpv6::UNREACHABLE, icmpv6::PROHIBITED, 0),
    };
    let payload_len = (icmp::HEADER_LEN + quoted) as u16;
    let (ip, icmp) = header.split_at_mut(ipv6::HEADER_LEN);
    if let (Some(ip), Some(icmp)) = (ip.first_chunk_mut(), icmp.first_chunk_mut()) {
        let header = ipv6::Header {
            traffic_class: 0xc0,
            flow_label: 0,
            payload_len,
            next_header: protocol::ICMPV6,
            hop_limit: HOP_LIMIT,
            source,
            destination: client,
        };
        header.emit(ip);
        let pseudo =
            quoted_sum.add_pseudo_ipv6(source, client, protocol::ICMPV6, payload_len.into());
        emit_icmp(icmp, kind, code, rest, pseudo);
    }
}

/// Writes an ICMP header before data with the sum `behind`.
fn emit_icmp(header: &mut [u8; icmp::HEADER_LEN], kind: u8, code: u8, rest: u32, behind: Sum) {
    *header = [kind, code, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&rest.to_be_bytes());
    let checksum = behind.add_bytes(header).checksum();
    header[2..4].copy_from_slice(&checksum.to_be_bytes());
}

fn swap_macs(bytes: &mut [u8]) -> Option<()> {
    let macs: &mut [u8; 12] = bytes.first_chunk_mut()?;
    let (destination, source) = macs.split_at_mut(6);
    destination.swap_with_slice(source);
    Some(())
}
