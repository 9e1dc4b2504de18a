//! Prefetches of cache lines that a later stage will read.

/// The length of a cache line in bytes, for layouts.
pub(crate) const CACHE_LINE: usize = 64;

/// Starts loading the first two cache lines of `value`. This is only a hint, and changes no result.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    let first: *const u8 = core::ptr::from_ref(value).cast();
    prefetch_address(first);
    if size_of::<T>() > CACHE_LINE {
        prefetch_address(first.wrapping_add(CACHE_LINE));
    }
}

/// Starts loading the cache line at an address, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch_address(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch may have any address, and has no observable effect.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address; // no stable prefetch on this architecture
}
