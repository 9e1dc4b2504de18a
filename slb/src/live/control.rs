//! The control thread: signals, the configuration's file, and next hops.

mod backends;
mod devices;
mod readiness;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use slb_control::config::Node;
use slb_control::lasting::Lasting;
use slb_control::probe::{BackendName, Prober, VipProber};
use slb_control::{Config, PassiveHealth, Role, SlowStart};
use slb_core::MuxOptions;
use slb_core::counters::CounterSizes;
use slb_core::nat::NatOptions;
use slb_core::snapshot::Snapshot;
use slb_io_afxdp::{Program, Take};
use slb_io_pcap::CaptureStats;
use tracing::{info, warn};

pub(super) use self::work::Work;
use super::announce::Announcer;
use super::device::{Plan, Slot};
use super::events;
use super::file::{Loading, WatchedFile};
use super::follow::Fleet;
use super::handed::Devices;
use super::handover::{Handover, Heir, Request};
use super::metrics::Endpoint;
use super::narrowest::Narrow;
use super::next_hops::{Found, NextHops, Unreached};
use super::pass::Pass;
use super::state::{Keeper, Pins};
use super::status::{Place, Shared};
use super::successor::Successor;
use super::sysctl::Followed;
use super::watchdog::Life;
use super::worker::{Counted, Worker};
use crate::Failure;
use crate::cli::LiveOptions;
use crate::output::print_if_read;
use crate::report::Report;

/// The interval of the loop.
const TICK: Duration = Duration::from_millis(20);
/// The interval of checks of the file.
const LOOK_AT_FILE: Duration = Duration::from_millis(250);
/// The interval of checks of the devices, even without a message of the kernel.
const LOOK_AT_DEVICES: Duration = Duration::from_secs(2);
/// The interval of checks for late probes.
const LOOK_AT_LATE: Duration = Duration::from_secs(1);
/// The interval of updates of passive health.
const JUDGE: Duration = Duration::from_secs(1);
/// The interval of requests for unknown next hops, and of verification of known ones.
const ASK: Duration = Duration::from_secs(1);
const VERIFY: Duration = Duration::from_secs(30);
/// The minimum time between updates from the kernel's tables.
const FOLLOW: Duration = Duration::from_millis(250);
/// The interval of checks that the workers make progress.
const LISTEN: Duration = Duration::from_millis(200);
/// The time without progress after which a worker or the process is reported as stalled, and its
/// VIPs are withdrawn.
pub(super) const STILL: Duration = Duration::from_secs(2);
/// The minimum time between reports that probes cannot be sent.
const COMPLAIN: Duration = Duration::from_secs(60);

/// The rates and other terms of a node, compared to detect changes.
pub(super) type NodeLimits = (MuxOptions, NatOptions, (u32, u32));

/// The limits of a configuration.
pub(super) fn limits_of(config: &Config) -> NodeLimits {
    let node = &config.node;
    let of_sources = (node.flows_per_source, node.flows_per_source_at_once);
    (config.mux_options(), config.nat_options(), of_sources)
}

pub(super) struct Control<'o> {
    pub(super) options: &'o LiveOptions,
    pub(super) begin: Instant,
    pub(super) plan: Plan,
    /// The XDP program of each interface; `None` if the interface is gone.
    pub(super) programs: Vec<Option<Program>>,
    pub(super) next_hops: NextHops,
    pub(super) announcer: Option<Announcer>,
    pub(super) prober: Option<Prober>,
    /// Calls VIPs as a client (`--probe-vips`).
    pub(super) vips: Option<VipProber>,
    pub(super) passive: PassiveHealth,
    pub(super) slow_start: SlowStart,
    pub(super) found: Found,
    pub(super) unreached: Unreached,
    pub(super) narrow: Narrow,
    /// Faults that last, and are not logged each time they are found.
    pub(super) lasting: Lasting,
    /// The configuration as the file has it.
    pub(super) given: Config,
    /// The configuration, completed with data of the interface and the kernel's tables.
    pub(super) config: Config,
    pub(super) snapshot: Arc<Snapshot<'static>>,
    /// The node's settings at the start, which determine the sizes of tables.
    pub(super) begun: Node,
    /// The limits of all workers; `None` if some are unknown.
    pub(super) limits: Option<NodeLimits>,
    /// The numbers of counters that the workers have.
    pub(super) counters: CounterSizes,
    pub(super) workers: Vec<Worker>,
    /// The queues of each worker.
    pub(super) slots: Vec<Vec<Slot>>,
    /// The addresses that each program takes.
    pub(super) taken: Vec<Vec<(IpAddr, Take)>>,
    /// The reasons why packets do not arrive, if they do not: the node is then not ready, and
    /// announces no VIP.
    pub(super) trouble: Vec<String>,
    /// The file, watched since before it was first read.
    pub(super) file: WatchedFile,
    /// The file, while it is reloaded.
    pub(super) loading: Loading,
    /// The fleet that replaces the file (`--fleet`).
    pub(super) fleet: Option<Fleet>,
    /// Work in background threads.
    pub(super) work: Work,
    /// Devices to be reopened or closed.
    pub(super) to_reopen: BTreeSet<usize>,
    /// The reasons why devices could not be opened, by index.
    pub(super) closed: BTreeMap<usize, String>,
    /// The deadline of the first answers to probes; `None` once they are there.
    pub(super) first_round: Option<Instant>,
    /// The stalled workers, by index, and the time since which they are stalled.
    pub(super) stalled: BTreeMap<usize, Instant>,
    /// The time of the last report that probes cannot be sent.
    pub(super) complained: Option<Instant>,
    /// The reasons why backends are unhealthy.
    pub(super) sick: BTreeMap<BackendName, String>,
    /// Takes checkpoints (`--state`).
    pub(super) keeper: Option<Keeper>,
    /// The socket at which another process asks to take over (`--state`).
    pub(super) handover: Option<Handover>,
    /// The program, started again to take over (SIGUSR2).
    pub(super) successor: Successor,
    /// Pins of XDP programs that outlive the process (`--state` over AF_XDP).
    pub(super) pins: Option<Pins>,
    /// The device for packets that are the kernel's.
    pub(super) pass: Option<Pass>,
    pub(super) followed: Followed,
    /// The kernel settings that lose packets.
    pub(super) settings: Vec<String>,
    /// The last warnings about underlay addresses.
    pub(super) warned: Vec<String>,
    /// The trouble that was last logged as an error.
    pub(super) said: Vec<String>,
    pub(super) life: Life,
}

/// Registers the signals for a reload and for a take-over, which do not end a process that is still starting.
pub(super) fn hear() -> Result<Signals, Failure> {
    Signals::new([SIGHUP, SIGUSR2]).map_err(Failure::failed)
}

/// Returns true if a backend, named with its pool, is on this node.
fn is_here(config: &Config, name: &str) -> bool {
    let all = config.pools.iter();
    let mut all = all.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)));
    all.any(|(pool, backend)| {
        let rest = name.strip_prefix(&*pool.name);
        let of_pool = rest.and_then(|rest| rest.strip_prefix('/'));
        of_pool == Some(&*backend.name) && config.node.is(backend.host)
    })
}

impl Control<'_> {
    /// Runs until a signal ends the program; then shuts everything down in order.
    pub(super) fn run(
        mut self,
        endpoint: Option<Endpoint>,
        place: Option<Place>,
        mut signals: Signals,
    ) -> Result<(), Failure> {
        for signal in [SIGINT, SIGTERM] {
            signals.add_signal(signal).map_err(Failure::failed)?;
        }
        let begin = self.begin;
        let measured = (
            self.prober.as_ref().map(Prober::tallies),
            self.vips.as_ref().map(VipProber::results),
        );
        let in_place = (&self.config, &self.snapshot);
        let shared = Shared::new(in_place, &self.workers, begin, measured);
        if let Some(endpoint) = endpoint {
            endpoint.serve(Arc::clone(&shared))?;
        }
        let status = place.map(|place| place.serve(Arc::clone(&shared)));
        events::watch(Arc::clone(&shared));
        if let Some(keeper) = &self.keeper {
            shared.set_state(keeper.status());
        }
        self.follow_settings();
        self.look_at_trouble(&shared);
        let (mut looked, mut asked, mut verified) = (begin, None, begin);
        let mut judged = begin;
        // Addresses may be unreachable even without a change since the start.
        let (mut has_changed, mut followed) = (true, begin);
        self.ask(true);
        let (mut listened, mut announced) = (begin, begin);
        let (mut looked_at_devices, mut looked_at_late) = (begin, begin);
        let mut heir: Option<Heir>;
        let mut turned = Instant::now();
        let ends = loop {
            self.wait();
            // A process without memory stands still at any page that it needs, not just while it waits.
            self.heed_stop(turned.elapsed());
            turned = Instant::now();
            shared.note_alive();
            if listened.elapsed() >= LISTEN {
                listened = Instant::now();
                self.listen(&shared);
            }
            self.life.beat(self.stalled.is_empty());
            if let Some(keeper) = &mut self.keeper
                && keeper.advance(&self.workers)
            {
                shared.set_state(keeper.status());
            }
            heir = self.heed_request();
            if heir.is_some() {
                break Ok(());
            }
            let raised: Vec<i32> = signals.pending().collect();
            if raised.contains(&SIGTERM) || raised.contains(&SIGINT) {
                break Ok(());
            }
            if let Some(worker) = self.workers.iter().find(|worker| worker.mailbox.is_over()) {
                let name = worker.names.join(", ");
                break Err(Failure::failed(format!(
                    "the worker of {name} ended by itself"
                )));
            }
            self.successor.look();
            if raised.contains(&SIGUSR2) {
                self.successor.start(self.handover.is_some());
            }
            let mut reads = raised.contains(&SIGHUP);
            if looked.elapsed() >= LOOK_AT_FILE {
                looked = Instant::now();
                reads |= self.file.has_changed(looked);
            }
            if reads {
                self.file.set_loaded();
                match &mut self.fleet {
                    Some(fleet) => fleet.read_again(),
                    None => self.loading.begin(self.options.config.path()),
                }
            }
            if self.work.loaded.is_none()
                && self.work.ready.is_none()
                && let Some(loaded) = self.loading.take()
            {
                self.reload(loaded);
            }
            self.follow_fleet(&shared);
            has_changed |= self.next_hops.has_changed();
            let is_due = has_changed && announced.elapsed() >= FOLLOW || announced.elapsed() >= ASK;
            if is_due {
                announced = Instant::now();
                let announces = self.announcer.as_mut().is_some_and(Announcer::look);
                let passes = self.pass.as_mut().is_some_and(Pass::look);
                if announces || passes {
                    self.look_at_trouble(&shared);
                }
            }
            // Devices that cannot be opened are retried, even without a message of the kernel.
            let is_due = !self.to_reopen.is_empty() || self.unreached.is_waiting();
            let patience = if has_changed { FOLLOW } else { ASK };
            // The kernel sends no message about changed queues (ethtool -L).
            if looked_at_devices.elapsed() >= LOOK_AT_DEVICES {
                looked_at_devices = Instant::now();
                self.follow_devices();
                self.follow_settings();
                self.look_at_trouble(&shared);
            }
            if (has_changed || is_due) && followed.elapsed() >= patience {
                has_changed = false;
                self.follow_devices();
                self.work.wants_look_up = true;
                self.look_at_trouble(&shared);
                followed = Instant::now();
            }
            let mut is_due = self.heed_probes(&shared);
            if looked_at_late.elapsed() >= LOOK_AT_LATE {
                looked_at_late = Instant::now();
                self.heed_late_probes(&shared);
            }
            if judged.elapsed() >= JUDGE && PassiveHealth::watches(&self.config) {
                judged = Instant::now();
                is_due |= self.heed_traffic(&shared);
            }
            let next = self.slow_start.due();
            is_due |= next.is_some_and(|next| next <= self.clock());
            self.work.wants_compile |= is_due;
            self.work_on(&shared);
            self.heed_first_round(&shared);
            if asked.is_none_or(|asked: Instant| asked.elapsed() >= ASK) {
                asked = Some(Instant::now());
                let all = verified.elapsed() >= VERIFY;
                if all {
                    verified = Instant::now();
                }
                self.ask(all);
            }
        };
        if ends.is_ok() && heir.is_none() {
            self.drain(&mut signals, &shared);
        }
        // systemd has to know that the service continues in the successor.
        let successor = heir.as_ref().and_then(Heir::pid);
        self.life
            .end(successor.filter(|&pid| self.successor.is(pid)));
        // First the kernel gets its packets back, then the packets in the rings are sent. But with
        // a kept state, the next process takes over both.
        let hands_over = heir.as_ref().is_some_and(Heir::takes_devices);
        if self.pins.is_none() && !hands_over {
            self.programs.clear();
        }
        let ask = if hands_over {
            Worker::hand_over
        } else {
            Worker::stop
        };
        self.workers.iter().for_each(ask);
        let finished: Vec<_> = self.workers.drain(..).map(Worker::finish).collect();
        let (counted, left): (Vec<_>, Vec<_>) = finished.into_iter().unzip();
        let (mut records, mut devices) = (Vec::new(), Devices::default());
        for left in left {
            records.push(left.records);
            devices.extend(left.devices);
        }
        // If a worker ended unexpectedly, its last checkpoint is better than nothing.
        if ends.is_ok()
            && let Some(keeper) = self.keeper.take()
        {
            keeper.finish(records);
        }
        if let Some(heir) = &mut heir {
            devices.pass = self.pass.as_ref().and_then(Pass::file);
            let announced = self.announcer.as_ref().and_then(Announcer::file);
            devices.announced = announced.and_then(|file| file.try_clone_to_owned().ok());
            heir.give(&devices);
        }
        drop((devices, self.pass.take()));
        self.programs.clear();
        if let Some(heir) = &mut heir {
            heir.tell(self.announcer.as_ref().and_then(Announcer::file));
        }
        let mut counted = counted.into_iter().flatten();
        let total = counted
            .next()
            .map(|first| counted.fold(first, Counted::and));
        if let Some(status) = status {
            status.end();
        }
        if let Some(total) = total {
            let none = CaptureStats::default();
            let elapsed = begin.elapsed();
            let report = Report::new(&self.config, total.tally, &none, elapsed).text();
            let io: Vec<String> = total
                .io
                .iter()
                .map(|(name, n)| format!("{name} {n}"))
                .collect();
            // A missing reader of the report is no failure of the balancer.
            let report = format!("{report}I/O: {}\n", io.join(", "));
            if print_if_read(std::io::stdout(), &report, 1).is_err() {
                warn!("the last report is lost: standard output cannot be written");
            }
        }
        if let Some(heir) = heir {
            heir.close_at_exit();
        }
        ends
    }

    /// Handles a request of another process, if there is one. Returns the process that takes over.
    fn heed_request(&mut self) -> Option<Heir> {
        match self.handover.as_mut()?.request()? {
            Request::TakeOver(heir) => return Some(heir),
            Request::Export(vm, peer) => match (&mut self.keeper, is_here(&self.config, &vm)) {
                (Some(keeper), true) => {
                    info!(vm, "the connections of a vm are exported");
                    keeper.export_vm(&vm, peer);
                }
                _ => peer.refuse(&format!(
                    "expected POOL/BACKEND of a vm of this host, got {vm:?}"
                )),
            },
            Request::Import(state, peer) => match &mut self.keeper {
                Some(keeper) => keeper.import_vm(&state, peer),
                None => peer.refuse("no state is kept"),
            },
        }
        None
    }

    /// Waits for a change of next hops, a request of another process, or a tick.
    fn wait(&self) {
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: TICK.subsec_nanos().into(),
        };
        let events = self.next_hops.events();
        let mut fds = vec![PollFd::new(&events, PollFlags::IN)];
        if let Some(handover) = &self.handover {
            fds.push(PollFd::new(handover, PollFlags::IN));
        }
        // A signal may end the wait early, which is harmless.
        let _ = poll(&mut fds, Some(&tick));
    }

    fn clock(&self) -> slb_core::Instant {
        let nanos = u64::try_from(self.begin.elapsed().as_nanos());
        slb_core::Instant::from_nanos(nanos.unwrap_or(u64::MAX))
    }

    fn ask(&mut self, all: bool) {
        const SUBJECT: &str = "resolve next hops";
        match self.next_hops.ask(&self.found, all) {
            Ok(()) => {
                if self.lasting.end(SUBJECT).is_some() {
                    info!("the kernel resolves next hops again");
                }
            }
            Err(error) if self.lasting.is_due(SUBJECT) => {
                warn!("the kernel does not resolve next hops: {error}");
            }
            Err(_) => {}
        }
    }

    /// Continues for a while, so that routers can send packets elsewhere; another signal ends it.
    fn drain(&mut self, signals: &mut Signals, shared: &Shared) {
        if let Some(announcer) = &mut self.announcer {
            announcer.withdraw();
        }
        let drain = Duration::from_secs(self.options.drain);
        info!(seconds = self.options.drain, event = "draining", "draining");
        let begin = Instant::now();
        while begin.elapsed() < drain {
            self.wait();
            shared.note_alive();
            self.life.beat(true);
            if signals
                .pending()
                .any(|signal| matches!(signal, SIGINT | SIGTERM))
            {
                return;
            }
        }
    }
}

/// Returns the number of workers that share a role's connections: one for a mux, whose workers
/// share nothing.
pub(super) fn shares(role: Role, workers: usize) -> u32 {
    match role {
        Role::Mux => 1,
        Role::Host | Role::Proxy => u32::try_from(workers).unwrap_or(u32::MAX).max(1),
    }
}

/// Returns an error if several workers cannot share the connections of a configuration.
pub(super) fn expect_shareable(
    config: &Config,
    snapshot: &Snapshot<'_>,
    workers: usize,
) -> Result<(), Failure> {
    if shares(config.node.role, workers) == 1 || snapshot.spreads() {
        return Ok(());
    }
    let rules = config.rules.iter().map(|rule| (&rule.name, &rule.terms));
    let nat = config.inbound_nat.iter().map(|nat| (&nat.name, &nat.terms));
    let mut all = rules.chain(nat);
    let name = all.find_map(|(name, terms)| terms.source_nat.map(|_| name.as_str()));
    Err(Failure::usage(match name {
        Some(name) => format!(
            "--workers {workers}: rule {name:?} has source_nat, which shows servers one address for all clients: \
             expected one worker, or no source_nat"
        ),
        None => format!(
            "--workers {workers}: vms of this host have access lists, whose direct flows only one worker knows: expected \
             one worker, or no security_list"
        ),
    }))
}

impl Counted {
    /// Both together.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.tally.add(&other.tally);
        for (name, count) in other.io {
            match self.io.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += count,
                None => self.io.push((name, count)),
            }
        }
        self.work.bursts += other.work.bursts;
        self.work.busy += other.work.busy;
        self
    }
}
