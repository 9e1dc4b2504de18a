//! The command line.

use std::net::SocketAddr;
#[cfg(feature = "live")]
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

#[cfg(feature = "live")]
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use slb_control::Role;
#[cfg(feature = "live")]
use slb_core::DropReason;

#[cfg(feature = "live")]
use crate::live::VERDICTS;

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
    /// it, and VXLAN comes out.
    ///
    /// AF_XDP needs CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF, and CAP_IPC_LOCK or a sufficient limit
    /// on locked memory.
    Mux(LiveOptions),
    #[cfg(feature = "live")]
    /// Run a host agent: port 0 is the fabric's, `slb check` lists those of the vms.
    Host(LiveOptions),
    #[cfg(feature = "live")]
    /// Run a proxy, with a device for each port.
    Proxy(LiveOptions),
    #[cfg(feature = "live")]
    /// Show the rates, flows, backends and drops of a running balancer, each second.
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
    /// Of each reason a worker keeps the last 16 that it saw when it looked: of a flood, a sample.
    Drops(DropsOptions),
    #[cfg(feature = "live")]
    /// Write what a running balancer receives and sends to a capture in pcapng, each packet with a comment: the
    /// rule, the backend, and the verdict or the reason of its drop.
    ///
    /// Packets never wait for a capture: where it cannot keep up, copies are lost, and their number is said in the
    /// end. SIGINT ends it as its time does. There can be one capture at a time: one that is not read for 30 s ends.
    Capture(CaptureOptions),
    #[cfg(feature = "live")]
    /// Print the configuration that a running balancer has in place.
    Config(RunningConfigOptions),
    #[cfg(feature = "top")]
    /// Watch a running balancer on the whole terminal: VIPs, backends and their health, rates, drops.
    Top(TopOptions),
    #[cfg(feature = "live")]
    /// Probe each backend once, by the configuration's probes, and print the results.
    ///
    /// Exits with status 1 if any backend is unhealthy.
    Probe(ProbeOptions),
    #[cfg(feature = "live")]
    /// Apply a configuration to a fleet: everything but `[node]`, which each node has in its own file.
    ///
    /// Hosts get it first, then muxes. Backends that it lacks are drained before they are removed.
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
    /// Run a fleet's controller, which rolls out what was applied. Of several, one leads and the others
    /// wait.
    Controller(ControllerOptions),
    #[cfg(feature = "live")]
    /// Move a vm's connections from the host agent that runs here to another one.
    ///
    /// Stop the vm, export here, give the other host agent the configuration in which the vm is there,
    /// import there, then give the configuration to this host agent and to the muxes, and start the vm. From
    /// then on this host passes on what still comes here.
    #[command(subcommand)]
    State(StateCommand),
    /// Check a configuration: print every fault with its line, or a summary.
    Check(CheckOptions),
    /// Show the changes that another configuration would make: items added, removed and changed,
    /// the share of each rule's table that gets another backend, and settings that need a restart.
    Diff(DiffOptions),
    #[cfg(feature = "azure")]
    /// Convert Azure's JSON, load balancers and whole templates, into a configuration.
    ///
    /// An inventory supplies data that the JSON lacks, such as the hosts of backends. Parts that
    /// are left out are named.
    Import(ImportOptions),
    /// Make a capture for tests: TCP sessions and UDP exchanges from many clients.
    ///
    /// The same options give the same bytes.
    Generate(GenerateOptions),
    /// Write a configuration to begin with: a mux with a rule for each service that a capture shows to be called most.
    ///
    /// Addresses of hosts and backends are examples. `slb check` accepts it, and `slb replay` serves the capture by it.
    Init(InitOptions),
    /// Print the JSON schema of the configuration, by which editors complete and check its TOML.
    ///
    /// The schema knows names, types, ranges and required fields. `slb check` also knows what belongs together.
    Schema(SchemaOptions),
    /// Print a script that completes commands and options of slb in a shell.
    Completions(CompletionsOptions),
    /// Write the manual pages, one for each command, to a directory.
    Man(ManOptions),
    #[cfg(feature = "bench")]
    /// Measure this machine, Maglev tables, and mux, host agent and proxy alone, in memory, on one
    /// core.
    ///
    /// cargo run --profile dist -p slb-benches measures them beside their peers.
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
    /// The same without --config.
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
    /// Run it in another role than the configuration's. A host's configuration run as a mux has the
    /// address of its first mux.
    #[arg(long, value_enum)]
    pub(crate) role: Option<RoleName>,
    /// Pin no flows: Maglev alone chooses, as with `flows = 0` in the configuration.
    #[arg(long)]
    pub(crate) stateless: bool,
    /// Treat this backend as unhealthy: its name, or POOL/NAME. Can be given several times.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) down: Vec<String>,
    /// Drain this backend: its name, or POOL/NAME. Can be given several times.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) drain: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ReplayOptions {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    #[command(flatten)]
    pub(crate) balancer: BalancerOptions,
    /// The capture to read: pcap or pcapng, also packed by gzip or zstd, or - for standard input;
    /// Ethernet, raw IP or Linux cooked. For a proxy one for each port, merged by time: --in
    /// frontend=a.pcap --in backend=b.pcap; without a port's name it is the first frontend port's.
    #[arg(long = "in", value_name = "[PORT=]FILE", required = true)]
    pub(crate) input: Vec<String>,
    /// File for the packets that the balancer sends: pcapng by its extension, otherwise pcap; - for
    /// standard output, then the report goes to standard error. For a proxy also the packets out of
    /// one port: --out backend=b.pcap. Can be given several times. An existing capture is replaced,
    /// unless it is also read; any other file is not. In pcapng each packet has a comment: the role, the rule,
    /// the backend and the verdict, as `slb explain` says them.
    #[arg(long = "out", value_name = "[PORT=]FILE")]
    pub(crate) output: Vec<String>,
    /// File for the packets that the balancer passes on untouched; with comments as those of --out.
    #[arg(long, value_name = "FILE")]
    pub(crate) passed: Option<PathBuf>,
    /// Process packets that a snap length cut by their headers, as if the missing bytes were zeros.
    /// They are written as long as they were cut. Without this option they are dropped as
    /// truncated.
    #[arg(long)]
    pub(crate) cut: bool,
    /// Format of the report, which goes to standard output.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub(crate) report: ReportFormat,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "The configuration is read again on SIGHUP and when the file has changed; a bad one \
                  changes nothing. SIGTERM and SIGINT end the program, with a report."
)]
pub(crate) struct LiveOptions {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// A device for a port: a proxy's port by name, a host's by number or by the name of the vm's
    /// backend. Can be given several times.
    ///
    /// afxdp:NAME takes the balancer's packets from an interface, and no others; with :QUEUES such
    /// as 0 or 0-3, from some of its queues. tun:NAME and tap:NAME create the device if it does not
    /// exist; with :N it has N queues.
    #[arg(
        long,
        value_name = "[PORT=]afxdp:NAME[:QUEUES]|tun:NAME[:N]|tap:NAME[:N]",
        required = true
    )]
    pub(crate) io: Vec<String>,
    /// Threads that move packets. Default: for a mux one for each queue of its devices, for a host or a proxy
    /// one. With several workers, a host or a proxy divides connections among them by the client's address, or
    /// by the address that a vm calls; packets that come by a queue of another worker are handed over.
    #[arg(long, value_name = "N", value_parser = workers)]
    pub(crate) workers: Option<NonZeroU16>,
    /// The CPUs of workers, assigned in turn. Default: all.
    #[arg(long, value_name = "CPU", value_delimiter = ',', value_parser = cpu)]
    pub(crate) cpus: Vec<usize>,
    /// Poll for packets without waiting: lower latency, but each worker uses a whole CPU.
    #[arg(long)]
    pub(crate) busy: bool,
    /// Socket of `slb status`. Default: /run/slb-ROLE.sock. A stale socket is replaced; if the file
    /// is anything else, it stays, and the program does not start.
    #[arg(long = "socket", visible_alias = "status", value_name = "PATH")]
    pub(crate) status: Option<PathBuf>,
    /// For AF_XDP: TUN device for packets that go back to the kernel; none: they are lost. Default:
    /// slb-pass for a host or a proxy, none for a mux. A proxy gives it the packets for its interfaces'
    /// own MAC addresses that belong to no connection, so a proxy between two subnets routes between
    /// them if the machine forwards (sysctl net.ipv4.ip_forward=1).
    #[arg(long, value_name = "NAME")]
    pub(crate) pass: Option<String>,
    /// Address that serves /metrics (for Prometheus), /healthz and /readyz over HTTP.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// For a mux or a host: call each TCP rule's VIP every five seconds, as a client would, and count the answers in
    /// the metrics: data path availability. The calls leave by the fabric, so they go through routers, a mux, a host
    /// and a backend; a backend sees connections that end with a RST.
    #[arg(long)]
    pub(crate) probe_vips: bool,
    /// For a mux on AF_XDP: create an interface of this name that leads to the VIPs, for a routing
    /// daemon on this machine to announce. The VIPs appear after the first probes, and disappear
    /// when the mux drains or ends, and while no packets arrive or the process is stuck.
    #[arg(long, value_name = "NAME")]
    pub(crate) announce: Option<String>,
    /// For AF_XDP: entries of each ring, a power of two.
    #[arg(long, default_value_t = slb_io_afxdp::RING, value_parser = ring)]
    pub(crate) ring: u32,
    /// Seconds to keep running after SIGTERM, while routers learn of it; a second signal ends it at
    /// once.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) drain: u64,
    /// A directory that keeps connections and pinned flows beyond the process: they are written
    /// when it ends, and twice a second in case it is killed. The next process continues with them.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Take over from the process that runs with the same role and state directory: it hands its
    /// connections to this one and ends. If none runs, this option has no effect.
    #[arg(long, requires = "state")]
    pub(crate) take_over: bool,
    /// For a mux or host: follow the fleet whose etcd members have these addresses, http://HOST:PORT
    /// or https://HOST:PORT, separated by commas. The configuration file has [node] only.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(crate) fleet: Vec<String>,
    #[command(flatten)]
    pub(crate) fleet_access: FleetAccess,
    /// Name of the node in its fleet, unique among nodes of its role. Default: its first underlay
    /// address.
    #[arg(long, value_name = "NAME", value_parser = name, requires = "fleet")]
    pub(crate) fleet_name: Option<String>,
    /// A directory that keeps the last configuration of the fleet, to start from while etcd is away.
    #[arg(long, value_name = "DIR", requires = "fleet")]
    pub(crate) cache: Option<PathBuf>,
    /// Format of the log, which goes to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
    /// Lowest level to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: tracing::Level,
}

/// How a fleet's store is reached, beside its addresses.
#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct FleetAccess {
    /// Name of the fleet: several can share an etcd.
    #[arg(long, value_name = "NAME", value_parser = name, default_value = "default")]
    pub(crate) cluster: String,
    /// Certificates of the authority that signed etcd's, for https (PEM).
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
#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreOptions {
    /// Addresses of the fleet's etcd members, http://HOST:PORT or https://HOST:PORT, separated by
    /// commas.
    #[arg(long, value_name = "URL", value_delimiter = ',', required = true)]
    pub(crate) fleet: Vec<String>,
    #[command(flatten)]
    pub(crate) access: FleetAccess,
}

#[cfg(feature = "live")]
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

#[cfg(feature = "live")]
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

#[cfg(feature = "live")]
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

#[cfg(feature = "live")]
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// Show the rollout, and for each node the generations that it holds and serves by, the one that
    /// it refuses and why, and the connections left on backends that are being removed.
    Status(FleetStatusOptions),
    /// Forget the agent of a host that is gone for good: muxes probe the host's vms then. Until an agent is forgotten,
    /// or another reports its address, its vms get no new flows.
    Forget(ForgetOptions),
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct ForgetOptions {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// Name of the host agent, as slb fleet status lists it.
    #[arg(value_name = "HOST", value_parser = name)]
    pub(crate) name: String,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct FleetStatusOptions {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// How to print it.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct ControllerOptions {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// Name of the controller. Default: the machine's.
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) name: Option<String>,
    /// Seconds to wait for connections of removed backends, at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub(crate) drain: u64,
    /// How to write the log, which goes to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
    /// Lowest level to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: tracing::Level,
}

/// The names of drop reasons.
#[cfg(feature = "live")]
fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(DropReason::ALL.iter().map(|reason| reason.name()))
}

/// A name that is not empty.
#[cfg(feature = "live")]
fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("expected a name".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

/// A CPU is one that the kernel's sets of them have room for.
#[cfg(feature = "live")]
fn cpu(text: &str) -> Result<usize, String> {
    const MOST: usize = rustix::thread::CpuSet::MAX_CPU - 1;
    let cpu = text.parse().ok().filter(|cpu| *cpu <= MOST);
    cpu.ok_or_else(|| format!("expected a CPU from 0 to {MOST}"))
}

/// There is at least one worker.
#[cfg(feature = "live")]
fn workers(text: &str) -> Result<NonZeroU16, String> {
    let expected = || format!("expected a number from 1 to {}", u16::MAX);
    text.parse().map_err(|_| expected())
}

/// A ring has a power of two of entries.
#[cfg(feature = "live")]
fn ring(text: &str) -> Result<u32, String> {
    let ring = text
        .parse()
        .ok()
        .filter(|ring: &u32| ring.is_power_of_two());
    let ring = ring.filter(|ring| (64..=32_768).contains(ring));
    ring.ok_or_else(|| "expected a power of two from 64 to 32768".to_owned())
}

#[cfg(feature = "live")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For programs: an object a line.
    Json,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct StatusOptions {
    /// The balancer's socket. Default: that of the balancer running on this machine.
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
#[cfg(feature = "live")]
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
#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct Named {
    /// Only of this backend: its name, or POOL/NAME. Can be given several times.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) backend: Vec<String>,
    /// Only of this rule or inbound NAT rule. Can be given several times.
    #[arg(long, value_name = "RULE")]
    pub(crate) rule: Vec<String>,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct FlowOptions {
    #[command(flatten)]
    pub(crate) list: ListOptions,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct ConnectionOptions {
    #[command(flatten)]
    pub(crate) list: ListOptions,
    /// Only of the vm or backend with this address.
    #[arg(long, value_name = "ADDRESS[/BITS]|[ADDRESS]:PORT")]
    pub(crate) vm: Option<String>,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct DropsOptions {
    /// The balancer's socket. Default: that of the one that runs here.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Only for this reason, such as no_rule. Can be given several times.
    #[arg(long, value_name = "REASON", value_parser = reasons(), hide_possible_values = true)]
    pub(crate) reason: Vec<String>,
    /// Print a JSON object a line, with the first bytes of each packet.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct RunningConfigOptions {
    /// The balancer's socket. Default: that of the one that runs here.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Print it as a JSON object, with where and when it was read.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct CaptureOptions {
    /// The balancer's socket. Default: that of the one that runs here.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Where to write the capture, in pcapng whatever its extension; - for standard output. A capture that is there is replaced; another
    /// file is not.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Only packets from or to this client, under one of their names. Of several such options all have to hold.
    #[arg(long, value_name = "ADDRESS[/BITS]|[ADDRESS]:PORT")]
    pub(crate) client: Option<String>,
    /// Only packets from or to this VIP.
    #[arg(long, value_name = "ADDRESS[/BITS]|[ADDRESS]:PORT")]
    pub(crate) vip: Option<String>,
    /// Only packets between these two, whichever way they go: PROTOCOL A B, such as tcp 1.2.3.4:50000
    /// 20.20.20.100:80.
    #[arg(long, num_args = 3, value_names = ["PROTOCOL", "A", "B"])]
    pub(crate) tuple: Vec<String>,
    /// Only packets of this verdict: forward, flood, reply, pass or drop. Can be given several times.
    #[arg(long, value_name = "VERDICT", value_parser = VERDICTS, hide_possible_values = true)]
    pub(crate) verdict: Vec<String>,
    /// Only packets that are dropped for this reason, such as no_rule. Can be given several times.
    #[arg(long, value_name = "REASON", value_parser = reasons(), hide_possible_values = true)]
    pub(crate) reason: Vec<String>,
    /// Look at one in so many packets.
    #[arg(long, value_name = "N")]
    pub(crate) sample: Option<u64>,
    /// Copy so many packets a second at most.
    #[arg(long, value_name = "PACKETS")]
    pub(crate) limit_rate: Option<u64>,
    /// End after so many bytes of capture.
    #[arg(long, value_name = "BYTES")]
    pub(crate) size: Option<u64>,
    /// End after so many packets.
    #[arg(long, value_name = "N")]
    pub(crate) packets: Option<u64>,
    /// End after so many seconds. Without any end, it goes on until it is interrupted.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) seconds: Option<f64>,
    /// Keep so many bytes of each packet.
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

#[derive(Clone, Debug, Args)]
#[command(
    override_usage = "slb explain [OPTIONS] [--config] <FILE> <PROTOCOL> <SOURCE> <DESTINATION>\n       \
                            slb explain [OPTIONS] [--config] <FILE> --in <[PORT=]FILE>... --packet <N>\n       \
                            slb explain --live [--socket <PATH>] <PROTOCOL> <SOURCE> <DESTINATION>\n       \
                            slb explain --live [--socket <PATH>] --in <FILE> --packet <N>"
)]
pub(crate) struct ExplainOptions {
    /// The configuration (TOML); without --config, the first of the words.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) balancer: BalancerOptions,
    /// Ask the balancer that runs here what it would do with the packet now, by its own tables, the health of
    /// its backends and their ramps. Nothing is changed by it.
    #[cfg(feature = "live")]
    #[arg(
        long,
        conflicts_with_all = ["config", "role", "stateless", "down", "drain"]
    )]
    pub(crate) live: bool,
    /// With --live: the balancer's socket. Default: that of the one that runs here.
    #[cfg(feature = "live")]
    #[arg(long, value_name = "PATH", requires = "live")]
    pub(crate) socket: Option<PathBuf>,
    /// A capture with the packet; for a proxy one for each port, as for replay.
    #[arg(long = "in", value_name = "[PORT=]FILE", requires = "packet")]
    pub(crate) input: Vec<String>,
    /// Number of the packet in the capture, or in all by order of time, counted from 1.
    #[arg(long, value_name = "N", requires = "input")]
    pub(crate) packet: Option<u64>,
    /// The port of the packet's arrival: for a host a vm by name or by its port's number, 0 for the
    /// fabric; for a proxy a port by name. Default: by the packet's source.
    #[arg(long, value_name = "PORT")]
    pub(crate) from: Option<String>,
    /// The configuration, unless --config names it; then, without --in, a packet to make: PROTOCOL SOURCE
    /// DESTINATION, such as tcp 1.2.3.4:50000 20.20.20.100:80 (a SYN), udp 1.2.3.4:9 20.20.20.100:53, or
    /// icmp 1.2.3.4 20.20.20.100 (an echo request).
    #[arg(value_name = "WORD", num_args = 0..=4)]
    words: Vec<String>,
}

impl ExplainOptions {
    /// With `--live`: the tuple, which is empty where a capture has the packet; `None` where a word is missing
    /// or too many.
    #[cfg(feature = "live")]
    pub(crate) fn tuple(&self) -> Option<&[String]> {
        let wanted = if self.packet.is_some() { 0 } else { 3 };
        (self.words.len() == wanted).then_some(&self.words)
    }

    /// The path of the configuration, and the tuple, which is empty where a capture has the packet; `None`
    /// where a word is missing or too many.
    pub(crate) fn read(&self) -> Option<(&Path, &[String])> {
        let (config, tuple) = match &self.config {
            Some(config) => (config.as_path(), self.words.as_slice()),
            None => {
                let (config, tuple) = self.words.split_first()?;
                (Path::new(config), tuple)
            }
        };
        let wanted = if self.packet.is_some() { 0 } else { 3 };
        (tuple.len() == wanted).then_some((config, tuple))
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ProbeOptions {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CheckOptions {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// Print the inbound NAT ports and SNAT ports of all backends instead of a few.
    #[arg(long)]
    pub(crate) ports: bool,
}

#[cfg(feature = "live")]
#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// Write the connections of a vm to a file. The host agent goes on with them until the vm has moved.
    Export(StateExportOptions),
    /// Have a host agent take over the connections in a file, and say how many it has taken.
    ///
    /// Exit status 1 where it refuses one.
    Import(StateImportOptions),
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct StateExportOptions {
    /// The directory that the host agent has as --state.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
    /// A backend that the vm is: POOL/BACKEND. Connections of the vm in all pools go along.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) vm: String,
    /// The file to write, which must not be there yet; - for standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct StateImportOptions {
    /// The directory that the host agent has as --state.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
    /// A file that slb state export has written; - for standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Clone, Debug, Args)]
#[command(override_usage = "slb diff [--config] <OLD> [--config] <NEW>")]
pub(crate) struct DiffOptions {
    /// The running configuration and its replacement (TOML).
    #[arg(value_name = "FILE", num_args = 0..=2)]
    files: Vec<PathBuf>,
    /// The same with --config: the files without it come after those with it.
    #[arg(long, short, value_name = "FILE")]
    config: Vec<PathBuf>,
}

impl DiffOptions {
    /// The old configuration and the new one; `None` unless there are two.
    pub(crate) fn paths(&self) -> Option<(&Path, &Path)> {
        let mut all = self.config.iter().chain(&self.files);
        let (old, new) = (all.next()?, all.next()?);
        all.next().is_none().then_some((old, new))
    }
}

#[cfg(feature = "azure")]
#[derive(Clone, Debug, Args)]
pub(crate) struct ImportOptions {
    /// Load balancers, templates with `resources`, templates that these link to, their parameter files,
    /// or parts of a load balancer; comments may be in them. - for standard input.
    #[arg(value_name = "JSON", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// File with data that the JSON lacks (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) inventory: Option<PathBuf>,
    /// File for the configuration. Default: standard output. An existing file is replaced only if
    /// it is empty or was made by import.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct GenerateOptions {
    /// File for the capture: pcapng by its extension, otherwise pcap; - for standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Destination of TCP sessions, over IPv4 or IPv6. Can be given several times.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "20.20.20.100:80")]
    pub(crate) tcp: Vec<SocketAddr>,
    /// Destination of UDP exchanges. Can be given several times.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) udp: Vec<SocketAddr>,
    /// TCP sessions and UDP exchanges for each address given.
    #[arg(long, default_value_t = 100)]
    pub(crate) sessions: u32,
    /// Number of clients.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) clients: u32,
    /// Data segments or datagrams of each session.
    #[arg(long, default_value_t = 3)]
    pub(crate) packets: u32,
    /// Length of the data in each, in bytes.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=1400))]
    pub(crate) size: u16,
    /// Also write the servers' side, as it comes from the VIP.
    #[arg(long)]
    pub(crate) replies: bool,
    /// Seed of ports, times and data.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct InitOptions {
    /// A capture of the traffic that is to be balanced, as for replay. Can be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) from: Vec<PathBuf>,
    /// The file to write, which must not exist yet; `-` is standard output, the default.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Rules at most: those whose services are called most.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = services)]
    pub(crate) services: usize,
}

fn services(text: &str) -> Result<usize, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (1..=1000).contains(number));
    number.ok_or_else(|| "expected 1 to 1000".to_owned())
}

#[derive(Clone, Debug, Args)]
pub(crate) struct SchemaOptions {
    /// Print the schema of a fleet's configuration, which `slb apply` takes, instead of a node's.
    #[arg(long)]
    pub(crate) fleet: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CompletionsOptions {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ManOptions {
    /// The directory. It is created if it does not exist; pages of the same names are replaced.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct WatchdogOptions {
    /// The interface.
    #[arg(long, value_name = "NAME")]
    pub(crate) announce: String,
    /// Format of the log, which goes to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
}

#[cfg(feature = "bench")]
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchOptions {
    /// Less time for each line.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Format of the table.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) report: Format,
    /// Only lines whose name contains this.
    #[arg(value_name = "NAME")]
    pub(crate) filter: Option<String>,
    /// Run the lines that `benches/instructions` counts, and print their names.
    #[arg(long, hide = true)]
    pub(crate) instructions: bool,
}
