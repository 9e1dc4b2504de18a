//! VXLAN into a host agent: whatever comes, a vm gets only what a known peer sent into its network, whole, and
//! with the bytes that were in it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use bolero::TypeGenerator;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, Pool, Protocol, Rule, Spec, Terms, Underlay, derived_mac,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{Frame, Host, Instant, Key, PortId, Verdict};
use slb_fuzz::VIP;

const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const MUX6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x11);
const VM: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 1);
const VNI: u32 = 5001;

fn snapshot() -> &'static Snapshot<'static> {
    static SNAPSHOT: OnceLock<Snapshot<'static>> = OnceLock::new();
    SNAPSHOT.get_or_init(|| {
        let backends = [Backend {
            name: "vm",
            address: VM.into(),
            host: HOST.into(),
            port: Some(PortId(1)),
            ..Backend::default()
        }];
        let spec = Spec {
            underlay: Underlay {
                ipv4: Some(HOST),
                ipv6: Some(HOST6),
                mtu: 9000,
                ..Underlay::default()
            },
            frontends: &[Frontend {
                name: "web",
                address: VIP.into(),
                icmp_echo: Echo::Answer,
            }],
            rules: &[Rule {
                name: "all",
                protocol: Protocol::All,
                // What is inside stays as it is, so that it can be compared.
                terms: Terms {
                    floating_ip: true,
                    ..Terms::default()
                },
                ..Rule::default()
            }],
            pools: &[Pool {
                name: "p",
                vni: Vni::new(VNI).expect("small"),
                table_size: 3,
                backends: &backends,
                ..Pool::default()
            }],
            muxes: &[MUX.into(), MUX6.into()],
            ..Spec::default()
        };
        Snapshot::new(&spec, None).expect("a good spec")
    })
}

#[derive(Clone, Debug, TypeGenerator)]
struct Tunnelled {
    ipv6: bool,
    /// Another peer, host, port, flag, network, MAC address.
    wrong: u8,
    with_checksum: bool,
    client: u8,
    data: Vec<u8>,
    changes: Vec<(u8, u8)>,
    cut: Option<u8>,
}

impl Tunnelled {
    fn frame(&self) -> (Vec<u8>, Vec<u8>) {
        let is_wrong = |bit: u8| self.wrong & 0x80 != 0 && self.wrong & 7 == bit;
        let mut inner = Vec::new();
        let mac = if is_wrong(5) {
            [2; 6]
        } else {
            derived_mac(VM.into()).0
        };
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], mac)
            .ipv4([11, 0, 0, self.client], VIP, 64)
            .udp(1000, 53)
            .write(&mut inner, &self.data)
            .expect("memory");
        let network = if is_wrong(4) { VNI + 1 } else { VNI };
        let [_, a, b, c] = network.to_be_bytes();
        let flags = if is_wrong(3) { 0 } else { 8 };
        let payload = [&[flags, 0, 0, 0, a, b, c, 0], &inner[..]].concat();
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
        let (other, other6) = (Ipv4Addr::new(172, 16, 0, 99), Ipv6Addr::LOCALHOST);
        let ip = if self.ipv6 {
            let from = if is_wrong(0) { other6 } else { MUX6 };
            let to = if is_wrong(1) { other6 } else { HOST6 };
            link.ipv6(from.octets(), to.octets(), 64)
        } else {
            let from = if is_wrong(0) { other } else { MUX };
            let to = if is_wrong(1) { other } else { HOST };
            link.ipv4(from.octets(), to.octets(), 64)
        };
        let mut frame = Vec::new();
        let port = if is_wrong(2) { 4790 } else { 4789 };
        ip.udp(50_000, port)
            .write(&mut frame, &payload)
            .expect("memory");
        if !self.with_checksum && !self.ipv6 {
            frame[40..42].fill(0);
        }
        for &(at, value) in self.changes.iter().take(3) {
            if let Some(byte) = frame.get_mut(usize::from(at)) {
                *byte = value;
            }
        }
        if let Some(cut) = self.cut {
            frame.truncate(cut.into());
        }
        (frame, inner)
    }
}

/// Returns true if a frame may go to the vm, as etherparse reads it.
fn may_be_delivered(frame: &[u8]) -> bool {
    let Ok(outer) = SlicedPacket::from_ethernet(frame) else {
        return false;
    };
    let Some(TransportSlice::Udp(udp)) = &outer.transport else {
        return false;
    };
    let (is_known, sum) = match &outer.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let (from, to) = (header.source(), header.destination());
            let sum = udp
                .to_header()
                .calc_checksum_ipv4_raw(from, to, udp.payload());
            // Another host may send, too: this one is its own.
            let is_peer = [MUX, HOST].contains(&from.into());
            (is_peer && Ipv4Addr::from(to) == HOST, sum)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let (from, to) = (header.source(), header.destination());
            let sum = udp
                .to_header()
                .calc_checksum_ipv6_raw(from, to, udp.payload());
            (
                Ipv6Addr::from(from) == MUX6 && Ipv6Addr::from(to) == HOST6,
                sum,
            )
        }
        _ => return false,
    };
    let [flags, _, _, _, a, b, c, _, ..] = *udp.payload() else {
        return false;
    };
    let is_right = udp.checksum() == 0 || sum.is_ok_and(|sum| sum == udp.checksum());
    is_known
        && is_right
        && udp.destination_port() == 4789
        && flags & 8 != 0
        && u32::from_be_bytes([0, a, b, c]) == VNI
}

#[test]
fn a_vm_gets_what_a_known_peer_sent_and_nothing_else() {
    bolero::check!()
        .with_type::<Vec<Tunnelled>>()
        .for_each(|all| {
            let mut host = Host::with_capacity(snapshot(), 64, Key::new([1, 2])).expect("its role");
            for tunnelled in all {
                let (bytes, inner) = tunnelled.frame();
                let mut buffer = [&bytes[..], &[0xa5; 16]].concat();
                let mut frames = [Frame::new(&mut buffer, 0, bytes.len()).expect("room")];
                host.process(Instant::from_secs(1), &mut frames);
                let verdict = frames[0].verdict();
                if verdict == Verdict::Forward(PortId(1)) {
                    assert!(may_be_delivered(&bytes), "{bytes:02x?}");
                    if tunnelled.changes.is_empty() {
                        // All of it, but for the MAC addresses and the TTL with its checksum.
                        let out = frames[0].bytes();
                        assert_eq!(out[26..], inner[26..]);
                    }
                } else if tunnelled.wrong & 0x80 == 0
                    && tunnelled.changes.is_empty()
                    && tunnelled.cut.is_none()
                {
                    panic!("{verdict:?} of a good frame");
                }
                assert!(buffer[bytes.len()..].iter().all(|&byte| byte == 0xa5));
            }
            let stats = host.stats();
            assert_eq!(stats.received, stats.accounted());
        });
}
