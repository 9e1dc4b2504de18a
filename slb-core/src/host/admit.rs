//! Access lists: which connections of the vms of this node may begin.
//!
//! | first packet of | judged as |
//! |---|---|
//! | a connection under a rule, from outside | inbound: from the client to the vm's own address and port |
//! | a connection from a vm, under an outbound rule | outbound: the vm's own packet |
//! | a call of a private VIP | outbound: the vm's own packet, to the VIP |
//! | anything else from a vm | outbound; inbound too where the other vm is on this node |
//! | anything else for a vm's own address | inbound |
//! | a probe of this node's | inbound, by the vm's answer |
//!
//! Connections have an entry in the table, so later packets and answers of theirs never come here. Flows without a
//! connection are in the table of [direct flows](crate::nat::DirectFlows). ICMP errors and later fragments follow
//! the flow that they are about. Link-local traffic, to addresses of the link or to many, is not judged.

use core::net::IpAddr;
use core::ops::Deref;

use super::HostRole;
use super::establish::{is_local, is_of_vm};
use crate::frame::Frame;
use crate::icmp;
use crate::nat::connection::Connection;
use crate::nat::pipeline::{Lane, NO_CONNECTION, Pipeline, Table};
use crate::nat::tcp::Direction;
use crate::observe::{Observe, Step};
use crate::packet::{EchoMessage, Family, Packet, Part, Read, Tuple};
use crate::snapshot::Snapshot;
use crate::snapshot::locals::Vm;
use crate::snapshot::security::{Asked, Place};
use crate::spec::Access;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::tcp::Flags;
use crate::wire::{icmpv6, protocol};

const DENIED: Verdict = Verdict::Drop(DropReason::Denied);

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Asks the lists of a vm about a connection that is about to begin.
    ///
    /// # Errors
    /// A list denies the connection.
    #[cold]
    #[inline(never)]
    pub(super) fn admit_connection<A: Table>(
        &mut self,
        lane: &Lane,
        connection: &Connection<A>,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let Some(&vm) = self.snapshot.nat.vm_by_port(connection.zone()) else {
            return Ok(());
        };
        let (opener, own) = (connection.opener(), connection.side(Direction::Outward));
        let first = match opener {
            Direction::Outward => own,
            Direction::Inward => own.reversed(),
        };
        let first = first.tuple(connection.protocol());
        self.judge(&vm, opener, &first, lane, seen)
    }

    /// Decides about a packet that no connection has and that goes on as it is, from a vm or to one.
    ///
    /// # Errors
    /// A list denies the packet, or the packet does not show what it is.
    pub(super) fn admit(
        &mut self,
        vm: &Vm,
        direction: Direction,
        lane: &Lane,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        if vm.lists.is_empty() {
            return Ok(());
        }
        let (flow, zone) = (&lane.packet, vm.port);
        if let Some(reason) = flow.shape.fault {
            return Err(Verdict::Drop(reason));
        }
        let is_later = flow.shape.part == Part::Later;
        let is_about = lane.error.is_some() || is_later;
        let is_known = match is_about {
            true => self.direct_flows.has(flow, zone, direction),
            false => self.direct_flows.follow(flow, zone, direction),
        };
        if is_known {
            return Ok(());
        }
        let own = lane.own_packet();
        self.judge(vm, direction, &own.tuple(), lane, seen)?;
        let begins = !flow.is_icmp() || flow.shape.echo == EchoMessage::Request;
        if begins && !is_about {
            self.direct_flows.note(flow, zone, direction);
        }
        Ok(())
    }

    /// Asks the lists of a vm about the first packet of a connection. Each list has to allow it.
    ///
    /// # Errors
    /// A list denies it.
    fn judge(
        &mut self,
        vm: &Vm,
        direction: Direction,
        first: &Tuple,
        lane: &Lane,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let snapshot = &*self.snapshot;
        let security = &snapshot.nat.security;
        let has_ports = matches!(first.protocol, protocol::TCP | protocol::UDP);
        let asked = Asked {
            source: first.source,
            destination: first.destination,
            places: [first.source, first.destination].map(|end| place_of(snapshot, vm, end)),
            protocol: first.protocol,
            ports: has_ports.then_some([first.source_port, first.destination_port]),
        };
        for list in security.lists_of(vm.lists) {
            let Some(rule) = security.judge(list, direction, &asked) else {
                return Err(DENIED);
            };
            let counters = self.tables.security.get_mut(rule.counters as usize);
            if let Some(counters) = counters {
                counters.judged.add(lane.len as usize);
            }
            let step = Step::Judged {
                list,
                rule: rule.item,
                direction,
                access: rule.access,
            };
            seen.step(lane.frame.into(), step);
            if rule.access == Access::Deny {
                return Err(DENIED);
            }
        }
        Ok(())
    }

    /// Decides about a frame for the vm of a zone that no connection has: it is delivered as it is, or denied.
    #[cold]
    #[inline(never)]
    pub(super) fn deliver(
        &mut self,
        frame: &Frame<'_>,
        lane: &Lane,
        zone: PortId,
        seen: &mut impl Observe,
    ) -> Verdict {
        let delivered = Verdict::Forward(zone);
        let vm = self.snapshot.nat.vm_by_port(zone);
        let Some(&vm) = vm.filter(|vm| !vm.lists.is_empty()) else {
            return delivered;
        };
        let mut packet = Packet::EMPTY;
        match packet.read(frame.bytes()) {
            Read::Ip if is_of_link(frame.bytes(), &packet) => delivered,
            Read::Ip => match self.admit(&vm, Direction::Inward, lane, seen) {
                Ok(()) => delivered,
                Err(verdict) => verdict,
            },
            Read::Other => delivered,
            Read::Bad(reason) => Verdict::Drop(reason),
        }
    }

    /// Decides about a packet that a vm sends and that no connection has, unless it is from another's address.
    ///
    /// # Errors
    /// The verdict of a packet that goes no further: one that is of the link or for the prober is passed, and one that
    /// a list denies or whose source is not the vm's is dropped.
    pub(super) fn let_out(
        &mut self,
        frame: &Frame<'_>,
        lane: &Lane,
        (vm, packet): (&Vm, &Packet),
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let snapshot = &*self.snapshot;
        let Tuple {
            source,
            destination,
            ..
        } = packet.tuple();
        if snapshot.probe_source().is(destination) {
            return Err(self.answer_probe(lane, vm, packet, seen));
        }
        if is_local(destination) {
            return Err(Verdict::Pass);
        }
        if !is_of_vm(snapshot, vm, source) {
            // An answer of floating IP whose connection is over.
            return Err(match snapshot.is_vip_at(vm.port, source) {
                true => NO_CONNECTION,
                false => Verdict::Drop(DropReason::SpoofedSource),
            });
        }
        match is_of_link(frame.bytes(), packet) {
            true => Ok(()),
            false => self.admit(vm, Direction::Outward, lane, seen),
        }
    }

    /// Decides about a vm's packet for the source of the node's probes. The probe itself did not come by here, so the
    /// lists are asked about it when the vm accepts its connection.
    fn answer_probe(
        &mut self,
        lane: &Lane,
        vm: &Vm,
        packet: &Packet,
        seen: &mut impl Observe,
    ) -> Verdict {
        let accepts = Flags::SYN.with(Flags::ACK);
        if packet.protocol != protocol::TCP || !packet.flags.contains(accepts) {
            return Verdict::Pass;
        }
        let probe = packet.reversed().tuple();
        match self.judge(vm, Direction::Inward, &probe, lane, seen) {
            Ok(()) => Verdict::Pass,
            Err(verdict) => verdict,
        }
    }
}

/// The place of an address, seen from a vm.
fn place_of(snapshot: &Snapshot<'_>, vm: &Vm, address: IpAddr) -> Place {
    if snapshot.probe_source().is(address) {
        return Place::LoadBalancer;
    }
    let networks = &snapshot.nat.networks;
    let is_inside = snapshot.nat.is_inside(address);
    match networks.of(vm.vni) {
        Some(network) if networks.has(network, address) => Place::Network,
        None if is_inside => Place::Network,
        _ if is_inside => Place::Other,
        _ => Place::Internet,
    }
}

/// Returns true if a packet is of neighbour discovery, which no router forwards.
pub(super) fn is_of_link(frame: &[u8], packet: &Packet) -> bool {
    packet.shape.family == Family::Ipv6
        && packet.is_icmp()
        && packet.shape.part == Part::Whole
        && packet.hop_limit == 255
        && icmpv6::is_link_local(icmp::kind(frame, packet))
}

impl HostRole {
    /// Returns true if the vm that a packet is from or for has access lists, or the other vm of this node that it is
    /// for.
    #[cold]
    pub(super) fn has_lists(snapshot: &Snapshot<'_>, lane: &Lane) -> bool {
        let nat = &snapshot.nat;
        let Some(vm) = nat.vm_by_port(lane.zone) else {
            return false;
        };
        let destination = lane.packet.tuple().destination;
        let other = match lane.direction {
            Direction::Inward => None,
            Direction::Outward => nat.port_of_neighbour(destination, vm.vni),
        };
        let other = other.and_then(|port| nat.vm_by_port(port));
        !vm.lists.is_empty() || other.is_some_and(|other| !other.lists.is_empty())
    }
}
