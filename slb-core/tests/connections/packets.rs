//! Packets of both ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{PacketBuilder, TcpHeader, TcpOptionElement};

use super::setup::Endpoint;

/// A segment, as far as it matters here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seg {
    pub(super) flags: &'static str,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) len: usize,
    pub(super) scale: Option<u8>,
}

pub(super) fn seg(flags: &'static str, seq: u32, ack: u32) -> Seg {
    Seg {
        flags,
        seq,
        ack,
        ..Seg::default()
    }
}

pub(super) fn data(seq: u32, ack: u32, len: usize) -> Seg {
    Seg {
        len,
        ..seg("A", seq, ack)
    }
}

pub(super) fn scaled(seg: Seg, scale: Option<u8>) -> Seg {
    Seg { scale, ..seg }
}

pub(super) fn ip(
    from: Endpoint,
    to: Endpoint,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    match (from.0, to.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("of one family"),
    }
}

pub(super) fn segment(from: Endpoint, to: Endpoint, seg: Seg) -> Vec<u8> {
    let mut header = TcpHeader::new(from.1, to.1, seg.seq, 65_535);
    header.syn = seg.flags.contains('S');
    header.fin = seg.flags.contains('F');
    header.rst = seg.flags.contains('R');
    header.ack = seg.flags.contains('A');
    header.acknowledgment_number = seg.ack;
    if let Some(scale) = seg.scale {
        header
            .set_options(&[TcpOptionElement::WindowScale(scale)])
            .unwrap();
    }
    let mut packet = Vec::new();
    let step = ip(from, to).tcp_header(header);
    step.write(&mut packet, &vec![0x55; seg.len]).unwrap();
    packet
}

pub(super) fn datagram(from: Endpoint, to: Endpoint) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = ip(from, to).udp(from.1, to.1);
    step.write(&mut packet, b"datagram").unwrap();
    packet
}

/// An echo request or reply, whose identifier is the port of its asking end.
pub(super) fn echo(from: Endpoint, to: Endpoint, is_reply: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = ip(from, to);
    let data = b"ping";
    match (from.0.is_ipv4(), is_reply) {
        (true, false) => step.icmpv4_echo_request(from.1, 1).write(&mut packet, data),
        (true, true) => step.icmpv4_echo_reply(to.1, 1).write(&mut packet, data),
        (false, false) => step.icmpv6_echo_request(from.1, 1).write(&mut packet, data),
        (false, true) => step.icmpv6_echo_reply(to.1, 1).write(&mut packet, data),
    }
    .unwrap();
    packet
}

/// "Packet too big", about a segment that `from` sent with this number, from a router.
pub(super) fn too_big(from: Endpoint, to: Endpoint, seq: u32) -> Vec<u8> {
    let quoted = segment(from, to, data(seq, 1, 1400));
    let router = match from.0 {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::new(203, 0, 113, 9)),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9).into(),
    };
    let mut packet = Vec::new();
    let step = ip((router, 0), (from.0, 0));
    if from.0.is_ipv4() {
        let needed =
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1280 };
        step.icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(needed))
            .write(&mut packet, &quoted[..64])
    } else {
        step.icmpv6(etherparse::Icmpv6Type::PacketTooBig { mtu: 1280 })
            .write(&mut packet, &quoted[..200])
    }
    .unwrap();
    packet
}

/// "Host unreachable" about a whole packet.
pub(super) fn unreachable(from: IpAddr, to: IpAddr, about: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = ip((from, 0), (to, 0));
    if from.is_ipv4() {
        let host = etherparse::icmpv4::DestUnreachableHeader::Host;
        step.icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(host))
            .write(&mut packet, about)
    } else {
        let address = etherparse::icmpv6::DestUnreachableCode::Address;
        step.icmpv6(etherparse::Icmpv6Type::DestinationUnreachable(address))
            .write(&mut packet, about)
    }
    .unwrap();
    packet
}
