//! Real captures through the mux, their servers made VIPs, read by tshark and decapsulated by
//! Linux's own VXLAN device.
//!
//! The captures are other projects' and not part of this one: where they are missing, or a tool
//! or the rights, the tests say so and are skipped. With `SLB_REQUIRE_ALL` set they fail instead.

use crate::common;

use std::fs;
use std::io::{BufWriter, Write as _};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use slb_control::Config;
use slb_core::wire::ethernet::Ethernet;
use slb_core::{Frame, HEADROOM, Instant, Key, Mux, Verdict};
use slb_io_pcap::{Format, Writer};

use common::{
    Namespace, captures, checksum_error, configuration_text, has, is_root, read, sh, without_ttl,
};

fn configuration(packets: &[(Instant, Vec<u8>)], host: &str, next_hop: &str, mtu: u32) -> Config {
    let text = configuration_text(packets, host, next_hop, mtu);
    Config::parse("captures.toml", &text).unwrap()
}

/// The capture with loopback's IPv4 addresses moved to 11.0.0.0/8: a VIP can have none of them.
fn without_loopback(mut packets: Vec<(Instant, Vec<u8>)>) -> Vec<(Instant, Vec<u8>)> {
    for (_, frame) in &mut packets {
        let Ok(link) = Ethernet::parse(frame) else {
            continue;
        };
        let start = frame.len() - link.payload().len();
        if let Some(ip) = frame
            .get_mut(start..)
            .filter(|ip| ip.len() >= 20 && ip[0] >> 4 == 4)
        {
            leave_loopback(ip);
        }
    }
    packets
}

/// Updates the checksums by the difference (RFC 1624 §3), so that right ones stay right.
fn leave_loopback(ip: &mut [u8]) {
    let transport = usize::from(ip[0] & 15) * 4;
    let is_first = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff == 0;
    let covered = match ip[9] {
        6 if is_first => Some(transport + 16),
        17 if is_first => Some(transport + 6),
        _ => None,
    };
    for address in [12, 16] {
        if ip[address] != 127 {
            continue;
        }
        let before = u16::from_be_bytes([ip[address], ip[address + 1]]);
        ip[address] = 11;
        let after = u16::from_be_bytes([ip[address], ip[address + 1]]);
        for checksum in [Some(10), covered].into_iter().flatten() {
            let Some(&[high, low]) = ip.get(checksum..checksum + 2) else {
                continue;
            };
            let old = u16::from_be_bytes([high, low]);
            if checksum != 10 && ip[9] == 17 && old == 0 {
                continue; // UDP without a checksum
            }
            let mut sum = u32::from(!old) + u32::from(!before) + u32::from(after);
            sum = (sum & 0xffff) + (sum >> 16);
            sum = (sum & 0xffff) + (sum >> 16);
            ip[checksum..checksum + 2].copy_from_slice(&(!sum as u16).to_be_bytes());
        }
    }
}

struct Processed {
    /// Time, input and output of each forwarded frame.
    forwarded: Vec<(Instant, Vec<u8>, Vec<u8>)>,
    dropped: u64,
}

fn process(config: &Config, packets: &[(Instant, Vec<u8>)]) -> Processed {
    let mut mux = Mux::with_capacity(config.snapshot(None).unwrap(), 10_000, Key::new([1, 2]))
        .expect("its role");
    let mut forwarded = Vec::new();
    for (timestamp, packet) in packets {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(packet);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, packet.len()).unwrap()];
        mux.process(*timestamp, &mut frames);
        if let Verdict::Forward(_) = frames[0].verdict() {
            forwarded.push((*timestamp, packet.clone(), frames[0].bytes().to_vec()));
        }
    }
    let stats = mux.stats();
    assert_eq!(stats.received, stats.accounted());
    assert_eq!(stats.received.packets, packets.len() as u64);
    let _: Option<Arc<()>> = None;
    Processed {
        forwarded,
        dropped: stats.dropped_total().packets,
    }
}

#[test]
fn tshark_finds_every_forwarded_packet_well_formed_and_unchanged_inside() {
    let Some(captures) = captures() else {
        skip!("the shared captures are not there")
    };
    if !has("tshark") {
        skip!("tshark is not installed");
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut total, mut files) = (0, 0);
    for (host, outer) in [("172.16.0.101", "ip"), ("fd00:16::101", "ipv6")] {
        let out = directory.path().join(format!("{outer}.pcap"));
        let mut writer = Writer::new(
            BufWriter::new(fs::File::create(&out).unwrap()),
            Format::Pcap,
        )
        .unwrap();
        let mut expected = 0;
        for path in &captures {
            let packets = without_loopback(read(path));
            let config = configuration(&packets, host, "02:00:00:00:00:02", 9000);
            let processed = process(&config, &packets);
            files += usize::from(!processed.forwarded.is_empty());
            for (timestamp, before, after) in processed.forwarded {
                let inner = &after[if outer == "ip" { 50 } else { 70 }..];
                assert_eq!(
                    without_ttl(inner),
                    without_ttl(&before),
                    "{}",
                    path.display()
                );
                // A right checksum is right after the TTL's change, a wrong one as wrong.
                assert_eq!(
                    checksum_error(inner),
                    checksum_error(&before),
                    "{}",
                    path.display()
                );
                writer.write(timestamp, &after).unwrap();
                expected += 1;
            }
            let _ = processed.dropped;
        }
        writer.finish().unwrap();
        // Every frame: the first (outer) checksum is right, VXLAN with our VNI, UDP as it should.
        let fields = [
            "ip.checksum.status",
            "udp.checksum.status",
            "vxlan.vni",
            "vxlan.flags",
        ];
        let mut tshark = Command::new("tshark");
        tshark.args([
            "-r",
            out.to_str().unwrap(),
            "-T",
            "fields",
            "-E",
            "occurrence=f",
        ]);
        tshark.args([
            "-o",
            "ip.check_checksum:TRUE",
            "-o",
            "udp.check_checksum:TRUE",
        ]);
        for field in fields {
            tshark.args(["-e", field]);
        }
        let output = tshark.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = 0;
        for line in text.lines() {
            let found: Vec<&str> = line.split('\t').collect();
            assert_eq!(
                found[2..4],
                ["5001", "0x0800"],
                "{outer}: frame {}: {line}",
                lines + 1
            );
            match outer {
                "ip" => assert_eq!(found[0], "1", "frame {}: {line}", lines + 1),
                _ => assert_eq!(found[1], "1", "frame {}: {line}", lines + 1),
            }
            lines += 1;
        }
        assert_eq!(lines, expected);
        total += expected;
    }
    println!("{total} packets of {files} replays, all well-formed");
    assert!(total > 100_000, "{total} packets");
}

/// The kernel's VXLAN device takes what the mux sends, over both underlays, and what comes out of
/// it is the packet that went in.
#[test]
#[ignore = "needs root"]
fn linux_s_own_vxlan_device_decapsulates_it() {
    let Some(captures) = captures() else {
        skip!("the shared captures are not there")
    };
    if !is_root() {
        skip!("root is needed for network namespaces");
    }
    for tool in ["tcpdump", "tcpreplay"] {
        if !has(tool) {
            skip!("{tool} is not installed");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    for (tag, host, mux) in [
        ("4", "172.16.0.101", "172.16.0.11"),
        ("6", "fd00:16::101", "fd00:16::11"),
    ] {
        let Some(namespace) = Namespace::new(tag) else {
            skip!("a network namespace cannot be made here")
        };
        let link = &namespace.link;
        let mac = "02:00:00:00:00:65";
        assert!(sh(&format!(
            "ip link add {link} type veth peer name eth0 netns {} && ip link set {link} mtu 9000 up \
             && sysctl -qw net.ipv6.conf.{link}.disable_ipv6=1",
            namespace.name
        )));
        namespace.run(&format!("ip link set eth0 address {mac} mtu 9000 up"));
        let bits = if tag == "4" { 24 } else { 64 };
        namespace.run(&format!("ip address add {host}/{bits} dev eth0 nodad"));
        namespace.run(&format!(
            "ip link add vx0 mtu 8900 type vxlan id 5001 local {host} remote {mux} dstport 4789 dev eth0"
        ));
        namespace.run("sysctl -qw net.ipv6.conf.vx0.disable_ipv6=1");
        namespace.run("ip link set vx0 up");

        let mut expected = Vec::new();
        let out = directory.path().join(format!("out{tag}.pcap"));
        let mut writer = Writer::new(
            BufWriter::new(fs::File::create(&out).unwrap()),
            Format::Pcap,
        )
        .unwrap();
        for path in &captures {
            let packets = without_loopback(read(path));
            let config = configuration(&packets, host, mac, 8900);
            // A few of each: a veth's queue is short, and the kinds are what matters.
            for (timestamp, before, after) in
                process(&config, &packets).forwarded.into_iter().take(60)
            {
                writer.write(timestamp, &after).unwrap();
                expected.push(without_ttl(&before));
            }
        }
        writer.finish().unwrap();

        let seen = directory.path().join(format!("seen{tag}.pcap"));
        let mut tcpdump = namespace.spawn(&format!(
            "tcpdump -i vx0 -Q in -U -B 65536 -w {}",
            seen.display()
        ));
        let deadline = Clock::now() + Duration::from_secs(10);
        while fs::metadata(&seen).map_or(0, |m| m.len()) < 24 && Clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let replay = format!(
            "tcpreplay -i {link} --pps 4000 {} >/dev/null 2>&1",
            out.display()
        );
        assert!(sh(&replay), "tcpreplay failed");
        let deadline = Clock::now() + Duration::from_secs(5);
        let mut decapsulated = read(&seen);
        while decapsulated.len() < expected.len() && Clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            decapsulated = read(&seen);
        }
        tcpdump.kill().ok();
        tcpdump.wait().ok();
        let got: Vec<Vec<u8>> = decapsulated
            .iter()
            .map(|(_, packet)| without_ttl(packet))
            .collect();
        assert_eq!(got.len(), expected.len(), "over {mux}");
        assert!(got == expected, "what comes out is not what went in");
        assert!(expected.len() > 700, "{} packets", expected.len());
        std::io::stdout().flush().ok();
        println!(
            "{} packets decapsulated by the kernel, over {host}",
            got.len()
        );
    }
}
