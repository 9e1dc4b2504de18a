//! A host agent with a few vms, and packets to and from these.

use std::net::Ipv4Addr;
use std::sync::OnceLock;
use std::time::Duration;

use etherparse::PacketBuilder;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, Outbound, Pool, Protocol, Rule, Spec, Terms, Underlay, derived_mac,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{Host, Instant, Key, PortId, Verdict};

use crate::common::through;

pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(20, 20, 20, 100);
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
pub(super) const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
pub(super) const FABRIC: PortId = PortId(0);
pub(super) const KEY: Key = Key::new([5, 6]);

pub(super) fn front(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(20, 20, 20, 200 + number as u8)
}

pub(super) fn dip(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, 1, 1 + number as u8)
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) vms: usize,
    /// Frontends of the outbound rule.
    pub(super) fronts: usize,
    pub(super) ports: Option<u32>,
    pub(super) terms: Terms,
    /// A port of the first outbound frontend that a rule takes.
    pub(super) taken: u16,
}

impl Plan {
    pub(super) fn snapshot(&self) -> Snapshot<'static> {
        self.after(None)
    }

    pub(super) fn after(&self, previous: Option<&Snapshot<'_>>) -> Snapshot<'static> {
        let names: Vec<String> = (0..self.vms).map(|n| format!("vm{n}")).collect();
        let backends: Vec<Backend<'_>> = (0..self.vms)
            .map(|n| Backend {
                name: &names[n],
                address: dip(n).into(),
                host: HOST.into(),
                port: Some(PortId(1 + n as u16)),
                ..Backend::default()
            })
            .collect();
        let mut frontends = vec![Frontend {
            name: "web",
            address: VIP.into(),
            icmp_echo: Echo::Answer,
        }];
        let names: Vec<String> = (0..self.fronts).map(|n| format!("out{n}")).collect();
        frontends.extend((0..self.fronts).map(|n| Frontend {
            name: &names[n],
            address: front(n).into(),
            icmp_echo: Echo::Answer,
        }));
        let outbound: Vec<usize> = (1..=self.fronts).collect();
        let rule = |name, frontend, frontend_port| Rule {
            name,
            frontend,
            protocol: Protocol::Tcp,
            frontend_port,
            backend_port: 8080,
            terms: self.terms,
            ..Rule::default()
        };
        let spec = Spec {
            underlay: Underlay {
                ipv4: Some(HOST),
                port: FABRIC,
                ..Underlay::default()
            },
            frontends: &frontends,
            rules: &[rule("http", 0, 80), rule("beside", 1, self.taken)],
            pools: &[Pool {
                name: "servers",
                vni: Vni::new(5001).unwrap(),
                table_size: 251,
                backends: &backends,
                ..Pool::default()
            }],
            outbound: &[Outbound {
                name: "out",
                frontends: &outbound,
                pool: 0,
                protocol: Protocol::All,
                allocated_outbound_ports: self.ports,
                idle_timeout: Duration::from_secs(240),
                tcp_reset: false,
            }],
            ..Spec::default()
        };
        Snapshot::new(&spec, previous).unwrap()
    }
}

pub(super) const PLAN: Plan = Plan {
    vms: 2,
    fronts: 1,
    ports: Some(64),
    terms: Terms {
        floating_ip: false,
        tcp_reset: false,
        answers: slb_core::spec::Answers::Direct,
        source_nat: None,
        quic: false,
    },
    taken: 1031,
};

/// That of [`PLAN`].
pub(super) fn snapshot() -> &'static Snapshot<'static> {
    static SNAPSHOT: OnceLock<Snapshot<'static>> = OnceLock::new();
    SNAPSHOT.get_or_init(|| PLAN.snapshot())
}

pub(super) type Dut<'s> = Host<'static, &'s Snapshot<'static>>;

/// Gives a host a frame; returns what becomes of it.
pub(super) fn give(
    host: &mut Dut<'_>,
    now: Instant,
    port: PortId,
    bytes: &[u8],
) -> (Verdict, Vec<u8>) {
    through(port, bytes, |frames| {
        host.process(now, frames);
    })
}

/// A frame for a vm, in VXLAN as a mux would send it.
pub(super) fn encapsulated(vm: usize, packet: &[u8]) -> Vec<u8> {
    encapsulated_by(MUX, vm, packet)
}

pub(super) fn encapsulated_by(peer: Ipv4Addr, vm: usize, packet: &[u8]) -> Vec<u8> {
    let mut inner = derived_mac(dip(vm).into()).0.to_vec();
    inner.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    inner.extend(packet);
    let mut payload = vec![8, 0, 0, 0, 0, 0x13, 0x89, 0];
    payload.extend(inner);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(peer.octets(), HOST.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut frame, &payload)
        .unwrap();
    frame
}

pub(super) fn tcp(
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    flags: u8,
    seq: u32,
    data: &[u8],
) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(from.1, to.1, seq, 1000);
    (header.fin, header.syn, header.rst) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    header.ack = flags & 16 != 0;
    header.acknowledgment_number = seq;
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.0.octets(), to.0.octets(), 64)
        .tcp_header(header)
        .write(&mut packet, data)
        .unwrap();
    packet
}

pub(super) fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.0.octets(), to.0.octets(), 64)
        .udp(from.1, to.1)
        .write(&mut packet, data)
        .unwrap();
    packet
}

/// A frame as a vm sends it.
pub(super) fn of_vm(vm: usize, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 9];
    frame.extend(derived_mac(dip(vm).into()).0);
    frame.extend([8, 0]);
    frame.extend(packet);
    frame
}

/// The IP packet, TTL and header checksum aside.
pub(super) fn packet_of(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    (packet[8], packet[10], packet[11]) = (0, 0, 0);
    packet
}

pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;
