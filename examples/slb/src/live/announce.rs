//! VIPs as addresses of an interface, for the routing daemon beside the mux to announce.
//!
//! The interface is this process's own: where the process ends, however it does, the interface goes
//! with all addresses, the daemon withdraws the routes, and no kernel answers in the VIPs' name.

use std::collections::BTreeSet;
use std::net::IpAddr;

use slb_control::Config;
use slb_io_afxdp::{bring_up, set_address};
use slb_io_tun::{Device, Layer};
use tracing::{info, warn};

use crate::Failure;

pub(super) struct Announcer {
    name: String,
    announced: BTreeSet<IpAddr>,
    /// Holds the interface.
    _device: Device,
}

impl Announcer {
    pub(super) fn open(name: &str) -> Result<Self, Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::failed(format!("--announce {name}: {error}"));
        let device = Device::open(name, Layer::Ip, false).map_err(|error| failed(&error))?;
        bring_up(name).map_err(|error| failed(&error))?;
        Ok(Self {
            name: name.to_owned(),
            announced: BTreeSet::new(),
            _device: device,
        })
    }

    /// Announces the VIPs of a configuration, and no others.
    pub(super) fn announce(&mut self, config: &Config) {
        let vips = config.frontends.iter().map(|frontend| frontend.address);
        self.set(vips.collect());
    }

    /// Announces nothing any more.
    pub(super) fn withdraw(&mut self) {
        self.set(BTreeSet::new());
    }

    fn set(&mut self, wanted: BTreeSet<IpAddr>) {
        let gone = self.announced.difference(&wanted).map(|&vip| (vip, false));
        let new = wanted.difference(&self.announced).map(|&vip| (vip, true));
        let changes: Vec<(IpAddr, bool)> = gone.chain(new).collect();
        for (vip, is_there) in changes {
            match set_address(&self.name, vip, is_there) {
                Ok(()) if is_there => {
                    info!(%vip, "announced");
                    self.announced.insert(vip);
                }
                Ok(()) => {
                    info!(%vip, "withdrawn");
                    self.announced.remove(&vip);
                }
                Err(error) => warn!(%vip, interface = self.name, "{error}"),
            }
        }
    }
}
