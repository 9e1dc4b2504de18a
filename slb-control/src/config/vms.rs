//! The vms of a host agent, and their ports.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use slb_core::PortId;
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;

use super::{Config, Role};

/// A vm on this machine.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Port of the host agent that the vm is at; always present.
    pub port: Option<PortId>,
    /// Network of the vm.
    pub vni: Vni,
    /// MAC address of the vm.
    pub mac: MacAddress,
    /// Addresses of the vm.
    pub addresses: Vec<IpAddr>,
    /// The name of the vm's first backend, or of the vm if it is no backend.
    pub name: String,
}

impl Config {
    /// Returns the vms on this machine, each with its port: first the backends, then the vms of
    /// networks. Backends and vms of one network with one MAC address are one vm. A vm without a
    /// `port` gets the first free one, counted from 1 in the order of the file.
    pub fn vms(&self) -> Vec<Vm> {
        let mut vms: Vec<Vm> = Vec::new();
        if self.node.role != Role::Host {
            return vms;
        }
        let mut known = HashMap::new();
        for pool in &self.pools {
            for backend in &pool.backends {
                if !self.node.is(backend.host) {
                    continue;
                }
                let mac = backend.mac();
                let index = *known.entry((pool.vni, mac)).or_insert_with(|| {
                    vms.push(Vm {
                        port: None,
                        vni: pool.vni,
                        mac,
                        addresses: Vec::new(),
                        name: backend.name.clone(),
                    });
                    vms.len() - 1
                });
                let vm = &mut vms[index];
                vm.port = vm.port.or(backend.port.map(PortId));
                if !vm.addresses.contains(&backend.address) {
                    vm.addresses.push(backend.address);
                }
            }
        }
        for of in &self.network_vms {
            let network = self.networks.get(of.network);
            let Some(network) = network.filter(|_| self.node.is(of.host)) else {
                continue;
            };
            let (vni, mac) = (network.vni, of.mac());
            let index = *known.entry((vni, mac)).or_insert_with(|| {
                vms.push(Vm {
                    port: None,
                    vni,
                    mac,
                    addresses: Vec::new(),
                    name: of.name.clone(),
                });
                vms.len() - 1
            });
            let vm = &mut vms[index];
            vm.port = vm.port.or(of.port.map(PortId));
            for address in &of.addresses {
                if !vm.addresses.contains(address) {
                    vm.addresses.push(*address);
                }
            }
        }
        let said: HashSet<PortId> = vms.iter().filter_map(|vm| vm.port).collect();
        let mut free = (1..).map(PortId).filter(|port| !said.contains(port));
        for vm in vms.iter_mut().filter(|vm| vm.port.is_none()) {
            vm.port = free.next();
        }
        vms
    }

    /// Returns the port of the vm of a backend, by name.
    pub fn port_of(&self, backend: &str) -> Option<PortId> {
        let vms = self.vms();
        vms.iter()
            .find(|vm| vm.name == backend)
            .and_then(|vm| vm.port)
    }
}
