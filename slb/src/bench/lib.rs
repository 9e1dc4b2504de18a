//! The suite of `slb bench`: the machine's own limits, Maglev tables, reloads, and mux, host agent and proxy
//! alone, all in one run, on one core; at the end two workers beside one.
//!
//! The package `slb-benches` adds lines of other projects' code to the same table: see [`run_with`].
//!
//! A number is the median over the rounds of its line; the least is shown beside it. Where a line
//! has a limit, which is measured in the same run, the last column says how many times as long it
//! takes, by the least of both.

#![warn(unnameable_types, unreachable_pub)]
#![forbid(unsafe_code)]
#![cfg(feature = "bench")]

mod error;
mod flows;
mod machine;
mod maglev;
mod reload;
mod report;
mod roles;

use std::time::Duration;

pub use error::Failure;
pub use flows::Random;
pub use machine::Limits;
use report::Effort;
pub use report::{Limit, Report, Sample, short};
pub use roles::kind::Kind;
pub use roles::mux::{Case, FRAMES, Frames};

use slb_control::HugePages;
use slb_core::mem::{Line, Memory};

/// The lines to measure, and how to print them.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Less time for each line, and no table of more than a million flows.
    pub quick: bool,
    /// Print JSON.
    pub json: bool,
    /// Only lines whose name contains this.
    pub filter: Option<String>,
    /// A few rounds of each role's shortest packets, whose lines `benches/instructions` has callgrind
    /// count: only their names are printed.
    pub instructions: bool,
}

/// Rounds of a line in which instructions are counted: more would not change what a packet takes.
const COUNTED_ROUNDS: usize = 4;

impl Options {
    /// Returns how long a line is measured.
    pub fn time(&self) -> Duration {
        Duration::from_millis(if self.quick { 100 } else { 500 })
    }

    /// Returns how long a line of a role is measured.
    pub(crate) fn effort(&self) -> Effort {
        if self.instructions {
            Effort::Rounds(COUNTED_ROUNDS)
        } else {
            Effort::Time(self.time())
        }
    }
}

/// Measures all lines, and prints them as they come.
///
/// # Errors
/// There is not enough memory, or a role did not forward its packets.
pub fn run(options: &Options) -> Result<(), Failure> {
    run_with(options, |_, _, _| Ok(()))
}

/// Measures all lines, and those that `peers` adds before the lines of the roles.
///
/// `peers` gets the memory that all tables lie in, in turn.
///
/// # Errors
/// There is not enough memory, a role did not forward its packets, or `peers` failed.
pub fn run_with(
    options: &Options,
    peers: impl FnOnce(&mut Report, &Limits, &mut [Line]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let cpus = machine::allowed_cpus();
    let core = machine::stay_on_a_core();
    let mut report = Report::new(options, core);
    // All tables lie here in turn: pages that are there already.
    let bytes = match options {
        Options {
            instructions: true, ..
        } => 64 << 20,
        Options { quick: true, .. } => 512 << 20,
        _ => 6 << 30,
    };
    let memory = || HugePages.take(bytes / size_of::<Line>(), Line::EMPTY);
    if options.instructions {
        let memory = &mut *memory().ok_or_else(Failure::memory)?;
        return roles::measure(options, &mut report, &Limits::NONE, memory, &cpus);
    }
    let limits = machine::measure(options, &mut report)?;
    maglev::measure(options, &mut report)?;
    reload::measure(options, &mut report)?;
    let memory = &mut *memory().ok_or_else(Failure::memory)?;
    peers(&mut report, &limits, memory)?;
    roles::measure(options, &mut report, &limits, memory, &cpus)?;
    report.finish()
}

/// The crate's README, whose examples run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct CrateReadme;
