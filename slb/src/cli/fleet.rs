//! Options of the commands that read and write the store of a fleet.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Format;
use super::live::LogFormat;

/// Access to a fleet's store, besides its addresses.
#[derive(Clone, Debug, Args)]
pub(crate) struct FleetAccess {
    /// Name of the fleet: several can share an etcd.
    #[arg(long, value_name = "NAME", value_parser = name, default_value = "default")]
    pub(crate) cluster: String,
    /// Certificates of the authority that signed etcd's certificate, for https (PEM).
    #[arg(long, value_name = "FILE", requires = "fleet")]
    pub(crate) fleet_ca: Option<PathBuf>,
    /// Certificate of this node, for https (PEM). Its common name is the etcd user.
    #[arg(long, value_name = "FILE", requires = "fleet")]
    pub(crate) fleet_cert: Option<PathBuf>,
    /// Private key of --fleet-cert (PEM).
    #[arg(long, value_name = "FILE", requires = "fleet")]
    pub(crate) fleet_key: Option<PathBuf>,
}

/// The store of a fleet.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreOptions {
    /// Addresses of the fleet's etcd members, http://HOST:PORT or https://HOST:PORT, separated by
    /// commas.
    #[arg(long, value_name = "URL", value_delimiter = ',', required = true)]
    pub(crate) fleet: Vec<String>,
    #[command(flatten)]
    pub(crate) access: FleetAccess,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ApplyOptions {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// A configuration without [node] (TOML), or Azure's JSON by the extension .json; - for standard input.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Data that Azure's JSON lacks (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) inventory: Option<PathBuf>,
    /// Keep sections that the file lacks. Without it, they are removed.
    #[arg(long)]
    pub(crate) add: bool,
    /// Wait until all nodes have it, at most this many seconds, also for a store that does not answer.
    /// Exits with status 1 if a node refuses it.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wait: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct GetOptions {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// The kind of section, such as pool. Default: all.
    #[arg(value_name = "KIND", value_parser = name)]
    pub(crate) kind: Option<String>,
    /// Name of the section.
    #[arg(value_name = "NAME", value_parser = name)]
    pub(crate) name: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DeleteOptions {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// The kind of section, such as rule; or backend.
    #[arg(value_name = "KIND", value_parser = name)]
    pub(crate) kind: String,
    /// Name of the section; of a backend, POOL/NAME.
    #[arg(value_name = "NAME", value_parser = name)]
    pub(crate) name: String,
    /// Wait until all nodes have it, at most this many seconds, also for a store that does not answer.
    /// Exits with status 1 if a node refuses it.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wait: Option<u64>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// Show the rollout, and for each node the generations that it has and uses, the one that it refuses and the
    /// reason, and the connections left on backends that are being removed.
    Status(FleetStatusOptions),
    /// Forget the agent of a host that is gone for good; muxes then probe the host's vms. Until an agent is forgotten,
    /// or another one reports its address, its vms get no new flows.
    Forget(ForgetOptions),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ForgetOptions {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// Name of the host agent, as slb fleet status lists it.
    #[arg(value_name = "HOST", value_parser = name)]
    pub(crate) name: String,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct FleetStatusOptions {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// Format of the output.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ControllerOptions {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// Name of the controller. Default: the machine's.
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) name: Option<String>,
    /// Maximum seconds to wait for connections of removed backends.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub(crate) drain: u64,
    /// Socket of `slb status`. Default: /run/slb-controller.sock. A stale socket is replaced; if the file
    /// is anything else, it stays, and the program does not start.
    #[arg(long = "socket", visible_alias = "status", value_name = "PATH")]
    pub(crate) status: Option<PathBuf>,
    /// Address that serves /metrics (for Prometheus), /healthz and /readyz over HTTP.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Format of the log: `text` and `json` go to standard error, `journal` to systemd's journal.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
    /// Lowest level to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: tracing::Level,
}

/// A name that is not empty.
pub(super) fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("expected a name".to_owned()),
        _ => Ok(text.to_owned()),
    }
}
