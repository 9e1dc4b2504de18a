//! Faults of a [`Spec`](super::Spec).

use core::fmt;

use crate::maglev::MaglevError;
use crate::verdict::PortId;

/// Why a [`Spec`](super::Spec) cannot be compiled. Indices are places in its slices.
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
    /// Two backends have one name and one address, in pools of one name. Places are counted over
    /// all pools.
    DuplicateBackend {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// Two rules have one name.
    DuplicateRule {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// Two rules take the same packets.
    ConflictingRules {
        /// The earlier one.
        first: usize,
        /// The later one.
        second: usize,
    },
    /// A rule refers to a frontend or pool that is not there.
    DanglingRule {
        /// The rule.
        rule: usize,
    },
    /// A rule goes by probe results that are not there, or those of another pool.
    DanglingHealth {
        /// The rule.
        rule: usize,
    },
    /// Probe results are of a pool that is not there, or not as many as the pool has backends.
    PoolHealth {
        /// Their place in [`Spec::health`](super::Spec::health).
        health: usize,
        /// Backends of the pool.
        expected: usize,
        /// Results that were given.
        given: usize,
    },
    /// A rule for all protocols has a port, or one for TCP or UDP has none.
    RulePort {
        /// The rule.
        rule: usize,
    },
    /// A rule's frontend and one of its backends have addresses of different families.
    MixedFamilies {
        /// The rule.
        rule: usize,
        /// The backend, within the rule's pool.
        backend: usize,
    },
    /// A pool's table cannot be built.
    Table {
        /// The pool.
        pool: usize,
        /// Why.
        error: MaglevError,
    },
    /// A backend's host has an address of a family that the underlay has none of.
    NoUnderlayAddress {
        /// The pool.
        pool: usize,
        /// The backend, within the pool.
        backend: usize,
    },
    /// An inbound NAT or outbound rule refers to a frontend, pool or backend that is not there, or
    /// to a frontend of another family.
    DanglingNat {
        /// Its name's place: of inbound NAT first, then of outbound rules.
        rule: usize,
    },
    /// A rule of inbound NAT is neither for TCP nor for UDP, or has port 0.
    NatPort {
        /// Its place in [`Spec::inbound_nat`](super::Spec::inbound_nat).
        rule: usize,
    },
    /// A NAT pool has no port left for an instance.
    NatPoolFull {
        /// Its place in [`Spec::inbound_nat`](super::Spec::inbound_nat).
        rule: usize,
        /// The instance.
        instance: u32,
    },
    /// Two backends of a pool have one instance number.
    DuplicateInstance {
        /// The pool.
        pool: usize,
        /// The number.
        instance: u32,
    },
    /// Ports for each backend are no multiple of 8, or none.
    PortsPerBackend {
        /// Its place in [`Spec::outbound`](super::Spec::outbound).
        rule: usize,
    },
    /// A frontend has too few ports for the outbound rules that use it.
    OutOfPorts {
        /// The outbound rule that finds too few.
        rule: usize,
        /// The frontend.
        frontend: usize,
        /// Ports that are wanted of it in all.
        needed: u32,
        /// Ports that it has to give.
        available: u32,
    },
    /// A proxy has no frontend port, or several in [`PortMode::Single`](super::PortMode::Single).
    FrontendPorts {
        /// How many it has.
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
        /// Its place in [`Spec::inside`](super::Spec::inside).
        index: usize,
    },
    /// The ranges of a source rewrite are of two families, or longer than addresses.
    SourceRewrite {
        /// Its place.
        index: usize,
    },
    /// Two backends at one port of this node are not one vm: their networks or MAC addresses
    /// differ.
    PortConflict {
        /// The port.
        port: PortId,
    },
    /// More backends or rules than ids.
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there may be.
        most: usize,
    },
    /// The memory given is used up.
    Memory {
        /// The [`Line`](crate::mem::Line)s that are needed.
        lines: usize,
    },
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateFrontend { first, second } => {
                write!(f, "frontends {first} and {second} have the same address")
            }
            Self::DuplicateBackend { first, second } => {
                write!(
                    f,
                    "backends {first} and {second} have the same pool, name and address"
                )
            }
            Self::DuplicateRule { first, second } => {
                write!(f, "rules {first} and {second} have the same name")
            }
            Self::ConflictingRules { first, second } => {
                write!(
                    f,
                    "rules {first} and {second} take the same protocol and port of one VIP"
                )
            }
            Self::DanglingRule { rule } => {
                write!(
                    f,
                    "rule {rule} names a frontend or a pool that is not there"
                )
            }
            Self::DanglingHealth { rule } => write!(
                f,
                "rule {rule} goes by probe results that are not there, or those of another pool"
            ),
            Self::PoolHealth {
                health,
                expected,
                given,
            } => write!(
                f,
                "probe results {health}: expected one for each of the {expected} backends of a pool, got {given}"
            ),
            Self::RulePort { rule } => write!(
                f,
                "rule {rule}: the frontend port must be 0 for all protocols, and not 0 otherwise"
            ),
            Self::MixedFamilies { rule, backend } => write!(
                f,
                "rule {rule}: its frontend and backend {backend} of its pool are not of one family"
            ),
            Self::Table { pool, error } => write!(f, "pool {pool}: {error}"),
            Self::NoUnderlayAddress { pool, backend } => write!(
                f,
                "pool {pool}: the underlay has no address of the family of backend {backend}'s host"
            ),
            Self::DanglingNat { rule } => write!(
                f,
                "NAT rule {rule} names a frontend, pool or backend that is not there, or of another family"
            ),
            Self::NatPort { rule } => write!(
                f,
                "inbound NAT {rule}: expected tcp or udp, and ports other than 0"
            ),
            Self::NatPoolFull { rule, instance } => write!(
                f,
                "inbound NAT {rule} has no port left for instance {instance}"
            ),
            Self::DuplicateInstance { pool, instance } => {
                write!(f, "pool {pool} has instance {instance} twice")
            }
            Self::PortsPerBackend { rule } => write!(
                f,
                "outbound rule {rule}: expected a multiple of 8 ports for each backend"
            ),
            Self::OutOfPorts {
                rule,
                frontend,
                needed,
                available,
            } => write!(
                f,
                "outbound rule {rule}: {needed} ports of frontend {frontend} are wanted, {available} are free"
            ),
            Self::FrontendPorts { count } => write!(
                f,
                "expected one frontend port (or several in multi mode), got {count}"
            ),
            Self::FrontendPortAddress { port } => {
                write!(f, "frontend port {} has no address, in multi mode", port.0)
            }
            Self::InsidePrefix { index } => write!(
                f,
                "inside prefix {index}: expected at most 32 bits of an IPv4 address, 128 of an IPv6 one"
            ),
            Self::SourceRewrite { index } => write!(
                f,
                "source rewrite {index}: expected two ranges of one family and size"
            ),
            Self::UnusablePort { port } => write!(
                f,
                "the number or the address of port {} is another's, or the number is 65535",
                port.0
            ),
            Self::PortConflict { port } => write!(
                f,
                "the backends at port {} are not one vm: one network and one MAC address",
                port.0
            ),
            Self::TooMany { what, most } => write!(f, "too many {what}: at most {most}"),
            Self::Memory { lines } => {
                write!(
                    f,
                    "the memory is used up: {lines} lines of 64 bytes are needed"
                )
            }
        }
    }
}

impl core::error::Error for SpecError {}
