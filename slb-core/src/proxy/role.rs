//! The parts of the NAT pipeline that only a proxy has.

use core::net::IpAddr;
use core::ops::Deref;

use crate::answer;
use crate::frame::Frame;
use crate::link::Link;
use crate::nat::Direction;
use crate::nat::connection::{ALL_PORTS, Connection, Policy};
use crate::nat::pipeline::{Lane, Opened, Origin, Pipeline, Role, Table, TakeUp};
use crate::nat::tcp::Segment;
use crate::observe::{Observe, Step};
use crate::packet::{EchoMessage, Packet, Read, ends_of_bad};
use crate::snapshot::proxy::CompiledProxy;
use crate::snapshot::terms::{CompiledTerms, RuleKind};
use crate::snapshot::{RuleMatch, Snapshot};
use crate::spec::{Echo, Scheduler};
use crate::state::Kind;
use crate::stats::BackendCounters;
use crate::tunnel::encapsulation::Template;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::arp;
use crate::wire::ethernet::{EtherType, Ethernet, MacAddress};

/// The parts of the pipeline that only a proxy has.
pub(crate) enum ProxyRole {}

impl Role for ProxyRole {
    /// The port of the last frame, and its direction.
    type Last = Option<(PortId, Direction)>;
    const ROUTES: bool = false;
    const TUNNELS: bool = false;
    const SHARED: bool = true;
    const KEEPS_REMOVED: bool = true;
    const CHOOSES: bool = true;
    const RECORD: Kind = Kind::ProxyConnection;
    const PASSES_ON: bool = false;

    #[inline(always)]
    fn direction(
        snapshot: &Snapshot<'_>,
        frame: &Frame<'_>,
        last: &mut Self::Last,
    ) -> Option<Direction> {
        let port = frame.port();
        if let Some((known, direction)) = *last
            && known == port
        {
            return Some(direction);
        }
        let direction = direction_of(snapshot, port)?;
        *last = Some((port, direction));
        Some(direction)
    }

    #[inline(always)]
    fn inward(_: &Snapshot<'_>, frame: &Frame<'_>, _: &mut Self::Last) -> Option<Origin> {
        Some(Origin {
            end: frame.len() as u32,
            zone: frame.port(),
            ecn: 0,
        })
    }

    #[inline(always)]
    fn leaves_by(snapshot: &Snapshot<'_>, zone: PortId, direction: Direction) -> Option<PortId> {
        match direction {
            Direction::Inward => Some(snapshot.nat.proxy.as_ref()?.backend),
            Direction::Outward => Some(zone),
        }
    }

    #[inline]
    fn arrive<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        last: &mut Self::Last,
        seen: &mut impl Observe,
    ) -> Result<(), Verdict> {
        let port = frame.port();
        lane.direction = match *last {
            Some((known, direction)) if known == port => direction,
            _ => direction_of(&pipeline.snapshot, port).ok_or(Verdict::Pass)?,
        };
        *last = Some((port, lane.direction));
        lane.zone = match lane.direction {
            Direction::Inward => port,
            Direction::Outward => ALL_PORTS,
        };
        match lane.packet.read(frame.bytes()) {
            Read::Ip => {}
            Read::Other => {
                let target = arp_target(frame);
                return Err(bridge(&pipeline.snapshot, lane.direction, target));
            }
            Read::Bad(reason) => return Err(refuse_bad(&pipeline.snapshot, frame, lane, reason)),
        }
        seen.step(lane.frame.into(), Step::Parsed(lane.packet));
        if lane.packet.is_plain() {
            return Ok(());
        }
        let destination = lane.packet.tuple().destination;
        if lane.direction == Direction::Inward && !pipeline.snapshot.is_vip(destination) {
            pipeline.note_unusual_direct::<Self>(frame, lane);
            if pipeline.advises_about_translated::<Self>(frame.bytes(), lane) {
                return Err(Verdict::Drop(DropReason::IcmpRedirect));
            }
            return Err(bridge(&pipeline.snapshot, lane.direction, None));
        }
        pipeline.classify_unusual::<Self>(frame, lane, seen)
    }

    fn open<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        segment: Option<&Segment>,
        seen: &mut impl Observe,
    ) -> Result<Opened<A>, Verdict> {
        let packet = &lane.packet;
        if lane.direction == Direction::Outward {
            let destination = packet.tuple().destination;
            let snapshot = &pipeline.snapshot;
            return Err(bridge(snapshot, lane.direction, Some(destination)));
        }
        // The frontend's `icmp_echo` decides about an echo request without a rule.
        if packet.shape.echo == EchoMessage::Request
            && pipeline.snapshot.echo_rule(packet).is_none()
        {
            match pipeline.snapshot.echo(packet) {
                Some(Echo::Answer) => {
                    return Err(answer::answer_echo(frame, packet, &mut pipeline.limits));
                }
                Some(Echo::Ignore) => return Err(Verdict::Drop(DropReason::EchoIgnored)),
                Some(Echo::Forward) | None => {}
            }
        }
        pipeline.inbound::<A, Self>(frame, lane, segment, seen)
    }

    /// Chooses a backend by the rule's scheduler: Maglev, or the fewest connections.
    fn choose<'s, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &Pipeline<'_, S>,
        lane: &Lane,
        rule: u32,
        seen: &mut impl Observe,
    ) -> Option<u32> {
        let snapshot = &*pipeline.snapshot;
        let (compiled, terms) = (snapshot.rule(rule)?, snapshot.terms(rule)?);
        let hash = snapshot.hash(&lane.packet, compiled.mask);
        if terms.kind == RuleKind::Balance && terms.scheduler == Scheduler::LeastConnections {
            let counters = &pipeline.tables.backends;
            let backend = least_connections(snapshot, counters, terms, hash)?;
            seen.step(lane.frame.into(), Step::Selected(backend));
            return Some(backend);
        }
        let place = snapshot.table_index(compiled, &lane.packet, hash);
        let slot = place - compiled.first_slot();
        seen.step(lane.frame.into(), Step::Hashed { rule, hash, slot });
        let backend = snapshot.backend_at(compiled.first_backend, place)?;
        seen.step(lane.frame.into(), Step::Selected(backend));
        Some(backend)
    }

    fn take_up<'s, A: Table, S: Deref<Target = Snapshot<'s>>>(
        pipeline: &mut Pipeline<'_, S>,
        _: &Frame<'_>,
        lane: &Lane,
        segment: &Segment,
        rule: u32,
    ) -> TakeUp<A> {
        let snapshot = &*pipeline.snapshot;
        let hashes = |terms: &CompiledTerms| {
            terms.kind != RuleKind::Balance || terms.scheduler == Scheduler::Maglev
        };
        if !snapshot.terms(rule).is_some_and(hashes) {
            return TakeUp::Not;
        }
        let chosen = Self::choose(pipeline, lane, rule, &mut ());
        let local = chosen.and_then(|backend| snapshot.nat.local_of(backend).copied());
        pipeline.take_up_inward::<A, Self>(lane, segment, (rule, local, Policy::DIRECT))
    }

    fn not_ours(snapshot: &Snapshot<'_>, lane: &Lane, _: RuleMatch) -> Verdict {
        bridge(snapshot, lane.direction, None)
    }

    #[inline]
    fn answers_directly(snapshot: &Snapshot<'_>, _: PortId, _: IpAddr, server: IpAddr) -> bool {
        snapshot.nat.is_backend(server)
    }

    /// A backend's ICMP error without a connection crosses, like its other packets without one.
    /// Unreadable packets are dropped: they may belong to a connection, and the backend's address
    /// must not leak.
    fn unmatched(snapshot: &Snapshot<'_>, lane: &Lane, reason: DropReason) -> Verdict {
        let tuple = lane.own_packet().tuple();
        let crosses = reason == DropReason::IcmpUnmatched || !snapshot.nat.is_backend(tuple.source);
        match lane.direction {
            Direction::Outward if crosses => {
                bridge(snapshot, lane.direction, Some(tuple.destination))
            }
            _ => Verdict::Drop(reason),
        }
    }

    fn neighbour_discovery(snapshot: &Snapshot<'_>, lane: &Lane) -> Verdict {
        bridge(snapshot, lane.direction, None)
    }

    #[inline]
    fn tunnel<'a, A: Table>(
        _: &'a Snapshot<'_>,
        _: &Connection<A>,
        _: Direction,
    ) -> Option<&'a Template> {
        None
    }

    #[inline]
    fn leave<A: Table>(
        snapshot: &Snapshot<'_>,
        frame: &mut Frame<'_>,
        lane: &Lane,
        _: &Packet,
        (connection, opened_by): (&Connection<A>, Option<&Link>),
        _: Option<&Template>,
    ) -> Result<PortId, Verdict> {
        let ports = snapshot.nat.proxy.as_ref().ok_or(Verdict::Pass)?;
        Self::readdress(
            snapshot,
            frame,
            lane.direction,
            connection.server(),
            opened_by,
        );
        match lane.direction {
            Direction::Outward => Ok(connection.zone()),
            Direction::Inward => Ok(ports.backend),
        }
    }

    #[inline(always)]
    fn readdress(
        snapshot: &Snapshot<'_>,
        frame: &mut Frame<'_>,
        direction: Direction,
        server: u16,
        opened_by: Option<&Link>,
    ) {
        let ports = snapshot.nat.proxy.as_ref();
        if ports.is_some_and(CompiledProxy::readdresses) {
            readdress(snapshot, frame, direction, server, opened_by);
        }
    }

    /// Returns the link header of the connection's first frame: neighbours see each other's MAC
    /// addresses.
    fn way_to<A: Table>(
        snapshot: &Snapshot<'_>,
        connection: &Connection<A>,
        direction: Direction,
        opened_by: Option<Link>,
    ) -> Option<(PortId, Link)> {
        let link = opened_by.filter(|link| *link != Link::NONE)?;
        let ports = snapshot.nat.proxy.as_ref()?;
        Some(match direction {
            Direction::Inward => {
                let next_hop = snapshot.nat.next_hop_of(connection.server()).flatten();
                let link = next_hop.map_or(link, |next_hop| link.with_destination(next_hop));
                (ports.backend, link)
            }
            Direction::Outward => (connection.zone(), link.reversed()),
        })
    }
}

/// Sends a packet to the next hop of the connection's backend; or, if the backend's router is this
/// node, to the next hop that the client's packets came from.
#[inline(never)]
fn readdress(
    snapshot: &Snapshot<'_>,
    frame: &mut Frame<'_>,
    direction: Direction,
    server: u16,
    opened_by: Option<&Link>,
) {
    let Some(destination) = frame.bytes_mut().first_chunk_mut() else {
        return;
    };
    let next_hop = match direction {
        Direction::Inward => match snapshot.nat.next_hop_of(server) {
            Some(next_hop) => next_hop,
            // Connections outlive their backend's configuration.
            None => opened_by.and_then(Link::destination),
        },
        Direction::Outward if *destination == snapshot.underlay().mac.0 => {
            opened_by.and_then(Link::source)
        }
        Direction::Outward => None,
    };
    if let Some(MacAddress(next_hop)) = next_hop {
        *destination = next_hop;
    }
}

/// Returns the direction of frames from a port; `None` if the port is not one of the proxy's.
fn direction_of(snapshot: &Snapshot<'_>, port: PortId) -> Option<Direction> {
    let ports = snapshot.nat.proxy.as_ref()?;
    if port == ports.backend {
        Some(Direction::Outward)
    } else {
        ports.is_frontend(port).then_some(Direction::Inward)
    }
}

/// Bridges a frame that is not translated. `target` is its destination address, if known.
fn bridge(snapshot: &Snapshot<'_>, direction: Direction, target: Option<IpAddr>) -> Verdict {
    let Some(ports) = &snapshot.nat.proxy else {
        return Verdict::Pass;
    };
    match direction {
        Direction::Inward => Verdict::Forward(ports.backend),
        Direction::Outward => match ports.frontend_of(target) {
            Some(port) => Verdict::Forward(port),
            None => Verdict::Flood,
        },
    }
}

/// Decides about an IP packet with unreadable headers: it crosses, unless it is for a VIP or from a
/// backend, because the backend's address must not leak.
#[cold]
fn refuse_bad(
    snapshot: &Snapshot<'_>,
    frame: &Frame<'_>,
    lane: &Lane,
    reason: DropReason,
) -> Verdict {
    let ends = ends_of_bad(frame.bytes());
    let is_ours = |(source, destination)| match lane.direction {
        Direction::Inward => snapshot.is_vip(destination),
        Direction::Outward => snapshot.nat.is_backend(source),
    };
    if ends.is_some_and(is_ours) {
        Verdict::Drop(reason)
    } else {
        let destination = ends.map(|(_, destination)| destination);
        bridge(snapshot, lane.direction, destination)
    }
}

/// Returns the target address of an ARP packet.
fn arp_target(frame: &Frame<'_>) -> Option<IpAddr> {
    let link = Ethernet::parse(frame.bytes()).ok()?;
    if link.ether_type() != EtherType::ARP {
        return None;
    }
    let packet = arp::Packet::parse(link.payload()).ok()?;
    Some(packet.target.into())
}

/// Returns the backend with the fewest connections relative to its weight, including the new one.
/// Among equals, the heavier one is chosen; among equals of one weight the hash decides, so that
/// new connections do not all go to the first one.
fn least_connections(
    snapshot: &Snapshot<'_>,
    counters: &[BackendCounters],
    terms: &CompiledTerms,
    hash: u64,
) -> Option<u32> {
    let all = snapshot.backends_of(terms.pool);
    let count = u64::from(all.end - all.start);
    let first = all.start + (((hash >> 32) * count) >> 32) as u32;
    let mut best: Option<(u32, u64, u64)> = None;
    for index in (first..all.end).chain(all.start..first) {
        let share = snapshot
            .share(terms, index)
            .filter(|share| share.weight != 0);
        let (Some(backend), Some(share)) = (snapshot.backend(index), share) else {
            continue;
        };
        let live = counters.get(backend.counters()).map_or(0, |c| c.live) + 1;
        let weight = u64::from(share.weight);
        // Compares live / weight with the best ratio without a division: neither has more than 32
        // bits.
        let is_better = |(_, least, of)| {
            let (own, others) = (live * of, least * weight);
            own < others || own == others && weight > of
        };
        if best.is_none_or(is_better) {
            best = Some((index, live, weight));
        }
    }
    best.map(|(index, ..)| index)
}
