//! VXLAN (RFC 7348): an Ethernet frame in a UDP datagram.

use core::fmt;

use super::{WireError, read_u32, split, write};

/// Bytes of a header.
pub const HEADER_LEN: usize = 8;
/// The UDP port of VXLAN.
pub const PORT: u16 = 4789;

const FLAGS: usize = 0;
const VNI: usize = 4;

/// The I flag: the VNI is valid. All other bits are reserved, and sent as zero.
const VNI_VALID: u32 = 0x0800_0000;

/// A VXLAN network identifier: 24 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier.
    pub const MAX: Self = Self(0x00ff_ffff);

    /// The identifier `value`; `None` if it needs more than 24 bits.
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A VXLAN packet with a valid VNI.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan<'a> {
    fixed: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Vxlan<'a> {
    /// Reads a packet; ignores reserved bits, as RFC 7348 §5 requires.
    ///
    /// # Errors
    /// The header is truncated, or its I flag is not set.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (fixed, payload) = split::<HEADER_LEN>(bytes)?;
        let flags = read_u32(fixed, FLAGS);
        if flags & VNI_VALID == 0 {
            return Err(WireError::Malformed {
                field: "VXLAN flags",
                value: flags,
            });
        }
        Ok(Self { fixed, payload })
    }

    /// Network of the inner frame.
    pub fn vni(&self) -> Vni {
        Vni(read_u32(self.fixed, VNI) >> 8)
    }

    /// The inner Ethernet frame.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// A VXLAN header, to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Network of the inner frame.
    pub vni: Vni,
}

impl Header {
    /// Writes the header, with zero reserved bits.
    pub fn emit(&self, bytes: &mut [u8; HEADER_LEN]) {
        write(bytes, FLAGS, VNI_VALID.to_be_bytes());
        write(bytes, VNI, (self.vni.0 << 8).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_reserved_bits_are_zero() {
        let vni = Vni::new(0x12_3456).unwrap();
        let mut bytes = [0xff; HEADER_LEN];
        Header { vni }.emit(&mut bytes);
        assert_eq!(bytes, [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(Vxlan::parse(&bytes).unwrap().vni(), vni);
        assert_eq!(Vni::new(1 << 24), None);
    }

    #[test]
    fn without_the_i_flag_there_is_no_vni() {
        assert!(Vxlan::parse(&[0xf7, 0, 0, 0, 0, 0, 1, 0]).is_err());
        assert!(Vxlan::parse(&[0x08, 0, 0, 0, 0, 0, 1]).is_err());
    }
}
