//! The port of its block that a vm's connection gets.

use std::collections::BTreeSet;

use slb_core::{Instant, PortId, Verdict};

use crate::snat_world::{Family, Kind, Plan, World, ends, far, vip, vm};

const NOW: Instant = Instant::from_secs(1);
const PORTS: usize = 16;
const ALL: [(Family, Kind); 6] = [
    (Family::Ipv4, Kind::Tcp),
    (Family::Ipv4, Kind::Udp),
    (Family::Ipv4, Kind::Echo),
    (Family::Ipv6, Kind::Tcp),
    (Family::Ipv6, Kind::Udp),
    (Family::Ipv6, Kind::Echo),
];

/// The port that a connection goes out from.
fn port_of(world: &mut World, kind: Kind, client: u16, destination: u8) -> u16 {
    let family = world.family;
    let packet = kind.request((vm(family, 0), client), far(family, destination));
    let (verdict, out) = world.of_vm(NOW, 0, &packet);
    assert_eq!(
        verdict,
        Verdict::Forward(PortId(0)),
        "{kind:?} from {client}"
    );
    ends(&out).0.1
}

/// All ports of the vm's block, in order.
fn block(family: Family, kind: Kind) -> BTreeSet<u16> {
    let mut world = Plan::new(family, 1).ports(PORTS).world();
    let clients = (40_000..).take(PORTS);
    let ports = clients.map(|client| port_of(&mut world, kind, client, 0));
    let ports: BTreeSet<u16> = ports.collect();
    assert_eq!(ports.len(), PORTS);
    ports
}

#[test]
fn a_block_is_aligned_and_without_gaps() {
    for (family, kind) in ALL {
        let ports = block(family, kind);
        let first = *ports.first().unwrap();
        assert_eq!(first % 8, 0, "{family:?} {kind:?}");
        assert!(ports.into_iter().eq(first..first + PORTS as u16));
    }
}

#[test]
fn a_port_of_the_block_is_kept() {
    for (family, kind) in ALL {
        let mut world = Plan::new(family, 1).ports(PORTS).world();
        for port in block(family, kind) {
            assert_eq!(
                port_of(&mut world, kind, port, 1),
                port,
                "{family:?} {kind:?}"
            );
        }
    }
}

#[test]
fn parity_is_kept_and_any_port_of_it_may_be_the_first() {
    for (family, kind) in ALL {
        let ports = block(family, kind);
        for parity in [0, 1] {
            let mut world = Plan::new(family, 1).ports(PORTS).world();
            // Towards a destination of its own, each finds all ports free.
            let found: BTreeSet<u16> = (0..200)
                .map(|n| port_of(&mut world, kind, 40_000 + 2 * n + parity, n as u8))
                .collect();
            let expected = ports.iter().copied().filter(|port| port % 2 == parity);
            assert!(
                found.into_iter().eq(expected),
                "{family:?} {kind:?} {parity}"
            );
        }
    }
}

#[test]
fn the_other_parity_comes_when_the_own_one_is_used_up() {
    for (family, kind) in ALL {
        let mut world = Plan::new(family, 1).ports(PORTS).world();
        let parities = (0..PORTS as u16).map(|n| port_of(&mut world, kind, 40_000 + 2 * n, 0) % 2);
        let expected = [[0; PORTS / 2], [1; PORTS / 2]].concat();
        assert!(parities.eq(expected), "{family:?} {kind:?}");
    }
}

#[test]
fn clients_behind_the_balancers_address_keep_parity_and_use_every_part_of_its_ports() {
    for family in [Family::Ipv4, Family::Ipv6] {
        let mut world = Plan::new(family, 1).source_nat().world();
        let mut found = BTreeSet::new();
        for n in 0..2000u16 {
            let from = crate::snat_world::client(family, (n % 250) as u8);
            let packet = Kind::Tcp.request((from, 20_000 + n), (vip(family), 80));
            let (verdict, out) = world.of_mux(NOW, 0, &packet);
            assert_eq!(verdict, Verdict::Forward(PortId(1)), "client {n}");
            let port = ends(&out).0.1;
            assert_eq!(port % 2, n % 2, "client {n}");
            assert!(port >= 1024, "client {n}: {port}");
            assert!(found.insert(port), "client {n}: {port} is another's");
        }
        // 2000 of 64 512 ports: each of 32 parts gets some.
        let parts: BTreeSet<u16> = found.iter().map(|port| (port - 1024) / 2016).collect();
        assert_eq!(parts.len(), 32, "{parts:?}");
    }
}
