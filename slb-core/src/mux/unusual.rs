//! Unusual packets for a VIP: fragments, ICMP, and malformed packets.

use core::ops::Deref;
use core::slice;

use super::{Lane, Pipeline};
use crate::answer::reset;
use crate::answer::{self, IcmpError};
use crate::fragments::{self, Arrival, Fragments, Recalled, Taken};
use crate::frame::{BURST, Burst, Frame};
use crate::icmp::is_advice;
use crate::limit::{Limits, Own};
use crate::link::Link;
use crate::nat::Direction;
use crate::nat::connection::Side;
use crate::observe::{Observe, Step};
use crate::packet::{EchoMessage, Family, Part, Read};
use crate::snapshot::terms::RuleKind;
use crate::snapshot::{RuleMatch, Snapshot};
use crate::spec::Echo;
use crate::stats::Stats;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::{icmp, icmpv6, protocol};

impl<'m, 's, S: Deref<Target = Snapshot<'s>>> Pipeline<'m, S> {
    /// Classifies a fragment, a packet that is neither TCP nor UDP, or a malformed packet.
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
        if packet.shape.part == Part::Later {
            return self.classify_later(frame, lane, by_address, seen);
        }
        let found = if packet.has_ports() {
            Ok(self.snapshot.classify(&packet))
        } else if packet.is_icmp() {
            self.classify_icmp(frame, lane, by_address, seen)
        } else {
            Ok(by_address)
        };
        // Later fragments of a dropped ICMP error are dropped too.
        let is_refused = found.is_err() && packet.shape.echo == EchoMessage::None;
        if packet.shape.part == Part::First && !is_refused {
            self.fragments()
                .first(frame.bytes(), &packet, PortId::default());
        }
        found
    }

    fn fragments(&mut self) -> Fragments<'_, 'm> {
        Fragments {
            table: self.tables.fragments.as_mut(),
            room: &mut self.room,
        }
    }

    /// Classifies a later fragment by its first fragment, or makes it wait for that one.
    fn classify_later(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        by_address: RuleMatch,
        seen: &mut impl Observe,
    ) -> Result<RuleMatch, Verdict> {
        let zone = PortId::default();
        let fragments = self.fragments();
        match fragments.later(frame.bytes(), &mut lane.packet, zone) {
            Recalled::Known => {
                let packet = &mut lane.packet;
                seen.step(lane.frame.into(), Step::FragmentPorts(packet.tuple()));
                if packet.has_ports() {
                    return Ok(self.snapshot.classify(packet));
                }
                if packet.is_icmp() {
                    // As for the first fragment, the identifier is used only if it is a SNAT port.
                    let identifier = core::mem::take(&mut packet.ports);
                    return self.classify_echo(frame, lane, by_address, identifier);
                }
                return Ok(by_address);
            }
            Recalled::Overlaps => return Err(Verdict::Drop(DropReason::TinyFragment)),
            Recalled::Unknown if !fragments::needs_first(&lane.packet) => return Ok(by_address),
            Recalled::Unknown => {}
        }
        // Ports are not needed if neither the rule nor the distribution mode uses them.
        if let RuleMatch::Rule(index) = by_address {
            let rule = self.snapshot.rule(index);
            let names_its_protocol = lane.packet.has_ports() || lane.packet.is_icmp();
            if rule
                .is_some_and(|rule| rule.ignores_ports() && (names_its_protocol || rule.mask == 0))
            {
                return Ok(by_address);
            }
        }
        let arrival = Arrival {
            port: frame.port(),
            zone,
            sender: 0, // unused
            direction: Direction::Inward,
            len: lane.len,
        };
        let fragments = Fragments {
            table: self.tables.fragments.as_mut(),
            room: &mut self.room,
        };
        Err(fragments.hold(frame.bytes(), &lane.packet, arrival, &mut self.stats))
    }

    /// Forwards fragments that waited for their first one, and drops those that waited too long.
    pub(super) fn release(&mut self, lanes: &mut [Lane; BURST], spare: &mut Burst<'_>) {
        self.room.sweep(&mut self.stats);
        let mut used = 0;
        while let Some(frame) = spare.get_mut(used) {
            let arrival = match self.room.take(frame, &mut self.stats) {
                Taken::Fragment(arrival) => arrival,
                Taken::Small => {
                    used += 1;
                    continue;
                }
                Taken::Nothing => return,
            };
            let [lane, ..] = lanes;
            (lane.frame, lane.only_follows, lane.len) = (0, false, arrival.len);
            self.stats.released.add(arrival.len as usize);
            let found = match lane.packet.read(frame.bytes()) {
                Read::Ip => self.classify_unusual(frame, lane, &mut ()),
                Read::Other => Err(Verdict::Pass),
                Read::Bad(reason) => Err(Verdict::Drop(reason)),
            };
            if let Ok(RuleMatch::Rule(rule)) = found {
                self.hash(lane, rule, &mut ());
                let lanes = lanes.get_mut(..1).unwrap_or_default();
                self.look_up(lanes);
                self.forward(slice::from_mut(frame), lanes, &mut ());
            } else {
                self.finish_unwanted(frame, lane, found, &mut ());
            }
            if matches!(frame.verdict(), Verdict::Drop(_)) {
                frame.truncate(0);
                frame.set_verdict(Verdict::Pass);
            } else {
                used += 1;
            }
        }
    }

    /// Classifies ICMP for a VIP: echo requests are answered, and errors follow the flow that they
    /// quote.
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
        let is_error = match packet.shape.family {
            Family::Ipv4 => icmp::is_error(kind),
            Family::Ipv6 if icmpv6::is_link_local(kind) => return Ok(RuleMatch::NotVip),
            Family::Ipv6 => icmpv6::is_error(kind),
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
            // As for the flow's own packets, an echo message's identifier is used only if it is a
            // SNAT port.
            let is_snat_port =
                flow.shape.echo == EchoMessage::Reply && by_address == RuleMatch::NoRule;
            if !is_snat_port {
                lane.packet.ports = flow.as_balanced().ports;
            }
            self.stats.icmp_errors += 1;
            return Ok(RuleMatch::Rule(index));
        }
        let identifier = packet.echo_ports(frame.bytes()).unwrap_or(0);
        self.classify_echo(frame, lane, by_address, identifier)
    }

    /// Classifies an ICMP message that is no error, or a fragment of one. `identifier` is an echo
    /// message's, in the position of the requester's port.
    fn classify_echo(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        by_address: RuleMatch,
        identifier: u32,
    ) -> Result<RuleMatch, Verdict> {
        let packet = lane.packet;
        match packet.shape.echo {
            EchoMessage::None => Ok(by_address),
            EchoMessage::Reply => {
                // The identifier of an answer to a vm's request is a SNAT port.
                let found = self.snapshot.classify_echo_reply(&packet);
                if by_address == RuleMatch::NoRule && found != by_address {
                    lane.packet.ports = identifier;
                }
                Ok(found)
            }
            EchoMessage::Request => {
                if let Some(rule) = self.snapshot.echo_rule(&packet) {
                    return Ok(RuleMatch::Rule(rule));
                }
                match self.snapshot.echo(&packet) {
                    Some(Echo::Forward) => Ok(by_address),
                    Some(Echo::Answer) => {
                        Err(answer::answer_echo(frame, &packet, &mut self.limits))
                    }
                    _ => Err(Verdict::Drop(DropReason::EchoIgnored)),
                }
            }
        }
    }
}

/// Turns a frame that cannot be forwarded into an ICMP error about itself, if its sender may be
/// told.
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
    // The lane of an ICMP error has the quoted flow's tuple, and errors are never answered.
    let may_be_told = !lane.only_follows && answer::may_be_told(frame.bytes(), packet);
    if !may_be_told || !limits.allow(error.kind()) {
        return Verdict::Drop(error.reason());
    }
    match answer::icmp_error(frame, packet, error, packet.tuple().destination) {
        Some(()) => Verdict::Reply,
        None => Verdict::Drop(DropReason::NoHeadroom),
    }
}

/// Decides about a packet without a backend: with `tcp_reset`, its sender is told.
#[cold]
pub(super) fn refuse(
    snapshot: &Snapshot<'_>,
    frame: &mut Frame<'_>,
    lane: &Lane,
    reason: DropReason,
    limits: &mut Limits,
    stats: &mut Stats,
    seen: &mut impl Observe,
) -> Verdict {
    let packet = &lane.packet;
    if packet.is_martian() {
        return Verdict::Drop(DropReason::Martian);
    }
    if reason != DropReason::NoBackend {
        return Verdict::Drop(reason);
    }
    let kind = snapshot.terms(lane.rule).map(|terms| terms.kind);
    if kind == Some(RuleKind::Outbound) {
        // No vm's block contains the port, and no other rule matches the packet.
        seen.step(lane.frame.into(), Step::Classified(RuleMatch::NoRule));
        let is_error = lane.only_follows && packet.shape.part != Part::Later;
        return Verdict::Drop(if is_error {
            DropReason::IcmpUnmatched
        } else {
            DropReason::NoRule
        });
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
