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
mod call;
mod establish;
mod pass_on;
mod switch;
mod take_up;

use core::fmt;
use core::net::IpAddr;
use core::ops::Deref;

use crate::counters::CounterMemory;
use crate::fragments::FragmentRoom;
use crate::frame::{BURST, Burst, Frame};
use crate::key::Key;
use crate::limit::SourceLimiter;
use crate::link::{self, Link};
use crate::list::{Entry, Filter, Listed};
use crate::mem::Memory;
use crate::nat::connection::Policy;
use crate::nat::pipeline::{
    Asked, Elsewhere, Lane, Opened, Origin, Pipeline, PlainLane, Role, Table, TakeUp, leave_through,
};
use crate::nat::tcp::Segment;
use crate::nat::{Connection, DirectFlows, Direction, NatOptions, NatTable, NatTables};
use crate::observe::{Observe, Step};
use crate::packet::{Family, Packet, Read, ends_of_bad};
use crate::snapshot::locals::NO_SENDER;
use crate::snapshot::terms::RuleKind;
use crate::snapshot::{BackendKey, Rejected, RoleError, RuleKey, RuleMatch, Snapshot};
use crate::state::{Age, Cursor, Exported, Imported, Kind, StateError};
use crate::stats::{BackendCounters, RuleCounters, SecurityCounters, SnatCounters, Stats};
use crate::steer::Share;
use crate::time::Instant;
use crate::tunnel::decapsulation::{CommonHead, CommonName, Outer, OuterName};
use crate::tunnel::encapsulation::Template;
use crate::verdict::{DropReason, PortId, Verdict};

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

/// The sender and the vm of a frame from the fabric.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    name: OuterName,
    /// The node that sent the frame; see
    /// [`Nat::sender_at`](crate::snapshot::locals::Nat::sender_at).
    sender: u32,
    /// The port of the vm.
    port: PortId,
}

impl Arrival {
    fn new(outer: &Outer, snapshot: &Snapshot<'_>) -> Result<Self, Verdict> {
        let sender = snapshot.nat.sender_at(outer.source);
        let is_mux = snapshot.nat.is_mux(sender);
        // This node does not send to itself, unless a mux runs on it too.
        if !is_mux && outer.is_from(snapshot.underlay()) {
            return Err(Verdict::Drop(DropReason::UnknownPeer));
        }
        // Only known nodes may send into a network: others could reach its vms from outside.
        let is_known = sender != NO_SENDER;
        let is_closed = || {
            let network = snapshot.nat.networks.of(outer.vni);
            snapshot.nat.has_muxes() || network.is_some()
        };
        if !is_known && is_closed() {
            return Err(Verdict::Drop(DropReason::UnknownPeer));
        }
        let vm = snapshot.nat.vm_by_mac(outer.destination, outer.vni);
        Ok(Self {
            name: outer.name(),
            sender,
            port: vm.ok_or(Verdict::Drop(DropReason::UnknownVm))?.port,
        })
    }
}

/// Known arrivals, which are valid until the snapshot changes.
#[derive(Debug)]
pub(crate) struct Arrivals {
    /// The last arrival on the slow path.
    last: Option<Arrival>,
    /// The last port of a vm.
    vm: Option<PortId>,
    /// Arrivals on the fast path, each at the [place](CommonHead::place) of its head: packets from
    /// a few muxes for a few vms alternate.
    known: [KnownArrival; 1 << ARRIVAL_BITS],
}

const ARRIVAL_BITS: u32 = 4;

#[derive(Clone, Copy, Debug)]
struct KnownArrival {
    name: CommonName,
    /// The port of the vm.
    port: PortId,
}

impl Default for Arrivals {
    fn default() -> Self {
        let none = KnownArrival {
            name: CommonName::NONE,
            port: PortId(0),
        };
        Self {
            last: None,
            vm: None,
            known: [none; 1 << ARRIVAL_BITS],
        }
    }
}

impl Arrivals {
    /// Finds the port of the vm that a frame with a common head is for.
    #[inline(always)]
    fn port_of(&mut self, head: &CommonHead<'_>, snapshot: &Snapshot<'_>) -> Option<PortId> {
        let place = &mut self.known[head.place() % (1 << ARRIVAL_BITS)];
        if !head.is(&place.name) {
            place.learn(head, snapshot)?;
        }
        Some(place.port)
    }
}

impl KnownArrival {
    #[cold]
    #[inline(never)]
    fn learn(&mut self, head: &CommonHead<'_>, snapshot: &Snapshot<'_>) -> Option<()> {
        let outer = Outer::parse_if_common(head.frame(), snapshot.underlay())?;
        let port = Arrival::new(&outer, snapshot).ok()?.port;
        let name = head.name();
        *self = Self { name, port };
        Some(())
    }
}

/// The parts of the pipeline that only a host agent has.
pub(crate) enum HostRole {}

impl Role for HostRole {
    type Last = Arrivals;
    const ROUTES: bool = true;
    const TUNNELS: bool = true;
    const SHARED: bool = false;
    const KEEPS_REMOVED: bool = false;
    const CHOOSES: bool = false;
    const RECORD: Kind = Kind::HostConnection;
    const PASSES_ON: bool = true;

    #[inline(always)]
    fn direction(
        snapshot: &Snapshot<'_>,
        frame: &Frame<'_>,
        last: &mut Self::Last,
    ) -> Option<Direction> {
        let port = frame.port();
        if port == snapshot.underlay().port {
            return Some(Direction::Inward);
        }
        if last.vm != Some(port) {
            last.vm = Some(snapshot.nat.vm_by_port(port)?.port);
        }
        Some(Direction::Outward)
    }

    #[inline(always)]
    fn inward(snapshot: &Snapshot<'_>, frame: &Frame<'_>, last: &mut Self::Last) -> Option<Origin> {
        let head = CommonHead::of(frame.bytes())?;
        Some(Origin {
            end: head.end()? as u32,
            zone: last.port_of(&head, snapshot)?,
            ecn: head.ecn(),
        })
    }

    #[inline(always)]
    fn leaves_by(snapshot: &Snapshot<'_>, zone: PortId, direction: Direction) -> Option<PortId> {
        Some(match direction {
            Direction::Inward => zone,
            Direction::Outward => snapshot.underlay().port,
        })
    }

    #[inline]
    fn arrive<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        last: &mut Self::Last,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let mut outer = None;
        if frame.port() == pipeline.snapshot.underlay().port {
            lane.direction = Direction::Inward;
            let last = &mut last.last;
            let read = decapsulate(&pipeline.snapshot, frame, lane, last, seen);
            outer = Some(match read {
                Err(Verdict::Drop(DropReason::UnknownVm)) => {
                    return Err(pipeline.follow_vm(frame, lane, seen));
                }
                read => read?,
            });
        } else {
            let vm = pipeline.snapshot.nat.vm_by_port(frame.port());
            lane.zone = vm.ok_or(Verdict::Pass)?.port;
            lane.direction = Direction::Outward;
        }
        match lane.packet.read(frame.bytes()) {
            Read::Ip => {}
            Read::Other if outer.is_some() => return Err(Verdict::Forward(lane.zone)),
            Read::Other => return Err(Verdict::Pass),
            Read::Bad(reason) => return Err(refuse_bad(&pipeline.snapshot, frame, lane, reason)),
        }
        if let Some(outer) = outer {
            let is_ipv4 = lane.packet.shape.family == Family::Ipv4;
            let ip = usize::from(lane.packet.shape.ip_offset);
            let ip = frame.bytes_mut().get_mut(ip..).unwrap_or_default();
            outer
                .pass_congestion_on(ip, is_ipv4)
                .map_err(Verdict::Drop)?;
        }
        seen.step(lane.frame.into(), Step::Parsed(lane.packet));
        if lane.packet.is_plain() {
            return Ok(());
        }
        pipeline.classify_unusual::<Self>(frame, lane, seen)
    }

    fn open<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<Opened<A>, Verdict> {
        match lane.direction {
            Direction::Inward => pipeline.inbound::<A, Self>(frame, lane, segment, seen),
            Direction::Outward => pipeline.outbound(frame, lane, segment, seen),
        }
    }

    fn elsewhere<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        asked: &Asked<'_>,
        seen: &mut impl Observe,
    ) -> Elsewhere {
        pipeline.elsewhere::<A>(frame, lane, asked, seen)
    }

    fn is_last_asked<A: Table>(
        snapshot: &Snapshot<'_>,
        lane: &Lane,
        connection: &Connection<A>,
    ) -> bool {
        pass_on::is_last_asked(snapshot, lane, connection)
    }

    fn take_up<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &Frame<'_>,
        lane: &Lane,
        segment: &Segment,
        rule: u32,
    ) -> TakeUp<A> {
        let via = match pipeline.snapshot.terms(rule) {
            Some(terms) if terms.is_private => Policy::NETWORK,
            Some(terms) if terms.through_mux => pipeline.via(frame, lane),
            _ => Policy::DIRECT,
        };
        let snapshot = &*pipeline.snapshot;
        let terms = snapshot.terms(rule);
        let local = terms.and_then(|terms| snapshot.nat.local_of_pool(terms.pool, lane.zone));
        let local = local.copied();
        pipeline.take_up_inward::<A, Self>(lane, segment, (rule, local, via))
    }

    fn via<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &Pipeline<'_, S>,
        frame: &Frame<'_>,
        lane: &Lane,
    ) -> u8 {
        pipeline.via(frame, lane)
    }

    /// Chooses the destination vm, if it is in the rule's pool and accepts new connections.
    fn choose<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &Pipeline<'_, S>,
        lane: &Lane,
        rule: u32,
        _: &mut impl Observe,
    ) -> Option<u32> {
        let snapshot = &*pipeline.snapshot;
        let terms = snapshot.terms(rule)?;
        let local = snapshot.nat.local_of_pool(terms.pool, lane.zone)?;
        let takes = terms.kind == RuleKind::Nat || snapshot.takes(terms, local.backend);
        takes.then_some(local.backend)
    }

    fn not_ours(_: &Snapshot<'_>, lane: &Lane, found: RuleMatch) -> Verdict {
        match found {
            RuleMatch::NoRule => Verdict::Drop(DropReason::NoRule),
            // The vm's own traffic, which needs no translation.
            _ => Verdict::Forward(lane.zone),
        }
    }

    #[inline]
    fn answers_directly(snapshot: &Snapshot<'_>, zone: PortId, client: IpAddr, _: IpAddr) -> bool {
        is_reached_untranslated(snapshot, zone, client)
    }

    /// Forwards a packet to the vm's own address, passes one to an address that is reached
    /// untranslated, and drops all others.
    fn unmatched(snapshot: &Snapshot<'_>, lane: &Lane, reason: DropReason) -> Verdict {
        let destination = lane.own_packet().tuple().destination;
        match lane.direction {
            Direction::Inward if !snapshot.is_vip_at(lane.zone, destination) => {
                Verdict::Forward(lane.zone)
            }
            Direction::Outward if is_reached_untranslated(snapshot, lane.zone, destination) => {
                Verdict::Pass
            }
            _ => Verdict::Drop(reason),
        }
    }

    #[inline]
    fn pass<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        seen: &mut impl Observe,
    ) -> Verdict {
        pipeline.switch(frame, lane, seen)
    }

    #[inline]
    fn deliver<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        port: PortId,
        seen: &mut impl Observe,
    ) -> Verdict {
        let is_vms = lane.direction == Direction::Inward && port == lane.zone;
        match is_vms && !pipeline.snapshot.nat.security.is_unused() {
            true => pipeline.deliver(frame, lane, port, seen),
            false => Verdict::Forward(port),
        }
    }

    #[inline]
    fn admit<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        lane: &Lane,
        connection: &Connection<A>,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        match pipeline.snapshot.nat.security.is_unused() {
            true => Ok(()),
            false => pipeline.admit_connection(lane, connection, seen),
        }
    }

    #[inline]
    fn judges(snapshot: &Snapshot<'_>, lane: &Lane) -> bool {
        !snapshot.nat.security.is_unused() && Self::has_lists(snapshot, lane)
    }

    fn neighbour_discovery(_: &Snapshot<'_>, lane: &Lane) -> Verdict {
        match lane.direction {
            Direction::Inward => Verdict::Forward(lane.zone),
            Direction::Outward => Verdict::Pass,
        }
    }

    #[inline]
    fn call<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Option<Verdict> {
        if lane.direction == Direction::Inward || !pipeline.snapshot.has_private_vips() {
            return None;
        }
        pipeline.call::<A>(frame, lane, segment, seen)
    }

    #[inline]
    fn tunnel<'a, A: Table>(
        snapshot: &'a Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
    ) -> Option<&'a Template> {
        match (direction, connection.via()) {
            (Direction::Outward, Some(_)) if connection.is_internal() => {
                let (client, _) = connection.side(Direction::Inward).addresses.unpack();
                snapshot.way_in_network(connection.zone(), client)
            }
            (Direction::Outward, Some(mux)) => Some(&snapshot.nat.mux(mux)?.template),
            _ => None,
        }
    }

    #[inline]
    fn stays<A: Table>(
        snapshot: &Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
    ) -> bool {
        direction == Direction::Outward
            && connection.is_internal()
            && call::client_here(snapshot, connection).is_some()
    }

    #[inline(always)]
    fn leave<A: Table>(
        snapshot: &Snapshot<'_>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        packet: &Packet,
        (connection, _): (&Connection<A>, Option<&Link>),
        tunnel: Option<&Template>,
    ) -> Result<PortId, Verdict> {
        let zone = connection.zone();
        if lane.direction == Direction::Inward {
            return Ok(zone);
        }
        let underlay = snapshot.underlay();
        let no_headroom = Verdict::Drop(DropReason::NoHeadroom);
        match tunnel {
            Some(tunnel) => leave_through(snapshot, tunnel, frame, packet, (zone, lane.hash))
                .map_err(Verdict::Drop)?,
            None if connection.is_internal() => {
                return call::answer_here(snapshot, frame, packet, connection);
            }
            None => link::replace(frame, packet, underlay).ok_or(no_headroom)?,
        }
        Ok(underlay.port)
    }

    fn way_to<A: Table>(
        snapshot: &Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
        _: Option<Link>,
    ) -> Option<(PortId, Link)> {
        let underlay = snapshot.underlay();
        Some(match direction {
            Direction::Inward => {
                let vm = snapshot.nat.vm_by_port(connection.zone())?;
                (vm.port, Link::new(underlay.mac, vm.mac))
            }
            Direction::Outward => {
                let fabric = (underlay.port, Link::new(underlay.mac, underlay.next_hop));
                if !connection.is_internal() {
                    return Some(fabric);
                }
                match call::client_here(snapshot, connection) {
                    Some(vm) => (vm.port, Link::new(underlay.mac, vm.mac)),
                    // In its network only: elsewhere, the address may belong to another vm.
                    None => Self::tunnel(snapshot, connection, direction).map(|_| fabric)?,
                }
            }
        })
    }
}

/// Decides about an IP packet with unreadable headers: it is passed to the vm or the kernel, unless
/// it is to or from a VIP.
#[cold]
fn refuse_bad(
    snapshot: &Snapshot<'_>,
    frame: &Frame<'_>,
    lane: &Lane,
    reason: DropReason,
) -> Verdict {
    let ends = ends_of_bad(frame.bytes());
    let is_vip = |address| snapshot.is_vip_at(lane.zone, address);
    let is_ours = |(source, destination)| match lane.direction {
        Direction::Inward => is_vip(destination),
        Direction::Outward => is_vip(destination) || is_vip(source),
    };
    match lane.direction {
        _ if ends.is_some_and(is_ours) => Verdict::Drop(reason),
        Direction::Inward => Verdict::Forward(lane.zone),
        Direction::Outward => Verdict::Pass,
    }
}

/// Returns true if the vm at a port reaches an address, and answers it, under its own address.
#[cold]
fn is_reached_untranslated(snapshot: &Snapshot<'_>, port: PortId, address: IpAddr) -> bool {
    let vm = snapshot.nat.vm_by_port(port);
    if snapshot.is_private_at(address, port) {
        return false;
    }
    snapshot.nat.is_inside(address)
        || vm.is_some_and(|vm| establish::is_inside(snapshot, vm, address))
}

/// Decapsulates a frame, and finds its destination vm.
// Out of line, it would cost each frame 4 ns.
#[inline(always)]
fn decapsulate(
    snapshot: &Snapshot<'_>,
    frame: &mut Frame<'_>,
    lane: &mut Lane,
    last: &mut Option<Arrival>,
    seen: &mut impl Observe,
) -> Result<Outer, Verdict> {
    let outer = Outer::parse(frame.bytes(), snapshot.underlay())
        .map_err(Verdict::Drop)?
        .ok_or(Verdict::Pass)?;
    let arrival = match *last {
        Some(arrival) if arrival.name == outer.name() => arrival,
        _ => Arrival::new(&outer, snapshot)?,
    };
    *last = Some(arrival);
    (lane.sender, lane.zone) = (arrival.sender, arrival.port);
    frame.truncate(outer.inner.1);
    frame.trim_front(outer.inner.0);
    let (vni, port) = (outer.vni, arrival.port);
    seen.step(lane.frame.into(), Step::Decapsulated { vni, port });
    Ok(outer)
}
