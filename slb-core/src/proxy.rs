//! The proxy, a bump in the wire between clients and backends that translates addresses.
//!
//! ```text
//!            from a frontend port                       from the backend port
//!  classify  where are the headers, what is the connection's key?
//!                                            (asks for the line of the index)
//!  look up                                   (asks for the line of the connection)
//!  translate known: VIP and frontend port               known: the other way round, and out of
//!            become the backend's address and port,     the frontend port that it came by
//!            and out of the backend port
//!            new: as the rule says                      new: as it is
//! ```
//!
//! Link headers and TTLs do not change, so neighbours on the two sides see each other. A packet to
//! a backend with a [next hop](crate::spec::Backend::next_hop) goes to that MAC address. Packets
//! that are not for a service cross unchanged. With several frontend ports, a backend's packet
//! without a connection goes to the port with its destination address, or to all of them.
//!
//! TCP sessions stay with their backend even if it is removed from the configuration; a failed probe ends them if their
//! rule has `tcp_reset`. If a backend is unhealthy or removed, flows of other protocols go to another backend with the
//! client's next packet; a draining backend keeps them. The stages are those of the [host agent](crate::host).

mod role;

use core::fmt;
use core::ops::Deref;

use crate::counters::CounterMemory;
use crate::fragments::FragmentRoom;
use crate::frame::{BURST, Burst, Frame};
use crate::key::Key;
use crate::limit::SourceLimiter;
use crate::link::Link;
use crate::list::{Entry, Filter, Listed};
use crate::mem::Memory;
use crate::nat::pipeline::{Lane, Pipeline, PlainLane};
use crate::nat::{Direction, Links, NatOptions, NatTable, NatTables};
use crate::observe::Observe;
use crate::snapshot::{BackendKey, Rejected, RoleError, RuleKey, Snapshot};
use crate::state::{Age, Cursor, Exported, Imported, StateError};
use crate::stats::{BackendCounters, RuleCounters, Stats};
use crate::steer::Share;
use crate::time::Instant;
use crate::verdict::PortId;
pub(crate) use role::ProxyRole;

/// A proxy: see the [module](self).
///
/// `S` is the type that holds the snapshot: `&Snapshot`, `Arc<Snapshot>`, or the caller's own. The
/// snapshot's spec has to have [`proxy`](crate::spec::Spec::proxy) ports.
pub struct Proxy<'m, S> {
    pipeline: Pipeline<'m, S>,
    lanes: [Lane; BURST],
    plain: [PlainLane; BURST],
    /// The port of the last frame, and its direction.
    last: Option<(PortId, Direction)>,
}

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Proxy<'m, S> {
    /// Makes a proxy with the given tables.
    ///
    /// # Errors
    /// The snapshot's spec has no [`proxy`](crate::spec::Spec::proxy) ports.
    pub fn new(snapshot: S, tables: NatTables<'m>, options: NatOptions) -> Result<Self, RoleError> {
        snapshot.check_role(true)?;
        Ok(Self {
            pipeline: Pipeline::new(snapshot, tables, options),
            lanes: [Lane::EMPTY; BURST],
            plain: [PlainLane::EMPTY; BURST],
            last: None,
        })
    }

    /// Makes a proxy for up to `connections` connections of each family, with a table of fragments,
    /// and with counters for the snapshot and as many further rules and backends.
    ///
    /// # Errors
    /// The memory is used up, or the snapshot's spec has no [`proxy`](crate::spec::Spec::proxy)
    /// ports.
    pub fn build(
        snapshot: S,
        connections: usize,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Result<Self, RoleError> {
        let tables = Self::tables(&snapshot, connections, key, memory).ok_or(RoleError::Memory)?;
        Self::new(snapshot, tables, NatOptions::default())
    }

    fn tables(
        snapshot: &Snapshot<'_>,
        connections: usize,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Option<NatTables<'m>> {
        let mut tables = NatTables::build(snapshot, connections, key, memory)?;
        tables.links = Links {
            ipv4: memory.take(connections, Link::NONE)?,
            ipv6: memory.take(connections, Link::NONE)?,
        };
        Some(tables)
    }

    /// Sets the options.
    #[must_use]
    pub fn with_options(mut self, options: NatOptions) -> Self {
        self.pipeline.set_options(options);
        self
    }

    /// Adds a limit on the new connections of each source from outside. Above it, their first packets are dropped.
    #[must_use]
    pub fn with_source_limit(mut self, limiter: SourceLimiter<'m>) -> Self {
        self.pipeline.sources = limiter;
        self
    }

    /// Changes the options. A limit with the same rate keeps its present level; a changed one starts full.
    pub fn set_options(&mut self, options: NatOptions) {
        self.pipeline.set_options(options);
    }

    /// Replaces the limit on the new connections of each source, and returns the old one. A limiter without buckets
    /// limits nothing.
    pub fn replace_source_limit(&mut self, limiter: SourceLimiter<'m>) -> SourceLimiter<'m> {
        core::mem::replace(&mut self.pipeline.sources, limiter)
    }

    /// Adds room for later fragments that arrive before their first one. [`advance`](Self::advance) sends them on.
    #[must_use]
    pub fn with_fragment_room(mut self, room: FragmentRoom<'m>) -> Self {
        self.pipeline.room = room;
        self
    }

    /// Sets the verdict of each of `frames`, and rewrites those of connections in place.
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
            lanes,
            plain,
            last,
        } = self;
        pipeline.set_clock(now);
        for (burst, frames) in frames.chunks_mut(BURST).enumerate() {
            let seen = &mut crate::observe::From {
                first: burst * BURST,
                seen,
            };
            pipeline.process::<ProxyRole, true>(frames, (lanes, plain), last, seen);
        }
    }

    /// Ends expired connections and releases waiting fragments, like
    /// [`Host::advance`](crate::Host::advance).
    pub fn advance(&mut self, now: Instant, spare: &mut Burst<'_>) {
        let now = self.pipeline.set_clock(now);
        let used = self.pipeline.sweep::<ProxyRole>(now, spare);
        self.pipeline
            .release::<ProxyRole>(&mut self.lanes, spare, used);
    }

    /// Returns true if every rule and backend of a snapshot has counters here.
    pub fn has_counters_for(&self, snapshot: &Snapshot<'_>) -> bool {
        self.pipeline.has_counters_for(snapshot)
    }

    /// Moves the counters and their values into other memory, and returns the old memory. Values
    /// without room in `counters` are lost.
    pub fn replace_counters(&mut self, counters: CounterMemory<'m>) -> CounterMemory<'m> {
        self.pipeline.replace_counters(counters)
    }

    /// Installs another snapshot, built with the present one as its predecessor, and returns the
    /// old one, which is no longer used. No TCP connection moves; other flows of backends that are
    /// unhealthy or gone move with their next packet.
    ///
    /// # Errors
    /// The snapshot does not [follow](Snapshot::follows) the present one, which stays.
    ///
    /// # Cost
    /// Proportional to the backends and rules.
    pub fn install(&mut self, snapshot: S) -> Result<S, Rejected<S>> {
        let old = self.pipeline.install(snapshot)?;
        self.last = None;
        Ok(old)
    }

    /// Gives the connections that match a [filter](Filter) to `each`, beginning at a slot, and returns the slot to
    /// continue at. `each` also gets the slot, and returns true if it has room for another. Times are relative to the
    /// last call of `process` or `advance`.
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
        self.pipeline.list::<ProxyRole>(from, most, filter, each)
    }

    /// Writes connections as [records](crate::state) to the beginning of `into`, beginning at a slot, and returns the
    /// slot to continue at. Times are relative to the last call of `process` or `advance`.
    ///
    /// A connection never changes its slot, so each one that exists from the first call to the last is exported exactly
    /// once.
    ///
    /// # Cost
    /// [`EXPORT_STEP`](crate::state::EXPORT_STEP) places at most.
    pub fn export(&self, from: Cursor, into: &mut [u8]) -> Exported {
        self.pipeline.export::<ProxyRole>(None, from, into)
    }

    /// Takes over connections that were exported earlier. Existing connections do not change.
    ///
    /// # Errors
    /// The bytes are not complete records as [`export`](Self::export) writes them; nothing is taken
    /// over.
    ///
    /// # Cost
    /// Two passes over `records`. To bound the time of a call, give the records in parts.
    pub fn import(
        &mut self,
        now: Instant,
        age: Age,
        records: &[u8],
    ) -> Result<Imported, StateError> {
        self.pipeline.import::<ProxyRole>(now, age, records, None)
    }

    /// Takes over the connections of one of several workers, as [`import`](Self::import) does for
    /// all. Give all records to each worker: it skips those of the others. The first worker counts
    /// unreadable records.
    ///
    /// # Errors
    /// The same errors as of [`import`](Self::import).
    pub fn import_share(
        &mut self,
        now: Instant,
        age: Age,
        records: &[u8],
        share: Share<'_>,
    ) -> Result<Imported, StateError> {
        self.pipeline
            .import::<ProxyRole>(now, age, records, Some(share))
    }

    /// Takes up unknown TCP sessions that began before now. A client's segment under a rule with
    /// the Maglev scheduler leads to the backend of its slot, which has the session unless the
    /// backends have changed since the session began. For each rule this ends after its idle
    /// timeout.
    ///
    /// Call this when a proxy starts without the state of its predecessor, or with a [stale](Age::is_stale)
    /// state.
    ///
    /// Servers' segments do not take sessions up, since they may also answer a client that talks to
    /// the server's own address. Sessions under other schedulers and sessions of rules with
    /// `source_nat` are not taken up.
    pub fn take_up(&mut self, now: Instant) {
        self.pipeline.begin_take_up(now);
    }

    /// Returns the installed snapshot.
    pub fn snapshot(&self) -> &Snapshot<'s> {
        &self.pipeline.snapshot
    }

    /// Returns the counters since the proxy was made.
    pub fn stats(&self) -> Stats {
        self.pipeline.stats()
    }

    /// Returns the connections of the proxy.
    pub fn connections(&self) -> &NatTable<'m> {
        &self.pipeline.tables.connections
    }

    /// Returns the counters of a rule, by its name or its index in
    /// [`Spec::rules`](crate::spec::Spec::rules); `None` if there is no such rule, or no memory for
    /// its counters. The indexes after balancing rules belong to inbound NAT, port by port.
    pub fn rule_counters(&self, rule: impl RuleKey) -> Option<RuleCounters> {
        self.pipeline.rule_counters(rule)
    }

    /// Returns the counters of a backend, by its id, or by its pool's name and its own:
    /// `"pool/backend"` or `("pool", "backend")`. `None` if there is no such backend, or no memory
    /// for its counters.
    pub fn backend_counters(&self, backend: impl BackendKey) -> Option<BackendCounters> {
        self.pipeline.backend_counters(backend)
    }
}

#[cfg(feature = "alloc")]
impl<'s, S: Deref<Target = Snapshot<'s>>> Proxy<'static, S> {
    /// Makes a proxy like [`build`](Self::build), in boxes.
    ///
    /// # Errors
    /// The snapshot's spec has no [`proxy`](crate::spec::Spec::proxy) ports.
    pub fn with_capacity(snapshot: S, connections: usize, key: Key) -> Result<Self, RoleError> {
        Self::build(snapshot, connections, key, &mut crate::mem::Boxes)
    }
}

impl<S> fmt::Debug for Proxy<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("stats", &self.pipeline.stats)
            .finish_non_exhaustive()
    }
}
