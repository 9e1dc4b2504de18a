//! Load balancers, and the networks around them, in terms of the configuration, with names instead of ids.

use std::net::IpAddr;

use slb_core::hash::Distribution;
use slb_core::spec::Protocol;

use super::json::Origin;
use super::resources::Seat;
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
    pub(super) networks: Vec<Network>,
    pub(super) vms: Vec<Vm>,
    pub(super) lists: Vec<SecurityList>,
}

/// A virtual network.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) origin: Origin,
    pub(super) name: String,
    pub(super) vni: u32,
    pub(super) address_spaces: Vec<String>,
    pub(super) gateways: Vec<String>,
}

/// Access lists of one backend, whose pool has others too.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) origin: Origin,
    pub(super) name: String,
    pub(super) network: String,
    pub(super) address: IpAddr,
    /// Fields of the backend that say which vm it is.
    pub(super) fields: toml::Table,
    pub(super) lists: Vec<String>,
}

/// A network security group.
#[derive(Debug)]
pub(super) struct SecurityList {
    pub(super) origin: Origin,
    pub(super) name: String,
    pub(super) rules: Vec<SecurityRule>,
}

/// A rule of a network security group, in words of the configuration; an empty list means any.
#[derive(Debug)]
pub(super) struct SecurityRule {
    pub(super) origin: Origin,
    pub(super) name: String,
    pub(super) priority: u32,
    pub(super) direction: &'static str,
    pub(super) access: &'static str,
    pub(super) protocol: &'static str,
    pub(super) sources: Vec<String>,
    pub(super) destinations: Vec<String>,
    pub(super) source_ports: Vec<String>,
    pub(super) destination_ports: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Frontend {
    pub(super) origin: Origin,
    pub(super) name: String,
    pub(super) address: IpAddr,
    pub(super) zones: Vec<String>,
    /// The id of the subnet of an internal frontend.
    pub(super) subnet: Option<String>,
    /// The network that it is private to.
    pub(super) network: Option<String>,
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) origin: Origin,
    pub(super) name: String,
    /// VXLAN network; `None` if none is needed.
    pub(super) vni: Option<u32>,
    /// The id of the virtual network, or of a subnet of it, where the files say it.
    pub(super) subnet: Option<String>,
    /// The network that it is in, if that is imported.
    pub(super) network: Option<String>,
    /// Access lists of all backends.
    pub(super) lists: Vec<String>,
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
    pub(super) seat: Seat,
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
