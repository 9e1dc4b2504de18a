//! The fleet as its controllers see it: the one that leads has all of it, and others know who leads.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{CLUSTER, apply, spec};
use slb_fleet::leader::{FleetView, Leader, LeaderOptions, Reported, TOGETHER};
use slb_fleet::object::{Health, Keys, Object as _, Report};
use slb_fleet::rollout::{Side, Stage};
use slb_fleet::store::{MemoryStore, Operation, Store as _};

fn leader(store: &MemoryStore, name: &str) -> Leader {
    Leader::new(
        Arc::new(store.clone()),
        LeaderOptions {
            name: name.to_owned(),
            cluster: CLUSTER.to_owned(),
            drain: Duration::ZERO,
        },
    )
}

#[test]
fn the_controller_that_leads_sees_the_fleet_and_others_know_its_name() {
    let store = MemoryStore::default();
    let keys = Keys::new(CLUSTER);
    let (mut first, mut second) = (leader(&store, "one"), leader(&store, "two"));
    assert_eq!((first.leader(), first.view()), (None, None));
    let turn = |leader: &mut Leader, at: Duration| leader.turn(at, Duration::ZERO).unwrap();
    turn(&mut first, Duration::ZERO);
    turn(&mut second, Duration::ZERO);
    assert_eq!(
        (first.leader(), second.leader()),
        (Some("one"), Some("one"))
    );
    assert_eq!(first.view(), Some(FleetView::default()));
    assert_eq!(second.view(), None);

    let put =
        |key: String, value: Vec<u8>| store.commit(&[], &[Operation::put(key, value)]).unwrap();
    let report = Report {
        addresses: vec!["172.16.0.101".parse().unwrap()],
        left: Some(0),
        ..Report::default()
    };
    let key = keys.of_node("node", "host", "a/b");
    put(key.clone(), report.write());
    put(keys.of_node("node", "mux", "m1"), b"{".to_vec());
    let failing = vec![("servers".to_owned(), "alive".to_owned(), "vm1".to_owned())];
    put(
        keys.of_node("health", "host", "a/b"),
        Health { failing }.write(),
    );
    apply(&store, &spec(&[1]));
    // Changes go together, so one turn sees them and a later one begins.
    turn(&mut first, Duration::ZERO);
    turn(&mut first, 2 * TOGETHER);
    let view = first.view().unwrap();
    assert_eq!(
        (view.rollout.generation, &view.rollout.stage),
        (1, &Stage::Hosts)
    );
    assert_eq!(view.wanted, view.rollout.target);
    let nodes: Vec<_> = view
        .nodes
        .iter()
        .map(|node| (node.side, &*node.name))
        .collect();
    assert_eq!(nodes, [(Side::Host, "a%2fb"), (Side::Mux, "m1")]);
    assert_eq!(view.nodes[0].report, Reported::Is(report));
    assert!(matches!(&view.nodes[1].report, Reported::Unreadable(why) if why.contains("m1")));
    assert_eq!(view.failing, [("servers".to_owned(), 1)].into());

    // The host's lease ends.
    store.commit(&[], &[Operation::Delete(key)]).unwrap();
    turn(&mut first, 2 * TOGETHER);
    let view = first.view().unwrap();
    let gone = view.nodes.iter().find(|node| node.name == "a%2fb").unwrap();
    assert_eq!(gone.report, Reported::Gone);

    // Another one leads in the end, and nothing is known of the one before.
    first.resign();
    turn(&mut second, Duration::from_secs(1));
    assert_eq!(second.leader(), Some("two"));
    assert_eq!(second.view().unwrap().rollout.generation, 1);
}
