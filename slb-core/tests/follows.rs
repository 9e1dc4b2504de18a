//! Packets that do not show their flow at first sight follow it all the same: fragments and ICMP errors in a
//! fleet that changes, errors of each type in each role, and packets with IPv4 options or IPv6 extension headers.

use crate::passing;
use crate::trio;

use std::net::IpAddr;

use passing::{End, Fleet, Node};
use slb_core::spec::{Echo, derived_mac};
use slb_core::wire::checksum::checksum;
use slb_core::{DropReason, Frame, HEADROOM, Verdict};
use trio::{
    Ends, FAMILIES, Family, From, NOW, Role, TCP, UDP, Way, assert_summed, echo, ends, fragment,
    fragments, framed, host, host_of, host_of_way, icmp, inner, mux, packet, proxy_of_way,
    stateless_mux, tcp, tunnelled, udp,
};

const SYN: u8 = 2;
const ACK: u8 = 16;
const CLIENT_PORT: u16 = 5001;

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The port of a service for a protocol.
fn service(protocol: u8) -> u16 {
    match protocol {
        TCP => 80,
        UDP => 53,
        _ => 0,
    }
}

/// A message of a protocol; of an echo, the asking side's port is the identifier.
fn message(ends: Ends, protocol: u8, ports: (u16, u16), flags: u8, data: &[u8]) -> Vec<u8> {
    match protocol {
        TCP => tcp(ends, ports, flags, data),
        UDP => udp(ends, ports, data),
        _ => echo(ends, ports.0 == 0, ports.0.max(ports.1), data),
    }
}

/// The protocol of a packet behind options and extension headers, and what the packet carries.
fn carried(packet: &[u8]) -> (u8, &[u8]) {
    if packet[0] >> 4 == 4 {
        return (packet[9], &packet[usize::from(packet[0] & 15) * 4..]);
    }
    let (mut next, mut at) = (packet[6], 40);
    while matches!(next, 0 | 43 | 44 | 60) {
        let len = match next {
            44 => 8,
            _ => 8 + 8 * usize::from(packet[at + 1]),
        };
        (next, at) = (packet[at], at + len);
    }
    (next, &packet[at..])
}

/// The ports of a carried message; of an echo, its identifier and zero in the place of `message`'s.
fn ports(protocol: u8, carried: &[u8]) -> (u16, u16) {
    match (protocol, carried[0]) {
        (TCP | UDP, _) => (word(carried, 0), word(carried, 2)),
        (_, 0 | 129) => (0, word(carried, 4)),
        _ => (word(carried, 4), 0),
    }
}

/// A client of a fleet whose flow has this vm.
#[derive(Clone, Copy)]
struct Served {
    ends: Ends,
    vm: usize,
}

/// Lets a client of its own begin a flow, and the vm answer.
fn begin(fleet: &mut Fleet, protocol: u8, number: u8) -> Served {
    let client: IpAddr = match fleet.is_ipv6 {
        true => format!("2001:db8:c::{number:x}").parse().unwrap(),
        false => [198, 51, 100, number].into(),
    };
    let ends = (client, passing::vip(fleet.is_ipv6));
    let there = (CLIENT_PORT, service(protocol));
    let first = message(ends, protocol, there, SYN, b"");
    let End::Vm(vm) = fleet.send(&framed(&packet(ends, protocol, &first))) else {
        panic!("no vm takes the flow");
    };
    let back = (passing::vm_address(vm, fleet.is_ipv6), client);
    let answer = message(back, protocol, (there.1, there.0), SYN | ACK, b"");
    let mut answer = framed(&packet(back, protocol, &answer));
    answer[6..12].copy_from_slice(&derived_mac(back.0).0);
    fleet.answer(vm, &answer);
    let second = message(ends, protocol, there, ACK, b"");
    let second = fleet.send(&framed(&packet(ends, protocol, &second)));
    assert_eq!(second, End::Vm(vm));
    Served { ends, vm }
}

/// Sends an ICMP error about an answer that a client got; returns its end.
fn error_about_answer(
    fleet: &mut Fleet,
    protocol: u8,
    served: Served,
    kind: u8,
    is_right: bool,
) -> End {
    let family = FAMILIES[usize::from(fleet.is_ipv6)];
    let back = (served.ends.1, served.ends.0);
    let mut answer = message(back, protocol, (service(protocol), CLIENT_PORT), ACK, b"");
    if protocol == TCP {
        // The last number that the vm has used.
        answer[4..8].copy_from_slice(&1000u32.to_be_bytes());
    }
    let there = (family.router(), back.0);
    let answer = packet(back, protocol, &answer);
    let mut error = icmp(there, kind, 0, [0, 0, 5, 0x78], &answer);
    error[3] ^= if is_right { 0 } else { 0x10 };
    let error = framed(&packet(there, family.icmp(), &error));
    match fleet.process(Node::Mux, passing::FABRIC, &error) {
        (Verdict::Forward(_), frame) => fleet.deliver(frame),
        (Verdict::Drop(reason), _) => End::Dropped(reason),
        (other, _) => End::Kept(other),
    }
}

#[test]
fn fragments_and_errors_follow_a_flow_to_another_host() {
    for family in FAMILIES {
        for protocol in [TCP, UDP, family.icmp()] {
            let mut fleet = Fleet::new(family.is_ipv6);
            let all: Vec<Served> = (1..=60)
                .map(|number| begin(&mut fleet, protocol, number))
                .collect();
            let mut hops = [0, 0];
            for (identification, drained) in [(100, 2), (101, 4), (102, 0)] {
                fleet.drain(drained);
                for &served in &all {
                    let there = (CLIENT_PORT, service(protocol));
                    let long = message(served.ends, protocol, there, ACK, &[7; 2000]);
                    for part in fragments(served.ends, protocol, &long, 800, identification) {
                        let end = fleet.send(&framed(&part));
                        assert_eq!(end, End::Vm(served.vm), "{family:?}, {protocol}");
                        hops[0] += fleet.hops();
                    }
                    let kinds: &[u8] = if family.is_ipv6 {
                        &[1, 2, 3, 4]
                    } else {
                        &[3, 11, 12]
                    };
                    for &kind in kinds {
                        let end = error_about_answer(&mut fleet, protocol, served, kind, true);
                        assert_eq!(end, End::Vm(served.vm), "{family:?}, {protocol}, {kind}");
                        hops[1] += fleet.hops();
                        let end = error_about_answer(&mut fleet, protocol, served, kind, false);
                        assert_eq!(end, End::Dropped(DropReason::IcmpChecksum));
                    }
                    let advice: &[u8] = if family.is_ipv6 { &[] } else { &[4, 5] };
                    for &kind in advice {
                        let end = error_about_answer(&mut fleet, protocol, served, kind, true);
                        assert_eq!(end, End::Dropped(DropReason::IcmpRedirect));
                    }
                }
            }
            assert!(hops.iter().all(|&hops| hops > 20), "{hops:?}");
        }
    }
}

/// A packet of a flow that crossed a role: as its sender sent it, and as it arrived.
struct Crossed {
    sent: Vec<u8>,
    arrived: Vec<u8>,
}

/// Lets a flow begin and be answered. Returns the packet that went to the inside, and the one that went to the
/// outside.
fn cross(
    role: &mut impl Role,
    (family, way): (Family, Way),
    protocol: u8,
    is_from_vm: bool,
) -> [Crossed; 2] {
    let (from, there, sent_ports) = match is_from_vm {
        true => (
            From::Inside,
            (family.dip(), family.client()),
            (CLIENT_PORT, service(protocol)),
        ),
        false => (
            From::Outside,
            (family.client(), family.vip()),
            (CLIENT_PORT, service(protocol)),
        ),
    };
    let other = match from {
        From::Inside => From::Outside,
        From::Outside => From::Inside,
    };
    let sent = packet(
        there,
        protocol,
        &message(there, protocol, sent_ports, SYN, b""),
    );
    let arrived = role.pass(NOW, from, &sent);
    if !is_from_vm {
        assert_eq!(ends(&arrived), way.seen(family));
    }
    let back = (ends(&arrived).1, ends(&arrived).0);
    let (from_port, to_port) = ports(protocol, carried(&arrived).1);
    let answer = message(back, protocol, (to_port, from_port), SYN | ACK, b"");
    let answer = packet(back, protocol, &answer);
    let got = role.pass(NOW, other, &answer);
    let first = Crossed { sent, arrived };
    let second = Crossed {
        sent: answer,
        arrived: got,
    };
    if is_from_vm {
        [second, first]
    } else {
        [first, second]
    }
}

/// The state of an ICMP error that decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// Quotes the IP header and this many bytes.
    Whole(usize),
    /// Quotes a first fragment.
    First,
    /// Quotes a later fragment, whose data has the place of ports.
    Later,
    /// Quotes a packet with options.
    Options,
    /// The error's checksum is wrong.
    Wrong,
    /// The error is itself in fragments.
    InFragments,
}

fn error_of(about: About, there: Ends, (kind, code): (u8, u8), quoted: &[u8]) -> Vec<u8> {
    let head = if there.0.is_ipv6() { 40 } else { 20 };
    let (protocol, payload) = carried(quoted);
    let quote = match about {
        About::Whole(most) => quoted[..quoted.len().min(head + most)].to_vec(),
        About::First => fragment(ends(quoted), protocol, payload, (0, true), 9),
        About::Later => fragment(ends(quoted), protocol, payload, (16, false), 9),
        About::Options => dressed(quoted, 0),
        About::Wrong | About::InFragments => quoted.to_vec(),
    };
    let mut error = icmp(there, kind, code, [0, 0, 5, 0x78], &quote);
    if about == About::Wrong {
        error[3] ^= 0x10;
    }
    let protocol = if there.0.is_ipv6() { 58 } else { 1 };
    match about {
        About::InFragments => fragment(there, protocol, &error, (0, true), 77),
        _ => packet(there, protocol, &error),
    }
}

fn errors_of_each_type(
    name: &str,
    mut role: impl Role,
    (family, way): (Family, Way),
    is_from_vm: bool,
) {
    let kinds: Vec<(u8, u8)> = if family.is_ipv6 {
        let unreachable = (0..8).map(|code| (1, code));
        // Unassigned types of errors are handed on too (RFC 4443 §2.4 a).
        let others = [(2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (5, 0)];
        unreachable.chain(others).collect()
    } else {
        let unreachable = (0..16).map(|code| (3, code));
        let others = [(11, 0), (11, 1), (12, 0), (12, 1), (4, 0), (5, 0), (5, 1)];
        unreachable.chain(others).collect()
    };
    let before: IpAddr = match family.is_ipv6 {
        true => "fd00:10::fe".parse().unwrap(),
        false => "10.10.1.254".parse().unwrap(),
    };
    for protocol in [TCP, UDP, family.icmp()] {
        let [inward, outward] = cross(&mut role, (family, way), protocol, is_from_vm);
        for (from, crossed, source) in [
            (From::Outside, &outward, family.router()),
            (From::Outside, &outward, ends(&outward.arrived).1),
            (From::Inside, &inward, ends(&inward.arrived).1),
            (From::Inside, &inward, before),
        ] {
            let there = (source, ends(&crossed.arrived).0);
            for &kind in &kinds {
                for about in [
                    About::Whole(8),
                    About::Whole(400),
                    About::First,
                    About::Later,
                    About::Options,
                    About::Wrong,
                    About::InFragments,
                ] {
                    let error = error_of(about, there, kind, &crossed.arrived);
                    let (verdict, told) = role.give(NOW, from, &error);
                    let is_forwarded = matches!(verdict, Verdict::Forward(_));
                    let what = format!(
                        "{name}, {family:?}, {way:?}, {protocol}, {from:?}, {source}, {kind:?}, \
                         {about:?}: {verdict:?}"
                    );
                    let is_advice = !family.is_ipv6 && matches!(kind.0, 4 | 5);
                    match about {
                        // No flow can be told from it: a backend's may be about a direct packet, and crosses
                        // a proxy.
                        About::Later if name == "proxy" && from == From::Inside => continue,
                        _ if is_advice => {
                            assert!(!is_forwarded, "{what}");
                            continue;
                        }
                        About::Later | About::Wrong | About::InFragments => {
                            assert!(!is_forwarded, "{what}");
                            continue;
                        }
                        _ => assert!(is_forwarded, "{what}"),
                    }
                    assert_summed(ends(&told), family.icmp(), carried(&told).1);
                    let quote = &carried(&told).1[8..];
                    assert_eq!(ends(quote), ends(&crossed.sent), "{what}");
                    let (_, quoted) = carried(quote);
                    let sent = carried(&crossed.sent).1;
                    // Ports or identifier, and the sender's checksum if it is quoted.
                    assert_eq!(quoted[..8], sent[..8], "{what}");
                    if !family.is_ipv6 {
                        let header = &quote[..usize::from(quote[0] & 15) * 4];
                        assert_eq!(checksum(header), 0, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn errors_of_each_type_follow_their_flow_or_are_refused() {
    for family in FAMILIES {
        for way in [
            Way::Plain,
            Way::FloatingIp,
            Way::SourceNat,
            Way::ThroughMux,
            Way::Resets,
        ] {
            errors_of_each_type("host", host_of_way(way), (family, way), false);
            if way != Way::ThroughMux {
                errors_of_each_type("proxy", proxy_of_way(way), (family, way), false);
            }
        }
        errors_of_each_type("SNAT", host(), (family, Way::Plain), true);
    }
}

/// Ways to put something between the IP header and the transport header.
const DRESSES: usize = 5;

/// The packet with IPv4 options, or with IPv6 extension headers.
fn dressed(packet: &[u8], dress: usize) -> Vec<u8> {
    let head = if packet[0] >> 4 == 6 { 40 } else { 20 };
    let (header, payload) = packet.split_at(head);
    let mut header = header.to_vec();
    if head == 20 {
        let options: &[u8] = match dress {
            0 => &[0x94, 4, 0, 0],           // router alert (RFC 2113)
            1 => &[7, 7, 4, 0, 0, 0, 0, 0],  // record route (RFC 791 §3.1)
            2 => &[68, 8, 5, 0, 0, 0, 0, 0], // timestamp
            3 => &[1, 1, 1, 0],              // no operation, end
            _ => &[0; 40],
        };
        header[0] += (options.len() / 4) as u8;
        header.extend(options);
        let len = (header.len() + payload.len()) as u16;
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header[10..12].fill(0);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        return [&header, payload].concat();
    }
    let next = header[6];
    const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];
    let padded = |next| [&[next, 0], &PADDING[..]].concat();
    // A fragment that is the whole datagram (RFC 6946).
    let atomic = [next, 0, 0, 0, 0, 0, 0, 9].to_vec();
    let (first, extensions) = match dress {
        0 => (60, padded(next)),
        // Hop-by-hop options with a router alert (RFC 2711), then destination options.
        1 => (0, [vec![60, 0, 5, 2, 0, 0, 1, 0], padded(next)].concat()),
        2 => (44, atomic),
        // A segment routing header whose segments are all done (RFC 8754).
        3 => (43, [&[next, 2, 4, 0, 0, 0, 0, 0][..], &[0x20; 16]].concat()),
        _ => (60, [padded(44), atomic].concat()),
    };
    header[6] = first;
    let len = (extensions.len() + payload.len()) as u16;
    header[4..6].copy_from_slice(&len.to_be_bytes());
    [&header, &extensions[..], payload].concat()
}

/// Sends a dressed question and a dressed answer through a role.
fn ask_dressed(mut role: impl Role, (family, way): (Family, Way), dress: usize) {
    for protocol in [TCP, UDP, family.icmp()] {
        let what = format!("{family:?}, {way:?}, {protocol}, {dress}");
        let there = (family.client(), family.vip());
        let question = message(
            there,
            protocol,
            (CLIENT_PORT, service(protocol)),
            SYN,
            b"ask",
        );
        let question = dressed(&packet(there, protocol, &question), dress);
        let arrived = role.pass(NOW, From::Outside, &question);
        let seen = way.seen(family);
        assert_eq!(ends(&arrived), seen, "{what}");
        assert_eq!(arrived.len(), question.len(), "{what}");
        assert_eq!(carried(&arrived).0, protocol, "{what}");
        assert_summed(seen, protocol, carried(&arrived).1);
        let back = (seen.1, seen.0);
        let (from, to) = ports(protocol, carried(&arrived).1);
        let answer = message(back, protocol, (to, from), SYN | ACK, b"answer");
        let answer = dressed(&packet(back, protocol, &answer), dress);
        let got = role.pass(NOW, From::Inside, &answer);
        assert_eq!(ends(&got), (there.1, there.0), "{what}");
        assert_summed(ends(&got), protocol, carried(&got).1);
        let expected = match protocol {
            TCP | UDP => (service(protocol), CLIENT_PORT),
            _ => (0, CLIENT_PORT),
        };
        assert_eq!(ports(protocol, carried(&got).1), expected, "{what}");
    }
}

#[test]
fn options_and_extension_headers_are_translated_around() {
    for family in FAMILIES {
        for dress in 0..DRESSES {
            for way in [Way::Plain, Way::FloatingIp, Way::SourceNat, Way::ThroughMux] {
                ask_dressed(host_of_way(way), (family, way), dress);
                if way != Way::ThroughMux {
                    ask_dressed(proxy_of_way(way), (family, way), dress);
                }
            }
        }
    }
}

/// The host that a mux of its own sends a packet to, with all of it.
fn chosen(pins: bool, packet: &[u8]) -> [u8; 4] {
    let mut mux = if pins {
        mux(Echo::Forward)
    } else {
        stateless_mux(Echo::Forward)
    };
    let frame = framed(packet);
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(&frame);
    let mut frame = Frame::new(&mut buffer, HEADROOM, frame.len()).unwrap();
    mux.process(NOW, std::slice::from_mut(&mut frame));
    assert!(matches!(frame.verdict(), Verdict::Forward(_)));
    assert_eq!(inner(frame.bytes()).len(), packet.len());
    host_of(frame.bytes())
}

#[test]
fn options_and_extension_headers_change_no_backend() {
    for family in FAMILIES {
        for pins in [false, true] {
            let mut plain = if pins {
                mux(Echo::Forward)
            } else {
                stateless_mux(Echo::Forward)
            };
            for port in 6000..6020 {
                for protocol in [TCP, UDP, family.icmp()] {
                    let there = (family.client(), family.vip());
                    let message = message(there, protocol, (port, service(protocol)), SYN, b"");
                    let packet = packet(there, protocol, &message);
                    let (host, _) = tunnelled(&mut plain, &packet);
                    for dress in 0..DRESSES {
                        assert_eq!(chosen(pins, &dressed(&packet, dress)), host, "{dress}");
                    }
                }
            }
        }
    }
}
