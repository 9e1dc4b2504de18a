//! Searches of a worker's tables between two bursts, for requests at the socket.
//!
//! ```text
//!  status thread                      worker, between two bursts
//!  a task, then a nudge            ─► its list of tasks
//!  empty pages                     ─► filled, a bounded number of places a step
//!  lines of text, back to empty    ◄─ full pages
//! ```
//! A worker never waits for a page: if none is empty, it continues with packets. While packets
//! arrive, searches take one fiftieth of its time; otherwise, all of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant as Clock};

use slb_core::list::{Ends, Entry, EntryState, Filter};
use slb_core::nat::Direction;
use slb_core::state::{Cursor, RECORD_MOST};
use slb_core::{DropReason, Frame, Instant, PortId, Verdict};

use super::capture::Tap;
use crate::balancer::Balancer;

/// The number of places visited in one step: some 32 KiB of a mux's table, 8 µs.
const STEP: usize = 1536;
/// Entries taken in one step.
const TAKEN: usize = 64;
/// Entries of a page.
const PAGE: usize = 1024;
/// The number of pages that a worker and a client share.
const PAGES: usize = 16;
/// A page with few entries is sent after this many places, so that the client sees them before the
/// end.
const PLACES: u64 = 1 << 22;
/// While packets arrive, the pause after a step, as a multiple of its duration.
const SHARE: u32 = 49;

/// Work for a worker between two bursts.
pub(super) enum Task {
    List(Box<List>),
    Capture(Box<Tap>),
    /// Copy the last dropped packets into the given memory.
    Drops(Vec<Dropped>, SyncSender<Vec<Dropped>>),
}

/// The number of dropped packets kept for each reason.
const KEPT: usize = 16;
/// The number of bytes kept of each packet.
const HEAD: usize = 128;
/// The maximum number of packets kept of one burst.
const OF_BURST: usize = 8;
/// The maximum number of packets kept for all reasons.
pub(super) const DROPS: usize = KEPT * DropReason::COUNT;

/// A packet that was dropped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    at: Instant,
    /// The time since the drop, filled in for a request.
    pub(super) age: Duration,
    pub(super) reason: DropReason,
    pub(super) port: PortId,
    /// Bytes of the frame.
    pub(super) len: u32,
    kept: u8,
    head: [u8; HEAD],
}

impl Dropped {
    /// Returns the first bytes of the frame when it was dropped.
    pub(super) fn bytes(&self) -> &[u8] {
        self.head.get(..self.kept.into()).unwrap_or_default()
    }
}

/// The last dropped packets, a few for each reason, so that a flood for one reason does not hide
/// others.
#[derive(Debug)]
struct Drops {
    /// A ring of dropped packets for each reason.
    kept: Vec<[Option<Dropped>; KEPT]>,
    next: [usize; DropReason::COUNT],
}

impl Drops {
    fn new() -> Self {
        Self {
            kept: vec![[None; KEPT]; DropReason::COUNT],
            next: [0; DropReason::COUNT],
        }
    }

    fn note(&mut self, now: Instant, frame: &Frame<'_>, reason: DropReason) {
        let place = reason as usize;
        let (Some(ring), Some(next)) = (self.kept.get_mut(place), self.next.get_mut(place)) else {
            return;
        };
        let bytes = frame.bytes();
        let kept = bytes.len().min(HEAD);
        let mut head = [0; HEAD];
        head[..kept].copy_from_slice(&bytes[..kept]);
        ring[*next] = Some(Dropped {
            at: now,
            age: Duration::ZERO,
            reason,
            port: frame.port(),
            len: bytes.len() as u32,
            kept: kept as u8,
            head,
        });
        *next = (*next + 1) % KEPT;
    }
}

/// A [`Filter`] with memory of its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) outside: Ends,
    pub(super) inside: Ends,
    pub(super) protocol: Option<u8>,
    pub(super) state: Option<EntryState>,
    pub(super) opener: Option<Direction>,
    pub(super) backends: Option<Vec<u64>>,
    pub(super) rules: Option<Vec<u64>>,
    pub(super) port: Option<PortId>,
}

impl Wanted {
    fn filter(&self) -> Filter<'_> {
        Filter {
            outside: self.outside,
            inside: self.inside,
            protocol: self.protocol,
            state: self.state,
            opener: self.opener,
            backends: self.backends.as_deref(),
            rules: self.rules.as_deref(),
            port: self.port,
        }
    }
}

/// A part of a worker's entries.
#[derive(Debug)]
pub(super) struct Page {
    /// The worker that fills it.
    worker: usize,
    pub(super) entries: Vec<Entry>,
    /// The [records](slb_core::state) of the entries, if they were asked for.
    pub(super) records: Vec<u8>,
    /// Places that were looked at for it.
    pub(super) places: u64,
    pub(super) is_last: bool,
}

/// A list that a worker makes.
pub(super) struct List {
    wanted: Wanted,
    has_records: bool,
    next: Option<Cursor>,
    page: Option<Page>,
    empty: Receiver<Page>,
    filled: SyncSender<Page>,
    is_wanted: Arc<AtomicBool>,
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Done,
    /// All pages are full.
    Starved,
    Over,
}

impl List {
    fn step(&mut self, balancer: &Balancer) -> Step {
        if !self.is_wanted.load(Ordering::Relaxed) {
            return Step::Over;
        }
        let page = match self.page.take().map_or_else(|| self.empty.try_recv(), Ok) {
            Ok(page) => self.page.insert(page),
            Err(TryRecvError::Empty) => return Step::Starved,
            Err(TryRecvError::Disconnected) => return Step::Over,
        };
        let Some(cursor) = self.next else {
            return Step::Over;
        };
        let Page {
            entries, records, ..
        } = page;
        let room = (entries.capacity() - entries.len()).min(TAKEN);
        let mut left = room;
        let has_records = self.has_records;
        let listed = balancer.list(cursor, STEP, &self.wanted.filter(), &mut |place, entry| {
            entries.push(*entry);
            if has_records {
                let mut record = [0; RECORD_MOST];
                let exported = balancer.export(place, &mut record);
                records.extend(&record[..exported.len]);
            }
            left -= 1;
            left > 0
        });
        page.places += listed.places as u64;
        self.next = listed.next;
        page.is_last = listed.next.is_none();
        let is_full = page.entries.len() == page.entries.capacity() || page.places >= PLACES;
        if !page.is_last && !is_full {
            return Step::Done;
        }
        let is_last = page.is_last;
        let sent = self.page.take().map(|page| self.filled.try_send(page));
        match sent {
            Some(Ok(())) if !is_last => Step::Done,
            _ => Step::Over,
        }
    }
}

/// The search of a worker.
pub(super) struct Looker {
    lists: Vec<List>,
    /// The next one to make a step.
    turn: usize,
    /// The time of the next step while packets come.
    due: Clock,
    /// Returns true if no list has an empty page.
    is_starved: bool,
    tap: Option<Box<Tap>>,
    drops: Drops,
    /// The zero of the worker's clock.
    begin: Clock,
}

impl Looker {
    /// Makes the lists of a worker whose clock began at `begin`.
    pub(super) fn new(begin: Clock) -> Self {
        Self {
            lists: Vec::new(),
            turn: 0,
            due: Clock::now(),
            is_starved: false,
            tap: None,
            drops: Drops::new(),
            begin,
        }
    }

    #[cold]
    pub(super) fn take(&mut self, task: Task) {
        match task {
            Task::List(list) => self.lists.push(*list),
            Task::Capture(mut tap) => {
                tap.set_begin(self.begin);
                self.tap = Some(tap);
            }
            Task::Drops(mut into, tell) => {
                let now = self.begin.elapsed();
                let all = self.drops.kept.iter().flatten().flatten();
                into.extend(all.take(into.capacity()).map(|dropped| Dropped {
                    age: now.saturating_sub(Duration::from_nanos(dropped.at.as_nanos())),
                    ..*dropped
                }));
                let _ = tell.try_send(into);
            }
        }
    }

    /// Returns true if there is anything to look for.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        !self.lists.is_empty()
    }

    /// The capture that goes on, if there is one.
    #[inline]
    pub(super) fn tap(&mut self) -> Option<&mut Tap> {
        self.tap.as_deref_mut()
    }

    /// Looks after what is to be done from time to time: keeps dropped packets of a burst, and gives copies on.
    #[inline(never)]
    pub(super) fn sweep(&mut self, now: Instant, burst: &[Frame<'_>]) {
        let mut kept = 0;
        for frame in burst {
            if let Verdict::Drop(reason) = frame.verdict()
                && kept < OF_BURST
            {
                self.drops.note(now, frame, reason);
                kept += 1;
            }
        }
        if let Some(tap) = &mut self.tap {
            tap.flush();
            if !tap.is_wanted() {
                self.tap = None;
            }
        }
    }

    /// Returns true if it can continue at once.
    pub(super) fn is_ready(&self) -> bool {
        self.is_busy() && !self.is_starved
    }

    /// Makes a step of one list, if that is due.
    #[cold]
    #[inline(never)]
    pub(super) fn step(&mut self, balancer: &Balancer, is_idle: bool) {
        let begin = Clock::now();
        if !is_idle && begin < self.due {
            return;
        }
        self.is_starved = true;
        for _ in 0..self.lists.len() {
            self.turn = (self.turn + 1) % self.lists.len();
            match self.lists[self.turn].step(balancer) {
                Step::Starved => continue,
                Step::Over => drop(self.lists.swap_remove(self.turn)),
                Step::Done => {}
            }
            self.is_starved = false;
            break;
        }
        let end = Clock::now();
        self.due = end + (end - begin) * SHARE;
    }
}

/// The lists of all workers, as whoever asked sees them. Dropped, it has the workers end them.
pub(super) struct Pages {
    full: Receiver<Page>,
    /// The channel that takes each worker's empty pages; `None` after its last page.
    empty: Vec<Option<Sender<Page>>>,
    is_wanted: Arc<AtomicBool>,
}

/// The reason why there is no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPage {
    /// No page has come yet.
    Yet,
    /// All came.
    Left,
    /// A worker ended before its last one.
    Ended,
}

impl Pages {
    /// Lists for `workers` workers, which `assign` gives to the one of each number.
    pub(super) fn of(
        workers: usize,
        wanted: &Wanted,
        has_records: bool,
        mut assign: impl FnMut(usize, Task),
    ) -> Self {
        let is_wanted = Arc::new(AtomicBool::new(true));
        let (filled, full) = sync_channel(workers * PAGES);
        let mut senders = Vec::new();
        for worker in 0..workers {
            let (sender, empty) = channel();
            for _ in 0..PAGES {
                let records = if has_records { PAGE * RECORD_MOST } else { 0 };
                let page = Page {
                    worker,
                    entries: Vec::with_capacity(PAGE),
                    records: Vec::with_capacity(records),
                    places: 0,
                    is_last: false,
                };
                let _ = sender.send(page);
                if has_records {
                    break; // a few entries are asked for
                }
            }
            senders.push(Some(sender));
            assign(
                worker,
                Task::List(Box::new(List {
                    wanted: wanted.clone(),
                    has_records,
                    next: Some(Cursor::START),
                    page: None,
                    empty,
                    filled: filled.clone(),
                    is_wanted: Arc::clone(&is_wanted),
                })),
            );
        }
        Self {
            full,
            empty: senders,
            is_wanted,
        }
    }

    /// The next page, waited for as long as `most`.
    pub(super) fn next(&mut self, most: Duration) -> Result<Page, NoPage> {
        use std::sync::mpsc::RecvTimeoutError;
        if self.empty.iter().all(Option::is_none) {
            return Err(NoPage::Left);
        }
        match self.full.recv_timeout(most) {
            Ok(page) => {
                if page.is_last {
                    self.empty[page.worker] = None;
                }
                Ok(page)
            }
            Err(RecvTimeoutError::Timeout) => Err(NoPage::Yet),
            Err(RecvTimeoutError::Disconnected) => Err(NoPage::Ended),
        }
    }

    /// Gives a page back to be filled again.
    pub(super) fn give_back(&mut self, mut page: Page) {
        if let Some(Some(sender)) = self.empty.get(page.worker) {
            page.entries.clear();
            page.records.clear();
            page.places = 0;
            // A worker that has ended says so by its end of the other channel.
            let _ = sender.send(page);
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.is_wanted.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use slb_control::Config;
    use slb_core::HEADROOM;

    use super::*;

    /// A mux of the example with so many flows, from ports of 192.0.2.1 on.
    fn mux(flows: u16) -> Balancer {
        let text = include_str!("../../../examples/web.toml");
        let config = Config::parse("web.toml", text).expect("a good configuration");
        let mut balancer = Balancer::new(&config).expect("enough memory");
        for port in 1..=flows {
            let mut packet = Vec::new();
            etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1])
                .ipv4([192, 0, 2, 1], [20, 20, 20, 100], 64)
                .tcp(port, 80, 1, 1000)
                .syn()
                .write(&mut packet, &[])
                .expect("a packet");
            let mut buffer = vec![0; 512];
            buffer[HEADROOM..][..packet.len()].copy_from_slice(&packet);
            let frame = Frame::new(&mut buffer, HEADROOM, packet.len()).expect("it fits");
            balancer.process(Instant::from_secs(1), &mut [frame], &mut ());
        }
        balancer
    }

    /// Lists of one worker that has no thread.
    fn pages(wanted: &Wanted, looker: &mut Looker) -> Pages {
        Pages::of(1, wanted, false, |_, task| looker.take(task))
    }

    #[test]
    fn every_flow_comes_on_a_page() {
        let (balancer, mut looker) = (mux(5000), Looker::new(Clock::now()));
        let mut pages = pages(&Wanted::default(), &mut looker);
        let mut ports = Vec::new();
        loop {
            looker.step(&balancer, true);
            match pages.next(Duration::ZERO) {
                Ok(page) => {
                    ports.extend(page.entries.iter().map(|entry| entry.outside.source_port));
                    pages.give_back(page);
                }
                Err(NoPage::Yet) => {}
                Err(NoPage::Left) => break,
                Err(NoPage::Ended) => panic!("{} flows", ports.len()),
            }
        }
        ports.sort_unstable();
        assert_eq!(ports, (1..=5000).collect::<Vec<_>>());
        assert!(!looker.is_busy());
    }

    #[test]
    fn a_worker_waits_for_no_reader_and_notices_that_one_is_gone() {
        let (balancer, mut looker) = (mux(20_000), Looker::new(Clock::now()));
        let pages = pages(&Wanted::default(), &mut looker);
        for _ in 0..2000 {
            looker.step(&balancer, true);
        }
        // All pages are full: there is nothing to do until one comes back.
        assert!(looker.is_busy() && !looker.is_ready());
        drop(pages);
        looker.step(&balancer, true);
        assert!(!looker.is_busy());
    }

    #[test]
    fn one_list_holds_no_other_up() {
        let (balancer, mut looker) = (mux(20_000), Looker::new(Clock::now()));
        let all = pages(&Wanted::default(), &mut looker);
        for _ in 0..2000 {
            looker.step(&balancer, true);
        }
        let few = Wanted {
            outside: Ends {
                source_port: Some(77),
                ..Ends::default()
            },
            ..Wanted::default()
        };
        let mut few = pages(&few, &mut looker);
        let mut found = 0;
        loop {
            looker.step(&balancer, true);
            match few.next(Duration::ZERO) {
                Ok(page) => found += page.entries.len(),
                Err(NoPage::Yet) => {}
                Err(no) => break assert_eq!(no, NoPage::Left),
            }
        }
        assert_eq!(found, 1);
        drop(all);
    }

    #[test]
    fn while_packets_come_a_step_waits_for_its_turn() {
        let (balancer, mut looker) = (mux(100), Looker::new(Clock::now()));
        let pages = pages(&Wanted::default(), &mut looker);
        looker.step(&balancer, false);
        let places = |looker: &Looker| looker.lists[0].page.as_ref().map(|page| page.places);
        let after_one = places(&looker);
        assert_eq!(after_one, Some(STEP as u64));
        looker.due = Clock::now() + Duration::from_secs(3600);
        looker.step(&balancer, false);
        assert_eq!(places(&looker), after_one);
        looker.step(&balancer, true);
        assert!(places(&looker) > after_one, "nothing else is to be done");
        drop(pages);
    }

    #[test]
    fn a_worker_that_ends_leaves_no_list_open() {
        let (balancer, mut looker) = (mux(100), Looker::new(Clock::now()));
        let mut pages = pages(&Wanted::default(), &mut looker);
        looker.step(&balancer, true);
        drop(looker);
        assert!(matches!(pages.next(Duration::ZERO), Err(NoPage::Ended)));
    }
}
