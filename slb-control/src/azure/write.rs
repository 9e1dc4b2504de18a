//! Writing the model as a readable configuration file, without default values.

use std::fmt::Display;

use slb_core::hash::Distribution;
use slb_core::spec::Protocol;

use super::FIRST_WORDS;
use super::inventory::Inventory;
use super::json::Origin;
use super::model::{
    Backend, Frontend, Model, Nat, Network, Outbound, Pool, Probe, Rule, SecurityList, Target,
    Terms, Vm,
};
use crate::config::{NoHealthyBackends, ProbeProtocol};
use crate::error::ConfigError;

/// The time that Azure waits for an answer, in seconds.
const PROBE_TIMEOUT: u32 = 30;

/// A configuration, and the position in the JSON for each range of its lines, in order.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) toml: String,
    origins: Vec<(usize, Origin)>,
}

impl Written {
    /// Moves a fault of the configuration to the position of its cause in the JSON. Faults caused
    /// by the inventory stay faults of the configuration.
    pub(super) fn locate(&self, fault: ConfigError) -> ConfigError {
        let known = self
            .origins
            .partition_point(|(line, _)| *line <= fault.line);
        let Some((_, origin)) = known.checked_sub(1).and_then(|last| self.origins.get(last)) else {
            return fault;
        };
        let path = origin.path.as_ref().map(ToString::to_string);
        let places = [path.unwrap_or_default(), fault.place];
        let places = places.into_iter().filter(|place| !place.is_empty());
        ConfigError {
            file: origin.file.to_string(),
            line: origin.line,
            place: places.collect::<Vec<_>>().join(": "),
            message: fault.message,
        }
    }
}

pub(super) fn write(model: &Model, inventory: &Inventory, from: &impl Display) -> Written {
    let mut file = File::default();
    file.line(&format!("{FIRST_WORDS} {from}."));
    if !inventory.node.is_empty() {
        file.section("[node]");
        for (name, value) in &inventory.node {
            file.field(name, value.clone());
        }
    }
    model.networks.iter().for_each(|part| file.network(part));
    model.lists.iter().for_each(|part| file.list(part));
    model.frontends.iter().for_each(|part| file.frontend(part));
    model.probes.iter().for_each(|part| file.probe(part));
    model.pools.iter().for_each(|part| file.pool(part));
    model.vms.iter().for_each(|part| file.vm(part));
    model.rules.iter().for_each(|part| file.rule(part));
    for (kind, wants_pool) in [("inbound_nat_rule", false), ("inbound_nat_pool", true)] {
        let is_one = |nat: &&Nat| matches!(nat.target, Target::Pool { .. }) == wants_pool;
        for nat in model.nat.iter().filter(is_one) {
            file.nat(kind, nat);
        }
    }
    model.outbound.iter().for_each(|part| file.outbound(part));
    Written {
        toml: file.text,
        origins: file.origins,
    }
}

#[derive(Default)]
struct File {
    text: String,
    /// The number of finished lines.
    lines: usize,
    origins: Vec<(usize, Origin)>,
}

impl File {
    fn line(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
        self.lines += 1 + text.bytes().filter(|&byte| byte == b'\n').count();
    }

    fn section(&mut self, header: &str) {
        self.line(&format!("\n{header}"));
    }

    /// Begins the section of a part, with its position in the JSON.
    fn part(&mut self, header: &str, origin: &Origin) {
        self.line("");
        self.origin(origin);
        self.line(header);
    }

    /// Records the position in the JSON for the next lines.
    fn origin(&mut self, origin: &Origin) {
        self.origins.push((self.lines + 1, origin.clone()));
    }

    fn field(&mut self, name: &str, value: impl Into<toml::Value>) {
        self.line(&format!("{name} = {}", value.into()));
    }

    fn frontend(&mut self, frontend: &Frontend) {
        self.part("[[frontend]]", &frontend.origin);
        self.field("name", frontend.name.as_str());
        self.field("address", frontend.address.to_string());
        if let Some(network) = &frontend.network {
            self.field("network", network.as_str());
        }
        if !frontend.zones.is_empty() {
            self.field("zones", frontend.zones.clone());
        }
    }

    /// Writes a list of texts, unless it is empty.
    fn texts(&mut self, name: &str, texts: &[String]) {
        if !texts.is_empty() {
            self.field(name, texts.to_vec());
        }
    }

    fn network(&mut self, network: &Network) {
        self.part("[[network]]", &network.origin);
        self.field("name", network.name.as_str());
        self.field("vni", i64::from(network.vni));
        self.field("address_spaces", network.address_spaces.clone());
        self.texts("gateways", &network.gateways);
    }

    fn list(&mut self, list: &SecurityList) {
        self.part("[[security_list]]", &list.origin);
        self.field("name", list.name.as_str());
        for rule in &list.rules {
            self.part("[[security_rule]]", &rule.origin);
            self.field("name", rule.name.as_str());
            self.field("security_list", list.name.as_str());
            self.field("priority", i64::from(rule.priority));
            self.field("direction", rule.direction);
            self.field("access", rule.access);
            self.field("protocol", rule.protocol);
            self.texts("sources", &rule.sources);
            self.texts("source_ports", &rule.source_ports);
            self.texts("destinations", &rule.destinations);
            self.texts("destination_ports", &rule.destination_ports);
        }
    }

    fn vm(&mut self, vm: &Vm) {
        self.part("[[vm]]", &vm.origin);
        self.field("name", vm.name.as_str());
        self.field("network", vm.network.as_str());
        self.field("address", vm.address.to_string());
        for (name, value) in &vm.fields {
            self.field(name, value.clone());
        }
        self.texts("security_list", &vm.lists);
    }

    fn probe(&mut self, probe: &Probe) {
        self.part("[[probe]]", &probe.origin);
        self.field("name", probe.name.as_str());
        let protocol = match probe.protocol {
            ProbeProtocol::Tcp => "tcp",
            ProbeProtocol::Http => "http",
            ProbeProtocol::Https => "https",
        };
        self.field("protocol", protocol);
        self.field("port", i64::from(probe.port));
        if let Some(path) = &probe.path {
            self.field("path", path.as_str());
        }
        self.field("interval", seconds(probe.interval));
        self.field("timeout", seconds(probe.interval.min(PROBE_TIMEOUT)));
        self.field("threshold", i64::from(probe.threshold));
        if probe.no_healthy_backends == NoHealthyBackends::UseAll {
            self.field("no_healthy_backends", "use-all");
        }
        if probe.protocol == ProbeProtocol::Https {
            self.line("# Azure asks by address, and takes any certificate.");
            self.field("verify_certificate", false);
        }
    }

    fn pool(&mut self, pool: &Pool) {
        self.part("[[pool]]", &pool.origin);
        self.field("name", pool.name.as_str());
        match (&pool.network, pool.vni) {
            (Some(network), _) => self.field("network", network.as_str()),
            (None, Some(vni)) => self.field("vni", i64::from(vni)),
            (None, None) => {}
        }
        self.texts("security_list", &pool.lists);
        self.line("backends = [");
        pool.backends
            .iter()
            .for_each(|backend| self.backend(backend));
        self.line("]");
    }

    fn backend(&mut self, backend: &Backend) {
        let mut fields = vec![
            format!("name = {}", toml::Value::from(backend.name.as_str())),
            format!("address = \"{}\"", backend.address),
        ];
        let others = backend.fields.iter();
        fields.extend(others.map(|(name, value)| format!("{name} = {value}")));
        self.origin(&backend.origin);
        self.line(&format!("  {{ {} }},", fields.join(", ")));
    }

    fn rule(&mut self, rule: &Rule) {
        self.part("[[rule]]", &rule.origin);
        self.field("name", rule.name.as_str());
        self.field("frontend", rule.frontend.as_str());
        self.field("pool", rule.pool.as_str());
        if let Some(probe) = &rule.probe {
            self.field("probe", probe.as_str());
        }
        self.field("protocol", rule.protocol.name());
        if rule.protocol != Protocol::All {
            self.field("frontend_port", i64::from(rule.frontend_port));
            self.field("backend_port", i64::from(rule.backend_port));
        }
        if rule.distribution != Distribution::FiveTuple {
            self.field("distribution", rule.distribution.name());
        }
        self.terms(rule.terms);
        if rule.outbound_snat {
            self.field("disable_outbound_snat", false);
        }
    }

    fn terms(&mut self, terms: Terms) {
        self.field("idle_timeout", format!("{}m", terms.idle_timeout));
        for (name, is_on) in [
            ("floating_ip", terms.floating_ip),
            ("tcp_reset", terms.tcp_reset),
        ] {
            if is_on {
                self.field(name, true);
            }
        }
    }

    fn nat(&mut self, kind: &str, nat: &Nat) {
        self.part(&format!("[[{kind}]]"), &nat.origin);
        self.field("name", nat.name.as_str());
        self.field("frontend", nat.frontend.as_str());
        self.field("pool", nat.pool.as_str());
        self.field("protocol", nat.protocol.name());
        match &nat.target {
            Target::Backend { port, backend } => {
                self.field("frontend_port", i64::from(*port));
                self.field("backend", backend.as_str());
            }
            Target::Pool { first, last } => {
                self.field("frontend_port_start", i64::from(*first));
                self.field("frontend_port_end", i64::from(*last));
            }
        }
        self.field("backend_port", i64::from(nat.backend_port));
        self.terms(nat.terms);
    }

    fn outbound(&mut self, rule: &Outbound) {
        self.part("[[outbound_rule]]", &rule.origin);
        self.field("name", rule.name.as_str());
        self.field("frontends", rule.frontends.clone());
        self.field("pool", rule.pool.as_str());
        self.field("protocol", rule.protocol.name());
        if rule.ports != 0 {
            self.field("allocated_outbound_ports", i64::from(rule.ports));
        }
        self.field("idle_timeout", format!("{}m", rule.terms.idle_timeout));
        if rule.terms.tcp_reset {
            self.field("tcp_reset", true);
        }
    }
}

fn seconds(seconds: u32) -> String {
    crate::duration::format_duration(std::time::Duration::from_secs(seconds.into()))
}
