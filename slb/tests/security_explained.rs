//! Output of `slb check` and `slb explain` about access lists. No root.

use std::path::Path;
use std::process::Command;

const TEXT: &str = r#"
[node]
role = "host"
underlay = "172.16.0.101"

[[security_list]]
name = "quiet"

[[security_rule]]
security_list = "quiet"
name = "no-telnet"
priority = 200
direction = "outbound"
access = "deny"
protocol = "tcp"
destination_ports = "23"

[[network]]
name = "blue"
vni = 5001
address_spaces = "10.1.0.0/16"

[[vm]]
name = "blue1"
network = "blue"
address = "10.1.0.11"
host = "172.16.0.101"
security_list = "quiet"

[[vm]]
name = "blue2"
network = "blue"
address = "10.1.0.12"
host = "172.16.0.102"
"#;

fn slb(config: &Path, command: &str, more: &[&str]) -> String {
    let mut slb = Command::new(env!("CARGO_BIN_EXE_slb"));
    let output = slb.arg(command).arg(config).args(more).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_rule_that_decides_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("acl.toml");
    std::fs::write(&path, TEXT).unwrap();
    let said = slb(&path, "check", &[]);
    let line = "security list \"quiet\": 1 rule, of vm \"blue1\"";
    assert!(said.contains(line), "{said}");
    let explain = |to: &str| {
        let more = ["--from", "blue1", "tcp", "10.1.0.11:1000", to];
        slb(&path, "explain", &more)
    };
    let said = explain("10.1.0.12:23");
    for part in [
        "access     outbound: list \"quiet\", rule \"no-telnet\" (priority 200): deny",
        "verdict    drop, denied: an access list of the vm denies the connection",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = explain("10.1.0.12:80");
    for part in [
        "access     outbound: list \"quiet\", default rule \"allow-network-outbound\" (priority 65000): allow",
        "neighbour  10.1.0.12 in network \"blue\", in VXLAN to host 172.16.0.102",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
