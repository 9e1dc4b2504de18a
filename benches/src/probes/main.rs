//! The cost of probing a thousand backends by HTTP every five seconds: the prober's share of a
//! core.
//!
//! The backends are addresses of the loopback network, all served by one thread, which is not counted.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use slb_control::Config;
use slb_control::probe::Prober;

/// Probe backends that answer at once, and say what it costs.
#[derive(Debug, Parser)]
struct Options {
    /// The number of backends.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    backends: u32,
    /// The duration in seconds, after the first five.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

static ANSWERED: AtomicU64 = AtomicU64::new(0);

fn main() -> io::Result<()> {
    let options = Options::parse();
    // On all of 127.0.0.0/8.
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || serve(&listener));

    let config = Config::parse("probes", &configuration(options.backends, port));
    let mut config = config.map_err(io::Error::other)?;
    // A configuration names no loopback address, but the server is on all of them.
    for backend in config.pools.iter_mut().flat_map(|pool| &mut pool.backends) {
        if let IpAddr::V4(address) = backend.address {
            let [_, b, c, d] = address.octets();
            backend.address = Ipv4Addr::new(127, b, c, d).into();
        }
    }
    let mut prober = Prober::start(&[])?;
    prober.set(&config);
    // Each is asked for the first time within an interval.
    thread::sleep(Duration::from_secs(5));
    let (answered, used, begin) = (ANSWERED.load(Ordering::Relaxed), used()?, Instant::now());
    thread::sleep(Duration::from_secs(options.seconds));
    let seconds = begin.elapsed().as_secs_f64();
    let asked = (ANSWERED.load(Ordering::Relaxed) - answered) as f64;
    let share = (self::used()? - used) / seconds;
    let mut unwell = 0;
    while prober.changed().is_some() {
        unwell += 1;
    }
    println!(
        "{} backends, each asked by HTTP every 5 s: {:.1} probes a second, {:.2} % of a core, {unwell} unwell",
        options.backends,
        asked / seconds,
        100.0 * share,
    );
    Ok(())
}

fn configuration(backends: u32, port: u16) -> String {
    let address = |n: u32| format!("10.{}.{}.1", 1 + n / 250, 1 + n % 250);
    let one = |n| format!("{{ name = \"b{n}\", address = \"{}\" }},", address(n));
    let list: String = (0..backends).map(one).collect();
    format!(
        "[node]\nrole = \"proxy\"\n[[frontend]]\nname = \"f\"\naddress = \"192.0.2.1\"\n\
         [[probe]]\nname = \"p\"\nprotocol = \"http\"\nport = {port}\ninterval = \"5s\"\npath = \"/health\"\n\
         [[pool]]\nname = \"p\"\ntable_size = 6000011\nbackends = [{list}]\n\
         [[rule]]\nname = \"r\"\nfrontend = \"f\"\npool = \"p\"\nprobe = \"p\"\nprotocol = \"tcp\"\n\
         frontend_port = 80\n"
    )
}

/// Answers 200 to whatever is asked.
fn serve(listener: &TcpListener) {
    for mut client in listener.incoming().flatten() {
        let mut request = [0; 1024];
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        if client.read(&mut request).is_ok() && client.write_all(answer).is_ok() {
            ANSWERED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Seconds of CPU that the prober's thread has used.
fn used() -> io::Result<f64> {
    /// Linux's clock ticks a second, as user space sees them.
    const TICKS: f64 = 100.0;
    for task in fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm"))?.trim_end() != "slb probes" {
            continue;
        }
        let stat = fs::read_to_string(path.join("stat"))?;
        // Behind the name in parentheses, user and system time are the 12th and 13th.
        let rest = stat.rsplit(')').next().unwrap_or_default();
        let times = rest.split_whitespace().skip(11).take(2);
        return Ok(times
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum::<f64>()
            / TICKS);
    }
    Err(io::Error::other("there is no thread called \"slb probes\""))
}
