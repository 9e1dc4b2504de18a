//! Host agent, mux and proxy are stopped and started again, and killed and started again, under 60 downloads
//! by clients and 20 by vms: none of them breaks, and nothing leaves untranslated.
//!
//! The proxy has a site of its own:
//! ```text
//!  client 198.51.100.10 ── router ── front [ proxy ] back ── inner ── server 10.20.0.11
//! ```
//!
//! Beside the downloads a client asks by datagrams, one each millisecond: the longest time between two answers on the
//! wire is printed.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::fabric::{CLIENT, CLIENT6};
use common::gap::{Echo, PORT as ECHO, Stream};
use common::lab::Io;
use common::sh;
use common::site::{DIP, DIP6, Site};
use common::world::{Process, World, lacking, peer};

const VIP: &str = "20.20.20.101";
const VIP6: &str = "2001:db8:20::101";
const OUT: &str = "20.20.20.200";
const OUT6: &str = "2001:db8:20::200";
const SERVER: &str = "10.20.0.11";
const SERVER6: &str = "fd00:20::11";
/// Bytes of a download, and how many of them come in a second.
const SIZE: usize = 600_000;
const RATE: &str = "100k";
const INBOUND: usize = 60;
const OUTBOUND: usize = 20;
const TOOLS: [&str; 3] = ["ethtool", "ss", "tcpdump"];

/// The end of a process before the next one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Term,
    Kill,
    /// The next one starts beside it, and takes over.
    TakeOver,
}

/// The operations of all tests on their machines.
struct Machines<'w> {
    world: &'w World,
    io: Io,
    /// True if processes keep their state.
    keeps: bool,
}

impl Machines<'_> {
    fn state(&self, role: &str) -> PathBuf {
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

    /// Starts a server with a file to download.
    fn serve(&self, machine: &str) -> Process {
        let directory = self.world.path(&format!("files-{machine}"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("blob"), vec![b'x'; SIZE]).unwrap();
        let files = peer(&format!("files {} 8000", directory.display()));
        let server = self.world.start(machine, &files);
        self.wait_until("the server listens", || {
            let shown = self.world.on(machine, "ss -Hlnt sport = :8000");
            !shown.trim().is_empty()
        });
        server
    }

    fn start(&self, role: &str, io: &str) -> Process {
        let process = self.spawn(role, io);
        self.wait_until("it serves", || self.status(role).is_some());
        process
    }

    fn spawn(&self, role: &str, io: &str) -> Process {
        let slb = env!("CARGO_BIN_EXE_slb");
        let path = |name: &str| self.world.path(&format!("{role}.{name}"));
        let state = match self.keeps {
            true => format!("--state {}", self.state(role).display()),
            false => String::new(),
        };
        let command = format!(
            "{slb} {role} --config {} {io} --status {} {state} --log-level warn",
            path("toml").display(),
            path("sock").display(),
        );
        self.world.start(role, &command)
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

    /// Starts `count` downloads at once, half of them over IPv6.
    fn download(
        &self,
        machine: &str,
        (ipv4, ipv6): (&str, &str),
        port: u16,
        count: usize,
    ) -> Process {
        let half = count / 2;
        let curl = format!(
            "curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max {count} -m 100 -y 25 \
             --limit-rate {RATE} -w '%{{size_download}}\\n' \
             -o /dev/null 'http://{ipv4}:{port}/blob?n=[1-{half}]' \
             -o /dev/null 'http://[{ipv6}]:{port}/blob?n=[1-{half}]' 2>&1"
        );
        self.world.start(machine, &format!("sh -c \"{curl}\""))
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
    fn restart(&self, role: &str, io: &str, process: Process, end: End) -> Process {
        match end {
            End::Term => {
                process.signal("TERM");
                process.finish();
            }
            End::TakeOver => {
                let next = self.spawn(role, &format!("{io} --take-over"));
                assert!(process.finish().contains("received"), "it ends by itself");
                self.wait_until("it serves", || self.status(role).is_some());
                return next;
            }
            End::Kill => {
                // The state's directory has no word of the end.
                process.signal("KILL");
                drop(process);
            }
        }
        if self.io == Io::AfXdp && self.keeps {
            // The XDP programs are still there, and drop what they took.
            let bpf = self.state(role).join("bpf");
            let names = fs::read_dir(bpf)
                .unwrap()
                .map(|file| file.unwrap().file_name());
            // Kernels put files of their own there.
            let pinned = names
                .filter(|name| name.to_string_lossy().starts_with(role))
                .count();
            assert_eq!(pinned, if role == "mux" { 1 } else { 2 }, "{role} {end:?}");
        }
        if end == End::Kill {
            // Longer than it takes to start: nothing is served, and nothing may leak.
            sleep(Duration::from_millis(300));
        }
        self.start(role, io)
    }

    /// Unmounts what was mounted: with it go the links that were pinned there.
    fn forget_state(&self) {
        for role in ["mux", "host", "proxy"] {
            let bpf = self.state(role).join("bpf");
            sh(&format!("umount {} 2>/dev/null", bpf.display()));
        }
    }
}

/// Prints the time for which the service was away. A machine that has other work too makes it longer, so its bound
/// is wide; but the process that takes over goes on with open devices, and no packet is lost however long that takes.
/// A machine that has other work may lose some by itself: returns false if the take-over is to be tried again.
#[track_caller]
#[must_use]
fn is_short(stream: Stream, role: &str, end: End, io: Io, attempt: usize) -> bool {
    stream.wait_for(200);
    let gap = stream.end();
    let io = match io {
        Io::AfXdp => "AF_XDP",
        Io::Tun => "TUN",
    };
    println!("{role}, {end:?}, {io}: {gap}");
    let most = match end {
        End::TakeOver => Duration::from_secs(3),
        End::Term | End::Kill => Duration::from_secs(10),
    };
    assert!(
        gap.without_service < most + 2 * gap.without_questions,
        "{role} {end:?}: {gap}"
    );
    let is_whole = end != End::TakeOver || gap.answers == gap.questions;
    let most_came = 10 * gap.answers >= 9 * gap.questions;
    assert!(
        is_whole || attempt < 5 || most_came,
        "{role} {end:?}: {gap}"
    );
    is_whole || attempt == 5
}

/// Returns the number of complete downloads.
fn whole(downloads: Process) -> usize {
    let output = downloads.output();
    let size = SIZE.to_string();
    let (whole, others): (Vec<&str>, Vec<&str>) = output.lines().partition(|line| **line == size);
    if !others.is_empty() {
        println!("downloads that were not whole: {others:?}");
    }
    whole.len()
}

/// A tcpdump that sees only forbidden packets.
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

/// Packets that must not be on the wire: those from a vm's or server's own address, outside of VXLAN, and RSTs.
/// A client that has closed its connection answers a late duplicate with one, so RSTs of clients do not count, nor those
/// of vms that are clients, by the frontend that they call out as; a connection that a client resets too early shows
/// by its download.
const LEAKS: &str = "net 10.10.1.0/24 or net fd00:10:1::/64 or net 10.20.0.0/24 or \
                     net fd00:20::/64 or \
                     (tcp[tcpflags] & tcp-rst != 0 and \
                     not src host 198.51.100.10 and not src host 20.20.20.200) or \
                     (ip6[6] = 6 and ip6[53] & 4 != 0 and \
                     not src host 2001:db8:c::10 and not src host 2001:db8:20::200)";

/// A mux and a host agent, with their state or without.
struct Lab {
    site: Site,
    keeps: bool,
    servers: Vec<Process>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.machines().forget_state();
    }
}

impl Lab {
    fn new(io: Io, keeps: bool) -> Self {
        let kind = if keeps { "r" } else { "n" };
        let mut lab = Self {
            site: Site::new(io, kind, (1, &[]), &[VIP, VIP6, OUT, OUT6]),
            keeps,
            servers: Vec::new(),
        };
        for role in ["mux", "host"] {
            lab.machines().make_state(role);
            lab.configure(role);
        }
        for machine in ["vm1", "client"] {
            let server = lab.machines().serve(machine);
            lab.servers.push(server);
        }
        lab
    }

    fn machines(&self) -> Machines<'_> {
        Machines {
            world: &self.site.world,
            io: self.site.io,
            keeps: self.keeps,
        }
    }

    fn configure(&self, role: &str) {
        let network = self.site.network();
        let number = if role == "mux" { 11 } else { 101 };
        let mtu = if self.site.io == Io::Tun {
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
                 backends = [{{ name = \"vm1\", address = \"{dip}\", host = \"{host}\", \
                 mac = \"02:00:0a:0a:01:0b\" }}]\n\
                 [[rule]]\nname = \"http{family}\"\nfrontend = \"web{family}\"\n\
                 pool = \"vms{family}\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
                 backend_port = 8000\ntcp_reset = true\n\
                 [[rule]]\nname = \"echo{family}\"\nfrontend = \"web{family}\"\n\
                 pool = \"vms{family}\"\nprotocol = \"udp\"\nfrontend_port = {ECHO}\n\
                 [[outbound_rule]]\nname = \"out{family}\"\nfrontends = [\"out{family}\"]\n\
                 pool = \"vms{family}\"\ntcp_reset = true\n"
            );
        }
        fs::write(self.site.world.path(&format!("{role}.toml")), text).unwrap();
    }

    fn start(&self, role: &str) -> Process {
        self.machines().start(role, &self.site.devices(role, 1))
    }

    /// Starts both roles, and waits until they serve.
    fn start_both(&self) -> (Process, Process) {
        let both = (self.start("host"), self.start("mux"));
        let machines = self.machines();
        machines.wait_for_service("client", &[VIP, VIP6], 80);
        machines.wait_for_service("vm1", &[CLIENT, CLIENT6], 8000);
        both
    }

    /// Has clients and the vm download, for some time.
    fn download(&self) -> [Process; 2] {
        let machines = self.machines();
        let inbound = machines.download("client", (VIP, VIP6), 80, INBOUND);
        let outbound = machines.download("vm1", (CLIENT, CLIENT6), 8000, OUTBOUND);
        for (machine, port, count) in [("client", 80, INBOUND), ("vm1", 8000, OUTBOUND)] {
            let connections = format!("ss -Htn state established dport = :{port}");
            machines.wait_until("all downloads have begun", || {
                machines.world.on(machine, &connections).lines().count() >= count
            });
        }
        // Older than a checkpoint when it comes to that.
        sleep(Duration::from_millis(2000));
        [inbound, outbound]
    }

    fn restart(&self, role: &str, process: Process, end: End) -> Process {
        let devices = self.site.devices(role, 1);
        self.machines().restart(role, &devices, process, end)
    }
}

fn fleet(io: Io) {
    let lab = Lab::new(io, true);
    let (mut host, mut mux) = lab.start_both();
    let machines = lab.machines();
    let _echo = Echo::start(machines.world, "vm1");
    let leaks = [
        machines.watch("router", "wan", LEAKS),
        machines.watch("router", "host", LEAKS),
    ];
    for (role, end) in [
        ("host", End::Term),
        ("mux", End::Term),
        ("host", End::Kill),
        ("mux", End::Kill),
        ("host", End::TakeOver),
        ("mux", End::TakeOver),
    ] {
        let downloads = lab.download();
        for attempt in 1.. {
            let stream = Stream::begin(machines.world, "client", VIP, ("router", "wan"));
            match role {
                "host" => host = lab.restart(role, host, end),
                _ => mux = lab.restart(role, mux, end),
            }
            if is_short(stream, role, end, io, attempt) {
                break;
            }
        }
        let state = machines.status(role).unwrap()["state"].clone();
        let imported = state["imported"].as_u64().unwrap();
        let all = INBOUND + if role == "host" { OUTBOUND } else { 0 };
        assert!(imported >= all as u64, "{role} {end:?}: {state}");
        assert_eq!(state["is_checkpoint"], end == End::Kill, "{state}");
        let whole = downloads.map(whole);
        assert_eq!(whole, [INBOUND, OUTBOUND], "{role} {end:?}");
    }
    for leaks in leaks {
        leaks.expect_nothing();
    }
    let file = machines.state("host").join("host.state");
    assert_eq!(mode(&file), 0o600);
    let shown = lab.site.world.on(
        "host",
        &format!(
            "{} status --once --socket {}",
            env!("CARGO_BIN_EXE_slb"),
            lab.site.world.path("host.sock").display()
        ),
    );
    assert!(
        shown.contains("taken over from an earlier process (all, "),
        "{shown}"
    );
    drop((host, mux));
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Without state, connections from outside are taken up by the next segment of either end, and what vms opened is lost.
fn without_state(io: Io) {
    let lab = Lab::new(io, false);
    let (mut host, mux) = lab.start_both();
    let downloads = lab.download();
    host = lab.restart("host", host, End::Kill);
    let [inbound, outbound] = downloads.map(whole);
    assert_eq!(inbound, INBOUND, "those from outside");
    assert!(outbound < OUTBOUND, "the tests of state test something");
    // Of some, the client's kernel may have had all bytes by then: no further packet takes these up.
    let taken_up = &lab.machines().status("host").unwrap()["taken_up"];
    assert!(
        taken_up.as_u64().unwrap() >= INBOUND as u64 / 2,
        "{taken_up}"
    );
    drop((host, mux));
}

/// A proxy between a router and a server.
struct ProxyLab {
    world: World,
    io: Io,
    servers: Vec<Process>,
}

impl Drop for ProxyLab {
    fn drop(&mut self) {
        self.machines().forget_state();
    }
}

impl ProxyLab {
    fn new(io: Io, kind: &str) -> Self {
        let machines = ["client", "router", "proxy", "inner", "server"];
        let world = World::new(kind, &machines);
        for machine in machines {
            world.on(
                machine,
                "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0",
            );
        }
        world.plain_cable("client", "eth0", "router", "wan", 1500);
        world.plain_cable("router", "in", "proxy", "front", 1500);
        world.plain_cable("proxy", "back", "inner", "out", 1500);
        world.plain_cable("inner", "lan", "server", "eth0", 1500);
        for (machine, device, ipv4, ipv6) in [
            ("client", "eth0", "198.51.100.10/24", "2001:db8:c::10/64"),
            ("router", "wan", "198.51.100.1/24", "2001:db8:c::1/64"),
            ("router", "in", "172.20.0.1/24", "fd00:172::1/64"),
            ("inner", "out", "172.20.0.2/24", "fd00:172::2/64"),
            ("inner", "lan", "10.20.0.1/24", "fd00:20::1/64"),
            ("server", "eth0", "10.20.0.11/24", "fd00:20::11/64"),
        ] {
            world.on(machine, &format!("ip address add {ipv4} dev {device}"));
            world.on(machine, &format!("ip address add {ipv6} dev {device}"));
        }
        for (machine, ipv4, ipv6) in [
            ("client", "198.51.100.1", "2001:db8:c::1"),
            ("router", "172.20.0.2", "fd00:172::2"),
            ("inner", "172.20.0.1", "fd00:172::1"),
            ("server", "10.20.0.1", "fd00:20::1"),
        ] {
            world.on(machine, &format!("ip route add default via {ipv4}"));
            world.on(machine, &format!("ip route add default via {ipv6}"));
        }
        if io == Io::Tun {
            for side in ["front", "back"] {
                world.on("proxy", &format!("ip tuntap add dev tap-{side} mode tap"));
                world.on("proxy", &format!("ip link add br-{side} type bridge"));
                world.on("proxy", &format!("ip link set {side} master br-{side}"));
                let tap = format!("ip link set tap-{side} master br-{side} up");
                world.on("proxy", &tap);
                world.on("proxy", &format!("ip link set br-{side} up"));
            }
        }
        let mut text = "[node]\nrole = \"proxy\"\nhash_seed = 7\nconnections = 4096\n".to_owned();
        for (family, vip, server) in [("4", VIP, SERVER), ("6", VIP6, SERVER6)] {
            text += &format!(
                "[[frontend]]\nname = \"web{family}\"\naddress = \"{vip}\"\n\
                 [[pool]]\nname = \"servers{family}\"\n\
                 backends = [{{ name = \"server\", address = \"{server}\" }}]\n\
                 [[rule]]\nname = \"http{family}\"\nfrontend = \"web{family}\"\n\
                 pool = \"servers{family}\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
                 backend_port = 8000\ntcp_reset = true\n\
                 [[rule]]\nname = \"echo{family}\"\nfrontend = \"web{family}\"\n\
                 pool = \"servers{family}\"\nprotocol = \"udp\"\nfrontend_port = {ECHO}\n"
            );
        }
        fs::write(world.path("proxy.toml"), text).unwrap();
        let mut lab = Self {
            world,
            io,
            servers: Vec::new(),
        };
        lab.machines().make_state("proxy");
        for machine in ["server", "client"] {
            let server = lab.machines().serve(machine);
            lab.servers.push(server);
        }
        lab
    }

    fn machines(&self) -> Machines<'_> {
        Machines {
            world: &self.world,
            io: self.io,
            keeps: true,
        }
    }
}

/// Runs the proxy with the first number of workers, and with each of the others after a restart.
fn proxy(io: Io, kind: &str, workers: [u32; 4]) {
    let lab = ProxyLab::new(io, kind);
    let [at_first, later @ ..] = workers;
    let devices = match io {
        Io::AfXdp => "--io frontend=afxdp:front --io backend=afxdp:back",
        Io::Tun => "--io frontend=tap:tap-front --io backend=tap:tap-back",
    };
    let machines = lab.machines();
    let devices = |workers: u32| format!("{devices} --workers {workers}");
    let mut process = machines.start("proxy", &devices(at_first));
    machines.wait_for_service("client", &[VIP, VIP6], 80);
    let _echo = Echo::start(machines.world, "server");
    let leaks = machines.watch("router", "wan", LEAKS);
    for (end, workers) in [End::Term, End::TakeOver, End::Kill].into_iter().zip(later) {
        let inbound = machines.download("client", (VIP, VIP6), 80, INBOUND);
        sleep(Duration::from_millis(2000));
        for attempt in 1.. {
            let stream = Stream::begin(machines.world, "client", VIP, ("router", "wan"));
            process = machines.restart("proxy", &devices(workers), process, end);
            // Other workers have other sockets, which are opened anew; the second time they are the same.
            if is_short(stream, "proxy", end, io, attempt) {
                break;
            }
        }
        let state = machines.status("proxy").unwrap()["state"].clone();
        let imported = state["imported"].as_u64().unwrap();
        assert!(imported >= INBOUND as u64, "{end:?}: {state}");
        assert_eq!(whole(inbound), INBOUND, "{end:?}");
    }
    leaks.expect_nothing();
    drop(process);
}

#[test]
#[ignore = "needs root"]
fn no_connection_notices_over_afxdp() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    fleet(Io::AfXdp);
}

#[test]
#[ignore = "needs root"]
fn no_connection_notices_over_tun() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    fleet(Io::Tun);
}

#[test]
#[ignore = "needs root"]
fn without_state_only_connections_from_outside_go_on_over_afxdp() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    without_state(Io::AfXdp);
}

#[test]
#[ignore = "needs root"]
fn without_state_only_connections_from_outside_go_on_over_tun() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    without_state(Io::Tun);
}

#[test]
#[ignore = "needs root"]
fn no_session_of_a_proxy_notices_over_afxdp() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    proxy(Io::AfXdp, "px", [1; 4]);
}

#[test]
#[ignore = "needs root"]
fn no_session_of_a_proxy_notices_that_its_workers_change_over_afxdp() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    proxy(Io::AfXdp, "pv", [1, 2, 2, 3]);
}

#[test]
#[ignore = "needs root"]
fn no_session_of_a_proxy_notices_that_its_workers_change_over_tap() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    proxy(Io::Tun, "pw", [2, 3, 1, 2]);
}

#[test]
#[ignore = "needs root"]
fn no_session_of_a_proxy_notices_over_tap() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    proxy(Io::Tun, "pt", [1; 4]);
}
