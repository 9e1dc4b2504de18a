//! QUIC packets say whether a connection begins: hosts pass on what goes on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::PacketBuilder;
use slb_core::hash::{Hasher, Xxh3};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, Frontend, Pool, Protocol, Rule, Spec, Terms, Underlay, derived_mac};
use slb_core::{Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Verdict};

type Shared = Box<Snapshot<'static>>;

const FABRIC: PortId = PortId(0);
const VM: PortId = PortId(1);
const KEY: Key = Key::new([7, 8]);
const MUX: usize = 9;

const VERSION_1: [u8; 4] = [0, 0, 0, 1];
const VERSION_2: [u8; 4] = [0x6b, 0x33, 0x43, 0xcf];
/// The first bytes of a packet with a short header.
const SHORT: [u8; 5] = [0x40, 0, 0, 0, 1];

/// The first bytes of a packet with a long header, of a type and a version.
fn long(kind: u8, [a, b, c, d]: [u8; 4]) -> [u8; 5] {
    [0xc0 | kind << 4, a, b, c, d]
}

fn node_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 2, number as u8 + 1)
}

fn address(last: u8, is_ipv6: bool) -> IpAddr {
    match is_ipv6 {
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into(),
        false => Ipv4Addr::new(20, 20, 20, last).into(),
    }
}

struct World {
    is_ipv6: bool,
    is_quic: bool,
    weights: [u32; 2],
    mux: Mux<'static, Shared>,
    hosts: [Host<'static, Shared>; 2],
    now: Instant,
}

impl World {
    /// Two hosts with a vm each, of which the first gets all new flows.
    fn new(is_ipv6: bool, is_quic: bool) -> Self {
        let weights = [1, 0];
        let of = |node| snapshot(node, (is_ipv6, is_quic), weights, None);
        let host = |number| Host::with_capacity(of(number), 1000, KEY).expect("its role");
        Self {
            is_ipv6,
            is_quic,
            weights,
            mux: Mux::stateless(of(MUX), KEY).expect("its role"),
            hosts: [host(0), host(1)],
            now: Instant::from_secs(1000),
        }
    }

    /// From now on the second vm gets all new flows; then more time passes than a flow may be idle.
    fn change(&mut self) {
        self.weights = [0, 1];
        let how = (self.is_ipv6, self.is_quic);
        for (number, host) in self.hosts.iter_mut().enumerate() {
            let next = snapshot(number, how, self.weights, Some(host.snapshot()));
            host.install(next).expect("it follows");
        }
        let next = snapshot(MUX, how, self.weights, Some(self.mux.snapshot()));
        self.mux.install(next).expect("it follows");
    }

    /// The host whose vm a client's datagram reaches, and how often it was passed on.
    fn send(&mut self, port: u16, payload: &[u8]) -> (usize, usize) {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 3]);
        let ip = match (address(1, self.is_ipv6), address(100, self.is_ipv6)) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
            _ => panic!("two families"),
        };
        let mut bytes = vec![0; HEADROOM];
        ip.udp(port, 443).write(&mut bytes, payload).expect("room");
        let len = bytes.len() - HEADROOM;
        let mut frames = [Frame::new(&mut bytes, HEADROOM, len).expect("room")];
        self.mux.process(self.now, &mut frames);
        for hops in 0..3 {
            assert_eq!(frames[0].verdict(), Verdict::Forward(FABRIC));
            let host = usize::from(frames[0].bytes()[33]) - 1;
            frames[0].set_port(FABRIC);
            self.hosts[host].process(self.now, &mut frames);
            if frames[0].verdict() == Verdict::Forward(VM) {
                return (host, hops);
            }
        }
        panic!("no vm has it");
    }
}

fn snapshot(
    node: usize,
    (is_ipv6, quic): (bool, bool),
    weights: [u32; 2],
    previous: Option<&Snapshot<'_>>,
) -> Shared {
    let backends: Vec<Backend<'_>> = (0..2)
        .map(|number| Backend {
            name: ["vm0", "vm1"][number],
            address: address(10 + number as u8, is_ipv6),
            host: node_address(number).into(),
            weight: weights[number],
            port: (node == number).then_some(VM),
            ..Backend::default()
        })
        .collect();
    let own = node_address(node);
    let spec = Spec {
        hasher: Hasher::Xxh3(Xxh3::new(1)),
        underlay: Underlay {
            ipv4: Some(own),
            mac: derived_mac(own.into()),
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: address(100, is_ipv6),
            ..Frontend::default()
        }],
        rules: &[Rule {
            name: "http3",
            protocol: Protocol::Udp,
            frontend_port: 443,
            backend_port: 443,
            idle_timeout: Duration::from_secs(240),
            terms: Terms {
                quic,
                ..Terms::default()
            },
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "servers",
            table_size: 251,
            backends: &backends,
            ..Pool::default()
        }],
        ..Spec::default()
    };
    Box::new(Snapshot::new(&spec, previous).expect("good"))
}

#[test]
fn what_goes_on_is_passed_on_however_long_ago_the_slot_changed() {
    for is_ipv6 in [false, true] {
        let mut world = World::new(is_ipv6, true);
        for port in 1000..1010 {
            assert_eq!(world.send(port, &long(0, VERSION_1)), (0, 0));
        }
        world.change();
        // The connections stay in use for longer than a plain flow could have been idle.
        for _ in 0..4 {
            world.now = world.now + Duration::from_secs(100);
            for port in 1000..1010 {
                assert_eq!(world.send(port, &SHORT), (0, 1));
            }
        }
        // Handshake packets too, of both versions.
        assert_eq!(world.send(1000, &long(2, VERSION_1)), (0, 1));
        assert_eq!(world.send(1000, &long(3, VERSION_2)), (0, 1));
    }
}

#[test]
fn what_begins_a_connection_is_taken_at_once() {
    for is_ipv6 in [false, true] {
        let mut world = World::new(is_ipv6, true);
        world.change();
        let begin = [
            long(0, VERSION_1),
            long(1, VERSION_1),
            long(1, VERSION_2),
            long(2, VERSION_2),
            long(3, [0x1a, 0x2a, 0x3a, 0x4a]),
        ];
        for (port, first) in (1000..).zip(&begin) {
            assert_eq!(world.send(port, first), (1, 0), "{first:02x?}");
        }
        // A short header of no connection comes back from the former owner: the vm resets it.
        assert_eq!(world.send(2000, &SHORT), (1, 2));
    }
}

#[test]
fn a_datagram_that_says_nothing_is_one_of_a_flow_as_any() {
    let mut world = World::new(false, true);
    world.send(1000, &long(0, VERSION_1));
    world.change();
    assert_eq!(world.send(1000, &[0x40]), (0, 1), "it was asked for");
    assert_eq!(
        world.send(2000, &[]),
        (1, 2),
        "nobody has it: it comes back"
    );
}

#[test]
fn without_quic_a_new_owner_takes_what_comes_late() {
    let mut world = World::new(false, false);
    world.send(1000, &long(0, VERSION_1));
    world.change();
    for _ in 0..4 {
        world.now = world.now + Duration::from_secs(100);
        world.send(3000, &SHORT);
    }
    assert_eq!(world.send(1000, &SHORT), (1, 0));
}
