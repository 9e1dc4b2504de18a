//! UDP headers (RFC 768).

use super::{WireError, read_u16, split, write};

/// Bytes of a header.
pub const HEADER_LEN: usize = 8;

const SOURCE_PORT: usize = 0;
const DESTINATION_PORT: usize = 2;
const LEN: usize = 4;
const CHECKSUM: usize = 6;

/// A UDP datagram, or the first fragment of one, which is shorter than its length field.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    fixed: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Reads a datagram; bytes beyond its length are left out.
    ///
    /// # Errors
    /// The header is truncated, or the length field is less than the header's length.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (fixed, rest) = split::<HEADER_LEN>(bytes)?;
        let len = read_u16(fixed, LEN);
        // Zero stands for "longer than 65 535" in a jumbogram (RFC 2675 §4).
        let payload = match usize::from(len).checked_sub(HEADER_LEN) {
            Some(payload_len) => rest.get(..payload_len).unwrap_or(rest),
            None if len == 0 => rest,
            None => {
                return Err(WireError::Malformed {
                    field: "UDP length",
                    value: len.into(),
                });
            }
        };
        Ok(Self { fixed, payload })
    }

    /// The sender's port.
    pub fn source_port(&self) -> u16 {
        read_u16(self.fixed, SOURCE_PORT)
    }

    /// The receiver's port.
    pub fn destination_port(&self) -> u16 {
        read_u16(self.fixed, DESTINATION_PORT)
    }

    /// Returns the length field: bytes of header and data.
    pub fn len(&self) -> u16 {
        read_u16(self.fixed, LEN)
    }

    /// Returns true if the datagram carries no data.
    pub fn is_empty(&self) -> bool {
        self.payload.is_empty()
    }

    /// Returns the checksum field; zero if the sender computed none.
    pub fn checksum(&self) -> u16 {
        read_u16(self.fixed, CHECKSUM)
    }

    /// Returns the data, as far as it is present.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// A UDP header, to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// Bytes of header and data.
    pub len: u16,
    /// The checksum; zero for none.
    pub checksum: u16,
}

impl Header {
    /// Writes the header.
    pub fn emit(&self, bytes: &mut [u8; HEADER_LEN]) {
        write(bytes, SOURCE_PORT, self.source_port.to_be_bytes());
        write(bytes, DESTINATION_PORT, self.destination_port.to_be_bytes());
        write(bytes, LEN, self.len.to_be_bytes());
        write(bytes, CHECKSUM, self.checksum.to_be_bytes());
    }
}
