//! Faults of a [`Spec`].

use core::fmt;
use core::net::IpAddr;

use super::{Backend, NatTarget, Pool, Spec};
use crate::maglev::MaglevError;
use crate::verdict::PortId;

/// A rule of a [`Spec`], by its index in the slice that has it.
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

/// Why a [`Spec`] cannot be compiled. Indexes are those of its slices.
///
/// [`Spec::faults`] yields every fault of a spec, [`named`](Self::named) writes one with the names
/// of its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecError {
    /// Two frontends have one address.
    DuplicateFrontend {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// Two backends have one name and one address, in pools of one name. Indexes count over all
    /// pools.
    DuplicateBackend {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// Two rules have one name.
    DuplicateRule {
        /// The earlier one.
        first: RuleItem,
        /// The later one.
        second: RuleItem,
    },
    /// Two rules take the same packets.
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
    /// Probe results are of a pool that does not exist, or not as many as the pool has backends.
    PoolHealth {
        /// The index in [`Spec::health`].
        health: usize,
        /// Backends of the pool.
        expected: usize,
        /// Results that were given.
        given: usize,
    },
    /// Two backends of a pool have one seat, and neither has weight 0 or drains.
    SeatTaken {
        /// The pool.
        pool: usize,
        /// One of them, by its place in the pool.
        first: usize,
        /// The other one, by its place in the pool.
        second: usize,
    },
    /// Weights of the past are not as many as the pool has backends.
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
    /// The address that backends see in the place of the client's is not of the frontend's family.
    SourceNatFamily {
        /// The rule.
        item: RuleItem,
    },
    /// A pool's Maglev table cannot be built.
    Table {
        /// The pool.
        pool: usize,
        /// Why.
        error: MaglevError,
    },
    /// A backend's host has an address of a family that the underlay has no address of.
    NoUnderlayAddress {
        /// The pool.
        pool: usize,
        /// The backend, within the pool.
        backend: usize,
    },
    /// A mux has an address of a family that the underlay has no address of.
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
    /// Two backends of a pool have one instance number, by which an outbound rule or an inbound NAT
    /// pool gives them their ports.
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
        /// The outbound rule that gets too few.
        rule: usize,
        /// The frontend.
        frontend: usize,
        /// Ports that all outbound rules need of it.
        needed: u32,
        /// Ports that no other rule uses.
        available: u32,
    },
    /// A proxy has no frontend port, or several in [`PortMode::Single`](super::PortMode::Single).
    FrontendPorts {
        /// The number that it has.
        count: usize,
    },
    /// A frontend port has no address in [`PortMode::Multi`](super::PortMode::Multi).
    FrontendPortAddress {
        /// The port.
        port: PortId,
    },
    /// Two ports of a proxy have one number or one address, or a port's number is 65535.
    UnusablePort {
        /// The port.
        port: PortId,
    },
    /// A prefix is longer than addresses of its family.
    InsidePrefix {
        /// The index in [`Spec::inside`].
        index: usize,
    },
    /// A frontend has the address that probes come from: what vms answer to probes would be for it.
    ProbeSourceFrontend {
        /// The frontend's index.
        frontend: usize,
    },
    /// A backend has the address that probes come from: its own packets would be the prober's.
    ProbeSourceBackend {
        /// The pool's index.
        pool: usize,
        /// The backend's index in its pool.
        backend: usize,
    },
    /// The ranges of a source rewrite are of two families, or longer than addresses.
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
    /// The clients of a source rewrite are all clients of an earlier one, which counts, or its addresses are
    /// also those of an earlier one, so that two clients would be seen under one address.
    SourceRewriteOverlap {
        /// The index of the earlier one in
        /// [`ProxyPorts::source_rewrites`](super::ProxyPorts::source_rewrites).
        first: usize,
        /// The index of the later one.
        second: usize,
    },
    /// A frontend has the address of a backend: packets for the backend would be for the VIP. Of a proxy,
    /// only a backend that the frontend's rules lead to. Of a pool in a [network](super::Network), only where
    /// the frontend leads into that network by a rule, inbound NAT or an outbound rule: other networks are apart.
    FrontendBackend {
        /// The frontend's index.
        frontend: usize,
        /// The pool's index.
        pool: usize,
        /// The backend's index in its pool.
        backend: usize,
    },
    /// A frontend has the address of a vm, and leads into the vm's network by a rule, inbound NAT or an outbound
    /// rule: packets for the vm would be for the VIP.
    FrontendVm {
        /// The frontend's index.
        frontend: usize,
        /// The index in [`Spec::vms`].
        vm: usize,
    },
    /// The address that backends see in the place of the client's is a frontend's: answers would be for the
    /// VIP.
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
    /// Two backends of this node have one address in one network, but two MAC addresses. Indexes count over
    /// all pools.
    TwoMacs {
        /// The earlier backend.
        first: usize,
        /// The later backend.
        second: usize,
    },
    /// Two outbound rules let the same protocol of one pool out under one frontend.
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
    /// Two networks have one VXLAN network identifier.
    DuplicateNetwork {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// An address space of a network is longer than addresses of its family.
    NetworkPrefix {
        /// The network.
        network: usize,
        /// The index in [`Network::prefixes`](super::Network::prefixes).
        index: usize,
    },
    /// A vm or a gateway of a network has an address that is in none of its address spaces.
    OutsideNetwork {
        /// The network.
        network: usize,
        /// The address.
        address: IpAddr,
    },
    /// Two vms of a network have one address: their MAC addresses, ports or hosts are not the same.
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
        /// How many networks exist.
        count: usize,
    },
    /// A vm that is no backend has no address.
    VmWithoutAddress {
        /// The index in [`Spec::vms`].
        vm: usize,
    },
    /// A vm's host has an address of a family that the underlay has no address of.
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
        /// Number of frontends there are.
        count: usize,
    },
    /// Two networks have one frontend, or one network names it twice.
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
    /// A rule of a private frontend sends answers through a mux: the calling vm's host takes them.
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
    /// A network of a proxy has a private frontend: a proxy knows no networks, and would let everybody reach it.
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
    /// The spec has more items of a kind than can be numbered.
    TooMany {
        /// The kind.
        what: &'static str,
        /// The number of items.
        count: usize,
        /// The maximum number.
        most: usize,
    },
    /// The memory given is used up.
    Memory {
        /// The [`Line`](crate::mem::Line)s that are needed.
        lines: usize,
    },
}

impl SpecError {
    /// Writes the fault with the names that its items have in `spec`, in the place of indexes.
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

/// An item by its name in quotes where that is known, else by its index.
struct Name<'a>(usize, Option<&'a str>);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(name) => write!(f, "{name:?}"),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A fault, with the names of a spec where that is known.
struct Named<'a> {
    error: &'a SpecError,
    spec: Option<&'a Spec<'a>>,
}

impl<'a> Named<'a> {
    fn frontend(&self, index: usize) -> Name<'a> {
        let found = self.spec.and_then(|spec| spec.frontends.get(index));
        Name(index, found.map(|frontend| frontend.name))
    }

    fn network(&self, index: usize) -> Name<'a> {
        let found = self.spec.and_then(|spec| spec.networks.get(index));
        Name(index, found.map(|network| network.name))
    }

    fn vm(&self, index: usize) -> Name<'a> {
        let found = self.spec.and_then(|spec| spec.vms.get(index));
        Name(index, found.map(|vm| vm.name))
    }

    fn found_pool(&self, index: usize) -> Option<&'a Pool<'a>> {
        self.spec.and_then(|spec| spec.pools.get(index))
    }

    fn pool(&self, index: usize) -> Name<'a> {
        Name(index, self.found_pool(index).map(|pool| pool.name))
    }

    fn member(&self, pool: usize, index: usize) -> Name<'a> {
        let found = self
            .found_pool(pool)
            .and_then(|pool| pool.backends.get(index));
        Name(index, found.map(|backend| backend.name))
    }

    /// A backend by its index over all pools.
    fn backend(&self, index: usize) -> Name<'a> {
        let pools = self.spec.map_or(&[][..], |spec| spec.pools);
        let mut all = pools.iter().flat_map(|pool| pool.backends);
        Name(
            index,
            all.nth(index).map(|backend: &Backend<'_>| backend.name),
        )
    }

    fn item(&self, item: RuleItem) -> (&'static str, Name<'a>) {
        let spec = self.spec;
        match item {
            RuleItem::Rule(index) => {
                let found = spec.and_then(|spec| spec.rules.get(index));
                ("rule", Name(index, found.map(|rule| rule.name)))
            }
            RuleItem::InboundNat(index) => {
                let found = spec.and_then(|spec| spec.inbound_nat.get(index));
                let kind = match found.map(|nat| nat.target) {
                    Some(NatTarget::Pool { .. }) => "inbound NAT pool",
                    _ => "inbound NAT",
                };
                (kind, Name(index, found.map(|nat| nat.name)))
            }
            RuleItem::Outbound(index) => {
                let found = spec.and_then(|spec| spec.outbound.get(index));
                ("outbound rule", Name(index, found.map(|rule| rule.name)))
            }
            RuleItem::SnatPorts(index) => ("SNAT ports of frontend", self.frontend(index)),
        }
    }
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.error {
            SpecError::DuplicateFrontend { first, second } => {
                let (first, second) = (self.frontend(first), self.frontend(second));
                write!(f, "frontends {first} and {second} have the same address")
            }
            SpecError::DuplicateBackend { first, second } => {
                let (first, second) = (self.backend(first), self.backend(second));
                write!(
                    f,
                    "backends {first} and {second} have the same pool, name and address"
                )
            }
            SpecError::DuplicateRule { first, second } => {
                let ((kind, first), (other, second)) = (self.item(first), self.item(second));
                write!(f, "{kind} {first} and {other} {second} have the same name")
            }
            SpecError::ConflictingRules { first, second } => {
                let ((kind, first), (other, second)) = (self.item(first), self.item(second));
                write!(
                    f,
                    "{kind} {first} and {other} {second} take the same protocol and port of one VIP"
                )
            }
            SpecError::Dangling {
                item,
                field,
                index,
                count,
            } => {
                let (kind, name) = self.item(item);
                write!(
                    f,
                    "{kind} {name}: {field} {index} does not exist, there are {count}"
                )
            }
            SpecError::DanglingHealth { rule } => {
                let (kind, name) = self.item(RuleItem::Rule(rule));
                write!(
                    f,
                    "{kind} {name}: its probe results do not exist, or are of another pool"
                )
            }
            SpecError::PoolHealth {
                health,
                expected,
                given,
            } => write!(
                f,
                "probe results {health}: expected one for each of the {expected} backends of a pool, got {given}"
            ),
            SpecError::SeatTaken {
                pool,
                first,
                second,
            } => write!(
                f,
                "pool {}: backends {} and {} have one seat: expected one of them to have weight 0, or to drain",
                self.pool(pool),
                self.member(pool, first),
                self.member(pool, second)
            ),
            SpecError::PoolPast {
                pool,
                past,
                expected,
                given,
            } => write!(
                f,
                "{}: past weights {past}: expected one for each of the {expected} backends, got {given}",
                self.pool(pool)
            ),
            SpecError::RulePort { rule } => {
                let (kind, name) = self.item(RuleItem::Rule(rule));
                write!(
                    f,
                    "{kind} {name}: the frontend port must be 0 for protocols without ports, and not 0 otherwise"
                )
            }
            SpecError::MixedFamilies {
                item,
                frontend,
                pool,
                backend,
            } => {
                let (kind, name) = self.item(item);
                let (frontend, backend) = (self.frontend(frontend), self.member(pool, backend));
                write!(
                    f,
                    "{kind} {name}: frontend {frontend} and backend {backend} of pool {} are of different families",
                    self.pool(pool)
                )
            }
            SpecError::SourceNatFamily { item } => {
                let (kind, name) = self.item(item);
                write!(
                    f,
                    "{kind} {name}: the source NAT address is not of the frontend's family"
                )
            }
            SpecError::Table { pool, error } => write!(f, "pool {}: {error}", self.pool(pool)),
            SpecError::NoUnderlayAddress { pool, backend } => write!(
                f,
                "pool {}: the underlay has no address of the family of backend {}'s host",
                self.pool(pool),
                self.member(pool, backend)
            ),
            SpecError::NoUnderlayAddressForMux { mux } => {
                write!(f, "mux {mux}: the underlay has no address of its family")
            }
            SpecError::NatPort { rule } => {
                let (kind, name) = self.item(RuleItem::InboundNat(rule));
                write!(
                    f,
                    "{kind} {name}: expected tcp or udp, and ports other than 0"
                )
            }
            SpecError::NatPoolFull { rule, instance } => {
                let (kind, name) = self.item(RuleItem::InboundNat(rule));
                write!(f, "{kind} {name}: no port is left for instance {instance}")
            }
            SpecError::DuplicateInstance {
                pool,
                first,
                second,
                instance,
            } => write!(
                f,
                "pool {}: backends {} and {} have the same instance number, {instance}",
                self.pool(pool),
                self.member(pool, first),
                self.member(pool, second)
            ),
            SpecError::NoFrontend { rule } => {
                let (kind, name) = self.item(RuleItem::Outbound(rule));
                write!(f, "{kind} {name}: expected a frontend, got none")
            }
            SpecError::RepeatedFrontend { rule, frontend } => {
                let (kind, name) = self.item(RuleItem::Outbound(rule));
                let frontend = self.frontend(frontend);
                write!(f, "{kind} {name}: frontend {frontend} is named twice")
            }
            SpecError::PortsPerBackend { rule } => {
                let (kind, name) = self.item(RuleItem::Outbound(rule));
                write!(
                    f,
                    "{kind} {name}: expected a multiple of 8 ports for each backend"
                )
            }
            SpecError::OutOfPorts {
                rule,
                frontend,
                needed,
                available,
            } => {
                let (kind, name) = self.item(RuleItem::Outbound(rule));
                let frontend = self.frontend(frontend);
                write!(
                    f,
                    "{kind} {name}: {needed} ports of frontend {frontend} are needed, {available} are free"
                )
            }
            SpecError::FrontendPorts { count } => write!(
                f,
                "expected one frontend port (or several in multi mode), got {count}"
            ),
            SpecError::FrontendPortAddress { port } => {
                write!(f, "frontend port {} has no address, in multi mode", port.0)
            }
            SpecError::InsidePrefix { index } => write!(
                f,
                "inside prefix {index}: expected at most 32 bits of an IPv4 address, 128 of an IPv6 one"
            ),
            SpecError::ProbeSourceFrontend { frontend } => write!(
                f,
                "frontend {} has the address that probes come from: expected another one",
                self.frontend(frontend)
            ),
            SpecError::ProbeSourceBackend { pool, backend } => write!(
                f,
                "backend {} of pool {} has the address that probes come from: expected another one",
                self.member(pool, backend),
                self.pool(pool)
            ),
            SpecError::SourceRewrite { index } => write!(
                f,
                "source rewrite {index}: expected two ranges of one family and size"
            ),
            SpecError::SourceRewriteAddress { index } => write!(
                f,
                "source rewrite {index}: expected two ranges of unicast addresses"
            ),
            SpecError::SourceRewriteOverlap { first, second } => write!(
                f,
                "source rewrite {second}: its clients, or the addresses that they are seen under, are those of \
                 source rewrite {first}"
            ),
            SpecError::FrontendBackend {
                frontend,
                pool,
                backend,
            } => write!(
                f,
                "frontend {} has the address of backend {} of pool {}: expected another one",
                self.frontend(frontend),
                self.member(pool, backend),
                self.pool(pool)
            ),
            SpecError::FrontendVm { frontend, vm } => write!(
                f,
                "frontend {} has the address of vm {}: expected another one",
                self.frontend(frontend),
                self.vm(vm)
            ),
            SpecError::SourceNatFrontend { item, frontend } => {
                let (kind, name) = self.item(item);
                let frontend = self.frontend(frontend);
                write!(
                    f,
                    "{kind} {name}: the source NAT address is that of frontend {frontend}: expected another one"
                )
            }
            SpecError::OwnMac { pool, backend } => write!(
                f,
                "backend {} of pool {} has the MAC address of this node: expected another one",
                self.member(pool, backend),
                self.pool(pool)
            ),
            SpecError::OwnNextHop { pool, backend } => write!(
                f,
                "the next hop of backend {} of pool {} has the MAC address of this node: expected another one",
                self.member(pool, backend),
                self.pool(pool)
            ),
            SpecError::OwnUnderlayNextHop => f.write_str(
                "the next hop of the underlay has the MAC address of this node: expected another one",
            ),
            SpecError::TwoMacs { first, second } => write!(
                f,
                "backends {} and {} have one address in one network: expected one MAC address",
                self.backend(first),
                self.backend(second)
            ),
            SpecError::ConflictingOutbound { first, second } => {
                let (kind, first) = self.item(RuleItem::Outbound(first));
                let (_, second) = self.item(RuleItem::Outbound(second));
                write!(
                    f,
                    "{kind} {second} lets the protocol and pool of {kind} {first} out under the same frontend: \
                     expected one rule for both"
                )
            }
            SpecError::UnusablePort { port } => write!(
                f,
                "port {}: another port has its number or address, or the number is 65535",
                port.0
            ),
            SpecError::PortConflict {
                first,
                second,
                port,
            } => write!(
                f,
                "backends {} and {} at port {} are not one vm: expected one port, network and MAC address",
                self.backend(first),
                self.backend(second),
                port.0
            ),
            SpecError::DuplicateNetwork { first, second } => {
                let (first, second) = (self.network(first), self.network(second));
                write!(f, "networks {first} and {second} have the same VNI")
            }
            SpecError::NetworkPrefix { network, index } => write!(
                f,
                "network {}: address space {index}: expected at most 32 bits of an IPv4 address, 128 of an IPv6 one",
                self.network(network)
            ),
            SpecError::OutsideNetwork { network, address } => write!(
                f,
                "network {}: expected an address in one of its address spaces, got {address}",
                self.network(network)
            ),
            SpecError::AddressTaken { network, address } => write!(
                f,
                "network {}: two vms have address {address}: expected one MAC address, port and host",
                self.network(network)
            ),
            SpecError::DanglingNetwork { vm, count } => write!(
                f,
                "vm {}: its network does not exist, there are {count}",
                self.vm(vm)
            ),
            SpecError::VmWithoutAddress { vm } => {
                write!(f, "vm {}: expected an address, got none", self.vm(vm))
            }
            SpecError::NoUnderlayAddressForVm { vm } => write!(
                f,
                "the underlay has no address of the family of vm {}'s host",
                self.vm(vm)
            ),
            SpecError::VmPortConflict { vm, port } => write!(
                f,
                "vm {} at port {} is not the vm that has its port or MAC address already",
                self.vm(vm),
                port.0
            ),
            SpecError::DanglingFrontend {
                network,
                frontend,
                count,
            } => write!(
                f,
                "network {}: frontend {frontend} does not exist, there are {count}",
                self.network(network)
            ),
            SpecError::SharedFrontend { frontend } => write!(
                f,
                "frontend {} belongs to two networks, or twice to one: expected one network",
                self.frontend(frontend)
            ),
            SpecError::PrivateFrontendTaken { frontend } => write!(
                f,
                "frontend {} has the address of a gateway of its network: expected another one",
                self.frontend(frontend)
            ),
            SpecError::PoolOutsideNetwork {
                item,
                frontend,
                pool,
            } => {
                let (kind, name) = self.item(item);
                let (frontend, pool) = (self.frontend(frontend), self.pool(pool));
                write!(
                    f,
                    "{kind} {name}: pool {pool} is not in the network of frontend {frontend}"
                )
            }
            SpecError::PrivateThroughMux { item } => {
                let (kind, name) = self.item(item);
                write!(
                    f,
                    "{kind} {name}: expected direct answers, since no mux is on the way to a private frontend"
                )
            }
            SpecError::PrivateOutbound { rule, frontend } => {
                let (kind, name) = self.item(RuleItem::Outbound(rule));
                let frontend = self.frontend(frontend);
                write!(
                    f,
                    "{kind} {name}: expected a public frontend, but frontend {frontend} belongs to a network"
                )
            }
            SpecError::PrivateAtProxy { frontend } => write!(
                f,
                "frontend {} belongs to a network: expected public frontends only, since a proxy knows no networks",
                self.frontend(frontend)
            ),
            SpecError::TooMany { what, count, most } => {
                write!(f, "expected at most {most} {what}, got {count}")
            }
            SpecError::Memory { lines } => write!(
                f,
                "the memory is used up: {lines} lines of 64 bytes are needed"
            ),
        }
    }
}
