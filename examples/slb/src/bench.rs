//! `slb bench`: mux, host agent and proxy alone, in memory, on one core.
//!
//! A round writes 1024 frames as a NIC would, then times the mux on them, in bursts of 64. The
//! number of a line is the median over its rounds; the least is shown beside it, and how the
//! median compares with a floor that is measured in the same run: a bare loop that reads the
//! tuple, hashes it, looks up a slot and copies 50 bytes, with nothing counted or checked.

mod connections;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use serde_json::json;
use slb_core::hash::{Distribution, Hasher, TupleHasher, Xxh3};
use slb_core::maglev::{self, Member, Turn};
use slb_core::service::{
    Backend, BackendState, Echo, Frontend, Pool, Protocol, Rule, Snapshot, Spec, Underlay,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{BURST, Frame, HEADROOM, Instant, Mux, Verdict};

use self::connections::Role;
use crate::Failure;
use crate::cli::{BenchOptions, Format};
use crate::memory::HugePages;

/// Frames of one round: few enough to stay in a second-level cache, as they do behind a NIC that
/// writes into the cache.
const FRAMES: usize = 1024;
const BACKENDS: u8 = 100;
const VIP_IPV4: Ipv4Addr = Ipv4Addr::new(20, 20, 20, 100);
const VIP_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100);

/// Nanoseconds, for each packet or build.
#[derive(Clone, Copy, Debug)]
struct Sample {
    median: f64,
    least: f64,
}

impl Sample {
    fn of(mut nanos: Vec<f64>) -> Self {
        nanos.sort_by(f64::total_cmp);
        let median = nanos.get(nanos.len() / 2).copied().unwrap_or(f64::NAN);
        Self {
            median,
            least: nanos.first().copied().unwrap_or(f64::NAN),
        }
    }
}

pub(crate) fn run(options: &BenchOptions) -> Result<(), Failure> {
    let time = Duration::from_millis(if options.quick { 150 } else { 1000 });
    let text = options.report == Format::Text;
    let mut lines = Vec::new();
    if text {
        println!(
            "{:<44} {:>10} {:>8} {:>9} {:>7}",
            "in memory, one core", "ns/packet", "least", "M/s", "floor"
        );
    }
    let floor = Sample::of(floor(time));
    let mut show = |name: &str, sample: Sample| {
        if text {
            println!(
                "{name:<44} {:>10.2} {:>8.2} {:>9.1} {:>6.2}x",
                sample.median,
                sample.least,
                1e3 / sample.median,
                sample.median / floor.median
            );
        }
        lines.push(json!({
            "name": name,
            "nanoseconds": sample.median,
            "least_nanoseconds": sample.least,
            "per_second": 1e9 / sample.median,
        }));
    };
    show("floor: tuple, XXH3, slot, 50 bytes", floor);
    for (mode, pinned) in [("stateless", false), ("flow table", true)] {
        for ipv6 in [false, true] {
            for frame_len in if ipv6 { [84, 1500] } else { [64, 1500] } {
                for (count, flows) in [("1", 1), ("64 k", 1 << 16), ("1 M", 1 << 20)] {
                    let family = if ipv6 { "IPv6" } else { "IPv4" };
                    let name = format!("{mode}, {family}, {frame_len} B, {count} flows");
                    if options
                        .filter
                        .as_ref()
                        .is_none_or(|filter| name.contains(filter))
                    {
                        let case = Case {
                            pinned,
                            ipv6,
                            frame_len,
                            flows,
                        };
                        show(&name, Sample::of(case.measure(time)?));
                    }
                }
            }
        }
    }
    for (who, role) in [("host", Role::Host), ("proxy", Role::Proxy)] {
        for (way, outward) in [("in", false), ("out", true)] {
            for (count, flows) in [("1", 1), ("64 k", 1 << 16), ("1 M", 1 << 20)] {
                let name = format!("{who}, {way}, IPv4, 64 B, {count} connections");
                if options
                    .filter
                    .as_ref()
                    .is_none_or(|filter| name.contains(filter))
                {
                    let case = connections::Case {
                        role,
                        outward,
                        frame_len: 64,
                        flows,
                    };
                    show(&name, Sample::of(case.measure(time)?));
                }
            }
        }
    }
    if text {
        println!(
            "\n{:<44} {:>10} {:>8} {:>9}",
            "Maglev, 65 537 slots, built from nothing", "us", "least", "per s"
        );
    }
    for count in [10, 100, 1000, 10_000] {
        for (weights, varied) in [("equal weights", false), ("weights 1 to 10", true)] {
            let name = format!("maglev, {count} backends, {weights}");
            if options
                .filter
                .as_ref()
                .is_some_and(|filter| !name.contains(filter))
            {
                continue;
            }
            let sample = Sample::of(maglev_build(count, varied, time)?);
            let us = 1e-3;
            if text {
                let (median, least) = (sample.median * us, sample.least * us);
                println!(
                    "{name:<44} {median:>10.0} {least:>8.0} {:>9.0}",
                    1e6 / median
                );
            }
            lines.push(json!({
                "name": name,
                "nanoseconds": sample.median,
                "least_nanoseconds": sample.least,
            }));
        }
    }
    if !text {
        println!("{:#}", json!({ "lines": lines }));
    }
    Ok(())
}

/// What is measured in one line.
#[derive(Clone, Copy, Debug)]
struct Case {
    pinned: bool,
    ipv6: bool,
    /// As on the wire: with the four bytes of the frame check sequence.
    frame_len: usize,
    flows: u32,
}

impl Case {
    fn snapshot(&self) -> Result<Snapshot<'static>, Failure> {
        let names: Vec<String> = (0..BACKENDS).map(|i| format!("vm{i}")).collect();
        let address = |i: u8| -> IpAddr {
            if self.ipv6 {
                Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, i.into()).into()
            } else {
                Ipv4Addr::new(10, 10, 1, i).into()
            }
        };
        let backends: Vec<Backend<'_>> = (0..BACKENDS)
            .zip(&names)
            .map(|(i, name)| Backend {
                name,
                address: address(i),
                host: Ipv4Addr::new(172, 16, 0, i).into(),
                mac: None,
                next_hop: None,
                weight: 1,
                state: BackendState::Healthy,
                ..Backend::default()
            })
            .collect();
        let vip = if self.ipv6 {
            VIP_IPV6.into()
        } else {
            VIP_IPV4.into()
        };
        let spec = Spec {
            hasher: Hasher::Xxh3(Xxh3::new(1)),
            maglev_seed: 1,
            underlay: Underlay {
                ipv4: Some(Ipv4Addr::new(172, 16, 0, 11)),
                mtu: 1600,
                ..Underlay::default()
            },
            frontends: &[Frontend {
                name: "web",
                address: vip,
                echo: Echo::Answer,
            }],
            rules: &[Rule {
                name: "http",
                frontend: 0,
                pool: 0,
                protocol: Protocol::Tcp,
                frontend_port: 80,
                backend_port: 80,
                distribution: Distribution::FiveTuple,
                idle_timeout: Duration::from_secs(240),
                ..Rule::default()
            }],
            pools: &[Pool {
                name: "servers",
                vni: Vni::new(5001).unwrap_or_default(),
                table_size: maglev::DEFAULT_SIZE,
                backends: &backends,
            }],
            ..Spec::default()
        };
        Snapshot::boxed(&spec, None).map_err(Failure::failed)
    }

    /// Nanoseconds for each packet, round by round.
    fn measure(&self, time: Duration) -> Result<Vec<f64>, Failure> {
        let snapshot = Arc::new(self.snapshot()?);
        let key = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];
        let flows = if self.pinned {
            self.flows.max(1 << 16) as usize
        } else {
            0
        };
        let none = || Failure::failed("there is not enough memory for the table");
        let mut mux = Mux::build(snapshot, flows, key, &mut HugePages).ok_or_else(none)?;
        let stride = (HEADROOM + self.frame_len).next_multiple_of(64);
        let mut memory = vec![0u8; stride * FRAMES];
        let mut frames = Frames {
            case: *self,
            template: self.template(),
            random: 1,
            next: 0,
        };
        let now = Instant::from_secs(1);
        for _ in 0..self.flows.div_ceil(FRAMES as u32) {
            let mut warm = frames.write(&mut memory, stride, true);
            mux.process(now, &mut warm);
        }
        let begin = Clock::now();
        let mut nanos = Vec::new();
        while begin.elapsed() < time {
            let mut frames = frames.write(&mut memory, stride, false);
            let start = Clock::now();
            for burst in frames.chunks_mut(BURST) {
                mux.process(now, burst);
            }
            nanos.push(start.elapsed().as_nanos() as f64 / FRAMES as f64);
            black_box(&mut frames);
        }
        let stats = mux.stats();
        if stats.forwarded != stats.received {
            return Err(Failure::failed(format!("not all was forwarded: {stats:?}")));
        }
        Ok(nanos)
    }

    /// An ACK to the VIP, its flow not yet filled in.
    fn template(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let ip_len = (self.frame_len - 4 - 14) as u16;
        if self.ipv6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((ip_len - 40).to_be_bytes());
            frame.extend([6, 64]);
            frame.extend([0x20, 1, 0xd, 0xb8, 0, 0xc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            frame.extend(VIP_IPV6.octets());
        } else {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend(ip_len.to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 198, 51, 100, 10]);
            frame.extend(VIP_IPV4.octets());
        }
        frame.extend([
            0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
        ]);
        frame
    }
}

/// Writes frames of random flows, or of all in turn.
struct Frames {
    case: Case,
    template: Vec<u8>,
    random: u64,
    next: u32,
}

impl Frames {
    fn write<'m>(&mut self, memory: &'m mut [u8], stride: usize, in_turn: bool) -> Vec<Frame<'m>> {
        let Case {
            ipv6,
            flows,
            frame_len,
            ..
        } = self.case;
        let (address, port) = if ipv6 { (34, 54) } else { (26, 34) };
        memory
            .chunks_exact_mut(stride)
            .map(|buffer| {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.next = (self.next + 1) % flows;
                let flow = if in_turn {
                    self.next
                } else {
                    (self.random >> 32) as u32 % flows
                };
                let packet = &mut buffer[HEADROOM..][..self.template.len()];
                packet.copy_from_slice(&self.template);
                let client = 0x0a00_0000 + (flow >> 4);
                packet[address..address + 4].copy_from_slice(&client.to_be_bytes());
                packet[port..port + 2].copy_from_slice(&(1024 + (flow & 15) as u16).to_be_bytes());
                Frame::new(buffer, HEADROOM, frame_len - 4).unwrap_or(Frame::EMPTY)
            })
            .collect()
    }
}

/// The least that a mux has to do, with nothing around it.
fn floor(time: Duration) -> Vec<f64> {
    let case = Case {
        pinned: false,
        ipv6: false,
        frame_len: 64,
        flows: 1 << 20,
    };
    let stride = (HEADROOM + case.frame_len).next_multiple_of(64);
    let mut memory = vec![0u8; stride * FRAMES];
    let mut source = Frames {
        case,
        template: case.template(),
        random: 1,
        next: 0,
    };
    let table: Vec<u16> = (0..65_537u32)
        .map(|i| (i % u32::from(BACKENDS)) as u16)
        .collect();
    let headers = vec![[0x5au8; 64]; BACKENDS.into()];
    let hasher = Xxh3::new(1);
    let begin = Clock::now();
    let mut nanos = Vec::new();
    while begin.elapsed() < time {
        let mut frames = source.write(&mut memory, stride, false);
        let start = Clock::now();
        for frame in &mut frames {
            let bytes = frame.bytes();
            let (Some(addresses), Some(ports)) = (bytes.get(26..34), bytes.get(34..38)) else {
                continue;
            };
            let mut message = [0; 16];
            message[..8].copy_from_slice(addresses);
            message[8..12].copy_from_slice(ports);
            message[12] = 6;
            let message = u128::from_le_bytes(message);
            let hash = hasher.ipv4(&[message as u64, (message >> 64) as u64]);
            let backend = table[maglev::slot(hash, 65_537)];
            let header = &headers[usize::from(backend)];
            if let Some(front) = frame.push_front::<50>() {
                front.copy_from_slice(&header[..50]);
            }
            frame.set_verdict(Verdict::Reply);
        }
        nanos.push(start.elapsed().as_nanos() as f64 / FRAMES as f64);
        black_box(&mut frames);
    }
    nanos
}

fn maglev_build(count: usize, varied: bool, time: Duration) -> Result<Vec<f64>, Failure> {
    let names: Vec<String> = (0..count).map(|i| format!("backend-{i}")).collect();
    let weight = |i: usize| if varied { 1 + (i % 10) as u32 } else { 1 };
    let members: Vec<Member<'_>> = names
        .iter()
        .enumerate()
        .map(|(i, name)| Member {
            name,
            weight: weight(i),
        })
        .collect();
    let mut table = vec![0; maglev::DEFAULT_SIZE as usize];
    let mut turns = vec![Turn::default(); count];
    let begin = Clock::now();
    let mut nanos = Vec::new();
    while begin.elapsed() < time / 2 {
        let start = Clock::now();
        maglev::build(&members, 1, &mut table, &mut turns).map_err(Failure::failed)?;
        nanos.push(start.elapsed().as_nanos() as f64);
        black_box(&mut table);
    }
    Ok(nanos)
}
