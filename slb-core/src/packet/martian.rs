//! Addresses that no host sends from.

/// Returns true if an IPv4 packet is a martian: see
/// [`Packet::is_martian`](super::Packet::is_martian).
#[inline]
pub(crate) fn is_martian_ipv4(addresses: u64, ports: u32) -> bool {
    let (source, destination) = (addresses as u32, (addresses >> 32) as u32);
    // One load instead of six comparisons.
    let is_special = IS_SPECIAL_FIRST_BYTE[usize::from(source as u8)] || source == destination;
    is_special && is_impossible_ipv4(source, destination, ports)
}

/// Returns true if an IPv6 packet is a martian: see
/// [`Packet::is_martian`](super::Packet::is_martian).
#[inline]
pub(crate) fn is_martian_ipv6([a, b, c, d]: [u64; 4], ports: u32) -> bool {
    // Every address that no host sends from begins with 0xfe, 0xff or 0.
    let is_special = (a as u8).wrapping_add(2) <= 2;
    is_special && is_impossible_ipv6([a, b], [c, d]) || [a, b] == [c, d] && is_one_port(ports)
}

/// True for each first byte of an IPv4 address that [`is_impossible_ipv4`] has to check further.
static IS_SPECIAL_FIRST_BYTE: [bool; 256] = {
    let mut is_special = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        is_special[byte] = matches!(byte, 0 | 127 | 169 | 224..);
        byte += 1;
    }
    is_special
};

#[cold]
fn is_impossible_ipv4(source: u32, destination: u32, ports: u32) -> bool {
    let is_impossible = match source as u8 {
        0 | 224.. => true,
        127 => destination as u8 != 127,
        169 => source as u16 == u16::from_le_bytes([169, 254]),
        _ => false,
    };
    is_impossible || source == destination && is_one_port(ports)
}

/// Returns true if source and destination port are the same.
fn is_one_port(ports: u32) -> bool {
    ports & 0xffff == ports >> 16
}

/// Returns true if no host uses this IPv6 source towards a VIP: see
/// [`Packet::is_martian`](super::Packet::is_martian).
#[cold]
fn is_impossible_ipv6(source: [u64; 2], destination: [u64; 2]) -> bool {
    const LOOPBACK: [u64; 2] = [0, 1 << 56];
    /// fe80::/10.
    const LINK_LOCAL: u16 = u16::from_le_bytes([0xfe, 0x80]);
    const LINK_LOCAL_BITS: u16 = u16::from_le_bytes([0xff, 0xc0]);
    /// The third word of ::ffff:0:0/96.
    const MAPPED: u32 = u32::from_le_bytes([0, 0, 0xff, 0xff]);
    let is_loopback = source == LOOPBACK && destination != LOOPBACK;
    let is_of_link = source[0] as u16 & LINK_LOCAL_BITS == LINK_LOCAL;
    let is_mapped = source[0] == 0 && source[1] as u32 == MAPPED;
    is_loopback || is_of_link || is_mapped || source == [0, 0] || source[0] as u8 == 0xff
}
