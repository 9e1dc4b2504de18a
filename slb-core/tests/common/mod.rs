//! A small world to test a mux in: its configuration, packets for it, and what came out.

#![allow(dead_code, reason = "each test file uses its own part of it")]

pub mod meter;
mod random;
mod read;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub use self::random::Random;
pub use self::read::{Endpoint, addresses, ends, through};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::hash::{Distribution, Hasher, Xxh3};
use slb_core::observe::Step;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, Pool, Protocol, Rule, Spec, SpecError, UdpChecksum,
    Underlay,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{BURST, Frame, HEADROOM, Instant, Key, Mux, PortId, Verdict};

/// All faults of a spec, of which compiling finds one.
pub fn faults_of(spec: &Spec<'_>) -> Vec<SpecError> {
    let faults: Vec<_> = spec.faults().collect();
    let built = Snapshot::new(spec, None);
    assert_eq!(built.is_err(), !faults.is_empty(), "{faults:?}");
    if let Err(error) = built {
        assert!(faults.contains(&error), "{error:?} of {faults:?}");
    }
    faults
}

pub const VIP: [u8; 4] = [20, 20, 20, 100];
pub const CLIENT: [u8; 4] = [198, 51, 100, 10];
pub const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
pub const MUX6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x11);
pub const MUX_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

pub fn vip6() -> [u8; 16] {
    "2001:db8:20::100".parse::<Ipv6Addr>().unwrap().octets()
}

pub fn client6() -> [u8; 16] {
    "2001:db8:c::10".parse::<Ipv6Addr>().unwrap().octets()
}

/// A configuration that owns its parts, to be changed by tests.
#[derive(Clone)]
pub struct Setup {
    pub hasher: Hasher,
    pub underlay: Underlay,
    pub echo: Echo,
    pub distribution: Distribution,
    pub backends: Vec<TestBackend>,
    pub host6: bool,
    pub ha_ports: bool,
    pub idle_timeout: Duration,
}

#[derive(Clone)]
pub struct TestBackend {
    pub name: String,
    pub number: u16,
    pub weight: u32,
    pub state: BackendState,
}

impl Setup {
    pub fn new(backends: u16) -> Self {
        Self {
            hasher: Hasher::Xxh3(Xxh3::new(1)),
            underlay: Underlay {
                ipv4: Some(MUX),
                ipv6: Some(MUX6),
                mac: MacAddress(MUX_MAC),
                next_hop: MacAddress(ROUTER_MAC),
                mtu: 1600,
                hop_limit: 64,
                udp_checksum: UdpChecksum::Auto,
                port: PortId(3),
            },
            echo: Echo::Answer,
            distribution: Distribution::FiveTuple,
            backends: (1..=backends)
                .map(|number| TestBackend {
                    name: format!("vm{number}"),
                    number,
                    weight: 1,
                    state: BackendState::Up,
                })
                .collect(),
            host6: false,
            ha_ports: false,
            idle_timeout: Duration::from_secs(240),
        }
    }

    /// Runs `f` with the spec: VIPs of both families, ports 80 (TCP) and 53 (UDP).
    pub fn with_spec<T>(&self, f: impl FnOnce(&Spec<'_>) -> T) -> T {
        let backends = |ipv6: bool| -> Vec<Backend<'_>> {
            self.backends
                .iter()
                .map(|backend| Backend {
                    name: &backend.name,
                    address: dip(backend.number, ipv6),
                    host: host(backend.number, self.host6),
                    mac: None,
                    next_hop: None,
                    weight: backend.weight,
                    state: backend.state,
                    ..Backend::default()
                })
                .collect()
        };
        let (ipv4, ipv6) = (backends(false), backends(true));
        let pool = |name, vni, backends| Pool {
            name,
            vni: Vni::new(vni).unwrap(),
            backends,
            ..Pool::default()
        };
        let rule = |name, frontend, protocol, frontend_port| Rule {
            name,
            frontend,
            pool: frontend,
            protocol,
            frontend_port,
            backend_port: frontend_port,
            distribution: self.distribution,
            idle_timeout: self.idle_timeout,
            ..Rule::default()
        };
        let mut rules = vec![
            rule("http", 0, Protocol::Tcp, 80),
            rule("dns", 0, Protocol::Udp, 53),
            rule("http6", 1, Protocol::Tcp, 80),
            rule("dns6", 1, Protocol::Udp, 53),
        ];
        if self.ha_ports {
            rules.clear();
            rules.push(rule("all", 0, Protocol::All, 0));
            rules.push(rule("all6", 1, Protocol::All, 0));
        }
        let frontends = [
            Frontend {
                name: "web",
                address: VIP.into(),
                icmp_echo: self.echo,
            },
            Frontend {
                name: "web6",
                address: vip6().into(),
                icmp_echo: self.echo,
            },
        ];
        f(&Spec {
            hasher: self.hasher.clone(),
            hash_seed: 1,
            underlay: self.underlay,
            frontends: &frontends,
            rules: &rules,
            pools: &[pool("servers", 5001, &ipv4), pool("servers6", 5002, &ipv6)],
            ..Spec::default()
        })
    }

    pub fn snapshot(&self) -> Snapshot<'static> {
        self.after(None)
    }

    pub fn after(&self, previous: Option<&Snapshot<'_>>) -> Snapshot<'static> {
        self.with_spec(|spec| Snapshot::new(spec, previous).unwrap())
    }

    pub fn set_state(&mut self, number: u16, state: BackendState) {
        self.backends
            .iter_mut()
            .find(|b| b.number == number)
            .unwrap()
            .state = state;
    }
}

pub fn dip(number: u16, ipv6: bool) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    if ipv6 {
        Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, number).into()
    } else {
        Ipv4Addr::new(10, 10, high, low).into()
    }
}

pub fn host(number: u16, ipv6: bool) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    if ipv6 {
        Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 1, number).into()
    } else {
        Ipv4Addr::new(172, 17, high, low).into()
    }
}

/// The fate of a frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
}

/// Sends packets through a mux, and checks what holds for every burst.
pub fn send(mux: &mut TestMux, now: Instant, packets: &[Vec<u8>]) -> Vec<Outcome> {
    const GUARD: u8 = 0xa5;
    let before = mux.stats();
    let mut memory: Vec<Vec<u8>> = packets
        .iter()
        .map(|packet| {
            let mut buffer = vec![GUARD; HEADROOM + 8 + packet.len() + 32];
            buffer[HEADROOM + 8..][..packet.len()].copy_from_slice(packet);
            buffer
        })
        .collect();
    let mut frames: Vec<Frame<'_>> = memory
        .iter_mut()
        .zip(packets)
        .map(|(buffer, packet)| Frame::new(buffer, HEADROOM + 8, packet.len()).unwrap())
        .collect();
    let mut done = vec![None; packets.len()];
    mux.process_observed(now, &mut frames, &mut |frame: usize, step: Step| {
        if let Step::Done(verdict) = step {
            assert_eq!(done[frame], None, "one verdict for each frame");
            done[frame] = Some(verdict);
        }
    });
    let outcomes: Vec<Outcome> = frames
        .iter()
        .map(|frame| Outcome {
            verdict: frame.verdict(),
            bytes: frame.bytes().to_vec(),
        })
        .collect();
    drop(frames);
    for ((outcome, packet), (buffer, done)) in
        outcomes.iter().zip(packets).zip(memory.iter().zip(done))
    {
        assert_eq!(done, Some(outcome.verdict), "the observer saw the verdict");
        let end = HEADROOM + 8 + packet.len();
        assert!(
            buffer[end..].iter().all(|&b| b == GUARD),
            "nothing is written behind the frame"
        );
        if outcome.verdict == Verdict::Pass {
            assert_eq!(&outcome.bytes, packet, "what is passed is untouched");
        }
    }
    let after = mux.stats();
    assert_eq!(
        after.received,
        after.accounted(),
        "every frame is accounted for once"
    );
    let received = after.received.packets - before.received.packets;
    assert_eq!(received, packets.len() as u64);
    outcomes
}

pub type TestMux = Mux<'static, std::sync::Arc<Snapshot<'static>>>;

pub fn pinned(setup: &Setup) -> TestMux {
    Mux::with_capacity(setup.snapshot().into(), 10_000, Key::new([3, 4])).expect("its role")
}

pub fn stateless(setup: &Setup) -> TestMux {
    Mux::stateless(setup.snapshot().into(), Key::new([3, 4])).expect("its role")
}

pub fn send_one(mux: &mut TestMux, packet: Vec<u8>) -> Outcome {
    send(mux, Instant::from_secs(10), &[packet]).remove(0)
}

/// TCP from a client's port to the IPv4 VIP. `flags` as in "S", "A", "FA".
pub fn tcp(client: [u8; 4], port: u16, flags: &str) -> Vec<u8> {
    tcp_to(client, port, VIP, 80, flags, b"")
}

pub fn tcp_to(
    source: [u8; 4],
    source_port: u16,
    destination: [u8; 4],
    destination_port: u16,
    flags: &str,
    data: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv4(source, destination, 64)
        .tcp(source_port, destination_port, 1000, 4096);
    finish_tcp(builder, flags, data)
}

pub fn tcp6(port: u16, flags: &str) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv6(client6(), vip6(), 64)
        .tcp(port, 80, 1000, 4096);
    finish_tcp(builder, flags, b"six")
}

pub fn finish_tcp(
    mut builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>,
    flags: &str,
    data: &[u8],
) -> Vec<u8> {
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'A' => builder.ack(77),
            'F' => builder.fin(),
            'R' => builder.rst(),
            other => panic!("no flag {other}"),
        };
    }
    let mut packet = Vec::new();
    builder.write(&mut packet, data).unwrap();
    packet
}

/// Gives the IPv4 header of a frame, behind its tags, the checksum that it should have.
pub fn right_header(packet: &mut [u8]) {
    let mut at = 12;
    while matches!(
        packet[at..at + 2],
        [0x81, 0x00] | [0x88, 0xa8] | [0x91, 0x00]
    ) {
        at += 4;
    }
    if packet[at..at + 2] != [0x08, 0x00] {
        return;
    }
    let header = &mut packet[at + 2..];
    let len = usize::from(header[0] & 0x0f) * 4;
    header[10..12].fill(0);
    let sum = slb_core::wire::checksum::checksum(&header[..len]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The same packet with the right checksum in its IPv4 header.
pub fn righted(mut packet: Vec<u8>) -> Vec<u8> {
    right_header(&mut packet);
    packet
}

pub fn udp_to(source: [u8; 4], port: u16, destination: [u8; 4], to: u16, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv4(source, destination, 64)
        .udp(port, to)
        .write(&mut packet, data)
        .unwrap();
    packet
}

pub fn udp6(port: u16, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv6(client6(), vip6(), 64)
        .udp(port, 53)
        .write(&mut packet, data)
        .unwrap();
    packet
}

/// An encapsulated packet as etherparse reads it, its checksums checked.
#[derive(Debug)]
pub struct Tunnelled {
    pub source: IpAddr,
    pub host: IpAddr,
    pub traffic_class: u8,
    pub source_port: u16,
    pub udp_checksum: u16,
    pub vni: u32,
    pub inner: Vec<u8>,
}

pub fn tunnelled(outcome: &Outcome) -> Tunnelled {
    assert_eq!(outcome.verdict, Verdict::Forward(PortId(3)));
    let outer = SlicedPacket::from_ethernet(&outcome.bytes).unwrap();
    let ethernet = outcome.bytes.as_slice();
    assert_eq!(
        (&ethernet[..6], &ethernet[6..12]),
        (&ROUTER_MAC[..], &MUX_MAC[..])
    );
    let (source, host, traffic_class) = match outer.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            assert!(header.dont_fragment && !header.is_fragmenting_payload());
            assert_eq!(header.time_to_live, 64);
            let class = header.dscp.value() << 2 | header.ecn.value();
            (
                IpAddr::from(header.source),
                IpAddr::from(header.destination),
                class,
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.hop_limit, 64);
            (
                IpAddr::from(header.source),
                IpAddr::from(header.destination),
                header.traffic_class,
            )
        }
        NetSlice::Arp(_) => panic!("ARP is no tunnel"),
    };
    let Some(TransportSlice::Udp(udp)) = outer.transport else {
        panic!("no UDP")
    };
    assert_eq!(udp.destination_port(), 4789);
    assert!(udp.source_port() >= 49_152);
    if udp.checksum() != 0 {
        let header = udp.to_header();
        let expected = match (source, host) {
            (IpAddr::V4(source), IpAddr::V4(host)) => {
                header.calc_checksum_ipv4_raw(source.octets(), host.octets(), udp.payload())
            }
            (IpAddr::V6(source), IpAddr::V6(host)) => {
                header.calc_checksum_ipv6_raw(source.octets(), host.octets(), udp.payload())
            }
            _ => panic!("families differ"),
        };
        assert_eq!(udp.checksum(), expected.unwrap());
    }
    let (vxlan, inner) = udp.payload().split_at(8);
    assert_eq!(
        (vxlan[0], &vxlan[1..4], vxlan[7]),
        (0x08, &[0; 3][..], 0),
        "reserved bits"
    );
    Tunnelled {
        source,
        host,
        traffic_class,
        source_port: udp.source_port(),
        udp_checksum: udp.checksum(),
        vni: u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]),
        inner: inner.to_vec(),
    }
}

/// The number of the backend that a forwarded packet goes to.
pub fn backend_of(outcome: &Outcome) -> u16 {
    match tunnelled(outcome).host {
        IpAddr::V4(host) => u16::from_be_bytes([host.octets()[2], host.octets()[3]]),
        IpAddr::V6(host) => host.segments()[7],
    }
}

/// Many packets in bursts of varying size.
pub fn backends_of(mux: &mut TestMux, now: Instant, packets: &[Vec<u8>]) -> Vec<u16> {
    packets
        .chunks(BURST * 3 / 2)
        .flat_map(|packets| send(mux, now, packets))
        .map(|outcome| backend_of(&outcome))
        .collect()
}

/// `count` different flows, each as the packet with these flags.
pub fn flows(count: u32, flags: &str) -> Vec<Vec<u8>> {
    (0..count)
        .map(|i| {
            let [_, a, b, c] = (i >> 4).to_be_bytes();
            tcp([10, a, b, c], 1024 + (i & 15) as u16, flags)
        })
        .collect()
}
