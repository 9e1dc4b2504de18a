//! All backends of a configuration, each asked in its time.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant as Clock};

use slb_core::Instant;
use slb_core::health::{Condition, Health, ProbePolicy, jitter};
use slb_core::service::BackendState;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use super::{Asker, BackendName, Target, targets};
use crate::config::{Backend, Config, NoHealthyBackends};

/// Probes go out at multiples of this: those that are due together cost one awakening.
const GRAIN: Duration = Duration::from_millis(20);

/// A backend that turned.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its address.
    pub address: IpAddr,
    /// The backends that it is.
    pub backends: Vec<BackendName>,
    /// The probe's name.
    pub probe: String,
    /// How it is now.
    pub condition: Condition,
    /// What its last answer was lacking, where it is not well.
    pub why: String,
}

/// Asks the backends of a configuration, in a thread of its own. Dropped, it asks no more.
#[derive(Debug)]
pub struct Prober {
    runtime: Handle,
    asker: Asker,
    begin: Clock,
    asked: Vec<Asked>,
    tell: Sender<(u64, Change)>,
    told: Receiver<(u64, Change)>,
    next: u64,
    /// The runtime's thread ends when this goes.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// A target that is asked.
#[derive(Debug)]
struct Asked {
    target: Target,
    names: Vec<BackendName>,
    condition: Condition,
    /// Changes of others, which are asked no more, may still be on their way.
    number: u64,
    task: JoinHandle<()>,
}

impl Prober {
    /// Somebody who asks from `sources`, as [`Asker::new`] does, and nobody yet.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(sources: &[IpAddr]) -> io::Result<Self> {
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
        let (tell, told) = channel();
        Ok(Self {
            runtime: handle,
            asker: Asker::new(sources),
            begin: Clock::now(),
            asked: Vec::new(),
            tell,
            told,
            next: 0,
            _stop: stop,
        })
    }

    /// Asks the backends of a configuration from now on. Those that were asked the same way before
    /// go on as they were; new ones are taken as well until their probes say otherwise, and are asked
    /// for the first time within an interval, not all at once.
    pub fn set(&mut self, config: &Config) {
        let mut old = std::mem::take(&mut self.asked);
        for (target, names) in targets(config) {
            let known = old.iter().position(|asked| asked.target == target);
            let asked = match known {
                Some(place) => Asked {
                    names,
                    ..old.swap_remove(place)
                },
                None => self.begin(target, names),
            };
            self.asked.push(asked);
        }
        for asked in old {
            asked.task.abort();
        }
    }

    fn begin(&mut self, target: Target, names: Vec<BackendName>) -> Asked {
        self.next += 1;
        let number = self.next;
        let one = One {
            number,
            target: target.clone(),
            asker: self.asker.clone(),
            begin: self.begin,
            tell: self.tell.clone(),
        };
        Asked {
            target,
            names,
            condition: Condition::Healthy,
            number,
            task: self.runtime.spawn(one.run()),
        }
    }

    /// A backend that has turned since the last call, if there is one. Does not wait.
    pub fn changed(&mut self) -> Option<Change> {
        loop {
            let (number, change) = match self.told.try_recv() {
                Ok(told) => told,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
            };
            let asked = self.asked.iter_mut().find(|asked| asked.number == number);
            if let Some(asked) = asked {
                asked.condition = change.condition;
                let backends = asked.names.clone();
                return Some(Change { backends, ..change });
            }
        }
    }

    /// Takes down in a configuration who fails which probe, for the rules that go by it. Where all
    /// backends of a pool that would get new flows fail a probe with
    /// [`NoHealthyBackends::UseAll`], its rules go on as if none did.
    pub fn apply(&self, config: &mut Config) {
        let mut sick = HashSet::new();
        for asked in &self.asked {
            if asked.condition == Condition::Unhealthy {
                let names = asked.names.iter();
                sick.extend(
                    names.map(|(pool, name)| (&*asked.target.probe.name, &**pool, &**name)),
                );
            }
        }
        for (at, probe) in config.probed_pools() {
            let (pool, own) = (&config.pools[at], &config.probes[probe]);
            let fails =
                |backend: &Backend| sick.contains(&(&*own.name, &*pool.name, &*backend.name));
            let failing: Vec<bool> = pool.backends.iter().map(fails).collect();
            let mut used = pool
                .backends
                .iter()
                .zip(&failing)
                .filter(|(backend, _)| backend.state == BackendState::Healthy);
            let is_nobody_left = used.all(|(_, &fails)| fails);
            if is_nobody_left && own.no_healthy_backends == NoHealthyBackends::UseAll {
                continue;
            }
            for (place, _) in failing.iter().enumerate().filter(|(_, fails)| **fails) {
                let mut found = config.health.of(at, probe, place);
                found.condition = Condition::Unhealthy;
                config.health.set(at, probe, place, found);
            }
        }
    }

    /// How many targets are asked.
    pub fn targets(&self) -> usize {
        self.asked.len()
    }
}

/// The life of one target's probes.
struct One {
    number: u64,
    target: Target,
    asker: Asker,
    begin: Clock,
    tell: Sender<(u64, Change)>,
}

impl One {
    async fn run(self) {
        let probe = &self.target.probe;
        let policy = ProbePolicy {
            interval: probe.interval,
            timeout: probe.timeout,
            threshold: probe.threshold,
        };
        let first = jitter(self.now(), probe.interval, self.number as u32);
        let mut health = Health::new(policy, Condition::Healthy, first);
        loop {
            let due = health
                .due()
                .as_nanos()
                .next_multiple_of(GRAIN.as_nanos() as u64);
            let due = self.begin + Duration::from_nanos(due);
            sleep_until(due.into()).await;
            if !health.begin(self.now()) {
                continue;
            }
            let answer = self.asker.ask(&self.target).await;
            let changed = match &answer {
                Ok(()) => health.succeeded(),
                Err(_) => health.failed(),
            };
            let Some(condition) = changed else { continue };
            let change = Change {
                address: self.target.address,
                backends: Vec::new(), // whoever is told knows
                probe: probe.name.clone(),
                condition,
                why: answer
                    .err()
                    .map(|failure| failure.to_string())
                    .unwrap_or_default(),
            };
            if self.tell.send((self.number, change)).is_err() {
                return;
            }
        }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}
