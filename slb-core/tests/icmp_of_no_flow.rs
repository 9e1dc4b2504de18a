//! ICMP messages that resemble those of a ping or of an error about a flow, and are neither, in every role.

use crate::trio;

use std::net::{IpAddr, Ipv6Addr};

use slb_core::spec::Echo;
use slb_core::{DropReason, Verdict};
use trio::{
    BACKEND, Ends, FAMILIES, Family, From, NOW, Role, TCP, UDP, Way, echo, ends, host, host_of_way,
    icmp, mux, packet, proxy_of_way, tcp, udp,
};

const WAYS: [Way; 2] = [Way::Plain, Way::SourceNat];

fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}

fn message(packet: &[u8]) -> &[u8] {
    &packet[if packet[0] >> 4 == 6 { 40 } else { 20 }..]
}

fn ping(there: Ends, family: Family, identifier: u16) -> Vec<u8> {
    packet(
        there,
        family.icmp(),
        &echo(there, false, identifier, b"ping"),
    )
}

fn unreachable(there: Ends, family: Family, quoted: &[u8]) -> Vec<u8> {
    let (kind, code) = if family.is_ipv6 { (1, 0) } else { (3, 1) };
    packet(
        there,
        family.icmp(),
        &icmp(there, kind, code, [0; 4], quoted),
    )
}

/// A question that is neither an echo nor an error: of the time (RFC 792), or of a node's name (RFC 4620).
fn question(there: Ends, family: Family, identifier: u16) -> Vec<u8> {
    let kind = if family.is_ipv6 { 139 } else { 13 };
    let [high, low] = identifier.to_be_bytes();
    let rest = [high, low, 0, 1];
    packet(there, family.icmp(), &icmp(there, kind, 0, rest, &[0; 12]))
}

/// RFC 1122 §3.2.2, RFC 4443 §2.4 e: no host sends an error about an error.
#[test]
fn errors_about_errors_are_of_no_flow() {
    let unmatched = dropped(DropReason::IcmpUnmatched);
    for family in FAMILIES {
        for identifier in [0, 7] {
            for way in WAYS {
                let there = (family.client(), family.vip());
                let back = (family.vip(), family.client());
                let from_router = (family.router(), family.vip());
                let asked = ping(there, family, identifier);
                let refused = unreachable(back, family, &asked);
                let about = unreachable(from_router, family, &refused);
                let mut mux = mux(Echo::Forward);
                mux.pass(NOW, From::Outside, &asked);
                assert_eq!(mux.give(NOW, From::Outside, &about).0, unmatched);
                check(host_of_way(way), family, [&asked, &about]);
                check(proxy_of_way(way), family, [&asked, &about]);
            }
        }
    }
}

/// An error about an error of a client and one of the server: refused by the role that has the ping.
fn check(mut role: impl Role, family: Family, [asked, about]: [&[u8]; 2]) {
    let arrived = role.pass(NOW, From::Outside, asked);
    let (verdict, _) = role.give(NOW, From::Outside, about);
    assert_eq!(verdict, dropped(DropReason::IcmpUnmatched), "{family:?}");
    let (client, server) = ends(&arrived);
    let theirs = unreachable((client, server), family, &ping((server, client), family, 0));
    let about = unreachable((server, client), family, &theirs);
    let (verdict, left) = role.give(NOW, From::Inside, &about);
    let is_translated = matches!(verdict, Verdict::Forward(_)) && left != about;
    assert!(!is_translated, "{verdict:?} {family:?}");
}

/// The identifier of a ping may be zero, which is the port of a protocol without ports.
#[test]
fn other_messages_are_of_no_ping() {
    for family in FAMILIES {
        for identifier in [0, 7] {
            for way in WAYS {
                let there = (family.client(), family.vip());
                let asked = ping(there, family, identifier);
                let other = question(there, family, identifier);
                let (mut host, mut proxy) = (host_of_way(way), proxy_of_way(way));
                let arrived = host.pass(NOW, From::Outside, &asked);
                proxy.pass(NOW, From::Outside, &asked);
                let (verdict, _) = host.give(NOW, From::Outside, &other);
                assert_eq!(verdict, dropped(DropReason::NoRule), "{family:?} {way:?}");
                // A proxy is a bridge for what no rule wants.
                let crosses = (Verdict::Forward(BACKEND), other.clone());
                assert_eq!(proxy.give(NOW, From::Outside, &other), crosses);
                let (client, server) = ends(&arrived);
                let other = question((server, client), family, identifier);
                for (verdict, left) in [
                    host.give(NOW, From::Inside, &other),
                    proxy.give(NOW, From::Inside, &other),
                ] {
                    let is_forwarded = matches!(verdict, Verdict::Forward(_));
                    assert!(!is_forwarded || left == other, "{family:?} {way:?}");
                }
            }
        }
    }
}

#[test]
fn other_messages_are_of_no_ping_of_a_vm() {
    for family in FAMILIES {
        for identifier in [0, 7] {
            let mut host = host();
            let there = (family.dip(), family.client());
            let sent = host.pass(NOW, From::Inside, &ping(there, family, identifier));
            let (verdict, _) = host.give(NOW, From::Inside, &question(there, family, identifier));
            assert_eq!(verdict, dropped(DropReason::NoOutboundRule), "{family:?}");
            let given = u16::from_be_bytes([message(&sent)[4], message(&sent)[5]]);
            let back = (family.client(), family.snat());
            let (verdict, _) = host.give(NOW, From::Outside, &question(back, family, given));
            assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
            // The ping goes on.
            let answer = packet(back, family.icmp(), &echo(back, true, given, b"ping"));
            let got = host.pass(NOW, From::Outside, &answer);
            assert_eq!(ends(&got), (family.client(), family.dip()));
        }
    }
}

/// A rule for every protocol takes them, beside pings and after them.
#[test]
fn a_rule_for_every_protocol_takes_other_messages() {
    for family in FAMILIES {
        for identifier in [0, 7] {
            let there = (family.client(), family.whole_vip());
            let (mut host, mut proxy) = (host_of_way(Way::Plain), proxy_of_way(Way::Plain));
            for asked in [
                ping(there, family, identifier),
                question(there, family, identifier),
            ] {
                for got in [
                    host.pass(NOW, From::Outside, &asked),
                    proxy.pass(NOW, From::Outside, &asked),
                ] {
                    assert_eq!(ends(&got), (family.client(), family.dip()));
                }
            }
        }
    }
}

/// A redirect or source quench about a quoted packet, for `to`.
fn advice(family: Family, kind: (u8, u8), to: IpAddr, quoted: &[u8]) -> Vec<u8> {
    if !family.is_ipv6 {
        let there = (family.router(), to);
        let message = icmp(there, kind.0, kind.1, [203, 0, 113, 9], quoted);
        return packet(there, family.icmp(), &message);
    }
    let there = ("fe80::1".parse().unwrap(), to);
    let mut data = Vec::new();
    for address in [
        "fe80::bad".parse::<Ipv6Addr>().unwrap().into(),
        ends(quoted).1,
    ] {
        let IpAddr::V6(address) = address else {
            unreachable!("of one family")
        };
        data.extend(address.octets());
    }
    let padded = quoted.len().next_multiple_of(8);
    data.extend([4, (1 + padded / 8) as u8, 0, 0, 0, 0, 0, 0]);
    data.extend(quoted);
    data.resize(data.len() + padded - quoted.len(), 0);
    packet(there, 58, &icmp(there, 137, 0, [0; 4], &data))
}

/// A forger writes any packet into a redirect, and any destination on it.
#[test]
fn advice_about_a_vm_s_calls_is_dropped_whomever_it_is_for() {
    for family in FAMILIES {
        let there = (family.dip(), family.client());
        for (protocol, inner) in [
            (TCP, tcp(there, (4000, 443), 2, b"")),
            (UDP, udp(there, (4000, 443), b"question")),
            (family.icmp(), echo(there, false, 4000, b"ping")),
        ] {
            let call = packet(there, protocol, &inner);
            let mut host = host();
            let sent = host.pass(NOW, From::Inside, &call);
            for kind in [(4, 0), (5, 0), (5, 1)] {
                for to in [family.snat(), family.dip()] {
                    for quoted in [&sent, &call] {
                        let advice = advice(family, kind, to, quoted);
                        for from in [From::Outside, From::Inside] {
                            let (verdict, _) = host.give(NOW, from, &advice);
                            let forwarded = matches!(verdict, Verdict::Forward(_));
                            assert!(!forwarded, "{family:?} {protocol} {kind:?} for {to}");
                        }
                    }
                }
            }
        }
    }
}
