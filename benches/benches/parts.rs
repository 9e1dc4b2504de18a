//! The parts of a packet's way, each beside a peer: `cargo bench -p slb-benches`, or with a name
//! behind `--` for some.
//!
//! Each iteration is of [`COUNT`] packets or flows: divan shows items per second.

use std::hint::black_box;

use divan::Bencher;
use divan::counter::ItemsCount;
use slb_core::flow::table::{Inserted, Probe, Table};
use slb_core::flow::{Bucket, FlowKey, FlowProtocol, FlowState, FlowTable, Ticks};
use slb_core::hash::{Hasher, MICROSOFT_KEY, SipHash13, Toeplitz, TupleHasher, Xxh3};
use slb_core::maglev::{self, Member, Turn};
use slb_core::mem::Mem;
use slb_core::packet::Packet;

const COUNT: usize = 1024;

fn main() {
    divan::main();
}

/// TCP ACKs of 60 bytes.
fn frames() -> Vec<Vec<u8>> {
    (0..COUNT)
        .map(|i| {
            let mut frame = Vec::new();
            let [high, low] = (i as u16).to_be_bytes();
            etherparse::PacketBuilder::ethernet2([2; 6], [3; 6])
                .ipv4([10, 0, high, low], [20, 20, 20, 100], 64)
                .tcp(1024 + i as u16, 80, 1, 1)
                .ack(1)
                .write(&mut frame, b"")
                .unwrap();
            frame.resize(60, 0);
            frame
        })
        .collect()
}

mod parse {
    use super::*;

    fn bench(bencher: Bencher<'_, '_>, parse: impl Fn(&[u8]) -> u32 + Sync) {
        let frames = frames();
        bencher.counter(ItemsCount::new(COUNT)).bench(|| {
            frames
                .iter()
                .map(|frame| parse(black_box(frame)))
                .fold(0, u32::wrapping_add)
        });
    }

    #[divan::bench]
    fn slb(bencher: Bencher<'_, '_>) {
        bench(bencher, |frame| match Packet::parse(frame) {
            slb_core::packet::Parsed::Ip(packet) => packet.ip_len() as u32,
            _ => 0,
        });
    }

    #[divan::bench]
    fn etherparse(bencher: Bencher<'_, '_>) {
        bench(bencher, |frame| {
            let packet = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
            match packet.transport {
                Some(etherparse::TransportSlice::Tcp(tcp)) => tcp.source_port().into(),
                _ => 0,
            }
        });
    }

    #[divan::bench]
    fn smoltcp(bencher: Bencher<'_, '_>) {
        use smoltcp::wire::{EthernetFrame, Ipv4Packet, TcpPacket};
        bench(bencher, |frame| {
            let ethernet = EthernetFrame::new_checked(frame).unwrap();
            let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
            TcpPacket::new_checked(ip.payload())
                .unwrap()
                .src_port()
                .into()
        });
    }
}

mod hash {
    use super::*;

    fn bench(bencher: Bencher<'_, '_>, hasher: &Hasher) {
        let messages: Vec<[u64; 2]> = (0..COUNT as u64)
            .map(|i| [i << 32 | 0x0a00_0001, 6 << 32 | i])
            .collect();
        bencher.counter(ItemsCount::new(COUNT)).bench(|| {
            messages
                .iter()
                .map(|message| hasher.ipv4(black_box(message)))
                .fold(0, u64::wrapping_add)
        });
    }

    #[divan::bench]
    fn xxh3(bencher: Bencher<'_, '_>) {
        bench(bencher, &Hasher::Xxh3(Xxh3::new(1)));
    }

    #[divan::bench]
    fn siphash_1_3(bencher: Bencher<'_, '_>) {
        bench(bencher, &Hasher::SipHash13(SipHash13::new([7; 16])));
    }

    #[divan::bench]
    fn toeplitz(bencher: Bencher<'_, '_>) {
        bench(bencher, &Hasher::Toeplitz(Toeplitz::new(&MICROSOFT_KEY)));
    }
}

/// Random hits in a table of so many flows.
mod lookup {
    use super::*;

    const FLOWS: [u32; 2] = [1 << 16, 1 << 20];

    fn key(flow: u32) -> FlowKey<u64> {
        let addresses = u64::from(0x0a00_0000 + (flow >> 4)).swap_bytes() >> 32 | 0x6414_1414 << 32;
        FlowKey {
            addresses,
            ports: flow & 15 | 0x5000_0000,
            protocol: FlowProtocol::Tcp,
        }
    }

    /// Flows to look up, in no order.
    fn sequence(flows: u32) -> impl Iterator<Item = u32> {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        std::iter::repeat_with(move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 32) as u32 % flows
        })
    }

    #[divan::bench(args = FLOWS)]
    fn slb_burst_of_64(bencher: Bencher<'_, '_>, flows: u32) {
        let buckets = FlowTable::buckets_for(flows as usize);
        let mut table = Table::new(Mem::from(vec![Bucket::EMPTY; buckets]), [1, 2]);
        for flow in 0..flows {
            let key = key(flow);
            let hash = table.hash(&key);
            let inserted = table.insert(hash, &key, flow, FlowState::Established, Ticks::MAX);
            assert_eq!(inserted, Inserted::Pinned);
        }
        let mut flows = sequence(flows);
        bencher
            .counter(ItemsCount::new(COUNT))
            .with_inputs(|| flows.by_ref().take(COUNT).map(key).collect::<Vec<_>>())
            .bench_local_values(|keys| {
                let mut sum = 0u32;
                for burst in keys.chunks(64) {
                    let mut hashes = [0; 64];
                    for (hash, key) in hashes.iter_mut().zip(burst) {
                        *hash = table.hash(key);
                        table.prefetch(*hash);
                    }
                    for (&hash, key) in hashes.iter().zip(burst) {
                        let found = match table.probe(hash, key) {
                            Probe::Found(found) => Some(found),
                            Probe::Displaced => table.probe_secondary(hash, key),
                            _ => None,
                        };
                        sum = sum.wrapping_add(found.map_or(0, |found| table.value(found)));
                    }
                }
                sum
            });
    }

    #[divan::bench(args = FLOWS)]
    fn hashbrown(bencher: Bencher<'_, '_>, flows: u32) {
        let mut table = hashbrown::HashMap::with_capacity(flows as usize);
        for flow in 0..flows {
            let FlowKey {
                addresses, ports, ..
            } = key(flow);
            table.insert((addresses, ports, 6u8), flow);
        }
        let mut flows = sequence(flows);
        bencher
            .counter(ItemsCount::new(COUNT))
            .with_inputs(|| flows.by_ref().take(COUNT).map(key).collect::<Vec<_>>())
            .bench_local_values(|keys| {
                keys.iter()
                    .map(|key| {
                        table
                            .get(&(key.addresses, key.ports, 6u8))
                            .copied()
                            .unwrap_or(0)
                    })
                    .fold(0, u32::wrapping_add)
            });
    }
}

#[divan::bench(args = [10, 100, 1000, 10_000])]
fn maglev_build(bencher: Bencher<'_, '_>, backends: usize) {
    let names: Vec<String> = (0..backends).map(|i| format!("backend-{i}")).collect();
    let members: Vec<Member<'_>> = names
        .iter()
        .map(|name| Member { name, weight: 1 })
        .collect();
    let mut table = vec![0; maglev::DEFAULT_SIZE as usize];
    let mut turns = vec![Turn::default(); backends];
    bencher.bench_local(|| maglev::build(&members, 1, &mut table, &mut turns));
}
