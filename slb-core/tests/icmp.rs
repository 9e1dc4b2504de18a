//! ICMP about other packets in every role: what is passed on, what is dropped, and what a role says
//! itself.

use crate::trio;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use slb_core::nat::NatOptions;
use slb_core::spec::Echo;
use slb_core::{DropReason, MuxOptions, Verdict};
use trio::{
    Ends, FABRIC, FAMILIES, Family, From, NOW, Role, TCP, UDP, Way, assert_readable, assert_summed,
    echo, ends, host, host_of_way, icmp, mux, mux_and_host_of_one_vip, mux_with,
    mux_without_backends, packet, proxy, proxy_that_answers, stateless_mux, tcp, tunnelled, udp,
};

const SYN: u8 = 2;
const ACK: u8 = 16;

fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}

/// The message in an IP packet without options or extension headers.
fn message(packet: &[u8]) -> &[u8] {
    &packet[if packet[0] >> 4 == 6 { 40 } else { 20 }..]
}

/// A connection from the client's port 5000 to the VIP's port 80.
fn open(role: &mut impl Role, family: Family) {
    let there = (family.client(), family.vip());
    let syn = packet(there, TCP, &tcp(there, (5000, 80), SYN, b""));
    role.pass(NOW, From::Outside, &syn);
}

/// The answer of the server to it: under the name that it has inside, and outside.
fn answers(family: Family) -> (Vec<u8>, Vec<u8>) {
    let make = |from: IpAddr, port| {
        let ends = (from, family.client());
        packet(ends, TCP, &tcp(ends, (port, 5000), SYN | ACK, b"answer"))
    };
    (make(family.dip(), 8080), make(family.vip(), 80))
}

/// An ICMP error from a router, that quotes a packet to who sent that.
fn error(family: Family, (kind, code): (u8, u8), quoted: &[u8]) -> Vec<u8> {
    let there = (family.router(), ends(quoted).0);
    let rest = if (family.is_ipv6, kind, code) == (false, 5, 1) {
        [203, 0, 113, 9]
    } else {
        [0, 0, 5, 0x78]
    };
    packet(there, family.icmp(), &icmp(there, kind, code, rest, quoted))
}

/// An ICMPv6 redirect to who sent a packet, which it quotes, or not.
fn redirect6(quoted: &[u8], with_quote: bool) -> Vec<u8> {
    let (sender, target) = ends(quoted);
    let there: Ends = ("fe80::1".parse().unwrap(), sender);
    let mut data = Vec::new();
    for address in ["fe80::bad".parse().unwrap(), target] {
        let IpAddr::V6(address) = address else {
            unreachable!("of one family")
        };
        data.extend(address.octets());
    }
    data.extend([2, 1, 2, 0, 0, 0, 0, 0xbd]); // the target's link-layer address
    if with_quote {
        let padded = quoted.len().next_multiple_of(8);
        data.extend([4, (1 + padded / 8) as u8, 0, 0, 0, 0, 0, 0]);
        data.extend(quoted);
        data.resize(data.len() + padded - quoted.len(), 0);
    }
    packet(there, 58, &icmp(there, 137, 0, [0; 4], &data))
}

/// Errors that are about a translated flow, and to be passed on.
fn kinds(family: Family) -> &'static [(u8, u8)] {
    if family.is_ipv6 {
        &[(1, 0), (2, 0), (3, 0), (4, 1)]
    } else {
        &[(3, 1), (3, 4), (11, 0), (12, 0)]
    }
}

#[test]
fn errors_with_a_wrong_checksum_are_dropped() {
    for family in FAMILIES {
        let (mut mux, mut host, mut proxy) = (mux(Echo::Forward), host(), proxy());
        open(&mut host, family);
        open(&mut proxy, family);
        let (inside, outside) = answers(family);
        proxy.pass(NOW, From::Inside, &inside);
        host.pass(NOW, From::Inside, &inside);
        // The client's own packet as the server got it, which a router behind it complains about.
        let there = (family.client(), family.dip());
        let arrived = packet(there, TCP, &tcp(there, (5000, 8080), ACK, b""));
        for &kind in kinds(family) {
            let inward = error(family, kind, &outside);
            let outward = error(family, kind, &arrived);
            let at = inward.len() - message(&inward).len() + 2;
            for flip in [[0, 0], [0, 1], [0x80, 0], [0xff, 0xff]] {
                let spoilt = |packet: &[u8]| {
                    let mut packet = packet.to_vec();
                    packet[at] ^= flip[0];
                    packet[at + 1] ^= flip[1];
                    packet
                };
                let check = |(verdict, _): (Verdict, Vec<u8>)| match flip {
                    [0, 0] => assert!(
                        matches!(verdict, Verdict::Forward(_)),
                        "{verdict:?} {family:?} {kind:?}"
                    ),
                    _ => assert_eq!(verdict, dropped(DropReason::IcmpChecksum), "{kind:?}"),
                };
                check(mux.give(NOW, From::Outside, &spoilt(&inward)));
                check(host.give(NOW, From::Outside, &spoilt(&inward)));
                check(proxy.give(NOW, From::Outside, &spoilt(&inward)));
                check(host.give(NOW, From::Inside, &spoilt(&outward)));
                check(proxy.give(NOW, From::Inside, &spoilt(&outward)));
            }
        }
    }
}

/// A mux chooses a ping's slot without its identifier. The error quotes the answer.
#[test]
fn errors_about_a_ping_go_to_the_backend_of_the_ping() {
    for family in FAMILIES {
        for vip in [family.vip(), family.whole_vip()] {
            for mut mux in [mux(Echo::Forward), stateless_mux(Echo::Forward)] {
                let (there, back) = ((family.client(), vip), (vip, family.client()));
                for identifier in 1..30 {
                    let ping = packet(there, family.icmp(), &echo(there, false, identifier, b""));
                    let answer = echo(back, true, identifier, &[7; 600]);
                    let error = error(
                        family,
                        kinds(family)[1],
                        &packet(back, family.icmp(), &answer),
                    );
                    let (of_ping, _) = tunnelled(&mut mux, &ping);
                    let (of_error, _) = tunnelled(&mut mux, &error);
                    assert_eq!(of_error, of_ping, "{vip} {identifier}");
                }
            }
        }
    }
}

/// A rule balances the VIP's pings, and vms ping from it: what quotes a vm's request, and the answer to
/// that, are the vm's.
#[test]
fn errors_about_a_vm_s_own_ping_reach_the_vm_beside_a_rule_for_pings() {
    for family in FAMILIES {
        let (mut mux, mut host) = mux_and_host_of_one_vip();
        let icmp = family.icmp();
        for identifier in [0, 1, 77, 0xffff] {
            let asks = (family.dip(), family.client());
            let request = packet(asks, icmp, &echo(asks, false, identifier, b"ping"));
            let sent = host.pass(NOW, From::Inside, &request);
            assert_eq!(ends(&sent), (family.vip(), family.client()));
            let given = u16::from_be_bytes([message(&sent)[4], message(&sent)[5]]);
            for &kind in kinds(family) {
                let error = error(family, kind, &sent);
                let (to, inner) = tunnelled(&mut mux, &error);
                assert_eq!(to, [172, 16, 0, 101], "{kind:?} {identifier}");
                assert_eq!(message(&inner), message(&error));
                let got = host.pass(NOW, From::Outside, &error);
                assert_eq!(ends(&got), (family.router(), family.dip()));
                let quoted = &message(&got)[8..];
                assert_eq!(ends(quoted), asks);
                assert_eq!(message(quoted)[4..6], identifier.to_be_bytes());
            }
            let back = (family.client(), family.vip());
            let reply = packet(back, icmp, &echo(back, true, given, b"ping"));
            assert_eq!(tunnelled(&mut mux, &reply).0, [172, 16, 0, 101]);
        }
    }
}

/// A client's traceroute to the server's own address, and its datagram for a port that is closed there.
#[test]
fn a_backend_s_errors_about_direct_packets_cross_a_proxy() {
    for family in FAMILIES {
        let mut proxy = proxy();
        open(&mut proxy, family);
        let there = (family.client(), family.dip());
        let back = (family.dip(), family.client());
        let direct = packet(there, UDP, &udp(there, (33_000, 33_434), b"probe"));
        assert_eq!(proxy.pass(NOW, From::Outside, &direct), direct);
        let closed = if family.is_ipv6 { (1, 4) } else { (3, 3) };
        let about = |quoted: &[u8]| {
            let refusal = icmp(back, closed.0, closed.1, [0; 4], quoted);
            packet(back, family.icmp(), &refusal)
        };
        assert_eq!(
            proxy.pass(NOW, From::Inside, &about(&direct)),
            about(&direct)
        );
        // That about a packet for the VIP comes from the VIP, and one about no segment in flight is dropped.
        let arrived = packet(there, TCP, &tcp(there, (5000, 8080), SYN, b""));
        let told = proxy.pass(NOW, From::Inside, &about(&arrived));
        assert_eq!(ends(&told), (family.vip(), family.client()));
        let mut forged = arrived;
        let sequence = forged.len() - 16;
        forged[sequence..][..4].fill(0xee);
        let (verdict, _) = proxy.give(NOW, From::Inside, &about(&forged));
        assert_eq!(verdict, dropped(DropReason::IcmpUnmatched));
    }
}

#[test]
fn a_checksum_covers_all_of_a_cut_quote_and_no_padding() {
    for family in FAMILIES {
        let (_, outside) = answers(family);
        let header = outside.len() - message(&outside).len();
        for len in header + 8..outside.len() {
            let error = error(family, kinds(family)[0], &outside[..len]);
            let (verdict, inner) = mux(Echo::Forward).give(NOW, From::Outside, &error);
            assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
            assert_summed(ends(&inner), family.icmp(), message(&inner));
            let mut padded = error.clone();
            padded.extend([0xee; 7]);
            let (verdict, _) = mux(Echo::Forward).give(NOW, From::Outside, &padded);
            assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
        }
    }
}

#[test]
fn redirects_and_source_quench_about_translated_flows_are_dropped() {
    let expected = dropped(DropReason::IcmpRedirect);
    for family in FAMILIES {
        let (mut mux, mut host, mut proxy) = (mux(Echo::Forward), host(), proxy());
        open(&mut host, family);
        open(&mut proxy, family);
        let (inside, outside) = answers(family);
        let there = (family.client(), family.dip());
        let arrived = packet(there, TCP, &tcp(there, (5000, 8080), ACK, b""));
        let there = (family.client(), family.vip());
        let sent = packet(there, TCP, &tcp(there, (5000, 80), ACK, b""));
        let forms = |quoted: &[u8]| -> Vec<Vec<u8>> {
            if family.is_ipv6 {
                vec![redirect6(quoted, true)]
            } else {
                let kinds = [(4, 0), (5, 0), (5, 1), (5, 2), (5, 3)];
                kinds.map(|kind| error(family, kind, quoted)).to_vec()
            }
        };
        // To the server under its name outside and inside; to the client, which sent to the VIP.
        for quoted in [&outside, &inside] {
            for redirect in forms(quoted) {
                assert_eq!(proxy.give(NOW, From::Outside, &redirect).0, expected);
                let at_host = host.give(NOW, From::Outside, &redirect).0;
                assert!(
                    [expected, dropped(DropReason::IcmpUnmatched)].contains(&at_host),
                    "{at_host:?}"
                );
            }
        }
        for redirect in forms(&outside) {
            assert_eq!(mux.give(NOW, From::Outside, &redirect).0, expected);
            assert_eq!(host.give(NOW, From::Outside, &redirect).0, expected);
        }
        for quoted in [&arrived, &sent] {
            for redirect in forms(quoted) {
                assert_eq!(proxy.give(NOW, From::Inside, &redirect).0, expected);
                assert_eq!(host.give(NOW, From::Inside, &redirect).0, expected);
            }
        }
    }
    // Without a quote, an ICMPv6 redirect says by its destination what it is about.
    let ipv6 = FAMILIES[1];
    let there = (ipv6.client(), ipv6.vip());
    let redirect = redirect6(&packet(there, TCP, &tcp(there, (1, 80), ACK, b"")), false);
    assert_eq!(proxy().give(NOW, From::Inside, &redirect).0, expected);
}

#[test]
fn redirects_between_neighbours_cross_a_proxy() {
    for family in FAMILIES {
        let there = (family.client(), family.router());
        let theirs = packet(there, UDP, &udp(there, (1, 2), b"theirs"));
        let redirect = if family.is_ipv6 {
            redirect6(&theirs, true)
        } else {
            error(family, (5, 1), &theirs)
        };
        for from in [From::Outside, From::Inside] {
            let (verdict, packet) = proxy().give(NOW, from, &redirect);
            assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
            assert_eq!(packet, redirect);
        }
    }
}

/// The VIP's answer to a ping, as etherparse and a plain sum find it right.
#[test]
fn an_echo_of_zeros_has_a_checksum_of_ones() {
    let family = FAMILIES[0];
    let there = (family.client(), family.vip());
    for len in [0, 1, 2, 55, 56, 57] {
        for (identifier, data) in [(0, 0), (0, 1), (7, 0)] {
            let mut zeros = vec![0; len];
            if let Some(last) = zeros.last_mut() {
                *last = data;
            }
            let mut request = echo(there, false, identifier, &zeros);
            request[6..8].fill(0);
            request[2..4].fill(0);
            let sum = slb_core::wire::checksum::checksum(&request);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut ask = packet(there, 1, &request);
            ask.extend([0xee; 6]); // Ethernet's padding
            let (verdict, answer) = mux(Echo::Answer).give(NOW, From::Outside, &ask);
            assert_eq!(verdict, Verdict::Reply);
            let answer = &message(&answer)[..8 + len];
            assert_eq!(answer[0], 0);
            let mut expected = answer.to_vec();
            expected[2..4].fill(0);
            let sum = slb_core::wire::checksum::checksum(&expected);
            assert_eq!(answer[2..4], sum.to_be_bytes(), "{len} {identifier} {data}");
        }
    }
}

/// A vm's answer to a ping whose identifier is zero comes back under the same one, through NAT too.
#[test]
fn a_translated_echo_of_zeros_has_a_checksum_of_ones() {
    let family = FAMILIES[0];
    for (is_proxy, zeros) in [(false, 0), (true, 0), (false, 56), (true, 56)] {
        let data = vec![0; zeros];
        let there = (family.client(), family.vip());
        let mut request = icmp(there, 8, 0, [0; 4], &data);
        let back = (family.dip(), family.client());
        let mut reply = icmp(back, 0, 0, [0; 4], &data);
        assert_eq!(reply[2..4], [0xff; 2]);
        request = packet(there, 1, &request);
        reply = packet(back, 1, &reply);
        let answer = if is_proxy {
            let mut proxy = proxy();
            proxy.pass(NOW, From::Outside, &request);
            proxy.pass(NOW, From::Inside, &reply)
        } else {
            let mut host = host();
            host.pass(NOW, From::Outside, &request);
            host.pass(NOW, From::Inside, &reply)
        };
        assert_eq!(ends(&answer), (family.vip(), family.client()));
        assert_eq!(message(&answer)[..4], [0, 0, 0xff, 0xff]);
    }
    // An identifier that SNAT changes to zero and back.
    let mut host = host();
    let there = (family.dip(), family.client());
    let request = packet(there, 1, &icmp(there, 8, 0, [0; 4], &[0; 8]));
    let sent = host.pass(NOW, From::Inside, &request);
    let identifier = [message(&sent)[4], message(&sent)[5], 0, 0];
    let back = (family.client(), family.snat());
    let reply = packet(back, 1, &icmp(back, 0, 0, identifier, &[0; 8]));
    let got = host.pass(NOW, From::Outside, &reply);
    assert_eq!(message(&got), [&[0, 0, 0xff, 0xff][..], &[0; 12]].concat());
}

/// A packet whose hop limit is used up.
fn last_hop(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 6 {
        packet[7] = 1;
        return packet;
    }
    packet[8] = 1;
    trio::with_header_checksum(packet)
}

#[test]
fn a_host_agent_s_errors_come_from_an_address_of_its_own() {
    let own = (Ipv4Addr::new(192, 0, 2, 7), "2001:db8::7".parse().unwrap());
    let configured = NatOptions {
        icmp_source_ipv4: Some(own.0),
        icmp_source_ipv6: Some(own.1),
        ..NatOptions::default()
    };
    for family in FAMILIES {
        for is_configured in [false, true] {
            let mut host = host();
            if is_configured {
                host = host.with_options(configured);
            }
            let expected: IpAddr = match (is_configured, family.is_ipv6) {
                (false, _) => family.underlay(),
                (true, false) => own.0.into(),
                (true, true) => Ipv6Addr::into(own.1),
            };
            let exceeded = if family.is_ipv6 { [3, 0] } else { [11, 0] };
            let too_big = if family.is_ipv6 { [2, 0] } else { [3, 4] };
            // Traceroute from a vm, and what of it does not fit.
            let there = (family.dip(), family.client());
            let probe = packet(there, UDP, &udp(there, (40_001, 33_434), b"x"));
            let long = packet(there, UDP, &udp(there, (40_001, 33_434), &[0; 1700]));
            for (probe, kind) in [(last_hop(probe), exceeded), (long, too_big)] {
                let (verdict, answer) = host.give(NOW, From::Inside, &probe);
                assert_eq!(verdict, Verdict::Reply);
                assert_eq!(ends(&answer), (expected, family.dip()));
                assert_eq!(message(&answer)[..2], kind);
                assert_summed(ends(&answer), family.icmp(), message(&answer));
                assert_readable(&answer);
            }
            // A client's packet that has no hop left for the vm.
            let there = (family.client(), family.vip());
            let syn = last_hop(packet(there, TCP, &tcp(there, (1, 80), SYN, b"")));
            let (verdict, answer) = host.give(NOW, From::Outside, &syn);
            assert_eq!(verdict, Verdict::Forward(FABRIC));
            assert_eq!(ends(&answer), (expected, family.client()));
            assert_eq!(message(&answer)[..2], exceeded);
            assert_summed(ends(&answer), family.icmp(), message(&answer));
        }
    }
}

/// Pings, errors and "too big" have limits of their own: using one up leaves the others.
#[test]
fn no_kind_of_answer_starves_another() {
    for family in FAMILIES {
        no_kind_starves_another_at_a_mux(family);
    }
}

fn no_kind_starves_another_at_a_mux(family: Family) {
    let there = (family.client(), family.vip());
    let ping = packet(there, family.icmp(), &echo(there, false, 1, b"ping"));
    let long = packet(there, UDP, &udp(there, (1, 53), &[0; 1600]));
    let last = last_hop(packet(there, UDP, &udp(there, (1, 53), b"")));
    for first in 0..3 {
        let mut kinds = [&ping, &long, &last];
        kinds.rotate_left(first);
        let mut mux = mux(Echo::Answer);
        for kind in kinds {
            for attempt in 0..200 {
                let (verdict, _) = mux.give(NOW, From::Outside, kind);
                assert_eq!(verdict == Verdict::Reply, attempt < 100, "{attempt}");
            }
        }
        // Ten milliseconds give ten more of each.
        let later = NOW + Duration::from_millis(10);
        for kind in kinds {
            for attempt in 0..20 {
                let (verdict, _) = mux.give(later, From::Outside, kind);
                assert_eq!(verdict == Verdict::Reply, attempt < 10, "{attempt}");
            }
        }
    }
    // Each can be turned off alone.
    let options = MuxOptions {
        answers_per_second: 0,
        ..MuxOptions::default()
    };
    let mut mux = mux_with(Echo::Answer, options);
    let replies = [&ping, &long, &last].map(|kind| mux.give(NOW, From::Outside, kind).0);
    let expected = [
        dropped(DropReason::EchoIgnored),
        Verdict::Reply,
        Verdict::Reply,
    ];
    assert_eq!(replies, expected);
}

#[test]
fn a_vm_s_errors_and_those_about_its_size_have_limits_of_their_own() {
    for family in FAMILIES {
        let mut host = host();
        let there = (family.dip(), family.client());
        let long = packet(there, UDP, &udp(there, (1, 2), &[0; 1700]));
        let last = last_hop(packet(there, UDP, &udp(there, (1, 2), b"")));
        for kind in [&last, &long] {
            for attempt in 0..150 {
                let (verdict, _) = host.give(NOW, From::Inside, kind);
                assert_eq!(verdict == Verdict::Reply, attempt < 100, "{attempt}");
            }
        }
    }
}

/// RSTs, errors and "too big" of a host agent: whichever is used up first, the others have all of theirs.
#[test]
fn a_host_agent_s_resets_have_a_limit_of_their_own() {
    for family in FAMILIES {
        let out = (family.dip(), family.client());
        let long = packet(out, UDP, &udp(out, (1, 2), &[0; 1700]));
        let last = last_hop(packet(out, UDP, &udp(out, (1, 2), b"")));
        let there = (family.client(), family.vip());
        let astray = packet(there, TCP, &tcp(there, (1, 80), ACK, b"data"));
        let kinds = [
            (&long, From::Inside, Verdict::Reply, 100),
            (&last, From::Inside, Verdict::Reply, 100),
            (&astray, From::Outside, Verdict::Forward(FABRIC), 1000),
        ];
        for first in 0..3 {
            let mut host = host_of_way(Way::Resets);
            let mut kinds = kinds;
            kinds.rotate_left(first);
            for (packet, from, answered, at_once) in kinds {
                for attempt in 0..at_once + 50 {
                    let (verdict, _) = host.give(NOW, from, packet);
                    assert_eq!(verdict == answered, attempt < at_once, "{attempt}");
                }
            }
            assert_eq!(host.stats().resets, 1000);
        }
    }
}

/// Pings and RSTs of a proxy, and of a mux that has no backend.
#[test]
fn pings_and_resets_of_a_proxy_and_of_a_mux_have_limits_of_their_own() {
    for family in FAMILIES {
        let there = (family.client(), family.vip());
        let ping = packet(there, family.icmp(), &echo(there, false, 1, b"ping"));
        let astray = packet(there, TCP, &tcp(there, (1, 80), ACK, b"data"));
        let mut kinds = [(&ping, 100), (&astray, 1000)];
        for _ in 0..2 {
            have_limits(proxy_that_answers(), &kinds);
            have_limits(mux_without_backends(), &kinds);
            kinds.reverse();
        }
    }
}

/// So many packets of each kind in turn are answered, and no more.
fn have_limits(mut role: impl Role, kinds: &[(&Vec<u8>, usize)]) {
    for &(packet, at_once) in kinds {
        for attempt in 0..at_once + 50 {
            let (verdict, _) = role.give(NOW, From::Outside, packet);
            assert_eq!(
                verdict == Verdict::Reply,
                attempt < at_once,
                "{attempt}: {verdict:?}"
            );
        }
    }
}
