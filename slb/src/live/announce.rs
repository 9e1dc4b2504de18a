//! VIPs behind an interface, for the routing daemon beside the mux to announce.
//!
//! Each is the other end of a link, so the kernel routes to it and does not answer in its name:
//! packets that the mux does not take are lost in the interface, and reset no connection. The
//! interface is this process's own: when the process ends, for whatever reason, the interface
//! disappears, and the daemon withdraws the routes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_control::Config;
use slb_control::config::Frontend;
use slb_io_afxdp::{bring_up, set_peer};
use slb_io_tun::{Device, Layer};
use tracing::{info, warn};

use crate::Failure;

/// This end of the links, where the mux has no address of the family: any will do.
const OWN_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 255, 1);
const OWN_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6c62, 0, 0, 0, 0, 0, 1);

pub(super) struct Announcer {
    name: String,
    own_ipv4: Ipv4Addr,
    own_ipv6: Ipv6Addr,
    announced: BTreeSet<IpAddr>,
    /// Holds the interface.
    _device: Device,
}

impl Announcer {
    pub(super) fn open(name: &str, config: &Config) -> Result<Self, Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::failed(format!("--announce {name}: {error}"));
        let device = Device::open(name, Layer::Ip, false).map_err(|error| failed(&error))?;
        bring_up(name).map_err(|error| failed(&error))?;
        Ok(Self {
            name: name.to_owned(),
            own_ipv4: config.node.ipv4.unwrap_or(OWN_IPV4),
            own_ipv6: config.node.ipv6.unwrap_or(OWN_IPV6),
            announced: BTreeSet::new(),
            _device: device,
        })
    }

    /// Announces the VIPs of a configuration, and no others; where it says so, without those whose
    /// backends are all down.
    pub(super) fn announce(&mut self, config: &Config) {
        let frontends = config.frontends.iter().enumerate();
        // One without rules may be there for NAT, which asks nobody how he is.
        let serves = |&(place, _): &(usize, &Frontend)| {
            !config.node.withdraw_when_down || config.is_available(place) != Some(false)
        };
        let vips = frontends
            .filter(serves)
            .map(|(_, frontend)| frontend.address);
        self.set(&vips.collect());
    }

    /// Takes nothing as announced: somebody else may have changed the interface.
    pub(super) fn forget(&mut self) {
        self.announced.clear();
    }

    /// Announces nothing any more.
    pub(super) fn withdraw(&mut self) {
        self.set(&BTreeSet::new());
    }

    fn set(&mut self, wanted: &BTreeSet<IpAddr>) {
        let gone = self.announced.difference(wanted).map(|&vip| (vip, false));
        let new = wanted.difference(&self.announced).map(|&vip| (vip, true));
        let changes: Vec<(IpAddr, bool)> = gone.chain(new).collect();
        for (vip, is_there) in changes {
            let own = match vip {
                IpAddr::V4(_) => self.own_ipv4.into(),
                IpAddr::V6(_) => self.own_ipv6.into(),
            };
            match set_peer(&self.name, own, vip, is_there) {
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
