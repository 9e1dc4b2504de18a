//! Captures give what they gave: each packet's verdict, and each byte that is sent because of it, in every role.
//!
//! `outcomes.txt` has a line for each capture and step: how many packets were forwarded, answered, passed or
//! dropped, by reason, and a digest of each verdict and frame in their order. After a change that is meant,
//! `SLB_WRITE_OUTCOMES=1 cargo test -p slb --test all outcomes::` writes the file anew, and its difference shows what
//! changed.
//!
//! The captures are other projects' and not part of this one: where they are missing, the test says so and is
//! skipped. With `SLB_REQUIRE_ALL` set it fails instead.

use crate::common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use slb_core::Verdict;

use common::captured::{HOST, Processed, STEPS, behind_a_mux, behind_a_proxy};
use common::{captures, configuration_text, read};

/// The outcome of a capture's packets at one step.
struct Outcomes {
    counts: BTreeMap<&'static str, u64>,
    digest: u64,
}

impl Outcomes {
    const NONE: Self = Self {
        counts: BTreeMap::new(),
        digest: 0xcbf2_9ce4_8422_2325,
    };

    fn add(&mut self, processed: &Processed<'_>) {
        let name = match processed.verdict {
            Verdict::Forward(_) => "forwarded",
            Verdict::Flood => "flooded",
            Verdict::Reply => "answered",
            Verdict::Pass => "passed",
            Verdict::Drop(reason) => reason.name(),
        };
        *self.counts.entry(name).or_default() += 1;
        self.digest(name.as_bytes());
        if processed.is_sent() {
            self.digest(processed.output);
        }
    }

    /// FNV-1a.
    fn digest(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Returns one line for each step that packets of the capture took, by its beginning.
fn lines_of(path: &Path, total: &mut u64) -> BTreeMap<String, String> {
    let packets = read(path);
    let text = configuration_text(&packets, HOST, "02:00:00:00:00:02", 9000);
    let mut steps: BTreeMap<&str, Outcomes> = BTreeMap::new();
    let mut note = |processed: Processed<'_>| {
        *total += 1;
        let outcomes = steps.entry(processed.step).or_insert(Outcomes::NONE);
        outcomes.add(&processed);
    };
    behind_a_mux(&text, &packets, &mut note);
    behind_a_proxy(&text, &packets, &mut note);
    let capture = path.file_name().unwrap().to_string_lossy();
    let line = |step: &&str| {
        let outcomes = steps.get(step)?;
        let mut line = String::new();
        for (name, count) in &outcomes.counts {
            write!(line, " {count} {name},").unwrap();
        }
        write!(line, " {:016x}", outcomes.digest).unwrap();
        Some((format!("{capture}: {step}:"), line))
    };
    STEPS.iter().filter_map(line).collect()
}

#[test]
fn captures_give_what_they_gave() {
    let Some(captures) = captures() else {
        skip!("the shared captures are not there")
    };
    let mut total = 0;
    let now: BTreeMap<String, String> = captures
        .iter()
        .flat_map(|path| lines_of(path, &mut total))
        .collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/outcomes.txt");
    if std::env::var_os("SLB_WRITE_OUTCOMES").is_some() {
        let lines = now.iter().map(|(of, line)| format!("{of}{line}\n"));
        fs::write(&path, lines.collect::<String>()).unwrap();
        return;
    }
    let recorded = fs::read_to_string(&path).unwrap();
    let recorded: BTreeMap<&str, &str> = recorded
        .lines()
        .map(|line| line.split_at(line.rfind(": ").map_or(0, |at| at + 1)))
        .collect();
    let (mut compared, mut others) = (0, Vec::new());
    for (of, line) in &now {
        let Some(&before) = recorded.get(of.as_str()) else {
            let capture = of.split(": ").next().unwrap_or(of);
            let is_known = recorded.keys().any(|of| of.starts_with(capture));
            assert!(!is_known, "{of} gives{line}, and gave nothing");
            others.push(of);
            continue;
        };
        assert_eq!(before, line, "{of} gives other packets than it gave");
        compared += 1;
    }
    println!("{total} outcomes, {compared} lines as before; not recorded: {others:?}");
    assert!(compared > 250, "{compared} lines were compared");
    assert!(total > 300_000, "{total} packets");
}
