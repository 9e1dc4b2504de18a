//! Calls of a configuration's own VIPs, like a client's, on the whole path through routers, a mux,
//! a host and a backend.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant as Clock};

use slb_core::wire::vxlan::Vni;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::tally::Tally;
use super::{Asker, ProbeCounts, Target};
use crate::config::{Config, NoHealthyBackends, Probe, ProbeProtocol, Protocol};

/// Time from one call of a rule to the next.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time after which a call without an answer has failed.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The source ports of calls. Over AF_XDP, a host agent leaves its vms' packets to muxes and to
/// itself to the kernel, since they include answers to probes, but translates packets to these
/// ports, which are answers of a VIP.
pub const CALLER_PORTS: RangeInclusive<u16> = 61_440..=62_463;
/// The limit of simultaneous calls.
const MOST_AT_ONCE: usize = 64;

/// A rule's port at a VIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VipPort {
    /// Name of the frontend.
    pub frontend: String,
    /// Name of the rule.
    pub rule: String,
    /// Address of the frontend, the VIP.
    pub address: IpAddr,
    /// The port that clients use.
    pub port: u16,
}

/// Yields the load-balancing rules that can be called from outside: TCP rules of public frontends.
/// Only clients know the answer to a datagram.
fn ports_of(config: &Config) -> impl Iterator<Item = VipPort> + '_ {
    let rules = config.rules.iter();
    let tcp = rules.filter(|rule| rule.protocol == Protocol::Tcp);
    tcp.filter_map(|rule| {
        let frontend = config.frontends.get(rule.frontend)?;
        if frontend.network.is_some() {
            return None;
        }
        Some(VipPort {
            frontend: frontend.name.clone(),
            rule: rule.name.clone(),
            address: frontend.address,
            port: rule.frontend_port,
        })
    })
}

/// Calls the VIPs of a configuration in a separate thread, until it is dropped: opens a TCP
/// connection to each rule every five seconds, and ends it with a RST.
#[derive(Debug)]
pub struct VipProber {
    runtime: Handle,
    asker: Asker,
    places: Arc<Semaphore>,
    called: BTreeMap<VipPort, JoinHandle<()>>,
    results: VipResults,
    /// Dropping this ends the runtime's thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl VipProber {
    /// Starts a prober with the source addresses `sources`, as for [`Asker::new`], and the source
    /// ports [`CALLER_PORTS`]. With `device`, calls leave by that interface, since the kernel's
    /// routes to announced VIPs lead elsewhere.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(sources: &[IpAddr], device: Option<&str>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        thread::Builder::new()
            .name("slb vips".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let _ = stopped.await;
                });
            })?;
        Ok(Self {
            runtime: handle,
            asker: Asker::new(sources).by_device(device).by_ports(CALLER_PORTS),
            places: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            called: BTreeMap::new(),
            results: VipResults::default(),
            _stop: stop,
        })
    }

    /// Calls the VIPs of a configuration from now on. VIPs that were called before keep their
    /// counts.
    pub fn set(&mut self, config: &Config) {
        let mut old = std::mem::take(&mut self.called);
        for port in ports_of(config) {
            let task = match old.remove(&port) {
                Some(task) => task,
                None => self.begin(&port),
            };
            self.called.insert(port, task);
        }
        for (port, task) in old {
            task.abort();
            self.results.all().remove(&port);
        }
    }

    /// Returns the results of calls, to be read by any thread from now on.
    pub fn results(&self) -> VipResults {
        self.results.clone()
    }

    fn begin(&self, port: &VipPort) -> JoinHandle<()> {
        let result = Arc::new(Called::default());
        self.results.all().insert(port.clone(), Arc::clone(&result));
        let (asker, places) = (self.asker.clone(), Arc::clone(&self.places));
        let target = Target {
            address: port.address,
            vni: Vni::default(),
            vm: None,
            probe: Probe {
                name: String::new(),
                protocol: ProbeProtocol::Tcp,
                port: port.port,
                path: String::new(),
                interval: INTERVAL,
                timeout: TIMEOUT,
                threshold: 1,
                host: None,
                verify_certificate: true,
                no_healthy_backends: NoHealthyBackends::Refuse,
                span: 0..0,
            },
        };
        self.runtime.spawn(async move {
            loop {
                let Ok(place) = places.acquire().await else {
                    return;
                };
                let begin = Clock::now();
                let answer = asker.ask(&target).await;
                drop(place);
                result.tally.note(&answer, begin.elapsed());
                let last = match &answer {
                    Ok(()) => ANSWERED,
                    Err(failure) if failure.is_own() => UNKNOWN,
                    Err(_) => SILENT,
                };
                result.last.store(last, Ordering::Relaxed);
                sleep(INTERVAL.saturating_sub(begin.elapsed())).await;
            }
        })
    }
}

/// The last result of a call.
const UNKNOWN: u8 = 0;
const ANSWERED: u8 = 1;
const SILENT: u8 = 2;

#[derive(Debug, Default)]
struct Called {
    tally: Tally,
    last: AtomicU8,
}

/// The results of a [`VipProber`], which another thread can read. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct VipResults(Arc<Mutex<BTreeMap<VipPort, Arc<Called>>>>);

impl VipResults {
    /// Returns the counts of each port, and whether its last call was answered; `None` if no call
    /// has ended yet, or if this node could not call.
    pub fn read(&self) -> Vec<(VipPort, ProbeCounts, Option<bool>)> {
        let all = self.all();
        let each = all.iter().map(|(port, called)| {
            let last = match called.last.load(Ordering::Relaxed) {
                ANSWERED => Some(true),
                SILENT => Some(false),
                _ => None,
            };
            (port.clone(), called.tally.read(), last)
        });
        each.collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<VipPort, Arc<Called>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
