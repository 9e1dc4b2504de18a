//! Ten million hostile packets of each kind through a mux and a host agent, in whose tables are ten
//! thousand established connections: none of them loses a packet, or moves.

use std::net::Ipv4Addr;
use std::time::Duration;

use etherparse::PacketBuilder;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, Echo, Frontend, Pool, Protocol, Rule, Spec, Terms, Underlay};
use slb_core::wire::checksum::checksum;
use slb_core::wire::vxlan::Vni;
use slb_core::{BURST, DropReason, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Verdict};

const CONNECTIONS: u32 = 10_000;
const PACKETS: u32 = 10_000_000;
/// The number of times that the connections are looked at.
const LOOKS: u32 = 4;
const VIP: Ipv4Addr = Ipv4Addr::new(20, 20, 20, 100);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const BACKENDS: usize = 10;

struct World {
    mux: Mux<'static, Box<Snapshot<'static>>>,
    host: Host<'static, Box<Snapshot<'static>>>,
    now: Instant,
    buffers: Vec<Vec<u8>>,
    random: u64,
    /// Where each connection is.
    homes: Vec<PortId>,
}

fn snapshot(of: Ipv4Addr) -> Box<Snapshot<'static>> {
    let names: Vec<String> = (0..BACKENDS).map(|n| format!("vm{n}")).collect();
    let backends: Vec<Backend<'_>> = names
        .iter()
        .zip(1..)
        .map(|(name, number)| Backend {
            name,
            address: Ipv4Addr::new(10, 10, 1, number).into(),
            host: HOST.into(),
            port: Some(PortId(number.into())),
            ..Backend::default()
        })
        .collect();
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(of),
            mtu: 1600,
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: VIP.into(),
            icmp_echo: Echo::Answer,
        }],
        rules: &[Rule {
            name: "http",
            protocol: Protocol::Tcp,
            frontend_port: 80,
            backend_port: 8080,
            idle_timeout: Duration::from_secs(240),
            terms: Terms {
                tcp_reset: true,
                ..Terms::default()
            },
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "vms",
            vni: Vni::new(5001).expect("small"),
            table_size: 1009,
            backends: &backends,
            ..Pool::default()
        }],
        ..Spec::default()
    };
    Box::new(Snapshot::new(&spec, None).expect("a good spec"))
}

/// An Ethernet frame with TCP.
fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8, numbers: (u32, u32)) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1])
        .ipv4(from.0.octets(), to.0.octets(), 64)
        .tcp(from.1, to.1, numbers.0, 60_000)
        .write(&mut bytes, b"")
        .expect("memory");
    bytes[42..46].copy_from_slice(&numbers.1.to_be_bytes());
    bytes[47] = flags;
    bytes
}

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

fn client(number: u32) -> (Ipv4Addr, u16) {
    let address = Ipv4Addr::from_bits(0x0b00_0001 + number / 100);
    (address, 10_000 + (number % 100) as u16)
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            mux: Mux::with_capacity(snapshot(MUX), 20_000, Key::new([1, 2])).expect("its role"),
            host: Host::with_capacity(snapshot(HOST), 20_000, Key::new([3, 4])).expect("its role"),
            now: Instant::from_secs(1),
            buffers: vec![vec![0; HEADROOM + 256]; BURST],
            random: 0x9e37_79b9_7f4a_7c15,
            homes: Vec::new(),
        };
        world.homes = (0..CONNECTIONS).map(|number| world.open(number)).collect();
        world
    }

    fn open(&mut self, number: u32) -> PortId {
        let client = client(number);
        let home = self.arrives(&tcp(client, (VIP, 80), SYN, (100, 0)));
        let home = home.expect("a new connection");
        let vm = (Ipv4Addr::new(10, 10, 1, home.0 as u8), 8080);
        let mut answer = tcp(vm, client, SYN | ACK, (500, 101));
        let mac = slb_core::spec::derived_mac(vm.0.into());
        answer[6..12].copy_from_slice(&mac.0);
        let (verdict, _) = self.at_host(home, &answer);
        assert_eq!(verdict, Verdict::Forward(PortId(0)));
        let ack = tcp(client, (VIP, 80), ACK, (101, 501));
        assert_eq!(self.arrives(&ack), Some(home));
        home
    }

    /// Sends a frame through both; where it ends.
    fn arrives(&mut self, bytes: &[u8]) -> Option<PortId> {
        let buffer = &mut self.buffers[0];
        buffer[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
        let mut frames = [Frame::new(buffer, HEADROOM, bytes.len()).expect("room")];
        self.mux.process(self.now, &mut frames);
        if !matches!(frames[0].verdict(), Verdict::Forward(_)) {
            return None;
        }
        self.host.process(self.now, &mut frames);
        match frames[0].verdict() {
            Verdict::Forward(port) if port != PortId(0) => Some(port),
            _ => None,
        }
    }

    fn at_host(&mut self, port: PortId, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let buffer = &mut self.buffers[0];
        buffer[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
        let mut frames = [Frame::new(buffer, HEADROOM, bytes.len()).expect("room")];
        frames[0].set_port(port);
        self.host.process(self.now, &mut frames);
        (frames[0].verdict(), frames[0].bytes().to_vec())
    }

    /// Xorshift: fast, and the same each time.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Sends packets that `make` changes a template to, in bursts, and looks at the connections in
    /// between. They come at a million a second.
    fn flood(&mut self, template: &[u8], make: impl Fn(&mut [u8], u64)) {
        let bursts = PACKETS / BURST as u32;
        for burst in 0..=bursts {
            if burst % (bursts / LOOKS) == 0 {
                self.all_are_at_home();
            }
            self.now = self.now + Duration::from_micros(BURST as u64);
            let randoms: Vec<u64> = (0..BURST).map(|_| self.random()).collect();
            let buffers = self.buffers.iter_mut().zip(&randoms);
            let frames = buffers.map(|(buffer, &random)| {
                let place = &mut buffer[HEADROOM..HEADROOM + template.len()];
                place.copy_from_slice(template);
                make(place, random);
                right_header(place);
                Frame::new(buffer, HEADROOM, template.len()).expect("room")
            });
            let mut frames: Vec<Frame<'_>> = frames.collect();
            self.mux.process(self.now, &mut frames);
            frames.retain(|frame| matches!(frame.verdict(), Verdict::Forward(_)));
            self.host.process(self.now, &mut frames);
        }
        self.all_are_at_home();
        for stats in [self.mux.stats(), self.host.stats()] {
            assert_eq!(stats.received.packets, stats.accounted().packets);
        }
    }

    /// A packet of each connection arrives where the others did.
    fn all_are_at_home(&mut self) {
        for number in 0..CONNECTIONS {
            let packet = tcp(client(number), (VIP, 80), ACK, (101, 501));
            let home = self.arrives(&packet);
            assert_eq!(
                home,
                Some(self.homes[number as usize]),
                "connection {number}"
            );
        }
    }
}

/// Gives an IPv4 header the checksum that it should have.
fn right_header(packet: &mut [u8]) {
    packet[24..26].fill(0);
    let sum = checksum(&packet[14..34]);
    packet[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Some address that a host may have, not one of the clients'.
fn source(packet: &mut [u8], random: u64) {
    let [_, a, b, c, ports @ ..] = random.to_be_bytes();
    packet[26..30].copy_from_slice(&[20 + (random as u8) % 100, a, b, c]);
    packet[34..36].copy_from_slice(&ports[..2]);
}

#[test]
fn a_flood_of_syns() {
    let mut world = World::new();
    let template = tcp(client(0), (VIP, 80), SYN, (1, 0));
    world.flood(&template, source);
    // The flood got through as far as there was room, and the tables are as full as they get.
    let flows = world.mux.stats().flows;
    assert!(
        flows.refused + flows.evicted > u64::from(PACKETS / 2),
        "{flows:?}"
    );
    let connections = world.host.stats().connections;
    assert!(
        connections.evicted > u64::from(PACKETS / 4),
        "{connections:?}"
    );
    assert_eq!(connections.refused, 0, "{connections:?}");
}

#[test]
fn a_flood_of_fragments() {
    let mut world = World::new();
    let template = tcp(client(0), (VIP, 80), ACK, (1, 1));
    world.flood(&template, |packet, random| {
        source(packet, random);
        packet[18..20].copy_from_slice(&(random as u16).to_be_bytes());
        // First ones and later ones.
        let offset = if random & 1 << 20 == 0 {
            [0x20, 0]
        } else {
            [0x20, 9]
        };
        packet[20..22].copy_from_slice(&offset);
    });
    let missing = world.mux.stats().dropped[DropReason::FragmentWithoutFirst];
    assert!(missing.packets > u64::from(PACKETS / 4), "{missing:?}");
}

#[test]
fn a_flood_of_pings_is_answered_in_moderation() {
    let mut world = World::new();
    let mut template = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1])
        .ipv4([11, 0, 0, 1], VIP.octets(), 64)
        .icmpv4_echo_request(7, 1)
        .write(&mut template, b"ping")
        .expect("memory");
    world.flood(&template, |packet, random| {
        packet[27..30].copy_from_slice(&random.to_be_bytes()[..3]);
    });
    // Ten seconds at a thousand a second, and a hundred at once.
    let answered = world.mux.stats().replied.packets;
    assert!((9_000..=10_200).contains(&answered), "{answered}");
}

#[test]
fn a_flood_of_forged_errors_and_resets() {
    let mut world = World::new();
    // Errors about connections that are there, with sequence numbers that were never sent.
    let quoted = tcp((VIP, 80), client(0), ACK, (0, 0)).split_off(14);
    let mut template = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1])
        .ipv4([30, 0, 0, 1], VIP.octets(), 64)
        .icmpv4_raw(3, 1, [0; 4])
        .write(&mut template, &quoted)
        .expect("memory");
    let change = |packet: &mut [u8], random: u64| {
        let (address, port) = client((random >> 32) as u32 % CONNECTIONS);
        packet[58..62].copy_from_slice(&address.octets());
        packet[64..66].copy_from_slice(&port.to_be_bytes());
        packet[66..70].copy_from_slice(&(random as u32 & 0x3fff_ffff | 0x4000_0000).to_be_bytes());
        packet[36..38].fill(0);
        let sum = checksum(&packet[34..]);
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
    };
    world.flood(&template, change);
    let unmatched = world.host.stats().dropped[DropReason::IcmpUnmatched];
    assert_eq!(unmatched.packets, world.mux.stats().icmp_errors);
    assert!(unmatched.packets >= u64::from(PACKETS));
    // RSTs beyond what the receiver's window has.
    let template = tcp(client(0), (VIP, 80), RST, (0, 0));
    let change = |packet: &mut [u8], random: u64| {
        let (address, port) = client((random >> 32) as u32 % CONNECTIONS);
        packet[26..30].copy_from_slice(&address.octets());
        packet[34..36].copy_from_slice(&port.to_be_bytes());
        packet[38..42].copy_from_slice(&(random as u32 & 0x3fff_ffff | 0x4000_0000).to_be_bytes());
    };
    world.flood(&template, change);
}
