//! One role on both ways, compared after each burst.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::super::*;
use super::segment::Segment;
use super::{FLOWS, HEADROOM};
use crate::frame::Burst;
use crate::key::Key as Secret;
use crate::mem::{Boxes, Memory};
use crate::nat::connection::Saved;
use crate::nat::{Link, Links, NatOptions};
use crate::packet::{Family, Packet, Part};
use crate::stats::{SnatCounters, Stats};
use crate::time::Instant;

/// A role that takes one of the ways.
pub(super) struct Side<R: Role, const SHORT: bool> {
    pub(super) pipeline: Pipeline<'static, Rc<Snapshot<'static>>>,
    pub(super) lanes: Box<[Lane; BURST]>,
    pub(super) plain: Box<[PlainLane; BURST]>,
    pub(super) last: R::Last,
}

/// The verdict of a frame and the steps that were observed.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    pub(super) headroom: usize,
    pub(super) bytes: Vec<u8>,
    pub(super) steps: Vec<Step>,
}

/// All that a role counts and remembers.
pub(super) struct State {
    pub(super) stats: Stats,
    pub(super) rules: Vec<RuleCounters>,
    pub(super) backends: Vec<BackendCounters>,
    pub(super) snat: Vec<SnatCounters>,
    pub(super) ipv4: Vec<Saved<u64>>,
    pub(super) ipv6: Vec<Saved<[u64; 4]>>,
}

impl<R: Role, const SHORT: bool> Side<R, SHORT> {
    pub(super) fn new(snapshot: Rc<Snapshot<'static>>) -> Self {
        const KEY: Secret = Secret::new([1, 2]);
        let mut tables = NatTables::build(&snapshot, 64, KEY, &mut Boxes).unwrap();
        tables.links = Links {
            ipv4: Boxes.take(64, Link::NONE).unwrap(),
            ipv6: Boxes.take(64, Link::NONE).unwrap(),
        };
        Self {
            pipeline: Pipeline::new(snapshot, tables, NatOptions::default()),
            lanes: Box::new([Lane::EMPTY; BURST]),
            plain: Box::new([PlainLane::EMPTY; BURST]),
            last: R::Last::default(),
        }
    }

    pub(super) fn process(&mut self, now: Instant, packets: &[(PortId, Vec<u8>)]) -> Vec<Outcome> {
        let mut memory: Vec<Vec<u8>> = packets
            .iter()
            .map(|(_, bytes)| [&[0; HEADROOM], &bytes[..], &[0; 8]].concat())
            .collect();
        let mut frames: Vec<_> = memory
            .iter_mut()
            .zip(packets)
            .map(|(buffer, (port, bytes))| {
                let mut frame = Frame::new(buffer, HEADROOM, bytes.len()).unwrap();
                frame.set_port(*port);
                frame
            })
            .collect();
        let mut steps = vec![Vec::new(); frames.len()];
        let mut seen = |frame: usize, step| {
            steps[frame].push(match step {
                Step::Parsed(packet) => Step::Parsed(without_remains(packet)),
                step => step,
            });
        };
        self.pipeline.set_clock(now);
        assert!(frames.len() <= BURST);
        let lanes = (&mut *self.lanes, &mut *self.plain);
        self.pipeline
            .process::<R, SHORT>(&mut frames, lanes, &mut self.last, &mut seen);
        let outcome = |(frame, steps): (Frame<'_>, _)| Outcome {
            verdict: frame.verdict(),
            headroom: frame.headroom(),
            bytes: frame.bytes().to_vec(),
            steps,
        };
        frames.into_iter().zip(steps).map(outcome).collect()
    }

    pub(super) fn advance(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let now = self.pipeline.set_clock(now);
        let mut memory = [[0; 256]; 4];
        let mut spare = Burst::new();
        for buffer in &mut memory {
            assert!(spare.push(Frame::new(buffer, 64, 0).unwrap()).is_ok());
        }
        self.pipeline.sweep::<R>(now, &mut spare);
        spare.iter().map(|frame| frame.bytes().to_vec()).collect()
    }

    pub(super) fn install(&mut self, snapshot: Rc<Snapshot<'static>>) {
        assert!(self.pipeline.install(snapshot).is_ok());
        self.last = R::Last::default();
    }

    pub(super) fn state(&self) -> State {
        let tables = &self.pipeline.tables;
        let (ipv4, ipv6) = (&tables.connections.ipv4, &tables.connections.ipv6);
        State {
            stats: self.pipeline.stats(),
            rules: tables.rules.to_vec(),
            backends: tables.backends.to_vec(),
            snat: tables.snat.to_vec(),
            ipv4: ipv4.all().map(|one| one.save(ipv4.now())).collect(),
            ipv6: ipv6.all().map(|one| one.save(ipv6.now())).collect(),
        }
    }
}

/// The same role on both ways.
pub(super) struct Twins<R: Role> {
    pub(super) short: Side<R, true>,
    pub(super) long: Side<R, false>,
    pub(super) is_proxy: bool,
    pub(super) now: Instant,
}

impl<R: Role> Twins<R> {
    /// Makes a pair with connections of all flows but the last one.
    pub(super) fn new(snapshot: &Rc<Snapshot<'static>>, is_proxy: bool) -> Self {
        let mut twins = Self {
            short: Side::new(snapshot.clone()),
            long: Side::new(snapshot.clone()),
            is_proxy,
            now: Instant::from_secs(1),
        };
        for is_ipv6 in [false, true] {
            for flow in 0..FLOWS - 1 {
                for (is_outward, flags) in [(false, 0x02), (true, 0x12), (false, 0x10)] {
                    for number in [protocol::TCP, protocol::UDP] {
                        let segment = Segment {
                            flow,
                            is_ipv6,
                            is_outward,
                            number,
                            flags,
                            sequence: u8::from(flags & 0x02 == 0),
                            ..Segment::ORDINARY
                        };
                        twins.process(&[segment.frame(is_proxy)]);
                    }
                }
            }
        }
        twins
    }

    pub(super) fn process(&mut self, packets: &[(PortId, Vec<u8>)]) -> Vec<Outcome> {
        let short = self.short.process(self.now, packets);
        let long = self.long.process(self.now, packets);
        for ((short, long), packet) in short.iter().zip(&long).zip(packets) {
            assert_eq!(short, long, "of {packet:02x?}");
        }
        self.compare();
        short
    }

    /// Compares all that both count and remember.
    pub(super) fn compare(&self) {
        let (short, long) = (self.short.state(), self.long.state());
        assert_eq!(short.ipv4, long.ipv4);
        assert_eq!(short.ipv6, long.ipv6);
        assert_eq!(short.rules, long.rules);
        assert_eq!(short.backends, long.backends);
        assert_eq!(short.snat, long.snat);
        assert_eq!(short.stats, long.stats);
    }

    pub(super) fn advance(&mut self, time: Duration) {
        self.now = Instant::from_nanos(self.now.as_nanos() + time.as_nanos() as u64);
        let (short, long) = (self.short.advance(self.now), self.long.advance(self.now));
        assert_eq!(short, long);
        self.compare();
    }

    pub(super) fn install(&mut self, snapshot: &Rc<Snapshot<'static>>) {
        self.short.install(snapshot.clone());
        self.long.install(snapshot.clone());
        self.compare();
    }
}

/// Without what a lane's last packet has left in fields of no meaning.
fn without_remains(mut packet: Packet) -> Packet {
    if packet.part() == Part::Whole {
        packet.identification = 0;
    }
    if packet.shape.family == Family::Ipv4 {
        packet.addresses[1..].fill(0);
    }
    packet
}
