//! Private frontends: a vm's calls of its network's VIPs go to a backend without a mux on the way, and nothing
//! outside of the network reaches them.

mod apart;
mod closed;
mod net;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use crate::common::{faults_of, through};
use etherparse::PacketBuilder;
use slb_core::hash::Distribution;
use slb_core::mux::Mux;
use slb_core::nat::NatOptions;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Echo, Network, ProxyPorts, Rule, RuleItem, Spec, SpecError};
use slb_core::state::{Age, Cursor};
use slb_core::steer::Steering;
use slb_core::wire::arp::{self, Operation};
use slb_core::wire::ethernet::MacAddress;
use slb_core::{Burst, DropReason, Frame, HEADROOM, Host, Key, Verdict};

use net::{
    DNS, End, FABRIC, GATEWAY_MAC, HTTP, Net, Plan, SERVED, SSH, Segment, ip, outbound, outer,
    through_mux, vip,
};

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
        let mut plan = Plan::two_tenants();
        for backend in [1, 2, 3] {
            plan.vms[backend].weight = Some(u32::from(backend == only));
        }
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
fn what_does_not_fit_vxlan_is_answered_both_ways() {
    let mut plan = Plan::two_tenants();
    (plan.vms[1].weight, plan.vms[3].weight) = (Some(0), Some(0));
    plan.mtu = 1500;
    let mut net = plan.net();
    for (port, is_ipv6, kind) in [(42_100, false, 3), (42_101, true, 2)] {
        let backend = connect(&mut net, port, is_ipv6);
        let client = (plan.vms[CLIENT].address(is_ipv6), port);
        let server = (plan.vms[backend].address(is_ipv6), SERVED);
        let long = [7; 1440];
        let page = Segment::tcp(server, client, "A").at(5001, 1001).with(&long);
        let get = Segment::tcp(client, (vip(is_ipv6), HTTP), "A")
            .at(1001, 5001)
            .with(&long);
        for (from, segment) in [(backend, page), (CLIENT, get)] {
            let End::Reply(error) = send(&mut net, from, &segment) else {
                panic!("told");
            };
            let icmp = &error[14 + if is_ipv6 { 40 } else { 20 }..];
            assert_eq!(
                (icmp[0], u16::from_be_bytes([icmp[6], icmp[7]])),
                (kind, 1450)
            );
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
fn no_backend_is_told_with_a_reset_where_the_rule_says_so() {
    for (tcp_reset, is_ipv6) in [(true, false), (true, true), (false, false)] {
        let mut plan = Plan::two_tenants();
        plan.terms.tcp_reset = tcp_reset;
        for vm in &mut plan.vms {
            vm.weight = vm.weight.and(Some(0));
        }
        let mut net = plan.net();
        let end = send(&mut net, CLIENT, &syn(&plan, CLIENT, 47_000, is_ipv6));
        match end {
            End::Reply(frame) if tcp_reset => {
                let reset = Segment::of(&frame);
                assert_eq!(reset.from, (vip(is_ipv6), HTTP));
                assert_eq!((&*reset.flags, reset.acknowledged), ("AR", 1001));
            }
            End::Dropped(DropReason::NoBackend) if !tcp_reset => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_segment_of_no_connection_is_refused_through_the_network() {
    for only in [1, 2] {
        let mut plan = Plan::two_tenants();
        plan.terms.tcp_reset = true;
        for backend in [1, 2, 3] {
            plan.vms[backend].weight = Some(u32::from(backend == only));
        }
        let mut net = plan.net();
        for is_ipv6 in [false, true] {
            let client = (plan.vms[CLIENT].address(is_ipv6), 47_100);
            let stray = Segment::tcp(client, (vip(is_ipv6), HTTP), "A").at(77, 88);
            let end = send(&mut net, CLIENT, &stray);
            assert_eq!(end.vm(), CLIENT, "the caller is told");
            let reset = Segment::of(end.frame());
            assert_eq!((reset.from, reset.to), ((vip(is_ipv6), HTTP), client));
            assert_eq!((&*reset.flags, reset.sequence), ("R", 88));
        }
    }
}

#[test]
fn both_ends_are_reset_when_a_connection_expires() {
    for only in [1, 2] {
        let mut plan = Plan::two_tenants();
        plan.terms.tcp_reset = true;
        for backend in [1, 2, 3] {
            plan.vms[backend].weight = Some(u32::from(backend == only));
        }
        for is_ipv6 in [false, true] {
            let mut net = plan.net();
            assert_eq!(connect(&mut net, 47_200, is_ipv6), only);
            let host = plan.vms[only].host;
            net.now = net.now + Duration::from_secs(300);
            let mut told = Vec::new();
            for _ in 0..200 {
                net.now = net.now + Duration::from_millis(100);
                let mut buffers = vec![vec![0; 256]; 2];
                let mut burst = Burst::new();
                for buffer in &mut buffers {
                    let frame = Frame::new(buffer, HEADROOM, 0).expect("it fits");
                    burst.push(frame).expect("room");
                }
                net.hosts[host].advance(net.now, &mut burst);
                for frame in burst.iter_mut() {
                    if let Verdict::Forward(port) = frame.verdict() {
                        told.push((port, frame.bytes().to_vec()));
                    }
                }
            }
            assert_eq!(told.len(), 2);
            let mut ends = Vec::new();
            for (port, frame) in told {
                let (vm, frame) = match port {
                    FABRIC => {
                        let to = net.cross(&frame);
                        let end = net.enter(to, FABRIC, &frame);
                        (end.vm(), end.frame().to_vec())
                    }
                    port => (plan.vm_at(host, port).expect("a vm"), frame),
                };
                let reset = Segment::of(&frame);
                assert_eq!(frame[..6], plan.vms[vm].mac());
                ends.push((vm, reset.flags, reset.from, reset.to));
            }
            ends.sort_by_key(|end| end.0);
            let client = (plan.vms[CLIENT].address(is_ipv6), 47_200);
            let server = (plan.vms[only].address(is_ipv6), SERVED);
            let flags = || "AR".to_owned();
            assert_eq!(
                ends,
                [
                    (CLIENT, flags(), (vip(is_ipv6), HTTP), client),
                    (only, flags(), client, server),
                ]
            );
        }
    }
}

#[test]
fn echo_requests_are_answered_by_the_callers_host() {
    for (echo, expected) in [
        (Echo::Answer, None),
        (Echo::Ignore, Some(DropReason::EchoIgnored)),
        (Echo::Forward, Some(DropReason::NoRule)),
    ] {
        let mut plan = Plan::two_tenants();
        plan.echo = echo;
        let mut net = plan.net();
        for is_ipv6 in [false, true] {
            let (from, to) = (plan.vms[CLIENT].address(is_ipv6), vip(is_ipv6));
            let frame = closed::echo((from, to), (plan.vms[CLIENT].mac(), GATEWAY_MAC));
            match (net.send(CLIENT, &frame), expected) {
                (End::Reply(reply), None) => {
                    let icmp = reply[14 + if is_ipv6 { 40 } else { 20 }];
                    assert_eq!(icmp, if is_ipv6 { 129 } else { 0 });
                }
                (End::Dropped(reason), Some(expected)) => assert_eq!(reason, expected),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// An ICMP error of a vm's about a packet that it got.
fn unreachable(from: [u8; 6], to: [u8; 6], got: &[u8]) -> Vec<u8> {
    let quoted = &got[14..(14 + 48).min(got.len())];
    let mut frame = Vec::new();
    let link = PacketBuilder::ethernet2(from, to);
    let packet = Segment::of(got);
    match (packet.to.0, packet.from.0) {
        (IpAddr::V4(own), IpAddr::V4(other)) => link
            .ipv4(own.octets(), other.octets(), 64)
            .icmpv4_raw(3, 3, [0; 4])
            .write(&mut frame, quoted),
        (IpAddr::V6(own), IpAddr::V6(other)) => link
            .ipv6(own.octets(), other.octets(), 64)
            .icmpv6_raw(1, 4, [0; 4])
            .write(&mut frame, &got[14..(14 + 68).min(got.len())]),
        _ => panic!("two families"),
    }
    .expect("written");
    frame
}

#[test]
fn errors_about_a_call_reach_both_ends_under_its_names() {
    for only in [1, 2] {
        let mut plan = Plan::two_tenants();
        for backend in [1, 2, 3] {
            plan.vms[backend].weight = Some(u32::from(backend == only));
        }
        let mut net = plan.net();
        for is_ipv6 in [false, true] {
            let offset = 14 + if is_ipv6 { 40 } else { 20 } + 8;
            let client = (plan.vms[CLIENT].address(is_ipv6), 48_000);
            let server = (plan.vms[only].address(is_ipv6), DNS);
            let front = (vip(is_ipv6), DNS);
            let ends = |frame: &[u8]| {
                let (at, len) = if is_ipv6 { (8, 16) } else { (12, 4) };
                let quoted = &frame[offset..];
                let address = |at: usize| -> IpAddr {
                    match is_ipv6 {
                        false => <[u8; 4]>::try_from(&quoted[at..at + len]).unwrap().into(),
                        true => <[u8; 16]>::try_from(&quoted[at..at + len]).unwrap().into(),
                    }
                };
                let ports = &quoted[at + 2 * len..];
                let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
                ((address(at), port(0)), (address(at + len), port(2)))
            };
            let ask = Segment::udp(client, front, b"who?");
            let asked = send(&mut net, CLIENT, &ask);
            let error = unreachable(plan.vms[only].mac(), GATEWAY_MAC, asked.frame());
            let end = net.send(only, &error);
            assert_eq!(end.vm(), CLIENT);
            assert_eq!(ends(end.frame()), (client, front));
            let answered = send(&mut net, only, &Segment::udp(server, client, b"me"));
            let error = unreachable(plan.vms[CLIENT].mac(), GATEWAY_MAC, answered.frame());
            let end = net.send(CLIENT, &error);
            assert_eq!(end.vm(), only);
            assert_eq!(ends(end.frame()), (server, client));
        }
    }
}

#[test]
fn later_fragments_follow_their_first_one() {
    for only in [1, 2] {
        let mut plan = Plan::two_tenants();
        for backend in [1, 2, 3] {
            plan.vms[backend].weight = Some(u32::from(backend == only));
        }
        let mut net = plan.net();
        let client = (plan.vms[CLIENT].address(false), 49_000);
        let whole = Segment::udp(client, (vip(false), DNS), &[5; 64])
            .frame(plan.vms[CLIENT].mac(), GATEWAY_MAC);
        let part = |from: usize, to: usize, flags: u16| {
            let mut frame = whole[..34].to_vec();
            frame.extend(&whole[34 + from..34 + to]);
            let len = (20 + to - from) as u16;
            frame[16..18].copy_from_slice(&len.to_be_bytes());
            frame[18..20].copy_from_slice(&[7, 7]);
            frame[20..22].copy_from_slice(&flags.to_be_bytes());
            frame[24..26].fill(0);
            let sum = slb_core::wire::checksum::Sum::ZERO.add_bytes(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.checksum().to_be_bytes());
            frame
        };
        let first = net.send(CLIENT, &part(0, 40, 0x2000));
        let later = net.send(CLIENT, &part(40, 72, 5));
        assert_eq!((first.vm(), later.vm()), (only, only));
        let server: IpAddr = plan.vms[only].address(false);
        for end in [first, later] {
            let to: [u8; 4] = end.frame()[30..34].try_into().unwrap();
            assert_eq!(IpAddr::from(to), server);
        }
    }
}

#[test]
fn the_host_answers_arp_for_a_private_vip_of_the_vms_network_only() {
    let mut plan = Plan::two_tenants();
    plan.has_vip = vec![true, false];
    let mut net = plan.net();
    for (vm, is_answered) in [(CLIENT, true), (4, false)] {
        let IpAddr::V4(own) = plan.vms[vm].address(false) else {
            unreachable!()
        };
        let IpAddr::V4(target) = vip(false) else {
            unreachable!()
        };
        let request = arp::Packet {
            operation: Operation::Request,
            sender_mac: MacAddress(plan.vms[vm].mac()),
            sender: own,
            target_mac: MacAddress([0; 6]),
            target,
        };
        let mut frame = vec![0xff; 6];
        frame.extend(plan.vms[vm].mac());
        frame.extend([8, 6]);
        let mut bytes = [0; 28];
        request.emit(&mut bytes);
        frame.extend(bytes);
        match net.send(vm, &frame) {
            End::Reply(reply) => {
                assert!(is_answered);
                let reply = arp::Packet::parse(&reply[14..]).expect("ARP");
                assert_eq!((reply.operation, reply.sender), (Operation::Reply, target));
                assert_eq!(reply.sender_mac, MacAddress([2, 0, 0, 0, 0, 101]));
            }
            other => assert!(!is_answered && other == End::Passed, "{other:?}"),
        }
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
fn a_backend_that_gets_its_own_call_is_refused_and_others_serve_it() {
    let plan = Plan::two_tenants();
    let mut net = plan.net();
    let mut met = [0; 4];
    for port in 51_000..51_060 {
        match send(&mut net, 2, &syn(&plan, 2, port, false)) {
            End::Vm(backend, _) => met[backend] += 1,
            End::Dropped(DropReason::Hairpin) => met[2] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(met[1] > 5 && met[2] > 5 && met[3] > 5, "{met:?}");
}

#[test]
fn a_connection_outlives_the_process_of_its_host() {
    for is_taken_up in [false, true] {
        let mut plan = Plan::two_tenants();
        (plan.vms[1].weight, plan.vms[3].weight) = (Some(0), Some(0));
        let mut net = plan.net();
        for is_ipv6 in [false, true] {
            assert_eq!(connect(&mut net, 52_000, is_ipv6), 2);
        }
        let mut records = vec![0; 1 << 16];
        let mut len = 0;
        let mut from = Some(Cursor::START);
        while let Some(place) = from {
            let exported = net.hosts[1].export(place, &mut records[len..]);
            len += exported.len;
            from = exported.next;
        }
        net.hosts[1] = plan.host(1);
        if is_taken_up {
            net.hosts[1].take_up(net.now);
        } else {
            let taken = net.hosts[1].import(net.now, Age::default(), &records[..len]);
            assert_eq!(taken.expect("whole").taken, 2);
        }
        for is_ipv6 in [false, true] {
            let client = (plan.vms[CLIENT].address(is_ipv6), 52_000);
            let server = (plan.vms[2].address(is_ipv6), SERVED);
            let front = (vip(is_ipv6), HTTP);
            let get = Segment::tcp(client, front, "A")
                .at(1001, 5001)
                .with(b"get\n");
            let page = Segment::tcp(server, client, "A")
                .at(5001, 1005)
                .with(b"page");
            // After a take-up the client's segments tell which name the server has for it.
            let is_server_first = is_ipv6 && !is_taken_up;
            for from_server in [is_server_first, !is_server_first] {
                if from_server {
                    let end = send(&mut net, 2, &page);
                    assert_eq!(end.vm(), CLIENT);
                    assert_eq!(Segment::of(end.frame()).from, front);
                } else {
                    assert_eq!(send(&mut net, CLIENT, &get).vm(), 2);
                }
            }
        }
    }
}

#[test]
fn segment_sizes_are_clamped_in_both_directions() {
    let mut plan = Plan::two_tenants();
    (plan.vms[1].weight, plan.vms[3].weight) = (Some(0), Some(0));
    plan.mtu = 1500;
    let mut net = plan.net();
    net.options(NatOptions {
        clamp_mss: true,
        ..NatOptions::default()
    });
    let client = (plan.vms[CLIENT].address(false), 53_000);
    let mut frame = Vec::new();
    let (IpAddr::V4(from), IpAddr::V4(to)) = (client.0, vip(false)) else {
        unreachable!()
    };
    PacketBuilder::ethernet2(plan.vms[CLIENT].mac(), GATEWAY_MAC)
        .ipv4(from.octets(), to.octets(), 64)
        .tcp(client.1, HTTP, 1000, 65_535)
        .syn()
        .options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1460)])
        .expect("an option")
        .write(&mut frame, &[])
        .expect("written");
    let end = net.send(CLIENT, &frame);
    assert_eq!(end.vm(), 2);
    let options = &end.frame()[14 + 20 + 20..];
    let mss = u16::from_be_bytes([options[2], options[3]]);
    assert!((1300..1460).contains(&mss), "{mss}");
    Segment::of(end.frame()); // and the checksum is right
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
                let error = unreachable(macs[0], GATEWAY_MAC, &{
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

/// The faults of the first host's spec as `change` leaves it.
fn faults(change: impl FnOnce(Spec<'_>, &mut dyn FnMut(&Spec<'_>))) -> Vec<SpecError> {
    let mut found = Vec::new();
    Plan::two_tenants().with_spec(0, |spec| {
        assert_eq!(faults_of(spec), []);
        change(spec.clone(), &mut |spec| found = faults_of(spec));
    });
    found
}

#[test]
fn contradictions_are_found() {
    type Found<'f> = &'f mut dyn FnMut(&[Network<'_>]);
    let with_networks = |change: &dyn Fn(&mut Vec<Network<'_>>, Found<'_>)| {
        faults(|spec, found| {
            let mut networks = spec.networks.to_vec();
            change(&mut networks, &mut |networks| {
                found(&Spec {
                    networks,
                    ..spec.clone()
                });
            });
        })
    };
    let of = |indexes: &'static [usize]| {
        with_networks(&move |networks, found| {
            networks[0].frontends = indexes;
            found(networks);
        })
    };
    let dangling = SpecError::DanglingFrontend {
        network: 0,
        frontend: 9,
        count: 4,
    };
    assert_eq!(of(&[0, 1, 9]), [dangling]);
    let shared = SpecError::SharedFrontend { frontend: 1 };
    assert!(of(&[0, 1, 1]).contains(&shared));
    // A public frontend with the address of a private one.
    let (first, second) = (0, 2);
    assert!(of(&[1]).contains(&SpecError::DuplicateFrontend { first, second }));
    let (first, second) = (0, 2);
    let one_network = with_networks(&|networks, found| {
        networks[1].frontends = &[];
        networks[0].frontends = &[0, 1, 2, 3];
        found(networks);
    });
    assert!(one_network.contains(&SpecError::DuplicateFrontend { first, second }));
    // Networks that name the later frontend first, and a private one before the public one of its address:
    // the compiler reports one of the faults that were listed, whatever the order.
    for indexes in [&[2, 0][..], &[0], &[2], &[3, 2, 1, 0]] {
        let found = with_networks(&|networks, found| {
            networks[1].frontends = &[];
            networks[0].frontends = indexes;
            found(networks);
        });
        let duplicate = SpecError::DuplicateFrontend { first, second };
        assert!(found.contains(&duplicate), "{indexes:?}: {found:?}");
    }
    let item = RuleItem::Rule(4);
    let strange = SpecError::PoolOutsideNetwork {
        item,
        frontend: 2,
        pool: 2,
    };
    assert!(one_network.contains(&strange));
    let address = vip(false);
    let gateways = [address];
    let met = with_networks(&|networks, found| {
        let mut networks: Vec<Network<'_>> = networks.clone();
        networks[0].gateways = &gateways;
        found(&networks);
    });
    assert_eq!(met, [SpecError::PrivateFrontendTaken { frontend: 0 }]);
    let outside = with_networks(&|networks, found| {
        let spaces: Vec<_> = networks[0].prefixes[1..].to_vec();
        let mut networks: Vec<Network<'_>> = networks.clone();
        networks[0].prefixes = &spaces;
        found(&networks);
    });
    let network = 0;
    assert!(outside.contains(&SpecError::OutsideNetwork { network, address }));
    let taken = faults(|spec, found| {
        let mut vms = spec.vms.to_vec();
        let addresses = [address];
        vms[0].addresses = &addresses;
        found(&Spec { vms: &vms, ..spec });
    });
    let (frontend, vm) = (0, 0);
    assert_eq!(taken, [SpecError::FrontendVm { frontend, vm }]);
    // Whether the frontend has rules or not.
    let taken = faults(|spec, found| {
        let mut vms = spec.vms.to_vec();
        let addresses = [address];
        vms[0].addresses = &addresses;
        let rules: Vec<_> = {
            let rules = spec.rules.iter().filter(|rule| rule.frontend != 0);
            rules.copied().collect()
        };
        let nat: Vec<_> = {
            let nat = spec.inbound_nat.iter().filter(|nat| nat.frontend != 0);
            nat.copied().collect()
        };
        found(&Spec {
            vms: &vms,
            rules: &rules,
            inbound_nat: &nat,
            ..spec
        });
    });
    assert_eq!(taken, [SpecError::FrontendVm { frontend, vm }]);
    let taken = faults(|spec, found| {
        let mut pools = spec.pools.to_vec();
        let mut backends = pools[2].backends.to_vec();
        backends[1].address = address;
        pools[2].backends = &backends;
        found(&Spec {
            pools: &pools,
            ..spec
        });
    });
    let backend = SpecError::FrontendBackend {
        frontend: 2,
        pool: 2,
        backend: 1,
    };
    assert_eq!(taken, [backend]);
    let answers = faults(|spec, found| {
        let mut rules: Vec<Rule<'_>> = spec.rules.to_vec();
        rules[0].terms = through_mux();
        found(&Spec {
            rules: &rules,
            ..spec
        });
    });
    let item = RuleItem::Rule(0);
    assert_eq!(answers, [SpecError::PrivateThroughMux { item }]);
    let frontends = [0];
    let outbound = [outbound(&frontends)];
    let out = faults(|spec, found| {
        found(&Spec {
            outbound: &outbound,
            ..spec
        });
    });
    let private = SpecError::PrivateOutbound {
        rule: 0,
        frontend: 0,
    };
    assert!(out.contains(&private), "{out:?}");
    assert!(private.to_string().contains("public frontend"));
    let at_proxy = faults(|spec, found| {
        found(&Spec {
            proxy: Some(ProxyPorts::default()),
            ..spec
        });
    });
    for frontend in 0..4 {
        assert!(at_proxy.contains(&SpecError::PrivateAtProxy { frontend }));
    }
}

#[test]
fn a_vm_may_have_the_address_of_another_networks_vip() {
    let mut plan = Plan::two_tenants();
    plan.has_vip = vec![true, false];
    plan.with_spec(0, |spec| {
        let mut vms = spec.vms.to_vec();
        let addresses = [vip(false)];
        let place = vms.iter().position(|vm| vm.network == 1).expect("one");
        vms[place].addresses = &addresses;
        assert_eq!(
            faults_of(&Spec {
                vms: &vms,
                ..spec.clone()
            }),
            []
        );
    });
}

#[test]
fn a_snapshot_takes_as_much_memory_as_it_says() {
    let plan = Plan::two_tenants();
    plan.with_spec(0, |spec| {
        let lines = Snapshot::lines_for(spec, None);
        let mut memory = vec![slb_core::mem::Line::EMPTY; lines];
        let mut arena = slb_core::mem::Arena::new(&mut memory);
        let snapshot = Snapshot::build(spec, None, &mut arena).expect("enough");
        let host = Host::with_capacity(&snapshot, 64, Key::new([1, 2]));
        assert!(host.is_ok());
        let mut memory = vec![slb_core::mem::Line::EMPTY; lines - 1];
        let mut arena = slb_core::mem::Arena::new(&mut memory);
        assert!(Snapshot::build(spec, None, &mut arena).is_err());
    });
}
