//! A thread that moves packets.

mod devices;
mod moving;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant as Clock};

use rustix::thread::CpuSet;
use slb_control::probe::WorkerEnd;
use slb_control::{Config, Role};
use slb_core::counters::CounterMemory;
use slb_core::snapshot::Snapshot;
use slb_core::{Instant, Key};
use tracing::{error, warn};

use self::devices::ToKernel;
use self::moving::{End, Moving};
use super::device::Queues;
use super::exchange::{Event, Seat};
use super::handed::Devices;
use super::look::{Looker, Task};
use super::mailbox::Mailbox;
use super::offload::Offload;
use super::pass::Passing;
use super::state::{self, Importing, Saved};
use crate::Failure;
use crate::balancer::{Balancer, Limits};
use crate::report::Tally;

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
    pub(super) kernel: Option<Arc<Passing>>,
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
    left: Receiver<Left>,
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
        let ended = || Failure::failed("a worker ended before it started");
        self.told.recv().map_err(|_| ended())?.map(drop)
    }

    /// Has it begin; it has opened its devices when [`wait`](Self::wait) returns.
    pub(super) fn go(&self, go: Go) {
        let _ = self.go.send(go);
    }

    pub(super) fn wait(self) -> Result<Worker, Failure> {
        let ended = || Failure::failed("a worker ended before it started");
        let sockets = self.told.recv().map_err(|_| ended())??;
        Ok(Worker {
            mailbox: self.mailbox,
            names: self.names,
            cpu: self.cpu,
            sockets,
            orders: self.orders,
            tasks: self.tasks,
            event: self.event,
            left: self.left,
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
    /// The state and devices that the worker leaves; nothing, where it ended by itself. Its thread then frees the
    /// tables, which takes long, and no one waits for that.
    left: Receiver<Left>,
    /// The number of times that the worker had looked into its mailbox when it was last heard of,
    /// and that time.
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

/// The load of a worker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    /// Bursts with at least one frame.
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
        let (leave, left) = channel();
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
            let begins = (is_ready, &gone, leave);
            if let Err(failure) = work(start, begins, to_worker, told, tell.clone()) {
                error!("{failure}");
                // If it is of the beginning, somebody still listens.
                let _ = tell.send(Err(failure));
            }
        });
        thread.map_err(Failure::failed)?;
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
            left,
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

    /// Waits until it has left its devices, after it was told to [stop](Self::stop) or to
    /// [hand over](Self::hand_over). Gives what it counted and what it left.
    pub(super) fn finish(self) -> (Option<Counted>, Left) {
        let left = self.left.recv().unwrap_or_default();
        (self.mailbox.take_counted(), left)
    }
}

/// The maximum time that a worker may take to open other devices.
const TIME_TO_OPEN: Duration = Duration::from_secs(5);

/// The thread's whole life.
fn work(
    start: Start,
    (ready, go, leave): (Sender<()>, &Receiver<Go>, Sender<Left>),
    (mailbox, event): (&Letterbox, &Event),
    (orders, tasks): (&Receiver<Order>, &Receiver<Task>),
    mut tell: Sender<Result<Sockets, Failure>>,
) -> Result<(), Failure> {
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
        return Ok(()); // another worker could not begin
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
                // Before the tables' memory is given back: another process may wait for what is left.
                let _ = leave.send(Left {
                    records,
                    devices: moving.leave_devices(),
                });
                return Ok(());
            }
            End::Reopen(next, whom) => (queues, tell) = (next, whom),
        }
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
