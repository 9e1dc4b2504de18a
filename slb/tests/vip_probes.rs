//! `--probe-vips`: a mux and a host agent call VIPs as clients do, and tell the truth.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::fs;
use std::process::Command;

use common::lab::Io;
use common::site::{DIP, DIP6, Site};
use common::world::{lacking, peer};

const VIP: &str = "20.20.20.101";
const VIP6: &str = "2001:db8::101";

/// A node's configuration. The nodes call from addresses that are underlay addresses too, over AF_XDP.
fn configuration(role: &str, network: u32, number: u32) -> String {
    let backend = |name: &str, address: &str| {
        format!(
            "backends = [{{ name = \"{name}\", address = \"{address}\", host = \"172.{network}.0.101\", \
             mac = \"02:00:0a:0a:01:0b\" }}]\n"
        )
    };
    format!(
        "[node]\nrole = \"{role}\"\nhash_seed = 7\nmtu = 1600\nunderlay = [\"172.{network}.0.{number}\", \
         \"fd00:{network}::{number}\"]\nmuxes = [\"172.{network}.0.11\", \"fd00:{network}::11\"]\n\
         [[frontend]]\nname = \"web\"\naddress = \"{VIP}\"\n\
         [[frontend]]\nname = \"web6\"\naddress = \"{VIP6}\"\n\
         [[pool]]\nname = \"vms\"\nvni = 5001\n{}\
         [[pool]]\nname = \"vms6\"\nvni = 5001\n{}\
         [[probe]]\nname = \"tcp\"\nprotocol = \"tcp\"\nport = 8000\ninterval = \"5s\"\ntimeout = \"1s\"\n\
         [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"vms\"\nprotocol = \"tcp\"\n\
         frontend_port = 80\nbackend_port = 8000\n{}\
         [[rule]]\nname = \"http6\"\nfrontend = \"web6\"\npool = \"vms6\"\nprotocol = \"tcp\"\n\
         frontend_port = 80\nbackend_port = 8000\n",
        backend("vm1", DIP),
        backend("vm1", DIP6),
        // A host agent asks its vms on its own; a mux needs routes to them.
        if role == "host" {
            "probe = \"tcp\"\n"
        } else {
            ""
        },
    )
}

fn the_truth_is_told(io: Io, kind: &str) {
    if let Some(why) = lacking(&["ethtool", "curl"]) {
        skip!("{why}");
    }
    let site = Site::new(io, kind, (1, &[]), &[VIP, VIP6]);
    let world = &site.world;
    let slb = env!("CARGO_BIN_EXE_slb");
    let path = |name: &str| world.path(name).display().to_string();
    for (role, number) in [("mux", 11), ("host", 101)] {
        let text = configuration(role, site.network(), number);
        fs::write(world.path(&format!("{role}.toml")), text).unwrap();
    }
    fs::create_dir(world.path("files")).unwrap();
    fs::write(world.path("files/blob"), b"it works").unwrap();
    let serve = || world.start("vm1", &peer(&format!("files {} 8000", path("files"))));
    let server = serve();
    let command = |role: &str, address: &str, more: &str| {
        format!(
            "{slb} {role} --config {} {} --socket {} --metrics {address}:9100 --probe-vips {more} \
             --log-level info 2>>{}",
            path(&format!("{role}.toml")),
            site.devices(role, 1),
            path(&format!("{role}.sock")),
            path("log")
        )
    };
    let announce = if io == Io::AfXdp {
        "--announce vips"
    } else {
        ""
    };
    if io == Io::AfXdp {
        // A setting that would make the answer a lie is refused with its cure.
        world.on("mux", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1");
        let refused =
            command("mux", "172.16.0.11", announce).replace(&format!("2>>{}", path("log")), "");
        let refused = world.command("mux", &refused).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        let cure = "(sysctl -w net.ipv4.conf.eth0.rp_filter=2)";
        assert!(
            said.contains("--probe-vips with --announce") && said.contains(cure),
            "{said}"
        );
        world.on("mux", "sysctl -qw net.ipv4.conf.eth0.rp_filter=2");
    }
    let nodes = [("mux", "172.16.0.11"), ("host", "172.16.0.101")];
    let _host = world.start("host", &command("host", nodes[1].1, ""));
    let _mux = world.start("mux", &command("mux", nodes[0].1, announce));
    let metrics = |machine: &str, address: &str| {
        let curl = format!("curl -sS -m 5 http://{address}:9100/metrics");
        let output = world.command(machine, &curl).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let log = || fs::read_to_string(world.path("log")).unwrap_or_default();
    let are = |value: &str| {
        nodes.into_iter().all(|(machine, address)| {
            let text = metrics(machine, address);
            [("web", "http", VIP), ("web6", "http6", VIP6)]
                .into_iter()
                .all(|(frontend, rule, vip)| {
                    let line = format!(
                        "slb_vip_available{{frontend=\"{frontend}\",rule=\"{rule}\",address=\"{vip}\",port=\"80\",\
                         protocol=\"tcp\"}} {value}"
                    );
                    text.lines().any(|own| own == line)
                })
        })
    };
    let wait_for = |value: &str, what: &str| {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !are(value) {
            let seen: Vec<String> = nodes
                .into_iter()
                .flat_map(|(machine, address)| {
                    let text = metrics(machine, address);
                    let lines = text
                        .lines()
                        .filter(|line| line.contains("vip_") && !line.starts_with('#'));
                    lines
                        .filter(|line| !line.contains("bucket"))
                        .map(|line| format!("{machine}: {line}"))
                        .collect::<Vec<_>>()
                })
                .collect();
            assert!(
                std::time::Instant::now() < end,
                "waited in vain: {what}: {seen:#?}{}",
                log()
            );
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    };
    let fetch = |vip: &str| {
        let mut curl: Command =
            world.command("client", &format!("curl -sS -g -m 5 http://{vip}/blob"));
        curl.output().unwrap().status.success()
    };
    wait_for("1.0", "VIPs that answer are available");
    assert!(fetch(VIP) && fetch(&format!("[{VIP6}]")));
    drop(server);
    wait_for("0.0", "VIPs that answer nobody are not available");
    let _server = serve();
    wait_for("1.0", "they are back");
}

#[test]
#[ignore = "needs root"]
fn availability_is_measured_over_tun() {
    the_truth_is_told(Io::Tun, "vp");
}

#[test]
#[ignore = "needs root"]
fn availability_is_measured_over_af_xdp() {
    the_truth_is_told(Io::AfXdp, "vp");
}
