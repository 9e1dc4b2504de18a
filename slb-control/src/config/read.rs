//! Reading a [`Config`] from a document, section by section, with the position of each fault.

mod hash;
mod node;
mod pools;
mod probes;
mod rules;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use slb_core::spec::Echo;

use self::node::read_node;
use self::pools::read_pool;
use self::probes::read_probe;
use self::rules::{read_nat, read_outbound, read_rule};
use super::addresses::Kind;
use super::zones::read_zones;
use super::{
    Config, Findings, Frontend, Origin, Outbound, Protocol, Role, Rule, SecurityList, addresses,
    networks, public, security,
};
use crate::document::Section;
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
    // Only a file with public addresses pays for finding backends by their addresses.
    let backends = OnceCell::new();
    let backends = || {
        let pools = pools.as_deref()?;
        Some(backends.get_or_init(|| public::BackendVnis::of(pools)))
    };
    let public_addresses = read_all(root, "public_address", |section| {
        public::read_public(section, &names.networks, networks.as_deref(), backends)
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
        public_addresses: public_addresses?,
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

fn read_frontend(section: Section<'_>, is_proxy: bool, names: &Names) -> Option<Frontend> {
    let name = section.name("name");
    let address = addresses::required(&section, "address", Kind::Host);
    if is_proxy {
        networks::refuse_in_proxy(&section);
    }
    let network = (!is_proxy && section.has("network")).then(|| refer(&section, "network", names));
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
