//! Tuple hashers, which choose a flow's backend alike on every node, platform and version.
//!
//! # Specification
//! The tuple is written as a *message* in network byte order, 16 bytes for IPv4 and 40 for IPv6:
//!
//! ```text
//! source address | destination address | source port | destination port | protocol | 0 0 0
//!     4 or 16            4 or 16               2               2              1        3
//! ```
//!
//! Fields that the distribution mode excludes are zero, as are the ports of a protocol without
//! ports. The hash has 64 bits:
//! - [`Xxh3`] (default): XXH3-64 of the message with a 64-bit seed.
//! - [`SipHash13`]: SipHash-1-3 of the message with a 128-bit key, for hostile traffic: without the
//!   key, flows cannot be aimed at one backend.
//! - [`Toeplitz`]: the hash of receive-side scaling, `h = T(message)`, as `h << 32 | h`. For five
//!   tuples the protocol is left out, so that it is the value that the NIC computes.
//!
//! The slot in a table of `size` slots is `(hash >> 32) * size >> 32`. The outer UDP source port
//! takes the low 14 bits of the hash of the whole tuple, regardless of the distribution mode, so it
//! does not depend on the slot.
//!
//! A hash is computed from little-endian *words* of the message, which a little-endian machine
//! loads directly from the header; on a big-endian machine the loads swap bytes.

mod siphash;
mod toeplitz;
mod xxh3;

use core::fmt;

pub use siphash::{SipHash13, siphash13, siphash24};
pub use toeplitz::{MICROSOFT_KEY, Toeplitz};
pub use xxh3::Xxh3;

/// The protocol's place in the message's word of ports and protocol.
const PROTOCOL_SHIFT: u32 = 32;

/// A 64-bit hash of a tuple's message. Implement this trait to use another hash; see
/// [`Hasher::Custom`].
pub trait TupleHasher {
    /// Hashes the message of an IPv4 tuple, given as little-endian words.
    fn ipv4(&self, message: &[u64; 2]) -> u64;

    /// Hashes the message of an IPv6 tuple, given as little-endian words.
    fn ipv6(&self, message: &[u64; 5]) -> u64;
}

/// The parts of the tuple that determine the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Distribution {
    /// Addresses, ports and protocol.
    #[default]
    FiveTuple,
    /// Source and destination address, so that a client stays with a backend.
    SourceIp,
    /// Addresses and protocol.
    SourceIpProtocol,
}

impl Distribution {
    /// Returns the bits of the message's last word that the mode includes.
    pub(crate) const fn mask(self) -> u64 {
        match self {
            Self::FiveTuple => u64::MAX,
            Self::SourceIp => 0,
            Self::SourceIpProtocol => 0xff << PROTOCOL_SHIFT,
        }
    }

    /// Name of the distribution mode in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FiveTuple => "five-tuple",
            Self::SourceIp => "source-ip",
            Self::SourceIpProtocol => "source-ip-protocol",
        }
    }
}

/// The last word of a message. `ports` is the packet's four bytes of ports, read little-endian.
#[inline]
pub(crate) const fn ports_and_protocol(ports: u32, protocol: u8) -> u64 {
    ports as u64 | (protocol as u64) << PROTOCOL_SHIFT
}

/// The hasher of a configuration.
#[derive(Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one in a snapshot, and no box in core"
)]
pub enum Hasher {
    /// XXH3-64 with a seed.
    Xxh3(Xxh3),
    /// SipHash-1-3 with a key.
    SipHash13(SipHash13),
    /// Receive-side scaling's hash with a key.
    Toeplitz(Toeplitz),
    /// A custom hasher. Every node has to use the same one.
    Custom(&'static (dyn TupleHasher + Send + Sync)),
}

impl Default for Hasher {
    fn default() -> Self {
        Self::Xxh3(Xxh3::new(0))
    }
}

impl Hasher {
    /// Returns a hasher other than the default. A jump table for all four would cost each packet
    /// eight instructions.
    #[cold]
    #[inline(never)]
    fn other(&self) -> &dyn TupleHasher {
        match self {
            Self::Xxh3(hasher) => hasher,
            Self::SipHash13(hasher) => hasher,
            Self::Toeplitz(hasher) => hasher,
            Self::Custom(hasher) => *hasher,
        }
    }

    /// Name of the hasher in reports.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Xxh3(_) => "xxh3",
            Self::SipHash13(_) => "siphash-1-3",
            Self::Toeplitz(_) => "toeplitz",
            Self::Custom(_) => "custom",
        }
    }
}

impl TupleHasher for Hasher {
    #[inline]
    fn ipv4(&self, message: &[u64; 2]) -> u64 {
        match self {
            Self::Xxh3(hasher) => hasher.ipv4(message),
            other => other.other().ipv4(message),
        }
    }

    #[inline]
    fn ipv6(&self, message: &[u64; 5]) -> u64 {
        match self {
            Self::Xxh3(hasher) => hasher.ipv6(message),
            other => other.other().ipv6(message),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name()) // the key stays secret
    }
}

/// The 128-bit product of two words, its halves XORed.
#[inline]
pub(crate) const fn fold_multiply(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_leave_out_what_the_mode_leaves_out() {
        let word = ports_and_protocol(0xaabb_ccdd, 17);
        assert_eq!(word & Distribution::FiveTuple.mask(), word);
        assert_eq!(word & Distribution::SourceIp.mask(), 0);
        assert_eq!(
            word & Distribution::SourceIpProtocol.mask(),
            ports_and_protocol(0, 17)
        );
    }
}
