//! The mux.

use core::ffi::{c_int, c_void};

#[cfg(feature = "std")]
use slb_core::counters::CounterMemory;
use slb_core::mem::Memory;
use slb_core::state::{Age, Cursor, Exported, Imported, StateError};
use slb_core::{Instant, Key, Mux};

use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::frame::{slb_frame, slb_observer, slb_verdict};
use crate::handle::{self, Kind, Role};
use crate::options::slb_mux_options;
use crate::snapshot::{Shared, slb_snapshot};
use crate::state::{self, slb_exported, slb_imported};
use crate::stats::{slb_backend_stats, slb_rule_stats, slb_stats};

/// A mux, which sends packets for VIPs to the hosts of their backends, in VXLAN.
#[derive(Debug)]
pub struct slb_mux {
    _opaque: (),
}

pub(crate) type Inner = Mux<'static, Shared>;

impl Role for Inner {
    const KIND: Kind = Kind::MUX;
    type Options = slb_mux_options;

    fn key(options: &slb_mux_options) -> Key {
        Key::new(options.key)
    }

    fn build(
        snapshot: Shared,
        options: &slb_mux_options,
        memory: &mut impl Memory<'static>,
    ) -> Result<Self, Error> {
        let mux = Mux::build(snapshot, options.flows, Key::new(options.key), memory)?
            .with_options(options.options());
        let mux = match options.source_limit(memory).ok_or(SLB_ERROR_SHORT)? {
            Some(limit) => mux.with_source_limit(limit),
            None => mux,
        };
        Ok(
            match options.fragment_room(memory).ok_or(SLB_ERROR_SHORT)? {
                Some(room) => mux.with_fragment_room(room),
                None => mux,
            },
        )
    }

    fn install(&mut self, snapshot: Shared) -> Result<Shared, Error> {
        Ok(Mux::install(self, snapshot)?)
    }

    fn export(&self, from: Cursor, into: &mut [u8]) -> Exported {
        Mux::export(self, from, into)
    }

    fn import(&mut self, now: Instant, age: Age, records: &[u8]) -> Result<Imported, StateError> {
        Mux::import(self, now, age, records)
    }

    fn change_options(&mut self, options: &Self::Options) {
        self.set_options(options.options());
    }

    #[cfg(feature = "std")]
    fn make_room_for_counters(&mut self, snapshot: &Shared) {
        if !self.has_counters_for(snapshot) {
            self.replace_counters(CounterMemory::new(snapshot));
        }
    }
}

/// Returns the bytes of memory that a mux needs, or 0 if an argument is bad.
///
/// # Safety
/// `snapshot` is a snapshot.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_size(
    snapshot: *const slb_snapshot,
    options: *const slb_mux_options,
) -> usize {
    let mut bytes = 0;
    guard(|| {
        // SAFETY: guaranteed by the caller.
        bytes = unsafe { handle::size::<Inner>(snapshot, options) }?;
        Ok(0)
    });
    bytes
}

/// Makes a mux in `memory`, which is aligned to 64 bytes and has `length` bytes; `slb_mux_size`
/// returns the number needed. The mux owns the memory until `slb_mux_free`, and uses the snapshot
/// until another is installed or the mux is freed.
///
/// # Safety
/// `snapshot` is a snapshot, and `memory` is the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_init(
    memory: *mut c_void,
    length: usize,
    snapshot: *const slb_snapshot,
    options: *const slb_mux_options,
    out: *mut *mut slb_mux,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::init::<Inner, _>(memory, (length, 0), snapshot, options, out) })
}

/// Makes a mux in memory that the library allocates. Otherwise like `slb_mux_init`.
///
/// # Safety
/// `snapshot` is a snapshot.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_new(
    snapshot: *const slb_snapshot,
    options: *const slb_mux_options,
    out: *mut *mut slb_mux,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::new::<Inner, _>(snapshot, options, out) })
}

/// Frees a mux. The caller owns its own memory again; memory of the library is released. NULL is no
/// error.
///
/// # Safety
/// `mux` is a mux, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_free(mux: *mut slb_mux) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::free::<Inner, _>(mux) })
}

/// Processes `count` frames: rewrites those to be sent in place, and writes the verdict into each;
/// also into `verdicts`, an array of as many elements, unless it is NULL. `now` is in nanoseconds
/// from any origin, and should not run backwards. Pass frames in bursts of `SLB_BURST`.
///
/// Returns `count`. On `SLB_ERROR_FRAME` no frame was touched.
///
/// # Safety
/// `mux` is a mux, and `frames` and `verdicts` have `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_process(
    mux: *mut slb_mux,
    now: u64,
    frames: *mut slb_frame,
    count: usize,
    verdicts: *mut slb_verdict,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::process::<Inner, _>(mux, now, frames, count, verdicts) })
}

/// Like `slb_mux_process`, and calls `observer` with `context` for each step of each frame. This is
/// for single packets: formatting the text is slow.
///
/// # Safety
/// `mux` is a mux, `frames` has `count` elements, and `observer` can be called with `context`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_process_observed(
    mux: *mut slb_mux,
    now: u64,
    frames: *mut slb_frame,
    count: usize,
    observer: slb_observer,
    context: *mut c_void,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe {
        handle::process_observed::<Inner, _>(mux, now, frames, count, observer, context)
    })
}

/// Does the work that no packet triggers: expires flows, and releases fragments that waited for
/// their first one. Call it about 20 times a second, and after each burst if fragments may wait.
/// `spare` are `count` frames, whose content is lost, of which up to 64 become those fragments,
/// each with its verdict; a buffer of 2112 bytes holds any. `spare` may be NULL with a count of 0,
/// but then no fragment is released.
///
/// Returns the number of frames in `spare` to send: those with a length.
///
/// # Safety
/// `mux` is a mux, and `spare` has `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_advance(
    mux: *mut slb_mux,
    now: u64,
    spare: *mut slb_frame,
    count: usize,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::advance::<Inner, _>(mux, now, spare, count) })
}

/// Installs another snapshot, built with the present one as its predecessor. If `before` is not
/// NULL, it receives the old snapshot, which can be freed unless another role uses it. Returns
/// `SLB_ERROR_LINEAGE` if the snapshot was not built so, and keeps the present one;
/// `SLB_ERROR_ROLE` if the snapshot is a proxy's.
///
/// # Safety
/// Both handles are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_install(
    mux: *mut slb_mux,
    snapshot: *const slb_snapshot,
    before: *mut *mut slb_snapshot,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::install::<Inner, _>(mux, snapshot, before) })
}

/// Changes the options. A limit with the same rate keeps its present level. `flows`,
/// `flows_per_source`, `waiting_fragments` and the key keep their initial values.
///
/// # Safety
/// `mux` is a mux, and `options` points to options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_set_options(
    mux: *mut slb_mux,
    options: *const slb_mux_options,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::set_options::<Inner, _>(mux, options) })
}

/// Copies the mux's counters since its creation to `out`.
///
/// # Safety
/// `mux` is a mux.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_stats(mux: *mut slb_mux, out: *mut slb_stats) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::stats::<Inner, _>(mux, out) })
}

/// Copies the counters of a rule, by its index in the configuration.
///
/// # Safety
/// `mux` is a mux.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_rule_stats(
    mux: *mut slb_mux,
    rule: usize,
    out: *mut slb_rule_stats,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::rule_stats::<Inner, _>(mux, rule, out) })
}

/// Copies the counters of a backend, by its index among those of all pools.
///
/// # Safety
/// `mux` is a mux.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_backend_stats(
    mux: *mut slb_mux,
    backend: usize,
    out: *mut slb_backend_stats,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::backend_stats::<Inner, _>(mux, backend, out) })
}

/// Writes pinned flows as records into `into`, and the position for the next call into `out`:
/// `from` is 0 at first, then `next` of the previous call, for as long as `more` is set. Frames may
/// be processed between two calls. A call looks at `SLB_EXPORT_STEP` slots at most, and writes
/// nothing if `length` is below `SLB_RECORD_MOST`. Times are relative to the last call of
/// `_process` or `_advance`.
///
/// Returns the number of records written.
///
/// # Safety
/// `mux` is a mux, and `into` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_export(
    mux: *mut slb_mux,
    from: u64,
    into: *mut u8,
    length: usize,
    out: *mut slb_exported,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { state::export::<Inner, _>(mux, from, (into, length), out) })
}

/// Takes over flows from records that were exported `elapsed` nanoseconds ago, by any process and
/// with any snapshot: records identify backends by the pool's name, the backend's name and its
/// address. Records of backends that the present snapshot no longer has are refused, and counted in
/// `out`. `is_stale` is 1 if packets were processed after the export, else 0. Existing flows do not
/// change. Returns `SLB_ERROR_RECORDS` if the bytes are not whole records.
///
/// Returns the number of records taken over.
///
/// # Safety
/// `mux` is a mux, and `records` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_import(
    mux: *mut slb_mux,
    now: u64,
    elapsed: u64,
    is_stale: u8,
    records: *const u8,
    length: usize,
    out: *mut slb_imported,
) -> c_int {
    let (age, records) = ((elapsed, is_stale), (records, length));
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { state::import::<Inner, _>(mux, now, age, records, None, out) })
}
