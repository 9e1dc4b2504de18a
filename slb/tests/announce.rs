//! The interface that VIPs are announced by, when somebody deletes it, takes it down or removes an address.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use common::world::{Process, World, lacking, log, ready, wait_until};

const VIPS: [&str; 2] = ["20.20.20.100", "2001:db8::100"];

/// A mux on AF_XDP that announces a VIP of each family.
fn start(world: &World) -> Process {
    let text = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
                [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
                [[frontend]]\nname = \"web6\"\naddress = \"2001:db8::100\"\n\
                [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\n\
                protocol = \"tcp\"\nfrontend_port = 80\n\
                [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
                { name = \"web1\", address = \"10.10.0.1\", host = \"172.16.0.101\" },\n]\n";
    fs::write(world.path("m.toml"), text).unwrap();
    world.plain_cable("c", "eth0", "m", "eth0", 1600);
    world.on("c", "ip address add 172.16.0.101/24 dev eth0");
    world.on("c", "ip route add 20.20.20.0/24 via 172.16.0.11");
    world.on("m", "ip address add 172.16.0.11/24 dev eth0");
    world.on("m", "ip route add default via 172.16.0.101");
    let path = |name: &str| world.path(name).display().to_string();
    world.start(
        "m",
        &format!(
            "{} mux --config {} --status {} --io afxdp:eth0 --ring 1024 --announce vips \
             --metrics 127.0.0.1:9100 2>>{}",
            env!("CARGO_BIN_EXE_slb"),
            path("m.toml"),
            path("m.sock"),
            path("m.log")
        ),
    )
}

/// Returns true if the interface is up and leads to the VIP.
fn is_announced(world: &World, vip: &str) -> bool {
    let show = "ip address show dev vips up";
    let output = world.command("m", show).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(&format!("peer {vip}/"))
}

fn pings(world: &World) -> bool {
    let ping = "ping -q -c 1 -W 1 20.20.20.100";
    world.command("c", ping).output().unwrap().status.success()
}

#[track_caller]
fn is_well(world: &World) {
    for vip in VIPS {
        wait_until(world, vip, || is_announced(world, vip));
    }
    wait_until(world, "it is ready", || ready(world) == "ready\n");
    assert!(pings(world));
}

#[test]
#[ignore = "needs root"]
fn what_becomes_of_the_interface_is_noticed_said_and_mended() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("aa", &["c", "m"]);
    let mux = start(&world);
    is_well(&world);
    let said = |what: &str| log(&world).contains(what);

    // Deleted: it is made again.
    world.on("m", "ip link del vips");
    wait_until(&world, "it is not ready", || {
        ready(&world) == "not ready: vips was removed, so no VIP is announced\n"
    });
    is_well(&world);
    assert!(said(
        "vips was deleted, and the VIPs with it: creating it again"
    ));
    assert!(said("vips is there again"));

    // Down: it comes back when whoever took it down brings it up.
    world.on("m", "ip link set vips down");
    wait_until(&world, "it is not ready", || {
        ready(&world) == "not ready: vips is down, so no VIP is announced\n"
    });
    assert!(said("vips was taken down"));
    sleep(Duration::from_secs(2));
    assert!(!is_announced(&world, VIPS[0]));
    // The packets that come all the same are served.
    assert!(pings(&world));
    world.on("m", "ip link set vips up");
    is_well(&world);
    assert!(said("vips is up again"));

    // An address is put back.
    for (own, vip, len) in [("172.16.0.11", VIPS[0], 32), ("fd73:6c62::1", VIPS[1], 128)] {
        world.on(
            "m",
            &format!("ip address del {own} peer {vip}/{len} dev vips"),
        );
        wait_until(&world, vip, || {
            log(&world).contains(&format!(
                "was removed from vips: announcing it again vip={vip}"
            ))
        });
        is_well(&world);
    }

    // It still goes with the process.
    mux.signal("TERM");
    assert!(mux.finish().contains("replied"));
    wait_until(&world, "it is gone", || {
        let show = "ip link show dev vips";
        !world.command("m", show).output().unwrap().status.success()
    });
}
