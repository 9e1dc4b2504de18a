//! The targets are in `tests/`: headers, each role with arbitrary and with structured frames, flows over time
//! against a model, specs, captures, configurations and imports, the C functions. The flow table's and Maglev's
//! own models are in `slb-core/tests`. For a moment each: `cargo test -p slb-fuzz`. With libFuzzer, for
//! as long as one likes: `cargo bolero test --rustc-bootstrap -p slb-fuzz -s NONE -T 1h NAME` (needs
//! `cargo install cargo-bolero`). What it found worth keeping is in `tests/__fuzz__`, and is replayed first.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bolero::TypeGenerator;
use etherparse::checksum::Sum16BitWords;
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

/// The VIPs that packets are for.
pub const VIP: [u8; 4] = [20, 20, 20, 100];
/// The VIP over IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100);

/// A packet that is right, or nearly.
#[derive(Clone, Debug, TypeGenerator)]
pub struct Nearly {
    kind: u8,
    client: u8,
    ports: (u8, u8),
    flags: u8,
    data: Vec<u8>,
    changes: Vec<(u8, u8)>,
    cut: u8,
    tags: u8,
    /// Bytes before it.
    pub headroom: u8,
}

impl Nearly {
    /// A packet for a VIP.
    pub fn packet(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1]);
        let ip = match self.kind & 1 {
            0 => link.ipv4([10, 0, 0, self.client], VIP, 64),
            _ => link.ipv6([self.client; 16], VIP6.octets(), 64),
        };
        let port = [80, 53, 81][usize::from(self.ports.1) % 3];
        let mut packet = Vec::new();
        let data = &self.data;
        match self.kind >> 1 & 3 {
            0 => ip
                .tcp(self.ports.0.into(), port, 1, 1)
                .write(&mut packet, data),
            1 => ip.udp(self.ports.0.into(), port).write(&mut packet, data),
            2 => {
                let identifier = self.ports.0.into();
                match (self.kind & 1, self.flags & 1) {
                    (0, 0) => ip
                        .icmpv4_echo_request(identifier, 1)
                        .write(&mut packet, data),
                    (0, _) => ip.icmpv4_echo_reply(identifier, 1).write(&mut packet, data),
                    (_, 0) => ip
                        .icmpv6_echo_request(identifier, 1)
                        .write(&mut packet, data),
                    _ => ip.icmpv6_echo_reply(identifier, 1).write(&mut packet, data),
                }
            }
            _ if self.kind & 1 == 0 => ip
                .icmpv4_raw(self.flags, self.ports.0, [0; 4])
                .write(&mut packet, &self.quoted()),
            _ => ip
                .icmpv6_raw(self.flags, self.ports.0, [0; 4])
                .write(&mut packet, &self.quoted()),
        }
        .unwrap();
        if self.kind >> 1 & 3 == 0 {
            let flags = if self.kind & 1 == 0 { 47 } else { 67 };
            write(&mut packet, &[(flags, &[self.flags])]);
        }
        if self.kind & 0x80 != 0 {
            return packet; // half of them are right
        }
        for _ in 0..self.tags % 4 {
            packet.splice(12..12, [0x81, 0, 0, 5]);
        }
        for &(at, value) in self.changes.iter().take(4) {
            let at = usize::from(at) % packet.len();
            packet[at] = value;
        }
        // Behind a wrong checksum there is nothing else to find.
        if self.kind & 0x40 == 0 {
            right_header(&mut packet);
        }
        if self.cut & 1 == 1 {
            packet.truncate(usize::from(self.cut));
        }
        packet
    }

    /// The packet that an ICMP error quotes: one from the VIP.
    fn quoted(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([0; 6], [0; 6]);
        let ip = match self.kind & 1 {
            0 => link.ipv4(VIP, [10, 0, 0, self.client], 64),
            _ => link.ipv6(VIP6.octets(), [self.client; 16], 64),
        };
        let mut packet = Vec::new();
        ip.tcp(80, self.ports.0.into(), 1, 1)
            .write(&mut packet, &self.data)
            .unwrap();
        packet.split_off(14)
    }
}

/// Puts bytes into a frame, where they fit. A frame with right checksums is given right ones again.
pub fn write(frame: &mut [u8], parts: &[(usize, &[u8])]) {
    let was_right = is_right(frame);
    for &(at, bytes) in parts {
        if let Some(place) = frame.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    if was_right && let Some(fields) = checksums(frame) {
        for Checksum { at, right, .. } in fields.into_iter().flatten() {
            frame[at..at + 2].copy_from_slice(&right.to_be_bytes());
        }
    }
}

/// The ends of a whole TCP, UDP or ICMP echo packet with right checksums and without extension headers, and
/// its data. An echo's identifier stands for the port of who asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Talk {
    /// The sender.
    pub from: SocketAddr,
    /// The receiver.
    pub to: SocketAddr,
    /// True if this is a TCP segment that ends its connection at once.
    pub is_reset: bool,
    /// The payload.
    pub data: Vec<u8>,
}

impl Talk {
    /// Reads a frame; `None` if it is no such packet.
    pub fn of(frame: &[u8]) -> Option<Self> {
        is_right(frame).then_some(())?;
        let sliced = SlicedPacket::from_ethernet(frame).ok()?;
        let (from, to): (IpAddr, IpAddr) = match sliced.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                )
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                )
            }
            NetSlice::Arp(_) => return None,
        };
        let (ports, is_reset, data) = match sliced.transport.as_ref()? {
            TransportSlice::Tcp(tcp) => {
                let ports = (tcp.source_port(), tcp.destination_port());
                (ports, tcp.rst(), tcp.payload())
            }
            TransportSlice::Udp(udp) => {
                let ports = (udp.source_port(), udp.destination_port());
                (ports, false, udp.payload())
            }
            TransportSlice::Icmpv4(icmp) => {
                let ports = match icmp.icmp_type() {
                    Icmpv4Type::EchoRequest(echo) => (echo.id, 0),
                    Icmpv4Type::EchoReply(echo) => (0, echo.id),
                    _ => return None,
                };
                (ports, false, icmp.payload())
            }
            TransportSlice::Icmpv6(icmp) => {
                let ports = match icmp.icmp_type() {
                    Icmpv6Type::EchoRequest(echo) => (echo.id, 0),
                    Icmpv6Type::EchoReply(echo) => (0, echo.id),
                    _ => return None,
                };
                (ports, false, icmp.payload())
            }
            _ => return None,
        };
        Some(Self {
            from: SocketAddr::new(from, ports.0),
            to: SocketAddr::new(to, ports.1),
            is_reset,
            data: data.to_vec(),
        })
    }

    /// Returns the other end's answer, with the same data, as an acknowledgement.
    pub fn answer(frame: &[u8]) -> Option<Vec<u8>> {
        let sliced = SlicedPacket::from_ethernet(frame).ok()?;
        let mut answer = frame.to_vec();
        let mut swap = |at: usize, len: usize| {
            let (one, other) = answer[at..at + 2 * len].split_at_mut(len);
            one.swap_with_slice(other);
        };
        let offset = |part: &[u8]| part.as_ptr().addr() - frame.as_ptr().addr();
        swap(0, 6);
        match sliced.net.as_ref()? {
            NetSlice::Ipv4(ip) => swap(offset(ip.header().slice()) + 12, 4),
            NetSlice::Ipv6(ip) => swap(offset(ip.header().slice()) + 8, 16),
            NetSlice::Arp(_) => return None,
        }
        match sliced.transport.as_ref()? {
            TransportSlice::Tcp(tcp) => {
                swap(offset(tcp.slice()), 2);
                write(&mut answer, &[(offset(tcp.slice()) + 13, &[0x10])]);
            }
            TransportSlice::Udp(udp) => swap(offset(udp.slice()), 2),
            TransportSlice::Icmpv4(icmp) => {
                let kind = if icmp.type_u8() == 8 { 0 } else { 8 };
                write(&mut answer, &[(offset(icmp.slice()), &[kind])]);
            }
            TransportSlice::Icmpv6(icmp) => {
                let kind = icmp.type_u8() ^ 1;
                write(&mut answer, &[(offset(icmp.slice()), &[kind])]);
            }
            _ => return None,
        }
        let hop_limit = match sliced.net.as_ref()? {
            NetSlice::Ipv4(ip) => offset(ip.header().slice()) + 8,
            NetSlice::Ipv6(ip) => offset(ip.header().slice()) + 7,
            NetSlice::Arp(_) => return None,
        };
        write(&mut answer, &[(hop_limit, &[64])]); // of its own, not what is left of the other's
        Some(answer)
    }
}

/// Gives the IPv4 header of a frame, behind up to three tags, the checksum that it should have.
pub fn right_header(frame: &mut [u8]) {
    let tag = |at: &usize| frame.get(*at..at + 2) == Some(&[0x81, 0]);
    let tags = (0..3).take_while(|tags| tag(&(12 + 4 * tags))).count();
    let Some((link, header)) = frame.split_at_mut_checked(14 + 4 * tags) else {
        return;
    };
    let len = header
        .first()
        .map_or(0, |first| usize::from(first & 15) * 4);
    if link.ends_with(&[8, 0])
        && len >= 20
        && let Some(header) = header.get_mut(..len)
    {
        header[10..12].fill(0);
        let sum = Sum16BitWords::new().add_slice(header);
        header[10..12].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    }
}

/// Returns true if every checksum of a whole packet is right; false if they cannot all be verified.
pub fn is_right(frame: &[u8]) -> bool {
    let is_right = |field: Checksum| field.is == field.right;
    checksums(frame).is_some_and(|fields| fields.into_iter().flatten().all(is_right))
}

/// A checksum: where it is, what it is, and what etherparse says that it should be.
struct Checksum {
    at: usize,
    is: u16,
    right: u16,
}

/// The checksums of a whole packet, IPv4's and the transport's; `None` where etherparse does not know them.
fn checksums(frame: &[u8]) -> Option<[Option<Checksum>; 2]> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let offset = |part: &[u8]| part.as_ptr().addr() - frame.as_ptr().addr();
    let (of_ip, ends) = match sliced.net.as_ref()? {
        NetSlice::Ipv4(ip) if !ip.payload().fragmented => {
            let header = ip.header();
            let of_ip = Checksum {
                at: offset(header.slice()) + 10,
                is: header.header_checksum(),
                right: header.to_header().calc_header_checksum(),
            };
            (
                Some(of_ip),
                Ends::Ipv4(header.source(), header.destination()),
            )
        }
        // Behind extension headers there may be another destination.
        NetSlice::Ipv6(ip) if ip.extensions().is_empty() => {
            let header = ip.header();
            (None, Ends::Ipv6(header.source(), header.destination()))
        }
        _ => return None,
    };
    let of_transport = match (sliced.transport.as_ref()?, ends) {
        (TransportSlice::Tcp(tcp), ends) => Checksum {
            at: offset(tcp.slice()) + 16,
            is: tcp.checksum(),
            right: match ends {
                Ends::Ipv4(from, to) => tcp.calc_checksum_ipv4(from, to).ok()?,
                Ends::Ipv6(from, to) => tcp.calc_checksum_ipv6(from, to).ok()?,
            },
        },
        // None at all is right over IPv4.
        (TransportSlice::Udp(udp), Ends::Ipv4(..)) if udp.checksum() == 0 => Checksum {
            at: offset(udp.slice()) + 6,
            is: 0,
            right: 0,
        },
        (TransportSlice::Udp(udp), ends) => Checksum {
            at: offset(udp.slice()) + 6,
            is: udp.checksum(),
            right: match ends {
                Ends::Ipv4(from, to) => {
                    let header = udp.to_header();
                    header
                        .calc_checksum_ipv4_raw(from, to, udp.payload())
                        .ok()?
                }
                Ends::Ipv6(from, to) => {
                    let header = udp.to_header();
                    header
                        .calc_checksum_ipv6_raw(from, to, udp.payload())
                        .ok()?
                }
            },
        },
        (TransportSlice::Icmpv4(icmp), Ends::Ipv4(..)) => Checksum {
            at: offset(icmp.slice()) + 2,
            is: icmp.checksum(),
            right: without_field(Sum16BitWords::new(), icmp.slice()),
        },
        (TransportSlice::Icmpv6(icmp), Ends::Ipv6(from, to)) => {
            let mut pseudo = Sum16BitWords::new().add_16bytes(from).add_16bytes(to);
            let length = u32::try_from(icmp.slice().len()).ok()?.to_be_bytes();
            let pseudo = pseudo.add_4bytes(length).add_4bytes([0, 0, 0, 58]);
            Checksum {
                at: offset(icmp.slice()) + 2,
                is: icmp.checksum(),
                right: without_field(pseudo, icmp.slice()),
            }
        }
        _ => return None,
    };
    Some([of_ip, Some(of_transport)])
}

enum Ends {
    Ipv4([u8; 4], [u8; 4]),
    Ipv6([u8; 16], [u8; 16]),
}

/// The checksum of an ICMP message, that field left out.
fn without_field(sum: Sum16BitWords, message: &[u8]) -> u16 {
    let (head, rest) = message.split_at(4);
    let sum = sum.add_slice(&head[..2]).add_slice(rest);
    sum.ones_complement().to_be()
}
