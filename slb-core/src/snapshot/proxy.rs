//! The ports of a proxy.

use core::net::{IpAddr, Ipv4Addr};

use super::probe_map::{ProbeMap, RuleBucket};
use crate::mem::{Counter, Mem, Memory};
use crate::spec::{PortMode, ProxyPorts, SourceRewrite, Spec};
use crate::verdict::PortId;
use crate::wire::ethernet::MacAddress;

/// The compiled ports of a proxy.
#[derive(Debug)]
pub(crate) struct CompiledProxy<'m> {
    /// The port of the backends.
    pub(crate) backend: PortId,
    /// The only frontend port, in single mode.
    only: Option<PortId>,
    ports: ProbeMap<'m, u64, 5>,
    addresses: ProbeMap<'m, u64, 5>,
    source_rewrites: Mem<'m, SourceRewrite>,
    /// The next hop's MAC address for each backend; empty if no backend has one.
    next_hops: Mem<'m, Option<MacAddress>>,
    /// True if backends have or had next hops: connections outlive their backend.
    readdresses: bool,
}

impl<'m> CompiledProxy<'m> {
    /// Counts the memory that the ports take.
    pub(crate) fn count(spec: &Spec<'_>, counter: &mut Counter) -> Option<()> {
        if let Some(ports) = &spec.proxy {
            for _ in 0..2 {
                counter
                    .add::<RuleBucket>(ProbeMap::<u64, 5>::buckets_for(ports.frontends.len()))?;
            }
            counter.add::<SourceRewrite>(ports.source_rewrites.len())?;
            counter.add::<Option<MacAddress>>(next_hops_of(spec))?;
        }
        Some(())
    }

    /// Compiles ports that passed [the check](ProxyPorts::check); returns `None` if the memory is
    /// used up.
    pub(crate) fn new(
        spec: &ProxyPorts<'_>,
        next_hops: usize,
        previous: Option<&CompiledProxy<'_>>,
        memory: &mut impl Memory<'m>,
    ) -> Option<Self> {
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
            next_hops: memory.take(next_hops, None)?,
            readdresses: next_hops > 0 || previous.is_some_and(|previous| previous.readdresses),
        })
    }

    /// Returns true if clients are at a port.
    #[inline]
    pub(crate) fn is_frontend(&self, port: PortId) -> bool {
        self.only == Some(port) || self.ports.get(port.0.into()).is_some()
    }

    /// Returns the frontend port for an address; `None` if it may be at any of several.
    pub(crate) fn frontend_of(&self, address: Option<IpAddr>) -> Option<PortId> {
        let owner = || match address? {
            IpAddr::V4(address) => self.addresses.get(address.to_bits().into()),
            IpAddr::V6(_) => None,
        };
        self.only.or_else(|| Some(PortId(owner()? as u16)))
    }

    /// Returns the address that replaces a client's, if it is rewritten.
    pub(crate) fn rewritten(&self, client: IpAddr) -> Option<IpAddr> {
        let mut all = self.source_rewrites.iter();
        all.find_map(|rewrite| rewrite.apply(client))
    }

    /// Returns true if the addresses of some clients are rewritten.
    #[inline]
    pub(crate) fn rewrites_sources(&self) -> bool {
        !self.source_rewrites.is_empty()
    }

    /// Sets the next hop's MAC address for a backend. Does nothing if no backend has one.
    pub(crate) fn set_next_hop(&mut self, local: usize, next_hop: Option<MacAddress>) {
        if let Some(place) = self.next_hops.get_mut(local) {
            *place = next_hop;
        }
    }

    /// Returns true if packets of some connections get another destination MAC address.
    #[inline]
    pub(crate) fn readdresses(&self) -> bool {
        self.readdresses
    }

    /// Returns the next hop's MAC address for a backend, by its index among the locals; `None` if
    /// link headers stay.
    pub(crate) fn next_hop(&self, local: usize) -> Option<MacAddress> {
        self.next_hops.get(local).copied().flatten()
    }
}

/// Returns the number of next hops that a proxy keeps: one for each backend, or zero if no backend
/// has one.
pub(crate) fn next_hops_of(spec: &Spec<'_>) -> usize {
    let backends = || spec.pools.iter().flat_map(|pool| pool.backends);
    match backends().any(|backend| backend.next_hop.is_some()) {
        true => backends().count(),
        false => 0,
    }
}
