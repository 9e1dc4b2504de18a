//! A map that is built once and then only read: open addressing over buckets of a cache line.
//!
//! At most half of the places are used, so nearly every lookup, hit or miss, ends in its first
//! bucket, regardless of the number of keys.

use crate::hash::fold_multiply;
use crate::mem::Mem;

/// No value.
pub(crate) const NONE: u32 = u32::MAX;

/// `N` keys and their values. A place is free if its value is all ones.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct MapBucket<K, const N: usize> {
    keys: [K; N],
    values: [u32; N],
}

/// A bucket of [rule keys](RuleKey).
pub(crate) type RuleBucket = MapBucket<u64, 5>;
/// A bucket of IPv6 VIPs.
pub(crate) type VipBucket = MapBucket<[u64; 2], 3>;

const _: () = assert!(size_of::<RuleBucket>() == 64);
const _: () = assert!(size_of::<VipBucket>() == 64);

pub(crate) trait MapKey: Copy + Eq {
    const ZERO: Self;
    fn hash(self) -> u64;
}

// Keys come from the configuration, so the constants need not be secret: digits of pi.
const MIX: [u64; 3] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7344,
    0xa409_3822_299f_31d0,
];

impl MapKey for u64 {
    const ZERO: Self = 0;

    #[inline]
    fn hash(self) -> u64 {
        fold_multiply(self ^ MIX[0], MIX[1] | 1)
    }
}

impl MapKey for [u64; 2] {
    const ZERO: Self = [0; 2];

    #[inline]
    fn hash(self) -> u64 {
        fold_multiply(
            fold_multiply(self[0] ^ MIX[0], MIX[1] | 1) ^ self[1],
            MIX[2] | 1,
        )
    }
}

impl<K: MapKey, const N: usize> MapBucket<K, N> {
    /// A bucket with no keys.
    pub(crate) const EMPTY: Self = Self {
        keys: [K::ZERO; N],
        values: [NONE; N],
    };
}

/// The map, in the caller's memory.
#[derive(Debug)]
pub(crate) struct ProbeMap<'m, K, const N: usize> {
    buckets: Mem<'m, MapBucket<K, N>>,
}

impl<'m, K: MapKey, const N: usize> ProbeMap<'m, K, N> {
    /// Returns the number of buckets for `keys` keys.
    pub(crate) const fn buckets_for(keys: usize) -> usize {
        (keys * 2).div_ceil(N) + 1
    }

    /// Makes an empty map.
    pub(crate) fn new(mut buckets: Mem<'m, MapBucket<K, N>>) -> Self {
        buckets.fill(MapBucket::EMPTY);
        Self { buckets }
    }

    #[inline]
    fn start(&self, hash: u64) -> usize {
        (((hash >> 32) * self.buckets.len() as u64) >> 32) as usize
    }

    /// Returns the value of a key.
    #[inline]
    pub(crate) fn get(&self, key: K) -> Option<u32> {
        let start = self.start(key.hash());
        let bucket = self.buckets.get(start)?;
        // The key is nearly always in the first bucket, at an unpredictable place.
        let mut found = NONE;
        // Search from the back: a free place, whose key may equal this one, comes after all used
        // ones.
        for (candidate, &value) in bucket.keys.iter().zip(&bucket.values).rev() {
            found = if *candidate == key { value } else { found };
        }
        if found != NONE {
            return Some(found);
        }
        self.get_further(key, start)
    }

    #[cold]
    fn get_further(&self, key: K, start: usize) -> Option<u32> {
        let (wrapped, first) = self.buckets.split_at_checked(start)?;
        for bucket in first.iter().chain(wrapped) {
            for (candidate, &value) in bucket.keys.iter().zip(&bucket.values) {
                if value == NONE {
                    return None; // keys fill a bucket from its front, then the next bucket
                }
                if *candidate == key {
                    return Some(value);
                }
            }
        }
        None
    }

    /// Yields every key with its value, in unspecified order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, u32)> + '_ {
        let all = self.buckets.iter().flat_map(|bucket| {
            let places = bucket.keys.iter().zip(&bucket.values);
            places.map(|(&key, &value)| (key, value))
        });
        all.filter(|&(_, value)| value != NONE)
    }

    /// Adds a key; returns the existing value as an error. The memory has room for as many keys as
    /// were passed to [`buckets_for`](Self::buckets_for).
    pub(crate) fn insert(&mut self, key: K, value: u32) -> Result<(), u32> {
        let start = self.start(key.hash());
        let (wrapped, first) = self.buckets.split_at_mut(start);
        for bucket in first.iter_mut().chain(wrapped) {
            for (place, old) in bucket.keys.iter_mut().zip(&mut bucket.values) {
                if *old == NONE {
                    *place = key;
                    *old = value;
                    return Ok(());
                }
                if *place == key {
                    return Err(*old);
                }
            }
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_hundred_thousand_keys_are_found_in_about_one_bucket_each() {
        let count = if cfg!(miri) { 500u64 } else { 100_000 };
        let buckets = ProbeMap::<u64, 5>::buckets_for(count as usize);
        let mut map = ProbeMap::new(Mem::from(vec![RuleBucket::EMPTY; buckets]));
        for i in 0..count {
            assert_eq!(map.insert(i << 32 | 80, i as u32), Ok(()));
        }
        let mut far = 0;
        for i in 0..count {
            assert_eq!(map.get(i << 32 | 80), Some(i as u32));
            assert_eq!(map.get(i << 32 | 81), None);
            let bucket = &map.buckets[map.start((i << 32 | 80).hash())];
            far += u32::from(!bucket.keys.contains(&(i << 32 | 80)));
        }
        assert!(far < 3_000, "{far} keys are not in their first bucket");
        assert_eq!(map.insert(7 << 32 | 80, 9), Err(7));
    }
}
