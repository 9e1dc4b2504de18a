//! Traffic that captures lack: ports that change, ICMP errors both ways, calls from the vm.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use slb_core::wire::checksum;

use super::scenario::{DIP, DIP6, Scenario, Side};

/// Traffic that captures lack: ports that change, ICMP errors both ways, calls from the vm.
pub(super) fn made(ipv6: bool) -> Scenario {
    let vip: IpAddr = if ipv6 {
        "2001:db8:20::100".parse().unwrap()
    } else {
        "20.20.20.100".parse().unwrap()
    };
    let outbound: IpAddr = if ipv6 {
        "2001:db8:20::200".parse().unwrap()
    } else {
        "20.20.20.200".parse().unwrap()
    };
    let client: IpAddr = if ipv6 {
        "2001:db8:c::1".parse().unwrap()
    } else {
        "198.51.100.1".parse().unwrap()
    };
    let router: IpAddr = if ipv6 {
        "2001:db8:f::1".parse().unwrap()
    } else {
        "203.0.113.1".parse().unwrap()
    };
    let dip: IpAddr = if ipv6 { DIP6.into() } else { DIP.into() };
    let tcp = |from: (IpAddr, u16), to: (IpAddr, u16), flags: &str, data: &[u8]| {
        let mut header = etherparse::TcpHeader::new(from.1, to.1, 1000, 65_535);
        (header.syn, header.ack) = (flags.contains('S'), flags.contains('A'));
        (header.fin, header.rst) = (flags.contains('F'), flags.contains('R'));
        header.acknowledgment_number = if header.ack { 1001 } else { 0 };
        ip(from.0, to.0, |builder, out| {
            builder.tcp_header(header.clone()).write(out, data).unwrap();
        })
    };
    let udp = |from: (IpAddr, u16), to: (IpAddr, u16), data: &[u8], sum: bool| {
        let mut packet = ip(from.0, to.0, |builder, out| {
            builder.udp(from.1, to.1).write(out, data).unwrap();
        });
        if !sum {
            let at = packet.len() - data.len() - 2;
            packet[at..at + 2].fill(0);
        }
        packet
    };
    let echo = |from: IpAddr, to: IpAddr, id: u16, request: bool| {
        ip(from, to, |builder, out| match (ipv6, request) {
            (false, true) => builder
                .icmpv4_echo_request(id, 1)
                .write(out, b"ping")
                .unwrap(),
            (false, false) => builder
                .icmpv4_echo_reply(id, 1)
                .write(out, b"ping")
                .unwrap(),
            (true, true) => builder
                .icmpv6_echo_request(id, 1)
                .write(out, b"ping")
                .unwrap(),
            (true, false) => builder
                .icmpv6_echo_reply(id, 1)
                .write(out, b"ping")
                .unwrap(),
        })
    };
    // An error about a packet, of which so many bytes are quoted.
    let error = |from: IpAddr, to: IpAddr, about: &[u8], len: usize| {
        let quote = &about[..len.min(about.len())];
        ip(from, to, |builder, out| {
            if ipv6 {
                builder
                    .icmpv6(etherparse::Icmpv6Type::PacketTooBig { mtu: 1400 })
                    .write(out, quote)
                    .unwrap();
            } else {
                let kind = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu: 1400,
                };
                builder
                    .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(kind))
                    .write(out, quote)
                    .unwrap();
            }
        })
    };
    let mut traffic = Vec::new();
    let mut send = |side, packet: Vec<u8>| traffic.push((side, packet));
    let header = if ipv6 { 40 } else { 20 };
    for port in [50_000, 50_001, 50_002] {
        let (c, v, s) = ((client, port), (vip, 80), (dip, 8080));
        send(Side::Client, tcp(c, v, "S", b""));
        send(Side::Vm, tcp(s, c, "SA", b""));
        send(Side::Client, tcp(c, v, "A", b"an odd number of bytes."));
        let data = tcp(s, c, "A", b"and an even number");
        send(Side::Vm, data);
        // About what the client got from the VIP: by a router on the way, by the client itself;
        // with 8 bytes behind the header, and with all.
        let sent = tcp(v, c, "A", b"and an even number");
        send(Side::Client, error(router, vip, &sent, header + 8));
        send(Side::Client, error(router, vip, &sent, 500));
        send(Side::Client, error(client, vip, &sent, header + 20));
        // About what the vm got from the client.
        let got = tcp(c, s, "A", b"an odd number of bytes.");
        send(Side::Vm, error(dip, client, &got, header + 8));
        send(Side::Vm, error(dip, client, &got, 500));
    }
    let (c, v, s) = ((client, 50_010), (vip, 80), (dip, 8080));
    for (data, sum) in [
        (&b"with a checksum"[..], true),
        (b"without one", ipv6),
        (b"", true),
    ] {
        send(Side::Client, udp(c, v, data, sum));
        send(Side::Vm, udp(s, c, data, sum));
    }
    let sent = udp(v, c, b"a datagram", true);
    send(Side::Client, error(router, vip, &sent, 500));
    let got = udp(c, s, b"a datagram", true);
    send(Side::Vm, error(dip, client, &got, 500));
    // Datagrams in pieces, of which only the first has the ports.
    for len in [1600, 2999, 4000] {
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        for piece in fragments(&udp(c, v, &data, true), 1000, len as u16) {
            send(Side::Client, piece);
        }
        for piece in fragments(&udp(s, c, &data, true), 1480, len as u16) {
            send(Side::Vm, piece);
        }
    }
    // From the vm: the ports are those that both keep as they are.
    let (o, far) = ((outbound, 40_000), (client, 443));
    let d = (dip, 40_000);
    send(Side::Vm, tcp(d, far, "S", b""));
    send(Side::Client, tcp(far, o, "SA", b""));
    send(Side::Vm, tcp(d, far, "A", b"hello"));
    send(Side::Client, tcp(far, o, "A", b"good bye"));
    let sent = tcp(o, far, "A", b"hello");
    send(Side::Client, error(router, outbound, &sent, 500));
    let got = tcp(far, d, "A", b"good bye");
    send(Side::Vm, error(dip, client, &got, 500));
    send(Side::Vm, udp(d, (client, 53), b"what is it?", true));
    send(Side::Client, udp((client, 53), o, b"it is this", true));
    send(Side::Vm, echo(dip, client, 40_001, true));
    send(Side::Client, echo(client, outbound, 40_001, false));
    let sent = echo(outbound, client, 40_001, true);
    send(Side::Client, error(router, outbound, &sent, 500));
    send(Side::Vm, tcp(d, far, "FA", b""));
    send(Side::Client, tcp(far, o, "FA", b""));
    send(Side::Vm, tcp(d, far, "A", b""));
    Scenario {
        name: if ipv6 { "made, IPv6" } else { "made, IPv4" }.to_owned(),
        vip,
        ports: Some((80, 8080)),
        outbound: Some(outbound),
        is_public: false,
        traffic,
    }
}

/// A packet in pieces of at most so many bytes behind the header, a multiple of eight.
pub(super) fn fragments(packet: &[u8], most: usize, identification: u16) -> Vec<Vec<u8>> {
    let is_ipv4 = packet[0] >> 4 == 4;
    let (header, data) = packet.split_at(if is_ipv4 { 20 } else { 40 });
    let pieces = data.chunks(most).enumerate();
    let fragment = |(number, piece): (usize, &[u8])| {
        let offset = number * most;
        let more = u16::from(offset + piece.len() < data.len());
        let mut header = header.to_vec();
        if is_ipv4 {
            let total = (20 + piece.len()) as u16;
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header[4..6].copy_from_slice(&identification.to_be_bytes());
            let place = more << 13 | (offset / 8) as u16;
            header[6..8].copy_from_slice(&place.to_be_bytes());
            header[10..12].fill(0);
            let sum = checksum::checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let payload = (8 + piece.len()) as u16;
            header[4..6].copy_from_slice(&payload.to_be_bytes());
            let place = (offset as u16 | more).to_be_bytes();
            let id = u32::from(identification).to_be_bytes();
            let next = std::mem::replace(&mut header[6], 44);
            header.extend([&[next, 0][..], &place, &id].concat());
        }
        [&header, piece].concat()
    };
    pieces.map(fragment).collect()
}

/// An IP packet.
pub(super) fn ip(
    from: IpAddr,
    to: IpAddr,
    write: impl Fn(etherparse::PacketBuilderStep<etherparse::IpHeaders>, &mut Vec<u8>),
) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 60),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 60),
        _ => panic!("two families"),
    };
    write(builder, &mut packet);
    packet
}
