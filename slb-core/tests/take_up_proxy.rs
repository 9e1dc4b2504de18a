//! A proxy that begins without state takes up sessions by their clients' segments, where the rule's scheduler leads
//! to the same backend again.

use crate::translated;

use std::time::Duration;

use slb_core::nat::NatOptions;
use slb_core::spec::Scheduler;
use slb_core::{DropReason, Verdict};
use translated::{ACK, BACKENDS, Role, SERVER_ACK, SYN, Setup, What, World};

const FAMILIES: [bool; 2] = [false, true];
const NO_CONNECTION: Verdict = Verdict::Drop(DropReason::NoConnection);

fn proxy(ipv6: bool) -> Setup {
    Setup::new(Role::Proxy, ipv6)
}

fn begun(setup: Setup) -> World {
    let mut world = World::new(setup);
    world.take_up();
    world
}

#[test]
fn a_clients_segment_goes_to_the_backend_that_had_its_session() {
    for ipv6 in FAMILIES {
        let mut before = World::new(proxy(ipv6));
        let mut world = begun(proxy(ipv6));
        let vip = world.setup.vip();
        let mut counts = [0; 2];
        for number in 0..50 {
            let server = before.connects(0, number, SYN).expect("a session");
            assert_eq!(world.asks(0, number, ACK), Ok(server), "{number}");
            assert_eq!(world.answers(server, number, SERVER_ACK), Ok(vip));
            assert!(world.goes_on(server, number, ACK));
            counts[usize::from(server) - 1] += 1;
        }
        assert!(counts.iter().all(|&count| count > 10), "{counts:?}");
        let stats = world.stats();
        assert_eq!((stats.taken_up, stats.connections.unanswered), (50, 0));
        assert_eq!((world.live(1), world.live(2)), (counts[0], counts[1]));
    }
}

#[test]
fn both_ends_of_a_session_that_was_taken_up_are_told_of_its_end() {
    for ipv6 in FAMILIES {
        let mut setup = proxy(ipv6);
        setup.terms.tcp_reset = true;
        let mut world = begun(setup);
        let server = world.asks(0, 1, ACK).expect("taken up");
        assert!(world.goes_on(server, 1, ACK));
        world.now = world.now + Duration::from_secs(241);
        let ends = world.released();
        let to: Vec<_> = ends.iter().map(|outcome| outcome.addresses().1).collect();
        assert_eq!(to.len(), 2, "{ends:?}");
        assert!(to.contains(&world.setup.client(1).0) && to.contains(&world.setup.server(server)));
    }
}

/// A backend that does not know the session says so, and the client hears it where the rule says so.
#[test]
fn a_backend_that_has_no_such_session_refuses_it() {
    for ipv6 in FAMILIES {
        for tcp_reset in [false, true] {
            let mut setup = proxy(ipv6);
            setup.terms.tcp_reset = tcp_reset;
            let vip = setup.vip();
            let mut world = begun(setup);
            let server = world.asks(0, 1, ACK).expect("taken up");
            let refused = world.answers(server, 1, What::Tcp("R", 501, 0));
            let expected = if tcp_reset {
                Ok(vip)
            } else {
                Err(NO_CONNECTION)
            };
            assert_eq!(refused, expected);
            assert_eq!(world.live(server), 0);
        }
    }
}

#[test]
fn what_no_packet_tells_is_not_taken_up() {
    for ipv6 in FAMILIES {
        // Another scheduler chooses by what was there.
        let mut setup = proxy(ipv6);
        setup.scheduler = Scheduler::LeastConnections;
        let mut world = begun(setup);
        assert_eq!(world.asks(0, 1, ACK), Err(NO_CONNECTION));

        let mut setup = proxy(ipv6);
        setup.terms.source_nat = Some(setup.server(99));
        let mut world = begun(setup);
        assert_eq!(world.asks(0, 1, ACK), Err(NO_CONNECTION));

        let mut world = begun(proxy(ipv6));
        for what in [
            What::Tcp("R", 101, 0),
            What::Tcp("F", 101, 0),
            What::Tcp("", 101, 0),
        ] {
            assert_eq!(world.asks(0, 1, what), Err(NO_CONNECTION), "{what:?}");
        }
        // A server's segment may be for a client that talks to the server's own address.
        let (port, bytes) = world.answer_of(1, 1, SERVER_ACK);
        assert_eq!(port, BACKENDS);
        let outcome = world.give(port, &bytes);
        assert!(outcome.is_forwarded());
        assert_eq!(outcome.bytes, bytes);
        assert_eq!(world.stats().taken_up, 0);
    }
}

#[test]
fn only_for_some_time_and_as_many_as_the_limit_allows() {
    for ipv6 in FAMILIES {
        let mut world = World::new(proxy(ipv6));
        assert_eq!(world.asks(0, 1, ACK), Err(NO_CONNECTION));
        world.take_up();
        world.set_options(NatOptions {
            take_ups_per_second: 10,
            take_ups_at_once: 3,
            ..NatOptions::default()
        });
        let taken = (0..10).filter(|&number| world.asks(0, number, ACK).is_ok());
        assert_eq!(taken.count(), 3);
        world.wait(Duration::from_secs(239));
        assert!(world.asks(0, 20, ACK).is_ok());
        world.wait(Duration::from_secs(2));
        assert_eq!(world.asks(0, 21, ACK), Err(NO_CONNECTION));
    }
}
