//! Laws between items that no map of a snapshot shows: addresses that are used twice, and outbound rules that
//! take each other's ports.

use core::net::IpAddr;

use super::Snapshot;
use super::faults::{backends, duplicates_of};
use crate::spec::{Backend, Protocol, RuleItem, Spec, SpecError, derived_mac};

/// The use of an address.
#[derive(Clone, Copy)]
enum Use {
    /// A frontend, by its index.
    Frontend(usize),
    /// A backend, by its pool's index and its own.
    Backend(usize, usize),
    /// The address that backends see in the place of the client's.
    SourceNat(RuleItem),
}

/// All conflicts of a spec.
pub(super) fn all<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    let frontends = (0..).zip(spec.frontends);
    let frontends = frontends.map(|(index, one)| (one.address, Use::Frontend(index)));
    let others = uses(spec);
    let same = duplicates_of(frontends.chain(others));
    let taken = same.filter_map(|(first, second)| match first {
        Use::Frontend(frontend) => conflict(spec, frontend, second),
        Use::Backend(..) | Use::SourceNat(_) => None,
    });
    taken.chain(beside_vips(spec))
}

/// The conflicts that have nothing to do with VIPs.
fn beside_vips<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    two_macs(spec).chain(shared_ports(spec))
}

/// The addresses of backends and source NAT.
fn uses<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = (IpAddr, Use)> + Clone + 's {
    let pools = (0..).zip(spec.pools);
    let backends = pools.flat_map(|(pool, of)| {
        let all = (0..).zip(of.backends);
        all.map(move |(index, backend)| (backend.address, Use::Backend(pool, index)))
    });
    let rules = (0..).zip(spec.rules);
    let rules = rules.map(|(index, rule)| (RuleItem::Rule(index), rule.terms.source_nat));
    let nat = (0..).zip(spec.inbound_nat);
    let nat = nat.map(|(index, nat)| (RuleItem::InboundNat(index), nat.terms.source_nat));
    let sources = rules.chain(nat);
    let sources = sources.filter_map(|(item, address)| Some((address?, Use::SourceNat(item))));
    backends.chain(sources)
}

/// The fault of a use of a frontend's address, if it is one.
fn conflict(spec: &Spec<'_>, frontend: usize, taken: Use) -> Option<SpecError> {
    match taken {
        Use::Frontend(_) => None, // reported as a duplicate
        // A proxy's backends may be VIPs of other rules, which lead elsewhere.
        Use::Backend(pool, backend) => (spec.proxy.is_none() || leads(spec, frontend, pool))
            .then_some(SpecError::FrontendBackend {
                frontend,
                pool,
                backend,
            }),
        Use::SourceNat(item) => Some(SpecError::SourceNatFrontend { item, frontend }),
    }
}

/// Returns true if a rule of a frontend leads to a pool.
fn leads(spec: &Spec<'_>, frontend: usize, pool: usize) -> bool {
    let rules = spec.rules.iter().map(|rule| (rule.frontend, rule.pool));
    let nat = spec.inbound_nat.iter().map(|nat| (nat.frontend, nat.pool));
    rules.chain(nat).any(|pair| pair == (frontend, pool))
}

/// Backends of this node that have one address in one network, and two MAC addresses.
fn two_macs<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    let all = (0..).zip(backends(spec));
    let local = all.filter(|(_, (_, _, backend))| spec.proxy.is_none() && backend.port.is_some());
    let mac = |backend: &Backend<'_>| backend.mac.unwrap_or(derived_mac(backend.address)).0;
    let keyed = local.map(move |(index, (_, pool, backend))| {
        ((backend.address, pool.vni.get()), (index, mac(backend)))
    });
    let others = duplicates_of(keyed).filter(|(first, second)| first.1 != second.1);
    others.map(|(first, second)| SpecError::TwoMacs {
        first: first.0,
        second: second.0,
    })
}

/// Outbound rules that let one protocol of one pool out under one frontend: the first one counts, so the ports
/// that the others are dealt would be of no use.
fn shared_ports<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    let protocols = |protocol| match protocol {
        Protocol::All => &[Protocol::Tcp, Protocol::Udp, Protocol::Icmp][..],
        Protocol::Tcp => &[Protocol::Tcp],
        Protocol::Udp => &[Protocol::Udp],
        Protocol::Icmp => &[Protocol::Icmp],
    };
    let rules = (0..).zip(spec.outbound);
    let keyed = rules.flat_map(move |(index, rule)| {
        let frontends = rule.frontends.iter();
        frontends.flat_map(move |&frontend| {
            let protocols = protocols(rule.protocol).iter();
            protocols.map(move |&protocol| ((frontend, rule.pool, protocol as u8), index))
        })
    });
    // A frontend that one rule names twice is reported as such.
    let pairs = duplicates_of(keyed).filter(|(first, second): &(usize, usize)| first != second);
    let mut last = None;
    let once = pairs.filter(move |&pair| last.replace(pair) != Some(pair));
    once.map(|(first, second)| SpecError::ConflictingOutbound { first, second })
}

impl Snapshot<'_> {
    /// The first conflict of a spec whose VIPs are compiled.
    ///
    /// # Cost
    /// A look-up for each backend and rule, and [`beside_vips`].
    pub(super) fn conflict(&self, spec: &Spec<'_>) -> Option<SpecError> {
        let mut uses = uses(spec);
        let taken =
            uses.find_map(|(address, taken)| conflict(spec, self.frontend_at(address)?, taken));
        taken.or_else(|| beside_vips(spec).next())
    }
}
