//! The mux: packets of established flows, and SYNs of new ones.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use slb_core::flow::FlowTable;
use slb_core::hash::{Hasher, Xxh3};
use slb_core::maglev;
use slb_core::mem::{Arena, Line, Memory};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, Echo, Frontend, Outbound, Pool, Rule, Spec, Underlay};
use slb_core::stats::{BackendCounters, RuleCounters};
use slb_core::wire::vxlan::Vni;
use slb_core::{BURST, Frame, HEADROOM, Instant, Key, Mux, MuxOptions, MuxTables};

use super::kind::{Kind, Template};
use crate::error::Failure;
use crate::flows::Random;
use crate::report::{Effort, Rounds, Sample};

/// Frames of one round: few enough to stay in a second-level cache, as they do behind a NIC that
/// writes into the cache.
pub const FRAMES: usize = 1024;
pub(crate) const BACKENDS: u8 = 100;
pub(super) const VIP_IPV4: Ipv4Addr = Ipv4Addr::new(20, 20, 20, 100);
pub(super) const VIP_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x20, 0, 0, 0, 0, 0x100);
const CLIENT_IPV4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const CLIENT_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0);
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Ports of each vm, for connections of its own.
const SNAT_PORTS: u16 = 512;
/// One of them.
const SNAT_PORT: u16 = 10_000;

/// The mux, its packets and its flows, as one line measures them.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The kind of its packets.
    pub kind: Kind,
    /// The mux has a flow table.
    pub pinned: bool,
    /// Packets are IPv6.
    pub ipv6: bool,
    /// Bytes on the wire, with the four of the frame check sequence.
    pub frame_len: usize,
    /// The number of flows that the packets belong to.
    pub flows: u32,
    /// The number of VIPs of these flows, each with a rule of its own.
    pub vips: u8,
}

impl Case {
    /// The case of the machine's limits: no table, IPv4, frames of 64 bytes, a million flows.
    pub const FLOOR: Self = Self {
        kind: Kind::Tcp,
        pinned: false,
        ipv6: false,
        frame_len: 64,
        flows: 1 << 20,
        vips: 1,
    };

    /// Returns the bytes from one frame's buffer to the next.
    pub fn stride(&self) -> usize {
        (HEADROOM + self.frame_len).next_multiple_of(64)
    }

    /// Bytes of its flow table.
    pub(crate) fn table_bytes(&self) -> usize {
        let buckets = FlowTable::buckets_for(self.flows as usize);
        match (self.pinned, self.ipv6) {
            (false, _) => 0,
            (true, false) => 64 * buckets,
            (true, true) => 128 * buckets,
        }
    }

    pub(super) fn snapshot(&self) -> Result<Snapshot<'static>, Failure> {
        let names: Vec<String> = (0..BACKENDS).map(|i| format!("vm{i}")).collect();
        let address = |i: u8| -> IpAddr {
            if self.ipv6 {
                Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, i.into()).into()
            } else {
                Ipv4Addr::new(10, 10, 1, i).into()
            }
        };
        let backends: Vec<Backend<'_>> = (0..BACKENDS)
            .zip(&names)
            .map(|(i, name)| Backend {
                name,
                address: address(i),
                host: Ipv4Addr::new(172, 16, 0, i).into(),
                ..Backend::default()
            })
            .collect();
        let named = |what| move |i| format!("{what}{i}");
        let frontend_names: Vec<String> = (0..self.vips).map(named("web")).collect();
        let rule_names: Vec<String> = (0..self.vips).map(named("http")).collect();
        let frontends: Vec<Frontend<'_>> = (0..self.vips)
            .zip(&frontend_names)
            .map(|(i, name)| Frontend {
                name,
                address: self.vip(i),
                icmp_echo: match self.kind {
                    Kind::Echo => Echo::Forward,
                    _ => Echo::Answer,
                },
            })
            .collect();
        let rules: Vec<Rule<'_>> = (0..)
            .zip(&rule_names)
            .map(|(frontend, name)| Rule {
                name,
                frontend,
                pool: 0,
                protocol: self.kind.protocol(),
                frontend_port: self.kind.port(80),
                backend_port: self.kind.port(80),
                ..Rule::default()
            })
            .collect();
        let (rules, outbound) = match self.kind {
            Kind::Snat => (&[][..], &[self.outbound()][..]),
            _ => (&rules[..], &[][..]),
        };
        let spec = Spec {
            hasher: Hasher::Xxh3(Xxh3::new(1)),
            hash_seed: 1,
            underlay: Underlay {
                ipv4: Some(Ipv4Addr::new(172, 16, 0, 11)),
                mtu: 1600,
                ..Underlay::default()
            },
            frontends: &frontends,
            rules,
            outbound,
            pools: &[Pool {
                name: "servers",
                vni: Vni::new(5001).unwrap_or_default(),
                table_size: maglev::DEFAULT_SIZE,
                backends: &backends,
                ..Pool::default()
            }],
            ..Spec::default()
        };
        Snapshot::new(&spec, None).map_err(Failure::failed)
    }

    /// Lets vms call out under the first VIP.
    fn outbound(&self) -> Outbound<'static> {
        Outbound {
            name: "out",
            frontends: &[0],
            allocated_outbound_ports: Some(SNAT_PORTS.into()),
            ..Outbound::default()
        }
    }

    /// The address of a VIP.
    fn vip(&self, number: u8) -> IpAddr {
        if self.ipv6 {
            let vip = u128::from(VIP_IPV6) + u128::from(number);
            Ipv6Addr::from(vip).into()
        } else {
            let vip = u32::from(VIP_IPV4) + u32::from(number);
            Ipv4Addr::from(vip).into()
        }
    }

    pub(super) fn mux<'s>(
        &self,
        snapshot: &'s Snapshot<'static>,
        memory: &'s mut [Line],
    ) -> Option<Dut<'s>> {
        const KEY: Key = Key::new([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344]);
        let memory = &mut Arena::new(memory);
        let flows = self.flows.max(1 << 16) as usize;
        let (ipv4, ipv6) = if self.ipv6 { (3, flows) } else { (flows, 3) };
        let tables = MuxTables {
            flows: match self.pinned {
                true => Some(FlowTable::build(ipv4, ipv6, KEY, memory)?),
                false => None,
            },
            fragments: None,
            rules: memory.take(64, RuleCounters::default())?,
            backends: memory.take(1024, BackendCounters::default())?,
        };
        Mux::new(snapshot, tables, MuxOptions::default()).ok()
    }

    /// Packets of established flows, in no order.
    pub(crate) fn established(
        &self,
        effort: Effort,
        tables: &mut [Line],
    ) -> Result<Sample, Failure> {
        let snapshot = self.snapshot()?;
        let mut mux = self.mux(&snapshot, tables).ok_or_else(Failure::memory)?;
        let mut memory = vec![0u8; self.stride() * FRAMES];
        let mut frames = Frames::new(*self);
        let now = Instant::from_secs(1);
        for _ in 0..self.flows.div_ceil(FRAMES as u32) {
            let mut warm = frames.write(&mut memory, true);
            mux.process(now, &mut warm);
        }
        let mut rounds = Rounds::new(effort);
        while rounds.go_on() {
            let mut frames = frames.write(&mut memory, false);
            rounds.time(FRAMES, &mut || {
                for burst in frames.chunks_mut(BURST) {
                    mux.process(now, burst);
                }
            });
            black_box(&mut frames);
        }
        all_forwarded(&mux)?;
        Ok(rounds.sample())
    }

    /// SYNs, each of another flow, at five million a second by the mux's clock, so that what is to
    /// be swept is swept.
    pub(crate) fn opening(&self, effort: Effort, tables: &mut [Line]) -> Result<Sample, Failure> {
        const APART: Duration = Duration::from_nanos(200 * FRAMES as u64);
        let snapshot = self.snapshot()?;
        let mut mux = self.mux(&snapshot, tables).ok_or_else(Failure::memory)?;
        let mut memory = vec![0u8; self.stride() * FRAMES];
        let mut frames = Frames::new(*self);
        frames.template[14 + 20 + 13] = SYN;
        let mut now = Instant::from_secs(1);
        let mut rounds = Rounds::new(effort);
        // Half of the table is for half-open flows; a line is to stay below that.
        let most = self.flows as usize * 2 / 5 / FRAMES;
        while rounds.done() < most && rounds.go_on() {
            let mut frames = frames.write(&mut memory, true);
            now = now + APART;
            rounds.time(FRAMES, &mut || {
                for burst in frames.chunks_mut(BURST) {
                    mux.process(now, burst);
                }
            });
            black_box(&mut frames);
        }
        all_forwarded(&mux)?;
        let stats = mux.stats();
        if stats.flows.made != stats.received.packets {
            return Err(Failure::failed(format!("not all were new: {stats:?}")));
        }
        Ok(rounds.sample())
    }

    /// A packet for the VIP, its flow not yet filled in.
    fn template(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let packet = Template {
            kind: self.kind,
            outward: false,
            source: match self.ipv6 {
                false => CLIENT_IPV4.into(),
                true => CLIENT_IPV6.into(),
            },
            destination: self.vip(0),
            ports: match self.kind {
                Kind::Snat => [0, SNAT_PORT],
                _ => [0, 80],
            },
            flags: ACK,
            numbers: [1, 1],
        };
        packet.write(&mut frame, self.frame_len - 4);
        frame
    }
}

pub(super) type Dut<'s> = Mux<'s, &'s Snapshot<'static>>;

fn all_forwarded(mux: &Dut<'_>) -> Result<(), Failure> {
    let stats = mux.stats();
    if stats.forwarded == stats.received {
        Ok(())
    } else {
        Err(Failure::failed(format!("not all was forwarded: {stats:?}")))
    }
}

/// Writes frames of random flows, or of all flows in turn.
#[derive(Debug)]
pub struct Frames {
    case: Case,
    template: Vec<u8>,
    random: Random,
    next: u32,
}

impl Frames {
    /// A writer of the case's packets.
    pub fn new(case: Case) -> Self {
        Self {
            case,
            template: case.template(),
            random: Random::new(1),
            next: 0,
        }
    }

    /// Fills `memory` with frames: of all flows in turn, or of random ones.
    pub fn write<'m>(&mut self, memory: &'m mut [u8], in_turn: bool) -> Vec<Frame<'m>> {
        let Case {
            kind,
            ipv6,
            flows,
            frame_len,
            vips,
            ..
        } = self.case;
        let (address, port) = kind.client(ipv6, false);
        // The VIP's last byte: behind the source's in IPv4, before the ports in IPv6.
        let vip = if ipv6 { address + 19 } else { address + 7 };
        memory
            .chunks_exact_mut(self.case.stride())
            .map(|buffer| {
                self.next = (self.next + 1) % flows;
                let flow = match in_turn {
                    true => self.next,
                    false => self.random.below(flows as usize) as u32,
                };
                let packet = &mut buffer[HEADROOM..][..self.template.len()];
                packet.copy_from_slice(&self.template);
                let client = 0x0a00_0000 + (flow >> 4); // 268 million flows
                packet[address..address + 4].copy_from_slice(&client.to_be_bytes());
                packet[vip] += (flow % u32::from(vips)) as u8; // at most 100 of 256
                packet[port..port + 2].copy_from_slice(&(1024 + (flow & 15) as u16).to_be_bytes());
                kind.finish(ipv6, packet);
                Frame::new(buffer, HEADROOM, frame_len - 4).unwrap_or(Frame::EMPTY)
            })
            .collect()
    }
}
