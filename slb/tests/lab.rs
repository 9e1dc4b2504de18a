//! A data centre on one machine: BIRD and ECMP at its edge, nginx in its vms, and between them two
//! muxes and three host agents of ours.
//!
//! ```text
//!  client 198.51.100.10           AS 65000                   AS 65001
//!  ┌────────┐        wan  ┌────────────┐ fabric 172.16.0.0/24, MTU 1600
//!  │ client ├─────────────┤   router   ├───┬────────┬─────────┬─────────┐
//!  └────────┘             │ BIRD, ECMP │   │        │         │         │
//!                         └────────────┘ mux1     mux2      host1     host3
//!                                         .11      .12      .101      .103
//!                                         BIRD     BIRD       │         │
//!                                                            vm1       vm3
//!                                                        10.10.1.11  10.10.3.11
//! ```
//! Over AF_XDP the muxes and hosts take their packets from the interface that SSH and BGP use too, and
//! vm3 is behind a tap device, the others behind veth. Over TUN the kernel routes the VIPs to the muxes,
//! and an address of their own to each host.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

#[macro_use]
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{Process, World, lacking, peer};

const VIP: &str = "20.20.20.100";
const VIP6: &str = "2001:db8:20::100";
const CLIENT: &str = "198.51.100.10";
const CLIENT6: &str = "2001:db8:c::10";
const BLOB: usize = 64 << 20;
const SLOW: usize = 768 << 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Io {
    AfXdp,
    Tun,
}

/// What of the configuration a test changes.
#[derive(Clone, Copy)]
struct Change {
    mtu: Option<u32>,
    weight_of_vm3: u32,
    another_vip: bool,
    flows: u32,
}

const NO_CHANGE: Change = Change {
    mtu: None,
    weight_of_vm3: 1,
    another_vip: false,
    flows: 65_536,
};

/// One of the examples of what stands beside a mux.
fn routing(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/routing")
        .join(name)
}

struct Lab {
    world: World,
    io: Io,
    muxes: BTreeMap<u32, Process>,
    hosts: BTreeMap<u32, Process>,
}

impl Lab {
    fn new(io: Io) -> Self {
        let kind = if io == Io::AfXdp { "x" } else { "t" };
        let machines = [
            "client", "router", "mux1", "mux2", "host1", "host2", "host3", "vm1", "vm2", "vm3",
        ];
        let world = World::new(kind, &machines);
        for machine in machines {
            world.on(
                machine,
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0",
            );
        }
        let mut lab = Self {
            world,
            io,
            muxes: BTreeMap::new(),
            hosts: BTreeMap::new(),
        };
        lab.lay_edge();
        for number in 1..=2 {
            lab.lay_mux(number);
        }
        for number in 1..=3 {
            lab.lay_host(number);
        }
        lab.start_router();
        lab
    }

    fn on(&self, machine: &str, commands: &[&str]) {
        for command in commands {
            self.world.on(machine, command);
        }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.world.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn lay_edge(&self) {
        self.world
            .plain_cable("client", "eth0", "router", "wan", 1500);
        self.on(
            "client",
            &[
                &format!("ip address add {CLIENT}/24 dev eth0"),
                &format!("ip address add {CLIENT6}/64 dev eth0"),
                "ip route add default via 198.51.100.1",
                "ip route add default via 2001:db8:c::1",
            ],
        );
        self.on(
            "router",
            &[
                "ip address add 198.51.100.1/24 dev wan",
                "ip address add 2001:db8:c::1/64 dev wan",
                "sysctl -qw net.ipv4.fib_multipath_hash_policy=1 \
                 net.ipv6.fib_multipath_hash_policy=1",
                "ip link add fabric mtu 1600 type bridge",
                "ip link set fabric up",
                "ip address add 172.16.0.1/24 dev fabric",
                "ip address add fd00:16::1/64 dev fabric",
            ],
        );
    }

    /// Connects a machine to the fabric, where it has `number` for the last part of its addresses.
    fn lay_fabric(&self, machine: &str, number: u32) {
        self.world
            .plain_cable(machine, "eth0", "router", machine, 1600);
        self.on("router", &[&format!("ip link set {machine} master fabric")]);
        self.on(
            machine,
            &[
                &format!("ip address add 172.16.0.{number}/24 dev eth0"),
                &format!("ip address add fd00:16::{number}/64 dev eth0"),
                "ip route add default via 172.16.0.1",
                "ip route add default via fd00:16::1",
            ],
        );
    }

    fn lay_mux(&mut self, number: u32) {
        let machine = format!("mux{number}");
        self.lay_fabric(&machine, 10 + number);
        // What the interface `vips` leads to is announced; or what is routed into the TUN device, while
        // somebody has it open.
        let example = fs::read_to_string(routing("bird-mux.conf")).unwrap();
        let mut text = example
            .replace("172.16.0.11", &format!("172.16.0.1{number}"))
            .replace("fd00:16::11", &format!("fd00:16::1{number}"));
        if self.io == Io::Tun {
            self.on(
                &machine,
                &[
                    "ip tuntap add dev slb0 mode tun multi_queue",
                    "ip link set slb0 mtu 1600 up",
                    &format!("ip route add {VIP}/32 dev slb0"),
                    &format!("ip -6 route add {VIP6}/128 dev slb0"),
                    // Where answers come in that go through it.
                    &format!("ip route add 172.17.0.1{number}/32 dev slb0"),
                    &format!("ip -6 route add fd00:17::1{number}/128 dev slb0"),
                ],
            );
            self.on(
                "router",
                &[
                    &format!("ip route add 172.17.0.1{number}/32 via 172.16.0.1{number}"),
                    &format!("ip route add fd00:17::1{number}/128 via fd00:16::1{number}"),
                ],
            );
            let routes = format!(
                "protocol static {{ check link; ipv4; route {VIP}/32 via \"slb0\"; }}\n\
                 protocol static {{ check link; ipv6; route {VIP6}/128 via \"slb0\"; }}"
            );
            let direct = "protocol direct { ipv4; ipv6; interface \"vips\"; }";
            assert!(text.contains(direct));
            text = text
                .replace(direct, &routes)
                .replace("RTS_DEVICE", "RTS_STATIC");
        }
        self.start_bird(&machine, &text);
    }

    fn lay_host(&mut self, number: u32) {
        let (machine, vm) = (format!("host{number}"), format!("vm{number}"));
        self.lay_fabric(&machine, 100 + number);
        let gateway = format!("10.10.{number}.1");
        let gateway6 = format!("fd00:10:{number}::1");
        match self.io {
            Io::Tun => {
                self.world.plain_cable(&vm, "eth0", &machine, "to-vm", 1500);
                let own = format!("172.17.0.10{number}");
                self.on(
                    &machine,
                    &[
                        "ip tuntap add dev slb0 mode tun",
                        "ip link set slb0 mtu 1600 up",
                        &format!("ip route add {own}/32 dev slb0"),
                        &format!("ip -6 route add fd00:17::10{number}/128 dev slb0"),
                        "ip tuntap add dev vm mode tap",
                        "ip link add vms type bridge",
                        "ip link set vm master vms up",
                        "ip link set to-vm master vms",
                        "ip link set vms up",
                    ],
                );
                self.on(
                    "router",
                    &[
                        &format!("ip route add {own}/32 via 172.16.0.10{number}"),
                        &format!("ip route add fd00:17::10{number}/128 via fd00:16::10{number}"),
                    ],
                );
            }
            Io::AfXdp => {
                // The muxes ask the vms how they are, by the way of any packet to them.
                self.on(
                    "router",
                    &[
                        &format!("ip route add 10.10.{number}.0/24 via 172.16.0.10{number}"),
                        &format!("ip route add fd00:10:{number}::/64 via fd00:16::10{number}"),
                    ],
                );
                if number == 3 {
                    let space = self.world.space(&vm);
                    self.world
                        .keep(&machine, &peer(&format!("cable vm {space} eth0")));
                    self.wait_until("the tap cable is there", || {
                        let shown = self.world.command(&vm, "ip link show eth0").output();
                        shown.is_ok_and(|shown| shown.status.success())
                    });
                    self.on(&machine, &["ip link set vm up"]);
                } else {
                    self.world.plain_cable(&vm, "eth0", &machine, "vm", 1500);
                }
                self.on(
                    &machine,
                    &[
                        &format!("ip address add {gateway}/24 dev vm"),
                        &format!("ip address add {gateway6}/64 dev vm"),
                    ],
                );
            }
        }
        self.on(
            &vm,
            &[
                &format!("ip link set eth0 address 02:00:0a:0a:0{number}:0b up"),
                &format!("ip address add 10.10.{number}.11/24 dev eth0"),
                &format!("ip address add fd00:10:{number}::11/64 dev eth0"),
                &format!("ip route add default via {gateway}"),
                &format!("ip route add default via {gateway6}"),
            ],
        );
        if self.io == Io::Tun {
            // Nobody else is there to say who the gateway is.
            for gateway in [&gateway, &gateway6] {
                let own = "lladdr 02:00:00:00:00:01 nud permanent dev eth0";
                self.on(&vm, &[&format!("ip neighbour replace {gateway} {own}")]);
            }
        }
        self.start_nginx(&vm);
    }

    fn start_nginx(&mut self, vm: &str) {
        let root = self.world.path(&format!("www-{vm}"));
        fs::create_dir_all(root.join("put")).unwrap();
        let blob = self.world.path("blob");
        if !blob.exists() {
            let mut state = 1u64;
            let noise = std::iter::repeat_with(|| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            });
            let noise: Vec<u8> = noise.take(BLOB).collect();
            fs::write(self.world.path("slow"), &noise[..SLOW]).unwrap();
            fs::write(&blob, noise).unwrap();
        }
        for file in ["blob", "slow"] {
            std::os::unix::fs::symlink(self.world.path(file), root.join(file)).unwrap();
        }
        let directory = self.world.path(vm).display().to_string();
        let text = format!(
            "daemon off; master_process off; user root; pid {directory}.pid; \
             error_log {directory}.err;\nevents {{ worker_connections 4096; }}\n\
             http {{ access_log off; client_max_body_size 0; client_body_temp_path {directory}.body;\n\
             server {{ listen 80; listen [::]:80; listen 8080; root {root};\n\
             location = / {{ return 200 \"{vm} $remote_addr\\n\"; }}\n\
             location = /slow {{ limit_rate 128k; }}\n\
             location /health {{ if (-f {root}/sick) {{ return 503; }} return 200 \"well\\n\"; }}\n\
             location /put {{ dav_methods PUT; }} }} }}\n",
            root = root.display()
        );
        let path = self.write(&format!("{vm}.conf"), &text);
        self.world
            .keep(vm, &format!("nginx -e {directory}.err -c {path}"));
    }

    fn start_bird(&mut self, machine: &str, text: &str) {
        let path = self.write(&format!("{machine}.bird"), text);
        let control = self.world.path(&format!("{machine}.ctl"));
        let bird = format!("bird -f -c {path} -s {}", control.display());
        self.world.keep(machine, &bird);
    }

    fn start_router(&mut self) {
        let text = fs::read_to_string(routing("bird-router.conf")).unwrap();
        self.start_bird("router", &text);
    }

    /// A node's configuration: the same everywhere, but for who it is.
    fn configuration(&self, role: &str, number: u32, change: Change) -> String {
        let network = if self.io == Io::Tun { 17 } else { 16 };
        let flows = change.flows;
        let mtu = match (change.mtu, self.io) {
            (Some(mtu), _) => format!("mtu = {mtu}\n"),
            (None, Io::Tun) => "mtu = 1600\n".to_owned(),
            (None, Io::AfXdp) => String::new(),
        };
        let mut text = format!(
            "[node]\nrole = \"{role}\"\nhash_seed = 7\nflows = {flows}\nwithdraw_when_down = true\nconnections = 65536\n{mtu}\
             underlay = [\"172.{network}.0.{number}\", \"fd00:{network}::{number}\"]\n\
             muxes = [\"172.{network}.0.11\", \"172.{network}.0.12\", \
             \"fd00:{network}::11\", \"fd00:{network}::12\"]\n\
             [[frontend]]\nname = \"web4\"\naddress = \"{VIP}\"\n\
             [[frontend]]\nname = \"web6\"\naddress = \"{VIP6}\"\n"
        );
        if change.another_vip {
            text += "[[frontend]]\nname = \"other\"\naddress = \"20.20.20.101\"\n";
        }
        // Over TUN there is no way from a mux to a vm but VXLAN.
        let probe = match self.io {
            Io::AfXdp => "probe = \"health\"\n",
            Io::Tun => "",
        };
        if self.io == Io::AfXdp {
            text += "[[probe]]\nname = \"health\"\nprotocol = \"http\"\nport = 80\n\
                     path = \"/health\"\ninterval = \"5s\"\ntimeout = \"1s\"\nthreshold = 2\n";
        }
        for family in ["4", "6"] {
            text += &format!("[[pool]]\nname = \"vms{family}\"\nvni = 5001\nbackends = [\n");
            for vm in 1..=3 {
                let (address, host) = match family {
                    "4" => (format!("10.10.{vm}.11"), format!("172.{network}.0.10{vm}")),
                    _ => (
                        format!("fd00:10:{vm}::11"),
                        format!("fd00:{network}::10{vm}"),
                    ),
                };
                let weight = if vm == 3 { change.weight_of_vm3 } else { 1 };
                text += &format!(
                    "{{ name = \"vm{vm}\", address = \"{address}\", host = \"{host}\", \
                     mac = \"02:00:0a:0a:0{vm}:0b\", weight = {weight} }},\n"
                );
            }
            text += &format!(
                "]\n[[rule]]\nname = \"http{family}\"\nfrontend = \"web{family}\"\n\
                 pool = \"vms{family}\"\nprotocol = \"tcp\"\nfrontend_port = 80\n{probe}\
                 [[rule]]\nname = \"through{family}\"\nfrontend = \"web{family}\"\n\
                 pool = \"vms{family}\"\nprotocol = \"tcp\"\nfrontend_port = 81\n\
                 backend_port = 80\nanswers = \"mux\"\n{probe}"
            );
        }
        text + "[[inbound_nat_rule]]\nname = \"vm2\"\nfrontend = \"web4\"\npool = \"vms4\"\n\
             protocol = \"tcp\"\nfrontend_port = 2222\nbackend = \"vm2\"\nbackend_port = 8080\n\
             [[inbound_nat_rule]]\nname = \"vm2-6\"\nfrontend = \"web6\"\npool = \"vms6\"\n\
             protocol = \"tcp\"\nfrontend_port = 2222\nbackend = \"vm2\"\nbackend_port = 80\n\
             [[outbound_rule]]\nname = \"out\"\npool = \"vms4\"\nfrontends = [\"web4\"]\n"
    }

    fn configure(&self, role: &str, number: u32, change: Change) -> String {
        let own = if role == "mux" {
            10 + number
        } else {
            100 + number
        };
        let name = format!("{role}{number}.toml");
        // Whole or not at all: the program looks at it by itself too.
        let text = self.configuration(role, own, change);
        let new = self.write(&format!("{name}.new"), &text);
        let path = self.world.path(&name);
        fs::rename(new, &path).unwrap();
        path.display().to_string()
    }

    fn socket(&self, machine: &str) -> String {
        self.world
            .path(&format!("{machine}.sock"))
            .display()
            .to_string()
    }

    fn start(&self, role: &str, number: u32, change: Change) -> Process {
        let config = self.configure(role, number, change);
        let machine = format!("{role}{number}");
        let io = match (role, self.io) {
            ("mux", Io::AfXdp) => "--io afxdp:eth0 --announce vips".to_owned(),
            ("mux", Io::Tun) => "--io tun:slb0:2".to_owned(),
            (_, Io::AfXdp) => format!("--io 0=afxdp:eth0 --io vm{number}=afxdp:vm"),
            (_, Io::Tun) => format!("--io 0=tun:slb0 --io vm{number}=tap:vm"),
        };
        let slb = env!("CARGO_BIN_EXE_slb");
        let status = self.socket(&machine);
        let cpu = number % 2;
        self.world.start(
            &machine,
            &format!("{slb} {role} --config {config} {io} --status {status} --cpus {cpu} --log-level warn"),
        )
    }

    fn start_all(&mut self) {
        for number in 1..=3 {
            let host = self.start("host", number, NO_CHANGE);
            self.hosts.insert(number, host);
        }
        for number in 1..=2 {
            let mux = self.start("mux", number, NO_CHANGE);
            self.muxes.insert(number, mux);
        }
        self.wait_for_paths(2);
        self.wait_until("the services answer", || {
            [VIP, "[2001:db8:20::100]"].into_iter().all(|vip| {
                let curl = format!("curl -sS -m 1 http://{vip}/");
                let pages = (0..6).map(|_| self.world.command("client", &curl).output());
                pages.flatten().all(|page| page.status.success())
            })
        });
    }

    /// Waits until the router has so many paths to each VIP.
    fn wait_for_paths(&self, count: usize) {
        self.wait_until("the router has its routes", || {
            [VIP, VIP6].into_iter().all(|vip| {
                let family = if vip == VIP { "-4" } else { "-6" };
                let shown = self
                    .world
                    .on("router", &format!("ip {family} route show {vip}"));
                shown.matches("via").count() == count
            })
        });
    }

    #[track_caller]
    fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(40);
        while !is_so() {
            assert!(Instant::now() < end, "waited in vain: {what}");
            sleep(Duration::from_millis(50));
        }
    }

    fn status(&self, machine: &str) -> serde_json::Value {
        let slb = env!("CARGO_BIN_EXE_slb");
        let socket = self.socket(machine);
        let said = self.world.on(
            machine,
            &format!("{slb} status --socket {socket} --format json"),
        );
        serde_json::from_str(&said).unwrap()
    }

    /// Waits until no mux puts another configuration in place: a flow that begins before the last one
    /// and loses its mux after it is another matter than either alone.
    fn wait_for_configurations(&self) {
        let generations = || -> Vec<u64> {
            let muxes = self.muxes.keys();
            let status = muxes.map(|number| self.status(&format!("mux{number}")));
            status.map(|s| s["generation"].as_u64().unwrap()).collect()
        };
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let before = generations();
            sleep(Duration::from_secs(2));
            if generations() == before {
                return;
            }
            assert!(Instant::now() < end, "the configurations do not settle");
        }
    }

    /// Has all nodes read another configuration.
    fn reconfigure(&self, change: Change) {
        // Hosts first: they pass on what muxes send by the new configuration.
        for (role, nodes) in [("host", &self.hosts), ("mux", &self.muxes)] {
            for (&number, node) in nodes {
                self.configure(role, number, change);
                node.signal("HUP");
            }
        }
    }
}

/// What a service is for: who answers, whom they see, and whole files.
fn serves(lab: &Lab) {
    for (vip, client) in [(VIP, CLIENT), ("[2001:db8:20::100]", CLIENT6)] {
        let mut served = BTreeMap::<String, u32>::new();
        let pages = lab.world.on(
            "client",
            &format!("sh -c 'for i in $(seq 90); do curl -sS -m 5 http://{vip}/; done'"),
        );
        for page in pages.lines() {
            let (vm, seen) = page.split_once(' ').unwrap();
            assert_eq!(seen, client, "the vm sees who asks");
            *served.entry(vm.to_owned()).or_default() += 1;
        }
        let total: u32 = served.values().sum();
        assert_eq!(total, 90);
        // Of 90 each has 30; five standard deviations are 22.
        assert!(
            served.len() == 3 && served.values().all(|&count| count >= 8),
            "{served:?}"
        );
        let blob = lab.world.path("blob").display().to_string();
        for _ in 0..3 {
            lab.world.on(
                "client",
                &format!("sh -c 'curl -sS -m 60 http://{vip}/blob | cmp - {blob}'"),
            );
        }
    }
    lab.world
        .on("client", &format!("ping -q -c 5 -i 0.05 -W 2 {VIP}"));
    lab.world
        .on("client", &format!("ping -q -c 5 -i 0.05 -W 2 {VIP6}"));
}

/// Answers in VXLAN to the mux, which sends them on.
fn answers_go_through_the_mux(lab: &Lab) {
    let passed = |lab: &Lab| {
        let muxes = lab
            .muxes
            .keys()
            .map(|number| lab.status(&format!("mux{number}")));
        let packets = muxes.map(|status| status["received"]["bytes"].as_u64().unwrap());
        packets.sum::<u64>()
    };
    let slow = lab.world.path("slow").display().to_string();
    for vip in [VIP, "[2001:db8:20::100]"] {
        let before = passed(lab);
        let curl = format!("curl -sS -m 30 http://{vip}:81/slow --limit-rate 2M");
        lab.world
            .on("client", &format!("sh -c '{curl} | cmp - {slow}'"));
        // The whole file came by a mux.
        let through = passed(lab) - before;
        assert!(through > SLOW as u64, "{vip}: {through} bytes");
    }
}

/// Packets of 1500 bytes with DF, over a fabric that carries them in VXLAN, and over one that does not.
fn long_packets_arrive(lab: &Lab) {
    let blob = lab.world.path("slow").display().to_string();
    let put = |vip: &str, name: &str| {
        let curl = format!("curl -sS -m 30 -T {blob} http://{vip}/put/{name} -w %{{http_code}}");
        let said = lab.world.on("client", &curl);
        assert!(said.ends_with("201") || said.ends_with("204"), "{said}");
        let stored = (1..=3).map(|vm| lab.world.path(&format!("www-vm{vm}/put/{name}")));
        let whole = stored.filter(|path| fs::read(path).is_ok_and(|bytes| bytes.len() == SLOW));
        assert_eq!(whole.count(), 1);
    };
    let path_mtu = |vip: &str| lab.world.on("client", &format!("ip route get {vip}"));
    put(VIP, "whole");
    put("[2001:db8:20::100]", "whole6");
    assert!(!path_mtu(VIP).contains("mtu 1450"));
    lab.reconfigure(Change {
        mtu: Some(1500),
        ..NO_CHANGE
    });
    sleep(Duration::from_millis(300));
    put(VIP, "narrow");
    put("[2001:db8:20::100]", "narrow6");
    // The client was told by the muxes what fits.
    assert!(path_mtu(VIP).contains("mtu 1450"), "{}", path_mtu(VIP));
    assert!(path_mtu(VIP6).contains("mtu 1430"), "{}", path_mtu(VIP6));
    lab.reconfigure(NO_CHANGE);
}

/// A vm calls out under the VIP, and one vm is reached by a port of its own.
fn nat_works(lab: &mut Lab) {
    lab.world.serve("client");
    for vm in ["vm1", "vm2", "vm3"] {
        let page = lab
            .world
            .on(vm, &format!("curl -sS -m 5 http://{CLIENT}:8080/"));
        assert_eq!(page, format!("client {VIP}\n"));
    }
    for _ in 0..6 {
        let page = lab
            .world
            .on("client", &format!("curl -sS -m 5 http://{VIP}:2222/"));
        assert_eq!(page, format!("vm2 {CLIENT}\n"));
    }
}

/// A vm that no outbound rule lets out calls a VIP of the same network, under its own name.
fn an_internal_vip_is_there(lab: &Lab) {
    for number in [1, 3] {
        let curl = format!("curl -sS -m 5 http://[{VIP6}]:2222/");
        let page = lab.world.on(&format!("vm{number}"), &curl);
        assert_eq!(page, format!("vm2 fd00:10:{number}::11\n"));
    }
}

/// Configurations change ten times a second, for as long as is said; nobody notices.
fn reloads_disturb_nobody(lab: &Lab, how_long: Duration) {
    let seconds = how_long.as_secs();
    let ask = |vip: &str| {
        let script = format!(
            "end=$(($(date +%s) + {seconds})); while [ $(date +%s) -lt $end ]; do \
             curl -sS -m 5 http://{vip}/ || echo FAILED; done"
        );
        lab.world.start("client", &format!("sh -c '{script}' 2>&1"))
    };
    let asking = [ask(VIP), ask("[2001:db8:20::100]")];
    // Downloads that last as long.
    let size = 128 * 1024 * (seconds + 4);
    let long = format!(
        "curl -sS -m {} --limit-rate 128k -r 0-{} http://{VIP}/blob -o /dev/null -w '%{{size_download}}\\n'",
        seconds + 30,
        size - 1
    );
    let downloads: Vec<Process> = (0..6).map(|_| lab.world.start("client", &long)).collect();
    let end = Instant::now() + how_long;
    let mut turn = 0;
    while Instant::now() < end {
        turn += 1;
        lab.reconfigure(Change {
            weight_of_vm3: 1 + turn % 3,
            another_vip: turn % 2 == 0,
            ..NO_CHANGE
        });
        sleep(Duration::from_millis(100));
    }
    let mut pages = 0;
    for ask in asking {
        let said = ask.finish();
        assert!(said.lines().all(|line| line.starts_with("vm")), "{said}");
        pages += said.lines().count();
    }
    assert!(pages as u64 > 5 * seconds, "{pages} pages");
    for download in downloads {
        assert_eq!(download.finish().trim(), size.to_string());
    }
    lab.reconfigure(NO_CHANGE);
    lab.wait_for_configurations();
    let generation = lab.status("mux1")["generation"].as_u64().unwrap();
    assert!(generation > seconds * 3, "{generation} configurations");
}

/// Who says that he is not well gets no new flows, and keeps those that he has; and where nobody is,
/// the routes go.
fn the_sick_get_no_new_flows(lab: &Lab) {
    let is_sick = |vm: u32, is_sick: bool| {
        let file = lab.world.path(&format!("www-vm{vm}/sick"));
        match is_sick {
            true => fs::write(file, "").unwrap(),
            false => fs::remove_file(file).unwrap(),
        }
    };
    let states = |vm: u32| {
        let muxes = lab
            .muxes
            .keys()
            .map(|number| lab.status(&format!("mux{number}")));
        let name = format!("vm{vm}");
        let backends = muxes.flat_map(|status| status["backends"].as_array().unwrap().clone());
        let own = backends.filter(move |backend| backend["backend"] == name.as_str());
        let states = own.map(|backend| backend["state"].as_str().unwrap().to_owned());
        states.collect::<std::collections::BTreeSet<_>>()
    };
    let all_are = |vm: u32, state: &str| states(vm) == [state.to_owned()].into();
    // Requests go on all the time, one after the other, and downloads, some of them from vm2.
    let asking = lab.world.start(
        "client",
        &format!(
            "sh -c 'while ! [ -e {} ]; do curl -sS -m 5 http://{VIP}/ || echo FAILED; done' 2>&1",
            lab.world.path("done").display()
        ),
    );
    let curl = format!(
        "curl -sS -m 90 --limit-rate 40k http://{VIP}/slow -o /dev/null -w '%{{size_download}}'"
    );
    let downloads: Vec<Process> = (0..12).map(|_| lab.world.start("client", &curl)).collect();
    sleep(Duration::from_millis(300));

    is_sick(2, true);
    lab.wait_until("vm2 is out", || all_are(2, "unhealthy"));
    assert!(all_are(1, "healthy") && all_are(3, "healthy"));
    for _ in 0..30 {
        let page = lab
            .world
            .on("client", &format!("curl -sS -m 5 http://{VIP}/"));
        assert!(!page.starts_with("vm2"), "{page}");
    }
    for download in downloads {
        assert_eq!(download.finish(), SLOW.to_string());
    }
    is_sick(2, false);
    lab.wait_until("vm2 is back", || all_are(2, "healthy"));
    fs::write(lab.world.path("done"), "").unwrap();
    let said = asking.finish();
    assert!(said.lines().all(|line| line.starts_with("vm")), "{said}");
    assert!(said.lines().count() > 100);

    // Cut off, it cannot even say that it is not well.
    let cut = Instant::now();
    lab.world.on("vm2", "nft add table inet cut");
    for way in ["input", "output"] {
        let chain = format!("{{ type filter hook {way} priority 0; policy drop; }}");
        lab.world
            .on("vm2", &format!("nft 'add chain inet cut {way} {chain}'"));
    }
    lab.wait_until("vm2 is out", || all_are(2, "unhealthy"));
    // Two failures in a row, five seconds apart.
    assert!(cut.elapsed() >= Duration::from_secs(5));
    for _ in 0..30 {
        let page = format!("curl -sS -m 5 http://{VIP}/");
        let page = lab.world.on("client", &page);
        assert!(!page.starts_with("vm2"), "{page}");
    }
    lab.world.on("vm2", "nft delete table inet cut");
    lab.wait_until("vm2 is back", || all_are(2, "healthy"));

    for vm in 1..=3 {
        is_sick(vm, true);
    }
    lab.wait_for_paths(0);
    for vm in 1..=3 {
        is_sick(vm, false);
    }
    lab.wait_for_paths(2);
    lab.world
        .on("client", &format!("curl -sS -m 5 http://{VIP}/"));
    let slb = env!("CARGO_BIN_EXE_slb");
    let config = lab.world.path("mux1.toml").display().to_string();
    let said = lab.world.on("mux1", &format!("{slb} probe {config}"));
    assert_eq!(said.matches("  well\n").count(), 6, "{said}");
}

/// Every frame's memory is where it can be, and nothing was lost on the way.
fn nothing_is_lost(lab: &Lab, machine: &str) {
    let status = lab.status(machine);
    let io = &status["io"];
    let of = |name: &str| io[name].as_u64().unwrap();
    let places = ["free", "receiving", "sending", "lent"].map(|name| of(&format!("frames_{name}")));
    assert_eq!(places.iter().sum::<u64>(), of("frames"), "{io}");
    assert_eq!(of("frames_lent"), 0, "{io}");
    for none in ["foreign", "undeliverable", "not_passed"] {
        assert_eq!(of(none), 0, "{machine}: {none}: {io}");
    }
    let packets = |name: &str| status[name]["packets"].as_u64().unwrap();
    let out = ["forwarded", "replied", "passed", "dropped_total"].map(packets);
    assert_eq!(out.iter().sum::<u64>(), packets("received"), "{status}");
}

/// During 200 slow downloads, vm3 begins to drain, and a mux dies in the same second.
///
/// The other mux never saw its downloads and knows vm3 as draining, so it sends some of them to other
/// vms, and others by pins of earlier connections of the same client ports. The hosts pass these on.
fn a_mux_dies_unnoticed(lab: &mut Lab) {
    let passed_on = |lab: &Lab| -> u64 {
        let hosts = ["host1", "host2", "host3"].map(|host| lab.status(host));
        hosts
            .iter()
            .map(|status| status["passed_on"].as_u64().unwrap())
            .sum()
    };
    let before = passed_on(lab);
    let downloads = lab.world.start(
        "client",
        &format!(
            "curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max 200 -m 90 \
             -o /dev/null \
             -w '%{{http_code}} %{{size_download}}\\n' 'http://{VIP}/slow?n=[1-200]'"
        ),
    );
    sleep(Duration::from_millis(2500));
    lab.reconfigure(Change {
        weight_of_vm3: 0,
        ..NO_CHANGE
    });
    let mux = lab.muxes.remove(&1).unwrap();
    mux.signal("KILL");
    drop(mux);
    lab.wait_for_paths(1);
    if lab.io == Io::AfXdp {
        // Its program went with it.
        let shown = lab.world.on("mux1", "ip link show dev eth0");
        assert!(!shown.contains("xdp"), "{shown}");
    }
    let said = downloads.finish();
    let whole = format!("200 {SLOW}");
    let complete = said.lines().filter(|line| **line == whole).count();
    assert_eq!(complete, 200, "{said}");
    assert!(
        passed_on(lab) > before,
        "packets of vm3's downloads came by other hosts"
    );
    lab.reconfigure(NO_CHANGE);
    lab.wait_for_configurations();
}

/// The kernel's VXLAN in the place of a mux of ours, and of a host.
fn linux_understands_it(lab: &mut Lab) {
    let mux = lab.muxes.remove(&2).unwrap();
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
    // mux2: three next hops behind a VXLAN device.
    lab.on(
        "mux2",
        &[
            "sysctl -qw net.ipv4.fib_multipath_hash_policy=1",
            "ip link add vx0 mtu 1500 type vxlan id 5001 dstport 4789 local 172.16.0.12 nolearning",
            "ip address add 169.254.1.254/24 dev vx0",
            "ip link set vx0 up",
        ],
    );
    let mut hops = String::new();
    for vm in 1..=3 {
        let mac = format!("02:00:0a:0a:0{vm}:0b");
        let bridge = format!("bridge fdb append {mac} dev vx0 dst 172.16.0.10{vm}");
        let neighbour = format!("ip neighbour replace 169.254.1.{vm} lladdr {mac} dev vx0");
        lab.on("mux2", &[&bridge, &neighbour]);
        hops += &format!(" nexthop via 169.254.1.{vm} dev vx0");
    }
    lab.on("mux2", &[&format!("ip route replace {VIP}/32{hops}")]);
    lab.on(
        "router",
        &[&format!("ip route replace {VIP}/32 via 172.16.0.12")],
    );
    let answers = |lab: &Lab| {
        let pages = lab.world.on(
            "client",
            &format!("sh -c 'for i in $(seq 60); do curl -sS -m 5 http://{VIP}/; done'"),
        );
        let vms = pages
            .lines()
            .map(|page| page.split(' ').next().unwrap().to_owned());
        assert!(pages.lines().all(|page| page.ends_with(CLIENT)), "{pages}");
        vms.collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(answers(lab), 3, "kernel mux, hosts of ours");
    lab.on("mux2", &["ip link del vx0"]);

    // host3: a VXLAN device and nftables' NAT; a mux of ours before it.
    drop(lab.hosts.remove(&3));
    lab.on(
        "host3",
        &[
            "ip link add vx0 mtu 1500 type vxlan id 5001 dstport 4789 local 172.16.0.103 nolearning",
            "ip link set vx0 address 02:00:0a:0a:03:0b up",
            "nft add table ip slb",
            "nft add chain ip slb in { type nat hook prerouting priority dstnat\\; }",
            &format!("nft add rule ip slb in iifname vx0 ip daddr {VIP} dnat to 10.10.3.11"),
        ],
    );
    // It pins nothing this time.
    let stateless = Change {
        flows: 0,
        ..NO_CHANGE
    };
    let mux = lab.start("mux", 2, stateless);
    lab.muxes.insert(2, mux);
    lab.on(
        "router",
        &[&format!("ip route del {VIP}/32 via 172.16.0.12")],
    );
    lab.wait_for_paths(1);
    assert_eq!(answers(lab), 3, "mux of ours, one kernel host");
}

const TOOLS: [&str; 6] = ["bird", "nginx", "ethtool", "cmp", "nft", "bridge"];

#[test]
#[ignore = "needs root"]
fn over_afxdp() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    let mut lab = Lab::new(Io::AfXdp);
    lab.start_all();
    serves(&lab);
    nat_works(&mut lab);
    an_internal_vip_is_there(&lab);
    answers_go_through_the_mux(&lab);
    long_packets_arrive(&lab);
    let shown = lab.world.on(
        "mux1",
        &format!(
            "{} status --once --socket {}",
            env!("CARGO_BIN_EXE_slb"),
            lab.socket("mux1")
        ),
    );
    assert!(
        shown.contains("forwarded") && shown.contains("vms4"),
        "{shown}"
    );
    the_sick_get_no_new_flows(&lab);
    reloads_disturb_nobody(&lab, Duration::from_secs(60));
    for machine in ["mux1", "mux2", "host1", "host2", "host3"] {
        nothing_is_lost(&lab, machine);
    }
    a_mux_dies_unnoticed(&mut lab);
    linux_understands_it(&mut lab);
    for (_, node) in std::mem::take(&mut lab.hosts) {
        node.signal("INT");
        assert!(node.finish().contains("connections:"));
    }
}

#[test]
#[ignore = "needs root"]
fn over_tun() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    let mut lab = Lab::new(Io::Tun);
    lab.start_all();
    serves(&lab);
    nat_works(&mut lab);
    answers_go_through_the_mux(&lab);
    long_packets_arrive(&lab);
    reloads_disturb_nobody(&lab, Duration::from_secs(60));
    a_mux_dies_unnoticed(&mut lab);
}
