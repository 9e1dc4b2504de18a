//! The loss of one of three zones of a fleet on etcd, and its return: only what was in it breaks.
//!
//! In the data centre of [`common::lab`], with a mux, a host, a vm and a member of etcd in each zone. The zone that is
//! lost takes the leading controller with it. Unlike without a fleet ([`crate::zones`]), no operator tells any host agent
//! who served meanwhile: the log of the pools in the store does.
//!
//! Needs root; without, or where a tool is missing, it says so and is skipped.

use crate::common;
use crate::fleet_store::{
    apply_all_of, fleet_status, start_controller, start_etcd, start_node_of, start_store,
    tables_are_equal,
};
use crate::zones::{
    DOWNLOADS, LOST, ZONAL_DOWNLOADS, configuration, downloads, each_serves_its_own,
    only_the_lost_broke, ports, served, set_cables, the_others_serve, vip_of, wait_until_lost,
    zone, zones_are_announced,
};

use std::thread::sleep;
use std::time::Duration;

use common::lab::{Io, Lab, TOOLS, VIP};
use common::world::{Process, lacking};

fn start(lab: &Lab, role: &str, zone: u32) -> Process {
    start_node_of(lab, role, zone, &configuration(lab, role, zone))
}

#[test]
#[ignore = "needs root"]
fn the_loss_of_a_zone_of_a_fleet_breaks_only_what_was_in_it() {
    if let Some(why) = lacking(&[&TOOLS[..], &["etcd", "etcdctl"]].concat()) {
        skip!("{why}");
    }
    let mut lab = Lab::new(Io::AfXdp, (3, 3));
    let (mut etcds, mut controllers) = start_store(&lab);
    for zone in 1..=3 {
        let host = start(&lab, "host", zone);
        lab.hosts.insert(zone, host);
        let mux = start(&lab, "mux", zone);
        lab.muxes.insert(zone, mux);
    }
    sleep(Duration::from_secs(1));
    apply_all_of(&lab, &configuration(&lab, "mux", 1));
    zones_are_announced(&lab, &[1, 2, 3]);
    lab.wait_until("all zones serve", || {
        (1..=3).all(|mux| (1..=3).all(|own| zone(&lab, mux, "vms4", own).0))
    });
    each_serves_its_own(&lab, &[1, 2, 3]);
    assert_eq!(served(&lab, VIP, 60).len(), 3);
    tables_are_equal(&lab);

    // All of zone 2 is gone at once, and the leading controller, with no word to anyone.
    let leader = fleet_status(&lab)["controller"].as_str().unwrap() == "c2";
    let leader = usize::from(leader);
    let begun = downloads(&lab, VIP, DOWNLOADS);
    let zonal = [1, 3].map(|zone| downloads(&lab, &vip_of(zone), ZONAL_DOWNLOADS));
    sleep(Duration::from_secs(2));
    let place = LOST as usize - 1;
    etcds[place].signal("KILL");
    controllers[leader].signal("KILL");
    lab.muxes.remove(&LOST).unwrap().signal("KILL");
    lab.hosts.remove(&LOST).unwrap().signal("KILL");
    set_cables(&lab, "down");
    zones_are_announced(&lab, &[1, 3]);
    sleep(Duration::from_secs(2));
    // These are under way while the vm of the lost zone is taken out.
    let later = downloads(&lab, VIP, DOWNLOADS);
    wait_until_lost(&lab, &[1, 3]);
    tables_are_equal(&lab);
    for downloads in zonal {
        let (good, bad) = ports(downloads);
        assert_eq!((good.len(), bad.len()), (ZONAL_DOWNLOADS, 0));
    }
    assert!(only_the_lost_broke(&lab, begun) > 0, "nothing was lost");
    only_the_lost_broke(&lab, later);
    the_others_serve(&lab);

    // The zone comes back, and nothing that goes on elsewhere notices.
    let begun = downloads(&lab, VIP, DOWNLOADS);
    sleep(Duration::from_secs(1));
    etcds[place] = start_etcd(&lab.world, LOST);
    controllers[leader] = start_controller(&lab.world, leader as u32 + 1);
    set_cables(&lab, "up");
    let host = start(&lab, "host", LOST);
    lab.hosts.insert(LOST, host);
    let mux = start(&lab, "mux", LOST);
    lab.muxes.insert(LOST, mux);
    zones_are_announced(&lab, &[1, 2, 3]);
    lab.wait_until("the zone serves again", || {
        (1..=3).all(|mux| zone(&lab, mux, "vms4", LOST).0)
    });
    tables_are_equal(&lab);
    let (good, bad) = ports(begun);
    assert_eq!((good.len(), bad.len()), (DOWNLOADS, 0));
    each_serves_its_own(&lab, &[LOST]);
    assert_eq!(served(&lab, VIP, 60).len(), 3);
}
