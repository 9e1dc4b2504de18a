//! A vm's public address over AF_XDP: a client behind a router, a mux, and a host agent with the vm. The client calls
//! the vm and pings it, the vm calls the client, and a router's error reaches the vm; the host agent counts for the vm
//! what the vm's own kernel counts. Needs root.

use crate::common;

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use common::world::{Process, World, lacking};

const NETWORK: &str = r#"
[[network]]
name = "blue"
vni = 5001
address_spaces = "10.1.0.0/16"
gateways = "10.1.0.1"

[[vm]]
name = "vm"
network = "blue"
address = "10.1.0.12"
mac = "02:00:0a:01:00:12"
host = "172.16.0.101"

[[public_address]]
address = "40.0.0.12"
network = "blue"
vm = "10.1.0.12"
"#;

struct Site {
    world: World,
    _nodes: Vec<Process>,
}

impl Site {
    fn new() -> Self {
        let mut world = World::new("pub", &["client", "router", "mux", "host", "vm"]);
        world.plain_cable("client", "eth0", "router", "clients", 1280);
        world.plain_cable("mux", "eth0", "router", "mux", 1600);
        world.plain_cable("host", "eth0", "router", "host", 1600);
        world.plain_cable("vm", "eth0", "host", "port", 1500);
        for command in [
            "ip link add fabric mtu 1600 type bridge",
            "ip link set fabric up",
            "ip link set mux master fabric",
            "ip link set host master fabric",
            "ip address add 172.16.0.1/24 dev fabric",
            "ip address add 198.51.100.1/24 dev clients",
            // Nothing leads to the vm's own address.
            "ip route add 40.0.0.12 via 172.16.0.11",
            "sysctl -qw net.ipv4.ip_forward=1",
        ] {
            world.on("router", command);
        }
        world.on("client", "ip address add 198.51.100.9/24 dev eth0");
        world.on("client", "ip route add default via 198.51.100.1");
        for (node, address) in [("mux", "172.16.0.11"), ("host", "172.16.0.101")] {
            world.on(node, &format!("ip address add {address}/24 dev eth0"));
            world.on(node, "ip route add default via 172.16.0.1");
            world.on(node, "sysctl -qw net.ipv4.ip_forward=1");
        }
        world.on("vm", "ip link set eth0 address 02:00:0a:01:00:12 up");
        world.on("vm", "ip address add 10.1.0.12/16 dev eth0");
        world.on("vm", "ip route add default via 10.1.0.1");
        world.serve("vm");
        world.serve("client");
        let mut nodes = Vec::new();
        for (role, address, io) in [
            ("mux", "172.16.0.11", "--io afxdp:eth0"),
            ("host", "172.16.0.101", "--io afxdp:eth0 --io vm=afxdp:port"),
        ] {
            let path = world.path(&format!("{role}.toml"));
            let table = match role {
                "mux" => "flows = 1024",
                _ => "connections = 1024",
            };
            let node = format!(
                "[node]\nrole = \"{role}\"\nunderlay = \"{address}\"\n{table}\nprobing = false\n\
                 muxes = [\"172.16.0.11\"]\n{NETWORK}"
            );
            fs::write(&path, node).unwrap();
            let command = format!(
                "{} {role} --config {} --status {} --ring 1024 {io} 2>>{}",
                env!("CARGO_BIN_EXE_slb"),
                path.display(),
                world.path(&format!("{role}.sock")).display(),
                world.path("log").display(),
            );
            nodes.push(world.start(role, &command));
        }
        Self {
            world,
            _nodes: nodes,
        }
    }

    fn output(&self, machine: &str, command: &str) -> (bool, String) {
        let output = self.world.command(machine, command).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said)
    }

    #[track_caller]
    fn expect(&self, machine: &str, command: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        while !self.output(machine, command).0 {
            let log = || fs::read_to_string(self.world.path("log")).unwrap_or_default();
            assert!(
                Instant::now() < end,
                "{machine}: {command} fails: {}",
                log()
            );
            sleep(Duration::from_millis(100));
        }
    }

    fn status(&self, node: &str) -> Value {
        let socket = self.world.path(&format!("{node}.sock"));
        let slb = env!("CARGO_BIN_EXE_slb");
        let status = format!("{slb} status --format json --socket {}", socket.display());
        serde_json::from_str(&self.world.on(node, &status)).unwrap()
    }

    /// A counter of a node's public addresses.
    fn packets(&self, node: &str, counter: &str) -> u64 {
        let status = self.status(node);
        status[counter]["packets"].as_u64().expect("a counter")
    }

    /// Packets and bytes to the vm and from it, by the host agent, with the network and the Internet.
    fn metered(&self) -> [[u64; 4]; 2] {
        let status = self.status("host");
        assert_eq!(status["vms"][0]["vm"], "vm");
        assert_eq!(status["vms"][0]["network"], "blue");
        ["network", "internet"].map(|scope| {
            let traffic = &status["vms"][0]["traffic"][scope];
            let of = |way: &str, what: &str| traffic[way][what].as_u64().expect("a counter");
            [
                ("in", "packets"),
                ("in", "bytes"),
                ("out", "packets"),
                ("out", "bytes"),
            ]
            .map(|(way, what)| of(way, what))
        })
    }

    /// Packets and bytes to the vm and from it, by the vm's kernel.
    fn by_kernel(&self) -> [u64; 4] {
        let said = self.world.on("vm", "ip -j -s link show eth0");
        let said: Value = serde_json::from_str(&said).unwrap();
        let of = |way: &str, what: &str| said[0]["stats64"][way][what].as_u64().expect("a counter");
        [
            ("rx", "packets"),
            ("rx", "bytes"),
            ("tx", "packets"),
            ("tx", "bytes"),
        ]
        .map(|(way, what)| of(way, what))
    }
}

#[test]
#[ignore = "needs root"]
fn a_vm_is_called_and_calls_by_its_public_address() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    let site = Site::new();
    site.expect(
        "client",
        "curl -s -m 5 -o /dev/null http://40.0.0.12:8080/1000000",
    );
    site.expect("client", "ping -c 2 -i 0.2 -W 1 40.0.0.12");
    // In pieces both ways.
    site.expect("client", "ping -c 2 -i 0.2 -W 1 -s 3000 40.0.0.12");
    // The vm's own calls: the router has no route to its own address for the answers.
    site.expect(
        "vm",
        "curl -s -m 5 -o /dev/null http://198.51.100.9:8080/1000000",
    );
    site.expect("vm", "ping -c 2 -i 0.2 -W 1 198.51.100.9");
    // The router, an inside address, says what the client's cable carries.
    let (_, said) = site.output("vm", "ping -c 2 -i 0.2 -W 2 -M do -s 1400 198.51.100.9");
    assert!(said.contains("mtu = 1280"), "{said}");
    let (mux, host) = (
        site.packets("mux", "public_in"),
        site.packets("host", "public_in"),
    );
    // The mux may send before the host agent has started.
    assert!(host > 100 && mux >= host, "{mux} {host}");
    assert!(site.packets("host", "public_out") > 100);
}

/// The vm's own kernel counts at its end of the cable: the host agent's counters of the vm agree.
#[test]
#[ignore = "needs root"]
fn the_traffic_of_a_vm_is_what_its_kernel_counts() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    let site = Site::new();
    // Neither kernel sends anything of its own accord.
    for (machine, device) in [("vm", "eth0"), ("host", "port")] {
        let off = format!("sysctl -qw net.ipv6.conf.{device}.disable_ipv6=1");
        site.world.on(machine, &off);
    }
    site.expect("client", "ping -c 1 -W 1 40.0.0.12");
    site.expect("vm", "ping -c 1 -W 1 198.51.100.9");
    sleep(Duration::from_secs(1));
    let (kernel, metered) = (site.by_kernel(), site.metered());
    for (machine, command) in [
        (
            "client",
            "curl -s -m 9 -o /dev/null http://40.0.0.12:8080/1000000",
        ),
        (
            "vm",
            "curl -s -m 9 -o /dev/null http://198.51.100.9:8080/300000",
        ),
        ("client", "ping -c 3 -i 0.2 -W 1 -s 3000 40.0.0.12"),
        ("vm", "ping -c 5 -i 0.2 -W 1 10.1.0.1"),
    ] {
        let (done, said) = site.output(machine, command);
        assert!(done, "{machine}: {command}: {said}");
    }
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let now = site.by_kernel();
        let by_kernel = [0, 1, 2, 3].map(|place| now[place] - kernel[place]);
        let now = site.metered();
        let scopes =
            [0, 1].map(|scope| [0, 1, 2, 3].map(|place| now[scope][place] - metered[scope][place]));
        let [network, internet] = scopes;
        let all = [0, 1, 2, 3].map(|place| network[place] + internet[place]);
        // At a cable with an XDP program at its other end, the kernel counts sent bytes without Ethernet headers.
        let mut without_headers = all;
        without_headers[3] -= 14 * all[2];
        if by_kernel == all || by_kernel == without_headers {
            // Five echo requests and replies of 98 bytes, and ARP.
            assert!(network[1] >= 490 && network[1] < 900, "{network:?}");
            assert!(network[3] >= 490 && network[3] < 900, "{network:?}");
            assert!(
                internet[3] > 1_000_000 && internet[1] > 300_000,
                "{internet:?}"
            );
            return;
        }
        assert!(
            Instant::now() < end,
            "the kernel counts {by_kernel:?}, slb {scopes:?}"
        );
        sleep(Duration::from_millis(200));
    }
}
