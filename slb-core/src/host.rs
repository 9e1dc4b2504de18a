//! The host agent: between the fabric and the vms of one machine.
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
//! Each stage is a loop over the burst, as in [`mux`](crate::mux). Connections are never forgotten
//! before their time: where the table is full, new ones are refused and counted.

mod establish;
mod unusual;

use core::fmt;
use core::ops::Deref;

use crate::decapsulation::{Outer, OuterName};
use crate::flow::FlowTable;
use crate::frame::{BURST, Burst, Frame};
use crate::link;
use crate::mem::{Mem, Memory};
use crate::nat::connection::{Connection, Key, Side};
use crate::nat::reset::{self, Numbers};
use crate::nat::rewrite::{self, Rewrite};
use crate::nat::table::{Connections, Fate, NONE};
use crate::nat::tcp::{Segment, reopens};
use crate::nat::{ConnectionState, Direction, NatTable};
use crate::observe::{ConnectionStep, Observe, Step};
use crate::packet::{Family, Packet, Part, Read};
use crate::reply::{self, IcmpError, Limiter};
use crate::service::{BackendId, CompiledBackend, Snapshot, Underlay};
use crate::stats::{BackendCounters, RuleCounters, SnatCounters, Stats};
use crate::time::Instant;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::tcp::Flags;
use crate::wire::{ipv4, ipv6, protocol, tcp};

/// What a host agent may do besides translating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostOptions {
    /// ICMP errors of its own a second: the long run.
    pub answers_per_second: u32,
    /// And at once.
    pub answers_at_once: u32,
    /// RSTs a second: the long run.
    pub resets_per_second: u32,
    /// And at once.
    pub resets_at_once: u32,
    /// Lowers the maximum segment size that SYNs offer to what fits the fabric in VXLAN.
    pub clamp_mss: bool,
    /// A secret, by which the ports of connections to the outside are chosen so that nobody can
    /// guess them (RFC 6056).
    pub port_secret: [u64; 2],
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            answers_per_second: 1000,
            answers_at_once: 100,
            resets_per_second: 10_000,
            resets_at_once: 1000,
            clamp_mss: false,
            port_secret: [0x452a_821e_638d_0137, 0x7be5_466c_f34e_90c6],
        }
    }
}

/// The tables of a host agent.
#[derive(Debug)]
pub struct HostTables<'m> {
    /// Its connections.
    pub connections: NatTable<'m>,
    /// Where the ports of fragmented datagrams are remembered; `None`: later fragments that need
    /// ports are dropped.
    pub fragments: Option<FlowTable<'m>>,
    /// Counters by [`CompiledRule::slot`](crate::service::CompiledRule::slot); rules beyond its end
    /// are not counted.
    pub rules: Mem<'m, RuleCounters>,
    /// Counters by [`BackendId::slot`]; backends beyond its end are not counted.
    pub backends: Mem<'m, BackendCounters>,
    /// SNAT counters by [`BackendId::slot`]; backends beyond its end are not counted.
    pub snat: Mem<'m, SnatCounters>,
    /// How many connections use each SNAT port of the backends here:
    /// [`Snapshot::snat_port_places`] of them; those beyond its end are not counted.
    pub snat_users: Mem<'m, u16>,
}

/// A host agent: see the [module](self).
///
/// `S` is how it holds its snapshot: `&Snapshot`, `Arc<Snapshot>`, or the caller's own.
pub struct Host<'m, S> {
    pipeline: Pipeline<'m, S>,
    lanes: [Lane; BURST],
}

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Host<'m, S> {
    /// A host agent with the tables given.
    pub fn new(snapshot: S, tables: HostTables<'m>, options: HostOptions) -> Self {
        let mut pipeline = Pipeline {
            snapshot,
            tables,
            options,
            answers: Limiter::new(options.answers_per_second, options.answers_at_once),
            resets: Limiter::new(options.resets_per_second, options.resets_at_once),
            stats: Stats::default(),
        };
        pipeline.begin_generation();
        Self {
            pipeline,
            lanes: [Lane::EMPTY; BURST],
        }
    }

    /// The same host agent with other options.
    #[must_use]
    pub fn with_options(mut self, options: HostOptions) -> Self {
        let Pipeline {
            options: old,
            answers,
            resets,
            ..
        } = &mut self.pipeline;
        *answers = Limiter::new(options.answers_per_second, options.answers_at_once);
        *resets = Limiter::new(options.resets_per_second, options.resets_at_once);
        *old = options;
        self
    }

    /// Gives each of `frames` its verdict, rewritten in place where it is to be sent.
    pub fn process(&mut self, now: Instant, frames: &mut [Frame<'_>]) {
        self.process_observed(now, frames, &mut ());
    }

    /// The same, with somebody looking on.
    pub fn process_observed(
        &mut self,
        now: Instant,
        frames: &mut [Frame<'_>],
        seen: &mut impl Observe,
    ) {
        let Self { pipeline, lanes } = self;
        for (burst, frames) in frames.chunks_mut(BURST).enumerate() {
            let seen = &mut crate::observe::From {
                first: burst * BURST,
                seen,
            };
            pipeline.set_clock(now);
            let lanes = pipeline.classify(frames, lanes, seen);
            pipeline.look_up(lanes);
            pipeline.translate(frames, lanes, seen);
        }
    }

    /// Does what is due without a packet: ends connections whose time has come, and tells their
    /// ends. Frames of `spare`, which are empty, become the RSTs that say so, with the verdict to
    /// forward them; the others stay as they are. To be called before or after each burst, and a
    /// few times a second without any.
    ///
    /// One call looks at a bounded number of connections, and stops where `spare` is used up;
    /// with no frame in it at all, nobody is told.
    pub fn advance(&mut self, now: Instant, spare: &mut Burst<'_>) {
        self.pipeline.set_clock(now);
        self.pipeline.sweep(now, spare);
    }

    /// Puts another snapshot in place, built with the present one as its previous, and returns the
    /// old one: nothing here refers to it any more. Connections of backends that are gone, or
    /// unhealthy where their rule resets, end within the next calls of [`advance`](Self::advance).
    pub fn install(&mut self, snapshot: S) -> S {
        let old = core::mem::replace(&mut self.pipeline.snapshot, snapshot);
        self.pipeline.begin_generation();
        old
    }

    /// The snapshot in place.
    pub fn snapshot(&self) -> &Snapshot<'s> {
        &self.pipeline.snapshot
    }

    /// What it did so far.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.pipeline.tables.connections.stats(),
            ..self.pipeline.stats
        }
    }

    /// Its connections.
    pub fn connections(&self) -> &NatTable<'m> {
        &self.pipeline.tables.connections
    }

    /// What a rule did, by its place: load-balancing rules, then inbound NAT, then outbound
    /// frontends.
    pub fn rule_counters(&self, rule: usize) -> Option<RuleCounters> {
        let rule = self.pipeline.snapshot.rule(u32::try_from(rule).ok()?)?;
        self.pipeline.tables.rules.get(rule.slot()).copied()
    }

    /// What a backend got.
    pub fn backend_counters(&self, id: BackendId) -> Option<BackendCounters> {
        let counters = self.pipeline.tables.backends.get(id.slot()).copied();
        counters.filter(|c| c.id == id.get())
    }

    /// A backend's SNAT ports.
    pub fn snat_counters(&self, id: BackendId) -> Option<SnatCounters> {
        self.backend_counters(id)?;
        self.pipeline.tables.snat.get(id.slot()).copied()
    }
}

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Host<'m, S> {
    /// A host agent for up to `connections` connections of each family, with a table of fragments,
    /// and with counters for the snapshot and as many rules and backends more. `None` where the
    /// memory is used up. `key` should be random and secret where the traffic may be hostile.
    pub fn build(
        snapshot: S,
        connections: usize,
        key: [u64; 2],
        memory: &mut impl Memory<'m>,
    ) -> Option<Self> {
        const FRAGMENTS: usize = 4096;
        let rules = (2 * snapshot.rule_slots()).max(64);
        let backends = (2 * snapshot.backend_slots()).max(1024);
        let ports = snapshot.snat_port_places().max(1 << 17);
        let tables = HostTables {
            connections: NatTable::build(connections, connections, key, memory)?,
            fragments: Some(FlowTable::build(FRAGMENTS, FRAGMENTS, key, memory)?),
            rules: memory.take(rules, RuleCounters::default())?,
            backends: memory.take(backends, BackendCounters::default())?,
            snat: memory.take(backends, SnatCounters::default())?,
            snat_users: memory.take(ports, 0)?,
        };
        let options = HostOptions {
            port_secret: [key[1], key[0]],
            ..HostOptions::default()
        };
        Some(Self::new(snapshot, tables, options))
    }
}

#[cfg(feature = "alloc")]
impl<'s, S: Deref<Target = Snapshot<'s>>> Host<'static, S> {
    /// [`build`](Self::build), in boxes.
    pub fn with_capacity(snapshot: S, connections: usize, key: [u64; 2]) -> Self {
        match Self::build(snapshot, connections, key, &mut crate::mem::Boxes) {
            Some(host) => host,
            None => unreachable!("an allocator does not run out without saying so"),
        }
    }
}

impl<S> fmt::Debug for Host<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("stats", &self.pipeline.stats)
            .finish_non_exhaustive()
    }
}

/// A frame on its way through the stages.
#[derive(Clone, Copy, Debug)]
struct Lane {
    packet: Packet,
    /// The hash of its key.
    hash: u64,
    /// The connection that it most likely is.
    candidate: u32,
    /// Bytes of the frame as it came in.
    len: u32,
    /// The port of the vm that it is for, or from.
    zone: PortId,
    /// The number of the mux that it came from, or that of none.
    mux: u8,
    /// Its place in the burst.
    frame: u8,
    direction: Direction,
    /// Of an ICMP error about a connection: `packet` has the tuple of the connection's packets, and
    /// this the addresses of the error's own.
    error: Option<[u64; 4]>,
}

impl Lane {
    const EMPTY: Self = Self {
        packet: Packet::EMPTY,
        hash: 0,
        candidate: NONE,
        len: 0,
        zone: PortId(0),
        mux: 0,
        frame: 0,
        direction: Direction::Inward,
        error: None,
    };

    #[inline]
    fn key<A: Rewrite>(&self) -> Key<A> {
        Key {
            side: Side {
                addresses: A::of(&self.packet),
                ports: self.packet.ports,
            },
            protocol: self.packet.protocol,
            direction: self.direction,
            zone: self.zone,
        }
    }

    /// The packet as it is in the frame.
    fn own_packet(&self) -> Packet {
        match self.error {
            None => self.packet,
            Some(addresses) => Packet {
                addresses,
                protocol: match self.packet.shape.family {
                    Family::Ipv4 => protocol::ICMP,
                    Family::Ipv6 => protocol::ICMPV6,
                },
                ..self.packet
            },
        }
    }
}

/// Where a frame from the fabric comes from, and goes to.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    name: OuterName,
    /// The number of the mux, or that of none.
    mux: u8,
    /// The port of the vm.
    port: PortId,
}

impl Arrival {
    fn new(outer: &Outer, snapshot: &Snapshot<'_>) -> Result<Self, Verdict> {
        let mux = snapshot.nat.mux_at(outer.source);
        if mux.is_none() && snapshot.nat.has_muxes() && !snapshot.nat.is_peer(outer.source) {
            return Err(Verdict::Drop(DropReason::UnknownPeer));
        }
        let vm = snapshot.nat.vm_by_mac(outer.destination, outer.vni);
        Ok(Self {
            name: outer.name(),
            mux: mux.map_or(u8::MAX, |number| number as u8),
            port: vm.ok_or(Verdict::Drop(DropReason::UnknownVm))?.port,
        })
    }
}

/// Everything but the lanes, so that the stages can borrow both.
struct Pipeline<'m, S> {
    snapshot: S,
    tables: HostTables<'m>,
    options: HostOptions,
    answers: Limiter,
    resets: Limiter,
    stats: Stats,
}

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    #[inline]
    fn set_clock(&mut self, now: Instant) {
        self.tables.connections.advance(now);
        if let Some(fragments) = &mut self.tables.fragments {
            fragments.advance(now);
        }
        self.answers.advance(now);
        self.resets.advance(now);
    }

    /// Stage 1: takes frames from the fabric out of VXLAN, reads each, finds whose it is and hashes
    /// its tuple. Returns the lanes of those that concern a connection.
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
        let mut count = 0;
        // What comes for one vm through one mux comes in runs: often the last answer holds.
        let mut last = None;
        for (index, frame) in frames.iter_mut().enumerate() {
            let Some(lane) = lanes.get_mut(count) else {
                break;
            };
            lane.len = frame.len() as u32;
            lane.frame = index as u8;
            lane.error = None;
            self.stats.received.add(frame.len());
            match self.classify_frame(frame, lane, &mut last, seen) {
                Ok(()) => {
                    let connections = &self.tables.connections;
                    match lane.packet.shape.family {
                        Family::Ipv4 => lane.hash = hash(&connections.ipv4, lane),
                        Family::Ipv6 => lane.hash = hash(&connections.ipv6, lane),
                    }
                    count += 1;
                }
                Err(verdict) => finish(&mut self.stats, frame, lane, verdict, seen),
            }
        }
        lanes.get_mut(..count).unwrap_or_default()
    }

    #[inline]
    fn classify_frame(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        last: &mut Option<Arrival>,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let mut outer = None;
        if frame.port() == self.snapshot.underlay().port {
            lane.direction = Direction::Inward;
            outer = Some(self.decapsulate(frame, lane, last, seen)?);
        } else {
            let vm = self.snapshot.nat.vm_by_port(frame.port());
            lane.zone = vm.ok_or(Verdict::Pass)?.port;
            lane.direction = Direction::Outward;
        }
        match lane.packet.read(frame.bytes()) {
            Read::Ip => {}
            Read::Other if outer.is_some() => return Err(Verdict::Forward(lane.zone)),
            Read::Other => return Err(Verdict::Pass),
            Read::Bad(reason) => return Err(Verdict::Drop(reason)),
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
        self.classify_unusual(frame, lane, seen)
    }

    /// Takes a frame out of VXLAN, and finds the vm that it is for.
    #[inline]
    fn decapsulate(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        last: &mut Option<Arrival>,
        seen: &mut impl Observe,
    ) -> Result<Outer, Verdict> {
        let snapshot = &*self.snapshot;
        let outer = Outer::parse(frame.bytes(), snapshot.underlay())
            .map_err(Verdict::Drop)?
            .ok_or(Verdict::Pass)?;
        let arrival = match *last {
            Some(arrival) if arrival.name == outer.name() => arrival,
            _ => Arrival::new(&outer, snapshot)?,
        };
        *last = Some(arrival);
        (lane.mux, lane.zone) = (arrival.mux, arrival.port);
        frame.truncate(outer.inner.1);
        frame.trim_front(outer.inner.0);
        let (vni, port) = (outer.vni, arrival.port);
        seen.step(lane.frame.into(), Step::Decapsulated { vni, port });
        Ok(outer)
    }

    /// Stage 2: asks for the line of each lane's connection.
    #[inline]
    fn look_up(&self, lanes: &mut [Lane]) {
        let NatTable { ipv4, ipv6 } = &self.tables.connections;
        for lane in lanes {
            lane.candidate = match lane.packet.shape.family {
                Family::Ipv4 => ipv4.candidate(lane.hash),
                Family::Ipv6 => ipv6.candidate(lane.hash),
            };
        }
    }

    /// Stage 3: gives each packet the other name of its connection, which is made where it is
    /// missing and the packet may make one.
    #[inline]
    fn translate(&mut self, frames: &mut [Frame<'_>], lanes: &[Lane], seen: &mut impl Observe) {
        for lane in lanes {
            let Some(frame) = frames.get_mut(usize::from(lane.frame)) else {
                continue;
            };
            let result = match lane.packet.shape.family {
                Family::Ipv4 => self.translate_lane::<u64>(frame, lane, seen),
                Family::Ipv6 => self.translate_lane::<[u64; 4]>(frame, lane, seen),
            };
            match result {
                Ok(port) => {
                    let verdict = Verdict::Forward(port);
                    frame.set_verdict(verdict);
                    self.stats.forwarded.add(lane.len as usize);
                    seen.step(lane.frame.into(), Step::Done(verdict));
                }
                Err(verdict) => finish(&mut self.stats, frame, lane, verdict, seen),
            }
        }
    }

    #[inline]
    fn translate_lane<A: Table>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        seen: &mut impl Observe,
    ) -> Result<PortId, Verdict> {
        let segment = segment_of(frame, lane);
        let table = A::table(&mut self.tables.connections);
        let number = match table.find_from(lane.candidate, lane.hash, &lane.key()) {
            Some(number) if self.stays::<A>(number, lane, segment.as_ref()) => number,
            Some(number) => {
                self.end::<A>(number);
                self.establish::<A>(frame, lane, segment.as_ref(), seen)?
            }
            None => self.establish::<A>(frame, lane, segment.as_ref(), seen)?,
        };
        self.follow::<A>(number, frame, lane, segment.as_ref(), seen)
    }

    /// Whether a connection goes on with a packet of its name.
    #[inline]
    fn stays<A: Table>(&mut self, number: u32, lane: &Lane, segment: Option<&Segment>) -> bool {
        let table = A::table(&mut self.tables.connections);
        let Some(connection) = table.get(number) else {
            return false;
        };
        let begins_anew = segment.is_some_and(|segment| {
            segment.flags.opens()
                && lane.direction == connection.opener()
                && reopens(
                    connection.state(),
                    connection.sequences(),
                    lane.direction,
                    segment,
                )
        });
        !table.is_past(connection)
            && !begins_anew
            && self.snapshot.nat.local(connection.server()).is_some()
    }

    /// Sends a packet on under the other name of its connection.
    #[inline]
    fn follow<A: Table>(
        &mut self,
        number: u32,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<PortId, Verdict> {
        let Self {
            snapshot,
            tables,
            options,
            answers,
            stats,
            ..
        } = self;
        let direction = lane.direction;
        let table = A::table(&mut tables.connections);
        let now = table.now();
        let missing = Verdict::Drop(DropReason::NoConnection);
        let connection = table.get_mut(number).ok_or(missing)?;
        let packet = &lane.packet;
        let underlay = snapshot.underlay();
        let mux = match (direction, connection.via()) {
            (Direction::Outward, Some(mux)) => snapshot.nat.mux(mux),
            _ => None,
        };
        let most = match (direction, mux) {
            (Direction::Inward, _) => u32::MAX, // as long as the fabric brought it
            (_, Some(mux)) => mux.template.inner_mtu(underlay.mtu),
            (_, None) => underlay.mtu.into(),
        };
        if packet.hop_limit <= 1 || packet.ip_len > most {
            return Err(report(frame, lane, most, answers, underlay));
        }
        // Later fragments and errors keep a connection alive as little as they move it on.
        if lane.error.is_none() && packet.shape.part != Part::Later {
            connection.note(now, direction, segment);
        }
        let state = connection.state();
        seen.step(
            lane.frame.into(),
            Step::Connection(ConnectionStep::Found(state)),
        );
        let hops = u8::from(mux.is_none()); // encapsulation takes its own
        let own_packet;
        let packet = if lane.error.is_some() {
            own_packet = lane.own_packet();
            rewrite::translate_error(frame.bytes_mut(), &own_packet, connection, direction, hops)
                .ok_or(Verdict::Drop(DropReason::IcmpUnmatched))?;
            &own_packet
        } else {
            rewrite::translate(frame.bytes_mut(), packet, connection, direction, hops)
                .ok_or(Verdict::Drop(DropReason::Truncated))?;
            packet
        };
        if options.clamp_mss && segment.is_some_and(|segment| segment.flags.contains(Flags::SYN)) {
            let most = clamped_mss(underlay.mtu, packet.shape.family);
            rewrite::clamp_mss(frame.bytes_mut(), packet, most);
        }
        let to = connection.translated(direction);
        seen.step(
            lane.frame.into(),
            Step::Translated(tuple(&to, connection.protocol())),
        );
        let len = lane.len as usize;
        if let Some(counters) = tables.rules.get_mut(connection.rule()) {
            counters.forwarded.add(len);
            counters.syns += u64::from(packet.opens());
        }
        stats.syns += u64::from(packet.opens());
        stats.icmp_errors += u64::from(lane.error.is_some());
        if let Some(local) = snapshot.nat.local(connection.server())
            && let Some(counters) = tables.backends.get_mut(local.counters as usize)
        {
            counters.forwarded.add(len);
        }
        if direction == Direction::Inward {
            return Ok(lane.zone);
        }
        let no_headroom = Verdict::Drop(DropReason::NoHeadroom);
        match mux {
            Some(mux) => {
                mux.template
                    .encapsulate(frame, packet, lane.hash)
                    .map_err(Verdict::Drop)?;
                let vni = snapshot.nat.vm_by_port(lane.zone).map(|vm| vm.vni);
                mux.template.set_vni(frame, vni.unwrap_or_default());
            }
            None => link::replace(frame, packet, underlay).ok_or(no_headroom)?,
        }
        Ok(underlay.port)
    }

    /// Ends a connection without telling anybody.
    fn end<A: Table>(&mut self, number: u32) {
        let HostTables {
            connections,
            snat,
            snat_users,
            ..
        } = &mut self.tables;
        let table = A::table(connections);
        if let Some(connection) = table.get(number) {
            forget_port(&self.snapshot, connection, snat, snat_users);
        }
        table.remove(number);
    }

    /// Looks at some connections, and ends those whose time has come, or whose backend is gone.
    fn sweep(&mut self, now: Instant, spare: &mut Burst<'_>) {
        let mut used = 0;
        if self.tables.connections.ipv4.is_due(now) {
            self.sweep_family::<u64>(now, spare, &mut used);
        }
        if self.tables.connections.ipv6.is_due(now) {
            self.sweep_family::<[u64; 4]>(now, spare, &mut used);
        }
    }

    fn sweep_family<A: Table>(&mut self, now: Instant, spare: &mut Burst<'_>, used: &mut usize) {
        let Self {
            snapshot,
            tables,
            resets,
            stats,
            ..
        } = self;
        let snapshot: &Snapshot<'_> = snapshot;
        let HostTables {
            connections,
            snat,
            snat_users,
            ..
        } = tables;
        A::table(connections).sweep(now, |connection, is_past| {
            let local = snapshot.nat.local(connection.server());
            let is_unhealthy = connection.resets()
                && local.is_some_and(|local| is_unhealthy(snapshot, local.backend));
            if !is_past && local.is_some() && !is_unhealthy {
                return Fate::Stays;
            }
            if connection.resets() {
                // Two are needed, one for each end.
                if spare.len() >= 2 && spare.len() < *used + 2 {
                    return Fate::Waits;
                }
                for way in [Direction::Inward, Direction::Outward] {
                    let told = resets.allow()
                        && spare
                            .get_mut(*used)
                            .is_some_and(|frame| tell(frame, snapshot, connection, way).is_some());
                    *used += usize::from(told);
                    stats.resets += u64::from(told);
                    stats.resets_suppressed += u64::from(!told);
                }
            }
            forget_port(snapshot, connection, snat, snat_users);
            Fate::Ends
        });
    }

    /// Notes what a new snapshot changes for what is here already.
    fn begin_generation(&mut self) {
        let Self {
            snapshot, tables, ..
        } = self;
        let snapshot: &Snapshot<'_> = snapshot;
        for backend in snapshot.backends() {
            let id = backend.id();
            let snat = tables.snat.get_mut(id.slot());
            if let Some(counters) = tables.backends.get_mut(id.slot())
                && counters.id != id.get()
            {
                *counters = BackendCounters::of(id.get());
                if let Some(snat) = snat {
                    *snat = SnatCounters::default();
                }
            }
        }
        // Blocks may lie elsewhere now: who uses which port is counted anew.
        tables.snat_users.fill(0);
        for local in snapshot.nat.locals() {
            if let Some(counters) = tables.snat.get_mut(local.counters as usize) {
                let granules = |block| snapshot.nat.granules_of(block).len() as u64;
                counters.ports = 8 * snapshot
                    .nat
                    .blocks_of(local)
                    .iter()
                    .map(granules)
                    .sum::<u64>();
                counters.used = 0;
                counters.connections = 0;
            }
        }
        let NatTable { ipv4, ipv6 } = &tables.connections;
        for connection in ipv4.iter() {
            note_port(
                snapshot,
                connection,
                &mut tables.snat,
                &mut tables.snat_users,
            );
        }
        for connection in ipv6.iter() {
            note_port(
                snapshot,
                connection,
                &mut tables.snat,
                &mut tables.snat_users,
            );
        }
        tables.connections.ipv4.purge();
        tables.connections.ipv6.purge();
    }
}

/// The table of a family.
trait Table: Rewrite {
    fn table<'t, 'm>(connections: &'t mut NatTable<'m>) -> &'t mut Connections<'m, Self>;
}

impl Table for u64 {
    #[inline]
    fn table<'t, 'm>(connections: &'t mut NatTable<'m>) -> &'t mut Connections<'m, Self> {
        &mut connections.ipv4
    }
}

impl Table for [u64; 4] {
    #[inline]
    fn table<'t, 'm>(connections: &'t mut NatTable<'m>) -> &'t mut Connections<'m, Self> {
        &mut connections.ipv6
    }
}

#[inline]
fn hash<A: Rewrite>(table: &Connections<'_, A>, lane: &Lane) -> u64 {
    let hash = table.hash(&lane.key());
    table.prefetch(hash);
    hash
}

/// What the segment says, where it is TCP's and all of its header is there.
#[inline]
fn segment_of(frame: &Frame<'_>, lane: &Lane) -> Option<Segment> {
    let packet = &lane.packet;
    if packet.protocol != protocol::TCP || lane.error.is_some() || packet.shape.part == Part::Later
    {
        return None;
    }
    let transport = usize::from(packet.shape.transport_offset);
    let len = usize::from(packet.shape.ip_offset) + packet.ip_len() - transport;
    Segment::parse(frame.bytes().get(transport..)?, len)
}

/// The largest segment that fits the fabric in VXLAN.
fn clamped_mss(mtu: u16, family: Family) -> u16 {
    let ip = match family {
        Family::Ipv4 => ipv4::HEADER_LEN,
        Family::Ipv6 => ipv6::HEADER_LEN,
    };
    let headers = crate::HEADROOM + ip + tcp::HEADER_LEN;
    mtu.saturating_sub(headers as u16)
}

/// Makes a frame that cannot go on an ICMP error about itself, where its sender may be told.
#[cold]
fn report(
    frame: &mut Frame<'_>,
    lane: &Lane,
    most: u32,
    answers: &mut Limiter,
    underlay: &Underlay,
) -> Verdict {
    let packet = &lane.packet;
    let error = if packet.hop_limit <= 1 {
        IcmpError::HopLimit
    } else {
        IcmpError::TooBig(most)
    };
    let may_be_told = lane.error.is_none() && reply::may_be_told(frame.bytes(), packet);
    if !may_be_told || !answers.allow() {
        return Verdict::Drop(error.reason());
    }
    if reply::icmp_error(frame, packet, error).is_none() {
        return Verdict::Drop(DropReason::NoHeadroom);
    }
    match lane.direction {
        Direction::Outward => Verdict::Reply,
        // It came out of VXLAN, but goes back to the client straight.
        Direction::Inward => match link::readdress(frame, underlay) {
            Some(()) => Verdict::Forward(underlay.port),
            None => Verdict::Drop(error.reason()),
        },
    }
}

/// Makes a spare frame the RST that goes in `way` to one end of a connection.
fn tell<A: Rewrite>(
    frame: &mut Frame<'_>,
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    way: Direction,
) -> Option<()> {
    let underlay = snapshot.underlay();
    let (port, macs) = match way {
        Direction::Inward => {
            let vm = snapshot.nat.vm_by_port(connection.zone())?;
            (vm.port, (underlay.mac, vm.mac))
        }
        Direction::Outward => (underlay.port, (underlay.mac, underlay.next_hop)),
    };
    // What goes in `way` goes to the end whose own packets go the other way.
    let (sequence, acknowledgement) = connection.sequences().reset_to(way.reverse());
    let answered =
        connection.state() != ConnectionState::SynSent || way != connection.opener().reverse();
    let numbers = Numbers {
        sequence: if answered { sequence } else { 0 },
        acknowledgement,
        flags: Flags::RST.with(Flags::ACK),
    };
    reset::emit(frame, macs, connection.translated(way), numbers)?;
    frame.set_verdict(Verdict::Forward(port));
    Some(())
}

/// Whether a backend's probe fails.
fn is_unhealthy(snapshot: &Snapshot<'_>, backend: u32) -> bool {
    snapshot
        .backend(backend)
        .is_some_and(CompiledBackend::is_unhealthy)
}

/// The counters of a connection's backend, and the place of the port that it goes out from; `None`
/// where it came from outside.
fn port_of<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
) -> Option<(usize, Option<usize>)> {
    if connection.opener() != Direction::Outward {
        return None;
    }
    let local = snapshot.nat.local(connection.server())?;
    let counters = local.counters as usize;
    let outside = connection.side(Direction::Inward);
    Some((
        counters,
        crate::nat::ports::place_of(&snapshot.nat, local, &outside),
    ))
}

/// Counts a connection among the users of its SNAT port.
fn note_port<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    snat: &mut [SnatCounters],
    users: &mut [u16],
) {
    if let Some((counters, place)) = port_of(snapshot, connection)
        && let Some(counters) = snat.get_mut(counters)
    {
        counters.connections += 1;
        if let Some(users) = place.and_then(|place| users.get_mut(place)) {
            counters.used += u64::from(*users == 0);
            *users = users.saturating_add(1);
        }
    }
}

/// And no more.
fn forget_port<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    snat: &mut [SnatCounters],
    users: &mut [u16],
) {
    if let Some((counters, place)) = port_of(snapshot, connection)
        && let Some(counters) = snat.get_mut(counters)
    {
        counters.connections = counters.connections.saturating_sub(1);
        if let Some(users) = place.and_then(|place| users.get_mut(place)) {
            *users = users.saturating_sub(1);
            counters.used -= u64::from(*users == 0).min(counters.used);
        }
    }
}

fn tuple<A: Rewrite>(side: &Side<A>, number: u8) -> crate::packet::Tuple {
    let (source, destination) = side.addresses.unpack();
    let [a, b, c, d] = side.ports.to_le_bytes();
    crate::packet::Tuple {
        source,
        destination,
        source_port: u16::from_be_bytes([a, b]),
        destination_port: u16::from_be_bytes([c, d]),
        protocol: number,
    }
}

/// Gives a frame a verdict that ends its way.
#[cold]
fn finish(
    stats: &mut Stats,
    frame: &mut Frame<'_>,
    lane: &Lane,
    verdict: Verdict,
    seen: &mut impl Observe,
) {
    frame.set_verdict(verdict);
    // An answer has another length by now: what counts is what came in.
    stats.count(verdict, lane.len as usize);
    seen.step(lane.frame.into(), Step::Done(verdict));
}
