//! Rules, pools, backends and slots in the form that packets are looked up in.

use super::BackendId;
use super::owners::Past;
use super::probe_map::NONE;
use crate::flow::Ticks;
use crate::tunnel::encapsulation::Template;

/// A rule as packets meet it.
#[derive(Clone, Copy, Debug)]
pub struct CompiledRule {
    /// The bits of the message's last word that the distribution mode counts.
    pub(crate) mask: u64,
    /// The pool's Maglev table: where it begins and how long it is.
    pub(super) table_start: u32,
    pub(super) table_size: u32,
    /// The pool's first backend.
    pub(crate) first_backend: u32,
    /// The time that its flows stay pinned without a packet.
    pub(crate) idle_timeout: Ticks,
    /// The place of its counters.
    pub(super) slot: u32,
    pub(super) ha_ports: bool,
    /// True if the table has a slot for each eight destination ports, in the place of hashes.
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

    /// The number of slots of its pool's table, if a hash of the whole tuple chooses one of them, as nearly
    /// all rules have it.
    #[inline]
    pub(crate) fn slots_by_five_tuple(&self) -> Option<u32> {
        (self.mask == u64::MAX && !self.by_port).then_some(self.table_size)
    }

    /// The first slot of its pool's table among all tables.
    #[inline]
    pub(crate) fn first_slot(&self) -> usize {
        self.table_start as usize
    }

    /// Returns true if the rule takes packets of all ports, and chooses backends without them.
    pub(crate) fn ignores_ports(&self) -> bool {
        self.ha_ports && self.mask as u32 == 0
    }

    /// The place of its counters: the same in every generation while a rule of its name is there.
    pub fn slot(&self) -> usize {
        self.slot as usize
    }
}

/// A pool's backends as rules choose from them: by their own state and weight alone, or by what a
/// probe says of them too.
#[derive(Clone, Copy, Debug)]
pub(super) struct CompiledPool {
    pub(super) identity: u64,
    /// Everything that its table depends on.
    pub(super) digest: u64,
    pub(super) table_start: u32,
    pub(super) table_size: u32,
    pub(super) first_backend: u32,
    pub(super) backends: u32,
    /// Index of their first share.
    pub(super) shares: u32,
    /// Index of the past of its table, or [`NONE`].
    pub(super) past: u32,
}

/// A backend's share of the new flows of rules that go by one probe, or by none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// The share relative to the others; zero: no share.
    pub(crate) weight: u32,
    pub(crate) is_unhealthy: bool,
}

impl Share {
    pub(super) const EMPTY: Self = Self {
        weight: 0,
        is_unhealthy: false,
    };
}

/// A backend as packets meet it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct CompiledBackend {
    pub(crate) template: Template,
    /// The longest packet that can be encapsulated for it.
    pub(crate) inner_mtu: u32,
    /// The inner MTU where its template [is common](Template::is_common), and zero where not.
    pub(crate) common_mtu: u32,
    pub(super) id: u32,
    /// The place of its counters.
    pub(super) counters: u32,
    pub(super) pool: u32,
    pub(super) member: u32,
    pub(super) eligible: bool,
    /// True if its own state makes it unhealthy.
    pub(super) unhealthy: bool,
    /// True if its own state or any probe speaks against it: while false, rules need not look
    /// further.
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

    /// Id of the backend.
    #[inline]
    pub fn id(&self) -> BackendId {
        BackendId::from_value(self.id)
    }

    /// The place of its counters: [`BackendId::slot`].
    #[inline]
    pub(crate) fn counters(&self) -> usize {
        self.counters as usize
    }

    /// Index of the backend's pool in [`Spec::pools`](crate::spec::Spec::pools).
    pub fn pool(&self) -> usize {
        self.pool as usize
    }

    /// Index of the backend in its pool.
    pub fn member(&self) -> usize {
        self.member as usize
    }

    /// Returns true if new flows may go to the backend by its own state and weight, before any
    /// probe is considered: see [`Snapshot::serves`](super::Snapshot::serves) for a rule's probe.
    #[inline]
    pub fn is_eligible(&self) -> bool {
        self.eligible
    }

    /// Returns true if its own state or any probe speaks against the backend.
    #[inline]
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect
    }
}

/// A slot of a balancing rule's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Index of its present owner among all backends; `None` if the slot is empty.
    pub(crate) owner: Option<u32>,
    pub(super) first_backend: u32,
    pub(crate) past: Past,
}

impl Slot {
    /// The present owner, then the former ones, the newest first: places among all backends.
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
        table_start: 0,
        table_size: 0,
        first_backend: 0,
        backends: 0,
        shares: 0,
        past: NONE,
    };

    /// Returns true if another pool is this one in a later generation, with a table of as many
    /// slots.
    pub(super) fn is_continued_by(&self, other: &Self) -> bool {
        self.identity == other.identity && self.table_size == other.table_size
    }

    /// The slots of its past; of no meaning without one.
    pub(super) fn past(&self) -> core::ops::Range<usize> {
        let start = self.past as usize;
        start..start.saturating_add(self.table_size as usize)
    }

    pub(super) fn table(&self) -> core::ops::Range<usize> {
        let start = self.table_start as usize;
        start..start + self.table_size as usize
    }
}
