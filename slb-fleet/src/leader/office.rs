//! The state of a controller that leads, and the steps of its turn.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use slb_control::{Config, SlowStart};
use slb_core::Instant;
use tracing::{error, info, warn};

use super::{FleetView, NodeView, TOGETHER, failing};
use crate::document::Spec;
use crate::fetch::{FetchError, Known, objects_of, put_all};
use crate::health::{Reports, tables};
use crate::object::{
    Agents, Digest, Forget, Health, Index, Keys, Object, Report, Table, Wanted, escape,
};
use crate::rollout::{Machine, Member, Plan, Rollout, Side, Stage};
use crate::store::{Condition, Event, MOST_OPERATIONS, Operation, Revision, Store, Watch};

/// How long a controller that begins to lead does without the word of nodes that it knows of: after an outage of the
/// store, the leases of all may have ended, and each takes a new one.
const GRACE: Duration = Duration::from_secs(12);

/// The most addresses that a host may report.
const MOST_ADDRESSES: usize = 16;

/// The most faults that are remembered as logged.
const MOST_SAID: usize = 1000;

/// The state of a controller that leads.
pub(super) struct Office {
    /// When it began to lead.
    pub(super) since: Duration,
    /// The condition that holds while the controller leads.
    pub(super) leads: Condition,
    pub(super) watch: Box<dyn Watch>,
    /// All entries but those of specs.
    pub(super) entries: BTreeMap<String, (Vec<u8>, Revision)>,
    pub(super) machine: Machine,
    pub(super) known: Known,
    /// The objects that it wrote, and the revision of each.
    pub(super) written: BTreeMap<String, Revision>,
    /// The index that was checked last, and the configuration of it, which hosts most often have next.
    pub(super) checked: Option<(Digest, Config)>,
    /// The release for hosts, which is never behind the muxes'.
    pub(super) present: Option<Present>,
    pub(super) agents: Agents,
    pub(super) tables: BTreeMap<String, Table>,
    pub(super) slow_start: SlowStart,
    /// The wanted index, and since when it is.
    pub(super) wanted: Option<(Digest, Duration)>,
    /// True if it was applied since the last rollout began, even if it is the same.
    pub(super) is_asked: bool,
    /// The release for hosts, where its objects cannot be used.
    pub(super) unusable: Option<Digest>,
    /// True if health, agents or the spec have changed since the tables were computed.
    pub(super) is_stale: bool,
    /// True if the tables were computed without silent nodes.
    pub(super) is_lenient: bool,
    /// True if the store may hold objects without a reference.
    pub(super) is_untidy: bool,
    /// Faults of nodes that were logged.
    pub(super) said: RefCell<BTreeSet<String>>,
}

/// A spec that hosts have.
pub(super) struct Present {
    pub(super) digest: Digest,
    pub(super) index: Index,
    pub(super) config: Config,
    /// The addresses that agents speak for, where the spec says it.
    pub(super) hosts: Option<BTreeMap<IpAddr, String>>,
}

/// The controller does not lead any more.
pub(super) struct Deposed;

pub(super) enum Ended {
    Deposed,
    Failed(FetchError),
}

impl From<Deposed> for Ended {
    fn from(_: Deposed) -> Self {
        Self::Deposed
    }
}

impl<E: Into<FetchError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Office {
    pub(super) fn note(&mut self, keys: &Keys, event: Event, now: Duration) -> Result<(), Ended> {
        let Some(rest) = event.key().strip_prefix(keys.all()).map(str::to_owned) else {
            return Ok(());
        };
        if rest.starts_with("spec/") {
            return Ok(());
        }
        if rest.starts_with("health/") || rest.starts_with("node/") {
            self.is_stale = true;
        }
        let entry = match event {
            Event::Deleted(key) => {
                self.entries.remove(&key);
                return Ok(());
            }
            Event::Put(entry) => entry,
        };
        if rest == "wanted" {
            // One that cannot be read changes nothing: health and the rollout under way go on.
            match Wanted::read(&entry.key, &entry.value) {
                Ok(Wanted { index }) => {
                    self.wanted = Some((index, now));
                    (self.is_asked, self.unusable) = (true, None);
                }
                Err(error) => warn!("{error}"),
            }
        }
        self.entries
            .insert(entry.key, (entry.value, entry.modified));
        Ok(())
    }

    pub(super) fn object<T: Object>(&self, key: &str) -> Result<Option<T>, Ended> {
        let found = self.entries.get(key);
        let read = found.map(|(value, _)| T::read(key, value));
        Ok(read.transpose()?)
    }

    /// All objects under a prefix, by the rest of their keys. What cannot be read is left out: one node's fault is no
    /// other's.
    pub(super) fn objects<T: Object>(&self, prefix: &str) -> BTreeMap<String, T> {
        let from = self.entries.range(prefix.to_owned()..);
        let own = from.take_while(|(key, _)| key.starts_with(prefix));
        own.filter_map(|(key, (value, _))| match T::read(key, value) {
            Ok(object) => Some((key.strip_prefix(prefix)?.to_owned(), object)),
            Err(error) => {
                self.say_once(error.to_string());
                None
            }
        })
        .collect()
    }

    /// Logs a fault of a node, which each turn finds again.
    pub(super) fn say_once(&self, fault: String) {
        let mut said = self.said.borrow_mut();
        if said.len() >= MOST_SAID {
            said.clear();
        }
        if !said.contains(&fault) {
            warn!("{fault}");
            said.insert(fault);
        }
    }

    /// Returns true if nodes may be silent only because the store was away.
    pub(super) fn is_new(&self, now: Duration) -> bool {
        now.saturating_sub(self.since) < GRACE
    }

    /// The nodes that are there, and hosts that will be back if it was the store that was away.
    pub(super) fn members(&self, keys: &Keys, now: Duration) -> Vec<Member> {
        let mut members = self.present_members(keys);
        let agents = self.agents.agents.keys().filter(|_| self.is_new(now));
        for name in agents {
            let is_own = |own: &Member| own.side == Side::Host && own.name == *name;
            if !members.iter().any(is_own) {
                members.push(Member {
                    side: Side::Host,
                    name: name.clone(),
                    live: 0,
                    refused: None,
                    left: None,
                });
            }
        }
        members
    }

    pub(super) fn view(&self, keys: &Keys) -> FleetView {
        let mut nodes = Vec::new();
        for side in [Side::Host, Side::Mux] {
            let prefix = keys.key(&format!("node/{}/", side.name()));
            let from = self.entries.range(prefix.clone()..);
            let own = from.take_while(|(key, _)| key.starts_with(&prefix));
            nodes.extend(own.map(|(key, (value, _))| NodeView::read(side, key, value)));
        }
        let gone = self.agents.agents.keys().filter(|name| {
            let key = keys.key(&format!("node/{}/{name}", Side::Host.name()));
            !self.entries.contains_key(&key)
        });
        nodes.extend(gone.map(|name| NodeView::gone(name)));
        let mut failing = failing(self.tables.values());
        // A pool whose backends were always well has no table.
        let pools = self
            .present
            .iter()
            .flat_map(|present| &present.config.pools);
        for pool in pools {
            failing.entry(pool.name.clone()).or_default();
        }
        FleetView {
            rollout: self.machine.record().clone(),
            wanted: self.wanted.as_ref().map(|(digest, _)| digest.clone()),
            nodes,
            failing,
        }
    }

    pub(super) fn present_members(&self, keys: &Keys) -> Vec<Member> {
        let of = |side: Side| {
            let reports = self.objects::<Report>(&keys.key(&format!("node/{}/", side.name())));
            reports.into_iter().map(move |(name, report)| Member {
                side,
                name,
                live: report.live,
                refused: report.refused,
                left: report.left,
            })
        };
        of(Side::Host).chain(of(Side::Mux)).collect()
    }

    /// Takes note of hosts that have an agent. The first that names an address has it for as long as it is there;
    /// after that, another that names it, such as the same agent under a new name, takes the address over.
    pub(super) fn register_agents(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        now: Duration,
    ) -> Result<(), Ended> {
        let has_spec = self.machine.record().hosts.is_some();
        if has_spec && self.present.is_none() && self.unusable.is_none() {
            // Who may speak for which address is about to be read.
            return Ok(());
        }
        let reports = self.objects::<Report>(&keys.key("node/host/"));
        let mut agents = self.agents.clone();
        for (name, addresses) in &self.agents.agents {
            for &address in addresses {
                if !self.may_speak(name, address) {
                    agents.release(name, address);
                }
            }
        }
        for (name, report) in &reports {
            if report.addresses.len() > MOST_ADDRESSES {
                self.say_once(format!(
                    "host {name}: expected at most {MOST_ADDRESSES} addresses, got {}",
                    report.addresses.len()
                ));
                continue;
            }
            for &address in &report.addresses {
                if !self.may_speak(name, address) {
                    self.say_once(format!(
                        "host {name}: address {address} is not its own by hosts of [fleet]"
                    ));
                    continue;
                }
                match agents.at(address).map(str::to_owned) {
                    Some(other) if other == *name => continue,
                    Some(other) if reports.contains_key(&other) || self.is_new(now) => {
                        self.say_once(format!("host {name}: address {address} is host {other}'s"));
                        continue;
                    }
                    Some(other) => {
                        warn!(%address, from = other, to = name, "an address has another agent");
                        agents.release(&other, address);
                    }
                    None => {}
                }
                agents.agents.entry(name.clone()).or_default().push(address);
            }
        }
        if agents != self.agents {
            let put = Operation::put(keys.key("state/agents"), agents.write());
            self.write(store, &[], &[put])?;
            self.agents = agents;
            self.is_stale = true;
        }
        Ok(())
    }

    /// Returns true if a host agent may speak for an address, as far as the spec says it.
    pub(super) fn may_speak(&self, name: &str, address: IpAddr) -> bool {
        let hosts = self.present.as_ref().and_then(|own| own.hosts.as_ref());
        hosts.is_none_or(|hosts| hosts.get(&address).is_some_and(|own| own == name))
    }

    /// Forgets the agents that operators ask to forget, unless they are there.
    pub(super) fn forget_agents(&mut self, store: &dyn Store, keys: &Keys) -> Result<(), Ended> {
        let asked = self.objects::<Forget>(&keys.key("forget/"));
        if asked.is_empty() {
            return Ok(());
        }
        let mut agents = self.agents.clone();
        let mut operations = Vec::new();
        for name in asked.keys().take(MOST_OPERATIONS / 2) {
            operations.push(Operation::Delete(keys.key(&format!("forget/{name}"))));
            if self
                .entries
                .contains_key(&keys.key(&format!("node/host/{name}")))
            {
                warn!(name, "an agent that is there is not forgotten");
            } else if agents.agents.remove(name).is_some() {
                warn!(name, "an agent is forgotten");
            }
        }
        operations.push(Operation::put(keys.key("state/agents"), agents.write()));
        self.write(store, &[], &operations)?;
        for operation in &operations {
            if let Operation::Delete(key) = operation {
                self.entries.remove(key);
            }
        }
        self.is_stale |= agents != self.agents;
        self.agents = agents;
        Ok(())
    }

    pub(super) fn write(
        &self,
        store: &dyn Store,
        more: &[Condition],
        operations: &[Operation],
    ) -> Result<Revision, Ended> {
        let mut conditions = vec![self.leads.clone()];
        conditions.extend_from_slice(more);
        let written = store.commit(&conditions, operations)?;
        Ok(written.ok_or(Deposed)?)
    }

    pub(super) fn store_rollout(&mut self, store: &dyn Store, keys: &Keys) -> Result<(), Ended> {
        let key = keys.key("state/rollout");
        let record = self.machine.record();
        let generation = record.generation;
        match &record.stage {
            Stage::Stopped { node, why } => error!(generation, node, why, "the rollout stopped"),
            stage => info!(generation, stage = stage.name(), "rollout"),
        }
        let put = Operation::put(key.clone(), record.write());
        let unchanged = match self.entries.get(&key) {
            Some((_, revision)) => Condition::ModifiedIn(key.clone(), *revision),
            None => Condition::Absent(key.clone()),
        };
        let written = record.write();
        let revision = self.write(store, &[unchanged], &[put])?;
        self.entries.insert(key, (written, revision));
        self.is_untidy = true;
        Ok(())
    }

    /// Begins to roll out what is wanted, if it is something new.
    pub(super) fn begin(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        name: &str,
        now: Duration,
    ) -> Result<(), Ended> {
        let record = self.machine.record();
        let Some((wanted, since)) = self.wanted.clone() else {
            return Ok(());
        };
        if now.saturating_sub(since) < TOGETHER || !record.may_begin() {
            return Ok(());
        }
        let is_stopped = matches!(record.stage, Stage::Stopped { .. });
        let is_again = is_stopped && (self.is_asked || self.may_try_again(keys));
        self.is_asked = false;
        if record.target.as_ref() == Some(&wanted) && !is_again {
            return Ok(());
        }
        let record = self.machine.record().clone();
        let plan = match self.plan(store, keys, &wanted, &record) {
            Err(Ended::Failed(FetchError::Object(error))) => {
                let node = format!("controller {name}");
                self.machine.refuse(wanted, node, error.to_string(), now);
                return self.store_rollout(store, keys);
            }
            other => other?,
        };
        self.machine.begin(plan, now);
        self.store_rollout(store, keys)
    }

    /// Returns true if a stopped rollout can go on: the node that refused it is gone or has accepted it.
    pub(super) fn may_try_again(&self, keys: &Keys) -> bool {
        let record = self.machine.record();
        let Stage::Stopped { node, .. } = &record.stage else {
            return false;
        };
        if node.starts_with("controller ") {
            return false;
        }
        let refuses = |member: &Member| {
            let refused = member.refused.as_ref();
            refused.is_some_and(|own| own.generation == record.generation)
        };
        !self.present_members(keys).iter().any(refuses)
    }

    /// Plans a change; leaving backends stay for a while, drained.
    pub(super) fn plan(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        wanted: &Digest,
        record: &Rollout,
    ) -> Result<Plan, Ended> {
        let (index, spec) = self.known.fetch(store, keys, wanted)?;
        let config = spec.checked("the wanted state")?;
        self.checked = Some((wanted.clone(), config));
        // Not what a node refused: beside the target, it would be refused again.
        let settled = record.settled.as_ref();
        let settled = settled.map(|index| self.known.fetch(store, keys, index));
        let settled = match settled.transpose() {
            Ok(settled) => settled,
            // What cannot be read must not keep what can be from taking its place.
            Err(FetchError::Object(error)) => {
                warn!("nothing is drained, since the former state is lost: {error}");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let former: Vec<&Spec> = settled.iter().map(|(_, spec)| spec).collect();
        let (union, leaving) = spec.with_leavers(&former);
        let target = wanted.clone();
        if leaving.is_empty() {
            let first = target.clone();
            return Ok(Plan { first, target });
        }
        let made = union.objects(keys, leaving)?;
        let indexes = std::iter::once(&index).chain(settled.iter().map(|(index, _)| index));
        let there: BTreeSet<String> = indexes
            .flat_map(|index| objects_of(keys, index).into_keys())
            .collect();
        let new = made.objects.iter().filter(|(key, _)| !there.contains(*key));
        let written = put_all(store, std::slice::from_ref(&self.leads), new)?;
        self.written.extend(written.ok_or(Deposed)?);
        let first = made.index();
        Ok(Plan { first, target })
    }

    /// Reads what hosts are to have, if that is another spec than before.
    pub(super) fn follow_hosts(&mut self, store: &dyn Store, keys: &Keys) -> Result<(), Ended> {
        let Some(release) = &self.machine.record().hosts else {
            return Ok(());
        };
        if self
            .present
            .as_ref()
            .is_some_and(|own| own.digest == release.index)
        {
            return Ok(());
        }
        let digest = release.index.clone();
        if self.unusable.as_ref() == Some(&digest) {
            return Ok(());
        }
        match self.read_present(store, keys, digest.clone()) {
            Ok(present) => {
                self.present = Some(present);
                self.is_stale = true;
                Ok(())
            }
            // Another spec may take its place, and until then health goes on by the one before.
            Err(FetchError::Object(error)) => {
                error!("the state that hosts are to have is lost: apply it again: {error}");
                self.unusable = Some(digest);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn read_present(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        digest: Digest,
    ) -> Result<Present, FetchError> {
        let (index, spec) = self.known.fetch(store, keys, &digest)?;
        let checked = self.checked.take_if(|(of, _)| *of == digest);
        let config = match checked {
            Some((_, config)) => config,
            None => spec.config("the fleet", &spec.any_node())?,
        };
        let hosts = spec.hosts()?.map(|hosts| {
            let all = hosts.into_iter().flat_map(|(name, addresses)| {
                let name = escape(&name);
                addresses.into_iter().map(move |own| (own, name.clone()))
            });
            all.collect()
        });
        Ok(Present {
            digest,
            index,
            config,
            hosts,
        })
    }

    /// Returns true if an agent that is there counts the connections of every leaving backend.
    pub(super) fn is_counted(&self, keys: &Keys) -> bool {
        let Some(present) = &self.present else {
            return false;
        };
        let reports = self.objects::<Report>(&keys.key("node/host/"));
        let leaving: BTreeSet<&str> = present.index.leaving.iter().map(String::as_str).collect();
        let pools = present.config.pools.iter();
        let mut hosts = pools.flat_map(|pool| {
            let own = pool
                .backends
                .iter()
                .filter(|backend| leaving.contains(&*format!("{}/{}", pool.name, backend.name)));
            own.map(|backend| backend.host).collect::<Vec<_>>()
        });
        hosts.all(|host| {
            let agent = self.agents.at(host);
            agent.is_some_and(|agent| reports.contains_key(agent))
        })
    }

    /// The backends that fail by the tables as they are.
    pub(super) fn former_health(&self) -> Health {
        let all = self.tables.values().flat_map(|table| {
            let by = table
                .by
                .iter()
                .filter_map(|by| Some((by.probe.clone()?, by)));
            by.flat_map(move |(probe, by)| {
                let failing = by.failing.iter();
                failing.map(move |name| (table.pool.clone(), probe.clone(), name.clone()))
            })
        });
        Health {
            failing: all.collect(),
        }
    }

    /// Works out health and weights anew, where something about them has changed, and writes those that did.
    pub(super) fn work_out_tables(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        now: Duration,
    ) -> Result<(), Ended> {
        let is_new = self.is_new(now);
        let now = Instant::ZERO + now;
        let mut is_due = self.slow_start.due().is_some_and(|due| due <= now);
        // Once, when silence begins to count.
        is_due |= self.is_lenient && !is_new;
        let Some(present) = self.present.as_ref().filter(|_| self.is_stale || is_due) else {
            return Ok(());
        };
        let mut reports = Reports {
            hosts: self.objects::<Health>(&keys.key("health/host/")),
            muxes: self.objects::<Health>(&keys.key("health/mux/")),
        };
        if is_new {
            // Until then, what was the case counts.
            let former = self.former_health();
            for agent in self.agents.agents.keys() {
                let word = reports.hosts.entry(agent.clone());
                word.or_insert_with(|| former.clone());
            }
        }
        self.is_lenient = is_new;
        let mut config = present.config.clone();
        reports.apply(&self.agents, &mut config);
        let mut new = tables(&config, &mut self.slow_start, now);
        let mut operations = Vec::new();
        for (pool, table) in &mut new {
            let old = self.tables.get(pool);
            table.epoch = old.map_or(0, |old| old.epoch);
            if old != Some(table) {
                table.epoch += 1;
                operations.push(Operation::put(keys.table(pool), table.write()));
            }
        }
        // An empty one stays, so that epochs go on.
        for (pool, old) in &self.tables {
            let is_known = present.config.pools.iter().any(|own| own.name == *pool);
            if new.contains_key(pool) {
                continue;
            }
            if !is_known {
                operations.push(Operation::Delete(keys.table(pool)));
                continue;
            }
            let mut empty = Table {
                epoch: old.epoch,
                pool: pool.clone(),
                by: Vec::new(),
            };
            if *old != empty {
                empty.epoch += 1;
                operations.push(Operation::put(keys.table(pool), empty.write()));
            }
            new.insert(pool.clone(), empty);
        }
        for batch in operations.chunks(MOST_OPERATIONS) {
            self.write(store, &[], batch)?;
        }
        self.tables = new;
        self.is_stale = false;
        Ok(())
    }

    /// Deletes the objects of specs that nothing refers to any more.
    pub(super) fn tidy(&mut self, store: &dyn Store, keys: &Keys) -> Result<(), Ended> {
        let record = self.machine.record();
        let wanted = self.wanted.as_ref().map(|(digest, _)| digest);
        if !self.is_untidy || record.stage != Stage::Live || wanted != record.target.as_ref() {
            return Ok(());
        }
        self.is_untidy = false;
        let Some((_, applied)) = self.entries.get(&keys.wanted()) else {
            return Ok(());
        };
        let applied = *applied;
        let releases = [&record.hosts, &record.muxes].into_iter().flatten();
        let mut used: BTreeSet<Digest> = releases.map(|release| release.index.clone()).collect();
        used.extend(record.settled.clone());
        used.extend(record.target.clone());
        let mut keeps = BTreeSet::new();
        for digest in used {
            let (index, _) = match self.known.fetch(store, keys, &digest) {
                Ok(fetched) => fetched,
                // Nothing is deleted while it is not known what is in use.
                Err(FetchError::Object(error)) => {
                    self.say_once(error.to_string());
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            keeps.insert(keys.index(&digest));
            keeps.extend(objects_of(keys, &index).into_keys());
        }
        self.known.retain(&keeps);
        let listing = store.list(&keys.key("spec/"))?;
        // What others wrote since the wanted state was last changed may be of the next one, and so may what is
        // written between here and there.
        let stale = listing.entries.into_iter().filter(|entry| {
            let is_own = self.written.get(&entry.key) == Some(&entry.modified);
            (is_own || entry.modified < applied) && !keeps.contains(&entry.key)
        });
        let stale: Vec<(Condition, Operation)> = stale
            .map(|entry| {
                let unchanged = Condition::ModifiedIn(entry.key.clone(), entry.modified);
                (unchanged, Operation::Delete(entry.key))
            })
            .collect();
        for batch in stale.chunks(MOST_OPERATIONS - 2) {
            let (mut conditions, operations): (Vec<_>, Vec<_>) = batch.iter().cloned().unzip();
            conditions.push(self.leads.clone());
            conditions.push(Condition::ModifiedIn(keys.wanted(), applied));
            // Where something has changed, it is tidied up another time.
            store.commit(&conditions, &operations)?;
        }
        self.written.retain(|key, _| keeps.contains(key));
        Ok(())
    }
}
