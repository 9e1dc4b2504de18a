//! The kernel's VXLAN device and ours, both ways: what it encapsulates is what a mux encapsulates, and a host
//! agent takes it alike; and each mark of congestion on the way has the same end (RFC 6040).
//!
//! Root is needed, and the captures of other projects; without them the tests say so and are skipped. With
//! `SLB_REQUIRE_ALL` set they fail instead.

use crate::common;

use std::sync::Arc;

use etherparse::PacketBuilder;
use slb_control::Config;
use slb_core::snapshot::Snapshot;
use slb_core::wire::checksum;
use slb_core::{Dataplane, Frame, HEADROOM, Host, Instant, Key, Mux, Verdict};

use common::vxlan::{Device, INNER, KERNEL, KERNEL_MAC, OUR_MAC, OURS, missing, outer};
use common::{captures, checksum_error, configuration_text, read, without_ttl};

fn process<'a, D: Dataplane<'a>>(role: &mut D, now: Instant, packet: &[u8]) -> (Verdict, Vec<u8>) {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(packet);
    let mut frames = [Frame::new(&mut buffer, HEADROOM, packet.len()).unwrap()];
    role.process(now, &mut frames);
    (frames[0].verdict(), frames[0].bytes().to_vec())
}

type Shared = Arc<Snapshot<'static>>;

/// A mux at the kernel's address, and a host agent at ours, whose vms keep the VIP (DSR).
fn roles(text: &str, underlay: usize) -> (Mux<'static, Shared>, Host<'static, Shared>) {
    let parse = |text: &str| Config::parse("vxlan.toml", text).unwrap();
    let text = text.replace(
        "protocol = \"all\"",
        "protocol = \"all\"\nfloating_ip = true",
    );
    let mux = parse(&text).snapshot(None).unwrap();
    let at_host = text
        .replacen("role = \"mux\"", "role = \"host\"", 1)
        .replacen(KERNEL[0], OURS[0], 1)
        .replacen(KERNEL[1], OURS[1], 1)
        .replacen(
            "[node]\n",
            &format!("[node]\nmuxes = [\"{}\"]\n", KERNEL[underlay]),
            1,
        );
    let host = parse(&at_host).snapshot(None).unwrap();
    (
        Mux::with_capacity(mux, 10_000, Key::new([1, 2])).expect("its role"),
        Host::with_capacity(host, 10_000, Key::new([1, 2])).expect("its role"),
    )
}

#[test]
#[ignore = "needs root"]
fn what_the_kernel_encapsulates_is_what_a_mux_does_and_a_host_takes_both() {
    let Some(captures) = captures() else {
        skip!("the shared captures are not there")
    };
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let directory = tempfile::tempdir().unwrap();
    for underlay in [0, 1] {
        let Some(device) = Device::new(["v4", "v6"][underlay], underlay) else {
            skip!("a network namespace cannot be made here")
        };
        let mut ours = Vec::new();
        let mut hosts = Vec::new();
        for path in &captures {
            let packets = read(path);
            let text = configuration_text(&packets, OURS[underlay], OUR_MAC, 8900);
            let (mut mux, host) = roles(&text, underlay);
            for (now, packet) in packets.iter().take(60) {
                if let (Verdict::Forward(_), carried) = process(&mut mux, *now, packet) {
                    ours.push((hosts.len(), *now, carried));
                }
            }
            hosts.push(host);
        }
        let inner: Vec<Vec<u8>> = ours
            .iter()
            .map(|(_, _, carried)| carried[INNER[underlay]..].to_vec())
            .collect();
        let kernel = device.pass(&inner, false, directory.path());
        assert_eq!(kernel.len(), ours.len(), "over {}", OURS[underlay]);
        let mut delivered = 0;
        for ((host, now, ours), kernel) in ours.iter().zip(&kernel) {
            let kernel = &kernel[..kernel.len().min(ours.len())];
            assert_eq!(ours[INNER[underlay]..], kernel[INNER[underlay]..]);
            assert_eq!(outer(ours, underlay), outer(kernel, underlay));
            let host = &mut hosts[*host];
            let (one, two) = (process(host, *now, ours), process(host, *now, kernel));
            assert_eq!(one, two);
            delivered += usize::from(matches!(one.0, Verdict::Forward(_)));
        }
        println!(
            "{} packets encapsulated alike over {}, {delivered} of them delivered",
            ours.len(),
            OURS[underlay]
        );
        assert!(delivered > 500, "{delivered} of {}", ours.len());
    }
}

#[test]
#[ignore = "needs root"]
fn congestion_on_the_way_ends_as_with_the_kernel() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let directory = tempfile::tempdir().unwrap();
    for underlay in [0, 1] {
        let Some(device) = Device::new(["e4", "e6"][underlay], underlay) else {
            skip!("a network namespace cannot be made here")
        };
        // The kernel plays the host agent now, and a mux of ours sends.
        let vips = ["20.20.20.100", "2001:db8:20::100"];
        let mut packets = Vec::new();
        for class in 0..=255_u8 {
            let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
            let mut packet = Vec::new();
            let data = [class; 20];
            let builder = if class & 4 == 0 {
                link.ipv4([11, 0, 0, 1], [20, 20, 20, 100], 64)
            } else {
                link.ipv6(
                    [0x20; 16],
                    "2001:db8:20::100"
                        .parse::<std::net::Ipv6Addr>()
                        .unwrap()
                        .octets(),
                    64,
                )
            };
            builder.udp(1000, 53).write(&mut packet, &data).unwrap();
            set_ecn(&mut packet, class >> 4 & 3);
            packets.push((Instant::from_secs(1), packet));
        }
        let text = configuration_text(&packets, OURS[underlay], KERNEL_MAC, 8900);
        assert!(vips.iter().all(|vip| text.contains(vip)));
        let (mut mux, mut host) = roles(&text, underlay);
        let mut carried = Vec::new();
        for (class, (now, packet)) in packets.iter().enumerate() {
            let (verdict, mut frame) = process(&mut mux, *now, packet);
            assert!(matches!(verdict, Verdict::Forward(_)));
            set_ecn(&mut frame, class as u8 & 3);
            carried.push(frame);
        }
        let for_kernel: Vec<Vec<u8>> = carried
            .iter()
            .map(|frame| swapped(frame, underlay))
            .collect();
        let kernel = device.pass(&for_kernel, true, directory.path());
        let mut ours = Vec::new();
        for frame in &carried {
            if let (Verdict::Forward(_), inner) = process(&mut host, Instant::from_secs(1), frame) {
                ours.push(inner);
            }
        }
        let essence = |frames: &[Vec<u8>]| -> Vec<_> {
            let of = |frame: &Vec<u8>| (without_ttl(frame), checksum_error(frame));
            frames.iter().map(of).collect()
        };
        assert_eq!(essence(&ours), essence(&kernel));
        // Some are dropped, and most are not.
        assert_eq!(kernel.len(), 240);
    }
}

/// Sets the ECN field of a frame's IP header.
fn set_ecn(frame: &mut [u8], ecn: u8) {
    let at = 14;
    if frame[at] >> 4 == 4 {
        frame[at + 1] = frame[at + 1] & 0xfc | ecn;
        frame[at + 10..at + 12].fill(0);
        let sum = checksum::checksum(&frame[at..at + 20]);
        frame[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[at + 1] = frame[at + 1] & 0xcf | ecn << 4;
    }
}

/// Exchanges the outer addresses, which changes no checksum: the frame comes from us, to the
/// kernel.
fn swapped(frame: &[u8], underlay: usize) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (at, len) = [(26, 4), (22, 16)][underlay];
    let (one, other) = frame[at..at + 2 * len].split_at_mut(len);
    one.swap_with_slice(other);
    frame
}
