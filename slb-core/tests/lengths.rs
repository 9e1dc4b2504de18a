//! Transport headers that contradict their packet, in every role: a TCP data offset below five words or
//! beyond the packet, a UDP length below eight bytes or beyond the packet.

use crate::common;
use crate::translated;

use std::time::Duration;

use common::{CLIENT, VIP, pinned, send_one, stateless, tcp, tcp_to, tcp6, udp_to, udp6};
use slb_core::{DropReason, Verdict};
use translated::{ACK, BACKENDS, FABRIC, ROLES, Role, SERVER_ACK, Setup, What, World};

const MALFORMED: Verdict = Verdict::Drop(DropReason::Malformed);
const UDP_DATA: usize = 8;
/// Bytes of TCP and UDP headers without options.
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// The same TCP packet, which ends with `data` bytes of data, with other data offsets: in words.
fn wrong_offsets(frame: &[u8], data: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let least_beyond = 6 + data / 4;
    let wrong = [0, 1, 4, least_beyond as u8, 15];
    wrong.into_iter().map(move |words| {
        let mut frame = frame.to_vec();
        let at = frame.len() - data - TCP_HEADER + 12;
        frame[at] = words << 4;
        frame
    })
}

/// The same UDP packet, which ends with `data` bytes of data, with other lengths.
fn wrong_lengths(frame: &[u8], data: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let least_beyond = (UDP_HEADER + data + 1) as u16;
    let wrong = [0, 1, 7, least_beyond, 0x8000, 0xffff];
    wrong
        .into_iter()
        .map(move |len| with_udp_len(frame, data, len))
}

fn with_udp_len(frame: &[u8], data: usize, len: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let at = frame.len() - data - UDP_HEADER + 4;
    frame[at..at + 2].copy_from_slice(&len.to_be_bytes());
    frame
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.splice(12..12, [0x81, 0, 0, 7]);
    frame
}

#[test]
fn a_mux_drops_transport_lengths_that_cannot_be() {
    let setup = common::Setup::new(3);
    for mut mux in [pinned(&setup), stateless(&setup)] {
        for is_known in [false, true] {
            let wrong: Vec<Vec<u8>> = [
                wrong_offsets(&tcp(CLIENT, 9, "S"), 0).collect::<Vec<_>>(),
                wrong_offsets(&tcp(CLIENT, 9, "A"), 0).collect(),
                wrong_offsets(&tcp_to(CLIENT, 9, VIP, 80, "A", b"data"), 4).collect(),
                wrong_offsets(&tcp6(9, "A"), 3).collect(),
                wrong_lengths(&udp_to(CLIENT, 9, VIP, 53, &[7; 8]), 8).collect(),
                wrong_lengths(&udp_to(CLIENT, 9, VIP, 53, b""), 0).collect(),
                wrong_lengths(&udp6(9, &[7; 8]), 8).collect(),
                wrong_lengths(&udp6(9, b"short"), 5).collect(),
            ]
            .concat();
            for frame in wrong
                .iter()
                .flat_map(|frame| [frame.clone(), tagged(frame)])
            {
                let verdict = send_one(&mut mux, frame.clone()).verdict;
                assert_eq!(verdict, MALFORMED, "known: {is_known}, {frame:02x?}");
            }
            let flows = mux.stats().flows;
            assert!(
                is_known || (flows.made, flows.live) == (0, 0),
                "none begins"
            );
            // The flows that they claim to be of, for the second round.
            for flags in ["S", "A"] {
                for frame in [tcp(CLIENT, 9, flags), tcp6(9, flags)] {
                    assert!(matches!(
                        send_one(&mut mux, frame).verdict,
                        Verdict::Forward(_)
                    ));
                }
            }
            for frame in [udp_to(CLIENT, 9, VIP, 53, &[7; 8]), udp6(9, &[7; 8])] {
                assert!(matches!(
                    send_one(&mut mux, frame).verdict,
                    Verdict::Forward(_)
                ));
            }
        }
    }
}

/// Reserved bits beside the data offset (RFC 9293 §3.1, RFC 3168, RFC 9768) and data behind a datagram within
/// its packet (RFC 9868) are no contradiction.
#[test]
fn reserved_bits_and_data_behind_a_datagram_are_none_of_the_balancers_business() {
    let setup = common::Setup::new(3);
    let with_bits = |mut frame: Vec<u8>, data: usize| {
        let at = frame.len() - data - TCP_HEADER + 12;
        frame[at] |= 0x0f;
        frame
    };
    for mut mux in [pinned(&setup), stateless(&setup)] {
        for frame in [
            with_bits(tcp(CLIENT, 9, "S"), 0),
            with_bits(tcp(CLIENT, 9, "A"), 0),
            with_bits(tcp6(9, "A"), 3),
            with_udp_len(&udp_to(CLIENT, 9, VIP, 53, &[7; 8]), 8, 8),
            with_udp_len(&udp_to(CLIENT, 9, VIP, 53, &[7; 8]), 8, 15),
            with_udp_len(&udp6(9, &[7; 8]), 8, 8),
        ] {
            for frame in [frame.clone(), tagged(&frame)] {
                let verdict = send_one(&mut mux, frame).verdict;
                assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
            }
        }
    }
    for (role, ipv6) in ROLES {
        let mut world = World::new(Setup::new(role, ipv6));
        let server = world.connects(1, 5, What::Udp).unwrap();
        let short = with_udp_len(&world.packet_of(1, 5, What::Udp), UDP_DATA, 9);
        assert!(world.give(FABRIC, &short).is_forwarded(), "{role:?}");
        let (port, answer) = world.answer_of(server, 5, What::Udp);
        let short = with_udp_len(&answer, UDP_DATA, 9);
        assert!(world.give(port, &short).is_forwarded(), "{role:?}");
        world.connects(1, 6, ACK).unwrap();
        let bits = with_bits(world.packet_of(1, 6, ACK), 0);
        assert!(world.give(FABRIC, &bits).is_forwarded(), "{role:?}");
    }
}

#[test]
fn a_host_agent_and_a_proxy_drop_them_both_ways_of_new_and_of_known_connections() {
    for (role, ipv6) in ROLES {
        let mut setup = Setup::new(role, ipv6);
        setup.backends.truncate(1);
        let mut world = World::new(setup);
        let all_inward = |world: &World| {
            let mut all: Vec<Vec<u8>> =
                wrong_lengths(&world.packet_of(1, 5, What::Udp), UDP_DATA).collect();
            for flags in ["S", "A", "R", "FA"] {
                let frame = world.packet_of(1, 5, What::Tcp(flags, 101, 501));
                all.extend(wrong_offsets(&frame, 0));
            }
            all
        };
        for frame in all_inward(&world) {
            assert_eq!(world.give(FABRIC, &frame).verdict, MALFORMED, "{role:?}");
        }
        assert_eq!(world.connections().made, 0);
        for what in [What::Udp, ACK] {
            world.connects(1, 5, what).unwrap();
        }
        // Nothing that they say counts: neither that all is over, nor that somebody is there.
        world.wait(Duration::from_secs(200));
        let before = world.connections();
        for frame in all_inward(&world) {
            let outcome = world.give(FABRIC, &frame);
            assert_eq!(outcome.verdict, MALFORMED, "{role:?}, IPv6: {ipv6}");
        }
        let (port, datagram) = world.answer_of(1, 5, What::Udp);
        assert!(world.goes_on(1, 5, ACK), "{role:?}");
        let mut outward: Vec<Vec<u8>> = wrong_lengths(&datagram, UDP_DATA).collect();
        for flags in ["A", "R", "FA", "SA"] {
            let (_, frame) = world.answer_of(1, 5, What::Tcp(flags, 501, 101));
            outward.extend(wrong_offsets(&frame, 0));
        }
        for frame in outward {
            let outcome = world.give(port, &frame);
            assert_eq!(outcome.verdict, MALFORMED, "{role:?}, IPv6: {ipv6}");
        }
        assert_eq!(world.connections().live, before.live);
        world.wait(Duration::from_secs(41));
        assert_eq!(world.connections().expired, before.expired + 1, "UDP's");
    }
}

#[test]
fn those_of_strangers_pass() {
    let setup = common::Setup::new(3);
    let (mut mux, stranger) = (pinned(&setup), [9, 9, 9, 9]);
    for frame in wrong_offsets(&tcp_to(CLIENT, 9, stranger, 80, "A", b""), 0) {
        assert_eq!(send_one(&mut mux, frame).verdict, Verdict::Pass);
    }
    for frame in wrong_lengths(&udp_to(CLIENT, 9, stranger, 53, &[7; 8]), 8) {
        assert_eq!(send_one(&mut mux, frame).verdict, Verdict::Pass);
    }
    for (role, ipv6) in ROLES {
        let mut world = World::new(Setup::new(role, ipv6));
        let (from, to) = (world.setup.client(7), (world.setup.server(1), 22));
        let frame = translated::packet(from, to, SERVER_ACK, false);
        for frame in wrong_offsets(&frame, 0) {
            let (frame, expected) = match role {
                Role::Host => (translated::encapsulated(&frame, to.0), 1),
                Role::Proxy => (frame, BACKENDS.0),
            };
            let outcome = world.give(FABRIC, &frame);
            assert_eq!(
                outcome.verdict,
                Verdict::Forward(slb_core::PortId(expected))
            );
        }
    }
}
