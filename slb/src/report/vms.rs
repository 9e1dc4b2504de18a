//! Traffic of the vms of a host agent, by the configuration's names.

use serde_json::{Value, json};
use slb_control::Config;
use slb_core::stats::{Count, Traffic, VmCounters};

use super::count;
use crate::balancer::Balancer;

/// A vm at a port of this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VmLine {
    /// The vm's name, and the name of its network if it is in one.
    pub(crate) vm: String,
    pub(crate) network: Option<String>,
    pub(crate) port: u16,
    counters: VmCounters,
}

impl VmLine {
    /// Returns the traffic with each kind of other end, with the kind's name.
    pub(crate) fn traffic(&self) -> [(&'static str, Traffic); 2] {
        [
            ("network", self.counters.network()),
            ("internet", self.counters.internet()),
        ]
    }

    pub(crate) fn json(&self) -> Value {
        let ways = |traffic: Traffic| {
            let ways: [(&str, Count); 2] = [("in", traffic.to_vm), ("out", traffic.from_vm)];
            ways.map(|(way, of)| (way.to_owned(), count(of)))
                .into_iter()
                .collect::<serde_json::Map<String, Value>>()
        };
        let [(_, network), (_, internet)] = self.traffic();
        json!({
            "vm": self.vm, "network": self.network, "port": self.port,
            "traffic": { "network": ways(network), "internet": ways(internet) },
        })
    }
}

/// Returns the traffic of the vm at each port, by the port's number.
pub(crate) fn counted(balancer: &Balancer) -> Vec<VmCounters> {
    let ports = 0..balancer.snapshot().vm_slots();
    let rows = ports.map(|port| balancer.vm_counters(port as u16).unwrap_or_default());
    rows.collect()
}

/// The vms of a configuration with their traffic.
pub(crate) fn lines(config: &Config, counted: &[VmCounters]) -> Vec<VmLine> {
    let lines = config.vms().into_iter().filter_map(|vm| {
        let port = vm.port?.0;
        let network = config.network_of(vm.vni);
        Some(VmLine {
            vm: vm.name,
            network: network.map(|network| network.name.clone()),
            port,
            counters: *counted.get(usize::from(port))?,
        })
    });
    lines.collect()
}
