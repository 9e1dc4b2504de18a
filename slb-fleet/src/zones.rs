//! The zones of a fleet: which nodes and backends each has left.

use std::collections::BTreeMap;

use slb_control::Config;

use crate::fetch::{FetchError, Known};
use crate::health;
use crate::object::{Keys, Report, Table};
use crate::rollout::Rollout;
use crate::store::Store;

/// The longest name of a zone that a node may report, in bytes.
const LONGEST: usize = slb_control::config::LONGEST_ZONE;

/// The backends of a pool that are in one zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneView {
    /// Name of the pool.
    pub pool: String,
    /// Name of the zone; `None`: of the backends without one.
    pub zone: Option<String>,
    /// Number of backends in the zone.
    pub backends: usize,
    /// Number of these that take new flows.
    pub serving: usize,
}

/// The zones of all pools of a configuration with the fleet's health. Pools without zones are left out.
pub(crate) fn of_pools(config: &Config) -> Vec<ZoneView> {
    let pools = config.pools.iter().enumerate();
    let zones = pools.flat_map(|(place, pool)| {
        let own = config.zone_shares(place).into_iter();
        own.map(|own| ZoneView {
            pool: pool.name.clone(),
            zone: own.zone.map(str::to_owned),
            backends: own.backends,
            serving: own.serving,
        })
    });
    zones.collect()
}

/// Reads the zones of all pools from the store: of the spec that hosts have, by the tables.
///
/// # Errors
/// The store is away, or what is in it cannot be used.
pub fn in_store(
    store: &dyn Store,
    keys: &Keys,
    rollout: &Rollout,
    tables: &[Table],
) -> Result<Vec<ZoneView>, FetchError> {
    let Some(release) = &rollout.hosts else {
        return Ok(Vec::new());
    };
    let (_, spec) = Known::default().fetch(store, keys, &release.index)?;
    let mut config = spec.config("the fleet", &spec.any_node())?;
    let tables = tables.iter();
    let tables: BTreeMap<String, Table> = tables
        .map(|table| (table.pool.clone(), table.clone()))
        .collect();
    health::apply(&tables, &mut config);
    Ok(of_pools(&config))
}

impl Report {
    /// The zone of the node, unless its name is longer than any configuration's.
    pub fn zone(&self) -> Option<&str> {
        let zone = self.zone.as_deref();
        zone.filter(|zone| !zone.is_empty() && zone.len() <= LONGEST)
    }
}
