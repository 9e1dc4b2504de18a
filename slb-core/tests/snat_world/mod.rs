//! A host agent with a vm that calls out, and packets for it.

#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::mem::{Boxes, Mem};
use slb_core::nat::{NatOptions, NatTables, PortTable};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, INSIDE, Outbound, Pool, Prefix, Protocol, Rule, Spec, SpecError,
    Terms, Underlay, derived_mac,
};
use slb_core::stats::SnatCounters;
use slb_core::wire::vxlan::Vni;
use slb_core::{Burst, Host, Instant, Key, PortId, Verdict};

pub use crate::common::Endpoint;
use crate::common::meter::metered;

const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const VNI: u32 = 5001;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

fn address(family: Family, ipv4: [u8; 4], net: u16, host: u16) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::from(ipv4).into(),
        Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host).into(),
    }
}

pub fn vm(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 0, 1, 4 + number).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 4 + u16::from(number)).into(),
    }
}

pub fn front(family: Family, number: u8) -> IpAddr {
    address(family, [40, 50, 60, 70 + number], 0x40, number.into())
}

pub fn vip(family: Family) -> IpAddr {
    address(family, [40, 50, 60, 7], 0x40, 0x100)
}

/// A server on the Internet.
pub fn far(family: Family, number: u8) -> Endpoint {
    (
        address(family, [93, 184, 216, number], 0x93, number.into()),
        443,
    )
}

/// A client there.
pub fn client(family: Family, number: u8) -> IpAddr {
    address(family, [198, 51, 100, number], 0x198, number.into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
    Echo,
}

impl Kind {
    /// An IP packet that asks for a connection; of an echo request, the port is the identifier.
    pub fn request(self, from: Endpoint, to: Endpoint) -> Vec<u8> {
        let mut packet = Vec::new();
        let ip = match (from.0, to.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
            }
            _ => panic!("two families"),
        };
        let result = match (self, from.0) {
            (Self::Tcp, _) => {
                let syn = ip.tcp(from.1, to.1, 1000, 64_000).syn();
                syn.write(&mut packet, b"")
            }
            (Self::Udp, _) => ip.udp(from.1, to.1).write(&mut packet, b"query"),
            (Self::Echo, IpAddr::V4(_)) => {
                let echo = ip.icmpv4_echo_request(from.1, 1);
                echo.write(&mut packet, b"ping")
            }
            (Self::Echo, IpAddr::V6(_)) => {
                let echo = ip.icmpv6_echo_request(from.1, 1);
                echo.write(&mut packet, b"ping")
            }
        };
        result.expect("a packet");
        packet
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    /// One outbound rule with all frontends.
    One,
    /// One of the same pool for each frontend.
    ForEach,
    /// One of a pool of its own for each frontend; the vm is in all of them.
    PoolForEach,
}

/// A segment of TCP that is no SYN of a client's.
pub fn tcp(from: Endpoint, to: Endpoint, flags: u8) -> Vec<u8> {
    let mut packet = Kind::Tcp.request(from, to);
    let ip = if from.0.is_ipv4() { 20 } else { 40 };
    // The checksum is about the flags, in the low byte of a word (RFC 1624, eqn. 3).
    let old = packet[ip + 13];
    packet[ip + 13] = flags;
    let sum = u16::from_be_bytes([packet[ip + 16], packet[ip + 17]]);
    let sum = u32::from(!sum) + u32::from(!u16::from(old)) + u32::from(flags);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[ip + 16..ip + 18].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The host agent's configuration.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    family: Family,
    fronts: u8,
    vms: u8,
    ports: u32,
    rules: Rules,
    source_nat: bool,
    bitmaps: bool,
    tcp_reset: bool,
    inside: &'static [Prefix],
    key: Key,
}

impl Plan {
    /// One vm that may call out under the addresses of so many frontends.
    pub fn new(family: Family, fronts: u8) -> Self {
        Self {
            family,
            fronts,
            vms: 1,
            ports: 1024,
            rules: Rules::One,
            source_nat: false,
            bitmaps: true,
            tcp_reset: false,
            inside: INSIDE,
            key: Key::new([5, 6]),
        }
    }

    /// So many vms.
    pub fn vms(mut self, vms: u8) -> Self {
        self.vms = vms;
        self
    }

    /// Ports for each vm, of each outbound rule.
    pub fn ports(mut self, ports: usize) -> Self {
        self.ports = ports as u32;
        self
    }

    pub fn rule_for_each(mut self) -> Self {
        self.rules = Rules::ForEach;
        self
    }

    pub fn pool_for_each(mut self) -> Self {
        self.rules = Rules::PoolForEach;
        self
    }

    /// The vm sees clients of the VIP under an address of the balancer's.
    pub fn source_nat(mut self) -> Self {
        self.source_nat = true;
        self
    }

    pub fn without_bitmaps(mut self) -> Self {
        self.bitmaps = false;
        self
    }

    pub fn tcp_reset(mut self) -> Self {
        self.tcp_reset = true;
        self
    }

    /// Sets the prefixes that vms reach under their own address.
    pub fn inside(mut self, inside: &[Prefix]) -> Self {
        self.inside = inside.to_vec().leak();
        self
    }

    pub fn key(mut self, key: Key) -> Self {
        self.key = key;
        self
    }

    /// Returns the error of a configuration that cannot be compiled.
    pub fn error(&self) -> Option<SpecError> {
        self.compile().err()
    }

    fn compile(&self) -> Result<Box<Snapshot<'static>>, SpecError> {
        let names: Vec<String> = (0..self.fronts.max(1)).map(|n| format!("out{n}")).collect();
        let mut frontends: Vec<_> = (0..self.fronts)
            .map(|n| Frontend {
                name: &names[usize::from(n)],
                address: front(self.family, n),
                icmp_echo: Echo::Answer,
            })
            .collect();
        frontends.push(Frontend {
            name: "web",
            address: vip(self.family),
            icmp_echo: Echo::Answer,
        });
        let vm_names: Vec<String> = (0..self.vms).map(|n| format!("vm{n}")).collect();
        let backends: Vec<_> = (0..self.vms)
            .map(|n| Backend {
                name: &vm_names[usize::from(n)],
                address: vm(self.family, n),
                host: HOST.into(),
                port: Some(PortId(1 + u16::from(n))),
                ..Backend::default()
            })
            .collect();
        let pools = if self.rules == Rules::PoolForEach {
            self.fronts
        } else {
            1
        };
        let pools: Vec<_> = (0..pools)
            .map(|n| Pool {
                name: &names[usize::from(n)],
                vni: Vni::new(VNI).expect("24 bits"),
                backends: &backends,
                ..Pool::default()
            })
            .collect();
        let all: Vec<usize> = (0..usize::from(self.fronts)).collect();
        let outbound = |n: usize, frontends| Outbound {
            name: &names[n],
            frontends,
            pool: if self.rules == Rules::PoolForEach {
                n
            } else {
                0
            },
            protocol: Protocol::All,
            allocated_outbound_ports: Some(self.ports),
            idle_timeout: Duration::from_secs(240),
            tcp_reset: self.tcp_reset,
        };
        let outbound: Vec<_> = match self.rules {
            Rules::One if all.is_empty() => Vec::new(),
            Rules::One => vec![outbound(0, &all[..])],
            _ => all.iter().map(|&n| outbound(n, &all[n..=n])).collect(),
        };
        let source_nat = self.source_nat.then(|| match self.family {
            Family::Ipv4 => Ipv4Addr::new(10, 9, 9, 9).into(),
            Family::Ipv6 => Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9).into(),
        });
        let rules = [Rule {
            name: "http",
            frontend: frontends.len() - 1,
            protocol: Protocol::Tcp,
            frontend_port: 80,
            backend_port: 8080,
            terms: Terms {
                source_nat,
                ..Terms::default()
            },
            ..Rule::default()
        }];
        let spec = Spec {
            underlay: Underlay {
                ipv4: Some(HOST),
                ..Underlay::default()
            },
            frontends: &frontends,
            rules: &rules,
            pools: &pools,
            outbound: &outbound,
            muxes: &[MUX.into()],
            inside: self.inside,
            ..Spec::default()
        };
        Snapshot::new(&spec, None).map(Box::new)
    }

    pub fn world(&self) -> World {
        const CONNECTIONS: usize = 140_000; // half of them may be half-open
        let snapshot = self.compile().expect("a good spec");
        let mut tables =
            NatTables::build(&snapshot, CONNECTIONS, self.key, &mut Boxes).expect("boxes");
        if !self.bitmaps {
            tables.snat_ports = PortTable::new(Mem::empty(), Mem::empty(), self.key);
        }
        World {
            family: self.family,
            host: Host::new(snapshot, tables, NatOptions::default()).expect("its role"),
        }
    }
}

pub struct World {
    pub family: Family,
    pub host: Host<'static, Box<Snapshot<'static>>>,
}

impl World {
    /// Gives the host agent a frame; returns what becomes of it.
    pub fn give(&mut self, now: Instant, port: PortId, frame: &[u8]) -> (Verdict, Vec<u8>) {
        metered(&mut self.host, now, port, frame)
    }

    /// An IP packet that a vm sends.
    pub fn of_vm(&mut self, now: Instant, number: u8, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let mac = derived_mac(vm(self.family, number)).0;
        let frame = ethernet([2, 0, 0, 0, 0, 9], mac, packet);
        self.give(now, PortId(1 + u16::from(number)), &frame)
    }

    /// An IP packet that a mux sends to a vm.
    pub fn of_mux(&mut self, now: Instant, number: u8, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let mac = derived_mac(vm(self.family, number)).0;
        let [_, a, b, c] = VNI.to_be_bytes();
        let mut payload = vec![8, 0, 0, 0, a, b, c, 0];
        payload.extend(ethernet(mac, [2, 0, 0, 0, 0, 1], packet));
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
            .ipv4(MUX.octets(), HOST.octets(), 64)
            .udp(50_000, 4789)
            .write(&mut frame, &payload)
            .expect("a frame");
        self.give(now, PortId(0), &frame)
    }

    /// Lets the host agent end what is past its time.
    pub fn advance(&mut self, now: Instant) {
        for step in 0..200 {
            let now = now.as_nanos() + step * 100_000_000;
            self.host
                .advance(Instant::from_nanos(now), &mut Burst::new());
        }
    }

    /// The counters of the vm, over all pools that it is in.
    pub fn snat(&self) -> SnatCounters {
        let backends = self.host.snapshot().backends().iter();
        let each = backends.filter_map(|backend| self.host.snat_counters(backend.id()));
        each.fold(SnatCounters::default(), |sum, of| SnatCounters {
            ports: sum.ports + of.ports,
            used: sum.used + of.used,
            connections: sum.connections + of.connections,
            exhausted: sum.exhausted + of.exhausted,
        })
    }
}

fn ethernet(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    [&to[..], &from, &kind, packet].concat()
}

/// Addresses and ports of a frame's packet, and of an echo message its identifier as the source port,
/// once etherparse has found its checksums right.
pub fn ends(frame: &[u8]) -> (Endpoint, Endpoint) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a packet");
    let (source, destination): (IpAddr, IpAddr) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (header.source.into(), header.destination.into())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header().to_header();
            (header.source.into(), header.destination.into())
        }
        other => panic!("{other:?}"),
    };
    let ports = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let sum = match (source, destination) {
                (IpAddr::V4(a), IpAddr::V4(b)) => tcp.calc_checksum_ipv4(a.octets(), b.octets()),
                (IpAddr::V6(a), IpAddr::V6(b)) => tcp.calc_checksum_ipv6(a.octets(), b.octets()),
                _ => panic!("two families"),
            };
            assert_eq!(Ok(tcp.checksum()), sum);
            (tcp.source_port(), tcp.destination_port())
        }
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Icmpv4(icmp)) => {
            let bytes = icmp.slice();
            (u16::from_be_bytes([bytes[4], bytes[5]]), 0)
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let bytes = icmp.slice();
            (u16::from_be_bytes([bytes[4], bytes[5]]), 0)
        }
        other => panic!("{other:?}"),
    };
    ((source, ports.0), (destination, ports.1))
}
