//! Promises of a Maglev table: exact shares, independence of the order, little disruption.

use slb_core::maglev::{self, EMPTY, MaglevError, Member, Turn};

const SIZE: usize = 65_537;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("backend-{i}")).collect()
}

fn build(members: &[Member<'_>], seed: u64, size: usize) -> Vec<u16> {
    let mut table = vec![0; size];
    let mut turns = vec![Turn::default(); members.len()];
    maglev::build(members, seed, &mut table, &mut turns).unwrap();
    table
}

fn equal(names: &[String]) -> Vec<Member<'_>> {
    names
        .iter()
        .map(|name| Member { name, weight: 1 })
        .collect()
}

/// The owners of all slots by name, so that tables of different sets can be compared.
fn owners<'a>(members: &[Member<'a>], table: &[u16]) -> Vec<&'a str> {
    table
        .iter()
        .map(|&place| members[usize::from(place)].name)
        .collect()
}

#[test]
fn every_share_is_exact_to_one_slot() {
    bolero::check!()
        .with_type::<(Vec<u32>, u64)>()
        .for_each(|(weights, seed)| {
            let names = names(weights.len());
            let members: Vec<_> = names
                .iter()
                .zip(weights)
                .map(|(name, &weight)| Member { name, weight })
                .collect();
            let size = 1009;
            let table = build(&members, *seed, size);
            let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            for (place, member) in members.iter().enumerate() {
                let slots = table
                    .iter()
                    .filter(|&&owner| usize::from(owner) == place)
                    .count() as u64;
                if total == 0 {
                    assert!(table.iter().all(|&owner| owner == EMPTY));
                    continue;
                }
                let floor = size as u64 * u64::from(member.weight) / total;
                assert!(
                    slots == floor || slots == floor + 1,
                    "{slots} slots, share {floor}"
                );
                assert!(member.weight != 0 || slots == 0);
            }
        });
}

#[test]
fn order_does_not_matter() {
    // Envoy's issue 20703: its table depended on the order of the hosts.
    bolero::check!()
        .with_type::<(Vec<u8>, u64, Vec<u8>)>()
        .for_each(|(weights, seed, swaps)| {
            let names = names(weights.len());
            let members: Vec<_> = names
                .iter()
                .zip(weights)
                .map(|(name, &weight)| Member {
                    name,
                    weight: weight.into(),
                })
                .collect();
            let mut shuffled = members.clone();
            for (i, &swap) in swaps.iter().enumerate().filter(|_| !members.is_empty()) {
                shuffled.swap(i % members.len(), usize::from(swap) % members.len());
            }
            let (one, other) = (build(&members, *seed, 251), build(&shuffled, *seed, 251));
            if weights.iter().any(|&weight| weight != 0) {
                assert_eq!(owners(&members, &one), owners(&shuffled, &other));
            }
        });
}

#[test]
fn a_removed_backend_disturbs_few_others() {
    for count in [10, 100, 1000] {
        let names = names(count);
        let members = equal(&names);
        let before = build(&members, 1, SIZE);
        let before = owners(&members, &before);
        let shares: Vec<f64> = (0..20)
            .map(|i| {
                let gone = i * count / 20;
                let mut fewer = members.clone();
                fewer.remove(gone);
                let table = build(&fewer, 1, SIZE);
                let after = owners(&fewer, &table);
                let slots = before.iter().zip(&after);
                let moved = slots.filter(|(b, a)| **b != names[gone] && b != a).count();
                moved as f64 / SIZE as f64
            })
            .collect();
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        let worst = shares.iter().fold(0.0, |a: f64, &b| a.max(b));
        println!(
            "{count} backends: {:.3} % of other slots move, {:.3} % at worst",
            100.0 * mean,
            100.0 * worst
        );
        assert!(
            mean < 0.006,
            "{count} backends: {:.3} % of other slots move",
            100.0 * mean
        );
        assert!(
            worst < 0.0075,
            "{count} backends: {:.3} % of other slots move",
            100.0 * worst
        );
        assert!(
            count != 100 || worst < 0.006,
            "one of 100: {:.3} %",
            100.0 * worst
        );
    }
}

/// A million random hashes fall on the slots as they should: chi-square at one in a million.
#[test]
fn flows_spread_within_sampling_error() {
    use slb_core::hash::{TupleHasher, Xxh3};
    let names = names(100);
    let members: Vec<_> = (1..)
        .zip(&names)
        .map(|(i, name)| Member {
            name,
            weight: 1 + i % 5,
        })
        .collect();
    let table = build(&members, 1, SIZE);
    let total: u32 = members.iter().map(|member| member.weight).sum();
    let hasher = Xxh3::new(1);
    let mut counts = [0u64; 100];
    const FLOWS: u64 = 1_000_000;
    for flow in 0..FLOWS {
        // Clients of one network and one port: as regular as tuples come.
        let source = 0x0a00_0000u32 + (flow >> 6) as u32;
        let port = 1024 + (flow & 63) as u16;
        let addresses = u64::from(source.swap_bytes()) | 0x6414_1414 << 32;
        let ports = u64::from(port.swap_bytes()) | 0x5000_0000 | 6 << 32;
        let slot = maglev::slot(hasher.ipv4(&[addresses, ports]), SIZE as u32);
        counts[usize::from(table[slot])] += 1;
    }
    let chi_square: f64 = counts
        .iter()
        .zip(&members)
        .map(|(&count, member)| {
            let expected = FLOWS as f64 * f64::from(member.weight) / f64::from(total);
            (count as f64 - expected).powi(2) / expected
        })
        .sum();
    // 99 degrees of freedom; the table's own rounding adds well under one.
    assert!(chi_square < 179.0, "chi-square {chi_square:.1}");
    assert!(
        chi_square > 45.0,
        "chi-square {chi_square:.1}: too even to be random"
    );
}

#[test]
fn weights_that_differ_widely_are_exact_too() {
    let names = names(500);
    let members: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(i, name)| Member {
            name,
            weight: if i == 7 { 100_000 } else { 1 },
        })
        .collect();
    let table = build(&members, 1, SIZE);
    let slots = table.iter().filter(|&&owner| owner == 7).count();
    let exact = SIZE as f64 * 100_000.0 / 100_499.0;
    assert!((slots as f64 - exact).abs() <= 1.0, "{slots} of {exact:.1}");
}

#[test]
fn bad_input_is_refused_by_name() {
    let names = names(4);
    let members = equal(&names);
    let mut turns = [Turn::default(); 4];
    let mut table = vec![7; 4];
    for size in [0, 1, 2, 4, 9, 65_536] {
        table.resize(size, 7);
        let error = maglev::build(&members, 1, &mut table, &mut turns);
        assert_eq!(error, Err(MaglevError::SizeNotPrime { size }));
        assert!(
            table.iter().all(|&slot| slot == 7),
            "the table is unchanged"
        );
    }
    let mut table = [7; 3];
    let error = maglev::build(&members, 1, &mut table, &mut turns);
    assert_eq!(
        error,
        Err(MaglevError::TooManyMembers {
            members: 4,
            most: 3
        })
    );
    let mut table = [7; 7];
    let error = maglev::build(&members, 1, &mut table, &mut turns[..3]);
    assert_eq!(
        error,
        Err(MaglevError::TooFewTurns {
            turns: 3,
            needed: 4
        })
    );
    let twice = [members[0], members[1], members[0]];
    let error = maglev::build(&twice, 1, &mut table, &mut turns);
    assert!(
        matches!(error, Err(MaglevError::DuplicateName { member: 0 | 2 })),
        "{error:?}"
    );
    assert_eq!(table, [7; 7]);
}

/// Frozen: a fleet is upgraded one node at a time, so a table must never change.
#[test]
fn tables_never_change() {
    let names = names(5);
    let members: Vec<_> = (1..)
        .zip(&names)
        .map(|(weight, name)| Member { name, weight })
        .collect();
    let expected: [u16; 31] = [
        1, 4, 3, 4, 4, 1, 2, 4, 3, 2, 4, 3, 2, 3, 4, 2, 4, 4, 3, 3, 3, 2, 1, 1, 0, 4, 0, 4, 4, 3, 2,
    ];
    assert_eq!(build(&members, 42, 31), expected);
}
