//! Any bytes as a host agent's, a proxy's or a mux's state: they are refused, or the connections that they
//! tell of lead to the backends that they name, end in their time and leave nothing behind. Any header of the file
//! that records are kept in: it is refused, or each of its bytes says what is read.

#[path = "../../slb/src/live/state/file.rs"]
#[allow(dead_code, reason = "the program's file is tested, and not its names")]
mod file;
#[path = "../../slb-core/tests/translated/mod.rs"]
mod translated;

use std::collections::BTreeSet;
use std::time::Duration;

use bolero::TypeGenerator;
use file::{Contents, HEADER, Moment, Owner, Piece};
use slb_core::hash::siphash13;
use slb_core::state::Age;
use slb_core::{Key, Mux, PortId};
use translated::{ACK, FABRIC, ROLES, Role, SYN, SYN_ACK, Setup, What, World, packet};

/// Bytes that are nearly a state.
#[derive(Clone, Debug, TypeGenerator)]
struct Nearly {
    role: u8,
    connections: u8,
    elapsed: u16,
    is_stale: bool,
    /// Record, offset and new value of each changed byte.
    changes: Vec<(u8, u8, u8)>,
    /// True if the checks are computed from the changed records.
    is_checked: bool,
    cut: Option<u16>,
}

fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut all, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let (record, others) = rest.split_at(u16::from_be_bytes([rest[0], rest[1]]).into());
        all.push(record.to_vec());
        rest = others;
    }
    all
}

fn check(record: &mut [u8]) {
    let head = u32::from_be_bytes(record[..4].try_into().unwrap());
    let check = siphash13([head.into(), 0], &record[8..]) as u32;
    record[4..8].copy_from_slice(&check.to_be_bytes());
}

/// Connections of all kinds.
fn exported(role: Role, ipv6: bool, connections: u8) -> Vec<u8> {
    let mut world = World::new(Setup::new(role, ipv6));
    for number in 0..u32::from(connections % 24) {
        let home = 1 + (number % 2) as u16;
        match number % 6 {
            0 => drop(world.asks(home, number, SYN)),
            1 => drop(world.connects(home, number, SYN)),
            2 => drop(world.connects(home, number, What::Udp)),
            3 => drop(world.connects(home, number, What::Other)),
            4 => {
                let server = world.asks(home, number, SYN).unwrap();
                let _ = world.answers(server, number, SYN_ACK);
                let _ = world.asks(server, number, What::Tcp("S", 7, 0));
            }
            _ if role == Role::Host => {
                let (from, to) = ((world.setup.server(home), 4000), world.setup.client(number));
                world.give(PortId(home), &packet(from, to, SYN, false));
            }
            _ => drop(world.connects(home, number, What::Echo)),
        }
    }
    world.export().0
}

#[test]
fn what_is_not_refused_leads_where_it_says_and_ends() {
    bolero::check!().with_type::<Nearly>().for_each(|input| {
        let (role, ipv6) = ROLES[usize::from(input.role) % ROLES.len()];
        let mut all = records(&exported(role, ipv6, input.connections));
        for &(which, at, byte) in &input.changes {
            let count = all.len();
            if count > 0 {
                let record = &mut all[usize::from(which) % count];
                let at = 2 + usize::from(at) % (record.len() - 2);
                record[at] = byte;
            }
        }
        if input.is_checked {
            all.iter_mut().for_each(|record| check(record));
        }
        let mut bytes = all.concat();
        if let Some(cut) = input.cut {
            bytes.truncate(cut.into());
        }
        let mut world = World::new(Setup::new(role, ipv6));
        let age = Age {
            elapsed: Duration::from_millis(u64::from(input.elapsed) * 4),
            is_stale: input.is_stale,
        };
        let Ok(imported) = world.import(age, &bytes) else {
            assert_eq!(world.connections().live, 0);
            assert!(!input.is_checked || input.cut.is_some());
            return;
        };
        let count = records(&bytes).len() as u64;
        assert_eq!(imported.taken + imported.all_refused(), count);
        assert_eq!(world.connections().live, imported.taken);
        // What it says of them is what it was told: another takes all of it, and says the same.
        let (again, _) = world.export();
        let mut third = World::new(Setup::new(role, ipv6));
        let taken = third.import(Age::default(), &again).unwrap();
        assert_eq!((taken.taken, taken.all_refused()), (imported.taken, 0));
        let of = |world: &World| BTreeSet::from_iter(records(&world.export().0));
        assert_eq!(of(&world), of(&third));
        // Records that are as they were exported lead their packets as before. Those that were made up
        // lead somewhere, under names that they say themselves.
        for number in 0..24 {
            for (home, what) in [1, 2].into_iter().zip([ACK, What::Udp]) {
                if input.is_checked {
                    let bytes = world.packet_of(home, number, what);
                    let outcome = world.give(FABRIC, &bytes);
                    if outcome.is_forwarded() {
                        outcome.addresses();
                    }
                } else {
                    let _ = world.asks(home, number, what);
                    let seen = world.answers(home, number, what);
                    let own = world.setup.server(home);
                    assert!(seen.is_err() || seen == Ok(world.setup.vip()) || seen == Ok(own));
                }
            }
        }
        for _ in 0..3 {
            world.wait(Duration::from_secs(80 * 60));
        }
        assert_eq!(world.connections().live, 0);
        for server in [1, 2] {
            assert_eq!(world.live(server), 0);
            if role == Role::Host {
                assert_eq!(world.snat(server), (0, 0));
            }
        }
    });
}

#[test]
fn any_bytes_are_no_danger() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        for (role, ipv6) in ROLES {
            let mut world = World::new(Setup::new(role, ipv6));
            if let Ok(imported) = world.import(Age::default(), bytes) {
                assert_eq!(imported.taken, 0);
            }
        }
        let setup = Setup::new(Role::Host, false);
        let mut mux =
            Mux::with_capacity(setup.after(None), 100, Key::new([1, 2])).expect("its role");
        let now = slb_core::Instant::from_secs(1);
        if let Ok(imported) = mux.import(now, Age::default(), bytes) {
            assert_eq!(imported.taken, 0);
        }
    });
}

/// A state file, or nearly.
#[derive(Clone, Debug, TypeGenerator)]
struct NearlyAFile {
    role: u8,
    connections: u8,
    /// The number of records of each piece, and its worker.
    pieces: Vec<(u8, u16)>,
    workers: u32,
    moment: ([u8; 16], u64, u64),
    is_exact: bool,
    ports: u64,
    /// The role and ports that the reader has, where they are others than the writer's.
    reader: Option<(u8, u64)>,
    /// Bytes of the header, and of the first piece's, and what is put there.
    changes: Vec<(u8, u8)>,
    is_checked: bool,
    cut: Option<u16>,
    more: Vec<u8>,
}

/// The program's name of a role.
fn program_role(role: Role) -> slb_control::Role {
    match role {
        Role::Host => slb_control::Role::Host,
        Role::Proxy => slb_control::Role::Proxy,
    }
}

#[test]
fn any_header_of_a_state_file_is_refused_or_says_what_is_read() {
    bolero::check!()
        .with_type::<NearlyAFile>()
        .for_each(|input| {
            let (role, ipv6) = ROLES[usize::from(input.role) % ROLES.len()];
            let mut all = records(&exported(role, ipv6, input.connections)).into_iter();
            let (boot, since_boot, unix) = input.moment;
            let pieces = input.pieces.iter().take(4).map(|&(count, worker)| Piece {
                worker,
                records: all.by_ref().take(count.into()).flatten().collect(),
            });
            let written = Contents {
                pieces: pieces.collect(),
                workers: input.workers,
                moment: Moment {
                    boot,
                    since_boot,
                    unix,
                },
                is_exact: input.is_exact,
            };
            let writer = Owner {
                role: program_role(role),
                ports: input.ports,
            };
            let whole = written.bytes(writer);
            let mut bytes = whole.clone();
            for &(at, byte) in &input.changes {
                let most = bytes.len().min(HEADER + 8);
                bytes[usize::from(at) % most] = byte;
            }
            bytes.extend(&input.more);
            if let Some(cut) = input.cut {
                bytes.truncate(cut.into());
            }
            if input.is_checked && bytes.len() >= HEADER {
                let len = (bytes.len() - HEADER) as u64;
                let (header, body) = bytes.split_at_mut(HEADER);
                if !input.more.is_empty() || input.cut.is_some() {
                    header[56..64].copy_from_slice(&len.to_be_bytes());
                }
                let check = file::check_of(header, body);
                header[64..].copy_from_slice(&check.to_be_bytes());
            }
            let (reader_role, ports) = input.reader.unwrap_or((input.role, input.ports));
            let (reader_role, reader_ipv6) = ROLES[usize::from(reader_role) % ROLES.len()];
            let reader = Owner {
                role: program_role(reader_role),
                ports,
            };
            let are_workers = written.pieces.iter().all(|piece| {
                // No worker would take the records of another one.
                u32::from(piece.worker) < input.workers
            });
            let read = match Contents::read(&bytes, reader) {
                Ok(read) => read,
                Err(why) => {
                    assert!(!why.is_empty());
                    let is_whole = bytes == whole && reader == writer && are_workers;
                    assert!(!is_whole, "{why}");
                    return;
                }
            };
            // Every byte counts: no two files say the same.
            assert_eq!(read.bytes(reader), bytes);
            let pieces = read.pieces.iter();
            assert!(
                pieces
                    .clone()
                    .all(|piece| u32::from(piece.worker) < read.workers)
            );
            if bytes == whole {
                assert_eq!((&read, reader), (&written, writer));
            }
            // Whatever the time is, what is taken is counted, and ends.
            let mut world = World::new(Setup::new(reader_role, reader_ipv6));
            let age = Age {
                elapsed: read.moment.elapsed(),
                is_stale: !read.is_exact,
            };
            let mut taken = 0;
            for piece in pieces {
                if let Ok(imported) = world.import(age, &piece.records) {
                    let count = records(&piece.records).len() as u64;
                    assert_eq!(imported.taken + imported.all_refused(), count);
                    taken += imported.taken;
                }
            }
            assert_eq!(world.connections().live, taken);
            for _ in 0..3 {
                world.wait(Duration::from_secs(80 * 60));
            }
            assert_eq!(world.connections().live, 0);
        });
}
