//! A fleet on three etcds, with two controllers, three muxes and three hosts, each a process on a machine of its own.
//!
//! In the data centre of [`common::lab`], while downloads and short requests go on: changes are applied, etcd's leader
//! and the leading controller are killed, etcd is away, compacted and back, and a mux is cut off from it.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use common::lab::{Change, Io, Lab, NO_CHANGE, SLOW, TOOLS, VIP};
use common::world::{Process, World, lacking};
use serde_json::Value;

const DOWNLOADS: usize = 60;
const UPLOADS: usize = 20;
const SLB: &str = env!("CARGO_BIN_EXE_slb");
/// Longer than the leases of nodes and controllers, and than the time after which muxes go by their own probes.
const OUTAGE: Duration = Duration::from_secs(60);

/// The ports that clients of the members use.
fn urls() -> String {
    let urls = (1..=3).map(|n| format!("http://172.16.0.1:{}", 2000 + n));
    urls.collect::<Vec<_>>().join(",")
}

pub(crate) fn start_etcd(world: &World, number: u32) -> Process {
    let peer = |n: u32| format!("http://127.0.0.1:{}", 2100 + n);
    let cluster: Vec<String> = (1..=3).map(|n| format!("m{n}={}", peer(n))).collect();
    let (client, own) = (format!("http://172.16.0.1:{}", 2000 + number), peer(number));
    let data = world.path(&format!("etcd{number}"));
    let mut command = world.command(
        "router",
        &format!(
            "etcd --name m{number} --data-dir {} --log-level error --listen-client-urls {client} \
             --advertise-client-urls {client} --listen-peer-urls {own} --initial-advertise-peer-urls {own} \
             --initial-cluster {} --initial-cluster-state new",
            data.display(),
            cluster.join(",")
        ),
    );
    Process(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

/// Starts three members of etcd, and two controllers once they answer.
pub(crate) fn start_store(lab: &Lab) -> (Vec<Process>, Vec<Process>) {
    let etcds = (1..=3).map(|n| start_etcd(&lab.world, n)).collect();
    lab.wait_until("etcd answers", || {
        let health = format!("etcdctl --endpoints {} endpoint health", urls());
        let mut command = lab.world.command("router", &health);
        let output = command.env("ETCDCTL_API", "3").output();
        output.is_ok_and(|output| output.status.success())
    });
    let controllers = (1..=2).map(|n| start_controller(&lab.world, n)).collect();
    (etcds, controllers)
}

pub(crate) fn start_controller(world: &World, number: u32) -> Process {
    world.start(
        "router",
        &format!(
            "{SLB} controller --fleet {} --name c{number} --drain 20 --log-level warn",
            urls()
        ),
    )
}

/// Returns true if a line of `[node]` is for all nodes.
fn is_common(line: &str) -> bool {
    line.starts_with("hash_seed") || line.starts_with("muxes")
}

fn start_node(lab: &Lab, role: &str, number: u32) -> Process {
    let own = if role == "mux" { 10 } else { 100 } + number;
    start_node_of(lab, role, number, &lab.configuration(role, own, NO_CHANGE))
}

/// Starts a node with what a whole configuration says of it alone.
pub(crate) fn start_node_of(lab: &Lab, role: &str, number: u32, whole: &str) -> Process {
    let machine = format!("{role}{number}");
    let (node, _) = whole.split_once("[[frontend]]").unwrap();
    let own = node.lines().filter(|line| !is_common(line));
    let own: Vec<&str> = own.collect();
    let config = lab.write(&format!("{machine}.toml"), &own.join("\n"));
    let (io, status) = (lab.devices(role), lab.socket(&machine));
    let cache = lab.world.path(&format!("{machine}.cache"));
    lab.world.start(
        &machine,
        &format!(
            "{SLB} {role} --config {config} {io} --status {status} --cpus {} --log-level warn --fleet {} \
             --fleet-name {machine} --cache {}",
            number % 2,
            urls(),
            cache.display()
        ),
    )
}

/// Applies a spec, and waits until all nodes have it.
fn apply(lab: &Lab, change: Change) {
    apply_all_of(lab, &lab.configuration("mux", 1, change));
}

/// Applies what a whole configuration says of all nodes, and waits until they have it.
pub(crate) fn apply_all_of(lab: &Lab, whole: &str) {
    let (node, rest) = whole.split_once("[[frontend]]").unwrap();
    let common = node.lines().filter(|line| is_common(line));
    let common: Vec<&str> = common.collect();
    let text = format!("[fleet]\n{}\n[[frontend]]{rest}", common.join("\n"));
    let path = lab.write("fleet.toml", &text);
    let said = lab.world.on(
        "router",
        &format!("{SLB} apply --fleet {} -f {path} --wait 60", urls()),
    );
    assert!(said.contains("live: generation"), "{said}");
}

pub(crate) fn fleet_status(lab: &Lab) -> Value {
    let command = format!("{SLB} fleet status --fleet {} --format json", urls());
    serde_json::from_str(&lab.world.on("router", &command)).unwrap()
}

/// Waits until all muxes choose alike, and have so many backends with weight.
pub(crate) fn tables_are_equal(lab: &Lab) {
    lab.wait_until("all muxes have the same tables", || {
        let all: Vec<Value> = lab
            .muxes
            .keys()
            .map(|number| lab.status(&format!("mux{number}"))["fleet"].take())
            .collect();
        let first = &all[0];
        assert!(first["tables"].is_string(), "{first}");
        all.iter()
            .all(|own| own["tables"] == first["tables"] && own["live"] == first["live"])
    });
}

/// Asks for a short page again and again, each time by another connection.
struct Asking {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    thread: Option<thread::JoinHandle<Vec<String>>>,
}

impl Asking {
    fn begin(lab: &Lab) -> Self {
        let (stop, asked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let url = format!("http://{VIP}/?n=[1-10]");
        let curl = format!(
            "curl -sS -m 5 -o /dev/null -w '%{{http_code}}\\n' -H 'Connection: close' '{url}'"
        );
        let space = lab.world.space("client");
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&asked));
        let thread = thread::spawn(move || {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let mut command = std::process::Command::new("ip");
                command.args(["netns", "exec", &space, "sh", "-c", &curl]);
                let output = command.output().unwrap();
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let good = said.lines().filter(|line| *line == "200").count();
                counted.fetch_add(good as u32, Ordering::Relaxed);
                if good != 10 {
                    failed.push(said + &String::from_utf8_lossy(&output.stderr));
                }
                sleep(Duration::from_millis(50));
            }
            failed
        });
        Self {
            stop,
            asked,
            thread: Some(thread),
        }
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.thread.take().unwrap().join().unwrap();
        assert!(failed.is_empty(), "{failed:?}");
        assert!(self.asked.load(Ordering::Relaxed) > 100);
    }
}

fn downloads(lab: &Lab) -> Process {
    let curl = "curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max 100 -m 60";
    lab.world.start(
        "client",
        &format!(
            "{curl} -w '%{{http_code}} %{{size_download}}\\n' -o /dev/null \
             'http://{VIP}/slow?n=[1-{DOWNLOADS}]'"
        ),
    )
}

fn all_came(downloads: Process) {
    let said = downloads.finish();
    let complete = format!("200 {SLOW}");
    let count = said.lines().filter(|line| **line == complete).count();
    assert_eq!(count, DOWNLOADS, "{said}");
}

/// Uploads of a round, which take about as long as downloads.
fn uploads(lab: &Lab, round: u32) -> Process {
    let whole = lab.world.path("slow").display().to_string();
    let curl = "curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max 100 -m 60 --limit-rate 128k";
    lab.world.start(
        "client",
        &format!(
            "{curl} -w '%{{http_code}}\\n' -o /dev/null -T {whole} 'http://{VIP}/put/{round}-[1-{UPLOADS}]'"
        ),
    )
}

fn all_went(lab: &Lab, uploads: Process, round: u32) {
    let said = uploads.finish();
    let is_stored = |line: &&str| matches!(*line, "201" | "204");
    assert_eq!(said.lines().filter(is_stored).count(), UPLOADS, "{said}");
    let stored = (1..=3).flat_map(|vm| {
        let files = fs::read_dir(lab.world.path(&format!("www-vm{vm}/put"))).unwrap();
        files.map(Result::unwrap)
    });
    let of_round = stored.filter(|file| {
        let name = file.file_name();
        name.to_string_lossy().starts_with(&format!("{round}-"))
    });
    let whole = of_round.filter(|file| file.metadata().unwrap().len() == SLOW as u64);
    assert_eq!(whole.count(), UPLOADS);
}

fn with(backends: &'static [(u32, u32)]) -> Change {
    Change {
        backends,
        ..NO_CHANGE
    }
}

#[test]
#[ignore = "needs root"]
fn a_fleet_goes_on_whatever_becomes_of_its_store_and_its_controllers() {
    if let Some(why) = lacking(&[&TOOLS[..], &["etcd", "etcdctl"]].concat()) {
        skip!("{why}");
    }
    let mut lab = Lab::new(Io::AfXdp, (3, 3));
    let (mut etcds, mut controllers) = start_store(&lab);
    for number in 1..=3 {
        let host = start_node(&lab, "host", number);
        lab.hosts.insert(number, host);
        let mux = start_node(&lab, "mux", number);
        lab.muxes.insert(number, mux);
    }
    sleep(Duration::from_secs(1));
    apply(&lab, with(&[(1, 1), (2, 1)]));
    lab.wait_for_paths(3);
    lab.wait_until("the service answers", || {
        let curl = format!("curl -sS -m 1 http://{VIP}/");
        lab.world
            .command("client", &curl)
            .output()
            .is_ok_and(|page| page.status.success())
    });
    tables_are_equal(&lab);
    let asking = Asking::begin(&lab);

    // A backend comes, and one leaves with connections on it: it is waited for.
    let begun = downloads(&lab);
    sleep(Duration::from_secs(1));
    apply(&lab, with(&[(1, 1), (2, 1), (3, 1)]));
    tables_are_equal(&lab);
    let begin = Instant::now();
    apply(&lab, with(&[(1, 1), (2, 1)]));
    assert!(
        begin.elapsed() > Duration::from_secs(2),
        "nothing was drained"
    );
    tables_are_equal(&lab);
    all_came(begun);

    // etcd's leader is killed, and then the controller that leads.
    let begun = downloads(&lab);
    let leader = (1..=3).find(|n| {
        let status = format!(
            "etcdctl --endpoints http://172.16.0.1:{} -w json endpoint status",
            2000 + n
        );
        let mut command = lab.world.command("router", &status);
        let output = command.env("ETCDCTL_API", "3").output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let status = &status[0]["Status"];
        status["leader"] == status["header"]["member_id"]
    });
    let leader = leader.unwrap() as usize - 1;
    etcds[leader].signal("KILL");
    apply(&lab, with(&[(1, 1), (2, 1), (3, 1)]));
    tables_are_equal(&lab);
    etcds[leader] = start_etcd(&lab.world, leader as u32 + 1);
    let name = fleet_status(&lab)["controller"]
        .as_str()
        .unwrap()
        .to_owned();
    let place = usize::from(name == "c2");
    controllers[place].signal("KILL");
    apply(&lab, with(&[(1, 2), (2, 1), (3, 1)]));
    tables_are_equal(&lab);
    assert_ne!(fleet_status(&lab)["controller"], name.as_str());
    controllers[place] = start_controller(&lab.world, place as u32 + 1);
    all_came(begun);

    // etcd is away for longer than any lease. A mux that starts meanwhile has its cache.
    let begun = downloads(&lab);
    sleep(Duration::from_secs(1));
    etcds.iter().for_each(|etcd| etcd.signal("STOP"));
    let away = Instant::now();
    lab.wait_until("the muxes know", || {
        lab.status("mux1")["fleet"]["autonomous"] == true
    });
    all_came(begun);
    // What is under way at a mux that is killed goes on at another.
    let begun = downloads(&lab);
    sleep(Duration::from_secs(1));
    asking.end();
    lab.muxes[&3].signal("KILL");
    lab.muxes.remove(&3);
    lab.wait_for_paths(2);
    let mux = start_node(&lab, "mux", 3);
    lab.muxes.insert(3, mux);
    lab.wait_for_paths(3);
    assert!(!lab.status("mux3")["fleet"]["away"].is_null());
    tables_are_equal(&lab);
    let asking = Asking::begin(&lab);
    // Connections begin and end for as long as it takes.
    all_came(begun);
    let mut rounds = 0;
    while away.elapsed() < OUTAGE {
        rounds += 1;
        let (begun, sent) = (downloads(&lab), uploads(&lab, rounds));
        all_came(begun);
        all_went(&lab, sent, rounds);
    }
    assert!(rounds > 2, "{rounds} rounds");
    assert_eq!(lab.status("mux1")["fleet"]["autonomous"], true);
    tables_are_equal(&lab);
    let begun = downloads(&lab);
    etcds.iter().for_each(|etcd| etcd.signal("CONT"));
    lab.wait_until("the store is back", || {
        (1..=3).all(|n| lab.status(&format!("mux{n}"))["fleet"]["away"].is_null())
    });
    all_came(begun);
    apply(&lab, with(&[(1, 1), (2, 1), (3, 1)]));
    tables_are_equal(&lab);

    // One mux is cut off from the store meanwhile, and the past is compacted.
    let cut = "nft add table ip cut; nft add chain ip cut out { type filter hook output priority 0 \\; }; \
               nft add rule ip cut out tcp dport 2001-2003 drop";
    let cut = lab.write("cut.sh", &cut.replace("\\;", "';'"));
    lab.world.on("mux2", &format!("sh {cut}"));
    lab.wait_until("mux2 is cut off", || {
        !lab.status("mux2")["fleet"]["away"].is_null()
    });
    for weights in [
        &[(1, 3), (2, 1), (3, 1)],
        &[(1, 1), (2, 5), (3, 1)],
        &[(1, 1), (2, 1), (3, 2)],
    ] {
        apply(&lab, with(weights));
    }
    let status = format!(
        "etcdctl --endpoints {} get /slb -w json --prefix --limit 1",
        urls()
    );
    let mut command = lab.world.command("router", &status);
    let listing = command.env("ETCDCTL_API", "3").output().unwrap();
    let listing: Value = serde_json::from_slice(&listing.stdout).unwrap();
    let revision = listing["header"]["revision"].as_u64().unwrap();
    let compact = format!("etcdctl --endpoints {} compact {revision}", urls());
    let compacted = lab
        .world
        .command("router", &compact)
        .env("ETCDCTL_API", "3")
        .output();
    assert!(compacted.unwrap().status.success());
    lab.world.on("mux2", "nft delete table ip cut");
    tables_are_equal(&lab);
    asking.end();

    // A host that is killed takes its vms out within its lease and a second.
    lab.hosts[&3].signal("KILL");
    let begin = Instant::now();
    lab.wait_until("vm3 is out", || {
        let backends = lab.status("mux1")["backends"].take();
        let backends = backends.as_array().unwrap();
        backends
            .iter()
            .any(|own| own["backend"] == "vm3" && own["state"] == "unhealthy")
    });
    assert!(
        begin.elapsed() < Duration::from_secs(11),
        "{:?}",
        begin.elapsed()
    );
    tables_are_equal(&lab);
    drop(fs::remove_file(lab.world.path("fleet.toml")));
}
