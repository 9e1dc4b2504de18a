//! Headers of packets on the fast path, read and written in place at constant offsets.

use super::super::Table;
use crate::nat::Direction;
use crate::nat::connection::{Key, Side};
use crate::nat::rewrite::{Cut, Rewrite, rewrite_tcp, rewrite_udp};
use crate::packet::{Family, Packet, Shape};
use crate::spec::Underlay;
use crate::tunnel::decapsulation::ECN;
use crate::verdict::PortId;
use crate::wire::tcp::Flags;
use crate::wire::{ethernet, ipv4, ipv6, protocol, tcp, udp};

/// Packets of one family on the fast path.
pub(super) trait Plain: Table {
    /// Link header, IP header without options, and as many bytes of transport as a TCP header has.
    type Head;
    /// Length of the IP header in bytes.
    const HEADER_LEN: u32;

    /// Returns the head of an untagged frame that holds an ordinary packet. `ecn` is the ECN field of the outer
    /// header; `None` if decapsulation would change that of the packet.
    fn read(frame: &[u8], ecn: u8) -> Option<&Self::Head>;

    /// Returns the head of a frame that was [read](Self::read).
    fn head_mut(frame: &mut [u8]) -> Option<&mut Self::Head>;

    /// Returns the key that the packet's connection is looked up by.
    fn key(head: &Self::Head, direction: Direction, zone: PortId) -> Key<Self>;

    /// Returns the length of the IP packet in bytes.
    fn ip_len(head: &Self::Head) -> u32;

    /// Returns the TTL or hop limit.
    fn hop_limit(head: &Self::Head) -> u8;

    /// Returns the bytes that are the TCP header if the packet is TCP.
    fn tcp(head: &Self::Head) -> &[u8; tcp::HEADER_LEN];

    /// Writes the packet's other name, and takes `hops` off its hop limit.
    fn rename(head: &mut Self::Head, number: u8, to: &Side<Self>, deltas: (u16, u16), hops: u8);

    /// Writes the MAC addresses of the fabric's link.
    fn readdress(head: &mut Self::Head, underlay: &Underlay);

    /// Returns the packet as the slow path reads it.
    fn packet(head: &Self::Head, key: &Key<Self>) -> Packet;
}

/// Offset of the IP header.
const IP: usize = ethernet::HEADER_LEN;
const TRANSPORT_IPV4: usize = IP + ipv4::HEADER_LEN;
const TRANSPORT_IPV6: usize = IP + ipv6::HEADER_LEN;

impl Plain for u64 {
    // UDP with less than 12 bytes of data may be shorter in VXLAN, where links do not pad: it takes
    // the slow path, so that one comparison bounds all that is read.
    type Head = [u8; TRANSPORT_IPV4 + tcp::HEADER_LEN];
    const HEADER_LEN: u32 = ipv4::HEADER_LEN as u32;

    #[inline(always)]
    fn read(frame: &[u8], ecn: u8) -> Option<&Self::Head> {
        /// EtherType IPv4, version 4, five words of header.
        const KIND: u32 = u32::from_le_bytes([0x08, 0x00, 0x45, 0]);
        /// More fragments, fragment offset.
        const FRAGMENT: u32 = u32::from_le_bytes([0x3f, 0xff, 0, 0]);
        let head: &Self::Head = frame.first_chunk()?;
        let kind = u32::from_le_bytes(*at::<12, 4>(head));
        if kind & 0x00ff_ffff != KIND
            || u32::from_le_bytes(*at::<{ IP + 6 }, 4>(head)) & FRAGMENT != 0
        {
            return None;
        }
        let ip_len = Self::ip_len(head);
        let is_right = ipv4::checksum_is_right(at::<IP, { ipv4::HEADER_LEN }>(head))
            && ip_len as usize <= frame.len() - IP
            && is_ordinary(head[IP + 9], Self::tcp(head), Self::HEADER_LEN, ip_len)
            && (ecn == 0 || (head[IP + 1] ^ ecn) & ECN == 0);
        is_right.then_some(head)
    }

    #[inline(always)]
    fn head_mut(frame: &mut [u8]) -> Option<&mut Self::Head> {
        frame.first_chunk_mut()
    }

    #[inline(always)]
    fn key(head: &Self::Head, direction: Direction, zone: PortId) -> Key<Self> {
        Key {
            side: Side {
                addresses: Self::from_le_bytes(*at::<{ IP + 12 }, 8>(head)),
                ports: u32::from_le_bytes(*at::<TRANSPORT_IPV4, 4>(head)),
            },
            protocol: head[IP + 9],
            direction,
            zone,
        }
    }

    #[inline(always)]
    fn ip_len(head: &Self::Head) -> u32 {
        u16::from_be_bytes(*at::<{ IP + 2 }, 2>(head)).into()
    }

    #[inline(always)]
    fn hop_limit(head: &Self::Head) -> u8 {
        head[IP + 8]
    }

    #[inline(always)]
    fn tcp(head: &Self::Head) -> &[u8; tcp::HEADER_LEN] {
        at::<TRANSPORT_IPV4, { tcp::HEADER_LEN }>(head)
    }

    #[inline(always)]
    fn rename(head: &mut Self::Head, number: u8, to: &Side<Self>, deltas: (u16, u16), hops: u8) {
        let _: Option<()> = to.addresses.rewrite(&mut head[IP..], deltas.0, hops);
        rename_transport(&mut head[TRANSPORT_IPV4..], number, to.ports, deltas);
    }

    #[inline(always)]
    fn readdress(head: &mut Self::Head, underlay: &Underlay) {
        write_link(head, underlay);
    }

    #[inline(always)]
    fn packet(head: &Self::Head, key: &Key<Self>) -> Packet {
        Packet {
            addresses: [key.side.addresses, 0, 0, 0],
            ports: key.side.ports,
            ip_len: Self::ip_len(head),
            protocol: key.protocol,
            flags: flags(key.protocol, Self::tcp(head)),
            traffic_class: head[IP + 1],
            hop_limit: Self::hop_limit(head),
            ..Packet::EMPTY
        }
    }
}

impl Plain for [u64; 4] {
    type Head = [u8; TRANSPORT_IPV6 + tcp::HEADER_LEN];
    const HEADER_LEN: u32 = ipv6::HEADER_LEN as u32;

    #[inline(always)]
    fn read(frame: &[u8], ecn: u8) -> Option<&Self::Head> {
        let head: &Self::Head = frame.first_chunk()?;
        // EtherType and version.
        if u32::from_le_bytes(*at::<12, 4>(head)) & 0x00f0_ffff
            != u32::from_le_bytes([0x86, 0xdd, 0x60, 0])
        {
            return None;
        }
        let ip_len = Self::ip_len(head);
        let is_right = ip_len as usize <= frame.len() - IP
            && is_ordinary(
                head[IP + 6],
                Self::tcp(head),
                <Self as Plain>::HEADER_LEN,
                ip_len,
            )
            && (ecn == 0 || (head[IP + 1] >> 4 ^ ecn) & ECN == 0);
        is_right.then_some(head)
    }

    #[inline(always)]
    fn head_mut(frame: &mut [u8]) -> Option<&mut Self::Head> {
        frame.first_chunk_mut()
    }

    #[inline(always)]
    fn key(head: &Self::Head, direction: Direction, zone: PortId) -> Key<Self> {
        Key {
            side: Side {
                addresses: [
                    u64::from_le_bytes(*at::<{ IP + 8 }, 8>(head)),
                    u64::from_le_bytes(*at::<{ IP + 16 }, 8>(head)),
                    u64::from_le_bytes(*at::<{ IP + 24 }, 8>(head)),
                    u64::from_le_bytes(*at::<{ IP + 32 }, 8>(head)),
                ],
                ports: u32::from_le_bytes(*at::<TRANSPORT_IPV6, 4>(head)),
            },
            protocol: head[IP + 6],
            direction,
            zone,
        }
    }

    #[inline(always)]
    fn ip_len(head: &Self::Head) -> u32 {
        u32::from(u16::from_be_bytes(*at::<{ IP + 4 }, 2>(head))) + <Self as Plain>::HEADER_LEN
    }

    #[inline(always)]
    fn hop_limit(head: &Self::Head) -> u8 {
        head[IP + 7]
    }

    #[inline(always)]
    fn tcp(head: &Self::Head) -> &[u8; tcp::HEADER_LEN] {
        at::<TRANSPORT_IPV6, { tcp::HEADER_LEN }>(head)
    }

    #[inline(always)]
    fn rename(head: &mut Self::Head, number: u8, to: &Side<Self>, deltas: (u16, u16), hops: u8) {
        let _: Option<()> = to.addresses.rewrite(&mut head[IP..], deltas.0, hops);
        rename_transport(&mut head[TRANSPORT_IPV6..], number, to.ports, deltas);
    }

    #[inline(always)]
    fn readdress(head: &mut Self::Head, underlay: &Underlay) {
        write_link(head, underlay);
    }

    #[inline(always)]
    fn packet(head: &Self::Head, key: &Key<Self>) -> Packet {
        Packet {
            addresses: key.side.addresses,
            ports: key.side.ports,
            ip_len: Self::ip_len(head),
            shape: Shape {
                transport_offset: TRANSPORT_IPV6 as u16,
                family: Family::Ipv6,
                ..Packet::EMPTY.shape
            },
            protocol: key.protocol,
            flags: flags(key.protocol, Self::tcp(head)),
            traffic_class: head[IP] << 4 | head[IP + 1] >> 4,
            hop_limit: Self::hop_limit(head),
            ..Packet::EMPTY
        }
    }
}

/// Returns true for TCP and UDP that neither open nor close a connection. `header_len` is the length of the
/// IP header in bytes.
#[inline(always)]
fn is_ordinary(number: u8, tcp: &[u8; tcp::HEADER_LEN], header_len: u32, ip_len: u32) -> bool {
    const SPECIAL: u8 = Flags::SYN.0 | Flags::FIN.0 | Flags::RST.0 | Flags::ACK.0;
    if number == protocol::TCP {
        let tcp_len = u32::from(tcp[12] >> 4) * 4;
        tcp[13] & SPECIAL == Flags::ACK.0
            && tcp_len >= tcp::HEADER_LEN as u32
            && header_len + tcp_len <= ip_len
    } else {
        let udp_len = u32::from(u16::from_be_bytes(*at::<4, 2>(tcp)));
        number == protocol::UDP
            && udp_len >= udp::HEADER_LEN as u32
            && header_len + udp_len <= ip_len
    }
}

/// Returns the sequence number behind a segment of `len` bytes with its header, its acknowledgement number
/// and its window.
#[inline(always)]
pub(super) fn numbers(tcp: &[u8; tcp::HEADER_LEN], len: u32) -> (u32, u32, u16) {
    let sequence = u32::from_be_bytes(*at::<4, 4>(tcp));
    let data = len.wrapping_sub(u32::from(tcp[12] >> 4) * 4);
    let acknowledged = u32::from_be_bytes(*at::<8, 4>(tcp));
    (
        sequence.wrapping_add(data),
        acknowledged,
        u16::from_be_bytes(*at::<14, 2>(tcp)),
    )
}

/// Writes the ports of a whole TCP or UDP header, and updates its checksum.
#[inline(always)]
fn rename_transport(header: &mut [u8], number: u8, ports: u32, deltas: (u16, u16)) {
    let delta = u32::from(deltas.0) + u32::from(deltas.1);
    let _: Result<(), Cut> = if number == protocol::TCP {
        rewrite_tcp(header, ports, delta)
    } else {
        rewrite_udp(header, ports, delta)
    };
}

/// Returns TCP's control bits; none for UDP.
#[inline(always)]
fn flags(number: u8, tcp: &[u8; tcp::HEADER_LEN]) -> Flags {
    Flags(if number == protocol::TCP { tcp[13] } else { 0 })
}

#[inline(always)]
fn write_link(head: &mut [u8], underlay: &Underlay) {
    if let Some(link) = head.first_chunk_mut::<12>() {
        link[..6].copy_from_slice(&underlay.next_hop.0);
        link[6..].copy_from_slice(&underlay.mac.0);
    }
}

/// Returns `N` bytes of a head, from the offset `AT` on.
#[inline(always)] // one load
fn at<const AT: usize, const N: usize>(head: &[u8]) -> &[u8; N] {
    match head.get(AT..).and_then(<[u8]>::first_chunk) {
        Some(bytes) => bytes,
        None => unreachable!("heads are longer than all that is read of them"),
    }
}
