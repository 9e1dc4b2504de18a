//! Handover between processes: announced VIPs stay announced, SIGUSR2 starts the program again in
//! the same service, and while no process serves, the kernel gets none of the balancer's packets.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::fabric::{CLIENT, CLIENT6};
use common::lab::Io;
use common::sh;
use common::site::{DIP, DIP6, Site};
use common::world::{Process, World, lacking, log, peer, wait_until};

const VIP: &str = "20.20.20.100";
const VIP6: &str = "2001:db8::100";

/// A mux on AF_XDP that announces a VIP of each family, beside a client.
struct Announced {
    world: World,
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.world.end_strangers();
        let bpf = self.world.path("state/bpf");
        sh(&format!("umount {} 2>/dev/null", bpf.display()));
    }
}

impl Announced {
    fn new(kind: &str) -> Self {
        let world = World::new(kind, &["c", "m"]);
        world.plain_cable("c", "eth0", "m", "eth0", 1600);
        world.on("c", "ip address add 172.16.0.101/24 dev eth0");
        world.on("c", &format!("ip route add {VIP}/32 via 172.16.0.11"));
        world.on("m", "ip address add 172.16.0.11/24 dev eth0");
        world.on("m", "ip route add default via 172.16.0.101");
        let own = Self { world };
        own.configure();
        let bpf = own.world.path("state/bpf");
        fs::create_dir_all(&bpf).unwrap();
        assert!(sh(&format!("mount -t bpf bpf {}", bpf.display())));
        own
    }

    /// A backend that nobody has is asked as well: the first round of probes takes some seconds.
    fn configure(&self) {
        let text = format!(
            "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
             [[frontend]]\nname = \"web\"\naddress = \"{VIP}\"\n\
             [[frontend]]\nname = \"web6\"\naddress = \"{VIP6}\"\n\
             [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\nprobe = \"http\"\n\
             protocol = \"tcp\"\nfrontend_port = 80\n\
             [[probe]]\nname = \"http\"\nprotocol = \"tcp\"\nport = 80\ntimeout = \"1s\"\n\
             [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
             {{ name = \"web1\", address = \"10.10.0.1\", host = \"172.16.0.101\" }},\n]\n"
        );
        fs::write(self.world.path("m.toml"), text).unwrap();
    }

    fn start(&self, more: &str) -> Process {
        let path = |name: &str| self.world.path(name).display().to_string();
        let environment = match more.contains("--state") {
            true => format!("env NOTIFY_SOCKET={} ", path("notify")),
            false => String::new(),
        };
        self.world.start(
            "m",
            &format!(
                "{environment}{} mux --config {} --status {} --io afxdp:eth0 --ring 1024 \
                 --announce vips {more} >>{} 2>>{}",
                env!("CARGO_BIN_EXE_slb"),
                path("m.toml"),
                path("m.sock"),
                // A successor has it too, and would keep a pipe open.
                path("m.out"),
                path("m.log")
            ),
        )
    }

    fn kept(&self, more: &str) -> Process {
        self.start(&format!(
            "--state {} {more}",
            self.world.path("state").display()
        ))
    }

    /// Waits for the end of a process, whose service goes on in another one.
    #[track_caller]
    fn ends(&self, process: Process) {
        process.finish();
        let said = fs::read_to_string(self.world.path("m.out")).unwrap();
        assert!(said.contains("received"), "{said}");
    }

    fn pid(&self) -> Option<u64> {
        let slb = env!("CARGO_BIN_EXE_slb");
        let socket = self.world.path("m.sock");
        let command = format!("{slb} status --socket {} --format json", socket.display());
        let output = self.world.command("m", &command).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        status["pid"].as_u64()
    }

    fn is_announced(&self) -> bool {
        let show = "ip address show dev vips up";
        let output = self.world.command("m", show).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        [VIP, VIP6]
            .iter()
            .all(|vip| shown.contains(&format!("peer {vip}/")))
    }

    fn pings(&self) -> bool {
        let ping = format!("ping -q -c 1 -W 1 {VIP}");
        let output = self.world.command("c", &ping).output().unwrap();
        output.status.success()
    }

    /// Records what the kernel says about links, addresses and routes.
    fn monitor(&self) -> Monitor {
        let file = self.world.path("monitor");
        let command = format!("ip monitor link address route >{}", file.display());
        let process = self.world.start("m", &command);
        sleep(Duration::from_millis(300));
        Monitor { process, file }
    }
}

struct Monitor {
    process: Process,
    file: PathBuf,
}

impl Monitor {
    /// The lines that say that something of the VIPs' interface is gone or down.
    fn withdrawn(self) -> Vec<String> {
        sleep(Duration::from_millis(300));
        drop(self.process);
        let said = fs::read_to_string(self.file).unwrap();
        let of_vips = said.lines().filter(|line| line.contains("vips"));
        let gone = of_vips.filter(|line| line.contains("Deleted") || line.contains("state DOWN"));
        gone.map(str::to_owned).collect()
    }
}

#[test]
#[ignore = "needs root"]
fn vips_stay_announced_while_another_process_takes_over() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let lab = Announced::new("ha");
    let mux = lab.kept("");
    wait_until(&lab.world, "the VIPs are announced", || lab.is_announced());
    wait_until(&lab.world, "the mux answers", || lab.pings());
    let index = || fs::read_to_string(lab.world.path("index")).unwrap();
    let note_index = || {
        let file = lab.world.path("index");
        let cat = format!("cat /sys/class/net/vips/ifindex >{}", file.display());
        lab.world.on("m", &cat);
        index()
    };
    let before = note_index();

    let monitor = lab.monitor();
    let next = lab.kept("--take-over");
    lab.ends(mux);
    wait_until(&lab.world, "the next one serves", || {
        lab.pid() == Some(next.0.id().into())
    });
    // All the time until its first round of probes is over, and beyond.
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        assert!(lab.is_announced(), "{}", log(&lab.world));
        sleep(Duration::from_millis(100));
    }
    assert!(lab.pings());
    assert_eq!(monitor.withdrawn(), [""; 0], "{}", log(&lab.world));
    assert_eq!(note_index(), before);

    // The interface is the new process's to follow, and goes with it.
    lab.world.on("m", "ip link set vips down");
    wait_until(&lab.world, "it is noticed", || {
        log(&lab.world).contains("vips was taken down")
    });
    lab.world.on("m", "ip link set vips up");
    wait_until(&lab.world, "they are announced again", || {
        lab.is_announced()
    });

    // A process that ends before the next one starts does withdraw them.
    let monitor = lab.monitor();
    next.signal("TERM");
    next.finish();
    let _last = lab.kept("");
    wait_until(&lab.world, "they are announced again", || {
        lab.is_announced()
    });
    assert!(!monitor.withdrawn().is_empty());
    assert_ne!(note_index(), before);
}

#[test]
#[ignore = "needs root"]
fn sigusr2_starts_the_program_again_in_the_same_service() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let lab = Announced::new("hs");
    let says = |what: &str| {
        wait_until(&lab.world, what, || log(&lab.world).contains(what));
    };
    let notified = UnixDatagram::bind(lab.world.path("notify")).unwrap();
    let patience = Some(Duration::from_secs(20));
    notified.set_read_timeout(patience).unwrap();
    let hear = || {
        let mut told = [0; 64];
        let len = notified
            .recv(&mut told)
            .unwrap_or_else(|error| panic!("{error}: {}", log(&lab.world)));
        String::from_utf8_lossy(&told[..len]).into_owned()
    };
    // Signs of life come all the time.
    let hear_more = || {
        loop {
            let told = hear();
            if told != "WATCHDOG=1" {
                return told;
            }
        }
    };
    let mux = lab.kept("");
    assert_eq!(hear_more(), "READY=1");
    wait_until(&lab.world, "the VIPs are announced", || lab.is_announced());

    // One that cannot start harms nobody.
    fs::write(lab.world.path("m.toml"), "[node]\nrole = \"hub\"\n").unwrap();
    mux.signal("USR2");
    says("the process that was started to take over ended");
    assert!(lab.pings() && lab.is_announced());
    lab.configure();
    sleep(Duration::from_secs(1));

    let monitor = lab.monitor();
    let old = u64::from(mux.0.id());
    mux.signal("USR2");
    // The service goes on in the new process, and systemd is told so by the old one.
    let told = hear_more();
    let pid: u64 = told
        .strip_prefix("MAINPID=")
        .unwrap_or_else(|| panic!("{told}"))
        .parse()
        .unwrap();
    assert_ne!(pid, old);
    lab.ends(mux);
    assert_eq!(hear_more(), "READY=1");
    assert_eq!(hear(), "WATCHDOG=1");
    wait_until(&lab.world, "the next one serves", || lab.pid() == Some(pid));
    assert!(lab.pings() && lab.is_announced());

    // So does the one after that, whose command line says already that it takes over.
    assert!(sh(&format!("kill -USR2 {pid}")));
    let told = hear_more();
    assert!(told.starts_with("MAINPID="), "{told}");
    assert_ne!(told, format!("MAINPID={pid}"));
    assert_eq!(hear_more(), "READY=1");
    wait_until(&lab.world, "the third one serves", || {
        lab.pid().is_some_and(|now| now != pid && now != old)
    });
    assert!(lab.pings() && lab.is_announced());
    assert_eq!(monitor.withdrawn(), [""; 0], "{}", log(&lab.world));

    let last = lab.pid().unwrap();
    assert!(sh(&format!("kill -TERM {last}")));
    assert_eq!(hear_more(), "STOPPING=1");
    wait_until(&lab.world, "it is over", || {
        !fs::exists(format!("/proc/{last}")).unwrap()
    });

    // Without state nothing can be handed over, and nothing happens. The interface was kept for the next process.
    for file in fs::read_dir(lab.world.path("state/bpf")).unwrap() {
        let path = file.unwrap().path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("mux"))
        {
            fs::remove_file(path).unwrap();
        }
    }
    let alone = lab.start("");
    wait_until(&lab.world, "it serves", || lab.pid().is_some());
    alone.signal("USR2");
    says("no process can take over from this one: expected --state DIR");
    assert_eq!(lab.pid(), Some(alone.0.id().into()));
}

/// A mux and a host agent over AF_XDP.
struct Node {
    site: Site,
}

impl Drop for Node {
    fn drop(&mut self) {
        for role in ["mux", "host"] {
            let bpf = self.state(role).join("bpf");
            sh(&format!("umount {} 2>/dev/null", bpf.display()));
        }
    }
}

impl Node {
    fn new() -> Self {
        let own = Self {
            site: Site::new(Io::AfXdp, "hk", (1, &[]), &[VIP, VIP6]),
        };
        let network = own.site.network();
        for (role, number) in [("mux", 11), ("host", 101)] {
            let bpf = own.state(role).join("bpf");
            fs::create_dir_all(&bpf).unwrap();
            assert!(sh(&format!("mount -t bpf bpf {}", bpf.display())));
            let mut text = format!(
                "[node]\nrole = \"{role}\"\nhash_seed = 7\n\
                 underlay = [\"172.{network}.0.{number}\", \"fd00:{network}::{number}\"]\n\
                 muxes = [\"172.{network}.0.11\", \"fd00:{network}::11\"]\n"
            );
            for (family, vip, dip, host) in [
                ("4", VIP, DIP, format!("172.{network}.0.101")),
                ("6", VIP6, DIP6, format!("fd00:{network}::101")),
            ] {
                text += &format!(
                    "[[frontend]]\nname = \"web{family}\"\naddress = \"{vip}\"\n\
                     [[pool]]\nname = \"vms{family}\"\nvni = 5001\n\
                     backends = [{{ name = \"vm1\", address = \"{dip}\", host = \"{host}\", \
                     mac = \"02:00:0a:0a:01:0b\" }}]\n\
                     [[rule]]\nname = \"http{family}\"\nfrontend = \"web{family}\"\n\
                     pool = \"vms{family}\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
                     backend_port = 8000\ndisable_outbound_snat = false\n"
                );
            }
            fs::write(own.site.world.path(&format!("{role}.toml")), text).unwrap();
        }
        own
    }

    fn state(&self, role: &str) -> PathBuf {
        self.site.world.path(&format!("state-{role}"))
    }

    fn start(&self, role: &str, keeps: bool) -> Process {
        let slb = env!("CARGO_BIN_EXE_slb");
        let path = |name: &str| self.site.world.path(&format!("{role}.{name}"));
        let state = match keeps {
            true => format!("--state {}", self.state(role).display()),
            false => String::new(),
        };
        let command = format!(
            "{slb} {role} --config {} {} --status {} {state} --log-level warn",
            path("toml").display(),
            self.site.devices(role, 1),
            path("sock").display(),
        );
        let process = self.site.world.start(role, &command);
        self.site.wait_until("it serves", || {
            let status = format!(
                "{slb} status --format json --socket {}",
                path("sock").display()
            );
            let output = self.site.world.command(role, &status).output().unwrap();
            output.status.success()
        });
        process
    }

    /// Returns true if a machine can open a connection.
    fn connects(&self, machine: &str, address: &str, port: u16) -> bool {
        let connect = format!(
            "python3 -c 'import socket; socket.create_connection((\"{address}\", {port}), 1)'"
        );
        let output = self.site.world.command(machine, &connect).output();
        output.is_ok_and(|output| output.status.success())
    }

    /// Has clients ask the VIPs, and the vm ask clients: by connections, datagrams and pings. No connection is made.
    fn ask(&self) {
        let script = "import socket, sys\n\
                      address, port = sys.argv[1], int(sys.argv[2])\n\
                      family = socket.AF_INET6 if \":\" in address else socket.AF_INET\n\
                      for _ in range(3): socket.socket(family, socket.SOCK_DGRAM).sendto(b\"x\", (address, port))\n\
                      try: socket.create_connection((address, port), 1)\n\
                      except OSError: sys.exit()\n\
                      print(\"connected\")\n";
        let path = self.site.world.path("ask.py");
        fs::write(&path, script).unwrap();
        let asked = [
            ("client", VIP, 80),
            ("client", VIP6, 80),
            ("vm1", CLIENT, 8000),
            ("vm1", CLIENT6, 8000),
        ];
        let asked = asked.map(|(machine, address, port)| {
            let ask = format!("python3 {} {address} {port}", path.display());
            let ping = format!("ping -q -c 2 -i 0.2 -W 1 {address}");
            let start = |command: &str| self.site.world.start(machine, command);
            (start(&ask), start(&ping))
        });
        for (ask, ping) in asked {
            assert_eq!(ask.output(), "");
            let _ = ping.output();
        }
    }

    fn interfaces(&self, role: &str) -> &'static [&'static str] {
        match role {
            "mux" => &["eth0"],
            _ => &["eth0", "to-vm1"],
        }
    }

    /// Returns the XDP mode of an interface, as `ip` shows it.
    fn xdp(&self, role: &str, interface: &str) -> String {
        let show = format!("ip link show dev {interface}");
        let shown = self.site.world.on(role, &show);
        let words = shown.split_whitespace();
        let xdp: Vec<&str> = words.filter(|word| word.contains("xdp")).collect();
        xdp.concat()
    }

    /// Returns the packets that a node's kernel sends under the balancer's addresses while all of
    /// these ask.
    fn leaks(&self, role: &str) -> String {
        let mac = self
            .site
            .world
            .on(role, "cat /sys/class/net/eth0/address")
            .trim()
            .to_owned();
        let of_vips = format!("host {VIP} or host {VIP6}");
        // Of a host, what a vm sent comes out under its own address; and the kernel knows no port 4789.
        let of_vms = "net 10.10.1.0/24 or net fd00:10:1::/64 or icmp[icmptype] = icmp-unreach or \
                      (icmp6 and ip6[40] = 1)";
        let filter = format!("ether src {mac} and ({of_vips} or {of_vms})");
        let file = self.site.world.path("leaks.pcap");
        let _ = fs::remove_file(&file);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.site.world.space("router")]);
        command.args(["tcpdump", "-U", "-n", "-i", role, "-w"]);
        command.arg(&file).arg(&filter);
        let tcpdump = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut tcpdump = Process(tcpdump.unwrap());
        self.site.wait_until("tcpdump listens", || {
            file.metadata().is_ok_and(|file| file.len() >= 24)
        });
        self.ask();
        sleep(Duration::from_millis(300));
        tcpdump.signal("INT");
        tcpdump.0.wait().unwrap();
        let file = file.display().to_string();
        let seen = Command::new("tcpdump").args(["-n", "-r", &file]).output();
        String::from_utf8_lossy(&seen.unwrap().stdout).into_owned()
    }
}

#[test]
#[ignore = "needs root"]
fn the_kernel_gets_nothing_of_the_balancers_when_no_process_serves() {
    if let Some(why) = lacking(&["ethtool", "tcpdump"]) {
        skip!("{why}");
    }
    let node = Node::new();
    let files = node.site.world.path("files");
    fs::create_dir_all(&files).unwrap();
    let serve = peer(&format!("files {} 8000", files.display()));
    let _servers = ["vm1", "client"].map(|machine| node.site.world.start(machine, &serve));
    for role in ["mux", "host"] {
        let other = if role == "mux" { "host" } else { "mux" };
        let other = node.start(other, false);
        for end in ["TERM", "KILL"] {
            let process = node.start(role, true);
            for vip in [VIP, VIP6] {
                node.site
                    .wait_until("the service answers", || node.connects("client", vip, 80));
            }
            process.signal(end);
            let _ = process.output();
            for interface in node.interfaces(role) {
                let xdp = node.xdp(role, interface);
                assert!(
                    xdp.contains("xdp") && !xdp.contains("generic"),
                    "{role} {interface}: {xdp:?}"
                );
            }
            assert_eq!(node.leaks(role), "", "{role} {end}");
            println!("{role}, {end}: nothing leaks");
        }
        // Who wants the interface back for good removes the files.
        for file in fs::read_dir(node.state(role).join("bpf")).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with(role) {
                fs::remove_file(path).unwrap();
            }
        }
        let is_back = || {
            let all = node.interfaces(role).iter();
            all.copied()
                .all(|interface| node.xdp(role, interface).is_empty())
        };
        node.site.wait_until("the interfaces are back", is_back);
        assert_ne!(node.leaks(role), "", "{role}: the kernel has its packets");
        // Without state they go back whenever the process ends.
        for end in ["TERM", "KILL"] {
            let process = node.start(role, false);
            assert!(!is_back());
            process.signal(end);
            let _ = process.output();
            node.site.wait_until("the interfaces are back", is_back);
        }
        assert_ne!(node.leaks(role), "", "{role}: the kernel has its packets");
        other.signal("TERM");
        other.finish();
    }
}
