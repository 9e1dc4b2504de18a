//! Ethernet II frames with up to two VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).

use core::fmt;
use core::str::FromStr;

use super::{WireError, read_array, read_u16, split, write};

/// Bytes of a header without tags.
pub const HEADER_LEN: usize = 14;
/// Bytes of one VLAN tag.
pub const TAG_LEN: usize = 4;
/// The maximum number of VLAN tags that are parsed: an outer and an inner one (QinQ).
pub const MAX_TAGS: usize = 2;

const DESTINATION: usize = 0;
const SOURCE: usize = 6;
const ETHER_TYPE: usize = 12;

/// The protocol of an Ethernet frame's payload.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: Self = Self(0x0800);
    /// ARP.
    pub const ARP: Self = Self(0x0806);
    /// IPv6.
    pub const IPV6: Self = Self(0x86dd);
    /// A customer VLAN tag (802.1Q).
    pub const VLAN: Self = Self(0x8100);
    /// A service VLAN tag (802.1ad).
    pub const SERVICE_VLAN: Self = Self(0x88a8);
    /// The tag that carried QinQ before 802.1ad.
    pub const OLD_QINQ: Self = Self(0x9100);

    /// Returns true if the EtherType is that of a VLAN tag.
    pub const fn is_tag(self) -> bool {
        matches!(self, Self::VLAN | Self::SERVICE_VLAN | Self::OLD_QINQ)
    }
}

impl fmt::Debug for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:04x}", self.0)
    }
}

/// A 48-bit MAC address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The broadcast address: all ones.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// All zeros: a next hop with an unknown MAC address. The I/O counts frames to this address,
    /// and sends none.
    pub const UNKNOWN: Self = Self([0; 6]);

    /// Returns true for a group address.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An error: the text is no MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseMacError;

impl fmt::Display for ParseMacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected six hexadecimal bytes, such as 02:00:0a:0a:01:0b")
    }
}

impl core::error::Error for ParseMacError {}

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or(ParseMacError)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        if parts.next().is_some() {
            Err(ParseMacError)
        } else {
            Ok(Self(octets))
        }
    }
}

/// An Ethernet frame with parsed tags.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    fixed: &'a [u8; HEADER_LEN],
    ether_type: EtherType,
    tags: [u16; MAX_TAGS],
    tag_count: usize,
    payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Reads the header and up to [`MAX_TAGS`] VLAN tags.
    ///
    /// # Errors
    /// The frame is too short.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (fixed, mut payload) = split::<HEADER_LEN>(bytes)?;
        let mut ether_type = EtherType(read_u16(fixed, ETHER_TYPE));
        let mut tags = [0; MAX_TAGS];
        let mut tag_count = 0;
        for tag in &mut tags {
            if !ether_type.is_tag() {
                break;
            }
            let (bytes, rest) = split::<TAG_LEN>(payload)?;
            *tag = read_u16(bytes, 0);
            ether_type = EtherType(read_u16(bytes, 2));
            payload = rest;
            tag_count += 1;
        }
        Ok(Self {
            fixed,
            ether_type,
            tags,
            tag_count,
            payload,
        })
    }

    /// Destination MAC address.
    pub fn destination(&self) -> MacAddress {
        MacAddress(read_array(self.fixed, DESTINATION))
    }

    /// Source MAC address.
    pub fn source(&self) -> MacAddress {
        MacAddress(read_array(self.fixed, SOURCE))
    }

    /// Returns the EtherType behind the tags.
    pub fn ether_type(&self) -> EtherType {
        self.ether_type
    }

    /// Tag control information of the tags, outermost first.
    pub fn tags(&self) -> &[u16] {
        self.tags.get(..self.tag_count).unwrap_or_default()
    }

    /// Bytes before the payload.
    pub fn header_len(&self) -> usize {
        HEADER_LEN + TAG_LEN * self.tag_count
    }

    /// Returns the payload, with padding.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// An Ethernet header without tags, to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Destination MAC address.
    pub destination: MacAddress,
    /// Source MAC address.
    pub source: MacAddress,
    /// The EtherType of the payload.
    pub ether_type: EtherType,
}

impl Header {
    /// Writes the header.
    #[inline]
    pub fn emit(&self, bytes: &mut [u8; HEADER_LEN]) {
        write(bytes, DESTINATION, self.destination.0);
        write(bytes, SOURCE, self.source.0);
        write(bytes, ETHER_TYPE, self.ether_type.0.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn mac_addresses_read_back_as_written() {
        let mac: MacAddress = "02:00:0a:0a:01:0b".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:0a:0a:01:0b");
        assert_eq!("02-00-0A-0A-01-0B".parse(), Ok(mac));
        for bad in [
            "",
            "02:00",
            "02:00:0a:0a:01:0b:0c",
            "02:00:0a:0a:01:+b",
            "2:0:a:a:1:b",
        ] {
            assert_eq!(bad.parse::<MacAddress>(), Err(ParseMacError), "{bad}");
        }
    }

    #[test]
    fn a_third_tag_is_left_to_whoever_understands_it() {
        let mut frame = [0u8; 14 + 12];
        for (at, ether_type) in [(12, 0x88a8u16), (16, 0x8100), (20, 0x8100), (24, 0x0800)] {
            frame[at..at + 2].copy_from_slice(&ether_type.to_be_bytes());
        }
        let view = Ethernet::parse(&frame).unwrap();
        assert_eq!(view.ether_type(), EtherType::VLAN);
        assert_eq!(
            (view.tags().len(), view.header_len(), view.payload().len()),
            (2, 22, 4)
        );
    }
}
