//! A vm moves to another host with its connections, and the old host passes on what still comes.

use crate::common::through;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use etherparse::{IpHeaders, IpSlice, PacketBuilder, PacketBuilderStep, TransportSlice};
use slb_core::nat::NatOptions;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Frontend, Outbound, Pool, Protocol, Rule, Spec, Terms, Underlay, derived_mac,
};
use slb_core::state::{Age, Cursor, Imported};
use slb_core::wire::vxlan::Vni;
use slb_core::{Burst, DropReason, Frame, Host, Instant, Key, Mux, PortId, Verdict};

type Shared = Arc<Snapshot<'static>>;

const FABRIC: PortId = PortId(0);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const KEY: Key = Key::new([7, 8]);
const OLD: usize = 0;
const NEW: usize = 1;
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// The host of each vm; `None`: the vm is not configured.
type Places = [Option<usize>; 2];

const BEFORE: Places = [Some(OLD), Some(OLD)];
const MOVED: Places = [Some(NEW), Some(OLD)];

fn host_address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 0, 101 + host as u8)
}

fn address(is_ipv6: bool, net: u16, number: u16) -> IpAddr {
    match is_ipv6 {
        true => Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, number).into(),
        false => Ipv4Addr::new(20, net as u8, 20, number as u8).into(),
    }
}

fn vm_address(is_ipv6: bool, vm: usize) -> IpAddr {
    match is_ipv6 {
        true => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, vm as u16 + 1).into(),
        false => Ipv4Addr::new(10, 10, 0, vm as u8 + 1).into(),
    }
}

/// The snapshot of a host, or of a mux where `node` is `None`.
fn snapshot(
    node: Option<usize>,
    is_ipv6: bool,
    places: Places,
    previous: Option<&Snapshot<'_>>,
) -> Shared {
    let backends: Vec<Backend<'_>> = (0..2)
        .filter_map(|vm| {
            let place = places[vm]?;
            Some(Backend {
                name: ["vm0", "vm1"][vm],
                address: vm_address(is_ipv6, vm),
                host: host_address(place).into(),
                instance: Some(vm as u32),
                port: (node == Some(place)).then_some(PortId(vm as u16 + 1)),
                ..Backend::default()
            })
        })
        .collect();
    let own = node.map_or(MUX, host_address);
    let rule = |name, protocol, port| Rule {
        name,
        protocol,
        frontend_port: port,
        backend_port: port,
        terms: Terms {
            tcp_reset: true,
            ..Terms::default()
        },
        ..Rule::default()
    };
    let frontend = |name, number| Frontend {
        name,
        address: address(is_ipv6, 1, number),
        ..Frontend::default()
    };
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(own),
            mac: derived_mac(own.into()),
            port: FABRIC,
            ..Underlay::default()
        },
        frontends: &[frontend("web", 100), frontend("out", 200)],
        rules: &[
            rule("http", Protocol::Tcp, 80),
            rule("dns", Protocol::Udp, 53),
        ],
        pools: &[Pool {
            name: "servers",
            vni: Vni::new(5001).unwrap(),
            table_size: 251,
            backends: &backends,
            ..Pool::default()
        }],
        outbound: &[Outbound {
            name: "out",
            frontends: &[1],
            pool: 0,
            protocol: Protocol::All,
            allocated_outbound_ports: Some(1024),
            idle_timeout: Duration::from_secs(240),
            tcp_reset: true,
        }],
        muxes: &[MUX.into()],
        ..Spec::default()
    };
    Arc::new(Snapshot::new(&spec, previous).unwrap())
}

struct Fleet {
    is_ipv6: bool,
    hosts: [Host<'static, Shared>; 2],
    mux: Mux<'static, Shared>,
    now: u64,
}

/// Where a packet is in the end.
#[derive(Debug, PartialEq)]
enum End {
    /// A host gave it to a vm, after so many hops from host to host.
    Vm(usize, usize, usize, Vec<u8>),
    Dropped(DropReason),
}

impl Fleet {
    fn new(is_ipv6: bool) -> Self {
        let host = |number| {
            let snapshot = snapshot(Some(number), is_ipv6, BEFORE, None);
            Host::with_capacity(snapshot, 1000, KEY).unwrap()
        };
        let mux = snapshot(None, is_ipv6, BEFORE, None);
        Self {
            is_ipv6,
            hosts: [host(OLD), host(NEW)],
            mux: Mux::with_capacity(mux, 1000, KEY).unwrap(),
            now: 1000,
        }
    }

    fn client(&self) -> IpAddr {
        address(self.is_ipv6, 9, 9)
    }

    fn install(&mut self, host: usize, places: Places) {
        let host_of = &mut self.hosts[host];
        let next = snapshot(Some(host), self.is_ipv6, places, Some(host_of.snapshot()));
        host_of.install(next).expect("it follows");
    }

    fn process(&mut self, node: Option<usize>, port: PortId, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let now = Instant::from_secs(self.now);
        through(port, bytes, |frames| match node {
            None => self.mux.process(now, frames),
            Some(host) => self.hosts[host].process(now, frames),
        })
    }

    /// Sends a client's packet through the mux.
    fn send(&mut self, packet: &[u8]) -> End {
        let (verdict, mut frame) = self.process(None, FABRIC, packet);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
        for hop in 0..9 {
            let of = |host: &usize| frame[30..34] == host_address(*host).octets();
            let host = (0..2).find(of).expect("a host's address");
            let (verdict, out) = self.process(Some(host), FABRIC, &frame);
            match verdict {
                Verdict::Forward(FABRIC) => frame = out,
                Verdict::Forward(PortId(vm)) => {
                    return End::Vm(host, usize::from(vm) - 1, hop, out);
                }
                Verdict::Drop(reason) => return End::Dropped(reason),
                other => panic!("{other:?}"),
            }
        }
        panic!("it goes on for ever")
    }

    fn link(from: IpAddr, to: IpAddr, source: [u8; 6]) -> PacketBuilderStep<IpHeaders> {
        let link = PacketBuilder::ethernet2(source, OTHER_MAC);
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
            _ => unreachable!("of one family"),
        }
    }

    /// A segment: its ends, its sequence number, and what it acknowledges. A SYN where it has no data.
    fn segment(
        (from, to): ((IpAddr, u16), (IpAddr, u16)),
        source: [u8; 6],
        (sequence, acknowledged): (u32, Option<u32>),
        data: &[u8],
    ) -> Vec<u8> {
        let mut tcp = Self::link(from.0, to.0, source).tcp(from.1, to.1, sequence, 60_000);
        if data.is_empty() {
            tcp = tcp.syn();
        }
        if let Some(acknowledged) = acknowledged {
            tcp = tcp.ack(acknowledged);
        }
        let mut packet = Vec::new();
        tcp.write(&mut packet, data).unwrap();
        packet
    }

    fn by_client(&self, port: u16, numbers: (u32, Option<u32>), data: &[u8]) -> Vec<u8> {
        let ends = ((self.client(), port), (address(self.is_ipv6, 1, 100), 80));
        Self::segment(ends, OTHER_MAC, numbers, data)
    }

    /// A vm sends a segment to the client, from the host given.
    fn by_vm(
        &mut self,
        (host, vm): (usize, usize),
        ports: (u16, u16),
        numbers: (u32, Option<u32>),
        data: &[u8],
    ) -> (Verdict, Vec<u8>) {
        let own = vm_address(self.is_ipv6, vm);
        let ends = ((own, ports.0), (self.client(), ports.1));
        let packet = Self::segment(ends, derived_mac(own).0, numbers, data);
        self.process(Some(host), PortId(vm as u16 + 1), &packet)
    }

    /// Opens connections until this vm has one; gives the client's port.
    fn connect_to(&mut self, vm: usize, first: u16) -> u16 {
        for port in first.. {
            let syn = self.by_client(port, (99, None), b"");
            let End::Vm(host, got, ..) = self.send(&syn) else {
                panic!("nobody takes the SYN")
            };
            let sent = self.by_vm((host, got), (80, port), (499, Some(100)), b"");
            assert_eq!(sent.0, Verdict::Forward(FABRIC));
            let more = self.by_client(port, (100, Some(500)), b"abcd");
            assert!(matches!(self.send(&more), End::Vm(..)));
            if got == vm {
                return port;
            }
        }
        unreachable!("there are vms")
    }

    /// Returns a vm's connections, as its host exports them.
    fn export(&self, host: usize, backend: &str) -> Option<(Vec<u8>, usize)> {
        let (mut all, mut records, mut next) = (Vec::new(), 0, Some(Cursor::START));
        let mut buffer = vec![0; 1 << 16];
        while let Some(from) = next {
            let exported = self.hosts[host].export_vm(backend, from, &mut buffer)?;
            all.extend(&buffer[..exported.len]);
            records += exported.records;
            next = exported.next;
        }
        Some((all, records))
    }

    fn import(&mut self, host: usize, records: &[u8]) -> Imported {
        let age = Age {
            elapsed: Duration::from_secs(1),
            is_stale: true,
        };
        let now = Instant::from_secs(self.now);
        self.hosts[host].import(now, age, records).expect("records")
    }

    /// Returns the number of packets that a host sends unprompted in some seconds.
    fn said(&mut self, host: usize, seconds: u64) -> usize {
        let mut count = 0;
        for _ in 0..10 * seconds {
            let mut memory = vec![[0u8; 256]; 8];
            let mut spare = Burst::new();
            for buffer in &mut memory {
                spare.push(Frame::new(buffer, 64, 0).unwrap()).unwrap();
            }
            let now = Instant::from_secs(self.now);
            self.hosts[host].advance(now, &mut spare);
            let is_sent = |frame: &&Frame<'_>| matches!(frame.verdict(), Verdict::Forward(_));
            count += spare.iter().filter(is_sent).count();
            self.now += 1;
        }
        count
    }
}

/// Source and destination of a packet, with their ports.
fn ends(frame: &[u8]) -> [(IpAddr, u16); 2] {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let ports = match sliced.transport.unwrap() {
        TransportSlice::Tcp(tcp) => [tcp.source_port(), tcp.destination_port()],
        TransportSlice::Udp(udp) => [udp.source_port(), udp.destination_port()],
        other => panic!("{other:?}"),
    };
    let ip = IpSlice::from_slice(&frame[14..]).unwrap();
    [
        (ip.source_addr(), ports[0]),
        (ip.destination_addr(), ports[1]),
    ]
}

#[test]
fn a_vm_takes_its_connections_along_and_the_old_host_passes_on_what_comes() {
    for is_ipv6 in [false, true] {
        let mut fleet = Fleet::new(is_ipv6);
        let (client, vip) = (fleet.client(), address(is_ipv6, 1, 100));
        let inbound = fleet.connect_to(0, 4000);
        let stays = fleet.connect_to(1, 5000);
        // It calls out as well, and has a datagram's flow.
        let called = fleet.by_vm((OLD, 0), (7777, 443), (1, None), b"");
        assert_eq!(called.0, Verdict::Forward(FABRIC));
        let [(out, snat_port), _] = ends(&called.1);
        assert_eq!(out, address(is_ipv6, 1, 200));
        let answer = |numbers, data: &[u8]| {
            let ends = ((client, 443), (out, snat_port));
            Fleet::segment(ends, OTHER_MAC, numbers, data)
        };
        let accepted = answer((10, Some(2)), b"");
        assert!(matches!(fleet.send(&accepted), End::Vm(OLD, 0, 0, _)));
        let sent = fleet.by_vm((OLD, 0), (7777, 443), (2, Some(11)), b"x");
        assert_eq!(sent.0, Verdict::Forward(FABRIC));

        assert_eq!(fleet.export(NEW, "servers/vm0"), None, "it is not there");
        assert_eq!(fleet.export(OLD, "servers/vm7"), None);
        let count = |fleet: &Fleet| {
            let table = fleet.hosts[OLD].connections().stats();
            table.live as usize
        };
        let (records, all) = (fleet.export(OLD, "servers/vm0").unwrap(), count(&fleet));
        let others = fleet.export(OLD, "servers/vm1").unwrap().1;
        assert_eq!(records.1 + others, all);
        assert!(records.1 >= 2 && others >= 1);

        // The new host first, then its connections, then the old host. The mux knows nothing.
        fleet.install(NEW, MOVED);
        let imported = fleet.import(NEW, &records.0);
        assert_eq!(imported.taken as usize, records.1, "{imported:?}");
        fleet.install(OLD, MOVED);

        let more = fleet.by_client(inbound, (104, Some(500)), b"more");
        let End::Vm(NEW, 0, 1, frame) = fleet.send(&more) else {
            panic!("the connection is lost")
        };
        assert_eq!(
            ends(&frame),
            [(client, inbound), (vm_address(is_ipv6, 0), 80)]
        );
        let sent = fleet.by_vm((NEW, 0), (80, inbound), (500, Some(108)), b"page");
        assert_eq!(sent.0, Verdict::Forward(FABRIC));
        assert_eq!(ends(&sent.1), [(vip, 80), (client, inbound)]);
        let answered = answer((11, Some(3)), b"answer");
        let End::Vm(NEW, 0, 1, frame) = fleet.send(&answered) else {
            panic!("the connection to the outside is lost")
        };
        let vm = (vm_address(is_ipv6, 0), 7777);
        assert_eq!(ends(&frame), [(client, 443), vm]);
        let sent = fleet.by_vm((NEW, 0), (7777, 443), (3, Some(17)), b"y");
        assert_eq!(ends(&sent.1), [(out, snat_port), (client, 443)]);
        // New ones come by the detour, too, and those of the other vm do not.
        let new = fleet.connect_to(0, 6000);
        assert_ne!(new, inbound);
        let more = fleet.by_client(stays, (104, Some(500)), b"more");
        assert!(matches!(fleet.send(&more), End::Vm(OLD, 1, 0, _)));
        assert!(fleet.hosts[OLD].stats().passed_on >= 3);

        // The old host resets nothing of the vm that is gone.
        assert_eq!(fleet.said(OLD, 20), 0);
        let kept = fleet.export(OLD, "servers/vm1").unwrap().1;
        assert_eq!(count(&fleet), kept);
        assert_eq!(fleet.export(OLD, "servers/vm0"), None);

        let next = snapshot(None, is_ipv6, MOVED, Some(fleet.mux.snapshot()));
        fleet.mux.install(next).expect("it follows");
        let more = fleet.by_client(inbound, (108, Some(504)), b"more");
        assert!(matches!(fleet.send(&more), End::Vm(NEW, 0, 0, _)));
    }
}

#[test]
fn what_is_removed_and_not_moved_is_told() {
    let mut fleet = Fleet::new(false);
    fleet.connect_to(0, 4000);
    fleet.install(OLD, [None, Some(OLD)]);
    assert!(fleet.said(OLD, 20) > 0, "a RST for the client");
}

#[test]
fn packets_of_a_vm_that_never_was_here_or_above_the_limit_are_dropped() {
    let mut fleet = Fleet::new(false);
    let port = fleet.connect_to(0, 4000);
    let more = fleet.by_client(port, (104, Some(500)), b"more");
    // The mux says that the vm is at the old host, which has begun again and never had it.
    let fresh = snapshot(Some(OLD), false, MOVED, None);
    fleet.hosts[OLD] = Host::with_capacity(fresh, 1000, KEY).unwrap();
    assert_eq!(fleet.send(&more), End::Dropped(DropReason::UnknownVm));

    for limit in [0, 3] {
        let mut fleet = Fleet::new(false);
        let port = fleet.connect_to(0, 4000);
        let options = NatOptions {
            passes_per_second: limit,
            passes_at_once: limit,
            ..NatOptions::default()
        };
        fleet.hosts[OLD].set_options(options);
        let records = fleet.export(OLD, "servers/vm0").unwrap().0;
        fleet.install(NEW, MOVED);
        fleet.import(NEW, &records);
        fleet.install(OLD, MOVED);
        let more = fleet.by_client(port, (104, Some(500)), b"more");
        for _ in 0..limit {
            assert!(matches!(fleet.send(&more), End::Vm(NEW, 0, 1, _)));
        }
        let expected = match limit {
            0 => DropReason::UnknownVm,
            _ => DropReason::Astray,
        };
        assert_eq!(fleet.send(&more), End::Dropped(expected));
    }
}

#[test]
fn hosts_that_name_each_other_send_no_packet_in_a_circle() {
    let mut fleet = Fleet::new(false);
    let port = fleet.connect_to(0, 4000);
    fleet.install(NEW, MOVED);
    fleet.install(OLD, MOVED);
    // Back again, as the new host has it; the old one has not heard of that.
    fleet.install(NEW, BEFORE);
    let more = fleet.by_client(port, (104, Some(500)), b"more");
    assert_eq!(fleet.send(&more), End::Dropped(DropReason::Astray));
    // With the next configuration the vm is here again, and no packet leaves for elsewhere.
    fleet.install(OLD, BEFORE);
    let again = fleet.connect_to(0, 5000);
    let more = fleet.by_client(again, (104, Some(500)), b"more");
    assert!(matches!(fleet.send(&more), End::Vm(OLD, 0, 0, _)));
}

/// The way to another host is remembered for as long as the vm is configured there, whatever else changes.
#[test]
fn the_way_is_known_through_further_configurations_and_a_second_move() {
    let mut fleet = Fleet::new(true);
    let port = fleet.connect_to(0, 4000);
    let records = fleet.export(OLD, "servers/vm0").unwrap().0;
    fleet.install(NEW, MOVED);
    fleet.import(NEW, &records);
    for _ in 0..5 {
        fleet.install(OLD, MOVED);
        let more = fleet.by_client(port, (104, Some(500)), b"more");
        assert!(matches!(fleet.send(&more), End::Vm(NEW, 0, 1, _)));
    }
    fleet.install(OLD, [None, Some(OLD)]);
    let more = fleet.by_client(port, (104, Some(500)), b"more");
    assert_eq!(fleet.send(&more), End::Dropped(DropReason::UnknownVm));
}

/// The last vm of a host moves away: that host is not configured any more, and passes on all the same.
#[test]
fn a_host_without_vms_passes_on_to_the_hosts_that_they_moved_to() {
    let places = |vm0, vm1| [vm0, vm1];
    let mut fleet = Fleet::new(false);
    let port = fleet.connect_to(0, 4000);
    fleet.install(OLD, places(Some(OLD), None));
    fleet.install(NEW, places(Some(OLD), None));
    let records = fleet.export(OLD, "servers/vm0").unwrap().0;
    let alone = places(Some(NEW), None);
    fleet.install(NEW, alone);
    fleet.import(NEW, &records);
    fleet.install(OLD, alone);
    for _ in 0..3 {
        let more = fleet.by_client(port, (104, Some(500)), b"more");
        assert!(matches!(fleet.send(&more), End::Vm(NEW, 0, 1, _)));
        // Whatever changes later.
        fleet.install(NEW, alone);
    }
    // A host that never saw the move takes nothing from strangers.
    let fresh = snapshot(Some(NEW), false, alone, None);
    fleet.hosts[NEW] = Host::with_capacity(fresh, 1000, KEY).unwrap();
    let more = fleet.by_client(port, (104, Some(500)), b"more");
    assert_eq!(fleet.send(&more), End::Dropped(DropReason::UnknownPeer));
}
