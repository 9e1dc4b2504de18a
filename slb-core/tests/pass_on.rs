//! Hosts pass on packets of other hosts' connections: each kind of packet, between real muxes and hosts.

use crate::passing;

use std::net::IpAddr;

use etherparse::PacketBuilder;
use passing::{
    CLIENT_MAC, End, FABRIC, Fleet, HOSTS, IDLE, Node, VMS, Weights, client, snapshot, vip,
};
use slb_core::DropReason;
use slb_core::nat::NatOptions;

const FAMILIES: [bool; 2] = [false, true];

#[test]
fn segments_go_where_the_connection_is_through_four_drains() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let served: Vec<usize> = (0..200).map(|n| fleet.connect(2000 + n, 5000)).collect();
        let mut most = 0;
        for drained in [0, 3, 5, 2] {
            fleet.drain(drained);
            for (number, &vm) in (0..).zip(&served) {
                let segment = fleet.segment(2000 + number, 104, 5000);
                assert_eq!(fleet.send(&segment), End::Vm(vm), "{drained}, {number}");
                most = most.max(fleet.hops());
            }
        }
        assert!((2..=4).contains(&most), "{most} hops");
    }
}

#[test]
fn what_is_passed_on_keeps_its_outer_source_port_and_its_length() {
    let mut fleet = Fleet::new(false);
    let served: Vec<usize> = (0..50).map(|n| fleet.connect(2000 + n, 5000)).collect();
    fleet.drain(2);
    let moved = served.iter().position(|&vm| vm == 2).unwrap() as u16;
    let segment = fleet.segment(2000 + moved, 104, 5000);
    assert_eq!((fleet.send(&segment), fleet.hops()), (End::Vm(2), 1));
    let [first, second] = &fleet.on_fabric[..] else {
        panic!("one hop")
    };
    assert_eq!(first.len(), second.len());
    assert_eq!(first[34..38], second[34..38], "UDP ports");
    // The inner source address is the mark: locally administered, hop 1.
    assert_eq!(second[50 + 6..50 + 8], [0x72, 0x00]);
    assert_ne!(first[50 + 6], 0x72);
}

#[test]
fn a_syn_goes_to_the_present_owner_only_where_the_vm_takes_none() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let before = fleet.weights;
        fleet.drain(4);
        let mut moved = 0;
        for port in 2000..2200 {
            let syn = fleet.syn(port, 7);
            let End::Vm(owner) = fleet.send(&syn) else {
                panic!("nobody takes the SYN")
            };
            assert_eq!(fleet.hops(), 0);
            // A mux that has not heard of the drain.
            let syn = fleet.syn(port + 1000, 7);
            let end = fleet.send_by(before, &syn);
            assert!(end != End::Vm(4) && end != End::Outside, "{end:?}");
            assert!(owner != 4);
            moved += fleet.hops();
        }
        assert!(moved > 10, "{moved}");
        // Back again: another mux still has it drained, and the owner that it knows takes the SYN.
        let drained = fleet.weights;
        fleet.reweigh(before);
        for port in 4000..4200 {
            let syn = fleet.syn(port, 7);
            assert!(matches!(fleet.send_by(drained, &syn), End::Vm(_)));
            assert_eq!(fleet.hops(), 0);
        }
    }
}

#[test]
fn a_new_connection_of_old_ports_is_found_behind_a_stale_pin() {
    for is_ipv6 in FAMILIES {
        for old in ["nothing", "half-open", "closed"] {
            let mut fleet = Fleet::new(is_ipv6);
            let before = fleet.weights;
            let ports = 2000..2100;
            let mut olds = Vec::new();
            for port in ports.clone() {
                match old {
                    "closed" => {
                        let vm = fleet.connect(port, 900_000);
                        // The server resets it.
                        let mut reset = Vec::new();
                        let tcp = fleet.packet(false, vm).tcp(80, port, 900_000, 0);
                        tcp.rst().write(&mut reset, &[]).unwrap();
                        fleet.answer(vm, &reset);
                        olds.push(vm);
                    }
                    "half-open" => {
                        let syn = fleet.syn(port, 99);
                        let End::Vm(vm) = fleet.send(&syn) else {
                            panic!("nobody takes the SYN")
                        };
                        olds.push(vm);
                    }
                    _ => {}
                }
            }
            fleet.drain(1);
            fleet.drain(4);
            let mut moved = 0;
            for port in ports {
                let vm = fleet.connect(port, 5_000_000);
                // The stale pin is one to the owner of before.
                let segment = fleet.segment(port, 104, 5_000_000);
                assert_eq!(
                    fleet.send_by(before, &segment),
                    End::Vm(vm),
                    "{old}, {port}"
                );
                moved += fleet.hops();
            }
            assert!(moved > 0 && (old == "nothing") == olds.is_empty());
        }
    }
}

#[test]
fn errors_about_a_flow_follow_it() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let served: Vec<usize> = (0..100).map(|n| fleet.connect(2000 + n, 5000)).collect();
        fleet.drain(3);
        let mut passed = 0;
        for (number, &vm) in (0..).zip(&served) {
            let port = 2000 + number;
            // Quotes what the vm sent under the VIP's name, the last number that it sent.
            let mut quoted = Vec::new();
            let (from, to) = (vip(is_ipv6), client(is_ipv6));
            let link = PacketBuilder::ethernet2(CLIENT_MAC, CLIENT_MAC);
            let step = match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 60),
                (IpAddr::V6(a), IpAddr::V6(b)) => link.ipv6(a.octets(), b.octets(), 60),
                _ => unreachable!("of one family"),
            };
            step.tcp(80, port, 4999, 1000)
                .ack(100)
                .write(&mut quoted, &[])
                .unwrap();
            let mut error = Vec::new();
            let step = fleet.packet(true, 0);
            let written = if is_ipv6 {
                step.icmpv6_raw(2, 0, 1280u32.to_be_bytes())
                    .write(&mut error, &quoted[14..])
            } else {
                let mtu = [0, 0, 5, 120];
                step.icmpv4_raw(3, 4, mtu).write(&mut error, &quoted[14..])
            };
            written.unwrap();
            assert_eq!(fleet.send(&error), End::Vm(vm), "{number}");
            passed += usize::from(fleet.hops() > 0);
        }
        assert!(passed > 5, "{passed}");
    }
}

#[test]
fn former_owners_are_asked_for_a_datagram_and_the_present_one_takes_it() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let ports = 2000..2100;
        let first: Vec<End> = ports
            .clone()
            .map(|port| {
                let datagram = fleet.datagram(port);
                fleet.send(&datagram)
            })
            .collect();
        fleet.drain(2);
        fleet.drain(4);
        let mut asked = 0;
        for (port, vm) in ports.clone().zip(&first) {
            // Who has the flow keeps it.
            let old = fleet.datagram(port);
            assert_eq!(fleet.send(&old), *vm, "{port}");
            // A new flow is for the present owner, at once or in the end.
            let new = fleet.datagram(port + 1000);
            let End::Vm(taker) = fleet.send(&new) else {
                panic!("nobody takes it")
            };
            assert!(taker != 2 && taker != 4);
            asked += fleet.hops();
            // From then on it is known there.
            assert_eq!(fleet.send(&new), End::Vm(taker));
            assert_eq!(fleet.hops(), 0);
        }
        assert!(asked > 10, "{asked}");
        let back: u64 = (0..HOSTS).map(|host| fleet.stats(host).passed_back).sum();
        assert!(back > 5, "{back}");
        // Flows from before the change are over by then.
        fleet.now += IDLE + 1;
        for port in ports {
            let datagram = fleet.datagram(port + 2000);
            assert!(matches!(fleet.send(&datagram), End::Vm(_)));
            assert_eq!(fleet.hops(), 0);
        }
    }
}

/// A mux chooses a ping's slot without its identifier, and so do the hosts that it comes to.
#[test]
fn a_ping_is_passed_on_to_the_former_owner_of_the_slot_that_muxes_choose() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let mut served = [0; VMS];
        let mut of_first = Vec::new();
        for client in 1..=60 {
            let ping = fleet.ping(client, None);
            let End::Vm(vm) = fleet.send(&ping) else {
                panic!("nobody takes the ping");
            };
            served[vm] += 1;
            let answer = fleet.ping(client, Some(vm));
            fleet.answer(vm, &answer);
            assert_eq!(fleet.send(&ping), End::Vm(vm));
            if vm == 0 {
                of_first.push(client);
            }
        }
        assert!(served.iter().all(|&count| count > 0), "{served:?}");
        fleet.drain(0);
        let mut hops = 0;
        for client in of_first {
            let ping = fleet.ping(client, None);
            assert_eq!(fleet.send(&ping), End::Vm(0), "IPv6: {is_ipv6}, {client}");
            hops += fleet.hops();
        }
        assert!(hops > 0, "some came to another host");
    }
}

#[test]
fn a_vm_of_the_same_host_needs_no_detour() {
    let mut fleet = Fleet::new(false);
    // Only the vms of the first host serve, so slots of one go to the other.
    fleet.reweigh([1, 1, 0, 0, 0, 0]);
    let served: Vec<usize> = (0..50).map(|n| fleet.connect(2000 + n, 5000)).collect();
    fleet.drain(0);
    for (number, &vm) in (0..).zip(&served) {
        let segment = fleet.segment(2000 + number, 104, 5000);
        assert_eq!((fleet.send(&segment), fleet.hops()), (End::Vm(vm), 0));
        let syn = fleet.syn(3000 + number, 7);
        let end = fleet.send_by([1, 1, 0, 0, 0, 0], &syn);
        assert_eq!((end, fleet.hops()), (End::Vm(1), 0));
    }
    assert!(served.contains(&0));
}

#[test]
fn where_nobody_has_the_connection_its_sender_is_told() {
    let mut fleet = Fleet::new(false);
    fleet.drain(3);
    let mut passed = 0;
    for port in 2000..2100 {
        let segment = fleet.segment(port, 104, 5000);
        assert_eq!(fleet.send(&segment), End::Outside);
        passed += fleet.hops();
    }
    assert!(passed > 10, "{passed}");
    let resets: u64 = (0..HOSTS).map(|host| fleet.stats(host).resets).sum();
    assert_eq!(resets, 100);
}

#[test]
fn a_host_that_starts_knows_the_past_that_it_is_given() {
    let (before, after) = ([1; VMS], [1, 1, 1, 0, 1, 1]);
    let mut fleet = Fleet::new(false);
    let served: Vec<usize> = (0..100).map(|n| fleet.connect(2000 + n, 5000)).collect();
    fleet.drain(3);
    let knows = Fleet::with_past(false, after, &[&before]);
    let knows_not = Fleet::with_past(false, after, &[]);
    for (mut started, finds) in [(knows, true), (knows_not, false)] {
        // All hosts but the one with the connections started anew.
        std::mem::swap(&mut started.hosts[2], &mut fleet.hosts[2]);
        for (number, _) in (0..).zip(&served).filter(|&(_, &vm)| vm == 3) {
            let segment = started.segment(2000 + number, 104, 5000);
            assert_eq!(started.send(&segment) == End::Vm(3), finds);
        }
        std::mem::swap(&mut started.hosts[2], &mut fleet.hosts[2]);
    }
    assert!(served.contains(&3));
}

#[test]
fn packets_above_the_limit_are_dropped_as_astray() {
    let mut fleet = Fleet::new(false);
    let options = NatOptions {
        passes_per_second: 100,
        passes_at_once: 10,
        ..NatOptions::default()
    };
    let hosts = std::mem::take(&mut fleet.hosts).into_iter();
    fleet.hosts = hosts.map(|host| host.with_options(options)).collect();
    let known = fleet.connect(1999, 5000);
    fleet.drain(3);
    let mut astray = 0;
    for port in 2000..3000 {
        let segment = fleet.segment(port, 104, 5000);
        astray += u32::from(fleet.send(&segment) == End::Dropped(DropReason::Astray));
    }
    let passed: u64 = (0..HOSTS).map(|host| fleet.stats(host).passed_on).sum();
    assert!(
        astray > 100 && passed <= 10 * HOSTS as u64,
        "{astray}, {passed}"
    );
    // What is here is disturbed by none of it.
    let segment = fleet.segment(1999, 104, 5000);
    assert_eq!(fleet.send(&segment), End::Vm(known));
    assert!(fleet.hops() == 0 || known == 3);
}

#[test]
fn a_mark_is_believed_from_hosts_only() {
    let mut fleet = Fleet::new(false);
    fleet.drain(3);
    // A datagram whose mark says that it is to be taken where it comes.
    let mut marked = 0;
    for port in 2000..2100 {
        let datagram = fleet.datagram(port);
        let (_, mut frame) = fleet.process(Node::Mux, FABRIC, &datagram);
        frame[50 + 6..50 + 12].copy_from_slice(&[0x72, 0x10, 0, 0, 0, 0]);
        let from_mux = fleet.deliver(frame.clone());
        assert!(matches!(from_mux, End::Vm(_)));
        marked += fleet.hops();
        // The same from a host, for another flow.
        let datagram = fleet.datagram(port + 1000);
        let (_, mut frame) = fleet.process(Node::Mux, FABRIC, &datagram);
        frame[50 + 6..50 + 12].copy_from_slice(&[0x72, 0x10, 0, 0, 0, 0]);
        let there = frame[33];
        let other = if there == 101 { 102 } else { 101 };
        // One's complement: the checksum of the other source address.
        let old = u16::from_be_bytes([frame[28], frame[29]]);
        let new = u16::from_be_bytes([0, other]);
        frame[29] = other;
        let checksum = u16::from_be_bytes([frame[24], frame[25]]);
        let checksum = slb_core::wire::checksum::update(checksum, old, new);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        assert!(matches!(fleet.deliver(frame), End::Vm(_)));
        assert_eq!(fleet.hops(), 0, "it was passed back");
    }
    assert!(marked > 5, "{marked}");
}

/// Returns true if the mark of a frame on the fabric sends it back to the host that takes it.
fn is_passed_back(frame: &[u8]) -> bool {
    frame[50 + 6] == 0x72 && frame[50 + 7] & 0x18 == 0x10
}

#[test]
fn no_host_gets_a_packet_twice_whatever_generation_it_is_of() {
    let mut state = 1u64;
    let mut random = move |most: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % most
    };
    let (mut most, mut back) = (0, 0);
    for round in 0..40 {
        let is_ipv6 = round % 2 == 1;
        let mut fleet = Fleet::new(is_ipv6);
        for host in 0..HOSTS {
            // Each host has a past of its own.
            for _ in 0..random(6) {
                let weights: Weights = std::array::from_fn(|_| random(3) as u32);
                let node = Node::Host(host);
                let previous = fleet.hosts[host].snapshot();
                let next = snapshot(node, is_ipv6, weights, &[], Some(previous));
                fleet.hosts[host].install(next).expect("it follows");
            }
        }
        for _ in 0..100 {
            let port = 2000 + random(500) as u16;
            let packet = match random(4) {
                0 => fleet.syn(port, random(1 << 32) as u32),
                1 => fleet.datagram(port),
                _ => fleet.segment(port, random(1 << 32) as u32, random(1 << 32) as u32),
            };
            let weights = std::array::from_fn(|_| 1 + random(3) as u32);
            fleet.send_by(weights, &packet);
            let mut visited: Vec<u8> = Vec::new();
            for frame in &fleet.on_fabric {
                if is_passed_back(frame) {
                    back += 1;
                } else {
                    assert!(!visited.contains(&frame[33]), "round {round}: {visited:?}");
                }
                visited.push(frame[33]);
            }
            let last = fleet
                .on_fabric
                .iter()
                .rposition(|frame| is_passed_back(frame));
            assert!(
                last.is_none_or(|at| at + 1 == fleet.on_fabric.len()),
                "it stays there"
            );
            most = most.max(fleet.hops());
        }
    }
    assert!(most >= 3 && back > 0, "{most} hops, {back} passed back");
}
