//! Specs whose addresses or rules are in each other's way are refused, by `Spec::faults` and by snapshots alike.

use std::net::IpAddr;

use slb_core::PortId;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Frontend, FrontendPort, InboundNat, NatTarget, Outbound, Pool, Protocol, ProxyPorts,
    Rule, RuleItem, SourceRewrite, Spec, SpecError, Terms, Underlay,
};
use slb_core::wire::ethernet::MacAddress;

const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 0xaa]);
const ROUTER: MacAddress = MacAddress([2, 0, 0, 0, 0, 0xbb]);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn underlay() -> Underlay {
    Underlay {
        ipv4: Some([172, 16, 0, 1].into()),
        mac: OWN,
        next_hop: ROUTER,
        ..Underlay::default()
    }
}

fn frontend<'a>(name: &'a str, address: &str) -> Frontend<'a> {
    Frontend {
        name,
        address: ip(address),
        ..Frontend::default()
    }
}

fn vm<'a>(name: &'a str, address: &str) -> Backend<'a> {
    Backend {
        name,
        address: ip(address),
        host: ip("172.16.0.1"),
        ..Backend::default()
    }
}

fn pool<'a>(name: &'a str, backends: &'a [Backend<'a>]) -> Pool<'a> {
    Pool {
        name,
        table_size: 251,
        backends,
        ..Pool::default()
    }
}

fn http<'a>() -> Rule<'a> {
    Rule {
        name: "http",
        frontend_port: 80,
        ..Rule::default()
    }
}

/// All faults, of which the snapshot names one.
#[track_caller]
fn faults(spec: &Spec<'_>) -> Vec<SpecError> {
    let faults: Vec<SpecError> = spec.faults().collect();
    match Snapshot::new(spec, None) {
        Ok(_) => assert_eq!(faults, []),
        Err(error) => assert!(faults.contains(&error), "{error}: {faults:?}"),
    }
    faults
}

#[test]
fn a_vip_is_no_backends_address() {
    for (vip, backend) in [("10.0.0.9", "10.0.0.1"), ("fd00::9", "fd00::1")] {
        for clashes in [false, true] {
            let backends = [
                vm("b1", backend),
                vm("b2", if clashes { vip } else { backend }),
            ];
            let pools = [pool("p", &backends[..1]), pool("q", &backends[1..])];
            let spec = Spec {
                underlay: underlay(),
                frontends: &[frontend("web", vip)],
                rules: &[http()],
                pools: &pools,
                ..Spec::default()
            };
            let expected = SpecError::FrontendBackend {
                frontend: 0,
                pool: 1,
                backend: 0,
            };
            let expected = if clashes { vec![expected] } else { Vec::new() };
            assert_eq!(faults(&spec), expected, "{vip}");
            if let Some(fault) = expected.first() {
                assert_eq!(
                    fault.named(&spec).to_string(),
                    "frontend \"web\" has the address of backend \"b2\" of pool \"q\": expected another one"
                );
            }
        }
    }
}

#[test]
fn a_proxys_backends_may_be_vips_of_other_rules() {
    let backends = [vm("b1", "10.0.0.1"), vm("b2", "10.0.0.9")];
    let pools = [pool("p", &backends[..1]), pool("q", &backends[1..])];
    let frontends = [frontend("web", "10.0.0.9"), frontend("mail", "10.0.0.8")];
    let ports = [FrontendPort {
        port: PortId(1),
        address: None,
    }];
    let of = |frontend| {
        let rules = [Rule {
            frontend,
            pool: 1,
            ..http()
        }];
        faults(&Spec {
            frontends: &frontends,
            rules: &rules,
            pools: &pools,
            proxy: Some(ProxyPorts {
                frontends: &ports,
                ..ProxyPorts::default()
            }),
            ..Spec::default()
        })
    };
    assert_eq!(of(1), []);
    let expected = SpecError::FrontendBackend {
        frontend: 0,
        pool: 1,
        backend: 0,
    };
    assert_eq!(of(0), [expected]);
}

#[test]
fn source_nat_takes_no_vip() {
    let terms = |address: &str| Terms {
        source_nat: Some(ip(address)),
        ..Terms::default()
    };
    for (address, is_vip) in [("20.0.0.3", false), ("20.0.0.2", true)] {
        let rules = [Rule {
            terms: terms(address),
            ..http()
        }];
        let nat = [InboundNat {
            name: "ssh",
            target: NatTarget::Backend {
                port: 22,
                backend: 0,
            },
            backend_port: 22,
            terms: terms(address),
            ..InboundNat::default()
        }];
        let found = faults(&Spec {
            underlay: underlay(),
            frontends: &[frontend("web", "20.0.0.1"), frontend("mail", "20.0.0.2")],
            rules: &rules,
            inbound_nat: &nat,
            pools: &[pool("p", &[vm("b", "10.0.0.1")])],
            ..Spec::default()
        });
        let expected = [RuleItem::Rule(0), RuleItem::InboundNat(0)]
            .map(|item| SpecError::SourceNatFrontend { item, frontend: 1 });
        assert_eq!(
            found,
            if is_vip {
                expected.to_vec()
            } else {
                Vec::new()
            }
        );
    }
}

#[test]
fn no_vm_and_no_neighbour_has_the_nodes_mac_address() {
    let spec = |backend: Backend<'_>, underlay: Underlay, is_proxy: bool| {
        let ports = [FrontendPort {
            port: PortId(1),
            address: None,
        }];
        faults(&Spec {
            underlay,
            frontends: &[frontend("web", "20.0.0.1")],
            rules: &[http()],
            pools: &[pool("p", &[vm("a", "10.0.0.2"), backend])],
            proxy: is_proxy.then_some(ProxyPorts {
                frontends: &ports,
                ..ProxyPorts::default()
            }),
            ..Spec::default()
        })
    };
    let plain = vm("b", "10.0.0.1");
    let with_mac = Backend {
        mac: Some(OWN),
        ..plain
    };
    let with_hop = Backend {
        next_hop: Some(OWN),
        ..plain
    };
    let at = (0, 1);
    let (pool, backend) = at;
    for is_proxy in [false, true] {
        assert_eq!(spec(plain, underlay(), is_proxy), []);
        assert_eq!(
            spec(with_hop, underlay(), is_proxy),
            [SpecError::OwnNextHop { pool, backend }]
        );
    }
    // A proxy uses the MAC address of no backend.
    assert_eq!(spec(with_mac, underlay(), true), []);
    assert_eq!(
        spec(with_mac, underlay(), false),
        [SpecError::OwnMac { pool, backend }]
    );
    // One that is derived, too.
    let derived = Underlay {
        mac: MacAddress([0x0a, 0x58, 10, 0, 0, 1]),
        ..underlay()
    };
    assert_eq!(
        spec(plain, derived, false),
        [SpecError::OwnMac { pool, backend }]
    );
    let loops = Underlay {
        next_hop: OWN,
        ..underlay()
    };
    assert_eq!(spec(plain, loops, false), [SpecError::OwnUnderlayNextHop]);
    assert_eq!(spec(plain, loops, true), []);
    // What is not known yet is nobody's.
    let unknown = Underlay {
        mac: MacAddress::UNKNOWN,
        next_hop: MacAddress::UNKNOWN,
        ..underlay()
    };
    assert_eq!(spec(plain, unknown, false), []);
}

#[test]
fn one_address_in_a_network_has_one_mac_address() {
    let at = |name, mac: u8, port| Backend {
        mac: Some(MacAddress([2, 0, 0, 0, 1, mac])),
        port: Some(PortId(port)),
        ..vm(name, "10.0.0.1")
    };
    for (mac, port, expected) in [
        (1, 1, vec![]),
        (
            2,
            2,
            vec![SpecError::TwoMacs {
                first: 0,
                second: 1,
            }],
        ),
    ] {
        let (one, other) = ([at("a", 1, 1)], [at("b", mac, port)]);
        let found = faults(&Spec {
            underlay: underlay(),
            frontends: &[frontend("web", "20.0.0.1")],
            rules: &[http()],
            pools: &[pool("p", &one), pool("q", &other)],
            ..Spec::default()
        });
        assert_eq!(found, expected);
    }
}

#[test]
fn a_protocol_of_a_pool_goes_out_under_a_frontend_by_one_rule() {
    use Protocol::{All, Icmp, Tcp, Udp};
    let rule = |frontends, pool, protocol| (frontends, pool, protocol);
    let conflict = |first, second| SpecError::ConflictingOutbound { first, second };
    let (both, first, second) = (&[0, 1][..], &[0][..], &[1][..]);
    for (rules, expected) in [
        (vec![rule(first, 0, All), rule(second, 0, All)], vec![]),
        (vec![rule(first, 0, Tcp), rule(first, 0, Udp)], vec![]),
        (vec![rule(first, 0, Tcp), rule(first, 1, Tcp)], vec![]),
        (
            vec![rule(first, 0, Tcp), rule(both, 0, Tcp)],
            vec![conflict(0, 1)],
        ),
        (
            vec![rule(both, 0, All), rule(both, 0, All)],
            vec![conflict(0, 1)],
        ),
        (
            vec![
                rule(first, 0, All),
                rule(first, 0, Icmp),
                rule(first, 0, Udp),
            ],
            vec![conflict(0, 1), conflict(0, 2)],
        ),
    ] {
        let names = ["a", "b", "c"];
        let outbound: Vec<Outbound<'_>> = rules
            .iter()
            .zip(names)
            .map(|(&(frontends, pool, protocol), name)| Outbound {
                name,
                frontends,
                pool,
                protocol,
                ..Outbound::default()
            })
            .collect();
        let found = faults(&Spec {
            underlay: underlay(),
            frontends: &[frontend("web", "20.0.0.1"), frontend("mail", "20.0.0.2")],
            pools: &[
                pool("p", &[vm("b", "10.0.0.1")]),
                pool("q", &[vm("c", "10.0.0.2")]),
            ],
            outbound: &outbound,
            ..Spec::default()
        });
        assert_eq!(found, expected, "{rules:?}");
    }
}

#[test]
fn source_rewrites_are_of_unicast_addresses_and_apart() {
    let rewrite = |from: &str, to: &str, prefix_len| SourceRewrite {
        from: ip(from),
        to: ip(to),
        prefix_len,
    };
    let odd = |index| SpecError::SourceRewriteAddress { index };
    let overlap = |first, second| SpecError::SourceRewriteOverlap { first, second };
    for (rewrites, expected) in [
        (
            vec![
                rewrite("10.1.2.3", "192.168.9.9", 32),
                rewrite("10.1.2.0", "192.168.7.0", 24),
                rewrite("fd00:1::", "fd00:2::", 64),
            ],
            vec![],
        ),
        // The second one never counts.
        (
            vec![
                rewrite("10.1.2.0", "192.168.7.0", 24),
                rewrite("10.1.2.3", "192.168.9.9", 32),
            ],
            vec![overlap(0, 1)],
        ),
        // Two clients under one address.
        (
            vec![
                rewrite("10.1.2.0", "192.168.7.0", 24),
                rewrite("10.1.3.0", "192.168.7.128", 25),
            ],
            vec![overlap(0, 1)],
        ),
        (
            vec![
                rewrite("fd00:1::", "fd00:2::", 64),
                rewrite("fd00:3::", "fd00:2::", 64),
            ],
            vec![overlap(0, 1)],
        ),
        (vec![rewrite("224.0.0.0", "192.168.7.0", 24)], vec![odd(0)]),
        (vec![rewrite("10.1.2.0", "239.1.0.0", 24)], vec![odd(0)]),
        (
            vec![rewrite("10.1.2.3", "255.255.255.255", 32)],
            vec![odd(0)],
        ),
        (vec![rewrite("10.1.2.3", "0.0.0.0", 32)], vec![odd(0)]),
        (vec![rewrite("fd00:1::", "ff05::", 64)], vec![odd(0)]),
        (vec![rewrite("::", "fd00::", 64)], vec![odd(0)]),
    ] {
        let ports = [FrontendPort {
            port: PortId(1),
            address: None,
        }];
        let found = faults(&Spec {
            frontends: &[frontend("web", "20.0.0.1")],
            rules: &[http()],
            pools: &[pool("p", &[vm("b", "10.0.0.1")])],
            proxy: Some(ProxyPorts {
                frontends: &ports,
                source_rewrites: &rewrites,
                ..ProxyPorts::default()
            }),
            ..Spec::default()
        });
        assert_eq!(found, expected, "{rewrites:?}");
    }
}
