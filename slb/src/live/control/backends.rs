//! Health of backends: results of probes, and passive health by traffic.

use std::net::SocketAddr;
use std::time::Instant;

use slb_control::probe::Prober;
use slb_core::health::Condition;
use tracing::{error, info, warn};

use super::{COMPLAIN, Control};
use crate::live::status::Shared;

impl Control<'_> {
    /// Reports backends that changed by their probes, and returns true if any did.
    pub(super) fn heed_probes(&mut self, shared: &Shared) -> bool {
        let mut any = false;
        while let Some(change) = self.prober.as_mut().and_then(Prober::changed) {
            any = true;
            let address = SocketAddr::new(change.address, change.port);
            let probe = &change.probe;
            for name in &change.backends {
                let (pool, backend) = name;
                let rules = self.rules_by(pool, probe);
                match change.condition {
                    Condition::Healthy => {
                        info!(pool, backend, %address, probe, rules, event = "backend_healthy", "healthy");
                        self.sick.remove(name);
                    }
                    Condition::Unhealthy => {
                        let why = &change.why;
                        warn!(
                            pool, backend, %address, probe, rules, why, event = "backend_unhealthy", "unhealthy"
                        );
                        let why = format!(
                            "{pool}/{backend}: probe {probe} of rule {rules} at {address}: {why}"
                        );
                        self.sick.insert(name.clone(), why);
                    }
                }
            }
        }
        if any {
            shared.set_sick(self.sick.clone());
        }
        let trouble = self.prober.as_mut().and_then(Prober::take_trouble);
        if let Some(why) = trouble
            && self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN)
        {
            self.complained = Some(Instant::now());
            error!(
                why,
                event = "probes_not_sent",
                "probes cannot be sent: backends keep their state"
            );
        }
        any
    }

    /// Returns the rules of a pool that use a probe.
    fn rules_by(&self, pool: &str, probe: &str) -> String {
        let rules = self.given.rules.iter().filter(|rule| {
            let own = rule.probe.and_then(|probe| self.given.probes.get(probe));
            let of = self.given.pools.get(rule.pool);
            own.is_some_and(|own| own.name == probe) && of.is_some_and(|of| of.name == pool)
        });
        let names: Vec<&str> = rules.map(|rule| rule.name.as_str()).collect();
        names.join(", ")
    }

    /// Updates passive health by the backends' traffic.
    pub(super) fn heed_traffic(&mut self, shared: &Shared) -> bool {
        let Some(counters) = shared.backend_counters() else {
            return false;
        };
        let now = self.clock();
        let of = |pool, member| counters.get(&(pool, member)).copied().unwrap_or_default();
        let turned = self.passive.note(now, &self.config, of);
        for change in &turned {
            let (pool, backend) = (&change.pool, &change.backend);
            match change.condition {
                Condition::Healthy => info!(
                    pool,
                    backend,
                    event = "backend_on_trial",
                    "passive health: gets new flows again, on trial"
                ),
                Condition::Unhealthy => warn!(
                    pool,
                    backend,
                    event = "backend_suspended",
                    "passive health: accepts no connections, gets no new flows"
                ),
            }
        }
        !turned.is_empty()
    }
}
