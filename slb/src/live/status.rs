//! The status of the running process: the data that it is told from, as a [document] for a client of the
//! [socket], and as [families] of metrics.

mod document;
mod families;
mod socket;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use slb_control::Config;
use slb_control::probe::{BackendName, LateProbes, ProbeTallies, VipResults};
use slb_core::snapshot::Snapshot;
use slb_core::stats::BackendCounters;
use slb_fleet::node::Standing;
use slb_fleet::object::Digest;
use slb_io_pcap::CaptureStats;

use super::control::STILL;
use super::look::{DROPS, Dropped, Pages, Task, Wanted};
use super::state::StateStatus;
use super::worker::{Counted, Letterbox, Worker};
use crate::report::Report;
use crate::report::totals::Totals;

pub(super) use self::socket::Writer;
pub(crate) use self::socket::{Place, default_paths};

/// The time that a client may take to read.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// Late probes, and the reason; `None` if all are in time.
    late: Option<(LateProbes, String)>,
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
    /// Returns the digest of all rules' tables, which is equal on all muxes that choose alike.
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

    /// Returns the reasons why the process is not ready.
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
                late: None,
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

    /// Records that the control thread makes progress.
    pub(super) fn note_alive(&self) {
        self.state().alive = Instant::now();
    }

    pub(super) fn set_sick(&self, sick: BTreeMap<BackendName, String>) {
        self.state().sick = sick;
    }

    pub(super) fn set_late(&self, late: Option<(LateProbes, String)>) {
        self.state().late = late;
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

    /// Returns the installed configuration, and the snapshot compiled from it.
    pub(super) fn in_place(&self) -> (Arc<Config>, Arc<Snapshot<'static>>) {
        let state = self.state();
        (Arc::clone(&state.config), Arc::clone(&state.compiled))
    }

    /// Returns the number of workers.
    pub(super) fn workers(&self) -> usize {
        self.tasks.len()
    }

    /// Gives a worker a task. A worker that has ended drops the task, which tells the requester.
    pub(super) fn assign(&self, worker: usize, task: Task) {
        let _ = self.tasks[worker].send(task);
        self.workers[worker].0.nudge();
    }

    /// Searches all workers' tables, page by page.
    pub(super) fn pages(&self, wanted: &Wanted, has_records: bool) -> Pages {
        Pages::of(self.workers(), wanted, has_records, |worker, task| {
            self.assign(worker, task);
        })
    }

    /// Returns the last dropped packets of all workers; `None` if one does not answer.
    pub(super) fn drops(&self) -> Option<Vec<Dropped>> {
        let mut all = Vec::new();
        for worker in 0..self.workers() {
            let (tell, told) = sync_channel(1);
            self.assign(worker, Task::Drops(Vec::with_capacity(DROPS), tell));
            all.extend(told.recv_timeout(PATIENCE).ok()?);
        }
        Some(all)
    }

    /// Returns the reasons why the process is not ready, with the durations of stalls of workers.
    /// Waits for no worker.
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

    /// Returns the counters that show trouble; `None` if a worker does not answer.
    pub(super) fn totals(&self) -> Option<Totals> {
        let (counted, state) = self.count_in_place()?;
        let total = counted.into_iter().reduce(Counted::and)?;
        let config = Arc::clone(&state.config);
        drop(state);
        let none = CaptureStats::default();
        let report = Report::new(&config, total.tally, &none, self.begin.elapsed());
        Some(report.totals())
    }

    /// Returns the frontends whose rules have no backend that takes new flows.
    pub(super) fn unavailable(&self) -> Vec<String> {
        let config = self.config();
        let down = availability(&config).filter(|(_, is_available)| !is_available);
        down.map(|(name, _)| name.to_owned()).collect()
    }
}

/// Yields each frontend with rules, and true if one of its rules has a backend that takes new
/// flows.
fn availability(config: &Config) -> impl Iterator<Item = (&str, bool)> {
    let frontends = config.frontends.iter().enumerate();
    frontends
        .filter_map(|(place, frontend)| Some((frontend.name.as_str(), config.is_available(place)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn shared() -> Arc<Shared> {
        let text = include_str!("../../../examples/web.toml");
        let config = Config::parse("web.toml", text).expect("a good configuration");
        let snapshot = config.snapshot(None).expect("it compiles");
        Shared::new((&config, &snapshot), &[], Instant::now(), (None, None))
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
