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
//! §3.2). Any other RST changes nothing: its receiver sends a challenge, and the answer to the
//! challenge has the exact number.
//!
//! A SYN on an existing connection proves nothing, since it can be forged. Its number is kept
//! beside the connection's own, and a new connection begins when the responder acknowledges it.

mod segment;
mod sequences;

use self::segment::LARGEST_SHIFT;
pub use self::segment::Segment;
pub(super) use self::sequences::DIRECT;
use self::sequences::after;
pub(crate) use self::sequences::{Numbers, Sequences};
use crate::wire::tcp::Flags;

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
    /// Returns the other direction.
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

/// The state of a connection. Connections of protocols without states are
/// [`Established`](Self::Established) from their first answer on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ConnectionState {
    /// The opener sent its SYN, or its first packet of another protocol.
    SynSent = 1,
    /// The responder sent its SYN-ACK.
    SynReceived = 2,
    /// The handshake is complete.
    Established = 3,
    /// The inward end sent FIN.
    FinWaitInward = 4,
    /// The outward end sent FIN.
    FinWaitOutward = 5,
    /// Both ends sent FIN; late segments may still arrive.
    TimeWait = 6,
    /// The connection was reset.
    Closed = 7,
}

impl ConnectionState {
    /// All states, in the order of their counters.
    pub const ALL: [Self; 7] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinWaitInward,
        Self::FinWaitOutward,
        Self::TimeWait,
        Self::Closed,
    ];

    /// Returns the name of the state in reports and metrics.
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

    /// Returns true if the opener has not yet proved that it got an answer.
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

/// Returns the state after a segment in `direction`; `opener` is the direction of the connection's
/// first packet.
// Out of line: an ordinary segment of an established connection only has to be recorded.
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

/// Returns the state after a segment without SYN of a taken-up connection, of which only one end
/// has sent since.
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

/// Returns the state after a SYN or a SYN-ACK.
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
    state // a retransmission, or a segment that no end would accept
}

/// Returns true if a SYN in `direction` begins a new connection after one that is over: with a
/// higher sequence number (RFC 9293 §3.6.1), or with any after a reset.
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
