//! The messages of faults, with the names of items if they are known.

use core::fmt;
use core::net::IpAddr;

use super::{RuleItem, SpecError};
use crate::spec::{Backend, NatTarget, Pool, PublicAddressFault, Spec};

/// An item, written as its name in quotes if it is known, else as its index.
struct Name<'a>(usize, Option<&'a str>);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(name) => write!(f, "{name:?}"),
            None => write!(f, "{}", self.0),
        }
    }
}

/// An address, if it is known, else its index.
struct OrIndex(Option<IpAddr>, usize);

impl fmt::Display for OrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => write!(f, "{}", self.1),
        }
    }
}

/// A fault, with the names of a spec if it is known.
pub(super) struct Named<'a> {
    pub(super) error: &'a SpecError,
    pub(super) spec: Option<&'a Spec<'a>>,
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

    fn list(&self, index: usize) -> Name<'a> {
        let found = self.spec.and_then(|spec| spec.security_lists.get(index));
        Name(index, found.map(|list| list.name))
    }

    fn list_rule(&self, list: usize, index: usize) -> Name<'a> {
        let list = self.spec.and_then(|spec| spec.security_lists.get(list));
        let found = list.and_then(|list| list.rules.get(index));
        Name(index, found.map(|rule| rule.name))
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

    /// Returns the name of a backend by its index over all pools.
    fn backend(&self, index: usize) -> Name<'a> {
        let pools = self.spec.map_or(&[][..], |spec| spec.pools);
        let mut all = pools.iter().flat_map(|pool| pool.backends);
        Name(
            index,
            all.nth(index).map(|backend: &Backend<'_>| backend.name),
        )
    }

    /// Writes the fault of a public address.
    fn public_address(
        &self,
        f: &mut fmt::Formatter<'_>,
        index: usize,
        fault: PublicAddressFault,
    ) -> fmt::Result {
        let address = |index: usize| {
            let found = self.spec.and_then(|spec| spec.public_addresses.get(index));
            OrIndex(found.map(|public| public.address), index)
        };
        write!(f, "public address {}: ", address(index))?;
        match fault {
            PublicAddressFault::AtProxy => {
                f.write_str("a proxy has none: expected a mux or a host agent")
            }
            PublicAddressFault::Unusable => {
                f.write_str("expected a unicast address that others reach")
            }
            PublicAddressFault::Families => {
                f.write_str("expected an address of the family of the vm's own address")
            }
            PublicAddressFault::NoVm => {
                f.write_str("expected the own address of a backend or vm of the network")
            }
            PublicAddressFault::Taken { first } => {
                write!(f, "entry {first} has the address already")
            }
            PublicAddressFault::VmTaken { first } => {
                write!(
                    f,
                    "the vm has the public address {} already",
                    address(first)
                )
            }
            PublicAddressFault::Frontend { frontend } => {
                write!(f, "frontend {} has the address", self.frontend(frontend))
            }
            PublicAddressFault::InNetwork => {
                f.write_str("expected an address outside of the vm's own network")
            }
        }
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
            SpecError::DuplicateSecurityList { first, second } => {
                let (first, second) = (self.list(first), self.list(second));
                write!(f, "security lists {first} and {second} have the same name")
            }
            SpecError::DuplicateSecurityRule {
                list,
                first,
                second,
            } => {
                let (one, other) = (self.list_rule(list, first), self.list_rule(list, second));
                let list = self.list(list);
                write!(
                    f,
                    "security list {list}: rules {one} and {other} have the same name"
                )
            }
            SpecError::SecurityRule { list, rule, field } => {
                let (of, rule) = (self.list(list), self.list_rule(list, rule));
                let expected = match field {
                    "priority" => "a priority below 65000, where the default rules begin",
                    "sources" | "destinations" => {
                        "prefixes that are no longer than addresses of their family"
                    }
                    _ => "ranges of ports that end after their beginning",
                };
                write!(
                    f,
                    "security list {of}: rule {rule}: {field}: expected {expected}"
                )
            }
            SpecError::DanglingSecurityList { list, count } => write!(
                f,
                "security list {list} does not exist, there are {count}"
            ),
            SpecError::PublicAddress { index, fault } => self.public_address(f, index, fault),
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
