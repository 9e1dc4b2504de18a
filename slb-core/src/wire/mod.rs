//! Views of header bytes, plain representations to write them, and checksums, without any policy.
//!
//! A view checks the lengths once, in `parse`, and holds its fixed header as an array reference:
//! no accessor can fail or panic afterwards. A representation (`Header`) is a plain struct that
//! writes itself into an array of the header's size. Numbers are in host order everywhere but in
//! the bytes; addresses stay as the bytes they are.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;
pub mod vxlan;

use core::fmt;

/// The reason why bytes are not a valid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// There are fewer bytes than needed.
    Truncated {
        /// Bytes that the header, or the length in it, requires.
        needed: usize,
        /// Bytes that are present.
        available: usize,
    },
    /// A field of the header has an impossible value.
    Malformed {
        /// The header and the field, such as `"IPv4 header length"`.
        field: &'static str,
        /// The value of the field.
        value: u32,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needed, available } => {
                write!(f, "expected {needed} bytes, got {available}")
            }
            Self::Malformed { field, value } => write!(f, "{field} cannot be {value}"),
        }
    }
}

impl core::error::Error for WireError {}

/// IP protocol numbers that the dataplane distinguishes.
pub mod protocol {
    /// IPv6 hop-by-hop options (RFC 8200 §4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 routing header (RFC 8200 §4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200 §4.5).
    pub const FRAGMENT: u8 = 44;
    /// Encapsulating security payload (RFC 4303).
    pub const ESP: u8 = 50;
    /// Authentication header (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// IPv6 "no next header" (RFC 8200 §4.7).
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options (RFC 8200 §4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// Mobility header (RFC 6275).
    pub const MOBILITY: u8 = 135;
    /// Host identity protocol (RFC 7401).
    pub const HIP: u8 = 139;
    /// Shim6 (RFC 5533).
    pub const SHIM6: u8 = 140;
}

/// Reads a big-endian `u16` at a constant offset.
#[inline]
const fn read_u16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a big-endian `u32` at a constant offset.
#[inline]
const fn read_u32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Copies `M` bytes from a constant offset, in one load if they fit a register.
// Not `array::from_fn`, which loads single bytes and is not always inlined.
#[inline(always)]
fn read_array<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    match bytes[at..].first_chunk() {
        Some(chunk) => *chunk,
        None => unreachable!("headers are read at constant places inside them"),
    }
}

/// Writes `value` at a constant offset.
#[inline]
pub(crate) fn write<const N: usize, const M: usize>(
    bytes: &mut [u8; N],
    at: usize,
    value: [u8; M],
) {
    bytes[at..at + M].copy_from_slice(&value);
}

/// Splits a header of `N` bytes off the front.
#[inline]
fn split<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), WireError> {
    bytes.split_first_chunk().ok_or(WireError::Truncated {
        needed: N,
        available: bytes.len(),
    })
}
