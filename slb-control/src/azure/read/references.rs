//! Load balancers as the model: ids become names, and the inventory says what the JSON does not.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::IpAddr;

use slb_core::hash::Distribution;
use slb_core::spec::Protocol;

use super::inventory::{Entry, Inventory, PublicAddress};
use super::json::{Node, Notes, Object};
use super::model::{Backend, Frontend, Model, Nat, Outbound, Pool, Probe, Rule, Target, Terms};
use super::resources::{Balancer, Configuration, Found, Interface, Kind, ScaleSet, Sku};
use crate::config::{NoHealthyBackends, ProbeProtocol};

/// The most backends of a pool of a Basic load balancer, Azure's own limit.
const MOST_OF_BASIC: usize = 300;

pub(super) fn read(found: &Found, inventory: &Inventory, notes: &Notes) -> Model {
    let names = Names::of(found);
    let mut model = Model::default();
    check_references(found, notes);
    for balancer in &found.balancers {
        let mut reader = Reader {
            balancer,
            found,
            inventory,
            notes,
            names: &names,
            prefixes: HashMap::new(),
            is_public: HashMap::new(),
            model: &mut model,
        };
        // Those that others refer to come first.
        for kind in [
            Kind::Frontend,
            Kind::Pool,
            Kind::Probe,
            Kind::Rule,
            Kind::NatRule,
            Kind::NatPool,
            Kind::Outbound,
        ] {
            let parts = balancer.parts.iter().filter(|(own, _)| *own == kind);
            for (_, node) in parts {
                reader.part(kind, node);
            }
        }
    }
    model
}

/// How often a name is used: those of several load balancers get their load balancer's in front.
struct Names(HashMap<(Kind, String), usize>);

impl Names {
    fn of(found: &Found) -> Self {
        let mut counts = HashMap::new();
        let parts = found.balancers.iter().flat_map(|balancer| &balancer.parts);
        for (kind, node) in parts {
            let name = node.get("name").and_then(Node::as_str).unwrap_or_default();
            *counts.entry((*kind, name.to_lowercase())).or_insert(0) += 1;
        }
        Self(counts)
    }

    fn of_part(&self, balancer: &Balancer, kind: Kind, name: &str) -> String {
        let count = self.0.get(&(kind, name.to_lowercase()));
        if count.is_some_and(|&count| count > 1) && !balancer.name.is_empty() {
            format!("{}/{name}", balancer.name)
        } else {
            name.to_owned()
        }
    }
}

struct Reader<'r> {
    balancer: &'r Balancer,
    found: &'r Found,
    inventory: &'r Inventory,
    notes: &'r Notes,
    names: &'r Names,
    /// The frontends that a prefix became.
    prefixes: HashMap<String, Vec<String>>,
    /// Frontends by name: true if the frontend is public.
    is_public: HashMap<String, bool>,
    model: &'r mut Model,
}

impl<'r> Reader<'r> {
    fn part(&mut self, kind: Kind, node: &'r Node) {
        match kind {
            Kind::Frontend => self.frontend(node),
            Kind::Pool => self.pool(node),
            Kind::Probe => self.probe(node),
            Kind::Rule => self.rule(node),
            Kind::NatRule => self.nat_rule(node),
            Kind::NatPool => self.nat_pool(node),
            Kind::Outbound => self.outbound(node),
        }
    }

    fn frontend(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "frontend", self.notes);
        let name = self.names.of_part(self.balancer, Kind::Frontend, &own);
        object.ignore(&["privateIPAllocationMethod"]);
        let is_inside = object.get("subnet").is_some();
        object.ignore(&[
            "inboundNatRules",
            "inboundNatPools",
            "outboundRules",
            "loadBalancingRules",
        ]);
        let why = "a chain through a Gateway load balancer is not made here";
        object.refuse("gatewayLoadBalancer", why);
        let private = object.address("privateIPAddress");
        let version = object.choice(
            "privateIPAddressVersion",
            &[("IPv4", false), ("IPv6", true)],
        );
        let public = self.public_address(&object);
        let is_public = public.is_some() || (private.is_none() && !is_inside);
        let zones = object.list("zones").iter().filter_map(Node::as_str);
        let zones: Vec<&str> = zones.collect();
        let remark = match zones.as_slice() {
            [] => String::new(),
            zones => format!("in zones {}: every mux announces it", zones.join(", ")),
        };
        let address = match (private, public) {
            (Some(first), _) => Some(PublicAddress { first, count: 1 }),
            (None, Some(public)) => public,
            // Said already.
            (None, None) if object.get("privateIPAddress").is_some() => None,
            (None, None) => {
                let message = "expected privateIPAddress or publicIPAddress; where the address is \
                               given by Azure, the inventory says it: [[public_ip]] with this name as id";
                let given = self.inventory.public(&own);
                if given.is_none() {
                    object.error(node, "address", message);
                }
                given
            }
        };
        if let (Some((at, is_ipv6)), Some(address)) = (version, address)
            && is_ipv6 != address.first.is_ipv6()
        {
            let message = format!("is not the version of {}", address.first);
            object.error(at, "privateIPAddressVersion", message);
        }
        object.finish();
        self.is_public.insert(name.to_lowercase(), is_public);
        let Some(address) = address else { return };
        let mut all = Vec::new();
        for (place, address_of) in address.addresses().enumerate() {
            let name = match address.count {
                1 => name.clone(),
                _ => format!("{name}/{place}"),
            };
            all.push(name.clone());
            self.model.frontends.push(Frontend {
                origin: node.origin(),
                name,
                address: address_of,
                remark: remark.clone(),
            });
        }
        self.prefixes.insert(name, all);
    }

    /// Resolves `publicIPAddress` or `publicIPPrefix`: given inline, as a resource beside, or in
    /// the inventory. The inner option is `None` if it is in none of them.
    fn public_address(&self, object: &Object<'_>) -> Option<Option<PublicAddress>> {
        object.ignore(&["publicIPAddress", "publicIPPrefix"]);
        for name in ["publicIPAddress", "publicIPPrefix"] {
            let Some(node) = object.get(name) else {
                continue;
            };
            let inner = Object::new(node, object.place.clone(), self.notes);
            if let Some(first) = inner.address("ipAddress") {
                return Some(Some(PublicAddress { first, count: 1 }));
            }
            let Some((at, id)) = object.reference(name) else {
                return Some(None); // said already
            };
            let last = last_of(id);
            let addresses = &self.found.addresses;
            let beside = addresses
                .iter()
                .find(|(own, _)| own.eq_ignore_ascii_case(last));
            let beside = beside.map(|&(_, address)| address);
            let known = self.inventory.public(id).or(beside);
            if known.is_none() {
                let message = format!(
                    "the JSON does not say its address, so the inventory has to: [[public_ip]] with \
                     id = {last:?} and address"
                );
                object.error(at, name, message);
            }
            return Some(known);
        }
        None
    }

    fn pool(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "pool", self.notes);
        let name = self.names.of_part(self.balancer, Kind::Pool, &own);
        object.ignore(&[
            "loadBalancingRules",
            "outboundRule",
            "outboundRules",
            "inboundNatRules",
        ]);
        object.ignore(&["syncMode"]);
        object.refuse(
            "tunnelInterfaces",
            "tunnels of a Gateway load balancer are not made here",
        );
        let drain = object.number("drainPeriodInSeconds", 0..=u32::MAX);
        if let (Some(at), Some(period @ 1..)) = (object.get("drainPeriodInSeconds"), drain) {
            let why = format!(
                "flows of a backend that drains are not ended after {period} s here: they last until they end"
            );
            object.warning(at, "drainPeriodInSeconds", why);
        }
        let mut networks: Vec<&str> = Vec::new();
        networks.extend(object.reference("virtualNetwork").map(|(_, id)| id));
        let mut backends: Vec<Backend> = Vec::new();
        for (at, id) in object.references("backendIPConfigurations") {
            let backend = self.backend_by_id(&object, at, id);
            add(&mut backends, backend);
        }
        for element in object.list("loadBalancerBackendAddresses") {
            let backend = self.backend_address(element, &object.place, &mut networks);
            add(&mut backends, backend);
        }
        let is_in = |interface: &&Interface| interface.pools.iter().any(|id| self.is_own(id, &own));
        for interface in self.found.interfaces.iter().filter(is_in) {
            let backend = self.backend_by_id(&object, &interface.node, &interface.id);
            add(&mut backends, backend);
        }
        let is_listed =
            |entry: &&Entry| entry.pools.iter().any(|pool| *pool == own || *pool == name);
        let before = backends.len();
        for entry in self.inventory.backends.iter().filter(is_listed) {
            let backend = self.backend(&object.place, node, (None, None, None), Some(entry));
            add(&mut backends, backend);
        }
        // One that is listed twice is one.
        self.instances(&object, &own, backends.len() - before);
        if self.balancer.sku == Sku::Basic && backends.len() > MOST_OF_BASIC {
            let message = format!(
                "a Basic load balancer has at most {MOST_OF_BASIC} backends, got {}",
                backends.len()
            );
            object.error(node, "backends", message);
        }
        let vni = self.vni(&object, &networks);
        object.finish();
        self.model.pools.push(Pool {
            origin: node.origin(),
            name,
            vni,
            backends,
        });
    }

    /// Compares how many instances scale sets have in a pool with how many the inventory lists: it alone
    /// knows their addresses.
    fn instances(&self, object: &Object<'_>, pool: &str, listed: usize) {
        let is_in = |set: &&ScaleSet| {
            let mut ids = set.configurations.iter().flat_map(|c| &c.pools);
            ids.any(|id| self.is_own(id, pool))
        };
        let sets: Vec<&ScaleSet> = self.found.scale_sets.iter().filter(is_in).collect();
        let Some(&first) = sets.first() else { return };
        let Some(expected) = sets.iter().map(|set| set.capacity).sum::<Option<u32>>() else {
            return; // said already
        };
        let names = sets.iter().map(|set| format!("{:?}", set.name));
        let names = names.collect::<Vec<_>>().join(" and ");
        let message = format!(
            "scale set {names} has {expected} instances in it, and the inventory lists {listed}: \
             [[backend]] with pool = {pool:?}, address and host for each"
        );
        match listed.cmp(&(expected as usize)) {
            Ordering::Less => object.error(&first.node, "backends", message),
            Ordering::Equal => {}
            Ordering::Greater => object.warning(&first.node, "backends", message),
        }
    }

    /// The VXLAN network of a pool, which has to be in one.
    fn vni(&self, object: &Object<'_>, networks: &[&str]) -> Option<u32> {
        let mut known = networks.iter().map(|&id| self.inventory.vni(Some(id)));
        let first = known.next().unwrap_or_else(|| self.inventory.vni(None));
        let node = object.node;
        if first.is_none() && !self.inventory.is_proxy() {
            let which = match networks.first() {
                Some(id) => format!("[[network]] with id = {:?} and vni", last_of(id)),
                None => "vni".to_owned(),
            };
            let message = format!("the JSON does not say it, so the inventory has to: {which}");
            object.error(node, "VXLAN network", message);
        }
        if known.any(|other| other != first) {
            object.error(
                node,
                "virtualNetwork",
                "expected one for all of its backends",
            );
        }
        first
    }

    fn backend_address(
        &self,
        node: &'r Node,
        place: &str,
        networks: &mut Vec<&'r str>,
    ) -> Option<Backend> {
        let mut object = Object::new(node, format!("{place}: backend"), self.notes);
        let name = object.text("name");
        if let Some(known) = &name {
            object.place = format!("{place}: backend {known:?}");
        }
        // Where Azure gives the address, the inventory may say it under the backend's name.
        let entry = self.inventory.backend(None, name.as_deref(), None);
        let is_said = entry.is_some_and(|entry| entry.address.is_some());
        let is_unresolved = object.is_unresolved("ipAddress");
        let address = if is_unresolved && is_said {
            None
        } else {
            let name = name.as_deref().unwrap_or("its name");
            let or =
                format!(", here or in the inventory ([[backend]] with id = {name:?} and address)");
            object.address_or("ipAddress", if is_unresolved { &or } else { "" })
        };
        if is_unresolved && !is_said {
            return None; // said already
        }
        if let Some(known) = name.clone().or_else(|| address.map(|a| a.to_string())) {
            object.place = format!("{place}: backend {known:?}");
        }
        let network = object
            .reference("virtualNetwork")
            .or(object.reference("subnet"));
        networks.extend(network.map(|(_, id)| id));
        object.ignore(&["inboundNatRulesPortMapping"]);
        let why = "a pool of load balancers, as a Global one has, is not made here";
        object.refuse("loadBalancerFrontendIPConfiguration", why);
        let states = [
            ("None", None),
            ("Up", None),
            ("Down", Some("down")),
            ("Drain", Some("draining")),
        ];
        let state = object
            .choice("adminState", &states)
            .and_then(|(_, state)| state);
        if let Some((at, "Up")) = object
            .get("adminState")
            .and_then(|n| Some((n, n.as_str()?)))
        {
            let why =
                "\"Up\" would be healthy whatever its probes say: it is healthy while they do";
            object.warning(at, "adminState", why);
        }
        let id = object.reference("networkInterfaceIPConfiguration");
        let id = id.map(|(_, id)| id);
        let entry = self.inventory.backend(id, name.as_deref(), address);
        let about = (id, name.as_deref(), address);
        let mut backend = self.backend(place, node, about, entry);
        if let (Some(backend), Some(state)) = (&mut backend, state) {
            let state = toml::Value::from(state);
            backend.fields.insert("state".to_owned(), state);
        }
        object.finish();
        backend
    }

    fn backend_by_id(&self, object: &Object<'_>, at: &Node, id: &str) -> Option<Backend> {
        let entry = self.inventory.backend(Some(id), None, None);
        self.backend(&object.place, at, (Some(id), None, None), entry)
    }

    /// A backend out of what the JSON says of it, its id, name and address, what its network interface
    /// says, and the inventory. Errors name it in `place`.
    fn backend(
        &self,
        place: &str,
        at: &Node,
        (id, name, address): (Option<&str>, Option<&str>, Option<IpAddr>),
        entry: Option<&Entry>,
    ) -> Option<Backend> {
        let interface = id.and_then(|id| self.interface(id));
        let address = address.or(entry.and_then(|entry| entry.address));
        let address = address.or_else(|| interface.and_then(|interface| interface.address));
        // By the address that the interface says, if not by its name.
        let by_address = || self.inventory.backend(None, None, Some(address?));
        let entry = entry.or_else(by_address);
        let machine = id.map(machine_of);
        let said = entry.and_then(|entry| entry.name.as_deref());
        let known = said.or(name).or(machine).map(str::to_owned);
        let known = known.or_else(|| Some(address?.to_string()))?;
        let lacks = |what: &str, how: String| {
            let message = format!(
                "backend {known:?}: the JSON does not say its {what}, so the inventory has to: \
                 [[backend]] with {how}"
            );
            self.notes.error(at, place, message);
        };
        let is_one_of_several = interface.is_some_and(|interface| !interface.is_only);
        let key = match (machine, name, address) {
            (Some(machine), ..) if is_one_of_several => {
                let configuration = last_of(id.unwrap_or_default());
                format!("id = \"{machine}/ipConfigurations/{configuration}\"")
            }
            (Some(machine), ..) => format!("id = {machine:?}"),
            (None, Some(name), _) => format!("id = {name:?}"),
            (None, None, Some(address)) => format!("address = \"{address}\""),
            (None, None, None) => "its address".to_owned(),
        };
        let Some(address) = address else {
            lacks("address", format!("{key} and address"));
            return None;
        };
        let fields = entry.map(|entry| entry.fields.clone()).unwrap_or_default();
        if !self.inventory.is_proxy() && !fields.contains_key("host") {
            lacks("host", format!("{key} and host"));
        }
        Some(Backend {
            origin: at.origin(),
            name: known,
            id: id.map(str::to_owned),
            address,
            fields,
        })
    }

    fn interface(&self, id: &str) -> Option<&'r Interface> {
        let id = id.to_ascii_lowercase();
        let is_same = |own: &str| id.ends_with(&own.to_ascii_lowercase());
        self.found.interfaces.iter().find(|i| is_same(&i.id))
    }

    /// Returns true if an id is that of a part of this load balancer.
    fn is_own(&self, id: &str, name: &str) -> bool {
        let mut segments = id.rsplit('/');
        let is_named = segments
            .next()
            .is_some_and(|s| s.eq_ignore_ascii_case(name));
        let balancer = segments.nth(1);
        let own = &self.balancer.name;
        is_named && (own.is_empty() || balancer.is_none_or(|b| b.eq_ignore_ascii_case(own)))
    }

    fn probe(&mut self, node: &'r Node) {
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
        // The newer one counts where both are there.
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
                "HTTPS probes take a Standard load balancer, and this is Basic",
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

    /// The name that a reference means.
    fn refer(&self, object: &Object<'_>, name: &'static str, kind: Kind) -> Option<String> {
        let (at, id) = object.reference(name)?;
        self.part_of_id(object, at, name, kind, id)
    }

    /// The name that an id means: that of a part of this load balancer.
    fn part_of_id(
        &self,
        object: &Object<'_>,
        at: &Node,
        name: &str,
        kind: Kind,
        id: &str,
    ) -> Option<String> {
        let (own, balancer) = (last_of(id), &self.balancer.name);
        if let Some(other) = balancer_of(id)
            && !balancer.is_empty()
            && !other.eq_ignore_ascii_case(balancer)
        {
            let message =
                format!("expected a {kind} of load balancer {balancer:?}, got one of {other:?}");
            object.error(at, name, message);
            return None;
        }
        if self.balancer.is_declared && !self.balancer.has(kind, own) {
            object.error(
                at,
                name,
                format!("load balancer {balancer:?} has no {kind} {own:?}"),
            );
            return None;
        }
        Some(self.names.of_part(self.balancer, kind, own))
    }

    fn require(&self, object: &Object<'_>, name: &'static str, kind: Kind) -> Option<String> {
        if object.get(name).is_none() {
            object.error(object.node, name, "is missing");
        }
        self.refer(object, name, kind)
    }

    fn rule(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "rule", self.notes);
        let frontend = self.require(&object, "frontendIPConfiguration", Kind::Frontend);
        let pools = object.references("backendAddressPools");
        let single = object.reference("backendAddressPool");
        let mut pools = single.into_iter().chain(pools);
        let pool = match pools.next() {
            Some((at, id)) => {
                // Both members name it where Azure wrote them.
                if let Some((other, _)) = pools.find(|(_, other)| !other.eq_ignore_ascii_case(id)) {
                    let why = "expected one pool: a rule has several at a Gateway load balancer only, which \
                               is not made here";
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
        let why = "connections are always tracked by who translates them";
        object.not_done("enableConnectionTracking", why);
        let terms = terms_of(&object);
        let disable = object.boolean("disableOutboundSnat").unwrap_or(false);
        let is_public = frontend
            .as_ref()
            .and_then(|f| self.is_public.get(&f.to_lowercase()));
        if protocol == Some(Protocol::All) {
            let at = object.get("protocol").unwrap_or(node);
            if self.balancer.sku == Sku::Basic {
                let why = "HA ports take a Standard load balancer, and this is Basic";
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

    fn nat_rule(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "inbound NAT rule", self.notes);
        let name = self.names.of_part(self.balancer, Kind::NatRule, &own);
        let frontend = self.require(&object, "frontendIPConfiguration", Kind::Frontend);
        let protocol = protocol_of(&object, false);
        let backend_port = object.required_number("backendPort", 1..=65_535);
        let terms = terms_of(&object);
        let first = object.number("frontendPortRangeStart", 1..=65_535);
        let last = object.number("frontendPortRangeEnd", 1..=65_535);
        let of_pool = self.refer(&object, "backendAddressPool", Kind::Pool);
        if of_pool.is_some() {
            let all = [
                ("frontendPortRangeStart", first),
                ("frontendPortRangeEnd", last),
            ];
            for (name, _) in all.iter().filter(|(_, port)| port.is_none()) {
                object.error(
                    node,
                    name,
                    "is missing: instances of a pool have a port each",
                );
            }
        }
        let configuration = object.reference("backendIPConfiguration");
        let leads_to = |i: &&Interface| i.nat_rules.iter().any(|id| self.is_own(id, &own));
        let interface = self.found.interfaces.iter().find(leads_to);
        let id = configuration.or_else(|| Some((node, interface?.id.as_str())));
        let found = match (of_pool, first.zip(last), id) {
            (Some(pool), Some((first, last)), _) => {
                object.ignore(&["frontendPort"]);
                Some((pool, Target::Pool { first, last }))
            }
            (_, _, Some((at, id))) => {
                let port = object.required_number("frontendPort", 1..=65_535);
                let found = self.nat_backend(&object, at, id, &name);
                found
                    .zip(port)
                    .map(|((pool, backend), port)| (pool, Target::Backend { port, backend }))
            }
            (_, _, None) => {
                object.ignore(&["frontendPort"]);
                object.warning(
                    node,
                    "backendIPConfiguration",
                    "is missing: it leads nowhere, and is left out",
                );
                None
            }
        };
        object.finish();
        if let (Some(frontend), Some((pool, target)), Some(protocol), Some(backend_port)) =
            (frontend, found, protocol, backend_port)
        {
            self.model.nat.push(Nat {
                origin: node.origin(),
                name,
                frontend,
                pool,
                target,
                protocol,
                backend_port,
                terms,
            });
        }
    }

    /// The pool and the name of the backend that an id means. One that is in none gets a pool of its own.
    fn nat_backend(
        &mut self,
        object: &Object<'_>,
        at: &Node,
        id: &str,
        name: &str,
    ) -> Option<(String, String)> {
        let backend = self.backend_by_id(object, at, id)?;
        for pool in &self.model.pools {
            let is_same = |own: &&Backend| {
                let same_id = own
                    .id
                    .as_deref()
                    .is_some_and(|own| own.eq_ignore_ascii_case(id));
                same_id || own.address == backend.address
            };
            if let Some(known) = pool.backends.iter().find(is_same) {
                return Some((pool.name.clone(), known.name.clone()));
            }
        }
        let (pool, found) = (format!("of {name}"), backend.name.clone());
        self.model.pools.push(Pool {
            origin: object.node.origin(),
            name: pool.clone(),
            vni: self.vni(object, &[]),
            backends: vec![backend],
        });
        Some((pool, found))
    }

    fn nat_pool(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "inbound NAT pool", self.notes);
        let frontend = self.require(&object, "frontendIPConfiguration", Kind::Frontend);
        let protocol = protocol_of(&object, false);
        let backend_port = object.required_number("backendPort", 1..=65_535);
        let terms = terms_of(&object);
        let first = object.required_number("frontendPortRangeStart", 1..=65_535);
        let last = object.required_number("frontendPortRangeEnd", 1..=65_535);
        let pools = self
            .balancer
            .parts
            .iter()
            .filter(|(kind, _)| *kind == Kind::Pool);
        let mut pools = pools.filter_map(|(_, node)| node.get("name")?.as_str());
        let only = pools.next().filter(|_| pools.next().is_none());
        let configurations = self
            .found
            .scale_sets
            .iter()
            .flat_map(|set| &set.configurations);
        let has_it = |c: &&Configuration| c.nat_pools.iter().any(|id| self.is_own(id, &own));
        let of_set = configurations.filter(has_it).flat_map(|c| c.pools.first());
        let mut of_set: Vec<&str> = of_set.map(|id| last_of(id)).collect();
        of_set.dedup_by(|left, right| left.eq_ignore_ascii_case(right));
        if let [_, _, ..] = of_set.as_slice() {
            let message = format!(
                "expected instances of one pool, got those of {}",
                of_set.join(" and ")
            );
            object.error(node, "pool", message);
        }
        let pool = self
            .inventory
            .nat_pool(&own)
            .or(of_set.first().copied())
            .or(only);
        if pool.is_none() {
            let message = format!(
                "the JSON does not say whose instances have its ports, so the inventory has to: \
                 [[nat_pool]] with id = {own:?} and pool"
            );
            object.error(node, "pool", message);
        }
        object.finish();
        if let (
            Some(frontend),
            Some(pool),
            Some(protocol),
            Some(backend_port),
            Some((first, last)),
        ) = (frontend, pool, protocol, backend_port, first.zip(last))
        {
            self.model.nat.push(Nat {
                origin: node.origin(),
                name: self.names.of_part(self.balancer, Kind::NatPool, &own),
                frontend,
                pool: self.names.of_part(self.balancer, Kind::Pool, pool),
                target: Target::Pool { first, last },
                protocol,
                backend_port,
                terms,
            });
        }
    }

    fn outbound(&mut self, node: &'r Node) {
        let (object, own) = Object::named(node, "outbound rule", self.notes);
        let mut frontends = Vec::new();
        if self.balancer.sku == Sku::Basic {
            let why = "outbound rules take a Standard load balancer, and this is Basic";
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

/// Adds a backend to a pool, once.
fn add(all: &mut Vec<Backend>, backend: Option<Backend>) {
    let known = |backend: &Backend| all.iter().any(|own| own.address == backend.address);
    if let Some(mut backend) = backend.filter(|backend| !known(backend)) {
        backend.name = unlike(all, &backend.name);
        all.push(backend);
    }
}

/// A name that none of the others has: with a number behind it where it has to be.
fn unlike(others: &[Backend], name: &str) -> String {
    let is_free = |name: &String| others.iter().all(|other| other.name != *name);
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let mut free = std::iter::once(name.to_owned())
        .chain(numbered)
        .filter(is_free);
    free.next().unwrap_or_default()
}

fn protocol_of(object: &Object<'_>, may_be_all: bool) -> Option<Protocol> {
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

fn terms_of(object: &Object<'_>) -> Terms {
    const LONGEST: u32 = 30;
    let minutes = object.number("idleTimeoutInMinutes", 4..=100).unwrap_or(4);
    if minutes > LONGEST
        && let Some(node) = object.get("idleTimeoutInMinutes")
    {
        let why = format!("{minutes} is taken for {LONGEST}, the longest there is here");
        object.warning(node, "idleTimeoutInMinutes", why);
    }
    Terms {
        idle_timeout: minutes.min(LONGEST),
        floating_ip: object.boolean("enableFloatingIP").unwrap_or(false),
        tcp_reset: object.boolean("enableTcpReset").unwrap_or(false),
    }
}

/// The load balancer that an id says its part is of.
fn balancer_of(id: &str) -> Option<&str> {
    let mut segments = id.split('/');
    segments.find(|segment| segment.eq_ignore_ascii_case("loadBalancers"))?;
    let name = segments.next()?;
    // What follows is the part itself.
    segments.next().map(|_| name)
}

/// Has network interfaces and scale sets refer to what there is: one that is in no pool that is read would
/// be lost without a word.
fn check_references(found: &Found, notes: &Notes) {
    let check = |node: &Node, place: &str, kind: Kind, id: &str| {
        let Some(name) = balancer_of(id) else { return };
        let own = |balancer: &&Balancer| balancer.name.eq_ignore_ascii_case(name);
        match found.balancers.iter().find(own) {
            None => {
                let message = format!("load balancer {name:?} is not among the files given");
                notes.warning(node, place, message);
            }
            Some(balancer) if balancer.is_declared && !balancer.has(kind, last_of(id)) => {
                let own = last_of(id);
                notes.error(
                    node,
                    place,
                    format!("load balancer {name:?} has no {kind} {own:?}"),
                );
            }
            Some(_) => {}
        }
    };
    for interface in &found.interfaces {
        let place = format!("network interface {:?}", machine_of(&interface.id));
        let all = [
            (Kind::Pool, &interface.pools),
            (Kind::NatRule, &interface.nat_rules),
        ];
        for (kind, ids) in all {
            ids.iter()
                .for_each(|id| check(&interface.node, &place, kind, id));
        }
    }
    for set in &found.scale_sets {
        let place = format!("scale set {:?}", set.name);
        for configuration in &set.configurations {
            let all = [
                (Kind::Pool, &configuration.pools),
                (Kind::NatRule, &configuration.nat_rules),
                (Kind::NatPool, &configuration.nat_pools),
            ];
            for (kind, ids) in all {
                ids.iter().for_each(|id| check(&set.node, &place, kind, id));
            }
        }
    }
}

/// The last part of an id: a name.
fn last_of(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

/// The name of the machine, or its network interface, that an IP configuration is of.
fn machine_of(id: &str) -> &str {
    let lower = id.to_ascii_lowercase();
    let parent = lower
        .rfind("/ipconfigurations/")
        .and_then(|at| id.get(..at));
    last_of(parent.unwrap_or(id))
}
