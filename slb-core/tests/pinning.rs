//! Flows stay or move when backends come, go, fail and drain.

use crate::common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use slb_core::mem::{Arena, Line};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    BackendState, InboundNat, NatTarget, Pool, Protocol, Rule, Spec, SpecError, Terms,
};
use slb_core::{DropReason, Instant, Key, Mux, Verdict};

const NOW: Instant = Instant::from_secs(10);

#[test]
fn two_muxes_make_the_same_choice_stateless_or_not() {
    let setup = Setup::new(30);
    let packets = flows(3000, "A");
    let one = backends_of(&mut stateless(&setup), NOW, &packets);
    let mut other = pinned(&setup);
    assert_eq!(backends_of(&mut other, NOW, &packets), one);
    assert_eq!(backends_of(&mut other, NOW, &packets), one);
    // In another order of the backends, and one by one.
    let mut reversed = setup.clone();
    reversed.backends.reverse();
    let mut mux = stateless(&reversed);
    let each: Vec<u16> = packets
        .iter()
        .map(|packet| backend_of(&send_one(&mut mux, packet.clone())))
        .collect();
    assert_eq!(each, one);
}

#[test]
fn one_backend_of_a_hundred_removed_moves_no_other_flow_when_pinned() {
    let mut setup = Setup::new(100);
    let packets = flows(5000, "A");
    let mut mux = pinned(&setup);
    let before = backends_of(&mut mux, NOW, &packets);
    setup.backends.remove(41); // vm42
    mux.install(setup.after(Some(mux.snapshot())).into())
        .expect("it follows");
    let after = backends_of(&mut mux, NOW, &packets);
    let mut orphans = 0;
    for (before, after) in before.iter().zip(&after) {
        if *before == 42 {
            orphans += 1;
            assert_ne!(*after, 42);
        } else {
            assert_eq!(before, after);
        }
    }
    assert!(orphans > 20, "{orphans} flows were vm42's");
}

#[test]
fn and_under_0_6_percent_when_stateless() {
    let mut setup = Setup::new(100);
    let packets = flows(100_000, "A");
    let mut mux = stateless(&setup);
    let before = backends_of(&mut mux, NOW, &packets);
    setup.backends.remove(41);
    mux.install(setup.after(Some(mux.snapshot())).into())
        .expect("it follows");
    let after = backends_of(&mut mux, NOW, &packets);
    let others = before
        .iter()
        .zip(&after)
        .filter(|(before, _)| **before != 42);
    let moved = others.filter(|(before, after)| before != after).count();
    assert!(moved < 600, "{moved} of 100 000 flows moved");
}

/// GLB's issue 77: a second choice may be unhealthy too.
#[test]
fn whatever_subset_is_unhealthy_no_new_flow_reaches_it() {
    bolero::check!()
        .with_type::<(u16, u16, bool)>()
        .for_each(|&(down, draining, syn)| {
            let mut setup = Setup::new(16);
            for number in 1..=16 {
                if down & 1 << (number - 1) != 0 {
                    setup.set_state(number, BackendState::Down);
                } else if draining & 1 << (number - 1) != 0 {
                    setup.set_state(number, BackendState::Draining);
                }
            }
            let packets = flows(200, if syn { "S" } else { "A" });
            for mut mux in [pinned(&setup), stateless(&setup)] {
                for outcome in send(&mut mux, NOW, &packets) {
                    if down | draining == u16::MAX {
                        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoBackend));
                    } else {
                        let bit = 1 << (backend_of(&outcome) - 1);
                        assert_eq!((down | draining) & bit, 0);
                    }
                }
            }
        });
}

#[test]
fn established_flows_stay_with_a_backend_that_fails_or_drains() {
    for state in [BackendState::Down, BackendState::Draining] {
        let mut setup = Setup::new(10);
        let packets = flows(500, "A");
        let mut mux = pinned(&setup);
        let before = backends_of(&mut mux, NOW, &packets);
        setup.set_state(3, state);
        mux.install(setup.after(Some(mux.snapshot())).into())
            .expect("it follows");
        assert_eq!(backends_of(&mut mux, NOW, &packets), before);
        // A SYN asks for a new connection: that goes to one who takes some.
        let syns = backends_of(&mut mux, NOW, &flows(500, "S"));
        assert!(!syns.contains(&3));
        // And the new connection stays where its SYN went.
        assert_eq!(backends_of(&mut mux, NOW, &packets), syns);
    }
}

/// Blue and green: both pools stay, and a rule goes from one to the other.
#[test]
fn new_connections_go_to_the_pool_that_their_rule_has_now() {
    let setup = Setup::new(6);
    let snapshot = |http: usize, previous: Option<&Snapshot<'_>>| {
        setup.with_spec(|spec| {
            let (blue, green) = spec.pools[0].backends.split_at(3);
            let pool = |name, backends| Pool {
                name,
                backends,
                ..spec.pools[0]
            };
            let rule = |name, frontend_port, pool| Rule {
                name,
                frontend_port,
                pool,
                ..spec.rules[0]
            };
            // The empty pool begins where the next one does.
            let pools = [pool("blue", blue), pool("empty", &[]), pool("green", green)];
            let rules = [rule("http", 80, http), rule("staging", 8080, 2 - http)];
            let spec = Spec {
                pools: &pools,
                rules: &rules,
                ..spec.clone()
            };
            Arc::new(Snapshot::new(&spec, previous).unwrap())
        })
    };
    let (acks, syns) = (flows(200, "A"), flows(200, "S"));
    let mut mux = Mux::with_capacity(snapshot(2, None), 1000, Key::new([3, 4])).expect("its role");
    let before = backends_of(&mut mux, NOW, &acks);
    assert!(before.iter().all(|backend| *backend > 3));
    mux.install(snapshot(0, Some(mux.snapshot())))
        .expect("it follows");
    // Connections stay where they are.
    assert_eq!(backends_of(&mut mux, NOW, &acks), before);
    // New ones from the same ports do not.
    let after = backends_of(&mut mux, NOW, &syns);
    assert!(after.iter().all(|backend| *backend <= 3));
    assert_eq!(backends_of(&mut mux, NOW, &acks), after);
    // Nobody is in the empty pool.
    mux.install(snapshot(1, Some(mux.snapshot())))
        .expect("it follows");
    assert_eq!(backends_of(&mut mux, NOW, &acks), after);
    for outcome in send(&mut mux, NOW, &syns) {
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoBackend));
    }
}

#[test]
fn new_connections_go_where_an_inbound_nat_rule_leads_now() {
    let setup = Setup::new(2);
    let snapshot = |backend, previous: Option<&Snapshot<'_>>| {
        setup.with_spec(|spec| {
            let ssh = InboundNat {
                name: "ssh",
                frontend: 0,
                pool: 0,
                target: NatTarget::Backend { port: 22, backend },
                protocol: Protocol::Tcp,
                backend_port: 22,
                idle_timeout: Duration::from_secs(240),
                terms: Terms::default(),
            };
            let spec = Spec {
                inbound_nat: &[ssh],
                ..spec.clone()
            };
            Arc::new(Snapshot::new(&spec, previous).unwrap())
        })
    };
    let packet = |flags| tcp_to(CLIENT, 50_000, VIP, 22, flags, b"");
    let mut mux = Mux::with_capacity(snapshot(0, None), 1000, Key::new([3, 4])).expect("its role");
    let sent = |mux: &mut TestMux, flags| backend_of(&send_one(mux, packet(flags)));
    assert_eq!(sent(&mut mux, "S"), 1);
    assert_eq!(sent(&mut mux, "A"), 1);
    mux.install(snapshot(1, Some(mux.snapshot())))
        .expect("it follows");
    assert_eq!(sent(&mut mux, "A"), 1);
    assert_eq!(sent(&mut mux, "S"), 2);
    assert_eq!(sent(&mut mux, "A"), 2);
}

#[test]
fn a_mux_counts_the_syns_that_came_again_and_those_that_went_on() {
    let setup = Setup::new(1);
    let mut mux = pinned(&setup);
    let mut sent = |port, flags: &str| {
        send_one(&mut mux, tcp([11, 0, 0, 1], port, flags));
        let id = mux.snapshot().backends()[0].id();
        let counters = mux.backend_counters(id).unwrap();
        (counters.accepted, counters.failures)
    };
    for (port, flags, expected) in [
        (1, "S", (0, 0)),
        (1, "S", (0, 1)),
        (1, "S", (0, 2)),
        (1, "A", (1, 2)),
        (1, "A", (1, 2)),
        (1, "S", (1, 2)), // of a flow that is established
        (2, "S", (1, 2)),
        (2, "R", (1, 2)), // a scanner: neither
        (2, "A", (1, 2)),
        (3, "A", (1, 2)), // it began elsewhere
    ] {
        assert_eq!(sent(port, flags), expected, "{port} {flags}");
    }
}

#[test]
fn what_one_backend_did_not_answer_is_not_held_against_the_next() {
    let mut setup = Setup::new(2);
    let mut mux = pinned(&setup);
    let syns = flows(100, "S");
    let before = backends_of(&mut mux, NOW, &syns);
    let of_first = before.iter().filter(|backend| **backend == 1).count();
    assert!(of_first > 20);
    setup.set_state(1, BackendState::Down);
    mux.install(setup.after(Some(mux.snapshot())).into())
        .expect("it follows");
    let after = backends_of(&mut mux, NOW, &syns);
    assert!(after.iter().all(|backend| *backend == 2));
    // Of the second one's own SYNs it is the second.
    let id = mux.snapshot().backends()[1].id();
    let failures = mux.backend_counters(id).unwrap().failures;
    assert_eq!(failures as usize, 100 - of_first);
}

#[test]
fn weight_zero_drains() {
    let mut setup = Setup::new(10);
    let packets = flows(500, "A");
    let mut mux = pinned(&setup);
    let before = backends_of(&mut mux, NOW, &packets);
    setup.backends[2].weight = 0;
    mux.install(setup.after(Some(mux.snapshot())).into())
        .expect("it follows");
    assert_eq!(backends_of(&mut mux, NOW, &packets), before);
    let others = (0..500)
        .map(|i| tcp([11, 0, 0, 1], 1024 + i, "S"))
        .collect::<Vec<_>>();
    assert!(!backends_of(&mut mux, NOW, &others).contains(&3));
}

#[test]
fn flows_end_by_their_timeouts() {
    let mut setup = Setup {
        idle_timeout: Duration::from_secs(360),
        ..Setup::new(10)
    };
    let mut mux = pinned(&setup);
    let established = tcp(CLIENT, 1, "A");
    let half_open = tcp(CLIENT, 2, "S");
    let closed = [tcp(CLIENT, 3, "A"), tcp(CLIENT, 3, "FA")];
    let reset = [tcp(CLIENT, 4, "A"), tcp(CLIENT, 4, "R")];
    let mut packets = vec![established.clone(), half_open];
    packets.extend(closed);
    packets.extend(reset);
    send(&mut mux, NOW, &packets);
    assert_eq!(mux.flows().unwrap().iter().count(), 4);
    let live_at = |mux: &mut TestMux, seconds: u64| {
        mux.advance(NOW + Duration::from_secs(seconds));
        mux.flows().unwrap().iter().count()
    };
    assert_eq!(live_at(&mut mux, 239), 4);
    assert_eq!(live_at(&mut mux, 245), 2, "half open and reset: 4 minutes");
    assert_eq!(
        live_at(&mut mux, 358),
        2,
        "half closed: as long as the rule"
    );
    send(&mut mux, NOW + Duration::from_secs(358), &[established]);
    assert_eq!(
        live_at(&mut mux, 710),
        1,
        "a packet gives it its time again"
    );
    assert_eq!(live_at(&mut mux, 725), 0);
    setup.idle_timeout = Duration::from_secs(1800);
    mux.install(setup.after(Some(mux.snapshot())).into())
        .expect("it follows");
    send(
        &mut mux,
        NOW + Duration::from_secs(800),
        &[tcp(CLIENT, 1, "A")],
    );
    assert_eq!(live_at(&mut mux, 800 + 1795), 1, "the longest there is");
    assert_eq!(live_at(&mut mux, 800 + 1805), 0);
}

#[test]
fn a_full_table_drops_nobody() {
    let setup = Setup::new(10);
    let packets = flows(4000, "A");
    let expected = backends_of(&mut stateless(&setup), NOW, &packets);
    let mux = TestMux::with_capacity(Arc::new(setup.snapshot()), 1000, Key::new([1, 2]));
    let mut mux = mux.expect("its role");
    assert_eq!(backends_of(&mut mux, NOW, &packets), expected);
    let flows = mux.stats().flows;
    assert!(flows.refused > 2500 && flows.live > 1000, "{flows:?}");
}

#[test]
fn ids_stay_and_are_never_somebody_else_s() {
    let mut setup = Setup::new(5);
    let ids = |snapshot: &Snapshot<'_>, setup: &Setup| -> BTreeMap<String, u32> {
        let names = setup.backends.iter().map(|backend| backend.name.clone());
        names
            .zip(snapshot.backends().iter().map(|backend| backend.id().get()))
            .collect()
    };
    let first = setup.snapshot();
    let before = ids(&first, &setup);
    let gone = setup.backends.remove(1);
    setup.backends.reverse();
    let second = setup.after(Some(&first));
    for (name, id) in ids(&second, &setup) {
        assert_eq!(before[&name], id, "{name}");
    }
    assert_eq!((first.generation(), second.generation()), (1, 2));
    // One with its name and another address is another backend, and has another id.
    let mut other = gone.clone();
    other.number = 500;
    setup.backends.push(other);
    let third = setup.after(Some(&second));
    let id = ids(&third, &setup)[&gone.name];
    assert!(!before.values().any(|&known| known == id));
    // Its slot is the freed one: memory does not grow with the number of reloads.
    assert_eq!(third.backend_slots(), first.backend_slots());
}

#[test]
fn a_thousand_reloads_use_no_more_slots_and_confuse_no_flow() {
    let mut setup = Setup::new(8);
    let mut mux = pinned(&setup);
    let packets = flows(300, "A");
    let mut known = backends_of(&mut mux, NOW, &packets);
    for round in 0..1000u16 {
        // One goes, a new one comes.
        let gone = setup.backends.remove(usize::from(round) % 8).number;
        let mut new = setup.backends[0].clone();
        (new.name, new.number) = (format!("new{round}"), 100 + round);
        setup.backends.insert(usize::from(round) % 7, new);
        mux.install(setup.after(Some(mux.snapshot())).into())
            .expect("it follows");
        let now = backends_of(&mut mux, NOW, &packets);
        for (before, after) in known.iter().zip(&now) {
            assert!(
                before == after || *before == gone,
                "round {round}: {before} to {after}"
            );
        }
        known = now;
        assert!(mux.snapshot().backend_slots() <= 18);
    }
}

#[test]
fn an_unchanged_pool_keeps_its_table_and_a_changed_one_does_not() {
    let mut setup = Setup::new(20);
    let first = setup.snapshot();
    let second = setup.after(Some(&first));
    assert_eq!(first.pool_table(0), second.pool_table(0));
    setup.set_state(4, BackendState::Down);
    let third = setup.after(Some(&second));
    assert_ne!(first.pool_table(0), third.pool_table(0));
    setup.set_state(4, BackendState::Up);
    // What comes back, comes back as it was.
    assert_eq!(first.pool_table(0), setup.after(Some(&third)).pool_table(0));
}

#[test]
fn a_snapshot_in_an_arena_is_the_same_and_asks_for_what_it_needs() {
    let setup = Setup::new(9);
    let boxed = setup.snapshot();
    setup.with_spec(|spec| {
        let lines = Snapshot::lines_for(spec, None);
        let mut memory = vec![Line::EMPTY; lines];
        let snapshot = Snapshot::build(spec, None, &mut Arena::new(&mut memory)).unwrap();
        assert_eq!(snapshot.pool_table(0), boxed.pool_table(0));
        let next = Snapshot::lines_for(spec, Some(&snapshot));
        assert_eq!(next, lines);
        let mut memory = vec![Line::EMPTY; lines - 1];
        let error = Snapshot::build(spec, None, &mut Arena::new(&mut memory)).unwrap_err();
        assert_eq!(error, SpecError::Memory { lines });
    });
}
