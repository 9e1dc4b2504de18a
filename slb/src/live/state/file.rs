//! The bytes of a state file.
//!
//! ```text
//!   0   8  "slbstate"                      40   8  Unix time, in ns
//!   8   2  version of the file: 1          48   8  hash of the ports' names, of a proxy
//!  10   1  role: 1 mux, 2 host, 3 proxy    56   8  length of what follows the header
//!  11   1  1: no packet was moved after    64   8  SipHash-1-3 of all other bytes
//!  12   4  workers                         72  ..  pieces: worker (2), zero (2), length (4),
//!  16  16  the kernel's boot id                    records as in `slb_core::state`
//!  32   8  time since the boot, in ns
//! ```
//! Numbers are big-endian. A file that differs from what this version writes in any other byte is refused.

use std::fs;
use std::time::{Duration, SystemTime};

use slb_control::Role;
use slb_core::hash::siphash13;

/// The first bytes of every state file.
pub(crate) const MAGIC: &[u8; 8] = b"slbstate";
const VERSION: u16 = 1;
/// Bytes of the header.
pub(crate) const HEADER: usize = 72;
/// Offset of the hash of all other bytes.
const CHECK: std::ops::Range<usize> = 64..72;
/// Before the records of a piece.
const PIECE_HEADER: usize = 8;

/// Records of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) worker: u16,
    pub(crate) records: Vec<u8>,
}

/// When something was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) boot: [u8; 16],
    /// Nanoseconds.
    pub(crate) since_boot: u64,
    pub(crate) unix: u64,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let id = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits = id.iter().filter(|byte| **byte != b'-');
        let mut boot = [0; 16];
        for (place, digit) in digits.take(32).enumerate() {
            let digit = (*digit as char).to_digit(16).unwrap_or(0) as u8;
            boot[place / 2] = boot[place / 2] << 4 | digit;
        }
        // Counts the time that a machine sleeps, too.
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime = uptime.split_whitespace().next();
        let seconds: f64 = uptime.and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let unix = unix.unwrap_or_default().as_nanos();
        Self {
            boot,
            since_boot: (seconds * 1e9) as u64,
            unix: u64::try_from(unix).unwrap_or(u64::MAX),
        }
    }

    /// The time from then to now: of another boot by the wall clock.
    pub(crate) fn elapsed(&self) -> Duration {
        let now = Self::now();
        Duration::from_nanos(match self.boot == now.boot {
            true => now.since_boot.saturating_sub(self.since_boot),
            false => now.unix.saturating_sub(self.unix),
        })
    }
}

/// The owner of a state: nobody else reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) role: Role,
    /// A hash of the ports' names, of a proxy; else 0.
    pub(crate) ports: u64,
}

/// The contents of a state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) workers: u32,
    pub(crate) moment: Moment,
    /// True if no packet was processed after it was written.
    pub(crate) is_exact: bool,
}

impl Contents {
    /// Reads a file's bytes.
    ///
    /// # Errors
    /// The bytes are damaged, or of another version or owner: why, as a part of a sentence.
    pub(crate) fn read(bytes: &[u8], owner: Owner) -> Result<Self, String> {
        let header = header_of(bytes)?;
        let number = |at, len| number_in(header, at, len);
        let body = &bytes[HEADER..];
        let said = length_after(bytes)?;
        if said != body.len() as u64 {
            let left = body.len();
            return Err(format!("its header announces {said} bytes, got {left}"));
        }
        if number(CHECK.start, 8) != check_of(header, body) {
            return Err("it is damaged: its checksum is wrong".to_owned());
        }
        if header[10] != number_of(owner.role) {
            return Err(format!(
                "it is of another role, expected a {}'s",
                owner.role.name()
            ));
        }
        if number(48, 8) != owner.ports {
            return Err("it is of a configuration with other ports".to_owned());
        }
        let is_exact = match header[11] {
            0 => false,
            1 => true,
            mark => return Err(format!("it has mark {mark}, expected 0 or 1")),
        };
        let workers = number(12, 4) as u32;
        let mut boot = [0; 16];
        boot.copy_from_slice(&header[16..32]);
        Ok(Self {
            pieces: pieces_of(body, workers)?,
            workers,
            moment: Moment {
                boot,
                since_boot: number(32, 8),
                unix: number(40, 8),
            },
            is_exact,
        })
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, owner: Owner) -> Vec<u8> {
        let pieces = self.pieces.iter();
        let len: usize = pieces.map(|piece| PIECE_HEADER + piece.records.len()).sum();
        let mut bytes = Vec::with_capacity(HEADER + len);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend([number_of(owner.role), u8::from(self.is_exact)]);
        bytes.extend(self.workers.to_be_bytes());
        bytes.extend(self.moment.boot);
        bytes.extend(self.moment.since_boot.to_be_bytes());
        bytes.extend(self.moment.unix.to_be_bytes());
        bytes.extend(owner.ports.to_be_bytes());
        bytes.extend((len as u64).to_be_bytes());
        bytes.extend([0; 8]);
        for piece in &self.pieces {
            bytes.extend(piece.worker.to_be_bytes());
            bytes.extend([0; 2]);
            bytes.extend((piece.records.len() as u32).to_be_bytes());
            bytes.extend(&piece.records);
        }
        let (header, body) = bytes.split_at_mut(HEADER);
        let check = check_of(header, body);
        header[CHECK].copy_from_slice(&check.to_be_bytes());
        bytes
    }
}

/// The pieces that follow the header.
fn pieces_of(mut body: &[u8], workers: u32) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    while let Some((head, rest)) = body.split_first_chunk::<PIECE_HEADER>() {
        let [a, b, zero @ .., d, e, f, g] = *head;
        let worker = u16::from_be_bytes([a, b]);
        if zero != [0; 2] {
            return Err(format!("a piece has bytes {zero:?}, expected zeros"));
        }
        if u32::from(worker) >= workers {
            return Err(format!("a piece is of worker {worker}, of {workers}"));
        }
        let len = u32::from_be_bytes([d, e, f, g]) as usize;
        let (records, rest) = rest
            .split_at_checked(len)
            .ok_or_else(|| format!("a piece of {len} bytes is cut off"))?;
        pieces.push(Piece {
            worker,
            records: records.to_vec(),
        });
        body = rest;
    }
    match body.len() {
        0 => Ok(pieces),
        left => Err(format!(
            "a piece has a header of {left} bytes, expected {PIECE_HEADER}"
        )),
    }
}

/// The header of a state that this version writes.
fn header_of(bytes: &[u8]) -> Result<&[u8; HEADER], String> {
    let header: &[u8; HEADER] = bytes
        .first_chunk()
        .ok_or_else(|| format!("expected {HEADER} bytes or more, got {}", bytes.len()))?;
    if header[..8] != MAGIC[..] {
        return Err("it is not a state file of slb".to_owned());
    }
    let version = number_in(header, 8, 2);
    match version == u64::from(VERSION) {
        true => Ok(header),
        false => Err(format!("it has version {version}, expected {VERSION}")),
    }
}

/// Bytes that follow the header of a state, as the header says.
///
/// # Errors
/// The bytes are no header of this version: why, as a part of a sentence.
pub(crate) fn length_after(bytes: &[u8]) -> Result<u64, String> {
    Ok(number_in(header_of(bytes)?, 56, 8))
}

fn number_in(header: &[u8; HEADER], at: usize, len: usize) -> u64 {
    let bytes = header.get(at..at + len).unwrap_or_default().iter();
    bytes.fold(0, |so_far, &byte| so_far << 8 | u64::from(byte))
}

/// The hash of a header up to the hash itself, and of what follows.
pub(crate) fn check_of(header: &[u8], body: &[u8]) -> u64 {
    let head = siphash13([0, 0], &header[..CHECK.start]);
    siphash13([head, 0], body)
}

const fn number_of(role: Role) -> u8 {
    match role {
        Role::Mux => 1,
        Role::Host => 2,
        Role::Proxy => 3,
    }
}
