//! From one process to the next: what is announced stays announced, and SIGUSR2 starts the program again in the same
//! service.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

#[macro_use]
mod common;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::sh;
use common::world::{Process, World, lacking, log, wait_until};

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
    says("the process that was to take over ended");
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
