//! Hosts pass on packets of other hosts' connections: each kind of packet, between real muxes and hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use etherparse::PacketBuilder;
use slb_core::hash::{Hasher, Xxh3};
use slb_core::nat::NatOptions;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, Echo, Frontend, Pool, Protocol, Rule, Spec, Terms, Underlay, derived_mac,
};
use slb_core::wire::vxlan::Vni;
use slb_core::{DropReason, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Verdict};

type Shared = Arc<Snapshot<'static>>;
type Weights = [u32; VMS];

const VMS: usize = 6;
/// Two vms at the first host, one at each other.
const HOST_OF: [usize; VMS] = [0, 0, 1, 2, 3, 4];
const HOSTS: usize = 5;
const FABRIC: PortId = PortId(0);
const KEY: Key = Key::new([7, 8]);
const IDLE: u64 = 100;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

#[derive(Clone, Copy)]
enum Node {
    Mux,
    Host(usize),
}

fn host_address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 0, 101 + host as u8)
}

const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);

fn vm_address(vm: usize, is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, vm as u16 + 1).into()
    } else {
        Ipv4Addr::new(10, 10, 0, vm as u8 + 1).into()
    }
}

fn vip(is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100).into()
    } else {
        Ipv4Addr::new(20, 20, 20, 100).into()
    }
}

fn client(is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(198, 51, 100, 1).into()
    }
}

fn snapshot(
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
            weight: weights[vm],
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
        }],
        muxes: &[MUX.into()],
        ..Spec::default()
    };
    Arc::new(Snapshot::new(&spec, previous).unwrap())
}

/// What became of a packet in the end.
#[derive(Clone, Debug, PartialEq)]
enum End {
    /// A vm has it.
    Vm(usize),
    /// It went to the outside: an answer.
    Outside,
    Dropped(DropReason),
}

struct Fleet {
    is_ipv6: bool,
    weights: Weights,
    hosts: Vec<Host<'static, Shared>>,
    mux: Mux<'static, Shared>,
    now: u64,
    /// Frames on the fabric that the last packet was, the mux's first.
    on_fabric: Vec<Vec<u8>>,
}

impl Fleet {
    fn new(is_ipv6: bool) -> Self {
        Self::with_past(is_ipv6, [1; VMS], &[])
    }

    fn with_past(is_ipv6: bool, weights: Weights, past: &[&[u32]]) -> Self {
        let of = |node| snapshot(node, is_ipv6, weights, past, None);
        let hosts =
            (0..HOSTS).map(|host| Host::with_capacity(of(Node::Host(host)), 1000, KEY).unwrap());
        Self {
            is_ipv6,
            weights,
            hosts: hosts.collect(),
            mux: Mux::stateless(of(Node::Mux), KEY).unwrap(),
            now: 1000,
            on_fabric: Vec::new(),
        }
    }

    /// Gives hosts and the mux other weights.
    fn reweigh(&mut self, weights: Weights) {
        self.weights = weights;
        for (number, host) in self.hosts.iter_mut().enumerate() {
            let node = Node::Host(number);
            let next = snapshot(node, self.is_ipv6, weights, &[], Some(host.snapshot()));
            host.install(next).expect("it follows");
        }
        self.mux = self.mux_of(weights);
    }

    fn drain(&mut self, vm: usize) {
        let mut weights = self.weights;
        weights[vm] = 0;
        self.reweigh(weights);
    }

    fn mux_of(&self, weights: Weights) -> Mux<'static, Shared> {
        let snapshot = snapshot(Node::Mux, self.is_ipv6, weights, &[], None);
        Mux::stateless(snapshot, KEY).unwrap()
    }

    fn process(&mut self, node: Node, port: PortId, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(frame);
        let mut frames = [Frame::new(&mut buffer, HEADROOM, frame.len()).unwrap()];
        frames[0].set_port(port);
        let now = Instant::from_secs(self.now);
        match node {
            Node::Mux => self.mux.process(now, &mut frames),
            Node::Host(host) => self.hosts[host].process(now, &mut frames),
        }
        (frames[0].verdict(), frames[0].bytes().to_vec())
    }

    /// Sends a client's packet through the mux, and on to where it ends.
    fn send(&mut self, packet: &[u8]) -> End {
        let (verdict, frame) = self.process(Node::Mux, FABRIC, packet);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
        self.deliver(frame)
    }

    /// The same through a mux that has other weights.
    fn send_by(&mut self, weights: Weights, packet: &[u8]) -> End {
        let other = self.mux_of(weights);
        let own = std::mem::replace(&mut self.mux, other);
        let end = self.send(packet);
        self.mux = own;
        end
    }

    /// Follows a frame on the fabric.
    fn deliver(&mut self, mut frame: Vec<u8>) -> End {
        self.on_fabric.clear();
        loop {
            self.on_fabric.push(frame.clone());
            assert!(self.on_fabric.len() <= 9, "too many hops");
            let Some(host) = (0..HOSTS).find(|&h| frame[30..34] == host_address(h).octets()) else {
                self.on_fabric.pop();
                return End::Outside;
            };
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
                other => panic!("{other:?}"),
            }
        }
    }

    /// How often the last packet was passed on.
    fn hops(&self) -> usize {
        self.on_fabric.len() - 1
    }

    /// A vm answers the client's packet.
    fn answer(&mut self, vm: usize, packet: &[u8]) {
        let port = PortId(vm as u16 + 1);
        let (verdict, _) = self.process(Node::Host(HOST_OF[vm]), port, packet);
        assert_eq!(verdict, Verdict::Forward(FABRIC));
    }

    fn packet(
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

    fn syn(&self, port: u16, sequence: u32) -> Vec<u8> {
        let mut packet = Vec::new();
        let tcp = self.packet(true, 0).tcp(port, 80, sequence, 1000);
        tcp.syn().write(&mut packet, &[]).unwrap();
        packet
    }

    fn segment(&self, port: u16, sequence: u32, acknowledged: u32) -> Vec<u8> {
        let mut packet = Vec::new();
        let tcp = self.packet(true, 0).tcp(port, 80, sequence, 1000);
        tcp.ack(acknowledged).write(&mut packet, b"more").unwrap();
        packet
    }

    fn datagram(&self, port: u16) -> Vec<u8> {
        let mut packet = Vec::new();
        let udp = self.packet(true, 0).udp(port, 53);
        udp.write(&mut packet, b"question").unwrap();
        packet
    }

    /// An echo request of one of many clients, or a vm's answer to it.
    fn ping(&self, number: u8, answered_by: Option<usize>) -> Vec<u8> {
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
    fn connect(&mut self, port: u16, server: u32) -> usize {
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

    fn stats(&self, host: usize) -> slb_core::Stats {
        self.hosts[host].stats()
    }
}

const FAMILIES: [bool; 2] = [false, true];

#[test]
fn segments_go_where_the_connection_is_through_four_drains() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let served: Vec<usize> = (0..200).map(|n| fleet.connect(2000 + n, 5000)).collect();
        let mut most = 0;
        for drained in [0, 3, 5, 2] {
            fleet.drain(drained);
            for (number, &vm) in (0..).zip(&served) {
                let segment = fleet.segment(2000 + number, 104, 5000);
                assert_eq!(fleet.send(&segment), End::Vm(vm), "{drained}, {number}");
                most = most.max(fleet.hops());
            }
        }
        assert!((2..=4).contains(&most), "{most} hops");
    }
}

#[test]
fn what_is_passed_on_keeps_its_outer_source_port_and_its_length() {
    let mut fleet = Fleet::new(false);
    let served: Vec<usize> = (0..50).map(|n| fleet.connect(2000 + n, 5000)).collect();
    fleet.drain(2);
    let moved = served.iter().position(|&vm| vm == 2).unwrap() as u16;
    let segment = fleet.segment(2000 + moved, 104, 5000);
    assert_eq!((fleet.send(&segment), fleet.hops()), (End::Vm(2), 1));
    let [first, second] = &fleet.on_fabric[..] else {
        panic!("one hop")
    };
    assert_eq!(first.len(), second.len());
    assert_eq!(first[34..38], second[34..38], "UDP ports");
    // The inner source address is the mark: locally administered, hop 1.
    assert_eq!(second[50 + 6..50 + 8], [0x72, 0x00]);
    assert_ne!(first[50 + 6], 0x72);
}

#[test]
fn a_syn_goes_to_the_present_owner_only_where_the_vm_takes_none() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let before = fleet.weights;
        fleet.drain(4);
        let mut moved = 0;
        for port in 2000..2200 {
            let syn = fleet.syn(port, 7);
            let End::Vm(owner) = fleet.send(&syn) else {
                panic!("nobody takes the SYN")
            };
            assert_eq!(fleet.hops(), 0);
            // A mux that has not heard of the drain.
            let syn = fleet.syn(port + 1000, 7);
            let end = fleet.send_by(before, &syn);
            assert!(end != End::Vm(4) && end != End::Outside, "{end:?}");
            assert!(owner != 4);
            moved += fleet.hops();
        }
        assert!(moved > 10, "{moved}");
        // Back again: another mux still has it drained, and the owner that it knows takes the SYN.
        let drained = fleet.weights;
        fleet.reweigh(before);
        for port in 4000..4200 {
            let syn = fleet.syn(port, 7);
            assert!(matches!(fleet.send_by(drained, &syn), End::Vm(_)));
            assert_eq!(fleet.hops(), 0);
        }
    }
}

#[test]
fn a_new_connection_of_old_ports_is_found_behind_a_stale_pin() {
    for is_ipv6 in FAMILIES {
        for old in ["nothing", "half-open", "closed"] {
            let mut fleet = Fleet::new(is_ipv6);
            let before = fleet.weights;
            let ports = 2000..2100;
            let mut olds = Vec::new();
            for port in ports.clone() {
                match old {
                    "closed" => {
                        let vm = fleet.connect(port, 900_000);
                        // The server resets it.
                        let mut reset = Vec::new();
                        let tcp = fleet.packet(false, vm).tcp(80, port, 900_000, 0);
                        tcp.rst().write(&mut reset, &[]).unwrap();
                        fleet.answer(vm, &reset);
                        olds.push(vm);
                    }
                    "half-open" => {
                        let syn = fleet.syn(port, 99);
                        let End::Vm(vm) = fleet.send(&syn) else {
                            panic!("nobody takes the SYN")
                        };
                        olds.push(vm);
                    }
                    _ => {}
                }
            }
            fleet.drain(1);
            fleet.drain(4);
            let mut moved = 0;
            for port in ports {
                let vm = fleet.connect(port, 5_000_000);
                // The stale pin is one to the owner of before.
                let segment = fleet.segment(port, 104, 5_000_000);
                assert_eq!(
                    fleet.send_by(before, &segment),
                    End::Vm(vm),
                    "{old}, {port}"
                );
                moved += fleet.hops();
            }
            assert!(moved > 0 && (old == "nothing") == olds.is_empty());
        }
    }
}

#[test]
fn errors_about_a_flow_follow_it() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let served: Vec<usize> = (0..100).map(|n| fleet.connect(2000 + n, 5000)).collect();
        fleet.drain(3);
        let mut passed = 0;
        for (number, &vm) in (0..).zip(&served) {
            let port = 2000 + number;
            // Quotes what the vm sent under the VIP's name, the last number that it sent.
            let mut quoted = Vec::new();
            let (from, to) = (vip(is_ipv6), client(is_ipv6));
            let link = PacketBuilder::ethernet2(CLIENT_MAC, CLIENT_MAC);
            let step = match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 60),
                (IpAddr::V6(a), IpAddr::V6(b)) => link.ipv6(a.octets(), b.octets(), 60),
                _ => unreachable!("of one family"),
            };
            step.tcp(80, port, 4999, 1000)
                .ack(100)
                .write(&mut quoted, &[])
                .unwrap();
            let mut error = Vec::new();
            let step = fleet.packet(true, 0);
            let written = if is_ipv6 {
                step.icmpv6_raw(2, 0, 1280u32.to_be_bytes())
                    .write(&mut error, &quoted[14..])
            } else {
                let mtu = [0, 0, 5, 120];
                step.icmpv4_raw(3, 4, mtu).write(&mut error, &quoted[14..])
            };
            written.unwrap();
            assert_eq!(fleet.send(&error), End::Vm(vm), "{number}");
            passed += usize::from(fleet.hops() > 0);
        }
        assert!(passed > 5, "{passed}");
    }
}

#[test]
fn former_owners_are_asked_for_a_datagram_and_the_present_one_takes_it() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let ports = 2000..2100;
        let first: Vec<End> = ports
            .clone()
            .map(|port| {
                let datagram = fleet.datagram(port);
                fleet.send(&datagram)
            })
            .collect();
        fleet.drain(2);
        fleet.drain(4);
        let mut asked = 0;
        for (port, vm) in ports.clone().zip(&first) {
            // Who has the flow keeps it.
            let old = fleet.datagram(port);
            assert_eq!(fleet.send(&old), *vm, "{port}");
            // A new flow is for the present owner, at once or in the end.
            let new = fleet.datagram(port + 1000);
            let End::Vm(taker) = fleet.send(&new) else {
                panic!("nobody takes it")
            };
            assert!(taker != 2 && taker != 4);
            asked += fleet.hops();
            // From then on it is known there.
            assert_eq!(fleet.send(&new), End::Vm(taker));
            assert_eq!(fleet.hops(), 0);
        }
        assert!(asked > 10, "{asked}");
        let back: u64 = (0..HOSTS).map(|host| fleet.stats(host).passed_back).sum();
        assert!(back > 5, "{back}");
        // Flows from before the change are over by then.
        fleet.now += IDLE + 1;
        for port in ports {
            let datagram = fleet.datagram(port + 2000);
            assert!(matches!(fleet.send(&datagram), End::Vm(_)));
            assert_eq!(fleet.hops(), 0);
        }
    }
}

/// A mux chooses a ping's slot without its identifier, and so do the hosts that it comes to.
#[test]
fn a_ping_is_passed_on_to_the_former_owner_of_the_slot_that_muxes_choose() {
    for is_ipv6 in FAMILIES {
        let mut fleet = Fleet::new(is_ipv6);
        let mut served = [0; VMS];
        let mut of_first = Vec::new();
        for client in 1..=60 {
            let ping = fleet.ping(client, None);
            let End::Vm(vm) = fleet.send(&ping) else {
                panic!("nobody takes the ping");
            };
            served[vm] += 1;
            let answer = fleet.ping(client, Some(vm));
            fleet.answer(vm, &answer);
            assert_eq!(fleet.send(&ping), End::Vm(vm));
            if vm == 0 {
                of_first.push(client);
            }
        }
        assert!(served.iter().all(|&count| count > 0), "{served:?}");
        fleet.drain(0);
        let mut hops = 0;
        for client in of_first {
            let ping = fleet.ping(client, None);
            assert_eq!(fleet.send(&ping), End::Vm(0), "IPv6: {is_ipv6}, {client}");
            hops += fleet.hops();
        }
        assert!(hops > 0, "some came to another host");
    }
}

#[test]
fn a_vm_of_the_same_host_needs_no_detour() {
    let mut fleet = Fleet::new(false);
    // Only the vms of the first host serve, so slots of one go to the other.
    fleet.reweigh([1, 1, 0, 0, 0, 0]);
    let served: Vec<usize> = (0..50).map(|n| fleet.connect(2000 + n, 5000)).collect();
    fleet.drain(0);
    for (number, &vm) in (0..).zip(&served) {
        let segment = fleet.segment(2000 + number, 104, 5000);
        assert_eq!((fleet.send(&segment), fleet.hops()), (End::Vm(vm), 0));
        let syn = fleet.syn(3000 + number, 7);
        let end = fleet.send_by([1, 1, 0, 0, 0, 0], &syn);
        assert_eq!((end, fleet.hops()), (End::Vm(1), 0));
    }
    assert!(served.contains(&0));
}

#[test]
fn where_nobody_has_the_connection_its_sender_is_told() {
    let mut fleet = Fleet::new(false);
    fleet.drain(3);
    let mut passed = 0;
    for port in 2000..2100 {
        let segment = fleet.segment(port, 104, 5000);
        assert_eq!(fleet.send(&segment), End::Outside);
        passed += fleet.hops();
    }
    assert!(passed > 10, "{passed}");
    let resets: u64 = (0..HOSTS).map(|host| fleet.stats(host).resets).sum();
    assert_eq!(resets, 100);
}

#[test]
fn a_host_that_starts_knows_the_past_that_it_is_given() {
    let (before, after) = ([1; VMS], [1, 1, 1, 0, 1, 1]);
    let mut fleet = Fleet::new(false);
    let served: Vec<usize> = (0..100).map(|n| fleet.connect(2000 + n, 5000)).collect();
    fleet.drain(3);
    let knows = Fleet::with_past(false, after, &[&before]);
    let knows_not = Fleet::with_past(false, after, &[]);
    for (mut started, finds) in [(knows, true), (knows_not, false)] {
        // All hosts but the one with the connections started anew.
        std::mem::swap(&mut started.hosts[2], &mut fleet.hosts[2]);
        for (number, _) in (0..).zip(&served).filter(|&(_, &vm)| vm == 3) {
            let segment = started.segment(2000 + number, 104, 5000);
            assert_eq!(started.send(&segment) == End::Vm(3), finds);
        }
        std::mem::swap(&mut started.hosts[2], &mut fleet.hosts[2]);
    }
    assert!(served.contains(&3));
}

#[test]
fn packets_above_the_limit_are_dropped_as_astray() {
    let mut fleet = Fleet::new(false);
    let options = NatOptions {
        passes_per_second: 100,
        passes_at_once: 10,
        ..NatOptions::default()
    };
    let hosts = std::mem::take(&mut fleet.hosts).into_iter();
    fleet.hosts = hosts.map(|host| host.with_options(options)).collect();
    let known = fleet.connect(1999, 5000);
    fleet.drain(3);
    let mut astray = 0;
    for port in 2000..3000 {
        let segment = fleet.segment(port, 104, 5000);
        astray += u32::from(fleet.send(&segment) == End::Dropped(DropReason::Astray));
    }
    let passed: u64 = (0..HOSTS).map(|host| fleet.stats(host).passed_on).sum();
    assert!(
        astray > 100 && passed <= 10 * HOSTS as u64,
        "{astray}, {passed}"
    );
    // What is here is disturbed by none of it.
    let segment = fleet.segment(1999, 104, 5000);
    assert_eq!(fleet.send(&segment), End::Vm(known));
    assert!(fleet.hops() == 0 || known == 3);
}

#[test]
fn a_mark_is_believed_from_hosts_only() {
    let mut fleet = Fleet::new(false);
    fleet.drain(3);
    // A datagram whose mark says that it is to be taken where it comes.
    let mut marked = 0;
    for port in 2000..2100 {
        let datagram = fleet.datagram(port);
        let (_, mut frame) = fleet.process(Node::Mux, FABRIC, &datagram);
        frame[50 + 6..50 + 12].copy_from_slice(&[0x72, 0x10, 0, 0, 0, 0]);
        let from_mux = fleet.deliver(frame.clone());
        assert!(matches!(from_mux, End::Vm(_)));
        marked += fleet.hops();
        // The same from a host, for another flow.
        let datagram = fleet.datagram(port + 1000);
        let (_, mut frame) = fleet.process(Node::Mux, FABRIC, &datagram);
        frame[50 + 6..50 + 12].copy_from_slice(&[0x72, 0x10, 0, 0, 0, 0]);
        let there = frame[33];
        let other = if there == 101 { 102 } else { 101 };
        // One's complement: the checksum of the other source address.
        let old = u16::from_be_bytes([frame[28], frame[29]]);
        let new = u16::from_be_bytes([0, other]);
        frame[29] = other;
        let checksum = u16::from_be_bytes([frame[24], frame[25]]);
        let checksum = slb_core::wire::checksum::update(checksum, old, new);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        assert!(matches!(fleet.deliver(frame), End::Vm(_)));
        assert_eq!(fleet.hops(), 0, "it was passed back");
    }
    assert!(marked > 5, "{marked}");
}

/// Whether the mark of a frame on the fabric says that it goes back to who takes it.
fn is_passed_back(frame: &[u8]) -> bool {
    frame[50 + 6] == 0x72 && frame[50 + 7] & 0x18 == 0x10
}

#[test]
fn no_host_gets_a_packet_twice_whatever_generation_it_is_of() {
    let mut state = 1u64;
    let mut random = move |most: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % most
    };
    let (mut most, mut back) = (0, 0);
    for round in 0..40 {
        let is_ipv6 = round % 2 == 1;
        let mut fleet = Fleet::new(is_ipv6);
        for host in 0..HOSTS {
            // Each host has a past of its own.
            for _ in 0..random(6) {
                let weights: Weights = std::array::from_fn(|_| random(3) as u32);
                let node = Node::Host(host);
                let previous = fleet.hosts[host].snapshot();
                let next = snapshot(node, is_ipv6, weights, &[], Some(previous));
                fleet.hosts[host].install(next).expect("it follows");
            }
        }
        for _ in 0..100 {
            let port = 2000 + random(500) as u16;
            let packet = match random(4) {
                0 => fleet.syn(port, random(1 << 32) as u32),
                1 => fleet.datagram(port),
                _ => fleet.segment(port, random(1 << 32) as u32, random(1 << 32) as u32),
            };
            let weights = std::array::from_fn(|_| 1 + random(3) as u32);
            fleet.send_by(weights, &packet);
            let mut visited: Vec<u8> = Vec::new();
            for frame in &fleet.on_fabric {
                if is_passed_back(frame) {
                    back += 1;
                } else {
                    assert!(!visited.contains(&frame[33]), "round {round}: {visited:?}");
                }
                visited.push(frame[33]);
            }
            let last = fleet
                .on_fabric
                .iter()
                .rposition(|frame| is_passed_back(frame));
            assert!(
                last.is_none_or(|at| at + 1 == fleet.on_fabric.len()),
                "it stays there"
            );
            most = most.max(fleet.hops());
        }
    }
    assert!(most >= 3 && back > 0, "{most} hops, {back} passed back");
}
