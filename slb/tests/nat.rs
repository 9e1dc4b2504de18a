//! The same packets through Linux's nftables NAT and through ours: real captures, whose servers
//! become VIPs, and traffic made for it, both ways.
//!
//! What comes out has to be the same, byte for byte but for the TTL: addresses, ports, checksums,
//! and what ICMP errors quote.

use crate::common;

use std::collections::BTreeMap;
use std::fs;
use std::io::BufWriter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use etherparse::PacketBuilder;
use etherparse::defrag::IpDefragPool;
use slb_control::{Config, Role};
use slb_core::packet::{Packet, Parsed, Part};
use slb_core::snapshot::Snapshot;
use slb_core::wire::checksum;
use slb_core::wire::ipv4::Ipv4;
use slb_core::wire::ipv6::Ipv6;
use slb_core::{Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Verdict};
use slb_io_pcap::{Format, Writer};

use common::{Namespace, captures, checksum_error, has, is_root, read, sh, without_ttl};

/// Where a packet comes from, and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Vm,
}

const DIP: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 1);
const DIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1);
/// MAC addresses: the client's router, the vm, and the kernel's on either side.
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const VM: [u8; 6] = [0x0a, 0x58, 10, 10, 1, 1];
const KERNEL_CLIENT: [u8; 6] = [2, 0, 0, 0, 1, 1];
const KERNEL_VM: [u8; 6] = [2, 0, 0, 0, 1, 2];

/// Packets in the order in which they are sent, each an IP packet.
type Traffic = Vec<(Side, Vec<u8>)>;

/// What each side gets, in its order.
#[derive(Debug, Default)]
struct Received {
    client: Vec<Vec<u8>>,
    vm: Vec<Vec<u8>>,
}

/// What is to be translated.
struct Scenario {
    name: String,
    vip: IpAddr,
    /// The frontend port and the backend's; `None`: addresses only.
    ports: Option<(u16, u16)>,
    /// The address that the vm calls out under.
    outbound: Option<IpAddr>,
    traffic: Traffic,
}

impl Scenario {
    fn dip(&self) -> IpAddr {
        if self.vip.is_ipv4() {
            DIP.into()
        } else {
            DIP6.into()
        }
    }

    fn config(&self) -> Config {
        let (vip, dip) = (self.vip, self.dip());
        let rule = match self.ports {
            None => "protocol = \"all\"".to_owned(),
            Some((frontend, backend)) => {
                format!("protocol = \"tcp\"\nfrontend_port = {frontend}\nbackend_port = {backend}")
            }
        };
        let udp = match self.ports {
            None => String::new(),
            Some((frontend, backend)) => format!(
                "[[rule]]\nname = \"u\"\nfrontend = \"f\"\npool = \"p\"\nprotocol = \"udp\"\n\
                 frontend_port = {frontend}\nbackend_port = {backend}\n"
            ),
        };
        let outbound = self.outbound.map_or(String::new(), |address| {
            format!(
                "[[frontend]]\nname = \"o\"\naddress = \"{address}\"\n[[outbound_rule]]\nname = \
                 \"o\"\nfrontends = [\"o\"]\npool = \"p\"\nallocated_outbound_ports = 64512\n"
            )
        });
        let text = format!(
            "[node]\nrole = \"host\"\nunderlay = [\"172.16.0.101\", \"fd00:16::101\"]\nmtu = 9000\n\
             muxes = [\"172.16.0.101\"]\n\
             [[frontend]]\nname = \"f\"\naddress = \"{vip}\"\nicmp_echo = \"forward\"\n\
             [[pool]]\nname = \"p\"\nvni = 5001\ntable_size = 3\nbackends = [{{ name = \"vm\", \
             address = \"{dip}\", host = \"172.16.0.101\", mac = \"0a:58:0a:0a:01:01\" }}]\n\
             [[rule]]\nname = \"r\"\nfrontend = \"f\"\npool = \"p\"\n{rule}\n{udp}{outbound}"
        );
        Config::parse(&self.name, &text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    }

    fn nft(&self) -> String {
        let family = if self.vip.is_ipv4() { "ip" } else { "ip6" };
        let (vip, dip) = (self.vip, self.dip());
        let to = |port: u16| match dip {
            IpAddr::V4(dip) => format!("{dip}:{port}"),
            IpAddr::V6(dip) => format!("[{dip}]:{port}"),
        };
        let dnat = match self.ports {
            None => format!("{family} daddr {vip} dnat to {dip}"),
            Some((frontend, backend)) => format!(
                "{family} daddr {vip} tcp dport {frontend} dnat to {to}\n{family} daddr {vip} udp \
                 dport {frontend} dnat to {to}",
                to = to(backend)
            ),
        };
        let snat = self.outbound.map_or(String::new(), |address| {
            format!("{family} saddr {dip} snat to {address}")
        });
        format!(
            "table {family} nat {{\nchain pre {{ type nat hook prerouting priority dstnat;\n{dnat}\n}}\n\
             chain post {{ type nat hook postrouting priority srcnat;\n{snat}\n}}\n}}\n"
        )
    }
}

fn frame(source: [u8; 6], destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    [&destination[..], &source, &ether_type, packet].concat()
}

/// Sends the traffic through a mux and a host of ours.
fn ours(scenario: &Scenario) -> Received {
    let config = scenario.config();
    let mut at_mux = config.clone();
    at_mux.node.role = Role::Mux;
    let snapshot: Arc<Snapshot<'static>> = at_mux.snapshot(None).unwrap();
    let mut mux = Mux::with_capacity(snapshot, 1000, Key::new([1, 2])).expect("its role");
    let mut host = Host::with_capacity(config.snapshot(None).unwrap(), 1000, Key::new([3, 4]))
        .expect("its role");
    let mut received = Received::default();
    for (number, (side, packet)) in scenario.traffic.iter().enumerate() {
        let now = Instant::from_nanos(1_000_000 * (1 + number as u64));
        let bytes = match side {
            Side::Client => frame(ROUTER, KERNEL_CLIENT, packet),
            Side::Vm => frame(VM, KERNEL_VM, packet),
        };
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(&bytes);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, bytes.len()).unwrap()];
        if *side == Side::Client {
            mux.process(now, &mut frames);
            if !matches!(frames[0].verdict(), Verdict::Forward(_)) {
                continue;
            }
        }
        frames[0].set_port(PortId(u16::from(*side == Side::Vm)));
        host.process(now, &mut frames);
        match frames[0].verdict() {
            Verdict::Forward(PortId(0)) => received.client.push(frames[0].bytes().to_vec()),
            Verdict::Forward(_) => received.vm.push(frames[0].bytes().to_vec()),
            _ => {}
        }
    }
    received
}

/// A router in a namespace, between two links of this one.
struct Kernel {
    client: Namespace,
    vm_link: String,
    captures: Vec<Child>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        for capture in &mut self.captures {
            capture.kill().ok();
            capture.wait().ok();
        }
        sh(&format!("ip link del {}", self.vm_link));
    }
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Kernel {
    fn new(tag: &str) -> Option<Self> {
        let client = Namespace::new(tag)?;
        let vm_link = format!("{}b", client.link);
        for (link, name) in [(&client.link, "client"), (&vm_link, "vm")] {
            assert!(sh(&format!(
                "ip link add {link} type veth peer name {name} netns {} && ip link set {link} mtu \
                 9000 && sysctl -qw net.ipv6.conf.{link}.disable_ipv6=1 && ip link set {link} up",
                client.name
            )));
        }
        let namespace = &client;
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
            "net.ipv4.conf.all.send_redirects=0",
        ] {
            namespace.run(&format!("sysctl -qw {setting}"));
        }
        for (name, address, address6, own) in [
            ("client", "192.0.2.2/24", "fd00:1::2/64", KERNEL_CLIENT),
            ("vm", "10.10.1.254/24", "fd00:10::254/64", KERNEL_VM),
        ] {
            namespace.run(&format!(
                "ip link set {name} address {} mtu 9000 up",
                mac(own)
            ));
            namespace.run(&format!("ip address add {address} dev {name}"));
            namespace.run(&format!("ip address add {address6} dev {name} nodad"));
            namespace.run(&format!("sysctl -qw net.ipv4.conf.{name}.rp_filter=0"));
        }
        for (neighbour, of, at) in [
            ("192.0.2.1", ROUTER, "client"),
            ("fd00:1::1", ROUTER, "client"),
            ("10.10.1.1", VM, "vm"),
            ("fd00:10::1", VM, "vm"),
        ] {
            namespace.run(&format!(
                "ip neighbour add {neighbour} lladdr {} dev {at} nud permanent",
                mac(of)
            ));
        }
        namespace.run("ip route add default via 192.0.2.1");
        namespace.run("ip -6 route add default via fd00:1::1");
        Some(Self {
            client,
            vm_link,
            captures: Vec::new(),
        })
    }

    /// Sends the traffic through it.
    fn run(mut self, scenario: &Scenario, expected: usize, directory: &Path) -> Received {
        let rules = directory.join("rules.nft");
        fs::write(&rules, scenario.nft()).unwrap();
        self.client.run(&format!("nft -f {}", rules.display()));
        for setting in [
            "net.netfilter.nf_conntrack_checksum=0",
            "net.netfilter.nf_conntrack_tcp_be_liberal=1",
            "net.netfilter.nf_conntrack_tcp_loose=0",
        ] {
            self.client.run(&format!("sysctl -qw {setting}"));
        }
        let sent = directory.join("sent.pcap");
        let file = BufWriter::new(fs::File::create(&sent).unwrap());
        let mut writer = Writer::new(file, Format::Pcap).unwrap();
        for (side, packet) in &scenario.traffic {
            let bytes = match side {
                Side::Client => frame(ROUTER, KERNEL_CLIENT, packet),
                Side::Vm => frame(VM, KERNEL_VM, packet),
            };
            writer.write(Instant::from_secs(1), &bytes).unwrap();
        }
        writer.finish().unwrap();
        let seen = [directory.join("client.pcap"), directory.join("vm.pcap")];
        for (file, link) in seen.iter().zip([&self.client.link, &self.vm_link]) {
            let _ = fs::remove_file(file);
            let tcpdump = std::process::Command::new("tcpdump")
                .args(["-i", link, "-Q", "in", "--immediate-mode", "-U", "-w"])
                .arg(file)
                .stderr(std::process::Stdio::null())
                .spawn();
            self.captures.push(tcpdump.unwrap());
        }
        let deadline = Clock::now() + Duration::from_secs(10);
        let is_ready = |file: &std::path::PathBuf| fs::metadata(file).is_ok_and(|m| m.len() >= 24);
        while !seen.iter().all(is_ready) && Clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let cache = directory.join("sides");
        let (sent, cache) = (sent.display(), cache.display());
        assert!(sh(&format!(
            "tcpprep --mac={} --pcap={sent} --cachefile={cache} >/dev/null 2>&1 && tcpreplay \
             --cachefile={cache} -I {} -i {} --pps 2000 {sent} >/dev/null 2>&1",
            mac(VM),
            self.client.link,
            self.vm_link
        )));
        // What nobody expects would come at once: a little longer than nothing is waited for it.
        let deadline = Clock::now() + Duration::from_millis(1500);
        let count = || read(&seen[0]).len() + read(&seen[1]).len();
        while count() < expected && Clock::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(30));
        let frames = |file| read(file).into_iter().map(|(_, frame)| frame).collect();
        Received {
            client: frames(&seen[0]),
            vm: frames(&seen[1]),
        }
    }
}

/// What tells packets apart: all of the IP packet but TTL and header checksum, and how wrong the
/// checksum is. Of fragments, what they come to: the kernel puts them together and takes them apart again,
/// and holds back what never becomes whole.
fn essence(frames: &[Vec<u8>]) -> BTreeMap<(Vec<u8>, Option<u16>), usize> {
    let mut all = BTreeMap::new();
    let mut pool = IpDefragPool::<(), ()>::new();
    for frame in frames {
        let Parsed::Ip(packet) = Packet::parse(frame) else {
            panic!("no IP packet was sent: {frame:02x?}")
        };
        let key = if packet.part() == Part::Whole {
            (without_ttl(frame), checksum_error(frame))
        } else {
            let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
            let Ok(Some(whole)) = pool.process_sliced_packet(&sliced, (), ()) else {
                continue;
            };
            let tuple = packet.tuple();
            let ends = format!("{} {} {}", tuple.source, tuple.destination, tuple.protocol);
            ([ends.as_bytes(), &whole.payload].concat(), None)
        };
        *all.entry(key).or_default() += 1;
    }
    all
}

fn tuple_of(frame: &[u8]) -> Option<slb_core::packet::Tuple> {
    match Packet::parse(frame) {
        Parsed::Ip(packet) => Some(packet.tuple()),
        _ => None,
    }
}

/// Compares what both made of a scenario; returns how many packets they agree about.
fn compare(scenario: &Scenario, directory: &Path, tag: &str) -> Option<usize> {
    let ours = ours(scenario);
    let expected = ours.client.len() + ours.vm.len();
    let kernel = Kernel::new(tag)?.run(scenario, expected, directory);
    // Of the kernel's, what it translated: what it only routed, or says itself, is not our matter.
    let translated = |frames: Vec<Vec<u8>>, to_vm: bool| -> Vec<Vec<u8>> {
        let own: [IpAddr; 4] = [
            "192.0.2.2".parse().unwrap(),
            "10.10.1.254".parse().unwrap(),
            "fd00:1::2".parse().unwrap(),
            "fd00:10::254".parse().unwrap(),
        ];
        let is_ours = |frame: &Vec<u8>| {
            tuple_of(frame).is_some_and(|tuple| {
                let (source, destination) = (tuple.source, tuple.destination);
                let fronts = [Some(scenario.vip), scenario.outbound];
                !own.contains(&source)
                    && if to_vm {
                        destination == scenario.dip()
                    } else {
                        fronts.contains(&Some(source))
                    }
            })
        };
        frames.into_iter().filter(is_ours).collect()
    };
    for (name, ours, kernel) in [
        ("to the vm", ours.vm, translated(kernel.vm, true)),
        (
            "to the client",
            ours.client,
            translated(kernel.client, false),
        ),
    ] {
        let (ours, kernel) = (essence(&ours), essence(&kernel));
        for ((packet, error), count) in &ours {
            let other = kernel.get(&(packet.clone(), *error)).copied().unwrap_or(0);
            assert_eq!(
                *count,
                other,
                "{}, {name}: ours has {count}, the kernel {other} of {:02x?} {error:?}",
                scenario.name,
                &packet[..packet.len().min(80)]
            );
        }
        for (packet, error) in kernel.keys() {
            assert!(
                ours.contains_key(&(packet.clone(), *error)),
                "{}, {name}: the kernel alone has {:02x?} {error:?}",
                scenario.name,
                &packet[..packet.len().min(80)]
            );
        }
    }
    Some(expected)
}

/// Gives a packet another source, its checksums changed along.
fn from_vm(packet: &[u8], dip: IpAddr) -> Option<Vec<u8>> {
    let framed = frame(VM, KERNEL_VM, packet);
    let Parsed::Ip(parsed) = Packet::parse(&framed) else {
        return None;
    };
    let transport = framed.len() - packet.len();
    let mut packet = packet.to_vec();
    let (at, new) = match dip {
        IpAddr::V4(dip) => (12, dip.octets().to_vec()),
        IpAddr::V6(dip) => (8, dip.octets().to_vec()),
    };
    let header = match dip {
        IpAddr::V4(_) => usize::from(packet[0] & 15) * 4,
        // Only plain ones: extension headers are the captures' own tests.
        IpAddr::V6(_) if matches!(packet[6], 6 | 17 | 58) => 40,
        IpAddr::V6(_) => return None,
    };
    let field = match parsed.tuple().protocol {
        6 => Some(16),
        17 => Some(6),
        58 => Some(2),
        _ => None,
    };
    let _ = transport;
    for place in (0..new.len()).step_by(2) {
        let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (old, new) = (word(&packet, at + place), word(&new, place));
        let mut fields = Vec::new();
        if dip.is_ipv4() {
            fields.push(10);
        }
        if parsed.part() != Part::Later {
            fields.extend(field.map(|field| header + field));
        }
        for field in fields {
            if field + 2 > packet.len() {
                return None;
            }
            let sum = word(&packet, field);
            if sum != 0 || field == 10 {
                let sum = checksum::update(sum, old, new);
                packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            }
        }
        packet[at + place..at + place + 2].copy_from_slice(&new.to_be_bytes());
    }
    Some(packet)
}

/// A capture as it would be if the first one who is spoken to were a VIP, with our vm behind it.
fn scenario_of(path: &Path) -> Option<Scenario> {
    let is_unicast = |address: &IpAddr| match address {
        IpAddr::V4(a) => {
            !(a.is_multicast() || a.is_broadcast() || a.is_loopback() || a.is_unspecified())
                && a.octets()[0] < 224
        }
        IpAddr::V6(a) => {
            !(a.is_multicast()
                || a.is_loopback()
                || a.is_unspecified()
                || a.is_unicast_link_local())
        }
    };
    let mut vip = None;
    let mut traffic = Vec::new();
    let mut firsts = BTreeMap::new();
    for (_, bytes) in read(path) {
        let Parsed::Ip(packet) = Packet::parse(&bytes) else {
            continue;
        };
        let tuple = packet.tuple();
        let link = slb_core::wire::ethernet::Ethernet::parse(&bytes).unwrap();
        let ip = &link.payload()[..packet.ip_len()];
        if !is_unicast(&tuple.source) || packet.hop_limit() < 3 {
            continue;
        }
        // The kernel translates these; ours are dropped, since their checksum is about another destination.
        let is_on_source_route = match ip[0] >> 4 {
            4 => Ipv4::parse(ip).unwrap().is_on_source_route(),
            _ => Ipv6::parse(ip).unwrap().is_on_source_route(),
        };
        if is_on_source_route {
            continue;
        }
        // Neither the kernel nor ours translates a packet with a wrong header checksum.
        if checksum_error(&bytes).is_some_and(|error| error != 0) {
            continue;
        }
        let is_icmp = matches!(tuple.protocol, 1 | 58);
        if vip.is_none() && is_unicast(&tuple.destination) && !is_icmp {
            vip = Some(tuple.destination);
        }
        // Who spoke first decides whose a connection is; the vm's own are not this test's matter.
        let ends = [
            (tuple.source, tuple.source_port),
            (tuple.destination, tuple.destination_port),
        ];
        let name = (tuple.protocol, ends[0].min(ends[1]), ends[0].max(ends[1]));
        let first = *firsts.entry(name).or_insert(tuple.source);
        if !is_icmp && Some(first) == vip {
            continue;
        }
        if Some(tuple.destination) == vip {
            traffic.push((Side::Client, ip.to_vec()));
        } else if Some(tuple.source) == vip && !is_icmp && is_unicast(&tuple.destination) {
            let dip = if ip[0] >> 4 == 4 {
                DIP.into()
            } else {
                DIP6.into()
            };
            traffic.extend(from_vm(ip, dip).map(|packet| (Side::Vm, packet)));
        }
        if traffic.len() == 150 {
            break;
        }
    }
    Some(Scenario {
        name: path.file_name()?.to_string_lossy().into_owned(),
        vip: vip?,
        ports: None,
        outbound: None,
        traffic,
    })
}

/// Says why this cannot run here, if it cannot.
fn missing() -> Option<String> {
    if !is_root() {
        return Some("root is needed for network namespaces".to_owned());
    }
    let tools = ["tcpdump", "tcpreplay", "tcpprep", "nft"];
    let missing = tools.iter().find(|tool| !has(tool));
    missing.map(|tool| format!("{tool} is not installed"))
}

#[test]
#[ignore = "needs root"]
fn captures_are_translated_as_nftables_translates_them() {
    let Some(captures) = captures() else {
        skip!("the shared captures are not there")
    };
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut total, mut files) = (0, 0);
    for (number, path) in captures.iter().enumerate() {
        let Some(scenario) = scenario_of(path) else {
            continue;
        };
        let Some(count) = compare(&scenario, directory.path(), &format!("n{number}")) else {
            skip!("a network namespace cannot be made here")
        };
        total += count;
        files += usize::from(count > 0);
    }
    println!("{total} packets of {files} captures, as nftables has them");
    assert!(total > 1200, "{total} packets");
}

/// Traffic that captures lack: ports that change, ICMP errors both ways, calls from the vm.
fn made(ipv6: bool) -> Scenario {
    let vip: IpAddr = if ipv6 {
        "2001:db8:20::100".parse().unwrap()
    } else {
        "20.20.20.100".parse().unwrap()
    };
    let outbound: IpAddr = if ipv6 {
        "2001:db8:20::200".parse().unwrap()
    } else {
        "20.20.20.200".parse().unwrap()
    };
    let client: IpAddr = if ipv6 {
        "2001:db8:c::1".parse().unwrap()
    } else {
        "198.51.100.1".parse().unwrap()
    };
    let router: IpAddr = if ipv6 {
        "2001:db8:f::1".parse().unwrap()
    } else {
        "203.0.113.1".parse().unwrap()
    };
    let dip: IpAddr = if ipv6 { DIP6.into() } else { DIP.into() };
    let tcp = |from: (IpAddr, u16), to: (IpAddr, u16), flags: &str, data: &[u8]| {
        let mut header = etherparse::TcpHeader::new(from.1, to.1, 1000, 65_535);
        (header.syn, header.ack) = (flags.contains('S'), flags.contains('A'));
        (header.fin, header.rst) = (flags.contains('F'), flags.contains('R'));
        header.acknowledgment_number = if header.ack { 1001 } else { 0 };
        ip(from.0, to.0, |builder, out| {
            builder.tcp_header(header.clone()).write(out, data).unwrap();
        })
    };
    let udp = |from: (IpAddr, u16), to: (IpAddr, u16), data: &[u8], sum: bool| {
        let mut packet = ip(from.0, to.0, |builder, out| {
            builder.udp(from.1, to.1).write(out, data).unwrap();
        });
        if !sum {
            let at = packet.len() - data.len() - 2;
            packet[at..at + 2].fill(0);
        }
        packet
    };
    let echo = |from: IpAddr, to: IpAddr, id: u16, request: bool| {
        ip(from, to, |builder, out| match (ipv6, request) {
            (false, true) => builder
                .icmpv4_echo_request(id, 1)
                .write(out, b"ping")
                .unwrap(),
            (false, false) => builder
                .icmpv4_echo_reply(id, 1)
                .write(out, b"ping")
                .unwrap(),
            (true, true) => builder
                .icmpv6_echo_request(id, 1)
                .write(out, b"ping")
                .unwrap(),
            (true, false) => builder
                .icmpv6_echo_reply(id, 1)
                .write(out, b"ping")
                .unwrap(),
        })
    };
    // An error about a packet, of which so many bytes are quoted.
    let error = |from: IpAddr, to: IpAddr, about: &[u8], len: usize| {
        let quote = &about[..len.min(about.len())];
        ip(from, to, |builder, out| {
            if ipv6 {
                builder
                    .icmpv6(etherparse::Icmpv6Type::PacketTooBig { mtu: 1400 })
                    .write(out, quote)
                    .unwrap();
            } else {
                let kind = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu: 1400,
                };
                builder
                    .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(kind))
                    .write(out, quote)
                    .unwrap();
            }
        })
    };
    let mut traffic = Vec::new();
    let mut send = |side, packet: Vec<u8>| traffic.push((side, packet));
    let header = if ipv6 { 40 } else { 20 };
    for port in [50_000, 50_001, 50_002] {
        let (c, v, s) = ((client, port), (vip, 80), (dip, 8080));
        send(Side::Client, tcp(c, v, "S", b""));
        send(Side::Vm, tcp(s, c, "SA", b""));
        send(Side::Client, tcp(c, v, "A", b"an odd number of bytes."));
        let data = tcp(s, c, "A", b"and an even number");
        send(Side::Vm, data);
        // About what the client got from the VIP: by a router on the way, by the client itself;
        // with 8 bytes behind the header, and with all.
        let sent = tcp(v, c, "A", b"and an even number");
        send(Side::Client, error(router, vip, &sent, header + 8));
        send(Side::Client, error(router, vip, &sent, 500));
        send(Side::Client, error(client, vip, &sent, header + 20));
        // About what the vm got from the client.
        let got = tcp(c, s, "A", b"an odd number of bytes.");
        send(Side::Vm, error(dip, client, &got, header + 8));
        send(Side::Vm, error(dip, client, &got, 500));
    }
    let (c, v, s) = ((client, 50_010), (vip, 80), (dip, 8080));
    for (data, sum) in [
        (&b"with a checksum"[..], true),
        (b"without one", ipv6),
        (b"", true),
    ] {
        send(Side::Client, udp(c, v, data, sum));
        send(Side::Vm, udp(s, c, data, sum));
    }
    let sent = udp(v, c, b"a datagram", true);
    send(Side::Client, error(router, vip, &sent, 500));
    let got = udp(c, s, b"a datagram", true);
    send(Side::Vm, error(dip, client, &got, 500));
    // Datagrams in pieces, of which only the first has the ports.
    for len in [1600, 2999, 4000] {
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        for piece in fragments(&udp(c, v, &data, true), 1000, len as u16) {
            send(Side::Client, piece);
        }
        for piece in fragments(&udp(s, c, &data, true), 1480, len as u16) {
            send(Side::Vm, piece);
        }
    }
    // From the vm: the ports are those that both keep as they are.
    let (o, far) = ((outbound, 40_000), (client, 443));
    let d = (dip, 40_000);
    send(Side::Vm, tcp(d, far, "S", b""));
    send(Side::Client, tcp(far, o, "SA", b""));
    send(Side::Vm, tcp(d, far, "A", b"hello"));
    send(Side::Client, tcp(far, o, "A", b"good bye"));
    let sent = tcp(o, far, "A", b"hello");
    send(Side::Client, error(router, outbound, &sent, 500));
    let got = tcp(far, d, "A", b"good bye");
    send(Side::Vm, error(dip, client, &got, 500));
    send(Side::Vm, udp(d, (client, 53), b"what is it?", true));
    send(Side::Client, udp((client, 53), o, b"it is this", true));
    send(Side::Vm, echo(dip, client, 40_001, true));
    send(Side::Client, echo(client, outbound, 40_001, false));
    let sent = echo(outbound, client, 40_001, true);
    send(Side::Client, error(router, outbound, &sent, 500));
    send(Side::Vm, tcp(d, far, "FA", b""));
    send(Side::Client, tcp(far, o, "FA", b""));
    send(Side::Vm, tcp(d, far, "A", b""));
    Scenario {
        name: if ipv6 { "made, IPv6" } else { "made, IPv4" }.to_owned(),
        vip,
        ports: Some((80, 8080)),
        outbound: Some(outbound),
        traffic,
    }
}

/// A packet in pieces of at most so many bytes behind the header, a multiple of eight.
fn fragments(packet: &[u8], most: usize, identification: u16) -> Vec<Vec<u8>> {
    let is_ipv4 = packet[0] >> 4 == 4;
    let (header, data) = packet.split_at(if is_ipv4 { 20 } else { 40 });
    let pieces = data.chunks(most).enumerate();
    let fragment = |(number, piece): (usize, &[u8])| {
        let offset = number * most;
        let more = u16::from(offset + piece.len() < data.len());
        let mut header = header.to_vec();
        if is_ipv4 {
            let total = (20 + piece.len()) as u16;
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header[4..6].copy_from_slice(&identification.to_be_bytes());
            let place = more << 13 | (offset / 8) as u16;
            header[6..8].copy_from_slice(&place.to_be_bytes());
            header[10..12].fill(0);
            let sum = checksum::checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let payload = (8 + piece.len()) as u16;
            header[4..6].copy_from_slice(&payload.to_be_bytes());
            let place = (offset as u16 | more).to_be_bytes();
            let id = u32::from(identification).to_be_bytes();
            let next = std::mem::replace(&mut header[6], 44);
            header.extend([&[next, 0][..], &place, &id].concat());
        }
        [&header, piece].concat()
    };
    pieces.map(fragment).collect()
}

/// An IP packet.
fn ip(
    from: IpAddr,
    to: IpAddr,
    write: impl Fn(etherparse::PacketBuilderStep<etherparse::IpHeaders>, &mut Vec<u8>),
) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 60),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 60),
        _ => panic!("two families"),
    };
    write(builder, &mut packet);
    packet
}

#[test]
#[ignore = "needs root"]
fn made_traffic_is_translated_as_nftables_translates_it() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let directory = tempfile::tempdir().unwrap();
    for (tag, ipv6) in [("m4", false), ("m6", true)] {
        let scenario = made(ipv6);
        let sent = scenario.traffic.len();
        let Some(count) = compare(&scenario, directory.path(), tag) else {
            skip!("a network namespace cannot be made here")
        };
        // Every packet comes through.
        assert_eq!(count, sent, "{}", scenario.name);
        // The datagrams that came in pieces were put together, and compared.
        let ours = essence(&ours(&scenario).vm);
        assert_eq!(
            ours.keys().filter(|(whole, _)| whole.len() > 1500).count(),
            3
        );
    }
}
