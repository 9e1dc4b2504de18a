//! Probing of all backends of a configuration, each at its interval.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant as Clock};

use slb_core::Instant;
use slb_core::health::{Condition, Health, ProbePolicy, jitter};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use super::tally::{Counted, ProbeTallies, Tally};
use super::vms::Vms;
use super::{Asker, BackendName, ProbeFailure, ProberEnd, Target, targets};
use crate::config::Config;

/// Probes are sent at multiples of this duration, so that probes that are due together cost one
/// wakeup.
const GRAIN: Duration = Duration::from_millis(20);
/// The time within which new backends are first probed, and after which they are probed again if
/// they do not answer.
const SOON: Duration = Duration::from_secs(1);
/// The default limit of simultaneous connections.
const MOST_SOCKETS: usize = 512;
/// The limit of simultaneous connections to one pool, so that silent backends do not delay the
/// probes of other pools.
const MOST_OF_A_POOL: usize = 256;

/// A backend whose health has changed.
#[derive(Clone, Debug)]
pub struct Change {
    /// Address of the backend.
    pub address: IpAddr,
    /// The probed port.
    pub port: u16,
    /// The backends with this address.
    pub backends: Vec<BackendName>,
    /// The probe's name.
    pub probe: String,
    /// The present health.
    pub condition: Condition,
    /// The fault of the last answer, if the backend is unhealthy.
    pub why: String,
}

/// Probes the backends of a configuration, in a separate thread, until it is dropped.
#[derive(Debug)]
pub struct Prober {
    runtime: Handle,
    asker: Asker,
    begin: Clock,
    /// The targets by number.
    asked: BTreeMap<u64, Asked>,
    tell: Sender<(u64, Told)>,
    told: Receiver<(u64, Told)>,
    next: u64,
    /// The limit on all simultaneous connections.
    places: Arc<Semaphore>,
    /// The number of places at first.
    most: usize,
    /// Limit on the probes of each pool.
    by_pool: HashMap<String, Arc<Semaphore>>,
    /// The reason why this node could not send a probe since the last call of `take_trouble`.
    trouble: Option<String>,
    tallies: ProbeTallies,
    /// Dropping this ends the runtime's thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// A message about a target's probes.
enum Told {
    /// The first probe has ended.
    Asked,
    /// A backend's health has changed.
    Turned(Change),
    /// This node could not send a probe, for this reason.
    CouldNotAsk(String),
}

/// A probed target.
#[derive(Debug)]
struct Asked {
    target: Target,
    names: Vec<BackendName>,
    condition: Condition,
    /// True if its first probe has ended.
    is_known: bool,
    /// A number that differs from those of earlier targets, whose changes may still be queued.
    number: u64,
    tally: Arc<Tally>,
    task: JoinHandle<()>,
}

impl Prober {
    /// Starts a prober without targets, with the source addresses `sources`, as for [`Asker::new`].
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(sources: &[IpAddr]) -> io::Result<Self> {
        Self::with(Asker::new(sources), None)
    }

    /// Starts a host agent's prober, which reaches its vms through their ports, without targets
    /// yet.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn through_vms(way: ProberEnd) -> io::Result<Self> {
        let vms = Vms::new(way);
        Self::with(Asker::through(vms.clone()), Some(vms))
    }

    fn with(asker: Asker, vms: Option<Vms>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        thread::Builder::new()
            .name("slb probes".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let _ = stopped.await;
                });
            })?;
        if let Some(vms) = vms {
            handle.spawn(vms.run());
        }
        let (tell, told) = channel();
        let begin = Clock::now();
        Ok(Self {
            runtime: handle,
            asker,
            begin,
            asked: BTreeMap::new(),
            tell,
            told,
            next: 0,
            places: Arc::new(Semaphore::new(MOST_SOCKETS)),
            most: MOST_SOCKETS,
            by_pool: HashMap::new(),
            trouble: None,
            tallies: ProbeTallies::new(begin),
            _stop: stop,
        })
    }

    /// Limits the number of simultaneous connections. Call it before the first probe.
    #[must_use]
    pub fn with_sockets(mut self, most: usize) -> Self {
        self.most = most.clamp(1, Semaphore::MAX_PERMITS);
        self.places = Arc::new(Semaphore::new(self.most));
        self
    }

    /// Probes the backends of a configuration from now on. Backends with an unchanged probe keep
    /// their state. New backends are first probed within a second, not all at once; until then they
    /// count as healthy, and afterwards by the first answer.
    pub fn set(&mut self, config: &Config) {
        let key = |target: &Target| (target.address, target.vni.get(), target.probe.name.clone());
        let old = std::mem::take(&mut self.asked).into_values();
        let mut old: HashMap<_, Asked> = old.map(|asked| (key(&asked.target), asked)).collect();
        for (target, names) in targets(config) {
            let asked = match old.remove(&key(&target)) {
                Some(asked) if asked.target == target => Asked { names, ..asked },
                other => {
                    if let Some(asked) = other {
                        asked.task.abort();
                    }
                    self.begin(target, names)
                }
            };
            self.asked.insert(asked.number, asked);
        }
        for asked in old.into_values() {
            asked.task.abort();
        }
        let counted = self.asked.iter().map(|(&number, asked)| {
            let counted = Counted {
                probe: asked.target.probe.name.clone(),
                interval: asked.target.probe.interval,
                names: asked.names.clone(),
                tally: Arc::clone(&asked.tally),
            };
            (number, counted)
        });
        self.tallies.set(counted.collect());
    }

    /// Returns the counts of probes, to be read by any thread from now on.
    pub fn tallies(&self) -> ProbeTallies {
        self.tallies.clone()
    }

    fn begin(&mut self, target: Target, names: Vec<BackendName>) -> Asked {
        self.next += 1;
        let number = self.next;
        let pool = names.first().map(|(pool, _)| pool.clone());
        let of_pool = self.by_pool.entry(pool.unwrap_or_default());
        let of_pool = of_pool.or_insert_with(|| Arc::new(Semaphore::new(MOST_OF_A_POOL)));
        let tally = Arc::new(Tally::default());
        let one = One {
            number,
            tally: Arc::clone(&tally),
            target: target.clone(),
            asker: self.asker.clone(),
            begin: self.begin,
            tell: self.tell.clone(),
            places: [Arc::clone(of_pool), Arc::clone(&self.places)],
        };
        Asked {
            target,
            names,
            condition: Condition::Healthy,
            is_known: false,
            number,
            tally,
            task: self.runtime.spawn(one.run()),
        }
    }

    /// Returns a change of a backend's health since the last call, if there is one, without
    /// waiting.
    pub fn changed(&mut self) -> Option<Change> {
        loop {
            let (number, told) = match self.told.try_recv() {
                Ok(told) => told,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
            };
            let Some(asked) = self.asked.get_mut(&number) else {
                continue;
            };
            match told {
                Told::Asked => asked.is_known = true,
                Told::CouldNotAsk(why) => self.trouble = Some(why),
                Told::Turned(change) => {
                    asked.condition = change.condition;
                    let backends = asked.names.clone();
                    return Some(Change { backends, ..change });
                }
            }
        }
    }

    /// Returns the greatest number of probes that can be out at once, of all pools and of one.
    pub fn limits(&self) -> (usize, usize) {
        (self.most, MOST_OF_A_POOL.min(self.most))
    }

    /// Returns the number of targets without a complete probe yet, as far as
    /// [`changed`](Self::changed) has heard.
    pub fn unknown(&self) -> usize {
        let unknown = self.asked.values().filter(|asked| !asked.is_known);
        unknown.count()
    }

    /// Returns the reason why this node could not send a probe, if that has happened since the last
    /// call. The health of backends is unchanged in that case.
    pub fn take_trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    /// Records in a configuration which backends fail which probe, for the rules that use the
    /// probe. If all backends of a pool that would get new flows fail a probe with
    /// [`NoHealthyBackends::UseAll`](crate::config::NoHealthyBackends::UseAll), its rules continue
    /// as if none failed.
    pub fn apply(&self, config: &mut Config) {
        let sick: HashSet<_> = self.failing().collect();
        config.set_failing(|pool, probe, backend| {
            sick.contains(&(&*pool.name, &*probe.name, &*backend.name))
        });
    }

    /// Yields the failing backends: pool, probe and name of each.
    pub fn failing(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let failing = self
            .asked
            .values()
            .filter(|asked| asked.condition == Condition::Unhealthy);
        failing.flat_map(|asked| {
            let probe = &*asked.target.probe.name;
            let names = asked.names.iter();
            names.map(move |(pool, name)| (&**pool, probe, &**name))
        })
    }

    /// Returns the number of targets.
    pub fn targets(&self) -> usize {
        self.asked.len()
    }
}

/// The task that probes one target.
struct One {
    number: u64,
    tally: Arc<Tally>,
    target: Target,
    asker: Asker,
    begin: Clock,
    tell: Sender<(u64, Told)>,
    /// Permits of the pool and of all pools.
    places: [Arc<Semaphore>; 2],
}

impl One {
    async fn run(self) {
        // The receiver may be gone.
        let _ = self.ask_for_ever().await;
    }

    async fn ask_for_ever(&self) -> Option<()> {
        let probe = &self.target.probe;
        // Probes are spread over the interval, independent of the first one.
        let mut next = jitter(self.now(), probe.interval, self.number as u32);
        let condition = self.begin().await?;
        while next < self.now() + probe.interval / 2 {
            next = next + probe.interval;
        }
        let policy = ProbePolicy {
            interval: probe.interval,
            timeout: probe.timeout,
            threshold: probe.threshold,
        };
        let mut health = Health::new(policy, condition, next);
        loop {
            self.sleep_until(health.due()).await;
            let _places = self.places().await?;
            if !health.begin(self.now()) {
                continue;
            }
            let answer = self.ask().await;
            let changed = match &answer {
                Ok(()) => health.succeeded(),
                Err(failure) if failure.is_own() => {
                    health.cancel();
                    self.tell(Told::CouldNotAsk(failure.to_string()))?;
                    None
                }
                Err(_) => health.failed(),
            };
            if let Some(condition) = changed {
                self.turn(condition, answer.err())?;
            }
        }
    }

    /// Sends the first probe, whose result decides. A failing backend, which may just be starting,
    /// is probed again soon, up to its threshold.
    async fn begin(&self) -> Option<Condition> {
        let probe = &self.target.probe;
        let pause = probe.interval.min(SOON);
        self.sleep_until(jitter(self.now(), pause, self.number as u32))
            .await;
        let mut condition = Condition::Healthy;
        for turn in 0..probe.threshold.max(1) {
            if turn > 0 {
                self.sleep_until(self.now() + pause).await;
            }
            let places = self.places().await?;
            let answer = self.ask().await;
            drop(places);
            let is_well = match answer {
                Ok(()) => true,
                Err(failure) if failure.is_own() => {
                    self.tell(Told::CouldNotAsk(failure.to_string()))?;
                    true // unchanged
                }
                Err(failure) => {
                    if condition == Condition::Healthy {
                        condition = Condition::Unhealthy;
                        self.turn(condition, Some(failure))?;
                    }
                    false
                }
            };
            if is_well && condition == Condition::Unhealthy {
                condition = Condition::Healthy;
                self.turn(condition, None)?;
            }
            if turn == 0 {
                self.tell(Told::Asked)?;
            }
            if is_well {
                break;
            }
        }
        Some(condition)
    }

    /// Sends one probe, and counts the result.
    async fn ask(&self) -> Result<(), ProbeFailure> {
        let begin = Clock::now();
        let answer = self.asker.ask(&self.target).await;
        self.tally.note(&answer, begin.elapsed());
        answer
    }

    /// Waits for a permit for a connection of the pool and among all connections.
    async fn places(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        self.tally.wait(self.now());
        let [of_pool, of_all] = &self.places;
        let of_pool = Arc::clone(of_pool).acquire_owned().await.ok()?;
        let of_all = Arc::clone(of_all).acquire_owned().await.ok()?;
        self.tally.sent(self.now());
        Some([of_pool, of_all])
    }

    fn turn(&self, condition: Condition, failure: Option<ProbeFailure>) -> Option<()> {
        let probe = &self.target.probe;
        self.tell(Told::Turned(Change {
            address: self.target.address,
            port: probe.port,
            backends: Vec::new(), // filled in by the receiver
            probe: probe.name.clone(),
            condition,
            why: failure
                .map(|failure| failure.to_string())
                .unwrap_or_default(),
        }))
    }

    fn tell(&self, told: Told) -> Option<()> {
        self.tell.send((self.number, told)).ok()
    }

    async fn sleep_until(&self, due: Instant) {
        let due = due.as_nanos().next_multiple_of(GRAIN.as_nanos() as u64);
        let due = self.begin + Duration::from_nanos(due);
        sleep_until(due.into()).await;
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}
