//! Health of a fleet: tables of backends, computed from the reports of nodes.

use std::time::Duration;

use slb_core::Instant;

use super::office::{Ended, Office};
use crate::health::{Reports, tables};
use crate::object::{Health, Keys, Object, Table};
use crate::store::{MOST_OPERATIONS, Operation, Store};
use crate::zones;

impl Office {
    /// Returns the backends that fail by the present tables.
    pub(super) fn former_health(&self) -> Health {
        let all = self.tables.values().flat_map(|table| {
            let by = table
                .by
                .iter()
                .filter_map(|by| Some((by.probe.clone()?, by)));
            by.flat_map(move |(probe, by)| {
                let failing = by.failing.iter();
                failing.map(move |name| (table.pool.clone(), probe.clone(), name.clone()))
            })
        });
        Health {
            failing: all.collect(),
        }
    }

    /// Recomputes health and weights after a change, and writes the tables that differ.
    pub(super) fn work_out_tables(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        now: Duration,
    ) -> Result<(), Ended> {
        let is_new = self.is_new(now);
        let now = Instant::ZERO + now;
        let mut is_due = self.slow_start.due().is_some_and(|due| due <= now);
        // Once, when silent nodes begin to count as failing.
        is_due |= self.is_lenient && !is_new;
        let Some(present) = self.present.as_ref().filter(|_| self.is_stale || is_due) else {
            return Ok(());
        };
        let mut reports = Reports {
            hosts: self.objects::<Health>(&keys.key("health/host/")),
            muxes: self.objects::<Health>(&keys.key("health/mux/")),
        };
        if is_new {
            // Until then, the former health is used.
            let former = self.former_health();
            for agent in self.agents.agents.keys() {
                let word = reports.hosts.entry(agent.clone());
                word.or_insert_with(|| former.clone());
            }
        }
        self.is_lenient = is_new;
        let mut config = present.config.clone();
        reports.apply(&self.agents, &mut config);
        let zones = zones::of_pools(&config);
        let mut new = tables(&config, &mut self.slow_start, now);
        let mut operations = Vec::new();
        for (pool, table) in &mut new {
            let old = self.tables.get(pool);
            table.epoch = old.map_or(0, |old| old.epoch);
            if old != Some(table) {
                table.epoch += 1;
                operations.push(Operation::put(keys.table(pool), table.write()));
            }
        }
        // An empty table stays, so that epochs continue.
        for (pool, old) in &self.tables {
            let is_known = present.config.pools.iter().any(|own| own.name == *pool);
            if new.contains_key(pool) {
                continue;
            }
            if !is_known {
                operations.push(Operation::Delete(keys.table(pool)));
                continue;
            }
            let mut empty = Table {
                epoch: old.epoch,
                pool: pool.clone(),
                by: Vec::new(),
            };
            if *old != empty {
                empty.epoch += 1;
                operations.push(Operation::put(keys.table(pool), empty.write()));
            }
            new.insert(pool.clone(), empty);
        }
        for batch in operations.chunks(MOST_OPERATIONS) {
            self.write(store, &[], batch)?;
        }
        (self.tables, self.zones) = (new, zones);
        self.is_stale = false;
        Ok(())
    }
}
