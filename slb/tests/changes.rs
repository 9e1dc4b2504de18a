//! Changes around a running mux: the MAC address of its interface, and a file that takes something
//! away.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;

use common::world::{Process, World, lacking, log, ready, wait_until};

/// The file of a mux with two backends.
fn configuration(rules: &str, second: &str) -> String {
    format!(
        "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
         [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n{rules}\
         [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
         {{ name = \"web1\", address = \"10.10.0.1\", host = \"172.16.0.101\" }},\n{second}]\n"
    )
}

const RULE: &str = "[[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\nprotocol = \"tcp\"\n\
                    frontend_port = 80\n";
const SECOND: &str = "{ name = \"web2\", address = \"10.10.0.2\", host = \"172.16.0.101\" },\n";

/// A client on the link of a mux on AF_XDP.
fn start(kind: &str) -> (World, Process) {
    let world = World::new(kind, &["c", "m"]);
    world.plain_cable("c", "eth0", "m", "eth0", 1600);
    world.on("c", "ip address add 172.16.0.101/24 dev eth0");
    world.on("c", "ip route add 20.20.20.0/24 via 172.16.0.11");
    world.on("m", "ip address add 172.16.0.11/24 dev eth0");
    world.on("m", "ip route add default via 172.16.0.101");
    fs::write(world.path("m.toml"), configuration(RULE, SECOND)).unwrap();
    let path = |name: &str| world.path(name).display().to_string();
    let mux = world.start(
        "m",
        &format!(
            "{} mux --config {} --socket {} --io afxdp:eth0 --ring 512 --metrics 127.0.0.1:9100 2>>{}",
            env!("CARGO_BIN_EXE_slb"),
            path("m.toml"),
            path("m.sock"),
            path("m.log")
        ),
    );
    wait_until(&world, "it is ready", || ready(&world) == "ready\n");
    (world, mux)
}

#[test]
#[ignore = "needs root"]
fn packets_leave_with_the_mac_address_that_the_interface_has_now() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let (world, mux) = start("cm");
    // Prints the source of the first frame with an echo reply from the VIP.
    let sniff = "import socket, subprocess\n\
                 s = socket.socket(17, 3, socket.htons(0x0800))\n\
                 s.bind((\"eth0\", 0x0800))\n\
                 s.settimeout(2)\n\
                 ping = subprocess.Popen([\"ping\", \"-q\", \"-c\", \"1\", \"-W\", \"1\", \"20.20.20.100\"], stdout=-3)\n\
                 try:\n \
                 while True:\n  \
                 frame = s.recv(2000)\n  \
                 if frame[26:30] == bytes([20, 20, 20, 100]): print(frame[6:12].hex(\":\")); break\n\
                 except TimeoutError: print(\"none\")\n\
                 ping.wait()\n";
    fs::write(world.path("sniff.py"), sniff).unwrap();
    let source = || {
        let script = world.path("sniff.py").display().to_string();
        world
            .on("c", &format!("python3 {script}"))
            .trim()
            .to_owned()
    };
    let own = world
        .on("m", "cat /sys/class/net/eth0/address")
        .trim()
        .to_owned();
    wait_until(&world, "its answers have its address", || source() == own);
    let new = "02:00:00:00:99:11";
    world.on("m", &format!("ip link set eth0 address {new}"));
    world.on(
        "c",
        &format!("ip neighbour replace 172.16.0.11 lladdr {new} dev eth0"),
    );
    wait_until(&world, "its answers have the new address", || {
        source() == new
    });
    // The line may come after the first such answer.
    wait_until(&world, "it is logged", || {
        log(&world).contains("MTU or MAC address changed")
    });
    assert_eq!(ready(&world), "ready\n");
    mux.signal("TERM");
    assert!(mux.finish().contains("replied"));
}

#[test]
#[ignore = "needs root"]
fn a_file_that_takes_away_half_of_a_pool_or_all_rules_of_a_vip_is_warned_of() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let (world, mux) = start("cl");
    let warned = |what: &str| {
        let log = log(&world);
        log.lines()
            .any(|line| line.contains("WARN") && line.contains(what))
    };
    let replace = |text: String| {
        fs::write(world.path("m.new"), text).unwrap();
        fs::rename(world.path("m.new"), world.path("m.toml")).unwrap();
    };
    replace(configuration(RULE, ""));
    wait_until(&world, "the pool is named", || {
        warned("pool \"webs\" loses 1 of its 2 backends")
    });
    assert!(!warned("no longer has a rule"), "{}", log(&world));
    replace(configuration("", ""));
    wait_until(&world, "the VIP is named", || {
        warned("VIP 20.20.20.100 (frontend \"web\") no longer has a rule")
    });
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
}
