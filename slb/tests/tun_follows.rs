//! Changes around a running program's devices: MTUs, settings and addresses over TUN, and the
//! devices that the program makes.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use common::world::{Process, World, lacking, log, ready, wait_until};

fn rest_of(role: &str, underlay: &str) -> String {
    let table = if role == "mux" {
        "flows"
    } else {
        "connections"
    };
    format!(
        "[node]\nrole = \"{role}\"\nunderlay = \"{underlay}\"\nmtu = 1600\n{table} = 1024\n\
         [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
         [[rule]]\nname = \"dns\"\nfrontend = \"web\"\npool = \"webs\"\n\
         protocol = \"udp\"\nfrontend_port = 53\n\
         [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
         {{ name = \"web1\", address = \"10.10.0.1\", host = \"172.16.0.101\" }},\n]\n"
    )
}

fn proxy_configuration() -> String {
    "[node]\nrole = \"proxy\"\n\
                 [[port]]\nname = \"clients\"\ntype = \"frontend\"\n\
                 [[port]]\nname = \"servers\"\ntype = \"backend\"\n\
                 [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
                 [[pool]]\nname = \"webs\"\nbackends = [{ name = \"one\", address = \"172.16.0.101\" }]\n\
                 [[rule]]\nname = \"dns\"\nfrontend = \"web\"\npool = \"webs\"\nprotocol = \"udp\"\n\
                 frontend_port = 53\nsource_nat = \"10.99.2.1\"\n"
        .to_owned()
}

fn start(world: &World, command: &str, configuration: &str) -> Process {
    fs::write(world.path("m.toml"), configuration).unwrap();
    let path = |name: &str| world.path(name).display().to_string();
    let (config, socket, log) = (path("m.toml"), path("m.sock"), path("m.log"));
    let (role, options) = command.split_once(' ').unwrap();
    let slb = env!("CARGO_BIN_EXE_slb");
    world.start(
        "m",
        &format!(
            "{slb} {role} {config} --status {socket} --metrics 127.0.0.1:9100 {options} 2>>{log}"
        ),
    )
}

/// A client, a machine that forwards, and a host.
fn world(kind: &str) -> World {
    let world = World::new(kind, &["c", "m", "h"]);
    world.cable("c", "eth0", "m", "client");
    world.plain_cable("h", "eth0", "m", "fabric", 1600);
    world.on("c", "ip address add 10.0.0.2/24 dev eth0");
    world.on("c", "ip route add default via 10.0.0.1");
    world.on("m", "ip address add 10.0.0.1/24 dev client");
    world.on("m", "ip address add 172.16.0.10/24 dev fabric");
    world.on("m", "ip address add 172.16.0.11/32 dev lo");
    world.on("h", "ip address add 172.16.0.101/24 dev eth0");
    world.on("h", "ip route add 172.16.0.11/32 via 172.16.0.10");
    world.on(
        "m",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
    );
    world
}

/// Routes the VIP into the device that the program has made.
fn route(world: &World) {
    wait_until(world, "it runs", || log(world).contains(" running "));
    world.on("m", "ip link set slb0 mtu 1600");
    world.on("m", "ip route add 20.20.20.100/32 dev slb0");
}

/// Sends datagrams of 1500 bytes to the VIP until the path is said to carry less, or all are sent; returns the
/// path's MTU.
fn path_mtu(world: &World) -> String {
    let send = "import socket, time\n\
                s = socket.socket(2, 2); s.setsockopt(0, 10, 2); s.connect((\"20.20.20.100\", 53))\n\
                for n in range(10):\n \
                time.sleep(0.1)\n \
                try: s.send(bytes(1472))\n \
                except OSError: pass\n\
                print(s.getsockopt(0, 14))\n";
    fs::write(world.path("send.py"), send).unwrap();
    world.on("c", "ip route flush cache");
    let script = world.path("send.py").display().to_string();
    world
        .on("c", &format!("python3 {script}"))
        .trim()
        .to_owned()
}

#[test]
#[ignore = "needs root"]
fn packets_longer_than_the_kernels_route_carries_are_answered_over_tun() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = world("fm");
    world.on("m", "ip link set fabric mtu 1550");
    let mux = start(&world, "mux --io tun:slb0", &rest_of("mux", "172.16.0.11"));
    route(&world);
    assert_eq!(path_mtu(&world), "1500", "{}", log(&world));
    for (mtu, inner) in [(1400, "1350"), (1600, "1500"), (1500, "1450")] {
        let before = log(&world).len();
        world.on("m", &format!("ip link set fabric mtu {mtu}"));
        let line = match mtu {
            1600 => "fabric no longer limits packets".to_owned(),
            _ => {
                format!("packets leave by fabric, whose MTU of {mtu} is less than the node's 1600")
            }
        };
        wait_until(&world, &line, || log(&world)[before..].contains(&line));
        wait_until(&world, inner, || path_mtu(&world) == inner);
    }
    mux.signal("TERM");
    mux.finish();
}

#[test]
#[ignore = "needs root"]
fn settings_and_addresses_that_change_are_followed_over_tun() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = world("fs");
    let _mux = start(&world, "mux --io tun:slb0", &rest_of("mux", "172.16.0.11"));
    route(&world);
    let is_ready = || ready(&world) == "ready\n";
    wait_until(&world, "it is ready", is_ready);
    let value = |name: &str| {
        world
            .on("m", &format!("sysctl -n net.ipv4.conf.{name}"))
            .trim()
            .to_owned()
    };
    // The device's own settings are set again.
    for (name, wrong, right) in [
        ("accept_local", 0, "1"),
        ("forwarding", 0, "1"),
        ("rp_filter", 1, "0"),
    ] {
        world.on(
            "m",
            &format!("sysctl -qw net.ipv4.conf.slb0.{name}={wrong}"),
        );
        wait_until(&world, name, || value(&format!("slb0.{name}")) == right);
        let line = format!("net.ipv4.conf.slb0.{name} was changed to {wrong}");
        wait_until(&world, &line, || log(&world).contains(&line));
    }
    // The machine's are reported, and the node is not ready meanwhile.
    for (wrong, right, why) in [
        (
            "net.ipv4.conf.all.rp_filter=1",
            "net.ipv4.conf.all.rp_filter=0",
            "the kernel drops packets out of slb0 while it has no IPv4 address",
        ),
        (
            "net.ipv4.ip_forward=0",
            "net.ipv4.ip_forward=1",
            "no other interface forwards IPv4",
        ),
    ] {
        world.on("m", &format!("sysctl -qw {wrong}"));
        wait_until(&world, why, || ready(&world).contains(why));
        wait_until(&world, why, || log(&world).contains(why));
        world.on("m", &format!("sysctl -qw {right}"));
        wait_until(&world, "it is ready again", is_ready);
    }
    assert_eq!(value("slb0.forwarding"), "1");
    // Of a mux without answers through it, only errors are lost.
    world.on("m", "ip address del 172.16.0.11/32 dev lo");
    let line = "underlay 172.16.0.11 is no address of this machine: ICMP errors to it";
    wait_until(&world, line, || log(&world).contains(line));
    world.on("m", "ip address add 172.16.0.11/32 dev lo");
    wait_until(&world, "it is well", || {
        log(&world).contains("no longer so: underlay 172.16.0.11")
    });
    assert!(is_ready());
}

#[test]
#[ignore = "needs root"]
fn a_host_agent_whose_underlay_is_not_routed_into_its_device_is_not_ready() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = world("fh");
    let configuration = rest_of("host", "172.17.0.101").replace("172.16.0.101", "172.17.0.101");
    let _host = start(
        &world,
        "host --io tun:slb0 --io web1=tun:vm1",
        &configuration,
    );
    wait_until(&world, "it runs", || log(&world).contains(" running "));
    let why = "underlay 172.17.0.101 is not routed into slb0";
    wait_until(&world, why, || ready(&world).contains(why));
    for _ in 0..2 {
        world.on("m", "ip route add 172.17.0.101/32 dev slb0");
        wait_until(&world, "it is ready", || ready(&world) == "ready\n");
        world.on("m", "ip route del 172.17.0.101/32 dev slb0");
        wait_until(&world, why, || ready(&world).contains(why));
    }
    world.on("m", "ip address add 172.17.0.101/32 dev lo");
    let why = "underlay 172.17.0.101 is an address of this machine";
    wait_until(&world, why, || ready(&world).contains(why));
}

/// Packets that the kernel routes between a proxy's interfaces go through the device, also through
/// one that was made again.
#[test]
#[ignore = "needs root"]
fn the_device_for_the_kernels_packets_is_made_again() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("fp", &["c", "m", "h"]);
    world.plain_cable("c", "eth0", "m", "client", 1500);
    world.plain_cable("h", "eth0", "m", "fabric", 1500);
    world.on("c", "ip address add 10.0.0.2/24 dev eth0");
    world.on("c", "ip route add default via 10.0.0.1");
    world.on("m", "ip address add 10.0.0.1/24 dev client");
    world.on("m", "ip address add 172.16.0.10/24 dev fabric");
    world.on("h", "ip address add 172.16.0.101/24 dev eth0");
    world.on("h", "ip route add 10.0.0.0/24 via 172.16.0.10");
    world.on(
        "m",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
    );
    let io = "--io clients=afxdp:client --io servers=afxdp:fabric --ring 1024";
    let proxy = start(&world, &format!("proxy {io}"), &proxy_configuration());
    let is_ready = || ready(&world) == "ready\n";
    wait_until(&world, "it is ready", is_ready);
    let passes = || {
        let ping = world.command("c", "ping -c 1 -W 1 172.16.0.101").output();
        ping.unwrap().status.success()
    };
    wait_until(&world, "packets pass", passes);
    for turn in 1..=2 {
        world.on("m", "ip link del slb-pass");
        wait_until(&world, "it is there again", || {
            log(&world).matches("slb-pass is there again").count() == turn
        });
        wait_until(&world, "packets pass again", passes);
        wait_until(&world, "it is ready again", is_ready);
    }
    world.on("m", "ip link set slb-pass down");
    wait_until(&world, "it is said", || {
        ready(&world).contains("slb-pass is down, so packets for the kernel are lost")
    });
    world.on("m", "ip link set slb-pass up");
    wait_until(&world, "it is ready again", is_ready);
    wait_until(&world, "packets pass again", passes);
    proxy.signal("TERM");
    proxy.finish();
}

/// A sound setup causes no warning: over TUN, in each role, where the operator adds routes after
/// the program has made its devices.
#[test]
#[ignore = "needs root"]
fn a_healthy_life_over_tun_logs_no_warning() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let host = rest_of("host", "172.17.0.101").replace("172.16.0.101", "172.17.0.101");
    let vip = "ip route add 20.20.20.100/32 dev slb0";
    for (command, configuration, routes) in [
        ("mux --io tun:slb0", rest_of("mux", "172.16.0.11"), [vip; 2]),
        (
            "host --io tun:slb0 --io web1=tun:vm1",
            host,
            [
                "ip route add 172.17.0.101/32 dev slb0",
                "ip route add 10.10.0.1/32 dev vm1",
            ],
        ),
        (
            "proxy --io clients=tun:slb0 --io servers=tun:slb1",
            proxy_configuration(),
            [vip, "ip route add 10.99.2.1/32 dev slb1"],
        ),
    ] {
        let world = world("fw");
        let node = start(&world, command, &configuration);
        wait_until(&world, "it runs", || log(&world).contains(" running "));
        sleep(Duration::from_millis(1500));
        for route in routes {
            world.command("m", route).output().unwrap();
        }
        wait_until(&world, "it is ready", || ready(&world) == "ready\n");
        sleep(Duration::from_secs(6));
        node.signal("TERM");
        node.finish();
        let log = log(&world);
        assert!(
            !log.contains(" WARN ") && !log.contains("ERROR "),
            "{command}: {log}"
        );
    }
}

/// Another process has the device: each second it is tried again, and one line says so.
#[test]
#[ignore = "needs root"]
fn a_device_that_cannot_be_opened_is_one_line() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = world("fl");
    let _mux = start(&world, "mux --io tun:slb0", &rest_of("mux", "172.16.0.11"));
    route(&world);
    world.on("m", "ip link del slb0");
    let hold = "import fcntl, struct, time\n\
                f = open(\"/dev/net/tun\", \"r+b\", buffering=0)\n\
                fcntl.ioctl(f, 0x400454ca, struct.pack(\"16sH22s\", b\"slb0\", 0x1001, b\"\"))\n\
                print(\"held\", flush=True)\ntime.sleep(60)\n";
    fs::write(world.path("hold.py"), hold).unwrap();
    let holder = world.start("m", &format!("python3 {}", world.path("hold.py").display()));
    wait_until(&world, "it is said", || {
        log(&world).contains("cannot be opened, will retry")
    });
    // Whoever asks learns why, and what to do, not just that the link is down.
    let why = "slb0 cannot be opened: another process has it open: stop that process \
               (grep -lw slb0 /proc/[0-9]*/fdinfo/* names it)";
    wait_until(&world, "readyz says why", || ready(&world).contains(why));
    assert!(!ready(&world).contains("slb0 is down"), "{}", ready(&world));
    let status = |how: &str| {
        let (slb, socket) = (env!("CARGO_BIN_EXE_slb"), world.path("m.sock"));
        world.on(
            "m",
            &format!("{slb} status {how} --socket {}", socket.display()),
        )
    };
    assert!(status("--format json").contains("another process has it open"));
    let table = status("--once");
    assert!(table.contains(&format!("not ready: {why}")), "{table}");
    // Other processes come and go meanwhile, at which grep fails.
    let grep = "sh -c 'grep -lw slb0 /proc/[0-9]*/fdinfo/*'";
    let found = world.command("m", grep).output().unwrap().stdout;
    let found = String::from_utf8_lossy(&found);
    let by = format!("/proc/{}/fdinfo/", holder.0.id());
    assert!(found.contains(&by), "{by}: {found}");
    sleep(Duration::from_secs(6));
    let lines = log(&world).matches("will retry").count();
    assert_eq!(lines, 1, "{}", log(&world));
    drop(holder);
    wait_until(&world, "it is opened once it is free", || {
        log(&world).contains("opened again")
    });
    wait_until(&world, "the reason is over", || {
        !ready(&world).contains("cannot be opened")
    });
}
