//! The mux, given anything: each frame gets one verdict, the counters add up, nothing is written
//! outside a frame's buffer, and what is forwarded is well-formed VXLAN.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bolero::TypeGenerator;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, BackendState, Echo, Frontend, Pool, Protocol, Rule, Spec, Underlay};
use slb_core::wire::vxlan::Vni;
use slb_core::{Frame, HEADROOM, Instant, Key, Mux, Verdict};
use slb_fuzz::{Nearly, Talk, VIP, VIP6, is_right};

const GUARD: u8 = 0xa5;

/// VIPs of both families with HA ports and source-ip distribution on one, ports on the other.
fn snapshots() -> &'static [Arc<Snapshot<'static>>; 2] {
    static SNAPSHOTS: OnceLock<[Arc<Snapshot<'static>>; 2]> = OnceLock::new();
    SNAPSHOTS.get_or_init(|| {
        let first = snapshot(BackendState::Up, None);
        let second = snapshot(BackendState::Down, Some(&first));
        [Arc::new(first), Arc::new(second)]
    })
}

fn snapshot(third: BackendState, previous: Option<&Snapshot<'_>>) -> Snapshot<'static> {
    let backend = |name, number: u8, ipv6: bool, state| Backend {
        name,
        address: if ipv6 {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
        } else {
            Ipv4Addr::new(10, 10, 1, number).into()
        },
        host: if number == 2 {
            Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 2).into()
        } else {
            Ipv4Addr::new(172, 16, 0, number).into()
        },
        mac: None,
        next_hop: None,
        weight: number.into(),
        state,
        ..Backend::default()
    };
    let all = |ipv6| {
        [
            backend("a", 1, ipv6, BackendState::Up),
            backend("b", 2, ipv6, BackendState::Up),
            backend("c", 3, ipv6, third),
        ]
    };
    let (ipv4, ipv6) = (all(false), all(true));
    let pool = |name, backends| Pool {
        name,
        vni: Vni::new(7).unwrap(),
        table_size: 251,
        backends,
        ..Pool::default()
    };
    let rule = |name, frontend, protocol, frontend_port, distribution| Rule {
        name,
        frontend,
        pool: frontend,
        protocol,
        frontend_port,
        backend_port: frontend_port,
        distribution,
        idle_timeout: Duration::from_secs(240),
        ..Rule::default()
    };
    let spec = Spec {
        hasher: Default::default(),
        hash_seed: 1,
        underlay: Underlay {
            ipv4: Some(Ipv4Addr::new(172, 16, 0, 11)),
            ipv6: Some(Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x11)),
            ..Underlay::default()
        },
        frontends: &[
            Frontend {
                name: "v4",
                address: VIP.into(),
                icmp_echo: Echo::Answer,
            },
            Frontend {
                name: "v6",
                address: VIP6.into(),
                icmp_echo: Echo::Forward,
            },
        ],
        rules: &[
            rule("tcp", 0, Protocol::Tcp, 80, Default::default()),
            rule(
                "udp",
                0,
                Protocol::Udp,
                53,
                slb_core::hash::Distribution::SourceIpProtocol,
            ),
            rule(
                "all",
                1,
                Protocol::All,
                0,
                slb_core::hash::Distribution::SourceIp,
            ),
        ],
        pools: &[pool("v4", &ipv4), pool("v6", &ipv6)],
        ..Spec::default()
    };
    Snapshot::new(&spec, previous).unwrap()
}

/// Processes one burst of frames, each with its headroom, and checks all that always holds.
fn process(mux: &mut Mux<'_, Arc<Snapshot<'static>>>, now: Instant, packets: &[(Vec<u8>, usize)]) {
    let mut memory: Vec<Vec<u8>> = packets
        .iter()
        .map(|(packet, headroom)| {
            let mut buffer = vec![GUARD; *headroom];
            buffer.extend(packet);
            buffer.extend([GUARD; 16]);
            buffer
        })
        .collect();
    let mut frames: Vec<Frame<'_>> = memory
        .iter_mut()
        .zip(packets)
        .map(|(buffer, (packet, headroom))| Frame::new(buffer, *headroom, packet.len()).unwrap())
        .collect();
    mux.process(now, &mut frames);
    for (frame, (packet, _)) in frames.iter().zip(packets) {
        match frame.verdict() {
            Verdict::Pass => assert_eq!(frame.bytes(), packet),
            Verdict::Drop(_) => {}
            Verdict::Flood => unreachable!("a mux has one port"),
            Verdict::Reply => {
                let reply = SlicedPacket::from_ethernet(frame.bytes()).unwrap();
                assert!(reply.net.is_some());
                assert!(!is_right(packet) || is_right(frame.bytes()));
            }
            Verdict::Forward(_) => {
                let inner = forwarded(frame.bytes());
                assert!(!is_right(packet) || is_right(inner));
                assert!(Talk::of(packet).is_none_or(|talk| Some(talk) == Talk::of(inner)));
            }
        }
    }
    drop(frames);
    for (buffer, (packet, headroom)) in memory.iter().zip(packets) {
        assert!(
            buffer[headroom + packet.len()..]
                .iter()
                .all(|&byte| byte == GUARD)
        );
    }
    let stats = mux.stats();
    assert_eq!(stats.received, stats.accounted());
}

/// Returns the inner packet.
fn forwarded(frame: &[u8]) -> &[u8] {
    let outer = SlicedPacket::from_ethernet(frame).unwrap();
    match outer.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
        }
        NetSlice::Ipv6(_) => {}
        NetSlice::Arp(_) => panic!("ARP is no tunnel"),
    }
    let Some(TransportSlice::Udp(udp)) = outer.transport else {
        panic!("no UDP")
    };
    assert_eq!(udp.destination_port(), 4789);
    assert_eq!(udp.payload()[..4], [8, 0, 0, 0]);
    let inner = frame.len() - (udp.payload().len() - 8);
    &frame[inner..]
}

#[test]
fn mux_takes_arbitrary_frames() {
    bolero::check!()
        .with_type::<Vec<(Vec<u8>, u8)>>()
        .for_each(|frames| {
            let snapshot = snapshots()[0].clone();
            let mut mux = Mux::with_capacity(snapshot, 64, Key::new([1, 2])).expect("its role");
            let packets: Vec<_> = frames
                .iter()
                .map(|(bytes, headroom)| (bytes.clone(), usize::from(*headroom)))
                .collect();
            process(&mut mux, Instant::from_secs(1), &packets);
        });
}

#[derive(Clone, Debug, TypeGenerator)]
enum Operation {
    Burst(Vec<Nearly>),
    Wait(u32),
    Install(bool),
}

/// Over time: bursts, health changes, clock leaps.
#[test]
fn mux_survives_sequences() {
    bolero::check!()
        .with_type::<(bool, Vec<Operation>)>()
        .for_each(|(stateless, operations)| {
            let [healthy, unhealthy] = snapshots();
            let mut mux = if *stateless {
                Mux::stateless(healthy.clone(), Key::new([1, 2])).expect("its role")
            } else {
                Mux::with_capacity(healthy.clone(), 40, Key::new([1, 2])).expect("its role")
            };
            let mut now = Instant::from_secs(1);
            for operation in operations {
                match operation {
                    Operation::Burst(packets) => {
                        let packets: Vec<_> = packets
                            .iter()
                            .map(|nearly| {
                                (nearly.packet(), HEADROOM.min(nearly.headroom.into()) * 2)
                            })
                            .collect();
                        process(&mut mux, now, &packets);
                    }
                    Operation::Wait(millis) => now = now + Duration::from_millis((*millis).into()),
                    Operation::Install(is_healthy) => {
                        let next = if *is_healthy { healthy } else { unhealthy };
                        mux.install(next.clone()).expect("it follows");
                    }
                }
            }
        });
}
