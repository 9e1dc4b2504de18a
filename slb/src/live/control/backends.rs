//! Health of backends: results of probes, and passive health by traffic.

use std::net::SocketAddr;
use std::time::Instant;

use slb_control::Role;
use slb_control::probe::Prober;
use slb_core::health::Condition;
use tracing::{error, info, warn};

use super::{COMPLAIN, Control};
use crate::live::rights::open_files;
use crate::live::status::Shared;
use crate::live::{MOST_PROBES, OTHER_FILES};

/// The subject of the fault that probes are late.
const LATE: &str = "late probes";

/// Returns the reason why probes are late, and what to do: by the numbers of probes that can be out at once, of all
/// pools and of one, and by the number of files that this process may open if that is the limit.
fn late_because(of_all: usize, of_pool: usize, files: Option<usize>) -> String {
    match files.filter(|files| *files < MOST_PROBES + OTHER_FILES) {
        Some(files) => format!(
            "this process may have {files} files open, so at most {of_all} probes are out at once: raise \
             LimitNOFILE= of its unit, or the hard limit of ulimit -n"
        ),
        None => format!(
            "at most {of_all} probes are out at once, and {of_pool} of one pool: backends that do not answer take \
             these places until the probe's timeout; shorten it, or lengthen the interval"
        ),
    }
}

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

    /// Says how many probes are late, by how much, and why.
    pub(super) fn heed_late_probes(&mut self, shared: &Shared) {
        let Some(prober) = &self.prober else { return };
        let late = prober.tallies().late();
        if late.late == 0 {
            if let Some(lasted) = self.lasting.end(LATE) {
                let seconds = lasted.as_secs_f64();
                info!(seconds, event = "probes_in_time", "no probe is late");
            }
            shared.set_late(None);
            return;
        }
        let (of_all, of_pool) = prober.limits();
        let is_host = self.given.node.role == Role::Host;
        let why = late_because(of_all, of_pool, (!is_host).then(open_files));
        if self.lasting.is_due(LATE) {
            let (probes, of) = (late.late, late.targets);
            let seconds = late.longest.as_secs_f64();
            warn!(
                probes,
                of,
                seconds,
                why,
                event = "probes_late",
                "probes are late, and the health of their backends is old"
            );
        }
        shared.set_late(Some((late, why)));
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
