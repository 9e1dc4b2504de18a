//! Queues that come and go, few open files, sockets that the kernel refuses, and a process that was stopped.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fmt::Write as _;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use common::world::{Process, World, lacking, log, ready, wait_until};

const VIP: &str = "20.20.20.100";

fn configuration(more: &str) -> String {
    format!(
        "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
         [[frontend]]\nname = \"web\"\naddress = \"{VIP}\"\n\
         [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\n\
         protocol = \"tcp\"\nfrontend_port = 80\n{more}"
    )
}

const ONE: &str = "[[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
    { name = \"web1\", address = \"10.10.0.1\", host = \"172.16.0.101\" },\n]\n";

/// A client and a mux on one link, each end with two queues.
fn lay(kind: &str) -> World {
    let world = World::new(kind, &["c", "m"]);
    world.plain_cable("c", "eth0", "m", "eth0", 1600);
    for machine in ["c", "m"] {
        world.on(machine, "ethtool -L eth0 rx 2 tx 2");
    }
    world.on("c", "ip address add 172.16.0.101/24 dev eth0");
    world.on("c", "ip route add 20.20.20.0/24 via 172.16.0.11");
    world.on("m", "ip address add 172.16.0.11/24 dev eth0");
    world.on("m", "ip route add default via 172.16.0.101");
    world
}

fn start(world: &World, before: &str, io: &str) -> Process {
    let path = |name: &str| world.path(name).display().to_string();
    world.start(
        "m",
        &format!(
            "{before} {} mux {} --socket {} --io {io} --ring 1024 --metrics 127.0.0.1:9100 2>>{}",
            env!("CARGO_BIN_EXE_slb"),
            path("m.toml"),
            path("m.sock"),
            path("m.log")
        ),
    )
}

/// Returns true if all pings of many sizes and identifiers, which the driver spreads over the
/// queues, are answered.
fn all_ping(world: &World) -> bool {
    let pings = format!(
        "sh -c 'for n in 1 2 3 4 5 6 7 8; do ping -q -c 1 -W 1 -s $((56 + n)) {VIP} >/dev/null || exit 1; done'"
    );
    world
        .command("c", &pings)
        .output()
        .unwrap()
        .status
        .success()
}

/// Has the mux's interface have so many queues; false where the kernel refuses.
fn set_queues(world: &World, count: u32) -> bool {
    let set = format!("ethtool -L eth0 rx {count} tx {count}");
    world.command("m", &set).output().unwrap().status.success()
}

#[test]
#[ignore = "needs root"]
fn queues_that_are_taken_away_or_added_are_noticed() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = lay("sq");
    fs::write(world.path("m.toml"), configuration(ONE)).unwrap();
    let mux = start(&world, "", "afxdp:eth0");
    wait_until(&world, "it answers", || all_ping(&world));
    // Linux refuses to take a queue that has an AF_XDP socket; where it does take it, the others serve.
    let is_taken = set_queues(&world, 1);
    wait_until(&world, "the others serve", || all_ping(&world));
    assert_eq!(ready(&world), "ready\n");
    if is_taken {
        wait_until(&world, "it is said", || {
            log(&world).contains("queues changed")
        });
        assert!(set_queues(&world, 2));
        sleep(Duration::from_secs(3));
        wait_until(&world, "both serve", || all_ping(&world));
    }
    mux.signal("TERM");
    assert!(mux.finish().contains("replied"));

    // One that comes later has no worker, which is said. Linux frees the sockets of a process a moment after
    // its end.
    wait_until(&world, "the queue is free", || set_queues(&world, 1));
    fs::write(world.path("m.log"), "").unwrap();
    let mux = start(&world, "", "afxdp:eth0");
    wait_until(&world, "it answers", || all_ping(&world));
    assert!(!log(&world).contains("have no worker"), "{}", log(&world));
    assert!(set_queues(&world, 2));
    wait_until(&world, "the queue is named", || {
        log(&world).contains("these queues have no worker") && log(&world).contains("queues=\"1\"")
    });
    assert!(set_queues(&world, 1));
    wait_until(&world, "it answers again", || all_ping(&world));
    mux.signal("TERM");
    assert!(mux.finish().contains("replied"));
}

#[test]
#[ignore = "needs root"]
fn few_open_files_change_no_verdict() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let mut world = lay("sf");
    world.serve("c");
    // A hundred that do not answer beside one that does.
    let mut backends =
        "{ name = \"good\", address = \"172.16.0.101\", host = \"172.16.0.101\" },\n".to_owned();
    for n in 1..=100 {
        let _ = writeln!(
            backends,
            "{{ name = \"silent{n}\", address = \"172.16.0.{}\", host = \"172.16.0.101\" }},",
            110 + n
        );
    }
    let text = configuration(&format!(
        "probe = \"tcp\"\n[[probe]]\nname = \"tcp\"\nprotocol = \"tcp\"\nport = 8080\n\
         interval = \"5s\"\ntimeout = \"2s\"\nthreshold = 1\n\
         [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n{backends}]\n"
    ));
    fs::write(world.path("m.toml"), text).unwrap();
    // The program raises its limit as far as it may: the hard limit is what it has.
    let mux = start(&world, "prlimit --nofile=64:72", "afxdp:eth0:0");
    let status = || {
        let slb = env!("CARGO_BIN_EXE_slb");
        let socket = world.path("m.sock").display().to_string();
        let said = format!("{slb} status --format json --socket {socket}");
        let output = world.command("m", &said).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default()
    };
    let states = || {
        let status = status();
        let backends = status["backends"].as_array().cloned().unwrap_or_default();
        let state = |one: &serde_json::Value| {
            let of = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
            (of("backend"), of("state"))
        };
        backends.iter().map(state).collect::<Vec<_>>()
    };
    wait_until(&world, "the silent ones are unhealthy", || {
        let states = states();
        states.len() == 101
            && states
                .iter()
                .filter(|(_, state)| state == "unhealthy")
                .count()
                == 100
    });
    for _ in 0..6 {
        let good = states().into_iter().find(|(name, _)| name == "good");
        let (_, state) = good.unwrap_or_else(|| panic!("{}", log(&world)));
        assert_eq!(state, "healthy", "{}", log(&world));
        assert_eq!(ready(&world), "ready\n");
        sleep(Duration::from_secs(1));
    }
    // The verdicts are old, which is this node's own doing: how many are late, by how much, and why.
    let late = status()["late_probes"].clone();
    assert!(
        late["targets"].as_u64() > Some(50),
        "{late}: {}",
        log(&world)
    );
    assert_eq!(late["of"], 101);
    assert!(late["seconds"].as_f64() > Some(2.5), "{late}");
    let why = "this process may have 72 files open, so at most 16 probes are out at once";
    assert!(late["why"].as_str().unwrap().contains(why), "{late}");
    let (slb, socket) = (env!("CARGO_BIN_EXE_slb"), world.path("m.sock"));
    let once = format!("{slb} status --once --socket {}", socket.display());
    let table = world.on("m", &once);
    assert!(table.contains(why), "{table}");
    let metrics = world.on("m", "curl -sS -m 2 http://127.0.0.1:9100/metrics");
    let late = metrics
        .lines()
        .find_map(|line| line.strip_prefix("slb_late_probes{} "));
    assert!(late.unwrap().parse::<f64>().unwrap() > 50.0, "{metrics}");
    let said = log(&world);
    let lines = said
        .lines()
        .filter(|line| line.contains("event=\"probes_late\""));
    let lines: Vec<&str> = lines.collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(
        lines[0].contains(why) && lines[0].contains("LimitNOFILE"),
        "{lines:?}"
    );
    let limits = fs::read_to_string(format!("/proc/{}/limits", mux.0.id())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let files: Vec<&str> = files.unwrap().split_whitespace().collect();
    assert_eq!(files[3..5], ["72", "72"], "{files:?}");
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
}

/// Runs a program whose IPv6 sockets the kernel refuses with an error, as it does where it has no IPv6, or systemd's
/// RestrictAddressFamilies leaves that out (EAFNOSUPPORT), or it has no memory for them (ENOMEM).
const WITHOUT_IPV6: &str = "import ctypes, os, platform, struct, sys
error = int(sys.argv[1])
arch, socket = {'x86_64': (0xc000003e, 41), 'aarch64': (0xc00000b7, 198)}[platform.machine()]
# seccomp(2): the architecture, the number of the call, its first argument.
load, equal, end, AF_INET6 = 0x20, 0x15, 0x06, 10
program = b''.join(struct.pack('HBBI', *one) for one in [
    (load, 0, 0, 4), (equal, 0, 5, arch), (load, 0, 0, 0), (equal, 0, 3, socket), (load, 0, 0, 16),
    (equal, 0, 1, AF_INET6), (end, 0, 0, 0x50000 | error), (end, 0, 0, 0x7fff0000)])
buffer = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack('H6xP', len(program) // 8, ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter) == 0, ctypes.get_errno()
os.execv(sys.argv[2], sys.argv[2:])
";

#[test]
#[ignore = "needs root"]
fn sockets_that_the_kernel_refuses_change_no_verdict() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let mut world = lay("sr");
    world.serve("c");
    let text = configuration(
        "probe = \"tcp\"\n[[probe]]\nname = \"tcp\"\nprotocol = \"tcp\"\nport = 8080\n\
         interval = \"5s\"\ntimeout = \"1s\"\nthreshold = 1\n\
         [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
         { name = \"good\", address = \"172.16.0.101\", host = \"172.16.0.101\" },\n\
         { name = \"silent\", address = \"172.16.0.199\", host = \"172.16.0.101\" },\n]\n\
         [[frontend]]\nname = \"web6\"\naddress = \"2001:db8:20::100\"\n\
         [[pool]]\nname = \"six\"\nvni = 5001\nbackends = [\n\
         { name = \"unasked\", address = \"fd00:10::1\", host = \"172.16.0.101\" },\n]\n\
         [[rule]]\nname = \"http6\"\nfrontend = \"web6\"\npool = \"six\"\nprobe = \"tcp\"\n\
         protocol = \"tcp\"\nfrontend_port = 80\n",
    );
    fs::write(world.path("m.toml"), text).unwrap();
    fs::write(world.path("without.py"), WITHOUT_IPV6).unwrap();
    for (error, why) in [
        (97, "Address family not supported by protocol"),
        (12, "Cannot allocate memory"),
    ] {
        fs::write(world.path("m.log"), "").unwrap();
        let before = format!("python3 {} {error}", world.path("without.py").display());
        let mux = start(&world, &before, "afxdp:eth0:0");
        wait_until(&world, "it is said once, as the node's own trouble", || {
            let log = log(&world);
            log.contains("event=\"probes_not_sent\"") && log.contains(why)
        });
        let metrics = || {
            let curl = "curl -sS -m 2 http://127.0.0.1:9100/metrics";
            let output = world.command("m", curl).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let value = |start: &str, end: &str| {
            let page = metrics();
            let mut lines = page.lines();
            let line = lines.find(|line| line.starts_with(start) && line.contains(end));
            let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
            value.unwrap_or(-1.0)
        };
        let up = |name: &str| value("slb_backend_up{", &format!("backend=\"{name}\""));
        // The others are judged, and it is not, however often it could not be asked.
        wait_until(&world, "the silent one is unhealthy", || {
            up("silent") == 0.0
        });
        let unasked = "backend=\"unasked\",probe=\"tcp\",result=\"not_sent\"";
        wait_until(&world, "it was to be asked twice", || {
            value("slb_probes_total{", unasked) >= 2.0
        });
        assert_eq!((up("good"), up("unasked")), (1.0, 1.0), "{}", log(&world));
        assert_eq!(ready(&world), "ready\n");
        mux.signal("TERM");
        assert!(mux.finish().contains("flows:"));
    }
}

#[test]
#[ignore = "needs root"]
fn a_process_that_was_stopped_is_ready_again_when_it_moves() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = lay("ss");
    fs::write(world.path("m.toml"), configuration(ONE)).unwrap();
    let mux = start(&world, "", "afxdp:eth0");
    wait_until(&world, "it is ready", || ready(&world) == "ready\n");
    mux.signal("STOP");
    sleep(Duration::from_secs(3));
    // Nobody answers meanwhile.
    assert_eq!(ready(&world), "");
    mux.signal("CONT");
    wait_until(&world, "it is ready again", || ready(&world) == "ready\n");
    wait_until(&world, "the log says how long", || {
        log(&world).contains("this process was stalled")
    });
    wait_until(&world, "it answers", || all_ping(&world));
    mux.signal("TERM");
    assert!(mux.finish().contains("replied"));
}
