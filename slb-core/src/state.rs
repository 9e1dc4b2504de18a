//! Records of connections and flows, which outlive the process.
//!
//! [`Host::export`](crate::Host::export), [`Proxy::export`](crate::Proxy::export) and
//! [`Mux::export`](crate::Mux::export) write them, a bounded number a call, so that a live loop can
//! export between two bursts; `import` puts them into another instance. What a record names, it names by
//! what stays the same from one configuration and one process to the next: a backend or a rule by a hash
//! of its names, a vm by its MAC address and network, a mux by its address. Times are what is left of
//! them, so clocks need not agree.
//!
//! An imported connection is translated as before, with its sequence numbers, timeouts and SNAT
//! port. Records of items that the present configuration lacks, or has assigned to another owner,
//! are [refused](Refusal) and counted. Bytes that are no records, or are damaged, are [refused as a
//! whole](StateError).
//!
//! Waiting fragments, rate limits and counters are not exported.
//!
//! # Format
//! Records follow each other without gaps. All numbers are big-endian; addresses are 4 bytes of IPv4 or
//! 16 of IPv6.
//!
//! ```text
//!  0   2  length of the record in bytes, with these two
//!  2   1  kind: 1 a host agent's connection, 2 a proxy's, 3 a mux's flow
//!  3   1  version of the kind's layout: 1
//!  4   4  check: the low half of SipHash-1-3 of the bytes from 8 on, under a key whose first
//!         word is the number in bytes 0 to 3, and whose second is 0
//!  8   .. as the kind has it
//! ```
//! A reader skips kinds and versions that it does not know. Version 1 of a connection:
//!
//! ```text
//!  8   1  family: 4 or 6                 48   2  windows, of each direction: see below
//!  9   1  IP protocol                    50   3  low bytes of what acknowledges a later SYN,
//! 10   1  state, see ConnectionState              lowest first
//! 11   1  marks, see below               53   1  window scale of the later SYN; 15: none
//! 12   2  idle timeout, in 2^26 ns       54   6  host: MAC address of the vm
//! 14   2  time that is left, in 2^26 ns          proxy: four zeros, number of the frontend port
//! 16   8  backend; 0: it is gone         60   4  host: VXLAN network of the vm; proxy: 0
//! 24   8  rule; 0: it is gone            64  16  host: mux that answers go through; 0: none
//! 32   8  next number that each end              proxy: destination and source MAC address and
//!         sends: inward, outward                 VLAN tag of the first frame; 0: not known
//! 40   8  next number that each end      80   4  ports on the outside: source, destination
//!         expects: inward, outward       84   4  ports on the inside: source, destination
//!                                        88  ..  addresses: outside source and destination,
//!                                                inside source and destination
//! ```
//! - marks: 1 the server opened it; 2 its ends get a RST when it ends by itself; 4 its name on the inside
//!   may be another conversation's too; 8 a later SYN is kept; 16 it has no name on the outside any more;
//!   32 unanswered, 64 answered or over: a full table may forget it.
//! - windows: in the low four bits the scale (15: not known), in the high four `e`, where the window
//!   offered last has at most 2^(16 + e) bytes.
//! - a backend is the hash of its pool's name, its own name and its address, a rule that of its name:
//!   [`identity`](crate::state#identities).
//!
//! Version 1 of a flow:
//!
//! ```text
//!  8   1  family: 4 or 6                 14   2  zero
//!  9   1  IP protocol                    16   8  backend
//! 10   1  1 half-open, 2 established,    24   4  ports: source, destination
//!         3 closing                      28  ..  addresses: source, destination
//! 11   1  zero
//! 12   2  time that is left, in 2^26 ns
//! ```
//!
//! # Identities
//! `h(0) = 0`, `h(n) = siphash13([h(n-1), length of part n], part n)` over three parts: of a backend the
//! pool's name, the backend's name, and its address in 16 bytes (IPv4 mapped, RFC 4291 §2.5.5.2); of a
//! balancing rule its name and two empty parts.

use core::fmt;
use core::time::Duration;

use crate::flow::Addresses;
use crate::hash::siphash13;

/// The length of the longest record in bytes.
pub const RECORD_MOST: usize = CONNECTION_LEN + 4 * 16;
/// The maximum number of places that one call of `export` visits.
pub const EXPORT_STEP: usize = 256;

/// The length of a record's header in bytes.
pub(crate) const HEADER_LEN: usize = 8;
const CONNECTION_LEN: usize = 88;
const FLOW_LEN: usize = 28;
const VERSION: u8 = 1;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    HostConnection = 1,
    ProxyConnection = 2,
    Flow = 3,
}

/// The position of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(u64);

/// Marks the table of IPv6 in a cursor.
const IPV6: u64 = 1 << 63;

impl Cursor {
    /// The first position.
    pub const START: Self = Self(0);

    /// Returns the cursor as a number, for callers that store it elsewhere.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Makes a cursor from a number that [`get`](Self::get) returned. Any other number leads to
    /// some place or to the end.
    pub const fn from_value(value: u64) -> Self {
        Self(value)
    }

    /// Returns true if the place is in the table of IPv6, and the index in its table.
    pub(crate) fn place(self) -> (bool, usize) {
        let place = usize::try_from(self.0 & !IPV6).unwrap_or(usize::MAX);
        (self.0 & IPV6 != 0, place)
    }

    /// Returns the position after `place` of a table with `end` places; `None` at the end.
    pub(crate) fn after(is_ipv6: bool, place: usize, end: usize) -> Option<Self> {
        match (is_ipv6, place < end) {
            (false, true) => Some(Self(place as u64)),
            (true, true) => Some(Self(place as u64 | IPV6)),
            (false, false) => Some(Self(IPV6)),
            (true, false) => None,
        }
    }
}

/// The age of records when they are imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Age {
    /// The time since they were exported.
    pub elapsed: Duration,
    /// True if packets were translated after the export: then the connections have advanced, and
    /// are resynchronized by the next segments of both ends. A handshake that was not answered yet
    /// is [refused](Refusal::Unfinished), since the numbers of its answer are unknown.
    pub is_stale: bool,
}

impl Age {
    /// Returns the age of records that were exported `elapsed` ago, if no packet was translated
    /// since.
    pub const fn exact(elapsed: Duration) -> Self {
        Self {
            elapsed,
            is_stale: false,
        }
    }
}

/// The result of one call of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The number of bytes that were written.
    pub len: usize,
    /// The number of records that were written.
    pub records: usize,
    /// The position for the next call; `None` if everything was exported. The position does not
    /// change if there is no room for [`RECORD_MOST`] bytes.
    pub next: Option<Cursor>,
}

/// The reason why a record was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The record belongs to another role.
    OtherRole,
    /// The kind or version of the record is unknown.
    Newer,
    /// The record contradicts itself or the configuration.
    Malformed,
    /// The record's backend is not configured, or not on this node.
    UnknownBackend,
    /// The record's vm or frontend port is not on this node.
    UnknownPort,
    /// The record's SNAT port does not belong to its backend.
    PortTaken,
    /// Another connection has one of its tuples.
    TupleTaken,
    /// The connection has expired.
    Expired,
    /// The table has no free place.
    TableFull,
    /// The connection's handshake was not answered, and packets were translated since.
    Unfinished,
}

impl Refusal {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 10] = [
        Self::OtherRole,
        Self::Newer,
        Self::Malformed,
        Self::UnknownBackend,
        Self::UnknownPort,
        Self::PortTaken,
        Self::TupleTaken,
        Self::Expired,
        Self::TableFull,
        Self::Unfinished,
    ];

    /// Name of the reason in reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OtherRole => "other_role",
            Self::Newer => "newer",
            Self::Malformed => "malformed",
            Self::UnknownBackend => "unknown_backend",
            Self::UnknownPort => "unknown_port",
            Self::PortTaken => "port_taken",
            Self::TupleTaken => "tuple_taken",
            Self::Expired => "expired",
            Self::TableFull => "table_full",
            Self::Unfinished => "unfinished",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherRole => "a record of another role",
            Self::Newer => "a record of a newer version",
            Self::Malformed => "a record that contradicts itself or the configuration",
            Self::UnknownBackend => "its backend is not configured here",
            Self::UnknownPort => "its vm or frontend port is not configured here",
            Self::PortTaken => "its SNAT port is not one of its backend's",
            Self::TupleTaken => "another connection has one of its names",
            Self::Expired => "its time has come",
            Self::TableFull => "the table is full",
            Self::Unfinished => "its handshake was not answered when it was exported",
        })
    }
}

/// The number of records taken over, and of those refused by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The number of records that were taken over.
    pub taken: u64,
    refused: [u64; Refusal::ALL.len()],
}

impl Imported {
    /// Returns the number of records that were refused for a reason.
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused.get(why as usize).copied().unwrap_or(0)
    }

    /// Returns the number of records that were refused for any reason.
    pub fn all_refused(&self) -> u64 {
        self.refused.iter().sum()
    }

    /// Counts the outcome of a record, if this worker counts it.
    pub(crate) fn note_some(&mut self, outcome: Option<Result<(), Refusal>>) {
        if let Some(outcome) = outcome {
            self.note(outcome);
        }
    }

    pub(crate) fn note(&mut self, outcome: Result<(), Refusal>) {
        match outcome {
            Ok(()) => self.taken += 1,
            Err(why) => {
                if let Some(count) = self.refused.get_mut(why as usize) {
                    *count += 1;
                }
            }
        }
    }
}

impl core::ops::Add for Imported {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self.taken += other.taken;
        for (own, more) in self.refused.iter_mut().zip(other.refused) {
            *own += more;
        }
        self
    }
}

/// An error: the bytes are no records, and nothing was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// The bytes end within a record.
    Truncated {
        /// Offset of the record.
        at: usize,
        /// The number of bytes from that offset on.
        left: usize,
    },
    /// The record is shorter than its header.
    Length {
        /// Offset of the record.
        at: usize,
        /// The length in the record.
        len: usize,
    },
    /// The record's check does not fit its bytes.
    Damaged {
        /// Offset of the record.
        at: usize,
    },
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { at, left } => write!(
                f,
                "the record at byte {at} is cut off: {left} bytes are left of it"
            ),
            Self::Length { at, len } => write!(
                f,
                "the record at byte {at} says that it has {len} bytes, expected at least {HEADER_LEN}"
            ),
            Self::Damaged { at } => {
                write!(
                    f,
                    "the record at byte {at} does not fit its check: damaged, or no record"
                )
            }
        }
    }
}

impl core::error::Error for StateError {}

/// Verified bytes: complete, undamaged records from end to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Records<'b> {
    bytes: &'b [u8],
}

impl<'b> Records<'b> {
    /// Verifies all records of `bytes`.
    pub(crate) fn read(bytes: &'b [u8]) -> Result<Self, StateError> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = bytes.get(at..).unwrap_or_default();
            let truncated = StateError::Truncated {
                at,
                left: rest.len(),
            };
            let head: &[u8; HEADER_LEN] = rest.first_chunk().ok_or(truncated)?;
            let len = usize::from(u16::from_be_bytes([head[0], head[1]]));
            if len < HEADER_LEN {
                return Err(StateError::Length { at, len });
            }
            let record = rest.get(..len).ok_or(truncated)?;
            if check_of(record).to_be_bytes() != [head[4], head[5], head[6], head[7]] {
                return Err(StateError::Damaged { at });
            }
            at += len;
        }
        Ok(Self { bytes })
    }

    /// Returns the next record without consuming it.
    pub(crate) fn peek(&self) -> Option<(u8, u8, &'b [u8])> {
        let mut records = *self;
        records.next()
    }
}

impl<'b> Iterator for Records<'b> {
    /// A record's kind, its version, and the bytes after its header.
    type Item = (u8, u8, &'b [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [high, low, kind, version, ..] = *self.bytes.first_chunk::<HEADER_LEN>()?;
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (record, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some((kind, version, record.get(HEADER_LEN..)?))
    }
}

/// Computes the check of a record, ignoring the bytes of its check field.
fn check_of(record: &[u8]) -> u32 {
    let (head, rest) = record.split_at_checked(4).unwrap_or_default();
    let head = head.try_into().map_or(0, u32::from_be_bytes);
    let rest = rest.get(4..).unwrap_or_default();
    siphash13([head.into(), 0], rest) as u32
}

/// Checks that this role accepts records of a kind and version.
pub(crate) fn expect(kind: Kind, (found, version): (u8, u8)) -> Result<(), Refusal> {
    let is_known = [Kind::HostConnection, Kind::ProxyConnection, Kind::Flow]
        .iter()
        .any(|&known| known as u8 == found);
    if !is_known || version != VERSION {
        Err(Refusal::Newer)
    } else if kind as u8 != found {
        Err(Refusal::OtherRole)
    } else {
        Ok(())
    }
}

/// Writes a record field by field.
pub(crate) struct Writer<'b> {
    bytes: &'b mut [u8],
    at: usize,
}

impl<'b> Writer<'b> {
    /// Starts a record at the beginning of `bytes`, which have room for [`RECORD_MOST`].
    pub(crate) fn new(bytes: &'b mut [u8], kind: Kind) -> Self {
        let mut writer = Self { bytes, at: 0 };
        writer.put(&[0, 0, kind as u8, VERSION, 0, 0, 0, 0]);
        writer
    }

    pub(crate) fn put(&mut self, field: &[u8]) {
        let end = self.at + field.len();
        if let Some(place) = self.bytes.get_mut(self.at..end) {
            place.copy_from_slice(field);
        }
        self.at = end;
    }

    /// Writes source and destination.
    pub(crate) fn put_addresses<A: Addresses>(&mut self, addresses: A) {
        let (source, destination) = addresses.unpack();
        for address in [source, destination] {
            match address {
                core::net::IpAddr::V4(address) => self.put(&address.octets()),
                core::net::IpAddr::V6(address) => self.put(&address.octets()),
            }
        }
    }

    /// Ends the record; returns its length.
    pub(crate) fn end(self) -> usize {
        let len = self.at;
        let Some(record) = self.bytes.get_mut(..len) else {
            return 0;
        };
        if let Some(place) = record.first_chunk_mut::<2>() {
            *place = (len as u16).to_be_bytes();
        }
        let check = check_of(record);
        if let Some(place) = record.get_mut(4..8) {
            place.copy_from_slice(&check.to_be_bytes());
        }
        len
    }
}

/// Reads a record field by field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'b>(pub(crate) &'b [u8]);

impl Reader<'_> {
    /// Returns the next bytes.
    ///
    /// # Errors
    /// The record is too short for its kind.
    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Refusal::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Refusal> {
        self.take().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Refusal> {
        self.take().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Refusal> {
        self.take().map(u64::from_be_bytes)
    }

    /// Source and destination.
    pub(crate) fn addresses<A: Addresses>(&mut self) -> Result<A, Refusal> {
        let mut address = || {
            let address = match size_of::<A>() {
                8 => core::net::IpAddr::from(self.take::<4>()?),
                _ => core::net::IpAddr::from(self.take::<16>()?),
            };
            A::from_ip(address).ok_or(Refusal::Malformed)
        };
        Ok(A::join(address()?, address()?))
    }

    /// Checks that no bytes follow.
    pub(crate) fn end(self) -> Result<(), Refusal> {
        match self.0 {
            [] => Ok(()),
            _ => Err(Refusal::Malformed),
        }
    }
}

/// Returns the value of the family field.
pub(crate) const fn family_of<A>() -> u8 {
    match size_of::<A>() {
        8 => 4,
        _ => 6,
    }
}

const _: () = assert!(FLOW_LEN + 2 * 16 <= RECORD_MOST && RECORD_MOST <= u16::MAX as usize);
