//! The Internet checksum: whole (RFC 1071) and incremental (RFC 1624).
//!
//! A [`Sum`] is a one's complement sum that is not folded yet. On every platform, values are those
//! of data in network byte order.

use core::net::{Ipv4Addr, Ipv6Addr};

/// A one's complement sum in progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of no data.
    pub const ZERO: Self = Self(0);

    /// Adds bytes that start at an even offset of the summed data. An odd last byte is padded with
    /// a zero (RFC 1071 §1).
    #[must_use]
    pub fn add_bytes(self, bytes: &[u8]) -> Self {
        // Add four bytes at a time to 64 bits: no carry is lost below 2^32 words, and one's
        // complement addition does not depend on the word size (RFC 1071 §2, C).
        let mut sum = self.0;
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
        }
        let mut rest = [0u8; 4];
        for (to, from) in rest.iter_mut().zip(words.remainder()) {
            *to = *from;
        }
        Self(fold_once(sum + u64::from(u32::from_be_bytes(rest))))
    }

    /// Adds one 16-bit word.
    #[must_use]
    #[inline]
    pub const fn add_u16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds the pseudo-header of IPv4 (RFC 9293 §3.1): addresses, protocol, transport length.
    #[must_use]
    pub fn add_pseudo_ipv4(self, src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u16) -> Self {
        self.add_bytes(&src.octets())
            .add_bytes(&dst.octets())
            .add_u16(u16::from(protocol))
            .add_u16(len)
    }

    /// Adds the pseudo-header of IPv6 (RFC 8200 §8.1): addresses, transport length, next header.
    #[must_use]
    pub fn add_pseudo_ipv6(self, src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: u32) -> Self {
        self.add_bytes(&src.octets())
            .add_bytes(&dst.octets())
            .add_bytes(&len.to_be_bytes())
            .add_u16(u16::from(protocol))
    }

    /// The sum in 16 bits.
    #[must_use]
    #[inline]
    pub const fn fold(self) -> u16 {
        fold(self.0)
    }

    /// Returns the checksum: the complement of the folded sum. For data that includes a correct
    /// checksum it is zero.
    #[must_use]
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// Folds a one's complement sum into 16 bits: the result is zero only for zero.
#[inline]
pub(crate) const fn fold(sum: u64) -> u16 {
    // Sum both halves in either order: the carry of the lower halves goes around to the upper
    // halves (RFC 1071 §2, B), which hold the result.
    let sum = (sum.wrapping_add(sum.rotate_right(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_right(16)) >> 16) as u16
}

const fn fold_once(sum: u64) -> u64 {
    (sum >> 32) + (sum & 0xffff_ffff)
}

/// The checksum of `bytes` (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::ZERO.add_bytes(bytes).checksum()
}

/// Returns the checksum after a 16-bit field has changed from `old` to `new` (RFC 1624 §3, equation
/// 3).
///
/// A wrong checksum stays wrong by the same difference.
#[inline]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    // HC' = ~(~HC + ~m + m')
    let sum = !checksum as u32 + !old as u32 + new as u32;
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}

/// Returns an updated ICMP checksum for sending: all ones for an all-zero message (RFC 1624 §3).
///
/// Only the sum of all-zero data has two representations, and [`update`] returns the other one. All
/// other checksums cover a nonzero byte: a version, or the protocol in a pseudo-header. `message`
/// is the ICMP message with its old checksum.
#[cold]
pub(crate) fn never_zero_of_zeros(message: &[u8]) -> u16 {
    let is_zero = |(at, byte): (usize, &u8)| *byte == 0 || matches!(at, 2 | 3);
    if message.iter().enumerate().all(is_zero) {
        0xffff
    } else {
        0
    }
}

/// Returns a UDP checksum for sending: zero becomes all ones, since zero means that there is no
/// checksum (RFC 768).
#[inline]
pub const fn udp_never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_folds_to_its_remainder() {
        for high in [0, 1, 0xfffe, 0xffff, 0x1_0000, 0xffff_fffe, 0xffff_ffff] {
            for low in [0, 1, 0xfffe, 0xffff, 0x1_0000, 0xffff_fffe, 0xffff_ffff] {
                let sum: u64 = high << 32 | low;
                let remainder = sum.checked_sub(1).map_or(0, |less| less % 0xffff + 1);
                assert_eq!(u64::from(fold(sum)), remainder, "{sum:#x}");
            }
        }
    }

    #[test]
    fn rfc1071_section3() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::ZERO.add_bytes(&bytes).fold(), 0xddf2);
        assert_eq!(checksum(&bytes), 0x220d);
    }

    #[test]
    fn rfc1624_section4() {
        // The example that equation 2 of RFC 1141 gets wrong (0xffff).
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn an_odd_last_byte_is_padded_at_its_end() {
        assert_eq!(checksum(&[0x12]), !0x1200);
        assert_eq!(checksum(&[0x12, 0x34, 0x56]), !(0x1234 + 0x5600));
        assert_eq!(checksum(&[]), 0xffff);
    }

    #[test]
    fn incremental_agrees_with_whole() {
        bolero::check!()
            .with_type::<(alloc::vec::Vec<u8>, u16, u8)>()
            .for_each(|(bytes, new, place)| {
                let mut bytes = bytes.clone();
                bytes.truncate(bytes.len() & !1);
                // A header is never all zeros, the one sum that has two representations.
                bytes.extend_from_slice(&[0x45, 0x00]);
                let at = usize::from(*place) * 2 % bytes.len();
                let before = checksum(&bytes);
                let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
                bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
                if bytes.iter().any(|&b| b != 0) {
                    assert_eq!(update(before, old, *new), checksum(&bytes));
                }
            });
    }
}
