//! Stage 3 of the slow path: translates a packet of a known connection to the tuple of its other
//! side.

use core::ops::Deref;

use super::answers::{counters_of, note_answer, note_end};
use super::lane::segment_of;
use super::report::report;
use super::sweep::forget;
use super::{Elsewhere, Lane, NO_CONNECTION, Pipeline, Role, Table, clamped_mss};
use crate::frame::Frame;
use crate::meter;
use crate::nat::connection::Connection;
use crate::nat::rewrite::{self, Rewrite};
use crate::nat::table::NONE;
use crate::nat::tcp::{Direction, Segment, reopens};
use crate::nat::{ConnectionState, NatTables};
use crate::observe::{ConnectionStep, Observe, Step};
use crate::packet::{EchoMessage, Part};
use crate::snapshot::locals::Local;
use crate::snapshot::{RuleMatch, Snapshot};
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::protocol;
use crate::wire::tcp::Flags;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    #[inline]
    pub(crate) fn translate_lane<A: Table, R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        seen: &mut impl Observe,
    ) -> Result<PortId, Verdict> {
        let segment = segment_of(frame, lane);
        let table = A::table(&mut self.tables.connections);
        let mut found = table.find_from(lane.candidate, lane.hash, &lane.key());
        if lane.is_unidentified_icmp()
            && let Some(connection) = found.and_then(|number| table.get(number))
            && is_of_pings(&self.snapshot, connection)
        {
            found = None;
        }
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

    /// Lets a server's answer leave as if there were no connection with its tuple: the server has
    /// another one, with a client that reached it by its own address.
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

    /// Forwards a packet whose numbers do not match the connection with its tuple: to another
    /// destination, or as if they matched.
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
        let connection = A::table(&mut self.tables.connections).get(known.number);
        let is_refused = connection.is_some_and(Connection::is_refused_take_up);
        let known = match self.astray::<A, R>(frame, lane, (segment, is_refused), seen) {
            Elsewhere::Here | Elsewhere::Vm(_) => known,
            Elsewhere::Connection(number) => self.made::<A>(number),
            Elsewhere::Done(verdict) => return Err(verdict),
        };
        match self.follow::<A, R>(known, false, frame, lane, segment, seen) {
            Ok(port) => Ok(port),
            Err(Stop::Done(verdict)) => Err(verdict),
            // `Astray` needs `may_be_astray`, and `Direct` a packet from the server.
            Err(Stop::Astray | Stop::Direct) => Err(NO_CONNECTION),
        }
    }

    /// Returns the connection if it goes on with a packet of its tuple; else `None`.
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

    /// Returns a connection that was just made or found.
    fn made<A: Table>(&mut self, number: u32) -> Known {
        let connection = A::table(&mut self.tables.connections).get(number);
        let local = connection.and_then(|c| self.snapshot.nat.local(c.server()));
        let counters = local.map_or(NONE, |local| local.counters);
        Known { number, counters }
    }

    /// Forwards a packet with the other tuple of its connection. If the packet `may_be_astray`,
    /// checks its numbers first.
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
            return Err(missing); // with identifier 0, both directions have one key
        }
        let underlay = snapshot.underlay();
        let tunnel = R::tunnel(snapshot, connection, direction);
        let most = match (direction, tunnel) {
            (Direction::Inward, _) => u32::MAX, // any length that the fabric delivered
            (_, Some(tunnel)) => tunnel.inner_mtu(underlay.mtu),
            (_, None) if R::stays(snapshot, connection, direction) => u32::MAX,
            (_, None) => underlay.mtu.into(),
        };
        if R::ROUTES && (packet.hop_limit <= 1 || packet.ip_len > most) {
            let verdict = report(frame, lane, most, limits, (options, snapshot));
            return Err(Stop::Done(verdict));
        }
        // Later fragments and errors neither keep a connection alive nor change its state.
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
            if may_be_astray && connection.is_refused_take_up() {
                return Err(Stop::Astray);
            }
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
            if direction != connection.opener()
                && connection.is_refused_take_up()
                && !(connection.tells_client() && R::is_last_asked(snapshot, lane, connection))
            {
                return Err(missing); // as if the connection had not been taken up
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
        let hops = u8::from(R::ROUTES && tunnel.is_none()); // encapsulation decrements it
        let own_packet;
        let packet = if lane.error.is_some() {
            own_packet = lane.own_packet();
            // A forger that does not see the connection can only guess a sequence number in flight.
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
        let (is_inside, vm) = (connection.0.is_inside(), connection.0.zone());
        let port = R::leave(snapshot, frame, lane, packet, connection, tunnel);
        let port = port.map_err(Stop::Done)?;
        if R::METERS && !lane.is_call {
            let len = match direction {
                Direction::Inward => frame.len(),
                Direction::Outward => len,
            };
            meter::count(&mut tables.vms, vm, (is_inside, direction), len);
            if direction == Direction::Outward && port != underlay.port {
                meter::count_here(&mut tables.vms, port, frame.len());
            }
        }
        Ok(port)
    }

    /// Ends a connection whose outside tuple another connection is about to get. If its flow goes
    /// to another backend, late answers of the old backend are still translated, but a late SYN-ACK
    /// is dropped: with it, the client would continue with a server that its segments do not reach.
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

    /// Ends a connection without telling its ends.
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

/// The reason why a packet is not translated to the other tuple of its connection.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// The packet gets this verdict.
    Done(Verdict),
    /// The packet has the connection's tuple, but does not belong to the connection.
    Astray,
    /// The server answers a client that reached it by its own address.
    Direct,
}

/// The connection of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    number: u32,
    /// Index of the backend's counters; [`NONE`] if the backend is gone.
    counters: u32,
}

/// Returns true if a server's packet without a connection leaves untranslated.
#[cold]
fn is_answered_directly<R: Role>(snapshot: &Snapshot<'_>, lane: &Lane) -> bool {
    let tuple = lane.packet.tuple();
    R::answers_directly(snapshot, lane.zone, tuple.destination, tuple.source)
}

/// Returns true if a connection of ICMP is of pings only: a vm's own call, or one to a VIP that has no rule
/// for every protocol.
#[cold]
fn is_of_pings<A: Rewrite>(snapshot: &Snapshot<'_>, connection: &Connection<A>) -> bool {
    let (_, vip) = connection.side(Direction::Inward).addresses.unpack();
    connection.opener() == Direction::Outward || !snapshot.takes_all_at(vip, connection.zone())
}

/// Returns true if a connection keeps its backend, which is gone or unhealthy for some rule. TCP
/// connections keep it, since no other backend has their state. Connectionless flows move with the
/// client's next packet, unless there is no other backend.
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
    let RuleMatch::Rule(rule) = snapshot.classify_at(packet, lane.zone) else {
        return true;
    };
    local.is_some_and(|local| {
        snapshot.keeps_flows(rule, local.backend)
            || snapshot.gets_new_flows(rule, packet, local.backend)
    })
}
