//! The controller: the elected one of several rolls out the wanted state and maintains the health
//! of the fleet.
//!
//! A controller is not on the path of packets: without one, traffic continues, but nothing changes.
//! Each write has the condition that the controller still leads, so if two controllers both believe
//! that they lead, one of them changes nothing.

mod agents;
mod office;
mod releases;
mod tables;
mod view;

pub use view::{FleetView, NodeView, Reported, failing};

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use slb_control::SlowStart;
use tracing::{info, warn};

use crate::fetch::{FetchError, Known};
use crate::object::{Agents, Keys, LeaderName, Object, Table};
use crate::rollout::{Machine, Rollout};
use crate::store::{Condition, Event, Lease, Operation, Store, StoreError};
use office::{Ended, Office};

/// The length of the leader's lease.
pub const LEASE: Duration = Duration::from_secs(5);
/// Changes of the wanted state within this time are rolled out together.
pub const TOGETHER: Duration = Duration::from_millis(200);
/// The time after which a controller that does not lead tries again.
const CAMPAIGN: Duration = Duration::from_millis(500);

/// The options of a controller.
#[derive(Clone, Debug)]
pub struct LeaderOptions {
    /// Name of the controller.
    pub name: String,
    /// Name of the fleet.
    pub cluster: String,
    /// The maximum time to wait for connections of leaving backends.
    pub drain: Duration,
}

/// A controller.
pub struct Leader {
    store: Arc<dyn Store>,
    keys: Keys,
    options: LeaderOptions,
    lease: Option<Held>,
    office: Option<Office>,
    /// Name of the other controller that leads, if known.
    other: Option<String>,
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leader")
            .field("options", &self.options)
            .field("leads", &self.leads())
            .finish_non_exhaustive()
    }
}

/// A lease, and the time of its last renewal.
struct Held {
    lease: Lease,
    kept: Duration,
}

impl Held {
    /// Returns true if the lease has ended, as far as the controller knows.
    fn has_ended(&self, now: Duration) -> bool {
        now.saturating_sub(self.kept) >= LEASE
    }
}

impl Leader {
    /// Makes a controller that does not lead yet.
    pub fn new(store: Arc<dyn Store>, options: LeaderOptions) -> Self {
        Self {
            store,
            keys: Keys::new(&options.cluster),
            options,
            lease: None,
            office: None,
            other: None,
        }
    }

    /// Returns true if the controller leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.office.is_some()
    }

    /// Returns the name of the controller that leads, as far as this one knows.
    pub fn leader(&self) -> Option<&str> {
        match &self.office {
            Some(_) => Some(&self.options.name),
            None => self.other.as_deref(),
        }
    }

    /// Returns the fleet; `None` if the controller does not lead.
    ///
    /// # Cost
    /// Reads the reports of all nodes.
    pub fn view(&self) -> Option<FleetView> {
        let office = self.office.as_ref()?;
        Some(office.view(&self.keys))
    }

    /// Does the due work; if there is none, waits for at most `patience`. `now` is the time since a
    /// fixed origin.
    ///
    /// # Errors
    /// The store is unreachable, or its contents cannot be used. Call it again in any case.
    pub fn turn(&mut self, now: Duration, patience: Duration) -> Result<(), FetchError> {
        let led = self.leads();
        let turned = match self.hold(now) {
            Ok(Some(lease)) => match self.office.take() {
                Some(office) => self.lead(office, now, patience),
                None => self.campaign(lease, now, patience),
            },
            // Without a lease, the controller does not lead.
            Ok(None) => Err(Ended::Deposed),
            Err(error) => {
                // The store ends a lease that is not renewed, and another controller may lead by now.
                if self.lease.as_ref().is_some_and(|held| held.has_ended(now)) {
                    self.office = None;
                    if led {
                        warn!("this controller no longer leads: it could not renew its lease");
                    }
                }
                Err(error.into())
            }
        };
        match turned {
            Ok(office) => {
                self.office = office;
                Ok(())
            }
            Err(Ended::Deposed) => {
                self.office = None;
                if led {
                    warn!("this controller no longer leads: its lease has ended");
                }
                Ok(())
            }
            Err(Ended::Failed(error)) => Err(error),
        }
    }

    /// Ends the controller's lease, so that another controller leads at once.
    pub fn resign(mut self) {
        self.office = None;
        if let Some(held) = self.lease.take() {
            // If this fails, the lease expires.
            let _ = self.store.revoke(held.lease);
        }
    }

    /// Renews the lease, or gets another one; returns `None` if the lease has ended.
    fn hold(&mut self, now: Duration) -> Result<Option<Lease>, StoreError> {
        let Some(held) = &mut self.lease else {
            let lease = self.store.grant(LEASE)?;
            self.lease = Some(Held { lease, kept: now });
            return Ok(Some(lease));
        };
        if now.saturating_sub(held.kept) < LEASE / 4 {
            return Ok(Some(held.lease));
        }
        match self.store.keep(held.lease) {
            Ok(()) => {
                held.kept = now;
                Ok(Some(held.lease))
            }
            Err(StoreError::LeaseEnded) => {
                self.lease = None;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn campaign(
        &mut self,
        lease: Lease,
        now: Duration,
        patience: Duration,
    ) -> Result<Option<Office>, Ended> {
        let key = self.keys.key("state/leader");
        let name = LeaderName {
            name: self.options.name.clone(),
            lease: lease.0,
        };
        let put = Operation::Put(key.clone(), name.write(), Some(lease));
        let absent = Condition::Absent(key.clone());
        let own = match self.store.commit(&[absent], &[put])? {
            Some(revision) => revision,
            // The entry may be the controller's own, from a request whose answer was lost.
            None => match self.store.get(&key)? {
                Some(entry) if entry.value == name.write() => entry.created,
                other => {
                    let other = other.map(|entry| LeaderName::read(&entry.key, &entry.value));
                    self.other = other.and_then(Result::ok).map(|other| other.name);
                    std::thread::sleep(patience.min(CAMPAIGN));
                    return Ok(None);
                }
            },
        };
        self.other = None;
        let leads = Condition::CreatedIn(key, own);
        let listing = self.store.list(&self.keys.key(""))?;
        let watch = self.store.watch(self.keys.all(), listing.revision)?;
        let mut office = Office {
            since: now,
            leads,
            watch,
            entries: BTreeMap::new(),
            machine: Machine::default(),
            known: Known::default(),
            checked: None,
            written: BTreeMap::new(),
            present: None,
            agents: Agents::default(),
            tables: BTreeMap::new(),
            zones: Vec::new(),
            slow_start: SlowStart::default(),
            wanted: None,
            is_asked: false,
            unusable: None,
            is_stale: true,
            is_lenient: false,
            is_untidy: true,
            said: RefCell::default(),
        };
        for entry in listing.entries {
            office.note(&self.keys, Event::Put(entry), now)?;
        }
        office.is_asked = false;
        let rollout: Option<Rollout> = office.object(&self.keys.key("state/rollout"))?;
        office.machine = Machine::new(rollout.unwrap_or_default(), now);
        office.agents = office
            .object(&self.keys.key("state/agents"))?
            .unwrap_or_default();
        let tables = office.objects::<Table>(&self.keys.key("state/table/"));
        let tables = tables.into_values();
        office.tables = tables.map(|table| (table.pool.clone(), table)).collect();
        let generation = office.machine.record().generation;
        info!(
            name = self.options.name,
            generation, "this controller leads"
        );
        Ok(Some(office))
    }

    fn lead(
        &mut self,
        mut office: Office,
        now: Duration,
        patience: Duration,
    ) -> Result<Option<Office>, Ended> {
        for event in office.watch.next(patience)? {
            office.note(&self.keys, event, now)?;
        }
        if !office.entries.contains_key(&self.keys.key("state/leader")) {
            return Err(Ended::Deposed);
        }
        let (store, keys) = (&*self.store, &self.keys);
        office.forget_agents(store, keys)?;
        office.register_agents(store, keys, now)?;
        office.begin(store, keys, &self.options.name, now)?;
        let members = office.members(keys, now);
        let is_counted = office.is_counted(keys);
        let drain = self.options.drain;
        if office.machine.advance(&members, now, drain, is_counted) {
            office.store_rollout(store, keys)?;
        }
        office.follow_hosts(store, keys)?;
        office.work_out_tables(store, keys, now)?;
        office.tidy(store, keys)?;
        Ok(Some(office))
    }
}
