//! The compiled form of a [`Spec`](crate::spec::Spec), in which packets are looked up.
//!
//! A snapshot is compiled once and never changes. Health, drain and weights are part of its input,
//! so a backend's change of health needs a new snapshot, which takes effect between two bursts.
//! Backends and rules keep their ids from one generation to the next.
//!
//! ```text
//!  (VIP, protocol, port) -> rule -> Maglev slot -> backend: its outer header, ready to copy
//!                                   flow's id   ->
//! ```

mod addresses;
mod ages;
mod classify;
mod compile;
mod compiled;
mod conflicts;
mod eligible;
pub(crate) mod faults;
mod lineage;
pub(crate) mod locals;
mod names;
pub(crate) mod networks;
#[expect(
    unsafe_code,
    reason = "lines are lent to a snapshot, and taken back when it is gone"
)]
mod owned;
pub(crate) mod owners;
mod private;
mod probe_map;
pub(crate) mod proxy;
pub(crate) mod publics;
mod registry;
pub(crate) mod security;
mod slots;
pub(crate) mod terms;

pub(crate) use addresses::{words, words_of_ipv4, words_of_ipv6};
pub use classify::RuleMatch;
pub(crate) use compile::rule_names;
pub use compiled::{CompiledBackend, CompiledRule};
pub(crate) use compiled::{Share, Slot};
pub(crate) use faults::backend_identity;
pub use lineage::{InstallError, Rejected, RoleError};
pub use names::{BackendKey, RuleKey};
pub use owned::{OwnedSnapshot, Unbuilt};
pub use registry::BackendId;
pub(crate) use registry::SLOT_BITS;

use self::classify::{ECHO, VIP, ipv6_words, private_vip, rule_key};
use self::compiled::CompiledPool;
use self::locals::Nat;
use self::owners::Past;
use self::private::Private;
use self::probe_map::ProbeMap;
use self::registry::Registry;
use self::terms::CompiledTerms;
use crate::hash::Hasher;
use crate::mem::Mem;
use crate::nat::rule_id::ShortRuleId;
use crate::spec::{Echo, ProbeSource, Underlay};
use crate::time::Instant;

/// The compiled configuration of one generation.
#[derive(Debug)]
pub struct Snapshot<'m> {
    generation: u64,
    /// The time of compilation, by the clock of the specification.
    now: Instant,
    pub(crate) hasher: Hasher,
    underlay: Underlay,
    probe_source: ProbeSource,
    rule_keys: ProbeMap<'m, u64, 5>,
    ipv6_vips: ProbeMap<'m, [u64; 2], 3>,
    echo: Mem<'m, Echo>,
    rules: Mem<'m, CompiledRule>,
    terms: Mem<'m, CompiledTerms>,
    pools: Mem<'m, CompiledPool>,
    /// Pools by the results of probes, in the order of [`Spec::health`](crate::spec::Spec::health).
    probed: Mem<'m, CompiledPool>,
    /// The shares of all pools, then of all probe results.
    shares: Mem<'m, Share>,
    backends: Mem<'m, CompiledBackend>,
    /// Hashes of the backends' names; see [`names`].
    names: Mem<'m, u64>,
    table: Mem<'m, u16>,
    /// Former owners of the slots of pools that have a backend on this node.
    past: Mem<'m, Past>,
    /// Generations since each slot of the pools' tables last changed its backend; see [`ages`].
    /// Empty at host agents and proxies.
    ages: Mem<'m, u8>,
    backend_ids: Registry<'m>,
    rule_ids: Registry<'m>,
    private: Private<'m>,
    pub(crate) nat: Nat<'m>,
}

impl Snapshot<'_> {
    /// Returns the number of counters for users of SNAT ports; see
    /// [`PortTable::new`](crate::nat::PortTable::new).
    pub fn snat_port_places(&self) -> usize {
        self.nat.port_places()
    }

    /// Returns all rules, in the order of their indexes.
    pub(crate) fn rules(&self) -> &[CompiledRule] {
        &self.rules
    }

    /// Returns the id of the rule in a counter slot. Each owner of the slot has a different id.
    pub(crate) fn rule_id(&self, slot: usize) -> u32 {
        self.rule_ids.id(slot).get()
    }

    /// Returns the short id of a rule.
    pub(crate) fn short_rule_id(&self, rule: &CompiledRule) -> ShortRuleId {
        ShortRuleId::of(self.rule_id(rule.slot()))
    }

    /// Returns true if a rule exists, false if it has been removed, whichever rule has its slot now.
    pub(crate) fn has_rule(&self, rule: ShortRuleId) -> bool {
        self.index_of_rule(rule).is_some()
    }

    /// Returns the index of a rule; `None` if the rule has been removed.
    fn index_of_rule(&self, rule: ShortRuleId) -> Option<u32> {
        let slot = rule.slot();
        let index = self.rule_ids.owner(slot)?;
        rule.is(self.rule_id(slot)).then_some(index)
    }

    /// Returns the identity of a rule, which follows from its name; `None` if the rule has been removed.
    pub(crate) fn short_rule_identity(&self, rule: ShortRuleId) -> Option<u64> {
        self.index_of_rule(rule)?;
        self.rule_identity(rule.slot())
    }

    /// Returns the identity of the rule in a counter slot.
    pub(crate) fn rule_identity(&self, slot: usize) -> Option<u64> {
        self.rule_ids.identity_of(slot)
    }

    /// Returns the short id of the rule of an identity; `None` if there is no such rule.
    pub(crate) fn rule_of_identity(&self, identity: u64) -> Option<ShortRuleId> {
        let slot = self.rule_by_identity(identity)?;
        Some(ShortRuleId::of(self.rule_id(slot)))
    }

    /// Returns the counter slot of the rule of an identity.
    pub(crate) fn rule_by_identity(&self, identity: u64) -> Option<usize> {
        self.rule_ids.slot_of(identity)
    }

    /// Returns the identity of a backend, which follows from its pool, name and address.
    pub(crate) fn backend_identity(&self, id: BackendId) -> Option<u64> {
        self.backend_ids.index(id)?;
        self.backend_ids.identity_of(id.slot())
    }

    /// Returns the id of the backend of an identity.
    pub(crate) fn backend_by_identity(&self, identity: u64) -> Option<BackendId> {
        let slot = self.backend_ids.slot_of(identity)?;
        Some(self.backend_ids.id(slot))
    }

    /// Returns a rule by its index in [`Spec::rules`](crate::spec::Spec::rules).
    #[inline]
    pub fn rule(&self, index: u32) -> Option<&CompiledRule> {
        self.rules.get(index as usize)
    }

    /// Returns a backend by its index among all backends, pool by pool.
    #[inline]
    pub fn backend(&self, index: u32) -> Option<&CompiledBackend> {
        self.backends.get(index as usize)
    }

    /// Returns all backends, pool by pool.
    pub fn backends(&self) -> &[CompiledBackend] {
        &self.backends
    }

    /// Returns the index of the backend with an id; `None` if it is gone.
    #[inline]
    pub fn backend_index(&self, id: BackendId) -> Option<u32> {
        self.backend_ids.index(id)
    }

    /// Returns the index of the backend with an id, and the backend; `None` if it is gone.
    #[inline]
    pub(crate) fn backend_of(&self, id: BackendId) -> Option<(u32, &CompiledBackend)> {
        // No backend has the index of a removed one.
        let index = self.backend_ids.last_index(id)?;
        Some((index, self.backend(index)?))
    }

    /// Returns the terms of a rule's connections.
    pub(crate) fn terms(&self, index: u32) -> Option<&CompiledTerms> {
        self.terms.get(index as usize)
    }

    /// Returns true if a former local is still configured: its vm has moved to another host.
    #[cold]
    pub(crate) fn has_moved(&self, local: u16) -> bool {
        let identity = self.nat.identity_of_former(local);
        identity.is_some_and(|identity| self.backend_by_identity(identity).is_some())
    }

    /// Returns the indexes of a pool's backends among all backends.
    pub(crate) fn backends_of(&self, pool: u32) -> core::ops::Range<u32> {
        match self.pools.get(pool as usize) {
            Some(pool) => pool.first_backend..pool.first_backend + pool.backends,
            None => 0..0,
        }
    }

    /// Returns the number of this snapshot: one more than its predecessor's.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns this node's addresses and settings on the fabric.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// Returns the source addresses of a host agent's own probes.
    pub fn probe_source(&self) -> &ProbeSource {
        &self.probe_source
    }

    /// Returns true if several workers can share the connections of this configuration: no rule
    /// replaces all clients' addresses by one ([`source_nat`](crate::spec::Terms::source_nat)), and
    /// no vm of this node has an [access list](crate::spec::SecurityList), since only one worker
    /// would know a flow between two vms of the node. See [`steer`](crate::steer).
    ///
    /// # Cost
    /// Proportional to the rules.
    pub fn spreads(&self) -> bool {
        self.nat.security.is_unused() && self.terms.iter().all(|terms| terms.source_nat.is_none())
    }

    /// Returns the hasher of flows.
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// Returns the number of counters that backends need: [`BackendId::slot`] is always less.
    pub fn backend_slots(&self) -> usize {
        self.backend_ids.used()
    }

    /// The number of rules of an access list, with the default ones; `None` where there is no such list, or no vm of
    /// this node has any.
    pub fn security_rules(&self, list: usize) -> Option<usize> {
        self.nat.security.rules_of(list)
    }

    /// Places that counters of rules of access lists need.
    pub fn security_slots(&self) -> usize {
        self.nat.security.counter_slots()
    }

    /// Returns the number of rows that the traffic of a host agent's vms needs: the largest number of a vm's port, plus
    /// one.
    pub fn vm_slots(&self) -> usize {
        self.nat.vm_slots()
    }

    /// Returns the number of counters that rules need: [`CompiledRule::slot`] is always less.
    pub fn rule_slots(&self) -> usize {
        self.rule_ids.used()
    }
}
