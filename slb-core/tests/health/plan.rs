//! A pool of four backends, two probes, and a snapshot made of their results.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_core::health::Condition;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendHealth, BackendState, Echo, Frontend, FrontendPort, InboundNat, NatTarget,
    Outbound, Pool, PoolHealth, PortMode, ProbeSource, Protocol, ProxyPorts, Rule, Scheduler, Spec,
    Terms, Underlay,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{Key, PortId};

pub(super) const BACKENDS: usize = 4;
pub(super) const KEY: Key = Key::new([5, 6]);
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
pub(super) const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
pub(super) const FABRIC: PortId = PortId(0);
pub(super) const BEHIND: PortId = PortId(9);

/// Ports of the rules: two with probes of their own, a second one of the first probe, and one
/// without a probe.
pub(super) const FIRST: u16 = 80;
pub(super) const OTHER: u16 = 81;
pub(super) const SAME: u16 = 82;
pub(super) const PLAIN: u16 = 83;
pub(super) const RULES: [u16; 4] = [FIRST, OTHER, SAME, PLAIN];

/// Both families and schedulers of a proxy.
pub(super) const PROXIES: [(bool, Scheduler); 4] = [
    (false, Scheduler::Maglev),
    (true, Scheduler::Maglev),
    (false, Scheduler::LeastConnections),
    (true, Scheduler::LeastConnections),
];

pub(super) const WELL: BackendHealth = BackendHealth {
    condition: Condition::Healthy,
    weight: None,
};

pub(super) const SICK: BackendHealth = BackendHealth {
    condition: Condition::Unhealthy,
    weight: None,
};

/// Results of two probes for the backends of one pool.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    ipv6: bool,
    pub(super) proxy: bool,
    pub(super) scheduler: Scheduler,
    pub(super) probe_source: ProbeSource,
    pub(super) states: [BackendState; BACKENDS],
    pub(super) found: [[BackendHealth; BACKENDS]; 2],
}

impl Plan {
    pub(super) fn of_proxy(ipv6: bool, scheduler: Scheduler) -> Self {
        Self {
            proxy: true,
            scheduler,
            ..Self::new(ipv6)
        }
    }

    pub(super) fn new(ipv6: bool) -> Self {
        Self {
            ipv6,
            proxy: false,
            scheduler: Scheduler::Maglev,
            probe_source: ProbeSource::default(),
            states: [BackendState::Up; BACKENDS],
            found: [[WELL; BACKENDS]; 2],
        }
    }

    pub(super) fn give<T>(&self, take: impl FnOnce(&Spec<'_>) -> T) -> T {
        let names: Vec<String> = (0..BACKENDS).map(|n| format!("vm{n}")).collect();
        let backends: Vec<Backend<'_>> = (0..BACKENDS)
            .map(|n| Backend {
                name: &names[n],
                address: dip(n, self.ipv6),
                host: NODE.into(),
                state: self.states[n],
                port: (!self.proxy).then_some(PortId(1 + n as u16)),
                ..Backend::default()
            })
            .collect();
        let rule = |name, health, frontend_port| Rule {
            name,
            health,
            protocol: Protocol::Tcp,
            frontend_port,
            backend_port: frontend_port,
            scheduler: self.scheduler,
            terms: Terms {
                tcp_reset: true,
                ..Terms::default()
            },
            ..Rule::default()
        };
        let ports = [FrontendPort::default()];
        let outbound = [Outbound {
            name: "out",
            frontends: &[0],
            pool: 0,
            protocol: Protocol::All,
            allocated_outbound_ports: Some(64),
            idle_timeout: std::time::Duration::from_secs(240),
            tcp_reset: true,
        }];
        take(&Spec {
            underlay: Underlay {
                ipv4: Some(NODE),
                port: FABRIC,
                ..Underlay::default()
            },
            frontends: &[Frontend {
                name: "web",
                address: vip(self.ipv6),
                icmp_echo: Echo::Answer,
            }],
            rules: &[
                rule("first", Some(0), FIRST),
                rule("other", Some(1), OTHER),
                rule("same", Some(0), SAME),
                rule("plain", None, PLAIN),
                Rule {
                    protocol: Protocol::Udp,
                    ..rule("dns", Some(0), FIRST)
                },
                Rule {
                    protocol: Protocol::Udp,
                    ..rule("other dns", Some(1), OTHER)
                },
                Rule {
                    protocol: Protocol::Udp,
                    ..rule("plain dns", None, PLAIN)
                },
            ],
            pools: &[Pool {
                name: "servers",
                vni: Vni::new(5001).unwrap(),
                table_size: 1021,
                backends: &backends,
                ..Pool::default()
            }],
            health: &[
                PoolHealth {
                    pool: 0,
                    backends: &self.found[0],
                },
                PoolHealth {
                    pool: 0,
                    backends: &self.found[1],
                },
            ],
            inbound_nat: &[InboundNat {
                name: "ssh",
                frontend: 0,
                pool: 0,
                target: NatTarget::Backend {
                    port: 2222,
                    backend: 0,
                },
                protocol: Protocol::Tcp,
                backend_port: 22,
                idle_timeout: std::time::Duration::from_secs(240),
                terms: Terms {
                    tcp_reset: true,
                    ..Terms::default()
                },
            }],
            outbound: if self.proxy { &[] } else { &outbound },
            probe_source: self.probe_source,
            proxy: self.proxy.then_some(ProxyPorts {
                mode: PortMode::Single,
                frontends: &ports,
                backend: BEHIND,
                source_rewrites: &[],
            }),
            ..Spec::default()
        })
    }

    pub(super) fn snapshot(&self) -> Box<Snapshot<'static>> {
        self.after(None)
    }

    pub(super) fn after(&self, previous: Option<&Snapshot<'_>>) -> Box<Snapshot<'static>> {
        Box::new(self.give(|spec| Snapshot::new(spec, previous).unwrap()))
    }
}

pub(super) fn vip(ipv6: bool) -> IpAddr {
    match ipv6 {
        true => Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100).into(),
        false => Ipv4Addr::new(20, 20, 20, 100).into(),
    }
}

pub(super) fn dip(number: usize, ipv6: bool) -> IpAddr {
    match ipv6 {
        true => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x10 + number as u16).into(),
        false => Ipv4Addr::new(10, 10, 1, 10 + number as u8).into(),
    }
}

pub(super) type Shared = std::sync::Arc<Snapshot<'static>>;
