//! [`PacketIo`] over AF_XDP sockets with shared memory, one for each queue of a port.
//!
//! A chunk of the memory is always in one of these places:
//!
//! ```text
//!             ┌──────────────────────────────────────────────┐
//!             ▼                                              │
//!   free ─► fill ─► (kernel) ─► rx ─► frame of the caller's ─┤ dropped or passed
//!     ▲                                   │                  │
//!     └──────── completion ◄─ (kernel) ◄─ tx ────────────────┘
//! ```
//! A packet is read, rewritten and sent in the chunk that it was received into; only the kernel
//! copies it, if the driver has no zero copy. [`AfXdp::places`] counts the chunks in each place:
//! the sum is constant unless a chunk is lost.

use std::fmt;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::xdp::{XdpDesc, XdpDescOptions};
use slb_core::wire::ethernet::MacAddress;
use slb_core::{Burst, Frame, PacketIo, PortId, Verdict};

use crate::interface::Interface;
use crate::socket::{Memory, Socket, SocketError};
use crate::umem::{Chunks, KERNEL_HEADROOM, Umem};

/// The default number of entries in each ring.
pub const RING: u32 = 2048;

/// Returns the number of frames for `sockets` sockets with rings of `ring` entries: as many as they
/// may receive, and as many as they may have to send.
pub const fn frames_for(sockets: usize, ring: u32) -> usize {
    sockets * 2 * ring as usize
}

/// A queue of an interface, and its port.
#[derive(Clone, Debug)]
pub struct Queue {
    /// The port of the queue. A port with several queues sends by the first one.
    pub port: PortId,
    /// The interface.
    pub interface: Interface,
    /// The number of its queue.
    pub queue: u32,
}

/// Counters of packets received and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AfXdpStats {
    /// Frames received.
    pub received: u64,
    /// Frames given to the kernel to send; a flooded frame counts for each port.
    pub sent: u64,
    /// Frames that were returned from user space to the kernel.
    pub passed: u64,
    /// Frames that could not be passed, for lack of a way to the kernel.
    pub not_passed: u64,
    /// Frames whose next hop has no known MAC address: all zeros.
    pub unresolved: u64,
    /// Frames that found no room in the tx ring.
    pub refused: u64,
    /// Frames for an unknown port.
    pub undeliverable: u64,
    /// Frames handed to `transmit` that are not in this I/O's memory.
    pub foreign: u64,
    /// Packets that the kernel dropped for lack of a chunk, or of room in an rx ring.
    pub overrun: u64,
    /// Packets that are longer than a chunk.
    pub too_long: u64,
}

impl AfXdpStats {
    /// Each counter and its name.
    pub fn named(&self) -> [(&'static str, u64); 10] {
        [
            ("received", self.received),
            ("sent", self.sent),
            ("passed", self.passed),
            ("not_passed", self.not_passed),
            ("unresolved", self.unresolved),
            ("refused", self.refused),
            ("undeliverable", self.undeliverable),
            ("foreign", self.foreign),
            ("overrun", self.overrun),
            ("too_long", self.too_long),
        ]
    }
}

/// Counts of chunks, by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The number of all chunks.
    pub total: usize,
    /// Chunks that are free.
    pub free: usize,
    /// Chunks for the kernel to receive into, or received and not yet taken.
    pub receiving: usize,
    /// Chunks that the kernel is sending.
    pub sending: usize,
    /// Chunks lent to the caller as frames: none between two bursts.
    pub lent: usize,
}

/// Sockets that one process hands over to another one: bound, and with the contents of their rings.
#[derive(Debug)]
pub struct Detached {
    /// The sockets, in the order of the queues that they were opened for.
    pub sockets: Vec<OwnedFd>,
    /// Entries of each of their rings.
    pub ring: u32,
    /// Offsets in bytes of the chunks that the kernel does not have.
    pub free: Vec<u64>,
}

/// A socket, and the chunks that it has.
#[derive(Debug)]
struct Member {
    socket: Socket,
    port: PortId,
    receiving: u32,
    sending: u32,
    /// True if the tx ring has unsubmitted entries.
    is_dirty: bool,
}

/// The sink of frames that are not the balancer's.
type Kernel = Box<dyn Write + Send>;

/// AF_XDP sockets as ports, which share their memory.
pub struct AfXdp<'m> {
    chunks: Chunks,
    free: Vec<u64>,
    members: Vec<Member>,
    /// For each port, the member that sends for it.
    by_port: Vec<Option<u16>>,
    ring: u32,
    /// The next member to receive from, so that no member starves.
    next: usize,
    lent: usize,
    total: usize,
    kernel: Option<Kernel>,
    /// Destination MAC addresses whose frames the kernel routes.
    routed: Vec<[u8; 6]>,
    /// The kernel's counters when another process left the sockets.
    earlier: (u64, u64),
    stats: AfXdpStats,
    memory: PhantomData<&'m mut Umem>,
}

impl<'m> AfXdp<'m> {
    /// Opens queues with packets in `umem` and rings of `ring` entries; [`frames_for`] returns the
    /// necessary memory. The queues receive nothing until a [`Program`](crate::Program) directs
    /// packets to them.
    ///
    /// # Errors
    /// The kernel refuses: CAP_NET_RAW is necessary, and CAP_IPC_LOCK or a sufficient limit of
    /// locked memory.
    ///
    /// # Panics
    /// `ring` is not a power of two, or another I/O has used the memory.
    pub fn open(umem: &'m mut Umem, queues: &[Queue], ring: u32) -> Result<Self, SocketError> {
        assert!(
            ring.is_power_of_two(),
            "expected a power of two, got {ring}"
        );
        assert!(!umem.is_used, "expected memory that has no sockets");
        umem.is_used = true;
        let registration = umem.registration();
        let chunks = umem.chunks();
        let mut members: Vec<Member> = Vec::new();
        for queue in queues {
            let memory = match members.first() {
                None => Memory::Own(registration),
                Some(first) => Memory::Of(&first.socket),
            };
            let socket = Socket::open(&queue.interface, queue.queue, &memory, ring)?;
            members.push(Member {
                socket,
                port: queue.port,
                receiving: 0,
                sending: 0,
                is_dirty: false,
            });
        }
        let free: Vec<u64> = chunks.all().collect();
        let mut io = Self::new(chunks, free.len(), free, members, ring);
        io.fill();
        Ok(io)
    }

    /// Stops using the sockets without losing a packet: packets wait in the rings until another
    /// process [resumes](Self::resume). Call it between two bursts.
    pub fn detach(self) -> Detached {
        let members = self.members.into_iter();
        Detached {
            sockets: members.map(|member| member.socket.into_fd()).collect(),
            ring: self.ring,
            free: self.free,
        }
    }

    /// Resumes sockets that another process detached. `umem` is the memory that they were opened
    /// with, and `queues` are their queues.
    ///
    /// # Errors
    /// The sockets cannot be used, or do not fit the memory.
    ///
    /// # Panics
    /// Another I/O of this process has used the memory.
    pub fn resume(
        umem: &'m mut Umem,
        queues: &[Queue],
        detached: Detached,
    ) -> Result<Self, SocketError> {
        assert!(!umem.is_used, "expected memory that has no sockets");
        umem.is_used = true;
        let Detached {
            sockets,
            ring,
            free,
        } = detached;
        let unfit = |what, expected: u64, got: u64| {
            Err(SocketError::HandedOver {
                what,
                expected,
                got,
            })
        };
        if sockets.len() != queues.len() {
            return unfit("sockets", queues.len() as u64, sockets.len() as u64);
        }
        if !ring.is_power_of_two() {
            return unfit(
                "entries of a ring, a power of two",
                u64::from(RING),
                ring.into(),
            );
        }
        let chunks = umem.chunks();
        let total = chunks.all().count();
        let mut members: Vec<Member> = Vec::new();
        for (queue, fd) in queues.iter().zip(sockets) {
            let socket = Socket::resume(fd, ring)?;
            // Each chunk for receiving comes back in the rx ring, each chunk to send in the
            // completion ring.
            let receiving = socket.fill.written().wrapping_sub(socket.rx.read());
            let sending = socket.tx.written().wrapping_sub(socket.completion.read());
            members.push(Member {
                port: queue.port,
                receiving,
                sending,
                is_dirty: false,
                socket,
            });
        }
        let lent = |member: &Member| u64::from(member.receiving) + u64::from(member.sending);
        let most = (total as u64).saturating_sub(members.iter().map(lent).sum());
        if free.len() as u64 > most {
            return unfit("free chunks at most", most, free.len() as u64);
        }
        let mut seen = vec![false; total];
        for &address in &free {
            let place = chunks.of(address).filter(|&(_, within)| within == 0);
            let place = place.map(|(chunk, _)| chunk / umem.chunk() as u64);
            let place = place.and_then(|place| seen.get_mut(place as usize));
            if place.is_none_or(|seen| std::mem::replace(seen, true)) {
                return unfit(
                    "as the offset of a chunk, each once, at most",
                    (total * umem.chunk()) as u64,
                    address,
                );
            }
        }
        let mut io = Self::new(chunks, total, free, members, ring);
        let earlier = io.stats();
        io.earlier = (earlier.overrun, earlier.too_long);
        Ok(io)
    }

    fn new(chunks: Chunks, total: usize, free: Vec<u64>, members: Vec<Member>, ring: u32) -> Self {
        let mut by_port = Vec::new();
        for (member, index) in members.iter().zip(0..) {
            let port = usize::from(member.port.0);
            if by_port.len() <= port {
                by_port.resize(port + 1, None);
            }
            by_port[port].get_or_insert(index);
        }
        Self {
            chunks,
            total,
            free,
            members,
            by_port,
            ring,
            next: 0,
            lent: 0,
            kernel: None,
            routed: Vec::new(),
            earlier: (0, 0),
            stats: AfXdpStats::default(),
            memory: PhantomData,
        }
    }

    /// Passes frames with one of these destination MAC addresses to the kernel, which routes them:
    /// frames to the interfaces' own addresses would reach no other station. See
    /// [`pass_to`](Self::pass_to).
    pub fn route(&mut self, own: impl IntoIterator<Item = MacAddress>) {
        self.routed = own.into_iter().map(|mac| mac.0).collect();
    }

    /// Sets the sink of frames that are not the balancer's: each is written whole, from its link
    /// header on. Without a sink, they are counted and lost.
    pub fn pass_to(&mut self, kernel: impl Write + Send + 'static) {
        self.kernel = Some(Box::new(kernel));
    }

    /// Yields the sockets for a program, in the order of the queues that they were opened for.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.members.iter().map(|member| member.socket.as_fd())
    }

    /// Returns true if the drivers of all queues use zero copy.
    pub fn is_zero_copy(&self) -> bool {
        self.members
            .iter()
            .all(|member| member.socket.is_zero_copy())
    }

    /// Returns the counters of packets received and sent. Asks the kernel for its own counters, so
    /// do not call it for each burst.
    pub fn stats(&self) -> AfXdpStats {
        let kernel = self
            .members
            .iter()
            .filter_map(|member| member.socket.statistics());
        let (mut overrun, mut too_long) = (0, 0);
        for counted in kernel {
            // The kernel drops packets without a chunk, and packets longer than a chunk. It counts
            // both as dropped, and the former also as an empty fill ring.
            let empty = counted.rx_fill_ring_empty_descs.unwrap_or(0);
            let without_chunk = counted.rx_dropped.min(empty);
            too_long += counted.rx_dropped - without_chunk;
            overrun += without_chunk + counted.rx_ring_full.unwrap_or(0);
        }
        AfXdpStats {
            overrun: overrun.saturating_sub(self.earlier.0),
            too_long: too_long.saturating_sub(self.earlier.1),
            ..self.stats
        }
    }

    /// Returns the counts of chunks, by their place.
    pub fn places(&self) -> Places {
        let sum = |of: fn(&Member) -> u32| self.members.iter().map(of).sum::<u32>() as usize;
        Places {
            total: self.total,
            free: self.free.len(),
            receiving: sum(|member| member.receiving),
            sending: sum(|member| member.sending),
            lent: self.lent,
        }
    }

    /// Waits until there is something to receive, for at most `most`.
    ///
    /// # Errors
    /// The kernel cannot wait. A signal is no error.
    pub fn wait(&self, most: Duration) -> io::Result<()> {
        self.wait_or(most, None)
    }

    /// Waits like [`wait`](Self::wait), or until another file is readable.
    ///
    /// # Errors
    /// The kernel cannot wait. A signal is no error.
    pub fn wait_or(&self, most: Duration, other: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fds = self.members.iter().map(|member| &member.socket);
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        if let Some(other) = &other {
            fds.push(PollFd::new(other, PollFlags::IN));
        }
        let most = Timespec {
            tv_sec: most.as_secs() as i64,
            tv_nsec: most.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&most)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes back sent chunks, and gives the kernel chunks to receive into.
    fn fill(&mut self) {
        for member in &mut self.members {
            let mut count = 0;
            while let Some(address) = member.socket.completion.pop() {
                count += 1;
                if let Some((chunk, _)) = self.chunks.of(address) {
                    self.free.push(chunk);
                }
            }
            if count > 0 {
                member.socket.completion.release();
                member.sending -= count;
            }
        }
        for member in &mut self.members {
            // Smaller batches would write a shared line for every few chunks.
            if self.ring - member.receiving < (self.ring / 4).min(64) {
                continue;
            }
            while member.receiving < self.ring {
                let Some(chunk) = self.free.pop() else { break };
                if let Err(chunk) = member.socket.fill.push(chunk) {
                    self.free.push(chunk);
                    break;
                }
                member.receiving += 1;
            }
            member.socket.fill.submit();
            if member.socket.is_zero_copy() {
                member.socket.wake_receiver();
            }
        }
    }

    /// Takes received packets of a member, as many as fit.
    #[inline]
    fn take(&mut self, place: usize, burst: &mut Burst<'m>) {
        let Some(member) = self.members.get_mut(place) else {
            return;
        };
        let mut count = 0;
        while !burst.is_full() {
            let Some(packet) = member.socket.rx.pop() else {
                break;
            };
            count += 1;
            let Some((chunk, offset)) = self.chunks.of(packet.addr) else {
                continue; // the kernel has no others
            };
            // SAFETY: the chunk came from the rx ring, so the kernel has released it, and no other
            // owner has it; the memory is borrowed for `'m`.
            let buffer = unsafe { self.chunks.lend(chunk) };
            match Frame::new(buffer, offset, packet.len as usize) {
                Some(mut frame) => {
                    frame.set_port(member.port);
                    let _ = burst.push(frame); // there is room
                    self.lent += 1;
                }
                None => self.free.push(chunk),
            }
        }
        if count > 0 {
            member.socket.rx.release();
            member.receiving -= count;
            self.stats.received += u64::from(count);
        }
    }

    /// Puts a frame into the tx ring of a port; returns false if there is no room, and the caller
    /// keeps the frame.
    #[inline]
    fn send(&mut self, port: PortId, chunk: u64, offset: usize, len: usize) -> bool {
        let place = self.by_port.get(usize::from(port.0)).copied().flatten();
        let Some(member) = place.and_then(|place| self.members.get_mut(usize::from(place))) else {
            self.stats.undeliverable += 1;
            return false;
        };
        let packet = XdpDesc {
            addr: chunk + offset as u64,
            len: len as u32,
            options: XdpDescOptions::empty(),
        };
        // The completion ring needs room for it, too.
        if member.sending == self.ring || member.socket.tx.push(packet).is_err() {
            self.stats.refused += 1;
            return false;
        }
        member.sending += 1;
        member.is_dirty = true;
        self.stats.sent += 1;
        true
    }

    /// Sends a copy of a frame out of each port but its own, and the frame out of the last.
    fn flood(&mut self, frame: &Frame<'m>, chunk: u64) -> bool {
        let (offset, len) = (frame.headroom(), frame.len());
        let mut last = None;
        for port in 0..self.by_port.len() {
            let is_other = self.by_port[port].is_some() && port != usize::from(frame.port().0);
            // The last port gets the frame itself.
            let Some(port) = is_other
                .then(|| last.replace(PortId(port as u16)))
                .flatten()
            else {
                continue;
            };
            let Some(copy) = self.free.pop() else {
                self.stats.refused += 1;
                continue;
            };
            // SAFETY: a free chunk has no other owner, and the memory is borrowed for `'m`.
            let buffer: &mut [u8] = unsafe { self.chunks.lend(copy) };
            if let Some(place) = buffer.get_mut(offset..offset + len) {
                place.copy_from_slice(frame.bytes());
            }
            if !self.send(port, copy, offset, len) {
                self.free.push(copy);
            }
        }
        match last {
            Some(port) => self.send(port, chunk, offset, len),
            None => {
                self.stats.undeliverable += 1;
                false
            }
        }
    }

    /// Returns true if the kernel should route a frame instead of an interface sending it.
    #[inline]
    fn is_routed(&self, frame: &Frame<'m>) -> bool {
        let to: Option<&[u8; 6]> = frame.bytes().first_chunk();
        !self.routed.is_empty() && to.is_some_and(|to| self.routed.contains(to))
    }

    fn pass(&mut self, frame: &Frame<'m>) {
        let taken = self
            .kernel
            .as_mut()
            .map(|kernel| kernel.write(frame.bytes()));
        match taken {
            Some(Ok(_)) => self.stats.passed += 1,
            _ => self.stats.not_passed += 1,
        }
    }
}

impl<'m> PacketIo<'m> for AfXdp<'m> {
    type Error = io::Error;

    fn receive(&mut self, burst: &mut Burst<'m>) -> io::Result<usize> {
        let before = burst.len();
        self.fill();
        for _ in 0..self.members.len() {
            self.take(self.next, burst);
            self.next += 1;
            if self.next >= self.members.len() {
                self.next = 0;
            }
        }
        // Packets for which the device had no room last time.
        for member in &self.members {
            if member.sending > 0 {
                member.socket.send()?;
            }
        }
        Ok(burst.len() - before)
    }

    fn transmit(&mut self, burst: &mut Burst<'m>) -> io::Result<usize> {
        let before = self.stats.sent;
        for frame in burst.drain() {
            let (offset, len) = (frame.headroom(), frame.len());
            let capacity = offset + len + frame.tailroom();
            let Some(chunk) = self.chunks.at(frame.buffer_address(), capacity) else {
                self.stats.foreign += 1;
                continue;
            };
            self.lent -= 1;
            let is_kept = match frame.verdict() {
                _ if frame.is_empty() => false,
                Verdict::Drop(_) => false,
                Verdict::Pass => {
                    self.pass(&frame);
                    false
                }
                Verdict::Forward(_) | Verdict::Flood if self.is_routed(&frame) => {
                    self.pass(&frame);
                    false
                }
                Verdict::Flood => self.flood(&frame, chunk),
                // After `Forward`, the frame's port is the port to leave by.
                Verdict::Forward(_) | Verdict::Reply => {
                    if frame.bytes().first_chunk() == Some(&MacAddress::UNKNOWN.0) {
                        self.stats.unresolved += 1;
                        false
                    } else {
                        self.send(frame.port(), chunk, offset, len)
                    }
                }
            };
            if !is_kept {
                self.free.push(chunk);
            }
        }
        for member in &mut self.members {
            if std::mem::take(&mut member.is_dirty) {
                member.socket.tx.submit();
                member.socket.send()?;
            }
        }
        Ok((self.stats.sent - before) as usize)
    }

    fn reserve(&mut self, spare: &mut Burst<'m>, n: usize) -> usize {
        let mut count = 0;
        while count < n && !spare.is_full() {
            let Some(chunk) = self.free.pop() else { break };
            // SAFETY: a free chunk has no other owner, and the memory is borrowed for `'m`.
            let buffer = unsafe { self.chunks.lend(chunk) };
            let Some(frame) = Frame::new(buffer, KERNEL_HEADROOM, 0) else {
                break;
            };
            let _ = spare.push(frame); // there is room
            self.lent += 1;
            count += 1;
        }
        count
    }
}

impl fmt::Debug for AfXdp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AfXdp")
            .field("members", &self.members)
            .field("places", &self.places())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
