//! How far a TCP connection has come, from the segments of both its ends.
//!
//! ```text
//!            opener's SYN      responder's SYN-ACK      opener's ACK
//!    closed ------------> SynSent ----------> SynReceived ------> Established
//!
//!    Established -- FIN of one end --> FinWait -- FIN of the other --> TimeWait
//!    any         -- RST that its receiver takes --> Closed
//! ```
//!
//! A RST counts where its receiver would take it: with a sequence number in the window that it
//! last offered (RFC 9293 §3.10.7.4); an RST from elsewhere changes nothing here either. What each
//! end expects next is kept, so that a RST of our own is one that it takes (RFC 5961 §3.2).

use crate::wire::tcp::{Flags, Tcp};

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the client's, or the network's, side to the one who serves.
    Inward = 0,
    /// From there to the client or the network.
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

/// How far a connection has come. Protocols without states are [`Established`](Self::Established)
/// from their first answer on.
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

    /// Its name in reports and metrics.
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

    /// Whether it is over, but for what may come late.
    #[inline]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::TimeWait | Self::Closed)
    }
}

/// What a segment says that matters to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first sequence number.
    pub sequence: u32,
    /// What it acknowledges; of meaning with [`Flags::ACK`].
    pub acknowledgement: u32,
    /// Sequence numbers that it takes: its data, SYN and FIN.
    pub len: u32,
    /// The window that it offers, as it stands in the header.
    pub window: u16,
    /// By how many bits its sender will scale windows (RFC 7323 §2); only a SYN says it.
    pub window_shift: Option<u8>,
    /// Its control bits.
    pub flags: Flags,
}

impl Segment {
    /// What a segment says. `len` is that of the whole segment, header included, of which
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
    option.and_then(|(_, at)| Some((*tcp.options().get(at + 2)?).min(14)))
}

/// Neither SYN had a window scale, or only one: windows are as they stand.
const NO_SHIFT: u8 = 15;

/// What both ends have sent and acknowledged. Index 0 is the end whose segments go inward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequences {
    /// Behind the last sequence number that the end sent.
    sent: [u32; 2],
    /// The last that it acknowledged: what it expects next.
    acknowledged: [u32; 2],
    /// The window that it offered last.
    window: [u16; 2],
    /// By how much its windows are scaled: four bits each.
    shifts: u8,
    // Three bytes of the connection's, which would cost it a second cache line elsewhere.
    /// A [`ConnectionState`]; zero: nobody's.
    pub(super) state: u8,
    pub(super) protocol: u8,
    pub(super) flags: u8,
}

impl Sequences {
    pub(crate) const EMPTY: Self = Self {
        sent: [0; 2],
        acknowledged: [0; 2],
        window: [0; 2],
        shifts: NO_SHIFT | NO_SHIFT << 4,
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

    /// Starts over with the SYN that goes in `direction`.
    pub(crate) fn open(&mut self, direction: Direction, syn: &Segment) {
        *self = Self {
            state: self.state,
            protocol: self.protocol,
            flags: self.flags,
            ..Self::EMPTY
        };
        self.sent[direction.index()] = syn.end();
        self.acknowledged[direction.reverse().index()] = syn.sequence;
        self.set_window(direction, syn);
        self.set_shift(direction, syn);
    }

    fn set_window(&mut self, direction: Direction, segment: &Segment) {
        self.window[direction.index()] = segment.window;
    }

    fn set_shift(&mut self, direction: Direction, syn: &Segment) {
        let bits = 4 * direction.index();
        let shift = syn.window_shift.unwrap_or(NO_SHIFT);
        self.shifts = self.shifts & !(0xf << bits) | shift << bits;
    }

    /// How many bytes an end may be sent at once.
    #[inline]
    fn window_of(&self, direction: Direction) -> u32 {
        let scaled = (self.shifts & 0xf) != NO_SHIFT && (self.shifts >> 4) != NO_SHIFT;
        let shift = if scaled {
            self.shifts >> (4 * direction.index()) & 0xf
        } else {
            0
        };
        u32::from(self.window[direction.index()]) << shift
    }

    /// The sequence number of a RST to the end whose segments go in `direction`, as the other end
    /// would send it, and the acknowledgement number beside it.
    pub(crate) fn reset_to(&self, direction: Direction) -> (u32, u32) {
        let other = direction.reverse().index();
        let expected = self.acknowledged[direction.index()];
        // What the other end sent beyond that has arrived, or is lost: the first is likelier.
        let sequence = if after(self.sent[other], expected) {
            self.sent[other]
        } else {
            expected
        };
        (sequence, self.sent[direction.index()])
    }

    /// Whether a segment that goes in `direction` may have this number: sent, and not long acknowledged
    /// (RFC 5927 §4.1). Older ones, of a window without scale, may still be on their way.
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

    /// Whether the receiver of a RST that goes in `direction` takes it.
    fn is_reset(&self, direction: Direction, segment: &Segment, state: ConnectionState) -> bool {
        let receiver = direction.reverse();
        if state == ConnectionState::SynSent && segment.flags.contains(Flags::ACK) {
            // RFC 9293 §3.10.7.3: the answer to a SYN has to acknowledge it.
            return segment.acknowledgement == self.sent[receiver.index()];
        }
        let offset = segment
            .sequence
            .wrapping_sub(self.acknowledged[receiver.index()]);
        offset <= self.window_of(receiver).max(1)
            || segment.sequence == self.sent[direction.index()]
    }

    /// Notes what a segment says that goes in `direction`, as far as it can be true.
    #[inline]
    fn note(&mut self, direction: Direction, segment: &Segment) {
        let (own, other) = (direction.index(), direction.reverse().index());
        let end = segment.end();
        // Data beyond the receiver's window moves nothing: nobody takes it.
        let ahead = end.wrapping_sub(self.acknowledged[other]);
        if after(end, self.sent[own]) && ahead <= self.window_of(direction.reverse()).max(65_535) {
            self.sent[own] = end;
        }
        if segment.flags.contains(Flags::ACK) {
            let number = segment.acknowledgement;
            if !after(number, self.sent[other]) && !after(self.acknowledged[own], number) {
                self.acknowledged[own] = number;
                self.set_window(direction, segment);
            }
        }
    }
}

/// Whether `a` comes after `b` (RFC 9293 §3.4).
#[inline]
const fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

/// The state after a segment that goes in `direction`; `opener` is the direction of the
/// connection's first packet.
#[inline]
pub(crate) fn next_state(
    state: ConnectionState,
    sequences: &mut Sequences,
    opener: Direction,
    direction: Direction,
    segment: &Segment,
) -> ConnectionState {
    use ConnectionState::*;
    let flags = segment.flags;
    if state == Established && !flags.intersects(Flags::SYN.with(Flags::FIN).with(Flags::RST)) {
        sequences.note(direction, segment);
        return state; // nearly every segment
    }
    if flags.contains(Flags::RST) {
        return if sequences.is_reset(direction, segment, state) {
            Closed
        } else {
            state
        };
    }
    if flags.contains(Flags::SYN) {
        if direction != opener
            && flags.contains(Flags::ACK)
            && matches!(state, SynSent | SynReceived)
        {
            let own = direction.index();
            sequences.sent[own] = segment.end();
            sequences.acknowledged[opener.index()] = segment.sequence;
            sequences.acknowledged[own] = segment.acknowledgement;
            sequences.set_window(direction, segment);
            sequences.set_shift(direction, segment);
            return SynReceived;
        }
        if direction != opener && state == SynSent {
            // Simultaneous open (RFC 9293 §3.5): the other end's own SYN.
            sequences.sent[direction.index()] = segment.end();
            sequences.acknowledged[opener.index()] = segment.sequence;
            sequences.set_window(direction, segment);
            sequences.set_shift(direction, segment);
        }
        return state; // the same again, or nothing that either end would take
    }
    sequences.note(direction, segment);
    let state = match state {
        SynReceived if direction == opener && flags.contains(Flags::ACK) => Established,
        other => other,
    };
    if !flags.contains(Flags::FIN) {
        return state;
    }
    match (state, direction) {
        (Established | SynReceived, Direction::Inward) => FinWaitInward,
        (Established | SynReceived, Direction::Outward) => FinWaitOutward,
        (FinWaitInward, Direction::Outward) | (FinWaitOutward, Direction::Inward) => TimeWait,
        (state, _) => state,
    }
}

/// Whether a SYN that goes in `direction` begins a new connection in the place of one that is
/// over (RFC 9293 §3.6.1: with a higher sequence number, or any where it was reset).
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
    fn a_reset_counts_inside_the_window_only() {
        for (sequence, state) in [
            (500, Established),
            (501, Closed),
            (1501, Closed),
            (1502, Established),
            (400_000, Established),
        ] {
            let mut c = Conversation::established();
            assert_eq!(
                c.sees(Outward, segment(RST, sequence, 0, 0)),
                state,
                "{sequence}"
            );
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
            segment.window_shift = Some(shift);
            segment
        };
        for (theirs, sequence, state) in [
            (Some(7), 501 + (1000 << 4), Closed),
            (None, 501 + 1001, SynReceived),
        ] {
            let mut c = Conversation::new(100);
            c.sequences
                .open(Inward, &scaled(4, segment(SYN, 100, 0, 0)));
            let mut answer = segment(SYN.with(ACK), 500, 101, 0);
            answer.window_shift = theirs;
            c.sees(Outward, answer);
            c.sequences.note(Inward, &segment(ACK, 101, 501, 0));
            assert_eq!(c.sees(Outward, segment(RST, sequence, 0, 0)), state);
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
