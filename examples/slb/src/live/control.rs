//! The control thread: signals, the configuration's file, and next hops.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use slb_control::probe::Prober;
use slb_control::{Config, PassiveHealth, SlowStart};
use slb_core::health::Condition;
use slb_core::service::Snapshot;
use slb_io_afxdp::{Program, Take};
use slb_io_pcap::CaptureStats;
use tracing::{error, info, warn};

use super::announce::Announcer;
use super::device::Plan;
use super::file::WatchedFile;
use super::metrics::Endpoint;
use super::next_hops::{Found, NextHops, unresolved};
use super::status::{Place, Shared};
use super::worker::{Counted, Worker};
use crate::Failure;
use crate::check::load;
use crate::cli::LiveOptions;
use crate::report::Report;

/// How often it looks whether there is something to do.
const TICK: Duration = Duration::from_millis(20);
/// How often it looks at the file.
const LOOK_AT_FILE: Duration = Duration::from_millis(250);
/// How often it judges backends by their traffic.
const JUDGE: Duration = Duration::from_secs(1);
/// How often it asks for next hops that are not known, and has those that are verified.
const ASK: Duration = Duration::from_secs(1);
const VERIFY: Duration = Duration::from_secs(30);

pub(super) struct Control<'o> {
    pub(super) options: &'o LiveOptions,
    pub(super) begin: Instant,
    pub(super) plan: Plan,
    pub(super) programs: Vec<Program>,
    pub(super) next_hops: Option<NextHops>,
    pub(super) announcer: Option<Announcer>,
    pub(super) prober: Option<Prober>,
    pub(super) passive: PassiveHealth,
    pub(super) slow_start: SlowStart,
    pub(super) found: Found,
    /// The configuration as the file has it.
    pub(super) given: Config,
    /// And with what the interface and the kernel's tables know.
    pub(super) config: Config,
    pub(super) snapshot: Arc<Snapshot<'static>>,
    pub(super) workers: Vec<Worker>,
    /// For each program, what is taken.
    pub(super) taken: Vec<Vec<(IpAddr, Take)>>,
}

impl Control<'_> {
    /// Does what is to be done until a signal ends it; then ends everything in its order.
    pub(super) fn run(
        mut self,
        endpoint: Option<Endpoint>,
        place: Option<Place>,
    ) -> Result<(), Failure> {
        let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(Failure::failed)?;
        let begin = self.begin;
        let shared = Shared::new(&self.config, &self.workers, begin);
        if let Some(endpoint) = endpoint {
            endpoint.serve(Arc::clone(&shared))?;
        }
        let status = place.map(|place| place.serve(Arc::clone(&shared)));
        if let Some(announcer) = &mut self.announcer {
            announcer.announce(&self.config);
        }
        let mut file = WatchedFile::new(&self.options.config);
        let (mut looked, mut asked, mut verified) = (begin, None, begin);
        let mut judged = begin;
        self.ask(true);
        let ends = loop {
            self.wait();
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
            let mut reads = raised.contains(&SIGHUP);
            if looked.elapsed() >= LOOK_AT_FILE {
                looked = Instant::now();
                reads |= file.has_changed(looked);
            }
            if reads {
                file.set_loaded();
                self.reload();
                shared.set_config(&self.config);
            }
            if self.next_hops.as_ref().is_some_and(NextHops::has_changed) && self.follow() {
                shared.set_config(&self.config);
            }
            let mut is_due = self.heed_probes();
            if judged.elapsed() >= JUDGE && PassiveHealth::watches(&self.config) {
                judged = Instant::now();
                is_due |= self.heed_traffic(&shared);
            }
            let next = self.slow_start.due();
            is_due |= next.is_some_and(|next| next <= self.clock());
            if is_due && self.heed() {
                shared.set_config(&self.config);
            }
            if asked.is_none_or(|asked: Instant| asked.elapsed() >= ASK) {
                asked = Some(Instant::now());
                let all = verified.elapsed() >= VERIFY;
                if all {
                    verified = Instant::now();
                }
                self.ask(all);
            }
        };
        if ends.is_ok() {
            self.drain(&mut signals);
        }
        // First the kernel gets its packets back, then what is still in the rings goes out.
        self.programs.clear();
        let mut counted = self.workers.drain(..).filter_map(Worker::finish);
        let total = counted
            .next()
            .map(|first| counted.fold(first, Counted::and));
        drop(status);
        if let Some(total) = total {
            let none = CaptureStats::default();
            let elapsed = begin.elapsed();
            print!(
                "{}",
                Report::new(&self.config, total.tally, &none, elapsed).text()
            );
            let io: Vec<String> = total
                .io
                .iter()
                .map(|(name, n)| format!("{name} {n}"))
                .collect();
            println!("I/O: {}", io.join(", "));
        }
        ends
    }

    /// Waits for a change of next hops, or a tick.
    fn wait(&self) {
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: TICK.subsec_nanos().into(),
        };
        let fds = self.next_hops.iter().map(NextHops::events);
        let events: Vec<_> = fds.collect();
        let mut fds: Vec<_> = events
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        // A signal ends it early, which is as good.
        let _ = poll(&mut fds, Some(&tick));
    }

    /// Reads the configuration again. All or nothing: a bad one leaves the old one running.
    fn reload(&mut self) {
        let mut given = match load(&self.options.config) {
            Ok(given) => given,
            Err(failure) => return error!("the configuration stays as it was: {failure}"),
        };
        let old = &self.given.node;
        given.node.role = old.role;
        let of = |node: &slb_control::config::Node| {
            let of_sources = (node.flows_per_source, node.flows_per_source_at_once);
            let rates = [
                node.answers_per_second,
                node.too_big_per_second,
                node.errors_per_second,
                node.resets_per_second,
            ];
            let icmp_source = (node.icmp_source_ipv4, node.icmp_source_ipv6);
            let sizes = (node.flows, node.connections);
            (sizes, (rates, of_sources), icmp_source, node.clamp_mss)
        };
        if of(old) != of(&given.node) {
            warn!(
                "table sizes, rates, icmp_source and clamp_mss are those that the program was \
                 started with"
            );
        }
        let found = self
            .next_hops
            .as_ref()
            .map(|next_hops| next_hops.look_up(&given));
        let found = found.unwrap_or_default();
        if let Some(prober) = &mut self.prober {
            prober.set(&given);
        }
        match self.install(&given, &found) {
            Ok(()) => {
                info!(
                    generation = self.snapshot.generation(),
                    "configuration in place"
                );
                for line in given
                    .losses(&self.given)
                    .into_iter()
                    .chain(given.warnings())
                {
                    warn!("{line}");
                }
                self.given = given;
                self.found = found;
                self.ask(false);
            }
            Err(failure) => {
                error!("the configuration stays as it was: {failure}");
                if let Some(prober) = &mut self.prober {
                    prober.set(&self.given);
                }
            }
        }
    }

    /// Follows the kernel's tables; says whether anything is different now.
    fn follow(&mut self) -> bool {
        let Some(next_hops) = &self.next_hops else {
            return false;
        };
        let found = next_hops.look_up(&self.given);
        if found == self.found && self.plan.taken(&self.config) == self.taken {
            return false;
        }
        let given = self.given.clone();
        match self.install(&given, &found) {
            Ok(()) => {
                let unresolved = unresolved(&found);
                info!(unresolved = unresolved.len(), "next hops changed");
                self.found = found;
                self.ask(false);
                true
            }
            Err(failure) => {
                error!("next hops stay as they were: {failure}");
                false
            }
        }
    }

    /// Says which backends have turned, by their probes, and whether any has.
    fn heed_probes(&mut self) -> bool {
        let mut any = false;
        while let Some(change) = self.prober.as_mut().and_then(Prober::changed) {
            any = true;
            let (address, probe) = (change.address, &change.probe);
            for (pool, backend) in &change.backends {
                match change.condition {
                    Condition::Healthy => info!(pool, backend, %address, probe, "healthy"),
                    Condition::Unhealthy => {
                        warn!(pool, backend, %address, probe, why = change.why, "unhealthy");
                    }
                }
            }
        }
        any
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
                Condition::Healthy => info!(pool, backend, "tried again"),
                Condition::Unhealthy => warn!(pool, backend, "takes no connections"),
            }
        }
        !turned.is_empty()
    }

    /// Has backends that have turned get new flows, or none, or more of them; says whether that is in
    /// place.
    fn heed(&mut self) -> bool {
        let (given, found) = (self.given.clone(), self.found.clone());
        let installed = self.install(&given, &found);
        if let Err(failure) = &installed {
            error!("what is known of backends is not in place: {failure}");
        }
        installed.is_ok()
    }

    fn clock(&self) -> slb_core::Instant {
        let nanos = u64::try_from(self.begin.elapsed().as_nanos());
        slb_core::Instant::from_nanos(nanos.unwrap_or(u64::MAX))
    }

    fn ask(&self, all: bool) {
        if let Some(next_hops) = &self.next_hops
            && let Err(error) = next_hops.ask(&self.found, all)
        {
            warn!("the kernel does not ask for next hops: {error}");
        }
    }

    /// Compiles a configuration and puts it in place everywhere: no packet is between two.
    fn install(&mut self, given: &Config, found: &Found) -> Result<(), Failure> {
        let mut config = self
            .plan
            .complete(given, self.next_hops.is_some().then_some(found));
        if let Some(prober) = &self.prober {
            prober.apply(&mut config);
        }
        self.passive.apply(&mut config);
        self.slow_start.apply(self.clock(), &mut config);
        let previous = Some(&*self.snapshot);
        let snapshot = config.snapshot(previous).map_err(Failure::usage)?;
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
        for worker in &self.workers {
            worker.mailbox.install(Arc::clone(&snapshot), generation);
        }
        for worker in &self.workers {
            if !worker.mailbox.wait_for(generation) {
                warn!(
                    worker = worker.names.join(", "),
                    "slow to take the configuration"
                );
            }
        }
        self.take(&taken)?;
        if let Some(announcer) = &mut self.announcer {
            announcer.announce(&config);
        }
        self.taken = taken;
        self.snapshot = snapshot;
        self.config = config;
        Ok(())
    }

    fn take(&mut self, taken: &[Vec<(IpAddr, Take)>]) -> Result<(), Failure> {
        for (program, taken) in self.programs.iter_mut().zip(taken) {
            let set = program.set_addresses(taken.iter().copied());
            set.map_err(Failure::failed)?;
        }
        Ok(())
    }

    /// Goes on for a while, so that whoever sends here can send elsewhere; another signal ends it.
    fn drain(&mut self, signals: &mut Signals) {
        if let Some(announcer) = &mut self.announcer {
            announcer.withdraw();
        }
        let drain = Duration::from_secs(self.options.drain);
        info!(seconds = self.options.drain, "draining");
        let begin = Instant::now();
        while begin.elapsed() < drain {
            self.wait();
            if signals.pending().any(|signal| signal != SIGHUP) {
                return;
            }
        }
    }
}

impl Counted {
    /// Both together.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.tally.add(&other.tally);
        for (own, (_, count)) in self.io.iter_mut().zip(other.io) {
            own.1 += count;
        }
        self.work.bursts += other.work.bursts;
        self.work.busy += other.work.busy;
        self
    }
}
