//! Memory from the caller or, with the `alloc` feature, from the allocator. One type covers both,
//! so that tables and the packet path do not depend on the origin.

use core::fmt;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};
use core::slice;

use crate::prefetch::CACHE_LINE;

/// The slice that holds a table: borrowed from the caller, or owned in a box.
pub struct Mem<'m, T> {
    /// Always initialised. A plain reference would assert that the slice outlives each function
    /// that takes the `Mem`, even one that drops it and so frees the box.
    slice: MaybeUninit<&'m mut [T]>,
    /// True if `slice` is a leaked box, which is freed at the end.
    #[cfg(feature = "alloc")]
    owned: bool,
}

impl<T> Mem<'_, T> {
    /// Makes a slice without elements, for a table without capacity.
    pub fn empty() -> Self {
        Self::from(&mut [][..])
    }
}

impl<'m, T> From<&'m mut [T]> for Mem<'m, T> {
    fn from(slice: &'m mut [T]) -> Self {
        Self {
            slice: MaybeUninit::new(slice),
            #[cfg(feature = "alloc")]
            owned: false,
        }
    }
}

impl<'m, T, const N: usize> From<&'m mut [T; N]> for Mem<'m, T> {
    fn from(array: &'m mut [T; N]) -> Self {
        Self::from(&mut array[..])
    }
}

#[cfg(feature = "alloc")]
impl<T> From<alloc::boxed::Box<[T]>> for Mem<'static, T> {
    fn from(memory: alloc::boxed::Box<[T]>) -> Self {
        Self {
            slice: MaybeUninit::new(alloc::boxed::Box::leak(memory)),
            owned: true,
        }
    }
}

#[cfg(feature = "alloc")]
impl<T> From<alloc::vec::Vec<T>> for Mem<'static, T> {
    fn from(memory: alloc::vec::Vec<T>) -> Self {
        Self::from(memory.into_boxed_slice())
    }
}

#[cfg(feature = "alloc")]
impl<T> Drop for Mem<'_, T> {
    fn drop(&mut self) {
        if self.owned {
            let slice: *mut [T] = core::ptr::from_mut(&mut **self);
            // SAFETY: `owned` means that the slice was leaked from a box, and this is its last use.
            drop(unsafe { alloc::boxed::Box::from_raw(slice) });
        }
    }
}

impl<T> Deref for Mem<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the slice is initialised on creation.
        unsafe { self.slice.assume_init_ref() }
    }
}

impl<T> DerefMut for Mem<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: the slice is initialised on creation.
        unsafe { self.slice.assume_init_mut() }
    }
}

impl<T> fmt::Debug for Mem<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mem")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// The unit of memory that a caller provides: a cache line with arbitrary contents.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line([MaybeUninit<u8>; CACHE_LINE]);

impl Line {
    /// A line to initialise arrays with.
    pub const EMPTY: Self = Self([MaybeUninit::uninit(); CACHE_LINE]);

    /// Returns the lines in leaked memory, such as a mapping that is never unmapped. Bytes that do
    /// not fill an aligned line are left out.
    pub fn from_leaked(bytes: &'static mut [u8]) -> &'static mut [Self] {
        // SAFETY: any bytes are valid lines, which may be uninitialised. The bytes are borrowed
        // forever, so they can never be read as bytes again, whatever is written.
        let (_, lines, _) = unsafe { bytes.align_to_mut() };
        lines
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

/// A source of memory for the parts of a structure.
pub trait Memory<'m> {
    /// Returns a slice of `count` times `fill`, or `None` if the memory is used up.
    fn take<T: Copy>(&mut self, count: usize, fill: T) -> Option<Mem<'m, T>>;
}

/// Memory from the caller, allocated from its front.
#[derive(Debug)]
pub struct Arena<'m> {
    free: &'m mut [Line],
}

impl<'m> Arena<'m> {
    /// Makes an arena over `lines`.
    pub fn new(lines: &'m mut [Line]) -> Self {
        Self { free: lines }
    }
}

impl<'m> Memory<'m> for Arena<'m> {
    fn take<T: Copy>(&mut self, count: usize, fill: T) -> Option<Mem<'m, T>> {
        const { assert!(align_of::<T>() <= align_of::<Line>()) };
        let lines = lines_for::<T>(count)?;
        let (taken, rest) = core::mem::take(&mut self.free).split_at_mut_checked(lines)?;
        self.free = rest;
        let first: *mut T = taken.as_mut_ptr().cast();
        for i in 0..count {
            // SAFETY: `taken` has room for `count` of `T`, of at least its alignment.
            let place = unsafe { first.add(i) };
            // SAFETY: `place` is inside `taken`, which is borrowed exclusively for `'m`. The caller
            // sees the lines again only as `MaybeUninit`, whatever is written.
            unsafe { place.write(fill) };
        }
        // SAFETY: the loop has initialised all `count` elements, and `taken` is not used again.
        Some(Mem::from(unsafe {
            slice::from_raw_parts_mut(first, count)
        }))
    }
}

/// A counter of the lines that an [`Arena`] needs. As a [`Memory`] it returns empty slices, so
/// building a structure with it counts the lines of the structure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter {
    lines: usize,
}

impl Counter {
    /// Adds a part; `None` if the count overflows.
    pub fn add<T>(&mut self, count: usize) -> Option<()> {
        self.lines = self.lines.checked_add(lines_for::<T>(count)?)?;
        Some(())
    }

    /// Returns the number of lines so far.
    pub fn lines(&self) -> usize {
        self.lines
    }
}

impl<'m> Memory<'m> for Counter {
    fn take<T: Copy>(&mut self, count: usize, _: T) -> Option<Mem<'m, T>> {
        self.add::<T>(count)?;
        Some(Mem::empty())
    }
}

fn lines_for<T>(count: usize) -> Option<usize> {
    Some(
        count
            .checked_mul(size_of::<T>())?
            .div_ceil(size_of::<Line>()),
    )
}

/// Memory from the allocator, with a box for each slice.
#[cfg(feature = "alloc")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Boxes;

#[cfg(feature = "alloc")]
impl Memory<'static> for Boxes {
    fn take<T: Copy>(&mut self, count: usize, fill: T) -> Option<Mem<'static, T>> {
        Some(Mem::from(alloc::vec![fill; count]))
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use alloc::vec;

    #[test]
    fn owned_memory_is_freed_once_and_borrowed_memory_not() {
        let counter = Rc::new(());
        let owned = Mem::from(vec![counter.clone(), counter.clone()]);
        assert_eq!(Rc::strong_count(&counter), 3);
        drop(owned);
        assert_eq!(Rc::strong_count(&counter), 1);
        let mut array = [counter.clone()];
        drop(Mem::from(&mut array));
        assert_eq!(Rc::strong_count(&counter), 2);
    }

    #[test]
    fn an_arena_gives_what_was_counted_and_no_more() {
        let mut counter = Counter::default();
        counter.add::<u16>(33).unwrap();
        counter.add::<u64>(8).unwrap();
        assert_eq!(counter.lines(), 3);
        let mut lines = [Line::EMPTY; 3];
        let mut arena = Arena::new(&mut lines);
        let mut a = arena.take(33, 7u16).unwrap();
        let b = arena.take(8, 9u64).unwrap();
        assert!(arena.take(1, 0u8).is_none());
        a[32] = 8;
        assert_eq!((a[31], a[32], &b[..]), (7, 8, &[9; 8][..]));
    }
}
