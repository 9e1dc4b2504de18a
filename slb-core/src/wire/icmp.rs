//! ICMP for IPv4 (RFC 792).

use super::{WireError, read_u16, read_u32, split};

/// Bytes of a header.
pub const HEADER_LEN: usize = 8;
/// The minimum number of bytes after the quoted IP header in an error (RFC 792).
pub const MIN_QUOTED: usize = 8;

const TYPE: usize = 0;
const CODE: usize = 1;
const CHECKSUM: usize = 2;
const REST: usize = 4;

/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Source quench (deprecated by RFC 6633).
pub const SOURCE_QUENCH: u8 = 4;
/// Redirect.
pub const REDIRECT: u8 = 5;
/// Echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// Code of "unreachable": communication administratively prohibited (RFC 1812 §5.2.7.1).
pub const PROHIBITED: u8 = 13;
/// Code of "unreachable": fragmentation needed and DF set (RFC 1191).
pub const FRAGMENTATION_NEEDED: u8 = 4;

/// An ICMP message with a complete header.
#[derive(Clone, Copy, Debug)]
pub struct Icmp<'a> {
    fixed: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Icmp<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// The header is truncated.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (fixed, payload) = split::<HEADER_LEN>(bytes)?;
        Ok(Self { fixed, payload })
    }

    /// The type.
    pub fn kind(&self) -> u8 {
        self.fixed[TYPE]
    }

    /// The code.
    pub fn code(&self) -> u8 {
        self.fixed[CODE]
    }

    /// Returns the checksum field.
    pub fn checksum(&self) -> u16 {
        read_u16(self.fixed, CHECKSUM)
    }

    /// The second word: identifier and sequence number of an echo, the MTU of "too big".
    pub fn rest(&self) -> u32 {
        read_u32(self.fixed, REST)
    }

    /// Returns true if the message reports an error about a packet that it quotes (and so is itself
    /// never answered by an error, RFC 1122 §3.2.2).
    pub fn is_error(&self) -> bool {
        is_error(self.kind())
    }

    /// Returns the bytes after the header: an echo's data, or the quoted packet.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Returns true if messages of this type quote the packet that they are about.
pub const fn is_error(kind: u8) -> bool {
    matches!(
        kind,
        UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM
    )
}
