//! What a mux does with a packet, read with somebody else's parser.

use crate::common;

use std::net::{IpAddr, Ipv4Addr};

use common::*;
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::hash::{Distribution, Hasher, MICROSOFT_KEY, SipHash13, Toeplitz, TupleHasher};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{BackendState, Echo, Rule, Spec, Terms, UdpChecksum, derived_mac};
use slb_core::{DropReason, Instant, Key, Mux, PortId, SourceLimiter, Verdict};

fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}

/// The packet as it should be inside: other MACs, one hop less, the rest as it was.
fn expected_inner(packet: &[u8], backend: u16) -> Vec<u8> {
    let ipv6 = packet[12..14] == [0x86, 0xdd];
    let mut inner = packet.to_vec();
    inner[..6].copy_from_slice(&derived_mac(dip(backend, ipv6)).0);
    inner[6..12].copy_from_slice(&MUX_MAC);
    if ipv6 {
        inner[21] -= 1;
    } else {
        inner[22] -= 1;
        let header = etherparse::Ipv4Header::from_slice(&inner[14..]).unwrap().0;
        inner[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    }
    inner
}

#[test]
fn a_packet_for_a_vip_goes_to_a_backend_and_is_unchanged_but_for_its_ttl() {
    for host6 in [false, true] {
        let setup = Setup {
            host6,
            ..Setup::new(3)
        };
        let mut mux = pinned(&setup);
        for packet in [
            tcp(CLIENT, 50_000, "S"),
            tcp(CLIENT, 50_000, "A"),
            udp_to(CLIENT, 50_000, VIP, 53, b"query"),
            tcp6(50_000, "S"),
            udp6(50_000, b"odd"),
        ] {
            let outcome = send_one(&mut mux, packet.clone());
            let tunnel = tunnelled(&outcome);
            let backend = backend_of(&outcome);
            assert_eq!(tunnel.inner, expected_inner(&packet, backend));
            assert_eq!(tunnel.host, host(backend, host6));
            assert_eq!(
                tunnel.source,
                if host6 {
                    IpAddr::from(MUX6)
                } else {
                    MUX.into()
                }
            );
            let ipv6 = packet[12..14] == [0x86, 0xdd];
            assert_eq!(tunnel.vni, if ipv6 { 5002 } else { 5001 });
            assert_eq!(
                tunnel.udp_checksum == 0,
                !host6,
                "zero over IPv4, computed over IPv6"
            );
        }
    }
}

#[test]
fn the_outer_udp_checksum_is_as_configured() {
    for (udp_checksum, over_ipv4, over_ipv6) in [
        (UdpChecksum::Auto, false, true),
        (UdpChecksum::Zero, false, false),
        (UdpChecksum::Computed, true, true),
    ] {
        for (host6, expected) in [(false, over_ipv4), (true, over_ipv6)] {
            let mut setup = Setup {
                host6,
                ..Setup::new(3)
            };
            setup.underlay.udp_checksum = udp_checksum;
            for len in 0..9 {
                let packet = udp_to(CLIENT, 5, VIP, 53, &[0xff; 9][..len]);
                let tunnel = tunnelled(&send_one(&mut stateless(&setup), packet));
                assert_eq!(
                    tunnel.udp_checksum != 0,
                    expected,
                    "{udp_checksum:?} {host6}"
                );
            }
        }
    }
}

#[test]
fn dscp_and_ecn_are_copied_out() {
    for host6 in [false, true] {
        let setup = Setup {
            host6,
            ..Setup::new(1)
        };
        for class in 0..=255 {
            let mut packet = tcp(CLIENT, 1, "A");
            packet[15] = class;
            right_header(&mut packet);
            assert_eq!(
                tunnelled(&send_one(&mut stateless(&setup), packet)).traffic_class,
                class
            );
            let mut packet = tcp6(1, "A");
            packet[14] = 0x60 | class >> 4;
            packet[15] = class << 4 | packet[15] & 0x0f;
            assert_eq!(
                tunnelled(&send_one(&mut stateless(&setup), packet)).traffic_class,
                class
            );
        }
    }
}

#[test]
fn tags_and_padding_of_the_link_stay_behind() {
    let setup = Setup::new(1);
    let plain = tcp(CLIENT, 1, "A");
    let expected = expected_inner(&plain, 1);
    let mut tagged = plain.clone();
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
    let mut double = tagged.clone();
    double.splice(12..12, [0x88, 0xa8, 0x00, 0x08]);
    let mut padded = plain.clone();
    padded.resize(60, 0);
    for packet in [plain, tagged, double, padded] {
        assert_eq!(
            tunnelled(&send_one(&mut stateless(&setup), packet)).inner,
            expected
        );
    }
}

#[test]
fn ip_options_and_extension_headers_are_looked_behind() {
    let setup = Setup::new(1);
    let mut with_options = tcp(CLIENT, 1, "A");
    with_options.splice(34..34, [1, 1, 1, 0]);
    with_options[14] = 0x46;
    with_options[17] += 4;
    right_header(&mut with_options);
    let mut with_extension = tcp6(1, "A");
    with_extension.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    with_extension[20] = 60; // destination options
    with_extension[19] += 8;
    for packet in [with_options, with_extension] {
        let tunnel = tunnelled(&send_one(&mut pinned(&setup), packet.clone()));
        assert_eq!(tunnel.inner.len(), packet.len());
        assert_eq!(tunnel.inner[34..], packet[34..]);
    }
}

#[test]
fn what_is_not_ours_is_passed_untouched() {
    let mut mux = pinned(&Setup::new(3));
    let mut arp = vec![0xff; 6];
    arp.extend(CLIENT_MAC);
    arp.extend([0x08, 0x06]);
    arp.extend([0; 28]);
    let mut lldp = arp.clone();
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    let mut expiring = tcp_to(CLIENT, 1, [20, 20, 20, 101], 80, "S", b"");
    expiring[22] = 0;
    for packet in [
        arp,
        lldp,
        expiring,
        tcp_to(VIP, 80, CLIENT, 50_000, "SA", b""),
        udp_to(CLIENT, 1, [8, 8, 8, 8], 53, &[0; 3000]),
    ] {
        assert_eq!(send_one(&mut mux, packet).verdict, Verdict::Pass);
    }
}

#[test]
fn a_vip_without_a_rule_or_a_backend_drops_and_says_so() {
    let mut mux = pinned(&Setup::new(1));
    for packet in [
        tcp_to(CLIENT, 1, VIP, 81, "S", b""),
        tcp_to(CLIENT, 1, VIP, 53, "S", b""),
        udp_to(CLIENT, 1, VIP, 80, b""),
    ] {
        assert_eq!(
            send_one(&mut mux, packet).verdict,
            dropped(DropReason::NoRule)
        );
    }
    let mut sctp = tcp(CLIENT, 1, "S");
    sctp[23] = 132;
    right_header(&mut sctp);
    assert_eq!(
        send_one(&mut mux, sctp).verdict,
        dropped(DropReason::NoRule)
    );
    let mut mux = pinned(&Setup::new(0));
    assert_eq!(
        send_one(&mut mux, tcp(CLIENT, 1, "S")).verdict,
        dropped(DropReason::NoBackend)
    );
    assert_eq!(mux.stats().dropped[DropReason::NoBackend].packets, 1);
}

#[test]
fn ha_ports_take_every_port_and_protocol() {
    let setup = Setup {
        ha_ports: true,
        ..Setup::new(3)
    };
    let mut mux = pinned(&setup);
    let mut sctp = tcp(CLIENT, 1, "S");
    sctp[23] = 132;
    right_header(&mut sctp);
    for packet in [
        tcp_to(CLIENT, 1, VIP, 4321, "S", b""),
        udp_to(CLIENT, 1, VIP, 9, b""),
        sctp,
        tcp6(7, "S"),
    ] {
        tunnelled(&send_one(&mut mux, packet));
    }
}

#[test]
fn broken_packets_for_a_vip_are_dropped_by_reason() {
    let mut mux = pinned(&Setup::new(1));
    let good = tcp(CLIENT, 1, "A");
    let cut = |len: usize| good[..len].to_vec();
    let with = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        righted(packet)
    };
    for (packet, reason) in [
        (cut(40), DropReason::Truncated),
        (cut(good.len() - 1), DropReason::Truncated),
        (with(14, 0x44), DropReason::Malformed),
        (with(14, 0x55), DropReason::Malformed),
        (with(17, 19), DropReason::Malformed),
        (with(17, 39), DropReason::Truncated), // a TCP header that ends too early
        (with(16, 0xff), DropReason::Truncated),
    ] {
        assert_eq!(
            send_one(&mut mux, packet).verdict,
            dropped(reason),
            "{reason}"
        );
    }
    // The same for somebody else is somebody else's to judge.
    let mut other = tcp_to(CLIENT, 1, [9, 9, 9, 9], 80, "A", b"");
    other[17] = 39;
    assert_eq!(send_one(&mut mux, righted(other)).verdict, Verdict::Pass);
}

#[test]
fn no_headroom_is_a_drop_and_the_frame_stays_as_it_was() {
    let setup = Setup::new(1);
    let mut mux = stateless(&setup);
    let packet = tcp(CLIENT, 1, "A");
    for headroom in 0..60 {
        let mut buffer = vec![0; headroom];
        buffer.extend(&packet);
        let mut frames = [slb_core::Frame::new(&mut buffer, headroom, packet.len()).unwrap()];
        mux.process(Instant::from_secs(1), &mut frames);
        if headroom < 50 {
            assert_eq!(frames[0].verdict(), dropped(DropReason::NoHeadroom));
            assert_eq!(frames[0].bytes(), packet);
        } else {
            assert_eq!(frames[0].verdict(), Verdict::Forward(PortId(3)));
        }
    }
}

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
fn martian_and_land_packets_are_dropped_and_others_are_not() {
    let setup = Setup {
        ha_ports: true,
        ..Setup::new(3)
    };
    for mut mux in [pinned(&setup), stateless(&setup)] {
        let mut sent = |packet: Vec<u8>| send_one(&mut mux, packet).verdict;
        for source in [
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [239, 255, 255, 255],
            [240, 0, 0, 1],
            [255, 255, 255, 254],
            [255, 255, 255, 255],
        ] {
            for flags in ["S", "A"] {
                let verdict = sent(tcp(source, 1, flags));
                assert_eq!(verdict, dropped(DropReason::Martian), "{source:?}");
            }
        }
        // The VIP to itself: the same port is land, another is a vm that calls its own VIP.
        let land = sent(tcp_to(VIP, 80, VIP, 80, "S", b""));
        assert_eq!(land, dropped(DropReason::Martian));
        for source in [
            VIP,
            [1, 0, 0, 0],
            [126, 255, 255, 255],
            [223, 255, 255, 255],
        ] {
            let verdict = sent(tcp(source, 5000, "S"));
            assert!(matches!(verdict, Verdict::Forward(_)), "{source:?}");
        }
        for source in [
            [0; 16],
            [[0; 15].as_slice(), &[1]].concat().try_into().unwrap(),
            [0xff; 16],
            vip6(),
        ] {
            let mut packet = tcp6(80, "S");
            packet[22..38].copy_from_slice(&source);
            assert_eq!(sent(packet), dropped(DropReason::Martian), "{source:?}");
        }
        assert!(matches!(sent(tcp6(80, "S")), Verdict::Forward(_)));
    }
}

/// A source route that is used up is a packet like others.
#[test]
fn packets_on_their_sender_s_route_are_dropped() {
    let setup = Setup::new(3);
    for mut mux in [pinned(&setup), stateless(&setup)] {
        let mut sent = |packet: Vec<u8>| send_one(&mut mux, packet).verdict;
        // Loose and strict, with two places; recorded ones are none that are chosen.
        for (kind, pointer, is_on_route) in [
            (131, 4, true),
            (137, 8, true),
            (131, 11, true),
            (137, 12, false),
            (131, 255, false),
            (7, 4, false),
        ] {
            for before in [0, 1, 3] {
                let mut options = vec![1; before];
                options.extend([kind, 11, pointer, 9, 9, 9, 9, 8, 8, 8, 8]);
                options.resize(16, 0);
                let mut packet = tcp([10, 1, 1, 1], 7000, "S");
                packet.splice(34..34, options);
                packet[14] = 0x49;
                packet[17] += 16;
                right_header(&mut packet);
                let verdict = sent(packet);
                let is_dropped = verdict == dropped(DropReason::SourceRoute);
                assert_eq!(is_dropped, is_on_route, "{kind} {pointer}: {verdict:?}");
                assert!(is_dropped || matches!(verdict, Verdict::Forward(_)));
            }
        }
        // Options that cannot be read.
        for options in [
            [131, 11, 99, 0],
            [131, 0, 12, 0],
            [7, 0, 0, 0],
            [1, 1, 1, 131],
            [68; 4],
        ] {
            let mut packet = tcp([10, 1, 1, 1], 7000, "S");
            packet.splice(34..34, options);
            packet[14] = 0x46;
            packet[17] += 4;
            right_header(&mut packet);
            assert!(matches!(
                sent(packet),
                Verdict::Forward(_) | Verdict::Drop(_)
            ));
        }
        for kind in [0, 2, 4] {
            for left in [0, 1, 255] {
                let mut packet = tcp6(7000, "S");
                packet.splice(
                    54..54,
                    [6, 2, kind, left, 0, 0, 0, 0].into_iter().chain([9; 16]),
                );
                packet[20] = 43;
                packet[19] += 24;
                let verdict = sent(packet);
                let is_dropped = verdict == dropped(DropReason::SourceRoute);
                assert_eq!(is_dropped, left != 0, "{kind} {left}: {verdict:?}");
            }
        }
    }
}

#[test]
fn a_source_begins_so_many_flows_and_others_are_not_disturbed() {
    let build = || {
        let limiter =
            SourceLimiter::build(1 << 12, 10, 20, Key::new([5, 6]), &mut slb_core::mem::Boxes);
        pinned(&Setup::new(3)).with_source_limit(limiter.unwrap())
    };
    let mut mux = build();
    let verdicts: Vec<_> = (0..100u16)
        .map(|port| send_one(&mut mux, tcp([11, 0, 0, 1], port, "S")).verdict)
        .collect();
    for (number, verdict) in verdicts.into_iter().enumerate() {
        let is_over = verdict == dropped(DropReason::SourceLimit);
        assert_eq!(is_over, number >= 20, "{number}: {verdict:?}");
    }
    // What it began goes on, and others begin theirs.
    let known = send_one(&mut mux, tcp([11, 0, 0, 1], 3, "A"));
    assert!(matches!(known.verdict, Verdict::Forward(_)));
    for client in 2..=200 {
        let other = send_one(&mut mux, tcp([11, 0, 0, client], 3, "S"));
        assert!(matches!(other.verdict, Verdict::Forward(_)), "{client}");
    }
    // What may have begun at another mux is sent on, and not pinned.
    let mut mux = build();
    for port in 0..100 {
        let outcome = send_one(&mut mux, tcp([11, 0, 0, 1], port, "A"));
        assert!(matches!(outcome.verdict, Verdict::Forward(_)));
    }
    assert_eq!(mux.stats().flows.live, 20);
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

fn echo6(sequence: u16, data: &[u8]) -> Vec<u8> {
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

/// An ICMP "unreachable" from a router to the VIP, about this packet from the VIP.
fn icmp_error(about: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv4([203, 0, 113, 1], VIP, 60)
        .icmpv4(Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 },
        ))
        .write(&mut packet, &about[14..about.len().min(14 + 28)])
        .unwrap();
    packet
}

fn icmp6_error(about: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv6([0x20; 16], vip6(), 60)
        .icmpv6(Icmpv6Type::PacketTooBig { mtu: 1400 })
        .write(&mut packet, &about[14..])
        .unwrap();
    packet
}

fn tcp6_from_vip(port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MUX_MAC, CLIENT_MAC)
        .ipv6(vip6(), client6(), 64)
        .tcp(80, port, 1, 1);
    finish_tcp(builder, "A", b"data")
}

/// ECMP brings an error to another mux than the flow: it has to derive the same backend.
#[test]
fn an_icmp_error_follows_the_flow_that_it_quotes() {
    let setup = Setup::new(20);
    for port in 1000..1050 {
        let flow = backend_of(&send_one(&mut pinned(&setup), tcp(CLIENT, port, "S")));
        let error = icmp_error(&tcp_to(VIP, 80, CLIENT, port, "A", b"data"));
        let flow6 = backend_of(&send_one(&mut pinned(&setup), tcp6(port, "S")));
        let error6 = icmp6_error(&tcp6_from_vip(port));
        for mut mux in [pinned(&setup), stateless(&setup)] {
            let outcome = send_one(&mut mux, error.clone());
            assert_eq!(backend_of(&outcome), flow, "port {port}");
            assert_eq!(tunnelled(&outcome).inner, expected_inner(&error, flow));
            assert_eq!(backend_of(&send_one(&mut mux, error6.clone())), flow6);
            assert_eq!(mux.stats().icmp_errors, 2);
            assert_eq!(mux.stats().flows.live, 0, "an error pins nothing");
        }
    }
}

#[test]
fn an_icmp_error_follows_a_flow_that_is_pinned_elsewhere() {
    let mut setup = Setup::new(20);
    let mut mux = pinned(&setup);
    let before = backend_of(&send_one(&mut mux, tcp(CLIENT, 1000, "A")));
    setup.set_state(before, BackendState::Draining);
    let snapshot = setup.after(Some(mux.snapshot()));
    mux.install(snapshot.into()).expect("it follows");
    let error = icmp_error(&tcp_to(VIP, 80, CLIENT, 1000, "A", b""));
    assert_eq!(backend_of(&send_one(&mut mux, error)), before);
}

#[test]
fn an_icmp_error_about_nothing_of_ours_is_dropped() {
    let mut mux = pinned(&Setup::new(3));
    let about_somebody_else = icmp_error(&tcp_to([9, 9, 9, 9], 80, CLIENT, 1, "A", b""));
    let about_no_rule = icmp_error(&tcp_to(VIP, 81, CLIENT, 1, "A", b""));
    let mut about_a_later_fragment = tcp_to(VIP, 80, CLIENT, 1, "A", b"");
    about_a_later_fragment[21] = 9;
    let mut cut_short = icmp_error(&tcp_to(VIP, 80, CLIENT, 1, "A", b""));
    cut_short.truncate(14 + 20 + 8 + 10);
    cut_short[17] = 38;
    right_header(&mut cut_short);
    for packet in [
        about_somebody_else,
        about_no_rule,
        icmp_error(&about_a_later_fragment),
        cut_short,
    ] {
        assert_eq!(
            send_one(&mut mux, packet).verdict,
            dropped(DropReason::IcmpUnmatched)
        );
    }
}

#[test]
fn neighbour_discovery_for_a_vip_stays_with_the_kernel() {
    let mut mux = pinned(&Setup {
        ha_ports: true,
        ..Setup::new(3)
    });
    let mut packet = echo6(1, &[0; 16]);
    packet[54] = 135; // neighbour solicitation
    assert_eq!(send_one(&mut mux, packet).verdict, Verdict::Pass);
}

/// A UDP datagram in three parts.
fn fragments(port: u16, id: u16) -> Vec<Vec<u8>> {
    let whole = udp_to(CLIENT, port, VIP, 53, &[7; 1000]);
    let (header, payload) = whole.split_at(34);
    let parts = payload.chunks(400);
    let count = parts.len();
    parts
        .enumerate()
        .map(|(i, part)| {
            let mut packet = header.to_vec();
            packet.extend(part);
            packet[16..18].copy_from_slice(&((20 + part.len()) as u16).to_be_bytes());
            packet[18..20].copy_from_slice(&id.to_be_bytes());
            let more = if i + 1 < count { 0x2000u16 } else { 0 };
            packet[20..22].copy_from_slice(&(more | (i * 50) as u16).to_be_bytes());
            righted(packet)
        })
        .collect()
}

fn fragments6(port: u16, id: u32) -> Vec<Vec<u8>> {
    let whole = udp6(port, &[7; 1000]);
    let (header, payload) = whole.split_at(54);
    let parts = payload.chunks(400);
    let count = parts.len();
    parts
        .enumerate()
        .map(|(i, part)| {
            let mut packet = header.to_vec();
            packet[18..20].copy_from_slice(&((8 + part.len()) as u16).to_be_bytes());
            packet[20] = 44;
            packet.extend([17, 0]);
            packet.extend((((i * 50) << 3) as u16 | u16::from(i + 1 < count)).to_be_bytes());
            packet.extend(id.to_be_bytes());
            packet.extend(part);
            packet
        })
        .collect()
}

#[test]
fn fragments_go_where_their_flow_goes() {
    let setup = Setup::new(20);
    for port in 2000..2040 {
        for mut mux in [pinned(&setup), stateless(&setup)] {
            let whole = udp_to(CLIENT, port, VIP, 53, b"whole");
            let flow = backend_of(&send_one(&mut mux, whole));
            let parts = fragments(port, port);
            assert_eq!(
                backends_of(&mut mux, Instant::from_secs(11), &parts),
                [flow; 3]
            );
            let flow6 = backend_of(&send_one(&mut mux, udp6(port, b"whole")));
            let parts = fragments6(port, port.into());
            assert_eq!(
                backends_of(&mut mux, Instant::from_secs(11), &parts),
                [flow6; 3]
            );
        }
    }
}

#[test]
fn a_later_fragment_without_its_first_is_dropped_by_name() {
    for mut mux in [pinned(&Setup::new(20)), stateless(&Setup::new(20))] {
        let [first, second, _] = fragments(1, 77).try_into().unwrap();
        let reason = dropped(DropReason::FragmentWithoutFirst);
        assert_eq!(send_one(&mut mux, second.clone()).verdict, reason);
        tunnelled(&send_one(&mut mux, first));
        tunnelled(&send_one(&mut mux, second.clone()));
        // Half an hour later, its first fragment is somebody else's.
        let outcome = send(&mut mux, Instant::from_secs(2000), &[second]).remove(0);
        assert_eq!(outcome.verdict, reason);
    }
}

#[test]
fn where_ports_do_not_matter_fragments_need_no_first() {
    let setup = Setup {
        ha_ports: true,
        distribution: Distribution::SourceIp,
        ..Setup::new(20)
    };
    let mut mux = stateless(&setup);
    let flow = backend_of(&send_one(&mut mux, tcp(CLIENT, 1, "S")));
    for part in fragments(1, 77).iter().rev() {
        assert_eq!(backend_of(&send_one(&mut mux, part.clone())), flow);
    }
}

#[test]
fn distribution_modes_hash_what_they_say() {
    let backends = |distribution, packets: &[Vec<u8>]| {
        let setup = Setup {
            distribution,
            ha_ports: true,
            ..Setup::new(50)
        };
        let found = backends_of(&mut stateless(&setup), Instant::ZERO, packets);
        found
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    let ports: Vec<_> = (0..200).map(|port| tcp(CLIENT, port, "S")).collect();
    let clients: Vec<_> = (0..200).map(|i| tcp([10, 0, 0, i], 1, "S")).collect();
    let protocols = [tcp(CLIENT, 1, "S"), udp_to(CLIENT, 1, VIP, 80, b"")];
    assert!(backends(Distribution::FiveTuple, &ports) > 40);
    assert_eq!(backends(Distribution::SourceIp, &ports), 1);
    assert_eq!(backends(Distribution::SourceIpProtocol, &ports), 1);
    for mode in [Distribution::SourceIp, Distribution::SourceIpProtocol] {
        assert!(backends(mode, &clients) > 40);
    }
    assert_eq!(backends(Distribution::SourceIp, &protocols), 1);
    let differing = (0..50u8)
        .filter(|&i| {
            let of = |packet| {
                let setup = Setup {
                    distribution: Distribution::SourceIpProtocol,
                    ha_ports: true,
                    ..Setup::new(50)
                };
                backend_of(&send_one(&mut stateless(&setup), packet))
            };
            let client = [10, 9, 8, i];
            of(tcp(client, 1, "S")) != of(udp_to(client, 1, VIP, 80, b""))
        })
        .count();
    assert!(
        differing > 40,
        "TCP and UDP of {differing} clients of 50 part"
    );
}

#[test]
fn every_hasher_spreads_flows_and_a_custom_one_is_asked() {
    struct Last;
    impl TupleHasher for Last {
        fn ipv4(&self, message: &[u64; 2]) -> u64 {
            message[0] & 0xff_0000_0000 << 24 // nothing that varies here
        }
        fn ipv6(&self, message: &[u64; 5]) -> u64 {
            message[4] << 48
        }
    }
    let packets = flows(2000, "S");
    let distinct = |hasher| {
        let setup = Setup {
            hasher,
            ..Setup::new(50)
        };
        let found = backends_of(&mut stateless(&setup), Instant::ZERO, &packets);
        found
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    assert_eq!(distinct(Hasher::default()), 50);
    assert_eq!(distinct(Hasher::SipHash13(SipHash13::new([9; 16]))), 50);
    assert_eq!(
        distinct(Hasher::Toeplitz(Toeplitz::new(&MICROSOFT_KEY))),
        50
    );
    assert_eq!(distinct(Hasher::Custom(&Last)), 1);
}

#[test]
fn rules_and_backends_count_what_they_got() {
    let setup = Setup::new(4);
    let mut mux = pinned(&setup);
    let packets: Vec<_> = flows(300, "S").into_iter().chain(flows(300, "A")).collect();
    let found = backends_of(&mut mux, Instant::from_secs(1), &packets);
    let rule = mux.rule_counters(0).unwrap();
    assert_eq!(
        (rule.forwarded.packets, rule.syns, rule.flows),
        (600, 300, 300)
    );
    assert_eq!(mux.rule_counters(1).unwrap().forwarded.packets, 0);
    let stats = mux.stats();
    assert_eq!(
        (stats.syns, stats.flows.made, stats.forwarded.packets),
        (300, 300, 600)
    );
    let ids: Vec<_> = mux.snapshot().backends()[..4]
        .iter()
        .map(slb_core::snapshot::CompiledBackend::id)
        .collect();
    for (number, id) in (1..).zip(ids) {
        let expected = found.iter().filter(|&&b| b == number).count() as u64;
        let counters = mux.backend_counters(id).unwrap();
        assert_eq!(counters.forwarded.packets, expected);
        assert_eq!(counters.flows, expected / 2);
    }
    let _: Ipv4Addr = MUX;
}

/// Found by `c_functions_in_any_order`: the first sweep was put beyond the end of time.
#[test]
fn a_clock_at_its_end_is_a_clock() {
    for first in [u64::MAX, u64::MAX - 1, u64::MAX - (1 << 20), 0] {
        let mut mux = pinned(&Setup::new(3));
        for now in [first, u64::MAX] {
            let now = Instant::from_nanos(now);
            mux.advance(now);
            for flags in ["S", "A"] {
                let outcome = send(&mut mux, now, &[tcp([10, 1, 1, 1], 7000, flags)]).remove(0);
                assert!(matches!(outcome.verdict, Verdict::Forward(_)));
            }
        }
        assert_eq!(mux.stats().flows.live, 1);
    }
}
