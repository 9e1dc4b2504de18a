//! The log of a running process: lines on standard error, or entries of systemd's journal.

use tracing::{Level, warn};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::LogFormat;

/// The journal prefixes the names of fields by this word: `pool` of an event is `SLB_POOL`.
const PREFIX: &str = "SLB";

/// Begins to log events of `level` and above. Where the journal cannot be reached, lines go to standard error: a balancer
/// serves without its log.
pub(crate) fn begin(format: LogFormat, level: Level) {
    // Tests run several roles in one process: the first log stays.
    let lines = |format| {
        let lines = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_target(false)
            // A full disk or a closed pipe behind standard error costs lines of the log, and nothing else.
            .log_internal_errors(false)
            .with_writer(std::io::stderr);
        let _ = match format {
            LogFormat::Json => lines.json().flatten_event(true).try_init(),
            LogFormat::Text | LogFormat::Journal => lines.with_ansi(false).try_init(),
        };
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
        }
        Err(error) => {
            lines(LogFormat::Text);
            warn!(
                "--log journal: cannot reach systemd's journal at /run/systemd/journal/socket, logging to standard \
                 error: {error}"
            );
        }
    }
}
