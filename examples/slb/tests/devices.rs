//! The running program and what becomes of its devices and its clients.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

#[macro_use]
mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{Process, World, lacking};

/// A mux with a rule and a backend.
fn mux_configuration() -> String {
    "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
     [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
     [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\n\
     protocol = \"tcp\"\nfrontend_port = 80\n\
     [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
     { name = \"web1\", address = \"10.10.0.1\", host = \"172.16.0.101\" },\n]\n"
        .to_owned()
}

/// Starts a mux on a machine; its log goes to `m.log`, and its status is at `m.sock`.
fn start_mux(world: &World, machine: &str, options: &str) -> Process {
    let slb = env!("CARGO_BIN_EXE_slb");
    let path = |name: &str| world.path(name).display().to_string();
    let (config, socket, log) = (path("m.toml"), path("m.sock"), path("m.log"));
    world.start(
        machine,
        &format!("{slb} mux --config {config} --status {socket} {options} 2>>{log}"),
    )
}

/// Waits until something is so.
#[track_caller]
fn wait_until(world: &World, what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        let log = fs::read_to_string(world.path("m.log")).unwrap_or_default();
        assert!(Instant::now() < end, "{what}: {log}");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn slow_clients_keep_nobody_else_waiting() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let world = World::new("ds", &["m"]);
    fs::write(world.path("m.toml"), mux_configuration()).unwrap();
    let socket = world.path("m.sock");
    let mux = start_mux(&world, "m", "--io tun:slb0 --metrics 127.0.0.1:9100");
    // Whoever sees the socket's name finds it listening, and with its mode.
    let seen = loop {
        if let Ok(metadata) = fs::symlink_metadata(&socket) {
            break metadata;
        }
    };
    assert!(seen.file_type().is_socket());
    assert_eq!(seen.permissions().mode() & 0o777, 0o600);
    let mut held: Vec<UnixStream> = vec![UnixStream::connect(&socket).unwrap()];

    // Three hundred that send half a request, and come again when they are cut off.
    let slow = "import select, socket\n\
                every = select.poll()\nopen = {}\n\
                def begin():\n s = socket.create_connection((\"127.0.0.1\", 9100))\n \
                open[s.fileno()] = s\n every.register(s, select.POLLIN)\n \
                try: s.sendall(b\"GET /metrics HTTP/1.1\\r\\nHost: x\")\n \
                except OSError: pass\n\
                for n in range(300): begin()\n\
                while True:\n for number, event in every.poll():\n  \
                every.unregister(number)\n  open.pop(number).close()\n  begin()\n";
    fs::write(world.path("slow.py"), slow).unwrap();
    let answers = |path: &str| {
        let curl = format!("curl -sS -m 2 http://127.0.0.1:9100/{path}");
        let output = world.command("m", &curl).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    wait_until(&world, "metrics are there", || {
        answers("healthz") == "well\n"
    });
    let _slow = world.start(
        "m",
        &format!("python3 {} 2>/dev/null", world.path("slow.py").display()),
    );
    sleep(Duration::from_millis(700));
    for turn in 0..20 {
        assert_eq!(answers("healthz"), "well\n", "{turn}");
    }
    assert!(answers("metrics").contains("slb_uptime_seconds"));

    // As many again that connect to the status socket, and do not read.
    held.extend((0..300).map(|_| UnixStream::connect(&socket).unwrap()));
    let begin = Instant::now();
    let slb = env!("CARGO_BIN_EXE_slb");
    let status = format!("{slb} status --once --socket {}", socket.display());
    assert!(world.on("m", &status).contains("slb"));
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    drop(held);
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
    assert!(fs::symlink_metadata(&socket).is_err());
}
