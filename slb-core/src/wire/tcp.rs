//! TCP headers (RFC 9293).

use core::fmt;

use super::{WireError, read_u16, read_u32, split, write};

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

const SOURCE_PORT: usize = 0;
const DESTINATION_PORT: usize = 2;
const SEQUENCE: usize = 4;
const ACKNOWLEDGEMENT: usize = 8;
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const WINDOW: usize = 14;
const CHECKSUM: usize = 16;
const URGENT: usize = 18;

/// The control bits of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Flags(pub u8);

/// The names of the set control bits, separated by spaces: `SYN ACK`.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(Flags, &str); 5] = [
            (Flags::SYN, "SYN"),
            (Flags::ACK, "ACK"),
            (Flags::FIN, "FIN"),
            (Flags::RST, "RST"),
            (Flags::PSH, "PSH"),
        ];
        let mut is_first = true;
        for (flag, name) in NAMES {
            if self.contains(flag) {
                let blank = if is_first { "" } else { " " };
                write!(f, "{blank}{name}")?;
                is_first = false;
            }
        }
        Ok(())
    }
}

impl Flags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// The sender's first sequence number.
    pub const SYN: Self = Self(0x02);
    /// The connection is reset.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement number is valid.
    pub const ACK: Self = Self(0x10);

    /// Returns true if all of `flags` are set.
    #[inline]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Returns true if any of `flags` is set.
    #[inline]
    pub const fn intersects(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Union of both sets of bits.
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// Returns true if a segment requests a new connection: SYN without ACK, RST or FIN.
    #[inline]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0 | Self::FIN.0) == Self::SYN.0
    }
}

/// A TCP segment with a complete header.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    fixed: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Tcp<'a> {
    /// Reads a segment.
    ///
    /// # Errors
    /// The header is truncated, or its data offset is impossible.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (fixed, rest) = split::<HEADER_LEN>(bytes)?;
        let data_offset = fixed[DATA_OFFSET] >> 4;
        let header_len = usize::from(data_offset) * 4;
        let Some(options_len) = header_len.checked_sub(HEADER_LEN) else {
            let value = data_offset.into();
            return Err(WireError::Malformed {
                field: "TCP data offset",
                value,
            });
        };
        let Some((options, payload)) = rest.split_at_checked(options_len) else {
            return Err(WireError::Truncated {
                needed: header_len,
                available: bytes.len(),
            });
        };
        Ok(Self {
            fixed,
            options,
            payload,
        })
    }

    /// The sender's port.
    pub fn source_port(&self) -> u16 {
        read_u16(self.fixed, SOURCE_PORT)
    }

    /// The receiver's port.
    pub fn destination_port(&self) -> u16 {
        read_u16(self.fixed, DESTINATION_PORT)
    }

    /// The sequence number of the first byte, or of the SYN.
    pub fn sequence(&self) -> u32 {
        read_u32(self.fixed, SEQUENCE)
    }

    /// The next sequence number that the sender expects.
    pub fn acknowledgement(&self) -> u32 {
        read_u32(self.fixed, ACKNOWLEDGEMENT)
    }

    /// The control bits.
    pub fn flags(&self) -> Flags {
        Flags(self.fixed[FLAGS])
    }

    /// The window, unscaled.
    pub fn window(&self) -> u16 {
        read_u16(self.fixed, WINDOW)
    }

    /// Returns the checksum field.
    pub fn checksum(&self) -> u16 {
        read_u16(self.fixed, CHECKSUM)
    }

    /// The options' bytes.
    pub fn options(&self) -> &'a [u8] {
        self.options
    }

    /// The data.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// A TCP header without options, to be written; the caller fills in its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Control bits.
    pub flags: Flags,
    /// The window, unscaled.
    pub window: u16,
}

impl Header {
    /// Writes the header with a zero checksum.
    pub fn emit(&self, bytes: &mut [u8; HEADER_LEN]) {
        write(bytes, SOURCE_PORT, self.source_port.to_be_bytes());
        write(bytes, DESTINATION_PORT, self.destination_port.to_be_bytes());
        write(bytes, SEQUENCE, self.sequence.to_be_bytes());
        write(bytes, ACKNOWLEDGEMENT, self.acknowledgement.to_be_bytes());
        bytes[DATA_OFFSET] = 5 << 4;
        bytes[FLAGS] = self.flags.0;
        write(bytes, WINDOW, self.window.to_be_bytes());
        write(bytes, CHECKSUM, [0, 0]);
        write(bytes, URGENT, [0, 0]);
    }
}
