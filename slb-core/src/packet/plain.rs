//! Straight-line parsing of headers of the common shapes.

use crate::wire::tcp::{self, Flags};
use crate::wire::{ipv4, ipv6, protocol, udp};

/// The parsed headers of a packet of the common shapes: unfragmented, valid TCP or UDP in IPv4
/// without options or IPv6 without extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plain<A> {
    /// Source and destination, as [`Addresses`](crate::flow::Addresses) are.
    pub(crate) addresses: A,
    /// The four bytes of ports, read little-endian.
    pub(crate) ports: u32,
    /// Bytes of the IP packet, headers included; the frame has at least as many.
    pub(crate) ip_len: u32,
    /// [`TCP`](protocol::TCP) or [`UDP`](protocol::UDP).
    pub(crate) protocol: u8,
    /// TCP's control bits.
    pub(crate) flags: Flags,
    /// DSCP and ECN.
    pub(crate) traffic_class: u8,
    /// TTL or hop limit.
    pub(crate) hop_limit: u8,
}

/// Length of the EtherType field in front of the IP header, in bytes.
const ETHER_TYPE: usize = 2;

impl Plain<u64> {
    /// Reads a packet whose IPv4 header begins at `IP`. The caller checks the tags before it.
    #[inline(always)] // its result stays in registers
    pub(crate) fn read<const IP: usize>(frame: &[u8]) -> Option<Self> {
        const HEADER: usize = ETHER_TYPE;
        const TRANSPORT: usize = HEADER + ipv4::HEADER_LEN;
        const LEN: usize = TRANSPORT + PLAIN_TRANSPORT;
        /// EtherType IPv4, version 4, five words of header.
        const PLAIN: u64 = u64::from_le_bytes([0x08, 0x00, 0x45, 0, 0, 0, 0, 0]);
        const PLAIN_BITS: u64 = 0x00ff_ffff;
        /// More fragments, fragment offset.
        const FRAGMENT: u64 = u64::from_le_bytes([0x3f, 0xff, 0, 0, 0, 0, 0, 0]);
        let head = frame.get(IP - ETHER_TYPE..IP - ETHER_TYPE + LEN)?;
        // Words as they lie in the frame: EtherType to identification, fragment to source.
        let first = u64::from_le_bytes(*array(head, 0)?);
        let second = u64::from_le_bytes(*array(head, HEADER + 6)?);
        if first & PLAIN_BITS != PLAIN || second & FRAGMENT != 0 {
            return None;
        }
        let ip_len = u32::from(((first >> 32) as u16).swap_bytes());
        let protocol = (second >> 24) as u8;
        let transport = array(head, TRANSPORT)?;
        let flags = flags_if_whole(transport, protocol, (ipv4::HEADER_LEN, ip_len))?;
        let is_whole = ip_len as usize + IP <= frame.len();
        let addresses = u64::from_le_bytes(*array(head, HEADER + 12)?);
        let to_fragment = u64::from_le_bytes(*array(head, HEADER)?);
        if !is_whole
            || !ipv4::checksum_of_whole_is_right(to_fragment, (second >> 16) as u32, addresses)
        {
            return None;
        }
        Some(Self {
            addresses,
            ports: u32::from_le_bytes(*array(head, TRANSPORT)?),
            ip_len,
            protocol,
            flags: Flags(flags),
            traffic_class: (first >> 24) as u8,
            hop_limit: (second >> 16) as u8,
        })
    }
}

impl Plain<[u64; 4]> {
    /// Reads a packet whose IPv6 header begins at `IP`. The caller checks the tags before it.
    #[inline(always)] // its result stays in registers
    pub(crate) fn read<const IP: usize>(frame: &[u8]) -> Option<Self> {
        const HEADER: usize = ETHER_TYPE;
        const TRANSPORT: usize = HEADER + ipv6::HEADER_LEN;
        const LEN: usize = TRANSPORT + PLAIN_TRANSPORT;
        /// EtherType IPv6, version 6.
        const PLAIN: u64 = u64::from_le_bytes([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0]);
        const PLAIN_BITS: u64 = 0x00f0_ffff;
        let head = frame.get(IP - ETHER_TYPE..IP - ETHER_TYPE + LEN)?;
        // EtherType to payload length, as it lies in the frame.
        let first = u64::from_le_bytes(*array(head, 0)?);
        if first & PLAIN_BITS != PLAIN {
            return None;
        }
        let payload_len = u32::from(((first >> 48) as u16).swap_bytes());
        let [protocol, hop_limit] = *array(head, HEADER + 6)?;
        let flags = flags_if_whole(array(head, TRANSPORT)?, protocol, (0, payload_len))?;
        if payload_len as usize + IP + ipv6::HEADER_LEN > frame.len() {
            return None;
        }
        let word = |at| Some(u64::from_le_bytes(*array(head, HEADER + at)?));
        Some(Self {
            addresses: [word(8)?, word(16)?, word(24)?, word(32)?],
            ports: u32::from_le_bytes(*array(head, TRANSPORT)?),
            ip_len: payload_len + ipv6::HEADER_LEN as u32,
            protocol,
            flags: Flags(flags),
            // Eight bits behind the version's four.
            traffic_class: ((first >> 16) as u16).swap_bytes().wrapping_shr(4) as u8,
            hop_limit,
        })
    }
}

/// The minimum length of transport header and data of a plain packet. UDP with less data takes the
/// slow path, so that one comparison covers all reads.
const PLAIN_TRANSPORT: usize = 14;

/// Returns TCP's control bits, or zero for UDP, of a transport header with a possible length;
/// `None` for other headers. The packet has `len` bytes, of which `before` precede the header.
///
/// TCP's reserved bits may count as up to three bytes: such a packet takes the slow path if it has no data.
#[inline(always)] // as `Plain::read`
fn flags_if_whole(
    header: &[u8; PLAIN_TRANSPORT],
    protocol: u8,
    (before, len): (usize, u32),
) -> Option<u8> {
    const DATA_OFFSET: u32 = (tcp::HEADER_LEN as u32 / 4) << 4;
    // Not a `match`, which compares with the larger number first and takes two more instructions
    // for TCP.
    if protocol == protocol::TCP {
        // A value below five words wraps to a number larger than any packet's length.
        let options = u32::from(header[12]).wrapping_sub(DATA_OFFSET) >> 2;
        let least = (before + tcp::HEADER_LEN) as u32 + options;
        (least <= len).then_some(header[13])
    } else if protocol == protocol::UDP {
        let of_datagram = u16::from_be_bytes([header[4], header[5]]);
        let is_whole = usize::from(of_datagram) >= udp::HEADER_LEN
            && before as u32 + u32::from(of_datagram) <= len;
        is_whole.then_some(0)
    } else {
        None
    }
}

/// `N` bytes of a header, from a constant offset on.
#[inline(always)] // one load; `array::from_fn` is not always inlined
fn array<const N: usize>(header: &[u8], at: usize) -> Option<&[u8; N]> {
    header.get(at..)?.first_chunk()
}
