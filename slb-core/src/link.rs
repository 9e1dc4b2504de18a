//! Link headers of outgoing frames: towards the fabric's router, or towards the sender of the
//! answered frame.

use crate::frame::Frame;
use crate::packet::{Family, Packet};
use crate::spec::Underlay;
use crate::wire::ethernet::{self, EtherType, MacAddress};
use crate::wire::{ipv4, ipv6};

/// The link header of a generated frame: two MAC addresses, and the VLAN tag of the connection or
/// packet that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    destination: MacAddress,
    source: MacAddress,
    /// The VLAN tag; all zero for none.
    tag: [u8; ethernet::TAG_LEN],
}

impl Link {
    /// No link header.
    pub const NONE: Self = Self::new(MacAddress([0; 6]), MacAddress([0; 6]));

    /// Makes a link header without a tag.
    pub(crate) const fn new(source: MacAddress, destination: MacAddress) -> Self {
        Self {
            destination,
            source,
            tag: [0; ethernet::TAG_LEN],
        }
    }

    /// Returns the link headers of a frame; `None` if it has several tags, or if either address is
    /// a group: such frames are not answered.
    pub(crate) fn of(frame: &Frame<'_>, packet: &Packet) -> Option<Self> {
        let header: &[u8; 16] = frame.bytes().first_chunk()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, tag @ ..] = *header;
        let link = Self::new(
            MacAddress([g, h, i, j, k, l]),
            MacAddress([a, b, c, d, e, f]),
        );
        match usize::from(packet.shape.ip_offset) {
            _ if link.destination.is_multicast() || link.source.is_multicast() => None,
            ethernet::HEADER_LEN => Some(link),
            offset if offset == ethernet::HEADER_LEN + ethernet::TAG_LEN => {
                Some(Self { tag, ..link })
            }
            _ => None,
        }
    }

    /// Returns destination, source and tag, in the layout of [`from_bytes`](Self::from_bytes).
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (self.destination.0, self.source.0);
        let [m, n, o, p] = self.tag;
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Makes a link header from destination, source and tag.
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, tag @ ..] = bytes;
        Self {
            tag,
            ..Self::new(
                MacAddress([g, h, i, j, k, l]),
                MacAddress([a, b, c, d, e, f]),
            )
        }
    }

    /// Returns this link header with another destination.
    pub(crate) fn with_destination(self, destination: MacAddress) -> Self {
        Self {
            destination,
            ..self
        }
    }

    /// Returns the destination MAC address; `None` for [`NONE`](Self::NONE).
    pub(crate) fn destination(&self) -> Option<MacAddress> {
        (*self != Self::NONE).then_some(self.destination)
    }

    /// Returns the source MAC address; `None` for [`NONE`](Self::NONE).
    pub(crate) fn source(&self) -> Option<MacAddress> {
        (*self != Self::NONE).then_some(self.source)
    }

    /// Returns the link header of the reverse direction.
    pub(crate) fn reversed(self) -> Self {
        Self {
            destination: self.source,
            source: self.destination,
            ..self
        }
    }

    /// Returns the length of the link header in bytes.
    pub(crate) fn len(&self) -> usize {
        ethernet::HEADER_LEN
            + if self.tag == [0; ethernet::TAG_LEN] {
                0
            } else {
                ethernet::TAG_LEN
            }
    }

    /// Writes the link header to the beginning of `bytes`.
    pub(crate) fn emit(&self, bytes: &mut [u8], ether_type: EtherType) -> Option<()> {
        let header = ethernet::Header {
            destination: self.destination,
            source: self.source,
            ether_type,
        };
        let tagged = self.len() > ethernet::HEADER_LEN;
        header.emit(bytes.first_chunk_mut()?);
        if tagged {
            bytes.get_mut(12..16)?.copy_from_slice(&self.tag);
            bytes
                .get_mut(16..18)?
                .copy_from_slice(&ether_type.0.to_be_bytes());
        }
        Some(())
    }
}

/// Replaces the link header of an incoming packet by the fabric's, and removes padding and VLAN
/// tags. Returns `None`, without a change, if the new header does not fit.
#[inline]
pub(crate) fn replace(frame: &mut Frame<'_>, packet: &Packet, underlay: &Underlay) -> Option<()> {
    let ip = usize::from(packet.shape.ip_offset);
    let bytes = frame.replace_front::<{ ethernet::HEADER_LEN }>(ip, ip + packet.ip_len())?;
    let header = ethernet::Header {
        destination: underlay.next_hop,
        source: underlay.mac,
        ether_type: match packet.shape.family {
            Family::Ipv4 => EtherType::IPV4,
            Family::Ipv6 => EtherType::IPV6,
        },
    };
    header.emit(bytes.first_chunk_mut()?);
    Some(())
}

/// Sets the MAC addresses of a frame to those of a link header.
pub(crate) fn readdress(frame: &mut Frame<'_>, link: &Link) -> Option<()> {
    let macs: &mut [u8; 12] = frame.bytes_mut().first_chunk_mut()?;
    let (destination, source) = macs.split_at_mut(6);
    destination.copy_from_slice(&link.destination.0);
    source.copy_from_slice(&link.source.0);
    Some(())
}

/// Decrements the hop limit of a packet, whose IP header is at the start of `ip`.
pub(crate) fn take_a_hop(ip: &mut [u8], family: Family) -> Option<()> {
    match family {
        Family::Ipv4 => ipv4::decrement_ttl(ip.first_chunk_mut()?),
        Family::Ipv6 => ipv6::decrement_hop_limit(ip.first_chunk_mut()?),
    }
    Some(())
}
