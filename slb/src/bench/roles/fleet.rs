//! Connections and flows as records and back, and packets of other hosts' connections: the work of a fleet
//! that changes.

use std::hint::black_box;
use std::ops::Deref;
use std::time::{Duration, Instant as Clock};

use serde_json::json;
use slb_core::mem::{Arena, Line};
use slb_core::nat::NatOptions;
use slb_core::snapshot::Snapshot;
use slb_core::state::{Age, Cursor, EXPORT_STEP, Exported, Imported, RECORD_MOST, StateError};
use slb_core::{BURST, Host, Instant, Mux, Proxy};

use super::connections::{Case, Frames, Role};
use super::kind::Kind;
use super::mux;
use crate::Options;
use crate::error::Failure;
use crate::report::{Report, Rounds, Sample};

const COUNT: u32 = 1_000_000;
const NOW: Instant = Instant::from_secs(1);

pub(super) fn measure(
    options: &Options,
    report: &mut Report,
    memory: &mut [Line],
) -> Result<(), Failure> {
    report.group("state that outlives its process, for each connection");
    for (who, role) in [("host", Role::Host), ("proxy", Role::Proxy)] {
        for (family, ipv6, frame_len) in [("IPv4", false, 64), ("IPv6", true, 84)] {
            let case = Case {
                kind: Kind::Tcp,
                role,
                ipv6,
                outward: false,
                frame_len,
                flows: COUNT,
            };
            let what = format!("{who}, {family}, 1 M connections");
            show(report, &what, || case.move_all(options, memory))?;
        }
    }
    let case = mux::Case {
        pinned: true,
        flows: COUNT,
        ..mux::Case::FLOOR
    };
    let what = "mux, IPv4, 1 M flows";
    show(report, what, || move_flows(&case, options, memory))?;

    report.group("packets of other hosts' connections, for each packet");
    for (family, ipv6, frame_len) in [("IPv4", false, 64), ("IPv6", true, 84)] {
        let name = format!("passed on, {family}, {frame_len} B, 1 M connections");
        let case = Case {
            kind: Kind::Tcp,
            role: Role::Host,
            ipv6,
            outward: false,
            frame_len,
            flows: COUNT,
        };
        if report.wants(&name) {
            report.show(&name, case.pass_on(options, memory)?, None);
        }
    }
    Ok(())
}

/// Shows the lines of an export and of the import of the same records.
fn show(
    report: &mut Report,
    what: &str,
    measure: impl FnOnce() -> Result<Moved, Failure>,
) -> Result<(), Failure> {
    let (export, import) = (format!("export, {what}"), format!("import, {what}"));
    if !report.wants(&export) && !report.wants(&import) {
        return Ok(());
    }
    let moved = measure()?;
    let micros = |nanos: f64| (nanos / 100.0).round() / 10.0;
    let steps = json!({
        "us_a_step": micros(moved.step.median),
        "longest_us": micros(moved.step.longest),
    });
    report.show_with(&export, moved.export, None, &steps);
    report.show(&import, moved.import, None);
    Ok(())
}

/// The times of moving all connections from one instance to another.
struct Moved {
    /// For each connection.
    export: Sample,
    step: Steps,
    import: Sample,
}

/// The times of single calls of an export, in nanoseconds: of each call the least of all rounds, since other
/// programs interrupt some.
struct Steps {
    median: f64,
    longest: f64,
}

/// A role whose connections or flows are moved.
trait Moves {
    fn export(&self, from: Cursor, into: &mut [u8]) -> Exported;
    fn import(&mut self, records: &[u8]) -> Result<Imported, StateError>;
}

macro_rules! moves {
    ($($role:ident),+) => {
        $(impl<'s, S: Deref<Target = Snapshot<'s>>> Moves for $role<'_, S> {
            fn export(&self, from: Cursor, into: &mut [u8]) -> Exported {
                $role::export(self, from, into)
            }

            fn import(&mut self, records: &[u8]) -> Result<Imported, StateError> {
                $role::import(self, NOW, Age::exact(Duration::ZERO), records)
            }
        })+
    };
}

moves!(Host, Proxy, Mux);

/// Rounds of an export, and of an import, at least.
const ROUNDS: usize = 5;

/// Exports all of `full`, and has `import` put the records into an empty instance, in rounds for as long as
/// a line is measured.
fn move_all<M: Moves>(
    options: &Options,
    full: &M,
    mut import: impl FnMut(&[Vec<u8>], &mut Calls) -> Result<(), Failure>,
) -> Result<Moved, Failure> {
    let mut room = vec![0xa5; EXPORT_STEP * RECORD_MOST];
    let (mut chunks, mut exports) = (Vec::new(), Calls::new(options));
    while exports.go_on() {
        chunks.clear();
        let (mut records, mut next) = (0, Some(Cursor::START));
        while let Some(from) = next {
            let exported = exports.time(|| full.export(from, &mut room));
            records += exported.records;
            chunks.extend(room.get(..exported.len).map(<[u8]>::to_vec));
            next = exported.next;
        }
        if records != COUNT as usize {
            return Err(Failure::failed(format!("{records} were exported")));
        }
        exports.end_round();
    }
    let mut imports = Calls::new(options);
    while imports.go_on() {
        import(&chunks, &mut imports)?;
        imports.end_round();
    }
    Ok(Moved {
        step: exports.steps(),
        export: exports.sample(),
        import: imports.sample(),
    })
}

/// Imports records.
fn import_all(role: &mut impl Moves, chunks: &[Vec<u8>], calls: &mut Calls) -> Result<(), Failure> {
    let mut taken = 0;
    for chunk in chunks {
        let imported = calls.time(|| role.import(chunk));
        taken += imported.map_err(Failure::failed)?.taken;
    }
    match taken == u64::from(COUNT) {
        true => Ok(()),
        false => Err(Failure::failed(format!("{taken} were imported"))),
    }
}

/// The times of the calls that make a round: each round has the same ones.
struct Calls {
    time: Duration,
    begin: Clock,
    /// The least time of each call.
    least: Vec<Duration>,
    /// The next call of this round, and the time of those before it.
    next: usize,
    spent: Duration,
    rounds: Vec<f64>,
}

impl Calls {
    fn new(options: &Options) -> Self {
        Self {
            time: options.time(),
            begin: Clock::now(),
            least: Vec::new(),
            next: 0,
            spent: Duration::ZERO,
            rounds: Vec::new(),
        }
    }

    fn go_on(&self) -> bool {
        self.rounds.len() < ROUNDS || self.begin.elapsed() < self.time
    }

    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Clock::now();
        let result = black_box(call());
        let spent = start.elapsed();
        match self.least.get_mut(self.next) {
            Some(least) => *least = spent.min(*least),
            None => self.least.push(spent),
        }
        self.next += 1;
        self.spent += spent;
        result
    }

    fn end_round(&mut self) {
        self.rounds.push(per_connection(self.spent));
        (self.next, self.spent) = (0, Duration::ZERO);
    }

    fn steps(&self) -> Steps {
        let mut nanos: Vec<f64> = self.least.iter().map(|c| c.as_nanos() as f64).collect();
        nanos.sort_by(f64::total_cmp);
        let at = |place: usize| nanos.get(place).copied().unwrap_or(f64::NAN);
        Steps {
            median: at(nanos.len() / 2),
            longest: at(nanos.len().saturating_sub(1)),
        }
    }

    /// The median of the rounds, and the sum of the least times of all calls.
    fn sample(self) -> Sample {
        Sample {
            least: per_connection(self.least.iter().sum()),
            ..Sample::of(self.rounds)
        }
    }
}

fn per_connection(time: Duration) -> f64 {
    time.as_nanos() as f64 / f64::from(COUNT)
}

impl Case {
    fn move_all(&self, options: &Options, memory: &mut [Line]) -> Result<Moved, Failure> {
        let snapshot = self.snapshot()?;
        let half = memory.len() / 2;
        let (one, other) = memory.split_at_mut(half);
        let tables = self.tables(&snapshot, &mut Arena::new(one));
        let tables = tables.ok_or_else(Failure::memory)?;
        let nat = NatOptions::default();
        let mut buffers = vec![0u8; self.stride() * mux::FRAMES];
        let mut frames = Frames::new(*self, 1);
        match self.role {
            Role::Host => {
                let mut full = Host::new(&snapshot, tables, nat).map_err(Failure::failed)?;
                frames.establish(&mut buffers, |frames| full.process(NOW, frames));
                move_all(options, &full, |chunks, calls| {
                    let tables = self.tables(&snapshot, &mut Arena::new(other));
                    let tables = tables.ok_or_else(Failure::memory)?;
                    let empty = Host::new(&snapshot, tables, nat);
                    import_all(&mut empty.map_err(Failure::failed)?, chunks, calls)
                })
            }
            Role::Proxy => {
                let mut full = Proxy::new(&snapshot, tables, nat).map_err(Failure::failed)?;
                frames.establish(&mut buffers, |frames| full.process(NOW, frames));
                move_all(options, &full, |chunks, calls| {
                    let tables = self.tables(&snapshot, &mut Arena::new(other));
                    let tables = tables.ok_or_else(Failure::memory)?;
                    let empty = Proxy::new(&snapshot, tables, nat);
                    import_all(&mut empty.map_err(Failure::failed)?, chunks, calls)
                })
            }
        }
    }

    /// Packets of connections of another host, whose slots are another's now.
    fn pass_on(&self, options: &Options, memory: &mut [Line]) -> Result<Sample, Failure> {
        let backends =
            |[here, there]: [u32; 2]| [self.backend(here), self.backend_elsewhere(there)];
        let before = self.snapshot_of(&backends([1, 0]), None)?;
        let snapshot = self.snapshot_of(&backends([0, 1]), Some(&before))?;
        let tables = self.tables(&snapshot, &mut Arena::new(memory));
        let tables = tables.ok_or_else(Failure::memory)?;
        let unlimited = NatOptions {
            passes_per_second: u32::MAX,
            passes_at_once: u32::MAX,
            ..NatOptions::default()
        };
        let mut host = Host::new(&snapshot, tables, unlimited).map_err(Failure::failed)?;
        let mut buffers = vec![0u8; self.stride() * mux::FRAMES];
        let mut frames = Frames::new(*self, 1);
        let mut rounds = Rounds::new(options.effort());
        while rounds.go_on() {
            let mut frames = frames.established(&mut buffers);
            rounds.time(mux::FRAMES, &mut || {
                for burst in frames.chunks_mut(BURST) {
                    host.process(NOW, burst);
                }
            });
            black_box(&mut frames);
        }
        let stats = host.stats();
        if stats.passed_on != stats.received.packets {
            return Err(Failure::failed(format!("not all was passed on: {stats:?}")));
        }
        Ok(rounds.sample())
    }
}

fn move_flows(case: &mux::Case, options: &Options, memory: &mut [Line]) -> Result<Moved, Failure> {
    let snapshot = case.snapshot()?;
    let half = memory.len() / 2;
    let (one, other) = memory.split_at_mut(half);
    let mut full = case.mux(&snapshot, one).ok_or_else(Failure::memory)?;
    let mut buffers = vec![0u8; case.stride() * mux::FRAMES];
    let mut frames = mux::Frames::new(*case);
    for _ in 0..case.flows.div_ceil(mux::FRAMES as u32) {
        full.process(NOW, &mut frames.write(&mut buffers, true));
    }
    move_all(options, &full, |chunks, calls| {
        let mut empty = case.mux(&snapshot, other).ok_or_else(Failure::memory)?;
        import_all(&mut empty, chunks, calls)
    })
}
