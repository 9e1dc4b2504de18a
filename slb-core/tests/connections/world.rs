//! A translator in the role under test, an opener and a responder.

use crate::common::addresses;

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{IpNumber, PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::nat::ConnectionState::{self, *};
use slb_core::snapshot::Snapshot;
use slb_core::{Burst, Frame, HEADROOM, Host, Instant, PortId, Proxy, Verdict};

use super::packets::{Seg, seg, segment, too_big};
use super::setup::{
    Endpoint, HOST, IDLE, INSIDE, KEY, OUTSIDE, START, client, server, snapshot, vip, vm_mac,
};

/// The role that translates, and the side that opens the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Proxy,
    /// A proxy whose frames have a VLAN tag.
    TaggedProxy,
    Host,
    /// A host agent, whose vm calls out.
    Snat,
}

const ROLES: [Role; 4] = [Role::Proxy, Role::TaggedProxy, Role::Host, Role::Snat];

/// Every role with every family.
pub(super) fn worlds() -> impl Iterator<Item = World> {
    worlds_with(true)
}

pub(super) fn worlds_with(tcp_reset: bool) -> impl Iterator<Item = World> {
    let families = [false, true];
    let all = ROLES
        .into_iter()
        .flat_map(move |role| families.map(|ipv6| (role, ipv6)));
    all.map(move |(role, ipv6)| World::new(role, ipv6, tcp_reset))
}

pub(super) enum Dut {
    Proxy(Box<Proxy<'static, Box<Snapshot<'static>>>>),
    Host(Box<Host<'static, Box<Snapshot<'static>>>>),
}

/// A packet that was sent: the port it left by, and its addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) port: PortId,
    pub(super) from: Endpoint,
    pub(super) to: Endpoint,
}

/// One translator, an opener and a responder.
pub(super) struct World {
    pub(super) dut: Dut,
    pub(super) role: Role,
    pub(super) ipv6: bool,
    pub(super) now: Instant,
    /// The opener's own name, and whom it calls.
    pub(super) asks: (Endpoint, Endpoint),
    /// The responder's own name, and who calls it.
    pub(super) answers: (Endpoint, Endpoint),
}

const TAG: [u8; 4] = [0x81, 0, 0, 42];

impl World {
    pub(super) fn new(role: Role, ipv6: bool, tcp_reset: bool) -> Self {
        let dut = match role {
            Role::Proxy | Role::TaggedProxy => {
                let snapshot = Box::new(snapshot(true, tcp_reset));
                Dut::Proxy(Box::new(
                    Proxy::with_capacity(snapshot, 1 << 10, KEY).expect("its role"),
                ))
            }
            Role::Host | Role::Snat => {
                let snapshot = Box::new(snapshot(false, tcp_reset));
                Dut::Host(Box::new(
                    Host::with_capacity(snapshot, 1 << 10, KEY).expect("its role"),
                ))
            }
        };
        let asks = match role {
            Role::Snat => ((server(ipv6), 50_000), (client(ipv6), 443)),
            _ => ((client(ipv6), 50_000), (vip(ipv6, 0), 80)),
        };
        Self {
            dut,
            role,
            ipv6,
            now: START,
            asks,
            answers: asks,
        }
    }

    pub(super) fn name(&self) -> String {
        format!("{:?}, IPv{}", self.role, if self.ipv6 { 6 } else { 4 })
    }

    /// Returns true if the opener is outside.
    pub(super) fn is_inbound(&self) -> bool {
        self.role != Role::Snat
    }

    pub(super) fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    /// The frame around a packet that comes from one side.
    fn framed(&self, port: PortId, packet: &[u8]) -> Vec<u8> {
        let ether_type: [u8; 2] = if packet[0] >> 4 == 6 {
            [0x86, 0xdd]
        } else {
            [8, 0]
        };
        let (outer, vm) = ([2, 0, 0, 0, 0, 1], vm_mac().0);
        let tag: &[u8] = match self.role {
            Role::TaggedProxy => &TAG,
            _ => &[],
        };
        match (self.role, port) {
            (Role::Host | Role::Snat, OUTSIDE) => {
                let mut payload = vec![8, 0, 0, 0, 0, 0x13, 0x89, 0];
                payload.extend([&vm[..], &outer, &ether_type, packet].concat());
                let mut frame = Vec::new();
                PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], outer)
                    .ipv4([172, 16, 0, 11], HOST.octets(), 64)
                    .udp(50_000, 4789)
                    .write(&mut frame, &payload)
                    .unwrap();
                frame
            }
            (_, OUTSIDE) => [&vm[..], &outer, tag, &ether_type, packet].concat(),
            _ => [&outer[..], &vm, tag, &ether_type, packet].concat(),
        }
    }

    /// Gives the translator a packet that comes from one side.
    pub(super) fn give(&mut self, port: PortId, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let frame = self.framed(port, packet);
        let mut buffer = vec![0; HEADROOM + frame.len() + 64];
        buffer[HEADROOM..HEADROOM + frame.len()].copy_from_slice(&frame);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, frame.len()).unwrap()];
        frames[0].set_port(port);
        match &mut self.dut {
            Dut::Proxy(proxy) => proxy.process(self.now, &mut frames),
            Dut::Host(host) => host.process(self.now, &mut frames),
        }
        (frames[0].verdict(), frames[0].bytes().to_vec())
    }

    /// The same where it is to be sent on: who sees whom.
    pub(super) fn pass(&mut self, port: PortId, packet: &[u8]) -> Option<Seen> {
        let (verdict, frame) = self.give(port, packet);
        match verdict {
            Verdict::Forward(port) => Some(seen(port, &frame)),
            _ => None,
        }
    }

    pub(super) fn sides(&self) -> (PortId, PortId) {
        if self.is_inbound() {
            (OUTSIDE, INSIDE)
        } else {
            (INSIDE, OUTSIDE)
        }
    }

    /// A segment of the opener's; it has to reach the responder.
    pub(super) fn opener(&mut self, seg: Seg) {
        let packet = segment(self.asks.0, self.asks.1, seg);
        let (from, to) = self.sides();
        let seen = self.pass(from, &packet);
        let seen = seen.unwrap_or_else(|| panic!("{}: {seg:?} is lost", self.name()));
        assert_eq!(seen.port, to);
        if seg.flags == "S" {
            self.answers = (seen.to, seen.from);
        }
        assert_eq!((seen.to, seen.from), self.answers, "{}", self.name());
    }

    /// A segment of the responder's; it has to reach the opener.
    pub(super) fn responder(&mut self, seg: Seg) {
        let packet = segment(self.answers.0, self.answers.1, seg);
        let (to, from) = self.sides();
        let seen = self.pass(from, &packet);
        let seen = seen.unwrap_or_else(|| panic!("{}: {seg:?} is lost", self.name()));
        assert_eq!(seen.port, to);
        assert_eq!((seen.to, seen.from), self.asks, "{}", self.name());
    }

    /// Opens a connection from these numbers.
    pub(super) fn open(&mut self, own: u32, theirs: u32) {
        self.opener(seg("S", own, 0));
        self.responder(seg("SA", theirs, own.wrapping_add(1)));
        self.opener(seg("A", own.wrapping_add(1), theirs.wrapping_add(1)));
        assert_eq!(self.state(), Some(Established), "{}", self.name());
    }

    /// Lets the translator do what is due, for two rounds of its sweep; returns the RSTs that it
    /// sends: to whom, with which number.
    pub(super) fn sweep(&mut self) -> Vec<(Endpoint, u32)> {
        let mut told = Vec::new();
        for _ in 0..64 {
            let mut memory = vec![[0u8; 256]; 4];
            let mut spare = Burst::new();
            for buffer in &mut memory {
                spare.push(Frame::new(buffer, 128, 0).unwrap()).unwrap();
            }
            match &mut self.dut {
                Dut::Proxy(proxy) => proxy.advance(self.now, &mut spare),
                Dut::Host(host) => host.advance(self.now, &mut spare),
            }
            for frame in spare.iter().filter(|frame| !frame.is_empty()) {
                let (Verdict::Forward(port), bytes) = (frame.verdict(), frame.bytes().to_vec())
                else {
                    panic!("{:?}", frame.verdict())
                };
                let sliced = SlicedPacket::from_ethernet(&bytes).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
                    panic!("{bytes:02x?}")
                };
                assert!(tcp.rst());
                told.push((seen(port, &bytes).to, tcp.sequence_number()));
            }
            self.now = self.now + Duration::from_millis(40);
        }
        told
    }

    /// The state of the connection whose outside name is this world's.
    pub(super) fn state(&self) -> Option<ConnectionState> {
        let table = match &self.dut {
            Dut::Proxy(proxy) => proxy.connections(),
            Dut::Host(host) => host.connections(),
        };
        let all = table.ipv4_from(0).chain(table.ipv6_from(0));
        let mut states = all.map(|(_, connection)| connection.state);
        let state = states.next();
        assert_eq!(states.next(), None, "there is one connection");
        state
    }

    /// Returns true if a "packet too big" about a segment of the inner end with this number passes.
    pub(super) fn tells_of_mtu(&mut self, seq: u32) -> bool {
        // As the outside sees the inner end.
        let (inner, outer) = match self.is_inbound() {
            true => (self.asks.1, self.asks.0),
            false => (self.answers.1, self.answers.0),
        };
        let (verdict, _) = self.give(OUTSIDE, &too_big(inner, outer, seq));
        verdict == Verdict::Forward(INSIDE)
    }

    /// Waits until the connection has been idle for long enough, and checks the RSTs' numbers.
    pub(super) fn ends_idle(&mut self, opener_expects: u32, responder_expects: u32) {
        let name = self.name();
        self.wait(IDLE - 10);
        assert_eq!(self.sweep(), [], "{name}");
        assert_eq!(self.state(), Some(Established), "{name}");
        self.wait(20);
        let mut told = self.sweep();
        told.sort_by_key(|&(to, _)| to != self.asks.0);
        let expected = [
            (self.asks.0, opener_expects),
            (self.answers.0, responder_expects),
        ];
        assert_eq!(told, expected, "{name}");
        assert_eq!(self.state(), None, "{name}");
    }
}

/// Reads the addresses and ports of a frame, and asserts that its checksums are right.
pub(super) fn seen(port: PortId, frame: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (from, to) = addresses(&sliced);
    let (header, protocol) = match sliced.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => (tcp.slice(), IpNumber::TCP),
        TransportSlice::Udp(udp) => (udp.slice(), IpNumber::UDP),
        TransportSlice::Icmpv4(icmp) => {
            let sum = icmp.header().icmp_type.calc_checksum(icmp.payload());
            assert_eq!(icmp.checksum(), sum);
            let (from_port, to_port) = match icmp.header().icmp_type {
                etherparse::Icmpv4Type::EchoRequest(echo) => (echo.id, 0),
                etherparse::Icmpv4Type::EchoReply(echo) => (0, echo.id),
                _ => (0, 0),
            };
            let (from, to) = ((from, from_port), (to, to_port));
            return Seen { port, from, to };
        }
        TransportSlice::Icmpv6(icmp) => {
            let (IpAddr::V6(a), IpAddr::V6(b)) = (from, to) else {
                panic!("of one family");
            };
            assert!(icmp.is_checksum_valid(a.octets(), b.octets()));
            let (from_port, to_port) = match icmp.header().icmp_type {
                etherparse::Icmpv6Type::EchoRequest(echo) => (echo.id, 0),
                etherparse::Icmpv6Type::EchoReply(echo) => (0, echo.id),
                _ => (0, 0),
            };
            let (from, to) = ((from, from_port), (to, to_port));
            return Seen { port, from, to };
        }
        TransportSlice::Igmp(_) => panic!("IGMP"),
    };
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let len = u32::try_from(header.len()).unwrap();
    let pseudo = [
        octets(from),
        octets(to),
        len.to_be_bytes().to_vec(),
        u32::from(protocol.0).to_be_bytes().to_vec(),
        header.to_vec(),
    ]
    .concat();
    let sum: u64 = pseudo
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    assert_eq!(sum % 0xffff, 0, "the checksum is right");
    let port_at = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    Seen {
        port,
        from: (from, port_at(0)),
        to: (to, port_at(2)),
    }
}
