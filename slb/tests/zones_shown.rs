//! Zones in the output of `slb check`, `slb explain`, `slb diff` and `slb replay`. No root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const WEB: &str = include_str!("../../examples/web.toml");

/// The example's mux in a zone, with a zonal frontend and backends in two zones.
fn with_zones(own: &str) -> String {
    let mut text = WEB.to_owned();
    for (at, zones) in [
        ("[node]\n", format!("zone = \"{own}\"\n")),
        ("address = \"20.20.20.100\"\n", "zones = \"1\"\n".to_owned()),
        ("address = \"10.10.1.11\", ", "zone = \"1\", ".to_owned()),
        ("address = \"10.10.2.11\", ", "zone = \"2\", ".to_owned()),
    ] {
        assert_eq!(text.matches(at).count(), 1, "{at}");
        text = text.replace(at, &format!("{at}{zones}"));
    }
    text
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Runs a command to its end; gives all that it printed.
#[track_caller]
fn slb(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
    let output = command.args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

#[test]
fn check_shows_the_zones_of_vips_and_the_shares_of_pools() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = write(folder.path(), "two.toml", &with_zones("2"));
    let said = slb(&["check", &elsewhere.display().to_string()]);
    for expected in [
        "tcp port 80 of 20.20.20.100, zone 1 to pool \"web-servers\"",
        "pool \"web-servers\" by zone: no zone: 1 of 1 serve, 25.00 % of new flows; \
         zone 1: 1 of 1 serve, 25.00 % of new flows; zone 2: 1 of 1 serve, 50.00 % of new flows",
        "frontend \"web\" (20.20.20.100) is of zone 1: this mux, in zone 2, does not announce it",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    let here = write(folder.path(), "one.toml", &with_zones("1"));
    let said = slb(&["check", &here.display().to_string()]);
    assert!(!said.contains("does not announce"), "{said}");
    let none = write(folder.path(), "none.toml", WEB);
    let said = slb(&["check", &none.display().to_string()]);
    assert!(!said.contains("zone"), "{said}");
    let old = none.display().to_string();
    let said = slb(&["diff", &old, &elsewhere.display().to_string()]);
    for expected in [
        "~ node: zone none becomes \"2\"\n",
        "~ frontend \"web\": zones none becomes [\"1\"]\n",
        "~ frontend \"web\": is no longer announced by this mux\n",
        "~ backend \"web-servers/vm1\": zone none becomes \"1\"\n",
    ] {
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn explain_shows_the_zones_of_a_packets_vip_and_backend() {
    let folder = tempfile::tempdir().unwrap();
    let explain = |text: &str| {
        let path = write(folder.path(), "zones.toml", text);
        let path = path.display().to_string();
        let tuple = ["tcp", "1.2.3.4:50000", "20.20.20.100:80"];
        slb(&[&["explain", "--config", &path][..], &tuple].concat())
    };
    let said = explain(&with_zones("1"));
    assert!(
        said.contains("zone       frontend \"web\" is of zone 1; backend \"vm1\" is in zone 1\n"),
        "{said}"
    );
    let said = explain(&with_zones("2"));
    assert!(
        said.contains(
            "frontend \"web\" is of zone 1, so this mux, in zone 2, does not announce it;"
        ),
        "{said}"
    );
    assert!(!explain(WEB).contains("zone"));
}

#[test]
fn reports_have_the_packets_of_each_zone() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "zones.toml", &with_zones("1"));
    let said = slb(&[
        "replay",
        "--config",
        &path.display().to_string(),
        "--in",
        "../examples/sample.pcap",
        "--report",
        "json",
    ]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let zones = report["zones"].as_array().unwrap();
    let names: Vec<_> = zones.iter().map(|own| own["zone"].as_str()).collect();
    assert_eq!(names, [None, Some("1"), Some("2")]);
    let backends = report["backends"].as_array().unwrap();
    for zone in zones {
        let own = backends
            .iter()
            .filter(|own| own["zone"] == zone["zone"] && own["pool"] == zone["pool"]);
        let packets = own.map(|own| own["forwarded"]["packets"].as_u64().unwrap());
        assert_eq!(zone["packets"].as_u64(), Some(packets.sum()));
    }
    let total: u64 = zones
        .iter()
        .map(|own| own["packets"].as_u64().unwrap())
        .sum();
    assert!(total > 0);
}
