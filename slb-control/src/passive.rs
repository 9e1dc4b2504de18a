//! Passive health: a backend that accepts no connections gets no new flows, regardless of its
//! probes.

use std::collections::HashMap;
use std::net::IpAddr;

use slb_core::Instant;
use slb_core::health::{Condition, Passive};
use slb_core::stats::BackendCounters;

use crate::config::{Backend, Config, Pool, Role};

/// A backend whose health has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turned {
    /// Name of the pool.
    pub pool: String,
    /// Name of the backend.
    pub backend: String,
    /// The present health.
    pub condition: Condition,
}

/// The passive health of the backends of all pools with `passive_failures`.
///
/// At most half of a pool is taken out: if most of it fails, the cause lies elsewhere, and less
/// capacity would not help.
#[derive(Debug, Default)]
pub struct PassiveHealth {
    watched: HashMap<Watched, Passive>,
}

/// A backend with another address counts as another backend.
type Watched = (String, String, IpAddr);

fn key(pool: &Pool, backend: &Backend) -> Watched {
    (pool.name.clone(), backend.name.clone(), backend.address)
}

impl PassiveHealth {
    /// Returns true if a configuration has a pool with passive health. A host agent watches none:
    /// only the node that chooses backends does.
    pub fn watches(config: &Config) -> bool {
        let is_any = config.pools.iter().any(|pool| pool.passive.is_some());
        is_any && config.node.role != Role::Host
    }

    /// Updates the health of all backends of a configuration by their present counters, which are
    /// looked up by the pool's and the backend's index; returns the backends whose health has
    /// changed. Call it about once a second.
    pub fn note(
        &mut self,
        now: Instant,
        config: &Config,
        counters: impl Fn(usize, usize) -> BackendCounters,
    ) -> Vec<Turned> {
        let mut before = std::mem::take(&mut self.watched);
        let mut turned = Vec::new();
        for (at, pool) in config.pools.iter().enumerate() {
            let Some(policy) = pool.passive else { continue };
            for (place, backend) in pool.backends.iter().enumerate() {
                let (key, counters) = (key(pool, backend), counters(at, place));
                let known = before.remove(&key);
                let mut passive = known.unwrap_or_else(|| Passive::new(policy, now, &counters));
                if let Some(condition) = passive.note(now, &counters) {
                    turned.push(Turned {
                        pool: pool.name.clone(),
                        backend: backend.name.clone(),
                        condition,
                    });
                }
                self.watched.insert(key, passive);
            }
        }
        turned
    }

    /// Marks the unhealthy backends in a configuration, for all rules of their pools, since traffic
    /// is not counted by rule. In each pool, marks at most half of the backends that would get new
    /// flows of any rule: those that failed first.
    pub fn apply(&self, config: &mut Config) {
        for at in 0..config.pools.len() {
            if config.pools[at].passive.is_none() {
                continue;
            }
            let serving = config.serving(at);
            let pool = &mut config.pools[at];
            let mut failed = Vec::new();
            for &place in &serving {
                let watched = self.watched.get(&key(pool, &pool.backends[place]));
                let since = watched.and_then(Passive::unhealthy_since);
                failed.extend(since.map(|since| (since, place)));
            }
            failed.sort_unstable();
            for (_, place) in failed.into_iter().take(serving.len() / 2) {
                pool.backends[place].condition = Condition::Unhealthy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(backends: usize) -> Config {
        let list = (0..backends).map(|n| {
            format!("{{ name = \"b{n}\", address = \"10.0.0.{n}\", host = \"172.16.0.1\" }},")
        });
        let text = format!(
            "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n[[pool]]\nname = \"p\"\nvni = 1\n\
             passive_failures = 3\npassive_window = \"10s\"\npassive_retry = \"20s\"\nbackends = [{}]\n",
            list.collect::<String>()
        );
        Config::parse("test", &text).expect("good")
    }

    fn unwell(passive: &PassiveHealth, config: &Config) -> Vec<String> {
        let mut config = config.clone();
        passive.apply(&mut config);
        let backends = config.pools[0].backends.iter();
        let unwell = backends.filter(|b| b.condition == Condition::Unhealthy);
        unwell.map(|b| b.name.clone()).collect()
    }

    fn failing(count: u64) -> BackendCounters {
        let mut counters = BackendCounters::default();
        counters.failures = count;
        counters
    }

    #[test]
    fn who_fails_is_out_for_a_while_and_never_more_than_half() {
        let config = config(5);
        let mut passive = PassiveHealth::default();
        let at = Instant::from_secs;
        let none = passive.note(at(0), &config, |_, _| failing(7));
        assert!(none.is_empty());
        // b3 first, then all of them.
        let turned = passive.note(at(1), &config, |_, place| {
            failing(7 + 3 * u64::from(place == 3))
        });
        assert_eq!(turned.len(), 1);
        assert_eq!(unwell(&passive, &config), ["b3"]);
        passive.note(at(2), &config, |_, _| failing(20));
        assert_eq!(unwell(&passive, &config), ["b0", "b3"]);
        // A reload that keeps them keeps what is known of them.
        let mut other = config.clone();
        other.pools[0].backends.remove(0);
        passive.note(at(3), &other, |_, _| failing(20));
        assert_eq!(unwell(&passive, &other), ["b1", "b3"]);
        // And they are tried again.
        let turned = passive.note(at(21), &other, |_, _| failing(20));
        assert_eq!(turned[0].condition, Condition::Healthy);
        assert_eq!(unwell(&passive, &other), ["b1", "b2"]);
    }

    #[test]
    fn a_pool_that_does_not_ask_for_it_is_not_watched() {
        let mut config = config(4);
        assert!(PassiveHealth::watches(&config));
        let mut of_host = config.clone();
        of_host.node.role = Role::Host;
        assert!(!PassiveHealth::watches(&of_host));
        config.pools[0].passive = None;
        let mut passive = PassiveHealth::default();
        assert!(!PassiveHealth::watches(&config));
        for second in 0..9 {
            let counters = |_, _| failing(1000 * second);
            let turned = passive.note(Instant::from_secs(second), &config, counters);
            assert!(turned.is_empty());
        }
        assert!(unwell(&passive, &config).is_empty());
    }
}
