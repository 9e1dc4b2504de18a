//! Export of connections and flows as records, and their import into another handle.

use core::ffi::c_char;
use core::time::Duration;

use slb_core::Instant;
use slb_core::state::{Age, Cursor, EXPORT_STEP, Exported, Imported, RECORD_MOST, Refusal};
use slb_core::steer::Share;

use crate::error::Error;
use crate::handle::{Role, role};
use crate::memory::{array, array_of, put, shared};
use crate::steer::slb_steering;

/// The length of the longest record in bytes. With less room, nothing is exported.
pub const SLB_RECORD_MOST: usize = 152;
/// The maximum number of table slots that one call of `_export` visits.
pub const SLB_EXPORT_STEP: usize = 256;
/// Length of `refused_for`, with room for further reasons, so that they do not change the layout.
pub const SLB_REFUSALS: usize = 16;

const _: () = assert!(SLB_RECORD_MOST == RECORD_MOST && SLB_EXPORT_STEP == EXPORT_STEP);
const _: () = assert!(Refusal::ALL.len() <= SLB_REFUSALS);

/// The result of one call of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct slb_exported {
    /// The number of bytes that were written.
    pub length: usize,
    /// The number of records that were written.
    pub records: usize,
    /// The value of `from` for the next call.
    pub next: u64,
    /// 1: there may be more, beginning at `next`; 0: everything was exported.
    pub more: u8,
}

/// Number of records taken over, and of those refused by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct slb_imported {
    /// Records that were taken over.
    pub taken: u64,
    /// Records that were refused.
    pub refused: u64,
    /// Number of refused records by reason: see `slb_refusal`.
    pub refused_for: [u64; SLB_REFUSALS],
}

impl slb_imported {
    fn of(imported: Imported) -> Self {
        let mut refused_for = [0; SLB_REFUSALS];
        for (place, why) in refused_for.iter_mut().zip(Refusal::ALL) {
            *place = imported.refused(why);
        }
        Self {
            taken: imported.taken,
            refused: imported.all_refused(),
            refused_for,
        }
    }
}

/// Returns the name of a reason for refusing records, by its index in `refused_for`, such as
/// "tuple_taken"; "unknown" for an index without a reason. The text is never NULL and must not be
/// freed.
#[unsafe(no_mangle)]
pub extern "C" fn slb_refusal(reason: u8) -> *const c_char {
    let text = match Refusal::ALL.get(usize::from(reason)) {
        Some(Refusal::OtherRole) => c"other_role",
        Some(Refusal::Newer) => c"newer",
        Some(Refusal::Malformed) => c"malformed",
        Some(Refusal::UnknownBackend) => c"unknown_backend",
        Some(Refusal::UnknownPort) => c"unknown_port",
        Some(Refusal::PortTaken) => c"port_taken",
        Some(Refusal::TupleTaken) => c"tuple_taken",
        Some(Refusal::Expired) => c"expired",
        Some(Refusal::TableFull) => c"table_full",
        Some(Refusal::Unfinished) => c"unfinished",
        _ => c"unknown",
    };
    text.as_ptr()
}

/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
pub(crate) unsafe fn export<R: Role, C>(
    handle: *mut C,
    from: u64,
    (into, length): (*mut u8, usize),
    out: *mut slb_exported,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    let (role, into) = unsafe { (role::<R, C>(handle)?, array(into, length)?) };
    let from = Cursor::from_value(from);
    let exported = role.export(from, into);
    // SAFETY: guaranteed by the caller.
    unsafe { put_exported(out, from, exported) }
}

/// Writes the result of an export.
///
/// # Safety
/// The pointer is NULL, misaligned, or what it says.
pub(crate) unsafe fn put_exported(
    out: *mut slb_exported,
    from: Cursor,
    exported: Exported,
) -> Result<usize, Error> {
    let Exported { len, records, next } = exported;
    let exported = slb_exported {
        length: len,
        records,
        next: next.unwrap_or(from).get(),
        more: next.is_some().into(),
    };
    // SAFETY: guaranteed by the caller.
    unsafe { put(out, exported) }?;
    Ok(records)
}

/// # Safety
/// Each pointer is NULL, misaligned, or points to as many elements as its count says.
pub(crate) unsafe fn import<R: Role, C>(
    handle: *mut C,
    now: u64,
    (elapsed, is_stale): (u64, u8),
    (records, length): (*const u8, usize),
    steering: Option<*const slb_steering>,
    out: *mut slb_imported,
) -> Result<usize, Error> {
    // SAFETY: guaranteed by the caller.
    let (role, records) = unsafe { (role::<R, C>(handle)?, array_of(records, length)?) };
    // SAFETY: guaranteed by the caller. The write comes first, to detect an invalid `out` before
    // any change.
    unsafe { put(out, slb_imported::default()) }?;
    let age = Age {
        elapsed: Duration::from_nanos(elapsed),
        is_stale: is_stale != 0,
    };
    let now = Instant::from_nanos(now);
    let imported = match steering {
        None => role.import(now, age, records)?,
        Some(steering) => {
            // SAFETY: guaranteed by the caller.
            let own = unsafe { shared(steering) }?;
            let share = Share {
                steering: &own.check()?,
                worker: own.own,
            };
            role.import_share(now, age, records, share)?
        }
    };
    // SAFETY: `out` was checked before.
    unsafe { put(out, slb_imported::of(imported)) }?;
    Ok(usize::try_from(imported.taken).unwrap_or(usize::MAX))
}
