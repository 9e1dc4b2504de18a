//! Addresses, and the configurations of the host agent and the proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, FrontendPort, Outbound, Pool, Protocol, ProxyPorts, Rule, Spec, Terms,
    Underlay, derived_mac,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{Instant, Key, PortId};

pub(super) const KEY: Key = Key::new([5, 6]);
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
/// The port of a host agent's fabric, or of a proxy's clients.
pub(super) const OUTSIDE: PortId = PortId(0);
/// The port of a host agent's vm, or of a proxy's backends.
pub(super) const INSIDE: PortId = PortId(1);
/// The port of the second vm of a host.
pub(super) const BESIDE: PortId = PortId(7);
const VNI: u32 = 5001;
/// The idle timeout of every rule.
pub(super) const IDLE: u64 = 1800;
pub(super) const START: Instant = Instant::from_secs(1_750_000_000);

pub(super) use crate::common::Endpoint;

pub(super) fn vip(ipv6: bool, number: u8) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::new(20, 20, 20, 100 + number).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100 + u16::from(number)).into(),
    }
}

pub(super) fn server(ipv6: bool) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::new(10, 10, 1, 11).into(),
        true => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x11).into(),
    }
}

/// A vm of another host in the same network.
pub(super) fn neighbour(ipv6: bool) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::new(10, 10, 1, 12).into(),
        true => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x12).into(),
    }
}

/// A machine of the inside that is no backend, and so no neighbour.
pub(super) fn inside(ipv6: bool) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::new(10, 77, 0, 5).into(),
        true => Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 5).into(),
    }
}

pub(super) fn client(ipv6: bool) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::new(198, 51, 100, 7).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7).into(),
    }
}

pub(super) fn vm_mac() -> MacAddress {
    derived_mac(server(false))
}

/// Two VIPs of each family with rules for TCP, UDP and echo. They lead to one server, which may
/// call out from behind a host agent.
pub(super) fn snapshot(is_proxy: bool, tcp_reset: bool) -> Snapshot<'static> {
    let backends = [false, true].map(|ipv6| {
        let backend = Backend {
            name: "one",
            address: server(ipv6),
            ..Backend::default()
        };
        let at_host = Backend {
            host: HOST.into(),
            mac: Some(vm_mac()),
            port: Some(INSIDE),
            ..backend
        };
        let neighbour = Backend {
            name: "neighbour",
            address: neighbour(ipv6),
            host: HOST.into(),
            mac: Some(derived_mac(neighbour(false))),
            port: Some(BESIDE),
            weight: 0,
            ..Backend::default()
        };
        if is_proxy {
            vec![backend]
        } else {
            vec![at_host, neighbour]
        }
    });
    let pool = |name, backends| Pool {
        name,
        vni: Vni::new(VNI).unwrap(),
        table_size: 3,
        backends,
        ..Pool::default()
    };
    let frontend = |name, ipv6, number| Frontend {
        name,
        address: vip(ipv6, number),
        icmp_echo: Echo::Answer,
    };
    let rule = |name, frontend: usize, protocol, frontend_port, backend_port| Rule {
        name,
        frontend,
        pool: frontend % 2,
        protocol,
        frontend_port,
        backend_port,
        idle_timeout: Duration::from_secs(IDLE),
        terms: Terms {
            tcp_reset,
            ..Terms::default()
        },
        ..Rule::default()
    };
    let (tcp, udp, echo) = (Protocol::Tcp, Protocol::Udp, Protocol::Icmp);
    let outbound = |name, frontends, pool| Outbound {
        name,
        frontends,
        pool,
        protocol: Protocol::All,
        allocated_outbound_ports: Some(64),
        idle_timeout: Duration::from_secs(IDLE),
        tcp_reset,
    };
    let outbounds = [outbound("out4", &[0], 0), outbound("out6", &[1], 1)];
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            port: OUTSIDE,
            ..Underlay::default()
        },
        frontends: &[
            frontend("v4", false, 0),
            frontend("v6", true, 0),
            frontend("v4b", false, 1),
            frontend("v6b", true, 1),
        ],
        rules: &[
            rule("t4", 0, tcp, 80, 8080),
            rule("t6", 1, tcp, 80, 8080),
            rule("t4b", 2, tcp, 80, 8080),
            rule("t6b", 3, tcp, 80, 8080),
            rule("u4", 0, udp, 53, 53),
            rule("u6", 1, udp, 53, 53),
            rule("u4b", 2, udp, 53, 53),
            rule("u6b", 3, udp, 53, 53),
            rule("e4", 0, echo, 0, 0),
            rule("e6", 1, echo, 0, 0),
            rule("e4b", 2, echo, 0, 0),
            rule("e6b", 3, echo, 0, 0),
        ],
        pools: &[pool("p4", &backends[0]), pool("p6", &backends[1])],
        outbound: if is_proxy { &[] } else { &outbounds },
        proxy: is_proxy.then_some(ProxyPorts {
            frontends: &[FrontendPort {
                port: OUTSIDE,
                address: None,
            }],
            backend: INSIDE,
            ..ProxyPorts::default()
        }),
        ..Spec::default()
    };
    Snapshot::new(&spec, None).unwrap()
}
