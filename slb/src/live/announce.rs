//! VIPs on an interface, for a routing daemon on the same machine to announce.
//!
//! Each VIP is the peer of a link, so the kernel routes to it and does not answer for it: packets
//! that the mux does not take are lost in the interface, and reset no connection. The interface
//! belongs to this process: when the process ends, for any reason, the interface disappears, and
//! the daemon withdraws the routes. A process that takes over gets the interface with its VIPs from
//! the previous process, so nothing is withdrawn.
//!
//! An operator or another program may delete the interface, take it down, or remove an address from
//! it. A deleted interface is created again, and a removed address is added again. An interface
//! that was taken down stays down until someone brings it up. The node is not ready while the
//! interface is deleted or down.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use slb_control::Config;
use slb_control::config::Frontend;
use slb_io_afxdp::{InterfaceError, Link, Neighbours, bring_up, set_peer};
use slb_io_tun::{Device, Layer};
use tracing::{error, info, warn};

use crate::Failure;

/// The local end of the links if the mux has no address of the family: any address will do.
const OWN_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 255, 1);
const OWN_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6c62, 0, 0, 0, 0, 0, 1);

/// The minimum time before a deleted interface is created again, so that routing daemons notice the
/// withdrawal.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Announcer {
    name: String,
    own_ipv4: Ipv4Addr,
    own_ipv6: Ipv6Addr,
    announced: BTreeSet<IpAddr>,
    /// VIPs that the kernel refuses, each logged once.
    refused: BTreeSet<IpAddr>,
    state: State,
}

/// The last known state of the interface.
enum State {
    /// The interface is up. The device keeps it open; the number is the interface's index.
    Up(Device, u32),
    /// The interface was taken down.
    Down(Device, u32),
    /// The interface was deleted.
    Gone(Instant),
}

impl Announcer {
    /// Opens the interface, or takes over the one of an earlier process.
    pub(super) fn open(
        name: &str,
        config: &Config,
        handed_over: Option<OwnedFd>,
    ) -> Result<Self, Failure> {
        let (state, announced) = match handed_over.and_then(|file| go_on_with(name, file)) {
            Some(all) => all,
            None => {
                let (device, index) = open(name)
                    .map_err(|error| Failure::failed(format!("--announce {name}: {error}")))?;
                (State::Up(device, index), BTreeSet::new())
            }
        };
        Ok(Self {
            name: name.to_owned(),
            own_ipv4: config.node.ipv4.unwrap_or(OWN_IPV4),
            own_ipv6: config.node.ipv6.unwrap_or(OWN_IPV6),
            announced,
            refused: BTreeSet::new(),
            state,
        })
    }

    /// Returns the interface for a process that takes over, while it exists.
    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Up(device, _) | State::Down(device, _) => Some(device.as_fd()),
            State::Gone(_) => None,
        }
    }

    /// Announces the VIPs and the public addresses of a configuration, and no others: without those of other zones, and where it says so,
    /// without those whose backends are all down.
    pub(super) fn announce(&mut self, config: &Config) {
        let frontends = config.frontends.iter().enumerate();
        // A VIP without rules may be used by NAT, which ignores health.
        let serves = |&(place, _): &(usize, &Frontend)| {
            !config.node.withdraw_when_down || config.is_available(place) != Some(false)
        };
        let is_here = |(_, frontend): &(usize, &Frontend)| config.announces(frontend);
        let vips = frontends
            .filter(is_here)
            .filter(serves)
            .map(|(_, frontend)| frontend.address);
        let publics = config.public_addresses.iter();
        self.set(&vips.chain(publics.map(|public| public.address)).collect());
    }

    /// Forgets the announced VIPs, since another program may have changed the interface.
    pub(super) fn forget(&mut self) {
        self.announced.clear();
    }

    /// Withdraws all VIPs.
    pub(super) fn withdraw(&mut self) {
        self.set(&BTreeSet::new());
    }

    /// Returns the reason why nothing can be announced, if there is one.
    pub(super) fn trouble(&self) -> Option<String> {
        let name = &self.name;
        match self.state {
            State::Up(..) => None,
            State::Down(..) => Some(format!("{name} is down, so no VIP is announced")),
            State::Gone(_) => Some(format!("{name} was removed, so no VIP is announced")),
        }
    }

    /// Checks the interface, and creates it again if it is gone. Returns true if the caller has to
    /// announce again, or if the result of [`trouble`](Self::trouble) has changed.
    pub(super) fn look(&mut self) -> bool {
        let found = match Link::find(&self.name) {
            Ok(link) => Some(link),
            // A netlink error proves nothing about the interface.
            Err(InterfaceError::Netlink(_)) => return false,
            Err(_) => None,
        };
        let name = &self.name;
        let state = std::mem::replace(&mut self.state, State::Gone(Instant::now()));
        match (state, found) {
            (State::Gone(since), _) if since.elapsed() < PAUSE => {
                self.state = State::Gone(since);
                false
            }
            (State::Gone(since), _) => match open(name) {
                Ok((device, index)) => {
                    info!("{name} is there again");
                    self.state = State::Up(device, index);
                    true
                }
                Err(error) => {
                    if since.elapsed() < 2 * PAUSE {
                        error!("{name} cannot be created, will retry: {error}");
                    }
                    self.state = State::Gone(since);
                    false
                }
            },
            (State::Up(device, index), Some(link)) if link.index == index && link.is_up => {
                self.state = State::Up(device, index);
                self.find_missing(index)
            }
            (State::Down(device, index), Some(link)) if link.index == index && link.is_up => {
                info!("{name} is up again");
                self.state = State::Up(device, index);
                // Its IPv6 addresses disappeared when it was taken down.
                self.announced.clear();
                true
            }
            (State::Up(device, index), Some(link)) if link.index == index => {
                error!(
                    "{name} was taken down: the VIPs come back when it is up (ip link set {name} up)"
                );
                self.state = State::Down(device, index);
                true
            }
            (State::Down(device, index), Some(link)) if link.index == index => {
                self.state = State::Down(device, index);
                false
            }
            (State::Up(..) | State::Down(..), _) => {
                error!("{name} was deleted, and the VIPs with it: creating it again");
                self.announced.clear();
                true
            }
        }
    }

    /// Finds VIPs that another program removed from the interface; returns true if there are any.
    fn find_missing(&mut self, index: u32) -> bool {
        let Ok(peers) = Neighbours::open().and_then(|tables| tables.peers(index)) else {
            return false;
        };
        let before = self.announced.len();
        let name = &self.name;
        self.announced.retain(|vip| {
            let is_there = peers.contains(vip);
            if !is_there {
                warn!(%vip, "was removed from {name}: announcing it again");
            }
            is_there
        });
        self.announced.len() < before
    }

    fn set(&mut self, wanted: &BTreeSet<IpAddr>) {
        if matches!(self.state, State::Gone(_)) {
            return;
        }
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
                    info!(%vip, event = "vip_announced", "announced");
                    self.announced.insert(vip);
                    self.refused.remove(&vip);
                }
                Ok(()) => {
                    info!(%vip, event = "vip_withdrawn", "withdrawn");
                    self.announced.remove(&vip);
                }
                Err(error) => {
                    if self.refused.insert(vip) {
                        warn!(%vip, interface = self.name, "{error}");
                    }
                }
            }
        }
    }
}

/// Takes over the interface of an earlier process: returns its state, and its VIPs. `None` if it
/// has another name, or was deleted.
fn go_on_with(name: &str, file: OwnedFd) -> Option<(State, BTreeSet<IpAddr>)> {
    let device = Device::from_file(file, name, Layer::Ip);
    let device = device
        .inspect_err(|error| warn!("the VIPs of the previous process are removed: {error}"))
        .ok()?;
    let link = Link::find(name).ok()?;
    let peers = Neighbours::open().and_then(|tables| tables.peers(link.index));
    // If the kernel does not list them, all VIPs are announced again.
    let vips = peers.unwrap_or_default().into_iter();
    let announced = vips.filter(|address| !is_link_local(*address)).collect();
    let state = match link.is_up {
        true => State::Up(device, link.index),
        false => State::Down(device, link.index),
    };
    Some((state, announced))
}

/// Returns true for a link-local address, which the kernel assigns to each interface.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Creates the interface, or attaches to it if it is not in use, and brings it up.
fn open(name: &str) -> Result<(Device, u32), String> {
    let device = Device::open(name, Layer::Ip, false).map_err(|error| error.to_string())?;
    bring_up(name).map_err(|error| error.to_string())?;
    let link = Link::find(name).map_err(|error| error.to_string())?;
    Ok((device, link.index))
}
