//! The kinds of packets that are measured, and templates of them.

use std::fmt;
use std::net::IpAddr;

use slb_core::spec::Protocol;
use slb_core::wire::checksum::{Sum, checksum};

/// The kind of a line's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Segments of clients' connections.
    #[default]
    Tcp,
    /// Segments behind a VLAN tag.
    Tagged,
    /// Datagrams.
    Udp,
    /// ICMP echo requests and replies, which a rule balances.
    Echo,
    /// Segments of connections that vms open, under ports of their own of the VIP.
    Snat,
    /// Segments whose answers leave through a mux.
    ThroughMux,
}

impl Kind {
    /// The kinds besides [`Tcp`](Self::Tcp) that a proxy is measured with.
    pub(super) const OF_PROXY: &[Self] = &[Self::Tagged, Self::Udp, Self::Echo];
    /// The kinds besides [`Tcp`](Self::Tcp) that a mux is measured with.
    pub(super) const OF_MUX: &[Self] = &[Self::Tagged, Self::Udp, Self::Echo, Self::Snat];
    /// The kinds besides [`Tcp`](Self::Tcp) that a host agent is measured with.
    pub(super) const OF_HOST: &[Self] = &[
        Self::Tagged,
        Self::Udp,
        Self::Echo,
        Self::Snat,
        Self::ThroughMux,
    ];

    /// Returns the protocol of the rule that takes the packets.
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::Udp => Protocol::Udp,
            Self::Echo => Protocol::Icmp,
            _ => Protocol::Tcp,
        }
    }

    /// Returns the port of a rule: `port`, where its protocol has ports.
    pub(super) fn port(self, port: u16) -> u16 {
        if self.protocol().has_port() { port } else { 0 }
    }

    /// Offset of the IP header in its frame, in bytes.
    fn ip(self) -> usize {
        if self == Self::Tagged { 18 } else { 14 }
    }

    /// Offsets in a frame of the last four bytes of the client's address, and of the client's port or the
    /// identifier of its echo requests.
    pub(super) fn client(self, is_ipv6: bool, outward: bool) -> (usize, usize) {
        let ip = self.ip();
        let (address, ports) = match (is_ipv6, outward) {
            (false, false) => (ip + 12, ip + 20),
            (false, true) => (ip + 16, ip + 22),
            (true, false) => (ip + 20, ip + 40),
            (true, true) => (ip + 36, ip + 42),
        };
        match self {
            Self::Echo if outward => (address, ports + 2),
            Self::Echo => (address, ports + 4),
            _ => (address, ports),
        }
    }

    /// Writes the checksums that a role verifies. The rest of the frame is complete.
    pub(super) fn finish(self, is_ipv6: bool, frame: &mut [u8]) {
        let packet = &mut frame[self.ip()..];
        let transport = if is_ipv6 {
            40
        } else {
            let sum = checksum(&packet[..20]).to_be_bytes();
            packet[10..12].copy_from_slice(&sum);
            20
        };
        if self == Self::Echo {
            let mut sum = Sum::default();
            if is_ipv6 {
                // RFC 4443 §2.3: addresses, length and next header are covered.
                let len = packet.len() - transport;
                sum = sum.add_bytes(&packet[8..40]);
                sum = sum.add_u16(len as u16).add_u16(58);
            }
            let sum = sum.add_bytes(&packet[transport..]).checksum();
            packet[transport + 2..][..2].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Tagged => "tagged",
            Self::Udp => "UDP",
            Self::Echo => "echo",
            Self::Snat => "SNAT",
            Self::ThroughMux => "through a mux",
        })
    }
}

/// A packet between a client and a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template {
    pub(super) kind: Kind,
    /// From the server.
    pub(super) outward: bool,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// Source and destination port, where it has ports.
    pub(super) ports: [u16; 2],
    /// TCP's control bits.
    pub(super) flags: u8,
    /// TCP's sequence and acknowledgement number.
    pub(super) numbers: [u32; 2],
}

impl Template {
    /// Adds the packet to `frame`, which holds the MAC addresses: it then is `len` bytes long. What
    /// [`Kind::finish`] writes is zero.
    pub(super) fn write(&self, frame: &mut Vec<u8>, len: usize) {
        if self.kind == Kind::Tagged {
            frame.extend([0x81, 0, 0, 42]);
        }
        let ip_len = (len - frame.len() - 2) as u16;
        let transport_len = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend(ip_len.to_be_bytes());
                frame.extend([0, 0, 0x40, 0, 64, self.number(false), 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                ip_len - 20
            }
            (source, destination) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((ip_len - 40).to_be_bytes());
                frame.extend([self.number(true), 64]);
                for address in [source, destination] {
                    let address = match address {
                        IpAddr::V4(address) => address.to_ipv6_mapped(),
                        IpAddr::V6(address) => address,
                    };
                    frame.extend(address.octets());
                }
                ip_len - 40
            }
        };
        match self.kind {
            Kind::Echo => frame.extend([self.echo(), 0, 0, 0, 0, 0, 0, 1]),
            Kind::Udp => {
                frame.extend(self.ports.map(u16::to_be_bytes).concat());
                frame.extend(transport_len.to_be_bytes());
                // Any but zero, which would be no checksum at all.
                frame.extend([0x12, 0x34]);
            }
            _ => {
                frame.extend(self.ports.map(u16::to_be_bytes).concat());
                frame.extend(self.numbers.map(u32::to_be_bytes).concat());
                frame.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
        }
        frame.resize(len, 0);
    }

    /// Protocol number or next header.
    fn number(&self, is_ipv6: bool) -> u8 {
        match (self.kind, is_ipv6) {
            (Kind::Udp, _) => 17,
            (Kind::Echo, false) => 1,
            (Kind::Echo, true) => 58,
            _ => 6,
        }
    }

    /// Type of the echo message.
    fn echo(&self) -> u8 {
        match (self.source.is_ipv6(), self.outward) {
            (false, false) => 8,
            (false, true) => 0,
            (true, false) => 128,
            (true, true) => 129,
        }
    }
}
