//! The counters of rules, backends and access lists, and their move into larger memory.
//!
//! A rule or backend keeps its slot in all following snapshots, and its counters are in that slot.
//! When a removed owner's slot is reused, the new owner's counters begin at zero.

use crate::mem::{Mem, Memory};
use crate::snapshot::Snapshot;
use crate::stats::{BackendCounters, RuleCounters, SecurityCounters, SnatCounters, VmCounters};

/// Memory for counters of rules, backends and, at a host agent, SNAT ports and rules of access lists.
///
/// A role has counters for as many rules and backends as its memory has room for; others are not
/// counted. Before you install a snapshot with more of them, give the role larger memory, with
/// [`Mux::replace_counters`](crate::Mux::replace_counters) or the method of the other roles:
/// ```
/// # use slb_core::{counters::CounterMemory, snapshot::Snapshot, Mux};
/// # fn reload(mux: &mut Mux<'static, &'static Snapshot<'static>>, next: &'static Snapshot<'static>) {
/// if !mux.has_counters_for(next) {
///     let smaller = mux.replace_counters(CounterMemory::new(next));
///     drop(smaller); // or use it again
/// }
/// mux.install(next).expect("it follows");
/// # }
/// ```
#[derive(Debug)]
pub struct CounterMemory<'m> {
    /// Counters by [`CompiledRule::slot`](crate::snapshot::CompiledRule::slot).
    pub rules: Mem<'m, RuleCounters>,
    /// Counters by [`BackendId::slot`](crate::snapshot::BackendId::slot).
    pub backends: Mem<'m, BackendCounters>,
    /// SNAT counters by [`BackendId::slot`](crate::snapshot::BackendId::slot). Muxes have none.
    pub snat: Mem<'m, SnatCounters>,
    /// Counters of the rules of access lists; a mux has none.
    pub security: Mem<'m, SecurityCounters>,
    /// Traffic of vms by the number of their port; only a host agent has any.
    pub vms: Mem<'m, VmCounters>,
}

/// Numbers of counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterSizes {
    /// Counters of rules.
    pub rules: usize,
    /// Counters of backends.
    pub backends: usize,
    /// Counters of rules of access lists.
    pub security: usize,
    /// Rows for the traffic of vms, by port.
    pub vms: usize,
}

impl CounterSizes {
    /// Returns true if every item of a snapshot has its counters.
    pub fn fit(&self, snapshot: &Snapshot<'_>) -> bool {
        snapshot.rule_slots() <= self.rules
            && snapshot.backend_slots() <= self.backends
            && snapshot.security_slots() <= self.security
            && snapshot.vm_slots() <= self.vms
    }
}

impl<'m> CounterMemory<'m> {
    /// The minimum number of counters, so that small configurations have room to grow.
    const LEAST_RULES: usize = 64;
    const LEAST_BACKENDS: usize = 1024;

    /// Makes counters for a snapshot, and for as many further rules and backends. Returns `None` if
    /// the memory is used up.
    pub fn build(snapshot: &Snapshot<'_>, memory: &mut impl Memory<'m>) -> Option<Self> {
        let sizes = Self::size_for(snapshot);
        Some(Self {
            rules: memory.take(sizes.rules, RuleCounters::default())?,
            backends: memory.take(sizes.backends, BackendCounters::default())?,
            snat: memory.take(sizes.backends, SnatCounters::default())?,
            security: memory.take(sizes.security, SecurityCounters::default())?,
            vms: memory.take(sizes.vms, VmCounters::default())?,
        })
    }

    /// Returns the numbers of counters that [`build`](Self::build) makes.
    pub fn size_for(snapshot: &Snapshot<'_>) -> CounterSizes {
        let rules = (2 * snapshot.rule_slots()).max(Self::LEAST_RULES);
        let backends = (2 * snapshot.backend_slots()).max(Self::LEAST_BACKENDS);
        CounterSizes {
            rules,
            backends,
            security: 2 * snapshot.security_slots(),
            vms: 2 * snapshot.vm_slots(),
        }
    }
}

#[cfg(feature = "alloc")]
impl CounterMemory<'static> {
    /// Makes counters like [`build`](Self::build), in boxes.
    pub fn new(snapshot: &Snapshot<'_>) -> Self {
        let sizes = Self::size_for(snapshot);
        Self {
            rules: alloc::vec![RuleCounters::default(); sizes.rules].into(),
            backends: alloc::vec![BackendCounters::default(); sizes.backends].into(),
            snat: alloc::vec![SnatCounters::default(); sizes.backends].into(),
            security: alloc::vec![SecurityCounters::default(); sizes.security].into(),
            vms: alloc::vec![VmCounters::default(); sizes.vms].into(),
        }
    }
}

/// Swaps `counters` with `larger`, and copies the values.
pub(crate) fn replace<'m, T: Copy>(counters: &mut Mem<'m, T>, larger: &mut Mem<'m, T>) {
    for (new, old) in larger.iter_mut().zip(counters.iter()) {
        *new = *old;
    }
    core::mem::swap(counters, larger);
}

/// Resets the counters of every rule and backend whose slot had another owner.
pub(crate) fn name(
    snapshot: &Snapshot<'_>,
    rules: &mut [RuleCounters],
    backends: &mut [BackendCounters],
    snat: &mut [SnatCounters],
) {
    for rule in snapshot.rules() {
        let id = snapshot.rule_id(rule.slot());
        if let Some(counters) = rules.get_mut(rule.slot())
            && counters.id != id
        {
            *counters = RuleCounters::of(id);
        }
    }
    for backend in snapshot.backends() {
        let id = backend.id();
        if let Some(counters) = backends.get_mut(id.slot())
            && counters.id != id.get()
        {
            *counters = BackendCounters::of(id.get());
            if let Some(snat) = snat.get_mut(id.slot()) {
                *snat = SnatCounters::default();
            }
        }
    }
}

/// Starts the counters of every rule of an access list whose slot had another owner at zero.
pub(crate) fn name_security(snapshot: &Snapshot<'_>, all: &mut [SecurityCounters]) {
    for (place, id) in snapshot.nat.security.counter_ids() {
        if let Some(counters) = all.get_mut(place)
            && counters.id != id
        {
            *counters = SecurityCounters {
                id,
                ..SecurityCounters::default()
            };
        }
    }
}
