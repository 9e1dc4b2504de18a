//! Counters of rules, by the configuration's names: a snapshot counts each port of a NAT pool for
//! itself, and all outbound rules of a frontend together.

use slb_control::Config;
use slb_core::spec::NatTarget;
use slb_core::stats::RuleCounters;

/// A rule of whichever kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RuleLine {
    /// The kind of rule, in the configuration's words.
    pub(crate) kind: &'static str,
    /// The rule's name; for an outbound rule, the frontend's.
    pub(crate) name: String,
    /// The place of its frontend.
    pub(crate) frontend: usize,
    pub(crate) counters: RuleCounters,
}

/// The rules of a configuration with what they counted. `counted` goes by the snapshot's places:
/// load-balancing rules, then each port of inbound NAT, then the frontends of outbound rules.
pub(crate) fn lines(config: &Config, counted: &[RuleCounters]) -> Vec<RuleLine> {
    let mut counted = counted.iter().copied();
    let mut lines = Vec::new();
    let mut add = |kind, name: &str, frontend, places: usize| {
        let mut counters = RuleCounters::default();
        counted.by_ref().take(places).for_each(|c| counters += c);
        lines.push(RuleLine {
            kind,
            name: name.to_owned(),
            frontend,
            counters,
        });
    };
    for rule in &config.rules {
        add("rule", &rule.name, rule.frontend, 1);
    }
    for nat in &config.inbound_nat {
        let (kind, places) = match nat.target {
            NatTarget::Backend { .. } => ("inbound_nat_rule", 1),
            NatTarget::Pool { .. } => ("inbound_nat_pool", config.pools[nat.pool].backends.len()),
        };
        add(kind, &nat.name, nat.frontend, places);
    }
    for (place, frontend) in config.frontends.iter().enumerate() {
        if config
            .outbound
            .iter()
            .any(|rule| rule.frontends.contains(&place))
        {
            add("outbound_rule", &frontend.name, place, 1);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nat_pool_counts_as_one() {
        let text = r#"
            [node]
            role = "host"
            underlay = "172.16.0.101"
            [[frontend]]
            name = "unused"
            address = "20.20.20.99"
            [[frontend]]
            name = "web"
            address = "20.20.20.100"
            [[pool]]
            name = "vms"
            vni = 1
            backends = [
              { name = "a", address = "10.0.0.1", host = "172.16.0.101" },
              { name = "b", address = "10.0.0.2", host = "172.16.0.101" },
            ]
            [[rule]]
            name = "http"
            frontend = "web"
            pool = "vms"
            protocol = "tcp"
            frontend_port = 80
            [[inbound_nat_pool]]
            name = "ssh"
            frontend = "web"
            pool = "vms"
            protocol = "tcp"
            frontend_port_start = 5000
            frontend_port_end = 5009
            backend_port = 22
            [[inbound_nat_rule]]
            name = "ssh"
            frontend = "web"
            pool = "vms"
            backend = "a"
            protocol = "udp"
            frontend_port = 5000
            backend_port = 22
            [[outbound_rule]]
            name = "out"
            frontends = ["web"]
            pool = "vms"
        "#;
        let config = Config::parse("test", text).expect("good");
        let snapshot = config.snapshot(None).expect("good");
        let places = (0..)
            .take_while(|&place| snapshot.rule(place).is_some())
            .count();
        let syns = |syns| {
            let mut counters = RuleCounters::default();
            counters.syns = syns;
            counters
        };
        // As many as the snapshot has, in its order: NAT rules come before NAT pools.
        let counted: Vec<_> = (0..places as u32)
            .map(|place| syns(10u64.pow(place)))
            .collect();
        let found: Vec<_> = lines(&config, &counted)
            .into_iter()
            .map(|line| (line.kind, line.name, line.frontend, line.counters.syns))
            .collect();
        let expected = [
            ("rule", "http", 1, 1),
            ("inbound_nat_rule", "ssh", 1, 10),
            ("inbound_nat_pool", "ssh", 1, 1100),
            ("outbound_rule", "web", 1, 10_000),
        ];
        assert_eq!(
            found,
            expected.map(|(kind, name, f, n)| (kind, name.to_owned(), f, n))
        );
    }
}
