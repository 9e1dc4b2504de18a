//! The flow that an ICMP message is about.

use super::read::{ipv4_addresses, ipv6_addresses};
use super::{EchoMessage, Family, Packet, Shape};
use crate::wire::icmp::{self, Icmp};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::{icmpv6, protocol};

impl Packet {
    /// Returns the identifier of an ICMP echo message, in the position of the requester's port;
    /// `None` for other messages.
    pub(crate) fn echo_ports(&self, frame: &[u8]) -> Option<u32> {
        let end = usize::from(self.shape.ip_offset) + self.ip_len as usize;
        let message = frame.get(usize::from(self.shape.transport_offset)..end)?;
        echo_ports(self.shape.family, self.protocol, message)
    }

    /// Returns the flow that an ICMP error is about, with the tuple of the error's sender side: the
    /// error quotes a packet from the VIP, so source and destination are swapped. `None` if the
    /// packet is no error, does not quote a packet from its own destination, or quotes another error,
    /// which no host complains about (RFC 1122 §3.2.2, RFC 4443 §2.4 e).
    ///
    /// The other fields are the error's, except the kind of echo message, which is that of the
    /// flow's packets.
    pub(crate) fn quoted_flow(&self, frame: &[u8]) -> Option<Self> {
        let ip_end = usize::from(self.shape.ip_offset) + self.ip_len as usize;
        let transport = frame.get(usize::from(self.shape.transport_offset)..ip_end)?;
        let icmp = Icmp::parse(transport).ok()?;
        let is_error = |kind| match self.shape.family {
            Family::Ipv4 => icmp::is_error(kind),
            Family::Ipv6 => icmpv6::is_error(kind),
        };
        if !is_error(icmp.kind()) {
            return None;
        }
        let (flow, quoted) = self.flow_and_transport(icmp.payload())?;
        if flow.is_icmp() && quoted.first().copied().is_none_or(is_error) {
            return None;
        }
        let same_vip = match self.shape.family {
            Family::Ipv4 => flow.addresses[0] >> 32 == self.addresses[0] >> 32,
            Family::Ipv6 => flow.addresses[2..] == self.addresses[2..],
        };
        same_vip.then_some(flow)
    }

    /// Returns the flow that a redirect or source quench of IPv4 is about, whoever sent the packet that it
    /// quotes.
    pub(crate) fn advised_flow(&self, frame: &[u8]) -> Option<Self> {
        let end = usize::from(self.shape.ip_offset) + self.ip_len as usize;
        let message = frame.get(usize::from(self.shape.transport_offset)..end)?;
        self.flow_of(Icmp::parse(message).ok()?.payload())
    }

    /// Returns the flow of a quoted packet like [`quoted_flow`](Self::quoted_flow), regardless of
    /// its sender. `None` if the quote is a later fragment, or too short.
    pub(crate) fn flow_of(&self, quote: &[u8]) -> Option<Self> {
        self.flow_and_transport(quote).map(|(flow, _)| flow)
    }

    /// Returns the flow of a quoted packet, and what is quoted behind its IP header.
    fn flow_and_transport<'q>(&self, quote: &'q [u8]) -> Option<(Self, &'q [u8])> {
        let (addresses, number, quoted) = match self.shape.family {
            Family::Ipv4 => {
                let ip = Ipv4::parse_quoted(quote)
                    .ok()
                    .filter(Ipv4::is_first_fragment)?;
                (ipv4_addresses(&ip), ip.protocol(), ip.payload())
            }
            Family::Ipv6 => {
                let ip = Ipv6::parse_quoted(quote).ok()?;
                if ip.fragment().is_some_and(|fragment| fragment.offset != 0) {
                    return None;
                }
                (ipv6_addresses(&ip), ip.protocol(), ip.payload())
            }
        };
        let addresses = self.swapped(addresses);
        let mut flow = Self {
            addresses,
            protocol: number,
            ports: 0,
            ..*self
        };
        if flow.has_ports() {
            // RFC 792 quotes 8 bytes at least: the ports are among them.
            flow.ports = u32::from_le_bytes(*quoted.first_chunk()?).rotate_left(16);
        } else if let Some(ports) = echo_ports(self.shape.family, number, quoted) {
            flow.ports = ports.rotate_left(16);
            let kind = quoted.first().copied().unwrap_or_default();
            flow.shape.echo = EchoMessage::of(self.shape.family, kind).other();
        }
        Some((flow, quoted))
    }

    /// Returns the flow with the tuple of its other side.
    pub(crate) fn reversed(&self) -> Self {
        Self {
            addresses: self.swapped(self.addresses),
            ports: self.ports.rotate_left(16),
            shape: Shape {
                echo: self.shape.echo.other(),
                ..self.shape
            },
            ..*self
        }
    }

    fn swapped(&self, [a, b, c, d]: [u64; 4]) -> [u64; 4] {
        match self.shape.family {
            Family::Ipv4 => [a.rotate_left(32), 0, 0, 0],
            Family::Ipv6 => [c, d, a, b],
        }
    }
}

fn echo_ports(family: Family, number: u8, message: &[u8]) -> Option<u32> {
    let icmp = match family {
        Family::Ipv4 => protocol::ICMP,
        Family::Ipv6 => protocol::ICMPV6,
    };
    let [kind, _, _, _, a, b, ..] = *message else {
        return None;
    };
    let identifier = u32::from(u16::from_le_bytes([a, b]));
    match EchoMessage::of(family, kind) {
        _ if number != icmp => None,
        EchoMessage::Request => Some(identifier),
        EchoMessage::Reply => Some(identifier << 16),
        EchoMessage::None => None,
    }
}
