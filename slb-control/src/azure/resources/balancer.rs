//! Load balancers and their parts: inline, as child resources, or given alone.

use std::collections::HashMap;
use std::fmt;

use super::Found;
use crate::azure::functions;
use crate::azure::json::{Node, Notes, Object, Value};

/// A load balancer.
#[derive(Debug)]
pub(in crate::azure) struct Balancer {
    /// The name; empty if only parts of a load balancer were given.
    pub(in crate::azure) name: String,
    /// True if the resource itself was given, not only its children.
    pub(in crate::azure) is_declared: bool,
    pub(in crate::azure) sku: Sku,
    pub(in crate::azure) parts: Vec<(Kind, Node)>,
    /// Indexes of the named parts, by kind and name in lower case.
    named: HashMap<(Kind, String), usize>,
}

/// SKU of a load balancer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::azure) enum Sku {
    /// Unknown, since only parts of the load balancer were given.
    #[default]
    Unknown,
    Basic,
    Standard,
}

/// Kind of a load balancer's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::azure) enum Kind {
    Frontend,
    Pool,
    Probe,
    Rule,
    NatRule,
    NatPool,
    Outbound,
}

/// The most parts of a load balancer.
const MOST_PARTS: usize = 1 << 14;

/// The members of a load balancer that contain its parts.
pub(super) const LISTS: [(&str, Kind); 7] = [
    ("frontendIPConfigurations", Kind::Frontend),
    ("backendAddressPools", Kind::Pool),
    ("probes", Kind::Probe),
    ("loadBalancingRules", Kind::Rule),
    ("inboundNatRules", Kind::NatRule),
    ("inboundNatPools", Kind::NatPool),
    ("outboundRules", Kind::Outbound),
];

impl Balancer {
    /// Returns true if the load balancer has a part with this name.
    pub(in crate::azure) fn has(&self, kind: Kind, name: &str) -> bool {
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
    pub(in crate::azure) fn is_child(&self) -> bool {
        self.get("type").is_some()
    }
}

impl Kind {
    /// The member of a load balancer that has the parts of this kind: the type in their ids.
    pub(in crate::azure) fn list(self) -> &'static str {
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

    pub(super) fn take_balancer(&mut self, node: &Node, notes: &Notes) {
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
    pub(super) fn take_child(&mut self, node: &Node, kind: &str, notes: &Notes) {
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

    /// Reads a part of a load balancer, whose kind follows from its members.
    pub(super) fn take_part(&mut self, node: &Node, notes: &Notes) {
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
pub(in crate::azure) fn renamed(node: &Node, own: &str) -> Node {
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
pub(super) fn looks_like_outbound(node: &Node) -> bool {
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
