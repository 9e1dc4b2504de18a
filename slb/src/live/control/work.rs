//! Configurations: each is read, completed and compiled in other threads, and then installed in
//! every worker.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use std::{fmt, io};

use slb_control::Config;
use slb_core::counters::{CounterMemory, CounterSizes};
use slb_core::snapshot::Snapshot;
use slb_core::spec::SpecError;
use slb_io_afxdp::Take;
use tracing::{error, info, warn};

use super::{Control, expect_shareable, limits_of, shares};
use crate::Failure;
use crate::balancer::Limits;
use crate::live::background::Background;
use crate::live::follow::Fleet;
use crate::live::next_hops::{Found, Query, unresolved};
use crate::live::status::Shared;
use crate::live::storm::Storm;
use crate::live::worker::{Next, secret};

/// The subject of the fault that next hops cannot be looked up.
const LOOK_UP: &str = "look up next hops";

/// The subject of the fault that the present configuration cannot be compiled with what is known.
const COMPILE: &str = "compile";

/// Work in threads of its own, which takes seconds for a large configuration.
///
/// ```text
///  a file that changed ─► next hops of its hosts ─► waits ─┐
///                                                          ├─► one snapshot at a time ─► in place
///  the kernel's tables ─► next hops of the present hosts ──┘
/// ```
#[derive(Default)]
pub(in crate::live) struct Work {
    /// A reloaded configuration, and the routes to its addresses.
    pub(super) loaded: Option<(Config, Background<io::Result<Found>>)>,
    /// The reloaded configuration to be compiled next, and the routes to its addresses.
    pub(super) ready: Option<Loaded>,
    /// The routes to the addresses of the present configuration.
    pub(super) look_up: Option<Background<io::Result<Found>>>,
    /// The snapshot being compiled: of a reloaded configuration with its routes, or of the present
    /// configuration.
    compile: Option<(Option<Loaded>, Background<Compiled>)>,
    /// True if the kernel's tables may have changed.
    pub(super) wants_look_up: bool,
    /// True if the known state of backends or devices has changed.
    pub(super) wants_compile: bool,
    look_up_pace: Pace,
    compile_pace: Pace,
    /// Changes of next hops.
    storm: Storm,
}

/// A reloaded configuration, and the routes to its addresses.
type Loaded = (Config, Found);

/// A configuration, completed with health and routes, and its snapshot.
type Compiled = Result<(Config, Arc<Snapshot<'static>>), SpecError>;

impl Work {
    /// Returns true while known changes are not installed yet.
    pub(super) fn is_behind(&self) -> bool {
        self.wants_compile || self.compile.is_some()
    }
}

/// The pace of repeated work, which takes at most half of the time.
#[derive(Debug)]
struct Pace {
    began: Instant,
    /// The time at which the work may begin again.
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
    pub(super) fn begin(&mut self) {
        self.began = Instant::now();
    }

    pub(super) fn end(&mut self) {
        self.next = Instant::now() + self.began.elapsed();
    }

    fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }
}

impl Control<'_> {
    /// Begins to install a reloaded configuration as a whole; an invalid one leaves the old one
    /// running.
    pub(super) fn reload(&mut self, loaded: Result<Config, Failure>) {
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
            ("direct_flows", old.direct_flows, new.direct_flows),
        ] {
            if was != is {
                warn!("{size} = {is} takes effect after a restart; until then it is {was}");
            }
        }
        match self.begin_look_up(self.next_hops.query(&given)) {
            Some(job) => self.work.loaded = Some((given, job)),
            None => self.stays(&"next hops cannot be looked up"),
        }
    }

    /// Takes the fleet's next configuration, and its health of backends.
    pub(super) fn follow_fleet(&mut self, shared: &Shared) {
        let Some(fleet) = &mut self.fleet else { return };
        let (is_another, asks_others) = fleet.look(shared, &self.snapshot);
        self.work.wants_compile |= is_another;
        fleet.count(&self.config, shared);
        if asks_others {
            self.ask_backends(None);
        }
        // Before the first round is over, a backend without an answer does not count as healthy.
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

    /// Sets the backends to probe: those of a configuration that is being installed, or of the
    /// present one.
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

    /// Continues the work in background threads, and installs finished snapshots.
    pub(super) fn work_on(&mut self, shared: &Shared) {
        let now = Instant::now();
        self.unreached.say_rest(now);
        let changes = self.work.storm.due(now);
        self.say_next_hops(changes);
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
            self.work.look_up = {
                let query = self.next_hops.query(&self.given);
                self.begin_look_up(query)
            };
        }
        if let Some(job) = self.work.look_up.take() {
            match job.result().map(Option::transpose) {
                Ok(Ok(None)) => self.work.look_up = Some(job),
                Ok(Ok(Some(found))) => {
                    self.work.look_up_pace.end();
                    if self.lasting.end(LOOK_UP).is_some() {
                        info!("next hops are looked up again");
                    }
                    self.found_out(found, shared);
                }
                Ok(Err(error)) => self.no_look_up(&error),
                Err(failure) => self.no_look_up(&failure),
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
                    self.lasting.end(COMPILE);
                    match self.put_in_place(config, snapshot) {
                        Ok(()) => self.is_in_place(given, shared),
                        Err(failure) => self.stays(&failure),
                    }
                }
                // The present one is compiled whenever what is known of it has changed.
                Ok(Err(_)) if given.is_none() && !self.lasting.is_due(COMPILE) => {}
                Ok(Err(error)) => self.stays(&error),
                Err(failure) => self.stays(&failure),
            }
        }
    }

    /// Says why next hops are not looked up, and tries that again.
    fn no_look_up(&mut self, why: &dyn fmt::Display) {
        self.work.look_up_pace.end();
        self.work.wants_look_up = true;
        if self.lasting.is_due(LOOK_UP) {
            error!("next hops are unchanged: {why}");
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
    fn begin_look_up(&mut self, query: Query) -> Option<Background<io::Result<Found>>> {
        let begun = Background::begin("look up next hops", move || query.run());
        let failed = |failure| {
            if self.lasting.is_due("begin to look up next hops") {
                error!("{failure}");
            }
        };
        begun.map_err(failed).ok()
    }

    /// Records the routes to the addresses of the present configuration.
    fn found_out(&mut self, found: Found, shared: &Shared) {
        let is_another = self.unreached.note(&self.given, &found);
        let fabric = self.plan.fabric().map(|interface| &*interface.name);
        self.work.wants_compile |= self.narrow.note(&self.given, &found);
        self.unreached.note_across(&self.given, &found, fabric);
        shared.set_unreachable(self.unreached.hosts());
        let takes_others = self.plan.taken(&self.config) != self.taken;
        self.work.wants_compile |= is_another || takes_others;
        if *found != *self.found {
            self.work.wants_compile = true;
            self.found = found;
            let changes = self.work.storm.note(Instant::now());
            self.say_next_hops(changes);
            self.ask(false);
        } else {
            self.work.wants_compile |= found != self.found;
            self.found = found;
        }
    }

    /// Reports changes of next hops, if a line about them is due.
    fn say_next_hops(&self, changes: Option<usize>) {
        let Some(changes) = changes else { return };
        let unresolved = unresolved(&self.given, &self.found);
        let of = self.found.len();
        match changes {
            1 => info!(of, unresolved, "next hops changed"),
            changes => info!(of, unresolved, changes, "next hops changed"),
        }
    }

    /// Begins to compile a reloaded configuration, or the present one, with its health and routes.
    fn begin_compile(&mut self, ready: Option<Loaded>) {
        self.work.compile_pace.begin();
        self.work.wants_compile = false;
        let (given, found) = match &ready {
            Some((given, found)) => (given, found),
            None => (&self.given, &self.found),
        };
        let known = self.next_hops.are_needed().then_some(found);
        let mut config = self.plan.complete(given, known);
        found.limit(&mut config);
        if let Some(fleet) = &self.fleet {
            fleet.apply(&mut config);
        }
        // In a fleet, all nodes use the fleet's health, as long as it is available.
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

    /// Records the installed configuration: `loaded`, or the present one with new health and
    /// routes.
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
            // Do not repeat earlier warnings.
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
            // A lookup in progress belongs to the former configuration.
            self.work.look_up = None;
            self.work.wants_look_up = true;
            self.ask(false);
        }
    }

    /// Installs a configuration in all workers; each packet is processed by one configuration.
    fn put_in_place(
        &mut self,
        config: Config,
        snapshot: Arc<Snapshot<'static>>,
    ) -> Result<(), Failure> {
        expect_shareable(&config, &snapshot, self.workers.len())?;
        let taken = self.plan.taken(&config);
        // Packets of removed addresses go to the kernel before the workers forget the addresses,
        // and packets of new addresses arrive after the workers know them.
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
        let is_larger = !self.counters.fit(&snapshot);
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
                // The next snapshot replaces one that was not installed, and brings counters and
                // limits again.
                self.counters = CounterSizes::default();
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
}
