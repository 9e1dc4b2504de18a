//! Connections go on in another instance: real TCP stacks (smoltcp) talk through muxes, host agents and
//! a proxy that are replaced at any moment, each by a new one that gets its state as records. All of it
//! follows from a seed, which is in the message of every assertion.

use crate::proxy_world::net as proxy_net;
use crate::world::net;
use crate::world::stack;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use net::{CLIENTS, ELSEWHERE, HOSTS, Node, Plan, VMS, World, client, vip};
use slb_core::spec::{BackendState, PortMode, Scheduler};
use slb_core::state::{Age, Cursor, Exported, Imported, RECORD_MOST};
use slb_core::{Host, Key, Mux, Proxy};
use stack::Outcome;

/// The new instance's secrets are others.
const KEY: Key = Key::new([77, 78]);

/// Everything that there is to export, call by call.
fn export(mut step: impl FnMut(Cursor, &mut [u8]) -> Exported) -> Vec<u8> {
    let (mut all, mut next) = (Vec::new(), Some(Cursor::START));
    let mut buffer = [0; 10 * RECORD_MOST];
    while let Some(cursor) = next {
        let exported = step(cursor, &mut buffer);
        all.extend(&buffer[..exported.len]);
        next = exported.next;
    }
    all
}

/// The records one by one, in an order of their own.
fn sorted(records: &[u8]) -> Vec<&[u8]> {
    let (mut all, mut rest) = (Vec::new(), records);
    while !rest.is_empty() {
        let len = u16::from_be_bytes([rest[0], rest[1]]);
        let (record, others) = rest.split_at(len.into());
        all.push(record);
        rest = others;
    }
    all.sort_unstable();
    all
}

fn no_refusals(imported: Imported, records: &[u8], seed: u64) {
    assert_eq!(imported.all_refused(), 0, "seed {seed}: {imported:?}");
    assert_eq!(imported.taken, sorted(records).len() as u64, "seed {seed}");
}

/// Replaces a host agent by one that has its connections, and nothing else of it.
fn replace_host(world: &mut World, number: usize) {
    let (now, seed) = (world.clock(), world.plan.seed);
    let old = &world.hosts[number];
    let records = export(|cursor, into| old.export(cursor, into));
    // Ids are given anew: those of its own history count for nothing.
    let snapshot = world.plan.snapshot(Node::Host(number), None);
    let mut new = Host::with_capacity(Arc::new(snapshot), 1 << 14, KEY).expect("its role");
    no_refusals(
        new.import(now, Age::default(), &records).unwrap(),
        &records,
        seed,
    );
    // All that a record says is as it was, the time that is left too.
    let again = export(|cursor, into| new.export(cursor, into));
    assert_eq!(sorted(&again), sorted(&records), "seed {seed}");
    let (before, after) = (old.stats().connections, new.stats().connections);
    assert_eq!(after.unanswered, before.unanswered, "seed {seed}");
    assert_eq!((after.imported, after.made), (after.live, 0));
    for (old_backend, backend) in old
        .snapshot()
        .backends()
        .iter()
        .zip(new.snapshot().backends())
    {
        let (Some(before), Some(after)) = (
            old.snat_counters(old_backend.id()),
            new.snat_counters(backend.id()),
        ) else {
            continue;
        };
        // Those whose time has come and that no sweep has met yet are not exported.
        assert!(after.connections <= before.connections, "seed {seed}");
        assert_eq!(after.ports, before.ports, "seed {seed}");
    }
    world.hosts[number] = new;
}

/// Replaces a mux.
fn replace_mux(world: &mut World, number: usize) {
    let (now, seed) = (world.clock(), world.plan.seed);
    let Some(old) = &world.muxes[number] else {
        return;
    };
    let records = export(|cursor, into| old.export(cursor, into));
    let snapshot = world.plan.snapshot(Node::Mux(number), None);
    let mut new = Mux::with_capacity(Arc::new(snapshot), 1 << 14, KEY).expect("its role");
    no_refusals(
        new.import(now, Age::default(), &records).unwrap(),
        &records,
        seed,
    );
    let again = export(|cursor, into| new.export(cursor, into));
    assert_eq!(sorted(&again), sorted(&records), "seed {seed}");
    let flows = new.stats().flows;
    assert_eq!((flows.imported, flows.made), (flows.live, 0));
    world.muxes[number] = Some(new);
}

fn all_finish(world: &mut World, count: usize) {
    let seed = world.plan.seed;
    world.finish(600_000);
    assert_eq!(world.count(Outcome::Finished), count, "seed {seed}");
    assert_eq!(world.astray, Vec::<String>::new(), "seed {seed}");
}

/// Opens connections, of vms too unless these have the VIP as an address of their own, and lets something
/// happen now and then. Returns how many it opened.
fn busy(world: &mut World, count: usize, mut now_and_then: impl FnMut(&mut World, usize)) -> usize {
    let ipv6 = world.plan.ipv6;
    let calls_out = !world.plan.terms.floating_ip;
    for number in 0..count {
        let bytes = 1 + world.random(20_000) as usize;
        let to = SocketAddr::new(vip(ipv6), 80);
        world.clients[number % CLIENTS].connect(to, bytes, false);
        if calls_out {
            let to = SocketAddr::new(client(number % CLIENTS, ipv6), ELSEWHERE);
            world.vms[number % VMS].connect(to, bytes, false);
        }
        let pause = world.random(6);
        world.run(pause);
        if number % 10 == 9 {
            now_and_then(world, number / 10);
        }
    }
    if calls_out { 2 * count } else { count }
}

#[test]
fn no_connection_notices_that_host_agents_are_replaced() {
    for seed in 1..=6 {
        let mut plan = Plan::new(seed);
        (plan.loss, plan.delay) = (10, 4);
        plan.ipv6 = seed % 2 == 0;
        if seed % 3 == 0 {
            plan = plan.through_mux();
        }
        if seed % 3 == 1 {
            let balancer = if plan.ipv6 { "fd00:99::1" } else { "10.99.0.1" };
            plan.terms.source_nat = Some(balancer.parse().unwrap());
        }
        plan.terms.floating_ip = seed > 3;
        let mut world = World::new(plan);
        let count = busy(&mut world, 120, |world, turn| {
            replace_host(world, turn % HOSTS);
        });
        for number in 0..HOSTS {
            replace_host(&mut world, number);
        }
        all_finish(&mut world, count);
    }
}

#[test]
fn without_their_state_the_same_connections_break() {
    let mut plan = Plan::new(1);
    (plan.loss, plan.delay) = (10, 4);
    let mut world = World::new(plan);
    busy(&mut world, 60, |world, turn| {
        world.restart_host(turn % HOSTS);
    });
    world.finish(600_000);
    let finished = world.count(Outcome::Finished);
    assert!(finished < 100, "{finished} of 120");
}

#[test]
fn a_replaced_mux_has_its_pins() {
    for seed in 1..=4 {
        let mut plan = Plan::new(seed);
        plan.muxes = 2;
        plan.ipv6 = seed % 2 == 0;
        let mut world = World::new(plan);
        busy(&mut world, 100, |world, turn| {
            // Backends come and go meanwhile: only pins keep flows where they are.
            let vm = turn % VMS;
            world.reconfigure(|plan| {
                plan.states = [BackendState::Up; VMS];
                plan.states[vm] = BackendState::Draining;
            });
            replace_mux(world, turn % 2);
        });
        all_finish(&mut world, 200);
    }
}

#[test]
fn a_checkpoint_keeps_what_is_older() {
    for seed in 1..=4 {
        let mut plan = Plan::new(seed);
        plan.delay = 3;
        plan.ipv6 = seed % 2 == 0;
        let ipv6 = plan.ipv6;
        let mut world = World::new(plan);
        for number in 0..90 {
            let to = SocketAddr::new(vip(ipv6), 80);
            world.clients[number % CLIENTS].connect(to, 150_000, false);
            let to = SocketAddr::new(client(number % CLIENTS, ipv6), ELSEWHERE);
            world.vms[number % VMS].connect(to, 150_000, false);
            world.run(2);
        }
        world.run(30);
        assert!(world.count(Outcome::UnderWay) > 100, "seed {seed}");
        // Taken in steps between which packets are moved, and then a second old.
        let mut checkpoints: Vec<Vec<u8>> = vec![Vec::new(); HOSTS];
        for (number, checkpoint) in checkpoints.iter_mut().enumerate() {
            let (mut next, mut buffer) = (Some(Cursor::START), [0; 3 * RECORD_MOST]);
            while let Some(cursor) = next {
                let exported = world.hosts[number].export(cursor, &mut buffer);
                checkpoint.extend(&buffer[..exported.len]);
                next = exported.next;
                world.run(1);
            }
        }
        world.run(1000);
        for (number, checkpoint) in checkpoints.iter().enumerate() {
            world.restart_host(number);
            let age = Age {
                elapsed: Duration::from_secs(1),
                is_stale: true,
            };
            let now = world.clock();
            let imported = world.hosts[number].import(now, age, checkpoint).unwrap();
            assert!(imported.taken > 20, "seed {seed}: {imported:?}");
        }
        all_finish(&mut world, 180);
    }
}

/// A host agent that starts without any state, in the place of the one that there was.
fn restart_without_state(world: &mut World, number: usize) {
    let now = world.clock();
    world.restart_host(number);
    world.hosts[number].take_up(now);
}

#[test]
fn a_host_agent_without_state_loses_no_inbound_connection() {
    for seed in 1..=8 {
        let mut plan = Plan::new(seed);
        (plan.loss, plan.delay) = (10, 4);
        plan.ipv6 = seed % 2 == 0;
        plan.terms.floating_ip = seed % 4 > 1;
        plan.terms.tcp_reset = seed > 4;
        if seed % 3 == 0 {
            plan = plan.through_mux();
        }
        let ipv6 = plan.ipv6;
        let mut world = World::new(plan);
        for number in 0..120 {
            let bytes = 1 + world.random(20_000) as usize;
            let port = if number % 3 == 0 {
                2200 + number as u16 % VMS as u16
            } else {
                80
            };
            let to = SocketAddr::new(vip(ipv6), port);
            world.clients[number % CLIENTS].connect(to, bytes, false);
            let pause = world.random(6);
            world.run(pause);
            if number % 10 == 9 {
                restart_without_state(&mut world, number / 10 % HOSTS);
            }
        }
        for number in 0..HOSTS {
            restart_without_state(&mut world, number);
        }
        all_finish(&mut world, 120);
        let taken_up: u64 = world.hosts.iter().map(|host| host.stats().taken_up).sum();
        assert!(taken_up > 20, "seed {seed}: {taken_up}");
    }
}

#[test]
fn segments_say_how_far_a_connection_of_a_checkpoint_has_gone_on() {
    let mut plan = Plan::new(5);
    plan.terms.tcp_reset = true;
    let mut world = World::new(plan);
    world.clients[0].connect(SocketAddr::new(vip(false), 80), 1000, true);
    world.run(500);
    let checkpoints: Vec<Vec<u8>> = world
        .hosts
        .iter()
        .map(|host| export(|cursor, into| host.export(cursor, into)))
        .collect();
    // Far more than a window.
    world.clients[0].send_more(0, 900_000);
    world.run(3000);
    assert!(world.clients[0].has_all(0));
    for (number, checkpoint) in checkpoints.iter().enumerate() {
        world.restart_host(number);
        let age = Age {
            elapsed: Duration::from_secs(3),
            is_stale: true,
        };
        let now = world.clock();
        let imported = world.hosts[number].import(now, age, checkpoint).unwrap();
        assert_eq!(imported.all_refused(), 0);
    }
    world.clients[0].send_more(0, 1000);
    world.run(500);
    assert!(world.clients[0].has_all(0));
    // The RSTs at its end have the numbers that both stacks expect.
    world.skip(250_000);
    assert_eq!(world.clients[0].outcome(0), Outcome::Broken);
    assert_eq!(
        world
            .vms
            .iter()
            .map(stack::Stack::served_now)
            .sum::<usize>(),
        0
    );
}

/// Replaces the proxy.
fn replace_proxy(world: &mut proxy_net::World) {
    let (now, seed) = (world.clock(), world.plan.seed);
    let old = &world.proxy;
    let records = export(|cursor, into| old.export(cursor, into));
    let snapshot = Box::new(world.plan.snapshot(None));
    let mut new = Proxy::with_capacity(snapshot, 1 << 14, KEY).expect("its role");
    let imported = new.import(now, Age::default(), &records).unwrap();
    no_refusals(imported, &records, seed);
    let again = export(|cursor, into| new.export(cursor, into));
    // What is of a backend that is gone has no rule's or backend's name in common with it.
    assert_eq!(sorted(&again), sorted(&records), "seed {seed}");
    world.proxy = new;
}

#[test]
fn no_connection_notices_that_the_proxy_is_replaced() {
    for (seed, mode) in [(1, PortMode::Single), (2, PortMode::Multi)] {
        for ipv6 in [false, true] {
            for scheduler in [Scheduler::Maglev, Scheduler::LeastConnections] {
                let mut plan = proxy_net::Plan::new(seed, mode);
                (plan.ipv6, plan.loss, plan.delay) = (ipv6, 10, 4);
                plan.scheduler = scheduler;
                let mut world = proxy_net::World::new(plan);
                for number in 0..150 {
                    let bytes = 1 + world.random(20_000) as usize;
                    let to = SocketAddr::new(proxy_net::vip(ipv6), 80);
                    world.clients[number % proxy_net::CLIENTS].connect(to, bytes, false);
                    let pause = world.random(5);
                    world.run(pause);
                    if number % 15 == 14 {
                        // Connections of a backend that is gone go on, too.
                        let place = 1 + number / 15 % (proxy_net::SERVERS - 1);
                        world.reconfigure(|plan| plan.servers[place].2 ^= true);
                        replace_proxy(&mut world);
                    }
                }
                world.finish(600_000);
                assert_eq!(world.count(Outcome::Finished), 150, "seed {seed}");
            }
        }
    }
}

#[test]
fn both_ends_are_told_by_a_proxy_that_took_their_connection_over() {
    for mode in [PortMode::Single, PortMode::Multi] {
        let mut plan = proxy_net::Plan::new(6, mode);
        plan.terms.tcp_reset = true;
        let mut world = proxy_net::World::new(plan);
        for number in 0..proxy_net::CLIENTS {
            let to = SocketAddr::new(proxy_net::vip(false), 80);
            world.clients[number].connect(to, 100, true);
        }
        world.run(2000);
        replace_proxy(&mut world);
        world.skip(250_000);
        assert_eq!(world.count(Outcome::Broken), proxy_net::CLIENTS);
        let served: usize = world.servers.iter().map(stack::Stack::served_now).sum();
        assert_eq!(served, 0);
        assert_eq!(world.proxy.stats().resets, 2 * proxy_net::CLIENTS as u64);
    }
}
