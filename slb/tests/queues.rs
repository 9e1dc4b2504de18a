//! Queues of an interface that a process leaves out.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;

use common::world::{Process, World, lacking, log, ready, wait_until};

const CONFIGURATION: &str = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
    [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"webs\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
    [[pool]]\nname = \"webs\"\nvni = 5001\nbackends = [\n\
    { name = \"web1\", address = \"10.10.0.1\", host = \"172.16.0.101\" },\n]\n";

/// Starts a mux at some queues of a veth that has four, with a log of its own.
fn start(world: &World, device: &str) -> Process {
    let path = |name: &str| world.path(name).display().to_string();
    let _ = fs::remove_file(world.path("m.log"));
    let mux = world.start(
        "m",
        &format!(
            "{} mux --config {} --socket {} --io {device} --ring 512 --metrics 127.0.0.1:9100 2>>{}",
            env!("CARGO_BIN_EXE_slb"),
            path("m.toml"),
            path("m.sock"),
            path("m.log")
        ),
    );
    wait_until(world, "it is ready", || ready(world) == "ready\n");
    mux
}

#[test]
#[ignore = "needs root"]
fn queues_that_are_left_out_are_warned_of() {
    if let Some(why) = lacking(&["ethtool"]) {
        skip!("{why}");
    }
    let world = World::new("qu", &["m"]);
    for command in [
        "ip link add eth0 numrxqueues 4 numtxqueues 4 type veth peer name eth1 numrxqueues 4 numtxqueues 4",
        "ip link set eth1 up",
        "ip link set eth0 up",
        "ip address add 172.16.0.11/24 dev eth0",
        "ip route add default via 172.16.0.101",
    ] {
        world.on("m", command);
    }
    fs::write(world.path("m.toml"), CONFIGURATION).unwrap();
    const WARNING: &str = "these queues have no worker";
    for (device, left_out) in [
        ("afxdp:eth0:0", Some("1,2,3")),
        ("afxdp:eth0:1-2", Some("0,3")),
        ("afxdp:eth0", None),
    ] {
        let mux = start(&world, device);
        let said = log(&world);
        let warned = said.lines().filter(|line| line.contains(WARNING));
        let warned: Vec<&str> = warned.collect();
        match (left_out, warned.as_slice()) {
            (None, []) => {}
            (Some(queues), [line]) => {
                let fields = format!("interface=\"eth0\" queues=\"{queues}\"");
                assert!(line.contains("WARN") && line.contains(&fields), "{line}");
                assert!(line.contains("ethtool -L"), "{line}");
            }
            _ => panic!("{device}: {said}"),
        }
        mux.signal("TERM");
        assert!(mux.finish().contains("flows:"));
    }
}
