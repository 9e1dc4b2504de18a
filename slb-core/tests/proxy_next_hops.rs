//! A proxy whose backends have next hops: each packet goes to its backend's, whatever MAC address the client
//! has for the VIP. So clients and backends may be in one subnet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
use slb_core::health::Condition;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendHealth, Frontend, FrontendPort, Pool, PoolHealth, Protocol, ProxyPorts, Rule,
    Spec, Terms, Underlay,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::{Burst, Frame, HEADROOM, Instant, Key, PortId, Proxy, Verdict};

const FRONTEND: PortId = PortId(0);
const BACKEND: PortId = PortId(1);
const NOW: Instant = Instant::from_secs(1_750_000_000);
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0c];
/// The MAC address that clients have for the VIP.
const VIP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0f];
/// The proxy's own, for backends whose router is the proxy.
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0e];

fn address(ipv6: bool, number: u8) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 0, 0, number).into()
    }
}

fn vip(ipv6: bool) -> IpAddr {
    address(ipv6, 100)
}

fn mac(server: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, server]
}

/// Servers with or without a next hop, by number.
#[derive(Clone)]
struct Setup {
    ipv6: bool,
    servers: Vec<(u8, Option<[u8; 6]>)>,
    is_sick: bool,
}

type Dut = Proxy<'static, Box<Snapshot<'static>>>;

impl Setup {
    fn new(ipv6: bool) -> Self {
        let servers = (1..=4).map(|number| (number, Some(mac(number))));
        Self {
            ipv6,
            servers: servers.collect(),
            is_sick: false,
        }
    }

    fn build(&self, previous: Option<&Snapshot<'_>>) -> Box<Snapshot<'static>> {
        let names: Vec<String> = (0..10).map(|number| format!("server{number}")).collect();
        let backend = |&(number, next_hop): &(u8, Option<[u8; 6]>)| Backend {
            name: &names[usize::from(number)],
            address: address(self.ipv6, number),
            next_hop: next_hop.map(MacAddress),
            ..Backend::default()
        };
        let backends: Vec<Backend<'_>> = self.servers.iter().map(backend).collect();
        let condition = match self.is_sick {
            true => Condition::Unhealthy,
            false => Condition::Healthy,
        };
        let health = vec![
            BackendHealth {
                condition,
                weight: None
            };
            backends.len()
        ];
        let rule = |name, protocol| Rule {
            name,
            protocol,
            health: Some(0),
            frontend_port: 80,
            backend_port: 8080,
            terms: Terms {
                tcp_reset: true,
                ..Terms::default()
            },
            ..Rule::default()
        };
        let spec = Spec {
            underlay: Underlay {
                mac: MacAddress(OWN_MAC),
                ..Underlay::default()
            },
            frontends: &[Frontend {
                name: "web",
                address: vip(self.ipv6),
                icmp_echo: Default::default(),
            }],
            rules: &[rule("http", Protocol::Tcp), rule("quic", Protocol::Udp)],
            pools: &[Pool {
                name: "servers",
                table_size: 1009,
                backends: &backends,
                ..Pool::default()
            }],
            health: &[PoolHealth {
                pool: 0,
                backends: &health,
            }],
            proxy: Some(ProxyPorts {
                frontends: &[FrontendPort {
                    port: FRONTEND,
                    address: None,
                }],
                backend: BACKEND,
                ..ProxyPorts::default()
            }),
            ..Spec::default()
        };
        Box::new(Snapshot::new(&spec, previous).unwrap())
    }

    fn proxy(&self) -> Dut {
        Proxy::with_capacity(self.build(None), 1 << 10, Key::new([1, 2])).unwrap()
    }

    fn install(&self, proxy: &mut Dut) {
        let next = self.build(Some(proxy.snapshot()));
        proxy.install(next).expect("it follows");
    }
}

fn give(proxy: &mut Dut, port: PortId, bytes: &[u8]) -> (Verdict, Vec<u8>) {
    let mut buffer = vec![0; HEADROOM + bytes.len() + HEADROOM];
    buffer[HEADROOM..][..bytes.len()].copy_from_slice(bytes);
    let mut frame = Frame::new(&mut buffer, HEADROOM, bytes.len()).unwrap();
    frame.set_port(port);
    proxy.process(NOW, std::slice::from_mut(&mut frame));
    (frame.verdict(), frame.bytes().to_vec())
}

/// A segment, or a datagram where no flags are given.
fn packet(macs: [[u8; 6]; 2], ends: [(IpAddr, u16); 2], flags: Option<&str>) -> Vec<u8> {
    let [(from, from_port), (to, to_port)] = ends;
    let step = PacketBuilder::ethernet2(macs[0], macs[1]);
    let step = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => step.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => step.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!(),
    };
    let mut bytes = Vec::new();
    let Some(flags) = flags else {
        let step = step.udp(from_port, to_port);
        step.write(&mut bytes, b"question").unwrap();
        return bytes;
    };
    let mut step = step.tcp(from_port, to_port, 1000, 4096);
    if flags.contains('S') {
        step = step.syn();
    }
    if flags.contains('A') {
        step = step.ack(1001);
    }
    step.write(&mut bytes, b"").unwrap();
    bytes
}

/// The same with a VLAN tag.
fn tagged(packet: &[u8]) -> Vec<u8> {
    [&packet[..12], &[0x81, 0, 0, 5], &packet[12..]].concat()
}

fn destination(frame: &[u8]) -> IpAddr {
    let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
    match headers.net.unwrap() {
        etherparse::NetHeaders::Ipv4(ip, _) => Ipv4Addr::from(ip.destination).into(),
        etherparse::NetHeaders::Ipv6(ip, _) => Ipv6Addr::from(ip.destination).into(),
        etherparse::NetHeaders::Arp(_) => unreachable!(),
    }
}

fn number_of(server: IpAddr) -> u8 {
    (1..10)
        .find(|&number| {
            [false, true]
                .map(|ipv6| address(ipv6, number))
                .contains(&server)
        })
        .unwrap()
}

#[test]
fn each_packet_goes_to_the_next_hop_of_its_backend() {
    for ipv6 in [false, true] {
        let mut proxy = Setup::new(ipv6).proxy();
        let mut reached = [0; 10];
        for port in 1000..1200 {
            for (flags, with_tag) in [(Some("S"), false), (Some("S"), true), (None, false)] {
                let client = address(ipv6, 50 + u8::from(with_tag));
                let to = (vip(ipv6), 80);
                let there = packet([CLIENT_MAC, VIP_MAC], [(client, port), to], flags);
                let there = if with_tag { tagged(&there) } else { there };
                let (verdict, sent) = give(&mut proxy, FRONTEND, &there);
                assert_eq!(verdict, Verdict::Forward(BACKEND));
                let server = number_of(destination(&sent));
                assert_eq!(sent[..6], mac(server), "{port} {flags:?}");
                assert_eq!(sent[6..12], CLIENT_MAC, "the client stays the source");
                assert_eq!(sent[12..14], there[12..14], "the tag stays");
                reached[usize::from(server)] += 1;
                // The answer's link header stays: the server knows the client's MAC address.
                let own = (address(ipv6, server), 8080);
                let flags = flags.map(|_| "SA");
                let back = packet([mac(server), CLIENT_MAC], [own, (client, port)], flags);
                let (verdict, sent) = give(&mut proxy, BACKEND, &back);
                assert_eq!(verdict, Verdict::Forward(FRONTEND));
                assert_eq!(sent[..12], back[..12]);
                // Later packets go where the first one went.
                let (_, again) = give(&mut proxy, FRONTEND, &there);
                assert_eq!(again[..6], mac(server));
            }
        }
        assert!(
            reached[1..=4].iter().all(|&count| count > 50),
            "{reached:?}"
        );
    }
}

#[test]
fn answers_to_the_proxys_own_mac_address_go_where_the_client_came_from() {
    let mut proxy = Setup::new(false).proxy();
    let ends = [(address(false, 50), 1000), (vip(false), 80)];
    let there = packet([CLIENT_MAC, OWN_MAC], ends, Some("S"));
    let (_, sent) = give(&mut proxy, FRONTEND, &there);
    let server = number_of(destination(&sent));
    assert_eq!(sent[..6], mac(server));
    let ends = [(address(false, server), 8080), ends[0]];
    let (verdict, sent) = give(
        &mut proxy,
        BACKEND,
        &packet([mac(server), OWN_MAC], ends, Some("SA")),
    );
    assert_eq!(verdict, Verdict::Forward(FRONTEND));
    assert_eq!(sent[..6], CLIENT_MAC);
    assert_eq!(sent[6..12], mac(server));
}

#[test]
fn without_next_hops_link_headers_stay() {
    let mut setup = Setup::new(false);
    // One that has none beside others that have one, and none at all.
    for next_hop in [Some(mac(2)), None] {
        setup.servers = vec![(1, None), (2, next_hop)];
        let mut proxy = setup.proxy();
        for port in 1000..1050 {
            let ends = [(address(false, 50), port), (vip(false), 80)];
            let there = packet([CLIENT_MAC, VIP_MAC], ends, Some("S"));
            let (_, sent) = give(&mut proxy, FRONTEND, &there);
            let to = match number_of(destination(&sent)) {
                2 => next_hop.unwrap_or(VIP_MAC),
                _ => VIP_MAC,
            };
            assert_eq!(sent[..6], to);
            assert_eq!(sent[6..12], CLIENT_MAC);
        }
    }
}

#[test]
fn a_connection_keeps_its_next_hop_when_its_backend_is_no_longer_configured() {
    let mut setup = Setup::new(false);
    setup.servers.truncate(1);
    let mut proxy = setup.proxy();
    let ends = [(address(false, 50), 1000), (vip(false), 80)];
    let syn = packet([CLIENT_MAC, VIP_MAC], ends, Some("S"));
    let (_, sent) = give(&mut proxy, FRONTEND, &syn);
    assert_eq!(sent[..6], mac(1));
    let back = [(address(false, 1), 8080), ends[0]];
    give(
        &mut proxy,
        BACKEND,
        &packet([mac(1), CLIENT_MAC], back, Some("SA")),
    );
    let ack = packet([CLIENT_MAC, VIP_MAC], ends, Some("A"));
    // It moves to another MAC address, as where a network card is replaced.
    setup.servers = vec![(1, Some([2, 0, 0, 0, 9, 9]))];
    setup.install(&mut proxy);
    assert_eq!(give(&mut proxy, FRONTEND, &ack).1[..6], [2, 0, 0, 0, 9, 9]);
    for servers in [vec![(2, Some(mac(2)))], Vec::new()] {
        setup.servers = servers;
        setup.install(&mut proxy);
        let (verdict, sent) = give(&mut proxy, FRONTEND, &ack);
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        assert_eq!(destination(&sent), address(false, 1));
        // That it had when the connection began.
        assert_eq!(sent[..6], mac(1));
    }
}

#[test]
fn resets_of_the_proxys_own_go_to_the_backends_next_hop() {
    let mut setup = Setup::new(false);
    let mut proxy = setup.proxy();
    let ends = [(address(false, 50), 1000), (vip(false), 80)];
    let there = packet([CLIENT_MAC, VIP_MAC], ends, Some("S"));
    let (_, sent) = give(&mut proxy, FRONTEND, &there);
    let server = number_of(destination(&sent));
    let back = [(address(false, server), 8080), ends[0]];
    give(
        &mut proxy,
        BACKEND,
        &packet([mac(server), CLIENT_MAC], back, Some("SA")),
    );
    give(
        &mut proxy,
        FRONTEND,
        &packet([CLIENT_MAC, VIP_MAC], ends, Some("A")),
    );
    setup.is_sick = true;
    setup.install(&mut proxy);
    let mut buffers = [[0; 256]; 2];
    let mut spare = Burst::new();
    for buffer in &mut buffers {
        spare
            .push(Frame::new(buffer, HEADROOM, 0).unwrap())
            .unwrap();
    }
    for step in 0..200 {
        proxy.advance(NOW + Duration::from_millis(50 * step), &mut spare);
        if spare.iter().all(|frame| !frame.is_empty()) {
            break;
        }
    }
    let mut told = 0;
    for frame in spare.iter() {
        let headers = PacketHeaders::from_ethernet_slice(frame.bytes()).unwrap();
        assert!(matches!(headers.transport, Some(TransportHeader::Tcp(tcp)) if tcp.rst));
        let bytes = frame.bytes();
        match frame.verdict() {
            Verdict::Forward(BACKEND) => assert_eq!(bytes[..6], mac(server)),
            Verdict::Forward(FRONTEND) => assert_eq!(bytes[..6], CLIENT_MAC),
            other => panic!("{other:?}"),
        }
        told += 1;
    }
    assert_eq!(told, 2);
}
