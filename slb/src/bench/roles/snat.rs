//! New connections of a vm to one destination, with few and with most of the vm's ports in use.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant as Clock};

use slb_core::mem::{Arena, Line};
use slb_core::nat::{NatOptions, NatTables};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, Outbound, Pool, Protocol, Spec, Underlay, derived_mac,
};
use slb_core::wire::checksum::checksum;
use slb_core::wire::vxlan::Vni;
use slb_core::{BURST, Frame, HEADROOM, Host, Instant, Key, PortId};

use super::mux::VIP_IPV4;
use crate::Options;
use crate::error::Failure;
use crate::report::{Report, Sample};

const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const VM: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 11);
const VM_PORT: PortId = PortId(1);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Ports of the vm.
const PORTS: usize = 8192;
/// New connections of one round: 1 % of the ports.
const NEW: usize = PORTS / 100;
/// Half of them may be unanswered at a time.
const CONNECTIONS: usize = 4 * PORTS;
const FRAME_LEN: usize = 60;
const STRIDE: usize = 256;

pub(super) fn measure(
    options: &Options,
    report: &mut Report,
    memory: &mut [Line],
) -> Result<(), Failure> {
    report.group("SNAT, 8192 ports, one destination, for each new connection");
    for percent in [5, 50, 95] {
        let name = format!("SNAT, IPv4, SYN, {percent} % of the ports in use");
        if report.wants(&name) {
            report.show(&name, opening(options.time(), percent, memory)?, None);
        }
    }
    Ok(())
}

fn snapshot() -> Result<Snapshot<'static>, Failure> {
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            mtu: 1600,
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "out",
            address: VIP_IPV4.into(),
            icmp_echo: Echo::Answer,
        }],
        pools: &[Pool {
            name: "servers",
            vni: Vni::new(5001).unwrap_or_default(),
            table_size: 251,
            backends: &[Backend {
                name: "vm",
                address: VM.into(),
                mac: Some(derived_mac(VM.into())),
                host: HOST.into(),
                port: Some(VM_PORT),
                ..Backend::default()
            }],
            ..Pool::default()
        }],
        outbound: &[Outbound {
            name: "out",
            frontends: &[0],
            pool: 0,
            protocol: Protocol::All,
            allocated_outbound_ports: Some(PORTS as u32),
            idle_timeout: Duration::from_secs(240),
            tcp_reset: false,
        }],
        ..Spec::default()
    };
    Snapshot::new(&spec, None).map_err(Failure::failed)
}

/// SYNs of new connections, in rounds that each begin with so many of the ports in use.
fn opening(time: Duration, percent: usize, memory: &mut [Line]) -> Result<Sample, Failure> {
    const KEY: Key = Key::new([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344]);
    let snapshot = snapshot()?;
    let now = Instant::from_secs(1);
    let used = PORTS * percent / 100;
    let mut buffers = vec![0; STRIDE * (used + NEW)];
    let begin = Clock::now();
    let mut nanos = Vec::new();
    while nanos.len() < 3 || begin.elapsed() < time {
        let tables = NatTables::build(&snapshot, CONNECTIONS, KEY, &mut Arena::new(memory));
        let tables = tables.ok_or_else(Failure::memory)?;
        let host = Host::new(&snapshot, tables, NatOptions::default());
        let mut host = host.map_err(Failure::failed)?;
        let mut frames = syns(&mut buffers);
        let (before, new) = frames.split_at_mut(used);
        for burst in before.chunks_mut(BURST) {
            host.process(now, burst);
        }
        let start = Clock::now();
        for burst in new.chunks_mut(BURST) {
            host.process(now, burst);
        }
        nanos.push(start.elapsed().as_nanos() as f64 / NEW as f64);
        black_box(&mut frames);
        let stats = host.stats();
        if stats.forwarded != stats.received {
            return Err(Failure::failed(format!("not all was forwarded: {stats:?}")));
        }
    }
    Ok(Sample::of(nanos))
}

/// SYNs of the vm's, each from another port: even ones first, as Linux takes them.
fn syns(buffers: &mut [u8]) -> Vec<Frame<'_>> {
    let mut syn = [2, 0, 0, 0, 0, 1].to_vec();
    syn.extend(derived_mac(VM.into()).0);
    syn.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    syn.extend(VM.octets());
    syn.extend(SERVER.octets());
    syn.extend([0, 0, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0]);
    syn.extend([0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    syn.resize(FRAME_LEN, 0);
    let sum = checksum(&syn[14..34]).to_be_bytes();
    syn[24..26].copy_from_slice(&sum);
    let write = |(number, buffer)| {
        let buffer: &mut [u8] = buffer;
        let packet = &mut buffer[HEADROOM..][..FRAME_LEN];
        packet.copy_from_slice(&syn);
        let port = 32_768 + 2 * number as u32;
        let port = (port + u32::from(port > 0xffff)) as u16;
        packet[34..36].copy_from_slice(&port.to_be_bytes());
        let mut frame = Frame::new(buffer, HEADROOM, FRAME_LEN).unwrap_or(Frame::EMPTY);
        frame.set_port(VM_PORT);
        frame
    };
    buffers
        .chunks_exact_mut(STRIDE)
        .enumerate()
        .map(write)
        .collect()
}
