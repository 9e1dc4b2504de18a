//! Options of the commands that use the network: `mux`, `host` and `proxy`, their watchdog, and `probe`.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ConfigFile;
use super::fleet::{FleetAccess, name};

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "The configuration is read again on SIGHUP and when the file has changed; a bad one \
                  changes nothing. SIGTERM and SIGINT end the program, with a report."
)]
pub(crate) struct LiveOptions {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// The device of a port. A proxy's port is given by name, a host's by number or by the name of
    /// the vm's backend. Can be given several times.
    ///
    /// afxdp:NAME takes only the balancer's packets from an interface; :QUEUES, such as 0 or 0-3,
    /// selects some of its queues. tun:NAME and tap:NAME create the device if it does not exist,
    /// with N queues if :N is given.
    #[arg(
        long,
        value_name = "[PORT=]afxdp:NAME[:QUEUES]|tun:NAME[:N]|tap:NAME[:N]",
        required = true
    )]
    pub(crate) io: Vec<String>,
    /// Number of threads that process packets. Default: for a mux one for each queue of its devices, for a host or a
    /// proxy one. With several workers, a host or a proxy divides connections among them by the client's address, or by
    /// the address that a vm calls; packets that arrive on another worker's queue are handed over.
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
    /// For AF_XDP: TUN device that returns packets to the kernel; with none, these packets are lost. Default: slb-pass
    /// for a host or a proxy, none for a mux. A proxy returns packets of no connection that are for its interfaces' own
    /// MAC addresses, so a proxy between two subnets routes between them if the machine forwards (sysctl
    /// net.ipv4.ip_forward=1).
    #[arg(long, value_name = "NAME")]
    pub(crate) pass: Option<String>,
    /// Address that serves /metrics (for Prometheus), /healthz and /readyz over HTTP.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// For a mux or a host: connect to each TCP rule's VIP every five seconds, as a client would, and count the answers
    /// in the metrics (data path availability). The connections leave through the fabric, so they test routers, a mux,
    /// a host and a backend; a backend sees connections that end with a RST.
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
    /// Seconds to keep running after SIGTERM, so that routers can withdraw the VIPs; a second
    /// signal ends the program at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) drain: u64,
    /// A directory in which connections and pinned flows outlive the process. They are written when
    /// it ends, and twice a second in case it is killed; the next process continues with them.
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
    /// Format of the log: `text` and `json` go to standard error, `journal` to systemd's journal.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
    /// Lowest level to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: tracing::Level,
}

/// A CPU is one that the kernel's sets of them have room for.
fn cpu(text: &str) -> Result<usize, String> {
    const MOST: usize = rustix::thread::CpuSet::MAX_CPU - 1;
    let cpu = text.parse().ok().filter(|cpu| *cpu <= MOST);
    cpu.ok_or_else(|| format!("expected a CPU from 0 to {MOST}"))
}

/// There is at least one worker.
fn workers(text: &str) -> Result<NonZeroU16, String> {
    let expected = || format!("expected a number from 1 to {}", u16::MAX);
    text.parse().map_err(|_| expected())
}

/// A ring has a power of two of entries.
fn ring(text: &str) -> Result<u32, String> {
    let ring = text
        .parse()
        .ok()
        .filter(|ring: &u32| ring.is_power_of_two());
    let ring = ring.filter(|ring| (64..=32_768).contains(ring));
    ring.ok_or_else(|| "expected a power of two from 64 to 32768".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For programs: one object per line.
    Json,
    /// For systemd's journal: a field for each value.
    Journal,
}

impl LogFormat {
    /// Returns the word of the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Journal => "journal",
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct WatchdogOptions {
    /// The interface.
    #[arg(long, value_name = "NAME")]
    pub(crate) announce: String,
    /// Format of the log: `text` and `json` go to standard error, `journal` to systemd's journal.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log: LogFormat,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ProbeOptions {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
}
