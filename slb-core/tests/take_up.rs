//! A host agent that begins without state takes up connections from outside in their middle, where both names
//! follow from a packet, and no others.

use crate::translated;

use std::time::Duration;

use etherparse::{SlicedPacket, TransportSlice};
use slb_core::nat::NatOptions;
use slb_core::state::Age;
use slb_core::{DropReason, Verdict};
use translated::{ACK, Role, SERVER_ACK, SYN, SYN_ACK, Setup, What, World};

const FAMILIES: [bool; 2] = [false, true];
const NO_CONNECTION: Verdict = Verdict::Drop(DropReason::NoConnection);
/// The answer of a vm that has no such connection (RFC 9293 §3.10.7.1).
const REFUSAL: What = What::Tcp("R", 501, 0);

/// A host agent that has just begun.
fn begun(setup: Setup) -> World {
    let mut world = World::new(setup);
    world.take_up();
    world
}

fn host(ipv6: bool) -> Setup {
    Setup::new(Role::Host, ipv6)
}

/// With one frontend port that leads to the vms' port.
fn host_of_one_frontend(ipv6: bool) -> Setup {
    Setup {
        has_whole: false,
        ..host(ipv6)
    }
}

#[test]
fn a_clients_segment_is_taken_up_and_its_answers_have_the_vips_name() {
    for ipv6 in FAMILIES {
        let mut world = begun(host(ipv6));
        for number in 0..10 {
            let server = 1 + (number % 2) as u16;
            assert_eq!(world.asks(server, number, ACK), Ok(server));
            assert!(world.goes_on(server, number, ACK));
            assert!(world.goes_on(server, number, ACK));
        }
        let stats = world.stats();
        assert_eq!((stats.taken_up, stats.connections.unanswered), (10, 0));
        assert_eq!((world.live(1), world.live(2)), (5, 5));
        // They last as long as the rule says.
        world.wait(Duration::from_secs(230));
        assert!(world.goes_on(1, 0, ACK));
    }
}

#[test]
fn a_servers_segment_is_taken_up_where_one_frontend_leads_to_it() {
    for ipv6 in FAMILIES {
        let mut world = begun(host_of_one_frontend(ipv6));
        let vip = world.setup.vip();
        assert_eq!(world.answers(1, 7, SERVER_ACK), Ok(vip));
        assert_eq!(world.answers(1, 7, SERVER_ACK), Ok(vip));
        assert_eq!(world.connections().unanswered, 1);
        assert_eq!(world.asks(1, 7, ACK), Ok(1));
        assert_eq!(world.connections().unanswered, 0);
        assert_eq!(world.stats().taken_up, 1);
    }
}

#[test]
fn with_floating_ip_both_ends_are_taken_up() {
    for ipv6 in FAMILIES {
        let mut setup = host_of_one_frontend(ipv6);
        setup.terms.floating_ip = true;
        let vip = setup.vip();
        let mut world = begun(setup);
        let answer = translated::packet((vip, 8080), world.setup.client(3), SERVER_ACK, true);
        let outcome = world.give(slb_core::PortId(1), &answer);
        assert_eq!(
            outcome.verdict,
            Verdict::Reply,
            "a RST: nothing leads there"
        );
        let answer = translated::packet((vip, 80), world.setup.client(3), SERVER_ACK, true);
        let outcome = world.give(slb_core::PortId(1), &answer);
        assert!(outcome.is_forwarded(), "{:?}", outcome.verdict);
        assert_eq!(outcome.addresses().0, vip);
    }
}

#[test]
fn only_for_as_long_as_a_connection_may_have_been_idle() {
    for ipv6 in FAMILIES {
        let mut world = World::new(host_of_one_frontend(ipv6));
        // Nobody asked for it: it has been there for ever.
        assert_eq!(world.asks(1, 1, ACK), Err(NO_CONNECTION));
        assert_eq!(world.answers(1, 1, SERVER_ACK), Err(NO_CONNECTION));
        world.take_up();
        world.wait(Duration::from_secs(239));
        assert_eq!(world.asks(1, 1, ACK), Ok(1));
        assert!(world.answers(1, 2, SERVER_ACK).is_ok());
        world.wait(Duration::from_secs(2));
        assert_eq!(world.asks(1, 3, ACK), Err(NO_CONNECTION));
        assert_eq!(world.answers(1, 4, SERVER_ACK), Err(NO_CONNECTION));
        assert!(world.goes_on(1, 1, ACK));
    }
}

#[test]
fn what_is_not_of_the_middle_is_not_taken_up() {
    for ipv6 in FAMILIES {
        let mut world = begun(host_of_one_frontend(ipv6));
        for what in [
            What::Tcp("R", 101, 0),
            What::Tcp("RA", 101, 501),
            What::Tcp("F", 101, 0),
            What::Tcp("SA", 101, 501),
            What::Tcp("", 101, 0),
        ] {
            assert_eq!(world.asks(1, 1, what), Err(NO_CONNECTION), "{what:?}");
            assert_eq!(world.answers(1, 1, what), Err(NO_CONNECTION), "{what:?}");
            assert_eq!(world.stats().taken_up, 0, "{what:?}");
        }
        // A SYN begins one as ever.
        assert!(world.connects(1, 1, SYN).is_ok());
        assert_eq!(world.stats().taken_up, 0);
    }
}

#[test]
fn names_that_do_not_follow_from_the_packet_are_not_taken_up() {
    for ipv6 in FAMILIES {
        // The vm saw another address.
        let mut setup = host_of_one_frontend(ipv6);
        setup.terms.source_nat = Some(setup.server(99));
        let mut world = begun(setup);
        assert_eq!(world.asks(1, 1, ACK), Err(NO_CONNECTION));
        assert_eq!(world.answers(1, 1, SERVER_ACK), Err(NO_CONNECTION));

        // The vm saw another port: it knows this one from a connection to the other address.
        let mut world = begun(host(ipv6));
        let whole = (world.setup.whole(), 8080);
        let inner = translated::packet(world.setup.client(1), whole, SYN, false);
        let syn = translated::encapsulated(&inner, world.setup.server(1));
        let outcome = world.give(translated::FABRIC, &syn);
        assert!(outcome.is_forwarded(), "{:?}", outcome.verdict);
        assert_eq!(world.asks(1, 1, ACK), Err(NO_CONNECTION));
        assert_eq!(world.stats().taken_up, 0);
    }
}

#[test]
fn a_vm_that_has_no_such_connection_refuses_it() {
    for ipv6 in FAMILIES {
        for tcp_reset in [false, true] {
            let mut setup = host(ipv6);
            setup.terms.tcp_reset = tcp_reset;
            let vip = setup.vip();
            let mut world = begun(setup);
            let refused = if tcp_reset {
                Ok(vip)
            } else {
                Err(NO_CONNECTION)
            };
            // The client may ask again, and is told again or not.
            for _ in 0..3 {
                assert_eq!(world.asks(1, 1, ACK), Ok(1));
                assert_eq!(world.answers(1, 1, REFUSAL), refused);
            }
            assert_eq!((world.live(1), world.stats().taken_up), (0, 1));
            // A forged RST does not have the number.
            assert_eq!(world.asks(1, 2, ACK), Ok(1));
            assert_eq!(world.answers(1, 2, What::Tcp("R", 77, 0)), Ok(vip));
            assert_eq!(world.answers(1, 2, SERVER_ACK), Ok(vip));
            assert_eq!(world.live(1), 1);
            // The RST of a connection that both ends know ends it, and is seen.
            assert_eq!(world.asks(1, 2, ACK), Ok(1));
            assert_eq!(world.answers(1, 2, REFUSAL), Ok(vip));
            assert_eq!(world.live(1), 0);
        }
    }
}

#[test]
fn a_port_that_is_used_again_meanwhile_has_a_new_connection() {
    for ipv6 in FAMILIES {
        let mut world = begun(host(ipv6));
        let vip = world.setup.vip();
        assert_eq!(world.asks(1, 1, What::Tcp("A", 90_000, 70_000)), Ok(1));
        assert_eq!(world.asks(1, 1, SYN), Ok(1));
        assert_eq!(world.answers(1, 1, SYN_ACK), Ok(vip));
        assert_eq!(world.asks(1, 1, ACK), Ok(1));
        assert!(world.goes_on(1, 1, ACK));
        assert_eq!(world.live(1), 1);
    }
}

#[test]
fn an_end_of_the_connection_that_is_taken_up_is_seen() {
    for ipv6 in FAMILIES {
        let mut world = begun(host(ipv6));
        assert_eq!(world.asks(1, 1, ACK), Ok(1));
        let fin = What::Tcp("FA", 501, 101);
        assert!(world.answers(1, 1, fin).is_ok());
        assert_eq!(world.asks(1, 1, What::Tcp("FA", 101, 502)), Ok(1));
        assert_eq!(world.live(1), 0);
    }
}

#[test]
fn more_than_the_limit_allows_is_dropped_in_silence() {
    for ipv6 in FAMILIES {
        let mut setup = host_of_one_frontend(ipv6);
        setup.terms.tcp_reset = true;
        let mut world = begun(setup);
        world.set_options(NatOptions {
            take_ups_per_second: 10,
            take_ups_at_once: 3,
            ..NatOptions::default()
        });
        for number in 0..20 {
            match number % 2 {
                0 => drop(world.asks(1, number, ACK)),
                _ => drop(world.answers(1, number, SERVER_ACK)),
            }
        }
        let stats = world.stats();
        assert_eq!((stats.taken_up, stats.resets), (3, 0));
        assert_eq!(stats.dropped[DropReason::NoConnection].packets, 17);
        world.wait(Duration::from_millis(150));
        assert_eq!(world.asks(1, 30, ACK), Ok(1));
    }
}

#[test]
fn a_flood_of_segments_leaves_room_for_connections() {
    for ipv6 in FAMILIES {
        let mut setup = host(ipv6);
        setup.places = 64;
        let mut world = begun(setup);
        for number in 0..20 {
            assert!(world.connects(1, number, SYN).is_ok());
        }
        for number in 100..1100 {
            let _ = world.asks(1, number, ACK);
        }
        let connections = world.connections();
        assert!(connections.unanswered <= 32, "{connections:?}");
        for number in 0..20 {
            assert!(world.goes_on(1, number, ACK), "{number}");
        }
        assert!(world.connects(2, 2000, SYN).is_ok());
    }
}

#[test]
fn one_that_is_taken_up_is_exported_as_it_is() {
    for ipv6 in FAMILIES {
        let mut old = begun(host_of_one_frontend(ipv6));
        assert_eq!(old.asks(1, 1, ACK), Ok(1));
        assert!(old.answers(1, 2, SERVER_ACK).is_ok());
        assert_eq!(old.asks(2, 3, ACK), Ok(2));
        assert!(old.answers(2, 3, SERVER_ACK).is_ok());
        let (records, _) = old.export();
        let mut new = World::new(host_of_one_frontend(ipv6));
        let imported = new.import(Age::default(), &records).unwrap();
        assert_eq!((imported.taken, imported.all_refused()), (3, 0));
        assert_eq!(new.connections().unanswered, 2);
        assert!(new.answers(1, 1, SERVER_ACK).is_ok());
        assert_eq!(new.asks(1, 2, ACK), Ok(1));
        assert!(new.goes_on(2, 3, ACK));
        assert_eq!(new.connections().unanswered, 0);
    }
}

/// The other end may have nothing to say for as long as the rule allows, and is told the numbers of the middle then.
#[test]
fn one_whose_other_end_is_silent_lasts_as_long_as_any_other() {
    for ipv6 in FAMILIES {
        for by_client in [true, false] {
            let mut setup = host_of_one_frontend(ipv6);
            setup.idle_timeout = Duration::from_secs(1200);
            setup.terms.tcp_reset = true;
            let mut world = begun(setup);
            let taken = match by_client {
                true => world.asks(1, 1, ACK).is_ok(),
                false => world.answers(1, 1, SERVER_ACK).is_ok(),
            };
            assert!(taken);
            world.now = world.now + Duration::from_secs(1190);
            assert_eq!(world.released(), []);
            assert!(world.goes_on(1, 1, ACK));

            assert_eq!(world.asks(1, 2, ACK), Ok(1));
            world.now = world.now + Duration::from_secs(1210);
            let ends = world.released();
            let sequences = ends.iter().map(|outcome| {
                let packet = SlicedPacket::from_ethernet(&outcome.bytes).expect("a RST");
                let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
                    unreachable!("TCP");
                };
                assert!(tcp.rst());
                (
                    outcome.addresses().1 == world.setup.server(1),
                    tcp.sequence_number(),
                )
            });
            let mut sequences: Vec<_> = sequences.collect();
            sequences.sort_unstable();
            let both = [(false, 501), (false, 501), (true, 101), (true, 101)];
            assert_eq!(sequences, both, "of both connections");
        }
    }
}
