//! Established connections through a host agent or a proxy, inwards and outwards.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use slb_core::mem::{Arena, Line, Memory};
use slb_core::nat::{Link, Links, NatOptions, NatTable, NatTables};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Answers, Backend, Echo, Frontend, FrontendPort, Outbound, Pool, ProxyPorts, Rule, Spec, Terms,
    Underlay, derived_mac,
};
use slb_core::wire::checksum::checksum;
use slb_core::wire::vxlan::Vni;
use slb_core::{BURST, Dataplane, Frame, HEADROOM, Host, Instant, Key, PortId, Proxy};

use super::kind::{Kind, Template};
use super::mux::{FRAMES, VIP_IPV4, VIP_IPV6};
use crate::error::Failure;
use crate::flows::Random;
use crate::report::{Effort, Rounds, Sample};

const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const OTHER_HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 102);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const VM: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 11);
const VM_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1);
const OTHER_VM: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 12);
const OTHER_VM_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 2);
const CLIENT_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0);
const FABRIC: PortId = PortId(0);
const VM_PORT: PortId = PortId(1);
/// The vm's own port.
const VM_SERVES: u16 = 8080;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Role that translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Host,
    Proxy,
}

/// The case that one line measures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) kind: Kind,
    pub(super) role: Role,
    pub(super) ipv6: bool,
    /// From the backend, rather than to it.
    pub(super) outward: bool,
    /// Length of the inner frame on the wire, with its frame check sequence.
    pub(super) frame_len: usize,
    pub(super) flows: u32,
}

impl Case {
    pub(super) fn snapshot(&self) -> Result<Snapshot<'static>, Failure> {
        self.snapshot_of(&[self.backend(1)], None)
    }

    /// Compiles a snapshot with other backends.
    pub(super) fn snapshot_of(
        &self,
        backends: &[Backend<'_>],
        previous: Option<&Snapshot<'_>>,
    ) -> Result<Snapshot<'static>, Failure> {
        let rule = Rule {
            name: "http",
            protocol: self.kind.protocol(),
            frontend_port: self.kind.port(80),
            backend_port: self.kind.port(VM_SERVES),
            terms: Terms {
                answers: match self.kind {
                    Kind::ThroughMux => Answers::ThroughMux,
                    _ => Answers::Direct,
                },
                ..Terms::default()
            },
            ..Rule::default()
        };
        let calls = Outbound {
            name: "out",
            frontends: &[0],
            ..Outbound::default()
        };
        let (rules, outbound) = match self.kind {
            Kind::Snat => (&[][..], &[calls][..]),
            _ => (&[rule][..], &[][..]),
        };
        let spec = Spec {
            underlay: Underlay {
                ipv4: Some(HOST),
                mtu: 1600,
                port: FABRIC,
                ..Underlay::default()
            },
            frontends: &[Frontend {
                name: "web",
                address: self.vip(),
                icmp_echo: match self.kind {
                    Kind::Echo => Echo::Forward,
                    _ => Echo::Answer,
                },
            }],
            rules,
            outbound,
            pools: &[Pool {
                name: "servers",
                vni: Vni::new(5001).unwrap_or_default(),
                table_size: 251,
                backends,
                ..Pool::default()
            }],
            muxes: &[MUX.into()],
            proxy: (self.role == Role::Proxy).then_some(ProxyPorts {
                frontends: &[FrontendPort {
                    port: FABRIC,
                    address: None,
                }],
                backend: VM_PORT,
                ..ProxyPorts::default()
            }),
            ..Spec::default()
        };
        Snapshot::new(&spec, previous).map_err(Failure::failed)
    }

    /// The vm of this host.
    pub(super) fn backend(&self, weight: u32) -> Backend<'static> {
        Backend {
            name: "vm",
            address: self.vm(),
            mac: Some(derived_mac(VM.into())),
            host: HOST.into(),
            port: Some(VM_PORT),
            weight,
            ..Backend::default()
        }
    }

    /// A vm of another host.
    pub(super) fn backend_elsewhere(&self, weight: u32) -> Backend<'static> {
        Backend {
            name: "other",
            address: match self.ipv6 {
                false => OTHER_VM.into(),
                true => OTHER_VM_IPV6.into(),
            },
            host: OTHER_HOST.into(),
            weight,
            ..Backend::default()
        }
    }

    fn vip(&self) -> IpAddr {
        match self.ipv6 {
            false => VIP_IPV4.into(),
            true => VIP_IPV6.into(),
        }
    }

    fn vm(&self) -> IpAddr {
        match self.ipv6 {
            false => VM.into(),
            true => VM_IPV6.into(),
        }
    }

    /// Bytes of its connections and their index.
    pub(super) fn table_bytes(&self) -> usize {
        let flows = self.flows as usize;
        flows * if self.ipv6 { 136 } else { 72 } + 64 * NatTable::index_buckets_for(flows)
    }

    /// Tables for one family.
    pub(super) fn tables<'m>(
        &self,
        snapshot: &Snapshot<'_>,
        memory: &mut Arena<'m>,
    ) -> Option<NatTables<'m>> {
        const KEY: Key = Key::new([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344]);
        let count = self.flows.max(1 << 16) as usize;
        let (ipv4, ipv6) = if self.ipv6 { (1, count) } else { (count, 1) };
        Some(NatTables {
            connections: NatTable::build(ipv4, ipv6, KEY, memory)?,
            links: match self.role {
                Role::Host => Links::none(),
                Role::Proxy => Links {
                    ipv4: memory.take(ipv4, Link::NONE)?,
                    ipv6: memory.take(ipv6, Link::NONE)?,
                },
            },
            ..NatTables::build(snapshot, 1, KEY, memory)?
        })
    }

    /// Packets of established connections, in no order.
    pub(super) fn measure(&self, effort: Effort, memory: &mut [Line]) -> Result<Sample, Failure> {
        let snapshot = self.snapshot()?;
        let tables = self.tables(&snapshot, &mut Arena::new(memory));
        let tables = tables.ok_or_else(Failure::memory)?;
        let options = NatOptions::default();
        match self.role {
            Role::Host => {
                let host = Host::new(&snapshot, tables, options).map_err(Failure::failed)?;
                self.run(host, effort)
            }
            Role::Proxy => {
                let proxy = Proxy::new(&snapshot, tables, options).map_err(Failure::failed)?;
                self.run(proxy, effort)
            }
        }
    }

    fn run<'s>(&self, mut role: impl Dataplane<'s>, effort: Effort) -> Result<Sample, Failure> {
        let mut memory = vec![0u8; self.stride() * FRAMES];
        let mut frames = Frames::new(*self, 1);
        let now = Instant::from_secs(1);
        frames.establish(&mut memory, |frames| role.process(now, frames));
        let mut rounds = Rounds::new(effort);
        while rounds.go_on() {
            let mut frames = frames.write(&mut memory, self.outward, ACK, false);
            rounds.time(FRAMES, &mut || {
                for burst in frames.chunks_mut(BURST) {
                    role.process(now, burst);
                }
            });
            black_box(&mut frames);
        }
        let stats = role.stats();
        if stats.forwarded != stats.received {
            return Err(Failure::failed(format!("not all was forwarded: {stats:?}")));
        }
        Ok(rounds.sample())
    }
}

/// Writes frames of random flows, or of all in turn.
pub(super) struct Frames {
    case: Case,
    random: Random,
    next: u32,
    /// The port of the VIP that each flow's vm was given, if it was given one.
    given: Vec<u16>,
}

impl Frames {
    pub(super) fn new(case: Case, seed: u64) -> Self {
        Self {
            case,
            random: Random::new(seed),
            next: 0,
            given: match case.kind {
                Kind::Snat => vec![0; case.flows as usize],
                _ => Vec::new(),
            },
        }
    }

    /// Gives `process` the handshake of every connection, some at a time: unanswered ones get half of the table.
    pub(super) fn establish(
        &mut self,
        memory: &mut [u8],
        mut process: impl FnMut(&mut [Frame<'_>]),
    ) {
        for _ in 0..self.case.flows.div_ceil(FRAMES as u32) {
            let first = self.next;
            let is_opened_inside = self.case.kind == Kind::Snat;
            for (outward, flags) in [(false, SYN), (true, SYN | ACK), (false, ACK)] {
                self.next = first;
                let mut frames = self.write(memory, outward != is_opened_inside, flags, true);
                process(&mut frames);
                if is_opened_inside && flags == SYN {
                    self.note_given(first, &frames);
                }
            }
        }
    }

    /// Packets of random established connections.
    pub(super) fn established<'m>(&mut self, memory: &'m mut [u8]) -> Vec<Frame<'m>> {
        self.write(memory, self.case.outward, ACK, false)
    }

    /// Notes the ports under which SYNs of vms left, of flows in turn.
    fn note_given(&mut self, first: u32, frames: &[Frame<'_>]) {
        let (_, port) = self.case.kind.client(self.case.ipv6, false);
        for (number, frame) in (first + 1..).zip(frames) {
            let bytes = frame
                .bytes()
                .get(port..)
                .and_then(|ports| ports.first_chunk());
            let flow = (number % self.case.flows) as usize;
            self.given[flow] = bytes.map_or(0, |&port| u16::from_be_bytes(port));
        }
    }

    fn write<'m>(
        &mut self,
        memory: &'m mut [u8],
        outward: bool,
        flags: u8,
        in_turn: bool,
    ) -> Vec<Frame<'m>> {
        let case = self.case;
        let inner = case.inner(outward, flags);
        let in_tunnel = case.role == Role::Host && !outward;
        let kind = case.inner_kind(outward);
        let (address, port) = kind.client(case.ipv6, outward);
        let outer = if in_tunnel {
            outer(case.kind, inner.len())
        } else {
            Vec::new()
        };
        memory
            .chunks_exact_mut(case.stride())
            .map(|buffer| {
                self.next = (self.next + 1) % case.flows;
                let flow = match in_turn {
                    true => self.next,
                    false => self.random.below(case.flows as usize) as u32,
                };
                let len = outer.len() + inner.len();
                let packet = &mut buffer[HEADROOM..][..len];
                packet[..outer.len()].copy_from_slice(&outer);
                let packet = &mut packet[outer.len()..];
                packet.copy_from_slice(&inner);
                let client = case.first_client() + (flow >> 4);
                packet[address..address + 4].copy_from_slice(&client.to_be_bytes());
                packet[port..port + 2].copy_from_slice(&(1024 + (flow & 15) as u16).to_be_bytes());
                if let (false, Some(given)) = (outward, self.given.get(flow as usize)) {
                    packet[port + 2..port + 4].copy_from_slice(&given.to_be_bytes());
                }
                kind.finish(case.ipv6, packet);
                let mut frame = Frame::new(buffer, HEADROOM, len).unwrap_or(Frame::EMPTY);
                frame.set_port(if outward { VM_PORT } else { FABRIC });
                frame
            })
            .collect()
    }
}

impl Case {
    /// Bytes from one frame's buffer to the next.
    pub(super) fn stride(&self) -> usize {
        (HEADROOM + 54 + self.frame_len).next_multiple_of(64)
    }

    /// The kind of the inner packet: a tag is before all headers.
    fn inner_kind(&self, outward: bool) -> Kind {
        match self.kind {
            Kind::Tagged if self.role == Role::Host && !outward => Kind::Tcp,
            kind => kind,
        }
    }

    /// The end of the first client's address. Whom vms call is none of the inside.
    fn first_client(&self) -> u32 {
        if self.kind == Kind::Snat {
            0x2d40_0000
        } else {
            0x0a40_0000
        }
    }

    /// A packet between a client, not yet filled in, and the VIP or the vm.
    fn inner(&self, outward: bool, flags: u8) -> Vec<u8> {
        let mut frame = derived_mac(VM.into()).0.to_vec();
        frame.extend([2, 0, 0, 0, 0, 1]);
        if outward {
            frame.rotate_left(6);
        }
        let client = match self.ipv6 {
            false => Ipv4Addr::UNSPECIFIED.into(),
            true => CLIENT_IPV6.into(),
        };
        let (source, destination, ports) = if outward {
            (self.vm(), client, [VM_SERVES, 0])
        } else {
            (client, self.vip(), [0, 80])
        };
        let packet = Template {
            kind: self.inner_kind(outward),
            outward,
            source,
            destination,
            ports,
            flags,
            // Both ends begin at 1: what comes behind the SYN, and acknowledges it, has 2.
            numbers: [if flags & SYN != 0 { 1 } else { 2 }, 2],
        };
        packet.write(&mut frame, self.frame_len - 4);
        frame
    }
}

/// Builds the headers that the mux puts in front of `inner` bytes.
fn outer(kind: Kind, inner: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if kind == Kind::Tagged {
        frame.extend([0x81, 0, 0, 42]);
    }
    let ip = frame.len() + 2;
    frame.extend([0x08, 0x00, 0x45, 0]);
    let udp_len = (inner + 16) as u16;
    frame.extend((udp_len + 20).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(MUX.octets());
    frame.extend(HOST.octets());
    let sum = checksum(&frame[ip..ip + 20]).to_be_bytes();
    frame[ip + 10..ip + 12].copy_from_slice(&sum);
    frame.extend([0xc0, 0, 0x12, 0xb5]);
    frame.extend(udp_len.to_be_bytes());
    frame.extend([0, 0, 0x08, 0, 0, 0, 0, 0x13, 0x89, 0]);
    frame
}
