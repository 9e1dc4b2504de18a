//! Lines of the table, as text and as JSON.

use std::cell::RefCell;
use std::fmt;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Failure, Options};

/// The time of one operation over all rounds of a line, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Median of all rounds.
    pub median: f64,
    /// The fastest round.
    pub least: f64,
}

impl Sample {
    /// Summarizes rounds, each given in nanoseconds for one operation.
    pub fn of(mut nanos: Vec<f64>) -> Self {
        nanos.sort_by(f64::total_cmp);
        let median = nanos.get(nanos.len() / 2).copied().unwrap_or(f64::NAN);
        Self {
            median,
            least: nanos.first().copied().unwrap_or(f64::NAN),
        }
    }

    /// Runs `round`, which does `count` operations, for `time`, and at least three times.
    pub fn measure(time: Duration, count: usize, mut round: impl FnMut()) -> Self {
        let begin = Instant::now();
        let mut nanos = Vec::new();
        while nanos.len() < 3 || begin.elapsed() < time {
            let start = Instant::now();
            round();
            nanos.push(start.elapsed().as_nanos() as f64 / count as f64);
        }
        Self::of(nanos)
    }
}

/// The rounds of a line that writes its frames between rounds.
#[derive(Debug)]
pub(crate) struct Rounds {
    effort: Effort,
    begin: Instant,
    nanos: Vec<f64>,
}

/// The duration of a line's measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effort {
    /// This time by the clock.
    Time(Duration),
    /// This many rounds, while callgrind counts instructions.
    Rounds(usize),
}

impl Rounds {
    /// Begins a line.
    pub(crate) fn new(effort: Effort) -> Self {
        Self {
            effort,
            begin: Instant::now(),
            nanos: Vec::new(),
        }
    }

    /// Returns true if another round is due.
    pub(crate) fn go_on(&self) -> bool {
        match self.effort {
            Effort::Time(time) => self.nanos.len() < 3 || self.begin.elapsed() < time,
            Effort::Rounds(count) => self.nanos.len() < count,
        }
    }

    /// Returns the number of rounds so far.
    pub(crate) fn done(&self) -> usize {
        self.nanos.len()
    }

    /// Runs `work`, which does `count` operations, as one round.
    pub(crate) fn time(&mut self, count: usize, work: &mut dyn FnMut()) {
        let start = Instant::now();
        counted(work);
        self.nanos
            .push(start.elapsed().as_nanos() as f64 / count as f64);
    }

    /// Ends the line.
    pub(crate) fn sample(self) -> Sample {
        Sample::of(self.nanos)
    }
}

/// Runs `work`. `benches/instructions` makes callgrind count only in this function, by its name.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
    black_box(()); // a tail call would leave the function before the work begins
}

/// Marks the end of a line: `benches/instructions` makes callgrind write its count when this
/// returns.
#[inline(never)]
fn line_is_over(name: &str) {
    // A lost mark is harmless, since the only reader is the counting script.
    let _ = writeln!(io::stdout(), "{}", black_box(name));
}

/// A lower bound for a line, measured in the same run.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The name that the last column of the table shows.
    pub name: &'static str,
    /// Nanoseconds for one operation.
    pub least: f64,
}

/// The table of all lines: printed as they come, or at the end as JSON.
#[derive(Debug)]
pub struct Report {
    json: bool,
    instructions: bool,
    filter: Option<String>,
    machine: Value,
    lines: Vec<Value>,
    /// The error of writing to standard output, if there was one.
    unwritten: RefCell<Option<io::Error>>,
}

impl Report {
    pub(crate) fn new(options: &Options, core: Option<usize>) -> Self {
        let machine = json!({
            "processor": processor(),
            "cores": std::thread::available_parallelism().map_or(1, usize::from),
            "pinned_to": core,
        });
        let report = Self {
            json: options.json,
            instructions: options.instructions,
            filter: options.filter.clone(),
            machine,
            lines: Vec::new(),
            unwritten: RefCell::new(None),
        };
        if !options.json && !options.instructions {
            let pinned = core.map_or("not pinned".into(), |core| format!("on core {core}"));
            report.print(format_args!("{}, {pinned}\n", processor()));
        }
        report
    }

    /// Prints to standard output, until that fails.
    fn print(&self, text: fmt::Arguments<'_>) {
        let before = self.unwritten.take();
        let write = || {
            let mut out = io::stdout().lock();
            out.write_fmt(text).and_then(|()| out.flush())
        };
        self.unwritten.replace(before.or_else(|| write().err()));
    }

    /// Begins a group of lines with one unit.
    pub fn group(&self, title: &str) {
        if !self.json && !self.instructions {
            self.print(format_args!(
                "\n{title:<52} {:>10} {:>9} {:>9}  of the limit\n",
                "ns", "least", "M/s"
            ));
        }
    }

    /// Returns true if the filter lets a line of this name be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter))
    }

    /// Adds a line, compared with `limit` if there is one.
    pub fn show(&mut self, name: &str, sample: Sample, limit: Option<Limit>) {
        self.show_with(name, sample, limit, &json!({}));
    }

    /// Adds a line with further values: `more` is a JSON object.
    pub fn show_with(&mut self, name: &str, sample: Sample, limit: Option<Limit>, more: &Value) {
        if !self.wants(name) {
            return;
        }
        if self.instructions {
            line_is_over(name);
            return;
        }
        let ratio = limit.map(|limit| sample.least / limit.least);
        if !self.json {
            let mut text = limit.zip(ratio).map_or(String::new(), |(limit, ratio)| {
                format!("{ratio:.1} x {}", limit.name)
            });
            for (name, value) in more.as_object().into_iter().flatten() {
                if !text.is_empty() {
                    text.push_str(", ");
                }
                text.push_str(&format!("{} {value}", name.replace('_', " ")));
            }
            self.print(format_args!(
                "{name:<52} {:>10.2} {:>9.2} {:>9.1}  {text}\n",
                sample.median,
                sample.least,
                1e3 / sample.median
            ));
        }
        let mut line = json!({
            "name": name,
            "nanoseconds": sample.median,
            "least_nanoseconds": sample.least,
            "per_second": 1e9 / sample.median,
        });
        if let (Some(limit), Some(ratio)) = (limit, ratio) {
            line["limit"] = json!(limit.name);
            line["of_the_limit"] = json!(ratio);
        }
        for (name, value) in more.as_object().into_iter().flatten() {
            line[name] = value.clone();
        }
        self.lines.push(line);
    }

    /// Ends the table.
    ///
    /// # Errors
    /// Standard output could not be written.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        if self.json {
            let all = json!({ "machine": self.machine, "lines": self.lines });
            self.print(format_args!("{all:#}\n"));
        }
        match self.unwritten.take() {
            None => Ok(()),
            Some(error) => Err(Failure::failed(format!("standard output: {error}"))),
        }
    }
}

/// Returns the kernel's name of the processor.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name"));
    let name = name.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Abbreviates a count for the name of a line: `64 k`, `40 M`.
pub fn short(count: usize) -> String {
    match count {
        1_000_000.. => format!("{} M", count / 1_000_000),
        1000.. => format!("{} k", count / 1000),
        _ => count.to_string(),
    }
}
