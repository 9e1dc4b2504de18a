//! Health probes of backends.
//!
//! [`Asker`] probes one backend once, by TCP, HTTP or HTTPS. [`Prober`] probes all backends of a
//! configuration at their intervals, and reports changes of health, which [`slb_core::health`]
//! derives from the results.
//!
//! Backends are not trusted: an answer has to arrive within the probe's timeout, and the prober
//! reads at most 16 KiB of its headers, and none of its body.

mod ask;
mod prober;
mod tally;
mod tls;
mod vips;
mod vms;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use slb_core::spec::BackendState;
use slb_core::wire::vxlan::Vni;

pub use ask::{Asker, ProbeFailure};
pub use prober::{Change, Prober};
pub use tally::{LateProbes, PROBE_CLASSES, ProbeCounts, ProbeTallies};
pub use vips::{CALLER_PORTS, VipPort, VipProber, VipResults};
pub use vms::{ProberEnd, VmPort, WorkerEnd, way};

use crate::config::{Config, Probe, Role, Vm};

/// A backend's address, and its probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The backend's address.
    pub address: IpAddr,
    /// The network of the address: backends of two networks may have the same address.
    pub vni: Vni,
    /// The port of the vm, if the target is a host agent's own; `None` if the kernel routes to it.
    pub vm: Option<VmPort>,
    /// The probe of the target.
    pub probe: Probe,
}

/// The name of a backend: its pool's name and its own.
pub type BackendName = (String, String);

/// Returns the targets of probes, with the backends of each: each address of a network once for
/// each probe that a rule of one of its pools names. A host agent probes the vms of its own
/// machine, through their ports.
pub fn targets(config: &Config) -> Vec<(Target, Vec<BackendName>)> {
    let mut all: BTreeMap<(usize, u32, IpAddr), (Target, Vec<BackendName>)> = BTreeMap::new();
    let is_host = config.node.role == Role::Host;
    let (vms, source) = (config.vms(), config.node.probe_source());
    let vms: HashMap<_, &Vm> = vms.iter().map(|vm| ((vm.vni, vm.mac), vm)).collect();
    let probed = config.asked_pools().into_iter();
    for (pool, probe) in probed.filter(|_| config.node.probing) {
        let pool = &config.pools[pool];
        let used = pool.backends.iter().filter(|backend| {
            // Backends that are down by configuration are not probed.
            backend.state != BackendState::Down && (!is_host || config.node.is(backend.host))
        });
        for backend in used {
            let (address, vni) = (backend.address, pool.vni);
            let source = match address {
                IpAddr::V4(_) => source.ipv4.map(IpAddr::from),
                IpAddr::V6(_) => source.ipv6.map(IpAddr::from),
            };
            let vm = vms.get(&(vni, backend.mac()));
            let vm = vm.and_then(|vm| {
                Some(VmPort {
                    port: vm.port?,
                    mac: vm.mac,
                    source: source?,
                })
            });
            let key = (probe, vni.get(), address);
            let (_, names) = all.entry(key).or_insert_with(|| {
                let probe = config.probes[probe].clone();
                let target = Target {
                    address,
                    vni,
                    vm,
                    probe,
                };
                (target, Vec::new())
            });
            names.push((pool.name.clone(), backend.name.clone()));
        }
    }
    all.into_values().collect()
}
