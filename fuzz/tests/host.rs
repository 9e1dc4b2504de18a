//! The host agent, given anything from either side, over time: each frame gets one verdict, the
//! counters add up, and what came with right checksums leaves with right ones.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bolero::TypeGenerator;
use etherparse::{PacketBuilder, SlicedPacket};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Answers, Backend, BackendState, Echo, Frontend, InboundNat, NatTarget, Outbound, Pool,
    Protocol, Rule, Spec, Terms, Underlay, derived_mac,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{Burst, Frame, Host, Instant, Key, PortId, Verdict};
use slb_fuzz::{Nearly, Talk, VIP, VIP6, is_right, write};

type Dut = Host<'static, Arc<Snapshot<'static>>>;

const GUARD: u8 = 0xa5;
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const VM: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 1);
const VM6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
const FABRIC: PortId = PortId(0);

/// Rules of every kind, in two states of health and with two ways of answering.
fn snapshots() -> &'static [Arc<Snapshot<'static>>; 2] {
    static SNAPSHOTS: OnceLock<[Arc<Snapshot<'static>>; 2]> = OnceLock::new();
    SNAPSHOTS.get_or_init(|| {
        let first = snapshot(BackendState::Up, Answers::Direct, None);
        let second = snapshot(BackendState::Down, Answers::ThroughMux, Some(&first));
        [Arc::new(first), Arc::new(second)]
    })
}

fn snapshot(
    state: BackendState,
    answers: Answers,
    previous: Option<&Snapshot<'_>>,
) -> Snapshot<'static> {
    let backend = |address| Backend {
        name: "vm",
        address,
        host: HOST.into(),
        mac: Some(derived_mac(VM.into())),
        state,
        port: Some(PortId(1)),
        ..Backend::default()
    };
    let terms = Terms {
        tcp_reset: true,
        answers,
        ..Terms::default()
    };
    let rule = |name, frontend, protocol, frontend_port| Rule {
        name,
        frontend,
        pool: frontend,
        protocol,
        frontend_port,
        backend_port: 8080,
        terms,
        ..Rule::default()
    };
    let pool = |name, backends| Pool {
        name,
        vni: Vni::new(7).unwrap(),
        table_size: 3,
        backends,
        ..Pool::default()
    };
    let frontend = |name, address| Frontend {
        name,
        address,
        icmp_echo: Echo::Answer,
    };
    let (ipv4, ipv6) = ([backend(VM.into())], [backend(VM6.into())]);
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            port: FABRIC,
            ..Underlay::default()
        },
        frontends: &[frontend("v4", VIP.into()), frontend("v6", VIP6.into())],
        rules: &[
            rule("tcp", 0, Protocol::Tcp, 80),
            rule("udp", 0, Protocol::Udp, 53),
            rule("all", 1, Protocol::All, 0),
        ],
        pools: &[pool("v4", &ipv4), pool("v6", &ipv6)],
        inbound_nat: &[InboundNat {
            name: "nat",
            frontend: 0,
            pool: 0,
            target: NatTarget::Backend {
                port: 81,
                backend: 0,
            },
            protocol: Protocol::Tcp,
            backend_port: 22,
            idle_timeout: Duration::from_secs(240),
            terms: Terms {
                source_nat: Some(Ipv4Addr::new(10, 99, 0, 1).into()),
                floating_ip: true,
                ..terms
            },
        }],
        outbound: &[Outbound {
            name: "out",
            frontends: &[0],
            pool: 0,
            protocol: Protocol::All,
            allocated_outbound_ports: Some(16),
            idle_timeout: Duration::from_secs(240),
            tcp_reset: true,
        }],
        muxes: &[MUX.into()],
        ..Spec::default()
    };
    Snapshot::new(&spec, previous).unwrap()
}

/// A frame, and its origin.
#[derive(Clone, Debug, TypeGenerator)]
enum Arrival {
    /// A packet for a VIP, in VXLAN.
    FromMux(Nearly),
    /// Bytes in VXLAN.
    Inner(Vec<u8>),
    /// Bytes from the fabric.
    FromFabric(Vec<u8>),
    /// A packet of the vm as a client of the VIP, or of a remote server.
    FromVm(Nearly),
    /// A packet for a VIP turned round: what the vm would answer.
    Answer(Nearly),
    /// Bytes from the vm.
    Raw(Vec<u8>),
}

impl Arrival {
    fn frame(&self) -> (PortId, Vec<u8>) {
        match self {
            Self::FromMux(packet) => (FABRIC, encapsulated(&packet.packet())),
            Self::Inner(bytes) => (FABRIC, encapsulated(bytes)),
            Self::FromFabric(bytes) => (FABRIC, bytes.clone()),
            Self::FromVm(packet) => {
                let mut frame = packet.packet();
                write(&mut frame, &[(26, &VM.octets())]);
                if packet.headroom & 1 == 1 && frame.get(12..14) == Some(&[8, 0]) {
                    write(&mut frame, &[(30, &FAR.octets())]);
                }
                (PortId(1), frame)
            }
            Self::Answer(packet) => {
                let mut frame = packet.packet();
                if frame.get(12..14) == Some(&[8, 0]) {
                    let client = frame.get(26..30).map(<[u8]>::to_vec).unwrap_or_default();
                    let port = frame.get(34..36).map(<[u8]>::to_vec).unwrap_or_default();
                    let own = 8080_u16.to_be_bytes();
                    let ends: [(usize, &[u8]); 4] =
                        [(26, &VM.octets()), (30, &client), (34, &own), (36, &port)];
                    write(&mut frame, &ends);
                }
                (PortId(1), frame)
            }
            Self::Raw(bytes) => (PortId(1), bytes.clone()),
        }
    }
}

fn encapsulated(inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0, 7, 0];
    payload.extend(derived_mac(VM.into()).0);
    payload.extend(inner.get(6..).unwrap_or_default());
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(MUX.octets(), HOST.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut frame, &payload)
        .unwrap();
    frame[40..42].fill(0); // no checksum: what is inside decides
    frame
}

fn process(host: &mut Dut, now: Instant, arrivals: &[Arrival]) {
    const HEADROOM: usize = 64;
    let packets: Vec<_> = arrivals.iter().map(Arrival::frame).collect();
    let mut memory: Vec<Vec<u8>> = packets
        .iter()
        .map(|(_, packet)| {
            let mut buffer = vec![GUARD; HEADROOM];
            buffer.extend(packet);
            buffer.extend([GUARD; 16]);
            buffer
        })
        .collect();
    let mut frames: Vec<Frame<'_>> = memory
        .iter_mut()
        .zip(&packets)
        .map(|(buffer, (port, packet))| {
            // The last bytes are not lent.
            let lent = buffer.len() - 8;
            let mut frame = Frame::new(&mut buffer[..lent], HEADROOM, packet.len()).unwrap();
            frame.set_port(*port);
            frame
        })
        .collect();
    let removed = host.stats().connections.removed;
    host.process(now, &mut frames);
    let is_removed = host.stats().connections.removed != removed;
    for (frame, (port, packet)) in frames.iter().zip(&packets) {
        match frame.verdict() {
            Verdict::Pass => assert_eq!(frame.bytes(), packet),
            Verdict::Drop(_) => {}
            Verdict::Flood => unreachable!("a host knows whose it is"),
            Verdict::Forward(_) | Verdict::Reply => {
                // What came with right checksums leaves with right ones.
                let before = if *port == FABRIC {
                    packet.get(50..)
                } else {
                    Some(&packet[..])
                };
                let after = frame.bytes();
                let after = if after.get(23) == Some(&17)
                    && after.get(36..38) == Some(&4789u16.to_be_bytes())
                    && *port != FABRIC
                {
                    &after[50..]
                } else {
                    after
                };
                if let (Some(before), Some(after)) = (before.and_then(Talk::of), Talk::of(after))
                    && matches!(frame.verdict(), Verdict::Forward(_))
                {
                    // Or it became a reset, on its way back.
                    assert!(before.data == after.data || after.is_reset, "{before:?}");
                }
                if before.is_some_and(is_right) {
                    assert!(is_right(after), "{packet:02x?} became {after:02x?}");
                }
            }
        }
    }
    let delivered: Vec<_> = frames
        .iter()
        .map(|frame| (frame.verdict(), frame.bytes().to_vec()))
        .collect();
    drop(frames);
    for buffer in &memory {
        assert!(buffer[buffer.len() - 8..].iter().all(|&byte| byte == GUARD));
    }
    // Unless somebody ended the connection meanwhile.
    let inside = |(port, packet): &(PortId, Vec<u8>)| {
        let packet = if *port == FABRIC {
            packet.get(50..)?
        } else {
            &packet[..]
        };
        Talk::of(packet)
    };
    let is_reset = packets.iter().filter_map(inside).any(|talk| talk.is_reset);
    let is_ended = is_reset || is_removed;
    for (packet, (verdict, delivered)) in packets.iter().zip(&delivered) {
        if let Some(asked) = inside(packet)
            && packet.0 == FABRIC
            && *verdict == Verdict::Forward(PortId(1))
            && !is_ended
        {
            is_answered(host, now, &asked, delivered);
        }
        if let Some(asked) = inside(packet)
            && packet.0 != FABRIC
            && *verdict == Verdict::Forward(FABRIC)
            && asked.to.ip() == FAR
            && !is_ended
        {
            is_answered_from_afar(host, now, &asked, delivered);
        }
    }
    let stats = host.stats();
    assert_eq!(stats.received, stats.accounted());
    let connections = stats.connections;
    assert_eq!(
        connections.made,
        connections.live + connections.expired + connections.removed
    );
}

/// Checks that a remote server's answer to a SNAT port reaches the vm that asked.
fn is_answered_from_afar(host: &mut Dut, now: Instant, asked: &Talk, sent: &[u8]) {
    let given = Talk::of(sent).expect("right checksums");
    assert_eq!(given.to, asked.to);
    assert_eq!(given.from.ip(), Ipv4Addr::from(VIP));
    let answer = encapsulated(&Talk::answer(sent).unwrap());
    let mut buffer = answer.clone();
    let mut frame = Frame::new(&mut buffer, 0, answer.len()).unwrap();
    frame.set_port(FABRIC);
    host.process(now, std::slice::from_mut(&mut frame));
    assert_eq!(
        frame.verdict(),
        Verdict::Forward(PortId(1)),
        "{asked:?}, {given:?}"
    );
    let got = Talk::of(frame.bytes()).expect("right checksums");
    assert_eq!((got.from, got.to), (asked.to, asked.from));
    assert_eq!(got.data, asked.data);
}

/// Checks that the vm's answer goes to the client, from the address that the client asked, or to a
/// mux on its way there.
fn is_answered(host: &mut Dut, now: Instant, asked: &Talk, delivered: &[u8]) {
    const HEADROOM: usize = 64;
    let Some(given) = Talk::of(delivered) else {
        panic!("{asked:?} became {delivered:02x?}")
    };
    // What is behind more tags than are read is the vm's as it is.
    if (given.from, given.to) == (asked.from, asked.to) {
        return;
    }
    let answer = Talk::answer(delivered).unwrap();
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(&answer);
    let mut frame = Frame::new(&mut buffer, HEADROOM, answer.len()).unwrap();
    frame.set_port(PortId(1));
    host.process(now, std::slice::from_mut(&mut frame));
    assert_eq!(
        frame.verdict(),
        Verdict::Forward(FABRIC),
        "{asked:?}, {given:?}"
    );
    let is_tunnelled = Talk::of(frame.bytes()).is_none_or(|talk| talk.to.port() == 4789);
    let inner = if is_tunnelled { 50 } else { 0 };
    let got = Talk::of(&frame.bytes()[inner..]).expect("right checksums");
    assert_eq!((got.from, got.to), (asked.to, asked.from));
    assert_eq!(got.data, asked.data);
}

#[derive(Clone, Debug, TypeGenerator)]
enum Operation {
    Burst(Vec<Arrival>),
    Wait(u32),
    Advance,
    Install(bool),
}

#[test]
fn host_survives_sequences() {
    bolero::check!()
        .with_type::<Vec<Operation>>()
        .for_each(|operations| {
            let [healthy, unhealthy] = snapshots();
            let mut host =
                Host::with_capacity(healthy.clone(), 32, Key::new([1, 2])).expect("its role");
            let mut now = Instant::from_secs(1);
            for operation in operations {
                match operation {
                    Operation::Burst(arrivals) => process(&mut host, now, arrivals),
                    Operation::Wait(millis) => now = now + Duration::from_millis((*millis).into()),
                    Operation::Advance => {
                        let mut memory = [[0u8; 128]; 4];
                        let mut spare = Burst::new();
                        for buffer in &mut memory {
                            spare.push(Frame::new(buffer, 16, 0).unwrap()).unwrap();
                        }
                        host.advance(now, &mut spare);
                        for frame in spare.iter().filter(|frame| !frame.is_empty()) {
                            assert!(matches!(frame.verdict(), Verdict::Forward(_)));
                            let sliced = SlicedPacket::from_ethernet(frame.bytes()).unwrap();
                            assert!(sliced.transport.is_some());
                        }
                    }
                    Operation::Install(is_healthy) => {
                        let next = if *is_healthy { healthy } else { unhealthy };
                        host.install(next.clone()).expect("it follows");
                    }
                }
            }
        });
}
