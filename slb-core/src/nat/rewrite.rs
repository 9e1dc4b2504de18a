//! Translation of packets in place: addresses, ports, checksums, and the quotes of ICMP errors.
//!
//! Checksums are updated, never recomputed (RFC 1624 §3): a wrong checksum stays wrong by the same
//! difference, and a UDP checksum of zero, which means none, stays zero. Words are read
//! little-endian: the sum does not depend on the byte order (RFC 1071 §2, B), as long as it is the
//! same for all words.

use super::connection::{Connection, Side, delta};
use super::tcp::Direction;
use crate::flow::Addresses;
use crate::packet::{Packet, Part};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::{checksum, icmp, icmpv6, protocol, tcp};

/// Address families whose packets can be rewritten.
pub(crate) trait Rewrite: Addresses {
    /// The protocol number of the family's ICMP.
    const ICMP: u8;
    /// True if the ICMP checksum covers a pseudo-header.
    const ICMP_HAS_PSEUDO: bool;
    /// The addresses of a packet.
    fn of(packet: &Packet) -> Self;

    /// Returns the addresses of an IP header.
    fn of_header(ip: &[u8]) -> Option<Self>;

    /// Returns the words of a packet with these addresses.
    fn to_words(self) -> [u64; 4];

    /// Writes addresses, whose sum differs by `delta`, and subtracts `hops` from the hop limit.
    fn rewrite(self, ip: &mut [u8], delta: u16, hops: u8) -> Option<()>;

    /// Parses a quoted packet: its protocol, the offset of its transport header, and true if it has
    /// one.
    fn parse_quoted(ip: &[u8]) -> Option<(u8, usize, bool)>;

    /// Returns the half of the ports that holds the identifier of an ICMP request or reply:
    /// `Some(true)` for the sender's port.
    fn echo(kind: u8) -> Option<bool>;
}

impl Rewrite for u64 {
    const ICMP: u8 = protocol::ICMP;
    const ICMP_HAS_PSEUDO: bool = false;

    #[inline]
    fn of(packet: &Packet) -> Self {
        packet.addresses[0]
    }

    fn of_header(ip: &[u8]) -> Option<Self> {
        let bytes = ip.get(12..)?.first_chunk()?;
        Some(Self::from_le_bytes(*bytes))
    }

    fn to_words(self) -> [u64; 4] {
        [self, 0, 0, 0]
    }

    #[inline]
    fn rewrite(self, ip: &mut [u8], delta: u16, hops: u8) -> Option<()> {
        let header: &mut [u8; ipv4::HEADER_LEN] = ip.first_chunk_mut()?;
        header[8] -= hops.min(header[8]);
        // The TTL is the low byte of its word, as read here.
        let hop_delta = !u16::from(hops);
        let sum = u32::from(!read(header, 10)) + u32::from(delta) + u32::from(hop_delta);
        header[10..12].copy_from_slice(&(!fold_once(sum)).to_le_bytes());
        header[12..20].copy_from_slice(&self.to_le_bytes());
        Some(())
    }

    fn parse_quoted(ip: &[u8]) -> Option<(u8, usize, bool)> {
        let ip = Ipv4::parse_quoted(ip).ok()?;
        Some((ip.protocol(), ip.header_len(), ip.is_first_fragment()))
    }

    fn echo(kind: u8) -> Option<bool> {
        match kind {
            icmp::ECHO_REQUEST => Some(true),
            icmp::ECHO_REPLY => Some(false),
            _ => None,
        }
    }
}

impl Rewrite for [u64; 4] {
    const ICMP: u8 = protocol::ICMPV6;
    const ICMP_HAS_PSEUDO: bool = true;

    #[inline]
    fn of(packet: &Packet) -> Self {
        packet.addresses
    }

    fn of_header(ip: &[u8]) -> Option<Self> {
        let bytes: &[u8; 32] = ip.get(8..)?.first_chunk()?;
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }

    fn to_words(self) -> [u64; 4] {
        self
    }

    #[inline]
    fn rewrite(self, ip: &mut [u8], _: u16, hops: u8) -> Option<()> {
        let header: &mut [u8; ipv6::HEADER_LEN] = ip.first_chunk_mut()?;
        header[7] -= hops.min(header[7]);
        for (to, word) in header[8..].chunks_exact_mut(8).zip(self) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Some(())
    }

    fn parse_quoted(ip: &[u8]) -> Option<(u8, usize, bool)> {
        let ip = Ipv6::parse_quoted(ip).ok()?;
        let first = ip.fragment().is_none_or(|fragment| fragment.offset == 0);
        Some((ip.protocol(), ip.transport_offset(), first))
    }

    fn echo(kind: u8) -> Option<bool> {
        match kind {
            icmpv6::ECHO_REQUEST => Some(true),
            icmpv6::ECHO_REPLY => Some(false),
            _ => None,
        }
    }
}

/// Rewrites a packet in `direction` to its connection's other tuple, and subtracts `hops` from its
/// hop limit. Returns `None` if the packet ends before its checksum; it is then partly rewritten,
/// and must be dropped.
#[inline]
pub(crate) fn translate<A: Rewrite>(
    bytes: &mut [u8],
    packet: &Packet,
    connection: &Connection<A>,
    direction: Direction,
    hops: u8,
) -> Option<()> {
    let to = connection.translated(direction);
    let deltas = connection.deltas(direction);
    let ip = bytes.get_mut(usize::from(packet.shape.ip_offset)..)?;
    to.addresses.rewrite(ip, deltas.0, hops)?;
    if packet.shape.part == Part::Later {
        return Some(());
    }
    let start = usize::from(packet.shape.transport_offset);
    if packet.protocol == A::ICMP {
        // Padding after a short packet does not belong to the message.
        let end = usize::from(packet.shape.ip_offset) + packet.ip_len();
        return rewrite_icmp::<A>(bytes.get_mut(start..end)?, to.ports, deltas).ok();
    }
    let transport = bytes.get_mut(start..)?;
    rewrite_transport::<A>(transport, packet.protocol, to.ports, deltas).ok()
}

/// An error: the packet is truncated before its checksum.
pub(crate) struct Cut;

/// Writes ports, and updates the checksum for them and for the addresses before them.
#[inline]
fn rewrite_transport<A: Rewrite>(
    transport: &mut [u8],
    number: u8,
    ports: u32,
    (addresses, port_delta): (u16, u16),
) -> Result<(), Cut> {
    let both = u32::from(addresses) + u32::from(port_delta);
    match number {
        protocol::TCP => rewrite_tcp(transport, ports, both),
        protocol::UDP => rewrite_udp(transport, ports, both),
        number if number == A::ICMP => rewrite_icmp::<A>(transport, ports, (addresses, port_delta)),
        // UDP-Lite (RFC 3828) and DCCP (RFC 4340) have ports, but their connections are not
        // distinguished by ports.
        136 | 33 => update(transport, 6, addresses.into()),
        _ => Ok(()),
    }
}

/// Writes the ports of a TCP header, and updates its checksum for words that now sum up to `delta` more.
#[inline]
pub(super) fn rewrite_tcp(header: &mut [u8], ports: u32, delta: u32) -> Result<(), Cut> {
    write_ports(header, ports)?;
    update(header, 16, delta)
}

/// Writes the ports of a UDP header, and updates its checksum, if it has one.
#[inline]
pub(super) fn rewrite_udp(header: &mut [u8], ports: u32, delta: u32) -> Result<(), Cut> {
    write_ports(header, ports)?;
    update_udp(header, delta)
}

/// Updates the checksum of a UDP header, if it has one, for words that now sum up to `delta` more.
#[inline]
pub(super) fn update_udp(header: &mut [u8], delta: u32) -> Result<(), Cut> {
    let field: &mut [u8; 2] = header
        .get_mut(6..8)
        .and_then(<[u8]>::first_chunk_mut)
        .ok_or(Cut)?;
    let old = u16::from_le_bytes(*field);
    if old != 0 {
        let new = !fold_once(u32::from(!old) + delta);
        // Zero would mean that there is no checksum.
        *field = if new == 0 { 0xffff } else { new }.to_le_bytes();
    }
    Ok(())
}

/// Writes the identifier of an ICMP message that has one, and updates its checksum.
#[inline(never)]
fn rewrite_icmp<A: Rewrite>(
    message: &mut [u8],
    ports: u32,
    (addresses, port_delta): (u16, u16),
) -> Result<(), Cut> {
    let pseudo = if A::ICMP_HAS_PSEUDO { addresses } else { 0 };
    let Some(asks) = message.first().copied().and_then(A::echo) else {
        return match A::ICMP_HAS_PSEUDO {
            true => update(message, 2, pseudo.into()),
            false => Ok(()),
        };
    };
    let identifier = if asks {
        ports as u16
    } else {
        (ports >> 16) as u16
    };
    let field = message.get_mut(4..6).ok_or(Cut)?;
    field.copy_from_slice(&identifier.to_le_bytes());
    update(message, 2, u32::from(pseudo) + u32::from(port_delta))?;
    if message.get(2..4) == Some(&[0, 0]) {
        let checksum = checksum::never_zero_of_zeros(message);
        message
            .get_mut(2..4)
            .ok_or(Cut)?
            .copy_from_slice(&checksum.to_be_bytes());
    }
    Ok(())
}

#[inline]
fn write_ports(transport: &mut [u8], ports: u32) -> Result<(), Cut> {
    let field: &mut [u8; 4] = transport.first_chunk_mut().ok_or(Cut)?;
    *field = ports.to_le_bytes();
    Ok(())
}

/// Updates the checksum at `at` for words that now sum up to `delta` more.
#[inline]
pub(super) fn update(bytes: &mut [u8], at: usize, delta: u32) -> Result<(), Cut> {
    let field = bytes.get_mut(at..at + 2).ok_or(Cut)?;
    let old = u16::from_le_bytes([field[0], field[1]]);
    let new = !fold_once(u32::from(!old) + delta);
    field.copy_from_slice(&new.to_le_bytes());
    Ok(())
}

/// Folds a sum of a few words into one: both halves in either order, where the upper half gets the
/// carry of the lower half (RFC 1071 §2, B).
#[inline]
const fn fold_once(sum: u32) -> u16 {
    (sum.wrapping_add(sum.rotate_right(16)) >> 16) as u16
}

#[inline]
fn read(bytes: &[u8; ipv4::HEADER_LEN], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Rewrites an ICMP error about a connection, in `direction`: restores the tuple with which the
/// quoted packet was sent (RFC 5508 §4.2).
pub(crate) fn translate_error<A: Rewrite>(
    bytes: &mut [u8],
    packet: &Packet,
    connection: &Connection<A>,
    direction: Direction,
    hops: u8,
) -> Option<()> {
    let ip_offset = usize::from(packet.shape.ip_offset);
    let icmp_offset = usize::from(packet.shape.transport_offset);
    let end = ip_offset + packet.ip_len();
    let message = bytes.get_mut(icmp_offset..end)?;
    let (header, quote) = message.split_first_chunk_mut::<{ icmp::HEADER_LEN }>()?;
    let before = sum(quote);
    restore::<A>(
        quote,
        connection.side(direction.reverse()),
        connection.deltas(direction),
    )?;
    let quote_delta = delta(before, sum(quote));
    let old = A::of(packet);
    let new = about(connection, direction, old);
    let address_delta = delta(old.sum(), new.sum());
    let pseudo = if A::ICMP_HAS_PSEUDO { address_delta } else { 0 };
    update(header, 2, u32::from(quote_delta) + u32::from(pseudo)).ok()?;
    let ip = bytes.get_mut(ip_offset..)?;
    new.rewrite(ip, address_delta, hops)
}

/// Returns the sequence number of the TCP segment that an ICMP error quotes; `None` if it quotes no
/// sequence number.
pub(crate) fn quoted_sequence<A: Rewrite>(bytes: &[u8], packet: &Packet) -> Option<u32> {
    let quote = bytes.get(usize::from(packet.shape.transport_offset) + icmp::HEADER_LEN..)?;
    let (number, transport, is_first) = A::parse_quoted(quote)?;
    if number != protocol::TCP || !is_first {
        return None;
    }
    let sequence = quote.get(transport + 4..)?.first_chunk()?;
    Some(u32::from_be_bytes(*sequence))
}

/// Returns the translated addresses of an ICMP error. A router on the outside keeps its address;
/// inside addresses are hidden behind the front.
fn about<A: Rewrite>(connection: &Connection<A>, direction: Direction, old: A) -> A {
    let from = connection.side(direction).addresses;
    let to = connection.translated(direction).addresses;
    let source = match direction {
        Direction::Inward if old.split().0 != from.split().0 => old.split().0,
        _ => to.split().0,
    };
    A::join(source, to.split().1)
}

/// Rewrites a quoted packet to the tuple `side`, as far as it is quoted.
fn restore<A: Rewrite>(quote: &mut [u8], side: Side<A>, deltas: (u16, u16)) -> Option<()> {
    let (number, transport, has_ports) = A::parse_quoted(quote)?;
    side.addresses.rewrite(quote, deltas.0, 0)?;
    if has_ports {
        let transport = quote.get_mut(transport..)?;
        let _: Result<(), Cut> = rewrite_transport::<A>(transport, number, side.ports, deltas);
    }
    Some(())
}

pub(super) fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let mut sum = 0;
    for word in &mut words {
        sum += u64::from(u16::from_le_bytes([word[0], word[1]]));
    }
    match words.remainder() {
        [last] => sum + u64::from(*last),
        _ => sum,
    }
}

/// Lowers the maximum segment size that a SYN offers to `most` (RFC 9293 §3.7.1), if it offers
/// more.
pub(crate) fn clamp_mss(bytes: &mut [u8], packet: &Packet, most: u16) {
    const MSS: u8 = 2;
    let transport = usize::from(packet.shape.transport_offset);
    let end = usize::from(packet.shape.ip_offset) + packet.ip_len();
    let Some(segment) = bytes.get_mut(transport..end) else {
        return;
    };
    let Some(len) = segment.get(12).map(|byte| usize::from(byte >> 4) * 4) else {
        return;
    };
    let Some(options) = segment.get(tcp::HEADER_LEN..len) else {
        return;
    };
    let Some((_, at)) = super::options(options).find(|&(kind, _)| kind == MSS) else {
        return;
    };
    let at = tcp::HEADER_LEN + at + 2;
    let Some([high, low]) = segment.get(at..at + 2) else {
        return;
    };
    let old = [*high, *low];
    if u16::from_be_bytes(old) <= most {
        return;
    }
    let new = most.to_be_bytes();
    segment[at..at + 2].copy_from_slice(&new);
    // At an odd offset, the bytes are in the opposite halves of their words.
    let word = |bytes: [u8; 2]| {
        let word = u16::from_le_bytes(bytes);
        u64::from(if at.is_multiple_of(2) {
            word
        } else {
            word.swap_bytes()
        })
    };
    let _: Result<(), Cut> = update(segment, 16, delta(word(old), word(new)).into());
}
