//! A controller reports its own state and that of its fleet: at its socket, by HTTP, and to a real Prometheus, whose answers
//! the fleet's board shows.
//!
//! The last needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{Process, World, lacking};
use serde_json::Value;

const SLB: &str = env!("CARGO_BIN_EXE_slb");

/// An etcd and the controllers of a fleet, on the loopback interface of a machine.
struct Fleet<'w> {
    /// The machine; `None`: this one.
    world: Option<&'w World>,
    folder: PathBuf,
    /// Ports of etcd, for clients and for other members, and of the metrics of two controllers.
    ports: [u16; 4],
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Fleet<'_> {
    fn command(&self, command: &str) -> Command {
        if let Some(world) = self.world {
            return world.command("m", command);
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {command}")]);
        shell
    }

    fn start(&self, command: &str) -> Process {
        let mut command = self.command(command);
        Process(command.stdout(Stdio::null()).spawn().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    fn start_etcd(&self) -> Process {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.ports[1]));
        self.start(&format!(
            "etcd --name one --data-dir {} --log-level error --listen-client-urls {client} \
             --advertise-client-urls {client} --listen-peer-urls {peer} \
             --initial-advertise-peer-urls {peer} --initial-cluster one={peer} 2>/dev/null",
            self.path("etcd")
        ))
    }

    /// Puts a node's report into the store, or takes it away: its agent is there, or gone.
    #[track_caller]
    fn report(&self, key: &str, report: Option<&str>) {
        let key = format!("/slb/1/default/node/{key}");
        let change = match report {
            Some(report) => format!("put {key} '{report}'"),
            None => format!("del {key}"),
        };
        let etcdctl = format!("etcdctl --endpoints {} {change}", self.url());
        let output = self.command(&etcdctl).env("ETCDCTL_API", "3").output();
        assert!(output.unwrap().status.success(), "{change}");
    }

    /// Starts a controller; its log goes to a file.
    fn start_controller(&self, number: usize) -> Process {
        self.start(&format!(
            "{SLB} controller --fleet {} --name c{number} --socket {} --metrics 127.0.0.1:{} 2>>{}",
            self.url(),
            self.path(&format!("c{number}.sock")),
            self.ports[1 + number],
            self.path(&format!("c{number}.log"))
        ))
    }

    fn log(&self, number: usize) -> String {
        fs::read_to_string(self.path(&format!("c{number}.log"))).unwrap_or_default()
    }

    /// Asks the socket of a controller by a command of slb.
    fn asked(&self, number: usize, command: &str) -> Output {
        let socket = self.path(&format!("c{number}.sock"));
        let command = format!("{SLB} {command} --socket {socket}");
        self.command(&command).output().unwrap()
    }

    fn status(&self, number: usize) -> Value {
        let output = self.asked(number, "status --format json");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn table(&self, number: usize) -> String {
        let output = self.asked(number, "status --once");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The HTTP status and the body of an answer.
    fn get(&self, number: usize, path: &str) -> (String, String) {
        let port = self.ports[1 + number];
        let curl = format!("curl -sS -m 5 -w '\\n%{{http_code}}' http://127.0.0.1:{port}{path}");
        let output = self.command(&curl).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = said.rsplit_once('\n').unwrap_or_default();
        (code.to_owned(), body.trim_end().to_owned())
    }

    /// The value of a metric; `None` where it is left out.
    fn metric(&self, number: usize, name: &str) -> Option<f64> {
        let (_, page) = self.get(number, "/metrics");
        let values = page.lines().filter_map(|line| line.strip_prefix(name));
        // Braces are there without labels too.
        let values = values.map(|rest| rest.strip_prefix("{}").unwrap_or(rest));
        let mut values = values.filter_map(|rest| rest.strip_prefix(' ')?.parse().ok());
        values.next()
    }

    #[track_caller]
    fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            let all = [1, 2].map(|number| (self.table(number), self.log(number)));
            assert!(Instant::now() < end, "{what}: {all:?}");
            sleep(Duration::from_millis(100));
        }
    }

    /// Applies a configuration with one backend.
    #[track_caller]
    fn apply(&self, backend: &str) {
        let text = format!(
            "[fleet]\nhash_seed = 7\n[[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
             [[pool]]\nname = \"servers\"\nvni = 5001\nbackends = [{{ name = \"{backend}\", \
             address = \"10.10.1.11\", host = \"172.16.0.101\" }}]\n\
             [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"servers\"\nprotocol = \"tcp\"\n\
             frontend_port = 80\n"
        );
        fs::write(self.path("web.toml"), text).unwrap();
        let apply = format!(
            "{SLB} apply --fleet {} -f {}",
            self.url(),
            self.path("web.toml")
        );
        let output = self.command(&apply).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// The controller that leads, and the one that waits, once both know it.
    #[track_caller]
    fn wait_for_a_leader(&self) -> (usize, usize) {
        let mut found = (0, 0);
        self.wait_until("one leads, and the other knows it", || {
            let all = [1, 2].map(|number| self.status(number));
            let place = usize::from(all[1]["leads"] == true);
            found = (place + 1, 2 - place);
            let (leader, other) = (&all[place], &all[1 - place]);
            let name = format!("c{}", found.0);
            leader["leads"] == true
                && other["leads"] == false
                && [leader, other].iter().all(|own| own["leader"] == *name)
        });
        found
    }
}

#[test]
fn a_controller_says_whether_it_leads_and_what_its_fleet_does() {
    for tool in ["etcd", "etcdctl", "curl"] {
        if !common::sh(&format!("command -v {tool}")) {
            skip!("{tool} is not installed");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let fleet = Fleet {
        world: None,
        folder: folder.path().to_owned(),
        ports: [(); 4].map(|()| free_port()),
    };
    // Without a store, it is well and not ready.
    let mut controllers: Vec<Process> = (1..=2).map(|n| fleet.start_controller(n)).collect();
    fleet.wait_until("that there is no store is known", || {
        let (code, said) = fleet.get(1, "/readyz");
        code == "503" && said.contains("not ready: no store for ") && !said.contains("yet")
    });
    assert_eq!(fleet.get(1, "/healthz"), ("200".into(), "well".into()));
    fleet.wait_until("its absence is counted", || {
        fleet.metric(1, "slb_fleet_store_away_seconds") > Some(0.0)
    });
    assert_eq!(fleet.metric(1, "slb_controller_leads"), Some(0.0));
    assert_eq!(fleet.metric(1, "slb_controller_generation"), None);
    let table = fleet.table(1);
    assert!(
        table.contains("waits, and knows of no controller that leads"),
        "{table}"
    );
    assert!(table.contains("store: away for "), "{table}");
    assert!(
        table.contains("fault: the store does not answer"),
        "{table}"
    );

    let _etcd = fleet.start_etcd();
    let (leader, other) = fleet.wait_for_a_leader();
    for number in [1, 2] {
        assert_eq!(fleet.get(number, "/readyz"), ("200".into(), "ready".into()));
        assert!(fleet.log(number).contains("the store answers again"));
        assert_eq!(
            fleet.metric(number, "slb_fleet_store_away_seconds"),
            Some(0.0)
        );
    }
    assert_eq!(fleet.metric(leader, "slb_controller_leads"), Some(1.0));
    assert_eq!(fleet.metric(other, "slb_controller_leads"), Some(0.0));
    let table = fleet.table(other);
    assert!(
        table.contains(&format!("waits: c{leader} leads")),
        "{table}"
    );
    assert!(table.contains("store: answers, for "), "{table}");

    // A host refuses the second generation, and the rollout stops there.
    let report = |live: u32, refused: &str| {
        format!(
            "{{\"schema\":1,\"addresses\":[\"172.16.0.101\"],\"version\":\"0.1\",\"held\":{live},\
             \"live\":{live},\"refused\":{refused},\"left\":0}}"
        )
    };
    let refusal = "{\"generation\":2,\"why\":\"it is unwanted\"}";
    fleet.report("host/h1", Some(&report(1, refusal)));
    fleet.report("mux/m1", Some("{"));
    fleet.apply("vm1");
    fleet.wait_until("the first generation is given out", || {
        fleet.status(leader)["fleet"]["generation"] == 1
    });
    fleet.wait_until("and live", || {
        fleet.status(leader)["fleet"]["stage"] == "live"
    });
    fleet.apply("vm2");
    fleet.wait_until("the second is refused", || {
        fleet.status(leader)["fleet"]["stage"] == "stopped"
    });
    for (name, value) in [
        ("slb_controller_generation", 2.0),
        ("slb_controller_stage{stage=\"stopped\"}", 1.0),
        ("slb_controller_stage{stage=\"live\"}", 0.0),
        (
            "slb_controller_nodes{role=\"host\",state=\"refusing\"}",
            1.0,
        ),
        ("slb_controller_nodes{role=\"host\",state=\"gone\"}", 0.0),
        (
            "slb_controller_nodes{role=\"mux\",state=\"unreadable\"}",
            1.0,
        ),
        (
            "slb_controller_node_generation{role=\"host\",node=\"h1\"}",
            1.0,
        ),
    ] {
        assert_eq!(fleet.metric(leader, name), Some(value), "{name}");
        assert_eq!(fleet.metric(other, name), None, "{name}");
    }
    let table = fleet.table(leader);
    for said in [
        &*format!("controller c{leader}: pid "),
        "leads, for ",
        "generation: 2, stopped",
        "refused by host h1: it is unwanted",
        "2: it is unwanted",
        "its report cannot be read",
    ] {
        assert!(table.contains(said), "{said}: {table}");
    }
    // The store itself says the same.
    let command = format!("{SLB} fleet status --fleet {}", fleet.url());
    let said = fleet.command(&command).output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(table.ends_with(&said), "{said}{table}");
    fleet.report("host/h1", None);
    fleet.wait_until("the agent is gone", || {
        let gone = "slb_controller_nodes{role=\"host\",state=\"gone\"}";
        fleet.metric(leader, gone) == Some(1.0)
    });
    assert!(fleet.table(leader).contains("slb fleet forget h1"));

    // A controller has no packets to look at.
    for command in ["top", "drops", "flows"] {
        let output = fleet.asked(leader, command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{command}");
        assert!(said.contains("moves no packets"), "{command}: {said}");
    }

    // The one that leads is killed, and its place is taken. One that ends takes its socket with it.
    controllers[leader - 1].signal("KILL");
    fleet.wait_until("the other leads", || fleet.status(other)["leads"] == true);
    fleet.wait_until("it has the fleet", || {
        fleet.metric(other, "slb_controller_generation") >= Some(2.0)
    });
    let own = format!("controller: c{other}\ngeneration: ");
    assert!(fleet.table(other).contains(&own), "{}", fleet.table(other));
    let ended = controllers.swap_remove(other - 1);
    ended.signal("TERM");
    ended.finish();
    assert!(!Path::new(&fleet.path(&format!("c{other}.sock"))).exists());
}

#[test]
#[ignore = "needs root"]
fn a_prometheus_answers_the_queries_of_the_fleets_board() {
    if let Some(why) = lacking(&["etcd", "etcdctl", "prometheus"]) {
        skip!("{why}");
    }
    let world = World::new("ct", &["m"]);
    let fleet = Fleet {
        world: Some(&world),
        folder: world.path(""),
        ports: [2379, 2380, 9101, 9102],
    };
    let _etcd = fleet.start_etcd();
    let _controllers = [1, 2].map(|number| fleet.start_controller(number));
    let node = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\nmtu = 1600\n";
    fs::write(fleet.path("node.toml"), node).unwrap();
    let _mux = fleet.start(&format!(
        "{SLB} mux --config {} --io tun:slb0 --fleet {} --fleet-name m1 --socket {} \
         --metrics 127.0.0.1:9100 2>>{}",
        fleet.path("node.toml"),
        fleet.url(),
        fleet.path("m1.sock"),
        fleet.path("c1.log")
    ));
    let (leader, _) = fleet.wait_for_a_leader();
    fleet.apply("vm1");
    fleet.wait_until("the mux has it", || {
        let own = "slb_controller_node_generation{role=\"mux\",node=\"m1\"}";
        fleet.metric(leader, own) == Some(1.0)
    });
    // A pool without probes has no backend that fails, and says so.
    let failing = "slb_controller_failing_backends{pool=\"servers\"}";
    assert_eq!(fleet.metric(leader, failing), Some(0.0));
    let jobs = "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: slb\n  static_configs: \
                [{targets: [\"127.0.0.1:9100\", \"127.0.0.1:9101\", \"127.0.0.1:9102\"]}]\n";
    fs::write(fleet.path("prometheus.yml"), jobs).unwrap();
    let _prometheus = fleet.start(&format!(
        "prometheus --config.file={} --storage.tsdb.path={} --web.listen-address=127.0.0.1:9090 2>>{}",
        fleet.path("prometheus.yml"),
        fleet.path("data"),
        fleet.path("prometheus.log")
    ));
    let ask = |query: &str| -> Value {
        let curl = format!(
            "curl -sS -m 5 -G http://127.0.0.1:9090/api/v1/query --data-urlencode 'query={query}'"
        );
        let output = fleet.command(&curl).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/grafana/fleet.json");
    let board: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut asked = BTreeSet::new();
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let query = expression.replace("$instance", ".*");
            assert_ne!(query, expression, "the board's nodes are not chosen");
            fleet.wait_until(&query, || {
                let answer = ask(&query);
                let found = answer["data"]["result"].as_array();
                found.is_some_and(|found| !found.is_empty())
            });
            asked.insert(query);
        }
    }
    assert!(asked.len() >= 12, "{asked:?}");
    let value = |query: &str| {
        let value = ask(query)["data"]["result"][0]["value"][1].take();
        value.as_str().map(str::to_owned)
    };
    fleet.wait_until("one of two leads", || {
        value("sum(slb_controller_leads)").as_deref() == Some("1")
            && value("count(slb_controller_leads)").as_deref() == Some("2")
            && value("max(slb_controller_generation)").as_deref() == Some("1")
    });
}
