//! Probes, load-balancing rules and outbound rules.

use slb_core::hash::Distribution;
use slb_core::spec::Protocol;

use super::Reader;
use crate::azure::json::{Node, Object};
use crate::azure::model::{Outbound, Probe, Rule, Terms};
use crate::azure::resources::{Kind, Sku};
use crate::config::{NoHealthyBackends, ProbeProtocol};

impl<'r> Reader<'r> {
    pub(super) fn probe(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "probe", self.notes);
        object.ignore(&["loadBalancingRules"]);
        let protocols = [
            ("Tcp", ProbeProtocol::Tcp),
            ("Http", ProbeProtocol::Http),
            ("Https", ProbeProtocol::Https),
        ];
        if object.get("protocol").is_none() {
            object.error(node, "protocol", "is missing");
        }
        let protocol = object.choice("protocol", &protocols);
        let port = object.required_number("port", 1..=65_535);
        let interval = object.number("intervalInSeconds", 5..=300).unwrap_or(15);
        let threshold = object.number("numberOfProbes", 1..=100);
        // The newer member takes precedence if both are present.
        let threshold = object.number("probeThreshold", 1..=100).or(threshold);
        let path = object.text("requestPath").filter(|path| !path.is_empty());
        let behaviours = [
            ("AllProbedDown", NoHealthyBackends::Refuse),
            ("AllProbedUp", NoHealthyBackends::UseAll),
        ];
        let behaviour = object.choice("noHealthyBackendsBehavior", &behaviours);
        if let (Some((at, ProbeProtocol::Https)), Sku::Basic) = (protocol, self.balancer.sku) {
            object.error(
                at,
                "protocol",
                "HTTPS probes need a Standard load balancer, and this one is Basic",
            );
        }
        object.finish();
        let (Some((_, protocol)), Some(port)) = (protocol, port) else {
            return;
        };
        self.model.probes.push(Probe {
            origin: node.origin(),
            name: self.names.of_part(self.balancer, Kind::Probe, &own),
            protocol,
            port,
            path: path.filter(|_| protocol != ProbeProtocol::Tcp),
            interval,
            threshold: threshold.unwrap_or(2),
            no_healthy_backends: behaviour.map_or(NoHealthyBackends::Refuse, |(_, it)| it),
        });
    }

    pub(super) fn rule(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "rule", self.notes);
        let frontend = self.require(&object, "frontendIPConfiguration", Kind::Frontend);
        let pools = object.references("backendAddressPools");
        let single = object.reference("backendAddressPool");
        let mut pools = single.into_iter().chain(pools);
        let pool = match pools.next() {
            Some((at, id)) => {
                // Azure writes the pool into both members.
                if let Some((other, _)) = pools.find(|(_, other)| !other.eq_ignore_ascii_case(id)) {
                    let why = "expected one pool: only rules of a Gateway load balancer, which is not supported, have several";
                    object.error(other, "backendAddressPools", why);
                }
                self.part_of_id(&object, at, "backendAddressPool", Kind::Pool, id)
            }
            None => self.require(&object, "backendAddressPool", Kind::Pool),
        };
        let probe = self.refer(&object, "probe", Kind::Probe);
        let protocol = protocol_of(&object, true);
        let ports = if protocol == Some(Protocol::All) {
            0..=0
        } else {
            1..=65_535
        };
        let frontend_port = object.required_number("frontendPort", ports.clone());
        let backend_port = object.number("backendPort", ports).or(frontend_port);
        let distributions = [
            ("Default", Distribution::FiveTuple),
            ("SourceIP", Distribution::SourceIp),
            ("SourceIPProtocol", Distribution::SourceIpProtocol),
        ];
        let distribution = object.choice("loadDistribution", &distributions);
        let why = "has no effect: host agents and proxies always track connections";
        object.not_done("enableConnectionTracking", why);
        let terms = terms_of(&object);
        let disable = object.boolean("disableOutboundSnat").unwrap_or(false);
        let is_public = frontend
            .as_ref()
            .and_then(|f| self.is_public.get(&f.to_lowercase()));
        if protocol == Some(Protocol::All) {
            let at = object.get("protocol").unwrap_or(node);
            if self.balancer.sku == Sku::Basic {
                let why = "HA ports need a Standard load balancer, and this one is Basic";
                object.error(at, "protocol", why);
            } else if is_public == Some(&true) {
                let why = "HA ports are of internal frontends only: a public one takes \"Tcp\" or \"Udp\" and a port";
                object.error(at, "protocol", why);
            }
        }
        object.finish();
        let may_call_out = protocol != Some(Protocol::All) && is_public.is_none_or(|&is| is);
        if let (
            Some(frontend),
            Some(pool),
            Some(protocol),
            Some(frontend_port),
            Some(backend_port),
        ) = (frontend, pool, protocol, frontend_port, backend_port)
        {
            self.model.rules.push(Rule {
                origin: node.origin(),
                name: self.names.of_part(self.balancer, Kind::Rule, &own),
                frontend,
                pool,
                probe,
                protocol,
                frontend_port,
                backend_port,
                distribution: distribution.map_or(Distribution::FiveTuple, |(_, mode)| mode),
                terms,
                outbound_snat: !disable && may_call_out,
            });
        }
    }

    pub(super) fn outbound(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "outbound rule", self.notes);
        let mut frontends = Vec::new();
        if self.balancer.sku == Sku::Basic {
            let why = "outbound rules need a Standard load balancer, and this one is Basic";
            object.error(node, "sku", why);
        }
        let own_frontends = object.references("frontendIPConfigurations");
        for (at, id) in &own_frontends {
            let member = "frontendIPConfigurations";
            let Some(name) = self.part_of_id(&object, at, member, Kind::Frontend, id) else {
                continue;
            };
            match self.prefixes.get(&name) {
                Some(all) => frontends.extend(all.iter().cloned()),
                None => frontends.push(name),
            }
        }
        if own_frontends.is_empty() {
            object.error(node, "frontendIPConfigurations", "is missing");
        }
        let pool = self.require(&object, "backendAddressPool", Kind::Pool);
        let protocol = protocol_of(&object, true);
        let ports = object
            .number("allocatedOutboundPorts", 0..=64_000)
            .unwrap_or(0);
        let terms = terms_of(&object);
        object.finish();
        if let (Some(pool), Some(protocol)) = (pool, protocol) {
            self.model.outbound.push(Outbound {
                origin: node.origin(),
                name: self.names.of_part(self.balancer, Kind::Outbound, &own),
                frontends,
                pool,
                protocol,
                ports,
                terms,
            });
        }
    }
}

pub(super) fn protocol_of(object: &Object<'_>, may_be_all: bool) -> Option<Protocol> {
    let protocols = [
        ("Tcp", Protocol::Tcp),
        ("Udp", Protocol::Udp),
        ("All", Protocol::All),
    ];
    if object.get("protocol").is_none() {
        object.error(object.node, "protocol", "is missing");
    }
    let known = if may_be_all { 3 } else { 2 };
    let protocols = protocols.get(..known).unwrap_or_default();
    object
        .choice("protocol", protocols)
        .map(|(_, protocol)| protocol)
}

pub(super) fn terms_of(object: &Object<'_>) -> Terms {
    const LONGEST: u32 = 30;
    let minutes = object.number("idleTimeoutInMinutes", 4..=100).unwrap_or(4);
    if minutes > LONGEST
        && let Some(node) = object.get("idleTimeoutInMinutes")
    {
        let why = format!("{minutes} becomes {LONGEST}, the longest that slb has");
        object.warning(node, "idleTimeoutInMinutes", why);
    }
    Terms {
        idle_timeout: minutes.min(LONGEST),
        floating_ip: object.boolean("enableFloatingIP").unwrap_or(false),
        tcp_reset: object.boolean("enableTcpReset").unwrap_or(false),
    }
}
