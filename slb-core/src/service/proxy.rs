//! The ports of a proxy, as they are specified and as packets meet them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::probe_map::{ProbeMap, RuleBucket};
use super::spec::{Spec, SpecError};
use crate::mem::{Counter, Mem, Memory};
use crate::nat::connection::ALL_PORTS;
use crate::verdict::PortId;

/// The ports of a proxy, and what it does with clients' addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyPorts<'a> {
    /// One frontend port, or several.
    pub mode: PortMode,
    /// Where the clients are.
    pub frontends: &'a [FrontendPort],
    /// Where the backends are.
    pub backend: PortId,
    /// Clients that backends see under other addresses; the first that holds one counts.
    pub source_rewrites: &'a [SourceRewrite],
}

/// How many frontend ports a proxy has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortMode {
    /// One: what is not balanced goes from one side to the other as it is.
    #[default]
    Single,
    /// Any number, each with an address: what is not balanced goes to the port that has the address
    /// it is for, or to all of them.
    Multi,
}

/// A port with clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontendPort {
    /// Which.
    pub port: PortId,
    /// The address of who is there: required in [`PortMode::Multi`].
    pub address: Option<Ipv4Addr>,
}

/// Clients of one range of addresses that backends see as those of another, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRewrite {
    /// The first address of the clients' range.
    pub from: IpAddr,
    /// The first address of the other.
    pub to: IpAddr,
    /// How many bits both ranges' addresses have in common.
    pub prefix_len: u8,
}

impl SourceRewrite {
    /// The address that a client is seen under; `None` where it is not of the range.
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

    /// Whether both are ranges of one family.
    fn is_valid(&self) -> bool {
        let most = match (self.from, self.to) {
            (IpAddr::V4(_), IpAddr::V4(_)) => 32,
            (IpAddr::V6(_), IpAddr::V6(_)) => 128,
            _ => return false,
        };
        self.prefix_len <= most
    }
}

impl ProxyPorts<'_> {
    /// What of it cannot be.
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        let count = self.frontends.len();
        if count == 0 || (self.mode == PortMode::Single && count > 1) {
            return Err(SpecError::FrontendPorts { count });
        }
        for (index, one) in self.frontends.iter().enumerate() {
            let others = self.frontends.get(..index).unwrap_or_default();
            let port = one.port;
            let is_taken = |other: &FrontendPort| {
                other.port == port || (one.address.is_some() && other.address == one.address)
            };
            if port == self.backend || port == ALL_PORTS || others.iter().any(is_taken) {
                return Err(SpecError::UnusablePort { port });
            }
            if self.mode == PortMode::Multi && one.address.is_none() {
                return Err(SpecError::FrontendPortAddress { port });
            }
        }
        match self.source_rewrites.iter().position(|r| !r.is_valid()) {
            Some(index) => Err(SpecError::SourceRewrite { index }),
            None => Ok(()),
        }
    }
}

/// The ports as packets meet them.
#[derive(Debug)]
pub(crate) struct CompiledProxy<'m> {
    /// Where the backends are.
    pub(crate) backend: PortId,
    /// The one frontend port of single mode.
    only: Option<PortId>,
    ports: ProbeMap<'m, u64, 5>,
    addresses: ProbeMap<'m, u64, 5>,
    source_rewrites: Mem<'m, SourceRewrite>,
}

impl<'m> CompiledProxy<'m> {
    /// Counts the memory that it takes.
    pub(crate) fn count(spec: &Spec<'_>, counter: &mut Counter) -> Option<()> {
        if let Some(ports) = &spec.proxy {
            for _ in 0..2 {
                counter
                    .add::<RuleBucket>(ProbeMap::<u64, 5>::buckets_for(ports.frontends.len()))?;
            }
            counter.add::<SourceRewrite>(ports.source_rewrites.len())?;
        }
        Some(())
    }

    /// Compiles ports that were [checked](ProxyPorts::check). `None` where the memory is used up.
    pub(crate) fn new(spec: &ProxyPorts<'_>, memory: &mut impl Memory<'m>) -> Option<Self> {
        const NONE: SourceRewrite = SourceRewrite {
            from: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            to: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            prefix_len: 0,
        };
        let buckets = ProbeMap::<u64, 5>::buckets_for(spec.frontends.len());
        let mut map = || Some(ProbeMap::new(memory.take(buckets, RuleBucket::EMPTY)?));
        let (mut ports, mut addresses) = (map()?, map()?);
        for one in spec.frontends {
            let port = u32::from(one.port.0);
            let _ = ports.insert(port.into(), port);
            if let Some(address) = one.address {
                let _ = addresses.insert(address.to_bits().into(), port);
            }
        }
        let mut source_rewrites = memory.take(spec.source_rewrites.len(), NONE)?;
        source_rewrites.copy_from_slice(spec.source_rewrites);
        let first = spec.frontends.first().map(|one| one.port);
        Some(Self {
            backend: spec.backend,
            only: first.filter(|_| spec.mode == PortMode::Single),
            ports,
            addresses,
            source_rewrites,
        })
    }

    /// Whether clients are at a port.
    #[inline]
    pub(crate) fn is_frontend(&self, port: PortId) -> bool {
        self.only == Some(port) || self.ports.get(port.0.into()).is_some()
    }

    /// The frontend port where an address is; `None`: at any of several.
    pub(crate) fn frontend_of(&self, address: Option<IpAddr>) -> Option<PortId> {
        let owner = || match address? {
            IpAddr::V4(address) => self.addresses.get(address.to_bits().into()),
            IpAddr::V6(_) => None,
        };
        self.only.or_else(|| Some(PortId(owner()? as u16)))
    }

    /// The address that a client is seen under, where it is another.
    pub(crate) fn rewritten(&self, client: IpAddr) -> Option<IpAddr> {
        let mut all = self.source_rewrites.iter();
        all.find_map(|rewrite| rewrite.apply(client))
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
