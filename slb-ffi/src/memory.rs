//! Pointers that C gives, made references, after what can be checked was checked.

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
    // SAFETY: it is not NULL and aligned, and the caller promises the rest.
    Ok(unsafe { &*pointer })
}

/// Returns a reference to write what `pointer` points to.
///
/// # Safety
/// `pointer` is NULL, misaligned, or points to a `T` that is not used elsewhere meanwhile.
pub(crate) unsafe fn exclusive<'a, T>(pointer: *mut T) -> Result<&'a mut T, Error> {
    check(pointer)?;
    // SAFETY: it is not NULL and aligned, and the caller promises the rest.
    Ok(unsafe { &mut *pointer })
}

/// `count` of what `pointer` points to.
///
/// # Safety
/// As for [`exclusive`], of all of them.
pub(crate) unsafe fn array<'a, T>(pointer: *mut T, count: usize) -> Result<&'a mut [T], Error> {
    check(pointer)?;
    length::<T>(count)?;
    // SAFETY: it is not NULL and aligned, not longer than memory can be, and the caller promises
    // the rest.
    Ok(unsafe { core::slice::from_raw_parts_mut(pointer, count) })
}

/// The same, to be read.
///
/// # Safety
/// As for [`shared`], of all of them.
pub(crate) unsafe fn array_of<'a, T>(pointer: *const T, count: usize) -> Result<&'a [T], Error> {
    check(pointer)?;
    length::<T>(count)?;
    // SAFETY: as above.
    Ok(unsafe { core::slice::from_raw_parts(pointer, count) })
}

/// A string that ends with a zero.
///
/// # Safety
/// `pointer` is NULL, or a string that ends with a zero and is not written for `'a`.
pub(crate) unsafe fn text<'a>(pointer: *const c_char) -> Result<&'a str, Error> {
    check(pointer)?;
    // SAFETY: it is not NULL, and the caller promises the rest.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| SLB_ERROR_RANGE)
}

/// Writes where `out` points to.
///
/// # Safety
/// As for [`exclusive`]; what was there need not be a `T`.
pub(crate) unsafe fn put<T>(out: *mut T, value: T) -> Result<(), Error> {
    check(out)?;
    // SAFETY: it is not NULL and aligned, and the caller promises the rest.
    unsafe { out.write(value) };
    Ok(())
}

/// Memory for handles, in lines.
///
/// # Safety
/// `memory` is NULL, misaligned, or `len` bytes that are not used elsewhere from now on.
pub(crate) unsafe fn lines(memory: *mut c_void, len: usize) -> Result<&'static mut [Line], Error> {
    let first: *mut Line = memory.cast();
    // SAFETY: the caller promises it; a line may have any content.
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
