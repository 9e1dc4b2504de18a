//! Routes to the addresses of a configuration: the MAC addresses of next hops, which complete
//! configurations before they are compiled, and unreachable hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use slb_control::config::Backend;
use slb_control::{Config, Role};
use slb_core::health::Condition;
use slb_core::wire::ethernet::MacAddress;
use slb_io_afxdp::{Neighbours, NextHop};
use tracing::{info, warn};

use super::device::Plan;
use super::narrowest::Narrowest;
use super::storm::Storm;
use crate::Failure;

/// An address that only a default route covers: one for documentation (RFC 5737, RFC 3849).
const FAR_IPV4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const FAR_IPV6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1));

/// The time for which a route may be missing before it is reported, since routing daemons replace
/// routes.
const WITHOUT_ROUTE: Duration = Duration::from_secs(1);
/// The time that a neighbour may take to answer: Linux asks three times, a second apart.
const WITHOUT_NEIGHBOUR: Duration = Duration::from_secs(3);

/// The route to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Packets leave by this next hop, whose MAC address is known; or the kernel sends the packets.
    Known(NextHop),
    /// Packets would leave by this next hop, which has not answered.
    Unresolved(NextHop),
    /// The route leads to another interface than the one that packets leave by.
    Elsewhere(NextHop),
    /// No route leads there.
    NoRoute,
    /// No route leads there by a proxy's backend port. Packets keep the MAC address that clients have for the
    /// VIP: that of a router behind the proxy, which finds the backend.
    Across,
}

impl Reach {
    /// Returns the next hop, if its MAC address can be used.
    fn next_hop(&self) -> Option<&NextHop> {
        match self {
            Self::Known(next_hop) | Self::Unresolved(next_hop) => Some(next_hop),
            Self::Elsewhere(_) | Self::NoRoute | Self::Across => None,
        }
    }

    pub(super) fn is_known(&self) -> bool {
        matches!(self, Self::Known(_) | Self::Across)
    }
}

/// The next hop of each address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    by_address: BTreeMap<IpAddr, Reach>,
    /// The interface with the smallest MTU among those that the kernel sends packets by.
    narrowest: Option<Narrowest>,
}

impl Found {
    pub(super) fn narrowest(&self) -> Option<&Narrowest> {
        self.narrowest.as_ref()
    }

    /// Shortens the packets of a configuration to what the interfaces carry that the kernel sends them by.
    pub(super) fn limit(&self, config: &mut Config) {
        if let Some(narrowest) = &self.narrowest {
            narrowest.limit(config);
        }
    }
}

impl Deref for Found {
    type Target = BTreeMap<IpAddr, Reach>;

    fn deref(&self) -> &Self::Target {
        &self.by_address
    }
}

pub(super) struct NextHops {
    tables: Neighbours,
    /// The interface that packets leave by; `None`: the kernel routes them.
    fabric: Option<u32>,
    /// True if packets leave as frames through devices that the kernel bridges, so no route is
    /// looked up.
    is_bridged: bool,
}

impl NextHops {
    pub(super) fn open(plan: &Plan) -> Result<Self, Failure> {
        let tables = Neighbours::open();
        let tables = tables.map_err(|error| Failure::failed(format!("netlink: {error}")))?;
        Ok(Self {
            tables,
            fabric: plan.fabric().map(|fabric| fabric.index),
            is_bridged: plan.is_bridged(),
        })
    }

    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.tables.events()
    }

    pub(super) fn has_changed(&self) -> bool {
        self.tables.has_changed()
    }

    /// Records the interface by which packets leave, which may be a new one with the same name.
    pub(super) fn set_fabric(&mut self, plan: &Plan) {
        self.fabric = plan.fabric().map(|fabric| fabric.index);
    }

    /// Returns true if next hops are needed, since packets leave by an interface.
    pub(super) fn are_needed(&self) -> bool {
        self.fabric.is_some()
    }

    /// Looks up the routes to all addresses in a configuration.
    pub(super) fn look_up(&self, given: &Config) -> Found {
        self.query(given).answer(&self.tables)
    }

    /// Returns the query of the kernel's tables for a configuration.
    pub(super) fn query(&self, given: &Config) -> Query {
        Query {
            addresses: needed(given, self.are_needed()),
            fabric: self.fabric,
            crosses: (self.are_needed() || self.is_bridged) && given.node.role == Role::Proxy,
            is_routed: !self.are_needed() && !self.is_bridged,
            others: others(given),
        }
    }

    /// Marks next hops as used for the kernel: all, or only unknown ones.
    pub(super) fn ask(&self, found: &Found, all: bool) -> io::Result<()> {
        if !self.are_needed() {
            return Ok(());
        }
        // Thousands of hosts may be behind one router.
        let mut asked = BTreeSet::new();
        let wanted = found.values().filter_map(Reach::next_hop);
        for next_hop in wanted.filter(|next_hop| all || next_hop.mac.is_none()) {
            if asked.insert((next_hop.interface, next_hop.address)) {
                self.tables.ask(next_hop)?;
            }
        }
        Ok(())
    }
}

/// A query of the kernel's tables for the routes to some addresses.
pub(super) struct Query {
    addresses: BTreeSet<IpAddr>,
    fabric: Option<u32>,
    /// True if packets without a route by the fabric cross with their link headers.
    crosses: bool,
    /// True if the kernel routes the packets.
    is_routed: bool,
    /// More addresses that packets go to, which are not looked up unless the kernel routes to them.
    others: BTreeSet<IpAddr>,
}

impl Query {
    /// Asks the kernel, from a thread of its own.
    ///
    /// # Errors
    /// The tables cannot be opened.
    pub(super) fn run(&self) -> io::Result<Found> {
        Ok(self.answer(&Neighbours::open()?))
    }

    fn answer(&self, tables: &Neighbours) -> Found {
        let mut found = BTreeMap::new();
        for &address in &self.addresses {
            let reach = match tables.next_hop(address) {
                Ok(None) if self.crosses => Reach::Across,
                Ok(Some(next_hop)) => match self.fabric {
                    Some(fabric) if next_hop.interface != fabric && self.crosses => Reach::Across,
                    Some(fabric) if next_hop.interface != fabric => Reach::Elsewhere(next_hop),
                    Some(_) if next_hop.mac.is_none() => Reach::Unresolved(next_hop),
                    _ => Reach::Known(next_hop),
                },
                Ok(None) => Reach::NoRoute,
                Err(error) => {
                    warn!(%address, "route lookup failed: {error}");
                    Reach::NoRoute
                }
            };
            found.insert(address, reach);
        }
        let narrowest = self.is_routed.then(|| {
            let next_hops = found.values().filter_map(Reach::next_hop);
            let interfaces = next_hops.map(|next_hop| next_hop.interface);
            Narrowest::find(tables, interfaces, &self.others)
        });
        Found {
            by_address: found,
            narrowest: narrowest.flatten(),
        }
    }
}

/// The addresses whose next hops the configuration does not say: hosts, or a proxy's backends; and where
/// packets leave by an interface, what only a default route leads to.
fn needed(given: &Config, by_interface: bool) -> BTreeSet<IpAddr> {
    let mut all = BTreeSet::new();
    let role = given.node.role;
    if by_interface && role != Role::Proxy && given.node.next_hop.is_none() {
        all.extend(given.node.ipv4.map(|_| FAR_IPV4));
        all.extend(given.node.ipv6.map(|_| FAR_IPV6));
    }
    if role == Role::Host {
        // Vms of networks are reached from host to host; other packets of a host agent go by its router.
        let hosts = neighbours(given);
        let unsaid = hosts.filter(|(_, next_hop)| next_hop.is_none());
        all.extend(
            unsaid
                .map(|(host, _)| host)
                .filter(|&host| !given.node.is(host)),
        );
        return all;
    }
    let pools = given.pools.iter().flat_map(|pool| &pool.backends);
    let unsaid = pools.filter(|backend| backend.next_hop.is_none());
    let destinations = unsaid.map(|backend| destination(role, backend));
    all.extend(destinations.filter(|&address| role == Role::Proxy || !given.node.is(address)));
    all
}

/// The addresses that packets go to besides those of backends: the clients of a host agent or a proxy, by the default
/// route, and muxes.
fn others(given: &Config) -> BTreeSet<IpAddr> {
    let node = &given.node;
    if node.role == Role::Mux {
        return BTreeSet::new();
    }
    let vips = given.frontends.iter().map(|frontend| frontend.address);
    let publics = given.public_addresses.iter().map(|public| public.address);
    let clients = vips
        .chain(publics)
        .map(|vip| if vip.is_ipv4() { FAR_IPV4 } else { FAR_IPV6 });
    clients.chain(node.muxes.iter().copied()).collect()
}

/// The hosts of all vms of networks, each with its next hop if the configuration says it.
fn neighbours(given: &Config) -> impl Iterator<Item = (IpAddr, Option<MacAddress>)> + '_ {
    let pools = given
        .pools
        .iter()
        .filter(|pool| given.network_of(pool.vni).is_some());
    let backends = pools.flat_map(|pool| &pool.backends);
    let backends = backends.map(|backend| (backend.host, backend.next_hop));
    let vms = given.network_vms.iter().map(|vm| (vm.host, vm.next_hop));
    backends.chain(vms)
}

/// The address that a backend's packets are sent to: its host's, or, behind a proxy, its own.
pub(super) fn destination(role: Role, backend: &Backend) -> IpAddr {
    match role {
        Role::Proxy => backend.address,
        Role::Mux | Role::Host => backend.host,
    }
}

/// Completes a configuration with the routes.
pub(super) fn complete(config: &mut Config, found: &Found) {
    let own = config.node.mac;
    let mac = |address: IpAddr| match found.get(&address) {
        // A neighbour entry with this node's own MAC address leads nowhere.
        Some(Reach::Known(next_hop)) => next_hop.mac.filter(|mac| Some(*mac) != own),
        _ => None,
    };
    let role = config.node.role;
    if config.node.next_hop.is_none() && role != Role::Proxy {
        let default = mac(FAR_IPV4).or_else(|| mac(FAR_IPV6));
        config.node.next_hop = Some(default.unwrap_or(MacAddress::UNKNOWN));
    }
    for backend in config.pools.iter_mut().flat_map(|pool| &mut pool.backends) {
        let address = destination(role, backend);
        let reach = found.get(&address).filter(|reach| **reach != Reach::Across);
        if backend.next_hop.is_none() && reach.is_some() {
            backend.next_hop = Some(mac(address).unwrap_or(MacAddress::UNKNOWN));
        }
    }
    for vm in &mut config.network_vms {
        if vm.next_hop.is_none() && found.contains_key(&vm.host) {
            vm.next_hop = Some(mac(vm.host).unwrap_or(MacAddress::UNKNOWN));
        }
    }
}

/// Unreachable addresses, with the time since when, and true if that was logged.
#[derive(Debug, Default)]
pub(super) struct Unreached {
    lost: BTreeMap<IpAddr, (Reach, Instant, bool)>,
    /// The number of a proxy's backends that keep the link headers of their clients.
    across: usize,
    /// Lines about addresses that are lost.
    lost_lines: Lines,
    /// Lines about addresses that are reached again.
    found_lines: Lines,
}

impl Unreached {
    /// Records how addresses are reached, and logs by name those that are lost or reached again.
    /// Returns true if that differs from before.
    pub(super) fn note(&mut self, given: &Config, found: &Found) -> bool {
        let (mut is_another, now) = (false, Instant::now());
        let lines = &mut self.found_lines;
        self.lost.retain(|address, (_, _, is_said)| {
            let is_lost = found.get(address).is_some_and(|reach| !reach.is_known());
            if !is_lost && *is_said {
                is_another = true;
                // One that the configuration no longer names needs no line.
                if found.contains_key(address) && lines.have_room(now) {
                    let of = names(given, *address);
                    let to = destination_name(*address);
                    info!(of, to, event = "reachable", "{of}: {to} is reachable again");
                }
            }
            is_lost
        });
        let lines = &mut self.lost_lines;
        for (&address, &reach) in found.iter().filter(|(_, reach)| !reach.is_known()) {
            let (known, since, is_said) =
                self.lost
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
            if !lines.have_room(now) {
                continue;
            }
            let (of, to) = (names(given, address), destination_name(address));
            let why = match reach {
                Reach::Unresolved(next_hop) => {
                    let next_hop = next_hop.address;
                    format!("no neighbour entry for {next_hop} on the way to {to}")
                }
                Reach::Elsewhere(next_hop) => format!(
                    "the route to {to} leads by {}, which is not the interface to the fabric",
                    interface_name(next_hop.interface)
                ),
                _ => format!("no route to {to}"),
            };
            warn!(
                of,
                to,
                why,
                event = "unreachable",
                "{of}: {why}, packets are lost"
            );
        }
        self.say_rest(now);
        is_another
    }

    /// Logs the numbers of addresses that have had no line of their own, if such a line is due.
    pub(super) fn say_rest(&mut self, now: Instant) {
        if let Some(count) = self.found_lines.rest(now) {
            info!("{count} more addresses are reachable again");
        }
        if let Some(count) = self.lost_lines.rest(now) {
            let lost = self.lost.values().filter(|(_, _, is_said)| *is_said);
            warn!(
                "{count} more addresses became unreachable, packets are lost; {} are now: slb status names their \
                 backends",
                lost.count()
            );
        }
    }

    /// Says which of a proxy's backends have no next hop of their own, once for each number of them.
    pub(super) fn note_across(&mut self, given: &Config, found: &Found, interface: Option<&str>) {
        let across = || found.iter().filter(|(_, reach)| **reach == Reach::Across);
        let count = across().count();
        if count == std::mem::replace(&mut self.across, count) {
            return;
        }
        let (Some((&first, _)), Some(interface)) = (across().next(), interface) else {
            return;
        };
        info!(
            "{} (one of {count}): no route leads there by {interface}, the backend port's interface, so packets \
             keep the MAC address that clients have for the VIP: it has to belong to a router behind the proxy, which finds the backend. Where clients and backends are in one subnet, give {interface} an address in it",
            names(given, first)
        );
    }

    /// Returns true if there is anything that may have to be logged later.
    pub(super) fn is_waiting(&self) -> bool {
        self.lost.values().any(|(_, _, is_said)| !is_said)
    }

    /// The addresses of hosts, or of a proxy's backends, that are not reached.
    pub(super) fn hosts(&self) -> BTreeSet<IpAddr> {
        let said = self.lost.iter().filter(|(_, (_, _, is_said))| *is_said);
        said.map(|(&address, _)| address).collect()
    }

    /// Takes new flows away from backends whose hosts are unreachable.
    pub(super) fn apply(&self, config: &mut Config) {
        let (role, hosts) = (config.node.role, self.hosts());
        // A host agent chooses no backends.
        if role == Role::Host {
            return;
        }
        for backend in config.pools.iter_mut().flat_map(|pool| &mut pool.backends) {
            let is_lost = hosts.contains(&destination(role, backend));
            if is_lost {
                backend.condition = Condition::Unhealthy;
            }
        }
    }
}

/// The pace of lines about single addresses of one kind: a fabric that is cut has every host unreached, and one
/// that flaps has it again and again.
#[derive(Debug)]
struct Lines {
    /// Lines about an address each.
    single: Storm,
    /// Lines about the number of the others.
    rest: Storm,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            single: Storm::of(MOST_SINGLE),
            rest: Storm::default(),
        }
    }
}

/// The number of lines about single addresses that may follow each other at once.
const MOST_SINGLE: u32 = 20;

impl Lines {
    /// Returns true if one more line about an address may be logged. Otherwise it is counted.
    fn have_room(&mut self, now: Instant) -> bool {
        let has_room = self.single.allows(now);
        if !has_room {
            self.rest.add(1);
        }
        has_room
    }

    /// Returns the number of addresses that have had no line, if a line about them is due.
    fn rest(&mut self, now: Instant) -> Option<usize> {
        self.rest.due(now)
    }
}

/// The name of an interface, or its number where it has none any more.
fn interface_name(index: u32) -> String {
    let all = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    let has_index = |entry: &std::fs::DirEntry| {
        let read = std::fs::read_to_string(entry.path().join("ifindex"));
        read.is_ok_and(|text| text.trim() == index.to_string())
    };
    let found = all.flatten().find(has_index);
    let name = found.map(|entry| entry.file_name().to_string_lossy().into_owned());
    name.unwrap_or_else(|| format!("interface {index}"))
}

/// An address that packets go to, or the networks that the default route stands for.
fn destination_name(address: IpAddr) -> String {
    match is_far(address) {
        true => format!("other {} networks", family(address)),
        false => address.to_string(),
    }
}

fn is_far(address: IpAddr) -> bool {
    [FAR_IPV4, FAR_IPV6].contains(&address)
}

fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// Names of the first few backends and vms whose packets go to an address.
fn names(given: &Config, address: IpAddr) -> String {
    const FEW: usize = 3;
    if is_far(address) {
        let family = family(address);
        return format!("answers and other {family} packets of the balancer's own");
    }
    let of = |pool: &slb_control::config::Pool| {
        let there = pool.backends.iter();
        let there = there.filter(|backend| destination(given.node.role, backend) == address);
        let names = there.map(|backend| format!("{}/{}", pool.name, backend.name));
        names.collect::<Vec<_>>()
    };
    let vms = given.network_vms.iter().filter(|vm| vm.host == address);
    let vms = vms.map(|vm| format!("vm {}", vm.name));
    let all: Vec<String> = given.pools.iter().flat_map(of).chain(vms).collect();
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
        true => format!("the {} default route's", family(address)),
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
