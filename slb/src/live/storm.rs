//! Lines about changes that may come in storms: the first ones at once, then one for all changes of some seconds.

use std::time::{Duration, Instant};

/// The usual number of lines that may follow each other at once.
const AT_ONCE: u32 = 3;
/// The time after which one more line may be logged.
const PACE: Duration = Duration::from_secs(10);

/// The pace of lines about one kind of change.
#[derive(Debug)]
pub(super) struct Storm {
    /// The number of lines that may follow each other at once.
    most: u32,
    /// The number of lines that may be logged now.
    allowed: u32,
    /// The time since which `allowed` has been counted up.
    since: Instant,
    /// The number of changes that no line has reported yet.
    unsaid: usize,
}

impl Default for Storm {
    fn default() -> Self {
        Self::of(AT_ONCE)
    }
}

impl Storm {
    /// Makes the pace of lines of which `most` may follow each other at once.
    pub(super) fn of(most: u32) -> Self {
        Self {
            most,
            allowed: most,
            since: Instant::now(),
            unsaid: 0,
        }
    }

    /// Returns true if a line may be logged, which counts as logged then.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        self.note(now).is_some()
    }

    /// Records changes that a later line reports.
    pub(super) fn add(&mut self, changes: usize) {
        self.unsaid += changes;
    }

    /// Records a change. Returns the number of changes to report, if a line is due.
    pub(super) fn note(&mut self, now: Instant) -> Option<usize> {
        self.unsaid += 1;
        self.due(now)
    }

    /// Returns the number of changes to report, if there are any and a line is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<usize> {
        while self.allowed < self.most && now.saturating_duration_since(self.since) >= PACE {
            self.allowed += 1;
            self.since += PACE;
        }
        if self.unsaid == 0 || self.allowed == 0 {
            return None;
        }
        if self.allowed == self.most {
            self.since = now;
        }
        self.allowed -= 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_a_few_lines_and_no_change_is_left_out() {
        let begin = Instant::now();
        let mut storm = Storm::default();
        let (mut lines, mut changes) = (0, 0);
        // Four changes a second, for a minute, and then a quiet one.
        for step in 0..480 {
            let now = begin + Duration::from_millis(250 * step);
            let said = if step < 240 {
                storm.note(now)
            } else {
                storm.due(now)
            };
            lines += usize::from(said.is_some());
            changes += said.unwrap_or(0);
        }
        assert_eq!(changes, 240);
        assert!((7..=9).contains(&lines), "{lines}");
    }

    #[test]
    fn changes_that_are_rare_are_reported_at_once() {
        let begin = Instant::now();
        let mut storm = Storm::default();
        for step in 0..20 {
            let now = begin + Duration::from_secs(11 * step);
            assert_eq!(storm.note(now), Some(1), "{step}");
            assert_eq!(storm.due(now), None);
        }
    }
}
