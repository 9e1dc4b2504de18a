//! Packets from vm to vm: switching of frames without a connection.
//!
//! | what a vm of a network sends | what is done |
//! |---|---|
//! | an ARP request or a neighbour solicitation for another vm's address | answered with that vm's MAC address |
//! | the same for a gateway's address | answered with the node's MAC address |
//! | an echo request for a gateway | answered |
//! | a packet for a vm of its network on this node | sent out of that vm's port |
//! | a packet for a vm of its network elsewhere | sent to that vm's host in VXLAN, in the network |
//! | a packet to the outside, from a vm with a public address | sent with that address: see [`public`](super::public) |
//! | a packet for an address of its network that no other vm has | dropped |
//! | a packet for a private address outside of its network | dropped |
//! | a packet from an address that is not the vm's | dropped |
//! | anything else: to a VIP, who probes, the link, or many | left to the kernel |
//!
//! A frame for the other vm's own MAC address is switched and keeps its hop limit. A frame for
//! another MAC address, such as the gateway's, is routed and loses a hop. Networks are isolated:
//! the sender's port determines the network of a packet, and only vms of that network are looked
//! up.

use core::net::{IpAddr, Ipv6Addr};
use core::ops::Deref;

use super::establish::is_of_vm;
use crate::answer::{self, IcmpError};
use crate::frame::Frame;
use crate::link::{self, Link};
use crate::mark::unmarked;
use crate::nat::pipeline::{Lane, Pipeline, clamped_mss, report_error};
use crate::nat::rewrite;
use crate::nat::tcp::Direction;
use crate::observe::{Observe, Step};
use crate::packet::{EchoMessage, Family, Packet, Part, Read};
use crate::snapshot::Snapshot;
use crate::snapshot::locals::Vm;
use crate::snapshot::networks::{CompiledNetwork, Neighbour, Reached};
use crate::tunnel::encapsulation::Template;
use crate::verdict::{DropReason, Verdict};
use crate::wire::arp::{self, Operation};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, EtherType, Ethernet, MacAddress};
use crate::wire::tcp::Flags;
use crate::wire::{icmpv6, ipv6, protocol};

const NO_NEIGHBOUR: Verdict = Verdict::Drop(DropReason::NoNeighbour);
const NO_HEADROOM: Verdict = Verdict::Drop(DropReason::NoHeadroom);

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Finds the destination of an unchanged frame without a connection.
    #[cold]
    #[inline(never)]
    pub(super) fn switch(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        seen: &mut impl Observe,
    ) -> Verdict {
        let snapshot = &*self.snapshot;
        let (nat, underlay) = (&snapshot.nat, snapshot.underlay());
        let vm = nat.vm_by_port(frame.port());
        let Some(&vm) = vm.filter(|vm| vm.port != underlay.port) else {
            return Verdict::Pass;
        };
        let Some(&network) = nat.networks.of(vm.vni) else {
            return self.pass_on_link(frame, lane, &vm, seen);
        };
        let mut packet = Packet::EMPTY;
        match packet.read(frame.bytes()) {
            Read::Ip => {}
            Read::Other => return self.answer_arp(frame, &vm, &network),
            Read::Bad(reason) => return Verdict::Drop(reason),
        }
        if is_solicitation(frame.bytes(), &packet) {
            return self.answer_solicitation(frame, &packet, &vm, &network);
        }
        let tuple = packet.tuple();
        let destination = tuple.destination;
        if let Err(verdict) = self.let_out(frame, lane, (&vm, &packet), seen) {
            return verdict;
        }
        let snapshot = &*self.snapshot;
        let nat = &snapshot.nat;
        let Some(&neighbour) = nat.networks.neighbour(destination, vm.vni) else {
            if let Some(verdict) = self.public_out(frame, lane, (&vm, &packet), seen) {
                return verdict;
            }
            let snapshot = &*self.snapshot;
            let nat = &snapshot.nat;
            if snapshot.is_vip_at(vm.port, destination) {
                return Verdict::Pass;
            }
            let is_gateway = nat.networks.is_gateway(&network, destination);
            if is_gateway && packet.shape.echo == EchoMessage::Request {
                return answer::answer_echo(frame, &packet, &mut self.limits);
            }
            return match nat.networks.has(&network, destination) || is_private(destination) {
                true => NO_NEIGHBOUR,
                false => Verdict::Pass,
            };
        };
        if neighbour.port == Some(vm.port) {
            return NO_NEIGHBOUR; // the vm's own address
        }
        if let Some(&other) = neighbour.port.and_then(|port| nat.vm_by_port(port))
            && let Err(verdict) = self.admit(&other, Direction::Inward, lane, seen)
        {
            return verdict;
        }
        let lane = Lane {
            packet,
            direction: Direction::Outward,
            error: None,
            ..*lane
        };
        let is_here = neighbour.port.is_some();
        let step = Step::Switched {
            vni: vm.vni,
            to: destination,
            host: (!is_here).then_some(neighbour.host),
        };
        seen.step(lane.frame.into(), step);
        self.send_to(frame, &lane, &vm, &neighbour)
    }

    /// Leaves a frame of a vm without a network to the kernel, unless an access list of the vm denies it, or the vm
    /// has a public address for it.
    fn pass_on_link(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        vm: &Vm,
        seen: &mut impl Observe,
    ) -> Verdict {
        let is_judged = !vm.lists.is_empty();
        if !is_judged && self.snapshot.nat.networks.publics.is_empty() {
            return Verdict::Pass;
        }
        let mut packet = Packet::EMPTY;
        match packet.read(frame.bytes()) {
            Read::Ip => {}
            Read::Bad(reason) if is_judged => return Verdict::Drop(reason),
            Read::Bad(_) | Read::Other => return Verdict::Pass,
        }
        if is_judged && let Err(verdict) = self.let_out(frame, lane, (vm, &packet), seen) {
            return verdict;
        }
        let public = self.public_out(frame, lane, (vm, &packet), seen);
        public.unwrap_or(Verdict::Pass)
    }

    /// Sends a packet to another vm of the sender's network.
    fn send_to(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        vm: &Vm,
        neighbour: &Neighbour,
    ) -> Verdict {
        let snapshot = &*self.snapshot;
        let (packet, underlay) = (&lane.packet, snapshot.underlay());
        let family = packet.shape.family;
        let is_routed = frame.bytes().get(..6) != Some(&neighbour.mac.0);
        let template = match (neighbour.port, snapshot.nat.networks.way_to(neighbour)) {
            (Some(_), _) => None,
            (None, Some(Reached::Template(template))) => Some(template),
            (None, Some(Reached::Backend(index))) => {
                let Some(backend) = snapshot.backend(index) else {
                    return NO_NEIGHBOUR;
                };
                Some(&backend.template)
            }
            (None, None) => return NO_NEIGHBOUR,
        };
        let most = template.map_or(u32::MAX, |template| template.inner_mtu(underlay.mtu));
        let error = if is_routed && packet.hop_limit <= 1 {
            Some(IcmpError::HopLimit)
        } else if packet.ip_len > most {
            Some(IcmpError::TooBig(most))
        } else {
            None
        };
        if let Some(error) = error {
            let told_as = (&self.options, snapshot);
            return report_error(frame, lane, error, &mut self.limits, told_as);
        }
        let is_syn = packet.protocol == protocol::TCP
            && packet.shape.part != Part::Later
            && packet.flags.contains(Flags::SYN);
        if self.options.clamp_mss && is_syn && template.is_some() {
            let most = clamped_mss(underlay.mtu, family);
            rewrite::clamp_mss(frame.bytes_mut(), packet, most);
        }
        let (Some(template), None) = (template, neighbour.port) else {
            let source = if is_routed { underlay.mac } else { vm.mac };
            let link = Link::new(source, neighbour.mac);
            let ip = usize::from(packet.shape.ip_offset);
            let Some(bytes) =
                frame.replace_front::<{ ethernet::HEADER_LEN }>(ip, ip + packet.ip_len())
            else {
                return NO_HEADROOM;
            };
            let _ = link.emit(bytes, ether_type(family));
            if is_routed && let Some(ip) = bytes.get_mut(ethernet::HEADER_LEN..) {
                let _ = link::take_a_hop(ip, family);
            }
            return Verdict::Forward(neighbour.port.unwrap_or(vm.port));
        };
        let ip = frame.bytes().get(usize::from(packet.shape.ip_offset)..);
        let hops = ip.and_then(|ip| Template::hop_bytes(ip, family));
        let entropy = snapshot.hash(packet, u64::MAX);
        if let Err(reason) = template.encapsulate(frame, packet, entropy) {
            return Verdict::Drop(reason);
        }
        if let Some(hops) = hops.filter(|_| !is_routed) {
            template.give_hop_back(frame, family, hops);
            template.set_inner_source(frame, unmarked(vm.mac));
        }
        Verdict::Forward(underlay.port)
    }

    /// Returns the station to tell a vm for an address of its network; `None` if no other station
    /// has the address.
    fn station(&self, vm: &Vm, network: &CompiledNetwork, address: IpAddr) -> Option<Station> {
        let snapshot = &*self.snapshot;
        let networks = &snapshot.nat.networks;
        let neighbour = networks.neighbour(address, vm.vni);
        if let Some(neighbour) = neighbour {
            let mac = neighbour.mac;
            let is_other = neighbour.port != Some(vm.port);
            return is_other.then_some(Station {
                mac,
                is_router: false,
            });
        }
        let is_gateway = networks.is_gateway(network, address);
        let is_ours = is_gateway || snapshot.private_vip(address, vm.vni).is_some();
        is_ours.then_some(Station {
            mac: snapshot.underlay().mac,
            is_router: is_gateway,
        })
    }

    /// Answers an ARP request of a vm for another station of its network.
    fn answer_arp(&self, frame: &mut Frame<'_>, vm: &Vm, network: &CompiledNetwork) -> Verdict {
        let Ok(link) = Ethernet::parse(frame.bytes()) else {
            return Verdict::Pass;
        };
        let (asker, offset) = (link.source(), link.header_len());
        let is_arp = link.ether_type() == EtherType::ARP;
        let Some(request) = arp::Packet::parse(link.payload()).ok().filter(|_| is_arp) else {
            return Verdict::Pass;
        };
        let sender = IpAddr::from(request.sender);
        let is_own = request.sender.is_unspecified() || is_of_vm(&self.snapshot, vm, sender);
        let station = self.station(vm, network, request.target.into());
        let (Operation::Request, true, Some(station)) = (request.operation, is_own, station) else {
            return Verdict::Pass;
        };
        let reply = arp::Packet {
            operation: Operation::Reply,
            sender_mac: station.mac,
            sender: request.target,
            target_mac: asker,
            target: request.sender,
        };
        let bytes = frame.bytes_mut();
        if let Some(place) = bytes.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
            reply.emit(place);
        }
        readdress(bytes, asker, station.mac);
        Verdict::Reply
    }

    /// Answers a neighbour solicitation of a vm for another station of its network (RFC 4861 §7.2.4).
    fn answer_solicitation(
        &self,
        frame: &mut Frame<'_>,
        packet: &Packet,
        vm: &Vm,
        network: &CompiledNetwork,
    ) -> Verdict {
        let ip = usize::from(packet.shape.ip_offset);
        let IpAddr::V6(source) = packet.tuple().source else {
            return Verdict::Pass;
        };
        let Some(target) = solicited(frame.bytes(), packet) else {
            return Verdict::Pass;
        };
        let is_own = source.is_unspecified()
            || source.is_unicast_link_local()
            || is_of_vm(&self.snapshot, vm, source.into());
        let station = self.station(vm, network, target.into());
        let (true, Some(station)) = (is_own, station) else {
            return Verdict::Pass;
        };
        let Some(&asker) = frame.bytes().get(6..).and_then(<[u8]>::first_chunk) else {
            return Verdict::Pass;
        };
        let end = ip + ipv6::HEADER_LEN + ADVERTISEMENT;
        let missing = end.saturating_sub(frame.len());
        if missing > 0 && frame.push_back(missing).is_none() {
            return NO_HEADROOM;
        }
        frame.truncate(end);
        // An answer to duplicate address detection goes to all nodes (RFC 4861 §7.2.4).
        const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let (to, mac, solicited) = match source.is_unspecified() {
            true => (ALL_NODES, MacAddress([0x33, 0x33, 0, 0, 0, 1]), 0),
            false => (source, MacAddress(asker), SOLICITED),
        };
        let bytes = frame.bytes_mut();
        readdress(bytes, mac, station.mac);
        let Some((header, message)) = bytes
            .get_mut(ip..)
            .and_then(<[u8]>::split_first_chunk_mut::<{ ipv6::HEADER_LEN }>)
        else {
            return Verdict::Pass;
        };
        let new = ipv6::Header {
            traffic_class: 0,
            flow_label: 0,
            payload_len: ADVERTISEMENT as u16,
            next_header: protocol::ICMPV6,
            hop_limit: 255,
            source: target,
            destination: to,
        };
        new.emit(header);
        let router = if station.is_router { ROUTER } else { 0 };
        let [a, b, c, d, e, f] = station.mac.0;
        let flags = router | solicited | OVERRIDE;
        let fixed = [icmpv6::ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
        let option = [TARGET_LINK_LAYER, 1, a, b, c, d, e, f];
        let parts = [&fixed[..], &target.octets(), &option];
        for (place, byte) in message.iter_mut().zip(parts.into_iter().flatten()) {
            *place = *byte;
        }
        let sum = Sum::ZERO
            .add_pseudo_ipv6(target, to, protocol::ICMPV6, message.len() as u32)
            .add_bytes(message);
        if let Some(place) = message.get_mut(2..4) {
            place.copy_from_slice(&sum.checksum().to_be_bytes());
        }
        Verdict::Reply
    }
}

/// The station with an address: its MAC address, and true for a router.
struct Station {
    mac: MacAddress,
    is_router: bool,
}

/// Bytes of a neighbour advertisement with the target's link-layer address.
const ADVERTISEMENT: usize = 32;
/// Bytes of a neighbour solicitation without options.
const SOLICITATION: usize = 24;
/// Flags of a neighbour advertisement (RFC 4861 §4.4).
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// The option with the target's link-layer address (RFC 4861 §4.6.1).
const TARGET_LINK_LAYER: u8 = 2;

/// Returns true if a packet is a neighbour solicitation.
fn is_solicitation(frame: &[u8], packet: &Packet) -> bool {
    packet.shape.family == Family::Ipv6
        && packet.is_icmp()
        && packet.shape.part == Part::Whole
        && frame.get(usize::from(packet.shape.transport_offset)) == Some(&icmpv6::SOLICITATION)
}

/// The target of a neighbour solicitation; `None` if its receiver would ignore it (RFC 4861 §7.1.1).
fn solicited(frame: &[u8], packet: &Packet) -> Option<Ipv6Addr> {
    let start = usize::from(packet.shape.transport_offset);
    let end = usize::from(packet.shape.ip_offset) + packet.ip_len();
    let message = frame.get(start..end)?;
    let (IpAddr::V6(source), IpAddr::V6(destination)) =
        (packet.tuple().source, packet.tuple().destination)
    else {
        return None;
    };
    let is_direct = start == usize::from(packet.shape.ip_offset) + ipv6::HEADER_LEN;
    let sum = Sum::ZERO
        .add_pseudo_ipv6(source, destination, protocol::ICMPV6, message.len() as u32)
        .add_bytes(message);
    let is_right = is_direct
        && packet.hop_limit == 255
        && message.get(1) == Some(&0)
        && message.len() >= SOLICITATION
        && sum.checksum() == 0;
    let target: &[u8; 16] = message.get(8..)?.first_chunk()?;
    let target = Ipv6Addr::from(*target);
    (is_right && !target.is_multicast()).then_some(target)
}

/// Writes both MAC addresses.
fn readdress(frame: &mut [u8], destination: MacAddress, source: MacAddress) {
    if let Some(macs) = frame.first_chunk_mut::<12>() {
        let (to, from) = macs.split_at_mut(6);
        to.copy_from_slice(&destination.0);
        from.copy_from_slice(&source.0);
    }
}

pub(super) fn ether_type(family: Family) -> EtherType {
    match family {
        Family::Ipv4 => EtherType::IPV4,
        Family::Ipv6 => EtherType::IPV6,
    }
}

/// Returns true if an address belongs to a private network (RFC 1918, RFC 6598, RFC 4193): such
/// addresses are valid only in their own network.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            address.is_private() || a == 100 && b & 0xc0 == 64
        }
        IpAddr::V6(address) => address.segments()[0] & 0xfe00 == 0xfc00,
    }
}
