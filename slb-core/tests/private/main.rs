//! Private frontends: a vm's calls of its network's VIPs go to a backend without a mux on the way, and nothing
//! outside of the network reaches them.

mod apart;
mod closed;
mod endings;
mod faults;
mod messages;
pub mod net;

use std::num::NonZeroU16;

use crate::common::through;
use slb_core::hash::Distribution;
use slb_core::mux::Mux;
use slb_core::snapshot::Snapshot;
use slb_core::steer::Steering;
use slb_core::{DropReason, Frame, HEADROOM, Key, Verdict};

use net::{DNS, End, FABRIC, GATEWAY_MAC, HTTP, Net, Plan, SERVED, SSH, Segment, ip, outer, vip};

/// The client of the first network.
const CLIENT: usize = 0;

fn syn(plan: &Plan, from: usize, port: u16, is_ipv6: bool) -> Segment {
    let address = plan.vms[from].address(is_ipv6);
    Segment::tcp((address, port), (vip(is_ipv6), HTTP), "S")
}

fn send(net: &mut Net, from: usize, segment: &Segment) -> End {
    let mac = net.plan.vms[from].mac();
    net.send(from, &segment.frame(mac, GATEWAY_MAC))
}

/// Connects from a port of the client; returns the backend.
fn connect(net: &mut Net, port: u16, is_ipv6: bool) -> usize {
    let plan = net.plan.clone();
    let syn = syn(&plan, CLIENT, port, is_ipv6);
    let end = send(net, CLIENT, &syn);
    let backend = end.vm();
    let got = Segment::of(end.frame());
    let client = (plan.vms[CLIENT].address(is_ipv6), port);
    let server = (plan.vms[backend].address(is_ipv6), SERVED);
    assert_eq!(got, Segment { to: server, ..syn });
    let answer = Segment::tcp(server, client, "SA").at(5000, 1001);
    let end = send(net, backend, &answer);
    assert_eq!(end.vm(), CLIENT);
    assert_eq!(end.frame()[..6], plan.vms[CLIENT].mac());
    let front = (vip(is_ipv6), HTTP);
    assert_eq!(
        Segment::of(end.frame()),
        Segment {
            from: front,
            ..answer
        }
    );
    let ack = Segment::tcp(client, front, "A").at(1001, 5001);
    assert_eq!(send(net, CLIENT, &ack).vm(), backend);
    backend
}

#[test]
fn a_call_and_its_answers_go_from_host_to_host() {
    for ipv6_underlay in [false, true] {
        let mut plan = Plan::two_tenants();
        plan.ipv6_underlay = ipv6_underlay;
        let mut net = plan.net();
        let mut met = [0; 8];
        for is_ipv6 in [false, true] {
            for port in 40_000..40_030 {
                let backend = connect(&mut net, port, is_ipv6);
                assert_eq!(plan.vms[backend].tenant, 0);
                met[backend] += 1;
                // Bytes both ways, which take the fast path at the backend's host.
                let client = (plan.vms[CLIENT].address(is_ipv6), port);
                let server = (plan.vms[backend].address(is_ipv6), SERVED);
                for turn in 0..3 {
                    let get = Segment::tcp(client, (vip(is_ipv6), HTTP), "A")
                        .at(1001 + 4 * turn, 5001 + 1200 * turn)
                        .with(b"get\n");
                    let end = send(&mut net, CLIENT, &get);
                    assert_eq!(end.vm(), backend);
                    assert_eq!(Segment::of(end.frame()), Segment { to: server, ..get });
                    let page = Segment::tcp(server, client, "A")
                        .at(5001 + 1200 * turn, 1005 + 4 * turn)
                        .with(&[7; 1200]);
                    let end = send(&mut net, backend, &page);
                    assert_eq!(end.vm(), CLIENT);
                    let from = (vip(is_ipv6), HTTP);
                    assert_eq!(Segment::of(end.frame()), Segment { from, ..page });
                }
            }
        }
        assert!(met[1] > 5 && met[2] > 5 && met[3] > 5, "{met:?}");
    }
}

#[test]
fn the_backend_is_the_one_that_a_mux_chooses() {
    for distribution in [
        Distribution::FiveTuple,
        Distribution::SourceIp,
        Distribution::SourceIpProtocol,
    ] {
        let mut plan = Plan::two_tenants();
        plan.has_vip = vec![true, false];
        plan.distribution = distribution;
        plan.vms[2].weight = Some(3);
        let mut public = plan.clone();
        public.is_private = false;
        let snapshot = public.with_spec(9, |spec| Snapshot::new(spec, None).expect("good"));
        let mut mux = Mux::stateless(&snapshot, Key::new([1, 2])).expect("its role");
        let mut net = plan.net();
        let mut met = Vec::new();
        for is_ipv6 in [false, true] {
            for port in 41_000..41_100 {
                let frame = syn(&plan, CLIENT, port, is_ipv6).frame([2; 6], GATEWAY_MAC);
                let (verdict, sent) = through(FABRIC, &frame, |frames| {
                    mux.process(net.now, frames);
                });
                assert_eq!(verdict, Verdict::Forward(FABRIC));
                let (host, _) = outer(&sent).expect("VXLAN");
                let syn = syn(&plan, CLIENT, port, is_ipv6);
                let chosen = send(&mut net, CLIENT, &syn).vm();
                assert_eq!(plan.host_address(plan.vms[chosen].host), host);
                met.push(chosen);
            }
        }
        met.sort_unstable();
        met.dedup();
        let is_spread = distribution == Distribution::FiveTuple;
        assert!(if is_spread {
            met.len() == 3
        } else {
            met.len() <= 2
        });
    }
}

#[test]
fn a_backend_of_the_callers_host_is_reached_without_the_fabric() {
    let mut plan = Plan::two_tenants();
    (plan.vms[2].weight, plan.vms[3].weight) = (Some(0), Some(0));
    let mut net = plan.net();
    for (port, is_ipv6) in [(42_000, false), (42_001, true)] {
        assert_eq!(connect(&mut net, port, is_ipv6), 1);
    }
    assert_eq!(net.crossed, 0);
    // A long packet, which would not fit VXLAN.
    net.plan.mtu = 1500;
    let mut net = net.plan.clone().net();
    let backend = connect(&mut net, 42_002, false);
    let client = (plan.vms[CLIENT].address(false), 42_002);
    let server = (plan.vms[backend].address(false), SERVED);
    let page = Segment::tcp(server, client, "A")
        .at(5001, 1001)
        .with(&[7; 1460]);
    assert_eq!(send(&mut net, backend, &page).vm(), CLIENT);
    let get = Segment::tcp(client, (vip(false), HTTP), "A")
        .at(1001, 6461)
        .with(&[7; 1460]);
    assert_eq!(send(&mut net, CLIENT, &get).vm(), backend);
}

#[test]
fn a_tagged_call_arrives_without_its_tag() {
    for only in [1, 2] {
        let plan = Plan::two_tenants().with_only(only);
        let mut net = plan.net();
        for is_ipv6 in [false, true] {
            let call = syn(&plan, CLIENT, 42_200, is_ipv6);
            let mut frame = call.frame(plan.vms[CLIENT].mac(), GATEWAY_MAC);
            frame.splice(12..12, [0x81, 0, 0, 7]);
            let end = net.send(CLIENT, &frame);
            assert_eq!(end.vm(), only);
            let to = (plan.vms[only].address(is_ipv6), SERVED);
            assert_eq!(Segment::of(end.frame()), Segment { to, ..call });
        }
    }
}

#[test]
fn datagrams_and_inbound_nat_go_the_same_way() {
    let plan = Plan::two_tenants();
    let mut net = plan.net();
    for is_ipv6 in [false, true] {
        let mut met = Vec::new();
        for port in 43_000..43_040 {
            let client = (plan.vms[CLIENT].address(is_ipv6), port);
            let ask = Segment::udp(client, (vip(is_ipv6), DNS), b"who?");
            let end = send(&mut net, CLIENT, &ask);
            let backend = end.vm();
            let server = (plan.vms[backend].address(is_ipv6), DNS);
            assert_eq!(Segment::of(end.frame()), Segment { to: server, ..ask });
            let answer = Segment::udp(server, client, b"me");
            let end = send(&mut net, backend, &answer);
            assert_eq!(end.vm(), CLIENT);
            let from = (vip(is_ipv6), DNS);
            assert_eq!(Segment::of(end.frame()), Segment { from, ..answer });
            met.push(backend);
            // One port leads to the first backend whatever the hash says.
            let syn = Segment::tcp(client, (vip(is_ipv6), SSH), "S");
            let end = send(&mut net, CLIENT, &syn);
            assert_eq!(end.vm(), 1);
            assert_eq!(Segment::of(end.frame()).to.1, 22);
        }
        met.sort_unstable();
        met.dedup();
        assert_eq!(met, [1, 2, 3]);
    }
}

#[test]
fn a_flow_stays_at_its_backend_when_that_drains() {
    let plan = Plan::two_tenants();
    let mut net = plan.net();
    let flows: Vec<_> = (44_000..44_060)
        .map(|port| (port, connect(&mut net, port, false)))
        .collect();
    let mut next = plan.clone();
    next.vms[2].weight = Some(0);
    net.install_everywhere(&next);
    let mut drained = 0;
    for &(port, backend) in &flows {
        let client = (plan.vms[CLIENT].address(false), port);
        let get = Segment::tcp(client, (vip(false), HTTP), "A")
            .at(1001, 5001)
            .with(b"get\n");
        assert_eq!(send(&mut net, CLIENT, &get).vm(), backend);
        drained += usize::from(backend == 2);
        let server = (plan.vms[backend].address(false), SERVED);
        let page = Segment::tcp(server, client, "A")
            .at(5001, 1005)
            .with(b"page");
        assert_eq!(send(&mut net, backend, &page).vm(), CLIENT);
    }
    assert!(
        drained > 5,
        "{drained} of the flows are the draining backend's"
    );
    for port in 45_000..45_060 {
        assert_ne!(connect(&mut net, port, false), 2);
    }
}

#[test]
fn health_that_only_the_backends_host_knows_counts() {
    let plan = Plan::two_tenants();
    let mut net = plan.net();
    let mut sick = plan.clone();
    sick.unhealthy = Some(2);
    // The caller's host goes on choosing it, and its own host passes what is new on.
    net.install(1, &sick);
    for port in 46_000..46_060 {
        assert_ne!(connect(&mut net, port, false), 2);
    }
}

#[test]
fn nothing_outside_of_the_network_reaches_a_private_vip() {
    let mut plan = Plan::two_tenants();
    plan.has_vip = vec![true, false];
    let mut net = plan.net();
    for is_ipv6 in [false, true] {
        // The client of the other network has the same address as one that may call.
        let call = syn(&plan, 4, 50_000, is_ipv6);
        let end = send(&mut net, 4, &call);
        assert_eq!(end, End::Dropped(DropReason::NoNeighbour));
        // From the fabric.
        let stranger = ip(if is_ipv6 {
            "2001:db8::9"
        } else {
            "203.0.113.9"
        });
        let call = Segment::tcp((stranger, 1), (vip(is_ipv6), HTTP), "S");
        let frame = call.frame([2; 6], [2, 0, 0, 0, 0, 101]);
        assert_eq!(net.enter(0, FABRIC, &frame), End::Passed);
        let snapshot = plan.with_spec(9, |spec| Snapshot::new(spec, None).expect("good"));
        let mut mux = Mux::with_capacity(&snapshot, 64, Key::new([1, 2])).expect("its role");
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(&frame);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, frame.len()).expect("it fits")];
        mux.process(net.now, &mut frames);
        assert_eq!(frames[0].verdict(), Verdict::Pass);
        // Under another's name, or from the VIP itself.
        for source in [plan.vms[2].address(is_ipv6), vip(is_ipv6)] {
            let call = Segment::tcp((source, 1), (vip(is_ipv6), HTTP), "S");
            match (send(&mut net, CLIENT, &call), source == vip(is_ipv6)) {
                (End::Dropped(DropReason::SpoofedSource), false)
                | (End::Dropped(DropReason::NoConnection), true) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn the_host_of_the_caller_counts_what_it_sends() {
    let mut plan = Plan::two_tenants();
    (plan.vms[1].weight, plan.vms[3].weight) = (Some(0), Some(0));
    let mut net = plan.net();
    connect(&mut net, 54_000, false);
    let host = &net.hosts[0];
    let counters = host.rule_counters("http-web0false").expect("its rule");
    assert_eq!((counters.forwarded.packets, counters.syns), (2, 1));
    let counters = host
        .backend_counters("pool0false/vm22")
        .expect("its backend");
    assert_eq!(counters.forwarded.packets, 2);
    let host = &net.hosts[1];
    let counters = host.rule_counters("http-web0false").expect("its rule");
    assert_eq!((counters.forwarded.packets, counters.flows), (3, 1));
}

#[test]
fn a_call_of_a_backend_on_the_callers_host_is_one_workers() {
    let plan = Plan::two_tenants();
    let host = plan.host(0);
    let workers = NonZeroU16::new(4).expect("four");
    let mut seen = [false; 4];
    for key in 0..40 {
        let steering = Steering::new(workers, Key::new([key, 9]));
        let owner = |vm: usize, frame: &[u8]| {
            let mut buffer = frame.to_vec();
            let mut frame = Frame::new(&mut buffer, 0, frame.len()).expect("it fits");
            frame.set_port(plan.port_of(vm));
            steering.owner(host.snapshot(), &frame)
        };
        for is_ipv6 in [false, true] {
            let client = (plan.vms[CLIENT].address(is_ipv6), 7);
            let server = plan.vms[1].address(is_ipv6);
            let macs = [plan.vms[CLIENT].mac(), plan.vms[1].mac()];
            for port in [HTTP, DNS] {
                let call = Segment::udp(client, (vip(is_ipv6), port), b"?");
                let call = call.frame(macs[0], GATEWAY_MAC);
                let answer = Segment::udp((server, port), client, b"!");
                let answer = answer.frame(macs[1], GATEWAY_MAC);
                let error = messages::unreachable(macs[0], GATEWAY_MAC, &{
                    Segment::udp((vip(is_ipv6), port), client, b"!").frame(macs[1], macs[0])
                });
                let owners = [(CLIENT, call), (1, answer), (CLIENT, error)];
                let owners = owners.map(|(vm, frame)| owner(vm, &frame).expect("an owner"));
                assert_eq!(owners, [owners[0]; 3]);
                seen[usize::from(owners[0])] = true;
            }
        }
    }
    assert_eq!(seen, [true; 4]);
}
