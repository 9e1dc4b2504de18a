//! [`PacketIo`] over devices, one for each port.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slb_core::pool::FramePool;
use slb_core::wire::ethernet::{self, EtherType};
use slb_core::{BURST, Burst, Frame, PacketIo, PortId, Verdict};

use crate::device::{Device, Layer};
use crate::uring::{BATCH, Read, Uring, Write};

/// The longest frame: enough for a device with an MTU of 9000. Longer frames are left out, and
/// counted.
pub const FRAME_LEN: usize = 9216;

/// Offset of a packet in its buffer.
const START: usize = FramePool::START;

/// Bytes of memory for `frames` frames.
pub const fn memory_for(frames: usize) -> usize {
    FramePool::memory_for(frames, FRAME_LEN)
}

/// Counters of frames read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunStats {
    /// Frames received.
    pub received: u64,
    /// Frames written to a device; a flooded frame counts for each device.
    pub sent: u64,
    /// Frames received that are longer than [`FRAME_LEN`], or no IP on a TUN device.
    pub unreadable: u64,
    /// Frames that a device did not accept: its queue is full, or the device is down.
    pub refused: u64,
    /// Frames for an unknown port, or that a TUN device cannot carry.
    pub undeliverable: u64,
    /// Frames handed to `transmit` that are not in this I/O's memory.
    pub foreign: u64,
}

impl TunStats {
    /// Each counter and its name.
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("received", self.received),
            ("sent", self.sent),
            ("unreadable", self.unreadable),
            ("refused", self.refused),
            ("undeliverable", self.undeliverable),
            ("foreign", self.foreign),
        ]
    }
}

/// A device, its port, and the number of its reads in a batch.
#[derive(Debug)]
struct Port {
    id: PortId,
    device: Device,
    /// The number of reads in the next batch, which grows if all reads of the last batch returned
    /// frames.
    reads: usize,
    /// True if frames for the port are written to this device: with several queues, to the first.
    sends: bool,
}

/// The minimum number of reads of a device in a batch.
const FEW: usize = 4;

/// Devices as ports.
#[derive(Debug)]
pub struct Tun<'m> {
    ports: Vec<Port>,
    pool: FramePool<'m>,
    /// The next device to read, so that no device starves.
    next: usize,
    /// The ring; `None` if each frame is read and written by itself.
    uring: Option<Uring>,
    stats: TunStats,
}

impl<'m> Tun<'m> {
    /// Makes an I/O of devices, each a port, with frames in `memory`; see [`memory_for`]. io_uring
    /// reads and writes them in batches, if the kernel has and allows it.
    pub fn new(ports: Vec<(PortId, Device)>, memory: &'m mut [u8]) -> Self {
        let uring = Uring::new(memory).ok();
        Self {
            uring,
            ..Self::unbatched(ports, memory)
        }
    }

    /// Makes an I/O without io_uring, with a system call for each frame.
    pub fn unbatched(ports: Vec<(PortId, Device)>, memory: &'m mut [u8]) -> Self {
        let mut own: Vec<Port> = Vec::new();
        for (id, device) in ports {
            own.push(Port {
                id,
                device,
                reads: FEW,
                sends: own.iter().all(|other| other.id != id),
            });
        }
        Self {
            ports: own,
            pool: FramePool::new(memory, FRAME_LEN),
            next: 0,
            uring: None,
            stats: TunStats::default(),
        }
    }

    /// Returns the devices, each with its port. Frames that were read and not yet written are lost.
    pub fn into_devices(self) -> Vec<(PortId, Device)> {
        let ports = self.ports.into_iter();
        ports.map(|port| (port.id, port.device)).collect()
    }

    /// Returns true if frames are read and written in batches.
    pub fn is_batched(&self) -> bool {
        self.uring.is_some()
    }

    /// Returns the counters of frames read and written.
    pub fn stats(&self) -> TunStats {
        self.stats
    }

    /// Waits until a device is readable, for at most `most`.
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
        let mut fds: Vec<PollFd<'_>> = self
            .ports
            .iter()
            .map(|port| PollFd::new(&port.device, PollFlags::IN))
            .collect();
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

    /// Reads from each device in turn, a frame at a time, until no device has one.
    fn receive_singly(&mut self, burst: &mut Burst<'m>) -> io::Result<()> {
        let mut empty = 0;
        while empty < self.ports.len() && !burst.is_full() {
            match self.read(self.next, burst)? {
                Some(()) => empty = 0,
                None => empty += 1,
            }
            self.next = (self.next + 1) % self.ports.len();
        }
        Ok(())
    }

    /// Reads a frame of a port into a buffer; returns `None` if there is none.
    fn read(&mut self, place: usize, burst: &mut Burst<'m>) -> io::Result<Option<()>> {
        let Some(port) = self.ports.get(place) else {
            return Ok(None);
        };
        let Some(buffer) = self.pool.take() else {
            return Ok(None);
        };
        let result = port.device.file().read(room(buffer, port.device.layer()));
        let is_there = self.take(place, buffer, result, burst)?;
        Ok(is_there.then_some(()))
    }

    /// Reads from all devices in one batch.
    fn receive_batched(&mut self, burst: &mut Burst<'m>) -> io::Result<()> {
        let mut buffers: heapless::Vec<(usize, &'m mut [u8]), BATCH> = heapless::Vec::new();
        for turn in 0..self.ports.len() {
            let place = (self.next + turn) % self.ports.len();
            for _ in 0..self.ports[place].reads {
                if burst.len() + buffers.len() >= BURST {
                    break;
                }
                let Some(buffer) = self.pool.take() else {
                    break;
                };
                let _ = buffers.push((place, buffer)); // a batch has room for a burst
            }
        }
        self.next = (self.next + 1) % self.ports.len().max(1);
        let mut reads: heapless::Vec<Read<'_>, BATCH> = heapless::Vec::new();
        for (place, buffer) in &mut buffers {
            let device = &self.ports[*place].device;
            let _ = reads.push(Read {
                room: room(buffer, device.layer()),
                device: device.as_fd(),
                result: Ok(0),
            });
        }
        if let Some(uring) = &mut self.uring {
            uring.read(&mut reads)?;
        }
        let results: heapless::Vec<_, BATCH> = reads.into_iter().map(|read| read.result).collect();
        let mut found: (usize, usize, usize) = (usize::MAX, 0, 0);
        let mut failed = None;
        for ((place, buffer), result) in buffers.into_iter().zip(results) {
            if found.0 != place {
                self.adapt(found);
                found = (place, 0, 0);
            }
            found.1 += 1;
            match self.take(place, buffer, result, burst) {
                Ok(is_there) => found.2 += usize::from(is_there),
                Err(error) => failed = Some(error),
            }
        }
        self.adapt(found);
        failed.map_or(Ok(()), Err)
    }

    /// Adapts the number of reads of a device in the next batch.
    fn adapt(&mut self, (place, asked, got): (usize, usize, usize)) {
        if let Some(port) = self.ports.get_mut(place) {
            port.reads = match got == asked {
                true => (port.reads * 2).min(BATCH),
                false => (got + FEW).min(BATCH),
            };
        }
    }

    /// Makes a frame of the bytes read; returns false if there were none.
    fn take(
        &mut self,
        place: usize,
        buffer: &'m mut [u8],
        result: io::Result<usize>,
        burst: &mut Burst<'m>,
    ) -> io::Result<bool> {
        let len = match result {
            Ok(len) => len,
            Err(error) => {
                self.pool.put(buffer);
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                    _ => Err(error),
                };
            }
        };
        let port = &self.ports[place];
        let link = link_len(port.device.layer());
        let is_whole = link + len < FRAME_LEN;
        if len == 0 || !is_whole || (link > 0 && make_link(&mut buffer[START..]).is_none()) {
            self.stats.unreadable += 1;
            self.pool.put(buffer);
            return Ok(true);
        }
        if let Some(mut frame) = Frame::new(buffer, START, link + len) {
            frame.set_port(port.id);
            self.stats.received += 1;
            let _ = burst.push(frame); // there is room: the caller checked
        }
        Ok(true)
    }

    /// Writes each frame to the devices that its verdict names.
    fn send_all(&mut self, frames: &[Frame<'m>]) -> io::Result<usize> {
        let mut sent = 0;
        let mut writes: heapless::Vec<Write<'_>, BATCH> = heapless::Vec::new();
        for frame in frames {
            let is_to_send = !matches!(frame.verdict(), Verdict::Pass | Verdict::Drop(_));
            if frame.is_empty() || !is_to_send {
                continue;
            }
            let mut known = false;
            let sending = self.ports.iter().filter(|port| port.sends);
            for port in sending.filter(|port| leaves(frame, port.id)) {
                known = true;
                let Some(bytes) = port.device.part_of(frame.bytes()) else {
                    self.stats.undeliverable += 1;
                    continue;
                };
                if writes.is_full() {
                    sent += write_all(self.uring.as_mut(), &mut writes, &mut self.stats)?;
                }
                let _ = writes.push(Write {
                    device: port.device.as_fd(),
                    bytes,
                    result: Ok(0),
                });
            }
            self.stats.undeliverable += u64::from(!known);
        }
        sent += write_all(self.uring.as_mut(), &mut writes, &mut self.stats)?;
        Ok(sent)
    }
}

/// Returns true if a frame leaves by a port.
fn leaves(frame: &Frame<'_>, port: PortId) -> bool {
    match frame.verdict() {
        // After `Forward`, the frame's port is the port to leave by.
        Verdict::Forward(_) | Verdict::Reply => port == frame.port(),
        Verdict::Flood => port != frame.port(),
        Verdict::Pass | Verdict::Drop(_) => false,
    }
}

/// Writes and clears a batch; returns the number of accepted frames. A device accepts a packet as a
/// whole, or not at all.
fn write_all<const N: usize>(
    uring: Option<&mut Uring>,
    writes: &mut heapless::Vec<Write<'_>, N>,
    stats: &mut TunStats,
) -> io::Result<usize> {
    match uring {
        Some(uring) if writes.len() > 1 => uring.write(writes)?,
        _ => {
            for write in writes.iter_mut() {
                write.result =
                    rustix::io::write(write.device, write.bytes).map_err(io::Error::from);
            }
        }
    }
    let sent = writes.iter().filter(|write| write.result.is_ok()).count();
    stats.sent += sent as u64;
    stats.refused += (writes.len() - sent) as u64;
    writes.clear();
    Ok(sent)
}

/// Returns the length of the link header that a device does not carry.
fn link_len(layer: Layer) -> usize {
    match layer {
        Layer::Ip => ethernet::HEADER_LEN,
        Layer::Ethernet => 0,
    }
}

/// Returns the part of a buffer that a device's frame is read into.
fn room(buffer: &mut [u8], layer: Layer) -> &mut [u8] {
    &mut buffer[START + link_len(layer)..START + FRAME_LEN]
}

/// Writes the Ethernet header of an IP packet that begins behind it.
fn make_link(frame: &mut [u8]) -> Option<()> {
    let (header, packet) = frame.split_first_chunk_mut::<{ ethernet::HEADER_LEN }>()?;
    let ether_type = match packet.first()? >> 4 {
        4 => EtherType::IPV4,
        6 => EtherType::IPV6,
        _ => return None,
    };
    header[..12].fill(0);
    header[12..].copy_from_slice(&ether_type.0.to_be_bytes());
    Some(())
}

impl<'m> PacketIo<'m> for Tun<'m> {
    type Error = io::Error;

    fn receive(&mut self, burst: &mut Burst<'m>) -> io::Result<usize> {
        let before = burst.len();
        match self.uring {
            Some(_) => self.receive_batched(burst)?,
            None => self.receive_singly(burst)?,
        }
        Ok(burst.len() - before)
    }

    fn transmit(&mut self, burst: &mut Burst<'m>) -> io::Result<usize> {
        let mut frames: heapless::Vec<Frame<'m>, BURST> = heapless::Vec::new();
        for frame in burst.drain() {
            match self.pool.index_of(&frame) {
                Some(_) => drop(frames.push(frame)), // there is room for a burst
                None => self.stats.foreign += 1,
            }
        }
        let sent = self.send_all(&frames);
        for frame in frames {
            self.pool.put(frame.into_buffer());
        }
        sent
    }

    fn reserve(&mut self, spare: &mut Burst<'m>, n: usize) -> usize {
        let mut count = 0;
        while count < n && !spare.is_full() {
            let Some(frame) = self.pool.frame() else {
                break;
            };
            count += usize::from(spare.push(frame).is_ok());
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::without_link;

    #[test]
    fn ip_packets_get_a_link_header_and_lose_it_again() {
        for (version, ether_type) in [(0x45, [0x08, 0x00]), (0x60, [0x86, 0xdd])] {
            let mut frame = [0xff; 40];
            frame[14] = version;
            assert_eq!(make_link(&mut frame), Some(()));
            assert_eq!(frame[12..14], ether_type);
            assert_eq!(without_link(&frame), Some(&frame[14..]));
        }
        let mut neither = [0; 40];
        assert_eq!(make_link(&mut neither), None);
        assert_eq!(make_link(&mut [0; 14]), None);
        neither[12..14].copy_from_slice(&[0x08, 0x06]); // ARP
        assert_eq!(without_link(&neither), None);
    }

    #[test]
    fn frames_of_others_are_set_aside() {
        let mut memory = vec![0; memory_for(2)];
        let mut other = vec![0; memory_for(1)];
        let mut io = Tun::new(Vec::new(), &mut memory);
        let mut burst = Burst::new();
        assert_eq!(io.reserve(&mut burst, 5), 2);
        assert!(
            burst
                .push(Frame::new(&mut other, START, 60).unwrap())
                .is_ok()
        );
        for frame in burst.iter_mut() {
            frame.set_verdict(Verdict::Forward(PortId(1)));
        }
        assert_eq!(io.transmit(&mut burst).unwrap(), 0);
        assert_eq!(io.stats().foreign, 1);
        // The others are back.
        assert_eq!(io.reserve(&mut burst, 5), 2);
    }
}
