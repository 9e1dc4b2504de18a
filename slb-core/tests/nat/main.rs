//! Properties of translated connections that no packet breaks.

mod net;
mod ports;
mod strangers;

use crate::common::{Endpoint, ends};
use net::{
    ACK, Dut, FABRIC, KEY, SYN, VIP, dip, encapsulated, front, give, of_vm, packet_of, snapshot,
    tcp, udp,
};

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::snapshot::Snapshot;
use slb_core::wire::checksum::checksum;
use slb_core::{Burst, DropReason, Host, Instant, PortId, SourceLimiter, Verdict};

#[test]
fn there_and_back_gives_the_original_bytes() {
    bolero::check!()
        .with_type::<(u32, u16, Vec<u8>, bool)>()
        .for_each(|(client, port, data, with_checksum)| {
            // Anybody's but nobody's: those are dropped.
            let address = (1 + (client >> 24) % 126) << 24 | client & 0xff_ffff;
            let client = (Ipv4Addr::from(address), port.max(&1).to_owned());
            let mut host = Host::with_capacity(snapshot(), 16, KEY).expect("its role");
            let now = Instant::from_secs(1);
            let data = &data[..data.len().min(1000)];
            // The vm echoes what it gets: what it sent comes back under the other name.
            let syn = tcp(client, (VIP, 80), SYN, 9, b"");
            let (verdict, inside) = give(&mut host, now, FABRIC, &encapsulated(0, &syn));
            assert_eq!(verdict, Verdict::Forward(PortId(1)));
            let ((source, sport), (destination, dport)) = ends(&inside);
            assert_eq!((source, sport), (client.0.into(), client.1));
            assert_eq!((destination, dport), (dip(0).into(), 8080));
            let answer = tcp((dip(0), 8080), client, SYN | ACK, 9, data);
            let (verdict, outside) = give(&mut host, now, PortId(1), &of_vm(0, &answer));
            assert_eq!(verdict, Verdict::Forward(FABRIC));
            let expected = tcp((VIP, 80), client, SYN | ACK, 9, data);
            assert_eq!(packet_of(&outside), packet_of(&of_vm(0, &expected)));
            // A call of the vm's own, and its answer.
            let far = (Ipv4Addr::from(u32::from(client.0) ^ 0x5555), 53);
            let mut call = udp((dip(1), client.1), far, data);
            if !with_checksum {
                call[26..28].fill(0);
            }
            let (verdict, out) = give(&mut host, now, PortId(2), &of_vm(1, &call));
            if verdict != Verdict::Forward(FABRIC) {
                return; // multicast and the like
            }
            assert_eq!(out[40..42] == [0, 0], !with_checksum);
            let port = u16::from_be_bytes([out[34], out[35]]);
            let back = udp(far, (front(0), port), data);
            let (verdict, inside) = give(&mut host, now, FABRIC, &encapsulated(1, &back));
            assert_eq!(verdict, Verdict::Forward(PortId(2)));
            let expected = udp(far, (dip(1), client.1), data);
            assert_eq!(packet_of(&inside), packet_of(&of_vm(1, &expected)));
        });
}

#[test]
fn a_source_is_limited_at_a_host_too() {
    let limiter = SourceLimiter::build(1 << 10, 10, 5, KEY, &mut slb_core::mem::Boxes);
    let mut host = Host::with_capacity(snapshot(), 64, KEY)
        .expect("its role")
        .with_source_limit(limiter.unwrap());
    let now = Instant::from_secs(1);
    let mut open = |address, port| {
        let syn = tcp(
            (Ipv4Addr::new(1, 2, 3, address), port),
            (VIP, 80),
            SYN,
            9,
            b"",
        );
        give(&mut host, now, FABRIC, &encapsulated(0, &syn)).0
    };
    for port in 1..=8 {
        let expected = match port {
            1..=5 => Verdict::Forward(PortId(1)),
            _ => Verdict::Drop(DropReason::SourceLimit),
        };
        assert_eq!(open(4, port), expected);
    }
    assert_eq!(open(5, 1), Verdict::Forward(PortId(1)));
    // Of a connection that is there, a SYN that comes again is none.
    assert_eq!(open(4, 1), Verdict::Forward(PortId(1)));
    let land = tcp((VIP, 80), (VIP, 80), SYN, 9, b"");
    let land = give(&mut host, now, FABRIC, &encapsulated(0, &land)).0;
    assert_eq!(land, Verdict::Drop(DropReason::Martian));
}

/// The ICMP message of a frame that etherparse finds right, and whom it is for.
fn icmp(frame: &[u8]) -> (etherparse::Icmpv4Type, IpAddr) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else {
        panic!("not IPv4")
    };
    let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else {
        panic!("not ICMP")
    };
    let kind = icmp.header().icmp_type;
    assert_eq!(icmp.checksum(), kind.calc_checksum(icmp.payload()));
    (kind, ip.header().destination_addr().into())
}

/// Gives the header of an IPv4 packet the checksum that it should have.
fn right_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn whoever_sent_what_cannot_go_on_is_told() {
    let mut host = Host::with_capacity(snapshot(), 16, KEY).expect("its role");
    let (client, now) = ((Ipv4Addr::new(1, 2, 3, 4), 50_000), Instant::from_secs(1));
    let exceeded = |kind: &_| matches!(kind, etherparse::Icmpv4Type::TimeExceeded(_));
    // From the fabric: it goes back to the client straight.
    let mut syn = tcp(client, (VIP, 80), SYN, 9, b"");
    syn[8] = 1;
    right_header(&mut syn);
    let (verdict, error) = give(&mut host, now, FABRIC, &encapsulated(0, &syn));
    assert_eq!(verdict, Verdict::Forward(FABRIC));
    let (kind, to) = icmp(&error);
    assert!(
        exceeded(&kind) && to == IpAddr::from(client.0),
        "{kind:?} to {to}"
    );
    // From a vm: it is answered there.
    let far = (Ipv4Addr::new(9, 9, 9, 9), 443);
    let mut call = udp((dip(0), 1000), far, b"data");
    call[8] = 1;
    right_header(&mut call);
    let (verdict, error) = give(&mut host, now, PortId(1), &of_vm(0, &call));
    assert_eq!(verdict, Verdict::Reply);
    let (kind, to) = icmp(&error);
    assert!(
        exceeded(&kind) && to == IpAddr::from(dip(0)),
        "{kind:?} to {to}"
    );
    // Longer than the fabric carries, and not to be fragmented.
    let mut long = udp((dip(0), 1000), far, &[7; 1600]);
    long[6] = 0x40;
    right_header(&mut long);
    let (verdict, error) = give(&mut host, now, PortId(1), &of_vm(0, &long));
    assert_eq!(verdict, Verdict::Reply);
    let needed =
        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1500 };
    assert_eq!(
        icmp(&error).0,
        etherparse::Icmpv4Type::DestinationUnreachable(needed)
    );
}

#[test]
fn segments_are_offered_as_long_as_the_fabric_carries_them() {
    let options = slb_core::nat::NatOptions {
        clamp_mss: true,
        ..Default::default()
    };
    let mut host = Host::with_capacity(snapshot(), 16, KEY)
        .expect("its role")
        .with_options(options);
    let (client, now) = (Ipv4Addr::new(1, 2, 3, 4), Instant::from_secs(1));
    for (port, offered, expected) in [(1, 1460, 1390), (2, 1000, 1000), (3, 9000, 1390)] {
        let mut syn = Vec::new();
        PacketBuilder::ipv4(client.octets(), VIP.octets(), 64)
            .tcp(port, 80, 9, 1000)
            .syn()
            .options(&[etherparse::TcpOptionElement::MaximumSegmentSize(offered)])
            .unwrap()
            .write(&mut syn, b"")
            .unwrap();
        let (verdict, inside) = give(&mut host, now, FABRIC, &encapsulated(0, &syn));
        assert_eq!(verdict, Verdict::Forward(PortId(1)));
        ends(&inside); // checksums are right
        let sliced = SlicedPacket::from_ethernet(&inside).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("not TCP")
        };
        let found: Vec<_> = tcp.options_iterator().map(Result::unwrap).collect();
        let size = etherparse::TcpOptionElement::MaximumSegmentSize(expected);
        assert!(found.contains(&size), "{found:?}, expected {size:?}");
    }
}

#[test]
fn a_wrong_checksum_stays_as_wrong() {
    let mut host = Host::with_capacity(snapshot(), 16, KEY).expect("its role");
    let (client, now) = ((Ipv4Addr::new(1, 2, 3, 4), 50_000), Instant::from_secs(1));
    for error in [1u16, 0x1234, 0xfffe] {
        let right = tcp(client, (VIP, 80), SYN, 9, b"");
        let mut wrong = right.clone();
        let sum = u16::from_be_bytes([wrong[36], wrong[37]]);
        wrong[36..38].copy_from_slice(&sum.wrapping_add(error).to_be_bytes());
        let field = |host: &mut Dut<'_>, packet: &[u8]| {
            let (_, frame) = give(host, now, FABRIC, &encapsulated(0, packet));
            u16::from_be_bytes([frame[50], frame[51]])
        };
        let apart = |right: u16, wrong: u16| (u32::from(wrong) + u32::from(!right)) % 0xffff;
        let before = apart(sum, sum.wrapping_add(error));
        let (right, wrong) = (field(&mut host, &right), field(&mut host, &wrong));
        assert_eq!(apart(right, wrong), before);
    }
}

/// Random segments from both sides: whatever state they lead to, once they end the connection is
/// gone when its time has come, and no two connections ever have one name.
#[test]
fn nothing_stays_longer_than_its_time_and_names_are_unique() {
    bolero::check!()
        .with_type::<Vec<(bool, u8, u8, u8, u16)>>()
        .with_iterations(2000)
        .for_each(|segments| {
            let mut host = Host::with_capacity(snapshot(), 64, KEY).expect("its role");
            let mut now = 1_000_000_000u64;
            let mut names: HashMap<(Endpoint, Endpoint), Endpoint> = HashMap::new();
            for &(inward, client, flags, seq, millis) in segments {
                now += u64::from(millis) * 1_000_000;
                let clock = Instant::from_nanos(now);
                host.advance(clock, &mut Burst::new());
                let peer = (
                    Ipv4Addr::new(1, 1, 1, client % 4),
                    5000 + u16::from(client % 3),
                );
                let seq = u32::from(seq) * 100;
                if inward {
                    let packet = tcp(peer, (VIP, 80), flags & 0x17, seq, b"x");
                    give(&mut host, clock, FABRIC, &encapsulated(0, &packet));
                } else {
                    let packet = tcp((dip(0), 8080), peer, flags & 0x17, seq, b"x");
                    let (verdict, out) = give(&mut host, clock, PortId(1), &of_vm(0, &packet));
                    if verdict == Verdict::Forward(FABRIC) {
                        // One inside name has one outside name for as long as it lives.
                        let (from, to) = ends(&out);
                        let old = names.insert((from, to), (dip(0).into(), 8080));
                        assert!(old.is_none_or(|old| old == (dip(0).into(), 8080)));
                    }
                }
                let stats = host.stats().connections;
                assert_eq!(stats.made, stats.live + stats.expired + stats.removed);
            }
            for seconds in [241, 1] {
                now += seconds * 1_000_000_000;
                host.advance(Instant::from_nanos(now), &mut Burst::new());
            }
            assert_eq!(host.stats().connections.live, 0);
            let stats = host.stats();
            assert_eq!(stats.received, stats.accounted());
        });
}

#[test]
fn syns_that_nobody_answers_get_half_of_the_table_and_the_oldest_goes_first() {
    let mut host = Host::with_capacity(snapshot(), 100, KEY).expect("its role");
    let now = Instant::from_secs(1);
    let send = |host: &mut Host<'static, &'static Snapshot<'static>>, client: u16| {
        let from = (Ipv4Addr::new(1, 1, 1, 1), 2000 + client);
        let syn = tcp(from, (VIP, 80), SYN, 9, b"");
        let (verdict, _) = give(host, now, FABRIC, &encapsulated(0, &syn));
        assert_eq!(verdict, Verdict::Forward(PortId(1)), "{client}");
    };
    for client in 0..300 {
        send(&mut host, client);
    }
    let connections = host.stats().connections;
    assert_eq!((connections.refused, connections.evicted), (0, 250));
    assert_eq!((connections.live, connections.unanswered), (50, 50));
    // The last fifty are there, the one before is not.
    for (client, made) in [(250, 300), (299, 300), (249, 301)] {
        send(&mut host, client);
        assert_eq!(host.stats().connections.made, made, "{client}");
    }
}

#[test]
fn the_mss_is_clamped_where_asked() {
    let options = slb_core::nat::NatOptions {
        clamp_mss: true,
        ..slb_core::nat::NatOptions::default()
    };
    let mut host = Host::with_capacity(snapshot(), 100, KEY)
        .expect("its role")
        .with_options(options);
    for (offered, seen) in [(1460, 1500 - 56 - 14 - 40), (500, 500)] {
        let mut header = etherparse::TcpHeader::new(2000 + offered, 80, 1, 1000);
        header.syn = true;
        let options = [
            etherparse::TcpOptionElement::Noop,
            etherparse::TcpOptionElement::MaximumSegmentSize(offered),
        ];
        header.set_options(&options).unwrap();
        let mut packet = Vec::new();
        PacketBuilder::ipv4([1, 1, 1, 1], VIP.octets(), 64)
            .tcp_header(header)
            .write(&mut packet, b"")
            .unwrap();
        let now = Instant::from_secs(1);
        let (_, inside) = give(&mut host, now, FABRIC, &encapsulated(0, &packet));
        ends(&inside); // the checksum is right
        let sliced = SlicedPacket::from_ethernet(&inside).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!()
        };
        let mss = tcp.options_iterator().find_map(|option| match option {
            Ok(etherparse::TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        });
        assert_eq!(mss, Some(seen));
    }
}

/// Identifiers name connections, zero like any other; only the message's type says which way it goes.
#[test]
fn a_ping_may_have_any_identifier() {
    let mut host = Host::with_capacity(snapshot(), 64, KEY).expect("its role");
    let now = Instant::from_secs(1);
    let far = Ipv4Addr::new(9, 9, 9, 9);
    let ping = |from: Ipv4Addr, to: Ipv4Addr, identifier: u16, reply: bool| {
        let builder = PacketBuilder::ipv4(from.octets(), to.octets(), 64);
        let mut packet = Vec::new();
        if reply {
            builder.icmpv4_echo_reply(identifier, 1)
        } else {
            builder.icmpv4_echo_request(identifier, 1)
        }
        .write(&mut packet, b"ping")
        .unwrap();
        packet
    };
    for identifier in [0, 1, 9000, u16::MAX] {
        let request = of_vm(0, &ping(dip(0), far, identifier, false));
        let (verdict, out) = give(&mut host, now, PortId(1), &request);
        assert_eq!(verdict, Verdict::Forward(FABRIC), "{identifier}");
        let (etherparse::Icmpv4Type::EchoRequest(echo), _) = icmp(&out) else {
            panic!("{out:02x?}")
        };
        let outside = Ipv4Addr::from(*out[26..].first_chunk::<4>().unwrap());
        let reply = ping(far, outside, echo.id, true);
        let (verdict, back) = give(&mut host, now, FABRIC, &encapsulated(0, &reply));
        assert_eq!(verdict, Verdict::Forward(PortId(1)), "{identifier}");
        let (etherparse::Icmpv4Type::EchoReply(echo), to) = icmp(&back) else {
            panic!("{back:02x?}")
        };
        assert_eq!((echo.id, to), (identifier, dip(0).into()));
    }
    // The vm answers nobody with it, though requests and replies with the identifier 0 have one name.
    let reply = of_vm(0, &ping(dip(0), far, 0, true));
    let (verdict, _) = give(&mut host, now, PortId(1), &reply);
    assert_eq!(verdict, Verdict::Drop(DropReason::NoConnection));
    // One that nobody asked for begins nothing.
    let made = host.stats().connections.made;
    let far = Ipv4Addr::new(9, 9, 9, 10);
    for identifier in [0, 7] {
        let reply = ping(far, VIP, identifier, true);
        let (verdict, _) = give(&mut host, now, FABRIC, &encapsulated(0, &reply));
        assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
        let reply = of_vm(0, &ping(dip(0), far, identifier, true));
        let (verdict, _) = give(&mut host, now, PortId(1), &reply);
        assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
    }
    assert_eq!(host.stats().connections.made, made);
}

/// As at a mux (`a_clock_at_its_end_is_a_clock` there).
#[test]
fn a_clock_at_its_end_is_a_clock() {
    for first in [u64::MAX, u64::MAX - 1, u64::MAX - (1 << 20), 0] {
        let mut host = Host::with_capacity(snapshot(), 64, KEY).expect("its role");
        for now in [first, u64::MAX] {
            let now = Instant::from_nanos(now);
            host.advance(now, &mut Burst::new());
            let syn = tcp((Ipv4Addr::new(1, 1, 1, 1), 5000), (VIP, 80), 2, 1, b"");
            let (verdict, _) = give(&mut host, now, FABRIC, &encapsulated(0, &syn));
            assert_eq!(verdict, Verdict::Forward(PortId(1)));
            host.advance(now, &mut Burst::new());
        }
        assert_eq!(host.stats().connections.live, 1);
    }
}
