//! The status socket: whoever connects gets one JSON document about the running process.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use slb_control::{Config, Role};
use slb_io_pcap::CaptureStats;
use tracing::warn;

use super::worker::{Counted, Mailbox, Worker};
use crate::Failure;
use crate::report::Report;

/// How long a client may take to read.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the socket of a role is, unless it is said: in systemd's runtime directory, if it gave one.
pub(crate) fn default_path(role: Role) -> PathBuf {
    let directory = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let directory = directory.unwrap_or_else(|| PathBuf::from("/run"));
    directory.join(format!("slb-{}.sock", role.name()))
}

/// What the status is made of.
pub(super) struct Shared {
    config: Mutex<Config>,
    workers: Vec<(Arc<Mailbox>, Vec<String>, Option<usize>)>,
    begin: Instant,
}

impl Shared {
    pub(super) fn new(config: &Config, workers: &[Worker], begin: Instant) -> Arc<Self> {
        let one = |worker: &Worker| {
            (
                Arc::clone(&worker.mailbox),
                worker.names.clone(),
                worker.cpu,
            )
        };
        Arc::new(Self {
            config: Mutex::new(config.clone()),
            workers: workers.iter().map(one).collect(),
            begin,
        })
    }

    pub(super) fn set_config(&self, config: &Config) {
        let mut own = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        *own = config.clone();
    }

    /// The document; `None` where a worker does not answer.
    fn document(&self) -> Option<Value> {
        let counted = self.workers.iter().map(|(mailbox, ..)| mailbox.count());
        let counted: Vec<Counted> = counted.collect::<Option<_>>()?;
        let one = |(counted, (_, names, cpu)): (&Counted, &(_, Vec<String>, Option<usize>))| {
            let io: serde_json::Map<String, Value> = counted
                .io
                .iter()
                .map(|&(name, count)| (name.to_owned(), count.into()))
                .collect();
            json!({ "queues": names, "cpu": cpu, "io": io })
        };
        let workers: Vec<Value> = counted.iter().zip(&self.workers).map(one).collect();
        let total = counted.into_iter().reduce(Counted::and)?;
        let io: serde_json::Map<String, Value> = total
            .io
            .iter()
            .map(|&(name, count)| (name.to_owned(), count.into()))
            .collect();
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = total.tally.generation();
        let none = CaptureStats::default();
        let report = Report::new(&config, total.tally, &none, self.begin.elapsed());
        let mut document = report.json();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let more = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "role": config.node.role.name(),
            "generation": generation,
            "uptime": self.begin.elapsed().as_secs_f64(),
            "time": now.unwrap_or_default().as_secs_f64(),
            "io": io,
            "workers": workers,
        });
        if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
            document.extend(more);
        }
        Some(document)
    }
}

/// The socket; its file goes with it.
pub(super) struct Place {
    listener: UnixListener,
    path: PathBuf,
}

impl Place {
    /// Opens the socket. Where it was asked for it has to be had; else it may be missing.
    pub(super) fn open(asked: Option<&Path>, role: Role) -> Result<Option<Self>, Failure> {
        let path = asked.map_or_else(|| default_path(role), Path::to_owned);
        match listen(&path) {
            Ok(listener) => Ok(Some(Self { listener, path })),
            Err(error) => {
                let said = format!("no status at {}: {error}", path.display());
                match asked {
                    Some(_) => Err(Failure::failed(said)),
                    None => {
                        warn!("{said}");
                        Ok(None)
                    }
                }
            }
        }
    }

    /// Answers in a thread of its own: a client that does not read stops nobody but other clients,
    /// and those for a second.
    pub(super) fn serve(self, shared: Arc<Shared>) -> Gone {
        let gone = Gone(self.path);
        let listener = self.listener;
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let _: io::Result<()> = answer(&client, &shared);
            }
        });
        gone
    }
}

/// Removes the socket's file when dropped.
pub(super) struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn answer(mut client: &UnixStream, shared: &Shared) -> io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    if let Some(document) = shared.document() {
        client.write_all(document.to_string().as_bytes())?;
    }
    Ok(())
}

/// Listens at a path, for this user only; takes the place of a socket that nobody listens at.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
