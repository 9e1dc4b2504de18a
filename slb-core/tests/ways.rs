//! Fragments, echo and ICMP errors under every kind of rule: whatever names server and client have on the
//! inside, and whichever way answers take.

use crate::trio;

use std::net::IpAddr;

use trio::{
    Ends, FAMILIES, Family, From, NOW, Role, TCP, UDP, Way, assert_summed, echo, ends, fragments,
    host_of_way, icmp, packet, proxy_of_way, reassembled, tcp, udp,
};

const SYN: u8 = 2;
const ACK: u8 = 16;

fn transport(packet: &[u8]) -> &[u8] {
    &packet[if packet[0] >> 4 == 6 { 40 } else { 20 }..]
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Sends a datagram in fragments; returns it as it arrives, with its checksum verified.
fn in_fragments(
    role: &mut impl Role,
    from: From,
    ends: Ends,
    protocol: u8,
    payload: &[u8],
) -> (Ends, Vec<u8>) {
    let parts: Vec<_> = fragments(ends, protocol, payload, 800, 7)
        .iter()
        .map(|part| role.pass(NOW, from, part))
        .collect();
    let (ends, payload) = reassembled(&parts);
    assert_summed(ends, protocol, &payload);
    (ends, payload)
}

/// An error about a packet, from there to there: what arrives, and what that quotes.
fn told(role: &mut impl Role, from: From, there: Ends, about: &[u8]) -> (Ends, Vec<u8>) {
    let (kind, code) = if there.0.is_ipv6() { (2, 0) } else { (3, 4) };
    let protocol = if there.0.is_ipv6() { 58 } else { 1 };
    let error = packet(
        there,
        protocol,
        &icmp(there, kind, code, [0, 0, 5, 0x78], about),
    );
    let got = role.pass(NOW, from, &error);
    assert_summed(ends(&got), protocol, transport(&got));
    (ends(&got), transport(&got)[8..].to_vec())
}

/// Errors about a client's packet as it arrived at the server, and about the server's answer as the client
/// got it. `sent` and `answer` are those as their senders made them.
fn errors(
    role: &mut impl Role,
    (family, way): (Family, Way),
    (sent, arrived): (&[u8], &[u8]),
    (answer, got): (&[u8], &[u8]),
) {
    let name = format!("{family:?}, {way:?}");
    let (_, server) = way.seen(family);
    let quoted = |quote: &[u8], original: &[u8]| {
        assert_eq!(ends(quote), ends(original), "{name}");
        // Ports or identifier, and the checksum of the sender's.
        assert_eq!(transport(quote)[..8], transport(original)[..8], "{name}");
    };
    // A router on the way of the answer.
    let (to, quote) = told(role, From::Outside, (family.router(), family.vip()), got);
    assert_eq!(to, (family.router(), server), "{name}");
    quoted(&quote, answer);
    // The server itself, and a router before it, which is not shown.
    let before: IpAddr = match family.is_ipv6 {
        true => "fd00:10::fe".parse().unwrap(),
        false => "10.10.1.254".parse().unwrap(),
    };
    for from in [server, before] {
        let back = (from, ends(arrived).0);
        let (to, quote) = told(role, From::Inside, back, arrived);
        assert_eq!(to, (family.vip(), family.client()), "{name}");
        quoted(&quote, sent);
    }
}

fn there_and_back(mut role: impl Role, family: Family, way: Way) {
    let name = format!("{family:?}, {way:?}");
    let (there, seen) = ((family.client(), family.vip()), way.seen(family));
    let (back, answered) = ((seen.1, seen.0), (family.vip(), family.client()));
    let data = vec![0x5a; 2000];
    // UDP: whole, and in fragments.
    let sent = packet(there, UDP, &udp(there, (5000, 53), b"question"));
    let arrived = role.pass(NOW, From::Outside, &sent);
    assert_eq!(ends(&arrived), seen, "{name}");
    let port = word(transport(&arrived), 0);
    let answer = packet(back, UDP, &udp(back, (53, port), b"answer"));
    let got = role.pass(NOW, From::Inside, &answer);
    assert_eq!(got[got.len() - 14..][..4], [0, 53, 0x13, 0x88], "{name}");
    errors(&mut role, (family, way), (&sent, &arrived), (&answer, &got));
    let question = udp(there, (5000, 53), &data);
    let (ends_seen, question) = in_fragments(&mut role, From::Outside, there, UDP, &question);
    assert_eq!((ends_seen, word(&question, 0)), (seen, port), "{name}");
    let long = udp(back, (53, port), &data);
    let (ends_seen, long) = in_fragments(&mut role, From::Inside, back, UDP, &long);
    assert_eq!((ends_seen, word(&long, 2)), (answered, 5000), "{name}");
    // Echo.
    let icmp = family.icmp();
    let sent = packet(there, icmp, &echo(there, false, 77, b"ping"));
    let arrived = role.pass(NOW, From::Outside, &sent);
    assert_eq!(ends(&arrived), seen, "{name}");
    let identifier = word(transport(&arrived), 4);
    let answer = packet(back, icmp, &echo(back, true, identifier, b"ping"));
    let got = role.pass(NOW, From::Inside, &answer);
    errors(&mut role, (family, way), (&sent, &arrived), (&answer, &got));
    let ping = echo(there, false, 77, &data);
    let (ends_seen, ping) = in_fragments(&mut role, From::Outside, there, icmp, &ping);
    assert_eq!((ends_seen, word(&ping, 4)), (seen, identifier), "{name}");
    let pong = echo(back, true, identifier, &data);
    let (ends_seen, pong) = in_fragments(&mut role, From::Inside, back, icmp, &pong);
    assert_eq!((ends_seen, word(&pong, 4)), (answered, 77), "{name}");
    // TCP.
    let sent = packet(there, TCP, &tcp(there, (5000, 80), SYN, b""));
    let arrived = role.pass(NOW, From::Outside, &sent);
    assert_eq!(ends(&arrived), seen, "{name}");
    let (port, own) = (word(transport(&arrived), 0), word(transport(&arrived), 2));
    let answer = packet(back, TCP, &tcp(back, (own, port), SYN | ACK, b""));
    let got = role.pass(NOW, From::Inside, &answer);
    errors(&mut role, (family, way), (&sent, &arrived), (&answer, &got));
}

#[test]
fn fragments_echo_and_errors_at_a_host_agent() {
    for family in FAMILIES {
        for way in [Way::Plain, Way::FloatingIp, Way::SourceNat, Way::ThroughMux] {
            there_and_back(host_of_way(way), family, way);
        }
    }
}

#[test]
fn fragments_echo_and_errors_at_a_proxy() {
    for family in FAMILIES {
        for way in [Way::Plain, Way::FloatingIp, Way::SourceNat] {
            there_and_back(proxy_of_way(way), family, way);
        }
    }
}
