//! The suite as a program.

#![forbid(unsafe_code)]

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
    let options = slb_benches::Options {
        quick,
        json,
        filter,
    };
    match slb_benches::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("slb-benches: {failure}");
            ExitCode::FAILURE
        }
    }
}
