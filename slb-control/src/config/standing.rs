//! The backends that get new flows, by their state and health.

use slb_core::health::Condition;
use slb_core::spec::BackendState;

use super::{Backend, Config, NoHealthyBackends, Pool, Probe, Rule};

/// The standing of a backend with the rules of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// New flows of all rules may go to it.
    Healthy,
    /// The backend fails the probes of some rules of its pool, and serves the others.
    Partial,
    /// The backend fails the probes of all rules of its pool, or fails for all rules by its traffic.
    Unhealthy,
    /// The operator drains the backend.
    Draining,
    /// The operator took the backend out of service.
    Down,
}

impl Standing {
    /// Returns true if new flows of a rule may go to the backend.
    pub const fn takes_flows(self) -> bool {
        matches!(self, Self::Healthy | Self::Partial)
    }

    /// Name of the standing in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Partial => "partial",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

impl Config {
    /// Returns true if new flows of a rule may go to a backend of its pool, given by its index
    /// there.
    pub fn serves(&self, rule: &Rule, backend: usize) -> bool {
        let of_pool = self.pools.get(rule.pool);
        of_pool
            .and_then(|pool| pool.backends.get(backend))
            .is_some_and(|own| own.takes_flows() && !self.fails(rule, backend))
    }

    /// Returns true if a backend fails the probe of a rule.
    pub fn fails(&self, rule: &Rule, backend: usize) -> bool {
        rule.probe.is_some_and(|probe| {
            self.health.of(rule.pool, probe, backend).condition == Condition::Unhealthy
        })
    }

    /// Records which backends fail which probe, for the rules that use the probe. If all backends
    /// of a pool that would get new flows fail a probe with [`NoHealthyBackends::UseAll`], its
    /// rules continue as if none failed.
    pub fn set_failing(&mut self, fails: impl Fn(&Pool, &Probe, &Backend) -> bool) {
        for (at, probe) in self.probed_pools() {
            let (pool, own) = (&self.pools[at], &self.probes[probe]);
            let failing = |backend: &Backend| fails(pool, own, backend);
            let failing: Vec<bool> = pool.backends.iter().map(failing).collect();
            let mut used = pool.backends.iter().zip(&failing).filter(|(backend, _)| {
                backend.state == BackendState::Up && backend.condition == Condition::Healthy
            });
            let is_none_left = used.all(|(_, &fails)| fails);
            if is_none_left && own.no_healthy_backends == NoHealthyBackends::UseAll {
                continue;
            }
            for (place, _) in failing.iter().enumerate().filter(|(_, fails)| **fails) {
                let mut found = self.health.of(at, probe, place);
                found.condition = Condition::Unhealthy;
                self.health.set(at, probe, place, found);
            }
        }
    }

    /// Returns the number of backends that get new flows of a rule, which is given by its index.
    pub fn backends_of_rule(&self, rule: usize) -> usize {
        let Some(rule) = self.rules.get(rule) else {
            return 0;
        };
        let backends = self
            .pools
            .get(rule.pool)
            .map_or(0, |pool| pool.backends.len());
        (0..backends)
            .filter(|&backend| self.serves(rule, backend))
            .count()
    }

    /// Returns the backends of a pool that get new flows of one of its rules, or would if it had a
    /// rule.
    pub(crate) fn serving(&self, pool: usize) -> Vec<usize> {
        let rules = || self.rules.iter().filter(|rule| rule.pool == pool);
        let is_ruled = rules().next().is_some();
        let backends = self.pools[pool].backends.iter().enumerate();
        let serves = |&(place, backend): &(usize, &Backend)| {
            backend.takes_flows() && (!is_ruled || rules().any(|rule| self.serves(rule, place)))
        };
        backends.filter(serves).map(|(place, _)| place).collect()
    }

    /// Returns the standing of a backend with the rules of its pool; both are given by index.
    pub fn standing(&self, pool: usize, backend: usize) -> Standing {
        let of_pool = self.pools.get(pool);
        let own = of_pool.and_then(|pool| pool.backends.get(backend));
        match own.map_or(BackendState::Up, |own| own.state) {
            BackendState::Down => Standing::Down,
            BackendState::Draining => Standing::Draining,
            BackendState::Up => self.observed(pool, backend),
        }
    }

    /// Returns the standing of a backend with the rules of its pool by its observed health alone:
    /// healthy, partial or unhealthy, whatever its administrative state.
    pub fn observed(&self, pool: usize, backend: usize) -> Standing {
        let of_pool = self.pools.get(pool);
        let own = of_pool.and_then(|pool| pool.backends.get(backend));
        if own.is_some_and(|own| own.condition == Condition::Unhealthy) {
            return Standing::Unhealthy;
        }
        let rules = || self.rules.iter().filter(|rule| rule.pool == pool);
        match rules().filter(|rule| self.fails(rule, backend)).count() {
            0 => Standing::Healthy,
            failed if failed < rules().count() => Standing::Partial,
            _ => Standing::Unhealthy,
        }
    }

    /// Returns true if a backend takes new flows of one of a frontend's rules; `None` if it has no
    /// rule.
    pub fn is_available(&self, frontend: usize) -> Option<bool> {
        let mut rules = self
            .rules
            .iter()
            .filter(|rule| rule.frontend == frontend)
            .peekable();
        rules.peek()?;
        Some(rules.any(|rule| {
            let backends = self
                .pools
                .get(rule.pool)
                .map_or(0, |pool| pool.backends.len());
            (0..backends).any(|backend| self.serves(rule, backend))
        }))
    }
}
