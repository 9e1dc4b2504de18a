//! ICMP errors about packets that cannot be forwarded.

use core::net::IpAddr;

use super::{Lane, leave_as_made};
use crate::answer::{self, IcmpError};
use crate::frame::Frame;
use crate::limit::Limits;
use crate::link::{self, Link};
use crate::nat::NatOptions;
use crate::nat::tcp::Direction;
use crate::packet::Family;
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::{ipv4, ipv6, tcp};

/// Returns the largest segment that fits the fabric in VXLAN.
pub(crate) fn clamped_mss(mtu: u16, family: Family) -> u16 {
    let ip = match family {
        Family::Ipv4 => ipv4::HEADER_LEN,
        Family::Ipv6 => ipv6::HEADER_LEN,
    };
    let headers = crate::HEADROOM + ip + tcp::HEADER_LEN;
    mtu.saturating_sub(headers as u16)
}

/// Turns a frame that cannot be forwarded into an ICMP error about itself, if its sender may be
/// told.
#[cold]
pub(super) fn report(
    frame: &mut Frame<'_>,
    lane: &Lane,
    most: u32,
    limits: &mut Limits,
    (options, snapshot): (&NatOptions, &Snapshot<'_>),
) -> Verdict {
    let error = if lane.packet.hop_limit <= 1 {
        IcmpError::HopLimit
    } else {
        IcmpError::TooBig(most)
    };
    report_error(frame, lane, error, limits, (options, snapshot))
}

/// Turns a frame that cannot be forwarded into the given ICMP error, if its sender may be told.
#[cold]
pub(crate) fn report_error(
    frame: &mut Frame<'_>,
    lane: &Lane,
    error: IcmpError,
    limits: &mut Limits,
    (options, snapshot): (&NatOptions, &Snapshot<'_>),
) -> Verdict {
    let source = options.icmp_source(snapshot.underlay(), lane.packet.shape.family);
    let back = match lane.direction {
        Direction::Outward => None,
        Direction::Inward => Some(way_back(snapshot, lane)),
    };
    let verdict = report_from(frame, lane, error, limits, (source, back));
    sent_back(snapshot, frame, lane, verdict)
}

/// Encapsulates an answer to a packet for a private VIP that arrived in VXLAN; the answer goes to
/// the port of the verdict.
#[cold]
fn sent_back(
    snapshot: &Snapshot<'_>,
    frame: &mut Frame<'_>,
    lane: &Lane,
    verdict: Verdict,
) -> Verdict {
    let is_sent = lane.direction == Direction::Inward && matches!(verdict, Verdict::Forward(_));
    if is_sent && let Err(reason) = send_back(snapshot, frame, lane) {
        return Verdict::Drop(reason);
    }
    verdict
}

/// Answers with an ICMP error from `source`, by the way `back`, or if `None` by the way that the
/// frame came.
#[cold]
pub(super) fn report_from(
    frame: &mut Frame<'_>,
    lane: &Lane,
    error: IcmpError,
    limits: &mut Limits,
    (source, back): (IpAddr, Option<(PortId, Link)>),
) -> Verdict {
    let packet = &lane.packet;
    let may_be_told = lane.error.is_none() && answer::may_be_told(frame.bytes(), packet);
    if !may_be_told || !limits.allow(error.kind()) {
        return Verdict::Drop(error.reason());
    }
    if answer::icmp_error(frame, packet, error, source).is_none() {
        return Verdict::Drop(DropReason::NoHeadroom);
    }
    let Some((port, link)) = back else {
        return Verdict::Reply;
    };
    match link::readdress(frame, &link) {
        Some(()) => Verdict::Forward(port),
        None => Verdict::Drop(error.reason()),
    }
}

/// Encapsulates the answer to a packet for a private VIP that arrived in VXLAN. Other answers, and
/// answers to a vm of this node, stay unchanged.
///
/// # Errors
/// The headroom is too small, or the network has no vm for the answer, which must not get to the
/// fabric: the address may be another tenant's.
#[cold]
pub(super) fn send_back(
    snapshot: &Snapshot<'_>,
    frame: &mut Frame<'_>,
    lane: &Lane,
) -> Result<(), DropReason> {
    let tuple = lane.packet.tuple();
    if !snapshot.is_private_at(tuple.destination, lane.zone) {
        return Ok(());
    }
    let server = snapshot.nat.vm_by_port(lane.zone);
    let here = server.and_then(|vm| snapshot.nat.port_of_neighbour(tuple.source, vm.vni));
    match snapshot.way_in_network(lane.zone, tuple.source) {
        Some(tunnel) => leave_as_made(snapshot, tunnel, frame, lane.zone),
        None if here.is_some() => Ok(()),
        None => Err(DropReason::NoNeighbour),
    }
}

/// Returns the port and the link header of an answer to a packet that came out of VXLAN: those of the
/// vm of this node that sent the packet, or those of the fabric, which delivers to any other sender.
#[cold]
pub(super) fn way_back(snapshot: &Snapshot<'_>, lane: &Lane) -> (PortId, Link) {
    let sender = snapshot.nat.vm_by_port(lane.zone).and_then(|vm| {
        let source = lane.packet.tuple().source;
        let port = snapshot.nat.port_of_neighbour(source, vm.vni)?;
        snapshot.nat.vm_by_port(port)
    });
    let underlay = snapshot.underlay();
    match sender {
        Some(vm) => (vm.port, Link::new(underlay.mac, vm.mac)),
        None => (underlay.port, Link::new(underlay.mac, underlay.next_hop)),
    }
}
