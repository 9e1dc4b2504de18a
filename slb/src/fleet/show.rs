//! `slb fleet status`: how far the fleet is, and what each node says.

use serde_json::{Value, json};
use slb_fleet::object::{Agents, Digest, Keys, LeaderName, Object, Report, Wanted};
use slb_fleet::rollout::{Rollout, Side, Stage};
use slb_fleet::store::Store;

use super::wanted::{plain, rollout};
use crate::Failure;
use crate::cli::{FleetStatusOptions, Format};

/// A node: role, name, and its report, or why the report cannot be read. A host agent that is gone has none.
type Reported = (Side, String, Option<Result<Report, String>>);

pub(crate) fn run(options: &FleetStatusOptions) -> Result<(), Failure> {
    let store = super::open(&options.store)?;
    let keys = Keys::new(&options.store.access.cluster);
    let rollout = rollout(&*store, &keys.key("state/rollout"))?;
    let leader: Option<LeaderName> = read(&*store, &keys.key("state/leader"))?;
    let wanted: Option<Wanted> = read(&*store, &keys.wanted())?;
    let mut nodes = Vec::new();
    for side in [Side::Host, Side::Mux] {
        let prefix = keys.key(&format!("node/{}/", side.name()));
        for entry in store.list(&prefix).map_err(Failure::failed)?.entries {
            let report = Report::read(&entry.key, &entry.value);
            let report = report.map_err(|error| error.to_string());
            let name = entry.key.strip_prefix(&prefix).unwrap_or(&entry.key);
            nodes.push((side, name.to_owned(), Some(report)));
        }
    }
    let agents: Agents = read(&*store, &keys.key("state/agents"))?.unwrap_or_default();
    for name in agents.agents.keys() {
        let is_own = |(side, own, _): &Reported| *side == Side::Host && own == name;
        if !nodes.iter().any(is_own) {
            nodes.push((Side::Host, name.clone(), None));
        }
    }
    let leader = leader.as_ref().map(|leader| leader.name.as_str());
    match options.format {
        Format::Json => say_line!("{:#}", document(&rollout, leader, wanted.as_ref(), &nodes)),
        Format::Text => say!("{}", text(&rollout, leader, wanted.as_ref(), &nodes)),
    }
}

pub(super) fn read<T: Object>(store: &dyn Store, key: &str) -> Result<Option<T>, Failure> {
    let entry = store.get(key).map_err(Failure::failed)?;
    let read = entry.map(|entry| T::read(key, &entry.value));
    read.transpose().map_err(Failure::failed)
}

fn document(
    rollout: &Rollout,
    leader: Option<&str>,
    wanted: Option<&Wanted>,
    nodes: &[Reported],
) -> Value {
    let stopped = match &rollout.stage {
        Stage::Stopped { node, why } => json!({ "node": node, "why": why }),
        _ => Value::Null,
    };
    let nodes = nodes.iter().map(|(side, name, report)| {
        let report = match report {
            None => return json!({ "role": side.name(), "name": name, "gone": true }),
            Some(Ok(report)) => report,
            Some(Err(fault)) => {
                return json!({ "role": side.name(), "name": name, "unreadable": fault });
            }
        };
        json!({
            "role": side.name(),
            "name": name,
            "addresses": report.addresses,
            "version": report.version,
            "held": report.held,
            "live": report.live,
            "refused": report.refused.as_ref().map(|refused| json!({
                "generation": refused.generation, "why": refused.why,
            })),
            "left": report.left,
        })
    });
    json!({
        "controller": leader,
        "generation": rollout.generation,
        "stage": rollout.stage.name(),
        "stopped": stopped,
        "wanted": wanted.map(|wanted| wanted.index.as_str()),
        "rolled_out": rollout.target.as_ref().map(Digest::as_str),
        "nodes": nodes.collect::<Vec<_>>(),
    })
}

fn text(
    rollout: &Rollout,
    leader: Option<&str>,
    wanted: Option<&Wanted>,
    nodes: &[Reported],
) -> String {
    let leader = leader.unwrap_or("none");
    let mut text = format!(
        "controller: {leader}\ngeneration: {}, {}\n",
        rollout.generation,
        rollout.stage.name()
    );
    if let Stage::Stopped { node, why } = &rollout.stage {
        text += &format!("refused by {}: {}\n", plain(node), plain(why));
    }
    if wanted.map(|wanted| &wanted.index) != rollout.target.as_ref() {
        text += "another change waits\n";
    }
    text += &format!(
        "{:<5} {:<20} {:>8} {:>8} {:>8} {:<10} {}\n",
        "role", "name", "holds", "live", "left", "version", "refused"
    );
    for (side, name, report) in nodes {
        let name = plain(name);
        let report = match report {
            Some(Ok(report)) => report,
            None => {
                text += &format!(
                    "{:<5} {name:<20} is away: its vms get no new flows (slb fleet forget {name})\n",
                    side.name()
                );
                continue;
            }
            Some(Err(fault)) => {
                let fault = plain(fault);
                text += &format!(
                    "{:<5} {name:<20} its report cannot be read: {fault}\n",
                    side.name()
                );
                continue;
            }
        };
        let left = report
            .left
            .map_or_else(|| "-".to_owned(), |left| left.to_string());
        let refused = report.refused.as_ref();
        let refused = refused.map(|own| format!("{}: {}", own.generation, plain(&own.why)));
        text += format!(
            "{:<5} {:<20} {:>8} {:>8} {:>8} {:<10} {}",
            side.name(),
            name,
            report.held,
            report.live,
            left,
            plain(&report.version),
            refused.unwrap_or_default()
        )
        .trim_end();
        text.push('\n');
    }
    text
}
