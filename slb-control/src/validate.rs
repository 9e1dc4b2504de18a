//! What a configuration has to be as a whole: names once, references that lead somewhere, rules
//! that do not contradict each other.

mod addresses;

use std::collections::HashMap;
use std::net::IpAddr;

use slb_core::hash::Distribution;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Answers, NatTarget, Protocol, Scheduler, SpecError, Terms};

use crate::config::{Backend, Config, InboundNat, Pool, Role};
use crate::document::{Faults, Section, Span, list, resembling};
use crate::ports;

/// The place of the section that a field names.
pub(crate) fn refer(
    section: &Section<'_>,
    field: &'static str,
    text: &str,
    span: &Span,
    names: &[String],
) -> Option<usize> {
    let place = names.iter().position(|name| name == text);
    if place.is_none() {
        let known = names.iter().map(String::as_str);
        let hint = resembling(text, known.clone()).map_or_else(
            || format!("expected {}", list(known)),
            |n| format!("did you mean {n:?}?"),
        );
        let kind = field.trim_end_matches('s');
        section.fault(span, field, format!("there is no {kind} {text:?}: {hint}"));
    }
    place
}

/// Adds all faults of a configuration whose sections are good each for itself.
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
    unique(
        faults,
        "rule",
        config.rules.iter().map(|r| (r.name.clone(), &r.span)),
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
    addresses::check_vips(config, faults);
    addresses::check_vms(config, faults);
    addresses::check_mtu(config, faults);
    addresses::check_shares(config, faults);
    check_pools(config, faults);
    check_rules(config, faults);
    check_probed_networks(config, faults);
    check_nat(config, faults);
    check_outbound(config, faults);
    check_ports(config, faults);
    match config.node.role {
        Role::Proxy => check_proxy(config, faults),
        Role::Mux | Role::Host => check_no_proxy(config, faults),
    }
    if faults.is_empty() {
        check_spec(config, faults);
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

fn check_pools(config: &Config, faults: &Faults<'_>) {
    for pool in &config.pools {
        let place = format!("pool {:?}: backend", pool.name);
        unique(
            faults,
            &place,
            pool.backends.iter().map(|b| (b.name.clone(), &b.span)),
        );
        let mut instances = HashMap::new();
        for (place, backend) in pool.backends.iter().enumerate() {
            let instance = backend.instance.unwrap_or(place as u32);
            if let Some(other) = instances.insert(instance, &backend.name) {
                let message = format!("{instance} is the instance of backend {other:?} already");
                let name = &backend.name;
                let place = format!("pool {:?}: backend {name:?}: instance", pool.name);
                faults.add(&backend.span, place, message);
            }
        }
        let (count, most) = (pool.backends.len(), pool.table_size as usize);
        if count > most || count > slb_core::maglev::MAX_BACKENDS {
            let message = format!("{count} backends, but a table of {most} slots");
            faults.add(&pool.span, format!("pool {:?}", pool.name), message);
        }
        let is_proxy = config.node.role == Role::Proxy;
        for backend in pool.backends.iter().filter(|_| !is_proxy) {
            let (family, known) = match backend.host {
                IpAddr::V4(_) => ("IPv4", config.node.ipv4.is_some()),
                IpAddr::V6(_) => ("IPv6", config.node.ipv6.is_some()),
            };
            if !known {
                let host = backend.host;
                let message =
                    format!("{host} is {family}, but the node's underlay has no such address");
                faults.add(
                    &backend.span,
                    format!("{place} {:?}: host", backend.name),
                    message,
                );
            }
        }
    }
}

fn check_rules(config: &Config, faults: &Faults<'_>) {
    let mut seen: HashMap<(usize, Protocol, u16), &str> = HashMap::new();
    for rule in &config.rules {
        let place = format!("rule {:?}", rule.name);
        let (Some(frontend), Some(pool)) = (
            config.frontends.get(rule.frontend),
            config.pools.get(rule.pool),
        ) else {
            continue;
        };
        let key = (rule.frontend, rule.protocol, rule.frontend_port);
        if let Some(other) = seen.insert(key, &rule.name) {
            let message = format!(
                "takes {} port {} of frontend {:?}, as rule {other:?} does",
                rule.protocol.name(),
                rule.frontend_port,
                frontend.name
            );
            faults.add(&rule.span, place.clone(), message);
        }
        let is_ha = rule.protocol == Protocol::All;
        let beside = config
            .rules
            .iter()
            .find(|other| is_ha && other.frontend == rule.frontend && other.protocol.has_port());
        if let Some(other) = beside {
            let message = format!(
                "takes all ports of frontend {:?} (HA ports), so rule {:?} cannot stand beside it",
                frontend.name, other.name
            );
            faults.add(&rule.span, place.clone(), message);
        }
        let mixed = pool
            .backends
            .iter()
            .find(|b| b.address.is_ipv6() != frontend.address.is_ipv6());
        if let Some(backend) = mixed {
            let message = format!(
                "frontend {:?} is {}, but backend {:?} of pool {:?} is {}",
                frontend.name, frontend.address, backend.name, pool.name, backend.address
            );
            faults.add(&rule.span, place, message);
        }
    }
}

/// A mux asks backends by their addresses, and there is one way to an address: it cannot tell the
/// backends of two networks apart that have one.
fn check_probed_networks(config: &Config, faults: &Faults<'_>) {
    if config.node.role != Role::Mux || !config.node.probing {
        return;
    }
    let mut seen: HashMap<IpAddr, (&Pool, &Backend)> = HashMap::new();
    let mut pools: Vec<usize> = Vec::new();
    for (pool, _) in config.probed_pools() {
        if !pools.contains(&pool) {
            pools.push(pool);
        }
    }
    for pool in pools.into_iter().filter_map(|pool| config.pools.get(pool)) {
        for backend in &pool.backends {
            let (other, first) = *seen.entry(backend.address).or_insert((pool, backend));
            if other.vni != pool.vni {
                let message = format!(
                    "{} is the address of backend {:?} of pool {:?} too (line {}), in network {}, \
                     this one in {}: a mux probes by address and would take one for the other. Host \
                     agents probe their own vms in each network: say probing = false in [node] here",
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

/// What a rule's terms have to be, of a frontend with this address.
fn check_terms(
    config: &Config,
    terms: &Terms,
    frontend: IpAddr,
    (place, span): (&str, &Span),
    faults: &Faults<'_>,
) {
    if terms.answers == Answers::ThroughMux && config.node.muxes.is_empty() {
        let message = "\"mux\" needs the muxes' addresses: muxes of [node]";
        faults.add(span, format!("{place}: answers"), message);
    }
    if let Some(address) = terms.source_nat
        && address.is_ipv6() != frontend.is_ipv6()
    {
        let message = format!("expected an address of the family of {frontend}, got {address}");
        faults.add(span, format!("{place}: source_nat"), message);
    }
}

fn check_nat(config: &Config, faults: &Faults<'_>) {
    for rule in &config.rules {
        if let Some(frontend) = config.frontends.get(rule.frontend) {
            let place = format!("rule {:?}", rule.name);
            let at = (place.as_str(), &rule.span);
            check_terms(config, &rule.terms, frontend.address, at, faults);
        }
    }
    for (index, nat) in config.inbound_nat.iter().enumerate() {
        let place = format!("{} {:?}", nat.kind(), nat.name);
        let (Some(frontend), Some(pool)) = (
            config.frontends.get(nat.frontend),
            config.pools.get(nat.pool),
        ) else {
            continue;
        };
        let at = (place.as_str(), &nat.span);
        check_terms(config, &nat.terms, frontend.address, at, faults);
        let mixed = pool
            .backends
            .iter()
            .find(|backend| backend.address.is_ipv6() != frontend.address.is_ipv6());
        if let Some(backend) = mixed {
            let message = format!(
                "frontend {:?} is {}, but backend {:?} of pool {:?} is {}",
                frontend.name, frontend.address, backend.name, pool.name, backend.address
            );
            faults.add(&nat.span, place.clone(), message);
        }
        if let NatTarget::Pool { first, last } = nat.target {
            let room = usize::from(last - first) + 1;
            let instances = pool.backends.iter().enumerate();
            let most = instances
                .map(|(i, b)| b.instance.map_or(i, |n| n as usize) + 1)
                .max();
            if most.unwrap_or(0) > room {
                let message = format!(
                    "expected a port for each instance of pool {:?}, {} of them, got {room} ports \
                     ({first} to {last})",
                    pool.name,
                    most.unwrap_or(0)
                );
                faults.add(&nat.span, place.clone(), message);
            }
        }
        check_overlaps(config, index, nat, &place, faults);
    }
}

/// No two take one port of a frontend.
fn check_overlaps(
    config: &Config,
    index: usize,
    nat: &InboundNat,
    place: &str,
    faults: &Faults<'_>,
) {
    let ports = nat.ports();
    let name = |ports: &std::ops::RangeInclusive<u16>| {
        if ports.start() == ports.end() {
            format!("port {}", ports.start())
        } else {
            format!("ports {} to {}", ports.start(), ports.end())
        }
    };
    for rule in config
        .rules
        .iter()
        .filter(|rule| rule.frontend == nat.frontend)
    {
        let same = rule.protocol == nat.protocol && ports.contains(&rule.frontend_port);
        if same || rule.protocol == Protocol::All {
            let taken = match rule.protocol {
                Protocol::All => "every port".to_owned(),
                _ => format!("port {}", rule.frontend_port),
            };
            let message = format!(
                "takes {} of frontend {:?}, of which rule {:?} takes {taken}",
                name(&ports),
                config.frontends[nat.frontend].name,
                rule.name
            );
            faults.add(&nat.span, place, message);
        }
    }
    for other in config.inbound_nat.iter().take(index) {
        let theirs = other.ports();
        let overlap = ports.start() <= theirs.end() && theirs.start() <= ports.end();
        if overlap && other.frontend == nat.frontend && other.protocol == nat.protocol {
            let message = format!(
                "takes {} of frontend {:?}, of which {} {:?} takes {}",
                name(&ports),
                config.frontends[nat.frontend].name,
                other.kind(),
                other.name,
                name(&theirs)
            );
            faults.add(&nat.span, place, message);
        }
    }
}

fn check_outbound(config: &Config, faults: &Faults<'_>) {
    for rule in &config.outbound {
        let place = format!("outbound_rule {:?}", rule.name);
        let Some(pool) = config.pools.get(rule.pool) else {
            continue;
        };
        for (number, &frontend) in rule.frontends.iter().enumerate() {
            let Some(address) = config.frontends.get(frontend).map(|f| f.address) else {
                continue;
            };
            if rule
                .frontends
                .iter()
                .take(number)
                .any(|&other| other == frontend)
            {
                let message = format!("duplicate name {:?}", config.frontends[frontend].name);
                faults.add(&rule.span, format!("{place}: frontends"), message);
            }
            let mixed = pool
                .backends
                .iter()
                .find(|b| b.address.is_ipv6() != address.is_ipv6());
            if let Some(backend) = mixed {
                let message = format!(
                    "frontend {:?} is {address}, but backend {:?} of pool {:?} is {}",
                    config.frontends[frontend].name, backend.name, pool.name, backend.address
                );
                faults.add(&rule.span, place.clone(), message);
            }
            let all_ports = config
                .rules
                .iter()
                .find(|other| other.frontend == frontend && other.protocol == Protocol::All);
            if let Some(other) = all_ports {
                let message = format!(
                    "frontend {:?} has no ports to give: rule {:?} takes all (HA ports)",
                    config.frontends[frontend].name, other.name
                );
                faults.add(&rule.span, place.clone(), message);
            }
        }
    }
}

/// What a proxy has to have, and what it has not.
fn check_proxy(config: &Config, faults: &Faults<'_>) {
    ports::check(&config.ports, faults);
    for rule in &config.rules {
        let place = format!("rule {:?}", rule.name);
        let by_load = rule.scheduler == Scheduler::LeastConnections;
        if by_load && rule.distribution != Distribution::FiveTuple {
            let message = format!(
                "{:?} sends a client where it was before, \"least-connections\" does not",
                rule.distribution.name()
            );
            faults.add(&rule.span, format!("{place}: scheduler"), message);
        }
    }
    for rule in &config.outbound {
        let place = format!("outbound_rule {:?}", rule.name);
        let message = "is for role \"host\": a proxy lets backends out as they are";
        faults.add(&rule.span, place, message);
    }
}

/// What only a proxy has.
fn check_no_proxy(config: &Config, faults: &Faults<'_>) {
    for rule in &config.rules {
        if rule.scheduler == Scheduler::LeastConnections {
            let place = format!("rule {:?}: scheduler", rule.name);
            let message = "\"least-connections\" is for role \"proxy\": muxes have to agree";
            faults.add(&rule.span, place, message);
        }
    }
}

/// Frontends give no more ports than they have.
fn check_ports(config: &Config, faults: &Faults<'_>) {
    let errors: Vec<SpecError> = config.with_spec(|spec| spec.frontends_out_of_ports().collect());
    for error in errors {
        let SpecError::OutOfPorts {
            rule,
            frontend,
            needed,
            available,
        } = error
        else {
            continue;
        };
        let rule = &config.outbound[rule];
        let message = format!(
            "wants {needed} ports of frontend {:?} in all, which has {available} to give (each \
             port that a rule takes costs eight)",
            config.frontends[frontend].name
        );
        let place = format!("outbound_rule {:?}: allocated_outbound_ports", rule.name);
        faults.add(&rule.span, place, message);
    }
}

/// What shows only when all of it is put together.
fn check_spec(config: &Config, faults: &Faults<'_>) {
    let Err(error) = config.with_spec(|spec| Snapshot::boxed(spec, None)) else {
        return;
    };
    match error {
        SpecError::PortConflict { port } => {
            let mut backends = config.pools.iter().flat_map(|pool| &pool.backends);
            let span = backends.rfind(|b| b.port == Some(port.0)).map(|b| &b.span);
            let message = format!("another vm is at port {} already", port.0);
            faults.add(span.unwrap_or(&(0..0)), "pool: backend: port", message);
        }
        error => faults.add(&(0..0), "", error.to_string()),
    }
}
