//! `--state DIR`: connections and pinned flows outlive the process.
//!
//! ```text
//!  worker ── pieces of records, between bursts ──► control thread ──► a thread that writes the file
//!         ── all of them, when it has stopped ───► control thread ──► the file
//!         ◄─ pieces, before it opens its devices ─ the file
//! ```
//! The file is `ROLE.state`. It is written beside itself and renamed, so that there is always a whole
//! one. Whoever starts reads it and renames it to `ROLE.taken`: what it says is true once. A process
//! that died before it wrote a checkpoint leaves only that, and the next one takes it as such.
//!
//! Its layout is in [`file`]. The file is for this user only.

mod file;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as Clock};

use slb_control::{Config, Role, open_file};
use slb_core::Instant;
use slb_core::hash::siphash13;
use slb_core::state::{Age, Cursor, Imported, Refusal};
use slb_core::steer::Share;
use tracing::{error, info, warn};

use self::file::{Contents, MAGIC, Moment, Owner, Piece};
pub(super) use self::file::{HEADER, length_after};
use super::exchange::Seat;
use super::handover::{Handover, Peer};
use super::mailbox::Fill;
use super::worker::Worker;
use crate::Failure;
use crate::balancer::Balancer;

/// Records that a worker writes before it gives them away: some 20 000 connections.
const BUFFER: usize = 2 << 20;
/// From the beginning of a checkpoint to that of the next one; or longer, where one takes long: then four
/// times as long as that took.
const INTERVAL: Duration = Duration::from_millis(500);

/// The state of an earlier process.
pub(super) struct Saved {
    contents: Contents,
    imported: Mutex<Imported>,
}

impl Saved {
    /// Gives a balancer what a worker of its number had; where there were as many workers as there are now,
    /// nothing else: a network card keeps a flow on its queue.
    pub(super) fn import(
        &self,
        balancer: &mut Balancer,
        number: usize,
        workers: usize,
        now: Instant,
    ) {
        let is_same = self.contents.workers as usize == workers;
        let mut total = Imported::default();
        // The latest first: of a connection that was made anew while a checkpoint was taken, it counts.
        for piece in self.contents.pieces.iter().rev() {
            if is_same && usize::from(piece.worker) != number {
                continue;
            }
            match balancer.import(now, self.age(), &piece.records) {
                Ok(imported) => total = total + imported,
                Err(error) => error!("a part of the state is refused: {error}"),
            }
        }
        let mut imported = self.imported.lock().unwrap_or_else(PoisonError::into_inner);
        *imported = *imported + total;
    }

    /// Gives one of several workers the connections that it has now, whichever had them before.
    pub(super) fn import_share(&self, balancer: &mut Balancer, seat: &Seat, now: Instant) {
        let mut total = Imported::default();
        for piece in self.contents.pieces.iter().rev() {
            let share = Share {
                steering: seat.steering(),
                worker: seat.number(),
            };
            match balancer.import_share(now, self.age(), &piece.records, share) {
                Ok(imported) => total = total + imported,
                Err(error) if seat.number() == 0 => {
                    error!("a part of the state is refused: {error}");
                }
                Err(_) => {}
            }
        }
        let mut imported = self.imported.lock().unwrap_or_else(PoisonError::into_inner);
        *imported = *imported + total;
    }

    /// Returns the age of the records.
    fn age(&self) -> Age {
        Age {
            elapsed: self.contents.moment.elapsed(),
            is_stale: !self.contents.is_exact,
        }
    }

    /// Returns true if no packet was processed after it was written.
    pub(super) fn is_exact(&self) -> bool {
        self.contents.is_exact
    }

    /// Returns the result of all workers' imports.
    fn imported(&self) -> Imported {
        *self.imported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says in the log what became of it.
    pub(super) fn report(&self) {
        let imported = self.imported();
        let why: Vec<String> = Refusal::ALL
            .into_iter()
            .filter(|&why| imported.refused(why) > 0)
            .map(|why| format!("{} {}", imported.refused(why), why.name()))
            .collect();
        info!(
            taken = imported.taken,
            refused = imported.all_refused(),
            age = self.contents.moment.elapsed().as_secs_f64(),
            is_checkpoint = !self.contents.is_exact,
            "state of the previous process is in place"
        );
        if !why.is_empty() {
            warn!(why = why.join(", "), "records of the state are refused");
        }
    }
}

/// Connections of a vm that moves here, which a worker that runs takes over.
pub(super) struct Importing {
    saved: Arc<Saved>,
    /// The piece that comes next, and the bytes of it that are taken.
    piece: usize,
    at: usize,
    imported: Imported,
}

/// Records that are taken over between two bursts.
const IMPORT_STEP: usize = 64;

impl Importing {
    /// Takes a bounded number of records over; says whether there are more.
    pub(super) fn step(
        &mut self,
        balancer: &mut Balancer,
        seat: Option<&Seat>,
        now: Instant,
    ) -> bool {
        let Some(piece) = self.saved.contents.pieces.get(self.piece) else {
            return false;
        };
        let rest = piece.records.get(self.at..).unwrap_or_default();
        let len = first_records(rest, IMPORT_STEP);
        let (some, _) = rest.split_at(len);
        let age = self.saved.age();
        let outcome = match seat {
            None => balancer.import(now, age, some),
            Some(seat) => {
                let share = Share {
                    steering: seat.steering(),
                    worker: seat.number(),
                };
                balancer.import_share(now, age, some, share)
            }
        };
        match outcome {
            Ok(imported) => self.imported = self.imported + imported,
            Err(error) => error!("a part of the state is refused: {error}"),
        }
        self.at += len;
        if self.at >= piece.records.len() {
            (self.piece, self.at) = (self.piece + 1, 0);
        }
        self.piece < self.saved.contents.pieces.len()
    }

    /// Returns how many records were imported and refused.
    pub(super) fn imported(&self) -> Imported {
        self.imported
    }
}

/// The bytes of so many records, or of all; of all where they are no records.
fn first_records(records: &[u8], count: usize) -> usize {
    let mut at = 0;
    for _ in 0..count {
        let Some(&[high, low]) = records.get(at..).and_then(<[u8]>::first_chunk) else {
            return records.len();
        };
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len == 0 {
            return records.len();
        }
        at += len;
    }
    at.min(records.len())
}

/// The state's directory.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    path: PathBuf,
    owner: Owner,
}

impl Directory {
    /// Opens the directory, and makes it where it is not there.
    ///
    /// # Errors
    /// It cannot be written to, or a file of somebody else has the state's name.
    pub(super) fn open(path: &Path, config: &Config) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format!("--state {}: {error}", path.display()))
        };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path).map_err(|error| failed(&error))?;
        let names = config.ports.all.iter().map(|port| port.name.as_bytes());
        let role = config.node.role;
        let ports = match role {
            Role::Proxy => names.fold(0, |so_far, name| siphash13([so_far, 1], name)),
            Role::Mux | Role::Host => 0,
        };
        let own = Self {
            path: path.to_owned(),
            owner: Owner { role, ports },
        };
        for name in [own.file(), own.taken(), own.unfinished()] {
            own.expect_own(&name).map_err(|error| failed(&error))?;
        }
        // Whether it may be written to shows now, not at the end.
        let unfinished = own.unfinished();
        let _ = fs::remove_file(&unfinished);
        own.create(&unfinished).map_err(|error| failed(&error))?;
        fs::remove_file(&unfinished).map_err(|error| failed(&error))?;
        Ok(own)
    }

    fn file(&self) -> PathBuf {
        self.path.join(format!("{}.state", self.owner.role.name()))
    }

    fn taken(&self) -> PathBuf {
        self.path.join(format!("{}.taken", self.owner.role.name()))
    }

    /// The socket by which a process takes over from the one that runs.
    pub(super) fn handover(&self) -> PathBuf {
        self.path
            .join(format!("{}.handover", self.owner.role.name()))
    }

    fn unfinished(&self) -> PathBuf {
        self.path
            .join(format!("{}.unfinished", self.owner.role.name()))
    }

    /// Fails where a file is there that no process like this one has made.
    fn expect_own(&self, path: &Path) -> io::Result<()> {
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata?,
        };
        let mut begin = [0; 8];
        let is_own = metadata.is_file()
            // A process may have been killed before it wrote anything.
            && (metadata.len() == 0
                || open_file(path)?.read_exact(&mut begin).is_ok() && begin == *MAGIC);
        match is_own {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "{} is not a state file of slb, and stays: expected another directory",
                    path.display()
                ),
            )),
        }
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(path)
    }

    /// Reads what an earlier process left, and marks it as taken. What is damaged, or of another
    /// version, role or configuration, is said in the log.
    pub(super) fn take(&self) -> Option<Saved> {
        let (path, is_first) = match self.file() {
            path if path.exists() => (path, true),
            _ => (self.taken(), false),
        };
        let mut bytes = Vec::new();
        let read = open_file(&path).and_then(|mut file| file.read_to_end(&mut bytes));
        let bytes = match read.map(|_| bytes) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                info!(directory = %self.path.display(), "no state of an earlier process");
                return None;
            }
            Err(error) => {
                error!(file = %path.display(), "the state cannot be read: {error}");
                return None;
            }
        };
        if is_first && let Err(error) = fs::rename(&path, self.taken()) {
            // It would be taken again by the next one, and be wrong by then.
            error!(file = %path.display(), "the state cannot be marked as taken, and is refused: {error}");
            return None;
        }
        match self.read(&bytes) {
            Ok(mut saved) => {
                saved.contents.is_exact &= is_first;
                Some(saved)
            }
            Err(why) => {
                error!(file = %path.display(), "the whole state is refused: {why}");
                None
            }
        }
    }

    /// Reads a file's bytes.
    pub(super) fn read(&self, bytes: &[u8]) -> Result<Saved, String> {
        Ok(Saved {
            contents: Contents::read(bytes, self.owner)?,
            imported: Mutex::default(),
        })
    }

    /// Writes a whole file in the place of the one that is there. The file outlives the process. The disk has it
    /// when the kernel writes it there, for which no one waits: the next process starts only when this one has ended,
    /// and packets would wait for the disk as well.
    fn write(&self, state: &Contents) -> io::Result<u64> {
        let (file, unfinished) = (self.file(), self.unfinished());
        self.expect_own(&file)?;
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let bytes = state.bytes(self.owner);
        let mut new = self.create(&unfinished)?;
        new.write_all(&bytes)?;
        fs::rename(&unfinished, &file)?;
        Ok(bytes.len() as u64)
    }
}

/// Where the links of XDP programs are pinned, so that these go on while no process is there.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    pub(super) directory: PathBuf,
    role: Role,
}

impl Pins {
    /// The directory `bpf` in the state's, where a BPF file system is mounted there; else one in
    /// /sys/fs/bpf.
    pub(super) fn find(state: &Path, role: Role) -> Option<Self> {
        let own = fs::canonicalize(state).ok()?.join("bpf");
        let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let is_mounted = |path: &Path| {
            mounted.lines().any(|line| {
                let mut halves = line.split(" - ");
                let place = halves.next().and_then(|half| half.split(' ').nth(4));
                let kind = halves.next().and_then(|half| half.split(' ').next());
                place.map(Path::new) == Some(path) && kind == Some("bpf")
            })
        };
        if is_mounted(&own) {
            return Some(Self {
                directory: own,
                role,
            });
        }
        let common = Path::new("/sys/fs/bpf");
        let directory = common.join("slb");
        let is_there = is_mounted(common)
            && (directory.is_dir() || fs::DirBuilder::new().mode(0o700).create(&directory).is_ok());
        is_there.then_some(Self { directory, role })
    }

    /// Returns the name of an interface's link.
    pub(super) fn name(&self, interface: &str) -> String {
        format!("{}-{interface}", self.role.name())
    }
}

/// How the state is, for the status and metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct StateStatus {
    /// The state taken over from an earlier process.
    pub(super) imported: Imported,
    /// The age of that state, and true if it was a checkpoint; `None` if there was none.
    pub(super) origin: Option<(Duration, bool)>,
    /// When the last checkpoint began, how long it took and how many bytes it has.
    pub(super) checkpoint: Option<(Clock, Duration, u64)>,
    /// Why the last one could not be written.
    pub(super) trouble: Option<String>,
}

/// Takes checkpoints, and the state in the end.
pub(super) struct Keeper {
    directory: Directory,
    step: Step,
    status: StateStatus,
    /// Vms that move away, each by a backend that it is, and who asks for their connections.
    leaving: VecDeque<(Arc<str>, Peer)>,
    /// Vms that move here, and who waits for the result.
    arriving: VecDeque<(Saved, Peer)>,
    /// Workers that have not taken all connections over yet, what became of the others', and who waits.
    importing: Option<(Vec<usize>, Imported, Peer)>,
}

enum Step {
    /// The next one begins then.
    Waits(Clock),
    Collects {
        begin: Clock,
        moment: Moment,
        pieces: Vec<Piece>,
        /// The workers that have more to give.
        left: Vec<usize>,
        /// The process that asks for the connections of one vm; `None` for a checkpoint.
        peer: Option<Peer>,
    },
    Writes(Clock, JoinHandle<io::Result<u64>>),
}

impl Keeper {
    /// `saved` is what workers were given of an earlier process.
    pub(super) fn new(directory: Directory, saved: Option<&Saved>) -> Self {
        Self {
            directory,
            step: Step::Waits(Clock::now()),
            status: StateStatus {
                imported: saved.map(Saved::imported).unwrap_or_default(),
                origin: saved
                    .map(|saved| (saved.contents.moment.elapsed(), !saved.contents.is_exact)),
                ..StateStatus::default()
            },
            leaving: VecDeque::new(),
            arriving: VecDeque::new(),
            importing: None,
        }
    }

    /// Has the connections of a vm given to who asks for them.
    pub(super) fn export_vm(&mut self, vm: &str, peer: Peer) {
        self.leaving.push_back((vm.into(), peer));
    }

    /// Has connections taken over that a vm brings along, and tells who waits what became of them.
    pub(super) fn import_vm(&mut self, bytes: &[u8], peer: Peer) {
        match self.directory.read(bytes) {
            Ok(saved) => self.arriving.push_back((saved, peer)),
            Err(why) => peer.refuse(&format!("the whole state is refused: {why}")),
        }
    }

    /// Goes on with connections that workers take over.
    fn advance_import(&mut self, workers: &[Worker]) {
        if self.importing.is_none()
            && let Some((saved, peer)) = self.arriving.pop_front()
        {
            let saved = Arc::new(saved);
            for worker in workers {
                worker.mailbox.import(Importing {
                    saved: Arc::clone(&saved),
                    piece: 0,
                    at: 0,
                    imported: Imported::default(),
                });
            }
            let all = (0..workers.len()).collect();
            self.importing = Some((all, Imported::default(), peer));
        }
        let Some((left, total, _)) = &mut self.importing else {
            return;
        };
        left.retain(|&number| {
            let worker = workers.get(number);
            let Some(imported) = worker.and_then(|worker| worker.mailbox.take_imported()) else {
                return worker.is_some();
            };
            *total = *total + imported;
            false
        });
        if left.is_empty()
            && let Some((_, imported, peer)) = self.importing.take()
        {
            info!(
                taken = imported.taken,
                refused = imported.all_refused(),
                "connections of a vm that moves here are in place"
            );
            peer.answer(summary(&imported).as_bytes());
        }
    }

    /// Listens for a process that takes over from this one.
    pub(super) fn listen(&self) -> Option<Handover> {
        Handover::open(&self.directory.handover())
    }

    pub(super) fn status(&self) -> &StateStatus {
        &self.status
    }

    /// Continues a checkpoint as far as possible without blocking; returns true if one has ended.
    pub(super) fn advance(&mut self, workers: &[Worker]) -> bool {
        self.advance_import(workers);
        match &mut self.step {
            Step::Waits(next) => {
                let (vm, peer) = match self.leaving.pop_front() {
                    Some((vm, peer)) => (Some(vm), Some(peer)),
                    None if Clock::now() < *next => return false,
                    None => (None, None),
                };
                let moment = Moment::now();
                for worker in workers {
                    let fill = Fill::new(vec![0xa5; BUFFER]).of_vm(vm.clone());
                    worker.mailbox.fill(fill);
                }
                self.step = Step::Collects {
                    begin: Clock::now(),
                    moment,
                    pieces: Vec::new(),
                    left: (0..workers.len()).collect(),
                    peer,
                };
                false
            }
            Step::Collects {
                begin,
                moment,
                pieces,
                left,
                peer,
            } => {
                left.retain(|&number| {
                    let Some(worker) = workers.get(number) else {
                        return false;
                    };
                    let Some(filled) = worker.mailbox.take_filled() else {
                        return true;
                    };
                    pieces.push(Piece {
                        worker: number as u16,
                        records: filled.records().to_vec(),
                    });
                    match filled.again() {
                        Some(fill) => {
                            worker.mailbox.fill(fill);
                            true
                        }
                        None => false,
                    }
                });
                if !left.is_empty() {
                    return false;
                }
                let state = Contents {
                    pieces: std::mem::take(pieces),
                    workers: workers.len() as u32,
                    moment: *moment,
                    is_exact: false,
                };
                let (begin, directory) = (*begin, self.directory.clone());
                if let Some(peer) = peer.take() {
                    peer.answer(&state.bytes(directory.owner));
                    self.step = Step::Waits(Clock::now());
                    return false;
                }
                let thread = thread::Builder::new().name("slb state".to_owned());
                match thread.spawn(move || directory.write(&state)) {
                    Ok(writer) => self.step = Step::Writes(begin, writer),
                    Err(error) => self.note(begin, Err(error)),
                }
                false
            }
            Step::Writes(_, writer) if !writer.is_finished() => false,
            Step::Writes(..) => {
                self.join();
                true
            }
        }
    }

    /// Waits for the thread that writes.
    fn join(&mut self) {
        let next = Step::Waits(Clock::now());
        if let Step::Writes(begin, writer) = std::mem::replace(&mut self.step, next) {
            let gone = |_| io::Error::other("the thread that writes it has ended");
            let written = writer.join().map_err(gone).and_then(|written| written);
            self.note(begin, written);
        }
    }

    fn note(&mut self, begin: Clock, written: io::Result<u64>) {
        let took = begin.elapsed();
        self.step = Step::Waits(begin + INTERVAL.max(4 * took));
        match written {
            Ok(bytes) => {
                if self.status.trouble.take().is_some() {
                    info!("checkpoints are written again");
                }
                self.status.checkpoint = Some((begin, took, bytes));
            }
            Err(error) => {
                let trouble = error.to_string();
                if self.status.trouble.as_ref() != Some(&trouble) {
                    let directory = self.directory.path.display();
                    error!(%directory, "no checkpoint is written: {trouble}");
                }
                self.status.trouble = Some(trouble);
            }
        }
    }

    /// Writes what the workers had when they stopped.
    pub(super) fn finish(mut self, records: Vec<Vec<u8>>) {
        self.join();
        let begin = Clock::now();
        let workers = records.len() as u32;
        let numbered = (0..).zip(records);
        let state = Contents {
            pieces: numbered
                .map(|(worker, records)| Piece { worker, records })
                .collect(),
            workers,
            moment: Moment::now(),
            is_exact: true,
        };
        match self.directory.write(&state) {
            Ok(bytes) => info!(
                bytes,
                seconds = begin.elapsed().as_secs_f64(),
                "the state is written"
            ),
            Err(error) => error!(
                directory = %self.directory.path.display(),
                "the state is not written: {error}"
            ),
        }
    }
}

/// Summarizes an import in one line.
fn summary(imported: &Imported) -> String {
    let refused = Refusal::ALL.into_iter().filter_map(|why| {
        let count = imported.refused(why);
        (count > 0).then(|| format!(", {count} refused: {why}"))
    });
    let refused: String = refused.collect();
    format!("{} connections taken over{refused}", imported.taken)
}

/// All records of a balancer that has stopped.
pub(super) fn export_all(balancer: &Balancer) -> Vec<u8> {
    let (mut all, mut next) = (Vec::new(), Some(Cursor::START));
    let mut buffer = vec![0; BUFFER];
    while let Some(cursor) = next {
        let exported = balancer.export(cursor, &mut buffer);
        all.extend(&buffer[..exported.len]);
        next = exported.next;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(role: &str) -> Config {
        let text = match role {
            "mux" => include_str!("../../../examples/web.toml"),
            "host" => include_str!("../../../examples/host.toml"),
            _ => include_str!("../../../examples/proxy.toml"),
        };
        Config::parse("test.toml", text).expect("a good configuration")
    }

    fn written(is_exact: bool) -> Contents {
        Contents {
            pieces: vec![
                Piece {
                    worker: 0,
                    records: vec![1; 300],
                },
                Piece {
                    worker: 1,
                    records: vec![2; 20],
                },
            ],
            workers: 2,
            moment: Moment::now(),
            is_exact,
        }
    }

    #[test]
    fn what_was_written_is_read_once_as_it_was() {
        let place = tempfile::tempdir().expect("a directory");
        for is_exact in [true, false] {
            let directory = Directory::open(place.path(), &config("host")).expect("it is writable");
            directory.write(&written(is_exact)).expect("it is writable");
            let saved = directory.take().expect("a state");
            assert_eq!(
                (saved.contents.workers, saved.contents.is_exact),
                (2, is_exact)
            );
            assert!(saved.contents.moment.elapsed() < Duration::from_secs(60));
            let pieces = saved.contents.pieces.iter();
            let pieces = pieces.map(|piece| (piece.worker, piece.records.len()));
            assert_eq!(pieces.collect::<Vec<_>>(), [(0, 300), (1, 20)]);
            // Who died before its first checkpoint leaves it to the next one, and it is old by then.
            let again = directory.take().expect("what was taken is there");
            assert!(!again.contents.is_exact);
        }
    }

    #[test]
    fn what_is_damaged_or_of_others_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let of = |role| Directory::open(place.path(), &config(role)).expect("it is writable");
        let host = of("host");
        let bytes = written(true).bytes(host.owner);
        assert!(host.read(&bytes).is_ok());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(host.read(&damaged).is_err(), "byte {at}");
            assert!(host.read(&bytes[..at]).is_err(), "{at} bytes");
        }
        let why = |directory: Directory| directory.read(&bytes).err().unwrap_or_default();
        assert!(why(of("mux")).contains("another role"));
        assert!(why(of("proxy")).contains("another role"));
        let proxy = written(true).bytes(of("proxy").owner);
        let mut other = config("proxy");
        other.ports.all.reverse();
        let other = Directory::open(place.path(), &other).expect("it is writable");
        assert!(
            other
                .read(&proxy)
                .err()
                .unwrap_or_default()
                .contains("other ports")
        );
    }

    #[test]
    fn a_file_of_somebody_elses_stays() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("host.state");
        fs::write(&path, "notes of mine").expect("it is writable");
        let refused = Directory::open(place.path(), &config("host"));
        assert!(refused.is_err());
        fs::remove_file(&path).expect("it is there");
        let directory = Directory::open(place.path(), &config("host")).expect("it is writable");
        fs::write(&path, "notes of mine").expect("it is writable");
        assert!(directory.write(&written(true)).is_err());
        assert_eq!(fs::read(&path).expect("it is there"), b"notes of mine");
    }
}
