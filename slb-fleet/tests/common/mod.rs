//! Fleets in this process, and an etcd beside it.

use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use slb_control::Config;
use slb_fleet::cache::Cache;
use slb_fleet::leader::{Leader, LeaderOptions};
use slb_fleet::node::{Node, NodeOptions};
use slb_fleet::rollout::{Side, Stage};
use slb_fleet::store::etcd::{Access, EtcdStore};
use slb_fleet::store::{Condition, MemoryStore, Operation, Store};

/// Says why a test is skipped, or fails where nothing may be.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        assert!(std::env::var_os("SLB_REQUIRE_ALL").is_none(), $($why)*);
        eprintln!("SKIPPED: {}", format!($($why)*));
        return;
    }};
}

/// Name of the fleet.
pub const CLUSTER: &str = "test";

#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(40);
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// A spec of one service: its backends, each at the host of its own number, of 172.16.0.101 on.
pub fn spec(backends: &[u32]) -> String {
    let backends: Vec<String> = backends
        .iter()
        .map(|n| {
            format!(
                "{{ name = \"vm{n}\", address = \"10.10.{n}.11\", host = \"172.16.0.{}\" }}",
                100 + n
            )
        })
        .collect();
    format!(
        "[fleet]\nhash_seed = 7\n\
         [[frontend]]\nname = \"web\"\naddress = \"203.0.113.80\"\n\
         [[pool]]\nname = \"servers\"\nvni = 5001\nbackends = [{}]\n\
         [[probe]]\nname = \"alive\"\nprotocol = \"tcp\"\nport = 80\n\
         [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"servers\"\nprobe = \"alive\"\n\
         protocol = \"tcp\"\nfrontend_port = 80\n",
        backends.join(", ")
    )
}

/// A node, and a program beside it that puts in place what it is to have.
pub struct Running {
    pub node: Arc<Node>,
    pub config: Arc<Mutex<Option<Config>>>,
    /// Refuses generations with a pool of this name.
    pub refuses: Arc<Mutex<Option<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(store: Arc<dyn Store>, side: Side, number: u8, cache: Option<&Path>) -> Self {
        let base = if side == Side::Host { 100 } else { 10 };
        let address: IpAddr = [172, 16, 0, base + number].into();
        let node = Node::start(
            store,
            NodeOptions {
                zone: None,
                cluster: CLUSTER.to_owned(),
                side,
                name: format!("{}{number}", side.name()),
                addresses: vec![address],
                version: "0.1.0".to_owned(),
                cache: cache.map(|path| Cache::open(path).unwrap()),
            },
        );
        let node = Arc::new(node.unwrap());
        let config = Arc::new(Mutex::new(None));
        let refuses = Arc::new(Mutex::new(None::<String>));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (node, config, refuses, stop) = (
                Arc::clone(&node),
                Arc::clone(&config),
                Arc::clone(&refuses),
                Arc::clone(&stop),
            );
            thread::spawn(move || {
                let text = format!("role = \"{}\"\nunderlay = \"{address}\"\n", side.name());
                let own = text.parse().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    if let Some(next) = node.take() {
                        let new = next.spec.config("test", &own).unwrap();
                        let unwanted = refuses.lock().unwrap().clone();
                        if new
                            .pools
                            .iter()
                            .any(|pool| Some(&pool.name) == unwanted.as_ref())
                        {
                            node.refuse(&next.release, "it is unwanted".to_owned());
                        } else {
                            *config.lock().unwrap() = Some(new);
                            node.acknowledge(&next.release);
                            node.set_left(Some(0));
                        }
                    }
                    sleep(Duration::from_millis(2));
                }
            })
        };
        if side == Side::Host {
            node.set_failing(Vec::new());
        }
        Self {
            node,
            config,
            refuses,
            stop,
            thread: Some(thread),
        }
    }

    /// The configuration that is in place, with what the fleet knows.
    pub fn config(&self) -> Option<Config> {
        let mut config = self.config.lock().unwrap().clone()?;
        self.node.apply(&mut config);
        Some(config)
    }

    /// The names of backends that get new flows.
    pub fn serving(&self) -> Vec<String> {
        let Some(config) = self.config() else {
            return Vec::new();
        };
        let Some(rule) = config.rules.first() else {
            return Vec::new();
        };
        let backends = config.pools[rule.pool].backends.iter().enumerate();
        let serving = backends.filter(|&(place, _)| config.serves(rule, place));
        serving.map(|(_, backend)| backend.name.clone()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// A controller on a thread.
pub struct Controller {
    /// Ends it as a crash does: its lease ends by itself.
    crash: Arc<AtomicBool>,
    pub leads: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    pub fn start(store: Arc<dyn Store>, name: &str) -> Self {
        Self::with_drain(store, name, Duration::from_secs(30))
    }

    /// Starts one that waits no longer than `drain` for connections on backends that leave.
    pub fn with_drain(store: Arc<dyn Store>, name: &str, drain: Duration) -> Self {
        let (crash, leads) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let mut leader = Leader::new(
            store,
            LeaderOptions {
                name: name.to_owned(),
                cluster: CLUSTER.to_owned(),
                drain,
            },
        );
        let begin = Instant::now();
        let (crashed, leading) = (Arc::clone(&crash), Arc::clone(&leads));
        let thread = thread::spawn(move || {
            while !crashed.load(Ordering::Relaxed) {
                if leader
                    .turn(begin.elapsed(), Duration::from_millis(20))
                    .is_err()
                {
                    sleep(Duration::from_millis(50));
                }
                leading.store(leader.leads(), Ordering::Relaxed);
            }
        });
        Self {
            crash,
            leads,
            thread: Some(thread),
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.crash.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// The rollout as the store has it.
pub fn stage(store: &dyn Store) -> Stage {
    use slb_fleet::object::{Keys, Object as _};
    let key = Keys::new(CLUSTER).key("state/rollout");
    let entry = store.get(&key).ok().flatten();
    entry.map_or(Stage::Live, |entry| {
        slb_fleet::rollout::Rollout::read(&key, &entry.value)
            .unwrap()
            .stage
    })
}

/// A port that nothing listens at.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// An etcd of one member, which ends with its test.
pub struct Etcd {
    child: Option<Child>,
    pub directory: tempfile::TempDir,
    pub port: u16,
    peer: u16,
    more: Vec<String>,
    scheme: &'static str,
}

impl Etcd {
    /// Starts one; `None` where it is not installed.
    pub fn start() -> Option<Self> {
        Self::with("http", |_| Vec::new())
    }

    /// The same with more arguments, which may name files in its directory.
    pub fn with(scheme: &'static str, more: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        Command::new("etcd").arg("--version").output().ok()?;
        let directory = tempfile::tempdir().unwrap();
        let more = more(directory.path());
        let mut etcd = Self {
            child: None,
            directory,
            port: free_port(),
            peer: free_port(),
            more,
            scheme,
        };
        etcd.run();
        Some(etcd)
    }

    pub fn run(&mut self) {
        let (client, peer) = (
            format!("{}://127.0.0.1:{}", self.scheme, self.port),
            format!("http://127.0.0.1:{}", self.peer),
        );
        let mut command = Command::new("etcd");
        command.arg("--name=one").arg("--log-level=error");
        command
            .arg("--data-dir")
            .arg(self.directory.path().join("data"));
        command.args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ]);
        command.args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        command.arg(format!("--initial-cluster=one={peer}"));
        command
            .args(&self.more)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    pub fn store(&self) -> Arc<EtcdStore> {
        let access = Access::new(&[self.url()], None).unwrap();
        let store = Arc::new(EtcdStore::new(access).unwrap());
        wait_until("etcd answers", || store.get("nothing").is_ok());
        store
    }

    /// Runs `etcdctl`.
    #[track_caller]
    pub fn control(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url()]);
        let output = command.args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}{errors}");
        said
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Applies a spec as `slb apply` does.
pub fn apply(store: &dyn Store, text: &str) {
    let spec = slb_fleet::document::Spec::parse("test", text).unwrap();
    let keys = slb_fleet::object::Keys::new(CLUSTER);
    slb_fleet::fetch::change(store, &keys, |_| Ok(spec.clone())).unwrap();
}

/// Checks the behaviour that every store must have.
pub fn behaves_as_a_store(store: &dyn Store) {
    assert_eq!(store.get("k/1").unwrap(), None);
    let put = |key: &str, value: &str| Operation::put(key, value);
    let first = store.commit(&[], &[put("k/1", "a"), put("k/2", "b"), put("l", "c")]);
    let first = first.unwrap().unwrap();
    let entry = store.get("k/1").unwrap().unwrap();
    assert_eq!(
        (entry.value.as_slice(), entry.created, entry.modified),
        (&b"a"[..], first, first)
    );
    // More than a page.
    let many: Vec<Operation> = (0..100).map(|n| put(&format!("m/{n:03}"), "x")).collect();
    store.commit(&[], &many).unwrap();
    let listing = store.list("m/").unwrap();
    assert_eq!(listing.entries.len(), 100);
    assert!(listing.entries.is_sorted_by_key(|entry| entry.key.clone()));
    assert_eq!(store.list("k/").unwrap().entries.len(), 2);
    // A watch sees what came after its revision, and of its prefix only.
    let mut watch = store.watch("k/", first).unwrap();
    let patience = Duration::from_secs(2);
    let conditions = [Condition::ModifiedIn("k/1".to_owned(), first)];
    let second = store.commit(&conditions, &[put("k/1", "d"), put("l", "e")]);
    let second = second.unwrap().unwrap();
    assert!(second > first);
    let mut seen = Vec::new();
    wait_until("the change is seen", || {
        seen.extend(watch.next(patience).unwrap());
        !seen.is_empty()
    });
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].key(), "k/1");
    // The condition does not hold any more, and nothing changes.
    assert_eq!(store.commit(&conditions, &[put("k/1", "f")]), Ok(None));
    assert_eq!(store.get("k/1").unwrap().unwrap().value, b"d");
    let created = [Condition::CreatedIn("k/1".to_owned(), first)];
    assert!(
        store
            .commit(&created, &[put("k/1", "g")])
            .unwrap()
            .is_some()
    );
    let absent = [Condition::Absent("k/1".to_owned())];
    assert_eq!(store.commit(&absent, &[put("k/1", "h")]), Ok(None));
    let absent = [Condition::Absent("k/9".to_owned())];
    let delete = [Operation::Delete("k/1".to_owned())];
    assert!(store.commit(&absent, &delete).unwrap().is_some());
    assert_eq!(store.get("k/1").unwrap(), None);
    // Leases take their keys with them.
    let lease = store.grant(Duration::from_secs(60)).unwrap();
    let leased = Operation::Put("k/3".to_owned(), b"i".to_vec(), Some(lease));
    store.commit(&[], &[leased]).unwrap();
    store.keep(lease).unwrap();
    assert!(store.get("k/3").unwrap().is_some());
    store.revoke(lease).unwrap();
    assert_eq!(store.get("k/3").unwrap(), None);
    assert_eq!(
        store.keep(lease),
        Err(slb_fleet::store::StoreError::LeaseEnded)
    );
    let mut gone = Vec::new();
    wait_until("the end of the lease is seen", || {
        gone.extend(watch.next(patience).unwrap());
        gone.iter()
            .any(|event| event == &slb_fleet::store::Event::Deleted("k/3".to_owned()))
    });
    // Sizes are checked before anything is sent.
    let long = vec![0; slb_fleet::store::LONGEST_VALUE + 1];
    assert!(store.commit(&[], &[Operation::put("k", long)]).is_err());
    let many = vec![put("k", "v"); slb_fleet::store::MOST_OPERATIONS + 1];
    assert!(store.commit(&[], &many).is_err());
}

/// Puts an object into the store as an operator or a damaged program may.
pub fn put(store: &MemoryStore, key: String, value: Vec<u8>) {
    store.commit(&[], &[Operation::put(key, value)]).unwrap();
}

/// The report that a probe finds a backend to fail.
pub fn fails(name: &str) -> (String, String, String) {
    ("servers".to_owned(), "alive".to_owned(), name.to_owned())
}

/// A controller, two host agents and a mux, which serve `vm1` to `vm3`; the last one's host has no agent.
pub fn fleet(store: &MemoryStore) -> (Controller, Vec<Running>) {
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let controller = Controller::start(Arc::clone(&shared), "one");
    let hosts = (1..=2).map(|n| Running::start(Arc::clone(&shared), Side::Host, n, None));
    let mux = Running::start(Arc::clone(&shared), Side::Mux, 1, None);
    let nodes: Vec<Running> = hosts.chain([mux]).collect();
    apply(store, &spec(&[1, 2, 3]));
    all_serve(&nodes, &["vm1", "vm2", "vm3"]);
    (controller, nodes)
}

/// Waits until backends of these names, and no others, get new flows at all nodes.
#[track_caller]
pub fn all_serve(nodes: &[Running], names: &[&str]) {
    wait_until(&format!("all serve {names:?}"), || {
        nodes.iter().all(|node| node.serving() == names)
    });
}
