//! Measures slb beside its peers: the suite of `slb bench`, and the parts of a packet's way beside other
//! projects' code with the same packets and flows.
//!
//! `cargo run --profile dist -p slb-benches`, with `--quick` for less than a minute, `--json` for programs, or
//! a part of a line's name.

#![warn(unnameable_types, unreachable_pub)]
#![deny(unsafe_code)]

mod peers;

use std::process::ExitCode;

use clap::Parser;

/// Measures slb on one core: the machine's limits, the parts beside their peers, the roles whole.
#[derive(Debug, Parser)]
struct Arguments {
    /// Less time for each line, and no table of more than a million flows: under a minute.
    #[arg(long)]
    quick: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Only lines whose name contains this.
    #[arg(value_name = "NAME")]
    filter: Option<String>,
}

fn main() -> ExitCode {
    let Arguments {
        quick,
        json,
        filter,
    } = Arguments::parse();
    let options = slb_bench::Options {
        quick,
        json,
        filter,
        instructions: false,
    };
    match slb_bench::run_with(&options, |report, limits, memory| {
        peers::measure(&options, report, limits, memory)
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("slb-benches: {failure}");
            ExitCode::FAILURE
        }
    }
}
