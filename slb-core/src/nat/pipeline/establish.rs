//! New connections, as far as all translating roles handle them alike.

use core::ops::Deref;

use super::sweep::{note_imported, note_made};
use super::{Lane, Pipeline, Role, Table, goes_on, report_error, report_from, send_back, way_back};
use crate::answer::{IcmpError, reset};
use crate::frame::Frame;
use crate::limit::{Limits, Own};
use crate::link::Link;
use crate::nat::connection::{ALL_PORTS, Connection, Key, Policy, Side};
use crate::nat::ports;
use crate::nat::table::Refused;
use crate::nat::tcp::{Direction, Segment};
use crate::observe::{ConnectionStep, Observe, Step};
use crate::packet::{EchoMessage, Packet, Part};
use crate::snapshot::locals::Local;
use crate::snapshot::terms::{CompiledTerms, RuleKind};
use crate::snapshot::{RuleMatch, Snapshot};
use crate::stats::Stats;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::ethernet::MacAddress;
use crate::wire::{protocol, udp};

pub(crate) const NO_CONNECTION: Verdict = Verdict::Drop(DropReason::NoConnection);

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Makes the connection that a packet begins.
    ///
    /// # Errors
    /// The verdict of a packet that begins no connection.
    #[inline(never)]
    pub(super) fn establish<A: Table, R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<u32, Verdict> {
        if let Some(verdict) = R::call::<A, S>(self, frame, lane, segment, seen) {
            return Err(verdict);
        }
        if lane.error.is_some() {
            return match self.astray::<A, R>(frame, lane, (segment, false), seen) {
                Elsewhere::Connection(number) => Ok(number),
                Elsewhere::Done(verdict) => Err(verdict),
                Elsewhere::Here | Elsewhere::Vm(_) => {
                    let unmatched = DropReason::IcmpUnmatched;
                    Err(R::unmatched(&self.snapshot, lane, unmatched))
                }
            };
        }
        let opened = R::open::<A, S>(self, frame, lane, segment, seen)?;
        if let Opened::New(connection) | Opened::TakenUp(connection) = &opened {
            R::admit::<A, S>(self, lane, connection, seen)?;
        }
        let (number, server) = match opened {
            Opened::New(mut connection) => {
                note_peer::<A, R>(&self.snapshot, &mut connection);
                connection.open(A::table(&mut self.tables.connections).now(), segment);
                let number = self.add(&connection, lane, segment)?;
                note_made(&self.snapshot, &connection, &mut self.tables);
                seen.step(lane.frame.into(), Step::Connection(ConnectionStep::Made));
                (number, connection.server())
            }
            Opened::TakenUp(mut connection) => {
                note_peer::<A, R>(&self.snapshot, &mut connection);
                let now = A::table(&mut self.tables.connections).now();
                connection.take_up(now, lane.direction, segment);
                let number = self.add(&connection, lane, segment)?;
                note_imported(&self.snapshot, &connection, &mut self.tables);
                self.stats.taken_up += 1;
                seen.step(lane.frame.into(), Step::Connection(ConnectionStep::TakenUp));
                (number, connection.server())
            }
            Opened::Known(number) => return Ok(number),
        };
        if let Some(place) = A::links(&mut self.tables.links).get_mut(number as usize) {
            let link = Link::of(frame, &lane.packet).unwrap_or(Link::NONE);
            let next_hop = self.snapshot.nat.next_hop_of(server).flatten();
            *place = match next_hop.filter(|next_hop| *next_hop != MacAddress::UNKNOWN) {
                Some(next_hop) if link != Link::NONE => link.with_destination(next_hop),
                _ => link,
            };
        }
        Ok(number)
    }

    /// Finds the destination of a packet that begins no connection and belongs to none at its vm. `is_refused` is true
    /// if the vm itself refused the packet's connection.
    #[cold]
    pub(super) fn astray<A: Table, R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        (segment, is_refused): (Option<&Segment>, bool),
        seen: &mut impl Observe,
    ) -> Elsewhere {
        let RuleMatch::Rule(rule) = self.snapshot.classify_at(&lane.packet, lane.zone) else {
            return Elsewhere::Here;
        };
        let destination = lane.packet.tuple().destination;
        if self.snapshot.nat.is_taken_at(lane.zone, destination) {
            return Elsewhere::Here; // the rule is for other networks
        }
        let asked = Asked {
            rule,
            segment,
            begins: Begins::No,
            goes_back: is_refused && segment.is_some_and(goes_on),
        };
        R::elsewhere::<A, S>(self, frame, lane, &asked, seen)
    }

    /// Inserts a connection into the table. Replaces finished connections with its tuples, and
    /// evicts the oldest unestablished one if the table is full.
    fn add<A: Table>(
        &mut self,
        connection: &Connection<A>,
        lane: &Lane,
        segment: Option<&Segment>,
    ) -> Result<u32, Verdict> {
        // The data offset contradicts the length, so the control bits mean nothing.
        if lane.packet.protocol == protocol::TCP && segment.is_none() {
            return Err(Verdict::Drop(DropReason::Malformed));
        }
        for way in [Direction::Inward, Direction::Outward] {
            let table = A::table(&mut self.tables.connections);
            if let Some(old) = table.leftover(&connection.key(way)) {
                self.end::<A>(old);
            }
        }
        if let Some(oldest) = A::table(&mut self.tables.connections).to_evict() {
            self.end::<A>(oldest);
            A::table(&mut self.tables.connections).note_evicted();
        }
        let table = A::table(&mut self.tables.connections);
        table.insert(*connection).map_err(|refused| {
            Verdict::Drop(match refused {
                Refused::Full => DropReason::TableFull,
                Refused::Taken => DropReason::TupleTaken,
            })
        })
    }

    /// A connection from outside, for a rule.
    ///
    /// # Errors
    /// The verdict of a packet that matches no rule, or whose rule accepts no new connections.
    pub(crate) fn inbound<A: Table, R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<Opened<A>, Verdict> {
        let packet = &lane.packet;
        let is_answer = packet.shape.echo == EchoMessage::Reply;
        let vip = self.snapshot.vip_at(packet, lane.zone);
        let mut found = match packet.shape.echo {
            EchoMessage::Reply => self.snapshot.classify_echo_reply_for(packet, vip),
            // A rule for ICMP accepts only echo requests.
            EchoMessage::None if packet.is_icmp() && packet.shape.part != Part::Later => {
                vip.map_or(RuleMatch::NotVip, |vip| self.snapshot.ha_ports(vip))
            }
            _ => self.snapshot.classify_for(packet, vip),
        };
        if let RuleMatch::Rule(index) = found
            && is_for_no_rule(&self.snapshot, index, packet)
        {
            found = RuleMatch::NoRule;
        }
        if found != RuleMatch::NotVip
            && self.snapshot.nat.networks.have_vips()
            && self.is_vms_own(lane)
        {
            found = RuleMatch::NotVip;
        }
        seen.step(lane.frame.into(), Step::Classified(found));
        let index = match found {
            RuleMatch::Rule(index) => index,
            none => {
                if none == RuleMatch::NotVip
                    && let Some(resets) = self.note_direct::<A, R>(lane, segment)
                {
                    let taken = IcmpError::TupleTaken;
                    let lane = &R::as_arrived(self, frame, lane);
                    return Err(self.refuse::<A, R>(frame, lane, (taken, resets), seen));
                }
                return Err(R::not_ours(&self.snapshot, lane, none));
            }
        };
        let (Some(&terms), Some(rule)) = (self.snapshot.terms(index), self.snapshot.rule(index))
        else {
            return Err(NO_CONNECTION);
        };
        // A mux with an older configuration may still send packets from the Internet.
        if terms.is_private
            && !self
                .snapshot
                .is_in_network(packet.tuple().source, lane.zone)
        {
            return Err(Verdict::Drop(DropReason::NoRule));
        }
        let rule = self.snapshot.short_rule_id(rule);
        if terms.kind == RuleKind::Outbound || is_answer {
            // No vm waits for this answer.
            seen.step(lane.frame.into(), Step::Connection(ConnectionStep::Missing));
            return Err(NO_CONNECTION);
        }
        let mut asked = Asked {
            rule: index,
            segment,
            begins: Begins::No,
            goes_back: segment.is_some_and(goes_on) && !self.may_be_from_before(&terms),
        };
        if packet.shape.part == Part::Later {
            return match R::elsewhere::<A, S>(self, frame, lane, &asked, seen) {
                Elsewhere::Connection(number) => Ok(Opened::Known(number)),
                Elsewhere::Done(verdict) => Err(verdict),
                Elsewhere::Here | Elsewhere::Vm(_) => {
                    Err(Verdict::Drop(DropReason::FragmentWithoutFirst))
                }
            };
        }
        if packet.is_martian() || self.snapshot.probe_source().is(packet.tuple().source) {
            return Err(Verdict::Drop(DropReason::Martian));
        }
        if let Some(segment) = segment.filter(|segment| !segment.flags.opens()) {
            match R::elsewhere::<A, S>(self, frame, lane, &asked, seen) {
                Elsewhere::Connection(number) => return Ok(Opened::Known(number)),
                Elsewhere::Done(verdict) => return Err(verdict),
                Elsewhere::Here | Elsewhere::Vm(_) => {}
            }
            return match R::take_up::<A, S>(self, frame, lane, segment, index) {
                TakeUp::Connection(connection) => Ok(Opened::TakenUp(connection)),
                TakeUp::Later => Err(NO_CONNECTION),
                TakeUp::Not => Err(self
                    .refusal()
                    .answer::<A, R>(frame, lane, terms.reset, seen)),
            };
        }
        let mut chosen = R::choose(self, lane, index, seen);
        let moved;
        let mut lane = lane;
        // Nearly every SYN is for a vm that accepts new flows.
        if R::PASSES_ON && (chosen.is_none() || segment.is_none()) {
            asked.begins = match segment {
                Some(_) => Begins::Yes,
                None if terms.quic && packet.protocol == protocol::UDP => quic(frame, packet),
                None => Begins::Perhaps,
            };
            match R::elsewhere::<A, S>(self, frame, lane, &asked, seen) {
                Elsewhere::Here => {}
                Elsewhere::Connection(number) => return Ok(Opened::Known(number)),
                Elsewhere::Done(verdict) => return Err(verdict),
                Elsewhere::Vm(zone) => {
                    moved = Lane { zone, ..*lane };
                    lane = &moved;
                    chosen = R::choose(self, lane, index, seen);
                }
            }
        }
        if !self.sources.allow(packet) {
            return Err(Verdict::Drop(DropReason::SourceLimit));
        }
        let local = chosen.and_then(|backend| self.snapshot.nat.local_of(backend));
        let Some(&local) = local else {
            let verdict = self
                .refusal()
                .answer::<A, R>(frame, lane, terms.reset, seen);
            return Err(match verdict {
                NO_CONNECTION => Verdict::Drop(DropReason::NoBackend),
                told => told,
            });
        };
        let inside = match self.inside_of::<A, R>(lane, &terms, &local) {
            Ok(inside) => inside,
            Err(NoName::Hairpin) => {
                let refusal = self.refusal();
                let verdict = refusal.answer::<A, R>(frame, lane, terms.reset, seen);
                return Err(match verdict {
                    NO_CONNECTION => Verdict::Drop(DropReason::Hairpin),
                    told => told,
                });
            }
            Err(NoName::Told(error)) => {
                return Err(self.refuse::<A, R>(frame, lane, (error, terms.reset), seen));
            }
        };
        let policy = Policy {
            idle: terms.idle,
            rule,
            server: local.id,
            via: if terms.is_private {
                Policy::NETWORK
            } else if terms.through_mux {
                R::via(self, frame, lane)
            } else {
                Policy::DIRECT
            },
            reset: terms.reset,
            opener: Direction::Inward,
            shared: R::SHARED,
        };
        let outside = lane.key().side;
        let number = packet.protocol;
        let connection = Connection::new(outside, inside, number, lane.zone, policy);
        Ok(Opened::New(connection))
    }

    /// Refuses a packet whose only possible tuple is in use, and tells its sender: by a RST if
    /// `resets`, else by an ICMP error. If the role has no address of its own, like a bridge, the
    /// error comes from the packet's destination.
    #[cold]
    #[inline(never)]
    pub(crate) fn refuse<A: Table, R: Role>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        (error, resets): (IcmpError, bool),
        seen: &mut impl Observe,
    ) -> Verdict {
        let packet = &lane.packet;
        if resets && packet.protocol == protocol::TCP {
            let refusal = self.refusal();
            return match refusal.answer::<A, R>(frame, lane, true, seen) {
                NO_CONNECTION => Verdict::Drop(error.reason()),
                told => told,
            };
        }
        let told_as = (&self.options, &*self.snapshot);
        if R::ROUTES {
            return report_error(frame, lane, error, &mut self.limits, told_as);
        }
        let source = packet.tuple().destination;
        report_from(frame, lane, error, &mut self.limits, (source, None))
    }

    /// Returns true if a packet is for a vm or gateway of its network whose address is a VIP for
    /// other networks.
    #[cold]
    #[inline(never)]
    fn is_vms_own(&self, lane: &Lane) -> bool {
        let destination = lane.packet.tuple().destination;
        self.snapshot.nat.is_taken_at(lane.zone, destination)
    }

    pub(crate) fn refusal(&mut self) -> Refusal<'_, 's> {
        Refusal {
            limits: &mut self.limits,
            stats: &mut self.stats,
            snapshot: &self.snapshot,
        }
    }

    /// Returns the inside tuple of a connection from outside: the tuple of the server's packets.
    ///
    /// The client keeps its address and port unless the rule translates its address, or the server
    /// already has a connection with that address and port, for example through another frontend.
    /// In that case the client appears with another port of the address, as with Linux's connection
    /// tracking.
    pub(crate) fn inside_of<A: Table, R: Role>(
        &mut self,
        lane: &Lane,
        terms: &CompiledTerms,
        local: &Local,
    ) -> Result<Side<A>, NoName> {
        let packet = &lane.packet;
        let (mut remote, front) = A::of(packet).split();
        let (client, _) = A::of(packet).unpack();
        if let Some(other) = self.snapshot.nat.rewritten(client).and_then(A::from_ip) {
            remote = other;
        }
        let address = A::from_ip(local.address).filter(|_| !terms.floating_ip);
        let server = address.unwrap_or(front);
        let port = match terms.backend_port.filter(|_| packet.has_ports()) {
            Some(port) => local.port.unwrap_or(port),
            None => packet.raw_destination_port(),
        };
        let source_nat = terms.source_nat.and_then(A::from_ip);
        if source_nat.is_none() && A::from_ip(local.address) == Some(remote) {
            return Err(NoName::Hairpin);
        }
        let has_ports = packet.has_ports() || (packet.is_icmp() && packet.ports != 0);
        let secret = self.tables.connections.port_secret;
        let table = A::table(&mut self.tables.connections);
        let zone = if R::SHARED { ALL_PORTS } else { lane.zone };
        if source_nat.is_none() || !has_ports {
            let side = Side {
                addresses: A::join(server, source_nat.unwrap_or(remote)),
                ports: if source_nat.is_none() {
                    u32::from(port) | packet.ports << 16
                } else {
                    0
                },
            };
            let key = Key {
                side,
                protocol: packet.protocol,
                direction: Direction::Outward,
                zone,
            };
            if source_nat.is_some() || !table.is_in_use(&key) {
                return Ok(side);
            }
            if !has_ports {
                return Err(NoName::Told(IcmpError::TupleTaken));
            }
        }
        let (address, error) = match source_nat {
            Some(address) => (address, IcmpError::NoPort),
            None => (remote, IcmpError::TupleTaken),
        };
        let outside = lane.key().side;
        let server = (server, port);
        ports::choose_peer::<A>(
            (table, &self.tables.snat_ports),
            address,
            (outside, server, packet.protocol, zone),
            secret,
        )
        .ok_or(NoName::Told(error))
    }
}

/// The reason why a connection from outside gets no inside tuple.
pub(crate) enum NoName {
    /// The vm would get a packet from itself.
    Hairpin,
    /// The tuple is in use; this error tells the client.
    Told(IcmpError),
}

/// The outcome of a packet without a connection.
pub(crate) enum Opened<A> {
    /// The packet begins this connection.
    New(Connection<A>),
    /// The packet continues this connection, which was unknown and is taken up.
    TakenUp(Connection<A>),
    /// The packet belongs to this connection of another vm.
    Known(u32),
}

/// The decision whether to take up a segment's connection.
pub(crate) enum TakeUp<A> {
    /// This connection is taken up.
    Connection(Connection<A>),
    /// A later segment may decide. The sender gets no RST.
    Later,
    /// There is no connection.
    Not,
}

/// A packet that belongs to no connection at its vm.
pub(crate) struct Asked<'a> {
    /// The rule that the packet matches.
    pub(crate) rule: u32,
    pub(crate) segment: Option<&'a Segment>,
    pub(crate) begins: Begins,
    /// True if the packet is of no connection here, and is not taken up. The present owner of its slot may take
    /// it up.
    pub(crate) goes_back: bool,
}

/// The decision whether a packet begins a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begins {
    /// The packet begins a flow, like a SYN.
    Yes,
    /// The packet belongs to an earlier flow.
    No,
    /// Unknown: the packet is a datagram.
    Perhaps,
}

/// Decides whether a QUIC packet begins a connection: an Initial or 0-RTT packet of a known
/// version, or any long header of another version (RFC 9000 §17.2, RFC 9369 §3.2, RFC 8999 §5.1). A
/// truncated datagram leaves this unknown.
#[cold]
fn quic(frame: &Frame<'_>, packet: &Packet) -> Begins {
    const LONG: u8 = 0x80;
    const VERSION_1: [u8; 4] = [0, 0, 0, 1];
    const VERSION_2: [u8; 4] = [0x6b, 0x33, 0x43, 0xcf];
    let start = usize::from(packet.shape.transport_offset) + udp::HEADER_LEN;
    let bytes: Option<&[u8; 5]> = frame.bytes().get(start..).and_then(<[u8]>::first_chunk);
    let Some(&[first, a, b, c, d]) = bytes else {
        return Begins::Perhaps;
    };
    let kind = first >> 4 & 0b11;
    let begins = match [a, b, c, d] {
        VERSION_1 => kind <= 1,
        VERSION_2 => matches!(kind, 1 | 2),
        _ => true,
    };
    match first & LONG != 0 && begins {
        true => Begins::Yes,
        false => Begins::No,
    }
}

/// The destination of a packet that matches no connection at its vm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elsewhere {
    /// No other place: the packet is accepted here, or refused.
    Here,
    /// The packet belongs to this connection of another vm of this node.
    Connection(u32),
    /// The vm at this port of the node gets the packet.
    Vm(PortId),
    /// The packet goes to another node, with this verdict.
    Done(Verdict),
}

/// Returns true if a packet without a connection, for a VIP's SNAT ports, matches no rule: the port
/// is in no vm's block, or the packet requests a connection, as a SYN and every datagram do. Other
/// TCP segments and echo replies for a vm's port may be late answers to the vm.
fn is_for_no_rule(snapshot: &Snapshot<'_>, rule: u32, packet: &Packet) -> bool {
    let kind = snapshot.terms(rule).map(|terms| terms.kind);
    if kind != Some(RuleKind::Outbound) {
        return false;
    }
    let may_answer = match packet.protocol {
        protocol::TCP => !packet.opens(),
        protocol::UDP => false,
        _ => packet.shape.echo == EchoMessage::Reply,
    };
    !may_answer || !snapshot.is_port_of_block(rule, packet)
}

/// The parts of the pipeline that tell a sender of a refusal.
pub(crate) struct Refusal<'a, 's> {
    pub(crate) limits: &'a mut Limits,
    pub(crate) stats: &'a mut Stats,
    pub(crate) snapshot: &'a Snapshot<'s>,
}

impl Refusal<'_, '_> {
    /// Tells the sender of a segment that there is no connection, if the rule wants that.
    pub(crate) fn answer<A: Table, R: Role>(
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
        let is_routed = R::ROUTES && lane.direction == Direction::Inward;
        let (link, verdict) = if is_routed {
            let (port, link) = way_back(self.snapshot, lane);
            (Some(link), Verdict::Forward(port))
        } else {
            (Link::of(frame, packet).map(Link::reversed), Verdict::Reply)
        };
        let (Some(numbers), Some(link)) = (reset::answer(frame.bytes(), packet), link) else {
            return NO_CONNECTION; // never in answer to a reset
        };
        let side = lane.key::<A>().side.reversed();
        if !self.limits.allow(Own::Reset) || reset::emit(frame, &link, side, numbers).is_none() {
            self.stats.resets_suppressed += 1;
            return NO_CONNECTION;
        }
        if is_routed && let Err(reason) = send_back(self.snapshot, frame, lane) {
            return Verdict::Drop(reason);
        }
        self.stats.resets += 1;
        seen.step(lane.frame.into(), Step::Connection(ConnectionStep::Reset));
        verdict
    }
}

/// Notes whether the remote end of a new connection is inside.
#[cold]
pub(super) fn note_peer<A: Table, R: Role>(
    snapshot: &Snapshot<'_>,
    connection: &mut Connection<A>,
) {
    let (remote, _) = connection.side(Direction::Inward).addresses.unpack();
    if connection.is_internal() || R::is_inside(snapshot, connection.zone(), remote) {
        connection.set_inside();
    }
}
