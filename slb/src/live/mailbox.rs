//! Messages between a worker and other threads, without waiting on the packet path.
//!
//! ```text
//!  control, status                          worker, once a burst
//!  letters under the lock, then the flag ─► flag? ─► lowered, then the letters under the lock
//!  wait, for a second at most            ◄─ answered
//! ```
//! The flag is raised after the letters are in place, and lowered before they are read, so a letter
//! in between raises it again. Tested with Shuttle, which runs the threads in thousands of
//! interleavings.

use std::sync::Arc;
use std::time::Duration;

use slb_core::state::{Cursor, Exported, Imported, RECORD_MOST};

#[cfg(test)]
use shuttle::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::sync::PoisonError;
#[cfg(not(test))]
use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// The maximum time to wait for a worker.
const PATIENCE: Duration = Duration::from_secs(1);

/// A mailbox for snapshots `S`, counters of a worker, `C`, and records to take over, `I`.
pub(super) struct Mailbox<S, C, I = ()> {
    /// True if there is a message for the worker: tested for each burst, unlike the lock.
    attention: AtomicBool,
    /// The number of times that the worker has checked the mailbox.
    beats: AtomicU64,
    letters: Mutex<Letters<S, C, I>>,
    answered: Condvar,
}

/// Memory that a worker writes records into, a few between two bursts.
pub(super) struct Fill {
    buffer: Vec<u8>,
    len: usize,
    /// The worker's next position; `None` if everything is written.
    next: Option<Cursor>,
    /// The vm whose connections are written, by one of its backends; `None` for all connections.
    vm: Option<Arc<str>>,
}

impl Fill {
    /// Starts a fill from the beginning.
    pub(super) fn new(buffer: Vec<u8>) -> Self {
        Self {
            buffer,
            len: 0,
            next: Some(Cursor::START),
            vm: None,
        }
    }

    /// Asks for the connections of one vm only, named by a backend of the vm.
    pub(super) fn of_vm(self, vm: Option<Arc<str>>) -> Self {
        Self { vm, ..self }
    }

    /// Returns the records that were written.
    pub(super) fn records(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    /// Returns the memory for the next part; `None` after the last one.
    pub(super) fn again(self) -> Option<Self> {
        self.next.is_some().then_some(Self { len: 0, ..self })
    }

    /// Has a bounded number of records written; returns true if there is room for more, and more to
    /// write.
    pub(super) fn step(
        &mut self,
        export: impl FnOnce(Option<&str>, Cursor, &mut [u8]) -> Exported,
    ) -> bool {
        let room = self.buffer.get_mut(self.len..).unwrap_or_default();
        let (Some(next), true) = (self.next, room.len() >= RECORD_MOST) else {
            return false;
        };
        let exported = export(self.vm.as_deref(), next, room);
        self.len += exported.len;
        self.next = exported.next;
        self.next.is_some()
    }
}

struct Letters<S, C, I> {
    /// Memory to write records into, and such that was filled.
    to_fill: Option<Fill>,
    filled: Option<Fill>,
    /// Records to take over, and what became of those that were.
    to_import: Option<I>,
    imported: Option<Imported>,

    /// A snapshot to put in place, and its generation.
    next: Option<(S, u64)>,
    stop: bool,
    /// The numbers of requests for counters, and of answers.
    asked: u64,
    given: u64,
    counted: Option<C>,
    /// Snapshots that the worker no longer uses, and does not free itself.
    old: Vec<S>,
    /// The generation that it has in place.
    generation: u64,
    /// True if the worker has ended.
    is_over: bool,
}

/// The worker.
pub(super) trait Recipient<S, C, I = ()> {
    /// Installs a snapshot, and returns the old one.
    fn install(&mut self, snapshot: S) -> S;
    /// Returns the worker's counters until now.
    fn count(&mut self) -> C;
    /// Writes records into memory from now on, and [gives it back](Mailbox::give_filled).
    fn fill(&mut self, _: Fill) {}
    /// Takes records over from now on, and [says what became of them](Mailbox::give_imported).
    fn import(&mut self, _: I) {}
}

impl<S, C: Clone, I> Mailbox<S, C, I> {
    /// Makes the mailbox of a worker that has a generation in place.
    pub(super) fn new(generation: u64) -> Self {
        Self {
            attention: AtomicBool::new(false),
            beats: AtomicU64::new(0),
            letters: Mutex::new(Letters {
                to_fill: None,
                filled: None,
                to_import: None,
                imported: None,
                next: None,
                stop: false,
                asked: 0,
                given: 0,
                counted: None,
                old: Vec::new(),
                generation,
                is_over: false,
            }),
            answered: Condvar::new(),
        }
    }

    fn letters(&self) -> MutexGuard<'_, Letters<S, C, I>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the worker install a snapshot between two bursts.
    pub(super) fn install(&self, snapshot: S, generation: u64) {
        let mut letters = self.letters();
        letters.next = Some((snapshot, generation));
        letters.old.clear();
        self.attention.store(true, Ordering::Release);
    }

    /// Waits until the worker has installed it, for at most a second.
    pub(super) fn wait_for(&self, generation: u64) -> bool {
        let letters = self.letters();
        let waits =
            |letters: &mut Letters<S, C, I>| letters.generation < generation && !letters.is_over;
        match self.answered.wait_timeout_while(letters, PATIENCE, waits) {
            Ok((letters, _)) => letters.generation >= generation,
            Err(_) => false,
        }
    }

    /// Asks for the worker's counters, and waits for them, for a second at most.
    pub(super) fn count(&self) -> Option<C> {
        let mut letters = self.letters();
        letters.asked += 1;
        let number = letters.asked;
        self.attention.store(true, Ordering::Release);
        let waits = |letters: &mut Letters<S, C, I>| letters.given < number && !letters.is_over;
        let waited = self.answered.wait_timeout_while(letters, PATIENCE, waits);
        let (letters, timeout) = waited.ok()?;
        let is_answered = !timeout.timed_out();
        is_answered.then(|| letters.counted.clone()).flatten()
    }

    /// Has the worker write records into memory.
    pub(super) fn fill(&self, fill: Fill) {
        self.letters().to_fill = Some(fill);
        self.attention.store(true, Ordering::Release);
    }

    /// The worker gives back what it has filled.
    #[cold]
    pub(super) fn give_filled(&self, fill: Fill) {
        self.letters().filled = Some(fill);
    }

    /// Returns the fill that the worker completed, if it has. Does not block.
    pub(super) fn take_filled(&self) -> Option<Fill> {
        self.letters().filled.take()
    }

    /// Has the worker take records over, a few between two bursts.
    pub(super) fn import(&self, records: I) {
        self.letters().to_import = Some(records);
        self.attention.store(true, Ordering::Release);
    }

    /// The worker says what became of records that it took over.
    #[cold]
    pub(super) fn give_imported(&self, imported: Imported) {
        self.letters().imported = Some(imported);
    }

    /// Returns the result of an import once the worker is done with it; does not wait.
    pub(super) fn take_imported(&self) -> Option<Imported> {
        self.letters().imported.take()
    }

    /// Has the worker look at what else there is for it.
    pub(super) fn nudge(&self) {
        self.attention.store(true, Ordering::Release);
    }

    /// Returns how many times the worker has looked into it: grows after a nudge, unless the worker
    /// is stuck. Does not block.
    pub(super) fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Has the worker end.
    pub(super) fn stop(&self) {
        self.letters().stop = true;
        self.attention.store(true, Ordering::Release);
    }

    pub(super) fn is_over(&self) -> bool {
        self.letters().is_over
    }

    /// Returns the counters that the worker gave last.
    pub(super) fn take_counted(&self) -> Option<C> {
        self.letters().counted.take()
    }

    /// Returns true if there is a message for the worker.
    #[inline]
    pub(super) fn has_letters(&self) -> bool {
        self.attention.load(Ordering::Acquire)
    }

    /// The worker reads its letters: installs a snapshot, returning the old one, and gives counters
    /// on request. Returns true if the worker is to stop.
    #[cold]
    pub(super) fn read(&self, worker: &mut impl Recipient<S, C, I>) -> bool {
        self.attention.store(false, Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Relaxed);
        let mut letters = self.letters();
        if let Some((next, generation)) = letters.next.take() {
            letters.generation = generation;
            let old = worker.install(next);
            letters.old.push(old);
        }
        if let Some(fill) = letters.to_fill.take() {
            worker.fill(fill);
        }
        if let Some(records) = letters.to_import.take() {
            worker.import(records);
        }
        if letters.given < letters.asked {
            letters.given = letters.asked;
            letters.counted = Some(worker.count());
        }
        self.answered.notify_all();
        letters.stop
    }

    /// The worker says what it counted in the end.
    pub(super) fn leave(&self, counted: C) {
        self.letters().counted = Some(counted);
    }

    /// Returns a guard that marks the worker as ended when it is dropped, also by a panic, so that
    /// no thread goes on as if packets were still moved.
    pub(super) fn ends_with_this(&self) -> Ending<'_, S, C, I> {
        Ending(self)
    }
}

/// See [`Mailbox::ends_with_this`].
pub(super) struct Ending<'m, S, C, I>(&'m Mailbox<S, C, I>);

impl<S, C, I> Drop for Ending<'_, S, C, I> {
    fn drop(&mut self) {
        let letters = self.0.letters.lock();
        letters.unwrap_or_else(PoisonError::into_inner).is_over = true;
        self.0.answered.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use shuttle::sync::Arc;
    use shuttle::thread;

    use super::*;

    /// The snapshots that a worker had, in their order, and how often it counted.
    struct Worker(Vec<u64>, u64);

    impl Recipient<u64, u64> for Worker {
        fn install(&mut self, snapshot: u64) -> u64 {
            let old = self.0.last().copied().unwrap_or_default();
            self.0.push(snapshot);
            old
        }

        fn count(&mut self) -> u64 {
            self.1 += 1;
            self.1
        }
    }

    /// Takes letters as they come, until it is to stop.
    fn work(mailbox: &Mailbox<u64, u64>) -> Vec<u64> {
        let mut worker = Worker(vec![0], 0);
        let _ends = mailbox.ends_with_this();
        while !(mailbox.has_letters() && mailbox.read(&mut worker)) {
            thread::yield_now();
        }
        mailbox.leave(worker.1);
        worker.0
    }

    /// Two other threads install and count at once, in thousands of orders: every message is read,
    /// every question is answered, and no thread waits for ever.
    #[test]
    fn no_letter_is_lost_and_no_question_unanswered() {
        shuttle::check_random(
            || {
                let mailbox = Arc::new(Mailbox::new(0));
                let worker = thread::spawn({
                    let mailbox = Arc::clone(&mailbox);
                    move || work(&mailbox)
                });
                let counting = thread::spawn({
                    let mailbox = Arc::clone(&mailbox);
                    move || {
                        let first = mailbox.count().expect("an answer");
                        let second = mailbox.count().expect("an answer");
                        assert!(second > first, "{first}, then {second}");
                    }
                });
                for generation in 1..=3 {
                    mailbox.install(generation, generation);
                    // Not each one is waited for: then the newest counts.
                    if generation != 2 {
                        assert!(mailbox.wait_for(generation));
                    }
                }
                counting.join().expect("it ends");
                mailbox.stop();
                let had = worker.join().expect("it ends");
                assert!(had.is_sorted() && had.first() == Some(&0) && had.last() == Some(&3));
                assert!(had.contains(&1), "it was waited for");
                assert!(mailbox.is_over() && mailbox.take_counted().is_some());
            },
            3000,
        );
    }

    /// The end of a worker wakes the threads that wait for it.
    #[test]
    fn the_end_wakes_who_waits() {
        shuttle::check_random(
            || {
                let mailbox = Arc::new(Mailbox::<u64, u64>::new(0));
                let waiting = thread::spawn({
                    let mailbox = Arc::clone(&mailbox);
                    move || (mailbox.wait_for(1), mailbox.count())
                });
                drop(mailbox.ends_with_this());
                assert_eq!(waiting.join().expect("it ends"), (false, None));
            },
            1000,
        );
    }

    /// A worker that panics, here while it reads its letters, has ended too.
    #[test]
    fn a_panic_is_an_end() {
        struct Breaks;
        impl Recipient<u64, u64> for Breaks {
            fn install(&mut self, _: u64) -> u64 {
                std::panic::resume_unwind(Box::new("without a message"))
            }

            fn count(&mut self) -> u64 {
                0
            }
        }
        shuttle::check_random(
            || {
                let mailbox = Arc::new(Mailbox::<u64, u64>::new(0));
                let worker = thread::spawn({
                    let mailbox = Arc::clone(&mailbox);
                    move || {
                        let work = std::panic::AssertUnwindSafe(|| {
                            let _ends = mailbox.ends_with_this();
                            while !(mailbox.has_letters() && mailbox.read(&mut Breaks)) {
                                thread::yield_now();
                            }
                        });
                        std::panic::catch_unwind(work).is_err()
                    }
                });
                mailbox.install(1, 1);
                mailbox.wait_for(1);
                assert!(worker.join().expect("it is caught"), "it panicked");
                assert!(mailbox.is_over() && mailbox.count().is_none());
            },
            1000,
        );
    }
}
