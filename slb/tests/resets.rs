//! A service hangs: who probes it finds out, each process for itself, and both ends of its connections
//! get their RST.
//!
//! ```text
//!  client 198.51.100.10 ── router ──┬─────────────┬──────────────────┐
//!                                  mux           host ── vm1 10.10.1.11, network 5001
//!                              172.16.0.11   172.16.0.101 └─ vm2 10.10.1.11 or 10.10.2.11, network 5002
//! ```
//! Over AF_XDP the vms are behind veth, over TUN behind tap devices. Either both vms have one address,
//! each in a network of its own, and the mux cannot probe them; or each has an address of its own, and
//! the mux probes both by way of its kernel and the host's.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::fabric::{CLIENT, CLIENT6};
use common::lab::Io;
use common::site::Site;
use common::world::{Process, lacking};

/// The VIPs of a vm's network.
const VIPS: [[&str; 2]; 2] = [
    ["20.20.20.101", "2001:db8:20::101"],
    ["20.20.20.102", "2001:db8:20::102"],
];

/// The nodes that probe the vms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Probers {
    /// The host agent alone: both vms have one address.
    Host,
    /// The mux too, which needs a way to each.
    HostAndMux,
}

/// A TCP connection that waits for data; says when it is there, and how it ended.
const WAITING: &str = "import socket, sys\n\
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)\n\
s.settimeout(None)\n\
print('connected', flush=True)\n\
try:\n    print('got', s.recv(1))\n\
except ConnectionResetError:\n    print('reset')\n";

struct Lab {
    site: Site,
    probers: Probers,
    /// The servers of the vms.
    servers: Vec<Process>,
}

impl Lab {
    fn new(io: Io, probers: Probers) -> Self {
        let kind = match probers {
            Probers::Host => "h",
            Probers::HostAndMux => "m",
        };
        let lab = Self {
            // Its vms are others than those of other sites.
            site: Site::new(io, kind, (0, &["vm1", "vm2"]), &VIPS.concat()),
            probers,
            servers: Vec::new(),
        };
        fs::write(lab.site.world.path("waiting.py"), WAITING).unwrap();
        for number in 1..=2 {
            lab.lay_vm(number);
        }
        lab
    }

    /// The beginnings of the addresses of a vm's network.
    fn networks(&self, vm: u32) -> [String; 2] {
        let number = match self.probers {
            Probers::Host => 1,
            Probers::HostAndMux => vm,
        };
        [format!("10.10.{number}."), format!("fd00:10:{number}::")]
    }

    fn lay_vm(&self, number: u32) {
        let vm = format!("vm{number}");
        let device = format!("to-{vm}");
        match self.site.io {
            Io::AfXdp => {
                self.site
                    .world
                    .plain_cable(&vm, "eth0", "host", &device, 1500);
            }
            Io::Tun => {
                self.site
                    .world
                    .plain_cable(&vm, "eth0", "host", &device, 1500);
                self.site.on(
                    "host",
                    &[
                        &format!("ip tuntap add dev {vm} mode tap"),
                        &format!("ip link add bridge{number} type bridge"),
                        &format!("ip link set {vm} master bridge{number} up"),
                        &format!("ip link set {device} master bridge{number}"),
                        &format!("ip link set bridge{number} up"),
                    ],
                );
            }
        }
        let [net, net6] = self.networks(number);
        self.site.on(
            &vm,
            &[
                &format!("ip link set eth0 address 02:00:0a:0a:0{number}:0b up"),
                &format!("ip address add {net}11/24 dev eth0"),
                &format!("ip address add {net6}11/64 dev eth0"),
                &format!("ip route add default via {net}1"),
                &format!("ip route add default via {net6}1"),
            ],
        );
        if self.probers == Probers::HostAndMux {
            self.lay_way_to_vm(number);
        }
        if (self.site.io, self.probers) != (Io::AfXdp, Probers::HostAndMux) {
            // No device of the kernel's has the gateway's address.
            for gateway in [format!("{net}1"), format!("{net6}1")] {
                let own = "lladdr 02:00:00:00:00:01 nud permanent dev eth0";
                self.site
                    .on(&vm, &[&format!("ip neighbour replace {gateway} {own}")]);
            }
        }
    }

    /// Has the kernels of the router and the host forward between the fabric and a vm.
    fn lay_way_to_vm(&self, number: u32) {
        let [net, net6] = self.networks(number);
        self.site.on(
            "router",
            &[
                &format!("ip route add {net}0/24 via 172.16.0.101"),
                &format!("ip route add {net6}/64 via fd00:16::101"),
            ],
        );
        // Over AF_XDP the kernel is the vm's gateway, and gets what the host agent passes. A tap device
        // has no kernel behind it, so the vm reaches the fabric by an address of the bridge.
        let (device, own) = match self.site.io {
            Io::AfXdp => (format!("to-vm{number}"), 1),
            Io::Tun => (format!("bridge{number}"), 2),
        };
        self.site.on(
            "host",
            &[
                &format!("ip address add {net}{own}/24 dev {device}"),
                &format!("ip address add {net6}{own}/64 dev {device}"),
            ],
        );
        if self.site.io == Io::Tun {
            self.site.on(
                &format!("vm{number}"),
                &[
                    &format!("ip route add 172.16.0.0/24 via {net}{own}"),
                    &format!("ip route add fd00:16::/64 via {net6}{own}"),
                ],
            );
        }
    }

    /// Starts a vm's server, on port 8000. Its kernel keeps more connections waiting than all probes begin
    /// while the server stands still.
    fn serve(&mut self, number: u32) {
        let vm = format!("vm{number}");
        let directory = self.site.world.path(&vm);
        fs::create_dir_all(&directory).unwrap();
        let server = self.site.world.start(
            &vm,
            &format!(
                "python3 -c 'import runpy, socketserver; \
                 socketserver.TCPServer.request_queue_size = 128; \
                 runpy.run_module(\"http.server\", run_name=\"__main__\")' \
                 8000 --bind :: --directory {} 2>/dev/null",
                directory.display()
            ),
        );
        self.wait_until("the server listens", || {
            !self
                .site
                .world
                .on(&vm, "ss -Hlnt sport = :8000")
                .trim()
                .is_empty()
        });
        self.servers.push(server);
    }

    fn configure(&self, role: &str, node: &str) -> String {
        let network = self.site.network();
        let number = if role == "mux" { 11 } else { 101 };
        let mtu = if self.site.io == Io::Tun {
            "mtu = 1600\n"
        } else {
            ""
        };
        let mut text = format!(
            "[node]\nrole = \"{role}\"\nhash_seed = 7\nconnections = 4096\nflows = 4096\n{mtu}{node}\
             underlay = [\"172.{network}.0.{number}\", \"fd00:{network}::{number}\"]\n\
             muxes = [\"172.{network}.0.11\", \"fd00:{network}::11\"]\n\
             [[probe]]\nname = \"health\"\nprotocol = \"http\"\nport = 8000\n\
             interval = \"5s\"\ntimeout = \"1s\"\nthreshold = 1\n"
        );
        for vm in 1..=2 {
            let [net, net6] = self.networks(vm as u32);
            for (family, dip, host) in [
                ("4", format!("{net}11"), format!("172.{network}.0.101")),
                ("6", format!("{net6}11"), format!("fd00:{network}::101")),
            ] {
                let vip = VIPS[vm - 1][usize::from(family == "6")];
                text += &format!(
                    "[[frontend]]\nname = \"web{vm}-{family}\"\naddress = \"{vip}\"\n\
                     [[pool]]\nname = \"vm{vm}-{family}\"\nvni = 500{vm}\n\
                     backends = [{{ name = \"vm{vm}\", address = \"{dip}\", host = \"{host}\", \
                     mac = \"02:00:0a:0a:0{vm}:0b\" }}]\n"
                );
                for (name, port, probe) in
                    [("probed", 80, "probe = \"health\"\n"), ("plain", 81, "")]
                {
                    text += &format!(
                        "[[rule]]\nname = \"{name}{vm}-{family}\"\nfrontend = \"web{vm}-{family}\"\n\
                         pool = \"vm{vm}-{family}\"\nprotocol = \"tcp\"\nfrontend_port = {port}\n\
                         backend_port = 8000\ntcp_reset = true\n{probe}"
                    );
                }
            }
        }
        let path = self.site.world.path(&format!("{role}.toml"));
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn start(&self, role: &str, node: &str) -> Process {
        let config = self.configure(role, node);
        let io = match (role, self.site.io) {
            ("mux", Io::AfXdp) => "--io afxdp:eth0",
            ("mux", Io::Tun) => "--io tun:slb0",
            (_, Io::AfXdp) => "--io 0=afxdp:eth0 --io vm1=afxdp:to-vm1 --io vm2=afxdp:to-vm2",
            (_, Io::Tun) => "--io 0=tun:slb0 --io vm1=tap:vm1 --io vm2=tap:vm2",
        };
        let slb = env!("CARGO_BIN_EXE_slb");
        let status = self.site.world.path(&format!("{role}.sock"));
        self.site.world.start(
            role,
            &format!(
                "{slb} {role} --config {config} {io} --status {} --log-level warn",
                status.display()
            ),
        )
    }

    fn status(&self, role: &str) -> serde_json::Value {
        let slb = env!("CARGO_BIN_EXE_slb");
        let socket = self.site.world.path(&format!("{role}.sock"));
        let said = self.site.world.on(
            role,
            &format!("{slb} status --socket {} --format json", socket.display()),
        );
        serde_json::from_str(&said).unwrap()
    }

    /// Returns a node's view of a vm: its state in both families, and the rules that it fails.
    fn standing(&self, role: &str, vm: u32) -> (Vec<String>, Vec<String>) {
        let status = self.status(role);
        let name = format!("vm{vm}");
        let (mut states, mut fails) = (Vec::new(), Vec::new());
        for backend in status["backends"].as_array().unwrap() {
            if backend["backend"] == name.as_str() {
                states.push(backend["state"].as_str().unwrap().to_owned());
                let rules = backend["fails"].as_array().unwrap().iter();
                fails.extend(rules.map(|rule| rule.as_str().unwrap().to_owned()));
            }
        }
        (states, fails)
    }

    #[track_caller]
    fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < end, "waited in vain: {what}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Connections of the client's that a vm's server has; those of probes come and go.
    fn established(&self, vm: u32) -> usize {
        let shown = "ss -Htn state established sport = :8000";
        let shown = self.site.world.on(&format!("vm{vm}"), shown);
        let is_clients = |line: &&str| [CLIENT, CLIENT6].iter().any(|end| line.contains(end));
        shown.lines().filter(is_clients).count()
    }

    /// A client that has connected and waits.
    fn wait_at(&self, vip: &str, port: u16) -> Process {
        let script = self.site.world.path("waiting.py");
        let command = format!("python3 {} {vip} {port}", script.display());
        let mut client = self.site.world.start("client", &command);
        let mut line = String::new();
        let out = client.0.stdout.as_mut().unwrap();
        // One byte at a time: what comes later is read by others.
        let mut out = BufReader::with_capacity(1, out);
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "connected\n", "{vip} port {port}");
        client
    }
}

/// vm1's server hangs, and vm2's does not, whether or not it has the same address.
fn who_hangs_is_reset_within_a_second(io: Io, probers: Probers) {
    let mut lab = Lab::new(io, probers);
    for vm in 1..=2 {
        lab.serve(vm);
    }
    let _host = lab.start("host", "");
    let (roles, node) = match probers {
        // From the mux there is no way to an address that two networks have.
        Probers::Host => (&["host"][..], "probing = false\n"),
        Probers::HostAndMux => (&["host", "mux"][..], ""),
    };
    let _mux = lab.start("mux", node);
    lab.wait_until("the services answer", || {
        VIPS.concat().iter().all(|vip| {
            let vip = match vip.contains(':') {
                true => format!("[{vip}]"),
                false => (*vip).to_owned(),
            };
            let curl = format!("curl -sS -m 1 -o /dev/null http://{vip}/");
            let page = lab.site.world.command("client", &curl).output();
            page.is_ok_and(|page| page.status.success())
        })
    });
    // Of each vm, for each family, a connection of the rule with a probe and of the one without.
    let wait = |vm: usize, port| VIPS[vm - 1].map(|vip| lab.wait_at(vip, port));
    let (probed, plain) = (wait(1, 80), wait(1, 81));
    let others = [wait(2, 80), wait(2, 81)];
    assert_eq!((lab.established(1), lab.established(2)), (4, 4));
    // Some rounds of probes, which find all of them well.
    sleep(Duration::from_secs(11));
    let healthy = (vec!["healthy".to_owned(); 2], Vec::new());
    for role in roles {
        for vm in 1..=2 {
            assert_eq!(lab.standing(role, vm), healthy, "{role}, vm{vm}");
        }
    }

    lab.servers[0].signal("STOP");
    let mut probed = probed;
    let (mut turned, mut ended) = ([None; 2], [None; 2]);
    lab.wait_until("the host knows, and the clients too", || {
        for (client, ended) in probed.iter_mut().zip(&mut ended) {
            if ended.is_none() && client.0.try_wait().unwrap().is_some() {
                *ended = Some(Instant::now());
            }
        }
        let (_, fails) = lab.standing("host", 1);
        for (turned, rule) in turned.iter_mut().zip(["probed1-4", "probed1-6"]) {
            if turned.is_none() && fails.iter().any(|fail| fail == rule) {
                *turned = Some(Instant::now());
            }
        }
        turned.iter().chain(&ended).all(Option::is_some)
    });
    for (client, (turned, ended)) in probed.into_iter().zip(turned.into_iter().zip(ended)) {
        assert_eq!(client.finish(), "reset\n");
        let took = ended.unwrap().saturating_duration_since(turned.unwrap());
        assert!(took < Duration::from_secs(1), "{took:?} after the verdict");
    }
    // The vm's ends are gone too, though its server reads nothing; those of the rule without a probe
    // are there, and so are all of vm2.
    assert_eq!(lab.established(1), 2);
    for role in roles {
        lab.wait_until("the mux has found out for itself", || {
            let (states, fails) = lab.standing(role, 1);
            states == ["partial", "partial"] && fails == ["probed1-4", "probed1-6"]
        });
        assert_eq!(lab.standing(role, 2), healthy, "{role}");
    }
    assert_eq!((lab.established(1), lab.established(2)), (2, 4));
    // New ones are refused where the probe fails, and taken where there is none.
    let connects = |vip: &str, port: u16| {
        let connect =
            format!("python3 -c 'import socket; socket.create_connection((\"{vip}\", {port}), 2)'");
        let output = lab.site.world.command("client", &connect).output().unwrap();
        output.status.success()
    };
    for vip in VIPS[0] {
        assert!(!connects(vip, 80), "{vip}: the vm whose probe fails");
        assert!(connects(vip, 81), "{vip}: the rule without a probe");
    }
    for vip in VIPS[1] {
        assert!(connects(vip, 80) && connects(vip, 81), "{vip}");
    }

    // It comes back by itself.
    lab.servers[0].signal("CONT");
    lab.wait_until("vm1 is well again", || {
        roles.iter().all(|role| lab.standing(role, 1) == healthy)
    });
    assert!(VIPS[0].iter().all(|vip| connects(vip, 80)));
    drop((plain, others));
}

#[test]
#[ignore = "needs root"]
fn over_afxdp() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    who_hangs_is_reset_within_a_second(Io::AfXdp, Probers::HostAndMux);
}

#[test]
#[ignore = "needs root"]
fn over_tun() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    who_hangs_is_reset_within_a_second(Io::Tun, Probers::HostAndMux);
}

#[test]
#[ignore = "needs root"]
fn two_networks_with_one_address_over_afxdp() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    who_hangs_is_reset_within_a_second(Io::AfXdp, Probers::Host);
}

#[test]
#[ignore = "needs root"]
fn two_networks_with_one_address_over_tun() {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    who_hangs_is_reset_within_a_second(Io::Tun, Probers::Host);
}
