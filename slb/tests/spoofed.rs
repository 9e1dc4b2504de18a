//! A host agent and a proxy under a flood of datagrams and SYNs from addresses of nobody, one of each or
//! two, answered or not: honest clients are served all the while.
//!
//! ```text
//!  client ── f0 proxy back ── server          client, mux ── eth0 host agent vm ── server
//! ```
//! The client's kernel plays the mux, with a VXLAN device of its own. All devices are AF_XDP's. Both
//! families are flooded.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::io::BufWriter;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant as Clock};

use etherparse::PacketBuilder;
use slb_core::Instant;
use slb_io_pcap::{Format, Writer};

use common::world::{Process, World, lacking, peer};

/// Addresses of one family.
struct Family {
    vip: &'static str,
    client: &'static str,
    /// Of the server where it is in the client's network, and the length of its prefix.
    beside: (&'static str, u8),
    /// Of the vm, of its gateway, and the length of their prefix.
    vm: (&'static str, &'static str, u8),
    /// The length of one address's prefix.
    whole: u8,
}

const IPV4: Family = Family {
    vip: "20.20.20.100",
    client: "198.51.100.10",
    beside: ("198.51.100.1", 24),
    vm: ("10.10.1.11", "10.10.1.1", 24),
    whole: 32,
};

const IPV6: Family = Family {
    vip: "2001:db8:20::100",
    client: "2001:db8:c::10",
    beside: ("2001:db8:c::1", 64),
    vm: ("fd00:10::11", "fd00:10::1", 64),
    whole: 128,
};

impl Family {
    fn is_ipv6(&self) -> bool {
        self.whole == 128
    }

    /// The VIP in a URL.
    fn host(&self) -> String {
        match self.is_ipv6() {
            true => format!("[{}]", self.vip),
            false => self.vip.to_owned(),
        }
    }

    /// Adds an address that can be used at once.
    fn add_address(&self, address: &str, len: u8, device: &str) -> String {
        let at_once = if self.is_ipv6() { "nodad" } else { "" };
        format!("ip address add {address}/{len} dev {device} {at_once}")
    }

    fn add_default_route(&self, by: &str) -> String {
        let family = if self.is_ipv6() { "-6" } else { "-4" };
        format!("ip {family} route add default via {by}")
    }
}

const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const SERVER_LINK: &str = "02:00:00:00:00:11";
/// Spoofed packets a second.
const RATE: u32 = 50_000;
const REQUESTS: usize = 320;
/// Flows of the flood: more than the table has places for.
const FLOWS: u32 = 200_000;

/// The rules, the last two of which are for ports where nobody listens.
fn services() -> String {
    [
        ("web", "tcp", 80, 8080),
        ("echo", "udp", 7, 8080),
        ("closed", "tcp", 81, 81),
        ("discard", "udp", 9, 9),
    ]
    .map(|(name, protocol, frontend, backend)| {
        format!(
            "[[rule]]\nname = \"{name}\"\nfrontend = \"web\"\npool = \"servers\"\n\
             protocol = \"{protocol}\"\nfrontend_port = {frontend}\nbackend_port = {backend}\n"
        )
    })
    .concat()
}

/// A capture of the flood: datagrams and SYNs in turn, each from another address. Half of the SYNs are for
/// the server, and as many datagrams as it can answer beside the honest ones; the others are for ports
/// where nobody listens. Every other four come a second time, a little later.
fn flood(world: &World, family: &Family) -> PathBuf {
    let path = world.path("flood.pcap");
    let file = BufWriter::new(fs::File::create(&path).unwrap());
    let mut writer = Writer::new(file, Format::Pcap).unwrap();
    let vip: IpAddr = family.vip.parse().unwrap();
    // By then a server has answered the first.
    const LATER: u32 = 2048;
    let again = |number: u32| number.checked_sub(LATER).filter(|first| first / 4 % 2 == 0);
    let numbers = (0..FLOWS).flat_map(|number| [Some(number), again(number)]);
    for number in numbers.flatten() {
        let random = number.wrapping_mul(0x9e37_79b1);
        let [a, b, c, d] = random.to_be_bytes();
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x77], SERVER_MAC);
        let port = 1024 + (random >> 3) as u16 % 60_000;
        let step = match vip {
            IpAddr::V4(vip) => link.ipv4([11 + a % 100, b, c, d], vip.octets(), 64),
            IpAddr::V6(vip) => {
                let mut source = [0; 16];
                source[..8].copy_from_slice(&[0x26, a, b, c, d, 0, a, b]);
                source[15] = 1;
                link.ipv6(source, vip.octets(), 64)
            }
        };
        let mut packet = Vec::new();
        if number % 2 == 0 {
            let service = if number % 32 == 0 { 7 } else { 9 };
            step.udp(port, service).write(&mut packet, b"flood")
        } else {
            let service = if number / 2 % 2 == 0 { 80 } else { 81 };
            step.tcp(port, service, random, 4096)
                .syn()
                .write(&mut packet, &[])
        }
        .unwrap();
        writer.write(Instant::from_secs(1), &packet).unwrap();
    }
    writer.finish().unwrap();
    path
}

fn sysctl(world: &World, machine: &str, family: &Family) {
    let ipv6 = if family.is_ipv6() { 0 } else { 1 };
    world.on(
        machine,
        &format!(
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
             net.ipv6.conf.all.disable_ipv6={ipv6} net.ipv6.conf.default.disable_ipv6={ipv6}"
        ),
    );
}

/// One flood at a time: two of them are more than the machine has to give.
static ALONE: Mutex<()> = Mutex::new(());

/// Sends the flood out of a device of the client's, and requests beside it; then looks at the report.
fn is_served(world: &World, family: &Family, device: &str, slb: Process) {
    let vip = family.vip;
    let ready = (0..100).any(|_| {
        sleep(Duration::from_millis(100));
        let page = format!("curl -g -sS -m 1 'http://{}/'", family.host());
        let page = world.command("client", &page).output().unwrap();
        page.status.success()
    });
    assert!(ready, "nobody is served without a flood");
    let stay = world.start("client", &peer(&format!("stay {vip} 80 8")));
    let file = flood(world, family);
    let count = || -> u64 {
        let path = format!("cat /sys/class/net/{device}/statistics/tx_packets");
        world.on("client", &path).trim().parse().unwrap()
    };
    let replay = format!(
        "tcpreplay -q --preload-pcap --loop 0 --pps {RATE} -i {device} {} 2>/dev/null",
        file.display()
    );
    let replay = world.start("client", &replay);
    // Until those that are unanswered have their share of the table.
    sleep(Duration::from_secs(3));
    let (before, begin) = (count(), Clock::now());
    let failed = world.on("client", &peer(&format!("requests {vip} 80 7 {REQUESTS}")));
    let (sent, time) = (count() - before, begin.elapsed());
    drop(replay);
    let rate = sent as f64 / time.as_secs_f64();
    println!(
        "{sent} packets, {rate:.0} a second: {} of {REQUESTS} requests failed",
        failed.trim()
    );
    assert_eq!(
        failed.trim(),
        "0",
        "of {REQUESTS} requests, at {rate:.0} packets/s"
    );
    assert_eq!(
        stay.finish().split_whitespace().count(),
        1,
        "a session stays"
    );
    slb.signal("TERM");
    let report = slb.finish();
    // The flood was there, and the table was full of it.
    assert!(
        rate > f64::from(RATE) * 0.5,
        "only {rate:.0} packets/s were sent"
    );
    let line = report
        .lines()
        .find(|line| line.starts_with("connections: "));
    let line = line.unwrap_or_else(|| panic!("{report}"));
    let number = |what: &str| -> u64 {
        let before = line.split(what).next().unwrap();
        before.split_whitespace().last().unwrap().parse().unwrap()
    };
    assert!(number(" of them evicted") > sent / 4, "{line}");
    assert_eq!(number(" refused"), 0, "{line}");
}

#[test]
#[ignore = "needs root"]
fn a_proxy_under_a_flood_serves_every_request() {
    floods_a_proxy(&IPV4);
}

#[test]
#[ignore = "needs root"]
fn a_proxy_under_a_flood_over_ipv6_serves_every_request() {
    floods_a_proxy(&IPV6);
}

#[test]
#[ignore = "needs root"]
fn a_host_agent_under_a_flood_serves_every_request() {
    floods_a_host_agent(&IPV4);
}

#[test]
#[ignore = "needs root"]
fn a_host_agent_under_a_flood_over_ipv6_serves_every_request() {
    floods_a_host_agent(&IPV6);
}

fn floods_a_proxy(family: &Family) {
    if let Some(why) = lacking(&["ethtool", "tcpreplay"]) {
        skip!("{why}");
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut world = World::new("sp", &["client", "lb", "server"]);
    for machine in ["client", "lb", "server"] {
        sysctl(&world, machine, family);
    }
    world.plain_cable("client", "eth0", "lb", "f0", 1500);
    world.plain_cable("server", "eth0", "lb", "back", 1500);
    let (server, len) = family.beside;
    for command in [
        family.add_address(family.client, len, "eth0"),
        family.add_default_route(server),
    ] {
        world.on("client", &command);
    }
    for command in [
        format!("ip link set eth0 address {SERVER_LINK}"),
        family.add_address(server, len, "eth0"),
        // It answers whoever asks.
        family.add_default_route(family.client),
    ] {
        world.on("server", &command);
    }
    world.serve("server");
    let port = |name: &str, kind: &str| format!("[[port]]\nname = \"{name}\"\ntype = \"{kind}\"\n");
    let text = [
        "[node]\nrole = \"proxy\"\n".to_owned(),
        port("f0", "frontend"),
        port("back", "backend"),
        format!(
            "[[frontend]]\nname = \"web\"\naddress = \"{}\"\n",
            family.vip
        ),
        format!(
            "[[pool]]\nname = \"servers\"\nbackends = [{{ name = \"s\", address = \"{server}\" }}]\n"
        ),
        services(),
    ];
    let path = world.path("proxy.toml");
    fs::write(&path, text.concat()).unwrap();
    let slb = format!(
        "{} proxy --config {} --status {} --io f0=afxdp:f0 --io back=afxdp:back",
        env!("CARGO_BIN_EXE_slb"),
        path.display(),
        world.path("sock").display()
    );
    let proxy = world.start("lb", &slb);
    is_served(&world, family, "eth0", proxy);
}

fn floods_a_host_agent(family: &Family) {
    if let Some(why) = lacking(&["ethtool", "tcpreplay"]) {
        skip!("{why}");
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut world = World::new("sh", &["client", "host", "server"]);
    for machine in ["client", "host", "server"] {
        sysctl(&world, machine, family);
    }
    world.plain_cable("client", "eth0", "host", "eth0", 1600);
    world.plain_cable("server", "eth0", "host", "vm", 1500);
    let (vm, gateway, len) = family.vm;
    let Family {
        vip, client, whole, ..
    } = family;
    for command in [
        "ip address add 172.16.0.11/24 dev eth0",
        &family.add_address(client, *whole, "lo"),
        "ip link add vx0 mtu 1500 type vxlan id 5001 local 172.16.0.11 remote 172.16.0.101 \
         dstport 4789 srcport 49152 65535 dev eth0",
        "ethtool -K vx0 tx off",
        "ip link set vx0 up",
        &format!("ip route add {vip}/{whole} dev vx0 src {client}"),
        &format!("ip neighbour add {vip} lladdr {SERVER_LINK} dev vx0 nud permanent"),
    ] {
        world.on("client", command);
    }
    for command in [
        "ip address add 172.16.0.101/24 dev eth0",
        "ip route add default via 172.16.0.11",
        &family.add_address(gateway, len, "vm"),
    ] {
        world.on("host", command);
    }
    for command in [
        format!("ip link set eth0 address {SERVER_LINK}"),
        family.add_address(vm, len, "eth0"),
        family.add_default_route(gateway),
    ] {
        world.on("server", &command);
    }
    world.serve("server");
    let text = format!(
        "[node]\nrole = \"host\"\nunderlay = [\"172.16.0.101\"]\n\
         muxes = [\"172.16.0.11\"]\n\
         [[frontend]]\nname = \"web\"\naddress = \"{vip}\"\n\
         [[pool]]\nname = \"servers\"\nvni = 5001\nbackends = [{{ name = \"vm\", \
         address = \"{vm}\", host = \"172.16.0.101\", mac = \"{SERVER_LINK}\" }}]\n{}",
        services()
    );
    let path = world.path("host.toml");
    fs::write(&path, text).unwrap();
    let slb = format!(
        "{} host --config {} --status {} --io 0=afxdp:eth0 --io vm=afxdp:vm",
        env!("CARGO_BIN_EXE_slb"),
        path.display(),
        world.path("sock").display()
    );
    let host = world.start("host", &slb);
    is_served(&world, family, "vx0", host);
}
