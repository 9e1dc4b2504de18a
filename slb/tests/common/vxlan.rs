//! The kernel's VXLAN device at the other end of a cable.

use std::fs;
use std::io::BufWriter;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant as Clock};

use slb_core::Instant;
use slb_core::wire::checksum;
use slb_io_pcap::{Format, Writer};

use super::{Namespace, has, is_root, read, sh};

/// Our machine, and the kernel's at the other end of the cable.
pub const OURS: [&str; 2] = ["172.16.0.101", "fd00:16::101"];
pub const KERNEL: [&str; 2] = ["172.16.0.11", "fd00:16::11"];
pub const OUR_MAC: &str = "02:00:00:00:00:65";
pub const KERNEL_MAC: &str = "02:00:00:00:00:0b";

/// A VXLAN device of the kernel's, over either underlay, at the other end of a cable.
pub struct Device {
    namespace: Namespace,
}

impl Device {
    pub fn new(tag: &str, underlay: usize) -> Option<Self> {
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

    /// Has it send frames for these MAC addresses to our machine, and no others to anybody.
    pub fn forward_only(&self, macs: &[[u8; 6]], underlay: usize) {
        let to = OURS[underlay];
        self.namespace
            .run("bridge fdb del 00:00:00:00:00:00 dev vx0");
        for mac in macs {
            let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            let mac = mac.join(":");
            self.namespace
                .run(&format!("bridge fdb add {mac} dev vx0 dst {to}"));
        }
    }

    /// Sends `frames` in from the cable, or from the device, and returns the frames that come out
    /// of the other side.
    pub fn pass(&self, frames: &[Vec<u8>], from_cable: bool, directory: &Path) -> Vec<Vec<u8>> {
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
pub fn missing() -> Option<String> {
    if !is_root() {
        return Some("root is needed for network namespaces".to_owned());
    }
    let missing = ["tcpdump", "tcpreplay", "ethtool"]
        .into_iter()
        .find(|tool| !has(tool));
    missing.map(|tool| format!("{tool} is not installed"))
}

/// The offset of the inner frame.
pub const INNER: [usize; 2] = [50, 70];

/// The outer headers but for what each chooses for itself: the flow's source port, IPv4's identification
/// (of no meaning with DF: RFC 6864) and what follows from them.
pub fn outer(frame: &[u8], underlay: usize) -> Vec<u8> {
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
