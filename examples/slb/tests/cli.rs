//! The program as its users run it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn slb(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap()
}

#[track_caller]
fn ok(arguments: &[&str]) -> String {
    let output = slb(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

const SAMPLE: [&str; 5] = [
    "replay",
    "--config",
    "examples/web.toml",
    "--in",
    "examples/sample.pcap",
];

#[track_caller]
fn report(more: &[&str]) -> serde_json::Value {
    let arguments: Vec<&str> = SAMPLE
        .iter()
        .chain(more)
        .chain(&["--report", "json"])
        .copied()
        .collect();
    serde_json::from_str(&ok(&arguments)).unwrap()
}

#[test]
fn the_sample_is_what_generate_makes() {
    let directory = tempfile::tempdir().unwrap();
    let made = directory.path().join("sample.pcap");
    ok(&[
        "generate",
        "--out",
        made.to_str().unwrap(),
        "--tcp",
        "20.20.20.100:80",
        "--tcp",
        "[2001:db8:20::100]:80",
        "--udp",
        "20.20.20.100:7777",
        "--sessions",
        "60",
        "--packets",
        "2",
        "--size",
        "60",
        "--replies",
    ]);
    assert_eq!(
        fs::read(made).unwrap(),
        fs::read(root().join("examples/sample.pcap")).unwrap()
    );
}

#[test]
fn a_replay_accounts_for_every_packet() {
    let report = report(&[]);
    let packets = |name: &str| report[name]["packets"].as_u64().unwrap();
    assert_eq!(packets("received"), 1440);
    let parts = ["forwarded", "replied", "passed", "dropped_total"];
    assert_eq!(parts.map(packets).iter().sum::<u64>(), 1440);
    assert_eq!(packets("forwarded"), 840);
    assert_eq!(report["flows"]["made"], 180);
    assert_eq!(report["syns"], 120);
    let backends = report["backends"].as_array().unwrap();
    let forwarded = backends
        .iter()
        .map(|b| b["forwarded"]["packets"].as_u64().unwrap());
    assert_eq!(forwarded.sum::<u64>(), 840);
    let text = ok(&SAMPLE);
    assert!(
        text.contains("forwarded") && text.contains("by weight"),
        "{text}"
    );
}

#[test]
fn the_same_replay_gives_the_same_bytes_stateless_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let out = |name: &str, more: &[&str]| {
        let path = directory.path().join(name);
        let to = ["--out", path.to_str().unwrap()];
        report(&to.iter().chain(more).copied().collect::<Vec<_>>());
        fs::read(path).unwrap()
    };
    let once = out("once.pcap", &[]);
    assert_eq!(once, out("again.pcap", &[]));
    assert_eq!(once, out("stateless.pcap", &["--stateless"]));
    let other = out("down.pcap", &["--down", "web-servers/vm2"]);
    assert!(once != other && once.len() == other.len());
}

#[test]
fn a_backend_that_is_down_or_drained_gets_nothing_new() {
    for option in ["--down", "--drain"] {
        let report = report(&[option, "web-servers/vm2"]);
        let vm2 = &report["backends"][1];
        assert_eq!(
            (&vm2["backend"], &vm2["forwarded"]["packets"]),
            (&"vm2".into(), &0.into())
        );
    }
}

#[test]
fn explain_tells_the_packet_s_way() {
    let explain = |more: &[&str]| {
        let base = ["explain", "--config", "examples/web.toml"];
        ok(&base.iter().chain(more).copied().collect::<Vec<_>>())
    };
    let text = explain(&["tcp", "1.2.3.4:50000", "20.20.20.100:80"]);
    for expected in [
        "tcp 1.2.3.4:50000 > 20.20.20.100:80, SYN",
        "rule       \"http\": tcp port 80",
        "slot 55012 of 65537",
        "new: pinned",
        "backend    \"vm1\" (10.10.1.11) on host 172.16.0.101",
        "verdict    forward",
        "IPv4 172.16.0.11 > 172.16.0.101, TTL 64, UDP 54637 > 4789, VNI 5001",
    ] {
        assert!(text.contains(expected), "{expected:?} in:\n{text}");
    }
    let text = explain(&["--in", "examples/sample.pcap", "--packet", "40"]);
    assert!(text.contains("packet 40 of examples/sample.pcap"), "{text}");
    assert!(explain(&["icmp", "1.2.3.4", "20.20.20.100"]).contains("verdict    reply"));
    assert!(explain(&["udp", "1.2.3.4:1", "20.20.20.100:9"]).contains("drop, no_rule"));
    assert!(explain(&["udp", "[::1]:1", "[::2]:9"]).contains("pass, untouched"));
}

/// Fragments, errors and the like are explained by the pipeline itself: here, that the packets
/// before the one asked for are processed first.
#[test]
fn explain_knows_the_flows_of_the_packets_before() {
    let mut hits = 0;
    for packet in ["300", "400", "500", "600"] {
        let arguments = [
            "explain",
            "--config",
            "examples/web.toml",
            "--in",
            "examples/sample.pcap",
            "--packet",
        ];
        let text = ok(&arguments
            .iter()
            .copied()
            .chain([packet])
            .collect::<Vec<_>>());
        hits += usize::from(text.contains("flow       pinned, "));
    }
    assert!(hits > 0);
}

#[test]
fn check_says_what_a_configuration_comes_to_or_what_is_wrong() {
    let text = ok(&["check", "examples/web.toml"]);
    assert!(
        text.contains("rule \"http\": tcp port 80 of 20.20.20.100"),
        "{text}"
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.toml");
    let good = fs::read_to_string(root().join("examples/web.toml")).unwrap();
    fs::write(
        &path,
        good.replace("idle_timeout = \"4m\"", "idle_timeout = \"3m\""),
    )
    .unwrap();
    let output = slb(&["check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("rule \"http\": idle_timeout: expected a time from 4m"),
        "{errors}"
    );
}

#[test]
fn a_damaged_capture_ends_with_1_after_its_good_packets() {
    let directory = tempfile::tempdir().unwrap();
    let (input, out) = (
        directory.path().join("cut.pcap"),
        directory.path().join("out.pcap"),
    );
    let whole = fs::read(root().join("examples/sample.pcap")).unwrap();
    fs::write(&input, &whole[..whole.len() / 2]).unwrap();
    let output = slb(&[
        "replay",
        "--config",
        "examples/web.toml",
        "--in",
        input.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("cut.pcap: packet ") && errors.contains(", at byte "),
        "{errors}"
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("forwarded"));
    assert!(fs::metadata(out).unwrap().len() > 30_000);
}

#[test]
fn bad_usage_is_2_and_failure_1() {
    for (arguments, status) in [
        (&["replay"][..], 2),
        (&["fly"], 2),
        (
            &[
                "explain",
                "--config",
                "examples/web.toml",
                "sctp",
                "1.1.1.1",
                "2.2.2.2",
            ],
            2,
        ),
        (
            &[
                "explain",
                "--config",
                "examples/web.toml",
                "tcp",
                "1.1.1.1",
                "2.2.2.2:80",
            ],
            2,
        ),
        (
            &[
                "replay",
                "--config",
                "examples/web.toml",
                "--in",
                "/nowhere.pcap",
            ],
            1,
        ),
        (
            &[
                "replay",
                "--config",
                "/nowhere.toml",
                "--in",
                "examples/sample.pcap",
            ],
            2,
        ),
        (
            &[
                "replay",
                "--config",
                "examples/web.toml",
                "--in",
                "examples/web.toml",
            ],
            1,
        ),
        (
            &[
                "replay",
                "--config",
                "examples/web.toml",
                "--in",
                "examples/sample.pcap",
                "--down",
                "vm9",
            ],
            2,
        ),
    ] {
        let output = slb(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}

/// The sample through a mux, and what it sends through the host: every packet reaches a vm under
/// its own address, and tshark finds its checksums right.
#[test]
fn what_the_mux_sends_the_host_takes() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (fabric, vms) = (path("fabric.pcap"), path("vms.pcap"));
    let config = "examples/host.toml";
    let run = |role: &str, input: &str, output: &str| -> serde_json::Value {
        let output = slb(&[
            "replay", "--config", config, "--role", role, "--in", input, "--out", output,
            "--report", "json",
        ]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let at_mux = run("mux", "examples/sample.pcap", &fabric);
    let sent = at_mux["forwarded"]["packets"].as_u64().unwrap();
    assert!(sent > 300, "{at_mux}");
    let at_host = run("host", &fabric, &vms);
    assert_eq!(at_host["received"]["packets"], sent);
    assert_eq!(at_host["forwarded"]["packets"], sent);
    assert_eq!(at_host["connections"]["made"], at_mux["flows"]["made"]);
    assert_eq!(at_host["resets"], 0);
    let Ok(tshark) = Command::new("tshark")
        .args([
            "-r",
            &vms,
            "-T",
            "fields",
            "-e",
            "ip.dst",
            "-e",
            "tcp.dstport",
        ])
        .args(["-e", "ip.checksum.status", "-e", "tcp.checksum.status"])
        .args([
            "-o",
            "ip.check_checksum:TRUE",
            "-o",
            "tcp.check_checksum:TRUE",
        ])
        .output()
    else {
        assert!(
            std::env::var_os("SLB_REQUIRE_ALL").is_none(),
            "tshark is missing"
        );
        eprintln!("SKIPPED: tshark is not installed");
        return;
    };
    let text = String::from_utf8(tshark.stdout).unwrap();
    assert_eq!(text.lines().count() as u64, sent);
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        assert!(["10.10.1.11", "10.10.1.12"].contains(&fields[0]), "{line}");
        assert_eq!(fields[1..], ["8080", "1", "1"], "{line}");
    }
}

#[test]
fn explain_tells_the_way_through_mux_and_host_and_out_again() {
    let config = "examples/host.toml";
    let told = |tuple: [&str; 3]| {
        let mut arguments = vec!["explain", "--config", config];
        arguments.extend(tuple);
        let output = slb(&arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let inbound = told(["tcp", "1.2.3.4:50000", "20.20.20.100:2201"]);
    for text in [
        "inbound NAT \"ssh\": tcp port 2201 to backend \"vm2\", port 22",
        "out of VXLAN, VNI 5001, for port 2",
        "translated tcp 1.2.3.4:50000 > 10.10.1.12:22",
    ] {
        assert!(inbound.contains(text), "{inbound}");
    }
    let outbound = told(["udp", "10.10.1.11:5353", "9.9.9.9:53"]);
    assert!(
        outbound.contains("translated udp 20.20.20.200:"),
        "{outbound}"
    );
}
