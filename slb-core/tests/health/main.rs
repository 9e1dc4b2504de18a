//! Health belongs to a rule and a backend: who fails the probe of one rule serves the others.

mod frames;
mod host;
mod plan;
mod proxy;
mod snapshots;

use frames::{CLIENT_MAC, client, datagram, give, tcp};
use plan::{BACKENDS, FABRIC, FIRST, KEY, OTHER, PLAIN, Plan, RULES, SICK, Shared, dip, vip};

use std::collections::HashSet;

use slb_core::spec::derived_mac;
use slb_core::{Mux, Verdict};

fn mux(plan: &Plan) -> Mux<'static, Shared> {
    Mux::with_capacity(Shared::from(plan.snapshot()), 4096, KEY).expect("its role")
}

/// The backend that a mux sends a client's segment to.
fn chosen(
    mux: &mut Mux<'static, Shared>,
    number: u16,
    port: u16,
    ipv6: bool,
    flags: &str,
) -> usize {
    let packet = tcp(CLIENT_MAC, client(number, ipv6), (vip(ipv6), port), flags);
    backend_of(give!(mux, FABRIC, &packet), ipv6)
}

/// The backend that a mux sent a frame to.
fn backend_of((verdict, bytes): (Verdict, Vec<u8>), ipv6: bool) -> usize {
    assert_eq!(verdict, Verdict::Forward(FABRIC));
    // Behind Ethernet, IPv4, UDP and VXLAN: the vm's MAC address.
    let mut vms = (0..BACKENDS).map(|n| derived_mac(dip(n, ipv6)).0);
    vms.position(|mac| bytes[50..56] == mac).unwrap()
}

#[test]
fn a_backend_that_fails_the_probe_of_one_rule_serves_the_others() {
    for ipv6 in [false, true] {
        let mut plan = Plan::new(ipv6);
        let mut mux = mux(&plan);
        let new = |mux: &mut Mux<'static, Shared>, first: u16| {
            RULES.map(|port| -> Vec<usize> {
                let numbers = first..first + 200;
                numbers.map(|n| chosen(mux, n, port, ipv6, "S")).collect()
            })
        };
        let before = new(&mut mux, 0);
        for chosen in &before {
            assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), BACKENDS);
        }
        plan.found[0][2] = SICK;
        let next = plan.after(Some(mux.snapshot()));
        mux.install(next.into()).expect("it follows");
        // Those that it has stay, also of the rule whose probe it fails.
        for (port, chosen_before) in RULES.into_iter().zip(&before) {
            for (number, &backend) in (0..).zip(chosen_before) {
                assert_eq!(chosen(&mut mux, number, port, ipv6, "A"), backend);
            }
        }
        // New flows of the two rules of the probe do without it; the others' go as ever.
        let mut fresh =
            Mux::with_capacity(Shared::from(plan.snapshot()), 4096, KEY).expect("its role");
        let after = new(&mut fresh, 0);
        for place in [0, 2] {
            assert!(!after[place].contains(&2), "rule {place}");
            assert_eq!(after[place].iter().collect::<HashSet<_>>().len(), 3);
        }
        for place in [1, 3] {
            assert_eq!(after[place], before[place], "rule {place}");
        }
    }
}

#[test]
fn a_syn_that_comes_again_moves_by_its_own_rule() {
    for ipv6 in [false, true] {
        let mut plan = Plan::new(ipv6);
        let mut mux = mux(&plan);
        let all = |mux: &mut Mux<'static, Shared>| {
            RULES.map(|port| {
                (0..100)
                    .map(|number| chosen(mux, number, port, ipv6, "S"))
                    .collect::<Vec<_>>()
            })
        };
        let before = all(&mut mux);
        plan.found[1][3] = SICK;
        let next = plan.after(Some(mux.snapshot()));
        mux.install(next.into()).expect("it follows");
        let after = all(&mut mux);
        for (port, (before, after)) in RULES.into_iter().zip(before.iter().zip(&after)) {
            for (&before, &after) in before.iter().zip(after) {
                let moves = port == OTHER && before == 3;
                assert_eq!(after != before, moves, "port {port}");
            }
        }
    }
}

#[test]
fn a_udp_flow_moves_by_its_own_rule() {
    for ipv6 in [false, true] {
        let mut plan = Plan::new(ipv6);
        let mut mux = mux(&plan);
        let ask = |mux: &mut Mux<'static, Shared>, number: u16, port: u16| {
            backend_of(give!(mux, FABRIC, &datagram(number, port, ipv6)), ipv6)
        };
        let all = |mux: &mut Mux<'static, Shared>| {
            [FIRST, OTHER, PLAIN]
                .map(|port| (0..100).map(|n| ask(mux, n, port)).collect::<Vec<_>>())
        };
        let before = all(&mut mux);
        plan.found[1][2] = SICK;
        let next = plan.after(Some(mux.snapshot()));
        mux.install(next.into()).expect("it follows");
        for (place, (before, after)) in before.iter().zip(all(&mut mux)).enumerate() {
            for (&before, after) in before.iter().zip(after) {
                assert_eq!(after != before, place == 1 && before == 2, "rule {place}");
            }
        }
    }
}
