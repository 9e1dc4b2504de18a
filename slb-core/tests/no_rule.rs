//! Packets for a VIP that no rule takes, beside an outbound rule: at a mux, which knows whose each SNAT
//! port is, and at a host agent, which knows the connections of its vm.

use crate::trio;

use slb_core::observe::Step;
use slb_core::snapshot::RuleMatch;
use slb_core::spec::Echo;
use slb_core::{Dataplane, DropReason, Frame, HEADROOM, Instant, PortId, Verdict};
use trio::{
    Ends, FABRIC, FAMILIES, Family, From, NOW, Role, TCP, UDP, VM, echo, fragments, framed, host,
    icmp, mux, packet, stateless_mux, tcp, udp,
};

const NO_RULE: Verdict = Verdict::Drop(DropReason::NoRule);
const NO_CONNECTION: Verdict = Verdict::Drop(DropReason::NoConnection);
const UNMATCHED: Verdict = Verdict::Drop(DropReason::IcmpUnmatched);
const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
/// Ports of the first vm's block.
const OF_VM: [u16; 3] = [1024, 1030, 2047];
/// Ports of no block of the mux, whose twenty vms have 1024 each from 1024 on.
const OF_NOBODY: [u16; 5] = [81, 1023, 1024 + 20 * 1024, 40_000, 65_535];

fn from_far(family: Family) -> Ends {
    (family.client(), family.snat())
}

fn segment(family: Family, port: u16, flags: u8) -> Vec<u8> {
    let ends = from_far(family);
    packet(ends, TCP, &tcp(ends, (443, port), flags, b""))
}

fn datagram(family: Family, port: u16) -> Vec<u8> {
    let ends = from_far(family);
    packet(ends, UDP, &udp(ends, (53, port), b"answer"))
}

fn reply(family: Family, identifier: u16) -> Vec<u8> {
    let ends = from_far(family);
    packet(
        ends,
        family.icmp(),
        &echo(ends, true, identifier, b"answer"),
    )
}

/// Returns packets that open a conversation.
fn questions(family: Family, port: u16) -> Vec<Vec<u8>> {
    vec![segment(family, port, SYN), datagram(family, port)]
}

/// Returns packets that may answer a vm.
fn answers(family: Family, port: u16) -> Vec<Vec<u8>> {
    let flags = [SYN_ACK, 0x10, 0x18, 0x11, 0x04, 0x14];
    let segments = flags.map(|flags| segment(family, port, flags));
    let mut all = segments.to_vec();
    all.push(reply(family, port));
    all
}

/// "Port unreachable" about a datagram that went out from a port.
fn error_about(family: Family, port: u16) -> Vec<u8> {
    let there = (family.snat(), family.client());
    let quoted = packet(there, UDP, &udp(there, (port, 53), b"question"));
    let (kind, code) = if family.is_ipv6 { (1, 4) } else { (3, 3) };
    let ends = (family.router(), family.snat());
    packet(
        ends,
        family.icmp(),
        &icmp(ends, kind, code, [0; 4], &quoted),
    )
}

/// The verdict on a frame, and each result of a lookup.
fn observed(
    role: &mut impl Dataplane<'static>,
    now: Instant,
    port: PortId,
    frame: &[u8],
) -> (Verdict, Vec<RuleMatch>) {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(frame);
    let mut frames = [Frame::new(&mut buffer, HEADROOM, frame.len()).unwrap()];
    frames[0].set_port(port);
    let mut found = Vec::new();
    role.process_observed(now, &mut frames, &mut |_, step| {
        if let Step::Classified(result) = step {
            found.push(result);
        }
    });
    (frames[0].verdict(), found)
}

/// The same frame behind one VLAN tag.
fn tagged(mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(12..12, [0x81, 0, 0, 7]);
    frame
}

#[test]
fn a_mux_has_no_rule_for_a_port_that_is_in_no_block() {
    for family in FAMILIES {
        for mut mux in [mux(Echo::Forward), stateless_mux(Echo::Forward)] {
            for port in OF_NOBODY {
                let all = [questions(family, port), answers(family, port)].concat();
                for packet in all {
                    for frame in [framed(&packet), tagged(framed(&packet))] {
                        let (verdict, found) = observed(&mut mux, NOW, FABRIC, &frame);
                        assert_eq!(verdict, NO_RULE, "{family:?}, port {port}");
                        assert_eq!(found.last(), Some(&RuleMatch::NoRule));
                    }
                }
                let error = error_about(family, port);
                assert_eq!(mux.give(NOW, From::Outside, &error).0, UNMATCHED);
            }
            let flows = mux.stats().flows;
            assert_eq!((flows.made, flows.live), (0, 0), "nothing is pinned");
        }
    }
}

#[test]
fn a_mux_sends_all_that_is_for_a_block_to_its_host() {
    for family in FAMILIES {
        for mut mux in [mux(Echo::Forward), stateless_mux(Echo::Forward)] {
            for port in OF_VM {
                let all = [questions(family, port), answers(family, port)].concat();
                for packet in all {
                    for frame in [framed(&packet), tagged(framed(&packet))] {
                        let (verdict, found) = observed(&mut mux, NOW, FABRIC, &frame);
                        assert_eq!(verdict, Verdict::Forward(FABRIC), "{port}");
                        assert!(matches!(found[..], [RuleMatch::Rule(_)]), "{found:?}");
                    }
                }
                mux.pass(NOW, From::Outside, &error_about(family, port));
            }
        }
    }
}

/// One burst has both, so that a run's last lookup holds for neither's neighbour.
#[test]
fn ports_with_and_without_an_owner_do_not_mix_in_a_burst() {
    for family in FAMILIES {
        let mut mux = mux(Echo::Forward);
        let ports: Vec<u16> = OF_VM.into_iter().chain(OF_NOBODY).collect();
        let mut packets = Vec::new();
        for round in 0..4 {
            for port in &ports {
                let flags = [SYN, 0x10, SYN, SYN_ACK][round];
                packets.push((*port, framed(&segment(family, *port, flags))));
            }
        }
        let mut buffers: Vec<Vec<u8>> = packets
            .iter()
            .map(|(_, frame)| [&vec![0; HEADROOM][..], frame].concat())
            .collect();
        let mut frames: Vec<Frame<'_>> = buffers
            .iter_mut()
            .map(|buffer| {
                let len = buffer.len() - HEADROOM;
                Frame::new(buffer, HEADROOM, len).unwrap()
            })
            .collect();
        mux.process(NOW, &mut frames);
        for (frame, (port, _)) in frames.iter().zip(&packets) {
            let expected = if OF_VM.contains(port) {
                Verdict::Forward(FABRIC)
            } else {
                NO_RULE
            };
            assert_eq!(frame.verdict(), expected, "{port}");
        }
    }
}

#[test]
fn pings_of_a_vip_of_outbound_ports_are_answered_or_ignored_as_its_frontend_says() {
    for family in FAMILIES {
        let ends = from_far(family);
        let ping = packet(ends, family.icmp(), &echo(ends, false, 1030, b"ping"));
        for (option, expected) in [
            (Echo::Answer, Verdict::Reply),
            (Echo::Ignore, Verdict::Drop(DropReason::EchoIgnored)),
            (Echo::Forward, NO_RULE),
        ] {
            for mut mux in [mux(option), stateless_mux(option)] {
                let verdict = mux.give(NOW, From::Outside, &ping).0;
                assert_eq!(verdict, expected, "{family:?}, {option:?}");
            }
        }
    }
}

#[test]
fn a_host_has_no_rule_for_what_asks_a_snat_port_and_no_connection_for_late_answers() {
    for family in FAMILIES {
        let mut host = host();
        for port in OF_VM {
            for question in questions(family, port) {
                assert_eq!(host.give(NOW, From::Outside, &question).0, NO_RULE);
            }
            for answer in answers(family, port) {
                let verdict = host.give(NOW, From::Outside, &answer).0;
                assert_eq!(verdict, NO_CONNECTION, "{family:?}, {port}");
            }
            let error = error_about(family, port);
            assert_eq!(host.give(NOW, From::Outside, &error).0, UNMATCHED);
        }
        // This host's configuration has one vm, so all else is in no block.
        for port in [81, 1023, 2048, 65_535] {
            let all = [questions(family, port), answers(family, port)].concat();
            for packet in all {
                assert_eq!(host.give(NOW, From::Outside, &packet).0, NO_RULE, "{port}");
            }
        }
        let ends = from_far(family);
        let ping = packet(ends, family.icmp(), &echo(ends, false, 1030, b"ping"));
        assert_eq!(host.give(NOW, From::Outside, &ping).0, NO_RULE);
        assert_eq!(host.stats().connections.made, 0);
    }
}

#[test]
fn fragments_for_no_rule_share_the_fate_of_their_first() {
    for family in FAMILIES {
        let ends = from_far(family);
        for port in [1030, 40_000] {
            let parts = fragments(ends, UDP, &udp(ends, (53, port), &[7; 100]), 64, 3);
            let mut host = host();
            for part in &parts {
                assert_eq!(host.give(NOW, From::Outside, part).0, NO_RULE, "{port}");
            }
        }
        for mut mux in [mux(Echo::Forward), stateless_mux(Echo::Forward)] {
            let answer = udp(ends, (53, 40_000), &[7; 100]);
            let ping = echo(ends, true, 40_000, &[7; 100]);
            for (protocol, payload) in [(UDP, answer), (family.icmp(), ping)] {
                for part in fragments(ends, protocol, &payload, 64, 4) {
                    assert_eq!(mux.give(NOW, From::Outside, &part).0, NO_RULE);
                }
            }
        }
    }
}

/// RFC 5382 §4.2, REQ-2: the far end's SYN is of the vm's connection, and no other far end's is.
#[test]
fn a_syn_that_crosses_the_vm_s_own_reaches_it_through_mux_and_host() {
    for family in FAMILIES {
        let (mut host, mut mux) = (host(), mux(Echo::Forward));
        let call = (family.dip(), family.client());
        let syn = packet(call, TCP, &tcp(call, (50_000, 443), SYN, b""));
        let sent = host.pass(NOW, From::Inside, &syn);
        let header = if family.is_ipv6 { 40 } else { 20 };
        let port = u16::from_be_bytes([sent[header], sent[header + 1]]);
        let crossing = segment(family, port, SYN);
        let carried = mux.pass(NOW, From::Outside, &crossing);
        assert_eq!(carried[header..], crossing[header..], "as it was sent");
        let (verdict, got) = host.give(NOW, From::Outside, &crossing);
        assert_eq!(verdict, Verdict::Forward(VM));
        assert_eq!(trio::ends(&got), (family.client(), family.dip()));
        let ends = (family.router(), family.snat());
        let stranger = packet(ends, TCP, &tcp(ends, (443, port), SYN, b""));
        mux.pass(NOW, From::Outside, &stranger);
        assert_eq!(host.give(NOW, From::Outside, &stranger).0, NO_RULE);
    }
}
