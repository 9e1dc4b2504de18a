//! The kernel's VXLAN device and ours, both ways: what it encapsulates is what a mux encapsulates, and a host
//! agent takes it alike; and each mark of congestion on the way has the same end (RFC 6040).
//!
//! Root is needed, and the captures of other projects; without them the tests say so and are skipped. With
//! `SLB_REQUIRE_ALL` set they fail instead.

#[macro_use]
mod common;

use std::fs;
use std::io::BufWriter;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use etherparse::PacketBuilder;
use slb_control::Config;
use slb_core::snapshot::Snapshot;
use slb_core::wire::checksum;
use slb_core::{Dataplane, Frame, HEADROOM, Host, Instant, Key, Mux, Verdict};
use slb_io_pcap::{Format, Writer};

use common::{
    Namespace, captures, checksum_error, configuration_text, has, is_root, read, sh, without_ttl,
};

/// Our machine, and the kernel's at the other end of the cable.
const OURS: [&str; 2] = ["172.16.0.101", "fd00:16::101"];
const KERNEL: [&str; 2] = ["172.16.0.11", "fd00:16::11"];
const OUR_MAC: &str = "02:00:00:00:00:65";
const KERNEL_MAC: &str = "02:00:00:00:00:0b";

/// A VXLAN device of the kernel's, over either underlay, at the other end of a cable.
struct Device {
    namespace: Namespace,
}

impl Device {
    fn new(tag: &str, underlay: usize) -> Option<Self> {
        let namespace = Namespace::new(tag)?;
        let link = &namespace.link;
        assert!(sh(&format!(
            "ip link add {link} type veth peer name eth0 netns {} && ip link set {link} mtu 9000 address \
             {OUR_MAC} && sysctl -qw net.ipv6.conf.{link}.disable_ipv6=1 && ip link set {link} up",
            namespace.name
        )));
        let (own, other) = (KERNEL[underlay], OURS[underlay]);
        let (bits, df) = [("24", "df set"), ("64", "")][underlay];
        for command in [
            format!("ip link set eth0 address {KERNEL_MAC} mtu 9000 up"),
            format!("ip address add {own}/{bits} dev eth0 nodad"),
            format!("ip neighbour add {other} lladdr {OUR_MAC} dev eth0 nud permanent"),
            format!(
                "ip link add vx0 mtu 8900 type vxlan id 5001 local {own} remote {other} dstport 4789 \
                 srcport 49152 65535 ttl 64 tos inherit {df} dev eth0"
            ),
            "sysctl -qw net.ipv6.conf.vx0.disable_ipv6=1".to_owned(),
            "ip link set vx0 up".to_owned(),
            // Checksums are to be there, not left to a card that is none.
            "ethtool -K eth0 tx off".to_owned(),
        ] {
            namespace.run(&command);
        }
        Some(Self { namespace })
    }

    /// What comes out of its far side when `frames` go in: at the device if they come from the cable, else on
    /// the cable.
    fn pass(&self, frames: &[Vec<u8>], from_cable: bool, directory: &Path) -> Vec<Vec<u8>> {
        let (sent, seen) = (directory.join("sent.pcap"), directory.join("seen.pcap"));
        let mut writer = Writer::new(
            BufWriter::new(fs::File::create(&sent).unwrap()),
            Format::Pcap,
        )
        .unwrap();
        for frame in frames {
            writer.write(Instant::from_secs(1), frame).unwrap();
        }
        writer.finish().unwrap();
        let _ = fs::remove_file(&seen);
        let link = &self.namespace.link;
        let inside = format!("ip netns exec {} ", self.namespace.name);
        let tcpdump = "tcpdump -Q in --immediate-mode -U -B 65536";
        let mut capture = if from_cable {
            let command = format!("{tcpdump} -i vx0 -w {}", seen.display());
            Capture(self.namespace.spawn(&command))
        } else {
            let child = std::process::Command::new("sh")
                .arg("-c")
                .arg(format!(
                    "exec {tcpdump} -i {link} -w {} udp port 4789 2>/dev/null",
                    seen.display()
                ))
                .spawn();
            Capture(child.unwrap())
        };
        let deadline = Clock::now() + Duration::from_secs(10);
        while fs::metadata(&seen).map_or(0, |m| m.len()) < 24 && Clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let (inside, into) = if from_cable {
            ("", link.as_str())
        } else {
            (inside.as_str(), "vx0")
        };
        let replay = format!("{inside}tcpreplay -i {into} --pps 4000 {}", sent.display());
        assert!(sh(&format!("{replay} >/dev/null 2>&1")), "tcpreplay failed");
        let deadline = Clock::now() + Duration::from_millis(1500);
        while read(&seen).len() < frames.len() && Clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        capture.end();
        read(&seen).into_iter().map(|(_, frame)| frame).collect()
    }
}

/// A tcpdump that ends with the test.
struct Capture(Child);

impl Capture {
    fn end(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Says why this cannot run here, if it cannot.
fn missing() -> Option<String> {
    if !is_root() {
        return Some("root is needed for network namespaces".to_owned());
    }
    let missing = ["tcpdump", "tcpreplay", "ethtool"]
        .into_iter()
        .find(|tool| !has(tool));
    missing.map(|tool| format!("{tool} is not installed"))
}

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

/// Where the inner frame begins.
const INNER: [usize; 2] = [50, 70];

/// The outer headers but for what each chooses for itself: the flow's source port, IPv4's identification
/// (of no meaning with DF: RFC 6864) and what follows from them.
fn outer(frame: &[u8], underlay: usize) -> Vec<u8> {
    let mut outer = frame[..INNER[underlay]].to_vec();
    let udp = INNER[underlay] - 16;
    let port = u16::from_be_bytes([outer[udp], outer[udp + 1]]);
    assert!(port >= 49_152);
    outer[udp..udp + 2].fill(0);
    outer[udp + 6..udp + 8].fill(0);
    if underlay == 0 {
        assert_eq!(checksum::checksum(&frame[14..34]), 0);
        outer[18..20].fill(0);
        outer[24..26].fill(0);
    } else {
        // And the flow label.
        outer[15] &= 0xf0;
        outer[16..18].fill(0);
    }
    outer.split_off(12)
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

/// The same with the outer addresses exchanged, which changes no checksum: it comes from us, to the kernel.
fn swapped(frame: &[u8], underlay: usize) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (at, len) = [(26, 4), (22, 16)][underlay];
    let (one, other) = frame[at..at + 2 * len].split_at_mut(len);
    one.swap_with_slice(other);
    frame
}
