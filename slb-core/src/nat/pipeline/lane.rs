//! The state of one frame on its way through the stages.

use crate::frame::Frame;
use crate::nat::connection::{Key, Side};
use crate::nat::rewrite::Rewrite;
use crate::nat::table::{Connections, NONE};
use crate::nat::tcp::{Direction, Segment};
use crate::packet::{EchoMessage, Family, Packet, Part};
use crate::snapshot::locals::NO_SENDER;
use crate::verdict::PortId;
use crate::wire::protocol;

/// A frame on its way through the stages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lane {
    pub(crate) packet: Packet,
    /// The hash of the frame's key.
    pub(crate) hash: u64,
    /// The most likely connection of the frame.
    pub(crate) candidate: u32,
    /// Bytes of the frame as it arrived.
    pub(crate) len: u32,
    /// The zone of the frame's tuple: the port of the vm, or of the proxy's clients.
    pub(crate) zone: PortId,
    /// The node on the fabric that sent the frame; see
    /// [`Nat::sender_at`](crate::snapshot::locals::Nat::sender_at).
    pub(crate) sender: u32,
    /// Index of the frame in the burst.
    pub(crate) frame: u8,
    pub(crate) direction: Direction,
    /// True if the packet came for a public address, and has the vm's own one now.
    pub(crate) is_public: bool,
    /// True if the packet is a call of a vm of this node, as its backend on this node gets it.
    pub(crate) is_call: bool,
    /// True if `packet` is the frame's: the frame has an IP packet with readable headers.
    pub(crate) is_ip: bool,
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
        is_public: false,
        is_call: false,
        is_ip: false,
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

    /// Returns true if the tuple is that of ICMP without an identifier, which looks like the tuple of pings
    /// whose identifier is zero.
    #[inline]
    pub(crate) fn is_unidentified_icmp(&self) -> bool {
        let shape = &self.packet.shape;
        self.packet.is_icmp() && shape.echo == EchoMessage::None && shape.part != Part::Later
    }

    /// Returns the packet as it is in the frame.
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

#[inline]
pub(super) fn hash<A: Rewrite>(table: &Connections<'_, A>, lane: &Lane) -> u64 {
    let hash = table.hash(&lane.key());
    table.prefetch(hash);
    hash
}

/// Returns the TCP segment of a frame, if its whole header is present.
#[inline]
pub(super) fn segment_of(frame: &Frame<'_>, lane: &Lane) -> Option<Segment> {
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

/// Reads the segment of a first fragment, whose options may continue in the next fragment.
#[cold]
fn first_fragment(bytes: &[u8], len: usize) -> Option<Segment> {
    let header_len = usize::from(bytes.get(12)? >> 4) * 4;
    Segment::parse(bytes, len.max(header_len))
}
