//! The status socket: whoever connects gets one JSON document about the running process.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use slb_control::{Config, Role};
use slb_core::stats::BackendCounters;
use slb_io_pcap::CaptureStats;
use tracing::warn;

use super::worker::{Counted, Letterbox, Worker};
use crate::Failure;
use crate::report::Report;
use crate::report::metrics::{Family, one};

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
    workers: Vec<(Arc<Letterbox>, Vec<String>, Option<usize>)>,
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

    /// What all workers counted, one after the other; `None` where one does not answer.
    fn count(&self) -> Option<Vec<Counted>> {
        self.workers
            .iter()
            .map(|(mailbox, ..)| mailbox.count())
            .collect()
    }

    /// What backends got, by their pool's and their own place; `None` where a worker does not answer, or
    /// the configuration is just changing.
    pub(super) fn backend_counters(&self) -> Option<HashMap<(usize, usize), BackendCounters>> {
        let total = self.count()?.into_iter().reduce(Counted::and)?;
        Some(total.tally.by_backend().collect())
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The document; `None` where a worker does not answer.
    fn document(&self) -> Option<Value> {
        let counted = self.count()?;
        let one = |(counted, (_, names, cpu)): (&Counted, &(_, Vec<String>, Option<usize>))| json!({ "queues": names, "cpu": cpu, "io": counted.io_json() });
        let workers: Vec<Value> = counted.iter().zip(&self.workers).map(one).collect();
        let total = counted.into_iter().reduce(Counted::and)?;
        let (io, generation) = (total.io_json(), total.tally.generation());
        let config = self.config();
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

    /// The same as metrics.
    pub(super) fn families(&self) -> Option<Vec<Family>> {
        let total = self.count()?.into_iter().reduce(Counted::and)?;
        let sample = |&(kind, value): &(&str, u64)| (vec![("kind", kind.to_owned())], value as f64);
        let (frames, packets): (Vec<_>, Vec<_>) = total
            .io
            .iter()
            .partition(|(name, _)| name.starts_with("frames"));
        let frames = frames
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("frames_")?, *value)));
        let frames: Vec<(&str, u64)> = frames.collect();
        let work = [(
            "slb_bursts",
            "Bursts with a frame in them",
            total.work.bursts,
        )];
        let generation = total.tally.generation();
        let config = self.config();
        let none = CaptureStats::default();
        let report = Report::new(&config, total.tally, &none, self.begin.elapsed());
        let mut families = report.families();
        families.extend([
            Family::counter("slb_io_packets", "Frames, by what the devices did with them", packets.iter().map(sample).collect()),
            Family::gauge("slb_io_frames", "Frames of memory, by who has them", frames.iter().map(sample).collect()),
            Family::counter("slb_busy_seconds", "Time spent with bursts that had a frame in them, of all workers", vec![(Vec::new(), total.work.busy.as_secs_f64())]),
            Family::gauge("slb_configuration_generation", "How many configurations there were", one(generation)),
            Family::gauge("slb_uptime_seconds", "How long it has been running", one(self.begin.elapsed().as_secs())),
            Family::gauge("slb_frontend_available", "Whether a frontend's rules have a backend that takes new flows: data path availability", availability(&config).map(|(name, is_available)| (vec![("frontend", name.to_owned())], f64::from(u8::from(is_available)))).collect()),
        ]);
        families.extend(work.map(|(name, help, value)| Family::counter(name, help, one(value))));
        Some(families)
    }

    /// The frontends whose rules have no backend that takes new flows.
    pub(super) fn unavailable(&self) -> Vec<String> {
        let config = self.config();
        let down = availability(&config).filter(|(_, is_available)| !is_available);
        down.map(|(name, _)| name.to_owned()).collect()
    }
}

/// Of each frontend with rules, whether one of these has a backend that takes new flows.
fn availability(config: &Config) -> impl Iterator<Item = (&str, bool)> {
    let frontends = config.frontends.iter().enumerate();
    frontends
        .filter_map(|(place, frontend)| Some((frontend.name.as_str(), config.is_available(place)?)))
}

impl Counted {
    fn io_json(&self) -> Value {
        let counters = self.io.iter();
        counters
            .map(|&(name, count)| (name.to_owned(), Value::from(count)))
            .collect()
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
