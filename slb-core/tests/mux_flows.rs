//! Lifetimes of a mux's flows, and moves of flows to other backends.

use crate::common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use slb_core::flow::FlowState;
use slb_core::hash::Distribution;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{BackendState, Frontend, InboundNat, NatTarget, Protocol, Rule, Spec, Terms};
use slb_core::{DropReason, Instant, Key, Mux, Verdict};

const NOW: Instant = Instant::from_secs(1000);

fn after(seconds: u64) -> Instant {
    NOW + Duration::from_secs(seconds)
}

fn sent(mux: &mut TestMux, now: Instant, packet: &[u8]) -> u16 {
    backend_of(&send(mux, now, &[packet.to_vec()])[0])
}

fn states(mux: &TestMux) -> Vec<FlowState> {
    let flows = mux.flows().unwrap().iter();
    flows.map(|flow| flow.state).collect()
}

/// TCP of either family from a port of the client's.
fn segment(ipv6: bool, port: u16, flags: &str) -> Vec<u8> {
    if ipv6 {
        tcp6(port, flags)
    } else {
        tcp(CLIENT, port, flags)
    }
}

/// The same packet with IP protocol `number`, of which nothing is known but its number.
fn with_protocol(mut packet: Vec<u8>, number: u8) -> Vec<u8> {
    if packet[12] == 0x86 {
        packet[20] = number;
    } else {
        packet[23] = number;
        right_header(&mut packet);
    }
    packet
}

/// An IP packet in two fragments, the second from `at` bytes of payload on.
fn in_two(packet: &[u8], at: usize) -> [Vec<u8>; 2] {
    let is_ipv6 = packet[12] == 0x86;
    let (header, payload) = packet.split_at(if is_ipv6 { 54 } else { 34 });
    [(0, &payload[..at], true), (at, &payload[at..], false)].map(|(offset, part, more)| {
        let mut fragment = header.to_vec();
        if is_ipv6 {
            fragment[18..20].copy_from_slice(&(8 + part.len() as u16).to_be_bytes());
            let next = std::mem::replace(&mut fragment[20], 44);
            let [high, low] = (offset as u16 | u16::from(more)).to_be_bytes();
            fragment.extend([next, 0, high, low, 0, 0, 0, 9]);
        } else {
            fragment[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            fragment[18..20].copy_from_slice(&[0, 9]);
            let flags = (offset as u16 / 8) | if more { 0x2000 } else { 0 };
            fragment[20..22].copy_from_slice(&flags.to_be_bytes());
            right_header(&mut fragment);
        }
        fragment.extend(part);
        fragment
    })
}

#[test]
fn one_forged_reset_or_fin_does_not_shorten_the_life_of_a_flow_that_goes_on() {
    for ipv6 in [false, true] {
        for forged in ["R", "RA", "F", "FA"] {
            let mut setup = Setup {
                idle_timeout: Duration::from_secs(1800),
                ..Setup::new(8)
            };
            let mut mux = pinned(&setup);
            let backend = sent(&mut mux, NOW, &segment(ipv6, 1000, "A"));
            sent(&mut mux, NOW, &segment(ipv6, 1000, forged));
            assert_eq!(states(&mux), [FlowState::Closing], "{forged}");
            sent(&mut mux, after(30), &segment(ipv6, 1000, "A"));
            assert_eq!(states(&mux), [FlowState::Established], "{forged}");
            // Idle for as long as the rule allows, and its backend drains meanwhile.
            setup.set_state(backend, BackendState::Draining);
            mux.install(setup.after(Some(mux.snapshot())).into())
                .expect("it follows");
            let later = sent(&mut mux, after(30 + 1790), &segment(ipv6, 1000, "A"));
            assert_eq!(later, backend, "{forged}");
        }
    }
}

#[test]
fn a_syn_after_the_end_is_half_open_and_no_acknowledgement_of_the_old_flow() {
    for ipv6 in [false, true] {
        let mut mux = pinned(&Setup::new(3));
        for (flags, expected) in [
            ("S", FlowState::HalfOpen),
            ("A", FlowState::Established),
            ("S", FlowState::Established),
            ("FA", FlowState::Closing),
            ("S", FlowState::HalfOpen),
            ("R", FlowState::Closing),
            ("A", FlowState::Established),
        ] {
            sent(&mut mux, NOW, &segment(ipv6, 1000, flags));
            assert_eq!(states(&mux), [expected], "{flags}");
        }
    }
}

/// RFC 5382 §5, REQ-5.
#[test]
fn transitory_flows_last_four_minutes() {
    let setup = Setup {
        idle_timeout: Duration::from_secs(1800),
        ..Setup::new(3)
    };
    for ipv6 in [false, true] {
        for packets in [&["S"][..], &["A", "R"], &["S", "R"], &["A", "FA", "R"]] {
            let mut mux = pinned(&setup);
            for flags in packets {
                sent(&mut mux, NOW, &segment(ipv6, 1, flags));
            }
            mux.advance(after(239));
            assert_eq!(states(&mux).len(), 1, "{packets:?}");
            mux.advance(after(245));
            assert_eq!(states(&mux).len(), 0, "{packets:?}");
        }
    }
    // A rule with less time gives no more for what is over.
    let setup = Setup {
        idle_timeout: Duration::from_secs(60),
        ..setup
    };
    for ipv6 in [false, true] {
        let mut mux = pinned(&setup);
        sent(&mut mux, NOW, &segment(ipv6, 1, "S"));
        sent(&mut mux, NOW, &segment(ipv6, 2, "F"));
        mux.advance(after(65));
        assert_eq!(states(&mux).len(), 0);
    }
}

/// The client has sent its FIN, and the server pauses for almost as long as the rule allows.
#[test]
fn a_half_closed_flow_outlives_a_pause_of_the_server() {
    let mut setup = Setup {
        idle_timeout: Duration::from_secs(1800),
        ..Setup::new(8)
    };
    for ipv6 in [false, true] {
        for flags in ["F", "FA"] {
            let mut mux = pinned(&setup);
            let backend = sent(&mut mux, NOW, &segment(ipv6, 1000, "A"));
            sent(&mut mux, NOW, &segment(ipv6, 1000, flags));
            setup.set_state(backend, BackendState::Draining);
            mux.install(setup.after(Some(mux.snapshot())).into())
                .expect("it follows");
            mux.advance(after(1790));
            let later = sent(&mut mux, after(1790), &segment(ipv6, 1000, "A"));
            assert_eq!(later, backend, "{flags}");
            setup.set_state(backend, BackendState::Up);
        }
        let mut mux = pinned(&setup);
        sent(&mut mux, NOW, &segment(ipv6, 1000, "A"));
        sent(&mut mux, NOW, &segment(ipv6, 1000, "FA"));
        mux.advance(after(1805));
        assert_eq!(states(&mux).len(), 0);
    }
}

/// The client has sent its FIN, and acknowledges what it still gets.
#[test]
fn a_half_closed_flow_lasts_as_long_as_its_rule_says() {
    let setup = Setup {
        idle_timeout: Duration::from_secs(1800),
        ..Setup::new(3)
    };
    for ipv6 in [false, true] {
        let mut mux = pinned(&setup);
        let backend = sent(&mut mux, NOW, &segment(ipv6, 1, "A"));
        sent(&mut mux, NOW, &segment(ipv6, 1, "FA"));
        for round in 1..5 {
            let now = after(1700 * round);
            assert_eq!(sent(&mut mux, now, &segment(ipv6, 1, "A")), backend);
            assert_eq!(mux.stats().flows.made, 1, "round {round}");
            // Its FIN again, whose acknowledgement was lost.
            sent(&mut mux, now, &segment(ipv6, 1, "FA"));
        }
    }
}

#[test]
fn an_unanswered_udp_flow_lasts_as_long_as_its_rule_says() {
    let mut setup = Setup {
        idle_timeout: Duration::from_secs(1800),
        ..Setup::new(8)
    };
    let mut mux = pinned(&setup);
    let packets = [udp_to(CLIENT, 1, VIP, 53, b"query"), udp6(1, b"query")];
    let before = packets.each_ref().map(|packet| sent(&mut mux, NOW, packet));
    for number in before {
        setup.set_state(number, BackendState::Draining);
    }
    mux.install(setup.after(Some(mux.snapshot())).into())
        .expect("it follows");
    let later = packets.map(|packet| sent(&mut mux, after(1795), &packet));
    assert_eq!(later, before);
}

/// A snapshot with one rule for each kind of flow that knows no connections.
fn without_connections(setup: &Setup, previous: Option<&Snapshot<'_>>) -> Arc<Snapshot<'static>> {
    setup.with_spec(|spec| {
        let all = |name, frontend, protocol, frontend_port| Rule {
            name,
            frontend,
            pool: frontend % 2,
            protocol,
            frontend_port,
            backend_port: frontend_port,
            ..spec.rules[0]
        };
        let mut frontends = spec.frontends.to_vec();
        frontends.extend([
            Frontend {
                name: "all",
                address: ALL.into(),
                ..spec.frontends[0]
            },
            Frontend {
                name: "all6",
                address: all6().into(),
                ..spec.frontends[1]
            },
        ]);
        let rules = [
            all("udp", 0, Protocol::Udp, 53),
            all("echo", 0, Protocol::Icmp, 0),
            all("tcp", 0, Protocol::Tcp, 80),
            all("udp6", 1, Protocol::Udp, 53),
            all("echo6", 1, Protocol::Icmp, 0),
            all("tcp6", 1, Protocol::Tcp, 80),
            all("all", 2, Protocol::All, 0),
            all("all6", 3, Protocol::All, 0),
        ];
        let spec = Spec {
            frontends: &frontends,
            rules: &rules,
            ..spec.clone()
        };
        Arc::new(Snapshot::new(&spec, previous).unwrap())
    })
}

const ALL: [u8; 4] = [20, 20, 20, 101];

fn all6() -> [u8; 16] {
    let mut address = vip6();
    address[15] = 1;
    address
}

/// `count` flows of each kind that knows no connections.
fn connectionless(count: u16) -> Vec<Vec<u8>> {
    let to_all6 = |mut packet: Vec<u8>| {
        packet[38..54].copy_from_slice(&all6());
        packet
    };
    let mut packets = Vec::new();
    for i in 0..count {
        let client = [10, 0, 0, i as u8];
        let from = |mut packet: Vec<u8>| {
            packet[37] = i as u8; // the client's address
            packet
        };
        packets.extend([
            udp_to(CLIENT, 1000 + i, VIP, 53, b"query"),
            udp6(1000 + i, b"query"),
            udp_to(CLIENT, 1000 + i, ALL, 9, b"query"),
            with_protocol(udp_to(client, 1000, ALL, 9, b"sctp"), 132),
            from(with_protocol(to_all6(udp6(1000, b"sctp")), 132)),
            echo(client),
            from(echo6()),
        ]);
    }
    packets
}

fn echo(client: [u8; 4]) -> Vec<u8> {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv4(client, VIP, 64)
        .icmpv4_echo_request(7, 1)
        .write(&mut packet, b"ping")
        .unwrap();
    packet
}

fn echo6() -> Vec<u8> {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv6(client6(), vip6(), 64)
        .icmpv6_echo_request(7, 1)
        .write(&mut packet, b"ping")
        .unwrap();
    packet
}

#[test]
fn flows_without_connections_leave_a_backend_that_fails_and_not_one_that_drains() {
    let mut setup = Setup::new(10);
    let snapshot = without_connections(&setup, None);
    let mut mux = Mux::with_capacity(snapshot, 10_000, Key::new([3, 4])).expect("its role");
    let packets = connectionless(60);
    let segments: Vec<_> = (0..400)
        .map(|number| segment(number % 2 == 1, number / 2, "A"))
        .collect();
    let before = backends_of(&mut mux, NOW, &packets);
    let of_segments = backends_of(&mut mux, NOW, &segments);
    for weight in [1, 0] {
        setup.backends[3].weight = weight;
        setup.set_state(3, BackendState::Draining);
        let next = without_connections(&setup, Some(mux.snapshot()));
        mux.install(next).expect("it follows");
        assert_eq!(backends_of(&mut mux, NOW, &packets), before);
    }
    setup.set_state(4, BackendState::Down);
    let next = without_connections(&setup, Some(mux.snapshot()));
    mux.install(next).expect("it follows");
    let moved = backends_of(&mut mux, NOW, &packets);
    for (kind, (before, after)) in before.iter().zip(&moved).enumerate() {
        assert_eq!(before != after, *before == 4, "kind {}", kind % 7);
        assert!(*before != 4 || (*after != 3 && *after != 4), "kind {kind}");
    }
    for kind in 0..7 {
        let of_kind = before.iter().skip(kind).step_by(7);
        assert!(of_kind.filter(|backend| **backend == 4).count() > 0);
    }
    // TCP stays, and so does what has moved when the backend is back.
    assert_eq!(backends_of(&mut mux, NOW, &segments), of_segments);
    setup.set_state(4, BackendState::Up);
    let next = without_connections(&setup, Some(mux.snapshot()));
    mux.install(next).expect("it follows");
    assert_eq!(backends_of(&mut mux, NOW, &packets), moved);
    // One that is removed keeps nothing.
    setup.backends.remove(4);
    let next = without_connections(&setup, Some(mux.snapshot()));
    mux.install(next).expect("it follows");
    let after = backends_of(&mut mux, NOW, &packets);
    for (before, after) in moved.iter().zip(&after) {
        assert_eq!(before != after, *before == 5);
    }
    // Without any that is healthy there is no place to go.
    for number in [1, 2, 3, 4, 6, 7, 8, 9, 10] {
        setup.set_state(number, BackendState::Down);
    }
    let next = without_connections(&setup, Some(mux.snapshot()));
    mux.install(next).expect("it follows");
    for packet in packets {
        let outcome = send(&mut mux, NOW, &[packet]).remove(0);
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoBackend));
    }
    for (packet, backend) in segments.iter().zip(of_segments) {
        let verdict = send(&mut mux, NOW, std::slice::from_ref(packet))[0].verdict;
        assert_eq!(
            verdict == Verdict::Drop(DropReason::NoBackend),
            backend == 5
        );
    }
}

/// There is no other backend: what an inbound NAT rule leads to is one.
#[test]
fn an_inbound_nat_rule_keeps_its_backend_whatever_its_health() {
    let mut setup = Setup::new(2);
    let snapshot = |setup: &Setup, previous: Option<&Snapshot<'_>>| {
        setup.with_spec(|spec| {
            let game = |name, number| InboundNat {
                name,
                frontend: number,
                pool: number,
                target: NatTarget::Backend {
                    port: 2000,
                    backend: 1,
                },
                protocol: Protocol::Udp,
                backend_port: 2000,
                idle_timeout: Duration::from_secs(240),
                terms: Terms::default(),
            };
            let spec = Spec {
                inbound_nat: &[game("game", 0), game("game6", 1)],
                ..spec.clone()
            };
            Arc::new(Snapshot::new(&spec, previous).unwrap())
        })
    };
    let mut mux =
        Mux::with_capacity(snapshot(&setup, None), 1000, Key::new([3, 4])).expect("its role");
    let mut packet6 = udp6(1, b"hello");
    packet6[56..58].copy_from_slice(&2000_u16.to_be_bytes());
    let packets = [udp_to(CLIENT, 1, VIP, 2000, b"hello"), packet6];
    for packet in &packets {
        assert_eq!(sent(&mut mux, NOW, packet), 2);
    }
    setup.set_state(2, BackendState::Down);
    let next = snapshot(&setup, Some(mux.snapshot()));
    mux.install(next).expect("it follows");
    for packet in &packets {
        assert_eq!(sent(&mut mux, NOW, packet), 2);
    }
}

#[test]
fn an_icmp_error_moves_no_flow_away() {
    let answer = udp_to(VIP, 53, CLIENT, 1, b"answer");
    let mut error = Vec::new();
    etherparse::PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv4([203, 0, 113, 1], VIP, 60)
        .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::Port,
        ))
        .write(&mut error, &answer[14..14 + 28])
        .unwrap();
    let (mut answer6, mut error6) = (Vec::new(), Vec::new());
    etherparse::PacketBuilder::ipv6(vip6(), client6(), 64)
        .udp(53, 1)
        .write(&mut answer6, b"answer")
        .unwrap();
    etherparse::PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv6(client6(), vip6(), 60)
        .icmpv6(etherparse::Icmpv6Type::DestinationUnreachable(
            etherparse::icmpv6::DestUnreachableCode::Port,
        ))
        .write(&mut error6, &answer6)
        .unwrap();
    for (query, error) in [
        (udp_to(CLIENT, 1, VIP, 53, b"query"), error),
        (udp6(1, b"query"), error6),
    ] {
        let mut setup = Setup::new(5);
        let mut mux = pinned(&setup);
        let backend = sent(&mut mux, NOW, &query);
        setup.set_state(backend, BackendState::Down);
        mux.install(setup.after(Some(mux.snapshot())).into())
            .expect("it follows");
        assert_eq!(sent(&mut mux, NOW, &error), backend);
        assert_ne!(
            sent(&mut mux, NOW, &query),
            backend,
            "the next packet moves it"
        );
    }
}

#[test]
fn a_syn_s_own_later_fragments_are_no_answer_and_move_nothing_on() {
    for ipv6 in [false, true] {
        let mut mux = pinned(&Setup::new(1));
        let mut syn = if ipv6 {
            tcp6(1, "S")
        } else {
            tcp_to(CLIENT, 1, VIP, 80, "S", b"six")
        };
        // Data in a SYN, so that there is something to cut off.
        let len_at = if ipv6 { 18 } else { 16 };
        let len = u16::from_be_bytes([syn[len_at], syn[len_at + 1]]) + 21;
        syn[len_at..len_at + 2].copy_from_slice(&len.to_be_bytes());
        syn.extend([7; 21]);
        let [first, later] = in_two(&syn, 24);
        sent(&mut mux, NOW, &first);
        sent(&mut mux, NOW, &later);
        assert_eq!(states(&mux), [FlowState::HalfOpen]);
        let id = mux.snapshot().backends()[usize::from(ipv6)].id();
        let counters = mux.backend_counters(id).unwrap();
        assert_eq!((counters.accepted, counters.failures), (0, 0));
        // A whole segment is an answer's acknowledgement.
        sent(&mut mux, NOW, &segment(ipv6, 1, "A"));
        assert_eq!(states(&mux), [FlowState::Established]);
        assert_eq!(mux.backend_counters(id).unwrap().accepted, 1);
    }
}

#[test]
fn a_later_fragment_pins_no_flow_of_its_own() {
    let setup = Setup {
        ha_ports: true,
        distribution: Distribution::SourceIp,
        ..Setup::new(5)
    };
    let mut mux = pinned(&setup);
    for packet in [
        udp_to(CLIENT, 1, VIP, 53, &[7; 100]),
        udp6(1, &[7; 100]),
        with_protocol(udp_to(CLIENT, 1, VIP, 53, &[7; 100]), 132),
    ] {
        let [_, later] = in_two(&packet, 24);
        sent(&mut mux, NOW, &later);
        assert_eq!(mux.stats().flows.live, 0);
    }
}

/// One client's flows leave from many outer ports, whatever part of their tuple chose the backend.
#[test]
fn the_outer_source_port_spreads_by_the_five_tuple_in_every_mode() {
    let ports_of = |mode, stateful: bool, ipv6: bool| -> (usize, usize) {
        let setup = Setup {
            distribution: mode,
            ..Setup::new(5)
        };
        let mut mux = if stateful {
            pinned(&setup)
        } else {
            stateless(&setup)
        };
        let packets: Vec<_> = (0..500).map(|port| segment(ipv6, port, "A")).collect();
        let outcomes: Vec<_> = packets
            .chunks(40)
            .flat_map(|packets| send(&mut mux, NOW, packets))
            .collect();
        let backends: BTreeSet<_> = outcomes.iter().map(backend_of).collect();
        let ports = outcomes
            .iter()
            .map(|outcome| tunnelled(outcome).source_port);
        (backends.len(), ports.collect::<BTreeSet<_>>().len())
    };
    for stateful in [false, true] {
        for ipv6 in [false, true] {
            for mode in [Distribution::SourceIp, Distribution::SourceIpProtocol] {
                let (backends, ports) = ports_of(mode, stateful, ipv6);
                assert_eq!(backends, 1, "{mode:?}");
                assert!(ports > 470, "{ports} outer ports for 500 flows, {mode:?}");
            }
        }
    }
}

#[test]
fn a_flow_and_its_fragments_have_one_outer_source_port() {
    for mode in [
        Distribution::FiveTuple,
        Distribution::SourceIp,
        Distribution::SourceIpProtocol,
    ] {
        let setup = Setup {
            distribution: mode,
            ..Setup::new(5)
        };
        let mut mux = pinned(&setup);
        for packet in [udp_to(CLIENT, 77, VIP, 53, &[7; 100]), udp6(77, &[7; 100])] {
            let [first, later] = in_two(&packet, 24);
            let mut port = |packet: &[u8]| {
                let outcome = send(&mut mux, NOW, &[packet.to_vec()]).remove(0);
                tunnelled(&outcome).source_port
            };
            let whole = port(&packet);
            assert_eq!((port(&first), port(&later)), (whole, whole), "{mode:?}");
        }
    }
}
