//! What slb costs: the machine's own limits, the parts beside their peers, the roles whole, all in one
//! run, on one core.
//!
//! `cargo run --release -p slb-benches`, with `--quick` for less than a minute, `--json` for
//! programs, or a part of a line's name. `slb bench` is the same without the peers.
//!
//! A number is the median over the rounds of its line; the least is shown beside it. Where a line
//! has a limit, which is measured in the same run, the last column says how many times as long it
//! takes, by the least of both.

#![deny(unsafe_code)]

mod error;
mod flows;
mod machine;
mod maglev;
#[cfg(feature = "peers")]
#[path = "../../../benches/src/peers/mod.rs"]
mod peers;
mod report;
mod roles;

use std::time::Duration;

pub use error::Failure;

use report::Report;
use slb_control::HugePages;
use slb_core::mem::{Line, Memory};

/// What is measured, and how it is shown.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Less time for each line, and no table of more than a million flows.
    pub quick: bool,
    /// Print JSON.
    pub json: bool,
    /// Only lines whose name contains this.
    pub filter: Option<String>,
}

impl Options {
    /// How long a line is measured.
    fn time(&self) -> Duration {
        Duration::from_millis(if self.quick { 100 } else { 500 })
    }
}

/// Measures, and prints lines as they come.
///
/// # Errors
/// There is not enough memory, or what was measured did not do what it should.
pub fn run(options: &Options) -> Result<(), Failure> {
    let core = machine::stay_on_a_core();
    let mut report = Report::new(options, core);
    let limits = machine::measure(options, &mut report)?;
    maglev::measure(options, &mut report)?;
    // All tables lie here in turn: pages that are there already.
    let bytes = if options.quick { 512 << 20 } else { 6 << 30 };
    let memory = HugePages.take(bytes / size_of::<Line>(), Line::EMPTY);
    let memory = &mut *memory.ok_or_else(Failure::memory)?;
    #[cfg(feature = "peers")]
    peers::measure(options, &mut report, &limits, memory)?;
    roles::measure(options, &mut report, &limits, memory)?;
    report.finish();
    Ok(())
}
