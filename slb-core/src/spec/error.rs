//! Faults of a [`Spec`].

mod message;

use core::fmt;
use core::net::IpAddr;

use self::message::Named;
use super::{PublicAddressFault, Spec};
use crate::maglev::MaglevError;
use crate::verdict::PortId;

/// A rule of a [`Spec`], by its index in the slice that contains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleItem {
    /// A load-balancing rule: an index in [`Spec::rules`].
    Rule(usize),
    /// An inbound NAT rule or pool: an index in [`Spec::inbound_nat`].
    InboundNat(usize),
    /// An outbound rule: an index in [`Spec::outbound`].
    Outbound(usize),
    /// The SNAT ports of a frontend that outbound rules use: an index in [`Spec::frontends`].
    SnatPorts(usize),
}

/// The reason why a [`Spec`] cannot be compiled. Indexes refer to its slices.
///
/// [`Spec::faults`] yields every fault of a spec; [`named`](Self::named) formats a fault with the
/// names of its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecError {
    /// Two frontends have the same address.
    DuplicateFrontend {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// Two backends have the same name and address, in pools with the same name. Indexes count over
    /// all pools.
    DuplicateBackend {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// Two rules have the same name.
    DuplicateRule {
        /// The earlier one.
        first: RuleItem,
        /// The later one.
        second: RuleItem,
    },
    /// Two rules match the same packets.
    ConflictingRules {
        /// The earlier one.
        first: RuleItem,
        /// The later one.
        second: RuleItem,
    },
    /// A rule refers to a frontend, pool or backend that does not exist.
    Dangling {
        /// The rule.
        item: RuleItem,
        /// The kind of item that the rule refers to: `frontend`, `pool` or `backend`.
        field: &'static str,
        /// The index that the rule gives.
        index: usize,
        /// The number of items of that kind.
        count: usize,
    },
    /// A rule refers to probe results that do not exist, or to those of another pool.
    DanglingHealth {
        /// The rule.
        rule: usize,
    },
    /// Probe results refer to a pool that does not exist, or do not match its number of backends.
    PoolHealth {
        /// The index in [`Spec::health`].
        health: usize,
        /// Backends of the pool.
        expected: usize,
        /// Results that were given.
        given: usize,
    },
    /// Two backends of a pool have the same seat, and neither has weight 0 or drains.
    SeatTaken {
        /// The pool.
        pool: usize,
        /// One of them, by its index in the pool.
        first: usize,
        /// The other one, by its index in the pool.
        second: usize,
    },
    /// Past weights do not match the pool's number of backends.
    PoolPast {
        /// The pool.
        pool: usize,
        /// Index in [`Pool::past`](super::Pool::past).
        past: usize,
        /// Backends of the pool.
        expected: usize,
        /// Weights that were given.
        given: usize,
    },
    /// A rule for all protocols or for ICMP has a frontend port, or one for TCP or UDP has none.
    RulePort {
        /// The rule.
        rule: usize,
    },
    /// A rule's frontend and one of its backends have addresses of different families.
    MixedFamilies {
        /// The rule.
        item: RuleItem,
        /// The frontend.
        frontend: usize,
        /// The pool.
        pool: usize,
        /// The backend, within the pool.
        backend: usize,
    },
    /// The source NAT address is not of the frontend's family.
    SourceNatFamily {
        /// The rule.
        item: RuleItem,
    },
    /// A pool's Maglev table cannot be built.
    Table {
        /// The pool.
        pool: usize,
        /// The error of the table.
        error: MaglevError,
    },
    /// A backend's host has an address of a family in which the underlay has none.
    NoUnderlayAddress {
        /// The pool.
        pool: usize,
        /// The backend, within the pool.
        backend: usize,
    },
    /// A mux has an address of a family in which the underlay has none.
    NoUnderlayAddressForMux {
        /// The index in [`Spec::muxes`].
        mux: usize,
    },
    /// An inbound NAT rule is neither for TCP nor for UDP, or has port 0.
    NatPort {
        /// The index in [`Spec::inbound_nat`].
        rule: usize,
    },
    /// An inbound NAT pool has fewer ports than its pool has instances.
    NatPoolFull {
        /// The index in [`Spec::inbound_nat`].
        rule: usize,
        /// The first instance without a port.
        instance: u32,
    },
    /// Two backends of a pool have the same instance number, by which an outbound rule or an
    /// inbound NAT pool assigns ports.
    DuplicateInstance {
        /// The pool.
        pool: usize,
        /// The earlier backend, within the pool.
        first: usize,
        /// The later backend, within the pool.
        second: usize,
        /// The instance number of both.
        instance: u32,
    },
    /// An outbound rule has no frontend.
    NoFrontend {
        /// The index in [`Spec::outbound`].
        rule: usize,
    },
    /// An outbound rule names a frontend twice.
    RepeatedFrontend {
        /// The index in [`Spec::outbound`].
        rule: usize,
        /// The frontend.
        frontend: usize,
    },
    /// The ports for each backend are not a multiple of 8, or zero.
    PortsPerBackend {
        /// The index in [`Spec::outbound`].
        rule: usize,
    },
    /// A frontend has fewer ports than its outbound rules need.
    OutOfPorts {
        /// The outbound rule that gets too few ports.
        rule: usize,
        /// The frontend.
        frontend: usize,
        /// Ports of the frontend that all outbound rules need.
        needed: u32,
        /// Ports that no other rule uses.
        available: u32,
    },
    /// A proxy has no frontend port, or several in [`PortMode::Single`](super::PortMode::Single).
    FrontendPorts {
        /// The number of frontend ports.
        count: usize,
    },
    /// A frontend port has no address in [`PortMode::Multi`](super::PortMode::Multi).
    FrontendPortAddress {
        /// The port.
        port: PortId,
    },
    /// Two ports of a proxy have the same number or the same address, or a port's number is 65535.
    UnusablePort {
        /// The port.
        port: PortId,
    },
    /// A prefix is longer than addresses of its family.
    InsidePrefix {
        /// The index in [`Spec::inside`].
        index: usize,
    },
    /// A frontend has the source address of probes: vms' answers to probes would go to the
    /// frontend.
    ProbeSourceFrontend {
        /// The frontend's index.
        frontend: usize,
    },
    /// A backend has the source address of probes: its packets would look like the prober's.
    ProbeSourceBackend {
        /// The pool's index.
        pool: usize,
        /// The backend's index in its pool.
        backend: usize,
    },
    /// The ranges of a source rewrite have different families, or prefixes longer than addresses.
    SourceRewrite {
        /// The index in [`ProxyPorts::source_rewrites`](super::ProxyPorts::source_rewrites).
        index: usize,
    },
    /// A source rewrite has an address that no client can have: a multicast, reserved or unspecified one, or
    /// the broadcast address.
    SourceRewriteAddress {
        /// The index in [`ProxyPorts::source_rewrites`](super::ProxyPorts::source_rewrites).
        index: usize,
    },
    /// An earlier source rewrite covers all clients of this one, or two source rewrites use the
    /// same addresses, so that two clients would get the same address.
    SourceRewriteOverlap {
        /// The index of the earlier one in
        /// [`ProxyPorts::source_rewrites`](super::ProxyPorts::source_rewrites).
        first: usize,
        /// The index of the later one.
        second: usize,
    },
    /// A frontend has the address of a backend: packets for the backend would match the VIP. At a
    /// proxy, this applies only to backends of the frontend's rules. For a pool in a
    /// [network](super::Network), it applies only if the frontend leads into that network by a
    /// rule, inbound NAT or an outbound rule, since networks are isolated.
    FrontendBackend {
        /// The frontend's index.
        frontend: usize,
        /// The pool's index.
        pool: usize,
        /// The backend's index in its pool.
        backend: usize,
    },
    /// A frontend has the address of a vm, and leads into the vm's network by a rule, inbound NAT
    /// or an outbound rule: packets for the vm would match the VIP.
    FrontendVm {
        /// The frontend's index.
        frontend: usize,
        /// The index in [`Spec::vms`].
        vm: usize,
    },
    /// The source NAT address is a frontend's: answers would match the VIP.
    SourceNatFrontend {
        /// The rule.
        item: RuleItem,
        /// The frontend's index.
        frontend: usize,
    },
    /// A backend has the MAC address of this node, so its packets would come back.
    OwnMac {
        /// The pool's index.
        pool: usize,
        /// The backend's index in its pool.
        backend: usize,
    },
    /// The next hop of a backend has the MAC address of this node.
    OwnNextHop {
        /// The pool's index.
        pool: usize,
        /// The backend's index in its pool.
        backend: usize,
    },
    /// The next hop of the underlay has the MAC address of this node.
    OwnUnderlayNextHop,
    /// Two backends of this node have the same address and network, but different MAC addresses.
    /// Indexes count over all pools.
    TwoMacs {
        /// The earlier backend.
        first: usize,
        /// The later backend.
        second: usize,
    },
    /// Two outbound rules have the same pool, frontend and protocol.
    ConflictingOutbound {
        /// The index of the earlier one in [`Spec::outbound`].
        first: usize,
        /// The index of the later one.
        second: usize,
    },
    /// Two backends share a port of this node, or a network and MAC address, without being one
    /// vm. Indexes count over all pools.
    PortConflict {
        /// The earlier backend.
        first: usize,
        /// The later backend.
        second: usize,
        /// The port of the later one.
        port: PortId,
    },
    /// Two networks have the same VXLAN network identifier.
    DuplicateNetwork {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// The prefix of a network's address space is longer than addresses of its family.
    NetworkPrefix {
        /// The network.
        network: usize,
        /// The index in [`Network::prefixes`](super::Network::prefixes).
        index: usize,
    },
    /// The address of a vm or gateway is in none of its network's address spaces.
    OutsideNetwork {
        /// The network.
        network: usize,
        /// The address.
        address: IpAddr,
    },
    /// Two vms of a network have the same address, but different MAC addresses, ports or hosts.
    AddressTaken {
        /// The network.
        network: usize,
        /// The address.
        address: IpAddr,
    },
    /// A vm refers to a network that does not exist.
    DanglingNetwork {
        /// The index in [`Spec::vms`].
        vm: usize,
        /// The number of networks.
        count: usize,
    },
    /// A vm that is no backend has no address.
    VmWithoutAddress {
        /// The index in [`Spec::vms`].
        vm: usize,
    },
    /// A vm's host has an address of a family in which the underlay has none.
    NoUnderlayAddressForVm {
        /// The index in [`Spec::vms`].
        vm: usize,
    },
    /// A network names a frontend that does not exist.
    DanglingFrontend {
        /// The index of the network in [`Spec::networks`].
        network: usize,
        /// The index that the network has.
        frontend: usize,
        /// The number of frontends.
        count: usize,
    },
    /// Two networks name the same frontend, or one network names it twice.
    SharedFrontend {
        /// The index of the frontend in [`Spec::frontends`].
        frontend: usize,
    },
    /// A gateway of a network has the address of a private frontend of that network.
    PrivateFrontendTaken {
        /// The index of the frontend in [`Spec::frontends`].
        frontend: usize,
    },
    /// A rule leads from a private frontend to a pool outside of the frontend's network.
    PoolOutsideNetwork {
        /// The rule.
        item: RuleItem,
        /// The index of the frontend in [`Spec::frontends`].
        frontend: usize,
        /// The index of the pool in [`Spec::pools`].
        pool: usize,
    },
    /// A rule of a private frontend sends answers through a mux, although they go to the calling
    /// vm's host.
    PrivateThroughMux {
        /// The rule.
        item: RuleItem,
    },
    /// An outbound rule uses a private frontend, which means nothing outside of its network.
    PrivateOutbound {
        /// The index of the rule in [`Spec::outbound`].
        rule: usize,
        /// The index of the frontend in [`Spec::frontends`].
        frontend: usize,
    },
    /// A proxy's spec has a private frontend: a proxy does not support networks, and would let all
    /// clients reach it.
    PrivateAtProxy {
        /// The index of the frontend in [`Spec::frontends`].
        frontend: usize,
    },
    /// A vm that is no backend shares a port of this node, or a network and MAC address, with another vm.
    VmPortConflict {
        /// The index in [`Spec::vms`].
        vm: usize,
        /// Port of the vm.
        port: PortId,
    },
    /// Two access lists have one name.
    DuplicateSecurityList {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// Two rules of an access list have one name.
    DuplicateSecurityRule {
        /// The index of the list in [`Spec::security_lists`].
        list: usize,
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// A rule of an access list has a priority of 65000 or more, a prefix that is longer than addresses of its
    /// family, or a range of ports that ends before its beginning.
    SecurityRule {
        /// The index of the list in [`Spec::security_lists`].
        list: usize,
        /// The index in [`SecurityList::rules`](super::SecurityList::rules).
        rule: usize,
        /// The field.
        field: &'static str,
    },
    /// A pool, a vm or a network refers to an access list that does not exist.
    DanglingSecurityList {
        /// The index that was given.
        list: usize,
        /// The number of lists.
        count: usize,
    },
    /// A public address of a vm is refused.
    PublicAddress {
        /// The index in [`Spec::public_addresses`].
        index: usize,
        /// The reason.
        fault: PublicAddressFault,
    },
    /// The spec has more items of a kind than can be numbered.
    TooMany {
        /// The kind.
        what: &'static str,
        /// The number of items.
        count: usize,
        /// The maximum number.
        most: usize,
    },
    /// The given memory is too small.
    Memory {
        /// The [`Line`](crate::mem::Line)s that are needed.
        lines: usize,
    },
}

impl SpecError {
    /// Returns the fault of two frontends with the same address, in the order of their indexes.
    pub(crate) fn duplicate_frontend(one: usize, other: usize) -> Self {
        Self::DuplicateFrontend {
            first: one.min(other),
            second: one.max(other),
        }
    }

    /// Returns the fault with the names of its items in `spec` instead of indexes.
    ///
    /// ```
    /// # use slb_core::spec::{Rule, Spec};
    /// let rules = [Rule { name: "http", frontend_port: 80, ..Rule::default() }];
    /// let spec = Spec { rules: &rules, ..Spec::default() };
    /// let fault = spec.faults().next().unwrap();
    /// assert_eq!(fault.to_string(), "rule 0: frontend 0 does not exist, there are 0");
    /// let named = fault.named(&spec).to_string();
    /// assert_eq!(named, "rule \"http\": frontend 0 does not exist, there are 0");
    /// ```
    pub fn named<'a>(&'a self, spec: &'a Spec<'a>) -> impl fmt::Display + 'a {
        Named {
            error: self,
            spec: Some(spec),
        }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Named {
            error: self,
            spec: None,
        }
        .fmt(f)
    }
}

impl core::error::Error for SpecError {}
