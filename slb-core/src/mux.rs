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
//! decisions. Frames that it cannot handle go through the stages of `pipeline`, the last of which is
//! in `forward`.
//!
//! Without a flow table, or if it is full, Maglev alone picks the backend; every mux picks the same
//! one.

mod forward;
mod list;
mod options;
mod pin;
mod pipeline;
mod plain;
mod public;
mod returning;
mod state;
mod unusual;

use core::fmt;
use core::ops::Deref;

use self::forward::{Chosen, Forwarder, Run};
use self::pipeline::{Lane, Pipeline};
use crate::counters::{self, CounterMemory, CounterSizes};
use crate::flow::FlowTable;
use crate::fragments::{FragmentRoom, FragmentTable};
use crate::frame::{BURST, Burst, Frame};
use crate::key::Key;
use crate::limit::{Limits, SourceLimiter};
use crate::list::{Entry, Filter, Listed};
use crate::mem::{Mem, Memory};
use crate::observe::{From, Observe};
use crate::snapshot::owners::Generations;
use crate::snapshot::{BackendKey, Rejected, RoleError, RuleKey, Snapshot};
use crate::state::{Age, Cursor, Exported, Imported, StateError};
use crate::stats::{BackendCounters, RuleCounters, Stats};
use crate::time::{Clock, Instant};

pub use self::options::MuxOptions;

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
        let CounterSizes {
            rules, backends, ..
        } = CounterMemory::size_for(snapshot);
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
