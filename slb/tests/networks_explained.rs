//! What `slb check` and `slb explain` say of networks. No root.

use std::path::Path;
use std::process::Command;

const TEXT: &str = r#"
[node]
role = "host"
underlay = "172.16.0.101"

[[network]]
name = "blue"
vni = 5001
address_spaces = ["10.1.0.0/16", "fd00:1::/64"]
gateways = "10.1.0.1"

[[network]]
name = "red"
vni = 5002
address_spaces = "10.1.0.0/16"

[[vm]]
name = "blue1"
network = "blue"
address = ["10.1.0.11", "fd00:1::11"]
host = "172.16.0.101"

[[vm]]
name = "blue2"
network = "blue"
address = ["10.1.0.12", "fd00:1::12"]
host = "172.16.0.102"

[[vm]]
name = "blue3"
network = "blue"
address = "10.1.0.13"
host = "172.16.0.101"

[[vm]]
name = "red1"
network = "red"
address = "10.1.0.11"
mac = "02:00:00:00:00:11"
host = "172.16.0.101"
"#;

/// Runs a command on the configuration; gives what it printed.
fn slb(config: &Path, command: &str, more: &[&str]) -> String {
    let mut slb = Command::new(env!("CARGO_BIN_EXE_slb"));
    let output = slb.arg(command).arg(config).args(more).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    said
}

#[test]
fn networks_and_their_vms_are_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.toml");
    std::fs::write(&path, TEXT).unwrap();

    let said = slb(&path, "check", &[]);
    for line in [
        "network \"blue\": VNI 5001, 10.1.0.0/16, fd00:1::/64, 5 addresses of vms",
        "network \"red\": VNI 5002, 10.1.0.0/16, 1 addresses of vms",
        "vm at port 1: 10.1.0.11, fd00:1::11, MAC 0a:58:0a:01:00:0b, VNI 5001",
        "vm at port 3: 10.1.0.11, MAC 02:00:00:00:00:11, VNI 5002",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }

    for (from, tuple, expected) in [
        (
            "blue1",
            ["udp", "10.1.0.11:1000", "10.1.0.12:53"],
            &[
                "neighbour  10.1.0.12 in network \"blue\", in VXLAN to host 172.16.0.102",
                "forward",
            ][..],
        ),
        (
            "blue1",
            ["tcp", "[fd00:1::11]:1000", "[fd00:1::12]:53"],
            &["neighbour  fd00:1::12 in network \"blue\", in VXLAN to host 172.16.0.102"],
        ),
        (
            "blue1",
            ["tcp", "10.1.0.11:1000", "10.1.0.13:80"],
            &["neighbour  10.1.0.13 in network \"blue\", on this node"],
        ),
        (
            "red1",
            ["udp", "10.1.0.11:1000", "10.1.0.12:53"],
            &["no other vm of the network has the destination's address"],
        ),
        (
            "red1",
            ["udp", "10.1.0.12:1000", "10.1.0.11:53"],
            &["the source is not the vm's address"],
        ),
    ] {
        let mut more = vec!["--from", from];
        more.extend(tuple);
        let said = slb(&path, "explain", &more);
        for part in expected {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
