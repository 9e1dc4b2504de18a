//! Packet I/O over TUN and TAP devices, for nodes without a dedicated network card.
//!
//! A TUN device carries IP packets; this crate adds and removes their Ethernet headers. It suffices
//! for a mux, whose VXLAN packets the kernel routes. A TAP device carries Ethernet frames: a proxy
//! or host agent has one for each port, bridged to the port's network.
//!
//! Devices are read and written without blocking: a burst in one system call by io_uring, or frame
//! by frame if io_uring is forbidden. [`Tun::wait`] waits for all devices.

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
