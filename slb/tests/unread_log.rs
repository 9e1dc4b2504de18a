//! Standard error and standard output that are not read: every role serves, gives systemd its signs of life, and ends
//! when it is asked to.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::world::{Process, World, lacking};

const BALANCED: &str = "[[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\nprotocol = \"tcp\"\nfrontend_port = 80\n";

/// A pipe that takes no more bytes.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    // What one thread cannot write, the pipe does not hold.
    let mut copy = writer.try_clone().unwrap();
    let filler = thread::spawn(move || {
        let _ = copy.write_all(&vec![b'x'; 1 << 20]);
    });
    let begin = Instant::now();
    while !filler.is_finished() && begin.elapsed() < Duration::from_millis(300) {
        thread::sleep(Duration::from_millis(10));
    }
    assert!(!filler.is_finished(), "it holds less than that");
    let _ = writer.flush();
    (reader, writer)
}

fn file(role: &str) -> String {
    let (node, port, pool) = match role {
        "mux" | "host" => (
            "underlay = \"172.16.0.11\"\n",
            "",
            "vni = 5001\nbackends = [ { name = \"a\", address = \"10.10.0.1\", host = \"172.16.0.11\", \
             mac = \"02:00:00:00:00:01\", port = 1 } ]\n",
        ),
        _ => (
            "",
            "[[port]]\nname = \"clients\"\ntype = \"frontend\"\n[[port]]\nname = \"servers\"\ntype = \"backend\"\n",
            "backends = [ { name = \"a\", address = \"10.10.0.1\" } ]\n",
        ),
    };
    format!("[node]\nrole = \"{role}\"\n{node}{port}{BALANCED}[[pool]]\nname = \"webs\"\n{pool}")
}

#[test]
#[ignore = "needs root"]
fn a_log_that_is_not_read_keeps_no_role_from_serving_and_ending() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    for role in ["mux", "host", "proxy"] {
        let world = World::new("ul", &["m"]);
        for command in [
            "ip link add eth0 type veth peer name eth1",
            "ip link set eth0 up",
            "ip link set eth1 up",
            "ip address add 172.16.0.11/24 dev eth0",
        ] {
            world.on("m", command);
        }
        let path = |name: &str| world.path(name).display().to_string();
        fs::write(path("m.toml"), file(role)).unwrap();
        let notified = UnixDatagram::bind(path("notify")).unwrap();
        notified
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let io = match role {
            "mux" => "--io tun:slb0",
            "host" => "--io 0=tun:slb0 --io 1=tun:slb1",
            _ => "--io clients=tun:slb0 --io servers=tun:slb1",
        };
        let (errors, full) = full_pipe();
        let mut command = world.command(
            "m",
            &format!(
                "env NOTIFY_SOCKET={} {} {role} {} --socket {} {io} --log-level debug --metrics 127.0.0.1:9100",
                path("notify"),
                env!("CARGO_BIN_EXE_slb"),
                path("m.toml"),
                path("m.sock"),
            ),
        );
        // Both are one pipe, as with `2>&1 | less`.
        command.stdout(full.try_clone().unwrap()).stderr(full);
        let mut process = Process(command.spawn().unwrap());
        drop(command);
        let hear = || {
            let mut told = [0; 64];
            let len = notified.recv(&mut told);
            let len = len.unwrap_or_else(|error| panic!("{role}: {error}"));
            String::from_utf8_lossy(&told[..len]).into_owned()
        };
        assert_eq!(hear(), "READY=1", "{role}");
        for _ in 0..3 {
            assert_eq!(hear(), "WATCHDOG=1", "{role}");
        }
        let status = Command::new(env!("CARGO_BIN_EXE_slb"))
            .args([
                "status",
                "--once",
                "--format",
                "json",
                "--socket",
                &path("m.sock"),
            ])
            .output()
            .unwrap();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(status["role"], role, "{status}");
        let metrics = world.on("m", "curl -sS -m 5 http://127.0.0.1:9100/metrics");
        assert!(
            metrics.contains("slb_log_lines_lost_total{} 0"),
            "{metrics}"
        );
        // Files that are none are a storm of lines.
        fs::write(path("m.toml"), "[node]\nrole = \"hub\"\n").unwrap();
        for _ in 0..20 {
            process.signal("HUP");
            thread::sleep(Duration::from_millis(50));
        }
        while hear() != "WATCHDOG=1" {}
        let begin = Instant::now();
        process.signal("TERM");
        while hear() != "STOPPING=1" {}
        let ended = loop {
            if let Some(status) = process.0.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "{role}");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(ended.success(), "{role}: {ended}");
        drop(errors);
    }
}
