//! Calls of vms to private VIPs of their network, without a mux on the way.
//!
//! ```text
//!            the calling vm's host                    the backend's host
//!  vm -> VIP  which rule, which backend?   in VXLAN    a connection, as behind a mux:
//!             (a mux's tables and hash)  ----------->  VIP becomes DIP, to the vm
//!  to the vm, out of VXLAN               <-----------  DIP becomes VIP, to the caller's host
//!  as it is
//! ```
//!
//! The caller's host keeps no state, like a mux without a flow table: if a slot has a new owner, or
//! the owner's vm accepts no new flows, the hosts of the pool [pass packets on](super::pass_on) to
//! each other. A backend on the caller's own node gets its packets without VXLAN.

use core::ops::Deref;

use super::HostRole;
use super::establish::is_of_vm;
use super::switch::ether_type;
use crate::answer::{self, IcmpError};
use crate::frame::Frame;
use crate::link::Link;
use crate::nat::connection::Connection;
use crate::nat::pipeline::{Lane, NO_CONNECTION, Pipeline, Table, clamped_mss, report_error};
use crate::nat::rewrite::{self, Rewrite};
use crate::nat::tcp::{Direction, Segment};
use crate::observe::{Observe, Step};
use crate::packet::{EchoMessage, Packet, Part};
use crate::snapshot::locals::{NO_SENDER, Vm};
use crate::snapshot::{RuleMatch, Snapshot};
use crate::spec::Echo;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::ethernet;
use crate::wire::tcp::Flags;

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Forwards a vm's packet to a private VIP of its network; returns `None` for any other packet.
    #[cold]
    #[inline(never)]
    pub(super) fn call<A: Table>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Option<Verdict> {
        let snapshot = &*self.snapshot;
        let vm = snapshot.nat.vm_by_port(lane.zone)?;
        let (own, flow) = (lane.own_packet().tuple(), lane.packet.tuple());
        let vip = snapshot.private_vip(own.destination, vm.vni)?;
        if !is_of_vm(snapshot, vm, own.source) {
            return Some(match snapshot.is_vip_at(vm.port, own.source) {
                true => NO_CONNECTION, // an answer of floating IP whose connection is over
                false => Verdict::Drop(DropReason::SpoofedSource),
            });
        }
        if (flow.source, flow.destination) != (own.source, own.destination) {
            return Some(Verdict::Drop(DropReason::IcmpUnmatched));
        }
        let vm = *vm;
        if let Err(verdict) = self.admit(&vm, Direction::Outward, lane, seen) {
            return Some(verdict);
        }
        let rule = match self.rule_of_call(frame, lane, vip, seen) {
            Ok(rule) => rule,
            Err(verdict) => return Some(verdict),
        };
        Some(self.call_by::<A>(frame, lane, segment, rule, seen))
    }

    /// Returns the rule for a packet to a private VIP, given by its id in rule keys.
    ///
    /// # Errors
    /// The verdict of a packet that matches no rule.
    fn rule_of_call(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        vip: u64,
        seen: &mut impl Observe,
    ) -> Result<u32, Verdict> {
        let (snapshot, packet) = (&*self.snapshot, &lane.packet);
        let is_other_icmp = packet.is_icmp() && packet.shape.part != Part::Later;
        let found = match packet.shape.echo {
            _ if lane.error.is_some() => snapshot.classify_for(packet, Some(vip)),
            EchoMessage::Reply => snapshot.ha_ports(vip),
            EchoMessage::Request => match snapshot.echo_rule_for(packet, vip) {
                Some(rule) => RuleMatch::Rule(rule),
                None => match snapshot.echo_for(vip) {
                    Some(Echo::Forward) => snapshot.ha_ports(vip),
                    Some(Echo::Answer) => {
                        return Err(answer::answer_echo(frame, packet, &mut self.limits));
                    }
                    _ => return Err(Verdict::Drop(DropReason::EchoIgnored)),
                },
            },
            EchoMessage::None if is_other_icmp => snapshot.ha_ports(vip),
            EchoMessage::None => snapshot.classify_for(packet, Some(vip)),
        };
        seen.step(lane.frame.into(), Step::Classified(found));
        match found {
            RuleMatch::Rule(rule) => Ok(rule),
            _ if lane.error.is_some() => Err(Verdict::Drop(DropReason::IcmpUnmatched)),
            _ => Err(Verdict::Drop(DropReason::NoRule)),
        }
    }

    /// Chooses the backend of a packet under a rule like a mux, and sends the packet there.
    fn call_by<A: Table>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        index: u32,
        seen: &mut impl Observe,
    ) -> Verdict {
        let snapshot = &*self.snapshot;
        let (Some(rule), Some(terms)) = (snapshot.rule(index), snapshot.terms(index)) else {
            return NO_CONNECTION;
        };
        let mut flow = lane.packet;
        if !flow.has_ports() {
            flow.ports = 0; // identifiers choose no backend
        }
        let hash = snapshot.hash(&flow, rule.mask);
        let place = snapshot.table_index(rule, &flow, hash);
        let slot = place - rule.first_slot();
        let hashed = Step::Hashed {
            rule: index,
            hash,
            slot,
        };
        seen.step(lane.frame.into(), hashed);
        let Some(chosen) = snapshot.backend_at(rule.first_backend, place) else {
            let no_backend = Verdict::Drop(DropReason::NoBackend);
            if segment.is_none() {
                return no_backend;
            }
            let reset = terms.reset;
            let refusal = self.refusal();
            return match refusal.answer::<A, HostRole>(frame, lane, reset, seen) {
                NO_CONNECTION => no_backend,
                told => told,
            };
        };
        seen.step(lane.frame.into(), Step::Selected(chosen));
        match snapshot.nat.local_of(chosen) {
            Some(local) => {
                let zone = local.zone;
                self.call_here::<A>(frame, lane, zone, seen)
            }
            None => {
                let entropy = snapshot.hash(&flow, u64::MAX);
                self.call_host(frame, lane, (index, chosen), entropy)
            }
        }
    }

    /// Sends a packet to a backend of another host.
    fn call_host(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        (rule, chosen): (u32, u32),
        entropy: u64,
    ) -> Verdict {
        let snapshot = &*self.snapshot;
        let Some(backend) = snapshot.backend(chosen) else {
            return Verdict::Drop(DropReason::NoBackend);
        };
        let (packet, underlay) = (lane.own_packet(), snapshot.underlay());
        if packet.hop_limit <= 1 || packet.ip_len > backend.inner_mtu {
            let error = match packet.hop_limit {
                ..=1 => IcmpError::HopLimit,
                _ => IcmpError::TooBig(backend.inner_mtu),
            };
            let told_as = (&self.options, snapshot);
            return report_error(frame, lane, error, &mut self.limits, told_as);
        }
        let is_syn = lane.error.is_none()
            && packet.shape.part != Part::Later
            && packet.flags.contains(Flags::SYN);
        if self.options.clamp_mss && is_syn {
            let most = clamped_mss(underlay.mtu, packet.shape.family);
            rewrite::clamp_mss(frame.bytes_mut(), &packet, most);
        }
        if let Err(reason) = backend.template.encapsulate(frame, &packet, entropy) {
            return Verdict::Drop(reason);
        }
        let (len, syns) = (lane.len as usize, u64::from(packet.opens()));
        let tables = &mut self.tables;
        if let Some(rule) = snapshot.rule(rule)
            && let Some(counters) = tables.rules.get_mut(rule.slot())
        {
            counters.forwarded.add(len);
            counters.syns += syns;
        }
        if let Some(counters) = tables.backends.get_mut(backend.counters()) {
            counters.forwarded.add(len);
        }
        self.stats.syns += syns;
        self.stats.icmp_errors += u64::from(lane.error.is_some());
        Verdict::Forward(underlay.port)
    }

    /// Delivers a packet to a backend of this node, as if it had arrived in VXLAN.
    fn call_here<A: Table>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        zone: PortId,
        seen: &mut impl Observe,
    ) -> Verdict {
        let snapshot = &*self.snapshot;
        let Some(vm) = snapshot.nat.vm_by_port(zone) else {
            return Verdict::Drop(DropReason::UnknownVm);
        };
        let link = Link::new(snapshot.underlay().mac, vm.mac);
        let mut inward = Lane {
            direction: Direction::Inward,
            zone,
            sender: NO_SENDER,
            is_call: true,
            ..*lane
        };
        if leave_on(frame, &lane.packet, link).is_none() {
            return Verdict::Drop(DropReason::NoHeadroom);
        }
        // Tags belong to the incoming link.
        let shape = &mut inward.packet.shape;
        let tags = usize::from(shape.ip_offset) - ethernet::HEADER_LEN;
        shape.ip_offset -= tags as u8;
        shape.transport_offset -= tags as u16;
        inward.hash = self.hash(&inward);
        self.look_up(&mut inward);
        // The rule was looked up. Use one type of observer, since each call would otherwise
        // instantiate another one.
        let mut others = |frame, step| match step {
            Step::Classified(_) => {}
            step => seen.step(frame, step),
        };
        let mut others: &mut dyn FnMut(usize, Step) = &mut others;
        match self.translate_lane::<A, HostRole>(frame, &inward, &mut others) {
            Ok(port) => Verdict::Forward(port),
            Err(verdict) => verdict,
        }
    }
}

/// Returns the vm of this node that is a connection's client; `None` if the client is elsewhere.
#[cold]
pub(super) fn client_here<'n, A: Rewrite>(
    snapshot: &'n Snapshot<'_>,
    connection: &Connection<A>,
) -> Option<&'n Vm> {
    let server = snapshot.nat.vm_by_port(connection.zone())?;
    let (client, _) = connection.side(Direction::Inward).addresses.unpack();
    let port = snapshot.nat.port_of_neighbour(client, server.vni)?;
    snapshot
        .nat
        .vm_by_port(port)
        .filter(|_| connection.is_internal())
}

/// Readdresses an answer to the calling vm of this node.
///
/// # Errors
/// The vm is gone.
#[cold]
pub(super) fn answer_here<A: Rewrite>(
    snapshot: &Snapshot<'_>,
    frame: &mut Frame<'_>,
    packet: &Packet,
    connection: &Connection<A>,
) -> Result<PortId, Verdict> {
    let vm = client_here(snapshot, connection);
    let vm = vm.ok_or(Verdict::Drop(DropReason::NoNeighbour))?;
    let link = Link::new(snapshot.underlay().mac, vm.mac);
    match leave_on(frame, packet, link) {
        Some(()) => Ok(vm.port),
        None => Err(Verdict::Drop(DropReason::NoHeadroom)),
    }
}

/// Replaces the link header of a packet. Returns `None`, without a change, if the new header does
/// not fit.
fn leave_on(frame: &mut Frame<'_>, packet: &Packet, link: Link) -> Option<()> {
    let ip = usize::from(packet.shape.ip_offset);
    let bytes = frame.replace_front::<{ ethernet::HEADER_LEN }>(ip, ip + packet.ip_len())?;
    link.emit(bytes, ether_type(packet.shape.family))
}
