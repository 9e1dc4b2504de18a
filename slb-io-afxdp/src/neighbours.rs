//! Next hops from the kernel's routing and neighbour tables, by netlink.
//!
//! A frame that leaves by AF_XDP needs a destination MAC address, which the kernel resolves only
//! for its own packets. Therefore this module asks the kernel for the entry, and marks it as used:
//! the kernel then resolves unknown addresses, and verifies known ones from time to time.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use rustix::io::Errno;
use slb_core::wire::ethernet::MacAddress;

use crate::netlink;

/// The next hop on the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The router, or the address itself if it is on the link.
    pub address: IpAddr,
    /// The interface that leads there.
    pub interface: u32,
    /// MAC address of the neighbour, if the kernel knows it.
    pub mac: Option<MacAddress>,
    /// True if the entry was configured: it is not resolved on the link.
    pub is_fixed: bool,
}

/// The kernel's tables.
#[derive(Debug)]
pub struct Neighbours {
    requests: Socket,
    events: Socket,
}

/// Multicast groups of messages that can change a next hop (`enum rtnetlink_groups`).
const LINK: u32 = 1;
const NEIGHBOUR: u32 = 3;
const IPV4_ADDRESS: u32 = 5;
const IPV4_ROUTE: u32 = 7;
const IPV6_ADDRESS: u32 = 9;
const IPV6_ROUTE: u32 = 11;

impl Neighbours {
    /// Opens the tables.
    ///
    /// # Errors
    /// Netlink is not available.
    pub fn open() -> io::Result<Self> {
        let requests = netlink::open()?;
        let events = netlink::open()?;
        for group in [
            LINK,
            NEIGHBOUR,
            IPV4_ADDRESS,
            IPV4_ROUTE,
            IPV6_ADDRESS,
            IPV6_ROUTE,
        ] {
            events.add_membership(group)?;
        }
        events.set_non_blocking(true)?;
        Ok(Self { requests, events })
    }

    /// Returns a descriptor that becomes readable when something changes.
    pub fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns the descriptor, and is borrowed as long as the result.
        unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) }
    }

    /// Returns true if something changed since the last call.
    pub fn has_changed(&self) -> bool {
        let mut any = false;
        loop {
            match self.events.recv_from_full() {
                Ok(_) => any = true,
                // The buffer overflowed, so something has changed.
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => any = true,
                Err(_) => return any,
            }
        }
    }

    /// Returns the next hop to an address; `None` if there is no route.
    ///
    /// # Errors
    /// Netlink failed.
    pub fn next_hop(&self, to: IpAddr) -> io::Result<Option<NextHop>> {
        let Some((address, interface)) = self.route(to)? else {
            return Ok(None);
        };
        let (mac, is_fixed) = self.mac(address, interface)?;
        Ok(Some(NextHop {
            address,
            interface,
            mac,
            is_fixed,
        }))
    }

    /// Marks a next hop as used, so that the kernel resolves its address unless it is known. Needs
    /// CAP_NET_ADMIN.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ask(&self, next_hop: &NextHop) -> io::Result<()> {
        // Marking an entry as used would make it no longer permanent (the kernel's
        // `NEIGH_UPDATE_F_USE`).
        if next_hop.is_fixed {
            return Ok(());
        }
        let mut message = neighbour(next_hop.address, next_hop.interface);
        message.header.flags = NeighbourFlags::Use;
        let flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
        netlink::request(
            &self.requests,
            RouteNetlinkMessage::NewNeighbour(message),
            flags,
        )
        .map(drop)
    }

    /// The addresses of this machine, on all its interfaces.
    ///
    /// # Errors
    /// Netlink failed.
    pub fn own_addresses(&self) -> io::Result<Vec<IpAddr>> {
        let all = self.addresses_by_interface()?.into_iter();
        Ok(all.map(|(_, address)| address).collect())
    }

    /// The addresses of this machine, each with the index of its interface. IPv6 addresses that another machine has
    /// are left out: the kernel neither uses them nor answers for them (RFC 4862 §5.4).
    ///
    /// # Errors
    /// Netlink failed.
    pub fn addresses_by_interface(&self) -> io::Result<Vec<(u32, IpAddr)>> {
        self.addresses(false)
    }

    /// The IPv6 addresses that this machine does not use, since another one has them (RFC 4862 §5.4), each with the
    /// index of its interface.
    ///
    /// # Errors
    /// Netlink failed.
    pub fn duplicates(&self) -> io::Result<Vec<(u32, IpAddr)>> {
        self.addresses(true)
    }

    fn addresses(&self, are_duplicates: bool) -> io::Result<Vec<(u32, IpAddr)>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut all = Vec::new();
        for answer in netlink::dump(&self.requests, request)? {
            let RouteNetlinkMessage::NewAddress(message) = answer else {
                continue;
            };
            let is_duplicate = message.header.flags.contains(AddressHeaderFlags::Dadfailed);
            if is_duplicate != are_duplicates {
                continue;
            }
            // If there are two addresses, the other one belongs to the link's other end.
            let of = |attribute: &AddressAttribute| match attribute {
                AddressAttribute::Local(address) => Some((0, *address)),
                AddressAttribute::Address(address) => Some((1, *address)),
                _ => None,
            };
            let own = message.attributes.iter().filter_map(of).min();
            all.extend(own.map(|(_, address)| (message.header.index, address)));
        }
        Ok(all)
    }

    /// Returns the peers of an interface's addresses, as set by [`set_peer`](crate::set_peer).
    ///
    /// # Errors
    /// Netlink failed.
    pub fn peers(&self, interface: u32) -> io::Result<Vec<IpAddr>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut all = Vec::new();
        for answer in netlink::dump(&self.requests, request)? {
            let RouteNetlinkMessage::NewAddress(message) = answer else {
                continue;
            };
            let peer = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                });
            all.extend(peer.filter(|_| message.header.index == interface));
        }
        Ok(all)
    }

    /// Returns the router and interface for an address.
    fn route(&self, to: IpAddr) -> io::Result<Option<(IpAddr, u32)>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(to);
        message.header.destination_prefix_length = if to.is_ipv4() { 32 } else { 128 };
        message.header.flags = RouteFlags::empty();
        message.attributes = vec![RouteAttribute::Destination(to.into())];
        let request = RouteNetlinkMessage::GetRoute(message);
        let answer = match netlink::request(&self.requests, request, NLM_F_REQUEST) {
            Ok(Some(RouteNetlinkMessage::NewRoute(route))) => route,
            Ok(_) => return Ok(None),
            // No route, or an unreachable route.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(ENETUNREACH | EHOSTUNREACH | EINVAL | EACCES)
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (mut gateway, mut interface) = (to, None);
        for attribute in answer.attributes {
            match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = address.into(),
                RouteAttribute::Gateway(RouteAddress::Inet6(address)) => gateway = address.into(),
                RouteAttribute::Via(via) => {
                    gateway = match via {
                        netlink_packet_route::route::RouteVia::Inet(address) => address.into(),
                        netlink_packet_route::route::RouteVia::Inet6(address) => address.into(),
                        _ => gateway,
                    }
                }
                RouteAttribute::Oif(index) => interface = Some(index),
                _ => {}
            }
        }
        Ok(interface.map(|interface| (gateway, interface)))
    }

    fn mac(&self, address: IpAddr, interface: u32) -> io::Result<(Option<MacAddress>, bool)> {
        let message = neighbour(address, interface);
        let request = RouteNetlinkMessage::GetNeighbour(message);
        let entry = match netlink::request(&self.requests, request, NLM_F_REQUEST) {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(entry))) => entry,
            Ok(_) => return Ok((None, false)),
            Err(error) if error.raw_os_error() == Some(ENOENT) => return Ok((None, false)),
            Err(error) => return Err(error),
        };
        let state = u16::from(entry.header.state);
        let is_any = |states: &[NeighbourState]| {
            let bits = states.iter().map(|state| u16::from(*state));
            bits.fold(0, |all, bit| all | bit) & state != 0
        };
        let is_fixed = is_any(&[NeighbourState::Permanent, NeighbourState::Noarp]);
        let is_known = state != 0 && !is_any(&[NeighbourState::Incomplete, NeighbourState::Failed]);
        let mac = entry
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
                _ => None,
            });
        Ok((mac.filter(|_| is_known).map(MacAddress), is_fixed))
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn neighbour(address: IpAddr, interface: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = interface;
    let destination = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes = vec![NeighbourAttribute::Destination(destination)];
    message
}

const ENOENT: i32 = Errno::NOENT.raw_os_error();
const EACCES: i32 = Errno::ACCESS.raw_os_error();
const EINVAL: i32 = Errno::INVAL.raw_os_error();
const ENOBUFS: i32 = Errno::NOBUFS.raw_os_error();
const ENETUNREACH: i32 = Errno::NETUNREACH.raw_os_error();
const EHOSTUNREACH: i32 = Errno::HOSTUNREACH.raw_os_error();
