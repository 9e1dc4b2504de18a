//! The secret of a process, which keys its tables and chooses its SNAT ports.

use core::fmt;

use crate::hash::siphash24;

/// A secret of 128 bits, drawn at random by the caller when the process starts.
///
/// A role gets a key when it is built, and derives from it an independent key for each purpose: the
/// hash of each kind of table, and the choice of SNAT ports. An attacker who knows the key can make
/// entries collide in a table and predict ports (RFC 6056 §3.3.3). Two roles with the same key
/// choose the same ports, so every process should draw its own. There is no default key, `Debug`
/// does not print it, and no option replaces it later.
#[derive(Clone, Copy)]
pub struct Key([u64; 2]);

impl Key {
    /// Makes a key from two words, each of 64 random bits.
    pub const fn new(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// Makes a key from 16 random bytes, for example from `getrandom(2)` or `/dev/urandom`.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let all = u128::from_le_bytes(bytes);
        Self([all as u64, (all >> 64) as u64])
    }

    /// Returns true if all bits are zero, as in uninitialised memory.
    pub const fn is_zero(&self) -> bool {
        self.0[0] | self.0[1] == 0
    }

    /// Returns the key for one purpose: the SipHash-2-4 of its name. SipHash is a pseudorandom
    /// function, so the key of one purpose reveals neither the key of another nor the secret.
    pub(crate) fn derive(&self, purpose: Purpose) -> [u64; 2] {
        [0, 1].map(|half| siphash24(self.0, &[purpose as u8, half]))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

/// The purpose of a derived key. The values are fixed, and no two purposes share one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// The hash of a flow table.
    Flows = 1,
    /// The hash of a table of connections.
    Connections = 2,
    /// The choice of SNAT ports.
    Ports = 3,
    /// The hash of a limiter of sources.
    Sources = 4,
    /// The hash of a table of ports.
    PortTable = 5,
    /// The hashes of a table of fragments and of the room where they wait.
    Fragments = 6,
    /// The division of connections among workers.
    Steering = 7,
    /// The hash of a table of direct flows.
    DirectFlows = 8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_has_a_key_of_its_own() {
        let of = |key: Key| {
            [
                Purpose::Flows,
                Purpose::Connections,
                Purpose::Ports,
                Purpose::Sources,
                Purpose::PortTable,
                Purpose::Fragments,
                Purpose::Steering,
                Purpose::DirectFlows,
            ]
            .map(|purpose| key.derive(purpose))
        };
        let (one, other) = (of(Key::new([1, 2])), of(Key::new([1, 3])));
        let words: alloc::collections::BTreeSet<u64> =
            one.iter().chain(&other).flatten().copied().collect();
        assert_eq!(words.len(), 32);
        assert_eq!(one, of(Key::new([1, 2])));
    }

    #[test]
    fn bytes_are_read_little_endian() {
        let bytes = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Key::from_bytes(bytes).0, [1, 2]);
        assert!(Key::from_bytes([0; 16]).is_zero() && !Key::from_bytes(bytes).is_zero());
    }

    #[test]
    fn debug_does_not_print_it() {
        assert_eq!(alloc::format!("{:?}", Key::new([77, 78])), "Key(secret)");
    }
}
