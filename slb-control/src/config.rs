//! The configuration: one TOML file, named as Azure names things, in snake case.
//!
//! A [`Config`] is one that was found good: every name that is referred to is there, no two rules
//! take the same packets, and a snapshot can be built. `docs/configuration.md` lists the fields.

mod addresses;
mod read;
mod warnings;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use slb_core::hash::{Distribution, Hasher};
use slb_core::health::{Condition, PassivePolicy};
use slb_core::mem::Memory;
use slb_core::nat::NatOptions;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    self, BackendHealth, BackendState, Echo, NatTarget, PoolHealth, Prefix, ProbeSource, Scheduler,
    Spec, SpecError, Terms, UdpChecksum,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{FragmentRoom, Key, MuxOptions, PortId, SourceLimiter};

use crate::document::{Faults, Section, Span};
use crate::error::{ConfigError, ConfigErrors};
use crate::ports::Ports;
use crate::validate;
use toml::de::DeTable;

pub use slb_core::spec::Protocol;

/// A good configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[node]`.
    pub node: Node,
    /// `[[frontend]]`.
    pub frontends: Vec<Frontend>,
    /// `[[pool]]`.
    pub pools: Vec<Pool>,
    /// `[[probe]]`.
    pub probes: Vec<Probe>,
    /// `[[rule]]`.
    pub rules: Vec<Rule>,
    /// `[[inbound_nat_rule]]`, then `[[inbound_nat_pool]]`.
    pub inbound_nat: Vec<InboundNat>,
    /// `[[outbound_rule]]`, then those that rules imply.
    pub outbound: Vec<Outbound>,
    /// `[[port]]` and `[[source_rewrite]]`: of a proxy.
    pub ports: Ports,
    /// What probes found so far: no file says that.
    pub health: Findings,
}

/// What probes found of backends, beside what the configuration says of them.
///
/// A finding belongs to a pool, a probe and a backend, given by their places in the configuration:
/// a rule goes by the findings of its own probe. A backend without a finding is healthy.
#[derive(Clone, Debug, Default)]
pub struct Findings(BTreeMap<(usize, usize, usize), BackendHealth>);

impl Findings {
    /// The finding of a probe about a backend of a pool.
    pub fn of(&self, pool: usize, probe: usize, backend: usize) -> BackendHealth {
        let found = self.0.get(&(pool, probe, backend));
        found.copied().unwrap_or_default()
    }

    /// Takes down a finding.
    pub fn set(&mut self, pool: usize, probe: usize, backend: usize, found: BackendHealth) {
        self.0.insert((pool, probe, backend), found);
    }
}

/// How a backend stands with the rules of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// New flows of all rules may go to it.
    Healthy,
    /// The backend fails the probes of some rules of its pool, and serves the others.
    Partial,
    /// The backend fails the probes of all rules of its pool, or fails for all rules by its traffic.
    Unhealthy,
    /// The operator drains the backend.
    Draining,
    /// The operator took the backend out of service.
    Down,
}

impl Standing {
    /// Whether new flows of a rule may go to the backend.
    pub const fn takes_flows(self) -> bool {
        matches!(self, Self::Healthy | Self::Partial)
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Partial => "partial",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

/// What the node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Encapsulates packets for VIPs to the hosts of their backends.
    Mux,
    /// Translates between VIPs and the vms that run on this machine.
    Host,
    /// Translates between clients on one side and backends on the other.
    Proxy,
}

impl Role {
    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mux => "mux",
            Self::Host => "host",
            Self::Proxy => "proxy",
        }
    }
}

/// `[node]`: this machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub role: Role,
    /// Its IPv4 address on the fabric.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address on the fabric.
    pub ipv6: Option<Ipv6Addr>,
    /// Its MAC address, if it is said: else the interface's is taken, where there is one.
    pub mac: Option<MacAddress>,
    /// The MAC address of the fabric's router, if it is said: else the kernel's neighbour table is
    /// asked, where there is one.
    pub next_hop: Option<MacAddress>,
    /// The longest IP packet on the fabric, if it is said: else the interface's, where there is one.
    pub mtu: Option<u16>,
    /// TTL of the outer header.
    pub hop_limit: u8,
    /// The outer UDP checksum.
    pub udp_checksum: UdpChecksum,
    /// How flows are hashed.
    pub hasher: Hasher,
    /// The seed of hashes and of Maglev's permutations.
    pub hash_seed: u64,
    /// Flows that can be pinned, of each family; zero: stateless.
    pub flows: usize,
    /// Echo replies a second.
    pub answers_per_second: u32,
    /// Packets "too big" and "fragmentation needed" a second.
    pub too_big_per_second: u32,
    /// Other ICMP errors a second.
    pub errors_per_second: u32,
    /// Connections of a host agent or a proxy, of each family.
    pub connections: usize,
    /// Later fragments that can wait for their first one; zero: none.
    pub waiting_fragments: usize,
    /// New flows that a source may begin a second, in the long run; zero: as many as it likes.
    pub flows_per_source: u32,
    /// And at once.
    pub flows_per_source_at_once: u32,
    /// RSTs a second.
    pub resets_per_second: u32,
    /// Packets that a host agent passes on to other hosts a second.
    pub passes_per_second: u32,
    /// Where a host agent's ICMP errors over IPv4 come from, if not from its underlay address.
    pub icmp_source_ipv4: Option<Ipv4Addr>,
    /// Where a host agent's ICMP errors over IPv6 come from, if not from its underlay address.
    pub icmp_source_ipv6: Option<Ipv6Addr>,
    /// Whether a host agent lowers the segment sizes that SYNs offer to what fits VXLAN.
    pub clamp_mss: bool,
    /// The muxes' addresses on the fabric.
    pub muxes: Vec<IpAddr>,
    /// Of a host agent: addresses that vms reach, and answer, under their own.
    pub inside: Vec<Prefix>,
    /// Whether a mux announces a VIP only while a backend of it takes new flows.
    pub withdraw_when_down: bool,
    /// The addresses that probes come from, if not those that the kernel chooses: of a host agent,
    /// if not [`PROBE_SOURCE_IPV4`] and [`PROBE_SOURCE_IPV6`].
    pub probe_sources: Vec<IpAddr>,
    /// Whether the node probes backends at all.
    pub probing: bool,
}

/// `[[frontend]]`: a VIP.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// What becomes of echo requests.
    pub icmp_echo: Echo,
    pub(crate) span: Span,
}

/// `[[pool]]`: backends that serve the same.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The VXLAN network of its backends.
    pub vni: Vni,
    /// Slots of its Maglev table.
    pub table_size: u32,
    /// How long a backend that has recovered takes to get its whole share, if not at once.
    pub slow_start: Option<Duration>,
    /// When its own traffic speaks against a backend, if ever.
    pub passive: Option<PassivePolicy>,
    /// Its backends.
    pub backends: Vec<Backend>,
    pub(crate) span: Span,
}

/// One of a pool's `backends`.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its address, the DIP.
    pub address: IpAddr,
    /// Its host's address on the fabric.
    pub host: IpAddr,
    /// Its MAC address, unless it is derived.
    pub mac: Option<MacAddress>,
    /// The MAC address of the next hop to its host, unless it is the node's.
    pub next_hop: Option<MacAddress>,
    /// Its share.
    pub weight: u32,
    /// Administrative state, as configured.
    pub state: BackendState,
    /// Seat of the backend in the pool's Maglev table; `None`: its name.
    pub seat: Option<String>,
    /// Condition as observed by the backend's traffic or by the route to its host: healthy in a
    /// configuration that was just read.
    pub condition: Condition,
    /// Its number in the pool, unless that is its place.
    pub instance: Option<u32>,
    /// The port of its host that it is at, unless that is counted.
    pub port: Option<u16>,
    /// The port that it serves, unless that is the rule's.
    pub backend_port: Option<u16>,
    pub(crate) span: Span,
}

impl Backend {
    /// The seat of the backend, or its name where it has none of its own.
    pub fn seat(&self) -> &str {
        self.seat.as_deref().unwrap_or(&self.name)
    }

    /// Whether new flows may go to the backend, before any probe is asked.
    pub(crate) fn takes_flows(&self) -> bool {
        self.weight > 0 && self.state == BackendState::Up && self.condition == Condition::Healthy
    }
}

/// How a backend is asked whether it is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeProtocol {
    /// The handshake completes.
    Tcp,
    /// 200 comes back.
    Http,
    /// The same over TLS.
    Https,
}

/// `[[probe]]`.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Its name.
    pub name: String,
    /// How it asks.
    pub protocol: ProbeProtocol,
    /// Where it asks.
    pub port: u16,
    /// What it asks for over HTTP.
    pub path: String,
    /// How often it asks.
    pub interval: Duration,
    /// How long an answer may take; at most the interval.
    pub timeout: Duration,
    /// Failures in a row before a backend is unhealthy, successes before it is healthy again.
    pub threshold: u32,
    /// The host that is asked for, and that a certificate has to be for; else the backend's address.
    pub host: Option<String>,
    /// Whether a certificate has to be one that the web's authorities vouch for.
    pub verify_certificate: bool,
    /// What becomes of a pool of whose backends none is left.
    pub no_healthy_backends: NoHealthyBackends,
    pub(crate) span: Span,
}

/// What becomes of a pool all of whose backends fail their probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoHealthyBackends {
    /// New flows are refused: Azure's `AllProbedDown`.
    Refuse,
    /// They go to all, as if nobody failed: Azure's `AllProbedUp`.
    UseAll,
}

/// Where it stands in the file makes no difference.
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
    /// Its name.
    pub name: String,
    /// The place of its frontend.
    pub frontend: usize,
    /// The place of its pool.
    pub pool: usize,
    /// The place of its probe.
    pub probe: Option<usize>,
    /// What it takes.
    pub protocol: Protocol,
    /// The port that clients use.
    pub frontend_port: u16,
    /// The port that backends serve.
    pub backend_port: u16,
    /// What chooses a flow's backend.
    pub distribution: Distribution,
    /// How a proxy chooses.
    pub scheduler: Scheduler,
    /// How long a flow stays without a packet.
    pub idle_timeout: Duration,
    /// What else becomes of its connections.
    pub terms: Terms,
    /// Whether its backends may not call out under its frontend's address.
    pub disable_outbound_snat: bool,
    pub(crate) span: Span,
}

/// `[[inbound_nat_rule]]` or `[[inbound_nat_pool]]`.
#[derive(Clone, Debug)]
pub struct InboundNat {
    /// Its name.
    pub name: String,
    /// The place of its frontend.
    pub frontend: usize,
    /// The place of its pool.
    pub pool: usize,
    /// Where its ports lead to.
    pub target: NatTarget,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port that the backend serves.
    pub backend_port: u16,
    /// How long a flow stays without a packet.
    pub idle_timeout: Duration,
    /// What else becomes of its connections.
    pub terms: Terms,
    pub(crate) span: Span,
}

impl InboundNat {
    /// What errors call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self.target {
            NatTarget::Backend { .. } => "inbound_nat_rule",
            NatTarget::Pool { .. } => "inbound_nat_pool",
        }
    }

    /// The frontend ports that it takes.
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
    /// Its name.
    pub name: String,
    /// The places of its frontends.
    pub frontends: Vec<usize>,
    /// The place of its pool.
    pub pool: usize,
    /// What may go out.
    pub protocol: Protocol,
    /// Ports for each backend; `None`: an even share.
    pub allocated_outbound_ports: Option<u32>,
    /// How long a flow stays without a packet.
    pub idle_timeout: Duration,
    /// Whether both ends are told when a connection ends by itself.
    pub tcp_reset: bool,
    pub(crate) span: Span,
}

/// The shortest idle timeout, and the default.
pub const MIN_IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 60);
/// Where a host agent's probes of its vms come from, if it is not said: Azure's address, whose
/// packets vms there let in.
pub const PROBE_SOURCE_IPV4: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// The same for IPv6: unique local (RFC 4193), with the IPv4 address in its end. A link-local one
/// would never come back from a vm by XDP, which leaves those to the kernel.
pub const PROBE_SOURCE_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6c62, 0, 0, 0, 0, 0xa83f, 0x8110);

/// The longest idle timeout.
pub const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// All faults found, each with its line. A file that cannot be read is one on line 1.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self, ConfigErrors> {
        let file = path.as_ref().display().to_string();
        match read_bounded(path.as_ref()) {
            Ok(text) => Self::parse(&file, &text),
            Err(message) => Err(ConfigErrors(vec![ConfigError {
                file,
                line: 1,
                place: String::new(),
                message,
            }])),
        }
    }

    /// Reads and checks a text; `file` is what errors call it.
    ///
    /// # Errors
    /// All faults found, each with its line.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigErrors> {
        let faults = Faults::new(file, text);
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            faults.add(&error.span().unwrap_or(0..0), "", error.message());
        }
        if !faults.is_empty() {
            return Err(faults.into_errors());
        }
        let config = {
            let root = Section::root(&document, &faults);
            let config = read::read(&root);
            root.finish();
            config
        };
        if let Some(config) = config {
            if validate::is_too_large(&config, &faults) {
                return Err(faults.into_errors());
            }
            validate::check(&config, &faults);
            if faults.is_empty() {
                return Ok(config);
            }
        }
        Err(faults.into_errors())
    }

    /// Compiles the configuration. Give the snapshot in place as `previous`, so that backends
    /// keep their ids.
    ///
    /// # Errors
    /// Only what [`parse`](Self::parse) cannot know: that there are more backends than ids.
    pub fn snapshot(
        &self,
        previous: Option<&Snapshot<'_>>,
    ) -> Result<Arc<Snapshot<'static>>, SpecError> {
        self.with_spec(|spec| Snapshot::new(spec, previous))
            .map(Arc::new)
    }

    /// Lends the configuration as the dataplane's own.
    pub fn with_spec<T>(&self, f: impl FnOnce(&Spec<'_>) -> T) -> T {
        let frontends: Vec<_> = self.frontends.iter().map(Frontend::spec).collect();
        let vms = self.vms().into_iter();
        let ports = vms
            .filter_map(|vm| Some(((vm.vni, vm.mac), vm.port?)))
            .collect();
        let backends: Vec<Vec<_>> = self
            .pools
            .iter()
            .map(|pool| {
                let backends = pool.backends.iter();
                backends
                    .map(|backend| self.backend_spec(pool, backend, &ports))
                    .collect()
            })
            .collect();
        let pools: Vec<_> = self
            .pools
            .iter()
            .zip(&backends)
            .map(|(pool, backends)| pool.spec(backends))
            .collect();
        let probed = self.probed_pools();
        let findings: Vec<Vec<_>> = probed
            .iter()
            .map(|&(pool, probe)| {
                let backends = 0..self.pools[pool].backends.len();
                backends.map(|n| self.health.of(pool, probe, n)).collect()
            })
            .collect();
        let health: Vec<_> = probed
            .iter()
            .zip(&findings)
            .map(|(&(pool, _), backends)| PoolHealth { pool, backends })
            .collect();
        let places: HashMap<_, usize> = (0..).zip(&probed).map(|(n, &pair)| (pair, n)).collect();
        let rules: Vec<_> = self
            .rules
            .iter()
            .map(|rule| {
                let health = rule.probe.and_then(|probe| places.get(&(rule.pool, probe)));
                rule.spec(health.copied())
            })
            .collect();
        let inbound_nat: Vec<_> = self.inbound_nat.iter().map(InboundNat::spec).collect();
        let outbound: Vec<_> = self.outbound.iter().map(Outbound::spec).collect();
        let is_proxy = self.node.role == Role::Proxy;
        let ports = self.ports.frontends();
        f(&Spec {
            hasher: self.node.hasher.clone(),
            hash_seed: self.node.hash_seed,
            underlay: self.node.underlay(),
            frontends: &frontends,
            rules: &rules,
            pools: &pools,
            health: &health,
            inbound_nat: &inbound_nat,
            outbound: if is_proxy { &[] } else { &outbound },
            muxes: &self.node.muxes,
            inside: &self.node.inside,
            probe_source: self.node.probe_source(),
            proxy: is_proxy.then(|| self.ports.spec(&ports)),
            now: now(),
        })
    }

    /// The limit on the new flows of each source, with buckets out of `memory`, if the node has one; the
    /// inner one is missing where the memory is used up.
    pub fn source_limit<'m>(
        &self,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Option<Option<SourceLimiter<'m>>> {
        let (rate, at_once) = (
            self.node.flows_per_source,
            self.node.flows_per_source_at_once,
        );
        let build = || SourceLimiter::build(SourceLimiter::BUCKETS, rate, at_once, key, memory);
        (rate > 0).then(build)
    }

    /// Where later fragments wait for their first one, out of `memory`, if the node lets them; the inner
    /// one is missing where the memory is used up.
    pub fn fragment_room<'m>(
        &self,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Option<Option<FragmentRoom<'m>>> {
        let slots = self.node.waiting_fragments;
        (slots > 0).then(|| FragmentRoom::build(slots, key, memory))
    }

    /// What a mux may do besides forwarding.
    pub fn mux_options(&self) -> MuxOptions {
        MuxOptions {
            answers_per_second: self.node.answers_per_second,
            too_big_per_second: self.node.too_big_per_second,
            errors_per_second: self.node.errors_per_second,
            resets_per_second: self.node.resets_per_second,
            ..MuxOptions::default()
        }
    }

    /// What a host agent or a proxy may do besides translating.
    pub fn nat_options(&self) -> NatOptions {
        NatOptions {
            answers_per_second: self.node.answers_per_second,
            too_big_per_second: self.node.too_big_per_second,
            errors_per_second: self.node.errors_per_second,
            resets_per_second: self.node.resets_per_second,
            passes_per_second: self.node.passes_per_second,
            passes_at_once: self.node.passes_per_second.div_ceil(10),
            icmp_source_ipv4: self.node.icmp_source_ipv4,
            icmp_source_ipv6: self.node.icmp_source_ipv6,
            clamp_mss: self.node.clamp_mss,
            ..NatOptions::default()
        }
    }

    /// The port that packets to backends leave by: the fabric's, 0, or a proxy's backend port.
    pub fn backend_port(&self) -> PortId {
        match self.node.role {
            Role::Mux | Role::Host => PortId(0),
            Role::Proxy => self.ports.backend(),
        }
    }

    /// The longest IP packet on the fabric, in bytes: as configured, or the default.
    pub fn mtu(&self) -> u16 {
        self.node.underlay().mtu
    }

    /// The vms that run on this machine, each at its port: the backends whose host is this node.
    /// Backends of one network with one MAC address are one vm. A vm without a `port` gets the first
    /// free one, counted from 1 in the order of the file.
    pub fn vms(&self) -> Vec<Vm> {
        let mut vms: Vec<Vm> = Vec::new();
        if self.node.role != Role::Host {
            return vms;
        }
        let mut known = HashMap::new();
        for pool in &self.pools {
            for backend in &pool.backends {
                if !self.node.is(backend.host) {
                    continue;
                }
                let mac = backend.mac();
                let index = *known.entry((pool.vni, mac)).or_insert_with(|| {
                    vms.push(Vm {
                        port: None,
                        vni: pool.vni,
                        mac,
                        addresses: Vec::new(),
                        name: backend.name.clone(),
                    });
                    vms.len() - 1
                });
                let vm = &mut vms[index];
                vm.port = vm.port.or(backend.port.map(PortId));
                if !vm.addresses.contains(&backend.address) {
                    vm.addresses.push(backend.address);
                }
            }
        }
        let said: HashSet<PortId> = vms.iter().filter_map(|vm| vm.port).collect();
        let mut free = (1..).map(PortId).filter(|port| !said.contains(port));
        for vm in vms.iter_mut().filter(|vm| vm.port.is_none()) {
            vm.port = free.next();
        }
        vms
    }

    /// Things that are allowed and seldom meant, a line each.
    pub fn warnings(&self) -> Vec<String> {
        warnings::of(self)
    }

    /// What this configuration takes away that `old` had and that is seldom taken away on purpose,
    /// a line each: all rules of a VIP, or half of a pool's backends and more.
    pub fn losses(&self, old: &Self) -> Vec<String> {
        warnings::losses(old, self)
    }

    /// The pools and probes that rules go by, each pair once.
    pub fn probed_pools(&self) -> Vec<(usize, usize)> {
        let mut seen = HashSet::new();
        let probed = self.rules.iter();
        let probed = probed.filter_map(|rule| Some((rule.pool, rule.probe?)));
        probed.filter(|&pair| seen.insert(pair)).collect()
    }

    /// Whether new flows of a rule may go to a backend of its pool, given by its place there.
    pub fn serves(&self, rule: &Rule, backend: usize) -> bool {
        let of_pool = self.pools.get(rule.pool);
        of_pool
            .and_then(|pool| pool.backends.get(backend))
            .is_some_and(|own| own.takes_flows() && !self.fails(rule, backend))
    }

    /// Whether a backend fails the probe of a rule.
    pub fn fails(&self, rule: &Rule, backend: usize) -> bool {
        rule.probe.is_some_and(|probe| {
            self.health.of(rule.pool, probe, backend).condition == Condition::Unhealthy
        })
    }

    /// The backends of a pool that get new flows of a rule of it, or would, where it has no rule.
    pub(crate) fn serving(&self, pool: usize) -> Vec<usize> {
        let rules = || self.rules.iter().filter(|rule| rule.pool == pool);
        let is_ruled = rules().next().is_some();
        let backends = self.pools[pool].backends.iter().enumerate();
        let serves = |&(place, backend): &(usize, &Backend)| {
            backend.takes_flows() && (!is_ruled || rules().any(|rule| self.serves(rule, place)))
        };
        backends.filter(serves).map(|(place, _)| place).collect()
    }

    /// How a backend stands with the rules of its pool; both are given by their places.
    pub fn standing(&self, pool: usize, backend: usize) -> Standing {
        let of_pool = self.pools.get(pool);
        let own = of_pool.and_then(|pool| pool.backends.get(backend));
        match own.map_or(BackendState::Up, |own| own.state) {
            BackendState::Down => Standing::Down,
            BackendState::Draining => Standing::Draining,
            BackendState::Up => self.observed(pool, backend),
        }
    }

    /// How a backend does with the rules of its pool by what was observed alone: healthy, partial or
    /// unhealthy, whatever its administrative state.
    pub fn observed(&self, pool: usize, backend: usize) -> Standing {
        let of_pool = self.pools.get(pool);
        let own = of_pool.and_then(|pool| pool.backends.get(backend));
        if own.is_some_and(|own| own.condition == Condition::Unhealthy) {
            return Standing::Unhealthy;
        }
        let rules = || self.rules.iter().filter(|rule| rule.pool == pool);
        match rules().filter(|rule| self.fails(rule, backend)).count() {
            0 => Standing::Healthy,
            failed if failed < rules().count() => Standing::Partial,
            _ => Standing::Unhealthy,
        }
    }

    /// Whether a backend takes new flows of one of a frontend's rules; `None` where it has no rule.
    pub fn is_available(&self, frontend: usize) -> Option<bool> {
        let mut rules = self
            .rules
            .iter()
            .filter(|rule| rule.frontend == frontend)
            .peekable();
        rules.peek()?;
        Some(rules.any(|rule| {
            let backends = self
                .pools
                .get(rule.pool)
                .map_or(0, |pool| pool.backends.len());
            (0..backends).any(|backend| self.serves(rule, backend))
        }))
    }

    /// The port of the vm that is the backend of a name.
    pub fn port_of(&self, backend: &str) -> Option<PortId> {
        let vms = self.vms();
        vms.iter()
            .find(|vm| vm.name == backend)
            .and_then(|vm| vm.port)
    }

    fn backend_spec<'b>(
        &self,
        pool: &Pool,
        backend: &'b Backend,
        ports: &HashMap<(Vni, MacAddress), PortId>,
    ) -> spec::Backend<'b> {
        spec::Backend {
            name: &backend.name,
            address: backend.address,
            host: backend.host,
            mac: backend.mac,
            next_hop: backend.next_hop,
            weight: backend.weight,
            state: backend.state,
            seat: backend.seat.as_deref(),
            condition: backend.condition,
            instance: backend.instance,
            backend_port: backend.backend_port,
            port: ports
                .get(&(pool.vni, backend.mac()))
                .filter(|_| self.node.is(backend.host))
                .copied(),
        }
    }

    /// A backend by its name, or by its pool's and its own: `pool/name`. The first of its name.
    pub fn backend_mut(&mut self, name: &str) -> Option<&mut Backend> {
        let (pool, name) = match name.split_once('/') {
            Some((pool, name)) => (Some(pool), name),
            None => (None, name),
        };
        let pools = self
            .pools
            .iter_mut()
            .filter(|p| pool.is_none_or(|pool| p.name == pool));
        pools
            .flat_map(|pool| &mut pool.backends)
            .find(|backend| backend.name == name)
    }
}

/// The time since this process first asked, which no setting of the clock changes.
fn now() -> slb_core::Instant {
    static FIRST: OnceLock<std::time::Instant> = OnceLock::new();
    slb_core::Instant::ZERO + FIRST.get_or_init(std::time::Instant::now).elapsed()
}

/// The largest file that is read, in bytes.
pub const LARGEST_FILE: u64 = 16 << 20;
/// The most backends of all pools together.
pub const MOST_BACKENDS: usize = 1 << 16;
/// The most frontends, and the most rules of all kinds together.
pub const MOST_RULES: usize = 1 << 14;
/// The most slots of all Maglev tables together, of two bytes each. A pool has a table, and another one for
/// each probe that its rules go by.
pub const MOST_SLOTS: u64 = 1 << 28;

/// Reads a file, and of one that is too large no more than shows that.
fn read_bounded(path: &Path) -> Result<String, String> {
    let read = |mut text: String| {
        let file = fs::File::open(path)?;
        file.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
        Ok::<String, io::Error>(text)
    };
    let text = read(String::new()).map_err(|error| format!("cannot be read: {error}"))?;
    match text.len() as u64 > LARGEST_FILE {
        true => Err(format!(
            "expected a file of at most {LARGEST_FILE} bytes, got more"
        )),
        false => Ok(text),
    }
}

impl Node {
    /// Where a host agent's probes come from; none for the other roles, and where it does not
    /// probe.
    pub fn probe_source(&self) -> ProbeSource {
        if self.role != Role::Host || !self.probing {
            return ProbeSource::default();
        }
        let mut source = ProbeSource {
            ipv4: Some(PROBE_SOURCE_IPV4),
            ipv6: Some(PROBE_SOURCE_IPV6),
        };
        for address in &self.probe_sources {
            match address {
                IpAddr::V4(address) => source.ipv4 = Some(*address),
                IpAddr::V6(address) => source.ipv6 = Some(*address),
            }
        }
        source
    }

    /// Whether an address is this node's on the fabric.
    pub fn is(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4 == Some(address),
            IpAddr::V6(address) => self.ipv6 == Some(address),
        }
    }

    /// Makes a host agent's node one of its muxes: with the first address of each family that
    /// [`muxes`](Self::muxes) has, since a host takes no VXLAN from its own. Where none is named, any
    /// sender is taken, and the address is one for documentation (RFC 5737, RFC 3849).
    pub fn become_mux(&mut self) {
        let named = |is_ipv6| self.muxes.iter().find(move |mux| mux.is_ipv6() == is_ipv6);
        let ipv4 = match named(false) {
            Some(&IpAddr::V4(mux)) => mux,
            _ => Ipv4Addr::new(192, 0, 2, 1),
        };
        let ipv6 = match named(true) {
            Some(&IpAddr::V6(mux)) => mux,
            _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        };
        self.role = Role::Mux;
        self.ipv4 = self.ipv4.and(Some(ipv4));
        self.ipv6 = self.ipv6.and(Some(ipv6));
    }

    fn underlay(&self) -> spec::Underlay {
        let usual = spec::Underlay::default();
        spec::Underlay {
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            mac: self.mac.unwrap_or(usual.mac),
            next_hop: self.next_hop.unwrap_or(usual.next_hop),
            mtu: self.mtu.unwrap_or(usual.mtu),
            hop_limit: self.hop_limit,
            udp_checksum: self.udp_checksum,
            port: PortId(0),
        }
    }
}

impl Frontend {
    fn spec(&self) -> spec::Frontend<'_> {
        spec::Frontend {
            name: &self.name,
            address: self.address,
            icmp_echo: self.icmp_echo,
        }
    }
}

impl Pool {
    fn spec<'a>(&'a self, backends: &'a [spec::Backend<'a>]) -> spec::Pool<'a> {
        spec::Pool {
            name: &self.name,
            vni: self.vni,
            table_size: self.table_size,
            backends,
            ..spec::Pool::default()
        }
    }
}

impl Backend {
    /// Its MAC address, given or derived.
    pub fn mac(&self) -> MacAddress {
        self.mac.unwrap_or_else(|| spec::derived_mac(self.address))
    }
}

/// A vm on this machine.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Port of the host agent that the vm is at; always present.
    pub port: Option<PortId>,
    /// Network of the vm.
    pub vni: Vni,
    /// MAC address of the vm.
    pub mac: MacAddress,
    /// Addresses of the vm.
    pub addresses: Vec<IpAddr>,
    /// The name of its first backend.
    pub name: String,
}

impl InboundNat {
    fn spec(&self) -> spec::InboundNat<'_> {
        spec::InboundNat {
            name: &self.name,
            frontend: self.frontend,
            pool: self.pool,
            target: self.target,
            protocol: self.protocol,
            backend_port: self.backend_port,
            idle_timeout: self.idle_timeout,
            terms: self.terms,
        }
    }
}

impl Outbound {
    fn spec(&self) -> spec::Outbound<'_> {
        spec::Outbound {
            name: &self.name,
            frontends: &self.frontends,
            pool: self.pool,
            protocol: self.protocol,
            allocated_outbound_ports: self.allocated_outbound_ports,
            idle_timeout: self.idle_timeout,
            tcp_reset: self.tcp_reset,
        }
    }
}

impl Rule {
    fn spec(&self, health: Option<usize>) -> spec::Rule<'_> {
        spec::Rule {
            name: &self.name,
            frontend: self.frontend,
            pool: self.pool,
            health,
            protocol: self.protocol,
            frontend_port: self.frontend_port,
            backend_port: self.backend_port,
            distribution: self.distribution,
            scheduler: self.scheduler,
            idle_timeout: self.idle_timeout,
            terms: self.terms,
        }
    }
}
