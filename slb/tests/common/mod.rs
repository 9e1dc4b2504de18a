//! Real captures, network namespaces, and when a test may be skipped.

#![allow(dead_code, reason = "without its features the program has fewer tests")]

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use slb_core::Instant;
use slb_core::packet::{Packet, Parsed};
use slb_io_pcap::{FRAME_LEN, Next, Reader};

pub mod captured;
pub mod fabric;
#[cfg(feature = "live")]
pub mod gap;
#[cfg(feature = "live")]
pub mod inside;
pub mod lab;
pub mod router;
pub mod site;
pub mod vxlan;
pub mod world;

/// Says why a test is skipped, or fails where nothing may be.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        assert!(std::env::var_os("SLB_REQUIRE_ALL").is_none(), $($why)*);
        eprintln!("SKIPPED: {}", format!($($why)*));
        return;
    }};
}

pub fn captures() -> Option<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|e| e == "pcap" || e == "pcapng")
        })
        .collect();
    paths.sort();
    (!paths.is_empty()).then_some(paths)
}

pub fn has(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok()
}

pub fn read(path: &Path) -> Vec<(Instant, Vec<u8>)> {
    let mut reader = Reader::new(fs::File::open(path).unwrap()).unwrap();
    let mut buffer = vec![0; FRAME_LEN];
    let mut packets = Vec::new();
    loop {
        match reader.next(&mut buffer, None) {
            Ok(Next::Packet { timestamp, len, .. }) => {
                packets.push((timestamp, buffer[..len].to_vec()));
            }
            Ok(Next::End) | Err(_) => return packets,
            Ok(_) => {}
        }
    }
}

/// The IP packet of a frame, its TTL and IPv4 header checksum set to zero.
pub fn without_ttl(frame: &[u8]) -> Vec<u8> {
    let link = slb_core::wire::ethernet::Ethernet::parse(frame).unwrap();
    let mut ip = link.payload().to_vec();
    if ip[0] >> 4 == 4 {
        ip.truncate(u16::from_be_bytes([ip[2], ip[3]]).into());
        (ip[8], ip[10], ip[11]) = (0, 0, 0);
    } else {
        ip.truncate(40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])));
        ip[7] = 0;
    }
    ip
}

/// An IPv4 header's checksum error: zero where it is right.
pub fn checksum_error(frame: &[u8]) -> Option<u16> {
    let link = slb_core::wire::ethernet::Ethernet::parse(frame).ok()?;
    let ip = link.payload();
    let len = usize::from(ip.first()? & 15) * 4;
    (ip.first()? >> 4 == 4).then(|| slb_core::wire::checksum::checksum(&ip[..len]))
}

/// A network namespace of this test's own, gone with it.
pub struct Namespace {
    pub name: String,
    pub link: String,
}

impl Namespace {
    pub fn new(tag: &str) -> Option<Self> {
        let id = std::process::id() % 100_000;
        let namespace = Self {
            name: format!("slbt-{tag}-{id}"),
            link: format!("st{tag}{id}"),
        };
        sh(&format!("ip netns add {}", namespace.name)).then_some(namespace)
    }

    pub fn run(&self, command: &str) {
        assert!(
            sh(&format!("ip netns exec {} {command}", self.name)),
            "{command}"
        );
    }

    pub fn spawn(&self, command: &str) -> Child {
        let mut words = vec!["netns", "exec", &self.name];
        words.extend(command.split_whitespace());
        Command::new("ip")
            .args(words)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        sh(&format!("ip netns del {}", self.name));
        sh(&format!("ip link del {}", self.link));
    }
}

pub fn sh(command: &str) -> bool {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    output.status.success()
}

pub fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout == b"0\n")
}

/// Returns true if a host can have the address: the configuration takes no other.
fn may_be_a_vip(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let is_unicast = !matches!(address.octets()[0], 0 | 224..);
            is_unicast && !address.is_loopback() && !address.is_link_local()
        }
        IpAddr::V6(address) => {
            let is_unicast = !address.is_multicast() && !address.is_unspecified();
            let is_real = address.to_ipv4_mapped().is_none() && !address.is_loopback();
            is_unicast && is_real && !address.is_unicast_link_local()
        }
    }
}

/// A mux's configuration that makes every destination of the capture a VIP: TCP and UDP and all else.
pub fn configuration_text(
    packets: &[(Instant, Vec<u8>)],
    host: &str,
    next_hop: &str,
    mtu: u32,
) -> String {
    let mut vips: BTreeMap<IpAddr, ()> = BTreeMap::new();
    for (_, packet) in packets {
        if let Parsed::Ip(packet) = Packet::parse(packet) {
            let destination = packet.tuple().destination;
            if may_be_a_vip(destination) {
                vips.insert(destination, ());
            }
        }
    }
    let mut text = format!(
        "[node]\nrole = \"mux\"\nunderlay = [\"172.16.0.11\", \"fd00:16::11\"]\nmtu = {mtu}\n\
         next_hop = \"{next_hop}\"\n"
    );
    for (pool, network) in [("four", "10.10.1."), ("six", "fd00:10::")] {
        text += &format!("[[pool]]\nname = \"{pool}\"\nvni = 5001\nbackends = [\n");
        for i in 1..=3 {
            text += &format!(
                "{{ name = \"vm{i}\", address = \"{network}{i}\", host = \"{host}\" }},\n"
            );
        }
        text += "]\n";
    }
    for (i, vip) in vips.keys().enumerate() {
        let pool = if vip.is_ipv4() { "four" } else { "six" };
        text += &format!(
            "[[frontend]]\nname = \"f{i}\"\naddress = \"{vip}\"\nicmp_echo = \"forward\"\n\
             [[rule]]\nname = \"r{i}\"\nfrontend = \"f{i}\"\npool = \"{pool}\"\nprotocol = \"all\"\n"
        );
    }
    text
}
