//! Several host agents or proxies, each with a share of the connections, do together what one does.

use crate::translated;

use core::num::NonZeroU16;
use std::net::IpAddr;

use bolero::TypeGenerator;
use etherparse::PacketBuilder;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, FrontendPort, Pool, ProbeSource, Protocol, ProxyPorts, Rule,
    SourceRewrite, Spec,
};
use slb_core::state::Age;
use slb_core::steer::{Share, Steering};
use slb_core::{Frame, Key, PortId, Stats, Verdict};
use translated::{
    ACK, BACKENDS, FABRIC, Outcome, ROLES, Role, SYN, SYN_ACK, Setup, What, World, addresses,
    encapsulated, packet, ports,
};

/// An action of a client, a server or a router between them.
#[derive(Clone, Copy, Debug, TypeGenerator)]
enum Act {
    /// A client asks a VIP.
    Ask { client: u8, kind: u8 },
    /// A vm calls out, or a backend does.
    Call { server: u8, client: u8, kind: u8 },
    /// The receiver of a packet answers it.
    Answer { which: u8 },
    /// A router reports an error about a packet to its sender.
    Report { which: u8 },
    /// A client sends to a server's own address.
    Direct { server: u8, client: u8, kind: u8 },
    /// Something that is no IP packet.
    Other { is_inward: bool },
}

/// A packet that was delivered, to a server or by one.
#[derive(Clone)]
struct Delivered {
    bytes: Vec<u8>,
    is_inward: bool,
    server: u16,
    what: What,
}

/// One role that has all connections, beside three that have shares of them.
struct Both {
    one: World,
    three: Vec<World>,
    steering: Steering,
    turn: usize,
}

impl Both {
    fn new(setup: &Setup) -> Self {
        Self {
            one: World::new(setup.clone()).with_room(),
            three: (0..3)
                .map(|_| World::new(setup.clone()).with_room())
                .collect(),
            steering: steering(3),
            turn: 0,
        }
    }

    /// Sends a frame to both, which have to do the same with it.
    fn give(&mut self, port: PortId, bytes: &[u8]) -> Outcome {
        self.turn += 1;
        let expected = self.one.give(port, bytes);
        let owner = self.one.owner(&self.steering, port, bytes);
        // A frame of no connection goes to any worker.
        let owner = owner.map_or(self.turn % 3, usize::from);
        let outcome = self.three[owner].give(port, bytes);
        assert_eq!(outcome, expected, "{port:?} {bytes:02x?}");
        let mut expected = self.one.released();
        let mut released: Vec<Outcome> = self.three.iter_mut().flat_map(World::released).collect();
        // Each worker keeps its own order.
        let by_bytes = |one: &Outcome, other: &Outcome| one.bytes.cmp(&other.bytes);
        expected.sort_by(by_bytes);
        released.sort_by(by_bytes);
        assert_eq!(released, expected);
        released.into_iter().next().unwrap_or(outcome)
    }

    fn check_counters(&self) {
        let mut sum = Stats::default();
        for world in &self.three {
            sum += world.stats();
        }
        let mut expected = self.one.stats();
        // The sizes of three tables, and the most that each had at once.
        expected.connections.places = sum.connections.places;
        expected.connections.most = sum.connections.most;
        assert_eq!(sum, expected);
    }
}

fn steering(workers: u16) -> Steering {
    Steering::new(NonZeroU16::new(workers).expect("workers"), Key::new([8, 9]))
}

fn what_of(kind: u8) -> What {
    [SYN, What::Udp, What::Echo, What::Other][usize::from(kind) % 4]
}

/// Returns the answer to a packet.
fn answer_to(what: What) -> What {
    match what {
        SYN => SYN_ACK,
        SYN_ACK => ACK,
        What::Tcp(..) => What::Tcp("A", 501, 101),
        other => other,
    }
}

/// The two halves of a datagram, if it is long enough.
fn halves(frame: &[u8]) -> Option<[Vec<u8>; 2]> {
    cut(frame, 8)
}

/// Two fragments of a datagram, the first with so many bytes: a multiple of 8, below 256.
fn cut(frame: &[u8], first_len: usize) -> Option<[Vec<u8>; 2]> {
    let offset = first_len as u16;
    let (mut first, mut later) = (frame.to_vec(), frame.to_vec());
    if frame[12..14] == [8, 0] {
        let payload = frame.len().checked_sub(34).filter(|len| *len > first_len)?;
        first.truncate(34 + first_len);
        later.drain(34..34 + first_len);
        for (half, len, field) in [
            (&mut first, first_len, 0x2000_u16),
            (&mut later, payload - first_len, offset / 8),
        ] {
            half[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
            half[18..20].copy_from_slice(&[7, 7]);
            half[20..22].copy_from_slice(&field.to_be_bytes());
            half[24..26].fill(0);
            let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&half[14..34]);
            half[24..26].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        }
    } else {
        let payload = frame.len().checked_sub(54).filter(|len| *len > first_len)?;
        first.truncate(54 + first_len);
        later.drain(54..54 + first_len);
        for (half, len, field) in [
            (&mut first, first_len, 1_u16),
            (&mut later, payload - first_len, offset),
        ] {
            let next = std::mem::replace(&mut half[20], 44);
            half[18..20].copy_from_slice(&(8 + len as u16).to_be_bytes());
            let [high, low] = field.to_be_bytes();
            half.splice(54..54, [next, 0, high, low, 0, 0, 7, 7]);
        }
    }
    Some([first, later])
}

/// An ICMP error about a packet, from a router or from the packet's receiver to the packet's sender.
fn report(about: &[u8], from: IpAddr) -> Vec<u8> {
    let (to, _) = addresses(about);
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1]);
    let mut bytes = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link
            .ipv4(from.octets(), to.octets(), 64)
            .icmpv4_raw(3, 1, [0; 4])
            .write(&mut bytes, &about[14..]),
        (IpAddr::V6(from), IpAddr::V6(to)) => link
            .ipv6(from.octets(), to.octets(), 64)
            .icmpv6_raw(1, 0, [0; 4])
            .write(&mut bytes, &about[14..]),
        _ => unreachable!("of one family"),
    }
    .expect("a packet");
    bytes
}

/// A packet on its way: inward for a server's vm, or outward from one.
fn arrival(setup: &Setup, is_inward: bool, server: u16, mut bytes: Vec<u8>) -> (PortId, Vec<u8>) {
    match (setup.role, is_inward) {
        (Role::Host, true) => (FABRIC, encapsulated(&bytes, setup.server(server))),
        (Role::Proxy, true) => (FABRIC, bytes),
        (Role::Host, false) => {
            let mac = slb_core::spec::derived_mac(setup.server(server));
            bytes[6..12].copy_from_slice(&mac.0);
            (PortId(server), bytes)
        }
        (Role::Proxy, false) => (BACKENDS, bytes),
    }
}

#[test]
fn three_with_shares_do_what_one_does() {
    bolero::check!()
        .with_type::<(u8, Vec<(Act, u8)>)>()
        .for_each(|(which, acts)| {
            let (role, ipv6) = ROLES[usize::from(*which) % ROLES.len()];
            let setup = Setup {
                places: 256,
                ..Setup::new(role, ipv6)
            };
            let mut both = Both::new(&setup);
            let mut delivered: Vec<Delivered> = Vec::new();
            for (act, way) in acts.iter().take(40) {
                let known = |which: u8| {
                    let count = delivered.len();
                    (count > 0).then(|| delivered[usize::from(which) % count].clone())
                };
                let client = |number: u8| setup.client(u32::from(number % 8) * 700);
                let (is_inward, server, what, bytes) = match *act {
                    Act::Ask {
                        client: number,
                        kind,
                    } => {
                        let what = what_of(kind);
                        let (service, _) = setup.service(what);
                        let bytes = packet(client(number), service, what, false);
                        (true, 1 + u16::from(kind / 4 % 2), what, bytes)
                    }
                    Act::Call {
                        server,
                        client: number,
                        kind,
                    } => {
                        let (server, what) = (1 + u16::from(server % 2), what_of(kind));
                        let from = (setup.server(server), 40_000 + u16::from(kind / 4 % 2));
                        (
                            false,
                            server,
                            what,
                            packet(from, client(number), what, false),
                        )
                    }
                    Act::Direct {
                        server,
                        client: number,
                        kind,
                    } => {
                        let (server, what) = (1 + u16::from(server % 2), what_of(kind));
                        let to = (setup.server(server), 8080);
                        (true, server, what, packet(client(number), to, what, false))
                    }
                    Act::Answer { which } => {
                        let Some(to) = known(which) else { continue };
                        let (from, whom) = addresses(&to.bytes);
                        let (port, own) = ports(&to.bytes);
                        let what = answer_to(to.what);
                        let bytes = packet((whom, own), (from, port), what, true);
                        (!to.is_inward, to.server, what, bytes)
                    }
                    Act::Report { which } => {
                        let Some(about) = known(which) else { continue };
                        // Inside, the packet's receiver itself.
                        let (_, receiver) = addresses(&about.bytes);
                        let router = setup.client(60_000).0;
                        let from = if about.is_inward { receiver } else { router };
                        (
                            !about.is_inward,
                            about.server,
                            SYN,
                            report(&about.bytes, from),
                        )
                    }
                    Act::Other { is_inward } => {
                        let mut bytes = vec![0; 60];
                        bytes[12..14].copy_from_slice(&[8, 6]);
                        (is_inward, 1, SYN, bytes)
                    }
                };
                let pieces = match (way % 4, halves(&bytes)) {
                    (2, Some([first, later])) => vec![first, later],
                    (3, Some([first, later])) => vec![later, first],
                    _ => vec![bytes],
                };
                for piece in pieces {
                    let (port, frame) = arrival(&setup, is_inward, server, piece);
                    let outcome = both.give(port, &frame);
                    let is_ip = matches!(outcome.bytes.get(12..14), Some([8, 0] | [0x86, 0xdd]));
                    if outcome.is_forwarded() && is_ip && !matches!(act, Act::Report { .. }) {
                        delivered.push(Delivered {
                            is_inward: match setup.role {
                                Role::Host => outcome.verdict != Verdict::Forward(FABRIC),
                                Role::Proxy => outcome.verdict == Verdict::Forward(BACKENDS),
                            },
                            bytes: outcome.bytes,
                            server,
                            what,
                        });
                    }
                }
            }
            both.check_counters();
        });
}

/// A client's packet, the server's answer, the halves of both and errors about both have one owner.
#[test]
fn all_packets_of_a_connection_meet() {
    let steering = steering(7);
    for (role, ipv6) in ROLES {
        let setup = Setup::new(role, ipv6);
        let world = World::new(setup.clone());
        let mut owners = std::collections::BTreeSet::new();
        for (number, what) in (0..60).flat_map(|n| [(n, SYN), (n, What::Udp), (n, What::Echo)]) {
            let client = setup.client(number * 1024);
            let (service, port) = setup.service(what);
            let server = (setup.server(2), port);
            let asks = packet(client, service, what, false);
            // As the server gets it, and as the client does.
            let asked = packet(client, server, what, false);
            let answers = packet(server, client, answer_to(what), true);
            let answered = packet(service, client, answer_to(what), true);
            let router = setup.client(60_000).0;
            let mut all = vec![
                (true, asks.clone()),
                (false, answers.clone()),
                (true, report(&answered, router)),
                (false, report(&asked, server.0)),
            ];
            all.extend(halves(&asks).into_iter().flatten().map(|half| (true, half)));
            all.extend(
                halves(&answers)
                    .into_iter()
                    .flatten()
                    .map(|half| (false, half)),
            );
            assert_eq!(all.len(), 8);
            let owner = |(is_inward, bytes): (bool, Vec<u8>)| {
                let (port, frame) = arrival(&setup, is_inward, 2, bytes);
                world.owner(&steering, port, &frame).expect("an owner")
            };
            let all: Vec<u16> = all.into_iter().map(owner).collect();
            assert!(
                all.iter().all(|owner| *owner == all[0]),
                "{what:?}: {all:?}"
            );
            owners.insert(all[0]);
        }
        assert_eq!(owners.len(), 7);
    }
}

/// A fragmented ICMP error cannot be verified: whoever gets its pieces, none of them is delivered, as with one
/// worker.
#[test]
fn pieces_of_an_error_do_the_same_at_any_worker() {
    for (role, ipv6) in ROLES {
        let setup = Setup::new(role, ipv6);
        // The ICMP header alone, and all of the quote but its end.
        for (number, first_len) in [(0, 8), (1, 40), (2, 8), (3, 40)] {
            let mut both = Both::new(&setup);
            let client = setup.client(number * 700);
            let (service, _) = setup.service(SYN);
            let mut give = |is_inward, bytes| {
                let (port, frame) = arrival(&setup, is_inward, 1, bytes);
                both.give(port, &frame)
            };
            let asked = give(true, packet(client, service, SYN, false));
            assert!(asked.is_forwarded());
            let (server, port) = (addresses(&asked.bytes).1, ports(&asked.bytes).1);
            let answered = give(false, packet((server, port), client, SYN_ACK, true));
            assert!(answered.is_forwarded());
            let answer = packet(service, client, SYN_ACK, true);
            for router in (60_000..60_008).map(|number| setup.client(number).0) {
                let pieces = cut(&report(&answer, router), first_len).expect("it is long enough");
                for piece in pieces {
                    assert!(!give(true, piece).is_forwarded());
                }
            }
            both.check_counters();
        }
    }
}

/// Each connection is taken over by the worker that its packets go to, however many there were before.
#[test]
fn records_are_taken_over_by_whose_they_are() {
    for (role, ipv6) in ROLES {
        let setup = Setup::new(role, ipv6);
        let mut one = World::new(setup.clone());
        let mut servers = Vec::new();
        for number in 0..40 {
            servers.push(one.connects(1, number * 1024, SYN).expect("a connection"));
        }
        let (records, _) = one.export();
        let steering = steering(3);
        let mut three: Vec<World> = (0..3).map(|_| World::new(setup.clone())).collect();
        let age = Age::default();
        let mut taken = Vec::new();
        for (worker, world) in (0..).zip(&mut three) {
            let share = Share {
                steering: &steering,
                worker,
            };
            let imported = world.import_share(age, &records, share).expect("records");
            assert_eq!(imported.all_refused(), 0);
            taken.push(imported.taken);
        }
        assert_eq!(taken.iter().sum::<u64>(), 40, "{taken:?}");
        assert!(taken.iter().all(|&count| count > 3), "{taken:?}");
        for (number, server) in (0..).zip(servers) {
            let bytes = one.packet_of(server, number * 1024, ACK);
            let owner = one.owner(&steering, FABRIC, &bytes).expect("an owner");
            assert!(three[usize::from(owner)].goes_on(server, number * 1024, SYN));
        }
    }
}

/// Unreadable records are counted once, not by each worker.
#[test]
fn unreadable_records_are_counted_once() {
    let (host, proxy) = (
        Setup::new(Role::Host, false),
        Setup::new(Role::Proxy, false),
    );
    let mut one = World::new(proxy);
    one.connects(1, 1, SYN).expect("a connection");
    let (records, _) = one.export();
    let steering = steering(3);
    let refused = (0..3).map(|worker| {
        let share = Share {
            steering: &steering,
            worker,
        };
        let imported = World::new(host.clone()).import_share(Age::default(), &records, share);
        imported.expect("records").all_refused()
    });
    assert_eq!(refused.collect::<Vec<_>>(), [1, 0, 0]);
}

/// Addresses are spread evenly, and another key spreads them otherwise.
#[test]
fn remote_addresses_are_spread() {
    for (role, ipv6) in ROLES {
        let world = World::new(Setup::new(role, ipv6));
        let mut counts = [0_u32; 4];
        for number in 0..1000 {
            let bytes = world.packet_of(1, number * 1024, SYN);
            let owner = world.owner(&steering(4), FABRIC, &bytes).expect("an owner");
            counts[usize::from(owner)] += 1;
        }
        assert!(
            counts.iter().all(|count| (190..310).contains(count)),
            "{counts:?}"
        );
    }
}

#[test]
fn source_nat_does_not_spread() {
    for (role, ipv6) in ROLES {
        let mut setup = Setup::new(role, ipv6);
        assert!(setup.after(None).spreads());
        setup.terms.source_nat = Some(setup.server(99));
        assert!(!setup.after(None).spreads());
    }
}

/// A client that servers see under another address, and what servers send there.
#[test]
fn rewritten_clients_meet_their_answers() {
    let (vip, server) = (
        IpAddr::from([20, 20, 20, 100]),
        IpAddr::from([10, 10, 1, 1]),
    );
    let spec = Spec {
        frontends: &[Frontend {
            name: "web",
            address: vip,
            icmp_echo: Echo::Forward,
        }],
        rules: &[Rule {
            name: "http",
            protocol: Protocol::Tcp,
            frontend_port: 80,
            backend_port: 80,
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "servers",
            backends: &[Backend {
                name: "one",
                address: server,
                host: server,
                ..Backend::default()
            }],
            ..Pool::default()
        }],
        proxy: Some(ProxyPorts {
            frontends: &[FrontendPort {
                port: FABRIC,
                address: None,
            }],
            backend: BACKENDS,
            source_rewrites: &[SourceRewrite {
                from: IpAddr::from([192, 0, 2, 0]),
                to: IpAddr::from([10, 99, 2, 0]),
                prefix_len: 24,
            }],
            ..ProxyPorts::default()
        }),
        ..Spec::default()
    };
    let snapshot = Snapshot::new(&spec, None).expect("a good spec");
    let steering = steering(5);
    let owner = |port, from, to, what, answers| {
        let mut bytes = packet(from, to, what, answers);
        let len = bytes.len();
        let mut frame = Frame::new(&mut bytes, 0, len).expect("it fits");
        frame.set_port(port);
        steering.owner(&snapshot, &frame).expect("an owner")
    };
    let mut owners = std::collections::BTreeSet::new();
    for number in 0..100 {
        let client = (IpAddr::from([192, 0, 2, number]), 5000);
        let seen = (IpAddr::from([10, 99, 2, number]), 5000);
        for (what, port) in [(SYN, 80), (What::Echo, 0)] {
            let asks = owner(FABRIC, client, (vip, port), what, false);
            let answers = owner(BACKENDS, (server, port), seen, answer_to(what), true);
            assert_eq!(asks, answers, "{number} {what:?}");
            assert_eq!(steering.owner_of_remote(&snapshot, client.0), asks);
            owners.insert(asks);
        }
        // Another frontend port leads elsewhere: nothing is rewritten there.
        let direct = owner(FABRIC, client, (server, 80), SYN, false);
        let answer = owner(BACKENDS, (server, 80), client, SYN_ACK, true);
        assert_eq!(direct, answer);
    }
    assert_eq!(owners.len(), 5);
}

/// Answers of vms to probes go to the worker that has the prober.
#[test]
fn answers_to_probes_go_to_the_first_worker() {
    let spec = Spec {
        probe_source: ProbeSource {
            ipv4: Some([168, 63, 129, 16].into()),
            ipv6: Some([0xfd; 16].into()),
        },
        ..Spec::default()
    };
    let snapshot = Snapshot::new(&spec, None).expect("a good spec");
    for (vm, source) in [
        (
            IpAddr::from([10, 10, 1, 1]),
            IpAddr::from([168, 63, 129, 16]),
        ),
        (IpAddr::from([0xfc; 16]), IpAddr::from([0xfd; 16])),
    ] {
        for what in [SYN_ACK, What::Echo] {
            let mut bytes = packet((vm, 80), (source, 1000), what, true);
            let len = bytes.len();
            let mut frame = Frame::new(&mut bytes, 0, len).expect("it fits");
            frame.set_port(PortId(1));
            for workers in 1..20 {
                assert_eq!(steering(workers).owner(&snapshot, &frame), Some(0));
            }
        }
    }
}
