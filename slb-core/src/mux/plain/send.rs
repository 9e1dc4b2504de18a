//! Stage 3: the backends of plain packets, their outer headers and their counters.

use super::lane::{IP, Lane, NO_RULE, UNCOMMON, Words};
use crate::flow::{FlowTable, Ticks};
use crate::frame::Frame;
use crate::snapshot::{BackendId, CompiledBackend, Snapshot};
use crate::stats::{BackendCounters, Count, RuleCounters, Stats};
use crate::tunnel::encapsulation::Inner;
use crate::verdict::Verdict;
use crate::wire::protocol;

/// The counters and tables of the last stage. Packets of one rule in a row are counted together:
/// adding each to the same counter would make each wait for the one before.
pub(super) struct Sender<'p, 's> {
    pub(super) snapshot: &'p Snapshot<'s>,
    pub(super) rules: &'p mut [RuleCounters],
    pub(super) backends: &'p mut [BackendCounters],
    /// All that was sent.
    pub(super) sent: Sent,
    /// The same when the run of its rule began.
    pub(super) sent_before: Sent,
    /// The rule of the last packet, the place of its counters, and what else has to be known of it.
    pub(super) rule: u32,
    pub(super) slot: usize,
    pub(super) first_backend: u32,
    pub(super) idle_timeout: Ticks,
}

#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub(super) count: Count,
    pub(super) syns: u64,
}

impl<'p, 's> Sender<'p, 's> {
    pub(super) fn new(
        snapshot: &'p Snapshot<'s>,
        rules: &'p mut [RuleCounters],
        backends: &'p mut [BackendCounters],
    ) -> Self {
        let nothing = Sent {
            count: Count {
                packets: 0,
                bytes: 0,
            },
            syns: 0,
        };
        Self {
            snapshot,
            rules,
            backends,
            sent: nothing,
            sent_before: nothing,
            rule: NO_RULE,
            slot: usize::MAX,
            first_backend: 0,
            idle_timeout: Ticks::MAX,
        }
    }

    /// Counts what was sent for the rule so far, and turns to another one.
    #[inline(always)] // a call would have all counts kept in memory
    pub(super) fn turn_to(&mut self, rule: u32) {
        if let Some(counters) = self.rules.get_mut(self.slot) {
            counters.forwarded += self.sent.count - self.sent_before.count;
            counters.syns += self.sent.syns - self.sent_before.syns;
        }
        self.sent_before = self.sent;
        if let Some(compiled) = self.snapshot.rule(rule) {
            self.rule = rule;
            self.slot = compiled.slot();
            self.first_backend = compiled.first_backend;
            self.idle_timeout = compiled.idle_timeout;
        }
    }

    /// Ends all runs. Returns how many packets were sent.
    #[inline]
    pub(super) fn finish(mut self, stats: &mut Stats) -> usize {
        self.turn_to(NO_RULE);
        stats.received += self.sent.count;
        stats.forwarded += self.sent.count;
        stats.syns += self.sent.syns;
        self.sent.count.packets as usize
    }

    /// The place of the next packet, which is as many as were sent behind the first.
    #[inline]
    pub(super) fn place(&self, first: usize) -> usize {
        first + self.sent.count.packets as usize
    }

    /// The backend of a packet's flow, and its place among all, where that flow is established and stays
    /// so; it is used again. `None`, and no change, where more is to be decided.
    #[inline(always)] // as `send`
    pub(super) fn established<A: Words>(
        &self,
        flows: &mut FlowTable<'_>,
        lane: &Lane,
    ) -> Option<(u32, &'p CompiledBackend)> {
        if !lane.is_quiet() {
            return None;
        }
        let snapshot = self.snapshot;
        let table = A::table_mut(flows);
        table.refresh(lane.bucket, lane.place, self.idle_timeout, |value| {
            let index = snapshot.backend_index(BackendId::from_value(value))?;
            let backend = snapshot.backend(index)?;
            // Of other protocols, a flow may lose a backend that is unhealthy.
            let may_lose = lane.protocol != protocol::TCP && backend.is_suspect();
            (!may_lose).then_some((index, backend))
        })
    }

    /// Sends a packet to a backend. `false`, and nothing is changed or counted, where it cannot be.
    #[inline(always)] // once for each family, with and without a table
    pub(super) fn send<A: Words>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        backend: &CompiledBackend,
    ) -> bool {
        let len = frame.len();
        if lane.hop_limit <= 1 {
            return false;
        }
        let is_sent = if lane.len <= backend.common_mtu {
            let inner = Inner {
                family: A::FAMILY,
                ip_offset: IP,
                ip_len: lane.len,
                traffic_class: lane.traffic_class,
            };
            let template = &backend.template;
            template
                .encapsulate_common(frame, inner, lane.entropy)
                .is_some()
        } else {
            encapsulate_uncommon::<A>(frame, lane, backend)
        };
        if !is_sent {
            return false;
        }
        let verdict = Verdict::Forward(self.snapshot.underlay().port);
        if let Some(counters) = self.backends.get_mut(backend.counters()) {
            counters.forwarded.packets += 1;
            // Between the two, which become one addition of vectors otherwise: six instructions for two.
            frame.set_verdict(verdict);
            counters.forwarded.bytes += len as u64;
        } else {
            frame.set_verdict(verdict);
        }
        self.sent.count.packets += 1;
        self.sent.count.bytes += len as u64;
        true
    }
}

/// Over IPv6, with a UDP checksum, or of a frame with tags.
#[inline(never)]
fn encapsulate_uncommon<A: Words>(
    frame: &mut Frame<'_>,
    lane: &Lane,
    backend: &CompiledBackend,
) -> bool {
    let inner = Inner {
        family: A::FAMILY,
        ip_offset: lane.ip_offset.into(),
        ip_len: lane.len & !UNCOMMON,
        traffic_class: lane.traffic_class,
    };
    let template = &backend.template;
    inner.ip_len <= backend.inner_mtu
        && template
            .encapsulate_inner(frame, inner, lane.entropy)
            .is_ok()
}
