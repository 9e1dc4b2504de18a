//! Programs of several releases in one fleet, as during an upgrade.

use crate::common;

use std::fmt::Debug;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use common::{CLUSTER, Controller, Running, apply, spec, stage, wait_until};
use serde_json::{Value, json};
use slb_fleet::object::{
    Agents, Backends, By, Digest, Fields, Forget, Health, Index, Item, Keys, LeaderName, Object,
    Report, Table, Wanted,
};
use slb_fleet::rollout::{Refusal, Release, Rollout, Side, Stage};
use slb_fleet::store::{MemoryStore, Operation, Store};

/// An object as a later release writes it, with a field that this one does not know.
fn with_a_later_field(bytes: &[u8]) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(bytes).unwrap();
    value["later"] = json!({ "of": [1, 2] });
    serde_json::to_vec(&value).unwrap()
}

#[track_caller]
fn reads_a_later_one<T: Object + PartialEq + Debug>(object: &T) {
    let read = T::read("key", &with_a_later_field(&object.write()));
    assert_eq!(read.as_ref(), Ok(object));
}

#[test]
fn fields_of_a_later_release_are_left_alone() {
    let digest = Digest::of(b"any");
    let release = Release {
        generation: 7,
        index: digest.clone(),
    };
    reads_a_later_one(&Wanted {
        index: digest.clone(),
    });
    reads_a_later_one(&Index {
        sections: vec![Item {
            kind: "pool".to_owned(),
            name: "web".to_owned(),
            digest: digest.clone(),
            backends: vec![digest.clone()],
        }],
        leaving: vec!["web/vm1".to_owned()],
    });
    reads_a_later_one(&Fields {
        fields: json!({ "name": "web" }).as_object().unwrap().clone(),
    });
    reads_a_later_one(&Backends {
        backends: vec![json!({ "name": "vm1" })],
    });
    reads_a_later_one(&LeaderName {
        name: "one".to_owned(),
        lease: 5,
    });
    reads_a_later_one(&Agents {
        agents: [("host1".to_owned(), vec![[10, 0, 0, 1].into()])].into(),
        zones: [("host1".to_owned(), "2".to_owned())].into(),
    });
    reads_a_later_one(&Forget::default());
    reads_a_later_one(&Report {
        live: 7,
        index: Some(digest.clone()),
        refused: Some(Refusal {
            generation: 8,
            index: Some(digest.clone()),
            why: "it is unwanted".to_owned(),
        }),
        left: Some(3),
        zone: Some("2".to_owned()),
        ..Report::default()
    });
    reads_a_later_one(&Health {
        failing: vec![("web".to_owned(), "alive".to_owned(), "vm1".to_owned())],
    });
    reads_a_later_one(&Table {
        epoch: 3,
        pool: "web".to_owned(),
        by: vec![By::default()],
    });
    reads_a_later_one(&Rollout {
        generation: 7,
        hosts: Some(release.clone()),
        muxes: Some(release),
        target: Some(digest.clone()),
        settled: Some(digest),
        stage: Stage::Draining,
    });
}

#[test]
fn objects_of_the_first_release_are_read() {
    fn read<T: Object>(value: &Value) -> T {
        T::read("key", &serde_json::to_vec(value).unwrap()).unwrap()
    }
    let index: Index = read(&json!({
        "schema": 1, "sections": [{ "kind": "pool", "name": "web", "digest": "0" }],
    }));
    assert!(index.leaving.is_empty() && index.sections[0].backends.is_empty());
    let report: Report = read(&json!({
        "schema": 1, "addresses": ["10.0.0.1"], "version": "0.1.0", "held": 3, "live": 3,
    }));
    assert_eq!((report.live, report.refused, report.left), (3, None, None));
    let rollout: Rollout = read(&json!({ "schema": 1, "generation": 3, "stage": "live" }));
    assert_eq!((rollout.settled, rollout.stage), (None, Stage::Live));
    let table: Table =
        read(&json!({ "schema": 1, "epoch": 1, "pool": "web", "by": [{ "probe": null }] }));
    assert!(table.by[0].failing.is_empty());
}

/// Writes what changes, as if by a program of a later release.
fn rewrite(store: &MemoryStore, key: &str, change: impl FnOnce(&mut Value)) {
    let entry = store.get(key).unwrap().unwrap();
    let mut value: Value = serde_json::from_slice(&entry.value).unwrap();
    change(&mut value);
    let put = Operation::put(key, serde_json::to_vec(&value).unwrap());
    store.commit(&[], &[put]).unwrap();
}

#[test]
fn nodes_of_two_releases_follow_one_rollout() {
    let store = MemoryStore::default();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let _controller = Controller::start(Arc::clone(&shared), "one");
    let host = Running::start(Arc::clone(&shared), Side::Host, 1, None);
    let mux = Running::start(shared, Side::Mux, 1, None);
    apply(&store, &spec(&[1, 3]));
    wait_until("it serves", || mux.serving() == ["vm1", "vm3"]);
    wait_until("it is live", || stage(&store) == Stage::Live);
    // A mux of a later release reports more, and says by its own probes that vm3 fails, as the other does.
    let keys = Keys::new(CLUSTER);
    let report = Report {
        live: u64::MAX,
        ..Report::default()
    };
    let fails = ("servers".to_owned(), "alive".to_owned(), "vm3".to_owned());
    let health = Health {
        failing: vec![fails.clone()],
    };
    let puts = [
        Operation::put(
            keys.of_node("node", "mux", "later"),
            with_a_later_field(&report.write()),
        ),
        Operation::put(
            keys.of_node("health", "mux", "later"),
            with_a_later_field(&health.write()),
        ),
    ];
    store.commit(&[], &puts).unwrap();
    mux.node.set_failing(vec![fails]);
    wait_until("vm3 is out", || mux.serving() == ["vm1"]);
    apply(&store, &spec(&[1, 2, 3]));
    wait_until("the change goes on", || {
        let count = |node: &Running| node.config().map_or(0, |own| own.pools[0].backends.len());
        count(&host) == 3 && count(&mux) == 3
    });
    wait_until("it is live", || stage(&store) == Stage::Live);
}

#[test]
fn a_node_refuses_a_later_schema_and_serves_on_until_it_gets_one_that_it_reads() {
    let store = MemoryStore::default();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let controller = Controller::start(Arc::clone(&shared), "one");
    let mux = Running::start(shared, Side::Mux, 1, None);
    apply(&store, &spec(&[1]));
    wait_until("it serves", || mux.serving() == ["vm1"]);
    wait_until("it is live", || stage(&store) == Stage::Live);
    drop(controller);
    // A controller of a later release gives out an index of a later schema.
    let keys = Keys::new(CLUSTER);
    let later = br#"{"schema":2,"sections":{"another":"form"}}"#;
    let digest = Digest::of(later);
    let put = Operation::put(keys.index(&digest), later.to_vec());
    store.commit(&[], &[put]).unwrap();
    let rollout = keys.key("state/rollout");
    let (mut before, mut generation) = (Value::Null, 0);
    rewrite(&store, &rollout, |own| {
        generation = own["generation"].as_u64().unwrap() + 1;
        before = own["muxes"]["index"].clone();
        own["generation"] = json!(generation);
        own["muxes"] = json!({ "generation": generation, "index": digest.as_str() });
    });
    wait_until("it refuses", || {
        let refused = mux.node.standing().refused;
        refused.is_some_and(|own| {
            own.generation == generation
                && own.why.contains("is of schema 2")
                && own.why.ends_with("upgrade it")
        })
    });
    sleep(Duration::from_millis(200));
    assert_eq!(mux.serving(), ["vm1"]);
    assert_eq!(mux.node.standing().live, generation - 1);
    // The controller goes back to what all nodes read.
    rewrite(&store, &rollout, |own| {
        own["generation"] = json!(generation + 1);
        own["muxes"] = json!({ "generation": generation + 1, "index": before });
    });
    wait_until("it follows again", || {
        let standing = mux.node.standing();
        standing.live == generation + 1 && standing.refused.is_none()
    });
}
