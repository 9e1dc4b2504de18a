//! Frames of flows, as ordinary or as odd as random bytes say.

use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;

use super::super::*;
use super::{FABRIC, FLOWS, HOST, HOST6, MUX, MUX6, NODE, VMS, VNI, client, vip, vm};
use crate::spec::derived_mac;
use crate::wire::checksum::{Sum, checksum};

/// A TCP segment or a UDP datagram of a flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) flow: u8,
    pub(super) is_ipv6: bool,
    pub(super) is_outward: bool,
    pub(super) number: u8,
    pub(super) flags: u8,
    pub(super) sequence: u8,
    pub(super) acknowledgement: u8,
    pub(super) window: u16,
    pub(super) data: u8,
    pub(super) options: u8,
    pub(super) hop_limit: u8,
    pub(super) traffic_class: u8,
    /// True if the UDP datagram has a checksum.
    pub(super) has_checksum: bool,
    pub(super) padding: u8,
    /// The outer headers around the frame.
    pub(super) outer: Outer,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Outer {
    pub(super) is_ipv6: bool,
    pub(super) traffic_class: u8,
    pub(super) has_checksum: bool,
    pub(super) padding: u8,
}

impl Segment {
    pub(super) const ORDINARY: Self = Self {
        flow: 0,
        is_ipv6: false,
        is_outward: false,
        number: protocol::TCP,
        flags: 0x10,
        sequence: 1,
        acknowledgement: 1,
        window: 1000,
        data: 20,
        options: 0,
        hop_limit: 64,
        traffic_class: 0,
        has_checksum: true,
        padding: 0,
        outer: Outer {
            is_ipv6: false,
            traffic_class: 0,
            has_checksum: false,
            padding: 0,
        },
    };

    /// Most of these bytes make an ordinary segment.
    pub(super) fn of(bytes: &[u8; 12]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, ..] = *bytes;
        let is_special = b & 0x80 != 0;
        Self {
            flow: a % FLOWS,
            is_ipv6: a & 0x08 != 0,
            is_outward: a & 0x10 != 0,
            number: if a & 0x20 != 0 {
                protocol::UDP
            } else {
                protocol::TCP
            },
            flags: match b & 0x1f {
                0 => 0x11,
                1 => 0x14,
                2 => 0x04,
                3 => 0x02,
                4 => 0x12,
                5 => 0,
                6 => 0x18,
                7 => 0xf0,
                _ => 0x10,
            },
            sequence: c,
            acknowledgement: d,
            window: u16::from(e) << (f & 8),
            data: g,
            options: if is_special { h % 11 } else { h % 4 },
            hop_limit: if is_special { i % 4 } else { 64 },
            traffic_class: if f & 0x10 != 0 { j } else { 0 },
            has_checksum: f & 0x20 == 0,
            padding: if f & 0x40 != 0 { i % 32 } else { 0 },
            outer: Outer {
                is_ipv6: is_special && i & 0x10 != 0,
                traffic_class: if f & 0x80 != 0 { j >> 4 | h << 4 } else { 0 },
                has_checksum: is_special && i & 0x20 != 0,
                padding: if is_special { i % 3 } else { 0 },
            },
        }
    }

    /// The frame, and where it comes in.
    pub(super) fn frame(&self, is_proxy: bool) -> (PortId, Vec<u8>) {
        let inner = self.inner();
        let vm = if is_proxy {
            VMS[0]
        } else {
            VMS[usize::from(self.flow % 2)]
        };
        match (self.is_outward, is_proxy) {
            (true, _) => (vm, inner),
            (false, true) => (FABRIC, inner),
            (false, false) => (FABRIC, self.outer.around(&inner)),
        }
    }

    pub(super) fn inner(&self) -> Vec<u8> {
        let client = (client(self.flow, self.is_ipv6), 1024 + u16::from(self.flow));
        let (source, destination) = if self.is_outward {
            ((vm(self.flow, self.is_ipv6), 8080), client)
        } else {
            (client, (vip(self.flow, self.is_ipv6), 80))
        };
        let mut transport = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
        let checksum_at = if self.number == protocol::TCP {
            transport.extend((1000 + u32::from(self.sequence)).to_be_bytes());
            transport.extend((1000 + u32::from(self.acknowledgement)).to_be_bytes());
            transport.extend([(5 + self.options) << 4, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0; 4]);
            transport.extend([1; 40].iter().take(usize::from(self.options) * 4));
            16
        } else {
            transport.extend((8 + u16::from(self.data)).to_be_bytes());
            transport.extend([0; 2]);
            6
        };
        transport.extend((0..self.data).map(|at| at ^ self.sequence));
        let sum = pseudo(source.0, destination.0, self.number, &transport).to_be_bytes();
        if self.number == protocol::TCP || self.has_checksum {
            transport[checksum_at..checksum_at + 2].copy_from_slice(&sum);
        }
        let mac = derived_mac(vm(self.flow, false)).0;
        let mut frame = if self.is_outward {
            [NODE.0, mac].concat()
        } else {
            [mac, NODE.0].concat()
        };
        let hops = (self.hop_limit, self.traffic_class);
        frame.extend(ip(source.0, destination.0, self.number, hops, &transport));
        frame.extend(core::iter::repeat_n(0, self.padding.into()));
        frame
    }
}

impl Outer {
    pub(super) fn around(&self, inner: &[u8]) -> Vec<u8> {
        let (source, destination): (IpAddr, IpAddr) = if self.is_ipv6 {
            (MUX6.into(), HOST6.into())
        } else {
            (MUX.into(), HOST.into())
        };
        let mut udp = vec![0xc0, 1, 0x12, 0xb5];
        udp.extend((16 + inner.len() as u16).to_be_bytes());
        udp.extend([0, 0, 8, 0, 0, 0]);
        udp.extend((VNI << 8).to_be_bytes());
        udp.extend(inner);
        if self.has_checksum {
            let sum = pseudo(source, destination, protocol::UDP, &udp).to_be_bytes();
            udp[6..8].copy_from_slice(&sum);
        }
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let hops = (64, self.traffic_class);
        frame.extend(ip(source, destination, protocol::UDP, hops, &udp));
        frame.extend(core::iter::repeat_n(0, self.padding.into()));
        frame
    }
}

pub(super) fn pseudo(source: IpAddr, destination: IpAddr, number: u8, transport: &[u8]) -> u16 {
    let len = transport.len() as u16;
    let sum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Sum::ZERO.add_pseudo_ipv4(source, destination, number, len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Sum::ZERO.add_pseudo_ipv6(source, destination, number, len.into())
        }
        _ => unreachable!("both are of one family"),
    };
    sum.add_bytes(transport).checksum()
}

/// EtherType, IP header and what is behind it.
fn ip(
    source: IpAddr,
    destination: IpAddr,
    number: u8,
    (hop_limit, traffic_class): (u8, u8),
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x08, 0x00, 0x45, traffic_class]);
            packet.extend((20 + payload.len() as u16).to_be_bytes());
            packet.extend([0, 7, 0x40, 0, hop_limit, number, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet[2..]).to_be_bytes();
            packet[12..14].copy_from_slice(&sum);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([
                0x86,
                0xdd,
                0x60 | traffic_class >> 4,
                traffic_class << 4,
                0,
                0,
            ]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([number, hop_limit]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => unreachable!("both are of one family"),
    }
    packet.extend(payload);
    packet
}

/// Bytes changed anywhere, of some with a right IPv4 header checksum all the same; or the end cut off.
pub(super) fn spoil(frame: &mut Vec<u8>, at: u8, value: u8, how: u8) {
    let at = usize::from(at) % frame.len();
    if how & 7 == 7 {
        frame.truncate(at);
        return;
    }
    frame[at] = value;
    for ip in [14, 64] {
        let is_ipv4 = frame.get(ip - 2..ip + 1) == Some(&[0x08, 0x00, 0x45]);
        if how & 8 != 0
            && is_ipv4
            && let Some(header) = frame.get_mut(ip..ip + 20)
        {
            header[10..12].fill(0);
            let sum = checksum(header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
        }
    }
}
