//! Incidents in the lives of a host agent and a proxy, under requests and downloads: nothing fails,
//! and each event leaves a line that says what happened. `operations.rs` has the same of a mux.
//!
//! Both live at one site, and each event happens to both at once:
//! ```text
//!                       ┌── mux ── host agent ── vm1
//!  client ── router ────┤
//!                       └── front [ proxy ] back ── inner ── server
//! ```
//! Files change, devices are cut, deleted and made again, clients flood, processes are stopped for a while, and killed
//! and started again with their state.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use common::lab::Io;
use common::sh;
use common::site::{DIP, DIP6, Site};
use common::world::{Process, lacking, peer};

/// The VIPs of the host agent's vm and of the proxy.
const VIPS: [[&str; 2]; 2] = [
    ["20.20.20.101", "2001:db8:20::101"],
    ["20.20.20.102", "2001:db8:20::102"],
];
/// Bytes of a download, which takes longer than all events.
const SIZE: usize = 1_200_000;
const RATE: &str = "32k";
/// Downloads from each VIP.
const DOWNLOADS: usize = 5;
/// New connections that find no place take those of half-open ones.
const PLACES: u32 = 16_384;

struct Lives {
    site: Site,
    servers: Vec<Process>,
}

impl Drop for Lives {
    fn drop(&mut self) {
        for role in ["host", "proxy"] {
            let bpf = self.state(role).join("bpf");
            sh(&format!("umount {} 2>/dev/null", bpf.display()));
        }
    }
}

impl Lives {
    fn new(io: Io) -> Self {
        let mut lives = Self {
            site: Site::new(io, "on", (1, &["proxy", "inner", "server"]), &VIPS[0]),
            servers: Vec::new(),
        };
        lives.lay_proxy();
        for role in ["mux", "host", "proxy"] {
            lives.configure(role, "");
            let bpf = lives.state(role).join("bpf");
            fs::create_dir_all(&bpf).unwrap();
            // Without a process, the XDP program drops what it took.
            if io == Io::AfXdp && role != "mux" {
                assert!(sh(&format!("mount -t bpf bpf {}", bpf.display())));
            }
        }
        if io == Io::Tun {
            // Without a device, the kernel would send the packets back.
            let blackholes = [
                "ip route add blackhole 172.17.0.101/32 metric 9999",
                "ip -6 route add blackhole fd00:17::101/128 metric 9999",
            ];
            lives.site.on("host", &blackholes);
        }
        let files = lives.site.world.path("files");
        fs::create_dir(&files).unwrap();
        fs::write(files.join("blob"), vec![b'x'; SIZE]).unwrap();
        fs::write(files.join("page"), "page").unwrap();
        for machine in ["vm1", "server"] {
            let serve = peer(&format!("files {} 8000", files.display()));
            let server = lives.site.world.start(machine, &serve);
            lives.servers.push(server);
        }
        lives
    }

    fn lay_proxy(&self) {
        let world = &self.site.world;
        self.lay_front();
        // While there is no way to the proxy, the router says nothing.
        for vip in VIPS[1] {
            let family = if vip.contains(':') { "-6" } else { "-4" };
            let route = format!("ip {family} route add blackhole {vip} metric 9999");
            world.on("router", &route);
        }
        world.plain_cable("proxy", "back", "inner", "out", 1500);
        world.plain_cable("inner", "lan", "server", "eth0", 1500);
        for (machine, device, ipv4, ipv6) in [
            ("inner", "out", "172.20.0.2/24", "fd00:172::2/64"),
            ("inner", "lan", "10.20.0.1/24", "fd00:20::1/64"),
            ("server", "eth0", "10.20.0.11/24", "fd00:20::11/64"),
        ] {
            world.on(machine, &format!("ip address add {ipv4} dev {device}"));
            world.on(machine, &format!("ip address add {ipv6} dev {device}"));
        }
        for (machine, ipv4, ipv6) in [
            ("inner", "172.20.0.1", "fd00:172::1"),
            ("server", "10.20.0.1", "fd00:20::1"),
        ] {
            world.on(machine, &format!("ip route add default via {ipv4}"));
            world.on(machine, &format!("ip route add default via {ipv6}"));
        }
        if self.site.io == Io::Tun {
            for side in ["front", "back"] {
                world.on("proxy", &format!("ip link add br-{side} type bridge"));
                world.on("proxy", &format!("ip link set {side} master br-{side}"));
                world.on("proxy", &format!("ip link set br-{side} up"));
                self.lay_tap(side);
            }
        }
    }

    /// The cable between the router and the proxy, whose ends keep their MAC addresses.
    fn lay_front(&self) {
        let world = &self.site.world;
        world.plain_cable("router", "in", "proxy", "front", 1500);
        self.site.on(
            "router",
            &[
                "ip link set in address 02:00:00:00:20:01",
                "ip address add 172.20.0.1/24 dev in",
                "ip address add fd00:172::1/64 dev in",
                &format!("ip route replace {}/32 via 172.20.0.2", VIPS[1][0]),
                &format!("ip -6 route replace {}/128 via fd00:172::2", VIPS[1][1]),
            ],
        );
    }

    fn lay_tap(&self, side: &str) {
        self.site.on(
            "proxy",
            &[
                &format!("ip tuntap add dev tap-{side} mode tap"),
                &format!("ip link set tap-{side} master br-{side} up"),
            ],
        );
    }

    /// Addresses and routes of the host agent's device on the fabric.
    fn lay_host(&self) {
        let commands: &[&str] = match self.site.io {
            Io::AfXdp => &[
                "ip link set eth0 up",
                "ip address replace 172.16.0.101/24 dev eth0",
                "ip address replace fd00:16::101/64 dev eth0",
                "ip route replace default via 172.16.0.1",
                "ip route replace default via fd00:16::1",
            ],
            Io::Tun => &[
                "ip link set slb0 mtu 1600 txqueuelen 5000 up",
                "ip route replace 172.17.0.101/32 dev slb0",
                "ip -6 route replace fd00:17::101/128 dev slb0",
            ],
        };
        self.site.on("host", commands);
    }

    fn state(&self, role: &str) -> PathBuf {
        self.site.world.path(&format!("state-{role}"))
    }

    /// Writes a role's configuration; `more` are further fields of its rules.
    fn configure(&self, role: &str, more: &str) {
        let network = self.site.network();
        let number = if role == "mux" { 11 } else { 101 };
        let mut text = format!("[node]\nrole = \"{role}\"\nhash_seed = 7\n");
        text += &match role {
            "proxy" => format!("connections = {PLACES}\n"),
            _ => format!(
                "connections = {PLACES}\nflows = 65536\n{}\
                 underlay = [\"172.{network}.0.{number}\", \"fd00:{network}::{number}\"]\n\
                 muxes = [\"172.{network}.0.11\", \"fd00:{network}::11\"]\n",
                if self.site.io == Io::Tun {
                    "mtu = 1600\n"
                } else {
                    ""
                },
            ),
        };
        let place = usize::from(role == "proxy");
        for (family, vip) in VIPS[place].iter().enumerate() {
            let backend = match (role, family) {
                ("proxy", 0) => "address = \"10.20.0.11\"".to_owned(),
                ("proxy", _) => "address = \"fd00:20::11\"".to_owned(),
                (_, 0) => format!("address = \"{DIP}\", host = \"172.{network}.0.101\""),
                _ => format!("address = \"{DIP6}\", host = \"fd00:{network}::101\""),
            };
            let (mac, vni) = match role {
                "proxy" => ("", ""),
                _ => (", mac = \"02:00:0a:0a:01:0b\"", "vni = 5001\n"),
            };
            text += &format!(
                "[[frontend]]\nname = \"f{family}\"\naddress = \"{vip}\"\n\
                 [[pool]]\nname = \"p{family}\"\n{vni}\
                 backends = [{{ name = \"vm1\", {backend}{mac} }}]\n\
                 [[rule]]\nname = \"r{family}\"\nfrontend = \"f{family}\"\npool = \"p{family}\"\n\
                 protocol = \"tcp\"\nfrontend_port = 80\nbackend_port = 8000\n{more}"
            );
        }
        let new = self.site.world.path(&format!("{role}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.site.world.path(&format!("{role}.toml"))).unwrap();
    }

    /// Starts a role; its log goes to a file.
    fn start(&self, role: &str) -> Process {
        let io = match (role, self.site.io) {
            ("proxy", Io::AfXdp) => "--io frontend=afxdp:front --io backend=afxdp:back".to_owned(),
            ("proxy", Io::Tun) => {
                "--io frontend=tap:tap-front --io backend=tap:tap-back".to_owned()
            }
            _ => self.site.devices(role, 1),
        };
        let path = |name: &str| self.site.world.path(&format!("{role}.{name}"));
        self.site.world.start(
            role,
            &format!(
                "{} {role} --config {} {io} --socket {} --state {} 2>>{}",
                env!("CARGO_BIN_EXE_slb"),
                path("toml").display(),
                path("sock").display(),
                self.state(role).display(),
                path("log").display()
            ),
        )
    }

    fn log(&self, role: &str) -> String {
        fs::read_to_string(self.site.world.path(&format!("{role}.log"))).unwrap_or_default()
    }

    /// Lengths of the logs of both.
    fn logged(&self) -> [usize; 2] {
        ["host", "proxy"].map(|role| self.log(role).len())
    }

    /// Waits until both have logged a line since their logs had `before` bytes.
    #[track_caller]
    fn both_say(&self, before: [usize; 2], what: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        for (role, before) in ["host", "proxy"].into_iter().zip(before) {
            while !self.log(role)[before..].contains(what) {
                let log = self.log(role);
                assert!(Instant::now() < end, "{role}: {what}: {}", &log[before..]);
                sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Requests by several clients until the end, the number of those answered, and what failed.
#[derive(Default)]
struct Requests {
    ends: AtomicBool,
    answered: [AtomicUsize; 4],
    failed: Mutex<Vec<String>>,
}

impl Requests {
    fn ask(&self, site: &Site, place: usize) {
        let vip = VIPS[place / 2][place % 2];
        let vip = if vip.contains(':') {
            format!("[{vip}]")
        } else {
            vip.to_owned()
        };
        while !self.ends.load(Ordering::Relaxed) {
            // A SYN that is lost is sent again after 1, 3, 7 and 15 seconds.
            let curl = format!("curl -sS -m 30 http://{vip}/page");
            let output = site.world.command("client", &curl).output().unwrap();
            match output.stdout == b"page" {
                true => drop(self.answered[place].fetch_add(1, Ordering::Relaxed)),
                false => self
                    .failed
                    .lock()
                    .unwrap()
                    .push(format!("{vip}: {output:?}")),
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits until each VIP was answered once more: nothing has failed until then.
    #[track_caller]
    fn all_answer(&self, lives: &Lives, what: &str) {
        let count = || {
            self.answered
                .each_ref()
                .map(|own| own.load(Ordering::Relaxed))
        };
        let (before, end) = (count(), Instant::now() + Duration::from_secs(60));
        loop {
            let failed = self.failed.lock().unwrap().clone();
            let logs = || ["host", "proxy"].map(|role| lives.log(role)).join("\n");
            assert!(failed.is_empty(), "{what}: {failed:?}\n{}", logs());
            // The first answer may be one that was under way.
            if count()
                .iter()
                .zip(before)
                .all(|(now, before)| *now >= before + 2)
            {
                return;
            }
            assert!(Instant::now() < end, "{what}: no answers\n{}", logs());
            sleep(Duration::from_millis(50));
        }
    }
}

/// Ends the requests, also of a test that panics.
struct End<'r>(&'r Requests);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.ends.store(true, Ordering::Relaxed);
    }
}

/// SYNs for a VIP from addresses that answer nobody.
const FLOOD: &str = "import random, socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
to = socket.inet_aton(sys.argv[1])
def sum(data):
    n = 0
    for at in range(0, len(data), 2): n += data[at] << 8 | data[at + 1]
    n = (n & 0xffff) + (n >> 16)
    return ~(n + (n >> 16)) & 0xffff
end = time.time() + 60
while time.time() < end:
    own = bytes([100, 64, random.randrange(256), random.randrange(1, 255)])
    ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 40, 0, 0, 64, 6, 0, own, to)
    port = random.randrange(1024, 65535)
    head = lambda c: struct.pack('!HHIIBBHHH', port, 80, port, 0, 80, 2, 1024, c, 0)
    pseudo = own + to + struct.pack('!HH', 6, 20)
    s.sendto(ip + head(sum(pseudo + head(0))), (sys.argv[1], 0))
";

fn signal(processes: [&Process; 2], name: &str) {
    for process in processes {
        process.signal(name);
    }
}

fn both_lives(io: Io) {
    if let Some(why) = lacking(&["ethtool", "ss"]) {
        skip!("{why}");
    }
    let lives = Lives::new(io);
    let world = &lives.site.world;
    let _mux = lives.start("mux");
    let mut host = lives.start("host");
    let mut proxy = lives.start("proxy");
    for vip in VIPS.as_flattened() {
        let connect =
            format!("python3 -c 'import socket; socket.create_connection((\"{vip}\", 80), 1)'");
        lives.site.wait_until("the service answers", || {
            let output = world.command("client", &connect).output();
            output.is_ok_and(|output| output.status.success())
        });
    }
    let requests = Requests::default();
    let downloads = thread::scope(|scope| {
        let _end = End(&requests);
        for place in 0..4 {
            let (requests, site) = (&requests, &lives.site);
            scope.spawn(move || requests.ask(site, place));
        }
        let urls = VIPS.as_flattened().iter().map(|vip| {
            let vip = if vip.contains(':') {
                format!("[{vip}]")
            } else {
                (*vip).to_owned()
            };
            format!("-o /dev/null 'http://{vip}/blob?n=[1-{DOWNLOADS}]'")
        });
        let downloads = world.start(
            "client",
            &format!(
                "curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max 50 -m 150 \
                 --limit-rate {RATE} -w '%{{http_code}} %{{size_download}}\\n' {}",
                urls.collect::<Vec<_>>().join(" ")
            ),
        );
        requests.all_answer(&lives, "at the beginning");

        // Another idle time, a file that is none, and the first one again.
        let before = lives.logged();
        for role in ["host", "proxy"] {
            lives.configure(role, "idle_timeout = \"5m\"\n");
        }
        signal([&host, &proxy], "HUP");
        lives.both_say(before, "configuration in place");
        let before = lives.logged();
        for role in ["host", "proxy"] {
            fs::write(
                world.path(&format!("{role}.toml")),
                "[node]\nrole = \"hub\"\n",
            )
            .unwrap();
        }
        signal([&host, &proxy], "HUP");
        lives.both_say(before, "the configuration is unchanged: ");
        let before = lives.logged();
        for role in ["host", "proxy"] {
            lives.configure(role, "");
        }
        signal([&host, &proxy], "HUP");
        lives.both_say(before, "configuration in place");
        requests.all_answer(&lives, "files change");

        // A device of each is cut, and mended.
        let before = lives.logged();
        let (of_host, of_proxy) = match io {
            Io::AfXdp => ("eth0", "back"),
            Io::Tun => ("slb0", "tap-back"),
        };
        world.on("host", &format!("ip link set {of_host} down"));
        world.on("proxy", &format!("ip link set {of_proxy} down"));
        lives.both_say(
            before,
            "interface down or without carrier: no packets are received",
        );
        lives.lay_host();
        world.on("proxy", &format!("ip link set {of_proxy} up"));
        lives.both_say(before, "ready again");
        requests.all_answer(&lives, "devices are cut");

        // A device of each is deleted, and made again.
        let before = lives.logged();
        let of_proxy = match io {
            Io::AfXdp => "front",
            Io::Tun => "tap-front",
        };
        let mac = world.on("host", "cat /sys/class/net/eth0/address");
        world.on("host", &format!("ip link del {of_host}"));
        world.on("proxy", &format!("ip link del {of_proxy}"));
        lives.both_say(
            before,
            "interface removed: no packets are received until an interface of this name is back",
        );
        match io {
            Io::AfXdp => {
                world.plain_cable("host", "eth0", "router", "host", 1600);
                world.on("router", "ip link set host master fabric");
                // The card is the same after its driver was loaded anew.
                world.on("host", &format!("ip link set eth0 address {}", mac.trim()));
                lives.lay_front();
            }
            Io::Tun => {
                world.on("host", "ip tuntap add dev slb0 mode tun");
                lives.lay_tap("front");
            }
        }
        lives.lay_host();
        lives.both_say(before, "back: reopening it");
        lives.both_say(before, "ready again");
        requests.all_answer(&lives, "devices are deleted and made again");

        // More connections are begun than there is room for, and none of them is ended.
        let before = lives.logged();
        fs::write(world.path("flood.py"), FLOOD).unwrap();
        let script = world.path("flood.py").display().to_string();
        let floods = [0, 1].map(|place| {
            let flood = format!("python3 {script} {}", VIPS[place][0]);
            world.start("client", &flood)
        });
        lives.both_say(before, "new flows evict other flows");
        drop(floods);
        requests.all_answer(&lives, "a flood");

        // The processes are stopped for a while.
        let before = lives.logged();
        signal([&host, &proxy], "STOP");
        sleep(Duration::from_secs(10));
        signal([&host, &proxy], "CONT");
        lives.both_say(before, "this process was stalled");
        requests.all_answer(&lives, "they are stopped");

        // They die, and others take their places.
        let before = lives.logged();
        for process in [&mut host, &mut proxy] {
            process.signal("KILL");
            process.0.wait().unwrap();
        }
        // Linux frees the sockets of a process a moment after its end.
        sleep(Duration::from_millis(300));
        host = lives.start("host");
        proxy = lives.start("proxy");
        lives.both_say(before, " running ");
        requests.all_answer(&lives, "they are killed and started again");
        downloads
    });
    let said = downloads.output();
    let whole = format!("200 {SIZE}");
    let complete = said.lines().filter(|line| **line == whole).count();
    assert_eq!(complete, 4 * DOWNLOADS, "{said}");
    let failed = requests.failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    for process in [host, proxy] {
        process.signal("TERM");
        assert!(process.finish().contains("connections:"));
    }
}

#[test]
#[ignore = "needs root"]
fn over_afxdp() {
    both_lives(Io::AfXdp);
}

#[test]
#[ignore = "needs root"]
fn over_tun() {
    both_lives(Io::Tun);
}
