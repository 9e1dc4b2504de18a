//! Lookup of rules and backends by name.
//!
//! A snapshot keeps hashes instead of names, since names have no maximum length. A lookup costs a
//! hash, and for a backend a scan of all backends.

use super::registry::{BackendId, identity};
use super::{ECHO, RuleMatch, Snapshot, rule_key};
use crate::packet::Tuple;
use crate::wire::protocol;

/// A rule of a snapshot: its index in [`Spec::rules`](crate::spec::Spec::rules), or its name.
///
/// Rules of inbound NAT and SNAT ports have indexes after those of
/// [`Spec::rules`](crate::spec::Spec::rules), and no names of their own, since one inbound NAT pool
/// is compiled into many rules.
pub trait RuleKey {
    /// Returns the index of the rule in the snapshot; `None` if the snapshot has no such rule.
    fn index_in(self, snapshot: &Snapshot<'_>) -> Option<u32>;
}

/// A backend of a snapshot: its id, its pool's name and its own, or both as `"pool/backend"`.
pub trait BackendKey {
    /// Returns the id of the backend in the snapshot; `None` if the snapshot has no such backend.
    /// An id is returned unchanged, even if its backend is gone.
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

/// A pool and its backend, separated by a slash. If names contain slashes, the first split that
/// names a backend is used.
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
    /// Returns the index of the rule of this name in [`Spec::rules`](crate::spec::Spec::rules);
    /// `None` if there is none.
    pub fn rule_named(&self, name: &str) -> Option<u32> {
        let slot = self.rule_by_identity(identity([name.as_bytes(), &[], &[]]))?;
        self.rule_ids.owner(slot)
    }

    /// Returns the index of the rule that packets with this tuple match; `None` if there is none.
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

    /// Returns the id of a backend by its pool's name and its own; `None` if there is none. If
    /// several backends have the name, the first one is found.
    ///
    /// # Cost
    /// Proportional to the backends.
    pub fn backend_named(&self, pool: &str, backend: &str) -> Option<BackendId> {
        let name = backend_name(pool, backend);
        let index = self.names.iter().position(|&other| other == name)?;
        Some(self.backends.get(index)?.id())
    }
}

/// Returns the hash of a backend's name.
pub(super) fn backend_name(pool: &str, backend: &str) -> u64 {
    identity([pool.as_bytes(), backend.as_bytes(), &[]])
}
