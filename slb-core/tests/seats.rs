//! Seats: a backend that replaces another one gets its slots of the Maglev table, and no other slot moves.

use crate::common;

use common::Setup;
use slb_core::maglev::{MaglevError, Member, Table};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, BackendHealth, BackendState, PoolHealth, Spec, SpecError};

/// The backends of a setup, of which those in `seats` have the seat of another one.
fn compiled(
    setup: &Setup,
    seats: &[(usize, &str)],
    change: impl Fn(&mut [Backend<'_>]),
    previous: Option<&Snapshot<'_>>,
) -> Result<Snapshot<'static>, SpecError> {
    setup.with_spec(|spec| {
        let mut backends = spec.pools[0].backends.to_vec();
        for &(place, seat) in seats {
            backends[place].seat = Some(seat);
        }
        change(&mut backends);
        let mut pools = spec.pools.to_vec();
        pools[0].backends = &backends;
        let mut spec = spec.clone();
        spec.pools = &pools;
        let faults: Vec<_> = spec.faults().collect();
        let built = Snapshot::new(&spec, previous);
        assert_eq!(faults.first().copied(), built.as_ref().err().copied());
        built
    })
}

/// The backend of each slot, by its place.
fn slots(snapshot: &Snapshot<'_>) -> Vec<Option<u32>> {
    let place = |id: Option<_>| id.and_then(|id| snapshot.backend_index(id));
    snapshot.slots(0).map(place).collect()
}

#[test]
fn a_backend_in_the_seat_of_another_gets_that_ones_slots_and_no_other() {
    let setup = Setup::new(10);
    let first = setup.backends[0].name.clone();
    let before = compiled(&setup, &[], |all| all[9].weight = 0, None).expect("good");
    let drains: [fn(&mut [Backend<'_>]); 2] = [
        |all| all[0].weight = 0,
        |all| all[0].state = BackendState::Draining,
    ];
    for drain in drains {
        let after = compiled(&setup, &[(9, &first)], drain, Some(&before)).expect("good");
        for (was, is) in slots(&before).into_iter().zip(slots(&after)) {
            let expected = if was == Some(0) { Some(9) } else { was };
            assert_eq!(is, expected);
        }
    }
    // Without the seat other slots move too.
    let after = compiled(&setup, &[], drains[0], Some(&before)).expect("good");
    let all = slots(&before).into_iter().zip(slots(&after));
    assert!(all.filter(|(was, is)| *was != Some(0) && was != is).count() > 0);
}

#[test]
fn one_seat_has_one_backend_that_is_not_drained() {
    let setup = Setup::new(4);
    let name = setup.backends[1].name.clone();
    let seats = [(3, &*name)];
    let taken = SpecError::SeatTaken {
        pool: 0,
        first: 1,
        second: 3,
    };
    let built = compiled(&setup, &seats, |_| {}, None);
    assert_eq!(built.err(), Some(taken));
    // A backend that fails may be back at any time.
    let built = compiled(
        &setup,
        &seats,
        |all| all[1].state = BackendState::Down,
        None,
    );
    assert_eq!(built.err(), Some(taken));
    for drained in [1, 3] {
        compiled(&setup, &seats, |all| all[drained].weight = 0, None).expect("good");
    }
    // Names are still unlike each other, drained or not.
    let alike = |all: &mut [Backend<'_>]| {
        all[3].name = all[1].name;
        all[3].weight = 0;
    };
    let error = MaglevError::DuplicateName { member: 3 };
    let expected = SpecError::Table { pool: 0, error };
    assert_eq!(compiled(&setup, &[], alike, None).err(), Some(expected));
}

/// A probe has no say in who has a seat.
#[test]
fn a_drained_backend_stays_so_whatever_weight_its_probe_gives_it() {
    let setup = Setup::new(4);
    let seat = setup.backends[1].name.clone();
    setup.with_spec(|spec| {
        let mut backends = spec.pools[0].backends.to_vec();
        (backends[3].seat, backends[1].weight) = (Some(&*seat), 0);
        let mut pools = spec.pools.to_vec();
        pools[0].backends = &backends;
        let mut rules = spec.rules.to_vec();
        rules[0].health = Some(0);
        let mut found = [BackendHealth::default(); 4];
        found[1].weight = Some(5);
        let spec = Spec {
            pools: &pools,
            rules: &rules,
            health: &[PoolHealth {
                pool: 0,
                backends: &found,
            }],
            ..spec.clone()
        };
        let snapshot = Snapshot::new(&spec, None).expect("good");
        assert!(slots(&snapshot).iter().all(|owner| *owner != Some(1)));
    });
}

#[test]
fn a_table_takes_a_name_twice_where_one_of_the_two_has_no_weight() {
    let member = |name, weight| Member { name, weight };
    let alone = Table::with_members(&[member("a", 1), member("b", 1)], 251, 0).expect("good");
    for members in [
        [member("a", 1), member("b", 1), member("a", 0)],
        [member("a", 1), member("b", 1), member("b", 0)],
    ] {
        assert_eq!(Table::with_members(&members, 251, 0).expect("good"), alone);
    }
    let twice = [member("a", 1), member("b", 1), member("a", 2)];
    let refused = Table::with_members(&twice, 251, 0);
    assert!(matches!(
        refused,
        Err(MaglevError::DuplicateName { member: 0 | 2 })
    ));
}
