//! Traffic of a vm with a public address: calls both ways, of protocols with ports and without,
//! errors about them, and datagrams in pieces.

use std::net::IpAddr;

use etherparse::IpNumber;

use super::made::{fragments, ip};
use super::scenario::{DIP, DIP6, Scenario, Side};

/// A protocol number for experiments (RFC 3692), which the kernel knows nothing of.
const EXPERIMENT: u8 = 253;

/// The ends of a conversation, with their ports.
type End = (IpAddr, u16);

/// Makes packets of one family.
struct Maker {
    is_ipv6: bool,
}

impl Maker {
    fn tcp(&self, from: End, to: End, flags: &str, data: &[u8]) -> Vec<u8> {
        let mut header = etherparse::TcpHeader::new(from.1, to.1, 1000, 65_535);
        (header.syn, header.ack) = (flags.contains('S'), flags.contains('A'));
        (header.fin, header.psh) = (flags.contains('F'), !data.is_empty());
        header.acknowledgment_number = if header.ack { 1001 } else { 0 };
        ip(from.0, to.0, |builder, out| {
            builder.tcp_header(header.clone()).write(out, data).unwrap();
        })
    }

    fn udp(&self, from: End, to: End, data: &[u8], has_sum: bool) -> Vec<u8> {
        let mut packet = ip(from.0, to.0, |builder, out| {
            builder.udp(from.1, to.1).write(out, data).unwrap();
        });
        if !has_sum && !self.is_ipv6 {
            let at = packet.len() - data.len() - 2;
            packet[at..at + 2].fill(0);
        }
        packet
    }

    fn echo(&self, from: IpAddr, to: IpAddr, id: u16, is_request: bool) -> Vec<u8> {
        ip(from, to, |builder, out| {
            match (self.is_ipv6, is_request) {
                (false, true) => builder.icmpv4_echo_request(id, 1).write(out, b"ping"),
                (false, false) => builder.icmpv4_echo_reply(id, 1).write(out, b"ping"),
                (true, true) => builder.icmpv6_echo_request(id, 1).write(out, b"ping"),
                (true, false) => builder.icmpv6_echo_reply(id, 1).write(out, b"ping"),
            }
            .unwrap();
        })
    }

    fn other(&self, from: IpAddr, to: IpAddr, data: &[u8]) -> Vec<u8> {
        ip(from, to, |builder, out| {
            builder.write(out, IpNumber(EXPERIMENT), data).unwrap();
        })
    }

    /// An error about a packet, of which so many bytes are quoted.
    fn error(&self, from: IpAddr, to: IpAddr, about: &[u8], len: usize) -> Vec<u8> {
        let quote = &about[..len.min(about.len())];
        ip(from, to, |builder, out| {
            if self.is_ipv6 {
                let kind = etherparse::Icmpv6Type::PacketTooBig { mtu: 1400 };
                builder.icmpv6(kind).write(out, quote).unwrap();
            } else {
                let kind = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu: 1400,
                };
                let kind = etherparse::Icmpv4Type::DestinationUnreachable(kind);
                builder.icmpv4(kind).write(out, quote).unwrap();
            }
        })
    }
}

/// The scenario of one family.
pub(super) fn public(is_ipv6: bool) -> Scenario {
    let address =
        |ipv4: &str, ipv6: &str| -> IpAddr { if is_ipv6 { ipv6 } else { ipv4 }.parse().unwrap() };
    let out = address("20.20.20.100", "2001:db8:20::100");
    let far = address("198.51.100.1", "2001:db8:c::1");
    let router = address("203.0.113.1", "2001:db8:f::1");
    let own: IpAddr = if is_ipv6 { DIP6.into() } else { DIP.into() };
    let make = Maker { is_ipv6 };
    let mut traffic = Vec::new();
    let mut send = |side, packet: Vec<u8>| traffic.push((side, packet));
    let header = if is_ipv6 { 40 } else { 20 };
    // The port of the vm, the other end's, and the side that calls.
    for (port, other, caller) in [
        (22, 50_000, Side::Client),
        (8080, 50_001, Side::Client),
        (40_000, 443, Side::Vm),
        (40_001, 443, Side::Vm),
    ] {
        let (o, d, f) = ((out, port), (own, port), (far, other));
        let (first, second) = match caller {
            Side::Client => ("S", "SA"),
            Side::Vm => ("SA", "S"),
        };
        let mut pair = [
            (Side::Client, make.tcp(f, o, first, b"")),
            (Side::Vm, make.tcp(d, f, second, b"")),
        ];
        if caller == Side::Vm {
            pair.reverse();
        }
        for (side, packet) in pair {
            send(side, packet);
        }
        send(
            Side::Client,
            make.tcp(f, o, "A", b"an odd number of bytes."),
        );
        send(Side::Vm, make.tcp(d, f, "A", b"and an even number"));
        // About what the other end got, by a router and by itself; about what the vm got.
        let sent = make.tcp(o, f, "A", b"and an even number");
        for len in [header + 8, header + 20, 500] {
            send(Side::Client, make.error(router, out, &sent, len));
            send(Side::Client, make.error(far, out, &sent, len));
        }
        let got = make.tcp(f, d, "A", b"an odd number of bytes.");
        for len in [header + 8, 500] {
            send(Side::Vm, make.error(own, far, &got, len));
        }
    }
    for (data, has_sum, port) in [
        (&b"with a checksum"[..], true, 53),
        (b"without one", false, 54),
        (b"", true, 55),
    ] {
        let (o, d, f) = ((out, port), (own, port), (far, 50_010));
        send(Side::Client, make.udp(f, o, data, has_sum));
        send(Side::Vm, make.udp(d, f, data, has_sum));
        let sent = make.udp(o, f, data, has_sum);
        send(Side::Client, make.error(router, out, &sent, 500));
        let got = make.udp(f, d, data, has_sum);
        send(Side::Vm, make.error(own, far, &got, 500));
    }
    send(
        Side::Vm,
        make.udp((own, 41_000), (far, 53), b"what is it?", true),
    );
    send(
        Side::Client,
        make.udp((far, 53), (out, 41_000), b"it is this", true),
    );
    send(Side::Client, make.echo(far, out, 7, true));
    send(Side::Vm, make.echo(own, far, 7, false));
    send(Side::Vm, make.echo(own, far, 41_001, true));
    send(Side::Client, make.echo(far, out, 41_001, false));
    let sent = make.echo(out, far, 41_001, true);
    send(Side::Client, make.error(router, out, &sent, 500));
    send(Side::Client, make.other(far, out, b"no ports"));
    send(Side::Vm, make.other(own, far, b"none either"));
    // Datagrams in pieces, of which only the first has the ports.
    for len in [1600, 2999, 4000] {
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let (o, d, f) = ((out, 60), (own, 60), (far, 50_020));
        for piece in fragments(&make.udp(f, o, &data, true), 1000, len as u16) {
            send(Side::Client, piece);
        }
        for piece in fragments(&make.udp(d, f, &data, true), 1480, len as u16) {
            send(Side::Vm, piece);
        }
    }
    Scenario {
        name: format!("a public address, IPv{}", if is_ipv6 { 6 } else { 4 }),
        vip: out,
        ports: None,
        outbound: Some(out),
        is_public: true,
        traffic,
    }
}
