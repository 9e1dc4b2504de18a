//! Counters belong to their rule or backend, whatever slot it has and however many there are.

use crate::common;

use common::*;
use slb_core::counters::CounterMemory;
use slb_core::hash::Distribution;
use slb_core::mem::Boxes;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, Echo, Frontend, Pool, Protocol, Rule, Spec};
use slb_core::wire::vxlan::Vni;
use slb_core::{Frame, HEADROOM, Instant, Key, Mux};

const NOW: Instant = Instant::from_secs(10);

/// A snapshot with TCP rules of these names and ports, each with a pool of its own, of so many
/// backends.
fn snapshot(
    rules: &[(&str, u16)],
    backends: usize,
    previous: Option<&Snapshot<'_>>,
) -> &'static Snapshot<'static> {
    let names: Vec<String> = (0..backends).map(|n| format!("vm{n}")).collect();
    let vms: Vec<Backend<'_>> = names
        .iter()
        .enumerate()
        .map(|(n, name)| Backend {
            name,
            address: dip(n as u16 + 1, false),
            host: host(n as u16 + 1, false),
            ..Backend::default()
        })
        .collect();
    let pool = Pool {
        name: "servers",
        vni: Vni::new(5001).unwrap(),
        backends: &vms,
        ..Pool::default()
    };
    let frontend = Frontend {
        name: "web",
        address: VIP.into(),
        icmp_echo: Echo::Answer,
    };
    let rules: Vec<Rule<'_>> = rules
        .iter()
        .map(|&(name, port)| Rule {
            name,
            protocol: Protocol::Tcp,
            frontend_port: port,
            backend_port: port,
            distribution: Distribution::FiveTuple,
            ..Rule::default()
        })
        .collect();
    let setup = Setup::new(1);
    let spec = Spec {
        underlay: setup.underlay,
        frontends: &[frontend],
        rules: &rules,
        pools: &[pool],
        ..Spec::default()
    };
    Box::leak(Box::new(Snapshot::new(&spec, previous).unwrap()))
}

type TheMux = Mux<'static, &'static Snapshot<'static>>;

fn syn(mux: &mut TheMux, client: u16, port: u16) {
    let mut buffer = vec![0; HEADROOM];
    let packet = tcp_to(CLIENT, client, VIP, port, "S", b"");
    buffer.extend(&packet);
    mux.process(
        NOW,
        &mut [Frame::new(&mut buffer, HEADROOM, packet.len()).unwrap()],
    );
}

#[test]
fn a_rule_in_a_slot_that_another_had_begins_at_zero() {
    let first = snapshot(&[("a", 80), ("b", 81)], 3, None);
    let mut mux = Mux::with_capacity(first, 1000, Key::new([1, 2])).expect("its role");
    for client in 0..10 {
        syn(&mut mux, client + 1, 80);
        syn(&mut mux, client + 1, 81);
    }
    assert_eq!(mux.rule_counters(0).unwrap().syns, 10);
    // "b" keeps its numbers at another place of the spec, "c" has none of those of "a".
    mux.install(snapshot(&[("c", 82), ("b", 81)], 3, Some(first)))
        .expect("it follows");
    assert_eq!(mux.rule_counters(0).unwrap().syns, 0);
    assert_eq!(mux.rule_counters(0).unwrap().forwarded.packets, 0);
    assert_eq!(mux.rule_counters(1).unwrap().syns, 10);
    syn(&mut mux, 99, 82);
    assert_eq!(mux.rule_counters(0).unwrap().syns, 1);
}

#[test]
fn there_are_as_many_counters_as_a_later_snapshot_has_rules_and_backends() {
    let first = snapshot(&[("r0", 1000), ("r1", 1001)], 6, None);
    let mut mux = Mux::with_capacity(first, 100_000, Key::new([1, 2])).expect("its role");
    syn(&mut mux, 1, 1000);
    let names: Vec<String> = (0..200).map(|n| format!("r{n}")).collect();
    let rules: Vec<(&str, u16)> = names
        .iter()
        .zip(1000..)
        .map(|(name, port)| (name.as_str(), port))
        .collect();
    let next = snapshot(&rules, 1500, Some(first));
    assert!(!mux.has_counters_for(next));
    mux.replace_counters(CounterMemory::build(next, &mut Boxes).unwrap());
    assert!(mux.has_counters_for(next));
    mux.install(next).expect("it follows");
    for client in 0..30_000 {
        syn(&mut mux, client + 2, 1000 + client % 200);
    }
    let of_rules: Vec<u64> = (0..200)
        .map(|rule| mux.rule_counters(rule).unwrap().syns)
        .collect();
    assert_eq!(of_rules[0], 151, "with the one from before");
    assert!(
        of_rules[1..].iter().all(|&syns| syns == 150),
        "{of_rules:?}"
    );
    let of_backends: u64 = next
        .backends()
        .iter()
        .map(|backend| {
            mux.backend_counters(backend.id())
                .unwrap()
                .forwarded
                .packets
        })
        .sum();
    assert_eq!(of_backends, 30_001);
}

#[test]
fn without_room_the_first_ones_count_and_no_packet_is_lost() {
    let first = snapshot(&[("r0", 1000)], 1, None);
    let mut mux = Mux::with_capacity(first, 1000, Key::new([1, 2])).expect("its role");
    let names: Vec<String> = (0..200).map(|n| format!("r{n}")).collect();
    let rules: Vec<(&str, u16)> = names
        .iter()
        .zip(1000..)
        .map(|(name, port)| (name.as_str(), port))
        .collect();
    mux.install(snapshot(&rules, 1500, Some(first)))
        .expect("it follows");
    for client in 0..2000 {
        syn(&mut mux, client + 1, 1000 + client % 200);
    }
    assert_eq!(mux.stats().forwarded.packets, 2000);
    assert_eq!(mux.rule_counters(0).unwrap().syns, 10);
    assert_eq!(mux.rule_counters(199), None);
}
