//! A mux, two hosts with vms that have public addresses, and the packets of their clients.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use slb_core::mem::Boxes;
use slb_core::nat::DirectFlows;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{PublicAddress, Spec};
use slb_core::wire::checksum::Sum;
use slb_core::wire::vxlan::Vni;
use slb_core::{
    DropReason, FragmentRoom, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Verdict,
};

use crate::common::meter::metered;
use crate::common::through;
use crate::networks::net::{FABRIC, Plan, TestHost, ip};
use crate::private::net::outer;

const KEY: Key = Key::new([1, 2]);
/// The number of the mux among the plan's nodes.
const MUX: usize = 2;
/// The vm with a public address that also serves the VIP, at the second host.
pub const SERVER: usize = 1;
/// A vm with a public address at the first host.
pub const OTHER: usize = 0;
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A public address of a vm, by its index, and a client's, by family.
pub fn public(vm: usize, is_ipv6: bool) -> IpAddr {
    match is_ipv6 {
        false => ip(&format!("40.0.0.{}", vm + 1)),
        true => ip(&format!("2001:db8:40::{}", vm + 1)),
    }
}

pub fn client(is_ipv6: bool) -> IpAddr {
    ip(if is_ipv6 {
        "2001:db8:c::9"
    } else {
        "198.51.100.9"
    })
}

pub struct World {
    pub plan: Plan,
    pub mux: Mux<'static, Box<Snapshot<'static>>>,
    pub hosts: Vec<TestHost>,
    pub now: Instant,
}

/// The end of a packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The vm gets this IP packet.
    Vm(usize, Vec<u8>),
    /// The outside gets it.
    Outside(Vec<u8>),
    /// The sender gets this answer.
    Answer(Vec<u8>),
    Dropped(DropReason),
    Passed,
}

impl End {
    /// The packet that arrived anywhere.
    pub fn packet(&self) -> &[u8] {
        match self {
            Self::Vm(_, packet) | Self::Outside(packet) | Self::Answer(packet) => packet,
            other => panic!("it did not arrive: {other:?}"),
        }
    }
}

/// Two public addresses, one a family, for the vms [`SERVER`] and [`OTHER`].
pub fn publics(plan: &Plan) -> Vec<PublicAddress> {
    let vms = [SERVER, OTHER].into_iter();
    let all = vms.flat_map(|vm| [false, true].map(|is_ipv6| (vm, is_ipv6)));
    let all = all.map(|(vm, is_ipv6)| PublicAddress {
        address: public(vm, is_ipv6),
        vni: Vni::new(plan.tenants[0].vni).expect("a VNI"),
        vm: own(plan, vm, is_ipv6),
    });
    all.collect()
}

/// A vm's own address.
pub fn own(plan: &Plan, vm: usize, is_ipv6: bool) -> IpAddr {
    let mut all = plan.vms[vm].addresses.iter();
    *all.find(|address| address.is_ipv6() == is_ipv6)
        .expect("one")
}

impl World {
    pub fn new() -> Self {
        Self::with(Plan::two_tenants(), |spec, f| f(spec))
    }

    /// A world whose nodes' specs have public addresses, and are then changed.
    pub fn with(plan: Plan, change: impl Fn(&Spec<'_>, &mut dyn FnMut(&Spec<'_>))) -> Self {
        let snapshot = |own: usize| {
            let mut built = None;
            with_publics(&plan, own, |spec| {
                change(spec, &mut |spec| {
                    built = Some(Box::new(Snapshot::new(spec, None).expect("a good spec")));
                });
            });
            built.expect("a snapshot")
        };
        let host = |own: usize| {
            let room = FragmentRoom::build(64, KEY, &mut Boxes).expect("memory");
            Host::with_capacity(snapshot(own), 1024, KEY)
                .expect("its role")
                .with_direct_flows(DirectFlows::with_capacity(256, KEY))
                .with_fragment_room(room)
        };
        Self {
            mux: Mux::with_capacity(snapshot(MUX), 1024, KEY).expect("its role"),
            hosts: vec![host(0), host(1)],
            now: Instant::from_secs(1),
            plan,
        }
    }

    /// Sends an IP packet from outside to the mux, and on to a vm.
    pub fn enter(&mut self, packet: &[u8]) -> End {
        let (verdict, got) = through(
            FABRIC,
            &frame(ROUTER_MAC, [2, 0, 0, 0, 0, 103], packet),
            |f| {
                self.mux.process(self.now, f);
            },
        );
        match verdict {
            Verdict::Forward(FABRIC) => self.arrive(&got),
            Verdict::Reply => End::Answer(ip_of(&got)),
            Verdict::Drop(reason) => End::Dropped(reason),
            Verdict::Pass => End::Passed,
            other => panic!("{other:?}"),
        }
    }

    /// Gives a VXLAN frame of the fabric to its host.
    pub fn arrive(&mut self, frame: &[u8]) -> End {
        let (to, _) = outer(frame).expect("VXLAN");
        let host = self.host_at(to).expect("a host");
        self.at_host(host, FABRIC, frame)
    }

    fn host_at(&self, address: IpAddr) -> Option<usize> {
        (0..2).find(|&host| self.plan.host_address(host) == address)
    }

    /// Sends a vm's IP packet.
    pub fn leave(&mut self, vm: usize, packet: &[u8]) -> End {
        let frame = frame(self.plan.vms[vm].mac, [2, 0, 0, 0, 0, 0xee], packet);
        self.at_host(self.plan.vms[vm].host, self.plan.port_of(vm), &frame)
    }

    fn at_host(&mut self, host: usize, port: PortId, frame: &[u8]) -> End {
        let (verdict, got) = metered(&mut self.hosts[host], self.now, port, frame);
        match verdict {
            // A later fragment may look like VXLAN.
            Verdict::Forward(FABRIC) => match outer(&got) {
                Some((to, _)) if self.host_at(to).is_some() => self.arrive(&got),
                _ => End::Outside(ip_of(&got)),
            },
            Verdict::Forward(PortId(port)) => End::Vm(usize::from(port) - 1, ip_of(&got)),
            Verdict::Reply => End::Answer(ip_of(&got)),
            Verdict::Drop(reason) => End::Dropped(reason),
            Verdict::Pass => End::Passed,
            Verdict::Flood => panic!("no host floods"),
        }
    }

    /// The packets that a host's fragments become that waited for their first one.
    pub fn released(&mut self, host: usize) -> Vec<Vec<u8>> {
        let mut memory = vec![vec![0; HEADROOM + 2048]; 8];
        let frames = memory.iter_mut();
        let mut frames: Vec<_> = frames
            .map(|m| Frame::new(m, HEADROOM, 0).expect("it fits"))
            .collect();
        let mut burst = slb_core::Burst::new();
        for frame in frames.drain(..) {
            let _ = burst.push(frame);
        }
        self.hosts[host].advance(self.now, &mut burst);
        let sent = burst.iter().filter(|frame| !frame.bytes().is_empty());
        sent.map(|frame| ip_of(frame.bytes())).collect()
    }
}

/// The spec of a node of the plan, with public addresses, and the mux as the only one.
pub fn with_publics<T>(plan: &Plan, own: usize, f: impl FnOnce(&Spec<'_>) -> T) -> T {
    let (publics, muxes) = (publics(plan), [plan.host_address(MUX)]);
    plan.with_spec(own, |spec| {
        f(&Spec {
            public_addresses: &publics,
            muxes: &muxes,
            ..spec.clone()
        })
    })
}

fn frame(from: [u8; 6], to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind = match packet.first().map(|first| first >> 4) {
        Some(4) => [8, 0],
        _ => [0x86, 0xdd],
    };
    [&to[..], &from, &kind, packet].concat()
}

/// The IP packet of a frame.
fn ip_of(frame: &[u8]) -> Vec<u8> {
    let packet = &frame[14..];
    let len = match packet[0] >> 4 {
        4 => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        _ => 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
    };
    packet[..len].to_vec()
}

/// A kind of packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bolero::TypeGenerator)]
pub enum Kind {
    Tcp {
        flags: u8,
    },
    Udp {
        has_checksum: bool,
    },
    Echo {
        is_request: bool,
    },
    /// A protocol without ports, whose checksum is none of the balancer's.
    Other {
        protocol: u8,
    },
    UdpLite,
}

/// An IP packet with checksums as etherparse computes them.
pub fn packet(
    kind: Kind,
    ends: (IpAddr, IpAddr),
    ports: (u16, u16),
    payload: &[u8],
    hops: u8,
) -> Vec<u8> {
    let builder = match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), hops),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), hops),
        _ => panic!("two families"),
    };
    let is_ipv6 = ends.0.is_ipv6();
    let mut out = Vec::new();
    let header = if is_ipv6 { 40 } else { 20 };
    match kind {
        Kind::Tcp { flags } => {
            let mut tcp = etherparse::TcpHeader::new(ports.0, ports.1, 7, 65_535);
            (tcp.fin, tcp.syn) = (flags & 1 != 0, flags & 2 != 0);
            (tcp.rst, tcp.psh) = (flags & 4 != 0, flags & 8 != 0);
            (tcp.ack, tcp.urg) = (flags & 16 != 0, flags & 32 != 0);
            builder.tcp_header(tcp).write(&mut out, payload).unwrap();
        }
        Kind::Udp { has_checksum } => {
            builder
                .udp(ports.0, ports.1)
                .write(&mut out, payload)
                .unwrap();
            if !has_checksum && !is_ipv6 {
                out[header + 6..header + 8].fill(0);
            }
        }
        Kind::Echo { is_request } => {
            let id = ports.0;
            match (is_ipv6, is_request) {
                (false, true) => builder.icmpv4_echo_request(id, 1).write(&mut out, payload),
                (false, false) => builder.icmpv4_echo_reply(id, 1).write(&mut out, payload),
                (true, true) => builder.icmpv6_echo_request(id, 1).write(&mut out, payload),
                (true, false) => builder.icmpv6_echo_reply(id, 1).write(&mut out, payload),
            }
            .unwrap();
        }
        Kind::Other { protocol } => {
            // Numbers that no test list of known protocols has (RFC 3692), and SCTP, GRE and ESP.
            let numbers = [253, 254, 132, 47, 50];
            let number = numbers[usize::from(protocol) % numbers.len()];
            builder
                .write(&mut out, etherparse::IpNumber(number), payload)
                .unwrap();
        }
        Kind::UdpLite => {
            let [a, b, c, d] = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat()[..] else {
                unreachable!()
            };
            let mut message = [&[a, b, c, d, 0, 0, 0, 0][..], payload].concat();
            let len = message.len() as u32;
            let sum = match ends {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    Sum::ZERO.add_pseudo_ipv4(from, to, 136, len as u16)
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => Sum::ZERO.add_pseudo_ipv6(from, to, 136, len),
                _ => unreachable!(),
            };
            let sum = sum.add_bytes(&message).checksum();
            message[6..8].copy_from_slice(&sum.to_be_bytes());
            builder
                .write(&mut out, etherparse::IpNumber(136), &message)
                .unwrap();
        }
    }
    out
}

/// An ICMP error about a packet, of which `len` bytes are quoted.
pub fn error(ends: (IpAddr, IpAddr), about: &[u8], len: usize, hops: u8) -> Vec<u8> {
    let quote = &about[..len.min(about.len())];
    let mut out = Vec::new();
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let kind = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: 1400,
            };
            PacketBuilder::ipv4(from.octets(), to.octets(), hops)
                .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(kind))
                .write(&mut out, quote)
                .unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            PacketBuilder::ipv6(from.octets(), to.octets(), hops)
                .icmpv6(etherparse::Icmpv6Type::PacketTooBig { mtu: 1400 })
                .write(&mut out, quote)
                .unwrap();
        }
        _ => panic!("two families"),
    }
    out
}

/// A packet in pieces of `most` bytes behind the header, a multiple of eight.
pub fn fragments(packet: &[u8], most: usize, identification: u16) -> Vec<Vec<u8>> {
    let is_ipv4 = packet[0] >> 4 == 4;
    let (header, data) = packet.split_at(if is_ipv4 { 20 } else { 40 });
    let pieces = data.chunks(most).enumerate();
    let fragment = |(number, piece): (usize, &[u8])| {
        let offset = number * most;
        let more = u16::from(offset + piece.len() < data.len());
        let mut header = header.to_vec();
        if is_ipv4 {
            let total = (20 + piece.len()) as u16;
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header[4..6].copy_from_slice(&identification.to_be_bytes());
            let place = more << 13 | (offset / 8) as u16;
            header[6..8].copy_from_slice(&place.to_be_bytes());
            header[10..12].fill(0);
            let sum = Sum::ZERO.add_bytes(&header).checksum();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let payload = (8 + piece.len()) as u16;
            header[4..6].copy_from_slice(&payload.to_be_bytes());
            let place = (offset as u16 | more).to_be_bytes();
            let id = u32::from(identification).to_be_bytes();
            let next = std::mem::replace(&mut header[6], 44);
            header.extend([&[next, 0][..], &place, &id].concat());
        }
        [&header, piece].concat()
    };
    pieces.map(fragment).collect()
}
