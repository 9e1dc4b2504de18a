//! Packets that need a second look: fragments, ICMP, other protocols, and what is broken.

use core::ops::Deref;

use super::{Lane, Pipeline, Role};
use crate::fragments;
use crate::frame::Frame;
use crate::observe::{Observe, Step};
use crate::packet::{Family, Part};
use crate::service::Snapshot;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{icmp, icmpv6};

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Finds the tuple that a packet's connection is looked up by, where it is not its own.
    #[cold]
    pub(crate) fn classify_unusual<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        if let Some(reason) = lane.packet.shape.fault {
            return Err(R::unmatched(&self.snapshot, lane, reason));
        }
        if lane.packet.is_icmp() && lane.packet.shape.part != Part::Later {
            self.classify_icmp::<R>(frame, lane, seen)?;
        }
        if lane.packet.shape.part != Part::Whole && lane.error.is_none() {
            self.classify_fragment::<R>(lane, seen)?;
        }
        Ok(())
    }

    /// The first fragment of a datagram has its ports, and they are remembered for the rest.
    fn classify_fragment<R: Role>(
        &mut self,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let missing = R::unmatched(&self.snapshot, lane, DropReason::FragmentWithoutFirst);
        let packet = &mut lane.packet;
        if !packet.has_ports() && !packet.is_icmp() {
            return Ok(());
        }
        let table = self.tables.fragments.as_mut().ok_or(missing)?;
        if packet.shape.part == Part::First {
            fragments::remember(table, packet);
            return Ok(());
        }
        packet.ports = fragments::recall(table, packet).ok_or(missing)?;
        seen.step(lane.frame.into(), Step::FragmentPorts(packet.tuple()));
        Ok(())
    }

    /// ICMP: echo has an identifier in the place of ports, errors follow the connection that they
    /// quote, and what is of the link is not ours.
    fn classify_icmp<R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let unmatched = R::unmatched(&self.snapshot, lane, DropReason::IcmpUnmatched);
        let packet = &lane.packet;
        let kind = frame
            .bytes()
            .get(usize::from(packet.shape.transport_offset));
        let kind = kind.copied().unwrap_or(0);
        let is_error = match packet.shape.family {
            Family::Ipv4 => icmp::is_error(kind),
            Family::Ipv6 if icmpv6::is_link_local(kind) => {
                return Err(R::neighbour_discovery(&self.snapshot, lane));
            }
            Family::Ipv6 => icmpv6::is_error(kind),
        };
        if is_error {
            let flow = packet.quoted_flow(frame.bytes()).ok_or(unmatched)?;
            seen.step(lane.frame.into(), Step::QuotedFlow(flow.tuple()));
            lane.error = Some(packet.addresses);
            lane.packet = flow;
        } else if let Some(ports) = packet.echo_ports(frame.bytes()) {
            lane.packet.ports = ports;
        }
        Ok(())
    }
}
