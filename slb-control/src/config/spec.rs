//! The configuration as a `Spec` of the dataplane.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use slb_core::PortId;
use slb_core::spec::{self, PoolHealth, Spec};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;

use super::{
    Backend, Config, Frontend, InboundNat, Outbound, Pool, PublicAddress, Role, Rule, SecurityList,
};

impl Config {
    /// Lends the configuration as a `Spec`.
    pub fn with_spec<T>(&self, f: impl FnOnce(&Spec<'_>) -> T) -> T {
        let frontends: Vec<_> = self.frontends.iter().map(Frontend::spec).collect();
        let vms = self.vms().into_iter();
        let ports: HashMap<_, _> = vms
            .filter_map(|vm| Some(((vm.vni, vm.mac), vm.port?)))
            .collect();
        let backends: Vec<Vec<_>> = self
            .pools
            .iter()
            .map(|pool| {
                let backends = pool.backends.iter();
                backends
                    .map(|backend| self.backend_spec(pool, backend, &ports))
                    .collect()
            })
            .collect();
        let pasts: Vec<Vec<&[u32]>> = self
            .pools
            .iter()
            .map(|pool| pool.past.iter().map(Vec::as_slice).collect())
            .collect();
        let pools: Vec<_> = self
            .pools
            .iter()
            .zip(backends.iter().zip(&pasts))
            .map(|(pool, (backends, past))| pool.spec(backends, past))
            .collect();
        let probed = self.probed_pools();
        let findings: Vec<Vec<_>> = probed
            .iter()
            .map(|&(pool, probe)| {
                let backends = 0..self.pools[pool].backends.len();
                backends.map(|n| self.health.of(pool, probe, n)).collect()
            })
            .collect();
        let health: Vec<_> = probed
            .iter()
            .zip(&findings)
            .map(|(&(pool, _), backends)| PoolHealth { pool, backends })
            .collect();
        let places: HashMap<_, usize> = (0..).zip(&probed).map(|(n, &pair)| (pair, n)).collect();
        let rules: Vec<_> = self
            .rules
            .iter()
            .map(|rule| {
                let health = rule.probe.and_then(|probe| places.get(&(rule.pool, probe)));
                rule.spec(health.copied())
            })
            .collect();
        let inbound_nat: Vec<_> = self.inbound_nat.iter().map(InboundNat::spec).collect();
        let outbound: Vec<_> = self.outbound.iter().map(Outbound::spec).collect();
        let mut private = vec![Vec::new(); self.networks.len()];
        for (place, frontend) in self.frontends.iter().enumerate() {
            if let Some(of) = frontend
                .network
                .and_then(|network| private.get_mut(network))
            {
                of.push(place);
            }
        }
        let networks: Vec<_> = self
            .networks
            .iter()
            .zip(&private)
            .map(|(network, frontends)| network.spec(frontends))
            .collect();
        let vms: Vec<_> = self
            .network_vms
            .iter()
            .map(|vm| {
                let vni = networks.get(vm.network).map(|network| network.vni);
                let port = vni.and_then(|vni| ports.get(&(vni, vm.mac())));
                vm.spec(port.filter(|_| self.node.is(vm.host)).copied())
            })
            .collect();
        let security_rules: Vec<_> = self
            .security_lists
            .iter()
            .map(SecurityList::rules_spec)
            .collect();
        let security_lists: Vec<_> = self
            .security_lists
            .iter()
            .zip(&security_rules)
            .map(|(list, rules)| spec::SecurityList {
                name: &list.name,
                rules,
            })
            .collect();
        let public_addresses = self.public_addresses.iter().map(PublicAddress::spec);
        let public_addresses: Vec<_> = public_addresses.collect();
        let is_proxy = self.node.role == Role::Proxy;
        let proxy_ports = self.ports.frontends();
        f(&Spec {
            hasher: self.node.hasher.clone(),
            hash_seed: self.node.hash_seed,
            underlay: self.underlay(),
            frontends: &frontends,
            rules: &rules,
            pools: &pools,
            health: &health,
            inbound_nat: &inbound_nat,
            outbound: if is_proxy { &[] } else { &outbound },
            muxes: &self.node.muxes,
            networks: if is_proxy { &[] } else { &networks },
            vms: if is_proxy { &[] } else { &vms },
            public_addresses: &public_addresses,
            security_lists: &security_lists,
            inside: &self.node.inside,
            probe_source: self.node.probe_source(),
            proxy: is_proxy.then(|| self.ports.spec(&proxy_ports)),
            now: now(),
        })
    }

    /// Returns the node's addresses on the fabric. If its MAC address is unknown, it gets one that
    /// no vm has.
    fn underlay(&self) -> spec::Underlay {
        let mut underlay = self.node.underlay();
        if self.node.mac.is_none() {
            let backends = self.pools.iter().flat_map(|pool| &pool.backends);
            let others = backends.flat_map(|one| one.next_hop.into_iter().chain([one.mac()]));
            let taken: HashSet<[u8; 6]> = others
                .map(|mac| mac.0)
                .chain([underlay.next_hop.0])
                .collect();
            let [first @ .., last] = underlay.mac.0;
            let all = (last..=u8::MAX).map(|last| {
                let [a, b, c, d, e] = first;
                [a, b, c, d, e, last]
            });
            let free = all.into_iter().find(|mac| !taken.contains(mac));
            underlay.mac = free.map_or(underlay.mac, MacAddress);
        }
        underlay
    }

    fn backend_spec<'b>(
        &self,
        pool: &Pool,
        backend: &'b Backend,
        ports: &HashMap<(Vni, MacAddress), PortId>,
    ) -> spec::Backend<'b> {
        spec::Backend {
            name: &backend.name,
            address: backend.address,
            host: backend.host,
            mac: backend.mac,
            next_hop: backend.next_hop,
            weight: backend.weight,
            state: backend.state,
            seat: backend.seat.as_deref(),
            condition: backend.condition,
            instance: backend.instance,
            backend_port: backend.backend_port,
            port: ports
                .get(&(pool.vni, backend.mac()))
                .filter(|_| self.node.is(backend.host))
                .copied(),
        }
    }
}

impl Frontend {
    fn spec(&self) -> spec::Frontend<'_> {
        spec::Frontend {
            name: &self.name,
            address: self.address,
            icmp_echo: self.icmp_echo,
        }
    }
}

impl Pool {
    fn spec<'a>(
        &'a self,
        backends: &'a [spec::Backend<'a>],
        past: &'a [&'a [u32]],
    ) -> spec::Pool<'a> {
        spec::Pool {
            name: &self.name,
            vni: self.vni,
            table_size: self.table_size,
            backends,
            past,
            security_lists: &self.security_lists,
        }
    }
}

impl InboundNat {
    fn spec(&self) -> spec::InboundNat<'_> {
        spec::InboundNat {
            name: &self.name,
            frontend: self.frontend,
            pool: self.pool,
            target: self.target,
            protocol: self.protocol,
            backend_port: self.backend_port,
            idle_timeout: self.idle_timeout,
            terms: self.terms,
        }
    }
}

impl Outbound {
    fn spec(&self) -> spec::Outbound<'_> {
        spec::Outbound {
            name: &self.name,
            frontends: &self.frontends,
            pool: self.pool,
            protocol: self.protocol,
            allocated_outbound_ports: self.allocated_outbound_ports,
            idle_timeout: self.idle_timeout,
            tcp_reset: self.tcp_reset,
        }
    }
}

impl Rule {
    fn spec(&self, health: Option<usize>) -> spec::Rule<'_> {
        spec::Rule {
            name: &self.name,
            frontend: self.frontend,
            pool: self.pool,
            health,
            protocol: self.protocol,
            frontend_port: self.frontend_port,
            backend_port: self.backend_port,
            distribution: self.distribution,
            scheduler: self.scheduler,
            idle_timeout: self.idle_timeout,
            terms: self.terms,
        }
    }
}

/// Returns the time since the first call in this process, which setting the clock does not change.
fn now() -> slb_core::Instant {
    static FIRST: OnceLock<std::time::Instant> = OnceLock::new();
    slb_core::Instant::ZERO + FIRST.get_or_init(std::time::Instant::now).elapsed()
}
