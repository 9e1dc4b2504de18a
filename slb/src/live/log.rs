//! The log of a running process: lines on standard error, or entries of systemd's journal.

mod lines;

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use tracing::{Level, warn};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub(in crate::live) use self::lines::lost;

use self::lines::Lines;
use crate::cli::LogFormat;

/// The most bytes of lines that wait for a reader of standard error.
const MOST: usize = 1 << 20;
/// The time that the end of the process waits for that reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// The log of a running process. Its end waits a moment for lines that are not written yet.
pub(crate) struct Log(Option<Lines>);

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(lines) = &self.0 {
            lines.flush(PATIENCE);
        }
    }
}

/// The journal prefixes the names of fields by this word: `pool` of an event is `SLB_POOL`.
const PREFIX: &str = "SLB";

/// Begins to log events of `level` and above. Where the journal cannot be reached, lines go to standard error: a balancer
/// serves without its log.
#[must_use]
pub(crate) fn begin(format: LogFormat, level: Level) -> Log {
    // Tests run several roles in one process: the first log stays.
    let lines = |format| {
        let file = io::stderr().as_fd().try_clone_to_owned().map(File::from);
        let queue = file.and_then(|file| Lines::start(file, MOST)).ok();
        let of_lines = queue.clone();
        let writer = move || -> Box<dyn io::Write> {
            match &of_lines {
                Some(lines) => Box::new(lines.clone()),
                None => Box::new(io::stderr()),
            }
        };
        let lines = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_target(false)
            .log_internal_errors(false)
            .with_writer(writer);
        let _ = match format {
            LogFormat::Json => lines.json().flatten_event(true).try_init(),
            LogFormat::Text | LogFormat::Journal => lines.with_ansi(false).try_init(),
        };
        Log(queue)
    };
    if format != LogFormat::Journal {
        return lines(format);
    }
    match tracing_journald::layer() {
        Ok(journal) => {
            let journal = journal
                .with_field_prefix(Some(PREFIX.to_owned()))
                .with_syslog_identifier("slb".to_owned())
                .with_priority_mappings(PriorityMappings {
                    info: Priority::Informational,
                    debug: Priority::Debug,
                    ..PriorityMappings::new()
                });
            let entries = tracing_subscriber::registry()
                .with(LevelFilter::from_level(level))
                .with(journal);
            let _ = entries.try_init();
            Log(None)
        }
        Err(error) => {
            let log = lines(LogFormat::Text);
            warn!(
                "--log journal: cannot reach systemd's journal at /run/systemd/journal/socket, logging to standard \
                 error: {error}"
            );
            log
        }
    }
}
