//! Work that takes seconds where a configuration is large, in threads of its own: signals, probes and next hops
//! go on meanwhile.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::Failure;

/// How long the first look waits for the result: that of a small configuration is there by then.
const SHORT: Duration = Duration::from_millis(50);

/// A piece of work in a thread of its own.
pub(super) struct Background<T> {
    told: Receiver<T>,
    /// True if a result was taken before.
    is_known: Cell<bool>,
}

impl<T: Send + 'static> Background<T> {
    /// Begins the work.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn begin(
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, Failure> {
        let (tell, told) = channel();
        let thread = thread::Builder::new().name(format!("slb {name}"));
        let run = move || {
            // An error says that the program ends.
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

    /// The result, once. The first call waits a moment for it, later ones do not.
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
