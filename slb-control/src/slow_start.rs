//! Slow start: a recovered backend gradually gets its share of new flows, if its pool has
//! `slow_start`.

use std::collections::{HashMap, HashSet};

use slb_core::Instant;
use slb_core::health::{Condition, RAMP_STEPS, Ramp};
use slb_core::spec::BackendState;

use crate::config::Config;

/// A recovered backend: the names of its pool, of the probe that it failed before, and its own.
/// Without a probe, the backend recovered in its own state, which applies to all rules.
type Recovering = (String, Option<String>, String);

/// The backends that are ramping up to their full weight.
///
/// A backend recovers for the rules that use one probe, and gradually gets its share of their new
/// flows; its share of other rules' flows does not change.
#[derive(Debug, Default)]
pub struct SlowStart {
    ramps: HashMap<Recovering, Ramp>,
    unhealthy: HashSet<Recovering>,
    /// The time of the last configuration.
    applied: Instant,
}

impl SlowStart {
    /// Lowers the weights of backends that have recovered since the last configuration, which
    /// includes the health by probes. While a backend of a pool is ramping up, the pool's weights
    /// are scaled by ten.
    pub fn apply(&mut self, now: Instant, config: &mut Config) {
        self.applied = now;
        let before = (
            std::mem::take(&mut self.ramps),
            std::mem::take(&mut self.unhealthy),
        );
        let by_probe = config.probed_pools().into_iter();
        let by_state = (0..config.pools.len()).map(|pool| (pool, None));
        // Weights by probes come first, as tenths of the pool's own weights.
        let all = by_probe.map(|(pool, probe)| (pool, Some(probe)));
        for (at, probe) in all.chain(by_state) {
            let steps = self.steps(now, config, at, probe, &before);
            // Then the rules of the probe use the weights of the pool: each backend that is ramping
            // up for the probe is also ramping up in the pool, or fails the probe.
            if steps.iter().all(|&step| step == RAMP_STEPS) {
                continue;
            }
            let pool = &mut config.pools[at];
            for (place, (backend, step)) in pool.backends.iter_mut().zip(steps).enumerate() {
                let weight = backend.weight * step; // at most ten times a million
                match probe {
                    None => backend.weight = weight,
                    Some(probe) => {
                        let mut found = config.health.of(at, probe, place);
                        found.weight = Some(weight);
                        config.health.set(at, probe, place, found);
                    }
                }
            }
        }
    }

    /// Returns the step of each backend of a pool, by a probe or by its own state.
    fn steps(
        &mut self,
        now: Instant,
        config: &Config,
        at: usize,
        probe: Option<usize>,
        (ramps, unhealthy): &(HashMap<Recovering, Ramp>, HashSet<Recovering>),
    ) -> Vec<u32> {
        let pool = &config.pools[at];
        let by = probe.map(|probe| config.probes[probe].name.clone());
        let mut steps = Vec::new();
        for (place, backend) in pool.backends.iter().enumerate() {
            let name = (pool.name.clone(), by.clone(), backend.name.clone());
            let fails = probe.is_some_and(|probe| {
                config.health.of(at, probe, place).condition == Condition::Unhealthy
            });
            if fails
                || backend.state == BackendState::Down
                || backend.condition == Condition::Unhealthy
            {
                self.unhealthy.insert(name);
                steps.push(RAMP_STEPS);
                continue;
            }
            let length = pool.slow_start.filter(|_| unhealthy.contains(&name));
            let known = ramps.get(&name).copied();
            let ramp = length.map(|length| Ramp::new(now, length)).or(known);
            let ramp = ramp.filter(|ramp| pool.slow_start.is_some() && !ramp.is_over(now));
            steps.push(ramp.map_or(RAMP_STEPS, |ramp| ramp.step(now)));
            self.ramps.extend(ramp.map(|ramp| (name, ramp)));
        }
        steps
    }

    /// Returns the time of the next step of any backend; apply the configuration again at that
    /// time.
    pub fn due(&self) -> Option<Instant> {
        self.ramps
            .values()
            .map(|ramp| ramp.next(self.applied))
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovered_backend_gets_a_tenth_more_each_tenth_of_the_time() {
        let text = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n[[pool]]\nname = \"p\"\n\
                    vni = 1\nslow_start = \"10s\"\nbackends = [\n\
                    { name = \"a\", address = \"10.0.0.1\", host = \"172.16.0.1\", weight = 3 },\n\
                    { name = \"b\", address = \"10.0.0.2\", host = \"172.16.0.1\" }]\n";
        let config = Config::parse("test", text).expect("good");
        let mut slow = SlowStart::default();
        let mut weights = |second, is_well: bool| {
            let (mut config, now) = (config.clone(), Instant::from_secs(second));
            if !is_well {
                config.pools[0].backends[0].state = BackendState::Down;
            }
            slow.apply(now, &mut config);
            let backends = config.pools[0].backends.iter();
            let weights: Vec<u32> = backends.map(|backend| backend.weight).collect();
            let due = slow.due().map(|due| due.as_nanos() / 1_000_000_000);
            (weights, due)
        };
        // From the start it has all.
        assert_eq!(weights(100, true), (vec![3, 1], None));
        assert_eq!(weights(101, false), (vec![3, 1], None));
        assert_eq!(weights(200, true), (vec![3, 10], Some(201)));
        assert_eq!(weights(201, true), (vec![6, 10], Some(202)));
        assert_eq!(weights(208, true), (vec![27, 10], Some(209)));
        // Ill again, it begins anew.
        assert_eq!(weights(208, false), (vec![3, 1], None));
        assert_eq!(weights(250, true), (vec![3, 10], Some(251)));
        assert_eq!(weights(259, true), (vec![3, 1], None));
        assert_eq!(weights(260, true), (vec![3, 1], None));
    }
}
