//! Port 0, which is reserved, and which some stacks send from all the same: a port like others.

use crate::trio;

use slb_core::spec::Echo;
use slb_core::{DropReason, Verdict};
use trio::{
    Ends, FAMILIES, From, NOW, Role, TCP, UDP, Way, ends, host, host_of_way, mux,
    mux_and_host_of_one_vip, packet, proxy, proxy_of_way, stateless_mux, tcp, udp,
};

fn make(protocol: u8, ends: Ends, ports: (u16, u16), is_answer: bool) -> Vec<u8> {
    let payload = match protocol {
        TCP => tcp(ends, ports, if is_answer { 0x12 } else { 2 }, b""),
        _ => udp(ends, ports, b"datagram"),
    };
    packet(ends, protocol, &payload)
}

/// Source and destination port of a packet without options.
fn ports(packet: &[u8]) -> (u16, u16) {
    let at = if packet[0] >> 4 == 6 { 40 } else { 20 };
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    (word(at), word(at + 2))
}

#[test]
fn a_client_s_port_may_be_zero() {
    for family in FAMILIES {
        for (protocol, port, own) in [(TCP, 80, 8080), (UDP, 53, 53)] {
            let ask = make(protocol, (family.client(), family.vip()), (0, port), false);
            mux(Echo::Forward).pass(NOW, From::Outside, &ask);
            for way in [Way::Plain, Way::SourceNat] {
                let there_and_back = |role: &mut dyn FnMut(From, &[u8]) -> Vec<u8>| {
                    let got = role(From::Outside, &ask);
                    let (client, server) = ends(&got);
                    let back = (ports(&got).1, ports(&got).0);
                    assert_eq!(back.0, own);
                    let answer = make(protocol, (server, client), back, true);
                    let left = role(From::Inside, &answer);
                    assert_eq!(ends(&left), (family.vip(), family.client()));
                    assert_eq!(ports(&left), (port, 0), "{family:?} {way:?}");
                };
                let (mut host, mut proxy) = (host_of_way(way), proxy_of_way(way));
                there_and_back(&mut |from, packet| host.pass(NOW, from, packet));
                there_and_back(&mut |from, packet| proxy.pass(NOW, from, packet));
            }
        }
    }
}

#[test]
fn a_vip_s_port_zero_is_of_no_rule_but_one_for_all_ports() {
    let no_rule = Verdict::Drop(DropReason::NoRule);
    for family in FAMILIES {
        for protocol in [TCP, UDP] {
            let ask = make(protocol, (family.client(), family.vip()), (7, 0), false);
            let (mut of_calls, mut host_of_calls) = mux_and_host_of_one_vip();
            for (verdict, _) in [
                mux(Echo::Forward).give(NOW, From::Outside, &ask),
                stateless_mux(Echo::Forward).give(NOW, From::Outside, &ask),
                host().give(NOW, From::Outside, &ask),
                of_calls.give(NOW, From::Outside, &ask),
                host_of_calls.give(NOW, From::Outside, &ask),
            ] {
                assert_eq!(verdict, no_rule, "{family:?} {protocol}");
            }
            let there = (family.client(), family.whole_vip());
            let ask = make(protocol, there, (7, 0), false);
            mux(Echo::Forward).pass(NOW, From::Outside, &ask);
            host().pass(NOW, From::Outside, &ask);
            proxy().pass(NOW, From::Outside, &ask);
        }
    }
}

#[test]
fn a_vm_calls_from_port_zero_and_to_it() {
    for family in FAMILIES {
        for protocol in [TCP, UDP] {
            for (from, to) in [(0, 443), (5000, 0), (0, 0)] {
                let mut host = host();
                let there = (family.dip(), family.client());
                let sent = host.pass(NOW, From::Inside, &make(protocol, there, (from, to), false));
                let (given, called) = ports(&sent);
                assert!(given >= 1024 && called == to, "{given} {called}");
                let back = (family.client(), family.snat());
                let answer = make(protocol, back, (to, given), true);
                let got = host.pass(NOW, From::Outside, &answer);
                assert_eq!(ends(&got), (family.client(), family.dip()));
                assert_eq!(ports(&got), (to, from), "{family:?} {protocol}");
            }
        }
    }
}
