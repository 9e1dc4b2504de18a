//! The description of a balancer, from which a snapshot is compiled. `slb-control` makes a spec
//! from a configuration file; an embedder fills one in field by field.

mod error;
pub(crate) mod network;
mod prefix;
mod proxy;
mod public;
pub(crate) mod ranges;
pub(crate) mod security;
pub(crate) mod snat;

pub use error::{RuleItem, SpecError};
pub use network::{Network, NetworkVm};
pub use prefix::{INSIDE, Prefix};
pub use proxy::{FrontendPort, PortMode, ProxyPorts, SourceRewrite};
pub use public::{PublicAddress, PublicAddressFault};
pub use security::{
    Access, DefaultRule, MOST_LISTS, MOST_RANGES_OF_LIST, MOST_RULES_OF_LIST, Peers, SecurityList,
    SecurityProtocol, SecurityRule,
};

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use crate::hash::{Distribution, Hasher};
use crate::health::Condition;
use crate::maglev;
use crate::time::Instant;
use crate::verdict::PortId;
use crate::wire::ethernet::MacAddress;
use crate::wire::vxlan::Vni;

/// Default idle timeout of a rule: Azure's, four minutes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(240);

/// The whole description of a node. Fields that refer to items are indexes of the slices.
#[derive(Clone, Debug)]
pub struct Spec<'a> {
    /// The hash of flows, the same on every node.
    pub hasher: Hasher,
    /// The seed of the Maglev permutations. The same on every node.
    pub hash_seed: u64,
    /// This node's addresses and settings on the fabric.
    pub underlay: Underlay,
    /// The VIPs.
    pub frontends: &'a [Frontend<'a>],
    /// The load-balancing rules.
    pub rules: &'a [Rule<'a>],
    /// The pools of backends.
    pub pools: &'a [Pool<'a>],
    /// Health of the backends of pools, by probes. Rules name the entry that applies to them.
    pub health: &'a [PoolHealth<'a>],
    /// Inbound NAT: ports of frontends that lead to one backend each.
    pub inbound_nat: &'a [InboundNat<'a>],
    /// The outbound rules, which let vms connect out with the addresses of frontends.
    pub outbound: &'a [Outbound<'a>],
    /// Underlay addresses of the muxes, at most 254. A host sends answers through them if a rule
    /// says so. If there are any, a host accepts VXLAN only from these and from other hosts.
    pub muxes: &'a [IpAddr],
    /// Networks whose vms host agents connect.
    pub networks: &'a [Network<'a>],
    /// Vms of networks that are no backends.
    pub vms: &'a [NetworkVm<'a>],
    /// Public addresses of single vms: 1:1 NAT.
    pub public_addresses: &'a [PublicAddress],
    /// Access lists, which pools, vms and networks refer to by their indexes. Host agents enforce them; other roles
    /// ignore them.
    pub security_lists: &'a [SecurityList<'a>],
    /// For a host agent: addresses that vms reach and answer with their own addresses, without an
    /// outbound rule. All others are outside. The default is [`INSIDE`].
    pub inside: &'a [Prefix],
    /// For a host agent: the source addresses of probes of its own vms.
    pub probe_source: ProbeSource,
    /// For a proxy: its ports. All backends are then behind the backend port.
    pub proxy: Option<ProxyPorts<'a>>,
    /// For a host agent: the time at which the snapshot is compiled, by a clock that continues from
    /// snapshot to snapshot. A host derives from it how long each backend had its slots, and so
    /// which former owners to remember. With [`Instant::ZERO`] in all snapshots, all former owners
    /// count equally.
    pub now: Instant,
}

/// The source addresses of a host agent's probes of its vms, which should be the same on every
/// host.
///
/// A vm's packets to these addresses are passed unchanged, regardless of outbound rules, so that
/// the caller, which sends the probes, receives them. Packets from the fabric with these source
/// addresses are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeSource {
    /// The source address for vms with IPv4 addresses.
    pub ipv4: Option<Ipv4Addr>,
    /// The source address for vms with IPv6 addresses.
    pub ipv6: Option<Ipv6Addr>,
}

impl ProbeSource {
    /// Returns true if an address is a source address of probes.
    pub fn is(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4 == Some(address),
            IpAddr::V6(address) => self.ipv6 == Some(address),
        }
    }
}

impl Default for Spec<'_> {
    fn default() -> Self {
        Self {
            hasher: Hasher::default(),
            hash_seed: 0,
            underlay: Underlay::default(),
            frontends: &[],
            rules: &[],
            pools: &[],
            health: &[],
            inbound_nat: &[],
            outbound: &[],
            muxes: &[],
            networks: &[],
            vms: &[],
            public_addresses: &[],
            security_lists: &[],
            inside: INSIDE,
            probe_source: ProbeSource::default(),
            proxy: None,
            now: Instant::ZERO,
        }
    }
}

/// This node's addresses on the fabric, and its settings for encapsulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Outer source address towards backends whose host has an IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Outer source address towards backends whose host has an IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// This node's MAC address: outer and inner source. At a proxy with next hops to its backends, answers to this
    /// address go to the MAC address that the client's packets came from.
    pub mac: MacAddress,
    /// Outer destination for backends without a next hop: the fabric's router.
    pub next_hop: MacAddress,
    /// The longest IP packet that the fabric carries, in bytes.
    pub mtu: u16,
    /// TTL or hop limit of the outer header.
    pub hop_limit: u8,
    /// The outer UDP checksum.
    pub udp_checksum: UdpChecksum,
    /// The port by which encapsulated packets leave.
    pub port: PortId,
}

impl Underlay {
    /// Returns true if the node has an address of the family of `host`, to encapsulate packets for
    /// it.
    pub fn reaches(&self, host: IpAddr) -> bool {
        match host {
            IpAddr::V4(_) => self.ipv4.is_some(),
            IpAddr::V6(_) => self.ipv6.is_some(),
        }
    }
}

impl Default for Underlay {
    fn default() -> Self {
        Self {
            ipv4: None,
            ipv6: None,
            mac: MacAddress([0x02, 0, 0, 0, 0, 0x01]),
            next_hop: MacAddress([0x02, 0, 0, 0, 0, 0x02]),
            mtu: 1500,
            hop_limit: 64,
            udp_checksum: UdpChecksum::default(),
            port: PortId(0),
        }
    }
}

/// The checksum of the outer UDP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UdpChecksum {
    /// Zero over IPv4 (RFC 7348 §4.1), computed over IPv6 (RFC 8200 §8.1), as every receiver
    /// accepts.
    #[default]
    Auto,
    /// Zero over both. Over IPv6 the receivers have to be configured for it (RFC 6935, RFC 6936).
    Zero,
    /// Computed over both.
    Computed,
}

/// A VIP.
///
/// The default has no name and the unspecified address, which a snapshot refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend<'a> {
    /// Name of the frontend.
    pub name: &'a str,
    /// Address of the frontend, the VIP, unique among public frontends, or in its network.
    pub address: IpAddr,
    /// The treatment of ICMP echo requests for this frontend.
    pub icmp_echo: Echo,
}

impl Default for Frontend<'_> {
    fn default() -> Self {
        Self {
            name: "",
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            icmp_echo: Echo::Answer,
        }
    }
}

/// The treatment of ICMP echo requests for a VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Echo {
    /// The balancer answers echo requests.
    #[default]
    Answer,
    /// Echo requests go to a backend of the VIP's HA-ports rule.
    Forward,
    /// Echo requests are dropped.
    Ignore,
}

/// The protocol of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP to one port.
    #[default]
    Tcp,
    /// UDP to one port.
    Udp,
    /// ICMP echo requests of the frontend's family, so that backends answer pings of the VIP.
    Icmp,
    /// HA ports: every protocol and port.
    All,
}

impl Protocol {
    /// Name of the protocol in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::All => "all",
        }
    }

    /// Returns true if packets of the protocol have ports that a rule names.
    pub const fn has_port(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }

    /// Returns a description of the packets that a rule with the protocol and port matches: `tcp
    /// port 80`, `all ports`, `icmp echo requests`.
    pub fn with_port(self, port: u16) -> impl fmt::Display + use<> {
        Traffic(self, port)
    }
}

struct Traffic(Protocol, u16);

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.name();
        match self.0 {
            Protocol::Icmp => write!(f, "{name} echo requests"),
            Protocol::All => write!(f, "{name} ports"),
            Protocol::Tcp | Protocol::Udp => write!(f, "{name} port {}", self.1),
        }
    }
}

/// A load-balancing rule: packets for a frontend's port go to a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<'a> {
    /// Name of the rule, unique among rules. Counters can be looked up by it.
    pub name: &'a str,
    /// Index of the frontend in [`Spec::frontends`].
    pub frontend: usize,
    /// Index of the pool in [`Spec::pools`].
    pub pool: usize,
    /// Index of the rule's probe results in [`Spec::health`]. If `None`, the rule has no probe, and
    /// uses only the backends' [`state`](Backend::state) and [`condition`](Backend::condition).
    pub health: Option<usize>,
    /// Protocol of the rule's packets.
    pub protocol: Protocol,
    /// The port that clients use; zero if, and only if, the protocol [has no
    /// ports](Protocol::has_port).
    pub frontend_port: u16,
    /// The port that backends serve; zero means [`frontend_port`](Self::frontend_port). A host agent and a proxy
    /// translate to it; a mux changes no port.
    pub backend_port: u16,
    /// The packet fields that choose a flow's backend.
    pub distribution: Distribution,
    /// The choice of a new connection's backend, at a proxy. Muxes have to agree, so they always
    /// use Maglev.
    pub scheduler: Scheduler,
    /// Idle timeout of a flow.
    pub idle_timeout: Duration,
    /// Further terms of the rule's connections, for their host agent or a proxy.
    pub terms: Terms,
}

/// The choice of a new connection's backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduler {
    /// Maglev, by the hash of the fields that the distribution mode selects.
    #[default]
    Maglev,
    /// The backend with the fewest present connections relative to its weight.
    LeastConnections,
}

/// The terms of a rule's connections at their host agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// True if the backend sees the VIP and the frontend port instead of its own (direct server
    /// return).
    pub floating_ip: bool,
    /// True if both ends get a RST when a connection expires, and the sender of a segment without a
    /// connection gets one.
    pub tcp_reset: bool,
    /// The path of answers.
    pub answers: Answers,
    /// The backend sees this address instead of the client's (full SNAT).
    pub source_nat: Option<IpAddr>,
    /// True if UDP under a load-balancing rule is QUIC. A host agent then recognizes packets that
    /// begin a connection: Initial and 0-RTT packets are treated like a SYN, others like further
    /// segments of TCP (RFC 9000 §17.2, RFC 9369 §3.2).
    pub quic: bool,
}

/// The path of a backend's answers to the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// Answers go straight to the client (direct server return).
    #[default]
    Direct,
    /// Answers go in VXLAN to the mux, of [`Spec::muxes`], that the connection came through.
    ThroughMux,
}

/// An inbound NAT rule or pool: frontend ports that lead to one backend each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundNat<'a> {
    /// Name of the inbound NAT rule, unique among inbound NAT rules and pools.
    pub name: &'a str,
    /// Index of the frontend in [`Spec::frontends`].
    pub frontend: usize,
    /// Index of the pool in [`Spec::pools`].
    pub pool: usize,
    /// The destination of the rule's ports.
    pub target: NatTarget,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port that the backend serves.
    pub backend_port: u16,
    /// Idle timeout of a flow.
    pub idle_timeout: Duration,
    /// Further terms of the rule's connections.
    pub terms: Terms,
}

impl Default for InboundNat<'_> {
    fn default() -> Self {
        Self {
            name: "",
            frontend: 0,
            pool: 0,
            target: NatTarget::default(),
            protocol: Protocol::Tcp,
            backend_port: 0,
            idle_timeout: IDLE_TIMEOUT,
            terms: Terms::default(),
        }
    }
}

/// The destination of the ports of an [`InboundNat`].
///
/// The default leads from port 0 to the first backend of the pool; a snapshot refuses port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatTarget {
    /// One port to one backend.
    Backend {
        /// The port that clients use.
        port: u16,
        /// The backend's index in the pool.
        backend: usize,
    },
    /// A port for each backend of the pool: instance `n` has the port `first + n`.
    Pool {
        /// The port of instance 0.
        first: u16,
        /// The last port of the range.
        last: u16,
    },
}

/// An outbound rule: lets a pool's backends connect out with the addresses of frontends. Each
/// backend has its own ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outbound<'a> {
    /// Name of the outbound rule, unique among outbound rules.
    pub name: &'a str,
    /// The frontends whose addresses the rule uses.
    pub frontends: &'a [usize],
    /// Index of the pool in [`Spec::pools`].
    pub pool: usize,
    /// The protocols of outbound connections; [`Protocol::All`] means TCP, UDP and ICMP echo.
    pub protocol: Protocol,
    /// Ports for each backend over all of the rule's frontends, a multiple of 8. If `None`,
    /// backends get even shares of the free ports.
    pub allocated_outbound_ports: Option<u32>,
    /// Idle timeout of a flow.
    pub idle_timeout: Duration,
    /// True if both ends get a RST when a connection expires.
    pub tcp_reset: bool,
}

impl Default for NatTarget {
    fn default() -> Self {
        Self::Backend {
            port: 0,
            backend: 0,
        }
    }
}

/// The default lets the vms of pool 0 connect out by TCP, UDP and ICMP echo, and names no frontend,
/// which a snapshot refuses.
impl Default for Outbound<'_> {
    fn default() -> Self {
        Self {
            name: "",
            frontends: &[],
            pool: 0,
            protocol: Protocol::All,
            allocated_outbound_ports: None,
            idle_timeout: IDLE_TIMEOUT,
            tcp_reset: false,
        }
    }
}

/// The results of one probe for the backends of a pool.
///
/// Health belongs to a rule and a backend: a backend that fails the probe of one rule still serves
/// the other rules of its pool. Rules of one pool that share a probe share one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolHealth<'a> {
    /// Index of the pool in [`Spec::pools`].
    pub pool: usize,
    /// A result for each backend of the pool, in the order of [`Pool::backends`].
    pub backends: &'a [BackendHealth],
}

/// Health of one backend by its probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendHealth {
    /// Result of the probe. An unhealthy backend gets no new flows of the rules that use this
    /// probe, and their connections are reset if the rule has [`tcp_reset`](Terms::tcp_reset).
    pub condition: Condition,
    /// The backend's weight for these rules, for example during slow start; `None` for its
    /// [`Backend::weight`]. A backend whose own weight is zero stays drained.
    pub weight: Option<u32>,
}

/// A set of equivalent backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool<'a> {
    /// Name of the pool. Backends keep their ids while their pool keeps its name.
    pub name: &'a str,
    /// The VXLAN network of the pool's backends.
    pub vni: Vni,
    /// Slots of the pool's Maglev table: a prime, at least a hundred times the number of backends.
    pub table_size: u32,
    /// Backends of the pool. Their order does not matter.
    pub backends: &'a [Backend<'a>],
    /// For a host agent: weights that the backends had before, in the order of
    /// [`backends`](Self::backends), one entry for each change, the oldest first; zero for a
    /// backend that did not exist, or got no new flows. A snapshot without a predecessor derives
    /// the former owners of slots from it; one with a predecessor knows them already.
    pub past: &'a [&'a [u32]],
    /// Access lists of the pool's vms, by their indexes in [`Spec::security_lists`], at most [`MOST_LISTS`].
    pub security_lists: &'a [usize],
}

/// A backend server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<'a> {
    /// Name of the backend, unique in the pool.
    pub name: &'a str,
    /// Address of the backend, the DIP. A backend with another address is another backend.
    pub address: IpAddr,
    /// The underlay address of the host that the backend runs on. The backend stays the same if
    /// this changes.
    pub host: IpAddr,
    /// MAC address of the backend. If `None`, it is derived from the address; see [`derived_mac`].
    pub mac: Option<MacAddress>,
    /// The MAC address of the next hop to the backend's host; `None` for the underlay's. At a
    /// proxy, the destination MAC address of packets to the backend, so that clients and backends
    /// may be in one subnet; if `None`, the packets' link headers stay, and a router behind the
    /// proxy finds the backend.
    pub next_hop: Option<MacAddress>,
    /// Weight of the backend: its share of flows relative to the others; zero drains it.
    pub weight: u32,
    /// Administrative state of the backend, set by the operator for all rules.
    pub state: BackendState,
    /// Seat of the backend in the pool's Maglev table, which determines its slots; `None` for its
    /// name. A backend with the seat of the one that it replaces gets that one's slots, and no
    /// other slot moves. At most one of the backends with the same seat [is
    /// seated](Self::is_seated).
    pub seat: Option<&'a str>,
    /// Observed condition of the backend for all rules, for example by its traffic or because its host has no route.
    /// Results of probes, which apply to single rules, are in [`Spec::health`].
    pub condition: Condition,
    /// Instance number of the backend in the pool; `None` for the backend's index. NAT pools and
    /// outbound rules assign its ports by this number, so the ports stay when another backend is
    /// removed.
    pub instance: Option<u32>,
    /// The port of this node for the backend's vm; `None` if the backend runs on another host.
    pub port: Option<PortId>,
    /// The port that the backend serves instead of the rule's, for its host agent or a proxy.
    pub backend_port: Option<u16>,
}

impl Default for Backend<'_> {
    fn default() -> Self {
        Self {
            name: "",
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            mac: None,
            next_hop: None,
            weight: 1,
            seat: None,
            state: BackendState::Up,
            condition: Condition::Healthy,
            instance: None,
            port: None,
            backend_port: None,
        }
    }
}

impl<'a> Backend<'a> {
    /// Returns the seat of the backend, or its name if it has no seat.
    pub fn seat(&self) -> &'a str {
        self.seat.unwrap_or(self.name)
    }

    /// Returns true if the backend has its seat's slots while it is healthy, that is, if it has a
    /// weight and does not drain.
    pub const fn is_seated(&self) -> bool {
        self.weight != 0 && !matches!(self.state, BackendState::Draining)
    }

    /// Returns true if new flows may go to the backend, before any probe is considered.
    pub const fn is_eligible(&self) -> bool {
        self.weight != 0 && matches!(self.state, BackendState::Up) && !self.is_unhealthy()
    }

    /// Returns true if the backend counts as unhealthy for all rules: it is down or was observed to
    /// fail.
    pub const fn is_unhealthy(&self) -> bool {
        matches!(self.state, BackendState::Down) || matches!(self.condition, Condition::Unhealthy)
    }
}

/// Administrative state of a backend, set by the operator for all rules. Observed health is
/// separate, in [`Backend::condition`] and [`Spec::health`], so a backend can be draining and
/// unhealthy at once.
///
/// Pinned flows stay with a backend in every state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendState {
    /// The backend gets new flows while it is healthy.
    #[default]
    Up,
    /// The backend keeps its flows and gets no new ones.
    Draining,
    /// The backend is out of service: it gets no new flows, connections of rules with
    /// [`tcp_reset`](Terms::tcp_reset) are reset, and flows without connections move to other backends,
    /// as if the backend were unhealthy.
    Down,
}

impl BackendState {
    /// Name of the state in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

/// Returns the default MAC address of a backend: `0a:58:` and its IPv4 address, or the last four
/// bytes of its IPv6 address.
pub const fn derived_mac(address: IpAddr) -> MacAddress {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => (address.to_bits() as u32).to_be_bytes(),
    };
    MacAddress([0x0a, 0x58, a, b, c, d])
}

impl Default for Rule<'_> {
    fn default() -> Self {
        Self {
            name: "",
            frontend: 0,
            pool: 0,
            health: None,
            protocol: Protocol::Tcp,
            frontend_port: 0,
            backend_port: 0,
            distribution: Distribution::FiveTuple,
            scheduler: Scheduler::Maglev,
            idle_timeout: IDLE_TIMEOUT,
            terms: Terms::default(),
        }
    }
}

impl Default for Pool<'_> {
    fn default() -> Self {
        Self {
            name: "",
            vni: Vni::default(),
            table_size: maglev::DEFAULT_SIZE,
            backends: &[],
            past: &[],
            security_lists: &[],
        }
    }
}
