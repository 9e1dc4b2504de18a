//! The mux's fast path against its slow path: the same frames give the same bytes, verdicts, steps,
//! counters and flows on both, whatever the frames, the configuration and the moment.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bolero::TypeGenerator;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket};
use slb_core::flow::FlowTable;
use slb_core::hash::{Distribution, Hasher, SipHash13};
use slb_core::observe::Step;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, Outbound, Pool, Protocol, Rule, Spec, Terms,
    UdpChecksum, Underlay,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{Frame, HEADROOM, Instant, Key, Mux};
use slb_fuzz::{Nearly, VIP, VIP6, right_header};
use slb_io_pcap::{Next, Reader};

type TestMux = Mux<'static, Arc<Snapshot<'static>>>;

/// Two muxes alike, one for each way.
struct Both {
    short: TestMux,
    long: TestMux,
}

impl Both {
    fn new(make: impl Fn() -> TestMux) -> Self {
        Self {
            short: make(),
            long: make(),
        }
    }

    /// Sends the same burst through both, each packet with its headroom, and compares all that can be seen.
    fn process(&mut self, now: Instant, packets: &[(Vec<u8>, usize)]) {
        let mut memory = [buffers(packets), buffers(packets)];
        let [short, long] = &mut memory;
        let (mut short, mut long) = (frames(short, packets), frames(long, packets));
        let mut steps = [
            vec![Vec::new(); packets.len()],
            vec![Vec::new(); packets.len()],
        ];
        let [short_steps, long_steps] = &mut steps;
        self.short
            .process_observed(now, &mut short, &mut |frame: usize, step: Step| {
                short_steps[frame].push(shown(step));
            });
        self.long
            .process_the_long_way(now, &mut long, &mut |frame: usize, step: Step| {
                long_steps[frame].push(shown(step));
            });
        for (place, (short, long)) in short.iter().zip(&long).enumerate() {
            let packet = &packets[place];
            assert_eq!(
                steps[0][place], steps[1][place],
                "frame {place}: {packet:x?}"
            );
            assert_eq!(
                short.verdict(),
                long.verdict(),
                "frame {place}: {packet:x?}"
            );
            assert_eq!(
                short.headroom(),
                long.headroom(),
                "frame {place}: {packet:x?}"
            );
            assert_eq!(short.port(), long.port(), "frame {place}: {packet:x?}");
            assert!(short.bytes() == long.bytes(), "frame {place}: {packet:x?}");
        }
        drop((short, long));
        assert!(memory[0] == memory[1], "bytes around the frames differ");
        self.compare();
    }

    fn compare(&self) {
        let Self { short, long } = self;
        assert_eq!(short.stats(), long.stats());
        for rule in 0..8 {
            assert_eq!(
                short.rule_counters(rule),
                long.rule_counters(rule),
                "rule {rule}"
            );
        }
        for backend in short.snapshot().backends() {
            let id = backend.id();
            assert_eq!(short.backend_counters(id), long.backend_counters(id));
        }
        let flows = |mux: &TestMux| -> Vec<_> {
            let flows = mux.flows().into_iter().flat_map(FlowTable::iter);
            flows.map(|flow| format!("{flow:?}")).collect()
        };
        assert_eq!(flows(short), flows(long));
    }
}

fn buffers(packets: &[(Vec<u8>, usize)]) -> Vec<Vec<u8>> {
    let buffer = |(packet, headroom): &(Vec<u8>, usize)| {
        let mut buffer = vec![0xa5; *headroom];
        buffer.extend(packet);
        buffer.extend([0xa5; 64]);
        buffer
    };
    packets.iter().map(buffer).collect()
}

fn frames<'m>(memory: &'m mut [Vec<u8>], packets: &[(Vec<u8>, usize)]) -> Vec<Frame<'m>> {
    let frame = |(buffer, (packet, headroom)): (&'m mut Vec<u8>, &(Vec<u8>, usize))| {
        Frame::new(buffer, *headroom, packet.len()).unwrap()
    };
    memory.iter_mut().zip(packets).map(frame).collect()
}

/// A step as an observer can tell it from others.
fn shown(step: Step) -> String {
    match step {
        Step::Parsed(packet) => format!(
            "parsed {} of {} bytes, {:?} {:?} {} {} {}",
            packet.tuple(),
            packet.ip_len(),
            packet.part(),
            packet.flags(),
            packet.traffic_class(),
            packet.hop_limit(),
            packet.vlan_tags()
        ),
        other => format!("{other:?}"),
    }
}

/// Configuration of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    /// Choice of outer UDP checksums.
    udp_checksum: UdpChecksum,
    /// True if hosts are reached over IPv6.
    over_ipv6: bool,
    distribution: Distribution,
    sip_hash: bool,
    /// Rules for all ports, in the place of those for some.
    ha_ports: bool,
}

const KINDS: [Kind; 5] = [
    Kind {
        udp_checksum: UdpChecksum::Auto,
        over_ipv6: false,
        distribution: Distribution::FiveTuple,
        sip_hash: false,
        ha_ports: false,
    },
    Kind {
        udp_checksum: UdpChecksum::Auto,
        over_ipv6: true,
        distribution: Distribution::FiveTuple,
        sip_hash: false,
        ha_ports: true,
    },
    Kind {
        udp_checksum: UdpChecksum::Computed,
        over_ipv6: false,
        distribution: Distribution::SourceIp,
        sip_hash: false,
        ha_ports: false,
    },
    Kind {
        udp_checksum: UdpChecksum::Zero,
        over_ipv6: true,
        distribution: Distribution::SourceIpProtocol,
        sip_hash: true,
        ha_ports: false,
    },
    Kind {
        udp_checksum: UdpChecksum::Zero,
        over_ipv6: false,
        distribution: Distribution::SourceIp,
        sip_hash: true,
        ha_ports: true,
    },
];

/// Two configurations of each kind: one with all backends healthy, and its successor, where one is
/// unhealthy and one drains.
fn snapshots(kind: usize) -> [Arc<Snapshot<'static>>; 2] {
    static SNAPSHOTS: OnceLock<Vec<[Arc<Snapshot<'static>>; 2]>> = OnceLock::new();
    let all = SNAPSHOTS.get_or_init(|| {
        let both = |kind: &Kind| {
            let first = snapshot(kind, [BackendState::Up; 3], None);
            let states = [BackendState::Up, BackendState::Down, BackendState::Draining];
            let second = snapshot(kind, states, Some(&first));
            [Arc::new(first), Arc::new(second)]
        };
        KINDS.iter().map(both).collect()
    });
    all[kind % KINDS.len()].clone()
}

fn snapshot(
    kind: &Kind,
    states: [BackendState; 3],
    previous: Option<&Snapshot<'_>>,
) -> Snapshot<'static> {
    let vips = [VIP.into(), VIP6.into()];
    let names = ["web", "web6"];
    let frontends = [0, 1].map(|i| Frontend {
        name: names[i],
        address: vips[i],
        icmp_echo: Echo::Answer,
    });
    let backends = |ipv6: bool| {
        [1u8, 2, 3].map(|number| Backend {
            name: ["a", "b", "c"][usize::from(number) - 1],
            address: if ipv6 {
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
            } else {
                Ipv4Addr::new(10, 10, 1, number).into()
            },
            host: if kind.over_ipv6 {
                Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, number.into()).into()
            } else {
                Ipv4Addr::new(172, 16, 0, number).into()
            },
            state: states[usize::from(number) - 1],
            ..Backend::default()
        })
    };
    let (ipv4, ipv6) = (backends(false), backends(true));
    let pool = |name, backends| Pool {
        name,
        vni: Vni::new(7).unwrap(),
        table_size: 251,
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
        distribution: kind.distribution,
        idle_timeout: Duration::from_secs(240),
        terms: Terms {
            tcp_reset: true,
            ..Terms::default()
        },
        ..Rule::default()
    };
    let some = [
        rule("http", 0, Protocol::Tcp, 80),
        rule("dns", 0, Protocol::Udp, 53),
        rule("http6", 1, Protocol::Tcp, 80),
        rule("dns6", 1, Protocol::Udp, 53),
    ];
    let all = [
        rule("all", 0, Protocol::All, 0),
        rule("all6", 1, Protocol::All, 0),
    ];
    let outbound = [Outbound {
        name: "out",
        frontends: &[0],
        pool: 0,
        protocol: Protocol::All,
        allocated_outbound_ports: Some(64),
        idle_timeout: Duration::from_secs(240),
        tcp_reset: false,
    }];
    let spec = Spec {
        hasher: if kind.sip_hash {
            Hasher::SipHash13(SipHash13::new([7; 16]))
        } else {
            Hasher::default()
        },
        hash_seed: 1,
        underlay: Underlay {
            ipv4: Some(Ipv4Addr::new(172, 16, 0, 11)),
            ipv6: Some(Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x11)),
            udp_checksum: kind.udp_checksum,
            mtu: 1400,
            ..Underlay::default()
        },
        frontends: &frontends,
        rules: if kind.ha_ports { &all } else { &some },
        outbound: if kind.ha_ports { &[] } else { &outbound },
        pools: &[pool("v4", &ipv4), pool("v6", &ipv6)],
        ..Spec::default()
    };
    Snapshot::new(&spec, previous).unwrap()
}

#[derive(Clone, Debug, TypeGenerator)]
enum Operation {
    Burst(Vec<Sketch>),
    Wait(u32),
    Install(bool),
}

/// A packet that is right, or nearly, and what else may be unusual about it.
#[derive(Clone, Debug, TypeGenerator)]
struct Sketch {
    nearly: Nearly,
    /// True if the packet differs from the last one only in its flags, so that flows go on.
    again: bool,
    flags: u8,
    tags: u8,
    hop_limit: u8,
    outbound_port: Option<u8>,
    padding: u16,
}

impl Sketch {
    fn packet(&self, last: &[u8]) -> Vec<u8> {
        let mut packet = if self.again && !last.is_empty() {
            last.to_vec()
        } else {
            self.nearly.packet()
        };
        let is_ipv4 = packet.get(12..15) == Some(&[0x08, 0x00, 0x45]);
        if self.again {
            let flags = if is_ipv4 { 47 } else { 67 };
            if let Some(byte) = packet.get_mut(flags) {
                *byte = [0x02, 0x10, 0x18, 0x11, 0x04, self.flags][usize::from(self.flags) % 6];
            }
        }
        if is_ipv4 && packet.len() > 40 {
            if let Some(port) = self.outbound_port {
                packet[36..38].copy_from_slice(&[4, port]);
            }
            if self.hop_limit < 8 {
                packet[22] = self.hop_limit;
            }
            right_header(&mut packet);
        }
        if packet.len() > 14 {
            for _ in 0..self.tags.saturating_sub(252) {
                packet.splice(12..12, [0x81, 0, 0, 5]);
            }
        }
        if self.padding.is_multiple_of(8) {
            // Some are longer than any backend takes.
            let padding = usize::from(self.padding) % 1600;
            packet.resize(packet.len() + padding, 0);
            if is_ipv4 && packet.len() > 40 && packet[12..14] == [0x08, 0x00] {
                let ip_len = (packet.len() - 14) as u16;
                packet[16..18].copy_from_slice(&ip_len.to_be_bytes());
                right_header(&mut packet);
            }
        }
        packet
    }
}

/// Over time: bursts in which flows begin and go on, health changes, leaps of the clock.
#[test]
fn both_ways_of_a_mux_agree_on_sequences() {
    bolero::check!()
        .with_type::<(u8, u8, Vec<Operation>)>()
        .for_each(|(kind, flows, operations)| {
            let [healthy, unhealthy] = snapshots((*kind).into());
            let mut both = Both::new(|| {
                let (snapshot, key) = (healthy.clone(), Key::new([1, 2]));
                // None at all, some that are soon full, or enough.
                let flows = [0, 12, 400][usize::from(*flows) % 3];
                Mux::with_capacity(snapshot, flows, key).expect("its role")
            });
            let mut now = Instant::from_secs(1);
            let mut last = Vec::new();
            for operation in operations {
                match operation {
                    Operation::Burst(sketches) => {
                        let mut packets = Vec::new();
                        for sketch in sketches {
                            let packet = sketch.packet(&last);
                            last.clone_from(&packet);
                            let headroom = HEADROOM.min(sketch.nearly.headroom.into());
                            packets.push((packet, headroom));
                        }
                        both.process(now, &packets);
                    }
                    Operation::Wait(millis) => now = now + Duration::from_millis((*millis).into()),
                    Operation::Install(is_healthy) => {
                        let next = if *is_healthy { &healthy } else { &unhealthy };
                        both.short.install(next.clone()).expect("it follows");
                        both.long.install(next.clone()).expect("it follows");
                    }
                }
            }
        });
}

#[test]
fn both_ways_of_a_mux_agree_on_arbitrary_frames() {
    bolero::check!()
        .with_type::<(u8, bool, Vec<(Vec<u8>, u8)>)>()
        .for_each(|(kind, pinned, frames)| {
            let [snapshot, _] = snapshots((*kind).into());
            let flows = if *pinned { 64 } else { 0 };
            let mut both = Both::new(|| {
                let key = Key::new([1, 2]);
                Mux::with_capacity(snapshot.clone(), flows, key).expect("its role")
            });
            let packets: Vec<_> = frames
                .iter()
                .map(|(bytes, headroom)| (bytes.clone(), usize::from(*headroom)))
                .collect();
            both.process(Instant::from_secs(1), &packets);
        });
}

/// An ACK of one of many flows of one client network, over IPv4 or IPv6.
fn segment(flow: u16, ipv6: bool) -> Vec<u8> {
    let [high, low] = flow.to_be_bytes();
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 1]);
    let ip = if ipv6 {
        let client = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, flow);
        link.ipv6(client.octets(), VIP6.octets(), 64)
    } else {
        link.ipv4([10, 0, high, low], VIP, 64)
    };
    let mut packet = Vec::new();
    ip.tcp(1000, 80, 1, 1)
        .ack(1)
        .write(&mut packet, b"data")
        .unwrap();
    packet
}

/// In a full table an insert moves other flows, also those that a later frame of the same burst was found
/// to belong to.
#[test]
fn both_ways_of_a_mux_agree_where_new_flows_move_others() {
    const FLOWS: u64 = 600;
    let [snapshot, _] = snapshots(0);
    for ipv6 in [false, true] {
        let mut both = Both::new(|| {
            let (snapshot, key) = (snapshot.clone(), Key::new([1, 2]));
            Mux::with_capacity(snapshot, FLOWS as usize / 2, key).expect("its role")
        });
        let mut state = 1u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) % below
        };
        for round in 0..500 {
            // More flows by and by, so that the table fills up while its flows go on.
            let known = (FLOWS * (round + 20) / 400).min(FLOWS);
            let burst: Vec<_> = (0..64)
                .map(|_| (segment(random(known) as u16, ipv6), HEADROOM))
                .collect();
            both.process(Instant::from_secs(1 + round / 100), &burst);
        }
        let flows = both.short.stats().flows;
        assert!(flows.refused > 0, "the table was never full: {flows:?}");
    }
}

/// The captures of other projects, where they are there: each one's destinations are VIPs.
#[test]
fn both_ways_of_a_mux_agree_on_captures() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: {} is not there", folder.display());
        return;
    };
    let mut forwarded = 0;
    for entry in entries {
        let path = entry.unwrap().path();
        let packets = packets_of(&path);
        let Some(snapshot) = snapshot_for(&packets) else {
            continue;
        };
        let snapshot = Arc::new(snapshot);
        for flows in [0, 400] {
            let mut both = Both::new(|| {
                let (snapshot, key) = (snapshot.clone(), Key::new([1, 2]));
                Mux::with_capacity(snapshot, flows, key).expect("its role")
            });
            for (second, burst) in packets.chunks(100).enumerate() {
                let burst: Vec<_> = burst.iter().map(|p| (p.clone(), HEADROOM)).collect();
                both.process(Instant::from_secs(second as u64), &burst);
            }
            forwarded += both.short.stats().forwarded.packets;
        }
    }
    assert!(forwarded > 1000, "only {forwarded} packets were forwarded");
}

/// The packets of a capture, as far as it can be read; the first two thousand.
fn packets_of(path: &Path) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let Ok(mut reader) = Reader::new(File::open(path).unwrap()) else {
        return packets;
    };
    let mut buffer = vec![0; slb_io_pcap::FRAME_LEN];
    while packets.len() < 2000 {
        match reader.next(&mut buffer, None) {
            Ok(Next::Packet { len, .. }) => packets.push(buffer[..len].to_vec()),
            Ok(Next::End) | Err(_) => break,
            Ok(_) => {}
        }
    }
    packets
}

/// Rules for all ports of the destinations that packets have; `None` where no address can be a VIP.
fn snapshot_for(packets: &[Vec<u8>]) -> Option<Snapshot<'static>> {
    let mut addresses = BTreeSet::new();
    for packet in packets {
        let sliced = SlicedPacket::from_ethernet(packet);
        let address = match sliced.ok().and_then(|sliced| sliced.net) {
            Some(NetSlice::Ipv4(ip)) => IpAddr::from(ip.header().destination_addr()),
            Some(NetSlice::Ipv6(ip)) => IpAddr::from(ip.header().destination_addr()),
            _ => continue,
        };
        addresses.insert(address);
    }
    let backend = |ipv6: bool| Backend {
        name: if ipv6 { "vm6" } else { "vm" },
        address: if ipv6 {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into()
        } else {
            Ipv4Addr::new(100, 64, 1, 1).into()
        },
        host: Ipv4Addr::new(100, 64, 0, 1).into(),
        ..Backend::default()
    };
    let (ipv4, ipv6) = ([backend(false)], [backend(true)]);
    let pool = |name, backends| Pool {
        name,
        table_size: 251,
        backends,
        ..Pool::default()
    };
    let pools = [pool("v4", &ipv4), pool("v6", &ipv6)];
    // Addresses that cannot be VIPs are found by trying.
    let build = |addresses: &[IpAddr]| {
        let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let frontends: Vec<_> = addresses
            .iter()
            .zip(&names)
            .map(|(&address, name)| Frontend {
                name,
                address,
                icmp_echo: Echo::Answer,
            })
            .collect();
        let rules: Vec<_> = frontends
            .iter()
            .enumerate()
            .map(|(number, frontend)| Rule {
                name: frontend.name,
                frontend: number,
                pool: usize::from(frontend.address.is_ipv6()),
                protocol: Protocol::All,
                idle_timeout: Duration::from_secs(240),
                ..Rule::default()
            })
            .collect();
        let spec = Spec {
            underlay: Underlay {
                ipv4: Some(Ipv4Addr::new(100, 64, 0, 11)),
                mtu: 1600,
                ..Underlay::default()
            },
            frontends: &frontends,
            rules: &rules,
            pools: &pools,
            ..Spec::default()
        };
        Snapshot::new(&spec, None).ok()
    };
    let possible: Vec<_> = addresses
        .into_iter()
        .filter(|&address| build(&[address]).is_some())
        .take(64)
        .collect();
    if possible.is_empty() {
        return None;
    }
    build(&possible)
}
