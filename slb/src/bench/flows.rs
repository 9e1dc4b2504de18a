//! Flows to measure with, in any order.

/// A fast generator of pseudo-random numbers: xorshift64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts the sequence that `seed` determines.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns the next 64 bits.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "the sequence does not end")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `most`.
    #[inline]
    pub fn below(&mut self, most: usize) -> usize {
        self.below_with(most, 0)
    }

    /// Returns a number below `most` that depends on `held`, so that a processor waits for it.
    #[inline]
    pub fn below_with(&mut self, most: usize, held: u64) -> usize {
        self.0 ^= held;
        (((self.next() >> 32) * most as u64) >> 32) as usize
    }
}
