//! Underlay addresses that packets to this node do not reach.

use std::collections::BTreeSet;
use std::net::IpAddr;

use slb_control::{Config, Role};
use slb_core::spec::Answers;
use slb_core::wire::ipv6;
use slb_io_afxdp::{Link, Neighbours};

use super::device::Plan;

/// The faults of underlay addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Underlays {
    /// The reasons why packets of VIPs are lost.
    pub(super) troubles: Vec<String>,
    /// The reasons why other packets are lost.
    pub(super) warnings: Vec<String>,
}

/// Looks at the underlay addresses of a node. Where packets leave by an interface, the kernel has to answer for them.
/// Through a TUN device, what is sent to them in VXLAN has to be routed into that. The interface `announce`, by which
/// VIPs are announced, has the underlay address for its end, which does not count.
pub(super) fn look(plan: &Plan, config: &Config, announce: Option<&str>) -> Underlays {
    let mut found = Underlays::default();
    let node = &config.node;
    let tuns = plan.routed_fabric();
    if node.role == Role::Proxy || plan.fabric().is_none() && tuns.is_empty() {
        return found;
    }
    let Ok(tables) = Neighbours::open() else {
        return found;
    };
    let Ok(own) = tables.addresses_by_interface() else {
        return found;
    };
    let announce = announce.and_then(|name| Some(Link::find(name).ok()?.index));
    let own = own
        .into_iter()
        .filter(|(index, _)| Some(*index) != announce);
    let own: BTreeSet<IpAddr> = own.map(|(_, address)| address).collect();
    let duplicates = tables.duplicates().unwrap_or_default();
    let is_duplicate = |own: IpAddr| duplicates.iter().any(|(_, address)| *address == own);
    let said = [node.ipv4.map(IpAddr::from), node.ipv6.map(IpAddr::from)];
    let links = tuns.iter().filter_map(|name| Link::find(name).ok());
    let links: Vec<u32> = links.map(|link| link.index).collect();
    for address in said.into_iter().flatten() {
        let is_own = own.contains(&address);
        if plan.fabric().is_some() {
            if is_duplicate(address) {
                found.troubles.push(format!(
                    "underlay {address} is an address of another machine too, so the kernel does not use it (ip address del there, then del and add here)"
                ));
            } else if let Some((name, mtu)) = too_narrow(plan, address).filter(|_| !is_own) {
                found.troubles.push(format!(
                    "underlay {address} is no address of this machine: IPv6 is off while the MTU of {name} is {mtu} (ip link set {name} mtu 1280 or more, then ip address add)"
                ));
            } else if !is_own {
                found.troubles.push(format!(
                    "underlay {address} is no address of this machine (ip address add)"
                ));
            }
            continue;
        }
        let next_hop = tables.next_hop(address).ok().flatten();
        if next_hop.is_some_and(|next_hop| links.contains(&next_hop.interface)) {
            continue;
        }
        let device = tuns.join(", ");
        match (receives_vxlan(config), is_own) {
            (true, true) => found.troubles.push(format!(
                "underlay {address} is an address of this machine, so its VXLAN packets do not reach {device}: expected a route into {device} (ip address del, ip route add {address} dev {device})"
            )),
            (true, false) => found.troubles.push(format!(
                "underlay {address} is not routed into {device}, so VXLAN packets to it are lost (ip route add {address} dev {device})"
            )),
            (false, false) => found.warnings.push(format!(
                "underlay {address} is no address of this machine: ICMP errors to it, such as \"packet too big\", are lost (ip address add)"
            )),
            (false, true) => {}
        }
    }
    found
}

/// Returns the interface to the fabric and its MTU, if that is too small for IPv6: the kernel then removes IPv6
/// addresses.
fn too_narrow(plan: &Plan, address: IpAddr) -> Option<(&str, u32)> {
    let fabric = plan.fabric().filter(|_| address.is_ipv6())?;
    let is_short = (fabric.mtu as usize) < ipv6::MIN_MTU;
    is_short.then_some((&*fabric.name, fabric.mtu))
}

/// Returns true if VXLAN packets are sent to the node.
fn receives_vxlan(config: &Config) -> bool {
    let rules = config.rules.iter().map(|rule| &rule.terms);
    let mut terms = rules.chain(config.inbound_nat.iter().map(|nat| &nat.terms));
    let is_host = config.node.role == Role::Host;
    is_host || terms.any(|terms| terms.answers == Answers::ThroughMux)
}
