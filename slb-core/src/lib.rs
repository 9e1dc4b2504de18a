//! The dataplane of a layer-4 load balancer, without I/O, without allocation, without `std`.
//!
//! A burst of [`Frame`]s goes in, each comes out rewritten in place and with one [`Verdict`]:
//!
//! ```
//! # use slb_core::snapshot::Snapshot;
//! # use slb_core::{Burst, Instant, Mux, PacketIo};
//! fn run<'m, I: PacketIo<'m>>(
//!     io: &mut I, // AF_XDP, TUN, pcap, yours
//!     mux: &mut Mux<'_, &Snapshot<'_>>,
//!     clock: impl Fn() -> Instant,
//! ) -> Result<(), I::Error> {
//!     let mut burst = Burst::new();
//!     loop {
//!         io.receive(&mut burst)?;
//!         mux.process(clock(), &mut burst); // rewritten in place, one verdict per frame
//!         io.transmit(&mut burst)?;
//!     }
//! }
//! ```
//!
//! - [`Spec`](spec::Spec) says what is balanced; [`Snapshot`](snapshot::Snapshot) is its
//!   compiled form; [`Mux`] is the role that uses it. Read [`mux`] to follow a packet.
//! - [`wire`], [`hash`], [`maglev`] and [`flow`] are of use on their own.
//! - All memory is the caller's: see [`mem`]. With the feature `alloc` (default), constructors
//!   that use boxes are there too.

#![warn(unnameable_types, unreachable_pub)]
#![no_std]
#![deny(unsafe_code)] // allowed, file by file, where it is stated why

#[cfg(any(test, feature = "alloc"))]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod answer;
pub mod counters;
mod dataplane;
pub mod flow;
mod fragments;
#[expect(
    unsafe_code,
    reason = "a frame is a raw loan, with the layout that C has for it"
)]
pub mod frame;
pub mod hash;
pub mod health;
pub mod host;
mod icmp;
pub mod io;
mod key;
mod limit;
mod link;
pub mod maglev;
mod mark;
#[expect(unsafe_code, reason = "tables live in memory that the caller gives")]
pub mod mem;
pub mod mux;
pub mod nat;
pub mod observe;
pub mod packet;
#[allow(
    unsafe_code,
    reason = "the intrinsic of some machines takes a raw pointer"
)]
mod prefetch;
pub mod proxy;
pub mod snapshot;
pub mod spec;
pub mod state;
pub mod stats;
pub mod time;
mod tunnel;
mod verdict;
pub mod wire;

pub use dataplane::Dataplane;
pub use fragments::{Datagram, FragmentRoom, FragmentSlot, FragmentTable};
pub use frame::{BURST, Burst, Frame};
pub use host::Host;
pub use io::PacketIo;
pub use key::Key;
pub use limit::{SourceBucket, SourceLimiter};
pub use mux::{Mux, MuxOptions, MuxTables};
pub use proxy::Proxy;
pub use stats::Stats;
pub use time::Instant;
pub use tunnel::HEADROOM;
pub use verdict::{DropReason, PortId, Verdict};

/// The crate's README, whose examples run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct CrateReadme;
