//! Probes: are the backends well?
//!
//! [`Asker`] asks one backend once, by TCP, HTTP or HTTPS; [`Prober`] asks all of a configuration, each
//! in its time, and says when one turns. When a backend has turned is
//! [`slb_core::health`]'s to decide.
//!
//! Who is asked is not trusted: an answer has to come within the probe's timeout, of its headers no more
//! than 16 KiB are read, and of its body nothing.

mod ask;
mod prober;
mod tls;

use std::collections::BTreeMap;
use std::net::IpAddr;

use slb_core::service::BackendState;
use slb_core::wire::vxlan::Vni;

pub use ask::{Asker, ProbeFailure};
pub use prober::{Change, Prober};

use crate::config::{Config, Probe, Role};

/// A backend's address, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The backend's address.
    pub address: IpAddr,
    /// The network that the address is of: another network's backend of the same address is
    /// another one.
    pub vni: Vni,
    /// How it is asked.
    pub probe: Probe,
}

/// A backend: its pool's name and its own.
pub type BackendName = (String, String);

/// Who is asked: each address of a network once for each probe that a rule of one of its pools
/// names; and which backends it is. A host agent asks the vms of its own machine.
pub fn targets(config: &Config) -> Vec<(Target, Vec<BackendName>)> {
    let mut all: BTreeMap<(usize, u32, IpAddr), (Vni, Vec<BackendName>)> = BTreeMap::new();
    let is_host = config.node.role == Role::Host;
    for (pool, probe) in config.probed_pools() {
        let pool = &config.pools[pool];
        let used = pool.backends.iter().filter(|backend| {
            // One that the configuration says is not to be used is not asked.
            backend.state != BackendState::Unhealthy && (!is_host || config.node.is(backend.host))
        });
        for backend in used {
            let key = (probe, pool.vni.get(), backend.address);
            let (_, names) = all.entry(key).or_insert((pool.vni, Vec::new()));
            names.push((pool.name.clone(), backend.name.clone()));
        }
    }
    let target = |((probe, _, address), (vni, names))| {
        let probe: &Probe = &config.probes[probe];
        let probe = probe.clone();
        (
            Target {
                address,
                vni,
                probe,
            },
            names,
        )
    };
    all.into_iter().map(target).collect()
}
