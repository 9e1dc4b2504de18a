//! Lines of the log on their way to a file that may not be read: a pipe, a terminal or a slow disk.
//!
//! ```text
//!  any thread ── a line ──► queue, of limited size ── a thread of its own ──► standard error
//! ```
//! A thread that logs never waits for the file. Lines that find the queue full are lost and counted, and the log says
//! how many once it is read again.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

/// Lines that this process has lost.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Returns the number of lines of the log that this process has lost.
pub(in crate::live) fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// The queue of lines, which has a thread that writes them.
#[derive(Clone)]
pub(super) struct Lines(Arc<Queue>);

struct Queue {
    /// The most bytes that wait.
    most: usize,
    waiting: Mutex<Waiting>,
    has_more: Condvar,
    is_idle: Condvar,
}

#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    /// Lines that were lost, which the log does not say yet.
    lost: u64,
    is_writing: bool,
}

impl Lines {
    /// Starts a thread that writes lines to a file, of which at most `most` bytes wait.
    pub(super) fn start(mut file: impl Write + Send + 'static, most: usize) -> io::Result<Self> {
        let queue = Arc::new(Queue {
            most,
            waiting: Mutex::default(),
            has_more: Condvar::new(),
            is_idle: Condvar::new(),
        });
        let own = Arc::clone(&queue);
        let run = move || {
            let mut text = Vec::new();
            loop {
                let lost = own.take(&mut text);
                // A full disk or a closed pipe costs lines of the log, and nothing else.
                let _ = file.write_all(&text);
                if lost > 0 {
                    warn!(
                        lines = lost,
                        event = "log_lines_lost",
                        "lines of the log are lost: standard error was not read"
                    );
                }
            }
        };
        thread::Builder::new().name("log".to_owned()).spawn(run)?;
        Ok(Self(queue))
    }

    /// Waits until all lines are written, for a limited time.
    pub(super) fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut waiting = self.0.lock();
        while waiting.is_writing || !waiting.text.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.is_idle.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.0.lock();
        if waiting.text.len() + line.len() > self.0.most {
            waiting.lost += 1;
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.text.extend_from_slice(line);
        self.0.has_more.notify_one();
    }
}

/// The log writes each line at once.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines, and takes all of them; returns how many are lost.
    fn take(&self, text: &mut Vec<u8>) -> u64 {
        text.clear();
        let mut waiting = self.lock();
        waiting.is_writing = false;
        self.is_idle.notify_all();
        while waiting.text.is_empty() {
            let waited = self.has_more.wait(waiting);
            waiting = waited.unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(text, &mut waiting.text);
        waiting.is_writing = true;
        std::mem::take(&mut waiting.lost)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use super::*;

    #[test]
    fn lines_without_a_reader_keep_nobody_waiting_and_are_counted() {
        const ALL: u64 = 50_000;
        let (reader, writer) = io::pipe().expect("a pipe");
        let lines = Lines::start(writer, 100_000).expect("a thread");
        let before = lost();
        for number in 0..ALL {
            lines.push(format!("line {number}\n").as_bytes());
        }
        let begin = Instant::now();
        lines.flush(Duration::from_millis(50));
        assert!(begin.elapsed() < Duration::from_secs(5));
        let missing = lost() - before;
        assert!(missing > 0, "a pipe does not hold all");
        // Each other one comes whole, in order.
        let mut read = BufReader::new(reader).lines();
        let mut last = None;
        for _ in 0..ALL - missing {
            let line = read.next().expect("a line").expect("text");
            let number: u64 = line["line ".len()..].parse().expect("whole lines");
            assert!(last.is_none_or(|last| last < number), "{line}");
            last = Some(number);
        }
        lines.flush(Duration::from_secs(5));
        assert!(!lines.0.lock().is_writing);
        lines.push(b"again\n");
        assert_eq!(read.next().expect("a line").expect("text"), "again");
    }
}
