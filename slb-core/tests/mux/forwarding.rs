//! Packets that go to a backend or to the kernel, and the headers around them.

use std::net::IpAddr;

use slb_core::spec::UdpChecksum;
use slb_core::{DropReason, Verdict};

use super::{dropped, expected_inner};
use crate::common::*;

#[test]
fn a_packet_for_a_vip_goes_to_a_backend_and_is_unchanged_but_for_its_ttl() {
    for host6 in [false, true] {
        let setup = Setup {
            host6,
            ..Setup::new(3)
        };
        let mut mux = pinned(&setup);
        for packet in [
            tcp(CLIENT, 50_000, "S"),
            tcp(CLIENT, 50_000, "A"),
            udp_to(CLIENT, 50_000, VIP, 53, b"query"),
            tcp6(50_000, "S"),
            udp6(50_000, b"odd"),
        ] {
            let outcome = send_one(&mut mux, packet.clone());
            let tunnel = tunnelled(&outcome);
            let backend = backend_of(&outcome);
            assert_eq!(tunnel.inner, expected_inner(&packet, backend));
            assert_eq!(tunnel.host, host(backend, host6));
            assert_eq!(
                tunnel.source,
                if host6 {
                    IpAddr::from(MUX6)
                } else {
                    MUX.into()
                }
            );
            let ipv6 = packet[12..14] == [0x86, 0xdd];
            assert_eq!(tunnel.vni, if ipv6 { 5002 } else { 5001 });
            assert_eq!(
                tunnel.udp_checksum == 0,
                !host6,
                "zero over IPv4, computed over IPv6"
            );
        }
    }
}

#[test]
fn the_outer_udp_checksum_is_as_configured() {
    for (udp_checksum, over_ipv4, over_ipv6) in [
        (UdpChecksum::Auto, false, true),
        (UdpChecksum::Zero, false, false),
        (UdpChecksum::Computed, true, true),
    ] {
        for (host6, expected) in [(false, over_ipv4), (true, over_ipv6)] {
            let mut setup = Setup {
                host6,
                ..Setup::new(3)
            };
            setup.underlay.udp_checksum = udp_checksum;
            for len in 0..9 {
                let packet = udp_to(CLIENT, 5, VIP, 53, &[0xff; 9][..len]);
                let tunnel = tunnelled(&send_one(&mut stateless(&setup), packet));
                assert_eq!(
                    tunnel.udp_checksum != 0,
                    expected,
                    "{udp_checksum:?} {host6}"
                );
            }
        }
    }
}

#[test]
fn dscp_and_ecn_are_copied_out() {
    for host6 in [false, true] {
        let setup = Setup {
            host6,
            ..Setup::new(1)
        };
        for class in 0..=255 {
            let mut packet = tcp(CLIENT, 1, "A");
            packet[15] = class;
            right_header(&mut packet);
            assert_eq!(
                tunnelled(&send_one(&mut stateless(&setup), packet)).traffic_class,
                class
            );
            let mut packet = tcp6(1, "A");
            packet[14] = 0x60 | class >> 4;
            packet[15] = class << 4 | packet[15] & 0x0f;
            assert_eq!(
                tunnelled(&send_one(&mut stateless(&setup), packet)).traffic_class,
                class
            );
        }
    }
}

#[test]
fn tags_and_padding_of_the_link_stay_behind() {
    let setup = Setup::new(1);
    let plain = tcp(CLIENT, 1, "A");
    let expected = expected_inner(&plain, 1);
    let mut tagged = plain.clone();
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
    let mut double = tagged.clone();
    double.splice(12..12, [0x88, 0xa8, 0x00, 0x08]);
    let mut padded = plain.clone();
    padded.resize(60, 0);
    for packet in [plain, tagged, double, padded] {
        assert_eq!(
            tunnelled(&send_one(&mut stateless(&setup), packet)).inner,
            expected
        );
    }
}

#[test]
fn ip_options_and_extension_headers_are_looked_behind() {
    let setup = Setup::new(1);
    let mut with_options = tcp(CLIENT, 1, "A");
    with_options.splice(34..34, [1, 1, 1, 0]);
    with_options[14] = 0x46;
    with_options[17] += 4;
    right_header(&mut with_options);
    let mut with_extension = tcp6(1, "A");
    with_extension.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    with_extension[20] = 60; // destination options
    with_extension[19] += 8;
    for packet in [with_options, with_extension] {
        let tunnel = tunnelled(&send_one(&mut pinned(&setup), packet.clone()));
        assert_eq!(tunnel.inner.len(), packet.len());
        assert_eq!(tunnel.inner[34..], packet[34..]);
    }
}

#[test]
fn what_is_not_ours_is_passed_untouched() {
    let mut mux = pinned(&Setup::new(3));
    let mut arp = vec![0xff; 6];
    arp.extend(CLIENT_MAC);
    arp.extend([0x08, 0x06]);
    arp.extend([0; 28]);
    let mut lldp = arp.clone();
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    let mut expiring = tcp_to(CLIENT, 1, [20, 20, 20, 101], 80, "S", b"");
    expiring[22] = 0;
    for packet in [
        arp,
        lldp,
        expiring,
        tcp_to(VIP, 80, CLIENT, 50_000, "SA", b""),
        udp_to(CLIENT, 1, [8, 8, 8, 8], 53, &[0; 3000]),
    ] {
        assert_eq!(send_one(&mut mux, packet).verdict, Verdict::Pass);
    }
}

#[test]
fn a_vip_without_a_rule_or_a_backend_drops_and_says_so() {
    let mut mux = pinned(&Setup::new(1));
    for packet in [
        tcp_to(CLIENT, 1, VIP, 81, "S", b""),
        tcp_to(CLIENT, 1, VIP, 53, "S", b""),
        udp_to(CLIENT, 1, VIP, 80, b""),
    ] {
        assert_eq!(
            send_one(&mut mux, packet).verdict,
            dropped(DropReason::NoRule)
        );
    }
    let mut sctp = tcp(CLIENT, 1, "S");
    sctp[23] = 132;
    right_header(&mut sctp);
    assert_eq!(
        send_one(&mut mux, sctp).verdict,
        dropped(DropReason::NoRule)
    );
    let mut mux = pinned(&Setup::new(0));
    assert_eq!(
        send_one(&mut mux, tcp(CLIENT, 1, "S")).verdict,
        dropped(DropReason::NoBackend)
    );
    assert_eq!(mux.stats().dropped[DropReason::NoBackend].packets, 1);
}

#[test]
fn ha_ports_take_every_port_and_protocol() {
    let setup = Setup {
        ha_ports: true,
        ..Setup::new(3)
    };
    let mut mux = pinned(&setup);
    let mut sctp = tcp(CLIENT, 1, "S");
    sctp[23] = 132;
    right_header(&mut sctp);
    for packet in [
        tcp_to(CLIENT, 1, VIP, 4321, "S", b""),
        udp_to(CLIENT, 1, VIP, 9, b""),
        sctp,
        tcp6(7, "S"),
    ] {
        tunnelled(&send_one(&mut mux, packet));
    }
}
