//! Checks of a configuration as a whole: unique names, references that resolve, rules that do not
//! contradict each other.

mod addresses;
mod claims;
mod faults;
mod networks;
mod public;
mod security;
mod vms;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use slb_core::hash::Distribution;
use slb_core::spec::{Answers, NatTarget, Protocol, Scheduler, Terms};

use crate::config::{
    Backend, Config, InboundNat, MOST_BACKENDS, MOST_RULES, MOST_SLOTS, Pool, Role, Rule,
};
use crate::document::{Faults, Section, Span, list, resembling};
use crate::ports;

pub(crate) use self::addresses::short_mtu;

/// The maximum number of names in a message.
const FEW_NAMES: usize = 20;

/// Names of sections of one kind, with lookup in constant time.
#[derive(Debug, Default)]
pub(crate) struct Names {
    all: Vec<String>,
    places: HashMap<String, usize>,
}

impl Names {
    /// Returns all names, in order.
    pub(crate) fn all(&self) -> &[String] {
        &self.all
    }
}

impl FromIterator<String> for Names {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        let all: Vec<String> = names.into_iter().collect();
        let mut places = HashMap::with_capacity(all.len());
        for (place, name) in all.iter().enumerate() {
            places.entry(name.clone()).or_insert(place);
        }
        Self { all, places }
    }
}

/// Returns the index of the section that a field names.
pub(crate) fn refer(
    section: &Section<'_>,
    field: &'static str,
    text: &str,
    span: &Span,
    names: &Names,
) -> Option<usize> {
    let place = names.places.get(text).copied();
    if place.is_none() {
        let names = names.all();
        let kind = field.trim_end_matches('s');
        let known = names.iter().map(String::as_str);
        let alike = section
            .has_few_faults()
            .then(|| resembling(text, known.clone()));
        let hint = alike.flatten().map_or_else(
            || match names.len() {
                0 => format!("the file has no [[{kind}]]"),
                1..=FEW_NAMES => format!("expected {}", list(known)),
                count => format!("expected one of {count} names"),
            },
            |n| format!("did you mean {n:?}?"),
        );
        section.fault(span, field, format!("there is no {kind} {text:?}: {hint}"));
    }
    place
}

/// Reports a configuration that is too large to be checked and compiled in a few seconds; returns
/// true if it is.
pub(crate) fn is_too_large(config: &Config, faults: &Faults<'_>) -> bool {
    let places = config.frontends.iter().map(|frontend| &frontend.span);
    if let Some(span) = places.clone().nth(MOST_RULES) {
        let count = places.count();
        let message = format!("expected at most {MOST_RULES} frontends, got {count}");
        faults.add(span, "frontend", message);
        return true;
    }
    let rules = config.rules.iter().map(|rule| &rule.span);
    let nat = config.inbound_nat.iter().map(|nat| &nat.span);
    let said = config.outbound.iter().filter(|rule| !rule.span.is_empty());
    let rules = rules.chain(nat).chain(said.map(|rule| &rule.span));
    if let Some(span) = rules.clone().nth(MOST_RULES) {
        let count = rules.count();
        let message =
            format!("expected at most {MOST_RULES} rules of all kinds together, got {count}");
        faults.add(span, "rule", message);
        return true;
    }
    let mut backends = 0;
    for pool in &config.pools {
        backends += pool.backends.len();
        if backends > MOST_BACKENDS {
            let all: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
            let message = format!(
                "expected at most {MOST_BACKENDS} backends in all pools together, got {all}"
            );
            faults.add(&pool.span, format!("pool {:?}", pool.name), message);
            return true;
        }
    }
    if networks::are_too_many(config, faults)
        || security::are_too_many(config, faults)
        || public::are_too_many(config, faults)
    {
        return true;
    }
    if let Some(span) = config.ports.rewrite_spans.get(MOST_RULES) {
        let count = config.ports.rewrite_spans.len();
        let message = format!("expected at most {MOST_RULES} source_rewrites, got {count}");
        faults.add(span, "source_rewrite", message);
        return true;
    }
    let mut tables = vec![1; config.pools.len()];
    for (pool, _) in config.probed_pools() {
        tables[pool] += 1;
    }
    let slots = |(pool, &tables): (&Pool, &u64)| u64::from(pool.table_size) * tables;
    let all: u64 = config.pools.iter().zip(&tables).map(slots).sum();
    let mut before = 0;
    for (pool, tables) in config.pools.iter().zip(&tables) {
        before += slots((pool, tables));
        if before > MOST_SLOTS {
            let message = format!(
                "expected tables of at most {MOST_SLOTS} slots in all pools together, one for a pool and one \
                 for each probe that its rules go by, got {all}: a pool of few backends needs no more than a \
                 hundred slots for each"
            );
            let place = format!("pool {:?}: table_size", pool.name);
            faults.add(&pool.span, place, message);
            return true;
        }
    }
    false
}

/// Reports all faults of a configuration whose sections are valid by themselves.
pub(crate) fn check(config: &Config, faults: &Faults<'_>) {
    unique(
        faults,
        "frontend",
        config.frontends.iter().map(|f| (f.name.clone(), &f.span)),
    );
    unique(
        faults,
        "pool",
        config.pools.iter().map(|p| (p.name.clone(), &p.span)),
    );
    unique(
        faults,
        "probe",
        config.probes.iter().map(|p| (p.name.clone(), &p.span)),
    );
    let nat = |pool: bool| {
        let all = config.inbound_nat.iter();
        all.filter(move |nat| matches!(nat.target, NatTarget::Pool { .. }) == pool)
            .map(|nat| (nat.name.clone(), &nat.span))
    };
    unique(faults, "inbound_nat_rule", nat(false));
    unique(faults, "inbound_nat_pool", nat(true));
    let outbound = config.outbound.iter();
    unique(
        faults,
        "outbound_rule",
        outbound.map(|rule| (rule.name.clone(), &rule.span)),
    );
    networks::check(config, faults);
    security::check(config, faults);
    addresses::check_vips(config, faults);
    addresses::check_source_nat(config, faults);
    claims::check(config, faults);
    addresses::check_icmp_source(config, faults);
    addresses::check_probed_publics(config, faults);
    vms::check(config, faults);
    addresses::check_hosts(config, faults);
    addresses::check_instances(config, faults);
    addresses::check_mtu(config, faults);
    addresses::check_shares(config, faults);
    check_rules(config, faults);
    check_probed_networks(config, faults);
    check_nat(config, faults);
    check_outbound(config, faults);
    match config.node.role {
        Role::Proxy => check_proxy(config, faults),
        Role::Mux | Role::Host => check_no_proxy(config, faults),
    }
    faults::check(config, faults);
}

/// Reports the faults that a checked configuration has in another role than the file's.
pub(crate) fn check_role(config: &Config, faults: &Faults<'_>) {
    if config.node.role == Role::Proxy {
        for frontend in &config.frontends {
            if let Some(network) = config.network_of_frontend(frontend) {
                let message = format!(
                    "expected a public frontend, since a proxy knows no networks, but it belongs to network {:?}",
                    network.name
                );
                let place = format!("frontend {:?}: network", frontend.name);
                faults.add(&frontend.span, place, message);
            }
        }
    }
    if faults.is_empty() {
        faults::check(config, faults);
    }
}

fn unique<'c>(faults: &Faults<'_>, kind: &str, names: impl Iterator<Item = (String, &'c Span)>) {
    let mut seen = HashMap::new();
    for (name, span) in names {
        if seen.insert(name.clone(), ()).is_some() {
            faults.add(span, format!("{kind} {name:?}"), "duplicate name");
        }
    }
}

fn check_rules(config: &Config, faults: &Faults<'_>) {
    let mut with_port: HashMap<usize, &Rule> = HashMap::new();
    for rule in config.rules.iter().filter(|rule| rule.protocol.has_port()) {
        with_port.entry(rule.frontend).or_insert(rule);
    }
    let all_ports = config
        .rules
        .iter()
        .filter(|rule| rule.protocol == Protocol::All);
    for rule in all_ports {
        if let Some(other) = with_port.get(&rule.frontend) {
            let message = format!(
                "takes all ports of frontend {:?} (HA ports), so the frontend can have no rule {:?}",
                config.frontends[rule.frontend].name, other.name
            );
            faults.add(&rule.span, format!("rule {:?}", rule.name), message);
        }
    }
}

/// Returns the first HA-ports rule of each frontend.
fn ha_ports(config: &Config) -> HashMap<usize, &Rule> {
    let mut all = HashMap::new();
    for rule in config
        .rules
        .iter()
        .filter(|rule| rule.protocol == Protocol::All)
    {
        all.entry(rule.frontend).or_insert(rule);
    }
    all
}

/// Checks that a mux need not probe backends of two networks with the same address: it probes by
/// address, and has one route to each.
fn check_probed_networks(config: &Config, faults: &Faults<'_>) {
    if config.node.role != Role::Mux || !config.node.probing {
        return;
    }
    let mut seen: HashMap<IpAddr, (&Pool, &Backend)> = HashMap::new();
    let mut pools = HashSet::new();
    let probed = config.asked_pools().into_iter().map(|(pool, _)| pool);
    let probed = probed.filter(|&pool| pools.insert(pool));
    let frontends = config.frontends.iter();
    let public = frontends.filter(|frontend| frontend.network.is_none());
    let vips: HashMap<IpAddr, &str> = public.map(|of| (of.address, &*of.name)).collect();
    let led = networks::led(config);
    let vnis: HashSet<_> = config.networks.iter().map(|network| network.vni).collect();
    for pool in probed.filter_map(|pool| config.pools.get(pool)) {
        for backend in &pool.backends {
            let key = (pool.vni, backend.address);
            // A backend with the address of its own VIP is reported elsewhere.
            if let Some(frontend) = vips.get(&backend.address)
                && vnis.contains(&pool.vni)
                && !led.contains_key(&key)
            {
                let message = format!(
                    "{} is the address of frontend {frontend:?} too: a mux probes by address, so it would probe the VIP. Host agents probe their own vms in each network: set probing = false in [node]",
                    backend.address
                );
                let place = format!("pool {:?}: backend {:?}: address", pool.name, backend.name);
                faults.add(&backend.span, place, message);
            }
            let (other, first) = *seen.entry(backend.address).or_insert((pool, backend));
            if other.vni != pool.vni {
                let message = format!(
                    "{} is the address of backend {:?} of pool {:?} too (line {}), in network {}, \
                     this one in {}: a mux probes by address, so it cannot tell them apart. Host agents probe their own vms in each network: set probing = false in [node]",
                    backend.address,
                    first.name,
                    other.name,
                    faults.line(&first.span),
                    other.vni,
                    pool.vni,
                );
                let place = format!("pool {:?}: backend {:?}: address", pool.name, backend.name);
                faults.add(&backend.span, place, message);
            }
        }
    }
}

fn check_terms(config: &Config, terms: &Terms, (place, span): (&str, &Span), faults: &Faults<'_>) {
    if terms.answers == Answers::ThroughMux && config.node.muxes.is_empty() {
        let message = "\"mux\" needs the muxes' addresses: muxes of [node]";
        faults.add(span, format!("{place}: answers"), message);
    }
}

fn check_nat(config: &Config, faults: &Faults<'_>) {
    for rule in &config.rules {
        let place = format!("rule {:?}", rule.name);
        check_terms(config, &rule.terms, (&place, &rule.span), faults);
    }
    for nat in &config.inbound_nat {
        let place = format!("{} {:?}", nat.kind(), nat.name);
        check_terms(config, &nat.terms, (&place, &nat.span), faults);
    }
    check_overlaps(config, faults);
}

/// Checks that no two rules use the same port of a frontend. Names a few of the rules that an
/// inbound NAT rule or pool overlaps.
///
/// # Cost
/// Proportional to the number of rules and its logarithm.
fn check_overlaps(config: &Config, faults: &Faults<'_>) {
    const FEW: usize = 8;
    let name = |ports: &RangeInclusive<u16>| {
        if ports.start() == ports.end() {
            format!("port {}", ports.start())
        } else {
            format!("ports {} to {}", ports.start(), ports.end())
        }
    };
    let ha_ports = ha_ports(config);
    let mut rules: HashMap<(usize, Protocol), BTreeMap<u16, &Rule>> = HashMap::new();
    for rule in config.rules.iter().filter(|rule| rule.protocol.has_port()) {
        let of = rules.entry((rule.frontend, rule.protocol)).or_default();
        of.entry(rule.frontend_port).or_insert(rule);
    }
    // By their first ports, the ranges that do not overlap earlier ones.
    let mut apart: HashMap<(usize, Protocol), BTreeMap<u16, &InboundNat>> = HashMap::new();
    for nat in &config.inbound_nat {
        let ports = nat.ports();
        let key = (nat.frontend, nat.protocol);
        let place = format!("{} {:?}", nat.kind(), nat.name);
        let fault = |of: String, taken: String| {
            let message = format!(
                "takes {} of frontend {:?}, of which {of} takes {taken}",
                name(&ports),
                config.frontends[nat.frontend].name,
            );
            faults.add(&nat.span, place.clone(), message);
        };
        let same = rules.get(&key).into_iter();
        let same = same.flat_map(|of| of.range(ports.clone())).take(FEW);
        for (port, rule) in same {
            fault(format!("rule {:?}", rule.name), format!("port {port}"));
        }
        if let Some(rule) = ha_ports.get(&nat.frontend) {
            fault(format!("rule {:?}", rule.name), "every port".to_owned());
        }
        let others = apart.entry(key).or_default();
        let mut before = others.range(..=*ports.end());
        match before.next_back() {
            Some((_, other)) if other.ports().end() >= ports.start() => {
                let of = format!("{} {:?}", other.kind(), other.name);
                fault(of, name(&other.ports()));
            }
            _ => drop(others.insert(*ports.start(), nat)),
        }
    }
}

/// Checks outbound rules against HA-ports rules, which leave them no ports.
fn check_outbound(config: &Config, faults: &Faults<'_>) {
    let ha_ports = ha_ports(config);
    for rule in &config.outbound {
        for frontend in &rule.frontends {
            if let Some(other) = ha_ports.get(frontend) {
                let message = format!(
                    "frontend {:?} has no ports to give: rule {:?} takes all (HA ports)",
                    config.frontends[*frontend].name, other.name
                );
                let place = format!("outbound_rule {:?}", rule.name);
                faults.add(&rule.span, place, message);
            }
        }
    }
}

/// Checks the sections that a proxy must have, and those that it must not have.
fn check_proxy(config: &Config, faults: &Faults<'_>) {
    ports::check(&config.ports, faults);
    addresses::check_proxied(config, faults);
    addresses::check_rewrites(config, faults);
    for rule in &config.rules {
        let place = format!("rule {:?}", rule.name);
        let by_load = rule.scheduler == Scheduler::LeastConnections;
        if by_load && rule.distribution != Distribution::FiveTuple {
            let message = format!(
                "{:?} sends a client to the same backend again, \"least-connections\" does not",
                rule.distribution.name()
            );
            faults.add(&rule.span, format!("{place}: scheduler"), message);
        }
    }
    for rule in &config.outbound {
        let place = format!("outbound_rule {:?}", rule.name);
        let message = "is for role \"host\": a proxy forwards backends' own connections unchanged";
        faults.add(&rule.span, place, message);
    }
}

/// Checks that there are no sections that only a proxy has.
fn check_no_proxy(config: &Config, faults: &Faults<'_>) {
    for rule in &config.rules {
        if rule.scheduler == Scheduler::LeastConnections {
            let place = format!("rule {:?}: scheduler", rule.name);
            let message = "\"least-connections\" is for role \"proxy\": muxes have to agree";
            faults.add(&rule.span, place, message);
        }
    }
}
