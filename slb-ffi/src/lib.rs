//! The dataplane as a library for C and C++.
//!
//! `include/slb.h` is generated from these files (test `header`), and `docs/c.md` describes its
//! use. These rules hold for all functions:
//!
//! - A function returns 0 or a count on success, else a negative number of [`slb_error`]. On an
//!   error it changes nothing, unless its documentation says so.
//! - Pointers may be NULL only if the documentation says so. NULL, misaligned, too short or
//!   overlapping arguments, and handles of another kind, are errors. Buffers of frames must not
//!   overlap each other; `slb_frames_check` detects it.
//! - One thread at a time may use a handle. Any number of threads may share a snapshot.
//! - The library calls back only observers, has no global state, and no panic crosses the
//!   interface.

#![warn(unnameable_types, unreachable_pub)]
#![cfg_attr(not(feature = "std"), no_std)]
#![allow(non_camel_case_types, reason = "the names are C's")]
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "what the caller promises is promised of all arguments at once"
)]

mod builder;
#[cfg(feature = "std")]
mod config;
mod error;
mod flows;
mod frame;
mod handle;
mod health;
mod host;
mod memory;
mod mux;
mod options;
mod proxy;
mod snapshot;
mod spec;
mod state;
mod stats;
mod steer;

pub use builder::*;
#[cfg(feature = "std")]
pub use config::*;
pub use error::*;
pub use flows::*;
pub use frame::*;
pub use health::*;
pub use host::*;
pub use mux::*;
pub use options::*;
pub use proxy::*;
pub use snapshot::*;
pub use spec::*;
pub use state::*;
pub use stats::*;
pub use steer::*;

// The header asserts this too.
const _: () = {
    assert!(size_of::<slb_verdict>() == 4);
    assert!(size_of::<slb_address>() == 17);
    assert!(size_of::<slb_health>() == 128);
    assert!(size_of::<slb_stats>() == 8 * (33 + SLB_DROP_REASONS));
};
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<slb_frame>() == 24);
    assert!(size_of::<slb_backend>() == 72);
    assert!(size_of::<slb_rule>() == 56);
    assert!(size_of::<slb_mux_options>() == 72);
    assert!(size_of::<slb_nat_options>() == 120);
};

/// No function panics; if one did, the program would stop here.
#[cfg(not(feature = "std"))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// The crate's README, whose examples run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct CrateReadme;
