//! TUN and TAP devices as packet I/O: for a node without a network card of its own to take over.
//!
//! A TUN device carries IP packets, which get an Ethernet header here and lose it again: enough for a
//! mux, whose VXLAN packets the kernel routes like anybody's. A TAP device carries Ethernet frames:
//! one for each port of a proxy or host agent, bridged to where the port is.
//!
//! Devices are read and written without waiting, a burst in one system call by io_uring, or a frame at
//! a time where that is forbidden; [`Tun::wait`] waits for all of them.

#![warn(unnameable_types, unreachable_pub)]

mod device;
mod tun;
mod uring;

pub use device::{Device, Layer, OpenError};
pub use tun::{FRAME_LEN, Tun, TunStats, memory_for};

/// The crate's README, whose examples run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct CrateReadme;
