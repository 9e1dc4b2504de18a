//! XXH3-64 with a seed, for the two lengths that a tuple's message has.
//!
//! Source: the XXH3 specification (Collet, xxHash `doc/xxhash_spec.md`, "XXH3 algorithm"),
//! default secret.

use super::{TupleHasher, fold_multiply};

/// XXH3-64 with a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xxh3 {
    seed: u64,
    /// The values that the words of a 16-byte message are XORed with: secret and seed.
    flips: [u64; 2],
}

/// The first 64 bytes of the default secret.
const SECRET: [u8; 64] = [
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
];
const PRIME64_1: u64 = 0x9e37_79b1_85eb_ca87;
const PRIME_MX1: u64 = 0x1656_6791_9e37_79f9;

impl Xxh3 {
    /// XXH3-64 with `seed`.
    pub const fn new(seed: u64) -> Self {
        let low = (secret(24) ^ secret(32)).wrapping_add(seed);
        let high = (secret(40) ^ secret(48)).wrapping_sub(seed);
        Self {
            seed,
            flips: [low, high],
        }
    }

    /// Mixes 16 bytes with the 16 bytes of the secret at `at`.
    #[inline]
    const fn mix(&self, low: u64, high: u64, at: usize) -> u64 {
        fold_multiply(
            low ^ secret(at).wrapping_add(self.seed),
            high ^ secret(at + 8).wrapping_sub(self.seed),
        )
    }
}

impl TupleHasher for Xxh3 {
    /// The case of 9 to 16 bytes.
    #[inline]
    fn ipv4(&self, message: &[u64; 2]) -> u64 {
        let low = message[0] ^ self.flips[0];
        let high = message[1] ^ self.flips[1];
        let sum = 16u64
            .wrapping_add(low.swap_bytes())
            .wrapping_add(high)
            .wrapping_add(fold_multiply(low, high));
        avalanche(sum)
    }

    /// The case of 17 to 128 bytes; of its pairs, 40 bytes have two.
    #[inline]
    fn ipv6(&self, message: &[u64; 5]) -> u64 {
        let [a, b, c, d, e] = *message;
        let sum = 40u64
            .wrapping_mul(PRIME64_1)
            .wrapping_add(self.mix(c, d, 32)) // bytes 16..32
            .wrapping_add(self.mix(b, c, 48)) // bytes 8..24: 32 from the end
            .wrapping_add(self.mix(a, b, 0)) // the first 16
            .wrapping_add(self.mix(d, e, 16)); // the last 16
        avalanche(sum)
    }
}

#[inline]
const fn avalanche(hash: u64) -> u64 {
    let hash = (hash ^ hash >> 37).wrapping_mul(PRIME_MX1);
    hash ^ hash >> 32
}

/// The little-endian word at `at` of the secret.
const fn secret(at: usize) -> u64 {
    let mut word = 0;
    let mut i = 0;
    while i < 8 {
        word |= (SECRET[at + i] as u64) << (8 * i);
        i += 1;
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_64_with_seed;

    #[test]
    fn agrees_with_another_implementation() {
        bolero::check!()
            .with_type::<(u64, [u64; 5])>()
            .for_each(|(seed, words)| {
                let bytes: alloc::vec::Vec<u8> =
                    words.iter().flat_map(|w| w.to_le_bytes()).collect();
                let hasher = Xxh3::new(*seed);
                assert_eq!(hasher.ipv6(words), xxh3_64_with_seed(&bytes, *seed));
                let ipv4 = [words[0], words[1]];
                assert_eq!(hasher.ipv4(&ipv4), xxh3_64_with_seed(&bytes[..16], *seed));
            });
    }

    #[test]
    fn outputs_never_change() {
        // Frozen: a fleet is upgraded one node at a time.
        assert_eq!(Xxh3::new(0).ipv4(&[0, 0]), 15_034_821_391_391_295_848);
        assert_eq!(Xxh3::new(1).ipv4(&[1, 2]), 18_110_323_628_208_699_528);
        assert_eq!(
            Xxh3::new(1).ipv6(&[1, 2, 3, 4, 5]),
            8_551_066_626_458_908_038
        );
    }
}
