//! The states of TCP connections, from the segments of both ends.
//!
//! ```text
//!            opener's SYN      responder's SYN-ACK      opener's ACK
//!    closed ------------> SynSent ----------> SynReceived ------> Established
//!
//!    Established -- FIN of one end --> FinWait -- FIN of the other --> TimeWait
//!    any         -- RST at the number that its receiver expects --> Closed
//!    any         -- SYN-ACK that acknowledges a later SYN --> SynReceived
//! ```
//!
//! A RST closes a connection only at the exact number that its receiver expects next (RFC 5961
//! §3.2). A RST elsewhere changes nothing: its receiver challenges it, and the answer to the
//! challenge has the exact number.
//!
//! A SYN on a connection that exists proves nothing, since it can be forged. Its number is kept
//! beside the connection's own, and a new connection begins when the responder acknowledges it.

use crate::wire::tcp::{Flags, Tcp};

/// Direction of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the client or the network to the server.
    Inward = 0,
    /// From the server to the client or the network.
    Outward = 1,
}

impl Direction {
    /// The other one.
    #[must_use]
    #[inline]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Inward => Self::Outward,
            Self::Outward => Self::Inward,
        }
    }

    #[inline]
    const fn index(self) -> usize {
        self as usize
    }
}

/// The state of a connection. Protocols without states are [`Established`](Self::Established) from
/// their first answer on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ConnectionState {
    /// The opener asked: TCP's SYN, another protocol's first packet.
    SynSent = 1,
    /// The responder's SYN-ACK came.
    SynReceived = 2,
    /// Both ends know of it.
    Established = 3,
    /// The inward end sent FIN.
    FinWaitInward = 4,
    /// The outward end sent FIN.
    FinWaitOutward = 5,
    /// Both sent FIN: late segments may still come.
    TimeWait = 6,
    /// Reset.
    Closed = 7,
}

impl ConnectionState {
    /// Every state, in the order of its counter.
    pub const ALL: [Self; 7] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinWaitInward,
        Self::FinWaitOutward,
        Self::TimeWait,
        Self::Closed,
    ];

    /// Name of the state in reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn_sent",
            Self::SynReceived => "syn_received",
            Self::Established => "established",
            Self::FinWaitInward => "fin_wait_inward",
            Self::FinWaitOutward => "fin_wait_outward",
            Self::TimeWait => "time_wait",
            Self::Closed => "closed",
        }
    }

    /// Returns true if the opener has not shown yet that it got an answer.
    #[inline]
    pub(crate) const fn is_handshake(self) -> bool {
        matches!(self, Self::SynSent | Self::SynReceived)
    }

    /// Returns true if the connection is over, except for late segments.
    #[inline]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::TimeWait | Self::Closed)
    }
}

/// The fields of a TCP segment that connection tracking uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First sequence number of the segment.
    pub sequence: u32,
    /// The acknowledgement number; meaningful with [`Flags::ACK`].
    pub acknowledgement: u32,
    /// Sequence numbers that it takes: its data, SYN and FIN.
    pub len: u32,
    /// The window field of the header, unscaled.
    pub window: u16,
    /// Window scale of the sender in bits (RFC 7323 §2); only a SYN has it.
    pub window_shift: Option<u8>,
    /// Control bits of the segment.
    pub flags: Flags,
}

impl Segment {
    /// Reads the fields of a segment. `len` is that of the whole segment with its header, of which
    /// `bytes` may have only the beginning.
    #[inline]
    pub fn parse(bytes: &[u8], len: usize) -> Option<Self> {
        let header: &[u8; 20] = bytes.first_chunk()?;
        let flags = Flags(header[13]);
        let header_len = usize::from(header[12] >> 4) * 4;
        let data = len.checked_sub(header_len.max(20))?;
        let window_shift = if flags.contains(Flags::SYN) {
            window_shift(bytes)
        } else {
            None
        };
        let numbers = u32::from(flags.contains(Flags::SYN)) + u32::from(flags.contains(Flags::FIN));
        Some(Self {
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            acknowledgement: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            len: data as u32 + numbers,
            window: u16::from_be_bytes([header[14], header[15]]),
            window_shift,
            flags,
        })
    }

    /// Returns true if the segment neither opens nor ends anything.
    #[inline]
    pub(super) fn is_ordinary(&self) -> bool {
        let special = Flags::SYN.with(Flags::FIN).with(Flags::RST);
        !self.flags.intersects(special)
    }

    #[inline]
    fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.len)
    }
}

/// The window scale option of a SYN.
#[cold]
fn window_shift(bytes: &[u8]) -> Option<u8> {
    const SCALE: u8 = 3;
    let tcp = Tcp::parse(bytes).ok()?;
    let option = super::options(tcp.options()).find(|&(kind, _)| kind == SCALE);
    option.and_then(|(_, at)| Some((*tcp.options().get(at + 2)?).min(LARGEST_SHIFT)))
}

/// Neither SYN had a window scale, or only one: windows are as they stand.
const NO_SHIFT: u8 = 15;

/// The largest window scale (RFC 7323 §2.3).
const LARGEST_SHIFT: u8 = 14;
/// Stands for the responder's window of a connection that was taken up in the middle, and of which
/// only one end sent since. Windows have the largest bound, and no scale yet.
const TAKEN_UP: u8 = 0xf0 | NO_SHIFT;

/// The bits of [`Sequences::state`] that hold the [`ConnectionState`].
const STATE: u8 = 0x07;
/// The window scale of a later SYN, in four bits of the same byte.
const LATER_SHIFT: u32 = 3;
/// Set if the number of a later SYN is kept.
const LATER: u8 = 0x80;

/// In [`Sequences::flags`], set if the client also talks to the server's own address, from the same
/// port. A SYN that is kept is one to that address.
pub(super) const DIRECT: u8 = 0x80;

/// The smallest bound on what an end may send beyond what the other has acknowledged, in bytes:
/// the largest window without a scale, rounded up.
const LEAST_BOUND: u32 = 1 << 16;

/// The sequence numbers, acknowledgements and windows of both ends. Index 0 is the end that sends
/// inward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequences {
    /// Behind the last sequence number that the end sent.
    sent: [u32; 2],
    /// The last that it acknowledged: what it expects next.
    acknowledged: [u32; 2],
    /// Window scale of the end in the low four bits. The high four bits, `e`, bound its last
    /// window: at most 2^(16 + e) bytes.
    windows: [u8; 2],
    /// The low 24 bits, little-endian, of the number that acknowledges a later SYN of the opener.
    /// The answer brings all 32 bits, so these only have to tell it from other answers.
    later: [u8; 3],
    // The next three bytes are the connection's: elsewhere they would need a second cache line.
    /// A [`ConnectionState`] and the later SYN's window scale; zero: the place is free.
    state: u8,
    pub(super) protocol: u8,
    pub(super) flags: u8,
}

/// The contents of [`Sequences`], unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) sent: [u32; 2],
    pub(crate) acknowledged: [u32; 2],
    pub(crate) windows: [u8; 2],
    /// The acknowledgement that answers a later SYN, and the window scale of that SYN.
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

    /// Nothing seen yet, beside the connection's three bytes.
    pub(super) const fn beside(state: ConnectionState, protocol: u8, flags: u8) -> Self {
        Self {
            state: state as u8,
            protocol,
            flags,
            ..Self::EMPTY
        }
    }

    /// All numbers, to be kept outside of the table.
    pub(crate) fn numbers(&self) -> Numbers {
        let later = (self.later, self.state >> LATER_SHIFT & 0xf);
        Numbers {
            sent: self.sent,
            acknowledged: self.acknowledged,
            windows: self.windows,
            later: self.has_kept().then_some(later),
        }
    }

    /// The same numbers again, of a connection in this state.
    pub(super) fn restore(&mut self, state: ConnectionState, numbers: &Numbers) {
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
    pub(super) fn is_free(&self) -> bool {
        self.state == 0
    }

    /// Frees the place.
    pub(super) fn free(&mut self) {
        self.state = 0;
    }

    /// Returns true if both ends know of the connection, and neither has ended it.
    #[inline]
    pub(super) fn is_established(&self) -> bool {
        self.state & STATE == ConnectionState::Established as u8
    }

    /// Returns the state of the connection.
    #[inline]
    pub(super) fn state(&self) -> ConnectionState {
        let place = usize::from(self.state & STATE).wrapping_sub(1);
        ConnectionState::ALL
            .get(place)
            .copied()
            .unwrap_or(ConnectionState::Closed)
    }

    #[inline]
    pub(super) fn set_state(&mut self, state: ConnectionState) {
        self.state = self.state & !STATE | state as u8;
    }

    /// Starts over with the SYN that goes in `direction`.
    pub(crate) fn open(&mut self, direction: Direction, syn: &Segment) {
        *self = Self {
            state: self.state & STATE,
            protocol: self.protocol,
            flags: self.flags,
            ..Self::EMPTY
        };
        self.ask(direction, syn);
    }

    /// Starts over with a segment from the middle of a connection, which goes in `direction`. Windows are as
    /// wide as they can be, since their scale is not known.
    pub(super) fn take_up(&mut self, direction: Direction, segment: &Segment) {
        let (own, other) = (direction.index(), direction.reverse().index());
        self.sent[own] = segment.end();
        self.acknowledged[own] = segment.acknowledgement;
        self.sent[other] = segment.acknowledgement;
        self.acknowledged[other] = segment.sequence;
        self.windows = [TAKEN_UP; 2];
    }

    /// Returns true if the responder's window has the mark of a connection that was taken up.
    pub(super) fn is_marked_as_taken_up(&self, opener: Direction) -> bool {
        self.windows[opener.reverse().index()] == TAKEN_UP
    }

    /// Returns true if the connection was taken up, and only one end sent since.
    fn is_taken_up(&self, state: ConnectionState, opener: Direction) -> bool {
        state.is_handshake() && self.is_marked_as_taken_up(opener)
    }

    /// Notes what a SYN says that goes in `direction`.
    fn ask(&mut self, direction: Direction, syn: &Segment) {
        let (own, other) = (direction.index(), direction.reverse().index());
        self.sent[own] = syn.end();
        // An acknowledgement covers at least the SYN.
        self.acknowledged[other] = syn.sequence.wrapping_add(1);
        // RFC 7323 §2.2: the window of a SYN itself is not scaled.
        self.windows[own] = syn.window_shift.unwrap_or(NO_SHIFT);
    }

    /// Notes a SYN of the opener's on a connection that exists.
    fn ask_again(&mut self, state: ConnectionState, opener: Direction, syn: &Segment) {
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
        // The later number counts, but the answer to the first may be on its way, or the later SYN
        // may be forged: either may be answered.
        if !self.is_kept(first) && (!self.has_kept() || self.is_kept(syn.end())) {
            self.keep(first, self.windows[own] & 0xf);
        }
        self.ask(opener, syn);
    }

    /// Keeps the number that acknowledges a SYN, and that SYN's window scale.
    fn keep(&mut self, number: u32, shift: u8) {
        let [a, b, c, _] = number.to_le_bytes();
        self.later = [a, b, c];
        self.state = self.state & STATE | shift << LATER_SHIFT | LATER;
        self.flags &= !DIRECT;
    }

    /// Returns true if a SYN to the responder's own address came before, and the responder went on with this
    /// connection.
    pub(super) fn is_contested_in_vain(&self, segment: &Segment) -> bool {
        self.state() == ConnectionState::Established
            && self.flags & DIRECT != 0
            && segment.flags.opens()
            && self.is_kept(segment.end())
    }

    /// Notes a segment of the opener's to the responder's own address.
    pub(super) fn contest(&mut self, segment: &Segment) {
        if segment.flags.opens() {
            self.keep(segment.end(), NO_SHIFT);
            self.flags |= DIRECT;
        } else if self.state() == ConnectionState::SynSent && !self.has_kept() {
            self.flags |= DIRECT;
        }
    }

    /// Returns true if a segment of the responder answers one to its own address.
    pub(super) fn is_direct(&self, opener: Direction, segment: &Segment) -> bool {
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

    /// Returns true if a segment in `direction` has data or FIN, all of it sent before.
    pub(super) fn repeats(&self, direction: Direction, segment: &Segment) -> bool {
        let is_syn = segment.flags.contains(Flags::SYN);
        segment.len != 0 && !is_syn && !after(segment.end(), self.sent[direction.index()])
    }

    fn has_kept(&self) -> bool {
        self.state & LATER != 0
    }

    /// Returns true if a number acknowledges the SYN that is kept.
    fn is_kept(&self, number: u32) -> bool {
        let [a, b, c, _] = number.to_le_bytes();
        self.has_kept() && self.later == [a, b, c]
    }

    /// Returns true if a segment to the opener acknowledges its present SYN. A SYN may bring data,
    /// of which the answer may acknowledge a part (RFC 7413 §4.2.2).
    fn acknowledges_syn(&self, opener: Direction, segment: &Segment) -> bool {
        let number = segment.acknowledgement;
        segment.flags.contains(Flags::ACK)
            && !after(self.acknowledged[opener.reverse().index()], number)
            && !after(number, self.sent[opener.index()])
    }

    /// Starts a new connection when the SYN-ACK acknowledges the SYN that is kept.
    fn begin_anew(&mut self, opener: Direction, answer: &Segment) {
        self.sent[opener.index()] = answer.acknowledgement;
        self.windows[opener.index()] = self.state >> LATER_SHIFT & 0xf;
        self.answer(opener, answer);
    }

    /// Notes what the SYN-ACK to the opener says.
    fn answer(&mut self, opener: Direction, answer: &Segment) {
        let responder = opener.reverse();
        self.ask(responder, answer);
        self.acknowledged[responder.index()] = answer.acknowledgement;
        if self.windows.iter().any(|window| window & 0xf == NO_SHIFT) {
            self.windows = [0; 2]; // RFC 7323 §1.3: both ends have to send the option
        }
        self.state &= STATE;
        self.flags &= !DIRECT;
    }

    /// The most that an end may be sent beyond what it acknowledged, in bytes: its window rounded
    /// up.
    #[inline]
    fn bound_of(&self, receiver: Direction) -> u32 {
        LEAST_BOUND << (self.windows[receiver.index()] >> 4)
    }

    /// The sequence number of a RST to the end whose segments go in `direction`, as the other end
    /// would send it, and the acknowledgement number beside it.
    pub(crate) fn reset_to(&self, direction: Direction) -> (u32, u32) {
        let other = direction.reverse().index();
        let expected = self.acknowledged[direction.index()];
        // Data that the other end sent beyond that has arrived or is lost: the former is likelier.
        let sequence = if after(self.sent[other], expected) {
            self.sent[other]
        } else {
            expected
        };
        (sequence, self.sent[direction.index()])
    }

    /// Returns true if a segment in `direction` may have this number: sent, and not long
    /// acknowledged (RFC 5927 §4.1). Older ones, of a window without scale, may still be on their
    /// way.
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

    /// Returns true if this is the number of a later SYN to the responder under the connection's name, which
    /// is not answered yet. A SYN with data does not count.
    pub(crate) fn is_later_syn(&self, sequence: u32) -> bool {
        self.flags & DIRECT == 0 && self.is_kept(sequence.wrapping_add(1))
    }

    /// Returns true if a segment of the opener other than a SYN has numbers that are not this
    /// connection's, which is over or not established.
    pub(super) fn is_anothers(&self, opener: Direction, segment: &Segment) -> bool {
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
            ConnectionState::TimeWait | ConnectionState::Closed => {
                // Data lost on the way leaves a gap.
                let ahead = segment.sequence.wrapping_sub(self.sent[own]);
                let is_next = ahead <= self.bound_of(opener.reverse());
                !is_next && !self.is_recent(opener, segment.sequence)
                    || acknowledges && !self.is_recent(opener.reverse(), number)
            }
            _ => false,
        }
    }

    /// Returns true if a segment of the responder is the answer to a SYN that is not this
    /// connection's. Numbers of a window without scale back may be those of a SYN-ACK that comes
    /// again. While the connection is open, its responder challenges another SYN (RFC 5961 §4.2),
    /// and takes none.
    pub(super) fn answers_another(&self, opener: Direction, segment: &Segment) -> bool {
        use ConnectionState::{Established, SynReceived};
        let number = segment.acknowledgement;
        segment.flags.contains(Flags::SYN.with(Flags::ACK))
            && !matches!(self.state(), SynReceived | Established)
            && !self.is_kept(number)
            && !self.acknowledges_syn(opener, segment)
            && !self.is_recent(opener, number)
    }

    /// Returns true if a RST in `direction` closes the connection.
    fn is_reset(
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
        // The receiver expects what it acknowledged last. It may have taken more without saying so yet,
        // but what was sent proves nothing: a forged segment in the window would make a forged RST
        // behind it exact. During the handshake nothing has been acknowledged yet.
        let expected = self.acknowledged[direction.reverse().index()];
        let is_handshake = matches!(
            state,
            ConnectionState::SynSent | ConnectionState::SynReceived
        );
        segment.sequence == expected
            || is_handshake && segment.sequence == self.sent[direction.index()]
    }

    /// Notes what a segment says that goes in `direction`, as far as it can be true.
    #[inline]
    pub(super) fn note(&mut self, direction: Direction, segment: &Segment) {
        self.note_sent(direction, segment.end());
        if segment.flags.contains(Flags::ACK) {
            self.note_acknowledged(direction, segment.acknowledgement, segment.window);
        }
    }

    /// Notes that the sender of a segment in `direction` has sent what is before `end`.
    // See `Connection::note_numbers`.
    #[inline(always)]
    pub(super) fn note_sent(&mut self, direction: Direction, end: u32) {
        let (own, other) = (direction.index(), direction.reverse().index());
        // Data beyond the receiver's window moves nothing: no receiver takes it.
        let ahead = end.wrapping_sub(self.acknowledged[other]);
        if after(end, self.sent[own]) && ahead <= self.bound_of(direction.reverse()) {
            self.sent[own] = end;
        }
    }

    /// Notes that the sender of a segment in `direction` has got what is before `number`, and the
    /// window field of its header, unscaled.
    // See `Connection::note_numbers`.
    #[inline(always)]
    pub(super) fn note_acknowledged(&mut self, direction: Direction, number: u32, window: u16) {
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
const fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

/// The state after a segment that goes in `direction`; `opener` is the direction of the
/// connection's first packet.
// Out of line: an ordinary segment of an established connection only has to be noted.
#[inline(never)]
pub(crate) fn next_state(
    state: ConnectionState,
    sequences: &mut Sequences,
    opener: Direction,
    direction: Direction,
    segment: &Segment,
) -> ConnectionState {
    use ConnectionState::*;
    let flags = segment.flags;
    let is_taken_up = sequences.is_taken_up(state, opener);
    if is_taken_up && !flags.contains(Flags::SYN) {
        return after_take_up(state, sequences, opener, direction, segment);
    }
    if flags.contains(Flags::RST) {
        return if sequences.is_reset(state, opener, direction, segment) {
            Closed
        } else {
            state
        };
    }
    if flags.contains(Flags::SYN) {
        return after_syn(state, sequences, opener, direction, segment);
    }
    let (own, other) = (direction.index(), direction.reverse().index());
    let (sent, expected) = (sequences.sent[own], sequences.acknowledged[other]);
    let is_in_window =
        segment.end().wrapping_sub(expected) <= sequences.bound_of(direction.reverse());
    let acknowledges = flags.contains(Flags::ACK)
        && !after(segment.acknowledgement, sequences.sent[other])
        && !after(sequences.acknowledged[own], segment.acknowledgement);
    sequences.note(direction, segment);
    let state = match (state, direction) {
        (SynReceived, _) if direction == opener && acknowledges => Established,
        // Data beyond its own FIN: the FIN was forged.
        (FinWaitInward, Direction::Inward) | (FinWaitOutward, Direction::Outward)
            if is_in_window && after(segment.end(), sent) =>
        {
            Established
        }
        (TimeWait, Direction::Inward) if is_in_window && after(segment.end(), sent) => {
            FinWaitOutward
        }
        (TimeWait, Direction::Outward) if is_in_window && after(segment.end(), sent) => {
            FinWaitInward
        }
        (state, _) => state,
    };
    if !flags.contains(Flags::FIN) || !is_in_window {
        return state;
    }
    match (state, direction) {
        // Anyone may have sent an opener's FIN that does not acknowledge the responder's SYN.
        (SynReceived, _) if direction == opener => state,
        (Established | SynReceived, Direction::Inward) => FinWaitInward,
        (Established | SynReceived, Direction::Outward) => FinWaitOutward,
        (FinWaitInward, Direction::Outward) | (FinWaitOutward, Direction::Inward) => TimeWait,
        (state, _) => state,
    }
}

/// The state after a segment without SYN of a connection that was taken up, and whose two ends have not both
/// been heard since.
fn after_take_up(
    state: ConnectionState,
    sequences: &mut Sequences,
    opener: Direction,
    direction: Direction,
    segment: &Segment,
) -> ConnectionState {
    use ConnectionState::*;
    if segment.flags.contains(Flags::RST) {
        let expected = sequences.acknowledged[direction.reverse().index()];
        return if segment.sequence == expected {
            Closed
        } else {
            state
        };
    }
    let was_heard = match state {
        SynSent => opener,
        _ => opener.reverse(),
    };
    let windows = sequences.windows;
    sequences.note(direction, segment);
    if direction == was_heard {
        sequences.windows = windows; // with the mark
        return state;
    }
    // The scale is unknown: assume the largest.
    sequences.windows = sequences
        .windows
        .map(|window| window & 0xf0 | LARGEST_SHIFT);
    match (segment.flags.contains(Flags::FIN), direction) {
        (false, _) => Established,
        (true, Direction::Inward) => FinWaitInward,
        (true, Direction::Outward) => FinWaitOutward,
    }
}

/// The state after a SYN or a SYN-ACK.
fn after_syn(
    state: ConnectionState,
    sequences: &mut Sequences,
    opener: Direction,
    direction: Direction,
    segment: &Segment,
) -> ConnectionState {
    use ConnectionState::*;
    if direction == opener {
        if segment.flags.opens() {
            sequences.ask_again(state, opener, segment);
        }
        return state;
    }
    if segment.flags.contains(Flags::ACK) {
        let is_asked = matches!(state, SynSent | SynReceived);
        if is_asked && sequences.acknowledges_syn(opener, segment) {
            sequences.answer(opener, segment);
            return SynReceived;
        }
        if sequences.is_kept(segment.acknowledgement) {
            sequences.begin_anew(opener, segment);
            return SynReceived;
        }
    } else if state == SynSent {
        sequences.ask(direction, segment); // simultaneous open (RFC 9293 §3.5)
    }
    state // the same again, or nothing that either end would take
}

/// Returns true if a SYN in `direction` begins a new connection after one that is over (RFC 9293
/// §3.6.1: with a higher sequence number, or with any after a reset).
pub(crate) fn reopens(
    state: ConnectionState,
    sequences: &Sequences,
    direction: Direction,
    syn: &Segment,
) -> bool {
    match state {
        ConnectionState::Closed => true,
        ConnectionState::TimeWait => !after(sequences.sent[direction.index()], syn.sequence),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConnectionState::*;
    use Direction::{Inward, Outward};

    struct Conversation {
        state: ConnectionState,
        sequences: Sequences,
    }

    const SYN: Flags = Flags::SYN;
    const ACK: Flags = Flags::ACK;
    const FIN: Flags = Flags::FIN;
    const RST: Flags = Flags::RST;

    fn segment(flags: Flags, sequence: u32, acknowledgement: u32, data: u32) -> Segment {
        let numbers = u32::from(flags.contains(SYN)) + u32::from(flags.contains(FIN));
        Segment {
            sequence,
            acknowledgement,
            len: data + numbers,
            window: 1000,
            window_shift: None,
            flags,
        }
    }

    impl Conversation {
        fn new(sequence: u32) -> Self {
            let mut sequences = Sequences::EMPTY;
            sequences.open(Inward, &segment(SYN, sequence, 0, 0));
            Self {
                state: SynSent,
                sequences,
            }
        }

        fn established() -> Self {
            let mut c = Self::new(100);
            assert_eq!(
                c.sees(Outward, segment(SYN.with(ACK), 500, 101, 0)),
                SynReceived
            );
            assert_eq!(c.sees(Inward, segment(ACK, 101, 501, 0)), Established);
            c
        }

        fn sees(&mut self, direction: Direction, segment: Segment) -> ConnectionState {
            self.state = next_state(self.state, &mut self.sequences, Inward, direction, &segment);
            self.state
        }
    }

    #[test]
    fn a_whole_life() {
        let mut c = Conversation::established();
        assert_eq!(c.sees(Inward, segment(ACK, 101, 501, 300)), Established);
        assert_eq!(c.sees(Outward, segment(ACK, 501, 401, 0)), Established);
        assert_eq!(
            c.sees(Outward, segment(FIN.with(ACK), 501, 401, 0)),
            FinWaitOutward
        );
        assert_eq!(c.sees(Inward, segment(ACK, 401, 502, 10)), FinWaitOutward);
        assert_eq!(
            c.sees(Inward, segment(FIN.with(ACK), 411, 502, 0)),
            TimeWait
        );
        assert_eq!(c.sees(Outward, segment(ACK, 502, 412, 0)), TimeWait);
        assert!(reopens(
            c.state,
            &c.sequences,
            Inward,
            &segment(SYN, 412, 0, 0)
        ));
        assert!(!reopens(
            c.state,
            &c.sequences,
            Inward,
            &segment(SYN, 300, 0, 0)
        ));
    }

    #[test]
    fn a_reset_counts_at_the_expected_number_only() {
        for (sequence, state) in [
            (500, Established),
            (501, Closed),
            (502, Established),
            (600, Established),
            (601, Established), // what was sent, and not acknowledged
            (602, Established),
            (1501, Established),
            (400_000, Established),
        ] {
            let mut c = Conversation::established();
            c.sees(Outward, segment(ACK, 501, 101, 100));
            let after = c.sees(Outward, segment(RST, sequence, 0, 0));
            assert_eq!(after, state, "{sequence}");
        }
    }

    #[test]
    fn a_refused_connection_is_closed_by_the_answer_to_its_syn_alone() {
        let mut c = Conversation::new(100);
        assert_eq!(c.sees(Outward, segment(RST.with(ACK), 0, 777, 0)), SynSent);
        assert_eq!(c.sees(Outward, segment(RST.with(ACK), 0, 101, 0)), Closed);
    }

    #[test]
    fn the_window_is_scaled_where_both_ends_said_so() {
        let scaled = |shift, mut segment: Segment| {
            segment.window_shift = shift;
            segment
        };
        // A window of 1000 << 7 bytes is rounded up to 2^17; without a scale, to 2^16.
        for (own, theirs, most) in [
            (Some(7), Some(0), 1 << 17),
            (Some(7), None, 1 << 16),
            (None, Some(7), 1 << 16),
            (None, None, 1 << 16),
        ] {
            for (len, is_taken) in [(most, true), (most + 1, false)] {
                let mut c = Conversation::new(100);
                c.sequences
                    .open(Inward, &scaled(own, segment(SYN, 100, 0, 0)));
                let answer = scaled(theirs, segment(SYN.with(ACK), 500, 101, 0));
                assert_eq!(c.sees(Outward, answer), SynReceived);
                assert_eq!(c.sees(Inward, segment(ACK, 101, 501, 0)), Established);
                c.sees(Outward, segment(ACK, 501, 101, len));
                let sent = if is_taken { 501 + len } else { 501 };
                assert_eq!(c.sequences.reset_to(Inward).0, sent, "{own:?} {theirs:?}");
            }
        }
    }

    #[test]
    fn our_resets_have_the_numbers_that_the_ends_expect() {
        let mut c = Conversation::established();
        c.sees(Inward, segment(ACK, 101, 501, 50));
        c.sees(Outward, segment(ACK, 501, 151, 200));
        c.sees(Inward, segment(ACK, 151, 701, 0));
        assert_eq!(c.sequences.reset_to(Inward), (701, 151));
        assert_eq!(c.sequences.reset_to(Outward), (151, 701));
    }

    #[test]
    fn what_nobody_would_take_moves_nothing() {
        let mut c = Conversation::established();
        c.sees(Inward, segment(ACK, 90_000_000, 501, 10));
        c.sees(Inward, segment(ACK, 101, 999_999, 0));
        assert_eq!(c.sequences.reset_to(Inward), (501, 101));
    }

    #[test]
    fn numbers_wrap() {
        let mut c = Conversation::new(u32::MAX);
        c.sees(Outward, segment(SYN.with(ACK), u32::MAX - 1, 0, 0));
        assert_eq!(c.sees(Inward, segment(ACK, 0, u32::MAX, 0)), Established);
        c.sees(Outward, segment(ACK, u32::MAX, 0, 10));
        c.sees(Inward, segment(ACK, 0, 9, 0));
        assert_eq!(c.sequences.reset_to(Inward), (9, 0));
    }
}
