//! The stages that every role that translates has in common: whose connection is it, and under
//! which name does the packet go on.

mod answers;
mod direct;
mod establish;
mod list;
mod plain;
mod state;
mod sweep;
mod unusual;
mod via;

use core::net::IpAddr;
use core::ops::Deref;
use core::time::Duration;

use super::connection::{Connection, Key, Policy, Side};
use super::rewrite::{self, Rewrite};
use super::table::{Connections, NONE};
use super::tcp::{Direction, Segment, reopens};
use super::{ConnectionState, Links, NatOptions, NatTable, NatTables};
use crate::answer::{self, IcmpError};
use crate::counters::{self, CounterMemory};
use crate::fragments::FragmentRoom;
use crate::frame::Frame;
use crate::limit::Limits;
use crate::limit::SourceLimiter;
use crate::link::{self, Link};
use crate::observe::{ConnectionStep, Observe, Step};
use crate::packet::{EchoMessage, Family, Packet, Part};
use crate::snapshot::locals::{CompiledMux, Local, NO_SENDER};
use crate::snapshot::owners::{Generations, Past};
use crate::snapshot::{BackendKey, Rejected, RuleKey, RuleMatch, Snapshot};
use crate::state::Kind;
use crate::stats::{BackendCounters, RuleCounters, Stats};
use crate::time::{Clock, Instant};
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::tcp::Flags;
use crate::wire::{ipv4, ipv6, protocol, tcp};

use self::answers::{counters_of, note_answer, note_end};
pub(crate) use self::establish::{
    Asked, Begins, Elsewhere, NO_CONNECTION, Opened, Refusal, TakeUp,
};
pub(crate) use self::plain::{Origin, PlainLane};
use self::sweep::forget;

/// The differences between the roles that translate.
pub(crate) trait Role: Sized {
    /// State that one frame leaves for the next, until the snapshot changes.
    type Last: Default;
    /// Packets go on as through a router: each loses a hop, and has to fit.
    const ROUTES: bool;
    /// Inward packets arrive in VXLAN.
    const TUNNELS: bool;
    /// Names on the inside are those of all ports.
    const SHARED: bool;
    /// TCP connections go on when their backend is no longer configured.
    const KEEPS_REMOVED: bool;
    /// True if the role has several backends to choose from.
    const CHOOSES: bool;
    /// The kind of this role's records in exported state.
    const RECORD: Kind;
    /// Packets of none of its connections may be of one at another node: see
    /// [`elsewhere`](Self::elsewhere).
    const PASSES_ON: bool;

    /// Returns which way a frame's packet goes on the fast path; `None` where the frame takes the
    /// slow path.
    fn direction(
        snapshot: &Snapshot<'_>,
        frame: &Frame<'_>,
        last: &mut Self::Last,
    ) -> Option<Direction>;

    /// Finds the packet in a frame of the inward direction; `None` where the frame takes the slow
    /// path.
    fn inward(snapshot: &Snapshot<'_>, frame: &Frame<'_>, last: &mut Self::Last) -> Option<Origin>;

    /// The port that a packet leaves by on the fast path, of a connection with this zone; `None`
    /// where it takes the slow path.
    fn leaves_by(snapshot: &Snapshot<'_>, zone: PortId, direction: Direction) -> Option<PortId>;

    /// Finds where a frame comes from, and reads it: stage 1.
    ///
    /// # Errors
    /// It concerns no connection: this becomes of it.
    fn arrive<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        last: &mut Self::Last,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict>;

    /// The connection that a packet begins.
    ///
    /// # Errors
    /// It begins none: this becomes of it.
    fn open<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<Opened<A>, Verdict>;

    /// Finds out where a packet from outside goes on that is of no connection at its vm.
    fn elsewhere<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &mut Frame<'_>,
        _: &Lane,
        _: &Asked<'_>,
        _: &mut impl Observe,
    ) -> Elsewhere {
        Elsewhere::Here
    }

    /// The connection of a segment from outside that is of none, and begins none.
    fn take_up<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &Frame<'_>,
        _: &Lane,
        _: &Segment,
        _rule: u32,
    ) -> TakeUp<A> {
        TakeUp::Not
    }

    /// The number of the mux that a packet came by, or [`Policy::DIRECT`].
    fn via<'s, S: Deref<Target = Snapshot<'s>>>(
        _: &Pipeline<'_, S>,
        _: &Frame<'_>,
        _: &Lane,
    ) -> u8 {
        Policy::DIRECT
    }

    /// The backend that a new connection from outside goes to under a rule: its place among all.
    fn choose<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &Pipeline<'_, S>,
        lane: &Lane,
        rule: u32,
        seen: &mut impl Observe,
    ) -> Option<u32>;

    /// Decides about a packet from outside that no rule takes.
    fn not_ours(snapshot: &Snapshot<'_>, lane: &Lane, found: RuleMatch) -> Verdict;

    /// Returns true if a server's packet to a client, outside of all connections, leaves
    /// untranslated. `zone` is that of the client's packet.
    fn answers_directly(
        snapshot: &Snapshot<'_>,
        zone: PortId,
        client: IpAddr,
        server: IpAddr,
    ) -> bool;

    /// Decides about a packet that matches no connection, for the given reason.
    fn unmatched(snapshot: &Snapshot<'_>, lane: &Lane, reason: DropReason) -> Verdict;

    /// Decides about an untouched frame that matches no connection and would be passed.
    fn pass<'s, S: Deref<Target = Snapshot<'s>>>(
        _: &mut Pipeline<'_, S>,
        _: &mut Frame<'_>,
        _: &Lane,
        _: &mut impl Observe,
    ) -> Verdict {
        Verdict::Pass
    }

    /// Decides about neighbour discovery.
    fn neighbour_discovery(snapshot: &Snapshot<'_>, lane: &Lane) -> Verdict;

    /// The mux that a connection's packets leave through, if they do.
    fn mux<'a, A: Table>(
        snapshot: &'a Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
    ) -> Option<&'a CompiledMux>;

    /// Makes a translated packet of a connection ready to leave; returns by which port. `opened_by` is the
    /// place of the link header that the connection was opened with, where the role keeps it.
    fn leave<A: Table>(
        snapshot: &Snapshot<'_>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        packet: &Packet,
        connection: (&Connection<A>, Option<&Link>),
        mux: Option<&CompiledMux>,
    ) -> Result<PortId, Verdict>;

    /// Sets the next hop of a translated packet to that of its connection's end, if link headers do
    /// not stay. `opened_by` is the link header that the connection was opened with.
    #[inline]
    fn readdress(_: &Snapshot<'_>, _: &mut Frame<'_>, _: Direction, _: u16, _: Option<&Link>) {}

    /// Returns the port and the link header for a packet to a connection's end that the role makes.
    fn way_to<A: Table>(
        snapshot: &Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
        opened_by: Option<Link>,
    ) -> Option<(PortId, Link)>;
}

/// A frame on its way through the stages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lane {
    pub(crate) packet: Packet,
    /// The hash of its key.
    pub(crate) hash: u64,
    /// The connection that it most likely is.
    pub(crate) candidate: u32,
    /// Bytes of the frame as it came in.
    pub(crate) len: u32,
    /// The port that its connection's name is of: the vm's, or that of the proxy's clients.
    pub(crate) zone: PortId,
    /// The node on the fabric that sent it: see [`Nat::sender_at`](crate::snapshot::locals::Nat::sender_at).
    pub(crate) sender: u32,
    /// Index of the frame in the burst.
    pub(crate) frame: u8,
    pub(crate) direction: Direction,
    /// For an ICMP error about a connection, the addresses of the error itself; `packet` has the
    /// tuple of the connection's packets.
    pub(crate) error: Option<[u64; 4]>,
}

impl Lane {
    pub(crate) const EMPTY: Self = Self {
        packet: Packet::EMPTY,
        hash: 0,
        candidate: NONE,
        len: 0,
        zone: PortId(0),
        sender: NO_SENDER,
        frame: 0,
        direction: Direction::Inward,
        error: None,
    };

    #[inline]
    pub(crate) fn key<A: Rewrite>(&self) -> Key<A> {
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
    pub(crate) fn own_packet(&self) -> Packet {
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

/// Everything but the lanes, so that the stages can borrow both.
pub(crate) struct Pipeline<'m, S> {
    pub(crate) snapshot: S,
    pub(crate) tables: NatTables<'m>,
    pub(crate) options: NatOptions,
    clock: Clock,
    /// The times at which snapshots were installed.
    generations: Generations,
    pub(crate) limits: Limits,
    pub(crate) sources: SourceLimiter<'m>,
    pub(crate) room: FragmentRoom<'m>,
    pub(crate) stats: Stats,
    /// Counters moved since the last snapshot: those of SNAT ports are to be counted again.
    has_new_counters: bool,
    /// For a host agent, the start of take-up: connections that began before it may be taken up.
    pub(crate) takes_up_since: Option<Instant>,
}

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Pipeline<'m, S> {
    pub(crate) fn new(snapshot: S, tables: NatTables<'m>, options: NatOptions) -> Self {
        let mut pipeline = Self {
            generations: Generations::new(snapshot.generation(), Instant::ZERO),
            snapshot,
            tables,
            options,
            clock: Clock::default(),
            limits: Limits::new(&options.rates()),
            sources: SourceLimiter::none(),
            room: FragmentRoom::none(),
            stats: Stats::default(),
            has_new_counters: false,
            takes_up_since: None,
        };
        pipeline.name_counters();
        pipeline.count_ports();
        pipeline
    }

    pub(crate) fn set_options(&mut self, options: NatOptions) {
        self.limits.set_rates(&options.rates());
        self.options = options;
    }

    pub(crate) fn has_counters_for(&self, snapshot: &Snapshot<'_>) -> bool {
        let NatTables {
            rules, backends, ..
        } = &self.tables;
        snapshot.rule_slots() <= rules.len() && snapshot.backend_slots() <= backends.len()
    }

    pub(crate) fn replace_counters(
        &mut self,
        mut counters: CounterMemory<'m>,
    ) -> CounterMemory<'m> {
        let tables = &mut self.tables;
        counters::replace(&mut tables.rules, &mut counters.rules);
        counters::replace(&mut tables.backends, &mut counters.backends);
        counters::replace(&mut tables.snat, &mut counters.snat);
        self.name_counters();
        self.has_new_counters = true;
        counters
    }

    /// Puts another snapshot in place, and returns the old one.
    pub(crate) fn install(&mut self, snapshot: S) -> Result<S, Rejected<S>> {
        if let Err(error) = snapshot.check_after(&self.snapshot) {
            return Err(Rejected { snapshot, error });
        }
        let old = core::mem::replace(&mut self.snapshot, snapshot);
        let generation = self.snapshot.generation();
        self.generations.install(generation, self.clock.passed());
        self.name_counters();
        if !self.snapshot.nat.has_ports_as(&old.nat) || self.has_new_counters {
            self.has_new_counters = false;
            self.count_ports();
        }
        self.tables.connections.ipv4.purge();
        self.tables.connections.ipv6.purge();
        Ok(old)
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            connections: self.tables.connections.stats(),
            ..self.stats
        }
    }

    pub(crate) fn rule_counters(&self, rule: impl RuleKey) -> Option<RuleCounters> {
        let rule = self.snapshot.rule(rule.index_in(&self.snapshot)?)?;
        self.tables.rules.get(rule.slot()).copied()
    }

    pub(crate) fn backend_counters(&self, backend: impl BackendKey) -> Option<BackendCounters> {
        let id = backend.id_in(&self.snapshot)?;
        let counters = self.tables.backends.get(id.slot()).copied();
        counters.filter(|c| c.id == id.get())
    }

    /// Tells all parts what time it is, and returns the time by which they count.
    #[inline]
    pub(crate) fn set_clock(&mut self, now: Instant) -> Instant {
        let now = self.clock.advance(now);
        self.tables.connections.advance(now);
        if let Some(fragments) = &mut self.tables.fragments {
            fragments.advance(now);
        }
        self.room.advance(now);
        self.limits.advance(now);
        self.sources.advance(now);
        now
    }

    /// The time that has passed by the clock that [`set_clock`](Self::set_clock) moves.
    pub(crate) fn passed(&self) -> Instant {
        self.clock.passed()
    }

    /// Returns the time since a slot of a table changed its owner, if that is remembered. An
    /// unknown change is longer ago.
    pub(crate) fn time_since_change(&self, past: &Past) -> Option<Duration> {
        let changed = self.generations.time_of(past.age()?);
        Some(self.clock.passed().since(changed))
    }

    /// Stage 1 of the slow path: reads a frame, finds whose it is and hashes its tuple. Returns
    /// false where it concerns no connection, and has its verdict.
    // Out of the loop of the fast path: what is live there stays in registers.
    #[inline(never)]
    fn classify<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        place: u8,
        lane: &mut Lane,
        last: &mut R::Last,
        seen: &mut impl Observe,
    ) -> bool {
        lane.len = frame.len() as u32;
        lane.frame = place;
        lane.error = None;
        match R::arrive(self, frame, lane, last, seen) {
            Ok(()) => {
                let connections = &self.tables.connections;
                match lane.packet.shape.family {
                    Family::Ipv4 => lane.hash = hash(&connections.ipv4, lane),
                    Family::Ipv6 => lane.hash = hash(&connections.ipv6, lane),
                }
                true
            }
            Err(verdict) => {
                self.conclude::<R>(frame, lane, verdict, seen);
                false
            }
        }
    }

    /// Stage 2 of the slow path: asks for the line of a lane's connection.
    #[inline]
    fn look_up(&self, lane: &mut Lane) {
        let NatTable { ipv4, ipv6, .. } = &self.tables.connections;
        lane.candidate = match lane.packet.shape.family {
            Family::Ipv4 => ipv4.candidate(lane.hash),
            Family::Ipv6 => ipv6.candidate(lane.hash),
        };
    }

    /// Stage 3 of the slow path: gives a packet the other name of its connection, which is made
    /// where it is missing and the packet may make one.
    #[inline(never)] // as `classify`
    fn translate<R: Role>(&mut self, frame: &mut Frame<'_>, lane: &Lane, seen: &mut impl Observe) {
        let result = match lane.packet.shape.family {
            Family::Ipv4 => self.translate_lane::<u64, R>(frame, lane, seen),
            Family::Ipv6 => self.translate_lane::<[u64; 4], R>(frame, lane, seen),
        };
        match result {
            Ok(port) => {
                let verdict = Verdict::Forward(port);
                frame.set_verdict(verdict);
                self.stats.forwarded.add(lane.len as usize);
                seen.step(lane.frame.into(), Step::Done(verdict));
            }
            Err(verdict) => self.conclude::<R>(frame, lane, verdict, seen),
        }
    }

    /// Gives a frame a verdict that ends its way, or finds out where it goes on if no connection has it.
    #[cold]
    pub(crate) fn conclude<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        verdict: Verdict,
        seen: &mut impl Observe,
    ) {
        let verdict = match verdict {
            Verdict::Pass => R::pass(self, frame, lane, seen),
            _ => verdict,
        };
        finish(&mut self.stats, frame, lane, verdict, seen);
    }

    #[inline]
    fn translate_lane<A: Table, R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        seen: &mut impl Observe,
    ) -> Result<PortId, Verdict> {
        let segment = segment_of(frame, lane);
        let table = A::table(&mut self.tables.connections);
        let found = table.find_from(lane.candidate, lane.hash, &lane.key());
        if let Some(number) = found
            && table.get(number).is_some_and(Connection::is_unusual)
            && let Some(verdict) = self.attend::<A, R>(number, frame, lane, segment.as_ref(), seen)
        {
            return Err(verdict);
        }
        let known = match found {
            Some(number) => self.known::<A, R>(number, lane, segment.as_ref()),
            None => None,
        };
        let known = match known {
            Some(known)
                if !(segment.is_some_and(|segment| segment.flags.opens())
                    && self.asks_in_vain::<A, R>(known.number, lane)) =>
            {
                known
            }
            _ => {
                if let Some(number) = found {
                    self.make_way::<A, R>(number);
                }
                let number = self.establish::<A, R>(frame, lane, segment.as_ref(), seen)?;
                self.made::<A>(number)
            }
        };
        let segment = segment.as_ref();
        match self.follow::<A, R>(known, R::PASSES_ON, frame, lane, segment, seen) {
            Ok(port) => Ok(port),
            Err(Stop::Done(verdict)) => Err(verdict),
            Err(Stop::Astray) => self.go_astray::<A, R>(known, frame, lane, segment, seen),
            Err(Stop::Direct) => Err(self.go_directly::<A, R>(known, frame, lane, segment, seen)),
        }
    }

    /// Lets a server's answer leave as if there were no connection of its name: the server has another
    /// one, with a client that reached it by its own address.
    #[cold]
    #[inline(never)]
    fn go_directly<A: Table, R: Role>(
        &mut self,
        known: Known,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Verdict {
        self.end::<A>(known.number);
        let opened = R::open::<A, S>(self, frame, lane, segment, seen);
        opened.err().unwrap_or(NO_CONNECTION)
    }

    /// Sends a packet on whose numbers are not those of the connection that has its name: elsewhere, or as
    /// if they were.
    #[cold]
    #[inline(never)]
    fn go_astray<A: Table, R: Role>(
        &mut self,
        known: Known,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<PortId, Verdict> {
        let known = match self.astray::<A, R>(frame, lane, segment, seen) {
            Elsewhere::Here | Elsewhere::Vm(_) => known,
            Elsewhere::Connection(number) => self.made::<A>(number),
            Elsewhere::Done(verdict) => return Err(verdict),
        };
        match self.follow::<A, R>(known, false, frame, lane, segment, seen) {
            Ok(port) => Ok(port),
            Err(Stop::Done(verdict)) => Err(verdict),
            // Only of one that may be astray, and of a server's.
            Err(Stop::Astray | Stop::Direct) => Err(NO_CONNECTION),
        }
    }

    /// A connection that goes on with a packet of its name; `None` where it does not.
    #[inline]
    fn known<A: Table, R: Role>(
        &mut self,
        number: u32,
        lane: &Lane,
        segment: Option<&Segment>,
    ) -> Option<Known> {
        let table = A::table(&mut self.tables.connections);
        let connection = table.get(number)?;
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
        if table.is_past(connection) || begins_anew {
            return None;
        }
        let local = self.snapshot.nat.local(connection.server());
        let is_sure = local.is_some_and(|local| !(R::CHOOSES && local.suspect));
        let stays = is_sure
            || (local.is_some() || R::KEEPS_REMOVED)
                && keeps_backend(&self.snapshot, connection, local, lane);
        let counters = local.map_or(NONE, |local| local.counters);
        stays.then_some(Known { number, counters })
    }

    /// A connection that was made or found just now.
    fn made<A: Table>(&mut self, number: u32) -> Known {
        let connection = A::table(&mut self.tables.connections).get(number);
        let local = connection.and_then(|c| self.snapshot.nat.local(c.server()));
        let counters = local.map_or(NONE, |local| local.counters);
        Known { number, counters }
    }

    /// Sends a packet on under the other name of its connection. Of one that `may_be_astray` the numbers
    /// are looked at first.
    #[inline]
    fn follow<A: Table, R: Role>(
        &mut self,
        Known { number, counters }: Known,
        may_be_astray: bool,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<PortId, Stop> {
        let Self {
            snapshot,
            tables,
            options,
            limits,
            stats,
            ..
        } = self;
        let direction = lane.direction;
        let table = A::table(&mut tables.connections);
        let now = table.now();
        let missing = Stop::Done(NO_CONNECTION);
        let (connection, ages) = table.get_mut_and_ages(number).ok_or(missing)?;
        let packet = &lane.packet;
        let echo = packet.shape.echo;
        if echo != EchoMessage::None
            && (echo == EchoMessage::Request) != (direction == connection.opener())
        {
            return Err(missing); // with the identifier 0 both ways have one name
        }
        let underlay = snapshot.underlay();
        let mux = R::mux(snapshot, connection, direction);
        let most = match (direction, mux) {
            (Direction::Inward, _) => u32::MAX, // as long as the fabric brought it
            (_, Some(mux)) => mux.template.inner_mtu(underlay.mtu),
            (_, None) => underlay.mtu.into(),
        };
        if R::ROUTES && (packet.hop_limit <= 1 || packet.ip_len > most) {
            let verdict = report(frame, lane, most, limits, (options, snapshot));
            return Err(Stop::Done(verdict));
        }
        // Later fragments and errors keep a connection alive as little as they move it on.
        let states = if lane.error.is_none() && packet.shape.part != Part::Later {
            if connection.note_ordinary(now, direction, segment) {
                None
            } else {
                if may_be_astray
                    && segment.is_some_and(|segment| connection.is_anothers(direction, segment))
                {
                    return Err(Stop::Astray);
                }
                if R::PASSES_ON
                    && segment.is_some_and(|segment| connection.answers_another(direction, segment))
                    && is_answered_directly::<R>(snapshot, lane)
                {
                    return Err(Stop::Direct);
                }
                Some(connection.note(now, direction, segment))
            }
        } else {
            Some((connection.state(), connection.state()))
        };
        if let Some((before, state)) = states
            && (before, state) != (ConnectionState::Established, ConnectionState::Established)
        {
            let ends = before.is_over() != state.is_over();
            if (ends || before.is_handshake()) && !ages.note(number, connection.protocol(), state) {
                connection.hold_back();
            }
            if ends && let Some(counters) = tables.backends.get_mut(counters as usize) {
                note_end(counters, state.is_over());
            }
            if direction != connection.opener() && connection.is_refused_take_up() {
                return Err(missing); // as if it had not been taken up
            }
            let may_answer = before == ConnectionState::SynSent || before != state;
            if may_answer && direction != connection.opener() {
                let is_error = lane.error.is_some();
                let states = (before, state);
                let begins_anew =
                    note_answer(snapshot, connection, &mut tables.backends, states, is_error);
                if begins_anew && let Some(counters) = connection.rule().counters(&mut tables.rules)
                {
                    counters.flows += 1;
                }
            }
        }
        seen.step(
            lane.frame.into(),
            Step::Connection(ConnectionStep::Found(connection.shown_state())),
        );
        let hops = u8::from(R::ROUTES && mux.is_none()); // encapsulation takes its own
        let own_packet;
        let packet = if lane.error.is_some() {
            own_packet = lane.own_packet();
            // Who did not see the connection can only guess a number that its sender has in flight.
            let quoted = rewrite::quoted_sequence::<A>(frame.bytes(), &own_packet);
            let unmatched = Stop::Done(Verdict::Drop(DropReason::IcmpUnmatched));
            let (of, sequences) = (direction.reverse(), connection.sequences());
            let is_opener = of == connection.opener();
            let is_known = |n| sequences.is_recent(of, n) || is_opener && sequences.is_later_syn(n);
            if quoted.is_some_and(|n| !is_known(n)) {
                return Err(if may_be_astray {
                    Stop::Astray
                } else {
                    unmatched
                });
            }
            rewrite::translate_error(frame.bytes_mut(), &own_packet, connection, direction, hops)
                .ok_or(unmatched)?;
            &own_packet
        } else {
            rewrite::translate(frame.bytes_mut(), packet, connection, direction, hops)
                .ok_or(Stop::Done(Verdict::Drop(DropReason::Truncated)))?;
            packet
        };
        if options.clamp_mss && segment.is_some_and(|segment| segment.flags.contains(Flags::SYN)) {
            let most = clamped_mss(underlay.mtu, packet.shape.family);
            rewrite::clamp_mss(frame.bytes_mut(), packet, most);
        }
        let to = connection.translated(direction);
        seen.step(
            lane.frame.into(),
            Step::Translated(to.tuple(connection.protocol())),
        );
        let len = lane.len as usize;
        if let Some(counters) = connection.rule().counters(&mut tables.rules) {
            counters.forwarded.add(len);
            counters.syns += u64::from(packet.opens());
        }
        stats.syns += u64::from(packet.opens());
        stats.icmp_errors += u64::from(lane.error.is_some());
        if let Some(counters) = tables.backends.get_mut(counters as usize) {
            counters.forwarded.add(len);
        }
        let opened_by = A::links_of(&tables.links).get(number as usize);
        let connection = (&*connection, opened_by);
        R::leave(snapshot, frame, lane, packet, connection, mux).map_err(Stop::Done)
    }

    /// Ends a connection whose name on the outside another one is about to get. Where its flow goes to
    /// another backend, the old one's late answers are still translated. A late SYN-ACK is dropped: with
    /// it the client would go on with a server that its segments do not reach.
    #[cold]
    fn make_way<A: Table, R: Role>(&mut self, number: u32) {
        let table = A::table(&mut self.tables.connections);
        let moves = R::CHOOSES
            && table.get(number).is_some_and(|connection| {
                (connection.protocol() != protocol::TCP
                    || connection.state() == ConnectionState::SynSent)
                    && connection.opener() == Direction::Inward
                    && !table.is_past(connection)
            });
        if !moves {
            return self.end::<A>(number);
        }
        if let Some(connection) = table.get(number)
            && let Some(counters) =
                counters_of(&self.snapshot, connection, &mut self.tables.backends)
        {
            note_end(counters, true);
        }
        if !table.supersede(number) {
            self.end::<A>(number);
        }
    }

    /// Ends a connection without telling anybody.
    pub(crate) fn end<A: Table>(&mut self, number: u32) {
        let NatTables {
            connections,
            backends,
            snat,
            snat_ports,
            ..
        } = &mut self.tables;
        let table = A::table(connections);
        if let Some(connection) = table.get(number) {
            forget(&self.snapshot, connection, backends, (snat, snat_ports));
        }
        table.remove(number);
    }
}

/// Why a packet does not go on under the other name of its connection.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// This becomes of it.
    Done(Verdict),
    /// The packet has the connection's name, but is not of the connection.
    Astray,
    /// The server answers a client that reached it by its own address.
    Direct,
}

/// A connection that a packet is of.
#[derive(Clone, Copy, Debug)]
struct Known {
    number: u32,
    /// The place of its backend's counters; [`NONE`]: the backend is gone.
    counters: u32,
}

/// Returns true if a server's packet of no connection leaves untranslated.
#[cold]
fn is_answered_directly<R: Role>(snapshot: &Snapshot<'_>, lane: &Lane) -> bool {
    let tuple = lane.packet.tuple();
    R::answers_directly(snapshot, lane.zone, tuple.destination, tuple.source)
}

/// Returns true if a connection keeps its backend, which is gone or unhealthy for some rule. TCP
/// keeps it: the other end is there and nowhere else. A protocol without connections moves with the
/// client's next packet, unless there is no choice.
#[cold]
fn keeps_backend<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    connection: &Connection<A>,
    local: Option<&Local>,
    lane: &Lane,
) -> bool {
    let packet = &lane.packet;
    // Errors and later fragments only follow their flow.
    let may_begin = lane.error.is_none()
        && packet.shape.part != Part::Later
        && packet.shape.echo != EchoMessage::Reply;
    let is_clients =
        (connection.opener(), lane.direction) == (Direction::Inward, Direction::Inward);
    if packet.protocol == protocol::TCP || !is_clients || !may_begin {
        return true;
    }
    let RuleMatch::Rule(rule) = snapshot.classify(packet) else {
        return true;
    };
    local.is_some_and(|local| {
        snapshot.keeps_flows(rule, local.backend)
            || snapshot.gets_new_flows(rule, packet, local.backend)
    })
}

/// Sends a packet with its other name, which leaves the vm of a zone, on its way through a mux.
///
/// # Errors
/// The headroom is too small. The frame is then unchanged.
#[inline(never)]
pub(crate) fn leave_through(
    snapshot: &Snapshot<'_>,
    mux: &CompiledMux,
    frame: &mut Frame<'_>,
    packet: &Packet,
    (zone, hash): (PortId, u64),
) -> Result<(), DropReason> {
    mux.template.encapsulate(frame, packet, hash)?;
    let vni = snapshot.nat.vm_by_port(zone).map(|vm| vm.vni);
    mux.template.set_vni(frame, vni.unwrap_or_default());
    Ok(())
}

/// The table of a family.
pub(crate) trait Table: Rewrite {
    fn table<'t, 'm>(connections: &'t mut NatTable<'m>) -> &'t mut Connections<'m, Self>;

    /// The same to look at.
    fn table_of<'t, 'm>(connections: &'t NatTable<'m>) -> &'t Connections<'m, Self>;

    /// The link headers that its connections were opened with.
    fn links_of<'t>(links: &'t Links<'_>) -> &'t [Link];

    /// The link headers of one family's connections.
    fn links<'t>(links: &'t mut Links<'_>) -> &'t mut [Link];
}

impl Table for u64 {
    #[inline]
    fn table<'t, 'm>(connections: &'t mut NatTable<'m>) -> &'t mut Connections<'m, Self> {
        &mut connections.ipv4
    }

    fn table_of<'t, 'm>(connections: &'t NatTable<'m>) -> &'t Connections<'m, Self> {
        &connections.ipv4
    }

    fn links_of<'t>(links: &'t Links<'_>) -> &'t [Link] {
        &links.ipv4
    }

    fn links<'t>(links: &'t mut Links<'_>) -> &'t mut [Link] {
        &mut links.ipv4
    }
}

impl Table for [u64; 4] {
    #[inline]
    fn table<'t, 'm>(connections: &'t mut NatTable<'m>) -> &'t mut Connections<'m, Self> {
        &mut connections.ipv6
    }

    fn table_of<'t, 'm>(connections: &'t NatTable<'m>) -> &'t Connections<'m, Self> {
        &connections.ipv6
    }

    fn links_of<'t>(links: &'t Links<'_>) -> &'t [Link] {
        &links.ipv6
    }

    fn links<'t>(links: &'t mut Links<'_>) -> &'t mut [Link] {
        &mut links.ipv6
    }
}

#[inline]
fn hash<A: Rewrite>(table: &Connections<'_, A>, lane: &Lane) -> u64 {
    let hash = table.hash(&lane.key());
    table.prefetch(hash);
    hash
}

/// Returns the TCP segment of a frame, if its whole header is present.
#[inline]
fn segment_of(frame: &Frame<'_>, lane: &Lane) -> Option<Segment> {
    let packet = &lane.packet;
    if packet.protocol != protocol::TCP || lane.error.is_some() || packet.shape.part == Part::Later
    {
        return None;
    }
    let transport = usize::from(packet.shape.transport_offset);
    let bytes = frame.bytes().get(transport..)?;
    let len = usize::from(packet.shape.ip_offset) + packet.ip_len() - transport;
    match packet.shape.part {
        Part::Whole => Segment::parse(bytes, len),
        _ => first_fragment(bytes, len),
    }
}

/// The same of a first fragment, whose header's options may go on in the next one.
#[cold]
fn first_fragment(bytes: &[u8], len: usize) -> Option<Segment> {
    let header_len = usize::from(bytes.get(12)? >> 4) * 4;
    Segment::parse(bytes, len.max(header_len))
}

/// The largest segment that fits the fabric in VXLAN.
pub(crate) fn clamped_mss(mtu: u16, family: Family) -> u16 {
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
    limits: &mut Limits,
    (options, snapshot): (&NatOptions, &Snapshot<'_>),
) -> Verdict {
    let error = if lane.packet.hop_limit <= 1 {
        IcmpError::HopLimit
    } else {
        IcmpError::TooBig(most)
    };
    report_error(frame, lane, error, limits, (options, snapshot))
}

/// Makes a frame that cannot go on the ICMP error given, where its sender may be told.
#[cold]
pub(crate) fn report_error(
    frame: &mut Frame<'_>,
    lane: &Lane,
    error: IcmpError,
    limits: &mut Limits,
    (options, snapshot): (&NatOptions, &Snapshot<'_>),
) -> Verdict {
    let source = options.icmp_source(snapshot.underlay(), lane.packet.shape.family);
    let back = match lane.direction {
        Direction::Outward => None,
        Direction::Inward => Some(way_back(snapshot, lane)),
    };
    report_from(frame, lane, error, limits, (source, back))
}

/// Answers with an ICMP error from `source`, by the way `back`; `None`: by the way that the frame came.
#[cold]
fn report_from(
    frame: &mut Frame<'_>,
    lane: &Lane,
    error: IcmpError,
    limits: &mut Limits,
    (source, back): (IpAddr, Option<(PortId, Link)>),
) -> Verdict {
    let packet = &lane.packet;
    let may_be_told = lane.error.is_none() && answer::may_be_told(frame.bytes(), packet);
    if !may_be_told || !limits.allow(error.kind()) {
        return Verdict::Drop(error.reason());
    }
    if answer::icmp_error(frame, packet, error, source).is_none() {
        return Verdict::Drop(DropReason::NoHeadroom);
    }
    let Some((port, link)) = back else {
        return Verdict::Reply;
    };
    match link::readdress(frame, &link) {
        Some(()) => Verdict::Forward(port),
        None => Verdict::Drop(error.reason()),
    }
}

/// Returns the port and the link header of an answer to a packet that came out of VXLAN: those of the
/// vm of this node that sent the packet, or those of the fabric, which delivers to any other sender.
#[cold]
fn way_back(snapshot: &Snapshot<'_>, lane: &Lane) -> (PortId, Link) {
    let sender = snapshot.nat.vm_by_port(lane.zone).and_then(|vm| {
        let source = lane.packet.tuple().source;
        let port = snapshot.nat.port_of_neighbour(source, vm.vni)?;
        snapshot.nat.vm_by_port(port)
    });
    let underlay = snapshot.underlay();
    match sender {
        Some(vm) => (vm.port, Link::new(underlay.mac, vm.mac)),
        None => (underlay.port, Link::new(underlay.mac, underlay.next_hop)),
    }
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
    // An answer has another length by now: what counts is what came in.
    stats.count(verdict, lane.len as usize);
    seen.step(lane.frame.into(), Step::Done(verdict));
}
