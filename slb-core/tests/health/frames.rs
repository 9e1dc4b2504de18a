//! Frames of clients and vms, and what the roles make of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::Instant;
use slb_core::spec::derived_mac;

use super::plan::{MUX, NODE, dip, vip};
use crate::common::{Endpoint, addresses};

pub(super) const NOW: Instant = Instant::from_secs(1_000_000);

pub(super) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

/// The `number`th client.
pub(super) fn client(number: u16, ipv6: bool) -> Endpoint {
    let address: IpAddr = match ipv6 {
        true => Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, number).into(),
        false => Ipv4Addr::from(0xc633_0000 + u32::from(number)).into(),
    };
    (address, 40_000 + number % 1000)
}

/// A TCP segment with these flags.
pub(super) fn tcp(mac: [u8; 6], from: Endpoint, to: Endpoint, flags: &str) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(mac, [2, 0, 0, 0, 0, 1]);
    let ip = match (from.0, to.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => link.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("of one family"),
    };
    let mut step = ip.tcp(from.1, to.1, 1000, 4096);
    for flag in flags.chars() {
        step = match flag {
            'S' => step.syn(),
            _ => step.ack(1001),
        };
    }
    let mut packet = Vec::new();
    step.write(&mut packet, b"").unwrap();
    packet
}

/// A client's datagram to the VIP.
pub(super) fn datagram(number: u16, port: u16, ipv6: bool) -> Vec<u8> {
    let from = client(number, ipv6);
    let link = PacketBuilder::ethernet2(CLIENT_MAC, [2, 0, 0, 0, 0, 1]);
    let ip = match (from.0, vip(ipv6)) {
        (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => link.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("of one family"),
    };
    let mut packet = Vec::new();
    ip.udp(from.1, port).write(&mut packet, b"?").unwrap();
    packet
}

/// A frame for a vm, in VXLAN as a mux sends it.
pub(super) fn encapsulated(vm: usize, packet: &[u8], ipv6: bool) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0x13, 0x89, 0];
    payload.extend(derived_mac(dip(vm, ipv6)).0);
    payload.extend(&packet[6..]);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(MUX.octets(), NODE.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut frame, &payload)
        .unwrap();
    frame
}

/// Source and destination of a TCP segment, and whether it is a RST.
pub(super) fn ends(frame: &[u8]) -> (Endpoint, Endpoint, bool) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (from, to) = addresses(&sliced);
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("no TCP")
    };
    (
        (from, tcp.source_port()),
        (to, tcp.destination_port()),
        tcp.rst(),
    )
}

/// Passes a frame through a role.
macro_rules! give {
    ($role:expr, $port:expr, $bytes:expr) => {{
        crate::common::through($port, $bytes, |frames| {
            $role.process(crate::health::frames::NOW, frames);
        })
    }};
}

/// The RSTs that a role sends by itself, until it has looked at all connections.
macro_rules! resets {
    ($role:expr) => {{
        let mut told = Vec::new();
        for turn in 1..200_u64 {
            let mut memory = vec![[0_u8; 256]; slb_core::BURST];
            let mut spare = slb_core::Burst::new();
            for buffer in &mut memory {
                let frame = slb_core::Frame::new(buffer, slb_core::HEADROOM, 0).unwrap();
                assert!(spare.push(frame).is_ok());
            }
            let now = crate::health::frames::NOW + std::time::Duration::from_millis(20 * turn);
            $role.advance(now, &mut spare);
            let sent = spare.iter().filter(|frame| !frame.is_empty());
            told.extend(sent.map(|frame| crate::health::frames::ends(frame.bytes())));
        }
        told
    }};
}

pub(super) use {give, resets};
