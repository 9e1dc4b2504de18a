//! Releases of a fleet: plans of changes, the spec that hosts have, and the objects that none needs any more.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::{error, warn};

use super::TOGETHER;
use super::office::{Deposed, Ended, Office, Present};
use crate::document::Spec;
use crate::fetch::{FetchError, objects_of, put_all};
use crate::object::{Digest, Keys, Report, escape};
use crate::rollout::{Member, Plan, Rollout, Stage};
use crate::store::{Condition, MOST_OPERATIONS, Operation, Store};

impl Office {
    /// Begins to roll out the wanted state, if it is new.
    pub(super) fn begin(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        name: &str,
        now: Duration,
    ) -> Result<(), Ended> {
        let record = self.machine.record();
        let Some((wanted, since)) = self.wanted.clone() else {
            return Ok(());
        };
        if now.saturating_sub(since) < TOGETHER || !record.may_begin() {
            return Ok(());
        }
        let is_stopped = matches!(record.stage, Stage::Stopped { .. });
        let is_again = is_stopped && (self.is_asked || self.may_try_again(keys));
        self.is_asked = false;
        if record.target.as_ref() == Some(&wanted) && !is_again {
            return Ok(());
        }
        let record = self.machine.record().clone();
        let plan = match self.plan(store, keys, &wanted, &record) {
            Err(Ended::Failed(FetchError::Object(error))) => {
                let node = format!("controller {name}");
                self.machine.refuse(wanted, node, error.to_string(), now);
                return self.store_rollout(store, keys);
            }
            other => other?,
        };
        self.machine.begin(plan, now);
        self.store_rollout(store, keys)
    }

    /// Returns true if a stopped rollout can go on: the node that refused it is gone or has accepted it.
    pub(super) fn may_try_again(&self, keys: &Keys) -> bool {
        let record = self.machine.record();
        let Stage::Stopped { node, .. } = &record.stage else {
            return false;
        };
        if node.starts_with("controller ") {
            return false;
        }
        let refuses = |member: &Member| {
            let refused = member.refused.as_ref().zip(record.of(member.side));
            refused.is_some_and(|(own, release)| own.is_of(release))
        };
        !self.present_members(keys).iter().any(refuses)
    }

    /// Plans a change; leaving backends stay for a while, drained.
    pub(super) fn plan(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        wanted: &Digest,
        record: &Rollout,
    ) -> Result<Plan, Ended> {
        let (index, spec) = self.known.fetch(store, keys, wanted)?;
        let config = spec.checked("the wanted state")?;
        self.checked = Some((wanted.clone(), config));
        // Leave out a refused spec: combined with the target, it would be refused again.
        let settled = record.settled.as_ref();
        let settled = settled.map(|index| self.known.fetch(store, keys, index));
        let settled = match settled.transpose() {
            Ok(settled) => settled,
            // An unreadable spec must not prevent a readable one from replacing it.
            Err(FetchError::Object(error)) => {
                warn!("nothing is drained, since the former state is lost: {error}");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let former: Vec<&Spec> = settled.iter().map(|(_, spec)| spec).collect();
        let (union, leaving) = spec.with_leavers(&former);
        let target = wanted.clone();
        if leaving.is_empty() {
            let first = target.clone();
            return Ok(Plan { first, target });
        }
        let made = union.objects(keys, leaving)?;
        let indexes = std::iter::once(&index).chain(settled.iter().map(|(index, _)| index));
        let there: BTreeSet<String> = indexes
            .flat_map(|index| objects_of(keys, index).into_keys())
            .collect();
        let new = made.objects.iter().filter(|(key, _)| !there.contains(*key));
        let written = put_all(store, std::slice::from_ref(&self.leads), new)?;
        self.written.extend(written.ok_or(Deposed)?);
        let first = made.index();
        Ok(Plan { first, target })
    }

    /// Reads the spec for hosts, if it has changed.
    pub(super) fn follow_hosts(&mut self, store: &dyn Store, keys: &Keys) -> Result<(), Ended> {
        let Some(release) = &self.machine.record().hosts else {
            return Ok(());
        };
        if self
            .present
            .as_ref()
            .is_some_and(|own| own.digest == release.index)
        {
            return Ok(());
        }
        let digest = release.index.clone();
        if self.unusable.as_ref() == Some(&digest) {
            return Ok(());
        }
        match self.read_present(store, keys, digest.clone()) {
            Ok(present) => {
                self.present = Some(present);
                self.is_stale = true;
                Ok(())
            }
            // Another spec may replace it; until then, health continues with the previous spec.
            Err(FetchError::Object(error)) => {
                error!("the state that hosts are to have is lost: apply it again: {error}");
                self.unusable = Some(digest);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn read_present(
        &mut self,
        store: &dyn Store,
        keys: &Keys,
        digest: Digest,
    ) -> Result<Present, FetchError> {
        let (index, spec) = self.known.fetch(store, keys, &digest)?;
        let checked = self.checked.take_if(|(of, _)| *of == digest);
        let config = match checked {
            Some((_, config)) => config,
            None => spec.config("the fleet", &spec.any_node())?,
        };
        let hosts = spec.hosts()?.map(|hosts| {
            let all = hosts.into_iter().flat_map(|(name, addresses)| {
                let name = escape(&name);
                addresses.into_iter().map(move |own| (own, name.clone()))
            });
            all.collect()
        });
        Ok(Present {
            digest,
            index,
            config,
            hosts,
        })
    }

    /// Returns true if a present agent counts the connections of every leaving backend.
    pub(super) fn is_counted(&self, keys: &Keys) -> bool {
        let Some(present) = &self.present else {
            return false;
        };
        let reports = self.objects::<Report>(&keys.key("node/host/"));
        let leaving: BTreeSet<&str> = present.index.leaving.iter().map(String::as_str).collect();
        let pools = present.config.pools.iter();
        let mut hosts = pools.flat_map(|pool| {
            let own = pool
                .backends
                .iter()
                .filter(|backend| leaving.contains(&*format!("{}/{}", pool.name, backend.name)));
            own.map(|backend| backend.host).collect::<Vec<_>>()
        });
        hosts.all(|host| {
            let agent = self.agents.at(host);
            agent.is_some_and(|agent| reports.contains_key(agent))
        })
    }

    /// Deletes unreferenced objects of specs.
    pub(super) fn tidy(&mut self, store: &dyn Store, keys: &Keys) -> Result<(), Ended> {
        let record = self.machine.record();
        let wanted = self.wanted.as_ref().map(|(digest, _)| digest);
        if !self.is_untidy || record.stage != Stage::Live || wanted != record.target.as_ref() {
            return Ok(());
        }
        self.is_untidy = false;
        let Some((_, applied)) = self.entries.get(&keys.wanted()) else {
            return Ok(());
        };
        let applied = *applied;
        let releases = [&record.hosts, &record.muxes].into_iter().flatten();
        let mut used: BTreeSet<Digest> = releases.map(|release| release.index.clone()).collect();
        used.extend(record.settled.clone());
        used.extend(record.target.clone());
        let mut keeps = BTreeSet::new();
        for digest in used {
            let (index, _) = match self.known.fetch(store, keys, &digest) {
                Ok(fetched) => fetched,
                // Nothing is deleted while the references are unknown.
                Err(FetchError::Object(error)) => {
                    self.say_once(error.to_string());
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            keeps.insert(keys.index(&digest));
            keeps.extend(objects_of(keys, &index).into_keys());
        }
        self.known.retain(&keeps);
        let listing = store.list(&keys.key("spec/"))?;
        // Objects that others wrote since the last change of the wanted state may belong to the
        // next one, as may objects that are written meanwhile.
        let stale = listing.entries.into_iter().filter(|entry| {
            let is_own = self.written.get(&entry.key) == Some(&entry.modified);
            (is_own || entry.modified < applied) && !keeps.contains(&entry.key)
        });
        let stale: Vec<(Condition, Operation)> = stale
            .map(|entry| {
                let unchanged = Condition::ModifiedIn(entry.key.clone(), entry.modified);
                (unchanged, Operation::Delete(entry.key))
            })
            .collect();
        for batch in stale.chunks(MOST_OPERATIONS - 2) {
            let (mut conditions, operations): (Vec<_>, Vec<_>) = batch.iter().cloned().unzip();
            conditions.push(self.leads.clone());
            conditions.push(Condition::ModifiedIn(keys.wanted(), applied));
            // After a change, the next turn tidies up.
            store.commit(&conditions, &operations)?;
        }
        self.written.retain(|key, _| keeps.contains(key));
        Ok(())
    }
}
