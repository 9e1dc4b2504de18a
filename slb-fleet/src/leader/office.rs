//! The state of a controller that leads, and the steps of its turn.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use slb_control::{Config, SlowStart};
use tracing::{error, info, warn};

use crate::fetch::{FetchError, Known};
use crate::object::{Agents, Digest, Index, Keys, Object, Report, Table, Wanted};
use crate::rollout::{Machine, Member, Side, Stage};
use crate::store::{Condition, Event, Operation, Revision, Store, Watch};
use crate::zones::ZoneView;

/// The time for which a new leader tolerates silent nodes: after an outage of the store, all leases
/// may have ended, and each node needs a new one.
const GRACE: Duration = Duration::from_secs(12);

/// The maximum number of faults that are remembered as logged.
const MOST_SAID: usize = 1000;

/// The state of a controller that leads.
pub(super) struct Office {
    /// The time at which the controller began to lead.
    pub(super) since: Duration,
    /// The condition that holds while the controller leads.
    pub(super) leads: Condition,
    pub(super) watch: Box<dyn Watch>,
    /// All entries except those of specs.
    pub(super) entries: BTreeMap<String, (Vec<u8>, Revision)>,
    pub(super) machine: Machine,
    pub(super) known: Known,
    /// The objects that the leader wrote, and the revision of each.
    pub(super) written: BTreeMap<String, Revision>,
    /// The index that was checked last, and its configuration, which hosts usually get next.
    pub(super) checked: Option<(Digest, Config)>,
    /// The release for hosts, which is never older than the muxes'.
    pub(super) present: Option<Present>,
    pub(super) agents: Agents,
    pub(super) tables: BTreeMap<String, Table>,
    /// The zones of pools, by these tables.
    pub(super) zones: Vec<ZoneView>,
    pub(super) slow_start: SlowStart,
    /// The wanted index, and the time since which it is wanted.
    pub(super) wanted: Option<(Digest, Duration)>,
    /// True if the wanted state was applied since the last rollout began, even without a change.
    pub(super) is_asked: bool,
    /// The release for hosts, if its objects cannot be used.
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

/// The spec of the hosts.
pub(super) struct Present {
    pub(super) digest: Digest,
    pub(super) index: Index,
    pub(super) config: Config,
    /// The addresses that agents may report for, if the spec lists them.
    pub(super) hosts: Option<BTreeMap<IpAddr, String>>,
}

/// The error of a controller that no longer leads.
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
            // An unreadable entry changes nothing: health and the present rollout continue.
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

    /// Returns all objects under a prefix, by the rest of their keys. Unreadable objects are left
    /// out: a fault of one node must not affect others.
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

    /// Logs a fault of a node once, although each turn finds it again.
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

    /// Returns true if nodes may be silent only because of an outage of the store.
    pub(super) fn is_new(&self, now: Duration) -> bool {
        now.saturating_sub(self.since) < GRACE
    }

    /// Returns the present nodes, and hosts that will be back after an outage of the store.
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
                    index: None,
                    refused: None,
                    left: None,
                });
            }
        }
        members
    }

    pub(super) fn present_members(&self, keys: &Keys) -> Vec<Member> {
        let of = |side: Side| {
            let reports = self.objects::<Report>(&keys.key(&format!("node/{}/", side.name())));
            reports.into_iter().map(move |(name, report)| Member {
                side,
                name,
                live: report.live,
                index: report.index,
                refused: report.refused,
                left: report.left,
            })
        };
        of(Side::Host).chain(of(Side::Mux)).collect()
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
}
