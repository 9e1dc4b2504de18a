//! Our views against etherparse's and smoltcp's: what both accept, they read alike; and whatever
//! the bytes, nothing panics.

#![allow(unexpected_cfgs, reason = "cargo-bolero's, under libFuzzer")]

use bolero::TypeGenerator;
use etherparse::{
    Ipv4HeaderSlice, Ipv6ExtensionSlice, Ipv6HeaderSlice, PacketBuilder, TcpHeaderSlice,
    UdpHeaderSlice,
};
use slb_core::packet::{Packet, Parsed, Part};
use slb_core::wire::{arp, ethernet, icmp, ipv4, ipv6, tcp, udp, vxlan};
use smoltcp::wire as peer;

/// A packet with a few bytes changed, or bytes of no meaning.
#[derive(Clone, Debug, TypeGenerator)]
struct Mutated {
    ipv6: bool,
    tcp: bool,
    data: Vec<u8>,
    changes: Vec<(u8, u8)>,
    cut: u8,
    random: Option<Vec<u8>>,
}

impl Mutated {
    fn frame(&self) -> Vec<u8> {
        if let Some(random) = &self.random {
            return random.clone();
        }
        let link = PacketBuilder::ethernet2([2; 6], [3; 6]);
        let ip = if self.ipv6 {
            link.ipv6([4; 16], [5; 16], 9)
        } else {
            link.ipv4([4; 4], [5; 4], 9)
        };
        let mut packet = Vec::new();
        if self.tcp {
            ip.tcp(1, 2, 3, 4)
                .ack(5)
                .write(&mut packet, &self.data)
                .unwrap();
        } else {
            ip.udp(1, 2).write(&mut packet, &self.data).unwrap();
        }
        for &(at, value) in self.changes.iter().take(6) {
            let at = usize::from(at) % packet.len();
            packet[at] = value;
        }
        if self.cut & 3 == 3 {
            packet.truncate(usize::from(self.cut));
        }
        packet
    }
}

#[test]
fn ipv4_agrees_with_etherparse_and_smoltcp() {
    bolero::check!().with_type::<Mutated>().for_each(|mutated| {
        let frame = mutated.frame();
        let Some(bytes) = frame.get(14..) else { return };
        let ours = ipv4::Ipv4::parse(bytes);
        if let Ok(theirs) = peer::Ipv4Packet::new_checked(bytes)
            && theirs.version() == 4
            && theirs.header_len() >= 20
        {
            let ours = ours.as_ref().expect("smoltcp accepts it");
            assert_eq!(ours.source(), theirs.src_addr());
            assert_eq!(ours.destination(), theirs.dst_addr());
            assert_eq!(ours.header_len(), usize::from(theirs.header_len()));
            assert_eq!(ours.total_len(), usize::from(theirs.total_len()));
            assert_eq!(ours.identification(), theirs.ident());
            assert_eq!(ours.dont_fragment(), theirs.dont_frag());
            assert_eq!(ours.more_fragments(), theirs.more_frags());
            assert_eq!(ours.fragment_offset(), usize::from(theirs.frag_offset()));
            assert_eq!(ours.ttl(), theirs.hop_limit());
            assert_eq!(ours.protocol(), u8::from(theirs.next_header()));
            assert_eq!(ours.checksum(), theirs.checksum());
            // Where it is itself fuzzed, smoltcp takes all of them for right.
            assert!(cfg!(fuzzing) || ours.checksum_is_right() == theirs.verify_checksum());
            assert_eq!(ours.payload(), theirs.payload());
            assert_eq!(ours.traffic_class(), theirs.dscp() << 2 | theirs.ecn());
        }
        if let Ok(theirs) = Ipv4HeaderSlice::from_slice(bytes)
            && let Ok(ours) = ours
        {
            let header = theirs.to_header();
            assert_eq!(ours.source().octets(), header.source);
            assert_eq!(ours.destination().octets(), header.destination);
            assert_eq!(ours.options(), &header.options[..]);
            assert_eq!(ours.is_fragment(), header.is_fragmenting_payload());
        }
    });
}

/// Returns true if the number is that of an extension header that is walked.
fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

#[test]
fn ipv6_agrees_with_etherparse_and_smoltcp() {
    bolero::check!()
        .with_type::<Mutated>()
        .for_each(ipv6_agrees);
}

fn ipv6_agrees(mutated: &Mutated) {
    let frame = Mutated {
        ipv6: true,
        ..mutated.clone()
    }
    .frame();
    let Some(bytes) = frame.get(14..) else { return };
    let theirs = peer::Ipv6Packet::new_checked(bytes);
    let Ok(ours) = ipv6::Ipv6::parse(bytes) else {
        // smoltcp looks at no extension header.
        let is_fine =
            theirs.is_ok_and(|p| p.version() == 6 && !is_extension(p.next_header().into()));
        assert!(!is_fine, "smoltcp accepts it: {bytes:02x?}");
        return;
    };
    let theirs = theirs.expect("we accept it");
    assert_eq!(theirs.version(), 6);
    assert_eq!(ours.source(), theirs.src_addr());
    assert_eq!(ours.destination(), theirs.dst_addr());
    assert_eq!(ours.hop_limit(), theirs.hop_limit());
    assert_eq!(ours.traffic_class(), theirs.traffic_class());
    assert_eq!(ours.flow_label(), theirs.flow_label());
    assert_eq!(ours.total_len(), theirs.total_len());
    let header = Ipv6HeaderSlice::from_slice(bytes)
        .expect("we accept it")
        .to_header();
    assert_eq!(ours.source().octets(), header.source);
    // Extension headers, where etherparse walks as many as we do.
    if let Ok((extensions, next, rest)) = etherparse::Ipv6ExtensionsSlice::from_slice(
        header.next_header,
        &bytes[40..ours.total_len()],
    ) && next.0 == ours.protocol()
        // It does not know all of them.
        && !is_extension(next.0)
    {
        assert_eq!(rest, ours.payload());
        let fragmenting = ours.fragment().is_some_and(|fragment| fragment.is_part());
        assert_eq!(extensions.is_fragmenting_payload(), fragmenting);
        let routing = extensions
            .into_iter()
            .filter_map(|extension| match extension {
                Ipv6ExtensionSlice::Routing(routing) => Some(routing.slice()[3]),
                _ => None,
            });
        let segments_left = routing.into_iter().any(|left| left != 0);
        assert_eq!(ours.is_on_source_route(), segments_left);
    }
}

/// Found by the target above: the inner one counted.
#[test]
fn of_fragment_headers_in_each_other_the_outermost_counts() {
    ipv6_agrees(&Mutated {
        ipv6: true,
        tcp: true,
        data: vec![0; 11],
        changes: vec![(20, 44), (62, 44), (54, 44)],
        cut: 0,
        random: None,
    });
}

#[test]
fn tcp_and_udp_agree_with_etherparse_and_smoltcp() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        if let Ok(theirs) = TcpHeaderSlice::from_slice(bytes) {
            let ours = tcp::Tcp::parse(bytes).expect("etherparse accepts it");
            assert_eq!(ours.source_port(), theirs.source_port());
            assert_eq!(ours.destination_port(), theirs.destination_port());
            assert_eq!(ours.sequence(), theirs.sequence_number());
            assert_eq!(ours.acknowledgement(), theirs.acknowledgment_number());
            assert_eq!(ours.window(), theirs.window_size());
            assert_eq!(ours.checksum(), theirs.checksum());
            assert_eq!(ours.options(), theirs.options());
            assert_eq!(ours.flags().contains(tcp::Flags::SYN), theirs.syn());
            assert_eq!(ours.flags().contains(tcp::Flags::ACK), theirs.ack());
            assert_eq!(ours.flags().contains(tcp::Flags::FIN), theirs.fin());
            assert_eq!(ours.flags().contains(tcp::Flags::RST), theirs.rst());
            assert_eq!(ours.flags().contains(tcp::Flags::PSH), theirs.psh());
        } else {
            assert!(tcp::Tcp::parse(bytes).is_err());
        }
        if let Ok(theirs) = peer::UdpPacket::new_checked(&bytes[..]) {
            let ours = udp::Udp::parse(bytes).expect("smoltcp accepts it");
            assert_eq!(ours.source_port(), theirs.src_port());
            assert_eq!(ours.len(), theirs.len());
            assert_eq!(ours.payload(), theirs.payload());
        }
        if let Ok(theirs) = UdpHeaderSlice::from_slice(bytes)
            && let Ok(ours) = udp::Udp::parse(bytes)
        {
            assert_eq!(ours.destination_port(), theirs.destination_port());
            assert_eq!(ours.checksum(), theirs.checksum());
        }
    });
}

#[test]
fn the_small_headers_agree_with_smoltcp() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        if let Ok(theirs) = peer::EthernetFrame::new_checked(&bytes[..])
            && let Ok(ours) = ethernet::Ethernet::parse(bytes)
        {
            assert_eq!(ours.destination().0, theirs.dst_addr().0);
            assert_eq!(ours.source().0, theirs.src_addr().0);
            if ours.tags().is_empty() {
                assert_eq!(ours.ether_type().0, u16::from(theirs.ethertype()));
                assert_eq!(ours.payload(), theirs.payload());
            }
        }
        let theirs =
            peer::ArpPacket::new_checked(&bytes[..]).and_then(|p| peer::ArpRepr::parse(&p));
        if let Ok(peer::ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_hardware_addr,
            target_protocol_addr,
        }) = theirs
        {
            let ours = arp::Packet::parse(bytes).expect("smoltcp accepts it");
            assert_eq!(ours.sender_mac.0, source_hardware_addr.0);
            assert_eq!(ours.target_mac.0, target_hardware_addr.0);
            assert_eq!(ours.sender, source_protocol_addr);
            assert_eq!(ours.target, target_protocol_addr);
            let is_request = operation == peer::ArpOperation::Request;
            assert_eq!(ours.operation == arp::Operation::Request, is_request);
        }
        if let Ok(theirs) = peer::Icmpv4Packet::new_checked(&bytes[..])
            && let Ok(ours) = icmp::Icmp::parse(bytes)
        {
            assert_eq!(ours.kind(), u8::from(theirs.msg_type()));
            assert_eq!(ours.code(), theirs.msg_code());
            assert_eq!(ours.checksum(), theirs.checksum());
        }
        if let Ok(theirs) = peer::Icmpv6Packet::new_checked(&bytes[..])
            && let Ok(ours) = icmp::Icmp::parse(bytes)
        {
            assert_eq!(ours.kind(), u8::from(theirs.msg_type()));
            assert_eq!(ours.code(), theirs.msg_code());
            assert_eq!(ours.checksum(), theirs.checksum());
        }
        if let Ok(ours) = vxlan::Vxlan::parse(bytes) {
            assert_eq!(
                ours.vni().get(),
                u32::from_be_bytes([0, bytes[4], bytes[5], bytes[6]])
            );
        }
    });
}

/// The dataplane's parser, which reads a packet in one straight run, agrees with the views and with
/// etherparse.
#[test]
fn the_packet_is_what_etherparse_reads() {
    bolero::check!().with_type::<Mutated>().for_each(|mutated| {
        let frame = mutated.frame();
        let Ok(theirs) = etherparse::SlicedPacket::from_ethernet(&frame) else {
            Packet::parse(&frame);
            return;
        };
        let (source, destination) = match &theirs.net {
            Some(etherparse::NetSlice::Ipv4(ip)) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
            ),
            // A payload length of zero is taken by etherparse for "all that is there".
            Some(etherparse::NetSlice::Ipv6(ip)) if ip.header().payload_length() != 0 => {
                let header = ip.header();
                (
                    std::net::IpAddr::from(header.source_addr()),
                    std::net::IpAddr::from(header.destination_addr()),
                )
            }
            _ => return,
        };
        let Parsed::Ip(ours) = Packet::parse(&frame) else {
            return;
        };
        let tuple = ours.tuple();
        assert_eq!((tuple.source, tuple.destination), (source, destination));
        if ours.part() != Part::Whole {
            return;
        }
        match &theirs.transport {
            Some(etherparse::TransportSlice::Tcp(tcp)) => {
                assert_eq!(tuple.source_port, tcp.source_port());
                assert_eq!(tuple.destination_port, tcp.destination_port());
                assert_eq!(ours.flags().contains(tcp::Flags::SYN), tcp.syn());
            }
            // etherparse takes a length of zero for "all that is there"; here it is a fault, and no ports are read.
            Some(etherparse::TransportSlice::Udp(udp)) if udp.length() < 8 => {
                assert_eq!((tuple.source_port, tuple.destination_port), (0, 0));
            }
            Some(etherparse::TransportSlice::Udp(udp)) => {
                assert_eq!(tuple.source_port, udp.source_port());
                assert_eq!(tuple.destination_port, udp.destination_port());
            }
            _ => {}
        }
    });
}
