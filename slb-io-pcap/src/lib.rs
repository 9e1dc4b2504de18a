//! Packet I/O over captures: the packets of one file arrive at a port, and sent packets are written
//! to another file.
//!
//! [`Capture`] implements [`PacketIo`](slb_core::PacketIo). [`Reader`] and [`Writer`] are useful on
//! their own. Files of any size are streamed in constant memory, also if compressed with gzip or
//! zstd.

#![warn(unnameable_types, unreachable_pub)]
#![forbid(unsafe_code)]

mod capture;
mod error;
mod link;
mod merge;
mod reader;
mod stream;
mod writer;

pub use capture::{Capture, CaptureError, CaptureStats, FRAME_LEN, memory_for};
pub use error::{Damage, ReadError};
pub use link::LinkType;
pub use reader::{Next, Reader};
pub use writer::{Format, Note, Writer};

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The crate's README, whose examples run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct CrateReadme;
