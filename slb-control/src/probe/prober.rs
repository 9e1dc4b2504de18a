//! All backends of a configuration, each asked in its time.

use std::collections::BTreeMap;
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
                return Some(change);
            }
        }
    }

    /// Writes into a configuration who is not well: who fails a probe of one of its pool's rules. Where that
    /// is everybody, those who fail probes with [`NoHealthyBackends::UseAll`] only are left as they are.
    pub fn apply(&self, config: &mut Config) {
        // And whether that is for good.
        let mut unwell: BTreeMap<&BackendName, bool> = BTreeMap::new();
        for asked in &self.asked {
            if asked.condition == Condition::Unhealthy {
                let refuses = asked.target.probe.no_healthy_backends == NoHealthyBackends::Refuse;
                for name in &asked.names {
                    *unwell.entry(name).or_default() |= refuses;
                }
            }
        }
        for pool in &mut config.pools {
            let (name, backends) = (&pool.name, &mut pool.backends);
            let fails = |backend: &Backend| {
                let name = (name.clone(), backend.name.clone());
                unwell.get(&name).copied()
            };
            let is_used = |backend: &&Backend| backend.state == BackendState::Healthy;
            let nobody_is_left = backends.iter().filter(is_used).all(|b| fails(b).is_some());
            for backend in backends {
                if let Some(refuses) = fails(backend)
                    && backend.state == BackendState::Healthy
                    && (refuses || !nobody_is_left)
                {
                    backend.state = BackendState::Unhealthy;
                }
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
