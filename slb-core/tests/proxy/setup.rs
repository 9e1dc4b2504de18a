//! Configurations, packets and the proxy under test.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpEthIpv4Packet, ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder,
};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, FrontendPort, Pool, PortMode, Protocol, ProxyPorts,
    Rule, Scheduler, SourceRewrite, Spec, SpecError, Terms,
};
use slb_core::{Frame, HEADROOM, Instant, Key, PortId, Proxy, Verdict};

pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(20, 20, 20, 100);
pub(crate) const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
pub(crate) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
pub(crate) const FRONTEND: PortId = PortId(0);
pub(crate) const BACKEND: PortId = PortId(7);
pub(crate) const NOW: Instant = Instant::from_secs(1_750_000_000);
pub(crate) const KEY: Key = Key::new([5, 6]);

pub(crate) fn server(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, 1, number as u8)
}

/// A configuration to be changed: backends by number, weight and state, of a pool for each protocol.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) ports: Vec<FrontendPort>,
    pub(crate) mode: PortMode,
    /// The pools of TCP, UDP and the other protocols.
    pub(crate) pools: [Vec<(usize, u32, BackendState)>; 3],
    pub(crate) scheduler: Scheduler,
    pub(crate) terms: Terms,
    pub(crate) echo: Echo,
    /// True if echo requests have a rule.
    pub(crate) ping: bool,
    pub(crate) rewrites: Vec<SourceRewrite>,
    pub(crate) ipv6: bool,
}

impl Setup {
    pub(crate) fn new(backends: usize) -> Self {
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
    pub(crate) fn multi(backends: usize) -> Self {
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

    pub(crate) fn build(
        &self,
        previous: Option<&Snapshot<'_>>,
    ) -> Result<Snapshot<'static>, SpecError> {
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

    pub(crate) fn proxy(&self) -> Dut {
        Proxy::with_capacity(Box::new(self.build(None).unwrap()), 1 << 14, KEY).expect("its role")
    }

    pub(crate) fn install(&self, proxy: &mut Dut) {
        let next = Box::new(self.build(Some(proxy.snapshot())).unwrap());
        proxy.install(next).expect("it follows");
    }
}

pub(crate) type Dut = Proxy<'static, Box<Snapshot<'static>>>;

/// Gives the proxy a frame; returns what becomes of it.
pub(crate) fn give_at(
    proxy: &mut Dut,
    now: Instant,
    port: PortId,
    bytes: &[u8],
) -> (Verdict, Vec<u8>) {
    let mut buffer = vec![0xa5; HEADROOM + bytes.len() + HEADROOM];
    buffer[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
    let mut frame = Frame::new(&mut buffer, HEADROOM, bytes.len()).unwrap();
    frame.set_port(port);
    proxy.process(now, std::slice::from_mut(&mut frame));
    (frame.verdict(), frame.bytes().to_vec())
}

pub(crate) fn give(proxy: &mut Dut, port: PortId, bytes: &[u8]) -> (Verdict, Vec<u8>) {
    give_at(proxy, NOW, port, bytes)
}

pub(crate) use crate::common::{Endpoint, ends};

pub(crate) fn at(address: impl Into<IpAddr>, port: u16) -> Endpoint {
    (address.into(), port)
}

pub(crate) fn link(
    from: IpAddr,
    to: IpAddr,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let link = PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("of one family"),
    }
}

pub(crate) fn tcp(from: Endpoint, to: Endpoint, flags: &str) -> Vec<u8> {
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

pub(crate) fn udp(from: Endpoint, to: Endpoint) -> Vec<u8> {
    let mut packet = Vec::new();
    link(from.0, to.0)
        .udp(from.1, to.1)
        .write(&mut packet, b"question")
        .unwrap();
    packet
}

pub(crate) fn ping(from: IpAddr, to: IpAddr, identifier: u16, reply: bool) -> Vec<u8> {
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

pub(crate) fn arp(operation: ArpOperation, target: Ipv4Addr) -> Vec<u8> {
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

/// Sends the first packet of a client's session; returns the backend that it reached.
pub(crate) fn open(proxy: &mut Dut, client: Endpoint) -> Endpoint {
    let (verdict, frame) = give(proxy, FRONTEND, &tcp(client, at(VIP, 80), "S"));
    assert_eq!(verdict, Verdict::Forward(BACKEND));
    let (from, to) = ends(&frame);
    assert_eq!(from, client);
    to
}

pub(crate) fn clients(count: u32) -> impl Iterator<Item = Endpoint> {
    (0..count).map(|n| {
        let address = Ipv4Addr::from_bits(CLIENT.to_bits() + n % 199);
        at(address, 10_000 + (n / 199) as u16)
    })
}

/// Opens many sessions; returns the backend of each client.
pub(crate) fn all_open(proxy: &mut Dut, count: u32) -> HashMap<Endpoint, Endpoint> {
    let open_one = |client| {
        let backend = open(proxy, client);
        give(proxy, BACKEND, &tcp(backend, client, "SA"));
        give(proxy, FRONTEND, &tcp(client, at(VIP, 80), "A"));
        (client, backend)
    };
    clients(count).map(open_one).collect()
}

pub(crate) fn nobody_moved(proxy: &mut Dut, sessions: &HashMap<Endpoint, Endpoint>) {
    for (&client, &backend) in sessions {
        let (verdict, frame) = give(proxy, FRONTEND, &tcp(client, at(VIP, 80), "A"));
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        assert_eq!(ends(&frame).1, backend);
        let (verdict, frame) = give(proxy, BACKEND, &tcp(backend, client, "A"));
        assert_eq!(verdict, Verdict::Forward(FRONTEND));
        assert_eq!(ends(&frame), (at(VIP, 80), client));
    }
}
