//! Packet I/O over AF_XDP sockets: a NIC's packets in user space, without the kernel's stack and,
//! if the driver supports it, without a copy.
//!
//! - [`Umem`]: the memory of packets.
//! - [`AfXdp`]: sockets over it, one for each queue of each port, as [`PacketIo`](slb_core::PacketIo).
//! - [`Program`]: the XDP program of an interface, which directs the balancer's packets to the
//!   sockets and leaves all others, such as ARP, SSH and BGP, to the kernel.
//! - [`Neighbours`]: the MAC addresses of next hops, from the kernel's tables.
//!
//! The crate needs Linux 5.10, where sockets of several queues share their memory; CAP_NET_RAW for sockets, and
//! CAP_BPF and CAP_NET_ADMIN for the program.
//!
//! ```no_run
//! use slb_core::{Burst, PacketIo, PortId};
//! use slb_io_afxdp::{AfXdp, Interface, Kind, Program, Queue, RING, Take, Umem, frames_for};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let interface = Interface::find("eth0")?;
//! let mut umem = Umem::new(frames_for(1, RING), slb_io_afxdp::SMALL_CHUNK)?;
//! let queue = Queue { port: PortId(0), interface: interface.clone(), queue: 0 };
//! let mut io = AfXdp::open(&mut umem, &[queue], RING)?;
//!
//! let mut program = Program::load(interface, Kind::Services)?;
//! program.set_addresses([("20.20.20.100".parse()?, Take::All)])?;
//! for socket in io.sockets() {
//!     program.set_socket(0, socket)?;
//! }
//! program.attach()?;
//!
//! let mut burst = Burst::new();
//! loop {
//!     io.receive(&mut burst)?;
//!     // mux.process(now, &mut burst);
//!     io.transmit(&mut burst)?;
//! }
//! # }
//! ```

#![warn(unnameable_types, unreachable_pub)]

mod interface;
mod io;
mod neighbours;
mod netlink;
mod program;
mod ring;
mod socket;
mod umem;

pub use interface::{
    Interface, InterfaceError, Link, MissingChecksums, bring_up, set_peer, take_down,
};
pub use io::{AfXdp, AfXdpStats, Detached, Places, Queue, RING, frames_for};
pub use neighbours::{Neighbours, NextHop};
pub use program::{CALLER_PORTS, Kind, Program, ProgramFault, Take, Unserved};
pub use socket::SocketError;
pub use umem::{KERNEL_HEADROOM, LARGE_CHUNK, SMALL_CHUNK, Umem};

/// The crate's README, whose examples run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct CrateReadme;
