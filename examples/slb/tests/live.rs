//! The proxy between real machines, which are network namespaces: two clients at a frontend port
//! each, and behind the backend port a router with three servers.
//!
//! ```text
//!  c0 ── bridge ── tap f0 ┐                      ┌ s1
//!                         ├ slb ─ tap back ─ router ┼ s2
//!  c1 ── bridge ── tap f1 ┘                      └ s3
//! ```
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

#[macro_use]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::{has, is_root, sh};

/// Namespaces, and the processes in them: gone with it.
struct World {
    tag: String,
    children: Vec<Child>,
    directory: tempfile::TempDir,
}

const MACHINES: [&str; 7] = ["c0", "c1", "lb", "r", "s1", "s2", "s3"];

impl World {
    fn new() -> Self {
        let world = Self {
            tag: format!("slbl{}", std::process::id() % 100_000),
            children: Vec::new(),
            directory: tempfile::tempdir().unwrap(),
        };
        for machine in MACHINES {
            assert!(sh(&format!("ip netns add {}-{machine}", world.tag)));
            world.on(machine, "ip link set lo up");
        }
        let bridge = |port: &str| {
            world.on("lb", &format!("ip tuntap add dev {port} mode tap"));
            world.on("lb", &format!("ip link add br{port} type bridge"));
            world.on("lb", &format!("ip link set {port} master br{port} up"));
            world.on("lb", &format!("ip link set br{port} up"));
        };
        for port in ["f0", "f1", "back"] {
            bridge(port);
        }
        for (machine, port, address) in [
            ("c0", "f0", "10.0.0.10/24"),
            ("c1", "f1", "10.0.0.11/24"),
            ("r", "back", "10.0.0.1/24"),
        ] {
            world.cable(machine, "eth0", "lb", &format!("to-{machine}"));
            world.on("lb", &format!("ip link set to-{machine} master br{port}"));
            world.on(machine, &format!("ip address add {address} dev eth0"));
        }
        for client in ["c0", "c1"] {
            world.on(client, "ip route add default via 10.0.0.1");
        }
        world.on("r", "ip link add servers type bridge");
        world.on("r", "ip address add 10.1.0.1/24 dev servers");
        world.on("r", "ip link set servers up");
        world.on("r", "sysctl -qw net.ipv4.ip_forward=1");
        for number in 1..=3 {
            let server = format!("s{number}");
            world.cable(&server, "eth0", "r", &server);
            world.on("r", &format!("ip link set {server} master servers"));
            world.on(
                &server,
                &format!("ip address add 10.1.0.1{number}/24 dev eth0"),
            );
            world.on(&server, "ip route add default via 10.1.0.1");
        }
        world
    }

    /// A cable between two machines.
    fn cable(&self, a: &str, a_end: &str, b: &str, b_end: &str) {
        let tag = &self.tag;
        assert!(sh(&format!(
            "ip link add {a_end} netns {tag}-{a} type veth peer name {b_end} netns {tag}-{b}"
        )));
        self.on(a, &format!("ip link set {a_end} up"));
        self.on(b, &format!("ip link set {b_end} up"));
    }

    fn command(&self, machine: &str, command: &str) -> Command {
        let mut all = Command::new("ip");
        all.args(["netns", "exec", &format!("{}-{machine}", self.tag)]);
        all.args(["sh", "-c", &format!("exec {command}")]);
        all
    }

    /// Runs a command to its end; gives what it printed.
    #[track_caller]
    fn on(&self, machine: &str, command: &str) -> String {
        let output = self.command(machine, command).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{machine}: {command}: {said}{errors}"
        );
        said
    }

    fn start(&self, machine: &str, command: &str) -> Child {
        self.command(machine, command)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn configure(&self, backends: &[(&str, u32)]) {
        let mut list = String::new();
        for (name, weight) in backends {
            let number = &name[1..];
            list += &format!(
                "  {{ name = \"{name}\", address = \"10.1.0.1{number}\", weight = {weight} }},\n"
            );
        }
        let rule = |name: &str, rest: &str| {
            format!("[[rule]]\nname = \"{name}\"\nfrontend = \"web\"\npool = \"servers\"\n{rest}")
        };
        let port = |name: &str, rest: &str| format!("[[port]]\nname = \"{name}\"\n{rest}");
        let frontend =
            |address| format!("type = \"frontend\"\nmode = \"multi\"\naddress = \"{address}\"\n");
        let text = [
            "[node]\nrole = \"proxy\"\n".to_owned(),
            port("f0", &frontend("10.0.0.10")),
            port("f1", &frontend("10.0.0.11")),
            port("back", "type = \"backend\"\n"),
            "[[frontend]]\nname = \"web\"\naddress = \"10.99.0.1\"\n".to_owned(),
            format!("[[pool]]\nname = \"servers\"\nbackends = [\n{list}]\n"),
            rule(
                "http",
                "protocol = \"tcp\"\nfrontend_port = 80\nbackend_port = 8080\n",
            ),
            rule(
                "echo",
                "protocol = \"udp\"\nfrontend_port = 7\nbackend_port = 8080\n",
            ),
            rule("ping", "protocol = \"icmp\"\n"),
        ];
        fs::write(self.path("proxy.toml"), text.concat()).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for machine in MACHINES {
            sh(&format!("ip netns del {}-{machine}", self.tag));
        }
    }
}

fn peer(arguments: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer.py");
    format!("python3 {} {arguments}", script.display())
}

#[test]
fn the_proxy_serves_machines_behind_several_frontend_ports() {
    if !is_root() {
        skip!("network namespaces need root");
    }
    for tool in ["ip", "sysctl", "curl", "python3", "ping"] {
        if !sh(&format!("command -v {tool}")) {
            skip!("{tool} is not installed");
        }
    }
    assert!(has("ip") || sh("ip -V"));
    let mut world = World::new();
    for number in 1..=3 {
        let server = world.start(&format!("s{number}"), &peer(&format!("serve s{number}")));
        world.children.push(server);
    }
    world.configure(&[("s1", 1), ("s2", 1), ("s3", 1)]);
    let slb = format!(
        "{} proxy --config {} --io f0=tap:f0 --io f1=tap:f1 --io back=tap:back",
        env!("CARGO_BIN_EXE_slb"),
        world.path("proxy.toml").display()
    );
    let mut proxy = world.start("lb", &slb);
    let signal =
        |child: &Child, signal: &str| assert!(sh(&format!("kill -{signal} {}", child.id())));
    // Until neighbours know each other.
    let ready = (0..50).any(|_| {
        sleep(Duration::from_millis(100));
        let ping = world
            .command("c0", "ping -c 1 -W 1 10.99.0.1")
            .output()
            .unwrap();
        ping.status.success()
    });
    assert!(ready, "{:?}", proxy.try_wait());

    for (client, own) in [("c0", "10.0.0.10"), ("c1", "10.0.0.11")] {
        // Pings of the VIP are answered by backends, all of them.
        world.on(client, "ping -q -c 5 -i 0.05 -W 2 10.99.0.1");
        // Web pages: every server has its share, and sees who asks.
        let mut served = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let page = world.on(client, "curl -sS --max-time 5 http://10.99.0.1/");
            let (server, seen) = page.trim().split_once(' ').unwrap();
            assert_eq!(seen, own);
            served.insert(server.to_owned());
        }
        assert_eq!(served.len(), 3, "{client}: {served:?}");
        let answer = world.on(client, &peer("ask 10.99.0.1 7"));
        assert!(answer.trim().ends_with(own), "{answer}");
        // What is no service is reached through it as it is.
        assert_eq!(
            world.on(client, "curl -sS --max-time 5 http://10.1.0.12:8080/"),
            format!("s2 {own}\n")
        );
        world.on(client, "ping -q -c 2 -i 0.05 -W 2 10.1.0.13");
        world.on(client, "ping -q -c 2 -i 0.05 -W 2 10.0.0.1");
    }

    // Sessions stay where they are, whatever becomes of the configuration.
    let sessions: Vec<Child> = (0..6)
        .map(|n| world.start(["c0", "c1"][n % 2], &peer("stay 10.99.0.1 80 3")))
        .collect();
    sleep(Duration::from_millis(500));
    for backends in [
        &[("s1", 50), ("s2", 1), ("s3", 0)][..],
        &[("s2", 9)],
        &[("s1", 1), ("s2", 0), ("s3", 7)],
    ] {
        world.configure(backends);
        signal(&proxy, "HUP");
        sleep(Duration::from_millis(400));
    }
    // A bad one changes nothing.
    fs::write(world.path("proxy.toml"), "[node]\nrole = \"hub\"\n").unwrap();
    signal(&proxy, "HUP");
    let mut homes = std::collections::BTreeSet::new();
    for session in sessions {
        let output = session.wait_with_output().unwrap();
        assert!(output.status.success());
        let names = String::from_utf8(output.stdout).unwrap();
        assert_eq!(names.split_whitespace().count(), 1, "{names}");
        homes.insert(names);
    }
    for _ in 0..20 {
        let page = world.on("c0", "curl -sS --max-time 5 http://10.99.0.1/");
        assert!(!page.starts_with("s2"), "s2 is drained");
    }

    signal(&proxy, "TERM");
    let output = proxy.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("connections:") && text.contains("servers"),
        "{text}"
    );
}
