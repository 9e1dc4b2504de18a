//! A VIP of one network may be the address of a vm or a gateway of another one.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Frontend, InboundNat, NatTarget, NetworkVm, Outbound, Pool, Rule, Spec, SpecError,
};
use slb_core::wire::vxlan::{self, Vni};
use slb_core::{Host, Key, Verdict};

use super::net::{FABRIC, Plan, TestHost, ip, process};
use super::{GATEWAY_MAC, datagram_from};

/// The blue network's VIP, which a vm of the red network has, and that vm's place in the plan.
const SHARED: [&str; 2] = ["10.1.0.99", "fd00:1::99"];
const RED: usize = 5;

/// Kind of the vm that has the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Backend,
    Vm,
}

/// The plan with a VIP that blue's backend serves, and that a vm of red has: both at the first host.
fn plan(family: usize, kind: Kind) -> Plan {
    let mut plan = Plan::two_tenants();
    for vm in &mut plan.vms {
        vm.addresses = vec![vm.addresses[family]];
        vm.is_backend = false;
    }
    plan.vms[0].is_backend = true;
    plan.vms[RED].addresses = vec![ip(SHARED[family])];
    plan.vms[RED].is_backend = kind == Kind::Backend;
    plan
}

/// Gives the plan's spec with a VIP at the address given.
fn with_spec<T>(plan: &Plan, own: usize, vip: IpAddr, f: impl FnOnce(&Spec<'_>) -> T) -> T {
    let frontends = [Frontend {
        name: "web",
        address: vip,
        ..Frontend::default()
    }];
    plan.with_spec(own, |spec| {
        f(&Spec {
            frontends: &frontends,
            ..spec.clone()
        })
    })
}

fn host(plan: &Plan, own: usize, vip: IpAddr) -> TestHost {
    let snapshot = with_spec(plan, own, vip, |spec| {
        assert_eq!(spec.faults().collect::<Vec<_>>(), []);
        Snapshot::new(spec, None).expect("a good spec")
    });
    Host::with_capacity(Box::new(snapshot), 1024, Key::new([1, 2])).expect("its role")
}

/// The first segment of a connection to port 80.
fn syn(from: ([u8; 6], IpAddr), to_mac: [u8; 6], to: IpAddr) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(from.0, to_mac);
    let ip = match (from.1, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    };
    let mut frame = Vec::new();
    ip.tcp(40_000, 80, 7, 1000)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    frame
}

/// A frame in VXLAN from the second host to the first.
fn in_vxlan(plan: &Plan, vni: u32, inner: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (plan.host_address(1), plan.host_address(0)) else {
        panic!("IPv4")
    };
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    assert_eq!(payload.len(), vxlan::HEADER_LEN);
    payload.extend(inner);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 102], [2, 0, 0, 0, 0, 101])
        .ipv4(from.octets(), to.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut frame, &payload)
        .unwrap();
    frame
}

/// Every kind, family and packet to the shared address, at port 80 of which blue's rule listens.
fn cases() -> impl Iterator<Item = (usize, Kind)> {
    (0..2).flat_map(|family| [Kind::Backend, Kind::Vm].map(|kind| (family, kind)))
}

#[test]
fn a_vm_has_the_address_of_another_networks_vip() {
    for (family, kind) in cases() {
        let plan = plan(family, kind);
        let shared = ip(SHARED[family]);
        let mut hosts = [host(&plan, 0, shared), host(&plan, 1, shared)];
        let (near, far) = (&plan.vms[3], &plan.vms[4]);
        let red = &plan.vms[RED];
        for (from, own) in [(3, 0), (4, 1)] {
            let vm = &plan.vms[from];
            for frame in [
                syn((vm.mac, vm.addresses[0]), red.mac, shared),
                datagram_from((vm.mac, vm.addresses[0]), red.mac, shared, 64),
            ] {
                let (mut verdict, mut got) = process(&mut hosts[own], plan.port_of(from), &frame);
                if own == 1 {
                    assert_eq!(verdict, Verdict::Forward(FABRIC), "{family} {kind:?}");
                    (verdict, got) = process(&mut hosts[0], FABRIC, &got);
                }
                assert_eq!(verdict, Verdict::Forward(plan.port_of(RED)), "{kind:?}");
                assert_eq!(got, frame, "{family} {kind:?}: as the vm sent it");
            }
        }
        // The answers of the vm, which come from the VIP's address, and go to each of the others.
        for to in [near, far] {
            let frame = datagram_from((red.mac, shared), to.mac, to.addresses[0], 64);
            let (verdict, _) = process(&mut hosts[0], plan.port_of(RED), &frame);
            let port = match to.host {
                0 => plan.port_of(3),
                _ => FABRIC,
            };
            assert_eq!(verdict, Verdict::Forward(port), "{family} {kind:?}");
        }
    }
}

#[test]
fn the_vip_serves_where_no_vm_has_its_address() {
    for (family, kind) in cases() {
        let plan = plan(family, kind);
        let shared = ip(SHARED[family]);
        let mut first = host(&plan, 0, shared);
        let blue = &plan.vms[0];
        let client = ip(["198.51.100.7", "2001:db8::7"][family]);
        let frame = syn(([2, 0, 0, 0, 0, 9], client), blue.mac, shared);
        let carried = in_vxlan(&plan, plan.tenants[0].vni, &frame);
        let (verdict, got) = process(&mut first, FABRIC, &carried);
        assert_eq!(verdict, Verdict::Forward(plan.port_of(0)));
        let port = 14 + [20, 40][family] + 2;
        assert_eq!(got[port..port + 2], 8080u16.to_be_bytes(), "translated");
        assert_eq!(first.rule_counters(0).expect("counters").flows, 1);
        // A vm of the network calls it as any VIP.
        let (verdict, _) = process(
            &mut first,
            plan.port_of(2),
            &syn(
                (plan.vms[2].mac, plan.vms[2].addresses[0]),
                GATEWAY_MAC,
                shared,
            ),
        );
        assert_eq!(verdict, Verdict::Pass, "{family} {kind:?}");
    }
}

#[test]
fn broken_and_unusual_packets_for_the_vm_are_the_vms() {
    for (family, kind) in cases() {
        let plan = plan(family, kind);
        let shared = ip(SHARED[family]);
        let mut first = host(&plan, 0, shared);
        let (far, red) = (&plan.vms[4], &plan.vms[RED]);
        let whole = syn((far.mac, far.addresses[0]), red.mac, shared);
        let transport = 14 + [20, 40][family];
        let mut broken = whole.clone();
        broken[transport + 12] = 0xf0; // a data offset beyond the segment
        // An error about a datagram that the vm sent.
        let sent = datagram_from((red.mac, shared), far.mac, far.addresses[0], 64);
        let link = PacketBuilder::ethernet2(far.mac, red.mac);
        let mut error = Vec::new();
        match (far.addresses[0], shared) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link
                .ipv4(from.octets(), to.octets(), 64)
                .icmpv4_raw(3, 3, [0; 4])
                .write(&mut error, &sent[14..]),
            (IpAddr::V6(from), IpAddr::V6(to)) => link
                .ipv6(from.octets(), to.octets(), 64)
                .icmpv6_raw(1, 4, [0; 4])
                .write(&mut error, &sent[14..]),
            _ => panic!("two families"),
        }
        .unwrap();
        for frame in [broken, error] {
            let carried = in_vxlan(&plan, plan.tenants[1].vni, &frame);
            let (verdict, got) = process(&mut first, FABRIC, &carried);
            assert_eq!(verdict, Verdict::Forward(plan.port_of(RED)), "{kind:?}");
            assert_eq!(got, frame);
        }
    }
}

#[test]
fn a_gateway_has_the_address_of_another_networks_vip() {
    for family in 0..2 {
        let mut plan = plan(family, Kind::Vm);
        let shared = ip(["10.1.0.98", "fd00:1::98"][family]);
        plan.tenants[1].gateways = vec![shared];
        let mut first = host(&plan, 0, shared);
        let red = &plan.vms[RED];
        let link = PacketBuilder::ethernet2(red.mac, GATEWAY_MAC);
        let mut ping = Vec::new();
        match (red.addresses[0], shared) {
            (IpAddr::V4(own), IpAddr::V4(to)) => link
                .ipv4(own.octets(), to.octets(), 64)
                .icmpv4_echo_request(1, 2)
                .write(&mut ping, b"data"),
            (IpAddr::V6(own), IpAddr::V6(to)) => link
                .ipv6(own.octets(), to.octets(), 64)
                .icmpv6_echo_request(1, 2)
                .write(&mut ping, b"data"),
            _ => panic!("two families"),
        }
        .unwrap();
        let (verdict, _) = process(&mut first, plan.port_of(RED), &ping);
        assert_eq!(verdict, Verdict::Reply);
    }
}

/// Leads a VIP to a pool in one of the ways that there are.
#[derive(Clone, Copy, Debug)]
enum Lead {
    Rule,
    InboundNat,
    Outbound,
}

#[test]
fn a_vip_that_leads_into_the_network_is_no_vms_address() {
    for (family, kind) in cases() {
        for lead in [Lead::Rule, Lead::InboundNat, Lead::Outbound] {
            let plan = plan(family, kind);
            let shared = ip(SHARED[family]);
            let faults = with_spec(&plan, 0, shared, |spec| {
                let (name, pool) = ("in", 2);
                let other = [Backend {
                    name: "other",
                    address: ip(["10.1.0.50", "fd00:1::50"][family]),
                    host: plan.host_address(1),
                    ..Backend::default()
                }];
                let mut pools = spec.pools.to_vec();
                pools.push(Pool {
                    name: "third",
                    vni: Vni::new(plan.tenants[1].vni).expect("a VNI"),
                    table_size: 997,
                    backends: &other,
                    ..Pool::default()
                });
                let rule = Rule {
                    name,
                    pool,
                    frontend_port: 81,
                    ..Rule::default()
                };
                let nat = InboundNat {
                    name,
                    pool,
                    target: NatTarget::Backend {
                        port: 81,
                        backend: 0,
                    },
                    backend_port: 81,
                    ..InboundNat::default()
                };
                let outbound = Outbound {
                    name,
                    pool,
                    frontends: &[0],
                    ..Outbound::default()
                };
                let (mut rules, mut nats, mut outbounds) = (spec.rules.to_vec(), vec![], vec![]);
                match lead {
                    Lead::Rule => rules.push(rule),
                    Lead::InboundNat => nats.push(nat),
                    Lead::Outbound => outbounds.push(outbound),
                }
                let spec = Spec {
                    pools: &pools,
                    rules: &rules,
                    inbound_nat: &nats,
                    outbound: &outbounds,
                    ..spec.clone()
                };
                let faults: Vec<_> = spec.faults().collect();
                assert_eq!(Snapshot::new(&spec, None).err(), faults.first().copied());
                faults
            });
            let frontend = 0;
            let expected = match kind {
                Kind::Backend => SpecError::FrontendBackend {
                    frontend,
                    pool: 1,
                    backend: 0,
                },
                Kind::Vm => SpecError::FrontendVm {
                    frontend,
                    vm: plan.vms.len() - 2, // the last but for blue's backend
                },
            };
            assert_eq!(faults, [expected], "{family} {kind:?} {lead:?}");
        }
    }
}

#[test]
fn without_networks_no_backend_has_a_vips_address() {
    let backends = [Backend {
        name: "b",
        address: ip("10.1.0.99"),
        host: ip("172.16.0.101"),
        ..Backend::default()
    }];
    let plan = plan(0, Kind::Backend);
    let faults: Vec<_> = with_spec(&plan, 0, ip("10.1.0.99"), |spec| {
        let pools = [
            spec.pools[0],
            Pool {
                name: "red",
                table_size: 997,
                vni: Vni::new(77).expect("a VNI"),
                backends: &backends,
                ..Pool::default()
            },
        ];
        let spec = Spec {
            pools: &pools,
            vms: &[] as &[NetworkVm<'_>],
            ..spec.clone()
        };
        let faults: Vec<_> = spec.faults().collect();
        assert_eq!(Snapshot::new(&spec, None).err(), faults.first().copied());
        faults
    });
    let expected = SpecError::FrontendBackend {
        frontend: 0,
        pool: 1,
        backend: 0,
    };
    assert_eq!(faults, [expected]);
}

#[test]
fn twenty_thousand_networks_and_vms_are_compiled() {
    // A walk through all networks for each vm would take minutes.
    const COUNT: u32 = 20_000;
    let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n));
    let spaces: Vec<_> = (0..COUNT)
        .map(|n| {
            [slb_core::spec::Prefix {
                address: address(n),
                len: 32,
            }]
        })
        .collect();
    let names: Vec<_> = (0..COUNT).map(|n| format!("n{n}")).collect();
    let networks: Vec<_> = (0..COUNT as usize)
        .map(|n| slb_core::spec::Network {
            name: &names[n],
            vni: Vni::new(n as u32 + 1).expect("a VNI"),
            prefixes: &spaces[n],
            ..slb_core::spec::Network::default()
        })
        .collect();
    let addresses: Vec<_> = (0..COUNT).map(|n| [address(n)]).collect();
    let vms: Vec<_> = (0..COUNT as usize)
        .map(|n| NetworkVm {
            name: &names[n],
            network: n,
            addresses: &addresses[n],
            host: ip("172.16.0.9"),
            ..NetworkVm::default()
        })
        .collect();
    let spec = Spec {
        underlay: slb_core::spec::Underlay {
            ipv4: Some([172, 16, 0, 1].into()),
            ..Default::default()
        },
        networks: &networks,
        vms: &vms,
        ..Spec::default()
    };
    assert_eq!(spec.faults().collect::<Vec<_>>(), []);
    assert!(Snapshot::new(&spec, None).is_ok());
}
