//! A mux, a host agent and a proxy in a program that has nothing: no std, no allocator, no libc. All
//! tables are static.
//!
//! A client's SYN goes through the mux to the host agent and its vm, and the answer back; another goes
//! through the proxy. A second host agent imports the connection and translates the vm's next segment. Then
//! the mux's backends drain and come back a thousand times, each time with a new snapshot in the memory of
//! the one before the last, and the client's connection stays where it is.
//! The program ends with status 0, or with another where something went wrong.

#![no_std]
#![no_main]

mod start;

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;

use slb_core::mem::{Arena, Line};
use slb_core::snapshot::{OwnedSnapshot, Snapshot};
use slb_core::spec::{Backend, BackendState, Echo, Frontend, FrontendPort, Pool, PortMode, Protocol, ProxyPorts, Rule, Spec, Underlay, derived_mac};
use slb_core::state::{Age, Cursor, RECORD_MOST};
use slb_core::wire::checksum::Sum;
use slb_core::wire::vxlan::Vni;
use slb_core::{Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Proxy, Verdict};

/// Memory of everything: snapshots, flows, connections, counters.
static mut MEMORY: [Line; 1 << 16] = [Line::EMPTY; 1 << 16];
static mut FRAME: [u8; 256] = [0; 256];

const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 10), 50_000);
const VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(20, 20, 20, 100), 80);
const VM: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 10, 1, 1), 8080);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const NOW: Instant = Instant::from_secs(1);
/// The key of the tables; a product would draw it at random.
const KEY: Key = Key::new([3, 4]);

fn run() -> Option<()> {
    let backends = [Backend {
        name: "vm1",
        address: VM.0.into(),
        host: HOST.into(),
        port: Some(PortId(1)),
        ..Backend::default()
    }];
    let rules = [Rule {
        name: "http",
        protocol: Protocol::Tcp,
        frontend_port: VIP.1,
        backend_port: VM.1,
        ..Rule::default()
    }];
    let vni = Vni::new(5001)?;
    let fronts = [Frontend {
        name: "web",
        address: IpAddr::V4(VIP.0),
        icmp_echo: Echo::Answer,
    }];
    let pools = [Pool {
        name: "servers",
        vni,
        table_size: 251,
        backends: &backends,
        ..Pool::default()
    }];
    let frontends = [FrontendPort {
        port: PortId(0),
        address: None,
    }];
    let ports = ProxyPorts {
        mode: PortMode::Single,
        frontends: &frontends,
        backend: PortId(1),
        source_rewrites: &[],
    };
    let spec = |own: Ipv4Addr, proxy| Spec {
        underlay: Underlay {
            ipv4: Some(own),
            ..Underlay::default()
        },
        frontends: &fronts,
        rules: &rules,
        pools: &pools,
        proxy,
        ..Spec::default()
    };
    // SAFETY: this is the only place that names the statics, and it runs once.
    let (memory, buffer) = unsafe { (&mut *(&raw mut MEMORY), &mut *(&raw mut FRAME)) };
    // Two pieces for the mux's snapshots, of which one is always spare; the rest for all else.
    let lines = Snapshot::lines_for(&spec(MUX, None), None);
    let (first, memory) = memory.split_at_mut_checked(lines)?;
    let (mut spare, memory) = memory.split_at_mut_checked(lines)?;
    let mut arena = Arena::new(memory);

    let of_mux = OwnedSnapshot::build(&spec(MUX, None), None, first).ok()?;
    let mut mux = Mux::build(of_mux, 1000, KEY, &mut arena).ok()?;
    let of_host = Snapshot::build(&spec(HOST, None), None, &mut arena).ok()?;
    let mut host = Host::build(&of_host, 1000, KEY, &mut arena).ok()?;
    let mut successor = Host::build(&of_host, 1000, KEY, &mut arena).ok()?;
    let of_proxy = Snapshot::build(&spec(MUX, Some(ports)), None, &mut arena).ok()?;
    let mut proxy = Proxy::build(&of_proxy, 1000, KEY, &mut arena).ok()?;

    // In VXLAN to the host, and to the vm as its own.
    let mut frames = [segment(buffer, CLIENT, VIP, SYN)?];
    mux.process(NOW, &mut frames);
    expect(&frames[0], PortId(0))?;
    host.process(NOW, &mut frames);
    expect(&frames[0], PortId(1))?;
    is_between(&frames[0], CLIENT, VM)?;
    // Its answer, straight to the client, as the VIP's.
    let mut frames = [segment(buffer, VM, CLIENT, SYN | ACK)?];
    frames[0]
        .bytes_mut()
        .get_mut(6..12)?
        .copy_from_slice(&derived_mac(VM.0.into()).0);
    frames[0].set_port(PortId(1));
    host.process(NOW, &mut frames);
    expect(&frames[0], PortId(0))?;
    is_between(&frames[0], VIP, CLIENT)?;
    // As records, a few at a time, to the host agent that goes on with the connections.
    let (mut records, mut next, mut taken) = ([0; 2 * RECORD_MOST], Some(Cursor::START), 0);
    while let Some(from) = next {
        let exported = host.export(from, &mut records);
        let records = records.get(..exported.len)?;
        let imported = successor.import(NOW, Age::exact(Duration::ZERO), records).ok()?;
        taken += imported.taken;
        next = exported.next;
    }
    (taken == 1).then_some(())?;
    let mut frames = [segment(buffer, VM, CLIENT, ACK)?];
    frames[0]
        .bytes_mut()
        .get_mut(6..12)?
        .copy_from_slice(&derived_mac(VM.0.into()).0);
    frames[0].set_port(PortId(1));
    successor.process(NOW, &mut frames);
    expect(&frames[0], PortId(0))?;
    is_between(&frames[0], VIP, CLIENT)?;
    // The same through the proxy.
    let mut frames = [segment(buffer, CLIENT, VIP, SYN)?];
    proxy.process(NOW, &mut frames);
    expect(&frames[0], PortId(1))?;
    is_between(&frames[0], CLIENT, VM)?;
    let mut frames = [segment(buffer, VM, CLIENT, SYN | ACK)?];
    frames[0].set_port(PortId(1));
    proxy.process(NOW, &mut frames);
    expect(&frames[0], PortId(0))?;
    is_between(&frames[0], VIP, CLIENT)?;

    for reload in 0..1000 {
        let state = match reload % 2 {
            0 => BackendState::Draining,
            _ => BackendState::Up,
        };
        let backends = backends.map(|backend| Backend { state, ..backend });
        let pools = pools.map(|pool| Pool {
            backends: &backends,
            ..pool
        });
        let spec = Spec {
            pools: &pools,
            ..spec(MUX, None)
        };
        let next = OwnedSnapshot::build(&spec, Some(mux.snapshot()), spare).ok()?;
        spare = mux.install(next).ok()?.into_lines();
        let mut frames = [segment(buffer, CLIENT, VIP, ACK)?];
        mux.process(NOW, &mut frames);
        expect(&frames[0], PortId(0))?;
    }
    (mux.snapshot().generation() == 1001).then_some(())
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// A frame with a TCP segment, whose own checksum is left to whoever would send it.
fn segment(
    buffer: &mut [u8],
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    flags: u8,
) -> Option<Frame<'_>> {
    let mut packet = [
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, // Ethernet
        0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // IPv4
        0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0, 0xff, 0xff, 0, 0, 0, 0, // TCP
    ];
    packet[26..30].copy_from_slice(&from.0.octets());
    packet[30..34].copy_from_slice(&to.0.octets());
    let checksum = Sum::ZERO.add_bytes(&packet[14..34]).checksum();
    packet[24..26].copy_from_slice(&checksum.to_be_bytes());
    packet[34..36].copy_from_slice(&from.1.to_be_bytes());
    packet[36..38].copy_from_slice(&to.1.to_be_bytes());
    packet[47] = flags;
    buffer
        .get_mut(HEADROOM..HEADROOM + packet.len())?
        .copy_from_slice(&packet);
    Frame::new(buffer, HEADROOM, packet.len())
}

fn expect(frame: &Frame<'_>, port: PortId) -> Option<()> {
    (frame.verdict() == Verdict::Forward(port)).then_some(())
}

fn is_between(frame: &Frame<'_>, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Option<()> {
    let ends = frame.bytes().get(26..38)?;
    let expected = [
        &from.0.octets()[..],
        &to.0.octets(),
        &from.1.to_be_bytes(),
        &to.1.to_be_bytes(),
    ];
    let mut ends = ends.iter();
    let is_right = expected
        .into_iter()
        .flatten()
        .all(|byte| ends.next() == Some(byte));
    is_right.then_some(())
}
