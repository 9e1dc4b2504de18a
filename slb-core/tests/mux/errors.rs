//! ICMP errors about flows, and neighbour discovery.

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};
use slb_core::spec::BackendState;
use slb_core::{DropReason, Verdict};

use super::answers::echo6;
use super::{dropped, expected_inner};
use crate::common::*;

/// An ICMP "unreachable" from a router to the VIP, about this packet from the VIP.
pub(super) fn icmp_error(about: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv4([203, 0, 113, 1], VIP, 60)
        .icmpv4(Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 },
        ))
        .write(&mut packet, &about[14..about.len().min(14 + 28)])
        .unwrap();
    packet
}

fn icmp6_error(about: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv6([0x20; 16], vip6(), 60)
        .icmpv6(Icmpv6Type::PacketTooBig { mtu: 1400 })
        .write(&mut packet, &about[14..])
        .unwrap();
    packet
}

fn tcp6_from_vip(port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MUX_MAC, CLIENT_MAC)
        .ipv6(vip6(), client6(), 64)
        .tcp(80, port, 1, 1);
    finish_tcp(builder, "A", b"data")
}

/// ECMP brings an error to another mux than the flow: it has to derive the same backend.
#[test]
fn an_icmp_error_follows_the_flow_that_it_quotes() {
    let setup = Setup::new(20);
    for port in 1000..1050 {
        let flow = backend_of(&send_one(&mut pinned(&setup), tcp(CLIENT, port, "S")));
        let error = icmp_error(&tcp_to(VIP, 80, CLIENT, port, "A", b"data"));
        let flow6 = backend_of(&send_one(&mut pinned(&setup), tcp6(port, "S")));
        let error6 = icmp6_error(&tcp6_from_vip(port));
        for mut mux in [pinned(&setup), stateless(&setup)] {
            let outcome = send_one(&mut mux, error.clone());
            assert_eq!(backend_of(&outcome), flow, "port {port}");
            assert_eq!(tunnelled(&outcome).inner, expected_inner(&error, flow));
            assert_eq!(backend_of(&send_one(&mut mux, error6.clone())), flow6);
            assert_eq!(mux.stats().icmp_errors, 2);
            assert_eq!(mux.stats().flows.live, 0, "an error pins nothing");
        }
    }
}

#[test]
fn an_icmp_error_follows_a_flow_that_is_pinned_elsewhere() {
    let mut setup = Setup::new(20);
    let mut mux = pinned(&setup);
    let before = backend_of(&send_one(&mut mux, tcp(CLIENT, 1000, "A")));
    setup.set_state(before, BackendState::Draining);
    let snapshot = setup.after(Some(mux.snapshot()));
    mux.install(snapshot.into()).expect("it follows");
    let error = icmp_error(&tcp_to(VIP, 80, CLIENT, 1000, "A", b""));
    assert_eq!(backend_of(&send_one(&mut mux, error)), before);
}

#[test]
fn an_icmp_error_about_nothing_of_ours_is_dropped() {
    let mut mux = pinned(&Setup::new(3));
    let about_somebody_else = icmp_error(&tcp_to([9, 9, 9, 9], 80, CLIENT, 1, "A", b""));
    let about_no_rule = icmp_error(&tcp_to(VIP, 81, CLIENT, 1, "A", b""));
    let mut about_a_later_fragment = tcp_to(VIP, 80, CLIENT, 1, "A", b"");
    about_a_later_fragment[21] = 9;
    let mut cut_short = icmp_error(&tcp_to(VIP, 80, CLIENT, 1, "A", b""));
    cut_short.truncate(14 + 20 + 8 + 10);
    cut_short[17] = 38;
    right_header(&mut cut_short);
    for packet in [
        about_somebody_else,
        about_no_rule,
        icmp_error(&about_a_later_fragment),
        cut_short,
    ] {
        assert_eq!(
            send_one(&mut mux, packet).verdict,
            dropped(DropReason::IcmpUnmatched)
        );
    }
}

#[test]
fn neighbour_discovery_for_a_vip_stays_with_the_kernel() {
    let mut mux = pinned(&Setup {
        ha_ports: true,
        ..Setup::new(3)
    });
    let mut packet = echo6(1, &[0; 16]);
    packet[54] = 135; // neighbour solicitation
    assert_eq!(send_one(&mut mux, packet).verdict, Verdict::Pass);
}
