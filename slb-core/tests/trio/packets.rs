//! IP packets, made and read: transport headers, checksums and fragments.

use std::net::IpAddr;

use super::FAMILIES;
use etherparse::SlicedPacket;
use slb_core::wire::checksum::Sum;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const DESTINATION_OPTIONS: u8 = 60;

pub type Ends = (IpAddr, IpAddr);

/// The address of the host that a frame's outer header names.
pub fn ends(packet: &[u8]) -> (IpAddr, IpAddr) {
    let address = |at: usize, len: usize| -> IpAddr {
        match len {
            4 => IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap()),
        }
    };
    match packet[0] >> 4 {
        6 => (address(8, 16), address(24, 16)),
        _ => (address(12, 4), address(16, 4)),
    }
}

/// An IP packet.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = (20 + payload.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = (payload.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, protocol, 64];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        _ => unreachable!("of one family"),
    };
    packet.extend(payload);
    with_header_checksum(packet)
}

/// The same packet with the right header checksum, of IPv4.
pub fn with_header_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let sum = Sum::ZERO.add_bytes(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn sum_with_pseudo(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let (sum, len) = (Sum::ZERO.add_bytes(payload), payload.len());
    match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == 1 => sum,
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum.add_pseudo_ipv4(source, destination, protocol, len as u16)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            sum.add_pseudo_ipv6(source, destination, protocol, len as u32)
        }
        _ => unreachable!("of one family"),
    }
    .checksum()
}

/// The bytes of a transport header and its data, with the checksum at `at`.
fn summed(
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    at: usize,
    mut payload: Vec<u8>,
) -> Vec<u8> {
    payload[at..at + 2].fill(0);
    let sum = sum_with_pseudo(source, destination, protocol, &payload);
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    payload
}

/// A UDP header and its data.
pub fn udp(ends: Ends, (from, to): (u16, u16), data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend((8 + data.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(data);
    summed(ends, UDP, 6, bytes)
}

/// A TCP header of 20 bytes and its data: of a side that begins with the sequence number 1000, in
/// answer to such a one.
pub fn tcp(ends: Ends, (from, to): (u16, u16), flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    let is_syn = flags & 2 != 0;
    bytes.extend((1001 - u32::from(is_syn)).to_be_bytes());
    bytes.extend(1001u32.to_be_bytes());
    bytes.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    bytes.extend(data);
    summed(ends, TCP, 16, bytes)
}

/// An ICMP message of the ends' family.
pub fn icmp(ends: Ends, kind: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    bytes.extend(data);
    let protocol = if ends.0.is_ipv6() { 58 } else { 1 };
    summed(ends, protocol, 2, bytes)
}

/// An echo request or reply.
pub fn echo(ends: Ends, is_reply: bool, identifier: u16, data: &[u8]) -> Vec<u8> {
    let family = FAMILIES[usize::from(ends.0.is_ipv6())];
    let kind = if is_reply {
        family.echo_reply()
    } else {
        family.echo_request()
    };
    let [high, low] = identifier.to_be_bytes();
    icmp(ends, kind, 0, [high, low, 0, 1], data)
}

/// A packet of a transport.
pub fn packet(ends: Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ip(ends.0, ends.1, protocol, payload)
}

/// The fragments of a datagram, `most` bytes of its payload in each: the payload is that behind the
/// IPv4 header, or behind the IPv6 fragment header. The next header of the IPv6 fragment header is
/// `protocol`.
pub fn fragments(
    ends: Ends,
    protocol: u8,
    payload: &[u8],
    most: usize,
    identification: u32,
) -> Vec<Vec<u8>> {
    assert!(most.is_multiple_of(8));
    let count = payload.len().div_ceil(most);
    let one = |(i, part): (usize, &[u8])| {
        fragment(
            ends,
            protocol,
            part,
            (i * most, i + 1 < count),
            identification,
        )
    };
    payload.chunks(most).enumerate().map(one).collect()
}

/// One fragment: at this offset in bytes, and whether more follow.
pub fn fragment(
    ends: Ends,
    protocol: u8,
    part: &[u8],
    (offset, more): (usize, bool),
    identification: u32,
) -> Vec<u8> {
    if ends.0.is_ipv6() {
        let mut bytes = vec![protocol, 0];
        bytes.extend((offset as u16 | u16::from(more)).to_be_bytes());
        bytes.extend(identification.to_be_bytes());
        bytes.extend(part);
        return ip(ends.0, ends.1, 44, &bytes);
    }
    let mut packet = ip(ends.0, ends.1, protocol, part);
    packet[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
    let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    with_header_checksum(packet)
}

/// Puts fragments together: the payload of the datagram, whose ends and identification are the same
/// in all of them.
pub fn reassembled(fragments: &[Vec<u8>]) -> (Ends, Vec<u8>) {
    let mut parts: Vec<(usize, bool, &[u8])> = Vec::new();
    for fragment in fragments {
        assert_eq!(ends(fragment), ends(&fragments[0]), "of one datagram");
        let (word, start) = match fragment[0] >> 4 {
            6 => {
                let word = u16::from_be_bytes([fragment[42], fragment[43]]);
                ((usize::from(word & 0xfff8), word & 1 != 0), 48)
            }
            _ => {
                let sum = Sum::ZERO.add_bytes(&fragment[..20]).checksum();
                assert_eq!(sum, 0, "the header's checksum is right");
                let word = u16::from_be_bytes([fragment[6], fragment[7]]);
                ((usize::from(word & 0x1fff) * 8, word & 0x2000 != 0), 20)
            }
        };
        parts.push((word.0, word.1, &fragment[start..]));
    }
    parts.sort_unstable();
    let mut payload = Vec::new();
    for (i, (offset, more, part)) in parts.iter().enumerate() {
        assert_eq!(*offset, payload.len(), "no gap");
        assert_eq!(*more, i + 1 < parts.len());
        payload.extend(*part);
    }
    (ends(&fragments[0]), payload)
}

/// Asserts that the checksum of what an IP packet carries is right.
pub fn assert_summed(ends: Ends, protocol: u8, payload: &[u8]) {
    assert_eq!(sum_with_pseudo(ends.0, ends.1, protocol, payload), 0);
}

/// Asserts that etherparse reads an IP packet.
pub fn assert_readable(packet: &[u8]) {
    SlicedPacket::from_ip(packet).unwrap();
}
