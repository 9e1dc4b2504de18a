//! Virtual services: protocols, ports, pings, ICMP errors and counters.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use etherparse::{NetSlice, SlicedPacket};
use slb_core::spec::{BackendState, Echo};
use slb_core::{DropReason, Verdict};

use super::setup::*;

#[test]
fn several_virtual_services_stand_beside_each_other() {
    let mut proxy = Setup::new(2).proxy();
    let client = at(CLIENT, 50_000);
    let second = Ipv4Addr::from_bits(VIP.to_bits() + 1);
    let (_, frame) = give(&mut proxy, FRONTEND, &tcp(client, at(VIP, 80), "S"));
    assert_eq!(ends(&frame).1.1, 8080);
    let (_, frame) = give(&mut proxy, FRONTEND, &udp(client, at(VIP, 53)));
    assert_eq!(ends(&frame).1.1, 8080);
    // `all`: every protocol, and ports stay.
    let (_, frame) = give(&mut proxy, FRONTEND, &tcp(client, at(second, 4711), "S"));
    assert_eq!(ends(&frame).1.1, 4711);
    let (_, frame) = give(&mut proxy, FRONTEND, &udp(client, at(second, 4712)));
    assert_eq!(ends(&frame).1.1, 4712);
    let mut sctp = Vec::new();
    link(CLIENT.into(), second.into())
        .write(&mut sctp, etherparse::IpNumber(132), &[7; 32])
        .unwrap();
    let (verdict, frame) = give(&mut proxy, FRONTEND, &sctp);
    assert_eq!(verdict, Verdict::Forward(BACKEND));
    assert!((1..=2).any(|n| frame[30..34] == server(n).octets()));
}

#[test]
fn mapping_can_be_differentiated_by_protocol_and_in_number() {
    let mut setup = Setup::new(1);
    let healthy = |n| (n, 1, BackendState::Up);
    setup.pools = [
        vec![healthy(1), healthy(2)],
        vec![healthy(3)],
        vec![healthy(4), healthy(5), healthy(6)],
    ];
    let mut proxy = setup.proxy();
    let (mut by_tcp, mut by_udp) = (HashSet::new(), HashSet::new());
    for client in clients(200) {
        by_tcp.insert(open(&mut proxy, client).0);
        let (_, frame) = give(&mut proxy, FRONTEND, &udp(client, at(VIP, 53)));
        by_udp.insert(ends(&frame).1.0);
    }
    let addresses = |numbers: &[usize]| -> HashSet<IpAddr> {
        numbers.iter().map(|&n| server(n).into()).collect()
    };
    assert_eq!(by_tcp, addresses(&[1, 2]));
    assert_eq!(by_udp, addresses(&[3]));
}

#[test]
fn a_backend_may_serve_another_port_than_its_rule_says() {
    let mut setup = Setup::new(0);
    setup.pools[0] = vec![(99, 1, BackendState::Up)];
    let mut proxy = setup.proxy();
    assert_eq!(open(&mut proxy, at(CLIENT, 5)), at(server(99), 9999));
}

#[test]
fn virtual_servers_can_be_pinged() {
    let mut proxy = Setup::new(4).proxy();
    let mut reached = HashSet::new();
    for identifier in 0..64 {
        let request = ping(CLIENT.into(), VIP.into(), identifier, false);
        let (verdict, frame) = give(&mut proxy, FRONTEND, &request);
        assert_eq!(verdict, Verdict::Forward(BACKEND));
        let ((from, _), (backend, _)) = ends(&frame);
        assert_eq!(from, IpAddr::from(CLIENT));
        reached.insert(backend);
        let reply = ping(backend, CLIENT.into(), identifier, true);
        let (verdict, frame) = give(&mut proxy, BACKEND, &reply);
        assert_eq!(verdict, Verdict::Forward(FRONTEND));
        assert_eq!(frame, ping(VIP.into(), CLIENT.into(), identifier, true));
    }
    assert_eq!(reached.len(), 4);
}

#[test]
fn or_the_proxy_answers_pings_itself_or_nobody_does() {
    let mut setup = Setup::new(2);
    setup.ping = false;
    let request = ping(CLIENT.into(), VIP.into(), 9, false);
    let (verdict, frame) = give(&mut setup.proxy(), FRONTEND, &request);
    assert_eq!(verdict, Verdict::Reply);
    assert_eq!(ends(&frame), (at(VIP, 0), at(CLIENT, 0)));
    assert_eq!(frame[..6], CLIENT_MAC);
    // Who asks from everywhere is nobody, and what goes to all is not answered.
    let martian = ping(Ipv4Addr::BROADCAST.into(), VIP.into(), 9, false);
    let (verdict, _) = give(&mut setup.proxy(), FRONTEND, &martian);
    assert_eq!(verdict, Verdict::Drop(DropReason::Martian));
    let mut to_many = request.clone();
    to_many[..6].fill(0xff);
    let (verdict, _) = give(&mut setup.proxy(), FRONTEND, &to_many);
    assert_eq!(verdict, Verdict::Drop(DropReason::EchoIgnored));
    setup.echo = Echo::Ignore;
    let (verdict, _) = give(&mut setup.proxy(), FRONTEND, &request);
    assert_eq!(verdict, Verdict::Drop(DropReason::EchoIgnored));
    // `all` takes them too, where the VIP says so.
    setup.echo = Echo::Forward;
    let second = Ipv4Addr::from_bits(VIP.to_bits() + 1);
    let request = ping(CLIENT.into(), second.into(), 9, false);
    let (verdict, _) = give(&mut setup.proxy(), FRONTEND, &request);
    assert_eq!(verdict, Verdict::Forward(BACKEND));
}

/// Found by `proxy_survives_sequences`: one with the identifier 0 was taken for a request, so that two
/// proxies could have sent it to each other for ever.
#[test]
fn an_echo_reply_is_not_answered() {
    for (echo, identifier) in [(Echo::Answer, 0), (Echo::Answer, 9), (Echo::Ignore, 0)] {
        let setup = Setup {
            ping: false,
            echo,
            ..Setup::new(2)
        };
        let reply = ping(CLIENT.into(), VIP.into(), identifier, true);
        let mut proxy = setup.proxy();
        // It is nobody's, and goes on as it is.
        let (verdict, frame) = give(&mut proxy, FRONTEND, &reply);
        assert_eq!((verdict, frame), (Verdict::Forward(BACKEND), reply));
        assert_eq!(proxy.stats().connections.made, 0, "{identifier}");
    }
}

#[test]
fn icmp_errors_reach_who_sent_what_they_quote() {
    let mut proxy = Setup::new(1).proxy();
    let client = at(CLIENT, 50_000);
    let (_, sent) = give(&mut proxy, FRONTEND, &udp(client, at(VIP, 53)));
    let mut error = Vec::new();
    link(server(1).into(), CLIENT.into())
        .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::Port,
        ))
        .write(&mut error, &sent[14..])
        .unwrap();
    let (verdict, frame) = give(&mut proxy, BACKEND, &error);
    assert_eq!(verdict, Verdict::Forward(FRONTEND));
    assert_eq!(ends(&frame), (at(VIP, 0), at(CLIENT, 0)));
    let quoted = SlicedPacket::from_ip(&frame[42..]).unwrap();
    let NetSlice::Ipv4(ip) = quoted.net.unwrap() else {
        unreachable!()
    };
    assert_eq!(ip.header().destination_addr(), VIP);
}

#[test]
fn what_servers_take_up_and_what_fails_is_counted() {
    let mut proxy = Setup::new(1).proxy();
    let counted = |proxy: &Dut, pool: usize| {
        let id = proxy.snapshot().backends()[pool].id();
        let counters = proxy.backend_counters(id).unwrap();
        (counters.accepted, counters.failures)
    };
    let syn = |proxy: &mut Dut, client| give(proxy, FRONTEND, &tcp(client, at(VIP, 80), "S"));
    // A handshake, its answer twice.
    let (one, two, three) = (at(CLIENT, 1000), at(CLIENT, 1001), at(CLIENT, 1002));
    let backend = open(&mut proxy, one);
    for _ in 0..2 {
        give(&mut proxy, BACKEND, &tcp(backend, one, "SA"));
    }
    assert_eq!(counted(&proxy, 0), (1, 0));
    // A SYN that comes again, until it is answered.
    for _ in 0..3 {
        syn(&mut proxy, two);
    }
    assert_eq!(counted(&proxy, 0), (1, 2));
    give(&mut proxy, BACKEND, &tcp(backend, two, "SA"));
    syn(&mut proxy, two);
    assert_eq!(counted(&proxy, 0), (2, 2));
    // A refusal, and one that is none: it answers no SYN of this connection.
    syn(&mut proxy, three);
    for acknowledgement in [77, 1005, 1005] {
        let mut refusal = Vec::new();
        let step = link(backend.0, three.0).tcp(backend.1, three.1, 0, 0);
        let step = step.rst().ack(acknowledgement);
        step.write(&mut refusal, b"").unwrap();
        give(&mut proxy, BACKEND, &refusal);
    }
    assert_eq!(counted(&proxy, 0), (2, 3));
    // Of UDP an answer, and an error.
    for (client, port) in [(one, 1), (two, 2)] {
        let (_, sent) = give(&mut proxy, FRONTEND, &udp(client, at(VIP, 53)));
        if port == 1 {
            let answer = udp(at(server(1), 8080), client);
            give(&mut proxy, BACKEND, &answer);
            continue;
        }
        let mut error = Vec::new();
        let unreachable = etherparse::icmpv4::DestUnreachableHeader::Port;
        link(server(1).into(), CLIENT.into())
            .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(unreachable))
            .write(&mut error, &sent[14..])
            .unwrap();
        give(&mut proxy, BACKEND, &error);
    }
    assert_eq!(counted(&proxy, 1), (1, 1));
}
