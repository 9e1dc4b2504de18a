//! Faults that last: a line when one begins, one each minute while it lasts, and one when it is over.
//!
//! ```
//! let mut faults = slb_control::lasting::Lasting::default();
//! assert!(faults.is_due("eth0"), "the fault has just begun");
//! assert!(!faults.is_due("eth0"), "the log has it");
//! assert!(faults.end("eth0").is_some());
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time between two lines about one fault.
const REMIND: Duration = Duration::from_secs(60);

/// The faults that last, by their subject, such as a device and the step that fails there.
#[derive(Debug, Default)]
pub struct Lasting(BTreeMap<String, Fault>);

#[derive(Debug)]
struct Fault {
    since: Instant,
    /// When it was logged last.
    said: Instant,
}

impl Lasting {
    /// Records that a fault is there. Returns true if it is to be logged: it has just begun, or was logged long ago.
    pub fn is_due(&mut self, subject: &str) -> bool {
        self.is_due_at(subject, Instant::now())
    }

    fn is_due_at(&mut self, subject: &str, now: Instant) -> bool {
        let Some(fault) = self.0.get_mut(subject) else {
            let new = Fault {
                since: now,
                said: now,
            };
            self.0.insert(subject.to_owned(), new);
            return true;
        };
        let is_due = now.duration_since(fault.said) >= REMIND;
        if is_due {
            fault.said = now;
        }
        is_due
    }

    /// Records that a fault is over. Returns how long it lasted; `None` if it was not there.
    pub fn end(&mut self, subject: &str) -> Option<Duration> {
        self.0.remove(subject).map(|fault| fault.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_said_when_it_begins_and_once_a_minute() {
        let mut faults = Lasting::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let said = (0..180).filter(|&second| faults.is_due_at("eth0", at(second)));
        assert_eq!(said.collect::<Vec<_>>(), [0, 60, 120]);
        assert!(
            faults.is_due_at("eth1", at(180)),
            "another one has just begun"
        );
        assert!(faults.end("eth0").is_some());
        assert!(faults.end("eth0").is_none());
        assert!(faults.is_due_at("eth0", at(181)), "it is back");
    }
}
