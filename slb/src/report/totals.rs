//! Counters that show trouble: what was dropped, and what was used up.

use std::collections::BTreeMap;

use slb_core::DropReason;

use super::Report;

/// Counters that only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Packets dropped, by reason.
    pub(crate) dropped: BTreeMap<&'static str, u64>,
    /// Flows or connections that found no place.
    pub(crate) refused: u64,
    /// Flows or connections that made room for new ones before their time.
    pub(crate) evicted: u64,
    /// Connections to the outside that found no SNAT port, by pool and backend.
    pub(crate) exhausted: BTreeMap<(String, String), u64>,
}

impl Report<'_> {
    pub(crate) fn totals(&self) -> Totals {
        let stats = &self.tally.stats;
        let dropped = DropReason::ALL.iter();
        let (refused, evicted) = match self.tally.states {
            None => (stats.flows.refused, stats.flows.evicted),
            Some(_) => (stats.connections.refused, stats.connections.evicted),
        };
        let exhausted = self.shares.iter().filter_map(|share| {
            let name = (share.pool.clone(), share.backend.clone());
            Some((name, share.snat?.exhausted))
        });
        Totals {
            dropped: dropped
                .map(|&reason| (reason.name(), stats.dropped[reason].packets))
                .collect(),
            refused,
            evicted,
            exhausted: exhausted.collect(),
        }
    }
}
