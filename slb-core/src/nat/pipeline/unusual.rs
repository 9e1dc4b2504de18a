//! Packets that need a second look: fragments, ICMP, other protocols, and what is broken.

use core::net::Ipv6Addr;
use core::ops::Deref;

use super::{Lane, Pipeline, Role};
use crate::fragments;
use crate::frame::Frame;
use crate::icmp;
use crate::nat::NatTable;
use crate::nat::connection::ALL_PORTS;
use crate::nat::rewrite::Rewrite;
use crate::nat::table::Connections;
use crate::observe::{Observe, Step};
use crate::packet::{Family, Part};
use crate::service::Snapshot;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{self, icmpv6};

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
        if self.advises_about_translated::<R>(frame.bytes(), lane) {
            return Err(Verdict::Drop(DropReason::IcmpRedirect));
        }
        let packet = &lane.packet;
        let kind = icmp::kind(frame.bytes(), packet);
        let is_error = match packet.shape.family {
            Family::Ipv4 => wire::icmp::is_error(kind),
            Family::Ipv6 if icmpv6::is_link_local(kind) => {
                return Err(R::neighbour_discovery(&self.snapshot, lane));
            }
            Family::Ipv6 => icmpv6::is_error(kind),
        };
        if is_error {
            let flow = packet.quoted_flow(frame.bytes()).ok_or(unmatched)?;
            seen.step(lane.frame.into(), Step::QuotedFlow(flow.tuple()));
            let refusal = icmp::refusal(frame.bytes(), packet);
            lane.error = Some(packet.addresses);
            lane.packet = flow;
            if let Some(reason) = refusal {
                return Err(if self.is_of_connection(lane) {
                    Verdict::Drop(reason)
                } else {
                    R::unmatched(&self.snapshot, lane, reason)
                });
            }
        } else if let Some(ports) = packet.echo_ports(frame.bytes()) {
            lane.packet.ports = ports;
        }
        Ok(())
    }

    /// Whether an ICMP message would have a host send elsewhere, or slower, what is translated here:
    /// its packets to or from a VIP, or those of a connection under their name on either side.
    #[cold]
    pub(crate) fn advises_about_translated<R: Role>(&self, frame: &[u8], lane: &Lane) -> bool {
        let packet = &lane.packet;
        if !packet.is_icmp()
            || packet.shape.part == Part::Later
            || !icmp::is_advice(packet.shape.family, icmp::kind(frame, packet))
        {
            return false;
        }
        let tuple = packet.tuple();
        let is_vip = |address| self.snapshot.is_vip(address);
        let flow = match packet.shape.family {
            Family::Ipv4 => packet.quoted_flow(frame),
            Family::Ipv6 => {
                let Some(redirected) = icmp::redirected(frame, packet) else {
                    return is_vip(tuple.destination);
                };
                if is_vip(Ipv6Addr::from(redirected.destination).into()) {
                    return true;
                }
                redirected.quote.and_then(|quote| packet.flow_of(quote))
            }
        };
        let Some(flow) = flow else {
            return is_vip(tuple.destination);
        };
        let quoted = flow.tuple();
        // As an error about it would be, and as what its receiver itself sends or gets.
        let zone = if R::SHARED { ALL_PORTS } else { lane.zone };
        let ways = [
            (flow, lane.direction, lane.zone),
            (flow.reversed(), lane.direction.reverse(), zone),
        ];
        let is_known = |(packet, direction, zone)| {
            self.is_of_connection(&Lane {
                packet,
                direction,
                zone,
                ..*lane
            })
        };
        [tuple.destination, quoted.source, quoted.destination]
            .into_iter()
            .any(is_vip)
            || ways.into_iter().any(is_known)
    }

    /// Whether there is a connection of a lane's tuple.
    fn is_of_connection(&self, lane: &Lane) -> bool {
        fn find<A: Rewrite>(table: &Connections<'_, A>, lane: &Lane) -> bool {
            let key = lane.key();
            table.find(table.hash(&key), &key).is_some()
        }
        let NatTable { ipv4, ipv6, .. } = &self.tables.connections;
        match lane.packet.shape.family {
            Family::Ipv4 => find(ipv4, lane),
            Family::Ipv6 => find(ipv6, lane),
        }
    }
}
