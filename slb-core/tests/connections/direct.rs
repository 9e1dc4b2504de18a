//! Clients of a VIP that talk to the server itself as well.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::IpNumber;
use slb_core::Verdict;
use slb_core::nat::ConnectionState::*;

use super::names::asks_and_is_answered;
use super::packets::{data, datagram, echo, seg, segment};
use super::reuse::{ENDS, End, OLD};
use super::setup::{BESIDE, Endpoint, HOST, INSIDE, OUTSIDE, inside, neighbour, server};
use super::world::{Role, World, seen, worlds, worlds_with};

/// Worlds whose client may talk to the server itself: behind a proxy any, before a host agent a
/// neighbour in the server's network.
fn worlds_with_direct_clients() -> impl Iterator<Item = World> {
    with_direct_clients(true)
}

fn with_direct_clients(tcp_reset: bool) -> impl Iterator<Item = World> {
    let worlds = move || worlds_with(tcp_reset).filter(World::is_inbound);
    let neighbours = worlds().map(|mut world| {
        if world.role == Role::Host {
            world.asks.0.0 = neighbour(world.ipv6);
        }
        world
    });
    // A vm answers clients of the inside directly, too, whether or not they are neighbours.
    let hosts = worlds().filter(|world| world.role == Role::Host);
    let inside = hosts.map(|mut world| {
        world.asks.0.0 = inside(world.ipv6);
        world
    });
    neighbours.chain(inside)
}

impl World {
    /// The two ends of the direct connection: the client's one port, and the server's own address.
    fn direct(&self, port: u16) -> (Endpoint, Endpoint) {
        (self.asks.0, (server(self.ipv6), port))
    }

    /// The client's packet to the server's own address; it has to arrive as it is.
    fn asks_directly(&mut self, packet: &[u8]) {
        let (verdict, frame) = self.give(OUTSIDE, packet);
        assert_eq!(verdict, Verdict::Forward(INSIDE), "{}", self.name());
        assert!(frame.ends_with(packet), "{}", self.name());
    }

    /// Returns true if the server's packet leaves unchanged: a host agent leaves it to the kernel.
    fn is_left_as_it_is(&mut self, packet: &[u8]) -> bool {
        let (verdict, frame) = self.give(INSIDE, packet);
        let expected = match self.role {
            Role::Host => Verdict::Pass,
            _ => Verdict::Forward(OUTSIDE),
        };
        verdict == expected && frame.ends_with(packet)
    }
}

#[test]
fn a_direct_connection_from_the_port_of_one_to_a_vip_keeps_the_servers_name() {
    for (end, _) in ENDS {
        for mut world in worlds_with_direct_clients() {
            let name = format!("{end:?}, {}", world.name());
            let state = world.old(end);
            let (client, server) = world.direct(8080);
            world.asks_directly(&segment(client, server, seg("S", 70_000, 0)));
            // A SYN alone proves nothing: what is of the old connection stays there.
            assert_eq!(world.state(), Some(state), "{name}");
            if end != End::Reset {
                world.responder(seg("A", OLD.1 + 1, OLD.0 + 1));
            }
            let answer = segment(server, client, seg("SA", 90_000, 70_001));
            assert!(world.is_left_as_it_is(&answer), "{name}");
            assert_eq!(world.state(), None, "{name}");
            world.asks_directly(&segment(client, server, seg("A", 70_001, 90_001)));
            let data = segment(server, client, data(90_001, 70_001, 100));
            assert!(world.is_left_as_it_is(&data), "{name}");
        }
    }
}

#[test]
fn a_refused_direct_connection_leaves_the_one_to_the_vip_alone() {
    for mut world in worlds_with_direct_clients() {
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        world.asks_directly(&segment(client, server, seg("S", 70_000, 0)));
        let refusal = segment(server, client, seg("RA", 0, 70_001));
        assert!(world.is_left_as_it_is(&refusal), "{}", world.name());
        world.responder(data(5001, 1001, 10));
        world.opener(data(1001, 5011, 10));
        world.ends_idle(5011, 1011);
    }
}

#[test]
fn a_direct_connection_that_is_there_goes_on_while_a_vip_is_asked_for() {
    for mut world in worlds_with_direct_clients() {
        let name = world.name();
        let (client, server) = world.direct(8080);
        world.opener(seg("S", 1000, 0));
        world.asks_directly(&segment(client, server, data(70_001, 90_001, 10)));
        let answer = segment(server, client, data(90_001, 70_011, 10));
        assert!(world.is_left_as_it_is(&answer), "{name}");
        // The VIP's own answer is told from it.
        world.responder(seg("SA", 5000, 1001));
        world.opener(seg("A", 1001, 5001));
        world.responder(data(5001, 1001, 10));
        assert_eq!(world.state(), Some(Established), "{name}");
    }
}

/// Hosts whose two vms talk to each other: the one is a client of the other's VIP, too.
fn hosts_with_two_vms() -> impl Iterator<Item = World> {
    let hosts = worlds().filter(|world| world.role == Role::Host);
    hosts.map(|mut world| {
        world.asks.0.0 = neighbour(world.ipv6);
        world
    })
}

#[test]
fn a_vm_that_calls_another_one_of_its_host_is_answered_under_that_ones_name() {
    for (end, _) in ENDS {
        for mut world in hosts_with_two_vms() {
            let name = format!("{end:?}, {}", world.name());
            let state = world.old(end);
            let (client, server) = world.direct(8080);
            let syn = segment(client, server, seg("S", 70_000, 0));
            assert_eq!(world.give(BESIDE, &syn).0, Verdict::Pass, "{name}");
            assert_eq!(world.state(), Some(state), "{name}");
            let answer = segment(server, client, seg("SA", 90_000, 70_001));
            assert!(world.is_left_as_it_is(&answer), "{name}");
            assert_eq!(world.state(), None, "{name}");
        }
    }
    for (protocol, port) in [(IpNumber::UDP, 53), (IpNumber::ICMP, 0)] {
        for mut world in hosts_with_two_vms() {
            world.asks.1.1 = port;
            let name = format!("{}, {protocol:?}", world.name());
            let (client, server) = world.direct(port);
            for _ in 0..2 {
                asks_and_is_answered(&mut world, protocol);
                let (question, answer) = match protocol {
                    IpNumber::UDP => (datagram(client, server), datagram(server, client)),
                    _ => (echo(client, server, false), echo(server, client, true)),
                };
                assert_eq!(world.give(BESIDE, &question).0, Verdict::Pass, "{name}");
                assert!(world.is_left_as_it_is(&answer), "{name}");
            }
        }
    }
}

#[test]
fn a_vm_that_spoofs_a_neighbour_changes_nothing_of_its_connections() {
    for mut world in worlds().filter(|world| world.role == Role::Host) {
        world.asks.0.0 = inside(world.ipv6);
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        let syn = segment(client, server, seg("S", 70_000, 0));
        world.give(BESIDE, &syn);
        let answer = segment(server, client, seg("SA", 90_000, 70_001));
        assert!(!world.is_left_as_it_is(&answer), "{}", world.name());
        assert!(world.state().is_some(), "{}", world.name());
    }
}

#[test]
fn datagrams_and_pings_are_answered_under_the_name_that_was_asked_last() {
    for (protocol, port) in [(IpNumber::UDP, 53), (IpNumber::ICMP, 0)] {
        for mut world in worlds_with_direct_clients() {
            world.asks.1.1 = port;
            let name = format!("{}, {protocol:?}", world.name());
            let (client, server) = world.direct(port);
            for _ in 0..2 {
                asks_and_is_answered(&mut world, protocol);
                let (question, answer) = match protocol {
                    IpNumber::UDP => (datagram(client, server), datagram(server, client)),
                    _ => (echo(client, server, false), echo(server, client, true)),
                };
                world.asks_directly(&question);
                for _ in 0..2 {
                    assert!(world.is_left_as_it_is(&answer), "{name}");
                }
            }
        }
    }
}

/// The server has the connection to the frontend under the name that the direct one would have, and answers
/// its SYN with an ACK of that one (RFC 5961 §4).
#[test]
fn a_direct_connection_that_the_server_cannot_take_is_refused_when_its_syn_comes_again() {
    for mut world in worlds_with_direct_clients() {
        let name = world.name();
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        let syn = segment(client, server, seg("S", 70_000, 0));
        world.asks_directly(&syn);
        world.responder(seg("A", 5001, 1001));
        world.wait(1);
        let (verdict, frame) = world.give(OUTSIDE, &syn);
        let expected = match world.role {
            Role::Host if client.0 == neighbour(world.ipv6) => Verdict::Forward(BESIDE),
            Role::Host => Verdict::Forward(OUTSIDE),
            _ => Verdict::Reply,
        };
        assert_eq!(verdict, expected, "{name}");
        let refusal = segment(server, client, seg("RA", 0, 70_001));
        let transport = if world.ipv6 { 40 } else { 20 };
        let sent = &frame[frame.len() - transport - 20..];
        assert_eq!(
            sent[transport..][..14],
            refusal[transport..][..14],
            "{name}"
        );
        // The connection to the frontend goes on, and a SYN of another attempt gets its turn.
        world.responder(data(5001, 1001, 10));
        world.opener(data(1001, 5011, 10));
        world.asks_directly(&segment(client, server, seg("S", 80_000, 0)));
        world.ends_idle(5011, 1011);
    }
}

/// Without `tcp_reset` an ICMP error tells the client.
#[test]
fn a_direct_connection_that_the_server_cannot_take_is_refused_by_an_error_without_resets() {
    for mut world in with_direct_clients(false) {
        let name = world.name();
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        let syn = segment(client, server, seg("S", 70_000, 0));
        world.asks_directly(&syn);
        world.responder(seg("A", 5001, 1001));
        world.wait(1);
        let (verdict, frame) = world.give(OUTSIDE, &syn);
        let (expected, source) = match world.role {
            Role::Host if client.0 == neighbour(world.ipv6) => (Verdict::Forward(BESIDE), None),
            Role::Host => (Verdict::Forward(OUTSIDE), None),
            _ => (Verdict::Reply, Some(server.0)),
        };
        assert_eq!(verdict, expected, "{name}");
        // A host agent has an address of its own.
        let own = match world.ipv6 {
            false => HOST.into(),
            true => Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1).into(),
        };
        is_told_that_it_is_prohibited(&frame, (source.unwrap_or(own), client.0), &syn);
        world.responder(data(5001, 1001, 10));
        world.opener(data(1001, 5011, 10));
        world.asks_directly(&segment(client, server, seg("S", 80_000, 0)));
    }
}

/// ICMP 3/13 or ICMPv6 1/1, with the packet that it is about at its end.
fn is_told_that_it_is_prohibited(frame: &[u8], ends: (IpAddr, IpAddr), about: &[u8]) {
    let seen = seen(OUTSIDE, frame);
    assert_eq!((seen.from.0, seen.to.0), ends);
    let message = &frame[frame.len() - about.len() - 8..];
    let kind = if about[0] >> 4 == 6 { [1, 1] } else { [3, 13] };
    assert_eq!(message[..2], kind);
    assert_eq!(message[8..], *about);
}

/// The kernel hands the packets over, but the agent sees them.
#[test]
fn a_neighbour_on_one_host_is_refused_by_the_agent() {
    for mut world in hosts_with_two_vms() {
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        let syn = segment(client, server, seg("S", 70_000, 0));
        assert_eq!(world.give(BESIDE, &syn).0, Verdict::Pass);
        world.responder(seg("A", 5001, 1001));
        assert_eq!(
            world.give(BESIDE, &syn).0,
            Verdict::Reply,
            "{}",
            world.name()
        );
    }
    let hosts = worlds_with(false).filter(|world| world.role == Role::Host);
    for mut world in hosts {
        world.asks.0.0 = neighbour(world.ipv6);
        world.open(1000, 5000);
        let (client, server) = world.direct(8080);
        let syn = segment(client, server, seg("S", 70_000, 0));
        assert_eq!(world.give(BESIDE, &syn).0, Verdict::Pass);
        world.responder(seg("A", 5001, 1001));
        let (verdict, frame) = world.give(BESIDE, &syn);
        assert_eq!(verdict, Verdict::Reply);
        let own = match world.ipv6 {
            false => HOST.into(),
            true => Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1).into(),
        };
        is_told_that_it_is_prohibited(&frame, (own, client.0), &syn);
    }
}
