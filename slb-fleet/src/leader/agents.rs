//! The host agents of a fleet, and the addresses that each may report for.

use std::net::IpAddr;
use std::time::Duration;

use tracing::warn;

use super::office::{Ended, Office};
use crate::object::{Forget, Keys, Object, Report};
use crate::store::{MOST_OPERATIONS, Operation, Store};

/// The maximum number of addresses that a host may report.
const MOST_ADDRESSES: usize = 16;

impl Office {
    /// Registers hosts with an agent. The first agent that reports an address keeps it as long as
    /// the agent is present; afterwards another agent, such as the same one under a new name, takes
    /// the address over.
    pub(super) fn register_agents(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        now: Duration,
    ) -> Result<(), Ended> {
        let has_spec = self.machine.record().hosts.is_some();
        if has_spec && self.present.is_none() && self.unusable.is_none() {
            // The addresses of agents are about to be read.
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
        for (name, report) in &reports {
            match report.zone() {
                Some(zone) => agents.zones.insert(name.clone(), zone.to_owned()),
                None => agents.zones.remove(name),
            };
        }
        agents.tidy();
        if agents != self.agents {
            let put = Operation::put(keys.key("state/agents"), agents.write());
            self.write(store, &[], &[put])?;
            self.agents = agents;
            self.is_stale = true;
        }
        Ok(())
    }

    /// Returns true if a host agent may report for an address by the spec.
    pub(super) fn may_speak(&self, name: &str, address: IpAddr) -> bool {
        let hosts = self.present.as_ref().and_then(|own| own.hosts.as_ref());
        hosts.is_none_or(|hosts| hosts.get(&address).is_some_and(|own| own == name))
    }

    /// Forgets the agents that operators want forgotten, unless they are present.
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
        agents.tidy();
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
}
