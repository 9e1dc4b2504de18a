//! Maglev tables: the time to build one, and the disruption when a backend is removed, compared
//! with two methods without a table.

use std::hint::black_box;

use serde_json::json;
use slb_core::hash::{TupleHasher, Xxh3};
use slb_core::maglev::{self, Member, Turn};

use crate::Options;
use crate::error::Failure;
use crate::report::{Report, Sample};

const SIZE: u32 = maglev::DEFAULT_SIZE;

fn members(names: &[String], varied: bool) -> Vec<Member<'_>> {
    let weight = |i: usize| if varied { 1 + (i % 10) as u32 } else { 1 };
    let all = names.iter().enumerate();
    all.map(|(i, name)| Member {
        name,
        weight: weight(i),
    })
    .collect()
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<(), Failure> {
    report.group("Maglev, 65 537 slots, for each table built from nothing");
    for count in [10, 100, 1000, 10_000] {
        let names: Vec<String> = (0..count).map(|i| format!("backend-{i}")).collect();
        for (weights, varied) in [("equal weights", false), ("weights 1 to 10", true)] {
            let name = format!("maglev, {count} backends, {weights}");
            if !report.wants(&name) {
                continue;
            }
            let members = members(&names, varied);
            let mut table = vec![0; SIZE as usize];
            let mut turns = vec![Turn::default(); count];
            let mut result = Ok(());
            let sample = Sample::measure(options.time(), 1, || {
                result = maglev::build(&members, 1, &mut table, &mut turns);
                black_box(&mut table);
            });
            result.map_err(Failure::failed)?;
            report.show(&name, sample, None);
        }
    }
    disruption(options, report)
}

/// Measures the share of other backends' flows that move when one of many backends is removed,
/// among 100 000 flows, and the time of each choice.
fn disruption(options: &Options, report: &mut Report) -> Result<(), Failure> {
    const FLOWS: u64 = 100_000;
    report.group("who serves a flow, for each choice, and what moves when one goes");
    let hasher = Xxh3::new(1);
    let hash = |flow: u64| hasher.ipv4(&[flow, 6 << 32]);
    for count in [10usize, 100, 1000, 10_000] {
        let names: Vec<String> = (0..count).map(|i| format!("backend-{i}")).collect();
        let gone = count / 2;
        let build = |without: Option<usize>| {
            let mut members = members(&names, false);
            if let Some(member) = without.and_then(|gone| members.get_mut(gone)) {
                member.weight = 0;
            }
            let mut table = vec![0; SIZE as usize];
            let mut turns = vec![Turn::default(); count];
            maglev::build(&members, 1, &mut table, &mut turns).map(|()| table)
        };
        let before = build(None).map_err(Failure::failed)?;
        let after = build(Some(gone)).map_err(Failure::failed)?;
        let seeds: Vec<u64> = (0..count as u64).map(|i| hasher.ipv4(&[i, 7])).collect();
        let maglev = |table: &[u16], hash| usize::from(table[maglev::slot(hash, SIZE)]);
        // The backend with the highest score for the flow.
        let rendezvous = |hash: u64, without: usize| {
            let score = |i: &usize| hasher.ipv4(&[hash, seeds[*i]]);
            let all = (0..count).filter(|&i| i != without);
            all.max_by_key(score).unwrap_or(0)
        };
        let modulo = |hash: u64, count: usize| (hash % count as u64) as usize;
        let moved = |choose: &dyn Fn(u64) -> (usize, usize), flows: u64| {
            let choices = (0..flows).map(|flow| choose(hash(flow)));
            let stay = choices.filter(|(before, _)| *before != gone);
            let (mut all, mut moved) = (0, 0);
            for (before, after) in stay {
                all += 1;
                moved += u64::from(before != after);
            }
            format!("{:.2} %", 100.0 * moved as f64 / all as f64)
        };
        let mut show = |name: &str,
                        choose: &dyn Fn(u64) -> (usize, usize),
                        one: &dyn Fn(u64) -> usize,
                        flows: u64| {
            let name = format!("{name}, {count} backends");
            if report.wants(&name) {
                let times = (flows / 16).max(16);
                let sample = Sample::measure(options.time() / 2, times as usize, || {
                    black_box((0..times).map(|flow| one(hash(flow))).sum::<usize>());
                });
                let more = json!({ "moved": moved(choose, flows) });
                report.show_with(&name, sample, None, &more);
            }
        };
        show(
            "maglev",
            &|hash| (maglev(&before, hash), maglev(&after, hash)),
            &|hash| maglev(&before, hash),
            FLOWS,
        );
        // Fewer flows if each has to check all backends.
        let flows = (10_000_000 / count as u64).min(FLOWS);
        show(
            "rendezvous",
            &|hash| (rendezvous(hash, count), rendezvous(hash, gone)),
            &|hash| rendezvous(hash, count),
            flows,
        );
        show(
            "modulo",
            &|hash| {
                // The backends after the removed one move up.
                let after = modulo(hash, count - 1);
                (modulo(hash, count), after + usize::from(after >= gone))
            },
            &|hash| modulo(hash, count),
            FLOWS,
        );
    }
    Ok(())
}
