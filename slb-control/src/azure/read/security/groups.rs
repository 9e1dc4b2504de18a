//! Network security groups as access lists, and their rules.

use super::Reader;
use crate::azure::json::{Node, Object};
use crate::azure::model::{SecurityList, SecurityRule};
use crate::azure::networks::Group;
use crate::config::addresses::prefix_or_address;

/// Service tags, and the configuration's names for their addresses.
const TAGS: [(&str, &str); 3] = [
    ("VirtualNetwork", "network"),
    ("AzureLoadBalancer", "load-balancer"),
    ("Internet", "internet"),
];

/// Azure's names of protocols, and the configuration's.
const PROTOCOLS: [(&str, &str); 6] = [
    ("*", "any"),
    ("Tcp", "tcp"),
    ("Udp", "udp"),
    ("Icmp", "icmp"),
    ("Esp", "esp"),
    ("Ah", "ah"),
];

/// The members of a rule for one of its sides.
struct Side {
    prefix: &'static str,
    prefixes: &'static str,
    groups: &'static str,
    port: &'static str,
    ports: &'static str,
}

const SOURCE: Side = Side {
    prefix: "sourceAddressPrefix",
    prefixes: "sourceAddressPrefixes",
    groups: "sourceApplicationSecurityGroups",
    port: "sourcePortRange",
    ports: "sourcePortRanges",
};

const DESTINATION: Side = Side {
    prefix: "destinationAddressPrefix",
    prefixes: "destinationAddressPrefixes",
    groups: "destinationApplicationSecurityGroups",
    port: "destinationPortRange",
    ports: "destinationPortRanges",
};

impl Reader<'_> {
    /// Converts a network security group. Its default rules are those of every access list.
    pub(super) fn list(&self, group: &Group) -> Option<SecurityList> {
        let place = format!("network security group {:?}", group.name);
        let node = group.node.as_ref()?;
        self.once(group, &place);
        let object = Object::new(node, place, self.notes);
        object.ignore(&["name", "securityRules", "defaultSecurityRules"]);
        object.ignore(&["subnets", "networkInterfaces", "flowLogs"]);
        object.not_done(
            "flushConnection",
            "new rules apply to connections that begin afterwards, and end none",
        );
        if let Some(node) = group.unresolved("securityRules") {
            object.unlisted(node, "securityRules");
        }
        object.finish();
        let rules = group.members.iter().filter_map(|node| self.rule(node));
        Some(SecurityList {
            origin: node.origin(),
            name: group.name.clone(),
            rules: rules.collect(),
        })
    }

    fn rule(&self, node: &Node) -> Option<SecurityRule> {
        let (object, name) = Object::named(node, "security rule", self.notes);
        object.ignore(&["description"]);
        let priority = object.required_number("priority", 100..=4096);
        let direction = required(
            &object,
            "direction",
            &[("Inbound", "inbound"), ("Outbound", "outbound")],
        );
        let access = required(&object, "access", &[("Allow", "allow"), ("Deny", "deny")]);
        let protocol = required(&object, "protocol", &PROTOCOLS);
        let (sources, source_ports) = (peers(&object, &SOURCE), ports(&object, &SOURCE));
        let destinations = peers(&object, &DESTINATION);
        let destination_ports = ports(&object, &DESTINATION);
        object.finish();
        Some(SecurityRule {
            origin: node.origin(),
            name,
            priority: priority?,
            direction: direction?,
            access: access?,
            protocol: protocol?,
            sources: sources?,
            destinations: destinations?,
            source_ports: source_ports?,
            destination_ports: destination_ports?,
        })
    }
}

fn required(
    object: &Object<'_>,
    name: &'static str,
    choices: &[(&str, &'static str)],
) -> Option<&'static str> {
    if object.get(name).is_none() {
        object.error(object.node, name, "is missing");
    }
    object.choice(name, choices).map(|(_, value)| value)
}

/// Returns the values of a member, or of the other one with several: one of them has to be there.
fn values<'n>(
    object: &Object<'n>,
    one: &'static str,
    several: &'static str,
) -> Option<Vec<(&'n Node, String)>> {
    let node = object.get(one).filter(|node| node.as_str() != Some(""));
    let single = node.and_then(|node| Some((node, object.text(one)?)));
    let list = object.texts(several).into_iter();
    let mut all: Vec<_> = list.map(|(node, text)| (node, text.to_owned())).collect();
    match (node, all.is_empty()) {
        (None, false) => Some(all),
        (Some(_), true) => {
            all.push(single?);
            Some(all)
        }
        (Some(node), false) => {
            let message = format!("expected it or {several}, got both");
            object.error(node, one, message);
            None
        }
        (None, true) => {
            // A list with faults is reported already.
            if object
                .get(several)
                .is_none_or(|node| node.as_array().is_empty())
            {
                object.error(object.node, one, format!("is missing, and so is {several}"));
            }
            None
        }
    }
}

/// Returns the addresses of a side; none for any.
fn peers(object: &Object<'_>, side: &Side) -> Option<Vec<String>> {
    object.refuse(
        side.groups,
        "application security groups are not supported: expected prefixes",
    );
    let has_groups = object
        .get(side.groups)
        .is_some_and(|groups| !groups.as_array().is_empty());
    if has_groups {
        object.ignore(&[side.prefix, side.prefixes]);
        return None; // reported already
    }
    let all = values(object, side.prefix, side.prefixes)?;
    let count = all.len();
    let mut peers = Vec::new();
    let mut is_good = true;
    for (node, text) in all {
        let tag = TAGS.iter().find(|(tag, _)| tag.eq_ignore_ascii_case(&text));
        match tag {
            Some((_, name)) => peers.push((*name).to_owned()),
            None if text == "*" && count == 1 => {}
            None if prefix_or_address(&text).is_some() => peers.push(text),
            None => {
                let tags = TAGS.map(|(tag, _)| format!("{tag:?}")).join(", ");
                let message = format!(
                    "expected an address, a prefix or one of the service tags {tags}, or \"*\" alone, got {text:?}"
                );
                object.error(node, side.prefix, message);
                is_good = false;
            }
        }
    }
    is_good.then_some(peers)
}

/// Returns the ports of a side; none for any.
fn ports(object: &Object<'_>, side: &Side) -> Option<Vec<String>> {
    let all = values(object, side.port, side.ports)?;
    let count = all.len();
    let mut ports = Vec::new();
    let mut is_good = true;
    for (node, text) in all {
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        let range = first
            .trim()
            .parse::<u16>()
            .ok()
            .zip(last.trim().parse().ok());
        match range.filter(|(first, last)| first <= last) {
            Some((first, last)) if first == last => ports.push(first.to_string()),
            Some((first, last)) => ports.push(format!("{first}-{last}")),
            None if text == "*" && count == 1 => {}
            None => {
                let message = format!(
                    "expected a port, a range such as \"8000-8010\", or \"*\" alone, got {text:?}"
                );
                object.error(node, side.port, message);
                is_good = false;
            }
        }
    }
    is_good.then_some(ports)
}
