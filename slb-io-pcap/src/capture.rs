//! [`PacketIo`] over captures, by the captures' clock.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use slb_core::pool::FramePool;
use slb_core::{Burst, Frame, Instant, PacketIo, PortId, Verdict};

use crate::error::ReadError;
use crate::link::LinkType;
use crate::merge::Merge;
use crate::reader::{Next, Reader};
use crate::writer::{Note, Writer};

/// The longest frame that fits: the maximum length that tcpdump captures.
pub const FRAME_LEN: usize = 262_144;
/// Packets further apart than this are in different bursts, since the clock does not advance within
/// a burst.
const BURST_SPAN: Duration = Duration::from_millis(1);

/// Bytes of memory for `frames` frames.
pub const fn memory_for(frames: usize) -> usize {
    FramePool::memory_for(frames, FRAME_LEN)
}

/// Counters of a capture's reading and writing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureStats {
    /// Frames received.
    pub received: u64,
    /// Frames written: forwarded ones and answers.
    pub written: u64,
    /// Packets left out because their link type is unknown, or because they are too short for it.
    pub unknown_link: BTreeMap<LinkType, u64>,
    /// Packets left out because they are longer than [`FRAME_LEN`].
    pub too_long: u64,
    /// Packets left out because their time is before 1970 or after 21 July 2554.
    pub unknown_time: u64,
    /// Packets that a snap length truncated during the capture.
    pub cut: u64,
    /// Frames that were not written because the file's format cannot represent their time.
    pub without_time: u64,
    /// Frames handed to `transmit` that are not in this capture's memory.
    pub foreign: u64,
}

impl CaptureStats {
    /// Returns the number of packets that were left out, for any reason.
    pub fn left_out(&self) -> u64 {
        self.unknown_link.values().sum::<u64>() + self.too_long + self.unknown_time
    }
}

/// Properties of the packet in a buffer.
#[derive(Clone, Copy, Debug)]
struct Packet {
    timestamp: Instant,
    /// Number of zero bytes at the end that were not captured.
    filled: usize,
}

/// Captures to read and to write, as ports that receive and send.
pub struct Capture<'m, W: Write> {
    inputs: Merge,
    sent: Option<Writer<W>>,
    ports: Vec<(PortId, Writer<W>)>,
    passed: Option<Writer<W>>,
    pool: FramePool<'m>,
    /// The packet in each buffer.
    packets: Vec<Packet>,
    fills_cut: bool,
    now: Instant,
    at_end: bool,
    damaged: Option<ReadError>,
    stats: CaptureStats,
}

impl<'m, W: Write> Capture<'m, W> {
    /// Reads a capture as port 0, with frames in `memory`; see [`memory_for`].
    pub fn new(reader: Reader, memory: &'m mut [u8]) -> Self {
        Self::of_ports(vec![(PortId(0), reader)], memory)
    }

    /// Reads captures of several ports, merged by their timestamps.
    pub fn of_ports(inputs: Vec<(PortId, Reader)>, memory: &'m mut [u8]) -> Self {
        let pool = FramePool::new(memory, FRAME_LEN);
        Self {
            inputs: Merge::new(inputs),
            sent: None,
            ports: Vec::new(),
            passed: None,
            packets: vec![
                Packet {
                    timestamp: Instant::ZERO,
                    filled: 0
                };
                pool.len()
            ],
            fills_cut: false,
            pool,
            now: Instant::ZERO,
            at_end: false,
            damaged: None,
            stats: CaptureStats::default(),
        }
    }

    /// Restores the length of packets that a snap length cut, with zeros for the missing bytes, so that
    /// they can be processed by their headers. The output contains captured bytes only.
    #[must_use]
    pub fn fill_cut(mut self) -> Self {
        self.inputs.fill_cut();
        self.fills_cut = true;
        self
    }

    /// Writes the frames to send, forwarded ones and answers, to `writer` in order; a frame for
    /// several ports is written once.
    #[must_use]
    pub fn write_sent(mut self, writer: Writer<W>) -> Self {
        self.sent = Some(writer);
        self
    }

    /// Writes the frames to send out of `port` to `writer`. A flooded frame leaves by each such
    /// port except the one at which it arrived.
    #[must_use]
    pub fn write_port(mut self, port: PortId, writer: Writer<W>) -> Self {
        self.ports.push((port, writer));
        self
    }

    /// Writes passed frames to `writer`.
    #[must_use]
    pub fn write_passed(mut self, writer: Writer<W>) -> Self {
        self.passed = Some(writer);
        self
    }

    /// Returns the time at which the last burst's first packet was captured.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Returns true if there is nothing more to receive.
    pub fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Returns the counters of packets read and written.
    pub fn stats(&self) -> &CaptureStats {
        &self.stats
    }

    /// Returns the number of zero bytes at the end of a received frame that replace bytes cut by a
    /// snap length; see [`fill_cut`](Self::fill_cut).
    pub fn filled(&self, frame: &Frame<'m>) -> usize {
        let packet = self
            .pool
            .index_of(frame)
            .and_then(|index| self.packets.get(index));
        packet.map_or(0, |packet| packet.filled)
    }

    /// Returns the number of bytes of the files read so far.
    pub fn offset(&self) -> u64 {
        self.inputs.offset()
    }

    /// Ends all files.
    ///
    /// # Errors
    /// The rest of the data cannot be written.
    pub fn finish(self) -> io::Result<CaptureStats> {
        let ports = self.ports.into_iter().map(|(_, writer)| writer);
        for writer in self.sent.into_iter().chain(self.passed).chain(ports) {
            writer.finish()?;
        }
        Ok(self.stats)
    }

    /// Sends a burst as `transmit` does. In outputs of pcapng, each frame gets the comment that `comment` returns
    /// for its index in the burst; an empty one is left out.
    ///
    /// # Errors
    /// An output cannot be written.
    pub fn transmit_noted(
        &mut self,
        burst: &mut Burst<'m>,
        mut comment: impl FnMut(usize) -> String,
    ) -> Result<usize, CaptureError> {
        let mut sent = 0;
        let mut result = Ok(());
        for (place, frame) in burst.drain().enumerate() {
            let Some(index) = self.pool.index_of(&frame) else {
                self.stats.foreign += 1;
                continue;
            };
            if result.is_ok() && !frame.is_empty() {
                match self.send(self.packets[index], &frame, &comment(place)) {
                    Ok(written) => sent += usize::from(written),
                    Err(error) => result = Err(CaptureError::Write(error)),
                }
            }
            self.pool.put(frame.into_buffer());
        }
        self.stats.written += sent as u64;
        result.map(|()| sent)
    }

    fn send(&mut self, packet: Packet, frame: &Frame<'m>, comment: &str) -> io::Result<bool> {
        let verdict = frame.verdict();
        let timestamp = packet.timestamp;
        // An answer consists of captured bytes only.
        let cut = match verdict {
            Verdict::Reply => 0,
            _ => packet.filled.min(frame.len()),
        };
        let bytes = frame.bytes();
        let bytes = bytes.get(..bytes.len() - cut).unwrap_or_default();
        let note = Note {
            comment,
            ..Note::default()
        };
        let without_time = &mut self.stats.without_time;
        let mut write = |writer: &mut Writer<W>| {
            if !writer.has_time(timestamp) {
                *without_time += 1;
                return Ok(());
            }
            writer.write_noted(timestamp, bytes, cut, &note)
        };
        let writer = match verdict {
            Verdict::Forward(_) | Verdict::Flood | Verdict::Reply => &mut self.sent,
            Verdict::Pass => &mut self.passed,
            Verdict::Drop(_) => return Ok(false),
        };
        if let Some(writer) = writer {
            write(writer)?;
        }
        for (port, writer) in &mut self.ports {
            let leaves = match verdict {
                // After `Forward`, it is the port to leave by.
                Verdict::Forward(_) | Verdict::Reply => *port == frame.port(),
                Verdict::Flood => *port != frame.port(),
                Verdict::Pass | Verdict::Drop(_) => false,
            };
            if leaves {
                write(writer)?;
            }
        }
        Ok(verdict != Verdict::Pass)
    }
}

/// An error of a capture.
#[derive(Debug)]
#[non_exhaustive]
pub enum CaptureError {
    /// The capture cannot be read further.
    Read(ReadError),
    /// A frame cannot be written.
    Write(io::Error),
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => error.fmt(f),
            Self::Write(error) => write!(f, "the output cannot be written: {error}"),
        }
    }
}

impl std::error::Error for CaptureError {}

impl<'m, W: Write> PacketIo<'m> for Capture<'m, W> {
    type Error = CaptureError;

    /// An error is returned after all valid packets before it.
    fn receive(&mut self, burst: &mut Burst<'m>) -> Result<usize, CaptureError> {
        if let Some(error) = self.damaged.take() {
            self.at_end = self.inputs.has_no_error();
            return Err(CaptureError::Read(error));
        }
        let mut count = 0;
        while !burst.is_full() && !self.at_end {
            let Some(buffer) = self.pool.take() else {
                break;
            };
            let until = (count > 0).then(|| self.now + BURST_SPAN);
            let start = FramePool::START;
            let next = match buffer.get_mut(start..start + FRAME_LEN) {
                Some(room) => self.inputs.next(room, until),
                None => Ok((PortId(0), Next::End)),
            };
            match next {
                Ok((
                    port,
                    Next::Packet {
                        timestamp,
                        len,
                        cut,
                    },
                )) => {
                    self.stats.cut += u64::from(cut > 0);
                    if count == 0 {
                        self.now = self.now.max(timestamp);
                    }
                    let Some(mut frame) = Frame::new(buffer, start, len) else {
                        continue;
                    };
                    frame.set_port(port);
                    if let Some(index) = self.pool.index_of(&frame) {
                        let filled = if self.fills_cut { cut } else { 0 };
                        self.packets[index] = Packet { timestamp, filled };
                    }
                    if burst.push(frame).is_ok() {
                        count += 1;
                        self.stats.received += 1;
                    }
                    continue;
                }
                Ok((_, Next::UnknownLink(link))) => {
                    *self.stats.unknown_link.entry(link).or_default() += 1;
                }
                Ok((_, Next::TooLong)) => self.stats.too_long += 1,
                Ok((_, Next::UnknownTime)) => self.stats.unknown_time += 1,
                Ok((_, Next::End)) => self.at_end = true,
                Ok((_, Next::Later)) => {
                    self.pool.put(buffer);
                    break;
                }
                Err(error) if count == 0 => {
                    self.pool.put(buffer);
                    self.at_end = self.inputs.has_no_error();
                    return Err(CaptureError::Read(error));
                }
                Err(error) => {
                    self.pool.put(buffer);
                    self.damaged = Some(error);
                    break;
                }
            }
            self.pool.put(buffer);
        }
        Ok(count)
    }

    fn transmit(&mut self, burst: &mut Burst<'m>) -> Result<usize, CaptureError> {
        self.transmit_noted(burst, |_| String::new())
    }

    fn reserve(&mut self, spare: &mut Burst<'m>, n: usize) -> usize {
        let mut count = 0;
        while count < n && !spare.is_full() {
            let Some(frame) = self.pool.frame() else {
                break;
            };
            if let Some(index) = self.pool.index_of(&frame) {
                self.packets[index] = Packet {
                    timestamp: self.now,
                    filled: 0,
                };
            }
            count += usize::from(spare.push(frame).is_ok());
        }
        count
    }
}

impl<W: Write> fmt::Debug for Capture<'_, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
