//! `slb fleet status`: the rollout, and the report of each node.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Value, json};
use slb_fleet::leader::{FleetView, NodeView, Reported, failing};
use slb_fleet::object::{Agents, Digest, Keys, LeaderName, Object, Table, Wanted};
use slb_fleet::rollout::{Side, Stage};
use slb_fleet::store::Store;
use slb_fleet::zones::{ZoneView, in_store};

use super::wanted::{plain, rollout};
use crate::Failure;
use crate::cli::{FleetStatusOptions, Format};
use crate::status::{number, text};

pub(crate) fn run(options: &FleetStatusOptions) -> Result<(), Failure> {
    let store = super::open(&options.store)?;
    let keys = Keys::new(&options.store.access.cluster);
    let leader: Option<LeaderName> = read(&*store, &keys.key("state/leader"))?;
    let view = view(&*store, &keys)?;
    let document = document(&view, leader.as_ref().map(|leader| leader.name.as_str()));
    match options.format {
        Format::Json => say_line!("{document:#}"),
        Format::Text => say!("{}", table(&document)),
    }
}

/// Returns the state of the fleet in the store.
fn view(store: &dyn Store, keys: &Keys) -> Result<FleetView, Failure> {
    let list = |prefix: &str| {
        let listing = store.list(&keys.key(prefix)).map_err(Failure::failed)?;
        Ok::<_, Failure>(listing.entries)
    };
    let mut nodes = Vec::new();
    for side in [Side::Host, Side::Mux] {
        let entries = list(&format!("node/{}/", side.name()))?;
        let own = entries.iter();
        nodes.extend(own.map(|entry| NodeView::read(side, &entry.key, &entry.value)));
    }
    let agents: Agents = read(store, &keys.key("state/agents"))?.unwrap_or_default();
    for name in agents.agents.keys() {
        let is_own = |node: &NodeView| node.side == Side::Host && node.name == *name;
        if !nodes.iter().any(is_own) {
            nodes.push(NodeView::gone(name, &agents));
        }
    }
    let tables = list("state/table/")?;
    let tables = tables.iter();
    let tables: Vec<Table> = tables
        .filter_map(|entry| Table::read(&entry.key, &entry.value).ok())
        .collect();
    let wanted: Option<Wanted> = read(store, &keys.wanted())?;
    let rollout = rollout(store, &keys.key("state/rollout"))?;
    // Where the spec cannot be used, the rollout says why.
    let zones = in_store(store, keys, &rollout, &tables).unwrap_or_default();
    Ok(FleetView {
        rollout,
        wanted: wanted.map(|wanted| wanted.index),
        nodes,
        failing: failing(&tables),
        zones,
    })
}

pub(super) fn read<T: Object>(store: &dyn Store, key: &str) -> Result<Option<T>, Failure> {
    let entry = store.get(key).map_err(Failure::failed)?;
    let read = entry.map(|entry| T::read(key, &entry.value));
    read.transpose().map_err(Failure::failed)
}

/// Returns a fleet as JSON; `leader` is the leading controller.
pub(super) fn document(view: &FleetView, leader: Option<&str>) -> Value {
    let stopped = match &view.rollout.stage {
        Stage::Stopped { node, why } => json!({ "node": node, "why": why }),
        _ => Value::Null,
    };
    let nodes = view.nodes.iter().map(|node| {
        let (role, name, zone) = (node.side.name(), &node.name, &node.zone);
        let report = match &node.report {
            Reported::Gone => {
                return json!({ "role": role, "name": name, "zone": zone, "gone": true });
            }
            Reported::Is(report) => report,
            Reported::Unreadable(fault) => {
                return json!({ "role": role, "name": name, "unreadable": fault });
            }
        };
        json!({
            "role": role,
            "name": name,
            "zone": zone,
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
    let zones = view.zones.iter().map(|own| {
        let ZoneView {
            pool,
            zone,
            backends,
            serving,
        } = own;
        json!({ "pool": pool, "zone": zone, "backends": backends, "serving": serving })
    });
    let rollout = &view.rollout;
    json!({
        "controller": leader,
        "generation": rollout.generation,
        "stage": rollout.stage.name(),
        "stopped": stopped,
        "wanted": view.wanted.as_ref().map(Digest::as_str),
        "rolled_out": rollout.target.as_ref().map(Digest::as_str),
        "failing": view.failing,
        "zones": zones.collect::<Vec<_>>(),
        "nodes": nodes.collect::<Vec<_>>(),
    })
}

/// Returns the document of a fleet as text.
pub(crate) fn table(document: &Value) -> String {
    let own = |path: &str| plain(text(document, path));
    let leader = document["controller"]
        .as_str()
        .map_or_else(|| "none".to_owned(), plain);
    let mut out = format!(
        "controller: {leader}\ngeneration: {}, {}\n",
        number(document, "/generation"),
        own("/stage"),
    );
    if document["stopped"].is_object() {
        let _ = writeln!(
            out,
            "refused by {}: {}",
            own("/stopped/node"),
            own("/stopped/why")
        );
    }
    if document["wanted"] != document["rolled_out"] {
        out += "another change waits\n";
    }
    let failing = document["failing"].as_object().into_iter().flatten();
    let failing = failing.filter(|(_, count)| count.as_u64() != Some(0));
    let failing: Vec<String> = failing
        .map(|(pool, count)| format!("{} {count}", plain(pool)))
        .collect();
    if !failing.is_empty() {
        let _ = writeln!(out, "backends that fail, by pool: {}", failing.join(", "));
    }
    let _ = writeln!(
        out,
        "{:<5} {:<20} {:>8} {:>8} {:>8} {:<10} refused",
        "role", "name", "holds", "live", "left", "version"
    );
    for node in document["nodes"].as_array().into_iter().flatten() {
        let (role, name) = (text(node, "/role"), plain(text(node, "/name")));
        if node["gone"] == true {
            let _ = writeln!(
                out,
                "{role:<5} {name:<20} is away: its vms get no new flows (slb fleet forget {name})"
            );
            continue;
        }
        if let Some(fault) = node["unreadable"].as_str() {
            let fault = plain(fault);
            let _ = writeln!(
                out,
                "{role:<5} {name:<20} its report cannot be read: {fault}"
            );
            continue;
        }
        let left = node["left"].as_u64();
        let left = left.map_or_else(|| "-".to_owned(), |left| left.to_string());
        let refused = node["refused"].is_object().then(|| {
            let generation = number(node, "/refused/generation");
            format!("{generation}: {}", plain(text(node, "/refused/why")))
        });
        let line = format!(
            "{role:<5} {name:<20} {:>8} {:>8} {left:>8} {:<10} {}",
            number(node, "/held"),
            number(node, "/live"),
            plain(text(node, "/version")),
            refused.unwrap_or_default()
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out + &zones_text(document)
}

/// The zones of a fleet as text: the nodes and backends of each.
fn zones_text(document: &Value) -> String {
    let list = |name: &str| document[name].as_array().into_iter().flatten();
    let name = |of: &Value| of["zone"].as_str().map(str::to_owned);
    let names: BTreeSet<String> = list("nodes")
        .chain(list("zones"))
        .filter_map(name)
        .collect();
    let mut out = String::new();
    for zone in names {
        let is_in = |of: &&Value| of["zone"] == zone.as_str();
        let nodes = |role: &str| {
            let own = list("nodes")
                .filter(is_in)
                .filter(|own| own["role"] == role);
            let (gone, here): (Vec<&Value>, Vec<&Value>) = own.partition(|own| own["gone"] == true);
            let names = here.iter().map(|own| plain(text(own, "/name")));
            let gone = gone.iter().map(|own| plain(text(own, "/name")) + " (away)");
            let all: Vec<String> = names.chain(gone).collect();
            match all.is_empty() {
                true => "none".to_owned(),
                false => all.join(" "),
            }
        };
        let _ = write!(
            out,
            "zone {}: muxes {}; hosts {}",
            plain(&zone),
            nodes("mux"),
            nodes("host")
        );
        for pool in list("zones").filter(is_in) {
            let _ = write!(
                out,
                "; {} of {} backends of {} serve",
                number(pool, "/serving"),
                number(pool, "/backends"),
                plain(text(pool, "/pool"))
            );
        }
        out.push('\n');
    }
    out
}
