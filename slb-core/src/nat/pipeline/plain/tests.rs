//! The fast path against the slow path.

mod captures;
mod segment;
mod twins;

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::panic::AssertUnwindSafe;
use core::time::Duration;

use super::*;
use crate::host::HostRole;
use crate::proxy::ProxyRole;
use crate::spec::{
    Answers, Backend, BackendState, Echo, Frontend, FrontendPort, Outbound, Pool, Protocol,
    ProxyPorts, Rule, Spec, Terms, UdpChecksum, Underlay, derived_mac,
};
use crate::wire::ethernet::MacAddress;
use segment::{Segment, spoil};
use twins::{Side, Twins};

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
