//! Small inputs that once gave wrong results, through the program's own commands: packets that are forwarded,
//! answered and dropped, and configurations that are refused.
//!
//! The inputs are in `cases`, beside the captures of other projects, and are not part of this project: the tests
//! say so and are skipped where they are missing. `docs/testing.md` names the tests that build packets of each kind.

use crate::common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::read;

/// A replay of one folder's captures.
struct Replay {
    /// The folder of its configuration and captures.
    name: &'static str,
    /// The configuration, if it is one of this project's examples.
    example: Option<&'static str>,
    /// Beginnings of lines of the report, with one space between words.
    expected: &'static [&'static str],
}

const fn replay(name: &'static str, expected: &'static [&'static str]) -> Replay {
    Replay {
        name,
        example: None,
        expected,
    }
}

/// The right results, in the order of the folders.
const REPLAYS: &[Replay] = &[
    replay("bad-ip-checksum", &["forwarded 0 0", "bad_checksum 2"]),
    Replay {
        example: Some("proxy.toml"),
        ..replay(
            "clock-jump",
            &["forwarded 6", "live: 1 syn_sent, 1 established"],
        )
    },
    // The last connection is to the server itself: the one to the VIP is over.
    replay(
        "direct-timewait-v6",
        &["forwarded 8", "connections: 1 made, 0 expired, 1 removed"],
    ),
    Replay {
        example: Some("web.toml"),
        ..replay("echo-zero", &["replied 3", "dropped 0 0"])
    },
    replay(
        "forged-rst",
        &["forwarded 14", "flows: 1 made, 0 expired", "web b3 1 14 1"],
    ),
    replay(
        "fragmented-syn-counts-as-accepted",
        &["forwarded 3", "web b2 1 3 1"],
    ),
    replay("fragments-out-of-order", &["forwarded 4", "dropped 0 0"]),
    // The kernel routes the vm's own packet; the packet that returns is refused, and no rule takes UDP.
    replay(
        "hairpin-no-outbound",
        &["passed 1", "no_rule 1", "resets: 1 sent"],
    ),
    replay(
        "halfclose-150-v4",
        &["forwarded 13", "live: 1 fin_wait_inward"],
    ),
    replay("icmp-bad-checksum", &["forwarded 4", "icmp_checksum 1"]),
    replay("icmp-redirect", &["forwarded 1", "icmp_redirect 1"]),
    replay("icmp-rule-fragments", &["web b1 1 3 1", "web6 s3 1 2 1"]),
    replay("icmp4-redirect", &["forwarded 4", "icmp_redirect 1"]),
    replay("icmp4-redirect-host", &["forwarded 1", "icmp_redirect 1"]),
    replay(
        "ipv6-fragment-of-destopt",
        &["forwarded 4", "web6 s2 1 4 2"],
    ),
    replay("link-local-source", &["forwarded 0 0", "martian 2"]),
    // Only pings exceed their limit.
    replay(
        "ping-flood-starves-pmtud",
        &["replied 726", "dropped 5274", "echo_ignored 5274"],
    ),
    replay(
        "reuse-timewait-v4",
        &["forwarded 89", "live: 1 established", "p4 one 1 89 2"],
    ),
    replay("reuse2-established-rst", &["forwarded 11", "p6 one 1 11 2"]),
    replay(
        "reuse2-finwait-idle130",
        &[
            "forwarded 13",
            "live: 1 established",
            "p6 one 1 0",
            "p4 one 1 13 2",
        ],
    ),
    replay("rst-inwindow-v4", &["forwarded 19", "live: 1 established"]),
    replay("slow-synack-v4", &["forwarded 3", "live: 1 established"]),
    replay(
        "snat-exhausted",
        &[
            "forwarded 8",
            "replied 2",
            "SNAT of web-servers/vm1: 8 of 8 ports in use, 8 connections, 2 found no port",
        ],
    ),
    replay("syn-other-isn-v4", &["forwarded 10", "resets: 2 sent"]),
    replay("tcp-fragment-at-8", &["forwarded 4", "tiny_fragment 1"]),
    replay("tpid-9100", &["forwarded 1", "web b1 1 1 1"]),
    replay("traceroute-from-vm", &["forwarded 1", "replied 1"]),
    replay("tuple-taken", &["forwarded 12", "connections: 2 made"]),
    replay("udp-idle-mux", &["forwarded 2", "flows: 1 made, 0 expired"]),
    replay(
        "udp-idle-proxy",
        &["forwarded 3", "connections: 1 made, 0 expired"],
    ),
];

/// Configurations that are refused, and parts of the messages, each of a line of its own.
const REFUSED: &[(&str, &[&str])] = &[
    (
        "addresses-called-good/c.toml",
        &[
            "c.toml:3: node: underlay:",
            "c.toml:4: node: mac:",
            "c.toml:5: node: next_hop:",
            "c.toml:8: frontend \"v\": address:",
            "backend \"b1\": address:",
            "backend \"b1\": host:",
            "backend \"b2\": address:",
            "backend \"b2\": host:",
        ],
    ),
    (
        "ipv6-below-1280/c.toml",
        &["c.toml:32: pool \"web6\": backend \"s1\":"],
    ),
    (
        "mac-collision/mac-collision-host.toml",
        &[":12: pool \"web6\": backend \"s2\":"],
    ),
    (
        "mac-collision/mac-collision-mux.toml",
        &[":12: pool \"web6\": backend \"s2\":"],
    ),
    (
        "overlapping-tenants/c.toml",
        &["c.toml:17: pool \"tb\": backend \"x\": address:"],
    ),
    (
        "vip-is-underlay/c.toml",
        &["c.toml:4: frontend \"self\": address:"],
    ),
    (
        "weight-without-a-slot/c.toml",
        &["c.toml:26: pool \"web\": backend \"b2\": weight:"],
    ),
];

/// Configurations that are good by themselves: tests of running programs use their kinds.
const GOOD: [&str; 4] = [
    "half-written/c.toml",
    "reload/more-rules-by-reload.toml",
    "reload/rule-counters-1.toml",
    "reload/rule-counters-2.toml",
];

/// Folders that `slb-io-pcap/tests/captures.rs` and `templates_are_imported_whole` read.
const ELSEWHERE: [&str; 2] = ["capture-files", "azure"];

fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/cases");
    folder.is_dir().then_some(folder)
}

fn slb(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
    command.args(arguments).output().unwrap()
}

/// Replays the captures of a folder. Returns the lines of the report, with one space between words, and the frames
/// that were sent.
fn replayed(case: &Replay, folder: &Path) -> (Vec<String>, Vec<Vec<u8>>) {
    let own = folder.join(case.name);
    let config = match case.example {
        Some(name) => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples")
            .join(name),
        None => own.join("c.toml"),
    };
    let out = tempfile::tempdir().unwrap();
    let mut arguments = vec![
        "replay".to_owned(),
        "-c".to_owned(),
        config.display().to_string(),
    ];
    let mut outputs = Vec::new();
    for (file, port) in [
        ("in.pcap", ""),
        ("in-frontend.pcap", "frontend="),
        ("in-backend.pcap", "backend="),
    ] {
        let input = own.join(file);
        let output = out.path().join(file);
        if port.is_empty() == own.join("in.pcap").exists() {
            let name = |path: &Path| format!("{port}{}", path.display());
            if input.exists() {
                arguments.extend(["--in".to_owned(), name(&input)]);
            }
            arguments.extend(["--out".to_owned(), name(&output)]);
            outputs.push(output);
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = slb(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", case.name);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = report
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let sent = outputs.iter().flat_map(|path| read(path));
    (lines.collect(), sent.map(|(_, frame)| frame).collect())
}

#[test]
fn captures_give_what_is_right() {
    let Some(folder) = folder() else {
        skip!("../shared/cases is missing");
    };
    for case in REPLAYS {
        let (report, _) = replayed(case, &folder);
        for expected in case.expected {
            // Whole words only.
            let is_there = report.iter().any(|line| {
                let rest = line.strip_prefix(expected);
                rest.is_some_and(|rest| rest.is_empty() || !rest.starts_with(char::is_alphanumeric))
            });
            assert!(is_there, "{}: no {expected:?} in {report:#?}", case.name);
        }
    }
}

/// Returns the bytes of an untagged frame's IPv4 or IPv6 source address.
fn source(frame: &[u8]) -> &[u8] {
    if frame[12] == 0x86 {
        &frame[22..38]
    } else {
        &frame[26..30]
    }
}

#[test]
fn what_is_sent_has_the_right_names_and_checksums() {
    let Some(folder) = folder() else {
        skip!("../shared/cases is missing");
    };
    let sent = |name: &str| {
        let case = REPLAYS.iter().find(|case| case.name == name).unwrap();
        replayed(case, &folder).1
    };
    // Errors of the host agent come from its own address.
    let errors = sent("traceroute-from-vm");
    assert_eq!(errors.len(), 2);
    for error in errors {
        assert_eq!((source(&error), error[34]), (&[172, 16, 0, 101][..], 11));
    }
    // The server's answer to the direct connection keeps its name, that to the VIP has the VIP's.
    let answers = sent("direct-timewait-v6");
    let syn_acks: Vec<&[u8]> = answers
        .iter()
        .filter(|frame| frame[14 + 40 + 13] == 0x12)
        .map(|frame| source(frame))
        .collect();
    let vip: std::net::Ipv6Addr = "2001:db8:20::100".parse().unwrap();
    let server: std::net::Ipv6Addr = "fd00:10::11".parse().unwrap();
    assert_eq!(syn_acks, [&vip.octets()[..], &server.octets()[..]]);
    // RFC 1624 §3.
    let checksums: Vec<u16> = sent("echo-zero")
        .iter()
        .map(|frame| u16::from_be_bytes([frame[36], frame[37]]))
        .collect();
    assert_eq!(checksums, [0xffff, 0xffff, 0xfffe]);
}

#[test]
fn configurations_that_cannot_work_are_refused_line_by_line() {
    let Some(folder) = folder() else {
        skip!("../shared/cases is missing");
    };
    let check = |file: &str| {
        let output = slb(&["check", &folder.join(file).display().to_string()]);
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    for (file, complaints) in REFUSED {
        let (is_good, said) = check(file);
        assert!(!is_good, "{file}: {said}");
        for complaint in *complaints {
            let count = said.lines().filter(|line| line.contains(complaint)).count();
            assert_eq!(count, 1, "{file}: {complaint:?} in {said}");
        }
    }
    for file in GOOD {
        let (is_good, said) = check(file);
        assert!(is_good, "{file}: {said}");
    }
}

#[cfg(feature = "azure")]
#[test]
fn templates_are_imported_whole() {
    let Some(folder) = folder() else {
        skip!("../shared/cases is missing");
    };
    let path = |name: &str| folder.join("azure").join(name).display().to_string();
    for (template, inventory, addresses) in [
        // A copy loop of three, whose count is an expression.
        (
            "std4.json",
            "inv.toml",
            &["10.0.0.4", "10.0.0.5", "10.0.0.6"][..],
        ),
        // A pool as a resource of its own.
        ("poolboth.json", "inv3.toml", &["10.0.0.4", "10.0.0.5"]),
        // A balancer whose condition is false.
        ("cond.json", "inv3.toml", &["10.0.0.4"]),
    ] {
        let output = slb(&["import", &path(template), "--inventory", &path(inventory)]);
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{template}: {errors}");
        for address in addresses {
            assert!(
                said.contains(&format!("\"{address}\"")),
                "{template}: {said}"
            );
        }
        assert!(!said.contains("10.0.0.101"), "{template}: {said}");
    }
}

#[test]
fn each_folder_has_a_test() {
    let Some(folder) = folder() else {
        skip!("../shared/cases is missing");
    };
    let files = REFUSED.iter().map(|(file, _)| *file).chain(GOOD);
    let tested: BTreeSet<&str> = files
        .filter_map(|file| file.split('/').next())
        .chain(REPLAYS.iter().map(|case| case.name))
        .chain(ELSEWHERE)
        .collect();
    let there: BTreeSet<String> = fs::read_dir(folder)
        .unwrap()
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let there: BTreeSet<&str> = there.iter().map(String::as_str).collect();
    assert_eq!(tested, there);
}
