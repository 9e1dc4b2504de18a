//! [`PacketIo`] over devices, each a port.

use std::io::{self, Read};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slb_core::wire::ethernet::{self, EtherType};
use slb_core::{Burst, Frame, HEADROOM, PacketIo, PortId, Verdict};

use crate::device::{Device, Layer};

/// The longest frame that is taken: what a device with an MTU of 9000 carries, and a little more.
/// Longer ones are left out, and counted.
pub const FRAME_LEN: usize = 9216;

/// Room before a frame, of whole cache lines.
const START: usize = HEADROOM.next_multiple_of(64);
/// Bytes of one buffer; an odd number of cache lines, so that buffers do not share cache sets.
const STRIDE: usize = (START + FRAME_LEN).next_multiple_of(128) + 64;

/// Bytes of memory for `frames` frames.
pub const fn memory_for(frames: usize) -> usize {
    frames * STRIDE
}

/// What was read and written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunStats {
    /// Frames received.
    pub received: u64,
    /// Frames written to a device; one that is flooded counts for each.
    pub sent: u64,
    /// Frames received that are longer than [`FRAME_LEN`], or no IP on a TUN device.
    pub unreadable: u64,
    /// Frames that a device did not take: its queue is full, or it is down.
    pub refused: u64,
    /// Frames for a port that is not here, or that a TUN device cannot carry.
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

/// Devices as ports.
#[derive(Debug)]
pub struct Tun<'m> {
    ports: Vec<(PortId, Device)>,
    free: Vec<&'m mut [u8]>,
    base: usize,
    buffers: usize,
    /// The device to be read next: so that none waits for another.
    next: usize,
    stats: TunStats,
}

impl<'m> Tun<'m> {
    /// Devices, each a port, whose frames lie in `memory`, see [`memory_for`].
    pub fn new(ports: Vec<(PortId, Device)>, memory: &'m mut [u8]) -> Self {
        let base = memory.as_ptr().addr();
        let free: Vec<_> = memory.chunks_exact_mut(STRIDE).rev().collect();
        Self {
            ports,
            base,
            buffers: free.len(),
            free,
            next: 0,
            stats: TunStats::default(),
        }
    }

    /// What was read and written so far.
    pub fn stats(&self) -> TunStats {
        self.stats
    }

    /// Waits until a device has something to read, or so long.
    ///
    /// # Errors
    /// The kernel cannot wait. That a signal came is none.
    pub fn wait(&self, most: Duration) -> io::Result<()> {
        let mut fds: Vec<PollFd<'_>> = self
            .ports
            .iter()
            .map(|(_, device)| PollFd::new(device, PollFlags::IN))
            .collect();
        let most = Timespec {
            tv_sec: most.as_secs() as i64,
            tv_nsec: most.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&most)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a frame of a port into a buffer. `None`: there is none.
    fn read(&mut self, place: usize, burst: &mut Burst<'m>) -> io::Result<Option<()>> {
        let Some((port, device)) = self.ports.get(place) else {
            return Ok(None);
        };
        let Some(buffer) = self.free.pop() else {
            return Ok(None);
        };
        let link = match device.layer() {
            Layer::Ip => ethernet::HEADER_LEN,
            Layer::Ethernet => 0,
        };
        let room = &mut buffer[START + link..START + FRAME_LEN];
        let most = room.len();
        let len = match device.file().read(room) {
            Ok(len) => len,
            Err(error) => {
                self.free.push(buffer);
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                    _ => Err(error),
                };
            }
        };
        let is_readable = len < most && (link == 0 || make_link(&mut buffer[START..]).is_some());
        let port = *port;
        if !is_readable || len == 0 {
            self.stats.unreadable += 1;
            self.free.push(buffer);
            return Ok(Some(()));
        }
        if let Some(mut frame) = Frame::new(buffer, START, link + len) {
            frame.set_port(port);
            self.stats.received += 1;
            let _ = burst.push(frame); // there is room: the caller looked
        }
        Ok(Some(()))
    }

    fn send(&mut self, frame: &Frame<'m>) -> usize {
        let mut sent = 0;
        let leaves = |port: PortId| match frame.verdict() {
            // After `Forward` the frame's port is the one to leave by.
            Verdict::Forward(_) | Verdict::Reply => port == frame.port(),
            Verdict::Flood => port != frame.port(),
            Verdict::Pass | Verdict::Drop(_) => false,
        };
        let mut known = false;
        for (_, device) in self.ports.iter().filter(|(port, _)| leaves(*port)) {
            known = true;
            match device.send(frame.bytes()) {
                Ok(()) => sent += 1,
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.stats.undeliverable += 1;
                }
                Err(_) => self.stats.refused += 1,
            }
        }
        let is_to_send = !matches!(frame.verdict(), Verdict::Pass | Verdict::Drop(_));
        self.stats.undeliverable += u64::from(is_to_send && !known);
        self.stats.sent += sent as u64;
        sent
    }

    fn is_own(&self, frame: &Frame<'m>) -> bool {
        frame
            .buffer_address()
            .checked_sub(self.base)
            .is_some_and(|offset| offset % STRIDE == 0 && offset / STRIDE < self.buffers)
    }
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

    /// Takes from each device in turn, a frame at a time, until none has one.
    fn receive(&mut self, burst: &mut Burst<'m>) -> io::Result<usize> {
        let before = burst.len();
        let mut empty = 0;
        while empty < self.ports.len() && !burst.is_full() {
            match self.read(self.next, burst)? {
                Some(()) => empty = 0,
                None => empty += 1,
            }
            self.next = (self.next + 1) % self.ports.len();
        }
        Ok(burst.len() - before)
    }

    fn transmit(&mut self, burst: &mut Burst<'m>) -> io::Result<usize> {
        let mut sent = 0;
        for frame in burst.drain() {
            if !self.is_own(&frame) {
                self.stats.foreign += 1;
                continue;
            }
            if !frame.is_empty() {
                sent += self.send(&frame);
            }
            self.free.push(frame.into_buffer());
        }
        Ok(sent)
    }

    fn reserve(&mut self, spare: &mut Burst<'m>, n: usize) -> usize {
        let mut count = 0;
        while count < n && !spare.is_full() {
            let Some(buffer) = self.free.pop() else { break };
            let Some(frame) = Frame::new(buffer, START, 0) else {
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
