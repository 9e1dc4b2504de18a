//! The playbooks of examples/ansible, run against a data centre of namespaces while clients download: a changed
//! configuration goes to host agents, then to muxes, and then each node's program is replaced. No download breaks.
//!
//! The muxes keep no flows: a backend that drains keeps its downloads only since its host knows of it first.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use common::lab::{Change, Io, Lab, NO_CHANGE, SLOW, TOOLS, VIP, VIP6};
use common::sh;
use common::world::{Process, lacking};
use serde_json::{Map, json};

const CLIENTS: u32 = 20;
const BEFORE: Change = Change {
    flows: 0,
    ..NO_CHANGE
};
const AFTER: Change = Change {
    backends: &[(1, 1), (2, 1), (3, 0)],
    ..BEFORE
};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/ansible")
}

/// A node of the data centre.
#[derive(Clone, Copy)]
struct Node {
    role: &'static str,
    number: u32,
}

impl Node {
    fn name(self) -> String {
        format!("{}{}", self.role, self.number)
    }
}

fn nodes() -> impl Iterator<Item = Node> {
    let of = |role, count| (1..=count).map(move |number| Node { role, number });
    of("host", 3).chain(of("mux", 2))
}

/// A data centre whose nodes have each a program and a state of their own.
struct Site {
    lab: Lab,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.lab.world.end_strangers();
        for node in nodes() {
            let bpf = self.state(node).join("bpf");
            sh(&format!("umount {} 2>/dev/null", bpf.display()));
        }
    }
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new(Io::AfXdp, (2, 3));
        // Without what debuggers read, which is most of it.
        let program = lab.world.path("slb");
        let strip = format!(
            "strip -o {} {}",
            program.display(),
            env!("CARGO_BIN_EXE_slb")
        );
        assert!(sh(&strip));
        let own = Self { lab };
        for node in nodes() {
            let bpf = own.state(node).join("bpf");
            fs::create_dir_all(&bpf).unwrap();
            assert!(sh(&format!("mount -t bpf bpf {}", bpf.display())));
            fs::create_dir_all(own.program(node).parent().unwrap()).unwrap();
            fs::copy(&program, own.program(node)).unwrap();
        }
        own
    }

    fn program(&self, node: Node) -> PathBuf {
        self.lab.world.path(&format!("{}.bin/slb", node.name()))
    }

    fn state(&self, node: Node) -> PathBuf {
        self.lab.world.path(&format!("{}.state", node.name()))
    }

    fn start(&self) -> Vec<Process> {
        let all = nodes().map(|node| {
            let config = self.lab.configure(node.role, node.number, BEFORE);
            let command = format!(
                "{} {} --config {config} {} --status {} --state {} --log-level warn >>{}",
                self.program(node).display(),
                node.role,
                self.lab.devices(node.role),
                self.lab.socket(&node.name()),
                self.state(node).display(),
                // Successors have it too, and would keep a pipe open.
                self.lab
                    .world
                    .path(&format!("{}.out", node.name()))
                    .display()
            );
            self.lab.world.start(&node.name(), &command)
        });
        let all = all.collect();
        self.lab.wait_for_paths(2);
        self.lab.wait_until("the services answer", || {
            [VIP, "[2001:db8:20::100]"].into_iter().all(|vip| {
                let curl = format!("curl -sS -m 1 http://{vip}/");
                let pages = (0..6).map(|_| self.lab.world.command("client", &curl).output());
                pages.flatten().all(|page| page.status.success())
            })
        });
        all
    }

    /// An inventory like that of the example, of this site's nodes.
    fn inventory(&self) -> String {
        let (mut hosts, mut muxes) = (Map::new(), Map::new());
        for node in nodes() {
            let own = if node.role == "mux" { 10 } else { 100 } + node.number;
            let text = self.lab.configuration(node.role, own, AFTER);
            let (begin, fleet) = text.split_once("[[frontend]]").unwrap();
            let lines = begin.lines().skip(2).collect::<Vec<_>>().join("\n");
            // It is the same on all nodes.
            self.lab.write("web.toml", &format!("[[frontend]]{fleet}"));
            let space = self.lab.world.space(&node.name());
            let of = if node.role == "mux" {
                &mut muxes
            } else {
                &mut hosts
            };
            of.insert(
                node.name(),
                json!({
                    "slb_node": lines,
                    "slb": self.program(node),
                    "slb_config": self.lab.world.path(&format!("{}.toml", node.name())),
                    "slb_socket": self.lab.socket(&node.name()),
                    "ansible_python_interpreter": format!("ip netns exec {space} /usr/bin/python3"),
                }),
            );
        }
        // There is no systemd in a namespace: signals are sent to whom it would send them.
        let pid = "$({{ slb }} status --format json --socket {{ slb_socket }} | \
             python3 -c 'import json, sys; print(json.load(sys.stdin)[\"pid\"])')";
        let kill = |signal: &str| format!("sh -c \"kill -{signal} {}\"", pid.replace('"', "\\\""));
        let all = json!({ "all": {
            "vars": {
                "ansible_connection": "local",
                "slb_fleet": self.lab.world.path("web.toml"),
                "slb_reload": kill("HUP"),
                "slb_take_over": kill("USR2"),
            },
            "children": {
                "slb_hosts": { "vars": { "slb_role": "host" }, "hosts": hosts },
                "slb_muxes": { "vars": { "slb_role": "mux" }, "hosts": muxes },
            },
        }});
        self.lab.write(
            "inventory.yml",
            &serde_json::to_string_pretty(&all).unwrap(),
        )
    }

    fn play(&self, playbook: &str, more: &str) -> (bool, String) {
        let inventory = self.lab.world.path("inventory.yml");
        let home = self.lab.world.path("ansible");
        fs::create_dir_all(&home).unwrap();
        let command = format!(
            "ansible-playbook -i {} {} {more}",
            inventory.display(),
            examples().join(playbook).display()
        );
        let output = Command::new("sh")
            .args(["-c", &command])
            .env("ANSIBLE_HOME", &home)
            .env("ANSIBLE_LOCAL_TEMP", home.join("local"))
            .env("ANSIBLE_REMOTE_TEMP", home.join("remote"))
            .env("ANSIBLE_NOCOLOR", "1")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (output.status.success(), said)
    }

    /// Clients that download one file after the other, until `done` is there.
    fn download(&self) -> Vec<Process> {
        let done = self.lab.world.path("done");
        let _ = fs::remove_file(&done);
        let client = |number: u32| {
            let vip = if number.is_multiple_of(2) {
                VIP.to_owned()
            } else {
                format!("[{VIP6}]")
            };
            let curl = format!(
                "curl -sS -m 60 http://{vip}/slow -o /dev/null -w %{{size_download}}\\\\n || echo FAILED"
            );
            let script = format!("while ! [ -e {} ]; do {curl}; done", done.display());
            self.lab
                .world
                .start("client", &format!("sh -c '{script}' 2>&1"))
        };
        (0..CLIENTS).map(client).collect()
    }

    /// Ends the clients; all that they downloaded is whole.
    #[track_caller]
    fn all_are_whole(&self, clients: Vec<Process>) {
        fs::write(self.lab.world.path("done"), "").unwrap();
        let mut count = 0;
        for client in clients {
            let said = client.finish();
            let whole = SLOW.to_string();
            assert!(said.lines().all(|line| line == whole), "{said}");
            count += said.lines().count();
        }
        assert!(count > CLIENTS as usize, "{count} downloads");
        println!("{count} downloads, all whole");
    }

    fn pids(&self) -> Vec<u64> {
        let pid = |node: Node| self.lab.status(&node.name())["pid"].as_u64().unwrap();
        nodes().map(pid).collect()
    }
}

/// Names of nodes in the order in which a task changed them.
fn changed<'s>(said: &'s str, task: &str) -> Vec<&'s str> {
    let head = format!("TASK [{task}]");
    let mut all = Vec::new();
    for (at, _) in said.match_indices(&*head) {
        let lines = said[at..].lines().skip(1);
        let own = lines.take_while(|line| !line.is_empty());
        all.extend(own.filter_map(|line| line.strip_prefix("changed: [")?.strip_suffix(']')));
    }
    all
}

const ORDER: [&str; 5] = ["host1", "host2", "host3", "mux1", "mux2"];

#[test]
#[ignore = "needs root"]
fn playbooks_change_and_upgrade_a_fleet_and_no_download_breaks() {
    let tools = [&TOOLS[..], &["ansible-playbook", "strip"]].concat();
    if let Some(why) = lacking(&tools) {
        skip!("{why}");
    }
    let site = Site::new();
    let processes = site.start();
    site.inventory();
    // A node that another change is wrong for stops it before anything is changed.
    let files = || -> Vec<String> {
        let path = |node: Node| site.lab.world.path(&format!("{}.toml", node.name()));
        nodes()
            .map(|node| fs::read_to_string(path(node)).unwrap())
            .collect()
    };
    let before = files();
    let web = fs::read_to_string(site.lab.world.path("web.toml")).unwrap();
    site.lab
        .write("web.toml", &web.replace("vni = 5001", "vni = \"no\""));
    let (is_done, said) = site.play("configure.yml", "");
    assert!(!is_done && said.contains("vni"), "{said}");
    assert_eq!(
        changed(&said, "Take the configuration that was checked"),
        [""; 0]
    );
    assert_eq!(files(), before);

    site.lab.write("web.toml", &web);
    let clients = site.download();
    sleep(Duration::from_secs(2));
    let (is_done, said) = site.play("configure.yml", "");
    assert!(is_done, "{said}");
    assert_eq!(changed(&said, "Have it read at once"), ORDER, "{said}");
    assert!(files().iter().all(|text| text.contains("weight = 0")));
    sleep(Duration::from_secs(1));
    site.all_are_whole(clients);
    let passed_on = nodes()
        .filter(|node| node.role == "host")
        .map(|node| site.lab.status(&node.name())["passed_on"].as_u64().unwrap());
    assert!(passed_on.sum::<u64>() > 0, "downloads of vm3 took a detour");

    // Another time nothing is changed, and nothing is read.
    let (is_done, said) = site.play("configure.yml", "");
    assert!(is_done, "{said}");
    assert_eq!(changed(&said, "Have it read at once"), [""; 0], "{said}");

    // Another version of the program.
    let new = site.lab.world.path("new");
    let mut bytes = fs::read(site.lab.world.path("slb")).unwrap();
    bytes.extend(b"another version");
    fs::write(&new, bytes).unwrap();
    let file = site.lab.world.path("monitor");
    let monitor = format!("ip monitor route >{}", file.display());
    let monitor = site.lab.world.start("router", &monitor);
    let clients = site.download();
    sleep(Duration::from_secs(2));
    let before = site.pids();
    let program = format!("-e slb_program={}", new.display());
    let (is_done, said) = site.play("upgrade.yml", &program);
    assert!(is_done, "{said}");
    assert_eq!(
        changed(&said, "Start it beside the process that runs"),
        ORDER,
        "{said}"
    );
    for process in processes {
        // Each has ended by itself.
        process.finish();
    }
    let after = site.pids();
    for (node, (before, after)) in nodes().zip(before.iter().zip(&after)) {
        assert_ne!(before, after, "{}", node.name());
        let runs = fs::read_link(format!("/proc/{after}/exe")).unwrap();
        assert_eq!(runs, site.program(node));
        let state = &site.lab.status(&node.name())["state"];
        assert_eq!(state["is_checkpoint"], false, "{}: {state}", node.name());
    }
    sleep(Duration::from_secs(1));
    site.all_are_whole(clients);
    drop(monitor);
    // No mux withdrew a VIP.
    let routes = fs::read_to_string(file).unwrap();
    let of_vips = |line: &&str| line.contains(VIP) || line.contains(VIP6);
    assert_eq!(routes.lines().filter(of_vips).collect::<Vec<_>>(), [""; 0]);
}
