//! A host agent and a proxy under a flood of datagrams and SYNs from addresses of nobody, one of each or
//! two, answered or not: honest clients are served all the while.
//!
//! ```text
//!  client ── f0 proxy back ── server          client, mux ── eth0 host agent vm ── server
//! ```
//! The client's kernel plays the mux, with a VXLAN device of its own. All devices are AF_XDP's.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

#[macro_use]
mod common;

use std::fs;
use std::io::BufWriter;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant as Clock};

use etherparse::PacketBuilder;
use slb_core::Instant;
use slb_io_pcap::{Format, Writer};

use common::world::{Process, World, lacking, peer};

const VIP: &str = "20.20.20.100";
const CLIENT: &str = "198.51.100.10";
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
fn flood(world: &World) -> PathBuf {
    let path = world.path("flood.pcap");
    let file = BufWriter::new(fs::File::create(&path).unwrap());
    let mut writer = Writer::new(file, Format::Pcap).unwrap();
    let vip: Ipv4Addr = VIP.parse().unwrap();
    // By then a server has answered the first.
    const LATER: u32 = 2048;
    let again = |number: u32| number.checked_sub(LATER).filter(|first| first / 4 % 2 == 0);
    let numbers = (0..FLOWS).flat_map(|number| [Some(number), again(number)]);
    for number in numbers.flatten() {
        let random = number.wrapping_mul(0x9e37_79b1);
        let [a, b, c, d] = random.to_be_bytes();
        let source = [11 + a % 100, b, c, d];
        let port = 1024 + (random >> 3) as u16 % 60_000;
        let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x77], SERVER_MAC).ipv4(
            source,
            vip.octets(),
            64,
        );
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

fn sysctl(world: &World, machine: &str) {
    world.on(
        machine,
        "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
         net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
    );
}

/// One flood at a time: two of them are more than the machine has to give.
static ALONE: Mutex<()> = Mutex::new(());

/// Sends the flood out of a device of the client's, and requests beside it; then looks at the report.
fn is_served(world: &World, device: &str, slb: Process) {
    let ready = (0..100).any(|_| {
        sleep(Duration::from_millis(100));
        let page = format!("curl -sS -m 1 http://{VIP}/");
        let page = world.command("client", &page).output().unwrap();
        page.status.success()
    });
    assert!(ready, "nobody is served without a flood");
    let stay = world.start("client", &peer(&format!("stay {VIP} 80 8")));
    let file = flood(world);
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
    let failed = world.on("client", &peer(&format!("requests {VIP} 80 7 {REQUESTS}")));
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
    if let Some(why) = lacking(&["ethtool", "tcpreplay"]) {
        skip!("{why}");
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut world = World::new("sp", &["client", "lb", "server"]);
    for machine in ["client", "lb", "server"] {
        sysctl(&world, machine);
    }
    world.plain_cable("client", "eth0", "lb", "f0", 1500);
    world.plain_cable("server", "eth0", "lb", "back", 1500);
    for command in [
        format!("ip address add {CLIENT}/24 dev eth0"),
        "ip route add default via 198.51.100.1".to_owned(),
    ] {
        world.on("client", &command);
    }
    for command in [
        format!("ip link set eth0 address {SERVER_LINK}"),
        "ip address add 198.51.100.1/24 dev eth0".to_owned(),
        // It answers whoever asks.
        format!("ip route add default via {CLIENT}"),
    ] {
        world.on("server", &command);
    }
    world.serve("server");
    let port = |name: &str, kind: &str| format!("[[port]]\nname = \"{name}\"\ntype = \"{kind}\"\n");
    let text = [
        "[node]\nrole = \"proxy\"\n".to_owned(),
        port("f0", "frontend"),
        port("back", "backend"),
        format!("[[frontend]]\nname = \"web\"\naddress = \"{VIP}\"\n"),
        "[[pool]]\nname = \"servers\"\nbackends = [{ name = \"s\", address = \"198.51.100.1\" }]\n"
            .to_owned(),
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
    is_served(&world, "eth0", proxy);
}

#[test]
#[ignore = "needs root"]
fn a_host_agent_under_a_flood_serves_every_request() {
    if let Some(why) = lacking(&["ethtool", "tcpreplay"]) {
        skip!("{why}");
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut world = World::new("sh", &["client", "host", "server"]);
    for machine in ["client", "host", "server"] {
        sysctl(&world, machine);
    }
    world.plain_cable("client", "eth0", "host", "eth0", 1600);
    world.plain_cable("server", "eth0", "host", "vm", 1500);
    for command in [
        "ip address add 172.16.0.11/24 dev eth0",
        &format!("ip address add {CLIENT}/32 dev lo"),
        "ip link add vx0 mtu 1500 type vxlan id 5001 local 172.16.0.11 remote 172.16.0.101 \
         dstport 4789 srcport 49152 65535 dev eth0",
        "ethtool -K vx0 tx off",
        "ip link set vx0 up",
        &format!("ip route add {VIP}/32 dev vx0 src {CLIENT}"),
        &format!("ip neighbour add {VIP} lladdr {SERVER_LINK} dev vx0 nud permanent"),
    ] {
        world.on("client", command);
    }
    for command in [
        "ip address add 172.16.0.101/24 dev eth0",
        "ip route add default via 172.16.0.11",
        "ip address add 10.10.1.1/24 dev vm",
    ] {
        world.on("host", command);
    }
    for command in [
        format!("ip link set eth0 address {SERVER_LINK}"),
        "ip address add 10.10.1.11/24 dev eth0".to_owned(),
        "ip route add default via 10.10.1.1".to_owned(),
    ] {
        world.on("server", &command);
    }
    world.serve("server");
    let text = format!(
        "[node]\nrole = \"host\"\nunderlay = [\"172.16.0.101\"]\n\
         muxes = [\"172.16.0.11\"]\n\
         [[frontend]]\nname = \"web\"\naddress = \"{VIP}\"\n\
         [[pool]]\nname = \"servers\"\nvni = 5001\nbackends = [{{ name = \"vm\", \
         address = \"10.10.1.11\", host = \"172.16.0.101\", mac = \"{SERVER_LINK}\" }}]\n{}",
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
    is_served(&world, "vx0", host);
}
