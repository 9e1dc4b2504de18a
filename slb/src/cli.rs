//! The command line.

#[cfg(feature = "live")]
mod fleet;
#[cfg(feature = "live")]
mod live;
mod offline;
#[cfg(feature = "live")]
mod running;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use slb_control::Role;

#[cfg(feature = "live")]
pub(crate) use self::fleet::{
    ApplyOptions, ControllerOptions, DeleteOptions, FleetAccess, FleetCommand, FleetStatusOptions,
    ForgetOptions, GetOptions, StoreOptions,
};
#[cfg(feature = "live")]
pub(crate) use self::live::{LiveOptions, LogFormat, ProbeOptions, WatchdogOptions};
#[cfg(feature = "bench")]
pub(crate) use self::offline::BenchOptions;
#[cfg(feature = "azure")]
pub(crate) use self::offline::ImportOptions;
pub(crate) use self::offline::{
    CheckOptions, CompletionsOptions, DiffOptions, ExplainOptions, GenerateOptions, InitOptions,
    ManOptions, ReplayOptions, SchemaOptions,
};
#[cfg(feature = "top")]
pub(crate) use self::running::TopOptions;
#[cfg(feature = "live")]
pub(crate) use self::running::{
    CaptureOptions, ConnectionOptions, DropsOptions, FlowOptions, ListOptions, Named,
    RunningConfigOptions, StateCommand, StatusOptions,
};

/// A layer-4 load balancer: replays captures, explains packets, checks configurations.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit status: 0; 1 where it failed; 2 for bad usage or a bad configuration."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Replay a capture through a balancer, and write the packets that it would send.
    ///
    /// The balancer uses the capture's clock, so the same capture always gives the same result.
    /// Needs neither root nor a network.
    Replay(ReplayOptions),
    /// Trace one packet: its headers, rule, hash, slot and backend, and the outer header, or the
    /// reason of its drop.
    ///
    /// The packet is one of a capture (packets before it are processed first, to set up flows), or
    /// made from a tuple: slb explain web.toml tcp 1.2.3.4:50000 20.20.20.100:80
    Explain(ExplainOptions),
    #[cfg(feature = "live")]
    /// Run a mux on AF_XDP, with a worker for each queue, or on a TUN device: route the VIPs into
    /// the device, and it returns VXLAN packets.
    ///
    /// AF_XDP needs CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF, and CAP_IPC_LOCK or a sufficient limit
    /// on locked memory.
    Mux(LiveOptions),
    #[cfg(feature = "live")]
    /// Run a host agent. Port 0 is the fabric; `slb check` lists the ports of the vms.
    Host(LiveOptions),
    #[cfg(feature = "live")]
    /// Run a proxy, with a device for each port.
    Proxy(LiveOptions),
    #[cfg(feature = "live")]
    /// Show the rates, flows, backends and drops of a running balancer, or the state of a controller and its fleet,
    /// each second.
    Status(StatusOptions),
    #[cfg(feature = "live")]
    /// List the flows that a running mux has pinned.
    ///
    /// A list is not atomic: flows come and go while the table is read. Packets have priority, so a
    /// large table takes longer while the mux is busy.
    Flows(FlowOptions),
    #[cfg(feature = "live")]
    /// List the connections that a running host agent or proxy translates.
    ///
    /// A list is not atomic: connections come and go while the table is read.
    Connections(ConnectionOptions),
    #[cfg(feature = "live")]
    /// List the connections that vms behind a running host agent opened, and the SNAT ports that they use.
    Snat(ConnectionOptions),
    #[cfg(feature = "live")]
    /// List the packets that a running balancer dropped last, by reason.
    ///
    /// For each reason, a worker keeps the last 16 packets that it sampled.
    Drops(DropsOptions),
    #[cfg(feature = "live")]
    /// Write what a running balancer receives and sends to a capture in pcapng, each packet with a comment: the
    /// rule, the backend, and the verdict or the reason of its drop.
    ///
    /// Packets never wait for a capture: if it cannot keep up, copies are lost, and the command prints their number at
    /// the end, also after SIGINT. Only one capture can run at a time, and one that is not read for 30 s ends.
    Capture(CaptureOptions),
    #[cfg(feature = "live")]
    /// Print the configuration that a running balancer uses.
    Config(RunningConfigOptions),
    #[cfg(feature = "top")]
    /// Show a running balancer in full screen: VIPs, backends and their health, rates, drops. The key h shows the
    /// other keys.
    Top(TopOptions),
    #[cfg(feature = "live")]
    /// Probe each backend once with the configuration's probes, and print the results.
    ///
    /// Exits with status 1 if any backend is unhealthy.
    Probe(ProbeOptions),
    #[cfg(feature = "live")]
    /// Apply a configuration to a fleet: everything but `[node]`, which each node has in its own file.
    ///
    /// Hosts get the configuration first, then muxes. Backends that it lacks are drained before
    /// they are removed.
    Apply(ApplyOptions),
    #[cfg(feature = "live")]
    /// Print the configuration that was applied to a fleet, or one section of it.
    Get(GetOptions),
    #[cfg(feature = "live")]
    /// Remove a section, or a backend, from the configuration of a fleet.
    Delete(DeleteOptions),
    #[cfg(feature = "live")]
    /// Show the state of a fleet, or forget a host agent.
    #[command(subcommand)]
    Fleet(FleetCommand),
    #[cfg(feature = "live")]
    /// Run a fleet's controller, which rolls out applied configurations. If several run, one leads and the others wait.
    Controller(ControllerOptions),
    #[cfg(feature = "live")]
    /// Move a vm's connections from the host agent on this machine to another one.
    ///
    /// Stop the vm, and export here. Give the other host agent the configuration that has the vm there, and import
    /// there. Then give the configuration to this host agent and to the muxes, and start the vm. From then on, this
    /// host passes the vm's packets on.
    #[command(subcommand)]
    State(StateCommand),
    /// Check a configuration: print every fault with its line, or a summary.
    Check(CheckOptions),
    /// Show the changes that another configuration would make: items added, removed and changed,
    /// the share of each rule's table that gets another backend, and settings that need a restart.
    Diff(DiffOptions),
    #[cfg(feature = "azure")]
    /// Convert Azure's JSON (load balancers and whole templates) into a configuration.
    ///
    /// An inventory supplies data that the JSON lacks, such as the hosts of backends. The command
    /// lists the parts that it leaves out.
    Import(ImportOptions),
    /// Make a capture for tests: TCP sessions and UDP exchanges from many clients.
    ///
    /// The same options give the same bytes.
    Generate(GenerateOptions),
    /// Write a first configuration: a mux with a rule for each of the busiest services in a capture.
    ///
    /// Addresses of hosts and backends are examples. `slb check` accepts the file, and `slb replay` can use it with the
    /// same capture.
    Init(InitOptions),
    /// Print the JSON schema of the configuration, with which editors complete and check its TOML.
    ///
    /// The schema covers names, types, ranges and required fields. `slb check` also checks how items depend on each
    /// other.
    Schema(SchemaOptions),
    /// Print a script that completes commands and options of slb in a shell.
    Completions(CompletionsOptions),
    /// Write the manual pages, one for each command, to a directory.
    Man(ManOptions),
    #[cfg(feature = "bench")]
    /// Measure this machine, Maglev tables, and the mux, host agent and proxy, in memory on one
    /// core.
    ///
    /// cargo run --profile dist -p slb-benches compares them with other implementations.
    Bench(BenchOptions),
    #[cfg(feature = "live")]
    /// Take an interface down while standard input is silent: the watchdog that a mux starts.
    #[command(hide = true)]
    Watchdog(WatchdogOptions),
}

/// Commands that this program was built without, and the features that they need.
pub(crate) const LEFT_OUT: &[(&str, &str)] = &[
    #[cfg(not(feature = "live"))]
    ("mux", "live"),
    #[cfg(not(feature = "live"))]
    ("host", "live"),
    #[cfg(not(feature = "live"))]
    ("proxy", "live"),
    #[cfg(not(feature = "live"))]
    ("status", "live"),
    #[cfg(not(feature = "live"))]
    ("flows", "live"),
    #[cfg(not(feature = "live"))]
    ("connections", "live"),
    #[cfg(not(feature = "live"))]
    ("snat", "live"),
    #[cfg(not(feature = "live"))]
    ("drops", "live"),
    #[cfg(not(feature = "live"))]
    ("capture", "live"),
    #[cfg(not(feature = "live"))]
    ("config", "live"),
    #[cfg(not(feature = "live"))]
    ("probe", "live"),
    #[cfg(not(feature = "live"))]
    ("apply", "live"),
    #[cfg(not(feature = "live"))]
    ("get", "live"),
    #[cfg(not(feature = "live"))]
    ("delete", "live"),
    #[cfg(not(feature = "live"))]
    ("fleet", "live"),
    #[cfg(not(feature = "live"))]
    ("controller", "live"),
    #[cfg(not(feature = "live"))]
    ("state", "live"),
    #[cfg(not(feature = "top"))]
    ("top", "top"),
    #[cfg(not(feature = "azure"))]
    ("import", "azure"),
    #[cfg(not(feature = "bench"))]
    ("bench", "bench"),
];

impl Command {
    /// Returns true if the command only prints, and ends when its reader goes away.
    pub(crate) fn only_prints(&self) -> bool {
        match self {
            #[cfg(feature = "live")]
            Self::Mux(_)
            | Self::Host(_)
            | Self::Proxy(_)
            | Self::Probe(_)
            | Self::Watchdog(_)
            | Self::Apply(_)
            | Self::Delete(_)
            | Self::Controller(_) => false,
            // It says in the end how many copies were lost.
            #[cfg(feature = "live")]
            Self::Capture(_) => false,
            #[cfg(feature = "top")]
            Self::Top(_) => false,
            _ => true,
        }
    }

    /// Returns true if the command serves until it is ended, which no reader of its output may delay.
    pub(crate) fn serves(&self) -> bool {
        match self {
            #[cfg(feature = "live")]
            Self::Mux(_)
            | Self::Host(_)
            | Self::Proxy(_)
            | Self::Watchdog(_)
            | Self::Controller(_) => true,
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Formats of a replay's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// One page with charts over the capture's time, which needs no scripts and no other files.
    Html,
}

/// The role of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Sends packets for VIPs to the hosts of their backends.
    Mux,
    /// Translates between VIPs and the vms of one machine. A vm's packets are recognised by its MAC
    /// address.
    Host,
    /// Translates between clients on one side and backends on the other.
    Proxy,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Mux => Self::Mux,
            RoleName::Host => Self::Host,
            RoleName::Proxy => Self::Proxy,
        }
    }
}

/// The configuration that a command reads, with or without `--config` before its name.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConfigFile {
    /// The configuration (TOML).
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The configuration (TOML), without --config before it.
    #[arg(
        value_name = "FILE",
        conflicts_with = "config",
        required_unless_present = "config"
    )]
    file: Option<PathBuf>,
}

impl ConfigFile {
    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        let given = self.config.as_deref().or(self.file.as_deref());
        given.unwrap_or(Path::new("")) // clap requires one
    }
}

/// Differences between a balancer and its configuration, for every command that runs one in memory.
#[derive(Clone, Debug, Args)]
pub(crate) struct BalancerOptions {
    /// Run in another role than the configuration's. A host's configuration that runs as a mux uses
    /// the address of its first mux.
    #[arg(long, value_enum)]
    pub(crate) role: Option<RoleName>,
    /// Pin no flows, as with `flows = 0` in the configuration: Maglev picks the backend of each
    /// packet.
    #[arg(long)]
    pub(crate) stateless: bool,
    /// Treat this backend as unhealthy: its name, or POOL/NAME. Can be given several times.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) down: Vec<String>,
    /// Drain this backend: its name, or POOL/NAME. Can be given several times.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) drain: Vec<String>,
}
