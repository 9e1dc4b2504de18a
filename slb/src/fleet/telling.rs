//! The status, health and metrics of a controller.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use slb_fleet::fetch::FetchError;
use slb_fleet::leader::{FleetView, Leader, NodeView, Reported};
use slb_fleet::rollout::{Side, Stage};
use slb_fleet::zones::ZoneView;

use super::show::document;
use crate::live::{Answer, Tell, of_process};
use crate::report::metrics::{Family, Sample, one};
use crate::status::CONTROLLER;

/// The maximum age of the view of the fleet.
const LOOK: Duration = Duration::from_millis(250);
/// The maximum duration of a turn: each request to the store may wait for each member.
const STILL: Duration = Duration::from_secs(60);

/// The state of a controller, for status and metrics.
pub(super) struct Telling {
    name: String,
    begin: Instant,
    started: SystemTime,
    state: Mutex<State>,
}

struct State {
    /// Name of the controller that leads.
    leader: Option<String>,
    /// The time at which this controller began to lead, if it leads.
    leads: Option<Instant>,
    /// The fleet and the time of the view, if this controller leads.
    fleet: Option<(FleetView, Instant)>,
    store: Reach,
    /// The fault of the last turn.
    fault: Option<String>,
    /// The time at which the last turn ended.
    turned: Instant,
}

/// The reachability of the store.
enum Reach {
    /// The store has been answering since then.
    Answers(Instant),
    /// The store has not answered since then.
    Away(Instant),
}

impl Telling {
    pub(super) fn new(name: &str, begin: Instant) -> Self {
        Self {
            name: name.to_owned(),
            begin,
            started: SystemTime::now(),
            state: Mutex::new(State {
                leader: None,
                leads: None,
                fleet: None,
                store: Reach::Away(begin),
                fault: Some("the store has not answered yet".to_owned()),
                turned: begin,
            }),
        }
    }

    /// Records a turn. Returns the duration of an outage that ended with this turn.
    pub(super) fn note(&self, leader: &Leader, error: Option<&FetchError>) -> Option<Duration> {
        let mut state = self.state();
        let now = Instant::now();
        let is_first = state.turned == self.begin;
        state.turned = now;
        state.leader = leader.leader().map(str::to_owned);
        state.leads = match (leader.leads(), state.leads) {
            (true, since) => Some(since.unwrap_or(now)),
            (false, _) => None,
        };
        let looked = state.fleet.as_ref().map(|(_, looked)| *looked);
        if !leader.leads() {
            state.fleet = None;
        } else if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            state.fleet = leader.view().map(|view| (view, now));
        }
        let was_away = match state.store {
            Reach::Away(since) => Some(since),
            Reach::Answers(_) => None,
        };
        state.fault = error.map(ToString::to_string);
        match (error, was_away) {
            (Some(FetchError::Store(_)), None) => state.store = Reach::Away(now),
            (Some(FetchError::Store(_)), Some(_)) => {}
            (_, Some(since)) => {
                state.store = Reach::Answers(now);
                return Some(since.elapsed()).filter(|_| !is_first);
            }
            (_, None) => {}
        }
        None
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns an error if the controller makes no progress.
    fn expect_turning(&self) -> Result<(), String> {
        let still = self.turned.elapsed();
        match still >= STILL {
            true => Err(format!(
                "the controller has been stalled for {:.0} s",
                still.as_secs_f64()
            )),
            false => Ok(()),
        }
    }

    /// Returns the time since the store stopped answering; `None` while it answers.
    fn away(&self) -> Option<Duration> {
        match self.store {
            Reach::Away(since) => Some(since.elapsed()),
            Reach::Answers(_) => None,
        }
    }

    /// Returns the reasons why the controller is not ready; empty if it is ready.
    fn trouble(&self) -> Vec<String> {
        let still = self.expect_turning().err();
        let fault = self.fault.as_ref().map(|fault| match self.away() {
            Some(away) => format!("no store for {:.0} s: {fault}", away.as_secs_f64()),
            None => fault.clone(),
        });
        still.into_iter().chain(fault).collect()
    }
}

impl Tell for Telling {
    fn status(&self) -> Result<Value, String> {
        let state = self.state();
        let seconds = |time: Duration| time.as_secs_f64();
        let reached = match state.store {
            Reach::Answers(since) => Some(seconds(since.elapsed())),
            Reach::Away(_) => None,
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let leader = state.leader.as_deref();
        let fleet = state.fleet.as_ref();
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "role": CONTROLLER,
            "name": self.name,
            "uptime": seconds(self.begin.elapsed()),
            "time": now.unwrap_or_default().as_secs_f64(),
            "leads": state.leads.is_some(),
            "leads_for": state.leads.map(|since| seconds(since.elapsed())),
            "leader": leader,
            "store": {
                "reached": reached,
                "away": state.away().map(seconds),
                "fault": state.fault,
            },
            "trouble": state.trouble(),
            "fleet": fleet.map(|(view, _)| document(view, leader)),
        }))
    }

    fn metrics(&self) -> Result<Vec<Family>, String> {
        let state = self.state();
        let away = state.away().unwrap_or_default().as_secs_f64();
        let mut families = vec![
            Family::gauge(
                "slb_controller_leads",
                "Whether the controller leads its fleet",
                one(u64::from(state.leads.is_some())),
            ),
            Family::gauge(
                "slb_fleet_store_away_seconds",
                "How long the fleet's store has not answered",
                vec![(Vec::new(), away)],
            ),
            Family::gauge(
                "slb_uptime_seconds",
                "How long it has been running",
                one(self.begin.elapsed().as_secs()),
            ),
        ];
        families.extend(of_process(CONTROLLER, self.started));
        if let Some((view, _)) = &state.fleet {
            families.extend(of_fleet(view));
        }
        Ok(families)
    }

    fn health(&self) -> Result<(), String> {
        self.state().expect_turning()
    }

    fn readiness(&self) -> Result<(), String> {
        let trouble = self.state().trouble();
        match trouble.is_empty() {
            true => Ok(()),
            false => Err(format!("not ready: {}", trouble.join(", "))),
        }
    }

    fn answer(&self, _: &Value, out: &mut Answer<'_>) -> io::Result<()> {
        out.line(&json!({
            "error": "a controller moves no packets: expected a line of JSON with \"ask\": \"status\""
        }))
    }
}

/// The stages of a rollout, as labels.
const STAGES: [&str; 7] = [
    "live",
    "hosts",
    "muxes",
    "draining",
    "leaving_muxes",
    "leaving_hosts",
    "stopped",
];

fn label(stage: &Stage) -> &'static str {
    let place = match stage {
        Stage::Live => 0,
        Stage::Hosts => 1,
        Stage::Muxes => 2,
        Stage::Draining => 3,
        Stage::LeavingMuxes => 4,
        Stage::LeavingHosts => 5,
        Stage::Stopped { .. } => 6,
    };
    STAGES[place]
}

/// The states of a node, as labels.
const STATES: [&str; 5] = ["live", "behind", "refusing", "unreadable", "gone"];

/// Returns the state of a node, compared with the release for its role.
fn state_of(node: &NodeView, view: &FleetView) -> &'static str {
    let report = match &node.report {
        Reported::Is(report) => report,
        Reported::Unreadable(_) => return "unreadable",
        Reported::Gone => return "gone",
    };
    let wanted = view.rollout.of(node.side);
    let refused = report.refused.as_ref().zip(wanted);
    match wanted.is_none_or(|release| report.serves(release)) {
        true => "live",
        false if refused.is_some_and(|(refused, release)| refused.is_of(release)) => "refusing",
        false => "behind",
    }
}

/// The fleet, as the controller that leads it sees it.
fn of_fleet(view: &FleetView) -> [Family; 8] {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for side in [Side::Host, Side::Mux] {
        counts.extend(STATES.map(|state| ((side.name(), state), 0)));
    }
    let mut by_zone: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
    let mut generations: Vec<Sample> = Vec::new();
    for node in &view.nodes {
        let role = node.side.name();
        let state = state_of(node, view);
        *counts.entry((role, state)).or_default() += 1;
        if let Some(zone) = &node.zone {
            *by_zone.entry((zone, role, state)).or_default() += 1;
        }
        if let Reported::Is(report) = &node.report {
            let labels = vec![("role", role.to_owned()), ("node", node.name.clone())];
            generations.push((labels, report.live as f64));
        }
    }
    let now = label(&view.rollout.stage);
    let stages = STAGES.map(|stage| {
        let is_now = f64::from(u8::from(stage == now));
        (vec![("stage", stage.to_owned())], is_now)
    });
    let nodes = counts.into_iter().map(|((role, state), count)| {
        let labels = vec![("role", role.to_owned()), ("state", state.to_owned())];
        (labels, count as f64)
    });
    let failing = view.failing.iter().map(|(pool, count)| {
        let labels = vec![("pool", pool.clone())];
        (labels, *count as f64)
    });
    let by_zone = by_zone.into_iter().map(|((zone, role, state), count)| {
        let labels = [("zone", zone), ("role", role), ("state", state)];
        let labels = labels.map(|(name, value)| (name, value.to_owned()));
        (labels.to_vec(), count as f64)
    });
    let of_zones = |value: fn(&ZoneView) -> usize| -> Vec<Sample> {
        let samples = view.zones.iter().map(|own| {
            let zone = own.zone.clone().unwrap_or_default();
            let labels = vec![("pool", own.pool.clone()), ("zone", zone)];
            (labels, value(own) as f64)
        });
        samples.collect()
    };
    [
        Family::gauge(
            "slb_controller_generation",
            "The last generation that the controller gave out",
            one(view.rollout.generation),
        ),
        Family::gauge(
            "slb_controller_stage",
            "How far the rollout is: 1 for its stage",
            stages.to_vec(),
        ),
        Family::gauge(
            "slb_controller_nodes",
            "Nodes of the fleet, by how they stand to their generation",
            nodes.collect(),
        ),
        Family::gauge(
            "slb_controller_node_generation",
            "The generation that a node serves by, as it reports",
            generations,
        ),
        Family::gauge(
            "slb_controller_failing_backends",
            "Backends that get no new flows, since probes find that they fail",
            failing.collect(),
        ),
        Family::gauge(
            "slb_controller_zone_nodes",
            "Nodes of a zone, by how they stand to their generation",
            by_zone.collect(),
        ),
        Family::gauge(
            "slb_controller_zone_backends",
            "Backends of a pool in a zone",
            of_zones(|own| own.backends),
        ),
        Family::gauge(
            "slb_controller_zone_backends_up",
            "Backends of a pool in a zone that get new flows",
            of_zones(|own| own.serving),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use slb_fleet::object::{Agents, Digest, Report};
    use slb_fleet::rollout::{Refusal, Release, Rollout};

    use super::*;

    fn node(side: Side, name: &str, live: u64, refused: Option<u64>) -> NodeView {
        let refused = refused.map(|generation| Refusal {
            generation,
            index: None,
            why: "two vms have one MAC address".to_owned(),
        });
        NodeView {
            side,
            name: name.to_owned(),
            zone: Some("2".to_owned()),
            report: Reported::Is(Report {
                live,
                refused,
                ..Report::default()
            }),
        }
    }

    #[test]
    fn nodes_are_counted_by_how_they_stand_to_the_release_of_their_role() {
        let release = |generation| {
            let index = Digest::of(b"");
            Some(Release { generation, index })
        };
        let stage = Stage::Stopped {
            node: "host h2".to_owned(),
            why: "it is unwanted".to_owned(),
        };
        let view = FleetView {
            rollout: Rollout {
                generation: 7,
                hosts: release(7),
                muxes: release(6),
                stage,
                ..Rollout::default()
            },
            nodes: vec![
                node(Side::Host, "h1", 7, None),
                node(Side::Host, "h2", 6, Some(7)),
                // A refusal of an earlier generation is past.
                node(Side::Host, "h3", 6, Some(5)),
                NodeView::gone(
                    "h4",
                    &Agents {
                        zones: [("h4".to_owned(), "3".to_owned())].into(),
                        ..Agents::default()
                    },
                ),
                NodeView::read(Side::Mux, "/slb/1/default/node/mux/m1", b"{"),
                node(Side::Mux, "m2", 6, None),
            ],
            failing: [("web".to_owned(), 2)].into(),
            zones: vec![ZoneView {
                pool: "web".to_owned(),
                zone: Some("3".to_owned()),
                backends: 4,
                serving: 1,
            }],
            ..FleetView::default()
        };
        let families = of_fleet(&view);
        let of = |name: &str, labels: &[&str]| {
            let family = families.iter().find(|family| family.name == name);
            let samples = &family.expect("it is there").samples;
            let is_it = |own: &&Sample| {
                own.0
                    .iter()
                    .map(|(_, value)| &**value)
                    .eq(labels.iter().copied())
            };
            let found: Vec<f64> = samples.iter().filter(is_it).map(|own| own.1).collect();
            assert_eq!(found.len(), 1, "{name} {labels:?}");
            found[0]
        };
        for (role, state, count) in [
            ("host", "live", 1.0),
            ("host", "refusing", 1.0),
            ("host", "behind", 1.0),
            ("host", "gone", 1.0),
            ("host", "unreadable", 0.0),
            ("mux", "live", 1.0),
            ("mux", "unreadable", 1.0),
            ("mux", "behind", 0.0),
        ] {
            assert_eq!(
                of("slb_controller_nodes", &[role, state]),
                count,
                "{role} {state}"
            );
        }
        assert_eq!(of("slb_controller_stage", &["stopped"]), 1.0);
        assert_eq!(of("slb_controller_stage", &["live"]), 0.0);
        assert_eq!(of("slb_controller_node_generation", &["mux", "m2"]), 6.0);
        assert_eq!(of("slb_controller_generation", &[]), 7.0);
        assert_eq!(of("slb_controller_failing_backends", &["web"]), 2.0);
        assert_eq!(
            of("slb_controller_zone_nodes", &["2", "host", "refusing"]),
            1.0
        );
        assert_eq!(of("slb_controller_zone_nodes", &["3", "host", "gone"]), 1.0);
        assert_eq!(of("slb_controller_zone_backends", &["web", "3"]), 4.0);
        assert_eq!(of("slb_controller_zone_backends_up", &["web", "3"]), 1.0);
    }

    #[test]
    fn a_controller_that_stands_still_is_not_well() {
        let telling = Telling::new("c1", Instant::now());
        assert_eq!(telling.health(), Ok(()));
        let why = telling.readiness().expect_err("it has asked no store yet");
        assert!(why.contains("the store has not answered yet"), "{why}");
        let past = Instant::now().checked_sub(STILL + Duration::from_secs(1));
        telling.state().turned = past.expect("the machine runs for longer");
        let why = telling.health().expect_err("it stands still");
        assert_eq!(why, "the controller has been stalled for 61 s");
    }
}
