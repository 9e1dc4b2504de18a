//! How the addresses of a configuration are reached: the MAC addresses of next hops, which are put into
//! configurations before they are compiled, and the hosts that no packet can reach.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use slb_control::{Config, Role};
use slb_core::spec::BackendState;
use slb_core::wire::ethernet::MacAddress;
use slb_io_afxdp::{Neighbours, NextHop};
use tracing::{info, warn};

use super::device::Plan;
use crate::Failure;

/// What stands for an address that is not known: the I/O counts such packets, and sends none.
const UNKNOWN: MacAddress = MacAddress([0; 6]);

/// An address that only a default route leads to: of those for documentation (RFC 5737, RFC 3849).
const FAR_IPV4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const FAR_IPV6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1));

/// How long a route may be missing before that is said: routing daemons replace routes.
const WITHOUT_ROUTE: Duration = Duration::from_secs(1);
/// How long a neighbour may take to answer: Linux asks three times, a second apart.
const WITHOUT_NEIGHBOUR: Duration = Duration::from_secs(3);

/// How an address is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// By this next hop, whose MAC address is known; or the kernel sends the packets.
    Known(NextHop),
    /// By this next hop, which has not answered yet, or does not.
    Unresolved(NextHop),
    /// By another interface than the one that packets leave by.
    Elsewhere(NextHop),
    /// No route leads there.
    NoRoute,
}

impl Reach {
    /// The next hop, where its MAC address is of use.
    fn next_hop(&self) -> Option<&NextHop> {
        match self {
            Self::Known(next_hop) | Self::Unresolved(next_hop) => Some(next_hop),
            Self::Elsewhere(_) | Self::NoRoute => None,
        }
    }

    pub(super) fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }
}

/// How each address is reached.
pub(super) type Found = BTreeMap<IpAddr, Reach>;

pub(super) struct NextHops {
    tables: Neighbours,
    /// The interface that packets leave by; `None`: the kernel routes them.
    fabric: Option<u32>,
}

impl NextHops {
    pub(super) fn open(plan: &Plan) -> Result<Self, Failure> {
        let tables = Neighbours::open();
        let tables = tables.map_err(|error| Failure::failed(format!("netlink: {error}")))?;
        Ok(Self {
            tables,
            fabric: plan.fabric().map(|fabric| fabric.index),
        })
    }

    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.tables.events()
    }

    pub(super) fn has_changed(&self) -> bool {
        self.tables.has_changed()
    }

    /// Takes note of the interface that packets leave by, which may be another under the same name.
    pub(super) fn set_fabric(&mut self, plan: &Plan) {
        self.fabric = plan.fabric().map(|fabric| fabric.index);
    }

    /// Whether next hops are needed, since packets leave by an interface.
    pub(super) fn are_needed(&self) -> bool {
        self.fabric.is_some()
    }

    /// Looks up how each address that a configuration names is reached.
    pub(super) fn look_up(&self, given: &Config) -> Found {
        let mut found = Found::new();
        for address in needed(given, self.are_needed()) {
            let reach = match self.tables.next_hop(address) {
                Ok(Some(next_hop)) => match self.fabric {
                    Some(fabric) if next_hop.interface != fabric => Reach::Elsewhere(next_hop),
                    Some(_) if next_hop.mac.is_none() => Reach::Unresolved(next_hop),
                    _ => Reach::Known(next_hop),
                },
                Ok(None) => Reach::NoRoute,
                Err(error) => {
                    warn!(%address, "the kernel does not say how to reach it: {error}");
                    Reach::NoRoute
                }
            };
            found.insert(address, reach);
        }
        found
    }

    /// Tells the kernel which of them are used: all, or those that it does not know.
    pub(super) fn ask(&self, found: &Found, all: bool) -> io::Result<()> {
        if !self.are_needed() {
            return Ok(());
        }
        let asked = found.values().filter_map(Reach::next_hop);
        for next_hop in asked.filter(|next_hop| all || next_hop.mac.is_none()) {
            self.tables.ask(next_hop)?;
        }
        Ok(())
    }
}

/// The addresses whose next hops the configuration does not say: hosts, and where packets leave by an
/// interface, what only a default route leads to.
fn needed(given: &Config, by_interface: bool) -> BTreeSet<IpAddr> {
    let mut all = BTreeSet::new();
    if by_interface && given.node.next_hop.is_none() {
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
    let mac = |address: IpAddr| match found.get(&address) {
        Some(Reach::Known(next_hop)) => next_hop.mac,
        _ => None,
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

/// Addresses that are not reached, since when, and whether that was said.
#[derive(Debug, Default)]
pub(super) struct Unreached(BTreeMap<IpAddr, (Reach, Instant, bool)>);

impl Unreached {
    /// Takes note of how addresses are reached, and says by name what is lost, and what no longer is. Gives
    /// whether that is another than before.
    pub(super) fn note(&mut self, given: &Config, found: &Found) -> bool {
        let mut is_another = false;
        self.0.retain(|address, (_, _, is_said)| {
            let is_lost = found.get(address).is_some_and(|reach| !reach.is_known());
            if !is_lost && *is_said {
                is_another = true;
                // One that the configuration does not name any more is nobody's concern.
                if found.contains_key(address) {
                    info!("{}: {address} is reached again", names(given, *address));
                }
            }
            is_lost
        });
        for (&address, &reach) in found.iter().filter(|(_, reach)| !reach.is_known()) {
            let (known, since, is_said) =
                self.0
                    .entry(address)
                    .or_insert((reach, Instant::now(), false));
            *known = reach;
            let patience = match reach {
                Reach::Unresolved(_) => WITHOUT_NEIGHBOUR,
                _ => WITHOUT_ROUTE,
            };
            if *is_said || since.elapsed() < patience {
                continue;
            }
            *is_said = true;
            is_another = true;
            let names = names(given, address);
            let to = if is_far(address) {
                "other networks".to_owned()
            } else {
                address.to_string()
            };
            match reach {
                Reach::Unresolved(next_hop) => warn!(
                    "{names}: no answer from the neighbour {} on the way to {to}, packets are lost",
                    next_hop.address
                ),
                Reach::Elsewhere(next_hop) => warn!(
                    "{names}: the route to {to} leads by interface {}, which is not the one to the fabric, \
                     packets are lost",
                    next_hop.interface
                ),
                _ => warn!("{names}: no route to {to}, packets are lost"),
            }
        }
        is_another
    }

    /// Whether there is anything that may have to be said later.
    pub(super) fn is_waiting(&self) -> bool {
        self.0.values().any(|(_, _, is_said)| !is_said)
    }

    /// The hosts that are not reached.
    pub(super) fn hosts(&self) -> BTreeSet<IpAddr> {
        let said = self.0.iter().filter(|(_, (_, _, is_said))| *is_said);
        said.map(|(&address, _)| address).collect()
    }

    /// Has backends whose hosts are not reached get no new flows.
    pub(super) fn apply(&self, config: &mut Config) {
        let hosts = self.hosts();
        for backend in config.pools.iter_mut().flat_map(|pool| &mut pool.backends) {
            if backend.state == BackendState::Healthy && hosts.contains(&backend.host) {
                backend.state = BackendState::Unhealthy;
            }
        }
    }
}

fn is_far(address: IpAddr) -> bool {
    [FAR_IPV4, FAR_IPV6].contains(&address)
}

/// Whose packets go to an address: the first few of the backends there.
fn names(given: &Config, address: IpAddr) -> String {
    const FEW: usize = 3;
    if is_far(address) {
        return "answers and other packets of the balancer's own".to_owned();
    }
    let of = |pool: &slb_control::config::Pool| {
        let there = pool.backends.iter();
        let there = there.filter(|backend| backend.host == address);
        let names = there.map(|backend| format!("{}/{}", pool.name, backend.name));
        names.collect::<Vec<_>>()
    };
    let all: Vec<String> = given.pools.iter().flat_map(of).collect();
    let more = all.len().saturating_sub(FEW);
    let few = all.into_iter().take(FEW).collect::<Vec<_>>().join(", ");
    match more {
        0 => few,
        more => format!("{few} and {more} more"),
    }
}

/// The addresses that are not reached, with whose they are, as the log names them.
pub(super) fn unresolved(given: &Config, found: &Found) -> String {
    const FEW: usize = 5;
    let lost = found.iter().filter(|(_, reach)| !reach.is_known());
    let all: Vec<IpAddr> = lost.map(|(&address, _)| address).collect();
    let few = all.iter().take(FEW);
    let name = |&address: &IpAddr| match is_far(address) {
        true => "the default route's".to_owned(),
        false => format!("{address} ({})", names(given, address)),
    };
    let mut text = few.map(name).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(FEW) {
        0 if all.is_empty() => "none".clone_into(&mut text),
        0 => {}
        more => text += &format!(" and {more} more"),
    }
    text
}
