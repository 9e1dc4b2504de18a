//! One translated connection: its tuples on both sides, its state and its timeouts.
//!
//! ```text
//!        outside                                inside
//!   remote -> front     == translated to ==>   peer -> server
//!   remote <- front     <== translated to ==   peer <- server
//! ```
//!
//! The remote is the client, or the destination of the server's outbound connection; the front is a
//! VIP or a SNAT address; the server is a vm. The peer is the remote itself, or its translated
//! address.

use super::rule_id::ShortRuleId;
use super::tcp::{ConnectionState, DIRECT, Direction, Numbers, Segment, Sequences, next_state};
use crate::flow::Addresses;
use crate::packet::Tuple;
use crate::time::Instant;
use crate::verdict::PortId;
pub(super) use crate::wire::checksum::fold;
use crate::wire::protocol;

/// Deadlines are in units of 2^26 ns (67 ms), so a shift converts nanoseconds.
pub(crate) const TICK_SHIFT: u32 = 26;

/// Returns the tick of a time, modulo 2^32: ticks wrap after nine years.
#[inline]
pub(crate) const fn tick_of(passed: Instant) -> u32 {
    (passed.as_nanos() >> TICK_SHIFT) as u32
}

/// A duration in ticks, up to 73 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub(crate) u16);

impl Span {
    /// `duration`, rounded up, and at most the longest.
    pub const fn from_duration(duration: core::time::Duration) -> Self {
        let ticks = duration.as_nanos().div_ceil(1 << TICK_SHIFT);
        if ticks > u16::MAX as u128 {
            Self(u16::MAX)
        } else {
            Self(ticks as u16)
        }
    }

    /// Returns the span as a duration.
    pub(crate) const fn duration(self) -> core::time::Duration {
        core::time::Duration::from_nanos((self.0 as u64) << TICK_SHIFT)
    }

    const fn from_secs(seconds: u64) -> Self {
        Self::from_duration(core::time::Duration::from_secs(seconds))
    }
}

/// The lifetime of a TCP connection before or after the established state. A RST may be lost on the
/// way to its receiver, so a reset connection lasts as long (RFC 7857 §2.2).
const TRANSITORY: Span = Span::from_secs(240); // RFC 5382 §5 REQ-5: no less
/// ICMP echo.
const ECHO: Span = Span::from_secs(60); // RFC 5508 §3.2 REQ-1: no less

/// The tuple of a connection's packets from one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Side<A> {
    /// Source and destination.
    pub(crate) addresses: A,
    /// The four bytes of ports, read little-endian. For ICMP echo, the identifier takes the place
    /// of the requester's port; zero for other protocols.
    pub(crate) ports: u32,
}

impl<A: Addresses> Side<A> {
    /// Returns the tuple of the packets to this side.
    #[inline]
    pub(crate) fn reversed(&self) -> Self {
        Self {
            addresses: self.addresses.swapped(),
            ports: self.ports.rotate_left(16),
        }
    }

    /// Returns the addresses and ports as a tuple of this protocol.
    pub(crate) fn tuple(&self, protocol: u8) -> Tuple {
        let (source, destination) = self.addresses.unpack();
        let [a, b, c, d] = self.ports.to_le_bytes();
        Tuple {
            source,
            destination,
            source_port: u16::from_be_bytes([a, b]),
            destination_port: u16::from_be_bytes([c, d]),
            protocol,
        }
    }
}

/// The key for the lookup of a packet's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key<A> {
    pub(crate) side: Side<A>,
    pub(crate) protocol: u8,
    /// Direction of the packet.
    pub(crate) direction: Direction,
    /// Port of the vm, since two vms may have equal tuples; or [`ALL_PORTS`].
    pub(crate) zone: PortId,
}

/// The zone of tuples that are shared by all ports.
pub(crate) const ALL_PORTS: PortId = PortId(u16::MAX);

impl<A: Addresses> Key<A> {
    #[inline]
    pub(crate) fn hash(&self, key: [u64; 2]) -> u64 {
        let rest = u64::from(self.side.ports)
            | u64::from(self.protocol) << 32
            | u64::from(self.zone.0) << 40
            | (self.direction as u64) << 56;
        self.side.addresses.hash(rest, key)
    }
}

/// The treatment of a connection's packets besides translation, fixed when the connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// The idle timeout.
    pub(crate) idle: Span,
    /// The rule of the connection.
    pub(crate) rule: ShortRuleId,
    /// The number of the backend among the locals of the snapshot.
    pub(crate) server: u16,
    /// The number of the mux that answers go through; [`Policy::DIRECT`] for none.
    pub(crate) via: u8,
    /// True if both ends get a RST when the connection expires.
    pub(crate) reset: bool,
    /// Returns the direction of the connection's first packet.
    pub(crate) opener: Direction,
    /// True if the inside tuple is shared by all ports.
    pub(crate) shared: bool,
}

impl Policy {
    /// Answers do not go through a mux.
    pub(crate) const DIRECT: u8 = u8::MAX;
    /// Answers go through the network of the server to the host of the client, a vm. No mux has this number.
    pub(crate) const NETWORK: u8 = 254;
}

/// In [`Sequences::flags`], the low three bits of the number of the mux that answers go through.
const VIA: u8 = 0x07;
/// In [`Sequences::flags`], set if answers go through a mux.
const THROUGH: u8 = 0x08;
/// In [`Connection::idle`], if answers go through a mux, the high five bits of that mux's number.
/// Rounding adds up to two seconds to the idle timeout.
const IDLE_VIA: u16 = 0x1f;
const RESETS: u8 = 0x10;
const OPENED_OUTWARD: u8 = 0x20;
const SHARED: u8 = 0x40;

/// A connection outside of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Saved<A> {
    pub(crate) outside: Side<A>,
    pub(crate) inside: Side<A>,
    pub(crate) protocol: u8,
    pub(crate) zone: PortId,
    pub(crate) policy: Policy,
    pub(crate) state: ConnectionState,
    pub(crate) numbers: Numbers,
    /// True if packets with the inside tuple may belong to another conversation.
    pub(crate) is_contested: bool,
    /// Ticks of 2^26 ns until the connection expires.
    pub(crate) remaining: u16,
}

/// A connection of a table, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionView {
    /// The tuple of packets from outside: from the client, or answers to a vm.
    pub outside: Tuple,
    /// The tuple of packets from the server.
    pub inside: Tuple,
    /// The state of the connection.
    pub state: ConnectionState,
}

/// A connection. IPv4's is one cache line, IPv6's two.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Connection<A> {
    outside: A,
    inside: A,
    outside_ports: u32,
    inside_ports: u32,
    /// The tick in which the connection expires, modulo 2^32; in a free place, the number of the
    /// next free place.
    pub(super) deadline: u32,
    sequences: Sequences,
    /// The change that translation makes to the checksum of an inward packet, by its addresses.
    address_delta: u16,
    /// The change that translation makes to the checksum of an inward packet, by its ports.
    port_delta: u16,
    idle: u16,
    rule: u16,
    server: u16,
    zone: u16,
}

impl<A: Addresses> Connection<A> {
    /// A free place.
    pub const EMPTY: Self = Self {
        outside: A::ZERO,
        inside: A::ZERO,
        outside_ports: 0,
        inside_ports: 0,
        deadline: 0,
        sequences: Sequences::EMPTY,
        address_delta: 0,
        port_delta: 0,
        idle: 0,
        rule: 0,
        server: 0,
        zone: 0,
    };

    pub(crate) fn new(
        outside: Side<A>,
        inside: Side<A>,
        protocol: u8,
        zone: PortId,
        policy: Policy,
    ) -> Self {
        // The tuple of an inward packet becomes the tuple of packets to the server.
        let to_server = inside.reversed();
        let address_delta = delta(outside.addresses.sum(), to_server.addresses.sum());
        let port_delta = delta(port_sum(outside.ports), port_sum(to_server.ports));
        let mut flags = 0;
        for (set, flag) in [
            (policy.reset, RESETS),
            (policy.opener == Direction::Outward, OPENED_OUTWARD),
            (policy.shared, SHARED),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let mut connection = Self {
            outside: outside.addresses,
            inside: inside.addresses,
            outside_ports: outside.ports,
            inside_ports: inside.ports,
            address_delta,
            port_delta,
            idle: policy.idle.0,
            rule: policy.rule.bits(),
            server: policy.server,
            zone: zone.0,
            sequences: Sequences::beside(ConnectionState::SynSent, protocol, flags),
            ..Self::EMPTY
        };
        if policy.via != Policy::DIRECT {
            connection.sequences.flags |= THROUGH;
            connection.idle = connection.idle.saturating_add(IDLE_VIA);
            connection.set_via(policy.via);
        }
        connection
    }

    /// Changes the mux that a connection's answers go through.
    pub(crate) fn set_via(&mut self, mux: u8) {
        let before = self.timeout();
        self.sequences.flags = self.sequences.flags & !VIA | mux & VIA;
        self.idle = self.idle & !IDLE_VIA | u16::from(mux >> 3);
        let after = self.timeout();
        self.deadline = self.deadline.wrapping_add(after.0.into());
        self.deadline = self.deadline.wrapping_sub(before.0.into());
    }

    /// Restores a connection that was [saved](Self::save) `elapsed` ticks ago; returns `None` if it
    /// has expired meanwhile.
    pub(crate) fn restore(saved: &Saved<A>, now: u32, elapsed: u32) -> Option<Self> {
        let mut connection = Self::new(
            saved.outside,
            saved.inside,
            saved.protocol,
            saved.zone,
            saved.policy,
        );
        let sequences = &mut connection.sequences;
        sequences.restore(saved.state, &saved.numbers);
        sequences.flags |= if saved.is_contested { DIRECT } else { 0 };
        let left = u32::from(saved.remaining.min(connection.lifetime().0)).checked_sub(elapsed)?;
        connection.deadline = now.wrapping_add(left);
        (left != 0).then_some(connection)
    }

    /// Returns everything that is needed to restore the connection.
    pub(crate) fn save(&self, now: u32) -> Saved<A> {
        let flags = self.sequences.flags;
        let left = self.deadline.wrapping_sub(now);
        Saved {
            outside: self.side(Direction::Inward),
            inside: self.side(Direction::Outward),
            protocol: self.protocol(),
            zone: self.zone(),
            policy: Policy {
                idle: Span(match self.via() {
                    Some(_) => self.idle & !IDLE_VIA,
                    None => self.idle,
                }),
                rule: self.rule(),
                server: self.server,
                via: self.via().map_or(Policy::DIRECT, |mux| mux as u8),
                reset: flags & RESETS != 0,
                opener: self.opener(),
                shared: flags & SHARED != 0,
            },
            state: self.state(),
            numbers: self.sequences.numbers(),
            is_contested: self.is_contested(),
            remaining: u16::try_from(left).unwrap_or(u16::MAX),
        }
    }

    #[inline]
    pub(super) fn is_free(&self) -> bool {
        self.sequences.is_free()
    }

    pub(super) fn free(&mut self, next: u32) {
        self.sequences.free();
        self.deadline = next;
    }

    /// Returns the connection's fields for reports.
    pub(crate) fn view(&self) -> ConnectionView {
        ConnectionView {
            outside: self.side(Direction::Inward).tuple(self.protocol()),
            inside: self.side(Direction::Outward).tuple(self.protocol()),
            state: self.shown_state(),
        }
    }

    /// Returns the state for reports. Only here, the state of a protocol without a handshake
    /// distinguishes an answered connection from one that its opener continued.
    pub(crate) fn shown_state(&self) -> ConnectionState {
        match self.state() {
            ConnectionState::SynReceived if self.protocol() != protocol::TCP => {
                ConnectionState::Established
            }
            state => state,
        }
    }

    /// Returns the state of the connection.
    #[inline]
    pub(crate) fn state(&self) -> ConnectionState {
        self.sequences.state()
    }

    /// Returns the tuple of packets that come from one side.
    #[inline]
    pub(crate) fn side(&self, direction: Direction) -> Side<A> {
        match direction {
            Direction::Inward => Side {
                addresses: self.outside,
                ports: self.outside_ports,
            },
            Direction::Outward => Side {
                addresses: self.inside,
                ports: self.inside_ports,
            },
        }
    }

    /// Returns the tuple of a packet in `direction` after translation.
    #[inline]
    pub(crate) fn translated(&self, direction: Direction) -> Side<A> {
        self.side(direction.reverse()).reversed()
    }

    pub(super) fn key(&self, direction: Direction) -> Key<A> {
        let is_shared = self.sequences.flags & SHARED != 0 && direction == Direction::Outward;
        Key {
            side: self.side(direction),
            protocol: self.sequences.protocol,
            direction,
            zone: if is_shared { ALL_PORTS } else { self.zone() },
        }
    }

    #[inline]
    pub(super) fn is(&self, key: &Key<A>) -> bool {
        self.side(key.direction) == key.side
            && self.sequences.protocol == key.protocol
            && (self.zone == key.zone.0 || key.zone == ALL_PORTS)
            && !self.is_free()
    }

    /// Returns true if a packet with this tuple certainly belongs to the connection, and the
    /// connection is established and does not expire before the tick `now`. With `ANY_ZONE`, tuples
    /// are shared by all ports.
    #[inline]
    pub(super) fn goes_on_with<const ANY_ZONE: bool>(&self, key: &Key<A>, now: u32) -> bool {
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
    pub(super) fn keep_alive(&mut self, now: u32) {
        self.deadline = now.wrapping_add(self.idle.into());
    }

    /// Returns the account for the connection's packets: rule and server in one word.
    #[inline]
    pub(crate) fn account(&self) -> u32 {
        u32::from(self.rule) | u32::from(self.server) << 16
    }

    /// Returns the differences that translation makes to the sums of a packet's addresses and of
    /// its ports, in words read little-endian.
    #[inline]
    pub(crate) fn deltas(&self, direction: Direction) -> (u16, u16) {
        match direction {
            Direction::Inward => (self.address_delta, self.port_delta),
            Direction::Outward => (!self.address_delta, !self.port_delta),
        }
    }

    /// Returns the protocol number.
    #[inline]
    pub(crate) fn protocol(&self) -> u8 {
        self.sequences.protocol
    }

    /// Returns the port of the connection's vm, or of a proxy's client.
    #[inline]
    pub(crate) fn zone(&self) -> PortId {
        PortId(self.zone)
    }

    /// Returns the rule, which may have been removed.
    #[inline]
    pub(crate) fn rule(&self) -> ShortRuleId {
        ShortRuleId::from_bits(self.rule)
    }

    /// Detaches the connection from its rule.
    pub(crate) fn leave_rule(&mut self) {
        self.rule = ShortRuleId::NONE.bits();
    }

    #[inline]
    pub(crate) fn server(&self) -> u16 {
        self.server
    }

    /// Returns the mux that answers go through, if any.
    #[inline]
    pub(crate) fn via(&self) -> Option<usize> {
        let flags = self.sequences.flags;
        let number = usize::from(flags & VIA) | usize::from(self.idle & IDLE_VIA) << 3;
        (flags & THROUGH != 0).then_some(number)
    }

    /// Returns true if answers go through the network of the server.
    #[inline]
    pub(crate) fn is_internal(&self) -> bool {
        self.via() == Some(Policy::NETWORK.into())
    }

    /// Returns true if a packet may change more than sequence numbers: the owner of the tuple, or
    /// the mux that answers go through.
    #[inline]
    pub(super) fn is_unusual(&self) -> bool {
        self.sequences.flags & (DIRECT | THROUGH) != 0
    }

    /// Returns true if a segment is a retransmission after a silence. A segment that answers a
    /// packet is not; neither is a SYN-ACK, since its client retransmits too.
    pub(super) fn asks_again(&self, now: u32, direction: Direction, segment: &Segment) -> bool {
        self.is_quiet(now) && self.sequences.repeats(direction, segment)
    }

    /// Returns true if both ends are reset when the connection expires.
    pub(crate) fn resets(&self) -> bool {
        self.sequences.flags & RESETS != 0
            && self.sequences.protocol == protocol::TCP
            && !self.state().is_over()
    }

    /// Records that another connection has taken the outside tuple.
    pub(super) fn supersede(&mut self) {
        self.sequences.set_state(ConnectionState::Closed);
        if self.sequences.protocol == protocol::TCP {
            self.sequences.flags |= DIRECT; // takes the server's packets off the fast path
        }
    }

    /// Returns true if another connection may have taken the outside tuple. Connections without a
    /// handshake are over only for this reason.
    pub(super) fn is_superseded(&self) -> bool {
        let is_sure = self.sequences.protocol != protocol::TCP || self.is_contested();
        is_sure && self.state() == ConnectionState::Closed
    }

    /// Returns true if packets with the inside tuple may belong to another conversation.
    #[inline]
    pub(super) fn is_contested(&self) -> bool {
        self.sequences.flags & DIRECT != 0
    }

    /// Records a packet of the client to the server's own address, with its segment if it is TCP.
    /// If the packet repeats a SYN that the server does not accept because of this connection's
    /// tuple, returns whether the connection tells its ends by RSTs.
    pub(super) fn contest(&mut self, segment: Option<&Segment>) -> Option<bool> {
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
    pub(super) fn is_direct(&mut self, direction: Direction, segment: Option<&Segment>) -> bool {
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

    /// Returns the direction of the connection's first packet.
    #[inline]
    pub(crate) fn opener(&self) -> Direction {
        if self.sequences.flags & OPENED_OUTWARD != 0 {
            Direction::Outward
        } else {
            Direction::Inward
        }
    }

    pub(crate) fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// Records a TCP segment of an established connection: the sequence number after it, its
    /// acknowledgement and its window.
    // Out of line, each packet from a vm would cost 12 more instructions.
    #[inline(always)]
    pub(super) fn note_numbers(
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
    pub(super) fn is_refused_take_up(&self) -> bool {
        self.state() == ConnectionState::Closed
            && self.sequences.is_marked_as_taken_up(self.opener())
    }

    /// Returns true if the client is told by a RST when the server has no such connection.
    pub(super) fn tells_client(&self) -> bool {
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
    pub(super) fn answers_another(&self, direction: Direction, segment: &Segment) -> bool {
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
    pub(super) fn is_established_flow(&self) -> bool {
        self.sequences.protocol != protocol::TCP && self.state() == ConnectionState::Established
    }

    /// Reverts an established flow without a handshake to the answered state.
    #[cold]
    pub(super) fn hold_back(&mut self) {
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
    pub(super) fn timeout(&self) -> Span {
        use ConnectionState::*;
        match (self.sequences.protocol, self.state()) {
            (protocol::TCP, SynSent | SynReceived | TimeWait | Closed) => TRANSITORY,
            (protocol::ICMP | protocol::ICMPV6, _) => ECHO,
            // Half-closed connections too: the other end may send for as long as it likes.
            _ => Span(self.idle),
        }
    }
}

const _: () = assert!(size_of::<Connection<u64>>() == 64);
const _: () = assert!(size_of::<Connection<[u64; 4]>>() == 128);

fn port_sum(ports: u32) -> u64 {
    u64::from(ports & 0xffff) + u64::from(ports >> 16)
}

/// Returns the difference between two one's complement sums: `new` minus `old` (RFC 1624 §3).
pub(super) fn delta(old: u64, new: u64) -> u16 {
    fold(u64::from(!fold(old)) + u64::from(fold(new)))
}
