//! A data centre on one machine: BIRD and ECMP at its edge, nginx in its vms, and between them muxes and
//! host agents, of which there may be more than the drawing has.
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

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::fabric;
use super::world::{Process, World, peer};

pub const VIP: &str = "20.20.20.100";
pub const VIP6: &str = "2001:db8:20::100";
const BLOB: usize = 64 << 20;
pub const SLOW: usize = 768 << 10;
pub const ECHO_PORT: u16 = 7;
pub const QUIC_PORT: u16 = 443;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Io {
    AfXdp,
    Tun,
}

/// The parts of the configuration that a test changes.
#[derive(Clone, Copy)]
pub struct Change {
    pub mtu: Option<u32>,
    /// The vms that are backends, each with its weight.
    pub backends: &'static [(u32, u32)],
    pub another_vip: bool,
    pub flows: u32,
    /// True if there are rules for datagrams: an echo service and QUIC.
    pub datagrams: bool,
}

pub const NO_CHANGE: Change = Change {
    mtu: None,
    backends: &[(1, 1), (2, 1), (3, 1)],
    another_vip: false,
    flows: 65_536,
    datagrams: false,
};

/// The tools that a lab needs.
pub const TOOLS: [&str; 6] = ["bird", "nginx", "ethtool", "cmp", "nft", "bridge"];

/// Returns the path of an example configuration of a daemon beside a mux.
fn routing(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/routing")
        .join(name)
}

pub struct Lab {
    pub world: World,
    pub io: Io,
    /// The number of machines for muxes, and for hosts.
    size: (u32, u32),
    pub muxes: BTreeMap<u32, Process>,
    pub hosts: BTreeMap<u32, Process>,
    /// The number of workers of each node, where it is said, with the directory of its state.
    pub workers: Option<u32>,
}

impl Lab {
    /// Makes a lab with `size` muxes and hosts, each host with a vm.
    pub fn new(io: Io, size: (u32, u32)) -> Self {
        let kind = if io == Io::AfXdp { "x" } else { "t" };
        let (muxes, hosts) = size;
        let of =
            |role: &'static str, count| (1..=count).map(move |number| format!("{role}{number}"));
        let edge = ["client", "router"].map(str::to_owned).into_iter();
        let all = edge.chain(of("mux", muxes));
        let machines: Vec<String> = all
            .chain(of("host", hosts))
            .chain(of("vm", hosts))
            .collect();
        let names: Vec<&str> = machines.iter().map(String::as_str).collect();
        let world = World::new(kind, &names);
        for machine in &machines {
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
            size,
            muxes: BTreeMap::new(),
            hosts: BTreeMap::new(),
            workers: None,
        };
        lab.lay_edge();
        for number in 1..=muxes {
            lab.lay_mux(number);
        }
        for number in 1..=hosts {
            lab.lay_host(number);
        }
        lab.start_router();
        lab
    }

    pub fn on(&self, machine: &str, commands: &[&str]) {
        fabric::run(&self.world, machine, commands);
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.world.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn lay_edge(&self) {
        fabric::lay_edge(&self.world);
        self.on(
            "router",
            &["sysctl -qw net.ipv4.fib_multipath_hash_policy=1 \
               net.ipv6.fib_multipath_hash_policy=1"],
        );
    }

    fn lay_mux(&mut self, number: u32) {
        let machine = format!("mux{number}");
        fabric::lay_node(&self.world, &machine, 10 + number);
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
                    "ip link set slb0 mtu 1600 txqueuelen 5000 up",
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
        fabric::lay_node(&self.world, &machine, 100 + number);
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
                        "ip link set slb0 mtu 1600 txqueuelen 5000 up",
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
        let mut text = fs::read_to_string(routing("bird-router.conf")).unwrap();
        for number in 3..=self.size.0 {
            text += &format!(
                "protocol bgp mux{number} from mux {{ neighbor 172.16.0.1{number} as 65001; }}\n"
            );
        }
        self.start_bird("router", &text);
    }

    /// A node's configuration: the same everywhere, but for who it is.
    pub fn configuration(&self, role: &str, number: u32, change: Change) -> String {
        let network = if self.io == Io::Tun { 17 } else { 16 };
        let flows = change.flows;
        let muxes: Vec<String> = (1..=self.size.0)
            .flat_map(|mux| {
                [
                    format!("172.{network}.0.1{mux}"),
                    format!("fd00:{network}::1{mux}"),
                ]
            })
            .collect();
        let mtu = match (change.mtu, self.io) {
            (Some(mtu), _) => format!("mtu = {mtu}\n"),
            (None, Io::Tun) => "mtu = 1600\n".to_owned(),
            (None, Io::AfXdp) => String::new(),
        };
        let mut text = format!(
            "[node]\nrole = \"{role}\"\nhash_seed = 7\nflows = {flows}\nwithdraw_when_down = true\nconnections = 65536\n{mtu}\
             underlay = [\"172.{network}.0.{number}\", \"fd00:{network}::{number}\"]\n\
             muxes = {muxes:?}\n\
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
            for (vm, weight) in change.backends {
                let (address, host) = match family {
                    "4" => (format!("10.10.{vm}.11"), format!("172.{network}.0.10{vm}")),
                    _ => (
                        format!("fd00:10:{vm}::11"),
                        format!("fd00:{network}::10{vm}"),
                    ),
                };
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
            if change.datagrams {
                for (name, port) in [("echo", ECHO_PORT), ("quic", QUIC_PORT)] {
                    let is_quic = name == "quic";
                    text += &format!(
                        "[[rule]]\nname = \"{name}{family}\"\nfrontend = \"web{family}\"\n\
                         pool = \"vms{family}\"\nprotocol = \"udp\"\nfrontend_port = {port}\n\
                         quic = {is_quic}\n"
                    );
                }
            }
        }
        text + "[[inbound_nat_rule]]\nname = \"vm2\"\nfrontend = \"web4\"\npool = \"vms4\"\n\
             protocol = \"tcp\"\nfrontend_port = 2222\nbackend = \"vm2\"\nbackend_port = 8080\n\
             [[inbound_nat_rule]]\nname = \"vm2-6\"\nfrontend = \"web6\"\npool = \"vms6\"\n\
             protocol = \"tcp\"\nfrontend_port = 2222\nbackend = \"vm2\"\nbackend_port = 80\n\
             [[outbound_rule]]\nname = \"out\"\npool = \"vms4\"\nfrontends = [\"web4\"]\n"
    }

    pub fn configure(&self, role: &str, number: u32, change: Change) -> String {
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

    pub fn socket(&self, machine: &str) -> String {
        self.world
            .path(&format!("{machine}.sock"))
            .display()
            .to_string()
    }

    pub fn start(&self, role: &str, number: u32, change: Change) -> Process {
        let config = self.configure(role, number, change);
        let machine = format!("{role}{number}");
        let io = self.devices(role);
        let slb = env!("CARGO_BIN_EXE_slb");
        let status = self.socket(&machine);
        let how = match self.workers {
            None => format!("--cpus {}", number % 2),
            Some(workers) => {
                let state = self.world.path(&format!("{machine}.state"));
                let state = state.display();
                format!("--cpus 0,1 --workers {workers} --state {state} --take-over")
            }
        };
        self.world.start(
            &machine,
            &format!(
                "{slb} {role} --config {config} {io} --status {status} {how} --log-level warn"
            ),
        )
    }

    /// The devices of a node, as options.
    pub fn devices(&self, role: &str) -> &'static str {
        match (role, self.io) {
            ("mux", Io::AfXdp) => "--io afxdp:eth0 --announce vips",
            ("mux", Io::Tun) => "--io tun:slb0:2",
            (_, Io::AfXdp) => "--io 0=afxdp:eth0 --io 1=afxdp:vm",
            (_, Io::Tun) => "--io 0=tun:slb0 --io 1=tap:vm",
        }
    }

    /// Starts all hosts, and the first two muxes.
    pub fn start_all(&mut self, change: Change) {
        for number in 1..=self.size.1 {
            let host = self.start("host", number, change);
            self.hosts.insert(number, host);
        }
        for number in 1..=2 {
            let mux = self.start("mux", number, change);
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
    pub fn wait_for_paths(&self, count: usize) {
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
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(40);
        while !is_so() {
            assert!(Instant::now() < end, "waited in vain: {what}");
            sleep(Duration::from_millis(50));
        }
    }

    pub fn status(&self, machine: &str) -> serde_json::Value {
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
    pub fn wait_for_configurations(&self) {
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

    /// Has all nodes read another configuration, in any order.
    pub fn reconfigure(&self, change: Change) {
        for (role, nodes) in [("host", &self.hosts), ("mux", &self.muxes)] {
            for (&number, node) in nodes {
                self.configure(role, number, change);
                node.signal("HUP");
            }
        }
    }

    /// Has the hosts follow another configuration before the muxes read it, so that hosts pass on what muxes
    /// send by it.
    pub fn reconfigure_in_order(&self, change: Change) {
        let generation = |number: u32| -> u64 {
            let status = self.status(&format!("host{number}"));
            status["generation"].as_u64().unwrap()
        };
        let before: Vec<(u32, u64)> = self.hosts.keys().map(|&n| (n, generation(n))).collect();
        for (&number, node) in &self.hosts {
            self.configure("host", number, change);
            node.signal("HUP");
        }
        let end = Instant::now() + Duration::from_secs(20);
        for (number, before) in before {
            while generation(number) <= before {
                assert!(Instant::now() < end, "host{number} does not follow");
                sleep(Duration::from_millis(10));
            }
        }
        for (&number, node) in &self.muxes {
            self.configure("mux", number, change);
            node.signal("HUP");
        }
    }
}
