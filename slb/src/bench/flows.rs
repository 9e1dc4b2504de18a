//! Flows to measure with, in any order.

/// Numbers without order, quickly: xorshift.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `most`.
    #[inline]
    pub(crate) fn below(&mut self, most: usize) -> usize {
        self.below_with(most, 0)
    }

    /// The same, that is not known before `held` is.
    #[inline]
    pub(crate) fn below_with(&mut self, most: usize, held: u64) -> usize {
        self.0 ^= held;
        (((self.next() >> 32) * most as u64) >> 32) as usize
    }
}
