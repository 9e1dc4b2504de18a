//! The last stage: the outer header in front of each packet, and the counters.

use super::pipeline::Lane;
use crate::frame::Frame;
use crate::limit::Limits;
use crate::mux::unusual::{refuse, report};
use crate::observe::{Observe, Step};
use crate::snapshot::Snapshot;
use crate::stats::{BackendCounters, Count, RuleCounters, Stats};
use crate::verdict::{DropReason, Verdict};

/// The index of the backend that takes a packet, or the reason why none does.
pub(super) type Chosen = Result<u32, DropReason>;

/// The last stage: sends frames whose backend is chosen.
pub(super) struct Forwarder<'p, 's> {
    pub(super) snapshot: &'p Snapshot<'s>,
    pub(super) rules: &'p mut [RuleCounters],
    pub(super) backends: &'p mut [BackendCounters],
    pub(super) limits: &'p mut Limits,
    pub(super) stats: &'p mut Stats,
    pub(super) run: Run,
}

impl Forwarder<'_, '_> {
    /// Sends a frame to the backend with the index `chosen`, or drops it for the reason in
    /// `chosen`.
    #[inline]
    pub(super) fn forward(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        chosen: Chosen,
        seen: &mut impl Observe,
    ) {
        let Self {
            snapshot,
            limits,
            stats,
            run,
            ..
        } = self;
        let chosen = chosen.and_then(|index| {
            let backend = snapshot.backend(index).ok_or(DropReason::NoBackend)?;
            Ok((index, backend))
        });
        let (index, backend) = match chosen {
            Ok(chosen) => chosen,
            Err(reason) => {
                let verdict = refuse(snapshot, frame, lane, reason, limits, stats, seen);
                return finish(stats, frame, lane, verdict, seen);
            }
        };
        seen.step(lane.frame.into(), Step::Selected(index));
        let packet = &lane.packet;
        if packet.hop_limit <= 1 || packet.ip_len > backend.inner_mtu {
            let verdict = report(frame, lane, backend.inner_mtu, limits);
            return finish(stats, frame, lane, verdict, seen);
        }
        if let Err(reason) = backend.template.encapsulate(frame, packet, lane.hash) {
            return finish(stats, frame, lane, Verdict::Drop(reason), seen);
        }
        let port = Verdict::Forward(snapshot.underlay().port);
        frame.set_verdict(port);
        seen.step(lane.frame.into(), Step::Done(port));
        let len = lane.len as usize;
        if let Some(counters) = self.backends.get_mut(backend.counters()) {
            counters.forwarded.add(len);
        }
        if run.rule != lane.rule {
            core::mem::replace(run, Run::of(lane.rule)).count(snapshot, stats, self.rules);
        }
        run.forwarded.add(len);
        run.syns += u64::from(packet.opens());
    }

    pub(super) fn finish(self) {
        self.run.count(self.snapshot, self.stats, self.rules);
    }
}

/// A run of packets for one rule, counted together: if each were added to the counter, each
/// addition would wait for the one before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) rule: u32,
    pub(super) forwarded: Count,
    pub(super) syns: u64,
}

impl Run {
    pub(super) const fn of(rule: u32) -> Self {
        Self {
            rule,
            forwarded: Count {
                packets: 0,
                bytes: 0,
            },
            syns: 0,
        }
    }

    #[inline]
    pub(super) fn count(
        self,
        snapshot: &Snapshot<'_>,
        stats: &mut Stats,
        rules: &mut [RuleCounters],
    ) {
        stats.forwarded += self.forwarded;
        stats.syns += self.syns;
        if let Some(rule) = snapshot.rule(self.rule)
            && let Some(counters) = rules.get_mut(rule.slot())
        {
            counters.forwarded += self.forwarded;
            counters.syns += self.syns;
        }
    }
}

impl Default for Run {
    fn default() -> Self {
        Self::of(u32::MAX)
    }
}

/// Sets the verdict of a frame and counts it.
#[cold]
pub(super) fn finish(
    stats: &mut Stats,
    frame: &mut Frame<'_>,
    lane: &Lane,
    verdict: Verdict,
    seen: &mut impl Observe,
) {
    frame.set_verdict(verdict);
    // An answer has replaced the frame: count the bytes that arrived.
    stats.count(verdict, lane.len as usize);
    seen.step(lane.frame.into(), Step::Done(verdict));
}
