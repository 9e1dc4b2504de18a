//! What a configuration has to be as a whole: names once, references that lead somewhere, rules
//! that do not contradict each other.

use std::collections::HashMap;
use std::net::IpAddr;

use slb_core::service::Protocol;

use crate::config::Config;
use crate::document::{Faults, Section, Span, list, resembling};

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
        section.fault(span, field, format!("there is no {field} {text:?}: {hint}"));
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
    check_addresses(config, faults);
    check_pools(config, faults);
    check_rules(config, faults);
}

fn unique<'c>(faults: &Faults<'_>, kind: &str, names: impl Iterator<Item = (String, &'c Span)>) {
    let mut seen = HashMap::new();
    for (name, span) in names {
        if seen.insert(name.clone(), ()).is_some() {
            faults.add(span, format!("{kind} {name:?}"), "the name stands twice");
        }
    }
}

fn check_addresses(config: &Config, faults: &Faults<'_>) {
    let mut seen: HashMap<IpAddr, &str> = HashMap::new();
    for frontend in &config.frontends {
        let place = format!("frontend {:?}: address", frontend.name);
        let address = frontend.address;
        if address.is_unspecified() || address.is_multicast() {
            faults.add(
                &frontend.span,
                place,
                format!("expected a unicast address, got {address}"),
            );
        } else if let Some(other) = seen.insert(address, &frontend.name) {
            let message = format!("{address} is the address of frontend {other:?} already");
            faults.add(&frontend.span, place, message);
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
        let (count, most) = (pool.backends.len(), pool.table_size as usize);
        if count > most || count > slb_core::maglev::MAX_BACKENDS {
            let message = format!("{count} backends, but a table of {most} slots");
            faults.add(&pool.span, format!("pool {:?}", pool.name), message);
        }
        for backend in &pool.backends {
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
        let beside = config.rules.iter().find(|other| {
            is_ha && other.frontend == rule.frontend && other.protocol != Protocol::All
        });
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
