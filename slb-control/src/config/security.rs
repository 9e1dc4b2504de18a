//! Access lists and their rules.

use slb_core::nat::Direction;
use slb_core::spec::{self, Access, Peers, SecurityProtocol};

use super::addresses::{Kind, check_prefix, prefix_or_address};
use crate::document::{Section, Span};
use crate::validate::{self, Names};

/// `[[security_list]]`: an access list, with its `[[security_rule]]`s.
#[derive(Clone, Debug)]
pub struct SecurityList {
    /// Name of the list.
    pub name: String,
    /// Rules of the list, in the order of the file.
    pub rules: Vec<SecurityRule>,
    pub(crate) span: Span,
}

/// `[[security_rule]]`: a rule of an access list.
#[derive(Clone, Debug)]
pub struct SecurityRule {
    /// Name of the rule.
    pub name: String,
    /// Rank of the rule among those of its list and direction: the smallest one that matches decides.
    pub priority: u16,
    /// The end that opens the connections: the vm, or another.
    pub direction: Direction,
    /// The decision.
    pub access: Access,
    /// Protocol of the packets.
    pub protocol: SecurityProtocol,
    /// Senders of the packets; empty: all.
    pub sources: Vec<Peers>,
    /// Receivers of the packets; empty: all.
    pub destinations: Vec<Peers>,
    /// The sender's ports; empty: all.
    pub source_ports: Vec<[u16; 2]>,
    /// The receiver's ports; empty: all.
    pub destination_ports: Vec<[u16; 2]>,
    pub(crate) span: Span,
}

/// Name of a direction in the configuration.
pub(crate) const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Inward => "inbound",
        Direction::Outward => "outbound",
    }
}

/// The peers as the configuration names them; none: `any`.
pub(crate) fn named(peers: &[Peers]) -> Vec<String> {
    let name = |peers: &Peers| match peers {
        Peers::Prefix(prefix) => prefix.to_string(),
        Peers::Network => NETWORK.to_owned(),
        Peers::LoadBalancer => LOAD_BALANCER.to_owned(),
        Peers::Internet => INTERNET.to_owned(),
    };
    match peers {
        [] => vec![ANY.to_owned()],
        peers => peers.iter().map(name).collect(),
    }
}

/// Ranges of ports as the configuration names them; none: `any`.
pub(crate) fn named_ports(ranges: &[[u16; 2]]) -> Vec<String> {
    let name = |&[first, last]: &[u16; 2]| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    match ranges {
        [] => vec![ANY.to_owned()],
        ranges => ranges.iter().map(name).collect(),
    }
}

const ANY: &str = "any";
const NETWORK: &str = "network";
const LOAD_BALANCER: &str = "load-balancer";
const INTERNET: &str = "internet";

/// The requirement for a side of a rule, for messages.
const PEERS: &str = "\"any\", \"network\", \"load-balancer\", \"internet\", an address, or an address and a length such \
                     as \"10.1.0.0/16\"";
/// The requirement for ports, for messages.
const PORTS: &str = "\"any\", a port such as \"443\", or a range such as \"8000-8010\"";

impl SecurityList {
    /// The rules as the dataplane takes them.
    pub(super) fn rules_spec(&self) -> Vec<spec::SecurityRule<'_>> {
        self.rules.iter().map(SecurityRule::spec).collect()
    }
}

impl SecurityRule {
    fn spec(&self) -> spec::SecurityRule<'_> {
        spec::SecurityRule {
            name: &self.name,
            priority: self.priority,
            direction: self.direction,
            access: self.access,
            protocol: self.protocol,
            sources: &self.sources,
            destinations: &self.destinations,
            source_ports: &self.source_ports,
            destination_ports: &self.destination_ports,
        }
    }
}

pub(super) fn read_list(section: Section<'_>) -> Option<SecurityList> {
    let name = section.name("name");
    let span = section.span().clone();
    section.finish();
    Some(SecurityList {
        name: name?.0,
        rules: Vec::new(),
        span,
    })
}

/// Reads a rule, and the place of its list.
pub(super) fn read_rule(section: Section<'_>, lists: &Names) -> Option<(usize, SecurityRule)> {
    let name = section.name("name");
    let list = super::read::refer(&section, FIELD, lists);
    let priority = section.required_integer("priority", 100..=4096);
    let directions = [Direction::Inward, Direction::Outward].map(|one| (direction_name(one), one));
    let direction = section.required_choice("direction", &directions);
    let accesses = [Access::Allow, Access::Deny].map(|access| (access.name(), access));
    let access = section.required_choice("access", &accesses);
    let protocols = SecurityProtocol::ALL.map(|protocol| (protocol.name(), protocol));
    let protocol = section.choice("protocol", &protocols, SecurityProtocol::Any);
    let sources = read_peers(&section, "sources");
    let destinations = read_peers(&section, "destinations");
    let ports = |field| {
        let ports = read_ranges(&section, field);
        if !ports.is_empty() && !protocol.has_port() {
            let message = format!(
                "expected \"any\", since packets of protocol {:?} have no ports",
                protocol.name()
            );
            section.fault(section.span(), field, message);
        }
        ports
    };
    let (source_ports, destination_ports) = (ports("source_ports"), ports("destination_ports"));
    let span = section.span().clone();
    section.finish();
    let rule = SecurityRule {
        name: name?.0,
        priority: priority?.0 as u16,
        direction: direction?.0,
        access: access?.0,
        protocol,
        sources,
        destinations,
        source_ports,
        destination_ports,
        span,
    };
    Some((list?, rule))
}

/// The name of the field that refers to access lists.
const FIELD: &str = "security_list";

/// Reads the places of the access lists that a section names, each of them once.
pub(super) fn read_lists(section: &Section<'_>, lists: &Names) -> Option<Vec<usize>> {
    let named = section.any(FIELD, "the name of a security list", |text| {
        Some(text.to_owned())
    });
    if let Some((_, span)) = named.get(spec::MOST_LISTS) {
        let message = format!(
            "expected at most {} lists, got {}",
            spec::MOST_LISTS,
            named.len()
        );
        section.fault(span, FIELD, message);
    }
    let mut places = Vec::new();
    let mut is_good = true;
    for (text, span) in named {
        match validate::refer(section, FIELD, &text, &span, lists) {
            Some(place) if places.contains(&place) => {
                section.fault(&span, FIELD, format!("{text:?} is named twice"));
            }
            Some(place) => places.push(place),
            None => is_good = false,
        }
    }
    is_good.then_some(places)
}

fn read_peers(section: &Section<'_>, field: &'static str) -> Vec<Peers> {
    let parse = |text: &str| {
        Some(match text {
            ANY => None,
            NETWORK => Some(Peers::Network),
            LOAD_BALANCER => Some(Peers::LoadBalancer),
            INTERNET => Some(Peers::Internet),
            text => Some(Peers::Prefix(prefix_or_address(text)?)),
        })
    };
    let all = section.any(field, PEERS, parse);
    for (peers, span) in &all {
        if let Some(Peers::Prefix(prefix)) = peers {
            check_prefix(section, field, Kind::Host, *prefix, span);
        }
    }
    alone(section, field, all)
}

fn read_ranges(section: &Section<'_>, field: &'static str) -> Vec<[u16; 2]> {
    let parse = |text: &str| match text {
        ANY => Some(None),
        text => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some(Some([first, last]))
        }
    };
    let all = section.any(field, PORTS, parse);
    alone(section, field, all)
}

/// The values of a field, of which `any` stands alone.
fn alone<T>(section: &Section<'_>, field: &str, all: Vec<(Option<T>, Span)>) -> Vec<T> {
    let any = all.iter().find(|(value, _)| value.is_none());
    if let Some((_, span)) = any.filter(|_| all.len() > 1) {
        section.fault(span, field, "expected \"any\" alone, got other values too");
    }
    all.into_iter().filter_map(|(value, _)| value).collect()
}
