//! Rules and backends by name.
//!
//! A snapshot keeps hashes of names, not the names: text would need memory of a size that a spec does
//! not say. A lookup costs a hash, and for a backend a scan of all backends.

use super::registry::{BackendId, identity};
use super::{ECHO, RuleMatch, Snapshot, rule_key};
use crate::packet::Tuple;
use crate::wire::protocol;

/// A rule of a snapshot: its index in [`Spec::rules`](crate::spec::Spec::rules), or its name.
///
/// Rules of inbound NAT and SNAT ports have indexes behind those of
/// [`Spec::rules`](crate::spec::Spec::rules), and no name of their own, since one inbound NAT pool is many
/// rules.
pub trait RuleKey {
    /// The index of the rule in the snapshot; `None` where the snapshot has no such rule.
    fn index_in(self, snapshot: &Snapshot<'_>) -> Option<u32>;
}

/// A backend of a snapshot: its id, its pool's name and its own, or both as `"pool/backend"`.
pub trait BackendKey {
    /// The id of the backend in the snapshot; `None` where the snapshot has no such backend. An id is
    /// returned as it is, also that of a backend that is gone.
    fn id_in(self, snapshot: &Snapshot<'_>) -> Option<BackendId>;
}

impl RuleKey for usize {
    fn index_in(self, _: &Snapshot<'_>) -> Option<u32> {
        self.try_into().ok()
    }
}

impl RuleKey for &str {
    fn index_in(self, snapshot: &Snapshot<'_>) -> Option<u32> {
        snapshot.rule_named(self)
    }
}

impl BackendKey for BackendId {
    fn id_in(self, _: &Snapshot<'_>) -> Option<BackendId> {
        Some(self)
    }
}

impl BackendKey for (&str, &str) {
    fn id_in(self, snapshot: &Snapshot<'_>) -> Option<BackendId> {
        snapshot.backend_named(self.0, self.1)
    }
}

/// A pool and its backend with a slash between them. Where names have slashes themselves, the first
/// split that is a backend counts.
impl BackendKey for &str {
    fn id_in(self, snapshot: &Snapshot<'_>) -> Option<BackendId> {
        let mut splits = self.match_indices('/');
        splits.find_map(|(at, _)| {
            let (pool, backend) = (self.get(..at)?, self.get(at + 1..)?);
            snapshot.backend_named(pool, backend)
        })
    }
}

impl Snapshot<'_> {
    /// The index of the rule of this name in [`Spec::rules`](crate::spec::Spec::rules); `None` where
    /// there is none.
    pub fn rule_named(&self, name: &str) -> Option<u32> {
        let slot = self.rule_by_identity(identity([name.as_bytes(), &[], &[]]))?;
        self.rule_ids.owner(slot)
    }

    /// The index of the rule that takes packets of this tuple; `None` where there is none.
    pub(crate) fn rule_of(&self, tuple: &Tuple) -> Option<u32> {
        let vip = self.vip_of(tuple.destination)?;
        let raw_port = u16::from_le_bytes(tuple.destination_port.to_be_bytes());
        let found = match tuple.protocol {
            protocol::TCP | protocol::UDP => self.classify_ports(vip, tuple.protocol, raw_port),
            number => match self.rule_keys.get(rule_key(vip, number, ECHO)) {
                Some(rule) => RuleMatch::Rule(rule),
                None => self.classify_protocol(vip, number),
            },
        };
        match found {
            RuleMatch::Rule(rule) => Some(rule),
            RuleMatch::NoRule | RuleMatch::NotVip => None,
        }
    }

    /// The id of the backend of this name in the pool of that name; `None` where there is none. Of
    /// several backends with one name, the first one is found.
    ///
    /// # Cost
    /// In proportion to the backends.
    pub fn backend_named(&self, pool: &str, backend: &str) -> Option<BackendId> {
        let name = backend_name(pool, backend);
        let index = self.names.iter().position(|&other| other == name)?;
        Some(self.backends.get(index)?.id())
    }
}

/// The hash of a backend's name.
pub(super) fn backend_name(pool: &str, backend: &str) -> u64 {
    identity([pool.as_bytes(), backend.as_bytes(), &[]])
}
