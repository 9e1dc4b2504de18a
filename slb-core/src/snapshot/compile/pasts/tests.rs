use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::health::Condition;
use crate::spec::{Backend, BackendHealth, Frontend, Pool, PoolHealth, Protocol, Rule, Underlay};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const SIZE: u32 = 31;
/// Each pool has a rule without a probe, and one for each of two probes.
const RULES: usize = 3;

/// The state of a pool: a bit for each of its backends.
#[derive(Clone, Copy, Debug)]
struct State {
    /// Backends with a weight.
    seated: u8,
    /// Backends that fail each probe.
    failing: [u8; 2],
}

/// Compiles two pools.
fn compiled(pools: &[State; 2], previous: Option<&Snapshot<'_>>) -> Snapshot<'static> {
    let bit = |bits: u8, place: usize| bits >> place & 1 != 0;
    let backends = [0, 1].map(|pool: usize| {
        core::array::from_fn::<_, 4, _>(|place| Backend {
            name: NAMES[place],
            address: [10, 0, pool as u8, place as u8 + 1].into(),
            host: [172, 16, 0, 2].into(),
            weight: bit(pools[pool].seated, place).into(),
            ..Backend::default()
        })
    });
    let results: Vec<_> = (0..2)
        .flat_map(|pool| (0..2).map(move |probe| (pool, probe)))
        .map(|(pool, probe): (usize, usize)| {
            let results: [_; 4] = core::array::from_fn(|place| BackendHealth {
                condition: match bit(pools[pool].failing[probe], place) {
                    true => Condition::Unhealthy,
                    false => Condition::default(),
                },
                weight: None,
            });
            (pool, results)
        })
        .collect();
    let health: Vec<_> = results
        .iter()
        .map(|(pool, backends)| PoolHealth {
            pool: *pool,
            backends,
        })
        .collect();
    let of_pool = |pool: usize, name| Pool {
        name,
        table_size: SIZE,
        backends: &backends[pool],
        ..Pool::default()
    };
    let frontends = [Frontend {
        name: "vip",
        address: [20, 0, 0, 1].into(),
        ..Frontend::default()
    }];
    let names = ["r0", "r1", "r2", "r3", "r4", "r5"];
    let rules: Vec<_> = (0..2 * RULES)
        .map(|rule| Rule {
            name: names[rule],
            pool: rule / RULES,
            health: (rule % RULES)
                .checked_sub(1)
                .map(|probe| 2 * (rule / RULES) + probe),
            protocol: Protocol::Tcp,
            frontend_port: 80 + rule as u16,
            ..Rule::default()
        })
        .collect();
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some([172, 16, 0, 1].into()),
            ..Underlay::default()
        },
        frontends: &frontends,
        pools: &[of_pool(0, "left"), of_pool(1, "right")],
        rules: &rules,
        health: &health,
        ..Spec::default()
    };
    Snapshot::new(&spec, previous).expect("a good spec")
}

/// Owners and ages of the slots of a rule.
fn slots(snapshot: &Snapshot<'_>, rule: usize) -> Vec<(Option<u32>, Option<u8>)> {
    let rule = snapshot.rule(rule as u32).expect("there are six");
    let all = rule.first_slot()..rule.first_slot() + SIZE as usize;
    all.map(|slot| {
        let owner = snapshot.backend_at(rule.first_backend, slot);
        (owner, snapshot.age_of(slot))
    })
    .collect()
}

#[test]
fn no_slot_is_older_than_its_last_change() {
    let check = |changes: &[(bool, u8, [u8; 2])]| {
        let all = State {
            seated: 15,
            failing: [0; 2],
        };
        let mut pools = [all; 2];
        let mut snapshot = compiled(&pools, None);
        // The exact age of each slot's change, for each rule.
        let mut expected = vec![[None; SIZE as usize]; 2 * RULES];
        for &(is_right, seated, failing) in changes {
            let pool = usize::from(is_right);
            pools[pool] = State { seated, failing };
            let next = compiled(&pools, Some(&snapshot));
            let alone = compiled(&pools, None);
            for (rule, expected) in expected.iter_mut().enumerate() {
                let now = slots(&next, rule);
                let owners = |slots: &[(Option<u32>, _)]| {
                    slots.iter().map(|slot| slot.0).collect::<Vec<_>>()
                };
                assert_eq!(owners(&now), owners(&slots(&alone, rule)), "rule {rule}");
                let before = slots(&snapshot, rule);
                for (slot, expected) in expected.iter_mut().enumerate() {
                    let (old, (owner, age)) = (before[slot].0, now[slot]);
                    *expected = match (old.is_some() && old != owner, *expected) {
                        (true, _) => Some(0),
                        (false, known) => known.map(|age: u8| (age + 1).min(254)),
                    };
                    // Rules that share a table, or once did, have the age of the latest change.
                    let is_known = expected.is_none() || age.is_some() && age <= *expected;
                    assert!(is_known, "rule {rule}, slot {slot}: {age:?}, {expected:?}");
                }
            }
            snapshot = next;
        }
    };
    bolero::check!()
        .with_type::<Vec<(bool, u8, [u8; 2])>>()
        .for_each(|changes| check(changes));
}

#[test]
fn a_rule_without_probes_has_exact_ages() {
    let bits = [15, 7, 15, 15, 11, 11, 0, 15];
    let of = |seated| {
        [seated, 15].map(|seated| State {
            seated,
            failing: [0; 2],
        })
    };
    let mut snapshot = compiled(&of(bits[0]), None);
    let mut expected = [None; SIZE as usize];
    for seated in bits.into_iter().cycle().skip(1).take(400) {
        let next = compiled(&of(seated), Some(&snapshot));
        let (before, now) = (slots(&snapshot, 0), slots(&next, 0));
        for (slot, expected) in expected.iter_mut().enumerate() {
            let (old, (owner, age)) = (before[slot].0, now[slot]);
            *expected = match (old.is_some() && old != owner, *expected) {
                (true, _) => Some(0),
                (false, known) => known.map(|age: u8| (age + 1).min(254)),
            };
            assert_eq!(age, *expected, "slot {slot}");
        }
        for rule in RULES..2 * RULES {
            let other = slots(&next, rule);
            assert!(other.iter().all(|slot| slot.1.is_none()), "rule {rule}");
        }
        snapshot = next;
    }
    for _ in 0..300 {
        snapshot = compiled(&of(bits[0]), Some(&snapshot));
    }
    let ages = slots(&snapshot, 0).into_iter().map(|slot| slot.1);
    assert!(
        ages.flatten().all(|age| age == 254),
        "and no change is forgotten"
    );
}
