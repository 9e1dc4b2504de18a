//! Reading of rules: load-balancing, inbound NAT and outbound.

use std::time::Duration;

use slb_core::hash::Distribution;
use slb_core::spec::{Answers, NatTarget, Scheduler, Terms};

use super::{AllNames, refer};
use crate::config::addresses::Kind;
use crate::config::{
    InboundNat, MAX_IDLE_TIMEOUT, MIN_IDLE_TIMEOUT, Outbound, Protocol, Rule, addresses,
};
use crate::document::Section;
use crate::validate::{self, Names};

pub(super) fn read_rule(section: Section<'_>, names: &AllNames) -> Option<Rule> {
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

/// Reads an inbound NAT rule or pool.
pub(super) fn read_nat(
    section: Section<'_>,
    names: &AllNames,
    is_pool: bool,
) -> Option<InboundNat> {
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

pub(super) fn read_outbound(section: Section<'_>, names: &AllNames) -> Option<Outbound> {
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

fn read_idle_timeout(section: &Section<'_>) -> Duration {
    let timeouts = MIN_IDLE_TIMEOUT..=MAX_IDLE_TIMEOUT;
    section.duration("idle_timeout", timeouts, MIN_IDLE_TIMEOUT)
}
