//! A large fleet on one etcd: how soon a change and a health report reach the last node, and what that moves.
//!
//! The controller, the store's client and the nodes' side of the fleet are real. The nodes stand for machines of their
//! own, so they acknowledge a generation without compiling it; what one of them spends on that is a line of its own.

#![forbid(unsafe_code)]

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use slb_control::Config;
use slb_fleet::document::Spec;
use slb_fleet::fetch;
use slb_fleet::leader::{Leader, LeaderOptions};
use slb_fleet::node::{Node, NodeOptions};
use slb_fleet::object::Keys;
use slb_fleet::rollout::Side;
use slb_fleet::store::Store;
use slb_fleet::store::etcd::{Access, EtcdStore};

/// Apply configurations to a fleet of many nodes, and say how long each takes.
#[derive(Debug, Parser)]
struct Options {
    /// Number of host agents.
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(1..=250))]
    hosts: u32,
    /// Number of muxes.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=250))]
    muxes: u32,
    /// Number of backend pools, each with a frontend, a rule and a probe.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pools: u32,
    /// Number of backends of each pool.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=1000))]
    backends: u32,
    /// Number of changes, and of health reports, that are timed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    turns: u32,
}

const CLUSTER: &str = "bench";
/// No measurement takes this long.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> io::Result<()> {
    let options = Options::parse();
    let etcd = Etcd::start()?;
    let store = etcd.store()?;
    println!(
        "{} host agents, {} muxes, {} pools of {} backends, on one etcd",
        options.hosts, options.muxes, options.pools, options.backends
    );
    one_node(&options)?;

    let end = Arc::new(AtomicBool::new(false));
    let controller = lead(etcd.store()?, Arc::clone(&end));
    let mut nodes = Vec::new();
    for (side, count) in [(Side::Host, options.hosts), (Side::Mux, options.muxes)] {
        for number in 0..count {
            let node = Node::start(
                etcd.store()?,
                NodeOptions {
                    cluster: CLUSTER.to_owned(),
                    side,
                    name: format!("{}{number}", side.name()),
                    addresses: vec![address_of(side, number)],
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    zone: None,
                    cache: None,
                },
            )?;
            if side == Side::Host {
                node.set_failing(Vec::new());
            }
            nodes.push((side, node));
        }
    }

    let begin = Instant::now();
    apply(&*store, &configuration(&options, 0))?;
    until("the first generation is live", || are_live(&nodes, 1))?;
    println!(
        "first configuration, apply to last node: {}",
        seconds(begin)
    );

    let mut counts = etcd.counts()?;
    for turn in 1..=options.turns {
        let begin = Instant::now();
        apply(&*store, &configuration(&options, turn))?;
        let written = begin.elapsed();
        until("a change is live", || are_live(&nodes, u64::from(turn) + 1))?;
        let (all, now) = (seconds(begin), etcd.counts()?);
        println!(
            "change of one backend's weight, apply to last node: {all}, of which {:.2} s until it is written; {}",
            written.as_secs_f64(),
            now.since(&counts)
        );
        counts = now;
    }

    let muxes = || nodes.iter().filter(|(side, _)| *side == Side::Mux);
    for turn in 0..options.turns {
        for (_, node) in muxes() {
            let _ = node.has_changed();
        }
        let failing = match turn % 2 {
            0 => vec![("p0".to_owned(), "alive".to_owned(), "b0".to_owned())],
            _ => Vec::new(),
        };
        let begin = Instant::now();
        nodes[0].1.set_failing(failing);
        let mut left: Vec<&Node> = muxes().map(|(_, node)| node).collect();
        until("the report is everywhere", || {
            left.retain(|node| !node.has_changed());
            left.is_empty()
        })?;
        let (all, now) = (seconds(begin), etcd.counts()?);
        println!(
            "one backend's health, probe to last mux: {all}; {}",
            now.since(&counts)
        );
        counts = now;
    }
    println!(
        "memory: etcd {} MB, this process with all nodes {} MB",
        counts.memory >> 20,
        own_memory()? >> 20
    );
    end.store(true, Ordering::Relaxed);
    controller
        .join()
        .map_err(|_| io::Error::other("the controller panicked"))
}

/// Says what one node spends on a generation.
fn one_node(options: &Options) -> io::Result<()> {
    let node = "role = \"mux\"\nunderlay = \"172.16.0.1\"\n".parse();
    let node = node.map_err(io::Error::other)?;
    let config = |turn| -> io::Result<Config> {
        let spec = Spec::parse("bench", &configuration(options, turn)).map_err(io::Error::other)?;
        spec.config("bench", &node).map_err(io::Error::other)
    };
    let begin = Instant::now();
    let (first, second) = (config(0)?, config(1)?);
    let read = begin.elapsed().as_secs_f64() / 2.0;
    let begin = Instant::now();
    let snapshot = first.snapshot(None).map_err(io::Error::other)?;
    let whole = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    second.snapshot(Some(&snapshot)).map_err(io::Error::other)?;
    let change = begin.elapsed().as_secs_f64();
    println!(
        "one node alone: {read:.2} s to read a configuration, {whole:.2} s to compile the first, {change:.2} s to \
         compile a change"
    );
    Ok(())
}

fn lead(store: Arc<EtcdStore>, end: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let mut leader = Leader::new(
        store,
        LeaderOptions {
            name: "c1".to_owned(),
            cluster: CLUSTER.to_owned(),
            drain: Duration::from_secs(30),
        },
    );
    let begin = Instant::now();
    thread::spawn(move || {
        while !end.load(Ordering::Relaxed) {
            if leader
                .turn(begin.elapsed(), Duration::from_millis(20))
                .is_err()
            {
                thread::sleep(Duration::from_millis(50));
            }
        }
    })
}

fn apply(store: &dyn Store, text: &str) -> io::Result<()> {
    let spec = Spec::parse("bench", text).map_err(io::Error::other)?;
    fetch::change(store, &Keys::new(CLUSTER), |_| Ok(spec.clone()))
        .map(|_| ())
        .map_err(io::Error::other)
}

/// Acknowledges what has come to each node. True once all serve by the generation.
fn are_live(nodes: &[(Side, Node)], generation: u64) -> bool {
    let mut all = true;
    for (_, node) in nodes {
        if let Some(next) = node.take() {
            node.acknowledge(&next.release);
            node.set_left(Some(0));
        }
        all &= node.standing().live >= generation;
    }
    all
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) -> io::Result<()> {
    let begin = Instant::now();
    while !is_so() {
        if begin.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("waited in vain until {what}")));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn seconds(begin: Instant) -> String {
    format!("{:.2} s", begin.elapsed().as_secs_f64())
}

fn address_of(side: Side, number: u32) -> IpAddr {
    let third = u8::from(side == Side::Host);
    Ipv4Addr::new(172, 16, third, number as u8 + 1).into()
}

/// A configuration in which `turn` is the weight of one backend.
fn configuration(options: &Options, turn: u32) -> String {
    let mut text = String::from(
        "[fleet]\nhash_seed = 7\n[[probe]]\nname = \"alive\"\nprotocol = \"tcp\"\nport = 80\n",
    );
    for pool in 0..options.pools {
        let address = |backend: u32| {
            let number = pool * options.backends + backend;
            format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255)
        };
        let backends: Vec<String> = (0..options.backends)
            .map(|backend| {
                let host = address_of(Side::Host, (pool + backend) % options.hosts);
                let weight = if (pool, backend) == (0, 1) { 1 + turn } else { 1 };
                format!(
                    "{{ name = \"b{backend}\", address = \"{}\", host = \"{host}\", weight = {weight} }}",
                    address(backend)
                )
            })
            .collect();
        text += &format!(
            "[[frontend]]\nname = \"f{pool}\"\naddress = \"20.{}.{}.1\"\n\
             [[pool]]\nname = \"p{pool}\"\nvni = {}\nbackends = [\n{}\n]\n\
             [[rule]]\nname = \"r{pool}\"\nfrontend = \"f{pool}\"\npool = \"p{pool}\"\nprobe = \"alive\"\n\
             protocol = \"tcp\"\nfrontend_port = 80\n",
            pool >> 8,
            pool & 255,
            5000 + pool,
            backends.join(",\n"),
        );
    }
    text
}

/// An etcd of one member, which ends with this program.
struct Etcd {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Etcd {
    fn start() -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (port, peer) = (free_port()?, free_port()?);
        let client = format!("http://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{peer}");
        let child = Command::new("etcd")
            .args(["--name=one", "--log-level=error"])
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .arg(format!("--initial-cluster=one={peer}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| io::Error::other(format!("etcd: {error}")))?;
        let etcd = Self {
            child,
            directory,
            port,
        };
        let store = etcd.store()?;
        until("etcd answers", || store.get("nothing").is_ok())?;
        Ok(etcd)
    }

    fn store(&self) -> io::Result<Arc<EtcdStore>> {
        let url = format!("http://127.0.0.1:{}", self.port);
        let access = Access::new(&[url], None).map_err(io::Error::other)?;
        let store = EtcdStore::new(access).map_err(io::Error::other)?;
        Ok(Arc::new(store))
    }

    fn counts(&self) -> io::Result<Counts> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse::<f64>().ok())
                .ok_or_else(|| io::Error::other(format!("etcd has no metric {name}")))
        };
        Ok(Counts {
            sent: value("etcd_network_client_grpc_sent_bytes_total")? as u64,
            received: value("etcd_network_client_grpc_received_bytes_total")? as u64,
            memory: value("process_resident_memory_bytes")? as u64,
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.directory.path();
    }
}

/// Counters of etcd.
struct Counts {
    sent: u64,
    received: u64,
    memory: u64,
}

impl Counts {
    fn since(&self, before: &Self) -> String {
        format!(
            "etcd sent {} KB and received {} KB",
            (self.sent - before.sent) / 1000,
            (self.received - before.received) / 1000
        )
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Resident bytes of this process.
fn own_memory() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let unknown = || io::Error::other("/proc/self/status has no VmRSS");
    Ok(kilobytes.ok_or_else(unknown)? * 1024)
}
