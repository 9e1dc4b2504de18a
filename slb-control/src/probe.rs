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

pub use ask::{Asker, ProbeFailure};
pub use prober::{Change, Prober};

use crate::config::{Config, Probe};

/// A backend's address, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The backend's address.
    pub address: IpAddr,
    /// How it is asked.
    pub probe: Probe,
}

/// A backend: its pool's name and its own.
pub type BackendName = (String, String);

/// Who is asked: each address once for each probe that a rule of one of its pools names; and which
/// backends it is.
pub fn targets(config: &Config) -> Vec<(Target, Vec<BackendName>)> {
    let mut all: BTreeMap<(usize, IpAddr), Vec<BackendName>> = BTreeMap::new();
    for rule in &config.rules {
        let Some(probe) = rule.probe else { continue };
        let pool = &config.pools[rule.pool];
        // One that the configuration says is not to be used is not asked.
        let used = pool.backends.iter();
        for backend in used.filter(|backend| backend.state != BackendState::Unhealthy) {
            let names = all.entry((probe, backend.address)).or_default();
            let name = (pool.name.clone(), backend.name.clone());
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let target = |((probe, address), names): ((usize, IpAddr), Vec<BackendName>)| {
        let probe = config.probes[probe].clone();
        (Target { address, probe }, names)
    };
    all.into_iter().map(target).collect()
}
