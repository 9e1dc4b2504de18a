//! A worker's loop: packets from its devices through its balancer, between letters, orders and timers.

use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant as Clock};
use std::{io, thread};

use slb_control::probe::WorkerEnd;
use slb_core::{BURST, Burst, DropReason, Instant, PortId};
use slb_io_afxdp::AfXdp;
use slb_io_tun::{Device, Tun};
use tracing::{debug, error, warn};

use super::devices::{LiveIo, ToKernel};
use super::{Counted, Letterbox, Next, Order, Sockets, Work};
use crate::Failure;
use crate::balancer::Balancer;
use crate::live::device::{Queues, TunQueue};
use crate::live::exchange::{Event, Seat};
use crate::live::handed::{Devices, OpenCards};
use crate::live::look::{Looker, Task};
use crate::live::mailbox::{Fill, Recipient};
use crate::live::offload::Offload;
use crate::live::state::Importing;
use crate::live::{WAIT, memory_for, memory_needs, probes};
use crate::report::Tally;

/// Frames kept ready for packets of the balancer's own.
const SPARE: usize = 16;

/// Frames of a worker's memory that are no device's: bursts on their way, and packets of the balancer's own.
const FRAMES: usize = 4 * BURST + SPARE;

/// Polls without a packet before the thread waits: packets seldom come alone.
const IDLE_POLLS: u32 = 64;

/// The time for which a worker still takes packets after it was told to stop.
const LAST: Duration = Duration::from_secs(1);

/// The interval of timer checks while packets come.
const SWEEP: Duration = Duration::from_micros(200);

/// The reason why packets are no longer moved.
pub(super) enum End {
    Stopped,
    Reopen(Queues, Sender<Result<Sockets, Failure>>),
}

/// The parts of a worker that stay when its devices change.
pub(super) struct Moving<'w> {
    pub(super) balancer: Balancer,
    pub(super) mailbox: &'w Letterbox,
    pub(super) orders: &'w Receiver<Order>,
    pub(super) tasks: &'w Receiver<Task>,
    pub(super) looker: Looker,
    /// True in rounds that look at timers and keep dropped packets.
    pub(super) is_sweep: bool,
    pub(super) waits: bool,
    pub(super) probes: Option<WorkerEnd>,
    pub(super) begin: Clock,
    pub(super) work: Work,
    /// The counters of devices that are closed.
    pub(super) earlier: Vec<(&'static str, u64)>,
    /// TUN devices, which some may go with when they are closed: those that stay are not.
    pub(super) held: Vec<(TunQueue, Device)>,
    pub(super) names: Vec<String>,
    pub(super) is_proxy: bool,
    pub(super) offload: Offload,
    /// Memory to write records into.
    pub(super) fill: Option<Fill>,
    /// The worker's index among those that share connections.
    pub(super) seat: Option<Seat>,
    /// Records that are taken over.
    pub(super) importing: Option<Importing>,
    /// Wakes this worker when it is to end.
    pub(super) event: &'w Event,
    /// True if another process may take over, and with it the memory of packets.
    pub(super) keeps_state: bool,
    /// Devices that an earlier process left open for this worker.
    pub(super) given: Devices,
    /// Devices that this worker leaves open.
    pub(super) left: Devices,
    /// True if another process goes on with the devices.
    pub(super) hands_over: bool,
}

impl Moving<'_> {
    /// Opens queues, tells so, and moves their packets.
    pub(super) fn on(
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
                            warn!("handed-over sockets are opened again: {error}");
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

    /// Returns the devices that another process goes on with, if one does, and closes the others.
    pub(super) fn leave_devices(&mut self) -> Devices {
        let held = std::mem::take(&mut self.held).into_iter();
        if self.hands_over {
            self.left.tun = held
                .map(|(queue, device)| (queue.key(), device.into()))
                .collect();
        }
        std::mem::take(&mut self.left)
    }

    /// Moves nothing but what other workers hand over, and goes on reading letters.
    pub(super) fn on_none(&mut self) -> End {
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
    pub(super) fn send<'m>(
        &mut self,
        burst: &mut Burst<'m>,
        io: &mut impl LiveIo<'m>,
    ) -> io::Result<()> {
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
    pub(super) fn import(&mut self, now: Instant) {
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
        let mut tally = Tally::of(&self.balancer);
        let too_long = all.iter().find(|(name, _)| *name == "too_long");
        let too_long = too_long.map_or(0, |&(_, count)| count);
        tally.count_unseen(DropReason::TooLong, too_long);
        Counted {
            tally,
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
