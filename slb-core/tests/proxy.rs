//! The proxy, sentence by sentence of its model, Polycube's reverse-proxy balancer; and where it
//! goes beyond it.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::{
    ArpEthIpv4Packet, ArpHardwareId, ArpOperation, ArpPacket, EtherType, NetSlice, PacketBuilder,
    SlicedPacket, TransportSlice,
};
use slb_core::hash::Distribution;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, FrontendPort, Pool, PortMode, Protocol, ProxyPorts,
    Rule, Scheduler, SourceRewrite, Spec, SpecError, Terms,
};
use slb_core::{Burst, DropReason, Frame, HEADROOM, Instant, Key, PortId, Proxy, Verdict};

const VIP: Ipv4Addr = Ipv4Addr::new(20, 20, 20, 100);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
const FRONTEND: PortId = PortId(0);
const BACKEND: PortId = PortId(7);
const NOW: Instant = Instant::from_secs(1_750_000_000);
const KEY: Key = Key::new([5, 6]);

fn server(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, 1, number as u8)
}

/// A configuration to be changed: backends by number, weight and state, of a pool for each protocol.
#[derive(Clone)]
struct Setup {
    ports: Vec<FrontendPort>,
    mode: PortMode,
    /// Of TCP, UDP and the rest.
    pools: [Vec<(usize, u32, BackendState)>; 3],
    scheduler: Scheduler,
    terms: Terms,
    echo: Echo,
    /// Whether echo requests have a rule.
    ping: bool,
    rewrites: Vec<SourceRewrite>,
    ipv6: bool,
}

impl Setup {
    fn new(backends: usize) -> Self {
        let pool: Vec<_> = (1..=backends)
            .map(|number| (number, 1, BackendState::Up))
            .collect();
        Self {
            ports: vec![FrontendPort {
                port: FRONTEND,
                address: None,
            }],
            mode: PortMode::Single,
            pools: [pool.clone(), pool.clone(), pool],
            scheduler: Scheduler::Maglev,
            terms: Terms::default(),
            echo: Echo::Answer,
            ping: true,
            rewrites: Vec::new(),
            ipv6: false,
        }
    }

    /// Three frontend ports, of 10.0.n.1.
    fn multi(backends: usize) -> Self {
        let port = |number: u16| FrontendPort {
            port: PortId(number),
            address: Some(Ipv4Addr::new(10, 0, number as u8, 1)),
        };
        Self {
            ports: vec![port(0), port(1), port(2)],
            mode: PortMode::Multi,
            ..Self::new(backends)
        }
    }

    fn build(&self, previous: Option<&Snapshot<'_>>) -> Result<Snapshot<'static>, SpecError> {
        let name = |number: &usize| format!("server{number}");
        let names: Vec<String> = (0..300).map(|n| name(&n)).collect();
        let backends: Vec<Vec<Backend<'_>>> = self
            .pools
            .iter()
            .map(|pool| {
                let backend = |&(number, weight, state): &(usize, u32, BackendState)| Backend {
                    name: &names[number],
                    address: if self.ipv6 {
                        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number as u16).into()
                    } else {
                        server(number).into()
                    },
                    weight,
                    state,
                    backend_port: (number == 99).then_some(9999),
                    ..Backend::default()
                };
                pool.iter().map(backend).collect()
            })
            .collect();
        let pool = |name, place: usize| Pool {
            name,
            table_size: 4099,
            backends: &backends[place],
            ..Pool::default()
        };
        let rule = |name, protocol: Protocol, pool, frontend_port| Rule {
            name,
            pool,
            protocol,
            frontend_port,
            backend_port: if protocol.has_port() { 8080 } else { 0 },
            scheduler: self.scheduler,
            terms: self.terms,
            ..Rule::default()
        };
        let mut rules = vec![
            rule("http", Protocol::Tcp, 0, 80),
            rule("dns", Protocol::Udp, 1, 53),
        ];
        if self.ping {
            rules.push(rule("ping", Protocol::Icmp, 2, 0));
        }
        let other = Rule {
            frontend: 1,
            ..rule("all", Protocol::All, 2, 0)
        };
        rules.push(other);
        let (vip, second): (IpAddr, IpAddr) = if self.ipv6 {
            (VIP6.into(), Ipv6Addr::from(VIP6.to_bits() + 1).into())
        } else {
            (VIP.into(), Ipv4Addr::from(VIP.to_bits() + 1).into())
        };
        let frontend = |name, address| Frontend {
            name,
            address,
            icmp_echo: self.echo,
        };
        let spec = Spec {
            frontends: &[frontend("web", vip), frontend("whole", second)],
            rules: &rules,
            pools: &[pool("tcp", 0), pool("udp", 1), pool("rest", 2)],
            proxy: Some(ProxyPorts {
                mode: self.mode,
                frontends: &self.ports,
                backend: BACKEND,
                source_rewrites: &self.rewrites,
            }),
            ..Spec::default()
        };
        Snapshot::new(&spec, previous)
    }

    fn proxy(&self) -> Dut {
        Proxy::with_capacity(Box::new(self.build(None).unwrap()), 1 << 14, KEY).expect("its role")
    }

    fn install(&self, proxy: &mut Dut) {
        let next = Box::new(self.build(Some(proxy.snapshot())).unwrap());
        proxy.install(next).expect("it follows");
    }
}

type Dut = Proxy<'static, Box<Snapshot<'static>>>;

/// Gives the proxy a frame; returns what becomes of it.
fn give_at(proxy: &mut Dut, now: Instant, port: PortId, bytes: &[u8]) -> (Verdict, Vec<u8>) {
    let mut buffer = vec![0xa5; HEADROOM + bytes.len() + HEADROOM];
    buffer[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
    let mut frame = Frame::new(&mut buffer, HEADROOM, bytes.len()).unwrap();
    frame.set_port(port);
    proxy.process(now, std::slice::from_mut(&mut frame));
    (frame.verdict(), frame.bytes().to_vec())
}

fn give(proxy: &mut Dut, port: PortId, bytes: &[u8]) -> (Verdict, Vec<u8>) {
    give_at(proxy, NOW, port, bytes)
}

type Endpoint = (IpAddr, u16);

fn at(address: impl Into<IpAddr>, port: u16) -> Endpoint {
    (address.into(), port)
}

fn link(from: IpAddr, to: IpAddr) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let link = PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("of one family"),
    }
}

fn tcp(from: Endpoint, to: Endpoint, flags: &str) -> Vec<u8> {
    // Both ends begin at 1000: a RST has the number that is expected behind the SYN.
    let sequence = if flags.contains('R') { 1001 } else { 1000 };
    let mut step = link(from.0, to.0).tcp(from.1, to.1, sequence, 4096);
    for flag in flags.chars() {
        step = match flag {
            'S' => step.syn(),
            'A' => step.ack(1001),
            'F' => step.fin(),
            'R' => step.rst(),
            other => unreachable!("{other}"),
        };
    }
    let mut packet = Vec::new();
    step.write(&mut packet, b"data").unwrap();
    packet
}

fn udp(from: Endpoint, to: Endpoint) -> Vec<u8> {
    let mut packet = Vec::new();
    link(from.0, to.0)
        .udp(from.1, to.1)
        .write(&mut packet, b"question")
        .unwrap();
    packet
}

fn ping(from: IpAddr, to: IpAddr, identifier: u16, reply: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    let link = link(from, to);
    match (from, reply) {
        (IpAddr::V4(_), false) => link
            .icmpv4_echo_request(identifier, 1)
            .write(&mut packet, b"ping"),
        (IpAddr::V4(_), true) => link
            .icmpv4_echo_reply(identifier, 1)
            .write(&mut packet, b"ping"),
        (IpAddr::V6(_), false) => link
            .icmpv6_echo_request(identifier, 1)
            .write(&mut packet, b"ping"),
        (IpAddr::V6(_), true) => link
            .icmpv6_echo_reply(identifier, 1)
            .write(&mut packet, b"ping"),
    }
    .unwrap();
    packet
}

fn arp(operation: ArpOperation, target: Ipv4Addr) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &GATEWAY_MAC,
        &server(1).octets(),
        &[0; 6],
        &target.octets(),
    )
    .unwrap();
    let _: ArpEthIpv4Packet = packet.try_eth_ipv4().unwrap();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(GATEWAY_MAC, [0xff; 6])
        .arp(packet)
        .write(&mut bytes)
        .unwrap();
    bytes
}

/// Source and destination of a frame, whose checksums are right and whose link header is as it was.
fn ends(frame: &[u8]) -> (Endpoint, Endpoint) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (from, to): (IpAddr, IpAddr) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let sum = header.to_header().calc_header_checksum();
            assert_eq!(header.header_checksum(), sum);
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => unreachable!("not IP"),
    };
    let (from_port, to_port) = match sliced.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => {
            let (header, data) = (tcp.to_header(), tcp.payload());
            let sum = match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), data)
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), data)
                }
                _ => unreachable!(),
            };
            assert_eq!(header.checksum, sum.unwrap());
            (tcp.source_port(), tcp.destination_port())
        }
        TransportSlice::Udp(udp) => {
            let (header, data) = (udp.to_header(), udp.payload());
            let sum = match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), data)
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), data)
                }
                _ => unreachable!(),
            };
            assert_eq!(header.checksum, sum.unwrap());
            (udp.source_port(), udp.destination_port())
        }
        TransportSlice::Icmpv4(icmp) => {
            let sum = icmp.header().icmp_type.calc_checksum(icmp.payload());
            assert_eq!(icmp.checksum(), sum);
            (0, 0)
        }
        TransportSlice::Icmpv6(icmp) => {
            let (IpAddr::V6(a), IpAddr::V6(b)) = (from, to) else {
                unreachable!()
            };
            assert!(icmp.is_checksum_valid(a.octets(), b.octets()));
            (0, 0)
        }
        other => unreachable!("{other:?}"),
    };
    ((from, from_port), (to, to_port))
}

/// Sends the first packet of a client's session; returns the backend that it reached.
fn open(proxy: &mut Dut, client: Endpoint) -> Endpoint {
    let (verdict, frame) = give(proxy, FRONTEND, &tcp(client, at(VIP, 80), "S"));
    assert_eq!(verdict, Verdict::Forward(BACKEND));
    let (from, to) = ends(&frame);
    assert_eq!(from, client);
    to
}

fn clients(count: u32) -> impl Iterator<Item = Endpoint> {
    (0..count).map(|n| {
        let address = Ipv4Addr::from_bits(CLIENT.to_bits() + n % 199);
        at(address, 10_000 + (n / 199) as u16)
    })
}

// What it is.

#[test]
fn packets_get_the_address_of_the_server_chosen_and_answers_that_of_the_vip() {
    let mut proxy = Setup::new(3).proxy();
    let client = at(CLIENT, 50_000);
    let backend = open(&mut proxy, client);
    assert!((1..=3).any(|n| backend == at(server(n), 8080)));
    let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(backend, client, "SA"));
    assert_eq!(verdict, Verdict::Forward(FRONTEND));
    assert_eq!(ends(&frame), (at(VIP, 80), client));
    let stats = proxy.stats();
    assert_eq!((stats.connections.made, stats.forwarded.packets), (1, 2));
}

#[test]
fn all_packets_of_a_session_reach_the_same_backend() {
    let mut proxy = Setup::new(5).proxy();
    for client in clients(500) {
        let backend = open(&mut proxy, client);
        give(&mut proxy, BACKEND, &tcp(backend, client, "SA"));
        for _ in 0..3 {
            let (_, frame) = give(&mut proxy, FRONTEND, &tcp(client, at(VIP, 80), "A"));
            assert_eq!(ends(&frame).1, backend);
        }
    }
}

#[test]
fn link_headers_and_hop_limits_are_as_they_were() {
    let mut proxy = Setup::new(1).proxy();
    let packet = tcp(at(CLIENT, 50_000), at(VIP, 80), "S");
    let (_, frame) = give(&mut proxy, FRONTEND, &packet);
    assert_eq!(frame[..14], packet[..14]);
    assert_eq!(frame[22], 64);
    assert_eq!(frame.len(), packet.len());
}

// Port modes.

#[test]
fn in_single_port_mode_only_one_frontend_port_is_supported() {
    let mut setup = Setup::multi(1);
    setup.mode = PortMode::Single;
    assert_eq!(
        setup.build(None).unwrap_err(),
        SpecError::FrontendPorts { count: 3 }
    );
    setup.ports.clear();
    assert_eq!(
        setup.build(None).unwrap_err(),
        SpecError::FrontendPorts { count: 0 }
    );
    assert!(Setup::new(1).build(None).is_ok());
}

#[test]
fn in_multi_port_mode_several_frontend_ports_are_supported_but_one_backend_port() {
    let setup = Setup::multi(1);
    assert!(setup.build(None).is_ok());
    // There is one by construction; a frontend cannot be it too.
    let mut both = setup.clone();
    both.ports[1].port = BACKEND;
    assert_eq!(
        both.build(None).unwrap_err(),
        SpecError::UnusablePort { port: BACKEND }
    );
    let mut twice = setup;
    twice.ports[1].port = PortId(2);
    assert!(twice.build(None).is_err());
}

#[test]
fn in_multi_port_mode_an_address_is_required_at_each_frontend_port() {
    let mut setup = Setup::multi(1);
    setup.ports[1].address = None;
    assert_eq!(
        setup.build(None).unwrap_err(),
        SpecError::FrontendPortAddress { port: PortId(1) }
    );
    setup.ports[1].address = setup.ports[0].address;
    assert_eq!(
        setup.build(None).unwrap_err(),
        SpecError::UnusablePort { port: PortId(1) }
    );
}

#[test]
fn in_multi_port_mode_answers_go_to_the_frontend_port_that_the_session_came_from() {
    let mut proxy = Setup::multi(3).proxy();
    for port in [PortId(0), PortId(1), PortId(2)] {
        // Not the port's own address: somebody behind it.
        let client = at(Ipv4Addr::new(10, 0, port.0 as u8, 77), 50_000);
        let (_, frame) = give(&mut proxy, port, &tcp(client, at(VIP, 80), "S"));
        let backend = ends(&frame).1;
        let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(backend, client, "SA"));
        assert_eq!(verdict, Verdict::Forward(port));
        assert_eq!(ends(&frame), (at(VIP, 80), client));
    }
}

#[test]
fn frames_of_other_ports_are_not_the_proxys() {
    let mut proxy = Setup::new(1).proxy();
    let packet = tcp(at(CLIENT, 1), at(VIP, 80), "S");
    assert_eq!(
        give(&mut proxy, PortId(9), &packet),
        (Verdict::Pass, packet)
    );
}

// ARP, and what is not known.

#[test]
fn arp_packets_are_forwarded_as_they_are() {
    let mut proxy = Setup::new(1).proxy();
    for operation in [ArpOperation::REQUEST, ArpOperation::REPLY] {
        let packet = arp(operation, VIP);
        for (from, to) in [(FRONTEND, BACKEND), (BACKEND, FRONTEND)] {
            let (verdict, frame) = give(&mut proxy, from, &packet);
            assert_eq!(verdict, Verdict::Forward(to));
            assert_eq!(frame, packet);
        }
    }
}

#[test]
fn in_multi_port_mode_an_arp_request_from_the_backend_port_goes_to_the_right_frontend_port() {
    let mut proxy = Setup::multi(1).proxy();
    for port in 0..3 {
        let packet = arp(ArpOperation::REQUEST, Ipv4Addr::new(10, 0, port as u8, 1));
        let (verdict, frame) = give(&mut proxy, BACKEND, &packet);
        assert_eq!(verdict, Verdict::Forward(PortId(port)));
        assert_eq!(frame, packet);
        assert_eq!(
            give(&mut proxy, PortId(port), &packet).0,
            Verdict::Forward(BACKEND)
        );
    }
    // Nobody's: all may want to know.
    let packet = arp(ArpOperation::REQUEST, Ipv4Addr::new(10, 0, 9, 9));
    assert_eq!(give(&mut proxy, BACKEND, &packet), (Verdict::Flood, packet));
}

#[test]
fn unknown_packets_are_forwarded_as_they_are() {
    let mut proxy = Setup::new(1).proxy();
    let (a, b) = (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into());
    let mut lldp = vec![0x55; 60];
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    for packet in [tcp((a, 1), (b, 2), "S"), lldp] {
        for (from, to) in [(FRONTEND, BACKEND), (BACKEND, FRONTEND)] {
            assert_eq!(
                give(&mut proxy, from, &packet),
                (Verdict::Forward(to), packet.clone())
            );
        }
    }
}

#[test]
fn in_multi_port_mode_unknown_packets_from_the_backend_port_are_flooded_to_all_frontend_ports() {
    let mut proxy = Setup::multi(1).proxy();
    let (a, b) = (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into());
    let packet = tcp((a, 1), (b, 2), "S");
    let (verdict, frame) = give(&mut proxy, BACKEND, &packet);
    assert_eq!((verdict, &frame), (Verdict::Flood, &packet));
    assert_eq!(
        give(&mut proxy, PortId(2), &packet),
        (Verdict::Forward(BACKEND), packet)
    );
}

#[test]
fn what_is_for_no_service_crosses_untouched() {
    let client = at(CLIENT, 50_000);
    let strangers = [
        tcp(client, at(server(1), 8080), "S"),
        tcp(client, at(VIP, 81), "S"), // a VIP, but no service
        udp(client, at(Ipv4Addr::new(8, 8, 8, 8), 53)),
        ping(CLIENT.into(), server(1).into(), 1, false),
    ];
    let mut proxy = Setup::new(1).proxy();
    for packet in &strangers {
        let expected = (Verdict::Forward(BACKEND), packet.clone());
        assert_eq!(give(&mut proxy, FRONTEND, packet), expected);
    }
    let answer = tcp(at(server(1), 8080), client, "SA");
    let expected = (Verdict::Forward(FRONTEND), answer.clone());
    assert_eq!(give(&mut proxy, BACKEND, &answer), expected);
    assert_eq!(proxy.stats().connections.made, 0);

    // With several frontend ports the address says which, where it is known.
    let mut proxy = Setup::multi(1).proxy();
    let answer = tcp(at(server(1), 8080), at(Ipv4Addr::new(10, 0, 2, 1), 5), "SA");
    assert_eq!(
        give(&mut proxy, BACKEND, &answer).0,
        Verdict::Forward(PortId(2))
    );
    let answer = tcp(at(server(1), 8080), client, "SA");
    assert_eq!(give(&mut proxy, BACKEND, &answer), (Verdict::Flood, answer));
}

#[test]
fn fragments_of_strangers_cross_and_those_of_sessions_are_translated() {
    let fragments = |from: Endpoint, to: Endpoint| -> [Vec<u8>; 2] {
        let whole = udp(from, to);
        let make = |data: &[u8], offset: u16, more: bool| {
            let mut packet = whole[..34].to_vec();
            packet.extend(data);
            packet[16..18].copy_from_slice(&(20 + data.len() as u16).to_be_bytes());
            let field = (offset / 8) | if more { 0x2000 } else { 0 };
            packet[20..22].copy_from_slice(&field.to_be_bytes());
            packet[24..26].fill(0);
            let header = etherparse::Ipv4HeaderSlice::from_slice(&packet[14..34]).unwrap();
            let sum = header.to_header().calc_header_checksum();
            packet[24..26].copy_from_slice(&sum.to_be_bytes());
            packet
        };
        [make(&whole[34..42], 0, true), make(&whole[42..], 8, false)]
    };
    let mut proxy = Setup::new(1).proxy();
    let client = at(CLIENT, 50_000);
    for packet in fragments(client, at(server(1), 53)) {
        let expected = (Verdict::Forward(BACKEND), packet.clone());
        assert_eq!(give(&mut proxy, FRONTEND, &packet), expected);
    }
    for packet in fragments(client, at(VIP, 53)) {
        let (verdict, frame) = give(&mut proxy, FRONTEND, &packet);
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        assert_eq!(frame[30..34], server(1).octets());
    }
    // From a backend, of a first fragment that nobody saw: perhaps a session's, so not as it is.
    let [_, later] = fragments(at(server(1), 9), at(CLIENT, 9));
    let (verdict, _) = give(&mut proxy, BACKEND, &later);
    assert_eq!(verdict, Verdict::Drop(DropReason::FragmentWithoutFirst));
    let [_, later] = fragments(at(Ipv4Addr::new(10, 10, 9, 9), 9), at(CLIENT, 9));
    let (verdict, _) = give(&mut proxy, BACKEND, &later);
    assert_eq!(verdict, Verdict::Forward(FRONTEND));
}

// Services.

#[test]
fn several_virtual_services_stand_beside_each_other() {
    let mut proxy = Setup::new(2).proxy();
    let client = at(CLIENT, 50_000);
    let second = Ipv4Addr::from_bits(VIP.to_bits() + 1);
    let (_, frame) = give(&mut proxy, FRONTEND, &tcp(client, at(VIP, 80), "S"));
    assert_eq!(ends(&frame).1.1, 8080);
    let (_, frame) = give(&mut proxy, FRONTEND, &udp(client, at(VIP, 53)));
    assert_eq!(ends(&frame).1.1, 8080);
    // `all`: every protocol, and ports stay.
    let (_, frame) = give(&mut proxy, FRONTEND, &tcp(client, at(second, 4711), "S"));
    assert_eq!(ends(&frame).1.1, 4711);
    let (_, frame) = give(&mut proxy, FRONTEND, &udp(client, at(second, 4712)));
    assert_eq!(ends(&frame).1.1, 4712);
    let mut sctp = Vec::new();
    link(CLIENT.into(), second.into())
        .write(&mut sctp, etherparse::IpNumber(132), &[7; 32])
        .unwrap();
    let (verdict, frame) = give(&mut proxy, FRONTEND, &sctp);
    assert_eq!(verdict, Verdict::Forward(BACKEND));
    assert!((1..=2).any(|n| frame[30..34] == server(n).octets()));
}

#[test]
fn mapping_can_be_differentiated_by_protocol_and_in_number() {
    let mut setup = Setup::new(1);
    let healthy = |n| (n, 1, BackendState::Up);
    setup.pools = [
        vec![healthy(1), healthy(2)],
        vec![healthy(3)],
        vec![healthy(4), healthy(5), healthy(6)],
    ];
    let mut proxy = setup.proxy();
    let (mut by_tcp, mut by_udp) = (HashSet::new(), HashSet::new());
    for client in clients(200) {
        by_tcp.insert(open(&mut proxy, client).0);
        let (_, frame) = give(&mut proxy, FRONTEND, &udp(client, at(VIP, 53)));
        by_udp.insert(ends(&frame).1.0);
    }
    let addresses = |numbers: &[usize]| -> HashSet<IpAddr> {
        numbers.iter().map(|&n| server(n).into()).collect()
    };
    assert_eq!(by_tcp, addresses(&[1, 2]));
    assert_eq!(by_udp, addresses(&[3]));
}

#[test]
fn a_backend_may_serve_another_port_than_its_rule_says() {
    let mut setup = Setup::new(0);
    setup.pools[0] = vec![(99, 1, BackendState::Up)];
    let mut proxy = setup.proxy();
    assert_eq!(open(&mut proxy, at(CLIENT, 5)), at(server(99), 9999));
}

#[test]
fn virtual_servers_can_be_pinged() {
    let mut proxy = Setup::new(4).proxy();
    let mut reached = HashSet::new();
    for identifier in 0..64 {
        let request = ping(CLIENT.into(), VIP.into(), identifier, false);
        let (verdict, frame) = give(&mut proxy, FRONTEND, &request);
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        let ((from, _), (backend, _)) = ends(&frame);
        assert_eq!(from, IpAddr::from(CLIENT));
        reached.insert(backend);
        let reply = ping(backend, CLIENT.into(), identifier, true);
        let (verdict, frame) = give(&mut proxy, BACKEND, &reply);
        assert_eq!(verdict, Verdict::Forward(FRONTEND));
        assert_eq!(frame, ping(VIP.into(), CLIENT.into(), identifier, true));
    }
    assert_eq!(reached.len(), 4);
}

#[test]
fn or_the_proxy_answers_pings_itself_or_nobody_does() {
    let mut setup = Setup::new(2);
    setup.ping = false;
    let request = ping(CLIENT.into(), VIP.into(), 9, false);
    let (verdict, frame) = give(&mut setup.proxy(), FRONTEND, &request);
    assert_eq!(verdict, Verdict::Reply);
    assert_eq!(ends(&frame), (at(VIP, 0), at(CLIENT, 0)));
    assert_eq!(frame[..6], CLIENT_MAC);
    // Who asks from everywhere is nobody, and what goes to all is not answered.
    let martian = ping(Ipv4Addr::BROADCAST.into(), VIP.into(), 9, false);
    let (verdict, _) = give(&mut setup.proxy(), FRONTEND, &martian);
    assert_eq!(verdict, Verdict::Drop(DropReason::Martian));
    let mut to_many = request.clone();
    to_many[..6].fill(0xff);
    let (verdict, _) = give(&mut setup.proxy(), FRONTEND, &to_many);
    assert_eq!(verdict, Verdict::Drop(DropReason::EchoIgnored));
    setup.echo = Echo::Ignore;
    let (verdict, _) = give(&mut setup.proxy(), FRONTEND, &request);
    assert_eq!(verdict, Verdict::Drop(DropReason::EchoIgnored));
    // `all` takes them too, where the VIP says so.
    setup.echo = Echo::Forward;
    let second = Ipv4Addr::from_bits(VIP.to_bits() + 1);
    let request = ping(CLIENT.into(), second.into(), 9, false);
    let (verdict, _) = give(&mut setup.proxy(), FRONTEND, &request);
    assert_eq!(verdict, Verdict::Forward(BACKEND));
}

/// Found by `proxy_survives_sequences`: one with the identifier 0 was taken for a request, so that two
/// proxies could have sent it to each other for ever.
#[test]
fn an_echo_reply_is_not_answered() {
    for (echo, identifier) in [(Echo::Answer, 0), (Echo::Answer, 9), (Echo::Ignore, 0)] {
        let setup = Setup {
            ping: false,
            echo,
            ..Setup::new(2)
        };
        let reply = ping(CLIENT.into(), VIP.into(), identifier, true);
        let mut proxy = setup.proxy();
        // It is nobody's, and goes on as it is.
        let (verdict, frame) = give(&mut proxy, FRONTEND, &reply);
        assert_eq!((verdict, frame), (Verdict::Forward(BACKEND), reply));
        assert_eq!(proxy.stats().connections.made, 0, "{identifier}");
    }
}

#[test]
fn icmp_errors_reach_who_sent_what_they_quote() {
    let mut proxy = Setup::new(1).proxy();
    let client = at(CLIENT, 50_000);
    let (_, sent) = give(&mut proxy, FRONTEND, &udp(client, at(VIP, 53)));
    let mut error = Vec::new();
    link(server(1).into(), CLIENT.into())
        .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::Port,
        ))
        .write(&mut error, &sent[14..])
        .unwrap();
    let (verdict, frame) = give(&mut proxy, BACKEND, &error);
    assert_eq!(verdict, Verdict::Forward(FRONTEND));
    assert_eq!(ends(&frame), (at(VIP, 0), at(CLIENT, 0)));
    let quoted = SlicedPacket::from_ip(&frame[42..]).unwrap();
    let NetSlice::Ipv4(ip) = quoted.net.unwrap() else {
        unreachable!()
    };
    assert_eq!(ip.header().destination_addr(), VIP);
}

#[test]
fn what_servers_take_up_and_what_fails_is_counted() {
    let mut proxy = Setup::new(1).proxy();
    let counted = |proxy: &Dut, pool: usize| {
        let id = proxy.snapshot().backends()[pool].id();
        let counters = proxy.backend_counters(id).unwrap();
        (counters.accepted, counters.failures)
    };
    let syn = |proxy: &mut Dut, client| give(proxy, FRONTEND, &tcp(client, at(VIP, 80), "S"));
    // A handshake, its answer twice.
    let (one, two, three) = (at(CLIENT, 1000), at(CLIENT, 1001), at(CLIENT, 1002));
    let backend = open(&mut proxy, one);
    for _ in 0..2 {
        give(&mut proxy, BACKEND, &tcp(backend, one, "SA"));
    }
    assert_eq!(counted(&proxy, 0), (1, 0));
    // A SYN that comes again, until it is answered.
    for _ in 0..3 {
        syn(&mut proxy, two);
    }
    assert_eq!(counted(&proxy, 0), (1, 2));
    give(&mut proxy, BACKEND, &tcp(backend, two, "SA"));
    syn(&mut proxy, two);
    assert_eq!(counted(&proxy, 0), (2, 2));
    // A refusal, and one that is none: it answers no SYN of this connection.
    syn(&mut proxy, three);
    for acknowledgement in [77, 1005, 1005] {
        let mut refusal = Vec::new();
        let step = link(backend.0, three.0).tcp(backend.1, three.1, 0, 0);
        let step = step.rst().ack(acknowledgement);
        step.write(&mut refusal, b"").unwrap();
        give(&mut proxy, BACKEND, &refusal);
    }
    assert_eq!(counted(&proxy, 0), (2, 3));
    // Of UDP an answer, and an error.
    for (client, port) in [(one, 1), (two, 2)] {
        let (_, sent) = give(&mut proxy, FRONTEND, &udp(client, at(VIP, 53)));
        if port == 1 {
            let answer = udp(at(server(1), 8080), client);
            give(&mut proxy, BACKEND, &answer);
            continue;
        }
        let mut error = Vec::new();
        let unreachable = etherparse::icmpv4::DestUnreachableHeader::Port;
        link(server(1).into(), CLIENT.into())
            .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(unreachable))
            .write(&mut error, &sent[14..])
            .unwrap();
        give(&mut proxy, BACKEND, &error);
    }
    assert_eq!(counted(&proxy, 1), (1, 1));
}

// Sessions and weights.

/// Where each of many clients is.
fn all_open(proxy: &mut Dut, count: u32) -> HashMap<Endpoint, Endpoint> {
    let open_one = |client| {
        let backend = open(proxy, client);
        give(proxy, BACKEND, &tcp(backend, client, "SA"));
        give(proxy, FRONTEND, &tcp(client, at(VIP, 80), "A"));
        (client, backend)
    };
    clients(count).map(open_one).collect()
}

fn nobody_moved(proxy: &mut Dut, sessions: &HashMap<Endpoint, Endpoint>) {
    for (&client, &backend) in sessions {
        let (verdict, frame) = give(proxy, FRONTEND, &tcp(client, at(VIP, 80), "A"));
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        assert_eq!(ends(&frame).1, backend);
        let (verdict, frame) = give(proxy, BACKEND, &tcp(backend, client, "A"));
        assert_eq!(verdict, Verdict::Forward(FRONTEND));
        assert_eq!(ends(&frame), (at(VIP, 80), client));
    }
}

#[test]
fn a_session_stays_whatever_is_added_removed_or_weighted_at_run_time() {
    for scheduler in [Scheduler::Maglev, Scheduler::LeastConnections] {
        let mut setup = Setup::new(4);
        setup.scheduler = scheduler;
        let mut proxy = setup.proxy();
        let sessions = all_open(&mut proxy, 400);
        setup.pools[0].push((5, 1, BackendState::Up));
        setup.install(&mut proxy);
        nobody_moved(&mut proxy, &sessions);
        setup.pools[0][0].1 = 50;
        setup.install(&mut proxy);
        nobody_moved(&mut proxy, &sessions);
        setup.pools[0][1].2 = BackendState::Draining;
        setup.pools[0][2].2 = BackendState::Down;
        setup.install(&mut proxy);
        nobody_moved(&mut proxy, &sessions);
        // Even those of a backend that is no longer there go on.
        setup.pools[0].remove(3);
        setup.install(&mut proxy);
        proxy.advance(NOW, &mut Burst::new());
        nobody_moved(&mut proxy, &sessions);
        assert_eq!(proxy.stats().connections.live, 400);
        // But nobody new comes to any of these.
        for n in 0..200 {
            let backend = open(&mut proxy, at(Ipv4Addr::new(203, 0, 113, 1), 20_000 + n)).0;
            assert!([1, 5].iter().any(|&n| backend == server(n)), "{backend}");
        }
    }
}

#[test]
fn a_syn_that_nobody_answered_comes_again_to_a_backend_that_takes_new_ones() {
    type Change = fn(&mut Vec<(usize, u32, BackendState)>, usize);
    let changes: [Change; 4] = [
        |pool, place| pool[place].2 = BackendState::Down,
        |pool, place| pool[place].2 = BackendState::Draining,
        |pool, place| pool[place].1 = 0,
        |pool, place| {
            pool.remove(place);
        },
    ];
    for (change, scheduler) in changes
        .into_iter()
        .flat_map(|change| [Scheduler::Maglev, Scheduler::LeastConnections].map(|s| (change, s)))
    {
        let mut setup = Setup::new(4);
        setup.scheduler = scheduler;
        let mut proxy = setup.proxy();
        let [asking, answered] = [at(CLIENT, 1000), at(CLIENT, 1001)];
        let first = open(&mut proxy, asking);
        assert_eq!(open(&mut proxy, asking), first);
        // One whose backend has answered is a session.
        let backend = open(&mut proxy, answered);
        give(&mut proxy, BACKEND, &tcp(backend, answered, "SA"));
        let place = |of: Endpoint| (1..=4).position(|n| of.0 == server(n)).unwrap();
        let mut gone = [place(first), place(backend)];
        gone.sort_unstable();
        change(&mut setup.pools[0], gone[1]);
        if gone[0] != gone[1] {
            change(&mut setup.pools[0], gone[0]);
        }
        setup.install(&mut proxy);
        let second = open(&mut proxy, asking);
        assert!(!gone.contains(&place(second)));
        assert_eq!(open(&mut proxy, asking), second);
        assert_eq!(open(&mut proxy, answered), backend);
        // The second one's answer is the session's, and the first one's is nobody's.
        let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(second, asking, "SA"));
        assert_eq!(verdict, Verdict::Forward(FRONTEND));
        assert_eq!(ends(&frame), (at(VIP, 80), asking));
        let late = tcp(first, asking, "SA");
        let (verdict, _) = give(&mut proxy, BACKEND, &late);
        assert_eq!(verdict, Verdict::Drop(DropReason::NoConnection));
        // And one that is left to drop the late answer of the old backend.
        assert_eq!(proxy.stats().connections.live, 3);
    }
}

#[test]
fn a_backend_of_weight_10_gets_twice_the_sessions_of_one_of_weight_5() {
    let mut setup = Setup::new(2);
    (setup.pools[0][0].1, setup.pools[0][1].1) = (10, 5);
    let mut proxy = setup.proxy();
    let count = 9000;
    let first = clients(count)
        .filter(|&client| open(&mut proxy, client).0 == server(1))
        .count();
    // Four standard deviations of so many throws.
    let expected = f64::from(count) * 2.0 / 3.0;
    let deviation = (f64::from(count) * 2.0 / 9.0).sqrt();
    assert!(
        (first as f64 - expected).abs() < 4.0 * deviation,
        "{first} of {count}"
    );
}

#[test]
fn least_connections_goes_by_what_is_live_and_by_weight() {
    let mut setup = Setup::new(3);
    setup.scheduler = Scheduler::LeastConnections;
    setup.pools[0][2].1 = 2;
    let mut proxy = setup.proxy();
    let mut count = HashMap::<IpAddr, u32>::new();
    let sessions = all_open(&mut proxy, 400);
    for backend in sessions.values() {
        *count.entry(backend.0).or_default() += 1;
    }
    assert_eq!(count[&server(1).into()], 100);
    assert_eq!(count[&server(2).into()], 100);
    assert_eq!(count[&server(3).into()], 200);
    // Those of the first end: the next ones go there, until it has its share again.
    let first = sessions
        .iter()
        .filter(|(_, backend)| backend.0 == server(1));
    for (&client, &backend) in first {
        give(&mut proxy, FRONTEND, &tcp(client, at(VIP, 80), "RA"));
        give(&mut proxy, BACKEND, &tcp(backend, client, "RA"));
    }
    // The others are used in the meantime.
    let soon = NOW + Duration::from_secs(200);
    for (&client, _) in sessions.iter().filter(|(_, to)| to.0 != server(1)) {
        give_at(&mut proxy, soon, FRONTEND, &tcp(client, at(VIP, 80), "A"));
    }
    let later = NOW + Duration::from_secs(300);
    for step in 0..64 {
        proxy.advance(later + Duration::from_millis(step * 40), &mut Burst::new());
    }
    let live = proxy.stats().connections.live;
    assert_eq!(live, 300);
    for n in 0..100 {
        let client = at(Ipv4Addr::new(203, 0, 113, 1), 20_000 + n);
        let syn = tcp(client, at(VIP, 80), "S");
        let (_, frame) = give_at(&mut proxy, later, FRONTEND, &syn);
        assert_eq!(ends(&frame).1.0, server(1));
    }
}

#[test]
fn between_equally_loaded_backends_the_heavier_one_takes_a_connection() {
    let mut setup = Setup::new(3);
    setup.scheduler = Scheduler::LeastConnections;
    setup.pools[0][2].1 = 2;
    for client in 0..50 {
        let mut proxy = setup.proxy();
        let mut next = |port: u16| {
            let client = at(Ipv4Addr::new(203, 0, 113, client), port);
            let (_, frame) = give(&mut proxy, FRONTEND, &tcp(client, at(VIP, 80), "S"));
            ends(&frame).1.0
        };
        // One of two is as much as none and one of one.
        assert_eq!([next(1000), next(1001)], [server(3); 2].map(IpAddr::from));
        assert_ne!(next(1002), server(3));
    }
}

#[test]
fn source_ip_distribution_keeps_a_client_together() {
    let names: Vec<String> = (0..8).map(|n| format!("server{n}")).collect();
    let backends: Vec<Backend<'_>> = (0..8)
        .map(|n| Backend {
            name: &names[n],
            address: server(n + 1).into(),
            ..Backend::default()
        })
        .collect();
    let spec = Spec {
        frontends: &[Frontend {
            name: "web",
            address: VIP.into(),
            icmp_echo: Echo::Answer,
        }],
        rules: &[Rule {
            name: "http",
            frontend_port: 80,
            backend_port: 80,
            distribution: Distribution::SourceIp,
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "servers",
            table_size: 4099,
            backends: &backends,
            ..Pool::default()
        }],
        proxy: Some(ProxyPorts {
            frontends: &[FrontendPort::default()],
            backend: BACKEND,
            ..ProxyPorts::default()
        }),
        ..Spec::default()
    };
    let mut proxy =
        Proxy::with_capacity(Box::new(Snapshot::new(&spec, None).unwrap()), 1 << 10, KEY)
            .expect("its role");
    let mut reached = HashSet::new();
    for client in 0..20 {
        let address = Ipv4Addr::from_bits(CLIENT.to_bits() + client);
        let of_client: HashSet<_> = (0..10)
            .map(|port| open(&mut proxy, at(address, 20_000 + port)))
            .collect();
        assert_eq!(of_client.len(), 1);
        reached.extend(of_client);
    }
    assert!(reached.len() > 3);
}

// Addresses.

#[test]
fn clients_of_a_range_are_seen_under_another_and_back() {
    let mut setup = Setup::new(2);
    setup.rewrites.push(SourceRewrite {
        from: Ipv4Addr::new(198, 51, 100, 0).into(),
        to: Ipv4Addr::new(192, 168, 5, 0).into(),
        prefix_len: 24,
    });
    let mut proxy = setup.proxy();
    let client = at(CLIENT, 50_000);
    let (_, frame) = give(&mut proxy, FRONTEND, &tcp(client, at(VIP, 80), "S"));
    let seen = at(Ipv4Addr::new(192, 168, 5, 10), 50_000);
    let (from, backend) = ends(&frame);
    assert_eq!(from, seen);
    let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(backend, seen, "SA"));
    assert_eq!(verdict, Verdict::Forward(FRONTEND));
    assert_eq!(ends(&frame), (at(VIP, 80), client));
    // Others are seen as they are, and so is who goes elsewhere.
    let other = at(Ipv4Addr::new(203, 0, 113, 1), 50_000);
    let (_, frame) = give(&mut proxy, FRONTEND, &tcp(other, at(VIP, 80), "S"));
    assert_eq!(ends(&frame).0, other);
    let packet = tcp(client, at(server(1), 22), "S");
    assert_eq!(give(&mut proxy, FRONTEND, &packet).1, packet);
}

#[test]
fn source_nat_hides_clients_and_keeps_them_apart() {
    let mut setup = Setup::multi(1);
    setup.terms.source_nat = Some(Ipv4Addr::new(10, 10, 1, 250).into());
    let mut proxy = setup.proxy();
    // The same client's address and port, behind two frontends.
    let client = at(CLIENT, 50_000);
    let mut seen = HashMap::new();
    for port in [PortId(0), PortId(1)] {
        let (_, frame) = give(&mut proxy, port, &tcp(client, at(VIP, 80), "S"));
        let (from, backend) = ends(&frame);
        assert_eq!(from.0, Ipv4Addr::new(10, 10, 1, 250));
        seen.insert(port, (from, backend));
    }
    assert_ne!(seen[&PortId(0)].0, seen[&PortId(1)].0);
    for (port, (from, backend)) in seen {
        let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(backend, from, "SA"));
        assert_eq!(verdict, Verdict::Forward(port));
        assert_eq!(ends(&frame), (at(VIP, 80), client));
    }
}

#[test]
fn two_clients_that_a_backend_could_not_tell_apart_get_two_ports() {
    let mut proxy = Setup::multi(1).proxy();
    let client = at(CLIENT, 50_000);
    let syn = tcp(client, at(VIP, 80), "S");
    let mut sessions = Vec::new();
    for port in [PortId(0), PortId(1), PortId(2)] {
        let (verdict, frame) = give(&mut proxy, port, &syn);
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        let (seen, backend) = ends(&frame);
        assert_eq!(seen.0, client.0);
        assert_eq!(seen.1 == client.1, port == PortId(0));
        sessions.push((port, seen, backend));
    }
    for (port, seen, backend) in sessions {
        let answer = give(&mut proxy, BACKEND, &tcp(backend, seen, "SA"));
        assert_eq!(answer.0, Verdict::Forward(port));
        assert_eq!(ends(&answer.1), (at(VIP, 80), client));
    }
    // A protocol without ports has no other name.
    let second = Ipv4Addr::from_bits(VIP.to_bits() + 1);
    let mut packet = Vec::new();
    link(CLIENT.into(), second.into())
        .write(&mut packet, etherparse::IpNumber::GRE, b"tunnelled")
        .unwrap();
    for expected in [
        Verdict::Forward(BACKEND),
        Verdict::Drop(DropReason::TupleTaken),
    ] {
        let port = PortId(u16::from(expected != Verdict::Forward(BACKEND)));
        assert_eq!(give(&mut proxy, port, &packet).0, expected);
    }
}

// Beyond the model.

#[test]
fn ipv6_services_work_too() {
    let mut setup = Setup::multi(3);
    setup.ipv6 = true;
    let mut proxy = setup.proxy();
    let client = at(Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 9), 50_000);
    for packet in [
        tcp(client, at(VIP6, 80), "S"),
        udp(client, at(VIP6, 53)),
        ping(client.0, VIP6.into(), 7, false),
    ] {
        let (verdict, frame) = give(&mut proxy, PortId(1), &packet);
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        let (_, backend) = ends(&frame);
        assert_ne!(backend.0, IpAddr::from(VIP6));
    }
    let (_, frame) = give(&mut proxy, PortId(1), &tcp(client, at(VIP6, 80), "S"));
    let backend = ends(&frame).1;
    let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(backend, client, "SA"));
    assert_eq!(verdict, Verdict::Forward(PortId(1)));
    assert_eq!(ends(&frame), (at(VIP6, 80), client));
    // Neighbours find each other through it.
    let mut solicitation = Vec::new();
    link(client.0, VIP6.into())
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut solicitation, &VIP6.octets())
        .unwrap();
    assert_eq!(
        give(&mut proxy, BACKEND, &solicitation),
        (Verdict::Flood, solicitation)
    );
}

#[test]
fn with_tcp_reset_both_ends_are_told_over_the_link_that_they_came_by() {
    let mut setup = Setup::multi(1);
    setup.terms.tcp_reset = true;
    let mut proxy = setup.proxy();
    let client = at(Ipv4Addr::new(10, 0, 1, 1), 50_000);
    // In a VLAN, so that the tag has to be remembered too.
    let tagged = |mut packet: Vec<u8>| {
        packet.splice(12..12, [0x81, 0, 0, 42]);
        packet
    };
    let untagged = |mut packet: Vec<u8>| {
        assert_eq!(packet[12..16], [0x81, 0, 0, 42]);
        packet.drain(12..16);
        packet
    };
    let syn = tagged(tcp(client, at(VIP, 80), "S"));
    let (verdict, frame) = give(&mut proxy, PortId(1), &syn);
    assert_eq!(verdict, Verdict::Forward(BACKEND));
    let backend = ends(&untagged(frame)).1;
    give(&mut proxy, BACKEND, &tagged(tcp(backend, client, "SA")));
    give(
        &mut proxy,
        PortId(1),
        &tagged(tcp(client, at(VIP, 80), "A")),
    );

    let mut memory = [[0; 256]; 4];
    let mut spare = Burst::new();
    for buffer in &mut memory {
        spare.push(Frame::new(buffer, 128, 0).unwrap()).unwrap();
    }
    proxy.advance(NOW + Duration::from_secs(300), &mut spare);
    let told: Vec<_> = spare
        .iter()
        .filter(|frame| !frame.is_empty())
        .map(|frame| (frame.verdict(), frame.bytes().to_vec()))
        .collect();
    assert_eq!(told.len(), 2);
    for (verdict, frame) in told {
        let frame = untagged(frame);
        let (from, to) = ends(&frame);
        assert_eq!(frame[14 + 20 + 13] & 0x04, 0x04);
        if verdict == Verdict::Forward(BACKEND) {
            assert_eq!((from, to), (client, backend));
            assert_eq!(frame[..12], [GATEWAY_MAC, CLIENT_MAC].concat());
        } else {
            assert_eq!(verdict, Verdict::Forward(PortId(1)));
            assert_eq!((from, to), (at(VIP, 80), client));
            assert_eq!(frame[..12], [CLIENT_MAC, GATEWAY_MAC].concat());
        }
    }
    // And a segment of no session is answered where it came from.
    let (verdict, frame) = give(&mut proxy, PortId(2), &tcp(client, at(VIP, 80), "A"));
    assert_eq!(verdict, Verdict::Reply);
    assert_eq!(ends(&frame), (at(VIP, 80), client));
    assert_eq!(frame[..6], CLIENT_MAC);
}

#[test]
fn segments_from_nobody_or_to_many_are_not_answered() {
    let mut setup = Setup::new(1);
    setup.terms.tcp_reset = true;
    let mut proxy = setup.proxy();
    let segment = tcp(at(CLIENT, 1), at(VIP, 80), "A");
    assert_eq!(give(&mut proxy, FRONTEND, &segment).0, Verdict::Reply);
    for place in [0, 6] {
        let mut to_many = segment.clone();
        to_many[place..place + 6].fill(0xff);
        let verdict = give(&mut proxy, FRONTEND, &to_many).0;
        assert_eq!(verdict, Verdict::Drop(DropReason::NoConnection));
    }
    for source in [
        Ipv4Addr::BROADCAST,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::new(224, 0, 0, 1),
    ] {
        let martian = tcp(at(source, 1), at(VIP, 80), "A");
        let verdict = give(&mut proxy, FRONTEND, &martian).0;
        assert_eq!(verdict, Verdict::Drop(DropReason::Martian), "{source}");
    }
}

#[test]
fn with_all_backends_down_new_sessions_are_refused_and_counted() {
    let mut setup = Setup::new(1);
    let mut proxy = setup.proxy();
    let sessions = all_open(&mut proxy, 3);
    setup.pools[0][0].2 = BackendState::Down;
    setup.install(&mut proxy);
    nobody_moved(&mut proxy, &sessions);
    let syn = tcp(at(CLIENT, 1), at(VIP, 80), "S");
    assert_eq!(
        give(&mut proxy, FRONTEND, &syn).0,
        Verdict::Drop(DropReason::NoBackend)
    );
    setup.terms.tcp_reset = true;
    setup.install(&mut proxy);
    assert_eq!(give(&mut proxy, FRONTEND, &syn).0, Verdict::Reply);
}
