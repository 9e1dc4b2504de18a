//! A mux whose fabric is IPv6 only: queues that are taken away, and MTUs that change.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;

use common::world::{Process, World, lacking, log, ready, wait_until};

const VIP: &str = "2001:db8:20::100";

/// A client that is the backend's host as well, and a mux, on a link with two queues.
fn begin(kind: &str) -> (World, Process) {
    let world = World::new(kind, &["c", "m"]);
    world.plain_cable("c", "eth0", "m", "eth0", 1600);
    for (machine, address) in [("c", "fd00:16::101/64"), ("m", "fd00:16::11/64")] {
        world.on(machine, "ethtool -L eth0 rx 2 tx 2");
        world.on(machine, &format!("ip address add {address} dev eth0 nodad"));
    }
    world.on("c", "ip route add 2001:db8:20::/64 via fd00:16::11");
    world.on("m", "ip route add default via fd00:16::101");
    fs::write(
        world.path("m.toml"),
        format!(
            "[node]\nrole = \"mux\"\nunderlay = \"fd00:16::11\"\nflows = 1024\n\
             [[frontend]]\nname = \"web\"\naddress = \"{VIP}\"\n\
             [[rule]]\nname = \"dns\"\nfrontend = \"web\"\npool = \"webs\"\n\
             protocol = \"udp\"\nfrontend_port = 53\n\
             [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
             {{ name = \"web1\", address = \"fd00:10::1\", host = \"fd00:16::101\" }},\n]\n"
        ),
    )
    .unwrap();
    let path = |name: &str| world.path(name).display().to_string();
    let mux = world.start(
        "m",
        &format!(
            "{} mux {} --socket {} --io afxdp:eth0 --ring 512 --announce vips --metrics 127.0.0.1:9100 2>>{}",
            env!("CARGO_BIN_EXE_slb"),
            path("m.toml"),
            path("m.sock"),
            path("m.log")
        ),
    );
    wait_until(&world, "it is ready", || ready(&world) == "ready\n");
    wait_until(&world, "it answers", || all_ping(&world));
    (world, mux)
}

/// Returns true if pings of several sizes, which the driver spreads over the queues, are answered.
fn all_ping(world: &World) -> bool {
    let pings = format!(
        "sh -c 'for n in 1 2 3 4 5 6; do ping -6 -q -c 1 -W 1 -s $((56 + n)) {VIP} >/dev/null || exit 1; done'"
    );
    let output = world.command("c", &pings).output().unwrap();
    output.status.success()
}

#[test]
#[ignore = "needs root"]
fn queues_that_come_and_go_at_either_end_lose_nothing() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let (world, mux) = begin("iq");
    for (machine, count) in [("m", 1), ("m", 2), ("c", 1), ("c", 2)] {
        // Linux may refuse to take a queue that has an AF_XDP socket.
        let set = format!("ethtool -L eth0 rx {count} tx {count}");
        world.command(machine, &set).output().unwrap();
        wait_until(&world, "it answers", || all_ping(&world));
        assert_eq!(ready(&world), "ready\n");
    }
    mux.signal("TERM");
    assert!(mux.finish().contains("replied"));
}

#[test]
#[ignore = "needs root"]
fn an_mtu_that_is_too_small_for_ipv6_is_said_with_what_to_do() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let (world, mux) = begin("im");
    let mtu = |mtu: u32| drop(world.on("m", &format!("ip link set eth0 mtu {mtu}")));
    // Vms may send 1280 bytes, which are 1350 in VXLAN.
    let why = "interfaces carry packets of 1349 bytes, and longer IPv6 packets are lost";
    mtu(1350);
    wait_until(&world, "the change is seen", || {
        log(&world).contains("MTU or MAC address changed")
    });
    // Troubles of the first seconds are not warned of.
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert!(
        !log(&world).contains("IPv6 packets are lost"),
        "{}",
        log(&world)
    );
    mtu(1349);
    wait_until(&world, "it is warned of", || {
        let log = log(&world);
        let warned = log.lines().find(|line| line.contains(why));
        warned.is_some_and(|line| {
            line.contains(" WARN ") && line.contains("ip link set DEVICE mtu 1350")
        })
    });
    // It serves, since most packets fit.
    assert_eq!(ready(&world), "ready\n");
    assert!(all_ping(&world));
    mtu(1600);
    wait_until(&world, "it is over", || {
        log(&world).contains(&format!("no longer so: {why}"))
    });
    // The kernel turns IPv6 off, and does not bring its addresses back.
    mtu(1279);
    let off = "IPv6 is off while the MTU of eth0 is 1279 (ip link set eth0 mtu 1280 or more";
    wait_until(&world, "it is said why", || ready(&world).contains(off));
    mtu(1600);
    wait_until(&world, "the address is missed", || {
        ready(&world)
            .contains("underlay fd00:16::11 is no address of this machine (ip address add)")
    });
    world.on("m", "ip address add fd00:16::11/64 dev eth0 nodad");
    world.on("m", "ip route add default via fd00:16::101");
    wait_until(&world, "it is ready again", || ready(&world) == "ready\n");
    wait_until(&world, "it answers again", || all_ping(&world));
    mux.signal("TERM");
    assert!(mux.finish().contains("replied"));
}
