//! Connections that are over, but whose late segments may still come: they weigh on nobody.

use crate::translated;

use std::time::Duration;

use slb_core::spec::{BackendState, Scheduler};
use slb_core::{DropReason, Verdict};

use translated::{FABRIC, ROLES, Role, SYN, Setup, What, World};

const FIN: What = What::Tcp("FA", 101, 501);
const SERVER_FIN: What = What::Tcp("FA", 501, 102);
const LAST_ACK: What = What::Tcp("A", 102, 502);
const RST: What = What::Tcp("R", 101, 0);
const SERVER_RST: What = What::Tcp("R", 501, 0);

#[derive(Clone, Copy, Debug)]
enum End {
    BothFins,
    ClientsRst,
    ServersRst,
}

const ENDS: [End; 3] = [End::BothFins, End::ClientsRst, End::ServersRst];

fn finish(world: &mut World, server: u16, number: u32, end: End) {
    match end {
        End::BothFins => {
            assert_eq!(world.asks(server, number, FIN), Ok(server));
            world.answers(server, number, SERVER_FIN).unwrap();
            assert_eq!(world.asks(server, number, LAST_ACK), Ok(server));
        }
        End::ClientsRst => assert_eq!(world.asks(server, number, RST), Ok(server)),
        End::ServersRst => {
            world.answers(server, number, SERVER_RST).unwrap();
        }
    }
}

#[test]
fn a_backend_has_no_live_connection_that_is_over() {
    for (role, ipv6) in ROLES {
        for end in ENDS {
            let mut world = World::new(Setup::new(role, ipv6));
            let server = world.connects(1, 5, SYN).unwrap();
            assert_eq!(world.live(server), 1, "{role:?} {end:?}");
            finish(&mut world, server, 5, end);
            assert_eq!(world.live(server), 0, "{role:?} {end:?}");
            assert_eq!(world.connections().live, 1, "late segments may come");
            // Nor when it is forgotten, where another one counts by then.
            let other = world.connects(server, 6, SYN).unwrap();
            let mut others = u64::from(other == server);
            assert_eq!(world.live(server), others);
            world.wait(Duration::from_secs(230));
            assert!(world.goes_on(other, 6, SYN));
            for _ in 0..5 {
                world.wait(Duration::from_secs(5));
            }
            assert_eq!(world.connections().live, 1);
            assert_eq!(world.live(server), others, "{role:?} {end:?}");
            // The same ports again are a connection like any other.
            let again = world.connects(server, 5, SYN).unwrap();
            others += u64::from(again == server);
            assert_eq!(world.live(server), others, "{role:?} {end:?}");
        }
    }
}

#[test]
fn a_connection_that_begins_anew_counts_when_its_server_says_so() {
    for (role, ipv6) in ROLES {
        // The same ports, with a lower number than the old connection had.
        let mut world = World::new(Setup::new(role, ipv6));
        let server = world.connects(1, 5, SYN).unwrap();
        finish(&mut world, server, 5, End::BothFins);
        let low = (What::Tcp("S", 10, 0), What::Tcp("SA", 900, 11));
        assert_eq!(world.asks(server, 5, low.0), Ok(server));
        assert_eq!(world.live(server), 0, "a SYN proves nothing");
        world.answers(server, 5, low.1).unwrap();
        assert_eq!(world.live(server), 1, "{role:?}");
        assert_eq!(world.asks(server, 5, What::Tcp("A", 11, 901)), Ok(server));
        assert_eq!(world.live(server), 1, "{role:?}");
    }
}

#[test]
fn least_connections_goes_by_connections_that_are_not_over() {
    for ipv6 in [false, true] {
        let mut world = World::new(Setup {
            scheduler: Scheduler::LeastConnections,
            ..Setup::new(Role::Proxy, ipv6)
        });
        // Many short ones at the first backend, when it is alone.
        world.set(&[(1, 1, BackendState::Up)]);
        for number in 0..100 {
            assert_eq!(world.connects(1, number, SYN), Ok(1));
            finish(&mut world, 1, number, ENDS[number as usize % 3]);
        }
        world.set(&[(1, 1, BackendState::Up), (2, 1, BackendState::Up)]);
        let mut counts = [0; 2];
        for number in 100..200 {
            let server = world.connects(1, number, SYN).unwrap();
            counts[usize::from(server) - 1] += 1;
        }
        assert_eq!(counts, [50, 50]);
    }
}

#[test]
fn a_table_full_of_what_is_over_takes_new_connections() {
    for (role, ipv6) in ROLES {
        for end in ENDS {
            let mut world = World::new(Setup {
                places: 100,
                idle_timeout: Duration::from_secs(3600),
                ..Setup::new(role, ipv6)
            });
            let live: Vec<u16> = (0..40)
                .map(|n| world.connects(1, n, SYN).unwrap())
                .collect();
            for number in 40..400 {
                let server = world.connects(1, number, SYN);
                let server = server.unwrap_or_else(|v| panic!("{role:?} {end:?} {number}: {v:?}"));
                finish(&mut world, server, number, end);
            }
            let connections = world.connections();
            assert_eq!((connections.refused, connections.live), (0, 100));
            assert_eq!(connections.evicted, 300, "{role:?} {end:?}");
            // Those that are not over stay.
            for (number, &server) in (0..).zip(&live) {
                assert!(world.goes_on(server, number, SYN), "{role:?} {number}");
            }
            // And when all are such, the table is full.
            for number in 400..460 {
                assert!(world.connects(1, number, SYN).is_ok());
            }
            let full = Err(Verdict::Drop(DropReason::TableFull));
            assert_eq!(world.asks(1, 460, SYN), full);
        }
    }
}

#[test]
fn what_came_back_to_life_is_not_evicted() {
    for (role, ipv6) in ROLES {
        let mut world = World::new(Setup {
            places: 100,
            idle_timeout: Duration::from_secs(3600),
            ..Setup::new(role, ipv6)
        });
        let server = world.connects(1, 0, SYN).unwrap();
        finish(&mut world, server, 0, End::BothFins);
        assert_eq!(world.asks(server, 0, What::Tcp("S", 10, 0)), Ok(server));
        world.answers(server, 0, What::Tcp("SA", 900, 11)).unwrap();
        let ack = What::Tcp("A", 11, 901);
        assert_eq!(world.asks(server, 0, ack), Ok(server));
        for number in 1..400 {
            let other = world.connects(1, number, SYN).unwrap();
            finish(&mut world, other, number, End::BothFins);
        }
        assert_eq!(world.asks(server, 0, ack), Ok(server), "{role:?}");
        assert!(world.connections().evicted >= 300);
    }
}

/// A header that claims to be longer than its packet.
#[test]
fn a_segment_whose_header_contradicts_itself_begins_no_connection() {
    for (role, ipv6) in ROLES {
        for flags in ["S", "A", "R"] {
            let mut world = World::new(Setup::new(role, ipv6));
            let mut frame = world.packet_of(1, 5, What::Tcp(flags, 100, 7));
            let offset = frame.len() - 20 + 12;
            frame[offset] = 15 << 4;
            let verdict = world.give(FABRIC, &frame).verdict;
            assert_eq!(verdict, Verdict::Drop(DropReason::Malformed), "{role:?}");
            assert_eq!(world.connections().made, 0);
        }
    }
}

#[test]
fn a_forged_fin_and_a_forged_reset_behind_it_close_nothing() {
    for (role, ipv6) in ROLES {
        let mut world = World::new(Setup {
            idle_timeout: Duration::from_secs(1800),
            ..Setup::new(role, ipv6)
        });
        let server = world.connects(1, 5, SYN).unwrap();
        // Both inside the window, neither at a number that the receiver acknowledged.
        world.asks(1, 5, What::Tcp("FA", 5000, 501)).unwrap();
        world.asks(1, 5, What::Tcp("R", 5001, 0)).unwrap();
        for _ in 0..3 {
            assert!(world.goes_on(server, 5, SYN));
        }
        assert_eq!(world.live(server), 1);
        for _ in 0..30 {
            world.wait(Duration::from_secs(10));
        }
        assert!(world.goes_on(server, 5, SYN));
    }
}

#[test]
fn syns_from_the_port_of_a_session_with_a_server_that_is_gone_reach_another_one() {
    for (role, ipv6) in ROLES.into_iter().filter(|(role, _)| *role == Role::Proxy) {
        let mut world = World::new(Setup::new(role, ipv6));
        let server = world.connects(1, 7, SYN).unwrap();
        let other = 3 - server;
        world.set(&[(other, 1, BackendState::Up)]);
        let syn = What::Tcp("S", 9_000_000, 0);
        let mut reached = server;
        for _ in 0..40 {
            world.wait(Duration::from_secs(10));
            reached = world.asks(other, 7, syn).unwrap();
        }
        assert_eq!(reached, other, "after the idle timeout of four minutes");
    }
}
