//! The counters of rules, backends and access lists, and their move into larger memory.
//!
//! A rule or backend keeps its slot in all following snapshots, and its counters are in that slot.
//! When a removed owner's slot is reused, the new owner's counters begin at zero.

use crate::mem::{Mem, Memory};
use crate::snapshot::Snapshot;
use crate::stats::{BackendCounters, RuleCounters, SecurityCounters, SnatCounters};

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
}

impl<'m> CounterMemory<'m> {
    /// The minimum number of counters, so that small configurations have room to grow.
    const LEAST_RULES: usize = 64;
    const LEAST_BACKENDS: usize = 1024;

    /// Makes counters for a snapshot, and for as many further rules and backends. Returns `None` if
    /// the memory is used up.
    pub fn build(snapshot: &Snapshot<'_>, memory: &mut impl Memory<'m>) -> Option<Self> {
        let (rules, backends, security) = Self::size_for(snapshot);
        Some(Self {
            rules: memory.take(rules, RuleCounters::default())?,
            backends: memory.take(backends, BackendCounters::default())?,
            snat: memory.take(backends, SnatCounters::default())?,
            security: memory.take(security, SecurityCounters::default())?,
        })
    }

    /// Returns the numbers of rules, of backends and of rules of access lists that [`build`](Self::build) makes
    /// counters for.
    pub fn size_for(snapshot: &Snapshot<'_>) -> (usize, usize, usize) {
        let rules = (2 * snapshot.rule_slots()).max(Self::LEAST_RULES);
        let backends = (2 * snapshot.backend_slots()).max(Self::LEAST_BACKENDS);
        (rules, backends, 2 * snapshot.security_slots())
    }
}

#[cfg(feature = "alloc")]
impl CounterMemory<'static> {
    /// Makes counters like [`build`](Self::build), in boxes.
    pub fn new(snapshot: &Snapshot<'_>) -> Self {
        let (rules, backends, security) = Self::size_for(snapshot);
        Self {
            rules: alloc::vec![RuleCounters::default(); rules].into(),
            backends: alloc::vec![BackendCounters::default(); backends].into(),
            snat: alloc::vec![SnatCounters::default(); backends].into(),
            security: alloc::vec![SecurityCounters::default(); security].into(),
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
