//! A worker's end of a capture: copies of its packets, in chunks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant as Clock, SystemTime};

use slb_core::observe::{Step, Trail};
use slb_core::{BURST, Frame, Instant, PortId, Verdict};

use super::options::{Filter, Options};
use crate::balancer::Balancer;

/// Bytes, packets and steps of a chunk.
const BYTES: usize = 256 << 10;
const PACKETS: usize = 1024;
const STEPS: usize = 8 << 10;

/// Chunks that a worker and the status thread have together.
const CHUNKS: usize = 8;

/// A chunk is given on after so long, full or not.
const AGE: Duration = Duration::from_millis(20);

/// More steps than a packet takes.
const STEPS_OF_ONE: usize = Trail::MOST;

/// A part of a chunk's bytes, and how long the packet is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    first: usize,
    pub(super) kept: usize,
    pub(super) len: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Copied {
    pub(super) at: Instant,
    /// The port that the packet came by, or that the balancer's own packet leaves by.
    pub(super) port: PortId,
    /// The packet as it was received; `None` if the balancer made it.
    pub(super) received: Option<Kept>,
    /// The packet as it is sent; `None` if it is not.
    pub(super) sent: Option<Kept>,
    pub(super) verdict: Verdict,
    pub(super) steps: (usize, usize),
}

/// Copies of a worker.
#[derive(Debug)]
pub(in crate::live) struct Chunk {
    pub(super) worker: usize,
    pub(super) packets: Vec<Copied>,
    pub(super) steps: Vec<Step>,
    pub(super) bytes: Vec<u8>,
    /// Nanoseconds from 1970 to the zero of the worker's clock.
    pub(super) epoch: u64,
    /// The arrival time of the first copy.
    pub(super) begun: Option<Clock>,
    /// The generation of the configuration that processed the packets.
    pub(super) generation: u64,
}

/// Packets of all workers that were not copied.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Copies lost, since no chunk was free.
    pub(super) lost: AtomicU64,
    /// Packets above the rate.
    pub(super) above_rate: AtomicU64,
}

impl Chunk {
    fn keep(&mut self, bytes: &[u8], snaplen: usize) -> Kept {
        let kept = bytes.get(..snaplen).unwrap_or(bytes);
        let first = self.bytes.len();
        self.bytes.extend_from_slice(kept);
        Kept {
            first,
            kept: kept.len(),
            len: bytes.len(),
        }
    }

    pub(super) fn bytes_of(&self, kept: Kept) -> &[u8] {
        self.bytes
            .get(kept.first..kept.first + kept.kept)
            .unwrap_or_default()
    }

    pub(super) fn steps_of(&self, packet: &Copied) -> &[Step] {
        self.steps
            .get(packet.steps.0..packet.steps.1)
            .unwrap_or_default()
    }

    fn has_room(&self, snaplen: usize) -> bool {
        self.packets.len() < PACKETS
            && self.steps.len() + STEPS_OF_ONE <= STEPS
            && self.bytes.len() + 2 * snaplen <= self.bytes.capacity()
    }
}

/// The capture that a worker makes.
pub(in crate::live) struct Tap {
    filter: Filter,
    snaplen: usize,
    /// One of this many packets is captured.
    sample: u64,
    seen: u64,
    rate: Option<Rate>,
    epoch: u64,
    empty: Receiver<Chunk>,
    filled: SyncSender<Chunk>,
    pub(super) chunk: Option<Chunk>,
    is_wanted: Arc<AtomicBool>,
    /// The frames of the present burst before they are processed, and their steps.
    before: Vec<u8>,
    kept: [Option<(Kept, PortId)>; BURST],
    steps: Vec<(usize, Step)>,
    generation: u64,
    counts: Arc<Counts>,
}

/// Tokens for copies.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Rate {
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.as_nanos().saturating_sub(self.at.as_nanos()) as f64 / 1e9;
        // A tenth of a second's tokens are kept, and one at least.
        let most = (self.per_second / 10.0).max(1.0);
        self.tokens = (self.tokens + passed * self.per_second).min(most);
        self.at = now;
        let has = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(has));
        has
    }
}

impl Tap {
    /// Sets the zero of the worker's clock.
    pub(in crate::live) fn set_begin(&mut self, begin: Clock) {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let zero = unix.unwrap_or_default().saturating_sub(begin.elapsed());
        self.epoch = u64::try_from(zero.as_nanos()).unwrap_or(0);
    }

    /// Returns true while the capture is still wanted.
    pub(in crate::live) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    /// Processes a burst, and copies what is wanted of it.
    #[cold]
    #[inline(never)]
    pub(in crate::live) fn process(
        &mut self,
        balancer: &mut Balancer,
        now: Instant,
        frames: &mut [Frame<'_>],
    ) {
        self.before.clear();
        self.steps.clear();
        self.kept = [None; BURST];
        for (frame, kept) in frames.iter().zip(&mut self.kept) {
            self.seen += 1;
            if !self.seen.is_multiple_of(self.sample) {
                continue;
            }
            let bytes = frame.bytes();
            let copy = bytes.get(..self.snaplen).unwrap_or(bytes);
            let copied = Kept {
                first: self.before.len(),
                kept: copy.len(),
                len: bytes.len(),
            };
            *kept = Some((copied, frame.port()));
            self.before.extend_from_slice(copy);
        }
        let (steps, kept) = (&mut self.steps, &self.kept);
        let mut seen = |frame: usize, step: Step| {
            if kept.get(frame).is_some_and(Option::is_some) && steps.len() < steps.capacity() {
                steps.push((frame, step));
            }
        };
        balancer.process(now, frames, &mut seen);
        let generation = balancer.snapshot().generation();
        if self.generation != generation {
            self.give();
            self.generation = generation;
        }
        for (number, frame) in frames.iter().enumerate() {
            let Some(Some(kept)) = self.kept.get(number).copied() else {
                continue;
            };
            self.copy(now, frame, Some((number, kept)));
        }
    }

    /// Copies packets of the balancer's own.
    #[cold]
    pub(in crate::live) fn note_own(&mut self, now: Instant, frames: &[Frame<'_>]) {
        self.steps.clear();
        for frame in frames.iter().filter(|frame| !frame.is_empty()) {
            self.copy(now, frame, None);
        }
    }

    fn copy(&mut self, now: Instant, frame: &Frame<'_>, received: Option<(usize, (Kept, PortId))>) {
        let verdict = frame.verdict();
        let number = received.map(|(number, _)| number);
        // A packet that the balancer made itself has no steps: its addresses are not known here.
        if !self.filter.takes(verdict, steps_of(&self.steps, number)) {
            return;
        }
        if self.rate.as_mut().is_some_and(|rate| !rate.take(now)) {
            self.counts.above_rate.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if self
            .chunk
            .as_ref()
            .is_some_and(|chunk| !chunk.has_room(self.snaplen))
        {
            self.give();
        }
        let chunk = match self.chunk.take().map_or_else(|| self.empty.try_recv(), Ok) {
            Ok(chunk) => self.chunk.insert(chunk),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        chunk.begun.get_or_insert_with(Clock::now);
        let first = chunk.steps.len();
        chunk.steps.extend(steps_of(&self.steps, number));
        let steps = (first, chunk.steps.len());
        let port = received.map_or(frame.port(), |(_, (_, port))| port);
        let received = received.and_then(|(_, (kept, _))| {
            let bytes = self.before.get(kept.first..kept.first + kept.kept)?;
            let first = chunk.bytes.len();
            chunk.bytes.extend_from_slice(bytes);
            Some(Kept { first, ..kept })
        });
        let is_sent = matches!(
            verdict,
            Verdict::Forward(_) | Verdict::Flood | Verdict::Reply
        );
        let sent = is_sent.then(|| chunk.keep(frame.bytes(), self.snaplen));
        chunk.packets.push(Copied {
            at: now,
            port,
            received,
            sent,
            verdict,
            steps,
        });
    }

    /// Gives the chunk on if it is old enough, or the capture ends.
    #[cold]
    pub(in crate::live) fn flush(&mut self) {
        let begun = self.chunk.as_ref().and_then(|chunk| chunk.begun);
        if begun.is_some_and(|begun| begun.elapsed() >= AGE) {
            self.give();
        }
    }

    pub(super) fn give(&mut self) {
        if let Some(mut chunk) = self.chunk.take() {
            chunk.epoch = self.epoch;
            chunk.generation = self.generation;
            // There is room for all chunks, or nobody is there any more.
            let _ = self.filled.try_send(chunk);
        }
    }
}

/// A tap that ends gives on what it has.
impl Drop for Tap {
    fn drop(&mut self) {
        self.give();
    }
}

/// The steps of one frame of a burst.
pub(super) fn steps_of(
    all: &[(usize, Step)],
    number: Option<usize>,
) -> impl Iterator<Item = Step> + Clone + '_ {
    let own = all.iter().filter(move |(frame, _)| Some(*frame) == number);
    own.map(|&(_, step)| step).take(STEPS_OF_ONE)
}

/// Taps for workers, where their chunks go, and where each one's come from.
pub(super) fn taps(
    options: &Options,
    workers: usize,
    is_wanted: &Arc<AtomicBool>,
    counts: &Arc<Counts>,
) -> (Vec<Tap>, Receiver<Chunk>, Vec<Sender<Chunk>>) {
    let (filled, full) = sync_channel(workers * CHUNKS);
    let (mut taps, mut empties) = (Vec::new(), Vec::new());
    for worker in 0..workers {
        let (sender, empty) = channel();
        for _ in 0..CHUNKS {
            let _ = sender.send(Chunk {
                worker,
                packets: Vec::with_capacity(PACKETS),
                steps: Vec::with_capacity(STEPS),
                bytes: Vec::with_capacity(BYTES.max(8 * options.snaplen)),
                epoch: 0,
                begun: None,
                generation: 0,
            });
        }
        empties.push(sender);
        let rate = options.rate.map(|all| Rate {
            per_second: all / workers as f64,
            tokens: 1.0,
            at: Instant::ZERO,
        });
        taps.push(Tap {
            filter: options.filter.clone(),
            snaplen: options.snaplen,
            sample: options.sample,
            seen: 0,
            rate,
            epoch: 0,
            empty,
            filled: filled.clone(),
            chunk: None,
            is_wanted: Arc::clone(is_wanted),
            before: Vec::with_capacity(BURST * options.snaplen),
            kept: [None; BURST],
            steps: Vec::with_capacity(BURST * STEPS_OF_ONE),
            generation: 0,
            counts: Arc::clone(counts),
        });
    }
    (taps, full, empties)
}
