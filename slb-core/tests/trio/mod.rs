//! A mux, a host agent and a proxy of one small service in both families, and packets for them by
//! the byte.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{PacketBuilder, SlicedPacket};
use slb_core::observe::Step;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Answers, Backend, Echo, Frontend, FrontendPort, Outbound, Pool, PortMode, Protocol, ProxyPorts,
    Rule, Spec, Terms, Underlay,
};
use slb_core::wire::checksum::Sum;
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{
    Dataplane, Frame, HEADROOM, Host, Instant, Key, Mux, MuxOptions, PortId, Proxy, Verdict,
};

pub const FABRIC: PortId = PortId(0);
pub const VM: PortId = PortId(1);
pub const FRONTEND: PortId = PortId(2);
pub const BACKEND: PortId = PortId(7);
pub const NOW: Instant = Instant::from_secs(1000);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const VNI: u8 = 77;
/// The vm has an address of each family.
const VM_MAC: MacAddress = MacAddress([2, 0, 0, 0, 7, 1]);

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const DESTINATION_OPTIONS: u8 = 60;

/// The addresses of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    pub is_ipv6: bool,
}

pub const FAMILIES: [Family; 2] = [Family { is_ipv6: false }, Family { is_ipv6: true }];

impl Family {
    fn pick(self, ipv4: [u8; 4], ipv6: &str) -> IpAddr {
        if self.is_ipv6 {
            IpAddr::V6(ipv6.parse().unwrap())
        } else {
            IpAddr::V4(ipv4.into())
        }
    }

    pub fn vip(self) -> IpAddr {
        self.pick([20, 20, 20, 100], "2001:db8:20::100")
    }

    /// Every protocol of it is balanced.
    pub fn whole_vip(self) -> IpAddr {
        self.pick([20, 20, 20, 101], "2001:db8:20::101")
    }

    /// That vms call out under.
    pub fn snat(self) -> IpAddr {
        self.pick([20, 20, 20, 200], "2001:db8:20::200")
    }

    pub fn client(self) -> IpAddr {
        self.pick([198, 51, 100, 10], "2001:db8:c::10")
    }

    pub fn router(self) -> IpAddr {
        self.pick([203, 0, 113, 1], "2001:db8:ffff::1")
    }

    pub fn dip(self) -> IpAddr {
        self.pick([10, 10, 1, 1], "fd00:10::1")
    }

    /// The address that servers see in the place of clients' where a rule says so.
    pub fn balancer(self) -> IpAddr {
        self.pick([10, 99, 0, 1], "fd00:99::1")
    }

    /// A host agent's own.
    pub fn underlay(self) -> IpAddr {
        if self.is_ipv6 {
            HOST6.into()
        } else {
            HOST.into()
        }
    }

    pub fn icmp(self) -> u8 {
        if self.is_ipv6 { 58 } else { 1 }
    }

    pub fn echo_request(self) -> u8 {
        if self.is_ipv6 { 128 } else { 8 }
    }

    pub fn echo_reply(self) -> u8 {
        if self.is_ipv6 { 129 } else { 0 }
    }
}

pub type Shared = Box<Snapshot<'static>>;
const KEY: Key = Key::new([3, 4]);

/// The service as a mux or host (`proxy = false`) or as a proxy sees it. `backends` serve; the first
/// one is the vm of the host agent.
pub fn snapshot(backends: u16, is_proxy: bool, host: IpAddr, echo: Echo) -> Shared {
    snapshot_with(backends, is_proxy, host, echo, ([4, 5], Way::Plain))
}

/// The names that a rule gives a server and its clients, and the way of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The server has its own name, and the client has the client's.
    Plain,
    /// The server has the VIP.
    FloatingIp,
    /// The client has the balancer's address.
    SourceNat,
    /// Answers go in VXLAN to the mux.
    ThroughMux,
    /// Ends are told of what is refused by RSTs.
    Resets,
}

impl Way {
    /// The addresses of a client's packets as the server sees them.
    pub fn seen(self, family: Family) -> Ends {
        let client = match self {
            Self::SourceNat => family.balancer(),
            _ => family.client(),
        };
        let server = match self {
            Self::FloatingIp => family.vip(),
            _ => family.dip(),
        };
        (client, server)
    }

    fn terms(self, family: Family) -> Terms {
        Terms {
            floating_ip: self == Self::FloatingIp,
            tcp_reset: self == Self::Resets,
            source_nat: (self == Self::SourceNat).then(|| family.balancer()),
            answers: match self {
                Self::ThroughMux => Answers::ThroughMux,
                _ => Answers::Direct,
            },
            ..Terms::default()
        }
    }
}

/// A snapshot in which vms call out under the frontends `out`, and rules have the terms of `way`.
fn snapshot_with(
    backends: u16,
    is_proxy: bool,
    host: IpAddr,
    echo: Echo,
    (out, way): ([usize; 2], Way),
) -> Shared {
    let names: Vec<String> = (1..=backends).map(|n| format!("vm{n}")).collect();
    let backends: [Vec<Backend<'_>>; 2] = FAMILIES.map(|family| {
        let backend = |(n, name)| {
            let n: u16 = n;
            Backend {
                name,
                address: match family.dip() {
                    IpAddr::V4(dip) => Ipv4Addr::from(dip.to_bits() + u32::from(n)).into(),
                    IpAddr::V6(dip) => Ipv6Addr::from(dip.to_bits() + u128::from(n)).into(),
                },
                host: if n == 0 {
                    host
                } else {
                    Ipv4Addr::new(172, 17, 0, n as u8).into()
                },
                mac: (n == 0).then_some(VM_MAC),
                port: (n == 0).then_some(VM).filter(|_| host == IpAddr::V4(HOST)),
                ..Backend::default()
            }
        };
        (0..)
            .zip(&names)
            .map(|(n, name)| backend((n, name)))
            .collect()
    });
    let frontend = |name, address| Frontend {
        name,
        address,
        icmp_echo: echo,
    };
    let [ipv4, ipv6] = FAMILIES;
    let frontends = [
        frontend("web", ipv4.vip()),
        frontend("web6", ipv6.vip()),
        frontend("whole", ipv4.whole_vip()),
        frontend("whole6", ipv6.whole_vip()),
        frontend("out", ipv4.snat()),
        frontend("out6", ipv6.snat()),
    ];
    let pool = |name, backends| Pool {
        name,
        vni: Vni::new(VNI.into()).unwrap(),
        table_size: 251,
        backends,
        ..Pool::default()
    };
    let rule = |name, frontend, protocol: Protocol, port| Rule {
        name,
        frontend,
        pool: frontend % 2,
        protocol,
        frontend_port: port,
        backend_port: match port {
            80 if way != Way::FloatingIp => 8080,
            port => port,
        },
        terms: way.terms(FAMILIES[frontend % 2]),
        ..Rule::default()
    };
    let mut rules = vec![
        rule("http", 0, Protocol::Tcp, 80),
        rule("http6", 1, Protocol::Tcp, 80),
        rule("dns", 0, Protocol::Udp, 53),
        rule("dns6", 1, Protocol::Udp, 53),
        rule("whole", 2, Protocol::All, 0),
        rule("whole6", 3, Protocol::All, 0),
    ];
    if echo == Echo::Forward {
        rules.push(rule("ping", 0, Protocol::Icmp, 0));
        rules.push(rule("ping6", 1, Protocol::Icmp, 0));
    }
    let outbound = |name, frontends, pool| Outbound {
        name,
        frontends,
        pool,
        protocol: Protocol::All,
        allocated_outbound_ports: Some(1024),
        idle_timeout: std::time::Duration::from_secs(240),
        tcp_reset: false,
    };
    let ports = [FrontendPort {
        port: FRONTEND,
        address: None,
    }];
    let outbounds = [
        outbound("out", &out[..1], 0),
        outbound("out6", &out[1..], 1),
    ];
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(if host == IpAddr::V4(HOST) { HOST } else { MUX }),
            ipv6: Some(HOST6),
            mtu: 1600,
            port: FABRIC,
            ..Underlay::default()
        },
        frontends: &frontends,
        rules: &rules,
        pools: &[
            pool("servers", &backends[0]),
            pool("servers6", &backends[1]),
        ],
        outbound: if is_proxy { &[] } else { &outbounds },
        proxy: is_proxy.then_some(ProxyPorts {
            mode: PortMode::Single,
            frontends: &ports,
            backend: BACKEND,
            source_rewrites: &[],
        }),
        muxes: if way == Way::ThroughMux {
            &[IpAddr::V4(MUX)]
        } else {
            &[]
        },
        ..Spec::default()
    };
    Box::new(Snapshot::new(&spec, None).unwrap())
}

/// A mux with some backends, each on a host of its own.
pub fn mux(echo: Echo) -> Mux<'static, Shared> {
    let elsewhere = Ipv4Addr::new(172, 17, 0, 100).into();
    Mux::with_capacity(snapshot(20, false, elsewhere, echo), 1000, KEY).expect("its role")
}

/// A mux and a host agent whose vm calls out under the VIP that a rule balances pings for.
pub fn mux_and_host_of_one_vip() -> (Mux<'static, Shared>, Host<'static, Shared>) {
    let under_vip = ([0, 1], Way::Plain);
    let of_vip = |backends| snapshot_with(backends, false, HOST.into(), Echo::Forward, under_vip);
    let mux = Mux::with_capacity(of_vip(20), 1000, KEY).expect("its role");
    let host = Host::with_capacity(of_vip(20), 1000, KEY).expect("its role");
    (mux, host)
}

/// The same, that pins no flow.
pub fn stateless_mux(echo: Echo) -> Mux<'static, Shared> {
    let elsewhere = Ipv4Addr::new(172, 17, 0, 100).into();
    Mux::stateless(snapshot(20, false, elsewhere, echo), KEY).expect("its role")
}

pub fn mux_with(echo: Echo, options: MuxOptions) -> Mux<'static, Shared> {
    mux(echo).with_options(options)
}

/// A host agent with one vm.
pub fn host() -> Host<'static, Shared> {
    host_for(1000)
}

/// A host agent with one vm and room for this many connections.
pub fn host_for(connections: usize) -> Host<'static, Shared> {
    let snapshot = snapshot(1, false, HOST.into(), Echo::Forward);
    Host::with_capacity(snapshot, connections, KEY).expect("its role")
}

/// A host agent whose rules have these terms.
pub fn host_of_way(way: Way) -> Host<'static, Shared> {
    let snapshot = snapshot_with(1, false, HOST.into(), Echo::Forward, ([4, 5], way));
    Host::with_capacity(snapshot, 1000, KEY).expect("its role")
}

/// A proxy whose rules have these terms.
pub fn proxy_of_way(way: Way) -> Proxy<'static, Shared> {
    let snapshot = snapshot_with(1, true, HOST.into(), Echo::Forward, ([4, 5], way));
    Proxy::with_capacity(snapshot, 1000, KEY).expect("its role")
}

/// A proxy that answers pings of its VIPs, whose rules reset.
pub fn proxy_that_answers() -> Proxy<'static, Shared> {
    let snapshot = snapshot_with(1, true, HOST.into(), Echo::Answer, ([4, 5], Way::Resets));
    Proxy::with_capacity(snapshot, 1000, KEY).expect("its role")
}

/// A mux that answers pings of its VIPs, whose rules reset and have no backend.
pub fn mux_without_backends() -> Mux<'static, Shared> {
    let snapshot = snapshot_with(0, false, HOST.into(), Echo::Answer, ([4, 5], Way::Resets));
    Mux::with_capacity(snapshot, 1000, KEY).expect("its role")
}

/// A proxy with one backend.
pub fn proxy() -> Proxy<'static, Shared> {
    proxy_for(1000)
}

/// A proxy with room for this many connections.
pub fn proxy_for(connections: usize) -> Proxy<'static, Shared> {
    let snapshot = snapshot(1, true, HOST.into(), Echo::Forward);
    Proxy::with_capacity(snapshot, connections, KEY).expect("its role")
}

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// From clients: at a host agent, out of VXLAN.
    Outside,
    /// From a vm or a backend.
    Inside,
}

/// A role under test: packets in, packets out.
pub trait Role: Dataplane<'static> {
    /// The port of a side.
    fn port(from: From) -> PortId;

    /// Whether packets from a side come in VXLAN.
    fn is_tunnelled(_: From) -> bool {
        false
    }

    /// Gives it an IP packet at a time; returns the verdict, and the IP packet that leaves.
    fn give(&mut self, now: Instant, from: From, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let frame = framed(packet);
        let frame = if Self::is_tunnelled(from) {
            encapsulated(&frame)
        } else {
            frame
        };
        let mut buffer = vec![0xa5; HEADROOM];
        buffer.extend(&frame);
        let mut frame = Frame::new(&mut buffer, HEADROOM, frame.len()).unwrap();
        frame.set_port(Self::port(from));
        let mut last = None;
        self.process_observed(now, std::slice::from_mut(&mut frame), &mut |_, step| {
            if let Step::Done(verdict) = step {
                last = Some(verdict);
            }
        });
        assert_eq!(last, Some(frame.verdict()), "the observer saw the verdict");
        let stats = self.stats();
        assert_eq!(stats.received, stats.accounted(), "each frame counts once");
        (frame.verdict(), inner(frame.bytes()))
    }

    /// [`give`](Self::give), of a packet that is to be forwarded: what leaves.
    fn pass(&mut self, now: Instant, from: From, packet: &[u8]) -> Vec<u8> {
        let (verdict, packet) = self.give(now, from, packet);
        assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
        packet
    }
}

impl Role for Mux<'static, Shared> {
    fn port(_: From) -> PortId {
        FABRIC
    }
}

impl Role for Host<'static, Shared> {
    fn port(from: From) -> PortId {
        match from {
            From::Outside => FABRIC,
            From::Inside => VM,
        }
    }

    fn is_tunnelled(from: From) -> bool {
        from == From::Outside
    }
}

impl Role for Proxy<'static, Shared> {
    fn port(from: From) -> PortId {
        match from {
            From::Outside => FRONTEND,
            From::Inside => BACKEND,
        }
    }
}

/// A packet in Ethernet.
pub fn framed(packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 6 {
        [0x86, 0xdd]
    } else {
        [8, 0]
    };
    let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8];
    frame.extend(ether_type);
    frame.extend(packet);
    frame
}

/// A frame for the vm, in VXLAN as a mux would send it.
fn encapsulated(frame: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0, VNI, 0];
    payload.extend(VM_MAC.0);
    payload.extend(&frame[6..]);
    let mut outer = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(MUX.octets(), HOST.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut outer, &payload)
        .unwrap();
    outer
}

/// The IP packet in a frame, out of VXLAN if it is in it.
pub fn inner(frame: &[u8]) -> Vec<u8> {
    let is_vxlan = frame.get(12..14) == Some(&[8, 0]) && frame.get(36..38) == Some(&[0x12, 0xb5]);
    let at = if is_vxlan { 14 + 50 } else { 14 };
    frame.get(at..).unwrap_or_default().to_vec()
}

/// The address of the host that a frame's outer header names.
pub fn ends(packet: &[u8]) -> (IpAddr, IpAddr) {
    let address = |at: usize, len: usize| -> IpAddr {
        match len {
            4 => IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap()),
        }
    };
    match packet[0] >> 4 {
        6 => (address(8, 16), address(24, 16)),
        _ => (address(12, 4), address(16, 4)),
    }
}

/// An IP packet.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = (20 + payload.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = (payload.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, protocol, 64];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        _ => unreachable!("of one family"),
    };
    packet.extend(payload);
    with_header_checksum(packet)
}

/// The same packet with the right header checksum, of IPv4.
pub fn with_header_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let sum = Sum::ZERO.add_bytes(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn sum_with_pseudo(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let (sum, len) = (Sum::ZERO.add_bytes(payload), payload.len());
    match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == 1 => sum,
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum.add_pseudo_ipv4(source, destination, protocol, len as u16)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            sum.add_pseudo_ipv6(source, destination, protocol, len as u32)
        }
        _ => unreachable!("of one family"),
    }
    .checksum()
}

/// The bytes of a transport header and its data, with the checksum at `at`.
fn summed(
    (source, destination): (IpAddr, IpAddr),
    protocol: u8,
    at: usize,
    mut payload: Vec<u8>,
) -> Vec<u8> {
    payload[at..at + 2].fill(0);
    let sum = sum_with_pseudo(source, destination, protocol, &payload);
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    payload
}

pub type Ends = (IpAddr, IpAddr);

/// A UDP header and its data.
pub fn udp(ends: Ends, (from, to): (u16, u16), data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend((8 + data.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(data);
    summed(ends, UDP, 6, bytes)
}

/// A TCP header of 20 bytes and its data: of a side that begins with the sequence number 1000, in
/// answer to such a one.
pub fn tcp(ends: Ends, (from, to): (u16, u16), flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    let is_syn = flags & 2 != 0;
    bytes.extend((1001 - u32::from(is_syn)).to_be_bytes());
    bytes.extend(1001u32.to_be_bytes());
    bytes.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    bytes.extend(data);
    summed(ends, TCP, 16, bytes)
}

/// An ICMP message of the ends' family.
pub fn icmp(ends: Ends, kind: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    bytes.extend(data);
    let protocol = if ends.0.is_ipv6() { 58 } else { 1 };
    summed(ends, protocol, 2, bytes)
}

/// An echo request or reply.
pub fn echo(ends: Ends, is_reply: bool, identifier: u16, data: &[u8]) -> Vec<u8> {
    let family = FAMILIES[usize::from(ends.0.is_ipv6())];
    let kind = if is_reply {
        family.echo_reply()
    } else {
        family.echo_request()
    };
    let [high, low] = identifier.to_be_bytes();
    icmp(ends, kind, 0, [high, low, 0, 1], data)
}

/// A packet of a transport.
pub fn packet(ends: Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ip(ends.0, ends.1, protocol, payload)
}

/// The fragments of a datagram, `most` bytes of its payload in each: the payload is that behind the
/// IPv4 header, or behind the IPv6 fragment header. The next header of the IPv6 fragment header is
/// `protocol`.
pub fn fragments(
    ends: Ends,
    protocol: u8,
    payload: &[u8],
    most: usize,
    identification: u32,
) -> Vec<Vec<u8>> {
    assert!(most.is_multiple_of(8));
    let count = payload.len().div_ceil(most);
    let one = |(i, part): (usize, &[u8])| {
        fragment(
            ends,
            protocol,
            part,
            (i * most, i + 1 < count),
            identification,
        )
    };
    payload.chunks(most).enumerate().map(one).collect()
}

/// One fragment: at this offset in bytes, and whether more follow.
pub fn fragment(
    ends: Ends,
    protocol: u8,
    part: &[u8],
    (offset, more): (usize, bool),
    identification: u32,
) -> Vec<u8> {
    if ends.0.is_ipv6() {
        let mut bytes = vec![protocol, 0];
        bytes.extend((offset as u16 | u16::from(more)).to_be_bytes());
        bytes.extend(identification.to_be_bytes());
        bytes.extend(part);
        return ip(ends.0, ends.1, 44, &bytes);
    }
    let mut packet = ip(ends.0, ends.1, protocol, part);
    packet[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
    let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    with_header_checksum(packet)
}

/// Puts fragments together: the payload of the datagram, whose ends and identification are the same
/// in all of them.
pub fn reassembled(fragments: &[Vec<u8>]) -> (Ends, Vec<u8>) {
    let mut parts: Vec<(usize, bool, &[u8])> = Vec::new();
    for fragment in fragments {
        assert_eq!(ends(fragment), ends(&fragments[0]), "of one datagram");
        let (word, start) = match fragment[0] >> 4 {
            6 => {
                let word = u16::from_be_bytes([fragment[42], fragment[43]]);
                ((usize::from(word & 0xfff8), word & 1 != 0), 48)
            }
            _ => {
                let sum = Sum::ZERO.add_bytes(&fragment[..20]).checksum();
                assert_eq!(sum, 0, "the header's checksum is right");
                let word = u16::from_be_bytes([fragment[6], fragment[7]]);
                ((usize::from(word & 0x1fff) * 8, word & 0x2000 != 0), 20)
            }
        };
        parts.push((word.0, word.1, &fragment[start..]));
    }
    parts.sort_unstable();
    let mut payload = Vec::new();
    for (i, (offset, more, part)) in parts.iter().enumerate() {
        assert_eq!(*offset, payload.len(), "no gap");
        assert_eq!(*more, i + 1 < parts.len());
        payload.extend(*part);
    }
    (ends(&fragments[0]), payload)
}

/// Asserts that the checksum of what an IP packet carries is right.
pub fn assert_summed(ends: Ends, protocol: u8, payload: &[u8]) {
    assert_eq!(sum_with_pseudo(ends.0, ends.1, protocol, payload), 0);
}

/// Asserts that etherparse reads an IP packet.
pub fn assert_readable(packet: &[u8]) {
    SlicedPacket::from_ip(packet).unwrap();
}

/// The host that a frame's outer IPv4 header names.
pub fn host_of(frame: &[u8]) -> [u8; 4] {
    frame[30..34].try_into().unwrap()
}

/// Gives a mux a frame; returns its outer destination and what is inside.
pub fn tunnelled(mux: &mut Mux<'static, Shared>, packet: &[u8]) -> ([u8; 4], Vec<u8>) {
    let framed = framed(packet);
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(&framed);
    let mut frame = Frame::new(&mut buffer, HEADROOM, framed.len()).unwrap();
    mux.process(NOW, std::slice::from_mut(&mut frame));
    assert!(
        matches!(frame.verdict(), Verdict::Forward(_)),
        "{:?}",
        frame.verdict()
    );
    (host_of(frame.bytes()), inner(frame.bytes()))
}
