//! The identity of a datagram, which all of its fragments have.

use crate::flow::Addresses;
use crate::packet::{Family, Packet};
use crate::verdict::PortId;

/// The identity of a datagram: source, destination and identification; for IPv4 the protocol too
/// (RFC 791 §2.3), but not for IPv6, where a later fragment need not know the first header of the
/// fragmentable part (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    addresses: [u64; 4],
    identification: u32,
    /// Port of the network that the addresses belong to: two networks may use equal addresses.
    pub(super) zone: PortId,
    family: Family,
    /// Zero for IPv6.
    protocol: u8,
}

impl Name {
    pub(super) const EMPTY: Self = Self {
        addresses: [0; 4],
        identification: 0,
        zone: PortId(0),
        family: Family::Ipv4,
        protocol: 0,
    };

    pub(super) fn of(packet: &Packet, zone: PortId) -> Self {
        let (addresses, protocol) = match packet.shape.family {
            Family::Ipv4 => ([packet.addresses[0], 0, 0, 0], packet.protocol),
            Family::Ipv6 => (packet.addresses, 0),
        };
        Self {
            addresses,
            identification: packet.identification,
            zone,
            family: packet.shape.family,
            protocol,
        }
    }

    /// Returns the source of the datagram: an IPv4 address, or a /64 of IPv6.
    pub(super) fn source(&self) -> u64 {
        match self.family {
            Family::Ipv4 => u64::from(self.addresses[0] as u32),
            Family::Ipv6 => self.addresses[0],
        }
    }

    pub(super) fn hash(&self, key: [u64; 2]) -> u64 {
        let rest = u64::from(self.identification) << 32
            | u64::from(self.zone.0) << 8
            | u64::from(self.protocol);
        self.addresses.hash(rest, key)
    }
}
