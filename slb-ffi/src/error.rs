//! Error codes, and the conversion of internal failures to them.

use core::ffi::{CStr, c_char, c_int};

use slb_core::snapshot::{InstallError, Rejected, RoleError};
use slb_core::spec::SpecError;
use slb_core::state::StateError;

/// The result of a call: 0, or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum slb_error {
    /// Success.
    SLB_OK = 0,
    /// A pointer must not be NULL.
    SLB_ERROR_NULL = -1,
    /// A pointer is misaligned for its type, or memory for a handle is not aligned to 64 bytes.
    SLB_ERROR_ALIGNMENT = -2,
    /// The given memory or array is too short.
    SLB_ERROR_SHORT = -3,
    /// Two arguments overlap.
    SLB_ERROR_OVERLAP = -4,
    /// A frame's offset and length exceed its buffer.
    SLB_ERROR_FRAME = -5,
    /// A number is out of range, or a name is not UTF-8.
    SLB_ERROR_RANGE = -6,
    /// The pointer is no handle of this kind, or the handle was freed.
    SLB_ERROR_HANDLE = -7,
    /// The handle is in use: a mux, host or proxy uses the snapshot.
    SLB_ERROR_IN_USE = -8,
    /// The configuration contradicts itself.
    SLB_ERROR_CONFIGURATION = -9,
    /// The builder has no room for another item.
    SLB_ERROR_FULL = -10,
    /// The allocator has no memory.
    SLB_ERROR_MEMORY = -11,
    /// An internal fault of the library. The handle must not be used any more.
    SLB_ERROR_INTERNAL = -12,
    /// The key of a mux, host or proxy is all zeros: it has to be random and secret.
    SLB_ERROR_KEY = -13,
    /// The snapshot is for a proxy and the handle is a mux or host, or vice versa.
    SLB_ERROR_ROLE = -14,
    /// The snapshot was not built from the installed one: flows would move.
    SLB_ERROR_LINEAGE = -15,
    /// The bytes are no records, or are damaged; nothing was taken over.
    SLB_ERROR_RECORDS = -16,
}

use slb_error::*;

/// The error type inside the library.
pub(crate) type Error = slb_error;

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        match error {
            SpecError::Memory { .. } => SLB_ERROR_SHORT,
            SpecError::TooMany { .. } => SLB_ERROR_RANGE,
            _ => SLB_ERROR_CONFIGURATION,
        }
    }
}

impl From<RoleError> for Error {
    fn from(error: RoleError) -> Self {
        match error {
            RoleError::OtherRole => SLB_ERROR_ROLE,
            _ => SLB_ERROR_SHORT,
        }
    }
}

impl<S> From<Rejected<S>> for Error {
    fn from(rejected: Rejected<S>) -> Self {
        match rejected.error {
            InstallError::OtherRole => SLB_ERROR_ROLE,
            _ => SLB_ERROR_LINEAGE,
        }
    }
}

impl From<StateError> for Error {
    fn from(_: StateError) -> Self {
        SLB_ERROR_RECORDS
    }
}

/// Returns the meaning of an error in English. The text is never NULL and must not be freed.
#[unsafe(no_mangle)]
pub extern "C" fn slb_strerror(error: c_int) -> *const c_char {
    message(error).as_ptr()
}

pub(crate) const fn message(error: c_int) -> &'static CStr {
    match error {
        0.. => c"no error",
        -1 => c"a pointer is NULL",
        -2 => c"a pointer is not aligned",
        -3 => c"memory or an array is too short",
        -4 => c"two arguments overlap",
        -5 => c"a frame's offset and length exceed its buffer",
        -6 => c"a number is out of range, or a name is not UTF-8",
        -7 => c"not a handle of this kind, or it was freed",
        -8 => c"the handle is in use",
        -9 => c"the configuration contradicts itself",
        -10 => c"the builder is full",
        -11 => c"the allocator has no memory",
        -12 => c"a fault of the library's own",
        -13 => c"the key is all zeros: it has to be 128 random, secret bits",
        -14 => c"the snapshot is of another role: a proxy's has ports of a proxy, others have none",
        -15 => {
            c"the snapshot does not follow the one in place: build it with that one as `previous`"
        }
        -16 => c"the bytes are not whole records, or are damaged",
        _ => c"unknown error",
    }
}

/// Returns the library's version, such as "0.1.0". The text is never NULL and must not be freed.
#[unsafe(no_mangle)]
pub extern "C" fn slb_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Runs the body of a function, and converts its result to a number.
pub(crate) fn guard(run: impl FnOnce() -> Result<usize, Error>) -> c_int {
    #[cfg(feature = "std")]
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .unwrap_or(Err(SLB_ERROR_INTERNAL));
    #[cfg(not(feature = "std"))]
    let result = run();
    match result {
        Ok(count) => c_int::try_from(count).unwrap_or(c_int::MAX),
        Err(error) => error as c_int,
    }
}
