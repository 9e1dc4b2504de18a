//! Packets for a VIP that need a second look: fragments, ICMP, and what is broken.

use core::ops::Deref;

use super::{Lane, Pipeline};
use crate::flow::table::Inserted;
use crate::flow::{Addresses, FlowKey, FlowState, Table, Ticks};
use crate::frame::Frame;
use crate::observe::{Observe, Step};
use crate::packet::{Family, Packet, Part};
use crate::reply::{self, IcmpError, Limiter};
use crate::service::{CompiledRule, Echo, RuleMatch, Snapshot};
use crate::verdict::{DropReason, Verdict};
use crate::wire::{icmp, icmpv6};

/// Fragments of one datagram come within this time (RFC 1122 §3.3.2: 60 s and more).
const FRAGMENT: Ticks = Ticks(56);

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// What a packet is to this node that is a fragment, neither TCP nor UDP, or broken.
    #[cold]
    pub(super) fn classify_unusual(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Result<RuleMatch, Verdict> {
        let packet = lane.packet;
        let by_address = self.snapshot.classify_without_ports(&packet);
        if by_address == RuleMatch::NotVip {
            return Ok(RuleMatch::NotVip);
        }
        if let Some(reason) = packet.shape.fault {
            return Err(Verdict::Drop(reason));
        }
        if packet.shape.part != Part::Whole && packet.has_ports() {
            return self.classify_fragment(lane, by_address, seen);
        }
        if packet.is_icmp() && packet.shape.part != Part::Later {
            return self.classify_icmp(frame, lane, by_address, seen);
        }
        Ok(by_address)
    }

    /// A fragment of a datagram with ports: the first has them, and they are remembered for the
    /// rest, so that all go the way of the flow that they belong to.
    fn classify_fragment(
        &mut self,
        lane: &mut Lane,
        by_address: RuleMatch,
        seen: &mut impl Observe,
    ) -> Result<RuleMatch, Verdict> {
        let packet = &mut lane.packet;
        if packet.shape.part == Part::First {
            if let Some(fragments) = &mut self.tables.fragments {
                match packet.shape.family {
                    Family::Ipv4 => {
                        remember(&mut fragments.ipv4, &ipv4_fragment(packet), packet.ports);
                    }
                    Family::Ipv6 => {
                        remember(&mut fragments.ipv6, &ipv6_fragment(packet), packet.ports);
                    }
                }
            }
            return Ok(self.snapshot.classify(packet));
        }
        let ports = self.tables.fragments.as_ref().and_then(|fragments| {
            Some(match packet.shape.family {
                Family::Ipv4 => fragments
                    .ipv4
                    .value(fragments.ipv4.find(&ipv4_fragment(packet))?),
                Family::Ipv6 => fragments
                    .ipv6
                    .value(fragments.ipv6.find(&ipv6_fragment(packet))?),
            })
        });
        if let Some(ports) = ports {
            packet.ports = ports;
            seen.step(lane.frame.into(), Step::FragmentPorts(packet.tuple()));
            return Ok(self.snapshot.classify(packet));
        }
        // Where neither the rule nor the distribution mode looks at ports, none are missed.
        match by_address {
            RuleMatch::Rule(index)
                if self
                    .snapshot
                    .rule(index)
                    .is_some_and(CompiledRule::ignores_ports) =>
            {
                Ok(by_address)
            }
            _ => Err(Verdict::Drop(DropReason::FragmentWithoutFirst)),
        }
    }

    /// ICMP for a VIP: echo requests are answered, errors follow the flow that they quote.
    fn classify_icmp(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        by_address: RuleMatch,
        seen: &mut impl Observe,
    ) -> Result<RuleMatch, Verdict> {
        let packet = lane.packet;
        let kind = frame
            .bytes()
            .get(usize::from(packet.shape.transport_offset))
            .copied()
            .unwrap_or(0);
        let (echo_request, is_error) = match packet.shape.family {
            Family::Ipv4 => (icmp::ECHO_REQUEST, icmp::is_error(kind)),
            Family::Ipv6 if icmpv6::is_link_local(kind) => return Ok(RuleMatch::NotVip),
            Family::Ipv6 => (icmpv6::ECHO_REQUEST, icmpv6::is_error(kind)),
        };
        if is_error {
            let unmatched = Verdict::Drop(DropReason::IcmpUnmatched);
            let flow = packet.quoted_flow(frame.bytes()).ok_or(unmatched)?;
            seen.step(lane.frame.into(), Step::QuotedFlow(flow.tuple()));
            lane.packet = flow;
            lane.is_error = true;
            let RuleMatch::Rule(index) = self.snapshot.classify(&flow) else {
                return Err(unmatched);
            };
            self.stats.icmp_errors += 1;
            return Ok(RuleMatch::Rule(index));
        }
        if kind != echo_request {
            return Ok(by_address);
        }
        let ignored = Verdict::Drop(DropReason::EchoIgnored);
        match self.snapshot.echo(&packet) {
            Some(Echo::Forward) => Ok(by_address),
            Some(Echo::Answer) if packet.shape.part == Part::Whole && self.answers.allow() => {
                Err(reply::echo_reply(frame, &packet).map_or(ignored, |()| Verdict::Reply))
            }
            _ => Err(ignored),
        }
    }
}

/// Makes a frame that cannot go on an ICMP error about itself, where its sender may be told.
#[cold]
pub(super) fn report(
    frame: &mut Frame<'_>,
    lane: &Lane,
    inner_mtu: u32,
    answers: &mut Limiter,
) -> Verdict {
    let packet = &lane.packet;
    let error = if packet.hop_limit <= 1 {
        IcmpError::HopLimit
    } else {
        IcmpError::TooBig(inner_mtu)
    };
    // Of an ICMP error the lane has the quoted flow's tuple, and errors are not answered anyway.
    let may_be_told = !lane.is_error && reply::may_be_told(frame.bytes(), packet);
    if !may_be_told || !answers.allow() {
        return Verdict::Drop(error.reason());
    }
    match reply::icmp_error(frame, packet, error) {
        Some(()) => Verdict::Reply,
        None => Verdict::Drop(DropReason::NoHeadroom),
    }
}

/// Keeps the ports of a datagram's first fragment.
fn remember<A: Addresses>(table: &mut Table<'_, A>, key: &FlowKey<A>, ports: u32) {
    match table.find(key) {
        Some(found) => {
            table.set_value(found, ports);
            table.update(found, FRAGMENT, |state| state);
        }
        None => {
            // Half-open, so that newer datagrams push out older ones where it gets tight.
            let _: Inserted =
                table.insert(table.hash(key), key, ports, FlowState::HalfOpen, FRAGMENT);
        }
    }
}

fn ipv4_fragment(packet: &Packet) -> FlowKey<u64> {
    // RFC 791: source, destination, protocol and identification name a datagram.
    let identification = packet.identification | u32::from(packet.protocol) << 16;
    FlowKey::fragment(packet.addresses[0], identification)
}

fn ipv6_fragment(packet: &Packet) -> FlowKey<[u64; 4]> {
    FlowKey::fragment(packet.addresses, packet.identification)
}
