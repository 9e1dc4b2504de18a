//! The turns that members take in filling a table: how many each has, and in which order.

use super::filling::Filling;

/// Working memory of a build; one element for each member.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// The position of the next slot to try; if `is_late`, the slot that the member got last.
    pub(super) next: u64,
    /// The position of the slot `skip`; if `is_late`, that of the skip's inverse.
    pub(super) skip: u64,
    /// The number of slots that the member gets.
    pub(super) quota: u32,
    /// The number of turns that the member has had, or the rest of a round's credit.
    pub(super) credit: u32,
    /// Index of the member.
    pub(super) member: u16,
    /// Rank of the member in the order of names.
    pub(super) order: u16,
    /// True if the member has compared the last free slots.
    pub(super) is_late: bool,
}

/// Sets the quota of each turn by the largest remainder; returns the turns with a quota, by name.
pub(super) fn share_out(
    weight: impl Fn(&Turn) -> u32,
    size: u32,
    turns: &mut [Turn],
) -> &mut [Turn] {
    let weight = |turn: &Turn| u64::from(weight(turn));
    let total: u64 = turns.iter().map(weight).sum();
    if total == 0 {
        return &mut [];
    }
    // share = size * weight / total = quota + remainder / total
    let remainder = |turn: &Turn| u64::from(size) * weight(turn) % total;
    let mut left = size;
    for (order, turn) in turns.iter_mut().enumerate() {
        turn.quota = (u64::from(size) * weight(turn) / total) as u32;
        turn.order = order as u16;
        left -= turn.quota;
    }
    let alike = turns
        .windows(2)
        .all(|pair| remainder(&pair[0]) == remainder(&pair[1]));
    if !alike {
        turns.sort_unstable_by_key(|turn| (core::cmp::Reverse(remainder(turn)), turn.order));
    }
    for turn in turns.iter_mut().take(left as usize) {
        turn.quota += 1;
    }
    // Sort by name again; members without a slot come last.
    turns.sort_unstable_by_key(|turn| (turn.quota == 0, turn.order));
    let with_slots = turns.iter().take_while(|turn| turn.quota != 0).count();
    &mut turns[..with_slots]
}

/// Lets the turns take all slots of the empty `table`. Their quotas add up to its length.
pub(super) fn populate(turns: &mut [Turn], table: &mut [u16]) {
    let rounds = turns.iter().map(|turn| turn.quota).max().unwrap_or(0);
    let visits = rounds as usize * turns.len();
    let mut filling = Filling::new(table);
    // Iterating over all turns is fast unless most of them skip most rounds.
    if visits <= 8 * filling.free {
        populate_by_rounds(turns, rounds, &mut filling);
    } else {
        populate_by_heap(turns, rounds, &mut filling);
    }
}

fn populate_by_rounds(turns: &mut [Turn], rounds: u32, filling: &mut Filling<'_>) {
    for turn in turns.iter_mut() {
        turn.credit = rounds - 1; // so that all members take part in the first round
    }
    for _ in 0..rounds {
        for turn in turns.iter_mut() {
            turn.credit += turn.quota;
            if turn.credit >= rounds {
                turn.credit -= rounds;
                filling.take(turn);
            }
        }
    }
}

/// Fills the table like [`populate_by_rounds`], for widely differing weights: the next turn is the
/// smallest in a binary heap over (round, order).
fn populate_by_heap(turns: &mut [Turn], rounds: u32, filling: &mut Filling<'_>) {
    // After `credit` turns, the next turn is in the first round r with r*quota > credit*rounds.
    let key = |turn: &Turn| {
        let round = u64::from(turn.credit) * u64::from(rounds) / u64::from(turn.quota);
        (round, turn.order)
    };
    let sift_down = |heap: &mut [Turn], mut parent: usize| {
        loop {
            let mut child = 2 * parent + 1;
            if child + 1 < heap.len() && key(&heap[child + 1]) < key(&heap[child]) {
                child += 1;
            }
            if child >= heap.len() || key(&heap[parent]) <= key(&heap[child]) {
                return;
            }
            heap.swap(parent, child);
            parent = child;
        }
    };
    for turn in turns.iter_mut() {
        turn.credit = 0;
    }
    let mut live = turns.len();
    for parent in (0..live / 2).rev() {
        sift_down(turns, parent);
    }
    while live > 0 {
        filling.take(&mut turns[0]);
        turns[0].credit += 1;
        if turns[0].credit == turns[0].quota {
            live -= 1;
            turns.swap(0, live);
        }
        sift_down(&mut turns[..live], 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maglev::EMPTY;
    use crate::maglev::filling::Circle;
    use alloc::vec;
    use alloc::vec::Vec;
    use serde_json::Value;

    fn number(value: &Value) -> u32 {
        u32::try_from(value.as_u64().unwrap()).unwrap()
    }

    fn populated(permutations: &[(u16, u32, u32)], size: u32) -> Vec<u16> {
        let circle = Circle::new(size);
        let mut turns: Vec<Turn> = permutations
            .iter()
            .map(|&(member, next, skip)| Turn {
                next: circle.position(next.into()),
                skip: circle.position(skip.into()),
                member,
                ..Turn::default()
            })
            .collect();
        let mut table = vec![EMPTY; size as usize];
        let turns = share_out(|_| 1, size, &mut turns);
        populate(turns, &mut table);
        table
    }

    /// NSDI'16 table 1, and every other subset of its three backends.
    #[test]
    fn the_published_population() {
        let vectors = include_str!("../../tests/vectors/maglev-population.json");
        let vectors: Value = serde_json::from_str(vectors).unwrap();
        let size = number(&vectors["table_size"]);
        let tables = vectors["tables"].as_array().unwrap();
        for case in tables {
            let alive: Vec<_> = case["alive"]
                .as_array()
                .unwrap()
                .iter()
                .map(number)
                .collect();
            let permutations: Vec<_> = alive
                .iter()
                .map(|&i| {
                    let backend = &vectors["backends"][i as usize];
                    (
                        i as u16,
                        number(&backend["offset"]),
                        number(&backend["skip"]),
                    )
                })
                .collect();
            let expected: Vec<_> = case["lookup"]
                .as_array()
                .unwrap()
                .iter()
                .map(number)
                .collect();
            let table: Vec<_> = populated(&permutations, size)
                .into_iter()
                .map(u32::from)
                .collect();
            assert_eq!(table, expected, "alive: {alive:?}");
        }
        assert_eq!(tables.len(), 7);
    }

    /// The listing, step by step, without quotas or shortcuts.
    fn by_the_listing(permutations: &[(u16, u32, u32)], size: u32) -> Vec<u16> {
        let mut next: Vec<u32> = vec![0; permutations.len()];
        let mut table = vec![EMPTY; size as usize];
        let mut filled = 0;
        loop {
            for (i, &(member, offset, skip)) in permutations.iter().enumerate() {
                let slot = |j: u32| {
                    ((u64::from(offset) + u64::from(j) * u64::from(skip)) % u64::from(size))
                        as usize
                };
                while table[slot(next[i])] != EMPTY {
                    next[i] += 1;
                }
                table[slot(next[i])] = member;
                next[i] += 1;
                filled += 1;
                if filled == size {
                    return table;
                }
            }
        }
    }

    #[test]
    fn equal_weights_are_the_listing() {
        bolero::check!()
            .with_type::<(Vec<(u32, u32)>, u8)>()
            .for_each(|(seeds, choice)| {
                let sizes = [3, 7, 131, 251, 1009];
                let size = sizes[usize::from(*choice) % sizes.len()];
                let permutations: Vec<_> = seeds
                    .iter()
                    .take(size as usize)
                    .enumerate()
                    .map(|(i, &(a, b))| (i as u16, a % size, b % (size - 1) + 1))
                    .collect();
                if !permutations.is_empty() {
                    let expected = by_the_listing(&permutations, size);
                    assert_eq!(populated(&permutations, size), expected);
                }
            });
    }

    #[test]
    fn both_ways_of_taking_turns_agree() {
        bolero::check!()
            .with_type::<Vec<(u32, u32, u8)>>()
            .for_each(|seeds| {
                let size = 251;
                let circle = Circle::new(size);
                let members: Vec<_> = seeds.iter().take(60).enumerate().collect();
                let turns = || {
                    members.iter().map(|&(i, &(a, b, _))| Turn {
                        next: circle.position((a % size).into()),
                        skip: circle.position((b % (size - 1) + 1).into()),
                        member: i as u16,
                        ..Turn::default()
                    })
                };
                let weight = |turn: &Turn| u32::from(seeds[usize::from(turn.member)].2);
                let mut tables = [vec![EMPTY; size as usize], vec![EMPTY; size as usize]];
                let [a, b] = &mut tables;
                for (way, table) in [
                    (populate_by_rounds as fn(&mut [_], _, &mut Filling<'_>), a),
                    (populate_by_heap, b),
                ] {
                    let mut turns: Vec<_> = turns().collect();
                    let turns = share_out(weight, size, &mut turns);
                    for (order, turn) in turns.iter_mut().enumerate() {
                        turn.order = order as u16;
                    }
                    let rounds = turns.iter().map(|turn| turn.quota).max().unwrap_or(0);
                    way(turns, rounds, &mut Filling::new(table));
                }
                assert_eq!(tables[0], tables[1]);
            });
    }

    /// Tables that are large enough for every way of finding a free slot.
    #[test]
    fn large_tables_are_the_listing() {
        let mut random = 1u64;
        let mut random = |below: u32| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (random >> 33) as u32 % below
        };
        for (size, count) in [(65_537, 1000), (65_537, 3), (4093, 700), (4093, 4093)] {
            let size = if cfg!(miri) { 1009 } else { size };
            let count = count.min(size) as u16;
            let permutations: Vec<_> = (0..count)
                .map(|i| (i, random(size), random(size - 1) + 1))
                .collect();
            let expected = by_the_listing(&permutations, size);
            assert_eq!(
                populated(&permutations, size),
                expected,
                "{count} in {size}"
            );
        }
    }
}
