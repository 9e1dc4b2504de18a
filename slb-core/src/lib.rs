//! The dataplane of a layer-4 load balancer, without I/O, allocation or `std`.
//!
//! A role takes a burst of [`Frame`]s, rewrites each in place and gives it one [`Verdict`]. The loop is the same for
//! every role:
//!
//! ```
//! use slb_core::{Burst, Dataplane, Instant, PacketIo};
//!
//! fn run<'m, 's, I: PacketIo<'m>>(
//!     io: &mut I,                      // AF_XDP, TUN, pcap, yours
//!     role: &mut impl Dataplane<'s>,   // Mux, Host or Proxy
//!     clock: impl Fn() -> Instant,     // a monotonic clock
//! ) -> Result<(), I::Error> {
//!     let (mut burst, mut spare) = (Burst::new(), Burst::new());
//!     loop {
//!         io.receive(&mut burst)?;
//!         role.process(clock(), &mut burst); // rewritten in place, one verdict per frame
//!         io.transmit(&mut burst)?;
//!
//!         io.reserve(&mut spare, 8);         // empty frames
//!         role.advance(clock(), &mut spare); // what is due: RSTs of idle connections, held fragments
//!         io.transmit(&mut spare)?;
//!     }
//! }
//! ```
//!
//! A role learns the time by [`process`](Dataplane::process), also with an empty burst, and by
//! [`advance`](Dataplane::advance). A program that sleeps while no packets arrive has to call one
//! of them 20 times a second.
//!
//! - [`Spec`](spec::Spec) describes the balancer, and [`Snapshot`](snapshot::Snapshot) is its compiled form; [`Mux`],
//!   [`Host`] and [`Proxy`] are the roles that use it. Read [`mux`] to follow a packet.
//! - To use several CPUs, run a [`Host`] or [`Proxy`] on each; [`steer`] divides connections among them.
//! - [`wire`], [`hash`], [`maglev`] and [`flow`] are useful on their own.
//! - The caller provides all memory; see [`mem`].
//!
//! # Constructors
//! Constructors have the same names for snapshots, tables and roles:
//!
//! | | takes |
//! |---|---|
//! | `new` | finished parts: `Mux::new(snapshot, tables, options)`, `Snapshot::new(&spec, previous)` |
//! | `build` | sizes, and a [`Memory`](mem::Memory) to take the parts from |
//! | `with_capacity` | sizes; the parts are boxes |
//!
//! `with_capacity` and `Snapshot::new` need the feature `alloc`, which is on by default.

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
pub mod list;
pub mod maglev;
mod mark;
#[expect(unsafe_code, reason = "tables live in memory that the caller gives")]
pub mod mem;
mod meter;
pub mod mux;
pub mod nat;
pub mod observe;
pub mod packet;
#[cfg(any(test, feature = "alloc"))]
pub mod pool;
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
pub mod steer;
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
