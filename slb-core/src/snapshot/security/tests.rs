//! The compiled lists and a model that asks one rule after the other agree.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::{Asked, Place};
use crate::nat::Direction;
use crate::snapshot::Snapshot;
use crate::spec::{
    Access, Backend, Peers, Pool, Prefix, SecurityList, SecurityProtocol, SecurityRule, Spec,
    Underlay,
};
use crate::verdict::PortId;
use crate::wire::protocol;

/// The index and the decision of the first rule that matches, in the order of priorities.
fn model(list: &SecurityList<'_>, direction: Direction, asked: &Asked) -> Option<(u16, Access)> {
    let rules = (0..).zip(list.all_rules());
    let matching = rules.filter(|(_, rule)| {
        let protocol = match rule.protocol {
            SecurityProtocol::Any => true,
            SecurityProtocol::Tcp => asked.protocol == 6,
            SecurityProtocol::Udp => asked.protocol == 17,
            SecurityProtocol::Icmp => matches!(asked.protocol, 1 | 58),
            SecurityProtocol::Esp => asked.protocol == 50,
            SecurityProtocol::Ah => asked.protocol == 51,
        };
        let ports = asked.ports.map_or([None; 2], |ports| ports.map(Some));
        rule.direction == direction
            && protocol
            && has(rule.sources, asked.source, asked.places[0])
            && has(rule.destinations, asked.destination, asked.places[1])
            && has_port(rule.source_ports, ports[0])
            && has_port(rule.destination_ports, ports[1])
    });
    let first = matching.min_by_key(|(item, rule)| (rule.priority, *item));
    first.map(|(item, rule)| (item, rule.access))
}

fn has(peers: &[Peers], address: IpAddr, place: Place) -> bool {
    let is = |peers: &Peers| match peers {
        Peers::Network => place == Place::Network,
        Peers::LoadBalancer => place == Place::LoadBalancer,
        Peers::Internet => place == Place::Internet,
        Peers::Prefix(prefix) => shares_bits(prefix, address),
    };
    peers.is_empty() || peers.iter().any(is)
}

/// Compares bit by bit.
fn shares_bits(prefix: &Prefix, address: IpAddr) -> bool {
    let bits = |address: IpAddr| -> Vec<u8> {
        match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    };
    let (one, other) = (bits(prefix.address), bits(address));
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    one.len() == other.len()
        && (0..usize::from(prefix.len)).all(|at| bit(&one, at) == bit(&other, at))
}

fn has_port(ranges: &[[u16; 2]], port: Option<u16>) -> bool {
    let is_in = |port| {
        let mut ranges = ranges.iter();
        ranges.any(|[first, last]| (*first..=*last).contains(&port))
    };
    ranges.is_empty() || port.is_some_and(is_in)
}

/// A snapshot of a host agent whose only vm has the list.
fn with_list<T>(list: &SecurityList<'_>, f: impl FnOnce(&Snapshot<'static>) -> T) -> T {
    let host = IpAddr::from([172, 16, 0, 101]);
    let backends = [Backend {
        name: "vm",
        address: [10, 0, 0, 1].into(),
        host,
        port: Some(PortId(1)),
        ..Backend::default()
    }];
    let pools = [Pool {
        name: "vms",
        table_size: 3,
        backends: &backends,
        security_lists: &[0],
        ..Pool::default()
    }];
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some([172, 16, 0, 101].into()),
            ..Underlay::default()
        },
        pools: &pools,
        security_lists: core::slice::from_ref(list),
        ..Spec::default()
    };
    f(&Snapshot::new(&spec, None).expect("a good spec"))
}

/// Peers of one side as they are generated: a kind, an address and a length.
type AnyPeers = Vec<(u8, u32, u8)>;
type AnyRule = (
    u16,
    u8,
    AnyPeers,
    AnyPeers,
    Vec<(u16, u16)>,
    Vec<(u16, u16)>,
);
/// A packet: a choice of its shape, then of addresses and of ports.
type AnyPacket = (u8, [(u8, u32); 2], [(u8, u16); 2], [u8; 2]);

fn address(bits: u32, is_ipv6: bool) -> IpAddr {
    match is_ipv6 {
        false => IpAddr::from(bits.to_be_bytes()),
        // Both halves differ, so that prefixes of all lengths do.
        true => {
            IpAddr::from((u128::from(bits) << 96 | u128::from(bits.reverse_bits())).to_be_bytes())
        }
    }
}

fn peers(any: &AnyPeers) -> Vec<Peers> {
    let one = |&(kind, bits, len): &(u8, u32, u8)| match kind % 8 {
        0 => Peers::Network,
        1 => Peers::LoadBalancer,
        2 => Peers::Internet,
        kind => {
            let is_ipv6 = kind % 2 == 0;
            let most = if is_ipv6 { 129 } else { 33 };
            Peers::Prefix(Prefix {
                address: address(bits, is_ipv6),
                len: len % most,
            })
        }
    };
    any.iter().take(6).map(one).collect()
}

fn ranges(any: &[(u16, u16)]) -> Vec<[u16; 2]> {
    let range = |&(a, b): &(u16, u16)| [a.min(b), a.max(b)];
    any.iter().take(6).map(range).collect()
}

/// An address at the edge of one of the prefixes, or any.
fn near(all: &[Peers], (choice, bits): (u8, u32), is_ipv6: bool) -> IpAddr {
    let prefixes = all.iter().filter_map(|peers| match peers {
        Peers::Prefix(prefix) if prefix.address.is_ipv6() == is_ipv6 => prefix.range(),
        _ => None,
    });
    let edges: Vec<IpAddr> = prefixes
        .flat_map(|[first, last]| match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                let (first, last) = (first.to_bits(), last.to_bits());
                [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                    .map(|bits| IpAddr::from(bits.to_be_bytes()))
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                let (first, last) = (first.to_bits(), last.to_bits());
                [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                    .map(|bits| IpAddr::from(bits.to_be_bytes()))
            }
            _ => [first; 4],
        })
        .collect();
    let edge = edges.get(usize::from(choice));
    edge.copied().unwrap_or_else(|| address(bits, is_ipv6))
}

fn near_port(all: &[[u16; 2]], (choice, port): (u8, u16)) -> u16 {
    let edges = all
        .iter()
        .flat_map(|[first, last]| [first.wrapping_sub(1), *first, *last, last.wrapping_add(1)]);
    edges.into_iter().nth(choice.into()).unwrap_or(port)
}

const PLACES: [Place; 4] = [
    Place::Network,
    Place::LoadBalancer,
    Place::Internet,
    Place::Other,
];

#[test]
#[cfg_attr(miri, ignore = "many rules")]
fn compiled_lists_decide_as_rule_after_rule() {
    bolero::check!()
        .with_type::<(Vec<AnyRule>, Vec<AnyPacket>)>()
        .for_each(|(rules, packets)| {
            let names: Vec<_> = (0..rules.len()).map(|n| alloc::format!("{n}")).collect();
            let sides: Vec<_> = rules
                .iter()
                .map(|(.., sources, destinations, from, to)| {
                    let sides = (peers(sources), peers(destinations));
                    (sides, ranges(from), ranges(to))
                })
                .collect();
            let rules: Vec<_> = rules
                .iter()
                .zip(&sides)
                .zip(&names)
                .map(
                    |((&(priority, bits, ..), ((sources, destinations), from, to)), name)| {
                        SecurityRule {
                            name,
                            priority: priority % 64_999,
                            direction: match bits & 1 {
                                0 => Direction::Inward,
                                _ => Direction::Outward,
                            },
                            access: match bits & 2 {
                                0 => Access::Allow,
                                _ => Access::Deny,
                            },
                            protocol: SecurityProtocol::ALL[usize::from(bits >> 2) % 6],
                            sources,
                            destinations,
                            source_ports: from,
                            destination_ports: to,
                        }
                    },
                )
                .collect();
            let list = SecurityList {
                name: "list",
                rules: &rules,
            };
            let all_peers: Vec<Peers> = sides
                .iter()
                .flat_map(|((a, b), ..)| a.iter().chain(b))
                .copied()
                .collect();
            let all_ports: Vec<_> = sides
                .iter()
                .flat_map(|(_, a, b)| a.iter().chain(b))
                .copied()
                .collect();
            with_list(&list, |snapshot| {
                for &(shape, addresses, ports, places) in packets {
                    let is_ipv6 = shape & 1 != 0;
                    let direction = match shape & 2 {
                        0 => Direction::Inward,
                        _ => Direction::Outward,
                    };
                    let protocols = [
                        protocol::TCP,
                        protocol::UDP,
                        protocol::ICMP,
                        protocol::ICMPV6,
                        50,
                        51,
                        47,
                    ];
                    let number = protocols[usize::from(shape >> 2) % protocols.len()];
                    let has_ports = matches!(number, protocol::TCP | protocol::UDP);
                    let asked = Asked {
                        source: near(&all_peers, addresses[0], is_ipv6),
                        destination: near(&all_peers, addresses[1], is_ipv6),
                        places: places.map(|place| PLACES[usize::from(place % 4)]),
                        protocol: number,
                        ports: has_ports.then(|| ports.map(|port| near_port(&all_ports, port))),
                    };
                    let security = &snapshot.nat.security;
                    let found = security.judge(0, direction, &asked);
                    let found = found.map(|rule| (rule.item, rule.access));
                    assert_eq!(found, model(&list, direction, &asked), "{asked:?}");
                }
            });
        });
}

/// A thousand rules are sixteen words, and the last one is found.
#[test]
fn a_thousand_rules_are_all_reached() {
    let names: Vec<_> = (0..1000u16).map(|n| alloc::format!("{n}")).collect();
    let peers: Vec<_> = (0..1000u16)
        .map(|n| {
            let [a, b] = n.to_be_bytes();
            [Peers::Prefix(Prefix {
                address: [203, a, b, 7].into(),
                len: 32,
            })]
        })
        .collect();
    let ports: Vec<_> = (0..1000u16).map(|n| [[n + 1, n + 1]]).collect();
    let rules: Vec<_> = (0..1000)
        .map(|n| SecurityRule {
            name: &names[n],
            // The other way round than in the list.
            priority: 4096 - n as u16,
            access: Access::Allow,
            protocol: SecurityProtocol::Tcp,
            sources: &peers[n],
            destination_ports: &ports[n],
            ..SecurityRule::default()
        })
        .collect();
    let list = SecurityList {
        name: "many",
        rules: &rules,
    };
    with_list(&list, |snapshot| {
        for n in 0..1000u16 {
            let [a, b] = n.to_be_bytes();
            let mut asked = Asked {
                source: [203, a, b, 7].into(),
                destination: [10, 0, 0, 1].into(),
                places: [Place::Internet, Place::Network],
                protocol: protocol::TCP,
                ports: Some([50_000, n + 1]),
            };
            let judge = |asked: &Asked| {
                let found = snapshot.nat.security.judge(0, Direction::Inward, asked);
                found.map(|rule| (rule.item, rule.access))
            };
            assert_eq!(judge(&asked), Some((n, Access::Allow)));
            asked.ports = Some([50_000, n + 2]);
            assert_eq!(judge(&asked), Some((1002, Access::Deny)));
        }
    });
}
