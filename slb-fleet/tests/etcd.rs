//! The client against a real etcd, where one is installed.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Controller, Etcd, Running, apply, behaves_as_a_store, spec, wait_until};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use slb_fleet::object::Keys;
use slb_fleet::rollout::Side;
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
    assert!(begin.elapsed() < slb_fleet::node::LEASE + Duration::from_secs(3));
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

#[test]
fn a_node_that_writes_anothers_keys_is_refused() {
    let etcd = Etcd::with("https", |directory| {
        let authority = Authority::new(directory);
        for name in ["server", "root", "mux1", "nobody"] {
            authority.issue(name);
        }
        let file = |name: &str| directory.join(name).display().to_string();
        vec![
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", file("ca.pem")),
            format!("--cert-file={}", file("server.pem")),
            format!("--key-file={}", file("server.key")),
        ]
    });
    let Some(etcd) = etcd else {
        skip!("etcd is not installed");
    };
    let directory = etcd.directory.path();
    let store = |name: &str| EtcdStore::new(access(directory, &etcd.url(), name)).unwrap();
    let root = store("root");
    wait_until("etcd answers", || root.get("k").is_ok());
    let file = |name: &str| directory.join(name).display().to_string();
    let (authority, certificate, key) = (file("ca.pem"), file("root.pem"), file("root.key"));
    let control = |arguments: &[&str]| {
        let mut all = vec![
            "--cacert",
            &authority,
            "--cert",
            &certificate,
            "--key",
            &key,
        ];
        all.extend(arguments);
        etcd.control(&all)
    };
    let prefix = "/slb/1/test/";
    control(&["user", "add", "root:secret"]);
    control(&["user", "grant-role", "root", "root"]);
    // As docs/fleet.md says for each node.
    control(&["role", "add", "mux-mux1"]);
    for (right, of) in [("read", "spec/"), ("read", "state/")] {
        let key = format!("{prefix}{of}");
        control(&[
            "role",
            "grant-permission",
            "mux-mux1",
            right,
            &key,
            "--prefix",
        ]);
    }
    for own in ["node/mux/mux1", "health/mux/mux1"] {
        let key = format!("{prefix}{own}");
        control(&["role", "grant-permission", "mux-mux1", "readwrite", &key]);
    }
    control(&["user", "add", "mux1", "--no-password"]);
    control(&["user", "grant-role", "mux1", "mux-mux1"]);
    control(&["auth", "enable"]);

    let keys = Keys::new("test");
    let mux = store("mux1");
    let put = |key: String| mux.commit(&[], &[Operation::put(key, "v")]);
    assert!(put(keys.of_node("node", "mux", "mux1")).is_ok());
    for key in [
        keys.of_node("node", "mux", "mux2"),
        keys.of_node("health", "host", "mux1"),
        keys.wanted(),
        keys.key("state/rollout"),
        keys.key("spec/index/0"),
    ] {
        let refused = put(key.clone());
        assert!(
            matches!(refused, Err(StoreError::Denied(_))),
            "{key}: {refused:?}"
        );
    }
    assert!(mux.list(&keys.key("state/")).is_ok());
    assert!(mux.watch(&keys.key("state/"), 1).is_ok());
    assert!(matches!(
        mux.list(&keys.key("node/")),
        Err(StoreError::Denied(_))
    ));
    // Certificates of no user, and of no authority.
    let nobody = store("nobody").get(&keys.wanted());
    assert!(matches!(nobody, Err(StoreError::Denied(_))), "{nobody:?}");
    let other = tempfile::tempdir().unwrap();
    Authority::new(other.path()).issue("mux1");
    let stranger = EtcdStore::new(access(other.path(), &etcd.url(), "mux1")).unwrap();
    assert!(matches!(stranger.get("k"), Err(StoreError::Away(_))));
    // A whole node follows with these rights alone.
    let root = store("root");
    apply(&root, &spec(&[1]));
    let controller = Controller::start(Arc::new(root), "one");
    let node = Running::start(Arc::new(mux), Side::Mux, 1, None);
    wait_until("it follows", || node.config().is_some());
    drop(controller);
}
