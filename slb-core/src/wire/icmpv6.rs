//! ICMPv6 (RFC 4443). The header has the layout of ICMP; only the numbers differ.

pub use super::icmp::{HEADER_LEN, Icmp};

/// Destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Code of "unreachable": communication administratively prohibited (RFC 4443 §3.1).
pub const PROHIBITED: u8 = 1;
/// Packet too big.
pub const PACKET_TOO_BIG: u8 = 2;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Echo reply.
pub const ECHO_REPLY: u8 = 129;
/// Neighbour solicitation (RFC 4861 §4.3).
pub const SOLICITATION: u8 = 135;
/// Neighbour advertisement (RFC 4861 §4.4).
pub const ADVERTISEMENT: u8 = 136;
/// Redirect (RFC 4861 §4.5).
pub const REDIRECT: u8 = 137;

/// Returns true if messages of this type report an error (RFC 4443 §2.1): all below 128.
pub const fn is_error(kind: u8) -> bool {
    kind < 128
}

/// Returns true if a message belongs to the link, not to the VIP: router and neighbour discovery,
/// and multicast listeners (RFC 4861, RFC 2710, RFC 3810).
pub const fn is_link_local(kind: u8) -> bool {
    matches!(kind, 130..=137 | 143)
}
