//! Two workers for each mux and each host agent of a data centre: downloads of many clients, whose packets come by
//! any queue, go on while configurations change, and while other processes take over.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use common::lab::{Change, Io, Lab, NO_CHANGE, TOOLS, VIP};
use common::sh;
use common::world::{Process, World, lacking};

const CLIENTS: u32 = 12;
const BYTES: u32 = 2 << 20;

/// Clients of many addresses, behind links of two queues.
fn lab(io: Io) -> (Lab, Mounts) {
    let mut lab = Lab::new(io, (2, 3));
    lab.workers = Some(2);
    for client in 0..CLIENTS {
        let address = format!("ip address add 198.51.100.{}/24 dev eth0", 20 + client);
        lab.world.on("client", &address);
    }
    if io == Io::AfXdp {
        for machine in ["mux1", "mux2", "host1", "host2", "host3"] {
            lab.world.on(machine, "ethtool -L eth0 rx 2 tx 2");
        }
    }
    let mounts = Mounts::new(&lab);
    lab.start_all(NO_CHANGE);
    (lab, mounts)
}

/// Slow downloads of each client, of which those that come whole are counted.
fn downloads(lab: &Lab) -> Vec<Process> {
    let download = |client: u32| {
        let curl = format!(
            "curl -sS -m 60 --limit-rate 256k --interface 198.51.100.{} -r 0-{} http://{VIP}/blob \
             -o /dev/null -w %{{size_download}}",
            20 + client,
            BYTES - 1
        );
        lab.world.start("client", &curl)
    };
    (0..CLIENTS).map(download).collect()
}

fn all_are_whole(downloads: Vec<Process>) {
    for download in downloads {
        assert_eq!(download.finish().trim(), BYTES.to_string());
    }
}

/// Returns a counter of each worker of a node.
fn of_workers(lab: &Lab, machine: &str, counter: &str) -> Vec<u64> {
    let status = lab.status(machine);
    let workers = status["workers"].as_array().expect("workers").iter();
    let counts = workers.map(|worker| worker["io"][counter].as_u64().unwrap_or_default());
    counts.collect()
}

fn reloads(lab: &Lab) {
    for turn in 0..20 {
        lab.reconfigure(Change {
            another_vip: turn % 2 == 0,
            ..NO_CHANGE
        });
        sleep(Duration::from_millis(100));
    }
}

/// BPF file systems, where XDP programs outlive their process.
struct Mounts(Vec<PathBuf>);

impl Mounts {
    fn new(lab: &Lab) -> Self {
        let mut mounts = Self(Vec::new());
        if lab.io == Io::AfXdp {
            for machine in ["mux1", "mux2", "host1", "host2", "host3"] {
                let path = lab.world.path(&format!("{machine}.state/bpf"));
                fs::create_dir_all(&path).expect("a directory");
                assert!(sh(&format!("mount -t bpf bpf {}", path.display())));
                mounts.0.push(path);
            }
        }
        mounts
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for path in &self.0 {
            sh(&format!("umount {}", path.display()));
        }
    }
}

/// Each host in turn goes on as another process, which has its connections.
fn take_over(lab: &mut Lab) {
    for number in 1..=3 {
        let next = lab.start("host", number, NO_CHANGE);
        let last = lab.hosts.insert(number, next).expect("it runs");
        last.finish();
    }
}

fn works(io: Io) {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    let (mut lab, _mounts) = lab(io);
    for machine in ["mux1", "host1"] {
        let workers = lab.status(machine)["workers"].as_array().map(Vec::len);
        assert_eq!(workers, Some(2), "{machine}");
    }
    let running = downloads(&lab);
    sleep(Duration::from_secs(1));
    reloads(&lab);
    all_are_whole(running);
    let handed: u64 = ["host1", "host2", "host3"]
        .iter()
        .flat_map(|host| of_workers(&lab, host, "handed_over"))
        .sum();
    assert!(handed > 1000, "packets cross between workers: {handed}");
    let running = downloads(&lab);
    sleep(Duration::from_secs(1));
    take_over(&mut lab);
    all_are_whole(running);
    for host in ["host1", "host2", "host3"] {
        assert_eq!(of_workers(&lab, host, "crowded"), [0, 0], "{host}");
        assert_eq!(of_workers(&lab, host, "undeliverable"), [0, 0], "{host}");
        let status = lab.status(host);
        let refused = &status["state"]["refused"];
        println!("{host}: {refused}");
    }
    // Vms call out, and probes of vms are answered.
    lab.world.serve("client");
    for vm in ["vm1", "vm2", "vm3"] {
        for _ in 0..4 {
            let curl = format!("curl -sS -m 5 http://{}:8080/", common::fabric::CLIENT);
            assert_eq!(lab.world.on(vm, &curl), format!("client {VIP}\n"));
        }
    }
    for (_, host) in std::mem::take(&mut lab.hosts) {
        host.signal("TERM");
        assert!(host.finish().contains("connections:"));
    }
}

#[test]
#[ignore = "needs root"]
fn two_workers_over_afxdp() {
    works(Io::AfXdp);
}

#[test]
#[ignore = "needs root"]
fn two_workers_over_tun() {
    works(Io::Tun);
}

/// A worker that has several queues of one device writes each packet once.
#[test]
#[ignore = "needs root"]
fn two_queues_of_one_worker_send_each_packet_once() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let world = World::new("q", &["node"]);
    for command in [
        "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
        "ip tuntap add dev slb0 mode tun multi_queue",
        "ip link set slb0 up",
        "ip address add 198.51.100.10/32 dev lo",
        "ip link set lo up",
    ] {
        world.on("node", command);
    }
    world.on(
        "node",
        &format!("ip route add {VIP}/32 dev slb0 src 198.51.100.10"),
    );
    let config = world.path("mux.toml");
    let text = format!(
        "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
         [[frontend]]\nname = \"web\"\naddress = \"{VIP}\"\nicmp_echo = \"answer\"\n\
         [[pool]]\nname = \"vms\"\nvni = 1\n\
         backends = [{{ name = \"vm\", address = \"10.1.1.1\", host = \"172.16.0.101\" }}]\n\
         [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"vms\"\nprotocol = \"tcp\"\n\
         frontend_port = 80\n"
    );
    fs::write(&config, text).expect("a file");
    let slb = env!("CARGO_BIN_EXE_slb");
    let (config, status) = (config.display(), world.path("status"));
    let mux = world.start(
        "node",
        &format!(
            "{slb} mux --config {config} --io tun:slb0:2 --workers 1 --status {}",
            status.display()
        ),
    );
    sleep(Duration::from_secs(1));
    let said = world.on("node", &format!("ping -c 5 -i 0.1 -W 2 {VIP}"));
    assert!(
        said.contains("5 received") && !said.contains("DUP"),
        "{said}"
    );
    mux.signal("TERM");
    mux.finish();
}
