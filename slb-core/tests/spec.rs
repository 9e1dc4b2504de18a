//! Contradictions in a spec: each is found, and reported with all its places.

#![allow(
    clippy::semicolon_if_nothing_returned,
    reason = "each closure is one assignment"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_core::mem::{Arena, Line};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, FrontendPort, InboundNat, NatTarget, Outbound, Pool, PortMode,
    Protocol, ProxyPorts, Rule, SourceRewrite, Spec, SpecError, Terms, Underlay,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{Burst, Dataplane, Frame, HEADROOM, Host, Instant, Mux, PortId, Proxy, Verdict};

const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));

fn frontend(name: &str, last: u8) -> Frontend<'_> {
    Frontend {
        name,
        address: Ipv4Addr::new(20, 20, 20, last).into(),
        icmp_echo: Echo::Answer,
    }
}

fn backend(name: &str, last: u8) -> Backend<'_> {
    Backend {
        name,
        address: Ipv4Addr::new(10, 10, 1, last).into(),
        host: Ipv4Addr::new(172, 16, 0, 101).into(),
        port: Some(PortId(last.into())),
        ..Backend::default()
    }
}

fn rule(name: &str) -> Rule<'_> {
    Rule {
        name,
        frontend_port: 80,
        backend_port: 8080,
        ..Rule::default()
    }
}

fn pool<'a>(name: &'a str, backends: &'a [Backend<'a>]) -> Pool<'a> {
    Pool {
        name,
        vni: Vni::new(7).expect("small"),
        table_size: 251,
        backends,
        ..Pool::default()
    }
}

fn nat(name: &str, target: NatTarget) -> InboundNat<'_> {
    InboundNat {
        name,
        frontend: 0,
        pool: 0,
        target,
        protocol: Protocol::Tcp,
        backend_port: 22,
        idle_timeout: Rule::default().idle_timeout,
        terms: Terms::default(),
    }
}

fn outbound<'a>(frontends: &'a [usize], ports: Option<u32>) -> Outbound<'a> {
    Outbound {
        name: "out",
        frontends,
        pool: 0,
        protocol: Protocol::All,
        allocated_outbound_ports: ports,
        idle_timeout: Rule::default().idle_timeout,
        tcp_reset: false,
    }
}

/// A good spec, which each test makes bad in one way.
fn with_good(change: impl FnOnce(&mut Spec<'_>)) -> Result<Snapshot<'static>, SpecError> {
    let frontends = [frontend("web", 100)];
    let backends = [backend("a", 1), backend("b", 2)];
    let (rules, pools) = ([rule("http")], [pool("p", &backends)]);
    let mut spec = Spec {
        underlay: Underlay {
            ipv4: Some(Ipv4Addr::new(172, 16, 0, 101)),
            ..Underlay::default()
        },
        frontends: &frontends,
        rules: &rules,
        pools: &pools,
        ..Spec::default()
    };
    change(&mut spec);
    let built = Snapshot::new(&spec, None);
    let faults: Vec<SpecError> = spec.faults().collect();
    match &built {
        Ok(_) => assert_eq!(faults, []),
        Err(error) => assert!(faults.contains(error), "{error}: {faults:?}"),
    }
    built
}

/// Leaks a value, since a spec's references have to outlive the closure that makes it.
fn leak<T>(value: Vec<T>) -> &'static [T] {
    Vec::leak(value)
}

#[track_caller]
fn fault(change: impl FnOnce(&mut Spec<'_>), expected: &str) {
    match with_good(change) {
        Ok(_) => panic!("it was taken: {expected}"),
        Err(error) => assert_eq!(error.to_string(), expected),
    }
}

#[test]
fn each_contradiction_is_told() {
    assert!(with_good(|_| ()).is_ok());
    fault(
        |spec| spec.frontends = leak(vec![frontend("web", 1), frontend("other", 1)]),
        "frontends 0 and 1 have the same address",
    );
    fault(
        |spec| {
            spec.pools = leak(vec![pool(
                "p",
                leak(vec![backend("a", 1), backend("a", 1)]),
            )])
        },
        "pool 0: backend 1: duplicate name",
    );
    let twice = || {
        vec![
            pool("p", leak(vec![backend("a", 1)])),
            pool("p", leak(vec![backend("a", 1)])),
        ]
    };
    fault(
        |spec| spec.pools = leak(twice()),
        "backends 0 and 1 have the same pool, name and address",
    );
    let other_port = Rule {
        frontend_port: 81,
        ..rule("http")
    };
    fault(
        |spec| spec.rules = leak(vec![rule("http"), other_port]),
        "rule 0 and rule 1 have the same name",
    );
    fault(
        |spec| spec.rules = leak(vec![rule("http"), rule("again")]),
        "rule 0 and rule 1 take the same protocol and port of one VIP",
    );
    let elsewhere = Rule {
        pool: 9,
        ..rule("http")
    };
    fault(
        |spec| spec.rules = leak(vec![elsewhere]),
        "rule 0: pool 9 does not exist, there are 1",
    );
    let of_another_family = Rule {
        terms: Terms {
            source_nat: Some(V6),
            ..Terms::default()
        },
        ..rule("http")
    };
    fault(
        |spec| spec.rules = leak(vec![of_another_family]),
        "rule 0: the source NAT address is not of the frontend's family",
    );
    for (protocol, frontend_port) in [(Protocol::Tcp, 0), (Protocol::All, 80), (Protocol::Icmp, 1)]
    {
        let bad = Rule {
            protocol,
            frontend_port,
            ..rule("http")
        };
        fault(
            |spec| spec.rules = leak(vec![bad]),
            "rule 0: the frontend port must be 0 for protocols without ports, and not 0 otherwise",
        );
    }
    let six = Backend {
        address: V6,
        ..backend("six", 3)
    };
    fault(
        |spec| spec.pools = leak(vec![pool("p", leak(vec![backend("a", 1), six]))]),
        "rule 0: frontend 0 and backend 1 of pool 0 are of different families",
    );
    let sized = |table_size| Pool {
        table_size,
        ..pool("p", leak(vec![backend("a", 1)]))
    };
    fault(
        |spec| spec.pools = leak(vec![sized(250)]),
        "pool 0: the table's size must be a prime from 3 to 16777216, not 250",
    );
    let many: Vec<Backend<'_>> = ["a", "b", "c", "d"]
        .into_iter()
        .zip(1..)
        .map(|(n, i)| backend(n, i))
        .collect();
    let small = Pool {
        table_size: 3,
        ..pool("p", leak(many))
    };
    fault(
        |spec| spec.pools = leak(vec![small]),
        "pool 0: 4 backends, but the table takes at most 3",
    );
    let far = Backend {
        host: V6,
        ..backend("far", 3)
    };
    fault(
        |spec| spec.pools = leak(vec![pool("p", leak(vec![far]))]),
        "pool 0: the underlay has no address of the family of backend 0's host",
    );
}

#[test]
fn contradictions_of_nat_are_told() {
    let one = |port, backend| nat("ssh", NatTarget::Backend { port, backend });
    fault(
        |spec| spec.inbound_nat = leak(vec![one(2222, 5)]),
        "inbound NAT 0: backend 5 does not exist, there are 2",
    );
    let foreign = InboundNat {
        terms: Terms {
            source_nat: Some(V6),
            ..Terms::default()
        },
        ..one(2222, 0)
    };
    fault(
        |spec| spec.inbound_nat = leak(vec![foreign]),
        "inbound NAT 0: the source NAT address is not of the frontend's family",
    );
    for bad in [
        one(0, 0),
        InboundNat {
            protocol: Protocol::Icmp,
            ..one(22, 0)
        },
        InboundNat {
            backend_port: 0,
            ..one(22, 0)
        },
    ] {
        fault(
            |spec| spec.inbound_nat = leak(vec![bad]),
            "inbound NAT 0: expected tcp or udp, and ports other than 0",
        );
    }
    let range = nat(
        "all",
        NatTarget::Pool {
            first: 5000,
            last: 5000,
        },
    );
    fault(
        |spec| spec.inbound_nat = leak(vec![range]),
        "inbound NAT 0: no port is left for instance 1",
    );
    for (frontends, expected) in [
        (&[][..], "outbound rule 0: expected a frontend, got none"),
        (
            &[7],
            "outbound rule 0: frontend 7 does not exist, there are 1",
        ),
        (&[0, 0], "outbound rule 0: frontend 0 is named twice"),
    ] {
        fault(
            |spec| spec.outbound = leak(vec![outbound(frontends, None)]),
            expected,
        );
    }
    for ports in [0, 12] {
        fault(
            |spec| spec.outbound = leak(vec![outbound(&[0], Some(ports))]),
            "outbound rule 0: expected a multiple of 8 ports for each backend",
        );
    }
    let same = Backend {
        instance: Some(0),
        ..backend("b", 2)
    };
    fault(
        |spec| {
            spec.pools = leak(vec![pool("p", leak(vec![backend("a", 1), same]))]);
            spec.outbound = leak(vec![outbound(&[0], None)]);
        },
        "pool 0: backends 0 and 1 have the same instance number, 0",
    );
    fault(
        |spec| spec.outbound = leak(vec![outbound(&[0], Some(40_000))]),
        "outbound rule 0: 80000 ports of frontend 0 are needed, 64512 are free",
    );
    let other_vm = Backend {
        port: Some(PortId(1)),
        mac: Some(MacAddress([2; 6])),
        ..backend("b", 2)
    };
    fault(
        |spec| spec.pools = leak(vec![pool("p", leak(vec![backend("a", 1), other_vm]))]),
        "backends 0 and 1 at port 1 are not one vm: expected one port, network and MAC address",
    );
}

#[test]
fn contradictions_of_a_proxy_are_told() {
    let at = |number, address| FrontendPort {
        port: PortId(number),
        address,
    };
    let address = Some(Ipv4Addr::new(10, 0, 0, 1));
    let ports = |mode, frontends: Vec<FrontendPort>, rewrites: Vec<SourceRewrite>| ProxyPorts {
        mode,
        frontends: leak(frontends),
        backend: PortId(9),
        source_rewrites: leak(rewrites),
    };
    let multi = PortMode::Multi;
    let four: IpAddr = Ipv4Addr::new(10, 0, 0, 0).into();
    let rewrite = |from, to, prefix_len| SourceRewrite {
        from,
        to,
        prefix_len,
    };
    for (bad, expected) in [
        (
            ports(PortMode::Single, vec![], vec![]),
            "expected one frontend port (or several in multi mode), got 0",
        ),
        (
            ports(multi, vec![at(1, None)], vec![]),
            "frontend port 1 has no address, in multi mode",
        ),
        (
            ports(multi, vec![at(1, address), at(2, address)], vec![]),
            "port 2: another port has its number or address, or the number is 65535",
        ),
        (
            ports(PortMode::Single, vec![at(u16::MAX, None)], vec![]),
            "port 65535: another port has its number or address, or the number is 65535",
        ),
        (
            ports(
                PortMode::Single,
                vec![at(1, None)],
                vec![rewrite(four, V6, 8)],
            ),
            "source rewrite 0: expected two ranges of one family and size",
        ),
        (
            ports(
                PortMode::Single,
                vec![at(1, None)],
                vec![rewrite(four, four, 33)],
            ),
            "source rewrite 0: expected two ranges of one family and size",
        ),
    ] {
        fault(|spec| spec.proxy = Some(bad), expected);
    }
}

#[test]
fn too_little_memory_is_told_with_what_is_needed() {
    let backends = [backend("a", 1)];
    let spec = Spec {
        pools: &[pool("p", &backends)],
        underlay: Underlay {
            ipv4: Some(Ipv4Addr::new(172, 16, 0, 101)),
            ..Underlay::default()
        },
        ..Spec::default()
    };
    let needed = Snapshot::lines_for(&spec, None);
    let mut lines = vec![Line::EMPTY; needed];
    assert!(Snapshot::build(&spec, None, &mut Arena::new(&mut lines)).is_ok());
    let few = lines.split_last_mut().expect("some").1;
    let error = Snapshot::build(&spec, None, &mut Arena::new(few)).expect_err("too few");
    let expected = format!("the memory is used up: {needed} lines of 64 bytes are needed");
    assert_eq!(error.to_string(), expected);
}

/// A loop that runs any role, as an embedder writes it.
fn run<'s>(role: &mut impl Dataplane<'s>) -> (Verdict, slb_core::Stats) {
    let mut buffer = [0; HEADROOM + 60];
    let mut frames = [Frame::new(&mut buffer, HEADROOM, 60).expect("room")];
    role.process(Instant::from_secs(1), &mut frames);
    let verdict = frames[0].verdict();
    let mut spare = Burst::new();
    role.advance(Instant::from_secs(2), &mut spare);
    assert_eq!(role.snapshot().generation(), 1);
    assert!(role.rule_counters(0).is_some() && role.rule_counters(99).is_none());
    let id = role.snapshot().backends()[0].id();
    assert_eq!(
        role.backend_counters(id).map(|counters| counters.flows),
        Some(0)
    );
    (verdict, role.stats())
}

#[test]
fn one_loop_runs_every_role_and_their_counters_add_up() {
    let snapshot = || Box::new(with_good(|_| ()).expect("good"));
    let key = slb_core::Key::new([1, 2]);
    let (verdict, mux) = run(&mut Mux::with_capacity(snapshot(), 64, key).expect("its role"));
    assert_eq!(verdict, Verdict::Pass);
    let mut host = Host::with_capacity(snapshot(), 64, key).expect("its role");
    let (_, of_host) = run(&mut host);
    let ports = ProxyPorts {
        frontends: leak(vec![FrontendPort::default()]),
        backend: PortId(1),
        ..ProxyPorts::default()
    };
    let of_proxy = Box::new(with_good(|spec| spec.proxy = Some(ports)).expect("good"));
    let mut proxy = Proxy::with_capacity(of_proxy, 64, key).expect("its role");
    let (_, of_proxy) = run(&mut proxy);
    let mut total = mux;
    total += of_host;
    total += of_proxy;
    assert_eq!(total.received.packets, 3);
    assert_eq!(total.received, total.accounted());
    assert_eq!((total.received - mux.received).packets, 2);
    for text in [format!("{host:?}"), format!("{proxy:?}")] {
        assert!(text.contains("stats"), "{text}");
    }
    let (rule, id) = (host.rule_counters(0), host.snapshot().backends()[0].id());
    let (mut rule, mut backend) = (
        rule.expect("there"),
        host.backend_counters(id).expect("there"),
    );
    rule += rule;
    backend += backend;
    assert_eq!((rule.syns, backend.live), (0, 0));
}
