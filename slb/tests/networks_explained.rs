//! Output of `slb check` and `slb explain` about networks. No root.

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

/// A private frontend of the first network, with a backend on each host, and the same VIP in the second one.
const PRIVATE: &str = r#"
[[frontend]]
name = "app"
address = "10.1.0.100"
network = "blue"

[[frontend]]
name = "app-red"
address = "10.1.0.100"
network = "red"

[[rule]]
name = "app"
frontend = "app"
pool = "app"
protocol = "tcp"
frontend_port = 80
backend_port = 8080

[[pool]]
name = "app"
network = "blue"
table_size = 997
backends = [
  { name = "app1", address = "10.1.0.21", host = "172.16.0.101" },
  { name = "app2", address = "10.1.0.22", host = "172.16.0.102" },
]
"#;

#[test]
fn private_frontends_are_shown_and_explained() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.toml");
    std::fs::write(&path, format!("{TEXT}{PRIVATE}")).unwrap();
    let said = slb(&path, "check", &[]);
    for line in [
        "rule \"app\": tcp port 80 of 10.1.0.100 in network \"blue\" to pool \"app\" (2 of 2",
        "network \"blue\": VNI 5001, 10.1.0.0/16, fd00:1::/64, 7 addresses of vms, 1 private frontend",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let explain = |from, source: &str, role: &[&str]| {
        let mut more = vec!["--from", from, "tcp", source, "10.1.0.100:80"];
        more.extend(role);
        slb(&path, "explain", &more)
    };
    let mut chosen = [false; 2];
    for port in 2000..2040 {
        let said = explain("blue1", &format!("10.1.0.11:{port}"), &[]);
        assert!(said.contains("rule       \"app\": tcp port 80"), "{said}");
        assert!(said.contains("  hash "), "{said}");
        let backends = ["\"app1\"", "\"app2\""].map(|name| said.contains(name));
        assert_ne!(backends[0], backends[1], "{said}");
        // One is on this node, the other is not.
        let translated = said.contains("10.1.0.11:") && said.contains("> 10.1.0.21:8080");
        assert_eq!(translated, backends[0], "{said}");
        chosen = [chosen[0] | backends[0], chosen[1] | backends[1]];
    }
    assert_eq!(chosen, [true; 2]);
    // The other network has the same VIP, without a rule.
    let said = explain("red1", "10.1.0.11:2000", &[]);
    assert!(said.contains("no rule"), "{said}");
    let said = slb(
        &path,
        "explain",
        &["--role", "mux", "tcp", "10.1.0.11:2000", "10.1.0.100:80"],
    );
    assert!(said.contains("not for a VIP"), "{said}");
}

#[test]
fn faults_of_private_frontends_are_told_with_their_lines() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.toml");
    let told = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let mut slb = Command::new(env!("CARGO_BIN_EXE_slb"));
        let output = slb.arg("check").arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let all = format!("{TEXT}{PRIVATE}");
    for (old, new, expected) in [
        (
            "network = \"blue\"\n\n[[frontend]]",
            "network = \"bleu\"\n\n[[frontend]]",
            "frontend \"app\": network: there is no network \"bleu\": did you mean \"blue\"?",
        ),
        (
            "pool = \"app\"\nprotocol",
            "pool = \"app\"\nanswers = \"mux\"\nprotocol",
            "rule \"app\": answers: expected \"direct\", since no mux is on the way",
        ),
        (
            "frontend = \"app\"\n",
            "frontend = \"app-red\"\n",
            "rule \"app\": pool: frontend \"app-red\" belongs to network \"red\": expected a pool of it, got pool \
             \"app\" of VNI 5001",
        ),
        (
            "address = \"10.1.0.100\"\nnetwork = \"blue\"",
            "address = \"10.2.0.100\"\nnetwork = \"blue\"",
            "frontend \"app\": address: expected an address in an address space of network \"blue\", got 10.2.0.100",
        ),
        (
            "address = \"10.1.0.100\"\nnetwork = \"blue\"",
            "address = \"10.1.0.1\"\nnetwork = \"blue\"",
            "network \"blue\": gateways: expected an address of its own, but 10.1.0.1 is the address of frontend \
             \"app\", which leads into the network",
        ),
        (
            "address = \"10.1.0.100\"\nnetwork = \"blue\"",
            "address = \"10.1.0.13\"\nnetwork = \"blue\"",
            "vm \"blue3\": address: 10.1.0.13 is the address of frontend \"app\"",
        ),
        (
            "address = \"10.1.0.100\"\nnetwork = \"blue\"",
            "address = \"10.1.0.22\"\nnetwork = \"blue\"",
            "pool \"app\": backend \"app2\": address: expected an address of its own, but 10.1.0.22 is frontend \
             \"app\"'s",
        ),
        (
            "address = \"10.1.0.100\"\nnetwork = \"blue\"",
            "address = \"10.1.0.100\"",
            "frontend \"app-red\": address: 10.1.0.100 is the address of frontend \"app\" already",
        ),
        (
            "address = \"10.1.0.100\"\nnetwork = \"blue\"",
            "address = \"10.1.0.0\"\nnetwork = \"blue\"",
            "frontend \"app\": address: expected an address that a host can have, but 10.1.0.0 is the first or the \
             last of 10.1.0.0/16",
        ),
        (
            "address = \"10.1.0.100\"\nnetwork = \"blue\"",
            "address = \"10.1.255.255\"\nnetwork = \"blue\"",
            "frontend \"app\": address: expected an address that a host can have, but 10.1.255.255 is the first or \
             the last of 10.1.0.0/16",
        ),
        (
            "backend_port = 8080\n",
            "backend_port = 8080\ndisable_outbound_snat = false\n",
            "frontends: expected a public frontend, but \"app\" belongs to network \"blue\"",
        ),
    ] {
        assert!(all.contains(old), "{old}");
        let said = told(&all.replacen(old, new, 1));
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn a_proxy_is_told_the_names_of_private_frontends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.toml");
    std::fs::write(&path, format!("{TEXT}{PRIVATE}")).unwrap();
    let mut slb = Command::new(env!("CARGO_BIN_EXE_slb"));
    let slb = slb.arg("explain").arg(&path);
    let packet = ["tcp", "1.2.3.4:2000", "10.1.0.100:80"];
    let output = slb.args(["--role", "proxy"]).args(packet).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    for (frontend, network) in [("app", "blue"), ("app-red", "red")] {
        let expected = format!(
            "frontend {frontend:?}: network: expected a public frontend, since a proxy knows no networks, but it \
             belongs to network {network:?}"
        );
        assert!(said.contains(&expected), "{expected}: {said}");
    }
}
