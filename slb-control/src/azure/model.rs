//! Load balancers in terms of the configuration, with names instead of ids.

use std::net::IpAddr;

use slb_core::hash::Distribution;
use slb_core::spec::Protocol;

use super::json::Origin;
use crate::config::{NoHealthyBackends, ProbeProtocol};

/// All load balancers, together.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) frontends: Vec<Frontend>,
    pub(super) pools: Vec<Pool>,
    pub(super) probes: Vec<Probe>,
    pub(super) rules: Vec<Rule>,
    pub(super) nat: Vec<Nat>,
    pub(super) outbound: Vec<Outbound>,
}

#[derive(Debug)]
pub(super) struct Frontend {
    pub(super) origin: Origin,
    pub(super) name: String,
    pub(super) address: IpAddr,
    pub(super) zones: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) origin: Origin,
    pub(super) name: String,
    /// VXLAN network; `None` if none is needed.
    pub(super) vni: Option<u32>,
    pub(super) backends: Vec<Backend>,
}

#[derive(Debug)]
pub(super) struct Backend {
    pub(super) origin: Origin,
    pub(super) name: String,
    /// Id of the item in the JSON.
    pub(super) id: Option<String>,
    pub(super) address: IpAddr,
    /// The configuration's other fields.
    pub(super) fields: toml::Table,
}

#[derive(Debug)]
pub(super) struct Probe {
    pub(super) origin: Origin,
    pub(super) name: String,
    pub(super) protocol: ProbeProtocol,
    pub(super) port: u32,
    pub(super) path: Option<String>,
    /// Interval in seconds.
    pub(super) interval: u32,
    pub(super) threshold: u32,
    pub(super) no_healthy_backends: NoHealthyBackends,
}

/// The terms of rules of all kinds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Idle timeout in minutes.
    pub(super) idle_timeout: u32,
    pub(super) floating_ip: bool,
    pub(super) tcp_reset: bool,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) origin: Origin,
    pub(super) name: String,
    pub(super) frontend: String,
    pub(super) pool: String,
    pub(super) probe: Option<String>,
    pub(super) protocol: Protocol,
    pub(super) frontend_port: u32,
    pub(super) backend_port: u32,
    pub(super) distribution: Distribution,
    pub(super) terms: Terms,
    pub(super) outbound_snat: bool,
}

#[derive(Debug)]
pub(super) struct Nat {
    pub(super) origin: Origin,
    pub(super) name: String,
    pub(super) frontend: String,
    pub(super) pool: String,
    pub(super) target: Target,
    pub(super) protocol: Protocol,
    pub(super) backend_port: u32,
    pub(super) terms: Terms,
}

#[derive(Debug)]
pub(super) enum Target {
    Backend { port: u32, backend: String },
    Pool { first: u32, last: u32 },
}

#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) origin: Origin,
    pub(super) name: String,
    pub(super) frontends: Vec<String>,
    pub(super) pool: String,
    pub(super) protocol: Protocol,
    pub(super) ports: u32,
    pub(super) terms: Terms,
}
