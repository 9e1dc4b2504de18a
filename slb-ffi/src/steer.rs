//! Several workers for one host agent or proxy.

use core::ffi::c_int;
use core::num::NonZeroU16;

use slb_core::Key;
use slb_core::steer::Steering;

use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::frame::{frames, slb_frame};
use crate::memory::{array, overlap, shared};
use crate::snapshot::{handle, slb_snapshot};

/// Division of the connections of a host agent or a proxy among workers. Each worker is a thread with a
/// handle of its own, and all have the same snapshot.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_steering {
    /// A secret of 128 random bits: the same at all workers of a node. Not zero.
    pub key: [u64; 2],
    /// Number of workers, at least 1.
    pub workers: u16,
    /// Number of the calling worker, below `workers`.
    pub own: u16,
}

impl slb_steering {
    /// Checks the arguments, and returns the steering.
    ///
    /// # Errors
    /// `workers` is 0, `own` is not below it, or the key is zero.
    pub(crate) fn check(&self) -> Result<Steering, Error> {
        let key = Key::new(self.key);
        let workers = NonZeroU16::new(self.workers).ok_or(SLB_ERROR_RANGE)?;
        if self.own >= self.workers {
            return Err(SLB_ERROR_RANGE);
        }
        if key.is_zero() {
            return Err(SLB_ERROR_KEY);
        }
        Ok(Steering::new(workers, key))
    }
}

/// Finds the worker that has the connection of each of `count` received frames, and writes its number to `owners`; for
/// a frame of no connection this is the calling worker. Before processing, hand a frame of another worker to that
/// worker unchanged, over a queue of your own. Both directions of a connection, all fragments of a datagram and ICMP
/// errors about a connection have one owner. The frames are not changed.
///
/// `slb_snapshot_spreads` says whether several workers can share the connections of a snapshot.
///
/// Returns the number of frames that other workers own. `SLB_ERROR_RANGE`: `workers` is 0, or `own` is not below it.
/// `SLB_ERROR_KEY`: the key is zero.
///
/// # Safety
/// The snapshot is one; `frames` and `owners` point to `count` of each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_steer(
    snapshot: *const slb_snapshot,
    steering: *const slb_steering,
    frames_in: *mut slb_frame,
    count: usize,
    owners: *mut u16,
) -> c_int {
    guard(|| {
        if count == 0 {
            return Ok(0);
        }
        // SAFETY: guaranteed by the caller.
        let (snapshot, steering) = unsafe { (&handle(snapshot)?.snapshot, *shared(steering)?) };
        let division = steering.check()?;
        if overlap(
            (frames_in.cast_const(), count),
            (owners.cast_const(), count),
        ) {
            return Err(SLB_ERROR_OVERLAP);
        }
        // SAFETY: guaranteed by the caller.
        let (frames_in, owners) = unsafe { (array(frames_in, count)?, array(owners, count)?) };
        let frames_in = frames(frames_in)?;
        let own = steering.own;
        let mut others = 0;
        for (frame, owner) in frames_in.iter().zip(owners) {
            *owner = division.owner(snapshot, frame).unwrap_or(own);
            others += usize::from(*owner != own);
        }
        Ok(others)
    })
}

/// Returns 1 if several workers can share the connections of a snapshot, else 0: if a rule has a source NAT address,
/// servers see one address for all clients, so one worker has to have all connections. So does a vm of the node with an
/// access list.
///
/// # Safety
/// The snapshot is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_snapshot_spreads(snapshot: *const slb_snapshot) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let snapshot = unsafe { handle(snapshot) }?;
        Ok(snapshot.snapshot.spreads().into())
    })
}
