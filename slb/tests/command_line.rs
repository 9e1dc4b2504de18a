//! The options that name a command's configuration, and the port of arrival of an explained packet.
//! No root.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn slb(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap()
}

/// The standard output and the standard error of a command, and its exit status.
fn said(arguments: &[&str]) -> (Option<i32>, String) {
    let output = slb(arguments);
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

const WEB: &str = "examples/web.toml";
const HOST: &str = "examples/host.toml";
const SAMPLE: &str = "examples/sample.pcap";

#[test]
fn every_command_takes_its_configuration_with_and_without_the_option() {
    let tuple = ["tcp", "1.2.3.4:50000", "20.20.20.100:80"];
    let packet = ["--in", SAMPLE, "--packet", "4"];
    let cases: [(&str, &[&str], i32); 7] = [
        ("check", &[], 0),
        ("replay", &["--in", SAMPLE, "--report", "json"], 0),
        ("explain", &tuple, 0),
        ("explain", &packet, 0),
        // No device of this name: the configuration was read before.
        (
            "mux",
            &["--io", "tun:no/device", "--status", "/dev/null"],
            1,
        ),
        (
            "host",
            &["--io", "tun:no/device", "--status", "/dev/null"],
            1,
        ),
        ("proxy", &["--io", "frontend=tun:no/device"], 2),
    ];
    for (command, more, status) in cases {
        let config = match command {
            "host" => HOST,
            "proxy" => "examples/proxy.toml",
            _ => WEB,
        };
        let ways: [&[&str]; 3] = [&["--config", config], &["-c", config], &[config]];
        let results = ways.map(|way| {
            let mut arguments = vec![command];
            arguments.extend(way);
            arguments.extend(more);
            let (code, text) = said(&arguments);
            assert_eq!(code, Some(status), "{arguments:?}: {text}");
            // Times differ.
            let lines = text.lines();
            let lines =
                lines.filter(|line| !line.contains("per_second") && !line.contains(" WARN "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        });
        for (line, result) in results.iter().skip(1).enumerate() {
            let same = result == &results[0];
            assert!(same, "{command}, way {line}: {result:?}");
        }
        // One of them, and one only.
        let mut none = vec![command];
        none.extend(more);
        assert_eq!(said(&none).0, Some(2), "{none:?}");
        let mut twice = vec![command, "--config", config, config];
        twice.extend(more);
        assert_eq!(said(&twice).0, Some(2), "{twice:?}");
    }
    for arguments in [
        &["diff", WEB, HOST][..],
        &["diff", "--config", WEB, HOST],
        &["diff", "--config", WEB, "--config", HOST],
    ] {
        let (status, text) = said(arguments);
        assert_eq!(status, Some(0), "{arguments:?}: {text}");
        assert!(text.contains("+ frontend"), "{text}");
    }
    for arguments in [
        &["diff", WEB][..],
        &["diff", "--config", WEB],
        &["diff", "-c", WEB, WEB, HOST],
    ] {
        let (status, text) = said(arguments);
        assert_eq!(status, Some(2), "{arguments:?}: {text}");
    }
}

#[test]
fn a_packet_of_a_vm_is_explained_as_it_comes_in_by_the_vms_port() {
    let explain = |more: &[&str]| {
        let mut arguments = vec!["explain", HOST];
        arguments.extend(more);
        said(&arguments)
    };
    let out = ["tcp", "10.10.1.11:5000", "198.51.100.7:443"];
    let (status, by_source) = explain(&out);
    assert_eq!(status, Some(0), "{by_source}");
    assert!(
        by_source.contains("verdict    forward, out of port 0"),
        "{by_source}"
    );
    assert!(
        by_source.contains("20.20.20."),
        "the SNAT address: {by_source}"
    );
    for port in ["vm1", "1"] {
        let (status, text) = explain(&[&["--from", port][..], &out].concat());
        assert_eq!((status, &text), (Some(0), &by_source), "{port}");
    }
    // The same packet from another vm's port is not the vm's.
    let (_, other) = explain(&[&["--from", "2"][..], &out].concat());
    assert!(other.contains("drop, spoofed_source"), "{other}");
    // From the fabric it comes through a mux.
    let (_, fabric) = explain(&[&["--from", "0"][..], &out].concat());
    assert!(
        fabric.contains("at a mux with this configuration"),
        "{fabric}"
    );
    let (status, text) = explain(&[&["--from", "vm9"][..], &out].concat());
    assert_eq!(status, Some(2), "{text}");
    assert!(
        text.contains("--from \"vm9\": no such port: expected one of"),
        "{text}"
    );
}

#[test]
fn check_prints_who_has_which_ports() {
    let (status, text) = said(&["check", HOST]);
    assert_eq!(status, Some(0), "{text}");
    for line in [
        "examples/host.toml: OK",
        "  tcp ports of 20.20.20.100 by inbound NAT \"ssh\": 2200 is web-servers/vm1 port 22; 2201 is \
         web-servers/vm2 port 22",
        "  SNAT ports of 20.20.20.200: web-servers/vm1 1024-2047; web-servers/vm2 2048-3071",
    ] {
        assert!(text.lines().any(|own| own == line), "{line}: {text}");
    }
    // Of many, a few; or all.
    let mut many = std::fs::read_to_string(root().join(HOST)).unwrap();
    let more: String = (20..28)
        .map(|n| {
            format!("{{ name = \"vm{n}\", address = \"10.10.1.{n}\", host = \"172.16.0.101\" }},\n")
        })
        .collect();
    many = many.replace("backends = [\n", &format!("backends = [\n{more}"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("many.toml");
    std::fs::write(&path, many).unwrap();
    let path = path.to_str().unwrap();
    let (_, few) = said(&["check", path]);
    assert!(few.contains("and 7 more (--ports prints all)"), "{few}");
    let (_, all) = said(&["check", "--ports", path]);
    assert!(!all.contains("more"), "{all}");
    assert!(all.contains("; web-servers/vm2 10240-11263"), "{all}");
}
