//! The state of a fleet, as its leader sees it.

use std::collections::{BTreeMap, BTreeSet};

use super::office::Office;
use crate::object::{Agents, Digest, Keys, Object, Report, Table};
use crate::rollout::{Rollout, Side};
use crate::zones::ZoneView;

/// The state of a fleet, as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetView {
    /// The rollout.
    pub rollout: Rollout,
    /// The index that is wanted; `None` if nothing was applied yet.
    pub wanted: Option<Digest>,
    /// Present nodes, hosts first, and host agents that are gone.
    pub nodes: Vec<NodeView>,
    /// Backends that get no new flows, since probes find that they fail, by pool.
    pub failing: BTreeMap<String, usize>,
    /// The zones of pools that have any.
    pub zones: Vec<ZoneView>,
}

/// The state of a node, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Role of the node.
    pub side: Side,
    /// Name of the node.
    pub name: String,
    /// Zone of the node; of one that is gone, its last.
    pub zone: Option<String>,
    /// The node's own report.
    pub report: Reported,
}

/// The report of a node, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reported {
    /// The report.
    Is(Report),
    /// The report cannot be read; the reason.
    Unreadable(String),
    /// A host agent whose lease has ended: vms of its host get no new flows.
    Gone,
}

/// Counts the backends that fail by tables, for each pool.
pub fn failing<'t>(tables: impl IntoIterator<Item = &'t Table>) -> BTreeMap<String, usize> {
    let tables = tables.into_iter().map(|table| {
        let names = table.by.iter().flat_map(|by| &by.failing);
        let names: BTreeSet<&String> = names.collect();
        (table.pool.clone(), names.len())
    });
    tables.collect()
}

impl NodeView {
    /// Reads the report of a node, which is under `key`.
    pub fn read(side: Side, key: &str, report: &[u8]) -> Self {
        let name = key.rsplit('/').next().unwrap_or(key).to_owned();
        let report = match Report::read(key, report) {
            Ok(report) => Reported::Is(report),
            Err(error) => Reported::Unreadable(error.to_string()),
        };
        let zone = match &report {
            Reported::Is(report) => report.zone().map(str::to_owned),
            Reported::Unreadable(_) | Reported::Gone => None,
        };
        Self {
            side,
            name,
            zone,
            report,
        }
    }

    /// A host agent that is gone, one of `agents`.
    pub fn gone(name: &str, agents: &Agents) -> Self {
        Self {
            side: Side::Host,
            name: name.to_owned(),
            zone: agents.zones.get(name).cloned(),
            report: Reported::Gone,
        }
    }
}

impl Office {
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
        nodes.extend(gone.map(|name| NodeView::gone(name, &self.agents)));
        let mut failing = failing(self.tables.values());
        // A pool whose backends were always healthy has no table.
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
            zones: self.zones.clone(),
        }
    }
}
