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

mod life;
mod side;
mod span;

use super::rule_id::ShortRuleId;
use super::tcp::{ConnectionState, DIRECT, Direction, Numbers, Sequences};
use crate::flow::Addresses;
use crate::packet::Tuple;
use crate::verdict::PortId;
pub(super) use crate::wire::checksum::fold;
use crate::wire::protocol;
pub(crate) use side::{ALL_PORTS, Key, Side};
pub use span::Span;
pub(crate) use span::{TICK_SHIFT, tick_of};

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
/// Rounding adds up to four seconds to the idle timeout.
const IDLE_VIA: u16 = 0x3e;
const IDLE_VIA_SHIFT: u32 = 1;
/// In [`Connection::idle`], set if the remote end is inside. Rounding adds up to 67 ms.
const INSIDE: u16 = 0x01;
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

/// In [`Connection::account`], set if the remote end is inside.
pub(crate) const INSIDE_ACCOUNT: u64 = INSIDE as u64;
/// Distinguishes packets from the server in an account. A server has one port, so no other account differs from its own
/// by this bit.
pub(crate) const OUTWARD_ACCOUNT: u64 = 1 << 63;

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
            idle: policy.idle.0.saturating_add(INSIDE) & !INSIDE,
            rule: policy.rule.bits(),
            server: policy.server,
            zone: zone.0,
            sequences: Sequences::beside(ConnectionState::SynSent, protocol, flags),
            ..Self::EMPTY
        };
        if policy.via != Policy::DIRECT {
            connection.sequences.flags |= THROUGH;
            connection.idle = connection.idle.saturating_add(IDLE_VIA) & !INSIDE;
            connection.set_via(policy.via);
        }
        connection
    }

    /// Changes the mux that a connection's answers go through.
    pub(crate) fn set_via(&mut self, mux: u8) {
        let before = self.timeout();
        self.sequences.flags = self.sequences.flags & !VIA | mux & VIA;
        self.idle = self.idle & !IDLE_VIA | u16::from(mux >> 3) << IDLE_VIA_SHIFT;
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
                    Some(_) => self.idle & !IDLE_VIA & !INSIDE,
                    None => self.idle & !INSIDE,
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

    /// Returns the account for the connection's packets: rule, server, and [`INSIDE_ACCOUNT`]. The other bits are those of
    /// the fields beside them, so that one word is read.
    #[inline]
    pub(crate) fn account(&self) -> u64 {
        let Self {
            idle,
            rule,
            server,
            zone,
            ..
        } = *self;
        u64::from(idle) | u64::from(rule) << 16 | u64::from(server) << 32 | u64::from(zone) << 48
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
        let number =
            usize::from(flags & VIA) | usize::from((self.idle & IDLE_VIA) >> IDLE_VIA_SHIFT) << 3;
        (flags & THROUGH != 0).then_some(number)
    }

    /// Notes that the remote end is inside.
    pub(crate) fn set_inside(&mut self) {
        self.idle |= INSIDE;
    }

    /// Returns true if the remote end is inside.
    #[inline]
    pub(crate) fn is_inside(&self) -> bool {
        self.idle & INSIDE != 0
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

    /// Returns true if both ends are reset when the connection expires.
    pub(crate) fn resets(&self) -> bool {
        self.sequences.flags & RESETS != 0
            && self.sequences.protocol == protocol::TCP
            && !self.state().is_over()
    }

    /// Returns true if packets with the inside tuple may belong to another conversation.
    #[inline]
    pub(super) fn is_contested(&self) -> bool {
        self.sequences.flags & DIRECT != 0
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
