//! The client against a real etcd, where one is installed.

use crate::common;

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    CLUSTER, Controller, Etcd, Running, all_serve, apply, behaves_as_a_store, spec, stage,
    wait_until,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use slb_fleet::object::{Forget, Keys, Object as _};
use slb_fleet::rollout::{Side, Stage};
use slb_fleet::store::etcd::{Access, Certificates, EtcdStore};
use slb_fleet::store::{Operation, Store, StoreError};

#[test]
fn etcd_is_a_store() {
    let Some(etcd) = Etcd::start() else {
        skip!("etcd is not installed");
    };
    let store = etcd.store();
    behaves_as_a_store(&*store);
    let revision = store.list("m/").unwrap().revision;
    let mut watch = store.watch("m/", 1).unwrap();
    let patience = Duration::from_secs(5);
    assert!(!watch.next(patience).unwrap().is_empty());
    etcd.control(&["compact", &revision.to_string()]);
    let mut again = || store.watch("m/", 1).unwrap().next(patience).err();
    assert_eq!(wait_for_error(&mut again), StoreError::Compacted);
    // One that began before goes on.
    store.commit(&[], &[Operation::put("m/new", "v")]).unwrap();
    assert!(!watch.next(patience).unwrap().is_empty());
}

fn wait_for_error(next: &mut dyn FnMut() -> Option<StoreError>) -> StoreError {
    let mut error = None;
    wait_until("an error comes", || {
        error = next();
        error.is_some()
    });
    error.unwrap()
}

#[test]
fn a_fleet_goes_on_over_an_outage_of_etcd() {
    let Some(mut etcd) = Etcd::start() else {
        skip!("etcd is not installed");
    };
    let store = etcd.store();
    let own = || -> Arc<dyn Store> { etcd.store() };
    let _controllers = [
        Controller::start(own(), "one"),
        Controller::start(own(), "two"),
    ];
    let host = Running::start(own(), Side::Host, 1, None);
    let muxes = [1, 2].map(|n| Running::start(own(), Side::Mux, n, None));
    apply(&*store, &spec(&[1]));
    for mux in &muxes {
        wait_until("it is everywhere", || mux.serving() == ["vm1"]);
    }
    etcd.kill();
    wait_until("that is noticed", || {
        muxes.iter().all(|mux| mux.node.standing().away.is_some())
    });
    assert!(muxes.iter().all(|mux| mux.serving() == ["vm1"]));
    etcd.run();
    wait_until("it is back", || store.get("k").is_ok());
    apply(&*store, &spec(&[1, 4]));
    for mux in &muxes {
        wait_until("the next is everywhere", || mux.serving() == ["vm1", "vm4"]);
    }
    // A host that is gone takes its vms out; after an outage, once hosts had the time to come back.
    let begin = Instant::now();
    drop(host);
    for mux in &muxes {
        wait_until("vm1 is out", || mux.serving() == ["vm4"]);
    }
    assert!(begin.elapsed() < slb_fleet::node::LEASE + Duration::from_secs(10));
}

/// The data directory of etcd is lost, and with it revisions, leases, numbers of generations and all that was wanted.
#[test]
fn a_fleet_goes_on_after_etcd_has_lost_its_data() {
    let Some(mut etcd) = Etcd::start() else {
        skip!("etcd is not installed");
    };
    let store = etcd.store();
    let own = || -> Arc<dyn Store> { etcd.store() };
    let _controllers = [
        Controller::start(own(), "one"),
        Controller::start(own(), "two"),
    ];
    let nodes = [
        Running::start(own(), Side::Host, 1, None),
        Running::start(own(), Side::Host, 2, None),
        Running::start(own(), Side::Mux, 1, None),
        Running::start(own(), Side::Mux, 2, None),
    ];
    // Greater numbers than those after it.
    for backends in [&[1][..], &[1, 2], &[1, 2, 3]] {
        apply(&*store, &spec(backends));
        let names: Vec<String> = backends.iter().map(|n| format!("vm{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        all_serve(&nodes, &names);
        wait_until("it is live", || stage(&*store) == Stage::Live);
    }
    etcd.kill();
    fs::remove_dir_all(etcd.directory.path().join("data")).unwrap();
    etcd.run();
    wait_until("it is back", || store.get("k").is_ok());
    let keys = Keys::new(CLUSTER);
    let wanted = keys.key("state/rollout");
    assert_eq!(store.get(&wanted).unwrap(), None, "it is empty");
    // Nodes keep what they have, and report again.
    for (side, name) in [
        ("host", "host1"),
        ("host", "host2"),
        ("mux", "mux1"),
        ("mux", "mux2"),
    ] {
        let key = keys.of_node("node", side, name);
        wait_until(name, || store.get(&key).is_ok_and(|entry| entry.is_some()));
    }
    for node in &nodes {
        assert_eq!(node.serving(), ["vm1", "vm2", "vm3"]);
    }
    // What a host reported before does not count: it refuses the first generation of the new life.
    *nodes[0].refuses.lock().unwrap() = Some("servers".to_owned());
    apply(&*store, &spec(&[2, 3]));
    wait_until("the refusal stops it", || {
        matches!(stage(&*store), Stage::Stopped { .. })
    });
    for mux in &nodes[2..] {
        assert_eq!(mux.serving(), ["vm1", "vm2", "vm3"]);
    }
    *nodes[0].refuses.lock().unwrap() = None;
    apply(&*store, &spec(&[1, 3]));
    all_serve(&nodes, &["vm1", "vm3"]);
    wait_until("it is live", || stage(&*store) == Stage::Live);
}

/// An authority, and certificates of it.
struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(directory: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        fs::write(directory.join("ca.pem"), own.pem()).unwrap();
        Self {
            directory: directory.to_owned(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Issues a certificate; the name is the user's in etcd.
    fn issue(&self, name: &str) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let own = params.signed_by(&key, &self.issuer).unwrap();
        let file = |ending: &str| self.directory.join(format!("{name}{ending}"));
        fs::write(file(".pem"), own.pem()).unwrap();
        fs::write(file(".key"), key.serialize_pem()).unwrap();
    }
}

fn access(directory: &Path, url: &str, name: &str) -> Access {
    let path = |file: String| directory.join(file).display().to_string();
    let (authority, certificate, key) = (
        path("ca.pem".to_owned()),
        path(format!("{name}.pem")),
        path(format!("{name}.key")),
    );
    let files = Certificates {
        authority: &authority,
        certificate: &certificate,
        key: &key,
    };
    Access::new(&[url], Some(files)).unwrap()
}

/// Starts an etcd that knows its clients by their certificates, with one for each of these names.
fn secured(names: &[&str]) -> Option<Etcd> {
    Etcd::with("https", |directory| {
        let authority = Authority::new(directory);
        for name in names.iter().chain(&["server", "root"]) {
            authority.issue(name);
        }
        let file = |name: &str| directory.join(name).display().to_string();
        vec![
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", file("ca.pem")),
            format!("--cert-file={}", file("server.pem")),
            format!("--key-file={}", file("server.key")),
        ]
    })
}

/// The commands that docs/fleet.md gives for access control.
fn documented_commands() -> Vec<Vec<String>> {
    let page = include_str!("../../docs/fleet.md");
    let (_, rest) = page.split_once("### Access control in etcd").unwrap();
    let lines = rest
        .lines()
        .filter_map(|line| line.strip_prefix("etcdctl "));
    let words = |line: &str| {
        let words = line.split_whitespace();
        words
            .map(|word| word.replace("/slb/1/default/", "/slb/1/test/"))
            .collect()
    };
    lines.map(words).collect()
}

#[test]
fn a_fleet_runs_with_the_documented_rights_and_no_node_writes_anothers_keys() {
    let Some(etcd) = secured(&["mux1", "host1", "controller", "operator", "nobody"]) else {
        skip!("etcd is not installed");
    };
    let directory = etcd.directory.path();
    let store = |name: &str| EtcdStore::new(access(directory, &etcd.url(), name)).unwrap();
    let root = store("root");
    wait_until("etcd answers", || root.get("k").is_ok());
    let file = |name: &str| directory.join(name).display().to_string();
    let (authority, certificate, key) = (file("ca.pem"), file("root.pem"), file("root.key"));
    let commands = documented_commands();
    assert!(commands.len() > 20, "{commands:?}");
    for command in &commands {
        let mut all = vec![
            "--cacert",
            &authority,
            "--cert",
            &certificate,
            "--key",
            &key,
        ];
        all.extend(command.iter().map(String::as_str));
        etcd.control(&all);
    }

    let keys = Keys::new("test");
    let may_not = |store: &EtcdStore, keys: &[String]| {
        for key in keys {
            let refused = store.commit(&[], &[Operation::put(key, "v")]);
            assert!(
                matches!(refused, Err(StoreError::Denied(_))),
                "{key}: {refused:?}"
            );
        }
    };
    let mux = store("mux1");
    let put = |key: String| mux.commit(&[], &[Operation::put(key, "v")]);
    assert!(put(keys.of_node("node", "mux", "mux1")).is_ok());
    let leaders = [keys.key("state/rollout"), keys.key("state/agents")];
    let wanted = [
        keys.wanted(),
        keys.key("spec/index/0"),
        keys.forget("host1"),
    ];
    let others = [
        keys.of_node("node", "mux", "mux2"),
        keys.of_node("node", "mux", "mux11"),
        keys.of_node("health", "host", "mux1"),
        keys.of_node("health", "host", "host1"),
    ];
    may_not(&mux, &[&leaders[..], &wanted, &others].concat());
    let others = [
        keys.of_node("node", "mux", "mux1"),
        keys.of_node("node", "host", "host2"),
    ];
    may_not(&store("host1"), &[&leaders[..], &wanted, &others].concat());
    may_not(&store("operator"), &[&leaders[..], &others].concat());
    may_not(&store("controller"), &[&wanted[..1], &others].concat());
    assert!(mux.list(&keys.key("state/")).is_ok());
    assert!(mux.watch(&keys.key("state/"), 1).is_ok());
    assert!(matches!(
        mux.list(&keys.key("node/")),
        Err(StoreError::Denied(_))
    ));
    // A certificate of no user.
    let nobody = store("nobody").get(&keys.wanted());
    assert!(matches!(nobody, Err(StoreError::Denied(_))), "{nobody:?}");

    // A whole fleet follows with these rights alone.
    let operator = store("operator");
    apply(&operator, &spec(&[1]));
    let controller = Controller::start(Arc::new(store("controller")), "one");
    let host = Running::start(Arc::new(store("host1")), Side::Host, 1, None);
    let node = Running::start(Arc::new(mux), Side::Mux, 1, None);
    wait_until("it follows", || node.serving() == ["vm1"]);
    apply(&operator, &spec(&[1, 2]));
    wait_until("it follows on", || {
        node.config()
            .is_some_and(|config| config.pools[0].backends.len() == 2)
    });
    drop(host);
    let forget = keys.forget("host1");
    operator
        .commit(&[], &[Operation::put(&forget, Forget::default().write())])
        .unwrap();
    wait_until("the wish is heard", || {
        operator.get(&forget).unwrap().is_none()
    });
    drop(controller);
}

#[test]
fn what_is_wrong_with_certificates_is_said_in_words() {
    let Some(etcd) = secured(&["mux1"]) else {
        skip!("etcd is not installed");
    };
    let directory = etcd.directory.path();
    let own = EtcdStore::new(access(directory, &etcd.url(), "mux1")).unwrap();
    wait_until("etcd answers", || own.get("k").is_ok());
    let fault = |access: Access| match EtcdStore::new(access).unwrap().get("k") {
        Err(StoreError::Away(why)) => why,
        other => panic!("{other:?}"),
    };
    let member = format!("127.0.0.1:{}: ", etcd.port);
    // Another authority's, on both sides, and on the client's alone.
    let other = tempfile::tempdir().unwrap();
    Authority::new(other.path()).issue("mux1");
    let why = fault(access(other.path(), &etcd.url(), "mux1"));
    assert_eq!(
        why,
        format!("{member}its certificate is of another authority than --fleet-ca")
    );
    fs::copy(directory.join("ca.pem"), other.path().join("ca.pem")).unwrap();
    let why = fault(access(other.path(), &etcd.url(), "mux1"));
    assert!(why.starts_with(&member), "{why}");
    assert!(
        why.contains("refuses the certificate of --fleet-cert"),
        "{why}"
    );
    // A name that the certificate does not have.
    let url = etcd.url().replace("127.0.0.1", "localhost");
    let why = fault(access(directory, &url, "mux1"));
    assert!(
        why.ends_with(
            "its certificate is not for this name or address: it has to be a subjectAltName"
        ),
        "{why}"
    );
    // One speaks TLS, and the other does not.
    let plain = Access::new(&[etcd.url().replace("https", "http")], None).unwrap();
    let why = fault(plain);
    let hint = "(a member that expects TLS has an address that begins with https)";
    assert!(why.ends_with(hint), "{why}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let why = fault(access(directory, &url, "mux1"));
    assert!(why.contains("it does not speak TLS there"), "{why}");
}
