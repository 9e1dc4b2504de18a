//! Contents of a file: load balancers, the resources that they refer to, or parts of one.

mod balancer;
mod machines;

use std::net::IpAddr;

use super::inventory::{PublicAddress, public_address};
use super::json::{Node, Notes, Object, Value};
use super::networks::Networks;
use super::template::{Resource, Templates, file_name};
use super::zones::{Zones, zones_of};
pub(super) use balancer::{Balancer, Kind, Sku, renamed};
use balancer::{LISTS, looks_like_outbound};
pub(super) use machines::{Configuration, Interface, ScaleSet, Seat};

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

/// The most resources of all files together: twenty times those of a template that Azure takes.
const MOST_RESOURCES: usize = 1 << 14;
impl Found {
    /// Returns true if parts of a load balancer were given without the load balancer.
    pub(super) fn has_parts(&self) -> bool {
        self.balancers.iter().any(|b| b.name.is_empty())
    }

    /// Returns true if there is neither a load balancer nor a part of one.
    pub(super) fn is_empty(&self) -> bool {
        self.balancers.is_empty()
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
}
