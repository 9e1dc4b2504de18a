//! A world in memory: real TCP stacks (smoltcp) at both ends, and muxes, host agents and a fabric
//! that loses, doubles and reorders between them. All of it follows from a seed, which is in the
//! message of every assertion.

pub(crate) mod net;
mod passing;
pub(crate) mod stack;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use net::{CLIENTS, ELSEWHERE, HTTP, Plan, VMS, World, client, outbound_vip, vip};
use slb_core::spec::BackendState;
use smoltcp::socket::tcp::State;
use stack::Outcome;

/// Opens connections from all clients to `to`, one every few milliseconds.
fn open(world: &mut World, count: usize, to: SocketAddr, most: u64) {
    for number in 0..count {
        let bytes = 1 + world.random(most) as usize;
        world.clients[number % CLIENTS].connect(to, bytes, false);
        let pause = world.random(4);
        world.run(pause);
    }
}

fn all_finish(world: &mut World, count: usize, seed: u64) {
    world.finish(600_000);
    assert_eq!(world.count(Outcome::Finished), count, "seed {seed}");
    assert_eq!(world.astray, Vec::<String>::new(), "seed {seed}");
}

#[test]
fn thousands_of_connections_finish_over_a_bad_fabric() {
    for seed in [1, 2] {
        let mut plan = Plan::new(seed);
        (plan.loss, plan.delay) = (10, 5);
        let mut world = World::new(plan);
        open(&mut world, 1500, SocketAddr::new(vip(false), 80), 20_000);
        all_finish(&mut world, 1500, seed);
        for vm in &world.vms {
            // The client's own address is seen, and every vm has its share.
            assert!(
                vm.peers
                    .keys()
                    .all(|peer| (0..CLIENTS).any(|c| peer.ip() == client(c, false)))
            );
            assert!(
                vm.peers.len() > 1500 / VMS / 2,
                "seed {seed}: {}",
                vm.peers.len()
            );
        }
    }
}

#[test]
fn every_way_of_answering_works_in_both_families() {
    for ipv6 in [false, true] {
        for through_mux in [false, true] {
            for floating_ip in [false, true] {
                for source_nat in [false, true] {
                    let seed = 3;
                    let mut plan = Plan::new(seed);
                    plan.ipv6 = ipv6;
                    (plan.loss, plan.delay) = (5, 3);
                    plan.terms.floating_ip = floating_ip;
                    if through_mux {
                        plan = plan.through_mux();
                    }
                    let balancer = if ipv6 { "fd00:99::1" } else { "10.99.0.1" };
                    let balancer = balancer.parse().unwrap();
                    plan.terms.source_nat = source_nat.then_some(balancer);
                    let mut world = World::new(plan);
                    open(&mut world, 100, SocketAddr::new(vip(ipv6), 80), 10_000);
                    all_finish(&mut world, 100, seed);
                    let peers = world.vms.iter().flat_map(|vm| vm.peers.keys());
                    for peer in peers {
                        assert_eq!(peer.ip() == balancer, source_nat, "{peer}");
                    }
                    let asked = if floating_ip {
                        SocketAddr::new(vip(ipv6), 80)
                    } else {
                        SocketAddr::new(net::vm(0, ipv6), HTTP)
                    };
                    assert!(world.vms[0].asked.contains_key(&asked));
                }
            }
        }
    }
}

#[test]
fn a_mux_that_dies_breaks_nothing() {
    let seed = 4;
    let mut plan = Plan::new(seed);
    plan.muxes = 3;
    let mut world = World::new(plan);
    open(&mut world, 300, SocketAddr::new(vip(false), 80), 2_000_000);
    assert!(world.count(Outcome::UnderWay) > 50, "too few are under way");
    world.kill_mux(1);
    all_finish(&mut world, 300, seed);
}

#[test]
fn a_backend_that_is_drained_finishes_what_it_has() {
    let seed = 5;
    let mut world = World::new(Plan::new(seed));
    open(&mut world, 200, SocketAddr::new(vip(false), 80), 200_000);
    let before = world.vms[2].peers.len();
    assert!(world.vms[2].served_now() > 0, "nothing is under way there");
    world.reconfigure(|plan| plan.states[2] = BackendState::Draining);
    open(&mut world, 200, SocketAddr::new(vip(false), 80), 1000);
    all_finish(&mut world, 400, seed);
    // But for those whose SYN was on its way.
    let after = world.vms[2].peers.len();
    assert!(after <= before + 2, "{before} connections became {after}");
}

#[test]
fn vms_call_out_from_ports_of_their_own() {
    for ipv6 in [false, true] {
        let seed = 6;
        let mut plan = Plan::new(seed);
        plan.ipv6 = ipv6;
        (plan.loss, plan.delay) = (5, 3);
        let mut world = World::new(plan);
        for number in 0..600 {
            let to = SocketAddr::new(client(number % CLIENTS, ipv6), ELSEWHERE);
            let bytes = 1 + world.random(3000) as usize;
            world.vms[number % VMS].connect(to, bytes, false);
            world.run(2);
        }
        all_finish(&mut world, 600, seed);
        let mut ports: HashSet<SocketAddr> = HashSet::new();
        for stack in &world.clients {
            for &peer in stack.peers.keys() {
                assert_eq!(peer.ip(), outbound_vip(ipv6));
                // Ports below 1024 are never given; six vms of 256 take the next 1536.
                assert!((1024..1024 + 6 * 256).contains(&peer.port()), "{peer}");
                ports.insert(peer);
            }
        }
        assert!(ports.len() > 300, "{}", ports.len());
    }
}

#[test]
fn a_vm_out_of_ports_hurts_nobody_else() {
    let seed = 7;
    let mut plan = Plan::new(seed);
    plan.allocated_outbound_ports = Some(8);
    let mut world = World::new(plan);
    let to = SocketAddr::new(client(0, false), ELSEWHERE);
    for _ in 0..9 {
        world.vms[0].connect(to, 10, true);
    }
    world.run(200);
    let open = (0..9)
        .filter(|&c| world.vms[0].state(c) == State::Established)
        .count();
    assert_eq!(open, 8);
    // The ports serve another destination as well, and another vm has its own.
    let elsewhere = world.vms[0].connect(SocketAddr::new(client(1, false), ELSEWHERE), 10, false);
    let other = world.vms[1].connect(to, 10, false);
    world.run(2000);
    assert_eq!(world.vms[0].outcome(elsewhere), Outcome::Finished);
    assert_eq!(world.vms[1].outcome(other), Outcome::Finished);
    let id = world.hosts[0].snapshot().backends()[0].id();
    let counters = world.hosts[0].snat_counters(id).unwrap();
    assert_eq!((counters.ports, counters.used), (8, 8));
    assert!(counters.exhausted >= 1);
    assert_eq!(counters.connections, 9);
}

#[test]
fn a_nat_pool_leads_to_each_vm() {
    let seed = 8;
    let mut world = World::new(Plan::new(seed));
    for number in 0..VMS {
        let to = SocketAddr::new(vip(false), 2200 + number as u16);
        world.clients[0].connect(to, 500, false);
    }
    all_finish(&mut world, VMS, seed);
    for vm in &world.vms {
        assert_eq!(vm.asked.values().sum::<u32>(), 1);
        assert!(vm.asked.keys().all(|asked| asked.port() == net::SSH));
    }
}

/// A connection that stays open without a word.
fn idle(plan: Plan) -> World {
    let mut world = World::new(plan);
    world.clients[0].connect(SocketAddr::new(vip(false), 80), 100, true);
    world.run(500);
    assert!(world.clients[0].has_all(0));
    assert_eq!(world.clients[0].state(0), State::Established);
    world
}

fn served(world: &World) -> usize {
    world.vms.iter().map(stack::Stack::served_now).sum()
}

#[test]
fn both_ends_of_an_idle_connection_are_told() {
    let mut plan = Plan::new(9);
    plan.terms.tcp_reset = true;
    let mut world = idle(plan);
    world.skip(238_000);
    assert_eq!(
        (world.clients[0].state(0), served(&world)),
        (State::Established, 1)
    );
    world.skip(5_000);
    assert_eq!(
        (world.clients[0].state(0), served(&world)),
        (State::Closed, 0)
    );
    let resets: u64 = (0..net::HOSTS)
        .map(|host| world.host_stats(host).resets)
        .sum();
    assert_eq!(resets, 2);
}

#[test]
fn without_tcp_reset_an_idle_connection_ends_in_silence() {
    let mut world = idle(Plan::new(10));
    world.skip(250_000);
    assert_eq!(
        (world.clients[0].state(0), served(&world)),
        (State::Established, 1)
    );
    let live: u64 = (0..net::HOSTS)
        .map(|host| world.host_stats(host).connections.live)
        .sum();
    assert_eq!(live, 0);
    let resets: u64 = (0..net::HOSTS)
        .map(|host| world.host_stats(host).resets)
        .sum();
    assert_eq!(resets, 0);
}

#[test]
fn a_segment_of_no_connection_is_answered_with_a_reset_that_its_sender_takes() {
    let mut plan = Plan::new(11);
    plan.terms.tcp_reset = true;
    let mut world = idle(plan);
    for host in 0..net::HOSTS {
        world.restart_host(host);
    }
    world.clients[0].send_more(0, 100);
    world.run(100);
    assert_eq!(world.clients[0].state(0), State::Closed);
    assert_eq!(world.clients[0].outcome(0), Outcome::Broken);
}

#[test]
fn clients_of_a_backend_that_turns_unhealthy_are_told() {
    for (tcp_reset, state) in [(true, State::Closed), (false, State::Established)] {
        let mut plan = Plan::new(12);
        plan.terms.tcp_reset = tcp_reset;
        let mut world = idle(plan);
        let serving = (0..VMS)
            .find(|&vm| world.vms[vm].served_now() == 1)
            .unwrap();
        world.reconfigure(|plan| plan.states[serving] = BackendState::Down);
        world.run(100);
        assert_eq!(world.clients[0].state(0), state);
        // Without resets the old connection goes on, unhealthy or not.
        world.clients[0].send_more(0, 100);
        world.run(500);
        assert_eq!(world.clients[0].has_all(0), !tcp_reset);
    }
}

#[test]
fn with_all_backends_down_new_connections_are_refused() {
    let mut plan = Plan::new(13);
    plan.terms.tcp_reset = true;
    plan.states = [BackendState::Down; VMS];
    plan.idle = Duration::from_secs(240);
    let mut world = World::new(plan);
    world.clients[0].connect(SocketAddr::new(vip(false), 80), 100, false);
    world.run(50);
    assert_eq!(world.clients[0].state(0), State::Closed);
    assert_eq!(world.clients[0].outcome(0), Outcome::Broken);
}
