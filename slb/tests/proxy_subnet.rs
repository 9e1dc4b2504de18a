//! A proxy over AF_XDP between clients and backends of one subnet, and backends behind a router.
//!
//! ```text
//!  c1 ─┐                                        ┌─ s1, s2
//!      ├─ cs ── front [ lb, 10.0.0.5 ] back ── ss ─┤
//!  c2 ─┘                                        └─ r ── s4
//! ```
//! `cs` and `ss` are switches. The VIP is an address of s1 too, so all clients have its MAC address for it.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::collections::BTreeSet;
use std::fs;

use common::world::{Process, World, lacking, log, peer, wait_until};

const MACHINES: [&str; 9] = ["c1", "c2", "cs", "lb", "ss", "s1", "s2", "r", "s4"];

fn lay(kind: &str) -> World {
    let mut world = World::new(kind, &MACHINES);
    for (switch, members) in [("cs", &["c1", "c2"][..]), ("ss", &["s1", "s2", "r"])] {
        world.on(switch, "ip link add sw type bridge");
        world.on(switch, "ip link set sw up");
        for member in members {
            world.plain_cable(member, "eth0", switch, member, 1500);
            world.on(switch, &format!("ip link set {member} master sw"));
        }
    }
    for (switch, port) in [("cs", "front"), ("ss", "back")] {
        world.plain_cable("lb", port, switch, port, 1500);
        world.on(switch, &format!("ip link set {port} master sw"));
    }
    for (machine, number) in [("c1", 1), ("c2", 2), ("s1", 11), ("s2", 12), ("r", 254)] {
        world.on(
            machine,
            &format!("ip address add 10.0.0.{number}/24 dev eth0"),
        );
        world.on(
            machine,
            &format!("ip address add fd00::{number}/64 dev eth0 nodad"),
        );
    }
    world.on("lb", "ip address add 10.0.0.5/24 dev back");
    world.on("lb", "ip address add fd00::5/64 dev back nodad");
    world.on("lb", "ip route add 10.1.0.0/24 via 10.0.0.254");
    world.on("s1", "ip address add 10.0.0.100/32 dev eth0");
    world.on("s1", "ip address add fd00::100/128 dev eth0 nodad");
    world.plain_cable("s4", "eth0", "r", "s4", 1500);
    world.on("r", "sysctl -qw net.ipv4.ip_forward=1");
    world.on("r", "ip address add 10.1.0.1/24 dev s4");
    world.on("s4", "ip address add 10.1.0.14/24 dev eth0");
    world.on("s4", "ip route add default via 10.1.0.1");
    for server in ["s1", "s2", "s4"] {
        world.serve(server);
    }
    world
}

fn configure(world: &World, backends: &[(&str, &str)]) {
    let backend = |(name, address): &(&str, &str)| {
        format!("{{ name = \"{name}\", address = \"{address}\" }},")
    };
    let list: String = backends.iter().map(backend).collect();
    let text = format!(
        "[node]\nrole = \"proxy\"\n\
         [[frontend]]\nname = \"web\"\naddress = \"10.0.0.100\"\n\
         [[frontend]]\nname = \"web6\"\naddress = \"fd00::100\"\n\
         [[pool]]\nname = \"webs\"\nbackends = [ {list} ]\n\
         [[pool]]\nname = \"webs6\"\nbackends = [\n\
         {{ name = \"s1\", address = \"fd00::11\" }}, {{ name = \"s2\", address = \"fd00::12\" }} ]\n\
         [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\n\
         protocol = \"tcp\"\nfrontend_port = 80\nbackend_port = 8080\n\
         [[rule]]\nname = \"datagrams\"\nfrontend = \"web\"\npool = \"webs\"\n\
         protocol = \"udp\"\nfrontend_port = 7\nbackend_port = 8080\n\
         [[rule]]\nname = \"ping6\"\nfrontend = \"web6\"\npool = \"webs6\"\nprotocol = \"icmp\"\n"
    );
    fs::write(world.path("m.toml"), text).unwrap();
}

fn start(world: &World) -> Process {
    let path = |name: &str| world.path(name).display().to_string();
    world.start(
        "lb",
        &format!(
            "{} proxy {} --status {} --io frontend=afxdp:front --io backend=afxdp:back 2>>{}",
            env!("CARGO_BIN_EXE_slb"),
            path("m.toml"),
            path("m.sock"),
            path("m.log")
        ),
    )
}

fn status(world: &World) -> String {
    let socket = world.path("m.sock");
    let slb = env!("CARGO_BIN_EXE_slb");
    world.on(
        "lb",
        &format!("{slb} status --once --socket {}", socket.display()),
    )
}

fn page(world: &World, client: &str) -> String {
    let curl = "curl -sS -m 5 http://10.0.0.100/";
    let output = world.command(client, curl).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[ignore = "needs root"]
fn clients_and_backends_of_one_subnet_and_behind_a_router_are_served() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = lay("ps");
    let all = [
        ("s1", "10.0.0.11"),
        ("s2", "10.0.0.12"),
        ("s4", "10.1.0.14"),
    ];
    configure(&world, &all);
    let proxy = start(&world);
    wait_until(&world, "it serves", || {
        page(&world, "c1").starts_with('s') && log(&world).contains("unresolved=\"none\"")
    });
    for (client, own) in [("c1", "10.0.0.1"), ("c2", "10.0.0.2")] {
        let mut served = BTreeSet::new();
        for _ in 0..40 {
            let said = page(&world, client);
            let (server, seen) = said.trim().split_once(' ').unwrap_or_default();
            assert_eq!(seen, own, "{said}");
            served.insert(server.to_owned());
        }
        assert_eq!(served.len(), 3, "{client}: {served:?}");
        let failed = world.on(client, &peer("requests 10.0.0.100 80 7 100"));
        assert_eq!(failed.trim(), "0", "{client}");
        let size = world.on(
            client,
            "curl -sS -m 20 -o /dev/null -w %{size_download} http://10.0.0.100/3000000",
        );
        assert_eq!(size, "3000000");
        world.on(client, "ping -6 -q -c 8 -i 0.05 -W 2 fd00::100");
        // What is for no service crosses as it is.
        world.on(client, "ping -q -c 2 -i 0.05 -W 2 10.0.0.12");
    }

    // A machine that nobody has at its address.
    configure(&world, &[all[0], all[1], all[2], ("gone", "10.0.0.13")]);
    proxy.signal("HUP");
    let line =
        "webs/gone: no neighbour entry for 10.0.0.13 on the way to 10.0.0.13, packets are lost";
    wait_until(&world, "it is named", || log(&world).contains(line));
    wait_until(&world, "its state", || {
        let said = status(&world);
        said.lines()
            .any(|line| line.contains("gone") && line.contains("unreachable"))
    });
    let failed = world.on("c1", &peer("requests 10.0.0.100 80 7 40"));
    assert_eq!(failed.trim(), "0", "{}", log(&world));
    proxy.signal("TERM");
    assert!(proxy.finish().contains("connections:"));
}

#[test]
#[ignore = "needs root"]
fn a_proxy_without_an_address_among_its_backends_says_what_it_needs() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = lay("pn");
    world.on("lb", "ip address flush dev back");
    configure(&world, &[("s1", "10.0.0.11"), ("s2", "10.0.0.12")]);
    let _proxy = start(&world);
    wait_until(&world, "it says so", || {
        log(&world).contains(
            "webs/s1 (one of 4): no route leads there by back, the backend port's interface, so packets keep the \
             MAC address that clients have for the VIP",
        )
    });
    // As it says: with an address it serves from both.
    world.on("lb", "ip address add 10.0.0.5/24 dev back");
    let mut served = BTreeSet::new();
    wait_until(&world, "both serve", || {
        served.insert(page(&world, "c1").chars().take(2).collect::<String>());
        ["s1", "s2"].iter().all(|server| served.contains(*server))
    });
}

/// A proxy that is the router between two subnets.
/// ```text
///  c, 10.0.1.10 ── front, 10.0.1.1 [ lb ] 10.0.2.1, back ── s1, 10.0.2.11
/// ```
fn lay_two_subnets(kind: &str) -> World {
    let mut world = World::new(kind, &["c", "lb", "s1"]);
    world.plain_cable("c", "eth0", "lb", "front", 1500);
    world.plain_cable("s1", "eth0", "lb", "back", 1500);
    for (end, port, subnet, host) in [("c", "front", 1, 10), ("s1", "back", 2, 11)] {
        world.on(
            end,
            &format!("ip address add 10.0.{subnet}.{host}/24 dev eth0"),
        );
        world.on(
            end,
            &format!("ip address add fd00:{subnet}::{host}/64 dev eth0 nodad"),
        );
        world.on(end, &format!("ip route add default via 10.0.{subnet}.1"));
        world.on(end, &format!("ip route add default via fd00:{subnet}::1"));
        world.on(
            "lb",
            &format!("ip address add 10.0.{subnet}.1/24 dev {port}"),
        );
        world.on(
            "lb",
            &format!("ip address add fd00:{subnet}::1/64 dev {port} nodad"),
        );
    }
    world.on("lb", "sysctl -qw net.ipv4.ip_forward=1");
    world.on("lb", "sysctl -qw net.ipv6.conf.all.forwarding=1");
    world.serve("s1");
    world.serve("c");
    let text = "[node]\nrole = \"proxy\"\n\
                [[frontend]]\nname = \"web\"\naddress = \"10.9.9.9\"\n\
                [[pool]]\nname = \"webs\"\nbackends = [ { name = \"s1\", address = \"10.0.2.11\" } ]\n\
                [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\n\
                protocol = \"tcp\"\nfrontend_port = 80\nbackend_port = 8080\n";
    fs::write(world.path("m.toml"), text).unwrap();
    world
}

#[test]
#[ignore = "needs root"]
fn a_proxy_is_the_router_between_two_subnets() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = lay_two_subnets("pr");
    let proxy = start(&world);
    let get = |from: &str, url: &str| {
        let curl = format!("curl -sS -m 5 http://{url}/");
        let output = world.command(from, &curl).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    wait_until(&world, "it serves", || {
        get("c", "10.9.9.9") == "s1 10.0.1.10\n"
    });
    // What is for no VIP, in both directions and families, begun by either side.
    for _ in 0..5 {
        assert_eq!(get("c", "10.9.9.9"), "s1 10.0.1.10\n");
        assert_eq!(get("c", "10.0.2.11:8080"), "s1 10.0.1.10\n");
        assert_eq!(get("s1", "10.0.1.10:8080"), "c 10.0.2.11\n");
    }
    world.on("c", "ping -q -c 3 -i 0.05 -W 2 10.0.2.11");
    world.on("s1", "ping -q -c 3 -i 0.05 -W 2 10.0.1.10");
    world.on("c", "ping -6 -q -c 3 -i 0.05 -W 2 fd00:2::11");
    world.on("s1", "ping -6 -q -c 3 -i 0.05 -W 2 fd00:1::10");
    let size = world.on(
        "c",
        "curl -sS -m 20 -o /dev/null -w %{size_download} http://10.0.2.11:8080/3000000",
    );
    assert_eq!(size, "3000000");
    // It is a router: hops count, and it names itself.
    let ping = "ping -c 1 -t 1 -W 2 10.0.2.11";
    let output = world.command("c", ping).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("From 10.0.1.1") && said.contains("Time to live"),
        "{said}"
    );
    // Where the machine forwards nothing, neither does this one.
    world.on("lb", "sysctl -qw net.ipv4.ip_forward=0");
    let ping = "ping -q -c 1 -W 1 10.0.2.11";
    assert!(!world.command("c", ping).output().unwrap().status.success());
    assert_eq!(get("c", "10.9.9.9"), "s1 10.0.1.10\n");
    proxy.signal("TERM");
    let said = proxy.finish();
    assert!(said.contains("not_passed 0"), "{said}");
}
