//! How a change reaches the nodes: hosts before muxes, and removals when nothing is left of what is removed.
//!
//! ```text
//!            ┌──────────────────── nothing leaves ─────────────────────┐
//!  Live ─► Hosts ─► Muxes ─┤                                           ├─► Live
//!            │        │    └─► Draining ─► LeavingMuxes ─► LeavingHosts ┘
//!            └────────┴──────────► Stopped ◄───────┴──────────────┘
//! ```
//! A state machine without input and output: the record is what the store keeps, and a controller that takes over goes
//! on with it. Only the time since the last step is its own, and begins anew.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::object::Digest;

/// How long a step waits for nodes that are there and do not answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a drain lasts at least: what is on its way when it begins may still become a connection.
pub const SETTLE: Duration = Duration::from_secs(2);

/// A generation, and the index of what it is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The generation: later ones have greater numbers.
    pub generation: u64,
    /// The index.
    pub index: Digest,
}

/// How far a change has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// All nodes have the target, or will have it when they are back.
    #[default]
    Live,
    /// Hosts get the change.
    Hosts,
    /// Muxes get the change.
    Muxes,
    /// The backends that leave get no new flows, and their connections are waited for.
    Draining,
    /// Muxes forget what leaves.
    LeavingMuxes,
    /// Hosts forget what leaves.
    LeavingHosts,
    /// A node refused the change.
    Stopped {
        /// Role and name of the node.
        node: String,
        /// The reason that it gave.
        why: String,
    },
}

impl Stage {
    /// The stage in words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Hosts => "hosts get the change",
            Self::Muxes => "muxes get the change",
            Self::Draining => "draining",
            Self::LeavingMuxes => "muxes remove what was drained",
            Self::LeavingHosts => "hosts remove what was drained",
            Self::Stopped { .. } => "stopped",
        }
    }
}

/// A generation that a node did not put in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The generation.
    pub generation: u64,
    /// The fault.
    pub why: String,
}

/// Role of a node, as far as rollouts care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Hosts are first to know what comes, and last to forget what goes.
    Host,
    /// Muxes follow.
    Mux,
}

impl Side {
    /// The role's name, as in keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Mux => "mux",
        }
    }
}

/// A node that is there: its lease lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Role of the node.
    pub side: Side,
    /// Name of the node.
    pub name: String,
    /// The generation that it serves by.
    pub live: u64,
    /// The generation that it refused last.
    pub refused: Option<Refusal>,
    /// Connections on leaving backends, of the live generation; `None`: it does not know.
    pub left: Option<u64>,
}

/// The steps of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The first spec that nodes get: the target, and the leaving backends, drained.
    pub first: Digest,
    /// The spec that is wanted.
    pub target: Digest,
}

/// A rollout, as the store keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The last generation that was given out.
    pub generation: u64,
    /// The release for hosts.
    pub hosts: Option<Release>,
    /// The release for muxes.
    pub muxes: Option<Release>,
    /// The spec that was wanted when the rollout began.
    pub target: Option<Digest>,
    /// The last spec that no mux refused; backends that leave it are drained first.
    #[serde(default)]
    pub settled: Option<Digest>,
    /// How far it has come.
    pub stage: Stage,
}

impl Rollout {
    /// Returns the release for nodes of a role.
    pub fn of(&self, side: Side) -> Option<&Release> {
        match side {
            Side::Host => self.hosts.as_ref(),
            Side::Mux => self.muxes.as_ref(),
        }
    }

    /// Returns true if another change can begin, because none is between hosts and muxes.
    pub fn may_begin(&self) -> bool {
        matches!(
            self.stage,
            Stage::Live | Stage::Draining | Stage::Stopped { .. }
        )
    }
}

/// A rollout that goes on.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    record: Rollout,
    /// When the present stage began, or was taken over.
    since: Duration,
}

impl Machine {
    /// Goes on with a rollout as it was left. Times are those since any moment, and the same in all calls.
    pub fn new(record: Rollout, now: Duration) -> Self {
        Self { record, since: now }
    }

    /// The rollout.
    pub fn record(&self) -> &Rollout {
        &self.record
    }

    /// Begins to roll out a change. Returns false, and does nothing, while another one is between hosts and muxes.
    pub fn begin(&mut self, plan: Plan, now: Duration) -> bool {
        if !self.record.may_begin() {
            return false;
        }
        self.record.generation += 1;
        self.record.hosts = Some(Release {
            generation: self.record.generation,
            index: plan.first,
        });
        self.record.target = Some(plan.target);
        self.enter(Stage::Hosts, now);
        true
    }

    /// Stops at a change that cannot be begun, and says who refuses it. Returns false, and does nothing, while
    /// another one is between hosts and muxes.
    pub fn refuse(&mut self, target: Digest, node: String, why: String, now: Duration) -> bool {
        if !self.record.may_begin() {
            return false;
        }
        self.record.target = Some(target);
        self.enter(Stage::Stopped { node, why }, now);
        true
    }

    /// Takes the next step, if it is due. `drain` is how long connections are waited for at most, and `is_counted`
    /// whether every leaving backend has an agent that counts its connections.
    ///
    /// Returns true where the record is another one.
    pub fn advance(
        &mut self,
        members: &[Member],
        now: Duration,
        drain: Duration,
        is_counted: bool,
    ) -> bool {
        let passed = now.saturating_sub(self.since);
        let side = match self.record.stage {
            Stage::Live | Stage::Stopped { .. } => return false,
            Stage::Hosts | Stage::LeavingHosts => Side::Host,
            Stage::Muxes | Stage::LeavingMuxes => Side::Mux,
            Stage::Draining => {
                let is_settled = passed >= SETTLE && is_counted && self.is_drained(members);
                if !is_settled && passed < drain {
                    return false;
                }
                let Some(target) = self.record.target.clone() else {
                    return false;
                };
                self.record.generation += 1;
                self.record.muxes = Some(Release {
                    generation: self.record.generation,
                    index: target,
                });
                self.enter(Stage::LeavingMuxes, now);
                return true;
            }
        };
        let wanted = self.record.of(side).map_or(0, |release| release.generation);
        let mut own = members.iter().filter(|member| member.side == side);
        let refuses = |member: &&Member| {
            let refused = member.refused.as_ref();
            member.live < wanted && refused.is_some_and(|own| own.generation == wanted)
        };
        if let Some(member) = own.clone().find(refuses) {
            let why = member.refused.as_ref().map(|own| own.why.clone());
            let stopped = Stage::Stopped {
                node: format!("{} {}", side.name(), member.name),
                why: why.unwrap_or_default(),
            };
            self.enter(stopped, now);
            return true;
        }
        if !own.all(|member| member.live >= wanted) && passed < PATIENCE {
            return false;
        }
        let next = match self.record.stage {
            Stage::Hosts => {
                self.record.muxes = self.record.hosts.clone();
                Stage::Muxes
            }
            Stage::Muxes => match &self.record.muxes {
                Some(muxes) if Some(&muxes.index) != self.record.target.as_ref() => Stage::Draining,
                _ => Stage::Live,
            },
            Stage::LeavingMuxes => {
                self.record.hosts = self.record.muxes.clone();
                Stage::LeavingHosts
            }
            _ => Stage::Live,
        };
        self.enter(next, now);
        true
    }

    /// Returns true if all present hosts report that no connections are left.
    fn is_drained(&self, members: &[Member]) -> bool {
        let wanted = self.record.generation;
        let mut hosts = members.iter().filter(|member| member.side == Side::Host);
        hosts.all(|host| host.live >= wanted && host.left == Some(0))
    }

    fn enter(&mut self, stage: Stage, now: Duration) {
        if matches!(stage, Stage::Live | Stage::Draining) {
            let muxes = self.record.muxes.as_ref();
            self.record.settled = muxes.map(|release| release.index.clone());
        }
        self.record.stage = stage;
        self.since = now;
    }
}
