//! Probes of a host agent's own vms, through their ports.
//!
//! ```text
//!  prober: a TCP stack for each port          worker
//!  smoltcp, under hyper and rustls   ──────►  sends it to the vm
//!                                    packets
//!                                    ◄──────  what the vm sends to the probes' source
//! ```
//! Probes bypass the kernel's routes, so vms of two networks may have the same address, and a port
//! may be any device of the worker. All vms see the same source address.
//!
//! Packets go through queues of a fixed length, in buffers that are reused: the worker neither
//! allocates nor waits, and packets of a vm that sends too many are lost.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant as Clock};

use slb_core::PortId;
use slb_core::wire::ethernet::MacAddress;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// The longest packet in bytes, which fits every link (RFC 8200 §5).
const LONGEST: usize = 1280;
/// The number of packets that fit the queue of each direction.
const ON_THE_WAY: usize = 256;
/// The interval at which the stacks poll for packets during a probe.
const TURN: Duration = Duration::from_millis(1);
/// Bytes of each connection's buffers.
const BUFFER: usize = 8 << 10;
/// The first source port of probes (RFC 6335 §6).
const FIRST_PORT: u16 = 49_152;

/// The port through which a host agent reaches one of its vms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmPort {
    /// The port of the vm.
    pub port: PortId,
    /// MAC address of the vm.
    pub mac: MacAddress,
    /// The source address of probes.
    pub source: IpAddr,
}

/// An IP packet between the prober and a vm.
struct Parcel {
    port: PortId,
    mac: MacAddress,
    len: usize,
    bytes: Box<[u8; LONGEST]>,
}

impl Parcel {
    fn empty() -> Self {
        Self {
            port: PortId(0),
            mac: MacAddress([0; 6]),
            len: 0,
            bytes: Box::new([0; LONGEST]),
        }
    }
}

/// The sending end of a queue.
#[derive(Debug)]
struct Sender {
    full: SyncSender<Parcel>,
    empty: Receiver<Parcel>,
}

/// The receiving end of a queue.
#[derive(Debug)]
struct Taker {
    full: Receiver<Parcel>,
    empty: SyncSender<Parcel>,
}

fn queue() -> (Sender, Taker) {
    let (full, take_full) = sync_channel(ON_THE_WAY);
    let (empty, take_empty) = sync_channel(ON_THE_WAY);
    for _ in 0..ON_THE_WAY {
        let _ = empty.try_send(Parcel::empty()); // the queue has room for all of them
    }
    let sender = Sender {
        full,
        empty: take_empty,
    };
    let full = take_full;
    (sender, Taker { full, empty })
}

impl Sender {
    /// Sends a packet; returns false if it is too long or there is no room.
    fn put(&self, port: PortId, mac: MacAddress, packet: &[u8]) -> bool {
        if packet.len() > LONGEST {
            return false;
        }
        let Ok(mut parcel) = self.empty.try_recv() else {
            return false;
        };
        (parcel.port, parcel.mac, parcel.len) = (port, mac, packet.len());
        parcel.bytes[..packet.len()].copy_from_slice(packet);
        self.full.try_send(parcel).is_ok()
    }
}

impl Taker {
    /// Passes the next packet to `f`, if there is one.
    fn take<T>(&self, f: impl FnOnce(PortId, MacAddress, &[u8]) -> T) -> Option<T> {
        let parcel = self.full.try_recv().ok()?;
        let result = f(parcel.port, parcel.mac, &parcel.bytes[..parcel.len]);
        let _ = self.empty.try_send(parcel);
        Some(result)
    }
}

/// The worker's end of the queues between the prober and the vms.
#[derive(Debug)]
pub struct WorkerEnd {
    to_prober: Sender,
    from_prober: Taker,
}

/// The prober's end.
#[derive(Debug)]
pub struct ProberEnd {
    to_worker: Sender,
    from_worker: Taker,
}

/// Makes the queues between a prober and the worker with the vms' ports, and returns both ends.
pub fn way() -> (WorkerEnd, ProberEnd) {
    let (to_prober, from_worker) = queue();
    let (to_worker, from_prober) = queue();
    let worker = WorkerEnd {
        to_prober,
        from_prober,
    };
    let prober = ProberEnd {
        to_worker,
        from_worker,
    };
    (worker, prober)
}

impl WorkerEnd {
    /// Queues an IP packet from the vm at a port to the prober. The packet is lost if there is no
    /// room.
    pub fn give(&self, port: PortId, packet: &[u8]) {
        let _ = self.to_prober.put(port, MacAddress([0; 6]), packet);
    }

    /// Hands the next IP packet for a vm to `send`, with the vm's port and MAC address; returns
    /// true if there was one.
    pub fn take(&self, send: impl FnOnce(PortId, MacAddress, &[u8])) -> bool {
        self.from_prober.take(send).is_some()
    }
}

/// TCP connections to vms. Cheap to clone.
#[derive(Clone)]
pub(super) struct Vms(Arc<Inner>);

struct Inner {
    stacks: Mutex<Stacks>,
    /// Signals a request for a connection.
    asked: Notify,
}

struct Stacks {
    way: ProberEnd,
    begin: Clock,
    random: RandomState,
    /// The stacks by the vm's port, since targets at two ports may have the same address.
    by_port: HashMap<u16, Stack>,
}

impl Vms {
    pub(super) fn new(way: ProberEnd) -> Self {
        Self(Arc::new(Inner {
            stacks: Mutex::new(Stacks {
                way,
                begin: Clock::now(),
                random: RandomState::new(),
                by_port: HashMap::new(),
            }),
            asked: Notify::new(),
        }))
    }

    fn stacks(&self) -> MutexGuard<'_, Stacks> {
        let stacks = self.0.stacks.lock();
        stacks.unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves packets while it is polled.
    pub(super) async fn run(self) {
        loop {
            if self.stacks().turn() {
                tokio::time::sleep(TURN).await;
            } else {
                self.0.asked.notified().await;
            }
        }
    }

    /// Connects to a vm.
    ///
    /// # Errors
    /// The vm refuses the connection. Silence is no error; the caller sets the timeout.
    pub(super) async fn connect(&self, vm: VmPort, to: SocketAddr) -> io::Result<VmStream> {
        let handle = self.stacks().open(vm, to)?;
        self.0.asked.notify_one();
        let stream = VmStream {
            vms: self.clone(),
            port: vm.port,
            handle,
        };
        poll_fn(|context| {
            stream.with(|socket| match socket.state() {
                tcp::State::SynSent | tcp::State::SynReceived => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
                tcp::State::Closed => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
                _ => Poll::Ready(Ok(())),
            })
        })
        .await?;
        Ok(stream)
    }
}

impl Stacks {
    fn now(&self) -> Instant {
        let micros = self.begin.elapsed().as_micros();
        Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Opens a connection.
    fn open(&mut self, vm: VmPort, to: SocketAddr) -> io::Result<SocketHandle> {
        let now = self.now();
        let seed = self.random.hash_one((vm.port.0, self.begin.elapsed()));
        let stack = self.by_port.entry(vm.port.0);
        let stack = stack.or_insert_with(|| Stack::new(seed, now));
        stack.mac = vm.mac;
        stack.open(vm.source, to)
    }

    /// Processes packets and timers, and returns true if a connection is left.
    fn turn(&mut self) -> bool {
        let now = self.now();
        let Self { way, by_port, .. } = self;
        while way
            .from_worker
            .take(|port, _, packet| {
                // Without a stack for the port, the packet is dropped.
                if let Some(stack) = by_port.get_mut(&port.0) {
                    stack.device.received.push_back(packet.to_vec());
                }
            })
            .is_some()
        {}
        by_port.retain(|&port, stack| {
            stack.turn(now);
            for packet in stack.device.sent.drain(..) {
                // Without room the packet is lost, and retransmitted.
                let _ = way.to_worker.put(PortId(port), stack.mac, &packet);
            }
            stack.sockets.iter().next().is_some()
        });
        !by_port.is_empty()
    }
}

/// The connections to one vm.
struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    device: Packets,
    mac: MacAddress,
    next_port: u16,
    /// Connections without an owner, which are removed once their RST has been sent.
    ending: Vec<SocketHandle>,
}

impl Stack {
    fn new(seed: u64, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut device = Packets::default();
        Self {
            interface: Interface::new(config, &mut device, now),
            sockets: SocketSet::new(Vec::new()),
            device,
            mac: MacAddress([0; 6]),
            next_port: FIRST_PORT | seed as u16,
            ending: Vec::new(),
        }
    }

    fn open(&mut self, source: IpAddr, to: SocketAddr) -> io::Result<SocketHandle> {
        let own = IpCidr::new(source.into(), if source.is_ipv4() { 32 } else { 128 });
        self.interface.update_ip_addrs(|addresses| {
            if !addresses.contains(&own) {
                addresses.retain(|other| other.address().version() != own.address().version());
                let _ = addresses.push(own); // there is room for one address of each family
            }
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let from = (source, self.next_port);
        self.next_port = match self.next_port {
            u16::MAX => FIRST_PORT,
            port => port + 1,
        };
        let begun = socket.connect(self.interface.context(), to, from);
        begun.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        Ok(self.sockets.add(socket))
    }

    fn turn(&mut self, now: Instant) {
        let Self {
            interface,
            sockets,
            device,
            ending,
            ..
        } = self;
        interface.poll(now, device, sockets);
        device.received.clear();
        ending.retain(|&handle| {
            // The RST was sent, or there was no peer to send it to.
            sockets.remove(handle);
            false
        });
    }
}

/// IP packets of one vm, as smoltcp's device.
#[derive(Default)]
struct Packets {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

impl phy::Device for Packets {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sent<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = LONGEST;
        // A vm may leave checksums to the network card, and no card is on the way.
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl phy::TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

/// A connection to a vm. When dropped, it ends with a RST, so that no end keeps a TIME-WAIT state.
pub(super) struct VmStream {
    vms: Vms,
    port: PortId,
    handle: SocketHandle,
}

impl VmStream {
    fn with<T>(&self, f: impl FnOnce(&mut tcp::Socket<'static>) -> T) -> T
    where
        T: From<Gone>,
    {
        let mut stacks = self.vms.stacks();
        match stacks.by_port.get_mut(&self.port.0) {
            Some(stack) => f(stack.sockets.get_mut(self.handle)),
            None => Gone.into(),
        }
    }
}

/// An error: the connection's stack is gone, which cannot happen, since a stack with a connection
/// stays.
struct Gone;

impl<T> From<Gone> for Poll<io::Result<T>> {
    fn from(_: Gone) -> Self {
        Self::Ready(Err(io::ErrorKind::NotConnected.into()))
    }
}

impl Drop for VmStream {
    fn drop(&mut self) {
        let mut stacks = self.vms.stacks();
        if let Some(stack) = stacks.by_port.get_mut(&self.port.0) {
            stack
                .sockets
                .get_mut::<tcp::Socket<'_>>(self.handle)
                .abort();
            stack.ending.push(self.handle);
        }
    }
}

impl AsyncRead for VmStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|socket| {
            if !socket.can_recv() && socket.may_recv() {
                socket.register_recv_waker(context.waker());
                return Poll::Pending;
            }
            match socket.recv_slice(buffer.initialize_unfilled()) {
                Ok(count) => buffer.advance(count),
                Err(tcp::RecvError::Finished) => {}
                Err(tcp::RecvError::InvalidState) => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for VmStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|socket| {
            if !socket.can_send() && socket.may_send() {
                socket.register_send_waker(context.waker());
                return Poll::Pending;
            }
            let sent = socket.send_slice(bytes);
            Poll::Ready(sent.map_err(|_| io::ErrorKind::BrokenPipe.into()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| {
            socket.close();
            Poll::Ready(Ok(()))
        })
    }
}
