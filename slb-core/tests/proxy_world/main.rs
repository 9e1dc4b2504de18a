//! A proxy between real TCP stacks (smoltcp), in both port modes, over wires that lose, double and
//! reorder, while backends come and go. All of it follows from a seed, which is in the message of
//! every assertion.

pub(crate) mod net;
use crate::world::stack;

use std::net::SocketAddr;

use net::{CLIENTS, Plan, SERVERS, World, client, server, vip};
use slb_core::spec::{BackendState, PortMode, Scheduler};
use stack::Outcome;

/// Opens connections from all clients to `to`, one every few milliseconds.
fn open(world: &mut World, count: usize, to: SocketAddr) {
    for number in 0..count {
        let bytes = 1 + world.random(20_000) as usize;
        world.clients[number % CLIENTS].connect(to, bytes, false);
        let pause = world.random(4);
        world.run(pause);
    }
}

fn all_finish(world: &mut World, count: usize) {
    world.finish(600_000);
    let seed = world.plan.seed;
    assert_eq!(world.count(Outcome::Finished), count, "seed {seed}");
}

#[test]
fn connections_finish_in_both_modes_and_families_over_bad_wires() {
    for (seed, mode) in [(1, PortMode::Single), (2, PortMode::Multi)] {
        for ipv6 in [false, true] {
            let mut plan = Plan::new(seed, mode);
            (plan.ipv6, plan.loss, plan.delay) = (ipv6, 10, 5);
            let mut world = World::new(plan);
            open(&mut world, 400, SocketAddr::new(vip(ipv6), 80));
            all_finish(&mut world, 400);
            for server in &world.servers {
                let known = |peer: &SocketAddr| (0..CLIENTS).any(|c| peer.ip() == client(c, ipv6));
                assert!(server.peers.keys().all(known), "seed {seed}");
                assert!(server.peers.len() > 400 / SERVERS / 2, "seed {seed}");
            }
        }
    }
}

#[test]
fn no_connection_breaks_while_backends_come_and_go() {
    for (seed, mode) in [(3, PortMode::Single), (4, PortMode::Multi)] {
        for scheduler in [Scheduler::Maglev, Scheduler::LeastConnections] {
            let mut plan = Plan::new(seed, mode);
            (plan.scheduler, plan.delay) = (scheduler, 3);
            let mut world = World::new(plan);
            for round in 0..40 {
                open(&mut world, 10, SocketAddr::new(vip(false), 80));
                let number = world.random(SERVERS as u64) as usize;
                let weight = world.random(10) as u32;
                world.reconfigure(|plan| match round % 4 {
                    0 => plan.servers[number].0 = weight,
                    1 => plan.servers[number].1 = BackendState::Draining,
                    2 => plan.servers[number].2 ^= true, // taken out, or put back
                    _ => plan.servers[number].1 = BackendState::Up,
                });
                // Somebody has to serve new ones.
                world.reconfigure(|plan| plan.servers[0] = (1, BackendState::Up, true));
            }
            all_finish(&mut world, 400);
        }
    }
}

#[test]
fn clients_reach_servers_through_it_by_their_own_addresses_too() {
    for mode in [PortMode::Single, PortMode::Multi] {
        let mut world = World::new(Plan::new(5, mode));
        open(&mut world, 100, SocketAddr::new(server(1, false), 8080));
        open(&mut world, 100, SocketAddr::new(vip(false), 80));
        all_finish(&mut world, 200);
        assert_eq!(world.proxy.stats().connections.made, 100);
    }
}

#[test]
fn with_tcp_reset_real_stacks_take_what_they_are_told() {
    for mode in [PortMode::Single, PortMode::Multi] {
        let mut plan = Plan::new(6, mode);
        plan.terms.tcp_reset = true;
        let mut world = World::new(plan);
        for number in 0..CLIENTS {
            world.clients[number].connect(SocketAddr::new(vip(false), 80), 100, true);
        }
        world.run(2000);
        assert!((0..CLIENTS).all(|n| world.clients[n].has_all(0)));
        let served =
            |world: &World| -> usize { world.servers.iter().map(stack::Stack::served_now).sum() };
        assert_eq!(served(&world), CLIENTS);
        world.skip(240_000 + 10_000);
        assert_eq!(world.count(Outcome::Broken), CLIENTS);
        assert_eq!(served(&world), 0);
        assert_eq!(world.proxy.stats().resets, 2 * CLIENTS as u64);
    }
}
