//! Ranges of addresses.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// An address of the range. Bits beyond the length are ignored.
    pub address: IpAddr,
    /// Length of the prefix in bits: at most 32 for IPv4, and 128 for IPv6.
    pub len: u8,
}

impl Prefix {
    /// Returns the first and the last address; `None` if the length exceeds the family's.
    pub(crate) fn range(&self) -> Option<[IpAddr; 2]> {
        match self.address {
            IpAddr::V4(address) => {
                let rest = u32::MAX.checked_shr(self.len.into()).unwrap_or(0);
                let first = address.to_bits() & !rest;
                let ends = [first, first | rest].map(|bits| Ipv4Addr::from_bits(bits).into());
                (self.len <= 32).then_some(ends)
            }
            IpAddr::V6(address) => {
                let rest = u128::MAX.checked_shr(self.len.into()).unwrap_or(0);
                let first = address.to_bits() & !rest;
                let ends = [first, first | rest].map(|bits| Ipv6Addr::from_bits(bits).into());
                (self.len <= 128).then_some(ends)
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

const fn ipv4(a: u8, b: u8, c: u8, d: u8, len: u8) -> Prefix {
    Prefix {
        address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        len,
    }
}

const fn ipv6(first: u16, len: u8) -> Prefix {
    Prefix {
        address: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0)),
        len,
    }
}

/// The default inside prefixes: private networks (RFC 1918), shared address space (RFC 6598),
/// link-local addresses (RFC 3927, RFC 4291 §2.5.6), unique local addresses (RFC 4193), and
/// 168.63.129.16, from which Azure's platform serves and probes vms.
pub const INSIDE: &[Prefix] = &[
    ipv4(10, 0, 0, 0, 8),
    ipv4(172, 16, 0, 0, 12),
    ipv4(192, 168, 0, 0, 16),
    ipv4(100, 64, 0, 0, 10),
    ipv4(169, 254, 0, 0, 16),
    ipv4(168, 63, 129, 16, 32),
    ipv6(0xfe80, 10),
    ipv6(0xfc00, 7),
];
