//! The fast path through the mux, for nearly all packets: unfragmented TCP and UDP packets without
//! unusual headers, which match a VIP and a rule with an existing backend.
//!
//! The stages are the mux's, with lanes of one cache line each. A frame that needs anything else
//! leaves them unchanged:
//!
//! | what is found | where it goes on |
//! |---|---|
//! | headers that are not plain, no rule, a source that no host has and no flow table | the slow path, from its first stage on |
//! | a new, half-open or closing flow, a SYN, FIN or RST of a pinned one, a backend that is gone or suspect, too few hops, too long a packet, no headroom | the slow path's last stage |
//!
//! So the slow path makes all decisions, and the fast path only handles certain cases. Both paths
//! finish frames in order, and observers see the same steps.

mod classify;
mod lane;
mod send;
mod services;

use core::ops::Deref;

use self::classify::Classifier;
use self::lane::{ABSENT, Kind, Lane, Words};
use self::send::Sender;
use self::services::Services;
use super::pin::{Changes, Pinner};
use super::{Chosen, Forwarder, MuxTables, Pipeline, Run};
use crate::flow::table::{Found, Probe};
use crate::flow::{FlowState, FlowTable};
use crate::frame::{BURST, Frame};
use crate::hash::{Hasher, Xxh3};
use crate::observe::{FlowStep, From, Observe, Step};
use crate::snapshot::Snapshot;
use crate::verdict::DropReason;

/// The memory of the fast path.
pub(super) struct Workspace {
    lanes: [Lane; BURST],
    ipv4: Services<u64>,
    ipv6: Services<[u64; 4]>,
}

impl Workspace {
    pub(super) const EMPTY: Self = Self {
        lanes: [Lane::EMPTY; BURST],
        ipv4: Services::EMPTY,
        ipv6: Services::EMPTY,
    };

    /// Clears everything that depends on the snapshot, before another one is installed.
    pub(super) fn forget_services(&mut self) {
        (self.ipv4, self.ipv6) = (Services::EMPTY, Services::EMPTY);
    }
}

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Sets the verdict of each frame of a burst.
    #[inline]
    pub(super) fn process_burst(
        &mut self,
        frames: &mut [Frame<'_>],
        workspace: &mut Workspace,
        long: &mut [super::Lane; BURST],
        seen: &mut impl Observe,
    ) {
        let Workspace { lanes, ipv4, ipv6 } = workspace;
        let lanes = lanes.get_mut(..frames.len()).unwrap_or_default();
        self.classify_plain(frames, lanes, (ipv4, ipv6), seen);
        let before = self.tables.flows.as_ref().map(|flows| {
            look_up(flows, lanes);
            Changes::of(flows)
        });
        let mut next = 0;
        loop {
            let rest = frames.get_mut(next..).unwrap_or_default();
            let lanes = lanes.get_mut(next..).unwrap_or_default();
            let Some(lane) = lanes.first() else {
                return;
            };
            next += match lane.kind() {
                Kind::Ipv4 => self.send_run::<u64>(rest, lanes, before.as_ref(), next, seen),
                Kind::Ipv6 => self.send_run::<[u64; 4]>(rest, lanes, before.as_ref(), next, seen),
                Kind::Long => {
                    let is_long = |lane: &&Lane| lane.kind() == Kind::Long;
                    let count = lanes.iter().take_while(is_long).count();
                    let rest = rest.get_mut(..count).unwrap_or_default();
                    self.process_long(rest, long, &mut From { first: next, seen });
                    count
                }
            };
        }
    }

    /// Stage 1: parses each frame, finds its rule and hashes its tuple, into the lane with the
    /// frame's index.
    #[inline]
    fn classify_plain(
        &self,
        frames: &[Frame<'_>],
        lanes: &mut [Lane],
        (of_ipv4, of_ipv6): (&mut Services<u64>, &mut Services<[u64; 4]>),
        seen: &mut impl Observe,
    ) {
        for frame in frames {
            frame.prefetch();
        }
        let classifier = Classifier {
            snapshot: &self.snapshot,
            hasher: match self.snapshot.hasher {
                Hasher::Xxh3(hasher) => hasher,
                _ => Xxh3::new(0), // and no service has slots
            },
            flows: self.tables.flows.as_ref(),
        };
        let mut next = 0;
        while next < frames.len() {
            let ipv4 = classifier.take_run(frames, lanes, next, of_ipv4, seen);
            let ipv6 = classifier.take_run(frames, lanes, ipv4, of_ipv6, seen);
            if ipv6 == next
                && let (Some(frame), Some(lane)) = (frames.get(next), lanes.get_mut(next))
            {
                classifier.take_other(frame, lane, next, (of_ipv4, of_ipv6), seen);
            }
            next = ipv6.max(next + 1);
        }
    }

    /// Stage 3: sends frames of one family up to the first that cannot be sent, and gives that one
    /// its verdict. Returns the number of frames with verdicts.
    #[inline]
    fn send_run<A: Words>(
        &mut self,
        frames: &mut [Frame<'_>],
        lanes: &mut [Lane],
        before: Option<&Changes>,
        first: usize,
        seen: &mut impl Observe,
    ) -> usize {
        let (count, unsent) = match before {
            Some(before) => self.send_pinned::<A>(frames, lanes, before, first, seen),
            None => self.send_unpinned::<A>(frames, lanes, first, seen),
        };
        let Some(chosen) = unsent else {
            return count;
        };
        if let (Some(frame), Some(lane)) = (frames.get_mut(count), lanes.get(count)) {
            self.refuse_plain::<A>(frame, lane, chosen, first + count, seen);
        }
        count + 1
    }

    /// Stage 3 without a table: sends frames to Maglev's choice, up to the first that cannot be
    /// sent. Returns the number of sent frames, and the choice for that one.
    #[inline(never)] // a separate loop has all registers for itself
    fn send_unpinned<A: Words>(
        &mut self,
        frames: &mut [Frame<'_>],
        lanes: &[Lane],
        first: usize,
        seen: &mut impl Observe,
    ) -> (usize, Option<Chosen>) {
        let snapshot = &*self.snapshot;
        let MuxTables {
            rules, backends, ..
        } = &mut self.tables;
        let mut sender = Sender::new(snapshot, rules, backends);
        let mut unsent = None;
        for (frame, lane) in frames.iter_mut().zip(lanes) {
            if lane.run != sender.run {
                if lane.kind() != A::KIND {
                    break;
                }
                sender.turn_to(lane.run);
            }
            let Some((index, backend)) = sender.chosen(lane) else {
                unsent = Some(Err(DropReason::NoBackend));
                break;
            };
            let place = sender.place(first);
            if !sender.send::<A>(frame, lane, backend) {
                unsent = Some(Ok(index));
                break;
            }
            sender.note_flags(lane.flags);
            seen.step(place, Step::Selected(index));
            seen.step(place, Step::Done(frame.verdict()));
        }
        (sender.finish(&mut self.stats), unsent)
    }

    /// Stage 3 with a table: sends frames to the backends of their flows, up to the first that
    /// cannot be sent. Returns the number of sent frames, and the choice for that one.
    #[inline(never)] // as `send_unpinned`
    fn send_pinned<A: Words>(
        &mut self,
        frames: &mut [Frame<'_>],
        lanes: &mut [Lane],
        before: &Changes,
        first: usize,
        seen: &mut impl Observe,
    ) -> (usize, Option<Chosen>) {
        let Self {
            snapshot,
            tables,
            clock,
            generations,
            sources,
            stats,
            ..
        } = self;
        let snapshot: &Snapshot<'_> = snapshot;
        let MuxTables {
            flows: Some(flows),
            rules,
            backends,
            ..
        } = tables
        else {
            return (0, Some(Err(DropReason::NoBackend)));
        };
        // An insertion by an earlier frame of the burst may have moved a later frame's flow.
        let mut is_stale = Changes::of(flows) != *before;
        let mut sender = Sender::new(snapshot, rules, backends);
        let mut unsent = None;
        for (frame, lane) in frames.iter_mut().zip(lanes) {
            if lane.run != sender.run {
                if lane.kind() != A::KIND {
                    break;
                }
                sender.turn_to(lane.run);
            }
            if is_stale {
                look_again::<A>(flows, lane);
            }
            let place = sender.place(first);
            let (index, backend) = match sender.established::<A>(flows, lane) {
                Some((index, backend)) => {
                    let hit = FlowStep::Hit(FlowState::Established);
                    seen.step(place, Step::Flow(hit));
                    (index, Some(backend))
                }
                None => {
                    let pinner = Pinner {
                        snapshot,
                        flows,
                        rules: sender.rules,
                        backends: sender.backends,
                        sources,
                        before,
                        since: (generations, clock),
                    };
                    let chosen =
                        pin_otherwise::<A>(pinner, lane, sender.first_backend, place, seen);
                    is_stale = Changes::of(flows) != *before;
                    match chosen {
                        Ok(index) => (index, snapshot.backend(index)),
                        Err(reason) => {
                            unsent = Some(Err(reason));
                            break;
                        }
                    }
                }
            };
            let is_sent = backend.is_some_and(|backend| sender.send::<A>(frame, lane, backend));
            if !is_sent {
                unsent = Some(Ok(index));
                break;
            }
            sender.note_flags(lane.flags);
            seen.step(place, Step::Selected(index));
            seen.step(place, Step::Done(frame.verdict()));
        }
        (sender.finish(stats), unsent)
    }

    /// Sets the verdict of a frame that was not sent.
    #[cold]
    fn refuse_plain<A: Words>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        chosen: Chosen,
        place: usize,
        seen: &mut impl Observe,
    ) {
        let mut long = lane.unpack::<A>();
        long.len = frame.len() as u32;
        self.stats.received.add(frame.len());
        let mut forwarder = Forwarder {
            snapshot: &self.snapshot,
            rules: &mut self.tables.rules,
            backends: &mut self.tables.backends,
            limits: &mut self.limits,
            stats: &mut self.stats,
            run: Run::default(),
        };
        let seen = &mut From { first: place, seen };
        forwarder.forward(frame, &long, chosen, seen);
        forwarder.finish();
    }
}

/// Finds, pins or moves the flow of a packet on the slow path, unless the flow is and stays
/// established. Returns the index of its backend.
#[inline(never)]
fn pin_otherwise<A: Words>(
    pinner: Pinner<'_, '_, '_>,
    lane: &Lane,
    first_backend: u32,
    place: usize,
    seen: &mut impl Observe,
) -> Chosen {
    let mut long = lane.unpack::<A>();
    long.first_backend = first_backend;
    long.flow_hash = A::table(pinner.flows).hash(&lane.key::<A>());
    pinner.backend(&long, &mut From { first: place, seen })
}

/// Stage 2: looks up the flow of each lane in its primary bucket, then flows that may be displaced
/// in their secondary buckets.
#[inline]
fn look_up(flows: &FlowTable<'_>, lanes: &mut [Lane]) {
    // One bit for each lane.
    let mut displaced = 0u64;
    for (bit, lane) in lanes.iter_mut().enumerate() {
        let may_be_displaced = match lane.kind() {
            Kind::Ipv4 => look::<u64>(flows, lane),
            Kind::Ipv6 => look::<[u64; 4]>(flows, lane),
            Kind::Long => false,
        };
        if may_be_displaced {
            displaced |= 1 << bit;
        }
    }
    while displaced != 0 {
        if let Some(lane) = lanes.get_mut(displaced.trailing_zeros() as usize) {
            match lane.kind() {
                Kind::Ipv4 => look_in_secondary::<u64>(flows, lane),
                Kind::Ipv6 => look_in_secondary::<[u64; 4]>(flows, lane),
                Kind::Long => {}
            }
        }
        displaced &= displaced - 1;
    }
}

/// Looks up a lane's flow in its primary bucket. Returns true if it may be in the secondary bucket.
#[inline(always)] // one loop for each burst
fn look<A: Words>(flows: &FlowTable<'_>, lane: &mut Lane) -> bool {
    match A::table(flows).established(lane.bucket, &lane.key()) {
        Some(place) => {
            lane.place = place;
            false
        }
        None => look_closely::<A>(flows, lane),
    }
}

/// Looks up a flow that is not established, or not in its primary bucket.
#[inline(never)]
fn look_closely<A: Words>(flows: &FlowTable<'_>, lane: &mut Lane) -> bool {
    let (table, key) = (A::table(flows), lane.key());
    lane.place = ABSENT;
    match table.probe_bucket(lane.bucket, &key) {
        Probe::Found(found) => {
            lane.place = found.parts().1;
            false
        }
        Probe::Absent => false,
        probe => {
            // The secondary bucket will be read.
            table.prefetch_secondary(table.hash(&key));
            probe == Probe::Displaced
        }
    }
}

fn look_in_secondary<A: Words>(flows: &FlowTable<'_>, lane: &mut Lane) {
    let (table, key) = (A::table(flows), lane.key());
    (lane.bucket, lane.place) = match table.probe_secondary(table.hash(&key), &key) {
        Some(found) => found.parts(),
        None => (lane.bucket, ABSENT),
    };
}

/// Looks up a flow again that was found before the table changed.
#[inline(never)]
fn look_again<A: Words>(flows: &FlowTable<'_>, lane: &mut Lane) {
    if lane.place != ABSENT {
        let (table, key) = (A::table(flows), lane.key());
        let found = table.find(&key);
        (lane.bucket, lane.place) = found.map_or((lane.bucket, ABSENT), Found::parts);
    }
}
