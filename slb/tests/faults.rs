//! tshark finds no fault in what a role sends that it did not find in what came in: every capture through the
//! mux and the host agent behind it, or through the proxy, to servers that send all of it back.
//!
//! The captures are other projects' and not part of this one: where they are missing, or tshark, the test says
//! so and is skipped. With `SLB_REQUIRE_ALL` set it fails instead.

#[macro_use]
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::BufWriter;
use std::path::Path;
use std::process::Command;

use slb_control::Config;
use slb_core::packet::{Packet, Parsed};
use slb_core::wire::ethernet::Ethernet;
use slb_core::{Dataplane, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Proxy, Verdict};
use slb_io_pcap::{Format, Writer};

use common::{captures, configuration_text, has, read};

const HOST: &str = "172.16.0.101";
/// Of each capture: the kinds are what matters.
const MOST: usize = 2000;

/// What came in, and what was sent because of it.
struct Sent {
    role: &'static str,
    at: Instant,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Sent {
    fn of(role: &'static str, at: Instant, input: &[u8], output: &[u8]) -> Self {
        Self {
            role,
            at,
            input: input.to_vec(),
            output: output.to_vec(),
        }
    }
}

/// Gives a packet to a role; what it sends, and out of which port.
fn process<'a, D: Dataplane<'a>>(
    role: &mut D,
    at: Instant,
    port: u16,
    packet: &[u8],
) -> Option<(u16, Vec<u8>)> {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(packet);
    let mut frames = [Frame::new(&mut buffer, HEADROOM, packet.len())?];
    frames[0].set_port(PortId(port));
    role.process(at, &mut frames);
    match frames[0].verdict() {
        Verdict::Forward(PortId(port)) => Some((port, frames[0].bytes().to_vec())),
        Verdict::Reply => Some((port, frames[0].bytes().to_vec())),
        _ => None,
    }
}

/// What a server makes of a packet that sends everything back: its ends change places, and every checksum
/// stays what it was.
fn sent_back(packet: &[u8]) -> Option<Vec<u8>> {
    let Parsed::Ip(parsed) = Packet::parse(packet) else {
        return None;
    };
    let ip = packet.len() - Ethernet::parse(packet).ok()?.payload().len();
    let mut packet = packet.to_vec();
    let mut swap = |at: usize, len: usize| {
        if let Some(both) = packet.get_mut(at..at + 2 * len) {
            let (one, other) = both.split_at_mut(len);
            one.swap_with_slice(other);
        }
    };
    swap(0, 6);
    let tuple = parsed.tuple();
    let transport = if tuple.source.is_ipv4() {
        swap(ip + 12, 4);
        ip + usize::from(packet[ip] & 15) * 4
    } else {
        swap(ip + 8, 16);
        ip + 40
    };
    // Extension headers have what looks like ports elsewhere.
    let is_plain = tuple.source.is_ipv4() || matches!(packet[ip + 6], 6 | 17);
    if is_plain && matches!(tuple.protocol, 6 | 17) && tuple.source_port != 0 {
        let mut swap = |at: usize| {
            if packet.len() >= at + 4 {
                let (one, other) = packet[at..at + 4].split_at_mut(2);
                one.swap_with_slice(other);
            }
        };
        swap(transport);
    }
    Some(packet)
}

/// Behind a mux and a host agent.
fn behind_a_mux(text: &str, packets: &[(Instant, Vec<u8>)], sent: &mut Vec<Sent>) {
    let parse = |text: &str| Config::parse("faults.toml", text).unwrap();
    let at_host = text
        .replacen("role = \"mux\"", "role = \"host\"", 1)
        .replacen("172.16.0.11\"", &format!("{HOST}\""), 1);
    let mut mux = Mux::with_capacity(
        parse(text).snapshot(None).unwrap(),
        10_000,
        Key::new([1, 2]),
    )
    .expect("its role");
    let mut host = Host::with_capacity(
        parse(&at_host).snapshot(None).unwrap(),
        10_000,
        Key::new([1, 2]),
    )
    .expect("its role");
    for (at, packet) in packets.iter().take(MOST) {
        let Some((_, carried)) = process(&mut mux, *at, 0, packet) else {
            continue;
        };
        let mut note =
            |role, input: &[u8], output: &[u8]| sent.push(Sent::of(role, *at, input, output));
        note("mux", packet, &carried);
        let Some((1.., delivered)) = process(&mut host, *at, 0, &carried) else {
            continue;
        };
        note("host, to the vm", packet, &delivered);
        let Some(answer) = sent_back(&delivered) else {
            continue;
        };
        if let Some((_, output)) = process(&mut host, *at, 1, &answer) {
            note("host, from the vm", &answer, &output);
        }
    }
}

fn behind_a_proxy(text: &str, packets: &[(Instant, Vec<u8>)], sent: &mut Vec<Sent>) {
    let vips: String = {
        let frontends = text.find("[[frontend]]").unwrap_or(text.len());
        text[frontends..].to_owned()
    };
    let mut at_proxy = "[node]\nrole = \"proxy\"\nmtu = 9000\n".to_owned();
    for (pool, network) in [("four", "10.10.1."), ("six", "fd00:10::")] {
        at_proxy += &format!(
            "[[pool]]\nname = \"{pool}\"\nbackends = [{{ name = \"b\", address = \"{network}1\", mac = \
             \"02:00:00:00:00:09\" }}]\n"
        );
    }
    let config = Config::parse("faults.toml", &(at_proxy + &vips)).unwrap();
    let mut proxy = Proxy::with_capacity(config.snapshot(None).unwrap(), 10_000, Key::new([1, 2]))
        .expect("its role");
    for (at, packet) in packets.iter().take(MOST) {
        let Some((port, forwarded)) = process(&mut proxy, *at, 0, packet) else {
            continue;
        };
        let mut note =
            |role, input: &[u8], output: &[u8]| sent.push(Sent::of(role, *at, input, output));
        note("proxy", packet, &forwarded);
        if port == 0 {
            continue;
        }
        let Some(answer) = sent_back(&forwarded) else {
            continue;
        };
        if let Some((_, output)) = process(&mut proxy, *at, port, &answer) {
            note("proxy, from the backend", &answer, &output);
        }
    }
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
        behind_a_mux(&text, &packets, &mut sent);
        behind_a_proxy(&text, &packets, &mut sent);
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
            sent.role,
            sent.input,
            sent.output
        );
        faulty += usize::from(!before.is_empty());
    }
    let roles: BTreeSet<&str> = sent.iter().map(|sent| sent.role).collect();
    assert_eq!(roles.len(), 5, "{roles:?}");
    let total = sent.len();
    println!("{total} packets without a new fault; {faulty} had come in with one");
    assert!(total > 20_000, "{total} packets");
    // The comparison sees faults where there are some.
    assert!(faulty > 0);
}
