//! Only vms of the network reach its private VIPs, by any role and with any packet: VXLAN of a
//! machine that is no host does not. Nothing of a network gets to the fabric outside of VXLAN.

use std::net::IpAddr;
use std::time::Duration;

use etherparse::PacketBuilder;
use slb_core::mux::Mux;
use slb_core::snapshot::Snapshot;
use slb_core::wire::checksum::Sum;
use slb_core::{Burst, DropReason, Frame, HEADROOM, Key, Verdict};

use crate::common::through;

use super::messages::unreachable;
use super::net::{DNS, End, FABRIC, GATEWAY_MAC, HTTP, Net, Plan, SERVED, Segment, ip, vip};
use super::{CLIENT, connect, send};

/// The client of the second network, whose addresses are those of the first one's.
const STRANGER: usize = 4;

/// Parts of a packet behind its header, as fragments of one datagram.
fn fragments(whole: &[u8]) -> [Vec<u8>; 2] {
    if whole[14] >> 4 == 6 {
        let part = |from: usize, to: usize, offset: u16| {
            let mut frame = whole[..54].to_vec();
            frame[18..20].copy_from_slice(&((8 + to - from) as u16).to_be_bytes());
            frame[20] = 44; // a fragment header follows (RFC 8200 §4.5)
            frame.extend([whole[20], 0]);
            frame.extend(offset.to_be_bytes());
            frame.extend([0, 0, 7, 7]);
            frame.extend(&whole[54 + from..54 + to]);
            frame
        };
        return [part(0, 40, 1), part(40, whole.len() - 54, 40)];
    }
    let part = |from: usize, to: usize, flags: u16| {
        let mut frame = whole[..34].to_vec();
        frame.extend(&whole[34 + from..34 + to]);
        let len = (20 + to - from) as u16;
        frame[16..18].copy_from_slice(&len.to_be_bytes());
        frame[18..20].copy_from_slice(&[7, 7]);
        frame[20..22].copy_from_slice(&flags.to_be_bytes());
        frame[24..26].fill(0);
        let sum = Sum::ZERO.add_bytes(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.checksum().to_be_bytes());
        frame
    };
    [part(0, 40, 0x2000), part(40, whole.len() - 34, 5)]
}

pub(super) fn echo((from, to): (IpAddr, IpAddr), (mac, to_mac): ([u8; 6], [u8; 6])) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(mac, to_mac);
    let mut frame = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link
            .ipv4(from.octets(), to.octets(), 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut frame, b"ping"),
        (IpAddr::V6(from), IpAddr::V6(to)) => link
            .ipv6(from.octets(), to.octets(), 64)
            .icmpv6_echo_request(1, 1)
            .write(&mut frame, b"ping"),
        _ => unreachable!("two families"),
    }
    .expect("written");
    frame
}

/// Packets of each kind from an address to the VIP, some of them of a connection of `port` that is there, in
/// frames between two stations.
fn packets(from: IpAddr, port: u16, macs: ([u8; 6], [u8; 6])) -> Vec<(&'static str, Vec<u8>)> {
    let is_ipv6 = from.is_ipv6();
    let (mac, to_mac) = macs;
    let front = (vip(is_ipv6), HTTP);
    let frame = |segment: Segment| segment.frame(mac, to_mac);
    let syn = frame(Segment::tcp((from, 61_000), front, "S"));
    let data = Segment::tcp((from, port), front, "A").at(1001, 5001);
    let data = frame(data.with(b"get\n"));
    let reset = frame(Segment::tcp((from, port), front, "R").at(1001, 0));
    let ask = Segment::udp((from, 61_001), (vip(is_ipv6), DNS), &[5; 64]);
    let ask = frame(ask);
    let answer = Segment::tcp(front, (from, port), "A").at(5001, 1001);
    let error = unreachable(mac, to_mac, &answer.frame(to_mac, mac));
    let [first, later] = fragments(&ask);
    vec![
        ("a SYN", syn),
        ("a segment", data),
        ("a RST", reset),
        ("a datagram", ask),
        ("an echo request", echo((from, front.0), macs)),
        ("an ICMP error", error),
        ("a first fragment", first),
        ("a later fragment", later),
    ]
}

/// A frame in VXLAN from an address of the fabric to a host.
fn in_vxlan(plan: &Plan, from: &str, host: usize, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend(&vni.to_be_bytes()[1..]);
    payload.push(0);
    payload.extend(inner);
    let (from, to) = (ip(from), plan.host_address(host));
    let mac = [2, 0, 0, 0, 0, 101 + host as u8];
    Segment::udp((from, 50_000), (to, 4789), &payload).frame([2; 6], mac)
}

fn live(net: &Net) -> Vec<u64> {
    let hosts = net.hosts.iter();
    hosts.map(|host| host.stats().connections.live).collect()
}

#[test]
fn vxlan_of_a_machine_that_is_no_host_is_refused() {
    for ipv6_underlay in [false, true] {
        let mut plan = Plan::two_tenants();
        plan.ipv6_underlay = ipv6_underlay;
        (plan.vms[1].weight, plan.vms[3].weight) = (Some(0), Some(0));
        let mut net = plan.net();
        for is_ipv6 in [false, true] {
            let (own, port) = (plan.vms[CLIENT].address(is_ipv6), 60_000);
            assert_eq!(connect(&mut net, port, is_ipv6), 2);
            let (before, vni) = (live(&net), plan.vnis[0]);
            let macs = (plan.vms[CLIENT].mac(), plan.vms[2].mac());
            let stranger = ["172.16.0.66", "fd00:16::66"][usize::from(ipv6_underlay)];
            let page = |net: &mut Net| {
                let server = (plan.vms[2].address(is_ipv6), SERVED);
                let page = Segment::tcp(server, (own, port), "A").at(5001, 1001);
                send(net, 2, &page).vm()
            };
            for (what, inner) in packets(own, port, macs) {
                // The host has just seen the same from the client's host, in the same flow.
                let data = Segment::tcp((own, port), (vip(is_ipv6), HTTP), "A").at(1001, 5001);
                assert_eq!(send(&mut net, CLIENT, &data).vm(), 2);
                let frame = in_vxlan(&plan, stranger, 1, vni, &inner);
                let end = net.enter(1, FABRIC, &frame);
                assert_eq!(end, End::Dropped(DropReason::UnknownPeer), "{what}");
                // And answers go to the client's host as before.
                assert_eq!(page(&mut net), CLIENT, "{what}");
            }
            assert_eq!(live(&net), before);
        }
    }
}

#[test]
fn a_vm_of_another_network_reaches_nothing_with_any_packet() {
    let mut plan = Plan::two_tenants();
    plan.has_vip = vec![true, false];
    let mut net = plan.net();
    for is_ipv6 in [false, true] {
        connect(&mut net, 60_000, is_ipv6);
        let before = live(&net);
        let own = plan.vms[STRANGER].address(is_ipv6);
        let macs = (plan.vms[STRANGER].mac(), GATEWAY_MAC);
        for (what, frame) in packets(own, 60_000, macs) {
            match net.send(STRANGER, &frame) {
                End::Dropped(DropReason::NoNeighbour) => {}
                other => panic!("{what}: {other:?}"),
            }
        }
        assert_eq!(live(&net), before);
    }
}

#[test]
fn fragments_of_two_networks_with_one_name_are_apart() {
    let mut plan = Plan::two_tenants();
    for vm in [1, 3, 5, 7] {
        plan.vms[vm].weight = Some(0);
    }
    let mut net = plan.net();
    for is_ipv6 in [false, true] {
        let own = plan.vms[CLIENT].address(is_ipv6);
        let ask = Segment::udp((own, 61_001), (vip(is_ipv6), DNS), &[5; 64]);
        let of = |vm: usize| fragments(&ask.frame(plan.vms[vm].mac(), GATEWAY_MAC));
        let ([first, later], [strange, strange_later]) = (of(CLIENT), of(STRANGER));
        // Of the second network nothing is known until its own first fragment is there.
        assert_eq!(net.send(CLIENT, &first).vm(), 2);
        let missing = End::Dropped(DropReason::FragmentWithoutFirst);
        assert_eq!(net.send(STRANGER, &strange_later), missing);
        assert_eq!(net.send(STRANGER, &strange).vm(), 6);
        assert_eq!(net.send(STRANGER, &strange_later).vm(), 6);
        assert_eq!(net.send(CLIENT, &later).vm(), 2);
    }
}

#[test]
fn packets_from_outside_are_for_no_vip_of_a_mux_or_a_host() {
    let plan = Plan::two_tenants();
    let mut net = plan.net();
    let snapshot = plan.with_spec(9, |spec| Snapshot::new(spec, None).expect("good"));
    let mut mux = Mux::with_capacity(&snapshot, 64, Key::new([1, 2])).expect("its role");
    for is_ipv6 in [false, true] {
        connect(&mut net, 60_000, is_ipv6);
        let before = live(&net);
        let stranger = ip(["203.0.113.9", "2001:db8::9"][usize::from(is_ipv6)]);
        for from in [stranger, plan.vms[CLIENT].address(is_ipv6)] {
            for (what, frame) in packets(from, 60_000, ([2; 6], [2, 0, 0, 0, 0, 101])) {
                assert_eq!(net.enter(0, FABRIC, &frame), End::Passed, "{what}");
                let (verdict, _) = through(FABRIC, &frame, |frames| {
                    mux.process(net.now, frames);
                });
                assert_eq!(verdict, Verdict::Pass, "{what}");
            }
        }
        assert_eq!(live(&net), before);
    }
}

#[test]
fn sources_outside_of_the_network_reach_no_vip_through_a_host_that_is_trusted() {
    let plan = Plan::two_tenants();
    let mut net = plan.net();
    let peer = plan.host_address(0).to_string();
    for is_ipv6 in [false, true] {
        connect(&mut net, 60_000, is_ipv6);
        let before = live(&net);
        let outside = ip(["203.0.113.9", "2001:db8::9"][usize::from(is_ipv6)]);
        // Host 1 takes what comes from host 0, and what a mux with an older configuration sends looks the same.
        for (what, inner) in packets(outside, 60_000, ([2; 6], plan.vms[2].mac())) {
            let frame = in_vxlan(&plan, &peer, 1, plan.vnis[0], &inner);
            match net.enter(1, FABRIC, &frame) {
                End::Dropped(DropReason::NoRule) => {}
                End::Dropped(_) if !matches!(what, "a SYN" | "a datagram") => {}
                other => panic!("{what}: {other:?}"),
            }
        }
        assert_eq!(live(&net), before);
    }
}

#[test]
fn a_callers_answers_do_not_get_to_the_fabric_when_the_caller_is_gone() {
    let mut plan = Plan::two_tenants();
    plan.terms.tcp_reset = true;
    (plan.vms[1].weight, plan.vms[3].weight) = (Some(0), Some(0));
    for is_ipv6 in [false, true] {
        let mut net = plan.net();
        assert_eq!(connect(&mut net, 60_000, is_ipv6), 2);
        // The backend's host hears of it first.
        let mut next = plan.clone();
        next.vms[CLIENT].number = 12;
        net.install(1, &next);
        let own = plan.vms[CLIENT].address(is_ipv6);
        let server = (plan.vms[2].address(is_ipv6), SERVED);
        for len in [4, 1540] {
            let page = Segment::tcp(server, (own, 60_000), "A").at(5001, 1001);
            match send(&mut net, 2, &page.with(&vec![7; len])) {
                End::Dropped(DropReason::NoNeighbour) => {}
                other => panic!("{len} bytes: {other:?}"),
            }
        }
        // A segment of no connection is not answered: its source is no vm of the network any more.
        let stray = Segment::tcp((own, 60_001), (vip(is_ipv6), HTTP), "A").at(77, 88);
        let end = send(&mut net, CLIENT, &stray);
        assert_eq!(end, End::Dropped(DropReason::NoRule));
        // And so is what expires.
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
            net.hosts[1].advance(net.now, &mut burst);
            let verdicts = burst.iter_mut().map(|frame| frame.verdict());
            told.extend(verdicts.filter(|verdict| *verdict != Verdict::Pass));
        }
        assert_eq!(told, [Verdict::Forward(plan.port_of(2))]);
    }
}
