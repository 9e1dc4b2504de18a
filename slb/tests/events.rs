//! Events: the page has all of them, and each is one line of the log.
//!
//! The second needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{World, lacking};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rows of the page: an event, its level and its fields.
fn listed() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let page = fs::read_to_string(root().join("docs/events.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let quoted = |cell: &str| -> BTreeSet<String> {
            cell.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        let name = quoted(cells[1]).pop_first().unwrap();
        (name, (cells[2].to_owned(), quoted(cells[3])))
    })
    .collect()
}

#[test]
fn the_page_has_every_event_and_no_other() {
    let mut made = BTreeSet::new();
    let mut folders = vec![root().join("slb/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            let parts = text.split("event = \"").skip(1);
            made.extend(parts.map(|part| part.split('"').next().unwrap().to_owned()));
        }
    }
    assert!(made.len() > 15, "{made:?}");
    assert_eq!(listed().into_keys().collect::<BTreeSet<_>>(), made);
}

const CONFIGURATION: &str = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\nmtu = 1500\nflows = 64\n\
    [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
    [[probe]]\nname = \"tcp\"\nprotocol = \"tcp\"\nport = 8000\ninterval = \"5s\"\ntimeout = \"1s\"\n\
    [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
    { name = \"here\", address = \"172.16.0.12\", host = \"172.16.0.101\" } ]\n\
    [[pool]]\nname = \"others\"\nvni = 5002\nbackends = [\n\
    { name = \"b\", address = \"10.10.0.2\", host = \"172.16.0.101\" } ]\n\
    [[rule]]\nname = \"probed\"\nfrontend = \"web\"\npool = \"webs\"\nprobe = \"tcp\"\nprotocol = \"tcp\"\n\
    frontend_port = 80\n\
    [[rule]]\nname = \"datagrams\"\nfrontend = \"web\"\npool = \"others\"\nprotocol = \"udp\"\n\
    frontend_port = 53\n";

#[test]
#[ignore = "needs root"]
fn each_event_is_one_line_with_its_fields() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let world = World::new("ev", &["m"]);
    for command in [
        "ip link add eth0 type veth peer name eth1",
        "ip link set eth1 up",
        "ip link set eth0 up",
        "ip address add 172.16.0.11/24 dev eth0",
        "ip tuntap add dev slb0 mode tun",
        "ip link set slb0 up",
        "ip route add 20.20.20.100/32 dev slb0",
    ] {
        world.on("m", command);
    }
    // The backend's address is this machine's too, so that it can be probed.
    let text = CONFIGURATION;
    world.on("m", "ip address add 172.16.0.12/24 dev eth0");
    fs::write(world.path("m.toml"), text).unwrap();
    let server = world.start(
        "m",
        "python3 -m http.server --bind 172.16.0.12 8000 2>/dev/null",
    );
    sleep(Duration::from_millis(500));
    let path = |name: &str| world.path(name).display().to_string();
    let mux = world.start(
        "m",
        &format!(
            "{} mux --config {} --io tun:slb0 --socket {} --log json 2>>{}",
            env!("CARGO_BIN_EXE_slb"),
            path("m.toml"),
            path("m.sock"),
            path("m.log"),
        ),
    );
    let listed = listed();
    let events = || -> Vec<Value> {
        let log = fs::read_to_string(world.path("m.log")).unwrap_or_default();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line.get("event").is_some()).collect()
    };
    let wait_for = |name: &str| -> Value {
        let end = Instant::now() + Duration::from_secs(45);
        loop {
            let all = events();
            let mut own = all.iter().filter(|event| event["event"] == name);
            if let Some(event) = own.next() {
                let (level, fields) = &listed[name];
                assert_eq!(event["level"].as_str(), Some(level.as_str()), "{event}");
                let usual = ["timestamp", "level", "message", "event"];
                let has = event.as_object().unwrap().keys();
                let has: BTreeSet<String> = has
                    .filter(|field| !usual.contains(&field.as_str()))
                    .cloned()
                    .collect();
                assert_eq!(&has, fields, "{event}");
                return event.clone();
            }
            assert!(Instant::now() < end, "no {name}: {all:#?}");
            sleep(Duration::from_millis(100));
        }
    };
    wait_for("running");

    // A backend that stops, and is back.
    drop(server);
    let event = wait_for("backend_unhealthy");
    assert_eq!(event["pool"], "webs");
    assert_eq!(event["backend"], "here");
    assert_eq!(event["address"], "172.16.0.12:8000");
    assert_eq!(event["rules"], "probed");
    assert!(
        event["why"].as_str().unwrap().contains("no connection"),
        "{event}"
    );
    let _server = world.start(
        "m",
        "python3 -m http.server --bind 172.16.0.12 8000 2>/dev/null",
    );

    // Datagrams for no rule, and of more flows than there are places.
    // They are paced: a TUN device's queue is short, and the kernel drops the rest unseen.
    let send = "import socket, sys, time\n\
                port, count, sources = map(int, sys.argv[1:])\n\
                all = [socket.socket(2, 2) for _ in range(sources)]\n\
                for n in range(count):\n\
                \x20   all[n % sources].sendto(b\"x\", (\"20.20.20.100\", port))\n\
                \x20   if n % 50 == 49: time.sleep(0.005)\n";
    fs::write(world.path("send.py"), send).unwrap();
    world.on("m", &format!("python3 {} 9 30000 1", path("send.py")));
    assert_eq!(wait_for("flood")["reason"], "no_rule");
    world.on("m", &format!("python3 {} 53 900 900", path("send.py")));
    wait_for("table_full");

    // A configuration that is good, and one that is not.
    fs::write(
        world.path("m.toml"),
        text.replace("frontend_port = 53", "frontend_port = 54"),
    )
    .unwrap();
    mux.signal("HUP");
    assert_eq!(
        wait_for("configuration_in_place")["generation"]
            .as_u64()
            .map(|own| own > 1),
        Some(true)
    );
    fs::write(world.path("m.toml"), "[node]\n").unwrap();
    mux.signal("HUP");
    wait_for("configuration_refused");

    // Over, a while after the last packet.
    let over = wait_for("flood_over");
    assert!(over["packets"].as_u64().unwrap() >= 1000, "{over}");
    wait_for("table_full_over");
    wait_for("backend_healthy");
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
    wait_for("draining");
    // However long it lasted, each is there once.
    for name in ["flood", "flood_over", "table_full", "table_full_over"] {
        let count = events()
            .iter()
            .filter(|event| event["event"] == name)
            .count();
        assert_eq!(count, 1, "{name}");
    }
}
