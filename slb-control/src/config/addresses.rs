//! Addresses of the configuration: the kinds that fields have, and one table of those that no host can have.
//!
//! Each field with an address, a prefix or a MAC address is read here, so that the rules of its kind hold for it. The
//! rules that compare addresses with each other are in `validate::addresses` and `validate::networks`.

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_core::spec::Prefix;
use slb_core::wire::ethernet::MacAddress;

use crate::document::{Section, Span};

/// The kind of an address or of the addresses in a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An address that a host can have and that routers forward to (RFC 1122 §3.2.1.3, RFC 3927 §2.7, RFC 4291
    /// §2.5.6).
    Host,
    /// An IPv4 address of that kind.
    Ipv4Host,
    /// An address of a host that may be known on one link only.
    Station,
}

/// The addresses that no host has, or that no router forwards to.
///
/// Sources: RFC 1122 §3.2.1.3, RFC 3927, RFC 5771 §3, RFC 1112 §4, RFC 4291 §2.4 and §2.5.5, RFC 6890 §2.2.
const NO_HOSTS: [(IpAddr, u8); 9] = [
    // "This network".
    (IpAddr::V4(Ipv4Addr::new(0, 0, 0, 0)), 8),
    // Loopback.
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    // Multicast, what is reserved, and the limited broadcast.
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 3),
    LINK_LOCAL[0],
    // The unspecified address, loopback and the deprecated IPv4-compatible addresses.
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 96),
    // IPv4-mapped addresses, which never appear on the wire.
    (IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), 96),
    // IPv4-mapped addresses of the translation that RFC 2765 described.
    (IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0)), 96),
    // Multicast.
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    LINK_LOCAL[1],
];

const LINK_LOCAL: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
];

/// The requirement for a station's MAC address, for messages.
const MAC: &str =
    "the MAC address of one station, such as \"02:00:0a:0a:01:0b\" (no group's, not all zeros)";

impl Kind {
    /// The requirement, for messages.
    const fn expected(self) -> &'static str {
        match self {
            Self::Host => {
                "the IPv4 or IPv6 address of a host (unicast, neither loopback nor link-local)"
            }
            Self::Ipv4Host => {
                "the IPv4 address of a host (unicast, neither loopback nor link-local)"
            }
            Self::Station => "the IPv4 or IPv6 address of a host (unicast, not loopback)",
        }
    }

    /// Returns true if a range has an address of this kind.
    fn has(self, [first, last]: [IpAddr; 2]) -> bool {
        let is_of_none = |(address, len): &(IpAddr, u8)| {
            let [low, high] = range(Prefix {
                address: *address,
                len: *len,
            });
            low <= first && last <= high
        };
        let is_link_local = LINK_LOCAL.iter().any(is_of_none);
        let is_allowed = match self {
            Self::Host => true,
            Self::Ipv4Host => first.is_ipv4(),
            Self::Station if is_link_local => return true,
            Self::Station => true,
        };
        is_allowed && !NO_HOSTS.iter().any(is_of_none)
    }

    fn parse(self, text: &str) -> Option<IpAddr> {
        let address = text.parse().ok()?;
        self.has([address; 2]).then_some(address)
    }
}

/// An address that has to be there.
pub(crate) fn required(
    section: &Section<'_>,
    field: &'static str,
    kind: Kind,
) -> Option<(IpAddr, Span)> {
    section.required(field, kind.expected(), |text| kind.parse(text))
}

/// An address that need not be there.
pub(crate) fn optional(
    section: &Section<'_>,
    field: &'static str,
    kind: Kind,
) -> Option<(IpAddr, Span)> {
    section.optional(field, kind.expected(), |text| kind.parse(text))
}

/// One address or a list, or nothing; each of them once.
pub(crate) fn any(section: &Section<'_>, field: &'static str, kind: Kind) -> Vec<(IpAddr, Span)> {
    let all = section.any(field, kind.expected(), |text| kind.parse(text));
    once(section, field, all)
}

/// One address or a list; each of them once.
pub(crate) fn one_or_more(
    section: &Section<'_>,
    field: &'static str,
    kind: Kind,
) -> Vec<(IpAddr, Span)> {
    let all = section.one_or_more(field, kind.expected(), |text| kind.parse(text));
    once(section, field, all)
}

/// At most one address of each family, or nothing.
pub(crate) fn one_of_each_family(
    section: &Section<'_>,
    field: &'static str,
    kind: Kind,
) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut ipv4, mut ipv6): (Option<Ipv4Addr>, Option<Ipv6Addr>) = (None, None);
    for (address, span) in section.any(field, kind.expected(), |text| kind.parse(text)) {
        let other = match address {
            IpAddr::V4(address) => ipv4.replace(address).map(IpAddr::V4),
            IpAddr::V6(address) => ipv6.replace(address).map(IpAddr::V6),
        };
        if let Some(other) = other {
            let message =
                format!("expected one address of each family at most, got {other} and {address}");
            section.fault(&span, field, message);
        }
    }
    (ipv4, ipv6)
}

/// Prefixes that have addresses of a kind, and no bits beyond their length: one or a list, or nothing.
pub(crate) fn prefixes(
    section: &Section<'_>,
    field: &'static str,
    kind: Kind,
) -> Vec<(Prefix, Span)> {
    let parse = |text: &str| prefix(text);
    let all = section.any(
        field,
        "an address and a length, such as \"10.1.0.0/16\"",
        parse,
    );
    for (prefix, span) in &all {
        check_prefix(section, field, kind, *prefix, span);
    }
    once(section, field, all)
}

/// A prefix or one address, which has to be there.
pub(crate) fn required_range(
    section: &Section<'_>,
    field: &'static str,
    kind: Kind,
) -> Option<(Prefix, Span)> {
    let parse = |text: &str| prefix_or_address(text);
    let expected = "a range such as \"10.0.0.0/24\", or one address";
    let (prefix, span) = section.required(field, expected, parse)?;
    check_prefix(section, field, kind, prefix, &span);
    Some((prefix, span))
}

/// A MAC address that need not be there.
pub(crate) fn mac(section: &Section<'_>, field: &'static str) -> Option<MacAddress> {
    let station = |text: &str| {
        let address: MacAddress = text.parse().ok()?;
        (!address.is_multicast() && address.0 != [0; 6]).then_some(address)
    };
    let found = section.optional(field, MAC, station);
    found.map(|(address, _)| address)
}

/// Adds a fault where a prefix has bits beyond its length, or no address of a kind.
pub(crate) fn check_prefix(
    section: &Section<'_>,
    field: &str,
    kind: Kind,
    prefix: Prefix,
    span: &Span,
) {
    let whole = network_of(prefix);
    if whole != prefix {
        let message = format!("expected {whole}, got {prefix}, which has bits beyond its length");
        section.fault(span, field, message);
    }
    if !kind.has(range(prefix)) {
        let message = format!("expected addresses that hosts can have, got {prefix}");
        section.fault(span, field, message);
    }
}

/// Adds a fault for each value of a list that stands before it, too.
fn once<T: Eq + Hash + Display>(
    section: &Section<'_>,
    field: &str,
    all: Vec<(T, Span)>,
) -> Vec<(T, Span)> {
    let mut seen = HashSet::new();
    for (value, span) in &all {
        if !seen.insert(value) {
            section.fault(span, field, format!("{value} is named twice"));
        }
    }
    all
}

/// Returns true if hosts can have addresses of a prefix.
pub(crate) fn has_hosts(prefix: Prefix) -> bool {
    Kind::Host.has(range(prefix))
}

/// Parses a prefix, or one address.
pub(crate) fn prefix_or_address(text: &str) -> Option<Prefix> {
    let single = || {
        let address: IpAddr = text.parse().ok()?;
        let len = width(address);
        Some(Prefix { address, len })
    };
    prefix(text).or_else(single)
}

fn prefix(text: &str) -> Option<Prefix> {
    let (address, len) = text.split_once('/')?;
    let (address, len) = (address.parse().ok()?, len.parse().ok()?);
    (len <= width(address)).then_some(Prefix { address, len })
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The prefix with none but the bits that count.
fn network_of(prefix: Prefix) -> Prefix {
    let [address, _] = range(prefix);
    Prefix { address, ..prefix }
}

/// Returns true if an address is in a prefix.
pub(super) fn is_in(address: IpAddr, prefix: Prefix) -> bool {
    let [first, last] = range(prefix);
    first <= address && address <= last
}

/// The first and the last address of a prefix.
pub(crate) fn range(prefix: Prefix) -> [IpAddr; 2] {
    let len = u32::from(prefix.len);
    match prefix.address {
        IpAddr::V4(address) => {
            let rest = u32::MAX.checked_shr(len).unwrap_or(0);
            let bits = address.to_bits();
            [bits & !rest, bits | rest].map(|bits| Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(address) => {
            let rest = u128::MAX.checked_shr(len).unwrap_or(0);
            let bits = address.to_bits();
            [bits & !rest, bits | rest].map(|bits| Ipv6Addr::from_bits(bits).into())
        }
    }
}

/// Returns true for an address of a prefix that no vm can have: the first and the last one of an IPv4 prefix (RFC 1122
/// §3.2.1.3) unless it has only one or two (RFC 3021), and the first one of an IPv6 prefix, which its routers have (RFC
/// 4291 §2.6.1), unless it is that short, too (RFC 6164).
pub(crate) fn is_for_no_vm(space: Prefix, address: IpAddr) -> bool {
    let [first, last] = range(space);
    match address {
        IpAddr::V4(_) => space.len <= 30 && [first, last].contains(&address),
        IpAddr::V6(_) => space.len <= 126 && first == address,
    }
}
