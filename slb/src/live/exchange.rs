//! Workers that share the packets of a host agent or a proxy: each has the connections of some remote
//! addresses, and each has some of the queues.
//!
//! ```text
//!  queues ─► worker 0 ─ of an address of worker 1 ─► ring ─► worker 1 ─ processes it
//!                                                              │ its way out is a device of worker 0's
//!  device ◄─ worker 0 ◄───────────────────────────── ring ◄────┘
//! ```
//! [`Steering`] says whose a frame is, before anything has looked at it. A frame that leaves by a device of
//! which its owner has no queue goes to a worker that has one. Both kinds cross in rings, a burst at a time,
//! between each pair of workers.
//!
//! A worker that has nothing to do sleeps until a packet comes or its bell rings. It says that it sleeps, and
//! then looks into its rings once more; who gives it a frame publishes that, and then looks whether it
//! sleeps: so one of both sees the other (test `a_worker_that_sleeps_is_woken`).
//!
//! Where a ring is full, its frames are lost and counted (`crowded`): a worker waits for no other.

use std::io;
use std::os::fd::BorrowedFd;
#[cfg(not(test))]
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

#[cfg(test)]
use shuttle::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
#[cfg(not(test))]
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use slb_core::snapshot::Snapshot;
use slb_core::steer::Steering;
use slb_core::{BURST, Burst, Frame, PacketIo, PortId, Verdict};

use super::ring::{Giver, Taker, Waiting, ring};

/// Words of a ring: 512 KiB, or 346 packets of 1500 bytes. What a TCP sender has on its way within the time
/// for which a worker may be interrupted finds room.
const WORDS: usize = 1 << 16;

/// Rounds of leaving: a frame crosses to its owner, and from there to who sends it.
const ROUNDS: usize = 3;

/// The reason why a frame crosses to another worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Errand {
    /// To be processed: it came in by this port.
    Process(PortId),
    /// To be sent out of this port.
    Send(PortId),
}

impl Errand {
    const SEND: u64 = 1 << 16;

    fn note(self) -> u64 {
        match self {
            Self::Process(port) => port.0.into(),
            Self::Send(port) => Self::SEND | u64::from(port.0),
        }
    }

    fn of(note: u64) -> Self {
        let port = PortId(note as u16);
        match note & Self::SEND {
            0 => Self::Process(port),
            _ => Self::Send(port),
        }
    }
}

/// The ports that a worker's queues are of.
pub(super) type OwnPorts = Vec<PortId>;

/// The state that all workers share.
struct Common {
    bells: Vec<Bell>,
    /// The number of times that workers reported that they had nothing left, over all rounds.
    left: AtomicUsize,
}

/// The means to wake a sleeping worker.
struct Bell {
    sleeps: AtomicBool,
    event: Arc<Event>,
}

/// A worker's place among the others.
pub(super) struct Seat {
    number: u16,
    steering: Steering,
    /// The rings to the others, and from them; none to itself.
    givers: Vec<Option<Giver>>,
    takers: Vec<Option<Taker>>,
    /// The worker that sends for each port: this one if it can.
    ways: Vec<u16>,
    /// The ring to take from first.
    next: usize,
    common: Arc<Common>,
    /// The round of leaving, and whether it has said so.
    round: (usize, bool),
    counters: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    /// Frames given to others to process, and to send.
    handed: u64,
    sent_by_others: u64,
    /// Frames that the ring to another had no room for.
    crowded: u64,
    /// Frames that no frame of this worker's memory was long enough for.
    too_long: u64,
}

/// Marks the absence of a worker.
const NO_WORKER: u16 = u16::MAX;

impl Seat {
    /// A place for each worker, given the ports of their queues.
    ///
    /// # Errors
    /// The kernel has no event for a worker.
    pub(super) fn all(steering: Steering, ports: &[OwnPorts]) -> io::Result<Vec<Self>> {
        Self::with_rings(steering, ports, WORDS)
    }

    fn with_rings(steering: Steering, ports: &[OwnPorts], words: usize) -> io::Result<Vec<Self>> {
        let count = ports.len();
        let bells = ports.iter().map(|_| Bell::new());
        let common = Arc::new(Common {
            bells: bells.collect::<io::Result<_>>()?,
            left: AtomicUsize::new(0),
        });
        let mut seats: Vec<Self> = (0..count)
            .map(|number| Self {
                number: number as u16,
                steering,
                givers: (0..count).map(|_| None).collect(),
                takers: (0..count).map(|_| None).collect(),
                ways: ways(number as u16, ports),
                next: 0,
                common: Arc::clone(&common),
                round: (0, false),
                counters: Counters::default(),
            })
            .collect();
        for from in 0..count {
            for to in (0..count).filter(|&to| to != from) {
                let (giver, taker) = ring(words);
                seats[from].givers[to] = Some(giver);
                seats[to].takers[from] = Some(taker);
            }
        }
        Ok(seats)
    }

    /// Returns the division of connections among workers.
    pub(super) fn steering(&self) -> &Steering {
        &self.steering
    }

    /// The worker's number.
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// Hands the frames of a burst that other workers own to these, and leaves the others in their order.
    ///
    /// # Errors
    /// Those of the device, which gets the memory of the frames back.
    pub(super) fn sort<'m, I: PacketIo<'m>>(
        &mut self,
        snapshot: &Snapshot<'_>,
        burst: &mut Burst<'m>,
        io: &mut I,
    ) -> Result<(), I::Error> {
        let owners = self.steering.owners(snapshot, self.number, burst);
        let count = burst.len();
        if owners.iter().take(count).all(|&owner| owner == self.number) {
            return Ok(());
        }
        let (mut own, mut others) = (Burst::new(), Burst::new());
        for (mut frame, owner) in burst.drain().zip(owners) {
            let to = if owner == self.number {
                &mut own
            } else {
                let errand = Errand::Process(frame.port());
                self.counters.handed += u64::from(self.give(owner, errand, &frame));
                frame.truncate(0);
                &mut others
            };
            let _ = to.push(frame); // both have room for a burst
        }
        *burst = own;
        io.transmit(&mut others).map(drop)
    }

    /// Takes frames that other workers gave, into frames of the worker's own memory: those to be processed
    /// and those to be sent. Returns how many.
    pub(super) fn take<'m>(
        &mut self,
        to_process: &mut Burst<'m>,
        to_send: &mut Burst<'m>,
        io: &mut impl PacketIo<'m>,
    ) -> usize {
        let mut count = 0;
        for turn in 0..self.takers.len() {
            let from = (self.next + turn) % self.takers.len();
            let Some(taker) = &mut self.takers[from] else {
                continue;
            };
            while let Some(waiting) = taker.first() {
                let errand = Errand::of(waiting.note);
                let to = match errand {
                    Errand::Process(_) => &mut *to_process,
                    Errand::Send(_) => &mut *to_send,
                };
                if to.is_full() || io.reserve(to, 1) == 0 {
                    break;
                }
                count += 1;
                let Some(frame) = to.last_mut() else { break };
                if !fill(frame, taker, waiting, errand) {
                    self.counters.too_long += 1;
                }
            }
            taker.release();
        }
        self.next = (self.next + 1) % self.takers.len();
        count
    }

    /// Hands those frames of a burst that leave by devices of other workers to these.
    pub(super) fn send(&mut self, burst: &mut Burst<'_>) {
        for frame in burst.iter_mut().filter(|frame| !frame.is_empty()) {
            match frame.verdict() {
                // After `Forward` the frame's port is the one to leave by.
                Verdict::Forward(_) | Verdict::Reply => {
                    let port = frame.port();
                    let way = self.way(port);
                    if way != self.number && way != NO_WORKER {
                        let is_given = self.give(way, Errand::Send(port), frame);
                        self.counters.sent_by_others += u64::from(is_given);
                        frame.truncate(0);
                    }
                }
                Verdict::Flood => self.flood(frame),
                Verdict::Pass | Verdict::Drop(_) => {}
            }
        }
    }

    /// Has other workers send a frame out of their ports, but for its own.
    fn flood(&mut self, frame: &mut Frame<'_>) {
        let mut is_left = false;
        for port in (0..self.ways.len()).map(|port| PortId(port as u16)) {
            let way = self.way(port);
            if port == frame.port() || way == NO_WORKER {
                continue;
            }
            if way == self.number {
                is_left = true;
                continue;
            }
            let is_given = self.give(way, Errand::Send(port), frame);
            self.counters.sent_by_others += u64::from(is_given);
        }
        if !is_left {
            frame.truncate(0);
        }
    }

    /// The worker that sends for a port.
    fn way(&self, port: PortId) -> u16 {
        let way = self.ways.get(usize::from(port.0));
        way.copied().unwrap_or(NO_WORKER)
    }

    /// Puts a frame into the ring to another worker; `false` where there is no room, and it is lost.
    fn give(&mut self, to: u16, errand: Errand, frame: &Frame<'_>) -> bool {
        let giver = self.givers.get_mut(usize::from(to));
        let is_given = giver
            .and_then(Option::as_mut)
            .is_some_and(|giver| giver.put(errand.note(), frame.bytes()));
        self.counters.crowded += u64::from(!is_given);
        is_given
    }

    /// Lets the others have what was given to them, and wakes those that sleep.
    pub(super) fn publish(&mut self) {
        for (giver, bell) in self.givers.iter_mut().zip(&self.common.bells) {
            if giver.as_mut().is_some_and(Giver::publish) {
                bell.ring();
            }
        }
    }

    /// Says that the worker is about to sleep; `false` where it must not, as frames have come.
    pub(super) fn may_sleep(&mut self) -> bool {
        let bell = &self.common.bells[usize::from(self.number)];
        bell.sleeps.store(true, Ordering::SeqCst);
        let is_quiet = self.takers.iter_mut().flatten().all(Taker::is_empty);
        if !is_quiet {
            bell.sleeps.store(false, Ordering::SeqCst);
        }
        is_quiet
    }

    /// Says that the worker does not sleep any more, after it did.
    pub(super) fn wake(&mut self) {
        let bell = &self.common.bells[usize::from(self.number)];
        bell.sleeps.store(false, Ordering::SeqCst);
        bell.event.clear();
    }

    /// Returns true once a stopping worker that found nothing to do can be given nothing more. From the first
    /// call on, the worker takes no packets from its devices.
    pub(super) fn may_leave(&mut self) -> bool {
        let (round, has_said) = &mut self.round;
        if *round == ROUNDS {
            return true;
        }
        if !std::mem::replace(has_said, true) {
            self.common.left.fetch_add(1, Ordering::SeqCst);
        }
        let all = self.common.bells.len();
        if self.common.left.load(Ordering::SeqCst) >= (*round + 1) * all {
            *round += 1;
            *has_said = false;
        }
        *round == ROUNDS
    }

    /// True if the worker has begun to leave.
    pub(super) fn is_leaving(&self) -> bool {
        self.round != (0, false)
    }

    /// Each counter and its name.
    pub(super) fn counters(&self) -> [(&'static str, u64); 4] {
        let Counters {
            handed,
            sent_by_others,
            crowded,
            too_long,
        } = self.counters;
        [
            ("handed_over", handed),
            ("handed_over_to_send", sent_by_others),
            ("crowded", crowded),
            ("too_long_to_take", too_long),
        ]
    }

    /// A descriptor that becomes readable when the worker is woken, if the kernel takes part.
    pub(super) fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.common.bells[usize::from(self.number)].event.file()
    }

    /// The event that wakes the worker, for other threads.
    pub(super) fn event(&self) -> Arc<Event> {
        Arc::clone(&self.common.bells[usize::from(self.number)].event)
    }
}

impl Bell {
    fn new() -> io::Result<Self> {
        Ok(Self {
            sleeps: AtomicBool::new(false),
            event: Arc::new(Event::new()?),
        })
    }

    /// Wakes the worker, if it sleeps. To be called when what it is to see is published.
    fn ring(&self) {
        if self.sleeps.load(Ordering::SeqCst) && self.sleeps.swap(false, Ordering::SeqCst) {
            self.event.ring();
        }
    }
}

/// An event of the kernel's, which a worker waits for beside its devices.
#[cfg(not(test))]
pub(super) struct Event(OwnedFd);

#[cfg(not(test))]
impl Event {
    pub(super) fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self(eventfd(0, flags)?))
    }

    pub(super) fn ring(&self) {
        // It is full only where it has rung four thousand million times unheard.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// An event without the kernel, for tests.
#[cfg(test)]
pub(super) struct Event(Mutex<bool>, Condvar);

#[cfg(test)]
impl Event {
    #[expect(clippy::unnecessary_wraps, reason = "the kernel's may fail")]
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Mutex::new(false), Condvar::new()))
    }

    pub(super) fn ring(&self) {
        *self.0.lock().expect("no holder panics") = true;
        self.1.notify_all();
    }

    #[expect(clippy::unused_self, reason = "as the kernel's")]
    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn clear(&self) {
        *self.0.lock().expect("no holder panics") = false;
    }

    fn wait(&self) {
        let rung = self.0.lock().expect("no holder panics");
        drop(self.1.wait_while(rung, |rung| !*rung));
    }
}

/// Takes the frame that waits into an empty one; `false`, and the frame stays empty, where that is too small. An
/// empty frame has no headers to be read and is not sent, so its memory goes back to the device.
fn fill(frame: &mut Frame<'_>, taker: &mut Taker, waiting: Waiting, errand: Errand) -> bool {
    let Some(place) = frame.push_back(waiting.len) else {
        taker.take(&mut []);
        return false;
    };
    taker.take(place);
    match errand {
        Errand::Process(port) => frame.set_port(port),
        Errand::Send(port) => frame.set_verdict(Verdict::Forward(port)),
    }
    true
}

/// The worker that sends for each port, as one worker sees it: the worker itself where it has a queue of the
/// port, else the first that has one.
fn ways(own: u16, ports: &[OwnPorts]) -> Vec<u16> {
    let last = ports.iter().flatten().map(|port| usize::from(port.0)).max();
    let mut ways = vec![NO_WORKER; last.map_or(0, |last| last + 1)];
    let others = (0..).zip(ports).filter(|(number, _)| *number != own);
    for (number, ports) in others {
        for port in ports {
            let way = &mut ways[usize::from(port.0)];
            *way = number.min(*way);
        }
    }
    for port in ports.get(usize::from(own)).into_iter().flatten() {
        ways[usize::from(port.0)] = own;
    }
    ways
}

const _: () = assert!(BURST < NO_WORKER as usize);

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::num::NonZeroU16;

    use shuttle::sync::Arc;
    use shuttle::thread;
    use slb_core::{HEADROOM, Key};

    use super::super::mailbox::{Mailbox, Recipient};
    use super::*;

    fn steering(workers: u16) -> Steering {
        let workers = NonZeroU16::new(workers).expect("workers");
        Steering::new(workers, Key::new([1, 2]))
    }

    fn seats(ports: &[OwnPorts], words: usize) -> Vec<Seat> {
        let workers = ports.len() as u16;
        Seat::with_rings(steering(workers), ports, words).expect("no kernel takes part")
    }

    /// A frame in memory of its own, whose bytes are its number.
    fn frame(number: u8) -> Frame<'static> {
        let buffer = vec![number; HEADROOM + 20].leak();
        Frame::new(buffer, HEADROOM, 20).expect("it fits")
    }

    /// A device of nothing but memory, which keeps what is sent.
    #[derive(Default)]
    struct Sink {
        sent: Vec<(PortId, u8)>,
    }

    impl PacketIo<'static> for Sink {
        type Error = Infallible;

        fn receive(&mut self, _: &mut Burst<'static>) -> Result<usize, Infallible> {
            Ok(0)
        }

        fn transmit(&mut self, burst: &mut Burst<'static>) -> Result<usize, Infallible> {
            for frame in burst.drain().filter(|frame| !frame.is_empty()) {
                if let Verdict::Forward(port) = frame.verdict() {
                    self.sent.push((port, frame.bytes()[0]));
                }
            }
            Ok(0)
        }

        fn reserve(&mut self, spare: &mut Burst<'static>, n: usize) -> usize {
            for _ in 0..n {
                let buffer = vec![0; HEADROOM + 32].leak();
                let frame = Frame::new(buffer, HEADROOM, 0).expect("it fits");
                let _ = spare.push(frame);
            }
            n
        }
    }

    /// The frame is taken, whether the sleeper or the giver comes first.
    #[test]
    fn a_worker_that_sleeps_is_woken() {
        shuttle::check_random(
            || {
                let mut both = seats(&[vec![PortId(0)], vec![PortId(1)]], 64).into_iter();
                let (mut first, mut second) = (both.next().unwrap(), both.next().unwrap());
                let taking = thread::spawn(move || {
                    let (mut sink, mut taken) = (Sink::default(), 0);
                    while taken < 2 {
                        let (mut burst, mut to_send) = (Burst::new(), Burst::new());
                        taken += second.take(&mut burst, &mut to_send, &mut sink);
                        if taken < 2 && second.may_sleep() {
                            second.common.bells[1].event.wait();
                            second.wake();
                        }
                    }
                });
                for number in 0..2 {
                    assert!(first.give(1, Errand::Process(PortId(0)), &frame(number)));
                    first.publish();
                }
                taking.join().expect("it ends");
            },
            3000,
        );
    }

    struct Reader(u64);

    impl Recipient<u64, u64> for Reader {
        fn install(&mut self, snapshot: u64) -> u64 {
            std::mem::replace(&mut self.0, snapshot)
        }

        fn count(&mut self) -> u64 {
            0
        }
    }

    /// The life of a worker: from its device comes a frame for each of the others, which process it and send
    /// it back out of this worker's port. Then it is told to stop.
    fn live(mut seat: Seat, mailbox: &Mailbox<u64, u64>, workers: u16) -> (Vec<(PortId, u8)>, u64) {
        let own = seat.number();
        let (mut sink, mut reader) = (Sink::default(), Reader(0));
        let others = (0..workers).filter(|&other| other != own);
        let mut arrivals: Vec<u16> = others.collect();
        loop {
            let stops = mailbox.has_letters() && mailbox.read(&mut reader);
            if stops {
                mailbox.nudge(); // to be told so again
            }
            let mut moved = 0;
            if !seat.is_leaving()
                && let Some(owner) = arrivals.pop()
            {
                moved += 1;
                assert!(seat.give(owner, Errand::Process(PortId(own)), &frame(own as u8)));
            }
            let (mut burst, mut to_send) = (Burst::new(), Burst::new());
            moved += seat.take(&mut burst, &mut to_send, &mut sink);
            for frame in burst.iter_mut() {
                frame.set_verdict(Verdict::Reply);
            }
            seat.send(&mut burst);
            let _ = sink.transmit(&mut to_send);
            seat.publish();
            if moved == 0 && stops && seat.may_leave() {
                return (sink.sent, reader.0);
            }
            thread::yield_now();
        }
    }

    /// Workers that get a new configuration and stop while frames cross between them lose none of them.
    #[test]
    fn nothing_is_lost_when_all_stop() {
        const WORKERS: u16 = 3;
        shuttle::check_random(
            || {
                let ports: Vec<OwnPorts> = (0..WORKERS).map(|port| vec![PortId(port)]).collect();
                let running: Vec<_> = seats(&ports, 64)
                    .into_iter()
                    .map(|seat| {
                        let mailbox = Arc::new(Mailbox::new(0));
                        let own = Arc::clone(&mailbox);
                        let worker = thread::spawn(move || live(seat, &own, WORKERS));
                        (mailbox, worker)
                    })
                    .collect();
                for (mailbox, _) in &running {
                    mailbox.install(7, 1);
                }
                for (mailbox, _) in &running {
                    mailbox.stop();
                }
                for (number, (_, worker)) in (0..).zip(running) {
                    let (sent, snapshot) = worker.join().expect("it ends");
                    assert_eq!(snapshot, 7);
                    let back = (PortId(number), number as u8);
                    assert_eq!(sent, [back; WORKERS as usize - 1], "{number}");
                }
            },
            1000,
        );
    }

    #[test]
    fn who_has_no_queue_of_a_port_sends_by_who_has() {
        let (a, b, c) = (PortId(0), PortId(1), PortId(3));
        let ports = [vec![a], vec![a, b], vec![b, c]];
        let all: Vec<_> = (0..3).map(|own| ways(own, &ports)).collect();
        assert_eq!(all[0], [0, 1, NO_WORKER, 2]);
        assert_eq!(all[1], [1, 1, NO_WORKER, 2]);
        assert_eq!(all[2], [0, 2, NO_WORKER, 2]);
    }

    /// A frame that this worker has no memory for is lost and counted, and those behind it are not.
    #[test]
    fn a_frame_that_is_too_long_is_counted() {
        shuttle::check_random(
            || {
                let mut both = seats(&[vec![PortId(0)], vec![PortId(1)]], 64).into_iter();
                let (mut first, mut second) = (both.next().unwrap(), both.next().unwrap());
                let long = vec![7; HEADROOM + 100].leak();
                let long = Frame::new(long, HEADROOM, 100).expect("it fits");
                for frame in [&long, &frame(8)] {
                    assert!(first.give(1, Errand::Process(PortId(0)), frame));
                }
                first.publish();
                let (mut burst, mut to_send) = (Burst::new(), Burst::new());
                let taken = second.take(&mut burst, &mut to_send, &mut Sink::default());
                assert_eq!(taken, 2);
                let lens = burst.iter().map(Frame::len);
                assert_eq!(lens.collect::<Vec<_>>(), [0, 20]);
                assert!(second.counters().contains(&("too_long_to_take", 1)));
            },
            1,
        );
    }

    /// A frame that is flooded leaves by each port but its own, whoever has the port.
    #[test]
    fn floods_reach_the_ports_of_all_workers() {
        shuttle::check_random(
            || {
                let ports = [vec![PortId(0)], vec![PortId(1), PortId(2)]];
                let mut both = seats(&ports, 64).into_iter();
                let (mut first, mut second) = (both.next().unwrap(), both.next().unwrap());
                let mut burst = Burst::new();
                let mut flooded = frame(9);
                flooded.set_port(PortId(1));
                flooded.set_verdict(Verdict::Flood);
                let _ = burst.push(flooded);
                first.send(&mut burst);
                first.publish();
                assert_eq!(
                    burst[0].len(),
                    20,
                    "its own port is another than that of the frame"
                );
                let mut sink = Sink::default();
                let (mut none, mut to_send) = (Burst::new(), Burst::new());
                assert_eq!(second.take(&mut none, &mut to_send, &mut sink), 1);
                let _ = sink.transmit(&mut to_send);
                assert_eq!(sink.sent, [(PortId(2), 9)]);
            },
            1,
        );
    }
}
