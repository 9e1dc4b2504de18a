//! Services that a mux remembers from one burst to the next: each packet meets the rules of the snapshot
//! that is in place, and its own.

use crate::common;

use std::sync::Arc;

use common::{CLIENT, Setup, TestMux, VIP, client6, pinned, send, stateless, tcp_to, vip6};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Protocol, Rule, Spec};
use slb_core::{DropReason, Instant, Key, Mux, Verdict};

const NOW: Instant = Instant::from_secs(10);

fn packet(ipv6: bool, source_port: u16, port: u16) -> Vec<u8> {
    if !ipv6 {
        return tcp_to(CLIENT, source_port, VIP, port, "A", b"data");
    }
    let builder = etherparse::PacketBuilder::ethernet2(common::CLIENT_MAC, common::MUX_MAC)
        .ipv6(client6(), vip6(), 64)
        .tcp(source_port, port, 1000, 4096);
    common::finish_tcp(builder, "A", b"data")
}

/// The setup's configuration with other rules.
fn with_rules(
    setup: &Setup,
    rules: impl FnOnce(&[Rule<'_>]) -> Vec<Rule<'static>>,
    previous: Option<&Snapshot<'_>>,
) -> Snapshot<'static> {
    setup.with_spec(|spec| {
        let rules = rules(spec.rules);
        let spec = Spec {
            rules: &rules,
            ..spec.clone()
        };
        Snapshot::new(&spec, previous).unwrap()
    })
}

fn rule(name: &'static str, frontend: usize, frontend_port: u16) -> Rule<'static> {
    Rule {
        name,
        frontend,
        pool: frontend,
        protocol: Protocol::Tcp,
        frontend_port,
        backend_port: frontend_port,
        ..Rule::default()
    }
}

fn forwarded(mux: &TestMux, name: &str) -> u64 {
    mux.rule_counters(name).expect("a rule").forwarded.packets
}

#[test]
fn packets_meet_the_rules_of_the_snapshot_in_place() {
    let setup = Setup::new(3);
    for make in [stateless as fn(&Setup) -> TestMux, pinned] {
        for ipv6 in [false, true] {
            let mut mux = make(&setup);
            let burst = [packet(ipv6, 1000, 80), packet(ipv6, 1001, 80)];
            let sent = |outcomes: Vec<common::Outcome>| outcomes.into_iter().map(|o| o.verdict);
            let forward = Verdict::Forward(setup.underlay.port);
            assert!(sent(send(&mut mux, NOW, &burst)).all(|verdict| verdict == forward));

            // The port has no rule any more, and another rule has the place of the one that it had.
            let others = |_: &[Rule<'_>]| vec![rule("alt", 0, 81), rule("alt6", 1, 81)];
            let next = with_rules(&setup, others, Some(mux.snapshot()));
            mux.install(Arc::new(next)).expect("it follows");
            let no_rule = Verdict::Drop(DropReason::NoRule);
            assert!(sent(send(&mut mux, NOW, &burst)).all(|verdict| verdict == no_rule));

            // And has one again, in another place.
            let all = |_: &[Rule<'_>]| {
                let others = vec![rule("alt6", 1, 81), rule("alt", 0, 81)];
                let own = vec![rule("http6", 1, 80), rule("http", 0, 80)];
                [others, own].concat()
            };
            let next = with_rules(&setup, all, Some(mux.snapshot()));
            mux.install(Arc::new(next)).expect("it follows");
            assert!(sent(send(&mut mux, NOW, &burst)).all(|verdict| verdict == forward));
            let (own, other) = if ipv6 {
                ("http6", "alt6")
            } else {
                ("http", "alt")
            };
            assert_eq!((forwarded(&mux, own), forwarded(&mux, other)), (2, 0));
        }
    }
}

#[test]
fn more_services_than_are_remembered_are_told_apart() {
    const PORTS: std::ops::Range<u16> = 1000..1700;
    const ROUNDS: u64 = 3;
    let setup = Setup::new(3);
    let name = |frontend: usize, port| &*format!("{frontend}-{port}").leak();
    let every = || {
        [0, 1]
            .into_iter()
            .flat_map(|frontend| PORTS.map(move |port| (frontend, port)))
    };
    let rules = |_: &[Rule<'_>]| {
        let rules = every().map(|(frontend, port)| rule(name(frontend, port), frontend, port));
        rules.collect()
    };
    let snapshot = Arc::new(with_rules(&setup, rules, None));
    for flows in [0, 10_000] {
        let key = Key::new([3, 4]);
        let mut mux: TestMux = Mux::with_capacity(snapshot.clone(), flows, key).expect("its role");
        for _ in 0..ROUNDS {
            // Neighbours of different services, and of both families.
            let packets = PORTS.flat_map(|port| [packet(false, 7, port), packet(true, 7, port)]);
            send(&mut mux, NOW, &packets.collect::<Vec<_>>());
        }
        for (frontend, port) in every() {
            let name = format!("{frontend}-{port}");
            assert_eq!(forwarded(&mux, &name), ROUNDS, "{name}");
        }
    }
}
