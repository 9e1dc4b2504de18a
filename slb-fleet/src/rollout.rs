//! The rollout of a change to the nodes: hosts before muxes, and removals after a drain.
//!
//! ```text
//!            ┌──────────────────── nothing leaves ─────────────────────┐
//!  Live ─► Hosts ─► Muxes ─┤                                           ├─► Live
//!            │        │    └─► Draining ─► LeavingMuxes ─► LeavingHosts ┘
//!            └────────┴──────────► Stopped ◄───────┴──────────────┘
//! ```
//! A state machine without I/O: the store keeps the record, and a controller that takes over
//! continues with it. Only the time since the last step is not stored, and starts again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::object::Digest;

/// The time that a step waits for present nodes that do not answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The minimum duration of a drain: packets on the way when it begins may still open connections.
pub const SETTLE: Duration = Duration::from_secs(2);

/// A generation, and its index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The generation: later ones have greater numbers.
    pub generation: u64,
    /// The index.
    pub index: Digest,
}

impl Release {
    /// Returns true if a node serves this release that reports a generation and its index. Programs that do not report
    /// the index are believed the number.
    ///
    /// Generations are numbered from 1 again after the store was emptied, and repeat numbers after it was restored from
    /// a backup. A number alone would then be taken for a release that the node has never seen.
    pub fn is_served(&self, generation: u64, index: Option<&Digest>) -> bool {
        match index {
            Some(index) => generation == self.generation && *index == self.index,
            None => generation >= self.generation,
        }
    }
}

/// The stage of a rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// All nodes have the target, or will get it when they are back.
    #[default]
    Live,
    /// Hosts get the change.
    Hosts,
    /// Muxes get the change.
    Muxes,
    /// Leaving backends get no new flows, and the rollout waits for the end of their connections.
    Draining,
    /// Muxes remove the leaving backends.
    LeavingMuxes,
    /// Hosts remove the leaving backends.
    LeavingHosts,
    /// A node refused the change.
    Stopped {
        /// Role and name of the node.
        node: String,
        /// The node's reason.
        why: String,
    },
}

impl Stage {
    /// Returns the name of the stage.
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

/// A generation that a node refused to install.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The generation.
    pub generation: u64,
    /// The index of the generation; `None` from programs that do not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Digest>,
    /// The fault.
    pub why: String,
}

impl Refusal {
    /// Returns true if the refused generation is this release.
    pub fn is_of(&self, release: &Release) -> bool {
        let is_index = self.index.as_ref().is_none_or(|own| *own == release.index);
        self.generation == release.generation && is_index
    }
}

/// The role of a node in rollouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Hosts get additions first, and removals last.
    Host,
    /// Muxes get additions after hosts, and removals before them.
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

/// A present node, with a valid lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Role of the node.
    pub side: Side,
    /// Name of the node.
    pub name: String,
    /// The generation that the node serves.
    pub live: u64,
    /// The index of that generation; `None` from programs that do not report it.
    pub index: Option<Digest>,
    /// The last generation that the node refused.
    pub refused: Option<Refusal>,
    /// Connections on leaving backends of the live generation; `None` if unknown.
    pub left: Option<u64>,
}

impl Member {
    /// Returns true if the node serves a release.
    pub fn serves(&self, release: &Release) -> bool {
        release.is_served(self.live, self.index.as_ref())
    }
}

/// The steps of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The first spec for the nodes: the target with the leaving backends, drained.
    pub first: Digest,
    /// The wanted spec.
    pub target: Digest,
}

/// A rollout, as stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The last generation that was rolled out.
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
    /// The stage of the rollout.
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

    /// Returns true if another change can begin, that is, if none is between hosts and muxes.
    pub fn may_begin(&self) -> bool {
        matches!(
            self.stage,
            Stage::Live | Stage::Draining | Stage::Stopped { .. }
        )
    }
}

/// The state machine of a rollout.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    record: Rollout,
    /// When the present stage began, or was taken over.
    since: Duration,
}

impl Machine {
    /// Continues a stored rollout. Times in all calls are relative to a fixed origin.
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

    /// Stops at a change that cannot begin, and records who refuses it. Returns false, and does
    /// nothing, while another one is between hosts and muxes.
    pub fn refuse(&mut self, target: Digest, node: String, why: String, now: Duration) -> bool {
        if !self.record.may_begin() {
            return false;
        }
        self.record.target = Some(target);
        self.enter(Stage::Stopped { node, why }, now);
        true
    }

    /// Takes the next step, if it is due. `drain` is the maximum time to wait for connections, and
    /// `is_counted` is true if every leaving backend has an agent that counts its connections.
    ///
    /// Returns true if the record has changed.
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
        let wanted = self.record.of(side);
        let serves = |member: &Member| wanted.is_none_or(|release| member.serves(release));
        let mut own = members.iter().filter(|member| member.side == side);
        let refuses = |member: &&Member| {
            let refused = member.refused.as_ref().zip(wanted);
            !serves(member) && refused.is_some_and(|(own, release)| own.is_of(release))
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
        if !own.all(serves) && passed < PATIENCE {
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
        let Some(wanted) = &self.record.hosts else {
            return false;
        };
        let mut hosts = members.iter().filter(|member| member.side == Side::Host);
        hosts.all(|host| host.serves(wanted) && host.left == Some(0))
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
