//! Reports and objects that are odd: they harm no other node.

use crate::common;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use common::{CLUSTER, Controller, Running, apply, fails, fleet, put, spec, wait_until};
use slb_fleet::document::Spec;
use slb_fleet::object::{Health, Keys, Object as _, ObjectError, Report};
use slb_fleet::rollout::Side;
use slb_fleet::store::{MemoryStore, Store};

#[test]
fn health_goes_on_while_the_wanted_state_cannot_be_read() {
    let store = MemoryStore::default();
    let (_controller, nodes) = fleet(&store);
    let later = br#"{"schema":2,"indexes":[]}"#;
    put(&store, Keys::new(CLUSTER).wanted(), later.to_vec());
    nodes[0].node.set_failing(vec![fails("vm1")]);
    wait_until("vm1 is out everywhere", || {
        nodes.iter().all(|node| node.serving() == ["vm2", "vm3"])
    });
}

#[test]
fn a_host_agent_under_a_new_name_has_its_address() {
    let store = MemoryStore::default();
    let (_controller, mut nodes) = fleet(&store);
    let keys = Keys::new(CLUSTER);
    let report = Report {
        addresses: vec![IpAddr::from([172, 16, 0, 101])],
        ..Report::default()
    };
    let healthy = Health::default().write();
    put(&store, keys.of_node("health", "host", "renamed"), healthy);
    put(
        &store,
        keys.of_node("node", "host", "renamed"),
        report.write(),
    );
    // While the first agent is there, its word counts.
    nodes[0].node.set_failing(vec![fails("vm1")]);
    wait_until("vm1 is out", || nodes[2].serving() == ["vm2", "vm3"]);
    sleep(Duration::from_millis(500));
    assert_eq!(nodes[2].serving(), ["vm2", "vm3"]);
    drop(nodes.remove(0));
    wait_until("vm1 is back by the new one's word", || {
        nodes[1].serving() == ["vm1", "vm2", "vm3"]
    });
}

#[test]
fn a_host_that_reports_a_network_has_none_of_its_addresses() {
    let store = MemoryStore::default();
    let (_controller, nodes) = fleet(&store);
    let report = Report {
        addresses: (100..200).map(|n| [172, 16, 0, n].into()).collect(),
        ..Report::default()
    };
    let key = Keys::new(CLUSTER).key("node/host/wide");
    put(&store, key, report.write());
    // A change that comes after it is everywhere, and vm3 is not taken for that host's.
    nodes[0].node.set_failing(vec![fails("vm1")]);
    wait_until("vm1 is out everywhere", || {
        nodes.iter().all(|node| node.serving() == ["vm2", "vm3"])
    });
}

#[test]
fn the_cache_is_its_owners() {
    let store = MemoryStore::default();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache");
    let _controller = Controller::start(Arc::clone(&shared), "one");
    let node = Running::start(shared, Side::Mux, 1, Some(&path));
    apply(&store, &spec(&[1]));
    let file = path.join("fleet.cache");
    wait_until("it is cached", || node.config().is_some() && file.exists());
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&file)), (0o700, 0o600));
}

#[test]
fn the_common_section_is_one_section() {
    for (text, what) in [
        ("[[fleet]]\nhash_seed = 1\n", "a list"),
        ("fleet = 3\n", "3"),
    ] {
        let fault = Spec::parse("web.toml", text);
        let Err(ObjectError::Spec(fault)) = fault else {
            panic!("{fault:?}");
        };
        let expected = format!("fleet: expected one section [fleet], got {what}");
        assert!(fault.contains(&expected), "{fault}");
    }
}
