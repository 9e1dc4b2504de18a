//! Messages beside a call: ARP, echo, ICMP errors, fragments and the sizes of segments.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use slb_core::DropReason;
use slb_core::nat::NatOptions;
use slb_core::spec::Echo;
use slb_core::wire::arp::{self, Operation};
use slb_core::wire::ethernet::MacAddress;

use super::net::{DNS, End, GATEWAY_MAC, HTTP, Plan, SERVED, Segment, vip};
use super::{CLIENT, closed, connect, send};

/// An ICMP error of a vm's about a packet that it got.
pub(super) fn unreachable(from: [u8; 6], to: [u8; 6], got: &[u8]) -> Vec<u8> {
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

#[test]
fn errors_about_a_call_reach_both_ends_under_its_names() {
    for only in [1, 2] {
        let plan = Plan::two_tenants().with_only(only);
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
        let plan = Plan::two_tenants().with_only(only);
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
