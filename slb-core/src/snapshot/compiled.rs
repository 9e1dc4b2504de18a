//! Rules, pools, backends and slots in the form that lookups use.

use super::BackendId;
use super::owners::Past;
use super::probe_map::NONE;
use crate::flow::Ticks;
use crate::tunnel::encapsulation::Template;

/// A compiled rule.
#[derive(Clone, Copy, Debug)]
pub struct CompiledRule {
    /// The bits of the message's last word that the distribution mode includes.
    pub(crate) mask: u64,
    /// Index of the first slot of the pool's Maglev table.
    pub(super) table_start: u32,
    pub(super) table_size: u32,
    /// The pool's first backend.
    pub(crate) first_backend: u32,
    /// The idle timeout of pinned flows.
    pub(crate) idle_timeout: Ticks,
    /// Index of the rule's counters.
    pub(super) slot: u32,
    pub(super) ha_ports: bool,
    /// True if the table is indexed by destination ports, with a slot for each eight, instead of by
    /// hashes.
    pub(super) by_port: bool,
}

impl CompiledRule {
    pub(super) const EMPTY: Self = Self {
        mask: 0,
        table_start: 0,
        table_size: 0,
        first_backend: 0,
        idle_timeout: Ticks(0),
        slot: 0,
        ha_ports: false,
        by_port: false,
    };

    /// Returns the number of slots of the pool's table, if a hash of the whole tuple chooses the
    /// slot, as for nearly all rules.
    #[inline]
    pub(crate) fn slots_by_five_tuple(&self) -> Option<u32> {
        (self.mask == u64::MAX && !self.by_port).then_some(self.table_size)
    }

    /// Returns the index of the first slot of the pool's table in all tables.
    #[inline]
    pub(crate) fn first_slot(&self) -> usize {
        self.table_start as usize
    }

    /// Returns true if the rule takes packets of all ports, and chooses backends without them.
    pub(crate) fn ignores_ports(&self) -> bool {
        self.ha_ports && self.mask as u32 == 0
    }

    /// Returns the index of the rule's counters, which stays the same in every generation as long
    /// as a rule has this name.
    pub fn slot(&self) -> usize {
        self.slot as usize
    }
}

/// The backends of a pool that rules choose from: by their own state and weight alone, or also by
/// the results of a probe.
#[derive(Clone, Copy, Debug)]
pub(super) struct CompiledPool {
    pub(super) identity: u64,
    /// Digest of all input to the pool's table.
    pub(super) digest: u64,
    /// Digest of the names and seats of its backends, which are unique.
    pub(super) names: u64,
    pub(super) table_start: u32,
    pub(super) table_size: u32,
    pub(super) first_backend: u32,
    pub(super) backends: u32,
    /// Index of the pool's first share.
    pub(super) shares: u32,
    /// Index of the past of its table, or [`NONE`].
    pub(super) past: u32,
    /// True if a slot of its table has an [age](super::ages).
    pub(super) has_ages: bool,
}

/// A backend's share of the new flows of rules with one probe, or without a probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// The weight relative to the others; zero for no share.
    pub(crate) weight: u32,
    pub(crate) is_unhealthy: bool,
}

impl Share {
    pub(super) const EMPTY: Self = Self {
        weight: 0,
        is_unhealthy: false,
    };
}

/// A compiled backend.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct CompiledBackend {
    pub(crate) template: Template,
    /// The longest packet that can be encapsulated for it.
    pub(crate) inner_mtu: u32,
    /// The inner MTU where its template [is common](Template::is_common), and zero where not.
    pub(crate) common_mtu: u32,
    pub(super) id: u32,
    /// Index of the rule's counters.
    pub(super) counters: u32,
    pub(super) pool: u32,
    pub(super) member: u32,
    pub(super) eligible: bool,
    /// True if the backend is unhealthy by its own state.
    pub(super) unhealthy: bool,
    /// True if the backend is unhealthy by its own state or any probe. If false, rules need no
    /// further check.
    pub(super) suspect: bool,
}

const _: () = assert!(size_of::<CompiledBackend>() == 128);

impl CompiledBackend {
    pub(super) const EMPTY: Self = Self {
        template: Template::EMPTY,
        inner_mtu: 0,
        common_mtu: 0,
        id: NONE,
        counters: 0,
        pool: 0,
        member: 0,
        eligible: false,
        unhealthy: false,
        suspect: false,
    };

    /// Returns the id of the backend.
    #[inline]
    pub fn id(&self) -> BackendId {
        BackendId::from_value(self.id)
    }

    /// The place of its counters: [`BackendId::slot`].
    #[inline]
    pub(crate) fn counters(&self) -> usize {
        self.counters as usize
    }

    /// Returns the index of the backend's pool in [`Spec::pools`](crate::spec::Spec::pools).
    pub fn pool(&self) -> usize {
        self.pool as usize
    }

    /// Returns the index of the backend in its pool.
    pub fn member(&self) -> usize {
        self.member as usize
    }

    /// Returns true if new flows may go to the backend by its own state and weight, before any
    /// probe is considered: see [`Snapshot::serves`](super::Snapshot::serves) for a rule's probe.
    #[inline]
    pub fn is_eligible(&self) -> bool {
        self.eligible
    }

    /// Returns true if the backend is unhealthy by its own state or any probe.
    #[inline]
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect
    }
}

/// A slot of a balancing rule's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Index of the present owner among all backends; `None` if the slot is empty.
    pub(crate) owner: Option<u32>,
    pub(super) first_backend: u32,
    pub(crate) past: Past,
}

impl Slot {
    /// Yields the present owner, then the former owners, the newest first, as indexes among all
    /// backends.
    pub(crate) fn owners(&self) -> impl Iterator<Item = u32> + Clone + '_ {
        let former = self.past.former();
        let former = former.map(|member| self.first_backend + u32::from(member));
        self.owner.into_iter().chain(former)
    }
}

impl CompiledPool {
    pub(super) const EMPTY: Self = Self {
        identity: 0,
        digest: 0,
        names: 0,
        table_start: 0,
        table_size: 0,
        first_backend: 0,
        backends: 0,
        shares: 0,
        past: NONE,
        has_ages: false,
    };

    /// Returns true if `other` is the same pool in a later generation, with a table of equal size.
    pub(super) fn is_continued_by(&self, other: &Self) -> bool {
        self.identity == other.identity && self.table_size == other.table_size
    }

    /// Returns the range of the pool's past; meaningless without a past.
    pub(super) fn past(&self) -> core::ops::Range<usize> {
        let start = self.past as usize;
        start..start.saturating_add(self.table_size as usize)
    }

    pub(super) fn table(&self) -> core::ops::Range<usize> {
        let start = self.table_start as usize;
        start..start + self.table_size as usize
    }
}
