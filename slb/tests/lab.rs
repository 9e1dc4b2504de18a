//! A data centre on one machine, with two muxes and three host agents: see [`common::lab`].
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::fabric::{CLIENT, CLIENT6};
use common::lab::{Change, Io, Lab, NO_CHANGE, SLOW, TOOLS, VIP, VIP6};
use common::world::{Process, lacking};
/// Checks the service: who answers, the client's address that they see, and whole files.
fn serves(lab: &Lab) {
    for (vip, client) in [(VIP, CLIENT), ("[2001:db8:20::100]", CLIENT6)] {
        let mut served = BTreeMap::<String, u32>::new();
        let pages = lab.world.on(
            "client",
            &format!("sh -c 'for i in $(seq 90); do curl -sS -m 5 http://{vip}/; done'"),
        );
        for page in pages.lines() {
            let (vm, seen) = page.split_once(' ').unwrap();
            assert_eq!(seen, client, "the vm sees who asks");
            *served.entry(vm.to_owned()).or_default() += 1;
        }
        let total: u32 = served.values().sum();
        assert_eq!(total, 90);
        // Of 90 each has 30; five standard deviations are 22.
        assert!(
            served.len() == 3 && served.values().all(|&count| count >= 8),
            "{served:?}"
        );
        let blob = lab.world.path("blob").display().to_string();
        for _ in 0..3 {
            lab.world.on(
                "client",
                &format!("sh -c 'curl -sS -m 60 http://{vip}/blob | cmp - {blob}'"),
            );
        }
    }
    lab.world
        .on("client", &format!("ping -q -c 5 -i 0.05 -W 2 {VIP}"));
    lab.world
        .on("client", &format!("ping -q -c 5 -i 0.05 -W 2 {VIP6}"));
}

/// Answers in VXLAN to the mux, which sends them on.
fn answers_go_through_the_mux(lab: &Lab) {
    let passed = |lab: &Lab| {
        let muxes = lab
            .muxes
            .keys()
            .map(|number| lab.status(&format!("mux{number}")));
        let packets = muxes.map(|status| status["received"]["bytes"].as_u64().unwrap());
        packets.sum::<u64>()
    };
    let slow = lab.world.path("slow").display().to_string();
    for vip in [VIP, "[2001:db8:20::100]"] {
        let before = passed(lab);
        let curl = format!("curl -sS -m 30 http://{vip}:81/slow --limit-rate 2M");
        lab.world
            .on("client", &format!("sh -c '{curl} | cmp - {slow}'"));
        // The whole file came by a mux.
        let through = passed(lab) - before;
        assert!(through > SLOW as u64, "{vip}: {through} bytes");
    }
}

/// Packets of 1500 bytes with DF, over a fabric that carries them in VXLAN, and over one that does not.
fn long_packets_arrive(lab: &Lab) {
    let blob = lab.world.path("slow").display().to_string();
    let put = |vip: &str, name: &str| {
        let curl = format!("curl -sS -m 30 -T {blob} http://{vip}/put/{name} -w %{{http_code}}");
        let said = lab.world.on("client", &curl);
        assert!(said.ends_with("201") || said.ends_with("204"), "{said}");
        let stored = (1..=3).map(|vm| lab.world.path(&format!("www-vm{vm}/put/{name}")));
        let whole = stored.filter(|path| fs::read(path).is_ok_and(|bytes| bytes.len() == SLOW));
        assert_eq!(whole.count(), 1);
    };
    let path_mtu = |vip: &str| lab.world.on("client", &format!("ip route get {vip}"));
    put(VIP, "whole");
    put("[2001:db8:20::100]", "whole6");
    assert!(!path_mtu(VIP).contains("mtu 1450"));
    lab.reconfigure(Change {
        mtu: Some(1500),
        ..NO_CHANGE
    });
    sleep(Duration::from_millis(300));
    put(VIP, "narrow");
    put("[2001:db8:20::100]", "narrow6");
    // The client was told by the muxes what fits.
    assert!(path_mtu(VIP).contains("mtu 1450"), "{}", path_mtu(VIP));
    assert!(path_mtu(VIP6).contains("mtu 1430"), "{}", path_mtu(VIP6));
    lab.reconfigure(NO_CHANGE);
}

/// A vm calls out under the VIP, and one vm is reached by a port of its own.
fn nat_works(lab: &mut Lab) {
    lab.world.serve("client");
    for vm in ["vm1", "vm2", "vm3"] {
        let page = lab
            .world
            .on(vm, &format!("curl -sS -m 5 http://{CLIENT}:8080/"));
        assert_eq!(page, format!("client {VIP}\n"));
    }
    for _ in 0..6 {
        let page = lab
            .world
            .on("client", &format!("curl -sS -m 5 http://{VIP}:2222/"));
        assert_eq!(page, format!("vm2 {CLIENT}\n"));
    }
}

/// A vm that no outbound rule lets out calls a VIP of the same network, under its own name.
fn an_internal_vip_is_there(lab: &Lab) {
    for number in [1, 3] {
        let curl = format!("curl -sS -m 5 http://[{VIP6}]:2222/");
        let page = lab.world.on(&format!("vm{number}"), &curl);
        assert_eq!(page, format!("vm2 fd00:10:{number}::11\n"));
    }
}

/// Configurations change ten times a second, for as long as is said; nobody notices.
fn reloads_disturb_nobody(lab: &Lab, how_long: Duration) {
    let seconds = how_long.as_secs();
    let ask = |vip: &str| {
        let script = format!(
            "end=$(($(date +%s) + {seconds})); while [ $(date +%s) -lt $end ]; do \
             curl -sS -m 5 http://{vip}/ || echo FAILED; done"
        );
        lab.world.start("client", &format!("sh -c '{script}' 2>&1"))
    };
    let asking = [ask(VIP), ask("[2001:db8:20::100]")];
    // Downloads that last as long.
    let size = 128 * 1024 * (seconds + 4);
    let long = format!(
        "curl -sS -m {} --limit-rate 128k -r 0-{} http://{VIP}/blob -o /dev/null -w '%{{size_download}}\\n'",
        seconds + 30,
        size - 1
    );
    let downloads: Vec<Process> = (0..6).map(|_| lab.world.start("client", &long)).collect();
    let end = Instant::now() + how_long;
    let mut turn = 0;
    while Instant::now() < end {
        turn += 1;
        lab.reconfigure(Change {
            backends: [
                &[(1, 1), (2, 1), (3, 1)],
                &[(1, 1), (2, 1), (3, 2)],
                &[(1, 1), (2, 1), (3, 3)],
            ][turn % 3],
            another_vip: turn % 2 == 0,
            ..NO_CHANGE
        });
        sleep(Duration::from_millis(100));
    }
    let mut pages = 0;
    for ask in asking {
        let said = ask.finish();
        assert!(said.lines().all(|line| line.starts_with("vm")), "{said}");
        pages += said.lines().count();
    }
    assert!(pages as u64 > 5 * seconds, "{pages} pages");
    for download in downloads {
        assert_eq!(download.finish().trim(), size.to_string());
    }
    lab.reconfigure(NO_CHANGE);
    lab.wait_for_configurations();
    let generation = lab.status("mux1")["generation"].as_u64().unwrap();
    assert!(generation > seconds * 3, "{generation} configurations");
}

/// A vm that reports that it is unhealthy gets no new flows, and keeps its present ones; without a
/// healthy vm, the routes go.
fn the_sick_get_no_new_flows(lab: &Lab) {
    let is_sick = |vm: u32, is_sick: bool| {
        let file = lab.world.path(&format!("www-vm{vm}/sick"));
        match is_sick {
            true => fs::write(file, "").unwrap(),
            false => fs::remove_file(file).unwrap(),
        }
    };
    let states = |vm: u32| {
        let muxes = lab
            .muxes
            .keys()
            .map(|number| lab.status(&format!("mux{number}")));
        let name = format!("vm{vm}");
        let backends = muxes.flat_map(|status| status["backends"].as_array().unwrap().clone());
        let own = backends.filter(move |backend| backend["backend"] == name.as_str());
        let states = own.map(|backend| backend["state"].as_str().unwrap().to_owned());
        states.collect::<std::collections::BTreeSet<_>>()
    };
    let all_are = |vm: u32, state: &str| states(vm) == [state.to_owned()].into();
    // Requests go on all the time, one after the other, and downloads, some of them from vm2.
    let asking = lab.world.start(
        "client",
        &format!(
            "sh -c 'while ! [ -e {} ]; do curl -sS -m 5 http://{VIP}/ || echo FAILED; done' 2>&1",
            lab.world.path("done").display()
        ),
    );
    let curl = format!(
        "curl -sS -m 90 --limit-rate 40k http://{VIP}/slow -o /dev/null -w '%{{size_download}}'"
    );
    let downloads: Vec<Process> = (0..12).map(|_| lab.world.start("client", &curl)).collect();
    sleep(Duration::from_millis(300));

    is_sick(2, true);
    lab.wait_until("vm2 is out", || all_are(2, "unhealthy"));
    assert!(all_are(1, "healthy") && all_are(3, "healthy"));
    for _ in 0..30 {
        let page = lab
            .world
            .on("client", &format!("curl -sS -m 5 http://{VIP}/"));
        assert!(!page.starts_with("vm2"), "{page}");
    }
    for download in downloads {
        assert_eq!(download.finish(), SLOW.to_string());
    }
    is_sick(2, false);
    lab.wait_until("vm2 is back", || all_are(2, "healthy"));
    fs::write(lab.world.path("done"), "").unwrap();
    let said = asking.finish();
    assert!(said.lines().all(|line| line.starts_with("vm")), "{said}");
    assert!(said.lines().count() > 100);

    // Cut off, it cannot even say that it is not well.
    let cut = Instant::now();
    lab.world.on("vm2", "nft add table inet cut");
    for way in ["input", "output"] {
        let chain = format!("{{ type filter hook {way} priority 0; policy drop; }}");
        lab.world
            .on("vm2", &format!("nft 'add chain inet cut {way} {chain}'"));
    }
    lab.wait_until("vm2 is out", || all_are(2, "unhealthy"));
    // Two failures in a row, five seconds apart.
    assert!(cut.elapsed() >= Duration::from_secs(5));
    for _ in 0..30 {
        let page = format!("curl -sS -m 5 http://{VIP}/");
        let page = lab.world.on("client", &page);
        assert!(!page.starts_with("vm2"), "{page}");
    }
    lab.world.on("vm2", "nft delete table inet cut");
    lab.wait_until("vm2 is back", || all_are(2, "healthy"));

    for vm in 1..=3 {
        is_sick(vm, true);
    }
    lab.wait_for_paths(0);
    for vm in 1..=3 {
        is_sick(vm, false);
    }
    lab.wait_for_paths(2);
    lab.world
        .on("client", &format!("curl -sS -m 5 http://{VIP}/"));
    let slb = env!("CARGO_BIN_EXE_slb");
    let config = lab.world.path("mux1.toml").display().to_string();
    let said = lab.world.on("mux1", &format!("{slb} probe {config}"));
    assert_eq!(said.matches("  well\n").count(), 6, "{said}");
}

/// Every frame's memory is where it can be, and nothing was lost on the way.
fn nothing_is_lost(lab: &Lab, machine: &str) {
    let status = lab.status(machine);
    let io = &status["io"];
    let of = |name: &str| io[name].as_u64().unwrap();
    let places = ["free", "receiving", "sending", "lent"].map(|name| of(&format!("frames_{name}")));
    assert_eq!(places.iter().sum::<u64>(), of("frames"), "{io}");
    assert_eq!(of("frames_lent"), 0, "{io}");
    for none in ["foreign", "undeliverable", "not_passed"] {
        assert_eq!(of(none), 0, "{machine}: {none}: {io}");
    }
    let packets = |name: &str| status[name]["packets"].as_u64().unwrap();
    let out = ["forwarded", "replied", "passed", "dropped_total"].map(packets);
    assert_eq!(out.iter().sum::<u64>(), packets("received"), "{status}");
}

/// During 200 slow downloads, vm3 begins to drain, and a mux dies in the same second.
///
/// The other mux never saw its downloads and knows vm3 as draining, so it sends some of them to other
/// vms. The hosts pass these on. The clients' ports are new: see `docs/limits.md` on ports that are used again.
fn a_mux_dies_unnoticed(lab: &mut Lab) {
    let passed_on = |lab: &Lab| -> u64 {
        let hosts = ["host1", "host2", "host3"].map(|host| lab.status(host));
        hosts
            .iter()
            .map(|status| status["passed_on"].as_u64().unwrap())
            .sum()
    };
    let before = passed_on(lab);
    let downloads = lab.world.start(
        "client",
        &format!(
            "curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max 200 -m 90 \
             -o /dev/null \
             -w '%{{http_code}} %{{size_download}}\\n' 'http://{VIP}/slow?n=[1-200]'"
        ),
    );
    sleep(Duration::from_millis(2500));
    lab.reconfigure_in_order(Change {
        backends: &[(1, 1), (2, 1), (3, 0)],
        ..NO_CHANGE
    });
    let mux = lab.muxes.remove(&1).unwrap();
    mux.signal("KILL");
    drop(mux);
    lab.wait_for_paths(1);
    if lab.io == Io::AfXdp {
        // Its program went with it.
        let shown = lab.world.on("mux1", "ip link show dev eth0");
        assert!(!shown.contains("xdp"), "{shown}");
    }
    let said = downloads.finish();
    let whole = format!("200 {SLOW}");
    let complete = said.lines().filter(|line| **line == whole).count();
    assert_eq!(complete, 200, "{said}");
    assert!(
        passed_on(lab) > before,
        "packets of vm3's downloads came by other hosts"
    );
    lab.reconfigure(NO_CHANGE);
    lab.wait_for_configurations();
}

/// The kernel's VXLAN in the place of a mux of ours, and of a host.
fn linux_understands_it(lab: &mut Lab) {
    let mux = lab.muxes.remove(&2).unwrap();
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
    // mux2: three next hops behind a VXLAN device.
    lab.on(
        "mux2",
        &[
            "sysctl -qw net.ipv4.fib_multipath_hash_policy=1",
            "ip link add vx0 mtu 1500 type vxlan id 5001 dstport 4789 local 172.16.0.12 nolearning",
            "ip address add 169.254.1.254/24 dev vx0",
            "ip link set vx0 up",
        ],
    );
    let mut hops = String::new();
    for vm in 1..=3 {
        let mac = format!("02:00:0a:0a:0{vm}:0b");
        let bridge = format!("bridge fdb append {mac} dev vx0 dst 172.16.0.10{vm}");
        let neighbour = format!("ip neighbour replace 169.254.1.{vm} lladdr {mac} dev vx0");
        lab.on("mux2", &[&bridge, &neighbour]);
        hops += &format!(" nexthop via 169.254.1.{vm} dev vx0");
    }
    lab.on("mux2", &[&format!("ip route replace {VIP}/32{hops}")]);
    lab.on(
        "router",
        &[&format!("ip route replace {VIP}/32 via 172.16.0.12")],
    );
    let answers = |lab: &Lab| {
        let pages = lab.world.on(
            "client",
            &format!("sh -c 'for i in $(seq 60); do curl -sS -m 5 http://{VIP}/; done'"),
        );
        let vms = pages
            .lines()
            .map(|page| page.split(' ').next().unwrap().to_owned());
        assert!(pages.lines().all(|page| page.ends_with(CLIENT)), "{pages}");
        vms.collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(answers(lab), 3, "kernel mux, hosts of ours");
    lab.on("mux2", &["ip link del vx0"]);

    // host3: a VXLAN device and nftables' NAT; a mux of ours before it.
    drop(lab.hosts.remove(&3));
    lab.on(
        "host3",
        &[
            "ip link add vx0 mtu 1500 type vxlan id 5001 dstport 4789 local 172.16.0.103 nolearning",
            "ip link set vx0 address 02:00:0a:0a:03:0b up",
            "nft add table ip slb",
            "nft add chain ip slb in { type nat hook prerouting priority dstnat\\; }",
            &format!("nft add rule ip slb in iifname vx0 ip daddr {VIP} dnat to 10.10.3.11"),
        ],
    );
    // It pins nothing this time.
    let stateless = Change {
        flows: 0,
        ..NO_CHANGE
    };
    let mux = lab.start("mux", 2, stateless);
    lab.muxes.insert(2, mux);
    lab.on(
        "router",
        &[&format!("ip route del {VIP}/32 via 172.16.0.12")],
    );
    lab.wait_for_paths(1);
    assert_eq!(answers(lab), 3, "mux of ours, one kernel host");
}

#[test]
#[ignore = "needs root"]
fn over_afxdp() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    let mut lab = Lab::new(Io::AfXdp, (2, 3));
    lab.start_all(NO_CHANGE);
    serves(&lab);
    nat_works(&mut lab);
    an_internal_vip_is_there(&lab);
    answers_go_through_the_mux(&lab);
    long_packets_arrive(&lab);
    let shown = lab.world.on(
        "mux1",
        &format!(
            "{} status --once --socket {}",
            env!("CARGO_BIN_EXE_slb"),
            lab.socket("mux1")
        ),
    );
    assert!(
        shown.contains("forwarded") && shown.contains("vms4"),
        "{shown}"
    );
    the_sick_get_no_new_flows(&lab);
    reloads_disturb_nobody(&lab, Duration::from_secs(60));
    for machine in ["mux1", "mux2", "host1", "host2", "host3"] {
        nothing_is_lost(&lab, machine);
    }
    a_mux_dies_unnoticed(&mut lab);
    linux_understands_it(&mut lab);
    for (_, node) in std::mem::take(&mut lab.hosts) {
        node.signal("INT");
        assert!(node.finish().contains("connections:"));
    }
}

#[test]
#[ignore = "needs root"]
fn over_tun() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    let mut lab = Lab::new(Io::Tun, (2, 3));
    lab.start_all(NO_CHANGE);
    serves(&lab);
    nat_works(&mut lab);
    answers_go_through_the_mux(&lab);
    long_packets_arrive(&lab);
    reloads_disturb_nobody(&lab, Duration::from_secs(60));
    a_mux_dies_unnoticed(&mut lab);
}
