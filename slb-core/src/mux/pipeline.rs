//! The stages that a burst goes through: classify, look up, forward.

use core::ops::Deref;

use super::forward::{Forwarder, Run, finish};
use super::{MuxTables, pin};
use crate::counters;
use crate::flow::table::Probe;
use crate::fragments::FragmentRoom;
use crate::frame::{BURST, Frame};
use crate::limit::{Limits, SourceLimiter};
use crate::mux::pin::{Changes, Pinner};
use crate::observe::{Observe, Step};
use crate::packet::{Packet, Read, ends_of_bad};
use crate::snapshot::owners::Generations;
use crate::snapshot::{RuleMatch, Snapshot};
use crate::stats::{Count, Stats};
use crate::time::{Clock, Instant};
use crate::verdict::{DropReason, Verdict};

/// A frame on its way through the stages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub(super) packet: Packet,
    /// First the hash that chooses the backend, then the hash for the outer source port. They are
    /// equal unless the distribution mode excludes parts of the tuple.
    pub(super) hash: u64,
    /// The hash of the flow table.
    pub(super) flow_hash: u64,
    /// The result of the flow table's lookup.
    pub(super) probe: Probe,
    /// The slot in the snapshot's Maglev tables.
    pub(super) table_index: u32,
    pub(super) rule: u32,
    /// The first backend of the rule's pool.
    pub(super) first_backend: u32,
    /// Bytes of the frame as it arrived.
    pub(super) len: u32,
    /// Index of the frame in the burst.
    pub(super) frame: u8,
    /// True if the packet follows its flow without changing it: an ICMP error, with the flow's
    /// tuple in `packet`, or a later fragment.
    pub(super) only_follows: bool,
}

impl Lane {
    pub(super) const EMPTY: Self = Self {
        packet: Packet::EMPTY,
        hash: 0,
        flow_hash: 0,
        probe: Probe::Absent,
        table_index: 0,
        rule: 0,
        first_backend: 0,
        len: 0,
        frame: 0,
        only_follows: false,
    };
}

/// Everything but the lanes, so that the stages can borrow both.
pub(super) struct Pipeline<'m, S> {
    pub(super) snapshot: S,
    pub(super) tables: MuxTables<'m>,
    pub(super) clock: Clock,
    /// The times at which snapshots were installed.
    pub(super) generations: Generations,
    pub(super) limits: Limits,
    pub(super) sources: SourceLimiter<'m>,
    pub(super) room: FragmentRoom<'m>,
    pub(super) stats: Stats,
}

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    #[inline]
    pub(super) fn advance(&mut self, now: Instant) {
        let now = self.clock.advance(now);
        if let Some(flows) = &mut self.tables.flows {
            flows.advance(now);
        }
        if let Some(fragments) = &mut self.tables.fragments {
            fragments.advance(now);
        }
        self.room.advance(now);
        self.limits.advance(now);
        self.sources.advance(now);
    }

    /// Sets the verdicts of a burst on the slow path, which takes any frame.
    #[inline(never)]
    pub(super) fn process_long(
        &mut self,
        frames: &mut [Frame<'_>],
        lanes: &mut [Lane; BURST],
        seen: &mut impl Observe,
    ) {
        let lanes = self.classify(frames, lanes, seen);
        self.look_up(lanes);
        self.forward(frames, lanes, seen);
    }

    /// Stage 1: parses each frame, finds its rule and hashes its tuple. Returns the lanes of frames
    /// that match a rule; malformed or unwanted frames, and frames for other destinations, get
    /// their verdicts.
    #[inline]
    pub(super) fn classify<'l>(
        &mut self,
        frames: &mut [Frame<'_>],
        lanes: &'l mut [Lane; BURST],
        seen: &mut impl Observe,
    ) -> &'l mut [Lane] {
        for frame in frames.iter() {
            frame.prefetch();
        }
        let mut received = Count::default();
        // Packets for one service arrive in runs, so the result of the last lookup often holds.
        let mut last = (None, RuleMatch::NotVip);
        let mut count = 0;
        for (index, frame) in frames.iter_mut().enumerate() {
            let Some(lane) = lanes.get_mut(count) else {
                break;
            };
            lane.len = frame.len() as u32;
            lane.frame = index as u8;
            lane.only_follows = false;
            received.add(frame.len());
            let found = match lane.packet.read(frame.bytes()) {
                Read::Ip if lane.packet.is_plain() => {
                    seen.step(index, Step::Parsed(lane.packet));
                    let service = lane.packet.service();
                    if service.is_none() || service != last.0 {
                        last = (service, self.snapshot.classify(&lane.packet));
                    }
                    Ok(last.1)
                }
                Read::Ip => {
                    seen.step(index, Step::Parsed(lane.packet));
                    self.classify_unusual(frame, lane, seen)
                }
                Read::Other => Err(Verdict::Pass),
                Read::Bad(reason) => Err(self.refuse_bad(frame, reason)),
            };
            if let Ok(RuleMatch::Rule(rule)) = found {
                seen.step(index, Step::Classified(RuleMatch::Rule(rule)));
                self.hash(lane, rule, seen);
                count += 1;
            } else {
                self.finish_unwanted(frame, lane, found, seen);
            }
        }
        self.stats.received += received;
        lanes.get_mut(..count).unwrap_or_default()
    }

    /// Decides about an IP packet with unreadable headers: it is passed, unless it is for a VIP or a
    /// public address of a vm.
    #[cold]
    pub(super) fn refuse_bad(&self, frame: &Frame<'_>, reason: DropReason) -> Verdict {
        let publics = &self.snapshot.nat.networks.publics;
        let is_ours = |to| self.snapshot.is_vip(to) || publics.at(to).is_some();
        match ends_of_bad(frame.bytes()) {
            Some((_, destination)) if is_ours(destination) => Verdict::Drop(reason),
            _ => Verdict::Pass,
        }
    }

    /// Sets the verdict of a frame that matches no rule.
    #[inline(never)]
    pub(super) fn finish_unwanted(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        found: Result<RuleMatch, Verdict>,
        seen: &mut impl Observe,
    ) {
        if let Ok(found) = found {
            seen.step(lane.frame.into(), Step::Classified(found));
        }
        let verdict = match found {
            Ok(RuleMatch::NotVip) => {
                let public = self.send_to_public(frame, lane, seen);
                let found = public.or_else(|| self.take_back(frame, lane, seen));
                found.unwrap_or(Verdict::Pass)
            }
            Ok(_) => Verdict::Drop(DropReason::NoRule),
            Err(verdict) => verdict,
        };
        finish(&mut self.stats, frame, lane, verdict, seen);
    }

    /// Computes the hashes for the choice of a backend, and prefetches the first cache line that it
    /// needs.
    #[inline]
    pub(super) fn hash(&self, lane: &mut Lane, index: u32, seen: &mut impl Observe) {
        let snapshot = &*self.snapshot;
        let Some(rule) = snapshot.rule(index) else {
            return;
        };
        lane.rule = index;
        lane.first_backend = rule.first_backend;
        lane.hash = snapshot.hash(&lane.packet, rule.mask);
        let table_index = snapshot.table_index(rule, &lane.packet, lane.hash);
        lane.table_index = table_index as u32;
        let slot = table_index - rule.first_slot();
        let hashed = Step::Hashed {
            rule: index,
            hash: lane.hash,
            slot,
        };
        seen.step(lane.frame.into(), hashed);
        if rule.mask != u64::MAX {
            lane.hash = full_hash(snapshot, &lane.packet);
        }
        match &self.tables.flows {
            Some(flows) => lane.flow_hash = pin::hash(flows, &lane.packet),
            None => snapshot.prefetch_slot(table_index),
        }
    }

    /// Stage 2: looks up each lane's flow, if flows are pinned.
    #[inline]
    pub(super) fn look_up(&mut self, lanes: &mut [Lane]) {
        if let Some(flows) = &self.tables.flows {
            pin::look_up(flows, lanes);
        }
    }

    /// Stage 3: finds each packet's backend, and prepends the backend's outer header.
    #[inline]
    pub(super) fn forward(
        &mut self,
        frames: &mut [Frame<'_>],
        lanes: &[Lane],
        seen: &mut impl Observe,
    ) {
        let Self {
            snapshot,
            tables,
            clock,
            generations,
            limits,
            sources,
            stats,
            ..
        } = self;
        let snapshot: &Snapshot<'_> = snapshot;
        let flows = &mut tables.flows;
        let before = flows.as_ref().map(Changes::of);
        let mut forwarder = Forwarder {
            snapshot,
            rules: &mut tables.rules,
            backends: &mut tables.backends,
            limits,
            stats,
            run: Run::default(),
        };
        for lane in lanes {
            let Some(frame) = frames.get_mut(usize::from(lane.frame)) else {
                continue;
            };
            let chosen = match (&mut *flows, &before) {
                (Some(flows), Some(before)) => Pinner {
                    snapshot,
                    flows,
                    rules: forwarder.rules,
                    backends: forwarder.backends,
                    sources,
                    before,
                    since: (generations, clock),
                }
                .backend(lane, seen),
                _ if lane.packet.is_martian() => Err(DropReason::Martian),
                _ => snapshot
                    .backend_at(lane.first_backend, lane.table_index as usize)
                    .ok_or(DropReason::NoBackend),
            };
            forwarder.forward(frame, lane, chosen, seen);
        }
        forwarder.finish();
    }

    pub(super) fn name_counters(&mut self) {
        let MuxTables {
            rules, backends, ..
        } = &mut self.tables;
        counters::name(&self.snapshot, rules, backends, &mut []);
    }
}

/// Returns the hash of a packet's whole tuple, if the distribution mode includes less. The outer
/// source port is derived from it, so that the fabric spreads the flows of one client.
#[inline(never)]
pub(super) fn full_hash(snapshot: &Snapshot<'_>, packet: &Packet) -> u64 {
    snapshot.hash(packet, u64::MAX)
}
