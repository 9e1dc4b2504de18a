//! Zones of nodes and backends, as the controller that leads sees them.

use crate::common;

use std::sync::Arc;
use std::time::Duration;

use common::{CLUSTER, apply, spec};
use slb_fleet::leader::{FleetView, Leader, LeaderOptions, Reported, TOGETHER};
use slb_fleet::object::{Agents, Health, Keys, Object as _, Report, Table};
use slb_fleet::rollout::{Rollout, Side};
use slb_fleet::store::{MemoryStore, Operation, Store as _};
use slb_fleet::zones::{ZoneView, in_store};

/// A time after which the silence of nodes counts.
const LATER: Duration = Duration::from_secs(60);

fn put(store: &MemoryStore, key: String, value: Vec<u8>) {
    store.commit(&[], &[Operation::put(key, value)]).unwrap();
}

fn report(number: u8, zone: Option<&str>) -> Vec<u8> {
    let report = Report {
        addresses: vec![[172, 16, 0, 100 + number].into()],
        zone: zone.map(str::to_owned),
        ..Report::default()
    };
    report.write()
}

/// A spec of four backends: two in zone `b`, one in zone `a`, and one in none.
fn zoned() -> String {
    let mut text = spec(&[1, 2, 3, 4]);
    for (number, zone) in [(1, "a"), (2, "b"), (3, "b")] {
        let name = format!("{{ name = \"vm{number}\", ");
        assert!(text.contains(&name));
        text = text.replace(&name, &format!("{name}zone = \"{zone}\", "));
    }
    text
}

fn zones(view: &FleetView) -> Vec<(Option<&str>, usize, usize)> {
    let all = view.zones.iter();
    all.map(|own| (own.zone.as_deref(), own.backends, own.serving))
        .collect()
}

/// Zones as they are read from the store.
fn stored(store: &MemoryStore) -> Vec<ZoneView> {
    let keys = Keys::new(CLUSTER);
    let key = keys.key("state/rollout");
    let rollout = Rollout::read(&key, &store.get(&key).unwrap().unwrap().value).unwrap();
    let listing = store.list(&keys.key("state/table/")).unwrap();
    let tables = listing.entries.iter();
    let tables = tables.map(|entry| Table::read(&entry.key, &entry.value).unwrap());
    let tables: Vec<Table> = tables.collect();
    in_store(store, &keys, &rollout, &tables).unwrap()
}

#[test]
fn the_loss_of_a_zone_is_seen_by_its_nodes_and_its_backends() {
    let store = MemoryStore::default();
    let keys = Keys::new(CLUSTER);
    let options = LeaderOptions {
        name: "one".to_owned(),
        cluster: CLUSTER.to_owned(),
        drain: Duration::ZERO,
    };
    let mut leader = Leader::new(Arc::new(store.clone()), options);
    let mut now = Duration::ZERO;
    let mut turn = |leader: &mut Leader, by: Duration| {
        // It keeps its lease meanwhile.
        let end = now + by;
        while now < end {
            now = (now + Duration::from_secs(1)).min(end);
            leader.turn(now, Duration::ZERO).unwrap();
        }
        leader.view().unwrap()
    };
    turn(&mut leader, TOGETHER);
    let host = |number: u8| keys.of_node("node", "host", &format!("host{number}"));
    for (number, zone) in [(1, Some("a")), (2, Some("b")), (3, Some("b")), (4, None)] {
        put(&store, host(number), report(number, zone));
        let key = keys.of_node("health", "host", &format!("host{number}"));
        put(&store, key, Health::default().write());
    }
    put(
        &store,
        keys.of_node("node", "mux", "m"),
        report(9, Some("b")),
    );
    apply(&store, &zoned());
    let view = turn(&mut leader, LATER);
    let nodes: Vec<_> = view
        .nodes
        .iter()
        .map(|own| (own.side, own.zone.as_deref()))
        .collect();
    assert_eq!(
        nodes,
        [
            (Side::Host, Some("a")),
            (Side::Host, Some("b")),
            (Side::Host, Some("b")),
            (Side::Host, None),
            (Side::Mux, Some("b")),
        ]
    );
    assert_eq!(
        zones(&view),
        [(None, 1, 1), (Some("a"), 1, 1), (Some("b"), 2, 2)]
    );
    assert_eq!(stored(&store), view.zones);

    // One backend of zone b fails, then the leases of the whole zone end.
    let failing = vec![("servers".to_owned(), "alive".to_owned(), "vm2".to_owned())];
    let key = keys.of_node("health", "host", "host2");
    put(&store, key, Health { failing }.write());
    let view = turn(&mut leader, TOGETHER);
    assert_eq!(zones(&view)[2], (Some("b"), 2, 1));
    for number in [2, 3] {
        let gone = [
            Operation::Delete(host(number)),
            Operation::Delete(keys.of_node("health", "host", &format!("host{number}"))),
        ];
        store.commit(&[], &gone).unwrap();
    }
    let view = turn(&mut leader, TOGETHER);
    assert_eq!(
        zones(&view),
        [(None, 1, 1), (Some("a"), 1, 1), (Some("b"), 2, 0)]
    );
    assert_eq!(stored(&store), view.zones);
    let gone = view.nodes.iter().filter(|own| own.report == Reported::Gone);
    let gone: Vec<_> = gone.map(|own| (&*own.name, own.zone.as_deref())).collect();
    assert_eq!(gone, [("host2", Some("b")), ("host3", Some("b"))]);

    // A host that comes back may be in another zone, or in none.
    put(&store, host(2), report(2, Some("c")));
    put(&store, host(3), report(3, None));
    let view = turn(&mut leader, TOGETHER);
    let zone = |name: &str| view.nodes.iter().find(|own| own.name == name).unwrap();
    assert_eq!(zone("host2").zone.as_deref(), Some("c"));
    assert_eq!(zone("host3").zone, None);
    let key = keys.key("state/agents");
    let agents = Agents::read(&key, &store.get(&key).unwrap().unwrap().value).unwrap();
    let known: Vec<_> = agents.zones.iter().map(|(n, z)| (&**n, &**z)).collect();
    assert_eq!(known, [("host1", "a"), ("host2", "c")]);
}

#[test]
fn a_zone_that_no_configuration_could_name_is_none() {
    let store = MemoryStore::default();
    let keys = Keys::new(CLUSTER);
    let options = LeaderOptions {
        name: "one".to_owned(),
        cluster: CLUSTER.to_owned(),
        drain: Duration::ZERO,
    };
    let mut leader = Leader::new(Arc::new(store.clone()), options);
    leader.turn(Duration::ZERO, Duration::ZERO).unwrap();
    let names = ["z".repeat(65), String::new(), "z".repeat(64)];
    for (number, zone) in (1..).zip(&names) {
        let key = keys.of_node("node", "host", &format!("host{number}"));
        put(&store, key, report(number, Some(zone)));
    }
    leader.turn(TOGETHER, Duration::ZERO).unwrap();
    leader.turn(2 * TOGETHER, Duration::ZERO).unwrap();
    let view = leader.view().unwrap();
    let zones: Vec<_> = view.nodes.iter().map(|own| own.zone.as_deref()).collect();
    assert_eq!(zones, [None, None, Some(names[2].as_str())]);
    let key = keys.key("state/agents");
    let agents = Agents::read(&key, &store.get(&key).unwrap().unwrap().value).unwrap();
    assert_eq!(agents.zones.len(), 1);
}
