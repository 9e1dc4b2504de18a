//! Handles of snapshots, with a count of their users.

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use slb_core::mem::{Arena, Line};
use slb_core::snapshot::Snapshot;
use slb_core::spec::Spec;

use crate::builder::{Builder, slb_builder};
use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::handle::{Kind, allocation, deallocate};
use crate::memory::{lines, put, shared};

/// A compiled configuration: immutable, and usable by any number of muxes, hosts and proxies.
#[derive(Debug)]
pub struct slb_snapshot {
    _opaque: (),
}

// The kind is the first field: it is checked before the others may be read.
#[repr(C)]
pub(crate) struct SnapshotHandle {
    kind: Kind,
    /// The number of allocated bytes; zero if the memory is the caller's.
    allocated: usize,
    users: AtomicUsize,
    pub(crate) snapshot: Snapshot<'static>,
}

const HANDLE_LINES: usize = size_of::<SnapshotHandle>().div_ceil(size_of::<Line>());

/// A counted reference to a snapshot.
pub(crate) struct Shared(NonNull<SnapshotHandle>);

impl Shared {
    /// # Safety
    /// Where `snapshot` is neither NULL nor misaligned, it is one, or something else that can be read.
    pub(crate) unsafe fn of(snapshot: *const slb_snapshot) -> Result<Self, Error> {
        // SAFETY: guaranteed by the caller.
        let handle = unsafe { handle(snapshot) }?;
        handle.users.fetch_add(1, Ordering::Relaxed);
        Ok(Self(NonNull::from(handle)))
    }

    /// Returns the handle for C.
    pub(crate) fn as_c(&self) -> *mut slb_snapshot {
        self.0.as_ptr().cast()
    }
}

impl Deref for Shared {
    type Target = Snapshot<'static>;

    #[inline]
    fn deref(&self) -> &Snapshot<'static> {
        // SAFETY: the snapshot counts as used, so it is not freed.
        &unsafe { self.0.as_ref() }.snapshot
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the snapshot still counts as used.
        let handle = unsafe { self.0.as_ref() };
        handle.users.fetch_sub(1, Ordering::Release);
    }
}

/// # Safety
/// As for [`Shared::of`].
pub(crate) unsafe fn handle<'a>(
    snapshot: *const slb_snapshot,
) -> Result<&'a SnapshotHandle, Error> {
    // SAFETY: guaranteed by the caller.
    let handle: &SnapshotHandle = unsafe { shared(snapshot.cast()) }?;
    if handle.kind == Kind::SNAPSHOT {
        Ok(handle)
    } else {
        Err(SLB_ERROR_HANDLE)
    }
}

/// Returns the previous snapshot, if there is one.
unsafe fn previous<'a>(
    snapshot: *const slb_snapshot,
) -> Result<Option<&'a Snapshot<'static>>, Error> {
    if snapshot.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller of the caller promises it.
    unsafe { handle(snapshot) }.map(|handle| Some(&handle.snapshot))
}

/// Returns the bytes that a snapshot takes.
pub(crate) fn size(spec: &Spec<'_>, previous: Option<&Snapshot<'_>>) -> Option<usize> {
    let lines = Snapshot::lines_for(spec, previous).checked_add(HANDLE_LINES)?;
    lines.checked_mul(size_of::<Line>())
}

/// Compiles a snapshot into memory.
pub(crate) fn build(
    memory: &'static mut [Line],
    allocated: usize,
    spec: &Spec<'_>,
    previous: Option<&Snapshot<'_>>,
) -> Result<*mut slb_snapshot, Error> {
    let (place, rest) = memory
        .split_at_mut_checked(HANDLE_LINES)
        .ok_or(SLB_ERROR_SHORT)?;
    let snapshot = Snapshot::build(spec, previous, &mut Arena::new(rest))?;
    let place: *mut MaybeUninit<SnapshotHandle> = place.as_mut_ptr().cast();
    // SAFETY: `place` is aligned, has room for a handle, and is not used elsewhere.
    let handle = unsafe { &mut *place }.write(SnapshotHandle {
        kind: Kind::SNAPSHOT,
        allocated,
        users: AtomicUsize::new(0),
        snapshot,
    });
    Ok(core::ptr::from_mut(handle).cast())
}

/// Compiles a snapshot into memory that the library allocates.
#[cfg(feature = "std")]
pub(crate) fn build_allocated(
    spec: &Spec<'_>,
    before: Option<&Snapshot<'_>>,
) -> Result<*mut slb_snapshot, Error> {
    let size = size(spec, before).ok_or(SLB_ERROR_RANGE)?;
    let memory = crate::handle::allocate(size)?;
    // SAFETY: the memory was allocated for the snapshot.
    let lines = unsafe { lines(memory, size) }?;
    build(lines, size, spec, before).inspect_err(|_| {
        // SAFETY: the memory is not used elsewhere.
        unsafe { deallocate(memory, allocation(size)) };
    })
}

/// Returns the bytes of memory that the snapshot of a configuration needs, or 0 if an argument is
/// bad or the configuration contradicts itself. `previous` may be NULL.
///
/// # Safety
/// The handles are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_snapshot_size(
    builder: *mut slb_builder,
    before: *const slb_snapshot,
) -> usize {
    let mut bytes = 0;
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let (builder, before) = unsafe { (Builder::of(builder)?, previous(before)?) };
        bytes = builder.with_spec(|spec| size(spec, before))?.unwrap_or(0);
        Ok(0)
    });
    bytes
}

/// Compiles a configuration into `memory`, which is aligned to 64 bytes and has `length` bytes;
/// `slb_snapshot_size` returns the number needed. `previous`, which may be NULL, is the predecessor
/// of the new snapshot: backends and rules keep their counters and flows. The snapshot owns the
/// memory until `slb_snapshot_free`. The builder can be changed and used again.
///
/// # Safety
/// The handles are valid, and `memory` is the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_snapshot_init(
    memory: *mut c_void,
    length: usize,
    builder: *mut slb_builder,
    before: *const slb_snapshot,
    out: *mut *mut slb_snapshot,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        unsafe {
            put(out, core::ptr::null_mut())?;
            let (builder, before) = (Builder::of(builder)?, previous(before)?);
            let memory = lines(memory, length)?;
            let snapshot = builder.with_spec(|spec| build(memory, 0, spec, before))??;
            put(out, snapshot)?;
        }
        Ok(0)
    })
}

/// Compiles a configuration into memory that the library allocates. Otherwise like
/// `slb_snapshot_init`.
///
/// # Safety
/// The handles are valid.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_snapshot_new(
    builder: *mut slb_builder,
    before: *const slb_snapshot,
    out: *mut *mut slb_snapshot,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        unsafe {
            put(out, core::ptr::null_mut())?;
            let (builder, before) = (Builder::of(builder)?, previous(before)?);
            let snapshot = builder.with_spec(|spec| build_allocated(spec, before))??;
            put(out, snapshot)?;
        }
        Ok(0)
    })
}

/// Frees a snapshot. The caller owns its own memory again; memory of the library is released.
/// Returns `SLB_ERROR_IN_USE` while a mux, host agent or proxy uses it. NULL is no error.
///
/// # Safety
/// `snapshot` is a snapshot, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_snapshot_free(snapshot: *mut slb_snapshot) -> c_int {
    guard(|| {
        if snapshot.is_null() {
            return Ok(0);
        }
        // SAFETY: guaranteed by the caller.
        let used = unsafe { handle(snapshot) }?.users.load(Ordering::Acquire);
        if used != 0 {
            return Err(SLB_ERROR_IN_USE);
        }
        let place: *mut SnapshotHandle = snapshot.cast();
        // SAFETY: the handle is valid and not used elsewhere. Its kind is read again only to detect
        // that the handle was freed.
        unsafe {
            let allocated = (*place).allocated;
            (*place).kind = Kind::FREED;
            core::ptr::drop_in_place(&raw mut (*place).snapshot);
            deallocate(place.cast(), allocation(allocated));
        }
        Ok(0)
    })
}

/// Returns the generation of a snapshot: one more than that of its predecessor; 0 if the argument
/// is no snapshot.
///
/// # Safety
/// `snapshot` is a snapshot.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_snapshot_generation(snapshot: *const slb_snapshot) -> u64 {
    // SAFETY: guaranteed by the caller.
    unsafe { handle(snapshot) }.map_or(0, |handle| handle.snapshot.generation())
}

/// Returns the number of backends of a snapshot, over all pools. Their indexes count from 0, pool
/// by pool in the order of the configuration.
///
/// # Safety
/// `snapshot` is a snapshot.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_snapshot_backends(snapshot: *const slb_snapshot) -> usize {
    // SAFETY: guaranteed by the caller.
    unsafe { handle(snapshot) }.map_or(0, |handle| handle.snapshot.backends().len())
}
