//! A ring of frames from one worker to another, without locks, allocations and system calls on the
//! packet path.
//!
//! ```text
//!        head (the taker's)           tail (the giver's)
//!         ▼                            ▼
//!  ──────[ tag │ bytes… ][ tag │ bytes ]──────────────
//!         words, each an atomic: a frame takes as many as it needs
//! ```
//! Words are written and read one by one without order among them; the tail that is stored behind them, and
//! loaded before them, is what makes them the taker's. The head gives them back in the same way. Frames are
//! copied into the ring and out of it: their memory stays with the sockets that it belongs to.
//!
//! The giver publishes a burst at once, and the taker gives a burst back at once, so the lines of head and
//! tail cross between the CPUs once a burst. Tested with Shuttle.

use std::sync::Arc;

#[cfg(test)]
use shuttle::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
#[cfg(not(test))]
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes of a word.
const WORD: usize = 8;
/// Bits of a tag that are the length of the frame in bytes; the others are the giver's.
const LEN_BITS: u32 = 16;

/// Fields that only one side writes, on cache lines of their own: CPUs fetch them in pairs.
#[repr(align(128))]
struct Line(AtomicUsize);

struct Ring {
    /// A power of two of them.
    words: Box<[AtomicU64]>,
    /// The position of the oldest frame; grows without end, as the tail does.
    head: Line,
    tail: Line,
}

impl Ring {
    /// The words from a position on: up to the end of the ring, and from its beginning on.
    fn words_from(&self, position: usize, count: usize) -> (&[AtomicU64], &[AtomicU64]) {
        let at = position & (self.words.len() - 1);
        let (wrapped, first) = self.words.split_at(at);
        let here = count.min(first.len());
        (&first[..here], &wrapped[..(count - here).min(at)])
    }

    fn word(&self, position: usize) -> &AtomicU64 {
        &self.words[position & (self.words.len() - 1)]
    }
}

/// Makes a ring of so many words, a power of two.
///
/// # Panics
/// The number is no power of two.
pub(super) fn ring(words: usize) -> (Giver, Taker) {
    assert!(words.is_power_of_two(), "expected a power of two: {words}");
    let ring = Arc::new(Ring {
        words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        head: Line(AtomicUsize::new(0)),
        tail: Line(AtomicUsize::new(0)),
    });
    let giver = Giver {
        ring: Arc::clone(&ring),
        head: 0,
        tail: 0,
        published: 0,
    };
    (
        giver,
        Taker {
            ring,
            head: 0,
            tail: 0,
        },
    )
}

/// The sending end of a ring.
pub(super) struct Giver {
    ring: Arc<Ring>,
    /// The last seen head.
    head: usize,
    tail: usize,
    published: usize,
}

impl Giver {
    /// Puts a frame in, with 48 bits of the caller's; the taker sees it after [`publish`](Self::publish).
    /// `false`, and no change, where there is no room or the frame has more than 65 535 bytes.
    pub(super) fn put(&mut self, note: u64, frame: &[u8]) -> bool {
        let Ok(len) = u16::try_from(frame.len()) else {
            return false;
        };
        let count = 1 + frame.len().div_ceil(WORD);
        if !self.has_room(count) {
            self.head = self.ring.head.0.load(Ordering::Acquire);
            if !self.has_room(count) {
                return false;
            }
        }
        let tag = note << LEN_BITS | u64::from(len);
        self.ring.word(self.tail).store(tag, Ordering::Relaxed);
        let (first, wrapped) = self.ring.words_from(self.tail.wrapping_add(1), count - 1);
        let (before, behind) = frame.split_at(frame.len().min(first.len() * WORD));
        write(first, before);
        write(wrapped, behind);
        self.tail = self.tail.wrapping_add(count);
        true
    }

    fn has_room(&self, count: usize) -> bool {
        self.tail.wrapping_sub(self.head) + count <= self.ring.words.len()
    }

    /// Gives the taker what was put in; returns whether that is anything.
    pub(super) fn publish(&mut self) -> bool {
        if self.tail == self.published {
            return false;
        }
        self.published = self.tail;
        // Before the giver looks whether the taker sleeps: see `exchange`.
        self.ring.tail.0.store(self.tail, Ordering::SeqCst);
        true
    }
}

/// Writes bytes into words; the last word may have room for more.
#[inline]
fn write(words: &[AtomicU64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<WORD>();
    for (word, bytes) in words.iter().zip(whole) {
        word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
    }
    if let Some(word) = words.get(whole.len()) {
        let mut last = [0; WORD];
        last[..rest.len()].copy_from_slice(rest);
        word.store(u64::from_ne_bytes(last), Ordering::Relaxed);
    }
}

/// The receiving end of a ring.
pub(super) struct Taker {
    ring: Arc<Ring>,
    head: usize,
    /// The last seen tail.
    tail: usize,
}

/// A frame that is at the head of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The giver's bits.
    pub(super) note: u64,
    /// Length of the frame in bytes.
    pub(super) len: usize,
}

impl Taker {
    /// Returns true if no frame waits. The taker asks this before it sleeps, after it has announced
    /// that.
    pub(super) fn is_empty(&mut self) -> bool {
        self.tail = self.ring.tail.0.load(Ordering::SeqCst);
        self.tail == self.head
    }

    /// The oldest frame that waits.
    pub(super) fn first(&mut self) -> Option<Waiting> {
        if self.head == self.tail {
            self.tail = self.ring.tail.0.load(Ordering::Acquire);
            if self.head == self.tail {
                return None;
            }
        }
        let tag = self.ring.word(self.head).load(Ordering::Relaxed);
        Some(Waiting {
            note: tag >> LEN_BITS,
            len: (tag & ((1 << LEN_BITS) - 1)) as usize,
        })
    }

    /// Takes the first frame out, into `place`, which has its length; a shorter one gets its beginning.
    /// Does nothing where none [waits](Self::first). The giver has its room again after
    /// [`release`](Self::release).
    pub(super) fn take(&mut self, place: &mut [u8]) {
        let Some(waiting) = self.first() else { return };
        let count = waiting.len.div_ceil(WORD);
        let (first, wrapped) = self.ring.words_from(self.head.wrapping_add(1), count);
        let here = place.len().min(first.len() * WORD);
        let (before, behind) = place.split_at_mut(here);
        read(first, before);
        read(wrapped, behind);
        self.head = self.head.wrapping_add(1 + count);
    }

    /// Gives the room of what was taken back to the giver.
    pub(super) fn release(&self) {
        self.ring.head.0.store(self.head, Ordering::Release);
    }
}

/// Reads as many bytes as there is room for.
#[inline]
fn read(words: &[AtomicU64], place: &mut [u8]) {
    let (whole, rest) = place.as_chunks_mut::<WORD>();
    for (word, bytes) in words.iter().zip(&mut *whole) {
        *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
    }
    if let Some(word) = words.get(whole.len()).filter(|_| !rest.is_empty()) {
        let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        rest.copy_from_slice(&bytes[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use shuttle::thread;

    use super::*;

    /// A frame whose bytes follow from its number.
    fn frame(number: u64) -> Vec<u8> {
        let len = (number * 7 % 23) as usize;
        (0..len).map(|at| (number * 31) as u8 ^ at as u8).collect()
    }

    /// Takes what waits; returns the numbers that the frames were given with.
    fn drain(taker: &mut Taker) -> Vec<u64> {
        let mut all = Vec::new();
        while let Some(waiting) = taker.first() {
            let mut bytes = vec![0; waiting.len];
            taker.take(&mut bytes);
            assert_eq!(bytes, frame(waiting.note), "{waiting:?}");
            all.push(waiting.note);
        }
        taker.release();
        all
    }

    /// In thousands of interleavings of both sides, in a ring that is soon full, each frame that is
    /// put in comes out whole, once, and in order.
    #[test]
    fn frames_come_out_whole_and_in_order() {
        shuttle::check_random(
            || {
                let (mut giver, mut taker) = ring(8);
                let giving = thread::spawn(move || {
                    let mut given = Vec::new();
                    for number in 0..12 {
                        if giver.put(number, &frame(number)) {
                            given.push(number);
                        } else {
                            thread::yield_now();
                        }
                        if number % 3 == 2 {
                            giver.publish();
                        }
                    }
                    given
                });
                let mut taken = Vec::new();
                for _ in 0..4 {
                    taken.extend(drain(&mut taker));
                    thread::yield_now();
                }
                let given = giving.join().expect("it ends");
                taken.extend(drain(&mut taker));
                assert_eq!(taken, given);
                assert!(taker.is_empty());
            },
            3000,
        );
    }

    #[test]
    fn a_full_ring_takes_no_more_and_a_frame_that_is_too_long_never_fits() {
        shuttle::check_random(
            || {
                let (mut giver, mut taker) = ring(8);
                assert!(giver.put(3, &[1; 24]) && giver.put(4, &[2; 20]));
                assert!(!giver.put(5, &[]), "all eight words are used");
                assert!(giver.publish() && !giver.publish());
                assert_eq!(taker.first(), Some(Waiting { note: 3, len: 24 }));
                let mut short = [0; 5];
                taker.take(&mut short);
                assert_eq!(short, [1; 5]);
                assert!(!giver.put(5, &[]), "not released yet");
                taker.release();
                assert!(giver.put(5, &[3; 17]) && giver.publish());
                let mut all = [0; 20];
                taker.take(&mut all);
                assert_eq!(all, [2; 20]);
                let mut wrapped = [0; 17];
                taker.take(&mut wrapped);
                assert_eq!(wrapped, [3; 17]);
                taker.release();
                assert!(!giver.put(6, &[0; 64]) && !giver.put(7, &vec![0; 1 << 16]));
            },
            1,
        );
    }
}
