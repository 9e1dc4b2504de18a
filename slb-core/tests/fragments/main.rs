//! Fragments of a datagram belong together in every role, whatever order they come in and whatever
//! headers they begin with.

mod waiting;

use crate::trio;

use slb_core::spec::Echo;
use slb_core::{DropReason, Verdict};
use trio::{
    DESTINATION_OPTIONS, Ends, FAMILIES, Family, From, NOW, Role, TCP, UDP, assert_summed, echo,
    ends, fragment, fragments, host, mux, packet, proxy, reassembled, stateless_mux, tcp,
    tunnelled, udp,
};

const SYN: u8 = 2;
const ACK: u8 = 16;
const TINY: Verdict = Verdict::Drop(DropReason::TinyFragment);
const HELD: Verdict = Verdict::Drop(DropReason::FragmentHeld);
const MISSING: Verdict = Verdict::Drop(DropReason::FragmentWithoutFirst);

/// Bytes that tell where they stand.
fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 8 + i) as u8).collect()
}

/// An IPv6 destination-options header of 8 bytes before a payload.
fn behind_options(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![protocol, 0, 1, 4, 0, 0, 0, 0];
    bytes.extend(payload);
    bytes
}

/// A packet as it is after a hop.
fn hop(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let hop_limit = if packet[0] >> 4 == 6 { 7 } else { 8 };
    packet[hop_limit] -= 1;
    trio::with_header_checksum(packet)
}

/// Datagrams in fragments: ends, the protocol in the fragments' own headers, that behind all
/// headers, and where that begins.
type Datagram = (Ends, u8, Vec<u8>, (u8, usize));

/// Datagrams from the client to the VIP that rules take.
fn datagrams(family: Family) -> Vec<Datagram> {
    let there = (family.client(), family.vip());
    let udp = udp(there, (5000, 53), &data(2000));
    let tcp = tcp(there, (5000, 80), ACK, &data(2000));
    let ping = echo(there, false, 77, &data(2000));
    let icmp = family.icmp();
    let mut all = vec![
        (there, UDP, udp.clone(), (UDP, 0)),
        (there, TCP, tcp.clone(), (TCP, 0)),
        (there, icmp, ping.clone(), (icmp, 0)),
    ];
    if family.is_ipv6 {
        for (protocol, payload) in [(UDP, udp), (TCP, tcp), (icmp, ping)] {
            let payload = behind_options(protocol, &payload);
            all.push((there, DESTINATION_OPTIONS, payload, (protocol, 8)));
        }
    }
    all
}

#[test]
fn a_mux_sends_all_fragments_to_the_backend_and_rule_of_the_first() {
    for family in FAMILIES {
        for (i, (there, next, payload, _)) in datagrams(family).into_iter().enumerate() {
            for mut mux in [mux(Echo::Forward), stateless_mux(Echo::Forward)] {
                let parts = fragments(there, next, &payload, 800, i as u32 + 1);
                let found: Vec<_> = parts.iter().map(|part| tunnelled(&mut mux, part)).collect();
                assert!(found.iter().all(|(to, _)| *to == found[0].0), "{i}");
                let inside: Vec<_> = found.into_iter().map(|(_, inside)| inside).collect();
                assert_eq!(reassembled(&inside), (there, payload.clone()));
                let rule = (0..8).find(|&rule| {
                    let counters = mux.rule_counters(rule);
                    counters.is_some_and(|counters| counters.forwarded.packets > 0)
                });
                let counters = mux.rule_counters(rule.unwrap()).unwrap();
                assert_eq!(counters.forwarded.packets, parts.len() as u64);
            }
        }
    }
}

/// Two datagrams whose backends differ, fragment by fragment in turn.
#[test]
fn fragments_of_two_datagrams_do_not_mix() {
    for family in FAMILIES {
        let there = (family.client(), family.vip());
        let mut mux = mux(Echo::Forward);
        let datagrams: Vec<_> = (0..20)
            .map(|n| {
                let payload = udp(there, (6000 + n, 53), &data(1500));
                fragments(there, UDP, &payload, 800, n.into())
            })
            .collect();
        let first: Vec<_> = datagrams
            .iter()
            .map(|d| tunnelled(&mut mux, &d[0]).0)
            .collect();
        let later: Vec<_> = datagrams
            .iter()
            .map(|d| tunnelled(&mut mux, &d[1]).0)
            .collect();
        assert_eq!(first, later);
        assert!(first.iter().any(|to| *to != first[0]));
    }
}

/// There and back: what the server gets, and what the client gets of its echo.
fn there_and_back(role: &mut impl Role, family: Family) {
    for (i, (there, next, payload, (protocol, start))) in datagrams(family).into_iter().enumerate()
    {
        if protocol == TCP {
            let syn = packet(there, TCP, &tcp(there, (5000, 80), SYN, b""));
            role.pass(NOW, From::Outside, &syn);
        }
        let parts = fragments(there, next, &payload, 800, 100 + i as u32);
        let got: Vec<_> = parts
            .iter()
            .map(|part| role.pass(NOW, From::Outside, part))
            .collect();
        let (got_ends, mut got) = reassembled(&got);
        assert_eq!(got_ends, (family.client(), family.dip()), "{family:?} {i}");
        assert_summed(got_ends, protocol, &got[start..]);
        // The server sends it back.
        let back = (family.dip(), family.client());
        let transport = got.split_off(start);
        let mut answer = if protocol == family.icmp() {
            let identifier = u16::from_be_bytes([transport[4], transport[5]]);
            echo(back, true, identifier, &transport[8..])
        } else if protocol == TCP {
            tcp(back, (8080, 5000), ACK, &transport[20..])
        } else {
            udp(back, (53, 5000), &transport[8..])
        };
        if start > 0 {
            answer = behind_options(protocol, &answer);
        }
        let parts = fragments(back, next, &answer, 800, 200 + i as u32);
        let got: Vec<_> = parts
            .iter()
            .map(|part| role.pass(NOW, From::Inside, part))
            .collect();
        let (got_ends, got) = reassembled(&got);
        assert_eq!(got_ends, (family.vip(), family.client()), "{family:?} {i}");
        assert_summed(got_ends, protocol, &got[start..]);
    }
}

#[test]
fn a_host_agent_and_a_proxy_translate_all_fragments() {
    for family in FAMILIES {
        there_and_back(&mut host(), family);
        there_and_back(&mut proxy(), family);
    }
}

/// A vm's ping in fragments, under a SNAT identifier; and the answer's fragments, at mux and host.
#[test]
fn fragments_of_a_vm_s_ping_and_of_its_answer_follow_their_first() {
    for family in FAMILIES {
        let (mut host, mut mux) = (host(), mux(Echo::Answer));
        let there = (family.dip(), family.client());
        let request = echo(there, false, 0x1234, &data(2500));
        let parts = fragments(there, family.icmp(), &request, 800, 1);
        let sent: Vec<_> = parts
            .iter()
            .map(|part| host.pass(NOW, From::Inside, part))
            .collect();
        let (sent_ends, sent) = reassembled(&sent);
        assert_eq!(sent_ends, (family.snat(), family.client()));
        assert_summed(sent_ends, family.icmp(), &sent);
        let identifier = u16::from_be_bytes([sent[4], sent[5]]);
        // The answer meets a mux before the host.
        let back = (family.client(), family.snat());
        let reply = echo(back, true, identifier, &sent[8..]);
        let parts = fragments(back, family.icmp(), &reply, 800, 2);
        let found: Vec<_> = parts.iter().map(|part| tunnelled(&mut mux, part)).collect();
        assert!(found.iter().all(|(to, _)| *to == found[0].0));
        let got: Vec<_> = parts
            .iter()
            .map(|part| host.pass(NOW, From::Outside, part))
            .collect();
        let (got_ends, got) = reassembled(&got);
        assert_eq!(got_ends, (family.client(), family.dip()));
        assert_eq!(got, echo(got_ends, true, 0x1234, &data(2500)));
    }
}

#[test]
fn a_tcp_fragment_that_could_overwrite_flags_is_dropped() {
    for family in FAMILIES {
        let (mut mux, mut host, mut proxy) = (mux(Echo::Forward), host(), proxy());
        let there = (family.client(), family.vip());
        let back = (family.dip(), family.client());
        let syn = packet(there, TCP, &tcp(there, (5000, 80), SYN, b""));
        host.pass(NOW, From::Outside, &syn);
        proxy.pass(NOW, From::Outside, &syn);
        for (from, ends, ports) in [
            (From::Outside, there, (5000, 80)),
            (From::Inside, back, (8080, 5000)),
        ] {
            let segment = tcp(ends, ports, ACK, &data(100));
            let mut give = |part: &[u8], expected: Option<Verdict>| {
                let mut verdicts = vec![host.give(NOW, from, part).0];
                verdicts.push(proxy.give(NOW, from, part).0);
                if from == From::Outside {
                    verdicts.push(mux.give(NOW, from, part).0);
                }
                for verdict in verdicts {
                    match expected {
                        Some(expected) => assert_eq!(verdict, expected),
                        None => assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}"),
                    }
                }
            };
            // First ones without all of the header.
            for len in [0, 8, 16] {
                let tiny = fragment(ends, TCP, &segment[..len], (0, true), 1);
                give(&tiny, Some(TINY));
            }
            let mut with_options = segment.clone();
            with_options[12] = 0x80; // 32 bytes of header
            // Options may go on in the next one over IPv4; over IPv6 the chain is whole (RFC 7112).
            give(
                &fragment(ends, TCP, &with_options[..24], (0, true), 2),
                family.is_ipv6.then_some(TINY),
            );
            give(
                &fragment(ends, TCP, &with_options[..32], (0, true), 2),
                None,
            );
            // Later ones that reach into it, whether or not the first one came.
            for (identification, is_known) in [(3, true), (4, false)] {
                if is_known {
                    let first = fragment(ends, TCP, &segment[..40], (0, true), identification);
                    give(&first, None);
                }
                for offset in [8, 16] {
                    let part = &segment[offset..];
                    let later = fragment(ends, TCP, part, (offset, false), identification);
                    give(&later, Some(TINY));
                }
                if is_known {
                    give(
                        &fragment(ends, TCP, &segment[40..], (40, false), identification),
                        None,
                    );
                }
            }
        }
    }
}

/// The TCP header of an IPv6 datagram may begin behind options in its fragments.
#[test]
fn a_fragment_cannot_overwrite_flags_behind_destination_options() {
    let family = FAMILIES[1];
    let there = (family.client(), family.vip());
    let payload = behind_options(TCP, &tcp(there, (5000, 80), SYN, &data(100)));
    let (mut mux, mut host, mut proxy) = (mux(Echo::Forward), host(), proxy());
    let mut give = |offset: usize, end: usize, more| {
        let part = fragment(
            there,
            DESTINATION_OPTIONS,
            &payload[offset..end],
            (offset, more),
            9,
        );
        let verdicts = [
            mux.give(NOW, From::Outside, &part).0,
            host.give(NOW, From::Outside, &part).0,
            proxy.give(NOW, From::Outside, &part).0,
        ];
        if verdicts.iter().all(|verdict| *verdict == TINY) {
            return false;
        }
        assert!(
            verdicts
                .iter()
                .all(|verdict| matches!(verdict, Verdict::Forward(_))),
            "{verdicts:?}"
        );
        true
    };
    // A chain that is cut in the options, behind them, and in the TCP header.
    for end in [8, 16, 24] {
        assert!(!give(0, end, true), "{end}");
    }
    assert!(give(0, 40, true));
    for offset in [8, 16, 24] {
        assert!(!give(offset, payload.len(), false), "{offset}");
    }
    assert!(give(40, payload.len(), false));
}

/// A first fragment that ends inside an extension header.
#[test]
fn a_cut_header_chain_is_a_tiny_fragment_for_a_vip_and_a_stranger_s_affair() {
    let family = FAMILIES[1];
    for (destination, is_ours) in [(family.vip(), true), (family.router(), false)] {
        let there = (family.client(), destination);
        let options = [UDP, 3, 1, 4, 0, 0, 0, 0]; // announces 32 bytes
        let cut = fragment(there, DESTINATION_OPTIONS, &options, (0, true), 5);
        let verdicts = [
            mux(Echo::Forward).give(NOW, From::Outside, &cut).0,
            proxy().give(NOW, From::Outside, &cut).0,
        ];
        match is_ours {
            true => assert_eq!(verdicts, [TINY; 2]),
            false => {
                assert_eq!(verdicts[0], Verdict::Pass);
                assert_eq!(verdicts[1], Verdict::Forward(trio::BACKEND));
            }
        }
    }
}

#[test]
fn fragments_of_ipv4_are_told_apart_by_their_protocol() {
    let family = FAMILIES[0];
    let there = (family.client(), family.vip());
    let mut mux = mux(Echo::Forward);
    let datagram = udp(there, (5000, 53), &data(1000));
    let ping = echo(there, false, 9, &data(1000));
    let udp = fragments(there, UDP, &datagram, 800, 5);
    let ping = fragments(there, 1, &ping, 800, 5);
    tunnelled(&mut mux, &udp[0]);
    assert_eq!(mux.give(NOW, From::Outside, &ping[1]).0, MISSING);
    tunnelled(&mut mux, &ping[0]);
    assert_eq!(tunnelled(&mut mux, &ping[1]).1, hop(&ping[1]));
    assert_eq!(ends(&tunnelled(&mut mux, &udp[1]).1), there);
}

#[test]
fn pings_in_fragments_that_no_rule_takes_are_ignored() {
    for family in FAMILIES {
        let there = (family.client(), family.vip());
        let mut mux = mux(Echo::Answer);
        let ping = echo(there, false, 9, &data(1000));
        for part in fragments(there, family.icmp(), &ping, 800, 5) {
            let verdict = mux.give(NOW, From::Outside, &part).0;
            assert_eq!(verdict, Verdict::Drop(DropReason::EchoIgnored));
        }
    }
}
