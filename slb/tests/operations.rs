//! Events in the life of a mux, under requests and downloads: nothing fails that need not, and each
//! event leaves a line that says what happened.
//!
//! In the data centre of [`common::lab`], with two muxes and two hosts, all of it happens to mux1: its file
//! changes, its interface is cut, deleted and made again, it loses its address, routes flap, clients flood it, it
//! is stopped for a while, and killed and started again.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use common::lab::{Change, Io, Lab, NO_CHANGE, SLOW, TOOLS, VIP, VIP6};
use common::world::{Process, World, lacking};

const DOWNLOADS: usize = 20;

const BACKENDS: Change = Change {
    backends: &[(1, 1), (2, 1)],
    ..NO_CHANGE
};

/// Starts mux1; its log goes to `mux1.log`.
fn start_mux(lab: &Lab) -> Process {
    let config = lab.configure("mux", 1, BACKENDS);
    let io = match lab.io {
        Io::AfXdp => "--io afxdp:eth0 --announce vips",
        Io::Tun => "--io tun:slb0:2",
    };
    lab.world.start(
        "mux1",
        &format!(
            "{} mux {config} {io} --status {} --cpus 1 2>>{}",
            env!("CARGO_BIN_EXE_slb"),
            lab.socket("mux1"),
            lab.world.path("mux1.log").display()
        ),
    )
}

fn log(lab: &Lab) -> String {
    fs::read_to_string(lab.world.path("mux1.log")).unwrap_or_default()
}

/// Waits until mux1 has logged a line with `what` since the log had `before` bytes.
#[track_caller]
fn says(lab: &Lab, before: usize, what: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    while !log(lab)[before..].contains(what) {
        assert!(Instant::now() < end, "{what}: {}", &log(lab)[before..]);
        sleep(Duration::from_millis(50));
    }
}

/// Addresses and routes of mux1 on the fabric.
fn lay_addresses(lab: &Lab) {
    lab.on(
        "mux1",
        &[
            "ip link set eth0 up",
            "ip address replace 172.16.0.11/24 dev eth0",
            "ip address replace fd00:16::11/64 dev eth0",
            "ip route replace default via 172.16.0.1",
            "ip route replace default via fd00:16::1",
        ],
    );
}

/// The TUN device of mux1, and what is routed into it.
fn lay_tun(lab: &Lab) {
    lab.on(
        "mux1",
        &[
            "ip link set slb0 mtu 1600 up",
            &format!("ip route replace {VIP}/32 dev slb0"),
            &format!("ip -6 route replace {VIP6}/128 dev slb0"),
            "ip route replace 172.17.0.11/32 dev slb0",
            "ip -6 route replace fd00:17::11/128 dev slb0",
        ],
    );
}

/// Requests by several clients until the end; what failed of them.
struct Requests {
    ends: AtomicBool,
    count: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Requests {
    fn ask(&self, world: &World, number: usize) {
        let vip = [VIP.to_owned(), format!("[{VIP6}]")];
        while !self.ends.load(Ordering::Relaxed) {
            let count = self.count.fetch_add(1, Ordering::Relaxed);
            let vip = &vip[count % 2];
            // A SYN that is lost is sent again after 1, 3 and 7 seconds.
            let curl = format!("curl -sS -m 12 http://{vip}/");
            let output = world.command("client", &curl).output().unwrap();
            if !output.stdout.starts_with(b"vm") {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                self.failed
                    .lock()
                    .unwrap()
                    .push(format!("client {number}, {vip}: {said}"));
            }
            sleep(Duration::from_millis(30));
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

/// Does something while downloads run: all of them are whole in the end.
#[track_caller]
fn under_downloads(lab: &Lab, event: impl FnOnce()) {
    let downloads = lab.world.start(
        "client",
        &format!(
            "curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max {DOWNLOADS} -m 60 -o /dev/null \
             -w '%{{http_code}} %{{size_download}}\\n' 'http://{VIP}/slow?n=[1-{DOWNLOADS}]'"
        ),
    );
    sleep(Duration::from_millis(700));
    event();
    let said = downloads.finish();
    let whole = format!("200 {SLOW}");
    let complete = said.lines().filter(|line| **line == whole).count();
    assert_eq!(complete, DOWNLOADS, "{said}{}", log(lab));
}

fn a_life(io: Io) {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    let mut lab = Lab::new(io, (2, 2));
    // A bridge has the lowest MAC address of its ports, unless it is given one; and mux1's cable is replaced.
    lab.world.on(
        "router",
        "sh -c 'ip link set fabric address $(cat /sys/class/net/fabric/address)'",
    );
    lab.start_all(BACKENDS);
    let mux = lab.muxes.remove(&1).unwrap();
    mux.signal("TERM");
    mux.finish();
    let mut mux = start_mux(&lab);
    lab.wait_for_paths(2);
    let device = match io {
        Io::AfXdp => "eth0",
        Io::Tun => "slb0",
    };
    // While nobody takes the VIPs' packets, the kernel would send them back to the router.
    lab.on(
        "mux1",
        &[
            &format!("ip route add blackhole {VIP}/32 metric 9999"),
            &format!("ip -6 route add blackhole {VIP6}/128 metric 9999"),
        ],
    );
    let requests = Requests {
        ends: AtomicBool::new(false),
        count: AtomicUsize::new(0),
        failed: Mutex::new(Vec::new()),
    };
    thread::scope(|scope| {
        let _end = End(&requests);
        for number in 0..3 {
            let (requests, world) = (&requests, &lab.world);
            scope.spawn(move || requests.ask(world, number));
        }
        let well = |what: &str| {
            let failed = requests.failed.lock().unwrap().clone();
            assert!(failed.is_empty(), "{what}: {failed:?}\n{}", log(&lab));
        };

        // Another weight, and back; and a file that is none.
        under_downloads(&lab, || {
            let before = log(&lab).len();
            lab.configure(
                "mux",
                1,
                Change {
                    backends: &[(1, 1), (2, 3)],
                    ..BACKENDS
                },
            );
            mux.signal("HUP");
            says(&lab, before, "configuration in place");
            let before = log(&lab).len();
            fs::write(lab.world.path("mux1.toml"), "[node]\nrole = \"hub\"\n").unwrap();
            mux.signal("HUP");
            says(&lab, before, "the configuration is unchanged: ");
            lab.configure("mux", 1, BACKENDS);
            mux.signal("HUP");
            says(&lab, before, "configuration in place");
        });
        well("its file changes");

        // The device is cut, and mended.
        under_downloads(&lab, || {
            let before = log(&lab).len();
            lab.on("mux1", &[&format!("ip link set {device} down")]);
            says(
                &lab,
                before,
                "interface down or without carrier: no packets are received",
            );
            lab.on("mux1", &[&format!("ip link set {device} up")]);
            match io {
                Io::AfXdp => lay_addresses(&lab),
                Io::Tun => lay_tun(&lab),
            }
            says(&lab, before, "ready again");
        });
        lab.wait_for_paths(2);
        well("its device is cut");

        // It is deleted, and made again.
        under_downloads(&lab, || {
            let before = log(&lab).len();
            let mac = lab.world.on("mux1", "cat /sys/class/net/eth0/address");
            lab.on("mux1", &[&format!("ip link del {device}")]);
            says(
                &lab,
                before,
                "interface removed: no packets are received until an interface of this name is back",
            );
            match io {
                Io::AfXdp => {
                    lab.world
                        .plain_cable("mux1", "eth0", "router", "mux1", 1600);
                    lab.on("router", &["ip link set mux1 master fabric"]);
                    // The card is the same after its driver was loaded anew.
                    lab.on(
                        "mux1",
                        &[&format!("ip link set eth0 address {}", mac.trim())],
                    );
                    lay_addresses(&lab);
                }
                Io::Tun => {
                    lab.on("mux1", &["ip tuntap add dev slb0 mode tun multi_queue"]);
                    lay_tun(&lab);
                }
            }
            says(&lab, before, "back: reopening it");
            says(&lab, before, "ready again");
        });
        lab.wait_for_paths(2);
        well("its device is deleted and made again");

        // Over AF_XDP the node needs its own address to be there.
        if io == Io::AfXdp {
            under_downloads(&lab, || {
                let before = log(&lab).len();
                lab.on("mux1", &["ip address del 172.16.0.11/24 dev eth0"]);
                says(
                    &lab,
                    before,
                    "underlay 172.16.0.11 is no address of this machine (ip address add)",
                );
                lay_addresses(&lab);
                says(&lab, before, "ready again");
            });
            lab.wait_for_paths(2);
            well("its address is taken away");
        }

        // Hundreds of changes of a route to a host are a few compilations and lines.
        under_downloads(&lab, || {
            let (before, begin) = (log(&lab).len(), Instant::now());
            let flap = "sh -c 'for n in $(seq 100); do ip route replace 172.16.0.102/32 via 172.16.0.1; \
                        ip route del 172.16.0.102/32; done'";
            lab.world.on("mux1", flap);
            let took = begin.elapsed().as_millis() as usize;
            sleep(Duration::from_millis(600));
            let lines = log(&lab)[before..].matches("next hops changed").count();
            assert!(lines <= took / 250 + 3, "{lines} in {took} ms");
        });
        well("routes flap");

        // SYNs of thousands of ports that nobody goes on with.
        under_downloads(&lab, || {
            let flood = "import socket, struct, time\n\
                         s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)\n\
                         own, to = socket.inet_aton(\"198.51.100.10\"), socket.inet_aton(\"20.20.20.100\")\n\
                         def sum(data):\n \
                         n = 0\n \
                         for at in range(0, len(data), 2): n += data[at] << 8 | data[at + 1]\n \
                         n = (n & 0xffff) + (n >> 16)\n \
                         return ~(n + (n >> 16)) & 0xffff\n\
                         end, port = time.time() + 3, 0\n\
                         while time.time() < end:\n \
                         port = (port + 1) % 30000\n \
                         head = lambda c: struct.pack(\"!HHIIBBHHH\", 1024 + port, 80, port, 0, 80, 2, 1024, c, 0)\n \
                         pseudo = own + to + struct.pack(\"!HH\", 6, 20)\n \
                         s.sendto(head(sum(pseudo + head(0))), (\"20.20.20.100\", 0))\n";
            fs::write(lab.world.path("flood.py"), flood).unwrap();
            let script = lab.world.path("flood.py").display().to_string();
            lab.world.on("client", &format!("python3 {script}"));
        });
        well("a flood");

        // The process is stopped for a while.
        under_downloads(&lab, || {
            let before = log(&lab).len();
            mux.signal("STOP");
            sleep(Duration::from_secs(4));
            mux.signal("CONT");
            says(&lab, before, "this process was stalled");
        });
        lab.wait_for_paths(2);
        well("it is stopped");

        // It dies, and another one takes its place.
        under_downloads(&lab, || {
            let before = log(&lab).len();
            mux.signal("KILL");
            lab.wait_for_paths(1);
            mux = start_mux(&lab);
            says(&lab, before, " running ");
        });
        lab.wait_for_paths(2);
        well("it is killed and started again");
    });
    let failed = requests.failed.into_inner().unwrap();
    let count = requests.count.into_inner();
    assert!(failed.is_empty() && count > 200, "{count}: {failed:?}");
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
}

#[test]
#[ignore = "needs root"]
fn over_afxdp() {
    a_life(Io::AfXdp);
}

#[test]
#[ignore = "needs root"]
fn over_tun() {
    a_life(Io::Tun);
}
