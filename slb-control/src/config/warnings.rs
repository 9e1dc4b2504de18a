//! Configurations, and changes of one, that are allowed and seldom meant.

use std::collections::{HashMap, HashSet};

use super::Config;

/// Things of a configuration that are seldom meant.
pub(super) fn of(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut by_mac = HashMap::new();
    for vm in config.vms() {
        let port = vm.port.map_or(0, |port| port.0);
        let (vni, mac, name) = (vm.vni, vm.mac, vm.name);
        if let Some((other, other_vni, other_port)) = by_mac.insert(mac, (name.clone(), vni, port))
        {
            warnings.push(format!(
                "vm {other:?} of VNI {other_vni} and vm {name:?} of VNI {vni} have one MAC address, {mac}, but are \
                 two vms, at ports {other_port} and {port}: give both pools one vni if it is one vm"
            ));
        }
    }
    for (index, frontend) in config.frontends.iter().enumerate() {
        if !is_used(config, index) {
            warnings.push(format!(
                "frontend {:?} ({}) has no rule: all of its packets are dropped",
                frontend.name, frontend.address
            ));
        }
    }
    warnings
}

/// What a new configuration takes away from an old one.
pub(super) fn losses(old: &Config, new: &Config) -> Vec<String> {
    let mut losses = Vec::new();
    for (index, frontend) in old.frontends.iter().enumerate() {
        let now = new
            .frontends
            .iter()
            .position(|other| other.address == frontend.address);
        if is_used(old, index) && now.is_some_and(|now| !is_used(new, now)) {
            losses.push(format!(
                "VIP {} (frontend {:?}) has no rule any more: all of its packets are dropped",
                frontend.address, frontend.name
            ));
        }
    }
    for pool in &old.pools {
        let Some(now) = new.pools.iter().find(|other| other.name == pool.name) else {
            continue;
        };
        let left: HashSet<_> = now
            .backends
            .iter()
            .map(|backend| (&backend.name, backend.address))
            .collect();
        let before = pool.backends.len();
        let gone = pool
            .backends
            .iter()
            .filter(|backend| !left.contains(&(&backend.name, backend.address)))
            .count();
        if gone > 0 && 2 * gone >= before {
            losses.push(format!(
                "pool {:?} loses {gone} of its {before} backends",
                pool.name
            ));
        }
    }
    losses
}

/// Whether a rule of any kind uses a frontend.
fn is_used(config: &Config, frontend: usize) -> bool {
    config.rules.iter().any(|rule| rule.frontend == frontend)
        || config
            .inbound_nat
            .iter()
            .any(|nat| nat.frontend == frontend)
        || config
            .outbound
            .iter()
            .any(|rule| rule.frontends.contains(&frontend))
}
