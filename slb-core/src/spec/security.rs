//! Access lists: the connections that vms may have.

use super::{Prefix, Spec, SpecError};
use crate::nat::Direction;
use crate::snapshot::faults::duplicates;

/// The most rules of one list, Azure's number for a network security group.
pub const MOST_RULES_OF_LIST: usize = 1000;
/// The most lists of one pool, one vm or one network.
pub const MOST_LISTS: usize = 8;
/// The most prefixes on one side of all rules of a list, and the most ranges of ports.
pub const MOST_RANGES_OF_LIST: usize = 4000;

/// An access list, called network security group in Azure. A host agent asks it about the first packet of each
/// connection of the vms that have it; the later packets and the answers follow the first.
///
/// [`Pool::security_lists`](super::Pool::security_lists) and its likes say which vms have a list. A vm that has
/// several needs the permission of each. A vm without a list may have any connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecurityList<'a> {
    /// Name of the list, unlike all other lists'.
    pub name: &'a str,
    /// Rules of the list, in any order. After them come the [default rules](DefaultRule).
    pub rules: &'a [SecurityRule<'a>],
}

/// A rule of an access list. Of the rules that match a connection's first packet, the one with the smallest
/// priority decides.
///
/// The default matches every inbound packet and denies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecurityRule<'a> {
    /// Name of the rule, unlike those of the list's other rules. Counters go by it.
    pub name: &'a str,
    /// Rank of the rule: unlike those of the list's other rules of its direction. A smaller one comes first.
    pub priority: u16,
    /// The end that opens the connections: the vm ([`Outward`](Direction::Outward)) or another.
    pub direction: Direction,
    /// The decision.
    pub access: Access,
    /// Protocol of the packets that the rule matches.
    pub protocol: SecurityProtocol,
    /// Senders of the packets; empty: all.
    pub sources: &'a [Peers],
    /// Receivers of the packets; empty: all. An inbound packet has the vm's own address here, not the VIP.
    pub destinations: &'a [Peers],
    /// The sender's ports, each range with its first and last one; empty: all. Packets of protocols without ports
    /// match no rule that names ports.
    pub source_ports: &'a [[u16; 2]],
    /// The receiver's ports, as the source ports. An inbound packet has the port that the vm serves, not the
    /// frontend's.
    pub destination_ports: &'a [[u16; 2]],
}

impl Default for SecurityRule<'_> {
    fn default() -> Self {
        Self {
            name: "",
            priority: 4096,
            direction: Direction::Inward,
            access: Access::Deny,
            protocol: SecurityProtocol::Any,
            sources: &[],
            destinations: &[],
            source_ports: &[],
            destination_ports: &[],
        }
    }
}

/// The decision of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// The connection may begin.
    Allow,
    /// The packet is dropped as [`Denied`](crate::DropReason::Denied).
    Deny,
}

impl Access {
    /// Name of the decision in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// The protocol that a rule of an access list matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SecurityProtocol {
    /// All protocols.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP over IPv4, and ICMPv6 over IPv6.
    Icmp,
    /// Encapsulating security payload, of IPsec.
    Esp,
    /// Authentication header, of IPsec.
    Ah,
}

impl SecurityProtocol {
    /// All protocols.
    pub const ALL: [Self; 6] = [
        Self::Any,
        Self::Tcp,
        Self::Udp,
        Self::Icmp,
        Self::Esp,
        Self::Ah,
    ];

    /// Name of the protocol in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Esp => "esp",
            Self::Ah => "ah",
        }
    }

    /// Returns true if packets of the protocol may have ports that a rule names.
    pub const fn has_port(self) -> bool {
        matches!(self, Self::Any | Self::Tcp | Self::Udp)
    }
}

/// Addresses that a rule of an access list matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// The addresses of a prefix.
    Prefix(Prefix),
    /// The address spaces of the vm's network (`VirtualNetwork` in Azure). Of a vm without a
    /// [`Network`](super::Network): all addresses that are [inside](Spec::inside).
    Network,
    /// The source of the node's probes, [`Spec::probe_source`] (`AzureLoadBalancer`).
    LoadBalancer,
    /// Every address that is neither in the network nor inside nor the source of probes.
    Internet,
}

/// The rules that follow a list's own: Azure's, with the priorities 65000, 65001 and 65500.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefaultRule {
    /// Connections from the network are allowed.
    AllowNetworkInbound,
    /// Probes are allowed.
    AllowLoadBalancerInbound,
    /// All other inbound connections are denied.
    DenyAllInbound,
    /// Connections to the network are allowed.
    AllowNetworkOutbound,
    /// Connections to the Internet are allowed.
    AllowInternetOutbound,
    /// All other outbound connections are denied.
    DenyAllOutbound,
}

impl DefaultRule {
    /// The default rules, each direction's in the order of their priorities.
    pub const ALL: [Self; 6] = [
        Self::AllowNetworkInbound,
        Self::AllowLoadBalancerInbound,
        Self::DenyAllInbound,
        Self::AllowNetworkOutbound,
        Self::AllowInternetOutbound,
        Self::DenyAllOutbound,
    ];

    /// Name of the rule in reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllowNetworkInbound => "allow-network-inbound",
            Self::AllowLoadBalancerInbound => "allow-load-balancer-inbound",
            Self::DenyAllInbound => "deny-all-inbound",
            Self::AllowNetworkOutbound => "allow-network-outbound",
            Self::AllowInternetOutbound => "allow-internet-outbound",
            Self::DenyAllOutbound => "deny-all-outbound",
        }
    }

    /// The rule in the form of a list's own.
    pub const fn rule(self) -> SecurityRule<'static> {
        let (priority, direction, access) = match self {
            Self::AllowNetworkInbound => (65_000, Direction::Inward, Access::Allow),
            Self::AllowLoadBalancerInbound => (65_001, Direction::Inward, Access::Allow),
            Self::DenyAllInbound => (65_500, Direction::Inward, Access::Deny),
            Self::AllowNetworkOutbound => (65_000, Direction::Outward, Access::Allow),
            Self::AllowInternetOutbound => (65_001, Direction::Outward, Access::Allow),
            Self::DenyAllOutbound => (65_500, Direction::Outward, Access::Deny),
        };
        let (sources, destinations): (&[Peers], &[Peers]) = match self {
            Self::AllowNetworkInbound => (&[Peers::Network], &[]),
            Self::AllowLoadBalancerInbound => (&[Peers::LoadBalancer], &[]),
            Self::AllowNetworkOutbound => (&[], &[Peers::Network]),
            Self::AllowInternetOutbound => (&[], &[Peers::Internet]),
            Self::DenyAllInbound | Self::DenyAllOutbound => (&[], &[]),
        };
        SecurityRule {
            name: self.name(),
            priority,
            direction,
            access,
            protocol: SecurityProtocol::Any,
            sources,
            destinations,
            source_ports: &[],
            destination_ports: &[],
        }
    }
}

impl<'a> SecurityList<'a> {
    /// The list's own rules, then the [default rules](DefaultRule::ALL): in this order counters are asked for.
    pub fn all_rules(&self) -> impl Iterator<Item = SecurityRule<'a>> + Clone + use<'a> {
        let default = |rule: DefaultRule| -> SecurityRule<'a> { rule.rule() };
        let defaults = DefaultRule::ALL.into_iter().map(default);
        self.rules.iter().copied().chain(defaults)
    }

    /// Ranges of each kind that the rules have.
    fn ranges(&self) -> [usize; 4] {
        let count = |of: fn(&SecurityRule<'_>) -> usize| self.rules.iter().map(of).sum();
        [
            count(|rule| rule.sources.len()),
            count(|rule| rule.destinations.len()),
            count(|rule| rule.source_ports.len()),
            count(|rule| rule.destination_ports.len()),
        ]
    }
}

impl<'a> Spec<'a> {
    /// Faults of access lists, each for itself.
    pub(crate) fn security_faults(&self) -> impl Iterator<Item = SpecError> + use<'a> {
        let lists = (0..).zip(self.security_lists);
        let lists = lists.flat_map(|(list, of)| {
            let too_many = |what, count, most| {
                (count > most).then_some(SpecError::TooMany { what, count, most })
            };
            let rules = too_many(
                "rules of a security list",
                of.rules.len(),
                MOST_RULES_OF_LIST,
            );
            let ranges = of.ranges().into_iter();
            let ranges = ranges.filter_map(move |count| {
                too_many("ranges of a security list", count, MOST_RANGES_OF_LIST)
            });
            let items = (0..).zip(of.rules);
            let items = items.filter_map(move |(rule, of)| {
                of.fault()
                    .map(|field| SpecError::SecurityRule { list, rule, field })
            });
            let names = duplicates(of.rules.iter().map(|rule| rule.name));
            let names = names.map(move |(first, second)| SpecError::DuplicateSecurityRule {
                list,
                first,
                second,
            });
            rules.into_iter().chain(ranges).chain(items).chain(names)
        });
        let names = duplicates(self.security_lists.iter().map(|list| list.name));
        let names = names.map(|(first, second)| SpecError::DuplicateSecurityList { first, second });
        let count = self.security_lists.len();
        let dangling = move |lists: &'a [usize]| {
            let lists = lists.iter().copied().filter(move |list| *list >= count);
            lists.map(move |list| SpecError::DanglingSecurityList { list, count })
        };
        let pools = self.pools.iter().map(|pool| pool.security_lists);
        let networks = self.networks.iter().map(|network| network.security_lists);
        let vms = self.vms.iter().map(|vm| vm.security_lists);
        let used = pools.chain(networks).chain(vms);
        let too_many = used.clone().filter(|lists| lists.len() > MOST_LISTS);
        let too_many = too_many.map(|lists| SpecError::TooMany {
            what: "security lists of one pool, vm or network",
            count: lists.len(),
            most: MOST_LISTS,
        });
        lists
            .chain(names)
            .chain(used.flat_map(dangling))
            .chain(too_many)
    }
}

impl SecurityRule<'_> {
    /// The field that cannot be compiled, if there is one.
    fn fault(&self) -> Option<&'static str> {
        let is_odd = |peers: &&[Peers]| {
            let mut peers = peers.iter();
            peers.any(|peers| matches!(peers, Peers::Prefix(prefix) if prefix.range().is_none()))
        };
        let is_empty = |ports: &&[[u16; 2]]| ports.iter().any(|[first, last]| first > last);
        let peers = [
            ("sources", self.sources),
            ("destinations", self.destinations),
        ];
        let ports = [
            ("source_ports", self.source_ports),
            ("destination_ports", self.destination_ports),
        ];
        let peers = peers.into_iter().filter(|(_, peers)| is_odd(peers));
        let ports = ports.into_iter().filter(|(_, ports)| is_empty(ports));
        let priority = (self.priority >= 65_000).then_some("priority");
        let peers = peers.map(|(field, _)| field);
        let ports = ports.map(|(field, _)| field);
        peers.chain(ports).chain(priority).next()
    }
}
