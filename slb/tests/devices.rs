//! The running program and what becomes of its devices and its clients.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{Process, World, lacking, log, ready, wait_until};

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
#[test]
#[ignore = "needs root"]
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

/// A client, a proxy and a router with two servers behind it; the proxy has an address of its own on the
/// segment that it stands in.
/// ```text
///  c ── front [ lb, 10.0.0.2 ] back ── r ─┬─ s1
///                                         └─ s2
/// ```
fn world_of_a_proxy(kind: &str) -> World {
    let mut world = World::new(kind, &["c", "lb", "r", "s1", "s2"]);
    world.plain_cable("c", "eth0", "lb", "front", 1500);
    world.plain_cable("r", "eth0", "lb", "back", 1500);
    world.on("c", "ip address add 10.0.0.10/24 dev eth0");
    world.on("c", "ip route add default via 10.0.0.1");
    world.on("r", "ip address add 10.0.0.1/24 dev eth0");
    world.on("r", "ip address add fd00::1/64 dev eth0 nodad");
    world.on("lb", "ip address add 10.0.0.2/24 dev back");
    world.on("lb", "ip address add fd00::2/64 dev back nodad");
    world.on("lb", "ip route add default via 10.0.0.1");
    // Clients are on the other side of it, at the other device.
    world.on("lb", "ip route add 10.0.0.10 dev front src 10.0.0.2");
    world.on("r", "sysctl -qw net.ipv4.ip_forward=1");
    for number in 1..=2 {
        let server = format!("s{number}");
        world.plain_cable(&server, "eth0", "r", &server, 1500);
        world.on(
            "r",
            &format!("ip address add 10.1.{number}.1/24 dev {server}"),
        );
        world.on(
            &server,
            &format!("ip address add 10.1.{number}.2/24 dev eth0"),
        );
        world.on(
            &server,
            &format!("ip route add default via 10.1.{number}.1"),
        );
        world.serve(&server);
    }
    world.serve("lb");
    world
}

#[test]
#[ignore = "needs root"]
fn a_proxys_own_addresses_stay_the_kernels() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = world_of_a_proxy("dp");
    let text = "[node]\nrole = \"proxy\"\n\
                [[frontend]]\nname = \"web\"\naddress = \"10.99.0.1\"\n\
                [[probe]]\nname = \"http\"\nprotocol = \"http\"\nport = 8080\npath = \"/\"\n\
                interval = \"5s\"\ntimeout = \"1s\"\nthreshold = 1\n\
                [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"servers\"\nprobe = \"http\"\n\
                protocol = \"tcp\"\nfrontend_port = 80\nbackend_port = 8080\n\
                [[pool]]\nname = \"servers\"\nbackends = [\n\
                { name = \"s1\", address = \"10.1.1.2\" }, { name = \"s2\", address = \"10.1.2.2\" } ]\n";
    fs::write(world.path("m.toml"), text).unwrap();
    let slb = env!("CARGO_BIN_EXE_slb");
    let socket = world.path("m.sock").display().to_string();
    let _proxy = world.start(
        "lb",
        &format!(
            "{slb} proxy --config {} --status {socket} --io frontend=afxdp:front \
             --io backend=afxdp:back 2>>{}",
            world.path("m.toml").display(),
            world.path("m.log").display()
        ),
    );
    let page = |url: &str| {
        let curl = format!("curl -sS -m 2 http://{url}/");
        let output = world.command("c", &curl).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    wait_until(&world, "the proxy serves", || {
        page("10.99.0.1").starts_with('s')
    });
    // From in front of it and from behind it, over IPv4 and IPv6, and its own way out.
    assert_eq!(page("10.0.0.2:8080"), "lb 10.0.0.10\n");
    world.on("c", "ping -q -c 2 -i 0.2 -W 2 10.0.0.2");
    world.on("r", "ping -q -c 2 -i 0.2 -W 2 fd00::2");
    world.on("s1", "ping -q -c 2 -i 0.2 -W 2 10.0.0.2");
    world.on("lb", "ping -q -c 2 -i 0.2 -W 2 10.1.2.2");
    // One that comes while it runs.
    world.on("lb", "ip address add 10.0.0.3/24 dev back");
    wait_until(&world, "the new address is the kernel's", || {
        page("10.0.0.3:8080") == "lb 10.0.0.10\n"
    });
    // The answers to its probes reach it: nobody is unhealthy after two rounds of them.
    sleep(Duration::from_secs(11));
    let states = format!("{slb} status --once --socket {socket}");
    let states = world.on("lb", &states);
    assert_eq!(states.matches(" healthy ").count(), 2, "{states}");
    for _ in 0..10 {
        assert!(page("10.99.0.1").starts_with('s'));
    }
}

/// A client and a mux on AF_XDP, whose backend's host is on the link, with metrics and VIPs announced.
fn world_of_a_mux(kind: &str) -> (World, Process) {
    let world = World::new(kind, &["c", "m"]);
    lay_cable(&world);
    fs::write(world.path("m.toml"), mux_configuration()).unwrap();
    let mux = start_mux(
        &world,
        "m",
        "--io afxdp:eth0 --ring 1024 --announce vips --metrics 127.0.0.1:9100",
    );
    wait_until(&world, "the mux answers", || pings(&world));
    (world, mux)
}

fn lay_cable(world: &World) {
    world.plain_cable("c", "eth0", "m", "eth0", 1600);
    world.on("c", "ip address add 172.16.0.101/24 dev eth0");
    world.on("c", "ip route add 20.20.20.0/24 via 172.16.0.11");
    world.on("m", "ip address add 172.16.0.11/24 dev eth0");
    world.on("m", "ip route add default via 172.16.0.101");
}

fn pings(world: &World) -> bool {
    let ping = "ping -q -c 1 -W 1 20.20.20.100";
    world.command("c", ping).output().unwrap().status.success()
}

fn is_announced(world: &World) -> bool {
    world
        .on("m", "ip address show dev vips")
        .contains("20.20.20.100")
}

fn status(world: &World, machine: &str) -> serde_json::Value {
    let slb = env!("CARGO_BIN_EXE_slb");
    let socket = world.path("m.sock").display().to_string();
    let said = world.on(
        machine,
        &format!("{slb} status --format json --socket {socket}"),
    );
    serde_json::from_str(&said).unwrap()
}

#[test]
#[ignore = "needs root"]
fn an_interface_that_goes_and_comes_back_is_opened_anew() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let (world, mux) = world_of_a_mux("di");
    assert_eq!(ready(&world), "ready\n");
    assert!(is_announced(&world));
    let received = |world: &World| status(world, "m")["io"]["received"].as_u64().unwrap();
    let before = received(&world);

    world.on("m", "ip link del eth0");
    wait_until(&world, "it is not ready", || {
        ready(&world).contains("eth0 is gone")
    });
    wait_until(&world, "the VIP is withdrawn", || !is_announced(&world));
    assert!(
        log(&world).contains("no packets are received until"),
        "{}",
        log(&world)
    );
    lay_cable(&world);
    wait_until(&world, "it answers again", || pings(&world));
    wait_until(&world, "it is ready again", || ready(&world) == "ready\n");
    wait_until(&world, "the VIP is announced again", || {
        is_announced(&world)
    });
    // What was counted before is not forgotten, and no chunk is lost.
    assert!(received(&world) > before);
    let io = &status(&world, "m")["io"];
    let of = |name: &str| io[name].as_u64().unwrap();
    let places = ["free", "receiving", "sending", "lent"].map(|name| of(&format!("frames_{name}")));
    assert_eq!(places.iter().sum::<u64>(), of("frames"), "{io}");

    // Down and up again.
    world.on("m", "ip link set eth0 down");
    wait_until(&world, "it is not ready", || {
        ready(&world).contains("eth0 is down")
    });
    assert!(!is_announced(&world));
    world.on("m", "ip link set eth0 up");
    world.on("m", "ip route replace default via 172.16.0.101");
    wait_until(&world, "it answers again", || pings(&world));
    wait_until(&world, "it is ready again", || ready(&world) == "ready\n");
    mux.signal("TERM");
    assert!(mux.finish().contains("replied"));
}

#[test]
#[ignore = "needs root"]
fn a_program_that_somebody_detaches_is_attached_again() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let (world, _mux) = world_of_a_mux("dx");
    // The kernel does not let `ip link set xdp off` take it; one who has its link can.
    let detach = "import ctypes, os, struct\n\
                  bpf = lambda command, data: ctypes.CDLL(None, use_errno=True).syscall(\
                  321, command, ctypes.create_string_buffer(data, 128), 128)\n\
                  number, detached = 0, 0\n\
                  while True:\n \
                  attributes = ctypes.create_string_buffer(struct.pack(\"III\", number, 0, 0), 128)\n \
                  if ctypes.CDLL(None).syscall(321, 31, attributes, 128) != 0: break\n \
                  number = struct.unpack(\"II\", attributes.raw[:8])[1]\n \
                  link = bpf(30, struct.pack(\"I\", number))\n \
                  info = ctypes.create_string_buffer(128)\n \
                  of = ctypes.create_string_buffer(struct.pack(\"IIQ\", link, 128, ctypes.addressof(info)), 128)\n \
                  ctypes.CDLL(None).syscall(321, 15, of, 128)\n \
                  kind, _, program, index = struct.unpack(\"IIII\", info.raw[:16])\n \
                  if kind == 6 and program == PROGRAM: detached += bpf(34, struct.pack(\"I\", link)) == 0\n\
                  assert detached == 1, detached\n";
    let program = || {
        let shown = world.on("m", "ip -details -json link show dev eth0");
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[0]["xdp"]["prog"]["id"].as_u64()
    };
    let before = program().unwrap();
    let detach = detach.replace("PROGRAM", &before.to_string());
    fs::write(world.path("detach.py"), detach).unwrap();
    world.on(
        "m",
        &format!("python3 {}", world.path("detach.py").display()),
    );
    wait_until(&world, "another program is attached", || {
        program().is_some_and(|now| now != before)
    });
    wait_until(&world, "the mux answers", || pings(&world));
    assert!(
        log(&world).contains("the XDP program was detached"),
        "{}",
        log(&world)
    );
}

#[test]
#[ignore = "needs root"]
fn the_mtu_is_followed_and_longer_packets_are_answered() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let (world, _mux) = world_of_a_mux("du");
    // A datagram that is not to be fragmented: is the sender told that it is too long?
    let text = mux_configuration().replace("protocol = \"tcp\"", "protocol = \"udp\"");
    fs::write(world.path("m.new"), text).unwrap();
    fs::rename(world.path("m.new"), world.path("m.toml")).unwrap();
    let send = "import socket, time\n\
                s = socket.socket(2, 2)\n\
                s.setsockopt(0, 10, 2)\n\
                s.connect((\"20.20.20.100\", 80))\n\
                s.send(bytes(1400))\ntime.sleep(0.3)\n\
                try: s.send(bytes(1400)); print(\"sent\")\n\
                except OSError as error: print(s.getsockopt(0, 14))\n";
    fs::write(world.path("send.py"), send).unwrap();
    let told = || {
        world.on("c", "ip route flush cache");
        let said = world.on("c", &format!("python3 {}", world.path("send.py").display()));
        said.trim().to_owned()
    };
    wait_until(&world, "it is carried", || told() == "sent");
    world.on("m", "ip link set eth0 mtu 1450");
    // VXLAN takes 50 bytes of it.
    wait_until(&world, "the sender is told", || told() == "1400");
    world.on("m", "ip link set eth0 mtu 1600");
    wait_until(&world, "it is carried again", || told() == "sent");
    // More than the memory that it was opened with has room for: it is opened anew, and flows stay.
    let flows = status(&world, "m")["flows"]["live"].as_u64().unwrap();
    assert!(flows > 0);
    for machine in ["m", "c"] {
        world.on(machine, "ip link set eth0 mtu 3000");
    }
    wait_until(&world, "the mux answers", || pings(&world));
    let long = "ping -q -c 1 -W 1 -M do -s 2900 20.20.20.100";
    wait_until(&world, "it answers long ones", || {
        world.command("c", long).output().unwrap().status.success()
    });
    let now = status(&world, "m");
    assert!(now["flows"]["live"].as_u64().unwrap() >= flows);
    assert_eq!(now["io"]["too_long"], 0, "{now}");
}

#[test]
#[ignore = "needs root"]
fn packets_longer_than_the_memory_are_dropped_by_name() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("dl", &["c", "m"]);
    lay_cable(&world);
    // The driver has no native XDP for packets of more than a page, which the generic one takes.
    world.on("c", "ip link set eth0 mtu 9000");
    fs::write(world.path("m.toml"), mux_configuration()).unwrap();
    let _mux = start_mux(
        &world,
        "m",
        "--io afxdp:eth0 --ring 1024 --metrics 127.0.0.1:9100",
    );
    wait_until(&world, "the mux answers", || pings(&world));
    world.on("m", "ip link set eth0 mtu 9000");
    wait_until(&world, "the MTU is noticed", || {
        log(&world).contains("MTU or MAC address changed")
    });
    wait_until(&world, "the mux answers", || pings(&world));
    let dropped = || status(&world, "m")["dropped"]["too_long"]["packets"].as_u64();
    assert_eq!(dropped().unwrap_or(0), 0, "{}", status(&world, "m"));
    let ping = "ping -q -c 3 -i 0.1 -W 1 -M do -s 5000 20.20.20.100";
    assert!(!world.command("c", ping).output().unwrap().status.success());
    wait_until(&world, "they are counted", || dropped() == Some(3));
    // Wherever drops are looked for.
    let now = status(&world, "m");
    assert!(now["dropped_total"]["packets"].as_u64() >= Some(3), "{now}");
    let socket = world.path("m.sock").display().to_string();
    let asked = |command: &str| {
        let slb = env!("CARGO_BIN_EXE_slb");
        world.on("m", &format!("{slb} {command} --socket {socket}"))
    };
    let table = asked("status --once");
    assert_eq!(table.matches("too_long").count(), 1, "{table}");
    let drops = asked("drops --reason too_long");
    assert_eq!(
        drops,
        "too_long: the packet is longer than the memory that the device has for one\n  \
         3 packets in all, which only the device saw\n"
    );
    let drops = asked("drops --reason too_long --json");
    assert!(drops.contains("\"packets\":3"), "{drops}");
    let metrics = world.on("m", "curl -sS -m 2 http://127.0.0.1:9100/metrics");
    let line = "slb_dropped_packets_total{reason=\"too_long\"} 3";
    assert!(metrics.contains(line), "{metrics}");
    // And it is said what to do.
    wait_until(&world, "it is an event", || {
        log(&world).contains("event=\"packets_too_long\"")
    });
    assert!(
        log(&world).contains("ip link set DEVICE mtu 3818"),
        "{}",
        log(&world)
    );
}

#[test]
#[ignore = "needs root"]
fn hosts_that_cannot_be_reached_are_named() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("dh", &["c", "m"]);
    lay_cable(&world);
    world.on("m", "ip route del default");
    let text = mux_configuration().replace(
        "{ name = \"web1\"",
        "{ name = \"web2\", address = \"10.10.0.2\", host = \"172.31.9.2\" },\n{ name = \"web1\"",
    );
    fs::write(world.path("m.toml"), text).unwrap();
    let _mux = start_mux(
        &world,
        "m",
        "--io afxdp:eth0 --ring 1024 --announce vips --metrics 127.0.0.1:9100",
    );
    let state = |name: &str| {
        let status = status(&world, "m");
        let all = status["backends"].as_array().unwrap();
        let of = all.iter().find(|backend| backend["backend"] == name);
        of.unwrap()["state"].as_str().unwrap().to_owned()
    };
    let says = |what: &str| log(&world).contains(what);
    wait_until(&world, "it is said by name", || {
        says("webs/web2: no route to 172.31.9.2, packets are lost")
    });
    assert_eq!(
        (state("web1").as_str(), state("web2").as_str()),
        ("healthy", "unreachable")
    );
    assert_eq!(ready(&world), "ready\n");
    // New flows go to the other one.
    world.on("m", "ip route add 172.31.9.0/24 via 172.16.0.101");
    wait_until(&world, "it is back", || state("web2") == "healthy");
    wait_until(&world, "that is said too", || {
        says("webs/web2: 172.31.9.2 is reachable again")
    });
    // Each is an event.
    for (event, more) in [
        ("unreachable", " why=\"no route to 172.31.9.2\""),
        ("reachable", ""),
    ] {
        let fields = format!("of=\"webs/web2\" to=\"172.31.9.2\"{more} event=\"{event}\"");
        assert!(says(&fields), "{fields}: {}", log(&world));
    }
    // A neighbour that does not answer, and then nobody is left.
    world.on("m", "ip route replace 172.31.9.0/24 via 172.16.0.99");
    wait_until(&world, "the neighbour is named", || {
        says("webs/web2: no neighbour entry for 172.16.0.99 on the way to 172.31.9.2")
    });
    assert!(
        says("unresolved=\"172.31.9.2 (webs/web2)"),
        "{}",
        log(&world)
    );
    world.on("c", "ip address del 172.16.0.101/24 dev eth0");
    world.on("m", "ip neighbour del 172.16.0.101 dev eth0");
    wait_until(&world, "nobody is left", || ready(&world).contains("web"));
    assert_eq!(state("web1"), "unreachable");

    // Hundreds of changes a second are a few compilations.
    let before = status(&world, "m")["generation"].as_u64().unwrap();
    let storm = "sh -c 'for n in $(seq 400); do ip neighbour replace 172.16.0.99 lladdr \
                 02:00:00:00:$(printf %02x:%02x $((n / 250)) $((n % 250))) dev eth0; done'";
    let begin = Instant::now();
    world.on("m", storm);
    let took = begin.elapsed().as_millis() as u64;
    sleep(Duration::from_millis(500));
    let compiled = status(&world, "m")["generation"].as_u64().unwrap() - before;
    assert!(
        compiled >= 1 && compiled <= took / 250 + 3,
        "{compiled} in {took} ms"
    );
}

#[test]
#[ignore = "needs root"]
fn a_tun_device_that_goes_and_comes_back_is_opened_anew() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let world = World::new("dt", &["m"]);
    let lay = || {
        world.on("m", "ip tuntap add dev slb0 mode tun");
        world.on("m", "ip link set slb0 up");
        world.on("m", "ip address add 192.0.2.1/24 dev slb0");
        world.on("m", "ip route add 20.20.20.100/32 dev slb0");
    };
    lay();
    fs::write(world.path("m.toml"), mux_configuration()).unwrap();
    let mux = start_mux(&world, "m", "--io tun:slb0 --metrics 127.0.0.1:9100");
    let pings = || {
        let ping = "ping -q -c 1 -W 1 20.20.20.100";
        world.command("m", ping).output().unwrap().status.success()
    };
    wait_until(&world, "the mux answers", pings);
    world.on("m", "ip link del slb0");
    wait_until(&world, "it is not ready", || {
        ready(&world).contains("slb0 is gone")
    });
    lay();
    wait_until(&world, "it answers again", pings);
    wait_until(&world, "it is ready", || !ready(&world).contains("slb0"));
    mux.signal("TERM");
    assert!(mux.finish().contains("replied"));
}

/// A mux with probes: web1's host answers them, and nobody is at web2's port.
fn probed_configuration() -> String {
    mux_configuration().replace(
        "[[pool]]",
        "probe = \"http\"\n[[probe]]\nname = \"http\"\nprotocol = \"http\"\nport = 8080\npath = \"/\"\n[[pool]]",
    ).replace(
        "{ name = \"web1\"",
        "{ name = \"web2\", address = \"10.10.0.2\", host = \"172.16.0.101\" },\n{ name = \"web1\"",
    )
}

/// A client that is a backend's host too, and answers at 10.10.0.1 alone.
fn lay_backends(world: &mut World) {
    lay_cable(world);
    world.on("c", "ip address add 10.10.0.1/32 dev lo");
    world.on("c", "ip address add 10.10.0.2/32 dev lo");
    world.on("c", "nft add table inet cut");
    world.on(
        "c",
        "nft 'add chain inet cut input { type filter hook input priority 0; }'",
    );
    world.on(
        "c",
        "nft add rule inet cut input ip daddr 10.10.0.2 tcp dport 8080 reject with tcp reset",
    );
    world.serve("c");
}

#[test]
#[ignore = "needs root"]
fn a_mux_announces_after_its_first_round_of_probes() {
    if let Some(why) = lacking(&["ethtool", "nft"]) {
        skip!("{why}");
    }
    let mut world = World::new("df", &["c", "m"]);
    lay_backends(&mut world);
    fs::write(world.path("m.toml"), probed_configuration()).unwrap();
    let begin = Instant::now();
    let _mux = start_mux(
        &world,
        "m",
        "--io afxdp:eth0 --ring 1024 --announce vips --metrics 127.0.0.1:9100",
    );
    wait_until(&world, "it is ready", || ready(&world) == "ready\n");
    // The interval is 15 s, and the dead one was not taken for well meanwhile.
    assert!(begin.elapsed() < Duration::from_secs(6));
    wait_until(&world, "the VIP is announced", || is_announced(&world));
    let log = log(&world);
    let place = |what: &str| log.find(what).unwrap_or_else(|| panic!("{what}: {log}"));
    assert!(place(" unhealthy ") < place(" announced "), "{log}");
    // It is said whose rule, and where.
    let line = log
        .lines()
        .find(|line| line.contains(" unhealthy "))
        .unwrap();
    for part in [
        "pool=\"webs\"",
        "backend=\"web2\"",
        "rules=\"http\"",
        "10.10.0.2:8080",
        "no connection",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let status = status(&world, "m");
    let why = status["backends"][0]["why"].as_str().unwrap();
    assert!(
        why.starts_with("webs/web2: probe http of rule http at 10.10.0.2:8080: no connection"),
        "{why}"
    );
    assert!(status["backends"][1]["why"].is_null(), "{status}");
}

#[test]
#[ignore = "needs root"]
fn a_process_that_stands_still_announces_nothing() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let (world, mux) = world_of_a_mux("dw");
    let is_up = || {
        let shown = world.on("m", "ip link show dev vips");
        shown.contains("UP,") && is_announced(&world)
    };
    wait_until(&world, "the VIP is announced", is_up);
    // Memory that runs short must not stop the watchdog too: its pages are locked.
    let watchdog = || world.on("m", &format!("pgrep -P {}", mux.0.id()));
    // One that ended, as by the kernel's choice of whom to kill, has a successor.
    let first = watchdog();
    assert!(common::sh(&format!("kill -KILL {first}")));
    wait_until(&world, "it is started again", || {
        let now = world.command("m", &format!("pgrep -P {}", mux.0.id()));
        let now = { now }.output().unwrap().stdout;
        !now.is_empty() && now != first.as_bytes()
    });
    let watchdog = watchdog();
    let status = fs::read_to_string(format!("/proc/{}/status", watchdog.trim())).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let locked = locked.unwrap().trim().trim_end_matches(" kB");
    assert!(locked.parse::<u64>().unwrap() > 500, "{status}");
    mux.signal("STOP");
    let stopped = Instant::now();
    wait_until(&world, "the VIP is withdrawn", || !is_up());
    assert!(stopped.elapsed() >= Duration::from_secs(2));
    mux.signal("CONT");
    wait_until(&world, "the VIP is announced again", is_up);
    assert!(
        log(&world).contains("this process was stalled"),
        "{}",
        log(&world)
    );
    wait_until(&world, "the mux answers", || pings(&world));
    // The watchdog ends with the process, however that ends.
    mux.signal("KILL");
    drop(mux);
    wait_until(&world, "nobody is left", || {
        let tag = world.space("m");
        common::sh(&format!("test -z \"$(ip netns pids {tag})\""))
    });
}

#[test]
#[ignore = "needs root"]
fn the_unit_lets_the_program_do_what_it_does() {
    if let Some(why) = lacking(&["ethtool", "nft"]) {
        skip!("{why}");
    }
    let packaging = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    let unit = fs::read_to_string(packaging.join("systemd/slb-mux.service")).unwrap();
    let defaults = fs::read_to_string(packaging.join("deb/default/slb-mux")).unwrap();
    let defaults = defaults.split('"').nth(1).unwrap();
    let of = |key: &str| {
        let key = format!("{key}=");
        let line = unit.lines().find_map(|line| line.strip_prefix(&*key));
        line.unwrap_or_else(|| panic!("{key}")).to_owned()
    };
    assert_eq!(of("Type"), "notify");
    let patience: u64 = of("WatchdogSec").parse().unwrap();
    assert!(patience >= 5);
    // Its filter of address families, by the kernel's own means: socket(2) fails for all others.
    let filter = "import ctypes, os, socket, struct, sys\n\
                  families = [getattr(socket, f, 44) for f in sys.argv[1].split()]\n\
                  code = [(0x20, 0, 0, 0), (0x15, 0, len(families) + 2, 41), (0x20, 0, 0, 16)]\n\
                  code += [(0x15, len(families) - n, 0, int(f)) for n, f in enumerate(families)]\n\
                  code += [(0x06, 0, 0, 0x00050000 | 97), (0x06, 0, 0, 0x7fff0000)]\n\
                  code = b\"\".join(struct.pack(\"HBBI\", *line) for line in code)\n\
                  buffer = ctypes.create_string_buffer(code)\n\
                  program = struct.pack(\"HxxxxxxP\", len(code) // 8, ctypes.addressof(buffer))\n\
                  libc = ctypes.CDLL(None)\n\
                  assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0\n\
                  try: socket.socket(socket.AF_VSOCK); raise SystemExit(\"no filter\")\n\
                  except OSError: pass\n\
                  os.execvp(sys.argv[2], sys.argv[2:])\n";
    let mut world = World::new("dn", &["c", "m"]);
    lay_backends(&mut world);
    world.on("c", "ip address add fd00:10::1/128 dev lo");
    world.on("c", "ip address add fd00:16::101/64 dev eth0 nodad");
    world.on("m", "ip address add fd00:16::11/64 dev eth0 nodad");
    world.on("m", "ip route add default via fd00:16::101");
    fs::write(world.path("filter.py"), filter).unwrap();
    // A backend over IPv6 as well: the filter has to let its probes through.
    let text = probed_configuration().replace(
        "underlay = \"172.16.0.11\"",
        "underlay = [\"172.16.0.11\", \"fd00:16::11\"]",
    ) + "[[frontend]]\nname = \"web6\"\naddress = \"2001:db8:20::100\"\n\
           [[rule]]\nname = \"http6\"\nfrontend = \"web6\"\npool = \"sixes\"\nprobe = \"http\"\n\
           protocol = \"tcp\"\nfrontend_port = 80\n\
           [[pool]]\nname = \"sixes\"\nvni = 5002\nbackends = [\n\
           { name = \"six\", address = \"fd00:10::1\", host = \"fd00:16::101\" } ]\n";
    fs::write(world.path("m.toml"), text).unwrap();
    let notified = std::os::unix::net::UnixDatagram::bind(world.path("notify")).unwrap();
    notified
        .set_read_timeout(Some(Duration::from_secs(patience / 2)))
        .unwrap();
    let families = of("RestrictAddressFamilies");
    let command = of("ExecStart");
    let options = command.split_once(" mux ").unwrap().1;
    let path = |name: &str| world.path(name).display().to_string();
    let options = options
        .replace("/etc/slb/mux.toml", &path("m.toml"))
        .replace("/var/lib/slb", &path("state"))
        // No systemd runs here: the test of the package reads the journal.
        .replace("--log journal", "--log json")
        .replace("$OPTIONS", defaults);
    let mux = world.start(
        "m",
        &format!(
            "env NOTIFY_SOCKET={} python3 {} \"{families}\" {} mux {options} --ring 1024 --status {} 2>>{}",
            path("notify"),
            path("filter.py"),
            env!("CARGO_BIN_EXE_slb"),
            path("m.sock"),
            path("m.log")
        ),
    );
    let hear = || {
        let mut told = [0; 64];
        let len = notified
            .recv(&mut told)
            .unwrap_or_else(|error| panic!("{error}: {}", log(&world)));
        String::from_utf8_lossy(&told[..len]).into_owned()
    };
    assert_eq!(hear(), "READY=1");
    for _ in 0..3 {
        assert_eq!(hear(), "WATCHDOG=1");
    }
    // A VIP is announced once a backend has answered its probe.
    wait_until(&world, "probes of both families are answered", || {
        log(&world).contains("\"announced\",\"vip\":\"2001:db8:20::100\"")
    });
    wait_until(&world, "a probe is refused", || {
        log(&world).contains("\"unhealthy\"")
    });
    let log = log(&world);
    assert!(
        !log.contains("cannot be sent") && !log.contains("\"pool\":\"sixes\""),
        "{log}"
    );
    wait_until(&world, "the mux answers", || pings(&world));
    mux.signal("TERM");
    while hear() != "STOPPING=1" {}
    assert!(mux.finish().contains("flows:"));
}

#[test]
#[ignore = "needs root"]
fn checksums_that_are_left_to_no_card_are_warned_of() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let (world, _mux) = world_of_a_mux("dk");
    let ask = || {
        let curl = "curl -s -m 1 http://20.20.20.100/";
        for _ in 0..6 {
            let _ = world.command("c", curl).output();
        }
    };
    // The cable's ends compute checksums: nothing is wrong.
    ask();
    let says = || log(&world).contains("ethtool -K DEVICE tx off");
    assert!(!says(), "{}", log(&world));
    world.on("c", "ethtool -K eth0 tx on");
    wait_until(&world, "it is warned of", || {
        ask();
        says()
    });
}
