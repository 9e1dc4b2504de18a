//! The sweep, which collects expired flows a few buckets at a time.

use super::Table;
use super::bucket::{AHEAD, OCCUPIED, SLOTS, is_alive};
use crate::flow::key::Addresses;
use crate::flow::{Ticks, tick_of};
use crate::time::Instant;

/// Buckets swept in one go.
pub(super) const SWEEP_STEP: usize = 256;

/// The maximum number of sweep steps in one call.
const SWEEP_STEPS: usize = 8;

/// The duration of a round over the table.
pub(super) const SWEEP_ROUND_NANOS: u64 = 16_000_000_000;

/// A round that has taken longer than this many ticks (6 minutes) is finished at once.
const SWEEP_OVERDUE: u32 = 340;

// A deadline has to be recognized as past as long as it may be unswept.
const _: () = assert!(SWEEP_OVERDUE + Ticks::MAX.0 as u32 <= AHEAD as u32);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sweep {
    /// The next bucket to sweep.
    pub(super) at: usize,
    /// Nanoseconds between two steps.
    pub(super) interval: u64,
    /// The time of the next step.
    pub(super) due: u64,
    /// The tick in which this round began.
    pub(super) round: u32,
}

impl<A: Addresses> Table<'_, A> {
    /// Advances the clock, and sweeps the buckets that are due.
    #[inline]
    pub fn advance(&mut self, now: Instant) {
        let before = self.now;
        let now = self.clock.advance(now);
        self.now = tick_of(now);
        if now.as_nanos() >= self.sweep.due {
            self.sweep(now, before);
        }
    }

    #[cold]
    fn sweep(&mut self, now: Instant, before: u32) {
        let nanos = now.as_nanos();
        let count = self.buckets.len();
        if count == 0 {
            self.sweep.due = u64::MAX;
            return;
        }
        if self.now.wrapping_sub(self.sweep.round) > SWEEP_OVERDUE {
            // The last call was minutes ago: catch up before deadlines wrap.
            let all = self.now.wrapping_sub(before) > u32::from(Ticks::MAX.0);
            for index in 0..count {
                self.sweep_bucket(index, all);
            }
            self.sweep.at = 0;
            self.sweep.round = self.now;
            self.sweep.due = nanos.saturating_add(self.sweep.interval);
            return;
        }
        for _ in 0..SWEEP_STEPS {
            for _ in 0..SWEEP_STEP.min(count) {
                self.sweep_bucket(self.sweep.at, false);
                self.sweep.at += 1;
                if self.sweep.at == count {
                    self.sweep.at = 0;
                    self.sweep.round = self.now;
                }
            }
            self.sweep.due = self.sweep.due.saturating_add(self.sweep.interval);
            if self.sweep.due > nanos {
                return;
            }
        }
    }

    /// Removes expired flows, or all flows, from a bucket.
    #[inline]
    fn sweep_bucket(&mut self, index: usize, all: bool) {
        for place in 0..SLOTS {
            let meta = self.buckets[index].meta[place];
            if meta >= OCCUPIED && (all || !is_alive(meta, self.now)) {
                self.vacate(index, place);
                self.stats.expired += 1;
            }
        }
    }
}
