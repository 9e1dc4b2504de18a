//! The tuple of one side of a connection, and the key of its packets.

use crate::flow::Addresses;
use crate::nat::tcp::Direction;
use crate::packet::Tuple;
use crate::verdict::PortId;

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
