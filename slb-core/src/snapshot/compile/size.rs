//! The memory that a snapshot takes, counted before it is compiled.

use core::ops::Range;

use super::nat_rules;
use crate::maglev::Turn;
use crate::mem::Counter;
use crate::nat::rule_id;
use crate::snapshot::locals::{NatSize, has_ages, has_past};
use crate::snapshot::owners::Past;
use crate::snapshot::private::PrivateSize;
use crate::snapshot::probe_map::{NONE, ProbeMap, RuleBucket, VipBucket};
use crate::snapshot::proxy::CompiledProxy;
use crate::snapshot::registry::{MAX_SLOTS, Registry, RegistryEntry};
use crate::snapshot::terms::CompiledTerms;
use crate::snapshot::{CompiledBackend, CompiledPool, CompiledRule, Share, Snapshot};
use crate::spec::snat::{GRANULES, MAX_OWNERS, outbound_frontends};
use crate::spec::{Echo, Pool, Spec, SpecError};

/// Slots of rules that connections remember without an incarnation.
pub(super) const SPARED_RULE_SLOTS: Range<usize> = rule_id::FIRST_LONG_SLOT..rule_id::CODED_SLOTS;

/// The number of elements of each part of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::snapshot) struct Size {
    pub(super) rule_buckets: usize,
    pub(super) vip_buckets: usize,
    pub(super) frontends: usize,
    pub(super) rules: usize,
    pub(super) pools: usize,
    pub(super) probed: usize,
    pub(super) shares: usize,
    pub(super) backends: usize,
    pub(super) table: usize,
    pub(super) past: usize,
    pub(super) ages: usize,
    pub(super) turns: usize,
    pub(super) backend_slots: usize,
    pub(super) rule_slots: usize,
    pub(super) private: PrivateSize,
    pub(super) nat: NatSize,
}

impl Size {
    pub(in crate::snapshot) fn of(spec: &Spec<'_>, previous: Option<&Snapshot<'_>>) -> Self {
        let ipv6 = spec
            .frontends
            .iter()
            .filter(|frontend| frontend.address.is_ipv6())
            .count();
        let backends = spec.pools.iter().map(|pool| pool.backends.len()).sum();
        let slots = |count, registry| Registry::slots_for(count, registry);
        let (nat_rules, outbound) = (
            spec.inbound_nat
                .iter()
                .map(|nat| nat_rules(spec, nat).count())
                .sum::<usize>(),
            outbound_frontends(spec).count(),
        );
        let rules = spec.rules.len() + nat_rules + outbound;
        // One table for each probe, even if no backend fails it: health must not change the memory
        // that a snapshot takes.
        let probed = probed_pools(spec).map(|pool| pool.backends.len());
        let shares = backends + probed.sum::<usize>();
        Self {
            rule_buckets: ProbeMap::<u64, 5>::buckets_for(
                spec.rules.len() + nat_rules + (2 + OUTBOUND_KEYS) * spec.frontends.len(),
            ),
            vip_buckets: ProbeMap::<[u64; 2], 3>::buckets_for(ipv6),
            frontends: spec.frontends.len(),
            rules,
            pools: spec.pools.len(),
            probed: spec.health.len(),
            shares,
            backends,
            table: tables_len(spec) + nat_rules + outbound * GRANULES,
            past: pasts_len(spec),
            ages: match has_ages(spec) {
                true => tables_len(spec),
                false => 0,
            },
            turns: spec
                .pools
                .iter()
                .map(|pool| pool.backends.len())
                .max()
                .unwrap_or(0),
            backend_slots: slots(backends, previous.map(|p| &p.backend_ids)),
            rule_slots: Registry::slots_sparing(
                rules,
                previous.map(|p| &p.rule_ids),
                SPARED_RULE_SLOTS,
            ),
            private: PrivateSize::of(spec),
            nat: NatSize::of(spec, previous.map(|p| &p.nat)),
        }
    }

    /// Yields the kinds of items that exceed the range of their numbers.
    pub(in crate::snapshot) fn too_many(
        &self,
        spec: &Spec<'_>,
    ) -> impl Iterator<Item = SpecError> + use<> {
        let owners = match spec.outbound {
            [] => 0,
            _ => self.backends,
        };
        let kinds = [
            ("backends", self.backend_slots, MAX_SLOTS),
            ("rules", self.rule_slots, MAX_SLOTS),
            ("table slots", self.table, NONE as usize - 1),
            (
                "backends where there are outbound rules",
                owners,
                MAX_OWNERS,
            ),
        ];
        let all = kinds.into_iter().chain(self.nat.limits());
        let above = all.filter(|(_, count, most)| count > most);
        above.map(|(what, count, most)| SpecError::TooMany { what, count, most })
    }

    pub(super) fn lines(&self, spec: &Spec<'_>) -> Option<usize> {
        let mut counter = Counter::default();
        counter.add::<RuleBucket>(self.rule_buckets)?;
        counter.add::<VipBucket>(self.vip_buckets)?;
        counter.add::<Echo>(self.frontends)?;
        counter.add::<CompiledRule>(self.rules)?;
        counter.add::<CompiledTerms>(self.rules)?;
        counter.add::<CompiledPool>(self.pools)?;
        counter.add::<CompiledPool>(self.probed)?;
        counter.add::<Share>(self.shares)?;
        counter.add::<CompiledBackend>(self.backends)?;
        counter.add::<u64>(self.backends)?;
        counter.add::<u16>(self.table)?;
        counter.add::<Past>(self.past)?;
        counter.add::<u8>(self.ages)?;
        counter.add::<Turn>(self.turns)?;
        for (slots, owners) in [
            (self.backend_slots, self.backends),
            (self.rule_slots, self.rules),
        ] {
            counter.add::<RegistryEntry>(slots)?;
            counter.add::<u64>(slots)?;
            counter.add::<RuleBucket>(ProbeMap::<u64, 5>::buckets_for(owners))?;
        }
        self.private.count(&mut counter)?;
        self.nat.count(&mut counter)?;
        CompiledProxy::count(spec, &mut counter)?;
        Some(counter.lines())
    }
}

/// The pool of each set of probe results.
fn probed_pools<'s>(spec: &'s Spec<'_>) -> impl Iterator<Item = &'s Pool<'s>> {
    let all = spec.health.iter();
    all.filter_map(|health| spec.pools.get(health.pool))
}

/// Returns the number of slots of all pools' tables, including the tables by probe results.
pub(super) fn tables_len(spec: &Spec<'_>) -> usize {
    let all = spec.pools.iter().chain(probed_pools(spec));
    all.map(|pool| pool.table_size as usize).sum()
}

/// Slots of the tables that have a past.
fn pasts_len(spec: &Spec<'_>) -> usize {
    let probed = spec.health.iter().map(|health| health.pool);
    let all = (0..spec.pools.len()).chain(probed);
    let of_pool = |pool: usize| {
        spec.pools
            .get(pool)
            .map_or(0, |pool| pool.table_size as usize)
    };
    all.filter(|&pool| has_past(spec, pool)).map(of_pool).sum()
}

/// Keys of a frontend for its SNAT ports: TCP's, UDP's and ICMP's.
const OUTBOUND_KEYS: usize = 3;
