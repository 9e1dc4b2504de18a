//! A thread that moves packets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as Clock};

use rustix::thread::CpuSet;
use slb_control::Config;
use slb_core::service::Snapshot;
use slb_core::{BURST, Burst, Instant, Key, PacketIo};
use slb_io_afxdp::AfXdp;
use slb_io_tun::{Device, Tun};
use tracing::{debug, error, warn};

use super::device::Queues;
use super::mailbox::{Mailbox, Recipient};
use super::{WAIT, memory_for};
use crate::Failure;
use crate::balancer::Balancer;
use crate::report::Tally;

/// Frames kept ready for packets of the balancer's own.
const SPARE: usize = 16;
/// Polls without a packet before the thread waits: packets seldom come alone.
const IDLE_POLLS: u32 = 64;
/// How long it takes what still comes after it was told to stop.
const LAST: Duration = Duration::from_secs(1);
/// How often timers are looked at while packets come.
const SWEEP: Duration = Duration::from_micros(200);

/// What a worker begins with.
pub(super) struct Start {
    pub(super) config: Config,
    pub(super) snapshot: Arc<Snapshot<'static>>,
    pub(super) cpu: Option<usize>,
    pub(super) queues: Queues,
    /// Where what is not the balancer's goes.
    pub(super) kernel: Option<Device>,
    pub(super) ring: u32,
    /// Whether it waits for packets, or asks for them all the time.
    pub(super) waits: bool,
}

/// A worker that runs.
pub(super) struct Worker {
    pub(super) mailbox: Arc<Letterbox>,
    pub(super) names: Vec<String>,
    pub(super) cpu: Option<usize>,
    /// Of AF_XDP: the interface and queue of each socket.
    sockets: Vec<(String, u32, OwnedFd)>,
    thread: JoinHandle<()>,
}

/// What a worker and the others tell each other.
pub(super) type Letterbox = Mailbox<Arc<Snapshot<'static>>, Counted>;

/// What a worker counted.
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
    /// Starts a worker; it has opened its devices when this returns.
    pub(super) fn start(start: Start) -> Result<Self, Failure> {
        let mailbox = Arc::new(Letterbox::new(start.snapshot.generation()));
        let (names, cpu) = (start.queues.names(), start.cpu);
        let (tell, told) = channel();
        let own = Arc::clone(&mailbox);
        let name = format!("slb {}", names.first().map_or("", String::as_str));
        let thread = thread::Builder::new().name(name).spawn(move || {
            let _ends = own.ends_with_this();
            let result = work(start, &own, &tell);
            if let Err(failure) = result {
                error!("{failure}");
                // If it is of the beginning, somebody still listens.
                let _ = tell.send(Err(failure));
            }
        });
        let thread = thread.map_err(Failure::failed)?;
        let ended = || Failure::failed("a worker ended before it began");
        let sockets = told.recv().map_err(|_| ended())??;
        Ok(Self {
            mailbox,
            names,
            cpu,
            sockets,
            thread,
        })
    }

    /// Its sockets on an interface, by queue.
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

    /// Has it take what is still there, and waits for its end.
    pub(super) fn finish(self) -> Option<Counted> {
        self.mailbox.stop();
        let _ = self.thread.join();
        self.mailbox.take_counted()
    }
}

type Sockets = Vec<(String, u32, OwnedFd)>;

/// The thread's whole life.
fn work(
    start: Start,
    mailbox: &Letterbox,
    tell: &Sender<Result<Sockets, Failure>>,
) -> Result<(), Failure> {
    if let Some(cpu) = start.cpu {
        let mut set = CpuSet::new();
        set.set(cpu);
        if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
            warn!(cpu, "the worker runs where it likes: {error}");
        }
    }
    // Made here, so that its memory is near this CPU.
    let balancer = Balancer::with_snapshot(&start.config, start.snapshot, secret()?)?;
    match start.queues {
        Queues::Tun(ports) => {
            let mut memory = vec![0; slb_io_tun::memory_for(4 * BURST + SPARE)];
            let io = Tun::new(ports, &mut memory);
            let _ = tell.send(Ok(Vec::new()));
            forward(balancer, io, mailbox, start.waits)
        }
        Queues::AfXdp(queues) => {
            let mut memory = memory_for(&queues, start.ring)?;
            let mut io = AfXdp::open(&mut memory, &queues, start.ring).map_err(Failure::failed)?;
            if let Some(kernel) = start.kernel {
                io.pass_to(kernel);
            }
            let mut sockets = Vec::new();
            for (queue, socket) in queues.iter().zip(io.sockets()) {
                let socket = socket.try_clone_to_owned().map_err(Failure::failed)?;
                sockets.push((queue.interface.name.clone(), queue.queue, socket));
            }
            debug!(zero_copy = io.is_zero_copy(), "sockets are open");
            let _ = tell.send(Ok(sockets));
            forward(balancer, io, mailbox, start.waits)
        }
    }
}

/// Moves packets until it is told to stop, and then those that are still there.
fn forward<'m>(
    mut balancer: Balancer,
    mut io: impl LiveIo<'m>,
    mailbox: &Letterbox,
    waits: bool,
) -> Result<(), Failure> {
    let mut burst: Burst<'m> = Burst::new();
    let (mut idle, mut last_sweep) = (0, Clock::now());
    let begin = last_sweep;
    let (mut stop, mut work): (Option<Clock>, _) = (None, Work::default());
    loop {
        let mut reader = Reading {
            balancer: &mut balancer,
            io: &io,
            work,
        };
        if mailbox.has_letters() && mailbox.read(&mut reader) {
            stop.get_or_insert_with(Clock::now);
        }
        let count = io.receive(&mut burst).map_err(Failure::failed)?;
        let clock = Clock::now();
        let elapsed = clock - begin;
        let now = Instant::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
        if clock - last_sweep >= SWEEP {
            last_sweep = clock;
            let mut spare: Burst<'m> = Burst::new();
            io.reserve(&mut spare, SPARE);
            balancer.advance(now, &mut spare);
            io.transmit(&mut spare).map_err(Failure::failed)?;
        }
        if count > 0 {
            idle = 0;
            balancer.process(now, &mut burst, &mut ());
            io.transmit(&mut burst).map_err(Failure::failed)?;
            work.bursts += 1;
            work.busy += clock.elapsed();
            // Into a TUN device packets may come for ever.
            if stop.is_some_and(|stop| clock - stop >= LAST) {
                break;
            }
            continue;
        }
        idle += 1;
        if stop.is_some() {
            break;
        }
        if idle > IDLE_POLLS && waits {
            io.wait(WAIT).map_err(Failure::failed)?;
        }
    }
    let mut last = Reading {
        balancer: &mut balancer,
        io: &io,
        work,
    };
    mailbox.leave(last.count());
    Ok(())
}

/// A worker that reads its letters.
struct Reading<'w, I> {
    balancer: &'w mut Balancer,
    io: &'w I,
    work: Work,
}

impl<'m, I: LiveIo<'m>> Recipient<Arc<Snapshot<'static>>, Counted> for Reading<'_, I> {
    fn install(&mut self, snapshot: Arc<Snapshot<'static>>) -> Arc<Snapshot<'static>> {
        self.balancer.install(snapshot)
    }

    fn count(&mut self) -> Counted {
        Counted {
            tally: Tally::of(self.balancer),
            io: self.io.counters(),
            work: self.work,
        }
    }
}

/// What the loop needs of an I/O besides moving frames.
trait LiveIo<'m>: PacketIo<'m, Error = io::Error> {
    fn wait(&self, most: Duration) -> io::Result<()>;
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

impl<'m> LiveIo<'m> for Tun<'m> {
    fn wait(&self, most: Duration) -> io::Result<()> {
        Tun::wait(self, most)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.stats().named().to_vec()
    }
}

impl<'m> LiveIo<'m> for AfXdp<'m> {
    fn wait(&self, most: Duration) -> io::Result<()> {
        AfXdp::wait(self, most)
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

/// A key that nobody can guess.
fn secret() -> Result<Key, Failure> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| Failure::failed(format!("/dev/urandom: {error}")))?;
    Ok(Key::from_bytes(bytes))
}
