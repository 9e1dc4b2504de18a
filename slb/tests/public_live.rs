//! A vm's public address over AF_XDP: a client behind a router, a mux, and a host agent with the vm. The client calls
//! the vm and pings it, the vm calls the client, and a router's error reaches the vm. Needs root.

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

    /// A counter of a node's public addresses.
    fn packets(&self, node: &str, counter: &str) -> u64 {
        let socket = self.world.path(&format!("{node}.sock"));
        let slb = env!("CARGO_BIN_EXE_slb");
        let status = format!("{slb} status --format json --socket {}", socket.display());
        let status: Value = serde_json::from_str(&self.world.on(node, &status)).unwrap();
        status[counter]["packets"].as_u64().expect("a counter")
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
