//! A client-side balancer chooses what a mux chooses.

mod common;

use common::*;
use slb_core::maglev::{MaglevError, Member, Table};
use slb_core::observe::Step;
use slb_core::spec::BackendState;
use slb_core::{Frame, HEADROOM, Instant, Key, Mux};

#[test]
fn a_table_agrees_with_a_mux_of_the_same_names() {
    let mut setup = Setup::new(20);
    setup.backends[4].weight = 3;
    setup.set_state(9, BackendState::Draining);
    let (table, pool) = setup.with_spec(|spec| {
        let pool = &spec.pools[0];
        let members = pool.backends.iter().map(|backend| Member {
            name: backend.name,
            weight: if backend.is_eligible() {
                backend.weight
            } else {
                0
            },
        });
        let members: Vec<_> = members.collect();
        let table = Table::with_members(&members, pool.table_size, spec.hash_seed);
        (table.expect("good"), pool.backends.len())
    });
    let snapshot = setup.snapshot();
    let mut mux = Mux::stateless(&snapshot, Key::new([1, 2])).expect("a mux");
    let mut seen_all = vec![0; pool];
    for port in 0..2000 {
        let packet = tcp(CLIENT, port, "S");
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(&packet);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, packet.len()).expect("room")];
        let (mut key, mut selected) = (None, None);
        let mut observe = |_: usize, step| match step {
            Step::Hashed { hash, .. } => key = Some(hash),
            Step::Selected(index) => selected = Some(index as usize),
            _ => {}
        };
        mux.process_observed(Instant::from_secs(1000), &mut frames, &mut observe);
        let chosen = table.choose(key.expect("a hash"));
        assert_eq!(chosen, selected);
        seen_all[chosen.expect("a backend")] += 1;
    }
    assert_eq!(seen_all.iter().filter(|count| **count == 0).count(), 1);
    assert!(seen_all[4] > seen_all[5], "{seen_all:?}");
}

#[test]
fn what_is_no_table_is_told() {
    let twice = Table::new(["a", "b", "a"], 0);
    assert!(matches!(twice, Err(MaglevError::DuplicateName { .. })));
    let member = Member {
        name: "a",
        weight: 0,
    };
    let not_prime = Table::with_members(&[member], 250, 0);
    assert_eq!(not_prime, Err(MaglevError::SizeNotPrime { size: 250 }));
    let idle = Table::with_members(&[member], 251, 0).expect("good");
    assert_eq!(idle.choose(u64::MAX), None);
    let none = Table::new([], 0).expect("good");
    assert_eq!(none.choose(7), None);
}
