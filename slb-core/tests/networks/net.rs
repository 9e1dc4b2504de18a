//! Hosts with vms of several networks, and the fabric between them.

use std::net::IpAddr;

use crate::common::faults_of;
use crate::common::meter::metered;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Frontend, Network, NetworkVm, Pool, Prefix, Protocol, Rule, Spec, SpecError, Underlay,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{Host, Instant, Key, PortId, Verdict};

pub const NOW: Instant = Instant::from_secs(1);
pub const FABRIC: PortId = PortId(0);
pub const VIP: &str = "20.20.20.100";

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn prefix(text: &str) -> Prefix {
    let (address, len) = text.split_once('/').expect("a prefix");
    Prefix {
        address: ip(address),
        len: len.parse().expect("a length"),
    }
}

#[derive(Clone, Debug)]
pub struct Tenant {
    pub name: String,
    pub vni: u32,
    pub spaces: Vec<Prefix>,
    pub gateways: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
pub struct Vm {
    pub name: String,
    pub tenant: usize,
    pub addresses: Vec<IpAddr>,
    pub mac: [u8; 6],
    pub host: usize,
    /// True if the vm serves the VIP.
    pub is_backend: bool,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub tenants: Vec<Tenant>,
    pub vms: Vec<Vm>,
    /// True if hosts have IPv6 addresses.
    pub ipv6_underlay: bool,
    pub mtu: u16,
}

pub type TestHost = Host<'static, Box<Snapshot<'static>>>;

impl Plan {
    /// Two networks with the same addresses, of two hosts with a vm of each network, and another vm at
    /// the first.
    pub fn two_tenants() -> Self {
        let tenant = |name: &str, vni| Tenant {
            name: name.to_owned(),
            vni,
            spaces: vec![prefix("10.1.0.0/16"), prefix("fd00:1::/32")],
            gateways: vec![ip("10.1.0.1"), ip("fd00:1::1")],
        };
        let mut vms = Vec::new();
        for tenant in 0..2 {
            for (number, host) in [(1, 0), (2, 1), (3, 0)] {
                vms.push(Vm {
                    name: format!("vm{number}-{tenant}"),
                    tenant,
                    addresses: vec![
                        ip(&format!("10.1.0.1{number}")),
                        ip(&format!("fd00:1::1{number}")),
                    ],
                    mac: [2, 0, 0, 1, 0, number],
                    host,
                    is_backend: number == 2 && tenant == 0,
                });
            }
        }
        Self {
            tenants: vec![tenant("blue", 5001), tenant("red", 5002)],
            vms,
            ipv6_underlay: false,
            mtu: 1600,
        }
    }

    pub fn host_address(&self, host: usize) -> IpAddr {
        match self.ipv6_underlay {
            false => ip(&format!("172.16.0.{}", 101 + host)),
            true => ip(&format!("fd00:16::{}", 101 + host)),
        }
    }

    /// The port of a vm at its host.
    pub fn port_of(&self, vm: usize) -> PortId {
        PortId(vm as u16 + 1)
    }

    pub fn with_spec<T>(&self, own: usize, f: impl FnOnce(&Spec<'_>) -> T) -> T {
        let networks: Vec<_> = self
            .tenants
            .iter()
            .map(|tenant| Network {
                name: &tenant.name,
                vni: Vni::new(tenant.vni).expect("a VNI"),
                prefixes: &tenant.spaces,
                gateways: &tenant.gateways,
                ..Network::default()
            })
            .collect();
        let mut vms = Vec::new();
        let mut backends = Vec::new();
        for (index, vm) in self.vms.iter().enumerate() {
            let port = (vm.host == own).then_some(self.port_of(index));
            let (mac, host) = (Some(MacAddress(vm.mac)), self.host_address(vm.host));
            let mut addresses = &vm.addresses[..];
            if vm.is_backend {
                let backend = Backend {
                    name: &vm.name,
                    address: addresses[0],
                    host,
                    mac,
                    port,
                    ..Backend::default()
                };
                backends.push((vm.tenant, backend));
                addresses = &addresses[1..];
            }
            if !addresses.is_empty() {
                vms.push(NetworkVm {
                    name: &vm.name,
                    network: vm.tenant,
                    addresses,
                    host,
                    mac,
                    port,
                    next_hop: None,
                    ..NetworkVm::default()
                });
            }
        }
        let of: Vec<Vec<_>> = (0..self.tenants.len())
            .map(|tenant| {
                let own = backends.iter().filter(|(of, _)| *of == tenant);
                own.map(|(_, backend)| *backend).collect()
            })
            .collect();
        let pools: Vec<_> = of
            .iter()
            .zip(&networks)
            .map(|(backends, network)| Pool {
                name: network.name,
                vni: network.vni,
                table_size: 997,
                backends,
                ..Pool::default()
            })
            .collect();
        let frontends = [Frontend {
            name: "web",
            address: ip(VIP),
            ..Frontend::default()
        }];
        let rules = [Rule {
            name: "http",
            protocol: Protocol::Tcp,
            frontend_port: 80,
            backend_port: 8080,
            ..Rule::default()
        }];
        let (mut ipv4, mut ipv6) = (None, None);
        match self.host_address(own) {
            IpAddr::V4(address) => ipv4 = Some(address),
            IpAddr::V6(address) => ipv6 = Some(address),
        }
        f(&Spec {
            underlay: Underlay {
                ipv4,
                ipv6,
                mac: MacAddress([2, 0, 0, 0, 0, 101 + own as u8]),
                mtu: self.mtu,
                port: FABRIC,
                ..Underlay::default()
            },
            frontends: &frontends,
            rules: &rules,
            pools: &pools,
            networks: &networks,
            vms: &vms,
            ..Spec::default()
        })
    }

    pub fn faults(&self) -> Vec<SpecError> {
        self.with_spec(0, faults_of)
    }

    pub fn host(&self, own: usize) -> TestHost {
        let snapshot = self.with_spec(own, |spec| Snapshot::new(spec, None).expect("a good spec"));
        Host::with_capacity(Box::new(snapshot), 1024, Key::new([1, 2])).expect("its role")
    }
}

/// Sends one frame through a host.
pub fn process(host: &mut TestHost, port: PortId, frame: &[u8]) -> (Verdict, Vec<u8>) {
    metered(host, NOW, port, frame)
}
