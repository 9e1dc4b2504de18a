//! Packets whose checksums were left to a network card that does not exist.
//!
//! Between namespaces and virtual machines, the sender leaves checksums to the card, and a
//! receiving kernel does not verify them. The balancer forwards such packets with incomplete
//! checksums, and their receivers drop them. An incomplete checksum is the sum of the pseudo-header
//! alone (RFC 9293 §3.1), so a sample of packets suffices to detect them.

use slb_core::wire::ethernet::EtherType;

/// The weight of one such packet against others: senders with and without a card may share a
/// device. A right checksum has this value once in 65536 times.
const WEIGHT: u32 = 32;
/// This much is no chance: four in a row, or one of ten for a while.
const ENOUGH: u32 = 4 * WEIGHT;

/// Statistics of one worker's packets.
#[derive(Debug, Default)]
pub(super) struct Offload {
    weight: u32,
    is_said: bool,
}

impl Offload {
    /// Examines a frame; returns true if it is now known, and was not before, that checksums are
    /// left out.
    #[cold]
    pub(super) fn look(&mut self, frame: &[u8]) -> bool {
        match has_bare_checksum(frame) {
            None => return false,
            Some(false) => self.weight = self.weight.saturating_sub(1),
            Some(true) => self.weight = (self.weight + WEIGHT).min(ENOUGH),
        }
        let is_news = self.weight >= ENOUGH && !self.is_said;
        self.is_said |= is_news;
        is_news
    }
}

/// Returns true if the checksum of a TCP segment or UDP datagram is the bare sum of its
/// pseudo-header; `None` if a frame has none of its own.
fn has_bare_checksum(frame: &[u8]) -> Option<bool> {
    const FRAGMENT: u16 = 0x3fff; // offset and "more fragments"
    let word = |at: usize| {
        let bytes = frame.get(at..at + 2)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes))
    };
    let mut ip = 14;
    let mut ether_type = word(12)?;
    while matches!(ether_type, 0x8100 | 0x88a8) && ip < 22 {
        ether_type = word(ip + 2)?;
        ip += 4;
    }
    let (addresses, transport, protocol, len) = match EtherType(ether_type) {
        EtherType::IPV4 if word(ip + 6)? & FRAGMENT == 0 => {
            let header = usize::from(frame.get(ip)? & 15) * 4;
            let len = usize::from(word(ip + 2)?).checked_sub(header)?;
            (ip + 12..ip + 20, ip + header, *frame.get(ip + 9)?, len)
        }
        EtherType::IPV6 => {
            let len = usize::from(word(ip + 4)?);
            (ip + 8..ip + 40, ip + 40, *frame.get(ip + 6)?, len)
        }
        _ => return None,
    };
    let checksum = match protocol {
        6 => word(transport + 16)?,
        // Zero: none was sent (RFC 768).
        17 => Some(word(transport + 6)?).filter(|&checksum| checksum != 0)?,
        _ => return None,
    };
    let mut sum = u64::from(protocol) + len as u64;
    for at in addresses.step_by(2) {
        sum += u64::from(word(at)?);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    Some(u64::from(checksum) == sum)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    /// A segment or datagram over IPv4 or IPv6, tagged or not.
    fn frame(is_ipv6: bool, is_udp: bool, is_tagged: bool) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut frame = Vec::new();
        macro_rules! write {
            ($link:expr) => {{
                let ip = match is_ipv6 {
                    false => $link.ipv4([198, 51, 100, 7], [20, 20, 20, 100], 64),
                    true => $link.ipv6([0xfd; 16], [0x20; 16], 64),
                };
                match is_udp {
                    true => ip.udp(1000, 53).write(&mut frame, &[1; 33]).unwrap(),
                    false => ip
                        .tcp(1000, 80, 7, 100)
                        .write(&mut frame, &[1; 33])
                        .unwrap(),
                }
            }};
        }
        match is_tagged {
            true => write!(link.single_vlan(slb_vlan())),
            false => write!(link),
        }
        frame
    }

    fn slb_vlan() -> etherparse::VlanId {
        etherparse::VlanId::try_new(7).unwrap()
    }

    #[test]
    fn a_bare_sum_is_told_from_a_checksum() {
        for case in 0..8u8 {
            let (is_ipv6, is_udp, is_tagged) = (case & 1 != 0, case & 2 != 0, case & 4 != 0);
            let mut frame = frame(is_ipv6, is_udp, is_tagged);
            assert_eq!(has_bare_checksum(&frame), Some(false), "{case}");
            // As Linux leaves it: the sum of addresses, protocol and length, not complemented.
            let ip = if is_tagged { 18 } else { 14 };
            let (addresses, transport) = match is_ipv6 {
                false => (ip + 12..ip + 20, ip + 20),
                true => (ip + 8..ip + 40, ip + 40),
            };
            let (protocol, header, at) = if is_udp { (17, 8, 6) } else { (6, 20, 16) };
            let mut sum = protocol + header + 33;
            for pair in frame[addresses].chunks(2) {
                sum += u32::from(pair[0]) << 8 | u32::from(pair[1]);
            }
            let sum = (sum & 0xffff) + (sum >> 16);
            let place = transport + at;
            frame[place..place + 2].copy_from_slice(&(sum as u16).to_be_bytes());
            assert_eq!(has_bare_checksum(&frame), Some(true), "{case}");
            // Cut anywhere, it says nothing or the same, and never fails.
            for len in 0..frame.len() {
                assert_ne!(
                    has_bare_checksum(&frame[..len]),
                    Some(false),
                    "{case}, {len}"
                );
            }
            let mut seen = Offload::default();
            let news = (0..20).map(|_| seen.look(&frame));
            assert_eq!(news.filter(|&is_news| is_news).count(), 1);
        }
    }

    #[test]
    fn one_sender_of_ten_is_noticed_and_chance_is_not() {
        let right = frame(false, false, false);
        let mut bare = right.clone();
        let sum: u32 = bare[26..34]
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum();
        let sum = sum + 6 + 20 + 33;
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        bare[50..52].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(has_bare_checksum(&bare), Some(true));
        let noticed = |every: usize| {
            let mut seen = Offload::default();
            (0..1_000_000).any(|n| seen.look(if n % every == 0 { &bare } else { &right }))
        };
        assert!(noticed(10));
        assert!(!noticed(65_536));
    }
}
