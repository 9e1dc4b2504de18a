//! Faults of captures, with their position.

use std::fmt;
use std::io;

/// An error in a capture, which cannot be read further. All packets before this one were valid.
#[derive(Debug)]
pub struct ReadError {
    /// Number of the packet that could not be read, counted from 1.
    pub packet: u64,
    /// Offset in the file of the record or block that could not be read, in bytes.
    pub offset: u64,
    /// The fault.
    pub damage: Damage,
    /// The place of the capture among those that are read together, from 0.
    pub input: usize,
}

/// The fault of a capture.
#[derive(Debug)]
#[non_exhaustive]
pub enum Damage {
    /// The file is empty.
    Empty,
    /// The file does not begin like a pcap or pcapng file.
    NotACapture,
    /// The file ends within a record or block.
    Truncated,
    /// Packed data ends too early.
    Cut {
        /// The packing: `gzip` or `zstd`.
        packing: &'static str,
    },
    /// Bytes stand behind the packed data that are none.
    Behind {
        /// The packing: `gzip` or `zstd`.
        packing: &'static str,
        /// Offset in the packed file of the first of them.
        at: u64,
    },
    /// A record or block contradicts itself.
    Malformed,
    /// A record or block has an implausible length.
    TooLong,
    /// A pcapng section has a version other than 1.
    Version {
        /// The version's first number.
        major: u16,
        /// The version's second number.
        minor: u16,
    },
    /// A pcapng section has an implausible number of interfaces.
    TooManyInterfaces,
    /// A packet refers to an undescribed interface.
    UnknownInterface(u32),
    /// The operating system could not read the file.
    Io(io::Error),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the file is empty: expected a pcap or pcapng file"),
            Self::NotACapture => f.write_str("expected a pcap or pcapng file"),
            Self::Truncated => f.write_str("the file ends within it"),
            Self::Cut { packing } => write!(f, "the {packing} data ends too early"),
            Self::Behind { packing, at } => write!(
                f,
                "expected {packing} data up to the end of the file, got other bytes from byte {at} on, which are \
                 left out"
            ),
            Self::Malformed => f.write_str("its lengths contradict each other"),
            Self::TooLong => f.write_str("it announces more bytes than a packet can have"),
            Self::Version { major, minor } => {
                write!(f, "expected a section of version 1, got {major}.{minor}")
            }
            Self::TooManyInterfaces => f.write_str("expected at most 65536 interfaces"),
            Self::UnknownInterface(id) => write!(f, "no interface {id} was described before it"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.damage {
            // There is no packet to name.
            Damage::Empty | Damage::NotACapture => self.damage.fmt(f),
            Damage::Cut { .. } | Damage::Behind { .. } if self.packet > 1 => {
                write!(f, "after packet {}: {}", self.packet - 1, self.damage)
            }
            Damage::Cut { .. } | Damage::Behind { .. } => self.damage.fmt(f),
            Damage::Truncated if self.offset == 0 => f.write_str("the file ends within its header"),
            _ => write!(
                f,
                "packet {}, at byte {}: {}",
                self.packet, self.offset, self.damage
            ),
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.damage {
            Damage::Io(error) => Some(error),
            _ => None,
        }
    }
}
