//! The parts that all made data centres have: a client behind a router, and a fabric that nodes are connected to.
//!
//! ```text
//!  client 198.51.100.10 ── router ── fabric 172.16.0.0/24, fd00:16::/64, MTU 1600
//! ```

use super::world::World;

pub const CLIENT: &str = "198.51.100.10";
pub const CLIENT6: &str = "2001:db8:c::10";

/// Has machines run commands.
pub fn run(world: &World, machine: &str, commands: &[&str]) {
    for command in commands {
        world.on(machine, command);
    }
}

/// Connects the machine `client` to the machine `router`, which has the bridge `fabric`.
pub fn lay_edge(world: &World) {
    world.plain_cable("client", "eth0", "router", "wan", 1500);
    run(
        world,
        "client",
        &[
            &format!("ip address add {CLIENT}/24 dev eth0"),
            &format!("ip address add {CLIENT6}/64 dev eth0"),
            "ip route add default via 198.51.100.1",
            "ip route add default via 2001:db8:c::1",
        ],
    );
    run(
        world,
        "router",
        &[
            "ip address add 198.51.100.1/24 dev wan",
            "ip address add 2001:db8:c::1/64 dev wan",
            "ip link add fabric mtu 1600 type bridge",
            "ip link set fabric up",
            "ip address add 172.16.0.1/24 dev fabric",
            "ip address add fd00:16::1/64 dev fabric",
        ],
    );
}

/// Connects a machine to the fabric, with `number` for the last part of its addresses.
pub fn lay_node(world: &World, machine: &str, number: u32) {
    world.plain_cable(machine, "eth0", "router", machine, 1600);
    world.on("router", &format!("ip link set {machine} master fabric"));
    run(
        world,
        machine,
        &[
            &format!("ip address add 172.16.0.{number}/24 dev eth0"),
            &format!("ip address add fd00:16::{number}/64 dev eth0"),
            "ip route add default via 172.16.0.1",
            "ip route add default via fd00:16::1",
        ],
    );
}
