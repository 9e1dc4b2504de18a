//! The host agent.

use core::ffi::{c_int, c_void};

#[cfg(feature = "std")]
use slb_core::counters::CounterMemory;
use slb_core::mem::Memory;
use slb_core::state::{Age, Cursor, Exported, Imported, StateError};
use slb_core::steer::Share;
use slb_core::{Host, Instant, Key};

use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::frame::{slb_frame, slb_observer, slb_verdict};
use crate::handle::{self, Kind, Role};
use crate::memory::array;
use crate::options::slb_nat_options;
use crate::snapshot::{Shared, slb_snapshot};
use crate::state::{self, slb_exported, slb_imported};
use crate::stats::{slb_backend_stats, slb_rule_stats, slb_stats};
use crate::steer::slb_steering;

/// A host agent, which translates packets between VIPs and the vms of one machine.
#[derive(Debug)]
pub struct slb_host {
    _opaque: (),
}

pub(crate) type Inner = Host<'static, Shared>;

impl Role for Inner {
    const KIND: Kind = Kind::HOST;
    type Options = slb_nat_options;

    fn key(options: &slb_nat_options) -> Key {
        Key::new(options.key)
    }

    fn build(
        snapshot: Shared,
        options: &slb_nat_options,
        memory: &mut impl Memory<'static>,
    ) -> Result<Self, Error> {
        let host = Host::build(snapshot, options.connections, Key::new(options.key), memory)?
            .with_options(options.options());
        let host = match options.source_limit(memory).ok_or(SLB_ERROR_SHORT)? {
            Some(limit) => host.with_source_limit(limit),
            None => host,
        };
        let host = match options.fragment_room(memory).ok_or(SLB_ERROR_SHORT)? {
            Some(room) => host.with_fragment_room(room),
            None => host,
        };
        Ok(match options.direct_flows(memory).ok_or(SLB_ERROR_SHORT)? {
            Some(flows) => host.with_direct_flows(flows),
            None => host,
        })
    }

    fn install(&mut self, snapshot: Shared) -> Result<Shared, Error> {
        Ok(Host::install(self, snapshot)?)
    }

    fn export(&self, from: Cursor, into: &mut [u8]) -> Exported {
        Host::export(self, from, into)
    }

    fn import(&mut self, now: Instant, age: Age, records: &[u8]) -> Result<Imported, StateError> {
        Host::import(self, now, age, records)
    }

    fn import_share(
        &mut self,
        now: Instant,
        age: Age,
        records: &[u8],
        share: Share<'_>,
    ) -> Result<Imported, StateError> {
        Host::import_share(self, now, age, records, share)
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

/// Returns the bytes of memory that a host agent needs, or 0 if an argument is bad.
///
/// # Safety
/// `snapshot` is a snapshot.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_size(
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

/// Makes a host agent in `memory`, which is aligned to 64 bytes and has `length` bytes; `slb_host_size` returns the
/// number needed. The host agent owns the memory until `slb_host_free`, and uses the snapshot until another is
/// installed or the host agent is freed.
///
/// # Safety
/// `snapshot` is a snapshot, and `memory` is the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_init(
    memory: *mut c_void,
    length: usize,
    snapshot: *const slb_snapshot,
    options: *const slb_nat_options,
    out: *mut *mut slb_host,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::init::<Inner, _>(memory, (length, 0), snapshot, options, out) })
}

/// Makes a host agent in memory that the library allocates. Otherwise like `slb_host_init`.
///
/// # Safety
/// `snapshot` is a snapshot.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_new(
    snapshot: *const slb_snapshot,
    options: *const slb_nat_options,
    out: *mut *mut slb_host,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::new::<Inner, _>(snapshot, options, out) })
}

/// Frees a host agent. The caller owns its own memory again; memory of the library is released.
/// NULL is no error.
///
/// # Safety
/// `host` is a host agent, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_free(host: *mut slb_host) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::free::<Inner, _>(host) })
}

/// Processes `count` frames, like `slb_mux_process`.
///
/// # Safety
/// `host` is a host agent, and `frames` and `verdicts` have `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_process(
    host: *mut slb_host,
    now: u64,
    frames: *mut slb_frame,
    count: usize,
    verdicts: *mut slb_verdict,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::process::<Inner, _>(host, now, frames, count, verdicts) })
}

/// Like `slb_host_process`, and calls `observer` with `context` for each step of each frame. This
/// is for single packets: formatting the text is slow.
///
/// # Safety
/// `host` is a host agent, `frames` has `count` elements, and `observer` can be called with
/// `context`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_process_observed(
    host: *mut slb_host,
    now: u64,
    frames: *mut slb_frame,
    count: usize,
    observer: slb_observer,
    context: *mut c_void,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe {
        handle::process_observed::<Inner, _>(host, now, frames, count, observer, context)
    })
}

/// Ends expired connections, and writes RSTs for both ends into `spare`: `count` frames with an
/// empty buffer of 64 bytes or more each, of which up to 64 are used. Fragments whose first one has
/// arrived are released into `spare` as well, each with its verdict, if the buffer is large enough;
/// 2112 bytes always are. Call this about 20 times a second, and before or after each burst.
///
/// Returns the number of frames in `spare` to send: those with a length.
///
/// # Safety
/// `host` is a host agent, and `spare` has `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_advance(
    host: *mut slb_host,
    now: u64,
    spare: *mut slb_frame,
    count: usize,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::advance::<Inner, _>(host, now, spare, count) })
}

/// Installs another snapshot, built with the present one as its predecessor. If `before` is not
/// NULL, it receives the old snapshot, which can be freed unless another role uses it. Returns
/// `SLB_ERROR_LINEAGE` if the snapshot was not built so, and keeps the present one;
/// `SLB_ERROR_ROLE` if the snapshot is a proxy's.
///
/// # Safety
/// Both handles are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_install(
    host: *mut slb_host,
    snapshot: *const slb_snapshot,
    before: *mut *mut slb_snapshot,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::install::<Inner, _>(host, snapshot, before) })
}

/// Changes the options. A limit with the same rate keeps its present level. `connections`,
/// `flows_per_source`, `waiting_fragments`, `direct_flows` and the key keep their initial values.
///
/// # Safety
/// `host` is a host agent, and `options` points to options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_set_options(
    host: *mut slb_host,
    options: *const slb_nat_options,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::set_options::<Inner, _>(host, options) })
}

/// Copies the host agent's counters since its creation to `out`.
///
/// # Safety
/// `host` is a host agent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_stats(host: *mut slb_host, out: *mut slb_stats) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::stats::<Inner, _>(host, out) })
}

/// Copies the counters of a rule, by its index in the configuration.
///
/// # Safety
/// `host` is a host agent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_rule_stats(
    host: *mut slb_host,
    rule: usize,
    out: *mut slb_rule_stats,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::rule_stats::<Inner, _>(host, rule, out) })
}

/// Copies the counters of a backend, by its index among those of all pools.
///
/// # Safety
/// `host` is a host agent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_backend_stats(
    host: *mut slb_host,
    backend: usize,
    out: *mut slb_backend_stats,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { handle::backend_stats::<Inner, _>(host, backend, out) })
}

/// Writes connections as records into `into`, like `slb_mux_export`.
///
/// # Safety
/// `host` is a host agent, and `into` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_export(
    host: *mut slb_host,
    from: u64,
    into: *mut u8,
    length: usize,
    out: *mut slb_exported,
) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { state::export::<Inner, _>(host, from, (into, length), out) })
}

/// Writes the connections of one vm as records into `into`, as `slb_host_export` does for all vms. `backend` is the
/// vm's index in the snapshot. Another host agent takes the connections over with `slb_host_import` when the vm moves
/// there. `SLB_ERROR_RANGE`: the backend is not on this host.
///
/// # Safety
/// `host` is a host agent, and `into` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_export_vm(
    host: *mut slb_host,
    backend: usize,
    from: u64,
    into: *mut u8,
    length: usize,
    out: *mut slb_exported,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let (host, into) = unsafe { (handle::role::<Inner, _>(host)?, array(into, length)?) };
        let index = u32::try_from(backend).map_err(|_| SLB_ERROR_RANGE)?;
        let id = host.snapshot().backend(index).ok_or(SLB_ERROR_RANGE)?.id();
        let start = Cursor::from_value(from);
        let exported = host.export_vm(id, start, into).ok_or(SLB_ERROR_RANGE)?;
        // SAFETY: guaranteed by the caller.
        unsafe { state::put_exported(out, start, exported) }
    })
}

/// Takes over connections from records, like `slb_mux_import`.
///
/// # Safety
/// `host` is a host agent, and `records` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_import(
    host: *mut slb_host,
    now: u64,
    elapsed: u64,
    is_stale: u8,
    records: *const u8,
    length: usize,
    out: *mut slb_imported,
) -> c_int {
    let (age, records) = ((elapsed, is_stale), (records, length));
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { state::import::<Inner, _>(host, now, age, records, None, out) })
}

/// Takes over one worker's share of the connections in the records of all workers: see `slb_steer`. Worker 0 counts
/// unreadable records. Otherwise like `slb_host_import`.
///
/// # Safety
/// `host` is a host agent, and `records` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_import_share(
    host: *mut slb_host,
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
    guard(|| unsafe { state::import::<Inner, _>(host, now, age, records, steering, out) })
}

/// Makes a host agent that starts without state, or with a stale one, take up TCP connections from
/// outside in the middle, for as long as connections of their rule may be idle.
/// `take_ups_per_second` of the options limits the rate. Connections that vms opened are not taken
/// up, since only the state has their ports.
///
/// # Safety
/// `host` is a host agent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_host_take_up(host: *mut slb_host, now: u64) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        unsafe { handle::role::<Inner, _>(host) }?.take_up(Instant::from_nanos(now));
        Ok(0)
    })
}
