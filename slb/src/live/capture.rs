//! Copies of packets and their outcomes, from the workers into a capture.
//!
//! ```text
//!  worker: before the burst is processed   bytes of what it received
//!          while it is processed           the steps, as the pipeline reports them
//!          afterwards                      verdicts, bytes of what is sent ─► a chunk
//!  status thread: chunks ─► pcapng, a comment for each packet ─► the client
//! ```
//! A worker has a few chunks. While all of them are full, copies are lost and counted; packets are
//! never lost.

mod file;
mod options;
mod tap;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant as Clock};

use serde_json::{Value, json};
use slb_control::Config;

use self::file::File;
pub(crate) use self::options::VERDICTS;
use self::options::{Options, options};
pub(super) use self::tap::{Chunk, Tap};
use self::tap::{Counts, taps};
use super::look::Task;
use super::request::Answer;
use super::status::Shared;

/// The interval at which the status thread polls for chunks, so that no worker has to wake it.
const LOOK: Duration = Duration::from_millis(5);
/// The maximum time to wait for copies that are queued when the capture's time is over.
const LAST: Duration = Duration::from_secs(1);
/// The capture ends after its client has read nothing for this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Holds the only capture that can run.
struct Turn<'s>(&'s AtomicBool, Arc<AtomicBool>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.1.store(false, Ordering::Relaxed);
        self.0.store(false, Ordering::Release);
    }
}

/// Captures until a limit is reached, or the client is gone. A line with the number of bytes
/// precedes each piece of pcapng.
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
        return out.line(
            &json!({ "error": "another capture is running: only one is possible at a time" }),
        );
    }
    let is_wanted = Arc::new(AtomicBool::new(true));
    let _turn = Turn(taken, Arc::clone(&is_wanted));
    // Only one capture can run, so a client that stops reading must not block it.
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

/// The status thread's end of a capture.
struct Chunks {
    full: Receiver<Chunk>,
    empties: Vec<Sender<Chunk>>,
    is_wanted: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

/// The configurations that may have processed queued packets, with their generations.
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
    // After the time is over, queued copies are still written.
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
    // A client that read too slowly leaves copies in the queue.
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

#[cfg(test)]
mod tests {
    use slb_core::{Frame, HEADROOM, Instant};
    use slb_io_pcap::{Next, Reader};

    use super::*;
    use crate::balancer::Balancer;

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

    /// Returns three packets: one that is forwarded, one that is dropped, and one for another
    /// destination.
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
