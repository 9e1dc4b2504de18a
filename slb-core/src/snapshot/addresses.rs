//! Addresses and ports as keys of the snapshot's maps.

use core::net::{IpAddr, Ipv4Addr};

/// A port in the packet's byte order: its two bytes, read little-endian.
pub(crate) const fn raw_port(port: u16) -> u16 {
    u16::from_le_bytes(port.to_be_bytes())
}

/// The 16 bytes of an address; an IPv4 address is mapped (RFC 4291 §2.5.5.2).
pub(crate) fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// An address of either family in two words.
pub(crate) fn words(address: IpAddr) -> [u64; 2] {
    words_of_ipv6(address_bytes(address))
}

/// An IPv4 address in two words, from its octets.
pub(crate) fn words_of_ipv4(octets: [u8; 4]) -> [u64; 2] {
    words_of_ipv6(Ipv4Addr::from(octets).to_ipv6_mapped().octets())
}

/// An IPv6 address in two words, from its octets.
pub(crate) fn words_of_ipv6(octets: [u8; 16]) -> [u64; 2] {
    let bits = u128::from_le_bytes(octets);
    [bits as u64, (bits >> 64) as u64]
}
