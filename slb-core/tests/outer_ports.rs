//! Outer source ports of a host agent's VXLAN: they spread by the five-tuple, whatever part of it the
//! rule's distribution mode counts.

use crate::common::through;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice};
use slb_core::hash::Distribution;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Answers, Backend, Echo, Frontend, Pool, Protocol, Rule, Spec, Terms, Underlay, derived_mac,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{Host, Instant, Key, PortId, Verdict};

const NOW: Instant = Instant::from_secs(1);
const FABRIC: PortId = PortId(0);
const VM: PortId = PortId(1);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];

type Dut = Host<'static, Box<Snapshot<'static>>>;

/// Addresses of the client, the VIP and the vm.
fn addresses(is_ipv6: bool) -> [IpAddr; 3] {
    if is_ipv6 {
        let address = |net, host| Ipv6Addr::new(net, 0xdb8, 0, 0, 0, 0, 0, host).into();
        [
            address(0x2001, 1),
            address(0x2001, 0x100),
            address(0xfd00, 1),
        ]
    } else {
        [[198, 51, 100, 7], [20, 20, 20, 100], [10, 10, 0, 1]].map(IpAddr::from)
    }
}

/// A host agent whose vm answers through the mux.
fn host(is_ipv6: bool, distribution: Distribution) -> Dut {
    let [_, vip, vm] = addresses(is_ipv6);
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            port: FABRIC,
            mtu: 1600,
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: vip,
            icmp_echo: Echo::Ignore,
        }],
        rules: &[Rule {
            name: "http",
            protocol: Protocol::Tcp,
            frontend_port: 80,
            backend_port: 8080,
            distribution,
            terms: Terms {
                answers: Answers::ThroughMux,
                ..Terms::default()
            },
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "servers",
            vni: Vni::new(5001).unwrap(),
            table_size: 251,
            backends: &[Backend {
                name: "vm",
                address: vm,
                host: HOST.into(),
                port: Some(VM),
                ..Backend::default()
            }],
            ..Pool::default()
        }],
        muxes: &[MUX.into()],
        ..Spec::default()
    };
    let snapshot = Box::new(Snapshot::new(&spec, None).unwrap());
    Host::with_capacity(snapshot, 1000, Key::new([5, 6])).expect("its role")
}

fn ip(
    link: PacketBuilderStep<etherparse::Ethernet2Header>,
    from: IpAddr,
    to: IpAddr,
) -> PacketBuilderStep<etherparse::IpHeaders> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("of one family"),
    }
}

fn give(host: &mut Dut, port: PortId, frame: &[u8]) -> (Verdict, Vec<u8>) {
    through(port, frame, |frames| {
        host.process(NOW, frames);
    })
}

/// The outer source port of a VXLAN frame for the mux.
fn outer_port(frame: &[u8]) -> u16 {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::NetSlice::Ipv4(outer)) = &sliced.net else {
        panic!("{frame:02x?}")
    };
    assert_eq!(outer.header().destination_addr(), MUX);
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else {
        panic!("{frame:02x?}")
    };
    assert_eq!(udp.destination_port(), 4789);
    udp.source_port()
}

#[test]
fn a_host_s_answers_through_a_mux_spread_over_outer_source_ports_in_every_mode() {
    const CONNECTIONS: u16 = 500;
    for is_ipv6 in [false, true] {
        for mode in [
            Distribution::FiveTuple,
            Distribution::SourceIp,
            Distribution::SourceIpProtocol,
        ] {
            let mut host = host(is_ipv6, mode);
            let [client, vip, vm] = addresses(is_ipv6);
            let mac = derived_mac(vm).0;
            let mut ports = HashMap::new();
            for port in 2000..2000 + CONNECTIONS {
                let mut syn = Vec::new();
                ip(PacketBuilder::ethernet2(MAC, mac), client, vip)
                    .tcp(port, 80, 1, 65_535)
                    .syn()
                    .write(&mut syn, &[])
                    .unwrap();
                let mut payload = vec![8, 0, 0, 0, 0, 0x13, 0x89, 0];
                payload.extend(syn);
                let mut carried = Vec::new();
                PacketBuilder::ethernet2(ROUTER, MAC)
                    .ipv4(MUX.octets(), HOST.octets(), 64)
                    .udp(50_000, 4789)
                    .write(&mut carried, &payload)
                    .unwrap();
                let (verdict, _) = give(&mut host, FABRIC, &carried);
                assert_eq!(verdict, Verdict::Forward(VM));
                for len in [0, 100] {
                    let mut answer = Vec::new();
                    let step =
                        ip(PacketBuilder::ethernet2(mac, MAC), vm, client).tcp(8080, port, 9, 1000);
                    let step = if len == 0 { step.syn() } else { step };
                    step.ack(2).write(&mut answer, &vec![7; len]).unwrap();
                    let (verdict, sent) = give(&mut host, VM, &answer);
                    assert_eq!(verdict, Verdict::Forward(FABRIC));
                    let outer = outer_port(&sent);
                    // A flow keeps its port, so that the fabric keeps its order.
                    assert_eq!(*ports.entry(port).or_insert(outer), outer);
                }
            }
            let outer: HashSet<u16> = ports.into_values().collect();
            assert!(
                outer.len() > 470,
                "{} outer ports for {CONNECTIONS} connections, {mode:?}",
                outer.len()
            );
        }
    }
}
