//! The ends of a cable, for `benches/veth.sh`: who sends and counts, and the forwarders that do
//! nothing else.

mod bare;
mod ends;

use std::error::Error;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use slb_core::wire::ethernet::MacAddress;

/// Sends, counts, and forwards without balancing.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send frames of 64 bytes, as many as will go, and print how many went a second.
    Send(Target),
    /// Send a frame a millisecond, wait for each to come back, and print how long they took, in
    /// microseconds: the median, and what 99 and 99.9 of 100 stayed under.
    Latency(Target),
    /// Send back what comes, by this project's sockets alone.
    L2fwd {
        /// The interface.
        interface: String,
        /// Never wait.
        #[arg(long)]
        busy: bool,
    },
    /// Forwards frames with another library's sockets, the crate xdp.
    L2fwdXdp {
        /// The interface.
        interface: String,
    },
}

#[derive(Debug, clap::Args)]
struct Target {
    /// The interface to send by.
    interface: String,
    /// The MAC address to send to.
    mac: MacAddress,
    /// The IPv4 address to send to, by UDP.
    address: Ipv4Addr,
    /// The duration in seconds.
    #[arg(default_value_t = 3.0)]
    seconds: f64,
}

fn main() -> ExitCode {
    let result: Result<(), Box<dyn Error>> = match Arguments::parse().command {
        Command::Send(target) => ends::send(&target, Duration::from_secs_f64(target.seconds)),
        Command::Latency(target) => ends::latency(&target, Duration::from_secs_f64(target.seconds)),
        Command::L2fwd { interface, busy } => bare::own(&interface, busy),
        Command::L2fwdXdp { interface } => bare::crate_xdp(&interface),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slb-veth: {error}");
            ExitCode::FAILURE
        }
    }
}
