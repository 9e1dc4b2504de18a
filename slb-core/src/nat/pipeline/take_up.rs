//! Take-up of an earlier process's connections by a segment from outside.

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
    /// Allows take-up of connections that began before now.
    pub(crate) fn begin_take_up(&mut self, now: Instant) {
        self.takes_up_since = Some(self.set_clock(now));
    }

    /// Returns true if connections of a rule from before the start may still go on.
    pub(crate) fn may_be_from_before(&self, terms: &CompiledTerms) -> bool {
        let is_within = |since| self.passed().since(since) < terms.idle.duration();
        self.takes_up_since.is_some_and(is_within)
    }

    /// Takes up the connection of a segment from outside that belongs to none, and that no other
    /// host may have. `local` is the connection's backend.
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
        // The client gets another port if the server already uses its port in another connection.
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

/// Returns the policy of a taken-up connection from outside.
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
