//! Fragments of datagrams, of which only the first has the ports.
//!
//! ```text
//!  first ──► FragmentTable: its protocol and ports      later, known ──► goes where the first went
//!        └─► FragmentRoom: what waited is released      later, not yet ──► FragmentRoom, or dropped
//! ```
//!
//! Datagrams are not reassembled: each fragment is forwarded separately. Both structures are
//! bounded. The table replaces its oldest datagram by a new one. The room holds later fragments
//! that arrive before their first one (RFC 4787 REQ-14). Neither gives a source more than half of
//! the places that it shares with others, so a flood of fragments evicts its own.

mod name;
mod room;
mod table;

use crate::nat::Direction;
use crate::packet::{Family, Packet};
use crate::stats::Stats;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::ipv6;
pub(crate) use room::Taken;
pub use room::{FragmentRoom, FragmentSlot};
pub use table::{Datagram, FragmentTable};

/// The arrival of a fragment: its port, network and direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The port of its frame.
    pub(crate) port: PortId,
    /// Port of the network that the addresses belong to.
    pub(crate) zone: PortId,
    /// The node that sent the frame, like [`Lane::sender`](crate::nat::pipeline::Lane::sender).
    pub(crate) sender: u32,
    pub(crate) direction: Direction,
    /// Bytes of the frame as it arrived.
    pub(crate) len: u32,
}

impl Arrival {
    pub(super) const EMPTY: Self = Self {
        port: PortId(0),
        zone: PortId(0),
        sender: 0,
        direction: Direction::Inward,
        len: 0,
    };
}

/// The result of looking up the datagram of a later fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recalled {
    /// The packet has its protocol and ports now.
    Known,
    /// The first fragment has not arrived yet.
    Unknown,
    /// The fragment would overwrite the TCP header of its first fragment (RFC 1858, RFC 3128).
    Overlaps,
}

/// The fragment state of a role: its table, if it has one, and its room.
pub(crate) struct Fragments<'a, 'm> {
    pub(crate) table: Option<&'a mut FragmentTable<'m>>,
    pub(crate) room: &'a mut FragmentRoom<'m>,
}

impl Fragments<'_, '_> {
    /// Stores the ports of a first fragment, or the identifier of an echo message.
    pub(crate) fn first(self, frame: &[u8], packet: &Packet, zone: PortId) {
        let identifies = packet.has_ports() || packet.is_icmp();
        let Some(table) = self.table else {
            return;
        };
        // Only the first fragment of an IPv6 datagram has its protocol.
        if identifies || packet.shape.family == Family::Ipv6 {
            let ports = if packet.has_ports() {
                packet.ports
            } else {
                packet.echo_ports(frame).unwrap_or(0)
            };
            table.remember(frame, packet, ports, zone);
            self.room.wake(packet, zone);
        }
    }

    /// Sets the protocol and ports of a later fragment to those of its datagram.
    pub(crate) fn later(&self, frame: &[u8], packet: &mut Packet, zone: PortId) -> Recalled {
        match &self.table {
            Some(table) => table.recall(frame, packet, zone),
            None => Recalled::Unknown,
        }
    }

    /// Holds a later fragment until its first one arrives, and returns the verdict.
    pub(crate) fn hold(
        self,
        frame: &[u8],
        packet: &Packet,
        arrival: Arrival,
        stats: &mut Stats,
    ) -> Verdict {
        Verdict::Drop(match self.table {
            Some(_) => self.room.hold(frame, packet, arrival, stats),
            None => DropReason::FragmentWithoutFirst,
        })
    }
}

/// Returns true if a later fragment can only be assigned by its first one.
pub(crate) fn needs_first(packet: &Packet) -> bool {
    packet.has_ports()
        || packet.is_icmp()
        || (packet.shape.family == Family::Ipv6 && ipv6::is_extension(packet.protocol))
}
