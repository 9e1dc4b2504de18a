//! Frames through a role, and what is read from those that come out.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use slb_core::{Frame, HEADROOM, PortId, Verdict};

pub type Endpoint = (IpAddr, u16);

/// Gives one frame that came by a port to a role; returns its verdict, and its bytes afterwards.
pub fn through(
    port: PortId,
    bytes: &[u8],
    process: impl FnOnce(&mut [Frame<'_>]),
) -> (Verdict, Vec<u8>) {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(bytes);
    buffer.extend([0; 64]);
    let mut frames = [Frame::new(&mut buffer, HEADROOM, bytes.len()).expect("it fits")];
    frames[0].set_port(port);
    process(&mut frames);
    (frames[0].verdict(), frames[0].bytes().to_vec())
}

/// Source and destination of a packet. Asserts that the checksum of an IPv4 header is right.
pub fn addresses(packet: &SlicedPacket<'_>) -> (IpAddr, IpAddr) {
    match packet.net.as_ref().expect("IP") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let sum = header.to_header().calc_header_checksum();
            assert_eq!(header.header_checksum(), sum);
            (
                header.source_addr().into(),
                header.destination_addr().into(),
            )
        }
        NetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        NetSlice::Arp(_) => panic!("ARP"),
    }
}

/// Source and destination of a frame, whose checksums are asserted to be right. Ports are 0 for ICMP.
pub fn ends(frame: &[u8]) -> (Endpoint, Endpoint) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (from, to) = addresses(&sliced);
    let (checksum, expected, ports) = match sliced.transport.as_ref().expect("a transport header") {
        TransportSlice::Tcp(tcp) => {
            let (header, data) = (tcp.to_header(), tcp.payload());
            let expected = match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), data)
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), data)
                }
                _ => unreachable!("two families"),
            };
            let ports = (tcp.source_port(), tcp.destination_port());
            (header.checksum, expected.unwrap(), ports)
        }
        TransportSlice::Udp(udp) => {
            let (header, data) = (udp.to_header(), udp.payload());
            let expected = match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), data)
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), data)
                }
                _ => unreachable!("two families"),
            };
            let ports = (udp.source_port(), udp.destination_port());
            (header.checksum, expected.unwrap(), ports)
        }
        TransportSlice::Icmpv4(icmp) => {
            let expected = icmp.header().icmp_type.calc_checksum(icmp.payload());
            (icmp.checksum(), expected, (0, 0))
        }
        TransportSlice::Icmpv6(icmp) => {
            let (IpAddr::V6(a), IpAddr::V6(b)) = (from, to) else {
                panic!("ICMPv6 over IPv4");
            };
            assert!(icmp.is_checksum_valid(a.octets(), b.octets()));
            (0, 0, (0, 0))
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(checksum, expected);
    ((from, ports.0), (to, ports.1))
}
