//! Access lists in a running host agent over AF_XDP: two hosts with a vm each. The allowed request is answered, the
//! denied one is dropped and counted, and a reload ends no connection. Needs root.

use crate::common;

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use common::world::{Process, World, lacking};

/// The server's list: its page, and no pings.
const RULES: &str = r#"
[[security_list]]
name = "server"
[[security_rule]]
security_list = "server"
name = "page"
priority = 100
direction = "inbound"
access = "allow"
protocol = "tcp"
sources = "10.1.0.11"
destination_ports = "8080"
[[security_rule]]
security_list = "server"
name = "rest"
priority = 200
direction = "inbound"
access = "deny"
"#;

struct Site {
    world: World,
    hosts: Vec<Process>,
}

fn config(host: u32, rules: &str) -> String {
    let mut text = format!(
        "[node]\nrole = \"host\"\nunderlay = \"172.16.0.10{host}\"\nconnections = 1024\nprobing = false\n{rules}\
         [[network]]\nname = \"blue\"\nvni = 5001\naddress_spaces = \"10.1.0.0/16\"\n"
    );
    for of in [1, 2] {
        let list = if of == 2 {
            "security_list = \"server\"\n"
        } else {
            ""
        };
        text += &format!(
            "[[vm]]\nname = \"vm{of}\"\nnetwork = \"blue\"\naddress = \"10.1.0.1{of}\"\n\
             mac = \"02:00:0a:01:00:1{of}\"\nhost = \"172.16.0.10{of}\"\n{list}"
        );
    }
    text
}

impl Site {
    fn new() -> Self {
        let mut world = World::new("acl", &["host1", "host2", "vm1", "vm2"]);
        world.plain_cable("host1", "eth0", "host2", "eth0", 1600);
        for host in [1, 2] {
            let (machine, vm) = (format!("host{host}"), format!("vm{host}"));
            world.on(&machine, "sysctl -qw net.ipv4.ip_forward=1");
            world.on(
                &machine,
                &format!("ip address add 172.16.0.10{host}/24 dev eth0"),
            );
            world.plain_cable(&vm, "eth0", &machine, "port", 1500);
            world.on(
                &vm,
                &format!("ip link set eth0 address 02:00:0a:01:00:1{host} up"),
            );
            world.on(&vm, &format!("ip address add 10.1.0.1{host}/16 dev eth0"));
            world.serve(&vm);
        }
        let mut site = Self {
            world,
            hosts: Vec::new(),
        };
        for host in [1, 2] {
            let path = site.world.path(&format!("host{host}.toml"));
            fs::write(&path, config(host, RULES)).unwrap();
            let command = format!(
                "{} host --config {} --status {} --ring 1024 --io afxdp:eth0 --io vm{host}=afxdp:port 2>>{}",
                env!("CARGO_BIN_EXE_slb"),
                path.display(),
                site.world.path(&format!("host{host}.sock")).display(),
                site.world.path("log").display(),
            );
            let process = site.world.start(&format!("host{host}"), &command);
            site.hosts.push(process);
        }
        site
    }

    fn succeeds(&self, machine: &str, command: &str) -> bool {
        let output = self.world.command(machine, command).output();
        output.is_ok_and(|output| output.status.success())
    }

    #[track_caller]
    fn expect(&self, machine: &str, command: &str) {
        let end = Instant::now() + Duration::from_secs(15);
        while !self.succeeds(machine, command) {
            let log = || fs::read_to_string(self.world.path("log")).unwrap_or_default();
            assert!(
                Instant::now() < end,
                "{machine}: {command} fails: {}",
                log()
            );
            sleep(Duration::from_millis(100));
        }
    }

    fn slb(&self, command: &str) -> String {
        let socket = self.world.path("host2.sock");
        let slb = env!("CARGO_BIN_EXE_slb");
        self.world.on(
            "host2",
            &format!("{slb} {command} --socket {}", socket.display()),
        )
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.slb("status --format json")).unwrap()
    }

    /// Packets that a rule of the server's list decided about.
    fn judged(&self, rule: &str) -> u64 {
        let status = self.status();
        let rules = status["security_rules"].as_array().unwrap();
        let found = rules.iter().find(|own| own["rule"] == rule).unwrap();
        found["judged"]["packets"].as_u64().unwrap()
    }
}

#[test]
#[ignore = "needs root"]
fn the_allowed_request_is_answered_and_the_denied_one_counted() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    let site = Site::new();
    let page = "curl -s -m 5 -o /dev/null http://10.1.0.12:8080/100000";
    site.expect("vm1", page);
    assert!(!site.succeeds("vm1", "ping -c 1 -W 1 10.1.0.12"));
    // The server may call, and gets its answers.
    site.expect("vm2", "ping -c 1 -W 1 10.1.0.11");
    site.expect(
        "vm2",
        "curl -s -m 5 -o /dev/null http://10.1.0.11:8080/100000",
    );
    assert!(!site.succeeds("vm1", "ping -c 1 -W 1 10.1.0.12"));
    let (pages, rest) = (site.judged("page"), site.judged("rest"));
    assert!(pages >= 1 && rest >= 2, "{pages} {rest}");
    let dropped = site.status()["dropped"]["denied"]["packets"].as_u64();
    assert_eq!(dropped, Some(rest));
    // Hundreds of packets, of which the first was judged.
    assert!(site.succeeds("vm1", page));
    assert_eq!(site.judged("page"), pages + 1);
    let text = site.slb("status --once");
    assert!(
        text.contains("access list") && text.contains("page"),
        "{text}"
    );
    // The page is denied from now on, but for who has it already.
    let slow = "curl -s -m 20 --limit-rate 200k -o /dev/null http://10.1.0.12:8080/1000000";
    let slow = site.world.start("vm1", slow);
    sleep(Duration::from_millis(1500));
    let closed = RULES.replacen("access = \"allow\"", "access = \"deny\"", 1);
    fs::write(site.world.path("host2.toml"), config(2, &closed)).unwrap();
    site.hosts[1].signal("HUP");
    let end = Instant::now() + Duration::from_secs(5);
    while site.succeeds("vm1", "curl -s -m 1 -o /dev/null http://10.1.0.12:8080/") {
        assert!(Instant::now() < end, "the page is still there");
        sleep(Duration::from_millis(100));
    }
    slow.finish();
}
