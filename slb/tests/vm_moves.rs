//! A vm moves from one host agent to another under downloads, inbound and outbound, and none of them breaks.
//!
//! In the site of [`common::site`] with a second host, to which the vm has a cable that is not used at first.
//! `slb state export` and `slb state import` take the connections along. The mux learns of the move last: the
//! old host passes on what it sends.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::fabric::{CLIENT, CLIENT6};
use common::lab::Io;
use common::site::{DIP, DIP6, GATEWAY_MAC, Site};
use common::world::{Process, lacking, peer};

const VIP: &str = "20.20.20.101";
const VIP6: &str = "2001:db8:20::101";
const OUT: &str = "20.20.20.200";
const OUT6: &str = "2001:db8:20::200";
/// Bytes of a download, and how many of them come in a second.
const SIZE: usize = 500_000;
const RATE: &str = "100k";
const INBOUND: usize = 20;
const OUTBOUND: usize = 10;
const MAC: &str = "02:00:0a:0a:01:0b";
const TOOLS: [&str; 2] = ["ethtool", "ss"];

struct Lab {
    site: Site,
}

impl Lab {
    fn new(io: Io) -> Self {
        let site = Site::new(io, "v", (1, &["host2"]), &[VIP, VIP6, OUT, OUT6]);
        site.lay_node("host2", 102);
        site.world
            .plain_cable("vm1", "eth1", "host2", "to-vm1", 1500);
        match io {
            Io::AfXdp => site.on(
                "host2",
                &[&format!("ip link set to-vm1 address {GATEWAY_MAC}")],
            ),
            Io::Tun => site.on(
                "host2",
                &[
                    "ip tuntap add dev vm1 mode tap",
                    "ip link add bridge1 type bridge",
                    "ip link set vm1 master bridge1 up",
                    "ip link set to-vm1 master bridge1",
                    "ip link set bridge1 up",
                ],
            ),
        }
        let lab = Self { site };
        for host in ["host", "host2"] {
            fs::create_dir_all(lab.state(host)).unwrap();
        }
        lab
    }

    fn state(&self, host: &str) -> std::path::PathBuf {
        self.site.world.path(&format!("state-{host}"))
    }

    /// Gives a node the configuration in which the vm is at the host of this number.
    fn configure(&self, machine: &str, host: u32) {
        let network = self.site.network();
        let (role, number) = match machine {
            "mux" => ("mux", 11),
            "host" => ("host", 101),
            _ => ("host", 102),
        };
        let mtu = match self.site.io {
            Io::Tun => "mtu = 1600\n",
            Io::AfXdp => "",
        };
        let mut text = format!(
            "[node]\nrole = \"{role}\"\nhash_seed = 7\nconnections = 4096\nflows = 4096\n{mtu}\
             underlay = [\"172.{network}.0.{number}\", \"fd00:{network}::{number}\"]\n\
             muxes = [\"172.{network}.0.11\", \"fd00:{network}::11\"]\n"
        );
        for (family, vip, out, dip, host) in [
            ("4", VIP, OUT, DIP, format!("172.{network}.0.{host}")),
            ("6", VIP6, OUT6, DIP6, format!("fd00:{network}::{host}")),
        ] {
            text += &format!(
                "[[frontend]]\nname = \"web{family}\"\naddress = \"{vip}\"\n\
                 [[frontend]]\nname = \"out{family}\"\naddress = \"{out}\"\n\
                 [[pool]]\nname = \"vms{family}\"\nvni = 5001\n\
                 backends = [{{ name = \"vm1\", address = \"{dip}\", host = \"{host}\", mac = \"{MAC}\" }}]\n\
                 [[rule]]\nname = \"http{family}\"\nfrontend = \"web{family}\"\n\
                 pool = \"vms{family}\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
                 backend_port = 8000\ntcp_reset = true\n\
                 [[outbound_rule]]\nname = \"out{family}\"\nfrontends = [\"out{family}\"]\n\
                 pool = \"vms{family}\"\ntcp_reset = true\n"
            );
        }
        let path = self.site.world.path(&format!("{machine}.toml"));
        let new = self.site.world.path(&format!("{machine}.toml.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn start(&self, machine: &str) -> Process {
        let slb = env!("CARGO_BIN_EXE_slb");
        let path = |name: &str| self.site.world.path(&format!("{machine}.{name}"));
        let (role, io) = match (machine, self.site.io) {
            ("mux", _) => ("mux", self.site.devices("mux", 0)),
            (_, Io::AfXdp) => ("host", "--io 0=afxdp:eth0 --io 1=afxdp:to-vm1".to_owned()),
            (_, Io::Tun) => ("host", "--io 0=tun:slb0 --io 1=tap:vm1".to_owned()),
        };
        let state = match role {
            "host" => format!("--state {}", self.state(machine).display()),
            _ => String::new(),
        };
        let command = format!(
            "{slb} {role} --config {} {io} --status {} {state} --log-level warn",
            path("toml").display(),
            path("sock").display(),
        );
        let process = self.site.world.start(machine, &command);
        self.site
            .wait_until("it serves", || self.status(machine).is_some());
        process
    }

    fn status(&self, machine: &str) -> Option<serde_json::Value> {
        let slb = env!("CARGO_BIN_EXE_slb");
        let socket = self.site.world.path(&format!("{machine}.sock"));
        let command = format!("{slb} status --socket {} --format json", socket.display());
        let output = self.site.world.command(machine, &command).output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    fn number(&self, machine: &str, path: &str) -> u64 {
        let status = self.status(machine).unwrap();
        status
            .pointer(path)
            .and_then(serde_json::Value::as_u64)
            .unwrap()
    }

    /// Has a node read the configuration in which the vm is at the second host.
    fn move_at(&self, machine: &str, process: &Process) {
        let before = self.number(machine, "/generation");
        self.configure(machine, 102);
        process.signal("HUP");
        self.site.wait_until("it is in place", || {
            self.number(machine, "/generation") > before
        });
    }

    fn serve(&self, machine: &str) -> Process {
        let directory = self.site.world.path(&format!("files-{machine}"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("blob"), vec![b'x'; SIZE]).unwrap();
        let files = peer(&format!("files {} 8000", directory.display()));
        let server = self.site.world.start(machine, &files);
        self.site.wait_until("the server listens", || {
            let shown = self.site.world.on(machine, "ss -Hlnt sport = :8000");
            !shown.trim().is_empty()
        });
        server
    }

    fn download(
        &self,
        machine: &str,
        (ipv4, ipv6): (&str, &str),
        port: u16,
        count: usize,
    ) -> Process {
        let half = count / 2;
        let curl = format!(
            "curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max {count} -m 40 \
             --limit-rate {RATE} -w '%{{size_download}}\\n' \
             -o /dev/null 'http://{ipv4}:{port}/blob?n=[1-{half}]' \
             -o /dev/null 'http://[{ipv6}]:{port}/blob?n=[1-{half}]' 2>/dev/null"
        );
        self.site.world.start(machine, &format!("sh -c \"{curl}\""))
    }

    fn wait_for_service(&self, machine: &str, addresses: &[&str], port: u16) {
        for address in addresses {
            let connect = format!(
                "python3 -c 'import socket; socket.create_connection((\"{address}\", {port}), 1)'"
            );
            self.site.wait_until("the service answers", || {
                let output = self.site.world.command(machine, &connect).output();
                output.is_ok_and(|output| output.status.success())
            });
        }
    }

    fn slb_state(&self, machine: &str, arguments: &str) -> String {
        let slb = env!("CARGO_BIN_EXE_slb");
        self.site
            .world
            .on(machine, &format!("{slb} state {arguments}"))
    }

    /// The vm leaves its cable to the first host, and goes on at the second.
    fn replug(&self) {
        self.site.on(
            "vm1",
            &[
                "ip address flush dev eth0",
                "ip link set eth0 down",
                &format!("ip link set eth1 address {MAC} up"),
                &format!("ip address add {DIP}/24 dev eth1"),
                &format!("ip address add {DIP6}/64 dev eth1"),
                "ip route add default via 10.10.1.1",
                "ip route add default via fd00:10:1::1",
            ],
        );
        for gateway in ["10.10.1.1", "fd00:10:1::1"] {
            let own = format!("lladdr {GATEWAY_MAC} nud permanent dev eth1");
            let command = format!("ip neighbour replace {gateway} {own}");
            self.site.on("vm1", &[&command]);
        }
    }
}

fn whole(downloads: Process) -> usize {
    let output = downloads.output();
    let size = SIZE.to_string();
    output.lines().filter(|line| **line == size).count()
}

fn moves(io: Io) {
    let lab = Lab::new(io);
    for machine in ["mux", "host", "host2"] {
        lab.configure(machine, 101);
    }
    let servers = (lab.serve("vm1"), lab.serve("client"));
    let (host, host2, mux) = (lab.start("host"), lab.start("host2"), lab.start("mux"));
    lab.wait_for_service("client", &[VIP, VIP6], 80);
    lab.wait_for_service("vm1", &[CLIENT, CLIENT6], 8000);
    let inbound = lab.download("client", (VIP, VIP6), 80, INBOUND);
    let outbound = lab.download("vm1", (CLIENT, CLIENT6), 8000, OUTBOUND);
    sleep(Duration::from_millis(2000));

    let file = lab.site.world.path("vm1.state").display().to_string();
    let (from, to) = (lab.state("host"), lab.state("host2"));
    let begin = Instant::now();
    // The vm stands still: as it would while its memory is copied.
    lab.site.on("vm1", &["ip link set eth0 down"]);
    let export =
        |vm: &str, out: &str| format!("export --state {} --vm {vm} --out {out}", from.display());
    lab.slb_state("host", &export("vms4/vm1", &file));
    lab.move_at("host2", &host2);
    let said = lab.slb_state("host2", &format!("import --state {} {file}", to.display()));
    lab.move_at("host", &host);
    lab.replug();
    println!(
        "moved in {:.3} s: {}",
        begin.elapsed().as_secs_f64(),
        said.trim()
    );
    let taken: u64 = said.split(' ').next().unwrap().parse().unwrap();
    assert!(taken >= (INBOUND + OUTBOUND) as u64, "{said}");

    // The mux has not heard of it, and new connections come as well.
    lab.wait_for_service("client", &[VIP, VIP6], 80);
    sleep(Duration::from_millis(500));
    assert!(lab.number("host", "/passed_on") > 0);
    lab.move_at("mux", &mux);
    assert_eq!(whole(inbound), INBOUND);
    assert_eq!(whole(outbound), OUTBOUND);

    // What cannot be is said.
    let refused = |machine: &str, arguments: &str| {
        let slb = env!("CARGO_BIN_EXE_slb");
        let command = format!("{slb} state {arguments}");
        let output = lab.site.world.command(machine, &command).output().unwrap();
        assert!(!output.status.success(), "{command}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let other = lab.site.world.path("other.state").display().to_string();
    let gone = refused("host", &export("vms4/vm1", &other));
    assert!(
        gone.contains("expected POOL/BACKEND of a vm of this host"),
        "{gone}"
    );
    let there = refused("host", &export("vms4/vm1", &file));
    assert!(there.contains("vm1.state"), "{there}");
    let damaged = lab.site.world.path("damaged").display().to_string();
    // Too short for a state, something else, and a state that was changed on the way.
    let mut changed = fs::read(&file).unwrap();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    for (bytes, words) in [
        (&b"slbstate"[..], "expected 72 bytes or more, got 8"),
        (&[b's'; 100], "it is not a state file of slb"),
        (&changed, "the whole state is refused"),
    ] {
        fs::write(&damaged, bytes).unwrap();
        let bad = refused(
            "host2",
            &format!("import --state {} {damaged}", to.display()),
        );
        assert!(bad.contains(words), "{bad}");
    }
    drop((servers, host, host2, mux));
    let alone = refused("host", &export("vms4/vm1", &other));
    assert!(alone.contains("no host agent runs with --state"), "{alone}");
}

#[test]
#[ignore = "needs root"]
fn a_vm_moves_with_its_connections_over_afxdp() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    moves(Io::AfXdp);
}

#[test]
#[ignore = "needs root"]
fn a_vm_moves_with_its_connections_over_tun() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    moves(Io::Tun);
}
