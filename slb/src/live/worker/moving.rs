//! A thread that moves packets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as Clock};

use rustix::thread::CpuSet;
use slb_control::probe::WorkerEnd;
use slb_control::{Config, Role};
use slb_core::counters::CounterMemory;
use slb_core::snapshot::Snapshot;
use slb_core::{BURST, Burst, Instant, Key, PacketIo, PortId};
use slb_io_afxdp::AfXdp;
use slb_io_tun::{Device, Tun};
use tracing::{debug, error, warn};

use super::device::{Queues, TunQueue};
use super::exchange::{Event, Seat};
use super::handed::{Devices, OpenCards};
use super::look::{Looker, Task};
use super::mailbox::{Fill, Mailbox, Recipient};
use super::offload::Offload;
use super::state::{self, Importing, Saved};
use super::{WAIT, memory_for, memory_needs, probes};
use crate::Failure;
use crate::balancer::{Balancer, Limits};
use crate::report::Tally;

/// Frames kept ready for packets of the balancer's own.
const SPARE: usize = 16;
/// Frames of a worker's memory that are no device's: bursts on their way, and packets of the balancer's own.
const FRAMES: usize = 4 * BURST + SPARE;
/// Polls without a packet before the thread waits: packets seldom come alone.
const IDLE_POLLS: u32 = 64;
/// How long it takes what still comes after it was told to stop.
const LAST: Duration = Duration::from_secs(1);
/// How often timers are looked at while packets come.
const SWEEP: Duration = Duration::from_micros(200);

/// The input of a worker's start.
pub(super) struct Start {
    pub(super) config: Config,
    pub(super) snapshot: Arc<Snapshot<'static>>,
    pub(super) cpu: Option<usize>,
    /// The worker's names: its queues.
    pub(super) names: Vec<String>,
    pub(super) queues: Queues,
    pub(super) ring: u32,
    /// True if it waits for packets, false if it polls all the time.
    pub(super) waits: bool,
    /// The channel between a host agent's vms and the prober.
    pub(super) probes: Option<WorkerEnd>,
    /// Index of the worker, and how many there are.
    pub(super) number: (usize, usize),
    /// True if it exports its state in the end.
    pub(super) keeps_state: bool,
    /// The key of its tables.
    pub(super) key: Key,
    /// The worker's seat among several that share connections.
    pub(super) seat: Option<Seat>,
}

/// The go-ahead that a worker waits for once its tables are ready: with the state of an earlier
/// process, if there is one, and the device for packets that are not the balancer's.
pub(super) struct Go {
    pub(super) saved: Option<Arc<Saved>>,
    pub(super) kernel: Option<Arc<Device>>,
    /// The worker's devices, where that process left them open.
    pub(super) devices: Devices,
}

/// The state and devices of a worker that has ended.
#[derive(Default)]
pub(super) struct Left {
    /// The records of all connections or flows, where they are kept.
    pub(super) records: Vec<u8>,
    /// Open devices, where another process goes on with them.
    pub(super) devices: Devices,
}

/// A worker that makes its tables.
pub(super) struct Starting {
    ready: Receiver<()>,
    go: Sender<Go>,
    told: Receiver<Result<Sockets, Failure>>,
    mailbox: Arc<Letterbox>,
    names: Vec<String>,
    cpu: Option<usize>,
    orders: Sender<Order>,
    tasks: Sender<Task>,
    event: Arc<Event>,
    thread: JoinHandle<Left>,
}

impl Starting {
    /// Waits until its tables are made.
    ///
    /// # Errors
    /// They cannot be made.
    pub(super) fn wait_for_tables(&self) -> Result<(), Failure> {
        if self.ready.recv().is_ok() {
            return Ok(());
        }
        let ended = || Failure::failed("a worker ended before it began");
        self.told.recv().map_err(|_| ended())?.map(drop)
    }

    /// Has it begin; it has opened its devices when [`wait`](Self::wait) returns.
    pub(super) fn go(&self, go: Go) {
        let _ = self.go.send(go);
    }

    pub(super) fn wait(self) -> Result<Worker, Failure> {
        let ended = || Failure::failed("a worker ended before it began");
        let sockets = self.told.recv().map_err(|_| ended())??;
        Ok(Worker {
            mailbox: self.mailbox,
            names: self.names,
            cpu: self.cpu,
            sockets,
            orders: self.orders,
            tasks: self.tasks,
            event: self.event,
            thread: self.thread,
            heard: (0, Clock::now()),
        })
    }
}

/// A worker that runs.
pub(super) struct Worker {
    pub(super) mailbox: Arc<Letterbox>,
    pub(super) names: Vec<String>,
    pub(super) cpu: Option<usize>,
    /// Searches of other threads in its tables; it has to be nudged.
    pub(super) tasks: Sender<Task>,
    /// The interface and queue of each AF_XDP socket.
    sockets: Sockets,
    orders: Sender<Order>,
    /// Wakes the worker out of its wait for packets.
    event: Arc<Event>,
    thread: JoinHandle<Left>,
    /// How often it had looked into its mailbox when it was last heard of, and when that was.
    heard: (u64, Clock),
}

/// The messages between a worker and other threads.
pub(super) type Letterbox = Mailbox<Next, Counted, Importing>;

/// A snapshot to put in place, larger memory for counters where it has more rules or backends than there
/// was room for, and limits where they have changed. Returned by the worker, what it used before.
pub(super) struct Next {
    pub(super) snapshot: Arc<Snapshot<'static>>,
    pub(super) counters: Option<CounterMemory<'static>>,
    pub(super) limits: Option<Limits>,
}

/// The interface and queue of each AF_XDP socket.
type Sockets = Vec<(String, u32, OwnedFd)>;

enum Order {
    /// To go on with other queues, and whom to tell when they are open.
    Reopen(Queues, Sender<Result<Sockets, Failure>>),
    /// To end, with the devices open for another process.
    HandOver,
}

/// The counters of a worker.
#[derive(Clone)]
pub(super) struct Counted {
    pub(super) tally: Tally,
    pub(super) io: Vec<(&'static str, u64)>,
    pub(super) work: Work,
}

/// How much a worker had to do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    /// Bursts with a frame in them.
    pub(super) bursts: u64,
    /// Time from when they were received until they were sent.
    pub(super) busy: Duration,
}

impl Worker {
    /// Starts a worker: it makes its tables, and waits to be told to [go](Starting::go).
    pub(super) fn start(start: Start) -> Result<Starting, Failure> {
        let mailbox = Arc::new(Letterbox::new(start.snapshot.generation()));
        let (names, cpu) = (start.names.clone(), start.cpu);
        let (tell, told) = channel();
        let (orders, received) = channel();
        let (tasks, to_do) = channel();
        let (go, gone) = channel();
        let (is_ready, ready) = channel();
        let own = Arc::clone(&mailbox);
        let event = match &start.seat {
            Some(seat) => seat.event(),
            None => Arc::new(Event::new().map_err(Failure::failed)?),
        };
        let of_worker = Arc::clone(&event);
        let name = format!("slb {}", names.first().map_or("", String::as_str));
        let thread = thread::Builder::new().name(name).spawn(move || {
            let _ends = own.ends_with_this();
            let told = (&received, &to_do);
            let to_worker = (&*own, &*of_worker);
            work(start, (is_ready, &gone), to_worker, told, tell.clone()).unwrap_or_else(
                |failure| {
                    error!("{failure}");
                    // If it is of the beginning, somebody still listens.
                    let _ = tell.send(Err(failure));
                    Left::default()
                },
            )
        });
        Ok(Starting {
            ready,
            go,
            told,
            mailbox,
            names,
            cpu,
            orders,
            tasks,
            event,
            thread: thread.map_err(Failure::failed)?,
        })
    }

    /// Returns how long the worker has been silent, as observed by threads that ask again and
    /// again. Does not block.
    pub(super) fn silence(&mut self) -> Duration {
        let beats = self.mailbox.beats();
        if beats != self.heard.0 {
            self.heard = (beats, Clock::now());
        }
        self.mailbox.nudge();
        self.heard.1.elapsed()
    }

    /// Takes the worker as heard of just now: it was not asked meanwhile.
    pub(super) fn forgive(&mut self) {
        self.heard.1 = Clock::now();
    }

    /// Sockets of the worker on an interface, by queue.
    pub(super) fn sockets_of(
        &self,
        interface: &str,
    ) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        let own = self
            .sockets
            .iter()
            .filter(move |(name, ..)| name == interface);
        own.map(|(_, queue, socket)| (*queue, socket.as_fd()))
    }

    /// Has it close its devices and go on with others. Its flows and connections stay. Where they cannot be
    /// opened it goes on with none.
    pub(super) fn reopen(&mut self, queues: Queues) -> Result<(), Failure> {
        let (tell, told) = channel();
        // A socket that is still open here would keep its queue from being bound anew.
        self.sockets.clear();
        let gone = || Failure::failed("a worker has ended");
        let order = Order::Reopen(queues, tell);
        self.orders.send(order).map_err(|_| gone())?;
        self.mailbox.nudge();
        self.sockets = told.recv_timeout(TIME_TO_OPEN).map_err(|_| gone())??;
        Ok(())
    }

    /// Has it take what is still there and end, without waiting for that. Workers that hand packets to each
    /// other wait for each other.
    pub(super) fn stop(&self) {
        self.mailbox.stop();
        self.event.ring();
    }

    /// Has it end at once with its devices open, and leave what is still there to another process.
    pub(super) fn hand_over(&self) {
        let _ = self.orders.send(Order::HandOver);
        self.mailbox.nudge();
        self.event.ring();
    }

    /// Waits for its end, after it was told to [stop](Self::stop) or to [hand over](Self::hand_over). Gives what
    /// it counted and what it left.
    pub(super) fn finish(self) -> (Option<Counted>, Left) {
        let left = self.thread.join().unwrap_or_default();
        (self.mailbox.take_counted(), left)
    }
}

/// How long a worker may take to open other devices.
const TIME_TO_OPEN: Duration = Duration::from_secs(5);

/// The thread's whole life.
fn work(
    start: Start,
    (ready, go): (Sender<()>, &Receiver<Go>),
    (mailbox, event): (&Letterbox, &Event),
    (orders, tasks): (&Receiver<Order>, &Receiver<Task>),
    mut tell: Sender<Result<Sockets, Failure>>,
) -> Result<Left, Failure> {
    if let Some(cpu) = start.cpu {
        let mut set = CpuSet::new();
        set.set(cpu);
        if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
            warn!("cannot pin the worker to CPU {cpu}: {error}");
        }
    }
    // Made here, so that its memory is near this CPU.
    let mut balancer = Balancer::with_snapshot(&start.config, start.snapshot, start.key)?;
    if let Some(seat) = &start.seat {
        balancer.divide_limits(&start.config, seat.steering().workers().get().into());
    }
    let _ = ready.send(());
    let Ok(go) = go.recv() else {
        return Ok(Left::default()); // another worker could not begin
    };
    // What began after a checkpoint, or before a start without any state, is known to vms only.
    if !go.saved.as_ref().is_some_and(|saved| saved.is_exact()) {
        balancer.take_up(Instant::ZERO);
    }
    if let Some(saved) = go.saved {
        match &start.seat {
            Some(seat) => saved.import_share(&mut balancer, seat, Instant::ZERO),
            None => {
                let (number, workers) = start.number;
                saved.import(&mut balancer, number, workers, Instant::ZERO);
            }
        }
    }
    let kernel = go.kernel.map(ToKernel);
    let begin = Clock::now();
    let mut moving = Moving {
        balancer,
        mailbox,
        orders,
        tasks,
        looker: Looker::new(begin),
        is_sweep: false,
        waits: start.waits,
        probes: start.probes,
        begin,
        work: Work::default(),
        earlier: Vec::new(),
        held: Vec::new(),
        names: start.names,
        is_proxy: start.config.node.role == Role::Proxy,
        offload: Offload::default(),
        fill: None,
        seat: start.seat,
        importing: None,
        event,
        keeps_state: start.keeps_state,
        given: go.devices,
        left: Devices::default(),
        hands_over: false,
    };
    let (mut queues, mut has_begun) = (start.queues, false);
    loop {
        let end = moving.on(queues, start.ring, kernel.as_ref(), &tell);
        let end = match end {
            Ok(end) => end,
            Err(failure) if !has_begun => return Err(failure),
            Err(failure) => {
                // Whoever gave the order tries again.
                let _ = tell.send(Err(failure));
                moving.on_none()
            }
        };
        has_begun = true;
        match end {
            End::Stopped => {
                let records = match start.keeps_state {
                    true => state::export_all(&moving.balancer),
                    false => Vec::new(),
                };
                return Ok(Left {
                    records,
                    devices: moving.leave_devices(),
                });
            }
            End::Reopen(next, whom) => (queues, tell) = (next, whom),
        }
    }
}

/// A device that frames are written to for the kernel, for as long as the worker lives.
#[derive(Clone)]
struct ToKernel(Arc<Device>);

impl io::Write for ToKernel {
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        self.0.send(frame).map(|()| frame.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why packets are not moved any more.
enum End {
    Stopped,
    Reopen(Queues, Sender<Result<Sockets, Failure>>),
}

/// The parts of a worker that stay when its devices change.
struct Moving<'w> {
    balancer: Balancer,
    mailbox: &'w Letterbox,
    orders: &'w Receiver<Order>,
    tasks: &'w Receiver<Task>,
    looker: Looker,
    /// True in rounds that look at timers and keep dropped packets.
    is_sweep: bool,
    waits: bool,
    probes: Option<WorkerEnd>,
    begin: Clock,
    work: Work,
    /// The counters of devices that are closed.
    earlier: Vec<(&'static str, u64)>,
    /// TUN devices, which some may go with when they are closed: those that stay are not.
    held: Vec<(TunQueue, Device)>,
    names: Vec<String>,
    is_proxy: bool,
    offload: Offload,
    /// Memory to write records into.
    fill: Option<Fill>,
    /// The worker's index among those that share connections.
    seat: Option<Seat>,
    /// Records that are taken over.
    importing: Option<Importing>,
    /// Wakes this worker when it is to end.
    event: &'w Event,
    /// True if another process may take over, and with it the memory of packets.
    keeps_state: bool,
    /// Devices that an earlier process left open for this worker.
    given: Devices,
    /// Devices that this worker leaves open.
    left: Devices,
    /// True if another process goes on with the devices.
    hands_over: bool,
}

impl Moving<'_> {
    /// Opens queues, tells so, and moves their packets.
    fn on(
        &mut self,
        queues: Queues,
        ring: u32,
        kernel: Option<&ToKernel>,
        tell: &Sender<Result<Sockets, Failure>>,
    ) -> Result<End, Failure> {
        match queues {
            Queues::Tun(wanted) => {
                self.hold(wanted)?;
                let held = std::mem::take(&mut self.held).into_iter();
                let (names, ports): (Vec<_>, Vec<_>) = held
                    .map(|(queue, device)| (queue.clone(), (queue.port, device)))
                    .unzip();
                let mut memory = vec![0; slb_io_tun::memory_for(FRAMES)];
                let mut io = Tun::new(ports, &mut memory);
                let _ = tell.send(Ok(Vec::new()));
                let end = self.forward(&mut io);
                let devices = io.into_devices().into_iter().map(|(_, device)| device);
                self.held = names.into_iter().zip(devices).collect();
                Ok(end)
            }
            // Of several workers some may have no queue, and process what others hand over.
            Queues::AfXdp(queues, _) if queues.is_empty() && self.seat.is_some() => {
                let mut memory = vec![0; slb_io_tun::memory_for(FRAMES)];
                let _ = tell.send(Ok(Vec::new()));
                Ok(self.forward(&mut Tun::unbatched(Vec::new(), &mut memory)))
            }
            Queues::AfXdp(queues, longest) => {
                let extra = self.seat.as_ref().map_or(0, |_| FRAMES);
                let given = self.given.cards.pop();
                let given = given.and_then(|open| {
                    let (chunk, frames) = memory_needs(&queues, longest, ring, extra);
                    open.open(&queues, ring, chunk, frames)
                });
                let (mut memory, detached) = match given {
                    Some((memory, detached)) => (memory, Some(detached)),
                    None => (
                        memory_for(&queues, longest, ring, extra, self.keeps_state)?,
                        None,
                    ),
                };
                let chunk = memory.chunk();
                let file = memory.file().map(|file| file.try_clone_to_owned());
                let opened = match detached {
                    None => AfXdp::open(&mut memory, &queues, ring).map_err(Failure::failed)?,
                    Some(detached) => match AfXdp::resume(&mut memory, &queues, detached) {
                        Ok(io) => io,
                        Err(error) => {
                            warn!("sockets that were left open are opened anew: {error}");
                            return self.on(Queues::AfXdp(queues, longest), ring, kernel, tell);
                        }
                    },
                };
                let mut io = opened;
                if let Some(kernel) = kernel {
                    io.pass_to(kernel.clone());
                }
                if self.is_proxy {
                    io.route(queues.iter().map(|queue| queue.interface.mac));
                }
                let mut sockets = Vec::new();
                for (queue, socket) in queues.iter().zip(io.sockets()) {
                    let socket = socket.try_clone_to_owned().map_err(Failure::failed)?;
                    sockets.push((queue.interface.name.clone(), queue.queue, socket));
                }
                debug!(zero_copy = io.is_zero_copy(), "sockets are open");
                let _ = tell.send(Ok(sockets));
                let end = self.forward(&mut io);
                if self.hands_over
                    && let Some(Ok(file)) = file
                {
                    self.left.cards.push(OpenCards {
                        queues: OpenCards::names_of(&queues),
                        memory: file,
                        chunk,
                        detached: io.detach(),
                    });
                }
                Ok(end)
            }
        }
    }

    /// Holds these TUN devices and no others. Those that it has already are not closed meanwhile.
    fn hold(&mut self, wanted: Vec<TunQueue>) -> Result<(), Failure> {
        let mut wanted = wanted;
        self.held.retain(|(known, _)| {
            let place = wanted.iter().position(|queue| queue == known);
            place.map(|place| wanted.swap_remove(place)).is_some()
        });
        for mut queue in wanted {
            let key = queue.key();
            let place = self.given.tun.iter().position(|(given, _)| *given == key);
            let file = place.map(|place| self.given.tun.swap_remove(place).1);
            let device = match file.and_then(|file| queue.resume(file)) {
                Some(device) => device,
                None => queue.open()?,
            };
            self.held.push((queue, device));
        }
        Ok(())
    }

    /// Returns the devices that another process goes on with, if one does.
    fn leave_devices(mut self) -> Devices {
        if self.hands_over {
            let held = self.held.into_iter();
            self.left.tun = held
                .map(|(queue, device)| (queue.key(), device.into()))
                .collect();
        }
        self.left
    }

    /// Moves nothing but what other workers hand over, and goes on reading letters.
    fn on_none(&mut self) -> End {
        let frames = self.seat.as_ref().map_or(0, |_| FRAMES);
        let mut memory = vec![0; slb_io_tun::memory_for(frames)];
        self.forward(&mut Tun::unbatched(Vec::new(), &mut memory))
    }

    /// Moves packets until it is told to stop, and then those that are still there; or until it gets an
    /// order.
    fn forward<'m>(&mut self, io: &mut impl LiveIo<'m>) -> End {
        let end = self.move_packets(io);
        let counters = io.counters();
        let end = match end {
            Ok(end) => {
                self.note(&counters);
                end
            }
            Err(error) => {
                error!("I/O error, this worker moves no more packets: {error}");
                self.note(&counters);
                let end = self.on_none();
                // Whoever takes over opens them anew.
                self.hands_over = false;
                return end;
            }
        };
        if matches!(end, End::Stopped) {
            let last = self.counted(&[]);
            self.mailbox.leave(last);
        }
        end
    }

    fn move_packets<'m>(&mut self, io: &mut impl LiveIo<'m>) -> io::Result<End> {
        let mut burst: Burst<'m> = Burst::new();
        let (mut idle, mut last_sweep) = (0, Clock::now());
        let mut stop: Option<Clock> = None;
        loop {
            if self.mailbox.has_letters() {
                let mut reader = Reading { moving: self, io };
                if reader.read() {
                    stop.get_or_insert_with(Clock::now);
                } else if let Ok(order) = self.orders.try_recv() {
                    match order {
                        Order::Reopen(queues, tell) => return Ok(End::Reopen(queues, tell)),
                        // What is in the devices waits there for the other process.
                        Order::HandOver => self.hands_over = true,
                    }
                    if self.seat.is_none() {
                        return Ok(End::Stopped);
                    }
                    stop = Some(Clock::now());
                }
                while let Ok(task) = self.tasks.try_recv() {
                    self.looker.take(task);
                }
            }
            if self.fill.is_some() {
                self.export();
            }
            if self.looker.is_busy() {
                self.looker.step(&self.balancer, idle > 0);
            }
            let mut count = match self.is_leaving() || self.hands_over {
                false => io.receive(&mut burst)?,
                true => 0,
            };
            let clock = Clock::now();
            let elapsed = clock - self.begin;
            let now = Instant::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
            if self.importing.is_some() {
                self.import(now);
            }
            let is_sweep = clock - last_sweep >= SWEEP;
            self.is_sweep = is_sweep;
            // Before it waits, too: what the last packets let go on does not.
            if is_sweep || idle == IDLE_POLLS {
                last_sweep = clock;
                let mut spare: Burst<'m> = Burst::new();
                io.reserve(&mut spare, SPARE);
                self.balancer.advance(now, &mut spare);
                if let Some(tap) = self.looker.tap() {
                    tap.note_own(now, &spare);
                }
                self.send(&mut spare, io)?;
                if let Some(probes) = &self.probes {
                    probes::take(probes, &self.balancer, io, &mut spare);
                    self.send(&mut spare, io)?;
                }
            }
            if is_sweep && let Some(frame) = burst.iter().next() {
                self.look_at_checksum(frame.port(), frame.bytes());
            }
            if self.seat.is_some() {
                count += self.exchange(now, &mut burst, io)?;
            }
            if count > 0 {
                idle = 0;
                if !burst.is_empty() {
                    self.process(now, &mut burst, io)?;
                }
                if let Some(seat) = &mut self.seat {
                    seat.publish();
                }
                self.work.bursts += 1;
                self.work.busy += clock.elapsed();
                // Into a TUN device packets may come for ever.
                if stop.is_some_and(|stop| clock - stop >= LAST) {
                    return Ok(End::Stopped);
                }
                continue;
            }
            if is_sweep {
                self.looker.sweep(now, &[]);
            }
            idle += 1;
            if let Some(seat) = &mut self.seat {
                seat.publish(); // what advance made
            }
            if let Some(stop) = stop {
                let is_late = clock - stop >= LAST;
                let may_leave = self.seat.as_mut().is_none_or(Seat::may_leave);
                if may_leave || is_late {
                    return Ok(End::Stopped);
                }
                thread::yield_now();
                continue;
            }
            let is_done = self.fill.is_none() && self.importing.is_none();
            if idle > IDLE_POLLS && self.waits && is_done && !self.looker.is_ready() {
                self.sleep(io)?;
            }
        }
    }

    /// Waits until packets come, or something is due.
    fn sleep<'m>(&mut self, io: &impl LiveIo<'m>) -> io::Result<()> {
        let Some(seat) = &mut self.seat else {
            return io.wait(WAIT, self.event.file());
        };
        if !seat.may_sleep() {
            return Ok(());
        }
        let waited = io.wait(WAIT, seat.bell());
        seat.wake();
        waited
    }

    /// True if it takes no more packets of its devices, as all workers end.
    fn is_leaving(&self) -> bool {
        self.seat.as_ref().is_some_and(Seat::is_leaving)
    }

    /// Processes frames, and sends them on.
    #[inline]
    fn process<'m>(
        &mut self,
        now: Instant,
        burst: &mut Burst<'m>,
        io: &mut impl LiveIo<'m>,
    ) -> io::Result<()> {
        match self.looker.tap() {
            None => self.balancer.process(now, burst, &mut ()),
            Some(tap) => tap.process(&mut self.balancer, now, burst),
        }
        if self.is_sweep {
            self.looker.sweep(now, burst);
        }
        if let Some(probes) = &self.probes {
            probes::collect(probes, &self.balancer, burst);
        }
        self.send(burst, io)
    }

    /// Sends frames, those for devices of other workers by these.
    #[inline]
    fn send<'m>(&mut self, burst: &mut Burst<'m>, io: &mut impl LiveIo<'m>) -> io::Result<()> {
        if let Some(seat) = &mut self.seat {
            seat.send(burst);
        }
        io.transmit(burst).map(drop)
    }

    /// Hands over what other workers own, and takes what they handed over: returns how much. What is left in
    /// `burst` is this worker's.
    #[inline(never)]
    fn exchange<'m>(
        &mut self,
        now: Instant,
        burst: &mut Burst<'m>,
        io: &mut impl LiveIo<'m>,
    ) -> io::Result<usize> {
        let Some(seat) = &mut self.seat else {
            return Ok(0);
        };
        if !burst.is_empty() {
            seat.sort(self.balancer.snapshot(), burst, io)?;
            // Before this worker goes on with its own, so that the others begin.
            seat.publish();
        }
        let (mut taken, mut to_send): (Burst<'m>, Burst<'m>) = (Burst::new(), Burst::new());
        let count = seat.take(&mut taken, &mut to_send, io);
        if count == 0 {
            return Ok(0);
        }
        io.transmit(&mut to_send)?;
        if !taken.is_empty() {
            self.process(now, &mut taken, io)?;
        }
        Ok(count)
    }

    /// Writes a few records, and gives the memory back when it is full or all is written.
    #[cold]
    #[inline(never)]
    fn export(&mut self) {
        let balancer = &self.balancer;
        let export = |vm: Option<&str>, from, into: &mut [u8]| match vm {
            Some(vm) => balancer.export_vm(vm, from, into),
            None => balancer.export(from, into),
        };
        let step = |fill: &mut Fill| fill.step(export);
        if let Some(fill) = self.fill.take_if(|fill| !step(fill)) {
            self.mailbox.give_filled(fill);
        }
    }

    /// Takes a few records over, and says so when all are.
    #[cold]
    #[inline(never)]
    fn import(&mut self, now: Instant) {
        let (balancer, seat) = (&mut self.balancer, self.seat.as_ref());
        let mut step = |importing: &mut Importing| importing.step(balancer, seat, now);
        if let Some(done) = self.importing.take_if(|importing| !step(importing)) {
            self.mailbox.give_imported(done.imported());
        }
    }

    /// Says once where checksums are left to a network card that is none.
    #[cold]
    fn look_at_checksum(&mut self, port: PortId, frame: &[u8]) {
        if self.offload.look(frame) {
            warn!(
                worker = self.names.join(", "),
                port = port.0,
                "packets arrive without checksums (checksum offload at the sender): their receivers drop them. At the \
                 sender's end of this device: ethtool -K DEVICE tx off"
            );
        }
    }

    /// Keeps the counters of devices that are closed; who has which frame of their memory is over.
    fn note(&mut self, counters: &[(&'static str, u64)]) {
        let lasting = counters
            .iter()
            .filter(|(name, _)| !name.starts_with("frames"));
        for &(name, count) in lasting {
            match self.earlier.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += count,
                None => self.earlier.push((name, count)),
            }
        }
    }

    /// Returns the counters until now, including those of the devices that are open.
    fn counted(&self, io: &[(&'static str, u64)]) -> Counted {
        let mut all = io.to_vec();
        if let Some(seat) = &self.seat {
            all.extend(seat.counters());
        }
        for &(name, count) in &self.earlier {
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += count,
                None => all.push((name, count)),
            }
        }
        Counted {
            tally: Tally::of(&self.balancer),
            io: all,
            work: self.work,
        }
    }
}

/// A worker that reads its letters.
struct Reading<'r, 'w, I> {
    moving: &'r mut Moving<'w>,
    io: &'r I,
}

impl<'m, I: LiveIo<'m>> Reading<'_, '_, I> {
    /// Reads all messages; returns true if the worker is to stop.
    #[cold]
    fn read(&mut self) -> bool {
        let mailbox = self.moving.mailbox;
        mailbox.read(self)
    }
}

impl<'m, I: LiveIo<'m>> Recipient<Next, Counted, Importing> for Reading<'_, '_, I> {
    fn install(&mut self, next: Next) -> Next {
        let balancer = &mut self.moving.balancer;
        Next {
            counters: next
                .counters
                .map(|larger| balancer.replace_counters(larger)),
            limits: next.limits.map(|limits| balancer.set_limits(limits)),
            snapshot: balancer.install(next.snapshot).unwrap_or_else(|rejected| {
                error!(error = %rejected, "the configuration was not installed");
                rejected.snapshot
            }),
        }
    }

    fn fill(&mut self, fill: Fill) {
        self.moving.fill = Some(fill);
    }

    fn import(&mut self, records: Importing) {
        self.moving.importing = Some(records);
    }

    fn count(&mut self) -> Counted {
        self.moving.counted(&self.io.counters())
    }
}

/// The requirements of the loop on an I/O besides moving frames.
trait LiveIo<'m>: PacketIo<'m, Error = io::Error> {
    /// Waits for packets, or until a bell rings.
    fn wait(&self, most: Duration, bell: Option<BorrowedFd<'_>>) -> io::Result<()>;
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

impl<'m> LiveIo<'m> for Tun<'m> {
    fn wait(&self, most: Duration, bell: Option<BorrowedFd<'_>>) -> io::Result<()> {
        Tun::wait_or(self, most, bell)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.stats().named().to_vec()
    }
}

impl<'m> LiveIo<'m> for AfXdp<'m> {
    fn wait(&self, most: Duration, bell: Option<BorrowedFd<'_>>) -> io::Result<()> {
        AfXdp::wait_or(self, most, bell)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let places = self.places();
        let mut counters = self.stats().named().to_vec();
        counters.push(("frames", places.total as u64));
        counters.push(("frames_free", places.free as u64));
        counters.push(("frames_receiving", places.receiving as u64));
        counters.push(("frames_sending", places.sending as u64));
        counters.push(("frames_lent", places.lent as u64));
        counters
    }
}

/// The CPUs that workers run on, in turn: those asked for, or all that this process may use.
pub(super) fn allowed_cpus(asked: &[usize]) -> Result<Vec<usize>, Failure> {
    if asked.is_empty() {
        let set = rustix::thread::sched_getaffinity(None).map_err(Failure::failed)?;
        return Ok((0..CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect());
    }
    Ok(asked.to_vec())
}

/// Makes an unpredictable key.
pub(super) fn secret() -> Result<Key, Failure> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| Failure::failed(format!("/dev/urandom: {error}")))?;
    Ok(Key::from_bytes(bytes))
}
