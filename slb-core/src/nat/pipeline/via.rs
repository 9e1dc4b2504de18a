//! Answers that go through a mux: the one that the client's last packet came through.
//!
//! Routers choose the mux of a flow, and choose another one when muxes are added or removed. An
//! answer that is retransmitted after a while goes through the next mux: the previous one may be
//! gone, and a client that waits for an answer sends nothing.

use core::ops::Deref;

use super::{Pipeline, Role, Table};
use crate::frame::Frame;
use crate::nat::Direction;
use crate::nat::connection::Policy;
use crate::nat::pipeline::Lane;
use crate::nat::tcp::Segment;
use crate::observe::Observe;
use crate::snapshot::Snapshot;
use crate::verdict::Verdict;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Handles a packet of a connection that is contested, or whose answers go through a mux.
    /// Returns the outcome if the packet does not belong to the connection.
    #[inline(never)]
    pub(super) fn attend<A: Table, R: Role>(
        &mut self,
        number: u32,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Option<Verdict> {
        let connection = A::table(&mut self.tables.connections).get(number)?;
        let via = connection.via();
        if connection.is_contested() {
            let verdict = self.settle::<A, R>(number, frame, lane, segment, seen);
            if verdict.is_some() {
                return verdict;
            }
        }
        if let Some(via) = via
            && via != usize::from(Policy::NETWORK)
        {
            self.choose_mux::<A, R>(number, via, frame, lane, segment);
        }
        None
    }

    /// Changes the mux that a connection's answers go through, if its packet says so.
    fn choose_mux<A: Table, R: Role>(
        &mut self,
        number: u32,
        via: usize,
        frame: &Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
    ) {
        let mux = match lane.direction {
            Direction::Inward => R::via(self, frame, lane),
            Direction::Outward => {
                let table = A::table(&mut self.tables.connections);
                let (now, connection) = (table.now(), table.get(number));
                let is_again = connection
                    .zip(segment)
                    .is_some_and(|(connection, segment)| {
                        connection.asks_again(now, lane.direction, segment)
                    });
                if !is_again {
                    return;
                }
                let next = self.snapshot.nat.mux(via + 1).map_or(0, |_| via + 1);
                u8::try_from(next).unwrap_or(Policy::DIRECT)
            }
        };
        if mux == Policy::DIRECT || usize::from(mux) == via {
            return;
        }
        let table = A::table(&mut self.tables.connections);
        if let Some((connection, _)) = table.get_mut_and_ages(number) {
            connection.set_via(mux);
        }
    }
}
