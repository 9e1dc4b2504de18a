//! tshark finds no fault in what a role sends that it did not find in what came in: every capture through the
//! mux and the host agent behind it, or through the proxy, to servers that send all of it back.
//!
//! The captures are other projects' and not part of this one: where they are missing, or tshark, the test says
//! so and is skipped. With `SLB_REQUIRE_ALL` set it fails instead.

use crate::common;

use std::collections::BTreeSet;
use std::fs;
use std::io::BufWriter;
use std::path::Path;
use std::process::Command;

use slb_core::Instant;
use slb_io_pcap::{Format, Writer};

use common::captured::{HOST, Processed, STEPS, behind_a_mux, behind_a_proxy};
use common::{captures, configuration_text, has, read};

/// The maximum number of packets of each capture: only their kinds matter.
const MOST: usize = 2000;

/// A packet that came in, and the one that was sent because of it.
struct Sent {
    step: &'static str,
    at: Instant,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Has tshark read these headers only: what an application said is not our matter.
fn only_headers(folder: &Path) {
    const KNOWN: [&str; 16] = [
        "frame",
        "eth",
        "ethertype",
        "vlan",
        "ip",
        "ipv6",
        "ipv6.hopopts",
        "ipv6.dstopts",
        "ipv6.routing",
        "ipv6.fraghdr",
        "tcp",
        "udp",
        "icmp",
        "icmpv6",
        "sctp",
        "vxlan",
    ];
    let output = Command::new("tshark").args(["-G", "protocols"]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split('\t').nth(2));
    let others: Vec<&str> = names.filter(|name| !KNOWN.contains(name)).collect();
    assert!(others.len() > 1000);
    fs::write(folder.join("disabled_protos"), others.join("\n")).unwrap();
}

/// Each packet's faults: what tshark says of the packet itself, as a warning or worse.
fn faults(path: &Path) -> Vec<BTreeSet<String>> {
    const WARNING: u64 = 0x60_0000;
    // What is said of a conversation, not of a packet.
    const SEQUENCE: u64 = 0x200_0000;
    const CHECKSUM: u64 = 0x100_0000;
    let mut tshark = Command::new("tshark");
    tshark.env("WIRESHARK_CONFIG_DIR", path.parent().unwrap());
    tshark.arg("-r").arg(path);
    for preference in [
        "ip.check_checksum:TRUE",
        "tcp.check_checksum:TRUE",
        "udp.check_checksum:TRUE",
        "sctp.checksum:TRUE",
        "ip.defragment:FALSE",
        "ipv6.defragment:FALSE",
        "tcp.desegment_tcp_streams:FALSE",
        "tcp.analyze_sequence_numbers:FALSE",
    ] {
        tshark.args(["-o", preference]);
    }
    tshark.args([
        "-T",
        "fields",
        "-E",
        "occurrence=a",
        "-E",
        "aggregator=\u{1}",
    ]);
    for field in [
        "_ws.expert.severity",
        "_ws.expert.group",
        "_ws.expert.message",
        "icmp.checksum.status",
        "icmpv6.checksum.status",
        "icmp.type",
        "icmpv6.type",
    ] {
        tshark.args(["-e", field]);
    }
    let output = tshark.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    let of_packet = |line: &str| {
        let columns = line.split('\t').map(|column| column.split('\u{1}'));
        let columns: Vec<Vec<&str>> = columns.map(Iterator::collect).collect();
        let [severities, groups, messages, statuses @ .., icmp, icmpv6] = &columns[..] else {
            panic!("{line}");
        };
        // It takes the cut end of what an ICMP error quotes for the end of a packet, if a tunnel is quoted.
        let quotes = matches!(icmp[0], "3" | "11" | "12") || matches!(icmpv6[0], "1" | "2" | "3");
        let found = severities.iter().zip(groups).zip(messages);
        let mut faults: BTreeSet<String> = found
            .filter(|((severity, group), _)| {
                number(severity) >= WARNING
                    && number(group) != SEQUENCE
                    && !(quotes && number(group) == CHECKSUM)
            })
            // What the value should have been is in brackets.
            .map(|(_, message)| message.split('[').next().unwrap_or("").trim().to_owned())
            .collect();
        if statuses.iter().flatten().any(|&status| status == "0") {
            faults.insert("Bad checksum of ICMP".to_owned());
        }
        faults
    };
    text.lines().map(of_packet).collect()
}

#[test]
fn tshark_finds_no_fault_that_did_not_come_in() {
    let Some(captures) = captures() else {
        skip!("the shared captures are not there")
    };
    if !has("tshark") {
        skip!("tshark is not installed");
    }
    let directory = tempfile::tempdir().unwrap();
    only_headers(directory.path());
    let mut sent = Vec::new();
    let mut from = Vec::new();
    for path in &captures {
        let packets = read(path);
        let text = configuration_text(&packets, HOST, "02:00:00:00:00:02", 9000);
        let packets = &packets[..packets.len().min(MOST)];
        let mut note = |processed: Processed<'_>| {
            if processed.is_sent() {
                sent.push(Sent {
                    step: processed.step,
                    at: processed.at,
                    input: processed.input.to_vec(),
                    output: processed.output.to_vec(),
                });
            }
        };
        behind_a_mux(&text, packets, &mut note);
        behind_a_proxy(&text, packets, &mut note);
        from.resize(sent.len(), path);
    }
    let files = ["in.pcap", "out.pcap"].map(|name| directory.path().join(name));
    let [mut inputs, mut outputs] = files.clone().map(|path| {
        let file = BufWriter::new(fs::File::create(path).unwrap());
        Writer::new(file, Format::Pcap).unwrap()
    });
    for sent in &sent {
        inputs.write(sent.at, &sent.input).unwrap();
        outputs.write(sent.at, &sent.output).unwrap();
    }
    inputs.finish().unwrap();
    outputs.finish().unwrap();
    let [inputs, outputs] = files.map(|path| faults(&path));
    assert_eq!((inputs.len(), outputs.len()), (sent.len(), sent.len()));
    let mut faulty = 0;
    for (number, (before, after)) in inputs.iter().zip(&outputs).enumerate() {
        let new: Vec<&String> = after.difference(before).collect();
        let sent = &sent[number];
        assert!(
            new.is_empty(),
            "{}, {}: {new:?}\n in: {:02x?}\nout: {:02x?}",
            from[number].display(),
            sent.step,
            sent.input,
            sent.output
        );
        faulty += usize::from(!before.is_empty());
    }
    let steps: BTreeSet<&str> = sent.iter().map(|sent| sent.step).collect();
    assert_eq!(steps, BTreeSet::from(STEPS));
    let total = sent.len();
    println!("{total} packets without a new fault; {faulty} had come in with one");
    assert!(total > 20_000, "{total} packets");
    // The comparison sees faults where there are some.
    assert!(faulty > 0);
}
