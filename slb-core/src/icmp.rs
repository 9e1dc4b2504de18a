//! ICMP messages about other packets, and whether a balancer forwards them.
//!
//! An error follows the flow that it quotes. Two kinds of messages about a translated flow are
//! dropped: redirects and source quench, which ask a host to change its routes or its rate and are
//! easily forged (RFC 1122 §3.2.2.2, RFC 6633), and errors with a wrong checksum (RFC 5508 REQ-3a).

use crate::packet::{Family, Packet, Part};
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::{icmp, icmpv6, ipv6, protocol};

/// Bytes of an ICMPv6 redirect before its options: header, target and destination (RFC 4861 §4.5).
const REDIRECT_LEN: usize = icmp::HEADER_LEN + 2 * 16;
/// Offset of the destination that the redirect is about.
const REDIRECT_DESTINATION: usize = icmp::HEADER_LEN + 16;
/// The option that quotes the redirected packet, and the bytes before the quote (RFC 4861 §4.6.3).
const REDIRECTED_HEADER: u8 = 4;
const REDIRECTED_HEADER_LEN: usize = 8;

/// Returns the type of the ICMP message in a packet; zero if there is none.
pub(crate) fn kind(frame: &[u8], packet: &Packet) -> u8 {
    let at = usize::from(packet.shape.transport_offset);
    frame.get(at).copied().unwrap_or(0)
}

/// Returns true if a message of this type asks a host to use another route, or to slow down.
pub(crate) const fn is_advice(family: Family, kind: u8) -> bool {
    match family {
        Family::Ipv4 => matches!(kind, icmp::REDIRECT | icmp::SOURCE_QUENCH),
        Family::Ipv6 => kind == icmpv6::REDIRECT,
    }
}

/// Returns the reason why an ICMP error does not follow the flow that it quotes; `None` if it does.
pub(crate) fn refusal(frame: &[u8], packet: &Packet) -> Option<DropReason> {
    if is_advice(packet.shape.family, kind(frame, packet)) {
        Some(DropReason::IcmpRedirect)
    } else if checksum_is_right(frame, packet) {
        None
    } else {
        Some(DropReason::IcmpChecksum)
    }
}

/// Returns true if the checksum of a packet's ICMP message is right. A fragment's cannot be
/// verified.
fn checksum_is_right(frame: &[u8], packet: &Packet) -> bool {
    let end = usize::from(packet.shape.ip_offset) + packet.ip_len();
    let message = frame.get(usize::from(packet.shape.transport_offset)..end);
    let Some(message) = message.filter(|_| packet.shape.part == Part::Whole) else {
        return false;
    };
    let sum = Sum::ZERO.add_bytes(message);
    let sum = match packet.shape.family {
        Family::Ipv4 => sum,
        Family::Ipv6 => {
            let mut addresses = [0; 32];
            for (bytes, word) in addresses.chunks_exact_mut(8).zip(packet.addresses) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            // The pseudo-header (RFC 8200 §8.1).
            sum.add_bytes(&addresses)
                .add_bytes(&(message.len() as u32).to_be_bytes())
                .add_u16(protocol::ICMPV6.into())
        }
    };
    sum.checksum() == 0
}

/// The subject of an ICMPv6 redirect.
pub(crate) struct Redirected<'f> {
    /// The destination, in bytes, for which the redirect suggests another route.
    pub(crate) destination: [u8; 16],
    /// The packet that caused the redirect, as far as it is quoted.
    pub(crate) quote: Option<&'f [u8]>,
}

/// Reads an ICMPv6 redirect; `None` if it ends too early.
pub(crate) fn redirected<'f>(frame: &'f [u8], packet: &Packet) -> Option<Redirected<'f>> {
    let end = usize::from(packet.shape.ip_offset) + packet.ip_len();
    let message = frame.get(usize::from(packet.shape.transport_offset)..end)?;
    let (fixed, mut options) = message.split_at_checked(REDIRECT_LEN)?;
    let destination = *fixed.get(REDIRECT_DESTINATION..)?.first_chunk()?;
    let mut quote = None;
    while let [option, units, ..] = *options {
        let len = usize::from(units) * 8;
        let Some((this, rest)) = options.split_at_checked(len).filter(|_| len > 0) else {
            break;
        };
        if option == REDIRECTED_HEADER {
            quote = this.get(REDIRECTED_HEADER_LEN..);
            break;
        }
        options = rest;
    }
    // The option's length includes its padding.
    let quote = quote.filter(|quote| quote.len() >= ipv6::HEADER_LEN);
    Some(Redirected { destination, quote })
}
