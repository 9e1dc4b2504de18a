//! `slb mux`, `slb host`, `slb proxy`: the balancer on real devices.
//!
//! ```text
//!  control thread                          a worker for each queue, on a CPU of its own
//!  signals, the file, neighbours  ──────►  receive → process → transmit
//!  configurations, XDP programs   mailbox
//!  status thread: a local socket  ◄──────  counters, when asked
//! ```
//! A worker waits only for its devices. Between two bursts it tests one flag, and checks its
//! mailbox only if the flag is set.
//!
//! A mux has a worker for each queue: the network card keeps a flow on one queue. A host agent's or
//! a proxy's connections have two sides on different devices, so one worker has all of them, unless
//! `--workers` requests several, which then hand packets to each other (`exchange`).

mod announce;
mod answers;
mod background;
mod capture;
mod control;
mod device;
mod events;
mod exchange;
mod file;
mod follow;
mod handed;
mod handover;
pub(crate) mod log;
mod look;
mod mailbox;
mod measured;
mod metrics;
mod narrowest;
mod next_hops;
mod offload;
mod pass;
mod probes;
mod request;
mod rights;
mod ring;
mod state;
mod status;
mod storm;
mod successor;
mod sysctl;
mod tell;
mod underlay;
mod vm;
mod watchdog;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slb_control::lasting::Lasting;
use slb_control::probe::{CALLER_PORTS, Prober, ProberEnd, VipProber, way};
use slb_control::{Config, PassiveHealth, Role, SlowStart, is_descriptor};
use slb_core::Key;
use slb_core::counters::CounterMemory;
use slb_core::steer::Steering;
use slb_io_afxdp::{LARGE_CHUNK, Program, ProgramFault, Take, Umem, Unserved, frames_for};
use tracing::{info, warn};

use self::announce::Announcer;
use self::control::{Control, Work};
use self::device::{Plan, Slot};
use self::exchange::Seat;
use self::file::{Loading, WatchedFile};
use self::follow::Fleet;
use self::handover::Predecessor;
use self::narrowest::Narrow;
use self::next_hops::{NextHops, Unreached};
use self::pass::Pass;
use self::state::{Directory, Keeper, Pins};
use self::successor::Successor;
use self::sysctl::Followed;
use self::watchdog::Life;
use self::worker::{Go, Starting, Worker};
use crate::Failure;
use crate::check::load;
use crate::cli::LiveOptions;
use crate::output::is_standard;

pub(crate) use self::capture::VERDICTS;
pub(crate) use self::measured::of_process;
pub(crate) use self::metrics::Endpoint;
pub(crate) use self::request::Answer;
pub(crate) use self::status::{Place, default_paths};
pub(crate) use self::tell::Tell;
pub(crate) use self::vm::move_state;
pub(crate) use self::watchdog::run as watch;

pub(crate) fn run(options: &LiveOptions, role: Role) -> Result<(), Failure> {
    let _log = log::begin(options.log, options.log_level);
    let path = options.config.path();
    if is_standard(path) || is_descriptor(path) {
        let is_standard = is_standard(path) || path == Path::new("/dev/stdin");
        return Err(Failure::usage(format!(
            "expected a configuration file, which is reloaded when it changes, got {} for {}",
            path.display(),
            if is_standard {
                "standard input"
            } else {
                "a descriptor"
            }
        )));
    }
    // A signal that comes while a large file is read takes effect afterwards, and does not end the process.
    let signals = control::hear()?;
    // Before the file is read: any other version is a change.
    let file = WatchedFile::new(path);
    let mut fleet = Fleet::start(options, role)?;
    // Before the first configuration, a node of a fleet reports why it is not ready, unless another
    // process does.
    let bound = fleet
        .as_ref()
        .and(options.metrics)
        .map(Endpoint::bind)
        .transpose();
    let mut bound = match bound {
        Err(_) if options.take_over => None,
        bound => bound?,
    };
    let mut given = match &mut fleet {
        Some(fleet) => fleet.first(bound.as_mut())?,
        None => load(options.config.path())?,
    };
    given.node.role = role;
    let mut plan = Plan::read(&given, &options.io)?;
    plan.expect_short_packets()?;
    plan.warn_of_queues();
    // Everything that may be missing is opened before packets are taken or VIPs announced.
    let directory = options
        .state
        .as_deref()
        .map(|path| Directory::open(path, &given));
    let directory = directory.transpose()?;
    let mut predecessor = directory
        .as_ref()
        .filter(|_| options.take_over)
        .and_then(|directory| Predecessor::find(&directory.handover()));
    // While another process runs, it owns these.
    let mut open = || {
        let endpoint = match bound.take() {
            Some(bound) => Some(bound),
            None => options.metrics.map(Endpoint::bind).transpose()?,
        };
        Ok((
            endpoint,
            Place::open(options.status.as_deref(), role.name())?,
        ))
    };
    let opened = predecessor.is_none().then(&mut open).transpose()?;
    let pins = options
        .state
        .as_deref()
        .filter(|_| matches!(plan, Plan::AfXdp(_)))
        .and_then(|path| {
            let pins = Pins::find(path, role);
            if pins.is_none() {
                warn!(
                    "no BPF file system at /sys/fs/bpf or in the state's directory: while no process serves, the \
                     kernel gets the balancer's packets"
                );
            }
            pins
        });
    let unserved = pins.as_ref().map_or(Unserved::Pass, |_| Unserved::Drop);
    let mut programs = plan.load_programs(role, unserved)?;
    let next_hops = NextHops::open(&plan)?;
    let found = next_hops.look_up(&given);
    let mut config = plan.complete(&given, next_hops.are_needed().then_some(&found));
    found.limit(&mut config);
    if let Some(fleet) = &fleet {
        fleet.apply(&mut config);
    }
    let snapshot = config.snapshot(None).map_err(Failure::usage)?;

    let announce = |config: &Config, plan: &Plan, handed_over: Option<OwnedFd>| {
        let name = options.announce.as_deref();
        name.map(|name| announcer(name, config, plan, handed_over))
            .transpose()
    };
    let mut announcer = match &predecessor {
        None => announce(&config, &plan, None)?,
        Some(_) => None,
    };

    let cpus = worker::allowed_cpus(&options.cpus)?;
    let slots = plan.by_worker(role, options.workers)?;
    control::expect_shareable(&config, &snapshot, slots.len())?;
    let (of_each, mut seats, key) = shares_of(&config, &plan, &slots)?;
    // The first worker has the queues between a host agent's vms and the prober.
    let (mut of_worker, of_prober) = match role {
        Role::Host => {
            let (of_worker, of_prober) = way();
            (Some(of_worker), Some(of_prober))
        }
        Role::Mux | Role::Proxy => (None, None),
    };
    let slots_count = slots.len();
    let mut starting = Vec::new();
    for (number, slots) in slots.iter().enumerate() {
        let queues = plan.queues(slots);
        starting.push(Worker::start(worker::Start {
            config: of_each.clone(),
            snapshot: Arc::clone(&snapshot),
            cpu: cpus.get(number % cpus.len().max(1)).copied(),
            names: plan.names(slots),
            ring: options.ring,
            waits: !options.busy,
            probes: of_worker.take(),
            queues,
            number: (number, slots_count),
            keeps_state: directory.is_some(),
            key: key.map_or_else(worker::secret, Ok)?,
            seat: seats.next(),
        })?);
    }
    for starting in &starting {
        starting.wait_for_tables()?;
    }
    let stands_still = Instant::now();
    let mut left = predecessor
        .as_mut()
        .map(Predecessor::stop)
        .unwrap_or_default();
    let of_workers: Vec<_> = slots
        .iter()
        .map(|slots| left.take_for(&plan.queues(slots)))
        .collect();
    let pass = Pass::open(options, role, &plan, left.pass.take())?;
    // A queue that no worker goes on with has to be free for one that opens it.
    drop(left);
    let saved = directory.as_ref().and_then(Directory::take).map(Arc::new);
    for (starting, devices) in starting.iter().zip(of_workers) {
        starting.go(Go {
            saved: saved.clone(),
            kernel: pass.as_ref().map(Pass::device),
            devices,
        });
    }
    let workers = starting.into_iter().map(Starting::wait);
    let workers = workers.collect::<Result<Vec<_>, _>>()?;
    let work_again = stands_still.elapsed();
    if let Some(predecessor) = &mut predecessor {
        predecessor.wait_until_free();
    }
    if let Some(saved) = &saved {
        saved.report();
    }
    let keeper = directory.map(|directory| Keeper::new(directory, saved.as_deref()));
    sysctl::prepare(&plan, &config)?;
    sysctl::warn_of_machine(&plan, &config);
    plan.settle();
    let taken = plan.taken(&config);
    for (program, taken) in programs.iter_mut().flatten().zip(&taken) {
        start_program(program, &workers, taken, pins.as_ref()).map_err(Failure::failed)?;
    }
    let (endpoint, place) = match (opened, predecessor) {
        (Some(opened), _) => opened,
        (None, predecessor) => {
            let (seconds, attached) = (work_again.as_secs_f64(), stands_still.elapsed());
            let attached = attached.as_secs_f64();
            info!(
                seconds,
                attached, "this process continues to process packets"
            );
            let handed_over = predecessor.and_then(Predecessor::wait_for_end);
            announcer = announce(&config, &plan, handed_over)?;
            open()?
        }
    };
    let handover = keeper.as_ref().and_then(Keeper::listen);
    let native = programs.iter().flatten().map(Program::is_native);
    plan.warn_of_checksums(&native.collect::<Vec<_>>());
    let asked = fleet.as_ref().map(|fleet| fleet.probed(&given));
    let prober = prober(asked.as_ref().unwrap_or(&given), of_prober)?;
    let vips = options.probe_vips.then(|| {
        let announced = options.announce.is_some();
        vip_prober(&given, &plan, announced)
    });
    let vips = vips.transpose()?;
    sysctl::warn_of_ports(&given);
    if let Some(fleet) = &mut fleet {
        fleet.is_in_place();
    }
    info!(
        role = role.name(),
        workers = workers.len(),
        generation = snapshot.generation(),
        event = "running",
        "running"
    );
    for line in given.warnings() {
        warn!("{line}");
    }
    let longest = given.probes.iter().map(|probe| probe.timeout).max();
    let longest = longest.unwrap_or_default();
    let control = Control {
        options,
        begin: Instant::now(),
        passive: PassiveHealth::default(),
        slow_start: SlowStart::default(),
        plan,
        programs,
        next_hops,
        announcer,
        prober,
        vips,
        found,
        unreached: Unreached::default(),
        narrow: Narrow::default(),
        lasting: Lasting::default(),
        given,
        begun: config.node.clone(),
        limits: Some(control::limits_of(&config)),
        config,
        counters: CounterMemory::size_for(&snapshot),
        snapshot,
        workers,
        slots,
        taken,
        trouble: Vec::new(),
        file,
        loading: Loading::default(),
        fleet,
        work: Work::default(),
        to_reopen: BTreeSet::new(),
        closed: BTreeMap::new(),
        first_round: Some(Instant::now() + longest + FIRST_ROUND),
        stalled: BTreeMap::new(),
        complained: None,
        sick: BTreeMap::new(),
        keeper,
        handover,
        successor: Successor::default(),
        pins,
        pass,
        followed: Followed::default(),
        settings: Vec::new(),
        warned: Vec::new(),
        said: Vec::new(),
        life: Life::begin(options.announce.as_deref(), options.log),
    };
    control.run(endpoint, place, signals)
}

/// Starts the prober: roles that choose backends probe them, and a host agent probes its own vms
/// through their ports.
fn prober(given: &Config, way: Option<ProberEnd>) -> Result<Option<Prober>, Failure> {
    let mut prober = match way {
        Some(way) => Prober::through_vms(way).map_err(Failure::failed)?,
        None => {
            let prober = Prober::start(&given.node.probe_sources).map_err(Failure::failed)?;
            // The other files are for devices, metrics and the status.
            let sockets = rights::raise_open_files().saturating_sub(OTHER_FILES);
            prober.with_sockets(sockets.clamp(16, MOST_PROBES))
        }
    };
    prober.set(given);
    Ok(Some(prober))
}

/// The XDP program takes answers to the source ports of calls of VIPs.
const _: () = {
    assert!(*CALLER_PORTS.start() == *slb_io_afxdp::CALLER_PORTS.start());
    assert!(*CALLER_PORTS.end() == *slb_io_afxdp::CALLER_PORTS.end());
};

/// Starts calling the VIPs through the fabric's interface, since the kernel's routes to VIPs of
/// `--announce` lead elsewhere.
fn vip_prober(given: &Config, plan: &Plan, is_announced: bool) -> Result<VipProber, Failure> {
    if given.node.role == Role::Proxy {
        return Err(Failure::usage(
            "--probe-vips is for a mux or a host: call a proxy's VIPs from its clients' side",
        ));
    }
    let device = plan.fabric().map(|interface| &*interface.name);
    if let Some(device) = device.filter(|_| is_announced) {
        sysctl::expect_answers(given, device)?;
    }
    let sources = plan.callers(given);
    let mut vips = VipProber::start(&sources, device).map_err(Failure::failed)?;
    vips.set(given);
    Ok(vips)
}

fn announcer(
    name: &str,
    config: &Config,
    plan: &Plan,
    handed_over: Option<OwnedFd>,
) -> Result<Announcer, Failure> {
    match (config.node.role, plan) {
        (Role::Mux, Plan::AfXdp(_)) => Announcer::open(name, config, handed_over),
        _ => Err(Failure::usage(
            "--announce is for a mux on AF_XDP: with a TUN device, announce the routes into it",
        )),
    }
}

/// Starts directing packets to the workers.
fn start_program(
    program: &mut Program,
    workers: &[Worker],
    taken: &[(IpAddr, Take)],
    pins: Option<&Pins>,
) -> Result<(), ProgramFault> {
    let name = program.interface().name.clone();
    for worker in workers {
        for (queue, socket) in worker.sockets_of(&name) {
            program.set_socket(queue, socket)?;
        }
    }
    program.set_addresses(taken.iter().copied())?;
    match pins {
        None => program.attach()?,
        Some(pins) => match program.attach_pinned(&pins.directory, &pins.name(&name)) {
            Ok(true) => {
                info!(interface = %name, "the XDP program replaces that of an earlier process");
            }
            Ok(false) => {}
            Err(error) => {
                warn!(
                    "the XDP program is detached when this process exits, and the kernel gets the balancer's packets \
                     until the next one runs: {error}"
                );
                program.attach()?;
            }
        },
    }
    describe(program);
    Ok(())
}

fn describe(program: &Program) {
    let interface = &program.interface().name;
    match program.is_native() {
        true => info!(%interface, "XDP in native mode"),
        false => warn!(
            %interface,
            "XDP in generic mode, which is slower; the driver refused native mode: {}",
            program.refusal().unwrap_or("the kernel gives no reason")
        ),
    }
}

/// Allocates the memory for the queues of a worker, with `more` further frames. `longest` is the
/// length of the longest packet in bytes. Packets longer than the chunks are lost, and counted.
/// Another process can take over shareable memory.
fn memory_for(
    queues: &[slb_io_afxdp::Queue],
    longest: u32,
    ring: u32,
    extra: usize,
    is_shareable: bool,
) -> Result<Umem, Failure> {
    let (chunk, frames) = memory_needs(queues, longest, ring, extra);
    let make = if is_shareable {
        Umem::shareable
    } else {
        Umem::new
    };
    make(frames, chunk).map_err(Failure::failed)
}

/// Returns the bytes of a chunk and the number of frames for [`memory_for`].
fn memory_needs(
    queues: &[slb_io_afxdp::Queue],
    longest: u32,
    ring: u32,
    extra: usize,
) -> (usize, usize) {
    let chunk = Umem::chunk_for(longest as usize).unwrap_or(LARGE_CHUNK);
    (chunk, frames_for(queues.len(), ring) + extra)
}

/// The maximum number of workers that share connections. Each has a ring of 512 KiB to each other
/// worker: 2 GiB for 64.
const MOST_SHARES: u16 = 64;

/// The shared state of several workers: the configuration of each, with its part of the limits and
/// tables; their places among each other; and the key of all, so that a vm's port is the same
/// whichever worker chooses it. One worker, and each of a mux's, has everything to itself.
type Shares = (Config, std::vec::IntoIter<Seat>, Option<Key>);

fn shares_of(config: &Config, plan: &Plan, slots: &[Vec<Slot>]) -> Result<Shares, Failure> {
    let shares = control::shares(config.node.role, slots.len());
    let mut of_each = config.clone();
    let workers = u16::try_from(shares).ok().and_then(NonZeroU16::new);
    let Some(workers) = workers.filter(|workers| workers.get() <= MOST_SHARES) else {
        return Err(Failure::usage(format!(
            "--workers: expected at most {MOST_SHARES} that share connections, got {shares}"
        )));
    };
    if shares == 1 {
        return Ok((of_each, Vec::new().into_iter(), None));
    }
    let node = &mut of_each.node;
    node.connections = node.connections.div_ceil(shares as usize);
    let key = worker::secret()?;
    let ports: Vec<_> = slots.iter().map(|slots| plan.ports_of(slots)).collect();
    let seats = Seat::all(Steering::new(workers, key), &ports).map_err(Failure::failed)?;
    Ok((of_each, seats.into_iter(), Some(key)))
}

/// The time that the first answers to probes may take, beyond the longest timeout: probes of large
/// pools go out one after the other.
const FIRST_ROUND: Duration = Duration::from_secs(5);

/// The number of open files besides probes.
const OTHER_FILES: usize = 512;
/// The maximum number of simultaneous probes, regardless of the limit of open files.
const MOST_PROBES: usize = 8192;

/// The maximum time that a worker waits for packets: timers are due a few times a second.
const WAIT: Duration = Duration::from_millis(20);
