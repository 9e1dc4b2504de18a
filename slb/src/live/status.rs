//! The status socket: a client gets one JSON document about the running process, or the answer to a
//! [request](super::request).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use slb_control::config::Backend;
use slb_control::probe::{BackendName, ProbeTallies, VipResults};
use slb_control::{Config, Role};
use slb_core::snapshot::Snapshot;
use slb_core::state::Refusal;
use slb_core::stats::BackendCounters;
use slb_fleet::node::Standing;
use slb_fleet::object::Digest;
use slb_io_pcap::CaptureStats;
use tracing::warn;

use super::control::STILL;
use super::follow::standing_json;
use super::look::{DROPS, Dropped, Pages, Task, Wanted};
use super::measured;
use super::next_hops::destination;
use super::request;
use super::state::StateStatus;
use super::tell::Tell;
use super::worker::{Counted, Letterbox, Worker};
use crate::Failure;
use crate::report::Report;
use crate::report::metrics::{Family, one};
use crate::report::totals::Totals;

/// The interval of checks that the socket's name exists.
const LOOK: Duration = Duration::from_secs(2);
/// The time that a client may take to read.
const PATIENCE: Duration = Duration::from_secs(1);
/// The maximum number of simultaneous clients.
const MOST_CLIENTS: usize = 32;

/// The places where the socket of a role may be, unless it is said: that of a process started by hand, and that
/// of the packaged service.
pub(crate) fn default_paths(role: &str) -> [PathBuf; 2] {
    let of_service = format!("/run/slb/slb-{role}.sock");
    [default_path(role), PathBuf::from(of_service)]
}

/// Where the socket of a role is, unless it is said: in systemd's runtime directory, if it gave one.
fn default_path(role: &str) -> PathBuf {
    let directory = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let directory = directory.unwrap_or_else(|| PathBuf::from("/run"));
    directory.join(format!("slb-{role}.sock"))
}

/// The data for the status.
pub(super) struct Shared {
    state: Mutex<State>,
    workers: Vec<(Arc<Letterbox>, Vec<String>, Option<usize>)>,
    /// The queue of look-ups for each worker.
    tasks: Vec<Sender<Task>>,
    /// True while a capture runs.
    pub(super) is_captured: AtomicBool,
    begin: Instant,
    started: SystemTime,
    /// Counts of probes of backends.
    probes: Option<ProbeTallies>,
    /// Results of calls of VIPs (`--probe-vips`).
    vips: Option<VipResults>,
}

/// The state of the control thread.
struct State {
    config: Arc<Config>,
    /// The snapshot compiled from the configuration.
    compiled: Arc<Snapshot<'static>>,
    /// Hosts that no packet can reach.
    unreachable: BTreeSet<IpAddr>,
    /// The reasons why the process is not ready.
    trouble: Vec<String>,
    /// The stalled workers, and the time since which they are stalled.
    stalled: Vec<(String, Instant)>,
    /// The time of the control thread's last progress.
    alive: Instant,
    /// The reasons why backends are unhealthy.
    sick: BTreeMap<BackendName, String>,
    /// State taken over, and the last checkpoint (`--state`).
    kept: Option<StateStatus>,
    /// The node's standing in the fleet (`--fleet`).
    fleet: Option<Standing>,
    /// The snapshot in place (`--fleet`).
    snapshot: Option<Arc<Snapshot<'static>>>,
    /// The digest of its tables, and the generation that it is of.
    tables: Option<(u64, String)>,
}

impl State {
    /// The digest of all rules' tables: the same on all muxes that choose alike.
    fn tables(&mut self) -> Option<String> {
        let snapshot = self.snapshot.as_deref()?;
        let generation = snapshot.generation();
        let known = self.tables.as_ref();
        if let Some((_, tables)) = known.filter(|(of, _)| *of == generation) {
            return Some(tables.clone());
        }
        let rules = (0..).take_while(|&rule| snapshot.rule(rule).is_some());
        let slots = rules.flat_map(|rule| snapshot.slots(rule));
        let places = slots.map(|id| {
            let place = id.and_then(|id| snapshot.backend_index(id));
            place.unwrap_or(u32::MAX)
        });
        let bytes: Vec<u8> = places.flat_map(u32::to_be_bytes).collect();
        let tables = Digest::of(&bytes).to_string();
        self.tables = Some((generation, tables.clone()));
        Some(tables)
    }

    /// Why it is not ready, where it is not.
    fn trouble(&self) -> Vec<String> {
        let stalled = self.stalled.iter().map(|(worker, since)| {
            let seconds = since.elapsed().as_secs_f64();
            format!("the worker of {worker} has been stalled for {seconds:.1} s")
        });
        // Requests wait while the whole process is stopped, and are answered when it goes on.
        let silence = self.alive.elapsed();
        let control = (silence >= STILL).then(|| {
            let seconds = silence.as_secs_f64();
            format!("the control thread has been stalled for {seconds:.1} s")
        });
        let all = self.trouble.iter().cloned().chain(stalled);
        all.chain(control).collect()
    }

    /// The backends whose hosts no packet can reach, by pool and name.
    fn unreachable(&self) -> BTreeSet<(&str, &str)> {
        let pools = self.config.pools.iter();
        let backends = pools.flat_map(|pool| {
            let names = pool.backends.iter().map(|backend| (&*pool.name, backend));
            names.collect::<Vec<_>>()
        });
        let role = self.config.node.role;
        let is_lost = |backend: &Backend| self.unreachable.contains(&destination(role, backend));
        let lost = backends.filter(|(_, backend)| is_lost(backend));
        lost.map(|(pool, backend)| (pool, &*backend.name)).collect()
    }
}

impl Shared {
    pub(super) fn new(
        (config, snapshot): (&Config, &Arc<Snapshot<'static>>),
        workers: &[Worker],
        begin: Instant,
        (probes, vips): (Option<ProbeTallies>, Option<VipResults>),
    ) -> Arc<Self> {
        let one = |worker: &Worker| {
            (
                Arc::clone(&worker.mailbox),
                worker.names.clone(),
                worker.cpu,
            )
        };
        Arc::new(Self {
            state: Mutex::new(State {
                config: Arc::new(config.clone()),
                compiled: Arc::clone(snapshot),
                unreachable: BTreeSet::new(),
                trouble: Vec::new(),
                stalled: Vec::new(),
                alive: Instant::now(),
                sick: BTreeMap::new(),
                kept: None,
                fleet: None,
                snapshot: None,
                tables: None,
            }),
            workers: workers.iter().map(one).collect(),
            tasks: workers.iter().map(|worker| worker.tasks.clone()).collect(),
            is_captured: AtomicBool::new(false),
            begin,
            started: SystemTime::now()
                .checked_sub(begin.elapsed())
                .unwrap_or(SystemTime::UNIX_EPOCH),
            probes,
            vips,
        })
    }

    pub(super) fn set_config(&self, config: &Config, snapshot: &Arc<Snapshot<'static>>) {
        let config = Arc::new(config.clone());
        let mut state = self.state();
        (state.config, state.compiled) = (config, Arc::clone(snapshot));
    }

    pub(super) fn set_unreachable(&self, hosts: BTreeSet<IpAddr>) {
        self.state().unreachable = hosts;
    }

    pub(super) fn set_trouble(&self, trouble: Vec<String>, stalled: Vec<(String, Instant)>) {
        let mut state = self.state();
        (state.trouble, state.stalled) = (trouble, stalled);
    }

    /// Takes note that the control thread moves.
    pub(super) fn note_alive(&self) {
        self.state().alive = Instant::now();
    }

    pub(super) fn set_sick(&self, sick: BTreeMap<BackendName, String>) {
        self.state().sick = sick;
    }

    pub(super) fn set_fleet(&self, standing: Standing, snapshot: &Arc<Snapshot<'static>>) {
        let mut state = self.state();
        state.fleet = Some(standing);
        state.snapshot = Some(Arc::clone(snapshot));
    }

    pub(super) fn set_state(&self, kept: &StateStatus) {
        self.state().kept = Some(kept.clone());
    }

    /// Returns the installed configuration.
    pub(super) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.state().config)
    }

    /// The configuration that is in place, and what was made of it.
    pub(super) fn in_place(&self) -> (Arc<Config>, Arc<Snapshot<'static>>) {
        let state = self.state();
        (Arc::clone(&state.config), Arc::clone(&state.compiled))
    }

    /// Returns the number of workers.
    pub(super) fn workers(&self) -> usize {
        self.tasks.len()
    }

    /// Gives a worker a task. One that has ended lets it go, which whoever waits for an answer is told by.
    pub(super) fn assign(&self, worker: usize, task: Task) {
        let _ = self.tasks[worker].send(task);
        self.workers[worker].0.nudge();
    }

    /// The searches in all workers' tables, page by page.
    pub(super) fn pages(&self, wanted: &Wanted, has_records: bool) -> Pages {
        Pages::of(self.workers(), wanted, has_records, |worker, task| {
            self.assign(worker, task);
        })
    }

    /// The last dropped packets of all workers; `None` if one does not answer.
    pub(super) fn drops(&self) -> Option<Vec<Dropped>> {
        let mut all = Vec::new();
        for worker in 0..self.workers() {
            let (tell, told) = sync_channel(1);
            self.assign(worker, Task::Drops(Vec::with_capacity(DROPS), tell));
            all.extend(told.recv_timeout(PATIENCE).ok()?);
        }
        Some(all)
    }

    /// Why it is not ready, where it is not: also how long workers have stood still. Waits for no worker.
    pub(super) fn trouble(&self) -> Vec<String> {
        self.state().trouble()
    }

    /// Collects the counters of all workers; `None` if one does not answer.
    fn count(&self) -> Option<Vec<Counted>> {
        self.workers
            .iter()
            .map(|(mailbox, ..)| mailbox.count())
            .collect()
    }

    /// Collects the counters of all workers, and the state with the configuration that they belong to. Counters are
    /// told apart by their places in a configuration, so during a reload this waits until the state names the
    /// configuration that the workers have in place. `None` if a worker does not answer.
    fn count_in_place(&self) -> Option<(Vec<Counted>, MutexGuard<'_, State>)> {
        let begin = Instant::now();
        loop {
            let counted = self.count()?;
            let state = self.state();
            let generation = state.compiled.generation();
            if counted
                .iter()
                .all(|one| one.tally.generation() == generation)
            {
                return Some((counted, state));
            }
            drop(state);
            if begin.elapsed() > PATIENCE {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns true if all workers answer.
    pub(super) fn is_answered(&self) -> bool {
        self.count().is_some()
    }

    /// Returns the counters of backends, by the indexes of pool and backend; `None` if a worker
    /// does not answer, or the configuration is just changing.
    pub(super) fn backend_counters(&self) -> Option<HashMap<(usize, usize), BackendCounters>> {
        let total = self.count()?.into_iter().reduce(Counted::and)?;
        Some(total.tally.by_backend().collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters that show trouble; `None` if a worker does not answer.
    pub(super) fn totals(&self) -> Option<Totals> {
        let (counted, state) = self.count_in_place()?;
        let total = counted.into_iter().reduce(Counted::and)?;
        let config = Arc::clone(&state.config);
        drop(state);
        let none = CaptureStats::default();
        let report = Report::new(&config, total.tally, &none, self.begin.elapsed());
        Some(report.totals())
    }

    /// The document; `None` if a worker does not answer.
    pub(super) fn document(&self) -> Option<Value> {
        let (counted, mut state) = self.count_in_place()?;
        let one = |(counted, (_, names, cpu)): (&Counted, &(_, Vec<String>, Option<usize>))| json!({ "queues": names, "cpu": cpu, "io": counted.io_json() });
        let workers: Vec<Value> = counted.iter().zip(&self.workers).map(one).collect();
        let total = counted.into_iter().reduce(Counted::and)?;
        let (io, generation) = (total.io_json(), total.tally.generation());
        let tables = state.tables();
        let config = &*state.config;
        let none = CaptureStats::default();
        let report = Report::new(config, total.tally, &none, self.begin.elapsed());
        let mut document = report.json();
        mark(&mut document, &state.unreachable(), &state.sick);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let more = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "role": config.node.role.name(),
            "zone": config.node.zone,
            "frontends": frontends(config),
            "generation": generation,
            "uptime": self.begin.elapsed().as_secs_f64(),
            "time": now.unwrap_or_default().as_secs_f64(),
            "io": io,
            "trouble": state.trouble(),
            "workers": workers,
            "state": state.kept.as_ref().map(kept_json),
            "fleet": state.fleet.as_ref().map(|standing| standing_json(standing, tables.as_deref())),
        });
        if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
            document.extend(more);
        }
        Some(document)
    }

    /// Returns the counters and states of the document as metrics.
    pub(super) fn families(&self) -> Option<Vec<Family>> {
        let (counted, state) = self.count_in_place()?;
        let total = counted.into_iter().reduce(Counted::and)?;
        let sample = |&(kind, value): &(&str, u64)| (vec![("kind", kind.to_owned())], value as f64);
        let (frames, packets): (Vec<_>, Vec<_>) = total
            .io
            .iter()
            .partition(|(name, _)| name.starts_with("frames"));
        let frames = frames
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("frames_")?, *value)));
        let frames: Vec<(&str, u64)> = frames.collect();
        let work = [(
            "slb_bursts",
            "Bursts with at least one frame",
            total.work.bursts,
        )];
        let generation = total.tally.generation();
        let config = &*state.config;
        let none = CaptureStats::default();
        let report = Report::new(config, total.tally, &none, self.begin.elapsed());
        let mut families = report.families();
        families.extend([
            Family::counter(
                "slb_io_packets",
                "Frames, by their fate at the devices",
                packets.iter().map(sample).collect(),
            ),
            Family::gauge(
                "slb_io_frames",
                "Frames of memory, by their holder",
                frames.iter().map(sample).collect(),
            ),
            Family::counter(
                "slb_busy_seconds",
                "Time that all workers spent on bursts with at least one frame",
                vec![(Vec::new(), total.work.busy.as_secs_f64())],
            ),
            Family::gauge(
                "slb_configuration_generation",
                "Number of installed configurations, also by health",
                one(generation),
            ),
            Family::gauge(
                "slb_uptime_seconds",
                "Time since the start",
                one(self.begin.elapsed().as_secs()),
            ),
            Family::gauge(
                "slb_workers",
                "Threads that move packets",
                one(self.workers.len() as u64),
            ),
            measured::of_rules(config),
        ]);
        families.extend(measured::of_process(config.node.role.name(), self.started));
        if let Some(probes) = &self.probes {
            families.extend(measured::of_probes(config, probes));
        }
        if let Some(vips) = &self.vips {
            families.extend(measured::of_vips(vips));
        }
        if let Some(kept) = &state.kept {
            families.extend(kept_families(kept));
        }
        if let Some(fleet) = &state.fleet {
            let away = fleet.away.map_or(0.0, |away| away.as_secs_f64());
            families.extend([
                Family::gauge("slb_fleet_generation", "The generation of the fleet that packets are served by", one(fleet.live)),
                Family::gauge("slb_fleet_refused", "1 if the node refuses the fleet's latest generation", one(u64::from(fleet.refused.is_some()))),
                Family::gauge("slb_fleet_store_away_seconds", "Time since the fleet's store last answered", vec![(Vec::new(), away)]),
                Family::gauge("slb_fleet_autonomous", "1 if backends that fail here are taken out, since the fleet's store is unreachable", one(u64::from(fleet.is_autonomous()))),
            ]);
        }
        families.extend(work.map(|(name, help, value)| Family::counter(name, help, one(value))));
        Some(families)
    }

    /// The frontends whose rules have no backend that takes new flows.
    pub(super) fn unavailable(&self) -> Vec<String> {
        let state = self.state();
        let down = availability(&state.config).filter(|(_, is_available)| !is_available);
        down.map(|(name, _)| name.to_owned()).collect()
    }
}

/// The frontends as JSON, each with its zones and its availability.
fn frontends(config: &Config) -> Vec<Value> {
    let is_mux = config.node.role == Role::Mux;
    let all = config.frontends.iter().enumerate();
    let all = all.map(|(place, frontend)| {
        json!({
            "frontend": frontend.name,
            "address": frontend.address,
            "zones": frontend.zones,
            "zonal": frontend.zone().is_some(),
            "of_this_mux": is_mux.then(|| config.announces(frontend)),
            "available": config.is_available(place),
        })
    });
    all.collect()
}

/// The state taken over from an earlier process, and the age of the last checkpoint, as JSON.
fn kept_json(kept: &StateStatus) -> Value {
    let refused = Refusal::ALL
        .iter()
        .map(|&why| (why.name().to_owned(), kept.imported.refused(why).into()));
    let refused: serde_json::Map<String, Value> = refused.collect();
    let checkpoint = kept.checkpoint.map(|(begin, took, bytes)| {
        json!({
            "age": begin.elapsed().as_secs_f64(),
            "seconds": took.as_secs_f64(),
            "bytes": bytes,
        })
    });
    json!({
        "imported": kept.imported.taken,
        "age": kept.origin.map(|(age, _)| age.as_secs_f64()),
        "is_checkpoint": kept.origin.map(|(_, is_checkpoint)| is_checkpoint),
        "refused": refused,
        "checkpoint": checkpoint,
        "trouble": kept.trouble,
    })
}

/// Returns the status of kept state as metrics.
fn kept_families(kept: &StateStatus) -> Vec<Family> {
    let refused = Refusal::ALL.iter().map(|&why| {
        let count = kept.imported.refused(why) as f64;
        (vec![("reason", why.name().to_owned())], count)
    });
    let mut families = vec![
        Family::gauge(
            "slb_state_imported",
            "Connections or flows taken over from an earlier process",
            one(kept.imported.taken),
        ),
        Family::gauge(
            "slb_state_refused",
            "Records of an earlier process that were refused",
            refused.collect(),
        ),
    ];
    if let Some((begin, took, bytes)) = kept.checkpoint {
        let seconds = |time: Duration| vec![(Vec::new(), time.as_secs_f64())];
        families.extend([
            Family::gauge(
                "slb_state_checkpoint_age_seconds",
                "Time since the last checkpoint began",
                seconds(begin.elapsed()),
            ),
            Family::gauge(
                "slb_state_checkpoint_seconds",
                "Time that the last checkpoint took",
                seconds(took),
            ),
            Family::gauge(
                "slb_state_checkpoint_bytes",
                "Bytes of the last checkpoint",
                one(bytes),
            ),
        ]);
    }
    families
}

/// Says in a document which backends no packet can reach, and why others are not well.
fn mark(
    document: &mut Value,
    unreachable: &BTreeSet<(&str, &str)>,
    sick: &BTreeMap<BackendName, String>,
) {
    let backends = document.get_mut("backends").and_then(Value::as_array_mut);
    for backend in backends.into_iter().flatten() {
        let name = |key: &str| backend.get(key).and_then(Value::as_str).unwrap_or_default();
        let (pool, own) = (name("pool").to_owned(), name("backend").to_owned());
        if unreachable.contains(&(&*pool, &*own)) {
            backend["state"] = "unreachable".into();
        } else if let Some(why) = sick.get(&(pool, own)) {
            backend["why"] = why.as_str().into();
        }
    }
}

/// For each frontend with rules: true if one of these has a backend that takes new flows.
fn availability(config: &Config) -> impl Iterator<Item = (&str, bool)> {
    let frontends = config.frontends.iter().enumerate();
    frontends
        .filter_map(|(place, frontend)| Some((frontend.name.as_str(), config.is_available(place)?)))
}

impl Counted {
    fn io_json(&self) -> Value {
        let counters = self.io.iter();
        counters
            .map(|&(name, count)| (name.to_owned(), Value::from(count)))
            .collect()
    }
}

/// The socket; its file goes with it.
///
/// A name that was removed, by whoever tidies up, is made again: a process whose socket is gone cannot be asked.
pub(crate) struct Place {
    listener: UnixListener,
    name: Name,
}

impl Place {
    /// Opens the socket. Where it was asked for it has to be had; else it may be missing.
    pub(crate) fn open(asked: Option<&Path>, role: &str) -> Result<Option<Self>, Failure> {
        let path = asked.map_or_else(|| default_path(role), Path::to_owned);
        match listen(&path) {
            Ok((listener, identity)) => {
                let name = Name { path, identity };
                Ok(Some(Self { listener, name }))
            }
            Err(error) => {
                let said = format!("no status at {}: {error}", path.display());
                match asked {
                    Some(_) => Err(Failure::failed(said)),
                    None => {
                        warn!("{said}");
                        Ok(None)
                    }
                }
            }
        }
    }

    /// Answers in threads of its own: clients that do not read do not block others. Returns the name of the socket, to
    /// be ended with the process.
    pub(crate) fn serve(self, told: Arc<impl Tell>) -> Named {
        let told: Arc<dyn Tell> = told;
        let Self { mut listener, name } = self;
        let named = Named(Arc::new(Mutex::new(Some(name))));
        let own = Named(Arc::clone(&named.0));
        thread::spawn(move || {
            let clients = Arc::new(Clients::default());
            let mut looked = Instant::now();
            let mut said = String::new();
            loop {
                let mut fds = [PollFd::new(&listener, PollFlags::IN)];
                let most = Timespec {
                    tv_sec: LOOK.as_secs() as i64,
                    tv_nsec: 0,
                };
                match poll(&mut fds, Some(&most)) {
                    Ok(0) => {}
                    Ok(_) => match listener.accept() {
                        Ok((client, _)) => clients.answer(client, &told),
                        // Too many open files, say: the next one would fail at once.
                        Err(_) => thread::sleep(Duration::from_millis(100)),
                    },
                    Err(_) => thread::sleep(Duration::from_millis(100)),
                }
                if looked.elapsed() < LOOK {
                    continue;
                }
                looked = Instant::now();
                match own.renew() {
                    Ok(Some(new)) => {
                        listener = new;
                        said.clear();
                    }
                    Ok(None) => {}
                    // What is the same again is not said again.
                    Err(error) if error == said => {}
                    Err(error) => {
                        warn!("{error}");
                        said = error;
                    }
                }
                if own.name().is_none() {
                    return;
                }
            }
        });
        named
    }
}

/// The name of a socket that is served, until it [ends](Self::end).
pub(crate) struct Named(Arc<Mutex<Option<Name>>>);

impl Named {
    fn name(&self) -> MutexGuard<'_, Option<Name>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens anew where the name is gone; `None` if it is there, whoever's file that is.
    fn renew(&self) -> Result<Option<UnixListener>, String> {
        let mut name = self.name();
        let Some(own) = name.as_mut().filter(|own| own.is_gone()) else {
            return Ok(None);
        };
        let path = own.path.display();
        let (listener, identity) = listen(&own.path)
            .map_err(|error| format!("the status socket {path} was removed: no status: {error}"))?;
        own.identity = identity;
        warn!("the status socket {path} was removed: made again");
        Ok(Some(listener))
    }

    /// Removes the name, which is made no more.
    pub(crate) fn end(self) {
        *self.name() = None;
    }
}

/// Clients that are being answered.
#[derive(Default)]
struct Clients {
    /// Each with its number, in the order in which they came.
    present: Mutex<VecDeque<(u64, UnixStream)>>,
}

impl Clients {
    /// Answers a client in a thread of its own. Where there are too many clients already, the one that has
    /// taken longest goes.
    fn answer(self: &Arc<Self>, client: UnixStream, told: &Arc<dyn Tell>) {
        let Ok(own) = client.try_clone() else { return };
        let number = {
            let mut present = self.present();
            if present.len() >= MOST_CLIENTS
                && let Some((_, oldest)) = present.pop_front()
            {
                let _ = oldest.shutdown(Shutdown::Both);
            }
            let number = present.back().map_or(0, |(last, _)| last + 1);
            present.push_back((number, own));
            number
        };
        let (clients, told) = (Arc::clone(self), Arc::clone(told));
        let thread = thread::Builder::new().name("slb status".to_owned());
        let started = thread.spawn(move || {
            let _: io::Result<()> = answer(&client, &*told);
            clients.present().retain(|(other, _)| *other != number);
        });
        if started.is_err() {
            self.present().retain(|(other, _)| *other != number);
        }
    }

    fn present(&self) -> MutexGuard<'_, VecDeque<(u64, UnixStream)>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a socket in the file system. Dropped, it removes the name, unless another file has it by then.
pub(crate) struct Name {
    path: PathBuf,
    /// The device and the inode.
    identity: (u64, u64),
}

impl Name {
    fn is_gone(&self) -> bool {
        let now = fs::symlink_metadata(&self.path);
        now.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path);
        if now.is_ok_and(|now| (now.dev(), now.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn answer(mut client: &UnixStream, told: &dyn Tell) -> io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    if let Some(asked) = request::read(client)? {
        return request::answer(&asked, client, told);
    }
    if let Ok(document) = told.status() {
        client.write_all(document.to_string().as_bytes())?;
    }
    Ok(())
}

/// A directory beside a path that other users cannot enter; removed when dropped, with its
/// contents.
struct Private(PathBuf);

impl Private {
    fn beside(path: &Path) -> io::Result<Self> {
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        let directory = directory.join(format!(".slb-{}", std::process::id()));
        // One of a process of the same number that was killed.
        let _ = fs::remove_dir_all(&directory);
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Self(directory))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Listens at a path, for this user only; also returns the device and the inode of the socket. A stale socket at the
/// path is replaced, and nothing else.
///
/// The socket is made in a private directory and gets its name last: whoever can see it finds it listening,
/// and with its final mode.
fn listen(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let private = Private::beside(path)?;
    let new = private.0.join("s");
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    match fs::hard_link(&new, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            expect_stale(path)?;
            let old = private.0.join("old");
            fs::rename(path, &old)?;
            // Of two that start at once, one may have moved away what the other has just put there.
            if let Err(error) = expect_stale(&old) {
                let _ = fs::hard_link(&old, path);
                return Err(error);
            }
            fs::hard_link(&new, path)?;
        }
        linked => linked?,
    }
    let metadata = fs::symlink_metadata(&new)?;
    Ok((listener, (metadata.dev(), metadata.ino())))
}

/// Fails unless a path is a stale socket: one without a listener.
fn expect_stale(path: &Path) -> io::Result<()> {
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return refused("a file that is no socket is there, and stays: expected a path of its own");
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) => refused("a running process answers there: expected a path of its own"),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("there is a socket, and it is not known whether it is in use: {error}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Arc<Shared> {
        let text = include_str!("../../../examples/web.toml");
        let config = Config::parse("web.toml", text).expect("a good configuration");
        let snapshot = config.snapshot(None).expect("it compiles");
        Shared::new((&config, &snapshot), &[], Instant::now(), (None, None))
    }

    /// Asks a process at a socket for its configuration: without workers it has no status to tell.
    fn asked(path: &Path) -> Option<String> {
        let mut stream = UnixStream::connect(path).ok()?;
        stream.write_all(b"{\"ask\":\"config\"}\n").ok()?;
        let mut said = String::new();
        io::Read::read_to_string(&mut stream, &mut said).ok()?;
        Some(said)
    }

    #[track_caller]
    fn wait_until(mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < end, "waited in vain");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_socket_that_was_removed_is_made_again_and_anothers_file_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = folder.path().join("run");
        fs::create_dir(&directory).expect("a directory");
        let path = directory.join("sock");
        let place = || Place::open(Some(&path), "mux").expect("a socket");
        let named = place().expect("it was asked for").serve(shared());
        let is_answered = || asked(&path).is_some_and(|said| said.contains("web.toml"));
        wait_until(is_answered);
        // More than once, and with the directory around it.
        for _ in 0..2 {
            fs::remove_file(&path).expect("it is there");
            assert!(asked(&path).is_none());
            wait_until(is_answered);
        }
        fs::remove_dir_all(&directory).expect("it is there");
        fs::create_dir(&directory).expect("a directory");
        wait_until(is_answered);
        let mode = fs::metadata(&path).expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);

        // Another's: neither replaced nor removed in the end.
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, "another's").expect("it can be written");
        thread::sleep(LOOK + LOOK / 2);
        named.end();
        assert_eq!(fs::read(&path).expect("it is there"), b"another's");

        // One that has ended makes none again.
        fs::remove_file(&path).expect("it is there");
        let named = place().expect("it was asked for").serve(shared());
        wait_until(is_answered);
        named.end();
        thread::sleep(LOOK + LOOK / 2);
        assert!(fs::symlink_metadata(&path).is_err());
    }

    #[test]
    fn a_process_that_was_stopped_is_not_ready_until_it_moves() {
        let shared = shared();
        assert_eq!(shared.trouble(), [""; 0]);
        let stopped = Instant::now().checked_sub(STILL + Duration::from_secs(1));
        shared.state().alive = stopped.expect("the machine runs for longer");
        let trouble = shared.trouble().join(", ");
        assert!(
            trouble.starts_with("the control thread has been stalled for 3."),
            "{trouble}"
        );
        shared.note_alive();
        assert_eq!(shared.trouble(), [""; 0]);
    }
}
