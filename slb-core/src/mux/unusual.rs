//! Packets for a VIP that need a second look: fragments, ICMP, and what is broken.

use core::ops::Deref;

use super::pin::OVER_LIMIT;
use super::{Lane, Pipeline};
use crate::fragments;
use crate::frame::Frame;
use crate::icmp::is_advice;
use crate::link::Link;
use crate::nat::connection::Side;
use crate::nat::reset;
use crate::observe::{Observe, Step};
use crate::packet::{Family, Part};
use crate::reply::{self, IcmpError, Limits, Own};
use crate::service::{CompiledRule, Echo, RuleMatch, Snapshot};
use crate::stats::Stats;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{icmp, icmpv6, protocol};

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
        lane.only_follows = packet.shape.part == Part::Later;
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
            if let Some(table) = &mut self.tables.fragments {
                fragments::remember(table, packet);
            }
            return Ok(self.snapshot.classify(packet));
        }
        let table = self.tables.fragments.as_ref();
        let ports = table.and_then(|table| fragments::recall(table, packet));
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
        let kind = crate::icmp::kind(frame.bytes(), &packet);
        if is_advice(packet.shape.family, kind) {
            return Err(Verdict::Drop(DropReason::IcmpRedirect));
        }
        let (echo_request, is_error) = match packet.shape.family {
            Family::Ipv4 => (icmp::ECHO_REQUEST, icmp::is_error(kind)),
            Family::Ipv6 if icmpv6::is_link_local(kind) => return Ok(RuleMatch::NotVip),
            Family::Ipv6 => (icmpv6::ECHO_REQUEST, icmpv6::is_error(kind)),
        };
        if is_error {
            let unmatched = Verdict::Drop(DropReason::IcmpUnmatched);
            let flow = packet.quoted_flow(frame.bytes()).ok_or(unmatched)?;
            seen.step(lane.frame.into(), Step::QuotedFlow(flow.tuple()));
            if let Some(reason) = crate::icmp::refusal(frame.bytes(), &packet) {
                return Err(Verdict::Drop(reason));
            }
            lane.packet = flow;
            lane.only_follows = true;
            let RuleMatch::Rule(index) = self.snapshot.classify(&flow) else {
                return Err(unmatched);
            };
            if !flow.has_ports() && by_address == RuleMatch::Rule(index) {
                lane.packet.ports = 0; // as of the flow's own packets
            }
            self.stats.icmp_errors += 1;
            return Ok(RuleMatch::Rule(index));
        }
        if kind != echo_request {
            // An answer to a vm's own request: its identifier is a SNAT port.
            if let Some(ports) = packet.echo_ports(frame.bytes()) {
                let found = self.snapshot.classify_echo_reply(&packet);
                if by_address == RuleMatch::NoRule && found != by_address {
                    lane.packet.ports = ports;
                }
                return Ok(found);
            }
            return Ok(by_address);
        }
        if let Some(rule) = self.snapshot.echo_rule(&packet) {
            return Ok(RuleMatch::Rule(rule));
        }
        match self.snapshot.echo(&packet) {
            Some(Echo::Forward) => Ok(by_address),
            Some(Echo::Answer) => Err(reply::answer_echo(frame, &packet, &mut self.limits)),
            _ => Err(Verdict::Drop(DropReason::EchoIgnored)),
        }
    }
}

/// Makes a frame that cannot go on an ICMP error about itself, where its sender may be told.
#[cold]
pub(super) fn report(
    frame: &mut Frame<'_>,
    lane: &Lane,
    inner_mtu: u32,
    limits: &mut Limits,
) -> Verdict {
    let packet = &lane.packet;
    let error = if packet.hop_limit <= 1 {
        IcmpError::HopLimit
    } else {
        IcmpError::TooBig(inner_mtu)
    };
    // Of an ICMP error the lane has the quoted flow's tuple, and errors are not answered anyway.
    let may_be_told = !lane.only_follows && reply::may_be_told(frame.bytes(), packet);
    if !may_be_told || !limits.allow(error.kind()) {
        return Verdict::Drop(error.reason());
    }
    match reply::icmp_error(frame, packet, error, packet.tuple().destination) {
        Some(()) => Verdict::Reply,
        None => Verdict::Drop(DropReason::NoHeadroom),
    }
}

/// What becomes of a packet that no backend may take: with `tcp_reset`, its sender is told.
#[cold]
pub(super) fn refuse(
    snapshot: &Snapshot<'_>,
    frame: &mut Frame<'_>,
    lane: &Lane,
    index: u32,
    limits: &mut Limits,
    stats: &mut Stats,
) -> Verdict {
    let packet = &lane.packet;
    if packet.is_martian() {
        return Verdict::Drop(DropReason::Martian);
    }
    if index == OVER_LIMIT {
        return Verdict::Drop(DropReason::SourceLimit);
    }
    let no_backend = Verdict::Drop(DropReason::NoBackend);
    let wanted = snapshot.terms(lane.rule).is_some_and(|terms| terms.reset);
    let is_segment = packet.protocol == protocol::TCP && packet.shape.part == Part::Whole;
    if !wanted || !is_segment || lane.only_follows {
        return no_backend;
    }
    let (Some(numbers), Some(link)) = (
        reset::answer(frame.bytes(), packet),
        Link::of(frame, packet).map(Link::reversed),
    ) else {
        return no_backend; // never in answer to a reset
    };
    let ports = packet.ports;
    let done = limits.allow(Own::Reset)
        && match packet.shape.family {
            Family::Ipv4 => {
                let addresses = packet.addresses[0];
                reset::emit(frame, &link, Side { addresses, ports }.reversed(), numbers)
            }
            Family::Ipv6 => {
                let addresses = packet.addresses;
                reset::emit(frame, &link, Side { addresses, ports }.reversed(), numbers)
            }
        }
        .is_some();
    if !done {
        stats.resets_suppressed += 1;
        return no_backend;
    }
    stats.resets += 1;
    Verdict::Reply
}
