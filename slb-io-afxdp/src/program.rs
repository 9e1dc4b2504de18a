//! The XDP program of an interface: which of its packets come to user space.
//!
//! Its source is `bpf/steer.c`, and `bpf/build` makes the object that is loaded from here. It is
//! attached by a link that this process holds: where the process ends, however it does, the program
//! goes, and the kernel has all packets again. A link that is [pinned](Program::attach_pinned) stays, and
//! the program with it: what it takes is then dropped until the next process is there.

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

/// Attach only where there is no program yet (`linux/if_link.h`).
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;
/// Attach in the driver.
const XDP_FLAGS_DRV_MODE: u32 = 4;

#[cfg(target_endian = "big")]
compile_error!("bpf/steer.o is for little-endian machines");

/// The compiled program: see the task `bpf/build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/steer.o");

/// The use of an interface, which decides the packets that are taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The services' side of a mux or host agent: IP packets to the addresses that are named.
    Services = 0,
    /// A vm: all its IP packets, but for those to addresses that stay the kernel's, to many, or to
    /// the link; and its questions about addresses of its network.
    Vm = 1,
    /// A proxy's port: everything, but for packets to addresses that stay the kernel's, and ARP and
    /// neighbour solicitations for these.
    Everything = 2,
}

/// The TCP ports that nodes call VIPs from, as `bpf/steer.c` has them.
pub const CALLER_PORTS: RangeInclusive<u16> = 0xf000..=0xf3ff;

/// The packets to an address that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Take {
    /// All packets: a VIP.
    All = 1,
    /// VXLAN: this node's address on the fabric.
    Vxlan = 2,
    /// No packets: an address of the kernel's, at an interface that takes all else.
    None = 4,
    /// ARP requests and neighbour solicitations for it, beside all packets: an address in the network of a
    /// vm. Where it is the kernel's too, the kernel has them.
    Neighbour = 8,
    /// TCP to one of [`CALLER_PORTS`], of the packets that [`None`](Self::None) leaves to the kernel: what a vm answers
    /// where a node calls a VIP.
    Answers = 16,
}

/// The treatment of the balancer's packets while none serves them: a queue has no socket, or the
/// process of its socket has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unserved {
    /// The kernel gets them.
    #[default]
    Pass,
    /// Packets are dropped: senders send them again.
    Drop,
}

/// Why the program cannot be had.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProgramFault {
    /// The kernel does not load it.
    Load(EbpfError),
    /// The kernel does not attach it.
    Attach {
        /// Where.
        interface: String,
        /// Why.
        error: ProgramError,
    },
    /// A map of it does not take what it should.
    Map {
        /// The entry that was to be stored.
        what: String,
        /// Why it does not.
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

/// An error and those that it comes from.
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
    /// Why the driver does not run it.
    refusal: Option<String>,
    /// The link, where its file holds it too.
    pinned: Option<PinnedLink>,
}

impl Program {
    /// Loads the program for an interface; it is not attached yet.
    ///
    /// # Errors
    /// The kernel refuses: it takes CAP_BPF and CAP_NET_ADMIN.
    pub fn load(interface: Interface, kind: Kind) -> Result<Self, ProgramFault> {
        Self::load_with(interface, kind, Unserved::Pass)
    }

    /// Loads the program for an interface, with the treatment of packets that are not served.
    ///
    /// # Errors
    /// As of [`load`](Self::load).
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
    /// The kernel refuses: there are more queues than the program knows, 256.
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

    /// Sets the addresses with the packets to take of each. New addresses are added before old ones
    /// are removed, so packets to those in both are taken all the time.
    ///
    /// # Errors
    /// The kernel refuses; what was there before is, some of what is new may be.
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

    /// Attaches the program: in the driver where that can, else where the kernel makes packets of
    /// what drivers give it.
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
    /// The kernel refuses to attach it, or to pin the link, as where the directory is on no BPF file system;
    /// then it may be attached by a link of this process all the same.
    pub fn attach_pinned(&mut self, directory: &Path, name: &str) -> Result<bool, ProgramFault> {
        let interface = self.interface.name.clone();
        let fault = |error: ProgramError| ProgramFault::Attach { interface, error };
        // No file there may have a dot in its name.
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
            // One of an interface that is gone takes no program any more.
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

    /// Why the interface's driver does not run the program, in the kernel's words; `None` if it does.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Returns the kernel's message about an attachment in the driver that it refused.
    ///
    /// Links carry no text, and netlink does: it is asked for the same. `UPDATE_IF_NOEXIST` keeps a program
    /// that somebody else has attached, and where the driver takes this one now, it is detached again.
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

    /// Interface of the program.
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

/// An address as the program has it.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
