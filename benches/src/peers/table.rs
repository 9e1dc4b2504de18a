//! The flow table beside hashbrown, with two hashers, on the same flows.

use std::hash::BuildHasher;
use std::hint::black_box;
use std::time::Instant;

use hashbrown::HashMap;
use serde_json::json;
use slb_bench::{Failure, Limit, Limits, Options, Random, Report, Sample, short};
use slb_core::Key;
use slb_core::flow::table::{Found, Inserted, Probe, Table};
use slb_core::flow::{Bucket, FlowKey, FlowProtocol, FlowState, FlowTable, Ticks};
use slb_core::mem::{Arena, Line, Memory};

/// Flows of one round.
const COUNT: usize = 1 << 14;

fn key(flow: u32) -> FlowKey<u64> {
    let client = u64::from((0x0a00_0000 + (flow >> 4)).swap_bytes());
    FlowKey {
        addresses: client | 0x6414_1414 << 32,
        ports: flow & 15 | 0x5000_0000,
        protocol: FlowProtocol::Tcp,
    }
}

/// The operations that all tables are measured by.
trait Flows {
    /// Says how many found no place.
    fn insert(&mut self, flows: &[u32]) -> usize;
    /// Says how many were there.
    fn look_up(&self, flows: &[u32]) -> usize;
    fn remove(&mut self, flows: &[u32]);
    fn bytes(&self) -> usize;
}

struct Ours<'m>(Table<'m, u64>);

impl<'m> Ours<'m> {
    fn new(flows: usize, memory: &'m mut [Line]) -> Option<Self> {
        let buckets = Arena::new(memory).take(FlowTable::buckets_for(flows), Bucket::EMPTY)?;
        Some(Self(Table::new(buckets, Key::new([1, 2]))))
    }

    /// Looks a burst up as the mux does: asks for all first lines, then looks into them and asks
    /// for second ones, then looks into those.
    fn find(&self, burst: &[u32]) -> [(u64, Option<Found>); 64] {
        let mut found = [(0, None); 64];
        for ((hash, _), &flow) in found.iter_mut().zip(burst) {
            *hash = self.0.hash(&key(flow));
            self.0.prefetch(*hash);
        }
        let mut probes = [Probe::Absent; 64];
        for ((probe, (hash, _)), &flow) in probes.iter_mut().zip(&found).zip(burst) {
            *probe = self.0.probe(*hash, &key(flow));
            if matches!(*probe, Probe::Displaced | Probe::AbsentFull) {
                self.0.prefetch_secondary(*hash);
            }
        }
        for ((probe, (hash, found)), &flow) in probes.iter().zip(&mut found).zip(burst) {
            *found = match *probe {
                Probe::Found(found) => Some(found),
                Probe::Displaced => self.0.probe_secondary(*hash, &key(flow)),
                Probe::Absent | Probe::AbsentFull => None,
            };
        }
        found
    }
}

impl Flows for Ours<'_> {
    fn insert(&mut self, flows: &[u32]) -> usize {
        let mut refused = 0;
        for burst in flows.chunks(64) {
            // Callers insert only what they have looked for.
            for ((hash, found), &flow) in self.find(burst).iter().zip(burst) {
                assert_eq!(*found, None);
                let state = FlowState::Established;
                let inserted = self.0.insert(*hash, &key(flow), flow, state, Ticks::MAX);
                refused += usize::from(inserted == Inserted::Refused);
            }
        }
        refused
    }

    fn look_up(&self, flows: &[u32]) -> usize {
        let mut count = 0;
        for burst in flows.chunks(64) {
            for ((_, found), &flow) in self.find(burst).iter().zip(burst) {
                count += usize::from(found.is_some_and(|found| self.0.value(found) == flow));
            }
        }
        count
    }

    fn remove(&mut self, flows: &[u32]) {
        for burst in flows.chunks(64) {
            for (_, found) in self.find(burst) {
                if let Some(found) = found {
                    self.0.remove(found);
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        self.0.stats().places as usize / 3 * 64
    }
}

struct Hashbrown<S>(HashMap<(u64, u32, u8), u32, S>);

fn tuple(flow: u32) -> (u64, u32, u8) {
    let key = key(flow);
    (key.addresses, key.ports, 6)
}

impl<S: BuildHasher> Flows for Hashbrown<S> {
    fn insert(&mut self, flows: &[u32]) -> usize {
        for &flow in flows {
            self.0.insert(tuple(flow), flow);
        }
        0
    }

    fn look_up(&self, flows: &[u32]) -> usize {
        let found = |flow: &&u32| self.0.get(&tuple(**flow)) == Some(*flow);
        flows.iter().filter(found).count()
    }

    fn remove(&mut self, flows: &[u32]) {
        for &flow in flows {
            self.0.remove(&tuple(flow));
        }
    }

    fn bytes(&self) -> usize {
        self.0.allocation_size()
    }
}

pub(super) fn measure(
    options: &Options,
    report: &mut Report,
    limits: &Limits,
    memory: &mut [Line],
) -> Result<(), Failure> {
    report.group("the flow table, IPv4, for each flow");
    let counts: &[usize] = if options.quick {
        &[1_000_000]
    } else {
        &[1_000_000, 10_000_000, 40_000_000]
    };
    for &count in counts {
        let (ahash, foldhash) = (
            ahash::RandomState::with_seeds(1, 2, 3, 4),
            foldhash::fast::FixedState::with_seed(1),
        );
        let [ours, with_ahash, with_foldhash] = ["slb", "hashbrown, ahash", "hashbrown, foldhash"];
        let full = "slb, 85 % full";
        let wants = |report: &Report, who: &str| {
            let names = ["insert", "hit", "miss", "delete", "churn"].map(|op| name(op, who, count));
            names.iter().any(|name| report.wants(name))
        };
        if wants(report, ours) {
            let flows = Ours::new(count, memory).ok_or_else(Failure::memory)?;
            measure_one(options, report, limits, ours, count, flows)?;
        }
        if wants(report, full) {
            let flows = Ours::new(count * 4 / 5, memory).ok_or_else(Failure::memory)?;
            measure_one(options, report, limits, full, count, flows)?;
        }
        if wants(report, with_ahash) {
            let flows = Hashbrown(HashMap::with_capacity_and_hasher(count, ahash));
            measure_one(options, report, limits, with_ahash, count, flows)?;
        }
        if wants(report, with_foldhash) {
            let flows = Hashbrown(HashMap::with_capacity_and_hasher(count, foldhash));
            measure_one(options, report, limits, with_foldhash, count, flows)?;
        }
    }
    Ok(())
}

fn name(op: &str, who: &str, count: usize) -> String {
    format!("flows, {op}, {who}, {}", short(count))
}

fn measure_one(
    options: &Options,
    report: &mut Report,
    limits: &Limits,
    who: &str,
    count: usize,
    mut flows: impl Flows,
) -> Result<(), Failure> {
    let limit: Option<Limit> = limits.touch(flows.bytes());
    let mut nanos = Vec::new();
    let mut refused = 0;
    let all: Vec<u32> = (0..count as u32).collect();
    for some in all.chunks(COUNT) {
        let start = Instant::now();
        refused += flows.insert(some);
        nanos.push(start.elapsed().as_nanos() as f64 / some.len() as f64);
    }
    drop(all);
    let bytes = flows.bytes() as f64 / count as f64;
    let more = json!({ "bytes_a_flow": (bytes * 10.0).round() / 10.0, "refused": refused });
    report.show_with(&name("insert", who, count), Sample::of(nanos), limit, &more);

    // In rounds of other flows each, which are chosen before the clock runs.
    let mut random = Random::new(3);
    for (op, first, expected) in [("hit", 0, COUNT), ("miss", count, 0)] {
        let begin = Instant::now();
        let mut nanos = Vec::new();
        while begin.elapsed() < options.time() {
            let mut some = Vec::with_capacity(COUNT);
            some.extend((0..COUNT).map(|_| (first + random.below(count)) as u32));
            let start = Instant::now();
            let found = flows.look_up(black_box(&some));
            nanos.push(start.elapsed().as_nanos() as f64 / COUNT as f64);
            if found > expected || found + refused < expected {
                return Err(Failure::failed(format!(
                    "{who}: {found} of {expected} found"
                )));
            }
        }
        report.show(&name(op, who, count), Sample::of(nanos), limit);
    }

    // The oldest go, and as many new ones come: what is there stays in one range.
    let mut oldest = 0;
    let begin = Instant::now();
    let (mut churn, mut delete) = (Vec::new(), Vec::new());
    while begin.elapsed() < options.time() {
        let old: Vec<u32> = (oldest..oldest + COUNT as u32).collect();
        let new: Vec<u32> = old.iter().map(|flow| flow + count as u32).collect();
        let start = Instant::now();
        flows.remove(black_box(&old));
        let removed = start.elapsed();
        refused += flows.insert(black_box(&new));
        churn.push(start.elapsed().as_nanos() as f64 / COUNT as f64);
        delete.push(removed.as_nanos() as f64 / COUNT as f64);
        oldest += COUNT as u32;
    }
    report.show(&name("delete", who, count), Sample::of(delete), limit);
    let more = json!({ "refused": refused });
    report.show_with(&name("churn", who, count), Sample::of(churn), limit, &more);
    Ok(())
}
