//! New connections: who may open them, and under which names they go on.
//!
//! | what comes | what is done |
//! |---|---|
//! | from the fabric, for a rule's frontend and port | a connection to the vm, if it is of the rule's pool and takes new ones |
//! | from the fabric, for the vm's own address | handed over as it is |
//! | from the fabric, for a SNAT port of nobody | dropped |
//! | from a vm, to a neighbour in its network | passed on as it is |
//! | from a vm, to the outside | a connection from a port of its own, if an outbound rule lets it |
//! | a segment of no connection that is no SYN | a RST to its sender, where the rule says so |

use core::net::IpAddr;
use core::ops::Deref;

use crate::frame::Frame;
use crate::link;
use crate::nat::connection::{Connection, Key, Policy, Side};
use crate::nat::pipeline::{Lane, Pipeline, Table, note_port};
use crate::nat::ports::{self, NoPort};
use crate::nat::reset;
use crate::nat::table::Refused;
use crate::nat::tcp::{Direction, Segment};
use crate::observe::{ConnectionStep, Observe, Step};
use crate::packet::Part;
use crate::reply::Limiter;
use crate::service::nat::{CompiledTerms, Local, RuleKind};
use crate::service::{CompiledBackend, RuleMatch, Snapshot, Underlay};
use crate::stats::Stats;
use crate::verdict::{DropReason, Verdict};
use crate::wire::protocol;

const NO_CONNECTION: Verdict = Verdict::Drop(DropReason::NoConnection);

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Makes the connection that a packet begins.
    ///
    /// # Errors
    /// It begins none: this becomes of it.
    #[inline(never)]
    pub(crate) fn establish<A: Table>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<u32, Verdict> {
        if lane.error.is_some() {
            return Err(Verdict::Drop(DropReason::IcmpUnmatched));
        }
        let connection = match lane.direction {
            Direction::Inward => self.inbound::<A>(frame, lane, segment, seen)?,
            Direction::Outward => self.outbound::<A>(frame, lane, segment, seen)?,
        };
        self.add(connection, lane, segment, seen)
    }

    /// Puts a connection into the table, in the place of what is left of others.
    fn add<A: Table>(
        &mut self,
        mut connection: Connection<A>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<u32, Verdict> {
        for way in [Direction::Inward, Direction::Outward] {
            let key = Key {
                side: connection.side(way),
                protocol: connection.protocol(),
                direction: way,
                zone: connection.zone(),
            };
            if let Some(old) = A::table(&mut self.tables.connections).leftover(&key) {
                self.end::<A>(old);
            }
        }
        let table = A::table(&mut self.tables.connections);
        connection.open(table.now(), segment);
        let number = table.insert(connection).map_err(|refused| {
            Verdict::Drop(match refused {
                Refused::Full => DropReason::TableFull,
                Refused::Taken => DropReason::TupleTaken,
            })
        })?;
        let (snapshot, tables) = (&*self.snapshot, &mut self.tables);
        note_port(
            snapshot,
            &connection,
            &mut tables.snat,
            &mut tables.snat_users,
        );
        if let Some(counters) = tables.rules.get_mut(connection.rule()) {
            counters.flows += 1;
        }
        if let Some(local) = snapshot.nat.local(connection.server())
            && let Some(counters) = tables.backends.get_mut(local.counters as usize)
        {
            counters.flows += 1;
        }
        seen.step(lane.frame.into(), Step::Connection(ConnectionStep::Made));
        Ok(number)
    }

    /// A connection from the fabric.
    fn inbound<A: Table>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<Connection<A>, Verdict> {
        let packet = &lane.packet;
        let found = if packet.is_icmp() && packet.ports >> 16 != 0 {
            self.snapshot.classify_echo_reply(packet)
        } else {
            self.snapshot.classify(packet)
        };
        seen.step(lane.frame.into(), Step::Classified(found));
        let index = match found {
            RuleMatch::Rule(index) => index,
            RuleMatch::NoRule => return Err(Verdict::Drop(DropReason::NoRule)),
            // The vm's own traffic, which needs no translation.
            RuleMatch::NotVip => return Err(Verdict::Forward(lane.zone)),
        };
        let (Some(&terms), Some(rule)) = (self.snapshot.terms(index), self.snapshot.rule(index))
        else {
            return Err(NO_CONNECTION);
        };
        let rule_slot = rule.slot() as u16;
        let is_answer = packet.is_icmp() && packet.ports >> 16 != 0;
        if terms.kind == RuleKind::Outbound || is_answer {
            return Err(NO_CONNECTION); // nobody asked for it
        }
        if packet.shape.part == Part::Later {
            return Err(Verdict::Drop(DropReason::FragmentWithoutFirst));
        }
        if segment.is_some_and(|segment| !segment.flags.opens()) {
            return Err(self.refusal().answer::<A>(frame, lane, terms.reset, seen));
        }
        let local = self
            .snapshot
            .nat
            .local_of_pool(terms.pool, lane.zone)
            .copied();
        let takes_new = local.is_some_and(|local| {
            let backend = self.snapshot.backend(local.backend);
            terms.kind == RuleKind::Nat || backend.is_some_and(CompiledBackend::is_eligible)
        });
        let Some(local) = local.filter(|_| takes_new) else {
            let verdict = self.refusal().answer::<A>(frame, lane, terms.reset, seen);
            return Err(match verdict {
                NO_CONNECTION => Verdict::Drop(DropReason::NoBackend),
                told => told,
            });
        };
        let inside = self.inside_of::<A>(lane, &terms, &local)?;
        let policy = Policy {
            idle: terms.idle,
            rule: rule_slot,
            server: local.id,
            via: if terms.through_mux {
                lane.mux.min(Policy::DIRECT)
            } else {
                Policy::DIRECT
            },
            reset: terms.reset,
            opener: Direction::Inward,
        };
        let outside = lane.key().side;
        Ok(Connection::new(
            outside,
            inside,
            packet.protocol,
            lane.zone,
            policy,
        ))
    }

    fn refusal(&mut self) -> Refusal<'_> {
        Refusal {
            resets: &mut self.resets,
            stats: &mut self.stats,
            underlay: *self.snapshot.underlay(),
        }
    }

    /// What the vm calls a connection from outside.
    fn inside_of<A: Table>(
        &mut self,
        lane: &Lane,
        terms: &CompiledTerms,
        local: &Local,
    ) -> Result<Side<A>, Verdict> {
        let packet = &lane.packet;
        let (remote, front) = A::of(packet).split();
        let address = A::from_ip(local.address).filter(|_| !terms.floating_ip);
        let server = address.unwrap_or(front);
        let port = match terms.backend_port.filter(|_| packet.has_ports()) {
            Some(port) => port,
            None => packet.raw_destination_port(),
        };
        let Some(source_nat) = terms.source_nat.and_then(A::from_ip) else {
            let ports = u32::from(port) | packet.ports << 16;
            let addresses = A::join(server, remote);
            return Ok(Side { addresses, ports });
        };
        let has_ports = packet.has_ports() || (packet.is_icmp() && packet.ports != 0);
        if !has_ports {
            let addresses = A::join(server, source_nat);
            return Ok(Side {
                addresses,
                ports: 0,
            });
        }
        let table = A::table(&mut self.tables.connections);
        let outside = lane.key().side;
        ports::choose_peer::<A>(
            table,
            source_nat,
            (outside, (server, port), packet.protocol, lane.zone),
            self.options.port_secret,
        )
        .ok_or(Verdict::Drop(DropReason::SnatExhausted))
    }

    /// A connection from a vm.
    fn outbound<A: Table>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<Connection<A>, Verdict> {
        let packet = &lane.packet;
        let snapshot = &*self.snapshot;
        let refusal = Refusal {
            resets: &mut self.resets,
            stats: &mut self.stats,
            underlay: *snapshot.underlay(),
        };
        let vm = snapshot.nat.vm_by_port(lane.zone).ok_or(Verdict::Pass)?;
        let (source, destination) = A::of(packet).unpack();
        if is_local(destination) || snapshot.nat.is_neighbour(destination, vm.vni) {
            return Err(Verdict::Pass);
        }
        let mut known = false;
        let mut locals = snapshot.nat.locals_of(vm);
        let local = locals.find(|local| {
            known |= local.address == source;
            local.address == source && !snapshot.nat.blocks_of(local).is_empty()
        });
        let Some(&local) = local else {
            // From a VIP: an answer of floating IP whose connection is over.
            let is_vip = snapshot.is_vip(source);
            return Err(match segment {
                Some(segment) if !segment.flags.opens() && (known || is_vip) => {
                    refusal.answer::<A>(frame, lane, is_vip, seen)
                }
                _ if known => Verdict::Drop(DropReason::NoOutboundRule),
                _ if is_vip => NO_CONNECTION,
                _ => Verdict::Drop(DropReason::SpoofedSource),
            });
        };
        if packet.shape.part == Part::Later {
            return Err(Verdict::Drop(DropReason::FragmentWithoutFirst));
        }
        let blocks = snapshot.nat.blocks_of(&local).iter();
        let reset = blocks.filter_map(|block| snapshot.nat.outbound(block.outbound));
        let reset = reset.into_iter().any(|outbound| outbound.reset);
        if segment.is_some_and(|segment| !segment.flags.opens()) {
            return Err(refusal.answer::<A>(frame, lane, reset, seen));
        }
        let is_request = packet.has_ports() || (packet.is_icmp() && packet.ports & 0xffff != 0);
        if !is_request {
            return Err(Verdict::Drop(DropReason::NoOutboundRule));
        }
        let side = lane.key::<A>().side;
        let inside = (side, packet.protocol, lane.zone);
        let table = A::table(&mut self.tables.connections);
        let secret = self.options.port_secret;
        let outside = match ports::choose(table, &snapshot.nat, &local, inside, secret) {
            Ok(outside) => outside,
            Err(NoPort::NoRule) => return Err(Verdict::Drop(DropReason::NoOutboundRule)),
            Err(NoPort::Exhausted) => {
                if let Some(counters) = self.tables.snat.get_mut(local.counters as usize) {
                    counters.exhausted += 1;
                }
                return Err(Verdict::Drop(DropReason::SnatExhausted));
            }
        };
        let block = outside.block;
        let (Some(rule), Some(outbound)) = (
            snapshot.rule(block.rule),
            snapshot.nat.outbound(block.outbound),
        ) else {
            return Err(NO_CONNECTION);
        };
        let policy = Policy {
            idle: outbound.idle,
            rule: rule.slot() as u16,
            server: local.id,
            via: Policy::DIRECT,
            reset: outbound.reset,
            opener: Direction::Outward,
        };
        let number = packet.protocol;
        Ok(Connection::new(
            outside.side,
            side,
            number,
            lane.zone,
            policy,
        ))
    }
}

/// What telling a sender takes.
struct Refusal<'a> {
    resets: &'a mut Limiter,
    stats: &'a mut Stats,
    underlay: Underlay,
}

impl Refusal<'_> {
    /// Tells the sender of a segment that there is no connection, where that is wanted.
    fn answer<A: Table>(
        self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        wanted: bool,
        seen: &mut impl Observe,
    ) -> Verdict {
        let packet = &lane.packet;
        seen.step(lane.frame.into(), Step::Connection(ConnectionStep::Missing));
        if !wanted || packet.protocol != protocol::TCP || packet.shape.part != Part::Whole {
            return NO_CONNECTION;
        }
        let (Some(numbers), Some(macs)) = (
            reset::answer(frame.bytes(), packet),
            reset::macs_of_answer(frame),
        ) else {
            return NO_CONNECTION; // never in answer to a reset
        };
        let side = lane.key::<A>().side.reversed();
        if !self.resets.allow() || reset::emit(frame, macs, side, numbers).is_none() {
            self.stats.resets_suppressed += 1;
            return NO_CONNECTION;
        }
        self.stats.resets += 1;
        seen.step(lane.frame.into(), Step::Connection(ConnectionStep::Reset));
        if lane.direction == Direction::Outward {
            return Verdict::Reply;
        }
        // It came out of VXLAN, but goes back to the client straight.
        let _: Option<()> = link::readdress(frame, &self.underlay);
        Verdict::Forward(self.underlay.port)
    }
}

/// Whether an address is never on the outside.
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_multicast()
                || address.is_broadcast()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_loopback()
        }
        IpAddr::V6(address) => {
            address.is_multicast()
                || address.is_unicast_link_local()
                || address.is_unspecified()
                || address.is_loopback()
        }
    }
}
