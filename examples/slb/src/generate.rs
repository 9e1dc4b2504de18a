//! `slb generate`: captures to try things with, made by etherparse, the same for the same options.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::BufWriter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader};
use slb_core::Instant;
use slb_io_pcap::{Format, Writer};

use crate::Failure;
use crate::cli::GenerateOptions;
use crate::output::{Content, create};

/// When the first session begins: an arbitrary but recent moment.
const START: u64 = 1_750_000_000_000_000_000;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const MUX_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(crate) fn run(options: &GenerateOptions) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("{}: {error}", options.out.display()))
    };
    let file = create(&[], ("--out", &options.out), Content::Capture)?;
    let mut writer = Writer::new(BufWriter::new(file), Format::of(&options.out))
        .map_err(|error| failed(&error))?;
    let packets = packets(options);
    for (timestamp, packet) in &packets {
        writer
            .write(Instant::from_nanos(*timestamp), packet)
            .map_err(|error| failed(&error))?;
    }
    writer.finish().map_err(|error| failed(&error))?;
    println!("{}: {} packets", options.out.display(), packets.len());
    Ok(())
}

/// All packets, by time.
fn packets(options: &GenerateOptions) -> Vec<(u64, Vec<u8>)> {
    let mut random = Random(options.seed);
    let mut order = BinaryHeap::new();
    let mut packets = Vec::new();
    let kinds = options.tcp.iter().map(|&vip| (vip, true));
    let kinds: Vec<_> = kinds
        .chain(options.udp.iter().map(|&vip| (vip, false)))
        .collect();
    for session in 0..options.sessions {
        for &(vip, is_tcp) in &kinds {
            let client = client(vip.ip(), random.below(options.clients));
            let port = 1024 + random.below(64_000) as u16;
            let client = SocketAddr::new(client, port);
            let mut at =
                START + u64::from(session) * 2_000_000 + u64::from(random.below(2_000_000));
            let session = Session {
                client,
                vip,
                options,
            };
            let all = if is_tcp {
                session.tcp(&mut random)
            } else {
                session.udp(&mut random)
            };
            for packet in all {
                order.push(Reverse((at, packets.len())));
                packets.push(packet);
                at += 200_000 + u64::from(random.below(5_000_000));
            }
        }
    }
    let mut sorted = Vec::with_capacity(packets.len());
    while let Some(Reverse((at, index))) = order.pop() {
        sorted.push((at, std::mem::take(&mut packets[index])));
    }
    sorted
}

/// The address of a client: from a network for documentation or for benchmarks.
fn client(vip: IpAddr, number: u32) -> IpAddr {
    match vip {
        IpAddr::V4(_) => Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + number).into(),
        IpAddr::V6(_) => {
            let [high, low] = [(number >> 16) as u16, number as u16];
            Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, high, low.wrapping_add(1)).into()
        }
    }
}

struct Session<'a> {
    client: SocketAddr,
    vip: SocketAddr,
    options: &'a GenerateOptions,
}

impl Session<'_> {
    /// Handshake, data, teardown.
    fn tcp(&self, random: &mut Random) -> Vec<Vec<u8>> {
        let (mut ours, mut theirs) = (random.next() as u32, random.next() as u32);
        let mut packets = Vec::new();
        let size = u32::from(self.options.size);
        let reply = |packets: &mut Vec<Vec<u8>>, packet: Vec<u8>| {
            if self.options.replies {
                packets.push(packet);
            }
        };
        packets.push(self.segment(true, ours, PacketBuilderStep::syn, &[]));
        ours = ours.wrapping_add(1);
        reply(
            &mut packets,
            self.segment(false, theirs, |tcp| tcp.syn().ack(ours), &[]),
        );
        theirs = theirs.wrapping_add(1);
        packets.push(self.segment(true, ours, |tcp| tcp.ack(theirs), &[]));
        for _ in 0..self.options.packets {
            let data = random.bytes(self.options.size);
            packets.push(self.segment(true, ours, |tcp| tcp.psh().ack(theirs), &data));
            ours = ours.wrapping_add(size);
            let answer = random.bytes(self.options.size);
            reply(
                &mut packets,
                self.segment(false, theirs, |tcp| tcp.psh().ack(ours), &answer),
            );
            theirs = theirs.wrapping_add(size);
        }
        packets.push(self.segment(true, ours, |tcp| tcp.fin().ack(theirs), &[]));
        ours = ours.wrapping_add(1);
        reply(
            &mut packets,
            self.segment(false, theirs, |tcp| tcp.fin().ack(ours), &[]),
        );
        theirs = theirs.wrapping_add(1);
        packets.push(self.segment(true, ours, |tcp| tcp.ack(theirs), &[]));
        packets
    }

    fn udp(&self, random: &mut Random) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for _ in 0..self.options.packets {
            packets.push(self.datagram(true, &random.bytes(self.options.size)));
            if self.options.replies {
                packets.push(self.datagram(false, &random.bytes(self.options.size)));
            }
        }
        packets
    }

    fn ends(&self, from_client: bool) -> (SocketAddr, SocketAddr) {
        if from_client {
            (self.client, self.vip)
        } else {
            (self.vip, self.client)
        }
    }

    fn ip(&self, from_client: bool) -> PacketBuilderStep<etherparse::IpHeaders> {
        let (from, to) = self.ends(from_client);
        let link = if from_client {
            PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        } else {
            PacketBuilder::ethernet2(MUX_MAC, CLIENT_MAC)
        };
        match (from.ip(), to.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 64),
            (a, b) => {
                let octets = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                link.ipv6(octets(a), octets(b), 64)
            }
        }
    }

    fn segment(
        &self,
        from_client: bool,
        sequence: u32,
        flags: impl Fn(PacketBuilderStep<TcpHeader>) -> PacketBuilderStep<TcpHeader>,
        data: &[u8],
    ) -> Vec<u8> {
        let (from, to) = self.ends(from_client);
        let tcp = self
            .ip(from_client)
            .tcp(from.port(), to.port(), sequence, 65_535);
        let mut packet = Vec::new();
        match flags(tcp).write(&mut packet, data) {
            Ok(()) => packet,
            Err(error) => unreachable!("a segment of at most 1400 bytes fits: {error}"),
        }
    }

    fn datagram(&self, from_client: bool, data: &[u8]) -> Vec<u8> {
        let (from, to) = self.ends(from_client);
        let mut packet = Vec::new();
        match self
            .ip(from_client)
            .udp(from.port(), to.port())
            .write(&mut packet, data)
        {
            Ok(()) => packet,
            Err(error) => unreachable!("a datagram of at most 1400 bytes fits: {error}"),
        }
    }
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn below(&mut self, most: u32) -> u32 {
        (((self.next() >> 32) * u64::from(most)) >> 32) as u32
    }

    fn bytes(&mut self, len: u16) -> Vec<u8> {
        (0..len).map(|_| b'a' + self.below(26) as u8).collect()
    }
}
