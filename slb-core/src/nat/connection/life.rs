//! The life of a connection: its packets one by one, and how long it lasts without any.

use super::span::{ECHO, Span, TRANSITORY};
use super::{Connection, Key, RESETS};
use crate::flow::Addresses;
use crate::nat::tcp::{ConnectionState, DIRECT, Direction, Segment, next_state};
use crate::wire::protocol;

impl<A: Addresses> Connection<A> {
    /// Returns true if a packet with this tuple certainly belongs to the connection, and the
    /// connection is established and does not expire before the tick `now`. With `ANY_ZONE`, tuples
    /// are shared by all ports.
    #[inline]
    pub(in crate::nat) fn goes_on_with<const ANY_ZONE: bool>(
        &self,
        key: &Key<A>,
        now: u32,
    ) -> bool {
        let remaining = self.deadline.wrapping_sub(now) as i32; // ticks wrap
        self.side(key.direction) == key.side
            && self.sequences.protocol == key.protocol
            && (ANY_ZONE || self.zone == key.zone.0)
            && (self.sequences.is_established() || self.goes_on_answering(key.direction))
            && (!self.is_unusual() || self.goes_on_through(key.direction, now))
            && remaining > 0
    }

    /// Returns true if a packet cannot change the mux that answers go through: it answers a recent
    /// packet.
    fn goes_on_through(&self, direction: Direction, now: u32) -> bool {
        direction == Direction::Outward && !self.is_contested() && !self.is_quiet(now)
    }

    /// Returns true if the connection had no packet for a while.
    fn is_quiet(&self, now: u32) -> bool {
        /// In ticks, at least 67 ms. Stacks wait at least 200 ms before they retransmit, and longer
        /// each time.
        const WHILE: u32 = 2;
        let left = self.deadline.wrapping_sub(now);
        u32::from(self.timeout().0).wrapping_sub(left) >= WHILE
    }

    /// Returns true if a packet in this direction is a further answer in a flow without a handshake
    /// whose opener has not continued it yet.
    fn goes_on_answering(&self, direction: Direction) -> bool {
        self.sequences.protocol != protocol::TCP
            && self.state() == ConnectionState::SynReceived
            && direction != self.opener()
    }

    /// Records a packet of an established connection that [goes on](Self::goes_on_with).
    #[inline]
    pub(in crate::nat) fn keep_alive(&mut self, now: u32) {
        self.deadline = now.wrapping_add(self.idle.into());
    }

    /// Returns true if a segment is a retransmission after a silence. A segment that answers a
    /// packet is not; neither is a SYN-ACK, since its client retransmits too.
    pub(in crate::nat) fn asks_again(
        &self,
        now: u32,
        direction: Direction,
        segment: &Segment,
    ) -> bool {
        self.is_quiet(now) && self.sequences.repeats(direction, segment)
    }

    /// Records that another connection has taken the outside tuple.
    pub(in crate::nat) fn supersede(&mut self) {
        self.sequences.set_state(ConnectionState::Closed);
        if self.sequences.protocol == protocol::TCP {
            self.sequences.flags |= DIRECT; // takes the server's packets off the fast path
        }
    }

    /// Returns true if another connection may have taken the outside tuple. Connections without a
    /// handshake are over only for this reason.
    pub(in crate::nat) fn is_superseded(&self) -> bool {
        let is_sure = self.sequences.protocol != protocol::TCP || self.is_contested();
        is_sure && self.state() == ConnectionState::Closed
    }

    /// Records a packet of the client to the server's own address, with its segment if it is TCP.
    /// If the packet repeats a SYN that the server does not accept because of this connection's
    /// tuple, returns whether the connection tells its ends by RSTs.
    pub(in crate::nat) fn contest(&mut self, segment: Option<&Segment>) -> Option<bool> {
        let is_in_vain = segment.is_some_and(|segment| {
            self.opener() == Direction::Inward && self.sequences.is_contested_in_vain(segment)
        });
        match segment {
            _ if self.opener() != Direction::Inward => {}
            Some(segment) => self.sequences.contest(segment),
            None if self.sequences.protocol == protocol::TCP => {}
            None => self.sequences.flags |= DIRECT,
        }
        is_in_vain.then(|| self.resets())
    }

    /// Returns true if a packet of a contested tuple belongs to the other conversation.
    pub(in crate::nat) fn is_direct(
        &mut self,
        direction: Direction,
        segment: Option<&Segment>,
    ) -> bool {
        match (direction, segment) {
            (Direction::Outward, Some(segment)) => {
                self.sequences.is_direct(Direction::Inward, segment)
            }
            (Direction::Outward, None) => self.sequences.protocol != protocol::TCP,
            (Direction::Inward, None) => {
                // The client used the frontend last.
                self.sequences.flags &= !DIRECT;
                false
            }
            (Direction::Inward, Some(_)) => false,
        }
    }

    /// Records a TCP segment of an established connection: the sequence number after it, its
    /// acknowledgement and its window.
    // Out of line, each packet from a vm would cost 12 more instructions.
    #[inline(always)]
    pub(in crate::nat) fn note_numbers(
        &mut self,
        direction: Direction,
        end: u32,
        acknowledged: u32,
        window: u16,
    ) {
        self.sequences.note_sent(direction, end);
        self.sequences
            .note_acknowledged(direction, acknowledged, window);
    }

    /// Records the first packet, with its SYN if it is TCP.
    pub(crate) fn open(&mut self, now: u32, syn: Option<&Segment>) {
        if let Some(syn) = syn {
            self.sequences.open(self.opener(), syn);
        }
        self.sequences.set_state(ConnectionState::SynSent);
        self.deadline = now.wrapping_add(self.timeout().0.into());
    }

    /// Records the first seen packet, from the middle of the connection.
    pub(crate) fn take_up(&mut self, now: u32, direction: Direction, segment: Option<&Segment>) {
        if let Some(segment) = segment {
            self.sequences.take_up(direction, segment);
        }
        let state = match direction == self.opener() {
            true => ConnectionState::SynSent,
            false => ConnectionState::SynReceived,
        };
        self.sequences.set_state(state);
        self.deadline = now.wrapping_add(self.lifetime().0.into());
    }

    /// Returns true if the connection was taken up, and only one end has sent since.
    #[cold]
    pub(crate) fn is_taken_up(&self) -> bool {
        self.state().is_handshake() && self.sequences.is_marked_as_taken_up(self.opener())
    }

    /// Returns true if the connection was taken up, and its server refused it.
    #[cold]
    pub(in crate::nat) fn is_refused_take_up(&self) -> bool {
        self.state() == ConnectionState::Closed
            && self.sequences.is_marked_as_taken_up(self.opener())
    }

    /// Returns true if the client is told by a RST when the server has no such connection.
    pub(in crate::nat) fn tells_client(&self) -> bool {
        self.sequences.flags & RESETS != 0
    }

    /// Records a further segment of an established TCP connection that neither opens nor closes
    /// anything, like nearly every packet. For other packets, returns false and records nothing.
    #[inline]
    pub(crate) fn note_ordinary(
        &mut self,
        now: u32,
        direction: Direction,
        segment: Option<&Segment>,
    ) -> bool {
        match segment {
            Some(segment)
                if self.state() == ConnectionState::Established && segment.is_ordinary() =>
            {
                self.sequences.note(direction, segment);
                self.deadline = now.wrapping_add(self.idle.into());
                true
            }
            _ => false,
        }
    }

    /// Returns true if a segment's numbers show that it does not belong to this connection: the
    /// connection is over, or never sent in its handshake the number that the segment acknowledges.
    pub(crate) fn is_anothers(&self, direction: Direction, segment: &Segment) -> bool {
        direction == self.opener()
            && !segment.flags.opens()
            && self.sequences.is_anothers(direction, segment)
    }

    /// Returns true if a segment is the server's answer to a SYN that was not sent in this
    /// connection, but reached the server another way.
    pub(in crate::nat) fn answers_another(&self, direction: Direction, segment: &Segment) -> bool {
        (self.opener(), direction) == (Direction::Inward, Direction::Outward)
            && self.sequences.answers_another(Direction::Inward, segment)
    }

    /// Records a further packet, with its segment if it is TCP. Returns the states before and after
    /// it.
    #[inline]
    pub(crate) fn note(
        &mut self,
        now: u32,
        direction: Direction,
        segment: Option<&Segment>,
    ) -> (ConnectionState, ConnectionState) {
        let before = self.state();
        let state = match segment {
            Some(segment) => {
                let opener = self.opener();
                next_state(before, &mut self.sequences, opener, direction, segment)
            }
            None => self.next_without_handshake(direction),
        };
        self.sequences.set_state(state);
        // An unanswered SYN does not keep the connection alive: otherwise, a client that retries
        // from this port would keep the connection to a dead server forever.
        let asks_anew = state == before
            && state != ConnectionState::SynSent
            && segment.is_some_and(|segment| segment.flags.opens());
        if !asks_anew {
            self.deadline = now.wrapping_add(self.lifetime().0.into());
        }
        (before, state)
    }

    /// Returns the state after a packet of a protocol without states: an answer establishes the
    /// connection, but only the opener's next packet shows that the answer arrived.
    #[inline]
    fn next_without_handshake(&self, direction: Direction) -> ConnectionState {
        use ConnectionState::{Established, SynReceived, SynSent};
        let is_openers = direction == self.opener();
        match self.state() {
            state if self.sequences.protocol == protocol::TCP => state,
            SynSent if !is_openers => SynReceived,
            SynReceived if is_openers => Established,
            state => state,
        }
    }

    /// Returns true if the connection is established without a handshake.
    pub(in crate::nat) fn is_established_flow(&self) -> bool {
        self.sequences.protocol != protocol::TCP && self.state() == ConnectionState::Established
    }

    /// Reverts an established flow without a handshake to the answered state.
    #[cold]
    pub(in crate::nat) fn hold_back(&mut self) {
        self.sequences.set_state(ConnectionState::SynReceived);
    }

    /// Returns the time for which the connection lasts without a packet: the
    /// [timeout](Self::timeout), or the idle timeout for a connection that was taken up, since an
    /// end without data to send may be silent for that long.
    // Not a part of `timeout`, where it would cost a proxy's packets ten instructions.
    #[inline]
    pub(crate) fn lifetime(&self) -> Span {
        match self.state().is_handshake() {
            true => self.lifetime_of_handshake(),
            false => self.timeout(),
        }
    }

    #[cold]
    #[inline(never)]
    fn lifetime_of_handshake(&self) -> Span {
        match self.is_taken_up() && self.sequences.protocol == protocol::TCP {
            true => Span(self.idle),
            false => self.timeout(),
        }
    }

    /// Returns the idle timeout in the present state.
    #[inline]
    pub(in crate::nat) fn timeout(&self) -> Span {
        use ConnectionState::*;
        match (self.sequences.protocol, self.state()) {
            (protocol::TCP, SynSent | SynReceived | TimeWait | Closed) => TRANSITORY,
            (protocol::ICMP | protocol::ICMPV6, _) => ECHO,
            // Half-closed connections too: the other end may send for as long as it likes.
            _ => Span(self.idle),
        }
    }
}
