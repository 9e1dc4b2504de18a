//! The program between real machines, which are network namespaces.
//!
//! The proxy, over TAP devices: two clients at a frontend port each, and behind the backend port a
//! router with three servers.
//! ```text
//!  c0 ── bridge ── tap f0 ┐                         ┌ s1
//!                         ├ slb ─ tap back ─ router ┼ s2
//!  c1 ── bridge ── tap f1 ┘                         └ s3
//! ```
//! Two muxes, over TUN devices, behind a router with ECMP, and three hosts with Linux's own VXLAN
//! devices, which answer clients straight.
//! ```text
//!               ┌ m1: tun ─ slb ┐          ┌ h1
//!  c ── router ─┤               ├─ VXLAN ──┼ h2
//!               └ m2: tun ─ slb ┘          └ h3
//! ```
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use common::world::{Process, World, lacking, peer};

impl World {
    /// Makes the machines on both sides of a proxy.
    fn of_proxy(kind: &str, over: &str) -> Self {
        let world = Self::new(kind, &["c0", "c1", "lb", "r", "s1", "s2", "s3"]);
        let bridge = |port: &str| {
            world.on("lb", &format!("ip tuntap add dev {port} mode tap"));
            world.on("lb", &format!("ip link add br{port} type bridge"));
            world.on("lb", &format!("ip link set {port} master br{port} up"));
            world.on("lb", &format!("ip link set br{port} up"));
        };
        if over == "tap" {
            ["f0", "f1", "back"].into_iter().for_each(bridge);
        }
        for (machine, port, address) in [
            ("c0", "f0", "10.0.0.10/24"),
            ("c1", "f1", "10.0.0.11/24"),
            ("r", "back", "10.0.0.1/24"),
        ] {
            if over == "tap" {
                world.cable(machine, "eth0", "lb", &format!("to-{machine}"));
                world.on("lb", &format!("ip link set to-{machine} master br{port}"));
            } else {
                world.plain_cable(machine, "eth0", "lb", port, 1500);
            }
            world.on(machine, &format!("ip address add {address} dev eth0"));
        }
        for client in ["c0", "c1"] {
            world.on(client, "ip route add default via 10.0.0.1");
        }
        world.on("r", "ip link add servers type bridge");
        world.on("r", "ip address add 10.1.0.1/24 dev servers");
        world.on("r", "ip link set servers up");
        world.on("r", "sysctl -qw net.ipv4.ip_forward=1");
        for number in 1..=3 {
            let server = format!("s{number}");
            world.cable(&server, "eth0", "r", &server);
            world.on("r", &format!("ip link set {server} master servers"));
            world.on(
                &server,
                &format!("ip address add 10.1.0.1{number}/24 dev eth0"),
            );
            world.on(&server, "ip route add default via 10.1.0.1");
        }
        world
    }

    fn configure(&self, backends: &[(&str, u32)]) {
        let mut list = String::new();
        for (name, weight) in backends {
            let number = &name[1..];
            list += &format!(
                "  {{ name = \"{name}\", address = \"10.1.0.1{number}\", weight = {weight} }},\n"
            );
        }
        let rule = |name: &str, rest: &str| {
            format!("[[rule]]\nname = \"{name}\"\nfrontend = \"web\"\npool = \"servers\"\n{rest}")
        };
        let port = |name: &str, rest: &str| format!("[[port]]\nname = \"{name}\"\n{rest}");
        let frontend =
            |address| format!("type = \"frontend\"\nmode = \"multi\"\naddress = \"{address}\"\n");
        let text = [
            "[node]\nrole = \"proxy\"\n".to_owned(),
            port("f0", &frontend("10.0.0.10")),
            port("f1", &frontend("10.0.0.11")),
            port("back", "type = \"backend\"\n"),
            "[[frontend]]\nname = \"web\"\naddress = \"10.99.0.1\"\n".to_owned(),
            format!("[[pool]]\nname = \"servers\"\nbackends = [\n{list}]\n"),
            rule(
                "http",
                "protocol = \"tcp\"\nfrontend_port = 80\nbackend_port = 8080\n",
            ),
            rule(
                "echo",
                "protocol = \"udp\"\nfrontend_port = 7\nbackend_port = 8080\n",
            ),
            rule("ping", "protocol = \"icmp\"\n"),
        ];
        fs::write(self.path("proxy.toml"), text.concat()).unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn the_proxy_serves_machines_behind_several_frontend_ports() {
    the_proxy_serves_over("tap");
}

#[test]
#[ignore = "needs root"]
fn the_proxy_serves_them_over_afxdp() {
    the_proxy_serves_over("afxdp");
}

fn the_proxy_serves_over(over: &str) {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let kind = if over == "tap" { "p" } else { "a" };
    let mut world = World::of_proxy(kind, over);
    for number in 1..=3 {
        world.serve(&format!("s{number}"));
    }
    world.configure(&[("s1", 1), ("s2", 1), ("s3", 1)]);
    let slb = format!(
        "{} proxy --config {} --status {}.sock --io f0={over}:f0 --io f1={over}:f1 --io back={over}:back",
        env!("CARGO_BIN_EXE_slb"),
        world.path("proxy.toml").display(),
        world.path("proxy").display()
    );
    let proxy = world.start("lb", &slb);
    // Until neighbours know each other.
    let ready = (0..50).any(|_| {
        sleep(Duration::from_millis(100));
        let ping = world
            .command("c0", "ping -c 1 -W 1 10.99.0.1")
            .output()
            .unwrap();
        ping.status.success()
    });
    assert!(ready);

    for (client, own) in [("c0", "10.0.0.10"), ("c1", "10.0.0.11")] {
        // Pings of the VIP are answered by backends, all of them.
        world.on(client, "ping -q -c 5 -i 0.05 -W 2 10.99.0.1");
        // Web pages: every server has its share, and sees who asks.
        let mut served = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let page = world.on(client, "curl -sS --max-time 5 http://10.99.0.1/");
            let (server, seen) = page.trim().split_once(' ').unwrap();
            assert_eq!(seen, own);
            served.insert(server.to_owned());
        }
        assert_eq!(served.len(), 3, "{client}: {served:?}");
        let answer = world.on(client, &peer("ask 10.99.0.1 7"));
        assert!(answer.trim().ends_with(own), "{answer}");
        // What is no service is reached through it as it is.
        assert_eq!(
            world.on(client, "curl -sS --max-time 5 http://10.1.0.12:8080/"),
            format!("s2 {own}\n")
        );
        world.on(client, "ping -q -c 2 -i 0.05 -W 2 10.1.0.13");
        world.on(client, "ping -q -c 2 -i 0.05 -W 2 10.0.0.1");
    }

    // Sessions stay where they are, whatever becomes of the configuration.
    let sessions: Vec<Process> = (0..6)
        .map(|n| world.start(["c0", "c1"][n % 2], &peer("stay 10.99.0.1 80 3")))
        .collect();
    sleep(Duration::from_millis(500));
    for backends in [
        &[("s1", 50), ("s2", 1), ("s3", 0)][..],
        &[("s2", 9)],
        &[("s1", 1), ("s2", 0), ("s3", 7)],
    ] {
        world.configure(backends);
        proxy.signal("HUP");
        sleep(Duration::from_millis(400));
    }
    // A bad one changes nothing.
    fs::write(world.path("proxy.toml"), "[node]\nrole = \"hub\"\n").unwrap();
    proxy.signal("HUP");
    let mut homes = std::collections::BTreeSet::new();
    for session in sessions {
        let names = session.finish();
        assert_eq!(names.split_whitespace().count(), 1, "{names}");
        homes.insert(names);
    }
    for _ in 0..20 {
        let page = world.on("c0", "curl -sS --max-time 5 http://10.99.0.1/");
        assert!(!page.starts_with("s2"), "s2 is drained");
    }

    proxy.signal("TERM");
    let text = proxy.finish();
    assert!(
        text.contains("connections:") && text.contains("servers"),
        "{text}"
    );
}

/// A mux's configuration, the same on all but for its own address.
fn mux_configuration(own: &str) -> String {
    let mut text = format!(
        "[node]\nrole = \"mux\"\nunderlay = \"{own}\"\nmtu = 1600\nhash_seed = 1\n\
         [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
         [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"hosts\"\n\
         protocol = \"tcp\"\nfrontend_port = 8080\n\
         [[pool]]\nname = \"hosts\"\nvni = 5001\nbackends = [\n"
    );
    for number in 1..=3 {
        text += &format!(
            "{{ name = \"h{number}\", address = \"10.10.0.{number}\", \
             host = \"172.16.0.10{number}\", mac = \"02:00:00:00:01:0{number}\" }},\n"
        );
    }
    text + "]\n"
}

/// Two muxes behind a router with ECMP, and three hosts.
struct Muxes {
    world: World,
    muxes: Vec<Process>,
}

impl Muxes {
    /// Has the router send to some of them.
    fn route(&self, hops: &[&str]) {
        let hops: String = hops
            .iter()
            .map(|hop| format!(" nexthop via {hop}"))
            .collect();
        let route = format!("ip route replace 20.20.20.100/32{hops}");
        self.world.on("r", &route);
    }

    /// Slow downloads, and their checksums.
    fn downloads(&self, count: usize, rate: &str) -> Vec<Process> {
        let url = "http://20.20.20.100:8080/1500000";
        let curl = format!("curl -sS --max-time 120 --limit-rate {rate} {url}");
        let one = |_| {
            self.world
                .start("c", &format!("sh -c '{curl} | sha256sum'"))
        };
        (0..count).map(one).collect()
    }

    /// All downloads end, with the bytes that the hosts have.
    fn all_are_whole(&self, downloads: Vec<Process>) {
        let sums = downloads.into_iter().map(Process::finish);
        let sums: std::collections::BTreeSet<String> = sums.collect();
        assert_eq!(sums.len(), 1, "all have the same bytes: {sums:?}");
        let whole = "sh -c 'curl -sS http://127.0.0.1:8080/1500000 | sha256sum'";
        assert!(sums.contains(&self.world.on("h1", whole)));
    }
}

fn muxes(kind: &str) -> Muxes {
    let mut world = World::new(kind, &["c", "r", "m1", "m2", "h1", "h2", "h3"]);
    world.cable("c", "eth0", "r", "to-c");
    world.on("c", "ip address add 198.51.100.10/24 dev eth0");
    world.on("r", "ip address add 198.51.100.1/24 dev to-c");
    world.on("c", "ip route add default via 198.51.100.1");
    world.on("r", "ip link add fabric type bridge");
    world.on("r", "ip address add 172.16.0.1/24 dev fabric");
    world.on("r", "ip link set fabric mtu 1600 up");
    world.on(
        "r",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.fib_multipath_hash_policy=1",
    );
    for (machine, last) in [
        ("m1", 11),
        ("m2", 12),
        ("h1", 101),
        ("h2", 102),
        ("h3", 103),
    ] {
        world.cable(machine, "eth0", "r", machine);
        world.on(
            "r",
            &format!("ip link set {machine} mtu 1600 master fabric"),
        );
        world.on(machine, "ip link set eth0 mtu 1600");
        world.on(
            machine,
            &format!("ip address add 172.16.0.{last}/24 dev eth0"),
        );
        world.on(machine, "ip route add default via 172.16.0.1");
        world.on(machine, "sysctl -qw net.ipv4.conf.all.rp_filter=0");
    }
    for number in 1..=3 {
        let host = format!("h{number}");
        world.on(
            &host,
            "ip link add vx0 type vxlan id 5001 dstport 4789 dev eth0 nolearning",
        );
        world.on(
            &host,
            &format!("ip link set vx0 address 02:00:00:00:01:0{number} up"),
        );
        world.on(&host, "sysctl -qw net.ipv4.conf.vx0.rp_filter=0");
        world.on(&host, "ip address add 20.20.20.100/32 dev lo");
        world.serve(&host);
    }
    let mut muxes = Vec::new();
    for (mux, own) in [("m1", "172.16.0.11"), ("m2", "172.16.0.12")] {
        fs::write(world.path(mux), mux_configuration(own)).unwrap();
        world.on(mux, "ip tuntap add dev slb0 mode tun");
        world.on(mux, "ip link set slb0 up");
        world.on(mux, "ip route add 20.20.20.100/32 dev slb0");
        // What comes out of the device has this node's own address.
        world.on(
            mux,
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.slb0.accept_local=1",
        );
        world.on(mux, "sysctl -qw net.ipv4.conf.slb0.rp_filter=0");
        let slb = format!(
            "{} mux --config {} --status {}.sock --io tun:slb0",
            env!("CARGO_BIN_EXE_slb"),
            world.path(mux).display(),
            world.path(mux).display()
        );
        muxes.push(world.start(mux, &slb));
    }
    let both = Muxes { world, muxes };
    both.route(&["172.16.0.11", "172.16.0.12"]);
    let world = &both.world;
    let ready = (0..50).any(|_| {
        sleep(Duration::from_millis(100));
        let ping = world
            .command("c", "ping -c 1 -W 1 20.20.20.100")
            .output()
            .unwrap();
        ping.status.success()
    });
    assert!(ready);
    both
}

#[test]
#[ignore = "needs root"]
fn two_muxes_serve_through_the_kernels_own_vxlan_and_one_may_die() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let mut both = muxes("m");
    let world = &both.world;
    let mut served = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..60 {
        let page = world.on("c", "curl -sS --max-time 5 http://20.20.20.100:8080/");
        let (host, seen) = page.trim().split_once(' ').unwrap();
        assert_eq!(seen, "198.51.100.10");
        *served.entry(host.to_owned()).or_default() += 1;
    }
    assert!(
        served.len() == 3 && served.values().all(|&count| count >= 6),
        "{served:?}"
    );

    // Slow downloads go on when a mux dies: the other one makes the same choices.
    let downloads = both.downloads(24, "500k");
    sleep(Duration::from_millis(1000));
    drop(both.muxes.remove(0)); // as kill -9 does
    both.route(&["172.16.0.12"]);
    both.all_are_whole(downloads);

    let last = both.muxes.remove(0);
    last.signal("TERM");
    let text = last.finish();
    assert!(text.contains("flows:"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn without_root_three_capabilities_do_and_missing_ones_are_named() {
    if let Some(why) = lacking(&["setpriv"]) {
        skip!("{why}");
    }
    let world = World::new("r", &["c", "m"]);
    world.plain_cable("c", "eth0", "m", "eth0", 1500);
    world.on("c", "ip address add 172.16.0.1/24 dev eth0");
    world.on("m", "ip address add 172.16.0.11/24 dev eth0");
    world.on("c", "ip route add 20.20.20.100 via 172.16.0.11");
    // Where somebody who is not root can read it.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(world.path(""), mode).unwrap();
    fs::write(world.path("mux.toml"), mux_configuration("172.16.0.11")).unwrap();
    let slb = world.path("slb");
    fs::copy(env!("CARGO_BIN_EXE_slb"), &slb).unwrap();
    let run = |rights: &[&str]| {
        let add = |sign: &str| {
            let each = rights.iter().map(|right| format!("{sign}{right}"));
            each.collect::<Vec<_>>().join(",")
        };
        format!(
            "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all,{0} \
             --bounding-set=-all,{0} --ambient-caps=-all,{0} {1} mux --config {2} --status {3} \
             --io afxdp:eth0 --ring 1024",
            add("+"),
            slb.display(),
            world.path("mux.toml").display(),
            world.path("mux.sock").display(),
        )
    };
    for (rights, missing) in [
        (&["net_admin", "net_raw"][..], "missing: CAP_BPF ("),
        (&["bpf"], "missing: CAP_NET_ADMIN, CAP_NET_RAW ("),
    ] {
        let output = world.command("m", &run(rights)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(missing), "{said}");
    }
    let mux = world.start("m", &run(&["net_admin", "net_raw", "bpf"]));
    let answered = (0..50).any(|_| {
        sleep(Duration::from_millis(100));
        let ping = "ping -q -c 1 -W 1 20.20.20.100";
        world.command("c", ping).output().unwrap().status.success()
    });
    assert!(answered, "the mux answers");
    assert!(world.on("m", "ip link show dev eth0").contains("xdp"));
    mux.signal("TERM");
    assert!(mux.finish().contains("replied"));
    assert!(!world.on("m", "ip link show dev eth0").contains("xdp"));
}

#[test]
#[ignore = "needs root"]
fn a_mux_has_a_worker_for_each_queue() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("q", &["c", "m"]);
    let tag = |machine: &str| world.space(machine);
    // Two queues each way: the kernel spreads flows over them.
    assert!(common::sh(&format!(
        "ip link add eth0 netns {} numtxqueues 2 numrxqueues 2 type veth \
         peer name eth0 netns {} numtxqueues 2 numrxqueues 2",
        tag("c"),
        tag("m")
    )));
    for (machine, address) in [("c", "172.16.0.1"), ("m", "172.16.0.11")] {
        let off = "tx off rx off gro off gso off tso off";
        world.on(machine, &format!("ethtool -K eth0 {off}"));
        world.on(machine, "ethtool -L eth0 rx 2 tx 2");
        world.on(machine, &format!("ip address add {address}/24 dev eth0"));
        world.on(machine, "ip link set eth0 up");
    }
    world.on("c", "ip route add 20.20.20.100 via 172.16.0.11");
    fs::write(world.path("mux.toml"), mux_configuration("172.16.0.11")).unwrap();
    let socket = world.path("mux.sock").display().to_string();
    let slb = env!("CARGO_BIN_EXE_slb");
    let config = world.path("mux.toml").display().to_string();
    let mux = world.start(
        "m",
        &format!(
            "{slb} mux --config {config} --status {socket} --io afxdp:eth0 --metrics 127.0.0.1:9100"
        ),
    );
    let ping = || {
        let ping = "ping -q -c 1 -W 1 20.20.20.100";
        world.command("c", ping).output().unwrap().status.success()
    };
    let answered = (0..50).any(|_| {
        sleep(Duration::from_millis(100));
        ping()
    });
    assert!(answered, "the mux answers");
    let status = || {
        let said = world.on(
            "m",
            &format!("{slb} status --socket {socket} --format json"),
        );
        serde_json::from_str::<serde_json::Value>(&said).unwrap()
    };
    // Datagrams of many flows, for a port of no rule: what matters is who gets them.
    let send = "import socket\nfor n in range(400):\n s = socket.socket(2, 2)\n \
                s.sendto(b\"x\", (\"20.20.20.100\", 1000 + n))\n s.close()\n";
    fs::write(world.path("send.py"), send).unwrap();
    world.on("c", &format!("python3 {}", world.path("send.py").display()));
    sleep(Duration::from_millis(200));
    let status = status();
    let workers = status["workers"].as_array().unwrap();
    let received = workers
        .iter()
        .map(|worker| worker["io"]["received"].as_u64().unwrap());
    let received: Vec<u64> = received.collect();
    assert_eq!(received.len(), 2, "{status:#}");
    assert!(received.iter().all(|&count| count > 40), "{received:?}");
    assert_eq!(
        status["received"]["packets"].as_u64(),
        Some(received.iter().sum())
    );
    let no_rule = status["dropped"]["no_rule"]["packets"].as_u64().unwrap();
    assert!(no_rule >= 400);

    // The same as metrics.
    let get = |path: &str| world.on("m", &format!("curl -sS -m 20 http://127.0.0.1:9100/{path}"));
    let metrics = get("metrics");
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    let line = |line: String| {
        assert!(
            metrics.lines().any(|other| other == line),
            "{line}: {metrics}"
        );
    };
    line(format!(
        "slb_dropped_packets_total{{reason=\"no_rule\"}} {no_rule}.0"
    ));
    line("slb_backend_up{pool=\"hosts\",backend=\"h1\"} 1.0".to_owned());
    line("slb_rule_backends{rule=\"http\",frontend=\"web\"} 3.0".to_owned());
    line("# TYPE slb_flows gauge".to_owned());
    assert_eq!(get("healthz"), "well\n");
    assert_eq!(get("readyz"), "ready\n");
    // HEAD: the same headers without a body, which curl would print behind them.
    for (path, length) in [
        ("healthz", Some("5")),
        ("readyz", Some("6")),
        ("metrics", None),
    ] {
        let head = world.on(
            "m",
            &format!("curl -sS -I -m 20 http://127.0.0.1:9100/{path}"),
        );
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        assert!(head.ends_with("\r\n\r\n"), "{path}: {head}");
        let length = length.map_or("content-length: ".to_owned(), |n| {
            format!("content-length: {n}\r")
        });
        assert!(head.contains(&length), "{path}: {head}");
    }
    let post = "curl -sS -i -m 20 -X POST http://127.0.0.1:9100/metrics";
    let post = world.on("m", post).to_ascii_lowercase();
    assert!(post.starts_with("http/1.1 405"), "{post}");
    assert!(post.contains("\r\nallow: get, head\r\n"), "{post}");
    let text = mux_configuration("172.16.0.11").replace("mac = ", "state = \"down\", mac = ");
    fs::write(world.path("mux.toml"), text).unwrap();
    mux.signal("HUP");
    let is_down = (0..100).any(|_| {
        sleep(Duration::from_millis(20));
        get("readyz").starts_with("no backend takes new flows of: web")
    });
    assert!(is_down);
    // Who asks for the status and reads nothing, or says what nobody asked for, keeps nobody else from
    // it for long.
    let rude: Vec<std::os::unix::net::UnixStream> = (0..50)
        .filter_map(|_| {
            use std::io::Write as _;
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).ok()?;
            stream.set_nonblocking(true).ok()?;
            let _ = stream.write(&[b'x'; 70_000]);
            Some(stream)
        })
        .collect();
    assert!(!rude.is_empty());
    world.on("m", &format!("{slb} status --once --socket {socket}"));
    drop(rude);
    // More clients than there are places for, who say nothing, or too much: others have to wait, and
    // packets do not.
    let hold = "import socket, time\nall = [socket.create_connection((\"127.0.0.1\", 9100)) \
                for _ in range(40)]\nfor s in all[:5]: s.sendall(b\"GET /metrics HTTP/1.1\\r\\n\" + \
                b\"x\" * 70000)\ntime.sleep(60)\n";
    fs::write(world.path("hold.py"), hold).unwrap();
    let _held = world.start("m", &format!("python3 {}", world.path("hold.py").display()));
    sleep(Duration::from_millis(500));
    assert!((0..20).all(|_| ping()), "the mux answers");
    assert_eq!(get("healthz"), "well\n");
    mux.signal("TERM");
    assert!(mux.finish().contains("no_rule"));
}

#[test]
#[ignore = "needs root"]
fn a_server_that_refuses_is_left_out_and_tried_again() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let mut world = World::of_proxy("h", "afxdp");
    world.serve("s1");
    world.serve("s2");
    world.configure(&[("s1", 1), ("s2", 1), ("s3", 1)]);
    let path = world.path("proxy.toml");
    let text = fs::read_to_string(&path).unwrap();
    let pool = "name = \"servers\"\n";
    let watched = format!(
        "{pool}passive_failures = 3\npassive_window = \"60s\"\npassive_retry = \"4s\"\n\
         slow_start = \"2s\"\n"
    );
    fs::write(&path, text.replace(pool, &watched)).unwrap();
    let socket = world.path("proxy.sock");
    let slb = env!("CARGO_BIN_EXE_slb");
    let proxy = format!(
        "{slb} proxy --config {} --status {} --io f0=afxdp:f0 --io f1=afxdp:f1 --io back=afxdp:back",
        path.display(),
        socket.display()
    );
    let proxy = world.start("lb", &proxy);
    let get = |world: &World| {
        let curl = "curl -sS --max-time 5 http://10.99.0.1/";
        let output = world.command("c0", curl).output().unwrap();
        let page = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(page)
    };
    // s3 has no server: its kernel refuses. After a few refusals nobody is sent there.
    let state = |world: &World| {
        let status = format!(
            "{slb} status --once --format json --socket {}",
            socket.display()
        );
        let status: serde_json::Value = serde_json::from_str(&world.on("lb", &status)).unwrap();
        status["backends"][2].clone()
    };
    let is_out = (0..200).any(|_| {
        get(&world);
        sleep(Duration::from_millis(50));
        state(&world)["state"] == "unhealthy"
    });
    assert!(is_out, "{}", state(&world));
    assert!(state(&world)["failures"].as_u64() >= Some(3));
    for _ in 0..20 {
        let page = get(&world).expect("the others serve");
        assert!(!page.starts_with("s3"), "{page}");
    }
    // With a server it is tried again, and gets its whole share in the end: a tenth more each fifth of a
    // second, and meanwhile weights are counted in tenths.
    let weights = |world: &World| {
        let status = format!(
            "{slb} status --once --format json --socket {}",
            socket.display()
        );
        let status: serde_json::Value = serde_json::from_str(&world.on("lb", &status)).unwrap();
        [0, 2].map(|place| status["backends"][place]["weight"].as_u64().unwrap())
    };
    let mut seen = std::collections::BTreeSet::new();
    world.serve("s3");
    let is_back = (0..200).any(|_| {
        sleep(Duration::from_millis(20));
        seen.insert(weights(&world));
        get(&world).is_some_and(|page| page.starts_with("s3"))
    });
    assert!(is_back, "{}", state(&world));
    let is_whole = (0..200).any(|_| {
        sleep(Duration::from_millis(20));
        let weights = weights(&world);
        seen.insert(weights);
        weights == [1, 1]
    });
    assert!(is_whole, "{seen:?}");
    assert!(
        seen.iter().filter(|weights| weights[0] == 10).count() >= 2,
        "{seen:?}"
    );
    proxy.signal("TERM");
    let _ = proxy.finish();
}

#[test]
#[ignore = "needs root"]
fn a_thousand_reloads_lose_nothing_move_nobody_and_keep_no_memory() {
    const RELOADS: u64 = 1000;
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let both = muxes("k");
    let world = &both.world;
    let downloads = both.downloads(24, "60k");
    // The mux answers these itself: one lost is one too many.
    let pings = world.start("c", "ping -q -i 0.02 -c 1000 20.20.20.100");
    let own = "172.16.0.11";
    let one = mux_configuration(own);
    let other = one.replace(
        "mac = \"02:00:00:00:01:03\"",
        "weight = 0, mac = \"02:00:00:00:01:03\"",
    );
    let other = other.replace(
        "mac = \"02:00:00:00:01:02\"",
        "weight = 5, mac = \"02:00:00:00:01:02\"",
    );
    let other = format!("{other}[[frontend]]\nname = \"more\"\naddress = \"20.20.20.101\"\n");
    let status = || {
        use std::io::Read as _;
        let socket = world.path("m1.sock");
        let mut text = String::new();
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.read_to_string(&mut text).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let generation = || status()["generation"].as_u64().unwrap();
    let memory = || {
        let pid = status()["pid"].as_u64().unwrap();
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let mut early = 0;
    for reload in 0..RELOADS {
        let text = if reload % 2 == 0 { &other } else { &one };
        // In one step, as editors and configuration tools do.
        fs::write(world.path("m1.new"), text).unwrap();
        fs::rename(world.path("m1.new"), world.path("m1")).unwrap();
        let before = generation();
        both.muxes[0].signal("HUP");
        let is_done = (0..1000).any(|_| {
            sleep(Duration::from_millis(2));
            generation() > before
        });
        assert!(is_done, "reload {reload}");
        if reload == RELOADS / 10 {
            early = memory();
        }
    }
    let late = memory();
    // The allocator's own ups and downs are half a megabyte; one generation that stays has as much.
    assert!(
        late <= early + 2048,
        "{early} kB after a tenth, {late} kB at the end"
    );
    let said = pings.finish();
    assert!(said.contains("1000 received"), "{said}");
    both.all_are_whole(downloads);
    let dropped = &status()["dropped_total"]["packets"];
    assert_eq!(dropped, 0);
}
