//! The configuration: one TOML file, named as Azure names things, in snake case.
//!
//! A [`Config`] is one that was found good: every name that is referred to is there, no two rules
//! take the same packets, and a snapshot can be built. `docs/configuration.md` lists the fields.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use slb_core::hash::{Distribution, Hasher, MICROSOFT_KEY, SipHash13, Toeplitz, Xxh3};
use slb_core::maglev;
use slb_core::nat::NatOptions;
use slb_core::service::{
    self, Answers, BackendState, Echo, NatTarget, Scheduler, Snapshot, Spec, SpecError, Terms,
    UdpChecksum,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{MuxOptions, PortId};

use crate::document::{Faults, Section, Span};
use crate::error::{ConfigError, ConfigErrors};
use crate::ports::{self, Ports};
use crate::validate;
use toml::de::DeTable;

pub use slb_core::service::Protocol;

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

/// `[node]`: this machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub role: Role,
    /// Its IPv4 address on the fabric.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address on the fabric.
    pub ipv6: Option<Ipv6Addr>,
    /// Its MAC address.
    pub mac: MacAddress,
    /// The MAC address of the fabric's router.
    pub next_hop: MacAddress,
    /// The longest IP packet on the fabric.
    pub mtu: u16,
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
    /// Echo replies and ICMP errors a second.
    pub answers_per_second: u32,
    /// Connections of a host agent or a proxy, of each family.
    pub connections: usize,
    /// RSTs of a host agent or a proxy a second.
    pub resets_per_second: u32,
    /// Whether a host agent lowers the segment sizes that SYNs offer to what fits VXLAN.
    pub clamp_mss: bool,
    /// The muxes' addresses on the fabric.
    pub muxes: Vec<IpAddr>,
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
    /// Whether it gets new flows.
    pub state: BackendState,
    /// Its number in the pool, unless that is its place.
    pub instance: Option<u32>,
    /// The port of its host that it is at, unless that is counted.
    pub port: Option<u16>,
    /// The port that it serves, unless that is the rule's.
    pub backend_port: Option<u16>,
    pub(crate) span: Span,
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
    /// Failures in a row before a backend is unhealthy, successes before it is healthy again.
    pub threshold: u32,
    pub(crate) span: Span,
}

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
/// The longest idle timeout.
pub const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// All faults found, each with its line. A file that cannot be read is one on line 1.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self, ConfigErrors> {
        let file = path.as_ref().display().to_string();
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&file, &text),
            Err(error) => {
                let message = format!("cannot be read: {error}");
                Err(ConfigErrors(vec![ConfigError {
                    file,
                    line: 1,
                    place: String::new(),
                    message,
                }]))
            }
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
            let config = read(&root);
            root.finish();
            config
        };
        if let Some(config) = config {
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
        self.with_spec(|spec| Snapshot::boxed(spec, previous))
            .map(Arc::new)
    }

    /// Lends the configuration as the dataplane's own.
    pub fn with_spec<T>(&self, f: impl FnOnce(&Spec<'_>) -> T) -> T {
        let frontends: Vec<_> = self.frontends.iter().map(Frontend::spec).collect();
        let backends: Vec<Vec<_>> = self
            .pools
            .iter()
            .map(|pool| {
                let backends = pool.backends.iter();
                backends
                    .map(|backend| self.backend_spec(pool, backend))
                    .collect()
            })
            .collect();
        let pools: Vec<_> = self
            .pools
            .iter()
            .zip(&backends)
            .map(|(pool, backends)| pool.spec(backends))
            .collect();
        let rules: Vec<_> = self.rules.iter().map(Rule::spec).collect();
        let inbound_nat: Vec<_> = self.inbound_nat.iter().map(InboundNat::spec).collect();
        let outbound: Vec<_> = self.outbound.iter().map(Outbound::spec).collect();
        let is_proxy = self.node.role == Role::Proxy;
        let ports = self.ports.frontends();
        f(&Spec {
            hasher: self.node.hasher.clone(),
            maglev_seed: self.node.hash_seed,
            underlay: self.node.underlay(),
            frontends: &frontends,
            rules: &rules,
            pools: &pools,
            inbound_nat: &inbound_nat,
            outbound: if is_proxy { &[] } else { &outbound },
            muxes: &self.node.muxes,
            proxy: is_proxy.then(|| self.ports.spec(&ports)),
        })
    }

    /// What a mux may do besides forwarding.
    pub fn mux_options(&self) -> MuxOptions {
        MuxOptions {
            answers_per_second: self.node.answers_per_second,
            ..MuxOptions::default()
        }
    }

    /// What a host agent or a proxy may do besides translating.
    pub fn nat_options(&self) -> NatOptions {
        NatOptions {
            answers_per_second: self.node.answers_per_second,
            resets_per_second: self.node.resets_per_second,
            clamp_mss: self.node.clamp_mss,
            ..NatOptions::default()
        }
    }

    /// The vms that run on this machine, each at its port: those whose backends' host is this node.
    /// They are at the ports from 1 on in the order in which they stand, unless they say where.
    pub fn vms(&self) -> Vec<Vm> {
        let mut vms: Vec<Vm> = Vec::new();
        if self.node.role != Role::Host {
            return vms;
        }
        let here = self.pools.iter().flat_map(|pool| {
            let backends = pool.backends.iter();
            backends.map(move |backend| (pool.vni, backend))
        });
        for (vni, backend) in here.filter(|(_, backend)| self.node.is(backend.host)) {
            let mac = backend.mac();
            let known = vms.iter_mut().find(|vm| vm.vni == vni && vm.mac == mac);
            match known {
                Some(vm) => vm.addresses.push(backend.address),
                None => vms.push(Vm {
                    port: backend.port.map(PortId),
                    vni,
                    mac,
                    addresses: vec![backend.address],
                }),
            }
        }
        let mut next = 1;
        for place in 0..vms.len() {
            if vms[place].port.is_none() {
                while vms.iter().any(|vm| vm.port == Some(PortId(next))) {
                    next += 1;
                }
                vms[place].port = Some(PortId(next));
            }
        }
        vms
    }

    fn backend_spec<'b>(&self, pool: &Pool, backend: &'b Backend) -> service::Backend<'b> {
        let mac = backend.mac();
        let vms = self.vms();
        let vm = vms.iter().find(|vm| {
            vm.vni == pool.vni && vm.mac == mac && vm.addresses.contains(&backend.address)
        });
        service::Backend {
            name: &backend.name,
            address: backend.address,
            host: backend.host,
            mac: backend.mac,
            next_hop: backend.next_hop,
            weight: backend.weight,
            state: backend.state,
            instance: backend.instance,
            serves: backend.backend_port,
            port: vm
                .filter(|_| self.node.is(backend.host))
                .and_then(|vm| vm.port),
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

impl Node {
    /// Whether an address is this node's on the fabric.
    pub fn is(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4 == Some(address),
            IpAddr::V6(address) => self.ipv6 == Some(address),
        }
    }

    fn underlay(&self) -> service::Underlay {
        service::Underlay {
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            mac: self.mac,
            next_hop: self.next_hop,
            mtu: self.mtu,
            hop_limit: self.hop_limit,
            udp_checksum: self.udp_checksum,
            port: PortId(0),
        }
    }
}

impl Frontend {
    fn spec(&self) -> service::Frontend<'_> {
        service::Frontend {
            name: &self.name,
            address: self.address,
            echo: self.icmp_echo,
        }
    }
}

impl Pool {
    fn spec<'a>(&'a self, backends: &'a [service::Backend<'a>]) -> service::Pool<'a> {
        service::Pool {
            name: &self.name,
            vni: self.vni,
            table_size: self.table_size,
            backends,
        }
    }
}

impl Backend {
    /// Its MAC address, given or derived.
    pub fn mac(&self) -> MacAddress {
        self.mac
            .unwrap_or_else(|| service::derived_mac(self.address))
    }
}

/// A vm on this machine.
#[derive(Clone, Debug)]
pub struct Vm {
    /// The port that it is at; there always is one.
    pub port: Option<PortId>,
    /// Its network.
    pub vni: Vni,
    /// Its MAC address.
    pub mac: MacAddress,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl InboundNat {
    fn spec(&self) -> service::InboundNat<'_> {
        service::InboundNat {
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
    fn spec(&self) -> service::Outbound<'_> {
        service::Outbound {
            name: &self.name,
            frontends: &self.frontends,
            pool: self.pool,
            protocol: self.protocol,
            ports_per_backend: self.allocated_outbound_ports,
            idle_timeout: self.idle_timeout,
            tcp_reset: self.tcp_reset,
        }
    }
}

impl Rule {
    fn spec(&self) -> service::Rule<'_> {
        service::Rule {
            name: &self.name,
            frontend: self.frontend,
            pool: self.pool,
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

const ADDRESS: &str = "an IPv4 or IPv6 address";
const MAC: &str = "a MAC address such as \"02:00:0a:0a:01:0b\"";

fn read(root: &Section<'_>) -> Option<Config> {
    let node = root.section("node").and_then(read_node);
    let frontends = read_all(root, "frontend", read_frontend);
    let is_proxy = node.as_ref().is_some_and(|node| node.role == Role::Proxy);
    let pools = read_all(root, "pool", |section| read_pool(section, is_proxy));
    let ports = ports::read(root);
    let probes = read_all(root, "probe", read_probe);
    let names = Names::of(root);
    let rules = read_all(root, "rule", |section| read_rule(section, &names));
    let nat_rules = read_all(root, "inbound_nat_rule", |section| {
        read_nat(section, &names, false)
    });
    let nat_pools = read_all(root, "inbound_nat_pool", |section| {
        read_nat(section, &names, true)
    });
    let outbound = read_all(root, "outbound_rule", |section| {
        read_outbound(section, &names)
    });
    let mut inbound_nat = nat_rules?;
    inbound_nat.extend(nat_pools?);
    let rules = rules?;
    let mut outbound = outbound?;
    add_implied(&rules, &mut outbound);
    Some(Config {
        node: node?,
        frontends: frontends?,
        pools: pools?,
        probes: probes?,
        rules,
        inbound_nat,
        outbound,
        ports: ports?,
    })
}

/// Adds the outbound rules that load-balancing rules imply: without `disable_outbound_snat`, a
/// rule's backends call out under its frontend's address, unless a rule of their own says how.
fn add_implied(rules: &[Rule], outbound: &mut Vec<Outbound>) {
    let explicit: Vec<usize> = outbound.iter().map(|rule| rule.pool).collect();
    for rule in rules {
        let known =
            |other: &Outbound| other.pool == rule.pool && other.frontends == [rule.frontend];
        if rule.disable_outbound_snat || explicit.contains(&rule.pool) || outbound.iter().any(known)
        {
            continue;
        }
        outbound.push(Outbound {
            name: format!("of rule {}", rule.name),
            frontends: vec![rule.frontend],
            pool: rule.pool,
            protocol: Protocol::All,
            allocated_outbound_ports: None,
            idle_timeout: rule.idle_timeout,
            tcp_reset: rule.terms.tcp_reset,
            span: rule.span.clone(),
        });
    }
}

/// What can be referred to: all names, also those of sections with faults.
struct Names {
    frontends: Vec<String>,
    pools: Vec<String>,
    probes: Vec<String>,
    /// Those of each pool.
    backends: Vec<Vec<String>>,
}

impl Names {
    fn of(root: &Section<'_>) -> Self {
        let name = |section: &Section<'_>| section.peek_name().unwrap_or_default();
        let names = |field| root.sections(field).iter().map(name).collect();
        let pools = root.sections("pool");
        Self {
            frontends: names("frontend"),
            pools: names("pool"),
            probes: names("probe"),
            backends: pools
                .iter()
                .map(|pool| pool.sections("backends").iter().map(name).collect())
                .collect(),
        }
    }
}

/// The place of the section that a field names.
fn refer(section: &Section<'_>, field: &'static str, names: &[String]) -> Option<usize> {
    let (text, span) = section.name(field)?;
    validate::refer(section, field, &text, &span, names)
}

/// Reads all sections of a kind; `None` where one of them has a fault.
fn read_all<'d, T>(
    parent: &Section<'d>,
    field: &'static str,
    read: impl Fn(Section<'d>) -> Option<T>,
) -> Option<Vec<T>> {
    let all: Vec<_> = parent.sections(field).into_iter().map(read).collect();
    all.into_iter().collect()
}

fn read_node(section: Section<'_>) -> Option<Node> {
    let role = section
        .required_choice(
            "role",
            &[
                ("mux", Role::Mux),
                ("host", Role::Host),
                ("proxy", Role::Proxy),
            ],
        )
        .map(|(role, _)| role);
    let (mut ipv4, mut ipv6) = (None, None);
    let parse = |text: &str| text.parse().ok();
    let addresses = match role {
        Some(Role::Proxy) => section.any("underlay", ADDRESS, parse),
        _ => section.one_or_more("underlay", ADDRESS, parse),
    };
    for (address, span) in addresses {
        let twice = match address {
            IpAddr::V4(address) => ipv4.replace(address).is_some(),
            IpAddr::V6(address) => ipv6.replace(address).is_some(),
        };
        if twice {
            let message = format!("expected one address of each family, got {address} too");
            section.fault(&span, "underlay", message);
        }
    }
    let mac = |field| section.optional(field, MAC, |text| text.parse().ok());
    let defaults = service::Underlay::default();
    let hash_seed = section.number("hash_seed", 0..=i64::MAX as u64, 0);
    let node = Node {
        role: role.unwrap_or(Role::Mux),
        ipv4,
        ipv6,
        mac: mac("mac").map_or(defaults.mac, |(mac, _)| mac),
        next_hop: mac("next_hop").map_or(defaults.next_hop, |(mac, _)| mac),
        mtu: section.number("mtu", 576..=65_535, defaults.mtu.into()) as u16,
        hop_limit: section.number("hop_limit", 1..=255, defaults.hop_limit.into()) as u8,
        udp_checksum: section.choice(
            "udp_checksum",
            &[
                ("auto", UdpChecksum::Auto),
                ("zero", UdpChecksum::Zero),
                ("computed", UdpChecksum::Computed),
            ],
            UdpChecksum::Auto,
        ),
        hasher: read_hasher(&section, hash_seed),
        hash_seed,
        flows: section.number("flows", 0..=1 << 32, 1 << 20) as usize,
        answers_per_second: section.number("answers_per_second", 0..=1_000_000, 1000) as u32,
        connections: section.number("connections", 1..=1 << 31, 1 << 18) as usize,
        resets_per_second: section.number("resets_per_second", 0..=10_000_000, 10_000) as u32,
        clamp_mss: section.boolean("clamp_mss", false),
        muxes: section
            .any("muxes", ADDRESS, |text| text.parse().ok())
            .into_iter()
            .map(|(address, _)| address)
            .collect(),
    };
    section.finish();
    role.map(|_| node)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HashName {
    Xxh3,
    SipHash13,
    Toeplitz,
}

fn read_hasher(section: &Section<'_>, seed: u64) -> Hasher {
    let choices = [
        ("xxh3", HashName::Xxh3),
        ("siphash-1-3", HashName::SipHash13),
        ("toeplitz", HashName::Toeplitz),
    ];
    let name = section.choice("hash", &choices, HashName::Xxh3);
    let key = section.text("hash_key");
    match (name, key) {
        (HashName::Xxh3, None) => Hasher::Xxh3(Xxh3::new(seed)),
        (HashName::Xxh3, Some((_, span))) => {
            let message = "is for \"siphash-1-3\" and \"toeplitz\"; \"xxh3\" has a hash_seed";
            section.fault(&span, "hash_key", message);
            Hasher::default()
        }
        (HashName::SipHash13, Some((text, span))) => match hex(&text) {
            Some(key) => Hasher::SipHash13(SipHash13::new(key)),
            None => {
                let message = "expected 32 hexadecimal digits (it is secret, so not shown)";
                section.fault(&span, "hash_key", message);
                Hasher::default()
            }
        },
        (HashName::SipHash13, None) => {
            let message = "is missing: \"siphash-1-3\" needs a secret one of 32 hexadecimal digits";
            section.fault(section.span(), "hash_key", message);
            Hasher::default()
        }
        (HashName::Toeplitz, Some((text, span))) => match hex(&text) {
            Some(key) => Hasher::Toeplitz(Toeplitz::new(&key)),
            None => {
                let message = "expected 80 hexadecimal digits (it is secret, so not shown)";
                section.fault(&span, "hash_key", message);
                Hasher::default()
            }
        },
        (HashName::Toeplitz, None) => Hasher::Toeplitz(Toeplitz::new(&MICROSOFT_KEY)),
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn read_frontend(section: Section<'_>) -> Option<Frontend> {
    let name = section.name("name");
    let address = section.required("address", ADDRESS, |text| text.parse().ok());
    let icmp_echo = section.choice(
        "icmp_echo",
        &[
            ("answer", Echo::Answer),
            ("forward", Echo::Forward),
            ("ignore", Echo::Ignore),
        ],
        Echo::Answer,
    );
    let span = section.span().clone();
    section.finish();
    Some(Frontend {
        name: name?.0,
        address: address?.0,
        icmp_echo,
        span,
    })
}

fn read_pool(section: Section<'_>, is_proxy: bool) -> Option<Pool> {
    let name = section.name("name");
    let vnis = 0..=Vni::MAX.get().into();
    let vni = if is_proxy {
        section.integer("vni", vnis, 0) // nothing is encapsulated
    } else {
        section.required_integer("vni", vnis)
    };
    let sizes = 3..=maglev::MAX_SIZE.into();
    let size = section.integer("table_size", sizes, maglev::DEFAULT_SIZE.into());
    if let Some((size, span)) = &size
        && !maglev::is_valid_size(*size as u32)
    {
        let next = (*size..)
            .find(|&size| maglev::is_valid_size(size as u32))
            .unwrap_or(3);
        let message = format!("expected a prime, got {size}; the next one is {next}");
        section.fault(span, "table_size", message);
    }
    let backends = read_all(&section, "backends", |section| {
        read_backend(section, is_proxy)
    });
    let span = section.span().clone();
    section.finish();
    let vni = vni.and_then(|(vni, _)| Vni::new(vni as u32));
    Some(Pool {
        name: name?.0,
        vni: vni?,
        table_size: size?.0 as u32,
        backends: backends?,
        span,
    })
}

fn read_backend(section: Section<'_>, is_proxy: bool) -> Option<Backend> {
    let name = section.name("name");
    let address = section.required("address", ADDRESS, |text| text.parse().ok());
    let parse = |text: &str| text.parse().ok();
    let host = if is_proxy {
        let host = section.optional("host", ADDRESS, parse);
        Some(host.map_or(Ipv4Addr::UNSPECIFIED.into(), |(host, _)| host))
    } else {
        section
            .required("host", ADDRESS, parse)
            .map(|(host, _)| host)
    };
    let mac = section.optional("mac", MAC, |text| text.parse().ok());
    let next_hop = section.optional("next_hop", MAC, |text| text.parse().ok());
    let weight = section.number("weight", 0..=1_000_000, 1) as u32;
    let state = section.choice(
        "state",
        &[
            ("healthy", BackendState::Healthy),
            ("unhealthy", BackendState::Unhealthy),
            ("draining", BackendState::Draining),
        ],
        BackendState::Healthy,
    );
    let instance = section
        .has("instance")
        .then(|| section.number("instance", 0..=65_535, 0));
    let port = section
        .has("port")
        .then(|| section.number("port", 1..=65_534, 1));
    let backend_port = section
        .has("backend_port")
        .then(|| section.number("backend_port", 1..=65_535, 1));
    let span = section.span().clone();
    section.finish();
    Some(Backend {
        name: name?.0,
        address: address?.0,
        host: host?,
        mac: mac.map(|(mac, _)| mac),
        next_hop: next_hop.map(|(mac, _)| mac),
        weight,
        state,
        instance: instance.map(|instance| instance as u32),
        port: port.map(|port| port as u16),
        backend_port: backend_port.map(|port| port as u16),
        span,
    })
}

fn read_probe(section: Section<'_>) -> Option<Probe> {
    let name = section.name("name");
    let choices = [
        ("tcp", ProbeProtocol::Tcp),
        ("http", ProbeProtocol::Http),
        ("https", ProbeProtocol::Https),
    ];
    let protocol = section.required_choice("protocol", &choices);
    let port = section.required_integer("port", 1..=65_535);
    let path = section.text("path");
    match (&protocol, &path) {
        (Some((ProbeProtocol::Tcp, _)), Some((_, span))) => {
            section.fault(span, "path", "is for \"http\" and \"https\"");
        }
        (_, Some((path, span))) if !path.starts_with('/') => {
            section.fault(
                span,
                "path",
                format!("expected one that begins with /, got {path:?}"),
            );
        }
        _ => {}
    }
    let seconds = Duration::from_secs;
    let interval = section.duration("interval", seconds(5)..=seconds(300), seconds(15));
    let threshold = section.number("threshold", 1..=100, 2) as u32;
    let span = section.span().clone();
    section.finish();
    Some(Probe {
        name: name?.0,
        protocol: protocol?.0,
        port: port?.0 as u16,
        path: path.map_or_else(|| "/".to_owned(), |(path, _)| path),
        interval,
        threshold,
        span,
    })
}

fn read_rule(section: Section<'_>, names: &Names) -> Option<Rule> {
    let name = section.name("name");
    let frontend = refer(&section, "frontend", &names.frontends);
    let pool = refer(&section, "pool", &names.pools);
    let probe = section
        .text("probe")
        .map(|(text, span)| validate::refer(&section, "probe", &text, &span, &names.probes));
    let choices = [
        ("tcp", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("icmp", Protocol::Icmp),
        ("all", Protocol::All),
    ];
    let protocol = section.required_choice("protocol", &choices);
    let protocol = protocol.map(|(protocol, _)| protocol);
    let port = |field, default| {
        let (port, span) = section.integer(field, 0..=65_535, default)?;
        let message = match (protocol?, port) {
            (Protocol::All, 1..) => format!("expected 0 with \"all\" (HA ports), got {port}"),
            (Protocol::Icmp, 1..) => format!("expected 0 with \"icmp\", got {port}"),
            (Protocol::Tcp | Protocol::Udp, 0) => {
                "expected 1 to 65535 with \"tcp\" and \"udp\"".to_owned()
            }
            _ => return Some(port as u16),
        };
        section.fault(&span, field, message);
        None
    };
    let frontend_port = port("frontend_port", 0);
    let some_port = u64::from(protocol.is_none_or(Protocol::has_port));
    let backend_port = port("backend_port", frontend_port.map_or(some_port, u64::from));
    let distribution = section.choice(
        "distribution",
        &[
            Distribution::FiveTuple,
            Distribution::SourceIp,
            Distribution::SourceIpProtocol,
        ]
        .map(|mode| (mode.name(), mode)),
        Distribution::FiveTuple,
    );
    let schedulers = [
        ("maglev", Scheduler::Maglev),
        ("least-connections", Scheduler::LeastConnections),
    ];
    let scheduler = section.choice("scheduler", &schedulers, Scheduler::Maglev);
    let terms = read_terms(&section);
    let idle_timeout = read_idle_timeout(&section);
    let disable_outbound_snat = section.boolean("disable_outbound_snat", true);
    let span = section.span().clone();
    section.finish();
    Some(Rule {
        name: name?.0,
        frontend: frontend?,
        pool: pool?,
        probe: match probe {
            None => None,
            Some(found) => Some(found?),
        },
        protocol: protocol?,
        frontend_port: frontend_port?,
        backend_port: backend_port?,
        distribution,
        scheduler,
        idle_timeout,
        terms,
        disable_outbound_snat,
        span,
    })
}

fn read_idle_timeout(section: &Section<'_>) -> Duration {
    let timeouts = MIN_IDLE_TIMEOUT..=MAX_IDLE_TIMEOUT;
    section.duration("idle_timeout", timeouts, MIN_IDLE_TIMEOUT)
}

fn read_terms(section: &Section<'_>) -> Terms {
    let answers = [("direct", Answers::Direct), ("mux", Answers::ThroughMux)];
    let source_nat = section.optional("source_nat", ADDRESS, |text| text.parse().ok());
    Terms {
        floating_ip: section.boolean("floating_ip", false),
        tcp_reset: section.boolean("tcp_reset", false),
        answers: section.choice("answers", &answers, Answers::Direct),
        source_nat: source_nat.map(|(address, _)| address),
    }
}

/// An inbound NAT rule, or a pool of them.
fn read_nat(section: Section<'_>, names: &Names, is_pool: bool) -> Option<InboundNat> {
    const PORTS: std::ops::RangeInclusive<u64> = 1..=65_535;
    let name = section.name("name");
    let frontend = refer(&section, "frontend", &names.frontends);
    let pool = refer(&section, "pool", &names.pools);
    let target = if is_pool {
        let first = section.required_integer("frontend_port_start", PORTS);
        let last = section.required_integer("frontend_port_end", PORTS);
        first.zip(last).and_then(|((first, _), (last, span))| {
            if last < first {
                let message = format!("expected {first} or more, got {last}");
                section.fault(&span, "frontend_port_end", message);
                return None;
            }
            Some(NatTarget::Pool {
                first: first as u16,
                last: last as u16,
            })
        })
    } else {
        let none = Vec::new();
        let backends = pool
            .and_then(|pool| names.backends.get(pool))
            .unwrap_or(&none);
        let backend = match pool {
            Some(_) => refer(&section, "backend", backends),
            None => section.name("backend").and(None),
        };
        let port = section.required_integer("frontend_port", PORTS);
        backend
            .zip(port)
            .map(|(backend, (port, _))| NatTarget::Backend {
                port: port as u16,
                backend,
            })
    };
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    let protocol = section.required_choice("protocol", &protocols);
    let backend_port = section.required_integer("backend_port", PORTS);
    let terms = read_terms(&section);
    let idle_timeout = read_idle_timeout(&section);
    let span = section.span().clone();
    section.finish();
    Some(InboundNat {
        name: name?.0,
        frontend: frontend?,
        pool: pool?,
        target: target?,
        protocol: protocol?.0,
        backend_port: backend_port?.0 as u16,
        idle_timeout,
        terms,
        span,
    })
}

fn read_outbound(section: Section<'_>, names: &Names) -> Option<Outbound> {
    let name = section.name("name");
    let expected = "the name of a frontend";
    let frontends: Vec<Option<usize>> = section
        .one_or_more("frontends", expected, |text| Some(text.to_owned()))
        .into_iter()
        .map(|(text, span)| validate::refer(&section, "frontends", &text, &span, &names.frontends))
        .collect();
    let pool = refer(&section, "pool", &names.pools);
    let protocols = [
        ("tcp", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("all", Protocol::All),
    ];
    let protocol = section.choice("protocol", &protocols, Protocol::All);
    let mut ports = None;
    if section.has("allocated_outbound_ports")
        && let Some((count, span)) = section.integer("allocated_outbound_ports", 0..=1_000_000, 0)
    {
        if count % 8 != 0 {
            let message = format!("expected a multiple of 8, or 0 for an even share, got {count}");
            section.fault(&span, "allocated_outbound_ports", message);
        }
        ports = Some(count as u32).filter(|&count| count != 0);
    }
    let idle_timeout = read_idle_timeout(&section);
    let tcp_reset = section.boolean("tcp_reset", false);
    let span = section.span().clone();
    section.finish();
    let frontends: Option<Vec<usize>> = frontends.into_iter().collect();
    Some(Outbound {
        name: name?.0,
        frontends: frontends.filter(|all| !all.is_empty())?,
        pool: pool?,
        protocol,
        allocated_outbound_ports: ports,
        idle_timeout,
        tcp_reset,
        span,
    })
}
