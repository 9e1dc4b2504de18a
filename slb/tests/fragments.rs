//! Fragmented pings and datagrams between two Linux stacks, through a proxy and through a mux and
//! a host agent: in the order in which Linux sends them, and with the last fragment first.
//!
//! The proxy, over TAP devices:
//! ```text
//!  c ── bridge ── tap front ─ slb ─ tap back ── bridge ── s
//! ```
//! A mux and a host agent, over TUN devices, behind a router; the virtual machine is behind a TAP device:
//! ```text
//!               ┌ mux: tun ─ slb
//!  c ── router ─┤
//!               └ host: tun ─ slb ─ tap vm ── bridge ── s
//! ```
//!
//! Needs root; without, or where a tool is missing, a test says so and is skipped.

use crate::common;

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{Process, World, lacking};

/// Addresses of the service, one per family.
const VIPS: [&str; 2] = ["20.20.20.100", "fd00:20::100"];

fn script(arguments: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fragments.py");
    format!("python3 {} {arguments}", script.display())
}

/// Runs commands on a machine, one after the other.
fn all_on(world: &World, machine: &str, commands: &[&str]) {
    for command in commands {
        world.on(machine, command);
    }
}

/// Adds a TAP device to a machine, and bridges it with one of the machine's interfaces.
fn tap(world: &World, machine: &str, tap: &str, interface: &str) {
    all_on(
        world,
        machine,
        &[
            &format!("ip tuntap add dev {tap} mode tap"),
            &format!("ip link add br{tap} type bridge"),
            &format!("ip link set {tap} master br{tap} up"),
            &format!("ip link set {interface} master br{tap}"),
            &format!("ip link set br{tap} up"),
        ],
    );
}

/// The rules of both families' VIPs: pings, and datagrams to port 7, which the server has at 8080.
/// `backends` are the server's keys in a pool but for its name.
fn services(backends: [&str; 2], pool: &str, udp_answers: &str) -> String {
    let mut text = String::new();
    for (name, vip, backend) in [("4", VIPS[0], backends[0]), ("6", VIPS[1], backends[1])] {
        text += &format!(
            "[[frontend]]\nname = \"f{name}\"\naddress = \"{vip}\"\n\
             [[pool]]\nname = \"p{name}\"\n{pool}backends = [{{ name = \"s\", {backend} }}]\n\
             [[rule]]\nname = \"ping{name}\"\nfrontend = \"f{name}\"\npool = \"p{name}\"\n\
             protocol = \"icmp\"\n\
             [[rule]]\nname = \"echo{name}\"\nfrontend = \"f{name}\"\npool = \"p{name}\"\n\
             protocol = \"udp\"\nfrontend_port = 7\nbackend_port = 8080\n\
             [[rule]]\nname = \"through{name}\"\nfrontend = \"f{name}\"\npool = \"p{name}\"\n\
             protocol = \"udp\"\nfrontend_port = 8\nbackend_port = 8080\n{udp_answers}"
        );
    }
    text
}

/// Starts a balancer whose configuration is `text`.
fn balancer(world: &World, machine: &str, role: &str, io: &str, text: &str) -> Process {
    let config = world.path(&format!("{role}.toml"));
    fs::write(&config, text).unwrap();
    let command = format!(
        "{} {role} --config {} --status {} --log-level warn {io}",
        env!("CARGO_BIN_EXE_slb"),
        config.display(),
        world.path(&format!("{role}.sock")).display(),
    );
    world.start(machine, &command)
}

/// Checks that fragments waited for their first one at a balancer, and all of them went on.
#[track_caller]
fn fragments_waited(world: &World, machine: &str, role: &str) {
    let status = format!(
        "{} status --once --format json --socket {}",
        env!("CARGO_BIN_EXE_slb"),
        world.path(&format!("{role}.sock")).display()
    );
    let text = world.on(machine, &status);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    let packets = |count: &serde_json::Value| count["packets"].as_u64().unwrap();
    assert!(packets(&status["released"]) > 0, "{role}: {text}");
    for reason in ["fragment_held", "fragment_without_first"] {
        let lost = packets(&status["dropped"][reason]);
        assert_eq!(lost, 0, "{role}: {reason}: {text}");
    }
}

/// Waits until the server listens, and pings of both VIPs are answered.
#[track_caller]
fn becomes_ready(world: &World) {
    let end = Instant::now() + Duration::from_secs(20);
    let is_answered = |vip: &str| {
        let mut ping = world.command("c", &format!("ping -q -c 1 -W 1 {vip}"));
        ping.output().unwrap().status.success()
    };
    let listens = || world.on("s", "ss -Hlnu sport = :8080").lines().count() == 2;
    while !(VIPS.iter().all(|vip| is_answered(vip)) && listens()) {
        assert!(Instant::now() < end, "no answer in 20 seconds");
        sleep(Duration::from_millis(100));
    }
}

/// Sends long pings and datagrams to both VIPs.
#[track_caller]
fn fragments_cross(world: &World) {
    for vip in VIPS {
        let said = world.on("c", &format!("ping -q -c 5 -i 0.05 -W 5 -s 4000 {vip}"));
        assert!(said.contains(" 0% packet loss"), "{said}");
        world.on("c", &script(&format!("ask {vip} 7 8")));
    }
}

#[test]
#[ignore = "needs root"]
fn fragments_of_two_stacks_cross_a_proxy_in_any_order() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    let mut world = World::new("fp", &["c", "lb", "s"]);
    for (machine, port, number) in [("c", "front", 10), ("s", "back", 11)] {
        let end = format!("to-{machine}");
        world.plain_cable(machine, "eth0", "lb", &end, 1500);
        tap(&world, "lb", port, &end);
        all_on(
            &world,
            machine,
            &[
                &format!("ip address add 10.0.0.{number}/24 dev eth0"),
                &format!("ip address add fd00:1::{number}/64 dev eth0 nodad"),
            ],
        );
    }
    // The proxy rewrites packets that pass it on their way to the server's MAC address.
    world.on("c", &format!("ip route add {} via 10.0.0.11", VIPS[0]));
    world.on("c", &format!("ip route add {} via fd00:1::11", VIPS[1]));
    world.keep("s", &script("serve"));
    let text = "[node]\nrole = \"proxy\"\nconnections = 1024\n\
         [[port]]\nname = \"front\"\ntype = \"frontend\"\n\
         [[port]]\nname = \"back\"\ntype = \"backend\"\n"
        .to_owned()
        + &services(
            ["address = \"10.0.0.11\"", "address = \"fd00:1::11\""],
            "",
            "",
        );
    let io = "--io front=tap:front --io back=tap:back";
    let _proxy = balancer(&world, "lb", "proxy", io, &text);
    becomes_ready(&world);
    fragments_cross(&world);
    fragments_waited(&world, "lb", "proxy");
}

/// Puts a node on the fabric, with a TUN device that the balancer has an address of its own behind.
fn node(world: &World, machine: &str, number: u32) {
    world.plain_cable(machine, "eth0", "r", machine, 1600);
    world.on("r", &format!("ip link set {machine} master fabric"));
    all_on(
        world,
        machine,
        &[
            &format!("ip address add 172.16.0.{number}/24 dev eth0"),
            &format!("ip address add fd00:16::{number}/64 dev eth0 nodad"),
            "ip route add default via 172.16.0.1",
            "ip route add default via fd00:16::1",
            "ip tuntap add dev slb0 mode tun",
            "ip link set slb0 mtu 1600 up",
            &format!("ip route add 172.17.0.{number} dev slb0"),
            &format!("ip route add fd00:17::{number} dev slb0"),
        ],
    );
    all_on(
        world,
        "r",
        &[
            &format!("ip route add 172.17.0.{number} via 172.16.0.{number}"),
            &format!("ip route add fd00:17::{number} via fd00:16::{number}"),
        ],
    );
}

#[test]
#[ignore = "needs root"]
fn fragments_of_two_stacks_cross_a_mux_and_a_host_agent_in_any_order() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    let mut world = World::new("fm", &["c", "r", "mux", "host", "s"]);
    for machine in ["r", "mux", "host"] {
        world.on(
            machine,
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
             net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
        );
    }
    world.plain_cable("c", "eth0", "r", "to-c", 1500);
    all_on(
        &world,
        "c",
        &[
            "ip address add 198.51.100.10/24 dev eth0",
            "ip address add 2001:db8:c::10/64 dev eth0 nodad",
            "ip route add default via 198.51.100.1",
            "ip route add default via 2001:db8:c::1",
        ],
    );
    all_on(
        &world,
        "r",
        &[
            "ip address add 198.51.100.1/24 dev to-c",
            "ip address add 2001:db8:c::1/64 dev to-c nodad",
            "ip link add fabric mtu 1600 type bridge",
            "ip link set fabric up",
            "ip address add 172.16.0.1/24 dev fabric",
            "ip address add fd00:16::1/64 dev fabric nodad",
            &format!("ip route add {} via 172.16.0.11", VIPS[0]),
            &format!("ip route add {} via fd00:16::11", VIPS[1]),
        ],
    );
    node(&world, "mux", 11);
    for vip in VIPS {
        world.on("mux", &format!("ip route add {vip} dev slb0"));
    }
    node(&world, "host", 101);
    world.plain_cable("s", "eth0", "host", "to-s", 1500);
    tap(&world, "host", "vm", "to-s");
    // The host agent, the only one there that could say who the gateway is, answers no question.
    let gateway = "lladdr 02:00:00:00:00:01 nud permanent dev eth0";
    all_on(
        &world,
        "s",
        &[
            "ip link set eth0 address 02:00:0a:0a:01:0b",
            "ip address add 10.10.1.11/24 dev eth0",
            "ip address add fd00:10:1::11/64 dev eth0 nodad",
            "ip route add default via 10.10.1.1",
            "ip route add default via fd00:10:1::1",
            &format!("ip neighbour replace 10.10.1.1 {gateway}"),
            &format!("ip neighbour replace fd00:10:1::1 {gateway}"),
        ],
    );
    world.keep("s", &script("serve"));
    let services = services(
        [
            "address = \"10.10.1.11\", host = \"172.17.0.101\", mac = \"02:00:0a:0a:01:0b\"",
            "address = \"fd00:10:1::11\", host = \"fd00:17::101\", mac = \"02:00:0a:0a:01:0b\"",
        ],
        "vni = 5001\n",
        "answers = \"mux\"\n",
    );
    let configuration = |role: &str, number: u32| {
        format!(
            "[node]\nrole = \"{role}\"\nmtu = 1600\nhash_seed = 7\nflows = 1024\nconnections = 1024\n\
             underlay = [\"172.17.0.{number}\", \"fd00:17::{number}\"]\n\
             muxes = [\"172.17.0.11\", \"fd00:17::11\"]\n{services}"
        )
    };
    let _mux = balancer(
        &world,
        "mux",
        "mux",
        "--io tun:slb0",
        &configuration("mux", 11),
    );
    let _host = balancer(
        &world,
        "host",
        "host",
        "--io 0=tun:slb0 --io s=tap:vm",
        &configuration("host", 101),
    );
    becomes_ready(&world);
    fragments_cross(&world);
    fragments_waited(&world, "mux", "mux");
    fragments_waited(&world, "host", "host");
}
