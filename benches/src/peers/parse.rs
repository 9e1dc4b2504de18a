//! Reading headers, from Ethernet to ports.

use std::hint::black_box;

use slb_bench::{Options, Report, Sample};
use slb_core::packet::{Packet, Parsed};
use smoltcp::wire::{EthernetFrame, Ipv4Packet, Ipv6Packet, TcpPacket};

const COUNT: usize = 1024;

/// Reads a frame to its ports, and gives something of it that is not zero.
type Reader = fn(&[u8]) -> u16;

/// TCP ACKs.
fn frames(ipv6: bool) -> Vec<Vec<u8>> {
    let frame = |i: usize| {
        let [high, low] = (i as u16).to_be_bytes();
        let link = etherparse::PacketBuilder::ethernet2([2; 6], [3; 6]);
        let ip = match ipv6 {
            false => link.ipv4([10, 0, high, low], [20, 20, 20, 100], 64),
            true => {
                let mut client = [0x20; 16];
                (client[14], client[15]) = (high, low);
                link.ipv6(client, [0x30; 16], 64)
            }
        };
        let mut frame = Vec::new();
        let written = ip
            .tcp(1024 + i as u16, 80, 1, 1)
            .ack(1)
            .write(&mut frame, b"");
        debug_assert!(written.is_ok());
        frame.resize(frame.len().max(60), 0);
        frame
    };
    (0..COUNT).map(frame).collect()
}

/// Returns the length, since the parser does not return ports alone.
fn ours(frame: &[u8]) -> u16 {
    match Packet::parse(frame) {
        Parsed::Ip(packet) => packet.ip_len() as u16,
        _ => 0,
    }
}

fn etherparse(frame: &[u8]) -> u16 {
    match etherparse::SlicedPacket::from_ethernet(frame).map(|packet| packet.transport) {
        Ok(Some(etherparse::TransportSlice::Tcp(tcp))) => tcp.source_port(),
        _ => 0,
    }
}

fn smoltcp(frame: &[u8]) -> u16 {
    let read = || {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let payload = ethernet.payload();
        let segment = match payload.first()? >> 4 {
            4 => Ipv4Packet::new_checked(payload).ok()?.payload(),
            _ => Ipv6Packet::new_checked(payload).ok()?.payload(),
        };
        Some(TcpPacket::new_checked(segment).ok()?.src_port())
    };
    read().unwrap_or(0)
}

pub(super) fn measure(options: &Options, report: &mut Report) {
    report.group("reading headers, for each packet");
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        let frames = frames(ipv6);
        let readers: [(&str, Reader); 3] = [
            ("slb", ours),
            ("etherparse", etherparse),
            ("smoltcp", smoltcp),
        ];
        for (who, read) in readers {
            let name = format!("parse, {who}, {family} TCP");
            if report.wants(&name) {
                assert!(frames.iter().map(|frame| read(frame)).all(|port| port != 0));
                let sample = Sample::measure(options.time(), COUNT, || {
                    let ports = frames.iter().map(|frame| read(black_box(frame)));
                    black_box(ports.fold(0, u16::wrapping_add));
                });
                report.show(&name, sample, None);
            }
        }
    }
}
