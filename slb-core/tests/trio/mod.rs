//! A mux, a host agent and a proxy of one small service in both families, and packets for them by
//! the byte.

#![allow(dead_code, reason = "each test file uses its own part of it")]

mod configuration;
mod packets;

use configuration::snapshot_with;
pub use configuration::{Way, snapshot};
pub use packets::{
    DESTINATION_OPTIONS, Ends, TCP, UDP, assert_readable, assert_summed, echo, ends, fragment,
    fragments, icmp, packet, reassembled, tcp, udp, with_header_checksum,
};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use slb_core::observe::Step;
use slb_core::snapshot::Snapshot;
use slb_core::spec::Echo;
use slb_core::wire::ethernet::MacAddress;
use slb_core::{
    Dataplane, Frame, HEADROOM, Host, Instant, Key, Mux, MuxOptions, PortId, Proxy, Verdict,
};

pub const FABRIC: PortId = PortId(0);
pub const VM: PortId = PortId(1);
pub const FRONTEND: PortId = PortId(2);
pub const BACKEND: PortId = PortId(7);
pub const NOW: Instant = Instant::from_secs(1000);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const VNI: u8 = 77;
/// The vm has an address of each family.
const VM_MAC: MacAddress = MacAddress([2, 0, 0, 0, 7, 1]);

/// The addresses of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    pub is_ipv6: bool,
}

pub const FAMILIES: [Family; 2] = [Family { is_ipv6: false }, Family { is_ipv6: true }];

impl Family {
    fn pick(self, ipv4: [u8; 4], ipv6: &str) -> IpAddr {
        if self.is_ipv6 {
            IpAddr::V6(ipv6.parse().unwrap())
        } else {
            IpAddr::V4(ipv4.into())
        }
    }

    pub fn vip(self) -> IpAddr {
        self.pick([20, 20, 20, 100], "2001:db8:20::100")
    }

    /// Every protocol of it is balanced.
    pub fn whole_vip(self) -> IpAddr {
        self.pick([20, 20, 20, 101], "2001:db8:20::101")
    }

    /// That vms call out under.
    pub fn snat(self) -> IpAddr {
        self.pick([20, 20, 20, 200], "2001:db8:20::200")
    }

    pub fn client(self) -> IpAddr {
        self.pick([198, 51, 100, 10], "2001:db8:c::10")
    }

    pub fn router(self) -> IpAddr {
        self.pick([203, 0, 113, 1], "2001:db8:ffff::1")
    }

    pub fn dip(self) -> IpAddr {
        self.pick([10, 10, 1, 1], "fd00:10::1")
    }

    /// The address that servers see in the place of clients' where a rule says so.
    pub fn balancer(self) -> IpAddr {
        self.pick([10, 99, 0, 1], "fd00:99::1")
    }

    /// A host agent's own.
    pub fn underlay(self) -> IpAddr {
        if self.is_ipv6 {
            HOST6.into()
        } else {
            HOST.into()
        }
    }

    pub fn icmp(self) -> u8 {
        if self.is_ipv6 { 58 } else { 1 }
    }

    pub fn echo_request(self) -> u8 {
        if self.is_ipv6 { 128 } else { 8 }
    }

    pub fn echo_reply(self) -> u8 {
        if self.is_ipv6 { 129 } else { 0 }
    }
}

pub type Shared = Box<Snapshot<'static>>;
const KEY: Key = Key::new([3, 4]);

/// A mux with some backends, each on a host of its own.
pub fn mux(echo: Echo) -> Mux<'static, Shared> {
    let elsewhere = Ipv4Addr::new(172, 17, 0, 100).into();
    Mux::with_capacity(snapshot(20, false, elsewhere, echo), 1000, KEY).expect("its role")
}

/// A mux and a host agent whose vm calls out under the VIP that a rule balances pings for.
pub fn mux_and_host_of_one_vip() -> (Mux<'static, Shared>, Host<'static, Shared>) {
    let under_vip = ([0, 1], Way::Plain);
    let of_vip = |backends| snapshot_with(backends, false, HOST.into(), Echo::Forward, under_vip);
    let mux = Mux::with_capacity(of_vip(20), 1000, KEY).expect("its role");
    let host = Host::with_capacity(of_vip(20), 1000, KEY).expect("its role");
    (mux, host)
}

/// The same, that pins no flow.
pub fn stateless_mux(echo: Echo) -> Mux<'static, Shared> {
    let elsewhere = Ipv4Addr::new(172, 17, 0, 100).into();
    Mux::stateless(snapshot(20, false, elsewhere, echo), KEY).expect("its role")
}

pub fn mux_with(echo: Echo, options: MuxOptions) -> Mux<'static, Shared> {
    mux(echo).with_options(options)
}

/// A host agent with one vm.
pub fn host() -> Host<'static, Shared> {
    host_for(1000)
}

/// A host agent with one vm and room for this many connections.
pub fn host_for(connections: usize) -> Host<'static, Shared> {
    let snapshot = snapshot(1, false, HOST.into(), Echo::Forward);
    Host::with_capacity(snapshot, connections, KEY).expect("its role")
}

/// A host agent whose rules have these terms.
pub fn host_of_way(way: Way) -> Host<'static, Shared> {
    let snapshot = snapshot_with(1, false, HOST.into(), Echo::Forward, ([4, 5], way));
    Host::with_capacity(snapshot, 1000, KEY).expect("its role")
}

/// A proxy whose rules have these terms.
pub fn proxy_of_way(way: Way) -> Proxy<'static, Shared> {
    let snapshot = snapshot_with(1, true, HOST.into(), Echo::Forward, ([4, 5], way));
    Proxy::with_capacity(snapshot, 1000, KEY).expect("its role")
}

/// A proxy that answers pings of its VIPs, whose rules reset.
pub fn proxy_that_answers() -> Proxy<'static, Shared> {
    let snapshot = snapshot_with(1, true, HOST.into(), Echo::Answer, ([4, 5], Way::Resets));
    Proxy::with_capacity(snapshot, 1000, KEY).expect("its role")
}

/// A mux that answers pings of its VIPs, whose rules reset and have no backend.
pub fn mux_without_backends() -> Mux<'static, Shared> {
    let snapshot = snapshot_with(0, false, HOST.into(), Echo::Answer, ([4, 5], Way::Resets));
    Mux::with_capacity(snapshot, 1000, KEY).expect("its role")
}

/// A proxy with one backend.
pub fn proxy() -> Proxy<'static, Shared> {
    proxy_for(1000)
}

/// A proxy with room for this many connections.
pub fn proxy_for(connections: usize) -> Proxy<'static, Shared> {
    let snapshot = snapshot(1, true, HOST.into(), Echo::Forward);
    Proxy::with_capacity(snapshot, connections, KEY).expect("its role")
}

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// From clients: at a host agent, out of VXLAN.
    Outside,
    /// From a vm or a backend.
    Inside,
}

/// A role under test: packets in, packets out.
pub trait Role: Dataplane<'static> {
    /// The port of a side.
    fn port(from: From) -> PortId;

    /// Returns true if packets from a side come in VXLAN.
    fn is_tunnelled(_: From) -> bool {
        false
    }

    /// Gives it an IP packet at a time; returns the verdict, and the IP packet that leaves.
    fn give(&mut self, now: Instant, from: From, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let frame = framed(packet);
        let frame = if Self::is_tunnelled(from) {
            encapsulated(&frame)
        } else {
            frame
        };
        let mut buffer = vec![0xa5; HEADROOM];
        buffer.extend(&frame);
        let mut frame = Frame::new(&mut buffer, HEADROOM, frame.len()).unwrap();
        frame.set_port(Self::port(from));
        let mut last = None;
        self.process_observed(now, std::slice::from_mut(&mut frame), &mut |_, step| {
            if let Step::Done(verdict) = step {
                last = Some(verdict);
            }
        });
        assert_eq!(last, Some(frame.verdict()), "the observer saw the verdict");
        let stats = self.stats();
        assert_eq!(stats.received, stats.accounted(), "each frame counts once");
        (frame.verdict(), inner(frame.bytes()))
    }

    /// [`give`](Self::give), of a packet that is to be forwarded: what leaves.
    fn pass(&mut self, now: Instant, from: From, packet: &[u8]) -> Vec<u8> {
        let (verdict, packet) = self.give(now, from, packet);
        assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
        packet
    }
}

impl Role for Mux<'static, Shared> {
    fn port(_: From) -> PortId {
        FABRIC
    }
}

impl Role for Host<'static, Shared> {
    fn port(from: From) -> PortId {
        match from {
            From::Outside => FABRIC,
            From::Inside => VM,
        }
    }

    fn is_tunnelled(from: From) -> bool {
        from == From::Outside
    }
}

impl Role for Proxy<'static, Shared> {
    fn port(from: From) -> PortId {
        match from {
            From::Outside => FRONTEND,
            From::Inside => BACKEND,
        }
    }
}

/// A packet in Ethernet.
pub fn framed(packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 6 {
        [0x86, 0xdd]
    } else {
        [8, 0]
    };
    let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8];
    frame.extend(ether_type);
    frame.extend(packet);
    frame
}

/// A frame for the vm, in VXLAN as a mux would send it.
fn encapsulated(frame: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0, VNI, 0];
    payload.extend(VM_MAC.0);
    payload.extend(&frame[6..]);
    let mut outer = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(MUX.octets(), HOST.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut outer, &payload)
        .unwrap();
    outer
}

/// The IP packet in a frame, out of VXLAN if it is in it.
pub fn inner(frame: &[u8]) -> Vec<u8> {
    let is_vxlan = frame.get(12..14) == Some(&[8, 0]) && frame.get(36..38) == Some(&[0x12, 0xb5]);
    let at = if is_vxlan { 14 + 50 } else { 14 };
    frame.get(at..).unwrap_or_default().to_vec()
}

/// The host that a frame's outer IPv4 header names.
pub fn host_of(frame: &[u8]) -> [u8; 4] {
    frame[30..34].try_into().unwrap()
}

/// Gives a mux a frame; returns its outer destination and what is inside.
pub fn tunnelled(mux: &mut Mux<'static, Shared>, packet: &[u8]) -> ([u8; 4], Vec<u8>) {
    let framed = framed(packet);
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(&framed);
    let mut frame = Frame::new(&mut buffer, HEADROOM, framed.len()).unwrap();
    mux.process(NOW, std::slice::from_mut(&mut frame));
    assert!(
        matches!(frame.verdict(), Verdict::Forward(_)),
        "{:?}",
        frame.verdict()
    );
    (host_of(frame.bytes()), inner(frame.bytes()))
}
