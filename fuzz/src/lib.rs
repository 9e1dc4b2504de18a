//! The targets are in `tests/`: headers, each role with arbitrary and with structured frames, flows over time
//! against a model, captures, configurations and imports, the C functions. The flow table's and Maglev's
//! own models are in `slb-core/tests`. For a moment each: `cargo test -p slb-fuzz`. With libFuzzer, for
//! as long as one likes: `cargo bolero test --rustc-bootstrap -p slb-fuzz -s NONE -T 1h NAME` (needs
//! `cargo install cargo-bolero`). What it found worth keeping is in `tests/__fuzz__`, and is replayed first.

#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

use bolero::TypeGenerator;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket};

/// The VIPs that packets are for.
pub const VIP: [u8; 4] = [20, 20, 20, 100];
/// And over IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100);

/// A packet that is nearly right.
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
            _ if self.kind & 1 == 0 => ip
                .icmpv4_raw(self.flags, self.ports.0, [0; 4])
                .write(&mut packet, &self.quoted()),
            _ => ip
                .icmpv6_raw(self.flags, self.ports.0, [0; 4])
                .write(&mut packet, &self.quoted()),
        }
        .unwrap();
        if self.kind >> 1 & 3 == 0 && self.kind & 1 == 0 {
            packet[47] = self.flags;
        }
        for _ in 0..self.tags % 4 {
            packet.splice(12..12, [0x81, 0, 0, 5]);
        }
        for &(at, value) in self.changes.iter().take(4) {
            let at = usize::from(at) % packet.len();
            packet[at] = value;
        }
        if self.cut & 1 == 1 {
            packet.truncate(usize::from(self.cut));
        }
        packet
    }

    /// What an ICMP error would quote: a packet from the VIP.
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

/// Puts bytes into a frame, where they fit.
pub fn write(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = frame.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Whether every checksum of a frame that etherparse can verify is right.
pub fn is_right(frame: &[u8]) -> bool {
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else {
        return false;
    };
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
        return false;
    };
    let header = ip.header();
    let fragment = ip.payload().fragmented;
    let transport = match &sliced.transport {
        Some(etherparse::TransportSlice::Tcp(tcp)) => tcp
            .calc_checksum_ipv4(header.source(), header.destination())
            .is_ok_and(|sum| sum == tcp.checksum()),
        Some(etherparse::TransportSlice::Icmpv4(icmp)) => {
            let bytes = icmp.slice();
            etherparse::checksum::Sum16BitWords::new()
                .add_slice(bytes)
                .ones_complement()
                == 0
        }
        _ => false,
    };
    header.header_checksum() == header.to_header().calc_header_checksum() && transport && !fragment
}
