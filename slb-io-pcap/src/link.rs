//! Conversion of link headers in captures to Ethernet.
//!
//! The dataplane only reads Ethernet. A packet that was captured without it (raw IP, Linux cooked)
//! gets an Ethernet header with the captured MAC addresses, or zeros.

use std::fmt;

use slb_core::wire::ethernet::HEADER_LEN;

/// A link type (the numbers of `LINKTYPE_` values).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkType(pub u16);

impl LinkType {
    /// BSD loopback: an address family in the byte order of the capturing machine.
    pub const NULL: Self = Self(0);
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// IP without a link-layer header.
    pub const RAW: Self = Self(101);
    /// `DLT_RAW` of most systems, which some programs write instead of [`RAW`](Self::RAW).
    pub const DLT_RAW: Self = Self(12);
    /// `DLT_RAW` of OpenBSD.
    pub const DLT_RAW_OPENBSD: Self = Self(14);
    /// OpenBSD loopback: an address family in network byte order.
    pub const LOOP: Self = Self(108);
    /// Linux cooked, version 1.
    pub const LINUX_SLL: Self = Self(113);
    /// IPv4 without a link-layer header.
    pub const IPV4: Self = Self(228);
    /// IPv6 without a link-layer header.
    pub const IPV6: Self = Self(229);
    /// Linux cooked, version 2.
    pub const LINUX_SLL2: Self = Self(276);

    /// Returns the link type's name, if it is a common one.
    ///
    /// # Source
    /// <https://www.tcpdump.org/linktypes.html>
    pub fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "BSD loopback",
            1 => "Ethernet",
            6 => "token ring",
            7 => "ARCNET",
            8 => "SLIP",
            9 => "PPP",
            10 => "FDDI",
            12 | 14 | 101 => "raw IP",
            50 => "PPP in HDLC framing",
            51 => "PPPoE session",
            100 => "LLC/SNAP over ATM",
            104 => "Cisco HDLC",
            105 => "IEEE 802.11",
            107 => "frame relay",
            108 => "OpenBSD loopback",
            113 => "Linux cooked v1",
            114 => "LocalTalk",
            117 => "OpenBSD pflog",
            119 => "Prism",
            127 => "IEEE 802.11 radiotap",
            143 => "DOCSIS",
            147..=162 => "private use",
            163 => "IEEE 802.11 AVS",
            187 | 201 => "Bluetooth HCI H4",
            189 | 220 => "USB of Linux",
            192 => "PPI",
            195 | 215 | 230 => "IEEE 802.15.4",
            204 => "PPP with direction",
            209 => "IPMB",
            227 => "CAN",
            228 => "raw IPv4",
            229 => "raw IPv6",
            231 => "D-Bus",
            239 => "NFLOG",
            243 => "MPEG-2 transport stream",
            247 => "InfiniBand",
            248 => "SCTP",
            249 => "USBPcap",
            251 | 256 => "Bluetooth LE",
            253 => "Linux netlink",
            258 => "pktap",
            276 => "Linux cooked v2",
            _ => return None,
        })
    }

    /// Returns true if packets of this link type are supported. A supported packet is left out only
    /// if it is too short, or contains no IP packet where the link type requires one.
    pub fn is_read(self) -> bool {
        const READ: [LinkType; 10] = [
            LinkType::NULL,
            LinkType::ETHERNET,
            LinkType::DLT_RAW,
            LinkType::DLT_RAW_OPENBSD,
            LinkType::RAW,
            LinkType::LOOP,
            LinkType::LINUX_SLL,
            LinkType::IPV4,
            LinkType::IPV6,
            LinkType::LINUX_SLL2,
        ];
        READ.contains(&self)
    }

    /// Returns an Ethernet header in place of the packet's own, and the offset of its payload;
    /// `None` if the link type is not known, or the packet too short for it.
    pub(crate) fn to_ethernet(self, packet: &[u8]) -> Option<(Header, usize)> {
        let ip = |at: usize| {
            let version = packet.get(at)? >> 4;
            let ether_type = match version {
                4 => [0x08, 0x00],
                6 => [0x86, 0xdd],
                _ => return None,
            };
            Some((header([0; 6], ether_type), at))
        };
        match self {
            Self::ETHERNET => Some((Header::Kept, 0)),
            Self::RAW | Self::DLT_RAW | Self::DLT_RAW_OPENBSD | Self::IPV4 | Self::IPV6 => ip(0),
            Self::NULL | Self::LOOP => ip(4),
            Self::LINUX_SLL => {
                let sll: &[u8; 16] = packet.first_chunk()?;
                let len = usize::from(u16::from_be_bytes([sll[4], sll[5]]));
                Some((header(mac(&sll[6..14], len), [sll[14], sll[15]]), 16))
            }
            Self::LINUX_SLL2 => {
                let sll: &[u8; 20] = packet.first_chunk()?;
                let len = usize::from(sll[11]);
                Some((header(mac(&sll[12..20], len), [sll[0], sll[1]]), 20))
            }
            _ => None,
        }
    }
}

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} ({name})", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The header before the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// The packet's own.
    Kept,
    /// One made for it.
    Made([u8; HEADER_LEN]),
}

fn header(source: [u8; 6], ether_type: [u8; 2]) -> Header {
    let mut header = [0; HEADER_LEN];
    header[6..12].copy_from_slice(&source);
    header[12..].copy_from_slice(&ether_type);
    Header::Made(header)
}

/// Returns a link-layer address, if it is an Ethernet address.
fn mac(field: &[u8], len: usize) -> [u8; 6] {
    match field.first_chunk() {
        Some(&mac) if len == 6 => mac,
        _ => [0; 6],
    }
}
