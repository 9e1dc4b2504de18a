//! Two tenants with the same addresses and the same private VIP, on two hosts over AF_XDP, beside a mux that is
//! on the way of nothing: calls of the VIP go from host to host, to the tenant's own backends.
//!
//! ```text
//!  blue1 blue3 red1 red3        blue2 red2
//!         host1 (slb)            host2 (slb)      mux (slb)
//!           └───────── fabric 172.16.0.0/24 ─────────┘
//! ```
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::collections::BTreeSet;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{Process, World, lacking};

const TENANTS: [(&str, u32); 2] = [("blue", 5001), ("red", 5002)];
/// Vms of each tenant, with their hosts. The first one calls, the others serve.
const VMS: [(u32, u32); 3] = [(1, 1), (2, 2), (3, 1)];
const NODES: [(&str, u32); 3] = [("host1", 101), ("host2", 102), ("mux", 111)];
/// Bytes of the download.
const SIZE: usize = 4_000_000;

struct Site {
    world: World,
    nodes: Vec<Process>,
}

impl Site {
    fn new() -> Self {
        let mut machines = vec!["fabric".to_owned()];
        machines.extend(NODES.map(|(node, _)| node.to_owned()));
        for (tenant, _) in TENANTS {
            machines.extend(VMS.map(|(vm, _)| format!("{tenant}{vm}")));
        }
        let names: Vec<&str> = machines.iter().map(String::as_str).collect();
        let mut world = World::new("v", &names);
        for machine in &machines {
            world.on(
                machine,
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.accept_dad=0 \
                 net.ipv6.conf.default.accept_dad=0",
            );
        }
        world.on(
            "fabric",
            "ip link add fabric address 02:00:00:00:00:fe mtu 1600 type bridge",
        );
        world.on("fabric", "ip link set fabric up");
        world.on("fabric", "ip address add 172.16.0.1/24 dev fabric");
        for (node, number) in NODES {
            world.plain_cable(node, "eth0", "fabric", node, 1600);
            world.on("fabric", &format!("ip link set {node} master fabric"));
            let address = format!("ip address add 172.16.0.{number}/24 dev eth0");
            world.on(node, &address);
        }
        for (tenant, _) in TENANTS {
            for (vm, host) in VMS {
                let (machine, host) = (format!("{tenant}{vm}"), format!("host{host}"));
                world.plain_cable(&machine, "eth0", &host, &machine, 1500);
                for command in [
                    format!("ip link set eth0 address 02:00:0a:01:00:1{vm} up"),
                    format!("ip address add 10.1.0.1{vm}/16 dev eth0"),
                    format!("ip address add fd00:1::1{vm}/64 dev eth0"),
                ] {
                    world.on(&machine, &command);
                }
                world.serve(&machine);
            }
        }
        let mut site = Self {
            world,
            nodes: Vec::new(),
        };
        for (node, number) in NODES {
            site.start(node, number);
        }
        site
    }

    fn start(&mut self, node: &str, number: u32) {
        let role = node.trim_end_matches(char::is_numeric);
        let sizes = match role {
            "mux" => "flows = 1024",
            _ => "connections = 1024",
        };
        let mut text = format!(
            "[node]\nrole = \"{role}\"\nunderlay = \"172.16.0.{number}\"\n{sizes}\nprobing = false\n\
             muxes = \"172.16.0.111\"\n"
        );
        for (tenant, vni) in TENANTS {
            text += &format!(
                "[[network]]\nname = \"{tenant}\"\nvni = {vni}\n\
                 address_spaces = [\"10.1.0.0/16\", \"fd00:1::/64\"]\n\
                 [[vm]]\nname = \"{tenant}1\"\nnetwork = \"{tenant}\"\n\
                 address = [\"10.1.0.11\", \"fd00:1::11\"]\nmac = \"02:00:0a:01:00:11\"\n\
                 host = \"172.16.0.101\"\n"
            );
            for (family, vip, prefix) in [
                ("v4", "10.1.0.100", "10.1.0."),
                ("v6", "fd00:1::100", "fd00:1::"),
            ] {
                let name = format!("{tenant}-{family}");
                text += &format!(
                    "[[frontend]]\nname = \"{name}\"\naddress = \"{vip}\"\nnetwork = \"{tenant}\"\n\
                     [[rule]]\nname = \"{name}\"\nfrontend = \"{name}\"\npool = \"{name}\"\n\
                     protocol = \"tcp\"\nfrontend_port = 80\nbackend_port = 8080\n\
                     [[pool]]\nname = \"{name}\"\nnetwork = \"{tenant}\"\ntable_size = 997\nbackends = [\n"
                );
                for (vm, host) in &VMS[1..] {
                    text += &format!(
                        "{{ name = \"{tenant}{vm}\", address = \"{prefix}1{vm}\", \
                         mac = \"02:00:0a:01:00:1{vm}\", host = \"172.16.0.10{host}\" }},\n"
                    );
                }
                text += "]\n";
            }
        }
        let path = self.world.path(&format!("{node}.toml"));
        fs::write(&path, text).unwrap();
        let mut command = format!(
            "{} {role} --config {} --status {} --ring 1024 --io afxdp:eth0",
            env!("CARGO_BIN_EXE_slb"),
            path.display(),
            self.world.path(&format!("{node}.sock")).display(),
        );
        for (tenant, _) in TENANTS {
            for (vm, _) in VMS.iter().filter(|(_, host)| node == format!("host{host}")) {
                command += &format!(" --io {tenant}{vm}=afxdp:{tenant}{vm}");
            }
        }
        command += &format!(" 2>>{}", self.world.path("log").display());
        let process = self.world.start(node, &command);
        self.nodes.push(process);
    }

    /// Runs a command until it succeeds; gives what it printed.
    #[track_caller]
    fn expect(&self, machine: &str, command: &str) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.world.command(machine, command).output().unwrap();
            if output.status.success() {
                return String::from_utf8_lossy(&output.stdout).into_owned();
            }
            if Instant::now() > end {
                let log = fs::read_to_string(self.world.path("log")).unwrap_or_default();
                let neighbours = self.world.on(machine, "ip neighbour show");
                let status: Vec<String> = NODES.map(|(node, _)| self.status(node, "text")).into();
                let status = status.join("\n");
                panic!("{machine}: {command} fails: {log}\n{neighbours}\n{status}");
            }
            sleep(Duration::from_millis(100));
        }
    }

    fn status(&self, node: &str, format: &str) -> String {
        let (slb, socket) = (
            env!("CARGO_BIN_EXE_slb"),
            self.world.path(&format!("{node}.sock")),
        );
        let show = format!(
            "{slb} status --socket {} --once --format {format}",
            socket.display()
        );
        self.world.on("fabric", &show)
    }

    /// Waits until a node has sent a number of packets on.
    #[track_caller]
    fn forwards(&self, node: &str, packets: u64) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.forwarded(node) < packets {
            let sent = self.forwarded(node);
            assert!(Instant::now() < end, "{node} sent {sent} of {packets} on");
            sleep(Duration::from_millis(100));
        }
    }

    /// Packets that a node has sent on.
    fn forwarded(&self, node: &str) -> u64 {
        let status: serde_json::Value = serde_json::from_str(&self.status(node, "json")).unwrap();
        let packets = status.pointer("/forwarded/packets");
        packets
            .and_then(serde_json::Value::as_u64)
            .expect("a count")
    }
}

#[test]
#[ignore = "needs root"]
fn calls_of_private_vips_reach_the_tenants_own_backends_past_the_mux() {
    if let Some(why) = lacking(&["ethtool", "bridge", "ss"]) {
        skip!("{why}");
    }
    let site = Site::new();
    for (tenant, _) in TENANTS {
        let client = format!("{tenant}1");
        for (vip, url, own) in [
            ("10.1.0.100", "http://10.1.0.100/", "10.1.0.11"),
            ("fd00:1::100", "http://[fd00:1::100]/", "fd00:1::11"),
        ] {
            site.expect(&client, &format!("ping -c 1 -W 1 {vip}"));
            let all = BTreeSet::from([2, 3].map(|vm| format!("{tenant}{vm}")));
            let mut met = BTreeSet::new();
            // Each call is one of the two backends', so a few are enough.
            for _ in 0..60 {
                if met == all {
                    break;
                }
                let said = site.expect(&client, &format!("curl -sf -m 5 {url}"));
                let (server, seen) = said.trim().split_once(' ').expect("two words");
                assert_eq!(seen, own, "the backend sees the caller's address");
                met.insert(server.to_owned());
            }
            assert_eq!(met, all, "{vip}");
        }
    }
    // A download: the backend of the other host gets some of them.
    let before = ["host1", "host2"].map(|node| site.forwarded(node));
    for _ in 0..6 {
        let get =
            format!("curl -sf -m 20 -o /dev/null -w %{{size_download}} http://10.1.0.100/{SIZE}");
        let size = site.expect("blue1", &get);
        assert_eq!(size.trim().parse::<usize>().unwrap(), SIZE);
    }
    let least = (SIZE / 1500) as u64;
    for (node, before) in ["host1", "host2"].into_iter().zip(before) {
        site.forwards(node, before + least);
    }
    assert_eq!(site.forwarded("mux"), 0, "packets at the mux");
    // From outside, and from a machine of the fabric, nobody answers.
    for machine in ["fabric", "host2"] {
        let call = "curl -s -m 2 http://10.1.0.100/";
        let route = format!("ip route replace 10.1.0.0/16 via 172.16.0.{}", 111);
        site.world.on(machine, &route);
        let output = site.world.command(machine, call).output().unwrap();
        assert!(!output.status.success(), "{machine}: {output:?}");
    }
    assert_eq!(site.forwarded("mux"), 0, "packets at the mux");
}
