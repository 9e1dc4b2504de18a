//! Floods of one-packet flows from addresses of nobody, at a host agent and a proxy: no new connection
//! of an honest client is refused, and none that has come about is forgotten.

use crate::translated;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use bolero::TypeGenerator;
use slb_core::{BURST, DropReason, Frame, HEADROOM, Verdict};

use translated::{
    ACK, FABRIC, OUTER, ROLES, Role, SERVER_ACK, SYN, SYN_ACK, Setup, What, World, packet,
};

const KINDS: [What; 4] = [SYN, What::Udp, What::Echo, What::Other];

/// Clients of the flood have numbers from here on, in no order.
const SPOOFED: u32 = 1 << 25;

/// A flood: a template, of which each packet has another source.
struct Flood {
    what: What,
    template: Vec<u8>,
    buffers: Vec<Vec<u8>>,
    sent: u32,
}

impl Flood {
    fn new(setup: &Setup, what: What) -> Self {
        let world = World::new(setup.clone());
        let template = world.packet_of(1, SPOOFED, what);
        Self {
            what,
            buffers: vec![vec![0; HEADROOM + template.len() + 64]; BURST],
            template,
            sent: 0,
        }
    }

    /// Another spoofed client each time, in no order; where there are no ports, another address.
    fn next(&mut self) -> u32 {
        self.sent += 1;
        let random = self.sent.wrapping_mul(0x9e37_79b1);
        SPOOFED
            + match self.what {
                What::Other => (random & 0x7fff) << 10,
                _ => random & 0x00ff_ffff,
            }
    }

    /// Sends packets in bursts at a million a second. Returns how many were forwarded.
    fn send(&mut self, world: &mut World, packets: usize) -> usize {
        let mut forwarded = 0;
        for burst in (0..packets).step_by(BURST) {
            let count = BURST.min(packets - burst);
            let clients: Vec<u32> = (0..count).map(|_| self.next()).collect();
            let (template, what) = (&self.template, self.what);
            let mut frames: Vec<Frame<'_>> = self
                .buffers
                .iter_mut()
                .zip(clients)
                .map(|(buffer, client)| {
                    let place = &mut buffer[HEADROOM..][..template.len()];
                    place.copy_from_slice(template);
                    set_client(place, world.setup.role, world.setup.client(client), what);
                    let mut frame = Frame::new(buffer, HEADROOM, template.len()).unwrap();
                    frame.set_port(FABRIC);
                    frame
                })
                .collect();
            world.now = world.now + Duration::from_micros(count as u64);
            world.process(&mut frames);
            forwarded += frames
                .iter()
                .filter(|frame| matches!(frame.verdict(), Verdict::Forward(_)))
                .count();
        }
        forwarded
    }
}

/// Writes a client's end into a frame, and the header checksum that belongs to it. Transport
/// checksums are the receiver's matter.
fn set_client(frame: &mut [u8], role: Role, client: (IpAddr, u16), what: What) {
    let offset = if role == Role::Host { OUTER } else { 0 };
    let ip = &mut frame[offset + 14..];
    let transport = match client.0 {
        IpAddr::V4(address) => {
            ip[12..16].copy_from_slice(&address.octets());
            ip[10..12].fill(0);
            let words = ip[..20].chunks_exact(2);
            let sum: u32 = words
                .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
                .sum();
            let sum = (sum >> 16) + (sum & 0xffff);
            let sum = !((sum >> 16) + sum) as u16;
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            20
        }
        IpAddr::V6(address) => {
            ip[8..24].copy_from_slice(&address.octets());
            40
        }
    };
    match what {
        What::Tcp(..) | What::Udp => {
            ip[transport..transport + 2].copy_from_slice(&client.1.to_be_bytes());
        }
        What::Echo => ip[transport + 4..transport + 6].copy_from_slice(&client.1.to_be_bytes()),
        What::Other => {}
    }
}

fn small(role: Role, ipv6: bool) -> Setup {
    Setup {
        places: 4096,
        idle_timeout: Duration::from_secs(3600),
        ..Setup::new(role, ipv6)
    }
}

/// A client of each kind, in turn; those without ports differ by their addresses.
fn honest(number: u32) -> (u32, What) {
    (number << 10, KINDS[number as usize % KINDS.len()])
}

fn steps(what: What) -> (What, What, What) {
    match what {
        What::Tcp(..) => (SYN, SYN_ACK, ACK),
        other => (other, other, other),
    }
}

/// All of a new connection while the flood goes on.
fn connects_in(world: &mut World, flood: &mut Flood, number: u32, between: usize) -> u16 {
    let (client, what) = honest(number);
    let (first, answer, second) = steps(what);
    let server = world.asks(1, client, first).expect("a new connection");
    flood.send(world, between);
    world.answers(server, client, answer).expect("an answer");
    flood.send(world, between);
    assert_eq!(world.asks(1, client, second), Ok(server), "{number}");
    server
}

fn goes_on(world: &mut World, number: u32, server: u16) -> bool {
    let (client, what) = honest(number);
    world.goes_on(server, client, what)
}

#[test]
fn no_honest_connection_fails_whatever_the_flood_is_made_of() {
    for (role, ipv6) in ROLES {
        for what in KINDS {
            let mut world = World::new(small(role, ipv6));
            let mut flood = Flood::new(&world.setup, what);
            let old: Vec<u16> = (0..400)
                .map(|n| connects_in(&mut world, &mut flood, n, 0))
                .collect();
            flood.send(&mut world, 20_000);
            let new: Vec<u16> = (400..720)
                .map(|n| connects_in(&mut world, &mut flood, n, 300))
                .collect();
            for (number, &server) in (0..).zip(old.iter().chain(&new)) {
                assert!(
                    goes_on(&mut world, number, server),
                    "{role:?} {what:?} {number}"
                );
            }
            let connections = world.connections();
            assert_eq!(connections.refused, 0, "{role:?} {what:?} {connections:?}");
            assert!(connections.unanswered <= 2048, "{connections:?}");
            assert!(
                connections.evicted > 200_000,
                "{role:?} {what:?} {connections:?}"
            );
            assert_eq!(
                connections.made,
                connections.live + connections.expired + connections.removed
            );
        }
    }
}

#[test]
fn ten_million_packets_refuse_no_honest_connection() {
    for role in [Role::Host, Role::Proxy] {
        let setup = Setup {
            places: 1 << 16,
            ..small(role, false)
        };
        let mut world = World::new(setup);
        let mut floods = [What::Udp, SYN].map(|what| Flood::new(&world.setup, what));
        let mut servers = Vec::new();
        while servers.len() < 320 {
            let number = servers.len() as u32;
            let flood = &mut floods[number as usize % 2];
            servers.push(connects_in(&mut world, flood, number, 15_625 / 2));
            flood.send(&mut world, 15_625);
            world.advance();
        }
        assert!(floods.iter().map(|flood| flood.sent).sum::<u32>() >= 9_999_000);
        for (number, server) in (0..).zip(servers) {
            assert!(goes_on(&mut world, number, server), "{role:?} {number}");
        }
        let connections = world.connections();
        assert_eq!(connections.refused, 0, "{role:?} {connections:?}");
        assert!(connections.unanswered <= 1 << 15, "{connections:?}");
        assert_eq!(world.stats().dropped[DropReason::TableFull].packets, 0);
    }
}

/// A server that answers all comers answers spoofed ones, too.
#[test]
fn a_flood_that_is_answered_keeps_nobody_out() {
    for (role, ipv6) in ROLES {
        for what in [What::Udp, What::Echo, What::Other, SYN] {
            let mut world = World::new(small(role, ipv6));
            let mut flood = Flood::new(&world.setup, what);
            let old: Vec<u16> = (0..400)
                .map(|n| connects_in(&mut world, &mut flood, n, 0))
                .collect();
            let (first, answer, _) = steps(what);
            let mut servers = Vec::new();
            for turn in 0..20_000 {
                let client = flood.next();
                let server = world.asks(1, client, first);
                let server = server.unwrap_or_else(|v| panic!("{role:?} {what:?} {turn}: {v:?}"));
                world.answers(server, client, answer).unwrap();
                if turn % 50 == 0 {
                    let number = 400 + turn / 50;
                    servers.push(connects_in(&mut world, &mut flood, number, 10));
                }
            }
            for (number, &server) in (0..).zip(old.iter().chain(&servers)) {
                assert!(
                    goes_on(&mut world, number, server),
                    "{role:?} {what:?} {number}"
                );
            }
            let connections = world.connections();
            assert_eq!(connections.refused, 0, "{connections:?}");
            assert!(connections.evicted > 10_000, "{connections:?}");
        }
    }
}

/// As long as unanswered ones can make room, what was answered stays, although only one packet came
/// of either side.
#[test]
fn a_flood_that_is_not_answered_evicts_nothing_that_was() {
    for (role, ipv6) in ROLES {
        let mut world = World::new(small(role, ipv6));
        let mut flood = Flood::new(&world.setup, What::Udp);
        for number in 0..2000 {
            let server = world.asks(1, number << 10, What::Udp).unwrap();
            world.answers(server, number << 10, What::Udp).unwrap();
        }
        flood.send(&mut world, 50_000);
        for number in 0..2000 {
            let vip = world.setup.vip();
            let server = world.asks(1, number << 10, What::Udp).unwrap();
            let seen = world.answers(server, number << 10, What::Udp);
            assert_eq!(seen, Ok(vip), "{role:?} {number}");
        }
        let made = world.connections().made;
        assert_eq!(made, 52_000, "none of the old ones was made anew");
    }
}

/// A port scan leaves refused connections, which make room: a closed port answers each SYN with a
/// RST.
#[test]
fn connections_that_were_refused_make_room() {
    for (role, ipv6) in ROLES {
        let mut world = World::new(small(role, ipv6));
        for number in 0..10_000 {
            let server = world.asks(1, number, SYN).expect("there is room");
            let refusal = What::Tcp("RA", 0, 101);
            world.answers(server, number, refusal).unwrap();
        }
        assert_eq!(world.connections().refused, 0, "{role:?}");
    }
}

#[test]
fn a_table_full_of_connections_refuses_new_ones_and_keeps_the_old() {
    for (role, ipv6) in ROLES {
        let setup = Setup {
            places: 100,
            ..small(role, ipv6)
        };
        let mut world = World::new(setup);
        let servers: Vec<u16> = (0..100)
            .map(|n| world.connects(1, honest(n).0, honest(n).1).unwrap())
            .collect();
        for what in KINDS {
            let full = Err(Verdict::Drop(DropReason::TableFull));
            assert_eq!(world.asks(1, 1 << 20, what), full, "{role:?} {what:?}");
        }
        assert_eq!(world.connections().refused, 4);
        assert_eq!(world.connections().evicted, 0);
        for (number, server) in (0..).zip(servers) {
            assert!(goes_on(&mut world, number, server));
        }
    }
}

/// Flows of a vm to the outside, which nobody answers, push out no connection either.
#[test]
fn a_vm_that_calls_everybody_pushes_out_no_connection() {
    for ipv6 in [false, true] {
        let mut world = World::new(small(Role::Host, ipv6));
        let mut flood = Flood::new(&world.setup, What::Udp);
        let old: Vec<u16> = (0..400)
            .map(|n| connects_in(&mut world, &mut flood, n, 0))
            .collect();
        for turn in 0..20_000 {
            let vm = (world.setup.server(2), 5353);
            let far = world.setup.client(SPOOFED + (turn << 10));
            let mut frame = packet(vm, (far.0, 53), What::Udp, false);
            frame[6..12].copy_from_slice(&slb_core::spec::derived_mac(vm.0).0);
            let outcome = world.give(slb_core::PortId(2), &frame);
            assert!(outcome.is_forwarded(), "{turn}: {:?}", outcome.verdict);
            assert_eq!(outcome.addresses().0, world.setup.front());
        }
        let new = connects_in(&mut world, &mut flood, 400, 0);
        for (number, &server) in (0..).zip(old.iter().chain([&new])) {
            assert!(goes_on(&mut world, number, server));
        }
        let connections = world.connections();
        assert!(connections.unanswered <= 2048, "{connections:?}");
        assert_eq!(connections.refused, 0);
    }
}

/// A flood from outside has no part in the places of what vms opened, nor in their ports.
#[test]
fn a_flood_from_outside_pushes_out_no_call_of_a_vm() {
    for ipv6 in [false, true] {
        for what in [SYN, What::Udp] {
            let mut world = World::new(small(Role::Host, ipv6));
            let mut flood = Flood::new(&world.setup, what);
            let far = world.setup.client(7 << 10);
            let calls = |world: &mut World, flood: &mut Flood, own: u16, between: usize| {
                let port = world.calls((1, own), far, SYN).expect("a new connection");
                let vm = (world.setup.server(1), own);
                flood.send(world, between);
                assert_eq!(world.returns(1, far, port, SYN_ACK), Ok(vm), "{own}");
                flood.send(world, between);
                assert_eq!(world.calls((1, own), far, ACK), Ok(port), "{own}");
                port
            };
            let mut ports: Vec<u16> = (2000..2400)
                .map(|own| calls(&mut world, &mut flood, own, 0))
                .collect();
            flood.send(&mut world, 20_000);
            ports.extend((2400..2720).map(|own| calls(&mut world, &mut flood, own, 100)));
            for (own, port) in (2000..).zip(ports) {
                let vm = (world.setup.server(1), own);
                let seen = world.returns(1, far, port, SERVER_ACK);
                assert_eq!(seen, Ok(vm), "{what:?} {own}");
                assert_eq!(world.calls((1, own), far, ACK), Ok(port), "{what:?} {own}");
            }
            let connections = world.connections();
            assert_eq!(connections.refused, 0, "{what:?} {connections:?}");
            assert!(connections.evicted > 50_000, "{what:?} {connections:?}");
            assert_eq!(world.snat(1), (720, 720), "{what:?}");
        }
    }
}

#[derive(Clone, Copy, Debug, TypeGenerator)]
enum Operation {
    Ask(u8),
    Answer(u8),
    GoOn(u8),
    Refuse(u8),
    Wait(u8),
}

/// In any order of packets, a connection whose opener went on after the answer stays until its idle
/// timeout, and unanswered ones have half of the places at most.
#[test]
fn what_has_come_about_stays() {
    bolero::check!()
        .with_type::<([bool; 2], Vec<Operation>)>()
        .for_each(|([is_host, ipv6], operations)| {
            let role = if *is_host { Role::Host } else { Role::Proxy };
            let setup = Setup {
                places: 12,
                idle_timeout: Duration::from_secs(3600),
                ..Setup::new(role, *ipv6)
            };
            let mut world = World::new(setup);
            // How far each client's connection has come; the server, once that is known.
            let mut model: HashMap<u8, (u16, u8)> = HashMap::new();
            for &operation in operations {
                let client = |n: u8| u32::from(n) << 10;
                let is_tcp = |n: u8| n.is_multiple_of(2);
                match operation {
                    Operation::Ask(n) => {
                        let what = if is_tcp(n) { SYN } else { What::Udp };
                        let went = world.asks(1, client(n), what);
                        if let Some(&(server, 2)) = model.get(&n) {
                            assert_eq!(went, Ok(server), "an open connection");
                        } else if let Ok(server) = went {
                            // Of UDP it may be the packet that goes on.
                            let before = model.remove(&n).map_or(0, |(_, how)| how);
                            let how = if before == 1 && !is_tcp(n) { 1 } else { 0 };
                            model.insert(n, (server, how));
                        }
                    }
                    Operation::Answer(n) => {
                        let what = if is_tcp(n) { SYN_ACK } else { What::Udp };
                        if let Some((server, how)) = model.get_mut(&n) {
                            let vip = world.setup.vip();
                            let seen = world.answers(*server, client(n), what);
                            assert!(*how < 2 || seen == Ok(vip));
                            if seen == Ok(vip) {
                                *how = (*how).max(1);
                            }
                        }
                    }
                    Operation::GoOn(n) => {
                        let what = if is_tcp(n) { ACK } else { What::Udp };
                        if let Some((server, how)) = model.get_mut(&n)
                            && *how > 0
                        {
                            let made = world.connections().made;
                            let went = world.asks(1, client(n), what);
                            assert!(*how < 2 || went == Ok(*server));
                            if went == Ok(*server) && world.connections().made == made {
                                *how = 2;
                            }
                        }
                    }
                    Operation::Refuse(n) => {
                        if let Some((server, 0)) = model.get(&n)
                            && is_tcp(n)
                        {
                            let _ = world.answers(*server, client(n), What::Tcp("RA", 0, 101));
                            model.remove(&n);
                        }
                    }
                    Operation::Wait(seconds) => world.wait(Duration::from_secs(seconds.into())),
                }
                // Keeps those alive that have come about.
                for (&n, &(server, how)) in &model {
                    let what = if is_tcp(n) { SERVER_ACK } else { What::Udp };
                    if how == 2 {
                        let vip = world.setup.vip();
                        assert_eq!(world.answers(server, client(n), what), Ok(vip), "{n}");
                    }
                }
                let connections = world.connections();
                assert!(connections.unanswered <= 6, "{connections:?}");
                assert_eq!(
                    connections.made,
                    connections.live + connections.expired + connections.removed
                );
            }
        });
}

#[test]
fn the_flood_is_what_clients_send() {
    for (role, ipv6) in ROLES {
        for what in KINDS {
            let setup = small(role, ipv6);
            let mut world = World::new(setup.clone());
            let mut flood = Flood::new(&setup, what);
            assert_eq!(flood.send(&mut world, 100), 100, "{role:?} {what:?}");
            assert_eq!(world.connections().made, 100, "{role:?} {what:?}");
        }
    }
}
