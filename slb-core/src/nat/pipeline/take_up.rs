//! Connections of an earlier process that are taken up by a segment from outside.

use core::ops::Deref;

use super::{Lane, Pipeline, Role, Table, TakeUp};
use crate::limit::Own;
use crate::nat::connection::{Connection, Policy};
use crate::nat::rule_id::ShortRuleId;
use crate::nat::tcp::{Direction, Segment};
use crate::snapshot::Snapshot;
use crate::snapshot::locals::Local;
use crate::snapshot::terms::CompiledTerms;
use crate::time::Instant;
use crate::wire::protocol;
use crate::wire::tcp::Flags;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Connections that began before now may be taken up.
    pub(crate) fn begin_take_up(&mut self, now: Instant) {
        self.takes_up_since = Some(self.set_clock(now));
    }

    /// Returns true if connections of a rule from before the start may still go on.
    pub(crate) fn may_be_from_before(&self, terms: &CompiledTerms) -> bool {
        let is_within = |since| self.passed().since(since) < terms.idle.duration();
        self.takes_up_since.is_some_and(is_within)
    }

    /// The connection of a segment from outside that is of none, and that no other host may have. `local` is
    /// the backend that has it.
    #[cold]
    pub(crate) fn take_up_inward<A: Table, R: Role>(
        &mut self,
        lane: &Lane,
        segment: &Segment,
        (rule, local, via): (u32, Option<Local>, u8),
    ) -> TakeUp<A> {
        let (Some(&terms), Some(compiled)) = (self.snapshot.terms(rule), self.snapshot.rule(rule))
        else {
            return TakeUp::Not;
        };
        if !goes_on(segment) || terms.source_nat.is_some() || !self.may_be_from_before(&terms) {
            return TakeUp::Not;
        }
        let Some(local) = local else {
            return TakeUp::Not;
        };
        let policy = policy::<R>(&terms, self.snapshot.short_rule_id(compiled), local.id, via);
        let outside = lane.key::<A>().side;
        let Ok(inside) = self.inside_of::<A, R>(lane, &terms, &local) else {
            return TakeUp::Not;
        };
        // Another port stands for the client's where the server knows that from another connection.
        if inside.ports >> 16 != outside.ports & 0xffff {
            return TakeUp::Not;
        }
        if !self.limits.allow(Own::TakenUp) || !self.sources.allow(&lane.packet) {
            return TakeUp::Later;
        }
        TakeUp::Connection(Connection::new(
            outside,
            inside,
            protocol::TCP,
            lane.zone,
            policy,
        ))
    }
}

/// Returns true if a segment may be from the middle of a connection.
pub(crate) fn goes_on(segment: &Segment) -> bool {
    segment.flags.contains(Flags::ACK) && !segment.flags.intersects(Flags::SYN.with(Flags::RST))
}

/// The terms of a connection from outside that is taken up.
pub(crate) fn policy<R: Role>(
    terms: &CompiledTerms,
    rule: ShortRuleId,
    server: u16,
    via: u8,
) -> Policy {
    Policy {
        idle: terms.idle,
        rule,
        server,
        via,
        reset: terms.reset,
        opener: Direction::Inward,
        shared: R::SHARED,
    }
}
