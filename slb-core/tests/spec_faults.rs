//! `Spec::faults` tells everything that is wrong with a spec, each fault with its item.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_core::PortId;
use slb_core::spec::{
    Backend, BackendHealth, Echo, Frontend, InboundNat, NatTarget, Outbound, Pool, PoolHealth,
    Prefix, Protocol, Rule, RuleItem, Spec, SpecError, Terms,
};

const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));

fn frontend(name: &str, address: impl Into<IpAddr>) -> Frontend<'_> {
    Frontend {
        name,
        address: address.into(),
        icmp_echo: Echo::Answer,
    }
}

#[test]
fn every_fault_is_told_with_the_names_of_its_items() {
    let vip = Ipv4Addr::new(20, 20, 20, 100);
    let frontends = [frontend("web", vip), frontend("again", vip)];
    let vm = |name, last| Backend {
        name,
        address: Ipv4Addr::new(10, 0, 0, last).into(),
        port: Some(PortId(1)),
        ..Backend::default()
    };
    let (first, second) = (
        [vm("vm1", 1), vm("vm2", 2), vm("vm1", 3)],
        [
            vm("far", 4),
            Backend {
                address: V6,
                host: V6,
                instance: Some(0),
                port: None,
                ..vm("six", 5)
            },
        ],
    );
    let pools = [
        Pool {
            name: "servers",
            table_size: 251,
            backends: &first,
            ..Pool::default()
        },
        Pool {
            name: "others",
            table_size: 250,
            backends: &second,
            ..Pool::default()
        },
    ];
    let rule = |name, pool| Rule {
        name,
        pool,
        frontend_port: 80,
        ..Rule::default()
    };
    let rules = [
        rule("http", 0),
        rule("http", 1),
        Rule {
            frontend: 7,
            health: Some(3),
            ..rule("lost", 9)
        },
        Rule {
            protocol: Protocol::All,
            terms: Terms {
                source_nat: Some(V6),
                ..Terms::default()
            },
            ..rule("all", 0)
        },
    ];
    let nat = InboundNat {
        name: "ssh",
        frontend: 0,
        pool: 0,
        target: NatTarget::Pool { first: 1, last: 2 },
        protocol: Protocol::Udp,
        backend_port: 0,
        idle_timeout: Rule::default().idle_timeout,
        terms: Terms::default(),
    };
    let outbound = Outbound {
        name: "out",
        frontends: &[0, 0, 5],
        pool: 1,
        protocol: Protocol::All,
        allocated_outbound_ports: Some(12),
        idle_timeout: Rule::default().idle_timeout,
        tcp_reset: false,
    };
    let spec = Spec {
        frontends: &frontends,
        rules: &rules,
        pools: &pools,
        health: &[PoolHealth {
            pool: 0,
            backends: &[BackendHealth::default()],
        }],
        inbound_nat: &[nat],
        outbound: &[outbound],
        muxes: &[V6],
        inside: &[Prefix {
            address: V6,
            len: 129,
        }],
        ..Spec::default()
    };
    let faults: Vec<String> = spec.faults().map(|f| f.named(&spec).to_string()).collect();
    let expected = [
        "pool \"servers\": the underlay has no address of the family of backend \"vm1\"'s host",
        "pool \"servers\": the underlay has no address of the family of backend \"vm2\"'s host",
        "pool \"servers\": the underlay has no address of the family of backend \"vm1\"'s host",
        "pool \"others\": the table's size must be a prime from 3 to 16777216, not 250",
        "pool \"others\": the underlay has no address of the family of backend \"far\"'s host",
        "pool \"others\": the underlay has no address of the family of backend \"six\"'s host",
        "probe results 0: expected one for each of the 3 backends of a pool, got 1",
        "mux 0: the underlay has no address of its family",
        "inside prefix 0: expected at most 32 bits of an IPv4 address, 128 of an IPv6 one",
        "rule \"http\": frontend \"web\" and backend \"six\" of pool \"others\" are of different families",
        "rule \"lost\": frontend 7 does not exist, there are 2",
        "rule \"lost\": pool 9 does not exist, there are 2",
        "rule \"lost\": its probe results do not exist, or are of another pool",
        "rule \"all\": the frontend port must be 0 for protocols without ports, and not 0 otherwise",
        "rule \"all\": the source NAT address is not of the frontend's family",
        "inbound NAT pool \"ssh\": no port is left for instance 2",
        "inbound NAT pool \"ssh\": expected tcp or udp, and ports other than 0",
        "outbound rule \"out\": frontend \"web\" and backend \"six\" of pool \"others\" are of different families",
        "outbound rule \"out\": frontend \"web\" and backend \"six\" of pool \"others\" are of different families",
        "outbound rule \"out\": frontend 5 does not exist, there are 2",
        "outbound rule \"out\": frontend \"web\" is named twice",
        "outbound rule \"out\": expected a multiple of 8 ports for each backend",
        "frontends \"web\" and \"again\" have the same address",
        "pool \"servers\": backend 2: duplicate name",
        "rule \"http\" and rule \"http\" have the same name",
        "rule \"http\" and rule \"http\" take the same protocol and port of one VIP",
        "pool \"others\": backends \"far\" and \"six\" have the same instance number, 0",
        "backends \"vm1\" and \"vm2\" at port 1 are not one vm: expected one port, network and MAC address",
        "backends \"vm1\" and \"vm1\" at port 1 are not one vm: expected one port, network and MAC address",
        "backends \"vm1\" and \"far\" at port 1 are not one vm: expected one port, network and MAC address",
    ];
    assert_eq!(faults, expected);
}

#[test]
fn rules_that_conflict_are_named_by_kind() {
    let frontends = [frontend("web", Ipv4Addr::new(20, 20, 20, 100))];
    let backends = [Backend {
        name: "vm1",
        ..Backend::default()
    }];
    let pools = [Pool {
        name: "servers",
        table_size: 251,
        backends: &backends,
        ..Pool::default()
    }];
    let rules = [Rule {
        name: "http",
        frontend_port: 80,
        ..Rule::default()
    }];
    let nat = |name, port| InboundNat {
        name,
        frontend: 0,
        pool: 0,
        target: NatTarget::Backend { port, backend: 0 },
        protocol: Protocol::Tcp,
        backend_port: 22,
        idle_timeout: Rule::default().idle_timeout,
        terms: Terms::default(),
    };
    let inbound_nat = [nat("ssh", 22), nat("other", 22), nat("web", 80)];
    let spec = Spec {
        underlay: slb_core::spec::Underlay {
            ipv4: Some(Ipv4Addr::new(172, 16, 0, 1)),
            ..Default::default()
        },
        frontends: &frontends,
        rules: &rules,
        pools: &pools,
        inbound_nat: &inbound_nat,
        ..Spec::default()
    };
    let conflict = |first, second| SpecError::ConflictingRules { first, second };
    assert_eq!(
        spec.faults().collect::<Vec<_>>(),
        [
            conflict(RuleItem::InboundNat(0), RuleItem::InboundNat(1)),
            conflict(RuleItem::Rule(0), RuleItem::InboundNat(2)),
        ]
    );
    let nat = [nat("ssh", 22)];
    let good = Spec {
        inbound_nat: &nat,
        ..spec
    };
    assert_eq!(good.faults().next(), None);
}

#[test]
fn an_instance_number_out_of_all_reach_is_a_fault_and_no_overflow() {
    let frontends = [frontend("web", Ipv4Addr::new(20, 20, 20, 100))];
    let backends = [Backend {
        name: "vm1",
        instance: Some(u32::MAX),
        ..Backend::default()
    }];
    let pools = [Pool {
        name: "servers",
        table_size: 251,
        backends: &backends,
        ..Pool::default()
    }];
    for allocated_outbound_ports in [None, Some(8), Some(0xffff_fff8)] {
        let outbound = [Outbound {
            name: "out",
            frontends: &[0],
            pool: 0,
            protocol: Protocol::All,
            allocated_outbound_ports,
            idle_timeout: Rule::default().idle_timeout,
            tcp_reset: false,
        }];
        let spec = Spec {
            frontends: &frontends,
            pools: &pools,
            outbound: &outbound,
            proxy: None,
            underlay: slb_core::spec::Underlay {
                ipv4: Some(Ipv4Addr::new(172, 16, 0, 1)),
                ..Default::default()
            },
            ..Spec::default()
        };
        let faults: Vec<SpecError> = spec.faults().collect();
        assert!(
            matches!(faults[..], [SpecError::OutOfPorts { rule: 0, .. }]),
            "{faults:?}"
        );
    }
}
