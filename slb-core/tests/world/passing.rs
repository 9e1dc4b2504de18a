//! Muxes and backends that change together, while connections are under way.

use std::net::SocketAddr;

use slb_core::spec::BackendState;

use crate::net::{CLIENTS, Plan, World, vip};
use crate::stack::Outcome;

/// Connections of each world.
const CONNECTIONS: usize = 120;

fn plan(seed: u64, ipv6: bool) -> Plan {
    let mut plan = Plan::new(seed);
    plan.ipv6 = ipv6;
    plan.muxes = 3;
    plan.terms.tcp_reset = true; // whoever is led astray is told
    plan
}

/// A world in which connections are open, each of which has sent something and got it back.
fn under_way(plan: Plan) -> World {
    let to = SocketAddr::new(vip(plan.ipv6), 80);
    let mut world = World::new(plan);
    for number in 0..CONNECTIONS {
        let bytes = 1 + world.random(1000) as usize;
        world.clients[number % CLIENTS].connect(to, bytes, true);
        let pause = world.random(4);
        world.run(pause);
    }
    world.run(300);
    world
}

/// Has all connections send more and close, and returns how many of them do not finish.
fn broken(world: &mut World) -> usize {
    for client in &mut world.clients {
        client.finish_with(2000);
    }
    world.finish(60_000);
    CONNECTIONS - world.count(Outcome::Finished)
}

fn a_mux_dies_while_a_backend_drains(plan: Plan) -> usize {
    let mut world = under_way(plan);
    world.reconfigure(|plan| plan.states[2] = BackendState::Draining);
    world.kill_mux(1);
    broken(&mut world)
}

#[test]
fn a_mux_that_dies_while_a_backend_drains_breaks_connections() {
    for ipv6 in [false, true] {
        let broken = a_mux_dies_while_a_backend_drains(plan(1, ipv6));
        assert!(broken > 0, "IPv6: {ipv6}");
    }
}
