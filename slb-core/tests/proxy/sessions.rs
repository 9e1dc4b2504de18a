//! Sessions while backends and weights change, and the addresses that backends see.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use slb_core::hash::Distribution;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, FrontendPort, Pool, ProxyPorts, Rule, Scheduler,
    SourceRewrite, Spec,
};
use slb_core::{Burst, DropReason, PortId, Proxy, Verdict};

use super::setup::*;

#[test]
fn a_session_stays_whatever_is_added_removed_or_weighted_at_run_time() {
    for scheduler in [Scheduler::Maglev, Scheduler::LeastConnections] {
        let mut setup = Setup::new(4);
        setup.scheduler = scheduler;
        let mut proxy = setup.proxy();
        let sessions = all_open(&mut proxy, 400);
        setup.pools[0].push((5, 1, BackendState::Up));
        setup.install(&mut proxy);
        nobody_moved(&mut proxy, &sessions);
        setup.pools[0][0].1 = 50;
        setup.install(&mut proxy);
        nobody_moved(&mut proxy, &sessions);
        setup.pools[0][1].2 = BackendState::Draining;
        setup.pools[0][2].2 = BackendState::Down;
        setup.install(&mut proxy);
        nobody_moved(&mut proxy, &sessions);
        // Even those of a backend that is no longer there go on.
        setup.pools[0].remove(3);
        setup.install(&mut proxy);
        proxy.advance(NOW, &mut Burst::new());
        nobody_moved(&mut proxy, &sessions);
        assert_eq!(proxy.stats().connections.live, 400);
        // But nobody new comes to any of these.
        for n in 0..200 {
            let backend = open(&mut proxy, at(Ipv4Addr::new(203, 0, 113, 1), 20_000 + n)).0;
            assert!([1, 5].iter().any(|&n| backend == server(n)), "{backend}");
        }
    }
}

#[test]
fn a_syn_that_nobody_answered_comes_again_to_a_backend_that_takes_new_ones() {
    type Change = fn(&mut Vec<(usize, u32, BackendState)>, usize);
    let changes: [Change; 4] = [
        |pool, place| pool[place].2 = BackendState::Down,
        |pool, place| pool[place].2 = BackendState::Draining,
        |pool, place| pool[place].1 = 0,
        |pool, place| {
            pool.remove(place);
        },
    ];
    for (change, scheduler) in changes
        .into_iter()
        .flat_map(|change| [Scheduler::Maglev, Scheduler::LeastConnections].map(|s| (change, s)))
    {
        let mut setup = Setup::new(4);
        setup.scheduler = scheduler;
        let mut proxy = setup.proxy();
        let [asking, answered] = [at(CLIENT, 1000), at(CLIENT, 1001)];
        let first = open(&mut proxy, asking);
        assert_eq!(open(&mut proxy, asking), first);
        // One whose backend has answered is a session.
        let backend = open(&mut proxy, answered);
        give(&mut proxy, BACKEND, &tcp(backend, answered, "SA"));
        let place = |of: Endpoint| (1..=4).position(|n| of.0 == server(n)).unwrap();
        let mut gone = [place(first), place(backend)];
        gone.sort_unstable();
        change(&mut setup.pools[0], gone[1]);
        if gone[0] != gone[1] {
            change(&mut setup.pools[0], gone[0]);
        }
        setup.install(&mut proxy);
        let second = open(&mut proxy, asking);
        assert!(!gone.contains(&place(second)));
        assert_eq!(open(&mut proxy, asking), second);
        assert_eq!(open(&mut proxy, answered), backend);
        // The second one's answer is the session's, and the first one's is nobody's.
        let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(second, asking, "SA"));
        assert_eq!(verdict, Verdict::Forward(FRONTEND));
        assert_eq!(ends(&frame), (at(VIP, 80), asking));
        let late = tcp(first, asking, "SA");
        let (verdict, _) = give(&mut proxy, BACKEND, &late);
        assert_eq!(verdict, Verdict::Drop(DropReason::NoConnection));
        // And one that is left to drop the late answer of the old backend.
        assert_eq!(proxy.stats().connections.live, 3);
    }
}

#[test]
fn a_backend_of_weight_10_gets_twice_the_sessions_of_one_of_weight_5() {
    let mut setup = Setup::new(2);
    (setup.pools[0][0].1, setup.pools[0][1].1) = (10, 5);
    let mut proxy = setup.proxy();
    let count = 9000;
    let first = clients(count)
        .filter(|&client| open(&mut proxy, client).0 == server(1))
        .count();
    // Four standard deviations of so many throws.
    let expected = f64::from(count) * 2.0 / 3.0;
    let deviation = (f64::from(count) * 2.0 / 9.0).sqrt();
    assert!(
        (first as f64 - expected).abs() < 4.0 * deviation,
        "{first} of {count}"
    );
}

#[test]
fn least_connections_goes_by_what_is_live_and_by_weight() {
    let mut setup = Setup::new(3);
    setup.scheduler = Scheduler::LeastConnections;
    setup.pools[0][2].1 = 2;
    let mut proxy = setup.proxy();
    let mut count = HashMap::<IpAddr, u32>::new();
    let sessions = all_open(&mut proxy, 400);
    for backend in sessions.values() {
        *count.entry(backend.0).or_default() += 1;
    }
    assert_eq!(count[&server(1).into()], 100);
    assert_eq!(count[&server(2).into()], 100);
    assert_eq!(count[&server(3).into()], 200);
    // Those of the first end: the next ones go there, until it has its share again.
    let first = sessions
        .iter()
        .filter(|(_, backend)| backend.0 == server(1));
    for (&client, &backend) in first {
        give(&mut proxy, FRONTEND, &tcp(client, at(VIP, 80), "RA"));
        give(&mut proxy, BACKEND, &tcp(backend, client, "RA"));
    }
    // The others are used in the meantime.
    let soon = NOW + Duration::from_secs(200);
    for (&client, _) in sessions.iter().filter(|(_, to)| to.0 != server(1)) {
        give_at(&mut proxy, soon, FRONTEND, &tcp(client, at(VIP, 80), "A"));
    }
    let later = NOW + Duration::from_secs(300);
    for step in 0..64 {
        proxy.advance(later + Duration::from_millis(step * 40), &mut Burst::new());
    }
    let live = proxy.stats().connections.live;
    assert_eq!(live, 300);
    for n in 0..100 {
        let client = at(Ipv4Addr::new(203, 0, 113, 1), 20_000 + n);
        let syn = tcp(client, at(VIP, 80), "S");
        let (_, frame) = give_at(&mut proxy, later, FRONTEND, &syn);
        assert_eq!(ends(&frame).1.0, server(1));
    }
}

#[test]
fn between_equally_loaded_backends_the_heavier_one_takes_a_connection() {
    let mut setup = Setup::new(3);
    setup.scheduler = Scheduler::LeastConnections;
    setup.pools[0][2].1 = 2;
    for client in 0..50 {
        let mut proxy = setup.proxy();
        let mut next = |port: u16| {
            let client = at(Ipv4Addr::new(203, 0, 113, client), port);
            let (_, frame) = give(&mut proxy, FRONTEND, &tcp(client, at(VIP, 80), "S"));
            ends(&frame).1.0
        };
        // One of two is as much as none and one of one.
        assert_eq!([next(1000), next(1001)], [server(3); 2].map(IpAddr::from));
        assert_ne!(next(1002), server(3));
    }
}

#[test]
fn source_ip_distribution_keeps_a_client_together() {
    let names: Vec<String> = (0..8).map(|n| format!("server{n}")).collect();
    let backends: Vec<Backend<'_>> = (0..8)
        .map(|n| Backend {
            name: &names[n],
            address: server(n + 1).into(),
            ..Backend::default()
        })
        .collect();
    let spec = Spec {
        frontends: &[Frontend {
            name: "web",
            address: VIP.into(),
            icmp_echo: Echo::Answer,
        }],
        rules: &[Rule {
            name: "http",
            frontend_port: 80,
            backend_port: 80,
            distribution: Distribution::SourceIp,
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "servers",
            table_size: 4099,
            backends: &backends,
            ..Pool::default()
        }],
        proxy: Some(ProxyPorts {
            frontends: &[FrontendPort::default()],
            backend: BACKEND,
            ..ProxyPorts::default()
        }),
        ..Spec::default()
    };
    let mut proxy =
        Proxy::with_capacity(Box::new(Snapshot::new(&spec, None).unwrap()), 1 << 10, KEY)
            .expect("its role");
    let mut reached = HashSet::new();
    for client in 0..20 {
        let address = Ipv4Addr::from_bits(CLIENT.to_bits() + client);
        let of_client: HashSet<_> = (0..10)
            .map(|port| open(&mut proxy, at(address, 20_000 + port)))
            .collect();
        assert_eq!(of_client.len(), 1);
        reached.extend(of_client);
    }
    assert!(reached.len() > 3);
}

#[test]
fn clients_of_a_range_are_seen_under_another_and_back() {
    let mut setup = Setup::new(2);
    setup.rewrites.push(SourceRewrite {
        from: Ipv4Addr::new(198, 51, 100, 0).into(),
        to: Ipv4Addr::new(192, 168, 5, 0).into(),
        prefix_len: 24,
    });
    let mut proxy = setup.proxy();
    let client = at(CLIENT, 50_000);
    let (_, frame) = give(&mut proxy, FRONTEND, &tcp(client, at(VIP, 80), "S"));
    let seen = at(Ipv4Addr::new(192, 168, 5, 10), 50_000);
    let (from, backend) = ends(&frame);
    assert_eq!(from, seen);
    let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(backend, seen, "SA"));
    assert_eq!(verdict, Verdict::Forward(FRONTEND));
    assert_eq!(ends(&frame), (at(VIP, 80), client));
    // Others are seen as they are, and so is who goes elsewhere.
    let other = at(Ipv4Addr::new(203, 0, 113, 1), 50_000);
    let (_, frame) = give(&mut proxy, FRONTEND, &tcp(other, at(VIP, 80), "S"));
    assert_eq!(ends(&frame).0, other);
    let packet = tcp(client, at(server(1), 22), "S");
    assert_eq!(give(&mut proxy, FRONTEND, &packet).1, packet);
}

#[test]
fn source_nat_hides_clients_and_keeps_them_apart() {
    let mut setup = Setup::multi(1);
    setup.terms.source_nat = Some(Ipv4Addr::new(10, 10, 1, 250).into());
    let mut proxy = setup.proxy();
    // The same client's address and port, behind two frontends.
    let client = at(CLIENT, 50_000);
    let mut seen = HashMap::new();
    for port in [PortId(0), PortId(1)] {
        let (_, frame) = give(&mut proxy, port, &tcp(client, at(VIP, 80), "S"));
        let (from, backend) = ends(&frame);
        assert_eq!(from.0, Ipv4Addr::new(10, 10, 1, 250));
        seen.insert(port, (from, backend));
    }
    assert_ne!(seen[&PortId(0)].0, seen[&PortId(1)].0);
    for (port, (from, backend)) in seen {
        let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(backend, from, "SA"));
        assert_eq!(verdict, Verdict::Forward(port));
        assert_eq!(ends(&frame), (at(VIP, 80), client));
    }
}

#[test]
fn two_clients_that_a_backend_could_not_tell_apart_get_two_ports() {
    let mut proxy = Setup::multi(1).proxy();
    let client = at(CLIENT, 50_000);
    let syn = tcp(client, at(VIP, 80), "S");
    let mut sessions = Vec::new();
    for port in [PortId(0), PortId(1), PortId(2)] {
        let (verdict, frame) = give(&mut proxy, port, &syn);
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        let (seen, backend) = ends(&frame);
        assert_eq!(seen.0, client.0);
        assert_eq!(seen.1 == client.1, port == PortId(0));
        sessions.push((port, seen, backend));
    }
    for (port, seen, backend) in sessions {
        let answer = give(&mut proxy, BACKEND, &tcp(backend, seen, "SA"));
        assert_eq!(answer.0, Verdict::Forward(port));
        assert_eq!(ends(&answer.1), (at(VIP, 80), client));
    }
    // A protocol without ports has no other name.
    let second = Ipv4Addr::from_bits(VIP.to_bits() + 1);
    let mut packet = Vec::new();
    link(CLIENT.into(), second.into())
        .write(&mut packet, etherparse::IpNumber::GRE, b"tunnelled")
        .unwrap();
    for expected in [Verdict::Forward(BACKEND), Verdict::Reply] {
        let port = PortId(u16::from(expected != Verdict::Forward(BACKEND)));
        let (verdict, frame) = give(&mut proxy, port, &packet);
        assert_eq!(verdict, expected);
        // The client is told that it is prohibited, in the name of the VIP.
        if expected == Verdict::Reply {
            let header = &frame[14..34];
            assert_eq!(
                (&header[12..16], &header[16..]),
                (&second.octets()[..], &CLIENT.octets()[..])
            );
            assert_eq!(frame[34..36], [3, 13]);
            assert_eq!(frame[42..], packet[14..]);
        }
    }
}
