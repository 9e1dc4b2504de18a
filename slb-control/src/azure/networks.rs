//! Virtual networks and network security groups of the files, with their child resources.

use std::collections::HashMap;

use super::json::{Node, Notes, Value};
use super::resources::renamed;

/// All virtual networks and network security groups that were found.
#[derive(Debug, Default)]
pub(super) struct Networks {
    pub(super) networks: Vec<Group>,
    pub(super) groups: Vec<Group>,
    /// Peerings of virtual networks.
    pub(super) peerings: Vec<Node>,
}

/// A virtual network with its subnets, or a network security group with its rules.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    /// The resource itself; `None` if only children of it were given.
    pub(super) node: Option<Node>,
    pub(super) members: Vec<Node>,
    /// Indexes of the named members, by name in lower case.
    named: HashMap<String, usize>,
    /// A second resource, or a member, with a name that was there before.
    pub(super) again: Option<Node>,
}

impl Networks {
    pub(super) fn take_network(&mut self, node: &Node) {
        take(&mut self.networks, node, "subnets");
    }

    /// `Microsoft.Network/virtualNetworks/subnets`, named `network/subnet`.
    pub(super) fn take_subnet(&mut self, node: &Node, notes: &Notes) {
        take_child(
            &mut self.networks,
            node,
            ("subnet", "NETWORK/SUBNET"),
            notes,
        );
    }

    /// `Microsoft.Network/virtualNetworks/virtualNetworkPeerings`.
    pub(super) fn take_peering(&mut self, node: &Node) {
        self.peerings.push(node.clone());
    }

    pub(super) fn take_group(&mut self, node: &Node) {
        take(&mut self.groups, node, "securityRules");
    }

    /// `Microsoft.Network/networkSecurityGroups/securityRules`, named `group/rule`.
    pub(super) fn take_rule(&mut self, node: &Node, notes: &Notes) {
        take_child(
            &mut self.groups,
            node,
            ("security rule", "GROUP/RULE"),
            notes,
        );
    }
}

fn name_of(node: &Node) -> &str {
    node.get("name").and_then(Node::as_str).unwrap_or_default()
}

/// Returns the properties of a resource, which command-line tools print without `properties` around them.
pub(super) fn properties_of(node: &Node) -> &Node {
    node.get("properties").unwrap_or(node)
}

fn by_name<'g>(all: &'g mut Vec<Group>, name: &str) -> &'g mut Group {
    let is_it = |group: &Group| group.name.eq_ignore_ascii_case(name);
    let place = all.iter().position(is_it).unwrap_or_else(|| {
        all.push(Group::new(name));
        all.len() - 1
    });
    &mut all[place]
}

/// Takes a resource, whose children may precede it. One without a known name is reported only where it is needed.
fn take(all: &mut Vec<Group>, node: &Node, list: &str) {
    let name = name_of(node);
    if name.is_empty() {
        let mut group = Group::new("");
        group.take(node, list);
        all.push(group);
        return;
    }
    let group = by_name(all, name);
    if group.node.is_some() {
        group.again = Some(node.clone());
        return;
    }
    group.take(node, list);
}

/// Takes a child resource. One without a known parent is an error, since it could be any parent's.
fn take_child(all: &mut Vec<Group>, node: &Node, (kind, expected): (&str, &str), notes: &Notes) {
    match name_of(node).split('/').collect::<Vec<_>>()[..] {
        [parent, own] if !parent.is_empty() && !own.is_empty() => {
            by_name(all, parent).add(renamed(node, own));
        }
        _ => {
            let name = node.get("name").map(|name| name.value.describe());
            let got = name.unwrap_or_else(|| "none".to_owned());
            notes.error(node, kind, format!("name: expected {expected}, got {got}"));
        }
    }
}

impl Group {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: None,
            members: Vec::new(),
            named: HashMap::new(),
            again: None,
        }
    }

    fn take(&mut self, node: &Node, list: &str) {
        self.node = Some(node.clone());
        let inline = properties_of(node).get(list);
        let children = std::mem::take(&mut self.members);
        self.named.clear();
        let inline = inline.map_or(&[][..], Node::as_array);
        for member in inline.iter().chain(&children) {
            self.add(member.clone());
        }
    }

    /// Adds a subnet or a rule. A child resource replaces the inline one of its name, since Azure deploys it later.
    fn add(&mut self, member: Node) {
        let name = name_of(&member).to_ascii_lowercase();
        let known = self.named.get(&name).copied();
        match known.and_then(|place| self.members.get_mut(place)) {
            None => {
                if !name.is_empty() {
                    self.named.insert(name, self.members.len());
                }
                self.members.push(member);
            }
            Some(inline) if member.is_child() && !inline.is_child() => *inline = member,
            Some(_) => self.again = Some(member),
        }
    }

    pub(super) fn member(&self, name: &str) -> Option<&Node> {
        let place = self.named.get(&name.to_ascii_lowercase())?;
        self.members.get(*place)
    }

    /// Returns a message about a resource without a known name; `None` if it has one.
    pub(super) fn unnamed(&self) -> Option<String> {
        let name = self.node.as_ref().and_then(|node| node.get("name"));
        let got = name.map_or_else(|| "none".to_owned(), |name| name.value.describe());
        let message = format!("name: expected a string, got {got}");
        self.name.is_empty().then_some(message)
    }

    /// The position of the resource, or of its first child, for messages.
    pub(super) fn place(&self) -> Option<&Node> {
        self.node.as_ref().or(self.members.first())
    }

    /// Returns true if a list of the resource cannot be evaluated.
    pub(super) fn unresolved<'n>(&'n self, list: &str) -> Option<&'n Node> {
        let node = properties_of(self.node.as_ref()?);
        let found = match &node.value {
            Value::Unresolved(_) => Some(node),
            _ => node.get(list),
        };
        found.filter(|node| !matches!(node.value, Value::Array(_)))
    }
}
