//! The status as a JSON document.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};
use slb_control::probe::{BackendName, LateProbes};
use slb_control::{Config, Role};
use slb_core::state::Refusal;
use slb_io_pcap::CaptureStats;

use super::Shared;
use crate::live::follow::standing_json;
use crate::live::next_hops::destination;
use crate::live::state::StateStatus;
use crate::live::worker::Counted;
use crate::report::Report;

impl Shared {
    /// Returns the document; `None` if a worker does not answer.
    pub(in crate::live) fn document(&self) -> Option<Value> {
        let (counted, mut state) = self.count_in_place()?;
        let one = |(counted, (_, names, cpu)): (&Counted, &(_, Vec<String>, Option<usize>))| json!({ "queues": names, "cpu": cpu, "io": counted.io_json() });
        let workers: Vec<Value> = counted.iter().zip(&self.workers).map(one).collect();
        let total = counted.into_iter().reduce(Counted::and)?;
        let (io, generation) = (total.io_json(), total.tally.generation());
        let tables = state.tables();
        // The control thread needs the state: it does not wait while a long document is written.
        let config = Arc::clone(&state.config);
        let (hosts, sick) = (state.unreachable.clone(), state.sick.clone());
        let (trouble, kept, fleet) = (state.trouble(), state.kept.clone(), state.fleet.clone());
        let late = state.late.clone();
        drop(state);
        let config = &*config;
        let none = CaptureStats::default();
        let report = Report::new(config, total.tally, &none, self.begin.elapsed());
        let mut document = report.json();
        mark(&mut document, &unreachable(config, &hosts), &sick);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let more = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "role": config.node.role.name(),
            "zone": config.node.zone,
            "frontends": frontends(config),
            "generation": generation,
            "uptime": self.begin.elapsed().as_secs_f64(),
            "time": now.unwrap_or_default().as_secs_f64(),
            "io": io,
            "trouble": trouble,
            "late_probes": late.as_ref().map(late_json),
            "workers": workers,
            "state": kept.as_ref().map(kept_json),
            "fleet": fleet.as_ref().map(|standing| standing_json(standing, tables.as_deref())),
        });
        if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
            document.extend(more);
        }
        Some(document)
    }
}

/// Returns the backends on these hosts, which no packet can reach, by pool and name.
fn unreachable<'c>(config: &'c Config, hosts: &BTreeSet<IpAddr>) -> BTreeSet<(&'c str, &'c str)> {
    let role = config.node.role;
    let pools = config.pools.iter();
    let backends = pools.flat_map(|pool| {
        let backends = pool.backends.iter();
        backends.map(move |backend| (&*pool.name, backend))
    });
    let lost = backends.filter(|(_, backend)| hosts.contains(&destination(role, backend)));
    lost.map(|(pool, backend)| (pool, &*backend.name)).collect()
}

/// Returns the frontends as JSON, each with its zones and its availability.
fn frontends(config: &Config) -> Vec<Value> {
    let is_mux = config.node.role == Role::Mux;
    let all = config.frontends.iter().enumerate();
    let all = all.map(|(place, frontend)| {
        json!({
            "frontend": frontend.name,
            "address": frontend.address,
            "zones": frontend.zones,
            "zonal": frontend.zone().is_some(),
            "of_this_mux": is_mux.then(|| config.announces(frontend)),
            "available": config.is_available(place),
        })
    });
    all.collect()
}

/// Returns the state taken over from an earlier process, and the age of the last checkpoint, as
/// JSON.
fn kept_json(kept: &StateStatus) -> Value {
    let refused = Refusal::ALL
        .iter()
        .map(|&why| (why.name().to_owned(), kept.imported.refused(why).into()));
    let refused: serde_json::Map<String, Value> = refused.collect();
    let checkpoint = kept.checkpoint.map(|(begin, took, bytes)| {
        json!({
            "age": begin.elapsed().as_secs_f64(),
            "seconds": took.as_secs_f64(),
            "bytes": bytes,
        })
    });
    json!({
        "imported": kept.imported.taken,
        "age": kept.origin.map(|(age, _)| age.as_secs_f64()),
        "is_checkpoint": kept.origin.map(|(_, is_checkpoint)| is_checkpoint),
        "refused": refused,
        "checkpoint": checkpoint,
        "trouble": kept.trouble,
    })
}

/// Returns the late probes as JSON.
fn late_json((late, why): &(LateProbes, String)) -> Value {
    json!({
        "targets": late.late,
        "of": late.targets,
        "seconds": late.longest.as_secs_f64(),
        "why": why,
    })
}

/// Marks backends that no packet can reach in a document, and the reasons why others are unhealthy.
fn mark(
    document: &mut Value,
    unreachable: &BTreeSet<(&str, &str)>,
    sick: &BTreeMap<BackendName, String>,
) {
    let backends = document.get_mut("backends").and_then(Value::as_array_mut);
    for backend in backends.into_iter().flatten() {
        let name = |key: &str| backend.get(key).and_then(Value::as_str).unwrap_or_default();
        let (pool, own) = (name("pool").to_owned(), name("backend").to_owned());
        if unreachable.contains(&(&*pool, &*own)) {
            backend["state"] = "unreachable".into();
        } else if let Some(why) = sick.get(&(pool, own)) {
            backend["why"] = why.as_str().into();
        }
    }
}

impl Counted {
    fn io_json(&self) -> Value {
        let counters = self.io.iter();
        counters
            .map(|&(name, count)| (name.to_owned(), Value::from(count)))
            .collect()
    }
}
