//! One AF_XDP socket: a queue of an interface, with its four rings.
//!
//! ```text
//!   fill        chunks that the kernel may receive into     ──►  kernel
//!   rx          packets that it received                    ◄──
//!   tx          packets to be sent                          ──►
//!   completion  chunks of packets that were sent            ◄──
//! ```

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING,
    XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc,
    XdpOptionsFlags, XdpStatistics, XdpUmemReg,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use crate::interface::Interface;
use crate::ring::{Consumer, Producer};

/// The reason why a socket cannot be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum SocketError {
    /// The kernel creates no AF_XDP socket: it does not support them, or CAP_NET_RAW is missing.
    Create(io::Error),
    /// The kernel does not lock the memory: without CAP_IPC_LOCK, the limit is RLIMIT_MEMLOCK.
    Memory {
        /// Length of the memory in bytes.
        bytes: u64,
        /// The error.
        error: io::Error,
    },
    /// A ring cannot be mapped.
    Ring(io::Error),
    /// The socket cannot be bound to the queue, which is in use or does not exist.
    Bind {
        /// The interface.
        interface: String,
        /// Queue of the socket.
        queue: u32,
        /// The error.
        error: io::Error,
    },
    /// Sockets and memory that were handed over do not belong together.
    HandedOver {
        /// The count or address that does not fit.
        what: &'static str,
        /// The expected maximum.
        expected: u64,
        /// The actual value.
        got: u64,
    },
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(error) => write!(f, "there is no AF_XDP socket to be had: {error}"),
            Self::Memory { bytes, error } => write!(
                f,
                "{bytes} bytes of memory cannot be given to a socket: {error} (without CAP_IPC_LOCK \
                 the limit is that of locked memory, `ulimit -l`)"
            ),
            Self::Ring(error) => write!(f, "a socket's ring cannot be had: {error}"),
            Self::Bind {
                interface,
                queue,
                error,
            } => write!(
                f,
                "queue {queue} of {interface} cannot be bound to: {error}"
            ),
            Self::HandedOver {
                what,
                expected,
                got,
            } => write!(
                f,
                "sockets that were handed over do not fit their memory: expected {expected} {what}, got {got}"
            ),
        }
    }
}

impl std::error::Error for SocketError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Create(error)
            | Self::Memory { error, .. }
            | Self::Ring(error)
            | Self::Bind { error, .. } => Some(error),
            Self::HandedOver { .. } => None,
        }
    }
}

/// The memory that a socket uses.
pub(crate) enum Memory<'a> {
    /// The socket's own memory.
    Own(XdpUmemReg),
    /// The memory of another socket.
    Of(&'a Socket),
}

/// The time for which a queue may be busy after its owner has ended.
const LET_GO: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    pub(crate) fill: Producer<u64>,
    pub(crate) rx: Consumer<XdpDesc>,
    pub(crate) tx: Producer<XdpDesc>,
    pub(crate) completion: Consumer<u64>,
    is_zero_copy: bool,
}

impl Socket {
    /// Opens a queue, with rings of `len` entries each.
    pub(crate) fn open(
        interface: &Interface,
        queue: u32,
        memory: &Memory<'_>,
        len: u32,
    ) -> Result<Self, SocketError> {
        let create = |error: Errno| SocketError::Create(error.into());
        let ring = |error: io::Error| SocketError::Ring(error);
        // A process that this one starts must not keep the queue bound.
        let flags = SocketFlags::CLOEXEC;
        let fd = socket_with(AddressFamily::XDP, SocketType::RAW, flags, None).map_err(create)?;
        if let Memory::Own(registration) = memory {
            sockopt::set_xdp_umem_reg(&fd, *registration).map_err(|error| SocketError::Memory {
                bytes: registration.len,
                error: error.into(),
            })?;
        }
        let sized = sockopt::set_xdp_umem_fill_ring_size(&fd, len)
            .and_then(|()| sockopt::set_xdp_umem_completion_ring_size(&fd, len))
            .and_then(|()| sockopt::set_xdp_rx_ring_size(&fd, len))
            .and_then(|()| sockopt::set_xdp_tx_ring_size(&fd, len));
        sized.map_err(|error| ring(error.into()))?;
        let mut own = Self::map(fd, len)?;
        let fd = &own.fd;

        // The kernel copies packets if the driver does not support zero copy.
        let wakeup = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        let try_bind = || match memory {
            Memory::Own(_) => bind(fd, &SocketAddrXdp::new(wakeup, interface.index, queue)),
            Memory::Of(other) => {
                // A socket with shared memory must not set other flags.
                let flags = SocketAddrXdpFlags::XDP_SHARED_UMEM;
                let address = SocketAddrXdpWithSharedUmem {
                    addr: SocketAddrXdp::new(flags, interface.index, queue),
                    shared_umem_fd: other.fd.as_fd(),
                };
                bind(fd, &address)
            }
        };
        // The kernel releases a queue some time after its last owner has ended.
        let end = Instant::now() + LET_GO;
        let mut bound = try_bind();
        while bound == Err(Errno::BUSY) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
            bound = try_bind();
        }
        bound.map_err(|error| SocketError::Bind {
            interface: interface.name.clone(),
            queue,
            error: error.into(),
        })?;
        own.look_at_options();
        Ok(own)
    }

    /// Resumes an open, bound socket, from the state of its rings.
    pub(crate) fn resume(fd: OwnedFd, len: u32) -> Result<Self, SocketError> {
        let mut own = Self::map(fd, len)?;
        own.look_at_options();
        Ok(own)
    }

    /// Maps the rings of a socket, of `len` entries each.
    fn map(fd: OwnedFd, len: u32) -> Result<Self, SocketError> {
        let ring = |error: io::Error| SocketError::Ring(error);
        let parts = sockopt::xdp_mmap_offsets(&fd).map_err(|error| ring(error.into()))?;
        let fill = Producer::map(&fd, XDP_UMEM_PGOFF_FILL_RING, &parts.fr, len).map_err(ring)?;
        let rx = Consumer::map(&fd, XDP_PGOFF_RX_RING, &parts.rx, len).map_err(ring)?;
        let tx = Producer::map(&fd, XDP_PGOFF_TX_RING, &parts.tx, len).map_err(ring)?;
        let completion = Consumer::map(&fd, XDP_UMEM_PGOFF_COMPLETION_RING, &parts.cr, len);
        let completion = completion.map_err(ring)?;
        Ok(Self {
            fd,
            fill,
            rx,
            tx,
            completion,
            is_zero_copy: false,
        })
    }

    fn look_at_options(&mut self) {
        let options = sockopt::xdp_options(&self.fd).unwrap_or(XdpOptionsFlags::empty());
        self.is_zero_copy = options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
    }

    /// Returns the socket without its mapped rings; their contents stay.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub(crate) fn is_zero_copy(&self) -> bool {
        self.is_zero_copy
    }

    /// Returns the kernel's counters.
    pub(crate) fn statistics(&self) -> Option<XdpStatistics> {
        sockopt::xdp_statistics(&self.fd).ok()
    }

    /// Wakes the kernel to send the submitted packets, if it waits for that.
    pub(crate) fn send(&self) -> io::Result<()> {
        // In copy mode a call sends some 32 packets.
        const CALLS: usize = 4;
        for _ in 0..CALLS {
            if !self.tx.is_pending() || !self.tx.needs_wakeup() {
                return Ok(());
            }
            match send(&self.fd, &[], SendFlags::DONTWAIT) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                // The device's queue is full, or the device is down: retry later. Or the device is
                // gone, which the control thread learns from the kernel; the sockets of other
                // interfaces continue.
                Err(Errno::BUSY | Errno::NOBUFS | Errno::NETDOWN | Errno::NXIO) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Wakes the kernel to look at the fill ring, if it waits for that.
    pub(crate) fn wake_receiver(&self) {
        if self.fill.needs_wakeup() {
            // `send` reports faults of the interface.
            let _ = recv(&self.fd, &mut [0; 0], RecvFlags::DONTWAIT);
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
