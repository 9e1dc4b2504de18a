//! `--fleet`: what a fleet wants takes the place of a file, and its health that of the node's own probes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use slb_control::probe::Prober;
use slb_control::{Config, Role, open_file, read_text};
use slb_core::snapshot::Snapshot;
use slb_core::spec::BackendState;
use slb_fleet::cache::Cache;
use slb_fleet::document::NodeFile;
use slb_fleet::node::{Generation, Node, NodeOptions, Standing};
use slb_fleet::object::Agents;
use slb_fleet::rollout::Side;
use tracing::{info, warn};

use super::metrics::Endpoint;
use super::status::Shared;
use crate::Failure;
use crate::cli::LiveOptions;

/// The interval of checks for the first generation.
const TICK: Duration = Duration::from_millis(20);
/// The time that a node with a cache waits for the store before it starts from the cache.
const PATIENCE: Duration = Duration::from_secs(3);
/// The interval of counts of connections on leaving backends.
const COUNT: Duration = Duration::from_secs(1);

/// The node's fleet.
pub(super) struct Fleet {
    node: Node,
    path: PathBuf,
    file: NodeFile,
    role: Role,
    /// The generation that is in place.
    present: Option<Generation>,
    /// The one that is being put in place.
    next: Option<Generation>,
    /// True if the node's own file has changed since.
    has_other_file: bool,
    agents: Agents,
    is_autonomous: bool,
    counted: Instant,
}

impl Fleet {
    /// Begins to follow the fleet that options name; `None` if they name none.
    pub(super) fn start(options: &LiveOptions, role: Role) -> Result<Option<Self>, Failure> {
        if options.fleet.is_empty() {
            return Ok(None);
        }
        let side = match role {
            Role::Host => Side::Host,
            Role::Mux => Side::Mux,
            Role::Proxy => {
                return Err(Failure::usage("--fleet is for muxes and host agents"));
            }
        };
        let path = options.config.path();
        let (file, given) = read(path)?;
        let addresses: Vec<_> = [
            given.node.ipv4.map(Into::into),
            given.node.ipv6.map(Into::into),
        ]
        .into_iter()
        .flatten()
        .collect();
        let first = addresses.first();
        let name = options.fleet_name.clone();
        let name = name.or_else(|| first.map(ToString::to_string));
        let name = name.ok_or_else(|| {
            Failure::usage("--fleet takes an underlay address in [node], or --fleet-name")
        })?;
        let cache = options.cache.as_deref().map(|path| {
            let failed = |error| Failure::failed(format!("--cache {}: {error}", path.display()));
            Cache::open(path).map_err(failed)
        });
        let cluster = options.fleet_access.cluster.clone();
        info!(cluster, name, "following a fleet");
        let store = crate::fleet::connect(&options.fleet, &options.fleet_access)?;
        let node = Node::start(
            store,
            NodeOptions {
                cluster,
                side,
                name,
                addresses,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                zone: given.node.zone.clone(),
                cache: cache.transpose()?,
            },
        );
        Ok(Some(Self {
            node: node.map_err(Failure::failed)?,
            path: path.to_owned(),
            file,
            role,
            present: None,
            next: None,
            has_other_file: false,
            agents: Agents::default(),
            is_autonomous: false,
            counted: Instant::now(),
        }))
    }

    /// The first configuration. Waits for it: of the store, or after a moment of the cache. Meanwhile the endpoint, if
    /// there is one, says what for.
    pub(super) fn first(&mut self, mut endpoint: Option<&mut Endpoint>) -> Result<Config, Failure> {
        let begin = Instant::now();
        let (mut told, mut is_said) = (String::new(), false);
        loop {
            let standing = self.node.standing();
            // What the store has is newer than the cache.
            let waits = standing.away.is_some() && begin.elapsed() < PATIENCE;
            if !waits && let Some(config) = self.take() {
                self.agents = self.node.agents();
                return Ok(config);
            }
            let why = waiting_for(&standing);
            if let Some(endpoint) = &mut endpoint
                && why != told
            {
                endpoint.wait(&why)?;
                told = why;
            }
            if !is_said && begin.elapsed() >= PATIENCE {
                is_said = true;
                info!("waiting for the fleet's first generation");
            }
            sleep(TICK);
        }
    }

    /// The next configuration, if there is one and the one before is in place or refused. What is no good is
    /// refused.
    pub(super) fn take(&mut self) -> Option<Config> {
        if self.next.is_some() {
            return None;
        }
        let next = match self.node.take() {
            Some(next) => next,
            None if self.has_other_file => self.present.clone()?,
            None => return None,
        };
        self.has_other_file = false;
        match self.file.with(&self.path.display().to_string(), &next.spec) {
            Ok(mut config) => {
                config.node.role = self.role;
                self.next = Some(next);
                Some(config)
            }
            Err(error) => {
                let generation = next.release.generation;
                warn!(generation, "the fleet's configuration is refused: {error}");
                self.node.refuse(&next.release, error.to_string());
                None
            }
        }
    }

    /// Reads the node's own file again. A bad one changes nothing.
    pub(super) fn read_again(&mut self) {
        match read(&self.path) {
            Ok((file, given)) => {
                self.node.set_zone(given.node.zone);
                self.has_other_file |= file != self.file;
                self.file = file;
            }
            Err(failure) => warn!("[node] is unchanged: {failure}"),
        }
    }

    /// Says that the configuration that was taken last is in place.
    pub(super) fn is_in_place(&mut self) {
        if let Some(next) = self.next.take() {
            self.node.acknowledge(&next.release);
            self.present = Some(next);
        }
    }

    /// Says why it is not.
    pub(super) fn refuse(&mut self, why: &str) {
        if let Some(next) = self.next.take() {
            self.node.refuse(&next.release, why.to_owned());
        }
    }

    /// Takes down in a configuration what the fleet knows of its backends.
    pub(super) fn apply(&self, config: &mut Config) {
        self.node.apply(config);
    }

    /// True if the node uses what it finds itself, beside what the fleet said last: it may take
    /// backends out then, and none in.
    pub(super) fn is_autonomous(&self) -> bool {
        self.is_autonomous
    }

    /// Looks for news; returns whether health has changed, and whether others are to be probed.
    pub(super) fn look(
        &mut self,
        shared: &Shared,
        snapshot: &Arc<Snapshot<'static>>,
    ) -> (bool, bool) {
        let standing = self.node.standing();
        let mut is_another = self.node.has_changed();
        let mut asks_others = false;
        if is_another {
            let agents = self.node.agents();
            asks_others = agents != self.agents;
            self.agents = agents;
        }
        if standing.is_autonomous() != self.is_autonomous {
            self.is_autonomous = standing.is_autonomous();
            match self.is_autonomous {
                true => warn!(
                    "the fleet's store is unreachable: this node takes out backends that fail its own probes"
                ),
                false => info!("the fleet's health applies again"),
            }
            (is_another, asks_others) = (true, true);
        }
        shared.set_fleet(standing, snapshot);
        (is_another, asks_others)
    }

    /// The configuration by which backends are probed here: of a mux, without those of hosts that have an agent,
    /// unless it is on its own.
    pub(super) fn probed(&self, given: &Config) -> Config {
        let mut probed = given.clone();
        if self.role == Role::Mux && !self.is_autonomous {
            let backends = probed.pools.iter_mut().flat_map(|pool| &mut pool.backends);
            for backend in backends.filter(|own| self.agents.at(own.host).is_some()) {
                // One that is not to be used is not asked.
                backend.state = BackendState::Down;
            }
        }
        probed
    }

    /// Says what probes found.
    pub(super) fn report(&self, prober: &Prober) {
        let failing = prober
            .failing()
            .map(|(pool, probe, name)| (pool.to_owned(), probe.to_owned(), name.to_owned()));
        let mut failing: Vec<_> = failing.collect();
        failing.sort();
        self.node.set_failing(failing);
    }

    /// Counts the connections on backends that leave, once in a while.
    pub(super) fn count(&mut self, config: &Config, shared: &Shared) {
        let Some(present) = &self.present else { return };
        if self.counted.elapsed() < COUNT || self.role != Role::Host {
            return;
        }
        self.counted = Instant::now();
        if present.leaving.is_empty() {
            self.node.set_left(Some(0));
            return;
        }
        let Some(counters) = shared.backend_counters() else {
            self.node.set_left(None);
            return;
        };
        let mut left = 0;
        for (at, pool) in config.pools.iter().enumerate() {
            for (place, backend) in pool.backends.iter().enumerate() {
                let name = format!("{}/{}", pool.name, backend.name);
                let counted = counters.get(&(at, place));
                if present.leaving.contains(&name) {
                    left += counted.map_or(0, |counted| counted.live);
                }
            }
        }
        self.node.set_left(Some(left));
    }
}

/// Returns the reason why a node has no configuration yet.
fn waiting_for(standing: &Standing) -> String {
    let why = match (&standing.refused, &standing.fault) {
        (Some(refused), _) => format!(": it refuses {}: {}", refused.generation, refused.why),
        (None, Some(fault)) => format!(": {fault}"),
        (None, None) => String::new(),
    };
    format!("waiting for the fleet's first generation{why}")
}

fn read(path: &Path) -> Result<(NodeFile, Config), Failure> {
    let config = crate::check::load(path)?;
    let name = path.display().to_string();
    let text = read_text(open_file(path));
    let text = text.map_err(|why| Failure::usage(format!("{name}: {why}")))?;
    let file = NodeFile::parse(&name, &text).map_err(Failure::usage)?;
    Ok((file, config))
}

/// Returns the node's standing in its fleet as JSON, for the status.
pub(super) fn standing_json(standing: &Standing, tables: Option<&str>) -> serde_json::Value {
    let refused = standing.refused.as_ref();
    serde_json::json!({
        "away": standing.away.map(|away| away.as_secs_f64()),
        "fault": standing.fault,
        "autonomous": standing.is_autonomous(),
        "held": standing.held,
        "live": standing.live,
        "tables": tables,
        "refused": refused.map(|own| serde_json::json!({
            "generation": own.generation, "why": own.why,
        })),
    })
}
