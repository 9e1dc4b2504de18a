//! The command line.

use std::net::SocketAddr;
#[cfg(feature = "live")]
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use slb_control::Role;

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
    /// Send a capture through a balancer, and write what it would send.
    ///
    /// The capture's clock is the balancer's, so the same capture gives the same result whenever
    /// and however fast it is replayed. No root, no network.
    Replay(ReplayOptions),
    /// Show one packet's whole way: what was read, which rule took it, its hash, slot and
    /// backend, and the outer header; or why not.
    ///
    /// The packet is one of a capture (those before it are processed first, so that flows are as
    /// they would be), or made from a tuple: slb explain web.toml tcp 1.2.3.4:50000
    /// 20.20.20.100:80
    Explain(ExplainOptions),
    #[cfg(feature = "live")]
    /// Run a mux: on AF_XDP, a worker for each queue; or on a TUN device, which VIPs are routed into
    /// and VXLAN comes out of.
    ///
    /// AF_XDP takes CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF, and CAP_IPC_LOCK or a limit on locked
    /// memory that is high enough.
    Mux(LiveOptions),
    #[cfg(feature = "live")]
    /// Run a host agent: port 0 is the fabric's, the vms' are as `slb check` says.
    Host(LiveOptions),
    #[cfg(feature = "live")]
    /// Run a proxy, with a device for each port.
    Proxy(LiveOptions),
    #[cfg(feature = "live")]
    /// Show what a running balancer does: rates, flows, backends and drops, each second.
    Status(StatusOptions),
    #[cfg(feature = "live")]
    /// List the flows that a running mux has pinned.
    ///
    /// A list is no snapshot: flows come and go while the table is read. Packets go first, so while a mux is busy
    /// a large table takes longer.
    Flows(FlowOptions),
    #[cfg(feature = "live")]
    /// List the connections that a running host agent or proxy translates.
    ///
    /// A list is no snapshot: connections come and go while the table is read.
    Connections(ConnectionOptions),
    #[cfg(feature = "live")]
    /// List the connections that vms behind a running host agent opened, and the SNAT ports that they use.
    Snat(ConnectionOptions),
    #[cfg(feature = "top")]
    /// Watch a running balancer on the whole terminal: VIPs, backends and their health, rates, drops.
    Top(TopOptions),
    #[cfg(feature = "live")]
    /// Ask each backend once how it is, as the configuration's probes do, and print the answers.
    ///
    /// Exit status 1 where one is not well.
    Probe(ProbeOptions),
    /// Check a configuration: prints every fault with its line, or what it comes to.
    Check(CheckOptions),
    /// Say what another configuration would change: what is added, removed and different, how much of
    /// each rule's table gets another backend, and what takes a restart.
    Diff(DiffOptions),
    #[cfg(feature = "azure")]
    /// Turn Azure's JSON, load balancers and whole templates, into a configuration.
    ///
    /// An inventory supplies data that the JSON lacks, such as the hosts of backends. Parts that
    /// are left out are named.
    Import(ImportOptions),
    /// Make a capture to try things with: TCP sessions and UDP exchanges from many clients.
    ///
    /// The same options give the same bytes.
    Generate(GenerateOptions),
    #[cfg(feature = "bench")]
    /// Measure this machine, Maglev tables, and mux, host agent and proxy alone, in memory, on one
    /// core.
    ///
    /// Beside their peers, they are measured by cargo run --profile dist -p slb-benches.
    Bench(BenchOptions),
    #[cfg(feature = "live")]
    /// Take an interface down while standard input is silent: what a mux starts beside itself.
    #[command(hide = true)]
    Watchdog(WatchdogOptions),
}

/// Commands that this program was built without, and the features that they take.
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
    ("probe", "live"),
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
            Self::Mux(_) | Self::Host(_) | Self::Proxy(_) | Self::Probe(_) | Self::Watchdog(_) => {
                false
            }
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

/// The role of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Sends packets for VIPs to the hosts of their backends.
    Mux,
    /// Translates between VIPs and the vms of one machine. What comes from a vm is told by its
    /// MAC address.
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

/// How a balancer differs from its configuration, for every command that runs one in memory.
#[derive(Clone, Debug, Args)]
pub(crate) struct BalancerOptions {
    /// Run it in another role than the configuration says. A host's configuration run as a mux has
    /// the address of the first of its muxes.
    #[arg(long, value_enum)]
    pub(crate) role: Option<RoleName>,
    /// Pin no flows: Maglev alone chooses, as with `flows = 0` in the configuration.
    #[arg(long)]
    pub(crate) stateless: bool,
    /// Take this backend as unhealthy: its name, or POOL/NAME. Can be given several times.
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
    /// Ethernet, raw IP or Linux cooked. Of a proxy one for each port, merged by time: --in frontend=a.pcap --in backend=b.pcap; without a port's name
    /// it is the first frontend port's.
    #[arg(long = "in", value_name = "[PORT=]FILE", required = true)]
    pub(crate) input: Vec<String>,
    /// Where to write what the balancer sends: pcapng if it ends so, else pcap; - for standard output, the
    /// report goes to standard error then. Of a proxy also
    /// what it sends out of one port: --out backend=b.pcap. Can be given several times. A capture that is
    /// there is replaced; a file that is read, or that is no capture, is not.
    #[arg(long = "out", value_name = "[PORT=]FILE")]
    pub(crate) output: Vec<String>,
    /// Where to write what the balancer passes on untouched.
    #[arg(long, value_name = "FILE")]
    pub(crate) passed: Option<PathBuf>,
    /// Take packets that a snap length cut by their headers, as if zeros stood in the place of what is
    /// missing. What is written of them ends where it was cut. Without it they are dropped as truncated.
    #[arg(long)]
    pub(crate) cut: bool,
    /// How to print the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) report: Format,
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
    /// A device, and the port that it is: a proxy's by name, a host's by number or the name of the
    /// vm's backend. Can be given several times.
    ///
    /// afxdp:NAME is an interface, of which the balancer's packets are taken and no others; with
    /// :QUEUES such as 0 or 0-3, some of its queues. tun:NAME and tap:NAME are devices that are made
    /// where they are not there; with :N they have so many queues.
    #[arg(
        long,
        value_name = "[PORT=]afxdp:NAME[:QUEUES]|tun:NAME[:N]|tap:NAME[:N]",
        required = true
    )]
    pub(crate) io: Vec<String>,
    /// Threads that move packets. Default: for a mux one for each queue of its devices, for a host or a proxy
    /// one. With several workers, a host or a proxy divides connections among them by the client's address, or
    /// by the address that a vm calls; packets that come by a queue of another worker are handed over.
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<NonZeroU16>,
    /// The CPUs that workers run on, each on one, in turn. Default: all.
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pub(crate) cpus: Vec<usize>,
    /// Never wait for packets: they take less time on their way, and each worker a whole CPU.
    #[arg(long)]
    pub(crate) busy: bool,
    /// Socket of `slb status`. Default: /run/slb-ROLE.sock. A stale socket is replaced; if the file
    /// is anything else, it stays, and the program does not start.
    #[arg(long, value_name = "PATH")]
    pub(crate) status: Option<PathBuf>,
    /// Of AF_XDP: a TUN device for packets that are the kernel's after all; none: they are lost.
    /// Default: slb-pass for a host, none for others.
    #[arg(long, value_name = "NAME")]
    pub(crate) pass: Option<String>,
    /// Where to answer /metrics (for Prometheus), /healthz and /readyz over HTTP.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Of a mux on AF_XDP: make an interface of this name that leads to the VIPs, for the routing
    /// daemon beside it to announce. The VIPs appear after the first probes, and disappear when the
    /// mux drains or ends, and while no packets arrive or the process is stuck.
    #[arg(long, value_name = "NAME")]
    pub(crate) announce: Option<String>,
    /// Of AF_XDP: entries of each ring, a power of two.
    #[arg(long, default_value_t = slb_io_afxdp::RING, value_parser = ring)]
    pub(crate) ring: u32,
    /// How long to go on after SIGTERM, in seconds, while others learn of it; a second signal ends it at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) drain: u64,
    /// A directory of its own, in which connections and pinned flows outlive the process: it writes them
    /// there when it ends, and twice a second in case it is killed. Who starts next goes on with them.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Take over from the process that runs with the same role and state directory: it hands its connections
    /// to this one and ends. Where none runs, this one starts as without.
    #[arg(long, requires = "state")]
    pub(crate) take_over: bool,
    /// How to write the log, which goes to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
    /// Lowest level to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: tracing::Level,
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
    /// The balancer's socket. Default: that of the one that runs here.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Print it once, and end.
    #[arg(long)]
    pub(crate) once: bool,
    /// How to print it: JSON is printed once.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Which entries of a table to list, and how.
#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct ListOptions {
    /// The balancer's socket. Default: that of the one that runs here.
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
    /// Print how many there are, and no entry.
    #[arg(long)]
    pub(crate) count: bool,
    /// Print so many at most.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Print a JSON object a line.
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
    /// Only of the vm or backend that has this address.
    #[arg(long, value_name = "ADDRESS[/BITS]|[ADDRESS]:PORT")]
    pub(crate) vm: Option<String>,
}

#[cfg(feature = "top")]
#[derive(Clone, Debug, Args)]
pub(crate) struct TopOptions {
    /// The balancer's socket. Default: that of the one that runs here.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[command(
    override_usage = "slb explain [OPTIONS] [--config] <FILE> <PROTOCOL> <SOURCE> <DESTINATION>\n       \
                            slb explain [OPTIONS] [--config] <FILE> --in <[PORT=]FILE>... --packet <N>"
)]
pub(crate) struct ExplainOptions {
    /// The configuration (TOML); without --config, the first of the words.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) balancer: BalancerOptions,
    /// A capture that the packet is in; of a proxy one for each port, as for replay.
    #[arg(long = "in", value_name = "[PORT=]FILE", requires = "packet")]
    pub(crate) input: Vec<String>,
    /// Number of the packet in the capture, or in all by order of time, counted from 1.
    #[arg(long, value_name = "N", requires = "input")]
    pub(crate) packet: Option<u64>,
    /// The port that the packet comes in by: of a host a vm by name or its port's number, 0 for the
    /// fabric; of a proxy a port by name. Default: as the packet's source says.
    #[arg(long, value_name = "PORT")]
    pub(crate) from: Option<String>,
    /// The configuration, unless --config names it; then, without --in, a packet to make: PROTOCOL SOURCE
    /// DESTINATION, such as tcp 1.2.3.4:50000 20.20.20.100:80 (a SYN), udp 1.2.3.4:9 20.20.20.100:53, or
    /// icmp 1.2.3.4 20.20.20.100 (an echo request).
    #[arg(value_name = "WORD", num_args = 0..=4)]
    words: Vec<String>,
}

impl ExplainOptions {
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
    /// Print the inbound NAT ports and SNAT ports of all backends, not of a few.
    #[arg(long)]
    pub(crate) ports: bool,
}

#[derive(Clone, Debug, Args)]
#[command(override_usage = "slb diff [--config] <OLD> [--config] <NEW>")]
pub(crate) struct DiffOptions {
    /// The running configuration and the one that would replace it (TOML).
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
    /// or parts of a load balancer; comments may be in them.
    #[arg(value_name = "JSON", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// File with data that the JSON lacks (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) inventory: Option<PathBuf>,
    /// Where to write the configuration. Default: standard output. Of the files that are there, it replaces
    /// only empty ones and configurations that import made.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct GenerateOptions {
    /// Where to write the capture: pcapng if it ends so, else pcap; - for standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Where TCP sessions go, over IPv4 or IPv6. Can be given several times.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "20.20.20.100:80")]
    pub(crate) tcp: Vec<SocketAddr>,
    /// Where UDP exchanges go. Can be given several times.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) udp: Vec<SocketAddr>,
    /// TCP sessions and UDP exchanges for each address given.
    #[arg(long, default_value_t = 100)]
    pub(crate) sessions: u32,
    /// How many clients they come from.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) clients: u32,
    /// Data segments or datagrams of each session.
    #[arg(long, default_value_t = 3)]
    pub(crate) packets: u32,
    /// Bytes of data in each.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=1400))]
    pub(crate) size: u16,
    /// Write the servers' side too, as it comes from the VIP.
    #[arg(long)]
    pub(crate) replies: bool,
    /// Another seed gives other ports, times and data.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

#[cfg(feature = "live")]
#[derive(Clone, Debug, Args)]
pub(crate) struct WatchdogOptions {
    /// The interface.
    #[arg(long, value_name = "NAME")]
    pub(crate) announce: String,
}

#[cfg(feature = "bench")]
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchOptions {
    /// Less time for each line.
    #[arg(long)]
    pub(crate) quick: bool,
    /// How to print the table.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) report: Format,
    /// Only lines whose name contains this.
    #[arg(value_name = "NAME")]
    pub(crate) filter: Option<String>,
    /// Run the lines that `benches/instructions` counts, and print their names.
    #[arg(long, hide = true)]
    pub(crate) instructions: bool,
}
