//! The XDP program of an interface, which selects the packets for user space.
//!
//! `bpf/build` compiles the program from `bpf/steer.c`. This process holds the link that attaches
//! it: when the process ends, for any reason, the program is detached, and the kernel gets all
//! packets again. A [pinned](Program::attach_pinned) link stays with its program, which then drops
//! the balancer's packets until the next process starts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd};
use std::path::Path;
use std::{fmt, io};

use aya::maps::{HashMap, MapData, MapError, XskMap};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpLinkId};
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};

use crate::interface::Interface;
use crate::netlink;

/// Attach only if there is no program yet (`linux/if_link.h`).
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;
/// Attach in the driver.
const XDP_FLAGS_DRV_MODE: u32 = 4;

#[cfg(target_endian = "big")]
compile_error!("bpf/steer.o is for little-endian machines");

/// The compiled program; see `bpf/build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/steer.o");

/// The use of an interface, which decides the packets that are taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The services' side of a mux or host agent: IP packets to the configured addresses.
    Services = 0,
    /// A vm: all its IP packets, except those to the kernel's addresses, to groups, or to
    /// link-local addresses; and its ARP requests and neighbour solicitations for addresses of its
    /// network.
    Vm = 1,
    /// A proxy's port: everything, except packets to the kernel's addresses, and ARP and neighbour
    /// solicitations for them.
    Everything = 2,
}

/// The TCP source ports of calls of VIPs, as in `bpf/steer.c`.
pub const CALLER_PORTS: RangeInclusive<u16> = 0xf000..=0xf3ff;

/// The packets to an address that the program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Take {
    /// All packets: a VIP.
    All = 1,
    /// VXLAN: this node's address on the fabric.
    Vxlan = 2,
    /// No packets: an address of the kernel at an interface that takes all other packets.
    None = 4,
    /// All packets, and ARP requests and neighbour solicitations for the address, which is in the
    /// network of a vm. If the kernel has the address too, the kernel gets the packets.
    Neighbour = 8,
    /// TCP to one of [`CALLER_PORTS`], among the packets that [`None`](Self::None) leaves to the
    /// kernel: a vm's answers to a node that calls a VIP.
    Answers = 16,
}

/// The treatment of the balancer's packets while none serves them: a queue has no socket, or the
/// process of its socket has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unserved {
    /// The kernel gets them.
    #[default]
    Pass,
    /// Packets are dropped, and their senders retransmit them.
    Drop,
}

/// The reason why the program cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProgramFault {
    /// The kernel refuses to load the program.
    Load(EbpfError),
    /// The kernel refuses to attach the program.
    Attach {
        /// The interface.
        interface: String,
        /// The error.
        error: ProgramError,
    },
    /// A map of the program refuses an entry.
    Map {
        /// The refused entry.
        what: String,
        /// The error.
        error: MapError,
    },
}

impl ProgramFault {
    /// Returns true if CAP_BPF or CAP_NET_ADMIN is missing.
    pub fn is_denied(&self) -> bool {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.kind() == io::ErrorKind::PermissionDenied;
            }
            source = error.source();
        }
        false
    }
}

impl fmt::Display for ProgramFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(error) => write!(f, "the XDP program cannot be loaded: {}", Chain(error)),
            Self::Attach { interface, error } => write!(
                f,
                "the XDP program cannot be attached to {interface}: {}",
                Chain(error)
            ),
            Self::Map { what, error } => {
                write!(f, "the XDP program does not take {what}: {}", Chain(error))
            }
        }
    }
}

impl std::error::Error for ProgramFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Load(error) => Some(error),
            Self::Attach { error, .. } => Some(error),
            Self::Map { error, .. } => Some(error),
        }
    }
}

/// An error and its sources.
struct Chain<'e>(&'e dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        match self.0.source() {
            Some(source) => write!(f, ": {}", Chain(source)),
            None => Ok(()),
        }
    }
}

/// The program of an interface.
#[derive(Debug)]
pub struct Program {
    ebpf: Ebpf,
    interface: Interface,
    taken: BTreeMap<[u8; 16], u32>,
    is_native: bool,
    /// The reason why the driver does not run the program.
    refusal: Option<String>,
    /// The link, if it is pinned.
    pinned: Option<PinnedLink>,
}

impl Program {
    /// Loads the program for an interface, without attaching it.
    ///
    /// # Errors
    /// The kernel refuses: CAP_BPF and CAP_NET_ADMIN are necessary.
    pub fn load(interface: Interface, kind: Kind) -> Result<Self, ProgramFault> {
        Self::load_with(interface, kind, Unserved::Pass)
    }

    /// Loads the program for an interface, with a treatment of unserved packets.
    ///
    /// # Errors
    /// The same errors as of [`load`](Self::load).
    pub fn load_with(
        interface: Interface,
        kind: Kind,
        unserved: Unserved,
    ) -> Result<Self, ProgramFault> {
        const XDP_DROP: u32 = 1;
        const XDP_PASS: u32 = 2;
        let kind = kind as u32;
        let without_socket = match unserved {
            Unserved::Pass => XDP_PASS,
            Unserved::Drop => XDP_DROP,
        };
        let ebpf = EbpfLoader::new()
            .override_global("interface_is", &kind, true)
            .override_global("without_socket", &without_socket, true)
            .load(OBJECT)
            .map_err(ProgramFault::Load)?;
        let mut program = Self {
            ebpf,
            interface,
            taken: BTreeMap::new(),
            is_native: false,
            refusal: None,
            pinned: None,
        };
        let loaded = program.xdp()?.load();
        loaded.map_err(|error| ProgramFault::Load(error.into()))?;
        Ok(program)
    }

    /// Directs the packets of a receive queue to a socket.
    ///
    /// # Errors
    /// The kernel refuses: the program supports at most 256 queues.
    pub fn set_socket(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), ProgramFault> {
        let fault = |error| ProgramFault::Map {
            what: format!("a socket for queue {queue}"),
            error,
        };
        let map = self
            .ebpf
            .map_mut("sockets")
            .ok_or_else(|| missing("sockets"));
        let mut sockets: XskMap<&mut MapData> = map?.try_into().map_err(fault)?;
        sockets.set(queue, socket.as_raw_fd(), 0).map_err(fault)
    }

    /// Sets the addresses, with the packets to take of each. New addresses are added before old
    /// ones are removed, so packets to addresses in both sets are always taken.
    ///
    /// # Errors
    /// The kernel refuses. The old addresses stay, and some new ones may have been added.
    pub fn set_addresses(
        &mut self,
        wanted: impl IntoIterator<Item = (IpAddr, Take)>,
    ) -> Result<(), ProgramFault> {
        let fault = |error| ProgramFault::Map {
            what: "an address".to_owned(),
            error,
        };
        let mut all = BTreeMap::new();
        for (address, take) in wanted {
            *all.entry(mapped(address)).or_insert(0) |= take as u32;
        }
        let map = self.ebpf.map_mut("addresses");
        let map = map.ok_or_else(|| missing("addresses"))?;
        let mut addresses: HashMap<&mut MapData, [u8; 16], u32> = map.try_into().map_err(fault)?;
        for (address, what) in &all {
            if self.taken.get(address) != Some(what) {
                addresses.insert(address, what, 0).map_err(fault)?;
                self.taken.insert(*address, *what);
            }
        }
        let gone: Vec<_> = self
            .taken
            .keys()
            .filter(|known| !all.contains_key(*known))
            .copied()
            .collect();
        for address in gone {
            addresses.remove(&address).map_err(fault)?;
            self.taken.remove(&address);
        }
        Ok(())
    }

    /// Attaches the program: in the driver if it supports XDP, else in the kernel's generic mode.
    ///
    /// # Errors
    /// The kernel refuses: there is an XDP program already, or CAP_NET_ADMIN is missing.
    pub fn attach(&mut self) -> Result<(), ProgramFault> {
        self.attach_anew().map(drop)
    }

    fn attach_anew(&mut self) -> Result<XdpLinkId, ProgramFault> {
        let index = self.interface.index;
        let native = self.xdp()?.attach_to_if_index(index, XdpMode::Driver);
        self.is_native = native.is_ok();
        self.refusal = None;
        let attached = match native {
            Ok(link) => Ok(link),
            Err(error) => {
                self.refusal = Some(self.words_about(&error));
                self.xdp()?.attach_to_if_index(index, XdpMode::Skb)
            }
        };
        attached.map_err(|error| ProgramFault::Attach {
            interface: self.interface.name.clone(),
            error,
        })
    }

    /// Attaches the program by a link that is pinned in a directory of a BPF file system, under
    /// names that begin with `name`: the program then outlives this process. If a link of an
    /// earlier process exists, the program replaces that one's without losing a packet. Returns
    /// true if there was such a link.
    ///
    /// # Errors
    /// The kernel refuses to attach the program, or to pin the link, for example because the
    /// directory is not in a BPF file system; in the latter case, it may be attached by a link of
    /// this process.
    pub fn attach_pinned(&mut self, directory: &Path, name: &str) -> Result<bool, ProgramFault> {
        let interface = self.interface.name.clone();
        let fault = |error: ProgramError| ProgramFault::Attach { interface, error };
        // File names there must not contain dots.
        let name = name.replace('.', "_");
        let path = |is_native: bool| {
            let mode = if is_native { "native" } else { "generic" };
            directory.join(format!("{name}-{mode}"))
        };
        for is_native in [true, false] {
            let Ok(link) = PinnedLink::from_pin(path(is_native)) else {
                continue;
            };
            let link = XdpLink::try_from(FdLink::from(link));
            // The link of a removed interface accepts no program.
            if let Ok(link) = link
                && self.xdp()?.attach_to_link(link).is_ok()
            {
                self.is_native = is_native;
                return Ok(true);
            }
            let _ = std::fs::remove_file(path(is_native));
        }
        let id = self.attach_anew()?;
        let link = self.xdp()?.take_link(id);
        let pinned = link.and_then(|link| {
            let other = |error| ProgramError::IOError(error);
            let link = FdLink::try_from(link).map_err(|error| other(io::Error::other(error)))?;
            let pinned = link.pin(path(self.is_native));
            pinned.map_err(|error| other(io::Error::other(error)))
        });
        // The file holds the link from here on.
        self.pinned = Some(pinned.map_err(fault)?);
        Ok(false)
    }

    /// Returns true if the program runs in the driver.
    pub fn is_native(&self) -> bool {
        self.is_native
    }

    /// Returns the kernel's reason why the interface's driver does not run the program; `None` if
    /// it does.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Returns the kernel's message about an attachment in the driver that it refused.
    ///
    /// Links return no message, but netlink does, so this repeats the attachment over netlink.
    /// `UPDATE_IF_NOEXIST` keeps any other attached program; if the driver now accepts the program,
    /// it is detached again.
    fn words_about(&mut self, error: &ProgramError) -> String {
        const NO_PROGRAM: i32 = -1;
        let index = self.interface.index;
        let attach = |fd, flags| {
            let mut message = LinkMessage::default();
            message.header.index = index;
            let xdp = vec![LinkXdp::Fd(fd), LinkXdp::Flags(flags)];
            message.attributes = vec![LinkAttribute::Xdp(xdp)];
            let message = RouteNetlinkMessage::SetLink(message);
            netlink::refusal(message, NLM_F_REQUEST | NLM_F_ACK)
        };
        let driver = XDP_FLAGS_DRV_MODE | XDP_FLAGS_UPDATE_IF_NOEXIST;
        let fd = self
            .xdp()
            .ok()
            .and_then(|xdp| Some(xdp.fd().ok()?.as_fd().as_raw_fd()));
        match fd.map(|fd| attach(fd, driver)) {
            Some(Ok(Some((error, Some(words))))) => format!("{words} ({error})"),
            Some(Ok(Some((error, None)))) => error.to_string(),
            Some(Ok(None)) => {
                let _ = attach(NO_PROGRAM, XDP_FLAGS_DRV_MODE);
                Chain(error).to_string()
            }
            Some(Err(_)) | None => Chain(error).to_string(),
        }
    }

    /// Returns the interface of the program.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    fn xdp(&mut self) -> Result<&mut Xdp, ProgramFault> {
        let program = self.ebpf.program_mut("steer");
        let program = program.ok_or_else(|| missing("steer"))?;
        program
            .try_into()
            .map_err(|error: ProgramError| ProgramFault::Load(error.into()))
    }
}

fn missing(name: &str) -> ProgramFault {
    ProgramFault::Map {
        what: name.to_owned(),
        error: MapError::InvalidName {
            name: name.to_owned(),
        },
    }
}

/// Returns an address in the program's form.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
