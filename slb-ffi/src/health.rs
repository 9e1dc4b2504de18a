//! The probe state machine.

use core::ffi::c_int;
use core::time::Duration;

use slb_core::Instant;
use slb_core::health::{Condition, Health, ProbePolicy, jitter};

use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::memory::{exclusive, put, shared};

/// Whether one backend is well, from what its probes say. The caller's memory, initialised by
/// `slb_health_init`; not to be looked into.
#[derive(Debug)]
#[repr(C)]
pub struct slb_health {
    /// Not to be looked into.
    pub opaque: [u64; 16],
}

/// How a backend is probed.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_probe {
    /// Nanoseconds from one probe to the next.
    pub interval: u64,
    /// An answer that takes longer, in nanoseconds, is none. At most the interval.
    pub timeout: u64,
    /// Answers of the other kind in a row before a healthy backend is unhealthy, or the other way.
    pub threshold: u32,
}

/// What `slb_health_succeeded` and its kin say where it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum slb_change {
    /// The backend is as it was.
    SLB_UNCHANGED = 0,
    /// The backend is healthy now.
    SLB_NOW_HEALTHY = 1,
    /// The backend is unhealthy now.
    SLB_NOW_UNHEALTHY = 2,
}

const _: () = assert!(size_of::<Health>() <= size_of::<slb_health>());
const _: () = assert!(align_of::<Health>() <= align_of::<slb_health>());

/// # Safety
/// It is NULL, misaligned, or was initialised.
unsafe fn of<'a>(health: *mut slb_health) -> Result<&'a mut Health, Error> {
    // SAFETY: the caller promises it.
    unsafe { exclusive(health.cast()) }
}

/// Runs `ask` on a health.
///
/// # Safety
/// As for [`of`].
unsafe fn with(health: *mut slb_health, ask: impl FnOnce(&mut Health) -> usize) -> c_int {
    // SAFETY: the caller promises it.
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

/// Begins with a backend that is well, or not where `healthy` is 0. Its first probe is due within an
/// interval from `now` on; `number`, of any numbering, spreads those of many backends over it.
///
/// # Safety
/// `health` points to room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_init(
    health: *mut slb_health,
    probe: *const slb_probe,
    healthy: u8,
    now: u64,
    number: u32,
) -> c_int {
    guard(|| {
        // SAFETY: the caller promises it.
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
        // SAFETY: the caller promises it, and it has room, as is asserted above.
        unsafe { put(health.cast(), Health::new(policy, condition, first)) }?;
        Ok(0)
    })
}

/// When something is due: a probe is to go out, or the one that is out has failed. `UINT64_MAX`
/// where the argument is bad.
///
/// # Safety
/// It was initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_due(health: *mut slb_health) -> u64 {
    // SAFETY: the caller promises it.
    unsafe { of(health) }.map_or(u64::MAX, |health| health.due().as_nanos())
}

/// Gives 1 where a probe is to go out now, and takes it as out; else 0.
///
/// # Safety
/// It was initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_begin(health: *mut slb_health, now: u64) -> c_int {
    // SAFETY: the caller promises it.
    unsafe {
        with(health, |health| {
            health.begin(Instant::from_nanos(now)).into()
        })
    }
}

/// The probe that is out was answered well. Gives what of enum slb_change.
///
/// # Safety
/// It was initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_succeeded(health: *mut slb_health) -> c_int {
    // SAFETY: the caller promises it.
    unsafe { with(health, |health| told(health.succeeded())) }
}

/// Notes that a probe failed. Gives what of enum slb_change.
///
/// # Safety
/// It was initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_failed(health: *mut slb_health) -> c_int {
    // SAFETY: the caller promises it.
    unsafe { with(health, |health| told(health.failed())) }
}

/// Takes a probe that is out for too long as failed. Gives what of enum slb_change.
///
/// # Safety
/// It was initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_expire(health: *mut slb_health, now: u64) -> c_int {
    // SAFETY: the caller promises it.
    unsafe {
        with(health, |health| {
            told(health.expire(Instant::from_nanos(now)))
        })
    }
}

/// Gives 1 where the backend is well, else 0.
///
/// # Safety
/// It was initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_health_is_healthy(health: *mut slb_health) -> c_int {
    // SAFETY: the caller promises it.
    unsafe {
        with(health, |health| {
            (health.condition() == Condition::Healthy).into()
        })
    }
}
