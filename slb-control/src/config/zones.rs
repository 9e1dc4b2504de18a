//! Zones: parts of a data centre, each of which fails alone.

use std::collections::{BTreeMap, HashMap};

use super::{Backend, Config, Frontend, Role, Rule};
use crate::document::Section;

/// The longest name of a zone, in bytes.
pub const LONGEST_ZONE: usize = 64;
/// A name of a zone, in messages.
const ZONE: &str = "the name of a zone of 64 bytes at most, such as \"1\"";

/// The backends of a pool that are in one zone.
#[derive(Clone, Debug, PartialEq)]
pub struct ZoneShare<'c> {
    /// Name of the zone; `None`: of the backends without one.
    pub zone: Option<&'c str>,
    /// Number of backends in the zone.
    pub backends: usize,
    /// Number of these that take new flows.
    pub serving: usize,
    /// Share of the pool's new flows that goes to the zone, by weight: 0 to 1.
    pub share: f64,
}

impl Frontend {
    /// The zone of a zonal frontend; `None` for a zone-redundant one, which has no zone or several.
    pub fn zone(&self) -> Option<&str> {
        match self.zones.as_slice() {
            [zone] => Some(zone),
            _ => None,
        }
    }
}

impl Config {
    /// Returns true if the node announces a frontend: muxes of a zonal frontend's zone do, and all muxes do of a
    /// zone-redundant one. A mux without a zone announces every frontend. Private frontends are not announced.
    pub fn announces(&self, frontend: &Frontend) -> bool {
        let is_here = match (self.node.zone.as_deref(), frontend.zone()) {
            (Some(own), Some(zone)) => own == zone,
            _ => true,
        };
        frontend.network.is_none() && is_here
    }

    /// The zones of a pool's backends, by name, those without a zone first. Empty where no backend has one.
    pub fn zone_shares(&self, pool: usize) -> Vec<ZoneShare<'_>> {
        let Some(own) = self.pools.get(pool) else {
            return Vec::new();
        };
        if own.backends.iter().all(|backend| backend.zone.is_none()) {
            return Vec::new();
        }
        let rules = self.rules.iter().filter(|rule| rule.pool == pool);
        let rules: Vec<&Rule> = rules.collect();
        let mut weights: BTreeMap<Option<&str>, (usize, usize, u64)> = BTreeMap::new();
        for (place, backend) in own.backends.iter().enumerate() {
            let (backends, serving, weight) = weights.entry(backend.zone.as_deref()).or_default();
            *backends += 1;
            let is_ruled = rules.is_empty() || rules.iter().any(|rule| !self.fails(rule, place));
            if backend.takes_flows() && is_ruled {
                *serving += 1;
                *weight += u64::from(backend.weight);
            }
        }
        let total: u64 = weights.values().map(|(.., weight)| weight).sum();
        let shares = weights.into_iter();
        let shares = shares.map(|(zone, (backends, serving, weight))| ZoneShare {
            zone,
            backends,
            serving,
            share: weight as f64 / total.max(1) as f64,
        });
        shares.collect()
    }
}

/// Reads the zone of a node or a backend.
pub(super) fn read_zone(section: &Section<'_>) -> Option<String> {
    let zone = section.optional("zone", ZONE, named);
    zone.map(|(zone, _)| zone)
}

/// Reads the zones of a frontend, each once. An empty list is as none.
pub(super) fn read_zones(section: &Section<'_>) -> Vec<String> {
    const FIELD: &str = "zones";
    if section.is_empty_list(FIELD) {
        return Vec::new();
    }
    let mut zones = Vec::new();
    for (zone, span) in section.any(FIELD, ZONE, named) {
        if zones.contains(&zone) {
            section.fault(&span, FIELD, format!("zone {zone:?} is named twice"));
        }
        zones.push(zone);
    }
    zones
}

fn named(text: &str) -> Option<String> {
    let is_one = !text.is_empty() && text.len() <= LONGEST_ZONE;
    is_one.then(|| text.to_owned())
}

/// Zones that are seldom meant, a line each.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let zonal = config
        .frontends
        .iter()
        .filter(|frontend| frontend.zone().is_some());
    let zonal = zonal.filter(|frontend| frontend.network.is_none());
    let zonal: Vec<String> = zonal.map(|own| format!("{:?}", own.name)).collect();
    let own = config.node.zone.as_deref();
    if config.node.role == Role::Mux && own.is_none() && !zonal.is_empty() {
        let zonal = zonal.join(", ");
        warnings.push(format!(
            "node: has no zone, so this mux also announces the frontends of single zones: {zonal}"
        ));
    }
    let mut of_hosts: HashMap<_, (&Backend, &str)> = HashMap::new();
    if config.node.role == Role::Proxy {
        return warnings;
    }
    for backend in config.pools.iter().flat_map(|pool| &pool.backends) {
        let Some(zone) = backend.zone.as_deref() else {
            continue;
        };
        if config.node.role == Role::Host
            && config.node.is(backend.host)
            && let Some(own) = own.filter(|own| *own != zone)
        {
            warnings.push(format!(
                "backend {:?} of this host is in zone {zone:?}, and the node in zone {own:?}",
                backend.name
            ));
        }
        let (other, known) = *of_hosts.entry(backend.host).or_insert((backend, zone));
        if known != zone {
            warnings.push(format!(
                "backends {:?} and {:?} have one host, {}, and are in zones {known:?} and {zone:?}",
                other.name, backend.name, backend.host
            ));
        }
    }
    warnings
}

/// The changes of zones, a line each.
pub(crate) fn changes(old: &Config, new: &Config) -> Vec<String> {
    let or_none = |zone: Option<&str>| match zone {
        Some(zone) => format!("{zone:?}"),
        None => "none".to_owned(),
    };
    let mut changes = Vec::new();
    let (was, is) = (old.node.zone.as_deref(), new.node.zone.as_deref());
    if was != is {
        changes.push(format!(
            "node: zone {} becomes {}",
            or_none(was),
            or_none(is)
        ));
    }
    let before = old.frontends.iter();
    let before: HashMap<_, &Frontend> = before.map(|own| (&own.name, own)).collect();
    for is in &new.frontends {
        let Some(was) = before.get(&is.name) else {
            continue;
        };
        if was.zones != is.zones {
            let text = |zones: &[String]| match zones {
                [] => "none".to_owned(),
                zones => format!("{zones:?}"),
            };
            changes.push(format!(
                "frontend {:?}: zones {} becomes {}",
                is.name,
                text(&was.zones),
                text(&is.zones)
            ));
        }
        if new.node.role == Role::Mux && old.announces(was) != new.announces(is) {
            let how = match new.announces(is) {
                true => "is announced by this mux from now on",
                false => "is no longer announced by this mux",
            };
            changes.push(format!("frontend {:?}: {how}", is.name));
        }
    }
    let zones = |config: &Config| -> BTreeMap<String, Option<String>> {
        let pools = config.pools.iter();
        let all = pools.flat_map(|pool| {
            let own = pool.backends.iter();
            own.map(|own| (format!("{}/{}", pool.name, own.name), own.zone.clone()))
        });
        all.collect()
    };
    let before = zones(old);
    for (name, is) in zones(new) {
        if let Some(was) = before.get(&name).filter(|was| **was != is) {
            let (was, is) = (or_none(was.as_deref()), or_none(is.as_deref()));
            changes.push(format!("backend {name:?}: zone {was} becomes {is}"));
        }
    }
    changes
}
