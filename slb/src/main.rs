//! `slb`: a layer-4 load balancer on the command line.
//!
//! Exit status: 0, 1 (it failed), 2 (bad usage or configuration).

#![forbid(unsafe_code)]

mod balancer;
mod check;
mod cli;
mod explain;
mod generate;
mod import;
mod live;
mod output;
mod probe;
mod replay;
mod report;
mod status;
mod top;

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use slb_control::Role;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if command.only_prints() {
        end_with_the_reader();
    }
    let result = match command {
        Command::Replay(options) => replay::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Mux(options) => live::run(&options, Role::Mux),
        Command::Host(options) => live::run(&options, Role::Host),
        Command::Proxy(options) => live::run(&options, Role::Proxy),
        Command::Status(options) => status::run(&options),
        Command::Top(options) => top::run(&options),
        Command::Probe(options) => probe::run(&options),
        Command::Diff(options) => check::diff(&options),
        Command::Check(options) => check::run(&options),
        Command::Import(options) => import::run(&options),
        Command::Generate(options) => generate::run(&options),
        Command::Watchdog(options) => live::watch(&options),
        Command::Bench(options) => slb_benches::run(&slb_benches::Options {
            quick: options.quick,
            json: options.report == cli::Format::Json,
            filter: options.filter,
        })
        .map_err(Failure::failed),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.status)
        }
    }
}

/// Has the program end when nobody reads what it prints, as `slb explain ... | head -1`. Not for those that
/// talk to others: a peer that goes away must not take the program with it.
fn end_with_the_reader() {
    let always = Arc::new(AtomicBool::new(true));
    // Without it, printing would fail, and say so.
    let _ = signal_hook::flag::register_conditional_default(signal_hook::consts::SIGPIPE, always);
}

/// Why the program ends with another status than 0.
#[derive(Debug)]
struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// What was asked for cannot be done: status 1.
    fn failed(message: impl fmt::Display) -> Self {
        Self {
            status: 1,
            message: format!("slb: {message}"),
        }
    }

    /// What was asked for makes no sense: status 2.
    fn usage(message: impl fmt::Display) -> Self {
        Self {
            status: 2,
            message: format!("slb: {message}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
