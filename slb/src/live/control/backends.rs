//! The control thread: signals, the configuration's file, and next hops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use slb_control::config::Node;
use slb_control::probe::{BackendName, Prober, VipProber};
use slb_control::{Config, PassiveHealth, Role, SlowStart};
use slb_core::MuxOptions;
use slb_core::counters::CounterMemory;
use slb_core::health::Condition;
use slb_core::nat::NatOptions;
use slb_core::snapshot::Snapshot;
use slb_core::spec::SpecError;
use slb_io_afxdp::{Program, Take, Unserved};
use slb_io_pcap::CaptureStats;
use tracing::{error, info, warn};

use super::announce::Announcer;
use super::background::Background;
use super::device::{Plan, Slot, Turn};
use super::events;
use super::file::{Loading, WatchedFile};
use super::follow::Fleet;
use super::handover::{Handover, Heir, Request};
use super::metrics::Endpoint;
use super::next_hops::{Found, NextHops, Unreached, unresolved};
use super::start_program;
use super::state::{Keeper, Pins};
use super::status::{Place, Shared};
use super::successor::Successor;
use super::sysctl;
use super::watchdog::Life;
use super::worker::{Counted, Next, Worker, secret};
use crate::Failure;
use crate::balancer::Limits;
use crate::cli::LiveOptions;
use crate::report::Report;

/// Interval at which it looks for work.
const TICK: Duration = Duration::from_millis(20);
/// How often it looks at the file.
const LOOK_AT_FILE: Duration = Duration::from_millis(250);
/// How often it looks at the devices, whether the kernel says something or not.
const LOOK_AT_DEVICES: Duration = Duration::from_secs(2);
/// How often it judges backends by their traffic.
const JUDGE: Duration = Duration::from_secs(1);
/// How often it asks for next hops that are not known, and has those that are verified.
const ASK: Duration = Duration::from_secs(1);
const VERIFY: Duration = Duration::from_secs(30);
/// How long it waits after it has followed the kernel's tables until it does so again.
const FOLLOW: Duration = Duration::from_millis(250);
/// Interval at which it checks that the workers make progress.
const LISTEN: Duration = Duration::from_millis(200);
/// How long a worker, or the whole process, may stand still before that is said, and its VIPs are withdrawn.
pub(super) const STILL: Duration = Duration::from_secs(2);
/// How often it says that probes cannot be sent.
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
    /// For each interface; `None`: it is gone.
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
    /// The configuration as the file has it.
    pub(super) given: Config,
    /// The configuration with what the interface and the kernel's tables know.
    pub(super) config: Config,
    pub(super) snapshot: Arc<Snapshot<'static>>,
    /// The node as the program was started with it: table sizes stay so.
    pub(super) begun: Node,
    /// The limits that all workers have in place; `None`: that is not known of all.
    pub(super) limits: Option<NodeLimits>,
    /// How many rules and backends the workers have counters for.
    pub(super) counters: (usize, usize),
    pub(super) workers: Vec<Worker>,
    /// For each worker, its queues.
    pub(super) slots: Vec<Vec<Slot>>,
    /// For each program, what is taken.
    pub(super) taken: Vec<Vec<(IpAddr, Take)>>,
    /// Why packets do not come in, where they do not: then it is not ready, and no VIP is announced.
    pub(super) trouble: Vec<String>,
    /// The file, while it is read again.
    pub(super) loading: Loading,
    /// The fleet that replaces the file (`--fleet`).
    pub(super) fleet: Option<Fleet>,
    /// Work in threads of its own.
    pub(super) work: Work,
    /// Devices to be reopened or closed.
    pub(super) to_reopen: BTreeSet<usize>,
    /// Until when the first answers to probes are waited for; `None`: they are there.
    pub(super) first_round: Option<Instant>,
    /// The workers that stand still, by their place, and since when.
    pub(super) stalled: BTreeMap<usize, Instant>,
    /// When it was last said that probes cannot be sent.
    pub(super) complained: Option<Instant>,
    /// Why backends are not well.
    pub(super) sick: BTreeMap<BackendName, String>,
    /// Takes checkpoints (`--state`).
    pub(super) keeper: Option<Keeper>,
    /// The socket at which another process asks to take over (`--state`).
    pub(super) handover: Option<Handover>,
    /// The program, started again to take over (SIGUSR2).
    pub(super) successor: Successor,
    /// Pins of XDP programs that outlive the process (`--state` over AF_XDP).
    pub(super) pins: Option<Pins>,
    pub(super) life: Life,
}

/// Work in threads of its own, which takes seconds for a large configuration.
///
/// ```text
///  a file that changed ─► next hops of its hosts ─► waits ─┐
///                                                          ├─► one snapshot at a time ─► in place
///  the kernel's tables ─► next hops of the present hosts ──┘
/// ```
#[derive(Default)]
pub(super) struct Work {
    /// A configuration that was read again, and how its addresses are reached.
    loaded: Option<(Config, Background<io::Result<Found>>)>,
    /// The same, to be compiled next.
    ready: Option<Loaded>,
    /// How the addresses of the present configuration are reached.
    look_up: Option<Background<io::Result<Found>>>,
    /// The snapshot of a configuration: of one that was read again, with how its addresses are reached, or of
    /// the present one.
    compile: Option<(Option<Loaded>, Background<Compiled>)>,
    /// True if the kernel's tables may have changed.
    wants_look_up: bool,
    /// True if the known state of backends or devices has changed.
    wants_compile: bool,
    look_up_pace: Pace,
    compile_pace: Pace,
}

/// A configuration that was read again, and how its addresses are reached.
type Loaded = (Config, Found);

/// A configuration with all that is known beside it, and what packets are looked up in.
type Compiled = Result<(Config, Arc<Snapshot<'static>>), SpecError>;

impl Work {
    /// Returns true while what is known is not in place yet.
    fn is_behind(&self) -> bool {
        self.wants_compile || self.compile.is_some()
    }
}

/// How often a piece of work is done again: it takes half of the time at most.
#[derive(Debug)]
struct Pace {
    began: Instant,
    /// When it may begin again.
    next: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            next: now,
        }
    }
}

impl Pace {
    fn begin(&mut self) {
        self.began = Instant::now();
    }

    fn end(&mut self) {
        self.next = Instant::now() + self.began.elapsed();
    }

    fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }
}

/// Returns true if a backend, named with its pool, is at this node.
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
    /// Does what is to be done until a signal ends it; then ends everything in its order.
    pub(super) fn run(
        mut self,
        endpoint: Option<Endpoint>,
        place: Option<Place>,
    ) -> Result<(), Failure> {
        let mut signals =
            Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR2]).map_err(Failure::failed)?;
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
        self.look_at_trouble(&shared);
        let mut file = WatchedFile::new(self.options.config.path());
        let (mut looked, mut asked, mut verified) = (begin, None, begin);
        let mut judged = begin;
        // Nothing may have changed since the start, and addresses not be reached all the same.
        let (mut has_changed, mut followed) = (true, begin);
        self.ask(true);
        let (mut listened, mut announced) = (begin, begin);
        let mut looked_at_devices = begin;
        let mut heir: Option<Heir>;
        let ends = loop {
            let before = Instant::now();
            self.wait();
            self.heed_stop(before.elapsed());
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
                reads |= file.has_changed(looked);
            }
            if reads {
                file.set_loaded();
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
                if self.announcer.as_mut().is_some_and(Announcer::look) {
                    self.look_at_trouble(&shared);
                }
            }
            // What cannot be opened is tried again, whether the kernel says something or not.
            let is_due = !self.to_reopen.is_empty() || self.unreached.is_waiting();
            let patience = if has_changed { FOLLOW } else { ASK };
            // The kernel says nothing about queues that change (ethtool -L).
            if looked_at_devices.elapsed() >= LOOK_AT_DEVICES {
                looked_at_devices = Instant::now();
                self.follow_devices();
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
        // Of the own successor systemd has to know that the service goes on in it.
        let successor = heir.as_ref().and_then(Heir::pid);
        self.life
            .end(successor.filter(|&pid| self.successor.is(pid)));
        // First the kernel gets its packets back, then what is still in the rings goes out.
        // But where the state is kept, whoever starts next goes on with both.
        if self.pins.is_none() {
            self.programs.clear();
        }
        self.workers.iter().for_each(Worker::stop);
        let finished: Vec<_> = self.workers.drain(..).map(Worker::finish).collect();
        let (counted, records): (Vec<_>, Vec<_>) = finished.into_iter().unzip();
        // Of a worker that ended by itself, the last checkpoint is better than nothing.
        if ends.is_ok()
            && let Some(keeper) = self.keeper.take()
        {
            keeper.finish(records, heir.is_some());
        }
        self.programs.clear();
        if let Some(heir) = &mut heir {
            heir.tell(self.announcer.as_ref().and_then(Announcer::file));
        }
        let mut counted = counted.into_iter().flatten();
        let total = counted
            .next()
            .map(|first| counted.fold(first, Counted::and));
        drop(status);
        if let Some(total) = total {
            let none = CaptureStats::default();
            let elapsed = begin.elapsed();
            let report = Report::new(&self.config, total.tally, &none, elapsed).text();
            let io: Vec<String> = total
                .io
                .iter()
                .map(|(name, n)| format!("{name} {n}"))
                .collect();
            // A balancer that ends as it should has not failed for want of a reader.
            if say!("{report}I/O: {}\n", io.join(", ")).is_err() {
                warn!("the last report is lost: standard output cannot be written");
            }
        }
        if let Some(heir) = heir {
            heir.close_at_exit();
        }
        ends
    }

    /// Does what another process asks for, if one does. Gives the one that takes over.
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

    /// Waits for a change of next hops, or a tick.
    fn wait(&self) {
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: TICK.subsec_nanos().into(),
        };
        let events = self.next_hops.events();
        let mut fds = [PollFd::new(&events, PollFlags::IN)];
        // A signal ends it early, which is as good.
        let _ = poll(&mut fds, Some(&tick));
    }

    /// Puts a configuration in place that was read again. All or nothing: a bad one leaves the old one
    /// running.
    fn reload(&mut self, loaded: Result<Config, Failure>) {
        let mut given = match loaded {
            Ok(given) => given,
            Err(failure) => {
                return error!(
                    event = "configuration_refused",
                    "the configuration is unchanged: {failure}"
                );
            }
        };
        given.node.role = self.given.node.role;
        let (old, new) = (&self.begun, &given.node);
        for (size, was, is) in [
            ("flows", old.flows, new.flows),
            ("connections", old.connections, new.connections),
            (
                "waiting_fragments",
                old.waiting_fragments,
                new.waiting_fragments,
            ),
        ] {
            if was != is {
                warn!("{size} = {is} takes effect after a restart: it stays {was} until then");
            }
        }
        match self.begin_look_up(&given) {
            Some(job) => self.work.loaded = Some((given, job)),
            None => self.stays(&"next hops cannot be looked up"),
        }
    }

    /// Takes what the fleet wants next, and what it knows of backends.
    fn follow_fleet(&mut self, shared: &Shared) {
        let Some(fleet) = &mut self.fleet else { return };
        let (is_another, asks_others) = fleet.look(shared, &self.snapshot);
        self.work.wants_compile |= is_another;
        fleet.count(&self.config, shared);
        if asks_others {
            self.ask_backends(None);
        }
        // Before the first round is over, silence is no good health.
        if let (Some(fleet), Some(prober)) = (&self.fleet, &self.prober)
            && self.first_round.is_none()
        {
            fleet.report(prober);
        }
        let next = self.fleet.as_mut().and_then(Fleet::take);
        if let Some(given) = next {
            self.reload(Ok(given));
        }
    }

    /// Has backends probed: those of a configuration that is on its way, or of the present one.
    fn ask_backends(&mut self, loaded: Option<&Config>) {
        let given = loaded.unwrap_or(&self.given);
        let Some(prober) = &mut self.prober else {
            return;
        };
        match &self.fleet {
            Some(fleet) => prober.set(&fleet.probed(given)),
            None => prober.set(given),
        }
    }

    /// Goes on with what is worked out in other threads, and puts in place what is ready.
    fn work_on(&mut self, shared: &Shared) {
        if let Some((given, job)) = self.work.loaded.take() {
            match job.result().map(Option::transpose) {
                Ok(Ok(None)) => self.work.loaded = Some((given, job)),
                Ok(Ok(Some(found))) => {
                    self.ask_backends(Some(&given));
                    self.work.ready = Some((given, found));
                }
                Ok(Err(error)) => self.stays(&error),
                Err(failure) => self.stays(&failure),
            }
        }
        if self.work.look_up.is_none() && self.work.wants_look_up && self.work.look_up_pace.is_due()
        {
            self.work.wants_look_up = false;
            self.work.look_up_pace.begin();
            self.work.look_up = self.begin_look_up(&self.given);
        }
        if let Some(job) = self.work.look_up.take() {
            match job.result().map(Option::transpose) {
                Ok(Ok(None)) => self.work.look_up = Some(job),
                Ok(Ok(Some(found))) => {
                    self.work.look_up_pace.end();
                    self.found_out(found, shared);
                }
                Ok(Err(error)) => error!("next hops are unchanged: {error}"),
                Err(failure) => error!("next hops are unchanged: {failure}"),
            }
        }
        if self.work.compile.is_none() {
            let ready = self.work.ready.take();
            if ready.is_some() || self.work.wants_compile && self.work.compile_pace.is_due() {
                self.begin_compile(ready);
            }
        }
        if let Some((given, job)) = self.work.compile.take() {
            match job.result().map(Option::transpose) {
                Ok(Ok(None)) => self.work.compile = Some((given, job)),
                Ok(Ok(Some((config, snapshot)))) => {
                    self.work.compile_pace.end();
                    match self.put_in_place(config, snapshot) {
                        Ok(()) => self.is_in_place(given, shared),
                        Err(failure) => self.stays(&failure),
                    }
                }
                Ok(Err(error)) => self.stays(&error),
                Err(failure) => self.stays(&failure),
            }
        }
    }

    /// Says why a configuration is not put in place, and goes on with the present one.
    fn stays(&mut self, why: &dyn fmt::Display) {
        error!(
            event = "configuration_refused",
            "the configuration is unchanged: {why}"
        );
        if let Some(fleet) = &mut self.fleet {
            fleet.refuse(&why.to_string());
        }
        self.ask_backends(None);
    }

    /// Begins to look up how the addresses of a configuration are reached.
    fn begin_look_up(&self, given: &Config) -> Option<Background<io::Result<Found>>> {
        let query = self.next_hops.query(given);
        let begun = Background::begin("look up next hops", move || query.run());
        begun.map_err(|failure| error!("{failure}")).ok()
    }

    /// Takes note of how the addresses of the present configuration are reached.
    fn found_out(&mut self, found: Found, shared: &Shared) {
        let is_another = self.unreached.note(&self.given, &found);
        let fabric = self.plan.fabric().map(|interface| &*interface.name);
        self.unreached.note_across(&self.given, &found, fabric);
        shared.set_unreachable(self.unreached.hosts());
        let takes_others = self.plan.taken(&self.config) != self.taken;
        self.work.wants_compile |= is_another || takes_others;
        if found != self.found {
            self.work.wants_compile = true;
            let unresolved = unresolved(&self.given, &found);
            info!(of = found.len(), unresolved, "next hops changed");
            self.found = found;
            self.ask(false);
        }
    }

    /// Begins to compile a configuration that was read again, or the present one, with what is known beside it.
    fn begin_compile(&mut self, ready: Option<Loaded>) {
        self.work.compile_pace.begin();
        self.work.wants_compile = false;
        let (given, found) = match &ready {
            Some((given, found)) => (given, found),
            None => (&self.given, &self.found),
        };
        let known = self.next_hops.are_needed().then_some(found);
        let mut config = self.plan.complete(given, known);
        if let Some(fleet) = &self.fleet {
            fleet.apply(&mut config);
        }
        // In a fleet, all nodes go by one verdict, as long as there is one.
        if self.fleet.as_ref().is_none_or(Fleet::is_autonomous) {
            self.unreached.apply(&mut config);
            if let Some(prober) = &self.prober {
                prober.apply(&mut config);
            }
            self.passive.apply(&mut config);
        }
        if self.fleet.is_none() {
            self.slow_start.apply(self.clock(), &mut config);
        }
        let previous = Arc::clone(&self.snapshot);
        let compile = move || {
            let snapshot = config.snapshot(Some(&previous))?;
            Ok((config, snapshot))
        };
        match Background::begin("compile the configuration", compile) {
            Ok(job) => self.work.compile = Some((ready, job)),
            Err(failure) => self.stays(&failure),
        }
    }

    /// Takes note of what is in place now: `loaded`, or the present configuration with what is known.
    fn is_in_place(&mut self, loaded: Option<Loaded>, shared: &Shared) {
        shared.set_config(&self.config, &self.snapshot);
        if let Some((given, found)) = loaded {
            info!(
                generation = self.snapshot.generation(),
                event = "configuration_in_place",
                "configuration in place"
            );
            if let Some(fleet) = &mut self.fleet {
                fleet.is_in_place();
            }
            // What was warned of before is known.
            let known: BTreeSet<String> = self.given.warnings().into_iter().collect();
            let new = given.warnings().into_iter();
            let new = new.filter(|line| !known.contains(line));
            for line in given.losses(&self.given).into_iter().chain(new) {
                warn!("{line}");
            }
            if let Some(vips) = &mut self.vips {
                vips.set(&given);
            }
            self.given = given;
            self.found = found;
            // One that is on its way is of the former configuration.
            self.work.look_up = None;
            self.work.wants_look_up = true;
            self.ask(false);
        }
    }

    /// Follows the devices: what is gone is closed, and what is there again is opened.
    fn follow_devices(&mut self) {
        let mut is_another = false;
        for (place, turn) in self.plan.look() {
            is_another = true;
            let device = self.plan.name(place).to_owned();
            match turn {
                Turn::Gone => error!(
                    device,
                    "interface removed: no packets are received until an interface of this name is back"
                ),
                Turn::Back => info!(device, "back: reopening it"),
                Turn::Down => {
                    error!(
                        device,
                        "interface down or without carrier: no packets are received"
                    );
                }
                Turn::Up => info!(device, "up again"),
                Turn::Changed => info!(device, "MTU or MAC address changed"),
                Turn::Queues => info!(device, "queues changed: reopening it"),
            }
            match turn {
                Turn::Gone | Turn::Back => drop(self.to_reopen.insert(place)),
                Turn::Queues => {
                    self.plan.warn_of_queues();
                    self.to_reopen.insert(place);
                }
                Turn::Changed => {
                    // Longer packets may need longer chunks of memory, and a proxy's I/O knows its own MAC
                    // addresses.
                    let is_proxy = self.config.node.role == Role::Proxy;
                    if self.plan.needs_more_memory(place) || is_proxy {
                        self.to_reopen.insert(place);
                        // They also cross to workers that have no queue of this interface.
                        if shares(self.config.node.role, self.workers.len()) > 1 {
                            self.to_reopen
                                .extend(self.slots.iter().flatten().map(|slot| slot.0));
                        }
                    }
                }
                Turn::Down | Turn::Up => {}
            }
        }
        is_another |= !self.to_reopen.is_empty();
        self.reopen();
        self.attach_again();
        self.next_hops.set_fabric(&self.plan);
        self.work.wants_compile |= is_another;
    }

    /// Reopens the devices that are marked, and closes those that are gone.
    fn reopen(&mut self) {
        let places = std::mem::take(&mut self.to_reopen);
        if places.is_empty() {
            return;
        }
        let mut touched = BTreeSet::new();
        for (worker, slots) in self.workers.iter_mut().zip(&self.slots) {
            if !slots.iter().any(|(place, _)| places.contains(place)) {
                continue;
            }
            touched.extend(slots.iter().map(|&(place, _)| place));
            if let Err(failure) = worker.reopen(self.plan.queues(slots)) {
                let device = worker.names.join(", ");
                error!(device, "cannot be opened, will retry: {failure}");
                self.to_reopen.extend(&places);
            }
        }
        if let Err(failure) = sysctl::prepare(&self.plan, &self.config) {
            error!("{failure}");
        }
        for place in touched {
            // A program is of one interface, and those whose sockets alone are others stay attached.
            if places.contains(&place)
                && let Some(program) = self.programs.get_mut(place)
            {
                *program = None;
            }
            if let Err(failure) = self.start_again(place) {
                let device = self.plan.name(place).to_owned();
                error!(device, "no packets are received, will retry: {failure}");
                self.to_reopen.insert(place);
            }
        }
    }

    /// Has the packets of an interface that is there come to the workers' sockets.
    fn start_again(&mut self, place: usize) -> Result<(), Failure> {
        let role = self.config.node.role;
        let (Some(card), Some(program)) = (self.plan.card(place), self.programs.get_mut(place))
        else {
            return Ok(());
        };
        if let Some(program) = program {
            let name = program.interface().name.clone();
            for worker in &self.workers {
                for (queue, socket) in worker.sockets_of(&name) {
                    let set = program.set_socket(queue, socket);
                    set.map_err(Failure::failed)?;
                }
            }
            return Ok(());
        }
        let unserved = self
            .pins
            .as_ref()
            .map_or(Unserved::Pass, |_| Unserved::Drop);
        let mut new = card.load_program(role, unserved)?;
        let none = Vec::new();
        let taken = self.taken.get(place).unwrap_or(&none);
        let pins = self.pins.as_ref();
        start_program(&mut new, &self.workers, taken, pins).map_err(Failure::failed)?;
        *program = Some(new);
        info!(device = self.plan.name(place), "receiving packets");
        Ok(())
    }

    /// Attaches the programs again that somebody has taken from their interfaces.
    fn attach_again(&mut self) {
        for place in 0..self.programs.len() {
            let is_taken = self
                .plan
                .card(place)
                .is_some_and(|card| card.interface.program.is_none());
            if !is_taken || self.programs[place].is_none() {
                continue;
            }
            let device = self.plan.name(place).to_owned();
            // It may have been attached since it was looked at.
            if self.plan.look_for_program(place) {
                continue;
            }
            warn!(device, "the XDP program was detached: attaching it again");
            self.programs[place] = None;
            if let Err(failure) = self.start_again(place) {
                error!(device, "no packets are received, will retry: {failure}");
                self.to_reopen.insert(place);
            }
        }
    }

    /// Takes note of why packets do not come in: then the node is not ready, and announces nothing.
    fn look_at_trouble(&mut self, shared: &Shared) {
        let mut trouble = self.plan.troubles();
        let closed = self.to_reopen.iter().map(|&place| self.plan.name(place));
        for name in closed {
            if !trouble.iter().any(|known| known.starts_with(name)) {
                trouble.push(format!("{name} cannot be opened"));
            }
        }
        let foreign = self
            .plan
            .foreign_underlays(&self.given, self.options.announce.as_deref());
        trouble.extend(foreign.into_iter().map(|address| {
            format!("underlay {address} is no address of this machine (ip address add)")
        }));
        trouble.extend(self.announcer.as_ref().and_then(Announcer::trouble));
        if trouble != self.trouble {
            match trouble.is_empty() {
                true => info!(event = "ready", "ready again"),
                false => error!(why = trouble.join(", "), event = "not_ready", "not ready"),
            }
            self.trouble = trouble;
        }
        let mut all = self.trouble.clone();
        if self.first_round.is_some() {
            all.push("the first probes have not been answered".to_owned());
        }
        let stalled = self.stalled.iter().map(|(&place, &since)| {
            let names = self
                .workers
                .get(place)
                .map(|worker| worker.names.join(", "));
            (names.unwrap_or_default(), since)
        });
        shared.set_trouble(all, stalled.collect());
        self.announce();
    }

    /// Says how long the whole process was stalled, if it was: it was stopped, or had no memory or CPU.
    fn heed_stop(&mut self, waited: Duration) {
        if waited < STILL {
            return;
        }
        warn!(
            seconds = waited.as_secs_f64(),
            "this process was stalled: it was stopped, or got no memory or CPU"
        );
        self.workers.iter_mut().for_each(Worker::forgive);
        // The watchdog may have taken the interface down, and addresses go with that.
        if let Some(announcer) = &mut self.announcer {
            announcer.forget();
        }
        self.announce();
    }

    /// Checks that the workers make progress, and reports how long one did not.
    fn listen(&mut self, shared: &Shared) {
        let mut is_another = false;
        for (place, worker) in self.workers.iter_mut().enumerate() {
            let silence = worker.silence();
            let worker = worker.names.join(", ");
            match self.stalled.get(&place) {
                None if silence >= STILL => {
                    let seconds = silence.as_secs_f64();
                    error!(worker, seconds, event = "worker_stalled", "worker stalled");
                    self.stalled.insert(place, Instant::now() - silence);
                    is_another = true;
                }
                Some(since) if silence < STILL => {
                    let seconds = since.elapsed().as_secs_f64();
                    info!(
                        worker,
                        seconds,
                        event = "worker_running",
                        "worker running again"
                    );
                    self.stalled.remove(&place);
                    is_another = true;
                }
                _ => {}
            }
        }
        if is_another {
            self.look_at_trouble(shared);
        }
    }

    /// Goes on to announce VIPs once the first answers to probes are there.
    fn heed_first_round(&mut self, shared: &Shared) {
        let Some(end) = self.first_round else { return };
        let unknown = self.prober.as_ref().map_or(0, Prober::unknown);
        // What the answers say is in place before anything is announced.
        let is_working = self.work.is_behind();
        if (unknown > 0 || is_working) && Instant::now() < end {
            return;
        }
        if unknown > 0 {
            warn!(
                unknown,
                "not all backends have been probed yet: those are treated as healthy until then"
            );
        }
        self.first_round = None;
        self.look_at_trouble(shared);
    }

    /// Announces the VIPs that packets can come in for.
    fn announce(&mut self) {
        if let Some(announcer) = &mut self.announcer {
            let may = self.trouble.is_empty() && self.stalled.is_empty();
            match (may, self.first_round) {
                (true, None) => announcer.announce(&self.config),
                // A process that took over leaves what is announced until it knows better.
                (true, Some(_)) => {}
                (false, _) => announcer.withdraw(),
            }
        }
    }

    /// Reports backends that changed by their probes, and returns true if any did.
    fn heed_probes(&mut self, shared: &Shared) -> bool {
        let mut any = false;
        while let Some(change) = self.prober.as_mut().and_then(Prober::changed) {
            any = true;
            let address = SocketAddr::new(change.address, change.port);
            let probe = &change.probe;
            for name in &change.backends {
                let (pool, backend) = name;
                let rules = self.rules_by(pool, probe);
                match change.condition {
                    Condition::Healthy => {
                        info!(pool, backend, %address, probe, rules, event = "backend_healthy", "healthy");
                        self.sick.remove(name);
                    }
                    Condition::Unhealthy => {
                        let why = &change.why;
                        warn!(
                            pool, backend, %address, probe, rules, why, event = "backend_unhealthy", "unhealthy"
                        );
                        let why = format!(
                            "{pool}/{backend}: probe {probe} of rule {rules} at {address}: {why}"
                        );
                        self.sick.insert(name.clone(), why);
                    }
                }
            }
        }
        if any {
            shared.set_sick(self.sick.clone());
        }
        let trouble = self.prober.as_mut().and_then(Prober::take_trouble);
        if let Some(why) = trouble
            && self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN)
        {
            self.complained = Some(Instant::now());
            error!(
                why,
                event = "probes_not_sent",
                "probes cannot be sent: backends keep their state"
            );
        }
        any
    }

    /// The rules of a pool that go by a probe.
    fn rules_by(&self, pool: &str, probe: &str) -> String {
        let rules = self.given.rules.iter().filter(|rule| {
            let own = rule.probe.and_then(|probe| self.given.probes.get(probe));
            let of = self.given.pools.get(rule.pool);
            own.is_some_and(|own| own.name == probe) && of.is_some_and(|of| of.name == pool)
        });
        let names: Vec<&str> = rules.map(|rule| rule.name.as_str()).collect();
        names.join(", ")
    }

    /// The same by their traffic.
    fn heed_traffic(&mut self, shared: &Shared) -> bool {
        let Some(counters) = shared.backend_counters() else {
            return false;
        };
        let now = self.clock();
        let of = |pool, member| counters.get(&(pool, member)).copied().unwrap_or_default();
        let turned = self.passive.note(now, &self.config, of);
        for change in &turned {
            let (pool, backend) = (&change.pool, &change.backend);
            match change.condition {
                Condition::Healthy => info!(
                    pool,
                    backend,
                    event = "backend_on_trial",
                    "passive health: gets new flows again, on trial"
                ),
                Condition::Unhealthy => warn!(
                    pool,
                    backend,
                    event = "backend_suspended",
                    "passive health: accepts no connections, gets no new flows"
                ),
            }
        }
        !turned.is_empty()
    }

    fn clock(&self) -> slb_core::Instant {
        let nanos = u64::try_from(self.begin.elapsed().as_nanos());
        slb_core::Instant::from_nanos(nanos.unwrap_or(u64::MAX))
    }

    fn ask(&self, all: bool) {
        if let Err(error) = self.next_hops.ask(&self.found, all) {
            warn!("the kernel does not resolve next hops: {error}");
        }
    }

    /// Puts a configuration in place everywhere: no packet is between two.
    fn put_in_place(
        &mut self,
        config: Config,
        snapshot: Arc<Snapshot<'static>>,
    ) -> Result<(), Failure> {
        expect_shareable(&config, &snapshot, self.workers.len())?;
        let taken = self.plan.taken(&config);
        // What is no longer taken goes to the kernel before the workers do not know it any more,
        // and what is new comes when they do.
        let both = |(old, new): (&Vec<(IpAddr, Take)>, &Vec<_>)| {
            let new: BTreeSet<_> = new
                .iter()
                .map(|&(address, take)| (address, take as u32))
                .collect();
            let stays = |&&(address, take): &&(IpAddr, Take)| new.contains(&(address, take as u32));
            old.iter().filter(stays).copied().collect::<Vec<_>>()
        };
        let both: Vec<_> = self.taken.iter().zip(&taken).map(both).collect();
        self.take(&both)?;
        let generation = snapshot.generation();
        let is_larger =
            snapshot.rule_slots() > self.counters.0 || snapshot.backend_slots() > self.counters.1;
        if is_larger {
            self.counters = CounterMemory::size_for(&snapshot);
        }
        let shares = shares(config.node.role, self.workers.len());
        let limits = Some(limits_of(&config)).filter(|limits| self.limits != Some(*limits));
        for worker in &self.workers {
            let new = limits
                .map(|_| Limits::of(&config, secret()?, shares))
                .transpose()?;
            let next = Next {
                snapshot: Arc::clone(&snapshot),
                limits: new,
                counters: is_larger.then(|| CounterMemory::new(&snapshot)),
            };
            worker.mailbox.install(next, generation);
        }
        self.limits = limits.or(self.limits);
        for worker in &self.workers {
            if !worker.mailbox.wait_for(generation) {
                // The next snapshot replaces one that was not taken, and brings counters and limits again.
                self.counters = (0, 0);
                self.limits = None;
                warn!(
                    worker = worker.names.join(", "),
                    "worker is slow to install the configuration"
                );
            }
        }
        self.take(&taken)?;
        self.taken = taken;
        self.snapshot = snapshot;
        self.config = config;
        self.announce();
        Ok(())
    }

    fn take(&mut self, taken: &[Vec<(IpAddr, Take)>]) -> Result<(), Failure> {
        let programs = self.programs.iter_mut().zip(taken);
        let attached = programs.filter_map(|(program, taken)| Some((program.as_mut()?, taken)));
        for (program, taken) in attached {
            let set = program.set_addresses(taken.iter().copied());
            set.map_err(Failure::failed)?;
        }
        Ok(())
    }

    /// Goes on for a while, so that whoever sends here can send elsewhere; another signal ends it.
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

/// Among how many workers a role's connections are divided: a mux's workers have their own.
pub(super) fn shares(role: Role, workers: usize) -> u32 {
    match role {
        Role::Mux => 1,
        Role::Host | Role::Proxy => u32::try_from(workers).unwrap_or(u32::MAX).max(1),
    }
}

/// Fails where several workers cannot share the connections of a configuration.
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
    Err(Failure::usage(format!(
        "--workers {workers}: rule {:?} has source_nat, which shows servers one address for all clients: expected one \
         worker, or no source_nat",
        name.unwrap_or_default()
    )))
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
