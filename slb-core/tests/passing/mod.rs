//! A mux and five host agents with six vms, through which packets go one at a time to where they end.

#![allow(dead_code, reason = "no test uses all of it")]

use crate::common::through;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use etherparse::PacketBuilder;
use slb_core::hash::{Hasher, Xxh3};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, Pool, Protocol, Rule, Spec, Terms, Underlay, derived_mac,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{DropReason, Host, Instant, Key, Mux, PortId, Verdict};

pub type Shared = Arc<Snapshot<'static>>;
pub type Weights = [u32; VMS];

pub const VMS: usize = 6;
/// Two vms at the first host, one at each other.
pub const HOST_OF: [usize; VMS] = [0, 0, 1, 2, 3, 4];
pub const HOSTS: usize = 5;
/// A weight that stands for a backend that is down.
pub const DOWN: u32 = u32::MAX;
/// The most that a weight is here.
const WHOLE: u32 = 1000;
pub const FABRIC: PortId = PortId(0);
pub const KEY: Key = Key::new([7, 8]);
pub const IDLE: u64 = 100;
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

#[derive(Clone, Copy)]
pub enum Node {
    Mux,
    Host(usize),
}

pub fn host_address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 0, 101 + host as u8)
}

pub const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);

pub fn vm_address(vm: usize, is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, vm as u16 + 1).into()
    } else {
        Ipv4Addr::new(10, 10, 0, vm as u8 + 1).into()
    }
}

pub fn vip(is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100).into()
    } else {
        Ipv4Addr::new(20, 20, 20, 100).into()
    }
}

pub fn client(is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(198, 51, 100, 1).into()
    }
}

pub fn snapshot(
    node: Node,
    is_ipv6: bool,
    weights: Weights,
    past: &[&[u32]],
    previous: Option<&Snapshot<'_>>,
) -> Shared {
    let names: Vec<String> = (0..VMS).map(|vm| format!("vm{vm}")).collect();
    let backends: Vec<Backend<'_>> = (0..VMS)
        .map(|vm| Backend {
            name: &names[vm],
            address: vm_address(vm, is_ipv6),
            host: host_address(HOST_OF[vm]).into(),
            weight: weights[vm].min(WHOLE),
            state: if weights[vm] == DOWN {
                BackendState::Down
            } else {
                BackendState::Up
            },
            port: match node {
                Node::Host(host) if host == HOST_OF[vm] => Some(PortId(vm as u16 + 1)),
                _ => None,
            },
            ..Backend::default()
        })
        .collect();
    let own = match node {
        Node::Mux => MUX,
        Node::Host(host) => host_address(host),
    };
    let rule = |name, protocol, port| Rule {
        name,
        protocol,
        frontend_port: port,
        backend_port: port,
        idle_timeout: Duration::from_secs(IDLE),
        terms: Terms {
            tcp_reset: true,
            ..Terms::default()
        },
        ..Rule::default()
    };
    let spec = Spec {
        hasher: Hasher::Xxh3(Xxh3::new(1)),
        hash_seed: 1,
        underlay: Underlay {
            ipv4: Some(own),
            mac: derived_mac(own.into()),
            port: FABRIC,
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: vip(is_ipv6),
            icmp_echo: Echo::Answer,
        }],
        rules: &[
            rule("http", Protocol::Tcp, 80),
            rule("dns", Protocol::Udp, 53),
            rule("ping", Protocol::Icmp, 0),
        ],
        pools: &[Pool {
            name: "servers",
            vni: Vni::new(5001).unwrap(),
            table_size: 251,
            backends: &backends,
            past,
            ..Pool::default()
        }],
        muxes: &[MUX.into()],
        ..Spec::default()
    };
    Arc::new(Snapshot::new(&spec, previous).unwrap())
}

/// The end of a packet's way.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// A vm has it.
    Vm(usize),
    /// The packet is an answer, and left to the outside.
    Outside,
    Dropped(DropReason),
    /// Neither forwarded nor dropped.
    Kept(Verdict),
    /// The packet reached a host without power.
    Lost,
}

pub struct Fleet {
    pub is_ipv6: bool,
    pub weights: Weights,
    pub hosts: Vec<Host<'static, Shared>>,
    pub mux: Mux<'static, Shared>,
    /// Hosts without power: what comes to them is lost.
    pub dead: [bool; HOSTS],
    pub now: u64,
    /// Frames on the fabric that the last packet was, the mux's first.
    pub on_fabric: Vec<Vec<u8>>,
}

impl Fleet {
    pub fn new(is_ipv6: bool) -> Self {
        Self::with_past(is_ipv6, [1; VMS], &[])
    }

    pub fn with_past(is_ipv6: bool, weights: Weights, past: &[&[u32]]) -> Self {
        let of = |node| snapshot(node, is_ipv6, weights, past, None);
        let hosts =
            (0..HOSTS).map(|host| Host::with_capacity(of(Node::Host(host)), 1000, KEY).unwrap());
        Self {
            is_ipv6,
            weights,
            hosts: hosts.collect(),
            mux: Mux::stateless(of(Node::Mux), KEY).unwrap(),
            dead: [false; HOSTS],
            now: 1000,
            on_fabric: Vec::new(),
        }
    }

    /// Gives hosts and the mux other weights.
    pub fn reweigh(&mut self, weights: Weights) {
        self.weights = weights;
        for (number, host) in self.hosts.iter_mut().enumerate() {
            let node = Node::Host(number);
            let next = snapshot(node, self.is_ipv6, weights, &[], Some(host.snapshot()));
            host.install(next).expect("it follows");
        }
        self.mux = self.mux_of(weights);
    }

    pub fn drain(&mut self, vm: usize) {
        let mut weights = self.weights;
        weights[vm] = 0;
        self.reweigh(weights);
    }

    /// Replaces the mux by one that pins so many flows, or none.
    pub fn pin(&mut self, flows: usize) {
        let snapshot = snapshot(Node::Mux, self.is_ipv6, self.weights, &[], None);
        self.mux = Mux::with_capacity(snapshot, flows, KEY).unwrap();
    }

    /// Gives hosts and the mux other weights: the mux goes on with what it knows.
    pub fn change(&mut self, weights: Weights) {
        let next = snapshot(
            Node::Mux,
            self.is_ipv6,
            weights,
            &[],
            Some(self.mux.snapshot()),
        );
        self.mux.install(next).expect("it follows");
        let spare = self.mux_of(weights);
        let mux = std::mem::replace(&mut self.mux, spare);
        self.reweigh(weights);
        self.mux = mux;
    }

    pub fn mux_of(&self, weights: Weights) -> Mux<'static, Shared> {
        let snapshot = snapshot(Node::Mux, self.is_ipv6, weights, &[], None);
        Mux::stateless(snapshot, KEY).unwrap()
    }

    pub fn process(&mut self, node: Node, port: PortId, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let now = Instant::from_secs(self.now);
        through(port, frame, |frames| match node {
            Node::Mux => self.mux.process(now, frames),
            Node::Host(host) => self.hosts[host].process(now, frames),
        })
    }

    /// Sends a client's packet through the mux, and on to where it ends.
    pub fn send(&mut self, packet: &[u8]) -> End {
        let (verdict, frame) = self.process(Node::Mux, FABRIC, packet);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
        self.deliver(frame)
    }

    /// The frame that a mux with other weights makes of a client's packet.
    pub fn sent_by(&mut self, weights: Weights, packet: &[u8]) -> Vec<u8> {
        let other = self.mux_of(weights);
        let own = std::mem::replace(&mut self.mux, other);
        let (verdict, frame) = self.process(Node::Mux, FABRIC, packet);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
        self.mux = own;
        frame
    }

    /// Sends a packet through a mux that has other weights.
    pub fn send_by(&mut self, weights: Weights, packet: &[u8]) -> End {
        let other = self.mux_of(weights);
        let own = std::mem::replace(&mut self.mux, other);
        let end = self.send(packet);
        self.mux = own;
        end
    }

    /// Follows a frame on the fabric.
    pub fn deliver(&mut self, mut frame: Vec<u8>) -> End {
        self.on_fabric.clear();
        loop {
            self.on_fabric.push(frame.clone());
            assert!(self.on_fabric.len() <= 9, "too many hops");
            let Some(host) = (0..HOSTS).find(|&h| frame[30..34] == host_address(h).octets()) else {
                self.on_fabric.pop();
                return End::Outside;
            };
            if self.dead[host] {
                return End::Lost;
            }
            let (verdict, out) = self.process(Node::Host(host), FABRIC, &frame);
            match verdict {
                Verdict::Forward(FABRIC) => frame = out,
                Verdict::Forward(PortId(port)) => {
                    let vm = usize::from(port) - 1;
                    let mac = derived_mac(vm_address(vm, self.is_ipv6));
                    assert_eq!(out[..6], mac.0, "the address of the vm that gets it");
                    return End::Vm(vm);
                }
                Verdict::Drop(reason) => return End::Dropped(reason),
                other => return End::Kept(other),
            }
        }
    }

    /// Number of times that the last packet was passed on.
    pub fn hops(&self) -> usize {
        self.on_fabric.len() - 1
    }

    /// A vm answers the client's packet.
    pub fn answer(&mut self, vm: usize, packet: &[u8]) {
        let port = PortId(vm as u16 + 1);
        let (verdict, _) = self.process(Node::Host(HOST_OF[vm]), port, packet);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
    }

    pub fn packet(
        &self,
        is_from_client: bool,
        vm: usize,
    ) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let server = vm_address(vm, self.is_ipv6);
        let link = PacketBuilder::ethernet2(CLIENT_MAC, derived_mac(server).0);
        let (from, to) = match is_from_client {
            true => (client(self.is_ipv6), vip(self.is_ipv6)),
            false => (server, client(self.is_ipv6)),
        };
        match (from, to) {
            (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 64),
            (IpAddr::V6(a), IpAddr::V6(b)) => link.ipv6(a.octets(), b.octets(), 64),
            _ => unreachable!("of one family"),
        }
    }

    pub fn syn(&self, port: u16, sequence: u32) -> Vec<u8> {
        let mut packet = Vec::new();
        let tcp = self.packet(true, 0).tcp(port, 80, sequence, 1000);
        tcp.syn().write(&mut packet, &[]).unwrap();
        packet
    }

    pub fn segment(&self, port: u16, sequence: u32, acknowledged: u32) -> Vec<u8> {
        let mut packet = Vec::new();
        let tcp = self.packet(true, 0).tcp(port, 80, sequence, 1000);
        tcp.ack(acknowledged).write(&mut packet, b"more").unwrap();
        packet
    }

    pub fn datagram(&self, port: u16) -> Vec<u8> {
        let mut packet = Vec::new();
        let udp = self.packet(true, 0).udp(port, 53);
        udp.write(&mut packet, b"question").unwrap();
        packet
    }

    /// An echo request of one of many clients, or a vm's answer to it.
    pub fn ping(&self, number: u8, answered_by: Option<usize>) -> Vec<u8> {
        let identifier = 1000 + u16::from(number);
        let client: IpAddr = match client(self.is_ipv6) {
            IpAddr::V4(first) => Ipv4Addr::from(first.to_bits() + u32::from(number)).into(),
            IpAddr::V6(first) => Ipv6Addr::from(first.to_bits() + u128::from(number)).into(),
        };
        let (from, to) = match answered_by {
            None => (client, vip(self.is_ipv6)),
            Some(vm) => (vm_address(vm, self.is_ipv6), client),
        };
        let mac = derived_mac(vm_address(answered_by.unwrap_or(0), self.is_ipv6));
        let link = PacketBuilder::ethernet2(CLIENT_MAC, mac.0);
        let mut packet = Vec::new();
        match (from, to, answered_by) {
            (IpAddr::V4(a), IpAddr::V4(b), None) => link
                .ipv4(a.octets(), b.octets(), 64)
                .icmpv4_echo_request(identifier, 1)
                .write(&mut packet, b"ping"),
            (IpAddr::V4(a), IpAddr::V4(b), Some(_)) => link
                .ipv4(a.octets(), b.octets(), 64)
                .icmpv4_echo_reply(identifier, 1)
                .write(&mut packet, b"ping"),
            (IpAddr::V6(a), IpAddr::V6(b), None) => link
                .ipv6(a.octets(), b.octets(), 64)
                .icmpv6_echo_request(identifier, 1)
                .write(&mut packet, b"ping"),
            (IpAddr::V6(a), IpAddr::V6(b), Some(_)) => link
                .ipv6(a.octets(), b.octets(), 64)
                .icmpv6_echo_reply(identifier, 1)
                .write(&mut packet, b"ping"),
            _ => unreachable!("of one family"),
        }
        .unwrap();
        packet
    }

    /// Has a connection come about from a client's port: sequence numbers of the client begin at 100,
    /// those of the server at `server`. Returns the vm.
    pub fn connect(&mut self, port: u16, server: u32) -> usize {
        let syn = self.syn(port, 99);
        let End::Vm(vm) = self.send(&syn) else {
            panic!("nobody takes the SYN")
        };
        let mut answer = Vec::new();
        let tcp = self.packet(false, vm).tcp(80, port, server - 1, 1000);
        tcp.syn().ack(100).write(&mut answer, &[]).unwrap();
        self.answer(vm, &answer);
        let ack = self.segment(port, 100, server);
        assert_eq!(self.send(&ack), End::Vm(vm));
        vm
    }

    pub fn stats(&self, host: usize) -> slb_core::Stats {
        self.hosts[host].stats()
    }
}
