//! Host agent, mux and proxy are stopped and started again, and killed and started again, under
//! downloads and connections of vms: none of them breaks, and nothing leaves untranslated.
//!
//! ```text
//!  client 198.51.100.10 ── router ──┬─────────────┐
//!                          │       mux           host ── vm 10.10.1.11
//!                          │   172.16.0.11   172.16.0.101
//!                        proxy ── inner ── server 10.20.0.11
//! ```
//! Over AF_XDP the vm is behind veth, over TUN behind a tap device.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

#[macro_use]
mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::sh;
use common::world::{Process, World, lacking};

const CLIENT: &str = "198.51.100.10";
const CLIENT6: &str = "2001:db8:c::10";
const VIP: &str = "20.20.20.101";
const VIP6: &str = "2001:db8:20::101";
const OUT: &str = "20.20.20.200";
const OUT6: &str = "2001:db8:20::200";
const DIP: &str = "10.10.1.11";
const DIP6: &str = "fd00:10:1::11";
/// What the host's kernel would take for its own, if it got it.
const GATEWAY_MAC: &str = "02:00:00:00:00:01";
/// Bytes of a download, and how many of them come in a second.
const SIZE: usize = 700_000;
const RATE: &str = "100k";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Io {
    AfXdp,
    Tun,
}

/// How a process ends before the next one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Term,
    Kill,
}

struct Lab {
    world: World,
    io: Io,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // With it go the links that were pinned there.
        for role in ["mux", "host", "proxy"] {
            sh(&format!(
                "umount {} 2>/dev/null",
                self.state(role).join("bpf").display()
            ));
        }
    }
}

impl Lab {
    fn new(io: Io) -> Self {
        let kind = if io == Io::AfXdp { "rx" } else { "rt" };
        let machines = ["client", "router", "mux", "host", "vm"];
        let lab = Self {
            world: World::new(kind, &machines),
            io,
        };
        for machine in machines {
            lab.on(
                machine,
                &[
                    "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                   net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                   net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0",
                ],
            );
        }
        for role in ["mux", "host"] {
            lab.make_state(role);
        }
        lab.lay();
        lab
    }

    fn state(&self, role: &str) -> std::path::PathBuf {
        self.world.path(&format!("state-{role}"))
    }

    /// A state directory, for AF_XDP with a BPF file system in it.
    fn make_state(&self, role: &str) {
        let bpf = self.state(role).join("bpf");
        fs::create_dir_all(&bpf).unwrap();
        if self.io == Io::AfXdp {
            assert!(sh(&format!("mount -t bpf bpf {}", bpf.display())));
        }
    }

    fn on(&self, machine: &str, commands: &[&str]) {
        for command in commands {
            self.world.on(machine, command);
        }
    }

    /// The last number of the network of addresses that nodes have.
    fn network(&self) -> u32 {
        if self.io == Io::Tun { 17 } else { 16 }
    }

    fn lay(&self) {
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
                "ip link add fabric mtu 1600 type bridge",
                "ip link set fabric up",
                "ip address add 172.16.0.1/24 dev fabric",
                "ip address add fd00:16::1/64 dev fabric",
            ],
        );
        for (machine, number) in [("mux", 11), ("host", 101)] {
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
            if self.io == Io::Tun {
                self.on(
                    machine,
                    &[
                        "ip tuntap add dev slb0 mode tun",
                        "ip link set slb0 mtu 1600 up",
                        &format!("ip route add 172.17.0.{number}/32 dev slb0"),
                        &format!("ip -6 route add fd00:17::{number}/128 dev slb0"),
                    ],
                );
                self.on(
                    "router",
                    &[
                        &format!("ip route add 172.17.0.{number}/32 via 172.16.0.{number}"),
                        &format!("ip route add fd00:17::{number}/128 via fd00:16::{number}"),
                    ],
                );
            }
        }
        for vip in [VIP, VIP6, OUT, OUT6] {
            let (family, length, mux) = match vip.contains(':') {
                true => ("-6", 128, "fd00:16::11"),
                false => ("-4", 32, "172.16.0.11"),
            };
            let route = format!("ip {family} route add {vip}/{length}");
            self.on("router", &[&format!("{route} via {mux}")]);
            if self.io == Io::Tun {
                self.on("mux", &[&format!("{route} dev slb0")]);
            }
        }
        self.lay_vm();
    }

    fn lay_vm(&self) {
        self.world.plain_cable("vm", "eth0", "host", "to-vm", 1500);
        match self.io {
            Io::AfXdp => self.on(
                "host",
                &[&format!("ip link set to-vm address {GATEWAY_MAC}")],
            ),
            Io::Tun => self.on(
                "host",
                &[
                    "ip tuntap add dev vm mode tap",
                    "ip link add bridge1 type bridge",
                    "ip link set vm master bridge1 up",
                    "ip link set to-vm master bridge1",
                    "ip link set bridge1 up",
                ],
            ),
        }
        self.on(
            "vm",
            &[
                "ip link set eth0 address 02:00:0a:0a:01:0b up",
                &format!("ip address add {DIP}/24 dev eth0"),
                &format!("ip address add {DIP6}/64 dev eth0"),
                "ip route add default via 10.10.1.1",
                "ip route add default via fd00:10:1::1",
            ],
        );
        for gateway in ["10.10.1.1", "fd00:10:1::1"] {
            let own = format!("lladdr {GATEWAY_MAC} nud permanent dev eth0");
            self.on("vm", &[&format!("ip neighbour replace {gateway} {own}")]);
        }
    }

    /// Starts a server with a file to download.
    fn serve(&mut self, machine: &str) {
        let directory = self.world.path(&format!("files-{machine}"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("blob"), vec![b'x'; SIZE]).unwrap();
        let server = format!(
            "python3 -m http.server 8000 --bind :: --directory {} 2>/dev/null",
            directory.display()
        );
        self.world.keep(machine, &server);
        let listens = (0..200).any(|_| {
            sleep(Duration::from_millis(50));
            !self
                .world
                .on(machine, "ss -Hlnt sport = :8000")
                .trim()
                .is_empty()
        });
        assert!(listens, "{machine}: nobody listens");
    }

    fn configure(&self, role: &str) -> String {
        let network = self.network();
        let number = if role == "mux" { 11 } else { 101 };
        let mtu = if self.io == Io::Tun {
            "mtu = 1600\n"
        } else {
            ""
        };
        let mut text = format!(
            "[node]\nrole = \"{role}\"\nhash_seed = 7\nconnections = 4096\nflows = 4096\n{mtu}\
             underlay = [\"172.{network}.0.{number}\", \"fd00:{network}::{number}\"]\n\
             muxes = [\"172.{network}.0.11\", \"fd00:{network}::11\"]\n"
        );
        for (family, vip, out, dip, host) in [
            ("4", VIP, OUT, DIP, format!("172.{network}.0.101")),
            ("6", VIP6, OUT6, DIP6, format!("fd00:{network}::101")),
        ] {
            text += &format!(
                "[[frontend]]\nname = \"web{family}\"\naddress = \"{vip}\"\n\
                 [[frontend]]\nname = \"out{family}\"\naddress = \"{out}\"\n\
                 [[pool]]\nname = \"vms{family}\"\nvni = 5001\n\
                 backends = [{{ name = \"vm\", address = \"{dip}\", host = \"{host}\", \
                 mac = \"02:00:0a:0a:01:0b\" }}]\n\
                 [[rule]]\nname = \"http{family}\"\nfrontend = \"web{family}\"\n\
                 pool = \"vms{family}\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
                 backend_port = 8000\ntcp_reset = true\n\
                 [[outbound_rule]]\nname = \"out{family}\"\nfrontends = [\"out{family}\"]\n\
                 pool = \"vms{family}\"\ntcp_reset = true\n"
            );
        }
        let path = self.world.path(&format!("{role}.toml"));
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn start(&self, role: &str) -> Process {
        let config = self.configure(role);
        let io = match (role, self.io) {
            ("mux", Io::AfXdp) => "--io afxdp:eth0",
            ("mux", Io::Tun) => "--io tun:slb0",
            (_, Io::AfXdp) => "--io 0=afxdp:eth0 --io vm=afxdp:to-vm",
            (_, Io::Tun) => "--io 0=tun:slb0 --io vm=tap:vm",
        };
        self.start_with(role, &config, io)
    }

    fn start_with(&self, role: &str, config: &str, io: &str) -> Process {
        let slb = env!("CARGO_BIN_EXE_slb");
        let status = self.world.path(&format!("{role}.sock"));
        let command = format!(
            "{slb} {role} --config {config} {io} --status {} --state {} --log-level warn",
            status.display(),
            self.state(role).display()
        );
        let process = self.world.start(role, &command);
        self.wait_until("it serves", || self.status(role).is_some());
        process
    }

    fn status(&self, role: &str) -> Option<serde_json::Value> {
        let slb = env!("CARGO_BIN_EXE_slb");
        let socket = self.world.path(&format!("{role}.sock"));
        let command = format!("{slb} status --socket {} --format json", socket.display());
        let output = self.world.command(role, &command).output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    #[track_caller]
    fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < end, "waited in vain: {what}");
            sleep(Duration::from_millis(20));
        }
    }

    fn download(&self, machine: &str, address: &str, port: u16) -> Process {
        let address = match address.contains(':') {
            true => format!("[{address}]"),
            false => address.to_owned(),
        };
        let curl = format!(
            "curl -sS -m 60 --limit-rate {RATE} -o /dev/null -w %{{size_download}} \
             http://{address}:{port}/blob"
        );
        self.world.start(machine, &curl)
    }

    /// Waits until a client is answered.
    fn wait_for_service(&self, machine: &str, addresses: &[&str], port: u16) {
        for address in addresses {
            let connect = format!(
                "python3 -c 'import socket; socket.create_connection((\"{address}\", {port}), 1)'"
            );
            self.wait_until("the service answers", || {
                let output = self.world.command(machine, &connect).output();
                output.is_ok_and(|output| output.status.success())
            });
        }
    }

    /// Records what must not be on the wire, where it must not be.
    fn watch(&self, machine: &str, interface: &str, filter: &str) -> Watch {
        let file = self.world.path(&format!("{machine}-{interface}.pcap"));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.world.space(machine)]);
        command.args(["tcpdump", "-U", "-n", "-i", interface, "-w"]);
        command.arg(&file).arg(filter);
        let tcpdump = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.wait_until("tcpdump listens", || {
            file.metadata().is_ok_and(|file| file.len() >= 24)
        });
        Watch {
            process: Process(tcpdump.unwrap()),
            file: file.display().to_string(),
        }
    }

    /// Ends a role's process and starts the next one, with a pause in between.
    fn restart(&self, role: &str, process: Process, end: End) -> Process {
        match end {
            End::Term => {
                process.signal("TERM");
                process.finish();
            }
            End::Kill => {
                // The state's directory has no word of the end.
                process.signal("KILL");
                drop(process);
            }
        }
        if self.io == Io::AfXdp {
            // The XDP programs are still there, and drop what they took.
            let bpf = self.state(role).join("bpf");
            let names = fs::read_dir(bpf)
                .unwrap()
                .map(|file| file.unwrap().file_name());
            // Kernels put files of their own there.
            let pinned = names
                .filter(|name| name.to_string_lossy().starts_with(role))
                .count();
            assert_eq!(pinned, if role == "host" { 2 } else { 1 }, "{role} {end:?}");
        }
        sleep(Duration::from_millis(300));
        self.start(role)
    }
}

/// What tcpdump saw that must not be.
struct Watch {
    process: Process,
    file: String,
}

impl Watch {
    #[track_caller]
    fn expect_nothing(self) {
        sleep(Duration::from_millis(300));
        self.process.signal("INT");
        let mut process = self.process;
        process.0.wait().unwrap();
        let seen = Command::new("tcpdump")
            .args(["-n", "-r", &self.file])
            .output()
            .unwrap();
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        assert_eq!(seen, "", "on the wire");
    }
}

/// What no packet on the wire may be: a RST, or from a vm's or server's own address, outside of VXLAN.
const LEAKS: &str = "net 10.10.1.0/24 or net fd00:10:1::/64 or (tcp[tcpflags] & tcp-rst != 0) or \
                     (ip6[6] = 6 and ip6[53] & 4 != 0)";

fn fleet(io: Io) {
    let mut lab = Lab::new(io);
    lab.serve("vm");
    lab.serve("client");
    let mut host = lab.start("host");
    let mut mux = lab.start("mux");
    lab.wait_for_service("client", &[VIP, VIP6], 80);
    lab.wait_for_service("vm", &[CLIENT, CLIENT6], 8000);
    let leaks = [
        lab.watch("router", "wan", LEAKS),
        lab.watch("router", "host", LEAKS),
    ];
    for (role, end) in [
        ("host", End::Term),
        ("mux", End::Term),
        ("host", End::Kill),
        ("mux", End::Kill),
    ] {
        let downloads: Vec<Process> = (0..10)
            .map(|number| match number % 4 {
                0 => lab.download("client", VIP, 80),
                1 => lab.download("client", VIP6, 80),
                2 => lab.download("vm", CLIENT, 8000),
                _ => lab.download("vm", CLIENT6, 8000),
            })
            .collect();
        // Older than a checkpoint when it comes to that.
        sleep(Duration::from_millis(2500));
        match role {
            "host" => host = lab.restart(role, host, end),
            _ => mux = lab.restart(role, mux, end),
        }
        let state = lab.status(role).unwrap()["state"].clone();
        let imported = state["imported"].as_u64().unwrap();
        let least = if role == "host" { 10 } else { 5 };
        assert!(imported >= least, "{role} {end:?}: {state}");
        for download in downloads {
            assert_eq!(download.finish(), SIZE.to_string(), "{role} {end:?}");
        }
    }
    for leaks in leaks {
        leaks.expect_nothing();
    }
    let file = lab.state("host").join("host.state");
    assert_eq!(mode(&file), 0o600);
    drop((host, mux));
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
#[ignore = "needs root"]
fn no_connection_notices_over_afxdp() {
    if let Some(why) = lacking(&["ethtool", "ss", "tcpdump"]) {
        skip!("{why}");
    }
    fleet(Io::AfXdp);
}

#[test]
#[ignore = "needs root"]
fn no_connection_notices_over_tun() {
    if let Some(why) = lacking(&["ethtool", "ss", "tcpdump"]) {
        skip!("{why}");
    }
    fleet(Io::Tun);
}
