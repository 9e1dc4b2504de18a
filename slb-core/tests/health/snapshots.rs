//! Results of probes in the snapshot: tables, memory, and which rules a backend serves.

use slb_core::mem::{Arena, Line};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{BackendHealth, BackendState, Pool, PoolHealth, Spec, SpecError};

use super::plan::{BACKENDS, Plan, SICK, WELL};

#[test]
fn the_operators_word_holds_for_all_rules() {
    for state in [BackendState::Down, BackendState::Draining] {
        let mut plan = Plan::new(false);
        plan.states[1] = state;
        plan.found[0][1] = WELL;
        let snapshot = plan.snapshot();
        for rule in 0..4 {
            assert!(!snapshot.serves(rule, 1) && snapshot.serves(rule, 0));
        }
    }
}

#[test]
fn serves_says_which_rules_a_backend_has() {
    let mut plan = Plan::new(false);
    plan.found[0][1] = SICK;
    plan.found[1][3] = SICK;
    let snapshot = plan.snapshot();
    let served = |backend| [0, 1, 2, 3].map(|rule| snapshot.serves(rule, backend));
    assert_eq!(served(0), [true; 4]);
    assert_eq!(served(1), [false, true, false, true]);
    assert_eq!(served(3), [true, false, true, true]);
    // Neither the inbound NAT rule nor the outbound frontend balances, and there is no fifth backend.
    assert!(!snapshot.serves(7, 0) && !snapshot.serves(8, 0) && !snapshot.serves(99, 0));
    assert!(!snapshot.serves(0, 4));
}

#[test]
fn what_probes_find_changes_no_size_and_other_tables_nothing() {
    let well = Plan::new(false);
    let mut sick = well.clone();
    sick.found[0][0] = SICK;
    sick.found[1] = [SICK; BACKENDS];
    let lines = |plan: &Plan| plan.give(|spec| Snapshot::lines_for(spec, None));
    assert_eq!(lines(&well), lines(&sick));
    // As much as is said is enough, and a line less is not.
    let mut memory = vec![Line::EMPTY; lines(&sick)];
    sick.give(|spec| {
        assert!(Snapshot::build(spec, None, &mut Arena::new(&mut memory)).is_ok());
        let short = memory.len() - 1;
        let built = Snapshot::build(spec, None, &mut Arena::new(&mut memory[..short]));
        assert!(matches!(built, Err(SpecError::Memory { .. })));
    });
    // One table for all where nobody fails.
    let (well, sick) = (well.snapshot(), sick.after(Some(&well.snapshot())));
    let slots = |snapshot: &Snapshot<'_>, rule| snapshot.slots(rule).collect::<Vec<_>>();
    for rule in 1..4 {
        assert_eq!(slots(&well, rule), slots(&well, 0));
    }
    assert_eq!(slots(&sick, 3), slots(&well, 3));
    assert_eq!(slots(&sick, 0), slots(&sick, 2));
    assert_ne!(slots(&sick, 0), slots(&sick, 3));
    assert!(
        slots(&sick, 1).iter().all(Option::is_none),
        "nobody is left"
    );
    assert_eq!(sick.pool_table(0), well.pool_table(0));
}

#[test]
fn a_snapshot_that_follows_is_the_same_as_one_made_anew() {
    // Tables that did not change are copied from the one before, whichever probe's they were.
    let mut plan = Plan::new(false);
    let mut last = plan.snapshot();
    let mut state = 1_u64;
    for _ in 0..100 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let bit = |n: usize| state >> (20 + n) & 1 == 1;
        for (set, found) in plan.found.iter_mut().enumerate() {
            for (place, found) in found.iter_mut().enumerate() {
                *found = if bit(set * BACKENDS + place) {
                    SICK
                } else {
                    WELL
                };
                found.weight = bit(8 + place).then_some(3);
            }
        }
        let (next, fresh) = (plan.after(Some(&last)), plan.snapshot());
        for rule in 0..4 {
            assert!(next.slots(rule).eq(fresh.slots(rule)));
            for place in 0..BACKENDS as u32 {
                let gets = |s: &Snapshot<'_>| {
                    let own = s.backends()[place as usize].id();
                    s.slots(rule).any(|slot| slot == Some(own))
                };
                assert_eq!(
                    gets(&next),
                    next.serves(rule, place),
                    "rule {rule}, {plan:?}"
                );
            }
        }
        last = next;
    }
}

#[test]
fn a_backend_that_recovers_for_a_probe_has_a_weight_of_its_own_there() {
    let mut plan = Plan::new(false);
    plan.found[0] = [3, 30, 30, 30].map(|weight| BackendHealth {
        weight: Some(weight),
        ..WELL
    });
    let snapshot = plan.snapshot();
    let slots_of = |rule| {
        let own = snapshot.backends()[0].id();
        snapshot
            .slots(rule)
            .filter(|slot| *slot == Some(own))
            .count()
    };
    // 3 of 93, and 1 of 4, of 1021 slots.
    assert!((23..=43).contains(&slots_of(0)), "{}", slots_of(0));
    assert!((235..=275).contains(&slots_of(3)), "{}", slots_of(3));
    assert_eq!((slots_of(2), slots_of(1)), (slots_of(0), slots_of(3)));
}

#[test]
fn results_have_to_be_of_the_pool() {
    Plan::new(false).give(|spec| {
        let build = |spec: &Spec<'_>| Snapshot::new(spec, None).map(drop);
        let results = [WELL; 9];
        for (pool, count) in [(0, 3), (0, 5), (0, 0), (1, 4)] {
            let wrong = PoolHealth {
                pool,
                backends: &results[..count],
            };
            let health = [spec.health[0], wrong];
            let expected = SpecError::PoolHealth {
                health: 1,
                expected: if pool == 0 { 4 } else { 0 },
                given: count,
            };
            let spec = Spec {
                health: &health,
                ..spec.clone()
            };
            assert_eq!(build(&spec), Err(expected));
        }
        let mut rules = spec.rules.to_vec();
        rules[2].health = Some(2);
        let dangling = Spec {
            rules: &rules,
            ..spec.clone()
        };
        assert_eq!(build(&dangling), Err(SpecError::DanglingHealth { rule: 2 }));
        // Of another pool, of as many backends.
        let pools = [
            spec.pools[0],
            Pool {
                name: "others",
                ..spec.pools[0]
            },
        ];
        let mut of_others = spec.health.to_vec();
        of_others[1].pool = 1;
        let other = Spec {
            pools: &pools,
            health: &of_others,
            ..spec.clone()
        };
        assert_eq!(build(&other), Err(SpecError::DanglingHealth { rule: 1 }));
    });
}
