//! Division of a host agent's or proxy's connections among several workers.
//!
//! Each worker has its own role and tables, and never reads another worker's. A worker that
//! receives a packet of another worker's connection hands the unchanged frame to that worker,
//! before processing it.
//!
//! ```text
//!  queue 0 ─► worker 0 ─ owner? ─┬─ 0: process ───────────────► out
//!                                └─ 1 ──────────┐
//!  queue 1 ─► worker 1 ─ owner? ─┬─ 1: process ◄┘─────────────► out
//!                                └─ 0: to worker 0
//! ```
//!
//! The address of the remote end decides: the client of a connection from outside, the destination
//! of a connection that a vm opened, or the caller of a private VIP. Translation does not change
//! that address in either direction, although it changes ports and the other address. So one worker
//! gets:
//!
//! - both directions of a connection, on whichever port and queue they arrive;
//! - all fragments of a datagram, of which only the first has ports;
//! - ICMP errors with the connection that they quote;
//! - all new connections of a source, so that a limit on a source's flows holds exactly;
//! - all connections to one destination, so that N SNAT ports carry N connections to it, as with one worker.
//!
//! On the other hand, one remote address never has more than one worker. Rules with
//! [`source_nat`](crate::spec::Terms::source_nat) present all clients to servers by one remote
//! address; [`Snapshot::spreads`] says whether a configuration can have more than one worker.
//!
//! Steering does not depend on tables, so any thread can call it. The owner of an address stays the
//! same as long as the [`Steering`] does, regardless of the snapshots that are installed; only a
//! change of a proxy's source rewrites moves the clients whose addresses it changes.

use core::net::IpAddr;
use core::num::NonZeroU16;

use crate::frame::{BURST, Frame};
use crate::hash::fold_multiply;
use crate::icmp;
use crate::key::{Key, Purpose};
use crate::nat::Direction;
use crate::packet::{Family, Packet, Part, Read};
use crate::snapshot::Snapshot;
use crate::tunnel::decapsulation::{COMMON, Outer};
use crate::wire::ethernet::{self, EtherType};
use crate::wire::{ipv4, protocol, vxlan};

/// A rule that divides connections among workers: see the [module](self).
///
/// ```
/// use core::num::NonZeroU16;
/// use slb_core::steer::Steering;
/// use slb_core::{Frame, Key, snapshot::Snapshot};
///
/// fn worker_for(steering: &Steering, snapshot: &Snapshot<'_>, frame: &Frame<'_>, own: u16) -> u16 {
///     // A frame of no connection stays where it came in.
///     steering.owner(snapshot, frame).unwrap_or(own)
/// }
///
/// let two = NonZeroU16::new(2).unwrap();
/// let steering = Steering::new(two, Key::new([1, 2]));
/// assert_eq!(steering.workers(), two);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Steering {
    workers: NonZeroU16,
    key: [u64; 2],
}

impl Steering {
    /// Divides connections among `workers`. All workers of a node use the same key. Keep it secret:
    /// with the key, clients could choose addresses that belong to one worker.
    pub fn new(workers: NonZeroU16, key: Key) -> Self {
        Self {
            workers,
            key: key.derive(Purpose::Steering),
        }
    }

    /// The number of workers.
    pub fn workers(&self) -> NonZeroU16 {
        self.workers
    }

    /// Returns the worker that has the connection of a frame, before the frame is processed: a
    /// number below [`workers`](Self::workers). `None` if the frame belongs to no connection, for
    /// example ARP, packets for other nodes, and unreadable packets: every worker treats them
    /// alike.
    ///
    /// Packets for the [probes' source](Snapshot::probe_source) go to worker 0, which has the prober.
    ///
    /// The snapshot must be a host agent's or a proxy's. A mux needs no steering, since its workers
    /// share no state.
    ///
    /// # Cost
    /// Reads the addresses of a TCP or UDP packet; for other packets the headers, and the quote of
    /// an ICMP error.
    #[inline]
    pub fn owner(&self, snapshot: &Snapshot<'_>, frame: &Frame<'_>) -> Option<u16> {
        match common_remote(snapshot, frame) {
            Some(remote) => Some(self.owner_of(snapshot, remote)),
            None => self.owner_of_any(snapshot, frame),
        }
    }

    /// The owner of a frame of any kind.
    #[inline(never)]
    fn owner_of_any(&self, snapshot: &Snapshot<'_>, frame: &Frame<'_>) -> Option<u16> {
        let (direction, bytes) = arrival(snapshot, frame)?;
        let mut packet = Packet::EMPTY;
        if packet.read(bytes) != Read::Ip {
            return None;
        }
        if packet.is_icmp() && packet.shape.part != Part::Later {
            packet = about(bytes, &packet);
        }
        let is_call = direction == Direction::Outward
            && snapshot.is_private_at(packet.tuple().destination, frame.port());
        let remote = match is_call {
            true => remote_of(Direction::Inward, &packet),
            false => remote_of(direction, &packet),
        };
        if direction == Direction::Inward && snapshot.nat.rewrites_sources() {
            // Servers see the other address, and answer to it.
            let tuple = packet.tuple();
            let seen = match snapshot.is_vip(tuple.destination) {
                true => snapshot.nat.rewritten(tuple.source),
                false => None,
            };
            return Some(self.owner_of(snapshot, seen.map_or(remote, words_of)));
        }
        Some(self.owner_of(snapshot, remote))
    }

    /// Returns the [owner](Self::owner) of each frame of a burst; for frames without a connection
    /// `own`, the calling worker.
    pub fn owners(&self, snapshot: &Snapshot<'_>, own: u16, frames: &[Frame<'_>]) -> [u16; BURST] {
        let mut owners = [own; BURST];
        frames.iter().for_each(Frame::prefetch);
        for (owner, frame) in owners.iter_mut().zip(frames) {
            *owner = self.owner(snapshot, frame).unwrap_or(own);
        }
        owners
    }

    /// Returns the worker that has the connections between an address and a VIP or a vm: the owner
    /// of packets from and to that address.
    pub fn owner_of_remote(&self, snapshot: &Snapshot<'_>, remote: IpAddr) -> u16 {
        let seen = snapshot.nat.rewritten(remote).unwrap_or(remote);
        self.owner_of(snapshot, words_of(seen))
    }

    /// Returns the owner of an address that servers see.
    #[inline]
    fn owner_of(&self, snapshot: &Snapshot<'_>, remote: [u64; 2]) -> u16 {
        let probes = snapshot.probe_source();
        let is = |address: IpAddr| words_of(address) == remote;
        let is_prober = probes.ipv4.is_some_and(|address| is(address.into()))
            || probes.ipv6.is_some_and(|address| is(address.into()));
        if is_prober { 0 } else { self.place(remote) }
    }

    /// The worker of an address.
    #[inline]
    fn place(&self, [low, high]: [u64; 2]) -> u16 {
        // Odd, and half of its bits set: digits of pi.
        const SPREAD: u64 = 0xc0ac_29b7_c97c_50dd;
        let hash = fold_multiply(low ^ self.key[0], SPREAD);
        let hash = fold_multiply(hash ^ high ^ self.key[1], SPREAD);
        let workers = u64::from(self.workers.get());
        (((hash >> 32) * workers) >> 32) as u16
    }
}

/// One worker's share of all connections.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// The division of connections.
    pub steering: &'a Steering,
    /// The worker.
    pub worker: u16,
}

impl Share<'_> {
    /// Returns true if the worker has the connections with a remote address.
    pub(crate) fn has(&self, snapshot: &Snapshot<'_>, remote: IpAddr) -> bool {
        self.steering.owner_of_remote(snapshot, remote) == self.worker
    }
}

/// Returns the remote address of a TCP or UDP packet, or of a fragment of one, with common headers;
/// `None` if the frame has other headers. Verifies nothing: a fault of a packet has the same effect
/// at each worker.
#[inline]
fn common_remote(snapshot: &Snapshot<'_>, frame: &Frame<'_>) -> Option<[u64; 2]> {
    let bytes = frame.bytes();
    match &snapshot.nat.proxy {
        Some(_) if snapshot.nat.rewrites_sources() => None,
        Some(ports) if frame.port() == ports.backend => common_address::<true>(bytes),
        Some(_) => common_address::<false>(bytes),
        None if frame.port() == snapshot.underlay().port => {
            let (head, inner) = bytes.split_first_chunk::<COMMON>()?;
            has_vxlan(head).then(|| common_address::<false>(inner))?
        }
        None if snapshot.has_private_vips() => remote_in_network(snapshot, frame),
        None => common_address::<true>(bytes),
    }
}

/// Returns the remote address of a vm's packet if there are private VIPs: a call to one goes to the
/// worker that gets the answers of a backend on this node.
#[inline(never)]
fn remote_in_network(snapshot: &Snapshot<'_>, frame: &Frame<'_>) -> Option<[u64; 2]> {
    let bytes = frame.bytes();
    let remote = common_address::<true>(bytes)?;
    let [low, high] = remote;
    let is_ipv4 = bytes.get(12..14) == Some(&EtherType::IPV4.0.to_be_bytes());
    let address = match is_ipv4 {
        true => IpAddr::from((low as u32).to_le_bytes()),
        false => IpAddr::from((u128::from(high) << 64 | u128::from(low)).to_le_bytes()),
    };
    match snapshot.is_private_at(address, frame.port()) {
        true => common_address::<false>(bytes),
        false => Some(remote),
    }
}

/// Returns true if the headers are those of VXLAN over IPv4 without options.
#[inline]
fn has_vxlan(head: &[u8; COMMON]) -> bool {
    const UDP: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN;
    let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let fragment = ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET;
    half(12) == EtherType::IPV4.0
        && head[ethernet::HEADER_LEN] == 0x45
        && half(ethernet::HEADER_LEN + 6) & fragment == 0
        && head[ethernet::HEADER_LEN + 9] == protocol::UDP
        && half(UDP + 2) == vxlan::PORT
}

/// Returns the destination, or the source, of a TCP or UDP packet in an untagged frame. An IPv4
/// header has both at fixed offsets, with and without options, in each fragment.
#[inline]
fn common_address<const DESTINATION: bool>(frame: &[u8]) -> Option<[u64; 2]> {
    const IP: usize = ethernet::HEADER_LEN;
    let is_known = |number: u8| matches!(number, protocol::TCP | protocol::UDP);
    let head: &[u8; IP + ipv4::HEADER_LEN] = frame.first_chunk()?;
    match EtherType(u16::from_be_bytes([head[12], head[13]])) {
        EtherType::IPV4 if head[IP] >> 4 == 4 && is_known(head[IP + 9]) => {
            let at = if DESTINATION { IP + 16 } else { IP + 12 };
            let address = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            Some([u32::from_le_bytes(address).into(), 0])
        }
        EtherType::IPV6 if head[IP] >> 4 == 6 && is_known(head[IP + 6]) => {
            let at = if DESTINATION { IP + 24 } else { IP + 8 };
            let address: &[u8; 16] = frame.get(at..)?.first_chunk()?;
            let bits = u128::from_le_bytes(*address);
            Some([bits as u64, (bits >> 64) as u64])
        }
        _ => None,
    }
}

/// Returns the direction of a frame's packet, and the frame without outer headers.
#[inline]
fn arrival<'f>(snapshot: &Snapshot<'_>, frame: &'f Frame<'_>) -> Option<(Direction, &'f [u8])> {
    let bytes = frame.bytes();
    let underlay = snapshot.underlay();
    match &snapshot.nat.proxy {
        Some(ports) if frame.port() == ports.backend => Some((Direction::Outward, bytes)),
        Some(_) => Some((Direction::Inward, bytes)),
        None if frame.port() == underlay.port => {
            let (start, end) = Outer::parse(bytes, underlay).ok()??.inner;
            Some((Direction::Inward, bytes.get(start..end)?))
        }
        None => Some((Direction::Outward, bytes)),
    }
}

/// Returns the flow that an ICMP message is about, if it quotes a packet, with the tuple of the
/// message's sender side.
#[cold]
fn about(frame: &[u8], packet: &Packet) -> Packet {
    let quoted = packet.quoted_flow(frame).or_else(|| {
        let is_redirect = icmp::is_advice(packet.shape.family, icmp::kind(frame, packet));
        let redirected = match packet.shape.family {
            Family::Ipv4 if is_redirect => return packet.advised_flow(frame),
            Family::Ipv6 if is_redirect => icmp::redirected(frame, packet)?,
            _ => return None,
        };
        packet.flow_of(redirected.quote?)
    });
    quoted.unwrap_or(*packet)
}

/// Returns the address of a packet's remote end, in two words.
#[inline]
fn remote_of(direction: Direction, packet: &Packet) -> [u64; 2] {
    let [a, b, c, d] = packet.addresses;
    match (packet.shape.family, direction) {
        (Family::Ipv4, Direction::Inward) => [a & 0xffff_ffff, 0],
        (Family::Ipv4, Direction::Outward) => [a >> 32, 0],
        (Family::Ipv6, Direction::Inward) => [a, b],
        (Family::Ipv6, Direction::Outward) => [c, d],
    }
}

/// An address as [`remote_of`] has it.
fn words_of(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [u32::from_le_bytes(address.octets()).into(), 0],
        IpAddr::V6(address) => {
            let bits = u128::from_le_bytes(address.octets());
            [bits as u64, (bits >> 64) as u64]
        }
    }
}
