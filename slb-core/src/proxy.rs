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

use core::fmt;
use core::net::IpAddr;
use core::ops::Deref;

use crate::answer;
use crate::counters::CounterMemory;
use crate::fragments::FragmentRoom;
use crate::frame::{BURST, Burst, Frame};
use crate::key::Key;
use crate::limit::SourceLimiter;
use crate::link::Link;
use crate::list::{Entry, Filter, Listed};
use crate::mem::Memory;
use crate::nat::connection::{ALL_PORTS, Connection, Policy};
use crate::nat::pipeline::{Lane, Opened, Origin, Pipeline, PlainLane, Role, Table, TakeUp};
use crate::nat::tcp::Segment;
use crate::nat::{Direction, Links, NatOptions, NatTable, NatTables};
use crate::observe::{Observe, Step};
use crate::packet::{EchoMessage, Packet, Read, ends_of_bad};
use crate::snapshot::proxy::CompiledProxy;
use crate::snapshot::terms::{CompiledTerms, RuleKind};
use crate::snapshot::{BackendKey, Rejected, RoleError, RuleKey, RuleMatch, Snapshot};
use crate::spec::{Echo, Scheduler};
use crate::state::{Age, Cursor, Exported, Imported, Kind, StateError};
use crate::stats::{BackendCounters, RuleCounters, Stats};
use crate::steer::Share;
use crate::time::Instant;
use crate::tunnel::encapsulation::Template;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::arp;
use crate::wire::ethernet::{EtherType, Ethernet, MacAddress};

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

/// The parts of the pipeline that only a proxy has.
pub(crate) enum ProxyRole {}

impl Role for ProxyRole {
    /// The port of the last frame, and its direction.
    type Last = Option<(PortId, Direction)>;
    const ROUTES: bool = false;
    const TUNNELS: bool = false;
    const SHARED: bool = true;
    const KEEPS_REMOVED: bool = true;
    const CHOOSES: bool = true;
    const RECORD: Kind = Kind::ProxyConnection;
    const PASSES_ON: bool = false;

    #[inline(always)]
    fn direction(
        snapshot: &Snapshot<'_>,
        frame: &Frame<'_>,
        last: &mut Self::Last,
    ) -> Option<Direction> {
        let port = frame.port();
        if let Some((known, direction)) = *last
            && known == port
        {
            return Some(direction);
        }
        let direction = direction_of(snapshot, port)?;
        *last = Some((port, direction));
        Some(direction)
    }

    #[inline(always)]
    fn inward(_: &Snapshot<'_>, frame: &Frame<'_>, _: &mut Self::Last) -> Option<Origin> {
        Some(Origin {
            end: frame.len() as u32,
            zone: frame.port(),
            ecn: 0,
        })
    }

    #[inline(always)]
    fn leaves_by(snapshot: &Snapshot<'_>, zone: PortId, direction: Direction) -> Option<PortId> {
        match direction {
            Direction::Inward => Some(snapshot.nat.proxy.as_ref()?.backend),
            Direction::Outward => Some(zone),
        }
    }

    #[inline]
    fn arrive<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        last: &mut Self::Last,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let port = frame.port();
        lane.direction = match *last {
            Some((known, direction)) if known == port => direction,
            _ => direction_of(&pipeline.snapshot, port).ok_or(Verdict::Pass)?,
        };
        *last = Some((port, lane.direction));
        lane.zone = match lane.direction {
            Direction::Inward => port,
            Direction::Outward => ALL_PORTS,
        };
        match lane.packet.read(frame.bytes()) {
            Read::Ip => {}
            Read::Other => {
                let target = arp_target(frame);
                return Err(bridge(&pipeline.snapshot, lane.direction, target));
            }
            Read::Bad(reason) => return Err(refuse_bad(&pipeline.snapshot, frame, lane, reason)),
        }
        seen.step(lane.frame.into(), Step::Parsed(lane.packet));
        if lane.packet.is_plain() {
            return Ok(());
        }
        let destination = lane.packet.tuple().destination;
        if lane.direction == Direction::Inward && !pipeline.snapshot.is_vip(destination) {
            pipeline.note_unusual_direct::<Self>(frame, lane);
            if pipeline.advises_about_translated::<Self>(frame.bytes(), lane) {
                return Err(Verdict::Drop(DropReason::IcmpRedirect));
            }
            return Err(bridge(&pipeline.snapshot, lane.direction, None));
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
        let packet = &lane.packet;
        if lane.direction == Direction::Outward {
            let destination = packet.tuple().destination;
            let snapshot = &pipeline.snapshot;
            return Err(bridge(snapshot, lane.direction, Some(destination)));
        }
        // The frontend's `icmp_echo` decides about an echo request without a rule.
        if packet.shape.echo == EchoMessage::Request
            && pipeline.snapshot.echo_rule(packet).is_none()
        {
            match pipeline.snapshot.echo(packet) {
                Some(Echo::Answer) => {
                    return Err(answer::answer_echo(frame, packet, &mut pipeline.limits));
                }
                Some(Echo::Ignore) => return Err(Verdict::Drop(DropReason::EchoIgnored)),
                Some(Echo::Forward) | None => {}
            }
        }
        pipeline.inbound::<A, Self>(frame, lane, segment, seen)
    }

    /// Chooses a backend by the rule's scheduler: Maglev, or the fewest connections.
    fn choose<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &Pipeline<'_, S>,
        lane: &Lane,
        rule: u32,
        seen: &mut impl Observe,
    ) -> Option<u32> {
        let snapshot = &*pipeline.snapshot;
        let (compiled, terms) = (snapshot.rule(rule)?, snapshot.terms(rule)?);
        let hash = snapshot.hash(&lane.packet, compiled.mask);
        if terms.kind == RuleKind::Balance && terms.scheduler == Scheduler::LeastConnections {
            let counters = &pipeline.tables.backends;
            let backend = least_connections(snapshot, counters, terms, hash)?;
            seen.step(lane.frame.into(), Step::Selected(backend));
            return Some(backend);
        }
        let place = snapshot.table_index(compiled, &lane.packet, hash);
        let slot = place - compiled.first_slot();
        seen.step(lane.frame.into(), Step::Hashed { rule, hash, slot });
        let backend = snapshot.backend_at(compiled.first_backend, place)?;
        seen.step(lane.frame.into(), Step::Selected(backend));
        Some(backend)
    }

    fn take_up<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        _: &Frame<'_>,
        lane: &Lane,
        segment: &Segment,
        rule: u32,
    ) -> TakeUp<A> {
        let snapshot = &*pipeline.snapshot;
        let hashes = |terms: &CompiledTerms| {
            terms.kind != RuleKind::Balance || terms.scheduler == Scheduler::Maglev
        };
        if !snapshot.terms(rule).is_some_and(hashes) {
            return TakeUp::Not;
        }
        let chosen = Self::choose(pipeline, lane, rule, &mut ());
        let local = chosen.and_then(|backend| snapshot.nat.local_of(backend).copied());
        pipeline.take_up_inward::<A, Self>(lane, segment, (rule, local, Policy::DIRECT))
    }

    fn not_ours(snapshot: &Snapshot<'_>, lane: &Lane, _: RuleMatch) -> Verdict {
        bridge(snapshot, lane.direction, None)
    }

    #[inline]
    fn answers_directly(snapshot: &Snapshot<'_>, _: PortId, _: IpAddr, server: IpAddr) -> bool {
        snapshot.nat.is_backend(server)
    }

    /// A backend's ICMP error without a connection crosses, like its other packets without one.
    /// Unreadable packets are dropped: they may belong to a connection, and the backend's address
    /// must not leak.
    fn unmatched(snapshot: &Snapshot<'_>, lane: &Lane, reason: DropReason) -> Verdict {
        let tuple = lane.own_packet().tuple();
        let crosses = reason == DropReason::IcmpUnmatched || !snapshot.nat.is_backend(tuple.source);
        match lane.direction {
            Direction::Outward if crosses => {
                bridge(snapshot, lane.direction, Some(tuple.destination))
            }
            _ => Verdict::Drop(reason),
        }
    }

    fn neighbour_discovery(snapshot: &Snapshot<'_>, lane: &Lane) -> Verdict {
        bridge(snapshot, lane.direction, None)
    }

    #[inline]
    fn tunnel<'a, A: Table>(
        _: &'a Snapshot<'_>,
        _: &Connection<A>,
        _: Direction,
    ) -> Option<&'a Template> {
        None
    }

    #[inline]
    fn leave<A: Table>(
        snapshot: &Snapshot<'_>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        _: &Packet,
        (connection, opened_by): (&Connection<A>, Option<&Link>),
        _: Option<&Template>,
    ) -> Result<PortId, Verdict> {
        let ports = snapshot.nat.proxy.as_ref().ok_or(Verdict::Pass)?;
        Self::readdress(
            snapshot,
            frame,
            lane.direction,
            connection.server(),
            opened_by,
        );
        match lane.direction {
            Direction::Outward => Ok(connection.zone()),
            Direction::Inward => Ok(ports.backend),
        }
    }

    #[inline(always)]
    fn readdress(
        snapshot: &Snapshot<'_>,
        frame: &mut Frame<'_>,
        direction: Direction,
        server: u16,
        opened_by: Option<&Link>,
    ) {
        let ports = snapshot.nat.proxy.as_ref();
        if ports.is_some_and(CompiledProxy::readdresses) {
            readdress(snapshot, frame, direction, server, opened_by);
        }
    }

    /// Returns the link header of the connection's first frame: neighbours see each other's MAC
    /// addresses.
    fn way_to<A: Table>(
        snapshot: &Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
        opened_by: Option<Link>,
    ) -> Option<(PortId, Link)> {
        let link = opened_by.filter(|link| *link != Link::NONE)?;
        let ports = snapshot.nat.proxy.as_ref()?;
        Some(match direction {
            Direction::Inward => {
                let next_hop = snapshot.nat.next_hop_of(connection.server()).flatten();
                let link = next_hop.map_or(link, |next_hop| link.with_destination(next_hop));
                (ports.backend, link)
            }
            Direction::Outward => (connection.zone(), link.reversed()),
        })
    }
}

/// Sends a packet to the next hop of the connection's backend; or, if the backend's router is this
/// node, to the next hop that the client's packets came from.
#[inline(never)]
fn readdress(
    snapshot: &Snapshot<'_>,
    frame: &mut Frame<'_>,
    direction: Direction,
    server: u16,
    opened_by: Option<&Link>,
) {
    let Some(destination) = frame.bytes_mut().first_chunk_mut() else {
        return;
    };
    let next_hop = match direction {
        Direction::Inward => match snapshot.nat.next_hop_of(server) {
            Some(next_hop) => next_hop,
            // Connections outlive their backend's configuration.
            None => opened_by.and_then(Link::destination),
        },
        Direction::Outward if *destination == snapshot.underlay().mac.0 => {
            opened_by.and_then(Link::source)
        }
        Direction::Outward => None,
    };
    if let Some(MacAddress(next_hop)) = next_hop {
        *destination = next_hop;
    }
}

/// Returns the direction of frames from a port; `None` if the port is not one of the proxy's.
fn direction_of(snapshot: &Snapshot<'_>, port: PortId) -> Option<Direction> {
    let ports = snapshot.nat.proxy.as_ref()?;
    if port == ports.backend {
        Some(Direction::Outward)
    } else {
        ports.is_frontend(port).then_some(Direction::Inward)
    }
}

/// Bridges a frame that is not translated. `target` is its destination address, if known.
fn bridge(snapshot: &Snapshot<'_>, direction: Direction, target: Option<IpAddr>) -> Verdict {
    let Some(ports) = &snapshot.nat.proxy else {
        return Verdict::Pass;
    };
    match direction {
        Direction::Inward => Verdict::Forward(ports.backend),
        Direction::Outward => match ports.frontend_of(target) {
            Some(port) => Verdict::Forward(port),
            None => Verdict::Flood,
        },
    }
}

/// Decides about an IP packet with unreadable headers: it crosses, unless it is for a VIP or from a
/// backend, because the backend's address must not leak.
#[cold]
fn refuse_bad(
    snapshot: &Snapshot<'_>,
    frame: &Frame<'_>,
    lane: &Lane,
    reason: DropReason,
) -> Verdict {
    let ends = ends_of_bad(frame.bytes());
    let is_ours = |(source, destination)| match lane.direction {
        Direction::Inward => snapshot.is_vip(destination),
        Direction::Outward => snapshot.nat.is_backend(source),
    };
    if ends.is_some_and(is_ours) {
        Verdict::Drop(reason)
    } else {
        let destination = ends.map(|(_, destination)| destination);
        bridge(snapshot, lane.direction, destination)
    }
}

/// Returns the target address of an ARP packet.
fn arp_target(frame: &Frame<'_>) -> Option<IpAddr> {
    let link = Ethernet::parse(frame.bytes()).ok()?;
    if link.ether_type() != EtherType::ARP {
        return None;
    }
    let packet = arp::Packet::parse(link.payload()).ok()?;
    Some(packet.target.into())
}

/// Returns the backend with the fewest connections relative to its weight, including the new one.
/// Among equals, the heavier one is chosen; among equals of one weight the hash decides, so that
/// new connections do not all go to the first one.
fn least_connections(
    snapshot: &Snapshot<'_>,
    counters: &[BackendCounters],
    terms: &CompiledTerms,
    hash: u64,
) -> Option<u32> {
    let all = snapshot.backends_of(terms.pool);
    let count = u64::from(all.end - all.start);
    let first = all.start + (((hash >> 32) * count) >> 32) as u32;
    let mut best: Option<(u32, u64, u64)> = None;
    for index in (first..all.end).chain(all.start..first) {
        let share = snapshot
            .share(terms, index)
            .filter(|share| share.weight != 0);
        let (Some(backend), Some(share)) = (snapshot.backend(index), share) else {
            continue;
        };
        let live = counters.get(backend.counters()).map_or(0, |c| c.live) + 1;
        let weight = u64::from(share.weight);
        // Compares live / weight with the best ratio without a division: neither has more than 32
        // bits.
        let is_better = |(_, least, of)| {
            let (own, others) = (live * of, least * weight);
            own < others || own == others && weight > of
        };
        if best.is_none_or(is_better) {
            best = Some((index, live, weight));
        }
    }
    best.map(|(index, ..)| index)
}
