//! Handles of muxes, hosts and proxies: their common functions.

use core::ffi::c_void;
use core::fmt::Write as _;
use core::mem::MaybeUninit;

use slb_core::mem::{Arena, Counter, Line, Memory};
use slb_core::observe::Step;
use slb_core::state::{Age, Cursor, Exported, Imported, StateError};
use slb_core::steer::Share;
use slb_core::{Burst, Dataplane, Frame, Instant, Key};

use crate::builder::Cut;
use crate::error::Error;
use crate::error::slb_error::*;
use crate::frame::{frames, slb_frame, slb_observer, slb_verdict};
use crate::memory::{array, exclusive, lines, overlap, put, shared};
use crate::snapshot::{Shared, slb_snapshot};
use crate::stats::{slb_backend_stats, slb_rule_stats, slb_stats};

/// The kind of a handle, to detect handles of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(u64);

impl Kind {
    pub(crate) const FREED: Self = Self(0);
    pub(crate) const SNAPSHOT: Self = Self(0x736c_625f_736e_6170);
    pub(crate) const BUILDER: Self = Self(0x736c_625f_6275_696c);
    pub(crate) const MUX: Self = Self(0x736c_625f_6d75_785f);
    pub(crate) const HOST: Self = Self(0x736c_625f_686f_7374);
    pub(crate) const PROXY: Self = Self(0x736c_625f_7072_6f78);
    #[cfg(feature = "std")]
    pub(crate) const CONFIG: Self = Self(0x736c_625f_636f_6e66);
}

/// A role that can stand behind a handle.
pub(crate) trait Role: Dataplane<'static> + Sized {
    const KIND: Kind;
    type Options: Copy;

    /// The key of the role to be made.
    fn key(options: &Self::Options) -> Key;

    fn build(
        snapshot: Shared,
        options: &Self::Options,
        memory: &mut impl Memory<'static>,
    ) -> Result<Self, Error>;

    fn install(&mut self, snapshot: Shared) -> Result<Shared, Error>;

    fn export(&self, from: Cursor, into: &mut [u8]) -> Exported;

    fn import(&mut self, now: Instant, age: Age, records: &[u8]) -> Result<Imported, StateError>;

    /// Imports one worker's share of records; a mux imports all of them, since its workers share no
    /// state.
    fn import_share(
        &mut self,
        now: Instant,
        age: Age,
        records: &[u8],
        _: Share<'_>,
    ) -> Result<Imported, StateError> {
        self.import(now, age, records)
    }

    /// Changes the options that do not affect memory.
    fn change_options(&mut self, options: &Self::Options);

    /// Moves the counters to memory that the library allocates, if the snapshot has more rules or
    /// backends than fit the present memory.
    #[cfg(feature = "std")]
    fn make_room_for_counters(&mut self, snapshot: &Shared);
}

#[repr(C)]
struct Handle<R> {
    kind: Kind,
    /// The number of allocated bytes; zero if the memory is the caller's.
    allocated: usize,
    role: R,
}

impl<R> Handle<R> {
    const LINES: usize = size_of::<Self>().div_ceil(size_of::<Line>());
}

/// The role behind a handle.
///
/// # Safety
/// `handle` is NULL, misaligned, or a handle of any kind that is not used elsewhere.
pub(crate) unsafe fn role<'a, R: Role, C>(handle: *mut C) -> Result<&'a mut R, Error> {
    // SAFETY: guaranteed by the caller; every handle begins with its kind.
    let kind: &Kind = unsafe { shared(handle.cast_const().cast()) }?;
    if *kind != R::KIND {
        return Err(SLB_ERROR_HANDLE);
    }
    let handle: *mut Handle<R> = handle.cast();
    // SAFETY: the kind identifies the handle's type.
    Ok(&mut unsafe { exclusive(handle) }?.role)
}

/// Returns the bytes that a role takes; an error if an argument is invalid.
///
/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
pub(crate) unsafe fn size<R: Role>(
    snapshot: *const slb_snapshot,
    options: *const R::Options,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    let (snapshot, options) = unsafe { (Shared::of(snapshot)?, shared(options)?) };
    let mut counter = Counter::default();
    R::build(snapshot, options, &mut counter).map_err(|error| match error {
        SLB_ERROR_SHORT => SLB_ERROR_RANGE, // more bytes than `usize` can express
        error => error,
    })?;
    let lines = counter.lines().checked_add(Handle::<R>::LINES);
    let bytes = lines.and_then(|lines| lines.checked_mul(size_of::<Line>()));
    bytes.ok_or(SLB_ERROR_RANGE)
}

/// Makes a role in memory.
///
/// # Safety
/// The pointers are NULL, misaligned, or what they say; the memory is the caller's.
pub(crate) unsafe fn init<R: Role, C>(
    memory: *mut c_void,
    (length, allocated): (usize, usize),
    snapshot: *const slb_snapshot,
    options: *const R::Options,
    out: *mut *mut C,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    let (snapshot, options, memory) = unsafe {
        put(out, core::ptr::null_mut())?;
        (
            Shared::of(snapshot)?,
            shared(options)?,
            lines(memory, length)?,
        )
    };
    if R::key(options).is_zero() {
        return Err(SLB_ERROR_KEY);
    }
    let (place, rest) = memory
        .split_at_mut_checked(Handle::<R>::LINES)
        .ok_or(SLB_ERROR_SHORT)?;
    let role = R::build(snapshot, options, &mut Arena::new(rest))?;
    let place: *mut MaybeUninit<Handle<R>> = place.as_mut_ptr().cast();
    // SAFETY: `place` is aligned, has room for a handle, and is not used elsewhere.
    let handle = unsafe { &mut *place }.write(Handle {
        kind: R::KIND,
        allocated,
        role,
    });
    // SAFETY: `out` was checked before.
    unsafe { put(out, core::ptr::from_mut(handle).cast()) }?;
    Ok(0)
}

/// Makes a role in memory that the library allocates.
///
/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
#[cfg(feature = "std")]
pub(crate) unsafe fn new<R: Role, C>(
    snapshot: *const slb_snapshot,
    options: *const R::Options,
    out: *mut *mut C,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    unsafe {
        put(out, core::ptr::null_mut())?;
        let bytes = size::<R>(snapshot, options)?;
        let memory = allocate(bytes)?;
        init::<R, C>(memory, (bytes, bytes), snapshot, options, out).inspect_err(|_| {
            deallocate(memory, allocation(bytes));
        })
    }
}

/// Ends a role.
///
/// # Safety
/// `handle` is NULL, misaligned, or a handle that is not used elsewhere.
pub(crate) unsafe fn free<R: Role, C>(handle: *mut C) -> Result<usize, Error> {
    if handle.is_null() {
        return Ok(0);
    }
    // SAFETY: guaranteed by the caller.
    unsafe { role::<R, C>(handle) }?;
    let place: *mut Handle<R> = handle.cast();
    // SAFETY: the handle is valid. Its kind is read again only to detect that the handle was freed.
    unsafe {
        let allocated = (*place).allocated;
        (*place).kind = Kind::FREED;
        core::ptr::drop_in_place(&raw mut (*place).role);
        deallocate(place.cast(), allocation(allocated));
    }
    Ok(0)
}

/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
pub(crate) unsafe fn process<R: Role, C>(
    handle: *mut C,
    now: u64,
    given: *mut slb_frame,
    count: usize,
    verdicts: *mut slb_verdict,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    let role = unsafe { role::<R, C>(handle) }?;
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: guaranteed by the caller.
    let given = unsafe { array(given, count) }?;
    if verdicts.is_null() {
        role.process(Instant::from_nanos(now), frames(given)?);
        return Ok(count);
    }
    if overlap((given.as_ptr(), count), (verdicts.cast_const(), count)) {
        return Err(SLB_ERROR_OVERLAP);
    }
    // SAFETY: guaranteed by the caller.
    let verdicts = unsafe { array(verdicts, count) }?;
    role.process(Instant::from_nanos(now), frames(given)?);
    for (verdict, frame) in verdicts.iter_mut().zip(given) {
        *verdict = slb_verdict {
            action: frame.action,
            reason: frame.reason,
            port: frame.port,
        };
    }
    Ok(count)
}

/// # Safety
/// The pointers are NULL, misaligned, or what they say; the observer may be called with the context.
pub(crate) unsafe fn process_observed<R: Role, C>(
    handle: *mut C,
    now: u64,
    given: *mut slb_frame,
    count: usize,
    observer: slb_observer,
    context: *mut c_void,
) -> Result<usize, Error> {
    let call = observer.ok_or(SLB_ERROR_NULL)?;
    // SAFETY: guaranteed by the caller.
    let role = unsafe { role::<R, C>(handle) }?;
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: guaranteed by the caller.
    let given = unsafe { array(given, count) }?;
    let mut seen = |frame: usize, step: Step| {
        let (mut label, mut text) = ([0_u8; 16], [0_u8; 256]);
        let mut cut = Cut::new(&mut label);
        let _ = cut.write_str(step.label());
        cut.end();
        let mut cut = Cut::new(&mut text);
        let _ = write!(cut, "{step}");
        cut.end();
        let (label, text): (*const u8, *const u8) = (label.as_ptr(), text.as_ptr());
        // SAFETY: the caller promises that it can be called; both texts end with a zero.
        unsafe { call(context, frame, label.cast(), text.cast()) };
    };
    role.process_observed(Instant::from_nanos(now), frames(given)?, &mut seen);
    Ok(count)
}

/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
pub(crate) unsafe fn set_options<R: Role, C>(
    handle: *mut C,
    options: *const R::Options,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    let (role, options) = unsafe { (role::<R, C>(handle)?, shared(options)?) };
    role.change_options(options);
    Ok(0)
}

/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
pub(crate) unsafe fn advance<R: Role, C>(
    handle: *mut C,
    now: u64,
    spare: *mut slb_frame,
    count: usize,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    let role = unsafe { role::<R, C>(handle) }?;
    let mut none = [];
    let given = match count {
        0 => &mut none[..],
        // SAFETY: guaranteed by the caller.
        _ => unsafe { array(spare, count) }?,
    };
    let given = frames(given)?;
    let mut burst = Burst::new();
    for frame in given.iter_mut().take(slb_core::BURST) {
        frame.truncate(0);
        frame.set_verdict(slb_core::Verdict::Pass);
        let _ = burst.push(core::mem::replace(frame, Frame::EMPTY));
    }
    role.advance(Instant::from_nanos(now), &mut burst);
    let mut made = 0;
    for (place, frame) in given.iter_mut().zip(burst.drain()) {
        made += usize::from(!frame.is_empty());
        *place = frame;
    }
    Ok(made)
}

/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
pub(crate) unsafe fn install<R: Role, C>(
    handle: *mut C,
    snapshot: *const slb_snapshot,
    before: *mut *mut slb_snapshot,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    let (role, snapshot) = unsafe { (role::<R, C>(handle)?, Shared::of(snapshot)?) };
    // SAFETY: `role` was a handle of this kind just now.
    #[cfg(feature = "std")]
    if unsafe { (*handle.cast::<Handle<R>>()).allocated } != 0 {
        role.make_room_for_counters(&snapshot);
    }
    if !before.is_null() && !before.is_aligned() {
        return Err(SLB_ERROR_ALIGNMENT);
    }
    let old = role.install(snapshot)?;
    if !before.is_null() {
        // SAFETY: it is neither NULL nor misaligned, and the caller promises the rest.
        unsafe { put(before, old.as_c()) }?;
    }
    Ok(0)
}

/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
pub(crate) unsafe fn stats<R: Role, C>(
    handle: *mut C,
    out: *mut slb_stats,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let stats = role::<R, C>(handle)?.stats();
        put(out, slb_stats::of(&stats))?;
    }
    Ok(0)
}

/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
pub(crate) unsafe fn rule_stats<R: Role, C>(
    handle: *mut C,
    rule: usize,
    out: *mut slb_rule_stats,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let counters = role::<R, C>(handle)?.rule_counters(rule);
        put(out, slb_rule_stats::of(&counters.ok_or(SLB_ERROR_RANGE)?))?;
    }
    Ok(0)
}

/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
pub(crate) unsafe fn backend_stats<R: Role, C>(
    handle: *mut C,
    backend: usize,
    out: *mut slb_backend_stats,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let role = role::<R, C>(handle)?;
        let index = u32::try_from(backend).map_err(|_| SLB_ERROR_RANGE)?;
        let compiled = role.snapshot().backend(index).ok_or(SLB_ERROR_RANGE)?;
        let counters = role.backend_counters(compiled.id());
        put(out, slb_backend_stats::of(&counters.unwrap_or_default()))?;
    }
    Ok(0)
}

/// The layout of memory that the library allocated.
#[cfg(feature = "std")]
pub(crate) type Layout = Option<std::alloc::Layout>;
#[cfg(not(feature = "std"))]
pub(crate) type Layout = ();

/// Returns the layout of an allocation of `bytes` bytes; `None` for zero, if nothing was allocated.
#[cfg(feature = "std")]
pub(crate) fn allocation(bytes: usize) -> Layout {
    let layout = std::alloc::Layout::from_size_align(bytes, align_of::<Line>()).ok();
    layout.filter(|layout| layout.size() != 0)
}
#[cfg(not(feature = "std"))]
pub(crate) fn allocation(_: usize) -> Layout {}

#[cfg(feature = "std")]
pub(crate) fn allocate(bytes: usize) -> Result<*mut c_void, Error> {
    let layout = allocation(bytes).ok_or(SLB_ERROR_RANGE)?;
    // SAFETY: its size is not zero.
    let memory = unsafe { std::alloc::alloc(layout) };
    if memory.is_null() {
        Err(SLB_ERROR_MEMORY)
    } else {
        Ok(memory.cast())
    }
}

/// Releases memory that was allocated.
///
/// # Safety
/// `memory` was allocated with this layout, or the layout is empty.
#[cfg(feature = "std")]
pub(crate) unsafe fn deallocate(memory: *mut c_void, layout: Layout) {
    if let Some(layout) = layout {
        // SAFETY: guaranteed by the caller.
        unsafe { std::alloc::dealloc(memory.cast(), layout) };
    }
}
#[cfg(not(feature = "std"))]
pub(crate) unsafe fn deallocate(_: *mut c_void, (): Layout) {}
