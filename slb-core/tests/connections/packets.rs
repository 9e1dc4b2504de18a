//! How connections of the host agent and the proxy begin, begin anew and end: the numbers and the
//! timers that count, in each role, family and direction.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::{
    IpNumber, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice,
};
use slb_core::nat::ConnectionState::{self, *};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, FrontendPort, Outbound, Pool, Protocol, ProxyPorts, Rule, Spec, Terms,
    Underlay, derived_mac,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{Burst, Frame, HEADROOM, Host, Instant, Key, PortId, Proxy, Verdict};

const KEY: Key = Key::new([5, 6]);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
/// Of a host agent the fabric, of a proxy the clients.
const OUTSIDE: PortId = PortId(0);
/// Of a host agent the vm, of a proxy the backends.
const INSIDE: PortId = PortId(1);
/// The port of the second vm of a host.
const BESIDE: PortId = PortId(7);
const VNI: u32 = 5001;
/// The idle timeout of every rule.
const IDLE: u64 = 1800;
const START: Instant = Instant::from_secs(1_750_000_000);

type Endpoint = (IpAddr, u16);

fn vip(ipv6: bool, number: u8) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::new(20, 20, 20, 100 + number).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100 + u16::from(number)).into(),
    }
}

fn server(ipv6: bool) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::new(10, 10, 1, 11).into(),
        true => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x11).into(),
    }
}

/// A vm of another host in the same network.
fn neighbour(ipv6: bool) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::new(10, 10, 1, 12).into(),
        true => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x12).into(),
    }
}

/// A machine of the inside that is no backend, and so no neighbour.
fn inside(ipv6: bool) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::new(10, 77, 0, 5).into(),
        true => Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 5).into(),
    }
}

fn client(ipv6: bool) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::new(198, 51, 100, 7).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7).into(),
    }
}

fn vm_mac() -> MacAddress {
    derived_mac(server(false))
}

/// Two VIPs of each family with rules for TCP, UDP and echo. They lead to one server, which may
/// call out from behind a host agent.
fn snapshot(is_proxy: bool, tcp_reset: bool) -> Snapshot<'static> {
    let backends = [false, true].map(|ipv6| {
        let backend = Backend {
            name: "one",
            address: server(ipv6),
            ..Backend::default()
        };
        let at_host = Backend {
            host: HOST.into(),
            mac: Some(vm_mac()),
            port: Some(INSIDE),
            ..backend
        };
        let neighbour = Backend {
            name: "neighbour",
            address: neighbour(ipv6),
            host: HOST.into(),
            mac: Some(derived_mac(neighbour(false))),
            port: Some(BESIDE),
            weight: 0,
            ..Backend::default()
        };
        if is_proxy {
            vec![backend]
        } else {
            vec![at_host, neighbour]
        }
    });
    let pool = |name, backends| Pool {
        name,
        vni: Vni::new(VNI).unwrap(),
        table_size: 3,
        backends,
        ..Pool::default()
    };
    let frontend = |name, ipv6, number| Frontend {
        name,
        address: vip(ipv6, number),
        icmp_echo: Echo::Answer,
    };
    let rule = |name, frontend: usize, protocol, frontend_port, backend_port| Rule {
        name,
        frontend,
        pool: frontend % 2,
        protocol,
        frontend_port,
        backend_port,
        idle_timeout: Duration::from_secs(IDLE),
        terms: Terms {
            tcp_reset,
            ..Terms::default()
        },
        ..Rule::default()
    };
    let (tcp, udp, echo) = (Protocol::Tcp, Protocol::Udp, Protocol::Icmp);
    let outbound = |name, frontends, pool| Outbound {
        name,
        frontends,
        pool,
        protocol: Protocol::All,
        allocated_outbound_ports: Some(64),
        idle_timeout: Duration::from_secs(IDLE),
        tcp_reset,
    };
    let outbounds = [outbound("out4", &[0], 0), outbound("out6", &[1], 1)];
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            port: OUTSIDE,
            ..Underlay::default()
        },
        frontends: &[
            frontend("v4", false, 0),
            frontend("v6", true, 0),
            frontend("v4b", false, 1),
            frontend("v6b", true, 1),
        ],
        rules: &[
            rule("t4", 0, tcp, 80, 8080),
            rule("t6", 1, tcp, 80, 8080),
            rule("t4b", 2, tcp, 80, 8080),
            rule("t6b", 3, tcp, 80, 8080),
            rule("u4", 0, udp, 53, 53),
            rule("u6", 1, udp, 53, 53),
            rule("u4b", 2, udp, 53, 53),
            rule("u6b", 3, udp, 53, 53),
            rule("e4", 0, echo, 0, 0),
            rule("e6", 1, echo, 0, 0),
            rule("e4b", 2, echo, 0, 0),
            rule("e6b", 3, echo, 0, 0),
        ],
        pools: &[pool("p4", &backends[0]), pool("p6", &backends[1])],
        outbound: if is_proxy { &[] } else { &outbounds },
        proxy: is_proxy.then_some(ProxyPorts {
            frontends: &[FrontendPort {
                port: OUTSIDE,
                address: None,
            }],
            backend: INSIDE,
            ..ProxyPorts::default()
        }),
        ..Spec::default()
    };
    Snapshot::new(&spec, None).unwrap()
}

/// Who translates, and whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Proxy,
    /// A proxy whose frames have a VLAN tag.
    TaggedProxy,
    Host,
    /// A host agent, whose vm calls out.
    Snat,
}

const ROLES: [Role; 4] = [Role::Proxy, Role::TaggedProxy, Role::Host, Role::Snat];

/// Every role with every family.
fn worlds() -> impl Iterator<Item = World> {
    worlds_with(true)
}

fn worlds_with(tcp_reset: bool) -> impl Iterator<Item = World> {
    let families = [false, true];
    let all = ROLES
        .into_iter()
        .flat_map(move |role| families.map(|ipv6| (role, ipv6)));
    all.map(move |(role, ipv6)| World::new(role, ipv6, tcp_reset))
}

enum Dut {
    Proxy(Box<Proxy<'static, Box<Snapshot<'static>>>>),
    Host(Box<Host<'static, Box<Snapshot<'static>>>>),
}

/// What became of a packet: where it went, and who sees whom in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    port: PortId,
    from: Endpoint,
    to: Endpoint,
}

/// One translator, an opener and a responder.
struct World {
    dut: Dut,
    role: Role,
    ipv6: bool,
    now: Instant,
    /// The opener's own name, and whom it calls.
    asks: (Endpoint, Endpoint),
    /// The responder's own name, and who calls it.
    answers: (Endpoint, Endpoint),
}

/// A segment, as far as it matters here.
#[derive(Clone, Copy, Debug, Default)]
struct Seg {
    flags: &'static str,
    seq: u32,
    ack: u32,
    len: usize,
    scale: Option<u8>,
}

fn seg(flags: &'static str, seq: u32, ack: u32) -> Seg {
    Seg {
        flags,
        seq,
        ack,
        ..Seg::default()
    }
}

fn data(seq: u32, ack: u32, len: usize) -> Seg {
    Seg {
        len,
        ..seg("A", seq, ack)
    }
}

fn scaled(seg: Seg, scale: Option<u8>) -> Seg {
    Seg { scale, ..seg }
}

fn ip(from: Endpoint, to: Endpoint) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    match (from.0, to.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("of one family"),
    }
}

fn segment(from: Endpoint, to: Endpoint, seg: Seg) -> Vec<u8> {
    let mut header = TcpHeader::new(from.1, to.1, seg.seq, 65_535);
    header.syn = seg.flags.contains('S');
    header.fin = seg.flags.contains('F');
    header.rst = seg.flags.contains('R');
    header.ack = seg.flags.contains('A');
    header.acknowledgment_number = seg.ack;
    if let Some(scale) = seg.scale {
        header
            .set_options(&[TcpOptionElement::WindowScale(scale)])
            .unwrap();
    }
    let mut packet = Vec::new();
    let step = ip(from, to).tcp_header(header);
    step.write(&mut packet, &vec![0x55; seg.len]).unwrap();
    packet
}

fn datagram(from: Endpoint, to: Endpoint) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = ip(from, to).udp(from.1, to.1);
    step.write(&mut packet, b"datagram").unwrap();
    packet
}

/// An echo request or reply, whose identifier is the port of its asking end.
fn echo(from: Endpoint, to: Endpoint, is_reply: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = ip(from, to);
    let data = b"ping";
    match (from.0.is_ipv4(), is_reply) {
        (true, false) => step.icmpv4_echo_request(from.1, 1).write(&mut packet, data),
        (true, true) => step.icmpv4_echo_reply(to.1, 1).write(&mut packet, data),
        (false, false) => step.icmpv6_echo_request(from.1, 1).write(&mut packet, data),
        (false, true) => step.icmpv6_echo_reply(to.1, 1).write(&mut packet, data),
    }
    .unwrap();
    packet
}

/// "Packet too big", about a segment that `from` sent with this number, from a router.
fn too_big(from: Endpoint, to: Endpoint, seq: u32) -> Vec<u8> {
    let quoted = segment(from, to, data(seq, 1, 1400));
    let router = match from.0 {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::new(203, 0, 113, 9)),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9).into(),
    };
    let mut packet = Vec::new();
    let step = ip((router, 0), (from.0, 0));
    if from.0.is_ipv4() {
        let needed =
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1280 };
        step.icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(needed))
            .write(&mut packet, &quoted[..64])
    } else {
        step.icmpv6(etherparse::Icmpv6Type::PacketTooBig { mtu: 1280 })
            .write(&mut packet, &quoted[..200])
    }
    .unwrap();
    packet
}

/// "Host unreachable" about a whole packet.
fn unreachable(from: IpAddr, to: IpAddr, about: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = ip((from, 0), (to, 0));
    if from.is_ipv4() {
        let host = etherparse::icmpv4::DestUnreachableHeader::Host;
        step.icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(host))
            .write(&mut packet, about)
    } else {
        let address = etherparse::icmpv6::DestUnreachableCode::Address;
        step.icmpv6(etherparse::Icmpv6Type::DestinationUnreachable(address))
            .write(&mut packet, about)
    }
    .unwrap();
    packet
}

const TAG: [u8; 4] = [0x81, 0, 0, 42];

impl World {
    fn new(role: Role, ipv6: bool, tcp_reset: bool) -> Self {
        let dut = match role {
            Role::Proxy | Role::TaggedProxy => {
                let snapshot = Box::new(snapshot(true, tcp_reset));
                Dut::Proxy(Box::new(
                    Proxy::with_capacity(snapshot, 1 << 10, KEY).expect("its role"),
                ))
            }
            Role::Host | Role::Snat => {
                let snapshot = Box::new(snapshot(false, tcp_reset));
                Dut::Host(Box::new(
                    Host::with_capacity(snapshot, 1 << 10, KEY).expect("its role"),
                ))
            }
        };
        let asks = match role {
            Role::Snat => ((server(ipv6), 50_000), (client(ipv6), 443)),
            _ => ((client(ipv6), 50_000), (vip(ipv6, 0), 80)),
        };
        Self {
            dut,
            role,
            ipv6,
            now: START,
            asks,
            answers: asks,
        }
    }

    fn name(&self) -> String {
        format!("{:?}, IPv{}", self.role, if self.ipv6 { 6 } else { 4 })
    }

    /// Whether the opener is outside.
    fn is_inbound(&self) -> bool {
        self.role != Role::Snat
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    /// The frame around a packet that comes from one side.
    fn framed(&self, port: PortId, packet: &[u8]) -> Vec<u8> {
        let ether_type: [u8; 2] = if packet[0] >> 4 == 6 {
            [0x86, 0xdd]
        } else {
            [8, 0]
        };
        let (outer, vm) = ([2, 0, 0, 0, 0, 1], vm_mac().0);
        let tag: &[u8] = match self.role {
            Role::TaggedProxy => &TAG,
            _ => &[],
        };
        match (self.role, port) {
            (Role::Host | Role::Snat, OUTSIDE) => {
                let mut payload = vec![8, 0, 0, 0, 0, 0x13, 0x89, 0];
                payload.extend([&vm[..], &outer, &ether_type, packet].concat());
                let mut frame = Vec::new();
                PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], outer)
                    .ipv4([172, 16, 0, 11], HOST.octets(), 64)
                    .udp(50_000, 4789)
                    .write(&mut frame, &payload)
                    .unwrap();
                frame
            }
            (_, OUTSIDE) => [&vm[..], &outer, tag, &ether_type, packet].concat(),
            _ => [&outer[..], &vm, tag, &ether_type, packet].concat(),
        }
    }

    /// Gives the translator a packet that comes from one side.
    fn give(&mut self, port: PortId, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let frame = self.framed(port, packet);
        let mut buffer = vec![0; HEADROOM + frame.len() + 64];
        buffer[HEADROOM..HEADROOM + frame.len()].copy_from_slice(&frame);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, frame.len()).unwrap()];
        frames[0].set_port(port);
        match &mut self.dut {
            Dut::Proxy(proxy) => proxy.process(self.now, &mut frames),
            Dut::Host(host) => host.process(self.now, &mut frames),
        }
        (frames[0].verdict(), frames[0].bytes().to_vec())
    }

    /// The same where it is to be sent on: who sees whom.
    fn pass(&mut self, port: PortId, packet: &[u8]) -> Option<Seen> {
        let (verdict, frame) = self.give(port, packet);
        match verdict {
            Verdict::Forward(port) => Some(seen(port, &frame)),
            _ => None,
        }
    }

    fn sides(&self) -> (PortId, PortId) {
        if self.is_inbound() {
            (OUTSIDE, INSIDE)
        } else {
            (INSIDE, OUTSIDE)
        }
    }

    /// A segment of the opener's; it has to reach the responder.
    fn opener(&mut self, seg: Seg) {
        let packet = segment(self.asks.0, self.asks.1, seg);
        let (from, to) = self.sides();
        let seen = self.pass(from, &packet);
        let seen = seen.unwrap_or_else(|| panic!("{}: {seg:?} is lost", self.name()));
        assert_eq!(seen.port, to);
        if seg.flags == "S" {
            self.answers = (seen.to, seen.from);
        }
        assert_eq!((seen.to, seen.from), self.answers, "{}", self.name());
    }

    /// A segment of the responder's; it has to reach the opener.
    fn responder(&mut self, seg: Seg) {
        let packet = segment(self.answers.0, self.answers.1, seg);
        let (to, from) = self.sides();
        let seen = self.pass(from, &packet);
        let seen = seen.unwrap_or_else(|| panic!("{}: {seg:?} is lost", self.name()));
        assert_eq!(seen.port, to);
        assert_eq!((seen.to, seen.from), self.asks, "{}", self.name());
    }

    /// Opens a connection from these numbers.
    fn open(&mut self, own: u32, theirs: u32) {
        self.opener(seg("S", own, 0));
        self.responder(seg("SA", theirs, own.wrapping_add(1)));
        self.opener(seg("A", own.wrapping_add(1), theirs.wrapping_add(1)));
        assert_eq!(self.state(), Some(Established), "{}", self.name());
    }

    /// Lets the translator do what is due, for two rounds of its sweep; returns the RSTs that it
    /// sends: to whom, with which number.
    fn sweep(&mut self) -> Vec<(Endpoint, u32)> {
        let mut told = Vec::new();
        for _ in 0..64 {
            let mut memory = vec![[0u8; 256]; 4];
            let mut spare = Burst::new();
            for buffer in &mut memory {
                spare.push(Frame::new(buffer, 128, 0).unwrap()).unwrap();
            }
            match &mut self.dut {
                Dut::Proxy(proxy) => proxy.advance(self.now, &mut spare),
                Dut::Host(host) => host.advance(self.now, &mut spare),
            }
            for frame in spare.iter().filter(|frame| !frame.is_empty()) {
                let (Verdict::Forward(port), bytes) = (frame.verdict(), frame.bytes().to_vec())
                else {
                    panic!("{:?}", frame.verdict())
                };
                let sliced = SlicedPacket::from_ethernet(&bytes).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
                    panic!("{bytes:02x?}")
                };
                assert!(tcp.rst());
                told.push((seen(port, &bytes).to, tcp.sequence_number()));
            }
            self.now = self.now + Duration::from_millis(40);
        }
        told
    }

    /// The state of the connection whose outside name is this world's.
    fn state(&self) -> Option<ConnectionState> {
        let table = match &self.dut {
            Dut::Proxy(proxy) => proxy.connections(),
            Dut::Host(host) => host.connections(),
        };
        let all = table.ipv4_from(0).chain(table.ipv6_from(0));
        let mut states = all.map(|(_, connection)| connection.state);
        let state = states.next();
        assert_eq!(states.next(), None, "there is one connection");
        state
    }

    /// Whether "packet too big" about a segment of the inner end's with this number passes.
    fn tells_of_mtu(&mut self, seq: u32) -> bool {
        // As the outside sees the inner end.
        let (inner, outer) = match self.is_inbound() {
            true => (self.asks.1, self.asks.0),
            false => (self.answers.1, self.answers.0),
        };
        let (verdict, _) = self.give(OUTSIDE, &too_big(inner, outer, seq));
        verdict == Verdict::Forward(INSIDE)
    }

    /// Waits until the connection has been idle for long enough, and checks the RSTs' numbers.
    fn ends_idle(&mut self, opener_expects: u32, responder_expects: u32) {
        let name = self.name();
        self.wait(IDLE - 10);
        assert_eq!(self.sweep(), [], "{name}");
        assert_eq!(self.state(), Some(Established), "{name}");
        self.wait(20);
        let mut told = self.sweep();
        told.sort_by_key(|&(to, _)| to != self.asks.0);
        let expected = [
            (self.asks.0, opener_expects),
            (self.answers.0, responder_expects),
        ];
        assert_eq!(told, expected, "{name}");
        assert_eq!(self.state(), None, "{name}");
    }
}

/// Who is seen by whom in a frame, whose checksums are right.
fn seen(port: PortId, frame: &[u8]) -> Seen {
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
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let (header, protocol) = match sliced.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => (tcp.slice(), IpNumber::TCP),
        TransportSlice::Udp(udp) => (udp.slice(), IpNumber::UDP),
        TransportSlice::Icmpv4(icmp) => {
            let sum = icmp.header().icmp_type.calc_checksum(icmp.payload());
            assert_eq!(icmp.checksum(), sum);
            let (from_port, to_port) = match icmp.header().icmp_type {
                etherparse::Icmpv4Type::EchoRequest(echo) => (echo.id, 0),
                etherparse::Icmpv4Type::EchoReply(echo) => (0, echo.id),
                _ => (0, 0),
            };
            let (from, to) = ((from, from_port), (to, to_port));
            return Seen { port, from, to };
        }
        TransportSlice::Icmpv6(icmp) => {
            let (IpAddr::V6(a), IpAddr::V6(b)) = (from, to) else {
                panic!("of one family");
            };
            assert!(icmp.is_checksum_valid(a.octets(), b.octets()));
            let (from_port, to_port) = match icmp.header().icmp_type {
                etherparse::Icmpv6Type::EchoRequest(echo) => (echo.id, 0),
                etherparse::Icmpv6Type::EchoReply(echo) => (0, echo.id),
                _ => (0, 0),
            };
            let (from, to) = ((from, from_port), (to, to_port));
            return Seen { port, from, to };
        }
        TransportSlice::Igmp(_) => panic!("IGMP"),
    };
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let len = u32::try_from(header.len()).unwrap();
    let pseudo = [
        octets(from),
        octets(to),
        len.to_be_bytes().to_vec(),
        u32::from(protocol.0).to_be_bytes().to_vec(),
        header.to_vec(),
    ]
    .concat();
    let sum: u64 = pseudo
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    assert_eq!(sum % 0xffff, 0, "the checksum is right");
    let port_at = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    Seen {
        port,
        from: (from, port_at(0)),
        to: (to, port_at(2)),
    }
}

/// How the connection before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    BothFins,
    OpenersFin,
    RespondersFin,
    Reset,
    Unseen,
}

const ENDS: [(End, ConnectionState); 5] = [
    (End::BothFins, TimeWait),
    (End::OpenersFin, FinWaitInward),
    (End::RespondersFin, FinWaitOutward),
    (End::Reset, Closed),
    (End::Unseen, Established),
];

/// Numbers of the old connection.
const OLD: (u32, u32) = (1_500_000_000, 3_000_000_000);

impl World {
    /// An old connection that ended so; returns its state.
    fn old(&mut self, end: End) -> ConnectionState {
        self.open(OLD.0, OLD.1);
        let (own, theirs) = (OLD.0 + 1, OLD.1 + 1);
        match end {
            End::BothFins => {
                self.opener(seg("FA", own, theirs));
                self.responder(seg("FA", theirs, own + 1));
                self.opener(seg("A", own + 1, theirs + 1));
            }
            End::OpenersFin => self.opener(seg("FA", own, theirs)),
            End::RespondersFin => self.responder(seg("FA", theirs, own)),
            End::Reset => self.opener(seg("R", own, 0)),
            End::Unseen => {}
        }
        let (_, state) = ENDS[ENDS.iter().position(|&(other, _)| other == end).unwrap()];
        match (self.is_inbound(), state) {
            (false, FinWaitInward) => FinWaitOutward,
            (false, FinWaitOutward) => FinWaitInward,
            (_, state) => state,
        }
    }
}

/// An ISN below the old connection's numbers, one above, and one that wraps.
const NEW: [u32; 3] = [1000, 2_000_000_000, u32::MAX];

#[test]
fn an_answered_syn_on_a_used_port_begins_a_new_connection() {
    for (end, _) in ENDS {
        for own in NEW {
            for mut world in worlds() {
                let name = format!("{end:?}, {own}, {}", world.name());
                world.old(end);
                world.wait(5);
                let theirs = 900_000;
                let [a, b] = [own.wrapping_add(1), theirs + 1];
                world.opener(scaled(seg("S", own, 0), Some(7)));
                world.responder(scaled(seg("SA", theirs, a), Some(9)));
                assert_eq!(world.state(), Some(SynReceived), "{name}");
                world.opener(seg("A", a, b));
                assert_eq!(world.state(), Some(Established), "{name}");
                // Its timer is the rule's.
                for _ in 0..3 {
                    world.wait(IDLE - 10);
                    world.responder(seg("A", b, a));
                    world.sweep();
                    assert_eq!(world.state(), Some(Established), "{name}");
                }
                // Its sequence numbers and window scales are the new ones: 200 000 bytes each way.
                let mut sent = 0;
                while sent < 200_000 {
                    world.opener(data(a.wrapping_add(sent), b, 1000));
                    world.responder(data(b.wrapping_add(sent), a, 1000));
                    sent += 1000;
                }
                let inner = if world.is_inbound() { b } else { a };
                assert!(world.tells_of_mtu(inner), "{name}");
                assert!(world.tells_of_mtu(inner.wrapping_add(199_000)), "{name}");
                assert!(!world.tells_of_mtu(inner.wrapping_add(201_000)), "{name}");
                let old = if world.is_inbound() { OLD.1 } else { OLD.0 };
                assert!(!world.tells_of_mtu(old + 1), "{name}");
                world.ends_idle(b.wrapping_add(sent), a.wrapping_add(sent));
            }
        }
    }
}

#[test]
fn the_new_connections_scale_holds_whatever_the_old_ones_was() {
    for (old, new, is_scaled) in [
        ((None, None), (Some(7), Some(7)), true),
        ((Some(7), Some(7)), (None, None), false),
        ((Some(7), Some(7)), (Some(7), None), false),
        ((Some(14), Some(14)), (None, Some(7)), false),
    ] {
        for mut world in worlds() {
            world.opener(scaled(seg("S", OLD.0, 0), old.0));
            world.responder(scaled(seg("SA", OLD.1, OLD.0 + 1), old.1));
            world.opener(seg("A", OLD.0 + 1, OLD.1 + 1));
            world.opener(scaled(seg("S", 1000, 0), new.0));
            world.responder(scaled(seg("SA", 5000, 1001), new.1));
            world.opener(seg("A", 1001, 5001));
            world.responder(seg("A", 5001, 1001));
            // What lies 400 000 bytes ahead is in a window that is scaled only.
            world.responder(data(5001 + 400_000, 1001, 10));
            world.opener(data(1001 + 400_000, 5001, 10));
            let ahead = if is_scaled { 400_010 } else { 0 };
            world.ends_idle(5001 + ahead, 1001 + ahead);
        }
    }
}

#[test]
fn a_forged_syn_changes_nothing() {
    for (end, _) in ENDS.into_iter().filter(|&(end, _)| end != End::Reset) {
        for mut world in worlds() {
            let state = world.old(end);
            let name = format!("{end:?}, {}", world.name());
            assert_eq!(world.state(), Some(state), "{name}");
            let (own, theirs) = match end {
                End::BothFins => (OLD.0 + 2, OLD.1 + 2),
                End::OpenersFin => (OLD.0 + 2, OLD.1 + 1),
                End::RespondersFin => (OLD.0 + 1, OLD.1 + 2),
                _ => (OLD.0 + 1, OLD.1 + 1),
            };
            world.opener(scaled(seg("S", 1000, 0), Some(14)));
            assert_eq!(world.state(), Some(state), "{name}");
            // The responder challenges it, or answers another one.
            world.responder(seg("A", theirs, own));
            assert_eq!(world.state(), Some(state), "{name}");
            world.responder(seg("SA", 77, 1002));
            world.responder(seg("RA", 0, 1002));
            assert_eq!(world.state(), Some(state), "{name}");
            let inner = if world.is_inbound() { theirs } else { own };
            assert!(world.tells_of_mtu(inner - 1), "{name}");
            assert!(!world.tells_of_mtu(1001), "{name}");
            if end == End::Unseen {
                // Windows stay without scale.
                world.responder(data(theirs + 400_000, own, 10));
                world.ends_idle(theirs, own);
            }
        }
    }
}

#[test]
fn a_challenge_ends_in_the_exact_reset_and_the_syn_that_comes_again_is_new() {
    for mut world in worlds() {
        world.old(End::Unseen);
        world.opener(seg("S", 1000, 0));
        world.responder(seg("A", OLD.1 + 1, OLD.0 + 1));
        assert_eq!(world.state(), Some(Established));
        world.opener(seg("R", OLD.0 + 1, 0));
        assert_eq!(world.state(), Some(Closed));
        world.open(1000, 9000);
        world.ends_idle(9001, 1001);
    }
}

#[test]
fn a_refused_syn_ends_a_connection_that_the_responder_has_forgotten() {
    for mut world in worlds() {
        world.old(End::Unseen);
        world.opener(seg("S", 1000, 0));
        world.responder(seg("RA", 0, 1001));
        assert_eq!(world.state(), Some(Closed), "{}", world.name());
    }
}

/// A firewall before the responder refuses the new connection by an ICMP error.
#[test]
fn an_error_about_a_syn_on_a_used_port_reaches_its_sender() {
    for (end, _) in ENDS.into_iter().filter(|&(end, _)| end != End::Reset) {
        for mut world in worlds() {
            let name = format!("{end:?}, {}", world.name());
            let state = world.old(end);
            world.opener(seg("S", 1000, 0));
            // As the responder gets it: under its name inside, or the outer one of a vm's call.
            let (responder, opener) = world.answers;
            let (opener_side, responder_side) = world.sides();
            for (number, expected) in [(1000, true), (1001, false), (999, false), (77, false)] {
                let refused = segment(opener, responder, seg("S", number, 0));
                let error = unreachable(responder.0, opener.0, &refused);
                let (verdict, frame) = world.give(responder_side, &error);
                let passes = verdict == Verdict::Forward(opener_side);
                assert_eq!(passes, expected, "{name}, {number}: {verdict:?}");
                if passes {
                    let asks = segment(world.asks.0, world.asks.1, seg("S", 1000, 0));
                    assert!(
                        frame.ends_with(&asks),
                        "{name}: it quotes the sender's own SYN"
                    );
                }
            }
            assert_eq!(world.state(), Some(state), "{name}");
        }
    }
}

#[test]
fn of_two_syns_the_one_that_is_answered_counts() {
    for (answered, is_forged) in [(2000, false), (1000, true)] {
        for mut world in worlds() {
            world.opener(scaled(seg("S", 1000, 0), Some(7)));
            world.opener(scaled(seg("S", 2000, 0), Some(7)));
            if is_forged {
                for other in [7000, 8000, 2000] {
                    world.opener(seg("S", other, 0));
                }
            }
            // An answer to neither opens nothing.
            world.responder(seg("SA", 5000, 3001));
            assert_eq!(world.state(), Some(SynSent), "{}", world.name());
            world.responder(scaled(seg("SA", 5000, answered + 1), Some(7)));
            world.opener(seg("A", answered + 1, 5001));
            assert_eq!(world.state(), Some(Established), "{}", world.name());
            world.responder(seg("A", 5001, answered + 1));
            world.opener(data(answered + 1 + 100_000, 5001, 10));
            world.ends_idle(5001, answered + 1 + 100_010);
        }
    }
}

#[test]
fn of_two_unanswered_syns_the_later_counts() {
    for mut world in worlds() {
        world.opener(seg("S", 3_000_000_000, 0));
        world.opener(seg("S", 2_000_000_000, 0));
        world.wait(250);
        let told = world.sweep();
        assert!(told.contains(&(world.answers.0, 2_000_000_001)), "{told:?}");
    }
}

#[test]
fn a_syn_may_bring_data_that_its_answer_acknowledges() {
    for (reuses, acknowledged) in [(false, 1001), (false, 1101), (true, 1101)] {
        for mut world in worlds() {
            if reuses {
                world.old(End::BothFins);
            }
            world.opener(Seg {
                len: 100,
                ..seg("S", 1000, 0)
            });
            world.responder(seg("SA", 5000, acknowledged));
            world.opener(seg("A", 1101, 5001));
            assert_eq!(world.state(), Some(Established), "{}", world.name());
        }
    }
}

#[test]
fn an_acknowledgement_of_nothing_establishes_nothing() {
    for mut world in worlds() {
        world.opener(seg("S", 1000, 0));
        world.responder(seg("SA", 5000, 1001));
        for forged in [5000, 5002, 0, 3_000_000_000] {
            world.opener(seg("A", 1001, forged));
            assert_eq!(world.state(), Some(SynReceived), "{forged}");
        }
        world.opener(seg("A", 1001, 5001));
        assert_eq!(world.state(), Some(Established));
    }
}

#[test]
fn only_a_reset_at_the_expected_number_closes() {
    for mut world in worlds() {
        let name = world.name();
        world.open(1000, 5000);
        world.opener(data(1001, 5001, 100));
        world.responder(data(5001, 1101, 100));
        world.opener(seg("A", 1101, 5101));
        for off in [0, 1, 99, 101, 200, 1000, 6001, 65_635, 1 << 20, 1 << 31] {
            world.opener(seg("R", 1001 + off, 0));
            world.responder(seg("R", 5001 + off, 0));
            world.responder(seg("RA", 5001 + off, 1101));
            assert_eq!(world.state(), Some(Established), "{name}, {off}");
        }
        // The challenge is answered with the exact number.
        world.opener(seg("R", 1102, 0));
        world.responder(seg("A", 5101, 1101));
        assert_eq!(world.state(), Some(Established), "{name}");
        world.opener(seg("R", 1101, 0));
        assert_eq!(world.state(), Some(Closed), "{name}");
        // Late segments still get through, and a SYN begins anew.
        world.wait(200);
        world.responder(data(5101, 1101, 10));
        world.open(7000, 8000);
    }
}

#[test]
fn data_behind_an_inexact_reset_shows_that_it_was_forged() {
    for mut world in worlds() {
        world.open(1000, 5000);
        world.opener(seg("R", 6001, 0));
        world.responder(seg("A", 5001, 1001));
        for round in 0..3 {
            world.wait(IDLE - 10);
            world.opener(data(1001 + 10 * round, 5001, 10));
            world.responder(seg("A", 5001, 1011 + 10 * round));
            assert_eq!(world.sweep(), []);
        }
        world.ends_idle(5001, 1031);
    }
}

#[test]
fn a_reset_that_answers_no_syn_refuses_nothing() {
    for mut world in worlds() {
        world.opener(seg("S", 1000, 0));
        world.responder(seg("R", 0, 0));
        world.responder(seg("RA", 0, 1000));
        world.responder(seg("RA", 0, 1002));
        assert_eq!(world.state(), Some(SynSent), "{}", world.name());
        world.responder(seg("RA", 0, 1001));
        assert_eq!(world.state(), Some(Closed), "{}", world.name());
    }
}

#[test]
fn data_beyond_its_own_fin_shows_that_the_fin_was_forged() {
    for mut world in worlds() {
        let name = world.name();
        world.open(1000, 5000);
        // Out of the window: no receiver takes it.
        world.opener(seg("FA", 1001 + (1 << 20), 5001));
        assert_eq!(world.state(), Some(Established), "{name}");
        world.opener(seg("FA", 1001, 5001));
        world.responder(seg("FA", 5001, 1001));
        assert_eq!(world.state(), Some(TimeWait), "{name}");
        world.opener(data(1001, 5001, 10));
        let [own, theirs] = match world.is_inbound() {
            true => [FinWaitInward, FinWaitOutward],
            false => [FinWaitOutward, FinWaitInward],
        };
        assert_eq!(world.state(), Some(theirs), "{name}");
        world.opener(seg("FA", 1011, 5002));
        assert_eq!(world.state(), Some(TimeWait), "{name}");
        world.responder(data(5001, 1012, 10));
        assert_eq!(world.state(), Some(own), "{name}");
        world.responder(data(5011, 1012, 10));
        world.opener(data(1011, 5021, 10));
        assert_eq!(world.state(), Some(Established), "{name}");
    }
}

#[test]
fn each_state_lasts_as_long_as_it_should() {
    // RFC 5382 §5 REQ-5: four minutes.
    type Prepare = fn(&mut World);
    let states: [(&str, Prepare, u64); 7] = [
        ("syn", |w| w.opener(seg("S", 1000, 0)), 240),
        (
            "syn-ack",
            |w| {
                w.opener(seg("S", 1000, 0));
                w.responder(seg("SA", 5000, 1001));
            },
            240,
        ),
        ("established", |w| w.open(1000, 5000), IDLE),
        (
            "half-closed by the opener",
            |w| _ = w.old(End::OpenersFin),
            IDLE,
        ),
        (
            "half-closed by the responder",
            |w| _ = w.old(End::RespondersFin),
            IDLE,
        ),
        ("closed", |w| _ = w.old(End::BothFins), 240),
        ("reset", |w| _ = w.old(End::Reset), 240),
    ];
    for (name, prepare, seconds) in states {
        for mut world in worlds_with(false) {
            prepare(&mut world);
            let state = world.state();
            world.wait(seconds - 5);
            world.sweep();
            assert_eq!(world.state(), state, "{name}, {}", world.name());
            world.wait(5);
            world.sweep();
            assert_eq!(world.state(), None, "{name}, {}", world.name());
        }
    }
}

#[test]
fn a_half_closed_connection_may_pause_and_go_on() {
    for mut world in worlds() {
        world.open(1000, 5000);
        world.opener(seg("FA", 1001, 5001));
        world.responder(seg("A", 5001, 1002));
        for round in 0..4 {
            world.wait(IDLE - 10);
            assert_eq!(world.sweep(), []);
            world.responder(data(5001 + 10 * round, 1002, 10));
            world.opener(seg("A", 1002, 5011 + 10 * round));
        }
        world.responder(seg("FA", 5041, 1002));
        assert_eq!(world.state(), Some(TimeWait));
    }
}

#[test]
fn a_slow_answer_is_an_answer() {
    for mut world in worlds() {
        world.opener(seg("S", 1000, 0));
        world.wait(230);
        assert_eq!(world.sweep(), []);
        world.responder(seg("SA", 5000, 1001));
        world.wait(230);
        assert_eq!(world.sweep(), []);
        world.opener(seg("A", 1001, 5001));
        assert_eq!(world.state(), Some(Established));
    }
}

#[test]
fn the_idle_timeout_of_a_udp_rule_holds_answered_or_not() {
    for is_answered in [false, true] {
        for mut world in worlds() {
            let name = format!("{}, answered: {is_answered}", world.name());
            world.asks.1.1 = 53;
            let (own, other) = world.sides();
            let question = datagram(world.asks.0, world.asks.1);
            let question = world.pass(own, &question).unwrap();
            let answer = datagram(question.to, question.from);
            if is_answered {
                assert!(world.pass(other, &answer).is_some());
            }
            world.wait(IDLE - 5);
            world.sweep();
            let late = world.pass(other, &answer).expect(&name);
            assert_eq!((late.to, late.from), world.asks, "{name}");
            world.wait(IDLE + 5);
            world.sweep();
            assert_eq!(world.state(), None, "{name}");
        }
    }
}

#[test]
fn a_connection_that_begins_anew_is_counted_as_a_flow_that_was_taken_up() {
    for mut world in worlds() {
        let place = match (world.role, world.ipv6) {
            (_, false) => 0,
            (Role::Proxy | Role::TaggedProxy, true) => 1,
            (_, true) => 2, // behind the neighbour
        };
        let counted = |world: &World| match &world.dut {
            Dut::Proxy(proxy) => {
                let id = proxy.snapshot().backends()[place].id();
                proxy.backend_counters(id).unwrap()
            }
            Dut::Host(host) => {
                let id = host.snapshot().backends()[place].id();
                host.backend_counters(id).unwrap()
            }
        };
        world.old(End::Unseen);
        let before = counted(&world);
        world.opener(seg("S", 1000, 0));
        world.responder(seg("SA", 5000, 1001));
        world.responder(seg("SA", 5000, 1001));
        let after = counted(&world);
        let accepted = u64::from(world.is_inbound());
        assert_eq!(after.flows - before.flows, 1, "{}", world.name());
        assert_eq!(after.live, before.live, "{}", world.name());
        assert_eq!(after.accepted - before.accepted, accepted);
        assert_eq!(after.failures, before.failures);
    }
}

/// Opens a connection of this world's with a first packet, and answers it: the whole way there and
/// back. Returns under which name the server sees the client.
fn asks_and_is_answered(world: &mut World, protocol: IpNumber) -> Endpoint {
    let name = format!("{}, {protocol:?}", world.name());
    let asks = world.asks;
    let question = match protocol {
        IpNumber::TCP => segment(asks.0, asks.1, seg("S", 1000, 0)),
        IpNumber::UDP => datagram(asks.0, asks.1),
        _ => echo(asks.0, asks.1, false),
    };
    let seen = world.pass(OUTSIDE, &question).expect(&name);
    assert_eq!((seen.port, seen.to.0), (INSIDE, server(world.ipv6)));
    let answer = match protocol {
        IpNumber::TCP => segment(seen.to, seen.from, seg("SA", 5000, 1001)),
        IpNumber::UDP => datagram(seen.to, seen.from),
        _ => echo(seen.to, seen.from, true),
    };
    let back = world.pass(INSIDE, &answer).expect(&name);
    assert_eq!((back.port, back.to, back.from), (OUTSIDE, asks.0, asks.1));
    seen.from
}

#[test]
fn one_client_port_may_talk_to_two_vips_of_one_server() {
    for (protocol, port) in [
        (IpNumber::TCP, 80),
        (IpNumber::UDP, 53),
        (IpNumber::ICMP, 0),
    ] {
        for mut world in worlds().filter(World::is_inbound) {
            let vips = [0, 1].map(|number| (vip(world.ipv6, number), port));
            let own = world.asks.0;
            let mut ports = Vec::new();
            for _ in 0..3 {
                for vip in vips {
                    world.asks = (own, vip);
                    let seen = asks_and_is_answered(&mut world, protocol);
                    assert_eq!(seen.0, own.0);
                    ports.push(seen.1);
                }
            }
            assert_eq!(ports[0], own.1, "{}", world.name());
            assert_ne!(ports[1], own.1, "{}", world.name());
            // Each keeps its own.
            assert_eq!(ports[..2].repeat(3), ports);
        }
    }
}

#[test]
fn a_client_that_the_vm_calls_from_its_own_port_is_seen_by_another_one() {
    for ipv6 in [false, true] {
        let mut world = World::new(Role::Host, ipv6, true);
        let client = world.asks.0;
        let call = segment((server(ipv6), 8080), client, seg("S", 1, 0));
        assert!(world.pass(INSIDE, &call).is_some());
        let seen = asks_and_is_answered(&mut world, IpNumber::TCP);
        assert!(seen.0 == client.0 && seen != client);
    }
}

/// Worlds whose client may talk to the server itself: behind a proxy any, before a host agent a
/// neighbour in the server's network.
fn worlds_with_direct_clients() -> impl Iterator<Item = World> {
    with_direct_clients(true)
}

fn with_direct_clients(tcp_reset: bool) -> impl Iterator<Item = World> {
    let worlds = move || worlds_with(tcp_reset).filter(World::is_inbound);
    let neighbours = worlds().map(|mut world| {
        if world.role == Role::Host {
            world.asks.0.0 = neighbour(world.ipv6);
        }
        world
    });
    // A vm answers clients of the inside directly, too, whether or not they are neighbours.
    let hosts = worlds().filter(|world| world.role == Role::Host);
    let inside = hosts.map(|mut world| {
        world.asks.0.0 = inside(world.ipv6);
        world
    });
    neighbours.chain(inside)
}

impl World {
    /// Who the direct conversation is between: the client's one port, and the server's own address.
    fn direct(&self, port: u16) -> (Endpoint, Endpoint) {
        (self.asks.0, (server(self.ipv6), port))
    }

    /// The client's packet to the server's own address; it has to arrive as it is.
    fn asks_directly(&mut self, packet: &[u8]) {
        let (verdict, frame) = self.give(OUTSIDE, packet);
        assert_eq!(verdict, Verdict::Forward(INSIDE), "{}", self.name());
        assert!(frame.ends_with(packet), "{}", self.name());
    }

    /// Whether the server's packet leaves as it is: a host agent leaves it to the kernel.
    fn is_left_as_it_is(&mut self, packet: &[u8]) -> bool {
        let (verdict, frame) = self.give(INSIDE, packet);
        let expected = match self.role {
            Role::Host => Verdict::Pass,
            _ => Verdict::Forward(OUTSIDE),
        };
        verdict == expected && frame.ends_with(packet)
    }
}

#[test]
fn a_direct_connection_from_the_port_of_one_to_a_vip_keeps_the_servers_name() {
    for (end, _) in ENDS {
        for mut world in worlds_with_direct_clients() {
            let name = format!("{end:?}, {}", world.name());
            let state = world.old(end);
            let (client, server) = world.direct(8080);
            world.asks_directly(&segment(client, server, seg("S", 70_000, 0)));
            // A SYN alone proves nothing: what is of the old connection stays there.
            assert_eq!(world.state(), Some(state), "{name}");
            if end != End::Reset {
                world.responder(seg("A", OLD.1 + 1, OLD.0 + 1));
            }
            let answer = segment(server, client, seg("SA", 90_000, 70_001));
            assert!(world.is_left_as_it_is(&answer), "{name}");
            assert_eq!(world.state(), None, "{name}");
            world.asks_directly(&segment(client, server, seg("A", 70_001, 90_001)));
            let data = segment(server, client, data(90_001, 70_001, 100));
            assert!(world.is_left_as_it_is(&data), "{name}");
        }
    }
}

#[test]
fn a_refused_direct_connection_leaves_the_one_to_the_vip_alone() {
    for mut world in worlds_with_direct_clients() {
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        world.asks_directly(&segment(client, server, seg("S", 70_000, 0)));
        let refusal = segment(server, client, seg("RA", 0, 70_001));
        assert!(world.is_left_as_it_is(&refusal), "{}", world.name());
        world.responder(data(5001, 1001, 10));
        world.opener(data(1001, 5011, 10));
        world.ends_idle(5011, 1011);
    }
}

#[test]
fn a_direct_connection_that_is_there_goes_on_while_a_vip_is_asked_for() {
    for mut world in worlds_with_direct_clients() {
        let name = world.name();
        let (client, server) = world.direct(8080);
        world.opener(seg("S", 1000, 0));
        world.asks_directly(&segment(client, server, data(70_001, 90_001, 10)));
        let answer = segment(server, client, data(90_001, 70_011, 10));
        assert!(world.is_left_as_it_is(&answer), "{name}");
        // The VIP's own answer is told from it.
        world.responder(seg("SA", 5000, 1001));
        world.opener(seg("A", 1001, 5001));
        world.responder(data(5001, 1001, 10));
        assert_eq!(world.state(), Some(Established), "{name}");
    }
}

/// Hosts whose two vms talk to each other: the one is a client of the other's VIP, too.
fn hosts_with_two_vms() -> impl Iterator<Item = World> {
    let hosts = worlds().filter(|world| world.role == Role::Host);
    hosts.map(|mut world| {
        world.asks.0.0 = neighbour(world.ipv6);
        world
    })
}

#[test]
fn a_vm_that_calls_another_one_of_its_host_is_answered_under_that_ones_name() {
    for (end, _) in ENDS {
        for mut world in hosts_with_two_vms() {
            let name = format!("{end:?}, {}", world.name());
            let state = world.old(end);
            let (client, server) = world.direct(8080);
            let syn = segment(client, server, seg("S", 70_000, 0));
            assert_eq!(world.give(BESIDE, &syn).0, Verdict::Pass, "{name}");
            assert_eq!(world.state(), Some(state), "{name}");
            let answer = segment(server, client, seg("SA", 90_000, 70_001));
            assert!(world.is_left_as_it_is(&answer), "{name}");
            assert_eq!(world.state(), None, "{name}");
        }
    }
    for (protocol, port) in [(IpNumber::UDP, 53), (IpNumber::ICMP, 0)] {
        for mut world in hosts_with_two_vms() {
            world.asks.1.1 = port;
            let name = format!("{}, {protocol:?}", world.name());
            let (client, server) = world.direct(port);
            for _ in 0..2 {
                asks_and_is_answered(&mut world, protocol);
                let (question, answer) = match protocol {
                    IpNumber::UDP => (datagram(client, server), datagram(server, client)),
                    _ => (echo(client, server, false), echo(server, client, true)),
                };
                assert_eq!(world.give(BESIDE, &question).0, Verdict::Pass, "{name}");
                assert!(world.is_left_as_it_is(&answer), "{name}");
            }
        }
    }
}

#[test]
fn a_vm_that_spoofs_a_neighbour_changes_nothing_of_its_connections() {
    for mut world in worlds().filter(|world| world.role == Role::Host) {
        world.asks.0.0 = inside(world.ipv6);
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        let syn = segment(client, server, seg("S", 70_000, 0));
        world.give(BESIDE, &syn);
        let answer = segment(server, client, seg("SA", 90_000, 70_001));
        assert!(!world.is_left_as_it_is(&answer), "{}", world.name());
        assert!(world.state().is_some(), "{}", world.name());
    }
}

#[test]
fn datagrams_and_pings_are_answered_under_the_name_that_was_asked_last() {
    for (protocol, port) in [(IpNumber::UDP, 53), (IpNumber::ICMP, 0)] {
        for mut world in worlds_with_direct_clients() {
            world.asks.1.1 = port;
            let name = format!("{}, {protocol:?}", world.name());
            let (client, server) = world.direct(port);
            for _ in 0..2 {
                asks_and_is_answered(&mut world, protocol);
                let (question, answer) = match protocol {
                    IpNumber::UDP => (datagram(client, server), datagram(server, client)),
                    _ => (echo(client, server, false), echo(server, client, true)),
                };
                world.asks_directly(&question);
                for _ in 0..2 {
                    assert!(world.is_left_as_it_is(&answer), "{name}");
                }
            }
        }
    }
}

/// The server has the connection to the frontend under the name that the direct one would have, and answers
/// its SYN with an ACK of that one (RFC 5961 §4).
#[test]
fn a_direct_connection_that_the_server_cannot_take_is_refused_when_its_syn_comes_again() {
    for mut world in worlds_with_direct_clients() {
        let name = world.name();
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        let syn = segment(client, server, seg("S", 70_000, 0));
        world.asks_directly(&syn);
        world.responder(seg("A", 5001, 1001));
        world.wait(1);
        let (verdict, frame) = world.give(OUTSIDE, &syn);
        let expected = match world.role {
            Role::Host if client.0 == neighbour(world.ipv6) => Verdict::Forward(BESIDE),
            Role::Host => Verdict::Forward(OUTSIDE),
            _ => Verdict::Reply,
        };
        assert_eq!(verdict, expected, "{name}");
        let refusal = segment(server, client, seg("RA", 0, 70_001));
        let transport = if world.ipv6 { 40 } else { 20 };
        let sent = &frame[frame.len() - transport - 20..];
        assert_eq!(
            sent[transport..][..14],
            refusal[transport..][..14],
            "{name}"
        );
        // The connection to the frontend goes on, and a SYN of another attempt gets its turn.
        world.responder(data(5001, 1001, 10));
        world.opener(data(1001, 5011, 10));
        world.asks_directly(&segment(client, server, seg("S", 80_000, 0)));
        world.ends_idle(5011, 1011);
    }
}

/// Without `tcp_reset` an ICMP error tells the client.
#[test]
fn a_direct_connection_that_the_server_cannot_take_is_refused_by_an_error_without_resets() {
    for mut world in with_direct_clients(false) {
        let name = world.name();
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        let syn = segment(client, server, seg("S", 70_000, 0));
        world.asks_directly(&syn);
        world.responder(seg("A", 5001, 1001));
        world.wait(1);
        let (verdict, frame) = world.give(OUTSIDE, &syn);
        let (expected, source) = match world.role {
            Role::Host if client.0 == neighbour(world.ipv6) => (Verdict::Forward(BESIDE), None),
            Role::Host => (Verdict::Forward(OUTSIDE), None),
            _ => (Verdict::Reply, Some(server.0)),
        };
        assert_eq!(verdict, expected, "{name}");
        // A host agent has an address of its own.
        let own = match world.ipv6 {
            false => HOST.into(),
            true => Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1).into(),
        };
        is_told_that_it_is_prohibited(&frame, (source.unwrap_or(own), client.0), &syn);
        world.responder(data(5001, 1001, 10));
        world.opener(data(1001, 5011, 10));
        world.asks_directly(&segment(client, server, seg("S", 80_000, 0)));
    }
}

/// ICMP 3/13 or ICMPv6 1/1, with the packet that it is about at its end.
fn is_told_that_it_is_prohibited(frame: &[u8], ends: (IpAddr, IpAddr), about: &[u8]) {
    let seen = seen(OUTSIDE, frame);
    assert_eq!((seen.from.0, seen.to.0), ends);
    let message = &frame[frame.len() - about.len() - 8..];
    let kind = if about[0] >> 4 == 6 { [1, 1] } else { [3, 13] };
    assert_eq!(message[..2], kind);
    assert_eq!(message[8..], *about);
}

/// The kernel hands the packets over, but the agent sees them.
#[test]
fn a_neighbour_on_one_host_is_refused_by_the_agent() {
    for mut world in hosts_with_two_vms() {
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        let syn = segment(client, server, seg("S", 70_000, 0));
        assert_eq!(world.give(BESIDE, &syn).0, Verdict::Pass);
        world.responder(seg("A", 5001, 1001));
        assert_eq!(
            world.give(BESIDE, &syn).0,
            Verdict::Reply,
            "{}",
            world.name()
        );
    }
    let hosts = worlds_with(false).filter(|world| world.role == Role::Host);
    for mut world in hosts {
        world.asks.0.0 = neighbour(world.ipv6);
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        let syn = segment(client, server, seg("S", 70_000, 0));
        assert_eq!(world.give(BESIDE, &syn).0, Verdict::Pass);
        world.responder(seg("A", 5001, 1001));
        let (verdict, frame) = world.give(BESIDE, &syn);
        assert_eq!(verdict, Verdict::Reply);
        let own = match world.ipv6 {
            false => HOST.into(),
            true => Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1).into(),
        };
        is_told_that_it_is_prohibited(&frame, (own, client.0), &syn);
    }
}
