//! Sections of frontends, pools, probes and rules.

use std::net::IpAddr;
use std::time::Duration;

use slb_core::hash::Distribution;
use slb_core::health::{Condition, PassivePolicy};
use slb_core::spec::{self, BackendState, Echo, NatTarget, Protocol, Scheduler, Terms};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;

use crate::document::Span;

/// `[[frontend]]`: a VIP.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// Name of the frontend.
    pub name: String,
    /// Address of the frontend, the VIP.
    pub address: IpAddr,
    /// Index of the frontend's network; `None` if it is public.
    pub network: Option<usize>,
    /// The treatment of echo requests.
    pub icmp_echo: Echo,
    /// Zones of the frontend: one makes it zonal, none or several make it zone-redundant.
    pub zones: Vec<String>,
    pub(crate) span: Span,
}

/// `[[pool]]`: a pool of backends.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Name of the pool.
    pub name: String,
    /// The VXLAN network of its backends.
    pub vni: Vni,
    /// Slots of its Maglev table.
    pub table_size: u32,
    /// Time in which a recovered backend ramps up to its full share; `None` for at once.
    pub slow_start: Option<Duration>,
    /// The conditions under which a backend's own traffic makes it unhealthy, if any.
    pub passive: Option<PassivePolicy>,
    /// Backends of the pool.
    pub backends: Vec<Backend>,
    /// Earlier weights of the backends, in their order: an entry for each earlier state of the
    /// pool, the oldest first. A host agent that starts derives from them which hosts may have a
    /// connection.
    pub past: Vec<Vec<u32>>,
    /// Places of the access lists of its vms.
    pub security_lists: Vec<usize>,
    pub(crate) span: Span,
}

/// One of a pool's `backends`.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Name of the backend.
    pub name: String,
    /// Address of the backend, the DIP.
    pub address: IpAddr,
    /// Address of the backend's host on the fabric.
    pub host: IpAddr,
    /// MAC address of the backend, unless it is derived.
    pub mac: Option<MacAddress>,
    /// The MAC address of the next hop to its host, unless it is the node's.
    pub next_hop: Option<MacAddress>,
    /// Weight of the backend.
    pub weight: u32,
    /// Administrative state, as configured.
    pub state: BackendState,
    /// Seat of the backend in the pool's Maglev table; `None`: its name.
    pub seat: Option<String>,
    /// Condition as observed by the backend's traffic or by the route to its host: healthy in a
    /// configuration that was just read.
    pub condition: Condition,
    /// Instance number in the pool, unless that is the backend's index.
    pub instance: Option<u32>,
    /// The host's port for the backend's vm, unless it is counted.
    pub port: Option<u16>,
    /// The port that the backend serves, unless it is the rule's.
    pub backend_port: Option<u16>,
    /// Zone of the backend.
    pub zone: Option<String>,
    pub(crate) span: Span,
}

impl Backend {
    /// Returns the seat of the backend, or its name if it has no seat.
    pub fn seat(&self) -> &str {
        self.seat.as_deref().unwrap_or(&self.name)
    }

    /// Returns true if new flows may go to the backend, before any probe is considered.
    pub(crate) fn takes_flows(&self) -> bool {
        self.weight > 0 && self.state == BackendState::Up && self.condition == Condition::Healthy
    }

    /// MAC address of the backend, given or derived.
    pub fn mac(&self) -> MacAddress {
        self.mac.unwrap_or_else(|| spec::derived_mac(self.address))
    }
}

/// The protocol of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeProtocol {
    /// A backend is healthy if the TCP handshake completes.
    Tcp,
    /// A backend is healthy if it answers with status 200.
    Http,
    /// HTTP over TLS.
    Https,
}

/// `[[probe]]`.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Name of the probe.
    pub name: String,
    /// The protocol of the probe.
    pub protocol: ProbeProtocol,
    /// The port of the probe.
    pub port: u16,
    /// The path of the HTTP request.
    pub path: String,
    /// Time from one probe to the next.
    pub interval: Duration,
    /// Time after which a probe without an answer has failed; at most the interval.
    pub timeout: Duration,
    /// Consecutive failures that make a backend unhealthy, and successes that make it healthy
    /// again.
    pub threshold: u32,
    /// The `Host` header and the name in the certificate; `None` for the backend's address.
    pub host: Option<String>,
    /// True if the certificate has to be signed by a public authority.
    pub verify_certificate: bool,
    /// The treatment of flows when no backend of the pool is left.
    pub no_healthy_backends: NoHealthyBackends,
    pub(crate) span: Span,
}

/// The treatment of a pool's flows while all its backends fail their probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoHealthyBackends {
    /// New flows are refused: Azure's `AllProbedDown`.
    Refuse,
    /// New flows go to all backends, as if none failed: Azure's `AllProbedUp`.
    UseAll,
}

/// Equality ignores the position in the file.
impl PartialEq for Probe {
    fn eq(&self, other: &Self) -> bool {
        let of = |probe: &Self| {
            let times = (probe.interval, probe.timeout, probe.threshold);
            let how = (probe.verify_certificate, probe.no_healthy_backends);
            (probe.protocol, probe.port, times, how)
        };
        of(self) == of(other)
            && (&self.name, &self.path, &self.host) == (&other.name, &other.path, &other.host)
    }
}

impl Eq for Probe {}

/// `[[rule]]`.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Name of the rule.
    pub name: String,
    /// Index of the rule's frontend.
    pub frontend: usize,
    /// Index of the rule's pool.
    pub pool: usize,
    /// Index of the rule's probe.
    pub probe: Option<usize>,
    /// The protocol of the rule.
    pub protocol: Protocol,
    /// The port that clients use.
    pub frontend_port: u16,
    /// The port that backends serve.
    pub backend_port: u16,
    /// The packet fields that choose a flow's backend.
    pub distribution: Distribution,
    /// The choice of a new connection's backend, at a proxy.
    pub scheduler: Scheduler,
    /// Idle timeout of a flow.
    pub idle_timeout: Duration,
    /// Further terms of the rule's connections.
    pub terms: Terms,
    /// True if the rule's backends may not connect out with its frontend's address.
    pub disable_outbound_snat: bool,
    pub(crate) span: Span,
}

/// `[[inbound_nat_rule]]` or `[[inbound_nat_pool]]`.
#[derive(Clone, Debug)]
pub struct InboundNat {
    /// Name of the inbound NAT rule or pool.
    pub name: String,
    /// Index of the rule's frontend.
    pub frontend: usize,
    /// Index of the rule's pool.
    pub pool: usize,
    /// The destination of its ports.
    pub target: NatTarget,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port that the backend serves.
    pub backend_port: u16,
    /// Idle timeout of a flow.
    pub idle_timeout: Duration,
    /// Further terms of the rule's connections.
    pub terms: Terms,
    pub(crate) span: Span,
}

impl InboundNat {
    /// Returns the name of the section in error messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.target {
            NatTarget::Backend { .. } => "inbound_nat_rule",
            NatTarget::Pool { .. } => "inbound_nat_pool",
        }
    }

    /// Returns the frontend ports of the rule or pool.
    pub(crate) fn ports(&self) -> std::ops::RangeInclusive<u16> {
        match self.target {
            NatTarget::Backend { port, .. } => port..=port,
            NatTarget::Pool { first, last } => first..=last,
        }
    }
}

/// `[[outbound_rule]]`.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Name of the outbound rule.
    pub name: String,
    /// Indexes of the rule's frontends.
    pub frontends: Vec<usize>,
    /// Index of the rule's pool.
    pub pool: usize,
    /// The protocols of outbound connections.
    pub protocol: Protocol,
    /// Ports for each backend; `None`: an even share.
    pub allocated_outbound_ports: Option<u32>,
    /// Idle timeout of a flow.
    pub idle_timeout: Duration,
    /// True if both ends get a RST when a connection expires.
    pub tcp_reset: bool,
    pub(crate) span: Span,
}

/// The shortest idle timeout, and the default.
pub const MIN_IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 60);

/// The longest idle timeout.
pub const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
