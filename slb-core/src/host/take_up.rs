//! TCP connections from outside that are taken up in the middle.
//!
//! A host agent that starts without the state of its predecessor knows none of the connections that its vms
//! have. The frontend and the vm of an inbound segment give both names of its connection, as they do for a
//! SYN, and the vm itself knows whether it has the connection. So for as long after the start as connections
//! of a rule may be idle, segments of no connection are taken up:
//!
//! | what comes | what is done |
//! |---|---|
//! | from outside, with ACK, without SYN and RST, for the vm of a rule's pool | taken up as unanswered, and established by the vm's next segment |
//! | the vm refuses that with a RST | over; the RST goes on where the rule has `tcp_reset` |
//! | from a vm's port that one frontend port leads to | taken up, and established by the client's next segment |
//! | from a vm's port that several frontend ports lead to | dropped: the client's next segment says which it is |
//! | more than the limit allows | dropped in silence: a RST would end what may be a connection |
//!
//! Packets are passed on to other hosts first. Connections that are taken up and have not been heard of from
//! both ends make room for others, as after a SYN.
//!
//! A client inside, such as a vm of the same network, may as well talk to the vm's own address. Its connections
//! are taken up by its own segments only.
//!
//! Connections whose names do not follow from a packet are not taken up: those that a vm opened, those of
//! rules with `source_nat`, and those of clients that the vm sees under another port.

use core::net::IpAddr;
use core::ops::Deref;

use super::HostRole;
use crate::limit::Own;
use crate::nat::connection::{Connection, Policy, Side};
use crate::nat::pipeline::{Lane, Pipeline, Table, TakeUp};
use crate::nat::rule_id::ShortRuleId;
use crate::nat::tcp::{Direction, Segment};
use crate::packet::Part;
use crate::snapshot::Snapshot;
use crate::snapshot::terms::{CompiledTerms, RuleKind};
use crate::time::Instant;
use crate::wire::protocol;
use crate::wire::tcp::Flags;

/// A vm's port, and whom its segment is for.
#[derive(Clone, Copy)]
struct Speaker {
    server: IpAddr,
    /// The port in network byte order.
    port: u16,
}

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Connections that began before now may be taken up.
    pub(super) fn begin_take_up(&mut self, now: Instant) {
        self.takes_up_since = Some(self.set_clock(now));
    }

    /// Returns true if connections of a rule from before the start may still go on.
    fn may_be_from_before(&self, terms: &CompiledTerms) -> bool {
        let is_within = |since| self.passed().since(since) < terms.idle.duration();
        self.takes_up_since.is_some_and(is_within)
    }

    /// The connection of a segment from outside that is of none, and that no other host may have.
    #[cold]
    pub(super) fn take_up_inward<A: Table>(
        &mut self,
        lane: &Lane,
        segment: &Segment,
        (rule, via): (u32, u8),
    ) -> TakeUp<A> {
        let (Some(&terms), Some(compiled)) = (self.snapshot.terms(rule), self.snapshot.rule(rule))
        else {
            return TakeUp::Not;
        };
        if !goes_on(segment) || terms.source_nat.is_some() || !self.may_be_from_before(&terms) {
            return TakeUp::Not;
        }
        let Some(&local) = self.snapshot.nat.local_of_pool(terms.pool, lane.zone) else {
            return TakeUp::Not;
        };
        let policy = policy(&terms, self.snapshot.short_rule_id(compiled), local.id, via);
        let outside = lane.key::<A>().side;
        let Ok(inside) = self.inside_of::<A, HostRole>(lane, &terms, &local) else {
            return TakeUp::Not;
        };
        // Another port stands for the client's where the vm knows that from another connection.
        if inside.ports >> 16 != outside.ports & 0xffff {
            return TakeUp::Not;
        }
        if !self.limits.allow(Own::TakenUp) || !self.sources.allow(&lane.packet) {
            return TakeUp::Later;
        }
        TakeUp::Connection(Connection::new(
            outside,
            inside,
            protocol::TCP,
            lane.zone,
            policy,
        ))
    }

    /// The connection from outside that a vm's segment of none may be of.
    #[cold]
    pub(super) fn take_up_outward<A: Table>(
        &mut self,
        lane: &Lane,
        segment: Option<&Segment>,
    ) -> TakeUp<A> {
        let Some(segment) = segment.filter(|segment| goes_on(segment)) else {
            return TakeUp::Not;
        };
        if self.takes_up_since.is_none() || lane.packet.shape.part != Part::Whole {
            return TakeUp::Not;
        }
        // Before the look-up, whose cost grows with the rules.
        if !self.limits.allow(Own::TakenUp) {
            return TakeUp::Later;
        }
        debug_assert!(segment.flags.contains(Flags::ACK));
        let side = lane.key::<A>().side;
        let (server, remote) = side.addresses.unpack();
        let speaker = Speaker {
            server,
            port: side.ports as u16,
        };
        let snapshot = &*self.snapshot;
        let mut candidates = snapshot.tcp_frontends().filter_map(|(rule, vip, port)| {
            let terms = snapshot.terms(rule)?;
            let is_candidate = terms.kind != RuleKind::Outbound
                && vip.is_ipv4() == server.is_ipv4()
                && self.may_be_from_before(terms)
                && leads_to(snapshot, rule, (vip, port), lane, speaker);
            is_candidate.then_some((rule, terms, vip, port.unwrap_or(speaker.port)))
        });
        let Some((rule, terms, vip, port)) = candidates.next() else {
            return TakeUp::Not;
        };
        if terms.source_nat.is_some() || candidates.next().is_some() {
            return TakeUp::Later;
        }
        // Each mux takes answers back. Which one the client's packets come by is not known yet.
        let via = match snapshot.nat.any_mux(lane.hash) {
            _ if terms.is_private => Policy::NETWORK,
            Some(mux) if terms.through_mux => mux,
            _ => Policy::DIRECT,
        };
        let local = snapshot.nat.local_of_pool(terms.pool, lane.zone);
        let (Some(local), Some(compiled), Some(remote), Some(vip)) = (
            local,
            snapshot.rule(rule),
            A::from_ip(remote),
            A::from_ip(vip),
        ) else {
            return TakeUp::Not;
        };
        let outside = Side {
            addresses: A::join(remote, vip),
            ports: side.ports >> 16 | u32::from(port) << 16,
        };
        let policy = policy(terms, snapshot.short_rule_id(compiled), local.id, via);
        TakeUp::Connection(Connection::new(
            outside,
            side,
            protocol::TCP,
            lane.zone,
            policy,
        ))
    }
}

/// Returns true if a segment may be from the middle of a connection.
fn goes_on(segment: &Segment) -> bool {
    segment.flags.contains(Flags::ACK) && !segment.flags.intersects(Flags::SYN.with(Flags::RST))
}

fn policy(terms: &CompiledTerms, rule: ShortRuleId, server: u16, via: u8) -> Policy {
    Policy {
        idle: terms.idle,
        rule,
        server,
        via,
        reset: terms.reset,
        opener: Direction::Inward,
        shared: false,
    }
}

/// Returns true if a frontend port leads to the source port of a vm's segment; `None` stands for
/// all ports, each leading to itself.
fn leads_to(
    snapshot: &Snapshot<'_>,
    rule: u32,
    (vip, port): (IpAddr, Option<u16>),
    lane: &Lane,
    speaker: Speaker,
) -> bool {
    let (Some(terms), Some(compiled)) = (snapshot.terms(rule), snapshot.rule(rule)) else {
        return false;
    };
    let Some(local) = snapshot.nat.local_of_pool(terms.pool, lane.zone) else {
        return false;
    };
    // An inbound NAT rule has one backend, at the one slot of its table.
    let only = snapshot.backend_at(compiled.first_backend, compiled.first_slot());
    if terms.kind == RuleKind::Nat && only != Some(local.backend) {
        return false;
    }
    let server = if terms.floating_ip {
        vip
    } else {
        local.address
    };
    let served = match terms.backend_port {
        Some(port) => Some(local.port.unwrap_or(port)),
        None => port,
    };
    speaker.server == server && served.is_none_or(|port| port == speaker.port)
}
