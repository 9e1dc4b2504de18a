//! Options of the commands that ask a running balancer.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use slb_core::DropReason;

use super::Format;
use crate::live::VERDICTS;

/// The names of drop reasons.
fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(DropReason::ALL.iter().map(|reason| reason.name()))
}

#[derive(Clone, Debug, Args)]
pub(crate) struct StatusOptions {
    /// Socket of the balancer or controller. Default: that of the one running on this machine.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Print once, and exit.
    #[arg(long)]
    pub(crate) once: bool,
    /// Format of the output: JSON is printed once.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Filters and format for the entries of a table.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListOptions {
    /// The balancer's socket. Default: that of the balancer running on this machine.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Only of this client, or of this remote end of a vm's connection.
    #[arg(long, value_name = "ADDRESS[/BITS]|[ADDRESS]:PORT")]
    pub(crate) client: Option<String>,
    /// Only of this VIP, or of this SNAT address.
    #[arg(long, value_name = "ADDRESS[/BITS]|[ADDRESS]:PORT")]
    pub(crate) vip: Option<String>,
    /// Only of this protocol: tcp, udp, icmp, icmpv6 or a number.
    #[arg(long, value_name = "PROTOCOL")]
    pub(crate) protocol: Option<String>,
    /// Only in this state: of flows half_open, established or closing; of connections syn_sent, syn_received,
    /// established, fin_wait_inward, fin_wait_outward, time_wait or closed.
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<String>,
    #[command(flatten)]
    pub(crate) named: Named,
    /// Print only the number of entries.
    #[arg(long)]
    pub(crate) count: bool,
    /// Print at most this many.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Print one JSON object per line.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Entries by names of the configuration.
#[derive(Clone, Debug, Args)]
pub(crate) struct Named {
    /// Only of this backend: its name, or POOL/NAME. Can be given several times.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) backend: Vec<String>,
    /// Only of this rule or inbound NAT rule. Can be given several times.
    #[arg(long, value_name = "RULE")]
    pub(crate) rule: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct FlowOptions {
    #[command(flatten)]
    pub(crate) list: ListOptions,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ConnectionOptions {
    #[command(flatten)]
    pub(crate) list: ListOptions,
    /// Only of the vm or backend with this address.
    #[arg(long, value_name = "ADDRESS[/BITS]|[ADDRESS]:PORT")]
    pub(crate) vm: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DropsOptions {
    /// The balancer's socket. Default: that of the one that runs here.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Only for this reason, such as no_rule. Can be given several times.
    #[arg(long, value_name = "REASON", value_parser = reasons(), hide_possible_values = true)]
    pub(crate) reason: Vec<String>,
    /// Print one JSON object per line, with the first bytes of each packet.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RunningConfigOptions {
    /// The balancer's socket. Default: that of the one that runs here.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Print a JSON object, with the path and time of the file's loading.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CaptureOptions {
    /// The balancer's socket. Default: that of the one that runs here.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// File for the capture, in pcapng whatever its extension; - for standard output. An existing capture is replaced;
    /// any other file is not.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Only packets from or to this client, before or after translation. If several filters are given, all have to
    /// match.
    #[arg(long, value_name = "ADDRESS[/BITS]|[ADDRESS]:PORT")]
    pub(crate) client: Option<String>,
    /// Only packets from or to this VIP.
    #[arg(long, value_name = "ADDRESS[/BITS]|[ADDRESS]:PORT")]
    pub(crate) vip: Option<String>,
    /// Only packets between these two, in both directions: PROTOCOL A B, such as tcp 1.2.3.4:50000 20.20.20.100:80.
    #[arg(long, num_args = 3, value_names = ["PROTOCOL", "A", "B"])]
    pub(crate) tuple: Vec<String>,
    /// Only packets with this verdict: forward, flood, reply, pass or drop. Can be given several times.
    #[arg(long, value_name = "VERDICT", value_parser = VERDICTS, hide_possible_values = true)]
    pub(crate) verdict: Vec<String>,
    /// Only packets that are dropped for this reason, such as no_rule. Can be given several times.
    #[arg(long, value_name = "REASON", value_parser = reasons(), hide_possible_values = true)]
    pub(crate) reason: Vec<String>,
    /// Capture one in N packets.
    #[arg(long, value_name = "N")]
    pub(crate) sample: Option<u64>,
    /// Copy at most this many packets a second.
    #[arg(long, value_name = "PACKETS")]
    pub(crate) limit_rate: Option<u64>,
    /// End after this many bytes of capture.
    #[arg(long, value_name = "BYTES")]
    pub(crate) size: Option<u64>,
    /// End after this many packets.
    #[arg(long, value_name = "N")]
    pub(crate) packets: Option<u64>,
    /// End after this many seconds. Without a limit, the capture runs until it is interrupted.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) seconds: Option<f64>,
    /// Keep this many bytes of each packet.
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub(crate) snaplen: u64,
}

#[cfg(feature = "top")]
#[derive(Clone, Debug, Args)]
pub(crate) struct TopOptions {
    /// The balancer's socket. Default: that of the balancer running on this machine.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// Write the connections of a vm to a file. The host agent keeps serving them until the vm has moved.
    Export(StateExportOptions),
    /// Import the connections in a file into a host agent, and print how many it took over.
    ///
    /// Exits with status 1 if the agent refuses any.
    Import(StateImportOptions),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct StateExportOptions {
    /// The directory that the host agent has as --state.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
    /// The vm, as one of its backends: POOL/BACKEND. The vm's connections in all pools are
    /// exported.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) vm: String,
    /// The file to write, which must not exist yet; - for standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct StateImportOptions {
    /// The directory that the host agent has as --state.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
    /// A file written by slb state export; - for standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}
