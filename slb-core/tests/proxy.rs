//! The proxy, sentence by sentence of its model, Polycube's reverse-proxy balancer; and where it
//! goes beyond it.

#[path = "proxy/services.rs"]
mod services;
#[path = "proxy/sessions.rs"]
mod sessions;
#[path = "proxy/setup.rs"]
mod setup;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::ArpOperation;
use slb_core::spec::{BackendState, PortMode, SpecError};
use slb_core::{Burst, DropReason, Frame, PortId, Verdict};

use self::setup::*;

// Sessions.

#[test]
fn packets_get_the_address_of_the_server_chosen_and_answers_that_of_the_vip() {
    let mut proxy = Setup::new(3).proxy();
    let client = at(CLIENT, 50_000);
    let backend = open(&mut proxy, client);
    assert!((1..=3).any(|n| backend == at(server(n), 8080)));
    let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(backend, client, "SA"));
    assert_eq!(verdict, Verdict::Forward(FRONTEND));
    assert_eq!(ends(&frame), (at(VIP, 80), client));
    let stats = proxy.stats();
    assert_eq!((stats.connections.made, stats.forwarded.packets), (1, 2));
}

#[test]
fn all_packets_of_a_session_reach_the_same_backend() {
    let mut proxy = Setup::new(5).proxy();
    for client in clients(500) {
        let backend = open(&mut proxy, client);
        give(&mut proxy, BACKEND, &tcp(backend, client, "SA"));
        for _ in 0..3 {
            let (_, frame) = give(&mut proxy, FRONTEND, &tcp(client, at(VIP, 80), "A"));
            assert_eq!(ends(&frame).1, backend);
        }
    }
}

#[test]
fn link_headers_and_hop_limits_are_as_they_were() {
    let mut proxy = Setup::new(1).proxy();
    let packet = tcp(at(CLIENT, 50_000), at(VIP, 80), "S");
    let (_, frame) = give(&mut proxy, FRONTEND, &packet);
    assert_eq!(frame[..14], packet[..14]);
    assert_eq!(frame[22], 64);
    assert_eq!(frame.len(), packet.len());
}

// Port modes.

#[test]
fn in_single_port_mode_only_one_frontend_port_is_supported() {
    let mut setup = Setup::multi(1);
    setup.mode = PortMode::Single;
    assert_eq!(
        setup.build(None).unwrap_err(),
        SpecError::FrontendPorts { count: 3 }
    );
    setup.ports.clear();
    assert_eq!(
        setup.build(None).unwrap_err(),
        SpecError::FrontendPorts { count: 0 }
    );
    assert!(Setup::new(1).build(None).is_ok());
}

#[test]
fn in_multi_port_mode_several_frontend_ports_are_supported_but_one_backend_port() {
    let setup = Setup::multi(1);
    assert!(setup.build(None).is_ok());
    // There is one by construction; a frontend cannot be it too.
    let mut both = setup.clone();
    both.ports[1].port = BACKEND;
    assert_eq!(
        both.build(None).unwrap_err(),
        SpecError::UnusablePort { port: BACKEND }
    );
    let mut twice = setup;
    twice.ports[1].port = PortId(2);
    assert!(twice.build(None).is_err());
}

#[test]
fn in_multi_port_mode_an_address_is_required_at_each_frontend_port() {
    let mut setup = Setup::multi(1);
    setup.ports[1].address = None;
    assert_eq!(
        setup.build(None).unwrap_err(),
        SpecError::FrontendPortAddress { port: PortId(1) }
    );
    setup.ports[1].address = setup.ports[0].address;
    assert_eq!(
        setup.build(None).unwrap_err(),
        SpecError::UnusablePort { port: PortId(1) }
    );
}

#[test]
fn in_multi_port_mode_answers_go_to_the_frontend_port_that_the_session_came_from() {
    let mut proxy = Setup::multi(3).proxy();
    for port in [PortId(0), PortId(1), PortId(2)] {
        // Not the port's own address: somebody behind it.
        let client = at(Ipv4Addr::new(10, 0, port.0 as u8, 77), 50_000);
        let (_, frame) = give(&mut proxy, port, &tcp(client, at(VIP, 80), "S"));
        let backend = ends(&frame).1;
        let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(backend, client, "SA"));
        assert_eq!(verdict, Verdict::Forward(port));
        assert_eq!(ends(&frame), (at(VIP, 80), client));
    }
}

#[test]
fn frames_of_other_ports_are_not_the_proxys() {
    let mut proxy = Setup::new(1).proxy();
    let packet = tcp(at(CLIENT, 1), at(VIP, 80), "S");
    assert_eq!(
        give(&mut proxy, PortId(9), &packet),
        (Verdict::Pass, packet)
    );
}

// ARP and unknown packets.

#[test]
fn arp_packets_are_forwarded_as_they_are() {
    let mut proxy = Setup::new(1).proxy();
    for operation in [ArpOperation::REQUEST, ArpOperation::REPLY] {
        let packet = arp(operation, VIP);
        for (from, to) in [(FRONTEND, BACKEND), (BACKEND, FRONTEND)] {
            let (verdict, frame) = give(&mut proxy, from, &packet);
            assert_eq!(verdict, Verdict::Forward(to));
            assert_eq!(frame, packet);
        }
    }
}

#[test]
fn in_multi_port_mode_an_arp_request_from_the_backend_port_goes_to_the_right_frontend_port() {
    let mut proxy = Setup::multi(1).proxy();
    for port in 0..3 {
        let packet = arp(ArpOperation::REQUEST, Ipv4Addr::new(10, 0, port as u8, 1));
        let (verdict, frame) = give(&mut proxy, BACKEND, &packet);
        assert_eq!(verdict, Verdict::Forward(PortId(port)));
        assert_eq!(frame, packet);
        assert_eq!(
            give(&mut proxy, PortId(port), &packet).0,
            Verdict::Forward(BACKEND)
        );
    }
    // Nobody's: all may want to know.
    let packet = arp(ArpOperation::REQUEST, Ipv4Addr::new(10, 0, 9, 9));
    assert_eq!(give(&mut proxy, BACKEND, &packet), (Verdict::Flood, packet));
}

#[test]
fn unknown_packets_are_forwarded_as_they_are() {
    let mut proxy = Setup::new(1).proxy();
    let (a, b) = (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into());
    let mut lldp = vec![0x55; 60];
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    for packet in [tcp((a, 1), (b, 2), "S"), lldp] {
        for (from, to) in [(FRONTEND, BACKEND), (BACKEND, FRONTEND)] {
            assert_eq!(
                give(&mut proxy, from, &packet),
                (Verdict::Forward(to), packet.clone())
            );
        }
    }
}

#[test]
fn in_multi_port_mode_unknown_packets_from_the_backend_port_are_flooded_to_all_frontend_ports() {
    let mut proxy = Setup::multi(1).proxy();
    let (a, b) = (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into());
    let packet = tcp((a, 1), (b, 2), "S");
    let (verdict, frame) = give(&mut proxy, BACKEND, &packet);
    assert_eq!((verdict, &frame), (Verdict::Flood, &packet));
    assert_eq!(
        give(&mut proxy, PortId(2), &packet),
        (Verdict::Forward(BACKEND), packet)
    );
}

#[test]
fn what_is_for_no_service_crosses_untouched() {
    let client = at(CLIENT, 50_000);
    let strangers = [
        tcp(client, at(server(1), 8080), "S"),
        tcp(client, at(VIP, 81), "S"), // a VIP, but no service
        udp(client, at(Ipv4Addr::new(8, 8, 8, 8), 53)),
        ping(CLIENT.into(), server(1).into(), 1, false),
    ];
    let mut proxy = Setup::new(1).proxy();
    for packet in &strangers {
        let expected = (Verdict::Forward(BACKEND), packet.clone());
        assert_eq!(give(&mut proxy, FRONTEND, packet), expected);
    }
    let answer = tcp(at(server(1), 8080), client, "SA");
    let expected = (Verdict::Forward(FRONTEND), answer.clone());
    assert_eq!(give(&mut proxy, BACKEND, &answer), expected);
    assert_eq!(proxy.stats().connections.made, 0);

    // With several frontend ports the address says which, where it is known.
    let mut proxy = Setup::multi(1).proxy();
    let answer = tcp(at(server(1), 8080), at(Ipv4Addr::new(10, 0, 2, 1), 5), "SA");
    assert_eq!(
        give(&mut proxy, BACKEND, &answer).0,
        Verdict::Forward(PortId(2))
    );
    let answer = tcp(at(server(1), 8080), client, "SA");
    assert_eq!(give(&mut proxy, BACKEND, &answer), (Verdict::Flood, answer));
}

#[test]
fn fragments_of_strangers_cross_and_those_of_sessions_are_translated() {
    let fragments = |from: Endpoint, to: Endpoint| -> [Vec<u8>; 2] {
        let whole = udp(from, to);
        let make = |data: &[u8], offset: u16, more: bool| {
            let mut packet = whole[..34].to_vec();
            packet.extend(data);
            packet[16..18].copy_from_slice(&(20 + data.len() as u16).to_be_bytes());
            let field = (offset / 8) | if more { 0x2000 } else { 0 };
            packet[20..22].copy_from_slice(&field.to_be_bytes());
            packet[24..26].fill(0);
            let header = etherparse::Ipv4HeaderSlice::from_slice(&packet[14..34]).unwrap();
            let sum = header.to_header().calc_header_checksum();
            packet[24..26].copy_from_slice(&sum.to_be_bytes());
            packet
        };
        [make(&whole[34..42], 0, true), make(&whole[42..], 8, false)]
    };
    let mut proxy = Setup::new(1).proxy();
    let client = at(CLIENT, 50_000);
    for packet in fragments(client, at(server(1), 53)) {
        let expected = (Verdict::Forward(BACKEND), packet.clone());
        assert_eq!(give(&mut proxy, FRONTEND, &packet), expected);
    }
    for packet in fragments(client, at(VIP, 53)) {
        let (verdict, frame) = give(&mut proxy, FRONTEND, &packet);
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        assert_eq!(frame[30..34], server(1).octets());
    }
    // From a backend, of a first fragment that nobody saw: perhaps a session's, so not as it is.
    let [_, later] = fragments(at(server(1), 9), at(CLIENT, 9));
    let (verdict, _) = give(&mut proxy, BACKEND, &later);
    assert_eq!(verdict, Verdict::Drop(DropReason::FragmentWithoutFirst));
    let [_, later] = fragments(at(Ipv4Addr::new(10, 10, 9, 9), 9), at(CLIENT, 9));
    let (verdict, _) = give(&mut proxy, BACKEND, &later);
    assert_eq!(verdict, Verdict::Forward(FRONTEND));
}

// Beyond the model.

#[test]
fn ipv6_services_work_too() {
    let mut setup = Setup::multi(3);
    setup.ipv6 = true;
    let mut proxy = setup.proxy();
    let client = at(Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 9), 50_000);
    for packet in [
        tcp(client, at(VIP6, 80), "S"),
        udp(client, at(VIP6, 53)),
        ping(client.0, VIP6.into(), 7, false),
    ] {
        let (verdict, frame) = give(&mut proxy, PortId(1), &packet);
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        let (_, backend) = ends(&frame);
        assert_ne!(backend.0, IpAddr::from(VIP6));
    }
    let (_, frame) = give(&mut proxy, PortId(1), &tcp(client, at(VIP6, 80), "S"));
    let backend = ends(&frame).1;
    let (verdict, frame) = give(&mut proxy, BACKEND, &tcp(backend, client, "SA"));
    assert_eq!(verdict, Verdict::Forward(PortId(1)));
    assert_eq!(ends(&frame), (at(VIP6, 80), client));
    // Neighbours find each other through it.
    let mut solicitation = Vec::new();
    link(client.0, VIP6.into())
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut solicitation, &VIP6.octets())
        .unwrap();
    assert_eq!(
        give(&mut proxy, BACKEND, &solicitation),
        (Verdict::Flood, solicitation)
    );
}

#[test]
fn with_tcp_reset_both_ends_are_told_over_the_link_that_they_came_by() {
    let mut setup = Setup::multi(1);
    setup.terms.tcp_reset = true;
    let mut proxy = setup.proxy();
    let client = at(Ipv4Addr::new(10, 0, 1, 1), 50_000);
    // In a VLAN, so that the tag has to be remembered too.
    let tagged = |mut packet: Vec<u8>| {
        packet.splice(12..12, [0x81, 0, 0, 42]);
        packet
    };
    let untagged = |mut packet: Vec<u8>| {
        assert_eq!(packet[12..16], [0x81, 0, 0, 42]);
        packet.drain(12..16);
        packet
    };
    let syn = tagged(tcp(client, at(VIP, 80), "S"));
    let (verdict, frame) = give(&mut proxy, PortId(1), &syn);
    assert_eq!(verdict, Verdict::Forward(BACKEND));
    let backend = ends(&untagged(frame)).1;
    give(&mut proxy, BACKEND, &tagged(tcp(backend, client, "SA")));
    give(
        &mut proxy,
        PortId(1),
        &tagged(tcp(client, at(VIP, 80), "A")),
    );

    let mut memory = [[0; 256]; 4];
    let mut spare = Burst::new();
    for buffer in &mut memory {
        spare.push(Frame::new(buffer, 128, 0).unwrap()).unwrap();
    }
    proxy.advance(NOW + Duration::from_secs(300), &mut spare);
    let told: Vec<_> = spare
        .iter()
        .filter(|frame| !frame.is_empty())
        .map(|frame| (frame.verdict(), frame.bytes().to_vec()))
        .collect();
    assert_eq!(told.len(), 2);
    for (verdict, frame) in told {
        let frame = untagged(frame);
        let (from, to) = ends(&frame);
        assert_eq!(frame[14 + 20 + 13] & 0x04, 0x04);
        if verdict == Verdict::Forward(BACKEND) {
            assert_eq!((from, to), (client, backend));
            assert_eq!(frame[..12], [GATEWAY_MAC, CLIENT_MAC].concat());
        } else {
            assert_eq!(verdict, Verdict::Forward(PortId(1)));
            assert_eq!((from, to), (at(VIP, 80), client));
            assert_eq!(frame[..12], [CLIENT_MAC, GATEWAY_MAC].concat());
        }
    }
    // And a segment of no session is answered where it came from.
    let (verdict, frame) = give(&mut proxy, PortId(2), &tcp(client, at(VIP, 80), "A"));
    assert_eq!(verdict, Verdict::Reply);
    assert_eq!(ends(&frame), (at(VIP, 80), client));
    assert_eq!(frame[..6], CLIENT_MAC);
}

#[test]
fn segments_from_nobody_or_to_many_are_not_answered() {
    let mut setup = Setup::new(1);
    setup.terms.tcp_reset = true;
    let mut proxy = setup.proxy();
    let segment = tcp(at(CLIENT, 1), at(VIP, 80), "A");
    assert_eq!(give(&mut proxy, FRONTEND, &segment).0, Verdict::Reply);
    for place in [0, 6] {
        let mut to_many = segment.clone();
        to_many[place..place + 6].fill(0xff);
        let verdict = give(&mut proxy, FRONTEND, &to_many).0;
        assert_eq!(verdict, Verdict::Drop(DropReason::NoConnection));
    }
    for source in [
        Ipv4Addr::BROADCAST,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::new(224, 0, 0, 1),
    ] {
        let martian = tcp(at(source, 1), at(VIP, 80), "A");
        let verdict = give(&mut proxy, FRONTEND, &martian).0;
        assert_eq!(verdict, Verdict::Drop(DropReason::Martian), "{source}");
    }
}

#[test]
fn with_all_backends_down_new_sessions_are_refused_and_counted() {
    let mut setup = Setup::new(1);
    let mut proxy = setup.proxy();
    let sessions = all_open(&mut proxy, 3);
    setup.pools[0][0].2 = BackendState::Down;
    setup.install(&mut proxy);
    nobody_moved(&mut proxy, &sessions);
    let syn = tcp(at(CLIENT, 1), at(VIP, 80), "S");
    assert_eq!(
        give(&mut proxy, FRONTEND, &syn).0,
        Verdict::Drop(DropReason::NoBackend)
    );
    setup.terms.tcp_reset = true;
    setup.install(&mut proxy);
    assert_eq!(give(&mut proxy, FRONTEND, &syn).0, Verdict::Reply);
}
