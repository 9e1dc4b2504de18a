//! Answers that go through a mux follow the client's packets from mux to mux.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::PacketBuilder;
use slb_core::hash::{Hasher, Xxh3};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Answers, Backend, Frontend, Pool, Protocol, Rule, Spec, SpecError, Terms, Underlay, derived_mac,
};
use slb_core::{Burst, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Verdict};

type Shared = Box<Snapshot<'static>>;

const FABRIC: PortId = PortId(0);
const VM: PortId = PortId(1);
const KEY: Key = Key::new([7, 8]);
const MUXES: usize = 254;
const PORT: u16 = 4000;

fn mux_address(mux: usize) -> IpAddr {
    Ipv4Addr::new(172, 16, 1, mux as u8 + 1).into()
}

fn host_address(host: usize) -> IpAddr {
    Ipv4Addr::new(172, 16, 2, host as u8 + 1).into()
}

fn address(last: u8, is_ipv6: bool) -> IpAddr {
    match is_ipv6 {
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into(),
        false => Ipv4Addr::new(20, 20, 20, last).into(),
    }
}

#[derive(Clone, Copy)]
enum Node {
    Mux(usize),
    Host(usize),
}

/// Compiles the snapshot of a node: a host for each backend, of which only those with a weight get
/// new flows.
fn snapshot(
    node: Node,
    is_ipv6: bool,
    (answers, muxes, weights): (Answers, usize, [u32; 2]),
    previous: Option<&Snapshot<'_>>,
) -> Result<Shared, SpecError> {
    let backends: Vec<Backend<'_>> = (0..2)
        .map(|number| Backend {
            name: ["vm0", "vm1"][number],
            address: address(10 + number as u8, is_ipv6),
            host: host_address(number),
            weight: weights[number],
            port: matches!(node, Node::Host(host) if host == number).then_some(VM),
            ..Backend::default()
        })
        .collect();
    let own = match node {
        Node::Mux(mux) => mux_address(mux),
        Node::Host(host) => host_address(host),
    };
    let IpAddr::V4(ipv4) = own else {
        panic!("IPv4")
    };
    let muxes: Vec<IpAddr> = (0..muxes).map(mux_address).collect();
    let rule = |name, protocol| Rule {
        name,
        protocol,
        frontend_port: 53,
        backend_port: 53,
        idle_timeout: Duration::from_secs(300),
        terms: Terms {
            answers,
            ..Terms::default()
        },
        ..Rule::default()
    };
    let spec = Spec {
        hasher: Hasher::Xxh3(Xxh3::new(1)),
        underlay: Underlay {
            ipv4: Some(ipv4),
            mac: derived_mac(own),
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: address(100, is_ipv6),
            ..Frontend::default()
        }],
        rules: &[
            rule("dns over tcp", Protocol::Tcp),
            rule("dns", Protocol::Udp),
        ],
        pools: &[Pool {
            name: "servers",
            table_size: 251,
            backends: &backends,
            ..Pool::default()
        }],
        muxes: &muxes,
        ..Spec::default()
    };
    Snapshot::new(&spec, previous).map(Box::new)
}

struct World {
    is_ipv6: bool,
    is_tcp: bool,
    hosts: [Host<'static, Shared>; 2],
    now: Instant,
    /// Numbers of the next segments: the client's and the server's.
    numbers: [u32; 2],
}

impl World {
    fn new(is_ipv6: bool, is_tcp: bool, answers: Answers) -> Self {
        let host = |number| {
            let how = (answers, MUXES, [1, 0]);
            let snapshot = snapshot(Node::Host(number), is_ipv6, how, None).expect("good");
            Host::with_capacity(snapshot, 100, KEY).expect("its role")
        };
        Self {
            is_ipv6,
            is_tcp,
            hosts: [host(0), host(1)],
            now: Instant::from_secs(1000),
            numbers: [100, 500],
        }
    }

    fn packet(&self, is_clients: bool, flags: &str, data: usize) -> Vec<u8> {
        let (client, vip, vm) = (1, 100, 10);
        let (from, to, ports) = match is_clients {
            true => (client, vip, (PORT, 53)),
            false => (vm, client, (53, PORT)),
        };
        let mac = match is_clients {
            true => [2, 0, 0, 0, 0, 1],
            false => derived_mac(address(vm, self.is_ipv6)).0,
        };
        let link = PacketBuilder::ethernet2(mac, [2, 0, 0, 0, 0, 3]);
        let ip = match (address(from, self.is_ipv6), address(to, self.is_ipv6)) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
            _ => panic!("two families"),
        };
        let data = vec![7; data];
        let mut bytes = Vec::new();
        if self.is_tcp {
            let [own, other] = match is_clients {
                true => self.numbers,
                false => [self.numbers[1], self.numbers[0]],
            };
            let mut tcp = ip.tcp(ports.0, ports.1, own, 60_000);
            if flags.contains('S') {
                tcp = tcp.syn();
            }
            if flags.contains('A') {
                tcp = tcp.ack(other);
            }
            tcp.write(&mut bytes, &data).expect("room");
        } else {
            ip.udp(ports.0, ports.1)
                .write(&mut bytes, &data)
                .expect("room");
        }
        bytes
    }

    /// A packet of the client's by a mux that has `weights`, up to the vm of the first host.
    fn arrives(&mut self, mux: usize, weights: [u32; 2], flags: &str, data: usize) {
        let how = (Answers::ThroughMux, 0, weights);
        let snapshot = snapshot(Node::Mux(mux), self.is_ipv6, how, None).expect("good");
        let mut mux = Mux::stateless(snapshot, KEY).expect("its role");
        let bytes = self.packet(true, flags, data);
        let mut buffer = vec![0; HEADROOM + bytes.len()];
        buffer[HEADROOM..].copy_from_slice(&bytes);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, bytes.len()).expect("room")];
        mux.process(self.now, &mut frames);
        for _ in 0..3 {
            assert_eq!(frames[0].verdict(), Verdict::Forward(FABRIC));
            let host = usize::from(frames[0].bytes()[33]) - 1;
            frames[0].set_port(FABRIC);
            self.hosts[host].process(self.now, &mut frames);
            if frames[0].verdict() == Verdict::Forward(VM) {
                assert_eq!(host, 0, "the vm that has the connection");
                return;
            }
        }
        panic!("no vm has it");
    }

    /// The mux that an answer goes to; `None`: straight to the client.
    fn answers(&mut self, flags: &str, data: usize) -> Option<usize> {
        let bytes = self.packet(false, flags, data);
        let mut buffer = vec![0; 128 + bytes.len()];
        buffer[128..].copy_from_slice(&bytes);
        let mut frames = [Frame::new(&mut buffer, 128, bytes.len()).expect("room")];
        frames[0].set_port(VM);
        self.hosts[0].process(self.now, &mut frames);
        assert_eq!(frames[0].verdict(), Verdict::Forward(FABRIC));
        let ip: [u8; 4] = *frames[0].bytes()[30..].first_chunk().expect("IP");
        (ip[..3] == [172, 16, 1]).then(|| usize::from(ip[3]) - 1)
    }

    /// A connection that came by this mux.
    fn opened(is_ipv6: bool, is_tcp: bool, mux: usize) -> Self {
        let mut world = Self::new(is_ipv6, is_tcp, Answers::ThroughMux);
        world.arrives(mux, [1, 0], "S", 0);
        world.numbers[0] += u32::from(is_tcp);
        assert_eq!(world.answers("SA", 0), Some(mux));
        world.numbers[1] += u32::from(is_tcp);
        world.arrives(mux, [1, 0], "A", 0);
        world
    }
}

#[test]
fn answers_go_by_the_mux_of_the_clients_last_packet() {
    for (is_ipv6, is_tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        for first in [0, 1, 7, 8, 15, 16, 100, 253] {
            let mut world = World::opened(is_ipv6, is_tcp, first);
            assert_eq!(world.answers("A", 0), Some(first));
            for mux in [253, 3, 0, 8, first] {
                world.arrives(mux, [1, 0], "A", 0);
                assert_eq!(world.answers("A", 0), Some(mux), "{first}");
            }
        }
    }
}

#[test]
fn answers_go_by_the_mux_of_a_packet_that_another_host_passed_on() {
    for (is_ipv6, is_tcp) in [(false, true), (true, true)] {
        let mut world = World::opened(is_ipv6, is_tcp, 4);
        let how = (Answers::ThroughMux, MUXES, [0, 1]);
        for (number, host) in world.hosts.iter_mut().enumerate() {
            let previous = Some(host.snapshot());
            let next = snapshot(Node::Host(number), is_ipv6, how, previous).expect("good");
            host.install(next).expect("it follows");
        }
        for mux in [9, 253] {
            world.arrives(mux, [0, 1], "A", 0);
            assert_eq!(world.answers("A", 0), Some(mux));
        }
        assert_eq!(world.hosts[1].stats().passed_on, 2);
    }
}

/// A client that waits for an answer sends nothing: without this it would wait for ever.
#[test]
fn an_answer_that_is_sent_again_goes_by_the_next_mux() {
    for is_ipv6 in [false, true] {
        let mut world = World::opened(is_ipv6, true, 252);
        assert_eq!(world.answers("A", 10), Some(252));
        for mux in [253, 0, 1] {
            world.now = world.now + Duration::from_millis(210);
            assert_eq!(world.answers("A", 10), Some(mux), "again");
            assert_eq!(world.answers("A", 10), Some(mux), "at once");
        }
        // In answer to the client's packet it goes where that came by.
        world.now = world.now + Duration::from_millis(210);
        world.arrives(1, [1, 0], "A", 0);
        assert_eq!(world.answers("A", 10), Some(1), "asked for");
        world.now = world.now + Duration::from_millis(210);
        world.numbers[1] += 10;
        assert_eq!(world.answers("A", 10), Some(1), "it was not sent before");
        assert_eq!(world.answers("A", 0), Some(1), "it carries nothing");
        world.arrives(30, [1, 0], "A", 0);
        assert_eq!(world.answers("A", 0), Some(30));
    }
}

#[test]
fn a_syn_ack_goes_by_the_mux_of_the_clients_last_syn() {
    let mut world = World::new(false, true, Answers::ThroughMux);
    world.arrives(5, [1, 0], "S", 0);
    world.numbers[0] += 1;
    assert_eq!(world.answers("SA", 0), Some(5));
    world.now = world.now + Duration::from_secs(1);
    assert_eq!(world.answers("SA", 0), Some(5));
    world.now = world.now + Duration::from_secs(1);
    world.numbers[0] -= 1;
    world.arrives(9, [1, 0], "S", 0);
    world.numbers[0] += 1;
    assert_eq!(world.answers("SA", 0), Some(9));
}

#[test]
fn answers_that_go_straight_still_do() {
    for is_tcp in [false, true] {
        let mut world = World::new(false, is_tcp, Answers::Direct);
        world.arrives(5, [1, 0], "S", 0);
        world.numbers[0] += u32::from(is_tcp);
        assert_eq!(world.answers("SA", 0), None);
        world.arrives(6, [1, 0], "A", 0);
        assert_eq!(world.answers("A", 3), None);
        assert_eq!(world.answers("A", 3), None);
    }
}

#[test]
fn idle_connections_end_within_four_seconds_of_their_timeout() {
    for mux in [0, 31, 253] {
        let mut world = World::opened(false, false, mux);
        world.arrives(mux, [1, 0], "", 1);
        for (later, live) in [(299, 1), (306, 0)] {
            let mut spare = Burst::new();
            for _ in 0..20 {
                world.hosts[0].advance(world.now + Duration::from_secs(later), &mut spare);
            }
            assert_eq!(
                world.hosts[0].stats().connections.live,
                live,
                "after {later} s"
            );
        }
    }
}

#[test]
fn there_are_at_most_254_muxes() {
    let how = |muxes| (Answers::ThroughMux, muxes, [1, 1]);
    assert!(snapshot(Node::Host(0), false, how(254), None).is_ok());
    let most = SpecError::TooMany {
        what: "muxes",
        most: 254,
        count: 255,
    };
    assert_eq!(
        snapshot(Node::Host(0), false, how(255), None).err(),
        Some(most)
    );
}
