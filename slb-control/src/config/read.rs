//! Reading a [`Config`] from a document, section by section, with the position of each fault.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use slb_core::hash::{Distribution, Hasher, MICROSOFT_KEY, SipHash13, Toeplitz, Xxh3};
use slb_core::health::Condition;
use slb_core::health::PassivePolicy;
use slb_core::maglev;
use slb_core::spec::{
    self, Answers, BackendState, Echo, NatTarget, Prefix, Scheduler, Terms, UdpChecksum,
};
use slb_core::wire::vxlan::Vni;

use super::addresses::{self, Kind};
use super::zones::{read_zone, read_zones};
use super::{
    Backend, Config, Findings, Frontend, InboundNat, MAX_IDLE_TIMEOUT, MIN_IDLE_TIMEOUT,
    NoHealthyBackends, Node, Origin, Outbound, Pool, Probe, ProbeProtocol, Protocol, Role, Rule,
    SecurityList,
};
use super::{networks, security};
use crate::document::{Section, Span, resembling};
use crate::validate::Names;
use crate::{ports, validate};

pub(super) fn read(root: &Section<'_>, origin: Origin) -> Option<Config> {
    let node = root.section("node").and_then(read_node);
    let is_proxy = node.as_ref().is_some_and(|node| node.role == Role::Proxy);
    let names = AllNames::of(root);
    let networks = read_all(root, "network", |section| {
        networks::read_network(section, &names.security_lists)
    });
    let security_lists = read_security(root, &names.security_lists);
    let frontends = read_all(root, "frontend", |section| {
        read_frontend(section, is_proxy, &names.networks)
    });
    let network_vms = read_all(root, "vm", |section| {
        networks::read_vm(section, &names.networks, &names.security_lists)
    });
    let mut by_name = HashMap::new();
    for network in networks.iter().flatten() {
        by_name.entry(&*network.name).or_insert(network.vni.get());
    }
    let vnis = names.networks.all().iter();
    let vnis: Vec<Option<u32>> = vnis.map(|name| by_name.get(&**name).copied()).collect();
    let pools = read_all(root, "pool", |section| {
        read_pool(section, is_proxy, &names, &vnis)
    });
    let ports = ports::read(root);
    let probes = read_all(root, "probe", read_probe);
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
        networks: networks?,
        network_vms: network_vms?,
        security_lists: security_lists?,
        frontends: frontends?,
        pools: pools?,
        probes: probes?,
        rules,
        inbound_nat,
        outbound,
        ports: ports?,
        health: Findings::default(),
        origin: Arc::new(origin),
    })
}

/// Reads the access lists and their rules.
fn read_security(root: &Section<'_>, names: &Names) -> Option<Vec<SecurityList>> {
    let lists = read_all(root, "security_list", security::read_list);
    let rules = read_all(root, "security_rule", |section| {
        security::read_rule(section, names)
    });
    let (mut lists, rules) = (lists?, rules?);
    for (list, rule) in rules {
        lists.get_mut(list)?.rules.push(rule);
    }
    Some(lists)
}

/// Adds the outbound rules that load-balancing rules imply: without `disable_outbound_snat`, a
/// rule's backends connect out with its frontend's address, unless an outbound rule names their
/// pool.
fn add_implied(rules: &[Rule], outbound: &mut Vec<Outbound>) {
    let explicit: HashSet<usize> = outbound.iter().map(|rule| rule.pool).collect();
    let mut implied = HashSet::new();
    for rule in rules {
        if rule.disable_outbound_snat
            || explicit.contains(&rule.pool)
            || !implied.insert((rule.pool, rule.frontend))
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

/// The names that can be referred to, including those of sections with faults.
struct AllNames {
    networks: Names,
    security_lists: Names,
    frontends: Names,
    pools: Names,
    probes: Names,
    /// Names of the backends of each pool.
    backends: Vec<Names>,
}

impl AllNames {
    fn of(root: &Section<'_>) -> Self {
        let name = |section: &Section<'_>| section.peek_name().unwrap_or_default();
        let names = |field| root.peek_sections(field).iter().map(name).collect();
        let pools = root.peek_sections("pool");
        Self {
            networks: names("network"),
            security_lists: names("security_list"),
            frontends: names("frontend"),
            pools: names("pool"),
            probes: names("probe"),
            backends: pools
                .iter()
                .map(|pool| pool.peek_sections("backends").iter().map(name).collect())
                .collect(),
        }
    }
}

/// Returns the index of the section that a field names.
pub(super) fn refer(section: &Section<'_>, field: &'static str, names: &Names) -> Option<usize> {
    let (text, span) = section.name(field)?;
    validate::refer(section, field, &text, &span, names)
}

/// Reads all sections of a kind; `None` if one of them has a fault.
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
    if role.is_some_and(|role| role != Role::Proxy) && !section.has("underlay") {
        section.fault(section.span(), "underlay", "is missing");
    }
    let (ipv4, ipv6) = addresses::one_of_each_family(&section, "underlay", Kind::Host);
    const SLOTS: u64 = slb_core::FragmentRoom::SLOTS as u64;
    const DIRECT_FLOWS: u64 = slb_core::nat::DirectFlows::FLOWS as u64;
    let rate = |field, most, usual| section.number(field, 0..=most, usual) as u32;
    let defaults = spec::Underlay::default();
    let hash_seed = section.number("hash_seed", 0..=i64::MAX as u64, 0);
    let icmp_source = addresses::one_of_each_family(&section, "icmp_source", Kind::Host);
    let node = Node {
        role: role.unwrap_or(Role::Mux),
        ipv4,
        ipv6,
        mac: addresses::mac(&section, "mac"),
        next_hop: addresses::mac(&section, "next_hop"),
        mtu: {
            let mtu = section.number("mtu", 576..=65_535, defaults.mtu.into());
            section.has("mtu").then_some(mtu as u16)
        },
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
        answers_per_second: rate("answers_per_second", 1_000_000, 1000),
        too_big_per_second: rate("too_big_per_second", 1_000_000, 1000),
        errors_per_second: rate("errors_per_second", 1_000_000, 1000),
        connections: section.number("connections", 1..=1 << 31, 1 << 18) as usize,
        waiting_fragments: section.number("waiting_fragments", 0..=1 << 20, SLOTS) as usize,
        direct_flows: section.number("direct_flows", 0..=1 << 24, DIRECT_FLOWS) as usize,
        flows_per_source: section.number("flows_per_source", 0..=1_000_000, 0) as u32,
        flows_per_source_at_once: section.number("flows_per_source_at_once", 1..=1_000_000, 100)
            as u32,
        resets_per_second: rate("resets_per_second", 10_000_000, 10_000),
        passes_per_second: rate("passes_per_second", 10_000_000, 1_000_000),
        take_ups_per_second: rate("take_ups_per_second", 10_000_000, 100_000),
        icmp_source_ipv4: icmp_source.0,
        icmp_source_ipv6: icmp_source.1,
        clamp_mss: section.boolean("clamp_mss", false),
        muxes: {
            let muxes = addresses::any(&section, "muxes", Kind::Host);
            muxes.into_iter().map(|(address, _)| address).collect()
        },
        inside: read_inside(&section),
        withdraw_when_down: section.boolean("withdraw_when_down", false),
        probe_sources: {
            let (ipv4, ipv6) =
                addresses::one_of_each_family(&section, "probe_sources", Kind::Station);
            let ipv4 = ipv4.map(IpAddr::V4).into_iter();
            ipv4.chain(ipv6.map(IpAddr::V6)).collect()
        },
        zone: read_zone(&section),
        probing: section.boolean("probing", true),
        span: section.span().clone(),
        unused: {
            let fields = role.map_or(&[][..], unused_fields).iter().copied();
            fields.filter(|field| section.has(field)).collect()
        },
    };
    section.finish();
    role.map(|_| node)
}

/// Returns the fields of `[node]` that have no effect in a role.
fn unused_fields(role: Role) -> &'static [&'static str] {
    match role {
        Role::Mux => &[
            "connections",
            "passes_per_second",
            "take_ups_per_second",
            "icmp_source",
            "clamp_mss",
            "inside",
            "direct_flows",
        ],
        Role::Host => &["flows", "withdraw_when_down"],
        Role::Proxy => &[
            "next_hop",
            "hop_limit",
            "udp_checksum",
            "flows",
            "muxes",
            "inside",
            "withdraw_when_down",
            "passes_per_second",
            "take_ups_per_second",
            "direct_flows",
        ],
    }
}

/// Reads the inside prefixes; a list, even an empty one, replaces the default.
fn read_inside(section: &Section<'_>) -> Vec<Prefix> {
    const FIELD: &str = "inside";
    if !section.has(FIELD) {
        return spec::INSIDE.to_vec();
    }
    if section.is_empty_list(FIELD) {
        return Vec::new();
    }
    let prefixes = addresses::prefixes(section, FIELD, Kind::Station);
    prefixes.into_iter().map(|(prefix, _)| prefix).collect()
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
            Some(key) => {
                refuse_zeros(section, &key, &span);
                Hasher::SipHash13(SipHash13::new(key))
            }
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
            Some(key) => {
                refuse_zeros(section, &key, &span);
                Hasher::Toeplitz(Toeplitz::new(&key))
            }
            None => {
                let message = "expected 80 hexadecimal digits (it is secret, so not shown)";
                section.fault(&span, "hash_key", message);
                Hasher::default()
            }
        },
        (HashName::Toeplitz, None) => Hasher::Toeplitz(Toeplitz::new(&MICROSOFT_KEY)),
    }
}

/// Reports a key of zeros, which is no secret: Toeplitz then hashes all flows alike, and anyone can
/// compute SipHash.
fn refuse_zeros(section: &Section<'_>, key: &[u8], span: &Span) {
    if key.iter().all(|&byte| byte == 0) {
        section.fault(span, "hash_key", "expected a secret key, got zeros only");
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

fn read_frontend(section: Section<'_>, is_proxy: bool, networks: &Names) -> Option<Frontend> {
    let name = section.name("name");
    let address = addresses::required(&section, "address", Kind::Host);
    let network =
        (!is_proxy && section.has("network")).then(|| refer(&section, "network", networks));
    let icmp_echo = section.choice(
        "icmp_echo",
        &[
            ("answer", Echo::Answer),
            ("forward", Echo::Forward),
            ("ignore", Echo::Ignore),
        ],
        Echo::Answer,
    );
    let zones = read_zones(&section);
    let span = section.span().clone();
    section.finish();
    Some(Frontend {
        name: name?.0,
        address: address?.0,
        network: match network {
            None => None,
            Some(found) => Some(found?),
        },
        icmp_echo,
        zones,
        span,
    })
}

/// Entries of a pool's `past`: a host remembers seven former owners of a slot.
const MOST_PAST: usize = 32;

fn read_pool(
    section: Section<'_>,
    is_proxy: bool,
    names: &AllNames,
    networks: &[Option<u32>],
) -> Option<Pool> {
    let name = section.name("name");
    let vni = if is_proxy {
        let vni = section.integer("vni", 0..=Vni::MAX.get().into(), 0); // nothing is encapsulated
        vni.and_then(|(vni, _)| Vni::new(vni as u32))
    } else {
        networks::vni_of_pool(&section, &names.networks, networks)
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
    let seconds = Duration::from_secs;
    let hour = seconds(1)..=seconds(3600);
    let slow_start = section.duration("slow_start", hour.clone(), seconds(1));
    let slow_start = section.has("slow_start").then_some(slow_start);
    let usual = PassivePolicy::default();
    let threshold = section.number("passive_failures", 0..=1_000_000, 0) as u32;
    let passive = PassivePolicy {
        threshold,
        window: section.duration("passive_window", seconds(1)..=seconds(300), usual.window),
        retry: section.duration("passive_retry", hour, usual.retry),
    };
    let backends = read_all(&section, "backends", |section| {
        read_backend(section, is_proxy)
    });
    let security_lists = security::read_lists(&section, &names.security_lists);
    let past = read_past(&section, backends.as_deref().unwrap_or_default());
    let span = section.span().clone();
    section.finish();
    Some(Pool {
        name: name?.0,
        vni: vni?,
        table_size: size?.0 as u32,
        slow_start,
        passive: (threshold > 0).then_some(passive),
        backends: backends?,
        past,
        security_lists: security_lists?,
        span,
    })
}

/// Reads earlier weights of backends. A backend that is not named had none.
fn read_past(section: &Section<'_>, backends: &[Backend]) -> Vec<Vec<u32>> {
    let entries = section.sections("past");
    if let Some(first) = entries.get(MOST_PAST) {
        let message = format!(
            "expected {MOST_PAST} entries at most, got {}",
            entries.len()
        );
        section.fault(first.span(), "past", message);
    }
    let entry = |entry: &Section<'_>| {
        let mut weights = vec![0; backends.len()];
        for (name, weight, span) in entry.numbers(0..=1_000_000) {
            let place = backends.iter().position(|backend| backend.name == name);
            match place.and_then(|place| weights.get_mut(place)) {
                Some(known) => *known = weight as u32,
                None => {
                    let names = backends.iter().map(|backend| &*backend.name);
                    let message = match resembling(name, names) {
                        Some(known) => format!("no such backend; did you mean {known:?}?"),
                        None => "no backend of the pool has this name".to_owned(),
                    };
                    entry.fault(&span, name, message);
                }
            }
        }
        weights
    };
    entries.iter().map(entry).collect()
}

fn read_backend(section: Section<'_>, is_proxy: bool) -> Option<Backend> {
    let name = section.name("name");
    let address = addresses::required(&section, "address", Kind::Host);
    let host = if is_proxy {
        let host = addresses::optional(&section, "host", Kind::Host);
        Some(host.map_or(Ipv4Addr::UNSPECIFIED.into(), |(host, _)| host))
    } else {
        addresses::required(&section, "host", Kind::Host).map(|(host, _)| host)
    };
    let mac = addresses::mac(&section, "mac");
    let next_hop = addresses::mac(&section, "next_hop");
    let weight = section.number("weight", 0..=1_000_000, 1) as u32;
    let states = [BackendState::Up, BackendState::Draining, BackendState::Down];
    let state = section.renamed_choice(
        "state",
        &states.map(|state| (state.name(), state)),
        &[
            ("healthy", BackendState::Up),
            ("unhealthy", BackendState::Down),
        ],
        BackendState::Up,
    );
    let seat = section.has("seat").then(|| section.name("seat"));
    let instance = section
        .has("instance")
        .then(|| section.number("instance", 0..=65_535, 0));
    let port = section
        .has("port")
        .then(|| section.number("port", 1..=65_534, 1));
    let backend_port = section
        .has("backend_port")
        .then(|| section.number("backend_port", 1..=65_535, 1));
    let zone = read_zone(&section);
    let span = section.span().clone();
    section.finish();
    Some(Backend {
        name: name?.0,
        address: address?.0,
        host: host?,
        mac,
        next_hop,
        weight,
        state,
        seat: seat.flatten().map(|(seat, _)| seat),
        condition: Condition::Healthy,
        instance: instance.map(|instance| instance as u32),
        port: port.map(|port| port as u16),
        backend_port: backend_port.map(|port| port as u16),
        zone,
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
    let host = section.text("host");
    let is_tcp = matches!(protocol, Some((ProbeProtocol::Tcp, _)));
    for (field, value) in [("path", &path), ("host", &host)] {
        let Some((text, span)) = value else { continue };
        let is_plain = !text.is_empty() && text.bytes().all(|byte| (0x21..0x7f).contains(&byte));
        if is_tcp {
            section.fault(span, field, "is for \"http\" and \"https\"");
        } else if field == "path" && !text.starts_with('/') {
            let message = format!("expected one that begins with /, got {text:?}");
            section.fault(span, field, message);
        } else if !is_plain {
            let message = format!("expected printable ASCII without spaces, got {text:?}");
            section.fault(span, field, message);
        }
    }
    let is_https = matches!(protocol, Some((ProbeProtocol::Https, _)));
    let verify_certificate = section.boolean("verify_certificate", true);
    if section.has("verify_certificate") && !is_https && protocol.is_some() {
        section.fault(section.span(), "verify_certificate", "is for \"https\"");
    }
    let seconds = Duration::from_secs;
    let interval = section.duration("interval", seconds(5)..=seconds(300), seconds(15));
    let usual = interval.min(seconds(5));
    let timeout = section.duration("timeout", seconds(1)..=interval, usual);
    let threshold = section.number("threshold", 1..=100, 2) as u32;
    let choices = [
        ("refuse", NoHealthyBackends::Refuse),
        ("use-all", NoHealthyBackends::UseAll),
    ];
    let refuse = NoHealthyBackends::Refuse;
    let no_healthy_backends = section.choice("no_healthy_backends", &choices, refuse);
    let span = section.span().clone();
    section.finish();
    Some(Probe {
        name: name?.0,
        protocol: protocol?.0,
        port: port?.0 as u16,
        path: path.map_or_else(|| "/".to_owned(), |(path, _)| path),
        interval,
        timeout,
        threshold,
        host: host.map(|(host, _)| host),
        verify_certificate,
        no_healthy_backends,
        span,
    })
}

fn read_rule(section: Section<'_>, names: &AllNames) -> Option<Rule> {
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
    let mut terms = read_terms(&section);
    terms.quic = section.boolean("quic", false);
    if terms.quic && matches!(protocol, Some(Protocol::Tcp | Protocol::Icmp)) {
        let message = "expected false unless the protocol is \"udp\" or \"all\"";
        section.fault(section.span(), "quic", message);
    }
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
    let source_nat = addresses::optional(section, "source_nat", Kind::Host);
    Terms {
        floating_ip: section.boolean("floating_ip", false),
        tcp_reset: section.boolean("tcp_reset", false),
        answers: section.choice("answers", &answers, Answers::Direct),
        source_nat: source_nat.map(|(address, _)| address),
        quic: false,
    }
}

/// Reads an inbound NAT rule or pool.
fn read_nat(section: Section<'_>, names: &AllNames, is_pool: bool) -> Option<InboundNat> {
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
        let none = Names::default();
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

fn read_outbound(section: Section<'_>, names: &AllNames) -> Option<Outbound> {
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
