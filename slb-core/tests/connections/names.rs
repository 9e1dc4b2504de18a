//! One client port at two VIPs of one server.

use etherparse::IpNumber;

use super::packets::{datagram, echo, seg, segment};
use super::setup::{Endpoint, INSIDE, OUTSIDE, server, vip};
use super::world::{Role, World, worlds};

/// Opens a connection of this world's with a first packet, and answers it: the whole way there and
/// back. Returns under which name the server sees the client.
pub(super) fn asks_and_is_answered(world: &mut World, protocol: IpNumber) -> Endpoint {
    let name = format!("{}, {protocol:?}", world.name());
    let asks = world.asks;
    let question = match protocol {
        IpNumber::TCP => segment(asks.0, asks.1, seg("S", 1000, 0)),
        IpNumber::UDP => datagram(asks.0, asks.1),
        _ => echo(asks.0, asks.1, false),
    };
    let seen = world.pass(OUTSIDE, &question).expect(&name);
    assert_eq!((seen.port, seen.to.0), (INSIDE, server(world.ipv6)));
    let answer = match protocol {
        IpNumber::TCP => segment(seen.to, seen.from, seg("SA", 5000, 1001)),
        IpNumber::UDP => datagram(seen.to, seen.from),
        _ => echo(seen.to, seen.from, true),
    };
    let back = world.pass(INSIDE, &answer).expect(&name);
    assert_eq!((back.port, back.to, back.from), (OUTSIDE, asks.0, asks.1));
    seen.from
}

#[test]
fn one_client_port_may_talk_to_two_vips_of_one_server() {
    for (protocol, port) in [
        (IpNumber::TCP, 80),
        (IpNumber::UDP, 53),
        (IpNumber::ICMP, 0),
    ] {
        for mut world in worlds().filter(World::is_inbound) {
            let vips = [0, 1].map(|number| (vip(world.ipv6, number), port));
            let own = world.asks.0;
            let mut ports = Vec::new();
            for _ in 0..3 {
                for vip in vips {
                    world.asks = (own, vip);
                    let seen = asks_and_is_answered(&mut world, protocol);
                    assert_eq!(seen.0, own.0);
                    ports.push(seen.1);
                }
            }
            assert_eq!(ports[0], own.1, "{}", world.name());
            assert_ne!(ports[1], own.1, "{}", world.name());
            // Each keeps its own.
            assert_eq!(ports[..2].repeat(3), ports);
        }
    }
}

#[test]
fn a_client_that_the_vm_calls_from_its_own_port_is_seen_by_another_one() {
    for ipv6 in [false, true] {
        let mut world = World::new(Role::Host, ipv6, true);
        let client = world.asks.0;
        let call = segment((server(ipv6), 8080), client, seg("S", 1, 0));
        assert!(world.pass(INSIDE, &call).is_some());
        let seen = asks_and_is_answered(&mut world, IpNumber::TCP);
        assert!(seen.0 == client.0 && seen != client);
    }
}
