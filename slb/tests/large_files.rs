//! Files that are larger than any configuration, and what goes on while one is read.

use crate::common;

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{Process, World, lacking, log, wait_until};
use slb_control::config::MOST_BACKENDS;

#[test]
fn a_file_that_is_too_large_is_refused_without_being_read_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.toml");
    // Sparse: a terabyte.
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let checked = Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_slb"), "check"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(checked.status.code(), Some(2), "{said}");
    assert!(
        said.ends_with(":1: expected a file of at most 16777216 bytes, got more\n"),
        "{said}"
    );
}

#[test]
fn more_backends_than_can_be_compiled_in_time_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.toml");
    fs::write(&path, configuration(MOST_BACKENDS + 1)).unwrap();
    let checked = Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(["check", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(checked.status.code(), Some(2), "{said}");
    assert!(
        said.ends_with(
            ": pool \"p65\": expected at most 65536 backends in all pools together, got 65537\n"
        ),
        "{said}"
    );
}

/// A mux with so many backends, in pools of a thousand, on as many hosts.
fn configuration(backends: usize) -> String {
    let mut text = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\nflows = 1000\n\
                    [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
                    [[probe]]\nname = \"tcp\"\nprotocol = \"tcp\"\nport = 8080\n\
                    interval = \"5s\"\ntimeout = \"1s\"\nthreshold = 1\n\
                    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\nprobe = \"tcp\"\n\
                    protocol = \"tcp\"\nfrontend_port = 80\n\
                    [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
                    { name = \"web1\", address = \"10.10.0.1\", host = \"172.16.0.101\" },\n\
                    { name = \"web2\", address = \"10.10.0.2\", host = \"172.18.0.2\" },\n]\n"
        .to_owned();
    let rest = backends.saturating_sub(2);
    for first in (0..rest).step_by(1000) {
        let _ = writeln!(
            text,
            "[[pool]]\nname = \"p{}\"\nvni = 5002\nbackends = [",
            first / 1000
        );
        for n in first..rest.min(first + 1000) {
            let (low, middle) = (n & 255, n >> 8 & 255);
            let _ = writeln!(
                text,
                "{{ name = \"b{n}\", address = \"10.{}.{middle}.{low}\", host = \"172.17.{middle}.{low}\" }},",
                100 + (n >> 16),
            );
        }
        text += "]\n";
    }
    text
}

/// A mux and the machine that all hosts and backends are on.
struct Fabric {
    world: World,
}

impl Fabric {
    fn new(tag: &str) -> Self {
        let mut world = World::new(tag, &["m", "h"]);
        world.plain_cable("m", "eth0", "h", "eth0", 1500);
        world.on("m", "ip address add 172.16.0.11/24 dev eth0");
        world.on("h", "ip address add 172.16.0.101/24 dev eth0");
        for address in ["10.10.0.1", "10.10.0.2"] {
            world.on("h", &format!("ip address add {address}/32 dev lo"));
        }
        for network in ["172.17.0.0/16", "172.18.0.0/16", "10.10.0.0/16"] {
            world.on("m", &format!("ip route add {network} via 172.16.0.101"));
        }
        world.serve("h");
        Self { world }
    }

    fn write(&self, backends: usize) {
        fs::write(self.world.path("m.new"), configuration(backends)).unwrap();
        fs::rename(self.world.path("m.new"), self.world.path("m.toml")).unwrap();
    }

    fn start(&self) -> Process {
        let path = |name: &str| self.world.path(name).display().to_string();
        let mux = self.world.start(
            "m",
            &format!(
                "{} mux {} --io afxdp:eth0 --ring 1024 --status {} 2>>{}",
                env!("CARGO_BIN_EXE_slb"),
                path("m.toml"),
                path("m.sock"),
                path("m.log")
            ),
        );
        self.wait_for("running", 0, Duration::from_secs(20));
        mux
    }

    fn log(&self) -> String {
        fs::read_to_string(self.world.path("m.log")).unwrap_or_default()
    }

    /// Counts the lines of the log with a text.
    fn count(&self, line: &str) -> usize {
        self.log().matches(line).count()
    }

    /// Waits until something was logged more often than it was before; gives how long that took.
    #[track_caller]
    fn wait_for(&self, line: &str, before: usize, most: Duration) -> Duration {
        let begin = Instant::now();
        while self.count(line) <= before {
            assert!(begin.elapsed() < most, "{line}: {}", self.log());
            sleep(Duration::from_millis(20));
        }
        begin.elapsed()
    }
}

/// A signal for a reload that comes while the first file is still being read is heeded after that, and ends nothing.
#[test]
#[ignore = "needs root"]
fn a_process_that_is_asked_to_reload_while_it_starts_starts() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    a_file_replaced_while_a_mux_starts_is_read("ls", Some("HUP"));
}

/// A file that is replaced while the first version is still being read is a later version.
#[test]
#[ignore = "needs root"]
fn a_file_that_changes_while_a_process_starts_is_read_again() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    a_file_replaced_while_a_mux_starts_is_read("lv", None);
}

fn a_file_replaced_while_a_mux_starts_is_read(kind: &str, signal: Option<&str>) {
    let world = World::new(kind, &["m"]);
    fs::write(world.path("m.toml"), configuration(MOST_BACKENDS)).unwrap();
    let path = |name: &str| world.path(name).display().to_string();
    let mux = world.start(
        "m",
        &format!(
            "{} mux {} --io tun:slb0 --status {} 2>>{}",
            env!("CARGO_BIN_EXE_slb"),
            path("m.toml"),
            path("m.sock"),
            path("m.log")
        ),
    );
    let comm = format!("/proc/{}/comm", mux.0.id());
    wait_until(&world, "the program is there", || {
        fs::read_to_string(&comm).is_ok_and(|comm| comm.trim() == "slb")
    });
    sleep(Duration::from_millis(300));
    assert!(!log(&world).contains("running"), "{}", log(&world));
    fs::write(world.path("m.new"), configuration(2)).unwrap();
    fs::rename(world.path("m.new"), world.path("m.toml")).unwrap();
    if let Some(signal) = signal {
        mux.signal(signal);
    }
    wait_until(&world, "it runs", || log(&world).contains("running"));
    wait_until(&world, "it reloads", || {
        log(&world).contains("configuration in place")
    });
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
}

/// While files of the largest size are read and compiled one after the other, a backend that falls silent, a
/// route that goes and a signal are heeded as soon as with a small file.
#[test]
#[ignore = "needs root"]
fn signals_probes_and_next_hops_go_on_while_a_large_file_is_read_and_compiled() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let fabric = Fabric::new("lf");
    fabric.write(2);
    let mux = fabric.start();
    let (world, in_place) = (&fabric.world, "configuration in place");
    for round in 0..2 {
        fabric.write(MOST_BACKENDS);
        mux.signal("HUP");
        // Somewhere in the reading, and then somewhere in the compiling.
        sleep(Duration::from_millis(500 + 2000 * round));
        let (gone, back) = (
            fabric.count("no route to 172.18.0.2"),
            fabric.count("172.18.0.2 is reachable again"),
        );
        world.on("m", "ip route del 172.18.0.0/16");
        fabric.wait_for("no route to 172.18.0.2", gone, Duration::from_secs(20));
        world.on("m", "ip route add 172.18.0.0/16 via 172.16.0.101");
        fabric.wait_for(
            "172.18.0.2 is reachable again",
            back,
            Duration::from_secs(20),
        );
        mux.signal("HUP");
        let (sick, well) = (fabric.count(" unhealthy"), fabric.count(" healthy"));
        world.on("h", "ip route add blackhole 172.16.0.11");
        fabric.wait_for(" unhealthy", sick, Duration::from_secs(8));
        world.on("h", "ip route del blackhole 172.16.0.11");
        fabric.wait_for(" healthy", well, Duration::from_secs(8));
        fabric.wait_for(in_place, round as usize, Duration::from_secs(120));
    }
    assert_eq!(fabric.count("stalled"), 0, "{}", fabric.log());
    let before = fabric.count(in_place);
    mux.signal("HUP");
    sleep(Duration::from_millis(300));
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
    assert_eq!(fabric.count(in_place), before, "it was not in place yet");
}
