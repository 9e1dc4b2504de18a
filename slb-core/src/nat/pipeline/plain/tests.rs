//! The fast path against the slow path.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::panic::AssertUnwindSafe;
use core::time::Duration;

use super::*;
use crate::frame::Burst;
use crate::host::HostRole;
use crate::key::Key as Secret;
use crate::mem::{Boxes, Memory};
use crate::nat::connection::Saved;
use crate::nat::{Link, Links, NatOptions};
use crate::packet::{Family, Packet, Part};
use crate::proxy::ProxyRole;
use crate::spec::{
    Answers, Backend, BackendState, Echo, Frontend, FrontendPort, Outbound, Pool, Protocol,
    ProxyPorts, Rule, Spec, Terms, UdpChecksum, Underlay, derived_mac,
};
use crate::stats::{SnatCounters, Stats};
use crate::time::Instant;
use crate::wire::checksum::{Sum, checksum};
use crate::wire::ethernet::MacAddress;

const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const MUX6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x11);
const NODE: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const FABRIC: PortId = PortId(0);
const VMS: [PortId; 2] = [PortId(1), PortId(2)];
const VNI: u32 = 5001;
const HEADROOM: usize = 96;
const FLOWS: u8 = if cfg!(miri) { 2 } else { 8 };

/// Returns the VIP that a flow is for, of two that each have a vm.
fn vip(flow: u8, is_ipv6: bool) -> IpAddr {
    let last = 100 + flow % 2;
    if is_ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, last.into()).into()
    } else {
        Ipv4Addr::new(20, 20, 20, last).into()
    }
}

fn vm(flow: u8, is_ipv6: bool) -> IpAddr {
    let last = 1 + flow % 2;
    if is_ipv6 {
        Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, last.into()).into()
    } else {
        Ipv4Addr::new(10, 10, 1, last).into()
    }
}

fn client(flow: u8, is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, flow.into()).into()
    } else {
        Ipv4Addr::new(198, 51, 100, flow).into()
    }
}

/// Rules for TCP and UDP of two VIPs of each family; answers of the second vm go through a mux.
fn snapshot(
    is_proxy: bool,
    state: BackendState,
    previous: Option<&Snapshot<'_>>,
) -> Snapshot<'static> {
    let frontends: Vec<_> = (0..4)
        .map(|at| Frontend {
            name: ["a", "b", "a6", "b6"][usize::from(at)],
            address: vip(at, at >= 2),
            icmp_echo: Echo::Answer,
        })
        .collect();
    let backends: Vec<_> = (0..4)
        .map(|at| {
            [Backend {
                name: "vm",
                address: vm(at, at >= 2),
                mac: Some(derived_mac(vm(at, false))),
                next_hop: (is_proxy && at == 0).then_some(MacAddress([2, 0, 0, 0, 0, 9])),
                host: HOST.into(),
                state: if at % 2 == 0 { state } else { BackendState::Up },
                port: Some(VMS[usize::from(at % 2)]),
                ..Backend::default()
            }]
        })
        .collect();
    let pools: Vec<_> = (0..4)
        .map(|at: usize| Pool {
            name: ["a", "b", "a6", "b6"][at],
            vni: Vni::new(VNI).unwrap(),
            table_size: 3,
            backends: &backends[at],
            ..Pool::default()
        })
        .collect();
    let rules: Vec<_> = (0..8)
        .map(|at: usize| Rule {
            name: ["a", "b", "a6", "b6", "ua", "ub", "ua6", "ub6"][at],
            frontend: at % 4,
            pool: at % 4,
            protocol: if at < 4 { Protocol::Tcp } else { Protocol::Udp },
            frontend_port: 80,
            backend_port: 8080,
            idle_timeout: Duration::from_secs(240 + at as u64),
            terms: Terms {
                answers: if at.is_multiple_of(2) {
                    Answers::Direct
                } else {
                    Answers::ThroughMux
                },
                ..Terms::default()
            },
            ..Rule::default()
        })
        .collect();
    let outbound = [Outbound {
        name: "out",
        frontends: &[0],
        pool: 0,
        protocol: Protocol::All,
        allocated_outbound_ports: Some(64),
        idle_timeout: Duration::from_secs(240),
        tcp_reset: true,
    }];
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            ipv6: Some(HOST6),
            mac: NODE,
            port: FABRIC,
            udp_checksum: UdpChecksum::Auto,
            ..Underlay::default()
        },
        frontends: &frontends,
        rules: &rules,
        pools: &pools,
        outbound: if is_proxy { &[] } else { &outbound },
        muxes: &[MUX.into(), MUX6.into()],
        proxy: is_proxy.then_some(ProxyPorts {
            frontends: &[FrontendPort {
                port: FABRIC,
                address: None,
            }],
            backend: VMS[0],
            ..ProxyPorts::default()
        }),
        ..Spec::default()
    };
    Snapshot::new(&spec, previous).unwrap()
}

/// A role that takes one of the ways.
struct Side<R: Role, const SHORT: bool> {
    pipeline: Pipeline<'static, Rc<Snapshot<'static>>>,
    lanes: Box<[Lane; BURST]>,
    plain: Box<[PlainLane; BURST]>,
    last: R::Last,
}

/// The verdict of a frame and the steps that were observed.
#[derive(Debug, PartialEq)]
struct Outcome {
    verdict: Verdict,
    headroom: usize,
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

/// All that a role counts and remembers.
struct State {
    stats: Stats,
    rules: Vec<RuleCounters>,
    backends: Vec<BackendCounters>,
    snat: Vec<SnatCounters>,
    ipv4: Vec<Saved<u64>>,
    ipv6: Vec<Saved<[u64; 4]>>,
}

impl<R: Role, const SHORT: bool> Side<R, SHORT> {
    fn new(snapshot: Rc<Snapshot<'static>>) -> Self {
        const KEY: Secret = Secret::new([1, 2]);
        let mut tables = NatTables::build(&snapshot, 64, KEY, &mut Boxes).unwrap();
        tables.links = Links {
            ipv4: Boxes.take(64, Link::NONE).unwrap(),
            ipv6: Boxes.take(64, Link::NONE).unwrap(),
        };
        Self {
            pipeline: Pipeline::new(snapshot, tables, NatOptions::default()),
            lanes: Box::new([Lane::EMPTY; BURST]),
            plain: Box::new([PlainLane::EMPTY; BURST]),
            last: R::Last::default(),
        }
    }

    fn process(&mut self, now: Instant, packets: &[(PortId, Vec<u8>)]) -> Vec<Outcome> {
        let mut memory: Vec<Vec<u8>> = packets
            .iter()
            .map(|(_, bytes)| [&[0; HEADROOM], &bytes[..], &[0; 8]].concat())
            .collect();
        let mut frames: Vec<_> = memory
            .iter_mut()
            .zip(packets)
            .map(|(buffer, (port, bytes))| {
                let mut frame = Frame::new(buffer, HEADROOM, bytes.len()).unwrap();
                frame.set_port(*port);
                frame
            })
            .collect();
        let mut steps = vec![Vec::new(); frames.len()];
        let mut seen = |frame: usize, step| {
            steps[frame].push(match step {
                Step::Parsed(packet) => Step::Parsed(without_remains(packet)),
                step => step,
            });
        };
        self.pipeline.set_clock(now);
        assert!(frames.len() <= BURST);
        let lanes = (&mut *self.lanes, &mut *self.plain);
        self.pipeline
            .process::<R, SHORT>(&mut frames, lanes, &mut self.last, &mut seen);
        let outcome = |(frame, steps): (Frame<'_>, _)| Outcome {
            verdict: frame.verdict(),
            headroom: frame.headroom(),
            bytes: frame.bytes().to_vec(),
            steps,
        };
        frames.into_iter().zip(steps).map(outcome).collect()
    }

    fn advance(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let now = self.pipeline.set_clock(now);
        let mut memory = [[0; 256]; 4];
        let mut spare = Burst::new();
        for buffer in &mut memory {
            assert!(spare.push(Frame::new(buffer, 64, 0).unwrap()).is_ok());
        }
        self.pipeline.sweep::<R>(now, &mut spare);
        spare.iter().map(|frame| frame.bytes().to_vec()).collect()
    }

    fn install(&mut self, snapshot: Rc<Snapshot<'static>>) {
        assert!(self.pipeline.install(snapshot).is_ok());
        self.last = R::Last::default();
    }

    fn state(&self) -> State {
        let tables = &self.pipeline.tables;
        let (ipv4, ipv6) = (&tables.connections.ipv4, &tables.connections.ipv6);
        State {
            stats: self.pipeline.stats(),
            rules: tables.rules.to_vec(),
            backends: tables.backends.to_vec(),
            snat: tables.snat.to_vec(),
            ipv4: ipv4.all().map(|one| one.save(ipv4.now())).collect(),
            ipv6: ipv6.all().map(|one| one.save(ipv6.now())).collect(),
        }
    }
}

/// The same role on both ways.
struct Twins<R: Role> {
    short: Side<R, true>,
    long: Side<R, false>,
    is_proxy: bool,
    now: Instant,
}

impl<R: Role> Twins<R> {
    /// Makes a pair with connections of all flows but the last one.
    fn new(snapshot: &Rc<Snapshot<'static>>, is_proxy: bool) -> Self {
        let mut twins = Self {
            short: Side::new(snapshot.clone()),
            long: Side::new(snapshot.clone()),
            is_proxy,
            now: Instant::from_secs(1),
        };
        for is_ipv6 in [false, true] {
            for flow in 0..FLOWS - 1 {
                for (is_outward, flags) in [(false, 0x02), (true, 0x12), (false, 0x10)] {
                    for number in [protocol::TCP, protocol::UDP] {
                        let segment = Segment {
                            flow,
                            is_ipv6,
                            is_outward,
                            number,
                            flags,
                            sequence: u8::from(flags & 0x02 == 0),
                            ..Segment::ORDINARY
                        };
                        twins.process(&[segment.frame(is_proxy)]);
                    }
                }
            }
        }
        twins
    }

    fn process(&mut self, packets: &[(PortId, Vec<u8>)]) -> Vec<Outcome> {
        let short = self.short.process(self.now, packets);
        let long = self.long.process(self.now, packets);
        for ((short, long), packet) in short.iter().zip(&long).zip(packets) {
            assert_eq!(short, long, "of {packet:02x?}");
        }
        self.compare();
        short
    }

    /// Compares all that both count and remember.
    fn compare(&self) {
        let (short, long) = (self.short.state(), self.long.state());
        assert_eq!(short.ipv4, long.ipv4);
        assert_eq!(short.ipv6, long.ipv6);
        assert_eq!(short.rules, long.rules);
        assert_eq!(short.backends, long.backends);
        assert_eq!(short.snat, long.snat);
        assert_eq!(short.stats, long.stats);
    }

    fn advance(&mut self, time: Duration) {
        self.now = Instant::from_nanos(self.now.as_nanos() + time.as_nanos() as u64);
        let (short, long) = (self.short.advance(self.now), self.long.advance(self.now));
        assert_eq!(short, long);
        self.compare();
    }

    fn install(&mut self, snapshot: &Rc<Snapshot<'static>>) {
        self.short.install(snapshot.clone());
        self.long.install(snapshot.clone());
        self.compare();
    }
}

/// A TCP segment or a UDP datagram of a flow.
#[derive(Clone, Copy, Debug)]
struct Segment {
    flow: u8,
    is_ipv6: bool,
    is_outward: bool,
    number: u8,
    flags: u8,
    sequence: u8,
    acknowledgement: u8,
    window: u16,
    data: u8,
    options: u8,
    hop_limit: u8,
    traffic_class: u8,
    /// True if the UDP datagram has a checksum.
    has_checksum: bool,
    padding: u8,
    /// The outer headers around the frame.
    outer: Outer,
}

#[derive(Clone, Copy, Debug)]
struct Outer {
    is_ipv6: bool,
    traffic_class: u8,
    has_checksum: bool,
    padding: u8,
}

impl Segment {
    const ORDINARY: Self = Self {
        flow: 0,
        is_ipv6: false,
        is_outward: false,
        number: protocol::TCP,
        flags: 0x10,
        sequence: 1,
        acknowledgement: 1,
        window: 1000,
        data: 20,
        options: 0,
        hop_limit: 64,
        traffic_class: 0,
        has_checksum: true,
        padding: 0,
        outer: Outer {
            is_ipv6: false,
            traffic_class: 0,
            has_checksum: false,
            padding: 0,
        },
    };

    /// Most of these bytes make an ordinary segment.
    fn of(bytes: &[u8; 12]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, ..] = *bytes;
        let is_special = b & 0x80 != 0;
        Self {
            flow: a % FLOWS,
            is_ipv6: a & 0x08 != 0,
            is_outward: a & 0x10 != 0,
            number: if a & 0x20 != 0 {
                protocol::UDP
            } else {
                protocol::TCP
            },
            flags: match b & 0x1f {
                0 => 0x11,
                1 => 0x14,
                2 => 0x04,
                3 => 0x02,
                4 => 0x12,
                5 => 0,
                6 => 0x18,
                7 => 0xf0,
                _ => 0x10,
            },
            sequence: c,
            acknowledgement: d,
            window: u16::from(e) << (f & 8),
            data: g,
            options: if is_special { h % 11 } else { h % 4 },
            hop_limit: if is_special { i % 4 } else { 64 },
            traffic_class: if f & 0x10 != 0 { j } else { 0 },
            has_checksum: f & 0x20 == 0,
            padding: if f & 0x40 != 0 { i % 32 } else { 0 },
            outer: Outer {
                is_ipv6: is_special && i & 0x10 != 0,
                traffic_class: if f & 0x80 != 0 { j >> 4 | h << 4 } else { 0 },
                has_checksum: is_special && i & 0x20 != 0,
                padding: if is_special { i % 3 } else { 0 },
            },
        }
    }

    /// The frame, and where it comes in.
    fn frame(&self, is_proxy: bool) -> (PortId, Vec<u8>) {
        let inner = self.inner();
        let vm = if is_proxy {
            VMS[0]
        } else {
            VMS[usize::from(self.flow % 2)]
        };
        match (self.is_outward, is_proxy) {
            (true, _) => (vm, inner),
            (false, true) => (FABRIC, inner),
            (false, false) => (FABRIC, self.outer.around(&inner)),
        }
    }

    fn inner(&self) -> Vec<u8> {
        let client = (client(self.flow, self.is_ipv6), 1024 + u16::from(self.flow));
        let (source, destination) = if self.is_outward {
            ((vm(self.flow, self.is_ipv6), 8080), client)
        } else {
            (client, (vip(self.flow, self.is_ipv6), 80))
        };
        let mut transport = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
        let checksum_at = if self.number == protocol::TCP {
            transport.extend((1000 + u32::from(self.sequence)).to_be_bytes());
            transport.extend((1000 + u32::from(self.acknowledgement)).to_be_bytes());
            transport.extend([(5 + self.options) << 4, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0; 4]);
            transport.extend([1; 40].iter().take(usize::from(self.options) * 4));
            16
        } else {
            transport.extend((8 + u16::from(self.data)).to_be_bytes());
            transport.extend([0; 2]);
            6
        };
        transport.extend((0..self.data).map(|at| at ^ self.sequence));
        let sum = pseudo(source.0, destination.0, self.number, &transport).to_be_bytes();
        if self.number == protocol::TCP || self.has_checksum {
            transport[checksum_at..checksum_at + 2].copy_from_slice(&sum);
        }
        let mac = derived_mac(vm(self.flow, false)).0;
        let mut frame = if self.is_outward {
            [NODE.0, mac].concat()
        } else {
            [mac, NODE.0].concat()
        };
        let hops = (self.hop_limit, self.traffic_class);
        frame.extend(ip(source.0, destination.0, self.number, hops, &transport));
        frame.extend(core::iter::repeat_n(0, self.padding.into()));
        frame
    }
}

impl Outer {
    fn around(&self, inner: &[u8]) -> Vec<u8> {
        let (source, destination): (IpAddr, IpAddr) = if self.is_ipv6 {
            (MUX6.into(), HOST6.into())
        } else {
            (MUX.into(), HOST.into())
        };
        let mut udp = vec![0xc0, 1, 0x12, 0xb5];
        udp.extend((16 + inner.len() as u16).to_be_bytes());
        udp.extend([0, 0, 8, 0, 0, 0]);
        udp.extend((VNI << 8).to_be_bytes());
        udp.extend(inner);
        if self.has_checksum {
            let sum = pseudo(source, destination, protocol::UDP, &udp).to_be_bytes();
            udp[6..8].copy_from_slice(&sum);
        }
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let hops = (64, self.traffic_class);
        frame.extend(ip(source, destination, protocol::UDP, hops, &udp));
        frame.extend(core::iter::repeat_n(0, self.padding.into()));
        frame
    }
}

/// Without what a lane's last packet has left in fields of no meaning.
fn without_remains(mut packet: Packet) -> Packet {
    if packet.part() == Part::Whole {
        packet.identification = 0;
    }
    if packet.shape.family == Family::Ipv4 {
        packet.addresses[1..].fill(0);
    }
    packet
}

fn pseudo(source: IpAddr, destination: IpAddr, number: u8, transport: &[u8]) -> u16 {
    let len = transport.len() as u16;
    let sum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::ZERO.add_pseudo_ipv4(source, destination, number, len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Sum::ZERO.add_pseudo_ipv6(source, destination, number, len.into())
        }
        _ => unreachable!("both are of one family"),
    };
    sum.add_bytes(transport).checksum()
}

/// EtherType, IP header and what is behind it.
fn ip(
    source: IpAddr,
    destination: IpAddr,
    number: u8,
    (hop_limit, traffic_class): (u8, u8),
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x08, 0x00, 0x45, traffic_class]);
            packet.extend((20 + payload.len() as u16).to_be_bytes());
            packet.extend([0, 7, 0x40, 0, hop_limit, number, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet[2..]).to_be_bytes();
            packet[12..14].copy_from_slice(&sum);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([
                0x86,
                0xdd,
                0x60 | traffic_class >> 4,
                traffic_class << 4,
                0,
                0,
            ]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([number, hop_limit]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => unreachable!("both are of one family"),
    }
    packet.extend(payload);
    packet
}

/// Bytes changed anywhere, of some with a right IPv4 header checksum all the same; or the end cut off.
fn spoil(frame: &mut Vec<u8>, at: u8, value: u8, how: u8) {
    let at = usize::from(at) % frame.len();
    if how & 7 == 7 {
        frame.truncate(at);
        return;
    }
    frame[at] = value;
    for ip in [14, 64] {
        let is_ipv4 = frame.get(ip - 2..ip + 1) == Some(&[0x08, 0x00, 0x45]);
        if how & 8 != 0
            && is_ipv4
            && let Some(header) = frame.get_mut(ip..ip + 20)
        {
            header[10..12].fill(0);
            let sum = checksum(header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
        }
    }
}

/// Runs operations on both ways: each is a frame, a pause, or another snapshot.
fn run<R: Role>(snapshots: &[Rc<Snapshot<'static>>; 2], is_proxy: bool, operations: &[[u8; 12]]) {
    let mut twins = Twins::<R>::new(&snapshots[0], is_proxy);
    let mut packets = Vec::new();
    for operation in operations {
        let [.., how, at, value] = *operation;
        match how {
            0xff => twins.advance(Duration::from_secs(u64::from(at))),
            0xfe => twins.install(&snapshots[usize::from(at % 2)]),
            _ => {
                let (port, mut frame) = Segment::of(operation).frame(is_proxy);
                if how >= 0xc0 {
                    spoil(&mut frame, at, value, how);
                }
                packets.push((port, frame));
            }
        }
        if how & 0x30 == 0 || how >= 0xfe || packets.len() == BURST {
            twins.process(&core::mem::take(&mut packets));
        }
    }
    twins.process(&packets);
}

fn both_ways_do_the_same<R: Role>(is_proxy: bool) {
    let healthy = Rc::new(snapshot(is_proxy, BackendState::Up, None));
    let unhealthy = snapshot(is_proxy, BackendState::Down, Some(&healthy));
    // Each follows the other, so that either can be installed in turn.
    let snapshots = AssertUnwindSafe([healthy, Rc::new(unhealthy)]);
    let most = if cfg!(miri) { 4 } else { usize::MAX };
    bolero::check!()
        .with_type::<Vec<[u8; 12]>>()
        .for_each(|operations| {
            let snapshots = &snapshots; // all of it
            run::<R>(
                snapshots,
                is_proxy,
                operations.get(..most).unwrap_or(operations),
            );
        });
}

#[test]
fn both_ways_of_a_host_agent_do_the_same() {
    both_ways_do_the_same::<HostRole>(false);
}

#[test]
fn both_ways_of_a_proxy_do_the_same() {
    both_ways_do_the_same::<ProxyRole>(true);
}

/// The second datagram was looked up before the first one ended the flow.
#[test]
fn a_flow_whose_backend_fails_ends_once() {
    let healthy = Rc::new(snapshot(true, BackendState::Up, None));
    let unhealthy = Rc::new(snapshot(true, BackendState::Down, Some(&healthy)));
    let mut twins = Twins::<ProxyRole>::new(&healthy, true);
    let live = |twins: &Twins<ProxyRole>| twins.long.state().backends[0].live;
    let before = live(&twins);
    twins.install(&unhealthy);
    let datagram = Segment {
        number: protocol::UDP,
        ..Segment::ORDINARY
    };
    twins.process(&[datagram.frame(true), datagram.frame(true)]);
    assert_eq!(live(&twins), before - 1);
}

/// Returns true if the fast path takes a frame to its end.
fn is_short<R: Role>(twins: &mut Twins<R>, segment: &Segment) -> bool {
    let (port, mut bytes) = segment.frame(twins.is_proxy);
    let len = bytes.len();
    bytes.splice(..0, [0; HEADROOM]);
    let mut frame = Frame::new(&mut bytes, HEADROOM, len).unwrap();
    frame.set_port(port);
    let Side { pipeline, last, .. } = &mut twins.short;
    let (mut lane, mut long) = (PlainLane::EMPTY, Lane::EMPTY);
    if !pipeline.read_plain::<R>(&frame, &mut lane, last) {
        return false;
    }
    pipeline.look_up_plain(&mut long, &mut lane);
    let mut run = Run::EMPTY;
    pipeline
        .translate_any::<R>(&mut frame, 0, &lane, &mut run, &mut ())
        .is_some()
}

fn ordinary_packets_take_the_short_way<R: Role>(is_proxy: bool) {
    let snapshot = Rc::new(snapshot(is_proxy, BackendState::Up, None));
    let mut twins = Twins::<R>::new(&snapshot, is_proxy);
    for flow in 0..FLOWS {
        for (is_ipv6, is_outward, number) in [
            (false, false, protocol::TCP),
            (false, true, protocol::TCP),
            (true, false, protocol::TCP),
            (true, true, protocol::TCP),
            (false, false, protocol::UDP),
            (false, true, protocol::UDP),
            (true, false, protocol::UDP),
            (true, true, protocol::UDP),
        ] {
            let segment = Segment {
                flow,
                is_ipv6,
                is_outward,
                number,
                ..Segment::ORDINARY
            };
            // Where answers go through a mux, the slow path notes by which one a packet came.
            let is_followed = !is_proxy && flow % 2 == 1 && !is_outward;
            let is_known = flow != FLOWS - 1 && !is_followed;
            assert_eq!(is_short(&mut twins, &segment), is_known, "{segment:?}");
            for (flags, takes_it) in [(0x18, true), (0x11, false), (0x02, false), (0x14, false)] {
                let segment = Segment { flags, ..segment };
                let takes_it = is_known && (takes_it || number == protocol::UDP);
                assert_eq!(is_short(&mut twins, &segment), takes_it, "{segment:?}");
            }
            let last_hop = Segment {
                hop_limit: 1,
                ..segment
            };
            assert_eq!(is_short(&mut twins, &last_hop), is_known && is_proxy);
        }
    }
}

#[test]
fn ordinary_packets_take_the_short_way_of_a_host_agent() {
    ordinary_packets_take_the_short_way::<HostRole>(false);
}

#[test]
fn ordinary_packets_take_the_short_way_of_a_proxy() {
    ordinary_packets_take_the_short_way::<ProxyRole>(true);
}

/// Ethernet frames of a capture in the classic format; none of another one.
fn frames_of(file: &[u8]) -> Vec<Vec<u8>> {
    let Some((head, mut rest)) = file.split_first_chunk::<24>() else {
        return Vec::new();
    };
    let is_little = matches!(
        head[..4],
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]
    );
    let is_big = matches!(
        head[..4],
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]
    );
    let word = |at: &[u8]| {
        let at = *at.first_chunk().unwrap();
        let word = if is_little {
            u32::from_le_bytes(at)
        } else {
            u32::from_be_bytes(at)
        };
        word as usize
    };
    let mut frames = Vec::new();
    if (is_little || is_big) && word(&head[20..]) == 1 {
        while let Some((record, bytes)) = rest.split_first_chunk::<16>() {
            let Some((frame, next)) = bytes.split_at_checked(word(&record[8..])) else {
                break;
            };
            frames.push(frame.to_vec());
            rest = next;
        }
    }
    frames
}

/// Gives the two ends of untagged TCP and UDP without options the names of flow 0: its client is the end that
/// sends first. Returns the direction; of other frames none, and no change.
fn rename(frame: &mut [u8], clients: &mut Vec<Vec<u8>>) -> Option<Direction> {
    let (is_ipv6, at, len, number) = match *frame.get(..24)? {
        [.., 0x08, 0x00, 0x45, _, _, _, _, _, _, _, _, number] => (false, 26, 4, number),
        [.., 0x86, 0xdd, _, _, _, _, _, _, number, _, _, _] => (true, 22, 16, number),
        _ => return None,
    };
    let transport = at + 2 * len;
    let checksum_at = match number {
        protocol::TCP => transport + 16,
        protocol::UDP => transport + 6,
        _ => return None,
    };
    let ip_len = if is_ipv6 {
        40 + usize::from(u16::from_be_bytes([frame[18], frame[19]]))
    } else {
        usize::from(u16::from_be_bytes([frame[16], frame[17]]))
    };
    let segment = frame
        .get(transport..14 + ip_len)
        .filter(|segment| segment.len() >= 20)?;
    let end = |address: usize, port: usize| {
        [&frame[address..address + len], &segment[port..port + 2]].concat()
    };
    let ends = [end(at, 0), end(at + len, 2)];
    let is_clients = match ends.each_ref().map(|end| clients.contains(end)) {
        [false, false] => {
            clients.push(ends[0].clone());
            true
        }
        [is_clients, _] => is_clients,
    };
    let (source, destination, ports) = if is_clients {
        (client(0, is_ipv6), vip(0, is_ipv6), [1024_u16, 80])
    } else {
        (vm(0, is_ipv6), client(0, is_ipv6), [8080, 1024])
    };
    for (index, address) in [source, destination].into_iter().enumerate() {
        let place = &mut frame[at + index * len..][..len];
        match address {
            IpAddr::V4(address) => place.copy_from_slice(&address.octets()),
            IpAddr::V6(address) => place.copy_from_slice(&address.octets()),
        }
        frame[transport + 2 * index..][..2].copy_from_slice(&ports[index].to_be_bytes());
    }
    if !is_ipv6 {
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..34]).to_be_bytes();
        frame[24..26].copy_from_slice(&sum);
    }
    frame[checksum_at..checksum_at + 2].fill(0);
    let sum = pseudo(source, destination, number, &frame[transport..14 + ip_len]).to_be_bytes();
    frame[checksum_at..checksum_at + 2].copy_from_slice(&sum);
    Some(if is_clients {
        Direction::Inward
    } else {
        Direction::Outward
    })
}

/// Replays captured conversations, and what is no conversation from every side.
fn both_ways_do_the_same_with<R: Role>(frames: &[Vec<u8>], is_proxy: bool) {
    let snapshot = Rc::new(snapshot(is_proxy, BackendState::Up, None));
    let mut twins = Twins::<R>::new(&snapshot, is_proxy);
    let mut clients = Vec::new();
    let mut packets = Vec::new();
    for frame in frames {
        let mut frame = frame.clone();
        let direction = rename(&mut frame, &mut clients);
        if direction != Some(Direction::Inward) {
            packets.push((VMS[0], frame.clone()));
        }
        if direction != Some(Direction::Outward) {
            let mut inner = frame;
            if let Some(mac) = inner.get_mut(..6) {
                mac.copy_from_slice(&derived_mac(vm(0, false)).0);
            }
            packets.push((
                FABRIC,
                if is_proxy {
                    inner
                } else {
                    Segment::ORDINARY.outer.around(&inner)
                },
            ));
        }
        if packets.len() > 20 {
            twins.process(&core::mem::take(&mut packets));
        }
    }
    twins.process(&packets);
}

/// Needs the captures that lie beside the repository on some machines, and passes without them.
#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn both_ways_do_the_same_with_captures() {
    let captures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/captures");
    let files = std::fs::read_dir(captures).into_iter().flatten().flatten();
    for file in files {
        let bytes = std::fs::read(file.path()).unwrap_or_default();
        let mut frames = frames_of(&bytes);
        frames.truncate(3000);
        frames.retain(|frame| frame.len() < 9000);
        both_ways_do_the_same_with::<HostRole>(&frames, false);
        both_ways_do_the_same_with::<ProxyRole>(&frames, true);
    }
}
