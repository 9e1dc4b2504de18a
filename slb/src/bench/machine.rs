//! The limits of the machine: accesses to cache lines one after the other or in parallel, writing
//! headers, and a loop of the work that every balancer has to do.

use std::hint::black_box;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use slb_control::HugePages;
use slb_core::Verdict;
use slb_core::hash::{TupleHasher, Xxh3};
use slb_core::mem::Memory;

use crate::Options;
use crate::error::Failure;
use crate::flows::Random;
use crate::report::{Limit, Report, Sample};
use crate::roles::mux::{BACKENDS, Case, FRAMES, Frames};

const MIB: usize = 1 << 20;
/// Touches of one round.
const TOUCHES: usize = 1 << 16;

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Cell([u64; 8]);

/// The machine's limits, for comparison with later lines.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The time of independent accesses to cache lines, by bytes of memory.
    touches: Vec<(usize, f64)>,
    /// The minimum work of a mux for a packet: read a tuple, hash it, read a slot, write a header.
    pub floor: Limit,
}

impl Limits {
    /// No measured limits, for lines whose instructions are counted.
    pub(crate) const NONE: Self = Self {
        touches: Vec::new(),
        floor: Limit {
            name: "the floor",
            least: f64::NAN,
        },
    };

    /// Returns the limit of a lookup in a table of `bytes` bytes.
    pub fn touch(&self, bytes: usize) -> Option<Limit> {
        let fits = |&&(size, _): &&(usize, f64)| size >= bytes;
        let all = self.touches.iter();
        let (_, least) = all.clone().find(fits).or_else(|| self.touches.last())?;
        Some(Limit {
            name: "a touch",
            least: *least,
        })
    }

    /// Returns the limit of a mux with a flow table of `bytes` bytes.
    pub fn mux(&self, bytes: usize) -> Limit {
        let touch = self.touch(bytes).filter(|_| bytes != 0);
        Limit {
            name: if touch.is_some() {
                "floor and touch"
            } else {
                "the floor"
            },
            least: self.floor.least + touch.map_or(0.0, |touch| touch.least),
        }
    }
}

/// Returns the cores that this thread may run on.
pub(crate) fn allowed_cpus() -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(None) else {
        return Vec::new();
    };
    let all = 0..CpuSet::MAX_CPU;
    all.filter(|&core| allowed.is_set(core)).collect()
}

/// Pins this thread to one core; returns `None` if the kernel refuses.
pub(crate) fn stay_on_a_core() -> Option<usize> {
    // Use the last core, since interrupts tend to go to the first one.
    let core = allowed_cpus().pop()?;
    stay_on(core).then_some(core)
}

/// Pins this thread to a core; returns false if the kernel refuses.
pub(crate) fn stay_on(core: usize) -> bool {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).is_ok()
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<Limits, Failure> {
    let time = options.time();
    report.group("the machine, for each line or header");
    let sizes: &[usize] = if options.quick {
        &[1, 32, 128]
    } else {
        &[1, 32, 128, 1024, 2560]
    };
    let largest = sizes.iter().max().copied().unwrap_or(1) * MIB / size_of::<Cell>();
    let memory = HugePages
        .take(largest, Cell([1; 8]))
        .ok_or_else(Failure::memory)?;
    let mut touches = Vec::new();
    for &mib in sizes {
        let cells = &memory[..mib * MIB / size_of::<Cell>()];
        let mut random = Random::new(1);
        let at_once = Sample::measure(time, TOUCHES, || {
            let touch = |_| cells[random.below(cells.len())].0[0];
            black_box((0..TOUCHES).map(touch).sum::<u64>());
        });
        touches.push((mib * MIB, at_once.least));
        report.show(&format!("lines touched at once, {mib} MiB"), at_once, None);
        let in_turn = Sample::measure(time, TOUCHES / 16, || {
            let mut held = 0;
            for _ in 0..TOUCHES / 16 {
                held = cells[random.below_with(cells.len(), held)].0[0];
            }
            black_box(held);
        });
        let name = format!("lines touched one after the other, {mib} MiB");
        report.show(&name, in_turn, None);
    }
    let writes = header_writes(options);
    report.show("50 bytes of header written", writes, None);
    let floor = floor(options);
    report.show("floor: tuple, XXH3, slot, 50 bytes", floor, None);
    Ok(Limits {
        touches,
        floor: Limit {
            name: "the floor",
            least: floor.least,
        },
    })
}

fn header_writes(options: &Options) -> Sample {
    let case = Case::FLOOR;
    let mut memory = vec![0u8; case.stride() * FRAMES];
    let header = [0x5au8; 50];
    let mut frames = Frames::new(case);
    let mut made = frames.write(&mut memory, false);
    let limit = made.len();
    Sample::measure(options.time(), limit, || {
        for frame in &mut made {
            if let Some(front) = frame.push_front::<50>() {
                front.copy_from_slice(black_box(&header));
            }
            frame.trim_front(50);
        }
    })
}

/// Measures the minimum work of a mux.
fn floor(options: &Options) -> Sample {
    let case = Case::FLOOR;
    let mut memory = vec![0u8; case.stride() * FRAMES];
    let mut source = Frames::new(case);
    let table: Vec<u16> = (0..65_537u32)
        .map(|i| (i % u32::from(BACKENDS)) as u16)
        .collect();
    let headers = vec![[0x5au8; 64]; BACKENDS.into()];
    let hasher = Xxh3::new(1);
    let begin = std::time::Instant::now();
    let mut nanos = Vec::new();
    while begin.elapsed() < options.time() {
        let mut frames = source.write(&mut memory, false);
        let start = std::time::Instant::now();
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
            let backend = table[slb_core::maglev::slot(hash, 65_537)];
            let header = &headers[usize::from(backend)];
            if let Some(front) = frame.push_front::<50>() {
                front.copy_from_slice(&header[..50]);
            }
            frame.set_verdict(Verdict::Reply);
        }
        nanos.push(start.elapsed().as_nanos() as f64 / FRAMES as f64);
        black_box(&mut frames);
    }
    Sample::of(nanos)
}
