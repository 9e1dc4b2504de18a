//! The flow table against a plain map, full, hostile, and over time.

use std::collections::HashMap;
use std::time::Duration;

use bolero::TypeGenerator;
use slb_core::flow::table::{Inserted, SLOTS, Table};
use slb_core::flow::{Bucket, FlowKey, FlowProtocol, FlowState, FlowTable, Ticks};
use slb_core::mem::Mem;
use slb_core::{Instant, Key};

const TICK: u64 = 1 << 30;

fn table(buckets: usize) -> Table<'static, u64> {
    let mut table = Table::new(
        Mem::from(vec![Bucket::EMPTY; buckets]),
        Key::new([0x1234_5678_9abc, 42]),
    );
    table.advance(at(1));
    table
}

fn at(tick: u64) -> Instant {
    Instant::from_nanos(tick * TICK)
}

fn key(flow: u32) -> FlowKey<u64> {
    let addresses = u64::from(flow) << 32 | 0x0a00_0001;
    FlowKey {
        addresses,
        ports: flow.rotate_left(7),
        protocol: FlowProtocol::Tcp,
    }
}

fn ticks(seconds: u64) -> Ticks {
    Ticks::from_duration(Duration::from_secs(seconds))
}

fn pin(table: &mut Table<'_, u64>, flow: u32, state: FlowState, timeout: Ticks) -> Inserted {
    let key = key(flow);
    assert_eq!(table.find(&key), None);
    table.insert(table.hash(&key), &key, flow, state, timeout)
}

#[derive(Clone, Copy, Debug, TypeGenerator)]
enum Operation {
    Pin {
        flow: u8,
        value: u32,
        half_open: bool,
        seconds: u16,
    },
    Touch {
        flow: u8,
        closing: bool,
        seconds: u16,
    },
    SetValue {
        flow: u8,
        value: u32,
    },
    Remove {
        flow: u8,
    },
    Wait {
        ticks: u8,
    },
    Leap {
        ticks: u16,
    },
}

/// Lookups find only flows that were put there and are not past their deadlines, and all that have
/// to be found. Only half-open and closing flows may be missing before their time, and only by
/// eviction.
#[test]
fn agrees_with_a_map() {
    bolero::check!()
        .with_type::<(u8, Vec<Operation>)>()
        .for_each(|(buckets, operations)| {
            let mut table = table(1 + usize::from(*buckets) % 40);
            // Value, deadline, and whether it may be evicted.
            let mut model: HashMap<u8, (u32, u64, bool)> = HashMap::new();
            let mut now = 1;
            for &operation in operations {
                match operation {
                    Operation::Pin {
                        flow,
                        value,
                        half_open,
                        seconds,
                    } => {
                        let key = key(flow.into());
                        if table.find(&key).is_none() {
                            let timeout = ticks(u64::from(seconds % 1800));
                            let state = if half_open {
                                FlowState::HalfOpen
                            } else {
                                FlowState::Established
                            };
                            let inserted =
                                table.insert(table.hash(&key), &key, value, state, timeout);
                            if inserted != Inserted::Refused {
                                let deadline =
                                    now + u64::from(seconds % 1800 != 0) * deadline(timeout);
                                model.insert(flow, (value, deadline, half_open));
                            }
                            if inserted == Inserted::Evicted {
                                model.retain(|&flow, &mut (_, _, may_go)| {
                                    !may_go || table.find(&key_of(flow)).is_some()
                                });
                            }
                        }
                    }
                    Operation::Touch {
                        flow,
                        closing,
                        seconds,
                    } => {
                        if let Some(found) = table.find(&key_of(flow)) {
                            let timeout = ticks(u64::from(seconds % 1800));
                            let state = if closing {
                                FlowState::Closing
                            } else {
                                FlowState::Established
                            };
                            table.update(found, timeout, |_| state);
                            let entry = model.get_mut(&flow).unwrap();
                            entry.1 = now + u64::from(seconds % 1800 != 0) * deadline(timeout);
                            entry.2 = closing;
                        }
                    }
                    Operation::SetValue { flow, value } => {
                        if let Some(found) = table.find(&key_of(flow)) {
                            table.set_value(found, value);
                            model.get_mut(&flow).unwrap().0 = value;
                        }
                    }
                    Operation::Remove { flow } => {
                        if let Some(found) = table.find(&key_of(flow)) {
                            table.remove(found);
                            model.remove(&flow);
                        }
                    }
                    Operation::Wait { ticks } => now += u64::from(ticks),
                    Operation::Leap { ticks } => now += u64::from(ticks),
                }
                table.advance(at(now));
                model.retain(|_, &mut (_, deadline, _)| deadline >= now);
                for flow in 0..=255 {
                    let found = table.find(&key_of(flow)).map(|found| table.value(found));
                    assert_eq!(found, model.get(&flow).map(|entry| entry.0), "flow {flow}");
                }
                let stats = table.stats();
                assert!(stats.live >= model.len() as u64);
                assert!(stats.half_open <= stats.places.div_ceil(2));
                let gone = stats.expired + stats.evicted + stats.removed;
                assert_eq!(stats.made, stats.live + gone);
                assert_eq!(table.iter().count(), model.len());
            }
        });
}

fn key_of(flow: u8) -> FlowKey<u64> {
    key(flow.into())
}

fn deadline(timeout: Ticks) -> u64 {
    // The table's own unit is not public: it is found by asking when a flow ends.
    let mut table = table(1);
    pin(&mut table, 0, FlowState::Established, timeout);
    (0..2000)
        .find(|&t| {
            table.advance(at(2 + t));
            table.find(&key(0)).is_none()
        })
        .unwrap()
}

#[test]
fn fills_to_85_percent_without_a_refusal() {
    let flows = 100_000usize;
    let mut table = table((flows * 100).div_ceil(85 * SLOTS));
    for flow in 0..flows as u32 {
        assert_eq!(
            pin(&mut table, flow, FlowState::Established, ticks(240)),
            Inserted::Pinned
        );
    }
    for flow in 0..flows as u32 {
        assert_eq!(
            table
                .find(&key(flow))
                .map(|found| table.value(found))
                .unwrap(),
            flow
        );
    }
    let bytes = FlowTable::buckets_for(flows) * 64;
    assert!(
        bytes <= flows * 32,
        "{} bytes a flow",
        bytes as f64 / flows as f64
    );
}

#[test]
fn beyond_that_it_refuses_and_forgets_nobody() {
    let mut table = table(1000);
    let pinned: Vec<u32> = (0..6000)
        .filter(|&flow| {
            pin(&mut table, flow, FlowState::Established, ticks(240)) == Inserted::Pinned
        })
        .collect();
    let stats = table.stats();
    assert!(pinned.len() > 2900, "{} of 3000 places used", pinned.len());
    assert_eq!(stats.refused, 6000 - pinned.len() as u64);
    for flow in pinned {
        assert_eq!(
            table
                .find(&key(flow))
                .map(|found| table.value(found))
                .unwrap(),
            flow
        );
    }
}

#[test]
fn a_syn_flood_evicts_no_established_flow() {
    let mut table = table(1000);
    let established = 1200;
    for flow in 0..established {
        pin(&mut table, flow, FlowState::Established, ticks(1800));
    }
    for flow in established..1_000_000 {
        pin(&mut table, flow, FlowState::HalfOpen, ticks(30));
        let stats = table.stats();
        assert!(stats.half_open <= stats.places / 2);
    }
    for flow in 0..established {
        assert_eq!(
            table
                .find(&key(flow))
                .map(|found| table.value(found))
                .unwrap(),
            flow
        );
    }
    // And the flood leaves room for those who are meant.
    let pinned = (2_000_000..2_001_000)
        .filter(|&flow| {
            pin(&mut table, flow, FlowState::Established, ticks(240)) != Inserted::Refused
        })
        .count();
    assert_eq!(pinned, 1000);
}

#[test]
fn closing_flows_make_room_after_half_open_ones_and_established_ones_never() {
    let mut table = table(1);
    let states = |table: &Table<'_, u64>| -> Vec<(u32, FlowState)> {
        let mut all: Vec<_> = table.iter().map(|flow| (flow.value, flow.state)).collect();
        all.sort_by_key(|&(flow, _)| flow);
        all
    };
    let (open, over) = (FlowState::Established, FlowState::Closing);
    pin(&mut table, 0, open, ticks(240));
    pin(&mut table, 1, over, ticks(240));
    pin(&mut table, 2, FlowState::HalfOpen, ticks(300));
    for (flow, state, inserted) in [
        (3, over, Inserted::Evicted),                // the half-open one's place
        (4, FlowState::HalfOpen, Inserted::Evicted), // the older closing one's
        (5, open, Inserted::Evicted),                // the half-open one's
        (6, open, Inserted::Evicted),                // the last closing one's
        (7, open, Inserted::Refused),
        (8, over, Inserted::Refused),
        (9, FlowState::HalfOpen, Inserted::Refused),
    ] {
        table.advance(at(u64::from(flow)));
        assert_eq!(pin(&mut table, flow, state, ticks(240)), inserted, "{flow}");
        if flow == 4 {
            let half_open = FlowState::HalfOpen;
            assert_eq!(states(&table), [(0, open), (3, over), (4, half_open)]);
        }
    }
    assert_eq!(states(&table), [(0, open), (5, open), (6, open)]);
    assert_eq!(table.stats().evicted, 4);
}

#[test]
fn flows_that_are_over_leave_their_places_to_new_ones() {
    let mut table = table(1000);
    for flow in 0..10_000 {
        assert_ne!(
            pin(&mut table, flow, FlowState::Closing, ticks(240)),
            Inserted::Refused
        );
    }
    for flow in 10_000..11_000 {
        pin(&mut table, flow, FlowState::Established, ticks(240));
    }
    for flow in 10_000..11_000 {
        assert!(table.find(&key(flow)).is_some(), "flow {flow}");
    }
}

#[test]
fn churn_leaves_no_traces() {
    let mut table = table(300);
    let mut now = 1;
    for round in 0..2000u32 {
        for flow in 0..700 {
            pin(
                &mut table,
                round * 700 + flow,
                FlowState::Established,
                ticks(8),
            );
        }
        now += 20;
        table.advance(at(now));
    }
    assert_eq!(table.stats().refused, 0);
    table.advance(at(now + 5000));
    let stats = table.stats();
    assert_eq!((stats.live, stats.half_open, stats.made), (0, 0, 1_400_000));
    // As good as new: no bucket believes that a flow of its own lives elsewhere.
    for flow in 0..1000 {
        let key = key(flow);
        let probe = table.probe(table.hash(&key), &key);
        assert_eq!(probe, slb_core::flow::table::Probe::Absent);
    }
}

#[test]
fn a_flow_ends_at_its_time_whether_or_not_anybody_swept() {
    let mut table = table(100_000);
    pin(&mut table, 1, FlowState::Established, ticks(60));
    pin(&mut table, 2, FlowState::Established, ticks(1800));
    table.advance(at(56));
    assert!(table.find(&key(1)).is_some());
    table.advance(at(58));
    assert!(table.find(&key(1)).is_none());
    // A clock that leaps: further than a deadline can tell past from future.
    table.advance(at(58 + 4096));
    assert!(table.find(&key(2)).is_none());
    assert_eq!(table.stats().live, 0);
}

#[test]
fn a_clock_that_runs_backwards_stands_still() {
    let mut table = table(100);
    table.advance(at(1000));
    pin(&mut table, 1, FlowState::Established, ticks(60));
    table.advance(at(1));
    assert!(table.find(&key(1)).is_some());
    table.advance(at(1100));
    assert!(table.find(&key(1)).is_none());
}

#[test]
fn no_memory_means_no_flows() {
    let mut table: Table<'_, u64> = Table::new(Mem::empty(), Key::new([1, 2]));
    table.advance(at(5));
    assert_eq!(
        pin(&mut table, 1, FlowState::HalfOpen, ticks(60)),
        Inserted::Refused
    );
    assert_eq!(table.stats().refused, 1);
    assert_eq!(table.iter().count(), 0);
}

/// Everything in one bucket: what an attacker who knew the key could do.
#[test]
fn colliding_flows_cost_each_other_only() {
    let mut table = table(1000);
    for flow in 0..1000 {
        pin(&mut table, flow, FlowState::Established, ticks(240));
    }
    let target = table.hash(&key(0)) >> 40;
    let colliding: Vec<u32> = (1000..40_000_000)
        .filter(|&flow| table.hash(&key(flow)) >> 40 == target)
        .take(50)
        .collect();
    assert!(!colliding.is_empty());
    for &flow in &colliding {
        pin(&mut table, flow, FlowState::HalfOpen, ticks(30));
    }
    for flow in 0..1000 {
        assert!(table.find(&key(flow)).is_some(), "flow {flow}");
    }
}
