//! Rules on the order of snapshots: a snapshot may replace another one that it follows.

use core::fmt;

use super::Snapshot;

/// The reason why a role cannot install a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstallError {
    /// The snapshot was not built from the installed snapshot, or from one that follows it. Its ids
    /// refer to other backends: established flows would move, and counters would be mixed up.
    OtherLineage,
    /// The snapshot is a proxy's, and the role is a mux or a host agent, or the other way round.
    OtherRole,
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherLineage => {
                "the snapshot does not follow the one in place: build it with that one as `previous`"
            }
            Self::OtherRole => "the snapshot is of another role: a proxy's spec has `proxy` ports, \
                 that of a mux or host agent has none",
        })
    }
}

impl core::error::Error for InstallError {}

/// A snapshot that was not installed, and the reason. The installed snapshot stays.
pub struct Rejected<S> {
    /// The rejected snapshot.
    pub snapshot: S,
    /// The reason of the rejection.
    pub error: InstallError,
}

impl<S> fmt::Debug for Rejected<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected")
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl<S> fmt::Display for Rejected<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<S> core::error::Error for Rejected<S> {}

/// The reason why a role cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RoleError {
    /// The snapshot is a proxy's, and the role is a mux or a host agent, or the other way round.
    OtherRole,
    /// The given memory is too small.
    Memory,
}

impl fmt::Display for RoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherRole => InstallError::OtherRole.fmt(f),
            Self::Memory => f.write_str("the memory for the tables is used up"),
        }
    }
}

impl core::error::Error for RoleError {}

impl Snapshot<'_> {
    /// Returns true if the snapshot is for a [`Proxy`](crate::Proxy), that is, if its spec has
    /// [`proxy`](crate::spec::Spec::proxy) ports; false if it is for a [`Mux`](crate::Mux) or a
    /// [`Host`](crate::Host).
    pub fn is_for_proxy(&self) -> bool {
        self.nat.proxy.is_some()
    }

    /// Returns true if this snapshot can replace `old`: it was built from `old`, or from a snapshot
    /// that follows it, so every backend and rule that both have keeps its flows and counters. An
    /// earlier snapshot can also replace a later one, as long as no backend or rule was added or
    /// removed in between.
    ///
    /// # Cost
    /// Proportional to the backends and rules of `old`.
    pub fn follows(&self, old: &Snapshot<'_>) -> bool {
        self.generation != old.generation
            && self.backend_ids.follows(&old.backend_ids)
            && self.rule_ids.follows(&old.rule_ids)
            && self.nat.follows(&old.nat)
    }

    /// Returns an error if a role made for `is_proxy` cannot have the snapshot.
    pub(crate) fn check_role(&self, is_proxy: bool) -> Result<(), RoleError> {
        match self.is_for_proxy() == is_proxy {
            true => Ok(()),
            false => Err(RoleError::OtherRole),
        }
    }

    /// Returns an error if this snapshot cannot replace `old`. A snapshot can replace itself.
    pub(crate) fn check_after(&self, old: &Snapshot<'_>) -> Result<(), InstallError> {
        if self.is_for_proxy() != old.is_for_proxy() {
            return Err(InstallError::OtherRole);
        }
        let is_same = core::ptr::addr_eq(self, old);
        match is_same || self.follows(old) {
            true => Ok(()),
            false => Err(InstallError::OtherLineage),
        }
    }
}
