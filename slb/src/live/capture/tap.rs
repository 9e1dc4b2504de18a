//! Copies of packets, and of what became of them, on their way from the workers into a capture.
//!
//! ```text
//!  worker: before the burst is processed   bytes of what it received
//!          while it is processed           the steps, as the pipeline reports them
//!          afterwards                      verdicts, bytes of what is sent ─► a chunk
//!  status thread: chunks ─► pcapng, a comment for each packet ─► the client
//! ```
//! A worker has a few chunks. While all of them are full, copies are lost, and counted; packets never are.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant as Clock, SystemTime};

use serde_json::{Value, json};
use slb_control::Config;
use slb_core::list::Subnet;
use slb_core::observe::{Observe as _, Step, Trail};
use slb_core::packet::Tuple;
use slb_core::{BURST, DropReason, Frame, Instant, PortId, Verdict};
use slb_io_pcap::{Format, Note, Writer};

use super::answers::port_name;
use super::look::Task;
use super::request::{Answer, end, protocol_number, several, text};
use super::status::Shared;
use crate::balancer::Balancer;
use crate::explain::comment;

/// Bytes, packets and steps of a chunk.
const BYTES: usize = 256 << 10;
const PACKETS: usize = 1024;
const STEPS: usize = 8 << 10;
/// Chunks that a worker and the status thread have together.
const CHUNKS: usize = 8;
/// A chunk is given on after so long, full or not.
const AGE: Duration = Duration::from_millis(20);
/// How often the status thread looks for chunks: it waits for none, so that no worker has to wake it.
const LOOK: Duration = Duration::from_millis(5);
/// The longest time for copies that are on their way when the capture's time is over.
const LAST: Duration = Duration::from_secs(1);
/// The capture ends after its client has read nothing for this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a packet that are kept unless it is said.
const SNAPLEN: u64 = 256;
/// More steps than a packet takes.
const STEPS_OF_ONE: usize = Trail::MOST;

/// Addresses that one end of a packet is to have, and its port.
type End = (Option<Subnet>, Option<u16>);

/// Selects the packets to capture.
#[derive(Clone, Debug, Default)]
struct Filter {
    /// Each is an end of the packet, under one of its names.
    ends: Vec<End>,
    protocol: Option<u8>,
    verdicts: Vec<&'static str>,
    reasons: Vec<DropReason>,
}

impl Filter {
    fn takes(&self, verdict: Verdict, mut steps: impl Iterator<Item = Step> + Clone) -> bool {
        let is_its = match verdict {
            Verdict::Drop(reason) => self.reasons.is_empty() || self.reasons.contains(&reason),
            _ => self.reasons.is_empty(),
        };
        let is_wanted = self.verdicts.is_empty() || self.verdicts.contains(&verdict_name(verdict));
        if !is_its || !is_wanted {
            return false;
        }
        let is_any = self.ends.is_empty() && self.protocol.is_none();
        is_any || steps.any(|step| tuple_of(&step).is_some_and(|tuple| self.is_of(&tuple)))
    }

    fn is_of(&self, tuple: &Tuple) -> bool {
        let is_at = |end: &End, address: IpAddr, port: u16| {
            end.0.is_none_or(|subnet| subnet.contains(address))
                && end.1.is_none_or(|wanted| wanted == port)
        };
        let is_end = |end: &End| {
            is_at(end, tuple.source, tuple.source_port)
                || is_at(end, tuple.destination, tuple.destination_port)
        };
        self.protocol.is_none_or(|wanted| wanted == tuple.protocol) && self.ends.iter().all(is_end)
    }
}

fn tuple_of(step: &Step) -> Option<Tuple> {
    match *step {
        Step::Parsed(packet) => Some(packet.tuple()),
        Step::FragmentPorts(tuple) | Step::QuotedFlow(tuple) | Step::Translated(tuple) => {
            Some(tuple)
        }
        _ => None,
    }
}

/// The names of verdicts.
pub(crate) const VERDICTS: [&str; 5] = ["forward", "flood", "reply", "pass", "drop"];

const fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward(_) => VERDICTS[0],
        Verdict::Flood => VERDICTS[1],
        Verdict::Reply => VERDICTS[2],
        Verdict::Pass => VERDICTS[3],
        Verdict::Drop(_) => VERDICTS[4],
    }
}

/// A part of a chunk's bytes, and how long the packet is.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    first: usize,
    kept: usize,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Copied {
    at: Instant,
    /// The port that the packet came by, or that the balancer's own packet leaves by.
    port: PortId,
    /// As it was received; `None`: the balancer made it.
    received: Option<Kept>,
    /// As it is sent, if it is.
    sent: Option<Kept>,
    verdict: Verdict,
    steps: (usize, usize),
}

/// Copies of a worker.
#[derive(Debug)]
pub(super) struct Chunk {
    worker: usize,
    packets: Vec<Copied>,
    steps: Vec<Step>,
    bytes: Vec<u8>,
    /// Nanoseconds from 1970 to the zero of the worker's clock.
    epoch: u64,
    /// When the first copy came.
    begun: Option<Clock>,
    /// The generation of the configuration that processed the packets.
    generation: u64,
}

/// Packets of all workers that were not copied.
#[derive(Debug, Default)]
struct Counts {
    /// Copies lost, since no chunk was free.
    lost: AtomicU64,
    /// Packets above the rate.
    above_rate: AtomicU64,
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

    fn bytes_of(&self, kept: Kept) -> &[u8] {
        self.bytes
            .get(kept.first..kept.first + kept.kept)
            .unwrap_or_default()
    }

    fn steps_of(&self, packet: &Copied) -> &[Step] {
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
pub(super) struct Tap {
    filter: Filter,
    snaplen: usize,
    /// One in so many is looked at.
    sample: u64,
    seen: u64,
    rate: Option<Rate>,
    epoch: u64,
    empty: Receiver<Chunk>,
    filled: SyncSender<Chunk>,
    chunk: Option<Chunk>,
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
    fn take(&mut self, now: Instant) -> bool {
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
    pub(super) fn set_begin(&mut self, begin: Clock) {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let zero = unix.unwrap_or_default().saturating_sub(begin.elapsed());
        self.epoch = u64::try_from(zero.as_nanos()).unwrap_or(0);
    }

    /// Returns true while the capture is still wanted.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    /// Processes a burst, and copies what is wanted of it.
    #[cold]
    #[inline(never)]
    pub(super) fn process(
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
    pub(super) fn note_own(&mut self, now: Instant, frames: &[Frame<'_>]) {
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
    pub(super) fn flush(&mut self) {
        let begun = self.chunk.as_ref().and_then(|chunk| chunk.begun);
        if begun.is_some_and(|begun| begun.elapsed() >= AGE) {
            self.give();
        }
    }

    fn give(&mut self) {
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
fn steps_of(
    all: &[(usize, Step)],
    number: Option<usize>,
) -> impl Iterator<Item = Step> + Clone + '_ {
    let own = all.iter().filter(move |(frame, _)| Some(*frame) == number);
    own.map(|&(_, step)| step).take(STEPS_OF_ONE)
}

/// The options of a capture.
struct Options {
    filter: Filter,
    snaplen: usize,
    sample: u64,
    rate: Option<f64>,
    seconds: Option<Duration>,
    bytes: u64,
    packets: u64,
}

fn options(asked: &Value) -> Result<Options, String> {
    let mut filter = Filter::default();
    let mut options = Options {
        filter: Filter::default(),
        snaplen: SNAPLEN as usize,
        sample: 1,
        rate: None,
        seconds: None,
        bytes: u64::MAX,
        packets: u64::MAX,
    };
    let number = |key: &str, value: &Value, most: u64| {
        let number = value.as_u64().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| format!("{key}: expected a number from 1 to {most}, got {value}"))
    };
    for (key, value) in asked.as_object().into_iter().flatten() {
        match key.as_str() {
            "ask" => {}
            "end" => {
                for one in several(asked, key)? {
                    filter.ends.push(end(one)?);
                }
            }
            "protocol" => {
                let name = text(asked, key)?.unwrap_or_default();
                filter.protocol = Some(protocol_number(name)?);
            }
            "verdict" => {
                for one in several(asked, key)? {
                    let known = VERDICTS.into_iter().find(|name| *name == one);
                    filter.verdicts.push(known.ok_or_else(|| {
                        let all = VERDICTS.join(", ");
                        format!("expected a verdict of {all}, got {one:?}")
                    })?);
                }
            }
            "reason" => {
                for one in several(asked, key)? {
                    let known = DropReason::ALL.iter().find(|reason| reason.name() == one);
                    filter.reasons.push(*known.ok_or_else(|| {
                        let all: Vec<&str> = DropReason::ALL.iter().map(|r| r.name()).collect();
                        format!("expected a reason of {}, got {one:?}", all.join(", "))
                    })?);
                }
            }
            "snaplen" => options.snaplen = number(key, value, 1 << 16)? as usize,
            "sample" => options.sample = number(key, value, 1 << 32)?,
            "limit_rate" => options.rate = Some(number(key, value, 1 << 32)? as f64),
            "seconds" => {
                let seconds = value
                    .as_f64()
                    .filter(|seconds| (0.001..=1e9).contains(seconds));
                let seconds = seconds
                    .ok_or_else(|| format!("seconds: expected a number above zero, got {value}"))?;
                options.seconds = Some(Duration::from_secs_f64(seconds));
            }
            "size" => options.bytes = number(key, value, 1 << 50)?,
            "packets" => options.packets = number(key, value, 1 << 50)?,
            other => return Err(format!("a capture has no option {other:?}")),
        }
    }
    options.filter = filter;
    Ok(options)
}

/// Takes part in the one capture that there can be.
struct Turn<'s>(&'s AtomicBool, Arc<AtomicBool>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.1.store(false, Ordering::Relaxed);
        self.0.store(false, Ordering::Release);
    }
}

/// Captures until what was asked for is reached, or the client is gone. Blocks of pcapng follow lines that say
/// how many bytes they have.
pub(super) fn capture(
    asked: &Value,
    shared: &Shared,
    taken: &AtomicBool,
    out: &mut Answer<'_>,
) -> io::Result<()> {
    let options = match options(asked) {
        Ok(options) => options,
        Err(error) => return out.line(&json!({ "error": error })),
    };
    if taken.swap(true, Ordering::Acquire) {
        return out.line(&json!({ "error": "another capture is going on: there can be one" }));
    }
    let is_wanted = Arc::new(AtomicBool::new(true));
    let _turn = Turn(taken, Arc::clone(&is_wanted));
    // There can be one capture, so a client that reads no more does not keep the place.
    out.set_patience(PATIENCE)?;
    let workers = shared.workers();
    let counts = Arc::new(Counts::default());
    let (taps, full, empties) = taps(&options, workers, &is_wanted, &counts);
    for (worker, tap) in taps.into_iter().enumerate() {
        shared.assign(worker, Task::Capture(Box::new(tap)));
    }
    let chunks = Chunks {
        full,
        empties,
        is_wanted,
        counts,
    };
    write(&options, shared, &chunks, out)
}

/// Taps for workers, where their chunks go, and where each one's come from.
fn taps(
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

/// The status thread's end of a capture.
struct Chunks {
    full: Receiver<Chunk>,
    empties: Vec<Sender<Chunk>>,
    is_wanted: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

/// The configurations that packets on their way may have been processed by, with their generations.
#[derive(Default)]
struct Recent(VecDeque<(u64, Arc<Config>)>);

impl Recent {
    const MOST: usize = 64;

    fn note(&mut self, shared: &Shared) {
        let (config, snapshot) = shared.in_place();
        let generation = snapshot.generation();
        if self.0.back().is_none_or(|(last, _)| *last != generation) {
            self.0.push_back((generation, config));
            if self.0.len() > Self::MOST {
                self.0.pop_front();
            }
        }
    }

    fn of(&self, generation: u64) -> Option<&Config> {
        let found = self.0.iter().find(|(own, _)| *own == generation);
        found.map(|(_, config)| &**config)
    }
}

fn write(
    options: &Options,
    shared: &Shared,
    chunks: &Chunks,
    out: &mut Answer<'_>,
) -> io::Result<()> {
    let begin = Clock::now();
    let mut file = File::new()?;
    let mut recent = Recent::default();
    out.block(&file.take())?;
    let is_full = |file: &File| file.packets >= options.packets || file.written >= options.bytes;
    // After the time is over, the copies that are there are still written.
    let mut end = None;
    while !is_full(&file) && end.is_none_or(|end: Clock| end.elapsed() < LAST) {
        recent.note(shared);
        let is_over = options.seconds.is_some_and(|most| begin.elapsed() >= most);
        if end.is_none() && (is_over || out.is_to_end()) {
            chunks.is_wanted.store(false, Ordering::Relaxed);
            end = Some(Clock::now());
        }
        match chunks.full.try_recv() {
            Ok(mut chunk) => {
                file.add(
                    recent.of(chunk.generation),
                    &shared.config(),
                    &chunk,
                    options,
                )?;
                chunk.packets.clear();
                chunk.steps.clear();
                chunk.bytes.clear();
                chunk.begun = None;
                let _ = chunks.empties[chunk.worker].send(chunk);
                out.block(&file.take())?;
            }
            Err(TryRecvError::Empty) => {
                out.beat()?;
                std::thread::sleep(LOOK);
            }
            Err(TryRecvError::Disconnected) if end.is_some() => break,
            Err(TryRecvError::Disconnected) => {
                return out.line(&json!({ "error": "the workers ended" }));
            }
        }
    }
    // A client that read too slowly to the end leaves copies behind.
    let left = match is_full(&file) {
        true => 0,
        false => chunks
            .full
            .try_iter()
            .map(|chunk| chunk.packets.len())
            .sum::<usize>() as u64,
    };
    out.line(&json!({ "end": {
        "packets": file.packets,
        "bytes": file.written,
        "lost": chunks.counts.lost.load(Ordering::Relaxed) + left,
        "above_rate": chunks.counts.above_rate.load(Ordering::Relaxed),
        "seconds": begin.elapsed().as_secs_f64(),
    } }))
}

/// Bytes that a writer has written and that were not taken yet.
#[derive(Clone, Default)]
struct Buffer(Rc<RefCell<Vec<u8>>>);

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A capture in pcapng, block by block.
struct File {
    buffer: Buffer,
    writer: Writer<Buffer>,
    /// The interface of each port.
    interfaces: Vec<(PortId, u32)>,
    packets: u64,
    /// Bytes that were taken.
    written: u64,
}

impl File {
    fn new() -> io::Result<Self> {
        let buffer = Buffer::default();
        Ok(Self {
            writer: Writer::new(buffer.clone(), Format::PcapNg)?,
            buffer,
            interfaces: Vec::new(),
            packets: 0,
            written: 0,
        })
    }

    fn take(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut *self.buffer.0.borrow_mut());
        self.written += bytes.len() as u64;
        bytes
    }

    fn interface(&mut self, config: &Config, port: PortId) -> io::Result<u32> {
        if let Some((_, number)) = self.interfaces.iter().find(|(known, _)| *known == port) {
            return Ok(*number);
        }
        let number = self.writer.add_interface(&port_name(config, port))?;
        self.interfaces.push((port, number));
        Ok(number)
    }

    /// Adds the packets of a chunk. `own` is the configuration that processed them, if it is still known; names of
    /// ports are of `config`, the present one.
    fn add(
        &mut self,
        own: Option<&Config>,
        config: &Config,
        chunk: &Chunk,
        options: &Options,
    ) -> io::Result<()> {
        for packet in &chunk.packets {
            let taken = self.written + self.buffer.0.borrow().len() as u64;
            if self.packets >= options.packets || taken >= options.bytes {
                break;
            }
            self.packets += 1;
            let mut trail = Trail::new(0);
            for &step in chunk.steps_of(packet) {
                trail.step(0, step);
            }
            let role = config.node.role.name();
            let text = match (packet.received, own) {
                (Some(_), Some(own)) => own.with_spec(|spec| comment(own, spec, &trail)),
                (Some(_), None) => {
                    let verdict = packet.verdict;
                    format!("{role}: verdict {verdict}; by a configuration that is gone")
                }
                (None, _) => format!("{role}: made by itself"),
            };
            let at = Instant::from_nanos(chunk.epoch.saturating_add(packet.at.as_nanos()));
            let out_port = match packet.verdict {
                Verdict::Forward(port) => port,
                _ => packet.port,
            };
            let halves = [
                (packet.received, packet.port, false),
                (packet.sent, out_port, true),
            ];
            for (kept, port, is_sent) in halves {
                let Some(kept) = kept else { continue };
                let note = Note {
                    interface: self.interface(config, port)?,
                    is_sent: Some(is_sent),
                    comment: &text,
                };
                let cut = kept.len - kept.kept;
                self.writer
                    .write_noted(at, chunk.bytes_of(kept), cut, &note)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use slb_core::HEADROOM;
    use slb_io_pcap::{Next, Reader};

    use super::*;

    const CLIENT: [u8; 4] = [192, 0, 2, 1];
    const VIP: [u8; 4] = [20, 20, 20, 100];

    fn config() -> Config {
        let text = include_str!("../../../examples/web.toml");
        Config::parse("web.toml", text).expect("a good configuration")
    }

    fn packet(from: u16, to: ([u8; 4], u16)) -> Vec<u8> {
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1])
            .ipv4(CLIENT, to.0, 64)
            .tcp(from, to.1, 1, 1000)
            .syn()
            .write(&mut packet, &[7; 600])
            .expect("a packet");
        packet
    }

    /// One that is forwarded, one that is dropped, and one that is none of the mux's.
    fn packets() -> Vec<Vec<u8>> {
        vec![
            packet(50_000, (VIP, 80)),
            packet(50_001, (VIP, 81)),
            packet(50_002, ([9, 9, 9, 9], 80)),
        ]
    }

    fn process(balancer: &mut Balancer, tap: Option<&mut Tap>, now: Instant, all: &[Vec<u8>]) {
        let mut buffers: Vec<Vec<u8>> = all.iter().map(|_| vec![0; 2048]).collect();
        let frames = buffers.iter_mut().zip(all).map(|(buffer, packet)| {
            buffer[HEADROOM..][..packet.len()].copy_from_slice(packet);
            Frame::new(buffer, HEADROOM, packet.len()).expect("it fits")
        });
        let mut frames: Vec<Frame<'_>> = frames.collect();
        match tap {
            Some(tap) => tap.process(balancer, now, &mut frames),
            None => balancer.process(now, &mut frames, &mut ()),
        }
    }

    /// Captures a few packets; returns the file and the bytes of each packet in it.
    fn captured(asked: &Value) -> (Vec<u8>, Vec<Vec<u8>>) {
        let (config, options) = (config(), options(asked).expect("good options"));
        let mut balancer = Balancer::new(&config).expect("enough memory");
        let is_wanted = Arc::new(AtomicBool::new(true));
        let counts = Arc::new(Counts::default());
        let (mut taps, full, _empties) = taps(&options, 1, &is_wanted, &counts);
        let tap = &mut taps[0];
        tap.set_begin(Clock::now());
        process(&mut balancer, Some(tap), Instant::from_secs(1), &packets());
        tap.give();
        let mut file = File::new().expect("memory");
        while let Ok(chunk) = full.try_recv() {
            file.add(Some(&config), &config, &chunk, &options)
                .expect("memory");
        }
        let bytes = file.take();
        let mut reader = Reader::new(io::Cursor::new(bytes.clone())).expect("a capture");
        let (mut all, mut buffer) = (Vec::new(), vec![0; 4096]);
        while let Next::Packet { len, .. } = reader.next(&mut buffer, None).expect("no damage") {
            all.push(buffer[..len].to_vec());
        }
        (bytes, all)
    }

    #[test]
    fn a_packet_is_there_as_it_came_and_as_it_went_with_what_became_of_it() {
        let (file, all) = captured(&json!({ "ask": "capture", "snaplen": 2000 }));
        let came = packets();
        assert_eq!(all.len(), 4, "one of them went out");
        assert_eq!([&all[0], &all[2], &all[3]], [&came[0], &came[1], &came[2]]);
        assert!(all[1].ends_with(&came[0][34..]), "in VXLAN");
        let text = String::from_utf8_lossy(&file);
        for comment in [
            "mux: rule \"http\": tcp port 80",
            "verdict forward, out of port 0",
            "verdict drop, no_rule: ",
            "verdict pass, untouched",
        ] {
            assert!(text.contains(comment), "{comment}");
        }
    }

    #[test]
    fn filters_take_what_they_say() {
        for (asked, count) in [
            (json!({ "verdict": ["drop"] }), 1),
            (json!({ "verdict": ["drop", "pass"] }), 2),
            (json!({ "reason": ["no_rule"] }), 1),
            (json!({ "reason": ["malformed"] }), 0),
            (json!({ "end": ["192.0.2.0/24"] }), 4),
            (json!({ "end": ["192.0.2.1", "20.20.20.100"] }), 3),
            (json!({ "end": ["192.0.2.1:50000"] }), 2),
            (json!({ "end": [":81"] }), 1),
            (json!({ "end": ["2001:db8::/32"] }), 0),
            (json!({ "protocol": "udp" }), 0),
            (json!({ "protocol": "tcp" }), 4),
            (json!({ "sample": 3 }), 1),
            (json!({ "packets": 1 }), 2),
            (json!({ "limit_rate": 1 }), 2),
        ] {
            assert_eq!(captured(&asked).1.len(), count, "{asked}");
        }
        for asked in [
            json!({ "verdict": ["dropped"] }),
            json!({ "reason": ["bad"] }),
            json!({ "sample": 0 }),
            json!({ "seconds": -1 }),
            json!({ "end": ["here"] }),
            json!({ "what": 1 }),
            json!({ "end": 80 }),
            json!({ "verdict": [1] }),
            json!({ "reason": {} }),
            json!({ "protocol": 6 }),
            json!({ "seconds": "1" }),
            json!({ "packets": "1" }),
        ] {
            assert!(options(&asked).is_err(), "{asked}");
        }
    }

    #[test]
    fn long_packets_are_cut() {
        let (_, all) = captured(&json!({ "snaplen": 100, "verdict": ["drop"] }));
        assert_eq!(all, [&packets()[1][..100]]);
    }

    #[test]
    fn copies_are_lost_before_packets_are() {
        let config = config();
        let options = options(&json!({})).expect("good options");
        let is_wanted = Arc::new(AtomicBool::new(true));
        let counts = Arc::new(Counts::default());
        let (mut taps, full, empties) = taps(&options, 1, &is_wanted, &counts);
        let tap = &mut taps[0];
        let mut watched = Balancer::new(&config).expect("enough memory");
        let mut alone = Balancer::new(&config).expect("enough memory");
        let burst: Vec<Vec<u8>> = (0..60).map(|port| packet(port, (VIP, 80))).collect();
        for number in 0..200 {
            let now = Instant::from_secs(1 + number);
            process(&mut watched, Some(tap), now, &burst);
            process(&mut alone, None, now, &burst);
        }
        assert_eq!(watched.stats(), alone.stats());
        let lost = counts.lost.load(Ordering::Relaxed);
        assert!(lost > 0, "no chunk was read");
        let chunks: Vec<Chunk> = full.try_iter().collect();
        let copied: usize = chunks.iter().map(|chunk| chunk.packets.len()).sum();
        let held = tap.chunk.as_ref().map_or(0, |chunk| chunk.packets.len());
        assert_eq!(copied as u64 + held as u64 + lost, 200 * 60);
        drop(empties);
    }
}
