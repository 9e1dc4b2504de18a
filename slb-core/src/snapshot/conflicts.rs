//! Checks between items that no map of a snapshot covers: addresses that are used twice, and
//! outbound rules that compete for ports.

use core::net::IpAddr;

use super::Snapshot;
use super::faults::{backends, duplicates_of, finder, private_networks};
use super::locals::owner;
use crate::spec::{Backend, Protocol, PublicAddressFault, RuleItem, Spec, SpecError, derived_mac};
use crate::wire::vxlan::Vni;

/// The use of an address.
#[derive(Clone, Copy)]
enum Use {
    /// A frontend, by its index.
    Frontend(usize),
    /// A backend, by its pool's index and its own.
    Backend(usize, usize),
    /// A vm that is no backend, by its index.
    Vm(usize),
    /// The address that backends see instead of the client's.
    SourceNat(RuleItem),
}

/// Yields all conflicts of a spec.
pub(super) fn all<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    let frontends = (0..).zip(spec.frontends);
    // A private frontend can conflict with its own network, which it leads into.
    let network_of = private_networks(spec);
    let public = frontends.filter(move |(index, _)| network_of(*index).is_none());
    let frontends = public.map(|(index, one)| (one.address, Use::Frontend(index)));
    let network = networks(spec);
    let others = uses(spec).filter(move |(_, vni, _)| vni.and_then(&network).is_none());
    let others = others.map(|(address, _, taken)| (address, taken));
    let same = duplicates_of(frontends.chain(others));
    let network = networks(spec);
    let led = led(spec).map(|(frontend, address, vni)| (address, vni, Use::Frontend(frontend)));
    let seats = uses(spec).filter_map(|(address, vni, taken)| Some((address, vni?, taken)));
    let seats = seats.chain(
        spec.vm_seats()
            .map(|(vm, seat)| (seat.address, seat.vni, Use::Vm(vm))),
    );
    let inside = led
        .chain(seats)
        .filter(move |(_, vni, _)| network(*vni).is_some());
    let inside = duplicates_of(inside.map(|(address, vni, taken)| ((address, vni.get()), taken)));
    let taken = same
        .chain(inside)
        .filter_map(|(first, second)| match first {
            Use::Frontend(frontend) => conflict(spec, frontend, second),
            Use::Backend(..) | Use::Vm(_) | Use::SourceNat(_) => None,
        });
    taken.chain(beside_vips(spec))
}

/// Finds the index of the network that has a VNI. A proxy's backends are in none.
fn networks<'s>(spec: &'s Spec<'_>) -> impl Fn(Vni) -> Option<usize> + Clone + 's {
    let networks = (0..).zip(spec.networks).filter(|_| spec.proxy.is_none());
    let find = finder(networks.map(|(index, network)| (network.vni.get(), index)));
    move |vni| find(vni.get())
}

/// Yields the frontends that lead into each VNI: those whose rules, inbound NAT or outbound rules
/// have a pool there, and the private frontends of its network.
fn led<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = (usize, IpAddr, Vni)> + Clone + 's {
    let rules = spec.rules.iter().map(|rule| (rule.frontend, rule.pool));
    let nat = spec.inbound_nat.iter().map(|nat| (nat.frontend, nat.pool));
    let outbound = spec.outbound.iter().flat_map(|rule| {
        let frontends = rule.frontends.iter();
        frontends.map(move |&frontend| (frontend, rule.pool))
    });
    let all = rules.chain(nat).chain(outbound);
    let all = all.filter_map(|(frontend, pool)| {
        let (found, pool) = (spec.frontends.get(frontend)?, spec.pools.get(pool)?);
        Some((frontend, found.address, pool.vni))
    });
    let private = spec.private_frontends();
    let private = private.filter_map(|(index, frontend, network)| {
        let network = spec.networks.get(network)?;
        Some((index, frontend.address, network.vni))
    });
    all.chain(private)
}

/// Yields the conflicts that do not involve VIPs.
fn beside_vips<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = SpecError> + 's {
    two_macs(spec).chain(shared_ports(spec))
}

/// Yields the addresses of backends, each with its VNI, and of source NAT.
fn uses<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = (IpAddr, Option<Vni>, Use)> + Clone + 's {
    let pools = (0..).zip(spec.pools);
    let backends = pools.flat_map(|(pool, of)| {
        let all = (0..).zip(of.backends);
        all.map(move |(index, backend)| (backend.address, Some(of.vni), Use::Backend(pool, index)))
    });
    let rules = (0..).zip(spec.rules);
    let rules = rules.map(|(index, rule)| (RuleItem::Rule(index), rule.terms.source_nat));
    let nat = (0..).zip(spec.inbound_nat);
    let nat = nat.map(|(index, nat)| (RuleItem::InboundNat(index), nat.terms.source_nat));
    let sources = rules.chain(nat);
    let sources =
        sources.filter_map(|(item, address)| Some((address?, None, Use::SourceNat(item))));
    backends.chain(sources)
}

/// Returns the fault if an item must not use a frontend's address.
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
        Use::Vm(vm) => Some(SpecError::FrontendVm { frontend, vm }),
        Use::SourceNat(item) => Some(SpecError::SourceNatFrontend { item, frontend }),
    }
}

/// Returns true if a rule of a frontend leads to a pool.
fn leads(spec: &Spec<'_>, frontend: usize, pool: usize) -> bool {
    let rules = spec.rules.iter().map(|rule| (rule.frontend, rule.pool));
    let nat = spec.inbound_nat.iter().map(|nat| (nat.frontend, nat.pool));
    rules.chain(nat).any(|pair| pair == (frontend, pool))
}

/// Yields backends of this node with the same address and network, but different MAC addresses.
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

/// Yields outbound rules with the same protocol, pool and frontend: only the first one takes
/// effect, so the ports of the others would be wasted.
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
    /// Returns the first conflict of a spec whose VIPs are compiled.
    ///
    /// # Cost
    /// A few look-ups for each backend and rule, and [`beside_vips`].
    pub(super) fn conflict(&self, spec: &Spec<'_>) -> Option<SpecError> {
        let networks = &self.nat.networks;
        let is_apart = |vni: Option<Vni>| {
            let network = vni.and_then(|vni| networks.of(vni));
            network.is_some() && spec.proxy.is_none()
        };
        let mut uses = uses(spec).filter(|(_, vni, _)| !is_apart(*vni));
        let taken =
            uses.find_map(|(address, _, taken)| conflict(spec, self.frontend_at(address)?, taken));
        let mut led = led(spec).filter(|_| spec.proxy.is_none());
        let inside = led.find_map(|(frontend, address, vni)| {
            let taken = match networks.holder(address, vni)? {
                Ok(backend) => {
                    let (pool, backend) = owner(spec, backend as usize);
                    Use::Backend(pool, backend)
                }
                Err(vm) => Use::Vm(vm as usize),
            };
            conflict(spec, frontend, taken)
        });
        let mut publics = (0..).zip(spec.public_addresses);
        let public = publics.find_map(|(index, public)| {
            let frontend = self.frontend_at(public.address)?;
            Some(PublicAddressFault::Frontend { frontend }.of(index))
        });
        let found = taken.or(inside).or(public);
        found.or_else(|| beside_vips(spec).next())
    }

    /// Records whether the address of any vm or gateway is a VIP.
    pub(super) fn note_vips(&mut self, spec: &Spec<'_>) {
        let gateways = spec.networks.iter().flat_map(|network| network.gateways);
        let seats = spec.backend_seats().map(|seat| seat.address);
        let seats = seats.chain(spec.vm_seats().map(|(_, seat)| seat.address));
        let mut taken = seats.chain(gateways.copied());
        let any = spec.proxy.is_none() && taken.any(|address| self.is_vip(address));
        self.nat.networks.set_have_vips(any);
    }
}
