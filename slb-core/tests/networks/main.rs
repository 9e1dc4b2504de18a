//! Networks of vms: who reaches whom, what host agents answer for, and that networks are apart.

mod apart;
pub mod net;
mod vips;

use std::net::{IpAddr, Ipv6Addr};

use etherparse::PacketBuilder;
use slb_core::nat::NatOptions;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Network, NetworkVm, Spec, SpecError};
use slb_core::wire::arp::{self, Operation};
use slb_core::wire::checksum::Sum;
use slb_core::wire::ethernet::{Ethernet, MacAddress};
use slb_core::wire::ipv4::Ipv4;
use slb_core::wire::ipv6::Ipv6;
use slb_core::wire::vxlan::{Vni, Vxlan};
use slb_core::{DropReason, Host, Key, PortId, Verdict};

use net::{FABRIC, Plan, VIP, ip, prefix, process};

const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xee];

/// A datagram from a vm of the plan, in a frame for `to_mac`.
pub fn datagram(plan: &Plan, vm: usize, to_mac: [u8; 6], to: IpAddr, ttl: u8) -> Vec<u8> {
    let from = &plan.vms[vm];
    let source = from.addresses.iter().find(|a| a.is_ipv4() == to.is_ipv4());
    datagram_from((from.mac, *source.expect("one")), to_mac, to, ttl)
}

fn datagram_from(from: ([u8; 6], IpAddr), to_mac: [u8; 6], to: IpAddr, ttl: u8) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(from.0, to_mac);
    let ip = match (from.1, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), ttl),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), ttl),
        _ => panic!("two families"),
    };
    let mut frame = Vec::new();
    ip.udp(40_000, 53).write(&mut frame, b"hello").unwrap();
    frame
}

/// The VNI and the inner frame of a VXLAN frame, and where it goes.
fn inner(frame: &[u8]) -> (IpAddr, u32, Vec<u8>) {
    let link = Ethernet::parse(frame).unwrap();
    let (to, datagram) = match link.ether_type().0 {
        0x0800 => {
            let ip = Ipv4::parse(link.payload()).unwrap();
            assert!(ip.checksum_is_right());
            (IpAddr::from(ip.destination()), ip.payload())
        }
        _ => {
            let ip = Ipv6::parse(link.payload()).unwrap();
            let sum = Sum::ZERO
                .add_pseudo_ipv6(ip.source(), ip.destination(), 17, ip.payload().len() as u32)
                .add_bytes(ip.payload());
            assert_eq!(sum.checksum(), 0, "the outer checksum");
            (IpAddr::from(ip.destination()), ip.payload())
        }
    };
    let vxlan = Vxlan::parse(&datagram[8..]).unwrap();
    (to, vxlan.vni().get(), vxlan.payload().to_vec())
}

#[test]
fn vms_of_a_network_reach_each_other_in_vxlan_both_ways() {
    for ipv6_underlay in [false, true] {
        let mut plan = Plan::two_tenants();
        plan.ipv6_underlay = ipv6_underlay;
        let mut hosts = [plan.host(0), plan.host(1)];
        for tenant in [0, 1] {
            for (from, to) in [(0, 1), (1, 0)] {
                let (from, to) = (tenant * 3 + from, tenant * 3 + to);
                for &address in &plan.vms[to].addresses {
                    let frame = datagram(&plan, from, plan.vms[to].mac, address, 64);
                    let own = plan.vms[from].host;
                    let (verdict, sent) = process(&mut hosts[own], plan.port_of(from), &frame);
                    assert_eq!(verdict, Verdict::Forward(FABRIC));
                    let (host, vni, carried) = inner(&sent);
                    assert_eq!(host, plan.host_address(plan.vms[to].host));
                    assert_eq!(vni, plan.tenants[tenant].vni);
                    assert_eq!(carried, frame, "a switch changes nothing");
                    let other = &mut hosts[plan.vms[to].host];
                    let (verdict, got) = process(other, FABRIC, &sent);
                    assert_eq!(verdict, Verdict::Forward(plan.port_of(to)));
                    assert_eq!(got, frame);
                }
            }
        }
    }
}

#[test]
fn a_stranger_sends_into_no_network() {
    let plan = Plan::two_tenants();
    let (mut first, mut second) = (plan.host(0), plan.host(1));
    let to = &plan.vms[1];
    let frame = datagram(&plan, 0, to.mac, to.addresses[0], 64);
    let (_, mut sent) = process(&mut first, plan.port_of(0), &frame);
    let (verdict, _) = process(&mut second, FABRIC, &sent);
    assert_eq!(verdict, Verdict::Forward(plan.port_of(1)));
    // No mux is named, and still the sender has to be a node of the configuration.
    sent[26..30].copy_from_slice(&[203, 0, 113, 9]);
    sent[24..26].fill(0);
    let sum = Sum::ZERO.add_bytes(&sent[14..34]).checksum();
    sent[24..26].copy_from_slice(&sum.to_be_bytes());
    sent[40..42].fill(0);
    let (verdict, _) = process(&mut second, FABRIC, &sent);
    assert_eq!(verdict, Verdict::Drop(DropReason::UnknownPeer));
}

#[test]
fn a_vm_is_sent_to_by_the_next_hop_of_its_host() {
    let plan = Plan::two_tenants();
    let near = MacAddress([2, 0, 0, 0, 0, 0x66]);
    let snapshot = plan.with_spec(0, |spec| {
        let vms = spec.vms.iter().map(|vm| NetworkVm {
            next_hop: Some(near),
            ..*vm
        });
        let vms: Vec<_> = vms.collect();
        let spec = Spec {
            vms: &vms,
            ..spec.clone()
        };
        Snapshot::new(&spec, None).expect("a good spec")
    });
    let mut host = Host::with_capacity(Box::new(snapshot), 64, Key::new([1, 2])).expect("its role");
    // The last vm of the second host, which is no backend.
    let to = &plan.vms[4];
    assert!(!to.is_backend && to.host == 1);
    let frame = datagram(&plan, 3, to.mac, to.addresses[0], 64);
    let (verdict, sent) = process(&mut host, plan.port_of(3), &frame);
    assert_eq!(verdict, Verdict::Forward(FABRIC));
    assert_eq!(sent[..6], near.0);
}

#[test]
fn vms_of_one_node_reach_each_other_without_the_fabric() {
    let plan = Plan::two_tenants();
    let mut host = plan.host(0);
    for (from, to) in [(0, 2), (2, 0), (3, 5), (5, 3)] {
        for &address in &plan.vms[to].addresses {
            let frame = datagram(&plan, from, plan.vms[to].mac, address, 1);
            let (verdict, got) = process(&mut host, plan.port_of(from), &frame);
            assert_eq!(verdict, Verdict::Forward(plan.port_of(to)));
            assert_eq!(got, frame);
        }
    }
}

#[test]
fn what_is_sent_to_the_gateway_is_routed_and_loses_a_hop() {
    let plan = Plan::two_tenants();
    let mut hosts = [plan.host(0), plan.host(1)];
    for (family, ttl_at) in [(0, 14 + 8), (1, 14 + 7)] {
        for to in [1, 2] {
            let frame = datagram(&plan, 0, GATEWAY_MAC, plan.vms[to].addresses[family], 9);
            let (verdict, mut got) = process(&mut hosts[0], PortId(1), &frame);
            if to == 1 {
                assert_eq!(verdict, Verdict::Forward(FABRIC));
                got = process(&mut hosts[1], FABRIC, &got).1;
            } else {
                assert_eq!(verdict, Verdict::Forward(PortId(3)));
            }
            assert_eq!(got[ttl_at], 8);
            assert_eq!(got[..6], plan.vms[to].mac);
            if family == 0 {
                assert!(Ipv4::parse(&got[14..]).unwrap().checksum_is_right());
            }
            let frame = datagram(&plan, 0, GATEWAY_MAC, plan.vms[to].addresses[family], 1);
            let (verdict, got) = process(&mut hosts[0], PortId(1), &frame);
            assert_eq!(verdict, Verdict::Reply, "time exceeded");
            let kind = got[14 + [20, 40][family]];
            assert_eq!(kind, [11, 3][family]);
        }
    }
}

#[test]
fn a_packet_that_does_not_fit_vxlan_is_answered() {
    let mut plan = Plan::two_tenants();
    plan.mtu = 1400;
    let mut host = plan.host(0);
    for (address, kind) in [(0, 3), (1, 2)] {
        let to = plan.vms[1].addresses[address];
        let from = plan.vms[0].addresses[address];
        let link = PacketBuilder::ethernet2(plan.vms[0].mac, plan.vms[1].mac);
        let ip = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
            _ => unreachable!(),
        };
        let mut frame = Vec::new();
        ip.udp(1, 2).write(&mut frame, &[0; 1360]).unwrap();
        let (verdict, got) = process(&mut host, PortId(1), &frame);
        assert_eq!(verdict, Verdict::Reply);
        let icmp = &got[14 + [20, 40][address]..];
        assert_eq!(icmp[0], kind);
        assert_eq!(u16::from_be_bytes([icmp[6], icmp[7]]), 1350);
        // To a vm of the node there is no fabric that it has to fit.
        let at = [(30, 4), (38, 16)][address];
        let near = plan.vms[2].addresses[address];
        match near {
            IpAddr::V4(near) => frame[at.0..at.0 + at.1].copy_from_slice(&near.octets()),
            IpAddr::V6(near) => frame[at.0..at.0 + at.1].copy_from_slice(&near.octets()),
        }
        if address == 0 {
            frame[24..26].fill(0);
            let sum = Sum::ZERO.add_bytes(&frame[14..34]).checksum();
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let (verdict, _) = process(&mut host, PortId(1), &frame);
        assert_eq!(verdict, Verdict::Forward(PortId(3)));
    }
}

#[test]
fn segment_sizes_are_clamped_on_the_way_to_the_fabric() {
    let plan = Plan::two_tenants();
    let mut host = plan.host(0).with_options(NatOptions {
        clamp_mss: true,
        ..NatOptions::default()
    });
    let (from, to) = (&plan.vms[0], &plan.vms[1]);
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.addresses[0], to.addresses[0]) else {
        panic!("IPv4")
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.mac, to.mac)
        .ipv4(source.octets(), destination.octets(), 64)
        .tcp(1, 2, 3, 4)
        .syn()
        .options(&[etherparse::TcpOptionElement::MaximumSegmentSize(9000)])
        .unwrap()
        .write(&mut frame, &[])
        .unwrap();
    let (_, sent) = process(&mut host, PortId(1), &frame);
    let (_, _, carried) = inner(&sent);
    let most = u16::from_be_bytes([carried[14 + 20 + 22], carried[14 + 20 + 23]]);
    assert_eq!(most, 1600 - 70 - 40);
    let sum = Sum::ZERO
        .add_pseudo_ipv4(source, destination, 6, (carried.len() - 34) as u16)
        .add_bytes(&carried[34..]);
    assert_eq!(sum.checksum(), 0);
}

fn arp_request(from: ([u8; 6], &str), target: &str) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(from.0);
    frame.extend([8, 6]);
    let mut packet = [0; arp::PACKET_LEN];
    arp::Packet {
        operation: Operation::Request,
        sender_mac: MacAddress(from.0),
        sender: from.1.parse().unwrap(),
        target_mac: MacAddress([0; 6]),
        target: target.parse().unwrap(),
    }
    .emit(&mut packet);
    frame.extend(packet);
    frame.resize(60, 0);
    frame
}

#[test]
fn arp_of_vms_is_answered_from_the_table() {
    let plan = Plan::two_tenants();
    let mut host = plan.host(0);
    let own = plan.vms[0].mac;
    let host_mac = [2, 0, 0, 0, 0, 101];
    for (target, mac) in [
        ("10.1.0.12", plan.vms[1].mac),
        ("10.1.0.13", plan.vms[2].mac),
        ("10.1.0.1", host_mac),
    ] {
        for sender in ["10.1.0.11", "0.0.0.0"] {
            let request = arp_request((own, sender), target);
            let (verdict, got) = process(&mut host, PortId(1), &request);
            assert_eq!(verdict, Verdict::Reply, "{target}");
            assert_eq!((&got[..6], &got[6..12]), (&own[..], &mac[..]));
            let reply = arp::Packet::parse(&got[14..]).unwrap();
            assert_eq!(reply.operation, Operation::Reply);
            assert_eq!(reply.sender_mac, MacAddress(mac));
            assert_eq!(IpAddr::from(reply.sender), ip(target));
            assert_eq!(reply.target_mac, MacAddress(own));
            assert_eq!(IpAddr::from(reply.target), ip(sender));
        }
    }
    // Its own address, one that nobody has, and one that is asked for under another's address.
    for (sender, target) in [
        ("10.1.0.11", "10.1.0.11"),
        ("10.1.0.11", "10.1.0.99"),
        ("10.1.0.99", "10.1.0.12"),
    ] {
        let request = arp_request((own, sender), target);
        let (verdict, got) = process(&mut host, PortId(1), &request);
        assert_eq!((verdict, got), (Verdict::Pass, request));
    }
}

/// A neighbour solicitation, with the sender's MAC address in an option where it has an address.
fn solicitation(mac: [u8; 6], source: &str, target: &str) -> Vec<u8> {
    let (source, target): (Ipv6Addr, Ipv6Addr) = (source.parse().unwrap(), target.parse().unwrap());
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    if !source.is_unspecified() {
        message.extend([1, 1]);
        message.extend(mac);
    }
    let sum = Sum::ZERO
        .add_pseudo_ipv6(source, group, 58, message.len() as u32)
        .add_bytes(&message);
    message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0xff, a, b, c];
    frame.extend(mac);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, message.len() as u8, 58, 255]);
    frame.extend(source.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

#[test]
fn neighbour_solicitations_of_vms_are_answered_from_the_table() {
    let plan = Plan::two_tenants();
    let mut host = plan.host(0);
    let own = plan.vms[0].mac;
    for (target, mac, is_router) in [
        ("fd00:1::12", plan.vms[1].mac, false),
        ("fd00:1::13", plan.vms[2].mac, false),
        ("fd00:1::1", [2, 0, 0, 0, 0, 101], true),
    ] {
        for source in ["fd00:1::11", "fe80::1", "::"] {
            let request = solicitation(own, source, target);
            let (verdict, got) = process(&mut host, PortId(1), &request);
            assert_eq!(verdict, Verdict::Reply, "{target} from {source}");
            let ip = Ipv6::parse(&got[14..]).unwrap();
            let is_search = source == "::";
            let (to, to_mac) = match is_search {
                true => ("ff02::1", [0x33, 0x33, 0, 0, 0, 1]),
                false => (source, own),
            };
            assert_eq!((&got[..6], &got[6..12]), (&to_mac[..], &mac[..]));
            assert_eq!(ip.source().to_string(), target);
            assert_eq!(ip.destination().to_string(), to);
            assert_eq!((ip.hop_limit(), ip.payload().len()), (255, 32));
            let sum = Sum::ZERO
                .add_pseudo_ipv6(ip.source(), ip.destination(), 58, 32)
                .add_bytes(ip.payload());
            assert_eq!(sum.checksum(), 0);
            let flags = if is_router { 0x80 } else { 0 } | if is_search { 0 } else { 0x40 } | 0x20;
            assert_eq!(
                (ip.payload()[0], ip.payload()[1], ip.payload()[4]),
                (136, 0, flags)
            );
            assert_eq!(ip.payload()[8..24], ip.source().octets());
            assert_eq!(ip.payload()[24..26], [2, 1]);
            assert_eq!(ip.payload()[26..], mac);
        }
    }
    for (source, target) in [
        ("fd00:1::11", "fd00:1::11"),
        ("fd00:1::11", "fd00:1::99"),
        ("fd00:1::99", "fd00:1::12"),
    ] {
        let request = solicitation(own, source, target);
        assert_eq!(process(&mut host, PortId(1), &request).0, Verdict::Pass);
    }
    let good = solicitation(own, "fd00:1::11", "fd00:1::12");
    // A hop, a checksum and a code that are wrong (RFC 4861 §7.1.1).
    for (at, value) in [(21, 254), (57, good[57] ^ 1), (55, 1)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(
            process(&mut host, PortId(1), &bad).0,
            Verdict::Pass,
            "byte {at}"
        );
    }
}

#[test]
fn a_gateway_answers_pings_and_nothing_else() {
    let plan = Plan::two_tenants();
    let mut host = plan.host(0);
    for gateway in [ip("10.1.0.1"), ip("fd00:1::1")] {
        let frame = datagram(&plan, 0, GATEWAY_MAC, gateway, 64);
        let (verdict, _) = process(&mut host, PortId(1), &frame);
        assert_eq!(verdict, Verdict::Drop(DropReason::NoNeighbour));
        let link = PacketBuilder::ethernet2(plan.vms[0].mac, GATEWAY_MAC);
        let mut ping = Vec::new();
        match (
            plan.vms[0].addresses[usize::from(gateway.is_ipv6())],
            gateway,
        ) {
            (IpAddr::V4(own), IpAddr::V4(to)) => link
                .ipv4(own.octets(), to.octets(), 64)
                .icmpv4_echo_request(1, 2)
                .write(&mut ping, b"data"),
            (IpAddr::V6(own), IpAddr::V6(to)) => link
                .ipv6(own.octets(), to.octets(), 64)
                .icmpv6_echo_request(1, 2)
                .write(&mut ping, b"data"),
            _ => unreachable!(),
        }
        .unwrap();
        let (verdict, got) = process(&mut host, PortId(1), &ping);
        assert_eq!(verdict, Verdict::Reply);
        let offset = if gateway.is_ipv4() { 34 } else { 54 };
        assert_eq!(got[offset], if gateway.is_ipv4() { 0 } else { 129 });
        assert_eq!(got[..6], plan.vms[0].mac);
    }
}

#[test]
fn what_is_for_no_vm_of_the_network_does_not_leave() {
    let plan = Plan::two_tenants();
    let mut host = plan.host(0);
    let no_neighbour = Verdict::Drop(DropReason::NoNeighbour);
    for (to, expected) in [
        ("10.1.0.99", no_neighbour),
        ("10.1.0.11", no_neighbour), // its own
        ("10.2.0.1", no_neighbour),
        ("172.16.0.102", no_neighbour),
        ("100.64.0.1", no_neighbour),
        ("fd00:1::99", no_neighbour),
        ("fd00:2::1", no_neighbour),
        (VIP, Verdict::Pass),
        ("224.0.0.251", Verdict::Pass),
        ("169.254.1.1", Verdict::Pass),
        ("fe80::1", Verdict::Pass),
        ("1.1.1.1", Verdict::Drop(DropReason::NoOutboundRule)),
    ] {
        let frame = datagram(&plan, 0, GATEWAY_MAC, ip(to), 64);
        let (verdict, got) = process(&mut host, PortId(1), &frame);
        assert_eq!(verdict, expected, "to {to}");
        assert_eq!(got, frame);
    }
    for source in ["10.1.0.12", "10.1.0.99", "1.1.1.1", "fd00:1::12"] {
        let to = ip(if source.contains(':') {
            "fd00:1::13"
        } else {
            "10.1.0.13"
        });
        let frame = datagram_from((plan.vms[0].mac, ip(source)), plan.vms[2].mac, to, 64);
        let (verdict, _) = process(&mut host, PortId(1), &frame);
        assert_eq!(
            verdict,
            Verdict::Drop(DropReason::SpoofedSource),
            "from {source}"
        );
    }
}

#[test]
fn fragments_go_on_each_for_itself() {
    let plan = Plan::two_tenants();
    let mut hosts = [plan.host(0), plan.host(1)];
    for (offset, more) in [(0, true), (185, true), (370, false)] {
        let mut frame = datagram(&plan, 0, plan.vms[1].mac, plan.vms[1].addresses[0], 64);
        let field: u16 = u16::from(more) << 13 | offset;
        frame[20..22].copy_from_slice(&field.to_be_bytes());
        frame[24..26].fill(0);
        let sum = Sum::ZERO.add_bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        let (verdict, sent) = process(&mut hosts[0], PortId(1), &frame);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
        let (verdict, got) = process(&mut hosts[1], FABRIC, &sent);
        assert_eq!(verdict, Verdict::Forward(PortId(2)));
        assert_eq!(got, frame);
    }
}

#[test]
fn addresses_that_differ_as_their_networks_do_are_not_one() {
    // fc00:: in network 0 and fd00:: in network 1.
    let mut plan = Plan::two_tenants();
    plan.tenants[0].vni = 0;
    plan.tenants[1].vni = 1;
    for (tenant, space) in [(0, "fc00::/16"), (1, "fd00::/16")] {
        plan.tenants[tenant].spaces = vec![prefix(space)];
        plan.tenants[tenant].gateways.clear();
    }
    plan.vms.retain(|vm| vm.host == 0);
    for vm in &mut plan.vms {
        let number = vm.mac[5];
        vm.addresses = vec![ip(&format!("f{}00::{number}", ["c", "d"][vm.tenant]))];
        vm.is_backend = false;
    }
    let mut host = plan.host(0);
    let frame = datagram(&plan, 0, GATEWAY_MAC, ip("fd00::3"), 64);
    let (verdict, _) = process(&mut host, plan.port_of(0), &frame);
    assert_eq!(verdict, Verdict::Drop(DropReason::NoNeighbour));
    let frame = datagram(&plan, 0, GATEWAY_MAC, ip("fc00::3"), 64);
    let (verdict, _) = process(&mut host, plan.port_of(0), &frame);
    assert_eq!(verdict, Verdict::Forward(plan.port_of(1)));
}

#[test]
fn without_a_network_the_kernel_connects_vms_as_before() {
    let mut plan = Plan::two_tenants();
    plan.vms.retain(|vm| vm.tenant == 0);
    for vm in &mut plan.vms {
        vm.is_backend = true;
        vm.addresses.truncate(1);
    }
    let snapshot = plan.with_spec(0, |spec| {
        let spec = Spec {
            networks: &[],
            vms: &[],
            ..spec.clone()
        };
        Snapshot::new(&spec, None).unwrap()
    });
    let key = Key::new([1, 2]);
    let mut host = Host::with_capacity(Box::new(snapshot), 64, key).unwrap();
    for to in ["10.1.0.12", "10.1.0.13", "10.1.0.99", "10.2.0.1"] {
        let frame = datagram(&plan, 0, GATEWAY_MAC, ip(to), 64);
        assert_eq!(process(&mut host, PortId(1), &frame).0, Verdict::Pass);
    }
    let request = arp_request((plan.vms[0].mac, "10.1.0.11"), "10.1.0.12");
    assert_eq!(process(&mut host, PortId(1), &request).0, Verdict::Pass);
}

#[test]
fn faults_of_networks_are_told() {
    assert_eq!(Plan::two_tenants().faults(), []);
    let mut plan = Plan::two_tenants();
    plan.tenants[1].vni = 5001;
    let faults = plan.faults();
    let (first, second) = (0, 1);
    assert!(faults.contains(&SpecError::DuplicateNetwork { first, second }));

    let mut plan = Plan::two_tenants();
    plan.tenants[1].spaces[0].len = 33;
    let (network, index) = (1, 0);
    let expected = SpecError::NetworkPrefix { network, index };
    assert!(plan.faults().contains(&expected));

    let mut plan = Plan::two_tenants();
    plan.vms[4].addresses[0] = ip("10.2.0.12");
    let address = ip("10.2.0.12");
    assert_eq!(
        plan.faults(),
        [SpecError::OutsideNetwork { network, address }]
    );
    let mut plan = Plan::two_tenants();
    plan.tenants[1].gateways[0] = address;
    assert_eq!(
        plan.faults(),
        [SpecError::OutsideNetwork { network, address }]
    );

    let mut plan = Plan::two_tenants();
    plan.vms[4].addresses[0] = plan.vms[3].addresses[0];
    let address = ip("10.1.0.11");
    assert_eq!(
        plan.faults(),
        [SpecError::AddressTaken { network, address }]
    );

    // A vm of another network at the port of one, and a vm without an address.
    let vni = Vni::new(5001).unwrap();
    let networks = [Network {
        name: "blue",
        vni,
        prefixes: &[prefix("10.1.0.0/16")],
        gateways: &[],
        ..Network::default()
    }];
    let (one, two) = ([ip("10.1.0.1")], [ip("10.1.0.2")]);
    let vm = |name, addresses, port| NetworkVm {
        name,
        addresses,
        host: ip("172.16.0.101"),
        port: Some(PortId(port)),
        ..NetworkVm::default()
    };
    let of = |vms: &[NetworkVm<'_>]| -> Vec<SpecError> {
        Plan::two_tenants().with_spec(0, |spec| {
            let spec = Spec {
                networks: &networks,
                pools: &[],
                rules: &[],
                vms,
                ..spec.clone()
            };
            let faults: Vec<_> = spec.faults().collect();
            assert_eq!(Snapshot::new(&spec, None).is_err(), !faults.is_empty());
            faults
        })
    };
    assert_eq!(of(&[vm("a", &one, 1), vm("b", &two, 2)]), []);
    let port = PortId(1);
    let taken = SpecError::VmPortConflict { vm: 1, port };
    assert_eq!(of(&[vm("a", &one, 1), vm("b", &two, 1)]), [taken]);
    assert_eq!(
        of(&[vm("a", &[], 1)]),
        [SpecError::VmWithoutAddress { vm: 0 }]
    );
    let mut far = vm("a", &one, 1);
    far.host = ip("fd00::1");
    assert_eq!(of(&[far]), [SpecError::NoUnderlayAddressForVm { vm: 0 }]);
    far.network = 7;
    let (vm, count) = (0, 1);
    assert!(of(&[far]).contains(&SpecError::DanglingNetwork { vm, count }));
}
