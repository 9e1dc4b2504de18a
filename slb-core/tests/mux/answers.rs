//! Answers of the mux itself: ICMP errors, and echo replies.

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{BackendState, Echo, Rule, Spec, Terms};
use slb_core::{DropReason, Instant, Key, Mux, Verdict};

use super::dropped;
use super::errors::icmp_error;
use crate::common::*;

/// A reply as etherparse reads it: checksums right, from the VIP to the client, MACs swapped.
fn icmp4(outcome: &Outcome) -> (Icmpv4Type, Vec<u8>) {
    assert_eq!(outcome.verdict, Verdict::Reply);
    assert_eq!(outcome.bytes[..6], CLIENT_MAC);
    let packet = SlicedPacket::from_ethernet(&outcome.bytes).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else {
        panic!("no IPv4")
    };
    let header = ip.header().to_header();
    assert_eq!(header.calc_header_checksum(), header.header_checksum);
    assert_eq!((header.source, header.destination), (VIP, CLIENT));
    assert_eq!(
        usize::from(header.total_len),
        outcome.bytes.len() - packet_offset(&outcome.bytes)
    );
    let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else {
        panic!("no ICMP")
    };
    let expected = icmp.icmp_type().calc_checksum(icmp.payload());
    assert_eq!(icmp.checksum(), expected);
    (icmp.icmp_type(), icmp.payload().to_vec())
}

fn packet_offset(bytes: &[u8]) -> usize {
    match bytes[12..14] {
        [0x81, 0x00] | [0x88, 0xa8] => 4 + packet_offset(&bytes[4..]),
        _ => 14,
    }
}

fn icmp6(outcome: &Outcome) -> (Icmpv6Type, Vec<u8>) {
    assert_eq!(outcome.verdict, Verdict::Reply);
    let packet = SlicedPacket::from_ethernet(&outcome.bytes).unwrap();
    let Some(NetSlice::Ipv6(ip)) = &packet.net else {
        panic!("no IPv6")
    };
    let header = ip.header().to_header();
    assert_eq!((header.source, header.destination), (vip6(), client6()));
    let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else {
        panic!("no ICMPv6")
    };
    assert!(icmp.is_checksum_valid(header.source, header.destination));
    (icmp.icmp_type(), icmp.payload().to_vec())
}

#[test]
fn a_packet_that_does_not_fit_is_answered_with_the_mtu() {
    for (host6, mtu) in [(false, 1550), (true, 1530)] {
        let setup = Setup {
            host6,
            ..Setup::new(3)
        };
        let mut mux = pinned(&setup);
        // The longest that fits, and one byte more.
        let longest = tcp_to(CLIENT, 1, VIP, 80, "A", &vec![7; mtu - 40]);
        assert_eq!(
            tunnelled(&send_one(&mut mux, longest)).inner.len(),
            mtu + 14
        );
        let packet = tcp_to(CLIENT, 1, VIP, 80, "A", &vec![7; mtu - 39]);
        let mut tagged = packet.clone();
        tagged.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
        let reply = send_one(&mut mux, packet.clone());
        for reply in [reply, send_one(&mut mux, tagged)] {
            let (kind, quoted) = icmp4(&reply);
            let expected = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: mtu as u16,
            };
            assert_eq!(kind, Icmpv4Type::DestinationUnreachable(expected));
            assert_eq!(quoted, packet[14..][..548]);
        }
        let data = vec![7; mtu - 47];
        let reply = send_one(&mut mux, udp6(1, &data));
        let (kind, quoted) = icmp6(&reply);
        assert_eq!(kind, Icmpv6Type::PacketTooBig { mtu: mtu as u32 });
        assert_eq!(quoted, udp6(1, &data)[14..][..1280 - 48]);
    }
}

#[test]
fn no_ipv6_sender_is_told_of_less_than_the_least_mtu() {
    let mut setup = Setup::new(3);
    setup.underlay.mtu = 1280;
    let (kind, _) = icmp6(&send_one(&mut stateless(&setup), udp6(1, &[0; 1200])));
    assert_eq!(kind, Icmpv6Type::PacketTooBig { mtu: 1280 });
}

#[test]
fn a_hop_limit_that_runs_out_is_answered() {
    let mut mux = pinned(&Setup::new(3));
    for ttl in [0, 1] {
        let mut packet = tcp(CLIENT, 1, "S");
        packet[22] = ttl;
        right_header(&mut packet);
        let (kind, quoted) = icmp4(&send_one(&mut mux, packet.clone()));
        assert!(matches!(kind, Icmpv4Type::TimeExceeded(_)));
        assert_eq!(quoted, packet[14..]);
        let mut packet = tcp6(1, "S");
        packet[21] = ttl;
        let (kind, quoted) = icmp6(&send_one(&mut mux, packet.clone()));
        assert!(matches!(kind, Icmpv6Type::TimeExceeded(_)));
        assert_eq!(quoted, packet[14..]);
    }
}

#[test]
fn nobody_is_answered_who_must_not_be() {
    let mut mux = pinned(&Setup {
        ha_ports: true,
        ..Setup::new(3)
    });
    let expire = |mut packet: Vec<u8>| {
        packet[22] = 1;
        righted(packet)
    };
    let mut to_many = expire(tcp(CLIENT, 1, "S"));
    to_many[0] = 0xff;
    let mut later = expire(udp_to(CLIENT, 1, VIP, 53, b"a part"));
    later[21] = 7;
    right_header(&mut later);
    let nobodys = [
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
    ];
    for source in nobodys {
        assert_eq!(
            send_one(&mut mux, expire(tcp(source, 1, "S"))).verdict,
            dropped(DropReason::Martian)
        );
    }
    assert_eq!(
        send_one(&mut mux, to_many).verdict,
        dropped(DropReason::HopLimit)
    );
    assert_eq!(
        send_one(&mut mux, later).verdict,
        dropped(DropReason::FragmentWithoutFirst)
    );
    let error = expire(icmp_error(&tcp_to(VIP, 80, CLIENT, 1, "A", b"")));
    assert_eq!(
        send_one(&mut mux, error).verdict,
        dropped(DropReason::HopLimit)
    );
}

#[test]
fn answers_are_limited() {
    let mut mux = pinned(&Setup::new(3));
    let packets: Vec<_> = (0..1000).map(|i| echo(i, b"")).collect();
    let replies = |outcomes: Vec<Outcome>| {
        outcomes
            .iter()
            .filter(|outcome| outcome.verdict == Verdict::Reply)
            .count()
    };
    let now = Instant::from_secs(100);
    assert_eq!(replies(send(&mut mux, now, &packets)), 100);
    let later = now + std::time::Duration::from_millis(10);
    assert_eq!(replies(send(&mut mux, later, &packets)), 10);
    assert_eq!(mux.stats().dropped[DropReason::EchoIgnored].packets, 1890);
}

fn echo(sequence: u16, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv4(CLIENT, VIP, 7)
        .icmpv4_echo_request(0x1234, sequence)
        .write(&mut packet, data)
        .unwrap();
    packet
}

pub(super) fn echo6(sequence: u16, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv6(client6(), vip6(), 7)
        .icmpv6_echo_request(0x1234, sequence)
        .write(&mut packet, data)
        .unwrap();
    packet
}

#[test]
fn an_echo_request_is_answered_ignored_or_forwarded() {
    let mut mux = pinned(&Setup::new(3));
    for data in [&b""[..], b"odd", b"0123456789abcdef"] {
        let (kind, payload) = icmp4(&send_one(&mut mux, echo(9, data)));
        let header = etherparse::IcmpEchoHeader { id: 0x1234, seq: 9 };
        assert_eq!((kind, &payload[..]), (Icmpv4Type::EchoReply(header), data));
        let (kind, payload) = icmp6(&send_one(&mut mux, echo6(9, data)));
        assert_eq!((kind, &payload[..]), (Icmpv6Type::EchoReply(header), data));
    }
    let mut mux = pinned(&Setup {
        echo: Echo::Ignore,
        ..Setup::new(3)
    });
    assert_eq!(
        send_one(&mut mux, echo(9, b"")).verdict,
        dropped(DropReason::EchoIgnored)
    );
    let forward = Setup {
        echo: Echo::Forward,
        ..Setup::new(3)
    };
    assert_eq!(
        send_one(&mut pinned(&forward), echo(9, b"")).verdict,
        dropped(DropReason::NoRule)
    );
    let mut mux = pinned(&Setup {
        ha_ports: true,
        ..forward
    });
    tunnelled(&send_one(&mut mux, echo(9, b"")));
    tunnelled(&send_one(&mut mux, echo6(9, b"")));
}

#[test]
fn echo_requests_and_segments_from_nobody_or_to_many_are_not_answered() {
    let mut setup = Setup::new(1);
    let mut mux = pinned(&setup);
    let ping = |source: [u8; 4]| {
        let mut packet = Vec::new();
        PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
            .ipv4(source, VIP, 64)
            .icmpv4_echo_request(1, 2)
            .write(&mut packet, b"data")
            .unwrap();
        packet
    };
    let nowhere = [
        [0; 4],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [240, 0, 0, 1],
        [255; 4],
    ];
    for source in nowhere.into_iter().chain([VIP]) {
        let verdict = send_one(&mut mux, ping(source)).verdict;
        assert_eq!(verdict, dropped(DropReason::Martian), "{source:?}");
    }
    let mut ping6 = echo6(9, b"");
    ping6[22..38].copy_from_slice(&[0; 16]);
    let unspecified = send_one(&mut mux, ping6);
    assert_eq!(unspecified.verdict, dropped(DropReason::Martian));
    // Link addresses of groups, as destination and as source.
    setup.backends[0].state = BackendState::Down;
    let mut refusing = setup.with_spec(|spec| {
        let terms = Terms {
            tcp_reset: true,
            ..Terms::default()
        };
        let rules: Vec<_> = spec
            .rules
            .iter()
            .map(|rule| Rule { terms, ..*rule })
            .collect();
        let rules = &rules[..];
        let snapshot = Snapshot::new(
            &Spec {
                rules,
                ..spec.clone()
            },
            None,
        )
        .unwrap();
        Mux::with_capacity(snapshot.into(), 100, Key::new([3, 4])).expect("its role")
    });
    let (ping, syn) = (ping(CLIENT), tcp(CLIENT, 1, "S"));
    assert_eq!(send_one(&mut mux, ping.clone()).verdict, Verdict::Reply);
    assert_eq!(send_one(&mut refusing, syn.clone()).verdict, Verdict::Reply);
    for at in [0, 6] {
        let to_group = |packet: &[u8]| {
            let mut packet = packet.to_vec();
            packet[at..at + 6].copy_from_slice(&[0xff; 6]);
            packet
        };
        let outcome = send_one(&mut mux, to_group(&ping));
        assert_eq!(outcome.verdict, dropped(DropReason::EchoIgnored));
        let outcome = send_one(&mut refusing, to_group(&syn));
        assert_eq!(outcome.verdict, dropped(DropReason::NoBackend));
    }
}
