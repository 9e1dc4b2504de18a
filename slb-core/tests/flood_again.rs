//! Floods whose sources send more than one packet, at a host agent and a proxy: a second packet of a
//! forged source proves nothing, whether or not the first was answered.

use crate::translated;

use std::time::Duration;

use slb_core::{DropReason, Verdict};

use translated::{ROLES, SYN, SYN_ACK, Setup, What, World};

/// Clients of the flood have numbers from here on.
const SPOOFED: u32 = 1 << 25;
const PLACES: usize = 4096;

/// The packets of a source of the flood, and the one that the server answers.
#[derive(Clone, Copy, Debug)]
struct Pattern {
    first: What,
    answer: Option<What>,
    rest: &'static [What],
}

const fn unanswered(first: What, rest: &'static [What]) -> Pattern {
    Pattern {
        first,
        answer: None,
        rest,
    }
}

const fn answered(first: What, answer: What, rest: &'static [What]) -> Pattern {
    Pattern {
        first,
        answer: Some(answer),
        rest,
    }
}

/// Segments that a source can forge which does not see the server's number.
const FORGED: [&[What]; 6] = [
    &[SYN],
    &[What::Tcp("A", 101, 777)],
    &[What::Tcp("F", 101, 0)],
    &[What::Tcp("FA", 101, 777)],
    &[What::Tcp("FA", 101, 777), What::Tcp("A", 102, 777)],
    &[What::Tcp("R", 101, 0)],
];

fn patterns() -> Vec<Pattern> {
    let mut patterns = Vec::new();
    for rest in FORGED {
        patterns.push(unanswered(SYN, rest));
        patterns.push(answered(SYN, SYN_ACK, rest));
    }
    patterns.extend([
        unanswered(What::Udp, &[What::Udp]),
        unanswered(What::Udp, &[What::Udp; 5]),
        unanswered(What::Echo, &[What::Echo]),
        unanswered(What::Other, &[What::Other]),
        answered(What::Udp, What::Udp, &[What::Udp]),
        answered(What::Udp, What::Udp, &[What::Udp; 5]),
        answered(What::Echo, What::Echo, &[What::Echo]),
        answered(What::Other, What::Other, &[What::Other]),
    ]);
    patterns
}

/// One source of the flood after another.
struct Flood {
    pattern: Pattern,
    sent: u32,
}

impl Flood {
    fn send(&mut self, world: &mut World, sources: u32) {
        for _ in 0..sources {
            self.sent += 1;
            let random = self.sent.wrapping_mul(0x9e37_79b1);
            // Without ports, another address.
            let client = SPOOFED + ((random & 0x7fff) << 10) + (random >> 15 & 0x3ff);
            let Pattern {
                first,
                answer,
                rest,
            } = self.pattern;
            let server = world.asks(1, client, first);
            let server = server.unwrap_or_else(|v| panic!("{:?} {v:?}", self.pattern));
            if let Some(answer) = answer {
                world.answers(server, client, answer).expect("an answer");
            }
            for &what in rest {
                let went = world.asks(1, client, what);
                let is_wanted = went == Ok(server) || matches!(what, What::Tcp(..));
                assert!(is_wanted, "{:?} {went:?}", self.pattern);
            }
        }
    }
}

fn honest(number: u32) -> (u32, What) {
    let kinds = [SYN, What::Udp, What::Echo, What::Other];
    (number << 10, kinds[number as usize % kinds.len()])
}

fn small(role: translated::Role, ipv6: bool) -> World {
    World::new(Setup {
        places: PLACES,
        idle_timeout: Duration::from_secs(3600),
        ..Setup::new(role, ipv6)
    })
}

#[test]
fn a_second_packet_of_a_forged_source_keeps_nobody_out() {
    for (role, ipv6) in ROLES {
        for pattern in patterns() {
            let mut world = small(role, ipv6);
            let mut flood = Flood { pattern, sent: 0 };
            let connect = |world: &mut World, number| {
                let (client, what) = honest(number);
                let server = world.connects(1, client, what);
                server.unwrap_or_else(|v| panic!("{role:?} {pattern:?} {number}: {v:?}"))
            };
            let old: Vec<u16> = (0..400).map(|n| connect(&mut world, n)).collect();
            for number in 400..720 {
                flood.send(&mut world, 25);
                connect(&mut world, number);
            }
            for (number, server) in (0..).zip(old) {
                let (client, what) = honest(number);
                let goes_on = world.goes_on(server, client, what);
                assert!(goes_on, "{role:?} {pattern:?} {number}");
            }
            let connections = world.connections();
            assert_eq!(connections.refused, 0, "{role:?} {pattern:?}");
            assert!(connections.evicted > 3000, "{pattern:?} {connections:?}");
            let full = world.stats().dropped[DropReason::TableFull];
            assert_eq!(full.packets, 0, "{role:?} {pattern:?}");
        }
    }
}

/// A flow of a protocol without a handshake proves nothing by going on, so such flows hold no more than
/// three quarters of the places against new connections.
#[test]
fn flows_without_a_handshake_leave_a_quarter_of_the_places_to_connections() {
    for (role, ipv6) in ROLES {
        let mut world = small(role, ipv6);
        let pattern = answered(What::Udp, What::Udp, &[What::Udp]);
        Flood { pattern, sent: 0 }.send(&mut world, 3 * PLACES as u32);
        let quarter = PLACES as u32 / 4;
        let servers: Vec<u16> = (0..quarter)
            .map(|number| world.connects(1, number << 10, SYN).expect("a place"))
            .collect();
        for (number, server) in (0..).zip(servers) {
            assert!(
                world.goes_on(server, number << 10, SYN),
                "{role:?} {number}"
            );
        }
        // What has come about of both kinds fills the table now.
        let full = Err(Verdict::Drop(DropReason::TableFull));
        assert_eq!(world.asks(1, quarter << 10, SYN), full, "{role:?}");
    }
}

/// As soon as others leave room, a flow that goes on lasts again.
#[test]
fn a_flow_beyond_the_share_lasts_once_there_is_room_in_it() {
    for (role, ipv6) in ROLES {
        let mut world = small(role, ipv6);
        let share = PLACES as u32 / 4 * 3;
        for number in 0..share {
            world.connects(1, number << 10, What::Udp).unwrap();
        }
        let late = share << 10;
        let server = world.connects(1, late, What::Udp).unwrap();
        // The others are idle for longer than their time.
        for _ in 0..16 {
            world.wait(Duration::from_secs(300));
            assert!(world.goes_on(server, late, What::Udp), "{role:?}");
        }
        assert_eq!(world.connections().live, 1, "{role:?}");
        let pattern = answered(What::Udp, What::Udp, &[]);
        Flood { pattern, sent: 0 }.send(&mut world, 3 * PLACES as u32);
        let made = world.connections().made;
        assert!(world.goes_on(server, late, What::Udp), "{role:?}");
        assert_eq!(world.connections().made, made, "{role:?}: it was there");
    }
}
