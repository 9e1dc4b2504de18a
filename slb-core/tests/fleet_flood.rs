//! Floods of segments of no connection into slots that changed: what hosts pass on of them is limited, and
//! connections go on.

use crate::passing;

use passing::{DOWN, End, Fleet, HOST_OF, HOSTS, VMS};
use slb_core::DropReason;
use slb_core::nat::NatOptions;

const FAMILIES: [bool; 2] = [false, true];
/// Segments of no connection that each of the five hosts passes on in a second.
const LIMIT: u32 = 200;
/// Segments of the flood for each of an honest client's.
const TIMES: u16 = 40;
const FIRST: u16 = 2000;

fn limited(fleet: &mut Fleet) {
    let options = NatOptions {
        passes_per_second: LIMIT,
        passes_at_once: LIMIT,
        ..NatOptions::default()
    };
    let hosts = std::mem::take(&mut fleet.hosts).into_iter();
    fleet.hosts = hosts.map(|host| host.with_options(options)).collect();
}

fn passed(fleet: &Fleet) -> u64 {
    (0..HOSTS).map(|host| fleet.stats(host).passed_on).sum()
}

fn live(fleet: &Fleet) -> [u64; HOSTS] {
    std::array::from_fn(|host| fleet.stats(host).connections.live)
}

/// Segments of connections that do not exist, from many ports; returns how many were dropped as astray.
fn flood(fleet: &mut Fleet, round: u16) -> u32 {
    let mut astray = 0;
    for number in 0..TIMES {
        let port = 20_000 + round * TIMES + number;
        let segment = fleet.segment(port, 7, u32::from(port) << 8);
        let end = fleet.send(&segment);
        assert!(!matches!(end, End::Vm(_)), "a vm gets it: {end:?}");
        astray += u32::from(end == End::Dropped(DropReason::Astray));
    }
    astray
}

#[test]
fn a_flood_into_changed_slots_is_limited_and_leaves_connections_alone() {
    for is_ipv6 in FAMILIES {
        for flows in [0, 1000] {
            let mut fleet = Fleet::new(is_ipv6);
            fleet.pin(flows);
            let homes: Vec<usize> = (0..100).map(|n| fleet.connect(FIRST + n, 5000)).collect();
            let weights = |fleet: &Fleet, drained: usize| {
                let mut weights = fleet.weights;
                weights[drained] = 0;
                weights
            };
            for drained in [0, 3] {
                let next = weights(&fleet, drained);
                fleet.change(next);
            }
            // Another mux in the place of this one: it knows no flow.
            fleet.pin(flows);
            limited(&mut fleet);
            let (before, pinned) = (live(&fleet), fleet.mux.stats().flows.live);
            let (mut dropped, mut detours, mut lost) = (0, 0, 0);
            for (round, (port, &home)) in (FIRST..).zip(&homes).enumerate() {
                dropped += flood(&mut fleet, round as u16);
                let segment = fleet.segment(port, 104, 5000);
                match fleet.send(&segment) {
                    End::Vm(vm) => {
                        assert_eq!(vm, home, "port {port}");
                        detours += u32::from(fleet.hops() > 0);
                    }
                    // The limit is for all packets that are passed on, and only for these.
                    End::Dropped(DropReason::Astray) => {
                        assert!([0, 3].contains(&home), "port {port}, of {home}");
                        lost += 1;
                    }
                    end => panic!("port {port}: {end:?}"),
                }
            }
            let all = u64::from(LIMIT) * HOSTS as u64;
            assert!(dropped > 500 && passed(&fleet) <= all, "{dropped} dropped");
            assert!(detours > 0 && lost > 0, "{detours} detours, {lost} lost");
            // It took no memory: neither a connection anywhere nor a flow in a slot that changed.
            assert_eq!(live(&fleet), before);
            assert!(fleet.mux.stats().flows.live >= pinned);
            // A second later the flood is over, and every connection goes on.
            fleet.now += 1;
            for (port, &home) in (FIRST..).zip(&homes) {
                let segment = fleet.segment(port, 104, 5000);
                assert_eq!(fleet.send(&segment), End::Vm(home), "port {port}");
            }
        }
    }
}

#[test]
fn a_flood_below_the_limit_disturbs_no_detour() {
    for is_ipv6 in FAMILIES {
        for flows in [0, 1000] {
            let mut fleet = Fleet::new(is_ipv6);
            fleet.pin(flows);
            let homes: Vec<usize> = (0..100).map(|n| fleet.connect(FIRST + n, 5000)).collect();
            let mut next = fleet.weights;
            next[3] = 0;
            fleet.change(next);
            fleet.pin(flows);
            limited(&mut fleet);
            let mut detours = 0;
            for (round, (port, &home)) in (FIRST..).zip(&homes).enumerate() {
                flood(&mut fleet, round as u16);
                // 2000 segments a second, of which fewer than 200 come to each host's changed slots.
                fleet.now += u64::from(round % 50 == 49);
                let segment = fleet.segment(port, 104, 5000);
                assert_eq!(fleet.send(&segment), End::Vm(home), "port {port}");
                detours += u32::from(fleet.hops() > 0);
            }
            assert!(detours > 5, "{detours}");
        }
    }
}

#[test]
fn a_rate_above_a_packet_a_nanosecond_is_no_rate_of_zero() {
    let mut fleet = Fleet::new(false);
    let served: Vec<usize> = (0..50).map(|n| fleet.connect(FIRST + n, 5000)).collect();
    fleet.drain(3);
    let options = NatOptions {
        passes_per_second: u32::MAX,
        passes_at_once: u32::MAX,
        ..NatOptions::default()
    };
    let hosts = std::mem::take(&mut fleet.hosts).into_iter();
    fleet.hosts = hosts.map(|host| host.with_options(options)).collect();
    for (port, &home) in (FIRST..).zip(&served) {
        let segment = fleet.segment(port, 104, 5000);
        assert_eq!(fleet.send(&segment), End::Vm(home));
    }
    assert!(served.contains(&3) && passed(&fleet) > 0);
}

#[test]
fn a_host_that_is_gone_keeps_neither_new_flows_nor_connections_of_others() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let connections: Vec<usize> = (0..200).map(|n| fleet.connect(FIRST + n, 5000)).collect();
        let flows: Vec<End> = (FIRST..FIRST + 200)
            .map(|port| {
                let datagram = fleet.datagram(port);
                fleet.send(&datagram)
            })
            .collect();
        // The host of the third vm dies, and all nodes hear of it; the fifth vm drained before.
        let mut weights = fleet.weights;
        weights[4] = 0;
        fleet.reweigh(weights);
        fleet.dead[HOST_OF[3]] = true;
        weights[3] = DOWN;
        fleet.reweigh(weights);
        let mut by_others = 0;
        for (port, (&home, flow)) in (FIRST..).zip(connections.iter().zip(&flows)) {
            let segment = fleet.segment(port, 104, 5000);
            let end = fleet.send(&segment);
            match home {
                3 => assert_eq!(end, End::Lost),
                _ => assert_eq!(end, End::Vm(home), "port {port}"),
            }
            by_others += usize::from(home == 4);
            let old = fleet.datagram(port);
            let end = fleet.send(&old);
            match flow {
                End::Vm(3) => assert!(matches!(end, End::Vm(vm) if vm != 3), "{end:?}"),
                flow => assert_eq!(end, *flow, "port {port}"),
            }
            // Nothing that begins is sent to the host that is gone.
            let new = fleet.datagram(port + 1000);
            let end = fleet.send(&new);
            assert!(matches!(end, End::Vm(vm) if vm < VMS && vm != 3), "{end:?}");
            let syn = fleet.syn(port + 1000, 7);
            assert!(matches!(fleet.send(&syn), End::Vm(vm) if vm != 3));
        }
        assert!(by_others > 10 && connections.contains(&3), "{by_others}");
    }
}
