//! IPv6 and its extension headers (RFC 8200).

use core::net::Ipv6Addr;

use super::{WireError, protocol, read_array, read_u16, read_u32, split, write};

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Bytes of a fragment header.
pub const FRAGMENT_HEADER_LEN: usize = 8;
/// The longest chain of extension headers that is parsed. RFC 8200 sets no limit, RFC 8504 §5.3
/// permits one; longer chains occur only in attacks.
pub const MAX_EXTENSIONS: usize = 8;
/// The minimum MTU of every link (RFC 8200 §5).
pub const MIN_MTU: usize = 1280;

const VERSION_CLASS_LABEL: usize = 0;
const PAYLOAD_LEN: usize = 4;
const NEXT_HEADER: usize = 6;
const HOP_LIMIT: usize = 7;
const SOURCE: usize = 8;
const DESTINATION: usize = 24;

/// The fields of a fragment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification of the packet that the fragment belongs to.
    pub identification: u32,
    /// Offset in the fragmentable part, in bytes.
    pub offset: u16,
    /// True if further fragments follow.
    pub more: bool,
}

impl Fragment {
    /// Returns true if the fragment is a part of a packet. An atomic fragment (RFC 6946), both
    /// first and last, is a whole packet.
    pub fn is_part(&self) -> bool {
        self.offset != 0 || self.more
    }
}

/// An IPv6 packet whose lengths agree with the bytes, with parsed extension headers.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a> {
    fixed: &'a [u8; HEADER_LEN],
    protocol: u8,
    transport_offset: usize,
    fragment: Option<Fragment>,
    /// Offset of the fragmentable part: after the fragment header, or else after the fixed header.
    fragmentable_offset: usize,
    chain_is_cut: bool,
    is_on_source_route: bool,
    payload: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// Reads a packet; bytes beyond its payload length are left out. The header chain of a first
    /// fragment may be [cut](Self::chain_is_cut).
    ///
    /// # Errors
    /// The version is wrong, an extension header does not fit, there are too many of them, or there
    /// are fewer bytes than the payload length.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (fixed, _) = split::<HEADER_LEN>(bytes)?;
        let needed = HEADER_LEN + usize::from(read_u16(fixed, PAYLOAD_LEN));
        match bytes.get(..needed) {
            Some(packet) => Self::read(packet, true),
            None => Err(WireError::Truncated {
                needed,
                available: bytes.len(),
            }),
        }
    }

    /// Reads a packet that may be truncated after its headers, like one quoted in an ICMPv6 error.
    ///
    /// # Errors
    /// The version is wrong, an extension header does not fit, or there are too many of them.
    pub fn parse_quoted(bytes: &'a [u8]) -> Result<Self, WireError> {
        Self::read(bytes, false)
    }

    fn read(bytes: &'a [u8], may_be_cut: bool) -> Result<Self, WireError> {
        let (fixed, rest) = split::<HEADER_LEN>(bytes)?;
        let version = fixed[VERSION_CLASS_LABEL] >> 4;
        if version != 6 {
            return Err(WireError::Malformed {
                field: "IPv6 version",
                value: version.into(),
            });
        }
        let payload_len = usize::from(read_u16(fixed, PAYLOAD_LEN));
        let mut payload = rest.get(..payload_len).unwrap_or(rest);
        let mut next = fixed[NEXT_HEADER];
        let mut fragment = None;
        let mut is_on_source_route = false;
        let mut fragmentable_offset = HEADER_LEN;
        for _ in 0..=MAX_EXTENSIONS {
            let found = match extension_len(next, payload) {
                Ok(None) => Ok(None),
                Ok(Some(len)) => match payload.split_at_checked(len) {
                    Some(split) => Ok(Some(split)),
                    None => Err(WireError::Truncated {
                        needed: len,
                        available: payload.len(),
                    }),
                },
                Err(error) => Err(error),
            };
            let is_first = fragment.is_some_and(|fragment: Fragment| fragment.more);
            let (found, chain_is_cut) = match found {
                Ok(found) => (found, false),
                Err(_) if may_be_cut && is_first => (None, true),
                Err(error) => return Err(error),
            };
            let Some((header, behind)) = found else {
                let transport_offset = HEADER_LEN + payload_offset(rest, payload);
                return Ok(Self {
                    fixed,
                    protocol: next,
                    transport_offset,
                    fragment,
                    fragmentable_offset,
                    chain_is_cut,
                    is_on_source_route,
                    payload,
                });
            };
            let is_fragment = next == protocol::FRAGMENT;
            // Segments left.
            is_on_source_route |= next == protocol::ROUTING && header.get(3) != Some(&0);
            next = header.first().copied().unwrap_or(protocol::NO_NEXT_HEADER);
            payload = behind;
            if is_fragment {
                fragmentable_offset = HEADER_LEN + payload_offset(rest, payload);
                let found = parse_fragment(header)?;
                // Of several fragment headers, the outermost decides whether the packet is a part.
                fragment = match fragment {
                    Some(outer) if outer.is_part() && found.offset == 0 => Some(outer),
                    _ => Some(found),
                };
                if found.offset != 0 {
                    // The bytes after it are the middle of a packet, not another header.
                    let transport_offset = HEADER_LEN + payload_offset(rest, payload);
                    return Ok(Self {
                        fixed,
                        protocol: next,
                        transport_offset,
                        fragment,
                        fragmentable_offset,
                        chain_is_cut: false,
                        is_on_source_route,
                        payload,
                    });
                }
            }
        }
        let value = MAX_EXTENSIONS as u32 + 1;
        Err(WireError::Malformed {
            field: "IPv6 extension header count",
            value,
        })
    }

    /// DSCP and ECN.
    pub fn traffic_class(&self) -> u8 {
        (read_u16(self.fixed, VERSION_CLASS_LABEL) >> 4) as u8
    }

    /// The flow label, 20 bits.
    pub fn flow_label(&self) -> u32 {
        read_u32(self.fixed, VERSION_CLASS_LABEL) & 0x000f_ffff
    }

    /// Bytes of the packet as its header says.
    pub fn total_len(&self) -> usize {
        HEADER_LEN + usize::from(read_u16(self.fixed, PAYLOAD_LEN))
    }

    /// Returns the remaining hops.
    pub fn hop_limit(&self) -> u8 {
        self.fixed[HOP_LIMIT]
    }

    /// Returns the protocol after the extension headers.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Returns the offset of the transport header from the start of the packet, in bytes.
    pub fn transport_offset(&self) -> usize {
        self.transport_offset
    }

    /// Returns the fragment header, if there is one.
    pub fn fragment(&self) -> Option<Fragment> {
        self.fragment
    }

    /// Returns the offset of the fragmentable part from the start of the packet, in bytes:
    /// fragments' offsets count from there.
    pub fn fragmentable_offset(&self) -> usize {
        self.fragmentable_offset
    }

    /// Returns true if the packet is a first fragment that ends before its header chain does, which
    /// RFC 7112 §5 forbids: [`protocol`](Self::protocol) is then an extension header's.
    pub fn chain_is_cut(&self) -> bool {
        self.chain_is_cut
    }

    /// Returns true if the destination is only the next hop of a source route: a routing header has
    /// segments left (RFC 8200 §4.4).
    pub fn is_on_source_route(&self) -> bool {
        self.is_on_source_route
    }

    /// Source address.
    pub fn source(&self) -> Ipv6Addr {
        Ipv6Addr::from(read_array::<HEADER_LEN, 16>(self.fixed, SOURCE))
    }

    /// Destination address.
    pub fn destination(&self) -> Ipv6Addr {
        Ipv6Addr::from(read_array::<HEADER_LEN, 16>(self.fixed, DESTINATION))
    }

    /// Returns the payload after the extension headers, as far as it is present.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Returns true if a next-header value is that of an extension header, which another header
/// follows.
pub(crate) const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
            | protocol::AUTHENTICATION
            | protocol::FRAGMENT
    )
}

/// Returns the length of the extension header `next` at the start of `bytes`; `None` if `next` is
/// no extension header, or if it hides the following bytes (ESP).
fn extension_len(next: u8, bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let announced = || match bytes.get(1) {
        Some(&len) => Ok(usize::from(len)),
        None => Err(WireError::Truncated {
            needed: 8,
            available: bytes.len(),
        }),
    };
    Ok(Some(match next {
        protocol::HOP_BY_HOP
        | protocol::ROUTING
        | protocol::DESTINATION_OPTIONS
        | protocol::MOBILITY
        | protocol::HIP
        | protocol::SHIM6 => (announced()? + 1) * 8,
        protocol::AUTHENTICATION => (announced()? + 2) * 4, // RFC 4302 §2.2
        protocol::FRAGMENT => FRAGMENT_HEADER_LEN,
        _ => return Ok(None),
    }))
}

fn parse_fragment(header: &[u8]) -> Result<Fragment, WireError> {
    let (header, _) = split::<FRAGMENT_HEADER_LEN>(header)?;
    let offset_flags = read_u16(header, 2);
    Ok(Fragment {
        identification: read_u32(header, 4),
        offset: offset_flags & 0xfff8,
        more: offset_flags & 1 != 0,
    })
}

/// Returns the offset of `inner`, a tail of `outer`'s beginning, in `outer`.
fn payload_offset(outer: &[u8], inner: &[u8]) -> usize {
    inner.as_ptr().addr() - outer.as_ptr().addr()
}

/// An IPv6 header, to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The flow label, 20 bits.
    pub flow_label: u32,
    /// Bytes after this header.
    pub payload_len: u16,
    /// The protocol of the payload.
    pub next_header: u8,
    /// The remaining hops.
    pub hop_limit: u8,
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
}

impl Header {
    /// Writes the header.
    pub fn emit(&self, bytes: &mut [u8; HEADER_LEN]) {
        let word = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0x000f_ffff;
        write(bytes, VERSION_CLASS_LABEL, word.to_be_bytes());
        write(bytes, PAYLOAD_LEN, self.payload_len.to_be_bytes());
        bytes[NEXT_HEADER] = self.next_header;
        bytes[HOP_LIMIT] = self.hop_limit;
        write(bytes, SOURCE, self.source.octets());
        write(bytes, DESTINATION, self.destination.octets());
    }
}

/// Decrements the hop limit; zero stays.
#[inline]
pub fn decrement_hop_limit(header: &mut [u8; HEADER_LEN]) {
    header[HOP_LIMIT] = header[HOP_LIMIT].saturating_sub(1);
}
