//! IPv4 (RFC 791), options included.

use core::net::Ipv4Addr;

use super::{WireError, checksum, read_array, read_u16, split, write};

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

const VERSION_IHL: usize = 0;
const TRAFFIC_CLASS: usize = 1;
const TOTAL_LEN: usize = 2;
const IDENTIFICATION: usize = 4;
const FLAGS_FRAGMENT: usize = 6;
const TTL: usize = 8;
const PROTOCOL: usize = 9;
const CHECKSUM: usize = 10;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;

/// Options (RFC 791 §3.1).
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_ROUTE: u8 = 131;
const STRICT_ROUTE: u8 = 137;

/// "Don't fragment", in the word of flags and fragment offset.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// "More fragments", in the same word.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset's bits, in the same word; in units of 8 bytes.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// An IPv4 packet whose lengths agree with the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a> {
    fixed: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// Reads a packet; bytes beyond its total length (Ethernet's padding) are left out.
    ///
    /// # Errors
    /// The version is wrong, a length is impossible, or there are fewer bytes than the total
    /// length.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let view = Self::parse_quoted(bytes)?;
        let needed = view.total_len();
        if bytes.len() < needed {
            return Err(WireError::Truncated {
                needed,
                available: bytes.len(),
            });
        }
        Ok(view)
    }

    /// Reads a packet that may be truncated after its header, like one quoted in an ICMP error.
    ///
    /// # Errors
    /// The version is wrong, a length is impossible, or the header is truncated.
    pub fn parse_quoted(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (fixed, rest) = split::<HEADER_LEN>(bytes)?;
        let version = fixed[VERSION_IHL] >> 4;
        if version != 4 {
            return Err(WireError::Malformed {
                field: "IPv4 version",
                value: version.into(),
            });
        }
        let header_len = usize::from(fixed[VERSION_IHL] & 0x0f) * 4;
        let total_len = read_u16(fixed, TOTAL_LEN);
        let Some(options_len) = header_len.checked_sub(HEADER_LEN) else {
            let value = u32::from(fixed[VERSION_IHL] & 0x0f);
            return Err(WireError::Malformed {
                field: "IPv4 header length",
                value,
            });
        };
        let Some(payload_len) = usize::from(total_len).checked_sub(header_len) else {
            let value = total_len.into();
            return Err(WireError::Malformed {
                field: "IPv4 total length",
                value,
            });
        };
        let Some((options, payload)) = rest.split_at_checked(options_len) else {
            return Err(WireError::Truncated {
                needed: header_len,
                available: bytes.len(),
            });
        };
        let payload = payload.get(..payload_len).unwrap_or(payload);
        Ok(Self {
            fixed,
            options,
            payload,
        })
    }

    /// Bytes of the header with its options.
    pub fn header_len(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    /// Bytes of the packet as its header says.
    pub fn total_len(&self) -> usize {
        read_u16(self.fixed, TOTAL_LEN).into()
    }

    /// DSCP and ECN (RFC 2474, RFC 3168).
    pub fn traffic_class(&self) -> u8 {
        self.fixed[TRAFFIC_CLASS]
    }

    /// Identification of the datagram that a fragment belongs to.
    pub fn identification(&self) -> u16 {
        read_u16(self.fixed, IDENTIFICATION)
    }

    /// Returns true if routers must not fragment the packet.
    pub fn dont_fragment(&self) -> bool {
        self.flags_fragment() & DONT_FRAGMENT != 0
    }

    /// Returns true if the packet is a part of a datagram.
    pub fn is_fragment(&self) -> bool {
        self.flags_fragment() & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    /// Returns true if the packet has the beginning of the datagram, and so its ports.
    pub fn is_first_fragment(&self) -> bool {
        self.flags_fragment() & FRAGMENT_OFFSET == 0
    }

    /// Returns the offset of the payload in the datagram's, in bytes.
    pub fn fragment_offset(&self) -> usize {
        usize::from(self.flags_fragment() & FRAGMENT_OFFSET) * 8
    }

    /// Returns true if further fragments follow.
    pub fn more_fragments(&self) -> bool {
        self.flags_fragment() & MORE_FRAGMENTS != 0
    }

    fn flags_fragment(&self) -> u16 {
        read_u16(self.fixed, FLAGS_FRAGMENT)
    }

    /// Returns the remaining hops.
    pub fn ttl(&self) -> u8 {
        self.fixed[TTL]
    }

    /// Returns the protocol of the payload.
    pub fn protocol(&self) -> u8 {
        self.fixed[PROTOCOL]
    }

    /// Returns the header checksum field.
    pub fn checksum(&self) -> u16 {
        read_u16(self.fixed, CHECKSUM)
    }

    /// Returns true if the header checksum is right.
    pub fn checksum_is_right(&self) -> bool {
        checksum::Sum::ZERO
            .add_bytes(self.fixed)
            .add_bytes(self.options)
            .checksum()
            == 0
    }

    /// Source address.
    pub fn source(&self) -> Ipv4Addr {
        Ipv4Addr::from(read_array(self.fixed, SOURCE))
    }

    /// Destination address.
    pub fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::from(read_array(self.fixed, DESTINATION))
    }

    /// The options' bytes.
    pub fn options(&self) -> &'a [u8] {
        self.options
    }

    /// Returns true if the destination is only the next hop of a loose or strict source route with
    /// hops left (RFC 791 §3.1). Malformed options count as none.
    pub fn is_on_source_route(&self) -> bool {
        let mut options = self.options;
        while let [kind, rest @ ..] = options {
            match (*kind, rest) {
                (END_OF_OPTIONS, _) => return false,
                (NO_OPERATION, _) => options = rest,
                (LOOSE_ROUTE | STRICT_ROUTE, [len, pointer, ..]) => return pointer <= len,
                (_, [len, ..]) if *len >= 2 => {
                    options = options.get(usize::from(*len)..).unwrap_or(&[]);
                }
                _ => return false,
            }
        }
        false
    }

    /// Returns the payload, as far as it is present.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// An IPv4 header without options, to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes of header and payload.
    pub total_len: u16,
    /// Identification of the datagram; may be zero with "don't fragment" (RFC 6864).
    pub identification: u16,
    /// Flags and fragment offset.
    pub flags_fragment: u16,
    /// The remaining hops.
    pub ttl: u8,
    /// The protocol of the payload.
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
}

impl Header {
    /// Writes the header, checksum included.
    pub fn emit(&self, bytes: &mut [u8; HEADER_LEN]) {
        bytes[VERSION_IHL] = 0x45;
        bytes[TRAFFIC_CLASS] = self.traffic_class;
        write(bytes, TOTAL_LEN, self.total_len.to_be_bytes());
        write(bytes, IDENTIFICATION, self.identification.to_be_bytes());
        write(bytes, FLAGS_FRAGMENT, self.flags_fragment.to_be_bytes());
        bytes[TTL] = self.ttl;
        bytes[PROTOCOL] = self.protocol;
        write(bytes, CHECKSUM, [0, 0]);
        write(bytes, SOURCE, self.source.octets());
        write(bytes, DESTINATION, self.destination.octets());
        let checksum = checksum::checksum(bytes);
        write(bytes, CHECKSUM, checksum.to_be_bytes());
    }
}

/// Returns true if the checksum of a header without options is right (RFC 1071 §1).
#[inline]
pub fn checksum_is_right(header: &[u8; HEADER_LEN]) -> bool {
    let first = u64::from_le_bytes(read_array(header, 0));
    let second = u32::from_le_bytes(read_array(header, 8));
    let addresses = u64::from_le_bytes(read_array(header, SOURCE));
    // Words of 64 bits in any byte order, with end-around carries (RFC 1071 §2, B and C). The sum
    // is not zero, since it includes the version.
    let (sum, carry) = first.overflowing_add(addresses);
    let (sum, second_carry) = sum.overflowing_add(u64::from(second) + u64::from(carry));
    // A sum folds to 65535 if it is a multiple of it; the remainder by a constant is a
    // multiplication, not a division.
    sum.wrapping_add(u64::from(second_carry)) % 0xffff == 0
}

/// Returns true if the checksum of an unfragmented packet's header without options is right. The
/// header is given as little-endian words: bytes 0 to 7, 8 to 11 and 12 to 19. The fragment offset
/// is the last byte of the first word.
#[inline(always)] // in the innermost loop of a mux
pub(crate) fn checksum_of_whole_is_right(first: u64, second: u32, addresses: u64) -> bool {
    debug_assert!(first >> 56 == 0, "a fragment");
    // So the first sum has no carry.
    let (sum, carry) = (first + u64::from(second)).overflowing_add(addresses);
    sum.wrapping_add(u64::from(carry)) % 0xffff == 0
}

/// Decrements the TTL of a header and updates its checksum.
///
/// The caller has checked that the TTL is not zero.
#[inline]
pub fn decrement_ttl(header: &mut [u8; HEADER_LEN]) {
    header[TTL] = header[TTL].wrapping_sub(1);
    // RFC 1624 §3, equation 3, with m' = m - 0x0100: ~m + m' is 0xfeff, and the complement of
    // adding that is adding 0x0100; with both bytes of each word swapped (RFC 1071 §2, B), adding 1.
    let sum = u32::from(u16::from_le_bytes(read_array(header, CHECKSUM))) + 1;
    let checksum = (sum + u32::from(sum >= 0xffff)) as u16;
    write(header, CHECKSUM, checksum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 192.168.0.1 to 192.168.0.199, UDP, length 115: the widely published example.
    fn published() -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        Header {
            traffic_class: 0,
            total_len: 0x73,
            identification: 0,
            flags_fragment: DONT_FRAGMENT,
            ttl: 64,
            protocol: 17,
            source: Ipv4Addr::new(192, 168, 0, 1),
            destination: Ipv4Addr::new(192, 168, 0, 199),
        }
        .emit(&mut header);
        header
    }

    #[test]
    fn the_published_header_and_its_decremented_ttl() {
        let mut header = published();
        assert_eq!(read_u16(&header, CHECKSUM), 0xb861);
        decrement_ttl(&mut header);
        assert_eq!((header[TTL], read_u16(&header, CHECKSUM)), (63, 0xb961));
    }

    /// Miri takes a thousand times as long.
    const STEP: usize = if cfg!(miri) { 997 } else { 1 };

    #[test]
    fn one_checksum_is_right_and_all_others_are_wrong() {
        for identification in [0, 1, 0x4711, 0xfffe, 0xffff] {
            let mut header = published();
            write(&mut header, IDENTIFICATION, [0xff, identification as u8]);
            write(&mut header, CHECKSUM, [0, 0]);
            let right = checksum::checksum(&header);
            for candidate in (0..=u16::MAX).step_by(STEP) {
                write(&mut header, CHECKSUM, candidate.to_be_bytes());
                assert_eq!(checksum_is_right(&header), candidate == right);
                let slow = Ipv4::parse_quoted(&header).map(|view| view.checksum_is_right());
                assert_eq!(slow, Ok(candidate == right));
            }
        }
        assert!(checksum_is_right(&published()));
        assert!(!checksum_is_right(&[0xff; HEADER_LEN]) || checksum::checksum(&[0xff; 20]) == 0);
    }

    #[test]
    fn a_wrong_checksum_stays_as_wrong() {
        for error in (1..=u16::MAX).step_by(STEP) {
            let mut header = published();
            let wrong = checksum::update(read_u16(&header, CHECKSUM), 0, error);
            write(&mut header, CHECKSUM, wrong.to_be_bytes());
            decrement_ttl(&mut header);
            let right = checksum::update(0xb961, 0, error);
            assert_eq!(read_u16(&header, CHECKSUM), right);
        }
    }

    #[test]
    fn every_ttl_is_decremented_with_a_right_checksum() {
        for ttl in 1..=255 {
            let mut header = published();
            header[TTL] = ttl;
            write(&mut header, CHECKSUM, [0, 0]);
            let right = checksum::checksum(&header);
            write(&mut header, CHECKSUM, right.to_be_bytes());
            decrement_ttl(&mut header);
            assert_eq!(header[TTL], ttl - 1);
            assert_eq!(checksum::checksum(&header), 0, "ttl {ttl}");
        }
    }
}
