//! The program as its users run it.

use crate::common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use slb_io_pcap::{Format, Writer};

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

/// Two vms have 1024 ports each, from 1024 on.
#[test]
fn explain_names_no_outbound_rule_where_none_takes_the_packet() {
    let explain = |packet: &[&str]| {
        let base = ["explain", "--config", "examples/host.toml"];
        ok(&base.iter().chain(packet).copied().collect::<Vec<_>>())
    };
    for protocol in ["tcp", "udp"] {
        let text = explain(&[protocol, "1.2.3.4:443", "20.20.20.200:9999"]);
        assert!(text.contains("rule       none takes"), "{text}");
        assert!(text.contains("drop, no_rule"), "{text}");
        assert!(!text.contains("outbound:"), "{text}");
        assert!(!text.contains("hash  "), "{text}");
        // A mux sends on what may be for a vm, and the host knows that it is not.
        let text = explain(&[protocol, "1.2.3.4:443", "20.20.20.200:1500"]);
        let (at_mux, at_host) = text.split_once("at this host:").expect(&text);
        assert!(at_mux.contains("outbound:"), "{text}");
        assert!(at_host.contains("rule       none takes"), "{text}");
        assert!(at_host.contains("drop, no_rule"), "{text}");
        assert!(!at_host.contains("outbound:"), "{text}");
    }
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

/// A capture for each port of a proxy, merged by time: clients' packets reach backends, and the
/// backends' answers, made of those, come back to the clients under the VIP's name.
#[test]
fn a_proxy_replays_a_capture_for_each_port() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let run = |arguments: &[&str]| -> serde_json::Value {
        let config = [
            "replay",
            "--config",
            "examples/proxy.toml",
            "--report",
            "json",
        ];
        serde_json::from_str(&ok(&[&config[..], arguments].concat())).unwrap()
    };
    let option = |port: &str, name: &str| format!("{port}={}", path(name).display());
    let frontend = "frontend=examples/sample.pcap";
    run(&["--in", frontend, "--out", &option("backend", "asked.pcap")]);

    // Each SYN is answered a millisecond later.
    let mut answers = Writer::new(Vec::new(), Format::Pcap).unwrap();
    let mut count = 0;
    for (at, frame) in common::read(&path("asked.pcap")) {
        let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else {
            continue;
        };
        let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else {
            continue;
        };
        if tcp.destination_port() != 8080 && tcp.destination_port() != 8081 || !tcp.syn() {
            continue;
        }
        let mut answer = Vec::new();
        let ip = ip.header();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 3])
            .ipv4(ip.destination(), ip.source(), 64)
            .tcp(tcp.destination_port(), tcp.source_port(), 7, 1000)
            .syn()
            .ack(tcp.sequence_number().wrapping_add(1))
            .write(&mut answer, &[])
            .unwrap();
        answers
            .write(at + Duration::from_millis(1), &answer)
            .unwrap();
        count += 1;
    }
    assert_eq!(count, 60);
    fs::write(path("answers.pcap"), answers.finish().unwrap()).unwrap();

    let report = run(&[
        "--in",
        frontend,
        "--in",
        &option("backend", "answers.pcap"),
        "--out",
        &option("backend", "to-backends.pcap"),
        "--out",
        &option("frontend", "to-clients.pcap"),
        "--out",
        path("all.pcapng").to_str().unwrap(),
    ]);
    assert_eq!(report["connections"]["made"], 60);
    let to_clients = common::read(&path("to-clients.pcap"));
    assert_eq!(to_clients.len(), count);
    for (_, frame) in &to_clients {
        assert_eq!(frame[26..30], [20, 20, 20, 100]);
        assert_eq!(frame[34..36], [0, 80]);
    }
    let to_backends = common::read(&path("to-backends.pcap"));
    assert_eq!(to_backends, common::read(&path("asked.pcap")));
    let all = common::read(&path("all.pcapng"));
    assert_eq!(all.len(), to_backends.len() + to_clients.len());
    assert!(all.is_sorted_by_key(|(at, _)| *at));
    if !common::has("tshark") {
        skip!("tshark is not installed");
    }
    let output = Command::new("tshark")
        .args(["-r", path("to-clients.pcap").to_str().unwrap()])
        .args([
            "-o",
            "ip.check_checksum:TRUE",
            "-o",
            "tcp.check_checksum:TRUE",
        ])
        .args(["-Y", "ip.checksum.status == 1 && tcp.checksum.status == 1"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), count);
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

#[test]
fn diff_says_what_another_configuration_would_change() {
    let web = "examples/web.toml";
    assert_eq!(ok(&["diff", web, web]), "no difference\n");
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other.toml");
    let text = fs::read_to_string(root().join(web)).unwrap();
    fs::write(&other, text.replace("weight = 2", "weight = 0")).unwrap();
    let said = ok(&["diff", web, other.to_str().unwrap()]);
    assert!(
        said.starts_with("~ backend \"web-servers/vm2\"\n"),
        "{said}"
    );
    assert!(
        said.contains("50.00 since theirs no longer takes flows"),
        "{said}"
    );
    assert_eq!(
        slb(&["diff", web, "examples/none.toml"]).status.code(),
        Some(2)
    );
}

#[test]
fn nobody_has_to_read_to_the_end() {
    let examples = root().join("examples");
    let (web, sample) = (examples.join("web.toml"), examples.join("sample.pcap"));
    let script = format!(
        "{} replay --config {} --in {} --out /dev/null --report json | head -1",
        env!("CARGO_BIN_EXE_slb"),
        web.display(),
        sample.display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn azures_json_becomes_a_configuration_that_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, text: &str| fs::write(path(name), text).unwrap();
    write(
        "lb.json",
        r#"{ "name": "lb", // as it is exported
             "colour": "blue",
             "properties": {
               "frontendIPConfigurations": [{ "name": "fe", "properties": { "privateIPAddress": "10.0.2.100" } }],
               "backendAddressPools": [{ "name": "be", "properties": { "loadBalancerBackendAddresses": [
                 { "name": "vm1", "properties": { "ipAddress": "10.0.2.4" } } ] } }],
               "loadBalancingRules": [{ "name": "http", "properties": {
                 "frontendIPConfiguration": { "id": "x/fe" }, "backendAddressPool": { "id": "x/be" },
                 "protocol": "Tcp", "frontendPort": 80, "backendPort": 8080 } }] } }"#,
    );
    write(
        "inventory.toml",
        "vni = 7\n[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
         [[backend]]\nid = \"vm1\"\nhost = \"172.16.0.101\"\n",
    );
    let import = |file: &str, more: &[&str]| slb(&[&["import", &path(file)], more].concat());
    let (inventory, out) = (path("inventory.toml"), path("web.toml"));
    let made = import("lb.json", &["--inventory", &inventory, "--out", &out]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(
        said.contains("lb.json:2: load balancer \"lb\": \"colour\" is unknown"),
        "{said}"
    );
    let checked = ok(&["check", &out]);
    assert!(
        checked.contains("rule \"http\": tcp port 80 of 10.0.2.100 to pool \"be\""),
        "{checked}"
    );
    // Without the inventory it is refused, with all that is missing.
    let refused = import("lb.json", &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        said.contains("its host") && said.contains("VXLAN network"),
        "{said}"
    );
    // A part alone is printed, and what it is not is said.
    write(
        "probe.json",
        r#"{ "name": "p", "properties": { "protocol": "Tcp", "port": 80, "intervalInSeconds": 5 } }"#,
    );
    let part = import("probe.json", &[]);
    assert_eq!(part.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&part.stdout).contains("[[probe]]\nname = \"p\""));
    assert!(String::from_utf8_lossy(&part.stderr).contains("not a whole configuration"));
}
