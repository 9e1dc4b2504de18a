//! State that an earlier process left, and its import.

use std::sync::{Arc, Mutex, PoisonError};

use slb_core::Instant;
use slb_core::state::{Age, Imported, Refusal};
use slb_core::steer::Share;
use tracing::{error, info, warn};

use super::file::Contents;
use crate::balancer::Balancer;
use crate::live::exchange::Seat;

/// The state of an earlier process.
pub(in crate::live) struct Saved {
    pub(super) contents: Contents,
    pub(super) imported: Mutex<Imported>,
}

impl Saved {
    /// Gives a balancer what a worker of its number had; where there were as many workers as there are now,
    /// nothing else: a network card keeps a flow on its queue.
    pub(in crate::live) fn import(
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
    pub(in crate::live) fn import_share(&self, balancer: &mut Balancer, seat: &Seat, now: Instant) {
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
    pub(super) fn age(&self) -> Age {
        Age {
            elapsed: self.contents.moment.elapsed(),
            is_stale: !self.contents.is_exact,
        }
    }

    /// Returns true if no packet was processed after it was written.
    pub(in crate::live) fn is_exact(&self) -> bool {
        self.contents.is_exact
    }

    /// Returns the result of all workers' imports.
    pub(super) fn imported(&self) -> Imported {
        *self.imported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says in the log what became of it.
    pub(in crate::live) fn report(&self) {
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
pub(in crate::live) struct Importing {
    pub(super) saved: Arc<Saved>,
    /// The piece that comes next, and the bytes of it that are taken.
    pub(super) piece: usize,
    pub(super) at: usize,
    pub(super) imported: Imported,
}

/// Records that are taken over between two bursts.
const IMPORT_STEP: usize = 64;

impl Importing {
    /// Takes a bounded number of records over; says whether there are more.
    pub(in crate::live) fn step(
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
    pub(in crate::live) fn imported(&self) -> Imported {
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
