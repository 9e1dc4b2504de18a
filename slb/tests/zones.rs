//! The loss of one of three zones, and its return: only what was in it breaks.
//!
//! In the data centre of [`common::lab`], with a mux, a host and a vm in each zone. One VIP has all three zones, another
//! has none, and each zone has a VIP of its own, whose backend is the zone's vm.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use common::fabric::CLIENT;
use common::lab::{Io, Lab, NO_CHANGE, SLOW, TOOLS, VIP, VIP6};
use common::world::{Process, lacking};

const SLB: &str = env!("CARGO_BIN_EXE_slb");
/// The zone that is lost.
pub(crate) const LOST: u32 = 2;
pub(crate) const DOWNLOADS: usize = 45;
pub(crate) const ZONAL_DOWNLOADS: usize = 10;

/// The VIP of a zone.
pub(crate) fn vip_of(zone: u32) -> String {
    format!("20.20.20.{zone}")
}

/// The configuration of a node: that of the data centre, with zones.
pub(crate) fn configuration(lab: &Lab, role: &str, zone: u32) -> String {
    let own = if role == "mux" { 10 } else { 100 } + zone;
    let mut text = lab.configuration(role, own, NO_CHANGE);
    let mut put = |at: &str, zones: &str| {
        assert_eq!(text.matches(at).count(), 1, "{at}");
        text = text.replace(at, &format!("{at}{zones}"));
    };
    put("[node]\n", &format!("zone = \"{zone}\"\n"));
    put(
        &format!("address = \"{VIP}\"\n"),
        "zones = [\"1\", \"2\", \"3\"]\n",
    );
    for vm in 1..=3 {
        for address in [format!("10.10.{vm}.11"), format!("fd00:10:{vm}::11")] {
            put(
                &format!("{{ name = \"vm{vm}\", address = \"{address}\", "),
                &format!("zone = \"{vm}\", "),
            );
        }
    }
    for zone in 1..=3 {
        text += &format!(
            "[[frontend]]\nname = \"zonal{zone}\"\naddress = \"{}\"\nzones = \"{zone}\"\n\
             [[pool]]\nname = \"only{zone}\"\nvni = 5001\nbackends = [\n\
             {{ name = \"vm{zone}\", address = \"10.10.{zone}.11\", host = \"172.16.0.10{zone}\", \
             mac = \"02:00:0a:0a:0{zone}:0b\", zone = \"{zone}\" }} ]\n\
             [[rule]]\nname = \"zonal{zone}\"\nfrontend = \"zonal{zone}\"\npool = \"only{zone}\"\n\
             probe = \"health\"\nprotocol = \"tcp\"\nfrontend_port = 80\n",
            vip_of(zone)
        );
    }
    text
}

fn start(lab: &Lab, role: &str, zone: u32) -> Process {
    start_with(lab, role, zone, &configuration(lab, role, zone))
}

fn start_with(lab: &Lab, role: &str, zone: u32, text: &str) -> Process {
    let machine = format!("{role}{zone}");
    let config = lab.write(&format!("{machine}.toml"), text);
    let (io, status) = (lab.devices(role), lab.socket(&machine));
    lab.world.start(
        &machine,
        &format!(
            "{SLB} {role} --config {config} {io} --status {status} --cpus {} --log-level warn \
             --metrics 127.0.0.1:9100",
            zone % 2
        ),
    )
}

/// The muxes that the router sends packets for a VIP to.
fn paths(lab: &Lab, vip: &str) -> Vec<u32> {
    let family = if vip.contains(':') { "-6" } else { "-4" };
    let shown = lab
        .world
        .on("router", &format!("ip {family} route show {vip}"));
    let is_by = |mux: &u32| {
        let next = format!("via 172.16.0.1{mux} ");
        let next6 = format!("via fd00:16::1{mux} ");
        shown.contains(&next) || shown.contains(&next6)
    };
    (1..=3).filter(is_by).collect()
}

pub(crate) fn zones_are_announced(lab: &Lab, alive: &[u32]) {
    lab.wait_until("each VIP is announced by those that should", || {
        let zonal = (1..=3).all(|zone| {
            let own: Vec<u32> = alive.iter().copied().filter(|own| *own == zone).collect();
            paths(lab, &vip_of(zone)) == own
        });
        zonal && [VIP, VIP6].iter().all(|vip| paths(lab, vip) == alive)
    });
}

/// Asks for short pages, and counts which vms serve them.
pub(crate) fn served(lab: &Lab, vip: &str, count: u32) -> BTreeMap<String, u32> {
    let pages = lab.world.on(
        "client",
        &format!("sh -c 'for i in $(seq {count}); do curl -sS -m 5 http://{vip}/; done'"),
    );
    let mut served = BTreeMap::new();
    for page in pages.lines() {
        let (vm, _) = page.split_once(' ').unwrap();
        *served.entry(vm.to_owned()).or_default() += 1;
    }
    assert_eq!(served.values().sum::<u32>(), count, "{vip}: {served:?}");
    served
}

/// Expects that the VIP of each of these zones is served by its own vm.
pub(crate) fn each_serves_its_own(lab: &Lab, zones: &[u32]) {
    for zone in zones {
        let vms = served(lab, &vip_of(*zone), 5);
        assert_eq!(vms, [(format!("vm{zone}"), 5)].into());
    }
}

/// Expects that the vms of the zones that are left serve the redundant VIPs.
pub(crate) fn the_others_serve(lab: &Lab) {
    for vip in [VIP.to_owned(), format!("[{VIP6}]")] {
        let vms = served(lab, &vip, 40);
        let names: Vec<&str> = vms.keys().map(String::as_str).collect();
        assert_eq!(names, ["vm1", "vm3"]);
    }
}

/// Waits until muxes have taken the lost zone's vm out.
pub(crate) fn wait_until_lost(lab: &Lab, muxes: &[u32]) {
    let pools = ["vms4", "vms6", &format!("only{LOST}")];
    lab.wait_until("the backends of the lost zone are out", || {
        let out = |mux, pool| zone(lab, mux, pool, LOST) == (false, 0.0);
        muxes
            .iter()
            .all(|&mux| pools.iter().all(|pool| out(mux, pool)))
    });
}

/// Downloads under way.
pub(crate) fn downloads(lab: &Lab, vip: &str, count: usize) -> Process {
    lab.world.start(
        "client",
        &format!(
            "sh -c \"curl -sS --no-progress-meter -Z --parallel-immediate --parallel-max 100 -m 40 -y 15 -Y 1 \
             -w '%{{local_port}} %{{http_code}} %{{size_download}}\\n' -o /dev/null \
             'http://{vip}/slow?n=[1-{count}]' 2>/dev/null\""
        ),
    )
}

/// The ports of downloads: those that came whole, and those that did not.
pub(crate) fn ports(downloads: Process) -> (Vec<u16>, Vec<u16>) {
    let said = downloads.output();
    let whole = format!("200 {SLOW}");
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for line in said.lines() {
        let (port, rest) = line.split_once(' ').unwrap();
        let ports = if rest == whole { &mut good } else { &mut bad };
        ports.push(port.parse().unwrap());
    }
    (good, bad)
}

/// The vm that a connection to the redundant VIP has while all backends are well, by `slb explain`.
fn vm_of(lab: &Lab, port: u16) -> String {
    let config = lab.write("explained.toml", &configuration(lab, "mux", 1));
    let said = lab.world.on(
        "client",
        &format!("{SLB} explain --config {config} tcp {CLIENT}:{port} {VIP}:80"),
    );
    let (_, rest) = said.split_once("backend    \"").unwrap();
    let (vm, _) = rest.split_once('"').unwrap();
    assert!(
        said.contains(&format!(
            "frontend \"web4\" is zone-redundant (zones 1, 2, 3); backend \"{vm}\" is in zone {}",
            &vm[2..]
        )),
        "{said}"
    );
    vm.to_owned()
}

/// Expects that of the downloads from the redundant VIP only those of the lost zone's vm broke.
pub(crate) fn only_the_lost_broke(lab: &Lab, downloads: Process) -> usize {
    let (good, bad) = ports(downloads);
    assert_eq!(good.len() + bad.len(), DOWNLOADS);
    let lost = format!("vm{LOST}");
    for &port in &bad {
        assert_eq!(vm_of(lab, port), lost, "a download broke: port {port}");
    }
    assert!(good.len() > DOWNLOADS / 3, "{} came", good.len());
    bad.len()
}

/// The zone of a pool in the status of a mux: whether it is available, and its share of new flows.
pub(crate) fn zone(lab: &Lab, mux: u32, pool: &str, zone: u32) -> (bool, f64) {
    let status = lab.status(&format!("mux{mux}"));
    assert_eq!(status["zone"], mux.to_string());
    let zones = status["zones"].as_array().unwrap();
    let name = zone.to_string();
    let found = zones
        .iter()
        .find(|own| own["pool"] == pool && own["zone"] == *name);
    let found = found.unwrap();
    let share = found["share_by_weight"].as_f64().unwrap();
    (found["available"].as_bool().unwrap(), share)
}

fn metric(lab: &Lab, mux: u32, sample: &str) -> f64 {
    let curl = "curl -sS -m 5 http://127.0.0.1:9100/metrics";
    let page = lab.world.on(&format!("mux{mux}"), curl);
    let line = page.lines().find_map(|line| line.strip_prefix(sample));
    let line = line.unwrap_or_else(|| panic!("no {sample} in {page}"));
    line.trim().parse().unwrap()
}

/// Has the host agents that run follow a change of their configurations.
fn reload_hosts(lab: &Lab, change: impl Fn(&str) -> String) {
    let generation = |zone: u32| lab.status(&format!("host{zone}"))["generation"].as_u64();
    for (&zone, host) in &lab.hosts {
        let before = generation(zone);
        let text = change(&configuration(lab, "host", zone));
        lab.write(&format!("host{zone}.toml"), &text);
        host.signal("HUP");
        lab.wait_until("a host agent follows", || generation(zone) > before);
    }
}

/// The configuration of a node without the lost zone's vm in the pools of all zones.
fn without_lost(text: &str) -> String {
    let vm = format!("mac = \"02:00:0a:0a:0{LOST}:0b\", weight = ");
    assert_eq!(text.matches(&vm).count(), 2);
    text.replace(&format!("{vm}1"), &format!("{vm}0"))
}

pub(crate) fn set_cables(lab: &Lab, state: &str) {
    for role in ["mux", "host"] {
        lab.world
            .on("router", &format!("ip link set {role}{LOST} {state}"));
    }
}

#[test]
#[ignore = "needs root"]
fn the_loss_of_a_zone_breaks_only_what_was_in_it() {
    if let Some(why) = lacking(&TOOLS) {
        skip!("{why}");
    }
    let mut lab = Lab::new(Io::AfXdp, (3, 3));
    for zone in 1..=3 {
        let host = start(&lab, "host", zone);
        lab.hosts.insert(zone, host);
        let mux = start(&lab, "mux", zone);
        lab.muxes.insert(zone, mux);
    }
    zones_are_announced(&lab, &[1, 2, 3]);
    each_serves_its_own(&lab, &[1, 2, 3]);
    assert_eq!(served(&lab, VIP, 60).len(), 3);
    for mux in 1..=3 {
        let (is_available, share) = zone(&lab, mux, "vms4", LOST);
        assert!(is_available && (share - 1.0 / 3.0).abs() < 1e-9, "{share}");
    }
    let status = lab.status("mux1");
    let zonal = |zone: u32| {
        let all = status["frontends"].as_array().unwrap();
        let name = format!("zonal{zone}");
        let own = all.iter().find(|own| own["frontend"] == *name).unwrap();
        own["of_this_mux"].as_bool().unwrap()
    };
    assert_eq!([1, 2, 3].map(zonal), [true, false, false]);

    // All of zone 2 is gone at once, with no word to anyone.
    let begun = downloads(&lab, VIP, DOWNLOADS);
    let zonal = [1, 3].map(|zone| downloads(&lab, &vip_of(zone), ZONAL_DOWNLOADS));
    sleep(Duration::from_secs(2));
    lab.muxes.remove(&LOST).unwrap().signal("KILL");
    lab.hosts.remove(&LOST).unwrap().signal("KILL");
    set_cables(&lab, "down");
    zones_are_announced(&lab, &[1, 3]);
    sleep(Duration::from_secs(2));
    // These are under way while the vm of the lost zone is taken out.
    let later = downloads(&lab, VIP, DOWNLOADS);
    for mux in [1, 3] {
        wait_until_lost(&lab, &[mux]);
        for alive in [1, 3] {
            assert_eq!(zone(&lab, mux, "vms4", alive), (true, 0.5));
        }
        let sample = |name: &str, zone: u32| format!("{name}{{pool=\"vms4\",zone=\"{zone}\"}}");
        assert_eq!(metric(&lab, mux, &sample("slb_zone_backends", LOST)), 1.0);
        assert_eq!(
            metric(&lab, mux, &sample("slb_zone_backends_up", LOST)),
            0.0
        );
        assert_eq!(metric(&lab, mux, &sample("slb_zone_backends_up", 1)), 1.0);
        assert_eq!(metric(&lab, mux, &sample("slb_zone_share", 3)), 0.5);
    }
    for downloads in zonal {
        let (good, bad) = ports(downloads);
        assert_eq!((good.len(), bad.len()), (ZONAL_DOWNLOADS, 0));
    }
    assert!(only_the_lost_broke(&lab, begun) > 0, "nothing was lost");
    only_the_lost_broke(&lab, later);
    each_serves_its_own(&lab, &[1, 3]);
    the_others_serve(&lab);

    // Host agents learn of no other hosts' health. They are told that the vm was out, since some slots of one vm that is
    // left were the other's meanwhile.
    reload_hosts(&lab, without_lost);

    // The zone comes back, and nothing that goes on elsewhere notices.
    let begun = downloads(&lab, VIP, DOWNLOADS);
    sleep(Duration::from_secs(1));
    reload_hosts(&lab, str::to_owned);
    set_cables(&lab, "up");
    // The host is told who had the slots of its vm meanwhile: its mux knows none of the connections, and sends them by
    // a table that has the vm again.
    let past = "past = [{ vm1 = 1, vm3 = 1 }]\n";
    let mut text = configuration(&lab, "host", LOST);
    for pool in ["vms4", "vms6"] {
        let at = format!("[[pool]]\nname = \"{pool}\"\n");
        assert_eq!(text.matches(&at).count(), 1);
        text = text.replace(&at, &format!("{at}{past}"));
    }
    let host = start_with(&lab, "host", LOST, &text);
    lab.hosts.insert(LOST, host);
    let mux = start(&lab, "mux", LOST);
    lab.muxes.insert(LOST, mux);
    zones_are_announced(&lab, &[1, 2, 3]);
    lab.wait_until("the zone serves again", || {
        (1..=3).all(|mux| zone(&lab, mux, "vms4", LOST).0)
    });
    let (good, bad) = ports(begun);
    assert_eq!((good.len(), bad.len()), (DOWNLOADS, 0));
    each_serves_its_own(&lab, &[LOST]);
    assert_eq!(served(&lab, VIP, 60).len(), 3);
}
