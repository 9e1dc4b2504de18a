//! Connections that a host agent takes up in their middle, and that its vm refuses or another host has.

use crate::passing;

use passing::{End, Fleet, HOST_OF, KEY, Node, VMS, snapshot};
use slb_core::{DropReason, Host, Instant, Verdict};

const FAMILIES: [bool; 2] = [false, true];
const PORTS: std::ops::Range<u16> = 2000..2100;
const DRAINED: usize = 3;

/// Starts the host agent of a vm again without its connections. The configuration tells it the former owners.
fn restart(fleet: &mut Fleet, vm: usize) {
    let host = HOST_OF[vm];
    let past: &[&[u32]] = &[&[1; VMS]];
    let snapshot = snapshot(Node::Host(host), fleet.is_ipv6, fleet.weights, past, None);
    fleet.hosts[host] = Host::with_capacity(snapshot, 1000, KEY).unwrap();
    fleet.hosts[host].take_up(Instant::from_secs(fleet.now));
}

/// A vm that has no such connection answers a client's segment (RFC 9293 §3.10.7.1). Returns true if the client
/// sees the answer.
fn refuse(fleet: &mut Fleet, vm: usize, port: u16, acknowledged: u32) -> bool {
    let mut reset = Vec::new();
    let tcp = fleet.packet(false, vm).tcp(80, port, acknowledged, 0);
    tcp.rst().write(&mut reset, &[]).unwrap();
    let from = slb_core::PortId(vm as u16 + 1);
    let (verdict, _) = fleet.process(Node::Host(HOST_OF[vm]), from, &reset);
    let unseen = Verdict::Drop(DropReason::NoConnection);
    assert!(verdict == Verdict::Forward(passing::FABRIC) || verdict == unseen);
    verdict != unseen
}

/// A vm's segment of a connection of [`Fleet::connect`].
fn go_on(fleet: &mut Fleet, vm: usize, port: u16, server: u32) {
    let mut segment = Vec::new();
    let tcp = fleet.packet(false, vm).tcp(80, port, server, 1000);
    tcp.ack(104).write(&mut segment, b"data").unwrap();
    fleet.answer(vm, &segment);
}

/// A mux has sent the connection to a vm that no host knows as an owner of the slot. The host that gets its
/// segments by another mux takes it up in the wrong place, until a change names the owner.
#[test]
fn a_refused_connection_is_passed_on_to_an_owner_that_is_known_later() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let mut found = 0;
        for port in PORTS {
            let syn = fleet.syn(port, 99);
            let End::Vm(wrong) = fleet.send(&syn) else {
                panic!("nobody takes the SYN")
            };
            restart(&mut fleet, wrong);
            // The owner of the slot where the wrong vm has no weight.
            let before = fleet.weights;
            let mut without = before;
            without[wrong] = 0;
            let syn = fleet.syn(port, 99);
            let End::Vm(vm) = fleet.send_by(without, &syn) else {
                panic!("nobody takes the SYN")
            };
            if HOST_OF[vm] == HOST_OF[wrong] {
                continue;
            }
            let mut answer = Vec::new();
            let tcp = fleet.packet(false, vm).tcp(80, port, 4999, 1000);
            tcp.syn().ack(100).write(&mut answer, &[]).unwrap();
            fleet.answer(vm, &answer);
            let segment = fleet.segment(port, 100, 5000);
            assert_eq!(fleet.send_by(without, &segment), End::Vm(vm));

            assert_eq!(fleet.send(&segment), End::Vm(wrong), "taken up");
            refuse(&mut fleet, wrong, port, 5000);
            assert_eq!(fleet.send(&segment), End::Vm(wrong), "nobody else is known");
            refuse(&mut fleet, wrong, port, 5000);
            fleet.reweigh(without);
            assert_eq!(fleet.send_by(before, &segment), End::Vm(vm), "{port}");
            assert_eq!(fleet.hops(), 1);
            found += 1;
            fleet.reweigh(before);
        }
        assert!(found > 50, "{found}");
    }
}

/// The present owner's host starts without state. It passes segments on to the former owner, who has no such
/// connection, knows all of its own, and sends them back.
#[test]
fn a_connection_of_the_present_owner_is_taken_up_after_the_former_one_was_asked() {
    for is_ipv6 in FAMILIES {
        let mut back = 0;
        for started in [2, 4, 5] {
            let mut fleet = Fleet::new(is_ipv6);
            fleet.drain(DRAINED);
            let served: Vec<usize> = PORTS.map(|port| fleet.connect(port, 5000)).collect();
            restart(&mut fleet, started);
            for (port, _) in PORTS.zip(&served).filter(|&(_, &vm)| vm == started) {
                let segment = fleet.segment(port, 104, 5000);
                assert_eq!(fleet.send(&segment), End::Vm(started), "{port}");
                back += fleet.hops();
                // From then on it is known there.
                go_on(&mut fleet, started, port, 5000);
                assert_eq!((fleet.send(&segment), fleet.hops()), (End::Vm(started), 0));
            }
            // A connection that does not exist is still refused, by the vm itself or the host.
            let segment = fleet.segment(4000, 104, 5000);
            assert!(matches!(fleet.send(&segment), End::Outside | End::Vm(_)));
        }
        assert!(back >= 2, "{back}");
    }
}

/// Without take-ups, the former owner's host tells the client, as it has no such connection.
#[test]
fn nothing_goes_back_where_nothing_is_taken_up() {
    let mut fleet = Fleet::new(false);
    let options = slb_core::nat::NatOptions {
        take_ups_per_second: 0,
        take_ups_at_once: 0,
        ..Default::default()
    };
    let hosts = std::mem::take(&mut fleet.hosts).into_iter();
    fleet.hosts = hosts.map(|host| host.with_options(options)).collect();
    fleet.drain(DRAINED);
    for port in PORTS {
        let segment = fleet.segment(port, 104, 5000);
        assert_eq!(fleet.send(&segment), End::Outside);
        assert!(fleet.hops() <= 1);
    }
    let back: u64 = (0..passing::HOSTS)
        .map(|host| fleet.stats(host).passed_back)
        .sum();
    assert_eq!(back, 0);
}

/// Both hosts start without state: the former owner's vm refuses the connection. The client is not told.
#[test]
fn a_connection_that_a_former_owner_refuses_is_taken_up_by_the_present_one() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let olds: Vec<usize> = PORTS.map(|port| fleet.connect(port, 5000)).collect();
        fleet.drain(DRAINED);
        let news: Vec<usize> = (3000..3100).map(|port| fleet.connect(port, 5000)).collect();
        for vm in [2, 3, 4, 5] {
            restart(&mut fleet, vm);
        }
        let all = PORTS.zip(&olds).chain((3000..3100).zip(&news));
        let (mut detours, mut refused) = (0, 0);
        for (port, &vm) in all.filter(|&(_, &vm)| vm > 1) {
            let segment = fleet.segment(port, 104, 5000);
            let End::Vm(mut reached) = fleet.send(&segment) else {
                panic!("{port} of vm {vm} reaches nobody")
            };
            if reached != vm {
                assert!(!refuse(&mut fleet, reached, port, 5000), "{port}");
                refused += 1;
                // The client sends it again.
                let End::Vm(then) = fleet.send(&segment) else {
                    panic!("{port} of vm {vm} reaches nobody")
                };
                reached = then;
            }
            assert_eq!(reached, vm, "{port}");
            go_on(&mut fleet, vm, port, 5000);
            assert_eq!(fleet.send(&segment), End::Vm(vm));
            detours += fleet.hops();
        }
        assert!(detours >= 2 && refused >= 2, "{detours}, {refused}");
    }
}

#[test]
fn the_client_of_a_connection_that_no_vm_has_is_told_in_the_end() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        fleet.drain(DRAINED);
        for vm in [2, 3, 4, 5] {
            restart(&mut fleet, vm);
        }
        let mut twice = 0;
        for port in PORTS {
            let segment = fleet.segment(port, 104, 5000);
            let mut asked = Vec::new();
            let is_told = loop {
                match fleet.send(&segment) {
                    // The host of the first two vms did not start again.
                    End::Outside => break true,
                    End::Vm(vm) => {
                        assert!(!asked.contains(&vm), "{asked:?}");
                        asked.push(vm);
                        if refuse(&mut fleet, vm, port, 5000) {
                            break true;
                        }
                    }
                    other => panic!("{port}: {other:?}"),
                }
            };
            assert!(is_told && asked.len() <= 2, "{asked:?}");
            twice += usize::from(asked.len() == 2);
        }
        assert!(twice > 5, "{twice}");
    }
}

/// Errors about a flow, such as those of path-MTU discovery, follow its segments.
#[test]
fn an_error_about_a_refused_connection_is_passed_on() {
    let mut fleet = Fleet::new(false);
    let before = fleet.weights;
    let served: Vec<usize> = PORTS.map(|port| fleet.connect(port, 5000)).collect();
    fleet.drain(DRAINED);
    let moved = served.iter().position(|&vm| vm == DRAINED).unwrap() as u16;
    let port = PORTS.start + moved;
    let segment = fleet.segment(port, 104, 5000);
    // The host of the present owner knows no former one at first.
    let syn = fleet.syn(port, 1);
    let frame = fleet.sent_by(fleet.weights, &syn);
    let host = usize::from(frame[33]) - 101;
    let past_of = |fleet: &Fleet, past: &[&[u32]], previous| {
        snapshot(Node::Host(host), false, fleet.weights, past, previous)
    };
    fleet.hosts[host] = Host::with_capacity(past_of(&fleet, &[], None), 1000, KEY).unwrap();
    fleet.hosts[host].take_up(Instant::from_secs(fleet.now));
    let End::Vm(wrong) = fleet.send(&segment) else {
        panic!("nobody takes it up")
    };
    refuse(&mut fleet, wrong, port, 5000);
    let weights = fleet.weights;
    fleet.reweigh(before);
    fleet.reweigh(weights);
    let error = error_about(&fleet, port, 4999);
    assert_eq!(fleet.send(&error), End::Vm(DRAINED));
    assert_eq!(fleet.send(&segment), End::Vm(DRAINED));
}

/// "Fragmentation needed" about a vm's segment with this number.
fn error_about(fleet: &Fleet, port: u16, sequence: u32) -> Vec<u8> {
    let (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) =
        (passing::vip(false), passing::client(false))
    else {
        unreachable!("IPv4")
    };
    let mut quoted = Vec::new();
    let link = etherparse::PacketBuilder::ethernet2(passing::CLIENT_MAC, passing::CLIENT_MAC);
    let step = link.ipv4(from.octets(), to.octets(), 60);
    let tcp = step.tcp(80, port, sequence, 1000).ack(100);
    tcp.write(&mut quoted, &[]).unwrap();
    let mut error = Vec::new();
    let step = fleet.packet(true, 0).icmpv4_raw(3, 4, [0, 0, 5, 120]);
    step.write(&mut error, &quoted[14..]).unwrap();
    error
}
