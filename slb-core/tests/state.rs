//! Connections and flows as records: what they name, what is refused and why, and that bytes that are no
//! records are refused in whole.

use crate::common;
use crate::translated;

use std::sync::Arc;
use std::time::Duration;

use slb_core::hash::siphash13;
use slb_core::spec::BackendState;
use slb_core::state::{Age, Cursor, Imported, RECORD_MOST, Refusal, StateError};
use slb_core::{Key, Mux};
use translated::{ACK, ROLES, Role, SYN, SYN_ACK, Setup, What, World, addresses, packet, ports};

const HEALTHY: BackendState = BackendState::Up;

/// Where fields of a connection stand.
const KIND: usize = 2;
const VERSION: usize = 3;
const STATE: usize = 10;
const MARKS: usize = 11;
const LEFT: usize = 14;
const BACKEND: usize = 16;
const PORT: usize = 54;
const OUTSIDE_PORTS: usize = 80;
const ADDRESSES: usize = 88;

/// The records one by one.
fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut all, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let (record, others) = rest.split_at(u16::from_be_bytes([rest[0], rest[1]]).into());
        all.push(record.to_vec());
        rest = others;
    }
    all
}

/// A record with another field, and the check that fits it.
fn edited(record: &[u8], at: usize, field: &[u8]) -> Vec<u8> {
    let mut record = record.to_vec();
    record[at..at + field.len()].copy_from_slice(field);
    checked(record)
}

fn checked(mut record: Vec<u8>) -> Vec<u8> {
    let len = record.len() as u16;
    record[..2].copy_from_slice(&len.to_be_bytes());
    let head = u32::from_be_bytes(record[..4].try_into().unwrap());
    let check = siphash13([head.into(), 0], &record[8..]) as u32;
    record[4..8].copy_from_slice(&check.to_be_bytes());
    record
}

/// That one record was refused, and why.
#[track_caller]
fn assert_refused(imported: Result<Imported, StateError>, why: Refusal) {
    let imported = imported.unwrap();
    assert_eq!(
        (imported.taken, imported.all_refused()),
        (0, 1),
        "{why:?}: {imported:?}"
    );
    assert_eq!(imported.refused(why), 1, "{why:?}: {imported:?}");
}

/// A server calls out; returns the packet that leaves.
fn calls_out(world: &mut World, server: u16, number: u32, what: What) -> Vec<u8> {
    let (from, to) = (
        (world.setup.server(server), 4000),
        world.setup.client(number),
    );
    let outcome = world.give(slb_core::PortId(server), &packet(from, to, what, false));
    assert!(outcome.is_forwarded(), "{:?}", outcome.verdict);
    outcome.bytes
}

/// Connections of every kind and state, half of them over or not come about.
fn busy(role: Role, ipv6: bool) -> World {
    let mut world = World::new(Setup::new(role, ipv6));
    for number in 0..40 {
        let home = 1 + (number % 2) as u16;
        match number % 8 {
            0 => drop(world.asks(home, number, SYN).unwrap()),
            1 => {
                let server = world.asks(home, number, SYN).unwrap();
                world.answers(server, number, SYN_ACK).unwrap();
            }
            2 => {
                let server = world.connects(home, number, SYN).unwrap();
                let fin = What::Tcp("FA", 101, 501);
                world.asks(home, number, fin).unwrap();
                if number % 16 == 2 {
                    world
                        .answers(server, number, What::Tcp("FA", 501, 102))
                        .unwrap();
                }
            }
            3 => {
                let server = world.connects(home, number, SYN).unwrap();
                world
                    .answers(server, number, What::Tcp("RA", 501, 101))
                    .unwrap();
            }
            4 => drop(world.connects(home, number, What::Udp).unwrap()),
            5 => drop(world.connects(home, number, What::Echo).unwrap()),
            6 => drop(world.connects(home, number, What::Other).unwrap()),
            _ => {
                // A later SYN is kept beside the connection.
                world.connects(home, number, SYN).unwrap();
                world.asks(home, number, What::Tcp("S", 90_000, 0)).unwrap();
            }
        }
        if role == Role::Host {
            calls_out(
                &mut world,
                home,
                number,
                if number % 2 == 0 { SYN } else { What::Udp },
            );
        }
        world.wait(Duration::from_millis(300));
    }
    world
}

#[test]
fn names_hold_under_another_configuration() {
    for (role, ipv6) in ROLES {
        let old = busy(role, ipv6);
        let (exported, _) = old.export();
        // Ids are of another history. The places stay, since SNAT ports are dealt out in their order.
        let mut setup = Setup::new(role, ipv6);
        setup.backends = vec![(9, 1, HEALTHY), (2, 1, HEALTHY), (7, 1, HEALTHY)];
        let mut new = World::new(setup);
        new.set(&[(1, 1, HEALTHY), (2, 1, HEALTHY), (8, 1, HEALTHY)]);
        new.now = old.now;
        let imported = new.import(Age::default(), &exported).unwrap();
        assert_eq!(imported.all_refused(), 0, "{role:?}: {imported:?}");
        let mut both = [&exported, &new.export().0].map(|bytes| records(bytes));
        both.iter_mut().for_each(|records| records.sort());
        assert_eq!(both[0], both[1], "{role:?}");
        for server in [1, 2] {
            assert_eq!(new.live(server), old.live(server));
            if role == Role::Host {
                assert_eq!(new.snat(server), old.snat(server));
            }
        }
        let (before, after) = (old.connections(), new.connections());
        assert_eq!(
            (after.live, after.unanswered, after.made, after.imported),
            (before.live, before.unanswered, 0, imported.taken)
        );
    }
}

#[test]
fn a_connection_goes_on_under_the_same_names() {
    for (role, ipv6) in ROLES {
        for what in [SYN, What::Udp, What::Echo, What::Other] {
            let mut old = World::new(Setup::new(role, ipv6));
            let server = old.connects(1, 7, what).unwrap();
            let (exported, _) = old.export();
            let mut new = World::new(Setup::new(role, ipv6));
            if role == Role::Host && matches!(what, What::Tcp(..)) {
                assert!(
                    new.asks(1, 7, ACK).is_err(),
                    "without its state it is unknown"
                );
            }
            new.import(Age::default(), &exported).unwrap();
            assert!(new.goes_on(server, 7, what), "{role:?} {what:?}");
        }
    }
}

#[test]
fn a_snat_port_stays_its_connections() {
    for ipv6 in [false, true] {
        let mut old = World::new(Setup::new(Role::Host, ipv6));
        let before = calls_out(&mut old, 1, 7, SYN);
        let (exported, _) = old.export();
        let mut new = World::new(Setup::new(Role::Host, ipv6));
        new.import(Age::default(), &exported).unwrap();
        assert_eq!(new.snat(1), (1, 1));
        let after = calls_out(&mut new, 1, 7, SYN);
        assert_eq!(
            (addresses(&after), ports(&after)),
            (addresses(&before), ports(&before))
        );
        // Another connection to the same end gets another port.
        let (from, to) = ((new.setup.server(1), 4001), new.setup.client(7));
        let other = new.give(slb_core::PortId(1), &packet(from, to, SYN, false));
        assert_ne!(ports(&other.bytes).0, ports(&before).0);
        assert_eq!(new.snat(1), (2, 2));
        new.wait(Duration::from_secs(250));
        new.wait(Duration::from_secs(2));
        assert_eq!(new.snat(1), (0, 0));
    }
}

#[test]
fn times_are_what_is_left_of_them() {
    for (role, ipv6) in ROLES {
        let mut old = World::new(Setup::new(role, ipv6));
        old.connects(1, 7, SYN).unwrap();
        old.wait(Duration::from_secs(100));
        let (exported, _) = old.export();
        for (elapsed, lives) in [(30, true), (139, true), (141, false)] {
            let mut new = World::new(Setup::new(role, ipv6));
            // Another clock.
            new.now = slb_core::Instant::from_secs(5);
            let age = Age::exact(Duration::from_secs(elapsed));
            let imported = new.import(age, &exported);
            if !lives {
                assert_refused(imported, Refusal::Expired);
                continue;
            }
            assert_eq!(imported.unwrap().taken, 1);
            new.wait(Duration::from_secs(138 - elapsed.min(138)));
            assert_eq!(new.connections().live, 1, "{elapsed}");
            new.wait(Duration::from_secs(3));
            new.wait(Duration::from_secs(2));
            assert_eq!(new.connections().live, 0, "{elapsed}");
        }
    }
}

#[test]
fn each_refusal_says_why() {
    for (role, ipv6) in ROLES {
        let mut old = World::new(Setup::new(role, ipv6));
        old.connects(1, 7, What::Udp).unwrap();
        let (record, _) = old.export();
        let new = || World::new(Setup::new(role, ipv6));
        let other_role = [2, 1][usize::from(record[KIND] == 2)];
        for (record, why) in [
            (edited(&record, KIND, &[other_role]), Refusal::OtherRole),
            (edited(&record, KIND, &[3]), Refusal::OtherRole),
            (edited(&record, KIND, &[200]), Refusal::Newer),
            (edited(&record, VERSION, &[2]), Refusal::Newer),
            (edited(&record, STATE, &[0]), Refusal::Malformed),
            (edited(&record, STATE, &[8]), Refusal::Malformed),
            (edited(&record, STATE, &[6]), Refusal::Malformed), // of TCP only
            (edited(&record, MARKS, &[0x80]), Refusal::Malformed),
            (edited(&record, MARKS, &[0x60]), Refusal::Malformed),
            (edited(&record, MARKS, &[0x20]), Refusal::Malformed), // is established
            (edited(&record, MARKS, &[0x10]), Refusal::Malformed), // is not closed
            (edited(&record, BACKEND, &[9; 8]), Refusal::UnknownBackend),
            (edited(&record, PORT, &[9; 6]), Refusal::UnknownPort),
            (edited(&record, LEFT, &[0, 0]), Refusal::Expired),
            (edited(&record, 8, &[5]), Refusal::Malformed),
            (
                checked(record[..record.len() - 1].to_vec()),
                Refusal::Malformed,
            ),
            (checked([&record[..], &[0]].concat()), Refusal::Malformed),
            (checked(record[..8].to_vec()), Refusal::Malformed),
        ] {
            assert_refused(new().import(Age::default(), &record), why);
        }
        // A backend's name with another server's address is a lie.
        let at = ADDRESSES + if ipv6 { 32 } else { 8 };
        let lie = edited(&record, at, &[66; 4]);
        assert_refused(new().import(Age::default(), &lie), Refusal::Malformed);
        // The same connection twice; and another that has only one of its names.
        let mut new = new();
        assert_eq!(new.import(Age::default(), &record).unwrap().taken, 1);
        assert_refused(new.import(Age::default(), &record), Refusal::TupleTaken);
        let other = edited(&record, OUTSIDE_PORTS, &[9, 9]);
        assert_refused(new.import(Age::default(), &other), Refusal::TupleTaken);
        assert_eq!(new.connections().live, 1);
    }
}

#[test]
fn a_port_of_another_backend_is_refused() {
    for ipv6 in [false, true] {
        let mut old = World::new(Setup::new(Role::Host, ipv6));
        calls_out(&mut old, 1, 7, SYN);
        let (record, _) = old.export();
        for port in [80u16, 1024 + 8192, 65_535] {
            let mut new = World::new(Setup::new(Role::Host, ipv6));
            let other = edited(&record, OUTSIDE_PORTS + 2, &port.to_be_bytes());
            assert_refused(new.import(Age::default(), &other), Refusal::PortTaken);
            assert_eq!(new.snat(1), (0, 0));
        }
    }
}

#[test]
fn a_full_table_takes_no_more() {
    for (role, ipv6) in ROLES {
        let mut old = World::new(Setup::new(role, ipv6));
        for number in 0..20 {
            old.connects(1, number, SYN).unwrap();
        }
        for number in 20..40 {
            old.asks(1, number, SYN).unwrap();
        }
        let (exported, _) = old.export();
        let mut setup = Setup::new(role, ipv6);
        setup.places = 16;
        let mut new = World::new(setup);
        let imported = new.import(Age::default(), &exported).unwrap();
        assert_eq!(imported.taken, 16);
        assert_eq!(imported.refused(Refusal::TableFull), 24);
    }
}

#[test]
fn an_unanswered_handshake_of_a_stale_export_is_refused() {
    for (role, ipv6) in ROLES {
        let mut old = World::new(Setup::new(role, ipv6));
        old.asks(1, 7, SYN).unwrap();
        let (record, _) = old.export();
        let stale = Age {
            elapsed: Duration::from_secs(1),
            is_stale: true,
        };
        let mut new = World::new(Setup::new(role, ipv6));
        assert_refused(new.import(stale, &record), Refusal::Unfinished);
        assert_eq!(new.import(Age::default(), &record).unwrap().taken, 1);
    }
}

#[test]
fn damaged_bytes_are_refused_in_whole() {
    let old = busy(Role::Host, false);
    let (exported, calls) = old.export();
    let count = records(&exported).len();
    assert!(
        count > 60 && calls > count / 8,
        "bounded steps: {count} in {calls}"
    );
    let refused = |bytes: &[u8]| {
        let mut new = World::new(Setup::new(Role::Host, false));
        let error = new.import(Age::default(), bytes).unwrap_err();
        assert_eq!(new.connections().live, 0);
        error
    };
    for at in (0..exported.len()).step_by(7) {
        let mut damaged = exported.clone();
        damaged[at] ^= 0x10;
        refused(&damaged);
        if at % 104 != 0 {
            refused(&exported[..at]);
        }
    }
    assert_eq!(refused(&[0; 100]), StateError::Length { at: 0, len: 0 });
    assert_eq!(
        refused(&[1, 2, 3]),
        StateError::Truncated { at: 0, left: 3 }
    );
    assert_eq!(
        refused(&[0, 8, 1, 1, 0, 0, 0, 0]),
        StateError::Damaged { at: 0 }
    );
}

#[test]
fn without_room_for_a_record_nothing_is_exported() {
    let mut setup = common::Setup::new(4);
    setup.ha_ports = true;
    let mut mux = common::pinned(&setup);
    common::send_one(&mut mux, common::tcp([10, 0, 0, 1], 1000, "S"));
    let mut place = None;
    let mut next = Some(Cursor::START);
    while let Some(cursor) = next {
        let exported = mux.export(cursor, &mut [0; RECORD_MOST]);
        if exported.records > 0 {
            place = Some(cursor);
        }
        next = exported.next;
    }
    let place = place.unwrap();
    let exported = mux.export(place, &mut [0; RECORD_MOST - 1]);
    assert_eq!((exported.len, exported.next), (0, Some(place)));
}

#[test]
fn pins_are_of_backends_by_name() {
    let mut setup = common::Setup::new(20);
    let mut old = common::pinned(&setup);
    let now = slb_core::Instant::from_secs(1000);
    let syns = common::flows(500, "S");
    let acks = common::flows(500, "A");
    let before = common::backends_of(&mut old, now, &syns);
    common::backends_of(&mut old, now, &acks);
    let export = |mux: &common::TestMux| {
        let (mut all, mut next) = (Vec::new(), Some(Cursor::START));
        let mut buffer = [0; 4 * RECORD_MOST];
        while let Some(cursor) = next {
            let exported = mux.export(cursor, &mut buffer);
            all.extend(&buffer[..exported.len]);
            next = exported.next;
        }
        all
    };
    let exported = export(&old);
    assert_eq!(records(&exported).len(), 500);
    // Half as many backends again in front: places, ids and most of Maglev's choices are others.
    let more = common::Setup::new(30).backends.split_off(20);
    setup.backends.splice(0..0, more);
    let new = || -> common::TestMux {
        Mux::with_capacity(Arc::new(setup.snapshot()), 10_000, Key::new([7, 8])).expect("its role")
    };
    let mut without = new();
    assert_ne!(common::backends_of(&mut without, now, &acks), before);
    let mut with = new();
    let imported = with.import(now, Age::default(), &exported).unwrap();
    assert_eq!((imported.taken, imported.all_refused()), (500, 0));
    let mut both = [&exported, &export(&with)].map(|bytes| records(bytes));
    both.iter_mut().for_each(|records| records.sort());
    assert_eq!(both[0], both[1]);
    assert_eq!(common::backends_of(&mut with, now, &acks), before);
    // A backend that is gone is nobody's any more.
    setup.backends.retain(|backend| backend.number != before[0]);
    let mut less: common::TestMux =
        Mux::with_capacity(Arc::new(setup.snapshot()), 10_000, Key::new([7, 8])).expect("its role");
    let imported = less.import(now, Age::default(), &exported).unwrap();
    let lost = before.iter().filter(|&&number| number == before[0]).count();
    assert_eq!(imported.refused(Refusal::UnknownBackend), lost as u64);
    let after = common::backends_of(&mut less, now, &acks);
    for (before_, after) in before.iter().zip(&after) {
        assert!(before_ == after || *before_ == before[0]);
    }
    // A stateless mux has no place for them.
    let mut stateless = common::stateless(&setup);
    let imported = stateless.import(now, Age::default(), &exported).unwrap();
    assert_eq!(imported.refused(Refusal::TableFull), 500);
}

#[test]
fn late_answers_of_a_flow_that_moved_keep_the_vips_name() {
    for ipv6 in [false, true] {
        let mut setup = Setup::new(Role::Proxy, ipv6);
        setup.backends = vec![(1, 1, HEALTHY)];
        let mut old = World::new(setup.clone());
        old.connects(1, 7, What::Udp).unwrap();
        old.set(&[(1, 1, BackendState::Down), (2, 1, HEALTHY)]);
        assert_eq!(old.asks(1, 7, What::Udp), Ok(2));
        let (exported, _) = old.export();
        assert_eq!(records(&exported).len(), 2);
        // In either order.
        let mut backward = records(&exported);
        backward.reverse();
        for exported in [exported, backward.concat()] {
            let mut new = World::new(old.setup.clone());
            assert_eq!(new.import(Age::default(), &exported).unwrap().taken, 2);
            assert_eq!(new.asks(1, 7, What::Udp), Ok(2));
            for server in [1, 2] {
                let vip = new.setup.vip();
                assert_eq!(new.answers(server, 7, What::Udp), Ok(vip), "{server}");
            }
        }
    }
}

#[test]
fn tcp_of_a_backend_that_is_gone_goes_on_through_a_proxy_only() {
    for (role, ipv6) in ROLES {
        let mut old = World::new(Setup::new(role, ipv6));
        let server = old.connects(1, 7, SYN).unwrap();
        old.connects(server, 8, What::Udp).ok();
        let (exported, _) = old.export();
        let mut setup = Setup::new(role, ipv6);
        setup.backends = vec![(5, 1, HEALTHY)];
        let mut new = World::new(setup);
        let imported = new.import(Age::default(), &exported).unwrap();
        assert!(imported.refused(Refusal::UnknownBackend) >= 1);
        match role {
            Role::Host => assert_eq!(imported.taken, 0),
            Role::Proxy => {
                assert_eq!(imported.taken, 1);
                assert!(new.goes_on(server, 7, SYN));
            }
        }
    }
}
