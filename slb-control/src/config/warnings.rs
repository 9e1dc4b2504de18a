//! Valid configurations and changes that are seldom intended.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use slb_core::spec::Answers;

use super::{Backend, Config, Frontend, Pool, Role, addresses};

/// Returns warnings about a configuration.
pub(super) fn of(config: &Config) -> Vec<String> {
    let mut warnings = unused(config);
    let mut by_mac = HashMap::new();
    for vm in config.vms() {
        let port = vm.port.map_or(0, |port| port.0);
        let (vni, mac, name) = (vm.vni, vm.mac, vm.name);
        if config.network_of(vni).is_some() {
            continue; // the vm of another network, which is intended
        }
        if let Some((other, other_vni, other_port)) = by_mac.insert(mac, (name.clone(), vni, port))
        {
            warnings.push(format!(
                "vm {other:?} of VNI {other_vni} and vm {name:?} of VNI {vni} have one MAC address, {mac}, but are \
                 two vms, at ports {other_port} and {port}: give both pools one vni if it is one vm"
            ));
        }
    }
    let used = used(config);
    for (index, frontend) in config.frontends.iter().enumerate() {
        if !used.contains(&index) {
            warnings.push(format!(
                "frontend {:?} ({}) has no rule: all of its packets are dropped",
                frontend.name, frontend.address
            ));
        }
    }
    if config.node.role == Role::Host {
        warnings.extend(config.public_addresses.iter().filter_map(|public| {
            let mut inside = config.node.inside.iter();
            let prefix = inside.find(|prefix| addresses::is_in(public.address, **prefix))?;
            Some(format!(
                "public_address {} is in {prefix}, which is inside: vms that call it keep their own addresses, and get no \
                 answer from it",
                public.address
            ))
        }));
    }
    warnings.extend(super::zones::warnings(config));
    warnings
}

/// Returns a line for each field or section that the role ignores.
///
/// All nodes may share one file except for `[node]`, so a mux does not warn of the fields of rules and pools that
/// only host agents use.
fn unused(config: &Config) -> Vec<String> {
    let role = config.node.role;
    let line = |what: String| format!("{what} has no effect at a {}", role.name());
    let fields = config.node.unused.iter();
    let mut lines: Vec<String> = fields.map(|field| line(format!("node: {field}"))).collect();
    if role != Role::Proxy {
        let ports = config.ports.all.iter().filter(|port| !port.span.is_empty());
        lines.extend(ports.map(|port| line(format!("port {:?}", port.name))));
        let rewrites = 1..=config.ports.source_rewrites.len();
        lines.extend(rewrites.map(|number| line(format!("source_rewrite {number}"))));
        return lines;
    }
    for pool in &config.pools {
        let said = |backend: &Backend| {
            [
                ("host", !backend.host.is_unspecified()),
                ("mac", backend.mac.is_some()),
                ("port", backend.port.is_some()),
            ]
        };
        for place in 0..3 {
            let mut fields = pool
                .backends
                .iter()
                .map(|one| (&one.name, said(one)[place]));
            if let Some((backend, (field, _))) = fields.find(|(_, (_, is_said))| *is_said) {
                let pool = &pool.name;
                lines.push(line(format!("pool {pool:?}: backend {backend:?}: {field}")));
            }
        }
    }
    for rule in &config.rules {
        let fields = [
            ("answers", rule.terms.answers != Answers::Direct),
            ("quic", rule.terms.quic),
            ("disable_outbound_snat", !rule.disable_outbound_snat),
        ];
        let said = fields.into_iter().filter(|(_, is_said)| *is_said);
        lines.extend(said.map(|(field, _)| line(format!("rule {:?}: {field}", rule.name))));
    }
    lines
}

/// Lists the losses of a new configuration against an old one.
pub(super) fn losses(old: &Config, new: &Config) -> Vec<String> {
    let mut losses = Vec::new();
    let (used_before, used_now) = (used(old), used(new));
    let places: HashMap<_, usize> = (0..)
        .zip(&new.frontends)
        .map(|(place, frontend)| (identity(new, frontend), place))
        .collect();
    for (index, frontend) in old.frontends.iter().enumerate() {
        let now = places.get(&identity(old, frontend));
        if used_before.contains(&index) && now.is_some_and(|now| !used_now.contains(now)) {
            losses.push(format!(
                "VIP {} (frontend {:?}) no longer has a rule: all of its packets are dropped",
                frontend.address, frontend.name
            ));
        }
    }
    let pools: HashMap<&str, &Pool> = new.pools.iter().map(|pool| (&*pool.name, pool)).collect();
    for pool in &old.pools {
        let Some(now) = pools.get(&*pool.name) else {
            continue;
        };
        let left: HashSet<_> = now
            .backends
            .iter()
            .map(|backend| (&backend.name, backend.address))
            .collect();
        let before = pool.backends.len();
        let gone = pool
            .backends
            .iter()
            .filter(|backend| !left.contains(&(&backend.name, backend.address)))
            .count();
        if gone > 0 && 2 * gone >= before {
            losses.push(format!(
                "pool {:?} loses {gone} of its {before} backends",
                pool.name
            ));
        }
    }
    losses
}

/// Identity of a frontend in two configurations: its address, and the name of its network.
fn identity<'c>(config: &'c Config, frontend: &Frontend) -> (IpAddr, Option<&'c str>) {
    let network = config.network_of_frontend(frontend);
    (frontend.address, network.map(|network| &*network.name))
}

/// The frontends that a rule of any kind uses.
fn used(config: &Config) -> HashSet<usize> {
    let rules = config.rules.iter().map(|rule| rule.frontend);
    let nat = config.inbound_nat.iter().map(|nat| nat.frontend);
    let outbound = config.outbound.iter();
    let outbound = outbound.flat_map(|rule| rule.frontends.iter().copied());
    rules.chain(nat).chain(outbound).collect()
}
