//! 1:1 NAT in place: one address of a packet is replaced by another.
//!
//! Ports and identifiers stay, so no state is needed. Of an ICMP error the quoted packet, which
//! went the other way, is translated too (RFC 5508 §4.2). Checksums are updated as in
//! [`rewrite`](super::rewrite).

use core::net::IpAddr;

use super::connection::delta;
use super::rewrite::{Cut, Rewrite, sum, update, update_udp};
use crate::icmp;
use crate::packet::{Family, Packet, Part};
use crate::verdict::DropReason;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::{self, icmpv6, protocol};

/// The end of a packet whose address is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl End {
    fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    fn replace<A: Rewrite>(self, addresses: A, by: A::Address) -> A {
        let (source, destination) = addresses.split();
        match self {
            Self::Source => A::join(by, destination),
            Self::Destination => A::join(source, by),
        }
    }

    fn of<A: Rewrite>(self, addresses: A) -> A::Address {
        let (source, destination) = addresses.split();
        match self {
            Self::Source => source,
            Self::Destination => destination,
        }
    }
}

/// Replaces the address at one end of a packet, and subtracts `hops` from its hop limit. `packet`
/// gets the new address. In the quote of an ICMP error, the same address is replaced at the other
/// end.
///
/// # Errors
/// The packet ends before its checksum, or is an ICMP error that quotes no packet with that
/// address at the other end. It may be partly rewritten, and must be dropped.
pub(crate) fn readdress(
    bytes: &mut [u8],
    packet: &mut Packet,
    end: End,
    by: IpAddr,
    hops: u8,
) -> Result<(), DropReason> {
    match packet.shape.family {
        Family::Ipv4 => readdress_family::<u64>(bytes, packet, end, by, hops),
        Family::Ipv6 => readdress_family::<[u64; 4]>(bytes, packet, end, by, hops),
    }
}

fn readdress_family<A: Rewrite>(
    bytes: &mut [u8],
    packet: &mut Packet,
    end: End,
    by: IpAddr,
    hops: u8,
) -> Result<(), DropReason> {
    let by = A::from_ip(by).ok_or(DropReason::Malformed)?;
    let old = A::of(packet);
    let new = end.replace(old, by);
    let difference = delta(old.sum(), new.sum());
    let is_error = is_error(bytes, packet);
    let (start, ip) = (
        usize::from(packet.shape.transport_offset),
        usize::from(packet.shape.ip_offset),
    );
    let header = bytes.get_mut(ip..).ok_or(DropReason::Truncated)?;
    new.rewrite(header, difference, hops)
        .ok_or(DropReason::Truncated)?;
    packet.addresses = new.to_words();
    if packet.shape.part == Part::Later {
        return Ok(());
    }
    // Padding after a short packet does not belong to the message.
    let message = bytes.get_mut(start..ip + packet.ip_len());
    let message = message.ok_or(DropReason::Truncated)?;
    let mut difference = difference;
    if is_error {
        let quote = message.get_mut(wire::icmp::HEADER_LEN..);
        let quote = quote.ok_or(DropReason::IcmpUnmatched)?;
        let before = sum(quote);
        readdress_quote::<A>(quote, end.other(), (end.of(old), by))
            .ok_or(DropReason::IcmpUnmatched)?;
        let quoted = delta(before, sum(quote));
        let pseudo = if A::ICMP_HAS_PSEUDO { difference } else { 0 };
        return update(message, 2, u32::from(quoted) + u32::from(pseudo))
            .map_err(|Cut| DropReason::Truncated);
    }
    if packet.protocol == A::ICMP && !A::ICMP_HAS_PSEUDO {
        difference = 0;
    }
    update_transport::<A>(message, packet.protocol, difference).map_err(|Cut| DropReason::Truncated)
}

/// Replaces an address at one end of a quoted packet, as far as that is quoted. Returns `None` if
/// it has another address there.
fn readdress_quote<A: Rewrite>(
    quote: &mut [u8],
    end: End,
    (from, by): (A::Address, A::Address),
) -> Option<()> {
    let (number, transport, has_ports) = A::parse_quoted(quote)?;
    let old = A::of_header(quote)?;
    if end.of(old) != from {
        return None;
    }
    let new = end.replace(old, by);
    let difference = delta(old.sum(), new.sum());
    new.rewrite(quote, difference, 0)?;
    if has_ports && let Some(transport) = quote.get_mut(transport..) {
        // A short quote has no checksum.
        let _: Result<(), Cut> = update_transport::<A>(transport, number, difference);
    }
    Some(())
}

/// Updates the checksum of a transport header for addresses that now sum up to `delta` more.
fn update_transport<A: Rewrite>(transport: &mut [u8], number: u8, delta: u16) -> Result<(), Cut> {
    let delta = u32::from(delta);
    match number {
        protocol::TCP => update(transport, 16, delta),
        protocol::UDP => update_udp(transport, delta),
        number if number == A::ICMP && A::ICMP_HAS_PSEUDO => update(transport, 2, delta),
        // UDP-Lite (RFC 3828) and DCCP (RFC 4340) cover the addresses; SCTP (RFC 9260) does not.
        136 | 33 => update(transport, 6, delta),
        _ => Ok(()),
    }
}

/// Returns true if a packet is an ICMP error with the beginning of a quoted packet.
pub(crate) fn is_error(frame: &[u8], packet: &Packet) -> bool {
    let is_icmp = packet.is_icmp() && packet.shape.part != Part::Later;
    is_icmp && {
        let kind = icmp::kind(frame, packet);
        match packet.shape.family {
            Family::Ipv4 => wire::icmp::is_error(kind),
            Family::Ipv6 => icmpv6::is_error(kind),
        }
    }
}

/// Returns the source and the destination of the packet that an ICMP error quotes; `None` if it quotes no packet of its
/// own family.
pub(crate) fn quoted_ends(frame: &[u8], packet: &Packet) -> Option<(IpAddr, IpAddr)> {
    let start = usize::from(packet.shape.transport_offset) + wire::icmp::HEADER_LEN;
    let end = usize::from(packet.shape.ip_offset) + packet.ip_len();
    let quote = frame.get(start..end)?;
    match packet.shape.family {
        Family::Ipv4 => {
            let ip = Ipv4::parse_quoted(quote).ok()?;
            Some((ip.source().into(), ip.destination().into()))
        }
        Family::Ipv6 => {
            let ip = Ipv6::parse_quoted(quote).ok()?;
            Some((ip.source().into(), ip.destination().into()))
        }
    }
}
