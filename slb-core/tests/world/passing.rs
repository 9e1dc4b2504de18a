//! Muxes and backends that change together, while connections are under way.
//!
//! Each change is tried with many seeds, over both families, with muxes that pin flows and with ones that
//! pin none, on a fabric that loses, doubles and reorders. No connection breaks; and where hosts pass
//! nothing on, some do, or the test would show nothing. Each change is made twice: while TCP connections are
//! under way, and while clients talk by datagrams, of plain UDP and of QUIC.

use std::net::SocketAddr;

use slb_core::spec::BackendState::{Down, Draining, Up};

use super::net::{CLIENTS, DNS, HOSTS, Plan, QUIC, VMS, World, vip};
use super::stack::Outcome;

/// Connections of each world.
const CONNECTIONS: usize = 90;
const SEEDS: u64 = 20;

fn plan(seed: u64, ipv6: bool, flows: usize) -> Plan {
    let mut plan = Plan::new(seed);
    (plan.ipv6, plan.flows) = (ipv6, flows);
    plan.muxes = 3;
    (plan.loss, plan.delay) = (10, 3);
    plan.terms.tcp_reset = true; // whoever is led astray is told
    plan
}

/// Opens so many connections, each of which sends something and stays.
fn open(world: &mut World, count: usize) {
    let to = SocketAddr::new(vip(world.plan.ipv6), 80);
    for number in 0..count {
        if world.plan.datagrams {
            let is_quic = number % 2 == 1;
            let port = if is_quic { QUIC } else { DNS };
            let to = SocketAddr::new(vip(world.plan.ipv6), port);
            world.clients[number / 2 % CLIENTS].talk(to, is_quic);
            continue;
        }
        let bytes = 1 + world.random(1000) as usize;
        world.clients[number % CLIENTS].connect(to, bytes, true);
        let pause = world.random(3);
        world.run(pause);
    }
    if world.plan.datagrams {
        // A first datagram that is sent twice, before a change and after it, may begin two flows: each is
        // answered, and its copies have arrived, before anything changes.
        world.finish(5_000);
        world.run(50);
    }
}

/// Has all connections send more and close, and returns how many of them do not finish.
fn broken(world: &mut World) -> usize {
    for client in &mut world.clients {
        client.finish_with(1500);
        client.ask_more(2);
    }
    // Those that are lost may ask for ever.
    world.finish(20_000);
    world.count(Outcome::UnderWay) + world.count(Outcome::Broken)
}

/// The effects of a change on worlds of several seeds together.
#[derive(Default)]
struct Total {
    broken: usize,
    passed_on: u64,
}

/// Makes a change while connections are under way, in a world for each seed, family and kind of mux.
/// `adapt` changes the plan of each world.
fn total(
    passes_on: bool,
    seeds: u64,
    adapt: impl Fn(Plan) -> Plan,
    change: impl Fn(&mut World),
) -> Total {
    let mut total = Total::default();
    for seed in 1..=seeds {
        for (ipv6, flows) in [(false, 0), (false, 1 << 10), (true, 0), (true, 1 << 10)] {
            let mut plan = plan(seed, ipv6, flows);
            plan.passes_on = passes_on;
            let mut world = World::new(adapt(plan));
            open(&mut world, CONNECTIONS);
            world.run(100);
            change(&mut world);
            let broken = broken(&mut world);
            let which = format!("seed {seed}, IPv6: {ipv6}, pinned flows: {flows}");
            assert!(broken == 0 || !passes_on, "{broken} connections, {which}");
            assert_eq!(world.astray, Vec::<String>::new(), "{which}");
            total.broken += broken;
            let stats = (0..HOSTS).map(|host| world.host_stats(host));
            total.passed_on += stats.map(|stats| stats.passed_on).sum::<u64>();
        }
    }
    total
}

/// Checks that a change breaks nothing, and that it would break something if hosts passed nothing on.
fn breaks_nothing(change: impl Fn(&mut World)) {
    breaks_nothing_with(|plan| plan, change);
}

/// Checks, with clients that talk by datagrams, that a change breaks nothing and would break something if hosts
/// passed nothing on.
fn breaks_no_flow(change: impl Fn(&mut World)) {
    breaks_nothing_with(by_datagrams, change);
}

fn by_datagrams(mut plan: Plan) -> Plan {
    plan.datagrams = true;
    plan
}

/// The same in worlds of other plans.
fn breaks_nothing_with(adapt: impl Fn(Plan) -> Plan, change: impl Fn(&mut World)) {
    assert!(total(true, SEEDS, &adapt, &change).passed_on > 0);
    let off = total(false, 1, &adapt, &change);
    assert!(off.broken > 0 && off.passed_on == 0);
}

fn a_mux_dies_while_a_backend_drains(world: &mut World) {
    world.reconfigure(|plan| plan.states[2] = Draining);
    world.kill_mux(1);
}

#[test]
fn a_mux_that_dies_while_a_backend_drains_breaks_nothing() {
    breaks_nothing(a_mux_dies_while_a_backend_drains);
}

#[test]
fn a_mux_that_dies_while_a_backend_drains_breaks_no_flow() {
    breaks_no_flow(a_mux_dies_while_a_backend_drains);
}

fn four_drains_in_a_row(world: &mut World) {
    world.kill_mux(0);
    for backend in [1, 2, 5, 0] {
        world.reconfigure(|plan| plan.states[backend] = Draining);
        open(world, 5);
    }
}

#[test]
fn four_drains_in_a_row_break_nothing() {
    breaks_nothing(four_drains_in_a_row);
}

#[test]
fn four_drains_in_a_row_break_no_flow() {
    breaks_no_flow(four_drains_in_a_row);
}

fn muxes_are_a_generation_behind(world: &mut World) {
    world.reconfigure(|plan| plan.states[3] = Draining);
    world.kill_mux(2);
    // The first mux has not heard of it when more connections come.
    world.reconfigure_some(|plan| plan.weights[4] = 0, |mux| mux != 0);
    open(world, 30);
    world.reconfigure_some(|plan| plan.states[3] = Up, |mux| mux != 0);
    open(world, 30);
}

#[test]
fn muxes_a_generation_behind_break_nothing() {
    breaks_nothing(muxes_are_a_generation_behind);
}

#[test]
fn muxes_a_generation_behind_break_no_flow() {
    breaks_no_flow(muxes_are_a_generation_behind);
}

fn backends_flap(world: &mut World) {
    // Muxes and hosts see the flaps; the rule resets nothing, so connections go on.
    for flap in 0..20 {
        let backend = flap % 3;
        world.reconfigure(|plan| plan.weights[backend] = 0);
        open(world, 1);
        world.reconfigure(|plan| plan.weights[backend] = 1);
        open(world, 1);
    }
    world.kill_mux(1);
    world.reconfigure(|plan| plan.weights[0] = 0);
}

#[test]
fn backends_that_flap_break_nothing() {
    breaks_nothing(backends_flap);
}

#[test]
fn backends_that_flap_break_no_flow() {
    breaks_no_flow(backends_flap);
}

fn a_slow_start(world: &mut World) {
    world.reconfigure(|plan| plan.weights = [10; 6]);
    for weight in 1..=10 {
        if weight == 5 {
            world.kill_mux(0);
        }
        world.reconfigure(|plan| (plan.weights[1], plan.weights[4]) = (weight, weight));
        open(world, 3);
    }
}

#[test]
fn slow_start_breaks_nothing() {
    breaks_nothing(a_slow_start);
}

#[test]
fn slow_start_breaks_no_flow() {
    breaks_no_flow(a_slow_start);
}

fn a_rolling_replacement_in_seats(world: &mut World) {
    world.reconfigure(|plan| (plan.weights[4], plan.weights[5]) = (0, 0));
    // Each vm takes the seat of the next one, which drains and takes another seat later.
    for (seat, new) in [(0, 4), (1, 5), (2, 0), (3, 1)] {
        world.reconfigure(|plan| {
            (plan.weights[seat], plan.weights[new]) = (0, 1);
            plan.seats[new] = seat;
        });
        if seat == 1 {
            world.kill_mux(2);
        }
        open(world, 10);
    }
}

#[test]
fn a_rolling_replacement_in_seats_breaks_nothing() {
    breaks_nothing(a_rolling_replacement_in_seats);
}

#[test]
fn a_rolling_replacement_in_seats_breaks_no_flow() {
    breaks_no_flow(a_rolling_replacement_in_seats);
}

fn a_mux_that_answers_go_through_dies(world: &mut World) {
    world.reconfigure(|plan| plan.states[2] = Draining);
    world.kill_mux(1);
    open(world, 10);
}

#[test]
fn a_mux_that_dies_breaks_nothing_where_answers_go_through_muxes() {
    breaks_nothing_with(Plan::through_mux, a_mux_that_answers_go_through_dies);
}

#[test]
fn a_mux_that_dies_breaks_no_flow_where_answers_go_through_muxes() {
    let plan = |plan: Plan| by_datagrams(plan.through_mux());
    breaks_nothing_with(plan, a_mux_that_answers_go_through_dies);
}

/// Two vms are added, a mux dies, and flows of the others come by another mux. Then the host of the new vms
/// dies, which has no connection, and nothing may depend on it any more.
#[test]
fn a_mux_pins_no_connection_to_a_new_owner_that_passes_it_on() {
    let change = |world: &mut World| {
        world.reconfigure(|plan| (plan.weights[4], plan.weights[5]) = (1, 1));
        world.kill_mux(1);
        for client in &mut world.clients {
            client.all_send_more(500);
        }
        world.run(400);
        world.reconfigure(|plan| (plan.weights[4], plan.weights[5]) = (0, 0));
        world.kill_host(2);
    };
    let without_new = |mut plan: Plan| {
        (plan.weights[4], plan.weights[5]) = (0, 0);
        plan
    };
    breaks_nothing_with(without_new, change);
}

/// Muxes pin connections while they find half of the vms unwell, of which no host hears. Later all are well, clients
/// use their ports again, and a mux dies. Its pins of the earlier connections must not have led the new ones to vms
/// that no host knows as owners of their slots.
///
/// A client that closes first acknowledges the server's FIN at last, so its mux sees no end; where the router turns
/// flows to other muxes meanwhile, the mux does not even see the FIN.
#[test]
fn ports_used_again_are_no_connections_of_vms_that_hosts_do_not_know() {
    for seed in 1..=SEEDS {
        for (ipv6, turn) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
            let which = format!("seed {seed}, IPv6: {ipv6}, turn {turn}");
            let mut plan = plan(seed, ipv6, 1 << 10);
            plan.loss = 0; // all connections end before their ports are used again
            let mut world = World::new(plan);
            world.reconfigure_muxes(|plan| plan.states[..VMS / 2].fill(Down));
            open(&mut world, CONNECTIONS);
            // Each handshake ends at the mux where it began.
            world.skip(8_000);
            world.turn = turn;
            assert_eq!(broken(&mut world), 0, "{which}");
            world.turn = 0;
            world.reconfigure_muxes(|plan| plan.states = [Up; VMS]);
            world.skip(4_000);
            for client in &mut world.clients {
                client.use_ports_again();
            }
            open(&mut world, CONNECTIONS);
            world.run(100);
            world.kill_mux(1);
            assert_eq!(broken(&mut world), 0, "{which}");
            assert_eq!(world.astray, Vec::<String>::new(), "{which}");
        }
    }
}
