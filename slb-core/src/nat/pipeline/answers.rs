//! Whether backends take their connections up: what health goes by that looks at traffic.

use core::ops::Deref;

use super::{Lane, Pipeline, Role, Table};
use crate::nat::connection::Connection;
use crate::nat::rewrite::Rewrite;
use crate::nat::{ConnectionState, Direction};
use crate::service::{RuleMatch, Snapshot};
use crate::stats::BackendCounters;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Counts a SYN that came again, where the first one was not answered; says whether it is to go to
    /// another backend, since its own gets no new connections any more.
    #[cold]
    pub(super) fn asks_in_vain<A: Table, R: Role>(&mut self, number: u32, lane: &Lane) -> bool {
        let Some(connection) = A::table(&mut self.tables.connections).get(number) else {
            return false;
        };
        let is_asking = connection.state() == ConnectionState::SynSent;
        let from_outside = (Direction::Inward, Direction::Inward);
        if !is_asking || (connection.opener(), lane.direction) != from_outside {
            return false;
        }
        let counters = counters_of(&self.snapshot, connection, &mut self.tables.backends);
        counters.into_iter().for_each(|c| c.failures += 1);
        if !R::CHOOSES {
            return false;
        }
        let snapshot = &*self.snapshot;
        let RuleMatch::Rule(rule) = snapshot.classify(&lane.packet) else {
            return false;
        };
        let local = snapshot.nat.local(connection.server());
        local.is_none_or(|local| !snapshot.gets_new_flows(rule, &lane.packet, local.backend))
    }
}

/// Counts the first answer to a connection from outside: the state is that after it.
#[inline(never)]
pub(super) fn note_answer<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    backends: &mut [BackendCounters],
    is_error: bool,
) {
    if connection.opener() != Direction::Inward {
        return;
    }
    let Some(counters) = counters_of(snapshot, connection, backends) else {
        return;
    };
    match connection.state() {
        ConnectionState::Closed => counters.failures += 1,
        ConnectionState::SynSent if is_error => counters.failures += 1,
        ConnectionState::SynSent => {} // of another handshake: nobody takes it
        _ => counters.accepted += 1,
    }
}

fn counters_of<'b, A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    backends: &'b mut [BackendCounters],
) -> Option<&'b mut BackendCounters> {
    let local = snapshot.nat.local(connection.server())?;
    backends.get_mut(local.counters as usize)
}
