//! Packets with addresses and headers that are not to be trusted, in every role: dropped where they
//! are for a VIP or of a connection, untouched where they are somebody else's.

use crate::common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use common::*;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, FrontendPort, Outbound, Pool, PortMode, Protocol, ProxyPorts, Rule,
    Spec, Underlay, derived_mac,
};
use slb_core::wire::ethernet::MacAddress;
use slb_core::wire::vxlan::Vni;
use slb_core::{DropReason, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Proxy, Verdict};

const NOW: Instant = Instant::from_secs(10);
const KEY: Key = Key::new([5, 6]);
const FABRIC: PortId = PortId(0);
const VM: PortId = PortId(1);
const FRONTEND: PortId = PortId(4);
const BACKEND: PortId = PortId(5);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x101);
const DIP: [u8; 4] = [10, 10, 0, 1];
const NEIGHBOUR: [u8; 4] = [10, 10, 0, 2];
const FAR: [u8; 4] = [9, 9, 9, 9];
const VNI: u32 = 5001;

fn dip6() -> [u8; 16] {
    Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1).octets()
}

/// Everything in one configuration: a vm that serves both VIPs and calls out from them, and its
/// neighbour on another host.
fn snapshot(underlay: Underlay, proxy: bool) -> Arc<Snapshot<'static>> {
    let vm = |address: IpAddr| Backend {
        name: "vm",
        address,
        host: HOST.into(),
        mac: Some(derived_mac(DIP.into())),
        port: (!proxy).then_some(VM),
        ..Backend::default()
    };
    let neighbour = Backend {
        name: "neighbour",
        address: NEIGHBOUR.into(),
        host: Ipv4Addr::new(172, 16, 0, 102).into(),
        weight: 0,
        ..Backend::default()
    };
    let (ipv4, ipv6) = ([vm(DIP.into()), neighbour], [vm(dip6().into())]);
    let pool = |name, backends| Pool {
        name,
        vni: Vni::new(VNI).unwrap(),
        table_size: 251,
        backends,
        ..Pool::default()
    };
    let frontend = |name, address| Frontend {
        name,
        address,
        icmp_echo: Echo::Answer,
    };
    let rule = |name, frontend, protocol, frontend_port| Rule {
        name,
        frontend,
        pool: frontend,
        protocol,
        frontend_port,
        backend_port: frontend_port,
        ..Rule::default()
    };
    let ports = [FrontendPort {
        port: FRONTEND,
        address: None,
    }];
    let outbound = [Outbound {
        name: "out",
        frontends: &[0],
        pool: 0,
        protocol: Protocol::All,
        allocated_outbound_ports: Some(64),
        idle_timeout: std::time::Duration::from_secs(240),
        tcp_reset: false,
    }];
    let spec = Spec {
        underlay,
        frontends: &[frontend("web", VIP.into()), frontend("web6", vip6().into())],
        rules: &[
            rule("http", 0, Protocol::Tcp, 80),
            rule("dns", 0, Protocol::Udp, 53),
            rule("http6", 1, Protocol::Tcp, 80),
            rule("dns6", 1, Protocol::Udp, 53),
        ],
        pools: &[pool("vms", &ipv4), pool("vms6", &ipv6)],
        outbound: if proxy { &[] } else { &outbound },
        proxy: proxy.then_some(ProxyPorts {
            mode: PortMode::Single,
            frontends: &ports,
            backend: BACKEND,
            source_rewrites: &[],
        }),
        ..Spec::default()
    };
    Arc::new(Snapshot::new(&spec, None).unwrap())
}

fn underlay(ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Underlay {
    Underlay {
        ipv4: Some(ipv4),
        ipv6: Some(ipv6),
        mac: MacAddress(MUX_MAC),
        next_hop: MacAddress(ROUTER_MAC),
        mtu: 1600,
        port: FABRIC,
        ..Underlay::default()
    }
}

/// A balancer of each role, fresh.
struct Roles {
    mux: TestMux,
    host: Host<'static, Arc<Snapshot<'static>>>,
    proxy: Proxy<'static, Arc<Snapshot<'static>>>,
}

impl Roles {
    fn new() -> Self {
        let of_host = snapshot(underlay(HOST, HOST6), false);
        Self {
            mux: Mux::with_capacity(snapshot(underlay(MUX, MUX6), false), 1000, KEY)
                .expect("its role"),
            host: Host::with_capacity(of_host, 1000, KEY).expect("its role"),
            proxy: Proxy::with_capacity(snapshot(Underlay::default(), true), 1000, KEY)
                .expect("its role"),
        }
    }

    /// Sends a packet through each role, from outside; what becomes of it. At a host it comes in
    /// VXLAN from a mux.
    fn inbound(&mut self, packet: &[u8]) -> [Verdict; 3] {
        let mux = process(|frame| self.mux.process(NOW, frame), FABRIC, packet);
        let carried = in_vxlan(MUX.into(), packet);
        let host = process(|frame| self.host.process(NOW, frame), FABRIC, &carried);
        let proxy = process(|frame| self.proxy.process(NOW, frame), FRONTEND, packet);
        [mux, host, proxy].map(|(verdict, _)| verdict)
    }

    /// Returns the verdicts on a packet from a backend, at a host agent and at a proxy.
    fn outbound(&mut self, packet: &[u8]) -> [Verdict; 2] {
        let host = process(|frame| self.host.process(NOW, frame), VM, packet);
        let proxy = process(|frame| self.proxy.process(NOW, frame), BACKEND, packet);
        [host, proxy].map(|(verdict, _)| verdict)
    }
}

fn process(run: impl FnOnce(&mut [Frame<'_>]), port: PortId, packet: &[u8]) -> (Verdict, Vec<u8>) {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(packet);
    let mut frames = [Frame::new(&mut buffer, HEADROOM, packet.len()).unwrap()];
    frames[0].set_port(port);
    run(&mut frames);
    if frames[0].verdict() == Verdict::Pass {
        assert_eq!(frames[0].bytes(), packet, "what is passed is untouched");
    }
    (frames[0].verdict(), frames[0].bytes().to_vec())
}

/// A frame for the vm, in VXLAN to the host's address of the sender's family.
fn in_vxlan(from: IpAddr, frame: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((VNI << 8).to_be_bytes());
    payload.extend(derived_mac(DIP.into()).0);
    payload.extend(frame.get(6..).unwrap_or_default());
    let link = etherparse::PacketBuilder::ethernet2(ROUTER_MAC, MUX_MAC);
    let ip = match from {
        IpAddr::V4(from) => link.ipv4(from.octets(), HOST.octets(), 64),
        IpAddr::V6(from) => link.ipv6(from.octets(), HOST6.octets(), 64),
    };
    let mut packet = Vec::new();
    ip.udp(50_000, 4789).write(&mut packet, &payload).unwrap();
    let checksum = if from.is_ipv4() { 40 } else { 60 };
    packet[checksum..checksum + 2].fill(0); // none: what is inside decides
    packet
}

/// The same frame behind VLAN tags.
fn tagged(packet: &[u8], tags: &[u16]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    for &tag in tags.iter().rev() {
        let [high, low] = tag.to_be_bytes();
        packet.splice(12..12, [high, low, 0, 7]);
    }
    packet
}

fn is_sent(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Forward(_))
}

fn dropped(reason: DropReason) -> Verdict {
    Verdict::Drop(reason)
}

/// Where a proxy lets frames cross that are not for a service.
const CROSSES: Verdict = Verdict::Forward(BACKEND);

/// RFC 1812 §5.2.2.
#[test]
fn a_wrong_ipv4_header_checksum_is_dropped_in_every_role() {
    let mut echo = Vec::new();
    etherparse::PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        .ipv4(CLIENT, VIP, 64)
        .icmpv4_echo_request(1, 2)
        .write(&mut echo, b"data")
        .unwrap();
    let mut with_options = tcp(CLIENT, 9, "S");
    with_options.splice(34..34, [1, 1, 1, 0]);
    with_options[14] = 0x46;
    with_options[17] += 4;
    let mut first_fragment = udp_to(CLIENT, 9, VIP, 53, &[7; 64]);
    first_fragment[20] = 0x20;
    for packet in [
        tcp(CLIENT, 9, "S"),
        tcp_to(CLIENT, 9, VIP, 81, "S", b""), // of no rule
        udp_to(CLIENT, 9, VIP, 53, b"query"),
        echo,
        righted(with_options),
        righted(first_fragment),
    ] {
        for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100]] {
            let right = tagged(&packet, tags);
            for (at, bit) in [(10, 0x80), (11, 1), (1, 4), (8, 1)] {
                let mut wrong = right.clone();
                wrong[14 + 4 * tags.len() + at] ^= bit;
                let mut roles = Roles::new();
                let verdicts = roles.inbound(&wrong);
                assert_eq!(verdicts, [dropped(DropReason::BadChecksum); 3], "{at}");
                assert_eq!(roles.mux.stats().flows.live, 0, "nothing is pinned");
                let verdicts = roles.inbound(&right);
                assert!(
                    verdicts
                        .iter()
                        .all(|verdict| *verdict != dropped(DropReason::BadChecksum))
                );
            }
        }
    }
}

#[test]
fn every_other_checksum_of_a_header_is_wrong() {
    let mut roles = Roles::new();
    let right = tcp(CLIENT, 9, "S");
    let checksum = u16::from_be_bytes([right[24], right[25]]);
    for candidate in (0..=u16::MAX).step_by(7).chain([checksum, 0, 0xffff]) {
        let mut packet = right.clone();
        packet[24..26].copy_from_slice(&candidate.to_be_bytes());
        let (verdict, _) = process(|frame| roles.mux.process(NOW, frame), FABRIC, &packet);
        assert_eq!(is_sent(verdict), candidate == checksum, "{candidate:#06x}");
    }
}

#[test]
fn what_a_vm_answers_under_a_wrong_header_checksum_is_dropped() {
    let mut roles = Roles::new();
    assert!(roles.inbound(&tcp(CLIENT, 9, "S")).into_iter().all(is_sent));
    let right = tcp_to(DIP, 80, CLIENT, 9, "SA", b"");
    let mut wrong = right.clone();
    wrong[25] ^= 1;
    assert_eq!(
        roles.outbound(&wrong),
        [dropped(DropReason::BadChecksum); 2]
    );
    assert!(roles.outbound(&right).into_iter().all(is_sent));
    // A call of its own, which would be translated.
    let mut call = tcp_to(DIP, 5000, FAR, 443, "S", b"");
    call[25] ^= 1;
    assert_eq!(roles.outbound(&call)[0], dropped(DropReason::BadChecksum));
}

#[test]
fn a_wrong_checksum_around_vxlan_is_dropped_and_one_inside_too() {
    let mut roles = Roles::new();
    let right = in_vxlan(MUX.into(), &tcp(CLIENT, 9, "S"));
    for at in [15, 24, 14 + 20 + 8 + 8 + 14 + 10] {
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        let (verdict, _) = process(|frame| roles.host.process(NOW, frame), FABRIC, &wrong);
        assert_eq!(verdict, dropped(DropReason::BadChecksum), "byte {at}");
    }
    let (verdict, _) = process(|frame| roles.host.process(NOW, frame), FABRIC, &right);
    assert_eq!(verdict, Verdict::Forward(VM));
    // IPv6 around it has no checksum of its own.
    let mut in_ipv6 = in_vxlan(MUX6.into(), &tcp(CLIENT, 9, "S"));
    in_ipv6[14 + 40 + 8 + 8 + 14 + 10] ^= 1;
    let (verdict, _) = process(|frame| roles.host.process(NOW, frame), FABRIC, &in_ipv6);
    assert_eq!(verdict, dropped(DropReason::BadChecksum));
    // An answer that comes back through a mux.
    let answer = tcp_to(VIP, 80, CLIENT, 9, "SA", b"");
    let mut carried = in_vxlan(HOST.into(), &answer);
    carried[30..34].copy_from_slice(&MUX.octets());
    right_header(&mut carried);
    let mut to_mux = |packet: &[u8]| process(|f| roles.mux.process(NOW, f), FABRIC, packet).0;
    for at in [24, 14 + 20 + 8 + 8 + 14 + 10] {
        let mut wrong = carried.clone();
        wrong[at] ^= 1;
        assert_eq!(to_mux(&wrong), dropped(DropReason::BadChecksum));
    }
    assert_eq!(to_mux(&carried), Verdict::Forward(FABRIC));
}

#[test]
fn a_wrong_checksum_of_what_is_not_ours_is_not_our_matter() {
    let mut roles = Roles::new();
    let wrong = |source, destination| {
        let mut packet = tcp_to(source, 9, destination, 80, "S", b"");
        packet[25] ^= 1;
        packet
    };
    // At a host, the vm's own address and its neighbour's.
    assert_eq!(
        roles.inbound(&wrong(CLIENT, DIP)),
        [Verdict::Pass, Verdict::Forward(VM), CROSSES]
    );
    assert_eq!(roles.outbound(&wrong(DIP, NEIGHBOUR))[0], Verdict::Pass);
    let from_a_router = roles.outbound(&wrong([192, 0, 2, 1], CLIENT))[1];
    assert_eq!(from_a_router, Verdict::Forward(FRONTEND));
}

/// RFC 3927 §2.7, RFC 4291 §2.5.6.
#[test]
fn a_link_local_source_is_martian_for_a_vip() {
    for source in [[169, 254, 0, 1], [169, 254, 255, 255]] {
        for packet in [
            tcp(source, 9, "S"),
            tcp(source, 9, "A"),
            udp_to(source, 9, VIP, 53, b"query"),
            tagged(&tcp(source, 9, "S"), &[0x8100]),
        ] {
            let mut roles = Roles::new();
            let verdicts = roles.inbound(&packet);
            assert_eq!(verdicts, [dropped(DropReason::Martian); 3], "{source:?}");
            let (verdict, _) = process(
                |frame| {
                    let snapshot = snapshot(underlay(MUX, MUX6), false);
                    Mux::stateless(snapshot, KEY)
                        .expect("its role")
                        .process(NOW, frame);
                },
                FABRIC,
                &packet,
            );
            assert_eq!(verdict, dropped(DropReason::Martian));
        }
    }
    for source in [[169, 253, 0, 1], [169, 255, 0, 1], [168, 254, 0, 1]] {
        let verdicts = Roles::new().inbound(&tcp(source, 9, "S"));
        assert!(verdicts.into_iter().all(is_sent), "{source:?}");
    }
    for (start, is_link_local) in [
        ([0xfe, 0x80], true),
        ([0xfe, 0xbf], true),
        ([0xfe, 0x7f], false),
        ([0xfe, 0xc0], false),
        ([0xfd, 0x80], false),
        ([0x80, 0xfe], false),
    ] {
        for mut packet in [tcp6(9, "S"), tcp6(9, "A"), udp6(9, b"query")] {
            packet[22..24].copy_from_slice(&start);
            for packet in [tagged(&packet, &[0x8100]), packet] {
                let verdicts = Roles::new().inbound(&packet);
                let expected = |verdict| verdict == dropped(DropReason::Martian);
                let all = verdicts.map(expected);
                assert_eq!(all, [is_link_local; 3], "{start:02x?}: {verdicts:?}");
            }
        }
    }
}

#[test]
fn link_local_packets_for_others_and_neighbour_discovery_pass() {
    let mut roles = Roles::new();
    let other = udp_to([169, 254, 1, 1], 68, [169, 254, 1, 2], 67, b"link");
    assert_eq!(
        roles.inbound(&other),
        [Verdict::Pass, Verdict::Forward(VM), CROSSES]
    );
    assert_eq!(roles.outbound(&other)[0], Verdict::Pass);
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    for destination in [vip6(), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2).octets()] {
        let mut solicitation = Vec::new();
        etherparse::PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
            .ipv6(link_local.octets(), destination, 255)
            .icmpv6_raw(135, 0, [0; 4])
            .write(&mut solicitation, &vip6())
            .unwrap();
        assert_eq!(
            roles.inbound(&solicitation),
            [Verdict::Pass, Verdict::Forward(VM), CROSSES]
        );
        assert_eq!(roles.outbound(&solicitation)[0], Verdict::Pass);
    }
}

#[test]
fn vxlan_from_the_node_s_own_address_is_refused() {
    let mut roles = Roles::new();
    let mut to_host = |from: IpAddr| {
        let packet = in_vxlan(from, &tcp(CLIENT, 9, "S"));
        process(|frame| roles.host.process(NOW, frame), FABRIC, &packet).0
    };
    for own in [IpAddr::from(HOST), HOST6.into()] {
        assert_eq!(to_host(own), dropped(DropReason::UnknownPeer), "{own}");
    }
    for mux in [IpAddr::from(MUX), MUX6.into()] {
        assert_eq!(to_host(mux), Verdict::Forward(VM), "{mux}");
    }
    // Tags change nothing.
    let own = tagged(&in_vxlan(HOST.into(), &tcp(CLIENT, 9, "S")), &[0x8100]);
    let (verdict, _) = process(|frame| roles.host.process(NOW, frame), FABRIC, &own);
    assert_eq!(verdict, dropped(DropReason::UnknownPeer));
    // Nor does a mux take back what seems to be its own.
    let answer = tcp_to(VIP, 80, CLIENT, 9, "SA", b"");
    for own in [IpAddr::from(MUX), MUX6.into()] {
        let mut returned = in_vxlan(own, &answer);
        match own {
            IpAddr::V4(own) => returned[30..34].copy_from_slice(&own.octets()),
            IpAddr::V6(own) => returned[38..54].copy_from_slice(&own.octets()),
        }
        right_header(&mut returned);
        for returned in [tagged(&returned, &[0x8100]), returned] {
            let (verdict, _) = process(|frame| roles.mux.process(NOW, frame), FABRIC, &returned);
            assert_eq!(verdict, dropped(DropReason::UnknownPeer), "{own}");
        }
    }
}

/// The same header three ways: cut off within, or with lengths that cannot be.
fn broken(packet: &[u8]) -> Vec<(Vec<u8>, DropReason)> {
    let is_ipv6 = packet[12] == 0x86;
    let with = |at: usize, value: u8| {
        let mut packet = packet.to_vec();
        packet[at] = value;
        packet
    };
    let cut = |len: usize| packet[..len].to_vec();
    let mut all = vec![(cut(packet.len() - 1), DropReason::Truncated)];
    if is_ipv6 {
        all.push((cut(14 + 40), DropReason::Truncated));
        all.push((with(14, 0x40), DropReason::Malformed));
        all.push((with(18, 0xff), DropReason::Truncated));
    } else {
        all.push((cut(14 + 20), DropReason::Truncated));
        all.push((with(14, 0x65), DropReason::Malformed));
        all.push((with(14, 0x44), DropReason::Malformed));
        all.push((with(17, 19), DropReason::Malformed));
        all.push((with(16, 0xff), DropReason::Truncated));
    }
    all
}

#[test]
fn a_packet_that_cannot_be_read_is_dropped_where_it_is_for_a_vip() {
    for packet in [tcp(CLIENT, 9, "S"), tcp6(9, "S")] {
        for (packet, reason) in broken(&packet) {
            for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100], &[0x9100]] {
                let verdicts = Roles::new().inbound(&tagged(&packet, tags));
                assert_eq!(verdicts, [dropped(reason); 3], "{packet:02x?}");
            }
        }
    }
}

#[test]
fn and_passes_where_it_is_for_nobody_here() {
    let mut to_dip6 = tcp6(9, "S");
    to_dip6[38..54].copy_from_slice(&dip6());
    for packet in [tcp_to(CLIENT, 9, DIP, 80, "S", b""), to_dip6] {
        let broken = broken(&packet).into_iter().map(|(packet, _)| packet);
        // Too short to say whom it is for.
        let stubs = [14, 15, 20, 30].map(|len| packet[..len].to_vec());
        for packet in broken.chain(stubs) {
            for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100]] {
                let verdicts = Roles::new().inbound(&tagged(&packet, tags));
                let expected = [Verdict::Pass, Verdict::Forward(VM), CROSSES];
                assert_eq!(verdicts, expected, "{packet:02x?}");
            }
        }
    }
    // Less than an Ethernet header, and less than the tag that it announces.
    for stub in [
        &[][..],
        &[2; 13],
        &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0],
    ] {
        let mut roles = Roles::new();
        let [mux, _, proxy] = roles.inbound(stub);
        assert_eq!((mux, proxy), (Verdict::Pass, CROSSES));
        let [host, proxy] = roles.outbound(stub);
        assert_eq!(host, Verdict::Pass);
        assert!(matches!(proxy, Verdict::Forward(_) | Verdict::Flood));
    }
}

#[test]
fn what_a_vm_sends_that_cannot_be_read_is_the_kernel_s_unless_it_names_a_vip() {
    for (packet, reason) in broken(&tcp_to(DIP, 80, FAR, 9, "A", b"")) {
        let [host, proxy] = Roles::new().outbound(&packet);
        assert_eq!(host, Verdict::Pass);
        // At a proxy it may be of a connection, and nobody is to see its address.
        assert_eq!(proxy, dropped(reason));
    }
    for ends in [(VIP, FAR), (DIP, VIP)] {
        for (packet, reason) in broken(&tcp_to(ends.0, 80, ends.1, 9, "A", b"")) {
            assert_eq!(Roles::new().outbound(&packet)[0], dropped(reason));
        }
    }
    // From somebody else behind the proxy.
    for (packet, _) in broken(&tcp_to([192, 0, 2, 1], 80, CLIENT, 9, "A", b"")) {
        let [_, proxy] = Roles::new().outbound(&packet);
        assert_eq!(proxy, Verdict::Forward(FRONTEND));
    }
    // The same of IPv6.
    let far6 = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9).octets();
    let segment = |from: [u8; 16], to: [u8; 16]| {
        let mut packet = tcp6(80, "A");
        packet[22..38].copy_from_slice(&from);
        packet[38..54].copy_from_slice(&to);
        packet
    };
    for (packet, reason) in broken(&segment(dip6(), far6)) {
        let [host, proxy] = Roles::new().outbound(&packet);
        assert_eq!(host, Verdict::Pass, "{packet:02x?}");
        assert_eq!(proxy, dropped(reason), "{packet:02x?}");
    }
    for ends in [(vip6(), far6), (dip6(), vip6())] {
        for (packet, reason) in broken(&segment(ends.0, ends.1)) {
            assert_eq!(Roles::new().outbound(&packet)[0], dropped(reason));
        }
    }
    for (packet, _) in broken(&segment(far6, client6())) {
        let [_, proxy] = Roles::new().outbound(&packet);
        assert_eq!(proxy, Verdict::Forward(FRONTEND));
    }
}

/// A whole IP packet whose TCP or UDP header is cut off.
#[test]
fn a_cut_off_transport_header_is_dropped_for_a_vip_only() {
    for (packet, len_at, ip_len) in [
        (tcp(CLIENT, 9, "A"), 17, 39),
        (udp_to(CLIENT, 9, VIP, 53, b""), 17, 27),
        (tcp6(9, "A"), 19, 19),
    ] {
        let mut short = packet.clone();
        short[len_at] = ip_len;
        right_header(&mut short);
        let verdicts = Roles::new().inbound(&short);
        assert_eq!(verdicts, [dropped(DropReason::Truncated); 3]);
        let mut other = short;
        if other[12] == 0x86 {
            other[38..54].copy_from_slice(&dip6());
        } else {
            other[30..34].copy_from_slice(&DIP);
            right_header(&mut other);
        }
        let verdicts = Roles::new().inbound(&other);
        assert_eq!(verdicts, [Verdict::Pass, Verdict::Forward(VM), CROSSES]);
    }
}

#[test]
fn three_tag_protocols_are_looked_behind_in_every_order() {
    for packet in [tcp(CLIENT, 9, "S"), tcp6(9, "S")] {
        for outer in [0x8100, 0x88a8, 0x9100] {
            let verdicts = Roles::new().inbound(&tagged(&packet, &[outer]));
            assert!(verdicts.into_iter().all(is_sent), "{outer:#06x}");
            for inner in [0x8100, 0x88a8, 0x9100] {
                let double = tagged(&packet, &[outer, inner]);
                let verdicts = Roles::new().inbound(&double);
                assert!(
                    verdicts.into_iter().all(is_sent),
                    "{outer:#06x} {inner:#06x}"
                );
                let triple = tagged(&packet, &[outer, inner, 0x8100]);
                let expected = [Verdict::Pass, Verdict::Forward(VM), CROSSES];
                assert_eq!(Roles::new().inbound(&triple), expected);
            }
        }
        // Anything else is no tag.
        let other = tagged(&packet, &[0x9300]);
        assert_eq!(Roles::new().inbound(&other)[0], Verdict::Pass);
    }
}

#[test]
fn a_port_that_neither_a_rule_nor_a_vm_has_is_of_no_rule_beside_snat() {
    // The vm has 64 ports from 1024 on, its neighbour the next 64.
    for port in [81, 1023, 1024 + 128, 9999, 65_535] {
        for packet in [
            tcp_to(CLIENT, 9, VIP, port, "S", b""),
            tcp_to(CLIENT, 9, VIP, port, "A", b""),
            udp_to(CLIENT, 9, VIP, port, b"query"),
        ] {
            let of_mux = || snapshot(underlay(MUX, MUX6), false);
            for mut mux in [
                Mux::with_capacity(of_mux(), 1000, KEY).expect("its role"),
                Mux::stateless(of_mux(), KEY).expect("its role"),
            ] {
                let (verdict, _) = process(|frame| mux.process(NOW, frame), FABRIC, &packet);
                assert_eq!(verdict, dropped(DropReason::NoRule), "port {port}");
            }
        }
    }
    // An answer to the vm's own call goes to its host.
    let answer = tcp_to(FAR, 443, VIP, 1030, "SA", b"");
    let (verdict, _) = process(
        |frame| Roles::new().mux.process(NOW, frame),
        FABRIC,
        &answer,
    );
    assert!(is_sent(verdict));
}
