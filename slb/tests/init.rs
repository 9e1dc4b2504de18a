//! `slb init` and what `slb replay` says of a capture whose packets are for no VIP. No root.

use crate::common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn slb(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
    command
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap()
}

#[track_caller]
fn text(arguments: &[&str]) -> String {
    let output = slb(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

const SERVICES: [(&str, &str); 3] = [
    ("--tcp", "203.0.113.5:443"),
    ("--tcp", "[2001:db8:77::5]:8080"),
    ("--udp", "203.0.113.6:53"),
];

/// A capture of three services, with the servers' side.
fn capture(folder: &Path) -> String {
    let path = folder.join("site.pcap").display().to_string();
    let mut arguments = vec!["generate", "--out", &path, "--sessions", "20", "--replies"];
    for (kind, service) in SERVICES {
        arguments.extend([kind, service]);
    }
    text(&arguments);
    path
}

#[test]
fn a_replay_for_no_vip_says_what_is_called_most() {
    let folder = tempfile::tempdir().unwrap();
    let capture = capture(folder.path());
    let said = text(&["replay", "examples/web.toml", "--in", &capture]);
    let (_, list) = said
        .split_once("no packet was for a VIP")
        .unwrap_or_else(|| panic!("{said}"));
    for service in [
        "tcp 203.0.113.5:443",
        "tcp [2001:db8:77::5]:8080",
        "udp 203.0.113.6:53",
    ] {
        assert!(list.contains(service), "{service}: {said}");
    }
    assert!(
        list.contains(&format!("slb init --from {capture}")),
        "{said}"
    );
    // Clients are called by nobody.
    let json = text(&[
        "replay",
        "examples/web.toml",
        "--in",
        &capture,
        "--report",
        "json",
    ]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let found = json["destinations"].as_array().unwrap();
    assert_eq!(found.len(), SERVICES.len(), "{found:?}");
    let packets = found.iter().map(|one| one["packets"].as_u64().unwrap());
    assert!(packets.clone().is_sorted_by(|a, b| a >= b) && packets.min() > Some(10));
    // One that is for a VIP has no such list.
    let said = text(&[
        "replay",
        "examples/web.toml",
        "--in",
        "examples/sample.pcap",
    ]);
    assert!(!said.contains("no packet was for a VIP"), "{said}");
}

#[test]
fn the_configuration_is_good_and_serves_the_capture() {
    let folder = tempfile::tempdir().unwrap();
    let capture = capture(folder.path());
    let config = folder.path().join("mux.toml").display().to_string();
    text(&["init", "--from", &capture, "--out", &config]);
    assert_eq!(
        fs::read_to_string(&config).unwrap(),
        text(&["init", "--from", &capture])
    );
    assert_eq!(
        text(&["init", "--from", &capture, "--out", "-"]),
        text(&["init", "--from", &capture])
    );
    assert!(text(&["check", &config]).contains("OK"));
    let report = text(&["replay", &config, "--in", &capture, "--report", "json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let rules = report["rules"].as_array().unwrap();
    assert_eq!(rules.len(), SERVICES.len(), "{rules:?}");
    for rule in rules {
        assert!(
            rule["forwarded"]["packets"].as_u64().unwrap() > 10,
            "{rule}"
        );
    }
    assert_eq!(
        report["dropped"]["no_rule"]["packets"]
            .as_u64()
            .unwrap_or(0),
        0
    );
    // Fewer services, the most called first.
    let one = text(&["init", "--from", &capture, "--services", "1"]);
    assert_eq!(one.matches("[[rule]]").count(), 1, "{one}");
    // A configuration that is there stays.
    let output = slb(&["init", "--from", &capture, "--out", &config]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--out"));
    // And a capture without services is said to be one.
    let empty = folder.path().join("empty.pcap").display().to_string();
    text(&[
        "generate",
        "--out",
        &empty,
        "--tcp",
        "127.0.0.1:80",
        "--sessions",
        "1",
    ]);
    let output = slb(&["init", "--from", &empty]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("no TCP or UDP packet")
    );
}

#[test]
fn what_was_left_out_of_a_capture_is_said_by_link_type() {
    let folder = tempfile::tempdir().unwrap();
    let config = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name).display().to_string();
        fs::write(&path, bytes).unwrap();
        let output = slb(&["init", "--from", &path]);
        (
            path,
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    // NFLOG, with one packet or two: magic, version, zone, accuracy, snap length, link type.
    let mut file = Vec::new();
    for field in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 239] {
        file.extend(field.to_le_bytes());
    }
    for (count, said) in [(1, "1 packet"), (2, "2 packets")] {
        for field in [1_700_000_000_u32, 0, 8, 8] {
            file.extend(field.to_le_bytes());
        }
        file.extend([0; 8]);
        let (path, status, error) = config("nflog.pcap", &file);
        let line = format!(
            "warning: {path}: left out: {said} of link type 239 (NFLOG), which is not supported\n"
        );
        assert!(error.starts_with(&line), "{count}: {error}");
        assert_eq!(status, Some(1), "{error}");
    }
    // A capture that is damaged serves as far as it goes, and that is said too.
    let capture = fs::read(capture(folder.path())).unwrap();
    let (_, status, error) = config("cut.pcap", &capture[..capture.len() - 7]);
    assert_eq!(status, Some(0), "{error}");
    assert!(
        error.contains(": the rest was not read: packet "),
        "{error}"
    );
    let (path, status, error) = config("empty.pcap", b"");
    assert_eq!(status, Some(1));
    assert_eq!(
        error,
        format!("slb: {path}: the file is empty: expected a pcap or pcapng file\n")
    );
}

#[test]
fn captures_of_others_are_served_by_what_init_makes_of_them() {
    let Some(captures) = common::captures() else {
        skip!("no captures beside the repository");
    };
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("mux.toml").display().to_string();
    let (mut served, mut left) = (0, 0);
    // Damaged header checksums, source routes: no packet of these is forwarded whatever the rules.
    let mut unserved = Vec::new();
    for capture in captures {
        let capture = capture.display().to_string();
        let made = slb(&["init", "--from", &capture]);
        if !made.status.success() {
            left += 1;
            continue;
        }
        fs::write(&config, made.stdout).unwrap();
        text(&["check", &config]);
        let output = slb(&[
            "replay", &config, "--in", &capture, "--cut", "--report", "json",
        ]);
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        let count = |place: &str| report.pointer(place).and_then(Value::as_u64).unwrap_or(0);
        let forwarded = count("/forwarded/packets") + count("/dropped/ttl_expired/packets");
        if forwarded == 0 {
            unserved.push(capture);
            continue;
        }
        served += 1;
    }
    assert!(
        served >= 10 * unserved.len(),
        "{served} served, but not {unserved:?}"
    );
    assert!(served > left, "{served} served, {left} without a service");
}
