//! Background threads for work that takes seconds with a large configuration, so that signals,
//! probes and next hops are not delayed.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::Failure;

/// The time that the first check waits for the result, which suffices for a small configuration.
const SHORT: Duration = Duration::from_millis(50);

/// A piece of work in a separate thread.
pub(super) struct Background<T> {
    told: Receiver<T>,
    /// True if a result was taken before.
    is_known: Cell<bool>,
}

impl<T: Send + 'static> Background<T> {
    /// Begins the work.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn begin(
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, Failure> {
        let (tell, told) = channel();
        let thread = thread::Builder::new().name(format!("slb {name}"));
        let run = move || {
            // An error means that the program ends.
            let _ = tell.send(work());
        };
        match thread.spawn(run) {
            Ok(_) => Ok(Self {
                told,
                is_known: Cell::new(false),
            }),
            Err(error) => Err(Failure::failed(format!("no thread to {name}: {error}"))),
        }
    }

    /// Returns the result, once. The first call waits a moment for it; later calls do not.
    ///
    /// # Errors
    /// The work panicked.
    pub(super) fn result(&self) -> Result<Option<T>, Failure> {
        let patience = match self.is_known.replace(true) {
            true => Duration::ZERO,
            false => SHORT,
        };
        match self.told.recv_timeout(patience) {
            Ok(result) => Ok(Some(result)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Failure::failed("a thread of the program ended by itself"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::time::Instant;

    use super::*;

    #[test]
    fn short_work_is_done_at_once_and_long_work_is_not_waited_for() {
        let short = Background::begin("test", || 7).unwrap();
        assert!(matches!(short.result(), Ok(Some(7))));

        static END: Barrier = Barrier::new(2);
        let long = Background::begin("test", || END.wait().is_leader()).unwrap();
        assert!(matches!(long.result(), Ok(None)));
        let begin = Instant::now();
        for _ in 0..100 {
            assert!(matches!(long.result(), Ok(None)));
        }
        assert!(begin.elapsed() < 50 * SHORT);
        END.wait();
        let mut result = long.result();
        while matches!(result, Ok(None)) {
            thread::sleep(Duration::from_millis(1));
            result = long.result();
        }
        assert!(matches!(result, Ok(Some(_))));
    }

    #[test]
    fn work_that_panics_is_a_failure() {
        let work = || -> u8 { std::panic::resume_unwind(Box::new("without a message")) };
        let broken = Background::begin("test", work).unwrap();
        let mut result = broken.result();
        while matches!(result, Ok(None)) {
            thread::sleep(Duration::from_millis(1));
            result = broken.result();
        }
        assert!(result.is_err());
    }
}
