//! `slb mux`, `slb host`, `slb proxy`: the balancer on real devices.
//!
//! One thread moves packets and never waits for anybody but its devices; another reads signals,
//! compiles configurations and puts them where the first one finds them between two bursts.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant as Clock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use slb_control::{Config, Role};
use slb_core::service::Snapshot;
use slb_core::{BURST, Burst, Instant, PacketIo, PortId};
use slb_io_pcap::CaptureStats;
use slb_io_tun::{Device, Layer, Tun, memory_for};

use crate::Failure;
use crate::balancer::Balancer;
use crate::check::load;
use crate::cli::LiveOptions;
use crate::report::Report;

/// Frames kept ready for packets of the balancer's own.
const SPARE: usize = 16;
/// Polls without a packet before the thread waits: packets seldom come alone.
const IDLE_POLLS: u32 = 64;
/// How long it waits at most: timers are due a few times a second.
const WAIT: Duration = Duration::from_millis(20);

/// What the two threads share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Whether there is a new configuration: looked at once a burst, and the lock is not.
    changed: AtomicBool,
    next: Mutex<Option<Next>>,
}

/// A configuration to be put in place.
struct Next {
    config: Config,
    snapshot: Arc<Snapshot<'static>>,
}

pub(crate) fn run(options: &LiveOptions, role: Role) -> Result<(), Failure> {
    let read = || {
        let mut config = load(&options.config)?;
        config.node.role = role;
        Ok::<_, Failure>(config)
    };
    let mut config = read()?;
    let key = secret().map_err(|error| Failure::failed(format!("/dev/urandom: {error}")))?;
    let mut balancer = Balancer::with_key(&config, key)?;
    let mut ports = Vec::new();
    for text in &options.io {
        ports.push(open(&config, text)?);
    }
    let mut memory = vec![0; memory_for(4 * BURST + SPARE)];
    let mut io = Tun::new(ports, &mut memory);

    let shared = Arc::new(Shared::default());
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(Failure::failed)?;
    let in_place = balancer.shared_snapshot();
    let control = Arc::clone(&shared);
    let path = options.config.clone();
    thread::spawn(move || listen(signals, &control, &path, role, in_place));
    eprintln!("slb: running, {} ports", options.io.len());

    let begin = Clock::now();
    let result = forward(&mut balancer, &mut config, &mut io, &shared, begin);
    let none = CaptureStats::default();
    eprintln!("slb: {:?}", io.stats());
    print!(
        "{}",
        Report::new(&config, &balancer, &none, begin.elapsed()).text()
    );
    result
}

/// Moves packets until it is told to stop.
fn forward<'m>(
    balancer: &mut Balancer,
    config: &mut Config,
    io: &mut Tun<'m>,
    shared: &Shared,
    begin: Clock,
) -> Result<(), Failure> {
    let mut burst: Burst<'m> = Burst::new();
    let mut idle = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        if shared.changed.swap(false, Ordering::Acquire)
            && let Some(next) = slot(shared).take()
        {
            balancer.install(next.snapshot);
            *config = next.config;
        }
        let count = io.receive(&mut burst).map_err(Failure::failed)?;
        let nanos = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let now = Instant::from_nanos(nanos);
        let mut spare: Burst<'m> = Burst::new();
        io.reserve(&mut spare, SPARE);
        balancer.advance(now, &mut spare);
        io.transmit(&mut spare).map_err(Failure::failed)?;
        if count == 0 {
            idle += 1;
            if idle > IDLE_POLLS {
                io.wait(WAIT).map_err(Failure::failed)?;
            }
            continue;
        }
        idle = 0;
        balancer.process(now, &mut burst, &mut ());
        io.transmit(&mut burst).map_err(Failure::failed)?;
    }
    Ok(())
}

/// Does what signals ask for: SIGHUP for the configuration to be read again, the others to stop.
fn listen(
    mut signals: Signals,
    shared: &Shared,
    path: &Path,
    role: Role,
    mut in_place: Arc<Snapshot<'static>>,
) {
    for signal in signals.forever() {
        if signal != SIGHUP {
            shared.stop.store(true, Ordering::Relaxed);
            return;
        }
        // All or nothing: a bad file leaves the old configuration running.
        let next = load(path).and_then(|mut config| {
            config.node.role = role;
            let snapshot = config.snapshot(Some(&in_place)).map_err(Failure::usage)?;
            Ok(Next { config, snapshot })
        });
        match next {
            Ok(next) => {
                in_place = Arc::clone(&next.snapshot);
                *slot(shared) = Some(next);
                shared.changed.store(true, Ordering::Release);
                eprintln!("slb: configuration {} in place", in_place.generation());
            }
            Err(failure) => eprintln!("slb: the configuration stays as it was: {failure}"),
        }
    }
}

fn slot(shared: &Shared) -> MutexGuard<'_, Option<Next>> {
    shared.next.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a device: `[PORT=]tun:NAME` or `[PORT=]tap:NAME`.
fn open(config: &Config, text: &str) -> Result<(PortId, Device), Failure> {
    let bad = |why: &str| Failure::usage(format!("--io {text:?}: {why}"));
    let (port, device) = match text.split_once('=') {
        None => (PortId(0), text),
        Some((name, device)) => {
            let number = name.parse().ok().map(PortId);
            let port = config.ports.by_name(name).or(number);
            (port.ok_or_else(|| bad("there is no such port"))?, device)
        }
    };
    let (layer, name) = match device.split_once(':') {
        Some(("tun", name)) => (Layer::Ip, name),
        Some(("tap", name)) => (Layer::Ethernet, name),
        _ => return Err(bad("expected tun:NAME or tap:NAME")),
    };
    let opened = Device::open(name, layer, false);
    let device = opened.map_err(|error| Failure::failed(format!("--io {text:?}: {error}")))?;
    Ok((port, device))
}

/// A key for the tables that nobody can guess.
fn secret() -> std::io::Result<[u64; 2]> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    std::fs::File::open(PathBuf::from("/dev/urandom"))?.read_exact(&mut bytes)?;
    let [low, high] = [0, 8].map(|at| {
        bytes[at..at + 8]
            .iter()
            .fold(0, |sum, &b| sum << 8 | u64::from(b))
    });
    Ok([low, high])
}
