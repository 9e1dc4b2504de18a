//! New connections: their openers, and their translation.
//!
//! | what comes | what is done |
//! |---|---|
//! | from the fabric, for a rule's frontend and port | a connection to the vm, if it is of the rule's pool and takes new ones |
//! | from the fabric, for the vm's own address | handed over as it is |
//! | from the fabric, a SYN, a datagram or an echo request for a SNAT port, of no connection | dropped as for no rule |
//! | from the fabric, another segment or an echo reply for a SNAT port, of no connection | dropped as of no connection: a late answer; as for no rule where the port is in no block |
//! | from a vm, to who probes it | passed on as it is |
//! | from a vm, to a private VIP of its network | sent to a backend: see [`call`](super::call) |
//! | from a vm, to a neighbour in its network | passed on as it is, and so is the answer of a vm of this node |
//! | from a vm, to an address that is inside ([`Spec::inside`](crate::spec::Spec::inside)) | passed on as it is, and so are its answers |
//! | from a vm that no outbound rule lets out, to a VIP | passed on as it is: an internal one asks for no other name |
//! | from a vm, to an address that no host has | dropped as martian |
//! | from a vm that has a public address, to the outside | sent with that address: see [`public`](super::public) |
//! | from another vm, to the outside | a connection from a port of its own, if an outbound rule lets it; where all are in use towards there, the vm is told |
//! | a segment of no connection that is no SYN | a RST to its sender, where the rule says so |

use core::net::IpAddr;
use core::ops::Deref;

use super::{HostRole, public};
use crate::answer::IcmpError;
use crate::frame::Frame;
use crate::nat::connection::{Connection, Policy};
use crate::nat::pipeline::{
    Lane, NO_CONNECTION, Opened, Pipeline, Refusal, Table, TakeUp, report_error,
};
use crate::nat::ports::{self, NoPort};
use crate::nat::tcp::{Direction, Segment};
use crate::observe::Observe;
use crate::packet::{EchoMessage, Part};
use crate::snapshot::Snapshot;
use crate::snapshot::locals::Vm;
use crate::verdict::{DropReason, Verdict};

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Opens a connection from a vm.
    pub(super) fn outbound<A: Table>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<Opened<A>, Verdict> {
        let packet = &lane.packet;
        let snapshot = &*self.snapshot;
        let vm = snapshot.nat.vm_by_port(lane.zone).ok_or(Verdict::Pass)?;
        let (source, destination) = A::of(packet).unpack();
        if is_inside(snapshot, vm, destination) {
            let is_own = is_of_vm(snapshot, vm, source);
            let is_whole = lane.error.is_none() && packet.shape.part != Part::Later;
            // The kernel delivers the packet, but the answer may look like the answer of a
            // connection to a VIP.
            if let Some(zone) = snapshot.nat.port_of_neighbour(destination, vm.vni)
                && is_own
                && is_whole
                && let Some(resets) =
                    self.note_direct::<A, HostRole>(&Lane { zone, ..*lane }, segment)
            {
                let taken = IcmpError::TupleTaken;
                return Err(self.refuse::<A, HostRole>(frame, lane, (taken, resets), seen));
            }
            return Err(Verdict::Pass);
        }
        if public::leaves(snapshot, lane.zone, source, destination) {
            return Err(Verdict::Pass); // which sends it with that address
        }
        match self.take_up_outward::<A>(lane, segment) {
            TakeUp::Connection(connection) => return Ok(Opened::TakenUp(connection)),
            TakeUp::Later => return Err(NO_CONNECTION),
            TakeUp::Not => {}
        }
        let snapshot = &*self.snapshot;
        let vm = snapshot.nat.vm_by_port(lane.zone).ok_or(Verdict::Pass)?;
        let refusal = Refusal {
            limits: &mut self.limits,
            stats: &mut self.stats,
            snapshot,
        };
        let of_source = snapshot
            .nat
            .locals_of(vm)
            .filter(|local| local.address == source);
        let known = is_of_vm(snapshot, vm, source);
        if known && snapshot.nat.is_inside(destination) {
            return Err(Verdict::Pass);
        }
        if known && is_nowhere(destination) {
            return Err(Verdict::Drop(DropReason::Martian));
        }
        let callers = of_source.filter(|local| !snapshot.nat.blocks_of(local).is_empty());
        let Some(caller) = callers.clone().next() else {
            if known && snapshot.is_vip(destination) {
                return Err(Verdict::Pass);
            }
            // A packet from a VIP is a floating-IP answer whose connection is over.
            let is_vip = snapshot.is_vip_at(vm.port, source);
            return Err(match segment {
                Some(segment) if !segment.flags.opens() && (known || is_vip) => {
                    refusal.answer::<A, HostRole>(frame, lane, is_vip, seen)
                }
                _ if known => Verdict::Drop(DropReason::NoOutboundRule),
                _ if is_vip => NO_CONNECTION,
                _ => Verdict::Drop(DropReason::SpoofedSource),
            });
        };
        if packet.shape.part == Part::Later {
            return Err(Verdict::Drop(DropReason::FragmentWithoutFirst));
        }
        let reset = callers
            .clone()
            .flat_map(|local| snapshot.nat.blocks_of(local))
            .filter_map(|block| snapshot.nat.outbound(block.outbound))
            .any(|outbound| outbound.reset);
        if segment.is_some_and(|segment| !segment.flags.opens()) {
            return Err(refusal.answer::<A, HostRole>(frame, lane, reset, seen));
        }
        let is_request = packet.has_ports() || packet.shape.echo == EchoMessage::Request;
        if !is_request {
            return Err(Verdict::Drop(DropReason::NoOutboundRule));
        }
        let side = lane.key::<A>().side;
        let inside = (side, packet.protocol, lane.zone);
        let secret = self.tables.connections.port_secret;
        let table = A::table(&mut self.tables.connections);
        let taken = (&*table, &self.tables.snat_ports);
        let outside = match ports::choose(taken, &snapshot.nat, &callers, inside, secret) {
            Ok(outside) => outside,
            Err(NoPort::NoRule) => return Err(Verdict::Drop(DropReason::NoOutboundRule)),
            Err(NoPort::Exhausted) => {
                if let Some(counters) = self.tables.snat.get_mut(caller.counters as usize) {
                    counters.exhausted += 1;
                }
                if reset && segment.is_some() {
                    let verdict = refusal.answer::<A, HostRole>(frame, lane, true, seen);
                    return Err(match verdict {
                        NO_CONNECTION => Verdict::Drop(DropReason::SnatExhausted),
                        told => told,
                    });
                }
                let (limits, told_as) = (&mut self.limits, (&self.options, snapshot));
                return Err(report_error(
                    frame,
                    lane,
                    IcmpError::NoPort,
                    limits,
                    told_as,
                ));
            }
        };
        let block = outside.block;
        let (Some(rule), Some(outbound)) = (
            snapshot.rule(block.rule),
            snapshot.nat.outbound(block.outbound),
        ) else {
            return Err(NO_CONNECTION);
        };
        let policy = Policy {
            idle: outbound.idle,
            rule: snapshot.short_rule_id(rule),
            server: outside.local.id,
            via: Policy::DIRECT,
            reset: outbound.reset,
            opener: Direction::Outward,
            shared: false,
        };
        let number = packet.protocol;
        Ok(Opened::New(Connection::new(
            outside.side,
            side,
            number,
            lane.zone,
            policy,
        )))
    }
}

/// Returns true if a vm's packets to an address leave untranslated.
pub(super) fn is_inside(snapshot: &Snapshot<'_>, vm: &Vm, address: IpAddr) -> bool {
    is_local(address)
        || snapshot.nat.is_neighbour(address, vm.vni)
        || snapshot.probe_source().is(address)
        || is_in_network(snapshot, vm, address)
}

/// Returns true if an address is in an address space of a vm's network, and is no VIP.
fn is_in_network(snapshot: &Snapshot<'_>, vm: &Vm, address: IpAddr) -> bool {
    let networks = &snapshot.nat.networks;
    let network = networks.of(vm.vni);
    network.is_some_and(|network| networks.has(network, address))
        && !snapshot.is_vip_at(vm.port, address)
}

/// Returns true if a vm has an address.
pub(super) fn is_of_vm(snapshot: &Snapshot<'_>, vm: &Vm, address: IpAddr) -> bool {
    snapshot.nat.port_of_neighbour(address, vm.vni) == Some(vm.port)
}

/// Returns true if no host can have an address: "this network", 240.0.0.0/4 (RFC 6890 §2.2.2) and
/// IPv4-mapped addresses (RFC 6890 §2.2.3).
pub(super) fn is_nowhere(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => matches!(address.octets()[0], 0 | 240..),
        IpAddr::V6(address) => address.to_ipv4_mapped().is_some(),
    }
}

/// Returns true if an address is never outside.
pub(super) fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_multicast()
                || address.is_broadcast()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_loopback()
        }
        IpAddr::V6(address) => {
            address.is_multicast()
                || address.is_unicast_link_local()
                || address.is_unspecified()
                || address.is_loopback()
        }
    }
}
