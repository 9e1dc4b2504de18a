//! Encapsulation in place: the outer headers of each backend are prepared when the snapshot is
//! compiled, copied in front of each packet, and completed with the few fields that differ.
//!
//! ```text
//!   outer Ethernet | IPv4 or IPv6 | UDP | VXLAN | inner Ethernet | inner IP, as it came
//!         14           20 or 40      8      8          14
//! ```
//!
//! Sources: RFC 7348 §5 (the format), RFC 6040 §4.1 (DSCP and ECN are copied out), RFC 6864
//! (identification zero with DF), RFC 6935 and RFC 6936 (zero UDP checksums over IPv6).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::Frame;
use crate::mark::unmarked;
use crate::packet::{Family, Packet};
use crate::snapshot::{words_of_ipv4, words_of_ipv6};
use crate::spec::{UdpChecksum, Underlay};
use crate::verdict::DropReason;
use crate::wire::checksum::{self, Sum, udp_never_zero};
use crate::wire::ethernet::{EtherType, MacAddress};
use crate::wire::vxlan::{self, Vni};
use crate::wire::{ethernet, ipv4, ipv6, protocol, udp, write};

const ETHERNET: usize = ethernet::HEADER_LEN;
/// Offset of the outer IP header.
const IP: usize = ETHERNET;
const UDP_IPV4: usize = IP + ipv4::HEADER_LEN;
const UDP_IPV6: usize = IP + ipv6::HEADER_LEN;
/// Bytes of UDP header, VXLAN header and inner Ethernet header.
const TUNNEL: usize = udp::HEADER_LEN + vxlan::HEADER_LEN + ETHERNET;
/// Everything before the inner IP header, over IPv4.
const HEADER_IPV4: usize = UDP_IPV4 + TUNNEL;
/// Everything before the inner IP header, over IPv6.
const HEADER_IPV6: usize = UDP_IPV6 + TUNNEL;

/// The headroom that a frame without VLAN tags needs to be encapsulated, or answered by ICMP.
pub const HEADROOM: usize = HEADER_IPV6 - ETHERNET;

/// The outer source port's range: 49152 to 65535 (RFC 7348 §5).
const FIRST_SOURCE_PORT: u16 = 49_152;

/// The headers before the inner EtherType, for one backend.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Template {
    /// The headers, of the length for the outer address family; those over IPv4 fit a cache line.
    /// Fields that differ between packets are zero, including the outer IPv4 checksum and the inner
    /// EtherType.
    bytes: [u8; HEADER_IPV6],
    /// Bytes before the inner IP header.
    header_len: u8,
    /// True if the outer UDP checksum is computed.
    checksum: bool,
    /// The one's complement sum of the outer IPv4 header's words, read little-endian.
    sum: u16,
}

/// The properties of an inner frame that its outer headers depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inner {
    pub(crate) family: Family,
    /// Offset of the IP header in the frame.
    pub(crate) ip_offset: usize,
    /// Bytes of the IP packet.
    pub(crate) ip_len: u32,
    /// DSCP and ECN.
    pub(crate) traffic_class: u8,
}

impl From<&Packet> for Inner {
    #[inline]
    fn from(packet: &Packet) -> Self {
        Self {
            family: packet.shape.family,
            ip_offset: packet.shape.ip_offset.into(),
            ip_len: packet.ip_len,
            traffic_class: packet.traffic_class,
        }
    }
}

impl Template {
    pub(crate) const EMPTY: Self = Self {
        bytes: [0; HEADER_IPV6],
        header_len: HEADER_IPV4 as u8,
        checksum: false,
        sum: 0,
    };

    /// Makes the headers for a backend; returns `None` if the underlay has no address of its host's
    /// family.
    pub(crate) fn new(
        underlay: &Underlay,
        host: IpAddr,
        next_hop: MacAddress,
        mac: MacAddress,
        vni: Vni,
    ) -> Option<Self> {
        let mut template = Self::EMPTY;
        let source_port = FIRST_SOURCE_PORT;
        let udp = udp::Header {
            source_port,
            destination_port: vxlan::PORT,
            len: 0,
            checksum: 0,
        };
        let ether_type = match host {
            IpAddr::V4(host) => {
                template.checksum = underlay.udp_checksum == UdpChecksum::Computed;
                template.write_ipv4(underlay, underlay.ipv4?, host);
                template.write_tunnel::<UDP_IPV4>(udp, vni, mac, underlay.mac);
                EtherType::IPV4
            }
            IpAddr::V6(host) => {
                template.header_len = HEADER_IPV6 as u8;
                template.checksum = underlay.udp_checksum != UdpChecksum::Zero;
                template.write_ipv6(underlay, underlay.ipv6?, host);
                template.write_tunnel::<UDP_IPV6>(udp, vni, mac, underlay.mac);
                EtherType::IPV6
            }
        };
        let header = ethernet::Header {
            destination: next_hop,
            source: underlay.mac,
            ether_type,
        };
        header.emit(at_mut::<0, _>(&mut template.bytes));
        Some(template)
    }

    fn write_ipv4(&mut self, underlay: &Underlay, source: Ipv4Addr, destination: Ipv4Addr) {
        let header = ipv4::Header {
            traffic_class: 0,
            total_len: 0, // added for each packet, like the traffic class
            identification: 0,
            flags_fragment: ipv4::DONT_FRAGMENT,
            ttl: underlay.hop_limit,
            protocol: protocol::UDP,
            source,
            destination,
        };
        header.emit(at_mut::<IP, _>(&mut self.bytes));
        let checksum: &mut [u8; 2] = at_mut::<{ IP + 10 }, _>(&mut self.bytes);
        self.sum = !u16::from_le_bytes(core::mem::take(checksum));
    }

    fn write_ipv6(&mut self, underlay: &Underlay, source: Ipv6Addr, destination: Ipv6Addr) {
        let header = ipv6::Header {
            traffic_class: 0,
            flow_label: 0,
            payload_len: 0,
            next_header: protocol::UDP,
            hop_limit: underlay.hop_limit,
            source,
            destination,
        };
        header.emit(at_mut::<IP, _>(&mut self.bytes));
    }

    /// Writes what follows the outer IP header, `UDP` bytes into the frame.
    fn write_tunnel<const UDP: usize>(
        &mut self,
        udp: udp::Header,
        vni: Vni,
        destination: MacAddress,
        source: MacAddress,
    ) {
        let mut tunnel = [0; TUNNEL];
        udp.emit(at_mut::<0, _>(&mut tunnel));
        vxlan::Header { vni }.emit(at_mut::<{ udp::HEADER_LEN }, _>(&mut tunnel));
        let inner = ethernet::Header {
            destination,
            source: unmarked(source),
            ether_type: EtherType(0),
        };
        inner.emit(at_mut::<{ udp::HEADER_LEN + vxlan::HEADER_LEN }, _>(
            &mut tunnel,
        ));
        // All but the EtherType, which is the packet's.
        for (to, from) in self.bytes.iter_mut().skip(UDP).zip(&tunnel[..TUNNEL - 2]) {
            *to = *from;
        }
    }

    /// Returns the length of the longest inner IP packet that fits an underlay of `mtu` bytes.
    pub(crate) fn inner_mtu(&self, mtu: u16) -> u32 {
        u32::from(mtu).saturating_sub(u32::from(self.header_len) - ETHERNET as u32)
    }

    /// Returns true if a frame without VLAN tags and with `headroom` free bytes before it can be
    /// encapsulated.
    #[inline]
    pub(crate) fn has_room(&self, headroom: usize) -> bool {
        headroom + ETHERNET >= usize::from(self.header_len)
    }

    /// Returns true if [`encapsulate_common`](Self::encapsulate_common) applies: over IPv4, without
    /// a UDP checksum.
    pub(crate) fn is_common(&self) -> bool {
        usize::from(self.header_len) == HEADER_IPV4 && !self.checksum
    }

    /// Encapsulates a frame with its parsed `packet`, after decrementing the TTL. `entropy` is a
    /// hash of the inner flow; its low 14 bits become the outer source port.
    ///
    /// Link-layer padding and VLAN tags of the incoming link are removed.
    ///
    /// # Errors
    /// The headroom is too small. The frame is then unchanged.
    #[inline]
    pub(crate) fn encapsulate(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        entropy: u64,
    ) -> Result<(), DropReason> {
        self.encapsulate_inner(frame, packet.into(), entropy as u16)
    }

    /// Encapsulates a packet by its `inner` properties. `entropy` has the low 16 bits of the hash.
    ///
    /// # Errors
    /// The headroom is too small. The frame is then unchanged.
    #[inline]
    pub(crate) fn encapsulate_inner(
        &self,
        frame: &mut Frame<'_>,
        inner: Inner,
        entropy: u16,
    ) -> Result<(), DropReason> {
        let done = if self.is_common() {
            self.over_ipv4(frame, inner, entropy)
        } else if usize::from(self.header_len) == HEADER_IPV4 {
            self.over_ipv4_with_checksum(frame, inner, entropy)
        } else {
            self.over_ipv6(frame, inner, entropy)
        };
        done.ok_or(DropReason::NoHeadroom)
    }

    /// Encapsulates with a template that [is common](Self::is_common). Returns `None` if the
    /// headroom is too small.
    #[inline(always)] // with constants in `inner`, most of it goes away
    pub(crate) fn encapsulate_common(
        &self,
        frame: &mut Frame<'_>,
        inner: Inner,
        entropy: u16,
    ) -> Option<()> {
        self.over_ipv4(frame, inner, entropy)
    }

    /// Returns the offset of VXLAN.
    fn tunnel(&self) -> usize {
        usize::from(self.header_len) - ETHERNET - vxlan::HEADER_LEN
    }

    /// Writes another network into a frame that this template encapsulated.
    pub(crate) fn set_vni(&self, frame: &mut Frame<'_>, vni: Vni) {
        let mut header = [0; vxlan::HEADER_LEN];
        vxlan::Header { vni }.emit(&mut header);
        self.replace(frame, self.tunnel(), &header);
    }

    /// Writes another inner source address into a frame that this template encapsulated.
    pub(crate) fn set_inner_source(&self, frame: &mut Frame<'_>, source: MacAddress) {
        const SOURCE: usize = vxlan::HEADER_LEN + 6;
        self.replace(frame, self.tunnel() + SOURCE, &source.0);
    }

    /// Restores the hop of a frame that this template encapsulated: writes the four bytes that
    /// begin with the TTL or the next header, as [`hop_bytes`](Self::hop_bytes) read them, into the
    /// inner IP header.
    pub(crate) fn give_hop_back(&self, frame: &mut Frame<'_>, family: Family, bytes: [u8; 4]) {
        const IP: usize = vxlan::HEADER_LEN + ETHERNET;
        self.replace(frame, self.tunnel() + IP + Self::hop_place(family), &bytes);
    }

    /// Reads the bytes of an IP header that change with a hop.
    pub(crate) fn hop_bytes(ip: &[u8], family: Family) -> Option<[u8; 4]> {
        ip.get(Self::hop_place(family)..)?.first_chunk().copied()
    }

    /// Returns the offset of the bytes that change with a hop: IPv4's TTL and checksum, IPv6's next
    /// header and hop limit.
    const fn hop_place(family: Family) -> usize {
        match family {
            Family::Ipv4 => 8,
            Family::Ipv6 => 4,
        }
    }

    /// Replaces bytes after the UDP header of a frame that this template encapsulated, and updates
    /// the UDP checksum. Their number and their distance from the header are even.
    fn replace<const N: usize>(&self, frame: &mut Frame<'_>, at: usize, new: &[u8; N]) {
        let bytes = frame.bytes_mut().get_mut(at..at + N);
        let Some(place) = bytes.and_then(<[u8]>::first_chunk_mut) else {
            return;
        };
        let old: [u8; N] = core::mem::replace(place, *new);
        if !self.checksum {
            return;
        }
        // The last field before VXLAN is UDP's checksum, which covers the bytes.
        let end = self.tunnel();
        if let Some(field) = frame.bytes_mut().get_mut(end - 2..end)
            && let [high, low] = field
        {
            let words = |bytes: &[u8; N], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let mut checksum = u16::from_be_bytes([*high, *low]);
            for at in (0..N).step_by(2) {
                checksum = checksum::update(checksum, words(&old, at), words(new, at));
            }
            [*high, *low] = udp_never_zero(checksum).to_be_bytes();
        }
    }

    /// Returns true if the outer header is IPv4's.
    pub(crate) fn is_ipv4(&self) -> bool {
        usize::from(self.header_len) == HEADER_IPV4
    }

    /// Returns the address of the host, in two words.
    pub(crate) fn host(&self) -> [u64; 2] {
        // Not through an `IpAddr`, whose bytes are copied in overlapping pieces.
        match self.is_ipv4() {
            true => words_of_ipv4(at(&self.bytes, IP + 16)),
            false => words_of_ipv6(at(&self.bytes, IP + 24)),
        }
    }

    #[inline(always)] // as `encapsulate_common`
    fn over_ipv4(&self, frame: &mut Frame<'_>, inner: Inner, entropy: u16) -> Option<()> {
        let end = inner.ip_offset + inner.ip_len as usize;
        let bytes = frame.replace_front::<HEADER_IPV4>(inner.ip_offset, end)?;
        let (header, packet): (&mut [u8; HEADER_IPV4], _) = bytes.split_first_chunk_mut()?;
        let ether_type = take_a_hop(packet, inner.family)?;
        let total_len = (inner.ip_len + (HEADER_IPV4 - IP) as u32) as u16;
        let udp_len = total_len - ipv4::HEADER_LEN as u16;
        // In the order of memory: the traffic class is its word's second byte.
        let sum = u32::from(self.sum)
            + (u32::from(inner.traffic_class) << 8)
            + u32::from(total_len.swap_bytes());
        let checksum = !((sum.wrapping_add(sum.rotate_right(16)) >> 16) as u16);
        // Four vectors, then the few fields: shifting fields into words would take seven more
        // instructions.
        header.copy_from_slice(&self.bytes[..HEADER_IPV4]);
        header[IP + 1] = inner.traffic_class;
        write(header, IP + 2, total_len.to_be_bytes());
        write(header, IP + 10, checksum.to_le_bytes());
        write(header, UDP_IPV4, source_port(entropy).to_be_bytes());
        write(header, UDP_IPV4 + 4, udp_len.to_be_bytes());
        write(header, HEADER_IPV4 - 2, ether_type.0.to_be_bytes());
        Some(())
    }

    #[cold]
    fn over_ipv4_with_checksum(
        &self,
        frame: &mut Frame<'_>,
        inner: Inner,
        entropy: u16,
    ) -> Option<()> {
        self.over_ipv4(frame, inner, entropy)?;
        fill_udp_checksum::<UDP_IPV4>(frame.bytes_mut(), IP + 12);
        Some(())
    }

    #[inline]
    fn over_ipv6(&self, frame: &mut Frame<'_>, inner: Inner, entropy: u16) -> Option<()> {
        let end = inner.ip_offset + inner.ip_len as usize;
        let bytes = frame.replace_front::<HEADER_IPV6>(inner.ip_offset, end)?;
        let (header, packet): (&mut [u8; HEADER_IPV6], _) = bytes.split_first_chunk_mut()?;
        *header = self.bytes;
        let ether_type = take_a_hop(packet, inner.family)?;
        write(header, HEADER_IPV6 - 2, ether_type.0.to_be_bytes());
        let udp_len = ((inner.ip_len + TUNNEL as u32) as u16).to_be_bytes();
        // Version 6, then eight bits of traffic class, then the flow label.
        header[IP] = 0x60 | inner.traffic_class >> 4;
        header[IP + 1] = inner.traffic_class << 4;
        write(header, IP + 4, udp_len);
        write(header, UDP_IPV6, source_port(entropy).to_be_bytes());
        write(header, UDP_IPV6 + 4, udp_len);
        if self.checksum {
            fill_udp_checksum::<UDP_IPV6>(bytes, IP + 8);
        }
        Some(())
    }
}

/// Returns the outer source port, from the low bits of a hash of the inner flow.
#[inline]
fn source_port(entropy: u16) -> u16 {
    FIRST_SOURCE_PORT | entropy & 0x3fff
}

/// Decrements the inner packet's TTL; returns its EtherType.
#[inline(always)] // as `encapsulate_common`
fn take_a_hop(packet: &mut [u8], family: Family) -> Option<EtherType> {
    Some(match family {
        Family::Ipv4 => {
            ipv4::decrement_ttl(packet.first_chunk_mut()?);
            EtherType::IPV4
        }
        Family::Ipv6 => {
            ipv6::decrement_hop_limit(packet.first_chunk_mut()?);
            EtherType::IPV6
        }
    })
}

/// Computes the outer UDP checksum of a packet whose UDP header begins at `UDP`; the outer
/// addresses, from `addresses` on, end there.
#[cold]
fn fill_udp_checksum<const UDP: usize>(bytes: &mut [u8], addresses: usize) {
    let (Some(summed), Some(datagram)) = (bytes.get(addresses..), bytes.get(UDP..)) else {
        return;
    };
    let sum = Sum::ZERO
        .add_bytes(summed) // addresses, then the datagram, whose checksum is zero as yet
        .add_u16(protocol::UDP.into())
        .add_u16(datagram.len() as u16);
    let checksum = udp_never_zero(sum.checksum()).to_be_bytes();
    if let Some(field) = bytes.get_mut(UDP + 6..UDP + 8) {
        field.copy_from_slice(&checksum);
    }
}

/// The `N` bytes from a place on.
#[inline(always)] // one load at a constant place
fn at<const N: usize>(bytes: &[u8], place: usize) -> [u8; N] {
    let found = bytes.get(place..).and_then(<[u8]>::first_chunk);
    found.copied().unwrap_or([0; N])
}

/// The `N` bytes from `AT` on.
fn at_mut<const AT: usize, const N: usize>(bytes: &mut [u8]) -> &mut [u8; N] {
    match bytes
        .split_at_mut_checked(AT)
        .and_then(|(_, rest)| rest.first_chunk_mut())
    {
        Some(chunk) => chunk,
        None => unreachable!("headers are written at constant places inside the template"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host agent's answers through a mux over IPv6 had a checksum for another network, and Linux
    /// and the mux dropped them.
    #[test]
    fn the_checksum_is_that_of_the_network_that_is_written_last() {
        let underlay = Underlay {
            ipv4: Some(Ipv4Addr::new(172, 16, 0, 101)),
            ipv6: Some(Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x101)),
            udp_checksum: UdpChecksum::Computed,
            ..Underlay::default()
        };
        let muxes: [IpAddr; 2] = [
            Ipv4Addr::new(172, 16, 0, 11).into(),
            Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x11).into(),
        ];
        let mut inner = [0; 54];
        inner[12..14].copy_from_slice(&[8, 0]);
        ipv4::Header {
            traffic_class: 0,
            total_len: 40,
            identification: 7,
            flags_fragment: 0,
            ttl: 64,
            protocol: protocol::TCP,
            source: Ipv4Addr::new(20, 20, 20, 100),
            destination: Ipv4Addr::new(1, 2, 3, 4),
        }
        .emit(at_mut::<ETHERNET, _>(&mut inner));
        inner[46] = 0x50; // a TCP header of 20 bytes
        for (mux, vni) in muxes
            .into_iter()
            .flat_map(|mux| [0, 1, 5001, 0xff_ffff].map(|vni| (mux, vni)))
        {
            let mac = MacAddress([2, 0, 0, 0, 0, 9]);
            let template = Template::new(&underlay, mux, mac, mac, Vni::default()).unwrap();
            let mut buffer = [0; 256];
            buffer[128..128 + inner.len()].copy_from_slice(&inner);
            let mut frame = Frame::new(&mut buffer, 128, inner.len()).unwrap();
            let mut packet = Packet::EMPTY;
            assert_eq!(packet.read(frame.bytes()), crate::packet::Read::Ip);
            template.encapsulate(&mut frame, &packet, 0x1234).unwrap();
            let vni = Vni::new(vni).unwrap();
            template.set_vni(&mut frame, vni);
            let bytes = frame.bytes();
            let (addresses, udp) = match mux {
                IpAddr::V4(_) => (&bytes[26..34], &bytes[UDP_IPV4..]),
                IpAddr::V6(_) => (&bytes[22..54], &bytes[UDP_IPV6..]),
            };
            assert_eq!(udp[8 + 4..8 + 7], vni.get().to_be_bytes()[1..]);
            let pseudo = [0, protocol::UDP, 0, udp.len() as u8];
            let sum = Sum::ZERO
                .add_bytes(addresses)
                .add_bytes(&pseudo)
                .add_bytes(udp);
            assert_eq!(sum.checksum(), 0, "{mux}, {vni:?}");
        }
    }
}
