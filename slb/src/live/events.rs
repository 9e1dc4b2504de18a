//! Events that only counters show: floods of dropped packets, and tables or SNAT ports that are used up or nearly so. A line in the
//! log when one begins, and another one when it is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use slb_core::DropReason;
use tracing::{info, warn};

use super::status::Shared;
use crate::report::totals::Totals;

/// Interval at which counters are compared.
const INTERVAL: Duration = Duration::from_secs(1);
/// Packets a second that are dropped for one reason, from which on that is a flood.
const FLOOD: f64 = 1000.0;
/// An event is over once it has not been seen for so long.
const QUIET: Duration = Duration::from_secs(10);

/// Watches the counters in a thread of its own, for as long as the process lives.
pub(super) fn watch(shared: Arc<Shared>) {
    let thread = thread::Builder::new().name("slb events".to_owned());
    let started = thread.spawn(move || {
        let mut watch = Watch::default();
        loop {
            thread::sleep(INTERVAL);
            // Where a worker does not answer, that is an event of its own.
            if let Some(totals) = shared.totals() {
                watch
                    .note(Instant::now(), &totals)
                    .iter()
                    .for_each(Event::log);
            }
        }
    });
    if let Err(error) = started {
        warn!("floods and exhaustion are not watched: {error}");
    }
}

/// A condition that is logged when it begins and when it is over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// Packets are dropped for a reason.
    Flood(&'static str),
    /// Packets are longer than the memory for one.
    TooLong,
    /// New flows or connections find no place.
    TableFull,
    /// Half-open flows, or connections that were never answered, make room for new ones.
    Evictions,
    /// New connections of a vm, by pool and backend, find no SNAT port.
    SnatPorts(String, String),
}

/// A trouble that begins or is over.
#[derive(Clone, Debug, PartialEq)]
enum Event {
    /// The trouble begins, at this many packets or connections a second.
    Begins(Trouble, f64),
    /// The trouble is over: packets or connections in all, and the time that it lasted.
    Over(Trouble, u64, Duration),
}

impl Event {
    fn log(&self) {
        match self {
            Self::Begins(Trouble::Flood(reason), rate) => {
                warn!(
                    reason,
                    packets_per_second = rate,
                    event = "flood",
                    "packets are dropped"
                );
            }
            Self::Over(Trouble::Flood(reason), packets, lasted) => {
                let seconds = lasted.as_secs_f64();
                info!(
                    reason,
                    packets,
                    seconds,
                    event = "flood_over",
                    "few packets are dropped again"
                );
            }
            Self::Begins(Trouble::TooLong, rate) => {
                warn!(
                    packets_per_second = rate,
                    event = "packets_too_long",
                    "packets are lost that are longer than AF_XDP's memory has room for: an interface carries {} \
                     bytes at most (ip link set DEVICE mtu {0}), and whoever sends to it no more than its MTU",
                    super::device::LONGEST_PACKET
                );
            }
            Self::Over(Trouble::TooLong, packets, lasted) => {
                let seconds = lasted.as_secs_f64();
                info!(
                    packets,
                    seconds,
                    event = "packets_too_long_over",
                    "no packets are too long any more"
                );
            }
            Self::Begins(Trouble::TableFull, rate) => {
                warn!(
                    refused_per_second = rate,
                    event = "table_full",
                    "the table is full: new flows are refused"
                );
            }
            Self::Over(Trouble::TableFull, refused, lasted) => {
                let seconds = lasted.as_secs_f64();
                info!(
                    refused,
                    seconds,
                    event = "table_full_over",
                    "the table has room for new flows again"
                );
            }
            Self::Begins(Trouble::Evictions, rate) => {
                warn!(
                    evicted_per_second = rate,
                    event = "table_evicts",
                    "new flows evict other flows"
                );
            }
            Self::Over(Trouble::Evictions, evicted, lasted) => {
                let seconds = lasted.as_secs_f64();
                info!(
                    evicted,
                    seconds,
                    event = "table_evicts_over",
                    "new flows no longer evict other flows"
                );
            }
            Self::Begins(Trouble::SnatPorts(pool, backend), rate) => {
                warn!(
                    pool,
                    backend,
                    refused_per_second = rate,
                    event = "snat_ports_used_up",
                    "outbound connections find no SNAT port"
                );
            }
            Self::Over(Trouble::SnatPorts(pool, backend), refused, lasted) => {
                info!(
                    pool,
                    backend,
                    refused,
                    seconds = lasted.as_secs_f64(),
                    event = "snat_ports_used_up_over",
                    "outbound connections find SNAT ports again"
                );
            }
        }
    }
}

#[derive(Debug)]
struct Episode {
    since: Instant,
    seen: Instant,
    count: u64,
}

/// The troubles of now.
#[derive(Debug, Default)]
struct Watch {
    before: Option<(Instant, Totals)>,
    present: BTreeMap<Trouble, Episode>,
}

impl Watch {
    /// Compares counters with those before.
    fn note(&mut self, now: Instant, totals: &Totals) -> Vec<Event> {
        let Some((then, before)) = self.before.replace((now, totals.clone())) else {
            return Vec::new();
        };
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        let mut grown = Vec::new();
        for (&reason, &count) in &totals.dropped {
            let more = count.saturating_sub(before.dropped.get(reason).copied().unwrap_or(0));
            if reason == DropReason::TooLong.name() {
                // Each of them is a fault of somebody's settings.
                grown.push((Trouble::TooLong, more));
            } else if more as f64 >= FLOOD * seconds.max(f64::EPSILON) {
                grown.push((Trouble::Flood(reason), more));
            }
        }
        grown.push((
            Trouble::TableFull,
            totals.refused.saturating_sub(before.refused),
        ));
        grown.push((
            Trouble::Evictions,
            totals.evicted.saturating_sub(before.evicted),
        ));
        for (name, &count) in &totals.exhausted {
            // Counters of a backend that is new begin at zero.
            let more = count.saturating_sub(before.exhausted.get(name).copied().unwrap_or(0));
            grown.push((Trouble::SnatPorts(name.0.clone(), name.1.clone()), more));
        }
        let mut events = Vec::new();
        for (trouble, more) in grown.into_iter().filter(|(_, more)| *more > 0) {
            let rate = more as f64 / seconds.max(f64::EPSILON);
            let episode = self.present.entry(trouble.clone()).or_insert_with(|| {
                events.push(Event::Begins(trouble, rate.round()));
                Episode {
                    since: then,
                    seen: now,
                    count: 0,
                }
            });
            (episode.seen, episode.count) = (now, episode.count + more);
        }
        self.present.retain(|trouble, episode| {
            let is_over = now.saturating_duration_since(episode.seen) >= QUIET;
            if is_over {
                let lasted = episode.seen.saturating_duration_since(episode.since);
                events.push(Event::Over(trouble.clone(), episode.count, lasted));
            }
            !is_over
        });
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_has_two_events_however_long_it_lasts() {
        let begin = Instant::now();
        let at = |second: u64| begin + Duration::from_secs(second);
        let vm = || ("webs".to_owned(), "vm1".to_owned());
        let mut totals = Totals::default();
        totals.dropped.insert("no_rule", 0);
        totals.dropped.insert("too_long", 0);
        totals.exhausted.insert(vm(), 0);
        let mut watch = Watch::default();
        assert_eq!(watch.note(at(0), &totals), []);
        // A few drops are none.
        totals.dropped.insert("no_rule", 999);
        assert_eq!(watch.note(at(1), &totals), []);
        // Each begins once.
        totals.dropped.insert("no_rule", 3000);
        totals.dropped.insert("too_long", 3);
        totals.refused = 7;
        totals.evicted = 40;
        totals.exhausted.insert(vm(), 1);
        let snat = Trouble::SnatPorts("webs".to_owned(), "vm1".to_owned());
        let begins = [
            Event::Begins(Trouble::Flood("no_rule"), 2001.0),
            Event::Begins(Trouble::TooLong, 3.0),
            Event::Begins(Trouble::TableFull, 7.0),
            Event::Begins(Trouble::Evictions, 40.0),
            Event::Begins(snat.clone(), 1.0),
        ];
        assert_eq!(watch.note(at(2), &totals), begins);
        totals.dropped.insert("no_rule", 5000);
        totals.refused = 9;
        assert_eq!(watch.note(at(3), &totals), []);
        // And is over once.
        let mut over = Vec::new();
        for second in 4..40 {
            over.extend(
                watch
                    .note(at(second), &totals)
                    .into_iter()
                    .map(|event| (second, event)),
            );
        }
        let seconds = Duration::from_secs;
        assert_eq!(
            over,
            [
                (12, Event::Over(Trouble::TooLong, 3, seconds(1))),
                (12, Event::Over(Trouble::Evictions, 40, seconds(1))),
                (12, Event::Over(snat, 1, seconds(1))),
                (13, Event::Over(Trouble::Flood("no_rule"), 4001, seconds(2))),
                (13, Event::Over(Trouble::TableFull, 9, seconds(2))),
            ]
        );
    }
}
