//! Options of the commands that work on files: `replay`, `explain`, `check` and the like.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;

#[cfg(feature = "bench")]
use super::Format;
use super::{BalancerOptions, ConfigFile, ReportFormat};

#[derive(Clone, Debug, Args)]
pub(crate) struct ReplayOptions {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    #[command(flatten)]
    pub(crate) balancer: BalancerOptions,
    /// The capture to read: pcap or pcapng, also compressed with gzip or zstd, or - for standard
    /// input. Link types: Ethernet, raw IP, Linux cooked. A proxy takes one for each port, merged
    /// by time: --in frontend=a.pcap --in backend=b.pcap; without a port's name, it belongs to the
    /// first frontend port.
    #[arg(long = "in", value_name = "[PORT=]FILE", required = true)]
    pub(crate) input: Vec<String>,
    /// File for the packets that the balancer sends: pcapng by its extension, otherwise pcap; - for standard output,
    /// and then the report goes to standard error. A proxy can also write the packets out of one port: --out
    /// backend=b.pcap. Can be given several times. An existing capture is replaced unless it is also read; any other
    /// file is not. In pcapng each packet has a comment with the role, the rule, the backend and the verdict, as `slb
    /// explain` prints them.
    #[arg(long = "out", value_name = "[PORT=]FILE")]
    pub(crate) output: Vec<String>,
    /// File for the packets that the balancer passes unchanged, with comments like those of --out.
    #[arg(long, value_name = "FILE")]
    pub(crate) passed: Option<PathBuf>,
    /// Process packets that a snap length cut, as if the missing bytes were zeros. They are written
    /// in their cut length. Without this option they are dropped as truncated.
    #[arg(long)]
    pub(crate) cut: bool,
    /// Format of the report, which goes to standard output.
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub(crate) report: ReportFormat,
    /// With --report html: the page shows the path of this packet too, counted from 1 as for `slb explain`. Can be
    /// given several times.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) packet: Vec<u64>,
}

#[derive(Clone, Debug, Args)]
#[command(
    override_usage = "slb explain [OPTIONS] [--config] <FILE> <PROTOCOL> <SOURCE> <DESTINATION>\n       \
                            slb explain [OPTIONS] [--config] <FILE> --in <[PORT=]FILE>... --packet <N>\n       \
                            slb explain --live [--socket <PATH>] <PROTOCOL> <SOURCE> <DESTINATION>\n       \
                            slb explain --live [--socket <PATH>] --in <FILE> --packet <N>"
)]
pub(crate) struct ExplainOptions {
    /// The configuration (TOML). Without --config, it is the first argument.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) balancer: BalancerOptions,
    /// Ask the running balancer what it would do with the packet now, with its own tables, the health of its backends
    /// and their ramps. Changes nothing.
    #[cfg(feature = "live")]
    #[arg(
        long,
        conflicts_with_all = ["config", "role", "stateless", "down", "drain"]
    )]
    pub(crate) live: bool,
    /// With --live: the balancer's socket. Default: that of the balancer running on this machine.
    #[cfg(feature = "live")]
    #[arg(long, value_name = "PATH", requires = "live")]
    pub(crate) socket: Option<PathBuf>,
    /// A capture that has the packet; for a proxy one for each port, as for replay.
    #[arg(long = "in", value_name = "[PORT=]FILE", requires = "packet")]
    pub(crate) input: Vec<String>,
    /// Number of the packet, counted from 1, in the capture or in all captures merged by time.
    #[arg(long, value_name = "N", requires = "input")]
    pub(crate) packet: Option<u64>,
    /// The port that the packet arrives at: for a host the name or port number of a vm, or 0 for
    /// the fabric; for a proxy the name of a port. Default: derived from the packet's source.
    #[arg(long, value_name = "PORT")]
    pub(crate) from: Option<String>,
    /// The configuration, unless --config gives it; then, without --in, the packet to trace: PROTOCOL SOURCE
    /// DESTINATION, such as tcp 1.2.3.4:50000 20.20.20.100:80 (a SYN), udp 1.2.3.4:9 20.20.20.100:53, or icmp 1.2.3.4
    /// 20.20.20.100 (an echo request).
    #[arg(value_name = "WORD", num_args = 0..=4)]
    words: Vec<String>,
}

impl ExplainOptions {
    /// With `--live`: the tuple, which is empty where a capture has the packet; `None` if a word is missing
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
pub(crate) struct CheckOptions {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// Print the inbound NAT ports and SNAT ports of all backends instead of only the first few.
    #[arg(long)]
    pub(crate) ports: bool,
}

#[derive(Clone, Debug, Args)]
#[command(override_usage = "slb diff [--config] <OLD> [--config] <NEW>")]
pub(crate) struct DiffOptions {
    /// The running configuration and its replacement (TOML).
    #[arg(value_name = "FILE", num_args = 0..=2)]
    files: Vec<PathBuf>,
    /// One of the two configurations (TOML). Files with --config come before those without.
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
    /// Load balancers, templates with `resources`, templates that these link to, their parameter files, or parts of a
    /// load balancer. Comments are allowed. - for standard input.
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
    /// A capture of the traffic to balance, in a format that replay reads. Can be given several
    /// times.
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) from: Vec<PathBuf>,
    /// The file to write, which must not exist yet; `-` is standard output, the default.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Maximum number of rules; the busiest services get one.
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

#[cfg(feature = "bench")]
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchOptions {
    /// Spend less time on each line.
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
