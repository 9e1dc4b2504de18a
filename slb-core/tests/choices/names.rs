//! The name under which a server sees a client, where a protocol has no port that could be changed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_core::spec::Terms;

use crate::translated::*;

/// Translates an echo request of this identifier from a client to the VIP; returns the identifier that the server
/// sees, and the source address.
fn echo(world: &mut World, home: u16, number: u32, identifier: u16) -> Option<(u16, IpAddr)> {
    let mut frame = world.packet_of(home, number, What::Echo);
    let at = frame.len() - message_len(&frame);
    let message = &mut frame[at..];
    let old = u16::from_be_bytes([message[4], message[5]]);
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    // RFC 1624 §3, eqn. 3.
    let sum = u16::from_be_bytes([message[2], message[3]]);
    let sum = u32::from(!sum) + u32::from(!old) + u32::from(identifier);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let outcome = world.give(FABRIC, &frame);
    if !outcome.is_forwarded() {
        return None;
    }
    let out = &outcome.bytes;
    let at = out.len() - message_len(out);
    let seen = u16::from_be_bytes([out[at + 4], out[at + 5]]);
    Some((seen, addresses(out).0))
}

/// Bytes of the ICMP message at the end of a frame, which has no tunnel or one over IPv4.
fn message_len(frame: &[u8]) -> usize {
    let is_tunnel = frame[12..14] == [8, 0] && frame[23] == 17;
    let link = if is_tunnel { OUTER } else { 0 };
    match frame[link + 12..link + 14] {
        [8, 0] => frame.len() - link - 34,
        _ => frame.len() - link - 54,
    }
}

#[test]
fn echo_requests_behind_a_balancers_address_get_identifiers_of_their_own_but_those_without_one() {
    for (role, ipv6) in ROLES {
        let mut setup = Setup::new(role, ipv6);
        setup.backends.truncate(1);
        let own: IpAddr = match ipv6 {
            true => Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9).into(),
            false => Ipv4Addr::new(10, 9, 9, 9).into(),
        };
        setup.terms = Terms {
            source_nat: Some(own),
            ..Terms::default()
        };
        let mut world = World::new(setup);
        // Two clients with one identifier are two to the server.
        let one = echo(&mut world, 1, 1024, 700).expect("forwarded");
        let other = echo(&mut world, 1, 2048, 700).expect("forwarded");
        assert_eq!((one.1, other.1), (own, own), "{role:?}");
        assert_ne!(one.0, other.0, "{role:?}");
        // Zero is no identifier, and stays.
        assert_eq!(echo(&mut world, 1, 3072, 0), Some((0, own)), "{role:?}");
    }
}
