//! Take-up of TCP connections from outside in the middle.
//!
//! A host agent that starts without the state of its predecessor knows none of its vms'
//! connections. The frontend and the vm of an inbound segment determine both tuples of its
//! connection, as for a SYN, and the vm itself knows whether it has the connection. So for as long
//! after the start as connections of a rule may be idle, connections are taken up by segments
//! without a connection:
//!
//! | what comes | what is done |
//! |---|---|
//! | from outside, with ACK, without SYN and RST, for the vm of a rule's pool | taken up as unanswered, and established by the vm's next segment |
//! | the vm refuses that with a RST | over; the RST goes on where the rule has `tcp_reset` and no other vm is left to ask. Later segments go on as if nothing had been taken up |
//! | from a vm's port that one frontend port leads to | taken up, and established by the client's next segment |
//! | from a vm's port that several frontend ports lead to | taken up under the one through which the vm has, or had, the connection's slot |
//! | the same, and the vm has it through several of them or through none | dropped: the client's next segment says which it is |
//! | from a vm that may call out, and its port serves only rules for all ports | dropped: the vm may have opened it |
//! | more than the limit allows | dropped in silence: a RST would end what may be a connection |
//!
//! Packets are passed on to other hosts first. Taken-up connections of which only one end has sent
//! may be evicted, as after a SYN.
//!
//! A client inside, such as a vm of the same network, may also talk to the vm's own address.
//! Therefore only the segments of inside clients take up their connections.
//!
//! Connections whose tuples do not follow from a packet are not taken up: those that a vm opened,
//! those of rules with `source_nat`, and those of clients that the vm sees with another port.

use core::net::IpAddr;
use core::ops::Deref;

use super::HostRole;
use crate::limit::Own;
use crate::nat::connection::{Connection, Policy, Side};
use crate::nat::pipeline::{Lane, Pipeline, Table, TakeUp, goes_on, policy};
use crate::nat::tcp::Segment;
use crate::packet::{Packet, Part};
use crate::snapshot::Snapshot;
use crate::snapshot::terms::RuleKind;
use crate::wire::protocol;
use crate::wire::tcp::Flags;

/// A vm's port, and the destination of its segment.
#[derive(Clone, Copy)]
struct Speaker {
    server: IpAddr,
    /// The port in network byte order.
    port: u16,
}

/// A frontend port that leads to a vm's port, and the connection's tuple there.
#[derive(Clone, Copy)]
struct Lead<A> {
    rule: u32,
    outside: Side<A>,
}

/// None, one or several.
#[derive(Clone, Copy)]
enum Found<T> {
    None,
    One(T),
    Several,
}

impl<T> Found<T> {
    fn and(self, another: T) -> Self {
        match self {
            Self::None => Self::One(another),
            Self::One(_) | Self::Several => Self::Several,
        }
    }
}

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Decides about taking up the connection from outside of a vm's segment without a connection.
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
        // Check this before the lookup, whose cost grows with the rules.
        if !self.limits.allow(Own::TakenUp) {
            return TakeUp::Later;
        }
        debug_assert!(segment.flags.contains(Flags::ACK));
        let side = lane.key::<A>().side;
        let Lead { rule, outside } = match self.lead_to(lane, side) {
            Found::None => return TakeUp::Not,
            Found::One(lead) => lead,
            Found::Several => return TakeUp::Later,
        };
        let snapshot = &*self.snapshot;
        let (Some(terms), Some(compiled)) = (snapshot.terms(rule), snapshot.rule(rule)) else {
            return TakeUp::Not;
        };
        // The vm does not see the client's address.
        if terms.source_nat.is_some() {
            return TakeUp::Later;
        }
        let Some(local) = snapshot.nat.local_of_pool(terms.pool, lane.zone) else {
            return TakeUp::Not;
        };
        // Any mux accepts answers. The mux of the client's packets is not known yet.
        let via = match snapshot.nat.any_mux(lane.hash) {
            Some(mux) if terms.through_mux => mux,
            _ => Policy::DIRECT,
        };
        let rule = snapshot.short_rule_id(compiled);
        TakeUp::Connection(Connection::new(
            outside,
            side,
            protocol::TCP,
            lane.zone,
            policy::<HostRole>(terms, rule, local.id, via),
        ))
    }

    /// Finds the frontend port through which a vm's segment answers, and the connection's tuple
    /// there.
    fn lead_to<A: Table>(&self, lane: &Lane, side: Side<A>) -> Found<Lead<A>> {
        let (server, remote) = side.addresses.unpack();
        let speaker = Speaker {
            server,
            port: side.ports as u16,
        };
        let snapshot = &*self.snapshot;
        let (mut all, mut owned, mut serves_port) = (Found::None, Found::None, false);
        for (rule, vip, port) in snapshot.tcp_frontends() {
            let Some(terms) = snapshot.terms(rule) else {
                continue;
            };
            // Clients of private frontends are inside.
            let may_lead = terms.kind != RuleKind::Outbound
                && !terms.is_private
                && terms.source_nat.is_none_or(|address| address == remote)
                && self.may_be_from_before(terms)
                && leads_to(snapshot, rule, (vip, port), lane, speaker);
            let (Some(client), Some(front)) = (A::from_ip(remote), A::from_ip(vip)) else {
                continue;
            };
            if !may_lead {
                continue;
            }
            let front_port = u32::from(port.unwrap_or(speaker.port));
            let outside = Side {
                addresses: A::join(client, front),
                ports: side.ports >> 16 | front_port << 16,
            };
            let lead = Lead { rule, outside };
            all = all.and(lead);
            if terms.source_nat.is_some() || is_owner(snapshot, lane, &lead) {
                owned = owned.and(lead);
            }
            serves_port |= port.is_some();
        }
        match (all, owned) {
            (Found::None, _) => Found::None,
            _ if !serves_port && may_call_out(snapshot, lane, server) => Found::Several,
            (Found::One(lead), _) | (Found::Several, Found::One(lead)) => Found::One(lead),
            (Found::Several, Found::None | Found::Several) => Found::Several,
        }
    }
}

/// Returns true if the vm of a zone is or was an owner of a connection's slot.
fn is_owner<A: Table>(snapshot: &Snapshot<'_>, lane: &Lane, lead: &Lead<A>) -> bool {
    let Some(terms) = snapshot.terms(lead.rule) else {
        return false;
    };
    if terms.kind == RuleKind::Nat {
        return true; // it has one backend
    }
    let packet = Packet {
        addresses: lead.outside.addresses.to_words(),
        ports: lead.outside.ports,
        ..lane.packet
    };
    let local = snapshot.nat.local_of_pool(terms.pool, lane.zone);
    let slot = snapshot.slot_of(lead.rule, &packet);
    local.zip(slot).is_some_and(|(local, slot)| {
        let mut owners = slot.owners();
        owners.any(|owner| owner == local.backend)
    })
}

/// Returns true if a vm has SNAT ports for an address of its own.
fn may_call_out(snapshot: &Snapshot<'_>, lane: &Lane, server: IpAddr) -> bool {
    let nat = &snapshot.nat;
    nat.vm_by_port(lane.zone).is_some_and(|vm| {
        let mut own = nat.locals_of(vm).filter(|local| local.address == server);
        own.any(|local| !nat.blocks_of(local).is_empty())
    })
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
