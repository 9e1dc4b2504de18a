//! Lines of the log on their way to a file that may not be read: a pipe, a terminal or a slow disk.
//!
//! ```text
//!  any thread ── a line ──► queue, of limited size ── a thread of its own ──► standard error
//! ```
//! A thread that logs never waits for the file. Lines that find the queue full are lost and counted, and the log says
//! how many once it is read again. Lines that cannot be written, as to a full disk, are lost and counted too.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

/// The longest time that the end of a process waits for a slow reader.
const LONGEST: Duration = Duration::from_secs(10);
/// The time after which it looks again whether the reader goes on.
const LOOK: Duration = Duration::from_millis(20);

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
    /// While so many bytes wait, further lines are lost. One line may be longer.
    most: usize,
    /// Lines that were written, or could not be.
    done: AtomicU64,
    /// Lines that were lost.
    lost: AtomicU64,
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
    /// Starts a thread that writes lines to a file. While `most` bytes wait, further lines are lost.
    pub(super) fn start(mut file: impl Write + Send + 'static, most: usize) -> io::Result<Self> {
        let queue = Arc::new(Queue {
            most,
            done: AtomicU64::new(0),
            lost: AtomicU64::new(0),
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
                for line in text.split_inclusive(|&byte| byte == b'\n') {
                    if file.write_all(line).is_err() {
                        own.note_lost();
                    }
                    own.done.fetch_add(1, Ordering::Relaxed);
                }
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

    /// Waits until all lines are written, as long as the file takes one within `patience`, and for [`LONGEST`] at most.
    pub(super) fn flush(&self, patience: Duration) {
        let begin = Instant::now();
        let mut last = (begin, self.0.done.load(Ordering::Relaxed));
        let mut waiting = self.0.lock();
        while waiting.is_writing || !waiting.text.is_empty() {
            let (now, done) = (Instant::now(), self.0.done.load(Ordering::Relaxed));
            if done != last.1 {
                last = (now, done);
            }
            if now - last.0 >= patience || now - begin >= LONGEST {
                return;
            }
            let waited = self.0.is_idle.wait_timeout(waiting, LOOK.min(patience));
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.0.lock();
        if waiting.text.len() >= self.0.most {
            waiting.lost += 1;
            self.0.note_lost();
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

    fn note_lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        LOST.fetch_add(1, Ordering::Relaxed);
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
        for number in 0..ALL {
            lines.push(format!("line {number}\n").as_bytes());
        }
        let begin = Instant::now();
        lines.flush(Duration::from_millis(50));
        assert!(begin.elapsed() < Duration::from_secs(5));
        let missing = lines.0.lost.load(Ordering::Relaxed);
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

    #[test]
    fn a_line_longer_than_the_queue_comes_whole() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let lines = Lines::start(writer, 10).expect("a thread");
        let long = [&[b'x'; 5000][..], b"\n"].concat();
        lines.push(&long);
        let mut read = vec![0; long.len()];
        io::Read::read_exact(&mut reader, &mut read).expect("all of it");
        assert_eq!(read, long);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let full = std::fs::File::create("/dev/full").expect("it is there");
        let lines = Lines::start(full, 1000).expect("a thread");
        let before = lost();
        lines.push(b"one\ntwo\n");
        lines.flush(Duration::from_secs(5));
        assert_eq!(lines.0.lost.load(Ordering::Relaxed), 2);
        assert!(lost() >= before + 2);
    }

    #[test]
    fn a_slow_reader_gets_the_last_lines() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let lines = Lines::start(writer, 1 << 20).expect("a thread");
        let line = [&[b'x'; 9999][..], b"\n"].concat();
        for _ in 0..30 {
            lines.push(&line);
        }
        let slow = thread::spawn(move || {
            let read = BufReader::new(reader).lines();
            read.inspect(|_| thread::sleep(Duration::from_millis(40)))
                .take(30)
                .count()
        });
        // All take more than a second, each far less.
        lines.flush(Duration::from_secs(1));
        assert!(!lines.0.lock().is_writing);
        assert_eq!(slow.join().expect("it reads"), 30);
    }
}
