//! Packets without a connection at their vm, which may belong to another host's connection.
//!
//! A mux that does not know a flow sends it to the present owner of its slot, but the connection
//! may be at a former owner. In the table, the *owners* are the present one and the former ones,
//! the newest first, without the vm that the packet came for and without hosts that it has visited.
//!
//! | what comes | what is done |
//! |---|---|
//! | a SYN, and the vm takes no new flows of the rule | goes to the present owner |
//! | another segment, an ICMP error about a flow, a later fragment: nothing here | goes to the next of the owners |
//! | the same, and a connection that is over or half-open has other numbers, or was taken up and refused by the vm | as if there were nothing here |
//! | a QUIC packet under a rule that says so | by its header as a SYN, or as another segment; the last one sends it back to the present owner |
//! | another packet, nothing here, a change of the slot within the rule's idle timeout | goes to the next of the healthy owners, who is asked; the last one sends it back to the present owner, who takes it |
//! | a TCP segment without a connection that is not taken up here | goes back to the present owner if it came from there, who may take it up |
//! | the vm that has it, or takes it, is on this node too | goes to that vm |
//! | a packet for a vm that was here and has moved to another host | goes to that host |
//! | no owner is left, or it was passed on eight times | taken or refused, as where nothing is passed on |
//!
//! Healthy owners come before the others.
//!
//! A packet that was passed on has a [`Mark`], which is accepted only from hosts. Packets that are
//! passed on count against the limit
//! [`passes_per_second`](crate::nat::NatOptions::passes_per_second).

use core::ops::Deref;

use crate::answer::IcmpError;
use crate::frame::Frame;
use crate::limit::Own;
use crate::mark::{Handover, MAX_HOPS, Mark, NO_MUX};
use crate::nat::Direction;
use crate::nat::connection::{Connection, Key};
use crate::nat::pipeline::{Asked, Begins, Elsewhere, Lane, Pipeline, Table, report_error};
use crate::observe::{Observe, Step};
use crate::packet::{Family, Packet, Part, Read};
use crate::snapshot::owners::DEPTH;
use crate::snapshot::terms::{CompiledTerms, RuleKind};
use crate::snapshot::{RuleMatch, Slot, Snapshot, words_of_ipv4, words_of_ipv6};
use crate::tunnel::decapsulation::Outer;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::ethernet::MacAddress;
use crate::wire::protocol;

/// The way of a packet to this host.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// The packet's mark, and the address of the host that passed it on.
    passed: Option<(Mark, [u64; 2])>,
    /// The number of the mux that the packet came through, or [`NO_MUX`].
    mux: u8,
}

impl Way {
    fn handover(&self) -> Option<Handover> {
        self.passed.map(|(mark, _)| mark.handover)
    }

    /// Returns true if the packet may go to another host.
    fn goes_on(&self) -> bool {
        self.passed.is_none_or(|(mark, _)| mark.hops < MAX_HOPS)
    }

    fn has_been_at(&self, host: [u64; 2]) -> bool {
        self.passed
            .is_some_and(|(mark, sender)| sender == host || mark.has_visited(host))
    }

    /// Returns the mark for passing the packet on. `hosts` are the hosts that it may visit, this
    /// one first.
    fn next(&self, handover: Handover, hosts: impl Iterator<Item = [u64; 2]>) -> Mark {
        match self.passed {
            Some((mark, sender)) => mark.next(handover, sender),
            None => Mark::first(handover, self.mux, hosts),
        }
    }
}

/// The location of one of a slot's owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A vm of this node.
    Here,
    /// Another node.
    Apart,
    /// The backend is configured at this node, which has no vm for it.
    Nowhere,
}

/// The owners of a packet's slot, the present one first, each looked up once.
struct Owners {
    all: [Owner; DEPTH + 1],
    count: usize,
}

/// One of a slot's owners. Its fields are written and read one by one: an enum with the addresses
/// would be copied in pieces that the processor cannot forward from stores to loads.
#[derive(Clone, Copy, Debug)]
struct Owner {
    /// Address of the node, if it is another one.
    host: [u64; 2],
    /// Index of the backend among all backends.
    backend: u32,
    /// Port of the vm, if it is on this node.
    zone: PortId,
    place: Place,
    is_unhealthy: bool,
}

impl Owner {
    const NONE: Self = Self {
        host: [0; 2],
        backend: 0,
        zone: PortId(0),
        place: Place::Nowhere,
        is_unhealthy: false,
    };
}

impl Owners {
    const NONE: Self = Self {
        all: [Owner::NONE; DEPTH + 1],
        count: 0,
    };

    /// Adds the next owner; there is room for all owners of a slot.
    fn next(&mut self) -> Option<&mut Owner> {
        let place = self.all.get_mut(self.count)?;
        self.count += 1;
        Some(place)
    }

    fn iter(&self) -> impl Iterator<Item = Owner> + '_ {
        self.all.iter().take(self.count).copied()
    }

    /// Yields the ports of owners on this node.
    fn here(&self) -> impl Iterator<Item = PortId> + '_ {
        let owners = self.iter();
        let owners = owners.filter(|owner| owner.place == Place::Here);
        owners.map(|owner| owner.zone)
    }

    /// Yields owners at other nodes, with the nodes' addresses. Unhealthy owners come last: if the
    /// node of one is gone, the packet has visited all others before.
    fn apart(&self) -> impl Iterator<Item = (u32, [u64; 2])> + '_ {
        let unhealthy = self.apart_with(true);
        self.apart_with(false).chain(unhealthy)
    }

    /// Yields the unhealthy or the healthy owners at other nodes.
    fn apart_with(&self, is_unhealthy: bool) -> impl Iterator<Item = (u32, [u64; 2])> + '_ {
        let owners = self.iter();
        let owners = owners.filter(move |owner| owner.is_unhealthy == is_unhealthy);
        let owners = owners.filter(|owner| owner.place == Place::Apart);
        owners.map(|owner| (owner.backend, owner.host))
    }
}

/// Returns true if a packet has been at the host of its slot's present owner, which passed it on.
fn is_from_owner(way: &Way, (slot, owners): (&Slot, &Owners)) -> bool {
    let present = slot.owner.and_then(|_| owners.iter().next());
    present.is_some_and(|owner| owner.place == Place::Apart && way.has_been_at(owner.host))
}

impl<'s, S: Deref<Target = Snapshot<'s>>> Pipeline<'_, S> {
    /// Finds the next destination of a packet, and sends it there.
    // Not cold: during a change or a flood, many packets take this path.
    #[inline(never)]
    pub(super) fn elsewhere<A: Table>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        asked: &Asked<'_>,
        seen: &mut impl Observe,
    ) -> Elsewhere {
        if lane.direction == Direction::Outward || !self.limits.pass_on() {
            return Elsewhere::Here;
        }
        let snapshot = &*self.snapshot;
        let terms = snapshot.terms(asked.rule);
        let terms = terms.filter(|terms| terms.kind == RuleKind::Balance);
        let (Some(&terms), Some(slot)) = (terms, snapshot.slot_of(asked.rule, &lane.packet)) else {
            return Elsewhere::Here;
        };
        let way = self.way_of(frame, lane);
        let here = snapshot.nat.local_of_pool(terms.pool, lane.zone);
        let takes = here.is_some_and(|local| snapshot.takes(&terms, local.backend));
        let is_asked = way.handover() == Some(Handover::Asked);
        match asked.begins {
            Begins::Yes if takes => return Elsewhere::Here,
            Begins::Yes => {}
            _ if way.handover() == Some(Handover::PassedBack) => return Elsewhere::Here,
            Begins::Perhaps if takes && !is_asked && !self.is_young(&slot, &terms) => {
                return Elsewhere::Here;
            }
            Begins::Perhaps | Begins::No => {}
        }
        let mut owners = Owners::NONE;
        let own = self.own_words();
        for backend in slot.owners() {
            if let Some(owner) = owners.next() {
                self.find(backend, &own, owner);
                owner.is_unhealthy = self.snapshot.is_unhealthy_by(&terms, backend);
            }
        }
        let to = (&slot, &owners);
        if asked.begins == Begins::Yes {
            return self.hand_to_owner(frame, lane, to, (way, Handover::PassedOn), seen);
        }
        if let Some(number) = self.at_sibling::<A>(frame, lane, &owners, asked) {
            return Elsewhere::Connection(number);
        }
        let is_new = |&(_, host): &(u32, [u64; 2])| way.goes_on() && !way.has_been_at(host);
        let of_owner = |(owner, _)| (owner, &owners);
        if asked.begins == Begins::Perhaps {
            // Connectionless flows leave a failing backend: its host may be gone, and every new
            // flow would be lost with it.
            let next = owners.apart_with(false).find(is_new).map(of_owner);
            return match next {
                Some(next) => self.pass(frame, lane, next, (way, Handover::Asked), seen),
                None if takes && !is_asked => Elsewhere::Here,
                None => self.hand_to_owner(frame, lane, to, (way, Handover::PassedBack), seen),
            };
        }
        let next = owners.apart().find(is_new).map(of_owner);
        // The present owner's vm tells the client that the connection does not exist (RFC 9000
        // §10.3).
        let is_taken_back = asked.segment.is_none()
            && lane.error.is_none()
            && lane.packet.protocol == protocol::UDP
            && lane.packet.shape.part != Part::Later;
        let goes_back = asked.goes_back && self.limits.take_up();
        match next {
            Some(next) => self.pass(frame, lane, next, (way, Handover::PassedOn), seen),
            None if is_taken_back && !takes || goes_back && is_from_owner(&way, to) => {
                self.hand_to_owner(frame, lane, to, (way, Handover::PassedBack), seen)
            }
            None => Elsewhere::Here,
        }
    }

    /// Sends a packet for no vm of this node to the host that its vm has moved to.
    #[cold]
    #[inline(never)]
    pub(super) fn follow_vm(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &mut Lane,
        seen: &mut impl Observe,
    ) -> Verdict {
        let unknown = Verdict::Drop(DropReason::UnknownVm);
        let snapshot = &*self.snapshot;
        let Ok(Some(outer)) = Outer::parse(frame.bytes(), snapshot.underlay()) else {
            return unknown;
        };
        let moved = snapshot.nat.moved(outer.destination, outer.vni);
        let Some(index) = moved.filter(|_| self.limits.pass_on()) else {
            return unknown;
        };
        lane.sender = snapshot.nat.sender_at(outer.source);
        frame.truncate(outer.inner.1);
        frame.trim_front(outer.inner.0);
        if !matches!(lane.packet.read(frame.bytes()), Read::Ip) {
            return unknown;
        }
        let is_ipv4 = lane.packet.shape.family == Family::Ipv4;
        let ip = usize::from(lane.packet.shape.ip_offset);
        let ip = frame.bytes_mut().get_mut(ip..).unwrap_or_default();
        if let Err(reason) = outer.pass_congestion_on(ip, is_ipv4) {
            return Verdict::Drop(reason);
        }
        seen.step(lane.frame.into(), Step::Parsed(lane.packet));
        let way = self.way_of(frame, lane);
        let mut owners = Owners::NONE;
        if let Some(owner) = owners.next() {
            self.find(index, &self.own_words(), owner);
        }
        let Some((_, host)) = owners.apart().next() else {
            return unknown;
        };
        if !way.goes_on() || way.has_been_at(host) {
            return Verdict::Drop(DropReason::Astray);
        }
        let handover = way.handover().unwrap_or(Handover::PassedOn);
        match self.pass(frame, lane, (index, &owners), (way, handover), seen) {
            Elsewhere::Done(verdict) => verdict,
            _ => unknown,
        }
    }

    /// Returns the number of the mux that a packet came through; [`NO_MUX`] if it is unknown.
    pub(super) fn via(&self, frame: &Frame<'_>, lane: &Lane) -> u8 {
        self.way_of(frame, lane).mux
    }

    fn way_of(&self, frame: &Frame<'_>, lane: &Lane) -> Way {
        let nat = &self.snapshot.nat;
        let mux = nat.mux(lane.sender as usize);
        let of_mux = Way {
            passed: None,
            mux: mux.map_or(NO_MUX, |_| lane.sender as u8),
        };
        let host = match mux {
            Some(mux) => mux.is_host.then_some(mux.address),
            None => match nat.backend_of_sender(lane.sender) {
                Some(backend) => {
                    let backend = self.snapshot.backend(backend);
                    backend.map(|backend| backend.template.host())
                }
                None => nat.former_host(lane.sender),
            },
        };
        let source = frame.bytes().get(6..12).and_then(<[u8]>::first_chunk);
        let mark = source.and_then(|&mac| Mark::read(MacAddress(mac)));
        match (mark, host) {
            (Some(mark), Some(host)) => Way {
                passed: Some((mark, host)),
                mux: mark.mux,
            },
            _ => of_mux,
        }
    }

    /// Returns true if a live flow may have begun when the slot had another owner.
    fn is_young(&self, slot: &Slot, terms: &CompiledTerms) -> bool {
        let since = self.time_since_change(&slot.past);
        !slot.past.is_empty() && since.is_some_and(|since| since < terms.idle.duration())
    }

    /// Returns the underlay addresses of this node, over IPv4 and IPv6; zero if there is none.
    fn own_words(&self) -> [[u64; 2]; 2] {
        let underlay = self.snapshot.underlay();
        let ipv4 = underlay.ipv4.map(|own| words_of_ipv4(own.octets()));
        let ipv6 = underlay.ipv6.map(|own| words_of_ipv6(own.octets()));
        [ipv4.unwrap_or_default(), ipv6.unwrap_or_default()]
    }

    /// Records a backend and its location. `own` are the addresses of this node.
    fn find(&self, backend: u32, own: &[[u64; 2]; 2], owner: &mut Owner) {
        let snapshot = &*self.snapshot;
        owner.backend = backend;
        if let Some(local) = snapshot.nat.local_of(backend) {
            owner.zone = local.zone;
            owner.place = Place::Here;
            return;
        }
        let Some(backend) = snapshot.backend(backend) else {
            return;
        };
        let host = backend.template.host();
        if !own.contains(&host) {
            owner.host = host;
            owner.place = Place::Apart;
        }
    }

    /// Sends a packet to the present owner of its slot.
    fn hand_to_owner(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        (slot, owners): (&Slot, &Owners),
        (way, handover): (Way, Handover),
        seen: &mut impl Observe,
    ) -> Elsewhere {
        // The present owner comes first, if there is one.
        let present = slot.owner.and_then(|_| owners.iter().next());
        let Some(owner) = present else {
            return Elsewhere::Here;
        };
        let (backend, host) = match owner.place {
            Place::Here if owner.zone != lane.zone => {
                self.readdress(frame, owner.zone);
                return Elsewhere::Vm(owner.zone);
            }
            Place::Apart => (owner.backend, owner.host),
            Place::Here | Place::Nowhere => return Elsewhere::Here,
        };
        // The first host gets the packet back, since no other host is left to ask.
        let is_back = handover == Handover::PassedBack;
        if is_back || way.goes_on() && !way.has_been_at(host) {
            self.pass(frame, lane, (backend, owners), (way, handover), seen)
        } else {
            // The table has changed since the owner saw the packet. The sender retransmits.
            Elsewhere::Done(Verdict::Drop(DropReason::Astray))
        }
    }

    /// Returns the connection of a packet at another vm of this node that is or was an owner of its
    /// slot.
    fn at_sibling<A: Table>(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        owners: &Owners,
        asked: &Asked<'_>,
    ) -> Option<u32> {
        let table = A::table(&mut self.tables.connections);
        let mut others = owners.here().filter(|&zone| zone != lane.zone);
        let (zone, number) = others.find_map(|zone| {
            let key = Key {
                zone,
                ..lane.key::<A>()
            };
            let number = table.find(table.hash(&key), &key)?;
            let connection = table.get(number)?;
            let is_anothers = |segment| connection.is_anothers(lane.direction, segment);
            let goes_on = !table.is_past(connection) && !asked.segment.is_some_and(is_anothers);
            goes_on.then_some((zone, number))
        })?;
        let mux = self.via(frame, lane);
        let table = A::table(&mut self.tables.connections);
        if let Some((connection, _)) = table.get_mut_and_ages(number)
            && connection.via().is_some()
            && !connection.is_internal()
            && mux != NO_MUX
        {
            connection.set_via(mux);
        }
        self.readdress(frame, zone);
        Some(number)
    }

    /// Readdresses a frame to another vm of this node.
    fn readdress(&self, frame: &mut Frame<'_>, zone: PortId) {
        let vm = self.snapshot.nat.vm_by_port(zone);
        if let (Some(vm), Some(place)) = (vm, frame.bytes_mut().first_chunk_mut()) {
            *place = vm.mac.0;
        }
    }

    /// Passes a packet on to the host of a backend that is or was an owner of the slot.
    fn pass(
        &mut self,
        frame: &mut Frame<'_>,
        lane: &Lane,
        (index, owners): (u32, &Owners),
        (way, handover): (Way, Handover),
        seen: &mut impl Observe,
    ) -> Elsewhere {
        let snapshot = &*self.snapshot;
        let Some(backend) = snapshot.backend(index) else {
            return Elsewhere::Here;
        };
        // Of a flood of segments, what goes back leaves the detours of connections alone.
        let limit = match handover {
            Handover::PassedBack if lane.packet.protocol == protocol::TCP => Own::TakenUp,
            _ => Own::Passed,
        };
        if !self.limits.allow(limit) {
            return Elsewhere::Done(Verdict::Drop(DropReason::Astray));
        }
        let packet = &lane.packet;
        if packet.hop_limit <= 1 || packet.ip_len > backend.inner_mtu {
            let error = match packet.hop_limit {
                ..=1 => IcmpError::HopLimit,
                _ => IcmpError::TooBig(backend.inner_mtu),
            };
            let told_as = (&self.options, snapshot);
            let limits = &mut self.limits;
            return Elsewhere::Done(report_error(frame, lane, error, limits, told_as));
        }
        // The outer source port equals the mux's, so that the fabric keeps the flow in order.
        let entropy = snapshot.hash(&packet.as_balanced(), u64::MAX);
        if let Err(reason) = backend.template.encapsulate(frame, packet, entropy) {
            return Elsewhere::Done(Verdict::Drop(reason));
        }
        let [over_ipv4, over_ipv6] = self.own_words();
        let own = if backend.template.is_ipv4() {
            over_ipv4
        } else {
            over_ipv6
        };
        let own = Some(own).filter(|own| *own != [0; 2]);
        let others = owners.apart().map(|(_, host)| host);
        let mark = way.next(handover, own.into_iter().chain(others));
        backend.template.set_inner_source(frame, mark.address());
        let counter = match handover {
            Handover::PassedBack => &mut self.stats.passed_back,
            Handover::PassedOn | Handover::Asked => &mut self.stats.passed_on,
        };
        *counter += 1;
        let step = Step::PassedOn {
            backend: index,
            hops: mark.hops,
            handover,
        };
        seen.step(lane.frame.into(), step);
        Elsewhere::Done(Verdict::Forward(self.snapshot.underlay().port))
    }
}

/// Returns true if the vm of a connection is the last one that may have it: the others that have, or had, its
/// slot were asked before.
#[cold]
pub(super) fn is_last_asked<A: Table>(
    snapshot: &Snapshot<'_>,
    lane: &Lane,
    connection: &Connection<A>,
) -> bool {
    let outside = connection.side(Direction::Inward);
    let packet = Packet {
        addresses: outside.addresses.to_words(),
        ports: outside.ports,
        ..lane.packet
    };
    let RuleMatch::Rule(rule) = snapshot.classify_at(&packet, lane.zone) else {
        return true;
    };
    let present = snapshot.slot_of(rule, &packet).and_then(|slot| slot.owner);
    let local = present.map(|owner| snapshot.nat.local_of(owner));
    // Another vm of this node was looked at before.
    local.is_none_or(|local| local.is_some())
}
