//! Zones of public addresses, frontends, vms and scale sets.

use super::json::{Node, Object, Value};
use super::read::{last_of, machine_of};
use super::resources::Found;
use crate::config::LONGEST_ZONE;

/// Zones of resources by their names, in lower case.
#[derive(Debug, Default)]
pub(super) struct Zones {
    /// Zones of public IP addresses and prefixes.
    pub(super) addresses: Vec<(String, Vec<String>)>,
    /// The zone of each vm, also by its network interfaces.
    pub(super) machines: Vec<(String, String)>,
}

/// Reads the zones of a resource, each once. What only Azure can work out counts as none, with a warning.
pub(super) fn zones_of(object: &Object<'_>) -> Vec<String> {
    let Some(node) = object.get("zones") else {
        return Vec::new();
    };
    let names = node.as_array().iter().map(Node::as_str);
    let names: Option<Vec<&str>> = names.collect();
    let is_name = |name: &&str| !name.is_empty() && name.len() <= LONGEST_ZONE;
    let names = names.filter(|names| names.iter().all(is_name));
    match (&node.value, names) {
        (Value::Array(_), Some(names)) => {
            let mut zones: Vec<String> = Vec::new();
            for name in names {
                if !zones.iter().any(|zone| zone == name) {
                    zones.push(name.to_owned());
                }
            }
            zones
        }
        (Value::Null, _) => Vec::new(),
        _ => {
            let got = node.value.describe();
            let why = format!("expected a list of names, got {got}: counted as no zone");
            object.warning(node, "zones", why);
            Vec::new()
        }
    }
}

impl Zones {
    /// Takes down the zone of a vm for the vm and its network interfaces. False where there is no zone, or no
    /// interface that a backend could be known by.
    pub(super) fn take_machine(&mut self, object: &Object<'_>, machine: &str) -> bool {
        let interfaces = object.get("networkInterfaces");
        let interfaces = interfaces.map_or(&[][..], Node::as_array);
        let ids = interfaces.iter().filter_map(|own| own.get("id")?.as_str());
        let mut names: Vec<&str> = ids.map(last_of).collect();
        let is_known = !names.is_empty();
        names.push(machine);
        let zones = zones_of(object);
        let [zone] = zones.as_slice() else {
            return false;
        };
        for name in names {
            self.machines.push((name.to_lowercase(), zone.clone()));
        }
        is_known
    }

    /// The zones of a public IP address or prefix, by its name.
    pub(super) fn of_address(&self, name: &str) -> &[String] {
        let name = name.to_lowercase();
        let found = self.addresses.iter().find(|(own, _)| *own == name);
        found.map_or(&[], |(_, zones)| zones)
    }
}

impl Found {
    /// The zone of the vm that an IP configuration is of, where the files say it.
    pub(super) fn zone_of(&self, id: &str) -> Option<&str> {
        let mut segments = id.split('/');
        let is_set = |part: &str| part.eq_ignore_ascii_case("virtualMachineScaleSets");
        if segments.any(is_set) {
            let name = segments.next()?;
            let mut sets = self.scale_sets.iter();
            let set = sets.find(|set| set.name.eq_ignore_ascii_case(name))?;
            return set.zone();
        }
        let machine = machine_of(id).to_lowercase();
        let found = self.zones.machines.iter().find(|(own, _)| *own == machine);
        found.map(|(_, zone)| zone.as_str())
    }
}
