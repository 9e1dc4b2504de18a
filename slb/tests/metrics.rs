//! Metrics: their page has all of them, alerts and boards ask for no others, and a real Prometheus answers the boards'
//! queries.
//!
//! The last needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::lab::Io;
use common::sh;
use common::site::{DIP, Site};
use common::world::{lacking, peer};
use serde_json::Value;

const VIP: &str = "20.20.20.101";
const OUT: &str = "20.20.20.200";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sources(folder: &Path, found: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false => *found += &fs::read_to_string(path).unwrap(),
        }
    }
}

/// The words of a text that begin with a prefix and go on with small letters.
fn words(text: &str, prefix: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    words
        .filter(|word| word.starts_with(prefix) && word.len() > prefix.len())
        .map(str::to_owned)
        .collect()
}

/// The names of metrics in the sources, without what Prometheus appends.
fn made() -> BTreeSet<String> {
    let mut text = String::new();
    sources(&root().join("slb/src/report"), &mut text);
    sources(&root().join("slb/src/live"), &mut text);
    sources(&root().join("slb/src/fleet"), &mut text);
    let strings = text.split('"').skip(1).step_by(2);
    let names = strings.filter(|name| {
        let is_name = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        name.starts_with("slb_") && is_name
    });
    names.map(str::to_owned).collect()
}

/// The names of metrics in the first column of the page's tables.
fn listed() -> BTreeSet<String> {
    let page = read("docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `slb_"));
    rows.map(|row| row.split('`').nth(1).unwrap().to_owned())
        .collect()
}

/// A name without what Prometheus appends to it.
fn bare(name: &str, known: &BTreeSet<String>) -> String {
    let ends = ["_total", "_bucket", "_sum", "_count"];
    let mut ends = ends.iter().filter_map(|end| name.strip_suffix(end));
    let bare = ends.find(|name| known.contains(*name));
    bare.unwrap_or(name).to_owned()
}

#[test]
fn the_page_has_every_metric_and_no_other() {
    let made = made();
    assert!(made.len() > 40, "{made:?}");
    assert_eq!(listed(), made);
}

#[test]
fn boards_and_alerts_ask_for_metrics_that_are_there() {
    let known = listed();
    for file in [
        "examples/grafana/mux.json",
        "examples/grafana/host.json",
        "examples/grafana/proxy.json",
        "examples/grafana/fleet.json",
        "examples/prometheus/alerts.yml",
        "examples/prometheus/alerts_test.yml",
    ] {
        let names = words(&read(file), "slb_");
        assert!(names.len() > 6, "{file}: {names:?}");
        for name in names {
            assert!(known.contains(&bare(&name, &known)), "{file}: {name}");
        }
    }
}

#[test]
fn alert_rules_are_good_and_fire_when_they_should() {
    if !common::has("promtool") {
        skip!("promtool is not installed");
    }
    for (command, file) in [("check", "alerts.yml"), ("test", "alerts_test.yml")] {
        let mut promtool = Command::new("promtool");
        promtool.args([command, "rules", file]);
        let output = promtool
            .current_dir(root().join("examples/prometheus"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

/// A node's configuration; `of_rule` are further fields of the rule for the vm's server.
fn configuration(role: &str, (number, of_rule, more): (u32, &str, &str)) -> String {
    format!(
        "[node]\nrole = \"{role}\"\nhash_seed = 7\nmtu = 1600\nunderlay = \"172.17.0.{number}\"\n\
         muxes = [\"172.17.0.11\"]\n\
         [[frontend]]\nname = \"web\"\naddress = \"{VIP}\"\n\
         [[frontend]]\nname = \"out\"\naddress = \"{OUT}\"\n\
         [[pool]]\nname = \"vms\"\nvni = 5001\n\
         backends = [{{ name = \"vm1\", address = \"{DIP}\", host = \"172.17.0.101\", \
         mac = \"02:00:0a:0a:01:0b\" }}]\n\
         [[probe]]\nname = \"tcp\"\nprotocol = \"tcp\"\nport = 8000\ninterval = \"5s\"\ntimeout = \"1s\"\n\
         [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"vms\"\nprotocol = \"tcp\"\n\
         frontend_port = 80\nbackend_port = 8000\n{of_rule}\
         [[outbound_rule]]\nname = \"out\"\nfrontends = [\"out\"]\npool = \"vms\"\n{more}"
    )
}

const PROXY: &str = "[node]\nrole = \"proxy\"\n\
    [[frontend]]\nname = \"web\"\naddress = \"20.20.20.102\"\n\
    [[pool]]\nname = \"servers\"\nbackends = [{ name = \"one\", address = \"10.99.1.1\" }]\n\
    [[probe]]\nname = \"tcp\"\nprotocol = \"tcp\"\nport = 8000\ninterval = \"5s\"\ntimeout = \"1s\"\n\
    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"servers\"\nprobe = \"tcp\"\nprotocol = \"tcp\"\n\
    frontend_port = 80\n";

/// Rule and pool of a mux whose backend answers no probe.
const SILENT: &str = "[[pool]]\nname = \"silent\"\nvni = 5002\n\
    backends = [{ name = \"none\", address = \"172.16.0.1\", host = \"172.17.0.101\" }]\n\
    [[rule]]\nname = \"silent\"\nfrontend = \"out\"\npool = \"silent\"\nprobe = \"tcp\"\nprotocol = \"udp\"\n\
    frontend_port = 9\n";

#[test]
#[ignore = "needs root"]
fn a_prometheus_answers_the_queries_of_the_boards_and_availability_is_measured() {
    if let Some(why) = lacking(&["ethtool", "ss", "prometheus"]) {
        skip!("{why}");
    }
    let site = Site::new(Io::Tun, "mt", (1, &["px"]), &[VIP, OUT]);
    let world = &site.world;
    let slb = env!("CARGO_BIN_EXE_slb");
    let path = |name: &str| world.path(name).display().to_string();
    fs::write(
        world.path("mux.toml"),
        configuration("mux", (11, "", SILENT)),
    )
    .unwrap();
    let probed = configuration("host", (101, "probe = \"tcp\"\n", ""));
    fs::write(world.path("host.toml"), probed).unwrap();
    fs::write(world.path("proxy.toml"), PROXY).unwrap();
    fs::create_dir(world.path("files")).unwrap();
    fs::write(world.path("files/blob"), vec![b'x'; 100_000]).unwrap();
    let server = world.start("vm1", &peer(&format!("files {} 8000", path("files"))));
    let _nodes = [
        (
            "host",
            "host",
            site.devices("host", 1),
            "172.16.0.101",
            "--probe-vips",
        ),
        (
            "mux",
            "mux",
            site.devices("mux", 1),
            "172.16.0.11",
            "--probe-vips",
        ),
        (
            "px",
            "proxy",
            "--io frontend=tun:front --io backend=tun:back".to_owned(),
            "127.0.0.1",
            "",
        ),
    ]
    .map(|(machine, role, io, address, more)| {
        let options = format!(
            "--config {} {io} --socket {} --metrics {address}:9100 {more} --log-level warn 2>>{}",
            path(&format!("{role}.toml")),
            path(&format!("{role}.sock")),
            path("log")
        );
        world.start(machine, &format!("{slb} {role} {options}"))
    });
    let metrics = |machine: &str, address: &str| {
        let curl = format!("curl -sS -m 5 http://{address}:9100/metrics");
        let output = world.command(machine, &curl).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let log = || fs::read_to_string(world.path("log")).unwrap_or_default();
    let wait_until = |what: &str, is_so: &mut dyn FnMut() -> bool| {
        let end = Instant::now() + Duration::from_secs(40);
        while !is_so() {
            let seen = metrics("mux", "172.16.0.11");
            let seen: Vec<&str> = seen.lines().filter(|line| line.contains("vip")).collect();
            assert!(
                Instant::now() < end,
                "waited in vain: {what}: {}{seen:#?}",
                log()
            );
            sleep(Duration::from_millis(200));
        }
    };

    // The whole way to the vm and back, from the mux and from the host.
    let labels = format!(
        "{{frontend=\"web\",rule=\"http\",address=\"{VIP}\",port=\"80\",protocol=\"tcp\"}}"
    );
    let is = |machine: &str, address: &str, value: &str| {
        let line = format!("slb_vip_available{labels} {value}");
        metrics(machine, address).lines().any(|own| own == line)
    };
    for (machine, address) in [("mux", "172.16.0.11"), ("host", "172.16.0.101")] {
        wait_until("the VIP is answered", &mut || is(machine, address, "1.0"));
    }

    // Prometheus beside the client, with a job for each board.
    let targets = [("mux", "172.16.0.11"), ("host", "172.16.0.101")];
    let mut jobs = String::from("global: {scrape_interval: 1s}\nscrape_configs:\n");
    for (job, address) in targets {
        jobs +=
            &format!("- job_name: {job}\n  static_configs: [{{targets: [\"{address}:9100\"]}}]\n");
    }
    let ask = |machine: &str, query: &str| -> Value {
        let curl = format!(
            "curl -sS -m 5 -G http://127.0.0.1:9090/api/v1/query --data-urlencode '{}'",
            format!("query={query}").replace('\'', "")
        );
        let said = world.on(machine, &curl);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    };
    let start = |machine: &str, text: &str| {
        let config = path(&format!("prometheus-{machine}.yml"));
        fs::write(&config, text).unwrap();
        let data = path(&format!("data-{machine}"));
        let command = format!(
            "prometheus --config.file={config} --storage.tsdb.path={data} \
             --web.listen-address=127.0.0.1:9090 2>>{}",
            path("prometheus.log")
        );
        world.start(machine, &command)
    };
    let of_proxy = "global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: proxy\n  \
                    static_configs: [{targets: [\"127.0.0.1:9100\"]}]\n";
    let _prometheus = [start("router", &jobs), start("px", of_proxy)];
    // Load, and more than two scrapes of it.
    let load = format!(
        "sh -c 'for n in 1 2 3 4 5 6 7 8 9 10 11 12; do curl -s -o /dev/null -m 5 \
                        http://{VIP}/blob; curl -s -m 0.2 http://{VIP}:81/; sleep 0.5; done; true'"
    );
    world.on("client", &load);
    let mut asked = 0;
    for (board, machine) in [("mux", "router"), ("host", "router"), ("proxy", "px")] {
        let board: Value =
            serde_json::from_str(&read(&format!("examples/grafana/{board}.json"))).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let expression = target["expr"].as_str().unwrap();
                let job = board["title"].as_str().unwrap();
                let job = ["mux", "host", "prox"]
                    .into_iter()
                    .find(|kind| job.contains(kind))
                    .unwrap();
                let own = format!("job=~\"{job}.*\"");
                let query = expression.replace("instance=~\"$instance\"", &own);
                assert_ne!(query, expression, "the board's nodes are not chosen");
                let mut answer = Value::Null;
                wait_until(&query, &mut || {
                    answer = ask(machine, &query);
                    assert_eq!(answer["status"], "success", "{query}: {answer}");
                    // Nothing is lost, maybe.
                    let found = answer["data"]["result"].as_array().unwrap();
                    expression.ends_with("> 0") || !found.is_empty()
                });
                asked += 1;
            }
        }
    }
    assert!(asked > 50, "{asked}");
    let count = "sum(slb_probe_duration_seconds_count{job=\"host\"})";
    let count = ask("router", count)["data"]["result"][0]["value"][1]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(count.parse::<f64>().unwrap() >= 1.0, "{count}");

    // The server ends, and no file says so.
    drop(server);
    sh("true");
    for (machine, address) in [("mux", "172.16.0.11"), ("host", "172.16.0.101")] {
        wait_until("the VIP is not answered", &mut || {
            is(machine, address, "0.0")
        });
    }
}
