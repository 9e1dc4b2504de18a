//! Toeplitz: the hash of receive-side scaling (Microsoft, "RSS hashing functions").
//!
//! Each set bit of the message XORs the 32 bits of the key that start at its position. Four
//! message bits are looked up at a time, in tables made from the key.

use core::fmt;

use super::TupleHasher;

/// Bytes of the longest message: an IPv6 tuple's.
const MESSAGE_LEN: usize = 40;

/// The key of Microsoft's verification suite.
pub const MICROSOFT_KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// The hash of receive-side scaling with a key of 40 bytes. The key repeats beyond them, for the
/// last bytes of an IPv6 message with a protocol.
#[derive(Clone)]
pub struct Toeplitz {
    /// The contribution of each value of each four bits of the message.
    tables: [[u32; 16]; MESSAGE_LEN * 2],
}

impl Toeplitz {
    /// The hash with `key`.
    pub const fn new(key: &[u8; 40]) -> Self {
        let mut tables = [[0; 16]; MESSAGE_LEN * 2];
        let mut place = 0;
        while place < tables.len() {
            let mut value = 0;
            while value < 16 {
                let mut bit = 0;
                while bit < 4 {
                    if value & (8 >> bit) != 0 {
                        tables[place][value] ^= window(key, place * 4 + bit);
                    }
                    bit += 1;
                }
                value += 1;
            }
            place += 1;
        }
        Self { tables }
    }

    /// Returns the 32-bit hash of the first 40 bytes of a message; further bytes are ignored.
    pub fn hash(&self, message: &[u8]) -> u32 {
        let mut hash = 0;
        for (byte, tables) in message.iter().zip(self.tables.as_chunks::<2>().0) {
            let [high, low] = tables;
            hash ^= high[usize::from(byte >> 4)] ^ low[usize::from(byte & 15)];
        }
        hash
    }

    /// Hashes words of a message whose last one holds ports and protocol.
    fn words(&self, message: &[u64]) -> u64 {
        let mut bytes = [0; MESSAGE_LEN];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(message) {
            *to = word.to_le_bytes();
        }
        let mut len = message.len() * 8 - 3; // three bytes of padding
        let has_ports = message.last().is_some_and(|word| word & 0xffff_ffff != 0);
        if has_ports {
            len -= 1; // as in NICs, which hash a five-tuple without the protocol
        }
        let hash = u64::from(self.hash(bytes.get(..len).unwrap_or_default()));
        hash << 32 | hash
    }
}

/// The 32 bits of the key that start at bit `at`.
const fn window(key: &[u8; 40], at: usize) -> u32 {
    let mut bits = 0u64;
    let mut i = 0;
    while i < 5 {
        bits = bits << 8 | key[(at / 8 + i) % key.len()] as u64;
        i += 1;
    }
    (bits >> (8 - at % 8)) as u32
}

impl TupleHasher for Toeplitz {
    fn ipv4(&self, message: &[u64; 2]) -> u64 {
        self.words(message)
    }

    fn ipv6(&self, message: &[u64; 5]) -> u64 {
        self.words(message)
    }
}

impl fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Toeplitz(secret)")
    }
}
