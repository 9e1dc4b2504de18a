//! Lines of the table, as text and as JSON.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Options;

/// Nanoseconds for one of what a line counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) median: f64,
    pub(crate) least: f64,
}

impl Sample {
    pub(crate) fn of(mut nanos: Vec<f64>) -> Self {
        nanos.sort_by(f64::total_cmp);
        let median = nanos.get(nanos.len() / 2).copied().unwrap_or(f64::NAN);
        Self {
            median,
            least: nanos.first().copied().unwrap_or(f64::NAN),
        }
    }

    /// Runs `round`, which does `count` of something, for so long.
    pub(crate) fn measure(time: Duration, count: usize, mut round: impl FnMut()) -> Self {
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

/// What a line can at best be, as measured in the same run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) name: &'static str,
    pub(crate) least: f64,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    filter: Option<String>,
    machine: Value,
    lines: Vec<Value>,
}

impl Report {
    pub(crate) fn new(options: &Options, core: Option<usize>) -> Self {
        let machine = json!({
            "processor": processor(),
            "cores": std::thread::available_parallelism().map_or(1, usize::from),
            "pinned_to": core,
        });
        if !options.json {
            let pinned = core.map_or("not pinned".into(), |core| format!("on core {core}"));
            println!("{}, {pinned}", processor());
        }
        Self {
            json: options.json,
            filter: options.filter.clone(),
            machine,
            lines: Vec::new(),
        }
    }

    /// Begins a group of lines that count one thing.
    pub(crate) fn group(&self, title: &str) {
        if !self.json {
            println!(
                "\n{title:<52} {:>10} {:>9} {:>9}  of the limit",
                "ns", "least", "M/s"
            );
        }
    }

    /// Whether a line is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter))
    }

    /// Shows a line.
    pub(crate) fn show(&mut self, name: &str, sample: Sample, limit: Option<Limit>) {
        self.show_with(name, sample, limit, &json!({}));
    }

    /// Shows a line that has more to say.
    pub(crate) fn show_with(
        &mut self,
        name: &str,
        sample: Sample,
        limit: Option<Limit>,
        more: &Value,
    ) {
        if !self.wants(name) {
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
            println!(
                "{name:<52} {:>10.2} {:>9.2} {:>9.1}  {text}",
                sample.median,
                sample.least,
                1e3 / sample.median
            );
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

    pub(crate) fn finish(self) {
        if self.json {
            println!(
                "{:#}",
                json!({ "machine": self.machine, "lines": self.lines })
            );
        }
    }
}

/// What the kernel calls the processor.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name"));
    let name = name.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// How a count is written in names.
pub(crate) fn short(count: usize) -> String {
    match count {
        1_000_000.. => format!("{} M", count / 1_000_000),
        1000.. => format!("{} k", count / 1000),
        _ => count.to_string(),
    }
}
