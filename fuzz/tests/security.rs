//! Arbitrary access lists at a host agent: each first packet for a vm goes where a model says that asks rule after
//! rule, in the order of their priorities.

use std::net::{IpAddr, Ipv4Addr};

use bolero::{TypeGenerator, produce};
use etherparse::{IpNumber, PacketBuilder};
use slb_core::nat::Direction;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Access, Network, NetworkVm, Peers, Prefix, SecurityList, SecurityProtocol, SecurityRule, Spec,
    Underlay,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{DropReason, Frame, HEADROOM, Host, Instant, Key, PortId, Verdict};

const HOSTS: [Ipv4Addr; 2] = [
    Ipv4Addr::new(172, 16, 0, 101),
    Ipv4Addr::new(172, 16, 0, 102),
];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 101];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Two vms of this host, and one of the other.
const VMS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 1, 0, 1),
    Ipv4Addr::new(10, 1, 0, 2),
    Ipv4Addr::new(10, 1, 0, 3),
];
/// Addresses that packets have besides: of another private network, and of the Internet.
const OTHERS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 200, 0, 1),
    Ipv4Addr::new(9, 9, 9, 9),
    Ipv4Addr::new(9, 9, 8, 9),
    Ipv4Addr::new(198, 51, 100, 7),
];
const NETWORK: Prefix = Prefix {
    address: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)),
    len: 16,
};
const INSIDE: Prefix = Prefix {
    address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)),
    len: 8,
};
const PORTS: [u16; 6] = [0, 53, 80, 81, 443, 65_535];
/// TCP, UDP, ICMP, ESP, AH, and one that no rule names.
const PROTOCOLS: [u8; 6] = [6, 17, 1, 50, 51, 47];
const FEW: usize = 4;

#[derive(Clone, Debug, TypeGenerator)]
struct AnyRule {
    priority: u8,
    how: u8,
    #[generator(produce::<Vec<(u8, u8)>>().with().len(0..=FEW))]
    sources: Vec<(u8, u8)>,
    #[generator(produce::<Vec<(u8, u8)>>().with().len(0..=FEW))]
    destinations: Vec<(u8, u8)>,
    #[generator(produce::<Vec<(u8, u8)>>().with().len(0..=FEW))]
    source_ports: Vec<(u8, u8)>,
    #[generator(produce::<Vec<(u8, u8)>>().with().len(0..=FEW))]
    destination_ports: Vec<(u8, u8)>,
}

#[derive(Clone, Debug, TypeGenerator)]
struct AnyPacket {
    way: u8,
    other: u8,
    protocol: u8,
    ports: (u8, u8),
}

fn address(which: u8) -> Ipv4Addr {
    let all = VMS.iter().chain(&OTHERS);
    let mut all = all.copied().cycle().skip(usize::from(which) % 7);
    all.next().expect("a cycle")
}

fn port(which: u8) -> u16 {
    PORTS[usize::from(which) % PORTS.len()]
}

fn peers(any: &[(u8, u8)]) -> Vec<Peers> {
    let one = |&(which, len): &(u8, u8)| match len {
        0..32 => Peers::Network,
        32..64 => Peers::Internet,
        64..80 => Peers::LoadBalancer,
        _ => Peers::Prefix(Prefix {
            address: address(which).into(),
            len: len % 33,
        }),
    };
    any.iter().map(one).collect()
}

fn ranges(any: &[(u8, u8)]) -> Vec<[u16; 2]> {
    let one = |&(one, other): &(u8, u8)| {
        let (one, other) = (port(one), port(other));
        [one.min(other), one.max(other)]
    };
    any.iter().map(one).collect()
}

fn contains(prefix: Prefix, address: Ipv4Addr) -> bool {
    let IpAddr::V4(own) = prefix.address else {
        return false;
    };
    let rest = 32 - u32::from(prefix.len);
    u64::from(own.to_bits()) >> rest == u64::from(address.to_bits()) >> rest
}

/// The first packet of a connection, as a vm sees it.
struct First {
    direction: Direction,
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ports: Option<[u16; 2]>,
}

/// The decision of a list, by its documentation: the first of its own rules that matches, then Azure's.
fn decision(rules: &[SecurityRule<'_>], first: &First) -> Access {
    let is_network = |address| contains(NETWORK, address);
    let is_internet = |address| !contains(INSIDE, address);
    let is_one = |all: &[Peers], address| {
        let is = |peers: &Peers| match *peers {
            Peers::Prefix(prefix) => contains(prefix, address),
            Peers::Network => is_network(address),
            Peers::Internet => is_internet(address),
            Peers::LoadBalancer => false, // nothing here comes from the prober
        };
        all.is_empty() || all.iter().any(is)
    };
    let is_within = |all: &[[u16; 2]], side: usize| {
        let is = |[low, high]: &[u16; 2]| {
            let port = first.ports.map(|ports| ports[side]);
            port.is_some_and(|port| *low <= port && port <= *high)
        };
        all.is_empty() || all.iter().any(is)
    };
    let matches = |rule: &&SecurityRule<'_>| {
        let number = match rule.protocol {
            SecurityProtocol::Any => first.protocol,
            SecurityProtocol::Tcp => 6,
            SecurityProtocol::Udp => 17,
            SecurityProtocol::Icmp => 1,
            SecurityProtocol::Esp => 50,
            SecurityProtocol::Ah => 51,
        };
        rule.direction == first.direction
            && number == first.protocol
            && is_one(rule.sources, first.source)
            && is_one(rule.destinations, first.destination)
            && is_within(rule.source_ports, 0)
            && is_within(rule.destination_ports, 1)
    };
    let own = rules
        .iter()
        .filter(matches)
        .min_by_key(|rule| rule.priority);
    let is_allowed_by_default = match first.direction {
        Direction::Inward => is_network(first.source),
        Direction::Outward => is_network(first.destination) || is_internet(first.destination),
    };
    match own {
        Some(rule) => rule.access,
        None if is_allowed_by_default => Access::Allow,
        None => Access::Deny,
    }
}

fn mac(vm: usize) -> [u8; 6] {
    [2, 0, 0, 1, 0, vm as u8]
}

/// An IPv4 packet in a frame, with ports where the protocol has some.
fn frame(macs: ([u8; 6], [u8; 6]), first: &First) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(macs.0, macs.1);
    let ip = link.ipv4(first.source.octets(), first.destination.octets(), 64);
    let mut frame = Vec::new();
    let written = match (first.protocol, first.ports) {
        (6, Some([from, to])) => ip.tcp(from, to, 1, 1000).syn().write(&mut frame, b""),
        (_, Some([from, to])) => ip.udp(from, to).write(&mut frame, b"data"),
        (1, None) => ip.icmpv4_echo_request(7, 1).write(&mut frame, b"data"),
        (number, None) => ip.write(&mut frame, IpNumber(number), &[0, 1, 2, 3, 4, 5, 6, 7]),
    };
    written.expect("written");
    frame
}

/// A frame in VXLAN from the other host.
fn in_vxlan(inner: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(ROUTER_MAC, NODE_MAC);
    let outer = link.ipv4(HOSTS[1].octets(), HOSTS[0].octets(), 64);
    let payload = [&[8, 0, 0, 0, 0, 0, 7, 0], inner].concat();
    let mut frame = Vec::new();
    let outer = outer.udp(50_000, 4789);
    outer.write(&mut frame, &payload).expect("written");
    frame
}

#[test]
fn a_host_agent_decides_as_rule_after_rule() {
    bolero::check!()
        .with_generator((
            produce::<Vec<Vec<AnyRule>>>().with().len(3..=3_usize),
            produce::<Vec<AnyPacket>>().with().len(1..=12_usize),
        ))
        .for_each(|(any_lists, packets)| {
            let names: Vec<String> = (0..32).map(|name| format!("rule{name}")).collect();
            type Sides = (Vec<Peers>, Vec<Peers>, Vec<[u16; 2]>, Vec<[u16; 2]>);
            let side = |rule: &AnyRule| -> Sides {
                (
                    peers(&rule.sources),
                    peers(&rule.destinations),
                    ranges(&rule.source_ports),
                    ranges(&rule.destination_ports),
                )
            };
            let sides: Vec<Vec<Sides>> = any_lists
                .iter()
                .map(|list| list.iter().take(names.len()).map(side).collect())
                .collect();
            let rules: Vec<Vec<SecurityRule<'_>>> = any_lists
                .iter()
                .zip(&sides)
                .map(|(list, sides)| {
                    let rules = list.iter().zip(sides).enumerate();
                    rules
                        .map(
                            |(own, (any, (sources, destinations, from, to)))| SecurityRule {
                                name: &names[own],
                                // The last digits tell the rules apart.
                                priority: 100 + 32 * (u16::from(any.priority) % 100) + own as u16,
                                direction: match any.how & 1 {
                                    0 => Direction::Inward,
                                    _ => Direction::Outward,
                                },
                                access: match any.how & 2 {
                                    0 => Access::Allow,
                                    _ => Access::Deny,
                                },
                                protocol: SecurityProtocol::ALL[usize::from(any.how >> 2) % 6],
                                sources,
                                destinations,
                                source_ports: from,
                                destination_ports: to,
                            },
                        )
                        .collect()
                })
                .collect();
            let list_names = ["of all", "of the first", "of the second"];
            let lists: Vec<_> = rules
                .iter()
                .zip(list_names)
                .map(|(rules, name)| SecurityList { name, rules })
                .collect();
            // The first list is the network's.
            let own_lists = [[1], [2], [2]];
            let addresses = VMS.map(|address| [IpAddr::V4(address)]);
            let vms: Vec<_> = (0..3)
                .map(|vm| NetworkVm {
                    name: ["a", "b", "c"][vm],
                    addresses: &addresses[vm],
                    host: HOSTS[vm / 2].into(),
                    mac: Some(MacAddress(mac(vm))),
                    port: (vm < 2).then_some(PortId(vm as u16 + 1)),
                    security_lists: &own_lists[vm],
                    ..NetworkVm::default()
                })
                .collect();
            let networks = [Network {
                name: "net",
                vni: Vni::new(7).expect("small"),
                prefixes: &[NETWORK],
                security_lists: &[0],
                ..Network::default()
            }];
            let spec = Spec {
                underlay: Underlay {
                    ipv4: Some(HOSTS[0]),
                    mac: MacAddress(NODE_MAC),
                    next_hop: MacAddress(ROUTER_MAC),
                    ..Underlay::default()
                },
                networks: &networks,
                vms: &vms,
                security_lists: &lists,
                inside: &[INSIDE],
                ..Spec::default()
            };
            let snapshot = Snapshot::new(&spec, None).expect("a good spec");
            // Without a table of direct flows each packet is a first one.
            let mut host = Host::with_capacity(&snapshot, 64, Key::new([1, 2])).expect("its role");
            for any in packets {
                let protocol = PROTOCOLS[usize::from(any.protocol) % PROTOCOLS.len()];
                let has_ports = matches!(protocol, 6 | 17);
                let first = |direction, source, destination| First {
                    direction,
                    protocol,
                    source,
                    destination,
                    ports: has_ports.then_some([port(any.ports.0), port(any.ports.1)]),
                };
                // The lists that judge, and the packet as each of them sees it.
                let outward = |to| (1, first(Direction::Outward, VMS[0], to));
                let inward = |from| (2, first(Direction::Inward, from, VMS[1]));
                let (judged, by, bytes) = match any.way % 2 {
                    0 => {
                        let judged = vec![outward(VMS[1]), inward(VMS[0])];
                        let bytes = frame((mac(0), mac(1)), &judged[0].1);
                        (judged, PortId(1), bytes)
                    }
                    _ => {
                        let from = [VMS[2], OTHERS[1], OTHERS[3]][usize::from(any.other) % 3];
                        let judged = vec![inward(from)];
                        let inner = frame((mac(2), mac(1)), &judged[0].1);
                        (judged, PortId(0), in_vxlan(&inner))
                    }
                };
                let is_denied = judged.iter().any(|(own, first)| {
                    let all = [&rules[0], &rules[*own]];
                    all.iter()
                        .any(|rules| decision(rules, first) == Access::Deny)
                });
                let mut buffer = vec![0; HEADROOM];
                buffer.extend(&bytes);
                let mut frames = [Frame::new(&mut buffer, HEADROOM, bytes.len()).expect("room")];
                frames[0].set_port(by);
                host.process(Instant::from_secs(1), &mut frames);
                let verdict = frames[0].verdict();
                let told = verdict == Verdict::Drop(DropReason::Denied);
                assert_eq!(told, is_denied, "{any:?}: {verdict:?}");
                // A packet for a vm arrives unless a list denies it.
                let arrives = verdict == Verdict::Forward(PortId(2));
                assert_eq!(arrives, !is_denied, "{any:?}: {verdict:?}");
            }
        });
}
