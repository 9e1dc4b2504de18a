//! Two workers compared with one, on separate cores: each has the connections of half of the
//! clients, and gets packets of all clients, as from queues of a network card. Half of the packets
//! cross.
//!
//! A line's time is the time from the start of all workers until all packets are processed, divided
//! by the number of packets: two workers that do twice as much take half as long.

use core::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant as Clock;

use serde_json::json;
use slb_core::snapshot::Snapshot;
use slb_core::steer::Steering;
use slb_core::{BURST, Dataplane, Frame, HEADROOM, Host, Instant, Key, PortId, Proxy};

use self::ring::{Giver, Taker, ring};
use super::connections::{Case, Frames, Role};
use super::kind::Kind;
use crate::Options;
use crate::error::Failure;
use crate::machine::stay_on;
use crate::report::{Report, Sample};

#[path = "../../live/ring.rs"]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "workers of the program also sleep")
)]
mod ring;

/// Frames of a round, for each worker: the time until both see its end is small beside it.
const FRAMES: usize = 8192;
const WORDS: usize = 1 << 16;
const KEY: Key = Key::new([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344]);
const NOW: Instant = Instant::from_secs(1);
const CONNECTIONS: u32 = 64_000;

pub(super) fn measure(
    options: &Options,
    report: &mut Report,
    cpus: &[usize],
) -> Result<(), Failure> {
    report.group("workers that share connections, for each packet");
    for frame_len in [64, 1500] {
        let name = format!("across a ring, {frame_len} B");
        if report.wants(&name) {
            let sample = across_a_ring(options, frame_len);
            report.show(&name, sample, None);
        }
    }
    for (who, role) in [("host", Role::Host), ("proxy", Role::Proxy)] {
        for (way, outward) in [("in", false), ("out", true)] {
            let case = Case {
                kind: Kind::Tcp,
                role,
                ipv6: false,
                outward,
                frame_len: 64,
                flows: CONNECTIONS,
            };
            let what = format!("{who}, {way}, IPv4, 64 B, 64 k connections");
            let name = format!("whose a packet is: {what}");
            if report.wants(&name) {
                report.show(&name, case.steer(options)?, None);
            }
            let names = [1, 2].map(|count| format!("workers {count}: {what}"));
            let [one, two] = &names;
            if !report.wants(one) && !report.wants(two) {
                continue;
            }
            let alone = case.share(options, cpus.get(..1).unwrap_or_default())?;
            report.show(one, alone, None);
            let Some(cpus) = cpus.get(..2) else {
                continue; // on one core there is nothing to see
            };
            let both = case.share(options, cpus)?;
            let times = (alone.least / both.least * 100.0).round() / 100.0;
            report.show_with(two, both, None, &json!({ "times_one": times }));
        }
    }
    Ok(())
}

/// Moves frames into a ring and out of it, a burst at a time, on one core.
fn across_a_ring(options: &Options, frame_len: usize) -> Sample {
    let (mut giver, mut taker) = ring(WORDS);
    let frame = vec![0x5a; frame_len - 4];
    let mut place = vec![0; frame_len - 4];
    Sample::measure(options.time(), FRAMES, || {
        for _ in 0..FRAMES / BURST {
            for _ in 0..BURST {
                giver.put(0, &frame);
            }
            giver.publish();
            while taker.first().is_some() {
                taker.take(&mut place);
            }
            taker.release();
        }
    })
}

/// State that all workers of a line share.
struct Shared<'s> {
    snapshot: &'s Snapshot<'static>,
    steering: Steering,
    /// The number of times that workers have reached the beginning of a round.
    begun: AtomicUsize,
    /// The number of packets processed in all rounds.
    done: AtomicUsize,
    goes_on: AtomicBool,
}

impl Case {
    /// Measures the choice of packets' workers.
    fn steer(&self, options: &Options) -> Result<Sample, Failure> {
        let snapshot = self.snapshot()?;
        let steering = steering(2);
        let mut memory = vec![0u8; self.stride() * FRAMES];
        let frames = Frames::new(*self, 1).established(&mut memory);
        Ok(Sample::measure(options.time(), FRAMES, || {
            for burst in frames.chunks(BURST) {
                std::hint::black_box(steering.owners(&snapshot, 0, burst));
            }
        }))
    }

    /// Runs a worker on each core.
    fn share(&self, options: &Options, cpus: &[usize]) -> Result<Sample, Failure> {
        let snapshot = self.snapshot()?;
        let shared = Shared {
            snapshot: &snapshot,
            steering: steering(cpus.len().max(1) as u16),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            goes_on: AtomicBool::new(true),
        };
        let (there, back) = (ring(WORDS), ring(WORDS));
        let ends = [(there.0, back.1), (back.0, there.1)];
        thread::scope(|scope| {
            let workers: Vec<_> = (0..)
                .zip(ends)
                .zip(cpus)
                .map(|((number, ends), &cpu)| {
                    let shared = &shared;
                    scope.spawn(move || {
                        stay_on(cpu);
                        match self.role {
                            Role::Host => {
                                let host = Host::with_capacity(shared.snapshot, ROOM, KEY);
                                let host = host.map_err(Failure::failed)?;
                                self.work(host, number, shared, ends, options)
                            }
                            Role::Proxy => {
                                let proxy = Proxy::with_capacity(shared.snapshot, ROOM, KEY);
                                let proxy = proxy.map_err(Failure::failed)?;
                                self.work(proxy, number, shared, ends, options)
                            }
                        }
                    })
                })
                .collect();
            let mut nanos = Vec::new();
            for worker in workers {
                let ended = worker.join();
                nanos.extend(ended.map_err(|_| Failure::failed("a worker panicked"))??);
            }
            Ok(Sample::of(nanos))
        })
    }

    /// Runs a worker; the first one returns the times of its rounds.
    fn work<'s>(
        &self,
        mut role: impl Dataplane<'s>,
        number: u16,
        shared: &Shared<'_>,
        (mut giver, mut taker): (Giver, Taker),
        options: &Options,
    ) -> Result<Vec<f64>, Failure> {
        let workers = usize::from(shared.steering.workers().get());
        let mut memory = vec![0u8; self.stride() * FRAMES];
        let mut room = vec![0u8; self.stride() * BURST];
        let mut frames = Frames::new(*self, 1 + u64::from(number));
        let owners = |burst: &[Frame<'_>]| match workers {
            1 => [0; BURST],
            _ => shared.steering.owners(shared.snapshot, number, burst),
        };
        frames.establish(
            &mut memory[..self.stride() * super::mux::FRAMES],
            |frames| {
                for burst in frames.chunks_mut(BURST) {
                    let owners = owners(burst);
                    for (frame, owner) in burst.iter_mut().zip(owners) {
                        if owner == number {
                            role.process(NOW, std::slice::from_mut(frame));
                        }
                    }
                }
            },
        );
        let (begin, mut round, mut nanos) = (Clock::now(), 0, Vec::new());
        loop {
            let mut frames = frames.established(&mut memory);
            round += 1;
            if number == 0 {
                let goes_on = round <= 3 || begin.elapsed() < options.time();
                shared.goes_on.store(goes_on, Ordering::Relaxed);
            }
            shared.begun.fetch_add(1, Ordering::AcqRel);
            while shared.begun.load(Ordering::Acquire) < round * workers {
                std::hint::spin_loop();
            }
            if !shared.goes_on.load(Ordering::Relaxed) {
                break;
            }
            let start = Clock::now();
            for burst in frames.chunks_mut(BURST) {
                let owners = owners(burst);
                // Those of others to the end: what an I/O takes back.
                let mut own = 0;
                for place in 0..burst.len() {
                    if owners[place] == number {
                        burst.swap(own, place);
                        own += 1;
                        continue;
                    }
                    let frame = &burst[place];
                    while !giver.put(frame.port().0.into(), frame.bytes()) {
                        giver.publish();
                        self.take(&mut role, &mut taker, &mut room, shared);
                    }
                }
                giver.publish();
                role.process(NOW, &mut burst[..own]);
                shared.done.fetch_add(own, Ordering::Relaxed);
                self.take(&mut role, &mut taker, &mut room, shared);
            }
            while shared.done.load(Ordering::Relaxed) < round * workers * FRAMES {
                self.take(&mut role, &mut taker, &mut room, shared);
            }
            if number == 0 {
                nanos.push(start.elapsed().as_nanos() as f64 / (workers * FRAMES) as f64);
            }
        }
        let stats = role.stats();
        if stats.forwarded != stats.received {
            return Err(Failure::failed(format!("not all was forwarded: {stats:?}")));
        }
        Ok(nanos)
    }

    /// Moves a burst from a ring into the worker's own frames, and processes it.
    fn take<'s>(
        &self,
        role: &mut impl Dataplane<'s>,
        taker: &mut Taker,
        room: &mut [u8],
        shared: &Shared<'_>,
    ) {
        let mut frames: [Frame<'_>; BURST] = [const { Frame::EMPTY }; BURST];
        let mut count = 0;
        for (place, buffer) in frames.iter_mut().zip(room.chunks_exact_mut(self.stride())) {
            let Some(waiting) = taker.first() else { break };
            let mut frame = Frame::new(buffer, HEADROOM, waiting.len).unwrap_or(Frame::EMPTY);
            taker.take(frame.bytes_mut());
            frame.set_port(PortId(waiting.note as u16));
            *place = frame;
            count += 1;
        }
        if count > 0 {
            taker.release();
            role.process(NOW, &mut frames[..count]);
            shared.done.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Places of a worker's table: it has half of the connections, or all.
const ROOM: usize = 2 * CONNECTIONS as usize;

fn steering(workers: u16) -> Steering {
    let workers = NonZeroU16::new(workers).unwrap_or(NonZeroU16::MIN);
    Steering::new(workers, KEY)
}
