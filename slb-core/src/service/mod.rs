//! Frontends, rules and pools: as the caller says them ([`Spec`]), and as packets meet them
//! ([`Snapshot`]).
//!
//! A snapshot is compiled once and never changes. Health, drain and weights are part of what it
//! is compiled from: a new verdict on a backend is a new snapshot, put in place between two
//! bursts. Backends and rules keep their ids from one generation to the next.

pub(crate) mod nat;
mod probe_map;
pub(crate) mod proxy;
mod registry;
mod snapshot;
mod spec;

pub use proxy::{FrontendPort, PortMode, ProxyPorts, SourceRewrite};
pub use registry::BackendId;
pub use snapshot::{CompiledBackend, CompiledRule, NO_BACKEND, RuleMatch, Snapshot};
pub use spec::{
    Answers, Backend, BackendHealth, BackendState, Echo, Frontend, INSIDE, InboundNat, NatTarget,
    Outbound, Pool, PoolHealth, Prefix, ProbeSource, Protocol, Rule, Scheduler, Spec, SpecError,
    Terms, UdpChecksum, Underlay, derived_mac,
};
