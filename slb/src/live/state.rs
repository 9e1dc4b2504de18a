//! `--state DIR`: connections and pinned flows outlive the process.
//!
//! ```text
//!  worker ── pieces of records, between bursts ──► control thread ──► a thread that writes the file
//!         ── all of them, when it has stopped ───► control thread ──► the file
//!         ◄─ pieces, before it opens its devices ─ the file
//! ```
//! The file is `ROLE.state`; only its owner can read it. A new version is written beside the file and
//! renamed, so the file is always complete. A process that starts reads the file and renames it to
//! `ROLE.taken`, since the state is true only once. If a process dies before its first checkpoint, the
//! next one takes `ROLE.taken` as a checkpoint.
//!
//! The module [`file`] has the layout of the file.

mod directory;
mod file;
mod pins;
mod saved;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as Clock};

use slb_core::state::{Cursor, Imported, Refusal};
use tracing::{error, info};

use self::file::{Contents, Moment, Piece};
use super::handover::{Handover, Peer};
use super::mailbox::Fill;
use super::worker::Worker;
use crate::balancer::Balancer;

pub(super) use self::directory::Directory;
pub(super) use self::file::{HEADER, length_after};
pub(super) use self::pins::Pins;
pub(super) use self::saved::{Importing, Saved};

/// Records that a worker writes before it gives them away: some 20 000 connections.
const BUFFER: usize = 2 << 20;
/// From the beginning of a checkpoint to that of the next one; or longer, where one takes long: then four
/// times as long as that took.
const INTERVAL: Duration = Duration::from_millis(500);

/// The kept state, for the status and metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct StateStatus {
    /// The state taken over from an earlier process.
    pub(super) imported: Imported,
    /// The age of that state, and true if it was a checkpoint; `None` if there was none.
    pub(super) origin: Option<(Duration, bool)>,
    /// When the last checkpoint began, how long it took and how many bytes it has.
    pub(super) checkpoint: Option<(Clock, Duration, u64)>,
    /// The reason why the last checkpoint could not be written.
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
