//! One translated connection: what it is called on either side, and how far it has come.
//!
//! ```text
//!        outside                                inside
//!   remote -> front     == translated to ==>   peer -> server
//!   remote <- front     <== translated to ==   peer <- server
//! ```
//!
//! The remote is the client, or whom the server calls; the front a VIP or a SNAT address; the
//! server a vm. The peer is the remote under its own name, unless its address is translated too.

use super::rule_id::ShortRuleId;
use super::tcp::{ConnectionState, DIRECT, Direction, Numbers, Segment, Sequences, next_state};
use crate::flow::Addresses;
use crate::packet::Tuple;
use crate::time::Instant;
use crate::verdict::PortId;
pub(super) use crate::wire::checksum::fold;
use crate::wire::protocol;

/// Deadlines count in units of 2^26 ns (67 ms): what a shift makes of nanoseconds.
pub(crate) const TICK_SHIFT: u32 = 26;

/// The tick that a moment lies in, modulo 2^32: ticks wrap after nine years.
#[inline]
pub(crate) const fn tick_of(passed: Instant) -> u32 {
    (passed.as_nanos() >> TICK_SHIFT) as u32
}

/// A length of time in these units, up to 73 minutes.
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

/// TCP that is not established yet, or not any more. A RST may be lost between here and its
/// receiver, so a reset connection lasts as long (RFC 7857 §2.2).
const TRANSITORY: Span = Span::from_secs(240); // RFC 5382 §5 REQ-5: no less
/// ICMP echo.
const ECHO: Span = Span::from_secs(60); // RFC 5508 §3.2 REQ-1: no less

/// The tuple that one side uses for a connection: that of packets from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Side<A> {
    /// Source and destination.
    pub(crate) addresses: A,
    /// The four bytes of ports, read little-endian. For ICMP echo, the identifier takes the place
    /// of the requester's port; zero for other protocols.
    pub(crate) ports: u32,
}

impl<A: Addresses> Side<A> {
    /// The tuple of the packets that go there.
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

/// The key that a packet's connection is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key<A> {
    pub(crate) side: Side<A>,
    pub(crate) protocol: u8,
    /// Direction of the packet.
    pub(crate) direction: Direction,
    /// Port of the vm, since tuples of two vms may be the same; or [`ALL_PORTS`].
    pub(crate) zone: PortId,
}

/// Stands for the zone of tuples that are the same at all ports.
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

/// The treatment of a connection's packets besides translation; fixed when the connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Without a packet for so long, it is over.
    pub(crate) idle: Span,
    /// The rule of the connection.
    pub(crate) rule: ShortRuleId,
    /// The backend, as the snapshot numbers those that are here.
    pub(crate) server: u16,
    /// Answers go back through the mux of this number; [`Policy::DIRECT`]: straight on.
    pub(crate) via: u8,
    /// Both ends are told with a RST when it ends by itself.
    pub(crate) reset: bool,
    /// The direction of its first packet.
    pub(crate) opener: Direction,
    /// True if the name on the inside is that of all ports.
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
    /// Packets of its name on the inside may be of another conversation.
    pub(crate) is_contested: bool,
    /// Ticks of 2^26 ns until it ends.
    pub(crate) remaining: u16,
}

/// A connection as its table shows it.
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
    /// The tick in which it ends, modulo 2^32; of a free place, the next free one.
    pub(super) deadline: u32,
    sequences: Sequences,
    /// The difference that translating an inward packet makes to the sum of its addresses.
    address_delta: u16,
    /// Change of the checksum by the ports.
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
        // An inward packet's tuple becomes that of the packets that go to the server.
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

    /// The connection again that was [saved](Self::save), `elapsed` ticks later; `None` if its time has
    /// come meanwhile.
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

    /// All that is to be known to make the same connection again.
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

    /// All that may be known of it.
    pub(crate) fn view(&self) -> ConnectionView {
        ConnectionView {
            outside: self.side(Direction::Inward).tuple(self.protocol()),
            inside: self.side(Direction::Outward).tuple(self.protocol()),
            state: self.shown_state(),
        }
    }

    /// Returns the state for reports: only here do protocols without a handshake distinguish an
    /// answered connection from one that its opener continued.
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

    /// The tuple of a packet that goes in `direction`, once it is translated.
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

    /// Returns true if a packet of this name belongs to the connection for certain, which is established and
    /// does not end before the tick `now`. With `ANY_ZONE`, names are the same at all ports.
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

    /// Returns true if no packet of the connection came for a while.
    fn is_quiet(&self, now: u32) -> bool {
        /// Ticks: 67 ms or more. Stacks wait 200 ms or more until they send again, and longer from time to
        /// time.
        const WHILE: u32 = 2;
        let left = self.deadline.wrapping_sub(now);
        u32::from(self.timeout().0).wrapping_sub(left) >= WHILE
    }

    /// Returns true if a packet in this direction is a further answer of a flow without a handshake, whose
    /// opener has not gone on yet.
    fn goes_on_answering(&self, direction: Direction) -> bool {
        self.sequences.protocol != protocol::TCP
            && self.state() == ConnectionState::SynReceived
            && direction != self.opener()
    }

    /// Notes a packet of an established connection that [goes on](Self::goes_on_with).
    #[inline]
    pub(super) fn keep_alive(&mut self, now: u32) {
        self.deadline = now.wrapping_add(self.idle.into());
    }

    /// Account that the packets are counted on: rule and server in one word.
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

    /// The protocol's number.
    #[inline]
    pub(crate) fn protocol(&self) -> u8 {
        self.sequences.protocol
    }

    /// The port of the vm that it is with, or of the proxy's client.
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

    /// The mux that answers go through, if they do.
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

    /// Returns true if a segment is a retransmission after a silence. One that answers a packet is
    /// not, nor is a SYN-ACK, whose client retransmits too.
    pub(super) fn asks_again(&self, now: u32, direction: Direction, segment: &Segment) -> bool {
        self.is_quiet(now) && self.sequences.repeats(direction, segment)
    }

    /// Returns true if both ends are reset when the connection expires.
    pub(crate) fn resets(&self) -> bool {
        self.sequences.flags & RESETS != 0
            && self.sequences.protocol == protocol::TCP
            && !self.state().is_over()
    }

    /// Notes that another connection has its name on the outside.
    pub(super) fn supersede(&mut self) {
        self.sequences.set_state(ConnectionState::Closed);
        if self.sequences.protocol == protocol::TCP {
            self.sequences.flags |= DIRECT; // its server's packets are looked at twice
        }
    }

    /// Returns true if another connection may have taken the outside tuple. Protocols without a
    /// handshake end in no other way.
    pub(super) fn is_superseded(&self) -> bool {
        let is_sure = self.sequences.protocol != protocol::TCP || self.is_contested();
        is_sure && self.state() == ConnectionState::Closed
    }

    /// Returns true if packets with the inside tuple may belong to another conversation.
    #[inline]
    pub(super) fn is_contested(&self) -> bool {
        self.sequences.flags & DIRECT != 0
    }

    /// Notes a packet of the client's to the server's own address; of TCP with what its segment says. For a
    /// SYN that came before and that the server does not take, since it has this connection under that name,
    /// returns whether the ends of the connection are told by RSTs.
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

    /// The direction of its first packet.
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

    /// Notes a TCP segment that goes on with an established connection: the sequence number behind it, what it
    /// acknowledges, and its window.
    // Out of line, each packet that leaves a vm costs 12 instructions more.
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

    /// Notes the first packet; of TCP with what its SYN says.
    pub(crate) fn open(&mut self, now: u32, syn: Option<&Segment>) {
        if let Some(syn) = syn {
            self.sequences.open(self.opener(), syn);
        }
        self.sequences.set_state(ConnectionState::SynSent);
        self.deadline = now.wrapping_add(self.timeout().0.into());
    }

    /// Notes the first packet that was seen, from the middle of the connection.
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

    /// Returns true if the connection was taken up, and only one end sent since.
    #[cold]
    pub(crate) fn is_taken_up(&self) -> bool {
        self.state().is_handshake() && self.sequences.is_marked_as_taken_up(self.opener())
    }

    /// Returns true if the connection was taken up, its server refused it, and its client was not
    /// told.
    #[cold]
    pub(super) fn is_refused_take_up(&self) -> bool {
        self.state() == ConnectionState::Closed
            && self.sequences.is_marked_as_taken_up(self.opener())
            && self.sequences.flags & RESETS == 0
    }

    /// Notes a further segment of an established TCP connection, unless it begins or ends something:
    /// nearly every packet. Returns false, and notes nothing, where it is another packet.
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

    /// Returns true if a segment's numbers show that it is not of this connection, which is over,
    /// or never sent in its handshake the number that the segment acknowledges.
    pub(crate) fn is_anothers(&self, direction: Direction, segment: &Segment) -> bool {
        direction == self.opener()
            && !segment.flags.opens()
            && self.sequences.is_anothers(direction, segment)
    }

    /// Returns true if a segment is the server's answer to a SYN that this connection's client did
    /// not send: one that reached the server another way.
    pub(super) fn answers_another(&self, direction: Direction, segment: &Segment) -> bool {
        (self.opener(), direction) == (Direction::Inward, Direction::Outward)
            && self.sequences.answers_another(Direction::Inward, segment)
    }

    /// Notes a further packet; of TCP with what its segment says. Returns the states before and after
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
        // An unanswered SYN does not keep the connection alive: otherwise a client that retries
        // from this port would keep the connection to a dead server for ever.
        let asks_anew = state == before
            && state != ConnectionState::SynSent
            && segment.is_some_and(|segment| segment.flags.opens());
        if !asks_anew {
            self.deadline = now.wrapping_add(self.lifetime().0.into());
        }
        (before, state)
    }

    /// The state after a packet of a protocol without states: an answer establishes it, but only
    /// the opener's next packet shows that the answer arrived.
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

    /// Takes back that a flow without a handshake is established: it is answered.
    #[cold]
    pub(super) fn hold_back(&mut self) {
        self.sequences.set_state(ConnectionState::SynReceived);
    }

    /// Returns the time for which the connection lasts without a packet: the [timeout](Self::timeout), or for one that
    /// was taken up its idle timeout, since an end that has nothing to say may be silent for that long.
    // Not a part of `timeout`: there it costs a proxy's packets ten instructions.
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
