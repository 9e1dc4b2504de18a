//! Properties of an interface, as the kernel reports them.

use std::fmt;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::SocketType;
use slb_core::wire::ethernet::MacAddress;

use crate::netlink;

/// A network interface of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name of the interface.
    pub name: String,
    /// Index of the interface in the kernel.
    pub index: u32,
    /// MAC address of the interface.
    pub mac: MacAddress,
    /// The longest IP packet that it carries.
    pub mtu: u32,
    /// Receive queues of the interface, which are numbered from zero.
    pub queues: u32,
    /// True if the interface is up and has a carrier.
    pub is_up: bool,
    /// The id of the attached XDP program.
    pub program: Option<u32>,
}

/// The state of an interface of any kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The index of the interface; an interface that is recreated under its old name has a new one.
    pub index: u32,
    /// True if the interface is up and has a carrier.
    pub is_up: bool,
    /// The longest packet that it carries, in bytes from the network header on.
    pub mtu: u32,
}

impl Link {
    /// Returns the state of an interface by its name.
    ///
    /// # Errors
    /// There is no such interface, or netlink fails.
    pub fn find(name: &str) -> Result<Self, InterfaceError> {
        Ok(Self::of_message(&find_link(&netlink::open()?, name)?))
    }

    /// The name and state of the interface of an index.
    ///
    /// # Errors
    /// There is none, or the kernel cannot be asked.
    pub fn of_index(index: u32) -> Result<(String, Self), InterfaceError> {
        let unknown = || InterfaceError::Unknown(index.to_string());
        let link = link_of(&netlink::open()?, index)?.ok_or_else(unknown)?;
        let name = name_in(&link).ok_or_else(unknown)?;
        Ok((name.to_owned(), Self::of_message(&link)))
    }

    fn of_message(link: &LinkMessage) -> Self {
        let mtu = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Mtu(bytes) => Some(*bytes),
                _ => None,
            });
        Self {
            index: link.header.index,
            is_up: is_up(link),
            mtu: mtu.unwrap_or(0),
        }
    }
}

fn is_up(link: &LinkMessage) -> bool {
    link.header
        .flags
        .contains(LinkFlags::Up | LinkFlags::Running)
}

/// The reason why an interface cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum InterfaceError {
    /// There is no interface with this name.
    Unknown(String),
    /// The interface is not an Ethernet interface: it has no MAC address.
    NoEthernet(String),
    /// Netlink failed.
    Netlink(io::Error),
}

impl fmt::Display for InterfaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "there is no interface {name:?}"),
            Self::NoEthernet(name) => write!(f, "interface {name:?} is not an Ethernet interface"),
            Self::Netlink(error) => write!(f, "the kernel cannot be asked: {error}"),
        }
    }
}

impl std::error::Error for InterfaceError {}

impl From<io::Error> for InterfaceError {
    fn from(error: io::Error) -> Self {
        Self::Netlink(error)
    }
}

impl Interface {
    /// Returns an interface by its name.
    ///
    /// # Errors
    /// There is no such interface, or it has no MAC address.
    pub fn find(name: &str) -> Result<Self, InterfaceError> {
        let link = find_link(&netlink::open()?, name)?;
        let is_up = is_up(&link);
        let (mut mac, mut mtu, mut queues, mut program) = (None, None, 1, None);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => mac = bytes.try_into().ok().map(MacAddress),
                LinkAttribute::Mtu(bytes) => mtu = Some(bytes),
                LinkAttribute::NumRxQueues(number) => queues = number,
                LinkAttribute::Xdp(of) => {
                    program = of.iter().find_map(|attribute| match attribute {
                        LinkXdp::ProgId(id) => Some(*id),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        let (Some(mac), Some(mtu)) = (mac, mtu) else {
            return Err(InterfaceError::NoEthernet(name.to_owned()));
        };
        Ok(Self {
            name: name.to_owned(),
            index: link.header.index,
            mac,
            mtu,
            // The number of queues in use, of those that the interface has room for.
            queues: channels(name).unwrap_or(queues).max(1),
            is_up,
            program,
        })
    }
}

fn find_link(socket: &Socket, name: &str) -> Result<LinkMessage, InterfaceError> {
    let unknown = || InterfaceError::Unknown(name.to_owned());
    if name.is_empty() || name.len() > LONGEST_NAME {
        return Err(unknown());
    }
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    let request = RouteNetlinkMessage::GetLink(message);
    match netlink::request(socket, request, NLM_F_REQUEST) {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(link),
        Err(error) if error.raw_os_error() != Some(Errno::NODEV.raw_os_error()) => {
            Err(error.into())
        }
        _ => Err(unknown()),
    }
}

/// Adds or removes the address `peer` as the other end of a link with `own` at this end, on the
/// interface of a name. It is no error if nothing has to change. Needs CAP_NET_ADMIN.
///
/// A routing daemon that announces the destinations of its interfaces announces the peer. The
/// kernel does not treat the peer as its own address, and answers no packet for it.
///
/// # Errors
/// There is no such interface, both are not of one family, or the kernel refuses.
pub fn set_peer(
    name: &str,
    own: IpAddr,
    peer: IpAddr,
    is_there: bool,
) -> Result<(), InterfaceError> {
    let socket = netlink::open()?;
    let mut message = AddressMessage::default();
    message.header.index = find_link(&socket, name)?.header.index;
    message.header.family = match peer {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = if peer.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![
        AddressAttribute::Local(own),
        AddressAttribute::Address(peer),
        // The own address is this machine's on another interface already.
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    let (request, flags) = match is_there {
        true => (
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        ),
        false => (RouteNetlinkMessage::DelAddress(message), 0),
    };
    match netlink::request(&socket, request, NLM_F_REQUEST | NLM_F_ACK | flags) {
        Err(error) if !is_there && error.kind() == io::ErrorKind::AddrNotAvailable => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

/// Brings an interface up, like `ip link set NAME up`. Needs CAP_NET_ADMIN.
///
/// # Errors
/// There is no such interface, or the kernel refuses.
pub fn bring_up(name: &str) -> io::Result<()> {
    set_up(name, true)
}

/// Takes an interface down, like `ip link set NAME down`. Needs CAP_NET_ADMIN.
///
/// # Errors
/// There is no such interface, or the kernel refuses.
pub fn take_down(name: &str) -> io::Result<()> {
    set_up(name, false)
}

fn set_up(name: &str, is_up: bool) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.flags = if is_up {
        LinkFlags::Up
    } else {
        LinkFlags::empty()
    };
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    let socket = netlink::open()?;
    let request = RouteNetlinkMessage::SetLink(message);
    netlink::request(&socket, request, NLM_F_REQUEST | NLM_F_ACK).map(drop)
}

/// The maximum length of an interface's name: the kernel's IFNAMSIZ without the terminating zero.
const LONGEST_NAME: usize = 15;

/// The kernel's `struct ethtool_channels`.
#[derive(Default)]
#[repr(C)]
struct Channels {
    command: u32,
    max: [u32; 4],
    receive: u32,
    transmit: u32,
    other: u32,
    combined: u32,
}

/// The kernel's `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The kernel's `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    /// Versions, the bus and counts.
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// The kernel's `struct ifreq`, as far as ETHTOOL needs it.
#[repr(C)]
struct Request<T> {
    name: [u8; LONGEST_NAME + 1],
    data: *mut T,
    rest: [u8; 24 - size_of::<*mut ()>()],
}

const _: () = assert!(size_of::<Request<Channels>>() == 40);

/// SIOCETHTOOL with a command that reads.
struct Ethtool<T: Command>(Request<T>);

// SAFETY: the opcode takes a pointer to a `struct ifreq` whose data points to the structure of the
// command in its first word: `T` is that structure, and lives as long as the request.
unsafe impl<T: Command> Ioctl for Ethtool<T> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        0x8946
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// A structure that begins with its command, in the layout that the kernel expects for the command.
trait Command {}

impl Command for Channels {}
impl Command for Value {}
impl Command for DriverInfo {}

/// Reads a structure of an interface, if its driver has it.
fn ethtool<T: Command>(name: &str, mut data: T) -> Option<T> {
    let mut request = Request {
        name: [0; LONGEST_NAME + 1],
        data: &raw mut data,
        rest: [0; 24 - size_of::<*mut ()>()],
    };
    if name.len() > LONGEST_NAME {
        return None;
    }
    request
        .name
        .get_mut(..name.len())?
        .copy_from_slice(name.as_bytes());
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    // SAFETY: the request has the layout of the opcode, and `data` outlives the call.
    unsafe { ioctl(&socket, Ethtool(request)) }.ok()?;
    Some(data)
}

/// Returns the number of receive queues in use, if the driver tells it.
fn channels(name: &str) -> Option<u32> {
    const GET_CHANNELS: u32 = 0x3c;
    let command = Channels {
        command: GET_CHANNELS,
        ..Channels::default()
    };
    let channels = ethtool(name, command)?;
    Some(channels.receive + channels.combined)
}

/// Returns true if a feature that is read by a command is on.
fn is_on(name: &str, command: u32) -> Option<bool> {
    ethtool(name, Value { command, data: 0 }).map(|value| value.data != 0)
}

/// The interface of an index, if there is one.
fn link_of(socket: &Socket, index: u32) -> Result<Option<LinkMessage>, InterfaceError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let request = RouteNetlinkMessage::GetLink(message);
    match netlink::request(socket, request, NLM_F_REQUEST) {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(link)),
        Err(error) if error.raw_os_error() != Some(Errno::NODEV.raw_os_error()) => {
            Err(error.into())
        }
        _ => Ok(None),
    }
}

fn name_in(link: &LinkMessage) -> Option<&str> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
}

/// The name of an interface's driver.
fn driver(name: &str) -> Option<String> {
    const GET_DRIVER: u32 = 3;
    let command = DriverInfo {
        command: GET_DRIVER,
        driver: [0; 32],
        rest: [0; 160],
    };
    let driver = ethtool(name, command)?.driver;
    let name = driver.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// The reason why an interface may deliver packets without checksums: the sender left them to a
/// network card, but there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingChecksums {
    /// The other end of a veth pair, by name, leaves checksums out.
    Peer(String),
    /// The other end of a veth pair is in another namespace, where its features cannot be read.
    Elsewhere,
    /// A virtio card delivers packets of its host without checksums, unless XDP runs in its driver.
    Virtio,
}

impl MissingChecksums {
    /// Returns the reason why an interface may deliver packets without checksums, by its driver and
    /// features; `None` if its checksums are complete.
    ///
    /// # Errors
    /// There is no such interface, or the kernel cannot be asked.
    pub fn of(name: &str) -> Result<Option<Self>, InterfaceError> {
        const GET_RX_CHECKSUM: u32 = 0x14;
        const GET_TX_CHECKSUM: u32 = 0x16;
        let socket = netlink::open()?;
        let link = find_link(&socket, name)?;
        Ok(match driver(name).as_deref() {
            Some("veth") => {
                let is_elsewhere = link.attributes.iter().any(
                    |attribute| matches!(attribute, LinkAttribute::LinkNetNsId(number) if *number >= 0),
                );
                let peer = link
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        LinkAttribute::Link(index) => Some(*index),
                        _ => None,
                    });
                match peer.filter(|_| !is_elsewhere) {
                    Some(peer) => name_of(&socket, peer)?
                        .filter(|peer| is_on(peer, GET_TX_CHECKSUM) == Some(true))
                        .map(Self::Peer),
                    None => Some(Self::Elsewhere),
                }
            }
            Some("virtio_net") if is_on(name, GET_RX_CHECKSUM) == Some(true) => Some(Self::Virtio),
            _ => None,
        })
    }
}

/// Returns the name of an interface by its index.
fn name_of(socket: &Socket, index: u32) -> Result<Option<String>, InterfaceError> {
    let link = link_of(socket, index)?;
    Ok(link.as_ref().and_then(name_in).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nobody_are_unknown() {
        for name in ["", "no-such-device", "../lo", "a-name-that-is-far-too-long"] {
            let found = Interface::find(name);
            assert!(matches!(found, Err(InterfaceError::Unknown(_))), "{name:?}");
        }
        let lo = Interface::find("lo").unwrap();
        assert_eq!((lo.index, lo.mac), (1, MacAddress([0; 6])));
    }
}
