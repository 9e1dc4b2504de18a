//! `slb explain` of packets whose sender is not plain, and of packets that a capture has in part. No root.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use etherparse::PacketBuilder;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Two networks with a vm of one address at this host each.
const TENANTS: &str = r#"
[node]
role = "host"
underlay = "172.16.0.101"

[[network]]
name = "blue"
vni = 5001
address_spaces = "10.1.0.0/16"

[[network]]
name = "red"
vni = 5002
address_spaces = "10.1.0.0/16"

[[vm]]
name = "blue1"
network = "blue"
address = "10.1.0.11"
host = "172.16.0.101"

[[vm]]
name = "red1"
network = "red"
address = "10.1.0.11"
host = "172.16.0.101"

[[vm]]
name = "red2"
network = "red"
address = "10.1.0.12"
host = "172.16.0.101"
"#;

fn explain(arguments: &[&str]) -> Output {
    let mut slb = Command::new(env!("CARGO_BIN_EXE_slb"));
    slb.current_dir(root()).arg("explain").args(arguments);
    slb.output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A capture of one packet, of which the first bytes were kept.
fn capture(packet: &[u8], kept: usize) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(0xa1b2_c3d4u32.to_le_bytes());
    file.extend([2, 0, 4, 0]);
    file.extend([0; 8]);
    file.extend(65_535u32.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend([0; 8]);
    file.extend((kept as u32).to_le_bytes());
    file.extend((packet.len() as u32).to_le_bytes());
    file.extend(&packet[..kept]);
    file
}

fn datagram(mac: [u8; 6], to: [u8; 4], port: u16, len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, [2, 0, 0, 0, 0, 1])
        .ipv4([10, 1, 0, 11], to, 64)
        .udp(1000, port)
        .write(&mut frame, &vec![7; len])
        .expect("a packet");
    frame
}

#[test]
fn a_sender_in_two_networks_has_to_be_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (config, file) = (path("net.toml"), path("one.pcap"));
    std::fs::write(&config, TENANTS).expect("written");
    // Both vms have the MAC address that is derived from their address.
    let frame = datagram([0x0a, 0x58, 10, 1, 0, 11], [10, 1, 0, 12], 53, 10);
    std::fs::write(&file, capture(&frame, frame.len())).expect("written");
    let tuple = ["udp", "10.1.0.11:1000", "10.1.0.12:53"];
    let made = [&[config.as_str()][..], &tuple].concat();
    let captured = vec![config.as_str(), "--in", &file, "--packet", "1"];
    for command in [&made, &captured] {
        let output = explain(command);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains(
                "belongs to the vms \"blue1\" (port 1, VNI 5001) and \"red1\" (port 2, VNI 5002): give the port of the sending vm with --from"
            ),
            "{said}"
        );
        for (from, expected) in [("1", "no_neighbour"), ("2", "out of port 3")] {
            let output = explain(&[&command[..], &["--from", from]].concat());
            let said = text(&output.stdout);
            assert!(
                said.contains(expected),
                "{from}: {said}{}",
                text(&output.stderr)
            );
        }
    }
    let output = explain(&[&config, "udp", "10.1.0.12:1000", "10.1.0.11:53"]);
    assert!(
        output.status.success(),
        "one vm has it: {}",
        text(&output.stderr)
    );
}

#[test]
fn a_packet_that_was_cut_is_explained_by_its_headers() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cut.pcap").display().to_string();
    let frame = datagram([2, 0, 0, 0, 0, 3], [20, 20, 20, 100], 80, 1000);
    for (kept, expected) in [
        (60, "1042 bytes, at "),
        (
            60,
            ", of which the capture has 60: the others count as zeros\n",
        ),
        (60, "20.20.20.100:80"),
    ] {
        std::fs::write(&file, capture(&frame, kept)).expect("written");
        let output = explain(&["examples/web.toml", "--in", &file, "--packet", "1"]);
        let said = text(&output.stdout);
        assert!(said.contains(expected), "{said}{}", text(&output.stderr));
        assert!(!said.contains("truncated"), "{said}");
    }
    std::fs::write(&file, capture(&frame, frame.len())).expect("written");
    let output = explain(&["examples/web.toml", "--in", &file, "--packet", "1"]);
    assert!(
        !text(&output.stdout).contains("of which"),
        "nothing is missing"
    );
}

/// A mux whose pool had other weights before.
const CHANGED: &str = r#"
[node]
role = "mux"
underlay = "172.16.0.11"

[[frontend]]
name = "web"
address = "20.20.20.100"

[[pool]]
name = "vms"
vni = 5001
past = [{ vm1 = 1 }, { vm2 = 1 }]
backends = [
    { name = "vm1", address = "10.10.0.1", host = "172.16.0.101", weight = 0 },
    { name = "vm2", address = "10.10.0.2", host = "172.16.0.102", weight = 0 },
    { name = "vm3", address = "10.10.0.3", host = "172.16.0.103" },
]

[[rule]]
name = "http"
frontend = "web"
pool = "vms"
protocol = "tcp"
frontend_port = 80
"#;

#[test]
fn a_mux_tells_whom_a_packet_would_be_passed_on_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mux.toml").display().to_string();
    let said = |config: &str| {
        std::fs::write(&file, config).expect("written");
        let output = explain(&[&file, "tcp", "198.51.100.10:50000", "20.20.20.100:80"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let line = "  passed on  by 172.16.0.103 (vm3), if it has no connection of the packet and the packet opens none: to \
                172.16.0.102 (vm2), then 172.16.0.101 (vm1)\n";
    let changed = said(CHANGED);
    assert!(changed.contains(line), "{changed}");
    // A pool that was always so.
    let same = CHANGED.replace("past = [{ vm1 = 1 }, { vm2 = 1 }]\n", "");
    assert!(!said(&same).contains("passed on"));
    let same = CHANGED.replace("past = [{ vm1 = 1 }, { vm2 = 1 }]", "past = [{ vm3 = 1 }]");
    assert!(!said(&same).contains("passed on"));
}
