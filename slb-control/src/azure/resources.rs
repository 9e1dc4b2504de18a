//! Contents of a file: load balancers, the resources that they refer to, or parts of one.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use super::functions;
use super::inventory::{PublicAddress, public_address};
use super::json::{Node, Notes, Object, Value};
use super::networks::Networks;
use super::template::{Resource, Templates, file_name};
use super::zones::{Zones, zones_of};

/// All resources that were found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) balancers: Vec<Balancer>,
    /// Public IP addresses and prefixes by their names.
    pub(super) addresses: Vec<(String, PublicAddress)>,
    pub(super) interfaces: Vec<Interface>,
    /// IP configurations that no load balancer leads to by their ids: pools may have their addresses.
    pub(super) seats: Vec<(IpAddr, Seat)>,
    pub(super) scale_sets: Vec<ScaleSet>,
    pub(super) zones: Zones,
    pub(super) networks: Networks,
}

/// A load balancer.
#[derive(Debug)]
pub(super) struct Balancer {
    /// The name; empty if only parts of a load balancer were given.
    pub(super) name: String,
    /// True if the resource itself was given, not only its children.
    pub(super) is_declared: bool,
    pub(super) sku: Sku,
    pub(super) parts: Vec<(Kind, Node)>,
    /// Indexes of the named parts, by kind and name in lower case.
    named: HashMap<(Kind, String), usize>,
}

/// SKU of a load balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sku {
    /// Unknown, since only parts of the load balancer were given.
    #[default]
    Unknown,
    Basic,
    Standard,
}

/// Kind of a load balancer's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Frontend,
    Pool,
    Probe,
    Rule,
    NatRule,
    NatPool,
    Outbound,
}

/// The most resources of all files together: twenty times those of a template that Azure takes.
const MOST_RESOURCES: usize = 1 << 14;
/// The most parts of a load balancer.
const MOST_PARTS: usize = 1 << 14;

/// The members of a load balancer that contain its parts.
const LISTS: [(&str, Kind); 7] = [
    ("frontendIPConfigurations", Kind::Frontend),
    ("backendAddressPools", Kind::Pool),
    ("probes", Kind::Probe),
    ("loadBalancingRules", Kind::Rule),
    ("inboundNatRules", Kind::NatRule),
    ("inboundNatPools", Kind::NatPool),
    ("outboundRules", Kind::Outbound),
];

/// An IP configuration of a vm's network interface.
#[derive(Debug)]
pub(super) struct Interface {
    /// Both names, as at the end of the id.
    pub(super) id: String,
    pub(super) node: Node,
    pub(super) address: Option<IpAddr>,
    /// True if its network interface has no other IP configuration.
    pub(super) is_only: bool,
    /// The ids of its pools, and of the NAT rules that lead to it.
    pub(super) pools: Vec<String>,
    pub(super) nat_rules: Vec<String>,
    pub(super) seat: Seat,
}

/// The subnet of an IP configuration, and the network security group of its network interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Seat {
    /// The id of a subnet, or of a virtual network; `None` if the files do not say it.
    pub(super) subnet: Option<String>,
    pub(super) group: Option<(Node, String)>,
    /// The end of the network interface's id, if a pool has only its address.
    pub(super) interface: Option<String>,
}

impl Seat {
    /// Reads an IP configuration whose network interface has an id that ends like this.
    fn of_interface(id: String, interface: &Object<'_>, configuration: &Object<'_>) -> Self {
        Self {
            interface: Some(id),
            ..Self::read(interface, configuration)
        }
    }

    /// Reads an IP configuration, and its network interface.
    fn read(interface: &Object<'_>, configuration: &Object<'_>) -> Self {
        let id = |node: &Node| node.get("id").and_then(Node::as_str).map(str::to_owned);
        let group = interface.reference("networkSecurityGroup");
        Self {
            subnet: configuration.get("subnet").and_then(id),
            group: group.map(|(node, id)| (node.clone(), id.to_owned())),
            interface: None,
        }
    }
}

/// A scale set with some instances' addresses in pools.
#[derive(Debug)]
pub(super) struct ScaleSet {
    pub(super) name: String,
    pub(super) node: Node,
    /// The number of instances; `None` if it was refused.
    pub(super) capacity: Option<u32>,
    pub(super) configurations: Vec<Configuration>,
    pub(super) zones: Vec<String>,
}

impl ScaleSet {
    /// The zone of all instances; `None` where they have none, or are spread over several.
    pub(super) fn zone(&self) -> Option<&str> {
        match self.zones.as_slice() {
            [zone] => Some(zone),
            _ => None,
        }
    }
}

/// The ids that an IP configuration refers to.
#[derive(Debug)]
pub(super) struct Configuration {
    pub(super) pools: Vec<String>,
    pub(super) nat_rules: Vec<String>,
    pub(super) nat_pools: Vec<String>,
    pub(super) seat: Seat,
}

impl Configuration {
    fn read(interface: &Object<'_>, own: &Object<'_>) -> Self {
        let ids = |list| {
            let references = own.references(list).into_iter();
            references.map(|(_, id)| id.to_owned()).collect()
        };
        Self {
            pools: ids("loadBalancerBackendAddressPools"),
            nat_rules: ids("loadBalancerInboundNatRules"),
            nat_pools: ids("loadBalancerInboundNatPools"),
            seat: Seat::read(interface, own),
        }
    }

    /// Returns true if a load balancer leads to an IP configuration.
    fn is_of_use(own: &Object<'_>) -> bool {
        let lists = [
            "loadBalancerBackendAddressPools",
            "loadBalancerInboundNatRules",
            "loadBalancerInboundNatPools",
        ];
        lists.iter().any(|list| {
            let list = own.get(list);
            list.is_some_and(|list| !matches!(&list.value, Value::Array(all) if all.is_empty()))
        })
    }
}

impl Balancer {
    /// Returns true if the load balancer has a part with this name.
    pub(super) fn has(&self, kind: Kind, name: &str) -> bool {
        let is_it = |node: &Node| {
            let own = node.get("name").and_then(Node::as_str);
            // A part with an unknown name may be the one; its own error reports that.
            own.is_none_or(|own| own.eq_ignore_ascii_case(name))
        };
        self.parts
            .iter()
            .any(|(own, node)| *own == kind && is_it(node))
    }

    /// Adds a part. A child resource takes precedence over the inline part of its load balancer,
    /// since Azure deploys it later.
    fn add(&mut self, kind: Kind, part: Node, is_child: bool, notes: &Notes) {
        fn name(node: &Node) -> Option<&str> {
            node.get("name")?.as_str()
        }
        let own = name(&part).map(str::to_lowercase);
        if self.parts.len() >= MOST_PARTS {
            if self.parts.len() == MOST_PARTS {
                let place = format!("load balancer {:?}", self.name);
                notes.error(
                    &part,
                    &place,
                    format!("expected at most {MOST_PARTS} parts"),
                );
                self.parts.push((kind, part));
            }
            return;
        }
        let key = name(&part).map(|name| (kind, name.to_ascii_lowercase()));
        let same = key.as_ref().and_then(|key| self.named.get(key)).copied();
        match same.and_then(|place| self.parts.get_mut(place)) {
            None => {
                self.named.extend(key.map(|key| (key, self.parts.len())));
                self.parts.push((kind, part));
            }
            Some((_, inline)) if is_child && !inline.is_child() => {
                if let Some(list) = replaced_list(inline, &part).filter(|_| kind == Kind::Pool) {
                    let own = own.unwrap_or_default();
                    let place = format!("load balancer {:?}", self.name);
                    let message = format!(
                        "pool {own:?} has other {list} here than in its load balancer (line {}), and would \
                         replace those: expected the backends at one of the two",
                        inline.line
                    );
                    notes.error(&part, &place, message);
                }
                merge(inline, &part);
            }
            Some(_) => {
                let own = own.unwrap_or_default();
                let place = format!("load balancer {:?}", self.name);
                notes.error(&part, &place, format!("{kind} {own:?} is declared twice"));
            }
        }
    }
}

/// The list of backends that a pool's child resource would replace with another, if any.
fn replaced_list(inline: &Node, child: &Node) -> Option<&'static str> {
    fn list<'n>(pool: &'n Node, name: &str) -> Option<&'n Node> {
        let own = pool.get("properties").and_then(|own| own.get(name));
        own.or_else(|| pool.get(name))
            .filter(|list| !list.as_array().is_empty())
    }
    let lists = ["loadBalancerBackendAddresses", "backendIPConfigurations"];
    lists.into_iter().find(|name| {
        let both = list(inline, name).zip(list(child, name));
        both.is_some_and(|(inline, child)| !functions::is_equal(&inline.value, &child.value))
    })
}

/// Overrides members of an inline part with those of its child resource.
fn merge(inline: &mut Node, child: &Node) {
    let Value::Object(members) = &child.value else {
        return;
    };
    for (name, node) in members {
        let Value::Object(own) = &mut inline.value else {
            return;
        };
        let is_same = |(own, _): &&mut (String, Node)| own.trim().eq_ignore_ascii_case(name.trim());
        match own.iter_mut().find(is_same) {
            Some((_, own)) if name.trim().eq_ignore_ascii_case("properties") => merge(own, node),
            Some((_, own)) => *own = node.clone(),
            None => own.push((name.clone(), node.clone())),
        }
    }
}

impl Node {
    /// Returns true if a part of a load balancer is a child resource: inline parts have no type.
    pub(super) fn is_child(&self) -> bool {
        self.get("type").is_some()
    }
}

impl Kind {
    /// The member of a load balancer that has the parts of this kind: the type in their ids.
    pub(super) fn list(self) -> &'static str {
        let own = LISTS.iter().find(|(_, kind)| *kind == self);
        own.map_or("", |(list, _)| list)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frontend => "frontend",
            Self::Pool => "pool",
            Self::Probe => "probe",
            Self::Rule => "rule",
            Self::NatRule => "inbound NAT rule",
            Self::NatPool => "inbound NAT pool",
            Self::Outbound => "outbound rule",
        })
    }
}

/// Reads the SKU, Basic by default. Reports a SKU or tier that is not supported, and returns `None`.
fn sku_of(object: &Object<'_>) -> Option<Sku> {
    let Some(sku) = object.get("sku") else {
        return Some(Sku::Basic);
    };
    let inner = object.inner(sku, "sku");
    let names = [
        ("Basic", Some(Sku::Basic)),
        ("Standard", Some(Sku::Standard)),
        ("Gateway", None),
    ];
    let mut known = Some(Sku::Basic);
    if let Some((node, sku)) = inner.choice("name", &names) {
        known = sku;
        if sku.is_none() {
            let why = "Gateway load balancers, which chain appliances into other load balancers, are not supported: expected \"Basic\" or \"Standard\"";
            inner.error(node, "name", why);
        }
    }
    if let Some((node, true)) = inner.choice("tier", &[("Regional", false), ("Global", true)]) {
        let why = "Global load balancers, whose backends are load balancers of regions, are not supported: expected \"Regional\"";
        inner.error(node, "tier", why);
        known = None;
    }
    inner.finish();
    known
}

impl Found {
    /// Returns true if parts of a load balancer were given without the load balancer.
    pub(super) fn has_parts(&self) -> bool {
        self.balancers.iter().any(|b| b.name.is_empty())
    }

    /// Returns true if there is neither a load balancer nor a part of one.
    pub(super) fn is_empty(&self) -> bool {
        self.balancers.is_empty()
    }

    fn balancer(&mut self, name: &str) -> &mut Balancer {
        let same = |b: &Balancer| b.name.eq_ignore_ascii_case(name);
        let place = self.balancers.iter().position(same);
        let place = place.unwrap_or_else(|| {
            self.balancers.push(Balancer {
                name: name.to_owned(),
                is_declared: false,
                sku: Sku::Unknown,
                parts: Vec::new(),
                named: HashMap::new(),
            });
            self.balancers.len() - 1
        });
        &mut self.balancers[place]
    }
}

/// The types of resources that are read, in lower case, and the properties that are read: all if
/// none is listed.
pub(super) const KINDS: [(&str, &[&[&str]]); 11] = [
    ("microsoft.network/loadbalancers", &[]),
    ("microsoft.network/publicipaddresses", &[&["ipAddress"]]),
    ("microsoft.network/publicipprefixes", &[&["ipPrefix"]]),
    (
        "microsoft.network/networkinterfaces",
        &[&["ipConfigurations"], &["networkSecurityGroup"]],
    ),
    (
        "microsoft.network/virtualnetworks",
        &[&["addressSpace"], &["subnets"], &["virtualNetworkPeerings"]],
    ),
    ("microsoft.network/virtualnetworks/subnets", &[]),
    (
        "microsoft.network/virtualnetworks/virtualnetworkpeerings",
        &[&["remoteVirtualNetwork"]],
    ),
    ("microsoft.network/networksecuritygroups", &[]),
    ("microsoft.network/networksecuritygroups/securityrules", &[]),
    ("microsoft.compute/virtualmachines", INLINE),
    ("microsoft.compute/virtualmachinescalesets", OF_SCALE_SET),
];

/// The properties of a vm that name its network interfaces: created with it, or by reference.
const INLINE: &[&[&str]] = &[
    &["networkProfile", "networkInterfaceConfigurations"],
    &["networkProfile", "networkInterfaces"],
];
const OF_SCALE_SET: &[&[&str]] = &[&[
    "virtualMachineProfile",
    "networkProfile",
    "networkInterfaceConfigurations",
]];

pub(super) fn gather(trees: &[Node], notes: &Notes) -> Found {
    let mut found = Found::default();
    let is_parameters = |tree: &&Node| {
        let schema = tree.get("$schema").and_then(Node::as_str);
        schema.is_some_and(|schema| schema.to_ascii_lowercase().contains("parameters"))
    };
    let is_template = |tree: &Node| tree.get("resources").is_some() && tree.get("type").is_none();
    let others = || trees.iter().filter(|tree| !is_parameters(tree));
    let templates = || others().filter(|tree| is_template(tree));
    let mut given = Vec::new();
    for parameters in trees
        .iter()
        .filter(is_parameters)
        .filter_map(|tree| tree.get("parameters"))
    {
        let Value::Object(members) = &parameters.value else {
            continue;
        };
        for (name, node) in members {
            let is_declared = |template: &Node| {
                template
                    .get("parameters")
                    .is_some_and(|declared| declared.get(name).is_some())
            };
            if !templates().any(is_declared) {
                let message = "is declared by no template, and left out";
                notes.warning(node, &format!("parameter {name:?}"), message);
            }
            given.extend(node.get("value").map(|value| (name.clone(), value.clone())));
        }
    }
    let files = templates().map(|tree| (tree.file.to_string(), tree.clone()));
    let files: Vec<_> = files.collect();
    let all = Templates::new(files, notes);
    let mut count = 0;
    for tree in others() {
        let deployment = if is_template(tree) {
            let name = file_name(&tree.file);
            if templates().any(|other| !std::ptr::eq(other, tree) && mentions(other, name)) {
                continue; // deployed by the other template
            }
            let object = Object::new(tree, "template", notes);
            object.ignore(&[
                "$schema",
                "contentVersion",
                "languageVersion",
                "apiProfile",
                "definitions",
                "metadata",
                "parameters",
                "resources",
                "variables",
                "functions",
                "outputs",
            ]);
            object.finish();
            all.deploy(tree.clone(), given.clone())
        } else {
            let list = match &tree.value {
                Value::Array(_) => tree.clone(),
                _ => Node {
                    value: Value::Array(vec![tree.clone()]),
                    ..tree.clone()
                },
            };
            let root = Value::Object(vec![("resources".to_owned(), list)]);
            let root = Node {
                value: root,
                ..tree.clone()
            };
            all.deploy(root, Vec::new())
        };
        all.visit(deployment, &mut |all, resource| {
            count += 1;
            if count == MOST_RESOURCES + 1 {
                let message = format!("expected at most {MOST_RESOURCES} resources");
                notes.error(tree, "template", message);
            }
            if count <= MOST_RESOURCES {
                found.take(all, resource, notes);
            }
        });
        if all.is_exhausted() {
            notes.error(tree, "template", "needs too much work");
            break;
        }
    }
    found
}

/// Returns true if a template mentions a file, as a deployment that links to it does.
fn mentions(node: &Node, file: &str) -> bool {
    match &node.value {
        Value::String(text) => text.contains(file),
        Value::Array(elements) => elements.iter().any(|element| mentions(element, file)),
        Value::Object(members) => members.iter().any(|(_, member)| mentions(member, file)),
        _ => false,
    }
}

impl Found {
    /// Takes a resource, or a part of a load balancer.
    fn take(&mut self, templates: &Templates<'_>, resource: &Resource, notes: &Notes) {
        let kind = resource.kind().to_ascii_lowercase();
        let paths = KINDS.iter().find(|(known, _)| *known == kind);
        let paths = paths.map_or(&[][..], |&(_, paths)| paths);
        let node = || templates.work_out(resource, paths);
        match kind.as_str() {
            "microsoft.network/loadbalancers" => self.take_balancer(&node(), notes),
            "microsoft.network/publicipaddresses" => self.take_address(&node(), notes),
            "microsoft.network/publicipprefixes" => self.take_prefix(&node(), notes),
            "microsoft.network/networkinterfaces" => self.take_interface(&node(), notes),
            "microsoft.network/virtualnetworks" => self.networks.take_network(&node()),
            "microsoft.network/virtualnetworks/subnets" => {
                self.networks.take_subnet(&node(), notes);
            }
            "microsoft.network/virtualnetworks/virtualnetworkpeerings" => {
                self.networks.take_peering(&node());
            }
            "microsoft.network/networksecuritygroups" => self.networks.take_group(&node()),
            "microsoft.network/networksecuritygroups/securityrules" => {
                self.networks.take_rule(&node(), notes);
            }
            "microsoft.compute/virtualmachinescalesets" => self.take_scale_set(&node(), notes),
            "microsoft.compute/virtualmachines" if self.take_machine(&node(), notes) => {}
            child if child.starts_with("microsoft.network/loadbalancers/") => {
                self.take_child(&node(), child, notes);
            }
            "" => {
                let node = node();
                // A part of a load balancer that was exported from Azure also has a type.
                let is_balancer = LISTS.iter().any(|(list, _)| {
                    node.get("properties").is_some_and(|p| {
                        p.get(list)
                            .is_some_and(|l| matches!(l.value, Value::Array(_)))
                    })
                });
                if is_balancer && !looks_like_outbound(&node) {
                    self.take_balancer(&node, notes);
                } else {
                    self.take_part(&node, notes);
                }
            }
            _ => {
                let name = resource.kind();
                let message = format!("a {name} is no part of a load balancer, and left out");
                let node = resource.node();
                notes.warning(node.get("type").unwrap_or(node), "resource", message);
            }
        }
    }

    fn take_balancer(&mut self, node: &Node, notes: &Notes) {
        let (object, name) = Object::named(node, "load balancer", notes);
        let mut parts = Vec::new();
        for (list, kind) in LISTS {
            parts.extend(object.list(list).iter().map(|part| (kind, part.clone())));
        }
        let sku = sku_of(&object);
        object.finish();
        let Some(sku) = sku else { return }; // reported already, and its parts are not read
        let balancer = self.balancer(&name);
        if balancer.is_declared && !name.is_empty() {
            notes.error(
                node,
                &format!("load balancer {name:?}"),
                "is declared twice",
            );
            return;
        }
        balancer.is_declared = true;
        balancer.sku = sku;
        // Child resources may precede their load balancer.
        let children = std::mem::take(&mut balancer.parts);
        balancer.named.clear();
        for (kind, part) in parts {
            balancer.add(kind, part, false, notes);
        }
        for (kind, part) in children {
            balancer.add(kind, part, true, notes);
        }
    }

    /// `Microsoft.Network/loadBalancers/inboundNatRules`, named `lb/rule`.
    fn take_child(&mut self, node: &Node, kind: &str, notes: &Notes) {
        let name = node.get("name").and_then(Node::as_str).unwrap_or_default();
        let (balancer, own) = name.split_once('/').unwrap_or(("", name));
        let part = renamed(node, own);
        let list = kind.rsplit('/').next().unwrap_or_default();
        let known = LISTS
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(list));
        match known {
            Some(&(_, kind)) => self.balancer(balancer).add(kind, part, true, notes),
            None => {
                let message = format!("a load balancer's {list:?} are unknown, and left out");
                notes.warning(node, "resource", message);
            }
        }
    }

    fn take_address(&mut self, node: &Node, notes: &Notes) {
        let (object, name) = Object::named(node, "public IP address", notes);
        let zones = zones_of(&object);
        self.zones.addresses.push((name.to_lowercase(), zones));
        // An address that is not assigned yet comes from the inventory.
        if let Some(first) = object.address("ipAddress") {
            self.addresses
                .push((name, PublicAddress { first, count: 1 }));
        }
    }

    fn take_prefix(&mut self, node: &Node, notes: &Notes) {
        let (object, name) = Object::named(node, "public IP prefix", notes);
        let zones = zones_of(&object);
        self.zones.addresses.push((name.to_lowercase(), zones));
        let Some(text) = object.text("ipPrefix") else {
            return;
        };
        match public_address(&text) {
            Some(prefix) => self.addresses.push((name, prefix)),
            None => object.error(
                node,
                "ipPrefix",
                format!("expected a prefix of at most 256 addresses, got {text:?}"),
            ),
        }
    }

    fn take_interface(&mut self, node: &Node, notes: &Notes) {
        let (object, name) = Object::named(node, "network interface", notes);
        if name.is_empty() {
            return; // reported already
        }
        let list = object.list("ipConfigurations");
        for node in list {
            let (own, inner) = Object::named(node, "IP configuration", notes);
            let machine = format!("networkInterfaces/{name}");
            if !Configuration::is_of_use(&own) {
                let address = own.get("privateIPAddress").and_then(Node::as_str);
                let address = address.and_then(|address| address.parse().ok());
                let seat =
                    address.map(|address| (address, Seat::of_interface(machine, &object, &own)));
                self.seats.extend(seat);
                continue;
            }
            let configuration = Configuration::read(&object, &own);
            let address = own.address("privateIPAddress");
            self.interfaces.push(Interface {
                id: format!("{machine}/ipConfigurations/{inner}"),
                node: node.clone(),
                address,
                is_only: list.len() == 1,
                pools: configuration.pools,
                nat_rules: configuration.nat_rules,
                seat: configuration.seat,
            });
        }
    }

    /// Reads a vm that is created with its network interfaces, or whose zone is known; returns false
    /// for any other.
    fn take_machine(&mut self, node: &Node, notes: &Notes) -> bool {
        let (object, machine) = Object::named(node, "vm", notes);
        if machine.is_empty() {
            return true; // reported already
        }
        let mut is_one = self.zones.take_machine(&object, &machine);
        for node in object.list("networkInterfaceConfigurations") {
            is_one = true;
            let interface = Object::new(node, object.place.clone(), notes);
            let list = interface.list("ipConfigurations");
            for node in list {
                let (own, inner) = Object::named(node, "IP configuration", notes);
                let configuration = Configuration::read(&interface, &own);
                self.interfaces.push(Interface {
                    id: format!("virtualMachines/{machine}/ipConfigurations/{inner}"),
                    node: node.clone(),
                    address: None,
                    is_only: list.len() == 1,
                    pools: configuration.pools,
                    nat_rules: configuration.nat_rules,
                    seat: configuration.seat,
                });
            }
        }
        is_one
    }

    fn take_scale_set(&mut self, node: &Node, notes: &Notes) {
        let (object, name) = Object::named(node, "scale set", notes);
        if name.is_empty() {
            return; // reported already
        }
        let mut configurations = Vec::new();
        for node in object.list("networkInterfaceConfigurations") {
            let interface = Object::new(node, object.place.clone(), notes);
            for node in interface.list("ipConfigurations") {
                let own = Object::new(node, object.place.clone(), notes);
                if Configuration::is_of_use(&own) {
                    configurations.push(Configuration::read(&interface, &own));
                }
            }
        }
        if configurations.is_empty() {
            return;
        }
        let sku = object.get("sku");
        let capacity = sku.and_then(|sku| {
            let sku = Object::new(sku, object.place.clone(), notes);
            sku.number("capacity", 0..=1000)
        });
        let says_none = sku.is_none_or(|sku| sku.get("capacity").is_none());
        if says_none {
            object.error(
                node,
                "sku: capacity",
                "is missing: how many instances there are",
            );
        }
        self.scale_sets.push(ScaleSet {
            name,
            node: node.clone(),
            capacity,
            configurations,
            zones: zones_of(&object),
        });
    }

    /// Reads a part of a load balancer, whose kind follows from its members.
    fn take_part(&mut self, node: &Node, notes: &Notes) {
        let properties = node.get("properties").unwrap_or(node);
        let has = |names: &[&str]| names.iter().any(|name| has_member(properties, name));
        let kind = if looks_like_outbound(node) || has(&["allocatedOutboundPorts"]) {
            Some(Kind::Outbound)
        } else if has(&["frontendPortRangeStart"]) {
            let is_rule = has(&["backendAddressPool"]);
            Some(if is_rule {
                Kind::NatRule
            } else {
                Kind::NatPool
            })
        } else if has(&["frontendPort"]) {
            let is_rule = has(&[
                "backendAddressPool",
                "backendAddressPools",
                "loadDistribution",
            ]);
            Some(if is_rule { Kind::Rule } else { Kind::NatRule })
        } else if has(&["intervalInSeconds", "numberOfProbes", "requestPath"]) {
            Some(Kind::Probe)
        } else if has(&["backendIPConfigurations", "loadBalancerBackendAddresses"]) {
            Some(Kind::Pool)
        } else if has(&["privateIPAddress", "publicIPAddress", "publicIPPrefix"]) {
            Some(Kind::Frontend)
        } else {
            None
        };
        match kind {
            Some(kind) => self.balancer("").add(kind, node.clone(), false, notes),
            None => notes.error(
                node,
                "",
                "expected a load balancer, a template with resources, or a part of a load balancer",
            ),
        }
    }
}

/// Returns a child resource under its own name, without its parent's.
pub(super) fn renamed(node: &Node, own: &str) -> Node {
    let mut part = node.clone();
    if let Value::Object(members) = &mut part.value
        && !own.is_empty()
    {
        for (_, member) in members.iter_mut().filter(|(name, _)| name == "name") {
            member.value = Value::String(own.to_owned());
        }
    }
    part
}

/// Returns true for an outbound rule: it has a list of frontends, like a load balancer.
fn looks_like_outbound(node: &Node) -> bool {
    let properties = node.get("properties").unwrap_or(node);
    has_member(properties, "frontendIPConfigurations")
        && has_member(properties, "backendAddressPool")
}

/// Returns true if the member is present, even if it is null.
fn has_member(node: &Node, name: &str) -> bool {
    match &node.value {
        Value::Object(members) => members
            .iter()
            .any(|(own, _)| own.trim().eq_ignore_ascii_case(name)),
        _ => false,
    }
}
