//! Counters by name, defaults of a spec's parts, and constructors that use boxes.

use std::net::Ipv4Addr;

use slb_core::counters::CounterMemory;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Frontend, InboundNat, Outbound, Pool, Protocol, Rule, Spec, SpecError, Underlay,
};
use slb_core::wire::checksum::Sum;
use slb_core::{Dataplane, DropReason, Frame, HEADROOM, Host, Instant, Key, Mux, Verdict};

const NOW: Instant = Instant::from_secs(1000);
const KEY: Key = Key::new([1, 2]);
const VIP: [u8; 4] = [203, 0, 113, 80];

fn backend<'a>(name: &'a str, number: u8) -> Backend<'a> {
    Backend {
        name,
        address: Ipv4Addr::new(10, 0, 0, number).into(),
        host: Ipv4Addr::new(172, 16, 1, number).into(),
        ..Backend::default()
    }
}

/// Rules "http" and "https" of one VIP, to pools "web" and "a/b" of the backends.
fn with_spec<T>(web: &[Backend<'_>], other: &[Backend<'_>], f: impl FnOnce(&Spec<'_>) -> T) -> T {
    let rule = |name, pool, port| Rule {
        name,
        pool,
        frontend_port: port,
        backend_port: port,
        ..Rule::default()
    };
    f(&Spec {
        underlay: Underlay {
            ipv4: Some([172, 16, 0, 11].into()),
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: VIP.into(),
            ..Frontend::default()
        }],
        pools: &[
            Pool {
                name: "web",
                backends: web,
                ..Pool::default()
            },
            Pool {
                name: "a/b",
                backends: other,
                ..Pool::default()
            },
        ],
        rules: &[rule("http", 0, 80), rule("https", 1, 443)],
        ..Spec::default()
    })
}

/// A SYN from this client port to a port of the VIP.
fn syn(from: u16, to: u16) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    packet.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 198, 51, 100, 1]);
    packet.extend(VIP);
    let checksum = Sum::ZERO.add_bytes(&packet[14..]).checksum();
    packet[24..26].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(from.to_be_bytes().into_iter().chain(to.to_be_bytes()));
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    packet
}

fn process<'s>(role: &mut impl Dataplane<'s>, packet: &[u8]) -> Verdict {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(packet);
    let mut frames = [Frame::new(&mut buffer, HEADROOM, packet.len()).unwrap()];
    role.process(NOW, &mut frames);
    frames[0].verdict()
}

#[test]
fn counters_are_found_by_name() {
    let (web, other) = ([backend("vm1", 1)], [backend("vm1", 2), backend("c", 3)]);
    let snapshot = with_spec(&web, &other, |spec| Snapshot::new(spec, None)).unwrap();
    let mut mux = Mux::with_capacity(&snapshot, 1000, KEY).unwrap();
    for from in 0..10 {
        assert!(matches!(
            process(&mut mux, &syn(from, 80)),
            Verdict::Forward(_)
        ));
    }
    for from in 0..100 {
        assert!(matches!(
            process(&mut mux, &syn(from, 443)),
            Verdict::Forward(_)
        ));
    }
    let verdict = process(&mut mux, &syn(1, 22));
    assert_eq!(verdict, Verdict::Drop(DropReason::NoRule));
    assert_eq!(mux.stats().dropped[DropReason::NoRule].packets, 1);
    assert_eq!(mux.stats().dropped.total(), mux.stats().dropped_total());
    let dropped: Vec<_> = mux
        .stats()
        .dropped
        .iter()
        .filter(|(_, count)| count.packets > 0)
        .collect();
    assert_eq!(
        dropped,
        [(DropReason::NoRule, mux.stats().dropped[DropReason::NoRule])]
    );

    assert_eq!(mux.rule_counters("http").unwrap().syns, 10);
    assert_eq!(mux.rule_counters("http"), mux.rule_counters(0));
    assert_eq!(mux.rule_counters("https").unwrap().syns, 100);
    assert_eq!(mux.rule_counters("ftp"), None);
    assert_eq!(mux.backend_counters("web/vm1").unwrap().flows, 10);
    assert_eq!(
        mux.backend_counters("web/vm1"),
        mux.backend_counters(("web", "vm1"))
    );
    // A slash in a pool's name.
    let one = mux.backend_counters("a/b/vm1").unwrap().flows;
    let two = mux.backend_counters(("a/b", "c")).unwrap().flows;
    assert!(one > 0 && two > 0 && one + two == 100, "{one} {two}");
    for unknown in ["web", "web/", "/vm1", "vm1", "web/c", ""] {
        assert_eq!(mux.backend_counters(unknown), None, "{unknown}");
    }
}

/// Rules and backends that come, go and change their order keep their names and counters.
#[test]
fn names_follow_their_rules_and_backends_through_reloads() {
    let all = [backend("vm1", 1), backend("vm2", 2), backend("vm3", 3)];
    let none: [Backend<'_>; 0] = [];
    let first = with_spec(&all, &none, |spec| Snapshot::new(spec, None)).unwrap();
    let second = [all[2], all[0]];
    let second = with_spec(&second, &none, |spec| Snapshot::new(spec, Some(&first))).unwrap();
    for (name, index) in [("vm1", 1), ("vm3", 0)] {
        let id = first.backend_named("web", name);
        assert!(id.is_some());
        assert_eq!(second.backend_named("web", name), id);
        assert_eq!(second.backend_index(id.unwrap()), Some(index));
    }
    assert_eq!(second.backend_named("web", "vm2"), None);
    assert_eq!(second.rule_named("https"), Some(1));
    let mut host = Host::with_capacity(&first, 100, KEY).unwrap();
    assert!(host.snat_counters("web/vm2").is_some());
    assert!(host.backend_counters("web/vm2").is_some());
    host.replace_counters(CounterMemory::new(&second));
    host.install(&second).unwrap();
    assert_eq!(host.snat_counters("web/vm2"), None);
    assert_eq!(host.backend_counters("web/vm2"), None);
    assert!(host.backend_counters("web/vm3").is_some());
}

/// A field that is left out of a spec has a usual value, or is refused by name.
#[test]
fn defaults_are_usual_or_refused() {
    let faults = |spec: &Spec<'_>| spec.faults().collect::<Vec<_>>();
    assert_eq!(faults(&Spec::default()), []);
    let pools = [Pool::default()];
    let frontends = [Frontend {
        address: VIP.into(),
        ..Frontend::default()
    }];
    let base = Spec {
        pools: &pools,
        frontends: &frontends,
        ..Spec::default()
    };
    assert_eq!(faults(&base), []);
    let rules = [Rule {
        frontend_port: 80,
        ..Rule::default()
    }];
    assert_eq!(
        faults(&Spec {
            rules: &rules,
            ..base.clone()
        }),
        []
    );
    let outbound = [Outbound::default()];
    let found = faults(&Spec {
        outbound: &outbound,
        ..base.clone()
    });
    assert!(
        matches!(found[..], [SpecError::NoFrontend { .. }]),
        "{found:?}"
    );
    let outbound = [Outbound {
        frontends: &[0],
        ..Outbound::default()
    }];
    assert_eq!(
        faults(&Spec {
            outbound: &outbound,
            ..base.clone()
        }),
        []
    );
    let nat = [InboundNat::default()];
    let found = faults(&Spec {
        inbound_nat: &nat,
        ..base.clone()
    });
    assert!(!found.is_empty());
    assert_eq!(Protocol::default(), Protocol::Tcp);
}
