//! Controllers and nodes over a store in memory.

use crate::common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use common::{CLUSTER, Controller, Running, apply, behaves_as_a_store, spec, stage, wait_until};
use slb_fleet::document::{Part, Spec};
use slb_fleet::leader::{Leader, LeaderOptions};
use slb_fleet::object::{CHUNK, Digest, Index, Keys, Object as _, ObjectError, Wanted};
use slb_fleet::rollout::{SETTLE, Side, Stage};
use slb_fleet::store::{MemoryStore, Operation, Store, StoreError};

fn fleet(store: &MemoryStore) -> (Controller, Vec<Running>) {
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let controller = Controller::start(Arc::clone(&shared), "one");
    let hosts = (1..=2).map(|n| Running::start(Arc::clone(&shared), Side::Host, n, None));
    let muxes = (1..=2).map(|n| Running::start(Arc::clone(&shared), Side::Mux, n, None));
    (controller, hosts.chain(muxes).collect())
}

#[test]
fn the_store_in_memory_is_a_store() {
    behaves_as_a_store(&MemoryStore::default());
}

#[test]
fn a_watch_from_before_a_compaction_says_so() {
    let store = MemoryStore::default();
    let first = store
        .commit(&[], &[Operation::put("a", "1")])
        .unwrap()
        .unwrap();
    let mut watch = store.watch("a", first).unwrap();
    store.commit(&[], &[Operation::put("a", "2")]).unwrap();
    store.compact();
    assert_eq!(watch.next(Duration::ZERO), Err(StoreError::Compacted));
}

#[test]
fn a_spec_reaches_all_nodes_and_what_leaves_is_drained_first() {
    let store = MemoryStore::default();
    let (_controller, nodes) = fleet(&store);
    apply(&store, &spec(&[1, 2]));
    for node in &nodes {
        wait_until("it is everywhere", || node.serving() == ["vm1", "vm2"]);
    }
    // One host has connections left on what leaves.
    for host in &nodes[..2] {
        host.node.set_left(Some(3));
    }
    apply(&store, &spec(&[1]));
    wait_until("it drains", || stage(&store) == Stage::Draining);
    let config = nodes[3].config().unwrap();
    let weights: Vec<(&str, u32)> = config.pools[0]
        .backends
        .iter()
        .map(|backend| (backend.name.as_str(), backend.weight))
        .collect();
    assert_eq!(weights, [("vm1", 1), ("vm2", 0)]);
    for host in &nodes[..2] {
        host.node.set_left(Some(0));
    }
    for node in &nodes {
        wait_until("it is gone", || {
            node.config()
                .is_some_and(|config| config.pools[0].backends.len() == 1)
        });
    }
    wait_until("it is live", || stage(&store) == Stage::Live);
}

#[test]
fn what_leaves_stays_while_the_agent_that_counts_its_connections_is_away() {
    let store = MemoryStore::default();
    let (_controller, mut nodes) = fleet(&store);
    apply(&store, &spec(&[1, 2]));
    for node in &nodes {
        wait_until("it is everywhere", || node.serving() == ["vm1", "vm2"]);
    }
    apply(&store, &spec(&[1]));
    wait_until("it drains", || stage(&store) == Stage::Draining);
    nodes[1].node.set_left(Some(3));
    // A new controller waits for agents that were there before; this one is new no more.
    sleep(Duration::from_secs(12));
    // The other host agent has no connections of vm2, which says nothing, nor does the agent's silence.
    drop(nodes.remove(1));
    let key = Keys::new(CLUSTER).of_node("node", "host", "host2");
    wait_until("its lease ends", || store.get(&key).unwrap().is_none());
    sleep(SETTLE + Duration::from_secs(3));
    assert_eq!(stage(&store), Stage::Draining);
    nodes.push(Running::start(Arc::new(store.clone()), Side::Host, 2, None));
    wait_until("it is live", || stage(&store) == Stage::Live);
}

#[test]
fn a_node_that_refuses_stops_the_rollout_and_says_why() {
    let store = MemoryStore::default();
    let (_controller, nodes) = fleet(&store);
    apply(&store, &spec(&[1]));
    wait_until("it is everywhere", || {
        nodes.iter().all(|node| node.serving() == ["vm1"])
    });
    *nodes[0].refuses.lock().unwrap() = Some("more".to_owned());
    apply(
        &store,
        &(spec(&[1]) + "[[pool]]\nname = \"more\"\nvni = 5\nbackends = []\n"),
    );
    wait_until("it stops", || {
        matches!(stage(&store), Stage::Stopped { .. })
    });
    let Stage::Stopped { node, why } = stage(&store) else {
        unreachable!()
    };
    assert_eq!(
        (node.as_str(), why.as_str()),
        ("host host1", "it is unwanted")
    );
    assert_eq!(nodes[2].config().unwrap().pools.len(), 1, "no mux has it");
    apply(&store, &spec(&[1, 2]));
    wait_until("the next is everywhere", || {
        nodes.iter().all(|node| node.serving() == ["vm1", "vm2"])
    });
}

#[test]
fn a_host_that_ends_takes_its_vms_out_and_one_mux_alone_takes_none() {
    let store = MemoryStore::default();
    let (_controller, mut nodes) = fleet(&store);
    // vm3 is at a host without an agent.
    apply(&store, &spec(&[1, 2, 3]));
    wait_until("it is everywhere", || {
        nodes
            .iter()
            .all(|node| node.serving() == ["vm1", "vm2", "vm3"])
    });
    let fails = |name: &str| ("servers".to_owned(), "alive".to_owned(), name.to_owned());
    nodes[2].node.set_failing(vec![fails("vm3"), fails("vm1")]);
    nodes[3].node.set_failing(Vec::new());
    sleep(Duration::from_millis(500));
    assert_eq!(nodes[3].serving(), ["vm1", "vm2", "vm3"]);
    // Both: then it is out, and the agent's word on vm1 still counts more.
    nodes[3].node.set_failing(vec![fails("vm3"), fails("vm1")]);
    wait_until("vm3 is out everywhere", || {
        nodes.iter().all(|node| node.serving() == ["vm1", "vm2"])
    });
    nodes[0].node.set_failing(vec![fails("vm1")]);
    wait_until("vm1 is out everywhere", || {
        nodes.iter().all(|node| node.serving() == ["vm2"])
    });
    nodes[0].node.set_failing(Vec::new());
    wait_until("vm1 is back everywhere", || {
        nodes.iter().all(|node| node.serving() == ["vm1", "vm2"])
    });
    drop(nodes.remove(1));
    wait_until("vm2 is out everywhere", || {
        nodes.iter().all(|node| node.serving() == ["vm1"])
    });
}

#[test]
fn two_controllers_never_both_change_something() {
    let store = MemoryStore::default();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let first = Controller::start(Arc::clone(&shared), "same name");
    wait_until("one leads", || first.leads.load(Ordering::Relaxed));
    let second = Controller::start(Arc::clone(&shared), "same name");
    let node = Running::start(Arc::clone(&shared), Side::Mux, 1, None);
    apply(&store, &spec(&[1]));
    wait_until("it is live", || node.config().is_some());
    assert!(!second.leads.load(Ordering::Relaxed));
    // The first one's lease ends: the other leads, and the first one's writes have no effect.
    store.pass(Duration::from_secs(6));
    wait_until("one leads again", || {
        first.leads.load(Ordering::Relaxed) != second.leads.load(Ordering::Relaxed)
    });
    drop(first);
    store.pass(Duration::from_secs(6));
    apply(&store, &spec(&[1, 2]));
    wait_until("the second leads", || {
        node.config()
            .is_some_and(|config| config.pools[0].backends.len() == 2)
    });
}

#[test]
fn a_controller_does_not_claim_to_lead_for_longer_than_its_lease() {
    let store = MemoryStore::default();
    let options = LeaderOptions {
        name: "one".to_owned(),
        cluster: CLUSTER.to_owned(),
        drain: Duration::from_secs(2),
    };
    let mut leader = Leader::new(Arc::new(store.clone()), options);
    let turn =
        |leader: &mut Leader, millis| leader.turn(Duration::from_millis(millis), Duration::ZERO);
    turn(&mut leader, 0).unwrap();
    assert!(leader.leads());
    store.set_away(true);
    turn(&mut leader, 2000).unwrap_err();
    assert!(leader.leads(), "its lease lasts for 5 s");
    turn(&mut leader, 5500).unwrap_err();
    assert!(!leader.leads(), "another one may lead by now");
    assert_eq!(leader.leader(), None);
    store.pass(Duration::from_secs(6));
    store.set_away(false);
    for millis in [6000, 6500] {
        turn(&mut leader, millis).unwrap();
    }
    assert!(leader.leads());
}

#[test]
fn a_mux_serves_on_while_the_store_is_away_and_starts_from_its_cache() {
    serves_on_and_starts_from_its_cache(Side::Mux);
}

#[test]
fn a_host_agent_serves_on_while_the_store_is_away_and_starts_from_its_cache() {
    serves_on_and_starts_from_its_cache(Side::Host);
}

fn serves_on_and_starts_from_its_cache(side: Side) {
    let store = MemoryStore::default();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let directory = tempfile::tempdir().unwrap();
    // Without agents, backends that leave stay for all of it.
    let drain = Duration::from_secs(2);
    let controller = Controller::with_drain(Arc::clone(&shared), "one", drain);
    let start = || Running::start(Arc::clone(&shared), side, 1, Some(directory.path()));
    let node = start();
    apply(&store, &spec(&[1, 2]));
    wait_until("it is live", || node.serving() == ["vm1", "vm2"]);
    store.set_away(true);
    wait_until("that is noticed", || node.node.standing().away.is_some());
    assert_eq!(node.serving(), ["vm1", "vm2"]);
    drop(node);
    let node = start();
    wait_until("it has its cache", || node.serving() == ["vm1", "vm2"]);
    store.set_away(false);
    wait_until("that is noticed", || node.node.standing().away.is_none());
    // Changes that it missed, and a past that is gone.
    for backends in [&[1][..], &[1, 2, 3], &[3]] {
        apply(&store, &spec(backends));
        store.compact();
    }
    wait_until("it has the last one", || {
        node.config()
            .is_some_and(|config| config.pools[0].backends.len() == 1)
    });
    drop(controller);
}

#[test]
fn an_outage_of_the_store_that_ends_all_leases_takes_no_host_out() {
    let store = MemoryStore::default();
    let (_controller, nodes) = fleet(&store);
    apply(&store, &spec(&[1, 2]));
    let fails = |name: &str| ("servers".to_owned(), "alive".to_owned(), name.to_owned());
    nodes[1].node.set_failing(vec![fails("vm2")]);
    wait_until("vm2 is out", || {
        nodes.iter().all(|node| node.serving() == ["vm1"])
    });
    store.set_away(true);
    wait_until("that is noticed", || {
        nodes.iter().all(|node| node.node.standing().away.is_some())
    });
    store.pass(Duration::from_secs(60));
    store.set_away(false);
    for _ in 0..200 {
        for node in &nodes {
            assert_eq!(node.serving(), ["vm1"]);
        }
        sleep(Duration::from_millis(10));
    }
    assert!(nodes.iter().all(|node| node.node.standing().away.is_none()));
    nodes[1].node.set_failing(Vec::new());
    wait_until("vm2 is back", || {
        nodes.iter().all(|node| node.serving() == ["vm1", "vm2"])
    });
}

#[test]
fn objects_that_nothing_refers_to_are_deleted() {
    let store = MemoryStore::default();
    // vm2's and vm3's hosts have no agent: they stay for the whole drain.
    let (controller, nodes) = fleet(&store);
    drop(controller);
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let _controller = Controller::with_drain(shared, "two", Duration::from_secs(2));
    store.pass(Duration::from_secs(6));
    for backends in [&[1, 2][..], &[1], &[1, 2, 3], &[1]] {
        apply(&store, &spec(backends));
        let count = backends.len();
        wait_until("it is everywhere", || {
            let has = |node: &Running| {
                node.config()
                    .is_some_and(|config| config.pools[0].backends.len() == count)
            };
            nodes.iter().all(has)
        });
    }
    // The index, and the fleet's, frontend's, pool's, backends', probe's and rule's.
    wait_until("they are gone", || {
        store.list("/slb/1/test/spec/").unwrap().entries.len() == 7
    });
}

#[test]
fn what_a_controller_cannot_read_is_said_and_changes_nothing() {
    let store = MemoryStore::default();
    let (_controller, nodes) = fleet(&store);
    apply(&store, &spec(&[1]));
    wait_until("it is everywhere", || {
        nodes.iter().all(|node| node.serving() == ["vm1"])
    });
    // Of a later schema, as a newer `slb apply` would write.
    let keys = Keys::new("test");
    let index = br#"{"schema":2,"sections":{"another":"form"}}"#;
    let digest = Digest::of(index);
    let wanted = Wanted {
        index: digest.clone(),
    };
    let puts = [
        Operation::put(keys.index(&digest), index.to_vec()),
        Operation::put(keys.wanted(), wanted.write()),
    ];
    store.commit(&[], &puts).unwrap();
    wait_until("it stops", || {
        matches!(stage(&store), Stage::Stopped { .. })
    });
    let Stage::Stopped { node, why } = stage(&store) else {
        unreachable!()
    };
    assert_eq!(node, "controller one");
    assert!(why.contains("schema 2"), "{why}");
    assert!(nodes.iter().all(|node| node.serving() == ["vm1"]));
}

#[test]
fn a_spec_reads_back_from_its_objects_in_its_order() {
    let backends: Vec<u32> = (0..CHUNK as u32 + 5).collect();
    let names = |spec: &Spec| -> Vec<String> {
        let pool = spec.sections("pool").next().unwrap();
        let all = pool["backends"].as_array().unwrap().iter();
        all.map(|own| own["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let text: Vec<String> = backends
        .iter()
        .map(|n| {
            let (high, low) = (n / 250, n % 250 + 1);
            format!(
                "{{ name = \"z{}\", address = \"10.1.{high}.{low}\", host = \"172.16.0.1\" }}",
                1000 - n
            )
        })
        .collect();
    let text = format!(
        "[[pool]]\nname = \"a b/c\"\nvni = 1\nbackends = [{}]\n",
        text.join(",")
    );
    let spec = Spec::parse("test", &text).unwrap();
    let keys = Keys::new("test");
    let made = spec.objects(&keys, vec!["a b/c/z1".to_owned()]).unwrap();
    // The index, the pool, and two chunks.
    assert_eq!(made.objects.len(), 4);
    let key = keys.index(&made.index());
    let index = Index::read(&key, &made.objects[&key]).unwrap();
    assert_eq!(index.leaving, ["a b/c/z1"]);
    let mut parts = BTreeMap::new();
    for (key, bytes) in made.objects.iter().filter(|(own, _)| **own != key) {
        assert!(key.ends_with(Digest::of(bytes).as_str()));
        parts.insert(key.clone(), Part::read(&keys, key, bytes).unwrap());
    }
    let read = Spec::join(&keys, &index, |key| parts.get(key)).unwrap();
    assert_eq!(names(&read), names(&spec));
    assert_eq!(read, spec);
    let missing = Spec::join(&keys, &index, |_| None);
    assert!(matches!(missing, Err(ObjectError::Missing(_))));
}

#[test]
fn a_pool_that_goes_is_drained_with_its_rules() {
    let old = Spec::parse("old", &spec(&[1, 2])).unwrap();
    let new = Spec::parse("new", "[fleet]\nhash_seed = 7\n").unwrap();
    let (union, leaving) = new.with_leavers(&[&old]);
    assert_eq!(leaving, ["servers/vm1", "servers/vm2"]);
    union.check("union").unwrap();
    for kind in ["frontend", "pool", "probe", "rule"] {
        assert_eq!(union.sections(kind).count(), 1, "{kind}");
    }
    // A new rule takes the port: the old one cannot stay beside it.
    let text = spec(&[1, 2])
        .replace("servers", "others")
        .replace("\"http\"", "\"another\"");
    let new = Spec::parse("new", &text).unwrap();
    let (union, leaving) = new.with_leavers(&[&old]);
    assert_eq!(leaving, [""; 0]);
    assert_eq!(union, new);
}

#[test]
fn a_spec_has_no_node_and_a_node_no_other_seed() {
    let refused = |text: &str| Spec::parse("web.toml", text).unwrap_err().to_string();
    assert!(refused("[node]\nrole = \"mux\"\n").contains("belongs to one node"));
    assert!(refused("[[pool]]\nname = \"p\"\nvni = 1\nbackend = 3\n").contains("web.toml:4"));
    assert!(refused("[fleet]\nflows = 3\n").contains("expected one of"));
    let spec = Spec::parse("test", &spec(&[1])).unwrap();
    let node = |more: &str| {
        let text = format!("role = \"mux\"\nunderlay = \"172.16.0.11\"\n{more}");
        spec.config("test", &text.parse().unwrap())
    };
    assert_eq!(node("").unwrap().node.hash_seed, 7);
    assert_eq!(node("hash_seed = 7").unwrap().node.hash_seed, 7);
    let error = node("hash_seed = 8").unwrap_err().to_string();
    assert!(
        error.contains("differs from the fleet's hash_seed"),
        "{error}"
    );
}
