//! The host agent, between the fabric and the vms of one machine.
//!
//! ```text
//!            from the fabric                                   from a vm
//!  classify  out of VXLAN; which vm is it for?                 which vm is it from?
//!                    where are the headers, what is the connection's key?
//!                                            (asks for the line of the index)
//!  look up                                   (asks for the line of the connection)
//!  translate known: VIP and frontend port                      known: the other way round, and
//!            become DIP and backend port, to the vm            straight to the client, or through
//!            new: as the rule says                             the mux
//!                                                              new: from a port of its own under
//!                                                              the outbound rule's address
//! ```
//!
//! Each stage is a loop over the burst, as in [`mux`](crate::mux). Established connections are
//! never forgotten before they expire. Unestablished and finished ones make room for new
//! connections; if there are none, new connections are refused and counted.

mod admit;
mod arrival;
mod call;
mod establish;
mod pass_on;
mod public;
mod role;
mod switch;
mod take_up;

use core::fmt;
use core::ops::Deref;

use self::arrival::Arrivals;
use crate::counters::CounterMemory;
use crate::fragments::FragmentRoom;
use crate::frame::{BURST, Burst, Frame};
use crate::key::Key;
use crate::limit::SourceLimiter;
use crate::list::{Entry, Filter, Listed};
use crate::mem::Memory;
use crate::nat::pipeline::{Lane, Pipeline, PlainLane};
use crate::nat::{DirectFlows, NatOptions, NatTable, NatTables};
use crate::observe::Observe;
use crate::snapshot::{BackendKey, Rejected, RoleError, RuleKey, Snapshot};
use crate::state::{Age, Cursor, Exported, Imported, StateError};
use crate::stats::{
    BackendCounters, RuleCounters, SecurityCounters, SnatCounters, Stats, VmCounters,
};
use crate::steer::Share;
use crate::time::Instant;
use crate::verdict::PortId;

pub(crate) use self::role::HostRole;

/// A host agent: see the [module](self).
///
/// `S` is the type that holds the snapshot: `&Snapshot`, `Arc<Snapshot>`, or the caller's own.
pub struct Host<'m, S> {
    pipeline: Pipeline<'m, S>,
    lanes: [Lane; BURST],
    plain: [PlainLane; BURST],
    arrivals: Arrivals,
}

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Host<'m, S> {
    /// Makes a host agent with the given tables.
    ///
    /// # Errors
    /// The snapshot is a proxy's.
    pub fn new(snapshot: S, tables: NatTables<'m>, options: NatOptions) -> Result<Self, RoleError> {
        snapshot.check_role(false)?;
        let pipeline = Pipeline::new(snapshot, tables, options);
        Ok(Self {
            pipeline,
            lanes: [Lane::EMPTY; BURST],
            plain: [PlainLane::EMPTY; BURST],
            arrivals: Arrivals::default(),
        })
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

    /// Adds a table of flows that have no connection, of vms that have [access lists](crate::spec::SecurityList).
    /// Without one, the lists are asked about each packet of these flows, so answers need a rule of their own.
    #[must_use]
    pub fn with_direct_flows(mut self, flows: DirectFlows<'m>) -> Self {
        self.pipeline.direct_flows = flows;
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
            lanes,
            plain,
            arrivals,
        } = self;
        pipeline.set_clock(now);
        for (burst, frames) in frames.chunks_mut(BURST).enumerate() {
            let seen = &mut crate::observe::From {
                first: burst * BURST,
                seen,
            };
            pipeline.process::<HostRole, true>(frames, (lanes, plain), arrivals, seen);
        }
    }

    /// Ends expired connections with RSTs to both sides, and releases fragments whose first one has arrived. Empty
    /// frames of `spare` become these RSTs and fragments, with their verdicts; the others stay empty. Call this before
    /// or after each burst, and a few times a second without packets.
    ///
    /// A call looks at a bounded number of connections, and stops when `spare` is used up. Without
    /// frames in `spare`, no RSTs are sent.
    pub fn advance(&mut self, now: Instant, spare: &mut Burst<'_>) {
        let now = self.pipeline.set_clock(now);
        let used = self.pipeline.sweep::<HostRole>(now, spare);
        self.pipeline
            .release::<HostRole>(&mut self.lanes, spare, used);
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
    /// old one, which is no longer used. Connections of removed backends, and of unhealthy ones if
    /// their rule resets, end within the next calls of [`advance`](Self::advance).
    ///
    /// # Errors
    /// The snapshot does not [follow](Snapshot::follows) the present one, which stays.
    ///
    /// # Cost
    /// Proportional to the backends and rules.
    pub fn install(&mut self, snapshot: S) -> Result<S, Rejected<S>> {
        let old = self.pipeline.install(snapshot)?;
        self.arrivals = Arrivals::default();
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
        self.pipeline.list::<HostRole>(from, most, filter, each)
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
        self.pipeline.export::<HostRole>(None, from, into)
    }

    /// Writes the connections of one vm like [`export`](Self::export), for all of the vm's
    /// backends. Another host agent takes them over with [`import`](Self::import) when the vm moves
    /// there. Returns `None` if the backend is not on this host.
    ///
    /// # Cost
    /// At most [`EXPORT_STEP`](crate::state::EXPORT_STEP) places, of all vms.
    pub fn export_vm(
        &self,
        backend: impl BackendKey,
        from: Cursor,
        into: &mut [u8],
    ) -> Option<Exported> {
        let snapshot = self.snapshot();
        let index = snapshot.backend_index(backend.id_in(snapshot)?)?;
        let zone = snapshot.nat.local_of(index)?.zone;
        Some(self.pipeline.export::<HostRole>(Some(zone), from, into))
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
        self.pipeline.import::<HostRole>(now, age, records, None)
    }

    /// Takes over the connections of one of several workers, as [`import`](Self::import) does for all. Give all records
    /// to each worker: it skips those of the others. The first worker counts unreadable records.
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
            .import::<HostRole>(now, age, records, Some(share))
    }

    /// Takes up unknown TCP connections from outside that began before now. A segment of a connection under a balancing
    /// or an inbound NAT rule reaches the vm again, and the vm's segments reach the client. If several frontend ports
    /// lead to the vm's port, the connection's slot selects one. For each rule this ends after its idle timeout, when a
    /// connection that was silent would have ended.
    ///
    /// Call this when a host agent starts without the state of its predecessor, or with a
    /// [stale](Age::is_stale) state. At other times the sender of a segment without a connection is
    /// told that there is none.
    ///
    /// Connections that vms opened, and those of rules with `source_nat`, are not taken up, since only the state has
    /// their ports.
    pub fn take_up(&mut self, now: Instant) {
        self.pipeline.begin_take_up(now);
    }

    /// Returns the installed snapshot.
    pub fn snapshot(&self) -> &Snapshot<'s> {
        &self.pipeline.snapshot
    }

    /// Returns the counters since the host agent was made.
    pub fn stats(&self) -> Stats {
        self.pipeline.stats()
    }

    /// Returns the connections of the host agent.
    pub fn connections(&self) -> &NatTable<'m> {
        &self.pipeline.tables.connections
    }

    /// Returns the counters of a rule, by its name or its index in
    /// [`Spec::rules`](crate::spec::Spec::rules); `None` if there is no such rule, or no memory for
    /// its counters. The indexes after balancing rules belong to inbound NAT, port by port, and
    /// then to frontends with SNAT ports.
    pub fn rule_counters(&self, rule: impl RuleKey) -> Option<RuleCounters> {
        self.pipeline.rule_counters(rule)
    }

    /// Returns the counters of a backend, by its id, or by its pool's name and its own:
    /// `"pool/backend"` or `("pool", "backend")`. `None` if there is no such backend, or no memory
    /// for its counters.
    pub fn backend_counters(&self, backend: impl BackendKey) -> Option<BackendCounters> {
        self.pipeline.backend_counters(backend)
    }

    /// Counters of a rule of an access list: by the index of the list in
    /// [`Spec::security_lists`](crate::spec::Spec::security_lists), and the rule's index among
    /// [all rules](crate::spec::SecurityList::all_rules) of the list. `None` where there is no such rule, no memory
    /// for its counters, or no vm of this node that has a list.
    pub fn security_counters(&self, list: usize, rule: usize) -> Option<SecurityCounters> {
        self.pipeline.security_counters(list, rule)
    }

    /// Returns the traffic of the vm at a port of this node, since the vm came to the port. `None` if there is no vm, or
    /// no memory for its counters.
    pub fn vm_counters(&self, port: PortId) -> Option<VmCounters> {
        self.pipeline.vm_counters(port)
    }

    /// Returns the SNAT counters of a backend, which is given as for
    /// [`backend_counters`](Self::backend_counters).
    pub fn snat_counters(&self, backend: impl BackendKey) -> Option<SnatCounters> {
        let id = backend.id_in(&self.pipeline.snapshot)?;
        self.backend_counters(id)?;
        self.pipeline.tables.snat.get(id.slot()).copied()
    }
}

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Host<'m, S> {
    /// Makes a host agent for up to `connections` connections of each family, with a table of
    /// fragments, and with counters for the snapshot and as many further rules and backends.
    ///
    /// # Errors
    /// The memory is used up, or the snapshot is a proxy's.
    pub fn build(
        snapshot: S,
        connections: usize,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Result<Self, RoleError> {
        let tables = NatTables::build(&snapshot, connections, key, memory);
        let tables = tables.ok_or(RoleError::Memory)?;
        Self::new(snapshot, tables, NatOptions::default())
    }
}

#[cfg(feature = "alloc")]
impl<'s, S: Deref<Target = Snapshot<'s>>> Host<'static, S> {
    /// Makes a host agent like [`build`](Self::build), in boxes.
    ///
    /// # Errors
    /// The snapshot is a proxy's.
    pub fn with_capacity(snapshot: S, connections: usize, key: Key) -> Result<Self, RoleError> {
        Self::build(snapshot, connections, key, &mut crate::mem::Boxes)
    }
}

impl<S> fmt::Debug for Host<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("stats", &self.pipeline.stats)
            .finish_non_exhaustive()
    }
}
