//! A VLAN tag before a packet changes nothing of what becomes of the packet, and answers have the tag too.

use crate::trio;

use slb_core::spec::Echo;
use slb_core::{Frame, HEADROOM, Verdict};
use trio::{
    Ends, FAMILIES, Family, From, NOW, Role, TCP, UDP, fragments, framed, host, icmp, inner, mux,
    packet, proxy, tcp, udp, with_header_checksum,
};

const SYN: u8 = 2;
const ACK: u8 = 16;
/// Tags behind the MAC addresses.
const TAGS: [&[u8]; 4] = [
    &[],
    &[0x81, 0, 0, 42],
    &[0x88, 0xa8, 0, 7],
    &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 42],
];

/// Gives a role a frame with tags; returns the verdict, what is between the MAC addresses and the IP packet,
/// and that packet.
fn give(
    role: &mut impl Role,
    from: From,
    tags: &[u8],
    packet: &[u8],
) -> (Verdict, Vec<u8>, Vec<u8>) {
    fn port<R: Role>(_: &R, from: From) -> slb_core::PortId {
        R::port(from)
    }
    let plain = framed(packet);
    let bytes = [&plain[..12], tags, &plain[12..]].concat();
    let mut buffer = vec![0xa5; HEADROOM];
    buffer.extend(&bytes);
    let mut frame = Frame::new(&mut buffer, HEADROOM, bytes.len()).unwrap();
    frame.set_port(port(role, from));
    role.process(NOW, std::slice::from_mut(&mut frame));
    let out = frame.bytes();
    let mut at = 12;
    while matches!(out.get(at..at + 2), Some([0x81 | 0x88, 0x00 | 0xa8])) {
        at += 4;
    }
    let untagged = [&out[..12], &out[at..]].concat();
    (frame.verdict(), out[12..at].to_vec(), inner(&untagged))
}

fn last_hop(mut packet: Vec<u8>) -> Vec<u8> {
    let hop_limit = if packet[0] >> 4 == 6 { 7 } else { 8 };
    packet[hop_limit] = 1;
    with_header_checksum(packet)
}

fn error(family: Family, kind: (u8, u8), there: Ends, quoted: &[u8]) -> Vec<u8> {
    packet(
        there,
        family.icmp(),
        &icmp(there, kind.0, kind.1, [0, 0, 5, 0x78], quoted),
    )
}

/// Packets of each kind from a client, of which a connection to the VIP has come about.
fn from_outside(family: Family) -> Vec<Vec<u8>> {
    let there = (family.client(), family.vip());
    let back = (family.vip(), family.client());
    let answer = packet(back, TCP, &tcp(back, (80, 5000), SYN | ACK, b""));
    let unreachable = if family.is_ipv6 { (1, 0) } else { (3, 1) };
    let from_router = (family.router(), family.vip());
    let mut spoilt = error(family, unreachable, from_router, &answer);
    *spoilt.last_mut().unwrap() ^= 1;
    let long = udp(there, (5000, 53), &[7; 2000]);
    let mut all = vec![
        packet(there, TCP, &tcp(there, (5000, 80), SYN, b"")),
        packet(there, TCP, &tcp(there, (5000, 80), ACK, b"data")),
        packet(there, TCP, &tcp(there, (5001, 81), SYN, b"")),
        packet(there, UDP, &udp(there, (5000, 53), b"data")),
        packet(there, family.icmp(), &trio::echo(there, false, 9, b"ping")),
        error(family, unreachable, from_router, &answer),
        spoilt,
        last_hop(packet(there, UDP, &udp(there, (5000, 53), b"data"))),
        packet(there, UDP, &udp(there, (5000, 53), &[7; 1600])),
    ];
    all.extend(fragments(there, UDP, &long, 800, 1));
    all
}

/// Packets of each kind from the vm, or a backend: answers, and calls of its own.
fn from_inside(family: Family) -> Vec<Vec<u8>> {
    let back = (family.dip(), family.client());
    let there = (family.client(), family.dip());
    let arrived = packet(there, UDP, &udp(there, (5000, 53), b"data"));
    let unreachable = if family.is_ipv6 { (1, 4) } else { (3, 3) };
    let long = udp(back, (53, 5000), &[7; 2000]);
    let neighbour = match family.is_ipv6 {
        false => "10.99.9.9",
        true => "fd00:99::9",
    };
    let beside = (family.dip(), neighbour.parse().unwrap());
    let mut spoilt = error(family, unreachable, back, &arrived);
    *spoilt.last_mut().unwrap() ^= 1;
    let mut all = vec![
        packet(back, TCP, &tcp(back, (8080, 5000), SYN | ACK, b"")),
        packet(back, UDP, &udp(back, (53, 5000), b"data")),
        packet(back, family.icmp(), &trio::echo(back, true, 9, b"ping")),
        error(family, unreachable, back, &arrived),
        spoilt,
        last_hop(packet(back, UDP, &udp(back, (53, 5000), b"data"))),
        packet(back, UDP, &udp(back, (53, 5000), &[7; 1600])),
        packet(back, TCP, &tcp(back, (40_000, 443), SYN, b"")),
        packet(back, UDP, &udp(back, (40_000, 443), b"call")),
        packet(beside, TCP, &tcp(beside, (40_000, 443), SYN, b"")),
        packet(beside, UDP, &udp(beside, (53, 5000), b"answer")),
        packet(back, family.icmp(), &trio::echo(back, false, 77, b"ping")),
    ];
    all.extend(fragments(back, UDP, &long, 800, 2));
    all
}

/// Checks that tags change no verdict and no byte behind them. A role that routes takes the tags off.
fn tags_change_nothing<R: Role>(
    build: impl Fn() -> R,
    from: From,
    packets: &[Vec<u8>],
    routes: bool,
) {
    let run = |tags: &'static [u8]| -> Vec<(Verdict, Vec<u8>, Vec<u8>)> {
        let mut role = build();
        packets
            .iter()
            .map(|packet| give(&mut role, from, tags, packet))
            .collect()
    };
    let plain = run(&[]);
    for tags in TAGS {
        for (number, (got, expected)) in run(tags).into_iter().zip(&plain).enumerate() {
            let (verdict, own, packet) = got;
            assert_eq!(
                (verdict, &packet),
                (expected.0, &expected.2),
                "{number}, {tags:02x?}"
            );
            let is_routed = routes && matches!(verdict, Verdict::Forward(_));
            let kept = if is_routed { &[][..] } else { tags };
            assert_eq!(own, kept, "{number}, {verdict:?}");
        }
    }
}

#[test]
fn a_mux_sees_through_tags() {
    for family in FAMILIES {
        let packets = from_outside(family);
        tags_change_nothing(|| mux(Echo::Answer), From::Outside, &packets, true);
        tags_change_nothing(|| mux(Echo::Forward), From::Outside, &packets, true);
    }
}

#[test]
fn a_host_agent_sees_through_the_tags_of_its_vms() {
    for family in FAMILIES {
        let build = || {
            let mut host = host();
            for packet in from_outside(family) {
                host.give(NOW, From::Outside, &packet);
            }
            host
        };
        tags_change_nothing(build, From::Inside, &from_inside(family), true);
    }
}

#[test]
fn a_proxy_sees_through_tags_and_leaves_them() {
    for family in FAMILIES {
        tags_change_nothing(proxy, From::Outside, &from_outside(family), false);
        let build = || {
            let mut proxy = proxy();
            for packet in from_outside(family) {
                proxy.give(NOW, From::Outside, &packet);
            }
            proxy
        };
        tags_change_nothing(build, From::Inside, &from_inside(family), false);
    }
}
