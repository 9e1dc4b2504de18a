//! What a file holds: load balancers, the resources that they refer to, or parts of one.

use std::net::IpAddr;

use super::json::{Node, Notes, Object, Value};
use super::template::Template;

/// All that was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) balancers: Vec<Balancer>,
    /// Public IP addresses by their names.
    pub(super) addresses: Vec<(String, IpAddr)>,
    pub(super) interfaces: Vec<Interface>,
}

/// A load balancer.
#[derive(Debug)]
pub(super) struct Balancer {
    /// Empty where only parts of one were given.
    pub(super) name: String,
    pub(super) parts: Vec<(Kind, Node)>,
}

/// What a part of a load balancer is.
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

/// The members of a load balancer that its parts are in.
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
    /// Both names, as the end of its id.
    pub(super) id: String,
    pub(super) address: Option<IpAddr>,
    /// The ids of the pools that it is in, and of the NAT rules that lead to it.
    pub(super) pools: Vec<String>,
    pub(super) nat_rules: Vec<String>,
}

impl Found {
    /// Whether something was given that is no whole load balancer.
    pub(super) fn has_parts(&self) -> bool {
        self.balancers.iter().any(|b| b.name.is_empty())
    }

    fn balancer(&mut self, name: &str) -> &mut Balancer {
        let same = |b: &Balancer| b.name.eq_ignore_ascii_case(name);
        let place = self.balancers.iter().position(same);
        let place = place.unwrap_or_else(|| {
            self.balancers.push(Balancer {
                name: name.to_owned(),
                parts: Vec::new(),
            });
            self.balancers.len() - 1
        });
        &mut self.balancers[place]
    }
}

pub(super) fn gather(trees: &[Node], notes: &Notes) -> Found {
    let mut found = Found::default();
    let is_parameters = |tree: &&Node| {
        let schema = tree.get("$schema").and_then(Node::as_str);
        schema.is_some_and(|schema| schema.to_ascii_lowercase().contains("parameters"))
    };
    let given = trees.iter().filter(is_parameters);
    let given: Vec<&Node> = given.filter_map(|tree| tree.get("parameters")).collect();
    for tree in trees.iter().filter(|tree| !is_parameters(tree)) {
        if tree.get("resources").is_some() && tree.get("type").is_none() {
            let template = Template::new(tree, given.clone());
            let object = Object::new(tree, "template", notes);
            object.ignore(&[
                "$schema",
                "contentVersion",
                "languageVersion",
                "apiProfile",
                "definitions",
                "metadata",
                "parameters",
                "variables",
                "functions",
                "outputs",
            ]);
            object.finish();
            let resources = tree.get("resources").map(|resources| &resources.value);
            // With symbolic names, an object of them.
            let all: Vec<&Node> = match resources {
                Some(Value::Array(all)) => all.iter().collect(),
                Some(Value::Object(all)) => all.iter().map(|(_, resource)| resource).collect(),
                _ => Vec::new(),
            };
            for resource in all.into_iter().flat_map(|node| template.resources(node)) {
                found.take(&resource, notes);
            }
        } else if let Value::Array(elements) = &tree.value {
            for element in elements {
                found.take(element, notes);
            }
        } else {
            found.take(tree, notes);
        }
    }
    found
}

impl Found {
    /// Takes a resource, or a part of a load balancer.
    fn take(&mut self, node: &Node, notes: &Notes) {
        let kind = node.get("type").and_then(Node::as_str).unwrap_or_default();
        let kind = kind.to_ascii_lowercase();
        let network = kind.strip_prefix("microsoft.network/");
        let is_balancer = LISTS.iter().any(|(list, _)| {
            node.get("properties").is_some_and(|p| {
                p.get(list)
                    .is_some_and(|l| matches!(l.value, Value::Array(_)))
            })
        });
        match network {
            Some("loadbalancers") => self.take_balancer(node, notes),
            Some("publicipaddresses") => self.take_address(node, notes),
            Some("networkinterfaces") => self.take_interface(node, notes),
            Some(child) if child.starts_with("loadbalancers/") => {
                self.take_child(node, child, notes);
            }
            // A part of a load balancer that was read from Azure has its own type, too.
            None if kind.is_empty() && is_balancer && !looks_like_outbound(node) => {
                self.take_balancer(node, notes);
            }
            None if kind.is_empty() => self.take_part(node, notes),
            _ => {
                let kind = node.get("type").unwrap_or(node);
                let name = kind.as_str().unwrap_or_default();
                let message = format!("a {name} is nothing to a load balancer, and left out");
                notes.warning(kind, "resource", message);
            }
        }
    }

    fn take_balancer(&mut self, node: &Node, notes: &Notes) {
        let (object, name) = Object::named(node, "load balancer", notes);
        let mut parts = Vec::new();
        for (list, kind) in LISTS {
            parts.extend(object.list(list).iter().map(|part| (kind, part.clone())));
        }
        if let Some(sku) = object.get("sku") {
            let sku = Object::new(sku, format!("{}: sku", object.place), notes);
            sku.choice("name", &[("Basic", ()), ("Standard", ()), ("Gateway", ())]);
            if let Some((node, true)) = sku.choice("tier", &[("Regional", false), ("Global", true)])
            {
                sku.warning(node, "tier", "one over several regions is not made here");
            }
            sku.finish();
        }
        object.finish();
        let children = node
            .get("resources")
            .map(Node::as_array)
            .unwrap_or_default();
        self.balancer(&name).parts.extend(parts);
        for child in children {
            let kind = child.get("type").and_then(Node::as_str).unwrap_or_default();
            let kind = kind.rsplit('/').next().unwrap_or_default();
            self.take_child_of(&name, kind, child, notes);
        }
    }

    /// `Microsoft.Network/loadBalancers/inboundNatRules`, named `lb/rule`.
    fn take_child(&mut self, node: &Node, kind: &str, notes: &Notes) {
        let name = node.get("name").and_then(Node::as_str).unwrap_or_default();
        let (balancer, own) = name.split_once('/').unwrap_or(("", name));
        let mut node = node.clone();
        if let Value::Object(members) = &mut node.value {
            for (_, member) in members.iter_mut().filter(|(name, _)| name == "name") {
                member.value = Value::String(own.to_owned());
            }
        }
        let kind = kind.rsplit('/').next().unwrap_or_default();
        self.take_child_of(balancer, kind, &node, notes);
    }

    fn take_child_of(&mut self, balancer: &str, kind: &str, node: &Node, notes: &Notes) {
        let known = LISTS
            .iter()
            .find(|(list, _)| list.eq_ignore_ascii_case(kind));
        match known {
            Some(&(_, kind)) => self.balancer(balancer).parts.push((kind, node.clone())),
            None => {
                let message = format!("a load balancer's {kind:?} are not known, and left out");
                notes.warning(node, "resource", message);
            }
        }
    }

    fn take_address(&mut self, node: &Node, notes: &Notes) {
        let (object, name) = Object::named(node, "public IP address", notes);
        // One that is not made yet has none: the inventory says it then.
        if let Some(address) = object.address("ipAddress") {
            self.addresses.push((name, address));
        }
    }

    fn take_interface(&mut self, node: &Node, notes: &Notes) {
        let (object, name) = Object::named(node, "network interface", notes);
        for node in object.list("ipConfigurations") {
            let (own, inner) = Object::named(node, "IP configuration", notes);
            let ids = |list| {
                let references = own.references(list).into_iter();
                references.map(|(_, id)| id.to_owned()).collect()
            };
            self.interfaces.push(Interface {
                id: format!("networkInterfaces/{name}/ipConfigurations/{inner}"),
                address: own.address("privateIPAddress"),
                pools: ids("loadBalancerBackendAddressPools"),
                nat_rules: ids("loadBalancerInboundNatRules"),
            });
        }
    }

    /// A part of a load balancer, told by what it has.
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
            Some(kind) => self.balancer("").parts.push((kind, node.clone())),
            None => notes.error(
                node,
                "",
                "expected a load balancer, a template with resources, or a part of a load balancer",
            ),
        }
    }
}

/// An outbound rule has a list of frontends, as a load balancer has.
fn looks_like_outbound(node: &Node) -> bool {
    let properties = node.get("properties").unwrap_or(node);
    has_member(properties, "frontendIPConfigurations")
        && has_member(properties, "backendAddressPool")
}

/// Whether it is there, be it null.
fn has_member(node: &Node, name: &str) -> bool {
    match &node.value {
        Value::Object(members) => members
            .iter()
            .any(|(own, _)| own.trim().eq_ignore_ascii_case(name)),
        _ => false,
    }
}
