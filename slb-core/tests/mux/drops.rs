//! Packets that are dropped: broken, martian, source-routed, or above the rate of their source.

use slb_core::{DropReason, Instant, Key, PortId, SourceLimiter, Verdict};

use super::dropped;
use crate::common::*;

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
