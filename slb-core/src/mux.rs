//! The mux, which sends packets for VIPs to their backends in VXLAN and passes all others.
//!
//! A burst goes through three stages, each a loop over all its frames, so that one stage can
//! prefetch the cache lines that the next one reads:
//!
//! ```text
//!  classify -> where are the headers, which rule takes the packet, what is its hash
//!                                      (asks for the line of its flow, or of its Maglev slot)
//!  look up  -> where is its flow       (asks for the line of its other bucket, rarely)
//!  forward  -> which backend: the flow's, or Maglev's; its outer header in front; counters
//! ```
//!
//! Between the stages a frame is a `Lane`. A frame leaves early by getting its verdict: passed,
//! answered, or dropped with a reason.
//!
//! Nearly all frames take the fast path (`plain`), which has the same stages and makes the same
//! decisions. Frames that it cannot handle continue here.
//!
//! Without a flow table, or if it is full, Maglev alone picks the backend; every mux picks the same
//! one.

mod list;
mod pin;
mod plain;
mod returning;
mod state;
mod unusual;

use core::fmt;
use core::ops::Deref;

use self::pin::{Changes, Pinner};
use self::unusual::{refuse, report};
use crate::counters::{self, CounterMemory};
use crate::flow::FlowTable;
use crate::flow::table::Probe;
use crate::fragments::{FragmentRoom, FragmentTable};
use crate::frame::{BURST, Burst, Frame};
use crate::key::Key;
use crate::limit::SourceLimiter;
use crate::limit::{Limits, Rates};
use crate::list::{Entry, Filter, Listed};
use crate::mem::{Mem, Memory};
use crate::observe::{From, Observe, Step};
use crate::packet::{Packet, Read, ends_of_bad};
use crate::snapshot::owners::Generations;
use crate::snapshot::{BackendKey, Rejected, RoleError, RuleKey, RuleMatch, Snapshot};
use crate::state::{Age, Cursor, Exported, Imported, StateError};
use crate::stats::{BackendCounters, Count, RuleCounters, Stats};
use crate::time::{Clock, Instant};
use crate::verdict::{DropReason, Verdict};

/// Options of a mux. Each kind of packet that a mux generates has its own limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MuxOptions {
    /// Sustained rate of echo replies per second. Zero, here and for the other kinds: none are
    /// sent.
    pub answers_per_second: u32,
    /// Burst size for echo replies.
    pub answers_at_once: u32,
    /// Sustained rate of "packet too big" (ICMPv6) and "fragmentation needed" (ICMP) per second.
    pub too_big_per_second: u32,
    /// Burst size for "packet too big" and "fragmentation needed".
    pub too_big_at_once: u32,
    /// Sustained rate of other ICMP errors per second.
    pub errors_per_second: u32,
    /// Burst size for other ICMP errors.
    pub errors_at_once: u32,
    /// Sustained rate of RSTs per second.
    pub resets_per_second: u32,
    /// Burst size for RSTs.
    pub resets_at_once: u32,
}

impl MuxOptions {
    fn rates(&self) -> Rates {
        Rates {
            echoes: (self.answers_per_second, self.answers_at_once),
            too_big: (self.too_big_per_second, self.too_big_at_once),
            errors: (self.errors_per_second, self.errors_at_once),
            resets: (self.resets_per_second, self.resets_at_once),
            passed: (0, 0), // only hosts pass packets on or take connections up
            taken_up: (0, 0),
        }
    }
}

impl Default for MuxOptions {
    fn default() -> Self {
        Self {
            answers_per_second: 1000,
            answers_at_once: 100,
            too_big_per_second: 1000,
            too_big_at_once: 100,
            errors_per_second: 1000,
            errors_at_once: 100,
            resets_per_second: 10_000,
            resets_at_once: 1000,
        }
    }
}

/// Tables of a mux. All are optional.
#[derive(Debug)]
pub struct MuxTables<'m> {
    /// The flow table; `None` makes the mux stateless.
    pub flows: Option<FlowTable<'m>>,
    /// The ports of first fragments. With `None`, later fragments that need ports are dropped.
    pub fragments: Option<FragmentTable<'m>>,
    /// Counters by [`CompiledRule::slot`](crate::snapshot::CompiledRule::slot); rules beyond its end are not counted.
    pub rules: Mem<'m, RuleCounters>,
    /// Counters by [`BackendId::slot`](crate::snapshot::BackendId::slot); backends beyond its end are not counted.
    pub backends: Mem<'m, BackendCounters>,
}

/// A multiplexer: see the [module](self).
///
/// `S` is the type that holds the snapshot: `&Snapshot`, `Arc<Snapshot>`, or the caller's own.
pub struct Mux<'m, S> {
    pipeline: Pipeline<'m, S>,
    plain: plain::Workspace,
    lanes: [Lane; BURST],
}

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Mux<'m, S> {
    /// Makes a mux with the given tables.
    ///
    /// # Errors
    /// The snapshot is a proxy's.
    pub fn new(snapshot: S, tables: MuxTables<'m>, options: MuxOptions) -> Result<Self, RoleError> {
        snapshot.check_role(false)?;
        let mut pipeline = Pipeline {
            generations: Generations::new(snapshot.generation(), Instant::ZERO),
            snapshot,
            tables,
            clock: Clock::default(),
            limits: Limits::new(&options.rates()),
            sources: SourceLimiter::none(),
            room: FragmentRoom::none(),
            stats: Stats::default(),
        };
        pipeline.name_counters();
        Ok(Self {
            pipeline,
            plain: plain::Workspace::EMPTY,
            lanes: [Lane::EMPTY; BURST],
        })
    }

    /// Sets the options.
    #[must_use]
    pub fn with_options(mut self, options: MuxOptions) -> Self {
        self.pipeline.limits = Limits::new(&options.rates());
        self
    }

    /// Adds a limit on the new flows of each source. Above it, SYNs are dropped; packets that may belong to a flow that
    /// began elsewhere go to Maglev's choice, and are not pinned. Has no effect without a flow table.
    #[must_use]
    pub fn with_source_limit(mut self, limiter: SourceLimiter<'m>) -> Self {
        self.pipeline.sources = limiter;
        self
    }

    /// Changes the options. A limit with the same rate keeps its present level; a changed one starts full.
    pub fn set_options(&mut self, options: MuxOptions) {
        self.pipeline.limits.set_rates(&options.rates());
    }

    /// Replaces the limit on the new flows of each source, and returns the old one. A limiter without buckets limits
    /// nothing.
    pub fn replace_source_limit(&mut self, limiter: SourceLimiter<'m>) -> SourceLimiter<'m> {
        core::mem::replace(&mut self.pipeline.sources, limiter)
    }

    /// Adds room for later fragments that arrive before their first one. [`release`](Self::release)
    /// sends them on.
    #[must_use]
    pub fn with_fragment_room(mut self, room: FragmentRoom<'m>) -> Self {
        self.pipeline.room = room;
        self
    }

    /// Sets the verdict of each of `frames`, and rewrites those to be sent in place.
    pub fn process(&mut self, now: Instant, frames: &mut [Frame<'_>]) {
        self.process_observed(now, frames, &mut ());
    }

    /// Does the same as [`process`](Self::process), and shows every step to an observer.
    pub fn process_observed(
        &mut self,
        now: Instant,
        frames: &mut [Frame<'_>],
        seen: &mut impl Observe,
    ) {
        let Self {
            pipeline,
            plain,
            lanes,
        } = self;
        pipeline.advance(now);
        for (burst, frames) in frames.chunks_mut(BURST).enumerate() {
            let seen = &mut From {
                first: burst * BURST,
                seen,
            };
            pipeline.process_burst(frames, plain, lanes, seen);
        }
    }

    /// Processes `frames` without the fast path for plain packets. Tests show that the result is
    /// the same.
    #[doc(hidden)]
    pub fn process_the_long_way(
        &mut self,
        now: Instant,
        frames: &mut [Frame<'_>],
        seen: &mut impl Observe,
    ) {
        let Self {
            pipeline, lanes, ..
        } = self;
        pipeline.advance(now);
        for (burst, frames) in frames.chunks_mut(BURST).enumerate() {
            let seen = &mut From {
                first: burst * BURST,
                seen,
            };
            pipeline.process_long(frames, lanes, seen);
        }
    }

    /// Expires idle flows. Call it about 20 times a second while `process` is not called.
    pub fn advance(&mut self, now: Instant) {
        self.pipeline.advance(now);
    }

    /// Releases fragments whose first one has arrived, and drops those that waited too long. Empty frames of `spare`
    /// become those fragments, each with its verdict; the others stay empty. If the mux has [room for
    /// fragments](Self::with_fragment_room), call this before or after each burst, and a few times a second without
    /// packets. [`Dataplane::advance`](crate::Dataplane::advance) does this too.
    pub fn release(&mut self, now: Instant, spare: &mut Burst<'_>) {
        self.pipeline.advance(now);
        self.pipeline.release(&mut self.lanes, spare);
    }

    /// Returns true if every rule and backend of a snapshot has counters here.
    pub fn has_counters_for(&self, snapshot: &Snapshot<'_>) -> bool {
        let MuxTables {
            rules, backends, ..
        } = &self.pipeline.tables;
        snapshot.rule_slots() <= rules.len() && snapshot.backend_slots() <= backends.len()
    }

    /// Moves the counters and their values into other memory, and returns the old memory. Values
    /// without room in `counters` are lost.
    pub fn replace_counters(&mut self, mut counters: CounterMemory<'m>) -> CounterMemory<'m> {
        let tables = &mut self.pipeline.tables;
        counters::replace(&mut tables.rules, &mut counters.rules);
        counters::replace(&mut tables.backends, &mut counters.backends);
        self.pipeline.name_counters();
        counters
    }

    /// Installs another snapshot, built with the present one as its predecessor, and returns the
    /// old one, which is no longer used.
    ///
    /// # Errors
    /// The snapshot does not [follow](Snapshot::follows) the present one, which stays.
    ///
    /// # Cost
    /// Proportional to the backends and rules, and to 16 KiB of remembered services.
    pub fn install(&mut self, snapshot: S) -> Result<S, Rejected<S>> {
        if let Err(error) = snapshot.check_after(&self.pipeline.snapshot) {
            return Err(Rejected { snapshot, error });
        }
        self.plain.forget_services();
        let pipeline = &mut self.pipeline;
        let (generation, now) = (snapshot.generation(), pipeline.clock.passed());
        pipeline.generations.install(generation, now);
        let old = core::mem::replace(&mut pipeline.snapshot, snapshot);
        pipeline.name_counters();
        Ok(old)
    }

    /// Gives the pinned flows that match a [filter](Filter) to `each`, beginning at a slot, and returns the slot to
    /// continue at. `each` also gets the slot, and returns true if it has room for another. Times are relative to the
    /// last call of `process` or `advance`.
    ///
    /// A flow that moves to make room for another between two calls may be missed, or given twice.
    ///
    /// # Cost
    /// At most `most` slots.
    pub fn list(
        &self,
        from: Cursor,
        most: usize,
        filter: &Filter<'_>,
        each: &mut dyn FnMut(Cursor, &Entry) -> bool,
    ) -> Listed {
        self.pipeline.list(from, most, filter, each)
    }

    /// Writes pinned flows as [records](crate::state) to the beginning of `into`, beginning at a slot, and returns the
    /// slot to continue at. Times are relative to the last call of `process` or `advance`.
    ///
    /// A flow that moves to make room for another during an export may be missed, or exported
    /// twice.
    ///
    /// # Cost
    /// [`EXPORT_STEP`](crate::state::EXPORT_STEP) places at most.
    pub fn export(&self, from: Cursor, into: &mut [u8]) -> Exported {
        self.pipeline.export(from, into)
    }

    /// Pins flows that were exported earlier. Flows that are already pinned do not change.
    ///
    /// # Errors
    /// The bytes are not complete records as [`export`](Self::export) writes them; nothing is
    /// pinned.
    ///
    /// # Cost
    /// Two passes over `records`. To bound the time of a call, give the records in parts.
    pub fn import(
        &mut self,
        now: Instant,
        age: Age,
        records: &[u8],
    ) -> Result<Imported, StateError> {
        self.pipeline.import(now, age, records)
    }

    /// Returns the installed snapshot.
    pub fn snapshot(&self) -> &Snapshot<'s> {
        &self.pipeline.snapshot
    }

    /// Returns the counters since the mux was made.
    pub fn stats(&self) -> Stats {
        let flows = self.pipeline.tables.flows.as_ref().map(FlowTable::stats);
        Stats {
            flows: flows.unwrap_or_default(),
            ..self.pipeline.stats
        }
    }

    /// Returns the counters of a rule, by its name or its index in
    /// [`Spec::rules`](crate::spec::Spec::rules); `None` if there is no such rule, or no memory for
    /// its counters. The indexes after balancing rules belong to inbound NAT, port by port, and
    /// then to frontends with SNAT ports.
    pub fn rule_counters(&self, rule: impl RuleKey) -> Option<RuleCounters> {
        let snapshot = &*self.pipeline.snapshot;
        let rule = snapshot.rule(rule.index_in(snapshot)?)?;
        self.pipeline.tables.rules.get(rule.slot()).copied()
    }

    /// Returns the counters of a backend, by its id, or by its pool's name and its own:
    /// `"pool/backend"` or `("pool", "backend")`. `None` if there is no such backend, or no memory
    /// for its counters.
    pub fn backend_counters(&self, backend: impl BackendKey) -> Option<BackendCounters> {
        let id = backend.id_in(&self.pipeline.snapshot)?;
        let counters = self.pipeline.tables.backends.get(id.slot()).copied();
        counters.filter(|c| c.id == id.get())
    }

    /// Returns the table of pinned flows.
    pub fn flows(&self) -> Option<&FlowTable<'m>> {
        self.pipeline.tables.flows.as_ref()
    }
}

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Mux<'m, S> {
    /// Makes a mux that pins up to `flows` flows of each family, or none if `flows` is zero, with a
    /// table of fragments, and with counters for the snapshot and as many further rules and
    /// backends.
    ///
    /// # Errors
    /// The memory is used up, or the snapshot is a proxy's.
    pub fn build(
        snapshot: S,
        flows: usize,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Result<Self, RoleError> {
        let tables = Self::tables(&snapshot, flows, key, memory).ok_or(RoleError::Memory)?;
        Self::new(snapshot, tables, MuxOptions::default())
    }

    fn tables(
        snapshot: &Snapshot<'_>,
        flows: usize,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Option<MuxTables<'m>> {
        const FRAGMENTS: usize = 4096;
        let (rules, backends, _) = CounterMemory::size_for(snapshot);
        Some(MuxTables {
            flows: match flows {
                0 => None,
                flows => Some(FlowTable::build(flows, flows, key, memory)?),
            },
            fragments: Some(FragmentTable::build(FRAGMENTS, key, memory)?),
            rules: memory.take(rules, RuleCounters::default())?,
            backends: memory.take(backends, BackendCounters::default())?,
        })
    }
}

#[cfg(feature = "alloc")]
impl<'s, S: Deref<Target = Snapshot<'s>>> Mux<'static, S> {
    /// Makes a mux like [`build`](Self::build), in boxes.
    ///
    /// # Errors
    /// The snapshot is a proxy's.
    pub fn with_capacity(snapshot: S, flows: usize, key: Key) -> Result<Self, RoleError> {
        Self::build(snapshot, flows, key, &mut crate::mem::Boxes)
    }

    /// Creates a mux that pins no flows, so that Maglev alone picks backends. The mux remembers
    /// fragments only.
    ///
    /// # Errors
    /// The snapshot is a proxy's.
    pub fn stateless(snapshot: S, key: Key) -> Result<Self, RoleError> {
        Self::with_capacity(snapshot, 0, key)
    }
}

impl<S> fmt::Debug for Mux<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux")
            .field("stats", &self.pipeline.stats)
            .finish_non_exhaustive()
    }
}

/// A frame on its way through the stages.
#[derive(Clone, Copy, Debug)]
struct Lane {
    packet: Packet,
    /// First the hash that chooses the backend, then the hash for the outer source port. They are
    /// equal unless the distribution mode excludes parts of the tuple.
    hash: u64,
    /// The hash of the flow table.
    flow_hash: u64,
    /// The result of the flow table's lookup.
    probe: Probe,
    /// The slot in the snapshot's Maglev tables.
    table_index: u32,
    rule: u32,
    /// The first backend of the rule's pool.
    first_backend: u32,
    /// Bytes of the frame as it arrived.
    len: u32,
    /// Index of the frame in the burst.
    frame: u8,
    /// True if the packet follows its flow without changing it: an ICMP error, with the flow's
    /// tuple in `packet`, or a later fragment.
    only_follows: bool,
}

impl Lane {
    const EMPTY: Self = Self {
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
struct Pipeline<'m, S> {
    snapshot: S,
    tables: MuxTables<'m>,
    clock: Clock,
    /// The times at which snapshots were installed.
    generations: Generations,
    limits: Limits,
    sources: SourceLimiter<'m>,
    room: FragmentRoom<'m>,
    stats: Stats,
}

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    #[inline]
    fn advance(&mut self, now: Instant) {
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
    fn process_long(
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
    fn classify<'l>(
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

    /// Decides about an IP packet with unreadable headers: it is passed, unless it is for a VIP.
    #[cold]
    fn refuse_bad(&self, frame: &Frame<'_>, reason: DropReason) -> Verdict {
        match ends_of_bad(frame.bytes()) {
            Some((_, destination)) if self.snapshot.is_vip(destination) => Verdict::Drop(reason),
            _ => Verdict::Pass,
        }
    }

    /// Sets the verdict of a frame that matches no rule.
    #[inline(never)]
    fn finish_unwanted(
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
            Ok(RuleMatch::NotVip) => self.take_back(frame, lane, seen).unwrap_or(Verdict::Pass),
            Ok(_) => Verdict::Drop(DropReason::NoRule),
            Err(verdict) => verdict,
        };
        finish(&mut self.stats, frame, lane, verdict, seen);
    }

    /// Computes the hashes for the choice of a backend, and prefetches the first cache line that it
    /// needs.
    #[inline]
    fn hash(&self, lane: &mut Lane, index: u32, seen: &mut impl Observe) {
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
    fn look_up(&mut self, lanes: &mut [Lane]) {
        if let Some(flows) = &self.tables.flows {
            pin::look_up(flows, lanes);
        }
    }

    /// Stage 3: finds each packet's backend, and prepends the backend's outer header.
    #[inline]
    fn forward(&mut self, frames: &mut [Frame<'_>], lanes: &[Lane], seen: &mut impl Observe) {
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

    fn name_counters(&mut self) {
        let MuxTables {
            rules, backends, ..
        } = &mut self.tables;
        counters::name(&self.snapshot, rules, backends, &mut []);
    }
}

/// The index of the backend that takes a packet, or the reason why none does.
type Chosen = Result<u32, DropReason>;

/// The last stage: sends frames whose backend is chosen.
struct Forwarder<'p, 's> {
    snapshot: &'p Snapshot<'s>,
    rules: &'p mut [RuleCounters],
    backends: &'p mut [BackendCounters],
    limits: &'p mut Limits,
    stats: &'p mut Stats,
    run: Run,
}

impl Forwarder<'_, '_> {
    /// Sends a frame to the backend with the index `chosen`, or drops it for the reason in
    /// `chosen`.
    #[inline]
    fn forward(
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

    fn finish(self) {
        self.run.count(self.snapshot, self.stats, self.rules);
    }
}

/// A run of packets for one rule, counted together: if each were added to the counter, each
/// addition would wait for the one before.
#[derive(Clone, Copy, Debug)]
struct Run {
    rule: u32,
    forwarded: Count,
    syns: u64,
}

impl Run {
    const fn of(rule: u32) -> Self {
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
    fn count(self, snapshot: &Snapshot<'_>, stats: &mut Stats, rules: &mut [RuleCounters]) {
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

/// Returns the hash of a packet's whole tuple, if the distribution mode includes less. The outer
/// source port is derived from it, so that the fabric spreads the flows of one client.
#[inline(never)]
fn full_hash(snapshot: &Snapshot<'_>, packet: &Packet) -> u64 {
    snapshot.hash(packet, u64::MAX)
}

/// Sets the verdict of a frame and counts it.
#[cold]
fn finish(
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
