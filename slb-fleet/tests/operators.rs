//! Mistakes and repairs of operators: they harm nothing that runs, and the next command puts them right.

use crate::common;

use std::net::IpAddr;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{
    CLUSTER, Controller, Running, all_serve, apply, fails, fleet, put, spec, stage, wait_until,
};
use slb_fleet::document::Spec;
use slb_fleet::fetch::change;
use slb_fleet::node::AUTONOMY;
use slb_fleet::object::{Agents, Digest, Forget, Health, Keys, Object as _, ObjectError, Report};
use slb_fleet::rollout::{Side, Stage};
use slb_fleet::store::{
    Condition, Entry, Lease, Listing, MemoryStore, Operation, Revision, Store, StoreError, Watch,
};

fn agents(store: &MemoryStore) -> Agents {
    let key = Keys::new(CLUSTER).key("state/agents");
    let entry = store.get(&key).unwrap();
    entry.map_or_else(Agents::default, |own| {
        Agents::read(&key, &own.value).unwrap()
    })
}

#[test]
fn a_wanted_state_that_is_lost_is_replaced_by_the_next() {
    let store = MemoryStore::default();
    let (controller, nodes) = fleet(&store);
    wait_until("it is live", || stage(&store) == Stage::Live);
    // A controller that begins to lead after the loss has nothing of it in memory.
    drop(controller);
    let keys = Keys::new(CLUSTER);
    let listing = store.list(&keys.key("spec/pool/")).unwrap();
    let gone: Vec<Operation> = listing
        .entries
        .into_iter()
        .map(|entry| Operation::Delete(entry.key))
        .collect();
    assert!(!gone.is_empty());
    store.commit(&[], &gone).unwrap();
    let mut seen = None;
    let refused = change(&store, &keys, |present| {
        let present = present.map(|_| ());
        seen = present.clone().err();
        present.and(Err(ObjectError::Spec("no more".to_owned())))
    });
    assert!(refused.is_err());
    assert!(matches!(seen, Some(ObjectError::Missing(_))), "{seen:?}");
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let second = Controller::with_drain(shared, "two", Duration::from_secs(2));
    store.pass(Duration::from_secs(6));
    wait_until("the second leads", || second.leads.load(Ordering::Relaxed));
    apply(&store, &spec(&[1, 2]));
    all_serve(&nodes, &["vm1", "vm2"]);
    wait_until("it is live", || stage(&store) == Stage::Live);
}

#[test]
fn a_change_that_was_refused_is_tried_again_when_it_is_applied_again() {
    let store = MemoryStore::default();
    let (_controller, nodes) = fleet(&store);
    let text = spec(&[1]) + "[[pool]]\nname = \"more\"\nvni = 5\nbackends = []\n";
    *nodes[0].refuses.lock().unwrap() = Some("more".to_owned());
    apply(&store, &text);
    let is_stopped = || matches!(stage(&store), Stage::Stopped { .. });
    wait_until("it stops", is_stopped);
    sleep(Duration::from_millis(500));
    assert!(is_stopped(), "nothing was applied since");
    *nodes[0].refuses.lock().unwrap() = None;
    apply(&store, &text);
    wait_until("it goes on", || {
        let has = |node: &Running| node.config().is_some_and(|own| own.pools.len() == 2);
        nodes.iter().all(has)
    });
}

#[test]
fn a_host_agent_speaks_for_the_addresses_that_the_spec_gives_it() {
    let store = MemoryStore::default();
    let (controller, nodes) = fleet(&store);
    let keys = Keys::new(CLUSTER);
    // The host of vm3 has no agent, and one of another host says that it is that one.
    let address = IpAddr::from([172, 16, 0, 103]);
    let report = Report {
        addresses: vec![address],
        ..Report::default()
    };
    let health = Health {
        failing: vec![fails("vm3")],
    };
    put(
        &store,
        keys.of_node("health", "host", "liar"),
        health.write(),
    );
    put(&store, keys.of_node("node", "host", "liar"), report.write());
    all_serve(&nodes, &["vm1", "vm2"]);
    let hosts = "[fleet]\nhosts = { host1 = \"172.16.0.101\", host2 = [\"172.16.0.102\"] }\n";
    apply(&store, &spec(&[1, 2, 3]).replace("[fleet]\n", hosts));
    all_serve(&nodes, &["vm1", "vm2", "vm3"]);
    assert_eq!(agents(&store).at(address), None);
    // To a controller that begins to lead, too.
    drop(controller);
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let second = Controller::start(shared, "two");
    store.pass(Duration::from_secs(6));
    wait_until("the second leads", || second.leads.load(Ordering::Relaxed));
    for _ in 0..50 {
        assert_eq!(nodes[2].serving(), ["vm1", "vm2", "vm3"]);
        assert_eq!(agents(&store).at(address), None);
        sleep(Duration::from_millis(10));
    }
    // The agents that the spec names speak for their own.
    nodes[0].node.set_failing(vec![fails("vm1")]);
    all_serve(&nodes, &["vm2", "vm3"]);
}

#[test]
fn addresses_of_host_agents_are_checked() {
    for (hosts, fault) in [
        ("3", "expected a table such as"),
        (
            "{ a = \"x\" }",
            "hosts: a: expected a list of addresses, got \"x\"",
        ),
        (
            "{ a = [\"10.0.0.1\"], b = [\"10.0.0.1\"] }",
            "hosts: b: 10.0.0.1 is a's too",
        ),
    ] {
        let text = format!("[fleet]\nhosts = {hosts}\n");
        let error = Spec::parse("web.toml", &text).unwrap_err().to_string();
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn a_host_agent_that_is_forgotten_leaves_its_vms_to_the_muxes() {
    let store = MemoryStore::default();
    let (_controller, mut nodes) = fleet(&store);
    let key = Keys::new(CLUSTER).forget("host1");
    // One that is there is not forgotten.
    put(&store, key.clone(), Forget::default().write());
    wait_until("the wish is heard", || store.get(&key).unwrap().is_none());
    assert!(agents(&store).of("host1").is_some());
    drop(nodes.remove(0));
    all_serve(&nodes, &["vm2", "vm3"]);
    put(&store, key.clone(), Forget::default().write());
    wait_until("the wish is heard", || store.get(&key).unwrap().is_none());
    assert!(agents(&store).of("host1").is_none());
    all_serve(&nodes, &["vm1", "vm2", "vm3"]);
}

#[test]
fn a_spec_may_have_addresses_for_documentation() {
    let text = spec(&[1]) + "[[frontend]]\nname = \"six\"\naddress = \"2001:db8::1\"\n";
    let text = text.replace("203.0.113.80", "192.0.2.1");
    let store = MemoryStore::default();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let _controller = Controller::start(Arc::clone(&shared), "one");
    let host = Running::start(Arc::clone(&shared), Side::Host, 1, None);
    let mux = Running::start(shared, Side::Mux, 1, None);
    apply(&store, &text);
    wait_until("it serves", || mux.serving() == ["vm1"]);
    drop(host);
}

#[test]
fn faults_have_the_lines_of_the_file() {
    let text = "[fleet]\nhash_seed = 7\n\n[[pool]]\nname = \"p\"\nvni = 1\nbackend = 3\n";
    let error = Spec::parse("web.toml", text).unwrap_err().to_string();
    assert!(error.starts_with("web.toml:7: pool \"p\""), "{error}");
    // Faults of what comes out of the store are on no line.
    let spec = Spec::parse("web.toml", &spec(&[1])).unwrap();
    let node = "role = \"mux\"\nunderlay = \"nowhere\"\n".parse().unwrap();
    let error = spec.config("node.toml", &node).unwrap_err().to_string();
    assert!(error.starts_with("node.toml: node: underlay: "), "{error}");
}

#[test]
fn sections_in_use_are_known() {
    let spec = Spec::parse("test", &spec(&[1])).unwrap();
    let rule = ("rule".to_owned(), "http".to_owned());
    for (kind, name) in [("pool", "servers"), ("frontend", "web"), ("probe", "alive")] {
        assert_eq!(
            spec.users(kind, name),
            slice::from_ref(&rule),
            "{kind} {name}"
        );
    }
    assert_eq!(spec.users("rule", "http"), []);
    assert_eq!(spec.users("pool", "web"), []);
    let nat = "[[pool]]\nname = \"p\"\nvni = 1\n\
               backends = [{ name = \"vm\", address = \"10.0.0.4\", host = \"172.16.0.1\" }]\n\
               [[frontend]]\nname = \"f\"\naddress = \"203.0.113.1\"\n\
               [[inbound_nat_rule]]\nname = \"ssh\"\nfrontend = \"f\"\npool = \"p\"\nbackend = \"vm\"\n\
               protocol = \"tcp\"\nfrontend_port = 22\nbackend_port = 22\n\
               [[outbound_rule]]\nname = \"out\"\nfrontends = [\"f\"]\npool = \"p\"\nprotocol = \"tcp\"\n";
    let spec = Spec::parse("test", nat).unwrap();
    let ssh = ("inbound_nat_rule".to_owned(), "ssh".to_owned());
    let out = ("outbound_rule".to_owned(), "out".to_owned());
    assert_eq!(spec.users("backend", "p/vm"), slice::from_ref(&ssh));
    assert_eq!(spec.users("frontend", "f"), [ssh, out]);
}

/// A store that lets a node read everything and write nothing.
struct ReadOnly {
    store: MemoryStore,
    watches: AtomicUsize,
}

impl Store for ReadOnly {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key)
    }

    fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix)
    }

    fn watch(&self, prefix: &str, revision: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.watches.fetch_add(1, Ordering::Relaxed);
        self.store.watch(prefix, revision)
    }

    fn commit(&self, _: &[Condition], _: &[Operation]) -> Result<Option<Revision>, StoreError> {
        Err(StoreError::Denied("permission denied".to_owned()))
    }

    fn grant(&self, length: Duration) -> Result<Lease, StoreError> {
        self.store.grant(length)
    }

    fn keep(&self, lease: Lease) -> Result<(), StoreError> {
        self.store.keep(lease)
    }

    fn revoke(&self, lease: Lease) -> Result<(), StoreError> {
        self.store.revoke(lease)
    }
}

#[test]
fn a_node_that_may_write_nothing_follows_and_goes_by_its_own_probes() {
    let store = MemoryStore::default();
    let (_controller, nodes) = fleet(&store);
    let denied = Arc::new(ReadOnly {
        store: store.clone(),
        watches: AtomicUsize::new(0),
    });
    let begin = Instant::now();
    let node = Running::start(Arc::clone(&denied) as Arc<_>, Side::Mux, 2, None);
    wait_until("it follows", || node.serving() == ["vm1", "vm2", "vm3"]);
    assert!(!node.node.standing().is_autonomous());
    wait_until("it goes by its own probes", || {
        node.node.standing().is_autonomous()
    });
    assert!(begin.elapsed() >= AUTONOMY);
    let fault = node.node.standing().fault.unwrap();
    assert!(fault.contains("the store denies access"), "{fault}");
    // Each of its attempts says something in the log at most, and is as rare as that.
    let attempts = denied.watches.load(Ordering::Relaxed) as u64;
    assert!(attempts <= begin.elapsed().as_secs() / 2 + 2, "{attempts}");
    apply(&store, &spec(&[1]));
    all_serve(&nodes, &["vm1"]);
    wait_until("it follows on", || node.serving() == ["vm1"]);
}

/// The report of a node of an earlier life of the store, where generations had greater numbers. It has not heard of the
/// new one, as a node that hangs.
fn report_of_earlier_life(generation: u64) -> Vec<u8> {
    let report = serde_json::json!({
        "schema": 1,
        "addresses": ["172.16.0.104"],
        "version": "0.1.0",
        "held": generation,
        "live": generation,
        "index": Digest::of(b"a spec of then"),
        "refused": null,
        "left": 0,
    });
    serde_json::to_vec(&report).unwrap()
}

#[test]
fn a_report_from_before_the_store_was_emptied_is_not_taken_for_the_new_generation() {
    for generation in [1, 7] {
        let store = MemoryStore::default();
        let keys = Keys::new(CLUSTER);
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let key = keys.of_node("node", "host", "host4");
        put(&store, key.clone(), report_of_earlier_life(generation));
        let _controller = Controller::start(Arc::clone(&shared), "one");
        let nodes = [
            Running::start(Arc::clone(&shared), Side::Host, 1, None),
            Running::start(Arc::clone(&shared), Side::Mux, 1, None),
        ];
        apply(&store, &spec(&[1]));
        wait_until("it begins", || stage(&store) == Stage::Hosts);
        // Muxes wait for the host, though its number is no smaller.
        sleep(Duration::from_secs(2));
        assert_eq!(stage(&store), Stage::Hosts, "{generation}");
        assert!(nodes[1].serving().is_empty());
        // It is gone, or gets the change.
        store.commit(&[], &[Operation::Delete(key)]).unwrap();
        all_serve(&nodes, &["vm1"]);
    }
}

#[test]
fn a_refusal_counts_after_the_store_was_emptied() {
    let store = MemoryStore::default();
    let (controller, mut nodes) = fleet(&store);
    for backends in [&[1, 2][..], &[1, 2, 3], &[1]] {
        apply(&store, &spec(backends));
        let names: Vec<String> = backends.iter().map(|n| format!("vm{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        all_serve(&nodes, &names);
        wait_until("it is live", || stage(&store) == Stage::Live);
    }
    // All is lost but what the nodes report again.
    drop(controller);
    let keys = Keys::new(CLUSTER);
    let all = store.list(keys.all()).unwrap();
    for entry in all.entries {
        let rest = entry.key.strip_prefix(keys.all()).unwrap();
        if !rest.starts_with("node/") && !rest.starts_with("health/") {
            store.commit(&[], &[Operation::Delete(entry.key)]).unwrap();
        }
    }
    *nodes[0].refuses.lock().unwrap() = Some("servers".to_owned());
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let _controller = Controller::start(shared, "two");
    apply(&store, &spec(&[2, 3]));
    wait_until("the refusal stops it", || {
        matches!(stage(&store), Stage::Stopped { .. })
    });
    let mux = nodes.pop().unwrap();
    assert_eq!(mux.serving(), ["vm1"]);
}
