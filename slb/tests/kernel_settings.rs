//! Requirements of the program on the kernel: addresses, settings of devices, XDP in drivers,
//! checksums.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;

use common::world::{Process, World, lacking, log, ready, wait_until};

fn configuration() -> String {
    "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
     [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
     [[rule]]\nname = \"dns\"\nfrontend = \"web\"\npool = \"webs\"\n\
     protocol = \"udp\"\nfrontend_port = 53\n\
     [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
     { name = \"web1\", address = \"10.10.0.1\", host = \"172.16.0.101\" },\n]\n"
        .to_owned()
}

fn start(world: &World, options: &str) -> Process {
    start_with(world, &configuration(), options)
}

fn start_with(world: &World, configuration: &str, options: &str) -> Process {
    fs::write(world.path("m.toml"), configuration).unwrap();
    let path = |name: &str| world.path(name).display().to_string();
    let (config, socket, log) = (path("m.toml"), path("m.sock"), path("m.log"));
    let slb = env!("CARGO_BIN_EXE_slb");
    world.start(
        "m",
        &format!(
            "{slb} mux {config} --status {socket} --metrics 127.0.0.1:9100 {options} 2>>{log}"
        ),
    )
}

#[test]
#[ignore = "needs root"]
fn an_underlay_address_that_is_taken_away_withdraws_the_vips() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("ku", &["c", "m"]);
    world.plain_cable("c", "eth0", "m", "eth0", 1600);
    world.on("c", "ip address add 172.16.0.101/24 dev eth0");
    // An address of its own, but not the one that the configuration has.
    world.on("m", "ip address add 172.16.0.12/24 dev eth0");
    world.on("m", "ip route add default via 172.16.0.101");
    let _mux = start(&world, "--io afxdp:eth0 --ring 1024 --announce vips");
    let is_announced = || {
        let shown = world
            .command("m", "ip address show dev vips")
            .output()
            .unwrap();
        String::from_utf8_lossy(&shown.stdout).contains("20.20.20.100")
    };
    let is_named = || ready(&world).contains("underlay 172.16.0.11 is no address of this machine");
    wait_until(&world, "it is named at the start", is_named);
    assert!(!is_announced());
    assert!(
        log(&world).contains("underlay 172.16.0.11"),
        "{}",
        log(&world)
    );
    world.on("m", "ip address add 172.16.0.11/24 dev eth0");
    wait_until(&world, "it is ready", || ready(&world) == "ready\n");
    wait_until(&world, "the VIP is announced", is_announced);
    world.on("m", "ip address del 172.16.0.11/24 dev eth0");
    wait_until(&world, "it is named", is_named);
    wait_until(&world, "the VIP is withdrawn", || !is_announced());
    world.on("m", "ip address add 172.16.0.11/24 dev eth0");
    wait_until(&world, "it is ready again", || ready(&world) == "ready\n");
}

/// The kernel neither uses an IPv6 address that another machine has nor answers for it (duplicate address detection).
#[test]
#[ignore = "needs root"]
fn an_underlay_address_that_another_machine_has_withdraws_the_vips() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("kd", &["c", "m"]);
    world.plain_cable("c", "eth0", "m", "eth0", 1600);
    world.on("c", "ip address add fd00:16::101/64 dev eth0 nodad");
    world.on("m", "ip address add fd00:16::11/64 dev eth0 nodad");
    world.on("m", "ip route add default via fd00:16::101");
    let six = |text: String| {
        let text = text.replace("\"172.16.0.11\"", "\"fd00:16::11\"");
        text.replace("\"172.16.0.101\"", "\"fd00:16::101\"")
    };
    let _mux = start_with(
        &world,
        &six(configuration()),
        "--io afxdp:eth0 --ring 1024 --announce vips",
    );
    wait_until(&world, "it is ready", || ready(&world) == "ready\n");
    world.on("m", "sysctl -qw net.ipv6.conf.eth0.accept_dad=1");
    world.on("m", "ip address del fd00:16::11/64 dev eth0");
    world.on("c", "ip address add fd00:16::11/64 dev eth0 nodad");
    world.on("m", "ip address add fd00:16::11/64 dev eth0");
    wait_until(&world, "the kernel sees the other one", || {
        world
            .on("m", "ip -6 address show dev eth0")
            .contains("dadfailed")
    });
    wait_until(&world, "it is named", || {
        ready(&world).contains("underlay fd00:16::11 is an address of another machine too")
    });
    let shown = world.on("m", "ip address show dev vips");
    assert!(!shown.contains("20.20.20.100"), "{shown}");
    world.on("c", "ip address del fd00:16::11/64 dev eth0");
    world.on("m", "ip address del fd00:16::11/64 dev eth0");
    world.on("m", "ip address add fd00:16::11/64 dev eth0 nodad");
    wait_until(&world, "it is ready again", || ready(&world) == "ready\n");
}

/// Datagrams cross the TUN device into VXLAN though the kernel's settings were strict.
#[test]
#[ignore = "needs root"]
fn a_tun_device_gets_the_settings_that_it_needs() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let world = World::new("kt", &["c", "m", "h"]);
    world.cable("c", "eth0", "m", "client");
    world.cable("h", "eth0", "m", "fabric");
    world.on("c", "ip address add 10.0.0.2/24 dev eth0");
    world.on("c", "ip route add default via 10.0.0.1");
    world.on("m", "ip address add 10.0.0.1/24 dev client");
    world.on("m", "ip address add 172.16.0.11/24 dev fabric");
    world.on("h", "ip address add 172.16.0.101/24 dev eth0");
    world.on(
        "m",
        "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1",
    );
    let mux = start(&world, "--io tun:slb0");
    wait_until(&world, "it runs", || log(&world).contains("running"));
    // The whole machine's setting is named, and left as it is.
    assert!(
        log(&world).contains("(sysctl -w net.ipv4.ip_forward=1)"),
        "{}",
        log(&world)
    );
    let value = |name: &str| {
        world
            .on("m", &format!("sysctl -n {name}"))
            .trim()
            .to_owned()
    };
    assert_eq!(value("net.ipv4.ip_forward"), "0");
    let of = |field: &str| value(&format!("net.ipv4.conf.slb0.{field}"));
    assert_eq!(
        ["accept_local", "rp_filter", "forwarding"].map(of),
        ["1", "2", "1"]
    );
    assert!(
        log(&world).contains("set net.ipv4.conf.slb0.accept_local = 1"),
        "{}",
        log(&world)
    );

    assert!(
        log(&world)
            .contains("while it has no IPv4 address (ip address add ADDRESS dev slb0, or sysctl"),
        "{}",
        log(&world)
    );

    world.on("m", "sysctl -qw net.ipv4.conf.client.forwarding=1");
    world.on("m", "ip link set slb0 up");
    world.on("m", "ip address add 192.0.2.1/32 dev slb0");
    world.on("m", "ip route add 20.20.20.100/32 dev slb0");
    let hear = "import socket\n\
                s = socket.socket(2, 2); s.bind((\"\", 4789)); s.settimeout(8)\n\
                print(s.recvfrom(2000)[1][0])\n";
    fs::write(world.path("hear.py"), hear).unwrap();
    let heard = world.start("h", &format!("python3 {}", world.path("hear.py").display()));
    let send = "import socket, time\n\
                s = socket.socket(2, 2)\n\
                for n in range(60): s.sendto(b\"x\", (\"20.20.20.100\", 53)); time.sleep(0.1)\n";
    fs::write(world.path("send.py"), send).unwrap();
    let _sent = world.start("c", &format!("python3 {}", world.path("send.py").display()));
    assert_eq!(heard.finish(), "172.16.0.11\n");
    mux.signal("TERM");
    mux.finish();
    // Where the machine forwards, nothing is said of it.
    fs::remove_file(world.path("m.log")).unwrap();
    world.on(
        "m",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0",
    );
    let _mux = start(&world, "--io tun:slb1");
    wait_until(&world, "it runs", || log(&world).contains("running"));
    assert!(!log(&world).contains("ip_forward"), "{}", log(&world));
    assert!(!log(&world).contains(" WARN net.ipv4"), "{}", log(&world));
    assert_eq!(value("net.ipv4.conf.slb1.rp_filter"), "0");
}

#[test]
#[ignore = "needs root"]
fn a_driver_that_refuses_xdp_is_quoted() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("kx", &["c", "m"]);
    world.plain_cable("c", "eth0", "m", "eth0", 1500);
    world.on("m", "ip address add 172.16.0.11/24 dev eth0");
    // What this end would have to take is more than a page.
    world.on("c", "ip link set eth0 mtu 9000");
    let _mux = start(&world, "--io afxdp:eth0 --ring 1024");
    wait_until(&world, "it runs", || log(&world).contains("running"));
    let log = log(&world);
    let line = log
        .lines()
        .find(|line| line.contains("XDP in generic mode"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    assert!(
        line.contains("the driver refused native mode: veth: Peer MTU is too large to set XDP ("),
        "{line}"
    );
}

#[test]
#[ignore = "needs root"]
fn checksums_that_the_other_end_leaves_out_are_warned_of_at_the_start() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("kc", &["m"]);
    world.on("m", "ip link add eth0 type veth peer name vm0");
    world.on("m", "ip link set eth0 up");
    world.on("m", "ip link set vm0 up");
    world.on("m", "ip address add 172.16.0.11/24 dev eth0");
    let cure = "eth0: its peer vm0 has checksum offload on";
    for (setting, is_warned) in [("on", true), ("off", false)] {
        world.on("m", &format!("ethtool -K vm0 tx {setting}"));
        let _ = fs::remove_file(world.path("m.log"));
        let mux = start(&world, "--io afxdp:eth0 --ring 1024");
        wait_until(&world, "it runs", || log(&world).contains("running"));
        let log = log(&world);
        assert_eq!(log.contains(cure), is_warned, "tx {setting}: {log}");
        assert_eq!(log.contains("(ethtool -K vm0 tx off)"), is_warned, "{log}");
        mux.signal("TERM");
        mux.finish();
    }
}

/// A tracer holds one thread of two.
#[test]
#[ignore = "needs root"]
fn one_worker_of_several_that_stands_still_makes_the_node_not_ready() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let world = World::new("kw", &["m"]);
    let mux = start(&world, "--io tun:slb0:2");
    wait_until(&world, "it runs", || log(&world).contains("running"));
    // The backend's host has no route, which is another thing that a status names.
    let stands = || ready(&world).contains("the worker of port 0 has been stalled for ");
    assert!(!stands());
    let hold = "import ctypes, glob, sys, time\n\
                libc = ctypes.CDLL(None, use_errno=True)\n\
                libc.ptrace.argtypes = [ctypes.c_long] * 4\n\
                tasks = [t for t in glob.glob(f\"/proc/{sys.argv[1]}/task/*\")\n  \
                if open(t + \"/comm\").read() == \"slb port 0\\n\"]\n\
                assert len(tasks) == 2, tasks\n\
                task = int(sorted(tasks)[1].split(\"/\")[-1])\n\
                for request in (0x4206, 0x4207):\n \
                assert libc.ptrace(request, task, 0, 0) == 0, ctypes.get_errno()\n\
                print(\"held\", flush=True)\ntime.sleep(60)\n";
    fs::write(world.path("hold.py"), hold).unwrap();
    let script = world.path("hold.py").display().to_string();
    let holder = world.start("m", &format!("python3 {script} {}", mux.0.id()));
    wait_until(&world, "it is not ready", stands);
    wait_until(&world, "it is logged", || {
        log(&world).contains("worker stalled")
    });
    // The process itself lives.
    let health = world.on(
        "m",
        "curl -s -m 3 -o /dev/null -w %{http_code} http://127.0.0.1:9100/readyz",
    );
    assert_eq!(health, "503");
    drop(holder);
    wait_until(&world, "it moves again", || !stands());
    assert!(
        log(&world).contains("worker running again"),
        "{}",
        log(&world)
    );
}
