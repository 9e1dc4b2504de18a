//! The sequence numbers that both ends of a connection have sent and acknowledged, in 24 bytes.

use super::{ConnectionState, Direction, Segment};
use crate::wire::tcp::Flags;

/// The value for no window scale: at most one SYN had the option, so windows are unscaled.
const NO_SHIFT: u8 = 15;

/// Marks the responder's window of a connection that was taken up in the middle, and of which only
/// one end has sent since. Windows have the largest bound, and no scale yet.
const TAKEN_UP: u8 = 0xf0 | NO_SHIFT;

/// The bits of [`Sequences::state`] that hold the [`ConnectionState`].
const STATE: u8 = 0x07;
/// The window scale of a later SYN, in four bits of the same byte.
const LATER_SHIFT: u32 = 3;
/// Set if the number of a later SYN is stored.
const LATER: u8 = 0x80;

/// In [`Sequences::flags`], set if the client also talks to the server's own address from the same
/// port. A stored SYN is then one to that address.
pub(in crate::nat) const DIRECT: u8 = 0x80;

/// The smallest bound on what an end may send beyond what the other has acknowledged, in bytes:
/// the largest window without a scale, rounded up.
const LEAST_BOUND: u32 = 1 << 16;

/// The sequence numbers, acknowledgements and windows of both ends. Index 0 is the end that sends
/// inward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequences {
    /// The sequence number after the last one that the end sent.
    pub(super) sent: [u32; 2],
    /// The last acknowledgement of the end: the number that it expects next.
    pub(super) acknowledged: [u32; 2],
    /// Window scale of the end in the low four bits. The high four bits, `e`, bound its last
    /// window: at most 2^(16 + e) bytes.
    pub(super) windows: [u8; 2],
    /// The low 24 bits, little-endian, of the number that acknowledges a later SYN of the opener.
    /// The answer has all 32 bits, so these only have to distinguish it from other answers.
    pub(super) later: [u8; 3],
    // The next three bytes belong to the connection: elsewhere, they would need a second cache
    // line.
    /// A [`ConnectionState`] and the later SYN's window scale; zero if the place is free.
    pub(super) state: u8,
    pub(in crate::nat) protocol: u8,
    pub(in crate::nat) flags: u8,
}

/// The contents of [`Sequences`], unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) sent: [u32; 2],
    pub(crate) acknowledged: [u32; 2],
    pub(crate) windows: [u8; 2],
    /// The low bits of the acknowledgement of a later SYN, and the window scale of that SYN.
    pub(crate) later: Option<([u8; 3], u8)>,
}

impl Sequences {
    pub(crate) const EMPTY: Self = Self {
        sent: [0; 2],
        acknowledged: [0; 2],
        windows: [NO_SHIFT; 2],
        later: [0; 3],
        state: 0,
        protocol: 0,
        flags: 0,
    };

    /// Makes sequence numbers without any segment, with the connection's three bytes.
    pub(in crate::nat) const fn beside(state: ConnectionState, protocol: u8, flags: u8) -> Self {
        Self {
            state: state as u8,
            protocol,
            flags,
            ..Self::EMPTY
        }
    }

    /// Returns all numbers, for export.
    pub(crate) fn numbers(&self) -> Numbers {
        let later = (self.later, self.state >> LATER_SHIFT & 0xf);
        Numbers {
            sent: self.sent,
            acknowledged: self.acknowledged,
            windows: self.windows,
            later: self.has_kept().then_some(later),
        }
    }

    /// Takes over exported numbers of a connection in this state.
    pub(in crate::nat) fn restore(&mut self, state: ConnectionState, numbers: &Numbers) {
        self.sent = numbers.sent;
        self.acknowledged = numbers.acknowledged;
        self.windows = numbers.windows;
        self.state = state as u8;
        if let Some((later, shift)) = numbers.later {
            self.later = later;
            self.state |= (shift & 0xf) << LATER_SHIFT | LATER;
        }
    }

    /// Returns true if the slot is free.
    #[inline]
    pub(in crate::nat) fn is_free(&self) -> bool {
        self.state == 0
    }

    /// Frees the place.
    pub(in crate::nat) fn free(&mut self) {
        self.state = 0;
    }

    /// Returns true if the connection is established, and neither end has closed it.
    #[inline]
    pub(in crate::nat) fn is_established(&self) -> bool {
        self.state & STATE == ConnectionState::Established as u8
    }

    /// Returns the state of the connection.
    #[inline]
    pub(in crate::nat) fn state(&self) -> ConnectionState {
        let place = usize::from(self.state & STATE).wrapping_sub(1);
        ConnectionState::ALL
            .get(place)
            .copied()
            .unwrap_or(ConnectionState::Closed)
    }

    #[inline]
    pub(in crate::nat) fn set_state(&mut self, state: ConnectionState) {
        self.state = self.state & !STATE | state as u8;
    }

    /// Starts over with a SYN in `direction`.
    pub(crate) fn open(&mut self, direction: Direction, syn: &Segment) {
        *self = Self {
            state: self.state & STATE,
            protocol: self.protocol,
            flags: self.flags,
            ..Self::EMPTY
        };
        self.ask(direction, syn);
    }

    /// Starts over with a segment in `direction` from the middle of a connection. Windows get the
    /// largest bound, since their scale is unknown.
    pub(in crate::nat) fn take_up(&mut self, direction: Direction, segment: &Segment) {
        let (own, other) = (direction.index(), direction.reverse().index());
        self.sent[own] = segment.end();
        self.acknowledged[own] = segment.acknowledgement;
        self.sent[other] = segment.acknowledgement;
        self.acknowledged[other] = segment.sequence;
        self.windows = [TAKEN_UP; 2];
    }

    /// Returns true if the responder's window has the mark of a connection that was taken up.
    pub(in crate::nat) fn is_marked_as_taken_up(&self, opener: Direction) -> bool {
        self.windows[opener.reverse().index()] == TAKEN_UP
    }

    /// Returns true if the connection was taken up, and only one end has sent since.
    pub(super) fn is_taken_up(&self, state: ConnectionState, opener: Direction) -> bool {
        state.is_handshake() && self.is_marked_as_taken_up(opener)
    }

    /// Records a SYN in `direction`.
    pub(super) fn ask(&mut self, direction: Direction, syn: &Segment) {
        let (own, other) = (direction.index(), direction.reverse().index());
        self.sent[own] = syn.end();
        // An acknowledgement covers at least the SYN.
        self.acknowledged[other] = syn.sequence.wrapping_add(1);
        // RFC 7323 §2.2: the window of a SYN itself is not scaled.
        self.windows[own] = syn.window_shift.unwrap_or(NO_SHIFT);
    }

    /// Records a SYN of the opener on an existing connection.
    pub(super) fn ask_again(&mut self, state: ConnectionState, opener: Direction, syn: &Segment) {
        let (own, other) = (opener.index(), opener.reverse().index());
        let shift = syn.window_shift.unwrap_or(NO_SHIFT);
        if state != ConnectionState::SynSent {
            let is_same = state == ConnectionState::SynReceived
                && self.acknowledged[other] == syn.sequence.wrapping_add(1);
            if !is_same {
                self.keep(syn.end(), shift);
            }
            return;
        }
        let first = self.sent[own];
        if syn.end() == first {
            return;
        }
        // The later number takes precedence, but the answer to the first may be on its way, or the
        // later SYN may be forged: accept an answer to either.
        if !self.is_kept(first) && (!self.has_kept() || self.is_kept(syn.end())) {
            self.keep(first, self.windows[own] & 0xf);
        }
        self.ask(opener, syn);
    }

    /// Stores the number that acknowledges a SYN, and the SYN's window scale.
    fn keep(&mut self, number: u32, shift: u8) {
        let [a, b, c, _] = number.to_le_bytes();
        self.later = [a, b, c];
        self.state = self.state & STATE | shift << LATER_SHIFT | LATER;
        self.flags &= !DIRECT;
    }

    /// Returns true if an earlier SYN to the responder's own address is stored, and the responder
    /// continued this connection.
    pub(in crate::nat) fn is_contested_in_vain(&self, segment: &Segment) -> bool {
        self.state() == ConnectionState::Established
            && self.flags & DIRECT != 0
            && segment.flags.opens()
            && self.is_kept(segment.end())
    }

    /// Records a segment of the opener to the responder's own address.
    pub(in crate::nat) fn contest(&mut self, segment: &Segment) {
        if segment.flags.opens() {
            self.keep(segment.end(), NO_SHIFT);
            self.flags |= DIRECT;
        } else if self.state() == ConnectionState::SynSent && !self.has_kept() {
            self.flags |= DIRECT;
        }
    }

    /// Returns true if a segment of the responder answers a segment to its own address.
    pub(in crate::nat) fn is_direct(&self, opener: Direction, segment: &Segment) -> bool {
        let is_asked = matches!(
            self.state(),
            ConnectionState::SynSent | ConnectionState::SynReceived
        );
        let answers = segment.flags.contains(Flags::ACK)
            && segment.flags.intersects(Flags::SYN.with(Flags::RST));
        if is_asked && answers && self.acknowledges_syn(opener, segment) {
            return false;
        }
        if self.has_kept() {
            answers && self.is_kept(segment.acknowledgement)
        } else {
            self.state() == ConnectionState::SynSent
        }
    }

    /// Returns true if a segment in `direction` has data or FIN, and all of it was sent before.
    pub(in crate::nat) fn repeats(&self, direction: Direction, segment: &Segment) -> bool {
        let is_syn = segment.flags.contains(Flags::SYN);
        segment.len != 0 && !is_syn && !after(segment.end(), self.sent[direction.index()])
    }

    fn has_kept(&self) -> bool {
        self.state & LATER != 0
    }

    /// Returns true if a number acknowledges the stored SYN.
    pub(super) fn is_kept(&self, number: u32) -> bool {
        let [a, b, c, _] = number.to_le_bytes();
        self.has_kept() && self.later == [a, b, c]
    }

    /// Returns true if a segment to the opener acknowledges its present SYN. If the SYN carries
    /// data, the answer may acknowledge a part of it (RFC 7413 §4.2.2).
    pub(super) fn acknowledges_syn(&self, opener: Direction, segment: &Segment) -> bool {
        let number = segment.acknowledgement;
        segment.flags.contains(Flags::ACK)
            && !after(self.acknowledged[opener.reverse().index()], number)
            && !after(number, self.sent[opener.index()])
    }

    /// Starts a new connection when the SYN-ACK acknowledges the stored SYN.
    pub(super) fn begin_anew(&mut self, opener: Direction, answer: &Segment) {
        self.sent[opener.index()] = answer.acknowledgement;
        self.windows[opener.index()] = self.state >> LATER_SHIFT & 0xf;
        self.answer(opener, answer);
    }

    /// Records the SYN-ACK to the opener.
    pub(super) fn answer(&mut self, opener: Direction, answer: &Segment) {
        let responder = opener.reverse();
        self.ask(responder, answer);
        self.acknowledged[responder.index()] = answer.acknowledgement;
        if self.windows.iter().any(|window| window & 0xf == NO_SHIFT) {
            self.windows = [0; 2]; // RFC 7323 §1.3: both ends have to send the option
        }
        self.state &= STATE;
        self.flags &= !DIRECT;
    }

    /// Returns the number of bytes that an end accepts beyond its acknowledgement: its window
    /// rounded up.
    #[inline]
    pub(super) fn bound_of(&self, receiver: Direction) -> u32 {
        LEAST_BOUND << (self.windows[receiver.index()] >> 4)
    }

    /// Returns the sequence and acknowledgement numbers of a RST to the end whose segments go in
    /// `direction`, as the other end would send it.
    pub(crate) fn reset_to(&self, direction: Direction) -> (u32, u32) {
        let other = direction.reverse().index();
        let expected = self.acknowledged[direction.index()];
        // Data that the other end sent beyond that has more likely arrived than been lost.
        let sequence = if after(self.sent[other], expected) {
            self.sent[other]
        } else {
            expected
        };
        (sequence, self.sent[direction.index()])
    }

    /// Returns true if a segment in `direction` may have this number: it was sent, and was not
    /// acknowledged long ago (RFC 5927 §4.1). Numbers of one unscaled window back may still be on
    /// their way.
    pub(crate) fn is_recent(&self, direction: Direction, sequence: u32) -> bool {
        const SLACK: u32 = 65_535;
        let sent = self.sent[direction.index()];
        let acknowledged = self.acknowledged[direction.reverse().index()];
        let in_flight = if after(sent, acknowledged) {
            sent.wrapping_sub(acknowledged)
        } else {
            0
        };
        sent.wrapping_sub(sequence) <= in_flight.saturating_add(SLACK)
    }

    /// Returns true if this is the number of a later, unanswered SYN to the responder with the
    /// connection's tuple. A SYN with data does not count.
    pub(crate) fn is_later_syn(&self, sequence: u32) -> bool {
        self.flags & DIRECT == 0 && self.is_kept(sequence.wrapping_add(1))
    }

    /// Returns true if a segment of the opener, other than a SYN, has numbers that do not belong to
    /// this connection, which is over or not established. A connection that was
    /// taken up, and closed before both ends were heard, has no numbers.
    pub(in crate::nat) fn is_anothers(&self, opener: Direction, segment: &Segment) -> bool {
        let acknowledges = segment.flags.contains(Flags::ACK);
        let number = segment.acknowledgement;
        let (own, other) = (opener.index(), opener.reverse().index());
        if self.is_taken_up(self.state(), opener) {
            return false;
        }
        match self.state() {
            ConnectionState::SynSent => acknowledges,
            ConnectionState::SynReceived => {
                let is_sent =
                    !after(number, self.sent[other]) && !after(self.acknowledged[own], number);
                acknowledges && !is_sent
            }
            ConnectionState::Closed if self.is_marked_as_taken_up(opener) => true,
            ConnectionState::TimeWait | ConnectionState::Closed => {
                // Lost data leaves a gap.
                let ahead = segment.sequence.wrapping_sub(self.sent[own]);
                let is_next = ahead <= self.bound_of(opener.reverse());
                !is_next && !self.is_recent(opener, segment.sequence)
                    || acknowledges && !self.is_recent(opener.reverse(), number)
            }
            _ => false,
        }
    }

    /// Returns true if a segment of the responder answers a SYN that does not belong to this
    /// connection. Numbers of one unscaled window back may belong to a retransmitted SYN-ACK. While
    /// the connection is open, its responder challenges other SYNs (RFC 5961 §4.2), and accepts
    /// none.
    pub(in crate::nat) fn answers_another(&self, opener: Direction, segment: &Segment) -> bool {
        use ConnectionState::{Established, SynReceived};
        let number = segment.acknowledgement;
        segment.flags.contains(Flags::SYN.with(Flags::ACK))
            && !matches!(self.state(), SynReceived | Established)
            && !self.is_kept(number)
            && !self.acknowledges_syn(opener, segment)
            && !self.is_recent(opener, number)
    }

    /// Returns true if a RST in `direction` closes the connection.
    pub(super) fn is_reset(
        &self,
        state: ConnectionState,
        opener: Direction,
        direction: Direction,
        segment: &Segment,
    ) -> bool {
        if direction != opener {
            if state == ConnectionState::SynSent {
                // RFC 9293 §3.10.7.3: the answer to a SYN has to acknowledge it.
                return self.acknowledges_syn(opener, segment);
            }
            // A responder that knows the connection challenges a SYN (RFC 5961 §4.2). A refusal
            // shows that it has forgotten the connection.
            let refuses = segment.flags.contains(Flags::ACK);
            if refuses && self.is_kept(segment.acknowledgement) {
                return true;
            }
        }
        // The receiver expects the number that it acknowledged last. It may have received more
        // without an acknowledgement, but sent segments prove nothing: a forged segment in the
        // window would make a forged RST after it exact. During the handshake, nothing has been
        // acknowledged yet.
        let expected = self.acknowledged[direction.reverse().index()];
        let is_handshake = matches!(
            state,
            ConnectionState::SynSent | ConnectionState::SynReceived
        );
        segment.sequence == expected
            || is_handshake && segment.sequence == self.sent[direction.index()]
    }

    /// Records a segment in `direction`, as far as it is plausible.
    #[inline]
    pub(in crate::nat) fn note(&mut self, direction: Direction, segment: &Segment) {
        self.note_sent(direction, segment.end());
        if segment.flags.contains(Flags::ACK) {
            self.note_acknowledged(direction, segment.acknowledgement, segment.window);
        }
    }

    /// Records that the sender of a segment in `direction` has sent everything before `end`.
    // See `Connection::note_numbers`.
    #[inline(always)]
    pub(in crate::nat) fn note_sent(&mut self, direction: Direction, end: u32) {
        let (own, other) = (direction.index(), direction.reverse().index());
        // Data beyond the receiver's window has no effect: no receiver accepts it.
        let ahead = end.wrapping_sub(self.acknowledged[other]);
        if after(end, self.sent[own]) && ahead <= self.bound_of(direction.reverse()) {
            self.sent[own] = end;
        }
    }

    /// Records that the sender of a segment in `direction` has received everything before `number`,
    /// and its unscaled window field.
    // See `Connection::note_numbers`.
    #[inline(always)]
    pub(in crate::nat) fn note_acknowledged(
        &mut self,
        direction: Direction,
        number: u32,
        window: u16,
    ) {
        let (own, other) = (direction.index(), direction.reverse().index());
        if !after(number, self.sent[other]) && !after(self.acknowledged[own], number) {
            self.acknowledged[own] = number;
            let shift = self.windows[own] & 0xf;
            // The bits of the window beyond 16.
            let beyond = (u32::from(window) << shift) >> 16;
            let exponent = (beyond << 1 | 1).ilog2();
            self.windows[own] = (exponent as u8) << 4 | shift;
        }
    }
}

/// Returns true if `a` comes after `b` (RFC 9293 §3.4).
#[inline]
pub(super) const fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}
