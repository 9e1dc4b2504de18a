//! The proxy, given anything from either side, over time and configurations: each frame gets one
//! verdict, the counters add up, what is not translated is untouched, what came with right checksums
//! leaves with right ones, and no connection moves.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bolero::TypeGenerator;
use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, FrontendPort, Pool, PortMode, Protocol, ProxyPorts,
    Rule, Scheduler, SourceRewrite, Spec, Terms,
};
use slb_core::{Burst, Frame, Instant, Key, PortId, Proxy, Verdict};
use slb_fuzz::{Nearly, Talk, VIP, VIP6, is_right, write};

type Dut = Proxy<'static, Arc<Snapshot<'static>>>;

const GUARD: u8 = 0xa5;
const BACKEND: PortId = PortId(9);

fn server(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, 1, number)
}

/// The servers of each that take new flows.
const TAKERS: [&[u8]; 3] = [&[0, 1], &[0], &[0]];

/// The configurations that follow each other: how many backends, the state of all but the first one, and
/// the scheduler.
const CONFIGURATIONS: [(u8, BackendState, Scheduler); 3] = [
    (2, BackendState::Up, Scheduler::Maglev),
    (3, BackendState::Draining, Scheduler::LeastConnections),
    (1, BackendState::Down, Scheduler::Maglev),
];

fn next(which: usize, previous: Option<&Snapshot<'_>>) -> Arc<Snapshot<'static>> {
    let (count, state, scheduler) = CONFIGURATIONS[which];
    Arc::new(snapshot(count, state, scheduler, previous))
}

fn snapshot(
    count: u8,
    state: BackendState,
    scheduler: Scheduler,
    previous: Option<&Snapshot<'_>>,
) -> Snapshot<'static> {
    let names = ["a", "b", "c"];
    let backends: Vec<_> = (0..count)
        .map(|n| Backend {
            name: names[usize::from(n)],
            address: server(n).into(),
            state: if n == 0 { BackendState::Up } else { state },
            ..Backend::default()
        })
        .collect();
    let six = [Backend {
        name: "six",
        address: std::net::Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1).into(),
        ..Backend::default()
    }];
    let rule = |name, frontend, protocol, frontend_port| Rule {
        name,
        frontend,
        pool: frontend,
        protocol,
        frontend_port,
        backend_port: 8080 * u16::from(frontend_port != 0),
        scheduler,
        terms: Terms {
            tcp_reset: true,
            source_nat: (frontend_port == 81).then_some(Ipv4Addr::new(10, 99, 0, 1).into()),
            ..Terms::default()
        },
        ..Rule::default()
    };
    let pool = |name, backends| Pool {
        name,
        table_size: 31,
        backends,
        ..Pool::default()
    };
    let frontend = |name, address| Frontend {
        name,
        address,
        icmp_echo: Echo::Answer,
    };
    let port = |n: u8| FrontendPort {
        port: PortId(n.into()),
        address: Some(Ipv4Addr::new(10, 0, 0, n)),
    };
    let spec = Spec {
        frontends: &[frontend("v4", VIP.into()), frontend("v6", VIP6.into())],
        rules: &[
            rule("tcp", 0, Protocol::Tcp, 80),
            rule("full", 0, Protocol::Tcp, 81),
            rule("udp", 0, Protocol::Udp, 53),
            rule("ping", 0, Protocol::Icmp, 0),
            rule("all", 1, Protocol::All, 0),
        ],
        pools: &[pool("v4", &backends), pool("v6", &six)],
        proxy: Some(ProxyPorts {
            mode: PortMode::Multi,
            frontends: &[port(0), port(1)],
            backend: BACKEND,
            source_rewrites: &[SourceRewrite {
                from: Ipv4Addr::new(10, 0, 0, 128).into(),
                to: Ipv4Addr::new(192, 168, 0, 0).into(),
                prefix_len: 25,
            }],
        }),
        ..Spec::default()
    };
    Snapshot::new(&spec, previous).unwrap()
}

/// A frame, and its origin.
#[derive(Clone, Debug, TypeGenerator)]
enum Arrival {
    /// A packet for a VIP.
    FromClient(bool, Nearly),
    /// A packet for another destination.
    ToStranger(Nearly),
    /// The other way round: what a server would answer.
    Answer(u8, Nearly),
    /// Bytes from any port.
    Raw(u8, Vec<u8>),
}

impl Arrival {
    fn frame(&self) -> (PortId, Vec<u8>) {
        match self {
            Self::FromClient(second, packet) => (PortId((*second).into()), packet.packet()),
            Self::ToStranger(packet) => {
                let mut frame = packet.packet();
                write(&mut frame, &[(30, &[9, 9, 9, 9])]);
                (PortId(0), frame)
            }
            Self::Answer(number, packet) => {
                let mut frame = packet.packet();
                if frame.get(12..14) == Some(&[8, 0]) {
                    let client = frame.get(26..30).map(<[u8]>::to_vec).unwrap_or_default();
                    let port = frame.get(34..36).map(<[u8]>::to_vec).unwrap_or_default();
                    let (server, own) = (server(number % 3).octets(), 8080_u16.to_be_bytes());
                    let ends: [(usize, &[u8]); 4] =
                        [(26, &server), (30, &client), (34, &own), (36, &port)];
                    write(&mut frame, &ends);
                }
                (BACKEND, frame)
            }
            Self::Raw(port, bytes) => (PortId((*port % 10).into()), bytes.clone()),
        }
    }
}

/// The ends of a TCP segment over IPv4, or of its first fragment, behind whatever tags: who sends it, and where
/// its server is.
fn segment(frame: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let sliced = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let Some(LaxNetSlice::Ipv4(ip)) = &sliced.net else {
        return None;
    };
    let header = ip.header();
    let is_first = header.fragments_offset().value() == 0;
    (header.protocol() == IpNumber::TCP && is_first).then_some(())?;
    let ports = header.slice().as_ptr().addr() - frame.as_ptr().addr() + header.slice().len();
    let (from, to) = (
        frame.get(ports..ports + 2)?,
        frame.get(ports + 2..ports + 4)?,
    );
    Some((
        [&header.source(), from].concat(),
        [&header.destination(), to].concat(),
    ))
}

fn process(
    proxy: &mut Dut,
    now: Instant,
    arrivals: &[Arrival],
    homes: &mut HashMap<Vec<u8>, (u64, Vec<u8>)>,
    takers: &[u8],
) {
    const HEADROOM: usize = 64;
    let packets: Vec<_> = arrivals.iter().map(Arrival::frame).collect();
    for (port, packet) in &packets {
        let mut buffer = vec![GUARD; HEADROOM];
        buffer.extend(packet);
        buffer.extend([GUARD; 64]);
        let made = proxy.stats().connections.made;
        // The last bytes are not lent.
        let lent = buffer.len() - 8;
        let mut frame = Frame::new(&mut buffer[..lent], HEADROOM, packet.len()).unwrap();
        frame.set_port(*port);
        proxy.process(now, std::slice::from_mut(&mut frame));
        let (verdict, after) = (frame.verdict(), frame.bytes().to_vec());
        match verdict {
            Verdict::Pass | Verdict::Flood => assert_eq!(&after, packet),
            Verdict::Drop(_) => {}
            Verdict::Forward(out) => {
                assert_eq!(out == BACKEND, *port != BACKEND);
                assert_eq!(after.len(), packet.len());
                assert_eq!(after.get(..14), packet.get(..14));
                if is_right(packet) {
                    assert!(is_right(&after), "{packet:02x?} became {after:02x?}");
                }
                if let (Some(asked), Some(given)) = (Talk::of(packet), Talk::of(&after)) {
                    assert_eq!(asked.data, given.data);
                    if asked.to != given.to && !asked.is_reset && *port != BACKEND {
                        is_answered(proxy, now, *port, &asked, &after);
                    }
                }
                // Who has a connection meets the same server, until it is made anew.
                if let (Some((mut client, vip)), Some((_, server))) =
                    (segment(packet), segment(&after))
                    && *port != BACKEND
                    && vip != server
                {
                    client.extend(vip);
                    client.extend(port.0.to_be_bytes());
                    let stats = proxy.stats().connections;
                    let begins = stats.made > made;
                    let home = homes.entry(client).or_insert((stats.made, server.clone()));
                    if begins {
                        let number = server[3];
                        assert!(takers.contains(&number), "a new flow went to {number}");
                        *home = (stats.made, server);
                    } else {
                        assert_eq!(home.1, server);
                    }
                }
            }
            Verdict::Reply => {
                if is_right(packet) {
                    assert!(is_right(&after), "{packet:02x?} became {after:02x?}");
                }
            }
        }
        assert!(buffer[buffer.len() - 8..].iter().all(|&byte| byte == GUARD));
    }
    let stats = proxy.stats();
    assert_eq!(stats.received, stats.accounted());
    let connections = stats.connections;
    assert_eq!(
        connections.made,
        connections.live + connections.expired + connections.removed
    );
}

/// Checks that the server's answer reaches the client, from the address that the client asked.
fn is_answered(proxy: &mut Dut, now: Instant, port: PortId, asked: &Talk, forwarded: &[u8]) {
    let answer = Talk::answer(forwarded).unwrap();
    let mut buffer = answer.clone();
    let mut frame = Frame::new(&mut buffer, 0, answer.len()).unwrap();
    frame.set_port(BACKEND);
    proxy.process(now, std::slice::from_mut(&mut frame));
    assert_eq!(frame.verdict(), Verdict::Forward(port), "{asked:?}");
    let got = Talk::of(frame.bytes()).expect("right checksums");
    assert_eq!((got.from, got.to), (asked.to, asked.from));
    assert_eq!(got.data, asked.data);
}

#[derive(Clone, Debug, TypeGenerator)]
enum Operation {
    Burst(Vec<Arrival>),
    Wait(u32),
    Advance,
    Install(u8),
}

#[test]
fn proxy_survives_sequences() {
    bolero::check!()
        .with_type::<Vec<Operation>>()
        .for_each(|operations| {
            let mut proxy =
                Proxy::with_capacity(next(0, None), 32, Key::new([1, 2])).expect("its role");
            let mut now = Instant::from_secs(1);
            let mut homes = HashMap::new();
            let mut takers = TAKERS[0];
            for operation in operations {
                match operation {
                    Operation::Burst(arrivals) => {
                        process(&mut proxy, now, arrivals, &mut homes, takers);
                    }
                    Operation::Wait(millis) => now = now + Duration::from_millis((*millis).into()),
                    Operation::Advance => {
                        let mut memory = [[0u8; 128]; 4];
                        let mut spare = Burst::new();
                        for buffer in &mut memory {
                            spare.push(Frame::new(buffer, 16, 0).unwrap()).unwrap();
                        }
                        proxy.advance(now, &mut spare);
                        for frame in spare.iter().filter(|frame| !frame.is_empty()) {
                            assert!(matches!(frame.verdict(), Verdict::Forward(_)));
                        }
                    }
                    Operation::Install(which) => {
                        let which = usize::from(*which) % 3;
                        takers = TAKERS[which];
                        let next = next(which, Some(proxy.snapshot()));
                        proxy.install(next).expect("it follows");
                    }
                }
            }
        });
}
