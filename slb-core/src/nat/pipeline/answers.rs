//! Detects whether backends accept connections, for health by traffic.

use core::ops::Deref;

use super::{Lane, Pipeline, Role, Table};
use crate::nat::connection::Connection;
use crate::nat::rewrite::Rewrite;
use crate::nat::{ConnectionState, Direction};
use crate::snapshot::{RuleMatch, Snapshot};
use crate::stats::BackendCounters;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Counts a SYN that is retransmitted because the first one was not answered. Returns true if
    /// the SYN should go to another backend: its connection is not established or is over, and its
    /// backend gets no new ones.
    #[cold]
    pub(super) fn asks_in_vain<A: Table, R: Role>(&mut self, number: u32, lane: &Lane) -> bool {
        let Some(connection) = A::table(&mut self.tables.connections).get(number) else {
            return false;
        };
        let is_asking = connection.state() == ConnectionState::SynSent;
        let from_outside = (Direction::Inward, Direction::Inward);
        let is_open = !is_asking && !connection.state().is_over();
        if is_open || (connection.opener(), lane.direction) != from_outside {
            return false;
        }
        let counters = counters_of(&self.snapshot, connection, &mut self.tables.backends);
        counters
            .into_iter()
            .for_each(|c| c.failures += u64::from(is_asking));
        if !R::CHOOSES {
            return false;
        }
        let snapshot = &*self.snapshot;
        let RuleMatch::Rule(rule) = snapshot.classify_at(&lane.packet, lane.zone) else {
            return false;
        };
        let local = snapshot.nat.local(connection.server());
        local.is_none_or(|local| !snapshot.gets_new_flows(rule, &lane.packet, local.backend))
    }
}

/// Counts the first answer to a connection from outside, and a connection that reuses the tuples of
/// an old one; returns true in the latter case. `states` are the states before and after the
/// packet.
#[inline(never)]
pub(super) fn note_answer<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    backends: &mut [BackendCounters],
    states: (ConnectionState, ConnectionState),
    is_error: bool,
) -> bool {
    use ConnectionState::*;
    let begins_anew = states.1 == SynReceived && states.0 != SynSent;
    let Some(counters) = counters_of(snapshot, connection, backends) else {
        return begins_anew;
    };
    counters.flows += u64::from(begins_anew);
    if connection.opener() == Direction::Inward {
        match states {
            (SynSent, Closed) => counters.failures += 1,
            (SynSent, SynSent) => counters.failures += u64::from(is_error), // or not accepted
            (SynSent, _) => counters.accepted += 1,
            _ => counters.accepted += u64::from(begins_anew),
        }
    }
    begins_anew
}

/// Counts a connection of a backend that is over, or that goes on although it seemed to be over.
#[cold]
pub(super) fn note_end(counters: &mut BackendCounters, is_over: bool) {
    counters.live = if is_over {
        counters.live.saturating_sub(1)
    } else {
        counters.live + 1
    };
}

pub(super) fn counters_of<'b, A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    backends: &'b mut [BackendCounters],
) -> Option<&'b mut BackendCounters> {
    let local = snapshot.nat.local(connection.server())?;
    backends.get_mut(local.counters as usize)
}
