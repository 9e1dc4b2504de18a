//! `slb`: a layer-4 load balancer on the command line.
//!
//! Exit status: 0, 1 (it failed), 2 (bad usage or configuration).

#![warn(unnameable_types, unreachable_pub)]
#![forbid(unsafe_code)]

#[macro_use]
mod output;

#[cfg(feature = "live")]
mod ask;
mod balancer;
mod check;
mod cli;
mod destinations;
mod explain;
#[cfg(feature = "live")]
mod fleet;
#[cfg(feature = "live")]
mod flows;
mod generate;
#[cfg(feature = "azure")]
mod import;
mod init;
#[cfg(feature = "live")]
mod live;
#[cfg(feature = "live")]
mod look;
mod manual;
#[cfg(feature = "live")]
mod probe;
mod replay;
mod report;
mod schema;
#[cfg(feature = "live")]
mod status;
#[cfg(feature = "top")]
mod top;

use std::fmt;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use clap::error::{ContextKind, ContextValue};
#[cfg(feature = "live")]
use slb_control::Role;

#[cfg(feature = "live")]
use crate::cli::FleetCommand;
use crate::cli::{Cli, Command, LEFT_OUT};

fn main() -> ExitCode {
    let command = Cli::try_parse()
        .unwrap_or_else(|error| refuse(&error))
        .command;
    if command.only_prints() {
        end_with_the_reader();
    }
    let serves = command.serves();
    let result = match command {
        Command::Replay(options) => replay::run(&options),
        Command::Explain(options) => explain::run(&options),
        #[cfg(feature = "live")]
        Command::Mux(options) => live::run(&options, Role::Mux),
        #[cfg(feature = "live")]
        Command::Host(options) => live::run(&options, Role::Host),
        #[cfg(feature = "live")]
        Command::Proxy(options) => live::run(&options, Role::Proxy),
        #[cfg(feature = "live")]
        Command::Status(options) => status::run(&options),
        #[cfg(feature = "live")]
        Command::Flows(options) => flows::flows(&options),
        #[cfg(feature = "live")]
        Command::Connections(options) => flows::connections(&options),
        #[cfg(feature = "live")]
        Command::Snat(options) => flows::snat(&options),
        #[cfg(feature = "live")]
        Command::Drops(options) => look::drops(&options),
        #[cfg(feature = "live")]
        Command::Capture(options) => look::capture(&options),
        #[cfg(feature = "live")]
        Command::Config(options) => look::config(&options),
        #[cfg(feature = "top")]
        Command::Top(options) => top::run(&options),
        #[cfg(feature = "live")]
        Command::Probe(options) => probe::run(&options),
        #[cfg(feature = "live")]
        Command::Apply(options) => fleet::apply(&options),
        #[cfg(feature = "live")]
        Command::Get(options) => fleet::get(&options),
        #[cfg(feature = "live")]
        Command::Delete(options) => fleet::delete(&options),
        #[cfg(feature = "live")]
        Command::Fleet(FleetCommand::Status(options)) => fleet::status(&options),
        #[cfg(feature = "live")]
        Command::Fleet(FleetCommand::Forget(options)) => fleet::forget(&options),
        #[cfg(feature = "live")]
        Command::Controller(options) => fleet::control(&options),
        #[cfg(feature = "live")]
        Command::State(command) => live::move_state(&command),
        Command::Diff(options) => check::diff(&options),
        Command::Check(options) => check::run(&options),
        #[cfg(feature = "azure")]
        Command::Import(options) => import::run(&options),
        Command::Generate(options) => generate::run(&options),
        Command::Init(options) => init::run(&options),
        Command::Schema(options) => schema::run(&options),
        Command::Completions(options) => manual::completions(&options),
        Command::Man(options) => manual::pages(&options),
        #[cfg(feature = "live")]
        Command::Watchdog(options) => live::watch(&options),
        #[cfg(feature = "bench")]
        Command::Bench(options) => slb_bench::run(&slb_bench::Options {
            quick: options.quick,
            json: options.report == cli::Format::Json,
            filter: options.filter,
            instructions: options.instructions,
        })
        .map_err(Failure::failed),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            match serves {
                _ if failure.message.is_empty() => {}
                #[cfg(feature = "live")]
                true => {
                    let text = format!("{failure}\n");
                    let _ = output::print_if_read(std::io::stderr(), &text, 10);
                }
                _ => tell_line!("{failure}"),
            }
            ExitCode::from(failure.status)
        }
    }
}

/// Ends with clap's message; names the feature that brings a command which this program was built without.
fn refuse(error: &clap::Error) -> ! {
    if let Some(ContextValue::String(asked)) = error.get(ContextKind::InvalidSubcommand)
        && let Some((name, feature)) = LEFT_OUT.iter().find(|(name, _)| name == asked)
    {
        tell_line!(
            "slb: this program was built without `slb {name}`: build it with --features {feature}"
        );
        std::process::exit(2);
    }
    // Help that nobody gets is a failure; a message about bad usage that nobody gets is still one.
    let status = match error.use_stderr() {
        true => {
            let text = error.render();
            let text = match std::io::stderr().is_terminal() {
                true => text.ansi().to_string(),
                false => text.to_string(),
            };
            tell!("{}", in_the_trades_words(text));
            error.exit_code()
        }
        false => match error.print().map_err(output::unwritten) {
            Ok(()) => error.exit_code(),
            Err(failure) => {
                if !failure.message.is_empty() {
                    tell_line!("{failure}");
                }
                failure.status.into()
            }
        },
    };
    std::process::exit(status)
}

/// A message about bad usage that says what was expected, where the parser of a value has words of its own.
fn in_the_trades_words(text: String) -> String {
    const WORDS: [(&str, &str); 8] = [
        ("invalid digit found in string", "expected a whole number"),
        (
            "cannot parse integer from empty string",
            "expected a whole number",
        ),
        (
            "number too large to fit in target type",
            "expected a smaller number",
        ),
        (
            "number too small to fit in target type",
            "expected a larger number",
        ),
        ("invalid float literal", "expected a number"),
        ("cannot parse float from empty string", "expected a number"),
        ("invalid socket address syntax", "expected ADDRESS:PORT"),
        ("invalid IP address syntax", "expected an address"),
    ];
    WORDS
        .into_iter()
        .fold(text, |text, (theirs, ours)| text.replace(theirs, ours))
}

/// Ends the program when its output is no longer read, as in `slb explain ... | head -1`. Not for
/// commands that talk to others: a peer that goes away must not take the program with it.
fn end_with_the_reader() {
    let always = Arc::new(AtomicBool::new(true));
    // Without it, printing would fail, and say so.
    let _ = signal_hook::flag::register_conditional_default(signal_hook::consts::SIGPIPE, always);
}

/// The reason why the program ends with another status than 0.
#[derive(Debug)]
struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// A request that cannot be done: status 1.
    fn failed(message: impl fmt::Display) -> Self {
        Self {
            status: 1,
            message: format!("slb: {message}"),
        }
    }

    /// A request that makes no sense: status 2.
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
