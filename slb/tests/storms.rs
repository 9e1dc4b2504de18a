//! Storms: hundreds of hosts that are lost and found again, each time together.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fmt::Write as _;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use common::world::{World, lacking, log, ready, wait_until};

/// The number of hosts behind the router, each with a backend.
const HOSTS: usize = 300;

#[test]
#[ignore = "needs root"]
fn hosts_that_flap_are_a_few_lines_and_all_in_the_status() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("us", &["c", "m"]);
    world.plain_cable("c", "eth0", "m", "eth0", 1600);
    world.on("c", "ip address add 172.16.0.101/24 dev eth0");
    world.on("m", "ip address add 172.16.0.11/24 dev eth0");
    let mut text = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
                    [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
                    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\n\
                    protocol = \"tcp\"\nfrontend_port = 80\n\
                    [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n"
        .to_owned();
    for n in 0..HOSTS {
        let (a, b) = (n / 250, 1 + n % 250);
        let _ = writeln!(
            text,
            "{{ name = \"web{n}\", address = \"10.10.{a}.{b}\", host = \"172.31.{a}.{b}\" }},"
        );
    }
    text += "]\n";
    fs::write(world.path("m.toml"), text).unwrap();
    let route = "ip route replace 172.31.0.0/16 via 172.16.0.101";
    world.on("m", "ip route add default via 172.16.0.101");
    world.on("m", route);
    let path = |name: &str| world.path(name).display().to_string();
    let slb = env!("CARGO_BIN_EXE_slb");
    let mux = world.start(
        "m",
        &format!(
            "{slb} mux {} --socket {} --io afxdp:eth0 --ring 1024 --metrics 127.0.0.1:9100 2>>{}",
            path("m.toml"),
            path("m.sock"),
            path("m.log")
        ),
    );
    let states = || {
        let ask = format!("{slb} status --format json --socket {}", path("m.sock"));
        let output = world.command("m", &ask).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let all = status["backends"].as_array().cloned().unwrap_or_default();
        let of = |state: &str| all.iter().filter(|own| own["state"] == state).count();
        (of("healthy"), of("unreachable"))
    };
    wait_until(&world, "it is ready", || ready(&world) == "ready\n");
    let lose = || {
        // Without the default route as well: no route leads to any host.
        world.on("m", "ip route del default");
        world.on("m", "ip route del 172.31.0.0/16");
        wait_until(&world, "all are lost", || states() == (0, HOSTS));
    };
    let find = || {
        world.on("m", "ip route add default via 172.16.0.101");
        world.on("m", route);
        wait_until(&world, "all are back", || states() == (HOSTS, 0));
    };
    for _ in 0..4 {
        lose();
        find();
    }
    let lines = |level: &str, what: &str| {
        let log = log(&world);
        log.lines()
            .filter(|line| line.contains(level) && line.contains(what))
            .count()
    };
    // Without a limit these are 84 lines of each kind.
    let (lost, found) = (lines(" WARN ", "unreachable"), lines(" INFO ", "reachable"));
    assert!((1..=30).contains(&lost), "{lost}: {}", log(&world));
    assert!((1..=30).contains(&found), "{found}: {}", log(&world));
    // The rest is counted, and told a moment later.
    wait_until(&world, "the rest is counted", || {
        let log = log(&world);
        let rest = |end: &str| -> usize {
            let lines = log.lines().filter(|line| line.contains(end));
            let counts = lines.filter_map(|line| {
                let (before, _) = line.split_once(" more addresses ")?;
                before.rsplit(' ').next()?.parse::<usize>().ok()
            });
            counts.sum()
        };
        let named = |event: &str| log.matches(&format!("event=\"{event}\"")).count();
        // The default route is an address of its own at a mux with answers of its own.
        let lost = rest("unreachable") + named("unreachable");
        let found = rest("reachable again") + named("reachable");
        lost >= 4 * HOSTS && found >= 4 * HOSTS
    });
    sleep(Duration::from_millis(100));
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
}
