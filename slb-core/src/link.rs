//! The link header of what leaves for the fabric's router.

use crate::frame::Frame;
use crate::packet::{Family, Packet};
use crate::service::Underlay;
use crate::wire::ethernet::{self, EtherType};
use crate::wire::{ipv4, ipv6};

/// Puts the fabric's link header in the place of the one that the packet came with; padding and
/// VLAN tags of that link are left behind. `None`, and no change, where it does not fit.
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

/// Gives a frame of our own the fabric's MAC addresses.
pub(crate) fn readdress(frame: &mut Frame<'_>, underlay: &Underlay) -> Option<()> {
    let macs: &mut [u8; 12] = frame.bytes_mut().first_chunk_mut()?;
    let (destination, source) = macs.split_at_mut(6);
    destination.copy_from_slice(&underlay.next_hop.0);
    source.copy_from_slice(&underlay.mac.0);
    Some(())
}

/// Takes one hop off a packet, whose IP header `ip` begins with.
pub(crate) fn take_a_hop(ip: &mut [u8], family: Family) -> Option<()> {
    match family {
        Family::Ipv4 => ipv4::decrement_ttl(ip.first_chunk_mut()?),
        Family::Ipv6 => ipv6::decrement_hop_limit(ip.first_chunk_mut()?),
    }
    Some(())
}
