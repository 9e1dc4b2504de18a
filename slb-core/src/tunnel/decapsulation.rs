//! Decapsulation of VXLAN packets to this node.
//!
//! Sources: RFC 7348 §4.1 and §5, RFC 6040 §4.2 (propagation of congestion marks to the inner
//! header).

use core::net::IpAddr;

use crate::snapshot::words;
use crate::spec::Underlay;
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{EtherType, Ethernet, MacAddress};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::Ipv6;
use crate::wire::udp::{self, Udp};
use crate::wire::vxlan::{self, Vni, Vxlan};
use crate::wire::{ethernet, protocol};

/// The outer headers of an inner frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outer {
    /// Outer source address, in two words.
    pub(crate) source: [u64; 2],
    /// VXLAN network of the frame.
    pub(crate) vni: Vni,
    /// The outer header's ECN field.
    ecn: u8,
    /// Offsets of the inner frame's beginning and end.
    pub(crate) inner: (usize, usize),
    /// Destination of the inner frame.
    pub(crate) destination: MacAddress,
}

/// The key of one sender and receiver in the cache of outer headers.
pub(crate) type OuterName = ([u64; 2], Vni, MacAddress);

/// Offset of VXLAN's inner frame in the common case.
pub(crate) const COMMON: usize =
    ethernet::HEADER_LEN + ipv4::HEADER_LEN + udp::HEADER_LEN + vxlan::HEADER_LEN;

impl Outer {
    /// Outer source, and destination of the inner frame.
    #[inline]
    pub(crate) fn name(&self) -> OuterName {
        (self.source, self.vni, self.destination)
    }

    /// Returns true if the source is this node's own address, which no other node sends from.
    pub(crate) fn is_from(&self, underlay: &Underlay) -> bool {
        let is_own = |address: IpAddr| words(address) == self.source;
        underlay.ipv4.is_some_and(|own| is_own(own.into()))
            || underlay.ipv6.is_some_and(|own| is_own(own.into()))
    }

    /// Parses the headers around the inner frame; `None` if `bytes` is not VXLAN for this node.
    ///
    /// # Errors
    /// The frame is VXLAN for this node, and is malformed.
    #[inline]
    pub(crate) fn parse(bytes: &[u8], underlay: &Underlay) -> Result<Option<Self>, DropReason> {
        if let Some(outer) = Self::parse_common(bytes, underlay) {
            return Ok(Some(outer));
        }
        Self::parse_any(bytes, underlay)
    }

    /// Parses VXLAN over IPv4 without options and without a UDP checksum, as muxes send it.
    #[inline]
    fn parse_common(bytes: &[u8], underlay: &Underlay) -> Option<Self> {
        const IP: usize = ethernet::HEADER_LEN;
        const UDP: usize = IP + ipv4::HEADER_LEN;
        let head: &[u8; COMMON + ethernet::HEADER_LEN] = bytes.first_chunk()?;
        let word =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let is_common = word(12) >> 8 == 0x0008_0045
            && half(IP + 6) & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) == 0
            && head[IP + 9] == protocol::UDP
            && word(IP + 16) == underlay.ipv4?.to_bits()
            && half(UDP + 2) == vxlan::PORT
            && half(UDP + 6) == 0
            && ipv4::checksum_is_right(head[IP..].first_chunk()?)
            && head[UDP + udp::HEADER_LEN] & 0x08 != 0;
        let len = usize::from(half(UDP + 4));
        let fits = half(IP + 2) as usize == len + ipv4::HEADER_LEN && UDP + len <= bytes.len();
        let mac = COMMON..COMMON + 6;
        if !is_common || !fits || len < COMMON + ethernet::HEADER_LEN - UDP {
            return None;
        }
        let source = [head[IP + 12], head[IP + 13], head[IP + 14], head[IP + 15]];
        Some(Self {
            source: words(IpAddr::from(source)),
            vni: Vni::new(word(UDP + udp::HEADER_LEN + 4) >> 8)?,
            ecn: head[IP + 1] & ECN,
            inner: (COMMON, UDP + len),
            destination: MacAddress(*head[mac].first_chunk()?),
        })
    }

    /// Parses the common headers of a frame for this node; returns `None` if it has other headers.
    #[cold]
    pub(crate) fn parse_if_common(bytes: &[u8], underlay: &Underlay) -> Option<Self> {
        Self::parse_common(bytes, underlay)
    }

    #[cold]
    fn parse_any(bytes: &[u8], underlay: &Underlay) -> Result<Option<Self>, DropReason> {
        let Ok(link) = Ethernet::parse(bytes) else {
            return Ok(None);
        };
        let (source, is_here, is_right, traffic_class, payload, pseudo) = match link.ether_type() {
            EtherType::IPV4 => {
                let Some(ip) = Ipv4::parse(link.payload())
                    .ok()
                    .filter(|ip| ip.protocol() == protocol::UDP && !ip.is_fragment())
                else {
                    return Ok(None);
                };
                let len = ip.payload().len() as u16;
                let pseudo =
                    Sum::ZERO.add_pseudo_ipv4(ip.source(), ip.destination(), protocol::UDP, len);
                let is_here = Some(ip.destination()) == underlay.ipv4;
                let source = IpAddr::V4(ip.source());
                (
                    source,
                    is_here,
                    ip.checksum_is_right(),
                    ip.traffic_class(),
                    ip.payload(),
                    pseudo,
                )
            }
            EtherType::IPV6 => {
                let Some(ip) = Ipv6::parse(link.payload())
                    .ok()
                    .filter(|ip| ip.protocol() == protocol::UDP && ip.fragment().is_none())
                else {
                    return Ok(None);
                };
                let len = ip.payload().len() as u32;
                let pseudo =
                    Sum::ZERO.add_pseudo_ipv6(ip.source(), ip.destination(), protocol::UDP, len);
                let is_here = Some(ip.destination()) == underlay.ipv6;
                let source = IpAddr::V6(ip.source());
                (
                    source,
                    is_here,
                    true,
                    ip.traffic_class(),
                    ip.payload(),
                    pseudo,
                )
            }
            _ => return Ok(None),
        };
        let udp = match Udp::parse(payload) {
            Ok(udp) if is_here && udp.destination_port() == vxlan::PORT => udp,
            _ => return Ok(None),
        };
        if !is_right {
            return Err(DropReason::BadChecksum);
        }
        let datagram = payload
            .get(..usize::from(udp.len()))
            .ok_or(DropReason::Malformed)?;
        // A nonzero checksum is verified (RFC 7348 §5); zero is also accepted over IPv6 (RFC 6935).
        if udp.checksum() != 0 && pseudo.add_bytes(datagram).checksum() != 0 {
            return Err(DropReason::OuterChecksum);
        }
        let vxlan = Vxlan::parse(udp.payload()).map_err(|_| DropReason::Malformed)?;
        let inner = vxlan.payload();
        let destination = inner.first_chunk().ok_or(DropReason::Truncated)?;
        // Both are parts of one slice.
        let start = inner.as_ptr().addr() - bytes.as_ptr().addr();
        Ok(Some(Self {
            source: words(source),
            vni: vxlan.vni(),
            ecn: traffic_class & ECN,
            inner: (start, start + inner.len()),
            destination: MacAddress(*destination),
        }))
    }

    /// Sets the ECN field of the inner packet, whose IP header `ip` begins with, by the outer one
    /// (RFC 6040 §4.2, figure 4).
    ///
    /// # Errors
    /// The outer header has a congestion mark that the inner header cannot carry, so the packet has
    /// to be dropped.
    #[inline]
    pub(crate) fn pass_congestion_on(
        &self,
        ip: &mut [u8],
        is_ipv4: bool,
    ) -> Result<(), DropReason> {
        if self.ecn == 0 {
            return Ok(());
        }
        self.mark(ip, is_ipv4)
    }

    fn mark(&self, ip: &mut [u8], is_ipv4: bool) -> Result<(), DropReason> {
        let Some([first, second]) = ip.first_chunk_mut() else {
            return Ok(());
        };
        let old = u16::from_be_bytes([*first, *second]);
        let shift = if is_ipv4 { 0 } else { 4 };
        let inner = (old >> shift) as u8 & ECN;
        let new = match (inner, self.ecn) {
            (NOT_CAPABLE, CONGESTED) => return Err(DropReason::Congestion),
            (NOT_CAPABLE, _) | (_, NOT_CAPABLE) => inner,
            (_, CONGESTED) | (CONGESTED, _) => CONGESTED,
            (_, outer) if outer == CAPABLE_1 => CAPABLE_1,
            _ => inner,
        };
        let word = old & !(u16::from(ECN) << shift) | u16::from(new) << shift;
        [*first, *second] = word.to_be_bytes();
        if is_ipv4 && let Some([high, low]) = ip.get_mut(10..12) {
            let checksum = u16::from_be_bytes([*high, *low]);
            [*high, *low] = crate::wire::checksum::update(checksum, old, word).to_be_bytes();
        }
        Ok(())
    }
}

/// The common headers around an inner frame, and that frame's destination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommonHead<'a>(&'a [u8; COMMON + 6], &'a [u8]);

/// The bytes of common headers that are the same for one sender, network and receiver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommonName([u64; 6]);

impl CommonName {
    /// A name that matches no head, since it has bits outside of the masks.
    pub(crate) const NONE: Self = Self([u64::MAX; 6]);

    /// The compared bits of the words at [`OFFSETS`](Self::OFFSETS): the fields by which
    /// [`Outer::parse_common`] recognizes the common case, the sender, the network and the
    /// receiver.
    const MASKS: [u64; 6] = [
        // EtherType, version and header length.
        u64::from_le_bytes([0xff, 0xff, 0xff, 0, 0, 0, 0, 0]),
        // Fragment, protocol, and half of the source.
        u64::from_le_bytes([0x3f, 0xff, 0, 0xff, 0, 0, 0xff, 0xff]),
        // The other half, and the destination; no source port.
        u64::from_le_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        // Destination port, checksum, and VXLAN's flag; no length.
        u64::from_le_bytes([0xff, 0xff, 0, 0, 0xff, 0xff, 0x08, 0]),
        // Network and half of the receiver; no reserved bytes.
        u64::from_le_bytes([0, 0, 0xff, 0xff, 0xff, 0, 0xff, 0xff]),
        // The other half.
        u64::from_le_bytes([0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
    ];
    const OFFSETS: [usize; 6] = [12, 20, 28, 36, 44, 48];
}

impl<'a> CommonHead<'a> {
    /// Returns the head of a frame, which may not have common headers; `None` if the frame is too
    /// short.
    #[inline]
    pub(crate) fn of(bytes: &'a [u8]) -> Option<Self> {
        Some(Self(bytes.first_chunk()?, bytes))
    }

    /// Returns the whole frame.
    pub(crate) fn frame(&self) -> &'a [u8] {
        self.1
    }

    /// Returns the head's name.
    pub(crate) fn name(&self) -> CommonName {
        let mut words = CommonName::OFFSETS.map(|at| self.word(at));
        for (word, mask) in words.iter_mut().zip(CommonName::MASKS) {
            *word &= mask;
        }
        CommonName(words)
    }

    /// Returns true if the head has this name.
    #[inline(always)]
    pub(crate) fn is(&self, name: &CommonName) -> bool {
        let [a, b, c, d, e, f] = CommonName::OFFSETS;
        let [ma, mb, mc, md, me, mf] = CommonName::MASKS;
        let [na, nb, nc, nd, ne, nf] = name.0;
        // One branch for all words.
        let differing = |at: usize, mask: u64, other: u64| self.word(at) & mask ^ other;
        differing(a, ma, na)
            | differing(b, mb, nb)
            | differing(c, mc, nc)
            | differing(d, md, nd)
            | differing(e, me, ne)
            | differing(f, mf, nf)
            == 0
    }

    /// Returns a number that differs between senders and receivers of one rack, whose addresses
    /// differ in their last bytes.
    #[inline]
    pub(crate) fn place(&self) -> usize {
        let [sender, network, receiver] =
            [29, COMMON - 2, COMMON + 5].map(|at| usize::from(self.0[at]));
        ((sender * 5) ^ network) + receiver
    }

    /// Returns the end of the inner frame, for a frame with a known common name; `None` if its
    /// checksum is wrong, or its lengths contradict each other or the frame's.
    #[inline]
    pub(crate) fn end(&self) -> Option<usize> {
        const IP: usize = ethernet::HEADER_LEN;
        const UDP: usize = IP + ipv4::HEADER_LEN;
        let half = |at: usize| usize::from(u16::from_be_bytes([self.0[at], self.0[at + 1]]));
        let len = half(UDP + 4);
        let header = self.0[IP..].first_chunk()?;
        let is_right = half(IP + 2) == len + ipv4::HEADER_LEN
            && UDP + len == self.1.len()
            && ipv4::checksum_is_right(header);
        is_right.then_some(UDP + len)
    }

    /// The outer header's ECN field.
    #[inline]
    pub(crate) fn ecn(&self) -> u8 {
        self.0[ethernet::HEADER_LEN + 1] & ECN
    }

    /// The network.
    pub(crate) fn vni(&self) -> Vni {
        let [_, a, b, c] = self.0[COMMON - 5..COMMON - 1]
            .first_chunk()
            .copied()
            .unwrap_or_default();
        Vni::new(u32::from_be_bytes([0, a, b, c])).unwrap_or_default()
    }

    #[inline]
    fn word(&self, at: usize) -> u64 {
        self.0[at..]
            .first_chunk()
            .map_or(0, |word| u64::from_le_bytes(*word))
    }
}

/// The bits of the traffic class that are ECN's (RFC 3168 §5).
pub(crate) const ECN: u8 = 0b11;
const NOT_CAPABLE: u8 = 0b00;
const CAPABLE_1: u8 = 0b01;
const CONGESTED: u8 = 0b11;

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040 figure 4, row by row: the inner field, and what becomes of it for each outer one.
    #[test]
    fn rfc6040_figure_4() {
        let (ect0, ect1, ce) = (0b10, 0b01, 0b11);
        for (inner, results) in [
            (0, [Ok(0), Ok(0), Ok(0), Err(DropReason::Congestion)]),
            (ect0, [Ok(ect0), Ok(ect0), Ok(ect1), Ok(ce)]),
            (ect1, [Ok(ect1), Ok(ect1), Ok(ect1), Ok(ce)]),
            (ce, [Ok(ce), Ok(ce), Ok(ce), Ok(ce)]),
        ] {
            for (ecn, result) in [0, ect0, ect1, ce].into_iter().zip(results) {
                let outer = Outer {
                    source: [0; 2],
                    vni: Vni::default(),
                    ecn,
                    inner: (0, 0),
                    destination: MacAddress([0; 6]),
                };
                let mut ipv6 = [0x60, inner << 4, 0, 0];
                let marked = outer
                    .pass_congestion_on(&mut ipv6, false)
                    .map(|()| ipv6[1] >> 4);
                assert_eq!(marked, result);
                let mut ipv4 = [
                    0x45,
                    0xb8 | inner,
                    0,
                    20,
                    0,
                    0,
                    0,
                    0,
                    64,
                    17,
                    0,
                    0,
                    1,
                    2,
                    3,
                    4,
                    5,
                    6,
                    7,
                    8,
                ];
                let checksum = crate::wire::checksum::checksum(&ipv4).to_be_bytes();
                ipv4[10..12].copy_from_slice(&checksum);
                let marked = outer.pass_congestion_on(&mut ipv4, true).map(|()| ipv4[1]);
                assert_eq!(marked, result.map(|ecn| 0xb8 | ecn));
                assert_eq!(crate::wire::checksum::checksum(&ipv4), 0);
            }
        }
    }
}
