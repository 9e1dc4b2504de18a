//! The node's client: follows the node's release on a separate thread, and sends the node's
//! reports.
//!
//! ```text
//!  store ── watch ──► thread ── takes ──► the program: compiles, puts in place
//!        ◄─ report ──        ◄─ acknowledges, refuses, health, connections left ──┘
//!                       │
//!                       └─► cache on disk
//! ```
//! While the store is unreachable nothing changes: the node continues with its release.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};
use std::{io, mem};

use slb_control::Config;
use slb_control::lasting::Lasting;
use tracing::{info, warn};

use crate::cache::{Cache, Held};
use crate::document::Spec;
use crate::fetch::{FetchError, Known, objects_of};
use crate::health;
use crate::object::{Agents, Health, Keys, Object as _, Report, Table};
use crate::rollout::{Refusal, Release, Rollout, Side};
use crate::store::{Event, Lease, Operation, Store, StoreError};

/// The length of a node's lease.
pub const LEASE: Duration = Duration::from_secs(10);
/// The time without the store after which a node uses its own probes.
pub const AUTONOMY: Duration = Duration::from_secs(10);
/// The interval at which the node checks for something to report.
const TICK: Duration = Duration::from_millis(20);
/// The minimum time between writes of changes of health to the cache.
const BETWEEN_WRITES: Duration = Duration::from_secs(1);
/// Faults whose lines are spaced out.
const STORE: &str = "store";
const CACHE: &str = "cache";
/// The waiting time after the store did not answer.
const PAUSE: Duration = Duration::from_millis(300);
/// The pause after the store denied a request, which usually persists.
const PAUSE_DENIED: Duration = Duration::from_secs(2);

/// The options of a node.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Name of the fleet.
    pub cluster: String,
    /// Role of the node.
    pub side: Side,
    /// Name of the node, unique in its role.
    pub name: String,
    /// Addresses of the node on the fabric.
    pub addresses: Vec<IpAddr>,
    /// Version of the program.
    pub version: String,
    /// Zone of the node.
    pub zone: Option<String>,
    /// Where it keeps what it held.
    pub cache: Option<Cache>,
}

/// A generation for the node to install.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The generation, and its index.
    pub release: Release,
    /// The spec.
    pub spec: Spec,
    /// Backends that are leaving, each as `POOL/NAME`.
    pub leaving: Vec<String>,
}

/// The state of a node in its fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Time for which the store has been away, or has denied what the node needs.
    pub away: Option<Duration>,
    /// The reason of the outage.
    pub fault: Option<String>,
    /// The generation that the node holds.
    pub held: u64,
    /// The generation that the node serves.
    pub live: u64,
    /// The last refused generation, and the reason.
    pub refused: Option<Refusal>,
}

impl Standing {
    /// Returns true if the node uses its own probes because the store is unreachable.
    pub fn is_autonomous(&self) -> bool {
        self.away.is_some_and(|away| away >= AUTONOMY)
    }
}

/// A node of a fleet. When dropped, it stops following, and its lease expires.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    stop: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// The next generation, until it is taken.
    next: Option<Generation>,
    /// The installed generation.
    live: Option<Release>,
    tables: BTreeMap<String, Table>,
    agents: Agents,
    /// True if tables or agents have changed since the last look.
    is_another: bool,
    report: Report,
    health: Option<Health>,
    /// The time since which the store has been unreachable.
    away: Option<Instant>,
    /// The reason of the outage.
    fault: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Starts following the store. The first generation is that of the cache, if there is one.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(store: Arc<dyn Store>, options: NodeOptions) -> io::Result<Self> {
        let held = options.cache.as_ref().and_then(|cache| {
            let read = cache.read(&options.cluster);
            let path = cache.path().display();
            read.unwrap_or_else(|error| {
                warn!("{path}: is not used: {error}");
                None
            })
        });
        let report = Report {
            addresses: options.addresses.clone(),
            version: options.version.clone(),
            zone: options.zone.clone(),
            ..Report::default()
        };
        let mut state = State {
            next: None,
            live: None,
            tables: BTreeMap::new(),
            agents: Agents::default(),
            is_another: false,
            report,
            health: None,
            away: Some(Instant::now()),
            fault: None,
        };
        if let Some(held) = &held {
            match held.spec() {
                Ok(spec) => {
                    state.report.held = held.generation;
                    state.tables.clone_from(&held.tables);
                    state.agents.clone_from(&held.agents);
                    state.next = Some(Generation {
                        release: Release {
                            generation: held.generation,
                            index: held.index.clone(),
                        },
                        spec,
                        leaving: held.leaving.clone(),
                    });
                }
                Err(error) => warn!("the cached generation is not used: {error}"),
            }
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            stop: AtomicBool::new(false),
        });
        let mut follower = Follower {
            keys: Keys::new(&options.cluster),
            held: held.as_ref().map(Held::release),
            store,
            options,
            shared: Arc::clone(&shared),
            known: Known::default(),
            cached: held,
            is_cached: true,
            wrote: Instant::now(),
            faults: Lasting::default(),
        };
        let thread = thread::Builder::new()
            .name("slb fleet".to_owned())
            .spawn(move || follower.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Returns a generation to install, once.
    pub fn take(&self) -> Option<Generation> {
        self.shared.state().next.take()
    }

    /// Reports that a generation is installed.
    pub fn acknowledge(&self, release: &Release) {
        let mut state = self.shared.state();
        state.report.live = release.generation;
        state.report.index = Some(release.index.clone());
        state.report.refused = None;
        state.report.left = None;
        state.live = Some(release.clone());
    }

    /// Reports why a generation cannot be installed.
    pub fn refuse(&self, release: &Release, why: String) {
        self.shared.state().report.refused = Some(Refusal {
            generation: release.generation,
            index: Some(release.index.clone()),
            why,
        });
    }

    /// Reports the number of connections left on leaving backends of the installed generation;
    /// `None` if it is unknown.
    pub fn set_left(&self, left: Option<u64>) {
        self.shared.state().report.left = left;
    }

    /// Says which zone the node is in from now on.
    pub fn set_zone(&self, zone: Option<String>) {
        self.shared.state().report.zone = zone;
    }

    /// Says which backends fail, of those that this node asks: pool, probe and name of each.
    pub fn set_failing(&self, failing: Vec<(String, String, String)>) {
        self.shared.state().health = Some(Health { failing });
    }

    /// Returns true if health, weights or agents have changed since the last call.
    pub fn has_changed(&self) -> bool {
        mem::take(&mut self.shared.state().is_another)
    }

    /// Applies the fleet's health and weights to a configuration.
    pub fn apply(&self, config: &mut Config) {
        health::apply(&self.shared.state().tables, config);
    }

    /// Returns the hosts that have an agent.
    pub fn agents(&self) -> Agents {
        self.shared.state().agents.clone()
    }

    /// The node's standing in its fleet.
    pub fn standing(&self) -> Standing {
        let state = self.shared.state();
        Standing {
            away: state.away.map(|since| since.elapsed()),
            fault: state.fault.clone(),
            held: state.report.held,
            live: state.report.live,
            refused: state.report.refused.clone(),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Held {
    fn release(&self) -> Release {
        Release {
            generation: self.generation,
            index: self.index.clone(),
        }
    }
}

/// The thread.
struct Follower {
    store: Arc<dyn Store>,
    keys: Keys,
    options: NodeOptions,
    shared: Arc<Shared>,
    known: Known,
    /// The release that the program got last.
    held: Option<Release>,
    /// The release to be cached.
    cached: Option<Held>,
    /// True once the cache has it.
    is_cached: bool,
    /// When the cache was written last.
    wrote: Instant,
    /// Faults that last.
    faults: Lasting,
}

impl Follower {
    fn run(&mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let Err(error) = self.follow() else { return };
            let why = error.to_string();
            let mut state = self.shared.state();
            // Members of a store that is away give reasons in turn.
            if state.away.is_none() {
                self.faults.end(STORE);
            }
            if self.faults.is_due(STORE) {
                warn!("fleet: {why}");
            }
            state.away.get_or_insert_with(Instant::now);
            state.fault = Some(why);
            drop(state);
            self.pause(match error {
                FetchError::Store(StoreError::Denied(_)) => PAUSE_DENIED,
                _ => PAUSE,
            });
        }
    }

    /// Waits, unless the program ends.
    fn pause(&self, length: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < length && !self.shared.stop.load(Ordering::Relaxed) {
            sleep(TICK);
        }
    }

    /// Follows until the program ends, or the store does not answer.
    fn follow(&mut self) -> Result<(), FetchError> {
        let lease = self.store.grant(LEASE)?;
        let followed = self.follow_by(lease);
        // End the lease at the end of the program, since others would wait for it to expire, and if
        // reports are denied, since leases would accumulate. Otherwise the next lease takes over
        // the keys of this one.
        if matches!(
            followed,
            Ok(()) | Err(FetchError::Store(StoreError::Denied(_)))
        ) {
            let _ = self.store.revoke(lease);
        }
        followed
    }

    fn follow_by(&mut self, lease: Lease) -> Result<(), FetchError> {
        let prefix = self.keys.key("state/");
        let listing = self.store.list(&prefix)?;
        let mut watch = self.store.watch(&prefix, listing.revision)?;
        let entries = listing.entries.into_iter();
        let mut tables = BTreeMap::new();
        let mut rollout = Rollout::default();
        let mut agents = Agents::default();
        for entry in entries {
            self.note(&Event::Put(entry), &mut tables, &mut rollout, &mut agents);
        }
        self.set_known(&tables, &agents);
        let mut said = (None, None);
        let mut kept = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.follow_rollout(&rollout)?;
            self.say(lease, &mut said)?;
            // A node that may not report is autonomous, even if it can read.
            let mut state = self.shared.state();
            if state.away.take().is_some() {
                state.fault = None;
                info!("fleet: the store answers");
            }
            drop(state);
            if !self.is_cached && self.wrote.elapsed() >= BETWEEN_WRITES {
                self.write_cache();
            }
            if kept.elapsed() >= LEASE / 4 {
                self.store.keep(lease)?;
                kept = Instant::now();
            }
            let events = watch.next(TICK)?;
            if !events.is_empty() {
                for event in &events {
                    self.note(event, &mut tables, &mut rollout, &mut agents);
                }
                self.set_known(&tables, &agents);
            }
        }
        Ok(())
    }

    fn note(
        &self,
        event: &Event,
        tables: &mut BTreeMap<String, Table>,
        rollout: &mut Rollout,
        agents: &mut Agents,
    ) {
        let prefix = self.keys.key("state/table/");
        let entry = match event {
            Event::Put(entry) => entry,
            Event::Deleted(key) => {
                tables.retain(|pool, _| self.keys.table(pool) != *key);
                return;
            }
        };
        let (key, value) = (&entry.key, &entry.value);
        let noted = if key.starts_with(&prefix) {
            Table::read(key, value).map(|table| {
                tables.insert(table.pool.clone(), table);
            })
        } else if *key == self.keys.key("state/rollout") {
            Rollout::read(key, value).map(|read| *rollout = read)
        } else if *key == self.keys.key("state/agents") {
            Agents::read(key, value).map(|read| *agents = read)
        } else {
            Ok(())
        };
        if let Err(error) = noted {
            warn!("{error}");
        }
    }

    fn set_known(&mut self, tables: &BTreeMap<String, Table>, agents: &Agents) {
        let mut state = self.shared.state();
        if state.tables == *tables && state.agents == *agents {
            return;
        }
        state.tables.clone_from(tables);
        state.agents.clone_from(agents);
        state.is_another = true;
        drop(state);
        self.is_cached = false;
    }

    /// Passes the node's release to the program, if it has changed.
    fn follow_rollout(&mut self, rollout: &Rollout) -> Result<(), FetchError> {
        let Some(release) = rollout.of(self.options.side) else {
            return Ok(());
        };
        if self.held.as_ref() == Some(release) {
            return Ok(());
        }
        let (index, spec) = match self.known.fetch(&*self.store, &self.keys, &release.index) {
            Ok(fetched) => fetched,
            Err(FetchError::Object(error)) => {
                warn!(generation = release.generation, "refused: {error}");
                let mut state = self.shared.state();
                state.report.refused = Some(Refusal {
                    generation: release.generation,
                    index: Some(release.index.clone()),
                    why: error.to_string(),
                });
                self.held = Some(release.clone());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut keeps: BTreeSet<String> = objects_of(&self.keys, &index).into_keys().collect();
        keeps.insert(self.keys.index(&release.index));
        self.known.retain(&keeps);
        let to_cache = self.options.cache.is_some();
        let to_cache = to_cache.then(|| (spec.clone(), index.leaving.clone()));
        self.held = Some(release.clone());
        let mut state = self.shared.state();
        state.report.held = release.generation;
        let is_live = state
            .live
            .as_ref()
            .is_some_and(|live| live.index == release.index);
        if is_live && state.next.is_none() {
            // The same spec under another generation.
            state.report.live = release.generation;
            state.report.refused = None;
            state.live = Some(release.clone());
        } else {
            state.next = Some(Generation {
                release: release.clone(),
                spec,
                leaving: index.leaving,
            });
        }
        drop(state);
        // Write after the program has the release, since writing takes a while.
        self.cached = to_cache.map(|(spec, leaving)| {
            let Release { generation, index } = release.clone();
            Held::new(&self.options.cluster, generation, index, &spec, leaving)
        });
        self.write_cache();
        Ok(())
    }

    /// Writes the node's release to the cache.
    fn write_cache(&mut self) {
        self.is_cached = true;
        self.wrote = Instant::now();
        let (Some(cache), Some(held)) = (&self.options.cache, &mut self.cached) else {
            return;
        };
        let state = self.shared.state();
        held.tables.clone_from(&state.tables);
        held.agents.clone_from(&state.agents);
        drop(state);
        let path = cache.path().display();
        match cache.write(held) {
            Ok(()) => {
                if self.faults.end(CACHE).is_some() {
                    info!("{path}: is written again");
                }
            }
            Err(error) if self.faults.is_due(CACHE) => {
                warn!("{path}: cannot be written, and keeps an earlier generation: {error}");
            }
            Err(_) => {}
        }
    }

    /// Reports changes of the node's state.
    fn say(
        &self,
        lease: Lease,
        said: &mut (Option<Report>, Option<Health>),
    ) -> Result<(), StoreError> {
        let state = self.shared.state();
        let (report, health) = (state.report.clone(), state.health.clone());
        drop(state);
        let key = |kind| {
            let name = &self.options.name;
            self.keys.of_node(kind, self.options.side.name(), name)
        };
        let mut operations = Vec::new();
        if said.0.as_ref() != Some(&report) {
            operations.push(Operation::Put(key("node"), report.write(), Some(lease)));
        }
        if let Some(health) = &health
            && said.1.as_ref() != Some(health)
        {
            operations.push(Operation::Put(key("health"), health.write(), Some(lease)));
        }
        if !operations.is_empty() {
            self.store.commit(&[], &operations)?;
            *said = (Some(report), health);
        }
        Ok(())
    }
}
