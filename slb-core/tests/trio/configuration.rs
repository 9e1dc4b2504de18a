//! The configuration of all three roles.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Answers, Backend, Echo, Frontend, FrontendPort, Outbound, Pool, PortMode, Protocol, ProxyPorts,
    Rule, Spec, Terms, Underlay,
};
use slb_core::wire::vxlan::Vni;

use super::FAMILIES;
use super::packets::Ends;
use super::{BACKEND, FABRIC, FRONTEND, Family, HOST, HOST6, MUX, Shared, VM, VM_MAC, VNI};

/// The names that a rule gives a server and its clients, and the way of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The server has its own name, and the client has the client's.
    Plain,
    /// The server has the VIP.
    FloatingIp,
    /// The client has the balancer's address.
    SourceNat,
    /// Answers go in VXLAN to the mux.
    ThroughMux,
    /// Ends are told of what is refused by RSTs.
    Resets,
}

impl Way {
    /// The addresses of a client's packets as the server sees them.
    pub fn seen(self, family: Family) -> Ends {
        let client = match self {
            Self::SourceNat => family.balancer(),
            _ => family.client(),
        };
        let server = match self {
            Self::FloatingIp => family.vip(),
            _ => family.dip(),
        };
        (client, server)
    }

    fn terms(self, family: Family) -> Terms {
        Terms {
            floating_ip: self == Self::FloatingIp,
            tcp_reset: self == Self::Resets,
            source_nat: (self == Self::SourceNat).then(|| family.balancer()),
            answers: match self {
                Self::ThroughMux => Answers::ThroughMux,
                _ => Answers::Direct,
            },
            ..Terms::default()
        }
    }
}

/// The service as a mux or host (`proxy = false`) or as a proxy sees it. `backends` serve; the first
/// one is the vm of the host agent.
pub fn snapshot(backends: u16, is_proxy: bool, host: IpAddr, echo: Echo) -> Shared {
    snapshot_with(backends, is_proxy, host, echo, ([4, 5], Way::Plain))
}

/// A snapshot in which vms call out under the frontends `out`, and rules have the terms of `way`.
pub(super) fn snapshot_with(
    backends: u16,
    is_proxy: bool,
    host: IpAddr,
    echo: Echo,
    (out, way): ([usize; 2], Way),
) -> Shared {
    let names: Vec<String> = (1..=backends).map(|n| format!("vm{n}")).collect();
    let backends: [Vec<Backend<'_>>; 2] = FAMILIES.map(|family| {
        let backend = |(n, name)| {
            let n: u16 = n;
            Backend {
                name,
                address: match family.dip() {
                    IpAddr::V4(dip) => Ipv4Addr::from(dip.to_bits() + u32::from(n)).into(),
                    IpAddr::V6(dip) => Ipv6Addr::from(dip.to_bits() + u128::from(n)).into(),
                },
                host: if n == 0 {
                    host
                } else {
                    Ipv4Addr::new(172, 17, 0, n as u8).into()
                },
                mac: (n == 0).then_some(VM_MAC),
                port: (n == 0).then_some(VM).filter(|_| host == IpAddr::V4(HOST)),
                ..Backend::default()
            }
        };
        (0..)
            .zip(&names)
            .map(|(n, name)| backend((n, name)))
            .collect()
    });
    let frontend = |name, address| Frontend {
        name,
        address,
        icmp_echo: echo,
    };
    let [ipv4, ipv6] = FAMILIES;
    let frontends = [
        frontend("web", ipv4.vip()),
        frontend("web6", ipv6.vip()),
        frontend("whole", ipv4.whole_vip()),
        frontend("whole6", ipv6.whole_vip()),
        frontend("out", ipv4.snat()),
        frontend("out6", ipv6.snat()),
    ];
    let pool = |name, backends| Pool {
        name,
        vni: Vni::new(VNI.into()).unwrap(),
        table_size: 251,
        backends,
        ..Pool::default()
    };
    let rule = |name, frontend, protocol: Protocol, port| Rule {
        name,
        frontend,
        pool: frontend % 2,
        protocol,
        frontend_port: port,
        backend_port: match port {
            80 if way != Way::FloatingIp => 8080,
            port => port,
        },
        terms: way.terms(FAMILIES[frontend % 2]),
        ..Rule::default()
    };
    let mut rules = vec![
        rule("http", 0, Protocol::Tcp, 80),
        rule("http6", 1, Protocol::Tcp, 80),
        rule("dns", 0, Protocol::Udp, 53),
        rule("dns6", 1, Protocol::Udp, 53),
        rule("whole", 2, Protocol::All, 0),
        rule("whole6", 3, Protocol::All, 0),
    ];
    if echo == Echo::Forward {
        rules.push(rule("ping", 0, Protocol::Icmp, 0));
        rules.push(rule("ping6", 1, Protocol::Icmp, 0));
    }
    let outbound = |name, frontends, pool| Outbound {
        name,
        frontends,
        pool,
        protocol: Protocol::All,
        allocated_outbound_ports: Some(1024),
        idle_timeout: std::time::Duration::from_secs(240),
        tcp_reset: false,
    };
    let ports = [FrontendPort {
        port: FRONTEND,
        address: None,
    }];
    let outbounds = [
        outbound("out", &out[..1], 0),
        outbound("out6", &out[1..], 1),
    ];
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(if host == IpAddr::V4(HOST) { HOST } else { MUX }),
            ipv6: Some(HOST6),
            mtu: 1600,
            port: FABRIC,
            ..Underlay::default()
        },
        frontends: &frontends,
        rules: &rules,
        pools: &[
            pool("servers", &backends[0]),
            pool("servers6", &backends[1]),
        ],
        outbound: if is_proxy { &[] } else { &outbounds },
        proxy: is_proxy.then_some(ProxyPorts {
            mode: PortMode::Single,
            frontends: &ports,
            backend: BACKEND,
            source_rewrites: &[],
        }),
        muxes: if way == Way::ThroughMux {
            &[IpAddr::V4(MUX)]
        } else {
            &[]
        },
        ..Spec::default()
    };
    Box::new(Snapshot::new(&spec, None).unwrap())
}
