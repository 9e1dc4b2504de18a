//! Conversion of C's pointers into references, after all possible checks.

use core::ffi::{CStr, c_char, c_void};

use slb_core::mem::Line;

use crate::error::Error;
use crate::error::slb_error::*;

/// Returns a reference to read what `pointer` points to.
///
/// # Safety
/// `pointer` is NULL, misaligned, or points to a `T` that is not written meanwhile.
pub(crate) unsafe fn shared<'a, T>(pointer: *const T) -> Result<&'a T, Error> {
    check(pointer)?;
    // SAFETY: the pointer is aligned and not NULL; the caller guarantees the rest.
    Ok(unsafe { &*pointer })
}

/// Returns a reference to write what `pointer` points to.
///
/// # Safety
/// `pointer` is NULL, misaligned, or points to a `T` that is not used elsewhere meanwhile.
pub(crate) unsafe fn exclusive<'a, T>(pointer: *mut T) -> Result<&'a mut T, Error> {
    check(pointer)?;
    // SAFETY: the pointer is aligned and not NULL; the caller guarantees the rest.
    Ok(unsafe { &mut *pointer })
}

/// Returns a slice of the `count` elements that `pointer` points to.
///
/// # Safety
/// As for [`exclusive`], of all of them.
pub(crate) unsafe fn array<'a, T>(pointer: *mut T, count: usize) -> Result<&'a mut [T], Error> {
    check(pointer)?;
    length::<T>(count)?;
    // SAFETY: the pointer is aligned and not NULL, and the length is possible; the caller
    // guarantees the rest.
    Ok(unsafe { core::slice::from_raw_parts_mut(pointer, count) })
}

/// Returns a shared slice of the `count` elements that `pointer` points to.
///
/// # Safety
/// As for [`shared`], of all of them.
pub(crate) unsafe fn array_of<'a, T>(pointer: *const T, count: usize) -> Result<&'a [T], Error> {
    check(pointer)?;
    length::<T>(count)?;
    // SAFETY: as above.
    Ok(unsafe { core::slice::from_raw_parts(pointer, count) })
}

/// Returns a string that ends with a zero.
///
/// # Safety
/// `pointer` is NULL, or a string that ends with a zero and is not written for `'a`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char) -> Result<&'a str, Error> {
    check(pointer)?;
    // SAFETY: the pointer is not NULL; the caller guarantees the rest.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| SLB_ERROR_RANGE)
}

/// Writes a value to the place that `out` points to.
///
/// # Safety
/// As for [`exclusive`]; the old contents need not be a `T`.
pub(crate) unsafe fn put<T>(out: *mut T, value: T) -> Result<(), Error> {
    check(out)?;
    // SAFETY: the pointer is aligned and not NULL; the caller guarantees the rest.
    unsafe { out.write(value) };
    Ok(())
}

/// Returns memory for handles as lines.
///
/// # Safety
/// `memory` is NULL, misaligned, or `len` bytes that are not used elsewhere from now on.
pub(crate) unsafe fn lines(memory: *mut c_void, len: usize) -> Result<&'static mut [Line], Error> {
    let first: *mut Line = memory.cast();
    // SAFETY: guaranteed by the caller; a line may have any contents.
    unsafe { array(first, len / size_of::<Line>()) }
}

fn check<T>(pointer: *const T) -> Result<(), Error> {
    if pointer.is_null() {
        Err(SLB_ERROR_NULL)
    } else if !pointer.is_aligned() {
        Err(SLB_ERROR_ALIGNMENT)
    } else {
        Ok(())
    }
}

fn length<T>(count: usize) -> Result<(), Error> {
    match count.checked_mul(size_of::<T>().max(1)) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(()),
        _ => Err(SLB_ERROR_RANGE),
    }
}

/// Returns true if two pieces of memory share a byte.
pub(crate) fn overlap<A, B>(a: (*const A, usize), b: (*const B, usize)) -> bool {
    let end = |start: usize, len: usize, size: usize| start.saturating_add(len * size);
    let (a_start, b_start) = (a.0.addr(), b.0.addr());
    a_start < end(b_start, b.1, size_of::<B>()) && b_start < end(a_start, a.1, size_of::<A>())
}
