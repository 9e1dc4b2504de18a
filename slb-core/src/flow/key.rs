//! Keys of the flow table: protocol, addresses and ports of a flow.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::hash::fold_multiply;
use crate::wire::protocol;

/// The protocol of a flow, which determines the meaning of its 32 bits of ports. Takes two bits in
/// the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowProtocol {
    /// TCP, and its ports.
    Tcp = 0,
    /// UDP, and its ports.
    Udp = 1,
    /// Another protocol: its number is stored in the field of the ports.
    Other = 2,
}

/// Source and destination address, as little-endian words of the header's bytes: `u64` for
/// IPv4, `[u64; 4]` for IPv6.
#[expect(
    unnameable_types,
    reason = "only the types of IPv4 and IPv6 addresses have it"
)]
pub trait Addresses: Copy + Eq + core::fmt::Debug + 'static {
    /// One address.
    type Address: Copy + Eq + core::fmt::Debug;

    /// All zero.
    const ZERO: Self;

    /// A source and a destination.
    fn join(source: Self::Address, destination: Self::Address) -> Self;

    /// The source and the destination.
    fn split(self) -> (Self::Address, Self::Address);

    /// The destination and the source, as in an answer.
    #[must_use]
    fn swapped(self) -> Self {
        let (source, destination) = self.split();
        Self::join(destination, source)
    }

    /// Returns a word that differs between nearly all tuples.
    fn part(self) -> u64;

    /// The one's complement sum of the words that both addresses are made of, not folded.
    fn sum(self) -> u64;

    /// Returns the words of `address`; `None` if it belongs to the other family.
    fn from_ip(address: IpAddr) -> Option<Self::Address>;

    /// Hashes the addresses and `rest` with a key. The hash is internal to one table, so the
    /// function may change.
    fn hash(self, rest: u64, key: [u64; 2]) -> u64;

    /// The bits that are set in both.
    #[must_use]
    fn and(self, mask: Self) -> Self;

    /// Source and destination.
    fn unpack(self) -> (IpAddr, IpAddr);
}

/// Returns the sum of the two halves of a word; once folded, it is the sum of its four quarters.
#[inline]
fn sum_words(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// An odd number without structure: digits of the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Addresses for u64 {
    type Address = u32;

    const ZERO: Self = 0;

    #[inline]
    fn join(source: u32, destination: u32) -> Self {
        Self::from(source) | Self::from(destination) << 32
    }

    #[inline]
    fn split(self) -> (u32, u32) {
        (self as u32, (self >> 32) as u32)
    }

    #[inline]
    fn part(self) -> u64 {
        self
    }

    #[inline]
    fn sum(self) -> u64 {
        sum_words(self)
    }

    fn from_ip(address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => Some(u32::from_le_bytes(address.octets())),
            IpAddr::V6(_) => None,
        }
    }

    #[inline]
    fn hash(self, rest: u64, key: [u64; 2]) -> u64 {
        // One multiplication is not enough: both halves of the result are used, and for tuples that
        // differ in a counter they would depend on each other.
        fold_multiply(fold_multiply(self ^ key[0], rest ^ key[1]), SPREAD)
    }

    #[inline]
    fn and(self, mask: Self) -> Self {
        self & mask
    }

    fn unpack(self) -> (IpAddr, IpAddr) {
        let [a, b, c, d, e, f, g, h] = self.to_le_bytes();
        (
            Ipv4Addr::new(a, b, c, d).into(),
            Ipv4Addr::new(e, f, g, h).into(),
        )
    }
}

impl Addresses for [u64; 4] {
    type Address = [u64; 2];

    const ZERO: Self = [0; 4];

    #[inline]
    fn join([a, b]: [u64; 2], [c, d]: [u64; 2]) -> Self {
        [a, b, c, d]
    }

    #[inline]
    fn split(self) -> ([u64; 2], [u64; 2]) {
        let [a, b, c, d] = self;
        ([a, b], [c, d])
    }

    /// The source's interface identifier.
    #[inline]
    fn part(self) -> u64 {
        self[1]
    }

    #[inline]
    fn sum(self) -> u64 {
        self.into_iter().map(sum_words).sum()
    }

    fn from_ip(address: IpAddr) -> Option<[u64; 2]> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => {
                let bits = u128::from_le_bytes(address.octets());
                Some([bits as u64, (bits >> 64) as u64])
            }
        }
    }

    #[inline]
    fn hash(self, rest: u64, key: [u64; 2]) -> u64 {
        let [a, b, c, d] = self;
        let source = fold_multiply(a ^ key[0], b ^ key[1]);
        let destination = fold_multiply(c ^ key[1], d ^ key[0]);
        fold_multiply(source ^ key[0], destination.rotate_left(32) ^ rest ^ key[1])
    }

    #[inline]
    fn and(self, mask: Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self, mask);
        [a & e, b & f, c & g, d & h]
    }

    fn unpack(self) -> (IpAddr, IpAddr) {
        let address = |low: u64, high: u64| {
            Ipv6Addr::from((u128::from(high) << 64 | u128::from(low)).to_le_bytes())
        };
        let [a, b, c, d] = self;
        (address(a, b).into(), address(c, d).into())
    }
}

/// The key of a flow in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey<A> {
    /// Source and destination.
    pub addresses: A,
    /// The four bytes of ports read little-endian, or the value that [`FlowProtocol`] describes.
    pub ports: u32,
    /// The protocol, which determines the meaning of `ports`.
    pub protocol: FlowProtocol,
}

impl<A> FlowKey<A> {
    /// The key of a flow of IP protocol `number`.
    #[inline]
    pub(crate) fn new(addresses: A, ports: u32, number: u8) -> Self {
        let (ports, protocol) = match number {
            protocol::TCP => (ports, FlowProtocol::Tcp),
            protocol::UDP => (ports, FlowProtocol::Udp),
            other => (u32::from(other), FlowProtocol::Other),
        };
        Self {
            addresses,
            ports,
            protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_unpack_in_the_order_of_the_header() {
        let ipv4 = u64::from_le_bytes([192, 0, 2, 1, 198, 51, 100, 2]);
        let expected: (IpAddr, IpAddr) = (
            "192.0.2.1".parse().unwrap(),
            "198.51.100.2".parse().unwrap(),
        );
        assert_eq!(ipv4.unpack(), expected);

        let expected: (Ipv6Addr, Ipv6Addr) = (
            "2001:db8::1:2".parse().unwrap(),
            "fd00:16::abcd".parse().unwrap(),
        );
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&expected.0.octets());
        bytes[16..].copy_from_slice(&expected.1.octets());
        let words: [u64; 4] = core::array::from_fn(|i| {
            u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap())
        });
        assert_eq!(words.unpack(), (expected.0.into(), expected.1.into()));
    }
}
