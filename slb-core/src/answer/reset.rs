//! Generated TCP resets.

use core::net::IpAddr;

use crate::frame::Frame;
use crate::link::Link;
use crate::nat::connection::Side;
use crate::nat::rewrite::Rewrite;
use crate::packet::Packet;
use crate::wire::checksum::Sum;
use crate::wire::ethernet::EtherType;
use crate::wire::tcp::Flags;
use crate::wire::{ipv4, ipv6, protocol, tcp};

/// TTL and hop limit of generated packets.
const HOP_LIMIT: u8 = 64;

/// Sequence and acknowledgement number of a reset, and its control bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: Flags,
}

/// Replaces the contents of `frame` by a reset. Returns `None` if it does not fit.
pub(crate) fn emit<A: Rewrite>(
    frame: &mut Frame<'_>,
    link: &Link,
    side: Side<A>,
    numbers: Numbers,
) -> Option<()> {
    let (from, to) = side.addresses.unpack();
    let ip_len = match from {
        IpAddr::V4(_) => ipv4::HEADER_LEN,
        IpAddr::V6(_) => ipv6::HEADER_LEN,
    };
    let len = link.len() + ip_len + tcp::HEADER_LEN;
    if frame.len() + frame.tailroom() < len {
        return None;
    }
    frame.truncate(0);
    let bytes = frame.push_back(len)?;
    let (link_header, rest) = bytes.split_at_mut_checked(link.len())?;
    let (ip, segment) = rest.split_at_mut_checked(ip_len)?;
    let [a, b, c, d] = side.ports.to_le_bytes();
    let header = tcp::Header {
        source_port: u16::from_be_bytes([a, b]),
        destination_port: u16::from_be_bytes([c, d]),
        sequence: numbers.sequence,
        acknowledgement: numbers.acknowledgement,
        flags: numbers.flags,
        window: 0,
    };
    let segment: &mut [u8; tcp::HEADER_LEN] = segment.first_chunk_mut()?;
    header.emit(segment);
    let sum = Sum::ZERO.add_bytes(segment);
    let (ether_type, sum) = match (from, to) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = ipv4::Header {
                traffic_class: 0,
                total_len: (ipv4::HEADER_LEN + tcp::HEADER_LEN) as u16,
                identification: 0,
                flags_fragment: ipv4::DONT_FRAGMENT,
                ttl: HOP_LIMIT,
                protocol: protocol::TCP,
                source,
                destination,
            };
            header.emit(ip.first_chunk_mut()?);
            let sum =
                sum.add_pseudo_ipv4(source, destination, protocol::TCP, tcp::HEADER_LEN as u16);
            (EtherType::IPV4, sum)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = ipv6::Header {
                traffic_class: 0,
                flow_label: 0,
                payload_len: tcp::HEADER_LEN as u16,
                next_header: protocol::TCP,
                hop_limit: HOP_LIMIT,
                source,
                destination,
            };
            header.emit(ip.first_chunk_mut()?);
            let sum =
                sum.add_pseudo_ipv6(source, destination, protocol::TCP, tcp::HEADER_LEN as u32);
            (EtherType::IPV6, sum)
        }
        _ => return None,
    };
    segment[16..18].copy_from_slice(&sum.checksum().to_be_bytes());
    link.emit(link_header, ether_type)
}

/// Returns the numbers of the answer to a segment without a connection (RFC 9293 §3.10.7.1); `None`
/// for a reset, which is never answered.
pub(crate) fn answer(bytes: &[u8], packet: &Packet) -> Option<Numbers> {
    let transport = usize::from(packet.shape.transport_offset);
    let len = (usize::from(packet.shape.ip_offset) + packet.ip_len()).checked_sub(transport)?;
    let segment = crate::nat::tcp::Segment::parse(bytes.get(transport..)?, len)?;
    if segment.flags.contains(Flags::RST) {
        return None;
    }
    Some(if segment.flags.contains(Flags::ACK) {
        Numbers {
            sequence: segment.acknowledgement,
            acknowledgement: 0,
            flags: Flags::RST,
        }
    } else {
        Numbers {
            sequence: 0,
            acknowledgement: segment.sequence.wrapping_add(segment.len),
            flags: Flags::RST.with(Flags::ACK),
        }
    })
}
