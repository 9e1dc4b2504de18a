//! The proxy.

use core::ffi::{c_int, c_void};

#[cfg(feature = "std")]
use slb_core::counters::CounterMemory;
use slb_core::mem::Memory;
use slb_core::state::{Age, Cursor, Exported, Imported, StateError};
use slb_core::steer::Share;
use slb_core::{Instant, Key, Proxy};

use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::frame::{slb_frame, slb_observer, slb_verdict};
use crate::handle::{self, Kind, Role};
use crate::options::slb_nat_options;
use crate::snapshot::{Shared, slb_snapshot};
use crate::state::{self, slb_exported, slb_imported};
use crate::stats::{slb_backend_stats, slb_rule_stats, slb_stats};
use crate::steer::slb_steering;

/// A proxy, which translates packets between clients on one side and backends on the other.
#[derive(Debug)]
pub struct slb_proxy {
    _opaque: (),
}

pub(crate) type Inner = Proxy<'static, Shared>;

impl Role for Inner {
    const KIND: Kind = Kind::PROXY;
    type Options = slb_nat_options;

    fn key(options: &slb_nat_options) -> Key {
        Key::new(options.key)
    }

    fn build(
        snapshot: Shared,
        options: &slb_nat_options,
        memory: &mut impl Memory<'static>,
    ) -> Result<Self, Error> {
        let proxy = Proxy::build(snapshot, options.connections, Key::new(options.key), memory)?
            .with_options(options.options());
        let proxy = match options.source_limit(memory).ok_or(SLB_ERROR_SHORT)? {
            Some(limit) => proxy.with_source_limit(limit),
            None => proxy,
        };
        Ok(
            match options.fragment_room(memory).ok_or(SLB_ERROR_SHORT)? {
                Some(room) => proxy.with_fragment_room(room),
                None => proxy,
            },
        )
    }

    fn install(&mut self, snapshot: Shared) -> Result<Shared, Error> {
        Ok(Proxy::install(self, snapshot)?)
    }

    fn export(&self, from: Cursor, into: &mut [u8]) -> Exported {
        Proxy::export(self, from, into)
    }

    fn import(&mut self, now: Instant, age: Age, records: &[u8]) -> Result<Imported, StateError> {
        Proxy::import(self, now, age, records)
    }

    fn import_share(
        &mut self,
        now: Instant,
        age: Age,
        records: &[u8],
        share: Share<'_>,
    ) -> Result<Imported, StateError> {
        Proxy::import_share(self, now, age, records, share)
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

/// Returns the bytes of memory that a proxy needs, or 0 if an argument is bad.
///
/// # Safety
/// `snapshot` is a snapshot.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_size(
    snapshot: *const slb_snapshot,
    options: *const slb_nat_options,
) -> usize {
    let mut bytes = 0;
    guard(|| {
        // SAFETY: guaranteed by the caller.
        bytes = unsafe { handle::size::<Inner>(snapshot, options) }?;
        Ok(0)
    });
    bytes
}

/// Makes a proxy in `memory`, which is aligned to 64 bytes and has `length` bytes; `slb_proxy_size`
/// returns the number needed. The proxy owns the memory until `slb_proxy_free`, and uses the
/// snapshot until another is installed or the proxy is freed.
///
/// # Safety
/// `snapshot` is a snapshot, and `memory` is the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_init(
    memory: *mut c_void,
    length: usize,
    snapshot: *const slb_snapshot,
    options: *const slb_nat_options,
    out: *mut *mut slb_proxy,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::init::<Inner, _>(memory, (length, 0), snapshot, options, out) })
}

/// Makes a proxy in memory that the library allocates. Otherwise like `slb_proxy_init`.
///
/// # Safety
/// `snapshot` is a snapshot.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_new(
    snapshot: *const slb_snapshot,
    options: *const slb_nat_options,
    out: *mut *mut slb_proxy,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::new::<Inner, _>(snapshot, options, out) })
}

/// Frees a proxy. The caller owns its own memory again; memory of the library is released. NULL is
/// no error.
///
/// # Safety
/// `proxy` is a proxy, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_free(proxy: *mut slb_proxy) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::free::<Inner, _>(proxy) })
}

/// Processes `count` frames, like `slb_mux_process`.
///
/// # Safety
/// `proxy` is a proxy, and `frames` and `verdicts` have `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_process(
    proxy: *mut slb_proxy,
    now: u64,
    frames: *mut slb_frame,
    count: usize,
    verdicts: *mut slb_verdict,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::process::<Inner, _>(proxy, now, frames, count, verdicts) })
}

/// Like `slb_proxy_process`, and calls `observer` with `context` for each step of each frame. This
/// is for single packets: formatting the text is slow.
///
/// # Safety
/// `proxy` is a proxy, `frames` has `count` elements, and `observer` can be called with `context`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_process_observed(
    proxy: *mut slb_proxy,
    now: u64,
    frames: *mut slb_frame,
    count: usize,
    observer: slb_observer,
    context: *mut c_void,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe {
        handle::process_observed::<Inner, _>(proxy, now, frames, count, observer, context)
    })
}

/// Ends expired connections, and writes RSTs for both ends into `spare`: `count` frames with an
/// empty buffer of 64 bytes or more each, of which up to 64 are used. Call this about 20 times a
/// second, and before or after each burst.
///
/// Returns the number of frames in `spare` to send: those with a length.
///
/// # Safety
/// `proxy` is a proxy, and `spare` has `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_advance(
    proxy: *mut slb_proxy,
    now: u64,
    spare: *mut slb_frame,
    count: usize,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::advance::<Inner, _>(proxy, now, spare, count) })
}

/// Installs another snapshot, built with the present one as its predecessor. If `before` is not
/// NULL, it receives the old snapshot, which can be freed unless another role uses it. Returns
/// `SLB_ERROR_LINEAGE` if the snapshot was not built so, and keeps the present one;
/// `SLB_ERROR_ROLE` if the snapshot is not a proxy's.
///
/// # Safety
/// Both handles are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_install(
    proxy: *mut slb_proxy,
    snapshot: *const slb_snapshot,
    before: *mut *mut slb_snapshot,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::install::<Inner, _>(proxy, snapshot, before) })
}

/// Changes the options. A limit with the same rate keeps its present level. `connections`,
/// `flows_per_source`, `waiting_fragments` and the key keep their initial values.
///
/// # Safety
/// `proxy` is a proxy, and `options` points to options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_set_options(
    proxy: *mut slb_proxy,
    options: *const slb_nat_options,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::set_options::<Inner, _>(proxy, options) })
}

/// Copies the proxy's counters since its creation to `out`.
///
/// # Safety
/// `proxy` is a proxy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_stats(proxy: *mut slb_proxy, out: *mut slb_stats) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::stats::<Inner, _>(proxy, out) })
}

/// Copies the counters of a rule, by its index in the configuration.
///
/// # Safety
/// `proxy` is a proxy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_rule_stats(
    proxy: *mut slb_proxy,
    rule: usize,
    out: *mut slb_rule_stats,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::rule_stats::<Inner, _>(proxy, rule, out) })
}

/// Copies the counters of a backend, by its index among those of all pools.
///
/// # Safety
/// `proxy` is a proxy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_backend_stats(
    proxy: *mut slb_proxy,
    backend: usize,
    out: *mut slb_backend_stats,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::backend_stats::<Inner, _>(proxy, backend, out) })
}

/// Writes sessions as records into `into`, like `slb_mux_export`.
///
/// # Safety
/// `proxy` is a proxy, and `into` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_export(
    proxy: *mut slb_proxy,
    from: u64,
    into: *mut u8,
    length: usize,
    out: *mut slb_exported,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { state::export::<Inner, _>(proxy, from, (into, length), out) })
}

/// Takes over sessions from records, like `slb_mux_import`.
///
/// # Safety
/// `proxy` is a proxy, and `records` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_import(
    proxy: *mut slb_proxy,
    now: u64,
    elapsed: u64,
    is_stale: u8,
    records: *const u8,
    length: usize,
    out: *mut slb_imported,
) -> c_int {
    let (age, records) = ((elapsed, is_stale), (records, length));
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { state::import::<Inner, _>(proxy, now, age, records, None, out) })
}

/// Takes over one worker's share of the sessions in the records of all workers: see `slb_steer`. Worker 0 counts
/// unreadable records. Otherwise like `slb_proxy_import`.
///
/// # Safety
/// `proxy` is a proxy, and `records` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_import_share(
    proxy: *mut slb_proxy,
    now: u64,
    elapsed: u64,
    is_stale: u8,
    records: *const u8,
    length: usize,
    steering: *const slb_steering,
    out: *mut slb_imported,
) -> c_int {
    let (age, records) = ((elapsed, is_stale), (records, length));
    let steering = Some(steering);
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { state::import::<Inner, _>(proxy, now, age, records, steering, out) })
}

/// Makes a proxy that starts without state, or with a stale one, take up TCP sessions in the middle
/// by their clients' segments, if the rule's scheduler is Maglev, for as long as sessions of their
/// rule may be idle. `take_ups_per_second` of the options limits the rate.
///
/// # Safety
/// `proxy` is a proxy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_proxy_take_up(proxy: *mut slb_proxy, now: u64) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        unsafe { handle::role::<Inner, _>(proxy) }?.take_up(Instant::from_nanos(now));
        Ok(0)
    })
}
