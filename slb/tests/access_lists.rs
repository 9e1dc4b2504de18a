//! Access lists beside nftables with the same rules and Linux' connection tracking: what a host agent lets in and out
//! of a vm is what the kernel forwards, packet by packet, of random conversations under random lists.
//!
//! Needs root and nft, tcpreplay and tcpdump; without, it says so and is skipped.

use crate::common;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};
use slb_control::Config;
use slb_core::mem::Boxes;
use slb_core::spec::{Access, Peers, SecurityProtocol, SecurityRule};
use slb_core::wire::ethernet::Ethernet;
use slb_core::{Frame, HEADROOM, Host, Instant, Key, PortId, Verdict};

use common::router::{Leg, Router};
use common::{has, is_root, without_ttl};

/// MAC addresses: the router of the others, the vm, and the kernel's on either side.
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const VM: [u8; 6] = [0x0a, 0x58, 10, 1, 0, 11];
const KERNEL_OUTSIDE: [u8; 6] = [2, 0, 0, 0, 1, 1];
const KERNEL_VM: [u8; 6] = [2, 0, 0, 0, 1, 2];
const VNI: u32 = 5001;
const KEY: Key = Key::new([5, 6]);

/// Addresses of other vms of the network, by their last parts.
const OTHERS: [u8; 6] = [0x15, 0x20, 0x21, 0x40, 0x80, 0xc1];
const PORTS: [u16; 6] = [22, 53, 80, 443, 8080, 40_000];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Outside,
    Vm,
}

fn address(last: u8, is_ipv6: bool) -> IpAddr {
    let text = match is_ipv6 {
        false => format!("10.1.0.{last}"),
        true => format!("fd00:1::{last:x}"),
    };
    text.parse().unwrap()
}

fn vm(is_ipv6: bool) -> IpAddr {
    address(11, is_ipv6)
}

/// Numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// The rules of a list, as the configuration has them.
fn rules(random: &mut Random) -> String {
    let mut text = String::new();
    let peers = |random: &mut Random| {
        let few = 1 + random.below(2);
        let one = |random: &mut Random| match random.below(6) {
            0 => "network".to_owned(),
            1 => "internet".to_owned(),
            2 => format!("10.1.0.{}/28", random.one_of(&OTHERS) & 0xf0),
            3 => format!("10.1.0.{}/{}", 0x80, 25),
            4 => format!("fd00:1::{:x}/124", random.one_of(&OTHERS) & 0xf0),
            _ => address(random.one_of(&OTHERS), random.below(2) == 0).to_string(),
        };
        let all: Vec<String> = (0..few).map(|_| format!("\"{}\"", one(random))).collect();
        format!("[{}]", all.join(", "))
    };
    for number in 0..24 {
        let direction = if number % 2 == 0 {
            "inbound"
        } else {
            "outbound"
        };
        let access = random.one_of(&["allow", "deny"]);
        let protocol = random.one_of(&["any", "tcp", "udp", "icmp"]);
        text += &format!(
            "[[security_rule]]\nsecurity_list = \"list\"\nname = \"rule{number}\"\npriority = {}\n\
             direction = \"{direction}\"\naccess = \"{access}\"\nprotocol = \"{protocol}\"\n",
            100 + random.below(100) * 24 + number
        );
        let side = if number % 2 == 0 {
            "sources"
        } else {
            "destinations"
        };
        if random.below(4) > 0 {
            text += &format!("{side} = {}\n", peers(random));
        }
        if protocol != "icmp" && random.below(3) > 0 {
            let port = random.one_of(&PORTS);
            let ports = match random.below(3) {
                0 => format!("\"{port}\""),
                1 => format!("[\"{port}\", \"{}-{}\"]", port + 1, port + 400),
                _ => format!("\"1-{port}\""),
            };
            let field = random.one_of(&["destination_ports", "destination_ports", "source_ports"]);
            text += &format!("{field} = {ports}\n");
        }
    }
    text
}

fn config(rules: &str) -> Config {
    let families = [false, true];
    let others = families.map(|v6| {
        OTHERS
            .map(|last| format!("\"{}\"", address(last, v6)))
            .join(", ")
    });
    let text = format!(
        "[node]\nrole = \"host\"\nunderlay = \"172.16.0.101\"\nprobing = false\nmtu = 9000\n\
         [[security_list]]\nname = \"list\"\n{rules}\
         [[network]]\nname = \"n\"\nvni = {VNI}\naddress_spaces = [\"10.1.0.0/16\", \"fd00:1::/64\"]\n\
         [[vm]]\nname = \"vm\"\nnetwork = \"n\"\naddress = [\"{}\", \"{}\"]\nmac = \"0a:58:0a:01:00:0b\"\n\
         host = \"172.16.0.101\"\nsecurity_list = \"list\"\n\
         [[vm]]\nname = \"others\"\nnetwork = \"n\"\naddress = [{}]\nmac = \"02:00:00:00:00:02\"\n\
         host = \"172.16.0.102\"\n",
        vm(false),
        vm(true),
        others.join(", "),
    );
    Config::parse("acl", &text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// Matches of nftables for the peers of one side, with one line for each alternative.
fn matches(peers: &[Peers], side: &str) -> Vec<(Option<bool>, String)> {
    if peers.is_empty() {
        return vec![(None, String::new())];
    }
    let inside4 = "{ 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, 169.254.0.0/16, 168.63.129.16 }";
    let inside6 = "{ fe80::/10, fc00::/7 }";
    let of = |peers: &Peers| match peers {
        Peers::Prefix(prefix) if prefix.address.is_ipv4() => {
            vec![(Some(false), format!("ip {side} {prefix}"))]
        }
        Peers::Prefix(prefix) => vec![(Some(true), format!("ip6 {side} {prefix}"))],
        Peers::Network => vec![
            (Some(false), format!("ip {side} 10.1.0.0/16")),
            (Some(true), format!("ip6 {side} fd00:1::/64")),
        ],
        Peers::Internet => vec![
            (Some(false), format!("ip {side} != {inside4}")),
            (Some(true), format!("ip6 {side} != {inside6}")),
        ],
        Peers::LoadBalancer => Vec::new(),
    };
    peers.iter().flat_map(of).collect()
}

fn nft_rules(rule: &SecurityRule<'_>) -> Vec<String> {
    let ports = |side: &str, ranges: &[[u16; 2]]| match ranges {
        [] => String::new(),
        ranges => {
            let all = ranges.iter().map(|[first, last]| format!("{first}-{last}"));
            format!("th {side} {{ {} }}", all.collect::<Vec<_>>().join(", "))
        }
    };
    let (from, to) = (
        ports("sport", rule.source_ports),
        ports("dport", rule.destination_ports),
    );
    let has_ports = !(from.is_empty() && to.is_empty());
    let protocol = match rule.protocol {
        SecurityProtocol::Any if has_ports => "meta l4proto { tcp, udp }",
        SecurityProtocol::Any => "",
        SecurityProtocol::Tcp => "meta l4proto tcp",
        SecurityProtocol::Udp => "meta l4proto udp",
        _ => "meta l4proto { icmp, ipv6-icmp }",
    };
    let access = match rule.access {
        Access::Allow => "accept",
        Access::Deny => "drop",
    };
    let mut lines = Vec::new();
    for (family, source) in matches(rule.sources, "saddr") {
        for (other, destination) in matches(rule.destinations, "daddr") {
            if family.zip(other).is_none_or(|(one, other)| one == other) {
                lines.push(format!(
                    "{source} {destination} {protocol} {from} {to} {access}"
                ));
            }
        }
    }
    lines
}

/// The list as a ruleset, its rules in the order of their priorities.
fn nft(config: &Config) -> String {
    config.with_spec(|spec| {
        let chain = |direction| {
            let rules = spec.security_lists[0].all_rules();
            let mut rules: Vec<_> = rules.filter(|rule| rule.direction == direction).collect();
            rules.sort_by_key(|rule| rule.priority);
            let lines = rules.iter().flat_map(nft_rules);
            lines.collect::<Vec<_>>().join("\n")
        };
        use slb_core::nat::Direction::{Inward, Outward};
        format!(
            "table inet acl {{\nchain in {{\n{}\n}}\nchain out {{\n{}\n}}\n\
             chain forward {{ type filter hook forward priority filter; policy drop;\n\
             ct state established,related accept\n\
             iifname outside jump in\niifname vm jump out\n}}\n}}\n",
            chain(Inward),
            chain(Outward)
        )
    })
}

/// An IP packet of a conversation.
fn packet(ends: [(IpAddr, u16); 2], kind: &str, (sequence, number): (u32, u32)) -> Vec<u8> {
    let [(from, source), (to, destination)] = ends;
    let link = PacketBuilder::ethernet2(ROUTER, VM);
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    };
    let (payload, mut frame) = (number.to_be_bytes(), Vec::new());
    let tcp = |ip: etherparse::PacketBuilderStep<etherparse::IpHeaders>| {
        ip.tcp(source, destination, sequence, 60_000)
    };
    match kind {
        "udp" => ip.udp(source, destination).write(&mut frame, &payload),
        "S" => tcp(ip).syn().write(&mut frame, &[]),
        "SA" => tcp(ip).syn().ack(1001).write(&mut frame, &[]),
        "A" => tcp(ip).ack(5001).write(&mut frame, &payload),
        _ => {
            let echo = etherparse::IcmpEchoHeader { id: source, seq: 1 };
            let is_request = kind == "ping";
            match from.is_ipv6() {
                false => {
                    let message = match is_request {
                        true => Icmpv4Type::EchoRequest(echo),
                        false => Icmpv4Type::EchoReply(echo),
                    };
                    ip.icmpv4(message).write(&mut frame, &payload)
                }
                true => {
                    let message = match is_request {
                        true => Icmpv6Type::EchoRequest(echo),
                        false => Icmpv6Type::EchoReply(echo),
                    };
                    ip.icmpv6(message).write(&mut frame, &payload)
                }
            }
        }
    }
    .unwrap();
    frame.split_off(14)
}

/// An ICMP error from one end about a packet of the other.
fn unreachable(about: &[u8], [from, to]: [IpAddr; 2]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(ROUTER, VM);
    let mut frame = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link
            .ipv4(from.octets(), to.octets(), 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(
                icmpv4::DestUnreachableHeader::Port,
            ))
            .write(&mut frame, about),
        (IpAddr::V6(from), IpAddr::V6(to)) => link
            .ipv6(from.octets(), to.octets(), 64)
            .icmpv6(Icmpv6Type::DestinationUnreachable(
                icmpv6::DestUnreachableCode::Port,
            ))
            .write(&mut frame, about),
        _ => panic!("two families"),
    }
    .unwrap();
    frame.split_off(14)
}

fn frame(source: [u8; 6], destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    [&destination[..], &source, &ether_type, packet].concat()
}

/// A host agent with the vm, the packets that it was given, and those that it let through.
struct Ours {
    host: Host<'static, std::sync::Arc<slb_core::snapshot::Snapshot<'static>>>,
    sent: Vec<(Side, Vec<u8>)>,
    got: [Vec<Vec<u8>>; 2],
    denied: usize,
}

impl Ours {
    fn new(config: &Config) -> Self {
        let host = Host::with_capacity(config.snapshot(None).unwrap(), 1000, KEY).unwrap();
        let flows = config.direct_flows(KEY, &mut Boxes).unwrap().unwrap();
        Self {
            host: host.with_direct_flows(flows),
            sent: Vec::new(),
            got: [Vec::new(), Vec::new()],
            denied: 0,
        }
    }

    /// Sends a packet; true if it was let through.
    fn send(&mut self, side: Side, packet: &[u8]) -> bool {
        self.sent.push((side, packet.to_vec()));
        let bytes = match side {
            Side::Vm => frame(VM, ROUTER, packet),
            Side::Outside => {
                let mut payload = vec![8, 0, 0, 0];
                payload.extend((VNI << 8).to_be_bytes());
                payload.extend(frame(ROUTER, VM, packet));
                let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 8], [2, 0, 0, 0, 0, 1]);
                let udp = link
                    .ipv4([172, 16, 0, 102], [172, 16, 0, 101], 64)
                    .udp(50_000, 4789);
                let mut bytes = Vec::new();
                udp.write(&mut bytes, &payload).unwrap();
                bytes
            }
        };
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(&bytes);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, bytes.len()).unwrap()];
        frames[0].set_port(PortId(u16::from(side == Side::Vm)));
        let now = Instant::from_nanos(1_000_000_000 + 500_000 * self.sent.len() as u64);
        self.host.process(now, &mut frames);
        match frames[0].verdict() {
            Verdict::Forward(PortId(0)) => {
                let outer = Ethernet::parse(frames[0].bytes()).unwrap();
                self.got[0].push(outer.payload()[20 + 8 + 8..].to_vec());
                true
            }
            Verdict::Forward(_) => {
                self.got[1].push(frames[0].bytes().to_vec());
                true
            }
            Verdict::Drop(reason) => {
                assert_eq!(reason.name(), "denied");
                self.denied += 1;
                false
            }
            other => panic!("{other:?}"),
        }
    }

    /// Holds one conversation, in which each end answers only the packets that reached it.
    fn converse(&mut self, random: &mut Random, number: u32) {
        let is_ipv6 = random.below(2) == 0;
        let own = 41_000 + number as u16;
        let own = (
            vm(is_ipv6),
            if random.below(3) == 0 {
                random.one_of(&PORTS)
            } else {
                own
            },
        );
        let other = (
            address(random.one_of(&OTHERS), is_ipv6),
            if own.1 > 41_000 {
                random.one_of(&PORTS)
            } else {
                42_000 + number as u16
            },
        );
        let sides = match random.below(2) {
            0 => [(Side::Vm, own), (Side::Outside, other)],
            _ => [(Side::Outside, other), (Side::Vm, own)],
        };
        let [(side, from), (answering, to)] = sides;
        let number = number * 10;
        match random.below(6) {
            0 | 1 => {
                let answer = packet([to, from], "SA", (5000, 0));
                if self.send(side, &packet([from, to], "S", (1000, 0)))
                    && self.send(answering, &answer)
                {
                    self.send(side, &packet([from, to], "A", (1001, number)));
                    self.send(answering, &packet([to, from], "A", (5001, number + 1)));
                    self.send(side, &packet([from, to], "A", (1005, number + 2)));
                }
            }
            2 | 3 => {
                let query = packet([from, to], "udp", (0, number));
                if self.send(side, &query) {
                    match random.below(2) {
                        0 => self.send(answering, &packet([to, from], "udp", (0, number + 1))),
                        _ => self.send(answering, &unreachable(&query, [to.0, from.0])),
                    };
                    self.send(side, &packet([from, to], "udp", (0, number + 2)));
                }
            }
            4 => {
                let echo = packet([from, to], "ping", (0, number));
                if self.send(side, &echo) {
                    let ends = [(to.0, from.1), (from.0, 0)];
                    self.send(answering, &packet(ends, "pong", (0, number + 1)));
                }
            }
            _ => {
                // Answers to nothing: a reply, an error, and a packet from the middle of a connection.
                self.send(side, &packet([from, to], "pong", (0, number)));
                let never = packet([to, from], "udp", (0, number + 1));
                self.send(side, &unreachable(&never, [from.0, to.0]));
                self.send(side, &packet([from, to], "A", (7000, number + 2)));
            }
        }
    }
}

/// Sends the packets through the kernel with the lists as nftables rules, and returns those that came
/// out outside and at the vm; `None` if no namespace can be made.
fn kernels(config: &Config, ours: &Ours, directory: &Path) -> Option<[Vec<Vec<u8>>; 2]> {
    let outside = Leg {
        own: KERNEL_OUTSIDE,
        addresses: ["192.0.2.2/24", "2001:db8:1::2/64"],
        neighbour: ROUTER,
        neighbours: ["192.0.2.1", "2001:db8:1::1"],
    };
    let (own, own6) = (vm(false).to_string(), vm(true).to_string());
    let inside = Leg {
        own: KERNEL_VM,
        addresses: ["198.51.100.2/24", "2001:db8:2::2/64"],
        neighbour: VM,
        neighbours: [&own, &own6],
    };
    let mut router = Router::new("acl", &outside, &inside)?;
    router.run(&format!("ip route add {own} dev vm"));
    router.run(&format!("ip -6 route add {own6} dev vm"));
    router.load(&nft(config), directory);
    for setting in ["tcp_be_liberal=1", "tcp_loose=1"] {
        router.run(&format!("sysctl -qw net.netfilter.nf_conntrack_{setting}"));
    }
    let frames = ours.sent.iter().map(|(side, packet)| match side {
        Side::Outside => frame(ROUTER, KERNEL_OUTSIDE, packet),
        Side::Vm => frame(VM, KERNEL_VM, packet),
    });
    let expected = ours.got.iter().map(Vec::len).sum();
    Some(router.forward(frames, expected, directory))
}

/// Counts each packet that came out, without its TTL; the kernel's own packets are left out.
fn counted(frames: &[Vec<u8>]) -> BTreeMap<Vec<u8>, usize> {
    let mut all = BTreeMap::new();
    for frame in frames {
        let Ok(link) = Ethernet::parse(frame) else {
            continue;
        };
        let payload = link.payload();
        let (from, is_ip) = match link.ether_type().0 {
            0x0800 => (&payload[12..14], true),
            0x86dd => (&payload[8..10], true),
            _ => (&payload[..0], false),
        };
        // The kernel's addresses begin otherwise.
        if is_ip && [&[10u8, 1][..], &[0xfd, 0][..]].contains(&from) {
            *all.entry(without_ttl(frame)).or_default() += 1;
        }
    }
    all
}

#[test]
#[ignore = "needs root"]
fn lists_let_through_what_nftables_lets_through() {
    if !is_root() {
        skip!("needs root");
    }
    for tool in ["nft", "tcpreplay", "tcpdump"] {
        if !has(tool) {
            skip!("{tool} is missing");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut passed, mut denied) = (0, 0);
    for seed in 1..=6 {
        let mut random = Random(seed);
        let config = config(&rules(&mut random));
        let mut ours = Ours::new(&config);
        for number in 0..200 {
            ours.converse(&mut random, number);
        }
        let Some(theirs) = kernels(&config, &ours, directory.path()) else {
            skip!("no namespace can be made");
        };
        for (place, (ours, theirs)) in ["outside", "vm"].iter().zip(ours.got.iter().zip(&theirs)) {
            let (ours, theirs) = (counted(ours), counted(theirs));
            for packet in ours.keys().chain(theirs.keys()) {
                let (one, other) = (ours.get(packet), theirs.get(packet));
                assert_eq!(
                    one,
                    other,
                    "seed {seed}, {place}: ours, the kernel: {packet:02x?}\n{}",
                    nft(&config)
                );
            }
        }
        passed += ours.got.iter().map(Vec::len).sum::<usize>();
        denied += ours.denied;
    }
    assert!(
        passed > 500 && denied > 300,
        "{passed} passed, {denied} denied"
    );
}
