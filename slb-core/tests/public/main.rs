//! Public addresses of vms: 1:1 NAT through a mux and a host agent.

mod faults;
pub mod net;

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use slb_core::DropReason;
use slb_core::mem::Boxes;
use slb_core::nat::Direction;
use slb_core::observe::{Step, Trail};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Access, Network, Outbound, Peers, SecurityList, SecurityProtocol, SecurityRule, Spec,
};

use crate::common::through;
use crate::networks::net::{FABRIC, Plan, VIP, ip};
use crate::private::net::Segment;
use net::{
    End, Kind, OTHER, SERVER, World, client, error, fragments, own, packet, public, with_publics,
};

const FAMILIES: [bool; 2] = [false, true];
const SYN: Kind = Kind::Tcp { flags: 2 };
const SYN_ACK: Kind = Kind::Tcp { flags: 18 };
const ACK: Kind = Kind::Tcp { flags: 16 };
const UDP: Kind = Kind::Udp { has_checksum: true };
const PING: Kind = Kind::Echo { is_request: true };
const GRE: Kind = Kind::Other { protocol: 47 };

/// Every packet for the public address reaches the vm with only its destination replaced, and the
/// other way round, to the byte: checksums are those that etherparse computes for the other
/// address.
#[test]
fn any_packet_gets_the_other_address_and_nothing_else() {
    let world = Mutex::new(World::new());
    bolero::check!()
        .with_type::<(bool, bool, Kind, (u16, u16), Vec<u8>)>()
        .for_each(|(is_ipv6, is_server, kind, ports, payload)| {
            let world = &mut *world.lock().unwrap_or_else(PoisonError::into_inner);
            let vm = if *is_server { SERVER } else { OTHER };
            let (out, inside) = (public(vm, *is_ipv6), own(&world.plan, vm, *is_ipv6));
            let far = client(*is_ipv6);
            let payload = &payload[..payload.len().min(1200)];
            let make = |from, to, hops| packet(*kind, (from, to), *ports, payload, hops);
            let got = world.enter(&make(far, out, 60));
            assert_eq!(got, End::Vm(vm, make(far, inside, 59)));
            let back = world.leave(vm, &make(inside, far, 64));
            assert_eq!(back, End::Outside(make(out, far, 63)));
        });
    let world = world.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(world.mux.stats().public_in.packets > 0);
    let stats = [0, 1].map(|host| world.hosts[host].stats());
    let all = stats.map(|stats| (stats.public_in.packets, stats.public_out.packets));
    assert_eq!(all[0].0 + all[1].0, world.mux.stats().public_in.packets);
    assert_eq!(all[0].0 + all[1].0, all[0].1 + all[1].1);
    assert_eq!(
        stats.map(|stats| stats.connections.made),
        [0, 0],
        "no state"
    );
}

/// ICMP errors quote what their receiver sent, whatever the length of the quote.
#[test]
fn errors_quote_the_receivers_own_packets() {
    let world = Mutex::new(World::new());
    bolero::check!()
        .with_type::<(bool, Kind, (u16, u16), Vec<u8>, u8)>()
        .for_each(|(is_ipv6, kind, ports, payload, len)| {
            let world = &mut *world.lock().unwrap_or_else(PoisonError::into_inner);
            let (out, inside) = (public(SERVER, *is_ipv6), own(&world.plan, SERVER, *is_ipv6));
            let (far, router) = (client(*is_ipv6), router(*is_ipv6));
            let payload = &payload[..payload.len().min(500)];
            let header = if *is_ipv6 { 40 } else { 20 };
            // No quote ends in the middle of a checksum.
            let len = header + 8 + usize::from(len & !3);
            let about = |from, to| packet(*kind, (from, to), *ports, payload, 50);
            let inward = |to, quoted| error((router, to), &about(quoted, far), len, 60);
            let outward = |from, quoted| error((from, far), &about(far, quoted), len, 64);
            let mut expected = inward(inside, inside);
            lower_hops(&mut expected);
            let got = world.enter(&inward(out, out));
            assert_eq!(got, End::Vm(SERVER, expected));
            let mut expected = outward(out, out);
            lower_hops(&mut expected);
            let got = world.leave(SERVER, &outward(inside, inside));
            assert_eq!(got, End::Outside(expected));
        });
}

fn router(is_ipv6: bool) -> IpAddr {
    ip(if is_ipv6 {
        "2001:db8:f::1"
    } else {
        "203.0.113.1"
    })
}

/// Takes a hop from a packet, whose header checksum stays right.
fn lower_hops(packet: &mut [u8]) {
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
        return;
    }
    packet[8] -= 1;
    packet[10..12].fill(0);
    let sum = slb_core::wire::checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn an_error_about_anothers_packet_is_dropped() {
    for is_ipv6 in FAMILIES {
        let mut world = World::new();
        let (far, inside) = (client(is_ipv6), own(&world.plan, SERVER, is_ipv6));
        let foreign = packet(UDP, (public(OTHER, is_ipv6), far), (1, 2), b"", 50);
        let to = (router(is_ipv6), public(SERVER, is_ipv6));
        let got = world.enter(&error(to, &foreign, 500, 60));
        assert_eq!(got, End::Dropped(DropReason::IcmpUnmatched));
        let got = world.leave(SERVER, &error((inside, far), &foreign, 500, 60));
        assert_eq!(got, End::Dropped(DropReason::IcmpUnmatched));
    }
}

/// Packets to inside addresses never leave with the public address, so that nobody outside can tell the vm about its
/// conversations there, whatever address an error comes from.
#[test]
fn an_error_about_a_packet_that_stayed_inside_is_dropped() {
    for is_ipv6 in FAMILIES {
        let mut world = World::new();
        let (out, inside) = (public(SERVER, is_ipv6), own(&world.plan, SERVER, is_ipv6));
        let far = client(is_ipv6);
        let others = match is_ipv6 {
            false => ["10.9.0.1", "169.254.169.254", "168.63.129.16", "127.0.0.1"],
            true => ["fd00:9::1", "fe80::1", "fe80::1234:5678:9abc", "::1"],
        };
        let neighbour = own(&world.plan, OTHER, is_ipv6);
        let stay = [neighbour, out].into_iter().chain(others.map(ip));
        for near in stay {
            for kind in [UDP, ACK] {
                let sent = packet(kind, (out, near), (1, 2), b"data", 60);
                for from in [far, router(is_ipv6)] {
                    let got = world.enter(&error((from, out), &sent, 500, 60));
                    let expected = End::Dropped(DropReason::IcmpUnmatched);
                    assert_eq!(got, expected, "{near} by {from}");
                }
            }
            // And the vm tells nobody outside about the packets of an inside address.
            let got = packet(UDP, (near, inside), (2, 1), b"data", 60);
            let got = world.leave(SERVER, &error((inside, far), &got, 500, 60));
            assert_eq!(got, End::Dropped(DropReason::IcmpUnmatched), "{near}");
        }
    }
}

#[test]
fn fragments_are_translated_in_order_and_out_of_order() {
    for is_ipv6 in FAMILIES {
        let mut world = World::new();
        let (out, inside) = (public(SERVER, is_ipv6), own(&world.plan, SERVER, is_ipv6));
        let far = client(is_ipv6);
        let data: Vec<u8> = (0..3000).map(|i| (i % 251) as u8).collect();
        for (order, id) in [([0, 1, 2], 1), ([2, 1, 0], 2), ([1, 0, 2], 3)] {
            let pieces = |from, to, hops| {
                fragments(&packet(UDP, (from, to), (7, 53), &data, hops), 1104, id)
            };
            let (sent, expected) = (pieces(far, out, 60), pieces(far, inside, 59));
            for place in order {
                let got = world.enter(&sent[place]);
                assert_eq!(got, End::Vm(SERVER, expected[place].clone()), "{order:?}");
            }
            let (sent, expected) = (pieces(inside, far, 64), pieces(out, far, 63));
            let mut got = Vec::new();
            for place in order {
                match world.leave(SERVER, &sent[place]) {
                    End::Outside(packet) => got.push(packet),
                    // A later fragment may be of an answer of the VIP.
                    End::Dropped(DropReason::FragmentHeld) => assert_ne!(place, 0),
                    other => panic!("{other:?}"),
                }
                got.extend(world.released(1));
            }
            assert_eq!(got.len(), 3, "{order:?}");
            assert!(expected.iter().all(|one| got.contains(one)), "{order:?}");
        }
    }
}

#[test]
fn answers_of_a_vip_leave_with_the_vip_and_calls_with_the_public_address() {
    let mut world = World::new();
    let (far, inside) = (client(false), own(&world.plan, SERVER, false));
    let make = |kind, from, to, ports| packet(kind, (from, to), ports, b"", 60);
    let got = world.enter(&make(SYN, far, ip(VIP), (5000, 80)));
    assert_eq!(ports(got.packet()), (5000, 8080));
    let got = world.leave(SERVER, &make(SYN_ACK, inside, far, (8080, 5000)));
    assert_eq!(ends(got.packet()), ((ip(VIP), 80), (far, 5000)));
    // Another port, another client, and a call of the vm's own.
    let out = public(SERVER, false);
    for (kind, ports) in [
        (SYN_ACK, (8080, 5001)),
        (SYN, (4000, 443)),
        (UDP, (8080, 5000)),
    ] {
        let got = world.leave(SERVER, &make(kind, inside, far, ports));
        assert_eq!(got, End::Outside(packet(kind, (out, far), ports, b"", 59)));
    }
    let got = world.leave(SERVER, &make(ACK, inside, far, (8080, 5000)));
    assert_eq!(ends(got.packet()), ((ip(VIP), 80), (far, 5000)));
}

#[test]
fn a_client_port_of_a_vip_is_refused_by_the_public_address() {
    let mut world = World::new();
    let (far, inside) = (client(false), own(&world.plan, SERVER, false));
    let out = public(SERVER, false);
    let make = |segment: Segment| segment.frame([2; 6], [2; 6])[14..].to_vec();
    let (c, v) = ((far, 5000), (ip(VIP), 80));
    let syn = Segment::tcp(c, v, "S").at(1000, 0);
    let syn_ack = Segment::tcp((inside, 8080), c, "SA").at(7000, 1001);
    let ack = Segment::tcp(c, v, "A").at(1001, 7001);
    world.enter(&make(syn));
    world.leave(SERVER, &make(syn_ack));
    world.enter(&make(ack));
    // The server answers a second SYN for its tuple with an ACK of the first connection.
    let again = make(Segment::tcp(c, (out, 8080), "S").at(5000, 0));
    assert!(matches!(world.enter(&again), End::Vm(SERVER, _)));
    let End::Outside(told) = world.enter(&again) else {
        panic!("the client is told")
    };
    let sliced = etherparse::SlicedPacket::from_ip(&told).unwrap();
    let Some(etherparse::TransportSlice::Icmpv4(icmp)) = &sliced.transport else {
        panic!("an ICMP error: {told:02x?}")
    };
    // The quote is what the client sent, but for the hop that the mux took.
    let mut sent = again;
    lower_hops(&mut sent);
    assert!(sent.starts_with(icmp.payload()) && icmp.payload().len() >= 28);
}

#[test]
fn inside_addresses_see_the_vms_own_one() {
    for is_ipv6 in FAMILIES {
        let mut world = World::new();
        let (out, inside) = (public(SERVER, is_ipv6), own(&world.plan, SERVER, is_ipv6));
        let near = ip(if is_ipv6 { "fd00:9::1" } else { "10.9.0.1" });
        let got = world.leave(SERVER, &packet(UDP, (inside, near), (1, 2), b"", 60));
        assert_eq!(
            got,
            End::Dropped(DropReason::NoNeighbour),
            "a network is apart"
        );
        let got = world.enter(&packet(UDP, (near, out), (2, 1), b"", 60));
        assert_eq!(got, End::Dropped(DropReason::InsideSource));
        // But a router inside may tell what happens to the vm's packets.
        let sent = packet(UDP, (out, client(is_ipv6)), (1, 2), b"data", 60);
        let got = world.enter(&error((near, out), &sent, 500, 60));
        assert!(matches!(got, End::Vm(SERVER, _)), "{got:?}");
    }
}

#[test]
fn a_vm_calls_another_by_its_public_address() {
    for is_ipv6 in FAMILIES {
        let mut world = World::new();
        let inside = [SERVER, OTHER].map(|vm| own(&world.plan, vm, is_ipv6));
        let out = [SERVER, OTHER].map(|vm| public(vm, is_ipv6));
        let got = world.leave(OTHER, &packet(SYN, (inside[1], out[0]), (1, 2), b"", 60));
        let End::Outside(sent) = got else {
            panic!("{got:?}")
        };
        let got = world.enter(&sent);
        assert_eq!(
            got,
            End::Vm(SERVER, packet(SYN, (out[1], inside[0]), (1, 2), b"", 58))
        );
        let got = world.leave(OTHER, &packet(SYN, (inside[1], out[1]), (1, 2), b"", 60));
        assert_eq!(got, End::Dropped(DropReason::Hairpin));
    }
}

#[test]
fn a_public_address_precedes_outbound_rules() {
    let outbound = Outbound {
        name: "out",
        frontends: &[0],
        pool: 0,
        allocated_outbound_ports: Some(1024),
        ..Outbound::default()
    };
    let of = |with_publics: bool| {
        World::with(Plan::two_tenants(), |spec, f| {
            f(&Spec {
                outbound: &[outbound],
                public_addresses: if with_publics {
                    spec.public_addresses
                } else {
                    &[]
                },
                ..spec.clone()
            });
        })
    };
    let far = client(false);
    for (is_public, expected) in [(true, public(SERVER, false)), (false, ip(VIP))] {
        let mut world = of(is_public);
        let inside = own(&world.plan, SERVER, false);
        let got = world.leave(SERVER, &packet(SYN, (inside, far), (4000, 443), b"", 60));
        assert_eq!(ends(got.packet()).0.0, expected);
    }
    // The other vm of the pool's network has no rule, and only its public address.
    let mut world = of(false);
    let inside = own(&world.plan, OTHER, false);
    let got = world.leave(OTHER, &packet(SYN, (inside, far), (4000, 443), b"", 60));
    assert_eq!(got, End::Dropped(DropReason::NoOutboundRule));
}

#[test]
fn connections_that_began_under_an_outbound_rule_stay() {
    let outbound = [Outbound {
        name: "out",
        frontends: &[0],
        pool: 0,
        allocated_outbound_ports: Some(1024),
        ..Outbound::default()
    }];
    let plan = Plan::two_tenants();
    let without = |spec: &Spec<'_>, f: &mut dyn FnMut(&Spec<'_>)| {
        f(&Spec {
            outbound: &outbound,
            public_addresses: &[],
            hasher: spec.hasher.clone(),
            ..spec.clone()
        });
    };
    let mut world = World::with(plan.clone(), without);
    let (far, inside) = (client(false), own(&plan, SERVER, false));
    let call = |port| packet(SYN, (inside, far), (port, 443), b"", 60);
    let first = ends(world.leave(SERVER, &call(4000)).packet()).0;
    let next = with_publics(&plan, 1, |spec| {
        let spec = Spec {
            outbound: &outbound,
            ..spec.clone()
        };
        Snapshot::new(&spec, Some(world.hosts[1].snapshot())).expect("a good spec")
    });
    world.hosts[1].install(Box::new(next)).expect("it follows");
    assert_eq!(ends(world.leave(SERVER, &call(4000)).packet()).0, first);
    let got = world.leave(SERVER, &call(4001));
    assert_eq!(ends(got.packet()).0, (public(SERVER, false), 4001));
}

#[test]
fn access_lists_judge_by_the_vms_own_address() {
    let rules = [SecurityRule {
        name: "web",
        priority: 100,
        direction: Direction::Inward,
        access: Access::Allow,
        protocol: SecurityProtocol::Tcp,
        sources: &[Peers::Internet],
        destinations: &[],
        source_ports: &[],
        destination_ports: &[[443, 443]],
    }];
    let lists = [SecurityList {
        name: "l",
        rules: &rules,
    }];
    let mut world = World::with(Plan::two_tenants(), |spec, f| {
        let networks: Vec<_> = spec
            .networks
            .iter()
            .map(|network| Network {
                security_lists: &[0],
                ..*network
            })
            .collect();
        f(&Spec {
            networks: &networks,
            security_lists: &lists,
            ..spec.clone()
        });
    });
    for is_ipv6 in FAMILIES {
        let (out, inside) = (public(SERVER, is_ipv6), own(&world.plan, SERVER, is_ipv6));
        let far = client(is_ipv6);
        let enter =
            |world: &mut World, port| world.enter(&packet(SYN, (far, out), (5000, port), b"", 60));
        assert!(matches!(enter(&mut world, 443), End::Vm(SERVER, _)));
        assert_eq!(enter(&mut world, 22), End::Dropped(DropReason::Denied));
        let answer = packet(SYN_ACK, (inside, far), (443, 5000), b"", 60);
        assert!(matches!(world.leave(SERVER, &answer), End::Outside(_)));
        // A call of the vm is allowed, and so is its answer.
        let call = packet(UDP, (inside, far), (4000, 53), b"", 60);
        assert!(matches!(world.leave(SERVER, &call), End::Outside(_)));
        let answer = packet(UDP, (far, out), (53, 4000), b"", 60);
        assert!(matches!(world.enter(&answer), End::Vm(SERVER, _)));
        let other = packet(UDP, (far, out), (54, 4000), b"", 60);
        assert_eq!(world.enter(&other), End::Dropped(DropReason::Denied));
    }
}

#[test]
fn hops_and_lengths_are_a_routers() {
    for is_ipv6 in FAMILIES {
        let mut world = World::new();
        let (out, inside) = (public(SERVER, is_ipv6), own(&world.plan, SERVER, is_ipv6));
        let far = client(is_ipv6);
        for (hops, len) in [(1, 10), (64, 1700)] {
            let sent = packet(UDP, (far, out), (1, 2), &vec![0; len], hops);
            let got = world.enter(&sent);
            assert!(matches!(&got, End::Answer(_)), "{got:?}");
            let sent = packet(UDP, (inside, far), (1, 2), &vec![0; len], hops);
            let got = world.leave(SERVER, &sent);
            let End::Answer(told) = &got else {
                panic!("{got:?}")
            };
            // The vm is told about its own packet.
            let header = if is_ipv6 { 48 } else { 28 };
            assert!(sent.starts_with(&told[header..]), "{told:02x?}");
        }
    }
}

#[test]
fn strange_packets_are_dropped_for_their_reason() {
    for is_ipv6 in FAMILIES {
        let mut world = World::new();
        let out = public(SERVER, is_ipv6);
        let reserved = ip(if is_ipv6 { "ff02::1" } else { "240.0.0.1" });
        for from in [reserved, out] {
            for port in [1, 2] {
                let got = world.enter(&packet(UDP, (from, out), (1, port), b"", 60));
                assert_eq!(got, End::Dropped(DropReason::Martian), "{from}");
            }
        }
        let mut short = packet(SYN, (client(is_ipv6), out), (1, 2), b"", 60);
        let at = if is_ipv6 { 52 } else { 32 };
        short[at] = 0xf0;
        let got = world.enter(&short);
        assert_eq!(got, End::Dropped(DropReason::Malformed));
        // Nobody has a public address beside these.
        let other = public(7, is_ipv6);
        let got = world.enter(&packet(UDP, (client(is_ipv6), other), (1, 2), b"", 60));
        assert_eq!(got, End::Passed);
    }
}

/// A mux with an older configuration sends packets for a public address to a vm that no longer has it.
#[test]
fn a_vm_gets_no_packets_for_an_address_that_is_no_longer_its_own() {
    for is_ipv6 in FAMILIES {
        for kind in [UDP, SYN, ACK, PING, GRE] {
            let mut world = World::new();
            // The address is removed, or another vm has it now.
            for moved in [false, true] {
                world.hosts = World::with(Plan::two_tenants(), |spec, f| {
                    let all = spec.public_addresses.iter();
                    let others = all.filter(|entry| entry.address != public(OTHER, is_ipv6));
                    let mut others: Vec<_> = others.copied().collect();
                    if moved {
                        let server = others
                            .iter_mut()
                            .find(|entry| entry.address == public(SERVER, is_ipv6));
                        server.expect("one").address = public(OTHER, is_ipv6);
                    }
                    f(&Spec {
                        public_addresses: &others,
                        hasher: spec.hasher.clone(),
                        ..*spec
                    });
                })
                .hosts;
                let ends = (client(is_ipv6), public(OTHER, is_ipv6));
                let sent = packet(kind, ends, (1, 2), b"", 60);
                assert_eq!(world.enter(&sent), End::Dropped(DropReason::UnknownVm));
                // Its own address is still its own.
                let ends = (client(is_ipv6), public(SERVER, is_ipv6));
                let sent = packet(kind, ends, (1, 2), b"", 60);
                let expected = matches!(world.enter(&sent), End::Vm(SERVER, _));
                assert_eq!(expected, !moved);
            }
        }
    }
}

/// The last public address of a host is removed.
#[test]
fn a_host_without_public_addresses_delivers_none() {
    let mut world = World::new();
    world.hosts = World::with(Plan::two_tenants(), |spec, f| {
        f(&Spec {
            public_addresses: &[],
            hasher: spec.hasher.clone(),
            ..*spec
        });
    })
    .hosts;
    for vm in [OTHER, SERVER] {
        for is_ipv6 in FAMILIES {
            for kind in [UDP, SYN, ACK, PING, GRE] {
                let ends = (client(is_ipv6), public(vm, is_ipv6));
                let sent = packet(kind, ends, (1, 2), b"", 60);
                assert_eq!(world.enter(&sent), End::Dropped(DropReason::UnknownVm));
                let about = packet(UDP, (public(vm, is_ipv6), client(is_ipv6)), (2, 1), b"", 60);
                let sent = error((router(is_ipv6), public(vm, is_ipv6)), &about, 60, 60);
                assert_eq!(world.enter(&sent), End::Dropped(DropReason::IcmpUnmatched));
            }
        }
    }
}

#[test]
fn a_trail_names_the_address_and_the_vm() {
    let mut world = World::new();
    let sent = packet(UDP, (client(false), public(SERVER, false)), (1, 2), b"", 60);
    let frame = [&[2, 0, 0, 0, 0, 103, 2, 0, 0, 0, 0, 2, 8, 0][..], &sent].concat();
    let mut trail = Trail::new(0);
    through(FABRIC, &frame, |frames| {
        world.mux.process_observed(world.now, frames, &mut trail);
    });
    let step = trail
        .steps()
        .find(|step| matches!(step, Step::PublicAddress { .. }));
    let text = with_publics(&world.plan, 2, |spec| step.unwrap().named(spec).to_string());
    let expected = "40.0.0.2 is vm 10.1.0.12's in network \"blue\", on host 172.16.0.102";
    assert_eq!(text, expected);
}

#[test]
fn an_arena_has_room_for_public_addresses() {
    let plan = Plan::two_tenants();
    with_publics(&plan, 1, |spec| {
        let lines = Snapshot::lines_for(spec, None);
        let mut memory = vec![slb_core::mem::Line::EMPTY; lines];
        let mut arena = slb_core::mem::Arena::new(&mut memory);
        assert!(Snapshot::build(spec, None, &mut arena).is_ok());
        assert!(Snapshot::build(spec, None, &mut Boxes).is_ok());
    });
}

/// Addresses and ports of a TCP or UDP packet.
fn ends(packet: &[u8]) -> ((IpAddr, u16), (IpAddr, u16)) {
    let frame = [&[0; 12][..], &[8, 0], packet].concat();
    crate::common::ends(&frame)
}

fn ports(packet: &[u8]) -> (u16, u16) {
    let (from, to) = ends(packet);
    (from.1, to.1)
}
