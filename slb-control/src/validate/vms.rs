//! Vms: backends and `[[vm]]`s that are one have one port, and others have MAC addresses of their own.

use std::collections::HashMap;
use std::net::IpAddr;

use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;

use crate::config::{Config, Role};
use crate::document::{Faults, Span};

/// The identity of a vm: its host, network and MAC address.
type Nic = (IpAddr, Vni, MacAddress);

/// A backend or a `[[vm]]`.
struct Member<'c> {
    name: &'c str,
    /// The pool of a backend.
    pool: Option<&'c str>,
    addresses: &'c [IpAddr],
    /// True if the file says its MAC address.
    has_mac: bool,
    port: Option<u16>,
    span: &'c Span,
}

impl Member<'_> {
    /// The item as the subject of a message.
    fn place(&self) -> String {
        match self.pool {
            Some(pool) => format!("pool {pool:?}: backend {:?}", self.name),
            None => format!("vm {:?}", self.name),
        }
    }

    /// The item within a message.
    fn named(&self) -> String {
        match self.pool {
            Some(pool) => format!("backend {:?} of pool {pool:?}", self.name),
            None => format!("vm {:?}", self.name),
        }
    }

    /// Returns true if two items name one vm: by its name, its port or one of its addresses. Two `[[vm]]`s never do.
    fn is_one_with(&self, other: &Self) -> bool {
        let is_one = self.name == other.name
            || (self.port.is_some() && self.port == other.port)
            || self
                .addresses
                .iter()
                .any(|own| other.addresses.contains(own));
        is_one && (self.pool.is_some() || other.pool.is_some())
    }

    /// Returns true if two items have addresses of one family.
    fn shares_family(&self, other: &Self) -> bool {
        let has = |member: &Self, is_ipv6| member.addresses.iter().any(|a| a.is_ipv6() == is_ipv6);
        [false, true]
            .into_iter()
            .any(|is_ipv6| has(self, is_ipv6) && has(other, is_ipv6))
    }
}

/// Adds a fault for each item that shares its network, host and MAC address with another vm, and for each that is at
/// another port than the rest of its vm.
///
/// Two items are one vm if they have one address, name or port, unless both are `[[vm]]`s. They are one also if both name
/// that MAC address and one is its IPv4 side, the other its IPv6 side; a backend need not name it beside a `[[vm]]`.
pub(super) fn check(config: &Config, faults: &Faults<'_>) {
    if config.node.role == Role::Proxy {
        return;
    }
    let mut vms: HashMap<Nic, Vec<Member<'_>>> = HashMap::new();
    for (nic, member) in members(config) {
        let known = vms.entry(nic).or_default();
        if let Some(first) = known.first() {
            let (_, _, mac) = nic;
            if !check_member(&member, first, known, mac, faults) {
                continue;
            }
        }
        known.push(member);
    }
}

/// Adds a fault unless an item is one vm with those that have its MAC address, and returns true then.
fn check_member(
    member: &Member<'_>,
    first: &Member<'_>,
    known: &[Member<'_>],
    mac: MacAddress,
    faults: &Faults<'_>,
) -> bool {
    let place = member.place();
    let said = known.iter().find(|other| other.port.is_some());
    if let Some(port) = member.port
        && let Some(other) = said
        && let Some(other_port) = other.port.filter(|&other| other != port)
    {
        let message = format!(
            "is one vm with {} (one MAC address, {mac}, in one network), which is at port {other_port}, but says \
             port {port}",
            other.named()
        );
        let place = match member.pool {
            Some(_) => place,
            None => format!("{place}: port"),
        };
        faults.add(member.span, place, message);
        return false;
    }
    let is_side = |other: &Member<'_>| {
        let is_meant = match (member.pool, other.pool) {
            (Some(_), Some(_)) => member.has_mac && other.has_mac,
            (None, Some(_)) => member.has_mac,
            _ => false,
        };
        is_meant && !member.shares_family(other)
    };
    let is_one_vm =
        known.iter().any(|other| member.is_one_with(other)) || known.iter().all(is_side);
    if is_one_vm {
        return true;
    }
    let (how, cure) = match (member.has_mac, member.pool, first.pool) {
        (false, ..) => (
            "MAC address, derived from its address,",
            "write a mac of its own",
        ),
        (true, Some(_), Some(_)) => ("MAC address", "two vms need two"),
        (true, None, None) => (
            "MAC address",
            "two vms need two, and one vm has all of its addresses in one [[vm]]",
        ),
        (true, ..) => (
            "MAC address",
            "two vms need two, and one vm has one name at both",
        ),
    };
    let message = format!(
        "its {how} {mac} is that of {} on the same host and network: {cure}",
        first.named()
    );
    faults.add(member.span, place, message);
    false
}

/// All backends, then all `[[vm]]`s.
fn members(config: &Config) -> impl Iterator<Item = (Nic, Member<'_>)> {
    let backends = config.pools.iter().flat_map(|pool| {
        let backends = pool.backends.iter();
        backends.map(|backend| {
            let member = Member {
                name: &backend.name,
                pool: Some(&pool.name),
                addresses: std::slice::from_ref(&backend.address),
                has_mac: backend.mac.is_some(),
                port: backend.port,
                span: &backend.span,
            };
            ((backend.host, pool.vni, backend.mac()), member)
        })
    });
    let vms = config.network_vms.iter().filter_map(|vm| {
        let network = config.networks.get(vm.network)?;
        let member = Member {
            name: &vm.name,
            pool: None,
            addresses: &vm.addresses,
            has_mac: vm.mac.is_some(),
            port: vm.port,
            span: &vm.span,
        };
        Some(((vm.host, network.vni, vm.mac()), member))
    });
    backends.chain(vms)
}
