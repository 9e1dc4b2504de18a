//! The specification of a proxy's ports.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Prefix, SpecError};
use crate::nat::connection::ALL_PORTS;
use crate::verdict::PortId;

/// The ports of a proxy, and its rewrites of clients' addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyPorts<'a> {
    /// The number of frontend ports: one or several.
    pub mode: PortMode,
    /// The ports of the clients.
    pub frontends: &'a [FrontendPort],
    /// The port of the backends.
    pub backend: PortId,
    /// Rewrites of clients' addresses. The first one that contains a client applies, so put
    /// exceptions before their range.
    pub source_rewrites: &'a [SourceRewrite],
}

/// The number of frontend ports of a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortMode {
    /// One frontend port: packets that are not balanced cross unchanged.
    #[default]
    Single,
    /// Any number of frontend ports, each with an address: packets that are not balanced go to the
    /// port with their destination address, or to all ports.
    Multi,
}

/// A port with clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontendPort {
    /// Number of the port.
    pub port: PortId,
    /// The address of the client at the port; required in [`PortMode::Multi`].
    pub address: Option<Ipv4Addr>,
}

/// A rewrite of clients' addresses from one range to another of equal size, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRewrite {
    /// The first address of the clients' range.
    pub from: IpAddr,
    /// The first address of the other range.
    pub to: IpAddr,
    /// Length of both ranges' common prefix in bits.
    pub prefix_len: u8,
}

impl SourceRewrite {
    /// Returns the address that replaces a client's; `None` if the client is not in the range.
    pub fn apply(&self, client: IpAddr) -> Option<IpAddr> {
        match (client, self.from, self.to) {
            (IpAddr::V4(client), IpAddr::V4(from), IpAddr::V4(to)) => {
                let host = u32::MAX.checked_shr(self.prefix_len.into()).unwrap_or(0);
                let (client, from, to) = (client.to_bits(), from.to_bits(), to.to_bits());
                let held = (client ^ from) & !host == 0;
                held.then(|| Ipv4Addr::from_bits(to & !host | client & host).into())
            }
            (IpAddr::V6(client), IpAddr::V6(from), IpAddr::V6(to)) => {
                let host = u128::MAX.checked_shr(self.prefix_len.into()).unwrap_or(0);
                let (client, from, to) = (client.to_bits(), from.to_bits(), to.to_bits());
                let held = (client ^ from) & !host == 0;
                held.then(|| Ipv6Addr::from_bits(to & !host | client & host).into())
            }
            _ => None,
        }
    }

    /// Returns true if both are ranges of the same family.
    fn is_valid(&self) -> bool {
        let most = match (self.from, self.to) {
            (IpAddr::V4(_), IpAddr::V4(_)) => 32,
            (IpAddr::V6(_), IpAddr::V6(_)) => 128,
            _ => return false,
        };
        self.prefix_len <= most
    }

    /// Returns the first and the last address of both ranges; `None` if they are invalid.
    fn ranges(&self) -> Option<[[IpAddr; 2]; 2]> {
        let range = |address| {
            let len = self.prefix_len;
            Prefix { address, len }.range()
        };
        Some([range(self.from)?, range(self.to)?])
    }

    /// Returns true if hosts can have all addresses of both ranges.
    fn is_unicast(&self) -> bool {
        self.ranges()
            .is_none_or(|ranges| ranges.as_flattened().iter().copied().all(is_unicast))
    }

    /// Returns true if `earlier` covers all clients of this rewrite, or if both rewrite to a common
    /// address.
    fn overlaps(&self, earlier: &Self) -> bool {
        let (Some([clients, seen]), Some([other_clients, other_seen])) =
            (self.ranges(), earlier.ranges())
        else {
            return false;
        };
        let is_within = other_clients[0] <= clients[0] && clients[1] <= other_clients[1];
        let share = seen[0] <= other_seen[1] && other_seen[0] <= seen[1];
        (is_within || share) && self.from.is_ipv6() == earlier.from.is_ipv6()
    }
}

/// Returns true if a host can have an address: 0.0.0.0/8 is "this network", 240.0.0.0/4 reserved
/// (RFC 1122 §3.2.1.3).
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !matches!(address.octets()[0], 0 | 224..),
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_multicast(),
    }
}

impl ProxyPorts<'_> {
    /// Yields every fault of the ports.
    pub(crate) fn faults(&self) -> impl Iterator<Item = SpecError> + '_ {
        let count = self.frontends.len();
        let is_single = self.mode == PortMode::Single;
        let wrong_count = count == 0 || (is_single && count > 1);
        let wrong_count = wrong_count.then_some(SpecError::FrontendPorts { count });
        let ports = self.frontends.iter().enumerate();
        let ports = ports.filter_map(move |(index, one)| {
            let others = self.frontends.get(..index).unwrap_or_default();
            let port = one.port;
            let is_taken = |other: &FrontendPort| {
                other.port == port || (one.address.is_some() && other.address == one.address)
            };
            if port == self.backend || port == ALL_PORTS || others.iter().any(is_taken) {
                return Some(SpecError::UnusablePort { port });
            }
            let has_none = self.mode == PortMode::Multi && one.address.is_none();
            has_none.then_some(SpecError::FrontendPortAddress { port })
        });
        let rewrites = self.source_rewrites.iter().enumerate();
        let rewrites = rewrites.filter_map(|(index, rewrite)| {
            if !rewrite.is_valid() {
                return Some(SpecError::SourceRewrite { index });
            }
            if !rewrite.is_unicast() {
                return Some(SpecError::SourceRewriteAddress { index });
            }
            let mut earlier = self.source_rewrites.iter().take(index);
            let first = earlier.position(|earlier| rewrite.overlaps(earlier))?;
            let second = index;
            Some(SpecError::SourceRewriteOverlap { first, second })
        });
        wrong_count.into_iter().chain(ports).chain(rewrites)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_rewrite_keeps_the_host_part_and_takes_no_others() {
        let rewrite = |from: &str, to: &str, prefix_len| SourceRewrite {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            prefix_len,
        };
        let apply = |rewrite: SourceRewrite, client: &str| rewrite.apply(client.parse().unwrap());
        let some = |seen: &str| Some(seen.parse().unwrap());
        let net = rewrite("10.1.2.0", "192.168.7.0", 24);
        assert_eq!(apply(net, "10.1.2.77"), some("192.168.7.77"));
        assert_eq!(apply(net, "10.1.3.77"), None);
        assert_eq!(apply(net, "fd00::1"), None);
        let one = rewrite("10.1.2.3", "192.168.7.9", 32);
        assert_eq!(apply(one, "10.1.2.3"), some("192.168.7.9"));
        assert_eq!(apply(one, "10.1.2.2"), None);
        let all = rewrite("0.0.0.0", "0.0.0.0", 0);
        assert_eq!(apply(all, "10.1.2.3"), some("10.1.2.3"));
        let wide = rewrite("fd00:1::", "fd00:2::", 64);
        assert_eq!(apply(wide, "fd00:1::9"), some("fd00:2::9"));
        assert_eq!(apply(wide, "fd00:3::9"), None);
    }
}
