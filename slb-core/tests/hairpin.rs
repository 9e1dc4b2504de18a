//! Packets of a host agent's own vms that come back to it by a VIP: its notices to the sender go to
//! the vm, and not to the fabric's router.

use crate::translated;

use std::net::IpAddr;

use etherparse::{SlicedPacket, TransportSlice};
use slb_core::spec::{BackendState, derived_mac};
use slb_core::{DropReason, PortId, Verdict};
use translated::{FABRIC, Outcome, Role, SYN, Setup, What, World, addresses, encapsulated, packet};

const PORT: u16 = 40_000;

fn world(ipv6: bool, backends: &[u16]) -> World {
    let mut setup = Setup::new(Role::Host, ipv6);
    let weight = |number| u32::from(backends.contains(&number));
    setup.backends = [1, 2]
        .map(|number| (number, weight(number), BackendState::Up))
        .to_vec();
    setup.terms.tcp_reset = true;
    World::new(setup)
}

/// A vm's packet for the VIP, which a mux sends to the vm `to`.
fn calls(world: &mut World, from: u16, to: u16, what: What) -> Outcome {
    let client = (world.setup.server(from), PORT);
    let inner = packet(client, (world.setup.vip(), 80), what, false);
    let frame = encapsulated(&inner, world.setup.server(to));
    world.give(FABRIC, &frame)
}

fn is_told_at(world: &World, vm: u16, outcome: &Outcome) {
    let address: IpAddr = world.setup.server(vm);
    assert_eq!(outcome.verdict, Verdict::Forward(PortId(vm)));
    assert_eq!(outcome.bytes[..6], derived_mac(address).0);
    assert_eq!(addresses(&outcome.bytes).1, address);
}

fn is_reset_at(world: &World, vm: u16, outcome: &Outcome) {
    is_told_at(world, vm, outcome);
    assert_eq!(addresses(&outcome.bytes).0, world.setup.vip());
    let sliced = SlicedPacket::from_ethernet(&outcome.bytes).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("no TCP");
    };
    assert!(tcp.rst());
    assert_eq!((tcp.source_port(), tcp.destination_port()), (80, PORT));
    assert_eq!(tcp.acknowledgment_number(), 101);
    let sum = match addresses(&outcome.bytes) {
        (IpAddr::V4(from), IpAddr::V4(to)) => tcp.calc_checksum_ipv4(from.octets(), to.octets()),
        (IpAddr::V6(from), IpAddr::V6(to)) => tcp.calc_checksum_ipv6(from.octets(), to.octets()),
        _ => unreachable!("of one family"),
    };
    assert_eq!(sum.unwrap(), tcp.checksum());
}

#[test]
fn a_vm_that_is_sent_to_itself_gets_the_reset() {
    for ipv6 in [false, true] {
        let mut world = world(ipv6, &[1]);
        let outcome = calls(&mut world, 1, 1, SYN);
        is_reset_at(&world, 1, &outcome);
        // Without a reset to send, the reason says why.
        let mut world = World::new(Setup {
            terms: Default::default(),
            ..world.setup.clone()
        });
        let outcome = calls(&mut world, 1, 1, SYN);
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::Hairpin));
    }
}

/// The reason of a drop names it where no reset can be sent, as for other protocols, and at a proxy.
#[test]
fn a_server_that_is_sent_to_itself_is_refused_by_name_whatever_it_sends() {
    for (role, ipv6) in translated::ROLES {
        for what in [SYN, What::Udp, What::Echo, What::Other] {
            let mut setup = Setup::new(role, ipv6);
            setup.backends = vec![(1, 1, BackendState::Up)];
            setup.terms.tcp_reset = what != SYN;
            let mut world = World::new(setup);
            let server = world.setup.server(1);
            let (to, _) = world.setup.service(what);
            let inner = packet((server, PORT), to, what, false);
            let frame = match role {
                Role::Host => encapsulated(&inner, server),
                Role::Proxy => inner,
            };
            let outcome = world.give(FABRIC, &frame);
            let refused = Verdict::Drop(DropReason::Hairpin);
            assert_eq!(outcome.verdict, refused, "{role:?} {ipv6} {what:?}");
            assert_eq!(world.connections().made, 0);
        }
    }
}

#[test]
fn a_vm_that_no_neighbour_serves_gets_the_reset() {
    for ipv6 in [false, true] {
        let mut world = world(ipv6, &[]);
        let outcome = calls(&mut world, 2, 1, SYN);
        is_reset_at(&world, 2, &outcome);
    }
}

#[test]
fn others_are_told_by_the_fabric() {
    for ipv6 in [false, true] {
        let mut world = world(ipv6, &[]);
        let frame = world.packet_of(1, 7, SYN);
        let outcome = world.give(FABRIC, &frame);
        assert_eq!(outcome.verdict, Verdict::Forward(FABRIC));
        let client = world.setup.client(7).0;
        assert_eq!(addresses(&outcome.bytes), (world.setup.vip(), client));
    }
}

#[test]
fn a_vm_whose_hops_run_out_at_a_neighbour_is_told() {
    for ipv6 in [false, true] {
        let mut world = world(ipv6, &[1]);
        assert!(calls(&mut world, 2, 1, SYN).is_forwarded());
        let client = (world.setup.server(2), PORT);
        let mut inner = packet(client, (world.setup.vip(), 80), SYN, false);
        if ipv6 {
            inner[21] = 1;
        } else {
            inner[22] = 1;
            inner[24..26].fill(0);
            let sum = slb_core::wire::checksum::checksum(&inner[14..34]);
            inner[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let frame = encapsulated(&inner, world.setup.server(1));
        let outcome = world.give(FABRIC, &frame);
        is_told_at(&world, 2, &outcome);
        let (at, time_exceeded) = if ipv6 { (54, 3) } else { (34, 11) };
        assert_eq!(outcome.bytes[at], time_exceeded);
    }
}
