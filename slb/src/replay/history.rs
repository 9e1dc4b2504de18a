//! A replay over the capture's time: counters by interval, clients, and one packet of each kind with its path.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use slb_control::Config;
use slb_core::observe::{Step, Trail};
use slb_core::spec::Spec;
use slb_core::stats::Count;
use slb_core::time::Instant;
use slb_core::{DropReason, Frame, Stats, Verdict};

use crate::explain::comment;

/// Intervals at most: more are put together in pairs.
const MOST_INTERVALS: usize = 240;
/// The first width of an interval.
const FIRST_WIDTH: Duration = Duration::from_millis(1);
/// Clients that are told apart: of more, the first ones.
const MOST_CLIENTS: usize = 1 << 18;

/// The counters of an interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) received: Count,
    pub(super) forwarded: u64,
    pub(super) replied: u64,
    pub(super) passed: u64,
    /// Dropped packets, in the order of [`DropReason::ALL`].
    pub(super) dropped: Vec<u64>,
    /// Flows or connections that began.
    pub(super) began: u64,
    /// Flows or connections at its end.
    pub(super) live: u64,
}

impl Interval {
    /// Adds a later one.
    fn join(&mut self, later: &Self) {
        self.received.packets += later.received.packets;
        self.received.bytes += later.received.bytes;
        self.forwarded += later.forwarded;
        self.replied += later.replied;
        self.passed += later.passed;
        self.dropped.resize(DropReason::ALL.len(), 0);
        for (own, later) in self.dropped.iter_mut().zip(&later.dropped) {
            *own += later;
        }
        self.began += later.began;
        self.live = later.live;
    }

    pub(super) fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }
}

/// A packet whose path the report shows: the first one of its verdict, or one that the command line chose.
#[derive(Debug)]
pub(super) struct Example {
    verdict: Verdict,
    /// Number of the packet in the capture, from 1.
    pub(super) number: u64,
    /// Time since the first packet.
    pub(super) after: Duration,
    /// The packet's tuple, or that it is no IP packet.
    pub(super) packet: String,
    /// Path of the packet through the pipeline, in one line.
    pub(super) path: String,
}

impl Example {
    /// The verdict as the heading of the packet's path.
    pub(super) fn kind(&self) -> String {
        match self.verdict {
            Verdict::Forward(_) => "forwarded".to_owned(),
            Verdict::Flood => "forwarded to several ports".to_owned(),
            Verdict::Reply => "answered".to_owned(),
            Verdict::Pass => "passed".to_owned(),
            Verdict::Drop(reason) => format!("dropped: {reason}"),
        }
    }
}

/// Notes of a replay for the report in HTML.
#[derive(Debug)]
pub(super) struct History {
    begin: Option<Instant>,
    width: Duration,
    intervals: Vec<Interval>,
    last: Stats,
    vips: Vec<IpAddr>,
    clients: HashMap<IpAddr, Count>,
    examples: Vec<Example>,
    /// Numbers of the packets that the command line chose.
    chosen: Vec<u64>,
    /// Packets so far.
    seen: u64,
}

impl History {
    pub(super) fn new(config: &Config, chosen: &[u64]) -> Self {
        Self {
            begin: None,
            width: FIRST_WIDTH,
            intervals: Vec::new(),
            last: Stats::default(),
            vips: config.frontends.iter().map(|one| one.address).collect(),
            clients: HashMap::new(),
            examples: Vec::new(),
            chosen: chosen.to_vec(),
            seen: 0,
        }
    }

    /// Notes a burst that was processed at `now`, and the balancer's counters after it.
    pub(super) fn note(
        &mut self,
        (config, spec): (&Config, &Spec<'_>),
        now: Instant,
        frames: &[Frame<'_>],
        trails: &[Trail],
        stats: &Stats,
    ) {
        if frames.is_empty() && *stats == self.last {
            return;
        }
        let begin = *self.begin.get_or_insert(now);
        let after = now.since(begin);
        for (frame, trail) in frames.iter().zip(trails) {
            self.note_packet((config, spec), after, frame, trail);
        }
        self.note_counters(after, stats);
    }

    fn note_packet(
        &mut self,
        (config, spec): (&Config, &Spec<'_>),
        after: Duration,
        frame: &Frame<'_>,
        trail: &Trail,
    ) {
        let parsed = trail.steps().find_map(|step| match step {
            Step::Parsed(packet) => Some(packet),
            _ => None,
        });
        if let Some(packet) = parsed {
            let tuple = packet.tuple();
            if self.vips.contains(&tuple.destination)
                && (self.clients.len() < MOST_CLIENTS || self.clients.contains_key(&tuple.source))
            {
                let count = self.clients.entry(tuple.source).or_default();
                count.packets += 1;
                count.bytes += packet.ip_len() as u64;
            }
        }
        self.seen += 1;
        let verdict = frame.verdict();
        let kind = |verdict| match verdict {
            // Ports are of no interest here.
            Verdict::Forward(_) => None,
            other => Some(other),
        };
        let mut examples = self.examples.iter();
        let is_known = examples.any(|one| kind(one.verdict) == kind(verdict));
        if is_known && !self.chosen.contains(&self.seen) {
            return;
        }
        self.examples.push(Example {
            verdict,
            number: self.seen,
            after,
            packet: parsed.map_or_else(|| "no IP packet".to_owned(), |one| one.tuple().to_string()),
            path: comment(config, spec, trail),
        });
    }

    fn note_counters(&mut self, after: Duration, stats: &Stats) {
        let mut place = place(after, self.width);
        while place >= MOST_INTERVALS {
            self.width *= 2;
            let pairs = self.intervals.chunks(2);
            self.intervals = pairs
                .map(|pair| {
                    let mut joined = Interval::default();
                    pair.iter().for_each(|one| joined.join(one));
                    joined
                })
                .collect();
            place = self::place(after, self.width);
        }
        // Intervals without a packet: flows live on.
        let live = self.intervals.last().map_or(0, |last| last.live);
        while self.intervals.len() <= place {
            self.intervals.push(Interval {
                live,
                dropped: vec![0; DropReason::ALL.len()],
                ..Interval::default()
            });
        }
        let last = &self.last;
        let since = |now: Count, last: Count| now.packets.saturating_sub(last.packets);
        let begun = |stats: &Stats| stats.flows.made + stats.connections.made;
        let new = Interval {
            received: Count {
                packets: since(stats.received, last.received),
                bytes: stats.received.bytes.saturating_sub(last.received.bytes),
            },
            forwarded: since(stats.forwarded, last.forwarded),
            replied: since(stats.replied, last.replied),
            passed: since(stats.passed, last.passed),
            dropped: DropReason::ALL
                .iter()
                .map(|&reason| match reason {
                    // Most of these go on later.
                    DropReason::FragmentHeld => 0,
                    _ => since(stats.dropped[reason], last.dropped[reason]),
                })
                .collect(),
            began: begun(stats).saturating_sub(begun(last)),
            live: stats.flows.live + stats.connections.live,
        };
        if let Some(interval) = self.intervals.get_mut(place) {
            interval.join(&new);
        }
        self.last = *stats;
    }

    /// The width of an interval.
    pub(super) fn width(&self) -> Duration {
        self.width
    }

    pub(super) fn intervals(&self) -> &[Interval] {
        &self.intervals
    }

    /// The clients that sent most packets to VIPs, and how many clients there were.
    pub(super) fn clients(&self, most: usize) -> (Vec<(IpAddr, Count)>, usize) {
        let all = self.clients.iter();
        let mut all: Vec<(IpAddr, Count)> =
            all.map(|(&address, &count)| (address, count)).collect();
        all.sort_by_key(|&(address, count)| (std::cmp::Reverse(count.packets), address));
        all.truncate(most);
        (all, self.clients.len())
    }

    /// The least of the chosen packets that the capture does not have.
    pub(super) fn missing(&self) -> Option<u64> {
        let beyond = self
            .chosen
            .iter()
            .copied()
            .filter(|&number| number > self.seen);
        beyond.min()
    }

    /// The first packet of each verdict and the chosen ones, in their order in the capture.
    pub(super) fn examples(&self) -> &[Example] {
        &self.examples
    }
}

/// The interval of a time.
fn place(after: Duration, width: Duration) -> usize {
    usize::try_from(after.as_nanos() / width.as_nanos().max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(packets: u64) -> Stats {
        let mut stats = Stats::default();
        stats.received.packets = packets;
        stats.flows.made = packets;
        stats.flows.live = packets / 2;
        stats
    }

    #[test]
    fn intervals_grow_with_the_time_and_lose_nothing() {
        let config =
            Config::parse("test", "[node]\nrole = \"mux\"\nunderlay = \"192.0.2.1\"\n").unwrap();
        let mut history = History::new(&config, &[]);
        for second in 0..1000_u64 {
            history.note_counters(Duration::from_secs(second), &after(second + 1));
        }
        let intervals = history.intervals();
        assert!((MOST_INTERVALS / 2..=MOST_INTERVALS).contains(&intervals.len()));
        let total: u64 = intervals.iter().map(|one| one.received.packets).sum();
        assert_eq!(total, 1000);
        let began: u64 = intervals.iter().map(|one| one.began).sum();
        assert_eq!(began, 1000);
        assert_eq!(intervals.last().unwrap().live, 500);
        assert!(intervals.is_sorted_by(|a, b| a.live <= b.live));
    }

    #[test]
    fn a_gap_of_years_costs_no_memory() {
        let config =
            Config::parse("test", "[node]\nrole = \"mux\"\nunderlay = \"192.0.2.1\"\n").unwrap();
        let mut history = History::new(&config, &[]);
        history.note_counters(Duration::ZERO, &after(1));
        history.note_counters(Duration::from_secs(9 * 365 * 86_400), &after(2));
        assert!(history.intervals().len() <= MOST_INTERVALS);
        let received = history.intervals().iter().map(|one| one.received.packets);
        assert_eq!(received.sum::<u64>(), 2);
    }
}
