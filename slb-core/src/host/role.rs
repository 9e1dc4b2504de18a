//! The parts of the NAT pipeline that only a host agent has.

use core::net::IpAddr;
use core::ops::Deref;

use super::arrival::{Arrivals, decapsulate};
use super::{call, establish, pass_on, public};
use crate::frame::Frame;
use crate::link::{self, Link};
use crate::nat::connection::Policy;
use crate::nat::pipeline::{
    Asked, Elsewhere, Lane, Opened, Origin, Pipeline, Role, Table, TakeUp, leave_through,
};
use crate::nat::tcp::Segment;
use crate::nat::{Connection, Direction};
use crate::observe::{Observe, Step};
use crate::packet::{Family, Packet, Read, ends_of_bad};
use crate::snapshot::terms::RuleKind;
use crate::snapshot::{RuleMatch, Snapshot};
use crate::state::Kind;
use crate::tunnel::decapsulation::CommonHead;
use crate::tunnel::encapsulation::Template;
use crate::verdict::{DropReason, PortId, Verdict};

/// The parts of the pipeline that only a host agent has.
pub(crate) enum HostRole {}

impl Role for HostRole {
    type Last = Arrivals;
    const ROUTES: bool = true;
    const TUNNELS: bool = true;
    const SHARED: bool = false;
    const KEEPS_REMOVED: bool = false;
    const CHOOSES: bool = false;
    const RECORD: Kind = Kind::HostConnection;
    const PASSES_ON: bool = true;
    const METERS: bool = true;

    #[inline(always)]
    fn direction(
        snapshot: &Snapshot<'_>,
        frame: &Frame<'_>,
        last: &mut Self::Last,
    ) -> Option<Direction> {
        let port = frame.port();
        if port == snapshot.underlay().port {
            return Some(Direction::Inward);
        }
        if last.vm != Some(port) {
            last.vm = Some(snapshot.nat.vm_by_port(port)?.port);
        }
        Some(Direction::Outward)
    }

    #[inline(always)]
    fn inward(snapshot: &Snapshot<'_>, frame: &Frame<'_>, last: &mut Self::Last) -> Option<Origin> {
        let head = CommonHead::of(frame.bytes())?;
        Some(Origin {
            end: head.end()? as u32,
            zone: last.port_of(&head, snapshot)?,
            ecn: head.ecn(),
        })
    }

    #[inline(always)]
    fn leaves_by(snapshot: &Snapshot<'_>, zone: PortId, direction: Direction) -> Option<PortId> {
        Some(match direction {
            Direction::Inward => zone,
            Direction::Outward => snapshot.underlay().port,
        })
    }

    #[inline]
    fn arrive<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        last: &mut Self::Last,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let mut outer = None;
        if frame.port() == pipeline.snapshot.underlay().port {
            lane.direction = Direction::Inward;
            let last = &mut last.last;
            let read = decapsulate(&pipeline.snapshot, frame, lane, last, seen);
            outer = Some(match read {
                Err(Verdict::Drop(DropReason::UnknownVm)) => {
                    return Err(pipeline.follow_vm(frame, lane, seen));
                }
                read => read?,
            });
        } else {
            (lane.direction, lane.zone) = (Direction::Outward, frame.port());
            let vm = pipeline.snapshot.nat.vm_by_port(frame.port());
            vm.ok_or(Verdict::Pass)?;
        }
        match lane.packet.read(frame.bytes()) {
            Read::Ip => lane.is_ip = true,
            Read::Other if outer.is_some() => return Err(Verdict::Forward(lane.zone)),
            Read::Other => return Err(Verdict::Pass),
            Read::Bad(reason) => return Err(refuse_bad(&pipeline.snapshot, frame, lane, reason)),
        }
        if let Some(outer) = outer {
            let is_ipv4 = lane.packet.shape.family == Family::Ipv4;
            let ip = usize::from(lane.packet.shape.ip_offset);
            let ip = frame.bytes_mut().get_mut(ip..).unwrap_or_default();
            outer
                .pass_congestion_on(ip, is_ipv4)
                .map_err(Verdict::Drop)?;
        }
        seen.step(lane.frame.into(), Step::Parsed(lane.packet));
        let is_inward = lane.direction == Direction::Inward;
        if is_inward && !pipeline.snapshot.nat.networks.publics.is_empty() {
            pipeline.public_in(frame, lane, seen)?;
        }
        if lane.packet.is_plain() {
            return Ok(());
        }
        pipeline.classify_unusual::<Self>(frame, lane, seen)
    }

    fn is_inside(snapshot: &Snapshot<'_>, port: PortId, address: IpAddr) -> bool {
        snapshot.is_private_at(address, port) || is_reached_untranslated(snapshot, port, address)
    }

    fn open<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<Opened<A>, Verdict> {
        match lane.direction {
            Direction::Inward => pipeline.inbound::<A, Self>(frame, lane, segment, seen),
            Direction::Outward => pipeline.outbound(frame, lane, segment, seen),
        }
    }

    fn elsewhere<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        asked: &Asked<'_>,
        seen: &mut impl Observe,
    ) -> Elsewhere {
        pipeline.elsewhere::<A>(frame, lane, asked, seen)
    }

    fn is_last_asked<A: Table>(
        snapshot: &Snapshot<'_>,
        lane: &Lane,
        connection: &Connection<A>,
    ) -> bool {
        pass_on::is_last_asked(snapshot, lane, connection)
    }

    fn take_up<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &Frame<'_>,
        lane: &Lane,
        segment: &Segment,
        rule: u32,
    ) -> TakeUp<A> {
        let via = match pipeline.snapshot.terms(rule) {
            Some(terms) if terms.is_private => Policy::NETWORK,
            Some(terms) if terms.through_mux => pipeline.via(frame, lane),
            _ => Policy::DIRECT,
        };
        let snapshot = &*pipeline.snapshot;
        let terms = snapshot.terms(rule);
        let local = terms.and_then(|terms| snapshot.nat.local_of_pool(terms.pool, lane.zone));
        let local = local.copied();
        pipeline.take_up_inward::<A, Self>(lane, segment, (rule, local, via))
    }

    fn via<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &Pipeline<'_, S>,
        frame: &Frame<'_>,
        lane: &Lane,
    ) -> u8 {
        pipeline.via(frame, lane)
    }

    /// Chooses the destination vm, if it is in the rule's pool and accepts new connections.
    fn choose<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &Pipeline<'_, S>,
        lane: &Lane,
        rule: u32,
        _: &mut impl Observe,
    ) -> Option<u32> {
        let snapshot = &*pipeline.snapshot;
        let terms = snapshot.terms(rule)?;
        let local = snapshot.nat.local_of_pool(terms.pool, lane.zone)?;
        let takes = terms.kind == RuleKind::Nat || snapshot.takes(terms, local.backend);
        takes.then_some(local.backend)
    }

    fn not_ours(snapshot: &Snapshot<'_>, lane: &Lane, found: RuleMatch) -> Verdict {
        match found {
            RuleMatch::NoRule => Verdict::Drop(DropReason::NoRule),
            _ if !is_for_vm(snapshot, lane) => Verdict::Drop(DropReason::UnknownVm),
            // The vm's own traffic, which needs no translation.
            _ => Verdict::Forward(lane.zone),
        }
    }

    #[inline]
    fn answers_directly(
        snapshot: &Snapshot<'_>,
        zone: PortId,
        client: IpAddr,
        server: IpAddr,
    ) -> bool {
        is_reached_untranslated(snapshot, zone, client)
            || public::leaves(snapshot, zone, server, client)
    }

    /// Forwards a packet to the vm's own address, passes one to an address that is reached
    /// untranslated or with the vm's public address, and drops all others.
    fn unmatched(snapshot: &Snapshot<'_>, lane: &Lane, reason: DropReason) -> Verdict {
        let destination = lane.own_packet().tuple().destination;
        match lane.direction {
            Direction::Inward
                if !snapshot.is_vip_at(lane.zone, destination) && is_for_vm(snapshot, lane) =>
            {
                Verdict::Forward(lane.zone)
            }
            Direction::Outward if is_reached_untranslated(snapshot, lane.zone, destination) => {
                Verdict::Pass
            }
            Direction::Outward if public::has_lane(snapshot, lane) => Verdict::Pass,
            _ => Verdict::Drop(reason),
        }
    }

    #[inline]
    fn pass<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        seen: &mut impl Observe,
    ) -> Verdict {
        pipeline.switch(frame, lane, seen)
    }

    #[inline]
    fn deliver<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        port: PortId,
        seen: &mut impl Observe,
    ) -> Verdict {
        let is_vms = lane.direction == Direction::Inward && port == lane.zone;
        match is_vms && !pipeline.snapshot.nat.security.is_unused() {
            true => pipeline.deliver(frame, lane, port, seen),
            false => Verdict::Forward(port),
        }
    }

    #[inline]
    fn admit<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        lane: &Lane,
        connection: &Connection<A>,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        match pipeline.snapshot.nat.security.is_unused() {
            true => Ok(()),
            false => pipeline.admit_connection(lane, connection, seen),
        }
    }

    #[inline]
    fn judges(snapshot: &Snapshot<'_>, lane: &Lane) -> bool {
        !snapshot.nat.security.is_unused() && Self::has_lists(snapshot, lane)
            || public::has_lane(snapshot, lane)
    }

    fn as_arrived<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
    ) -> Lane {
        pipeline.as_arrived(frame, lane)
    }

    fn neighbour_discovery(_: &Snapshot<'_>, lane: &Lane) -> Verdict {
        match lane.direction {
            Direction::Inward => Verdict::Forward(lane.zone),
            Direction::Outward => Verdict::Pass,
        }
    }

    #[inline]
    fn call<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Option<Verdict> {
        if lane.direction == Direction::Inward || !pipeline.snapshot.has_private_vips() {
            return None;
        }
        pipeline.call::<A>(frame, lane, segment, seen)
    }

    #[inline]
    fn tunnel<'a, A: Table>(
        snapshot: &'a Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
    ) -> Option<&'a Template> {
        match (direction, connection.via()) {
            (Direction::Outward, Some(_)) if connection.is_internal() => {
                let (client, _) = connection.side(Direction::Inward).addresses.unpack();
                snapshot.way_in_network(connection.zone(), client)
            }
            (Direction::Outward, Some(mux)) => Some(&snapshot.nat.mux(mux)?.template),
            _ => None,
        }
    }

    #[inline]
    fn stays<A: Table>(
        snapshot: &Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
    ) -> bool {
        direction == Direction::Outward
            && connection.is_internal()
            && call::client_here(snapshot, connection).is_some()
    }

    #[inline(always)]
    fn leave<A: Table>(
        snapshot: &Snapshot<'_>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        packet: &Packet,
        (connection, _): (&Connection<A>, Option<&Link>),
        tunnel: Option<&Template>,
    ) -> Result<PortId, Verdict> {
        let zone = connection.zone();
        if lane.direction == Direction::Inward {
            return Ok(zone);
        }
        let underlay = snapshot.underlay();
        let no_headroom = Verdict::Drop(DropReason::NoHeadroom);
        match tunnel {
            Some(tunnel) => leave_through(snapshot, tunnel, frame, packet, (zone, lane.hash))
                .map_err(Verdict::Drop)?,
            None if connection.is_internal() => {
                return call::answer_here(snapshot, frame, packet, connection);
            }
            None => link::replace(frame, packet, underlay).ok_or(no_headroom)?,
        }
        Ok(underlay.port)
    }

    fn way_to<A: Table>(
        snapshot: &Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
        _: Option<Link>,
    ) -> Option<(PortId, Link)> {
        let underlay = snapshot.underlay();
        Some(match direction {
            Direction::Inward => {
                let vm = snapshot.nat.vm_by_port(connection.zone())?;
                (vm.port, Link::new(underlay.mac, vm.mac))
            }
            Direction::Outward => {
                let fabric = (underlay.port, Link::new(underlay.mac, underlay.next_hop));
                if !connection.is_internal() {
                    return Some(fabric);
                }
                match call::client_here(snapshot, connection) {
                    Some(vm) => (vm.port, Link::new(underlay.mac, vm.mac)),
                    // In its network only: elsewhere, the address may belong to another vm.
                    None => Self::tunnel(snapshot, connection, direction).map(|_| fabric)?,
                }
            }
        })
    }
}

/// Decides about an IP packet with unreadable headers: it is passed to the vm or the kernel, unless
/// it is to or from a VIP, or for a public address.
#[cold]
fn refuse_bad(
    snapshot: &Snapshot<'_>,
    frame: &Frame<'_>,
    lane: &Lane,
    reason: DropReason,
) -> Verdict {
    let ends = ends_of_bad(frame.bytes());
    let is_vip = |address| snapshot.is_vip_at(lane.zone, address);
    let is_ours = |(source, destination)| match lane.direction {
        Direction::Inward => {
            is_vip(destination) || snapshot.nat.networks.publics.at(destination).is_some()
        }
        Direction::Outward => is_vip(destination) || is_vip(source),
    };
    match lane.direction {
        _ if ends.is_some_and(is_ours) => Verdict::Drop(reason),
        Direction::Inward => Verdict::Forward(lane.zone),
        Direction::Outward => Verdict::Pass,
    }
}

/// Returns true if a packet from the fabric, which no connection has, may be for its vm: a vm of a network has the
/// addresses that the configuration gives it. A mux with an older configuration still sends packets for a public
/// address that the vm had.
#[cold]
fn is_for_vm(snapshot: &Snapshot<'_>, lane: &Lane) -> bool {
    let destination = lane.own_packet().tuple().destination;
    let Some(vm) = snapshot.nat.vm_by_port(lane.zone) else {
        return true;
    };
    snapshot.nat.networks.of(vm.vni).is_none()
        || establish::is_of_vm(snapshot, vm, destination)
        || establish::is_local(destination)
}

/// Returns true if the vm at a port reaches an address, and answers it, under its own address.
#[cold]
pub(super) fn is_reached_untranslated(
    snapshot: &Snapshot<'_>,
    port: PortId,
    address: IpAddr,
) -> bool {
    let vm = snapshot.nat.vm_by_port(port);
    if snapshot.is_private_at(address, port) {
        return false;
    }
    snapshot.nat.is_inside(address)
        || vm.is_some_and(|vm| establish::is_inside(snapshot, vm, address))
}
