//! The counters and flows of a table, for reports and exports.

use core::net::IpAddr;
use core::ops::Add;

use super::Table;
use super::bucket::{DEADLINE_BITS, FlowState, SLOTS, is_alive, state_of};
use crate::flow::Ticks;
use crate::flow::key::{Addresses, FlowKey, FlowProtocol};
use crate::list::Like;

/// Counters of a table since its creation, and its occupancy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Number of flows pinned.
    pub made: u64,
    /// Number of flows that expired.
    pub expired: u64,
    /// Number of half-open and closing flows that were evicted.
    pub evicted: u64,
    /// Number of flows that found no place.
    pub refused: u64,
    /// Number of flows that the caller removed.
    pub removed: u64,
    /// Number of present flows; expired flows count until they are collected.
    pub live: u64,
    /// Number of half-open flows among the present flows.
    pub half_open: u64,
    /// Number of places in the table.
    pub places: u64,
    /// Number of flows imported from another table, which `made` does not include.
    pub imported: u64,
}

impl Add for FlowStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            made: self.made + other.made,
            expired: self.expired + other.expired,
            evicted: self.evicted + other.evicted,
            refused: self.refused + other.refused,
            removed: self.removed + other.removed,
            live: self.live + other.live,
            half_open: self.half_open + other.half_open,
            places: self.places + other.places,
            imported: self.imported + other.imported,
        }
    }
}

/// A flow of the table, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client.
    pub source: IpAddr,
    /// The VIP.
    pub destination: IpAddr,
    /// The protocol, which gives `ports` its meaning.
    pub protocol: FlowProtocol,
    /// Source and destination port; for other protocols, the first has the value that
    /// [`FlowProtocol`] describes.
    pub ports: (u16, u16),
    /// The value stored with the flow.
    pub value: u32,
    /// The state of the flow.
    pub state: FlowState,
}

impl<A: Addresses> Table<'_, A> {
    /// Returns the flow at a place of the table, if it has not expired, and its remaining ticks.
    pub(crate) fn at(&self, place: usize) -> Option<(FlowKey<A>, u32, FlowState, Ticks)> {
        let (bucket, place) = (self.buckets.get(place / SLOTS)?, place % SLOTS);
        let meta = bucket.meta[place];
        let left = meta.wrapping_sub(self.now as u16) & DEADLINE_BITS;
        is_alive(meta, self.now).then(|| {
            let (key, value) = (bucket.key(place), bucket.values[place]);
            (key, value, state_of(meta), Ticks(left))
        })
    }

    /// Returns the next place from `first` on and before `end` with a live flow that matches
    /// `like`.
    pub(crate) fn next_like(&self, first: usize, end: usize, like: &Like<A>) -> Option<usize> {
        let buckets = self.buckets.get(first / SLOTS..end.div_ceil(SLOTS))?;
        let first_bucket = first / SLOTS;
        for (number, bucket) in (first_bucket..).zip(buckets) {
            for i in 0..SLOTS {
                let is_it = like.is_like(bucket.addresses[i], bucket.ports[i]);
                if is_it & is_alive(bucket.meta[i], self.now) {
                    let place = number * SLOTS + i;
                    if (first..end).contains(&place) {
                        return Some(place);
                    }
                }
            }
        }
        None
    }

    /// Returns the number of places in the table.
    pub(crate) fn places(&self) -> usize {
        self.buckets.len() * SLOTS
    }

    /// Returns the table's counters.
    pub fn stats(&self) -> FlowStats {
        self.stats
    }

    /// Yields every live flow.
    pub fn iter(&self) -> impl Iterator<Item = Flow> + '_ {
        self.iter_from(0).map(|(_, flow)| flow)
    }

    /// Yields every live flow in the buckets from `first` on, with the number of its bucket, so
    /// that a caller can list flows in parts.
    pub fn iter_from(&self, first: usize) -> impl Iterator<Item = (usize, Flow)> + '_ {
        let buckets = self.buckets.iter().enumerate().skip(first);
        buckets.flat_map(move |(number, bucket)| {
            (0..SLOTS)
                .filter(|&i| is_alive(bucket.meta[i], self.now))
                .map(move |i| (number, bucket.flow(i)))
        })
    }
}
