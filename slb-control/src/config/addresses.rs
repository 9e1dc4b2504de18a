//! Addresses that a host can have.

use std::net::IpAddr;

use slb_core::wire::ethernet::MacAddress;

/// The requirement for a host's address, for messages.
pub(super) const HOST: &str =
    "the IPv4 or IPv6 address of a host (unicast, neither loopback nor link-local)";
/// The requirement for a probe's source address, for messages.
pub(super) const UNICAST: &str = "a unicast IPv4 or IPv6 address";
/// The requirement for a station's MAC address, for messages.
pub(super) const STATION: &str =
    "the MAC address of one station, such as \"02:00:0a:0a:01:0b\" (no group's, not all zeros)";

/// Parses an address that a host can have and routers forward to (RFC 1122 §3.2.1.3, RFC 3927 §2.7,
/// RFC 4291 §2.5.6).
pub(super) fn host(text: &str) -> Option<IpAddr> {
    unicast(text).filter(|address| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    })
}

/// Parses a unicast address.
pub(super) fn unicast(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let is_unicast = match address {
        // 0.0.0.0/8 is "this network", 240.0.0.0/4 reserved (RFC 1122 §3.2.1.3).
        IpAddr::V4(address) => !matches!(address.octets()[0], 0 | 224..),
        // An IPv4-mapped address never appears on the wire (RFC 4291 §2.5.5.2, RFC 6890).
        IpAddr::V6(address) => {
            !address.is_unspecified()
                && !address.is_multicast()
                && address.to_ipv4_mapped().is_none()
        }
    };
    is_unicast.then_some(address)
}

/// Parses the MAC address of one station.
pub(super) fn station(text: &str) -> Option<MacAddress> {
    let address: MacAddress = text.parse().ok()?;
    (!address.is_multicast() && address.0 != [0; 6]).then_some(address)
}
