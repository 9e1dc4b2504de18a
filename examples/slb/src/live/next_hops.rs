//! The MAC addresses of next hops, put into configurations before they are compiled.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use slb_control::{Config, Role};
use slb_core::wire::ethernet::MacAddress;
use slb_io_afxdp::{Neighbours, NextHop};
use tracing::warn;

use super::device::Plan;
use crate::Failure;

/// What stands for an address that is not known: the I/O counts such packets, and sends none.
const UNKNOWN: MacAddress = MacAddress([0; 6]);

/// An address that only a default route leads to: of those for documentation (RFC 5737, RFC 3849).
const FAR_IPV4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const FAR_IPV6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1));

/// Next hops by the address that is to be reached.
pub(super) type Found = BTreeMap<IpAddr, Option<NextHop>>;

pub(super) struct NextHops {
    tables: Neighbours,
    /// The interface that packets leave by.
    fabric: u32,
}

impl NextHops {
    /// `None` where the kernel routes what leaves.
    pub(super) fn open(plan: &Plan) -> Result<Option<Self>, Failure> {
        let Some(fabric) = plan.fabric() else {
            return Ok(None);
        };
        let tables = Neighbours::open();
        let tables = tables.map_err(|error| Failure::failed(format!("netlink: {error}")))?;
        Ok(Some(Self {
            tables,
            fabric: fabric.index,
        }))
    }

    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.tables.events()
    }

    pub(super) fn has_changed(&self) -> bool {
        self.tables.has_changed()
    }

    /// Looks up the next hop of each address that a configuration needs one for.
    pub(super) fn look_up(&self, given: &Config) -> Found {
        let mut found = Found::new();
        for address in needed(given) {
            let next_hop = self.tables.next_hop(address).unwrap_or_else(|error| {
                warn!(%address, "the kernel does not say how to reach it: {error}");
                None
            });
            let by_fabric = next_hop.filter(|next_hop| next_hop.interface == self.fabric);
            found.insert(address, by_fabric);
        }
        found
    }

    /// Tells the kernel which of them are used: all, or those that it does not know.
    pub(super) fn ask(&self, found: &Found, all: bool) -> io::Result<()> {
        let asked = found.values().flatten();
        for next_hop in asked.filter(|next_hop| all || next_hop.mac.is_none()) {
            self.tables.ask(next_hop)?;
        }
        Ok(())
    }
}

/// The addresses whose next hops the configuration does not say.
fn needed(given: &Config) -> Vec<IpAddr> {
    let mut all = Vec::new();
    if given.node.next_hop.is_none() {
        all.extend(given.node.ipv4.map(|_| FAR_IPV4));
        all.extend(given.node.ipv6.map(|_| FAR_IPV6));
    }
    if given.node.role != Role::Mux {
        return all;
    }
    let pools = given.pools.iter().flat_map(|pool| &pool.backends);
    let unsaid = pools.filter(|backend| backend.next_hop.is_none());
    all.extend(
        unsaid
            .map(|backend| backend.host)
            .filter(|&host| !given.node.is(host)),
    );
    all
}

/// Puts what was found into a configuration.
pub(super) fn complete(config: &mut Config, found: &Found) {
    let mac = |address: IpAddr| {
        let next_hop = found.get(&address).copied().flatten();
        next_hop.and_then(|next_hop| next_hop.mac)
    };
    if config.node.next_hop.is_none() {
        let default = mac(FAR_IPV4).or_else(|| mac(FAR_IPV6));
        config.node.next_hop = Some(default.unwrap_or(UNKNOWN));
    }
    for backend in config.pools.iter_mut().flat_map(|pool| &mut pool.backends) {
        if backend.next_hop.is_none() && found.contains_key(&backend.host) {
            backend.next_hop = Some(mac(backend.host).unwrap_or(UNKNOWN));
        }
    }
}

/// How many of them are not known.
pub(super) fn unresolved(found: &Found) -> Vec<IpAddr> {
    let is_unknown = |next_hop: &Option<NextHop>| next_hop.is_none_or(|hop| hop.mac.is_none());
    let unknown = found.iter().filter(|(_, next_hop)| is_unknown(next_hop));
    unknown.map(|(&address, _)| address).collect()
}
