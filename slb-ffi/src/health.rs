//! The probe state machine.

use core::ffi::c_int;
use core::time::Duration;

use slb_core::Instant;
use slb_core::health::{Condition, Health, ProbePolicy, jitter};

use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::memory::{exclusive, put, shared};

/// The health of a backend by its probes, in the caller's memory. `slb_health_init` initialises it;
/// its contents are private.
#[derive(Debug)]
#[repr(C)]
pub struct slb_health {
    /// Private.
    pub opaque: [u64; 16],
}

/// The timing of a backend's probes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_probe {
    /// Time from one probe to the next, in nanoseconds.
    pub interval: u64,
    /// Time after which a probe without an answer has failed, in nanoseconds. At most the interval.
    pub timeout: u64,
    /// Consecutive failures that make a healthy backend unhealthy, and successes that make it
    /// healthy again.
    pub threshold: u32,
}

/// The effect of a probe's result on a backend's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum slb_change {
    /// No change.
    SLB_UNCHANGED = 0,
    /// The backend is healthy now.
    SLB_NOW_HEALTHY = 1,
    /// The backend is unhealthy now.
    SLB_NOW_UNHEALTHY = 2,
}

const _: () = assert!(size_of::<Health>() <= size_of::<slb_health>());
const _: () = assert!(align_of::<Health>() <= align_of::<slb_health>());

/// # Safety
/// `health` is NULL, misaligned, or was initialised.
unsafe fn of<'a>(health: *mut slb_health) -> Result<&'a mut Health, Error> {
    // SAFETY: guaranteed by the caller.
    unsafe { exclusive(health.cast()) }
}

/// Runs `ask` on a health.
///
/// # Safety
/// As for [`of`].
unsafe fn with(health: *mut slb_health, ask: impl FnOnce(&mut Health) -> usize) -> c_int {
    // SAFETY: guaranteed by the caller.
    guard(|| unsafe { of(health) }.map(ask))
}

fn told(changed: Option<Condition>) -> usize {
    let change = match changed {
        None => slb_change::SLB_UNCHANGED,
        Some(Condition::Healthy) => slb_change::SLB_NOW_HEALTHY,
        Some(Condition::Unhealthy) => slb_change::SLB_NOW_UNHEALTHY,
    };
    change as usize
}

/// Initialises a health state: healthy, or unhealthy if `healthy` is 0. The first probe is due
/// within one interval from `now`; `number`, any index of the backend, spreads the probes of many
/// backends over the interval.
///
/// # Safety
/// `health` points to memory for a health state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_init(
    health: *mut slb_health,
    probe: *const slb_probe,
    healthy: u8,
    now: u64,
    number: u32,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let probe = unsafe { shared(probe) }?;
        if probe.interval == 0 || probe.threshold == 0 {
            return Err(SLB_ERROR_RANGE);
        }
        let policy = ProbePolicy {
            interval: Duration::from_nanos(probe.interval),
            timeout: Duration::from_nanos(probe.timeout),
            threshold: probe.threshold,
        };
        let condition = match healthy {
            0 => Condition::Unhealthy,
            _ => Condition::Healthy,
        };
        let first = jitter(Instant::from_nanos(now), policy.interval, number);
        // SAFETY: guaranteed by the caller; the size is asserted above.
        unsafe { put(health.cast(), Health::new(policy, condition, first)) }?;
        Ok(0)
    })
}

/// Returns the time of the next event: a probe to send, or the timeout of the outstanding one.
/// `UINT64_MAX` if the argument is bad.
///
/// # Safety
/// `health` was initialised by `slb_health_init`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_due(health: *mut slb_health) -> u64 {
    // SAFETY: guaranteed by the caller.
    unsafe { of(health) }.map_or(u64::MAX, |health| health.due().as_nanos())
}

/// Returns 1 if a probe is due now, and records it as sent; otherwise 0.
///
/// # Safety
/// `health` was initialised by `slb_health_init`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_begin(health: *mut slb_health, now: u64) -> c_int {
    // SAFETY: guaranteed by the caller.
    unsafe {
        with(health, |health| {
            health.begin(Instant::from_nanos(now)).into()
        })
    }
}

/// Records that the outstanding probe succeeded. Returns a value of enum slb_change.
///
/// # Safety
/// `health` was initialised by `slb_health_init`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_succeeded(health: *mut slb_health) -> c_int {
    // SAFETY: guaranteed by the caller.
    unsafe { with(health, |health| told(health.succeeded())) }
}

/// Records that the outstanding probe failed. Returns a value of enum slb_change.
///
/// # Safety
/// `health` was initialised by `slb_health_init`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_failed(health: *mut slb_health) -> c_int {
    // SAFETY: guaranteed by the caller.
    unsafe { with(health, |health| told(health.failed())) }
}

/// Records a probe past its timeout as failed. Returns a value of enum slb_change.
///
/// # Safety
/// `health` was initialised by `slb_health_init`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_expire(health: *mut slb_health, now: u64) -> c_int {
    // SAFETY: guaranteed by the caller.
    unsafe {
        with(health, |health| {
            told(health.expire(Instant::from_nanos(now)))
        })
    }
}

/// Returns 1 if the backend is healthy, otherwise 0.
///
/// # Safety
/// `health` was initialised by `slb_health_init`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_is_healthy(health: *mut slb_health) -> c_int {
    // SAFETY: guaranteed by the caller.
    unsafe {
        with(health, |health| {
            (health.condition() == Condition::Healthy).into()
        })
    }
}
