//! The fields of a configuration's items as text, by which two configurations are compared.

use std::fmt;

use slb_core::spec::{Answers, BackendState, Echo, Scheduler, Terms};

use crate::config::{Backend, Config, Pool, direction_name, named, named_ports};
use crate::duration::format_duration;

/// A name, and the other fields as text.
pub(super) type Part = (String, String);

/// The name of an item, and its fields as text.
pub(super) type Fields = (String, Vec<(&'static str, String)>);

/// Several values as text.
fn several<T: fmt::Display>(all: &[T]) -> String {
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    match all.is_empty() {
        true => "none".to_owned(),
        false => all.join(" "),
    }
}

pub(super) fn networks(config: &Config) -> Vec<Fields> {
    let fields = config.networks.iter().map(|network| {
        let fields = vec![
            ("vni", network.vni.to_string()),
            ("address_spaces", several(&network.address_spaces)),
            ("gateways", several(&network.gateways)),
            (
                "security_list",
                security_lists(config, &network.security_lists),
            ),
        ];
        (network.name.clone(), fields)
    });
    fields.collect()
}

pub(super) fn lists(config: &Config) -> Vec<Part> {
    parts(&config.security_lists, |list| (&list.name, String::new()))
}

/// The names of access lists by their places.
fn security_lists(config: &Config, places: &[usize]) -> String {
    let lists = places
        .iter()
        .filter_map(|place| config.security_lists.get(*place));
    let names: Vec<&str> = lists.map(|list| &*list.name).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

/// The rules of access lists, each with its list's name.
pub(super) fn security_rules(config: &Config) -> Vec<Fields> {
    let lists = config.security_lists.iter();
    let rules = lists.flat_map(|list| list.rules.iter().map(move |rule| (list, rule)));
    let fields = rules.map(|(list, rule)| {
        let fields = vec![
            ("priority", rule.priority.to_string()),
            ("direction", direction_name(rule.direction).to_owned()),
            ("access", rule.access.name().to_owned()),
            ("protocol", rule.protocol.name().to_owned()),
            ("sources", named(&rule.sources).join(", ")),
            ("destinations", named(&rule.destinations).join(", ")),
            ("source_ports", named_ports(&rule.source_ports).join(", ")),
            (
                "destination_ports",
                named_ports(&rule.destination_ports).join(", "),
            ),
        ];
        (format!("{}/{}", list.name, rule.name), fields)
    });
    fields.collect()
}

/// Returns the vms that are no backends, with their networks' names, since vms of two networks may
/// have the same name.
pub(super) fn network_vms(config: &Config) -> Vec<Fields> {
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    let fields = config.network_vms.iter().map(|vm| {
        let network = config.networks.get(vm.network);
        let network = network.map_or("", |network| &network.name);
        let fields = vec![
            ("address", several(&vm.addresses)),
            ("host", vm.host.to_string()),
            ("mac", vm.mac().to_string()),
            ("next_hop", or_none(vm.next_hop.map(|mac| mac.to_string()))),
            ("port", or_none(vm.port.map(|port| port.to_string()))),
            ("security_list", security_lists(config, &vm.security_lists)),
        ];
        (format!("{network}/{}", vm.name), fields)
    });
    fields.collect()
}

/// Returns the public addresses of vms, each with the network's name or the VNI.
pub(super) fn public_addresses(config: &Config) -> Vec<Fields> {
    let fields = config.public_addresses.iter().map(|public| {
        let network = config.network_of(public.vni);
        let network = network.map_or_else(
            || format!("VNI {}", public.vni),
            |network| network.name.clone(),
        );
        let fields = vec![("vm", public.vm.to_string()), ("network", network)];
        (public.address.to_string(), fields)
    });
    fields.collect()
}

fn parts<T>(all: &[T], part: impl Fn(&T) -> (&String, String)) -> Vec<Part> {
    let own = all.iter().map(part);
    own.map(|(name, rest)| (name.clone(), rest)).collect()
}

pub(super) fn frontends(config: &Config) -> Vec<Fields> {
    let fields = config.frontends.iter().map(|frontend| {
        let network = config.network_of_frontend(frontend);
        let network = network.map_or("none", |network| &network.name);
        let fields = vec![
            ("address", frontend.address.to_string()),
            ("icmp_echo", echo_name(frontend.icmp_echo).to_owned()),
            ("network", network.to_owned()),
        ];
        (frontend.name.clone(), fields)
    });
    fields.collect()
}

const fn echo_name(echo: Echo) -> &'static str {
    match echo {
        Echo::Answer => "answer",
        Echo::Forward => "forward",
        Echo::Ignore => "ignore",
    }
}

pub(super) fn ports(config: &Config) -> Vec<Part> {
    parts(&config.ports.all, |port| {
        let how = (port.kind, port.mode, port.address);
        (&port.name, format!("{how:?}"))
    })
}

pub(super) fn rules(config: &Config) -> Vec<Fields> {
    let fields = config.rules.iter().map(|rule| {
        let probe = rule.probe.map(|probe| &*config.probes[probe].name);
        let mut fields = vec![
            ("frontend", config.frontends[rule.frontend].name.clone()),
            ("pool", config.pools[rule.pool].name.clone()),
            ("probe", probe.unwrap_or("none").to_owned()),
            ("protocol", rule.protocol.name().to_owned()),
            ("frontend_port", rule.frontend_port.to_string()),
            ("backend_port", rule.backend_port.to_string()),
            ("distribution", rule.distribution.name().to_owned()),
            ("scheduler", scheduler_name(rule.scheduler).to_owned()),
            ("idle_timeout", format_duration(rule.idle_timeout)),
        ];
        fields.extend(terms(&rule.terms));
        (rule.name.clone(), fields)
    });
    fields.collect()
}

const fn scheduler_name(scheduler: Scheduler) -> &'static str {
    match scheduler {
        Scheduler::Maglev => "maglev",
        Scheduler::LeastConnections => "least-connections",
    }
}

/// The terms of a rule's connections.
fn terms(terms: &Terms) -> [(&'static str, String); 5] {
    let Terms {
        floating_ip,
        tcp_reset,
        answers,
        source_nat,
        quic,
    } = terms;
    let answers = match answers {
        Answers::Direct => "direct",
        Answers::ThroughMux => "mux",
    };
    let source_nat = source_nat.map_or("none".to_owned(), |address| address.to_string());
    [
        ("floating_ip", floating_ip.to_string()),
        ("tcp_reset", tcp_reset.to_string()),
        ("answers", answers.to_owned()),
        ("source_nat", source_nat),
        ("quic", quic.to_string()),
    ]
}

pub(super) fn nats(config: &Config) -> Vec<Part> {
    parts(&config.inbound_nat, |nat| {
        let (frontend, pool) = (
            &config.frontends[nat.frontend].name,
            &config.pools[nat.pool].name,
        );
        let how = (
            nat.target,
            nat.protocol,
            nat.backend_port,
            nat.idle_timeout,
            nat.terms,
        );
        (&nat.name, format!("{:?}", (frontend, pool, how)))
    })
}

pub(super) fn outbounds(config: &Config) -> Vec<Part> {
    parts(&config.outbound, |rule| {
        let frontends: Vec<_> = rule
            .frontends
            .iter()
            .map(|&place| &config.frontends[place].name)
            .collect();
        let pool = &config.pools[rule.pool].name;
        let how = (
            rule.protocol,
            rule.allocated_outbound_ports,
            rule.idle_timeout,
            rule.tcp_reset,
        );
        (&rule.name, format!("{:?}", (frontends, pool, how)))
    })
}

pub(super) fn probes(config: &Config) -> Vec<Part> {
    parts(&config.probes, |probe| {
        let times = (probe.interval, probe.timeout, probe.threshold);
        let what = (
            &probe.path,
            &probe.host,
            probe.verify_certificate,
            probe.no_healthy_backends,
        );
        (
            &probe.name,
            format!("{:?}", (probe.protocol, probe.port, times, what)),
        )
    })
}

pub(super) fn pools(config: &Config) -> Vec<Part> {
    parts(&config.pools, |pool| {
        let lists = security_lists(config, &pool.security_lists);
        let how = (
            pool.vni,
            pool.table_size,
            pool.slow_start,
            pool.passive,
            lists,
        );
        (&pool.name, format!("{how:?}"))
    })
}

pub(super) fn backends(config: &Config) -> Vec<Part> {
    let pools = config.pools.iter();
    let all = pools.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)));
    let part = |(pool, backend): (&Pool, &Backend)| {
        let state = match backend.state {
            BackendState::Up => 0,
            BackendState::Down => 1,
            BackendState::Draining => 2,
        };
        let how = (
            backend.weight,
            state,
            &backend.seat,
            backend.instance,
            backend.port,
            backend.backend_port,
        );
        let place = (backend.address, backend.host, backend.mac, backend.next_hop);
        (
            format!("{}/{}", pool.name, backend.name),
            format!("{:?}", (place, how)),
        )
    };
    all.map(part).collect()
}
