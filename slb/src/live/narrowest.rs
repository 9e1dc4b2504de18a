//! The interfaces that the kernel sends by where packets leave through TUN devices: the one with the smallest MTU
//! limits the packets of the balancer.
//!
//! ```text
//!  mux ─► slb0 (TUN) ─► the kernel's route to the host ─► eth0, MTU 1400
//! ```
//! A packet that is longer than that has `DF` set, and the kernel's own answer goes to its source: a VIP or the
//! underlay address, so whoever sent the packet inside it never learns why it is lost.

use std::collections::BTreeSet;
use std::net::IpAddr;

use slb_control::Config;
use slb_io_afxdp::{Link, Neighbours};
use tracing::{info, warn};

use super::next_hops::Found;

/// The interface with the smallest MTU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Narrowest {
    interface: String,
    /// The longest packet that it carries, in bytes.
    mtu: u32,
}

impl Narrowest {
    /// Finds the interface with the smallest MTU among those that the kernel sends by to `others`, or that are in
    /// `known` by their index.
    pub(super) fn find(
        tables: &Neighbours,
        known: impl Iterator<Item = u32>,
        others: &BTreeSet<IpAddr>,
    ) -> Option<Self> {
        let next_hops = others.iter().filter_map(|&to| tables.next_hop(to).ok()?);
        let interfaces: BTreeSet<u32> = known
            .chain(next_hops.map(|next_hop| next_hop.interface))
            .collect();
        let links = interfaces
            .into_iter()
            .filter_map(|index| Link::of_index(index).ok());
        let all = links.map(|(interface, link)| Self {
            interface,
            mtu: link.mtu,
        });
        all.filter(|own| own.mtu > 0).min_by_key(|own| own.mtu)
    }

    /// Shortens the packets of a configuration to what the interface carries.
    pub(super) fn limit(&self, config: &mut Config) {
        if let Ok(mtu) = u16::try_from(self.mtu)
            && mtu < config.mtu()
        {
            config.node.mtu = Some(mtu);
        }
    }
}

/// The interface that was last logged as too narrow for the configured MTU.
#[derive(Debug, Default)]
pub(super) struct Narrow(Option<Narrowest>);

impl Narrow {
    /// Logs whether an interface carries less than the configuration has. Returns true if that is another than before.
    pub(super) fn note(&mut self, given: &Config, found: &Found) -> bool {
        let configured = u32::from(given.mtu());
        let now = found.narrowest().filter(|own| own.mtu < configured);
        if now == self.0.as_ref() {
            return false;
        }
        match (now, &self.0) {
            (Some(now), _) => {
                let (interface, mtu) = (&now.interface, now.mtu);
                warn!(
                    interface,
                    mtu,
                    configured,
                    "packets leave by {interface}, whose MTU of {mtu} is less than the node's {configured}: longer packets are answered (packet too big)"
                );
            }
            (None, Some(before)) => {
                let interface = &before.interface;
                info!(
                    interface,
                    configured,
                    "{interface} no longer limits packets: the node's MTU applies again"
                );
            }
            (None, None) => {}
        }
        self.0 = now.cloned();
        true
    }
}
