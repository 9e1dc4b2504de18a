//! Ports of connections whose source is translated: as many connections to one destination as there
//! are ports, whoever asks for them.

use crate::snat_world;

use std::collections::HashSet;
use std::net::IpAddr;

use slb_core::{DropReason, Instant, Key, PortId, Verdict};

use snat_world::{Family, Kind, Plan, far, vm};

const NOW: Instant = Instant::from_secs(1);

/// Has client ports `clients` call one destination; returns under which names the calls went out, each
/// once, and how many found no port.
fn call(
    world: &mut snat_world::World,
    now: Instant,
    kind: Kind,
    clients: impl Iterator<Item = u16>,
) -> (HashSet<(IpAddr, u16)>, usize) {
    let (mut names, mut refused) = (HashSet::new(), 0);
    for client in clients {
        let packet = kind.request((vm(world.family, 0), client), far(world.family, 0));
        let (verdict, out) = world.of_vm(now, 0, &packet);
        match verdict {
            Verdict::Forward(PortId(0)) => {
                let name = snat_world::ends(&out).0;
                assert!(name.1 >= 1024);
                assert!(names.insert(name), "{name:?} has two connections");
            }
            Verdict::Reply | Verdict::Drop(DropReason::SnatExhausted) => refused += 1,
            other => panic!("{other:?} of client {client}"),
        }
    }
    (names, refused)
}

/// Even client ports, as Linux takes for `connect`, and then, where more are needed, odd ones.
fn even_first() -> impl Iterator<Item = u16> {
    (2..=u16::MAX).step_by(2).chain((1..u16::MAX).step_by(2))
}

const ALL: [(Family, Kind); 6] = [
    (Family::Ipv4, Kind::Tcp),
    (Family::Ipv4, Kind::Udp),
    (Family::Ipv4, Kind::Echo),
    (Family::Ipv6, Kind::Tcp),
    (Family::Ipv6, Kind::Udp),
    (Family::Ipv6, Kind::Echo),
];

#[test]
fn so_many_ports_give_so_many_connections_to_one_destination() {
    let sizes = [8, 1024, 2048, 8192];
    for (family, kind) in ALL {
        for ports in sizes {
            let mut world = Plan::new(family, 1).ports(ports).world();
            let (names, refused) = call(&mut world, NOW, kind, even_first().take(ports + 100));
            assert_eq!((names.len(), refused), (ports, 100), "{family:?} {kind:?}");
            assert_eq!(world.snat().exhausted, 100);
            assert_eq!(world.snat().used, ports as u64);
        }
    }
}

#[test]
fn sixty_four_thousand_ports_give_as_many_connections() {
    for (family, kind) in [(Family::Ipv4, Kind::Tcp), (Family::Ipv6, Kind::Udp)] {
        let mut world = Plan::new(family, 1).ports(64_000).world();
        let (names, refused) = call(&mut world, NOW, kind, even_first().take(64_100));
        assert_eq!((names.len(), refused), (64_000, 100), "{family:?} {kind:?}");
    }
}

#[test]
fn the_ports_of_all_frontends_add_up() {
    for (family, kind) in ALL {
        for fronts in 1..=3u8 {
            // Of one rule, whose ports are for all its frontends; and of a rule for each frontend, as
            // load-balancing rules without `disable_outbound_snat` imply.
            let each = 1024;
            let all = each * usize::from(fronts);
            for plan in [
                Plan::new(family, fronts).ports(all),
                Plan::new(family, fronts).ports(each).rule_for_each(),
                Plan::new(family, fronts).ports(each).pool_for_each(),
            ] {
                let mut world = plan.world();
                let (names, refused) = call(&mut world, NOW, kind, even_first().take(all + 104));
                assert_eq!((names.len(), refused), (all, 104), "{family:?} {kind:?}");
                for front in 0..fronts {
                    let front = snat_world::front(family, front);
                    let of_front = names.iter().filter(|name| name.0 == front).count();
                    assert_eq!(of_front, each, "{family:?} {kind:?}");
                }
            }
        }
    }
}

#[test]
fn every_destination_has_all_ports() {
    let ports = 512;
    for (family, kind) in ALL {
        let mut world = Plan::new(family, 1).ports(ports).world();
        // All at a time, so that none is served first.
        for client in even_first().take(ports + 1).enumerate() {
            for destination in 0..5 {
                let packet = kind.request((vm(family, 0), client.1), far(family, destination));
                let (verdict, _) = world.of_vm(NOW, 0, &packet);
                let expected = match client.0 == ports {
                    false => Verdict::Forward(PortId(0)),
                    true => Verdict::Reply,
                };
                assert_eq!(verdict, expected, "{family:?} {kind:?} {client:?}");
            }
        }
        assert_eq!(world.snat().connections, 5 * ports as u64);
        assert_eq!(world.snat().used, ports as u64);
    }
}

#[test]
fn ports_that_are_free_again_are_found_wherever_they_are() {
    let ports = 2048;
    for (family, kind) in ALL {
        let mut world = Plan::new(family, 1).ports(ports).world();
        let clients: Vec<u16> = even_first().take(ports).collect();
        let (names, _) = call(&mut world, NOW, kind, clients.iter().copied());
        assert_eq!(names.len(), ports);
        // Every third one goes on; the others are over when a half-open connection's time is.
        let kept: Vec<u16> = clients.iter().copied().step_by(3).collect();
        let mut now = 1;
        for _ in 0..20 {
            now += 30;
            for &client in &kept {
                let packet = kind.request((vm(family, 0), client), far(family, 0));
                let (verdict, _) = world.of_vm(Instant::from_secs(now), 0, &packet);
                assert_eq!(verdict, Verdict::Forward(PortId(0)));
            }
            world.advance(Instant::from_secs(now));
        }
        assert_eq!(world.snat().connections, kept.len() as u64);
        let others = even_first().skip(ports).take(ports);
        let (again, refused) = call(&mut world, Instant::from_secs(now), kind, others);
        assert_eq!(again.len(), ports - kept.len(), "{family:?} {kind:?}");
        assert_eq!(refused, kept.len());
        assert!(again.is_subset(&names));
    }
}

/// All ports are in use, and one connection ends: its port is the next one's, wherever it is.
#[test]
fn the_one_port_that_is_free_again_is_found() {
    for (family, kind) in ALL {
        for (fronts, ports, ends) in [(1, 8, 0..8), (2, 16, 0..16), (1, 512, 100..102)] {
            for over in ends {
                let mut world = Plan::new(family, fronts).ports(ports).world();
                let ask = |world: &mut snat_world::World, now: Instant, client: usize| {
                    let from = (vm(family, 0), 2000 + 2 * client as u16);
                    let (verdict, out) = world.of_vm(now, 0, &kind.request(from, far(family, 0)));
                    let is_sent = verdict == Verdict::Forward(PortId(0));
                    is_sent.then(|| snat_world::ends(&out).0)
                };
                let each = 0..ports;
                let names: Vec<_> = each.map(|n| ask(&mut world, NOW, n)).collect();
                assert!(names.iter().all(Option::is_some));
                assert_eq!(ask(&mut world, NOW, ports), None);
                let mut now = 1;
                for _ in 0..10 {
                    now += 60;
                    for client in (0..ports).filter(|&client| client != over) {
                        let now = Instant::from_secs(now);
                        assert_eq!(ask(&mut world, now, client), names[client]);
                    }
                    world.advance(Instant::from_secs(now));
                }
                let now = Instant::from_secs(now);
                let next = ask(&mut world, now, ports);
                assert_eq!(next, names[over], "{family:?} {kind:?} {over}");
                assert_eq!(ask(&mut world, now, ports + 1), None);
            }
        }
    }
}

#[test]
fn a_port_is_kept_where_it_can_be_and_else_its_parity() {
    for family in [Family::Ipv4, Family::Ipv6] {
        for kind in [Kind::Tcp, Kind::Udp] {
            keeps_ports(family, kind);
        }
    }
}

fn keeps_ports(family: Family, kind: Kind) {
    let mut world = Plan::new(family, 1).ports(4096).world();
    let (first, last) = (1024, 1024 + 4095);
    let clients = (1000..6000).step_by(7);
    let mut same = 0;
    for client in clients {
        let packet = kind.request((vm(family, 0), client), far(family, 0));
        let (verdict, out) = world.of_vm(NOW, 0, &packet);
        assert_eq!(verdict, Verdict::Forward(PortId(0)));
        let (_, port) = snat_world::ends(&out).0;
        assert_eq!(port % 2, client % 2, "there is room enough");
        assert!((first..=last).contains(&port));
        same += u32::from(port == client);
    }
    // Four in 5000 ports that somebody else was given before may be in the way.
    assert!(
        same > 500,
        "{same} of 585 ports were kept, {family:?} {kind:?}"
    );
}

#[test]
fn an_endpoint_keeps_its_port_whomever_it_talks_to() {
    for (family, kind) in ALL.into_iter().filter(|(_, kind)| *kind != Kind::Tcp) {
        let mut world = Plan::new(family, 1).ports(1024).world();
        let mut name = |client: u16, destination: u8| {
            let packet = kind.request((vm(family, 0), client), far(family, destination));
            let (verdict, out) = world.of_vm(NOW, 0, &packet);
            assert_eq!(verdict, Verdict::Forward(PortId(0)));
            snat_world::ends(&out).0
        };
        for client in [40_000, 40_002, 50_001] {
            let first = name(client, 0);
            for destination in 1..100 {
                assert_eq!(name(client, destination), first, "{family:?} {kind:?}");
            }
        }
    }
}

#[test]
fn another_key_gives_other_ports_and_the_same_key_the_same() {
    let names = |key: [u64; 2], (family, kind)| {
        let mut world = Plan::new(family, 1).ports(8192).key(Key::new(key)).world();
        let clients = (40_000..40_100).step_by(2);
        let calls = clients.map(|client| {
            let packet = Kind::request(kind, (vm(family, 0), client), far(family, 0));
            snat_world::ends(&world.of_vm(NOW, 0, &packet).1).0.1
        });
        calls.collect::<Vec<_>>()
    };
    for kind in ALL {
        let one = names([1, 2], kind);
        assert_eq!(one, names([1, 2], kind));
        let other = names([1, 3], kind);
        let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same < 5, "{same} of 50 are the same");
    }
}

/// The server of a rule with `source_nat` sees one address, whose 64 512 ports are all of use.
#[test]
fn all_ports_of_a_source_nat_address_lead_to_one_server() {
    for family in [Family::Ipv4, Family::Ipv6] {
        let mut world = Plan::new(family, 1).ports(8).source_nat().world();
        let mut names = HashSet::new();
        let most = 64_512;
        for client in 0..most + 50 {
            let remote = snat_world::client(family, (client / 1000) as u8);
            // Even ports only.
            let port = 2000 + 2 * (client % 1000) as u16;
            let packet = Kind::Tcp.request((remote, port), (snat_world::vip(family), 80));
            let (verdict, out) = world.of_mux(NOW, 0, &packet);
            if client < most {
                assert_eq!(verdict, Verdict::Forward(PortId(1)), "{family:?} {client}");
                assert!(names.insert(snat_world::ends(&out).0));
            } else {
                // The client is told, by way of the fabric.
                assert_eq!(verdict, Verdict::Forward(PortId(0)), "{family:?} {client}");
                let prohibited = match family {
                    Family::Ipv4 => [3, 13],
                    Family::Ipv6 => [1, 1],
                };
                let about = out.len() - packet.len() - 8;
                assert_eq!(out[about..][..2], prohibited);
            }
        }
        assert_eq!(names.len(), most);
    }
}

/// Without memory for bitmaps, ports are tried one by one, so many of them for each packet.
#[test]
fn without_bitmaps_a_bounded_number_of_ports_is_tried() {
    for (family, kind) in ALL {
        let plan = Plan::new(family, 1).ports(1024).without_bitmaps();
        let (names, _) = call(&mut plan.world(), NOW, kind, even_first().take(900));
        assert!(names.len() > 400, "{} of 900 found a port", names.len());
    }
}

/// Returns the answer to a call that finds no port, after the first `ports` calls got out.
fn refusal(world: &mut snat_world::World, kind: Kind, ports: u16) -> (Verdict, Vec<u8>, Vec<u8>) {
    for client in 0..ports {
        let packet = kind.request((vm(world.family, 0), 2000 + client), far(world.family, 0));
        assert_eq!(world.of_vm(NOW, 0, &packet).0, Verdict::Forward(PortId(0)));
    }
    let packet = kind.request((vm(world.family, 0), 9000), far(world.family, 0));
    let (verdict, out) = world.of_vm(NOW, 0, &packet);
    (verdict, out, packet)
}

/// RFC 5508 REQ-8.
#[test]
fn a_vm_that_is_out_of_ports_is_told_by_icmp() {
    for (family, kind) in ALL {
        let mut world = Plan::new(family, 1).ports(8).world();
        let (verdict, out, packet) = refusal(&mut world, kind, 8);
        assert_eq!(verdict, Verdict::Reply, "{family:?} {kind:?}");
        let (ip, icmp, to) = match family {
            Family::Ipv4 => (20, [3, 13], 16..20),
            Family::Ipv6 => (40, [1, 1], 24..40),
        };
        let answer = &out[14..];
        assert_eq!(answer[ip..ip + 2], icmp, "{family:?} {kind:?}");
        let vm: Vec<u8> = match vm(family, 0) {
            IpAddr::V4(vm) => vm.octets().to_vec(),
            IpAddr::V6(vm) => vm.octets().to_vec(),
        };
        assert_eq!(answer[to], vm);
        assert_eq!(answer[ip + 8..], packet, "it quotes the packet");
        assert_eq!(world.snat().exhausted, 1);
    }
}

#[test]
fn a_segment_gets_a_reset_where_the_outbound_rule_resets() {
    for family in [Family::Ipv4, Family::Ipv6] {
        let mut world = Plan::new(family, 1).ports(8).tcp_reset().world();
        let (verdict, out, _) = refusal(&mut world, Kind::Tcp, 8);
        assert_eq!(verdict, Verdict::Reply);
        assert_eq!(
            snat_world::ends(&out),
            (far(family, 0), (vm(family, 0), 9000))
        );
        let ip = if family == Family::Ipv4 { 20 } else { 40 };
        assert_eq!(out[14 + ip + 13] & 0x3f, 0x14, "RST and ACK");
        assert_eq!(out[14 + ip + 8..14 + ip + 12], 1001u32.to_be_bytes());
        // What is not TCP gets ICMP all the same.
        let mut world = Plan::new(family, 1).ports(8).tcp_reset().world();
        let (verdict, out, _) = refusal(&mut world, Kind::Udp, 8);
        assert_eq!(verdict, Verdict::Reply);
        assert_eq!(out[14 + ip], if family == Family::Ipv4 { 3 } else { 1 });
    }
}

#[test]
fn a_vm_is_told_so_often_and_not_more() {
    for (family, kind) in ALL {
        let mut world = Plan::new(family, 1).ports(8).world();
        let (mut told, mut dropped) = (0, 0);
        for client in 0..5000 {
            let from = (vm(family, 0), 2000 + client);
            let packet = kind.request(from, far(family, 0));
            match world.of_vm(NOW, 0, &packet).0 {
                Verdict::Reply => told += 1,
                Verdict::Drop(DropReason::SnatExhausted) => dropped += 1,
                verdict => assert!(verdict == Verdict::Forward(PortId(0)) && client < 8),
            }
        }
        assert_eq!(told + dropped, 5000 - 8);
        assert!(
            (1..=1000).contains(&told),
            "{told} at once, {family:?} {kind:?}"
        );
    }
}
