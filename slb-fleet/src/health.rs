//! Health of the whole fleet: the merged results of the nodes' probes, and the tables derived from
//! them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use slb_control::{Config, SlowStart};
use slb_core::Instant;
use slb_core::health::{Condition, RAMP_STEPS};

use crate::object::{Agents, By, Health, Table};

/// The health reports of all present nodes, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reports {
    /// Reports of host agents about the vms of their own hosts.
    pub hosts: BTreeMap<String, Health>,
    /// Reports of muxes about backends without an agent.
    pub muxes: BTreeMap<String, Health>,
}

impl Reports {
    /// Records in a configuration which backends fail which probe.
    ///
    /// For vms of a host with an agent, the agent's report is used, and without a report they fail.
    /// Other backends fail if more than half of the muxes report it: a backend that only one mux
    /// cannot reach stays in service.
    pub fn apply(&self, agents: &Agents, config: &mut Config) {
        let by_host: HashMap<_, &str> = agents
            .agents
            .iter()
            .flat_map(|(name, all)| all.iter().map(move |address| (*address, name.as_str())))
            .collect();
        let set = |health: &Health| -> HashSet<(String, String, String)> {
            health.failing.iter().cloned().collect()
        };
        let hosts: HashMap<&str, _> = self
            .hosts
            .iter()
            .map(|(name, health)| (name.as_str(), set(health)))
            .collect();
        let mut votes: HashMap<&(String, String, String), usize> = HashMap::new();
        for vote in self.muxes.values().flat_map(|health| &health.failing) {
            *votes.entry(vote).or_default() += 1;
        }
        let most = self.muxes.len();
        config.set_failing(|pool, probe, backend| {
            let name = (pool.name.clone(), probe.name.clone(), backend.name.clone());
            match by_host.get(&backend.host) {
                Some(agent) => hosts.get(agent).is_none_or(|own| own.contains(&name)),
                None => votes.get(&name).is_some_and(|&votes| 2 * votes > most),
            }
        });
    }
}

/// Returns the tables of all pools of a configuration, by their names: its findings, and the
/// weights of backends that are ramping up. Epochs are zero.
pub fn tables(
    config: &Config,
    slow_start: &mut SlowStart,
    now: Instant,
) -> BTreeMap<String, Table> {
    let mut slowed = config.clone();
    slow_start.apply(now, &mut slowed);
    let mut all: BTreeMap<String, Table> = BTreeMap::new();
    let mut add = |pool: &str, by: By| {
        if by.failing.is_empty() && by.weights.is_empty() {
            return;
        }
        let table = all.entry(pool.to_owned()).or_default();
        pool.clone_into(&mut table.pool);
        table.by.push(by);
    };
    for (at, pool) in slowed.pools.iter().enumerate() {
        let pairs = pool.backends.iter().zip(&config.pools[at].backends);
        if pairs.clone().any(|(now, own)| now.weight != own.weight) {
            let weights = pairs.map(|(now, own)| (own.name.clone(), now.weight));
            let weights = weights.collect();
            add(
                &pool.name,
                By {
                    weights,
                    ..By::default()
                },
            );
        }
    }
    for (at, probe) in slowed.probed_pools() {
        let (pool, own) = (&slowed.pools[at], &slowed.probes[probe]);
        let backends = || pool.backends.iter().enumerate();
        let found = |place| slowed.health.of(at, probe, place);
        let fails = |&(place, _): &(usize, _)| found(place).condition == Condition::Unhealthy;
        let failing = backends().filter(fails).map(|(_, own)| own.name.clone());
        let weighed =
            backends().filter_map(|(at, own)| Some((own.name.clone(), found(at).weight?)));
        add(
            &pool.name,
            By {
                probe: Some(own.name.clone()),
                failing: failing.collect(),
                weights: weighed.collect(),
            },
        );
    }
    all
}

/// Applies tables to a configuration, by the names of their pools.
pub fn apply(tables: &BTreeMap<String, Table>, config: &mut Config) {
    let probed: Vec<(usize, usize)> = config.probed_pools();
    for at in 0..config.pools.len() {
        let Some(table) = tables.get(&config.pools[at].name) else {
            continue;
        };
        for by in &table.by {
            let failing: BTreeSet<&str> = by.failing.iter().map(String::as_str).collect();
            // A backend that is not in the table yet has its full share, in tenths like all others.
            let weight = |name: &str, own: u32| {
                let known = by.weights.get(name).copied();
                known.unwrap_or_else(|| own.saturating_mul(RAMP_STEPS))
            };
            let Some(probe) = &by.probe else {
                for backend in &mut config.pools[at].backends {
                    backend.weight = weight(&backend.name, backend.weight);
                }
                continue;
            };
            let own = |&&(pool, probed): &&(usize, usize)| {
                pool == at && config.probes[probed].name == *probe
            };
            let Some(&(_, probe)) = probed.iter().find(own) else {
                continue;
            };
            for place in 0..config.pools[at].backends.len() {
                let backend = &config.pools[at].backends[place];
                let mut found = config.health.of(at, probe, place);
                if failing.contains(backend.name.as_str()) {
                    found.condition = Condition::Unhealthy;
                }
                if !by.weights.is_empty() {
                    found.weight = Some(weight(&backend.name, backend.weight));
                }
                config.health.set(at, probe, place, found);
            }
        }
    }
}
