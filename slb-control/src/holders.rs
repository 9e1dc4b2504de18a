//! Owners of a VIP's ports: inbound NAT leads ports to backends, and outbound rules assign SNAT
//! ports to backends.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use slb_core::spec::{NatTarget, Protocol};

use crate::config::Config;

/// A frontend port that inbound NAT leads to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// The name of the rule or pool.
    pub rule: String,
    /// The VIP.
    pub address: IpAddr,
    /// The name of the network that the VIP is private to; `None` for a public VIP.
    pub network: Option<String>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port of the VIP.
    pub port: u16,
    /// The backend as `pool/name`.
    pub backend: String,
    /// The port of the backend.
    pub backend_port: u16,
}

/// The SNAT ports of one backend under one VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundPorts {
    /// The VIP.
    pub address: IpAddr,
    /// The backend as `pool/name`.
    pub backend: String,
    /// The ports in ascending order.
    pub ports: Vec<RangeInclusive<u16>>,
}

impl fmt::Display for OutboundPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.backend)?;
        for (place, range) in self.ports.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(f, "{comma} {}-{}", range.start(), range.end())?;
        }
        Ok(())
    }
}

impl Config {
    /// Returns the frontend ports of all inbound NAT rules and pools, in the order of the file and
    /// then of ports.
    pub fn inbound_ports(&self) -> Vec<InboundPort> {
        let mut all = Vec::new();
        for nat in &self.inbound_nat {
            let (Some(frontend), Some(pool)) =
                (self.frontends.get(nat.frontend), self.pools.get(nat.pool))
            else {
                continue;
            };
            let network = self.network_of_frontend(frontend);
            let from = all.len();
            for (place, backend) in pool.backends.iter().enumerate() {
                let port = match nat.target {
                    NatTarget::Backend { port, backend } if backend == place => port,
                    NatTarget::Backend { .. } => continue,
                    NatTarget::Pool { first, .. } => {
                        let instance = backend.instance.unwrap_or(place as u32);
                        first.saturating_add(u16::try_from(instance).unwrap_or(u16::MAX))
                    }
                };
                all.push(InboundPort {
                    rule: nat.name.clone(),
                    address: frontend.address,
                    network: network.map(|network| network.name.clone()),
                    protocol: nat.protocol,
                    port,
                    backend: format!("{}/{}", pool.name, backend.name),
                    backend_port: nat.backend_port,
                });
            }
            all[from..].sort_by_key(|one| one.port);
        }
        all
    }

    /// Returns the SNAT ports of each backend, VIP by VIP in the order of the file, each in the
    /// order of its ports.
    pub fn outbound_ports(&self) -> Vec<OutboundPorts> {
        let mut all: Vec<OutboundPorts> = Vec::new();
        self.with_spec(|spec| {
            for (place, frontend) in self.frontends.iter().enumerate() {
                let mut known: HashMap<(usize, usize), usize> = HashMap::new();
                // A valid configuration has enough ports.
                let _ = spec.outbound_ports(place, |pool, backend, first, last| {
                    let range = first..=last;
                    if let Some(own) = known
                        .get(&(pool, backend))
                        .and_then(|&own| -> Option<&mut OutboundPorts> { all.get_mut(own) })
                    {
                        own.ports.push(range);
                        return;
                    }
                    let of = self.pools.get(pool);
                    if let Some((of, own)) = of.and_then(|of| Some((of, of.backends.get(backend)?)))
                    {
                        known.insert((pool, backend), all.len());
                        all.push(OutboundPorts {
                            address: frontend.address,
                            backend: format!("{}/{}", of.name, own.name),
                            ports: vec![range],
                        });
                    }
                });
            }
        });
        all
    }
}
