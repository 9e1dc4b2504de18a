//! What always holds of translated connections, whatever comes.

use crate::common::{Endpoint, ends, through};

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;
use std::time::Duration;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::snapshot::{CompiledBackend, Snapshot};
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, Outbound, Pool, Protocol, Rule, Spec, Terms, Underlay,
    derived_mac,
};
use slb_core::wire::checksum::checksum;
use slb_core::wire::vxlan::Vni;
use slb_core::{
    Burst, DropReason, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, SourceLimiter, Verdict,
};

const VIP: Ipv4Addr = Ipv4Addr::new(20, 20, 20, 100);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const FABRIC: PortId = PortId(0);
const KEY: Key = Key::new([5, 6]);

fn front(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(20, 20, 20, 200 + number as u8)
}

fn dip(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, 1, 1 + number as u8)
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    vms: usize,
    /// Frontends of the outbound rule.
    fronts: usize,
    ports: Option<u32>,
    terms: Terms,
    /// A port of the first outbound frontend that a rule takes.
    taken: u16,
}

impl Plan {
    fn snapshot(&self) -> Snapshot<'static> {
        self.after(None)
    }

    fn after(&self, previous: Option<&Snapshot<'_>>) -> Snapshot<'static> {
        let names: Vec<String> = (0..self.vms).map(|n| format!("vm{n}")).collect();
        let backends: Vec<Backend<'_>> = (0..self.vms)
            .map(|n| Backend {
                name: &names[n],
                address: dip(n).into(),
                host: HOST.into(),
                port: Some(PortId(1 + n as u16)),
                ..Backend::default()
            })
            .collect();
        let mut frontends = vec![Frontend {
            name: "web",
            address: VIP.into(),
            icmp_echo: Echo::Answer,
        }];
        let names: Vec<String> = (0..self.fronts).map(|n| format!("out{n}")).collect();
        frontends.extend((0..self.fronts).map(|n| Frontend {
            name: &names[n],
            address: front(n).into(),
            icmp_echo: Echo::Answer,
        }));
        let outbound: Vec<usize> = (1..=self.fronts).collect();
        let rule = |name, frontend, frontend_port| Rule {
            name,
            frontend,
            protocol: Protocol::Tcp,
            frontend_port,
            backend_port: 8080,
            terms: self.terms,
            ..Rule::default()
        };
        let spec = Spec {
            underlay: Underlay {
                ipv4: Some(HOST),
                port: FABRIC,
                ..Underlay::default()
            },
            frontends: &frontends,
            rules: &[rule("http", 0, 80), rule("beside", 1, self.taken)],
            pools: &[Pool {
                name: "servers",
                vni: Vni::new(5001).unwrap(),
                table_size: 251,
                backends: &backends,
                ..Pool::default()
            }],
            outbound: &[Outbound {
                name: "out",
                frontends: &outbound,
                pool: 0,
                protocol: Protocol::All,
                allocated_outbound_ports: self.ports,
                idle_timeout: Duration::from_secs(240),
                tcp_reset: false,
            }],
            ..Spec::default()
        };
        Snapshot::new(&spec, previous).unwrap()
    }
}

const PLAN: Plan = Plan {
    vms: 2,
    fronts: 1,
    ports: Some(64),
    terms: Terms {
        floating_ip: false,
        tcp_reset: false,
        answers: slb_core::spec::Answers::Direct,
        source_nat: None,
        quic: false,
    },
    taken: 1031,
};

/// That of [`PLAN`].
fn snapshot() -> &'static Snapshot<'static> {
    static SNAPSHOT: OnceLock<Snapshot<'static>> = OnceLock::new();
    SNAPSHOT.get_or_init(|| PLAN.snapshot())
}

type Dut<'s> = Host<'static, &'s Snapshot<'static>>;

/// Gives a host a frame; returns what becomes of it.
fn give(host: &mut Dut<'_>, now: Instant, port: PortId, bytes: &[u8]) -> (Verdict, Vec<u8>) {
    through(port, bytes, |frames| {
        host.process(now, frames);
    })
}

/// A frame for a vm, in VXLAN as a mux would send it.
fn encapsulated(vm: usize, packet: &[u8]) -> Vec<u8> {
    encapsulated_by(MUX, vm, packet)
}

fn encapsulated_by(peer: Ipv4Addr, vm: usize, packet: &[u8]) -> Vec<u8> {
    let mut inner = derived_mac(dip(vm).into()).0.to_vec();
    inner.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    inner.extend(packet);
    let mut payload = vec![8, 0, 0, 0, 0, 0x13, 0x89, 0];
    payload.extend(inner);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(peer.octets(), HOST.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut frame, &payload)
        .unwrap();
    frame
}

fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8, seq: u32, data: &[u8]) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(from.1, to.1, seq, 1000);
    (header.fin, header.syn, header.rst) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    header.ack = flags & 16 != 0;
    header.acknowledgment_number = seq;
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.0.octets(), to.0.octets(), 64)
        .tcp_header(header)
        .write(&mut packet, data)
        .unwrap();
    packet
}

fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.0.octets(), to.0.octets(), 64)
        .udp(from.1, to.1)
        .write(&mut packet, data)
        .unwrap();
    packet
}

/// A frame as a vm sends it.
fn of_vm(vm: usize, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 9];
    frame.extend(derived_mac(dip(vm).into()).0);
    frame.extend([8, 0]);
    frame.extend(packet);
    frame
}

/// The IP packet, TTL and header checksum aside.
fn packet_of(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    (packet[8], packet[10], packet[11]) = (0, 0, 0);
    packet
}

const SYN: u8 = 2;
const ACK: u8 = 16;

#[test]
fn there_and_back_gives_the_original_bytes() {
    bolero::check!()
        .with_type::<(u32, u16, Vec<u8>, bool)>()
        .for_each(|(client, port, data, with_checksum)| {
            // Anybody's but nobody's: those are dropped.
            let address = (1 + (client >> 24) % 126) << 24 | client & 0xff_ffff;
            let client = (Ipv4Addr::from(address), port.max(&1).to_owned());
            let mut host = Host::with_capacity(snapshot(), 16, KEY).expect("its role");
            let now = Instant::from_secs(1);
            let data = &data[..data.len().min(1000)];
            // The vm echoes what it gets: what it sent comes back under the other name.
            let syn = tcp(client, (VIP, 80), SYN, 9, b"");
            let (verdict, inside) = give(&mut host, now, FABRIC, &encapsulated(0, &syn));
            assert_eq!(verdict, Verdict::Forward(PortId(1)));
            let ((source, sport), (destination, dport)) = ends(&inside);
            assert_eq!((source, sport), (client.0.into(), client.1));
            assert_eq!((destination, dport), (dip(0).into(), 8080));
            let answer = tcp((dip(0), 8080), client, SYN | ACK, 9, data);
            let (verdict, outside) = give(&mut host, now, PortId(1), &of_vm(0, &answer));
            assert_eq!(verdict, Verdict::Forward(FABRIC));
            let expected = tcp((VIP, 80), client, SYN | ACK, 9, data);
            assert_eq!(packet_of(&outside), packet_of(&of_vm(0, &expected)));
            // A call of the vm's own, and its answer.
            let far = (Ipv4Addr::from(u32::from(client.0) ^ 0x5555), 53);
            let mut call = udp((dip(1), client.1), far, data);
            if !with_checksum {
                call[26..28].fill(0);
            }
            let (verdict, out) = give(&mut host, now, PortId(2), &of_vm(1, &call));
            if verdict != Verdict::Forward(FABRIC) {
                return; // multicast and the like
            }
            assert_eq!(out[40..42] == [0, 0], !with_checksum);
            let port = u16::from_be_bytes([out[34], out[35]]);
            let back = udp(far, (front(0), port), data);
            let (verdict, inside) = give(&mut host, now, FABRIC, &encapsulated(1, &back));
            assert_eq!(verdict, Verdict::Forward(PortId(2)));
            let expected = udp(far, (dip(1), client.1), data);
            assert_eq!(packet_of(&inside), packet_of(&of_vm(1, &expected)));
        });
}

#[test]
fn a_source_is_limited_at_a_host_too() {
    let limiter = SourceLimiter::build(1 << 10, 10, 5, KEY, &mut slb_core::mem::Boxes);
    let mut host = Host::with_capacity(snapshot(), 64, KEY)
        .expect("its role")
        .with_source_limit(limiter.unwrap());
    let now = Instant::from_secs(1);
    let mut open = |address, port| {
        let syn = tcp(
            (Ipv4Addr::new(1, 2, 3, address), port),
            (VIP, 80),
            SYN,
            9,
            b"",
        );
        give(&mut host, now, FABRIC, &encapsulated(0, &syn)).0
    };
    for port in 1..=8 {
        let expected = match port {
            1..=5 => Verdict::Forward(PortId(1)),
            _ => Verdict::Drop(DropReason::SourceLimit),
        };
        assert_eq!(open(4, port), expected);
    }
    assert_eq!(open(5, 1), Verdict::Forward(PortId(1)));
    // Of a connection that is there, a SYN that comes again is none.
    assert_eq!(open(4, 1), Verdict::Forward(PortId(1)));
    let land = tcp((VIP, 80), (VIP, 80), SYN, 9, b"");
    let land = give(&mut host, now, FABRIC, &encapsulated(0, &land)).0;
    assert_eq!(land, Verdict::Drop(DropReason::Martian));
}

/// The ICMP message of a frame that etherparse finds right, and whom it is for.
fn icmp(frame: &[u8]) -> (etherparse::Icmpv4Type, IpAddr) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else {
        panic!("not IPv4")
    };
    let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else {
        panic!("not ICMP")
    };
    let kind = icmp.header().icmp_type;
    assert_eq!(icmp.checksum(), kind.calc_checksum(icmp.payload()));
    (kind, ip.header().destination_addr().into())
}

/// Gives the header of an IPv4 packet the checksum that it should have.
fn right_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn whoever_sent_what_cannot_go_on_is_told() {
    let mut host = Host::with_capacity(snapshot(), 16, KEY).expect("its role");
    let (client, now) = ((Ipv4Addr::new(1, 2, 3, 4), 50_000), Instant::from_secs(1));
    let exceeded = |kind: &_| matches!(kind, etherparse::Icmpv4Type::TimeExceeded(_));
    // From the fabric: it goes back to the client straight.
    let mut syn = tcp(client, (VIP, 80), SYN, 9, b"");
    syn[8] = 1;
    right_header(&mut syn);
    let (verdict, error) = give(&mut host, now, FABRIC, &encapsulated(0, &syn));
    assert_eq!(verdict, Verdict::Forward(FABRIC));
    let (kind, to) = icmp(&error);
    assert!(
        exceeded(&kind) && to == IpAddr::from(client.0),
        "{kind:?} to {to}"
    );
    // From a vm: it is answered there.
    let far = (Ipv4Addr::new(9, 9, 9, 9), 443);
    let mut call = udp((dip(0), 1000), far, b"data");
    call[8] = 1;
    right_header(&mut call);
    let (verdict, error) = give(&mut host, now, PortId(1), &of_vm(0, &call));
    assert_eq!(verdict, Verdict::Reply);
    let (kind, to) = icmp(&error);
    assert!(
        exceeded(&kind) && to == IpAddr::from(dip(0)),
        "{kind:?} to {to}"
    );
    // Longer than the fabric carries, and not to be fragmented.
    let mut long = udp((dip(0), 1000), far, &[7; 1600]);
    long[6] = 0x40;
    right_header(&mut long);
    let (verdict, error) = give(&mut host, now, PortId(1), &of_vm(0, &long));
    assert_eq!(verdict, Verdict::Reply);
    let needed =
        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1500 };
    assert_eq!(
        icmp(&error).0,
        etherparse::Icmpv4Type::DestinationUnreachable(needed)
    );
}

#[test]
fn segments_are_offered_as_long_as_the_fabric_carries_them() {
    let options = slb_core::nat::NatOptions {
        clamp_mss: true,
        ..Default::default()
    };
    let mut host = Host::with_capacity(snapshot(), 16, KEY)
        .expect("its role")
        .with_options(options);
    let (client, now) = (Ipv4Addr::new(1, 2, 3, 4), Instant::from_secs(1));
    for (port, offered, expected) in [(1, 1460, 1390), (2, 1000, 1000), (3, 9000, 1390)] {
        let mut syn = Vec::new();
        PacketBuilder::ipv4(client.octets(), VIP.octets(), 64)
            .tcp(port, 80, 9, 1000)
            .syn()
            .options(&[etherparse::TcpOptionElement::MaximumSegmentSize(offered)])
            .unwrap()
            .write(&mut syn, b"")
            .unwrap();
        let (verdict, inside) = give(&mut host, now, FABRIC, &encapsulated(0, &syn));
        assert_eq!(verdict, Verdict::Forward(PortId(1)));
        ends(&inside); // checksums are right
        let sliced = SlicedPacket::from_ethernet(&inside).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("not TCP")
        };
        let found: Vec<_> = tcp.options_iterator().map(Result::unwrap).collect();
        let size = etherparse::TcpOptionElement::MaximumSegmentSize(expected);
        assert!(found.contains(&size), "{found:?}, expected {size:?}");
    }
}

#[test]
fn a_wrong_checksum_stays_as_wrong() {
    let mut host = Host::with_capacity(snapshot(), 16, KEY).expect("its role");
    let (client, now) = ((Ipv4Addr::new(1, 2, 3, 4), 50_000), Instant::from_secs(1));
    for error in [1u16, 0x1234, 0xfffe] {
        let right = tcp(client, (VIP, 80), SYN, 9, b"");
        let mut wrong = right.clone();
        let sum = u16::from_be_bytes([wrong[36], wrong[37]]);
        wrong[36..38].copy_from_slice(&sum.wrapping_add(error).to_be_bytes());
        let field = |host: &mut Dut<'_>, packet: &[u8]| {
            let (_, frame) = give(host, now, FABRIC, &encapsulated(0, packet));
            u16::from_be_bytes([frame[50], frame[51]])
        };
        let apart = |right: u16, wrong: u16| (u32::from(wrong) + u32::from(!right)) % 0xffff;
        let before = apart(sum, sum.wrapping_add(error));
        let (right, wrong) = (field(&mut host, &right), field(&mut host, &wrong));
        assert_eq!(apart(right, wrong), before);
    }
}

/// Every vm calls one place until it is out of ports. No port is two vms', all that were promised
/// are there, they are spread over the addresses, and the mux brings answers to the right vm.
#[test]
fn port_blocks_never_overlap_and_muxes_know_them() {
    bolero::check!()
        .with_type::<(u8, u8, u8, u8)>()
        .with_iterations(60)
        .for_each(|&(vms, fronts, granules, taken)| {
            let plan = Plan {
                vms: 1 + usize::from(vms % 6),
                fronts: 1 + usize::from(fronts % 3),
                ports: Some(8 * (1 + u32::from(granules % 20))),
                taken: 1024 + u16::from(taken),
                ..PLAN
            };
            let snapshot = plan.snapshot();
            let mut host = Host::with_capacity(&snapshot, 4096, KEY).expect("its role");
            let mut mux = Mux::stateless(&snapshot, KEY).expect("its role");
            let now = Instant::from_secs(1);
            let far = (Ipv4Addr::new(9, 9, 9, 9), 443);
            let mut owners: HashMap<(IpAddr, u16), usize> = HashMap::new();
            let promised = plan.ports.unwrap();
            for vm in 0..plan.vms {
                let mut of_front: HashMap<IpAddr, u32> = HashMap::new();
                for call in 0..=promised {
                    let source = (dip(vm), 2000 + call as u16);
                    let syn = of_vm(vm, &tcp(source, far, SYN, 1, b""));
                    let (verdict, out) = give(&mut host, now, PortId(1 + vm as u16), &syn);
                    if call == promised {
                        assert_eq!(verdict, Verdict::Reply);
                        break;
                    }
                    assert_eq!(verdict, Verdict::Forward(FABRIC), "{plan:?}");
                    let (from, _) = ends(&out);
                    assert!(from.1 >= 1024);
                    assert!(from.0 != IpAddr::from(front(0)) || from.1 / 8 != plan.taken / 8);
                    assert_eq!(owners.insert(from, vm), None, "{from:?} is two vms'");
                    *of_front.entry(from.0).or_default() += 1;
                    // The answer, at a mux.
                    let (IpAddr::V4(address), port) = from else {
                        panic!()
                    };
                    let answer = of_vm(0, &tcp(far, (address, port), SYN | ACK, 1, b""));
                    let mut buffer = vec![0; HEADROOM];
                    buffer.extend(&answer);
                    let mut frames = [Frame::new(&mut buffer, HEADROOM, answer.len()).unwrap()];
                    mux.process(now, &mut frames);
                    assert_eq!(frames[0].verdict(), Verdict::Forward(FABRIC));
                    assert_eq!(frames[0].bytes()[50..56], derived_mac(dip(vm).into()).0);
                }
                // From the start over all addresses: none has more than one granule over another.
                let counts: Vec<u32> = (0..plan.fronts)
                    .map(|f| of_front.get(&front(f).into()).copied().unwrap_or(0))
                    .collect();
                let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
                assert!(most - least <= 8, "{counts:?}");
            }
            // What nobody asked for goes nowhere.
            let (&(address, port), &vm) = owners.iter().next().unwrap();
            let IpAddr::V4(address) = address else {
                panic!()
            };
            let stranger = tcp(
                (Ipv4Addr::new(6, 6, 6, 6), 443),
                (address, port),
                SYN,
                1,
                b"",
            );
            let (verdict, _) = give(&mut host, now, FABRIC, &encapsulated(vm, &stranger));
            assert_eq!(verdict, Verdict::Drop(DropReason::NoRule));
        });
}

#[test]
fn ports_in_use_are_counted_across_configurations() {
    let first = PLAN.snapshot();
    // Nothing changes for the ports; then there are more of them, other ones, and the first again.
    let same = Plan {
        terms: Terms {
            tcp_reset: true,
            ..PLAN.terms
        },
        ..PLAN
    };
    let more = Plan {
        ports: Some(256),
        ..PLAN
    };
    let others = Plan {
        taken: 1024,
        ..PLAN
    };
    let mut snapshots = vec![first];
    for plan in [same, more, others, PLAN] {
        let next = plan.after(snapshots.last());
        snapshots.push(next);
    }
    let mut host: Dut<'_> = Host::with_capacity(&snapshots[0], 1 << 10, KEY).expect("its role");
    let ids: Vec<_> = snapshots[0]
        .backends()
        .iter()
        .map(CompiledBackend::id)
        .collect();
    let now = Instant::from_secs(1000);
    // Each vm talks from three ports, from the first of them to two places.
    for vm in 0..2 {
        for (port, to) in [(5000, 1), (5000, 2), (5001, 1), (5002, 1)] {
            let packet = udp((dip(vm), port), (Ipv4Addr::new(8, 8, 8, to), 53), b"query");
            let sent = give(&mut host, now, PortId(1 + vm as u16), &of_vm(vm, &packet));
            assert_eq!(sent.0, Verdict::Forward(FABRIC));
        }
    }
    let counted = |host: &Dut<'_>| {
        ids.iter()
            .map(|&id| host.snat_counters(id).unwrap())
            .map(|c| (c.ports, c.used, c.connections))
            .collect::<Vec<_>>()
    };
    let before = counted(&host);
    assert_eq!(before, [(64, 3, 4); 2]);
    host.install(&snapshots[1]).expect("it follows");
    assert_eq!(counted(&host), before);
    host.install(&snapshots[2]).expect("it follows");
    for (ports, used, connections) in counted(&host) {
        assert_eq!((ports, connections), (256, 4));
        assert!(used <= 3, "{used}"); // ports that are somebody else's now are not its own
    }
    host.install(&snapshots[3]).expect("it follows");
    assert_eq!(counted(&host)[0].0, 64);
    host.install(&snapshots[4]).expect("it follows");
    assert_eq!(counted(&host), before);
    // And they are free when the connections are over.
    let mut spare = Burst::new();
    for second in 0..300 {
        host.advance(now + Duration::from_secs(second), &mut spare);
    }
    assert_eq!(host.stats().connections.live, 0);
    assert_eq!(counted(&host), [(64, 0, 0); 2]);
}

#[test]
fn udp_keeps_its_port_whomever_it_talks_to_and_its_parity() {
    let mut host = Host::with_capacity(snapshot(), 4096, KEY).expect("its role");
    let now = Instant::from_secs(1);
    for port in 3000..3030 {
        let mut seen = HashSet::new();
        for far in 1..20 {
            let to = (Ipv4Addr::new(9, 9, 9, far), 53);
            let call = of_vm(0, &udp((dip(0), port), to, b"?"));
            let (verdict, out) = give(&mut host, now, PortId(1), &call);
            assert_eq!(verdict, Verdict::Forward(FABRIC));
            seen.insert(ends(&out).0.1);
        }
        assert!(seen.iter().all(|seen| seen % 2 == port % 2));
        // Two endpoints may want one port: then the later one has another towards some.
        assert!(seen.len() <= 3, "{seen:?}");
    }
    // A port that is the vm's own stays as it is.
    let own = of_vm(
        0,
        &udp((dip(0), 1041), (Ipv4Addr::new(9, 9, 9, 99), 53), b"?"),
    );
    let (_, out) = give(&mut host, now, PortId(1), &own);
    assert_eq!(ends(&out).0.1, 1041);
}

/// Random segments from both sides: whatever state they lead to, once they end the connection is
/// gone when its time has come, and no two connections ever have one name.
#[test]
fn nothing_stays_longer_than_its_time_and_names_are_unique() {
    bolero::check!()
        .with_type::<Vec<(bool, u8, u8, u8, u16)>>()
        .with_iterations(2000)
        .for_each(|segments| {
            let mut host = Host::with_capacity(snapshot(), 64, KEY).expect("its role");
            let mut now = 1_000_000_000u64;
            let mut names: HashMap<(Endpoint, Endpoint), Endpoint> = HashMap::new();
            for &(inward, client, flags, seq, millis) in segments {
                now += u64::from(millis) * 1_000_000;
                let clock = Instant::from_nanos(now);
                host.advance(clock, &mut Burst::new());
                let peer = (
                    Ipv4Addr::new(1, 1, 1, client % 4),
                    5000 + u16::from(client % 3),
                );
                let seq = u32::from(seq) * 100;
                if inward {
                    let packet = tcp(peer, (VIP, 80), flags & 0x17, seq, b"x");
                    give(&mut host, clock, FABRIC, &encapsulated(0, &packet));
                } else {
                    let packet = tcp((dip(0), 8080), peer, flags & 0x17, seq, b"x");
                    let (verdict, out) = give(&mut host, clock, PortId(1), &of_vm(0, &packet));
                    if verdict == Verdict::Forward(FABRIC) {
                        // One inside name has one outside name for as long as it lives.
                        let (from, to) = ends(&out);
                        let old = names.insert((from, to), (dip(0).into(), 8080));
                        assert!(old.is_none_or(|old| old == (dip(0).into(), 8080)));
                    }
                }
                let stats = host.stats().connections;
                assert_eq!(stats.made, stats.live + stats.expired + stats.removed);
            }
            for seconds in [241, 1] {
                now += seconds * 1_000_000_000;
                host.advance(Instant::from_nanos(now), &mut Burst::new());
            }
            assert_eq!(host.stats().connections.live, 0);
            let stats = host.stats();
            assert_eq!(stats.received, stats.accounted());
        });
}

#[test]
fn syns_that_nobody_answers_get_half_of_the_table_and_the_oldest_goes_first() {
    let mut host = Host::with_capacity(snapshot(), 100, KEY).expect("its role");
    let now = Instant::from_secs(1);
    let send = |host: &mut Host<'static, &'static Snapshot<'static>>, client: u16| {
        let from = (Ipv4Addr::new(1, 1, 1, 1), 2000 + client);
        let syn = tcp(from, (VIP, 80), SYN, 9, b"");
        let (verdict, _) = give(host, now, FABRIC, &encapsulated(0, &syn));
        assert_eq!(verdict, Verdict::Forward(PortId(1)), "{client}");
    };
    for client in 0..300 {
        send(&mut host, client);
    }
    let connections = host.stats().connections;
    assert_eq!((connections.refused, connections.evicted), (0, 250));
    assert_eq!((connections.live, connections.unanswered), (50, 50));
    // The last fifty are there, the one before is not.
    for (client, made) in [(250, 300), (299, 300), (249, 301)] {
        send(&mut host, client);
        assert_eq!(host.stats().connections.made, made, "{client}");
    }
}

#[test]
fn what_is_not_for_this_host_is_passed_and_what_is_forged_dropped() {
    let mut host = Host::with_capacity(snapshot(), 100, KEY).expect("its role");
    let now = Instant::from_secs(1);
    let syn = tcp((Ipv4Addr::new(1, 1, 1, 1), 2000), (VIP, 80), SYN, 9, b"");
    // Not in VXLAN, not for this host.
    assert_eq!(
        give(&mut host, now, FABRIC, &of_vm(0, &syn)).0,
        Verdict::Pass
    );
    // From a port where nobody is.
    assert_eq!(
        give(&mut host, now, PortId(77), &of_vm(0, &syn)).0,
        Verdict::Pass
    );
    let mut other_network = encapsulated(0, &syn);
    other_network[48] ^= 1;
    let verdict = give(&mut host, now, FABRIC, &other_network).0;
    assert!(matches!(
        verdict,
        Verdict::Drop(DropReason::UnknownVm | DropReason::OuterChecksum)
    ));
    let mut broken = encapsulated(0, &syn);
    *broken.last_mut().unwrap() ^= 1;
    let verdict = give(&mut host, now, FABRIC, &broken).0;
    assert_eq!(verdict, Verdict::Drop(DropReason::OuterChecksum));
    let forged = of_vm(
        0,
        &tcp((dip(1), 2000), (Ipv4Addr::new(9, 9, 9, 9), 80), SYN, 9, b""),
    );
    let verdict = give(&mut host, now, PortId(1), &forged).0;
    assert_eq!(verdict, Verdict::Drop(DropReason::SpoofedSource));
    // To a neighbour, untouched.
    let near = of_vm(0, &tcp((dip(0), 2000), (dip(1), 80), SYN, 9, b""));
    assert_eq!(
        give(&mut host, now, PortId(1), &near),
        (Verdict::Pass, near.clone())
    );
}

#[test]
fn vxlan_from_a_stranger_is_refused() {
    let (mux, other) = (
        Ipv4Addr::new(172, 16, 0, 11),
        Ipv4Addr::new(172, 16, 0, 102),
    );
    let backend = |name, number: usize, host: Ipv4Addr| Backend {
        name,
        address: dip(number).into(),
        host: host.into(),
        port: (host == HOST).then_some(PortId(1)),
        ..Backend::default()
    };
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            port: FABRIC,
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: VIP.into(),
            icmp_echo: Echo::Answer,
        }],
        rules: &[Rule {
            name: "http",
            protocol: Protocol::Tcp,
            frontend_port: 80,
            backend_port: 80,
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "servers",
            vni: Vni::new(5001).unwrap(),
            table_size: 251,
            backends: &[backend("here", 0, HOST), backend("there", 1, other)],
            ..Pool::default()
        }],
        muxes: &[mux.into()],
        ..Spec::default()
    };
    let snapshot = Snapshot::new(&spec, None).unwrap();
    let mut host = Host::with_capacity(&snapshot, 100, KEY).expect("its role");
    let now = Instant::from_secs(1);
    let mut port = 2000;
    let mut from = |host: &mut Dut<'_>, peer| {
        port += 1;
        let syn = tcp((Ipv4Addr::new(1, 1, 1, 1), port), (VIP, 80), SYN, 9, b"");
        give(host, now, FABRIC, &encapsulated_by(peer, 0, &syn)).0
    };
    for known in [mux, other] {
        assert_eq!(
            from(&mut host, known),
            Verdict::Forward(PortId(1)),
            "{known}"
        );
    }
    let stranger = Ipv4Addr::new(172, 16, 0, 66);
    assert_eq!(
        from(&mut host, stranger),
        Verdict::Drop(DropReason::UnknownPeer)
    );
    // Those that it has heard before and after are none the less known.
    assert_eq!(from(&mut host, mux), Verdict::Forward(PortId(1)));
    assert_eq!(host.stats().dropped[DropReason::UnknownPeer].packets, 1);
}

#[test]
fn without_an_outbound_rule_nobody_calls_out() {
    let backends = [Backend {
        name: "vm0",
        address: dip(0).into(),
        host: HOST.into(),
        port: Some(PortId(1)),
        state: BackendState::Up,
        ..Backend::default()
    }];
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(HOST),
            port: FABRIC,
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "database",
            address: VIP.into(),
            icmp_echo: Echo::Answer,
        }],
        pools: &[Pool {
            name: "servers",
            vni: Vni::new(5001).unwrap(),
            table_size: 3,
            backends: &backends,
            ..Pool::default()
        }],
        ..Spec::default()
    };
    let snapshot = Snapshot::new(&spec, None).unwrap();
    let mut host = Host::with_capacity(&snapshot, 100, KEY).expect("its role");
    let mut sent = |from, to, flags| {
        let frame = of_vm(0, &tcp((from, 2000), (to, 80), flags, 9, b""));
        let (verdict, after) = give(&mut host, Instant::from_secs(1), PortId(1), &frame);
        assert!(verdict != Verdict::Pass || after == frame);
        verdict
    };
    let verdict = sent(dip(0), Ipv4Addr::new(9, 9, 9, 9), SYN);
    assert_eq!(verdict, Verdict::Drop(DropReason::NoOutboundRule));
    // But to an internal VIP under its own name, and under no other's.
    for flags in [SYN, ACK] {
        assert_eq!(sent(dip(0), VIP, flags), Verdict::Pass);
    }
    let verdict = sent(dip(1), VIP, SYN);
    assert_eq!(verdict, Verdict::Drop(DropReason::SpoofedSource));
}

#[test]
fn the_mss_is_clamped_where_asked() {
    let options = slb_core::nat::NatOptions {
        clamp_mss: true,
        ..slb_core::nat::NatOptions::default()
    };
    let mut host = Host::with_capacity(snapshot(), 100, KEY)
        .expect("its role")
        .with_options(options);
    for (offered, seen) in [(1460, 1500 - 56 - 14 - 40), (500, 500)] {
        let mut header = etherparse::TcpHeader::new(2000 + offered, 80, 1, 1000);
        header.syn = true;
        let options = [
            etherparse::TcpOptionElement::Noop,
            etherparse::TcpOptionElement::MaximumSegmentSize(offered),
        ];
        header.set_options(&options).unwrap();
        let mut packet = Vec::new();
        PacketBuilder::ipv4([1, 1, 1, 1], VIP.octets(), 64)
            .tcp_header(header)
            .write(&mut packet, b"")
            .unwrap();
        let now = Instant::from_secs(1);
        let (_, inside) = give(&mut host, now, FABRIC, &encapsulated(0, &packet));
        ends(&inside); // the checksum is right
        let sliced = SlicedPacket::from_ethernet(&inside).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!()
        };
        let mss = tcp.options_iterator().find_map(|option| match option {
            Ok(etherparse::TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        });
        assert_eq!(mss, Some(seen));
    }
}

/// Identifiers name connections, zero like any other; only the message's type says which way it goes.
#[test]
fn a_ping_may_have_any_identifier() {
    let mut host = Host::with_capacity(snapshot(), 64, KEY).expect("its role");
    let now = Instant::from_secs(1);
    let far = Ipv4Addr::new(9, 9, 9, 9);
    let ping = |from: Ipv4Addr, to: Ipv4Addr, identifier: u16, reply: bool| {
        let builder = PacketBuilder::ipv4(from.octets(), to.octets(), 64);
        let mut packet = Vec::new();
        if reply {
            builder.icmpv4_echo_reply(identifier, 1)
        } else {
            builder.icmpv4_echo_request(identifier, 1)
        }
        .write(&mut packet, b"ping")
        .unwrap();
        packet
    };
    for identifier in [0, 1, 9000, u16::MAX] {
        let request = of_vm(0, &ping(dip(0), far, identifier, false));
        let (verdict, out) = give(&mut host, now, PortId(1), &request);
        assert_eq!(verdict, Verdict::Forward(FABRIC), "{identifier}");
        let (etherparse::Icmpv4Type::EchoRequest(echo), _) = icmp(&out) else {
            panic!("{out:02x?}")
        };
        let outside = Ipv4Addr::from(*out[26..].first_chunk::<4>().unwrap());
        let reply = ping(far, outside, echo.id, true);
        let (verdict, back) = give(&mut host, now, FABRIC, &encapsulated(0, &reply));
        assert_eq!(verdict, Verdict::Forward(PortId(1)), "{identifier}");
        let (etherparse::Icmpv4Type::EchoReply(echo), to) = icmp(&back) else {
            panic!("{back:02x?}")
        };
        assert_eq!((echo.id, to), (identifier, dip(0).into()));
    }
    // The vm answers nobody with it, though requests and replies with the identifier 0 have one name.
    let reply = of_vm(0, &ping(dip(0), far, 0, true));
    let (verdict, _) = give(&mut host, now, PortId(1), &reply);
    assert_eq!(verdict, Verdict::Drop(DropReason::NoConnection));
    // One that nobody asked for begins nothing.
    let made = host.stats().connections.made;
    let far = Ipv4Addr::new(9, 9, 9, 10);
    for identifier in [0, 7] {
        let reply = ping(far, VIP, identifier, true);
        let (verdict, _) = give(&mut host, now, FABRIC, &encapsulated(0, &reply));
        assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
        let reply = of_vm(0, &ping(dip(0), far, identifier, true));
        let (verdict, _) = give(&mut host, now, PortId(1), &reply);
        assert!(matches!(verdict, Verdict::Drop(_)), "{verdict:?}");
    }
    assert_eq!(host.stats().connections.made, made);
}

/// As at a mux (`a_clock_at_its_end_is_a_clock` there).
#[test]
fn a_clock_at_its_end_is_a_clock() {
    for first in [u64::MAX, u64::MAX - 1, u64::MAX - (1 << 20), 0] {
        let mut host = Host::with_capacity(snapshot(), 64, KEY).expect("its role");
        for now in [first, u64::MAX] {
            let now = Instant::from_nanos(now);
            host.advance(now, &mut Burst::new());
            let syn = tcp((Ipv4Addr::new(1, 1, 1, 1), 5000), (VIP, 80), 2, 1, b"");
            let (verdict, _) = give(&mut host, now, FABRIC, &encapsulated(0, &syn));
            assert_eq!(verdict, Verdict::Forward(PortId(1)));
            host.advance(now, &mut Burst::new());
        }
        assert_eq!(host.stats().connections.live, 1);
    }
}
