//! SipHash (Aumasson and Bernstein, 2012): keyed, short-input, 64 bits.

use super::TupleHasher;

/// SipHash-1-3 of a tuple's message with a secret key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SipHash13 {
    key: [u64; 2],
}

impl SipHash13 {
    /// SipHash-1-3 with a key of 16 bytes.
    pub fn new(key: [u8; 16]) -> Self {
        let [low, high] =
            [0, 8].map(|at| u64::from_le_bytes(core::array::from_fn(|i| key[at + i])));
        Self { key: [low, high] }
    }

    #[inline]
    fn words(&self, message: &[u64]) -> u64 {
        let mut state = State::new(self.key);
        for &word in message {
            state.absorb::<1>(word);
        }
        state.finish::<1, 3>((message.len() as u64 * 8) << 56)
    }
}

impl core::fmt::Debug for SipHash13 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SipHash13(secret)")
    }
}

impl TupleHasher for SipHash13 {
    #[inline]
    fn ipv4(&self, message: &[u64; 2]) -> u64 {
        self.words(message)
    }

    #[inline]
    fn ipv6(&self, message: &[u64; 5]) -> u64 {
        self.words(message)
    }
}

/// SipHash-1-3 of any bytes; the key as two little-endian words.
pub fn siphash13(key: [u64; 2], bytes: &[u8]) -> u64 {
    siphash::<1, 3>(key, bytes)
}

/// SipHash-2-4 of any bytes; the key as two little-endian words.
pub fn siphash24(key: [u64; 2], bytes: &[u8]) -> u64 {
    siphash::<2, 4>(key, bytes)
}

fn siphash<const C: usize, const D: usize>(key: [u64; 2], bytes: &[u8]) -> u64 {
    let mut state = State::new(key);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state.absorb::<C>(u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    state.finish::<C, D>(u64::from_le_bytes(last) | (bytes.len() as u64) << 56)
}

struct State([u64; 4]);

impl State {
    #[inline]
    fn new([k0, k1]: [u64; 2]) -> Self {
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline]
    fn absorb<const C: usize>(&mut self, word: u64) {
        self.0[3] ^= word;
        for _ in 0..C {
            self.round();
        }
        self.0[0] ^= word;
    }

    #[inline]
    fn finish<const C: usize, const D: usize>(mut self, last: u64) -> u64 {
        self.absorb::<C>(last);
        self.0[2] ^= 0xff;
        for _ in 0..D {
            self.round();
        }
        let [a, b, c, d] = self.0;
        a ^ b ^ c ^ d
    }

    #[inline]
    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.0 = [a, b, c, d];
    }
}
